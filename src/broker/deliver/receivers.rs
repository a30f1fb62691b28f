//! One receiver: `MSG subject sid ` and the message into its outbox.

use super::super::client::{Client, Phase};
use super::super::hold::Limits;
use super::super::outbox::put;
use super::super::settings::Settings;
use super::super::subs::{Care, Subscription, Target};
use super::super::{Slot, mark_dirty};
use crate::util::pool::Pool;
use crate::wire::encode::tail_without_headers;
use crate::wire::parser::{Kind, Message, Padded, SHARED_BYTES_MIN};
use bytes::Bytes;
use slab::Slab;
use std::collections::HashMap;

/// Where a subscription leads when it is not one of this loop's own clients.
pub(super) enum Beyond {
    Loop(u16),
    Route(Slot),
}

/// One message on its way to its receivers, with the forms of it made so far.
pub(super) struct Delivery<'m, 'a> {
    pub message: &'m Message<'a>,
    pub owned: Option<Bytes>,
    without_headers: Option<Bytes>,
    no_echo: Option<Slot>,
    /// Connections of this loop that got it, and other loops that did.
    pub receivers: u32,
    pub reached_peers: u32,
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

/// So many may be in the list of receivers that were behind before those are taken out that are not.
const LISTED_MIN: usize = 64;

/// A receiver above its high-water mark, and the subscription by which it got the message.
#[derive(Clone, Copy, Debug)]
pub(in crate::broker) struct Behind {
    pub slot: Slot,
    pub subscription: u32,
}

/// Connections and subscriptions with what delivery to them needs; a value of its own, so that it
/// can be changed while the sublist is being read.
pub(in crate::broker) struct Receivers {
    pub clients: Slab<Client>,
    pub subscriptions: Slab<Subscription>,
    /// Limits set by UNSUB with max, by subscription; few have one.
    pub limits: HashMap<u32, u64>,
    /// Subscription ids too long for the record.
    pub long_sids: HashMap<u32, Box<[u8]>>,
    pub pool: Pool,
    /// What may wait for a client, and for a route.
    client_limits: Limits,
    route_limits: Limits,
    /// Connections with output for the next flush pass.
    pub dirty: Vec<Slot>,
    /// Per message, worked off in `finish`: subscriptions whose limit it used up, receivers above
    /// their high-water mark, and those above their bound.
    pub(super) expired: Vec<u32>,
    pub behind: Vec<Behind>,
    /// Receivers that were above their marks, by slot and cid; some have caught up or have gone.
    was_behind: Vec<(Slot, u64)>,
    pub(super) overflowed: Vec<Slot>,
    /// Clients that got a request and may answer it whatever else they may publish.
    pub requested: Vec<Slot>,
    /// Number of the run being delivered: connections that carry it were seen already.
    pub visit: u32,
}

impl Receivers {
    pub fn new(pool: Pool) -> Self {
        Self {
            clients: Slab::new(),
            subscriptions: Slab::new(),
            limits: HashMap::new(),
            long_sids: HashMap::new(),
            pool,
            client_limits: Limits::new(usize::MAX),
            route_limits: Limits::new(usize::MAX),
            dirty: Vec::new(),
            expired: Vec::new(),
            behind: Vec::new(),
            was_behind: Vec::new(),
            overflowed: Vec::new(),
            requested: Vec::new(),
            visit: 0,
        }
    }

    pub fn anything_left(&self) -> bool {
        !(self.requested.is_empty()
            && self.expired.is_empty()
            && self.behind.is_empty()
            && self.overflowed.is_empty())
    }

    pub fn set_limits(&mut self, settings: &Settings) {
        self.client_limits = Limits::new(settings.pending_bytes_max);
        let cluster = settings.cluster.as_ref();
        let route_max = cluster.map_or(0, |cluster| cluster.pending_bytes_max);
        self.route_limits = Limits::new(route_max);
    }

    /// What makes a connection of this kind be looked at, by `note_backlog`.
    #[inline(always)]
    pub fn high_water_bytes(&self, kind: Kind) -> usize {
        match kind {
            Kind::Client => self.client_limits.high_water_bytes,
            Kind::Route => self.route_limits.high_water_bytes,
        }
    }

    pub fn limits(&self, slot: Slot) -> Limits {
        let client = &self.clients[slot as usize];
        match client.kind {
            // Whatever clients may have: it is never cut off.
            Kind::Client if client.internal => Limits::new(usize::MAX),
            Kind::Client => self.client_limits,
            Kind::Route => self.route_limits,
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
        if subscription.care != Care::Nothing {
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
        if client.outbox.pending() > self.client_limits.high_water_bytes {
            self.note_backlog(slot, id, message.tail.len);
        }
        None
    }

    /// A receiver above its high-water mark, after some `added` bytes (those of a head may be left out). What it had before
    /// them says whether it is too slow: a message may be larger than all that may wait, and nobody can have taken it yet.
    /// Who sends to a part of this process has to wait, since nothing else bounds what waits there.
    #[cold]
    pub fn note_backlog(&mut self, slot: Slot, subscription: u32, added: usize) {
        let limits = self.limits(slot);
        let client = &mut self.clients[slot as usize];
        let pending = client.outbox.pending();
        if pending.saturating_sub(added) > limits.pending_bytes_max {
            self.overflowed.push(slot);
        } else if pending > limits.high_water_bytes && (!client.stuck || client.internal) {
            self.behind.push(Behind { slot, subscription });
            self.list_behind(slot);
        }
    }

    fn list_behind(&mut self, slot: Slot) {
        let client = &mut self.clients[slot as usize];
        if std::mem::replace(&mut client.listed_behind, true) {
            return;
        }
        let cid = client.cid;
        if self.was_behind.len() >= LISTED_MIN.max(2 * self.clients.len()) {
            let mut listed = std::mem::take(&mut self.was_behind);
            listed.retain(|(slot, cid)| self.stays_listed(*slot, *cid));
            self.was_behind = listed;
        }
        self.was_behind.push((slot, cid));
    }

    /// Whether this one is behind yet; otherwise it is not listed any more.
    fn stays_listed(&mut self, slot: Slot, cid: u64) -> bool {
        let of_it = |client: &&mut Client| client.cid == cid;
        if self.clients.get_mut(slot as usize).filter(of_it).is_none() {
            return false;
        }
        let low_water_bytes = self.limits(slot).low_water_bytes();
        let client = &mut self.clients[slot as usize];
        let is_behind = client.outbox.pending() > low_water_bytes;
        client.listed_behind = is_behind && client.phase == Phase::Open && !client.internal;
        client.listed_behind
    }

    /// Whether some receiver was above its mark and has not caught up since. Parts of this process do not count: who sends to
    /// them waits by other terms.
    pub fn is_some_behind(&mut self) -> bool {
        while let Some((slot, cid)) = self.was_behind.last().copied() {
            if self.stays_listed(slot, cid) {
                return true;
            }
            self.was_behind.pop();
        }
        false
    }

    #[cfg(test)]
    pub fn was_behind_count(&self) -> usize {
        self.was_behind.len()
    }

    /// A route gets a message once, however many of its plain subscriptions match.
    #[cold]
    pub(super) fn deliver_once(
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
        if client.outbox.pending() > self.route_limits.high_water_bytes {
            self.note_backlog(slot, id, delivery.message.tail.len);
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
pub(in crate::broker) fn put_head(
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
