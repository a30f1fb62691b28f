//! Delivery: new messages in order, old ones again when nobody acknowledged them.

use super::Engine;
use super::tell::{Shown, trace, trace_message};
use super::timers::Timer;
use crate::stan::clients::ChannelIndex;
use crate::stan::in_place::Ack;
use crate::stan::outlet::Outlet;
use crate::stan::pb;
use crate::stan::store::{Seq, StoreError};
use crate::stan::subs::SECOND;
use bytes::Bytes;
use prost::Message;

/// A message this close to its deadline counts as due.
const SLACK: i64 = 15 * SECOND / 1000;

/// How long what is due again waits where the way out is full, or the way to the disk.
pub(super) const WAIT_FOR_ROOM: i64 = SECOND / 20;

/// When new messages of a channel are tried again that could not be read.
const READ_AGAIN: i64 = 5 * SECOND;

/// Who of a group gets a message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Choice {
    /// Members that are stalled are passed over; without another one nobody gets it.
    New,
    /// Somebody gets it: where nobody is well and has room, the members in turn, so that it does not stay with one
    /// that hangs.
    Again,
}

impl Engine {
    /// The next message behind this one, and its number. A damaged one is left out; one that cannot be read just now is tried
    /// again later.
    fn message_after(&mut self, index: ChannelIndex, last: Seq) -> Option<(Seq, Bytes)> {
        let channel = self.channel(index);
        let (store, durable_to) = (channel.store, channel.durable_to);
        let mut seq = last + 1;
        while seq <= durable_to {
            seq = seq.max(self.store.bounds(store).first);
            if seq > durable_to {
                return None;
            }
            match self.store.lookup(store, seq) {
                Ok(Some(message)) => return Some((seq, message)),
                Ok(None) | Err(StoreError::Damaged { .. }) => seq += 1,
                Err(error) => {
                    log::error!("STREAM: {error}");
                    self.read_again(index);
                    return None;
                }
            }
        }
        None
    }

    fn read_again(&mut self, index: ChannelIndex) {
        let at = self.now + READ_AGAIN;
        if !std::mem::replace(&mut self.channel(index).reads_again, true) {
            self.timers.push(at, Timer::ReadAgain(index));
        }
    }

    pub(super) fn handle_read_again(&mut self, index: ChannelIndex, out: &mut dyn Outlet) {
        if let Some(channel) = self.channels.get_mut(index).and_then(Option::as_mut) {
            channel.reads_again = false;
            self.deliver(index, out);
        }
    }

    /// New messages to a subscription. False: the way out is full, and there may be more.
    pub(super) fn deliver_to(
        &mut self,
        index: ChannelIndex,
        id: u64,
        out: &mut dyn Outlet,
    ) -> bool {
        loop {
            let Some(sub) = self.channel(index).subs.get(&id) else {
                return true;
            };
            if !sub.is_open() || sub.is_stalled() {
                return true;
            }
            if out.is_full() {
                return false;
            }
            let last_sent = sub.state.last_sent;
            let Some((seq, message)) = self.message_after(index, last_sent) else {
                return true;
            };
            self.send(index, id, seq, &message, out);
        }
    }

    /// New messages to a group. False: the way out is full, and there may be more.
    pub(super) fn deliver_to_group(
        &mut self,
        index: ChannelIndex,
        group: &str,
        out: &mut dyn Outlet,
    ) -> bool {
        loop {
            let Some(queue) = self.channel(index).queues.get(group) else {
                return true;
            };
            let last_sent = queue.last_sent;
            let Some(id) = self.choose(index, group, Choice::New) else {
                return true;
            };
            if out.is_full() {
                return false;
            }
            let Some((seq, message)) = self.message_after(index, last_sent) else {
                return true;
            };
            self.moved_on(index, group, id);
            if let Some(queue) = self.channel(index).queues.get_mut(group) {
                queue.last_sent = seq;
            }
            self.send(index, id, seq, &message, out);
        }
    }

    /// Among the members with room, of clients that answer their heartbeats, the one with the fewest
    /// messages pending, and of those the first; without one, whoever is at the head of the list.
    fn choose(&mut self, index: ChannelIndex, group: &str, choice: Choice) -> Option<u64> {
        let channel = self.channels[index].as_ref()?;
        let queue = channel.queues.get(group)?;
        let members = queue.members.iter().filter_map(|id| channel.subs.get(id));
        let members = || members.clone().filter(|sub| sub.is_open());
        let free = || members().filter(|sub| !sub.is_stalled());
        let healthy = free().filter(|sub| self.clients.is_healthy(&sub.state.client_id));
        let best = healthy.min_by_key(|sub| sub.pending.len());
        let best = best.or_else(|| match choice {
            Choice::New => free().next(),
            Choice::Again => members().next(),
        });
        best.map(|sub| sub.id())
    }

    /// Who was asked from the head of the list goes to its end.
    fn moved_on(&mut self, index: ChannelIndex, group: &str, id: u64) {
        if let Some(queue) = self.channel(index).queues.get_mut(group)
            && queue.members.front() == Some(&id)
        {
            queue.members.rotate_left(1);
        }
    }

    /// Sends a message for the first time.
    fn send(
        &mut self,
        index: ChannelIndex,
        id: u64,
        seq: Seq,
        message: &[u8],
        out: &mut dyn Outlet,
    ) {
        let (now, traced) = (self.now, self.settings.trace);
        let channel = self.channel(index);
        let store = channel.store;
        let Some(sub) = channel.subs.get_mut(&id) else {
            return;
        };
        if traced {
            trace_message("Delivering msg to", sub, &channel.name, seq);
        }
        let due = now + sub.ack_wait();
        sub.note_sent(seq, due, 0, now);
        out.publish(&sub.state.inbox, None, message);
        let result = self.store.sub_sent(store, id, seq);
        self.log_error(result);
        self.mark_dirty(index);
        self.arm(index, id);
    }

    /// Sends a message again, for the n-th time and flagged, and counts from now or from its old deadline.
    fn send_again(
        &mut self,
        index: ChannelIndex,
        id: u64,
        seq: Seq,
        (due, redeliveries): (i64, u32),
        message: &[u8],
        out: &mut dyn Outlet,
    ) {
        let (now, traced) = (self.now, self.settings.trace);
        let channel = self.channel(index);
        let Some(sub) = channel.subs.get_mut(&id) else {
            return;
        };
        if traced {
            trace_message("Redelivering msg to", sub, &channel.name, seq);
        }
        let next = due + sub.ack_wait();
        let next = if next <= now {
            now + sub.ack_wait()
        } else {
            next
        };
        sub.note_sent(seq, next, redeliveries, now);
        let marks = pb::MsgProto {
            redelivered: true,
            redelivery_count: redeliveries,
            ..pb::MsgProto::default()
        };
        // Fields of a message may come in any order, so the stored bytes need no change.
        let flagged = [message, &marks.encode_to_vec()].concat();
        out.publish(&sub.state.inbox, None, &flagged);
        channel.redelivered += 1;
    }

    /// The timer of a subscription: everything whose deadline is over is sent again.
    pub(super) fn handle_due(
        &mut self,
        index: ChannelIndex,
        id: u64,
        at: i64,
        out: &mut dyn Outlet,
    ) {
        let (now, away) = (self.now, self.away);
        let Some(channel) = self.channels.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        let Some(sub) = channel
            .subs
            .get_mut(&id)
            .filter(|sub| sub.timer_at == Some(at))
        else {
            return;
        };
        sub.timer_at = None;
        if away || !sub.is_open() {
            return;
        }
        let group = sub.group.clone();
        // The timer may be that of a message that is acknowledged by now: then nothing is due.
        let silent = group.is_empty() && !self.clients.is_healthy(&sub.state.client_id);
        if silent && sub.put_off(now + SLACK, now + sub.ack_wait()) {
            let client = sub.state.client_id.clone();
            self.debug(format_args!(
                "[Client:{}] Skipping redelivery to subid={id} due to missed client heartbeat",
                Shown(&client)
            ));
            return self.arm(index, id);
        }
        let wait = match out.is_full() {
            true => Some(WAIT_FOR_ROOM),
            false => self.burial_wait(index),
        };
        if let Some(wait) = wait {
            let again = now + wait;
            if let Some(sub) = self.channel(index).subs.get_mut(&id) {
                sub.timer_at = Some(again);
            }
            return self.timers.push(again, Timer::Due(index, id));
        }
        while !out.is_full()
            && self.burial_wait(index).is_none()
            && let Some(sub) = self.channel(index).subs.get_mut(&id)
            && let Some((deadline, seq)) = sub.take_due(now + SLACK)
        {
            self.redeliver(index, id, &group, seq, deadline, out);
        }
        self.arm(index, id);
        // What was pending and is gone from the store makes room.
        self.deliver_next(index, id, &group, out);
    }

    fn redeliver(
        &mut self,
        index: ChannelIndex,
        id: u64,
        group: &str,
        seq: Seq,
        due: i64,
        out: &mut dyn Outlet,
    ) {
        let store = self.channel(index).store;
        let message = match self.store.lookup(store, seq) {
            Ok(Some(message)) => message,
            // It is not there any more: nobody needs to acknowledge it.
            Ok(None) | Err(StoreError::Damaged { .. }) => {
                return self.forget_pending(index, id, seq);
            }
            // It may be read another time.
            Err(error) => {
                log::error!("STREAM: {error}");
                return self.keep(index, id, seq);
            }
        };
        if self.is_spent(index, id, seq) {
            return self.bury(index, id, seq, &message);
        }
        let redeliveries = self.redeliveries(index, id, seq) + 1;
        let target = match group.is_empty() || self.was_due_at_start(index, id, seq) {
            true => None,
            false => self.choose(index, group, Choice::Again),
        };
        if let Some(target) = target {
            self.moved_on(index, group, target);
        }
        let target = target.unwrap_or(id);
        if target != id {
            // In this order: a write torn between the two leaves it with both, the other way around with nobody.
            let result = self.store.sub_sent(store, target, seq);
            self.log_error(result);
            self.forget_pending(index, id, seq);
        }
        self.send_again(index, target, seq, (due, redeliveries), &message, out);
        self.arm(index, target);
    }

    /// How often a pending message was sent beyond the first time, to whomever.
    fn redeliveries(&mut self, index: ChannelIndex, id: u64, seq: Seq) -> u32 {
        let sub = self.channel(index).subs.get(&id);
        let pending = sub.and_then(|sub| sub.pending.get(&seq));
        pending.map_or(0, |pending| pending.redeliveries)
    }

    /// Whether it goes to whoever had it before the server's start.
    fn was_due_at_start(&mut self, index: ChannelIndex, id: u64, seq: Seq) -> bool {
        let sub = self.channel(index).subs.get(&id);
        let pending = sub.and_then(|sub| sub.pending.get(&seq));
        pending.is_some_and(|pending| pending.due_at_start)
    }

    /// As an ack, without anybody having sent one.
    pub(super) fn forget_pending(&mut self, index: ChannelIndex, id: u64, seq: Seq) {
        let channel = self.channel(index);
        let store = channel.store;
        if let Some(sub) = channel.subs.get_mut(&id) {
            sub.pending.remove(&seq);
        }
        let result = self.store.sub_acked(store, id, seq);
        self.log_error(result);
        self.mark_dirty(index);
    }

    /// Everything pending goes out again at once, in order: a durable has come back.
    pub(super) fn redeliver_all(&mut self, index: ChannelIndex, id: u64, out: &mut dyn Outlet) {
        if self.away {
            return; // they are due when the connection is back
        }
        let now = self.now;
        let channel = self.channel(index);
        let store = channel.store;
        let Some(sub) = channel.subs.get(&id) else {
            return;
        };
        let all: Vec<(Seq, u32)> = sub
            .pending
            .iter()
            .filter(|(_, pending)| !pending.is_leaving())
            .map(|(seq, pending)| (*seq, pending.redeliveries))
            .collect();
        let name = match sub.state.durable_name.is_empty() {
            true => &sub.state.queue_group,
            false => &sub.state.durable_name,
        };
        let (client, name) = (sub.state.client_id.clone(), name.clone());
        if !all.is_empty() {
            self.debug(format_args!(
                "[Client:{}] Redelivering to subid={id}, durable={}",
                Shown(&client),
                Shown(&name)
            ));
        }
        for (seq, redeliveries) in all {
            let no_room = out.is_full()
                || (self.burial_wait(index).is_some() && self.is_spent(index, id, seq));
            if no_room {
                // Due at once, by the timer.
                if let Some(sub) = self.channel(index).subs.get_mut(&id) {
                    sub.set_due(seq, now);
                }
                continue;
            }
            match self.store.lookup(store, seq) {
                Ok(Some(message)) if self.is_spent(index, id, seq) => {
                    self.bury(index, id, seq, &message);
                }
                Ok(Some(message)) => {
                    if self.settings.trace {
                        let client = Shown(&client);
                        trace(format_args!(
                            "[Client:{client}] Redelivering to subid={id}, seq={seq}"
                        ));
                    }
                    self.send_again(index, id, seq, (now, redeliveries + 1), &message, out);
                }
                Ok(None) | Err(StoreError::Damaged { .. }) => self.forget_pending(index, id, seq),
                Err(error) => {
                    log::error!("STREAM: {error}");
                    self.keep(index, id, seq);
                }
            }
        }
        self.arm(index, id);
    }

    pub(super) fn handle_ack(&mut self, subject: &str, payload: &[u8], out: &mut dyn Outlet) {
        let Some(ack) = Ack::read(payload) else {
            return;
        };
        let Some(named) = self.by_name.get(ack.subject).copied() else {
            log::error!(
                "STREAM: Unable to process ack seq={}, channel {} not found",
                ack.sequence,
                Shown(ack.subject)
            );
            return;
        };
        let Some((index, id)) = self.ack_inboxes.get(subject).copied() else {
            return;
        };
        if index != named {
            return;
        }
        let traced = self.settings.trace;
        let channel = self.channel(index);
        let Some(sub) = channel.subs.get(&id) else {
            return;
        };
        if traced {
            trace_message("Processing ack for", sub, &channel.name, ack.sequence);
        }
        let group = sub.group.clone();
        let owner = self.holder(index, id, &group, ack.sequence);
        self.forget_pending(index, owner, ack.sequence);
        self.deliver_next(index, id, &group, out);
    }

    /// Who a message is pending for: this subscription, or the member of its group it was given to since.
    pub(super) fn holder(&mut self, index: ChannelIndex, id: u64, group: &str, seq: Seq) -> u64 {
        let channel = self.channel(index);
        let holds = |id: &u64| {
            let sub = channel.subs.get(id);
            sub.is_some_and(|sub| sub.pending.contains_key(&seq))
        };
        match channel.queues.get(group).filter(|_| !holds(&id)) {
            Some(queue) => queue.members.iter().copied().find(holds).unwrap_or(id),
            None => id,
        }
    }
}
