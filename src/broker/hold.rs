//! Back-pressure: publishers that outrun receivers are held back by not being read from.
//!
//! ```text
//!   receiver:   below high water --append--> above --hold()--> holding publishers
//!                     ^                                  |            |
//!                     |  drained below low water         |            | no progress, or held too long
//!                     '----------------------------------'            v
//!                     '------------------------------------------ stuck: holds nobody
//! ```
//!
//! A connection that far behind with its own output is not read from either: answers to its own
//! PINGs, say, must not pile up without bound.
//!
//! A receiver alone behind among others that keep up may hold its publisher only for a small part
//! of each second: the others lose a few percent at most, and it is cut off when its backlog
//! reaches the bound. When nearly all receivers of a publisher are behind, the publisher is simply too fast, and is held
//! for as long as they make progress.

use super::client::{Holding, Phase, PublisherRef};
use super::effect::Effect;
use super::timers::Timer;
use super::{Broker, Slot};
use std::time::Duration;

/// Backlog above which a receiver may hold publishers, and below which it lets them go.
pub const HIGH_WATER_BYTES: usize = 1 << 20;
pub const LOW_WATER_BYTES: usize = 256 << 10;

/// How long a receiver in a minority may hold publishers within one period.
const ALLOWANCE: Duration = Duration::from_millis(20);
const PERIOD: Duration = Duration::from_secs(1);
/// A receiver that holds publishers must make progress this often, and must have caught up after
/// that long.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
const CATCH_UP_WITHIN: Duration = Duration::from_secs(2);

impl Broker {
    /// Some of the `receivers` of a message of this publisher are behind: hold it back.
    #[cold]
    pub(super) fn hold(&mut self, publisher: PublisherRef, receivers: u32) {
        let behind = std::mem::take(&mut self.receivers.behind);
        let nearly_all = behind.len() as u32 * 4 >= receivers * 3;
        for slot in &behind {
            self.hold_for(*slot, publisher, nearly_all);
        }
        self.receivers.behind = behind;
        self.receivers.behind.clear();
    }

    fn hold_for(&mut self, receiver: Slot, publisher: PublisherRef, nearly_all: bool) {
        let now = self.now;
        let client = &mut self.receivers.clients[receiver as usize];
        if client.stuck || client.phase == Phase::Closing {
            return;
        }
        let holding = client.holding.get_or_insert_with(|| {
            Box::new(Holding {
                publishers: Vec::new(),
                period_ends: now,
                allowance_ends: now,
                until: now,
            })
        });
        if holding.publishers.contains(&publisher) {
            return;
        }
        if !nearly_all {
            if now >= holding.period_ends {
                holding.period_ends = now + PERIOD;
                holding.allowance_ends = now + ALLOWANCE;
            }
            if now >= holding.allowance_ends {
                return;
            }
        }
        if holding.publishers.is_empty() {
            let first_look = if nearly_all {
                now + PROGRESS_EVERY
            } else {
                holding.allowance_ends
            };
            holding.until = if nearly_all {
                now + CATCH_UP_WITHIN
            } else {
                holding.allowance_ends
            };
            self.timers
                .push(first_look, receiver, client.cid, Timer::Hold);
        }
        holding.publishers.push(publisher);
        self.tell_publisher(publisher, true);
    }

    /// Passes a hold, or its end, to a publisher here or on another loop.
    fn tell_publisher(&mut self, publisher: PublisherRef, hold: bool) {
        if publisher.loop_index == self.loop_index {
            self.handle_hold(publisher, hold);
        } else {
            self.peers[publisher.loop_index as usize]
                .outgoing
                .holds
                .push((publisher, hold));
        }
    }

    /// A receiver, here or on another loop, holds this publisher or lets it go.
    pub(super) fn handle_hold(&mut self, publisher: PublisherRef, hold: bool) {
        let Some(client) = self.receivers.clients.get_mut(publisher.slot as usize) else {
            return;
        };
        if client.cid != publisher.cid {
            return;
        }
        if hold {
            client.held_by += 1;
        } else {
            client.held_by = client
                .held_by
                .checked_sub(1)
                .expect("every end follows its hold");
            if client.held_by == 0 {
                self.effects.push(Effect::Resume {
                    slot: publisher.slot,
                });
            }
        }
    }

    /// A receiver that holds publishers, or is marked as stuck, took some output.
    pub(super) fn after_progress(&mut self, receiver: Slot) {
        let client = &mut self.receivers.clients[receiver as usize];
        if client.outbox.pending() <= LOW_WATER_BYTES {
            client.stuck = false;
            if std::mem::take(&mut client.choked) {
                self.effects.push(Effect::Resume { slot: receiver });
            }
            self.let_publishers_go(receiver);
        }
    }

    pub(super) fn let_publishers_go(&mut self, receiver: Slot) {
        let Some(holding) = &mut self.receivers.clients[receiver as usize].holding else {
            return;
        };
        for publisher in std::mem::take(&mut holding.publishers) {
            self.tell_publisher(publisher, false);
        }
    }

    pub(super) fn end_of_hold(&mut self, receiver: Slot) {
        let now = self.now;
        let client = &mut self.receivers.clients[receiver as usize];
        let Some(holding) = client
            .holding
            .as_deref()
            .filter(|holding| !holding.publishers.is_empty())
        else {
            return;
        };
        let progress = client
            .progress_at
            .is_none_or(|at| now.duration_since(at) < PROGRESS_EVERY);
        if progress && now < holding.until {
            let next = (now + PROGRESS_EVERY).min(holding.until);
            let cid = client.cid;
            self.timers.push(next, receiver, cid, Timer::Hold);
            return;
        }
        // From here on its backlog grows, until it catches up or is cut off.
        client.stuck = true;
        self.let_publishers_go(receiver);
    }
}
