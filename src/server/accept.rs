//! Connections come: from the listeners of loop 0, which hands them out, and from the dialer.

use super::connection::{Connection, Place};
use super::event_loop::EventLoop;
use super::tls_link::{Terms, TlsLink};
use crate::broker::Slot;
use crate::broker::effect::Dial;
use crate::broker::mail::Arrival;
use crate::broker::propagate::next_cid;
use crate::tls::Session;
use crate::uring::{Errno, Io, Kind, Token};
use crate::wire::errors;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// After a failed accept (no descriptors left, say).
const PAUSE: Duration = Duration::from_millis(100);
const TELL_FDS_EVERY: Duration = Duration::from_secs(10);

const CLIENTS: u32 = 0;
const ROUTES: u32 = 1;

/// The listening sockets, and the numbers given to connections. Only that of loop 0 has any.
pub struct Acceptor {
    listeners: [Option<Listener>; 2],
    /// The last cid given; a cid says which loop its connection is on.
    last_cid: u64,
    loops: u16,
    fds_told_at: Option<Instant>,
}

struct Listener {
    fd: RawFd,
    /// Not armed; to be armed from this time on.
    arm_at: Option<Instant>,
}

impl Acceptor {
    pub fn new(clients: Option<RawFd>, routes: Option<RawFd>, loops: u16, now: Instant) -> Self {
        let listener = |fd: Option<RawFd>| {
            let arm_at = Some(now);
            fd.map(|fd| Listener { fd, arm_at })
        };
        Self {
            listeners: [listener(clients), listener(routes)],
            last_cid: 0,
            loops,
            fds_told_at: None,
        }
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        let listeners = self.listeners.iter().flatten();
        listeners.filter_map(|listener| listener.arm_at).min()
    }

    /// Arms what is due.
    pub fn arm(&mut self, io: &mut impl Io, now: Instant) {
        for (which, listener) in (0..).zip(&mut self.listeners) {
            if let Some(listener) = listener
                && listener.arm_at.take_if(|at| *at <= now).is_some()
            {
                io.accept(Token::new(Kind::Accept, which, 0), listener.fd);
            }
        }
    }

    /// Now and then.
    fn tell_fds(&mut self, end: RawFd, now: Instant) {
        if self.fds_told_at.is_none_or(|at| now - at >= TELL_FDS_EVERY) {
            self.fds_told_at = Some(now);
            log::error!(
                "No more clients: all {end} file descriptors but those kept for the store of streaming are in use; raise RLIMIT_NOFILE (LimitNOFILE= in a systemd unit)"
            );
        }
    }

    /// Takes no more clients.
    pub fn close(&mut self, io: &mut impl Io) {
        if let Some(listener) = self.listeners[CLIENTS as usize].take() {
            io.cancel(Token::new(Kind::Accept, CLIENTS, 0));
            // Shut down, so that nobody waits in a queue that is not read any more.
            let _ = nix::sys::socket::shutdown(listener.fd, nix::sys::socket::Shutdown::Both);
        }
    }

    fn arm_again(&mut self, which: u32, at: Instant) {
        if let Some(listener) = &mut self.listeners[which as usize] {
            listener.arm_at = Some(at);
        }
    }

    fn cid(&mut self, loop_index: u16) -> u64 {
        self.last_cid = next_cid(self.last_cid, loop_index, self.loops);
        self.last_cid
    }
}

impl<I: Io> EventLoop<I> {
    pub(super) fn accepted(&mut self, token: Token, result: Result<u32, Errno>, more: bool) {
        match result {
            Ok(fd) => self.take_in(token.slot, fd as RawFd),
            Err(Errno::CANCELED) => return,
            Err(error) => {
                log::error!(
                    "Temporary Client Accept Error ({error}), sleeping {}ms",
                    PAUSE.as_millis()
                );
                return self.acceptor.arm_again(token.slot, self.now + PAUSE);
            }
        }
        if !more {
            self.acceptor.arm_again(token.slot, self.now);
        }
    }

    /// One connection, of a client or a route.
    fn take_in(&mut self, which: u32, fd: RawFd) {
        let Ok(peer) = self.io.peer_address(fd) else {
            return self.io.close(fd); // it has gone already
        };
        // From another host it is paced again, if the system does that.
        if let Some(name) = &self.shared.congestion_elsewhere
            && !peer.ip().is_loopback()
            && let Err(error) = self.io.set_congestion_control(fd, name)
        {
            // It works without as well.
            log::debug!("{peer}: congestion control {}: {error}", name.display());
        }
        match which {
            ROUTES => self.open_route(fd, peer, None),
            _ => self.distribute(fd, peer),
        }
    }

    /// Gives a new connection to the loop with the fewest.
    fn distribute(&mut self, fd: RawFd, peer: SocketAddr) {
        // The system gives the lowest that is free. To be told why would take it longer than there may be others.
        if fd >= self.shared.client_fds_end {
            self.acceptor.tell_fds(self.shared.client_fds_end, self.now);
            return self.io.close(fd);
        }
        let doors = self.shared.mesh.doors();
        let counts: Vec<usize> = doors
            .iter()
            .map(|door| door.connections.load(Ordering::Relaxed))
            .collect();
        let full =
            counts.iter().sum::<usize>() >= self.shared.connections_max.load(Ordering::Relaxed);
        let fewest = (0..counts.len())
            .min_by_key(|index| counts[*index])
            .unwrap_or(0) as u16;
        let to = if full { self.index } else { fewest };
        let cid = self.acceptor.cid(to);
        let arrival = Arrival { fd, cid, peer };
        let door = self.shared.mesh.door(to);
        door.connections.fetch_add(1, Ordering::Relaxed);
        if to == self.index {
            let slot = self.open(arrival);
            if full {
                log::error!("{} - Maximum Connections Exceeded", self.label(slot));
                self.broker.refuse(slot, errors::CONNECTIONS_EXCEEDED);
            }
        } else {
            self.broker.outgoing(to).arrivals.push(arrival);
        }
    }

    pub(super) fn open(&mut self, arrival: Arrival) -> Slot {
        let Arrival { fd, cid, peer } = arrival;
        let slot = self.broker.open(cid, peer, self.now);
        let terms = self.shared.tls.clients();
        let link = terms.as_ref().and_then(|terms| {
            let info = self.broker.client(slot).map_or(0, |c| c.outbox.pending());
            let greeting = if terms.handshake_first { 0 } else { info };
            log::debug!(
                "{} - Starting TLS client connection handshake",
                self.label(slot)
            );
            let session = Session::server(terms.configs.server.clone());
            self.started(slot, session, greeting)
        });
        self.take_place(slot, fd, link, terms);
        slot
    }

    /// A session that cannot even begin closes the connection: nothing may go over it in plain text.
    fn started(
        &mut self,
        slot: Slot,
        session: Result<Session, String>,
        greeting: usize,
    ) -> Option<Box<TlsLink>> {
        match session {
            Ok(session) => Some(TlsLink::new(session, greeting)),
            Err(error) => {
                log::error!("{} - TLS: {error}", self.label(slot));
                self.broker.drop_silently(slot);
                None
            }
        }
    }

    /// A socket whose other end is held by a thread of this process.
    pub(super) fn open_internal(&mut self, fd: RawFd) {
        let cid = self.acceptor.cid(self.index);
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let slot = self.broker.open_internal(cid, nowhere, self.now);
        self.take_place(slot, fd, None, None);
    }

    /// A connection to another server, accepted or (`dial`) made by us.
    pub(super) fn open_route(&mut self, fd: RawFd, peer: SocketAddr, dial: Option<Dial>) {
        let rid = self.acceptor.cid(self.index);
        self.shared.dialer.routes.note_opened();
        let host = dial.as_ref().map(|dial| dial.url.host.clone());
        let slot = self.broker.open_route(rid, peer, dial, self.now);
        let terms = self.shared.tls.routes();
        let link = terms.as_ref().and_then(|terms| {
            let end = if host.is_some() { "client" } else { "server" };
            log::debug!("{} - Starting TLS route {end} handshake", self.label(slot));
            let session = match (host, terms.configs.client.clone()) {
                (None, _) => Session::server(terms.configs.server.clone()),
                (Some(host), Some(config)) => Session::client(config, &host),
                (Some(_), None) => Err("routes over TLS need ca_file".into()),
            };
            self.started(slot, session, 0)
        });
        let failed = terms.is_some() && link.is_none();
        self.take_place(slot, fd, link, terms);
        if !failed {
            // Who dials begins the handshake as well.
            self.write(slot);
        }
    }

    fn take_place(
        &mut self,
        slot: Slot,
        fd: RawFd,
        link: Option<Box<TlsLink>>,
        terms: Option<Arc<Terms>>,
    ) {
        if self.places.len() <= slot as usize {
            self.places.resize_with(slot as usize + 1, Place::default);
        }
        let place = &mut self.places[slot as usize];
        assert!(
            place.connection.is_none(),
            "the broker gave a slot out twice"
        );
        place.connection = Some(Connection::new(fd, link));
        if let Some(terms) = terms {
            self.expect_handshake(slot, terms.timeout);
        }
        self.receive(slot);
    }
}
