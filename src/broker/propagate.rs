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

use super::client::Phase;
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
/// in about 30). Tests and fuzzing have few subscriptions and want batches nevertheless.
const BATCH_BYTES: usize = if cfg!(any(test, fuzzing)) {
    512
} else {
    32 << 10
};

/// Numbers of subscriptions looked at for one batch: after many have ended, most mean nothing.
const BATCH_NUMBERS_MAX: u32 = 1 << 18;

/// Loops other than that of the routes do not hear of the end of a route; so long they take it to be
/// still behind after its last batch.
const CATCH_UP_TIME_MAX: Duration = Duration::from_secs(30);

/// Subscriptions a reply may come to, of those told before a request.
const REPLY_SUBSCRIPTIONS_MAX: usize = 16;

/// Members of queue groups that have left and are remembered: more than usually leave within the time a
/// message is under way; of a burst the latest.
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
        let sid = &text[colon + 1..];
        if sid.is_empty() {
            return None;
        }
        let cid = number(&text[..colon])?;
        Some(Self { cid, sid })
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
                .push_route_lines(None, false, None, &line);
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
        let slots = self.routes.registered.iter().copied();
        let overflowed: Vec<Slot> = slots.filter(|slot| self.overflows(*slot)).collect();
        for slot in overflowed {
            self.cut_off_told(slot);
        }
    }

    /// What a route is told counts as messages do: it may take little of it at a time, without end. With few such lines it is
    /// messages that wait, of which one may be larger than the bound: those who send them mind it.
    fn overflows(&self, slot: Slot) -> bool {
        let limits = self.receivers.limits(slot);
        let client = &self.receivers.clients[slot as usize];
        client.outbox.pending() > limits.pending_bytes_max
            && client.own_lines > limits.high_water_bytes
    }

    pub(super) fn bound_what_is_told(&mut self, slot: Slot) {
        if self.overflows(slot) {
            self.cut_off_told(slot);
        }
    }

    #[cold]
    fn cut_off_told(&mut self, slot: Slot) {
        let max = self.receivers.limits(slot).pending_bytes_max;
        let cause = format!("more than max_pending ({max}) with SUB, UNSUB and PONG lines");
        self.cut_off(slot, cause);
    }

    /// Lines from any loop, for one route; there may be more of them. `first`: of all that this loop tells it, which counts
    /// where there is nothing to tell, too.
    pub(super) fn pass_to_route(
        &mut self,
        route: RouteRef,
        loop_index: u16,
        first: bool,
        next: Option<u32>,
        lines: &[u8],
    ) {
        let RouteRef { slot, cid } = route;
        let client = self.client(slot);
        if client.is_none_or(|client| client.cid != cid || client.phase == Phase::Closing) {
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
        if first && loop_index != self.loop_index {
            self.loop_has_begun(slot);
        }
        self.bound_what_is_told(slot);
    }

    /// A route was registered: it is to hear of every subscription there is, on all loops.
    pub(super) fn tell_new_route(&mut self, slot: Slot) {
        let route = self.route_ref(slot);
        self.route(slot).silent_loops = self.peers.len() - 1;
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
            None | Some(Asked::Sign) => return,
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
        self.hand_over(route, from == 0, next, &lines);
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
        // One that is cut off leaves the list.
        for (route, _) in self.catching_up.clone() {
            self.hand_over(route, false, None, &lines);
        }
    }

    fn hand_over(&mut self, route: RouteRef, first: bool, next: Option<u32>, lines: &[u8]) {
        if self.loop_index == ROUTE_LOOP {
            self.pass_to_route(route, ROUTE_LOOP, first, next, lines);
        } else if first || !lines.is_empty() || next.is_some() {
            self.outgoing(ROUTE_LOOP)
                .push_route_lines(Some(route), first, next, lines);
        }
    }

    /// Another loop has begun to tell a route its subscriptions.
    fn loop_has_begun(&mut self, slot: Slot) {
        let record = self.route(slot);
        record.silent_loops -= 1;
        if record.silent_loops == 0 {
            for _ in 0..std::mem::take(&mut record.pongs_owed) {
                self.append(slot, encode::PONG);
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
