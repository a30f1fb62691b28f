//! Deadlines of the engine.

use super::Engine;
use super::tell::Shown;
use crate::stan::clients::ChannelIndex;
use crate::stan::outlet::Outlet;
use crate::stan::store::StoreError;
use crate::stan::subs::SECOND;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Entries of what has gone since are recognised when they come up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// Messages of a subscription may be due.
    Due(ChannelIndex, u64),
    /// Send one.
    Heartbeat(u64),
    /// It should have been answered.
    HeartbeatOver(u64),
    /// A client did not answer the probe for whoever wants its id.
    ProbeOver(u64),
    Age(ChannelIndex),
    Inactivity(ChannelIndex),
    /// New messages could not be read.
    ReadAgain(ChannelIndex),
}

#[derive(Debug, Default)]
pub(super) struct Timers(BinaryHeap<Reverse<(i64, Timer)>>);

impl Timers {
    pub fn push(&mut self, at: i64, timer: Timer) {
        self.0.push(Reverse((at, timer)));
    }

    fn take(&mut self, now: i64) -> Option<(i64, Timer)> {
        let Reverse((at, _)) = self.0.peek()?;
        match *at <= now {
            true => self.0.pop().map(|Reverse(entry)| entry),
            false => None,
        }
    }
}

impl Engine {
    pub fn next_deadline(&self) -> Option<i64> {
        self.timers.0.peek().map(|Reverse((at, _))| *at)
    }

    pub fn handle_timeouts(&mut self, now: i64, out: &mut dyn Outlet) {
        self.now = now;
        while let Some((at, timer)) = self.timers.take(now) {
            match timer {
                Timer::Due(index, id) => self.handle_due(index, id, at, out),
                Timer::Heartbeat(serial) => self.handle_heartbeat(serial, at, out),
                Timer::HeartbeatOver(serial) => self.heartbeat_over(serial, at, out),
                Timer::ProbeOver(serial) => self.probe_over(serial, at, out),
                Timer::Age(index) => self.handle_age(index, at),
                Timer::Inactivity(index) => self.handle_inactivity(index, out),
                Timer::ReadAgain(index) => self.handle_read_again(index, out),
            }
        }
    }

    /// Sets the timer of a subscription to its earliest deadline.
    pub(super) fn arm(&mut self, index: ChannelIndex, id: u64) {
        let Some(sub) = self.channel(index).subs.get_mut(&id) else {
            return;
        };
        if !sub.active {
            return;
        }
        let Some(due) = sub.next_due() else {
            return;
        };
        if sub.timer_at.is_some_and(|at| at <= due) {
            return; // it will look again
        }
        sub.timer_at = Some(due);
        self.timers.push(due, Timer::Due(index, id));
    }

    pub(super) fn watch_age(&mut self, index: ChannelIndex) {
        let store = self.channel(index).store;
        let (now, wall) = (self.now, self.wall());
        let Some(at) = self.store.expire(store, wall) else {
            return;
        };
        let at = at.saturating_sub(self.wall_ahead).max(now + SECOND / 10);
        let channel = self.channel(index);
        if channel.age_timer.is_some_and(|set| set <= at) {
            return; // it will look again
        }
        channel.age_timer = Some(at);
        self.timers.push(at, Timer::Age(index));
    }

    fn handle_age(&mut self, index: ChannelIndex, at: i64) {
        if let Some(channel) = self.channels.get_mut(index).and_then(Option::as_mut)
            && channel.age_timer == Some(at)
        {
            channel.age_timer = None;
            self.watch_age(index);
        }
    }

    /// Where the wall clock was set forward, messages are too old before their timers say so. Where it was set back, those
    /// come too early, and look again.
    pub(super) fn follow_wall_clock(&mut self) {
        self.ages_ahead = self.ages_ahead.min(self.wall_ahead);
        if self.wall_ahead.saturating_sub(self.ages_ahead) <= SECOND {
            return;
        }
        self.ages_ahead = self.wall_ahead;
        for index in 0..self.channels.len() {
            if self.channels[index].is_some() {
                self.watch_age(index);
            }
        }
    }

    /// A channel nobody uses is deleted after a while, where the limits say so.
    pub(super) fn watch_inactivity(&mut self, index: ChannelIndex) {
        let store = self.channel(index).store;
        let limit = self.store.limits(store).inactivity;
        let channel = self.channel(index);
        if limit == 0 || channel.has_active_subs() || channel.inactivity_timer {
            return;
        }
        channel.inactivity_timer = true;
        let at = channel.active_at.saturating_add(limit);
        self.timers.push(at, Timer::Inactivity(index));
    }

    fn handle_inactivity(&mut self, index: ChannelIndex, out: &mut dyn Outlet) {
        let now = self.now;
        let Some(channel) = self.channels.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        channel.inactivity_timer = false;
        let limit = self.store.limits(channel.store).inactivity;
        if channel.has_active_subs() {
            return;
        }
        if !channel.waiting.is_empty() {
            channel.active_at = now; // somebody waits for an ack
        }
        if channel.active_at.saturating_add(limit) > now {
            return self.watch_inactivity(index);
        }
        if self.delete_channel(index, out).is_err() {
            // Tried again when it has been idle for as long once more.
            self.channel(index).active_at = now;
            self.watch_inactivity(index);
        }
    }

    /// Removes a channel with all it has. On an error it is there as before.
    pub(super) fn delete_channel(
        &mut self,
        index: ChannelIndex,
        out: &mut dyn Outlet,
    ) -> Result<(), StoreError> {
        let store = self.channel(index).store;
        if let Err(error) = self.store.delete_channel(store) {
            log::error!("STREAM: {error}");
            return Err(error);
        }
        let Some(mut channel) = self.channels[index].take() else {
            return Ok(());
        };
        self.by_name.remove(&channel.name);
        self.by_store.remove(&channel.store);
        self.dirty.retain(|other| *other != index);
        for (id, sub) in channel.subs.iter().filter(|(_, sub)| sub.active) {
            self.detach(index, *id, &sub.state, out);
        }
        self.refuse_waiting(&mut channel, out);
        let departing = std::mem::take(&mut channel.departing);
        self.return_letters(departing.into());
        log::info!(
            "STREAM: Channel \"{}\" has been deleted",
            Shown(&channel.name)
        );
        Ok(())
    }
}
