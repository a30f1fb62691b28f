//! New messages to everybody of a channel, as long as there is room on the way out.
//!
//! ```text
//!   free --way out full--> held back (the next one's place) --room--> goes on there, once around --> free
//! ```
//!
//! While a channel is held back an ack delivers nothing by itself: whoever acknowledges fast would take the room of those
//! whose turn it is. Who got something while there was room is last of the next round, who found none is its first.

use super::Engine;
use crate::stan::clients::ChannelIndex;
use crate::stan::outlet::Outlet;
use std::sync::Arc;

impl Engine {
    /// New messages to everybody who has room for them.
    pub(super) fn deliver(&mut self, index: ChannelIndex, out: &mut dyn Outlet) {
        if !self.away && self.channel(index).held_back.is_none() {
            self.deliver_around(index, 0, out);
        }
    }

    /// New messages to a subscription, or to its group.
    pub(super) fn deliver_next(
        &mut self,
        index: ChannelIndex,
        id: u64,
        group: &str,
        out: &mut dyn Outlet,
    ) {
        if self.away || self.channel(index).held_back.is_some() {
            return;
        }
        let done = match group.is_empty() {
            true => self.deliver_to(index, id, out),
            false => self.deliver_to_group(index, group, out),
        };
        if !done {
            self.hold_back(index, 0);
        }
    }

    /// Whether there is more to deliver as soon as there is room on the way out.
    pub fn waits_for_room(&self) -> bool {
        !self.held_back.is_empty()
    }

    /// What was held back, as far as there is room now.
    pub(super) fn deliver_held_back(&mut self, out: &mut dyn Outlet) {
        while !self.away
            && !out.is_full()
            && let Some(index) = self.held_back.pop_front()
        {
            let channel = self.channels[index].as_mut();
            if let Some(start) = channel.and_then(|channel| channel.held_back.take()) {
                self.deliver_around(index, start, out);
            }
        }
    }

    /// To everybody once, from this place on.
    fn deliver_around(&mut self, index: ChannelIndex, start: usize, out: &mut dyn Outlet) {
        let channel = self.channel(index);
        let plain = channel.plain.len();
        let groups: Vec<Arc<str>> = channel.queues.keys().cloned().collect();
        let count = plain + groups.len();
        for step in 0..count {
            let place = (start + step) % count;
            let next = place + usize::from(!out.is_full());
            let done = match place.checked_sub(plain) {
                None => {
                    let id = self.channel(index).plain[place];
                    self.deliver_to(index, id, out)
                }
                Some(group) => self.deliver_to_group(index, &groups[group], out),
            };
            if !done {
                return self.hold_back(index, next);
            }
        }
    }

    fn hold_back(&mut self, index: ChannelIndex, place: usize) {
        self.channel(index).held_back = Some(place);
        self.held_back.push_back(index);
    }
}
