//! The engine over the memory store, with a clock of its own: requests in, publishes out.

mod admin;
mod away;
mod dead;
mod full_disk;
mod groups;
mod held_back;
mod model;
mod of_others;
mod wall_clock;

use super::*;
use crate::stan::store::memory::MemoryStore;
use crate::stan::store::{ChannelLimits, RecoveredChannel};
use crate::stan::subs::SECOND;
use bytes::Bytes;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// What went out, in order.
#[derive(Default)]
struct Recorder(Vec<(String, Option<String>, Vec<u8>)>);

impl Outlet for Recorder {
    fn publish(&mut self, subject: &str, reply: Option<&str>, payload: &[u8]) {
        self.0
            .push((subject.into(), reply.map(Into::into), payload.into()));
    }

    fn subscribe(&mut self, _: Inlet, _: &str) {}

    fn unsubscribe(&mut self, _: Inlet) {}
}

struct World {
    engine: Engine,
    out: Recorder,
    now: i64,
}

impl World {
    fn new() -> Self {
        Self::with(
            |_| {},
            MemoryStore::new(Box::new(|_| ChannelLimits::default())),
        )
    }

    fn with(change: impl FnOnce(&mut Settings), store: impl Store + 'static) -> Self {
        Self::found(change, store, Recovered::default())
    }

    /// A server that starts over what its store has.
    fn found(
        change: impl FnOnce(&mut Settings),
        store: impl Store + 'static,
        recovered: Recovered,
    ) -> Self {
        let mut settings = Settings {
            cluster_id: "c".into(),
            discover_prefix: "_STAN.discover".into(),
            max_channels: 10,
            heartbeat_interval: 3600 * SECOND,
            heartbeat_timeout: SECOND,
            heartbeat_failures: 2,
            replace_durable: false,
            debug: false,
            trace: false,
            admin: true,
            dead_letters: DeadLetters::default(),
        };
        change(&mut settings);
        let now = 1_000_000 * SECOND;
        let engine = Engine::new(settings, Box::new(store), recovered, Random::new(1), now);
        let mut world = Self {
            engine: engine.unwrap(),
            out: Recorder::default(),
            now,
        };
        world.engine.start(&mut world.out, now);
        world.engine.go_on(&mut world.out, now);
        world
    }

    fn send(&mut self, inlet: Inlet, subject: &str, payload: Vec<u8>) {
        let Self { engine, out, now } = self;
        engine.handle_message(inlet, subject, Some("reply.to"), &payload, *now, out);
        engine.end_turn(*now, out).unwrap();
    }

    /// What was published since the last look.
    fn took(&mut self) -> Vec<(String, Option<String>, Vec<u8>)> {
        std::mem::take(&mut self.out.0)
    }

    fn connect(&mut self, id: &str) {
        let request = pb::ConnectRequest {
            client_id: id.into(),
            heartbeat_inbox: format!("hb.{id}"),
            ..Default::default()
        };
        self.send(Inlet::CONNECT, "", request.encode_to_vec());
        self.took();
    }

    fn publish(&mut self, id: &str, channel: &str) {
        let message = pb::PubMsg {
            client_id: id.into(),
            guid: "g".into(),
            subject: channel.into(),
            ..Default::default()
        };
        self.send(Inlet::PUBLISH, "", message.encode_to_vec());
    }

    /// Subscribes and returns the ack inbox.
    fn subscribe(&mut self, change: impl FnOnce(&mut pb::SubscriptionRequest)) -> String {
        let mut request = pb::SubscriptionRequest {
            client_id: "me".into(),
            subject: "foo".into(),
            inbox: "in".into(),
            max_in_flight: 10,
            ack_wait_seconds: 5,
            start_position: 4,
            ..Default::default()
        };
        change(&mut request);
        self.send(Inlet::SUBSCRIBE, "", request.encode_to_vec());
        let at = self
            .out
            .0
            .iter()
            .position(|(subject, ..)| subject == "reply.to")
            .unwrap();
        let (_, _, answer) = self.out.0.remove(at);
        let answer = pb::SubscriptionResponse::decode(&answer[..]).unwrap();
        assert_eq!(answer.error, "");
        answer.ack_inbox
    }

    fn ack(&mut self, inbox: &str, sequence: u64) {
        let ack = pb::Ack {
            subject: "foo".into(),
            sequence,
        };
        self.send(Inlet::ACK, inbox, ack.encode_to_vec());
    }

    fn wait(&mut self, nanos: i64) {
        self.now += nanos;
        let Self { engine, out, now } = self;
        engine.handle_timeouts(*now, out);
        engine.end_turn(*now, out).unwrap();
    }

    /// Deliveries to an inbox since the last look: sequence and redelivered flag.
    fn got(&mut self, inbox: &str) -> Vec<(u64, bool)> {
        let taken = self
            .took()
            .into_iter()
            .filter(|(subject, ..)| subject == inbox);
        taken
            .map(|(_, _, payload)| {
                let message = pb::MsgProto::decode(&payload[..]).unwrap();
                (message.sequence, message.redelivered)
            })
            .collect()
    }
}

#[test]
fn a_channel_whose_name_no_request_may_have_takes_no_publishes() {
    let mut store = MemoryStore::new(Box::new(|_| ChannelLimits::default()));
    let channels = [".git", "foo"].map(|name| RecoveredChannel {
        id: store.create_channel(name).unwrap(),
        name: name.into(),
        last_sub_id: 0,
        subscriptions: Vec::new(),
    });
    let recovered = Recovered {
        channels: channels.into(),
        ..Recovered::default()
    };
    let mut world = World::found(|_| {}, store, recovered);
    world.connect("me");
    let mut error = |channel: &str| {
        world.publish("me", channel);
        let (_, _, ack) = world.took().remove(0);
        pb::PubAck::decode(&ack[..]).unwrap().error
    };
    let expected = "stan: invalid publish request";
    assert_eq!([error(".git"), error("a..b")], [expected; 2]);
    assert_eq!([error("foo"), error("bar")], [""; 2]);
}

#[test]
fn acks_that_wait_are_backlog() {
    let mut world = World::new();
    world.connect("me");
    let message = pb::PubMsg {
        client_id: "me".into(),
        guid: vec![b'g'; 1000],
        subject: "foo".into(),
        ..Default::default()
    };
    let payload = message.encode_to_vec();
    let World { engine, out, now } = &mut world;
    for _ in 0..3 {
        engine.handle_message(Inlet::PUBLISH, "", Some("reply"), &payload, *now, out);
    }
    assert_eq!(engine.backlog_bytes(), 3 * 1005);
    engine.end_turn(*now, out).unwrap();
    assert_eq!((engine.backlog_bytes(), out.0.len()), (0, 3));
}

#[test]
fn new_messages_then_again_until_acknowledged() {
    let mut world = World::new();
    world.connect("me");
    let acks = world.subscribe(|r| r.max_in_flight = 2);
    for _ in 0..3 {
        world.publish("me", "foo");
    }
    assert_eq!(
        world.got("in"),
        [(1, false), (2, false)],
        "the third is over MaxInFlight"
    );
    world.ack(&acks, 1);
    assert_eq!(world.got("in"), [(3, false)]);
    world.wait(4 * SECOND);
    assert_eq!(world.got("in"), []);
    world.wait(SECOND + 1);
    assert_eq!(world.got("in"), [(2, true), (3, true)]);
    world.ack(&acks, 2);
    world.ack(&acks, 3);
    world.wait(60 * SECOND);
    assert_eq!(world.got("in"), []);
}

#[test]
fn a_guid_comes_back_as_it_was() {
    let mut world = World::new();
    world.connect("me");
    let answer = |world: &mut World, publish: Vec<u8>| {
        world.send(Inlet::PUBLISH, "", publish);
        let (_, _, answer) = world.took().pop().unwrap();
        let ack = pb::PubAck::decode(&answer[..]).unwrap();
        (ack.guid, ack.error)
    };
    let mut message = pb::PubMsg {
        client_id: "me".into(),
        guid: b"\xff\x00g".to_vec(),
        subject: "foo".into(),
        ..Default::default()
    };
    let accepted = answer(&mut world, message.encode_to_vec());
    assert_eq!(accepted, (message.guid.clone(), String::new()));
    // A channel that is no text.
    message.subject = "f!o".into();
    let mut bytes = message.encode_to_vec();
    let at = bytes.iter().position(|byte| *byte == b'!').unwrap();
    bytes[at] = 0xff;
    let error = "stan: invalid publish request".to_owned();
    assert_eq!(answer(&mut world, bytes), (message.guid, error));
}

#[test]
fn what_the_store_refuses_is_answered_with_its_reason() {
    let store = dead::TestStore::new();
    let mut world = World::with(|_| {}, store.clone());
    world.connect("me");
    let acks = world.subscribe(|r| r.durable_name = "offline".into());
    let request = pb::UnsubscribeRequest {
        client_id: "me".into(),
        subject: "foo".into(),
        inbox: acks,
        ..Default::default()
    };
    world.send(Inlet::SUB_CLOSE, "", request.encode_to_vec());
    world.took();
    store.set_full(true);
    let connect = pb::ConnectRequest {
        client_id: "you".into(),
        heartbeat_inbox: "hb.you".into(),
        ..Default::default()
    };
    world.send(Inlet::CONNECT, "", connect.encode_to_vec());
    let reason = "no space left on device".to_owned();
    assert_eq!(connect_answers(&mut world), std::slice::from_ref(&reason));
    assert!(world.engine.clients.get("you").is_none());
    for durable in ["", "new", "offline"] {
        let request = pb::SubscriptionRequest {
            client_id: "me".into(),
            subject: "foo".into(),
            inbox: "in".into(),
            durable_name: durable.into(),
            max_in_flight: 10,
            ack_wait_seconds: 5,
            ..Default::default()
        };
        world.send(Inlet::SUBSCRIBE, "", request.encode_to_vec());
        let (_, _, answer) = world.took().pop().unwrap();
        let answer = pb::SubscriptionResponse::decode(&answer[..]).unwrap();
        assert_eq!((answer.ack_inbox, &answer.error), (String::new(), &reason));
    }
    let report = world.engine.report();
    let offline = report.channels[0].subscriptions.iter();
    assert_eq!(
        offline.map(|sub| sub.is_offline).collect::<Vec<_>>(),
        [true]
    );
}

#[test]
fn an_ack_follows_the_delivery() {
    let mut world = World::new();
    world.connect("me");
    world.subscribe(|_| {});
    world.publish("me", "foo");
    let subjects: Vec<String> = world
        .took()
        .into_iter()
        .map(|(subject, ..)| subject)
        .collect();
    assert_eq!(subjects, ["in", "reply.to"]);
}

#[test]
fn a_durable_comes_back_where_it_was() {
    let mut world = World::new();
    world.connect("me");
    let durable = |r: &mut pb::SubscriptionRequest| r.durable_name = "d".into();
    let acks = world.subscribe(durable);
    for _ in 0..3 {
        world.publish("me", "foo");
    }
    world.ack(&acks, 2);
    world.took();
    let close = pb::CloseRequest {
        client_id: "me".into(),
    };
    world.send(Inlet::CLOSE, "", close.encode_to_vec());
    world.connect("other");
    world.publish("other", "foo");
    world.connect("me");
    world.subscribe(durable);
    assert_eq!(world.got("in"), [(1, true), (3, true), (4, false)]);
}

#[test]
fn a_group_shares_and_hands_over() {
    let mut world = World::new();
    world.connect("me");
    let member = |inbox: &'static str| {
        move |r: &mut pb::SubscriptionRequest| {
            r.queue_group = "g".into();
            r.inbox = inbox.into();
        }
    };
    let first = world.subscribe(member("a"));
    world.subscribe(member("b"));
    for _ in 0..4 {
        world.publish("me", "foo");
    }
    let taken = world.took();
    let count = |inbox| {
        taken
            .iter()
            .filter(|(subject, ..)| subject == inbox)
            .count()
    };
    assert_eq!((count("a"), count("b")), (2, 2));
    let leave = pb::UnsubscribeRequest {
        client_id: "me".into(),
        subject: "foo".into(),
        inbox: first,
        ..Default::default()
    };
    world.send(Inlet::UNSUBSCRIBE, "", leave.encode_to_vec());
    world.took();
    world.wait(6 * SECOND);
    let mut again: Vec<u64> = world.got("b").into_iter().map(|(seq, _)| seq).collect();
    again.sort_unstable();
    assert_eq!(again, [1, 2, 3, 4]);
}

#[test]
fn a_client_that_leaves_heartbeats_unanswered_is_closed() {
    let mut world = World::new();
    world.connect("me");
    for round in 0..3 {
        world.wait(3600 * SECOND);
        let beats = world.took();
        assert!(
            beats.iter().any(|(subject, ..)| subject == "hb.me"),
            "round {round}"
        );
        world.wait(SECOND);
    }
    world.publish("me", "foo");
    let (_, _, answer) = world.took().pop().unwrap();
    assert_eq!(
        pb::PubAck::decode(&answer[..]).unwrap().error,
        "stan: invalid publish request"
    );
}

/// A client with a subscription, and a heartbeat that it did not answer in time; its ack inbox, and where it can answer still.
fn silent_client() -> (World, String, String) {
    let beats = |settings: &mut Settings| settings.heartbeat_interval = 10 * SECOND;
    let store = MemoryStore::new(Box::new(|_| ChannelLimits::default()));
    let mut world = World::with(beats, store);
    world.connect("me");
    let acks = world.subscribe(|_| {});
    world.wait(10 * SECOND);
    let (_, answer, _) = world.took().pop().unwrap();
    world.wait(SECOND);
    (world, acks, answer.unwrap())
}

#[test]
fn the_deadline_of_an_acknowledged_message_delays_no_other_one() {
    let (mut world, acks, answer) = silent_client();
    world.publish("me", "foo");
    world.ack(&acks, 1);
    world.wait(2 * SECOND);
    world.publish("me", "foo");
    assert_eq!(world.got("in"), [(1, false), (2, false)]);
    // That of the first one.
    world.wait(3 * SECOND + 1);
    world.send(Inlet::ANSWER, &answer, Vec::new());
    world.wait(2 * SECOND);
    assert_eq!(world.got("in"), [(2, true)]);
}

#[test]
fn what_is_due_for_a_silent_client_is_put_off_once_whatever_else_it_is_sent() {
    let (mut world, _, answer) = silent_client();
    world.publish("me", "foo");
    world.wait(5 * SECOND);
    world.publish("me", "foo");
    world.wait(3 * SECOND);
    assert_eq!(world.got("in"), [(1, false), (2, false)]);
    world.send(Inlet::ANSWER, &answer, Vec::new());
    world.wait(2 * SECOND);
    assert_eq!(world.got("in"), [(1, true), (2, true)]);
}

#[derive(Clone, Debug)]
enum Step {
    Publish,
    Ack(u64),
    Wait(i64),
    Close,
    Resume,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => Just(Step::Publish),
        6 => (1..40u64).prop_map(Step::Ack),
        2 => (0..8i64).prop_map(|seconds| Step::Wait(seconds * SECOND)),
        1 => Just(Step::Close),
        1 => Just(Step::Resume),
    ];
    proptest::collection::vec(step, 0..120)
}

/// What a connect request was answered with.
fn connect_answers(world: &mut World) -> Vec<String> {
    let answers = world.took().into_iter();
    let answers = answers.filter(|(subject, ..)| subject == "reply.to");
    let errors = answers.map(|(_, _, payload)| pb::ConnectResponse::decode(&payload[..]));
    errors.map(|answer| answer.unwrap().error).collect()
}

#[test]
fn whoever_waits_for_an_id_has_it_when_its_owner_goes() {
    let again = pb::ConnectRequest {
        client_id: "me".into(),
        heartbeat_inbox: "hb.new".into(),
        ..Default::default()
    };
    let close = pb::CloseRequest {
        client_id: "me".into(),
    };
    let mut world = World::new();
    world.connect("me");
    world.send(Inlet::CONNECT, "", again.encode_to_vec());
    assert_eq!(connect_answers(&mut world).len(), 0);
    world.send(Inlet::CLOSE, "", close.encode_to_vec());
    assert_eq!(connect_answers(&mut world).len(), 2);
    let owner = world.engine.clients.get("me").unwrap();
    assert_eq!(owner.info.heartbeat_inbox, "hb.new");
    // The end of the probe is not the end of the new owner.
    world.wait(10 * SECOND);
    assert!(world.engine.clients.get("me").is_some());

    // The owner is given up after its last heartbeat, while somebody waits.
    let beats = |settings: &mut Settings| {
        settings.heartbeat_interval = SECOND;
        settings.heartbeat_failures = 0;
    };
    let store = MemoryStore::new(Box::new(|_| ChannelLimits::default()));
    let mut world = World::with(beats, store);
    world.connect("me");
    world.wait(SECOND);
    world.wait(SECOND - SECOND / 4);
    world.send(Inlet::CONNECT, "", again.encode_to_vec());
    world.took();
    world.wait(SECOND / 4);
    assert_eq!(connect_answers(&mut world), [""]);
}

#[test]
fn a_probe_has_all_its_time_after_one_that_was_answered() {
    let again = pb::ConnectRequest {
        client_id: "me".into(),
        heartbeat_inbox: "hb.new".into(),
        ..Default::default()
    };
    let mut world = World::new();
    world.connect("me");
    world.send(Inlet::CONNECT, "", again.encode_to_vec());
    let probe = world.took().into_iter().find_map(|(_, reply, _)| reply);
    world.send(Inlet::ANSWER, &probe.unwrap(), Vec::new());
    assert_eq!(
        connect_answers(&mut world),
        ["stan: clientID already registered"]
    );
    world.wait(SECOND / 4);
    world.send(Inlet::CONNECT, "", again.encode_to_vec());
    // Half a second after the first one.
    world.wait(SECOND / 4);
    assert_eq!(connect_answers(&mut world).len(), 0);
    world.wait(SECOND / 4);
    assert_eq!(connect_answers(&mut world), [""]);
}

proptest! {
    /// Against a model of one durable: every message at least once, first deliveries in order, nothing that was
    /// acknowledged again, never more than MaxInFlight new ones out.
    #[test]
    fn a_durable_misses_nothing(steps in steps()) {
        const IN_FLIGHT: usize = 4;
        let mut world = World::new();
        world.connect("writer");
        let open = |world: &mut World| {
            world.connect("me");
            world.subscribe(|r| {
                r.durable_name = "d".into();
                r.max_in_flight = IN_FLIGHT as i32;
            })
        };
        let mut acks = Some(open(&mut world));
        let (mut published, mut next) = (0u64, 1u64);
        // Sent and not acknowledged.
        let mut pending: BTreeMap<u64, ()> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Publish => {
                    world.publish("writer", "foo");
                    published += 1;
                }
                Step::Ack(seq) => {
                    if let Some(inbox) = acks.clone() {
                        world.ack(&inbox, seq);
                        pending.remove(&seq);
                    }
                }
                Step::Wait(nanos) => world.wait(nanos),
                Step::Close => {
                    let close = pb::CloseRequest { client_id: "me".into() };
                    world.send(Inlet::CLOSE, "", close.encode_to_vec());
                    acks = None;
                }
                Step::Resume => {
                    if acks.is_none() {
                        acks = Some(open(&mut world));
                    }
                }
            }
            for (seq, redelivered) in world.got("in") {
                prop_assert!(acks.is_some(), "{seq} came to a closed one");
                if redelivered {
                    prop_assert!(pending.contains_key(&seq), "{seq} came again after its ack");
                } else {
                    prop_assert_eq!(seq, next, "out of order");
                    prop_assert!(pending.len() < IN_FLIGHT, "{} are out already", pending.len());
                    next += 1;
                    pending.insert(seq, ());
                }
            }
            if acks.is_some() && pending.len() < IN_FLIGHT {
                prop_assert_eq!(next, published + 1, "something is not sent");
            }
        }
    }

    #[test]
    fn no_bytes_on_any_subject_do_harm(
        inputs in proptest::collection::vec((1..12u32, proptest::collection::vec(any::<u8>(), 0..60)), 0..30),
        numbers in proptest::collection::vec(any::<(i32, i32, i32, u64, i64)>(), 0..6),
    ) {
        let mut world = World::new();
        world.connect("me");
        for (inlet, bytes) in inputs {
            world.send(Inlet(inlet), "_INBOX.x.p1", bytes);
        }
        for (max_in_flight, ack_wait_seconds, start_position, start_sequence, start_time_delta) in numbers {
            let request = pb::SubscriptionRequest {
                client_id: "me".into(),
                subject: "foo".into(),
                inbox: "in".into(),
                max_in_flight,
                ack_wait_seconds,
                start_position: start_position.rem_euclid(6),
                start_sequence,
                start_time_delta,
                ..Default::default()
            };
            world.publish("me", "foo");
            world.send(Inlet::SUBSCRIBE, "", request.encode_to_vec());
            world.wait(SECOND);
        }
        world.publish("me", "foo");
        prop_assert!(world.took().iter().any(|(subject, ..)| subject == "reply.to"));
    }
}
