//! A table that is larger than the caches, and groups with members on several loops.

use crate::broker::Broker;
use crate::broker::client::PublisherRef;
use crate::broker::mail::{Batch, Envelope};
use crate::broker::propagate::tests::{PEER, broker, route, subscriptions, written};
use crate::util::random::Random;
use crate::util::region::RegionMut;
use crate::wire::parser::{Message, Padded};
use std::time::Instant;

const PATTERNS: usize = super::PATTERNS_CACHED + 100;

/// Every 40th subject, twice and one with nobody interested between.
fn publishes(verb: &str, sid: &str) -> String {
    let lines = (0..PATTERNS).step_by(40).map(|at| {
        [at.to_string(), format!("{at}.no"), at.to_string()]
            .map(|name| format!("{verb} a.{name} {sid}1\r\nx\r\n"))
            .concat()
    });
    lines.collect()
}

#[test]
fn it_is_looked_up_ahead_and_nobody_can_tell() {
    let now = Instant::now();
    let (mut broker, client) = broker(now);
    let route = route(&mut broker, 2, now);
    broker.handle_bytes(client, subscriptions(PATTERNS).as_bytes(), now);
    broker.handle_bytes(client, b"UNSUB 0 1\r\n", now);
    written(&mut broker, client, now);
    assert!(broker.looks_ahead());
    let message = |at: usize| format!("MSG a.{at} {at} 1\r\nx\r\n");
    let all = (0..PATTERNS).step_by(40);
    // The first subscription wants one message only.
    let expect: String = all
        .clone()
        .map(|at| message(at).repeat(2 - usize::from(at == 0)))
        .collect();
    broker.handle_bytes(client, publishes("PUB", "").as_bytes(), now);
    assert_eq!(written(&mut broker, client, now), expect);
    let expect: String = all.skip(1).map(|at| message(at).repeat(2)).collect();
    broker.handle_bytes(route, publishes("MSG", "RSID:1:1 ").as_bytes(), now);
    assert_eq!(written(&mut broker, client, now), expect);
}

/// Two loops with a queue group on both: its members on the second one get alike much of what is sent there, and those that take
/// no more nothing. With many members elsewhere, too.
#[test]
fn members_of_this_loop_are_drawn_evenly() {
    const MESSAGES: usize = 6000;
    for elsewhere in [1, 6, 300] {
        let now = Instant::now();
        let mut loops = [0, 1].map(|index| {
            let region = RegionMut::map(4 << 20).unwrap();
            Broker::new(Default::default(), index, 2, region, Random::new(1), now)
        });
        let mut cids = [1, 2];
        let mut open = |broker: &mut Broker, index: usize| {
            let slot = broker.open(cids[index], PEER, now);
            cids[index] += 2;
            broker.handle_bytes(slot, b"CONNECT {\"verbose\":false}\r\nSUB a q 1\r\n", now);
            slot
        };
        for _ in 0..elsewhere {
            open(&mut loops[0], 0);
        }
        let members: Vec<_> = (0..6).map(|_| open(&mut loops[1], 1)).collect();
        let [first, second] = &mut loops;
        first.end_turn();
        second.handle_mail(0, &first.take_mail(1, Batch::default()), now);
        // The first one wants a single message, the others are spread over the table.
        second.handle_bytes(members[0], b"UNSUB 1 1\r\n", now);
        let message = Message {
            subject: Padded::exact(b"a"),
            tail: Padded::exact(b"1\r\nx\r\n"),
            reply_bytes: 0,
            header_bytes: None,
            body_bytes: 1,
            sid: b"",
        };
        for _ in 0..MESSAGES {
            let publisher = PublisherRef {
                slot: 0,
                cid: 1,
                carrier: false,
                no_echo: false,
            };
            let envelope = Envelope {
                plain: false,
                hops: 0,
                elsewhere: Default::default(),
                publisher,
            };
            let mut batch = Batch::default();
            batch.push_message(&message, None, envelope, [&b"q"[..]].into_iter());
            second.handle_mail(0, &batch, now);
        }
        let got = |member: &u32| second.client(*member).unwrap().traffic.messages_out as usize;
        assert_eq!(got(&members[0]), 1);
        let each = (MESSAGES - 1) / 5;
        for member in &members[1..] {
            let count = got(member);
            assert!(
                (each - 150..each + 150).contains(&count),
                "{count} of {each}"
            );
        }
        assert_eq!(members.iter().map(got).sum::<usize>(), MESSAGES);
    }
}
