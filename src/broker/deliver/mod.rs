//! Delivery: from a message and its matches to outboxes and to other loops.
//!
//! This is the hot path. Per receiver: two records looked up, one short header and one copy of the
//! message's tail written, a few counters. No allocation, lock, syscall or formatting.
//! Here are the ways a message comes; `groups` has the choice among members of queue groups,
//! `receivers` what is done for one receiver.

mod groups;
mod receivers;
#[cfg(test)]
mod tests;

use super::client::PublisherRef;
use super::hold::{Count, Elsewhere};
use super::mail::{Envelope, Groups};
use super::propagate::{Address, QUEUE_SID_PREFIX};
use super::subs::Target;
use super::{Broker, Slot};
use crate::subject::sublist::InterestId;
use crate::wire::parser::{Message, Padded, SHARED_BYTES_MIN};
use crate::wire::run::AHEAD_MAX;
use bytes::Bytes;
pub(super) use receivers::{Behind, Receivers, put_head};
use receivers::{Beyond, Delivery};

/// A table of so many patterns, with their subscriptions, is about 2 MB: what a core of today caches for itself.
const PATTERNS_CACHED: usize = 1 << 14;

/// Where a message comes from.
pub(super) struct Origin {
    /// The publishing connection, when it does not want its own messages.
    pub no_echo: Option<Slot>,
    pub publisher: PublisherRef,
    pub from_loop: Option<u16>,
    pub hops: u8,
    pub elsewhere: Elsewhere,
    /// It came over a route: it goes to no other one.
    pub from_route: bool,
}

impl Broker {
    /// Delivers to everybody interested; returns how many receivers (other loops count as one each)
    /// there were.
    #[inline]
    pub(super) fn deliver(
        &mut self,
        origin: &Origin,
        message: &Message<'_>,
        owned: Option<Bytes>,
    ) -> u32 {
        let subject = message.subject.bytes();
        if !self.sublist.has_wildcards() {
            return match self.sublist.literal(subject) {
                None => 0,
                Some(id) => self.deliver_to(origin, message, owned, &[id]),
            };
        }
        let mut matched = std::mem::take(&mut self.matched);
        self.sublist.matches(subject, &mut matched);
        let receivers = match matched.is_empty() {
            true => 0,
            false => self.deliver_to(origin, message, owned, &matched),
        };
        self.matched = matched;
        receivers
    }

    /// With a table larger than the caches, each message waits for memory several times, one after the other.
    #[inline]
    pub(super) fn looks_ahead(&self) -> bool {
        self.sublist.pattern_count() > PATTERNS_CACHED
    }

    /// Brings what messages to these subjects will need into the caches, side by side.
    pub(super) fn look_ahead(&self, subjects: &[Padded<'_>]) {
        let mut found = [None; AHEAD_MAX];
        for (subject, id) in subjects.iter().zip(&mut found) {
            *id = self.sublist.literal(subject.bytes());
        }
        let mut read = 0;
        for id in found.into_iter().flatten() {
            let first = self.sublist.interest(id).plain().first();
            let subscription = first.and_then(|at| self.receivers.subscriptions.get(*at as usize));
            read += subscription.map_or(0, |subscription| subscription.delivered);
        }
        // To have read it is all.
        std::hint::black_box(read);
    }

    /// One message of a run that has to be delivered one by one.
    pub(super) fn deliver_again(&mut self, origin: &Origin, message: &Message<'_>) {
        if origin.from_loop.is_some() {
            self.deliver_from_loop(origin, message, None, true, Groups::default());
        } else if origin.from_route {
            self.deliver_plain(origin, message, None);
        } else {
            self.deliver(origin, message, None);
        }
    }

    #[inline]
    fn deliver_to(
        &mut self,
        origin: &Origin,
        message: &Message<'_>,
        owned: Option<Bytes>,
        matched: &[InterestId],
    ) -> u32 {
        let mut delivery = Delivery::new(message, owned, origin.no_echo);
        let mut grouped = false;
        let Self {
            receivers,
            sublist,
            matched_peers,
            peers,
            reached_routes,
            ..
        } = self;
        for id in matched {
            let interest = sublist.interest(*id);
            for subscription in interest.plain() {
                match receivers.deliver_one(&mut delivery, *subscription, None) {
                    None => {}
                    Some(Beyond::Loop(index)) => {
                        peers[index as usize].ask_plain(index, matched_peers)
                    }
                    Some(Beyond::Route(slot)) if !origin.from_route => {
                        receivers.deliver_once(&mut delivery, *subscription, slot, reached_routes);
                    }
                    Some(Beyond::Route(_)) => {}
                }
            }
            grouped |= !interest.groups().is_empty();
        }
        if grouped {
            self.deliver_to_groups(&mut delivery, matched, None);
        }
        self.finish(origin, &mut delivery);
        delivery.receivers + delivery.reached_peers
    }

    /// A message another loop sent: to our plain subscriptions when it says so, and to one member
    /// each of the named groups.
    pub(super) fn deliver_from_loop(
        &mut self,
        origin: &Origin,
        message: &Message<'_>,
        owned: Option<Bytes>,
        plain: bool,
        groups: Groups<'_>,
    ) {
        let mut matched = std::mem::take(&mut self.matched);
        self.sublist.matches(message.subject.bytes(), &mut matched);
        let mut delivery = Delivery::new(message, owned, self.no_echo_of(origin));
        let Self {
            receivers,
            sublist,
            reached_routes,
            ..
        } = self;
        if plain {
            for id in &matched {
                for subscription in sublist.interest(*id).plain() {
                    // The publisher's loop itself serves the other loops.
                    if let Some(Beyond::Route(slot)) =
                        receivers.deliver_one(&mut delivery, *subscription, None)
                    {
                        receivers.deliver_once(&mut delivery, *subscription, slot, reached_routes);
                    }
                }
            }
        }
        if !message.sid.is_empty() {
            self.deliver_to_addressee(&mut delivery, &matched, message.sid);
        }
        for name in groups {
            self.deliver_to_named_group(origin, &mut delivery, &matched, name);
        }
        self.matched = matched;
        self.finish(origin, &mut delivery);
    }

    /// The publisher of a message that another loop passed on, where it is ours and does not want it back.
    fn no_echo_of(&self, origin: &Origin) -> Option<Slot> {
        let PublisherRef {
            slot, cid, no_echo, ..
        } = origin.publisher;
        let is_ours = || {
            let client = self.receivers.clients.get(slot as usize);
            client.is_some_and(|client| client.cid == cid)
        };
        (no_echo && is_ours()).then_some(slot)
    }

    /// A message that came over a route: to our own plain subscriptions, or to the queue member it is
    /// addressed to.
    pub(super) fn deliver_from_route(
        &mut self,
        origin: &Origin,
        message: &Message<'_>,
        owned: Option<Bytes>,
    ) {
        let Some(member) = message.sid.strip_prefix(QUEUE_SID_PREFIX) else {
            self.deliver_plain(origin, message, owned);
            return;
        };
        let Some(address) = member
            .strip_prefix(b":")
            .filter(|a| Address::parse(a).is_some())
        else {
            log::error!(
                "Unable to deliver messaage: invalid QRSID: {}",
                String::from_utf8_lossy(message.sid)
            );
            return;
        };
        let mut matched = std::mem::take(&mut self.matched);
        self.sublist.matches(message.subject.bytes(), &mut matched);
        let mut delivery = Delivery::new(message, owned, None);
        self.deliver_to_addressee(&mut delivery, &matched, address);
        self.matched = matched;
        self.finish(origin, &mut delivery);
    }

    fn deliver_plain(&mut self, origin: &Origin, message: &Message<'_>, owned: Option<Bytes>) {
        let mut matched = std::mem::take(&mut self.matched);
        self.sublist.matches(message.subject.bytes(), &mut matched);
        let mut delivery = Delivery::new(message, owned, None);
        let Self {
            receivers,
            sublist,
            matched_peers,
            peers,
            ..
        } = self;
        for id in &matched {
            for subscription in sublist.interest(*id).plain() {
                // Routes get nothing: one hop only.
                if let Some(Beyond::Loop(index)) =
                    receivers.deliver_one(&mut delivery, *subscription, None)
                {
                    peers[index as usize].ask_plain(index, matched_peers);
                }
            }
        }
        self.matched = matched;
        self.finish(origin, &mut delivery);
    }

    /// What is left to do once all receivers have been visited.
    #[inline]
    fn finish(&mut self, origin: &Origin, delivery: &mut Delivery<'_, '_>) {
        let mut elsewhere = origin.elsewhere;
        if !self.matched_peers.is_empty() {
            elsewhere.loops = elsewhere.loops.and(self.send_to_peers(origin, delivery));
        }
        self.reached_routes.clear();
        self.totals.fanout_max = self.totals.fanout_max.max(delivery.receivers);
        self.totals.traffic.messages_out += u64::from(delivery.receivers);
        self.totals.traffic.bytes_out +=
            u64::from(delivery.receivers) * delivery.message.body_bytes as u64;
        if self.receivers.anything_left() {
            self.finish_rare(origin, delivery.message, delivery.receivers, elsewhere);
        }
    }

    #[cold]
    pub(super) fn finish_rare(
        &mut self,
        origin: &Origin,
        message: &Message<'_>,
        receivers: u32,
        elsewhere: Elsewhere,
    ) {
        for slot in std::mem::take(&mut self.receivers.requested) {
            let client = &mut self.receivers.clients[slot as usize];
            let responses = client.permissions.as_ref().and_then(|p| p.responses);
            if let (Some(responses), Some(reply)) = (responses, message.reply()) {
                let answers = client.answers.get_or_insert_default();
                answers.grant(reply, &responses, self.now);
            }
        }
        for subscription in std::mem::take(&mut self.receivers.expired) {
            if let Some(Target::Client(slot) | Target::Route(slot)) = self
                .receivers
                .subscriptions
                .get(subscription as usize)
                .map(|s| s.target())
            {
                log::debug!(
                    "{} - Auto-unsubscribe limit of {} reached for sid '{}'",
                    self.receivers.clients[slot as usize].label(),
                    self.receivers.limits[&subscription],
                    String::from_utf8_lossy(self.sid(subscription))
                );
                self.remove_subscription(slot, subscription);
            }
        }
        for slot in std::mem::take(&mut self.receivers.overflowed) {
            let subject = String::from_utf8_lossy(message.subject.bytes()).into_owned();
            let max = self.receivers.limits(slot).pending_bytes_max;
            self.cut_off(
                slot,
                format!("more than max_pending ({max}) on {subject:?}"),
            );
        }
        if !self.receivers.behind.is_empty() {
            self.hold(origin.publisher, receivers, elsewhere);
        }
    }

    /// Returns what there is to know of the receivers over there: each loop counts as one.
    fn send_to_peers(&mut self, origin: &Origin, delivery: &mut Delivery<'_, '_>) -> Count {
        let message = delivery.message;
        if delivery.owned.is_none() && message.tail.len >= SHARED_BYTES_MIN {
            delivery.owned = Some(Bytes::copy_from_slice(message.tail.bytes()));
        }
        let targets = std::mem::take(&mut self.matched_peers);
        let (told, theirs) = self.receivers_of(origin, delivery.receivers, &targets);
        for index in &targets {
            let Self { peers, sublist, .. } = self;
            let peer = &mut peers[*index as usize];
            let groups = std::mem::take(&mut peer.groups);
            let plain = std::mem::take(&mut peer.plain);
            let message = &Message {
                sid: &peer.member,
                ..*message
            };
            let envelope = Envelope {
                plain,
                hops: origin.hops + u8::from(origin.from_loop.is_some()),
                elsewhere: told.without(peer.as_receiver()),
                publisher: origin.publisher,
            };
            let names = groups.iter().map(|queue| sublist.queue_name(*queue));
            peer.outgoing
                .push_message(message, delivery.owned.as_ref(), envelope, names);
            peer.groups = groups;
            peer.groups.clear();
            peer.member.clear();
            if peer.bytes_ahead() > self.backlog_bytes_max {
                self.wait_for_peer(*index, origin.publisher);
            }
        }
        // For the publisher, whoever gets it over there is one receiver.
        delivery.reached_peers += targets.len() as u32;
        self.matched_peers = targets;
        self.matched_peers.clear();
        theirs
    }

    /// Of a message that has so many receivers here, and some on each of these loops: what there is to know of all of them,
    /// and of those loops alone.
    pub(super) fn receivers_of(
        &self,
        origin: &Origin,
        here: u32,
        loops: &[u16],
    ) -> (Elsewhere, Count) {
        let ours = Count {
            receivers: here,
            behind: self.receivers.behind.len() as u32,
        };
        let mut theirs = Count::default();
        for index in loops {
            theirs = theirs.and(self.peers[usize::from(*index)].as_receiver());
        }
        let Elsewhere { counted, loops } = origin.elsewhere;
        let all = Elsewhere {
            counted: counted.and(ours),
            loops: loops.and(theirs),
        };
        (all, theirs)
    }

    /// The answer to a request that reached nobody: status 503, to the requester's own subscription
    /// on the reply subject.
    #[cold]
    pub(super) fn answer_no_responders(&mut self, slot: Slot, reply: &[u8]) {
        let message = Message {
            subject: Padded::exact(reply),
            tail: Padded::exact(crate::wire::encode::NO_RESPONDERS_TAIL),
            reply_bytes: 0,
            header_bytes: Some(16),
            body_bytes: 16,
            sid: b"",
        };
        let mut matched = Vec::new();
        self.sublist.matches(reply, &mut matched);
        let own = |broker: &Self, id: &u32| {
            broker.receivers.subscriptions[*id as usize].target() == Target::Client(slot)
        };
        let subscription = matched.iter().find_map(|id| {
            let interest = self.sublist.interest(*id);
            interest.plain().iter().copied().find(|id| own(self, id))
        });
        if let Some(subscription) = subscription {
            let mut delivery = Delivery::new(&message, None, None);
            self.receivers
                .deliver_one(&mut delivery, subscription, None);
            let origin = Origin {
                no_echo: None,
                publisher: self.publisher(slot),
                from_loop: None,
                hops: 0,
                elsewhere: Elsewhere::default(),
                from_route: false,
            };
            self.finish(&origin, &mut delivery);
        }
    }
}
