//! A table that is larger than the caches.

use crate::broker::propagate::tests::{broker, route, subscriptions, written};
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
