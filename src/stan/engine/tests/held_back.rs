//! The way out is narrow.

use super::*;

/// Room for so many messages at a time.
struct Narrow {
    room: usize,
    sent: Recorder,
}

impl Outlet for Narrow {
    fn publish(&mut self, subject: &str, reply: Option<&str>, payload: &[u8]) {
        self.sent.publish(subject, reply, payload);
    }

    fn subscribe(&mut self, _: Inlet, _: &str) {}

    fn unsubscribe(&mut self, _: Inlet) {}

    fn is_full(&self) -> bool {
        self.sent.0.len() >= self.room
    }
}

impl World {
    fn stored(messages: u64) -> Self {
        let mut world = Self::new();
        world.connect("me");
        for _ in 0..messages {
            world.publish("me", "foo");
        }
        world.took();
        world
    }

    /// The end of a turn with so much room: inboxes and the messages they got.
    fn turn(&mut self, room: usize) -> Vec<(String, pb::MsgProto)> {
        let sent = Recorder::default();
        let mut out = Narrow { room, sent };
        self.engine.handle_timeouts(self.now, &mut out);
        self.engine.end_turn(self.now, &mut out).unwrap();
        assert!(out.sent.0.len() <= room);
        let sent = out.sent.0.into_iter();
        sent.map(|(inbox, _, payload)| (inbox, pb::MsgProto::decode(&payload[..]).unwrap()))
            .collect()
    }

    /// With no room at all for deliveries.
    fn send_into(&mut self, inlet: Inlet, subject: &str, payload: Vec<u8>) -> Recorder {
        let sent = Recorder::default();
        let mut out = Narrow { room: 0, sent };
        let reply = Some("reply.to");
        self.engine
            .handle_message(inlet, subject, reply, &payload, self.now, &mut out);
        self.engine.end_turn(self.now, &mut out).unwrap();
        out.sent
    }

    fn subscribe_into(&mut self, inbox: &str, queue: &str) -> String {
        let request = pb::SubscriptionRequest {
            client_id: "me".into(),
            subject: "foo".into(),
            inbox: inbox.into(),
            queue_group: queue.into(),
            max_in_flight: 10,
            ack_wait_seconds: 5,
            start_position: 4,
            ..Default::default()
        };
        let sent = self.send_into(Inlet::SUBSCRIBE, "", request.encode_to_vec());
        let [(_, _, answer)] = &sent.0[..] else {
            panic!("the answer, and no more")
        };
        pb::SubscriptionResponse::decode(&answer[..])
            .unwrap()
            .ack_inbox
    }

    fn ack_into(&mut self, inbox: &str, sequence: u64) {
        let ack = pb::Ack {
            subject: "foo".into(),
            sequence,
        };
        let sent = self.send_into(Inlet::ACK, inbox, ack.encode_to_vec());
        assert!(sent.0.is_empty());
    }
}

#[test]
fn everybody_gets_everything_bit_by_bit() {
    let mut world = World::stored(50);
    let mut acks = BTreeMap::new();
    for at in 0..20 {
        let inbox = format!("in.{at}");
        acks.insert(inbox.clone(), world.subscribe_into(&inbox, ""));
    }
    // A group of two.
    for inbox in ["in.a", "in.b"] {
        acks.insert(inbox.into(), world.subscribe_into(inbox, "g"));
    }
    let mut got: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for _ in 0..(21 * 50_usize).div_ceil(7) {
        for (inbox, message) in world.turn(7) {
            assert!(!message.redelivered);
            world.ack_into(&acks[&inbox], message.sequence);
            let whose = if inbox.as_str() < "in.a" { &inbox } else { "g" };
            got.entry(whose.into()).or_default().push(message.sequence);
        }
    }
    assert_eq!(got.len(), 21);
    let all: Vec<u64> = (1..=50).collect();
    for (inbox, got) in got {
        assert_eq!(got, all, "{inbox}");
    }
    assert_eq!(world.turn(7), []);
}

#[test]
fn who_acknowledges_fast_leaves_room_for_others() {
    let mut world = World::stored(1000);
    let fast = world.subscribe_into("fast", "");
    world.subscribe_into("slow", "");
    world.subscribe_into("member", "g");
    let mut others = 0;
    for _ in 0..10 {
        for (inbox, message) in world.turn(5) {
            match inbox.as_str() {
                "fast" => world.ack_into(&fast, message.sequence),
                _ => others += 1,
            }
        }
    }
    assert_eq!(others, 20, "both have what they may have in flight");
}

#[test]
fn what_is_due_waits_for_room() {
    let mut world = World::stored(10);
    let mut acks = Vec::new();
    for at in 0..5 {
        acks.push(world.subscribe_into(&format!("in.{at}"), ""));
    }
    assert_eq!(world.turn(1000).len(), 50);
    world.now += 6 * SECOND;
    let mut again = BTreeMap::new();
    for _ in 0..8 {
        for (inbox, message) in world.turn(7) {
            assert_eq!(message.redelivery_count, 1);
            *again.entry((inbox, message.sequence)).or_insert(0) += 1;
        }
        world.now += SECOND / 10;
    }
    assert_eq!(again.len(), 50);
    assert!(again.values().all(|times| *times == 1));
}

#[test]
fn a_durable_that_comes_back_waits_for_room() {
    let mut world = World::stored(10);
    let durable = |r: &mut pb::SubscriptionRequest| r.durable_name = "d".into();
    let acks = world.subscribe(durable);
    assert_eq!(world.got("in").len(), 10);
    world.now += SECOND;
    let request = pb::UnsubscribeRequest {
        client_id: "me".into(),
        subject: "foo".into(),
        inbox: acks,
        ..Default::default()
    };
    world.send(Inlet::SUB_CLOSE, "", request.encode_to_vec());
    world.took();
    let mut request = pb::SubscriptionRequest {
        client_id: "me".into(),
        subject: "foo".into(),
        inbox: "in".into(),
        max_in_flight: 10,
        ack_wait_seconds: 5,
        start_position: 4,
        ..Default::default()
    };
    durable(&mut request);
    let sent = world.send_into(Inlet::SUBSCRIBE, "", request.encode_to_vec());
    assert_eq!(sent.0.len(), 1, "the answer");
    let mut again = Vec::new();
    for _ in 0..3 {
        world.now += SECOND / 10;
        again.extend(world.turn(4).into_iter().map(|(_, message)| {
            assert!(message.redelivered && message.redelivery_count == 1);
            message.sequence
        }));
    }
    let all: Vec<u64> = (1..=10).collect();
    assert_eq!(again, all, "without waiting for AckWait");
}

#[test]
fn whose_turn_found_no_room_is_next() {
    let mut world = World::stored(1000);
    let mut acks = BTreeMap::new();
    for at in 0..4 {
        let inbox = format!("in.{at}");
        acks.insert(inbox.clone(), world.subscribe_into(&inbox, ""));
    }
    let mut got = BTreeMap::new();
    for _ in 0..8 {
        // As much as one of them may have in flight.
        for (inbox, message) in world.turn(10) {
            world.ack_into(&acks[&inbox], message.sequence);
            *got.entry(inbox).or_insert(0) += 1;
        }
    }
    assert!(
        got.len() == 4 && got.values().all(|got| *got == 20),
        "{got:?}"
    );
}
