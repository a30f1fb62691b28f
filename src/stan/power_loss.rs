//! Power-loss test: the engine over the file store, over a disk that forgets what was not synced.
//!
//! A run publishes, subscribes, acknowledges and lets the disk get on, all from one seed; then the power goes at some
//! operation of the disk, a directory is made of what may be left (`store::file::crash`), opened, and held against what clients
//! had been told by then. What was found is promised from there on, and the next round begins.
//!
//! `MIDGE_POWER_SEEDS=10000 cargo test --release --lib power_loss`; a red run prints its seed, `MIDGE_POWER_SEED=n` replays it.

use super::engine::{DeadLetters, Engine, Settings};
use super::outlet::{Inlet, Outlet};
use super::pb;
use super::store::file::crash::Disk;
use super::store::file::steps::Steps;
use super::store::file::trace::Trace;
use super::store::file::{FileOptions, FileStore};
use super::store::{ChannelLimits, LimitsOf, Recovered, Store};
use super::subs::SECOND;
use crate::config::streaming::StreamingOptions;
use crate::util::random::Random;
use bytes::Bytes;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const ROUNDS: u32 = 3;
/// The last one keeps few messages, the one before is removed when nobody uses it.
const CHANNELS: [&str; 5] = ["a", "b", "c", "short", "last"];
const LAST_MAX: u64 = 5;
const IDLE: i64 = 100 * SECOND;

fn limits() -> LimitsOf {
    Box::new(|name| ChannelLimits {
        messages: if name == "last" { LAST_MAX } else { 0 },
        inactivity: if name == "short" { IDLE } else { 0 },
        ..ChannelLimits::default()
    })
}

/// What holds of a disk, or does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Faults {
    None,
    /// Syncs change nothing.
    SyncsIgnored,
    /// What the engine waits for is said to be done before it is.
    DoneTooSoon,
    /// The option `file_sync` is off.
    SyncOff,
}

/// What a client was told, and after how many operations of the disk.
#[derive(Default)]
struct Told {
    /// Of each channel, the messages acknowledged.
    acked: Vec<(usize, String, u64)>,
    /// Deliveries: channel, number, content.
    delivered: Vec<(usize, String, u64, u64)>,
    /// Answers to requests, by reply subject.
    answered: Vec<(usize, String)>,
}

struct Recorder {
    trace: Trace,
    told: Told,
    /// Ack inboxes by the reply subject they came on.
    ack_inboxes: BTreeMap<String, String>,
}

impl Outlet for Recorder {
    fn publish(&mut self, subject: &str, _: Option<&str>, payload: &[u8]) {
        let at = self.trace.op_count();
        if let Some(channel) = subject.strip_prefix("ack.") {
            let ack = pb::PubAck::decode(payload).unwrap();
            if ack.error.is_empty() {
                let content = ack.guid.parse().unwrap();
                self.told.acked.push((at, channel.to_owned(), content));
            }
        } else if subject.starts_with("in.") {
            let message = pb::MsgProto::decode(payload).unwrap();
            let delivery = (
                at,
                message.subject,
                message.sequence,
                content(&message.data),
            );
            self.told.delivered.push(delivery);
        } else if subject.starts_with("reply.") {
            let answer = pb::SubscriptionResponse::decode(payload).unwrap();
            if answer.error.is_empty() {
                self.told.answered.push((at, subject.to_owned()));
                self.ack_inboxes
                    .insert(subject.to_owned(), answer.ack_inbox);
            }
        }
    }

    fn subscribe(&mut self, _: Inlet, _: &str) {}

    fn unsubscribe(&mut self, _: Inlet) {}
}

fn content(data: &[u8]) -> u64 {
    u64::from_le_bytes(*data.first_chunk().unwrap())
}

/// A durable as its client sees it.
#[derive(Clone, Default, Debug)]
struct Durable {
    /// It was there when the round began.
    promised: bool,
    /// Reply subjects of the requests that made it, or took it up again, and of the one that ended it.
    made: Vec<String>,
    ended: Option<String>,
    acked: BTreeSet<u64>,
}

/// What must be found, whatever happened since the round began.
#[derive(Clone, Default)]
struct Promised {
    /// Contents by channel, in order, with the number of the first.
    messages: BTreeMap<String, (u64, Vec<u64>)>,
    /// Confirmed durables, with what their clients acknowledged.
    durables: BTreeMap<String, Durable>,
    /// The first message that the limit cannot have removed, in any round.
    kept: u64,
}

struct World {
    engine: Engine,
    out: Recorder,
    steps: Arc<Steps>,
    random: Random,
    now: i64,
    last_content: u64,
    last_reply: u64,
    published: BTreeMap<String, Vec<u64>>,
    durables: BTreeMap<String, Vec<Durable>>,
}

impl World {
    fn send(&mut self, inlet: Inlet, subject: &str, reply: &str, request: &impl Message) {
        let payload = Bytes::from(request.encode_to_vec());
        let Self {
            engine, out, now, ..
        } = self;
        engine.handle_message(inlet, subject, Some(reply), payload, *now, out);
    }

    fn end_turn(&mut self) {
        let Self {
            engine, out, now, ..
        } = self;
        engine.handle_timeouts(*now, out);
        engine.end_turn(*now, out).unwrap();
    }

    fn connect(&mut self) {
        let request = pb::ConnectRequest {
            client_id: "me".into(),
            heartbeat_inbox: "hb".into(),
            ..Default::default()
        };
        self.send(Inlet::CONNECT, "", "connected", &request);
    }

    fn publish(&mut self, channel: &str) {
        self.last_content += 1;
        let content = self.last_content;
        let mut data = content.to_le_bytes().to_vec();
        data.resize(8 + self.random.below(700) as usize, 7);
        let message = pb::PubMsg {
            client_id: "me".into(),
            guid: content.to_string(),
            subject: channel.into(),
            data: data.into(),
            ..Default::default()
        };
        self.published
            .entry(channel.into())
            .or_default()
            .push(content);
        self.send(Inlet::PUBLISH, "", &format!("ack.{channel}"), &message);
    }

    fn subscribe(&mut self, channel: &str, durable: &str) -> String {
        self.last_reply += 1;
        let reply = format!("reply.{}", self.last_reply);
        let request = pb::SubscriptionRequest {
            client_id: "me".into(),
            subject: channel.into(),
            inbox: format!("in.{channel}.{}", self.last_reply),
            max_in_flight: 20,
            ack_wait_seconds: 30,
            start_position: 4,
            durable_name: durable.into(),
            ..Default::default()
        };
        self.send(Inlet::SUBSCRIBE, "", &reply, &request);
        reply
    }

    /// One thing that may happen.
    fn act(&mut self) {
        let channel = CHANNELS[self.random.below(CHANNELS.len() as u32) as usize];
        match self.random.below(20) {
            0..=7 => {
                for _ in 0..=self.random.below(4) {
                    self.publish(channel);
                }
            }
            8..=12 => {
                let waiting = self.steps.waiting() as u32;
                if waiting > 0 {
                    self.steps.step(self.random.below(waiting) as usize);
                }
            }
            13 => self.toggle_durable(channel),
            14 | 15 => self.acknowledge(channel),
            16 => {
                let now = self.now;
                self.engine.maintain(now);
            }
            17 => self.now += 40 * SECOND,
            _ => {}
        }
        if self.random.below(3) > 0 {
            self.end_turn();
        }
    }

    fn toggle_durable(&mut self, channel: &str) {
        if channel == "short" {
            return;
        }
        let current = self
            .durables
            .get(channel)
            .and_then(|all| all.last())
            .cloned();
        match current.filter(|durable| durable.ended.is_none()) {
            None => {
                let made = vec![self.subscribe(channel, "d")];
                let durable = Durable {
                    made,
                    ..Durable::default()
                };
                self.durables
                    .entry(channel.into())
                    .or_default()
                    .push(durable);
            }
            Some(durable) => {
                let made = durable.made.last().expect("it was asked for");
                let Some(inbox) = self.out.ack_inboxes.get(made).cloned() else {
                    return; // not confirmed yet
                };
                self.last_reply += 1;
                let reply = format!("reply.{}", self.last_reply);
                let request = pb::UnsubscribeRequest {
                    client_id: "me".into(),
                    subject: channel.into(),
                    inbox,
                    ..Default::default()
                };
                // Closing keeps it, unsubscribing ends it.
                match self.random.below(2) {
                    0 => {
                        let all = self.durables.get_mut(channel).unwrap();
                        all.last_mut().unwrap().ended = Some(reply.clone());
                        self.send(Inlet::UNSUBSCRIBE, "", &reply, &request);
                    }
                    _ => {
                        self.send(Inlet::SUB_CLOSE, "", &reply, &request);
                        let again = self.subscribe(channel, "d");
                        let all = self.durables.get_mut(channel).unwrap();
                        all.last_mut().unwrap().made.push(again);
                    }
                }
            }
        }
    }

    /// Acknowledges some of what a durable was sent.
    fn acknowledge(&mut self, channel: &str) {
        let Some(durable) = self.durables.get(channel).and_then(|all| all.last()) else {
            return;
        };
        let made = durable.made.last().expect("it was asked for");
        let Some(inbox) = self.out.ack_inboxes.get(made).cloned() else {
            return;
        };
        let sent: BTreeSet<u64> = self
            .out
            .told
            .delivered
            .iter()
            .filter(|(_, of, ..)| of == channel)
            .map(|(_, _, seq, _)| *seq)
            .collect();
        for sequence in sent {
            if self.random.below(2) > 0 {
                continue;
            }
            let ack = pb::Ack {
                subject: channel.into(),
                sequence,
            };
            let all = self.durables.get_mut(channel).unwrap();
            all.last_mut().unwrap().acked.insert(sequence);
            self.send(Inlet::ACK, &inbox, "", &ack);
        }
    }
}

fn settings() -> Settings {
    Settings {
        cluster_id: "c".into(),
        discover_prefix: "_STAN.discover".into(),
        max_channels: 0,
        heartbeat_interval: 1_000_000 * SECOND,
        heartbeat_timeout: 1_000_000 * SECOND,
        heartbeat_failures: 2,
        replace_durable: false,
        admin: true,
        dead_letters: DeadLetters::default(),
        debug: false,
        trace: false,
    }
}

fn options(random: &mut Random, faults: Faults) -> FileOptions {
    let mut options = StreamingOptions::default().file;
    options.sync = faults != Faults::SyncOff;
    options.slice_max_msgs = [0, 1, 3, 10][random.below(4) as usize];
    options.compact_min_size = 0;
    options.compact_interval = Duration::ZERO;
    let mut options = FileOptions::new(&options);
    options.log_bytes_max = 4096 * (1 + u64::from(random.below(8)));
    options
}

/// A run; what is wrong is returned.
fn run(seed: u64, faults: Faults) -> Result<(), String> {
    // Neighbours have states of their own, and the first numbers are thrown away.
    let mut random = Random::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C16));
    (0..8).for_each(|_| {
        random.next_u64();
    });
    let mut promised = Promised::default();
    let mut folder = tempfile::tempdir_in(shared_memory()).unwrap();
    let mut content = 0;
    for round in 0..ROUNDS {
        let options = options(&mut random, faults);
        let next = tempfile::tempdir_in(shared_memory()).unwrap();
        let told = round_of(
            folder.path(),
            &options,
            &mut random,
            faults,
            &mut content,
            next.path(),
            &mut promised,
        )?;
        verify(next.path(), &options, &told, &mut promised)
            .map_err(|text| format!("round {round}: {text}"))?;
        folder = next;
    }
    Ok(())
}

/// Where temporary files cost no disk.
fn shared_memory() -> &'static Path {
    let memory = Path::new("/dev/shm");
    match memory.is_dir() {
        true => memory,
        false => Path::new("/tmp"),
    }
}

/// What is to be found after a round.
struct Expected {
    /// Messages published beside those promised before: unacknowledged ones may be there or not.
    acked: BTreeMap<String, BTreeSet<u64>>,
    delivered: Vec<(String, u64, u64)>,
    published: BTreeMap<String, Vec<u64>>,
    before: BTreeMap<String, (u64, Vec<u64>)>,
    durables: BTreeMap<String, (Durable, Fate)>,
    connected: bool,
    /// A channel may have been removed because nobody used it.
    removed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    There,
    Gone,
    Either,
}

#[allow(clippy::too_many_arguments)]
fn round_of(
    folder: &Path,
    options: &FileOptions,
    random: &mut Random,
    faults: Faults,
    last_content: &mut u64,
    next: &Path,
    promised: &mut Promised,
) -> Result<Expected, String> {
    let trace = Trace::begin(folder);
    let steps = Arc::new(match faults {
        Faults::DoneTooSoon => Steps::that_lie(),
        _ => Steps::default(),
    });
    let (store, recovered) = FileStore::open_in_steps(folder, options.clone(), limits(), &steps)
        .map_err(|e| e.to_string())?;
    let registered = recovered.clients.iter().any(|client| client.id == "me");
    let now = 1_000_000 * SECOND + *last_content as i64;
    let random_of_engine = Random::new(random.next_u64());
    let engine = Engine::new(
        settings(),
        Box::new(store),
        recovered,
        random_of_engine,
        now,
    )
    .map_err(|error| error.to_string())?;
    let mut world = World {
        engine,
        out: Recorder {
            trace: trace.clone(),
            told: Told::default(),
            ack_inboxes: BTreeMap::new(),
        },
        steps,
        random: random.clone(),
        now,
        last_content: *last_content,
        last_reply: 0,
        published: BTreeMap::new(),
        durables: BTreeMap::new(),
    };
    world.engine.start(&mut world.out, now);
    if !registered {
        world.connect();
    }
    for (name, durable) in &promised.durables {
        // It is taken up again.
        let durable = Durable {
            promised: true,
            made: vec![world.subscribe(name, "d")],
            ..durable.clone()
        };
        world.durables.insert(name.clone(), vec![durable]);
    }
    let actions = 10 + world.random.below(60);
    for _ in 0..actions {
        world.act();
    }
    if world.random.below(8) == 0 {
        world.engine.close();
    }
    let ops = trace.ops();
    // The power goes at any time, but rather late than early.
    let cut = match world.random.below(3) {
        0 => ops.len(),
        1 => ops.len() - (world.random.below(12) as usize).min(ops.len()),
        _ => world.random.below(ops.len() as u32 + 1) as usize,
    };
    let mut disk = Disk::new(
        trace.root(),
        &trace.before(),
        faults == Faults::SyncsIgnored,
    );
    ops[..cut].iter().for_each(|op| disk.take(op));
    disk.after_power_loss(next, &mut world.random);
    trace.end();
    *last_content = world.last_content;
    *random = world.random.clone();
    let removed = world.now - now >= IDLE;
    Ok(Expected {
        before: promised.messages.clone(),
        removed,
        ..expected(&world, cut)
    })
}

fn expected(world: &World, cut: usize) -> Expected {
    let told = &world.out.told;
    let mut acked: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for (_, channel, content) in told.acked.iter().filter(|(at, ..)| *at <= cut) {
        acked.entry(channel.clone()).or_default().insert(*content);
    }
    let delivered = told.delivered.iter().filter(|(at, ..)| *at <= cut);
    let delivered = delivered
        .map(|(_, channel, seq, content)| (channel.clone(), *seq, *content))
        .collect();
    let answered: BTreeSet<&String> = told
        .answered
        .iter()
        .filter(|(at, _)| *at <= cut)
        .map(|(_, reply)| reply)
        .collect();
    let mut durables = BTreeMap::new();
    for (name, all) in &world.durables {
        // The last one that was asked for, and what was said of its end.
        let mut last = all.last().expect("there is one").clone();
        let made = last.promised || last.made.iter().any(|reply| answered.contains(reply));
        let fate = match &last.ended {
            Some(reply) if answered.contains(reply) => Fate::Gone,
            None if made => Fate::There,
            _ => Fate::Either,
        };
        if !made {
            // What is found may be the one before.
            last.acked = all.iter().flat_map(|one| one.acked.clone()).collect();
        }
        (last.made, last.ended) = (Vec::new(), None);
        durables.insert(name.clone(), (last, fate));
    }
    let connected = !acked.is_empty();
    Expected {
        before: BTreeMap::new(),
        removed: false,
        acked,
        delivered,
        published: world.published.clone(),
        durables,
        connected,
    }
}

/// Opens what is left, and compares.
fn verify(
    folder: &Path,
    options: &FileOptions,
    expected: &Expected,
    promised: &mut Promised,
) -> Result<(), String> {
    let steps = Arc::new(Steps::default());
    let (mut store, recovered) =
        FileStore::open_in_steps(folder, options.clone(), limits(), &steps)
            .map_err(|error| format!("does not open: {error}"))?;
    if expected.connected && !recovered.clients.iter().any(|client| client.id == "me") {
        return Err("the client is not registered any more".into());
    }
    let empty = BTreeSet::new();
    for name in CHANNELS {
        let found = read(&mut store, &recovered, name)?;
        let acked = expected.acked.get(name).unwrap_or(&empty);
        let before = promised
            .messages
            .get(name)
            .cloned()
            .unwrap_or((1, Vec::new()));
        messages_are_right(name, &found, &before, acked, expected)?;
        promised.messages.insert(name.into(), found);
    }
    for (channel, seq, content) in &expected.delivered {
        let (first, contents) = &promised.messages[channel];
        let nth = seq.checked_sub(*first);
        let there = nth.map(|nth| contents.get(nth as usize).copied());
        match there {
            None => {} // it went by a limit
            Some(there) if there == Some(*content) => {}
            Some(there) => {
                return Err(format!(
                    "{channel}: message {seq} was delivered as {content} and is {there:?} now"
                ));
            }
        }
    }
    let mut durables = BTreeMap::new();
    for (name, (durable, fate)) in &expected.durables {
        let channel = recovered
            .channels
            .iter()
            .find(|channel| channel.name == *name);
        let subs = channel.map_or(&[][..], |channel| &channel.subscriptions);
        let found = subs.iter().find(|sub| sub.state.durable_name == "d");
        match (found, fate) {
            (None, Fate::There) => {
                return Err(format!("{name}: the durable is gone, there are {subs:?}"));
            }
            (Some(_), Fate::Gone) => return Err(format!("{name}: the durable is back")),
            (None, _) => continue,
            (Some(_), _) => {}
        }
        let Some(found) = found else {
            continue;
        };
        let (_, before) = expected
            .before
            .get(name)
            .cloned()
            .unwrap_or((1, Vec::new()));
        let kept_from = match name.as_str() {
            // What had gone by the limit may be there again; nobody waits for it.
            "last" => {
                let published = expected.published.get(name).map_or(0, Vec::len);
                let last = expected.before.get(name).map_or(0, |(first, _)| first - 1);
                let kept = (last + (before.len() + published) as u64).saturating_sub(LAST_MAX) + 1;
                promised.kept = promised.kept.max(kept);
                promised.kept
            }
            _ => promised.messages[name].0,
        };
        for seq in kept_from..=found.state.last_sent {
            if !found.pending.contains(&seq) && !durable.acked.contains(&seq) {
                return Err(format!(
                    "{name}: the durable will not see message {seq}, which it did not acknowledge: pending {:?} of {}, acknowledged {:?}",
                    found.pending, found.state.last_sent, durable.acked
                ));
            }
        }
        if *fate == Fate::There || *fate == Fate::Either {
            durables.insert(name.clone(), durable.clone());
        }
    }
    promised.durables = durables;
    Ok(())
}

/// The number of the first message, and all contents.
fn read(
    store: &mut FileStore,
    recovered: &Recovered,
    name: &str,
) -> Result<(u64, Vec<u64>), String> {
    let Some(channel) = recovered
        .channels
        .iter()
        .find(|channel| channel.name == name)
    else {
        return Ok((1, Vec::new()));
    };
    let bounds = store.bounds(channel.id);
    let mut contents = Vec::new();
    for seq in bounds.first.max(1)..=bounds.last {
        match store.lookup(channel.id, seq) {
            Ok(Some(bytes)) => {
                let message = pb::MsgProto::decode(bytes).map_err(|e| format!("{name}: {e}"))?;
                if message.sequence != seq {
                    return Err(format!(
                        "{name}: message {} stands as {seq}",
                        message.sequence
                    ));
                }
                contents.push(content(&message.data));
            }
            Ok(None) => return Err(format!("{name}: message {seq} is not there")),
            Err(error) => return Err(format!("{name}: message {seq}: {error}")),
        }
    }
    Ok((bounds.first.max(1), contents))
}

fn messages_are_right(
    name: &str,
    (first, found): &(u64, Vec<u64>),
    (first_before, before): &(u64, Vec<u64>),
    acked: &BTreeSet<u64>,
    expected: &Expected,
) -> Result<(), String> {
    if !found.windows(2).all(|pair| pair[0] < pair[1]) {
        return Err(format!("{name}: out of order: {found:?}"));
    }
    let empty = Vec::new();
    let published = expected.published.get(name).unwrap_or(&empty);
    let known: BTreeSet<u64> = before.iter().chain(published).copied().collect();
    if let Some(unknown) = found.iter().find(|content| !known.contains(content)) {
        return Err(format!(
            "{name}: {unknown} was not published, or not any more there"
        ));
    }
    if name == "short" && expected.removed {
        // It may have been removed, and made again: then all of one life are there, or none.
        let there: BTreeSet<u64> = found.iter().copied().collect();
        let latest = acked.last().copied();
        return match latest {
            Some(latest) if found.first().is_some_and(|first| *first <= latest) => {
                let lost = acked
                    .iter()
                    .find(|content| **content >= found[0] && !there.contains(content));
                lost.map_or(Ok(()), |lost| {
                    Err(format!("{name}: {lost} was acknowledged and is lost"))
                })
            }
            _ => Ok(()),
        };
    }
    // What limits leave is the end.
    let limited = name == "last";
    let must: BTreeSet<u64> = before.iter().chain(acked).copied().collect();
    for content in &must {
        let gone_by_limit = limited && found.len() as u64 >= LAST_MAX && *content < found[0];
        if !found.contains(content) && !gone_by_limit {
            return Err(format!(
                "{name}: {content} was acknowledged and is lost, of {found:?}"
            ));
        }
    }
    // Numbers go on.
    if let (Some(old), true) = (before.first(), first >= first_before)
        && let Some(nth) = found.iter().position(|content| content == old)
        && first + nth as u64 != *first_before
    {
        return Err(format!("{name}: numbers have moved"));
    }
    if first < first_before && !limited {
        return Err(format!("{name}: begins with {first}, not {first_before}"));
    }
    Ok(())
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    match number("MIDGE_POWER_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("MIDGE_POWER_SEEDS").unwrap_or(300),
    }
}

#[test]
fn what_was_promised_is_there_after_a_loss_of_power() {
    for seed in seeds() {
        if let Err(text) = run(seed, Faults::None) {
            panic!("MIDGE_POWER_SEED={seed}: {text}");
        }
    }
}

/// The checker itself: with these faults something must be missed.
#[test]
fn faults_are_found() {
    for faults in [Faults::SyncsIgnored, Faults::DoneTooSoon, Faults::SyncOff] {
        let found = (0..40).find_map(|seed| run(seed, faults).err().map(|text| (seed, text)));
        assert!(found.is_some(), "{faults:?} goes unnoticed");
    }
}
