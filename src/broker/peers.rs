//! The other loops of the process, as special clients: what they want to hear, and what we tell them.
//!
//! Each loop holds the interest of every other loop as ordinary entries of its own table: one entry
//! per pattern and queue group with the number of members behind it. A message goes to another loop
//! at most once, like over a route; the loop there finds its own receivers.

use super::Broker;
use super::client::PublisherRef;
use super::deliver::Origin;
use super::hold::{Count, Lag};
use super::mail::{Backlog, Batch, Envelope, Record};
use super::pace::Mark;
use super::subs::{Care, Target};
use crate::subject::sublist::{InterestId, QueueId};
use std::collections::HashMap;
use std::time::Instant;

/// Bytes under way to one loop, from all others, above which publishers that send there are held back. Of a few loops each
/// may have as much as it needs to be fast.
const BACKLOG_BYTES_MAX: usize = 4 << 20;
const BACKLOG_BYTES_MIN: usize = 64 << 10;

/// The part of one of so many loops: what all others have for one is taken in in one turn, all of it perhaps for a
/// receiver for which so much may wait.
pub fn backlog_bytes_max(loops: u16, pending_bytes_max: usize) -> usize {
    let others = usize::from(loops.max(2)) - 1;
    let all = BACKLOG_BYTES_MAX.min(pending_bytes_max / 4);
    (all / others).max(BACKLOG_BYTES_MIN)
}

/// A pattern, and the queue group where it is one's.
type PatternAndGroup = (Box<[u8]>, Option<Box<[u8]>>);

#[derive(Default)]
pub struct Peer {
    /// What goes to that loop at the end of this turn.
    pub outgoing: Batch,
    /// That loop's interest: our entry for each of its patterns and groups.
    interest: HashMap<PatternAndGroup, u32>,
    /// Sent to that loop and not yet worked off, told by the carrier.
    pub backlog: Backlog,
    /// How the receivers over there fare, told by the carrier.
    pub lag: Lag,
    /// Publishers held back until the backlog is gone: of this loop, and such whose messages are passed on from here.
    waiting: Vec<PublisherRef>,
    /// What the current message is to do there.
    pub plain: bool,
    pub groups: Vec<QueueId>,
    /// `cid:sid` of the queue member the message is addressed to; empty: none.
    pub member: Vec<u8>,
}

impl Peer {
    fn is_asked(&self) -> bool {
        self.plain || !self.groups.is_empty() || !self.member.is_empty()
    }

    /// The current message is for the plain subscriptions of this loop; `matched` lists the loops
    /// that get it.
    #[inline]
    pub fn ask_plain(&mut self, index: u16, matched: &mut Vec<u16>) {
        if !self.is_asked() {
            matched.push(index);
        }
        self.plain = true;
    }

    /// The same, for one member of a queue group.
    #[inline]
    pub fn ask_group(&mut self, index: u16, queue: QueueId, matched: &mut Vec<u16>) {
        if !self.is_asked() {
            matched.push(index);
        }
        self.groups.push(queue);
    }

    /// The same, for the one member with this address.
    pub fn ask_member(&mut self, index: u16, address: &[u8], matched: &mut Vec<u16>) {
        if !self.is_asked() {
            matched.push(index);
        }
        self.member.clear();
        self.member.extend_from_slice(address);
    }

    /// What that loop has not worked off, with what it is about to get.
    #[inline]
    pub fn bytes_ahead(&self) -> usize {
        self.backlog.bytes + self.outgoing.weight
    }

    /// It counts as one receiver of a message that goes there.
    pub fn as_receiver(&self) -> Count {
        Count {
            receivers: 1,
            behind: u32::from(self.lag == Lag::NearlyAll),
        }
    }

    pub fn changes_ahead(&self) -> usize {
        self.backlog.changes + self.outgoing.changes
    }

    pub fn interest_count(&self) -> usize {
        self.interest.len()
    }
}

/// How many members this loop itself has, per pattern and per queue group of a pattern.
#[derive(Default)]
pub struct LocalInterest {
    plain: HashMap<InterestId, u32>,
    groups: HashMap<(InterestId, QueueId), u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Added,
    /// About to be removed, but still in the table.
    Removing,
}

impl Broker {
    /// Tells the other loops when a subscription of a connection changes what we want to hear: for
    /// plain ones the first and the last, for queue groups every change, because choices are made by
    /// number of members.
    pub(super) fn tell_peers(&mut self, subscription: u32, change: Change) {
        if self.peers.len() < 2 {
            return;
        }
        let subscription = &self.receivers.subscriptions[subscription as usize];
        let (interest, queue) = (subscription.place.interest, subscription.queue);
        let count = match queue {
            None => self.local.plain.entry(interest).or_default(),
            Some(queue) => self.local.groups.entry((interest, queue)).or_default(),
        };
        match change {
            Change::Added => *count += 1,
            Change::Removing => *count -= 1,
        }
        let count = *count;
        if count == 0 {
            match queue {
                None => self.local.plain.remove(&interest),
                Some(queue) => self.local.groups.remove(&(interest, queue)),
            };
        }
        let first_or_last = count == if change == Change::Added { 1 } else { 0 };
        if queue.is_none() && !first_or_last {
            return;
        }
        let subject = self.sublist.pattern(interest);
        let queue = queue.map(|queue| self.sublist.queue_name(queue));
        for (index, peer) in self.peers.iter_mut().enumerate() {
            if index != usize::from(self.loop_index) {
                peer.outgoing.push_interest(subject, queue, count);
            }
        }
    }

    /// Everything another loop sent in one batch. Interest takes effect here and now: the caller
    /// drains mail before it acts on any byte received in the same turn.
    pub fn handle_mail(&mut self, from: u16, batch: &Batch, now: Instant) {
        self.now = now;
        for (publisher, hold) in &batch.holds {
            self.handle_hold(*publisher, *hold);
        }
        for record in batch.records() {
            match record {
                Record::Interest {
                    subject,
                    queue,
                    count,
                } => self.handle_interest(from, subject, queue, count),
                Record::Message {
                    message,
                    owned,
                    envelope,
                    groups,
                } => {
                    let origin = origin_of(from, &envelope);
                    self.deliver_from_loop(&origin, &message, owned, envelope.plain, groups);
                }
                Record::Run { run, envelope } => {
                    let origin = origin_of(from, &envelope);
                    self.deliver_run(&origin, &run);
                }
                Record::RouteLines {
                    route: Some(route),
                    first,
                    next,
                    lines,
                } => self.pass_to_route(route, from, first, next, lines),
                Record::RouteLines { lines, .. } => self.pass_to_routes(lines),
                Record::InterestWanted { route, from } => self.tell_batch(route, from),
                Record::Mark { position } => self.set_mark(Mark {
                    loop_index: from,
                    position,
                }),
                Record::TakenIn { position } => self.note_taken_in(position),
            }
        }
    }

    fn handle_interest(&mut self, from: u16, subject: &[u8], queue: Option<&[u8]>, count: u32) {
        let key = (subject.into(), queue.map(Into::into));
        let peer = &mut self.peers[from as usize];
        match (peer.interest.get(&key).copied(), count) {
            (None, 0) => {}
            (None, count) => {
                let id = self.insert(
                    Target::Loop(from),
                    subject,
                    queue,
                    b"",
                    Care::Nothing,
                    count,
                );
                self.peers[from as usize].interest.insert(key, id);
            }
            (Some(id), 0) => {
                peer.interest.remove(&key);
                self.take_out(id);
            }
            (Some(id), count) => {
                let subscription = &self.receivers.subscriptions[id as usize];
                if let Some(queue) = subscription.queue {
                    self.sublist.set_weight(subscription.place, queue, count);
                }
            }
        }
    }

    pub fn has_mail(&self, to: u16) -> bool {
        !self.peers[to as usize].outgoing.is_empty()
    }

    /// What goes to another loop at the end of this turn; `empty` takes its place.
    pub fn take_mail(&mut self, to: u16, empty: Batch) -> Batch {
        let peer = &mut self.peers[to as usize];
        peer.backlog.bytes += peer.outgoing.weight;
        peer.backlog.changes += peer.outgoing.changes;
        std::mem::replace(&mut peer.outgoing, empty)
    }

    /// Whether publishers or bursts are held back until that loop has worked off its backlog.
    pub fn waits_for(&self, to: u16) -> bool {
        !self.peers[to as usize].waiting.is_empty() || self.pace.waits_for_loops()
    }

    /// Whether that loop is to work off its mail soon: somebody waits for it, or will before long.
    pub fn is_waited_for(&self, to: u16) -> bool {
        self.waits_for(to) || self.peers[to as usize].changes_ahead() >= self.changes_ahead_max / 4
    }

    /// Something for another loop that is not of the broker's making, in order with the rest.
    pub fn outgoing(&mut self, to: u16) -> &mut Batch {
        &mut self.peers[to as usize].outgoing
    }

    /// The carrier tells, before it takes the mail of a turn, what of ours that loop has not worked off yet.
    pub fn set_backlog(&mut self, to: u16, backlog: Backlog) {
        let peer = &mut self.peers[to as usize];
        peer.backlog = backlog;
        if peer.bytes_ahead() <= self.backlog_bytes_max / 2 {
            for publisher in std::mem::take(&mut peer.waiting) {
                self.tell_publisher(publisher, false);
            }
        }
    }

    /// The carrier tells how the receivers over there fare.
    pub fn set_lag(&mut self, to: u16, lag: Lag) {
        let before = std::mem::replace(&mut self.peers[to as usize].lag, lag);
        let count = |lag| u32::from(lag != Lag::None);
        self.peers_behind = self.peers_behind + count(lag) - count(before);
    }

    /// A publisher sent to another loop whose mailbox is full, or had its message passed on to it: hold it until there is room.
    #[cold]
    pub(super) fn wait_for_peer(&mut self, peer: u16, publisher: PublisherRef) {
        let full = self.backlog_bytes_max / 4;
        let Peer {
            outgoing, waiting, ..
        } = &mut self.peers[peer as usize];
        // Where it is from turns before, to end this one brings nothing.
        self.mail_is_full |= outgoing.weight > full;
        // It is the last one, nearly always.
        if waiting.last() != Some(&publisher) && !waiting.contains(&publisher) {
            waiting.push(publisher);
            self.tell_publisher(publisher, true);
        }
    }
}

/// Where a message of another loop comes from.
fn origin_of(from_loop: u16, envelope: &Envelope) -> Origin {
    Origin {
        no_echo: None,
        publisher: envelope.publisher,
        from_loop: Some(from_loop),
        hops: envelope.hops,
        elsewhere: envelope.elsewhere,
        from_route: false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::propagate::tests::{PEER, written};
    use super::*;
    use crate::util::random::Random;
    use crate::util::region::RegionMut;

    struct House {
        loops: Vec<Broker>,
        now: Instant,
    }

    impl House {
        fn new(count: u16) -> Self {
            let now = Instant::now();
            let make = |index| {
                let region = RegionMut::map(1 << 20).unwrap();
                Broker::new(
                    Default::default(),
                    index,
                    count,
                    region,
                    Random::new(1),
                    now,
                )
            };
            Self {
                loops: (0..count).map(make).collect(),
                now,
            }
        }

        fn open(&mut self, home: usize, connect: &str) -> u32 {
            let slot = self.loops[home].open(home as u64 + 1, PEER, self.now);
            self.says(home, slot, connect);
            slot
        }

        fn says(&mut self, home: usize, slot: u32, text: &str) {
            self.loops[home].handle_bytes(slot, text.as_bytes(), self.now);
        }

        fn mail(&mut self, from: u16, to: u16) {
            let sender = &mut self.loops[usize::from(from)];
            sender.end_turn();
            let batch = sender.take_mail(to, Batch::default());
            self.loops[usize::from(to)].handle_mail(from, &batch, self.now);
        }
    }

    /// A publisher on the first loop, and a member of a queue group on each of the other two: the first loop knows the
    /// first one, and that one's loop the other.
    fn publisher_and_members() -> (House, [u32; 3]) {
        let mut house = House::new(3);
        // In the slot of the publisher, each other loop has somebody else.
        let slots = [0, 1, 2].map(|home| house.open(home, "CONNECT {\"verbose\":false}\r\n"));
        house.says(1, slots[1], "SUB x q 1\r\n");
        house.says(2, slots[2], "SUB x q 1\r\n");
        house.mail(1, 0);
        house.mail(2, 1);
        (house, slots)
    }

    fn messages(count: usize) -> String {
        format!("PUB x 10000\r\n{}\r\n", ".".repeat(10_000)).repeat(count)
    }

    /// The member chosen for a message has gone, and the loop it was on passes the message on.
    #[test]
    fn a_publisher_is_held_by_whom_its_message_was_passed_on_to() {
        let (mut house, [publisher, leaver, stays]) = publisher_and_members();
        house.says(0, publisher, &messages(120));
        house.loops[1].handle_gone(leaver, house.now);
        house.mail(0, 1);
        house.mail(1, 2);
        house.mail(2, 0);
        assert!(!house.loops[0].wants_bytes(publisher));
        let now = house.now;
        assert!(written(&mut house.loops[2], stays, now).len() > 1_200_000);
        house.mail(2, 0);
        assert!(house.loops[0].wants_bytes(publisher));
    }

    /// The one chosen member has gone, and the loop it was on has only the publisher's to pass the message on to.
    #[test]
    fn who_wants_no_echo_gets_none_by_way_of_others() {
        for (echo, expect) in [(true, 1), (false, 0)] {
            let mut house = House::new(2);
            let connect = format!("CONNECT {{\"verbose\":false,\"echo\":{echo}}}\r\n");
            let publisher = house.open(0, &connect);
            let leaver = house.open(1, "CONNECT {}\r\nSUB x q 1\r\n");
            house.says(0, publisher, "SUB x q 7\r\n");
            house.mail(1, 0);
            house.mail(0, 1);
            house.says(0, publisher, "PUB x 2\r\nhi\r\n");
            house.loops[1].handle_gone(leaver, house.now);
            house.mail(0, 1);
            house.mail(1, 0);
            let now = house.now;
            let text = written(&mut house.loops[0], publisher, now);
            assert_eq!(text.matches("MSG x 7 ").count(), expect, "{text}");
        }
    }

    #[test]
    fn a_publisher_waits_for_the_loop_its_messages_are_passed_on_to() {
        let (mut house, [publisher, leaver, _]) = publisher_and_members();
        house.says(0, publisher, &messages(200));
        house.loops[1].handle_gone(leaver, house.now);
        house.mail(0, 1);
        house.loops[0].set_backlog(1, Backlog::default());
        house.says(0, publisher, &messages(50));
        house.mail(0, 1);
        house.mail(1, 0);
        assert!(!house.loops[0].wants_bytes(publisher));
        // What was passed on is worked off.
        house.loops[1].take_mail(2, Batch::default());
        house.loops[1].set_backlog(2, Backlog::default());
        house.mail(1, 0);
        assert!(house.loops[0].wants_bytes(publisher));
    }
}
