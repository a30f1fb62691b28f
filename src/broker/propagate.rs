//! What other servers are told of our interest, and how their messages name our subscriptions.
//!
//! The server protocol of gnatsd 1.1.0 (server/route.go): every subscription of a client goes to every
//! route as `SUB subject [queue] RSID:cid:sid` (`QRSID` for members of queue groups), and its end as
//! `UNSUB`. All routes live on loop 0. The other loops send it the lines their clients cause, in one
//! sequence with their messages, so that a route hears of a reply subject before the request.
//!
//! A SUB waits for the next message or the end of the turn: what has ended by then was never told.
//!
//! A new route is told what there is in batches, each when a PONG says that the other side has taken in the
//! one before: however many subscriptions there are, a message on its way to that server waits for one
//! batch per loop at most. A subscription a reply may come to is told before the request, whatever
//! batch it is in; being told of one twice is what other servers are used to.
//!
//! The cid says which loop a client lives on (`loop_of`), so loop 0 need not know the clients of the
//! others.

use super::mail::RouteRef;
use super::route::{Asked, Rest};
use super::subs::{Subscription, Target};
use super::{Broker, Slot};
use crate::wire::args::number;
use crate::wire::encode;
use std::collections::VecDeque;
use std::io::Write;
use std::time::Duration;

pub(super) const QUEUE_SID_PREFIX: &[u8] = b"QRSID";
const PLAIN_SID_PREFIX: &[u8] = b"RSID";

/// The loop on which routes live.
pub const ROUTE_LOOP: u16 = 0;

/// A batch for a new route: some 1000 lines, which a server takes in within a millisecond (gnatsd 1.1.0
/// in about 30). Tests have few subscriptions and want batches nevertheless.
const BATCH_BYTES: usize = if cfg!(test) { 512 } else { 32 << 10 };

/// Numbers of subscriptions looked at for one batch: after many have ended, most mean nothing.
const BATCH_NUMBERS_MAX: u32 = 1 << 18;

/// Loops other than that of the routes do not hear of the end of a route; so long they take it to be
/// still behind after its last batch.
const CATCH_UP_TIME_MAX: Duration = Duration::from_secs(30);

/// Subscriptions a reply may come to, of those told before a request.
const REPLY_SUBSCRIPTIONS_MAX: usize = 16;

/// Members of queue groups that have left and are remembered: far more than leave within the time a
/// message is under way.
const DEPARTED_MAX: usize = 1024;

/// New subscriptions the routes have not heard of, at most: each that ends is looked for among them.
const UNTOLD_MAX: usize = 128;

/// What happens to a subscription of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    Added,
    /// UNSUB with max.
    Limited(u64),
    /// About to be removed, but still in the table.
    Removing,
}

/// `cid:sid`: one subscription of one client of this server.
pub(super) struct Address<'a> {
    pub cid: u64,
    pub sid: &'a [u8],
}

impl<'a> Address<'a> {
    /// A sid may have colons of its own (the original gets those wrong).
    pub fn parse(text: &'a [u8]) -> Option<Self> {
        let colon = text.iter().position(|byte| *byte == b':')?;
        Some(Self {
            cid: number(&text[..colon])?,
            sid: &text[colon + 1..],
        })
    }
}

/// The groups of members that have left: messages may be on their way to them, which name the member
/// and not the group.
#[derive(Default)]
pub(super) struct Departed(VecDeque<Departure>);

struct Departure {
    /// `cid:sid`
    address: Box<[u8]>,
    group: Box<[u8]>,
}

impl Departed {
    fn push(&mut self, address: &[u8], group: &[u8]) {
        if self.0.len() == DEPARTED_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Departure {
            address: address.into(),
            group: group.into(),
        });
    }

    pub fn group_of(&self, address: &[u8]) -> Option<&[u8]> {
        let mut latest_first = self.0.iter().rev();
        let latest = latest_first.find(|departure| *departure.address == *address)?;
        Some(&latest.group)
    }
}

/// Which loop a connection is on.
pub fn loop_of(cid: u64, loops: u16) -> u16 {
    (cid.wrapping_sub(1) % u64::from(loops)) as u16
}

/// The first cid after `last` (0: none yet) that names this loop. Connections are spread evenly, so
/// few numbers are left out.
pub fn next_cid(last: u64, loop_index: u16, loops: u16) -> u64 {
    let loops = u64::from(loops);
    let ahead = (u64::from(loop_index) + loops - last % loops) % loops;
    last + 1 + ahead
}

impl Broker {
    pub(super) fn loop_of(&self, cid: u64) -> u16 {
        loop_of(cid, self.peers.len() as u16)
    }

    /// The connection of this loop with this cid. Known only where there are routes to ask.
    pub(super) fn slot_of(&self, cid: u64) -> Option<Slot> {
        self.slots.get(&cid).copied()
    }

    /// Tells every route what happens to a subscription, if that is a client's.
    pub(super) fn tell_routes(&mut self, id: u32, news: News) {
        let target = self.receivers.subscriptions[id as usize].target();
        if self.settings.cluster.is_none() || !matches!(target, Target::Client(_)) {
            return;
        }
        match news {
            News::Added if self.untold.len() < UNTOLD_MAX => return self.untold.push(id),
            News::Removing if self.forget_untold(id) => return,
            News::Added | News::Limited(_) => self.tell_untold(),
            News::Removing => {}
        }
        self.tell_now(id, news);
    }

    /// Whether routes have not heard of this subscription yet; now they never will.
    fn forget_untold(&mut self, id: u32) -> bool {
        let place = self.untold.iter().rposition(|untold| *untold == id);
        place.map(|place| self.untold.remove(place)).is_some()
    }

    /// What came up and is still there goes to the routes, before any message that may depend on it.
    #[cold]
    pub(super) fn tell_untold(&mut self) {
        let mut untold = std::mem::take(&mut self.untold);
        for id in untold.drain(..) {
            self.tell_now(id, News::Added);
        }
        self.untold = untold;
    }

    fn tell_now(&mut self, id: u32, news: News) {
        let subscription = &self.receivers.subscriptions[id as usize];
        let Target::Client(slot) = subscription.target() else {
            return;
        };
        if self.loop_index == ROUTE_LOOP && self.routes.registered.is_empty() {
            return;
        }
        let cid = self.receivers.clients[slot as usize].cid;
        if news == News::Removing
            && let Some(group) = self.queue_of(subscription)
        {
            let address = [cid.to_string().as_bytes(), b":", self.sid(id)].concat();
            let group = group.to_vec();
            self.departed.push(&address, &group);
        }
        let mut line = std::mem::take(&mut self.route_line);
        line.clear();
        self.put_line(&mut line, id, cid, news);
        if self.loop_index == ROUTE_LOOP {
            self.pass_to_routes(&line);
        } else {
            self.outgoing(ROUTE_LOOP)
                .push_route_lines(None, None, &line);
        }
        self.note_told(line.len());
        self.route_line = line;
    }

    fn put_line(&self, line: &mut Vec<u8>, id: u32, cid: u64, news: News) {
        let subscription = &self.receivers.subscriptions[id as usize];
        line.extend_from_slice(if news == News::Added {
            b"SUB "
        } else {
            b"UNSUB "
        });
        if news == News::Added {
            line.extend_from_slice(self.sublist.pattern(subscription.place.interest));
            line.push(b' ');
            line.extend_from_slice(self.queue_of(subscription).unwrap_or_default());
            line.push(b' ');
        }
        line.extend_from_slice(match subscription.queue {
            Some(_) => QUEUE_SID_PREFIX,
            None => PLAIN_SID_PREFIX,
        });
        // A Vec takes whatever is written to it.
        let _ = write!(line, ":{cid}:");
        line.extend_from_slice(self.sid(id));
        if let News::Limited(max) = news {
            let _ = write!(line, " {max}");
        }
        line.extend_from_slice(b"\r\n");
    }

    fn queue_of(&self, subscription: &Subscription) -> Option<&[u8]> {
        subscription
            .queue
            .map(|queue| self.sublist.queue_name(queue))
    }

    /// Lines from any loop, for all routes.
    pub(super) fn pass_to_routes(&mut self, lines: &[u8]) {
        for index in 0..self.routes.registered.len() {
            self.append(self.routes.registered[index], lines);
        }
    }

    /// Lines from any loop, for one route; there may be more of them.
    pub(super) fn pass_to_route(
        &mut self,
        route: RouteRef,
        loop_index: u16,
        next: Option<u32>,
        lines: &[u8],
    ) {
        let RouteRef { slot, cid } = route;
        if self.client(slot).is_none_or(|client| client.cid != cid) {
            return;
        }
        if !lines.is_empty() {
            self.append(slot, lines);
        }
        if let Some(from) = next {
            self.append(slot, encode::PING);
            let rest = Asked::Rest(Rest { loop_index, from });
            self.route(slot).asked.push_back(rest);
        }
    }

    /// A route was registered: it is to hear of every subscription there is, on all loops.
    pub(super) fn tell_new_route(&mut self, slot: Slot) {
        let route = self.route_ref(slot);
        for index in 0..self.peers.len() as u16 {
            if index != self.loop_index {
                self.outgoing(index).push_interest_wanted(route, 0);
            }
        }
        self.tell_batch(route, 0);
    }

    /// A route has taken in what it was told so far.
    pub(super) fn route_has_taken_in(&mut self, slot: Slot) {
        let Rest { loop_index, from } = match self.route(slot).asked.pop_front() {
            None => return,
            Some(Asked::Mark(mark)) => return self.mark_answered(mark),
            Some(Asked::Rest(rest)) => rest,
        };
        let route = self.route_ref(slot);
        if loop_index == self.loop_index {
            self.tell_batch(route, from);
        } else {
            self.outgoing(loop_index).push_interest_wanted(route, from);
        }
    }

    fn route_ref(&self, slot: Slot) -> RouteRef {
        let cid = self.receivers.clients[slot as usize].cid;
        RouteRef { slot, cid }
    }

    /// A batch of the subscriptions of this loop's clients, from this number on, to one route.
    pub(super) fn tell_batch(&mut self, route: RouteRef, from: u32) {
        // What is told here must not count as untold any more.
        self.tell_untold();
        let mut lines = Vec::new();
        let next = self.put_batch(&mut lines, from);
        self.catching_up.retain(|(other, _)| *other != route);
        if next.is_some() {
            let until = self.now + CATCH_UP_TIME_MAX;
            self.catching_up.push((route, until));
        }
        self.hand_over(route, next, &lines);
    }

    /// Returns where to go on. Numbers are given to others when a subscription ends, but whoever comes
    /// is told by itself.
    fn put_batch(&self, lines: &mut Vec<u8>, from: u32) -> Option<u32> {
        let subscriptions = &self.receivers.subscriptions;
        for id in from..subscriptions.capacity() as u32 {
            if lines.len() >= BATCH_BYTES || id - from >= BATCH_NUMBERS_MAX {
                return Some(id);
            }
            let target = subscriptions.get(id as usize).map(Subscription::target);
            if let Some(Target::Client(slot)) = target {
                let cid = self.receivers.clients[slot as usize].cid;
                self.put_line(lines, id, cid, News::Added);
            }
        }
        None
    }

    /// Routes that are behind hear of our subscriptions to this subject, on which an answer to the next
    /// message may come.
    #[cold]
    pub(super) fn tell_reply_subscriptions(&mut self, reply: &[u8]) {
        let now = self.now;
        self.catching_up.retain(|(_, until)| *until > now);
        let mut matched = Vec::new();
        self.sublist.matches(reply, &mut matched);
        let interests = matched.iter().map(|id| self.sublist.interest(*id));
        let ids = interests.flat_map(|interest| {
            let groups = interest.groups().iter();
            let members =
                groups.flat_map(|group| (0..group.len()).filter_map(|at| group.member(at)));
            interest.plain().iter().copied().chain(members)
        });
        let mut lines = Vec::new();
        for id in ids.take(REPLY_SUBSCRIPTIONS_MAX) {
            if let Target::Client(slot) = self.receivers.subscriptions[id as usize].target() {
                let cid = self.receivers.clients[slot as usize].cid;
                self.put_line(&mut lines, id, cid, News::Added);
            }
        }
        for index in 0..self.catching_up.len() {
            let (route, _) = self.catching_up[index];
            self.hand_over(route, None, &lines);
        }
    }

    fn hand_over(&mut self, route: RouteRef, next: Option<u32>, lines: &[u8]) {
        if self.loop_index == ROUTE_LOOP {
            self.pass_to_route(route, ROUTE_LOOP, next, lines);
        } else if !lines.is_empty() || next.is_some() {
            self.outgoing(ROUTE_LOOP)
                .push_route_lines(Some(route), next, lines);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pace::PATIENCE;
    use super::super::settings::{ClusterSettings, Settings};
    use super::*;
    use crate::util::random::Random;
    use crate::util::region::RegionMut;
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::time::Instant;

    const PEER: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

    /// A broker with a client, whose cid is 1.
    fn broker(now: Instant) -> (Broker, Slot) {
        let settings = Settings {
            cluster: Some(ClusterSettings::default()),
            ..Settings::default()
        };
        let region = RegionMut::map(1 << 20).unwrap();
        let mut broker = Broker::new(Arc::new(settings), 0, 1, region, Random::new(1), now);
        let client = broker.open(1, PEER, now);
        broker.handle_bytes(client, b"CONNECT {\"verbose\":false}\r\n", now);
        (broker, client)
    }

    fn route(broker: &mut Broker, cid: u64, now: Instant) -> Slot {
        let route = broker.open_route(cid, PEER, None, now);
        let greeting = broker.client(route).unwrap().outbox.pending();
        broker.handle_written(route, greeting, now);
        let hello = b"INFO {\"server_id\":\"other\"}\r\nSUB > RSID:1:1\r\n";
        broker.handle_bytes(route, hello, now);
        route
    }

    /// What is pending for a connection, which is taken.
    fn written(broker: &mut Broker, slot: Slot, now: Instant) -> String {
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

    fn subscriptions(count: usize) -> String {
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
        broker.pass_to_route(stale, 0, Some(1), b"SUB x  RSID:1:1\r\n");
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
            let mut expected: Vec<String> =
                (0..count).map(|n| format!("UNSUB RSID:1:{n}")).collect();
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
        let other = broker.open(3, PEER, now);
        broker.handle_bytes(other, b"SUB x q 1\r\nSUB x r 2\r\n", now);
        written(&mut broker, other, now);
        broker.handle_gone(client, now);
        broker.release(client);
        assert_eq!(broker.subscription_count(), 100 - 16 + 2 + 1);
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
        assert_eq!(parsed(b"5:"), Some((5, &b""[..])));
        assert_eq!(parsed(b"51"), None);
        assert_eq!(parsed(b":1"), None);
    }
}
