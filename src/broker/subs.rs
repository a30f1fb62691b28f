//! Subscriptions: one record each, found by sid from its connection and by subject from the table.

use super::peers::Change;
use super::propagate::News;
use super::{Broker, Slot, deliver};
use crate::subject::sublist::{Place, QueueId};
use crate::subject::token;
use crate::wire::parser::{Kind, Padded};
use foldhash::fast::FixedState;
use std::hash::{BuildHasher, Hasher};

/// Sids up to this long are kept in the record itself; clients number theirs, so nearly all are.
const SID_BYTES_INLINE: usize = 13;
const SID_IS_LONG: u8 = u8::MAX;

/// Who gets what matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Client(Slot),
    Route(Slot),
    Loop(u16),
}

/// What delivery has to mind about a subscription; most have nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Care {
    Nothing,
    /// There is a limit in `Receivers::limits`.
    Limited,
    /// Permissions must be asked per message.
    Filtered,
    LimitedAndFiltered,
}

impl Care {
    pub fn limited(self) -> bool {
        matches!(self, Self::Limited | Self::LimitedAndFiltered)
    }

    pub fn filtered(self) -> bool {
        matches!(self, Self::Filtered | Self::LimitedAndFiltered)
    }

    pub fn with_limit(self, limited: bool) -> Self {
        Self::of(limited, self.filtered())
    }

    pub fn with_filter(self, filtered: bool) -> Self {
        Self::of(self.limited(), filtered)
    }

    fn of(limited: bool, filtered: bool) -> Self {
        match (limited, filtered) {
            (false, false) => Self::Nothing,
            (true, false) => Self::Limited,
            (false, true) => Self::Filtered,
            (true, true) => Self::LimitedAndFiltered,
        }
    }
}

/// Kept small: there may be millions.
#[derive(Debug)]
pub struct Subscription {
    /// Slot of a client, `ROUTE_BASE` + slot of a route, or `LOOP_BASE` + index of a loop.
    target: u32,
    pub place: Place,
    pub queue: Option<QueueId>,
    /// Messages delivered so far.
    pub delivered: u64,
    pub care: Care,
    sid_length: u8,
    sid: [u8; SID_BYTES_INLINE],
}

const ROUTE_BASE: u32 = 1 << 31;
const LOOP_BASE: u32 = u32::MAX - u16::MAX as u32;

impl Subscription {
    fn new(target: Target, sid: &[u8], care: Care) -> Self {
        let mut inline = [0; SID_BYTES_INLINE];
        let mut sid_length = SID_IS_LONG;
        if let Some(space) = inline.get_mut(..sid.len()) {
            space.copy_from_slice(sid);
            sid_length = sid.len() as u8;
        }
        let target = match target {
            Target::Client(slot) => slot,
            Target::Route(slot) => ROUTE_BASE + slot,
            Target::Loop(index) => LOOP_BASE + u32::from(index),
        };
        Self {
            target,
            place: Place::default(),
            queue: None,
            delivered: 0,
            care,
            sid_length,
            sid: inline,
        }
    }

    #[inline(always)]
    pub fn target(&self) -> Target {
        match self.target {
            slot if slot < ROUTE_BASE => Target::Client(slot),
            route if route < LOOP_BASE => Target::Route(route - ROUTE_BASE),
            index => Target::Loop((index - LOOP_BASE) as u16),
        }
    }

    /// The sid, unless it is a long one.
    #[inline(always)]
    pub fn short_sid(&self) -> Option<Padded<'_>> {
        (self.sid_length != SID_IS_LONG).then(|| Padded::new(&self.sid, self.sid_length as usize))
    }
}

/// The state is each loop's own, so that a client cannot make sids collide.
fn sid_hash(state: &FixedState, sid: &[u8]) -> u64 {
    let mut hasher = state.build_hasher();
    hasher.write(sid);
    hasher.finish()
}

impl Broker {
    pub(super) fn sid(&self, id: u32) -> &[u8] {
        match self.receivers.subscriptions[id as usize].short_sid() {
            Some(sid) => sid.bytes(),
            None => &self.receivers.long_sids[&id],
        }
    }

    pub(super) fn find_subscription(&self, slot: Slot, sid: &[u8]) -> Option<u32> {
        let client = &self.receivers.clients[slot as usize];
        client
            .subscriptions
            .find(sid_hash(&self.sid_hash, sid), |id| self.sid(*id) == sid)
            .copied()
    }

    /// Adds a subscription of a connection, client or route; the sid must not be in use.
    pub(super) fn add_subscription(
        &mut self,
        slot: Slot,
        subject: &[u8],
        queue: Option<&[u8]>,
        sid: &[u8],
        care: Care,
    ) {
        debug_assert!(token::is_valid_subscription(subject));
        let target = match self.receivers.clients[slot as usize].kind {
            Kind::Client => Target::Client(slot),
            Kind::Route => Target::Route(slot),
        };
        let id = self.insert(target, subject, queue, sid, care, 1);
        let state = &self.sid_hash;
        let deliver::Receivers {
            clients,
            subscriptions,
            long_sids,
            ..
        } = &mut self.receivers;
        clients[slot as usize]
            .subscriptions
            .insert_unique(sid_hash(state, sid), id, |id| {
                let sid = match subscriptions[*id as usize].short_sid() {
                    Some(sid) => sid.bytes(),
                    None => &long_sids[id],
                };
                sid_hash(state, sid)
            });
        clients[slot as usize].members += u32::from(queue.is_some());
        self.totals.inserts += 1;
        self.tell_peers(id, Change::Added);
        self.tell_routes(id, News::Added);
    }

    /// A record in the table of subscriptions and in the table of subjects.
    pub(super) fn insert(
        &mut self,
        target: Target,
        subject: &[u8],
        queue: Option<&[u8]>,
        sid: &[u8],
        care: Care,
        weight: u32,
    ) -> u32 {
        let id = self
            .receivers
            .subscriptions
            .insert(Subscription::new(target, sid, care)) as u32;
        let (place, queue) = self.sublist.insert(subject, queue, id, weight);
        let subscription = &mut self.receivers.subscriptions[id as usize];
        subscription.place = place;
        subscription.queue = queue;
        if subscription.sid_length == SID_IS_LONG {
            self.receivers.long_sids.insert(id, sid.into());
        }
        id
    }

    /// Ends a subscription of a connection that stays.
    pub(super) fn remove_subscription(&mut self, slot: Slot, id: u32) {
        if log::log_enabled!(log::Level::Trace) {
            let label = self.receivers.clients[slot as usize].label();
            let sid = String::from_utf8_lossy(self.sid(id));
            log::trace!("{label} - <-> [DELSUB {sid}]");
        }
        let hash = sid_hash(&self.sid_hash, self.sid(id));
        let client = &mut self.receivers.clients[slot as usize];
        if let Ok(entry) = client.subscriptions.find_entry(hash, |other| *other == id) {
            entry.remove();
        }
        self.forget_subscription(id);
    }

    /// Takes a subscription out of the tables; its connection no longer knows it.
    pub(super) fn forget_subscription(&mut self, id: u32) {
        let subscription = &self.receivers.subscriptions[id as usize];
        if subscription.queue.is_some()
            && let Target::Client(slot) | Target::Route(slot) = subscription.target()
        {
            self.receivers.clients[slot as usize].members -= 1;
        }
        self.totals.removes += 1;
        self.tell_peers(id, Change::Removing);
        self.tell_routes(id, News::Removing);
        self.take_out(id);
    }

    pub(super) fn take_out(&mut self, id: u32) {
        let subscription = self.receivers.subscriptions.remove(id as usize);
        if let Some(moved) = self.sublist.remove(subscription.place, subscription.queue) {
            self.receivers.subscriptions[moved as usize].place.index = subscription.place.index;
        }
        if subscription.care.limited() {
            self.receivers.limits.remove(&id);
        }
        if subscription.sid_length == SID_IS_LONG {
            self.receivers.long_sids.remove(&id);
        }
    }

    /// UNSUB with max: ends now when that many were delivered already.
    pub(super) fn limit_subscription(&mut self, slot: Slot, id: u32, max: u64) {
        let subscription = &mut self.receivers.subscriptions[id as usize];
        if subscription.delivered >= max {
            return self.remove_subscription(slot, id);
        }
        if log::log_enabled!(log::Level::Debug) {
            let subject = self.sublist.pattern(subscription.place.interest);
            log::debug!(
                "{} - Deferring actual UNSUB({}): {max} max, {} received",
                self.receivers.clients[slot as usize].label(),
                String::from_utf8_lossy(subject),
                subscription.delivered
            );
        }
        subscription.care = subscription.care.with_limit(true);
        self.receivers.limits.insert(id, max);
        self.tell_routes(id, News::Limited(max));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_stay_small() {
        assert!(
            size_of::<Subscription>() <= 48,
            "{}",
            size_of::<Subscription>()
        );
        assert_eq!(
            size_of::<Option<Subscription>>(),
            size_of::<Subscription>(),
            "the slab needs no tag"
        );
    }

    #[test]
    fn targets_and_sids_survive_packing() {
        for target in [
            Target::Client(0),
            Target::Client(1 << 20),
            Target::Route(0),
            Target::Route(1 << 20),
            Target::Loop(0),
            Target::Loop(7),
        ] {
            assert_eq!(
                Subscription::new(target, b"1", Care::Nothing).target(),
                target
            );
        }
        let sid = |sid: &[u8]| {
            Subscription::new(Target::Client(0), sid, Care::Nothing)
                .short_sid()
                .map(|s| s.bytes().to_vec())
        };
        assert_eq!(sid(b"1234567890123"), Some(b"1234567890123".to_vec()));
        assert_eq!(sid(b"12345678901234"), None);
    }
}
