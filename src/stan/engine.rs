//! The engine: requests, time and the store's completions in; what is to be published out.
//!
//! Methods: `start` once, `handle_message` for each message, `handle_timeouts` when `next_deadline` has
//! come, and `end_turn` after each batch of those. A publish is acknowledged in `end_turn`, or in a later one:
//! only when the store says that it is durable (`acknowledge`), and there is no other way to an ack.
//!
//! Deadlines go by `now`, which never goes back nor jumps. What messages are stamped with, and how old they are, goes by the
//! wall clock, which may be set while the server runs: `handle_clock` tells what it shows.

mod admin;
mod answers;
mod away;
mod dead;
mod deliver;
mod ghosts;
mod held_back;
mod members;
mod publish;
mod sessions;
mod subscribe;
mod tell;
#[cfg(test)]
mod tests;
mod text;
mod timers;

use super::arena::Arena;
use super::channel::{Channel, durable_key};
use super::clients::{ChannelIndex, Clients};
use super::outlet::{Inlet, Outlet};
use super::pb;
use super::report::{ChannelReport, ClientReport, Report, SubReport};
use super::store::{ChannelId, Recovered, Seq, Store, StoreError};
use super::subs::Sub;
use crate::util::random::Random;
use answers::Answer;
use dead::Buried;
pub use dead::{DeadLetterRule, DeadLetters};
use prost::Message;
use std::collections::{HashMap, VecDeque};
pub use tell::Shown;
use timers::Timers;

/// What the engine runs by. Times are nanoseconds.
#[derive(Clone, Debug)]
pub struct Settings {
    pub cluster_id: String,
    pub discover_prefix: String,
    /// 0: no limit.
    pub max_channels: usize,
    pub heartbeat_interval: i64,
    pub heartbeat_timeout: i64,
    pub heartbeat_failures: u32,
    /// A second subscription of an active durable replaces the first.
    pub replace_durable: bool,
    pub debug: bool,
    /// Every message is logged.
    pub trace: bool,
    /// Requests of administration may change things.
    pub admin: bool,
    pub dead_letters: DeadLetters,
}

pub struct Engine {
    settings: Settings,
    store: Box<dyn Store>,
    random: Random,
    info: pb::ServerInfo,
    ping_subject: String,
    /// Prefix of the subjects heartbeats are answered on.
    answers: String,
    clients: Clients,
    /// An index is never given again, since timers and answers may still name it.
    channels: Vec<Option<Box<Channel>>>,
    by_name: HashMap<String, ChannelIndex>,
    by_store: HashMap<ChannelId, ChannelIndex>,
    /// Who a message ack on this subject is of.
    ack_inboxes: HashMap<String, (ChannelIndex, u64)>,
    /// Ack inboxes outside the prefix, which have subscriptions of their own.
    own_inlets: HashMap<String, Inlet>,
    last_inlet: u32,
    timers: Timers,
    dirty: Vec<ChannelIndex>,
    /// Whose deliveries wait for room on the way out, in the order in which they go on.
    held_back: VecDeque<ChannelIndex>,
    /// Answers to requests that wait for the disk, in order.
    waiting: VecDeque<Answer>,
    /// Without a connection to NATS.
    away: bool,
    /// By the clock of deadlines, which only goes forward.
    now: i64,
    /// How far the wall clock, by which messages are stamped and grow old, is ahead of that one.
    wall_ahead: i64,
    /// How far it was, at least, when somebody looked at all messages that grow old.
    ages_ahead: i64,
    buried: Buried,
    /// Of acks that wait for the disk: their texts, and how many bytes these have.
    ack_texts: Arena,
    ack_bytes: usize,
    /// For one answer after the other.
    encoded: Vec<u8>,
}

impl Engine {
    /// From what the store held. Fails when that belongs to another cluster.
    pub fn new(
        settings: Settings,
        mut store: Box<dyn Store>,
        recovered: Recovered,
        mut random: Random,
        now: i64,
    ) -> Result<Self, StoreError> {
        let info = match recovered.server {
            Some(info) if info.cluster_id != settings.cluster_id => {
                return Err(StoreError::Refused(format!(
                    "cluster ID {:?} does not match recovered value of {:?}",
                    settings.cluster_id, info.cluster_id
                )));
            }
            // Of a server that is older than this subject, or than that for acks.
            Some(info) if info.sub_close.is_empty() || info.ack_subs.is_empty() => {
                let info = info.completed(&random.id());
                store.save_server(&info)?;
                info
            }
            Some(info) => info,
            None => {
                let info = server_info(&settings, &random.id());
                store.save_server(&info)?;
                info
            }
        };
        let mut engine = Self {
            ping_subject: format!("{}.{}.pings", info.discovery_prefix(), settings.cluster_id),
            answers: format!("_INBOX.{}", random.id()),
            settings,
            store,
            random,
            info,
            clients: Clients::default(),
            channels: Vec::new(),
            by_name: HashMap::new(),
            by_store: HashMap::new(),
            ack_inboxes: HashMap::new(),
            own_inlets: HashMap::new(),
            last_inlet: Inlet::FIRST_ACK,
            timers: Timers::default(),
            dirty: Vec::new(),
            held_back: VecDeque::new(),
            waiting: VecDeque::new(),
            away: false,
            now,
            wall_ahead: 0,
            ages_ahead: 0,
            buried: Buried::default(),
            ack_texts: Arena::default(),
            ack_bytes: 0,
            encoded: Vec::new(),
        };
        engine.recover(recovered.clients, recovered.channels);
        Ok(engine)
    }

    pub fn channel_count(&self) -> usize {
        self.by_name.len()
    }

    pub fn info(&self) -> &pb::ServerInfo {
        &self.info
    }

    /// What the wall clock shows at this time. Without a word of it, it is taken to show the same.
    pub fn handle_clock(&mut self, now: i64, wall: i64) {
        self.now = now;
        self.wall_ahead = wall.saturating_sub(now);
        self.follow_wall_clock();
    }

    fn wall(&self) -> i64 {
        self.now.saturating_add(self.wall_ahead)
    }

    /// Begins to serve, or goes on with it over a new connection: subscriptions. `go_on` follows, behind whatever else
    /// is to leave before deliveries.
    pub fn start(&mut self, out: &mut dyn Outlet, now: i64) {
        self.now = now;
        self.come_back();
        for (inlet, subject) in [
            (Inlet::CONNECT, self.info.discovery.clone()),
            (Inlet::PUBLISH, format!("{}.>", self.info.publish)),
            (Inlet::SUBSCRIBE, self.info.subscribe.clone()),
            (Inlet::UNSUBSCRIBE, self.info.unsubscribe.clone()),
            (Inlet::SUB_CLOSE, self.info.sub_close.clone()),
            (Inlet::CLOSE, self.info.close.clone()),
            (Inlet::ACK, format!("{}.>", self.info.ack_subs)),
            (Inlet::PING, self.ping_subject.clone()),
            (Inlet::ANSWER, format!("{}.*", self.answers)),
            (
                Inlet::ADMIN,
                format!("{}.{}.*", admin::SUBJECT_PREFIX, self.info.cluster_id),
            ),
        ] {
            out.subscribe(inlet, &subject);
        }
        for (subject, inlet) in &self.own_inlets {
            out.subscribe(*inlet, subject);
        }
        for (what, subject) in [
            ("Discover subject:          ", self.info.discovery.clone()),
            (
                "Publish subject:           ",
                format!("{}.>", self.info.publish),
            ),
            ("Subscribe subject:         ", self.info.subscribe.clone()),
            ("Subscription Close subject:", self.info.sub_close.clone()),
            ("Unsubscribe subject:       ", self.info.unsubscribe.clone()),
            ("Close subject:             ", self.info.close.clone()),
        ] {
            self.debug(format_args!("{what} {subject}"));
        }
    }

    /// What was due meanwhile, then what was stored and did not get to its subscribers before a crash.
    pub fn go_on(&mut self, out: &mut dyn Outlet, now: i64) {
        self.handle_timeouts(now, out);
        for index in 0..self.channels.len() {
            if self.channels[index].is_some() {
                self.deliver(index, out);
            }
        }
    }

    /// A message on one of the engine's subscriptions.
    pub fn handle_message(
        &mut self,
        inlet: Inlet,
        subject: &str,
        reply: Option<&str>,
        payload: &[u8],
        now: i64,
        out: &mut dyn Outlet,
    ) {
        self.now = now;
        match inlet {
            Inlet::PUBLISH => self.handle_publish(payload, reply, out),
            Inlet::CONNECT => self.handle_connect(payload, reply, out),
            Inlet::SUBSCRIBE => self.handle_subscribe(payload, reply, out),
            Inlet::UNSUBSCRIBE => self.handle_unsubscribe(payload, reply, true, out),
            Inlet::SUB_CLOSE => self.handle_unsubscribe(payload, reply, false, out),
            Inlet::CLOSE => self.handle_close(payload, reply, out),
            Inlet::PING => self.handle_ping(payload, reply, out),
            Inlet::ANSWER => self.handle_answer(subject, out),
            Inlet::ADMIN => self.handle_admin(subject, payload, reply, out),
            _ => self.handle_ack(subject, payload, out),
        }
    }

    /// Everything out: what waited for the end of the server.
    pub fn close(&mut self) {
        self.store.close();
    }

    /// Once a second.
    pub fn maintain(&mut self, now: i64) {
        self.store.maintain(now);
    }

    /// Bytes that wait for the disk; while there are many, nothing more should come in.
    pub fn backlog_bytes(&self) -> usize {
        self.store.backlog_bytes() + self.ack_bytes
    }

    fn channel(&mut self, index: ChannelIndex) -> &mut Channel {
        let channel = self.channels[index].as_deref_mut();
        channel.expect("an index is dropped with its channel")
    }

    fn mark_dirty(&mut self, index: ChannelIndex) {
        let channel = self.channel(index);
        if !std::mem::replace(&mut channel.dirty, true) {
            self.dirty.push(index);
        }
    }

    // ---- start

    fn recover(
        &mut self,
        clients: Vec<pb::ClientInfo>,
        channels: Vec<super::store::RecoveredChannel>,
    ) {
        for info in clients {
            let serial = self.clients.insert(info);
            // The first heartbeat comes early: clients may have gone while we were not there.
            let at = self.now.saturating_add(self.settings.heartbeat_timeout);
            self.plan_heartbeat(serial, at);
        }
        for recovered in channels {
            let index = self.channels.len();
            let mut channel = Channel::new(&recovered.name, recovered.id, self.now);
            channel.last_sub_id = recovered.last_sub_id;
            channel.dead_letters = (self.settings.dead_letters.0)(&recovered.name);
            channel.durable_to = self.store.bounds(recovered.id).last;
            self.channels.push(Some(Box::new(channel)));
            self.by_name.insert(recovered.name, index);
            self.by_store.insert(recovered.id, index);
            // What is too old is pending for nobody.
            let wall = self.wall();
            let _ = self.store.expire(recovered.id, wall);
            let subs = recovered.subscriptions.into_iter();
            let (ghosts, others): (Vec<_>, Vec<_>) =
                subs.partition(|sub| self.is_ghost(&sub.state));
            for sub in others {
                self.recover_sub(index, sub);
            }
            self.recover_ghosts(index, ghosts);
            self.watch_age(index);
            self.watch_inactivity(index);
        }
    }

    fn recover_sub(&mut self, index: ChannelIndex, recovered: super::store::RecoveredSub) {
        let mut state = recovered.state;
        // Older servers did not say so. Members of a durable group have their name with that of the group.
        state.is_durable |= !state.durable_name.is_empty();
        let (id, store) = (state.id, self.channel(index).store);
        let known = self.clients.get(&state.client_id).is_some();
        let active = known && !state.is_closed;
        if !active && !state.is_durable {
            let result = self.store.delete_sub(store, id);
            self.log_error(result);
            return;
        }
        let mut sub = Sub::new(state, active);
        self.recover_pending(store, &mut sub, &recovered.pending);
        self.place_sub(index, sub);
        self.arm(index, id);
    }

    fn recover_pending(&mut self, store: ChannelId, sub: &mut Sub, pending: &[Seq]) {
        for &seq in pending {
            let sent_at = match self.store.lookup(store, seq) {
                Ok(Some(message)) => {
                    pb::MsgProto::decode(message).map_or(0, |message| message.timestamp)
                }
                Ok(None) | Err(StoreError::Damaged { .. }) => {
                    let result = self.store.sub_acked(store, sub.id(), seq);
                    self.log_error(result);
                    continue;
                }
                // It may be read another time.
                Err(error) => {
                    log::error!("STREAM: {error}");
                    self.wall()
                }
            };
            let due = sent_at + sub.ack_wait();
            let due = if due <= self.wall() {
                self.now
            } else {
                self.now + sub.ack_wait()
            };
            let last_sent = sub.state.last_sent;
            sub.note_recovered(seq, due, self.now);
            sub.state.last_sent = last_sent.max(seq);
        }
    }

    /// Puts a subscription where delivery and acks find it.
    fn place_sub(&mut self, index: ChannelIndex, sub: Sub) {
        let id = sub.id();
        let state = sub.state.clone();
        let (active, group) = (sub.active, sub.group.clone());
        let channel = self.channel(index);
        channel.subs.insert(id, sub);
        if !group.is_empty() {
            let queue = channel.queues.entry(group).or_default();
            queue.last_sent = queue.last_sent.max(state.last_sent);
            match active {
                true => queue.members.push_back(id),
                // Of several, the one that stands furthest on.
                false if queue.shadow.is_none() || queue.last_sent == state.last_sent => {
                    queue.shadow = Some(id);
                }
                false => {}
            }
        } else {
            if active {
                channel.plain.push(id);
            }
            if state.is_durable {
                let key = durable_key(&state.client_id, &channel.name, &state.durable_name);
                channel.durables.insert(key, id);
            }
        }
        if active {
            self.attach(index, id, &state);
        }
    }

    /// A client holds this subscription, and its acks come in here.
    fn attach(&mut self, index: ChannelIndex, id: u64, state: &pb::SubState) {
        if let Some(client) = self.clients.get_mut(&state.client_id) {
            client.subs.insert((index, id));
        }
        self.ack_inboxes
            .insert(state.ack_inbox.clone(), (index, id));
        let covered = state
            .ack_inbox
            .strip_prefix(self.info.ack_subs.as_str())
            .is_some_and(|rest| rest.starts_with('.'));
        if !covered && !self.own_inlets.contains_key(&state.ack_inbox) {
            self.last_inlet += 1;
            self.own_inlets
                .insert(state.ack_inbox.clone(), Inlet(self.last_inlet));
        }
    }

    fn detach(&mut self, index: ChannelIndex, id: u64, state: &pb::SubState, out: &mut dyn Outlet) {
        if let Some(client) = self.clients.get_mut(&state.client_id) {
            client.subs.remove(&(index, id));
        }
        self.ack_inboxes.remove(&state.ack_inbox);
        if let Some(inlet) = self.own_inlets.remove(&state.ack_inbox) {
            out.unsubscribe(inlet);
        }
    }

    fn log_error(&self, result: Result<(), StoreError>) {
        if let Err(error) = result {
            log::error!("STREAM: {error}");
        }
    }

    // ---- monitoring

    pub fn report(&self) -> Report {
        let clients = self.clients.iter().map(|client| ClientReport {
            id: client.info.id.clone(),
            hb_inbox: client.info.heartbeat_inbox.clone(),
        });
        let mut channels: Vec<ChannelReport> = self
            .channels
            .iter()
            .flatten()
            .map(|channel| {
                let bounds = self.store.bounds(channel.store);
                let oldest = channel.subs.values().filter_map(Sub::oldest_unacked).min();
                ChannelReport {
                    name: channel.name.clone(),
                    msgs: bounds.messages,
                    bytes: bounds.bytes,
                    first_seq: bounds.first,
                    last_seq: bounds.last,
                    acknowledged: channel.acknowledged,
                    redelivered: channel.redelivered,
                    dead_lettered: channel.dead_lettered,
                    oldest_unacked: oldest.map(|at| at.saturating_add(self.wall_ahead)),
                    subscriptions: channel
                        .subs
                        .values()
                        .map(|sub| sub_report(channel, sub))
                        .collect(),
                }
            })
            .collect();
        channels.sort_by(|a, b| a.name.cmp(&b.name));
        Report {
            cluster_id: self.info.cluster_id.clone(),
            store: self.store.kind(),
            clients: clients.collect(),
            channels,
        }
    }
}

fn sub_report(channel: &Channel, sub: &Sub) -> SubReport {
    let state = &sub.state;
    // A durable group without members stands where its last one left it; members show their own.
    let group = channel.queues.get(&sub.group);
    let group = group.filter(|_| !sub.active);
    SubReport {
        client_id: state.client_id.clone(),
        inbox: state.inbox.clone(),
        ack_inbox: state.ack_inbox.clone(),
        durable_name: state.durable_name.clone(),
        queue_name: state.queue_group.clone(),
        is_durable: state.is_durable,
        is_offline: !sub.active,
        max_inflight: state.max_in_flight,
        ack_wait: state.ack_wait_seconds,
        last_sent: group.map_or(state.last_sent, |group| group.last_sent),
        pending_count: sub.pending.len(),
        is_stalled: sub.is_stalled(),
    }
}

/// One that clients are told, of a server with this id.
fn subject(what: &str, id: &str) -> String {
    format!("_STAN.{what}.{id}")
}

fn server_info(settings: &Settings, id: &str) -> pb::ServerInfo {
    let subject = |what: &str| subject(what, id);
    pb::ServerInfo {
        cluster_id: settings.cluster_id.clone(),
        discovery: format!("{}.{}", settings.discover_prefix, settings.cluster_id),
        publish: subject("pub"),
        subscribe: subject("sub"),
        unsubscribe: subject("unsub"),
        close: subject("close"),
        sub_close: subject("subclose"),
        ack_subs: subject("ack"),
        node_id: String::new(),
    }
}

impl pb::ServerInfo {
    /// With the subjects it lacks.
    fn completed(mut self, id: &str) -> Self {
        for (known, what) in [
            (&mut self.sub_close, "subclose"),
            (&mut self.ack_subs, "ack"),
        ] {
            if known.is_empty() {
                *known = subject(what, id);
            }
        }
        self
    }

    /// The discover subject without the cluster ID.
    fn discovery_prefix(&self) -> &str {
        let prefix = self.discovery.strip_suffix(self.cluster_id.as_str());
        prefix.map_or(&*self.discovery, |prefix| prefix.trim_end_matches('.'))
    }
}
