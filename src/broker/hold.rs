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
use super::effect::{CloseReason, Effect};
use super::timers::Timer;
use super::{Broker, Slot};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

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

/// One connection that was cut off because it did not read.
#[derive(Clone, Debug)]
pub struct SlowConsumer {
    pub cid: u64,
    pub peer: SocketAddr,
    pub name: String,
    pub pending_bytes: usize,
    pub cause: String,
    pub at: SystemTime,
}

/// The latest slow consumers kept for monitoring.
const SLOW_CONSUMERS_KEPT: usize = 64;

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

    pub(super) fn cut_off(&mut self, slot: Slot, cause: String) {
        let client = &self.receivers.clients[slot as usize];
        if client.phase == Phase::Closing {
            return;
        }
        let slow = SlowConsumer {
            cid: client.cid,
            peer: client.peer,
            name: client.name().to_owned(),
            pending_bytes: client.outbox.pending(),
            cause,
            at: SystemTime::now(),
        };
        log::info!(
            "{} - Slow Consumer Detected: name {:?}, {} bytes pending, {}",
            client.label(),
            slow.name,
            slow.pending_bytes,
            slow.cause
        );
        self.totals.slow_consumers += 1;
        if self.slow_consumers.len() == SLOW_CONSUMERS_KEPT {
            self.slow_consumers.remove(0);
        }
        self.slow_consumers.push(slow);
        self.give_up(slot);
        self.close(slot, CloseReason::SlowConsumer);
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::Settings;
    use super::*;
    use crate::util::random::Random;
    use crate::util::region::RegionMut;
    use std::sync::Arc;
    use std::time::Instant;

    fn broker(settings: Settings) -> (Broker, Instant) {
        let now = Instant::now();
        let region = RegionMut::map(1 << 20).unwrap();
        (
            Broker::new(Arc::new(settings), 0, 1, region, Random::new(1), now),
            now,
        )
    }

    fn open(broker: &mut Broker, cid: u64, now: Instant) -> Slot {
        let slot = broker.open(cid, SocketAddr::from(([127, 0, 0, 1], 1)), now);
        broker.handle_bytes(slot, b"CONNECT {\"verbose\":false}\r\n", now);
        drain(broker, slot, now);
        slot
    }

    fn drain(broker: &mut Broker, slot: Slot, now: Instant) -> usize {
        let pending = broker.client(slot).unwrap().outbox.pending();
        broker.handle_written(slot, pending, now);
        pending
    }

    fn resumed(broker: &mut Broker) -> Vec<Slot> {
        let mut effects = Vec::new();
        broker.take_effects(&mut effects);
        effects
            .iter()
            .filter_map(|e| {
                if let Effect::Resume { slot } = e {
                    Some(*slot)
                } else {
                    None
                }
            })
            .collect()
    }

    #[test]
    fn answers_nobody_reads_do_not_pile_up() {
        let (mut broker, now) = broker(Settings::default());
        let slot = open(&mut broker, 1, now);
        let pings = b"PING\r\n".repeat(10_000);
        let mut rounds = 0;
        while broker.wants_bytes(slot) {
            broker.handle_bytes(slot, &pings, now);
            rounds += 1;
            assert!(rounds < 100, "read from without end");
        }
        drain(&mut broker, slot, now);
        assert_eq!(resumed(&mut broker), [slot]);
        assert!(broker.wants_bytes(slot));
    }

    #[test]
    fn a_publisher_waits_for_its_only_receiver_but_not_for_a_stuck_one() {
        let (mut broker, now) = broker(Settings::default());
        let (publisher, receiver) = (open(&mut broker, 1, now), open(&mut broker, 2, now));
        broker.handle_bytes(receiver, b"SUB x 1\r\n", now);
        let message = [
            b"PUB x 10000\r\n".to_vec(),
            vec![b'.'; 10_000],
            b"\r\n".to_vec(),
        ]
        .concat();
        while broker.wants_bytes(publisher) {
            broker.handle_bytes(publisher, &message, now);
        }
        assert!(drain(&mut broker, receiver, now) < 2 << 20);
        assert_eq!(resumed(&mut broker), [publisher]);
        // Again, but now the receiver takes nothing: the publisher is let go.
        while broker.wants_bytes(publisher) {
            broker.handle_bytes(publisher, &message, now);
        }
        let mut pieces = Vec::new();
        broker.start_write(receiver, 64, usize::MAX, &mut pieces);
        let later = now + Duration::from_millis(500);
        broker.handle_timeouts(later);
        assert_eq!(resumed(&mut broker), [publisher]);
        broker.handle_bytes(publisher, &message, later);
        assert!(broker.wants_bytes(publisher));
        // And in the end the receiver is cut off.
        broker.handle_timeouts(now + Duration::from_secs(3));
        assert_eq!(broker.totals().slow_consumers, 1);
    }

    #[test]
    fn one_receiver_of_many_holds_its_publisher_for_a_moment_only() {
        let (mut broker, now) = broker(Settings::default());
        let publisher = open(&mut broker, 1, now);
        let receivers: Vec<Slot> = (2..10).map(|cid| open(&mut broker, cid, now)).collect();
        for receiver in &receivers {
            broker.handle_bytes(*receiver, b"SUB x 1\r\n", now);
        }
        let message = [
            b"PUB x 10000\r\n".to_vec(),
            vec![b'.'; 10_000],
            b"\r\n".to_vec(),
        ]
        .concat();
        let (mut at, mut held, step) = (now, Duration::ZERO, Duration::from_millis(1));
        for _ in 0..3000 {
            if broker.wants_bytes(publisher) {
                broker.handle_bytes(publisher, &message, at);
            } else {
                held += step;
            }
            // All but the first keep up; that one takes a little.
            for receiver in &receivers[1..] {
                drain(&mut broker, *receiver, at);
            }
            let pending = broker.client(receivers[0]).unwrap().outbox.pending();
            broker.handle_written(receivers[0], pending.min(1000), at);
            at += step;
            broker.handle_timeouts(at);
            resumed(&mut broker);
        }
        assert!(
            held < Duration::from_millis(150),
            "held for {held:?} of 3 s"
        );
    }
}
