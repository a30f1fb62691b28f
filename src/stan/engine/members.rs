//! How subscriptions end: plain ones, durables, and members of groups with what they leave behind.

use super::Engine;
use crate::stan::channel::durable_key;
use crate::stan::clients::ChannelIndex;
use crate::stan::outlet::Outlet;
use crate::stan::pb::SubState;
use crate::stan::store::Seq;
use crate::stan::subs::Due;

/// The record that keeps the place of a durable group without members: its last one's.
pub(super) fn group_place(state: &SubState) -> SubState {
    SubState {
        client_id: String::new(),
        is_closed: true,
        ..state.clone()
    }
}

impl Engine {
    /// Ends a subscription. `for_good`: by an unsubscribe request, which also ends durables.
    pub(super) fn end_sub(
        &mut self,
        index: ChannelIndex,
        id: u64,
        for_good: bool,
        out: &mut dyn Outlet,
    ) {
        let now = self.now;
        let channel = self.channel(index);
        let Some(sub) = channel.subs.get(&id) else {
            return;
        };
        let state = sub.state.clone();
        self.detach(index, id, &state, out);
        let others = self.channel(index).queues.get(state.queue_group.as_str());
        let others = others.is_some_and(|queue| queue.members.len() > 1);
        let what = match (state.is_durable && !for_good, others) {
            (_, true) => "Removed member from",
            (true, false) => "Suspended",
            (false, false) => "Removed",
        };
        self.tell_sub(what, index, &state, |_| String::new());
        if state.queue_group.is_empty() {
            let channel = self.channel(index);
            channel.plain.retain(|other| *other != id);
            if state.is_durable && !for_good {
                self.suspend(index, id);
            } else {
                let key = durable_key(&state.client_id, &channel.name, &state.durable_name);
                if state.is_durable {
                    channel.durables.remove(&key);
                }
                self.forget_sub(index, id);
            }
        } else {
            self.leave_group(index, id, &state.queue_group, for_good, out);
        }
        let channel = self.channel(index);
        if !channel.has_active_subs() {
            channel.active_at = channel.active_at.max(now);
            self.watch_inactivity(index);
        }
    }

    fn forget_sub(&mut self, index: ChannelIndex, id: u64) {
        let channel = self.channel(index);
        let store = channel.store;
        channel.subs.remove(&id);
        let result = self.store.delete_sub(store, id);
        self.log_error(result);
        self.mark_dirty(index);
    }

    /// A durable waits for its client; what is pending stays.
    fn suspend(&mut self, index: ChannelIndex, id: u64) {
        let channel = self.channel(index);
        let store = channel.store;
        let Some(sub) = channel.subs.get_mut(&id) else {
            return;
        };
        sub.active = false;
        sub.timer_at = None;
        sub.state.is_closed = true;
        let state = sub.state.clone();
        let result = self.store.update_sub(store, &state);
        self.log_error(result);
        self.mark_dirty(index);
    }

    fn leave_group(
        &mut self,
        index: ChannelIndex,
        id: u64,
        group: &str,
        for_good: bool,
        out: &mut dyn Outlet,
    ) {
        let channel = self.channel(index);
        let Some(queue) = channel.queues.get_mut(group) else {
            return self.forget_sub(index, id); // a second record of a group that is gone
        };
        queue.members.retain(|other| *other != id);
        let last_sent = queue.last_sent;
        if !queue.members.is_empty() {
            return self.hand_over(index, id, group, last_sent, out);
        }
        // Whoever joins brings its own: a durable group may have members that are not.
        let leaver = channel.subs.get(&id);
        let durable = leaver.is_some_and(|sub| sub.state.is_durable);
        if durable && !for_good {
            // The group's place is kept by the record of the last member.
            queue.shadow = Some(id);
            let store = channel.store;
            if let Some(sub) = channel.subs.get_mut(&id) {
                sub.state.last_sent = last_sent;
                let kept = group_place(&sub.state);
                sub.active = false;
                sub.timer_at = None;
                let result = self.store.update_sub(store, &kept);
                self.log_error(result);
                self.mark_dirty(index);
            }
            return;
        }
        channel.queues.remove(group);
        self.forget_sub(index, id);
    }

    /// What a member leaves pending is dealt out among the others, by deadline; they send it when
    /// it is due.
    fn hand_over(
        &mut self,
        index: ChannelIndex,
        id: u64,
        group: &str,
        last_sent: Seq,
        out: &mut dyn Outlet,
    ) {
        let now = self.now;
        let channel = self.channel(index);
        let store = channel.store;
        let Some(leaver) = channel.subs.remove(&id) else {
            return;
        };
        let leaver_wait = leaver.ack_wait();
        let mut left: Vec<(Due, Seq, u32)> = leaver
            .pending
            .iter()
            .map(|(seq, pending)| (pending.due, *seq, pending.redeliveries))
            .collect();
        left.sort_unstable();
        let members: Vec<u64> = channel
            .queues
            .get(group)
            .map_or_else(Vec::new, |queue| queue.members.iter().copied().collect());
        for ((due, seq, redeliveries), member) in left.into_iter().zip(members.iter().cycle()) {
            if let Some(sub) = self.channel(index).subs.get_mut(member) {
                match due {
                    Due::At(due) => {
                        let shorter = leaver_wait > sub.ack_wait() && due > now;
                        let due = if shorter { now + sub.ack_wait() } else { due };
                        sub.note_sent(seq, due, redeliveries, now);
                    }
                    Due::Leaving => sub.note_taken_over_leaving(seq, redeliveries, now),
                }
            }
            let result = self.store.sub_sent(store, *member, seq);
            self.log_error(result);
        }
        // The group's place must be on some record when this one goes.
        let channel = self.channel(index);
        let mut others = members.iter().filter_map(|id| channel.subs.get(id));
        let kept = others.any(|sub| sub.state.last_sent >= last_sent);
        if let Some(member) = members.first().filter(|_| !kept)
            && let Some(sub) = self.channel(index).subs.get_mut(member)
        {
            sub.state.last_sent = last_sent;
            let state = sub.state.clone();
            let result = self.store.update_sub(store, &state);
            self.log_error(result);
        }
        let result = self.store.delete_sub(store, id);
        self.log_error(result);
        self.mark_dirty(index);
        for member in members {
            self.arm(index, member);
        }
        self.deliver_next(index, id, group, out);
    }
}
