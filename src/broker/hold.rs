//! Back-pressure: publishers that outrun receivers are held back by not being read from.
//!
//! ```text
//!   receiver:   below high water --append--> above --hold()--> holding publishers
//!                     ^                                  |            |
//!                     |  drained below low water         |            | no progress, or held too long
//!                     '----------------------------------'            v
//!                     '------------------------------------------ stuck: holds nobody
//! ```
//!
//! A client that far behind with lines of our own is not read from either: answers to its
//! PINGs, say, must not pile up without bound. Messages of others do not count there: its end may do the same, and each would
//! wait for the other.
//!
//! A receiver alone behind among others that keep up may hold its publisher only for a small part
//! of each second: the others lose a few percent at most, and it is cut off when its backlog
//! reaches the bound. That part is one for all receivers of a loop, and of all loops where anybody is behind each has its share
//! of it, or fifty that are slow at different times would hold it for most of the second. When nearly all receivers of a publisher are
//! behind, the publisher is simply too fast, and is held for as long as they make progress. Both may be
//! at one receiver at the same time; each publisher waits by its own terms.
//!
//! A message for a queue group has one receiver, which says nothing of how the group keeps up. So where that one is behind,
//! the members of its group on this loop are looked at. Unless nearly all of them are behind it is alone among others, as
//! above. Nearly all are where the publisher is too fast for the group: each gets as much as the others, and they come to
//! their marks at about the same time. A route that is slow is not judged so: cutting it off would cost everybody on the
//! other server.
//!
//! Of the receivers of other loops a loop knows little: once a turn each tells whether any of its receivers is behind, which is
//! whoever was above its mark and has not come down to low water since, and whether nearly all were of the latest message for
//! one of them. To others a loop is one receiver, which is behind in the latter case. For a queue group it counts as many as it
//! has members; where any receiver is behind, they are taken to be like those here. What is told may be a turn old: when all are
//! too slow, those that come to their marks first are held to be alone until then.
//!
//! A publisher that carries messages of many, a route or the streaming engine, would be held from all others by one receiver
//! that is slow: most of its messages have one. So it is not, until that one is well on the way to being cut off.
//!
//! A part of this process, the streaming engine, is another matter:
//!
//! - It is never cut off, so what waits for it is bounded by those who send to it alone. Clients wait until it has caught up,
//!   however long that takes. A route carries much that is for others: it is let go as ever, and waits as clients do only from
//!   a much larger backlog on.
//! - It is read from however much waits for it. While it has much to say it reads nothing, and each would wait for the other.

use super::client::{Held, Phase, PublisherRef};
use super::deliver::Behind;
use super::effect::{CloseReason, Effect};
use super::subs::Target;
use super::timers::Timer;
use super::{Broker, Slot};
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

/// Backlog above which a receiver may hold publishers, where twice as much may wait for it.
pub const HIGH_WATER_BYTES: usize = 1 << 20;
/// Backlog of a part of this process from which on routes wait for it as clients do.
const ROUTES_WAIT_BYTES: usize = 64 << 20;
/// Of the backlog a receiver is cut off for, the part from which on it holds publishers that carry messages of many.
const HOLDS_CARRIERS_PART: usize = 8;

/// Members of a queue group that are looked at, of many.
const MEMBERS_SEEN_MAX: usize = 64;

/// How long receivers in a minority may hold publishers within one period.
const ALLOWANCE: Duration = Duration::from_millis(20);
const PERIOD: Duration = Duration::from_secs(1);
/// A receiver that holds publishers must make progress this often, and must have caught up after
/// that long.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
const CATCH_UP_WITHIN: Duration = Duration::from_secs(2);
/// A receiver that held a publisher together with others counts as behind for that long after it has caught up, to other loops.
const BEHIND_FOR: Duration = Duration::from_millis(100);
/// Of thousands that wait for a part of this process each has a buffer full to say: these are let go when it has caught up,
/// and so many more each time that it takes something, or after that long.
const LET_GO_AT_ONCE: usize = 16;
const LET_GO_EVERY: Duration = Duration::from_millis(1);

/// What may wait for a connection.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// It is cut off when more than that waits and another message comes.
    pub pending_bytes_max: usize,
    /// Above that it may hold publishers.
    pub high_water_bytes: usize,
}

impl Limits {
    /// A mark too near to the bound would be of no use: what is read already still comes.
    pub fn new(pending_bytes_max: usize) -> Self {
        Self {
            pending_bytes_max,
            high_water_bytes: HIGH_WATER_BYTES.min(pending_bytes_max / 2),
        }
    }

    /// It has caught up, and lets publishers go.
    pub fn low_water_bytes(self) -> usize {
        self.high_water_bytes / 4
    }

    /// How far below its mark a backlog must be for those who wait to be let go.
    fn gap_bytes(self) -> usize {
        self.high_water_bytes - self.low_water_bytes()
    }
}

/// The time in which receivers of this loop may hold publishers whose other receivers keep up.
#[derive(Debug)]
pub(super) struct Allowance {
    period_ends: Instant,
    ends: Instant,
}

impl Allowance {
    pub fn new(now: Instant) -> Self {
        Self {
            period_ends: now,
            ends: now,
        }
    }

    /// Until when it lasts; None once it is used up. So many loops share one.
    fn until(&mut self, now: Instant, loops: u32) -> Option<Instant> {
        if now >= self.period_ends {
            self.period_ends = now + PERIOD;
            self.ends = now + ALLOWANCE / loops;
        }
        (now < self.ends).then_some(self.ends)
    }
}

/// Receivers of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub receivers: u32,
    pub behind: u32,
}

impl Count {
    pub fn and(self, more: Self) -> Self {
        Self {
            receivers: self.receivers + more.receivers,
            behind: self.behind + more.behind,
        }
    }

    fn are_nearly_all_behind(self) -> bool {
        are_nearly_all(self.behind.into(), self.receivers.into())
    }
}

/// What a loop knows of receivers of a message that are not its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Elsewhere {
    /// On the loops the message comes from.
    pub counted: Count,
    /// Further loops, each as one receiver; it is behind when nearly all are there.
    pub loops: Count,
}

impl Elsewhere {
    /// All but one of the loops: that one gets to know it.
    pub fn without(self, one: Count) -> Self {
        let loops = Count {
            receivers: self.loops.receivers - one.receivers,
            behind: self.loops.behind - one.behind,
        };
        Self { loops, ..self }
    }
}

/// How the receivers of a loop fare: whether any is behind, and whether nearly all were of the latest message for somebody who is.
/// As a number, for the carrier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Lag {
    #[default]
    None,
    Some,
    NearlyAll,
}

impl From<u8> for Lag {
    fn from(number: u8) -> Self {
        match number {
            0 => Self::None,
            1 => Self::Some,
            _ => Self::NearlyAll,
        }
    }
}

/// Three quarters.
fn are_nearly_all(some: u64, all: u64) -> bool {
    some * 4 >= all * 3
}

/// One connection that was cut off because it did not read.
#[derive(Clone, Debug)]
pub struct SlowConsumer {
    pub cid: u64,
    pub peer: SocketAddr,
    pub name: String,
    pub pending_bytes: usize,
    pub cause: String,
    pub at: SystemTime,
}

/// The latest slow consumers kept for monitoring.
const SLOW_CONSUMERS_KEPT: usize = 64;

impl Broker {
    /// Some of the `receivers` of a message of this publisher are behind: hold it back.
    #[cold]
    pub(super) fn hold(&mut self, publisher: PublisherRef, receivers: u32, elsewhere: Elsewhere) {
        let mut behind = std::mem::take(&mut self.receivers.behind);
        behind.retain(|receiver| {
            let alone = !publisher.carrier && self.is_alone_in_its_group(receiver);
            if alone {
                self.hold_for(receiver.slot, publisher, false);
            }
            !alone
        });
        let here = Count {
            receivers,
            behind: behind.len() as u32,
        };
        self.nearly_all_behind = here.are_nearly_all_behind();
        let all = here.and(elsewhere.counted).and(elsewhere.loops);
        let nearly_all = all.are_nearly_all_behind();
        for receiver in behind.drain(..) {
            self.hold_for(receiver.slot, publisher, nearly_all);
        }
        self.receivers.behind = behind;
    }

    /// How the receivers of this loop fare, for the other loops. While one holds its publisher, together with others,
    /// there is no message to ask about the others, and the next one comes when it has caught up: it counts as behind for
    /// some time after that.
    pub fn lag(&mut self) -> Lag {
        let behind = self.receivers.is_some_behind() || self.now < self.behind_until;
        match (behind, self.nearly_all_behind) {
            (false, _) => Lag::None,
            (true, false) => Lag::Some,
            (true, true) => Lag::NearlyAll,
        }
    }

    /// Whether it got the message for a queue group that keeps up but for few. A part of its members is seen, evenly over all,
    /// so that a large group costs no more than a small one.
    fn is_alone_in_its_group(&self, receiver: &Behind) -> bool {
        // It may have ended with this very message.
        let Some(subscription) = (self.receivers.subscriptions).get(receiver.subscription as usize)
        else {
            return false;
        };
        let interest = self.sublist.interest(subscription.place.interest);
        let group = subscription.queue.and_then(|queue| interest.group(queue));
        let (Target::Client(_), Some(group)) = (subscription.target(), group) else {
            return false;
        };
        let step = group.len().div_ceil(MEMBERS_SEEN_MAX).max(1);
        let (mut seen, mut behind, mut alike, mut keep_up) = (0, 0, 0, 0);
        for at in (0..group.len()).step_by(step) {
            let Some((id, weight)) = group.member(at).zip(group.weight(at)) else {
                continue;
            };
            match self.receivers.subscriptions[id as usize].target() {
                Target::Client(slot) | Target::Route(slot) => {
                    // It stands for those between it and the next one.
                    seen += step as u64;
                    behind += step as u64 * u64::from(self.is_behind(slot));
                }
                // Where anybody is behind, the members are taken to be like those here.
                Target::Loop(index) if self.peers[usize::from(index)].lag != Lag::None => {
                    alike += u64::from(weight);
                }
                Target::Loop(_) => keep_up += u64::from(weight),
            }
        }
        let all = seen + alike + keep_up;
        !are_nearly_all(behind * (seen + alike), all * seen)
    }

    fn is_behind(&self, slot: Slot) -> bool {
        let client = &self.receivers.clients[slot as usize];
        client.stuck || client.outbox.pending() > self.receivers.limits(slot).high_water_bytes
    }

    fn hold_for(&mut self, receiver: Slot, publisher: PublisherRef, nearly_all: bool) {
        let now = self.now;
        let waits = self.must_wait(receiver, publisher, 0);
        let client = &mut self.receivers.clients[receiver as usize];
        if !waits || client.phase == Phase::Closing {
            return;
        }
        // Whoever else listens: it is not cut off when they go on.
        let nearly_all = nearly_all || client.internal;
        let holding = client.holding.get_or_insert_default();
        let mut publishers = holding.publishers.iter();
        if publishers.any(|held| held.publisher == publisher) {
            return;
        }
        let until = match nearly_all {
            true => Some(now + CATCH_UP_WITHIN),
            false => self.allowance.until(now, 1 + self.peers_behind),
        };
        let Some(until) = until else {
            // Without progress it is not to be asked again with each message.
            return self.look_again(receiver, now + PROGRESS_EVERY);
        };
        holding.publishers.push(Held {
            publisher,
            nearly_all,
            until,
        });
        self.look_again(receiver, until.min(now + PROGRESS_EVERY));
        self.tell_publisher(publisher, true);
    }

    /// Sees to it that `end_of_hold` is called then, or before.
    fn look_again(&mut self, receiver: Slot, at: Instant) {
        let client = &mut self.receivers.clients[receiver as usize];
        if let Some(holding) = &mut client.holding
            && holding.look_at.is_none_or(|set| at < set)
        {
            holding.look_at = Some(at);
            self.timers.push(at, receiver, client.cid, Timer::Hold);
        }
    }

    /// Whether a publisher is to wait for this receiver, which is above high water; with a gap, whether one that waits is to
    /// go on with it.
    fn must_wait(&self, receiver: Slot, publisher: PublisherRef, gap: usize) -> bool {
        let limits = self.receivers.limits(receiver);
        let client = &self.receivers.clients[receiver as usize];
        let pending = client.outbox.pending() + gap;
        match (client.internal, publisher.carrier) {
            // For itself it would wait for ever.
            (true, _) if client.cid == publisher.cid => false,
            (true, true) => !client.stuck || pending > ROUTES_WAIT_BYTES,
            (true, false) => true,
            (false, true) => {
                let part = limits.pending_bytes_max / HOLDS_CARRIERS_PART;
                !client.stuck && pending > limits.high_water_bytes.max(part)
            }
            (false, false) => !client.stuck,
        }
    }

    /// Passes a hold, or its end, to a publisher here or on another loop.
    pub(super) fn tell_publisher(&mut self, publisher: PublisherRef, hold: bool) {
        let home = self.loop_of(publisher.cid);
        if home == self.loop_index {
            self.handle_hold(publisher, hold);
        } else {
            self.peers[usize::from(home)]
                .outgoing
                .holds
                .push((publisher, hold));
        }
    }

    /// A receiver, here or on another loop, holds this publisher or lets it go.
    pub(super) fn handle_hold(&mut self, publisher: PublisherRef, hold: bool) {
        let Some(client) = self.receivers.clients.get_mut(publisher.slot as usize) else {
            return;
        };
        if client.cid != publisher.cid {
            return;
        }
        if hold {
            client.held_by += 1;
        } else {
            client.held_by = client
                .held_by
                .checked_sub(1)
                .expect("every end follows its hold");
            if client.held_by == 0 {
                client.pings_out = 0; // what it answered meanwhile is still to be read
                self.effects.push(Effect::Resume {
                    slot: publisher.slot,
                });
            }
        }
    }

    /// A receiver that holds publishers, or is marked as stuck, took some output.
    pub(super) fn after_progress(&mut self, receiver: Slot) {
        let low_water_bytes = self.receivers.limits(receiver).low_water_bytes();
        let client = &mut self.receivers.clients[receiver as usize];
        if client.outbox.pending() <= low_water_bytes {
            client.stuck = false;
            if std::mem::take(&mut client.choked) {
                self.effects.push(Effect::Resume { slot: receiver });
            }
            self.let_portion_go(receiver);
        }
    }

    pub(super) fn let_publishers_go(&mut self, receiver: Slot) {
        self.let_first_go(receiver, usize::MAX);
    }

    /// It has caught up.
    fn let_portion_go(&mut self, receiver: Slot) {
        let internal = self.receivers.clients[receiver as usize].internal;
        self.let_first_go(receiver, if internal { LET_GO_AT_ONCE } else { usize::MAX });
    }

    /// Those that came first, so many of them. The others follow.
    fn let_first_go(&mut self, receiver: Slot, count: usize) {
        let Some(holding) = &mut self.receivers.clients[receiver as usize].holding else {
            return;
        };
        let count = count.min(holding.publishers.len());
        let go: Vec<Held> = holding.publishers.drain(..count).collect();
        if !holding.publishers.is_empty() {
            self.look_again(receiver, self.now + LET_GO_EVERY);
        }
        self.let_go(receiver, go);
    }

    fn let_go(&mut self, receiver: Slot, publishers: Vec<Held>) {
        let internal = self.receivers.clients[receiver as usize].internal;
        for held in publishers {
            if held.nearly_all && !internal {
                self.behind_until = self.now + BEHIND_FOR;
            }
            self.tell_publisher(held.publisher, false);
        }
    }

    pub(super) fn end_of_hold(&mut self, receiver: Slot) {
        let now = self.now;
        let low_water_bytes = self.receivers.limits(receiver).low_water_bytes();
        let client = &mut self.receivers.clients[receiver as usize];
        let Some(holding) = client.holding.as_deref_mut() else {
            return;
        };
        if holding.look_at.is_none_or(|at| at > now) {
            return;
        }
        holding.look_at = None;
        if client.outbox.pending() <= low_water_bytes {
            // Nobody waits for it, but for those that are not let go all at once.
            return self.let_portion_go(receiver);
        }
        let progress = client
            .progress_at
            .is_none_or(|at| now.duration_since(at) < PROGRESS_EVERY);
        let mut publishers = holding.publishers.iter();
        if !progress || publishers.any(|held| held.nearly_all && held.until <= now) {
            // From here on its backlog grows, until it catches up or is cut off.
            client.stuck = true;
        }
        self.let_some_go(receiver);
        let client = &self.receivers.clients[receiver as usize];
        let holding = client.holding.as_ref().expect("it was there above");
        // Also where it holds nobody: as long as it makes no progress it is asked in vain with each message.
        if !client.stuck || !holding.publishers.is_empty() {
            let untils = holding.publishers.iter().map(|held| held.until);
            let first = untils.filter(|until| *until > now).min();
            let next = now + PROGRESS_EVERY;
            self.look_again(receiver, first.map_or(next, |until| until.min(next)));
        }
    }

    /// Lets those publishers go that need not wait any more.
    fn let_some_go(&mut self, receiver: Slot) {
        let now = self.now;
        let gap_bytes = self.receivers.limits(receiver).gap_bytes();
        let Some(holding) = &mut self.receivers.clients[receiver as usize].holding else {
            return;
        };
        let all = std::mem::take(&mut holding.publishers);
        let (stay, go): (Vec<_>, Vec<_>) = all.into_iter().partition(|held| {
            (held.nearly_all || held.until > now)
                && self.must_wait(receiver, held.publisher, gap_bytes)
        });
        if let Some(holding) = &mut self.receivers.clients[receiver as usize].holding {
            holding.publishers = stay;
        }
        self.let_go(receiver, go);
    }

    pub(super) fn cut_off(&mut self, slot: Slot, cause: String) {
        let client = &self.receivers.clients[slot as usize];
        if client.phase == Phase::Closing {
            return;
        }
        let slow = SlowConsumer {
            cid: client.cid,
            peer: client.peer,
            name: client.name().to_owned(),
            pending_bytes: client.outbox.pending(),
            cause,
            at: SystemTime::now(),
        };
        log::info!(
            "{} - Slow Consumer Detected: name {:?}, {} bytes pending, {}",
            client.label(),
            slow.name,
            slow.pending_bytes,
            slow.cause
        );
        self.totals.slow_consumers += 1;
        if self.slow_consumers.len() == SLOW_CONSUMERS_KEPT {
            self.slow_consumers.remove(0);
        }
        self.slow_consumers.push(slow);
        self.give_up(slot);
        self.close(slot, CloseReason::SlowConsumer);
    }
}

#[cfg(test)]
mod tests;
