use super::super::propagate::tests::PEER;
use super::super::settings::{ClusterSettings, Settings};
use super::*;
use crate::util::random::Random;
use crate::util::region::RegionMut;
use std::sync::Arc;

fn broker(settings: Settings) -> (Broker, Instant) {
    let now = Instant::now();
    let region = RegionMut::map(1 << 20).unwrap();
    (
        Broker::new(Arc::new(settings), 0, 1, region, Random::new(1), now),
        now,
    )
}

/// With routes that may have any backlog.
fn in_a_cluster() -> Settings {
    let mut cluster = ClusterSettings {
        pending_bytes_max: usize::MAX,
        ..ClusterSettings::default()
    };
    cluster.info.server_id = "own".into();
    Settings {
        cluster: Some(cluster),
        ..Settings::default()
    }
}

fn open(broker: &mut Broker, cid: u64, now: Instant) -> Slot {
    let slot = broker.open(cid, SocketAddr::from(([127, 0, 0, 1], 1)), now);
    broker.handle_bytes(slot, b"CONNECT {\"verbose\":false}\r\n", now);
    drain(broker, slot, now);
    slot
}

fn drain(broker: &mut Broker, slot: Slot, now: Instant) -> usize {
    let pending = broker.client(slot).unwrap().outbox.pending();
    broker.handle_written(slot, pending, now);
    pending
}

fn resumed(broker: &mut Broker) -> Vec<Slot> {
    let mut effects = Vec::new();
    broker.take_effects(&mut effects);
    effects
        .iter()
        .filter_map(|e| {
            if let Effect::Resume { slot } = e {
                Some(*slot)
            } else {
                None
            }
        })
        .collect()
}

#[test]
fn answers_nobody_reads_do_not_pile_up() {
    let (mut broker, now) = broker(Settings::default());
    let slot = open(&mut broker, 1, now);
    let pings = b"PING\r\n".repeat(10_000);
    let mut rounds = 0;
    while broker.wants_bytes(slot) {
        broker.handle_bytes(slot, &pings, now);
        rounds += 1;
        assert!(rounds < 100, "read from without end");
    }
    drain(&mut broker, slot, now);
    assert_eq!(resumed(&mut broker), [slot]);
    assert!(broker.wants_bytes(slot));
}

#[test]
fn a_publisher_waits_for_its_only_receiver_but_not_for_a_stuck_one() {
    let (mut broker, now) = broker(Settings::default());
    let (publisher, receiver) = (open(&mut broker, 1, now), open(&mut broker, 2, now));
    broker.handle_bytes(receiver, b"SUB x 1\r\n", now);
    let message = message("x", 10_000);
    while broker.wants_bytes(publisher) {
        broker.handle_bytes(publisher, &message, now);
    }
    assert!(drain(&mut broker, receiver, now) < 2 << 20);
    assert_eq!(resumed(&mut broker), [publisher]);
    // Again, but now the receiver takes nothing: the publisher is let go.
    while broker.wants_bytes(publisher) {
        broker.handle_bytes(publisher, &message, now);
    }
    let mut pieces = Vec::new();
    broker.start_write(receiver, 64, usize::MAX, &mut pieces);
    let later = now + Duration::from_millis(500);
    broker.handle_timeouts(later);
    assert_eq!(resumed(&mut broker), [publisher]);
    broker.handle_bytes(publisher, &message, later);
    assert!(broker.wants_bytes(publisher));
    // And in the end the receiver is cut off.
    broker.handle_timeouts(now + Duration::from_secs(3));
    assert_eq!(broker.totals().slow_consumers, 1);
}

/// A part of this process that listens to `x`.
fn open_internal(broker: &mut Broker, now: Instant) -> Slot {
    let slot = broker.open_internal(100, PEER, now);
    broker.handle_bytes(slot, b"CONNECT {\"verbose\":false}\r\nSUB x 1\r\n", now);
    drain(broker, slot, now);
    slot
}

fn message(subject: &str, bytes: usize) -> Vec<u8> {
    let head = format!("PUB {subject} {bytes}\r\n");
    [head.as_bytes(), &vec![b'.'; bytes], b"\r\n"].concat()
}

/// Publishes until it is held back; returns how many bytes wait for the receiver then.
fn fill(broker: &mut Broker, publisher: Slot, receiver: Slot, now: Instant) -> usize {
    let message = message("x", 10_000);
    while broker.wants_bytes(publisher) {
        broker.handle_bytes(publisher, &message, now);
        let pending = broker.client(receiver).unwrap().outbox.pending();
        assert!(pending < 100 << 20, "held back by nothing");
    }
    broker.client(receiver).unwrap().outbox.pending()
}

#[test]
fn clients_wait_for_a_part_of_this_process_as_long_as_it_takes() {
    let (mut broker, now) = broker(Settings::default());
    let internal = open_internal(&mut broker, now);
    // Somebody who keeps up does not make it a minority.
    let (other, quick) = (open(&mut broker, 3, now), open(&mut broker, 4, now));
    broker.handle_bytes(quick, b"SUB x 1\r\n", now);
    let publisher = open(&mut broker, 2, now);
    let message = message("x", 10_000);
    while broker.wants_bytes(publisher) {
        broker.handle_bytes(publisher, &message, now);
        drain(&mut broker, quick, now);
    }
    broker.start_write(internal, 64, usize::MAX, &mut Vec::new());
    let mut at = now;
    for _ in 0..600 {
        at += Duration::from_millis(100);
        broker.handle_timeouts(at);
        assert!(!broker.wants_bytes(publisher));
    }
    // It is stuck by now, and others are held back all the same.
    assert!(fill(&mut broker, other, internal, at) < 2 << 20);
    drain(&mut broker, internal, at);
    let mut released = resumed(&mut broker);
    released.sort_unstable();
    let mut expected = vec![publisher, other];
    expected.sort_unstable();
    assert_eq!(released, expected);
}

#[test]
fn a_route_waits_for_a_part_of_this_process_when_very_much_waits_there() {
    let (mut broker, now) = broker(in_a_cluster());
    let internal = open_internal(&mut broker, now);
    let route = broker.open_route(50, PEER, None, now);
    let info = b"INFO {\"server_id\":\"another\",\"host\":\"0.0.0.0\",\"port\":6222}\r\n";
    broker.handle_bytes(route, info, now);
    assert!(broker.wants_bytes(route), "it is a route");
    let head = b"MSG x RSID:100:1 100000\r\n";
    let message = [&head[..], &[b'.'; 100_000], b"\r\n"].concat();
    let pending = |broker: &Broker| broker.client(internal).unwrap().outbox.pending();
    let mut at = now;
    while pending(&broker) < ROUTES_WAIT_BYTES - 200_000 {
        broker.handle_bytes(route, &message, at);
        if !broker.wants_bytes(route) {
            broker.start_write(internal, 64, usize::MAX, &mut Vec::new());
            at += PROGRESS_EVERY;
            broker.handle_timeouts(at);
        }
        assert!(broker.wants_bytes(route), "with {}", pending(&broker));
    }
    while broker.wants_bytes(route) {
        broker.handle_bytes(route, &message, at);
        assert!(pending(&broker) < ROUTES_WAIT_BYTES + 200_000);
    }
    at += 10 * CATCH_UP_WITHIN;
    broker.handle_timeouts(at);
    assert!(!broker.wants_bytes(route));
    // Long before all of it is gone it goes on.
    broker.handle_written(internal, 2 << 20, at);
    at += PROGRESS_EVERY;
    broker.handle_timeouts(at);
    assert!(broker.wants_bytes(route));
}

#[test]
fn a_part_of_this_process_is_read_from_however_much_waits_for_it() {
    let (mut broker, now) = broker(Settings::default());
    let internal = open_internal(&mut broker, now);
    let publisher = open(&mut broker, 2, now);
    fill(&mut broker, publisher, internal, now);
    broker.handle_bytes(internal, b"PING\r\nPUB x 2\r\nhi\r\n", now);
    assert!(broker.wants_bytes(internal));
}

/// What others sent it is no reason not to listen to it: it may wait for that itself.
#[test]
fn whoever_gets_much_is_read_from_all_the_same() {
    let (mut broker, now) = broker(in_a_cluster());
    let route = broker.open_route(50, PEER, None, now);
    let hello = b"INFO {\"server_id\":\"another\"}\r\nSUB x RSID:9:1\r\n";
    broker.handle_bytes(route, hello, now);
    let client = open(&mut broker, 2, now);
    broker.handle_bytes(client, b"SUB x 1\r\n", now);
    let publisher = open(&mut broker, 3, now);
    for _ in 0..3 {
        broker.handle_bytes(publisher, &message("x", 600_000), now);
    }
    for receiver in [route, client] {
        assert!(broker.client(receiver).unwrap().outbox.pending() > HIGH_WATER_BYTES);
        broker.handle_bytes(receiver, b"PING\r\n", now);
        assert!(broker.wants_bytes(receiver));
    }
}

#[test]
fn many_that_wait_for_a_part_of_this_process_are_let_go_one_after_another() {
    let (mut broker, now) = broker(Settings::default());
    let internal = open_internal(&mut broker, now);
    let publishers: Vec<Slot> = (0..100).map(|n| open(&mut broker, 1000 + n, now)).collect();
    let message = message("x", 1_200_000 / 8);
    for publisher in publishers.iter().cycle().take(108) {
        broker.handle_bytes(*publisher, &message, now);
    }
    let waiting = |broker: &Broker| {
        let waits = |slot: &&Slot| !broker.wants_bytes(**slot);
        publishers.iter().filter(waits).count()
    };
    let before = waiting(&broker);
    assert!(before > 90, "{before}");
    drain(&mut broker, internal, now);
    assert_eq!(waiting(&broker), before - LET_GO_AT_ONCE);
    // Nobody says anything: the others go on as well.
    let mut at = now + LET_GO_EVERY;
    for _ in 0..before / LET_GO_AT_ONCE {
        broker.handle_timeouts(at);
        at += LET_GO_EVERY;
    }
    assert_eq!(waiting(&broker), 0);
}

/// However long that is: its PONGs are not read meanwhile.
#[test]
fn whoever_is_held_back_is_not_stale() {
    let settings = Settings::default();
    let interval = settings.ping_interval;
    let (mut broker, now) = broker(settings);
    let internal = open_internal(&mut broker, now);
    let publisher = open(&mut broker, 2, now);
    fill(&mut broker, publisher, internal, now);
    let mut at = now;
    for _ in 0..10 {
        at += interval;
        broker.handle_timeouts(at);
    }
    assert_eq!(broker.client(publisher).unwrap().phase, Phase::Open);
    drain(&mut broker, internal, at);
    assert!(broker.wants_bytes(publisher));
    broker.handle_timeouts(at + interval);
    assert_eq!(broker.client(publisher).unwrap().phase, Phase::Open);
}

#[test]
fn a_slow_receiver_holds_a_carrier_when_it_is_on_its_way_to_the_bound() {
    let settings = Settings::default();
    let mark = settings.pending_bytes_max / HOLDS_CARRIERS_PART;
    let gap_bytes = Limits::new(settings.pending_bytes_max).gap_bytes();
    let (mut broker, now) = broker(settings);
    let internal = open_internal(&mut broker, now);
    let receiver = open(&mut broker, 2, now);
    broker.handle_bytes(receiver, b"SUB y 1\r\n", now);
    let message = message("y", 10_000);
    while broker.wants_bytes(internal) {
        broker.handle_bytes(internal, &message, now);
        assert_eq!(broker.client(receiver).unwrap().phase, Phase::Open);
    }
    let pending = broker.client(receiver).unwrap().outbox.pending();
    assert!((mark..mark + 20_000).contains(&pending), "{pending}");
    // Somewhat less is enough.
    broker.handle_written(receiver, gap_bytes + 20_000, now + PROGRESS_EVERY / 2);
    broker.handle_timeouts(now + PROGRESS_EVERY);
    assert_eq!(resumed(&mut broker), [internal]);
    assert!(!broker.client(receiver).unwrap().stuck);
}

/// One that listens to `x` with eight others, and alone to `y`; who publishes to each of them; and the others.
fn two_kinds_of_publishers(broker: &mut Broker, now: Instant) -> (Slot, [Slot; 2], Vec<Slot>) {
    let receiver = open(broker, 1, now);
    broker.handle_bytes(receiver, b"SUB x 1\r\nSUB y 2\r\n", now);
    let others: Vec<Slot> = (2..10).map(|cid| open(broker, cid, now)).collect();
    for other in &others {
        broker.handle_bytes(*other, b"SUB x 1\r\n", now);
    }
    let publishers = [open(broker, 10, now), open(broker, 11, now)];
    (receiver, publishers, others)
}

/// Publishes once, with the others taking all of it.
fn publish(broker: &mut Broker, from: Slot, subject: &str, others: &[Slot], at: Instant) {
    broker.handle_bytes(from, &message(subject, 600_000), at);
    for other in others {
        drain(broker, *other, at);
    }
}

#[test]
fn publishers_wait_by_their_own_terms() {
    for alone_first in [false, true] {
        let (mut broker, now) = broker(Settings::default());
        let (receiver, publishers, others) = two_kinds_of_publishers(&mut broker, now);
        let [many, alone] = publishers;
        let mut order = [(many, "x"), (alone, "y")];
        if alone_first {
            order.reverse();
        }
        publish(&mut broker, order[0].0, order[0].1, &others, now);
        for (publisher, subject) in order {
            publish(&mut broker, publisher, subject, &others, now);
            assert!(!broker.wants_bytes(publisher), "{subject} is held");
        }
        // It takes a little all the time. Whose message has other receivers goes on soon.
        let mut at = now;
        for _ in 0..5 {
            broker.start_write(receiver, 64, usize::MAX, &mut Vec::new());
            at += ALLOWANCE;
            broker.handle_written(receiver, 1000, at);
            broker.handle_timeouts(at);
            assert!(broker.wants_bytes(many) && !broker.wants_bytes(alone));
        }
        // In its next second it may be held again, and the other one still is.
        publish(&mut broker, many, "x", &others, at);
        assert!(broker.wants_bytes(many));
        while at < now + PERIOD {
            broker.start_write(receiver, 64, usize::MAX, &mut Vec::new());
            at += ALLOWANCE;
            broker.handle_written(receiver, 1000, at);
            broker.handle_timeouts(at);
        }
        publish(&mut broker, many, "x", &others, at);
        assert!(!broker.wants_bytes(many) && !broker.wants_bytes(alone));
        // The time of the one runs out in the end, and from then on nobody waits.
        while at < now + CATCH_UP_WITHIN {
            broker.start_write(receiver, 64, usize::MAX, &mut Vec::new());
            at += ALLOWANCE;
            broker.handle_written(receiver, 1000, at);
            broker.handle_timeouts(at);
        }
        publish(&mut broker, many, "x", &others, at);
        assert!(broker.wants_bytes(many) && broker.wants_bytes(alone));
    }
}

#[test]
fn one_receiver_of_many_holds_its_publisher_for_a_moment_only() {
    let (mut broker, now) = broker(Settings::default());
    let publisher = open(&mut broker, 1, now);
    let receivers: Vec<Slot> = (2..10).map(|cid| open(&mut broker, cid, now)).collect();
    for receiver in &receivers {
        broker.handle_bytes(*receiver, b"SUB x 1\r\n", now);
    }
    let message = message("x", 10_000);
    let (mut at, mut held, step) = (now, Duration::ZERO, Duration::from_millis(1));
    for _ in 0..3000 {
        if broker.wants_bytes(publisher) {
            broker.handle_bytes(publisher, &message, at);
        } else {
            held += step;
        }
        // All but the first keep up; that one takes a little.
        for receiver in &receivers[1..] {
            drain(&mut broker, *receiver, at);
        }
        let pending = broker.client(receivers[0]).unwrap().outbox.pending();
        broker.handle_written(receivers[0], pending.min(1000), at);
        at += step;
        broker.handle_timeouts(at);
        resumed(&mut broker);
    }
    assert!(
        held < Duration::from_millis(150),
        "held for {held:?} of 3 s"
    );
}

/// A publisher and members of one queue group.
fn group(broker: &mut Broker, members: u64, now: Instant) -> (Slot, Vec<Slot>) {
    let publisher = open(broker, 1, now);
    let members: Vec<Slot> = (2..2 + members).map(|cid| open(broker, cid, now)).collect();
    for member in &members {
        broker.handle_bytes(*member, b"SUB x q 1\r\n", now);
    }
    (publisher, members)
}

/// Takes a little of what is pending.
fn take(broker: &mut Broker, slot: Slot, bytes: usize, at: Instant) {
    let pending = broker.client(slot).unwrap().outbox.pending();
    broker.handle_written(slot, pending.min(bytes), at);
}

fn pending(broker: &Broker, slot: Slot) -> usize {
    broker.client(slot).unwrap().outbox.pending()
}

#[test]
fn one_slow_member_of_a_group_holds_its_publisher_for_a_moment_only() {
    // Messages that come one by one, and such as are dealt out together.
    for read in [message("x", 10_000), message("x", 100).repeat(300)] {
        let (mut broker, now) = broker(Settings::default());
        let (publisher, members) = group(&mut broker, 10, now);
        let (mut at, mut held, step) = (now, Duration::ZERO, Duration::from_millis(1));
        for _ in 0..3000 {
            match broker.wants_bytes(publisher) {
                true => broker.handle_bytes(publisher, &read, at),
                false => held += step,
            }
            for member in &members[1..] {
                drain(&mut broker, *member, at);
            }
            take(&mut broker, members[0], 100, at);
            at += step;
            broker.handle_timeouts(at);
            resumed(&mut broker);
        }
        assert!(pending(&broker, members[0]) > HIGH_WATER_BYTES);
        assert!(
            !held.is_zero() && held < Duration::from_millis(150),
            "{held:?} of 3 s"
        );
    }
}

/// Whoever is chosen is but one of many, and all of them are slow.
#[test]
fn a_group_that_is_slow_as_a_whole_holds_its_publisher() {
    for (members, read) in [
        (1, message("x", 10_000)),
        (10, message("x", 10_000)),
        (10, message("x", 100).repeat(300)),
        (3 * MEMBERS_SEEN_MAX as u64, message("x", 10_000)),
    ] {
        let (mut broker, now) = broker(Settings::default());
        let (publisher, members) = group(&mut broker, members, now);
        let (mut at, mut reads) = (now, 0);
        for _ in 0..5000 {
            while broker.wants_bytes(publisher) {
                broker.handle_bytes(publisher, &read, at);
                reads += 1;
            }
            for member in &members {
                take(&mut broker, *member, 1000, at);
                let pending = pending(&broker, *member);
                assert!(
                    pending < 2 << 20,
                    "{pending} bytes for one of {}",
                    members.len()
                );
            }
            at += Duration::from_millis(1);
            broker.handle_timeouts(at);
            resumed(&mut broker);
        }
        assert_eq!(broker.totals().slow_consumers, 0);
        let taken = reads * read.len() / members.len();
        assert!(taken > 4_500_000, "{taken} bytes each in 5 s at 1 MB/s");
    }
}

/// The one that got the message is alone in its group; the only plain receiver is behind as well.
#[test]
fn a_group_that_keeps_up_counts_as_a_receiver_that_does() {
    let (mut broker, now) = broker(Settings::default());
    let (publisher, members) = group(&mut broker, 8, now);
    let plain = open(&mut broker, 100, now);
    broker.handle_bytes(plain, b"SUB x 1\r\n", now);
    let mut at = now;
    while pending(&broker, members[0]) < HIGH_WATER_BYTES {
        broker.handle_bytes(publisher, &message("x", 100_000), at);
        for member in &members[1..] {
            drain(&mut broker, *member, at);
        }
        if pending(&broker, plain) > HIGH_WATER_BYTES / 2 {
            drain(&mut broker, plain, at);
        }
    }
    // From here on nobody is held whose receivers are not nearly all behind.
    at += ALLOWANCE;
    broker.handle_timeouts(at);
    for _ in 0..50 {
        broker.handle_bytes(publisher, &message("x", 100_000), at);
        for member in &members[1..] {
            drain(&mut broker, *member, at);
        }
        assert!(broker.wants_bytes(publisher));
    }
    assert!(pending(&broker, plain) > HIGH_WATER_BYTES);
    // Without the group it is the only one, and behind.
    for member in members {
        broker.handle_bytes(member, b"UNSUB 1\r\n", at);
    }
    broker.handle_bytes(publisher, &message("x", 100_000), at);
    assert!(!broker.wants_bytes(publisher));
}

#[test]
fn many_slow_receivers_share_one_allowance() {
    let (mut broker, now) = broker(Settings::default());
    let publisher = open(&mut broker, 1, now);
    let receivers: Vec<Slot> = (2..42).map(|cid| open(&mut broker, cid, now)).collect();
    for receiver in &receivers {
        broker.handle_bytes(*receiver, b"SUB x 1\r\n", now);
    }
    let message = message("x", 50_000);
    let (mut at, mut held, step) = (now, Duration::ZERO, Duration::from_millis(1));
    for turn in 0..3000 {
        match broker.wants_bytes(publisher) {
            true => broker.handle_bytes(publisher, &message, at),
            false => held += step,
        }
        // Eight of them are slow, one after another, and do not stop.
        for (index, receiver) in receivers.iter().enumerate() {
            match index < 8 && turn >= index * 70 {
                true => take(&mut broker, *receiver, 49_000 - 1000 * index, at),
                false => _ = drain(&mut broker, *receiver, at),
            }
        }
        at += step;
        broker.handle_timeouts(at);
        resumed(&mut broker);
    }
    let above = |slot: &&Slot| pending(&broker, **slot) > HIGH_WATER_BYTES;
    assert!(receivers.iter().filter(above).count() >= 6);
    assert!(
        !held.is_zero() && held < Duration::from_millis(150),
        "{held:?} of 3 s"
    );
}

fn with_little_room() -> Settings {
    Settings {
        pending_bytes_max: 100_000,
        ..Settings::default()
    }
}

#[test]
fn a_small_bound_is_kept_and_publishers_are_held_before() {
    // Messages that come one by one, and runs.
    for read in [message("x", 5000), message("x", 100).repeat(40)] {
        let (mut broker, now) = broker(with_little_room());
        let (publisher, receiver) = (open(&mut broker, 1, now), open(&mut broker, 2, now));
        broker.handle_bytes(receiver, b"SUB x 1\r\n", now);
        for _ in 0..3 {
            while broker.wants_bytes(publisher) {
                broker.handle_bytes(publisher, &read, now);
            }
            assert!((50_000..60_000).contains(&pending(&broker, receiver)));
            let rest = pending(&broker, receiver) - 20_000;
            take(&mut broker, receiver, rest, now);
            assert!(!broker.wants_bytes(publisher), "it has not caught up");
            drain(&mut broker, receiver, now);
            assert!(broker.wants_bytes(publisher));
        }
        // It stops to read: nobody waits for it, and little is kept.
        broker.handle_bytes(publisher, &read, now);
        broker.start_write(receiver, 64, usize::MAX, &mut Vec::new());
        let mut at = now;
        while broker.client(receiver).unwrap().phase == Phase::Open {
            assert!(pending(&broker, receiver) < 110_000);
            match broker.wants_bytes(publisher) {
                true => broker.handle_bytes(publisher, &read, at),
                false => at += PROGRESS_EVERY,
            }
            broker.handle_timeouts(at);
        }
        assert!(at < now + CATCH_UP_WITHIN / 2, "it was the bound");
        assert!(
            broker.slow_consumers()[0]
                .cause
                .contains("max_pending (100000)")
        );
        assert!(broker.wants_bytes(publisher));
    }
}

#[test]
fn with_little_room_few_answers_pile_up() {
    let (mut broker, now) = broker(with_little_room());
    let slot = open(&mut broker, 1, now);
    while broker.wants_bytes(slot) {
        broker.handle_bytes(slot, &b"PING\r\n".repeat(1000), now);
        assert!(pending(&broker, slot) < 60_000);
    }
    drain(&mut broker, slot, now);
    assert!(broker.wants_bytes(slot));
}

#[test]
fn a_part_of_this_process_has_room_whatever_clients_have() {
    let (mut broker, now) = broker(with_little_room());
    let internal = open_internal(&mut broker, now);
    let publisher = open(&mut broker, 2, now);
    let held_at = fill(&mut broker, publisher, internal, now);
    assert!((HIGH_WATER_BYTES..2 << 20).contains(&held_at));
}

/// As with a `max_payload` above `max_pending`.
#[test]
fn a_message_larger_than_the_bound_cuts_nobody_off_who_keeps_up() {
    let (mut broker, now) = broker(in_a_cluster_with_little_room());
    let (publisher, receiver) = (open(&mut broker, 1, now), open(&mut broker, 2, now));
    broker.handle_bytes(receiver, b"SUB x 1\r\n", now);
    let route = broker.open_route(50, PEER, None, now);
    let hello = b"INFO {\"server_id\":\"another\"}\r\nSUB x RSID:9:1\r\n";
    broker.handle_bytes(route, hello, now);
    drain(&mut broker, route, now);
    for bytes in [1_000_000, 100_001, 1_000_000] {
        broker.handle_bytes(publisher, &message("x", bytes), now);
        assert!(pending(&broker, receiver) > bytes && pending(&broker, route) > bytes);
        assert!(!broker.wants_bytes(publisher));
        // What else a route is told is no reason either.
        broker.handle_bytes(receiver, b"SUB y 2\r\nUNSUB 2\r\nSUB z 3\r\n", now);
        broker.end_turn();
        drain(&mut broker, receiver, now);
        drain(&mut broker, route, now);
        assert!(broker.wants_bytes(publisher));
    }
    assert_eq!(broker.totals().slow_consumers, 0);
    // Whoever has not taken it when another message comes is too slow.
    let other = open(&mut broker, 3, now);
    broker.handle_bytes(publisher, &message("x", 1_000_000), now);
    broker.handle_bytes(other, &message("x", 10), now);
    assert_eq!(broker.totals().slow_consumers, 2);
}

#[test]
fn a_run_larger_than_the_bound_cuts_nobody_off_who_keeps_up() {
    let (mut broker, now) = broker(Settings {
        pending_bytes_max: 10_000,
        ..Settings::default()
    });
    let (publisher, receiver) = (open(&mut broker, 1, now), open(&mut broker, 2, now));
    broker.handle_bytes(receiver, b"SUB x 1\r\n", now);
    for _ in 0..3 {
        broker.handle_bytes(publisher, &message("x", 1500).repeat(10), now);
        assert!(drain(&mut broker, receiver, now) > 15_000);
    }
    assert_eq!(broker.totals().slow_consumers, 0);
}

fn in_a_cluster_with_little_room() -> Settings {
    let mut settings = Settings {
        pending_bytes_max: 100_000,
        ..in_a_cluster()
    };
    settings.cluster.as_mut().unwrap().pending_bytes_max = 100_000;
    settings
}

/// Loops whose turns come one after another, all within a moment.
struct House {
    loops: Vec<Broker>,
    now: Instant,
    publisher: Slot,
    /// By loop; the first one has none.
    receivers: Vec<Vec<Slot>>,
}

impl House {
    /// A publisher on the first loop, and so many receivers on each of so many others.
    fn new(others: u16, each: u64, subscribe: &str) -> Self {
        let (now, count) = (Instant::now(), u64::from(others) + 1);
        let make = |index| {
            let (region, settings) = (RegionMut::map(1 << 20).unwrap(), Settings::default());
            let random = Random::new(1);
            Broker::new(Arc::new(settings), index, others + 1, region, random, now)
        };
        let mut loops: Vec<Broker> = (0..=others).map(make).collect();
        let publisher = open(&mut loops[0], 1, now);
        let mut receivers = vec![Vec::new()];
        for (home, broker) in (0..).zip(&mut loops).skip(1) {
            let cids = (0..each).map(|n| 1 + home + count * n);
            let slots: Vec<Slot> = cids.map(|cid| open(broker, cid, now)).collect();
            for slot in &slots {
                broker.handle_bytes(*slot, subscribe.as_bytes(), now);
            }
            receivers.push(slots);
        }
        let mut house = Self {
            loops,
            now,
            publisher,
            receivers,
        };
        house.exchange();
        house
    }

    /// The end of a turn of all.
    fn exchange(&mut self) {
        let count = self.loops.len();
        let others = |one: usize| (0..count).filter(move |other| *other != one);
        let mut mail = Vec::new();
        for from in 0..count {
            self.loops[from].end_turn();
            let lag = self.loops[from].lag();
            for to in others(from) {
                self.loops[from].set_backlog(to as u16, Default::default());
                self.loops[to].set_lag(from as u16, lag);
            }
            for to in others(from) {
                let batch = self.loops[from].take_mail(to as u16, Default::default());
                mail.push((from, to, batch));
            }
        }
        for (from, to, batch) in mail {
            self.loops[to].handle_mail(from as u16, &batch, self.now);
        }
    }

    /// The publisher says as much as it may, a read a millisecond, and each receiver takes so many bytes in that time,
    /// by its loop and its number there. Returns for how long the publisher was held, and the most that was pending for one.
    fn run(
        &mut self,
        read: &[u8],
        milliseconds: u32,
        takes: impl Fn(usize, usize) -> usize,
    ) -> (Duration, usize) {
        let (mut held, mut most, step) = (Duration::ZERO, 0, Duration::from_millis(1));
        for _ in 0..milliseconds {
            let publisher = self.publisher;
            match self.loops[0].wants_bytes(publisher) {
                true => self.loops[0].handle_bytes(publisher, read, self.now),
                false => held += step,
            }
            self.exchange();
            for (home, broker) in self.loops.iter_mut().enumerate() {
                for (number, slot) in self.receivers[home].iter().enumerate() {
                    take(broker, *slot, takes(home, number), self.now);
                    most = most.max(pending(broker, *slot));
                }
            }
            self.now += step;
            for broker in &mut self.loops {
                broker.handle_timeouts(self.now);
            }
            self.exchange();
            resumed(&mut self.loops[0]);
        }
        (held, most)
    }
}

/// Nobody beside it on its loop keeps up; everybody elsewhere does.
#[test]
fn a_slow_receiver_alone_on_its_loop_is_alone_all_the_same() {
    for subscribe in ["SUB x 1\r\n", "SUB x q 1\r\n"] {
        for read in [message("x", 10_000), message("x", 100).repeat(100)] {
            let mut house = House::new(8, 1, subscribe);
            let slow = |home, _| if home == 5 { 100 } else { usize::MAX };
            let (held, most) = house.run(&read, 2000, slow);
            assert!(most > HIGH_WATER_BYTES, "{most} bytes");
            let moment = Duration::from_millis(100);
            assert!(!held.is_zero() && held < moment, "{held:?} of 2 s");
        }
    }
}

#[test]
fn receivers_that_are_all_slow_hold_their_publisher_from_wherever_they_are() {
    // All of them, and all but two.
    for keep_up in [0, 2] {
        let mut house = House::new(8, 1, "SUB x 1\r\n");
        let takes = |home, _| if home <= keep_up { usize::MAX } else { 1000 };
        let (held, most) = house.run(&message("x", 10_000), 5000, takes);
        assert!(held > Duration::from_secs(3), "{held:?} of 5 s");
        assert!(most < 3 << 20, "{most} bytes");
    }
}

#[test]
fn a_group_of_all_loops_that_is_slow_holds_its_publisher() {
    let mut house = House::new(8, 1, "SUB x q 1\r\n");
    let (held, most) = house.run(&message("x", 10_000).repeat(4), 5000, |_, _| 1000);
    assert!(held > Duration::from_secs(3), "{held:?} of 5 s");
    assert!(most < 3 << 20, "{most} bytes");
}

/// The faster ones catch up first, and let the publisher go: to fill the others.
#[test]
fn receivers_that_are_slow_in_different_ways_hold_their_publisher_together() {
    for (receivers, least, seconds) in [(2, 1, 20), (2, 4, 80), (8, 1, 40)] {
        let mut house = House::new(receivers, 1, "SUB x 1\r\n");
        let takes = |home, _| 1000 * (least + home - 1);
        let (held, most) = house.run(&message("x", 20_000), 1000 * seconds, takes);
        assert!(held > Duration::from_secs(seconds.into()) / 2, "{held:?}");
        assert!(most < 5 << 20, "{most} bytes for one of {receivers}");
    }
}

/// Whoever has gone, or has caught up, leaves nothing.
#[test]
fn the_list_of_those_behind_is_bounded() {
    let (mut broker, now) = broker(Settings::default());
    let publisher = open(&mut broker, 1, now);
    let message = message("x", 10_000);
    for cid in 2..500 {
        let receiver = open(&mut broker, cid, now);
        broker.handle_bytes(receiver, b"SUB x 1\r\n", now);
        for _ in 0..150 {
            broker.handle_bytes(publisher, &message, now);
        }
        assert!(broker.receivers.was_behind_count() > 0);
        if cid % 2 == 0 {
            drain(&mut broker, receiver, now);
        }
        broker.handle_gone(receiver, now);
        broker.release(receiver);
    }
    assert!(broker.receivers.was_behind_count() <= 65);
    let later = now + BEHIND_FOR;
    broker.handle_timeouts(later);
    assert_eq!(broker.lag(), Lag::None);
    assert_eq!(broker.receivers.was_behind_count(), 0);
}

/// One of four on each loop: every loop has somebody who is behind.
#[test]
fn a_few_slow_receivers_on_every_loop_are_few() {
    let mut house = House::new(15, 4, "SUB x 1\r\n");
    let takes = |_, number| if number == 3 { 100 } else { usize::MAX };
    let (held, most) = house.run(&message("x", 10_000), 2000, takes);
    assert!(most > HIGH_WATER_BYTES, "{most} bytes");
    let moment = Duration::from_millis(150);
    assert!(!held.is_zero() && held < moment, "{held:?} of 2 s");
}

/// What all others have for a loop it takes in in one turn, before its receiver can take anything.
#[test]
fn many_loops_send_one_no_more_than_few_do() {
    for others in [1, 4, 16, 60] {
        let mut house = House::new(others, 1, "");
        let receiver = house.publisher;
        let subscribe = b"SUB x 1\r\n";
        house.loops[0].handle_bytes(receiver, subscribe, house.now);
        house.exchange();
        let read = message("x", 1000).repeat(60);
        let mut most = 0;
        for _ in 0..50 {
            for home in 1..=usize::from(others) {
                let (broker, publisher) = (&mut house.loops[home], house.receivers[home][0]);
                // As much as is read in a turn.
                for _ in 0..16 {
                    if broker.wants_bytes(publisher) && !broker.turn_is_full() {
                        broker.handle_bytes(publisher, &read, house.now);
                    }
                }
            }
            house.exchange();
            most = most.max(pending(&house.loops[0], receiver));
            drain(&mut house.loops[0], receiver, house.now);
            house.exchange();
        }
        assert!(most > 500_000 && most < 9 << 20, "{most} bytes of {others}");
    }
}
