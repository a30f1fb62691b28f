//! The sans-io heart of one event loop: clients, subscriptions, delivery.
//!
//! May import util, wire, subject and config. Deliberately absent: file descriptors, the ring,
//! threads, the wall clock, streaming, HTTP. Bytes and `now` come in through `open` and `handle_*`;
//! bytes go out through outboxes (see `start_write`), everything else as an `Effect`.
//!
//! Everything with interest in a subject is a target of delivery: connections by their slot, the
//! other loops of the process by their index.

mod admission;
pub mod auth;
pub mod client;
mod deliver;
mod dispatch;
pub mod effect;
#[doc(hidden)]
pub mod fuzz;
mod hold;
pub mod mail;
pub mod outbox;
mod pace;
mod peers;
pub mod perms;
pub mod propagate;
pub mod route;
pub mod runs;
pub mod settings;
pub mod snapshot;
mod subs;
mod timers;

use crate::subject::sublist::{InterestId, Sublist};
use crate::util::pool::Pool;
use crate::util::random::Random;
use crate::util::region::RegionMut;
use crate::wire::parser::Kind;
use client::{Client, Phase, PublisherRef, Traffic};
use deliver::Receivers;
use effect::{CloseReason, Effect};
use foldhash::fast::FixedState;
pub use hold::{Lag, SlowConsumer};
use outbox::Piece;
use peers::Peer;
use settings::Settings;
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;
use timers::{Timer, Timers};

/// Index of a connection in its loop; free again after `release`.
pub type Slot = u32;

pub struct Broker {
    settings: Arc<Settings>,
    /// Which loop this is.
    loop_index: u16,
    now: Instant,
    receivers: Receivers,
    sublist: Sublist,
    /// Of the tables of subscriptions by sid.
    sid_hash: FixedState,
    /// Members of this loop per pattern; what other loops are told about.
    local: peers::LocalInterest,
    peers: Vec<Peer>,
    effects: Vec<Effect>,
    timers: Timers,
    random: Random,
    /// Secret from which the nonces are made.
    nonce_key: RandomState,
    /// Lists reused from message to message: patterns that match, and other loops it goes to.
    matched: Vec<InterestId>,
    matched_peers: Vec<u16>,
    /// Routes the current message went over already.
    reached_routes: Vec<Slot>,
    routes: route::Routes,
    /// Connections by cid, where routes may ask for them.
    slots: HashMap<u64, Slot>,
    departed: propagate::Departed,
    /// New subscriptions the routes have not heard of.
    untold: Vec<u32>,
    /// Routes that are still being told what there was when they came, and until when that is believed.
    catching_up: Vec<(mail::RouteRef, Instant)>,
    pace: pace::Pace,
    allowance: hold::Allowance,
    /// Other loops with a receiver that is behind.
    peers_behind: u32,
    /// Bytes under way to one loop above which publishers that send there are held back.
    backlog_bytes_max: usize,
    /// Changes of interest another loop has not worked off, above which bursts wait for it.
    changes_ahead_max: usize,
    /// Another loop gets as much as it may: nothing more is read in this turn.
    mail_is_full: bool,
    /// Of the latest message for somebody who is behind, nearly all receivers here were.
    nearly_all_behind: bool,
    /// Until then this loop counts as one with a receiver that is behind.
    behind_until: Instant,
    /// The line for routes being written.
    route_line: Vec<u8>,
    /// Where else clients can connect; empty until another server was seen.
    client_urls: Arc<Vec<String>>,
    totals: Totals,
    slow_consumers: Vec<SlowConsumer>,
}

/// Counters of one loop since it started; those of clients that left are in here too.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub traffic: Traffic,
    pub connections: u64,
    pub slow_consumers: u64,
    /// Subscriptions that came and went.
    pub inserts: u64,
    pub removes: u64,
    /// Most receivers a message had.
    pub fanout_max: u32,
}

impl Broker {
    /// `loops` is the number of event loops in the process, this one included.
    pub fn new(
        settings: Arc<Settings>,
        loop_index: u16,
        loops: u16,
        region: RegionMut,
        random: Random,
        now: Instant,
    ) -> Self {
        let mut random = random;
        let mut receivers = Receivers::new(Pool::new(region));
        receivers.set_limits(&settings);
        let pending_bytes_max = settings.pending_bytes_max;
        Self {
            loop_index,
            now,
            receivers,
            settings,
            sublist: Sublist::new(random.next_u64()),
            sid_hash: FixedState::with_seed(random.next_u64()),
            local: peers::LocalInterest::default(),
            peers: (0..loops).map(|_| Peer::default()).collect(),
            effects: Vec::new(),
            timers: Timers::default(),
            random,
            nonce_key: RandomState::new(),
            matched: Vec::new(),
            matched_peers: Vec::new(),
            reached_routes: Vec::new(),
            routes: route::Routes::default(),
            slots: HashMap::new(),
            departed: propagate::Departed::default(),
            untold: Vec::new(),
            catching_up: Vec::new(),
            pace: pace::Pace::default(),
            allowance: hold::Allowance::new(now),
            peers_behind: 0,
            backlog_bytes_max: peers::backlog_bytes_max(loops, pending_bytes_max),
            changes_ahead_max: pace::changes_ahead_max(loops),
            mail_is_full: false,
            nearly_all_behind: false,
            behind_until: now,
            route_line: Vec::new(),
            client_urls: Arc::default(),
            totals: Totals::default(),
            slow_consumers: Vec::new(),
        }
    }

    // ---- getters

    pub fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// Clients that are not on their way out.
    pub fn open_clients(&self) -> impl Iterator<Item = (Slot, &Client)> {
        self.clients()
            .filter(|(_, client)| client.kind == Kind::Client && client.phase == Phase::Open)
            .filter(|(_, client)| !client.internal)
    }

    pub fn client(&self, slot: Slot) -> Option<&Client> {
        self.receivers.clients.get(slot as usize)
    }

    pub fn clients(&self) -> impl Iterator<Item = (Slot, &Client)> {
        self.receivers
            .clients
            .iter()
            .map(|(slot, client)| (slot as Slot, client))
    }

    pub fn totals(&self) -> Totals {
        self.totals
    }

    pub fn slow_consumers(&self) -> &[SlowConsumer] {
        &self.slow_consumers
    }

    pub fn sublist(&self) -> &Sublist {
        &self.sublist
    }

    /// Subscriptions of this loop's own connections.
    pub fn subscription_count(&self) -> usize {
        self.receivers.subscriptions.len()
            - self.peers.iter().map(Peer::interest_count).sum::<usize>()
    }

    /// Chunks of output memory in use.
    pub fn chunks_taken(&self) -> u32 {
        self.receivers.pool.taken()
    }

    /// False while a publisher is held back, or after the connection was closed.
    pub fn wants_bytes(&self, slot: Slot) -> bool {
        self.receivers
            .clients
            .get(slot as usize)
            .is_some_and(|client| {
                client.held_by == 0
                    && !client.choked
                    && !client.paced
                    && !client.verifying
                    && client.phase == Phase::Open
            })
    }

    pub fn has_output(&self, slot: Slot) -> bool {
        self.receivers
            .clients
            .get(slot as usize)
            .is_some_and(|client| !client.outbox.is_empty())
    }

    // ---- a connection's life

    /// A new client; its INFO is pending when this returns.
    pub fn open(&mut self, cid: u64, peer: SocketAddr, now: Instant) -> Slot {
        self.now = now;
        let unauthorized = self.settings.auth.required();
        let client = Client::new(cid, Kind::Client, peer, unauthorized);
        let slot = self.receivers.clients.insert(client) as Slot;
        if self.settings.cluster.is_some() {
            self.slots.insert(cid, slot);
        }
        self.totals.connections += 1;
        let line = self.info_line(slot);
        self.append(slot, line.as_bytes());
        self.timers
            .push(now + self.settings.ping_interval, slot, cid, Timer::Ping);
        if unauthorized {
            self.timers.push(
                now + self.settings.auth_timeout,
                slot,
                cid,
                Timer::Authorization,
            );
        }
        log::debug!(
            "{} - Client connection created",
            self.receivers.clients[slot as usize].label()
        );
        slot
    }

    /// A part of this process as a client.
    pub fn open_internal(&mut self, cid: u64, peer: SocketAddr, now: Instant) -> Slot {
        let slot = self.open(cid, peer, now);
        let client = &mut self.receivers.clients[slot as usize];
        client.internal = true;
        client.unauthorized = false;
        slot
    }

    fn info_line(&self, slot: Slot) -> String {
        let client = &self.receivers.clients[slot as usize];
        let mut info = self.settings.info.clone();
        info.client_id = client.cid;
        info.client_ip = client.peer.ip().to_string();
        if let Some(nonce) = self.nonce(slot) {
            info.nonce = String::from_utf8_lossy(&nonce).into_owned();
        }
        info.connect_urls = self.client_urls.to_vec();
        info.client_line()
    }

    /// The peer closed the connection or the socket failed.
    pub fn handle_gone(&mut self, slot: Slot, now: Instant) {
        self.now = now;
        self.close(slot, CloseReason::Gone);
    }

    /// Tells a connection why (when there is something to tell) and closes it.
    pub fn refuse(&mut self, slot: Slot, text: &str) {
        self.append(slot, crate::wire::encode::error_line(text).as_bytes());
        self.close(slot, CloseReason::Told);
    }

    /// Takes a connection out of everything it takes part in. What is pending may still be written;
    /// the slot stays taken until `release`.
    fn close(&mut self, slot: Slot, why: CloseReason) {
        let client = &mut self.receivers.clients[slot as usize];
        if client.phase == Phase::Closing {
            return;
        }
        client.phase = Phase::Closing;
        client.ticket = None;
        let kind = client.kind;
        log::debug!("{} - {} connection closed", client.label(), kind.name());
        self.let_publishers_go(slot);
        if kind == Kind::Route {
            self.route_closed(slot);
        }
        self.leave(slot);
        self.effects.push(Effect::Close { slot, why });
    }

    /// The kernel holds nothing of this connection any more; the slot is free when its last
    /// subscription has gone.
    pub fn release(&mut self, slot: Slot) {
        let client = &mut self.receivers.clients[slot as usize];
        assert_eq!(client.phase, Phase::Closing, "released while open");
        client.outbox.clear(&mut self.receivers.pool);
        client.released = true;
        if !client.leaving {
            self.receivers.clients.remove(slot as usize);
        }
        self.tidy_timers();
    }

    // ---- output

    /// The last call of a turn, before mail and output are taken.
    pub fn end_turn(&mut self) {
        self.end_turn_of_pace();
        self.mail_is_full = false;
        if !self.untold.is_empty() {
            self.tell_untold();
        }
    }

    /// Connections with output that came up since the last call, each once.
    pub fn take_dirty(&mut self, into: &mut Vec<Slot>) {
        into.append(&mut self.receivers.dirty);
    }

    /// The next write of a connection; empty when nothing is pending.
    pub fn start_write(
        &mut self,
        slot: Slot,
        pieces_max: usize,
        bytes_max: usize,
        out: &mut Vec<Piece>,
    ) {
        let client = &mut self.receivers.clients[slot as usize];
        client.dirty = false;
        client.outbox.pieces(pieces_max, bytes_max, out);
        if out.is_empty() {
            return;
        }
        client.progress_at.get_or_insert(self.now);
        if !client.watched {
            client.watched = true;
            self.timers.push(
                self.now + self.settings.write_deadline,
                slot,
                client.cid,
                Timer::Progress,
            );
        }
    }

    /// The kernel took `bytes` of the last write.
    pub fn handle_written(&mut self, slot: Slot, bytes: usize, now: Instant) {
        self.now = now;
        let low_water_bytes = self.receivers.limits(slot).low_water_bytes();
        let client = &mut self.receivers.clients[slot as usize];
        client.outbox.advance(&mut self.receivers.pool, bytes);
        client.progress_at = (!client.outbox.is_empty()).then_some(now);
        if client.outbox.pending() <= low_water_bytes {
            client.own_lines = 0;
        }
        // A PING on its way is no activity, a message is.
        if client.messages_written != client.traffic.messages_out {
            client.messages_written = client.traffic.messages_out;
            client.active_at = Some(now);
        }
        if client.holding.is_some() || client.stuck || client.choked {
            self.after_progress(slot);
        }
    }

    /// Whether something is left for the next turn, which must not wait then.
    pub fn has_effects(&self) -> bool {
        !self.effects.is_empty()
    }

    pub fn take_effects(&mut self, into: &mut Vec<Effect>) {
        into.append(&mut self.effects);
    }

    fn append(&mut self, slot: Slot, bytes: &[u8]) {
        let client = &mut self.receivers.clients[slot as usize];
        if client.phase == Phase::Open {
            if log::log_enabled!(log::Level::Trace) {
                client.trace_out(bytes);
            }
            client.outbox.append(&mut self.receivers.pool, bytes);
            client.own_lines += bytes.len();
            mark_dirty(client, slot, &mut self.receivers.dirty);
        }
    }

    // ---- commands

    /// Sends INFO to every client that understands another one (protocol 1, first PONG sent).
    pub fn announce(&mut self) {
        let mut slots = Vec::new();
        for (slot, client) in &mut self.receivers.clients {
            if client.kind == Kind::Route {
                continue;
            }
            if client.first_pong_sent && client.understands_info() {
                slots.push(slot as Slot);
            } else {
                client.info_is_old = true;
            }
        }
        for slot in slots {
            let line = self.info_line(slot);
            self.append(slot, line.as_bytes());
        }
    }

    pub fn client_urls(&self) -> Arc<Vec<String>> {
        self.client_urls.clone()
    }

    /// New addresses for clients; those that understand it are told.
    pub fn set_client_urls(&mut self, urls: Arc<Vec<String>>) {
        self.client_urls = urls;
        self.announce();
    }

    /// A connection does TLS.
    pub fn set_tls(&mut self, slot: Slot, info: client::TlsInfo) {
        self.receivers.clients[slot as usize].tls = Some(Box::new(info));
    }

    /// Output memory, as `start_write` names it.
    pub fn output(&self, offset: u32, len: u32) -> &[u8] {
        self.receivers.pool.bytes(offset, len)
    }

    /// Closes a connection whose carrier has failed or ended; what that has to say may still leave.
    pub fn hang_up(&mut self, slot: Slot) {
        self.close(slot, CloseReason::Told);
    }

    /// Closes a connection over which nothing may leave any more.
    pub fn drop_silently(&mut self, slot: Slot) {
        self.close(slot, CloseReason::Silently);
    }

    fn publisher(&self, slot: Slot) -> PublisherRef {
        let client = &self.receivers.clients[slot as usize];
        PublisherRef {
            slot,
            cid: client.cid,
            carrier: client.internal || client.kind == Kind::Route,
            no_echo: !client.echo,
        }
    }
}

#[inline(always)]
fn mark_dirty(client: &mut Client, slot: Slot, dirty: &mut Vec<Slot>) {
    if !client.dirty {
        client.dirty = true;
        dirty.push(slot);
    }
}
