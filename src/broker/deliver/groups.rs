//! Queue groups: one member of each gets the message, whichever loop or server it is on.

use super::receivers::{Beyond, Delivery};
use super::{Address, Broker, Origin, Target};
use crate::subject::sublist::{InterestId, QueueId};

/// How often a message for a queue group may be passed from loop to loop because the member chosen
/// for it had gone meanwhile.
const HOPS_MAX: u8 = 8;

/// How often a member of a group on several loops is drawn in vain before those of this loop are listed. Another loop is one
/// entry, however many members it has: with one member here and one other loop, a message in 256 goes that way.
const DRAWS_MAX: usize = 8;

impl Broker {
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

    /// The other loop chose one of our members; when all of them have gone, somebody else gets it.
    pub(super) fn deliver_to_named_group(
        &mut self,
        origin: &Origin,
        delivery: &mut Delivery<'_, '_>,
        matched: &[InterestId],
        name: &[u8],
    ) {
        let Some(queue) = self.sublist.queue_id(name) else {
            return;
        };
        if self.draw_local_member(delivery, matched, queue) {
            return;
        }
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

    /// Every member of this loop that takes the message is as likely as the others. In vain where many members are elsewhere or take
    /// nothing, or where they stand at several patterns.
    fn draw_local_member(
        &mut self,
        delivery: &mut Delivery<'_, '_>,
        matched: &[InterestId],
        queue: QueueId,
    ) -> bool {
        let Self {
            receivers,
            sublist,
            random,
            ..
        } = self;
        let mut groups = matched
            .iter()
            .filter_map(|id| sublist.interest(*id).group(queue));
        let (Some(group), None) = (groups.next(), groups.next()) else {
            return false;
        };
        let (name, before) = (sublist.queue_name(queue), delivery.receivers);
        for _ in 0..DRAWS_MAX {
            let Some(member) = group.member(random.below(group.len() as u32) as usize) else {
                return false;
            };
            if let Some(Beyond::Route(slot)) = receivers.deliver_one(delivery, member, Some(name)) {
                receivers.deliver_to_route(delivery, member, slot);
            }
            if delivery.receivers > before {
                return true;
            }
        }
        false
    }

    /// One member of a queue group, chosen by the server that sent the message. When it has gone, or
    /// has had all it wanted, another member gets it, wherever that is.
    pub(super) fn deliver_to_addressee(
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
}
