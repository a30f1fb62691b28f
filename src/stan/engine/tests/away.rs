//! The connection to NATS is lost and comes back.

use super::*;

impl World {
    fn come_back(&mut self) {
        let Self { engine, out, now } = self;
        engine.start(out, *now);
        engine.go_on(out, *now);
        engine.end_turn(*now, out).unwrap();
    }
}

#[test]
fn nobody_is_thrown_out_for_the_servers_own_outage() {
    let mut world = World::new();
    world.connect("me");
    world.wait(3600 * SECOND);
    assert_eq!(world.took().len(), 1, "a heartbeat is out");
    world.engine.handle_disconnect();
    for _ in 0..10 {
        world.wait(3600 * SECOND);
    }
    assert_eq!(world.took(), []);
    world.come_back();
    assert_eq!(world.took(), [], "clients have a moment to come back too");
    world.wait(SECOND);
    assert_eq!(world.took().len(), 1);
    // From here on as ever: it has no failures yet, and may have two.
    for _ in 0..2 {
        world.wait(SECOND);
        world.wait(3600 * SECOND);
        assert_eq!(world.took().len(), 1);
    }
    world.publish("me", "foo");
    let (_, _, answer) = world.took().pop().unwrap();
    assert_eq!(pb::PubAck::decode(&answer[..]).unwrap().error, "");
    world.wait(SECOND);
    world.publish("me", "foo");
    let (_, _, answer) = world.took().pop().unwrap();
    assert_ne!(pb::PubAck::decode(&answer[..]).unwrap().error, "");
}

#[test]
fn deliveries_go_on_where_they_were() {
    let mut world = World::new();
    world.connect("me");
    let acks = world.subscribe(|r| r.max_in_flight = 2);
    world.subscribe(|r| (r.queue_group, r.inbox) = ("g".into(), "in.g".into()));
    world.publish("me", "foo");
    world.took();
    world.engine.handle_disconnect();
    // These had come in just before.
    for _ in 0..2 {
        world.publish("me", "foo");
    }
    for _ in 0..20 {
        world.wait(SECOND);
    }
    let sent = world.took();
    let acked = sent.iter().all(|(subject, ..)| subject == "reply.to");
    assert!(
        sent.len() == 2 && acked,
        "stored, acknowledged, not delivered"
    );
    world.come_back();
    let sent = world.took();
    let to = |inbox: &str| -> Vec<(u64, bool, u32)> {
        let ours = sent.iter().filter(|(subject, ..)| subject == inbox);
        let messages = ours.map(|(_, _, payload)| pb::MsgProto::decode(&payload[..]).unwrap());
        messages
            .map(|message| {
                let count = message.redelivery_count;
                (message.sequence, message.redelivered, count)
            })
            .collect()
    };
    // Sent again once, however long that was.
    assert_eq!(to("in"), [(1, true, 1), (2, false, 0)]);
    assert_eq!(to("in.g"), [(1, true, 1), (2, false, 0), (3, false, 0)]);
    world.ack(&acks, 1);
    assert_eq!(world.got("in"), [(3, false)]);
    world.wait(5 * SECOND);
    assert_eq!(world.got("in"), [(2, true), (3, true)]);
}

#[test]
fn a_contest_for_an_id_ends_with_the_connection() {
    let mut world = World::new();
    world.connect("me");
    let request = pb::ConnectRequest {
        client_id: "me".into(),
        heartbeat_inbox: "hb.other".into(),
        ..Default::default()
    };
    let contest = |world: &mut World| {
        world.send(Inlet::CONNECT, "", request.encode_to_vec());
        let (subject, probe, _) = world.took().pop().unwrap();
        assert_eq!(subject, "hb.me");
        probe.unwrap()
    };
    contest(&mut world);
    world.engine.handle_disconnect();
    world.come_back();
    // The next one gets its whole time, and the old client answers within it.
    world.wait(SECOND * 3 / 10);
    let probe = contest(&mut world);
    world.wait(SECOND * 3 / 10);
    assert_eq!(world.took(), [], "the time of the first one is over");
    world.send(Inlet::ANSWER, &probe, Vec::new());
    let (_, _, answer) = world.took().pop().unwrap();
    let answer = pb::ConnectResponse::decode(&answer[..]).unwrap();
    assert_eq!(answer.error, "stan: clientID already registered");
}
