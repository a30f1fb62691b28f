//! One event loop: a ring, a broker, and the connections between them.
//!
//! A turn: hand over and wait, reap, note what was written, take in the mail of the other loops, act on completions, run
//! timers and commands, then one pass that sends mail and writes every connection with output once.
//! Mail comes before any byte received in the same turn: a message published after a subscription
//! was confirmed, on whatever loop, must find that subscription's interest here.

use super::accept::Acceptor;
use super::connection::{Connection, Place, Stage};
use super::dial::Dialer;
use super::mailbox::Mesh;
use super::tls_link::TlsLink;
use super::verifier::Job;
use crate::broker::client::Client;
use crate::broker::effect::{CloseReason, Dial, Effect};
use crate::broker::mail::Batch;
use crate::broker::outbox::Piece;
use crate::broker::settings::Settings;
use crate::broker::snapshot::{ConnectionInfo, Page};
use crate::broker::{Broker, Slot, SlowConsumer, Totals};
use crate::uring::{Completion, Errno, Io, Kind, Segment, Token, Wait};
use crate::wire;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

/// Received bytes acted on before output is flushed, so that no burst delays everybody else's.
const TURN_BYTES_MAX: usize = 1 << 20;
/// A new connection is as much work as so many received bytes: thousands that come at once are for many turns.
const ACCEPT_COSTS: usize = TURN_BYTES_MAX / 64;
/// One write: enough to keep a socket busy, little enough to be fair.
const WRITE_BYTES_MAX: usize = 1 << 20;
const WRITE_PIECES_MAX: usize = 64;
/// A connection that was told why it is closed may take this long to read it, and to close.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(2);
const DRAIN_TIME_MAX: Duration = Duration::from_millis(500);
/// Records looked at for monitoring in one turn: some tens of microseconds.
const PAGE_ITEMS_MAX: u32 = 512;
/// How often connections on their way out are looked after.
const LOOK_AFTER: Duration = Duration::from_millis(50);

const COMMANDS: Token = Token::new(Kind::Watch, 0, 0);

/// What the rest of the process wants of a loop.
pub enum Command {
    Stop,
    Reconfigure(Arc<Settings>),
    /// Answer: every command before this one has been carried out.
    Acknowledge(Sender<()>),
    /// Send INFO to every client that takes one.
    Announce,
    /// Stop accepting (only the accepting loop has anything to do).
    CloseListener,
    /// Close up to this many connections.
    Dismiss {
        count: usize,
        text: Option<&'static str>,
    },
    Snapshot(Sender<Snapshot>),
    /// A part of the connections of a kind, from a slot on.
    Connections {
        kind: wire::parser::Kind,
        from: Slot,
        reply: Sender<Page<ConnectionInfo>>,
    },
    /// A part of the subscriptions: cid and subject.
    Subjects {
        from: u32,
        reply: Sender<Page<(u64, Box<[u8]>)>>,
    },
    /// A connection to another server was made.
    Route {
        fd: OwnedFd,
        peer: SocketAddr,
        dial: Dial,
    },
    /// The other end of this descriptor is a part of this process.
    Internal {
        fd: OwnedFd,
    },
    /// The list of configured routes was changed.
    DropConfiguredRoutes,
    ClientUrls(Arc<Vec<String>>),
    Verdict {
        slot: Slot,
        cid: u64,
        /// Gone when this is no answer to the latest question.
        ticket: std::sync::Weak<()>,
        permissions: Option<Arc<crate::broker::perms::Permissions>>,
        good: bool,
    },
}

/// The state of one loop at one moment.
pub struct Snapshot {
    pub loop_index: u16,
    pub totals: Totals,
    pub connections: usize,
    pub routes: usize,
    pub subscriptions: usize,
    pub slow_consumers: Vec<SlowConsumer>,
    /// What clients are told of where else to connect.
    pub client_urls: Arc<Vec<String>>,
}

/// What all loops share and never changes while they run.
pub struct Shared {
    pub mesh: Mesh<Command>,
    pub connections_max: std::sync::atomic::AtomicUsize,
    /// From this one on descriptors are not for clients.
    pub client_fds_end: std::os::fd::RawFd,
    /// Compares passwords with hashes, which takes too long for a loop.
    pub verifier: super::verifier::Verifier,
    /// Makes connections to other servers.
    pub dialer: super::dial::Dialer,
    /// How new connections do TLS.
    pub tls: super::tls_link::TlsTerms,
    /// Of connections from other hosts, when the listeners have another one.
    pub congestion_elsewhere: Option<std::ffi::OsString>,
}

pub struct EventLoop<I: Io> {
    pub(super) index: u16,
    pub(super) io: I,
    pub(super) broker: Broker,
    pub(super) shared: Arc<Shared>,
    /// Loop 0 accepts for all.
    pub(super) acceptor: Acceptor,
    pub(super) places: Vec<Place>,
    /// Completions not yet acted on.
    completions: VecDeque<Completion>,
    reaped: Vec<Completion>,
    /// Connections whose recv found no buffer, oldest first.
    starved: VecDeque<Slot>,
    /// Connections to be read from again. They come behind those that starve, or as many as there are buffers could take all
    /// of them each turn.
    served: Vec<Slot>,
    /// Connections on their way out, and some that have gone since the last look.
    leaving: Vec<Token>,
    look_after_at: Option<Instant>,
    pub(super) dirty: Vec<Slot>,
    effects: Vec<Effect>,
    pub(super) pieces: Vec<Piece>,
    pub(super) segments: Vec<Segment>,
    /// Plain text of the TLS connection at hand.
    pub(super) plain: Vec<u8>,
    /// When handshakes are to be done, the next one first; some are.
    pub(super) handshakes: BinaryHeap<Reverse<(Instant, Token)>>,
    /// Of each loop, mail with more than interest, and how much there is behind it; empty between turns.
    urgent_mail: Vec<(u16, usize, Batch)>,
    /// A part of a list was told in this turn, and commands may be left behind it.
    list_told: bool,
    commands_left: bool,
    pub(super) now: Instant,
    stopped: bool,
}

impl<I: Io> EventLoop<I> {
    pub fn new(index: u16, io: I, broker: Broker, shared: Arc<Shared>, acceptor: Acceptor) -> Self {
        let now = io.now();
        Self {
            index,
            io,
            broker,
            shared,
            acceptor,
            places: Vec::new(),
            completions: VecDeque::new(),
            reaped: Vec::new(),
            starved: VecDeque::new(),
            served: Vec::new(),
            leaving: Vec::new(),
            look_after_at: None,
            dirty: Vec::new(),
            effects: Vec::new(),
            pieces: Vec::new(),
            segments: Vec::new(),
            plain: Vec::new(),
            handshakes: BinaryHeap::new(),
            urgent_mail: Vec::new(),
            list_told: false,
            commands_left: false,
            now,
            stopped: false,
        }
    }

    /// Runs until told to stop.
    pub fn run(mut self) -> std::io::Result<()> {
        self.start();
        while !self.stopped {
            self.turn()?;
        }
        Ok(())
    }

    pub fn start(&mut self) {
        self.io
            .watch(COMMANDS, self.shared.mesh.door(self.index).event_fd());
        self.acceptor.arm(&mut self.io, self.now);
    }

    pub fn turn(&mut self) -> std::io::Result<()> {
        let wait = self.sleep_time();
        self.io.turn(wait, &mut self.reaped)?;
        if wait != Wait::No {
            self.shared.mesh.door(self.index).sleep.over();
        }
        self.now = self.io.now();
        self.sort_in_reaped();
        self.take_in_mail();
        self.list_told = false;
        if self.commands_left {
            self.take_commands();
        }
        let mut bytes = 0;
        while let Some(completion) = self.completions.pop_front() {
            bytes += self.handle(completion);
            if bytes >= TURN_BYTES_MAX || self.broker.turn_is_full() {
                break;
            }
        }
        self.run_timers();
        self.run_effects();
        self.receive_again();
        self.broker.end_turn();
        self.send_mail();
        self.flush();
        Ok(())
    }

    /// Writes that went well are acted on at once. Behind what was received, a turn or more, receivers that read as fast as
    /// they can would look as if they stood still; and what there is to write next leaves at the end of the turn anyhow.
    fn sort_in_reaped(&mut self) {
        let mut reaped = std::mem::take(&mut self.reaped);
        for completion in reaped.drain(..) {
            match (completion.token.kind, completion.result) {
                (Kind::Write, Ok(_)) => self.written(completion.token, completion.result),
                _ => self.completions.push_back(completion),
            }
        }
        self.reaped = reaped;
    }

    /// How long this turn may wait. Unless it is not at all, the other loops have been told that a
    /// doorbell is needed.
    fn sleep_time(&mut self) -> Wait {
        if !self.completions.is_empty() || self.broker.has_effects() || self.commands_left {
            return Wait::No;
        }
        let mesh = &self.shared.mesh;
        let sleep = &mesh.door(self.index).sleep;
        sleep.announce();
        if mesh.has_mail(self.index) {
            sleep.over();
            return Wait::No;
        }
        let deadlines = [
            self.broker.next_deadline(),
            self.look_after_at,
            self.acceptor.next_deadline(),
            self.next_handshake_deadline(),
        ];
        match deadlines.into_iter().flatten().min() {
            None => Wait::Forever,
            Some(at) => Wait::Until(at.saturating_duration_since(self.io.now())),
        }
    }

    /// All that was there when the completions were reaped, which is what they may depend on. What comes meanwhile
    /// is for the next turn: a loop that sends as fast as this one takes in must not keep it from its connections.
    ///
    /// Interest that nobody was woken for comes first, from all loops: a message one of them sent just now may depend on what
    /// another one told long ago.
    fn take_in_mail(&mut self) {
        let mut urgent = std::mem::take(&mut self.urgent_mail);
        for from in self.shared.mesh.others(self.index) {
            let mut left = self.shared.mesh.mailbox(from, self.index).len();
            while left > 0 {
                left -= 1;
                let batch = self.receive_mail(from);
                if batch.is_urgent() {
                    urgent.push((from, left, batch));
                    break;
                }
                self.work_off(from, batch);
            }
        }
        for (from, left, batch) in urgent.drain(..) {
            self.work_off(from, batch);
            for _ in 0..left {
                let batch = self.receive_mail(from);
                self.work_off(from, batch);
            }
        }
        self.urgent_mail = urgent;
    }

    fn receive_mail(&mut self, from: u16) -> Batch {
        let mailbox = self.shared.mesh.mailbox(from, self.index);
        mailbox.receive().expect("only this end takes out")
    }

    fn work_off(&mut self, from: u16, mut batch: Batch) {
        self.broker.handle_mail(from, &batch, self.now);
        for arrival in std::mem::take(&mut batch.arrivals) {
            self.open(arrival);
        }
        let mailbox = self.shared.mesh.mailbox(from, self.index);
        if mailbox.give_back(batch) {
            self.ring(from);
        }
    }

    fn send_mail(&mut self) {
        let mesh = &self.shared.mesh;
        // Before anything is sent: whoever is let go may be a publisher of another loop.
        for to in mesh.others(self.index) {
            let mailbox = mesh.mailbox(self.index, to);
            let backlog = mailbox.backlog(self.broker.waits_for(to));
            self.broker.set_backlog(to, backlog);
            self.broker.set_lag(to, mesh.lag(to));
        }
        self.broker.backlogs_are_set();
        if mesh.loops() > 1 {
            mesh.set_lag(self.index, self.broker.lag());
        }
        for to in self.shared.mesh.others(self.index) {
            if !self.broker.has_mail(to) {
                continue;
            }
            let mesh = &self.shared.mesh;
            let mailbox = mesh.mailbox(self.index, to);
            let batch = self.broker.take_mail(to, mailbox.spare());
            // Who sleeps need not wake for interest alone: whatever wakes it, it takes in the mail first.
            let urgent = batch.is_urgent() || self.broker.is_waited_for(to);
            mailbox.send(batch);
            if urgent && mesh.door(to).sleep.must_ring() {
                self.ring(to);
            }
        }
    }

    fn ring(&mut self, to: u16) {
        if let Some(fd) = self.shared.mesh.door(to).ring_fd() {
            let token = Token::new(Kind::Doorbell, u32::from(to), 0);
            self.io.ring_doorbell(fd, token);
        }
    }

    /// A doorbell failed. At the end of the server loops end one after another, and what rings may find a ring
    /// closed that was there when it began.
    fn not_rung(&self, token: Token, result: Result<u32, Errno>) {
        let to = u16::try_from(token.slot).expect("the number of a loop");
        let door = self.shared.mesh.door(to);
        if door.ring_fd().is_some() {
            log::error!("doorbell of loop {to}: {result:?}");
            door.wake(); // it has been told that the bell was rung
        }
    }

    /// Acts on one completion; returns the received bytes it brought, or how many that are as much work.
    fn handle(&mut self, completion: Completion) -> usize {
        let Completion {
            token,
            result,
            buf,
            more,
        } = completion;
        match token.kind {
            Kind::Accept => {
                self.accepted(token, result, more);
                return ACCEPT_COSTS;
            }
            Kind::Watch => self.run_commands(more),
            Kind::Recv => {
                let bytes = buf.as_ref().map_or(0, |buf| buf.len());
                if let Some(buf) = buf {
                    self.received(token, &buf);
                    self.io.recycle(buf);
                    self.after_receive(token);
                } else {
                    self.received_nothing(token, result);
                }
                return bytes;
            }
            Kind::Write => self.written(token, result),
            Kind::Doorbell => {} // the mail has been taken in already
            Kind::DoorbellSent => self.not_rung(token, result),
            Kind::Close => log::error!("close of descriptor {}: {result:?}", token.slot),
            Kind::Cancel => {}
        }
        0
    }

    pub(super) fn label(&self, slot: Slot) -> String {
        self.broker
            .client(slot)
            .map_or(String::new(), Client::label)
    }

    // ---- bytes come

    pub(super) fn token(&self, slot: Slot, kind: Kind) -> Token {
        Token::new(kind, slot, self.places[slot as usize].generation)
    }

    /// The connection a completion is about, unless it belongs to an earlier tenant of the slot.
    pub(super) fn connection(&mut self, token: Token) -> Option<&mut Connection> {
        let place = self.places.get_mut(token.slot as usize)?;
        match place.generation == token.generation {
            true => place.connection.as_mut(),
            false => None,
        }
    }

    pub(super) fn receive(&mut self, slot: Slot) {
        let token = self.token(slot, Kind::Recv);
        let Some(connection) = self.connection(token) else {
            return;
        };
        if !connection.receiving {
            connection.receiving = true;
            let fd = connection.fd;
            self.io.recv(token, fd);
        }
    }

    fn received(&mut self, token: Token, buf: &crate::uring::RecvBuf) {
        let Some(connection) = self.connection(token) else {
            return;
        };
        connection.receiving = false;
        if connection.stage != Stage::Open {
            return;
        }
        match connection.tls {
            None => {
                self.broker
                    .handle_bytes(token.slot, self.io.bytes(buf), self.now);
            }
            Some(_) => self.received_tls(token.slot, buf),
        }
    }

    fn after_receive(&mut self, token: Token) {
        let slot = token.slot;
        let Some(connection) = self.connection(token) else {
            return;
        };
        let stage = connection.stage;
        match stage {
            Stage::Closing => self.close_if_quiet(slot),
            _ => self.served.push(slot),
        }
    }

    /// The end of the stream, an error, or no buffer to receive into.
    fn received_nothing(&mut self, token: Token, result: Result<u32, Errno>) {
        let slot = token.slot;
        let Some(connection) = self.connection(token) else {
            return;
        };
        connection.receiving = false;
        // One that is closed by now wants no other buffer, and nothing else will look at it.
        if result == Err(Errno::NOBUFS) && connection.stage != Stage::Closing {
            self.starved.push_back(slot);
            return;
        }
        match connection.stage {
            Stage::Open => {
                if let Err(error) = result
                    && error != Errno::CONNRESET
                    && error != Errno::CANCELED
                {
                    log::debug!("{} - Error reading from client: {error}", self.label(slot));
                }
                match result {
                    // It may have closed its sending half only: what is pending still goes to it, as gnatsd's
                    // clearConnection does.
                    Ok(_) if self.has_output(slot) => self.broker.hang_up(slot),
                    _ => self.broker.handle_gone(slot, self.now),
                }
            }
            // The peer has nothing more to say; what is pending may still reach it.
            Stage::Flushing { .. } => {}
            Stage::Draining { .. } => self.leave(slot),
            Stage::Closing => self.close_if_quiet(slot),
        }
    }

    /// Arms those again that found no buffer, as many as there are buffers now: each of them has
    /// bytes waiting, and none waits behind one that came later. Then those that were read from in this turn.
    fn receive_again(&mut self) {
        if !self.starved.is_empty() {
            let mut free = self.io.free_bufs();
            while free > 0
                && let Some(slot) = self.starved.pop_front()
            {
                free -= usize::from(self.receive_if_wanted(slot));
            }
        }
        let mut served = std::mem::take(&mut self.served);
        for slot in served.drain(..) {
            self.receive_if_wanted(slot);
        }
        self.served = served;
    }

    fn receive_if_wanted(&mut self, slot: Slot) -> bool {
        let connection = self.places[slot as usize].connection.as_ref();
        let wanted = connection.is_some_and(|connection| match connection.stage {
            Stage::Open => self.broker.wants_bytes(slot),
            Stage::Draining { .. } => true,
            Stage::Flushing { .. } | Stage::Closing => false,
        });
        if wanted {
            self.receive(slot);
        }
        wanted
    }

    // ---- bytes go

    fn flush(&mut self) {
        self.broker.take_dirty(&mut self.dirty);
        let mut dirty = std::mem::take(&mut self.dirty);
        for slot in dirty.drain(..) {
            self.write(slot);
        }
        self.dirty = dirty;
    }

    pub(super) fn write(&mut self, slot: Slot) {
        let token = self.token(slot, Kind::Write);
        let place = &mut self.places[slot as usize];
        let Some(connection) = place.connection.as_mut() else {
            return;
        };
        if connection.writing {
            return; // the rest goes when the kernel is done with what it has
        }
        if connection.stage == Stage::Closing {
            return;
        }
        if connection.tls.as_deref().is_some_and(TlsLink::is_covering) {
            return self.write_tls(slot);
        }
        self.broker
            .start_write(slot, WRITE_PIECES_MAX, WRITE_BYTES_MAX, &mut self.pieces);
        if self.pieces.is_empty() {
            return;
        }
        self.segments
            .extend(self.pieces.drain(..).map(|piece| match piece {
                Piece::Region { offset, len } => Segment::Region { offset, len },
                Piece::Shared(bytes) => Segment::Shared(bytes),
            }));
        connection.writing = true;
        self.io.write(token, connection.fd, &self.segments);
        self.segments.clear();
    }

    fn written(&mut self, token: Token, result: Result<u32, Errno>) {
        let slot = token.slot;
        let now = self.now;
        let Some(connection) = self.connection(token) else {
            return;
        };
        connection.writing = false;
        let stage = connection.stage;
        match result {
            Ok(bytes) => {
                let mut bytes = bytes as usize;
                match connection.tls.as_deref_mut() {
                    None => {}
                    Some(link) if link.is_covering() => bytes = self.written_tls(slot, bytes),
                    Some(link) => link.greeting_written(bytes),
                }
                self.broker.handle_written(slot, bytes, now);
            }
            Err(Errno::AGAIN) => self.broker.handle_written(slot, 0, now),
            Err(error) => {
                match stage {
                    Stage::Open => {
                        log::debug!("{} - Error flushing: {error}", self.label(slot));
                        self.broker.handle_gone(slot, now);
                    }
                    Stage::Flushing { .. } | Stage::Draining { .. } => self.leave(slot),
                    Stage::Closing => self.close_if_quiet(slot),
                }
                return;
            }
        }
        match stage {
            Stage::Closing => self.close_if_quiet(slot),
            // With all others at the end of the turn.
            _ if self.has_output(slot) => self.dirty.push(slot),
            Stage::Flushing { .. } => self.drain(slot),
            _ => self.rest_tls(slot),
        }
    }

    // ---- connections go

    fn run_effects(&mut self) {
        self.broker.take_effects(&mut self.effects);
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Close { slot, why } => self.begin_close(slot, why),
                Effect::Resume { slot } => self.served.push(slot),
                Effect::Dial(dial) => Dialer::dial(&self.shared, dial),
                Effect::ClientUrls(urls) => {
                    for door in self.shared.mesh.doors() {
                        door.command(Command::ClientUrls(urls.clone()));
                    }
                }
                Effect::Verify {
                    slot,
                    cid,
                    proof,
                    permissions,
                    ticket,
                } => {
                    let job = Job {
                        loop_index: self.index,
                        slot,
                        cid,
                        proof,
                        permissions,
                        ticket,
                    };
                    self.shared.verifier.submit(job, &self.shared);
                }
            }
        }
        self.effects = effects;
    }

    fn begin_close(&mut self, slot: Slot, why: CloseReason) {
        let until = self.now + FLUSH_TIME_MAX;
        let Some(connection) = self.places[slot as usize].connection.as_mut() else {
            return;
        };
        match why {
            CloseReason::Told => {
                connection.stage = Stage::Flushing { until };
                self.leaving.push(self.token(slot, Kind::Recv));
                // The first look stays where it is: those that come all the time must not put it off.
                self.look_after_at.get_or_insert(self.now + LOOK_AFTER);
                self.write(slot); // also an alert, which the broker knows nothing of
                if !self.has_output(slot) {
                    self.drain(slot);
                }
            }
            CloseReason::Gone | CloseReason::SlowConsumer | CloseReason::Silently => {
                self.leave(slot)
            }
        }
    }

    /// Everything is written: say so, and read what the peer still sends until it closes too.
    fn drain(&mut self, slot: Slot) {
        let until = self.now + DRAIN_TIME_MAX;
        let Some(connection) = self.places[slot as usize].connection.as_mut() else {
            return;
        };
        connection.stage = Stage::Draining { until };
        self.io.shut_down_writes(connection.fd);
        self.receive(slot);
    }

    /// Ends a connection now: operations in flight are called back, and when the last one is, the
    /// descriptor is closed.
    fn leave(&mut self, slot: Slot) {
        let (recv, write) = (self.token(slot, Kind::Recv), self.token(slot, Kind::Write));
        let Some(connection) = self.places[slot as usize].connection.as_mut() else {
            return;
        };
        if connection.stage == Stage::Closing {
            return;
        }
        connection.stage = Stage::Closing;
        let (receiving, writing) = (connection.receiving, connection.writing);
        if receiving {
            self.io.cancel(recv);
        }
        if writing {
            self.io.cancel(write);
        }
        self.close_if_quiet(slot);
    }

    fn close_if_quiet(&mut self, slot: Slot) {
        let place = &mut self.places[slot as usize];
        if !place.connection.as_ref().is_some_and(Connection::is_quiet) {
            return;
        }
        if let Some(connection) = place.connection.take() {
            self.io.close(connection.fd);
        }
        place.generation = (place.generation + 1) & Token::GENERATION_MAX;
        let is_client = self
            .broker
            .client(slot)
            .is_some_and(|client| client.kind == wire::parser::Kind::Client && !client.internal);
        self.broker.release(slot);
        if is_client {
            let door = self.shared.mesh.door(self.index);
            door.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Connections that had their time to go.
    fn look_after(&mut self) {
        let mut leaving = std::mem::take(&mut self.leaving);
        leaving.retain(|token| {
            let stage = self.connection(*token).map(|connection| connection.stage);
            let (Some(Stage::Flushing { until }) | Some(Stage::Draining { until })) = stage else {
                return false;
            };
            if until <= self.now {
                self.leave(token.slot);
            }
            until > self.now
        });
        self.leaving = leaving;
        self.look_after_at = (!self.leaving.is_empty()).then(|| self.now + LOOK_AFTER);
    }

    // ---- time and commands

    fn run_timers(&mut self) {
        self.broker.handle_timeouts(self.now);
        if self.look_after_at.is_some_and(|at| at <= self.now) {
            self.look_after();
        }
        self.acceptor.arm(&mut self.io, self.now);
        self.end_late_handshakes();
    }

    fn run_commands(&mut self, more: bool) {
        let shared = self.shared.clone();
        let door = shared.mesh.door(self.index);
        door.silence_event();
        self.take_commands();
        if !more {
            self.io.watch(COMMANDS, door.event_fd());
        }
    }

    /// In their order, up to the first part of a list in this turn: whoever gets one asks for the next at once.
    fn take_commands(&mut self) {
        let shared = self.shared.clone();
        while !self.list_told {
            let Some(command) = shared.mesh.door(self.index).take_command() else {
                self.commands_left = false;
                return;
            };
            self.list_told = matches!(
                command,
                Command::Connections { .. } | Command::Subjects { .. }
            );
            self.run_command(command);
        }
        self.commands_left = true;
    }

    fn run_command(&mut self, command: Command) {
        match command {
            Command::Stop => self.stopped = true,
            Command::Reconfigure(settings) => self.broker.reconfigure(settings, self.now),
            // Whoever asked may have given up.
            Command::Acknowledge(done) => drop(done.send(())),
            Command::Announce => self.broker.announce(),
            Command::CloseListener => self.acceptor.close(&mut self.io),
            Command::Route { fd, peer, dial } => {
                self.open_route(fd.into_raw_fd(), peer, Some(dial));
            }
            Command::Internal { fd } => self.open_internal(fd.into_raw_fd()),
            Command::DropConfiguredRoutes => self.broker.drop_configured_routes(),
            Command::ClientUrls(urls) => self.broker.set_client_urls(urls),
            Command::Dismiss { count, text } => {
                let slots: Vec<Slot> = self
                    .broker
                    .open_clients()
                    .map(|(slot, _)| slot)
                    .take(count)
                    .collect();
                for slot in slots {
                    match text {
                        Some(text) => self.broker.refuse(slot, text),
                        // What was delivered to it in this turn is not written yet.
                        None => self.broker.hang_up(slot),
                    }
                }
            }
            Command::Snapshot(reply) => {
                // Whoever asked may have given up.
                let _ = reply.send(Snapshot {
                    loop_index: self.index,
                    totals: self.broker.totals(),
                    connections: self
                        .shared
                        .mesh
                        .door(self.index)
                        .connections
                        .load(Ordering::Relaxed),
                    routes: self.broker.route_slots().len(),
                    subscriptions: self.broker.subscription_count(),
                    slow_consumers: self.broker.slow_consumers().to_vec(),
                    client_urls: self.broker.client_urls(),
                });
            }
            Command::Connections { kind, from, reply } => {
                let page = self
                    .broker
                    .connections(kind, from, PAGE_ITEMS_MAX, self.now);
                let _ = reply.send(page);
            }
            Command::Subjects { from, reply } => {
                let _ = reply.send(self.broker.subjects(from, PAGE_ITEMS_MAX));
            }
            Command::Verdict {
                slot,
                cid,
                ticket,
                permissions,
                good,
            } => {
                // A reload may have asked anew since.
                if ticket.strong_count() > 0 {
                    self.broker
                        .handle_verdict(slot, cid, permissions, good, self.now);
                }
            }
        }
    }
}

impl<I: Io> Drop for EventLoop<I> {
    /// The ring goes after this.
    fn drop(&mut self) {
        self.shared.mesh.door(self.index).forget_ring_fd();
    }
}

#[cfg(test)]
mod tests;
