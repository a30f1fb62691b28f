//! Dead letters.

use super::*;
use crate::stan::in_place::NewMessage;
use crate::stan::store::{Bounds, Completion, Flushed};
use std::sync::{Arc, Mutex, MutexGuard};

/// A memory store whose disk is slow or full when a test says so.
#[derive(Clone)]
pub(super) struct TestStore(Arc<Mutex<Slow>>);

struct Slow {
    store: MemoryStore,
    /// Flushes do not end.
    hold: bool,
    held: Vec<ChannelId>,
    /// Nothing can be stored.
    full: bool,
    /// Who was sent what, and acknowledged it, in order.
    marks: Vec<String>,
}

impl TestStore {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Slow {
            store: MemoryStore::new(Box::new(|_| ChannelLimits::default())),
            hold: false,
            held: Vec::new(),
            full: false,
            marks: Vec::new(),
        })))
    }

    pub(super) fn set_full(&self, full: bool) {
        self.get().full = full;
    }

    pub(super) fn take_marks(&self) -> Vec<String> {
        std::mem::take(&mut self.get().marks)
    }

    fn get(&self) -> MutexGuard<'_, Slow> {
        self.0.lock().unwrap()
    }
}

impl Slow {
    fn has_room(&self) -> Result<(), StoreError> {
        match self.full {
            true => Err(StoreError::Refused("no space left on device".into())),
            false => Ok(()),
        }
    }
}

impl Store for TestStore {
    fn kind(&self) -> &'static str {
        "TEST"
    }
    fn save_server(&mut self, info: &pb::ServerInfo) -> Result<(), StoreError> {
        self.get().store.save_server(info)
    }
    fn add_client(&mut self, client: &pb::ClientInfo) -> Result<(), StoreError> {
        let mut inner = self.get();
        inner.has_room()?;
        inner.store.add_client(client)
    }
    fn delete_client(&mut self, id: &str) -> Result<(), StoreError> {
        self.get().store.delete_client(id)
    }
    fn create_channel(&mut self, name: &str) -> Result<ChannelId, StoreError> {
        self.get().store.create_channel(name)
    }
    fn delete_channel(&mut self, channel: ChannelId) -> Result<(), StoreError> {
        self.get().store.delete_channel(channel)
    }
    fn limits(&self, channel: ChannelId) -> ChannelLimits {
        self.get().store.limits(channel)
    }
    fn bounds(&self, channel: ChannelId) -> Bounds {
        self.get().store.bounds(channel)
    }
    fn append(&mut self, channel: ChannelId, message: NewMessage<'_>) -> Result<u64, StoreError> {
        let mut inner = self.get();
        inner.has_room()?;
        inner.store.append(channel, message)
    }
    fn lookup(&mut self, channel: ChannelId, seq: u64) -> Result<Option<Bytes>, StoreError> {
        self.get().store.lookup(channel, seq)
    }
    fn first_since(&mut self, channel: ChannelId, timestamp: i64) -> Result<u64, StoreError> {
        self.get().store.first_since(channel, timestamp)
    }
    fn expire(&mut self, channel: ChannelId, now: i64) -> Option<i64> {
        self.get().store.expire(channel, now)
    }
    fn purge(&mut self, channel: ChannelId, up_to: u64) -> Result<u64, StoreError> {
        self.get().store.purge(channel, up_to)
    }
    fn add_sub(&mut self, channel: ChannelId, state: &pb::SubState) -> Result<(), StoreError> {
        let mut inner = self.get();
        inner.has_room()?;
        inner.store.add_sub(channel, state)
    }
    fn update_sub(&mut self, channel: ChannelId, state: &pb::SubState) -> Result<(), StoreError> {
        let mut inner = self.get();
        inner.has_room()?;
        inner.store.update_sub(channel, state)
    }
    fn delete_sub(&mut self, channel: ChannelId, id: u64) -> Result<(), StoreError> {
        self.get().store.delete_sub(channel, id)
    }
    fn sub_sent(&mut self, channel: ChannelId, id: u64, seq: u64) -> Result<(), StoreError> {
        let mut inner = self.get();
        inner.marks.push(format!("sent {seq} to {id}"));
        inner.store.sub_sent(channel, id, seq)
    }
    fn sub_acked(&mut self, channel: ChannelId, id: u64, seq: u64) -> Result<(), StoreError> {
        let mut inner = self.get();
        inner.marks.push(format!("acked {seq} by {id}"));
        inner.store.sub_acked(channel, id, seq)
    }
    fn flush(&mut self, channel: ChannelId) -> Result<Flushed, StoreError> {
        let mut inner = self.get();
        if inner.hold {
            inner.held.push(channel);
            return Ok(Flushed::Later);
        }
        Ok(Flushed::Now)
    }
    fn completed(&mut self) -> Option<Result<Completion, StoreError>> {
        let mut inner = self.get();
        if inner.hold {
            return None;
        }
        let channel = inner.held.pop()?;
        let up_to = inner.store.bounds(channel).last;
        Some(Ok(Completion {
            channel,
            up_to,
            taken_back: None,
        }))
    }
    fn maintain(&mut self, _: i64) {}
    fn close(&mut self) {}
}

fn world(max_redeliveries: u32) -> (World, TestStore) {
    let store = TestStore::new();
    let rule = move |name: &str| {
        let own = !name.starts_with("dead.");
        own.then(|| DeadLetterRule {
            max_redeliveries,
            target: format!("dead.{name}"),
        })
    };
    let set = |settings: &mut Settings| settings.dead_letters = DeadLetters(Arc::new(rule));
    let mut world = World::with(set, store.clone());
    world.connect("me");
    (world, store)
}

impl World {
    /// What a channel holds.
    fn letters(&mut self, channel: &str) -> Vec<pb::MsgProto> {
        let Some(index) = self.engine.by_name.get(channel).copied() else {
            return Vec::new();
        };
        let store = self.engine.channel(index).store;
        let bounds = self.engine.store.bounds(store);
        let all = bounds.first.max(1)..=bounds.last;
        all.map(|seq| {
            let message = self.engine.store.lookup(store, seq).unwrap().unwrap();
            pb::MsgProto::decode(message).unwrap()
        })
        .collect()
    }

    fn pending(&mut self) -> usize {
        let report = self.engine.report();
        let channel = report.channels.iter().find(|c| c.name == "foo").unwrap();
        channel
            .subscriptions
            .iter()
            .map(|sub| sub.pending_count)
            .sum()
    }
}

#[test]
fn a_message_nobody_acknowledges_goes_to_the_dead_letters() {
    let (mut world, _) = world(2);
    let acks = world.subscribe(|r| r.max_in_flight = 1);
    let message = pb::PubMsg {
        client_id: "me".into(),
        guid: "g".into(),
        subject: "foo".into(),
        reply: "answer.here".into(),
        data: Bytes::from_static(b"poison"),
        ..Default::default()
    };
    world.send(Inlet::PUBLISH, "", message.encode_to_vec());
    world.publish("me", "foo");
    assert_eq!(world.got("in"), [(1, false)]);
    for _ in 0..2 {
        world.wait(6 * SECOND);
        assert_eq!(world.got("in"), [(1, true)]);
        assert!(world.letters("dead.foo").is_empty());
    }
    world.wait(6 * SECOND);
    assert_eq!(
        world.got("in"),
        [(2, false)],
        "there is room for the next one"
    );
    let letters = world.letters("dead.foo");
    assert_eq!(letters.len(), 1);
    assert_eq!(
        (&letters[0].data[..], letters[0].subject.as_str()),
        (&b"poison"[..], "dead.foo")
    );
    let origin: serde_json::Value = serde_json::from_str(&letters[0].reply).unwrap();
    assert_eq!(
        (
            &origin["channel"],
            &origin["sequence"],
            &origin["deliveries"]
        ),
        (&"foo".into(), &1.into(), &3.into())
    );
    assert_eq!(
        (&origin["client"], &origin["reply"]),
        (&"me".into(), &"answer.here".into())
    );
    // One that is acknowledged in time does not.
    world.wait(6 * SECOND);
    world.ack(&acks, 2);
    world.wait(60 * SECOND);
    assert_eq!((world.letters("dead.foo").len(), world.pending()), (1, 0));
    let report = world.engine.report();
    assert_eq!(
        report.channels.iter().map(|c| c.dead_lettered).sum::<u64>(),
        1
    );
}

#[test]
fn a_message_is_pending_until_its_copy_is_durable() {
    let (mut world, store) = world(1);
    world.subscribe(|r| r.max_in_flight = 1);
    world.publish("me", "foo");
    world.wait(6 * SECOND);
    assert_eq!(world.got("in"), [(1, false), (1, true)]);
    store.get().hold = true;
    world.wait(6 * SECOND);
    assert_eq!((world.letters("dead.foo").len(), world.pending()), (1, 1));
    world.wait(600 * SECOND);
    assert_eq!(world.got("in"), [], "it is leaving, and not sent again");
    assert_eq!((world.letters("dead.foo").len(), world.pending()), (1, 1));
    store.get().hold = false;
    world.wait(SECOND);
    assert_eq!(world.pending(), 0);
}

#[test]
fn what_is_spent_at_once_is_buried_turn_by_turn() {
    for comes_back in [false, true] {
        let (mut world, _) = world(1);
        let durable = |r: &mut pb::SubscriptionRequest| {
            r.durable_name = "d".into();
            r.max_in_flight = 5000;
        };
        world.subscribe(durable);
        for _ in 0..2500 {
            world.publish("me", "foo");
        }
        world.wait(6 * SECOND);
        match comes_back {
            false => world.wait(6 * SECOND),
            true => {
                let close = pb::CloseRequest {
                    client_id: "me".into(),
                };
                world.send(Inlet::CLOSE, "", close.encode_to_vec());
                world.connect("me");
                world.subscribe(durable);
            }
        }
        world.took();
        for buried in [1024, 2048, 2500] {
            assert_eq!(world.letters("dead.foo").len(), buried);
            assert_eq!(world.pending(), 2500 - buried);
            world.wait(1);
        }
        assert_eq!(world.got("in"), []);
    }
}

#[test]
fn without_room_for_it_a_message_stays() {
    let (mut world, store) = world(1);
    world.subscribe(|r| r.max_in_flight = 1);
    world.publish("me", "foo");
    world.wait(6 * SECOND);
    store.get().full = true;
    world.took();
    // By turns: it cannot leave, and is sent again.
    for sent in [false, true, false, true] {
        world.wait(6 * SECOND);
        let expected: &[_] = if sent { &[(1, true)] } else { &[] };
        assert_eq!(world.got("in"), expected);
    }
    assert_eq!((world.letters("dead.foo").len(), world.pending()), (0, 1));
    store.get().full = false;
    world.wait(6 * SECOND);
    assert_eq!((world.letters("dead.foo").len(), world.pending()), (1, 0));
    assert_eq!(world.got("in"), []);
}

#[test]
fn a_channel_too_many_does_not_lose_the_message() {
    let (mut world, _) = world(1);
    world.subscribe(|_| {});
    world.publish("me", "foo");
    for number in 0..9 {
        world.publish("me", &format!("other{number}"));
    }
    world.wait(60 * SECOND);
    world.wait(60 * SECOND);
    assert_eq!((world.letters("dead.foo").len(), world.pending()), (0, 1));
}

/// A client that dies of a message never lives to its AckWait; it counts when it comes back.
#[test]
fn a_client_that_dies_of_a_message_is_freed_of_it() {
    let (mut world, _) = world(2);
    let durable = |r: &mut pb::SubscriptionRequest| r.durable_name = "d".into();
    world.subscribe(durable);
    world.publish("me", "foo");
    let mut seen = world.got("in");
    for _ in 0..4 {
        let close = pb::CloseRequest {
            client_id: "me".into(),
        };
        world.send(Inlet::CLOSE, "", close.encode_to_vec());
        world.connect("me");
        world.subscribe(durable);
        seen.extend(world.got("in"));
    }
    assert_eq!(seen, [(1, false), (1, true), (1, true)]);
    assert_eq!((world.letters("dead.foo").len(), world.pending()), (1, 0));
}

/// Members of a group are one: how often a message was sent is counted over all of them.
#[test]
fn deliveries_are_counted_over_a_group() {
    let (mut world, _) = world(2);
    for inbox in ["a", "b", "c"] {
        world.subscribe(|r| {
            r.queue_group = "g".into();
            r.inbox = inbox.into();
        });
    }
    world.publish("me", "foo");
    let mut deliveries = 0;
    for _ in 0..20 {
        let sent = |(subject, ..): &(String, _, _)| ["a", "b", "c"].contains(&subject.as_str());
        deliveries += world.took().iter().filter(|one| sent(one)).count();
        world.wait(6 * SECOND);
    }
    assert_eq!(deliveries, 3);
    assert_eq!((world.letters("dead.foo").len(), world.pending()), (1, 0));
}

#[test]
fn what_a_member_leaves_behind_on_its_way_is_not_sent_again() {
    let (mut world, store) = world(1);
    let member = |inbox: &'static str, seconds: i32| {
        move |r: &mut pb::SubscriptionRequest| {
            r.queue_group = "g".into();
            r.inbox = inbox.into();
            r.ack_wait_seconds = seconds;
        }
    };
    let leaver = world.subscribe(member("a", 5));
    world.publish("me", "foo");
    world.wait(5 * SECOND);
    assert_eq!(world.got("a"), [(1, false), (1, true)]);
    // It waits less long for its acks.
    world.subscribe(member("b", 1));
    store.get().hold = true;
    world.wait(5 * SECOND);
    let request = pb::UnsubscribeRequest {
        client_id: "me".into(),
        subject: "foo".into(),
        inbox: leaver,
        ..Default::default()
    };
    world.send(Inlet::UNSUBSCRIBE, "", request.encode_to_vec());
    world.wait(60 * SECOND);
    assert_eq!(world.got("b"), []);
    assert_eq!((world.letters("dead.foo").len(), world.pending()), (1, 1));
    store.get().hold = false;
    world.wait(SECOND);
    assert_eq!((world.letters("dead.foo").len(), world.pending()), (1, 0));
}

#[test]
fn a_deleted_channel_of_dead_letters_gives_them_back() {
    let (mut world, store) = world(1);
    world.subscribe(|_| {});
    world.publish("me", "foo");
    world.wait(6 * SECOND);
    store.get().hold = true;
    world.wait(6 * SECOND);
    world.took();
    let delete = br#"{"channel":"dead.foo"}"#.to_vec();
    world.send(Inlet::ADMIN, "_STAN_ADMIN.c.delete", delete);
    store.get().held.clear();
    store.get().hold = false;
    world.took();
    world.wait(6 * SECOND);
    assert_eq!(world.got("in"), [(1, true)]);
    world.wait(6 * SECOND);
    assert_eq!((world.letters("dead.foo").len(), world.pending()), (1, 0));
}

#[test]
fn an_outage_of_nats_buries_nothing_whose_ack_may_be_under_way() {
    let (mut world, _) = world(1);
    let acks = world.subscribe(|_| {});
    for _ in 0..2 {
        world.publish("me", "foo");
    }
    world.wait(6 * SECOND);
    let twice = [(1, false), (2, false), (1, true), (2, true)];
    assert_eq!(world.got("in"), twice);
    world.engine.handle_disconnect();
    world.wait(60 * SECOND);
    {
        let World { engine, out, now } = &mut world;
        engine.start(out, *now);
        engine.go_on(out, *now);
        engine.end_turn(*now, out).unwrap();
    }
    assert_eq!((world.letters("dead.foo").len(), world.pending()), (0, 2));
    world.ack(&acks, 1);
    world.wait(SECOND / 2);
    assert_eq!((world.letters("dead.foo").len(), world.pending()), (0, 1));
    // Heartbeats have had their time too now.
    world.wait(SECOND);
    assert_eq!((world.letters("dead.foo").len(), world.pending()), (1, 0));
    assert_eq!(world.got("in"), []);
}
