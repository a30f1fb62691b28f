//! What routes are told, line by line.

use super::super::settings::{ClusterSettings, Settings};
use super::*;
use crate::util::random::Random;
use crate::util::region::RegionMut;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

pub(in crate::broker) const PEER: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

/// A broker with a client, whose cid is 1; routes may have little waiting.
pub(in crate::broker) fn broker(now: Instant) -> (Broker, Slot) {
    let settings = Settings {
        cluster: Some(ClusterSettings {
            pending_bytes_max: 1 << 20,
            ..ClusterSettings::default()
        }),
        ..Settings::default()
    };
    let region = RegionMut::map(1 << 20).unwrap();
    let mut broker = Broker::new(Arc::new(settings), 0, 1, region, Random::new(1), now);
    let client = broker.open(1, PEER, now);
    broker.handle_bytes(client, b"CONNECT {\"verbose\":false}\r\n", now);
    (broker, client)
}

pub(in crate::broker) fn route(broker: &mut Broker, cid: u64, now: Instant) -> Slot {
    let route = broker.open_route(cid, PEER, None, now);
    let greeting = broker.client(route).unwrap().outbox.pending();
    broker.handle_written(route, greeting, now);
    let hello = b"INFO {\"server_id\":\"other\"}\r\nSUB > RSID:1:1\r\n";
    broker.handle_bytes(route, hello, now);
    route
}

/// What is pending for a connection, which is taken.
pub(in crate::broker) fn written(broker: &mut Broker, slot: Slot, now: Instant) -> String {
    broker.end_turn();
    let mut pieces = Vec::new();
    broker.start_write(slot, usize::MAX, usize::MAX, &mut pieces);
    let bytes = pieces.iter().map(|piece| match piece {
        crate::broker::outbox::Piece::Region { offset, len } => broker.output(*offset, *len),
        crate::broker::outbox::Piece::Shared(bytes) => bytes,
    });
    let bytes = bytes.collect::<Vec<_>>().concat();
    broker.handle_written(slot, bytes.len(), now);
    String::from_utf8(bytes).unwrap()
}

/// What a route is told when the client has said `bytes` in one turn.
fn told(bytes: &str) -> String {
    let now = Instant::now();
    let (mut broker, client) = broker(now);
    let route = route(&mut broker, 2, now);
    broker.handle_bytes(client, bytes.as_bytes(), now);
    written(&mut broker, route, now)
}

pub(in crate::broker) fn subscriptions(count: usize) -> String {
    let line = |sid| format!("SUB a.{sid} {sid}\r\n");
    (0..count).map(line).collect()
}

#[test]
fn a_new_route_is_told_batch_by_batch() {
    let now = Instant::now();
    let (mut broker, client) = broker(now);
    broker.handle_bytes(client, subscriptions(200).as_bytes(), now);
    let route = route(&mut broker, 2, now);
    let (mut told, mut batches) = (Vec::new(), 0);
    loop {
        let lines = written(&mut broker, route, now);
        // Nothing more comes by itself.
        assert_eq!(written(&mut broker, route, now), "");
        batches += 1;
        assert!(lines.len() < 2 * BATCH_BYTES, "{} bytes", lines.len());
        let (subs, ask) = match lines.strip_suffix("PING\r\n") {
            Some(subs) => (subs, true),
            None => (&*lines, false),
        };
        told.extend(subs.lines().map(str::to_owned));
        if !ask {
            break;
        }
        broker.handle_bytes(route, b"PONG\r\n", now);
    }
    assert!(batches > 5 && broker.catching_up.is_empty());
    let expected: Vec<String> = (0..200).map(|n| format!("SUB a.{n}  RSID:1:{n}")).collect();
    assert_eq!(told, expected);
    broker.handle_bytes(route, b"PONG\r\n", now);
    assert_eq!(written(&mut broker, route, now), "");
}

#[test]
fn what_changes_while_a_route_is_told() {
    let now = Instant::now();
    let (mut broker, client) = broker(now);
    broker.handle_bytes(client, subscriptions(200).as_bytes(), now);
    let route = route(&mut broker, 2, now);
    written(&mut broker, route, now);
    // The last ones end, one comes anew, and the one that stands behind is needed at once.
    let ends: String = (150..198).map(|sid| format!("UNSUB {sid}\r\n")).collect();
    broker.handle_bytes(client, ends.as_bytes(), now);
    broker.handle_bytes(client, b"SUB new 500\r\nPUB x a.199 0\r\n\r\n", now);
    let lines = written(&mut broker, route, now);
    let (at, request) = (
        lines.find("SUB a.199  RSID:1:199\r\n").unwrap(),
        lines.find("MSG x RSID:1:1 a.199 0\r\n").unwrap(),
    );
    assert!(at < request && lines.contains("SUB new  RSID:1:500"));
    let mut rest = String::new();
    while broker.route(route).asked.len() == 1 {
        broker.handle_bytes(route, b"PONG\r\n", now);
        rest += &written(&mut broker, route, now);
    }
    assert!(rest.contains("SUB a.149 ") && rest.contains("SUB a.199 "));
    assert!(!rest.contains("SUB a.150 ") && !rest.contains("SUB a.197 "));
}

#[test]
fn a_route_that_goes_is_told_nothing_more() {
    let now = Instant::now();
    let (mut broker, client) = broker(now);
    broker.handle_bytes(client, subscriptions(200).as_bytes(), now);
    let slot = route(&mut broker, 2, now);
    broker.handle_gone(slot, now);
    assert!(broker.catching_up.is_empty());
    let stale = RouteRef { slot, cid: 99 };
    broker.pass_to_route(stale, 0, false, Some(1), b"SUB x  RSID:1:1\r\n");
    assert!(broker.route(slot).asked.is_empty());
}

/// Some of what it is told leaves all the time, so no deadline of a write ends it.
#[test]
fn a_route_that_takes_too_little_of_what_it_is_told_is_cut_off() {
    let now = Instant::now();
    let (mut broker, client) = broker(now);
    let slow = route(&mut broker, 2, now);
    let quick = broker.open_route(3, PEER, None, now);
    broker.handle_bytes(quick, b"INFO {\"server_id\":\"quick\"}\r\n", now);
    let subject = "s".repeat(1000);
    let mut turns = 0;
    while broker.route_slots().contains(&slow) {
        let line = match turns % 2 {
            0 => format!("SUB {subject} 1\r\n"),
            _ => "UNSUB 1\r\n".to_owned(),
        };
        broker.handle_bytes(client, line.as_bytes(), now);
        broker.end_turn();
        broker.handle_written(slow, 10, now);
        let lines = written(&mut broker, quick, now);
        for _ in lines.lines().filter(|line| *line == "PING") {
            broker.handle_bytes(quick, b"PONG\r\n", now);
        }
        turns += 1;
        assert!(turns < 4000, "it is told without end");
    }
    assert_eq!(broker.route_slots(), [quick]);
    assert_eq!(broker.totals().slow_consumers, 1);
}

/// A new route gets batches when it asks for more, and what a reply may come to whenever there is a request.
#[test]
fn a_route_that_catches_up_and_takes_nothing_is_cut_off() {
    let now = Instant::now();
    let (mut broker, client) = broker(now);
    let subject = "s".repeat(1000);
    broker.handle_bytes(client, subscriptions(200).as_bytes(), now);
    broker.handle_bytes(client, format!("SUB {subject} own\r\n").as_bytes(), now);
    // It has no interest of its own, so that no message comes to it.
    let slot = broker.open_route(2, PEER, None, now);
    broker.handle_bytes(slot, b"INFO {\"server_id\":\"other\"}\r\n", now);
    assert!(!broker.catching_up.is_empty());
    let request = format!("PUB nobody {subject} 0\r\n\r\n");
    let mut requests = 0;
    while broker.route_slots().contains(&slot) {
        broker.handle_bytes(client, request.as_bytes(), now);
        requests += 1;
        assert!(requests < 4000, "it is told without end");
    }
    assert!(broker.catching_up.is_empty());
    // Nor does it get anything afterwards.
    let cid = 2;
    let route = RouteRef { slot, cid };
    broker.pass_to_route(route, 0, false, Some(1), b"SUB x  RSID:1:1\r\n");
    assert!(broker.route(slot).asked.is_empty());
}

#[test]
fn what_ends_within_a_turn_is_not_told() {
    assert_eq!(told("SUB a 1\r\nUNSUB 1\r\n"), "");
    assert_eq!(
        told("SUB a 1\r\nSUB b q 2\r\nUNSUB 1\r\n"),
        "SUB b q QRSID:1:2\r\n"
    );
    assert_eq!(
        told("SUB a 1\r\nUNSUB 1\r\nSUB b 1\r\n"),
        "SUB b  RSID:1:1\r\n"
    );
}

#[test]
fn interest_goes_before_the_message_that_depends_on_it() {
    assert_eq!(
        told("SUB in 1\r\nUNSUB 1 1\r\nSUB in 2\r\nPUB x in 0\r\n\r\nUNSUB 2\r\n"),
        "SUB in  RSID:1:1\r\nUNSUB RSID:1:1 1\r\nSUB in  RSID:1:2\r\n\
         MSG x RSID:1:1 in 0\r\n\r\nUNSUB RSID:1:2\r\n"
    );
}

#[test]
fn many_subscriptions_in_one_turn_are_all_told() {
    let lines: String = (0..1000)
        .map(|sid| format!("SUB a.{sid} {sid}\r\n"))
        .collect();
    let told = told(&lines);
    let subs = told.lines().filter(|line| line.starts_with("SUB "));
    assert_eq!(subs.count(), 1000);
}

#[test]
fn cids_name_their_loop() {
    for loops in [1, 2, 5] {
        let mut cid = 0;
        for index in (0..loops).chain(0..loops).rev() {
            let last = cid;
            cid = next_cid(last, index, loops);
            assert_eq!(loop_of(cid, loops), index);
            assert!((last + 1..=last + u64::from(loops)).contains(&cid));
        }
    }
    assert_eq!(next_cid(0, 0, 1), 1);
}

#[test]
fn the_latest_group_of_those_that_left_is_known() {
    let mut departed = Departed::default();
    departed.push(b"5:1", b"early");
    departed.push(b"5:1", b"late");
    assert_eq!(departed.group_of(b"5:1"), Some(&b"late"[..]));
    assert_eq!(departed.group_of(b"5:2"), None);
    for cid in 0..DEPARTED_MAX {
        departed.push(format!("7:{cid}").as_bytes(), b"q");
    }
    assert_eq!(departed.group_of(b"5:1"), None);
}

#[test]
fn addresses() {
    let parsed = |text: &'static [u8]| Address::parse(text).map(|a| (a.cid, a.sid));
    assert_eq!(parsed(b"5:1"), Some((5, &b"1"[..])));
    assert_eq!(parsed(b"5:x:1"), Some((5, &b"x:1"[..])));
    assert_eq!(parsed(b"5:"), None);
    assert_eq!(parsed(b"51"), None);
    assert_eq!(parsed(b":1"), None);
}

/// gnatsd tells all it has when a route joins, before it answers anything.
#[test]
fn a_new_route_has_a_pong_when_all_loops_have_begun_to_tell_it() {
    for subscribed in [false, true] {
        let now = Instant::now();
        let settings = Arc::new(Settings {
            cluster: Some(ClusterSettings::default()),
            ..Settings::default()
        });
        let mut loops = [0, 1].map(|index| {
            let region = RegionMut::map(1 << 20).unwrap();
            Broker::new(settings.clone(), index, 2, region, Random::new(1), now)
        });
        let client = loops[1].open(2, PEER, now);
        let hello: &[u8] = match subscribed {
            true => b"CONNECT {\"verbose\":false}\r\nSUB a 1\r\n",
            false => b"CONNECT {\"verbose\":false}\r\n",
        };
        loops[1].handle_bytes(client, hello, now);
        let exchange = |loops: &mut [Broker; 2]| {
            for (from, to) in [(0, 1), (1, 0)] {
                loops[from].end_turn();
                let batch = loops[from].take_mail(to as u16, Default::default());
                loops[to].handle_mail(from as u16, &batch, now);
            }
        };
        exchange(&mut loops);
        let slot = loops[0].open_route(3, PEER, None, now);
        written(&mut loops[0], slot, now);
        let info = b"INFO {\"server_id\":\"other\"}\r\nPING\r\nPING\r\n";
        loops[0].handle_bytes(slot, info, now);
        assert_eq!(written(&mut loops[0], slot, now), "");
        exchange(&mut loops);
        let told = written(&mut loops[0], slot, now);
        let lines = if subscribed {
            "SUB a  RSID:2:1\r\n"
        } else {
            ""
        };
        assert_eq!(told, format!("{lines}PONG\r\nPONG\r\n"));
        loops[0].handle_bytes(slot, b"PING\r\n", now);
        assert_eq!(written(&mut loops[0], slot, now), "PONG\r\n");
    }
}
