//! Bursts, with a route that answers, one that does not, and one that answers slowly.

use super::super::mail::Backlog;
use super::super::propagate::tests::{PEER, broker, route, subscriptions, written};
use super::super::settings::{ClusterSettings, Settings};
use super::*;
use crate::util::random::Random;
use crate::util::region::RegionMut;
use std::sync::Arc;

fn pongs(broker: &mut Broker, route: Slot, lines: &str, now: Instant) {
    for _ in lines.lines().filter(|line| *line == "PING") {
        broker.handle_bytes(route, b"PONG\r\n", now);
    }
}

#[test]
fn a_client_that_leaves_is_taken_out_bit_by_bit() {
    let now = Instant::now();
    for (answers, count) in [(true, 50), (true, 1000), (false, 1000)] {
        let (mut broker, client) = broker(now);
        let route = route(&mut broker, 2, now);
        broker.handle_bytes(client, subscriptions(count).as_bytes(), now);
        let lines = written(&mut broker, route, now);
        pongs(&mut broker, route, &lines, now);
        broker.handle_gone(client, now);
        broker.release(client);
        let (mut told, mut turns, mut at) = (Vec::new(), 0, now);
        while broker.client(client).is_some() {
            let lines = written(&mut broker, route, at);
            assert!(lines.len() < 1024, "{} bytes", lines.len());
            if answers {
                pongs(&mut broker, route, &lines, at);
            }
            told.extend(lines.lines().map(str::to_owned));
            at = at.max(broker.next_deadline().unwrap());
            broker.handle_timeouts(at);
            turns += 1;
        }
        told.extend(written(&mut broker, route, at).lines().map(str::to_owned));
        told.retain(|line| line != "PING");
        told.sort();
        let mut expected: Vec<String> = (0..count).map(|n| format!("UNSUB RSID:1:{n}")).collect();
        expected.sort();
        assert_eq!(told, expected);
        assert!(turns > count / 20, "{turns} turns");
        assert!(answers == (at == now), "after {:?}", at - now);
    }
}

#[test]
fn nothing_comes_to_a_client_that_is_being_taken_out() {
    let now = Instant::now();
    let (mut broker, client) = broker(now);
    let route = route(&mut broker, 2, now);
    let members: String = (0..100).map(|n| format!("SUB x q {n}\r\n")).collect();
    broker.handle_bytes(client, members.as_bytes(), now);
    let plain: String = (100..200).map(|n| format!("SUB x {n}\r\n")).collect();
    broker.handle_bytes(client, plain.as_bytes(), now);
    let other = broker.open(3, PEER, now);
    broker.handle_bytes(other, b"SUB x q 1\r\nSUB x r 2\r\n", now);
    written(&mut broker, other, now);
    broker.handle_gone(client, now);
    broker.release(client);
    assert_eq!(broker.subscription_count(), 100 + 2 + 1);
    // Wherever it is chosen, the other member of its group gets the message.
    for sid in 0..100 {
        broker.handle_bytes(
            route,
            format!("MSG x QRSID:1:{sid} 0\r\n\r\n").as_bytes(),
            now,
        );
    }
    let got = written(&mut broker, other, now);
    assert_eq!(got.matches("MSG x 1 0").count(), 100, "{got}");
    assert_eq!(
        broker.open(4, PEER, now),
        other + 1,
        "its slot is not given out"
    );
}

#[test]
fn whoever_leaves_behind_a_burst_is_not_forgotten() {
    let now = Instant::now();
    let (mut broker, client) = broker(now);
    broker.handle_bytes(client, subscriptions(100).as_bytes(), now);
    let idle = broker.open(3, PEER, now);
    for slot in [client, idle] {
        broker.handle_gone(slot, now);
        broker.release(slot);
    }
    for _ in 0..10 {
        broker.end_turn();
        broker.handle_timeouts(now);
    }
    assert_eq!(broker.clients().count(), 0);
    assert!(broker.next_deadline().is_none_or(|at| at > now));
}

#[test]
fn a_burst_waits_for_the_routes_but_not_for_ever() {
    let now = Instant::now();
    for answers in [true, false] {
        let (mut broker, client) = broker(now);
        let route = route(&mut broker, 2, now);
        let innocent = broker.open(3, PEER, now);
        broker.handle_bytes(client, subscriptions(500).as_bytes(), now);
        broker.handle_bytes(innocent, b"SUB a 1\r\n", now);
        assert!(!broker.wants_bytes(client) && broker.wants_bytes(innocent));
        let lines = written(&mut broker, route, now);
        assert_eq!(
            lines
                .lines()
                .filter(|line| line.starts_with("SUB "))
                .count(),
            501
        );
        broker.handle_timeouts(now);
        assert!(!broker.wants_bytes(client));
        if answers {
            pongs(&mut broker, route, &lines, now);
            broker.handle_timeouts(now);
        } else {
            let at = broker.next_deadline().unwrap();
            assert!(at > now && at <= now + PATIENCE);
            broker.handle_timeouts(at);
        }
        assert!(broker.wants_bytes(client));
        let mut effects = Vec::new();
        broker.take_effects(&mut effects);
        use crate::broker::effect::Effect;
        let resumed =
            |effect: &Effect| matches!(effect, Effect::Resume { slot } if *slot == client);
        assert!(effects.iter().any(resumed));
    }
}

#[test]
fn a_route_that_goes_is_not_waited_for() {
    let now = Instant::now();
    let (mut broker, client) = broker(now);
    let route = route(&mut broker, 2, now);
    broker.handle_bytes(client, subscriptions(500).as_bytes(), now);
    assert!(!broker.wants_bytes(client));
    broker.handle_gone(route, now);
    broker.handle_timeouts(now);
    assert!(broker.wants_bytes(client));
}

#[test]
fn another_loop_hears_when_its_burst_is_taken_in() {
    let now = Instant::now();
    let settings = Settings {
        cluster: Some(ClusterSettings::default()),
        ..Settings::default()
    };
    let settings = Arc::new(settings);
    let mut loops: Vec<Broker> = (0..2)
        .map(|index| {
            let region = RegionMut::map(1 << 20).unwrap();
            Broker::new(settings.clone(), index, 2, region, Random::new(1), now)
        })
        .collect();
    let route = route(&mut loops[0], 1, now);
    let client = loops[1].open(2, PEER, now);
    loops[1].handle_bytes(client, subscriptions(500).as_bytes(), now);
    assert!(!loops[1].wants_bytes(client));
    let mail = |loops: &mut Vec<Broker>, from: usize| {
        loops[from].end_turn();
        let batch = loops[from].take_mail(1 - from as u16, Default::default());
        loops[1 - from].handle_mail(from as u16, &batch, now);
        loops[from].set_backlog(1 - from as u16, Backlog::default());
        loops[from].backlogs_are_set();
    };
    mail(&mut loops, 1);
    let lines = written(&mut loops[0], route, now);
    assert!(lines.contains("SUB a.499 "));
    for answered in [false, true] {
        if answered {
            pongs(&mut loops[0], route, &lines, now);
        }
        mail(&mut loops, 0);
        loops[1].handle_timeouts(now);
        assert_eq!(loops[1].wants_bytes(client), answered);
    }
}

#[test]
fn a_reload_while_connections_are_taken_out() {
    let now = Instant::now();
    let (mut broker, _first) = broker(now);
    let second = broker.open(3, PEER, now);
    broker.handle_bytes(second, subscriptions(PORTION + 4).as_bytes(), now);
    broker.end_turn();
    broker.handle_gone(second, now);
    broker.release(second);
    broker.handle_timeouts(now);
    broker.end_turn();
    assert!(broker.client(second).is_some(), "its last ones wait");
    let mut settings = Settings::clone(broker.settings());
    settings.auth.token = Some(crate::broker::auth::Secret::new("secret"));
    broker.reconfigure(Arc::new(settings), now);
    broker.handle_timeouts(now);
    assert!(broker.client(second).is_none());
}

/// Others keep changes under way all the time, each too few to be held.
#[test]
fn who_waits_behind_a_steady_stream_goes_on() {
    for round_trip in [2, 5, 10, 20, 30] {
        let start = Instant::now();
        let mut now = start;
        let (mut broker, client) = broker(now);
        let route = route(&mut broker, 2, now);
        let others: Vec<Slot> = (0..20).map(|n| broker.open(10 + n, PEER, now)).collect();
        broker.handle_bytes(client, subscriptions(500).as_bytes(), now);
        let leaver = broker.open(500, PEER, now);
        broker.handle_bytes(leaver, subscriptions(PORTION + 1).as_bytes(), now);
        broker.handle_gone(leaver, now);
        broker.release(leaver);
        let mut answers = VecDeque::new();
        for turn in 0..500 {
            now += Duration::from_millis(1);
            while answers.front().is_some_and(|at| *at <= now) {
                answers.pop_front();
                broker.handle_bytes(route, b"PONG\r\n", now);
            }
            for other in &others {
                let line = format!("SUB i.{turn} {turn}\r\n");
                broker.handle_bytes(*other, line.as_bytes(), now);
                broker.end_turn();
                let line = format!("PUB nobody 0\r\n\r\nUNSUB {turn}\r\n");
                broker.handle_bytes(*other, line.as_bytes(), now);
                assert!(broker.wants_bytes(*other), "few changes are not held");
                broker.end_turn();
            }
            broker.handle_timeouts(now);
            let lines = written(&mut broker, route, now);
            for _ in lines.lines().filter(|line| *line == "PING") {
                answers.push_back(now + Duration::from_millis(round_trip));
            }
            if broker.wants_bytes(client) && broker.client(leaver).is_none() {
                break;
            }
        }
        let time = now - start;
        assert!(
            time <= 3 * PATIENCE,
            "{round_trip} ms there and back: {time:?}"
        );
    }
}

/// Members that have gone are not weighed by other loops: a message would go to and fro between them.
#[test]
fn members_on_several_loops_that_leave_take_no_messages() {
    let now = Instant::now();
    let settings = Arc::new(Settings {
        cluster: Some(ClusterSettings::default()),
        ..Settings::default()
    });
    let make = |index| {
        let region = RegionMut::map(8 << 20).unwrap();
        Broker::new(settings.clone(), index, 3, region, Random::new(7), now)
    };
    let mut loops: Vec<Broker> = (0..3).map(make).collect();
    route(&mut loops[0], 1, now);
    let mail = |loops: &mut Vec<Broker>| {
        loop {
            let mut batches = Vec::new();
            for from in 0..3u16 {
                let sender = &mut loops[usize::from(from)];
                sender.end_turn();
                for to in (0..3u16).filter(|to| *to != from) {
                    if sender.has_mail(to) {
                        batches.push((from, to, sender.take_mail(to, Default::default())));
                    }
                }
            }
            if batches.is_empty() {
                break;
            }
            for (from, to, batch) in batches {
                loops[usize::from(to)].handle_mail(from, &batch, now);
            }
        }
    };
    let members: String = (0..10).map(|n| format!("SUB x q {n}\r\n")).collect();
    let plain: String = (10..500).map(|n| format!("SUB b.{n} {n}\r\n")).collect();
    let leavers = [loops[0].open(4, PEER, now), loops[1].open(5, PEER, now)];
    for (index, leaver) in leavers.into_iter().enumerate() {
        loops[index].handle_bytes(leaver, [&*members, &*plain].concat().as_bytes(), now);
    }
    let stays = loops[2].open(6, PEER, now);
    loops[2].handle_bytes(stays, b"SUB x q 1\r\n", now);
    let publisher = loops[0].open(10, PEER, now);
    mail(&mut loops);
    for (index, leaver) in leavers.into_iter().enumerate() {
        loops[index].handle_gone(leaver, now);
        loops[index].release(leaver);
        assert!(loops[index].client(leaver).is_some(), "much is left of it");
    }
    mail(&mut loops);
    for _ in 0..1000 {
        loops[0].handle_bytes(publisher, b"PUB x 0\r\n\r\n", now);
    }
    mail(&mut loops);
    let delivered = loops[2].client(stays).unwrap().traffic.messages_out;
    assert_eq!(delivered, 1000);
}

#[test]
fn nobody_waits_for_what_others_changed() {
    let now = Instant::now();
    let (mut broker, burst) = broker(now);
    route(&mut broker, 2, now);
    let publisher = broker.open(50, PEER, now);
    let others: Vec<Slot> = (0..20).map(|n| broker.open(10 + n, PEER, now)).collect();
    broker.handle_bytes(burst, subscriptions(500).as_bytes(), now);
    broker.end_turn();
    for other in &others {
        broker.handle_bytes(*other, b"SUB i 1\r\n", now);
    }
    broker.handle_bytes(publisher, b"PUB x 0\r\n\r\n", now);
    assert!(broker.wants_bytes(publisher) && !broker.wants_bytes(burst));
}

/// The PONG for the timer's PING is not taken for an answer to a mark.
#[test]
fn signs_of_life_are_no_answers() {
    let now = Instant::now();
    let (mut broker, client) = broker(now);
    let slot = route(&mut broker, 2, now);
    let later = now + broker.settings().ping_interval;
    broker.handle_timeouts(later);
    broker.handle_bytes(client, subscriptions(500).as_bytes(), later);
    let asked = broker.route(slot).asked.len();
    assert!(asked > 2);
    for answers in 1..=2 {
        broker.handle_bytes(slot, b"PONG\r\n", later);
        assert_eq!(broker.pace.open_marks.len(), asked - answers);
    }
}

#[test]
fn a_route_that_answers_nothing_is_asked_so_often_only() {
    let now = Instant::now();
    let (mut broker, client) = broker(now);
    let slot = route(&mut broker, 2, now);
    let ends: String = (0..500).map(|sid| format!("UNSUB {sid}\r\n")).collect();
    let lines = [&subscriptions(500), "PUB x 0\r\n\r\n", &*ends].concat();
    for _ in 0..MARKS_ASKED_MAX {
        broker.handle_bytes(client, lines.as_bytes(), now);
        written(&mut broker, slot, now);
        assert!(broker.route(slot).asked.len() <= MARKS_ASKED_MAX);
    }
    assert_eq!(broker.pace.open_marks.len(), MARKS_ASKED_MAX);
}

/// Two loops without routes, and what one of them has sent to the other.
#[test]
fn a_burst_waits_for_the_mail_of_other_loops() {
    let now = Instant::now();
    let make = |index| {
        let region = RegionMut::map(1 << 20).unwrap();
        Broker::new(Default::default(), index, 2, region, Random::new(1), now)
    };
    let mut loops: Vec<Broker> = (0..2).map(make).collect();
    let (burst, innocent) = (loops[0].open(1, PEER, now), loops[0].open(3, PEER, now));
    loops[0].handle_bytes(burst, subscriptions(100).as_bytes(), now);
    loops[0].handle_bytes(innocent, b"SUB x 1\r\nPUB y 0\r\n\r\n", now);
    assert!(!loops[0].wants_bytes(burst) && loops[0].wants_bytes(innocent));
    let end_turn = |broker: &mut Broker, taken_in: bool| {
        broker.end_turn();
        let batch = broker.take_mail(1, Default::default());
        let backlog = match taken_in {
            true => Backlog::default(),
            false => Backlog {
                bytes: batch.weight,
                changes: batch.changes,
            },
        };
        broker.set_backlog(1, backlog);
        broker.backlogs_are_set();
        batch
    };
    let batch = end_turn(&mut loops[0], false);
    // However long it takes: the other loop tells.
    loops[0].handle_timeouts(now + 2 * PATIENCE);
    assert!(!loops[0].wants_bytes(burst) && loops[0].waits_for(1));
    loops[1].handle_mail(0, &batch, now);
    assert_eq!(batch.changes, 101);
    end_turn(&mut loops[0], true);
    assert!(!loops[0].waits_for(1));
    assert_eq!(loops[0].next_deadline(), Some(now + 2 * PATIENCE));
    loops[0].handle_timeouts(now + 2 * PATIENCE);
    assert!(loops[0].wants_bytes(burst));

    // It leaves bit by bit, and stands still while much is under way; who has little does not.
    loops[0].handle_gone(burst, now);
    loops[0].release(burst);
    let mut turns = 0;
    while loops[0].client(burst).is_some() {
        loops[0].handle_timeouts(now);
        let batch = end_turn(&mut loops[0], turns % 3 == 2);
        assert!(
            batch.changes <= CHANGES_AHEAD_MAX.max(PORTION),
            "{}",
            batch.changes
        );
        loops[1].handle_mail(0, &batch, now);
        turns += 1;
    }
    assert!(turns >= 100 / PORTION, "{turns} turns");
    loops[0].handle_gone(innocent, now);
    loops[0].release(innocent);
    assert!(loops[0].client(innocent).is_none());
    let batch = end_turn(&mut loops[0], true);
    loops[1].handle_mail(0, &batch, now);
    assert_eq!(loops[1].peers[0].interest_count(), 0);
}
