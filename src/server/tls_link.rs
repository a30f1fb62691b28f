//! TLS between a socket and the broker.
//!
//! ```text
//!   Greeting --INFO written--> Handshake --done--> Established
//!   (plain text; clients only,      |
//!    unless the handshake is first) '--fault, or too slow--> closed
//! ```
//!
//! What the broker has pending for a flush becomes one stream of full records: it is gathered first.
//! Until the handshake is done nothing the broker says leaves.

use super::connection::Stage;
use super::event_loop::EventLoop;
use crate::broker::outbox::Piece;
use crate::broker::{Slot, client::TlsInfo};
use crate::config::options::{Options, TlsOptions};
use crate::tls::{Configs, Fault, Session};
use crate::uring::{Io, Kind, RecvBuf, Segment};
use crate::util::lock;
use crate::wire::errors;
use crate::wire::parser::Kind as Peer;
use bytes::{Buf, Bytes};
use std::cmp::Reverse;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Plain text encrypted for one write.
const WRITE_BYTES_MAX: usize = 256 << 10;
const WRITE_PIECES_MAX: usize = 64;

/// What new connections use; a reload changes it.
#[derive(Clone, Debug)]
pub struct Terms {
    pub configs: Configs,
    pub timeout: Duration,
    pub handshake_first: bool,
}

impl Terms {
    /// None where the block is off.
    pub fn load(options: &TlsOptions, mutual: bool) -> Result<Option<Self>, String> {
        if !options.enabled {
            return Ok(None);
        }
        let configs = crate::tls::load(options, mutual)?;
        for warning in &configs.warnings {
            log::warn!("{warning}");
        }
        Ok(Some(Self {
            configs,
            timeout: Duration::from_secs_f64(options.timeout),
            handshake_first: options.handshake_first,
        }))
    }
}

/// What a start makes of certificates and keys, without one: warnings, or why it would fail.
pub fn check(options: &Options) -> Result<Vec<String>, String> {
    let mut warnings = Vec::new();
    for (block, mutual) in [(&options.tls, false), (&options.cluster.tls, true)] {
        if block.enabled {
            warnings.extend(crate::tls::load(block, mutual)?.warnings);
        }
    }
    Ok(warnings)
}

#[derive(Debug, Default)]
pub struct TlsTerms {
    clients: Mutex<Option<Arc<Terms>>>,
    routes: Mutex<Option<Arc<Terms>>>,
}

impl TlsTerms {
    pub fn set(&self, clients: Option<Terms>, routes: Option<Terms>) {
        *lock(&self.clients) = clients.map(Arc::new);
        *lock(&self.routes) = routes.map(Arc::new);
    }

    pub fn clients(&self) -> Option<Arc<Terms>> {
        lock(&self.clients).clone()
    }

    pub fn routes(&self) -> Option<Arc<Terms>> {
        lock(&self.routes).clone()
    }
}

/// The TLS side of one connection.
#[derive(Debug)]
pub struct TlsLink {
    session: Session,
    /// Bytes of the broker's output that still leave in plain text: INFO.
    greeting_left: usize,
    established: bool,
    /// The session is over; only an alert may still be on its way.
    failed: bool,
    /// Ciphertext the kernel has not taken yet, and the plain text it stands for.
    out: Bytes,
    out_plain: usize,
}

impl TlsLink {
    pub fn new(session: Session, greeting_left: usize) -> Box<Self> {
        Box::new(Self {
            session,
            greeting_left,
            established: false,
            failed: false,
            out: Bytes::new(),
            out_plain: 0,
        })
    }

    /// Whether output goes through the session by now.
    pub fn is_covering(&self) -> bool {
        self.greeting_left == 0
    }

    pub fn greeting_written(&mut self, bytes: usize) {
        // One write may also take what follows: of INFO and the error of a server that is full, say.
        self.greeting_left = self.greeting_left.saturating_sub(bytes);
    }
}

impl<I: Io> EventLoop<I> {
    /// The handshake of a new connection is to be done by then.
    pub(super) fn expect_handshake(&mut self, slot: Slot, timeout: Duration) {
        let token = self.token(slot, Kind::Recv);
        self.handshakes.push(Reverse((self.now + timeout, token)));
    }

    pub(super) fn next_handshake_deadline(&self) -> Option<Instant> {
        self.handshakes.peek().map(|Reverse((at, _))| *at)
    }

    pub(super) fn end_late_handshakes(&mut self) {
        while let Some(Reverse((at, token))) = self.handshakes.peek().copied()
            && at <= self.now
        {
            self.handshakes.pop();
            let link = self.connection(token).and_then(|c| c.tls.as_deref());
            if link.is_some_and(|link| !link.established && !link.failed) {
                log::debug!("{} - TLS handshake timeout", self.label(token.slot));
                self.broker.drop_silently(token.slot);
            }
        }
    }

    fn link(&mut self, slot: Slot) -> Option<&mut TlsLink> {
        let connection = self.places[slot as usize].connection.as_mut()?;
        connection.tls.as_deref_mut()
    }

    /// Ciphertext came in.
    pub(super) fn received_tls(&mut self, slot: Slot, buf: &RecvBuf) {
        let mut plain = std::mem::take(&mut self.plain);
        plain.clear();
        let connection = self.places[slot as usize].connection.as_mut();
        let Some(link) = connection.and_then(|c| c.tls.as_deref_mut()) else {
            return;
        };
        let result = link.session.receive(self.io.bytes(buf), &mut plain);
        if !link.established && !link.session.is_handshaking() {
            link.established = true;
            self.established(slot);
        }
        if !plain.is_empty() {
            self.broker.handle_bytes(slot, &plain, self.now);
        }
        self.plain = plain;
        match result {
            Ok(()) if self.link(slot).is_some_and(|link| link.session.has_ended()) => {
                // Not just gone: it waits for what is pending, and for our goodbye.
                self.broker.hang_up(slot);
            }
            // Of the handshake, which the broker knows nothing of; and, with all others, what it has to say.
            Ok(()) => self.dirty.push(slot),
            Err(fault) => self.fail(slot, &fault),
        }
    }

    fn established(&mut self, slot: Slot) {
        let described = self.link(slot).and_then(|link| link.session.describe());
        let Some(described) = described else {
            return;
        };
        let label = self.label(slot);
        log::debug!("{label} - TLS handshake complete");
        log::debug!(
            "{label} - TLS version {}, cipher suite {}",
            described.version,
            described.cipher_suite
        );
        let info = TlsInfo {
            version: described.version,
            cipher_suite: described.cipher_suite.into(),
            names: described.names,
        };
        self.broker.set_tls(slot, info);
    }

    fn fail(&mut self, slot: Slot, fault: &Fault) {
        let label = self.label(slot);
        let peer = self.broker.client(slot).map(|client| client.kind);
        let Some(link) = self.link(slot) else {
            return;
        };
        match peer {
            _ if link.established => log::debug!("{label} - TLS: {fault}"),
            Some(Peer::Route) => log::error!("{label} - TLS route handshake error: {fault}"),
            // Anybody can bring this about.
            _ => log::debug!("{label} - TLS handshake error: {fault}"),
        }
        if *fault == Fault::PlainText {
            // It will understand this better than an alert.
            if let Some(connection) = &mut self.places[slot as usize].connection {
                connection.tls = None;
            }
            return self.broker.refuse(slot, errors::TLS_REQUIRED);
        }
        link.failed = true;
        self.broker.hang_up(slot);
    }

    /// Whether anything is still to be written to a connection that is on its way out.
    pub(super) fn has_output(&mut self, slot: Slot) -> bool {
        let pending = self.broker.has_output(slot);
        match self.link(slot) {
            None => pending,
            Some(link) if !link.is_covering() => pending,
            Some(link) => !link.out.is_empty() || (pending && link.established && !link.failed),
        }
    }

    /// The next write through the session.
    pub(super) fn write_tls(&mut self, slot: Slot) {
        let token = self.token(slot, Kind::Write);
        let Some(connection) = self.places[slot as usize].connection.as_mut() else {
            return;
        };
        let flushing = matches!(connection.stage, Stage::Flushing { .. });
        let fd = connection.fd;
        let Some(link) = connection.tls.as_deref_mut() else {
            return;
        };
        if link.out.is_empty() {
            if link.established && !link.failed {
                self.broker
                    .start_write(slot, WRITE_PIECES_MAX, WRITE_BYTES_MAX, &mut self.pieces);
                let mut plain = std::mem::take(&mut self.plain);
                plain.clear();
                for piece in self.pieces.drain(..) {
                    match piece {
                        Piece::Region { offset, len } => {
                            plain.extend_from_slice(self.broker.output(offset, len));
                        }
                        Piece::Shared(bytes) => plain.extend_from_slice(&bytes),
                    }
                }
                link.session.send(&plain);
                link.out_plain = plain.len();
                self.plain = plain;
                let all = self.broker.client(slot).map(|c| c.outbox.pending());
                if flushing && all == Some(link.out_plain) {
                    link.session.close();
                }
            }
            let mut out = Vec::new();
            link.session.take_output(&mut out);
            link.out = out.into();
        }
        if link.out.is_empty() {
            return;
        }
        self.segments.push(Segment::Shared(link.out.clone()));
        connection.writing = true;
        self.io.write(token, fd, &self.segments);
        self.segments.clear();
    }

    /// Nothing is to be written: what was keeps no memory. Between two writes it may, which spares some.
    pub(super) fn rest_tls(&mut self, slot: Slot) {
        if let Some(link) = self.link(slot)
            && link.out.is_empty()
        {
            link.out = Bytes::new();
        }
    }

    /// The kernel took ciphertext; returns the plain text that is out by now.
    pub(super) fn written_tls(&mut self, slot: Slot, bytes: usize) -> usize {
        let Some(link) = self.link(slot) else {
            return 0;
        };
        link.out.advance(bytes);
        if !link.out.is_empty() {
            return 0;
        }
        std::mem::take(&mut link.out_plain)
    }
}
