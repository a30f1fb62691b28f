//! What other servers are told of our interest, and how their messages name our subscriptions.
//!
//! The server protocol of gnatsd 1.1.0 (server/route.go): every subscription of a client goes to every
//! route as `SUB subject [queue] RSID:cid:sid` (`QRSID` for members of queue groups), and its end as
//! `UNSUB`. All routes live on loop 0. The other loops send it the lines their clients cause, in one
//! sequence with their messages, so that a route hears of a reply subject before the request.
//!
//! A SUB waits for the next message or the end of the turn: what has ended by then was never told.
//!
//! The cid says which loop a client lives on (`loop_of`), so loop 0 need not know the clients of the
//! others.

use super::mail::RouteRef;
use super::subs::{Subscription, Target};
use super::{Broker, Slot};
use crate::wire::args::number;
use std::collections::VecDeque;
use std::io::Write;

pub(super) const QUEUE_SID_PREFIX: &[u8] = b"QRSID";
const PLAIN_SID_PREFIX: &[u8] = b"RSID";

/// The loop on which routes live.
pub const ROUTE_LOOP: u16 = 0;

/// Lines under way to one route are handed over in pieces of about this size.
const LINES_BYTES: usize = 64 << 10;

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
pub(super) struct Departed(VecDeque<Member>);

struct Member {
    /// `cid:sid`
    address: Box<[u8]>,
    group: Box<[u8]>,
}

impl Departed {
    fn push(&mut self, address: &[u8], group: &[u8]) {
        if self.0.len() == DEPARTED_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Member {
            address: address.into(),
            group: group.into(),
        });
    }

    pub fn group_of(&self, address: &[u8]) -> Option<&[u8]> {
        let mut latest_first = self.0.iter().rev();
        let member = latest_first.find(|member| *member.address == *address)?;
        Some(&member.group)
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
            self.pass_to_routes(None, &line);
        } else {
            self.outgoing(ROUTE_LOOP).push_route_lines(None, &line);
        }
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

    /// Lines from any loop, for one route or for all.
    pub(super) fn pass_to_routes(&mut self, route: Option<RouteRef>, lines: &[u8]) {
        match route {
            Some(RouteRef { slot, cid }) => {
                let known = self.client(slot).is_some_and(|client| client.cid == cid);
                if known {
                    self.append(slot, lines);
                }
            }
            None => {
                for index in 0..self.routes.registered.len() {
                    self.append(self.routes.registered[index], lines);
                }
            }
        }
    }

    /// A route was registered: it hears of every subscription there is, on all loops.
    pub(super) fn tell_new_route(&mut self, slot: Slot) {
        let cid = self.receivers.clients[slot as usize].cid;
        let route = RouteRef { slot, cid };
        self.tell_one_route(route);
        for index in 0..self.peers.len() as u16 {
            if index != self.loop_index {
                self.outgoing(index).push_interest_wanted(route);
            }
        }
    }

    /// All subscriptions of this loop's clients, to one route.
    pub(super) fn tell_one_route(&mut self, route: RouteRef) {
        let mut lines = Vec::new();
        let slots: Vec<Slot> = self.clients().map(|(slot, _)| slot).collect();
        for slot in slots {
            let client = &self.receivers.clients[slot as usize];
            for id in &client.subscriptions {
                let subscription = &self.receivers.subscriptions[*id as usize];
                if matches!(subscription.target(), Target::Client(_)) {
                    self.put_line(&mut lines, *id, client.cid, News::Added);
                }
            }
            if lines.len() >= LINES_BYTES {
                self.hand_over(route, &lines);
                lines.clear();
            }
        }
        if !lines.is_empty() {
            self.hand_over(route, &lines);
        }
    }

    fn hand_over(&mut self, route: RouteRef, lines: &[u8]) {
        if self.loop_index == ROUTE_LOOP {
            self.pass_to_routes(Some(route), lines);
        } else {
            self.outgoing(ROUTE_LOOP)
                .push_route_lines(Some(route), lines);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::{ClusterSettings, Settings};
    use super::*;
    use crate::util::random::Random;
    use crate::util::region::RegionMut;
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::time::Instant;

    /// A broker with a client (cid 1) and a registered route, and what the route is told when the
    /// client has said `bytes` in one turn.
    fn told(bytes: &str) -> String {
        let settings = Settings {
            cluster: Some(ClusterSettings::default()),
            ..Settings::default()
        };
        let (region, now) = (RegionMut::map(1 << 20).unwrap(), Instant::now());
        let mut broker = Broker::new(Arc::new(settings), 0, 1, region, Random::new(1), now);
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let (client, route) = (
            broker.open(1, peer, now),
            broker.open_route(2, peer, None, now),
        );
        broker.handle_bytes(client, b"CONNECT {\"verbose\":false}\r\n", now);
        broker.handle_bytes(
            route,
            b"INFO {\"server_id\":\"other\"}\r\nSUB > RSID:1:1\r\n",
            now,
        );
        let greeting = broker.client(route).unwrap().outbox.pending();
        broker.handle_written(route, greeting, now);
        broker.handle_bytes(client, bytes.as_bytes(), now);
        broker.end_turn();
        let mut pieces = Vec::new();
        broker.start_write(route, usize::MAX, usize::MAX, &mut pieces);
        let bytes = pieces.iter().map(|piece| match piece {
            crate::broker::outbox::Piece::Region { offset, len } => broker.output(*offset, *len),
            crate::broker::outbox::Piece::Shared(bytes) => bytes,
        });
        String::from_utf8(bytes.collect::<Vec<_>>().concat()).unwrap()
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
        assert_eq!(told(&lines).lines().count(), 1000);
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
