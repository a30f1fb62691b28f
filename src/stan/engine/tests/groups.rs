//! Who of a queue group gets what.

use super::dead::TestStore;
use super::*;
use crate::stan::in_place::NewMessage;
use crate::stan::store::{RecoveredChannel, RecoveredSub};

/// Members join with an inbox of their own, and a client of the same name.
fn join(world: &mut World, inbox: &str, max_in_flight: i32, ack_wait_seconds: i32) -> String {
    world.connect(inbox);
    world.subscribe(|r| {
        r.client_id = inbox.into();
        r.inbox = inbox.into();
        r.queue_group = "g".into();
        r.max_in_flight = max_in_flight;
        r.ack_wait_seconds = ack_wait_seconds;
    })
}

/// Deliveries since the last look: inbox and sequence.
fn deliveries(world: &mut World, inboxes: &[&str]) -> Vec<(String, u64)> {
    let taken = world.took().into_iter();
    let taken = taken.filter(|(subject, ..)| inboxes.contains(&subject.as_str()));
    taken
        .map(|(inbox, _, payload)| {
            let message = pb::MsgProto::decode(&payload[..]).unwrap();
            (inbox, message.sequence)
        })
        .collect()
}

fn last_sent(world: &World) -> Vec<(bool, u64)> {
    let report = world.engine.report();
    let subs = report.channels[0].subscriptions.iter();
    subs.map(|sub| (sub.is_offline, sub.last_sent)).collect()
}

#[test]
fn where_nobody_has_room_a_message_goes_around() {
    let mut world = World::new();
    world.connect("me");
    join(&mut world, "hung", 1, 1);
    join(&mut world, "busy", 1, 60);
    for _ in 0..3 {
        world.publish("me", "foo");
    }
    let got = |world: &mut World| {
        let taken = deliveries(world, &["hung", "busy"]);
        let plain = taken.into_iter();
        plain
            .map(|(inbox, seq)| format!("{inbox} {seq}"))
            .collect::<Vec<_>>()
    };
    assert_eq!(got(&mut world), ["hung 1", "busy 2"]);
    world.wait(SECOND);
    assert_eq!(got(&mut world), ["hung 1"]);
    world.wait(SECOND);
    assert_eq!(
        got(&mut world),
        ["busy 1", "hung 3"],
        "the one that hangs has room again"
    );
}

#[test]
fn a_dead_member_with_room_does_not_keep_what_others_could_have() {
    let beats = |settings: &mut Settings| {
        settings.heartbeat_interval = SECOND / 2;
        settings.heartbeat_timeout = SECOND / 4;
        settings.heartbeat_failures = 100;
    };
    let store = MemoryStore::new(Box::new(|_| ChannelLimits::default()));
    let mut world = World::with(beats, store);
    world.connect("me");
    join(&mut world, "dead", 1000, 1);
    let alive = join(&mut world, "alive", 1, 60);
    for _ in 0..30 {
        world.publish("me", "foo");
    }
    let mut done = std::collections::BTreeSet::new();
    let mut copies = 0;
    for _ in 0..80 {
        for (subject, reply, payload) in world.took() {
            match subject.as_str() {
                "dead" => copies += 1,
                "alive" => {
                    let message = pb::MsgProto::decode(&payload[..]).unwrap();
                    done.insert(message.sequence);
                    world.ack(&alive, message.sequence);
                }
                "hb.alive" | "hb.me" => world.send(Inlet::ANSWER, &reply.unwrap(), Vec::new()),
                _ => {}
            }
        }
        world.wait(SECOND / 8);
    }
    assert_eq!(done.len(), 30);
    assert!(copies < 90, "{copies} copies");
    let report = world.engine.report();
    let pending = report.channels[0].subscriptions.iter();
    assert_eq!(pending.map(|sub| sub.pending_count).sum::<usize>(), 0);
}

#[test]
fn a_message_has_its_new_owner_on_record_before_it_loses_the_old_one() {
    let store = TestStore::new();
    let mut world = World::with(|_| {}, store.clone());
    world.connect("me");
    join(&mut world, "full", 1, 1);
    join(&mut world, "free", 10, 60);
    world.publish("me", "foo");
    assert_eq!(deliveries(&mut world, &["full"]), [("full".to_owned(), 1)]);
    store.take_marks();
    world.wait(SECOND);
    assert_eq!(deliveries(&mut world, &["free"]), [("free".to_owned(), 1)]);
    assert_eq!(store.take_marks(), ["sent 1 to 2", "acked 1 by 1"]);
}

#[test]
fn members_show_what_they_were_sent_and_a_group_without_any_where_it_stands() {
    let mut world = World::new();
    world.connect("me");
    let member = |r: &mut pb::SubscriptionRequest| {
        r.queue_group = "g".into();
        r.durable_name = "d".into();
    };
    let leave = |world: &mut World, inbox: String| {
        let request = pb::UnsubscribeRequest {
            client_id: "me".into(),
            subject: "foo".into(),
            inbox,
            ..Default::default()
        };
        world.send(Inlet::SUB_CLOSE, "", request.encode_to_vec());
    };
    let first = world.subscribe(member);
    let second = world.subscribe(member);
    for _ in 0..4 {
        world.publish("me", "foo");
    }
    assert_eq!(last_sent(&world), [(false, 3), (false, 4)]);
    for seq in [1, 3] {
        world.ack(&first, seq);
    }
    for seq in [2, 4] {
        world.ack(&second, seq);
    }
    world.publish("me", "foo");
    assert_eq!(last_sent(&world), [(false, 5), (false, 4)]);
    world.ack(&first, 5);
    leave(&mut world, first);
    assert_eq!(last_sent(&world), [(false, 5)], "the place is kept");
    leave(&mut world, second);
    assert_eq!(last_sent(&world), [(true, 5)]);
}

#[test]
fn a_member_that_is_not_durable_does_not_end_a_durable_group() {
    let mut world = World::new();
    for id in ["a", "b"] {
        world.connect(id);
    }
    let durable = |r: &mut pb::SubscriptionRequest| {
        r.client_id = "a".into();
        r.queue_group = "g".into();
        r.durable_name = "d".into();
    };
    world.subscribe(durable);
    // By the name that the durable group has inside.
    world.subscribe(|r| {
        r.client_id = "b".into();
        r.inbox = "b".into();
        r.queue_group = "d:g".into();
    });
    let close = |world: &mut World, id: &str| {
        let close = pb::CloseRequest {
            client_id: id.into(),
        };
        world.send(Inlet::CLOSE, "", close.encode_to_vec());
    };
    close(&mut world, "b");
    world.publish("a", "foo");
    assert_eq!(world.got("in"), [(1, false)]);
    close(&mut world, "a");
    assert_eq!(last_sent(&world), [(true, 1)]);
    world.connect("a");
    world.subscribe(durable);
    assert_eq!(world.got("in"), [(1, true)]);
}

#[test]
fn what_is_due_at_the_start_goes_to_whoever_had_it() {
    let mut store = MemoryStore::new(Box::new(|_| ChannelLimits::default()));
    let id = store.create_channel("foo").unwrap();
    for seq in 1..=6 {
        // The last two are not due yet.
        let sent_at = if seq <= 4 { 0 } else { 1_000_000 * SECOND };
        let message = NewMessage {
            subject: "foo",
            timestamp: sent_at,
            ..NewMessage::default()
        };
        store.append(id, message).unwrap();
    }
    let member = |id: u64, inbox: &str, pending: Vec<u64>| RecoveredSub {
        state: pb::SubState {
            id,
            client_id: inbox.into(),
            inbox: inbox.into(),
            ack_inbox: format!("ack.{id}"),
            queue_group: "g".into(),
            max_in_flight: 10,
            ack_wait_seconds: 5,
            last_sent: *pending.last().unwrap(),
            ..Default::default()
        },
        pending,
    };
    let clients = ["a", "b"].map(|id| pb::ClientInfo {
        id: id.into(),
        heartbeat_inbox: format!("hb.{id}"),
        ..Default::default()
    });
    let recovered = Recovered {
        clients: clients.into(),
        channels: vec![RecoveredChannel {
            id,
            name: "foo".into(),
            subscriptions: vec![member(1, "a", vec![1, 2, 3, 5, 6]), member(2, "b", vec![4])],
            last_sub_id: 2,
        }],
        ..Recovered::default()
    };
    let mut world = World::found(|_| {}, store, recovered);
    let mut first = deliveries(&mut world, &["a", "b"]);
    first.sort_unstable();
    let expected = [("a", 1), ("a", 2), ("a", 3), ("b", 4)];
    assert_eq!(first, expected.map(|(inbox, seq)| (inbox.to_owned(), seq)));
    assert_eq!(last_sent(&world), [(false, 6), (false, 4)]);
    // From then on as ever: to the one with the fewest pending.
    world.wait(5 * SECOND);
    let again = deliveries(&mut world, &["a", "b"]);
    let to_b = again.iter().filter(|(inbox, _)| inbox == "b").count();
    assert!(again.len() == 6 && to_b > 1, "{again:?}");
}

/// A server that finds a group of six messages, some purged, and its members with client, durable or not, last sent and
/// pending. Of the clients `a` is registered.
fn found(members: &[(&str, bool, u64, &[u64])], purged: u64) -> (World, TestStore) {
    let mut store = TestStore::new();
    let id = store.create_channel("foo").unwrap();
    for _ in 1..=6 {
        let message = NewMessage {
            subject: "foo",
            ..NewMessage::default()
        };
        store.append(id, message).unwrap();
    }
    store.purge(id, purged).unwrap();
    let mut subscriptions = Vec::new();
    for &(client, is_durable, last_sent, pending) in members {
        let number = subscriptions.len() as u64 + 1;
        let state = pb::SubState {
            id: number,
            client_id: client.into(),
            inbox: client.into(),
            ack_inbox: format!("ack.{number}"),
            queue_group: "d:g".into(),
            is_durable,
            max_in_flight: 10,
            ack_wait_seconds: 5,
            last_sent,
            ..Default::default()
        };
        let pending = pending.to_vec();
        subscriptions.push(RecoveredSub { state, pending });
    }
    let recovered = Recovered {
        clients: vec![pb::ClientInfo {
            id: "a".into(),
            heartbeat_inbox: "hb.a".into(),
            ..Default::default()
        }],
        channels: vec![RecoveredChannel {
            id,
            name: "foo".into(),
            last_sub_id: subscriptions.len() as u64,
            subscriptions,
        }],
        ..Recovered::default()
    };
    let world = World::found(|_| {}, store.clone(), recovered);
    (world, store)
}

/// What went to `a`; nothing goes to anybody else.
fn got_by_a(world: &mut World) -> Vec<u64> {
    let mut got = deliveries(world, &["gone", "a"]);
    got.sort_unstable();
    assert!(got.iter().all(|(inbox, _)| inbox == "a"), "{got:?}");
    got.into_iter().map(|(_, seq)| seq).collect()
}

/// The end of a client is on the disk, that of its member of a group is not.
#[test]
fn what_a_member_without_its_client_had_pending_is_with_another_one() {
    for (gone, a) in [(true, true), (false, true), (false, false)] {
        // What the first one has of it was handed over already.
        let members = [("gone", gone, 6, &[1, 3, 6][..]), ("a", a, 4, &[3, 4][..])];
        let (mut world, _) = found(&members, 0);
        assert_eq!(got_by_a(&mut world), [1, 3, 4, 6], "durable: {gone}, {a}");
        // The group stands where it stood.
        world.publish("a", "foo");
        assert_eq!(got_by_a(&mut world), [7]);
    }
}

#[test]
fn what_members_without_their_clients_had_pending_waits_with_the_place_of_a_durable_group() {
    let members = [
        ("gone", false, 6, &[3, 6][..]),
        ("gone", true, 5, &[1, 5][..]),
        ("gone", true, 4, &[1, 4][..]),
    ];
    let (mut world, _) = found(&members, 0);
    assert!(got_by_a(&mut world).is_empty());
    assert_eq!(last_sent(&world), [(true, 6)]);
    world.subscribe(|request| {
        request.client_id = "a".into();
        request.inbox = "a".into();
        request.queue_group = "g".into();
        request.durable_name = "d".into();
    });
    assert_eq!(got_by_a(&mut world), [1, 3, 4, 5, 6]);
    world.publish("a", "foo");
    assert_eq!(got_by_a(&mut world), [7]);
}

#[test]
fn a_group_without_clients_that_is_not_durable_is_over() {
    let (world, _) = found(&[("gone", false, 6, &[1, 3][..])], 0);
    assert_eq!(last_sent(&world), []);
}

#[test]
fn what_is_gone_from_the_store_is_pending_for_nobody_who_takes_over() {
    let members = [("gone", true, 6, &[1, 3][..]), ("a", true, 6, &[6][..])];
    let (mut world, store) = found(&members, 2);
    assert_eq!(got_by_a(&mut world), [3, 6]);
    let marks = ["sent 1 to 2", "sent 3 to 2", "acked 1 by 2"];
    assert_eq!(store.take_marks(), marks);
}
