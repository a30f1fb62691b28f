//! What monitoring sees of a broker: values copied out, a bounded number at a time, so that no
//! question delays the loop.

use super::client::{Client, Phase, TlsInfo, Traffic};
use super::subs::Target;
use super::{Broker, Slot};
use crate::wire::parser::Kind;
use std::net::SocketAddr;
use std::time::{Instant, SystemTime};

/// One connection at one moment.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    pub cid: u64,
    pub peer: SocketAddr,
    pub started_at: SystemTime,
    /// Last CONNECT, SUB, UNSUB, or message in or out.
    pub active_at: Option<SystemTime>,
    pub pending_bytes: usize,
    pub traffic: Traffic,
    pub subscriptions: usize,
    pub name: Box<str>,
    pub lang: Box<str>,
    pub version: Box<str>,
    pub user: Box<str>,
    pub tls: Option<TlsInfo>,
    /// Only for routes that are registered.
    pub route: Option<RouteInfo>,
}

#[derive(Clone, Debug)]
pub struct RouteInfo {
    pub remote_id: String,
    pub did_solicit: bool,
    pub is_configured: bool,
}

/// A part of a list, and where the next one begins.
#[derive(Debug)]
pub struct Page<T> {
    pub items: Vec<T>,
    pub next: Option<u32>,
}

impl Broker {
    /// Connections from a slot on: clients, or registered routes. Looks at `count` slots at most.
    pub fn connections(
        &self,
        kind: Kind,
        from: Slot,
        count: u32,
        now: Instant,
    ) -> Page<ConnectionInfo> {
        let wall = SystemTime::now();
        let end = from.saturating_add(count);
        let clients = &self.receivers.clients;
        let items = (from..end.min(clients.capacity() as u32))
            .filter_map(|slot| clients.get(slot as usize))
            .filter(|client| client.kind == kind && client.phase == Phase::Open)
            .filter(|client| kind == Kind::Client || is_registered(client))
            .map(|client| info(client, now, wall))
            .collect();
        let next = ((end as usize) < clients.capacity()).then_some(end);
        Page { items, next }
    }

    /// Subjects of subscriptions with the cid they belong to, from a record on.
    pub fn subjects(&self, from: u32, count: u32) -> Page<(u64, Box<[u8]>)> {
        let end = from.saturating_add(count);
        let subscriptions = &self.receivers.subscriptions;
        let items = (from..end.min(subscriptions.capacity() as u32))
            .filter_map(|id| subscriptions.get(id as usize))
            .filter_map(|subscription| match subscription.target() {
                Target::Client(slot) | Target::Route(slot) => {
                    let cid = self.receivers.clients[slot as usize].cid;
                    let subject = self.sublist.pattern(subscription.place.interest);
                    Some((cid, subject.into()))
                }
                Target::Loop(_) => None,
            })
            .collect();
        let next = ((end as usize) < subscriptions.capacity()).then_some(end);
        Page { items, next }
    }
}

/// What the simulation compares with the truth.
#[cfg(test)]
impl Broker {
    /// What other servers want to hear: by server id, the SUB lines it amounts to.
    pub fn interest_of_routes(&self) -> std::collections::BTreeMap<String, Vec<String>> {
        let interest = |slot: &Slot| {
            let client = &self.receivers.clients[*slot as usize];
            let info = client.route.as_ref().and_then(|route| route.info.as_ref());
            let lines = client.subscriptions.iter().map(|id| self.line(*id));
            let mut lines: Vec<String> = lines.collect();
            lines.sort();
            (
                info.map_or_else(String::new, |info| info.server_id.clone()),
                lines,
            )
        };
        self.route_slots().iter().map(interest).collect()
    }

    fn line(&self, id: u32) -> String {
        let subscription = &self.receivers.subscriptions[id as usize];
        let subject = self.sublist.pattern(subscription.place.interest);
        let queue = subscription
            .queue
            .map_or(&b""[..], |queue| self.sublist.queue_name(queue));
        let words = [subject, queue, self.sid(id)];
        words
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .join(" ")
    }
}

fn is_registered(client: &Client) -> bool {
    client
        .route
        .as_ref()
        .is_some_and(|route| route.info.is_some())
}

fn info(client: &Client, now: Instant, wall: SystemTime) -> ConnectionInfo {
    let said = client.connect.as_deref();
    let route = client.route.as_deref().and_then(|route| {
        let remote_id = route.info.as_ref()?.server_id.clone();
        let solicited = route.solicited.as_ref();
        Some(RouteInfo {
            remote_id,
            did_solicit: solicited.is_some(),
            is_configured: solicited.is_some_and(|solicited| solicited.explicit),
        })
    });
    ConnectionInfo {
        cid: client.cid,
        peer: client.peer,
        started_at: client.started_at,
        active_at: client
            .active_at
            .and_then(|at| wall.checked_sub(now.saturating_duration_since(at))),
        pending_bytes: client.outbox.pending(),
        traffic: client.traffic,
        subscriptions: client.subscriptions.len(),
        name: said.map_or_else(Default::default, |connect| connect.name.clone()),
        lang: said.map_or_else(Default::default, |connect| connect.lang.clone()),
        version: said.map_or_else(Default::default, |connect| connect.version.clone()),
        user: said.map_or_else(Default::default, |connect| connect.user.clone()),
        tls: client.tls.as_deref().cloned(),
        route,
    }
}

#[cfg(test)]
mod tests {
    use crate::broker::propagate::tests::{broker, written};
    use std::time::{Duration, Instant};

    #[test]
    fn messages_and_subscriptions_are_activity_and_nothing_else() {
        let start = Instant::now();
        let (mut broker, client) = broker(start);
        let mut now = start;
        let mut is_active = |bytes: &[u8]| {
            now += Duration::from_secs(1);
            broker.handle_bytes(client, bytes, now);
            let said = broker.client(client).unwrap().active_at;
            now += Duration::from_secs(1);
            written(&mut broker, client, now);
            let written = broker.client(client).unwrap().active_at;
            (
                said == Some(now - Duration::from_secs(1)),
                written == Some(now),
            )
        };
        assert_eq!(is_active(b"PING\r\n"), (false, false));
        assert_eq!(is_active(b"PONG\r\n"), (false, false));
        assert_eq!(is_active(b"SUB foo 1\r\n"), (true, false));
        assert_eq!(is_active(b"PUB bar 0\r\n\r\n"), (true, false));
        assert_eq!(is_active(b"PUB foo 0\r\n\r\n"), (true, true));
        assert_eq!(is_active(b"PING\r\n"), (false, false));
        assert_eq!(is_active(b"UNSUB 7\r\n"), (true, false));
    }
}
