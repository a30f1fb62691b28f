//! Delivery of runs: many small messages to one subject at once.
//!
//! The outcome is that of delivering the messages one by one, but each receiver is visited once: its
//! records are looked up once, `MSG subject sid ` is made once, and a tight loop copies that and the
//! tails. That is done where nobody could tell the difference:
//!
//! - all matching subscriptions are plain ones of different connections, or
//! - there is one queue group, of different connections, and nothing else,
//!
//! and none of them wants care per message (a limit, permissions). Otherwise the messages are delivered one
//! by one, so that a connection with several subscriptions gets each message on all of them before the
//! next one.

use super::client::{Client, Phase};
use super::deliver::{Origin, Receivers, put_head};
use super::hold::{Count, Elsewhere};
use super::mail::Envelope;
use super::outbox::{PADDING, put};
use super::subs::{Care, Subscription, Target};
use super::{Broker, Slot, mark_dirty};
use crate::subject::sublist::{Group, InterestId};
use crate::util::pool::Pool;
use crate::wire::parser::{Kind, Padded};
use crate::wire::run::{RUN_MESSAGES_MAX, Run, Tail};

/// Longest `MSG subject sid ` that is made once per receiver.
const HEAD_BYTES_MAX: usize = 192;
/// Groups up to this size are looked through before a run is dealt out.
const GROUP_MEMBERS_MAX: usize = 64;
const _: () = assert!(GROUP_MEMBERS_MAX < u8::MAX as usize);

/// Each message of a run went to so many receivers here; all together had so many messages, with so many bytes.
#[derive(Clone, Copy)]
struct Delivered {
    receivers: u32,
    messages: u64,
    bytes: u64,
}

/// How a run can be delivered to those who match.
enum Way {
    /// To plain subscriptions, each getting all of it.
    Whole,
    /// To the members of the only queue group there is.
    Dealt,
    OneByOne,
}

impl Broker {
    /// Delivers a run to everybody interested.
    pub(super) fn deliver_run(&mut self, origin: &Origin, run: &Run<'_>) {
        let mut matched = std::mem::take(&mut self.matched);
        self.sublist.matches(run.subject.bytes(), &mut matched);
        let way = match matched.is_empty() {
            true => Way::Whole,
            false => self.way(origin, run, &matched),
        };
        match way {
            Way::Whole => self.deliver_whole(origin, run, &matched),
            Way::Dealt => self.deal_out(origin, run, matched[0]),
            Way::OneByOne => {}
        }
        self.matched = matched;
        if let Way::OneByOne = way {
            for message in run.messages() {
                self.deliver_again(origin, &message);
            }
        }
    }

    fn way(&mut self, origin: &Origin, run: &Run<'_>, matched: &[InterestId]) -> Way {
        if log::log_enabled!(log::Level::Trace) {
            return Way::OneByOne;
        }
        let Self {
            receivers, sublist, ..
        } = self;
        receivers.visit = receivers.visit.wrapping_add(1);
        let groups = |id: &InterestId| sublist.interest(*id).groups();
        let others_count = !(origin.from_route || origin.from_loop.is_some());
        if others_count && matched.iter().any(|id| !groups(id).is_empty()) {
            return match matched {
                [id] if sublist.interest(*id).plain().is_empty() => match groups(id) {
                    [group] if receivers.can_deal_out(run, group) => Way::Dealt,
                    _ => Way::OneByOne,
                },
                _ => Way::OneByOne,
            };
        }
        for id in matched {
            for subscription in sublist.interest(*id).plain() {
                if !receivers.is_plain_and_new(run, *subscription) {
                    return Way::OneByOne;
                }
            }
        }
        Way::Whole
    }

    fn deliver_whole(&mut self, origin: &Origin, run: &Run<'_>, matched: &[InterestId]) {
        let mut count = 0;
        let Self {
            receivers,
            sublist,
            matched_peers,
            peers,
            reached_routes,
            ..
        } = self;
        for id in matched {
            for subscription in sublist.interest(*id).plain() {
                match receivers.subscriptions[*subscription as usize].target() {
                    Target::Client(slot) => {
                        count +=
                            receivers.append_run(origin, run, *subscription, slot, Kind::Client);
                    }
                    // The publisher's loop itself serves the other loops.
                    Target::Loop(_) if origin.from_loop.is_some() => {}
                    Target::Loop(index) => peers[index as usize].ask_plain(index, matched_peers),
                    // One hop only, and once over each route.
                    Target::Route(slot) => {
                        if !origin.from_route && !reached_routes.contains(&slot) {
                            reached_routes.push(slot);
                            count +=
                                receivers.append_run(origin, run, *subscription, slot, Kind::Route);
                        }
                    }
                }
            }
        }
        reached_routes.clear();
        let mut elsewhere = origin.elsewhere;
        if !matched_peers.is_empty() {
            let loops = self.send_run_to_peers(origin, run, count);
            elsewhere.loops = elsewhere.loops.and(loops);
        }
        let delivered = Delivered {
            receivers: count,
            messages: run.count() as u64,
            bytes: run.body_bytes as u64,
        };
        self.finish_run(origin, run, delivered, elsewhere);
    }

    /// Each message to one member of a group, chosen evenly.
    fn deal_out(&mut self, origin: &Origin, run: &Run<'_>, interest: InterestId) {
        let Self {
            receivers,
            sublist,
            random,
            ..
        } = self;
        let group = &sublist.interest(interest).groups()[0];
        let members = group.len();
        let mut taker = [0; RUN_MESSAGES_MAX];
        let takes = |index: usize| {
            group
                .member(index)
                .is_some_and(|id| receivers.takes(origin, id))
        };
        let able: [bool; GROUP_MEMBERS_MAX] = std::array::from_fn(takes);
        for taker in &mut taker[..run.count()] {
            let first = random.below(members as u32) as usize;
            let member = (first..members).chain(0..first).find(|index| able[*index]);
            *taker = member.map_or(u8::MAX, |index| index as u8);
        }
        let (mut messages, mut bytes) = (0, 0);
        let mut tails = [Tail::default(); RUN_MESSAGES_MAX];
        for index in 0..members {
            let part = run.select(|at| taker[at] == index as u8, &mut tails);
            if let Some(id) = group.member(index).filter(|_| part.count() > 0)
                && let Target::Client(slot) = receivers.subscriptions[id as usize].target()
            {
                receivers.append_run(origin, &part, id, slot, Kind::Client);
                messages += part.count() as u64;
                bytes += part.body_bytes as u64;
            }
        }
        let delivered = Delivered {
            receivers: u32::from(messages > 0),
            messages,
            bytes,
        };
        self.finish_run(origin, run, delivered, origin.elsewhere);
    }

    /// What is left to do once all receivers have been visited.
    fn finish_run(
        &mut self,
        origin: &Origin,
        run: &Run<'_>,
        delivered: Delivered,
        elsewhere: Elsewhere,
    ) {
        let Delivered {
            receivers,
            messages,
            bytes,
        } = delivered;
        let copies = u64::from(receivers);
        self.totals.traffic.messages_out += copies * messages;
        self.totals.traffic.bytes_out += copies * bytes;
        self.totals.fanout_max = self.totals.fanout_max.max(receivers);
        if self.receivers.anything_left()
            && let Some(first) = run.messages().next()
        {
            self.finish_rare(origin, &first, receivers, elsewhere);
        }
    }

    /// Returns what there is to know of the receivers over there: each loop counts as one.
    fn send_run_to_peers(&mut self, origin: &Origin, run: &Run<'_>, receivers: u32) -> Count {
        let targets = std::mem::take(&mut self.matched_peers);
        let (told, theirs) = self.receivers_of(origin, receivers, &targets);
        for index in &targets {
            let peer = &mut self.peers[*index as usize];
            peer.plain = false;
            let envelope = Envelope {
                plain: true,
                hops: origin.hops,
                elsewhere: told.without(peer.as_receiver()),
                publisher: origin.publisher,
            };
            peer.outgoing.push_run(run, envelope);
            if peer.bytes_ahead() > self.backlog_bytes_max {
                self.wait_for_peer(*index, origin.publisher);
            }
        }
        self.matched_peers = targets;
        self.matched_peers.clear();
        theirs
    }
}

impl Receivers {
    /// Whether the subscription is that of a connection not seen in this visit, or leads elsewhere,
    /// and takes messages without further ado.
    #[inline(always)]
    fn is_plain_and_new(&mut self, run: &Run<'_>, id: u32) -> bool {
        let subscription = &self.subscriptions[id as usize];
        let (Target::Client(slot) | Target::Route(slot)) = subscription.target() else {
            return true;
        };
        let client = &mut self.clients[slot as usize];
        let seen = std::mem::replace(&mut client.visit, self.visit) == self.visit;
        // A route has many subscriptions, of which one gets the message.
        (!seen || client.route.is_some()) && fits(run, subscription)
    }

    fn can_deal_out(&mut self, run: &Run<'_>, group: &Group) -> bool {
        if group.len() > GROUP_MEMBERS_MAX || group.total_weight() != group.len() as u64 {
            return false;
        }
        let mut members = (0..group.len()).filter_map(|index| group.member(index));
        members.all(|id| {
            let target = self.subscriptions[id as usize].target();
            matches!(target, Target::Client(_)) && self.is_plain_and_new(run, id)
        })
    }

    /// Whether the connection of a subscription gets messages of this origin now.
    #[inline(always)]
    fn takes(&self, origin: &Origin, id: u32) -> bool {
        match self.subscriptions[id as usize].target() {
            Target::Client(slot) => {
                origin.no_echo != Some(slot) && self.clients[slot as usize].phase == Phase::Open
            }
            Target::Route(_) | Target::Loop(_) => false,
        }
    }

    /// The whole run for one subscription of a connection of this kind; returns the number of receivers that makes.
    #[inline(always)]
    fn append_run(
        &mut self,
        origin: &Origin,
        run: &Run<'_>,
        id: u32,
        slot: Slot,
        kind: Kind,
    ) -> u32 {
        let subscription = &mut self.subscriptions[id as usize];
        let client = &mut self.clients[slot as usize];
        if origin.no_echo == Some(slot) || client.phase != Phase::Open {
            return 0;
        }
        let sid = subscription.short_sid().expect("seen by `fits`");
        put_run(run, client, sid, &mut self.pool);
        subscription.delivered += run.count() as u64;
        mark_dirty(client, slot, &mut self.dirty);
        let pending = client.outbox.pending();
        if pending > self.high_water_bytes(kind) {
            self.note_backlog(slot, id, run.tail_bytes);
        }
        1
    }
}

/// Whether a run can go to this subscription as a whole.
#[inline(always)]
fn fits(run: &Run<'_>, subscription: &Subscription) -> bool {
    subscription.care == Care::Nothing
        && subscription
            .short_sid()
            .is_some_and(|sid| 6 + run.subject.len + sid.len <= HEAD_BYTES_MAX)
}

/// Every message of the run into the outbox of a connection.
#[inline(always)]
fn put_run(run: &Run<'_>, client: &mut Client, sid: Padded<'_>, pool: &mut Pool) {
    let mut head = [0; HEAD_BYTES_MAX + PADDING];
    let head_bytes = put_head(&mut head, run.subject, sid, false);
    let head = Padded::new(&head, head_bytes);
    let bytes = run.count() * head_bytes + run.tail_bytes;
    client.outbox.append_with(pool, bytes, |to| {
        let mut at = 0;
        for tail in run.tails() {
            at = put(to, at, head);
            at = put(to, at, tail);
        }
        at
    });
    client.traffic.messages_out += run.count() as u64;
    client.traffic.bytes_out += run.body_bytes as u64;
}

#[doc(hidden)]
pub mod fuzz;

#[cfg(test)]
mod tests {
    proptest::proptest! {
        #[test]
        fn runs_do_what_messages_one_by_one_do(
            data in proptest::collection::vec(proptest::num::u8::ANY, 0..400),
        ) {
            super::fuzz::check(&data);
        }
    }
}
