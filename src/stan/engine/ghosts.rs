//! Members of groups that the start finds without their clients: their own end was to be written next.
//!
//! They leave now. Another member gets what they had pending, as far as nobody has it already, or the record of a durable
//! one keeps it with the group's place. The original drops it.

use super::members::group_place;
use super::{Engine, Shown};
use crate::stan::clients::ChannelIndex;
use crate::stan::pb::SubState;
use crate::stan::store::{RecoveredSub, Seq};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

impl Engine {
    pub(super) fn is_ghost(&self, state: &SubState) -> bool {
        let member = !state.queue_group.is_empty();
        let left = state.is_closed || state.client_id.is_empty();
        member && !left && self.clients.get(&state.client_id).is_none()
    }

    /// When all other subscriptions of the channel are where they belong.
    pub(super) fn recover_ghosts(&mut self, index: ChannelIndex, mut ghosts: Vec<RecoveredSub>) {
        if ghosts.is_empty() {
            return;
        }
        // A durable one may keep the place of its group, and what those that are not had pending.
        ghosts.sort_by_key(|ghost| !ghost.state.is_durable);
        let mut held: HashMap<Arc<str>, HashSet<Seq>> = HashMap::new();
        let subs = self.channel(index).subs.values();
        for sub in subs.filter(|sub| !sub.group.is_empty()) {
            let of_group = held.entry(sub.group.clone()).or_default();
            of_group.extend(sub.pending.keys());
        }
        for mut ghost in ghosts {
            let group = ghost.state.queue_group.as_str().into();
            let of_group = held.entry(group).or_default();
            ghost.pending.retain(|seq| of_group.insert(*seq));
            self.recover_ghost(index, ghost);
        }
    }

    /// `pending` is what nobody else of its group has.
    fn recover_ghost(&mut self, index: ChannelIndex, mut ghost: RecoveredSub) {
        if ghost.state.is_durable {
            log::info!(
                "STREAM: WARN: Not recovering ghost durable queue subscriber: [{}]:[{}] subject={} inbox={}",
                Shown(&ghost.state.client_id),
                Shown(&ghost.state.queue_group),
                Shown(&self.channel(index).name),
                Shown(&ghost.state.inbox)
            );
        }
        let channel = self.channel(index);
        let store = channel.store;
        let queue = channel.queues.get(ghost.state.queue_group.as_str());
        let heir = queue.and_then(|queue| queue.members.front().copied().or(queue.shadow));
        let Some(mut sub) = heir.and_then(|id| channel.subs.remove(&id)) else {
            if !ghost.state.is_durable {
                let result = self.store.delete_sub(store, ghost.state.id);
                return self.log_error(result);
            }
            ghost.state.is_closed = true;
            let result = self.store.update_sub(store, &group_place(&ghost.state));
            self.log_error(result);
            return self.recover_sub(index, ghost);
        };
        // Before those of them that are gone from the store count as acknowledged.
        for seq in &ghost.pending {
            let result = self.store.sub_sent(store, sub.id(), *seq);
            self.log_error(result);
        }
        self.recover_pending(store, &mut sub, &ghost.pending);
        if sub.state.last_sent < ghost.state.last_sent {
            sub.state.last_sent = ghost.state.last_sent;
            let state = match sub.active {
                true => sub.state.clone(),
                false => group_place(&sub.state),
            };
            let result = self.store.update_sub(store, &state);
            self.log_error(result);
        }
        let result = self.store.delete_sub(store, ghost.state.id);
        self.log_error(result);
        let channel = self.channel(index);
        if let Some(queue) = channel.queues.get_mut(&sub.group) {
            queue.last_sent = queue.last_sent.max(sub.state.last_sent);
        }
        let id = sub.id();
        channel.subs.insert(id, sub);
        self.arm(index, id);
    }
}
