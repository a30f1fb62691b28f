//! Deadlines of one loop's connections: a heap with lazy removal.
//!
//! An entry names its connection by slot and cid, so one that outlived its connection is recognised
//! when it comes up and dropped.

use super::client::Phase;
use super::route::Asked;
use super::{Broker, Slot};
use crate::wire::{encode, errors};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    Ping,
    Authorization,
    /// Output is pending: does the kernel still take some?
    Progress,
    /// The time a receiver may hold publishers back is over, or it should have made progress.
    Hold,
}

#[derive(Debug, Default)]
pub struct Timers(BinaryHeap<Reverse<(Instant, Slot, u64, Timer)>>);

impl Timers {
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn push(&mut self, at: Instant, slot: Slot, cid: u64, timer: Timer) {
        self.0.push(Reverse((at, slot, cid, timer)));
    }
}

/// Entries of connections that have gone may make up this many times those that are needed.
const STALE_TIMES_MAX: usize = 4;
const STALE_ALWAYS_OK: usize = 4096;

impl Broker {
    /// Drops the entries of connections that have gone, when they are most of what there is: many
    /// short connections must not leave their PING timers behind for minutes.
    pub(super) fn tidy_timers(&mut self) {
        if self.timers.0.len() > STALE_TIMES_MAX * self.receivers.clients.len() + STALE_ALWAYS_OK {
            let clients = &self.receivers.clients;
            let known = |slot: Slot, cid| clients.get(slot as usize).is_some_and(|c| c.cid == cid);
            self.timers
                .0
                .retain(|Reverse((_, slot, cid, _))| known(*slot, *cid));
        }
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        let timer = self.timers.0.peek().map(|Reverse((at, ..))| *at);
        // Other loops are told that nobody is behind any more.
        let tells = self.peers.len() > 1 && self.now < self.behind_until;
        let lag = tells.then_some(self.behind_until);
        [timer, self.pace.deadline(self.now), lag]
            .into_iter()
            .flatten()
            .min()
    }

    pub fn handle_timeouts(&mut self, now: Instant) {
        self.now = now;
        self.keep_pace();
        while let Some(Reverse((at, slot, cid, timer))) = self.timers.0.peek().copied() {
            if at > now {
                break;
            }
            self.timers.0.pop();
            let known = self
                .receivers
                .clients
                .get(slot as usize)
                .is_some_and(|c| c.cid == cid);
            if known {
                self.handle_timer(slot, timer);
            }
        }
    }

    fn handle_timer(&mut self, slot: Slot, timer: Timer) {
        let now = self.now;
        let client = &mut self.receivers.clients[slot as usize];
        if client.phase == Phase::Closing && timer != Timer::Progress {
            return;
        }
        match timer {
            // A part of this process may have much else to do, and does not go without the rest.
            Timer::Ping if client.internal => {}
            Timer::Ping => {
                let cid = client.cid;
                let next = now + self.settings.ping_interval;
                if client.held_by > 0 {
                    // Its PONG may have come, and is not read.
                    return self.timers.push(next, slot, cid, Timer::Ping);
                }
                client.pings_out += 1;
                if client.pings_out > self.settings.pings_out_max {
                    log::debug!("{} - Stale Client Connection - Closing", client.label());
                    self.give_up(slot);
                    return self.refuse(slot, errors::STALE_CONNECTION);
                }
                let kind = client.kind.name();
                log::debug!("{} - {kind} Ping Timer", client.label());
                if let Some(route) = &mut client.route {
                    route.asked.push_back(Asked::Sign);
                }
                self.append(slot, encode::PING);
                self.timers.push(next, slot, cid, Timer::Ping);
            }
            Timer::Authorization => {
                if client.unauthorized && !client.verifying {
                    log::debug!("{} - Authorization Timeout", client.label());
                    self.refuse(slot, errors::AUTHORIZATION_TIMEOUT);
                }
            }
            Timer::Progress => {
                let deadline = self.settings.write_deadline;
                match client.progress_at {
                    None => client.watched = false,
                    Some(at) if now.duration_since(at) >= deadline && !client.internal => {
                        client.watched = false;
                        self.cut_off(
                            slot,
                            format!("nothing taken for {deadline:?} (write deadline)"),
                        );
                    }
                    Some(at) => {
                        let cid = client.cid;
                        let next = (at + deadline).max(now + deadline / 4);
                        self.timers.push(next, slot, cid, Timer::Progress);
                    }
                }
            }
            Timer::Hold => self.end_of_hold(slot),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::random::Random;
    use crate::util::region::RegionMut;

    #[test]
    fn a_part_of_this_process_may_be_silent() {
        let (mut now, region) = (Instant::now(), RegionMut::map(1 << 20).unwrap());
        let mut broker = Broker::new(Default::default(), 0, 1, region, Random::new(1), now);
        let peer = ([127, 0, 0, 1], 1).into();
        let internal = broker.open_internal(1, peer, now);
        let client = broker.open(2, peer, now);
        let greeting = broker.client(internal).unwrap().outbox.pending();
        for _ in 0..5 {
            now += broker.settings.ping_interval;
            broker.handle_timeouts(now);
        }
        let phase = |slot| broker.client(slot).unwrap().phase;
        assert_eq!(phase(internal), Phase::Open);
        assert_eq!(phase(client), Phase::Closing);
        let pending = broker.client(internal).unwrap().outbox.pending();
        assert_eq!(pending, greeting, "nobody asks it whether it is there");
    }

    #[test]
    fn timers_of_connections_that_left_do_not_stay() {
        let (now, region) = (Instant::now(), RegionMut::map(1 << 20).unwrap());
        let mut broker = Broker::new(Default::default(), 0, 1, region, Random::new(1), now);
        for cid in 0..50_000 {
            let slot = broker.open(cid, ([127, 0, 0, 1], 1).into(), now);
            broker.handle_gone(slot, now);
            broker.release(slot);
        }
        assert!(
            broker.timers.len() < 10_000,
            "{} timers",
            broker.timers.len()
        );
    }
}
