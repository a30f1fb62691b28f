//! Delivery: from a message and its matches to outboxes and to other loops.
//!
//! This is the hot path. Per receiver: two records looked up, one short header and one copy of the
//! message's tail written, a few counters. No allocation, lock, syscall or formatting.

use super::client::{Client, Phase, PublisherRef};
use super::mail::{Envelope, Groups};
use super::outbox::put;
use super::peers::BACKLOG_BYTES_MAX;
use super::propagate::{Address, QUEUE_SID_PREFIX};
use super::settings::Settings;
use super::subs::{Subscription, Target};
use super::{Broker, Slot, hold, mark_dirty};
use crate::subject::sublist::{InterestId, QueueId};
use crate::util::pool::Pool;
use crate::wire::encode::tail_without_headers;
use crate::wire::parser::{Kind, Message, Padded, SHARED_BYTES_MIN};
use bytes::Bytes;
use slab::Slab;
use std::collections::HashMap;

/// How often a message for a queue group may be passed from loop to loop because the member chosen
/// for it had gone meanwhile.
const HOPS_MAX: u8 = 8;

/// Where a message comes from.
pub(super) struct Origin {
    /// The publishing connection, when it does not want its own messages.
    pub no_echo: Option<Slot>,
    pub publisher: PublisherRef,
    pub from_loop: Option<u16>,
    pub hops: u8,
    /// Receivers known elsewhere.
    pub others: u32,
    /// It came over a route: it goes to no other one.
    pub from_route: bool,
}

/// Where a subscription leads when it is not one of this loop's own clients.
pub(super) enum Beyond {
    Loop(u16),
    Route(Slot),
}

/// One message on its way to its receivers, with the forms of it made so far.
pub(super) struct Delivery<'m, 'a> {
    message: &'m Message<'a>,
    owned: Option<Bytes>,
    without_headers: Option<Bytes>,
    no_echo: Option<Slot>,
    /// Connections of this loop that got it, and other loops that did.
    pub receivers: u32,
    reached_peers: u32,
}

impl<'m, 'a> Delivery<'m, 'a> {
    #[inline(always)]
    pub fn new(message: &'m Message<'a>, owned: Option<Bytes>, no_echo: Option<Slot>) -> Self {
        Self {
            message,
            owned,
            without_headers: None,
            no_echo,
            receivers: 0,
            reached_peers: 0,
        }
    }
}

/// Connections and subscriptions with what delivery to them needs; a value of its own, so that it
/// can be changed while the sublist is being read.
pub(super) struct Receivers {
    pub clients: Slab<Client>,
    pub subscriptions: Slab<Subscription>,
    /// Limits set by UNSUB with max, by subscription; few have one.
    pub limits: HashMap<u32, u64>,
    /// Subscription ids too long for the record.
    pub long_sids: HashMap<u32, Box<[u8]>>,
    pub pool: Pool,
    /// Backlog beyond which a client, and a route, is cut off.
    pub pending_bytes_max: usize,
    pub route_pending_bytes_max: usize,
    /// Connections with output for the next flush pass.
    pub dirty: Vec<Slot>,
    /// Per message, worked off in `finish`: subscriptions whose limit it used up, receivers above
    /// their high-water mark, and those above their bound.
    expired: Vec<u32>,
    pub behind: Vec<Slot>,
    overflowed: Vec<Slot>,
    /// Clients that got a request and may answer it whatever else they may publish.
    pub requested: Vec<Slot>,
    /// Number of the run being delivered: connections that carry it were seen already.
    pub visit: u32,
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

    /// One member of each queue group among the matches (or of the group `only`).
    pub(super) fn deliver_to_groups(
        &mut self,
        delivery: &mut Delivery<'_, '_>,
        matched: &[InterestId],
        only: Option<QueueId>,
    ) {
        for (first, id) in matched.iter().enumerate() {
            let mut at = 0;
            while let Some(group) = self.sublist.interest(*id).groups().get(at) {
                at += 1;
                let queue = group.id();
                if only.is_some_and(|only| only != queue) {
                    continue;
                }
                // Members of one group may stand at several patterns; the first of them speaks for all.
                let elsewhere = |ids: &[InterestId]| {
                    ids.iter()
                        .any(|other| self.sublist.interest(*other).group(queue).is_some())
                };
                if matched.len() > 1 && elsewhere(&matched[..first]) {
                    continue;
                }
                let spread = matched.len() > 1 && elsewhere(&matched[first + 1..]);
                self.deliver_to_group(delivery, &matched[first..], queue, spread);
            }
        }
    }

    /// One member, chosen evenly over all members of all loops; members that cannot take the message
    /// are passed over.
    fn deliver_to_group(
        &mut self,
        delivery: &mut Delivery<'_, '_>,
        matched: &[InterestId],
        queue: QueueId,
        spread: bool,
    ) {
        let here = if spread { matched } else { &matched[..1] };
        let Self {
            receivers,
            sublist,
            matched_peers,
            peers,
            random,
            ..
        } = self;
        let groups = || {
            here.iter()
                .filter_map(|id| sublist.interest(*id).group(queue))
        };
        let weight: u64 = groups().map(|group| group.total_weight()).sum();
        if weight == 0 {
            return;
        }
        let mut pick = u64::from(random.below(u32::try_from(weight).unwrap_or(u32::MAX)));
        // Members in a row, from the picked one to the end and then from the start.
        let mut members = 0;
        let mut start = 0;
        let mut found = false;
        for group in groups() {
            if !found && let Some(index) = group.at_weight(&mut pick) {
                start = members + index;
                found = true;
            }
            members += group.len();
        }
        for step in 0..members {
            let mut index = start + step;
            if index >= members {
                index -= members;
            }
            let Some(subscription) = groups().find_map(|group| match group.member(index) {
                Some(member) => Some(member),
                None => {
                    index -= group.len();
                    None
                }
            }) else {
                return;
            };
            let before = delivery.receivers;
            match receivers.deliver_one(delivery, subscription, Some(sublist.queue_name(queue))) {
                None => {}
                Some(Beyond::Loop(index)) => {
                    return peers[index as usize].ask_group(index, queue, matched_peers);
                }
                Some(Beyond::Route(slot)) => {
                    receivers.deliver_to_route(delivery, subscription, slot)
                }
            }
            if delivery.receivers > before {
                return;
            }
        }
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
        let mut delivery = Delivery::new(message, owned, None);
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

    /// The other loop chose one of our members; when all of them have gone, somebody else gets it.
    fn deliver_to_named_group(
        &mut self,
        origin: &Origin,
        delivery: &mut Delivery<'_, '_>,
        matched: &[InterestId],
        name: &[u8],
    ) {
        let Some(queue) = self.sublist.queue_id(name) else {
            return;
        };
        let local = |broker: &Self, subscription: u32| {
            matches!(
                broker.receivers.subscriptions[subscription as usize].target(),
                Target::Client(_) | Target::Route(_)
            )
        };
        let mut candidates: Vec<u32> = Vec::new();
        for id in matched {
            if let Some(group) = self.sublist.interest(*id).group(queue) {
                candidates.extend(
                    (0..group.len())
                        .filter_map(|i| group.member(i))
                        .filter(|s| local(self, *s)),
                );
            }
        }
        let start = if candidates.is_empty() {
            0
        } else {
            self.random.below(candidates.len() as u32) as usize
        };
        for step in 0..candidates.len() {
            let subscription = candidates[(start + step) % candidates.len()];
            let before = delivery.receivers;
            let beyond = self
                .receivers
                .deliver_one(delivery, subscription, Some(name));
            if let Some(Beyond::Route(slot)) = beyond {
                self.receivers
                    .deliver_to_route(delivery, subscription, slot);
            }
            if delivery.receivers > before {
                return;
            }
        }
        if origin.hops < HOPS_MAX {
            self.deliver_to_groups(delivery, matched, Some(queue));
        }
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

    /// One member of a queue group, chosen by the server that sent the message. When it has gone, or
    /// has had all it wanted, another member gets it, wherever that is.
    fn deliver_to_addressee(
        &mut self,
        delivery: &mut Delivery<'_, '_>,
        matched: &[InterestId],
        address: &[u8],
    ) {
        let Some(Address { cid, sid }) = Address::parse(address) else {
            return;
        };
        let home = self.loop_of(cid);
        if home != self.loop_index {
            self.peers[usize::from(home)].ask_member(home, address, &mut self.matched_peers);
            return;
        }
        let subscription = self
            .slot_of(cid)
            .and_then(|slot| self.find_subscription(slot, sid));
        let mut queue = None;
        if let Some(id) = subscription {
            queue = self.receivers.subscriptions[id as usize].queue;
            let name = queue.map(|queue| self.sublist.queue_name(queue));
            if name.is_some() {
                let before = delivery.receivers;
                self.receivers.deliver_one(delivery, id, name);
                if delivery.receivers > before {
                    return;
                }
            }
        }
        let queue = match self.departed.group_of(address) {
            _ if queue.is_some() => queue,
            Some(group) => self.sublist.queue_id(group),
            // It left long ago: any group that listens will do.
            None => {
                let groups = |id: &InterestId| self.sublist.interest(*id).groups();
                matched.iter().find_map(|id| Some(groups(id).first()?.id()))
            }
        };
        if queue.is_some() {
            self.deliver_to_groups(delivery, matched, queue);
        }
    }

    /// What is left to do once all receivers have been visited.
    #[inline]
    pub(super) fn finish(&mut self, origin: &Origin, delivery: &mut Delivery<'_, '_>) {
        if !self.matched_peers.is_empty() {
            self.send_to_peers(origin, delivery);
        }
        self.reached_routes.clear();
        self.totals.fanout_max = self.totals.fanout_max.max(delivery.receivers);
        self.totals.traffic.messages_out += u64::from(delivery.receivers);
        self.totals.traffic.bytes_out +=
            u64::from(delivery.receivers) * delivery.message.body_bytes as u64;
        if self.receivers.anything_left() {
            self.finish_rare(origin, delivery.message, delivery.receivers);
        }
    }

    #[cold]
    pub(super) fn finish_rare(&mut self, origin: &Origin, message: &Message<'_>, receivers: u32) {
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
                    "{} - Auto-unsubscribe limit reached for sid '{}'",
                    self.receivers.clients[slot as usize].label(),
                    String::from_utf8_lossy(self.sid(subscription))
                );
                self.remove_subscription(slot, subscription);
            }
        }
        for slot in std::mem::take(&mut self.receivers.overflowed) {
            let subject = String::from_utf8_lossy(message.subject.bytes()).into_owned();
            let max = self.receivers.pending_bytes_max(slot);
            self.cut_off(
                slot,
                format!("more than max_pending ({max}) on {subject:?}"),
            );
        }
        if !self.receivers.behind.is_empty() {
            self.hold(origin.publisher, receivers + origin.others);
        }
    }

    fn send_to_peers(&mut self, origin: &Origin, delivery: &mut Delivery<'_, '_>) {
        let message = delivery.message;
        if delivery.owned.is_none() && message.tail.len >= SHARED_BYTES_MIN {
            delivery.owned = Some(Bytes::copy_from_slice(message.tail.bytes()));
        }
        let targets = std::mem::take(&mut self.matched_peers);
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
                others: delivery.receivers,
                publisher: origin.publisher,
            };
            let names = groups.iter().map(|queue| sublist.queue_name(*queue));
            peer.outgoing
                .push_message(message, delivery.owned.as_ref(), envelope, names);
            peer.groups = groups;
            peer.groups.clear();
            peer.member.clear();
            if peer.backlog + peer.outgoing.weight > BACKLOG_BYTES_MAX {
                self.wait_for_peer(*index, origin.publisher);
            }
        }
        // For the publisher, whoever gets it over there is one receiver.
        delivery.reached_peers += targets.len() as u32;
        self.matched_peers = targets;
        self.matched_peers.clear();
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
                others: 0,
                from_route: false,
            };
            self.finish(&origin, &mut delivery);
        }
    }
}

impl Receivers {
    pub fn new(pool: Pool) -> Self {
        Self {
            clients: Slab::new(),
            subscriptions: Slab::new(),
            limits: HashMap::new(),
            long_sids: HashMap::new(),
            pool,
            pending_bytes_max: usize::MAX,
            route_pending_bytes_max: usize::MAX,
            dirty: Vec::new(),
            expired: Vec::new(),
            behind: Vec::new(),
            overflowed: Vec::new(),
            requested: Vec::new(),
            visit: 0,
        }
    }

    pub(super) fn anything_left(&self) -> bool {
        !(self.requested.is_empty()
            && self.expired.is_empty()
            && self.behind.is_empty()
            && self.overflowed.is_empty())
    }

    pub fn set_limits(&mut self, settings: &Settings) {
        self.pending_bytes_max = settings.pending_bytes_max;
        let cluster = settings.cluster.as_ref();
        self.route_pending_bytes_max = cluster.map_or(0, |cluster| cluster.pending_bytes_max);
    }

    pub(super) fn pending_bytes_max(&self, slot: Slot) -> usize {
        match self.clients[slot as usize].kind {
            Kind::Client => self.pending_bytes_max,
            Kind::Route => self.route_pending_bytes_max,
        }
    }

    /// Appends the message for one subscription, unless that leads elsewhere.
    #[inline(always)]
    pub(super) fn deliver_one(
        &mut self,
        delivery: &mut Delivery<'_, '_>,
        id: u32,
        queue: Option<&[u8]>,
    ) -> Option<Beyond> {
        let subscription = &mut self.subscriptions[id as usize];
        let slot = match subscription.target() {
            Target::Client(slot) => slot,
            Target::Route(slot) => return Some(Beyond::Route(slot)),
            Target::Loop(index) => return Some(Beyond::Loop(index)),
        };
        let client = &mut self.clients[slot as usize];
        if delivery.no_echo == Some(slot) || client.phase != Phase::Open {
            return None;
        }
        let message = delivery.message;
        let mut may_answer = false;
        if subscription.care != super::subs::Care::Nothing {
            if subscription.care.filtered() {
                let subject = message.subject.bytes();
                if client
                    .permissions
                    .as_ref()
                    .is_some_and(|p| !p.may_receive(subject, queue))
                {
                    return None;
                }
                may_answer = message.reply_bytes > 0
                    && client
                        .permissions
                        .as_ref()
                        .is_some_and(|p| p.responses.is_some());
            }
            if subscription.care.limited() {
                let max = self.limits[&id];
                if subscription.delivered >= max {
                    return None;
                }
                if subscription.delivered + 1 == max {
                    self.expired.push(id);
                }
            }
        }
        let sid = match subscription.short_sid() {
            Some(sid) => sid,
            None => Padded::exact(&self.long_sids[&id]),
        };
        append_message(delivery, client, sid, &mut self.pool);
        subscription.delivered += 1;
        if may_answer {
            self.requested.push(slot);
        }
        mark_dirty(client, slot, &mut self.dirty);
        if client.outbox.pending() > hold::HIGH_WATER_BYTES {
            self.note_backlog(slot, self.pending_bytes_max);
        }
        None
    }

    /// A receiver above its high-water mark.
    #[cold]
    pub(super) fn note_backlog(&mut self, slot: Slot, pending_bytes_max: usize) {
        let client = &self.clients[slot as usize];
        if client.outbox.pending() > pending_bytes_max && !client.internal {
            self.overflowed.push(slot);
        } else if !client.stuck {
            self.behind.push(slot);
        }
    }

    /// A route gets a message once, however many of its plain subscriptions match.
    #[cold]
    fn deliver_once(
        &mut self,
        delivery: &mut Delivery<'_, '_>,
        id: u32,
        slot: Slot,
        reached: &mut Vec<Slot>,
    ) {
        if reached.contains(&slot) {
            return;
        }
        let before = delivery.receivers;
        self.deliver_to_route(delivery, id, slot);
        if delivery.receivers > before {
            reached.push(slot);
        }
    }

    /// Sends the message over a route, addressed to one subscription of its other end.
    pub(super) fn deliver_to_route(
        &mut self,
        delivery: &mut Delivery<'_, '_>,
        id: u32,
        slot: Slot,
    ) {
        let subscription = &mut self.subscriptions[id as usize];
        let client = &mut self.clients[slot as usize];
        if client.phase != Phase::Open {
            return;
        }
        if subscription.care.limited() {
            let max = self.limits[&id];
            if subscription.delivered >= max {
                return;
            }
            if subscription.delivered + 1 == max {
                self.expired.push(id);
            }
        }
        let sid = match subscription.short_sid() {
            Some(sid) => sid,
            None => Padded::exact(&self.long_sids[&id]),
        };
        append_message(delivery, client, sid, &mut self.pool);
        subscription.delivered += 1;
        mark_dirty(client, slot, &mut self.dirty);
        if client.outbox.pending() > hold::HIGH_WATER_BYTES {
            self.note_backlog(slot, self.route_pending_bytes_max);
        }
    }
}

/// `MSG subject sid ` and the tail, into the outbox of a connection that may have it.
#[inline(always)]
fn append_message(
    delivery: &mut Delivery<'_, '_>,
    client: &mut Client,
    sid: Padded<'_>,
    pool: &mut Pool,
) {
    let message = delivery.message;
    let headers = message.header_bytes.is_some() && client.headers;
    if message.tail.len < SHARED_BYTES_MIN && (headers || message.header_bytes.is_none()) {
        let bytes = 8 + message.subject.len + sid.len + message.tail.len;
        client.outbox.append_with(pool, bytes, |to| {
            let at = put_head(to, message.subject, sid, headers);
            put(to, at, message.tail)
        });
    } else {
        append_unusual(client, pool, delivery, sid, headers);
    }
    if log::log_enabled!(log::Level::Trace) {
        trace_delivery(client, message, sid, headers);
    }
    client.traffic.messages_out += 1;
    client.traffic.bytes_out += message.body_bytes as u64;
    delivery.receivers += 1;
}

#[cold]
fn trace_delivery(client: &Client, message: &Message<'_>, sid: Padded<'_>, headers: bool) {
    let lossy = String::from_utf8_lossy;
    let (subject, sid) = (lossy(message.subject.bytes()), lossy(sid.bytes()));
    let reply = message
        .reply()
        .map_or(String::new(), |reply| format!("{} ", lossy(reply)));
    let sizes = match (message.header_bytes, headers) {
        (Some(header_bytes), true) => format!("{header_bytes} {}", message.body_bytes),
        (Some(header_bytes), false) => (message.body_bytes - header_bytes as usize).to_string(),
        (None, _) => message.body_bytes.to_string(),
    };
    let verb = if headers { "HMSG" } else { "MSG" };
    let line = format!("{verb} {subject} {sid} {reply}{sizes}");
    client.trace_out(line.as_bytes());
}

/// `MSG subject sid ` or `HMSG subject sid `.
#[inline(always)]
pub(super) fn put_head(
    to: &mut [u8],
    subject: Padded<'_>,
    sid: Padded<'_>,
    headers: bool,
) -> usize {
    let at = if headers {
        to[..5].copy_from_slice(b"HMSG ");
        5
    } else {
        to[..4].copy_from_slice(b"MSG ");
        4
    };
    let at = put(to, at, subject);
    to[at] = b' ';
    let at = put_sid(to, at + 1, sid);
    to[at] = b' ';
    at + 1
}

/// As `put`, in the size of the record's inline sids.
#[inline(always)]
fn put_sid(to: &mut [u8], at: usize, sid: Padded<'_>) -> usize {
    const INLINE: usize = 13;
    let room = &mut to[at..];
    match (
        room.first_chunk_mut::<INLINE>(),
        sid.over.first_chunk::<INLINE>(),
    ) {
        (Some(room), Some(over)) if sid.len <= INLINE => *room = *over,
        _ => room[..sid.len].copy_from_slice(sid.bytes()),
    }
    at + sid.len
}

/// Large messages, shared by all their receivers, and those that lose their headers on the way.
#[cold]
fn append_unusual(
    client: &mut Client,
    pool: &mut Pool,
    delivery: &mut Delivery<'_, '_>,
    sid: Padded<'_>,
    headers: bool,
) {
    let message = delivery.message;
    let tail = if message.header_bytes.is_some() && !headers {
        delivery
            .without_headers
            .get_or_insert_with(|| tail_without_headers(message).into())
    } else {
        delivery
            .owned
            .get_or_insert_with(|| Bytes::copy_from_slice(message.tail.bytes()))
    };
    let head_bytes = 8 + message.subject.len + sid.len;
    client.outbox.append_with(pool, head_bytes, |to| {
        put_head(to, message.subject, sid, headers)
    });
    if tail.len() < SHARED_BYTES_MIN {
        client.outbox.append(pool, tail);
    } else {
        client.outbox.append_shared(pool, tail.clone());
    }
}
