//! A broker with routes, without any connection.

use super::*;
use crate::broker::auth::Secret;
use crate::broker::propagate::tests::written;
use crate::broker::settings::{ClusterSettings, Settings};
use crate::util::random::Random;
use crate::util::region::RegionMut;
use std::sync::Arc;

const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

/// A broker with the server id "own".
fn broker(now: Instant) -> Broker {
    let mut cluster = ClusterSettings::default();
    cluster.info.server_id = "own".into();
    let settings = Settings {
        cluster: Some(cluster),
        ..Settings::default()
    };
    let region = RegionMut::map(1 << 20).unwrap();
    Broker::new(Arc::new(settings), 0, 1, region, Random::new(1), now)
}

fn client(broker: &mut Broker, cid: u64, subscribe: &str, now: Instant) -> Slot {
    let slot = broker.open(cid, PEER, now);
    broker.handle_bytes(slot, b"CONNECT {\"verbose\":false}\r\n", now);
    broker.handle_bytes(slot, subscribe.as_bytes(), now);
    slot
}

/// A route to the server "another", which is one of us.
fn route(broker: &mut Broker, cid: u64, dialled: bool, now: Instant) -> Slot {
    let dial = Dial {
        url: RouteUrl::parse("nats://127.0.0.1:2").unwrap(),
        explicit: true,
        wait: Duration::ZERO,
        retries: 0,
    };
    let slot = broker.open_route(cid, PEER, dialled.then_some(dial), now);
    let info =
        b"INFO {\"server_id\":\"another\",\"host\":\"0.0.0.0\",\"port\":6222,\"headers\":true}\r\n";
    broker.handle_bytes(slot, info, now);
    slot
}

fn messages(broker: &Broker, slot: Slot) -> u64 {
    broker.client(slot).unwrap().traffic.messages_out
}

#[test]
fn a_message_for_a_member_that_left_stays_with_its_group() {
    let now = Instant::now();
    let mut broker = broker(now);
    let route = route(&mut broker, 9, false, now);
    let other_group = client(&mut broker, 1, "SUB x r 1\r\n", now);
    let same_group = client(&mut broker, 2, "SUB x q 1\r\n", now);
    let leaver = client(&mut broker, 3, "SUB x q 1\r\n", now);
    broker.end_turn();
    broker.handle_gone(leaver, now);
    broker.handle_bytes(route, b"MSG x QRSID:3:1 0\r\n\r\n", now);
    assert_eq!(messages(&broker, same_group), 1);
    broker.handle_gone(same_group, now);
    broker.handle_bytes(route, b"MSG x QRSID:2:1 0\r\n\r\n", now);
    assert_eq!(messages(&broker, other_group), 0);
}

#[test]
fn a_password_without_a_user_is_shown_to_the_other_server() {
    let now = Instant::now();
    let mut broker = broker(now);
    let dial = Dial {
        url: RouteUrl::parse("nats-route://:p@127.0.0.1:2").unwrap(),
        explicit: true,
        wait: Duration::ZERO,
        retries: 0,
    };
    let slot = broker.open_route(1, PEER, Some(dial), now);
    let shown = written(&mut broker, slot, now);
    assert!(shown.contains(r#""user":"","pass":"p""#), "{shown}");
}

#[test]
fn only_dials_that_crossed_replace_a_route() {
    for (age, stays) in [(0, 1), (5, 0)] {
        let now = Instant::now();
        let mut broker = broker(now);
        // Ours would stay if "own" were smaller than "another".
        let routes = [true, false].map(|dialled| {
            let at = now + Duration::from_secs(if dialled { 0 } else { age });
            route(&mut broker, if dialled { 1 } else { 2 }, dialled, at)
        });
        assert_eq!(broker.route_slots(), [routes[stays]], "{age} s apart");
    }
}

#[test]
fn a_new_password_is_for_the_routes_there_are() {
    let now = Instant::now();
    // Whom we dialled has nothing to show.
    for dialled in [false, true] {
        let mut broker = broker(now);
        let slot = route(&mut broker, 1, dialled, now);
        let mut settings = Settings::clone(&broker.settings);
        broker.reconfigure(Arc::new(settings.clone()), now);
        assert_eq!(broker.route_slots(), [slot]);
        let auth = &mut settings.cluster.as_mut().unwrap().auth;
        auth.single = Some(("user".into(), Secret::new("password")));
        broker.reconfigure(Arc::new(settings), now);
        assert_eq!(!broker.route_slots().is_empty(), dialled);
    }
}

#[test]
fn a_route_that_was_given_up_is_dialled_again() {
    let now = Instant::now();
    for gone in [false, true] {
        let mut broker = broker(now);
        let slot = route(&mut broker, 1, false, now);
        match gone {
            true => broker.handle_gone(slot, now),
            false => (0..4).for_each(|turn| {
                broker.handle_timeouts(now + turn * broker.settings.ping_interval);
            }),
        }
        assert!(broker.route_slots().is_empty());
        let mut effects = Vec::new();
        broker.take_effects(&mut effects);
        let dialled = effects.iter().find_map(|effect| match effect {
            Effect::Dial(dial) => Some(dial.url.address()),
            _ => None,
        });
        let expected = (!gone).then(|| "127.0.0.1:6222".to_owned());
        assert_eq!(dialled, expected);
    }
}
