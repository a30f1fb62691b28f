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
//! A client that far behind with lines of our own is not read from either: answers to its
//! PINGs, say, must not pile up without bound. Messages of others do not count there: its end may do the same, and each would
//! wait for the other.
//!
//! A receiver alone behind among others that keep up may hold its publisher only for a small part
//! of each second: the others lose a few percent at most, and it is cut off when its backlog
//! reaches the bound. When nearly all receivers of a publisher are behind, the publisher is simply too fast, and is held
//! for as long as they make progress. Both may be at one receiver at the same time; each publisher waits by its own terms.
//!
//! A publisher that carries messages of many, a route or the streaming engine, would be held from all others by one receiver
//! that is slow: most of its messages have one. So it is not, until that one is well on the way to being cut off.
//!
//! A part of this process, the streaming engine, is another matter:
//!
//! - It is never cut off, so what waits for it is bounded by those who send to it alone. Clients wait until it has caught up,
//!   however long that takes. A route carries much that is for others: it is let go as ever, and waits as clients do only from
//!   a much larger backlog on.
//! - It is read from however much waits for it. While it has much to say it reads nothing, and each would wait for the other.

use super::client::{Held, Holding, Phase, PublisherRef};
use super::effect::{CloseReason, Effect};
use super::timers::Timer;
use super::{Broker, Slot};
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

/// Backlog above which a receiver may hold publishers, and below which it lets them go.
pub const HIGH_WATER_BYTES: usize = 1 << 20;
pub const LOW_WATER_BYTES: usize = 256 << 10;

/// How far below its mark a backlog must be for those who wait to be let go.
const GAP_BYTES: usize = HIGH_WATER_BYTES - LOW_WATER_BYTES;
/// Backlog of a part of this process from which on routes wait for it as clients do.
const ROUTES_WAIT_BYTES: usize = 64 << 20;
/// Of the backlog a receiver is cut off for, the part from which on it holds publishers that carry messages of many.
const HOLDS_CARRIERS_PART: usize = 8;

/// How long a receiver in a minority may hold publishers within one period.
const ALLOWANCE: Duration = Duration::from_millis(20);
const PERIOD: Duration = Duration::from_secs(1);
/// A receiver that holds publishers must make progress this often, and must have caught up after
/// that long.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
const CATCH_UP_WITHIN: Duration = Duration::from_secs(2);
/// Of thousands that wait for a part of this process each has a buffer full to say: these are let go when it has caught up,
/// and so many more each time that it takes something, or after that long.
const LET_GO_AT_ONCE: usize = 16;
const LET_GO_EVERY: Duration = Duration::from_millis(1);

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
        let waits = self.must_wait(receiver, publisher, 0);
        let client = &mut self.receivers.clients[receiver as usize];
        if !waits || client.phase == Phase::Closing {
            return;
        }
        // Whoever else listens: it is not cut off when they go on.
        let nearly_all = nearly_all || client.internal;
        let holding = client.holding.get_or_insert_with(|| {
            Box::new(Holding {
                publishers: Vec::new(),
                period_ends: now,
                allowance_ends: now,
                look_at: None,
            })
        });
        let mut publishers = holding.publishers.iter();
        if publishers.any(|held| held.publisher == publisher) {
            return;
        }
        let until = if nearly_all {
            now + CATCH_UP_WITHIN
        } else {
            if now >= holding.period_ends {
                holding.period_ends = now + PERIOD;
                holding.allowance_ends = now + ALLOWANCE;
            }
            if now >= holding.allowance_ends {
                return;
            }
            holding.allowance_ends
        };
        holding.publishers.push(Held {
            publisher,
            nearly_all,
            until,
        });
        self.look_again(receiver, until.min(now + PROGRESS_EVERY));
        self.tell_publisher(publisher, true);
    }

    /// Sees to it that `end_of_hold` is called then, or before.
    fn look_again(&mut self, receiver: Slot, at: Instant) {
        let client = &mut self.receivers.clients[receiver as usize];
        if let Some(holding) = &mut client.holding
            && holding.look_at.is_none_or(|set| at < set)
        {
            holding.look_at = Some(at);
            self.timers.push(at, receiver, client.cid, Timer::Hold);
        }
    }

    /// Whether a publisher is to wait for this receiver, which is above high water; with a gap, whether one that waits is to
    /// go on with it.
    fn must_wait(&self, receiver: Slot, publisher: PublisherRef, gap: usize) -> bool {
        let client = &self.receivers.clients[receiver as usize];
        let pending = client.outbox.pending() + gap;
        match (client.internal, publisher.carrier) {
            // For itself it would wait for ever.
            (true, _) if client.cid == publisher.cid => false,
            (true, true) => !client.stuck || pending > ROUTES_WAIT_BYTES,
            (true, false) => true,
            (false, true) => {
                let max = self.receivers.pending_bytes_max(receiver);
                !client.stuck && pending > HIGH_WATER_BYTES.max(max / HOLDS_CARRIERS_PART)
            }
            (false, false) => !client.stuck,
        }
    }

    /// Passes a hold, or its end, to a publisher here or on another loop.
    fn tell_publisher(&mut self, publisher: PublisherRef, hold: bool) {
        let home = self.loop_of(publisher.cid);
        if home == self.loop_index {
            self.handle_hold(publisher, hold);
        } else {
            self.peers[usize::from(home)]
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
                client.pings_out = 0; // what it answered meanwhile is still to be read
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
            let internal = client.internal;
            self.let_first_go(receiver, if internal { LET_GO_AT_ONCE } else { usize::MAX });
        }
    }

    pub(super) fn let_publishers_go(&mut self, receiver: Slot) {
        self.let_first_go(receiver, usize::MAX);
    }

    /// Those that came first, so many of them; whether there are others.
    fn let_first_go(&mut self, receiver: Slot, count: usize) -> bool {
        let Some(holding) = &mut self.receivers.clients[receiver as usize].holding else {
            return false;
        };
        let count = count.min(holding.publishers.len());
        let go: Vec<Held> = holding.publishers.drain(..count).collect();
        let others = !holding.publishers.is_empty();
        for held in go {
            self.tell_publisher(held.publisher, false);
        }
        others
    }

    pub(super) fn end_of_hold(&mut self, receiver: Slot) {
        let now = self.now;
        let client = &mut self.receivers.clients[receiver as usize];
        let Some(holding) = client.holding.as_deref_mut() else {
            return;
        };
        if holding.look_at.is_none_or(|at| at > now) {
            return;
        }
        holding.look_at = None;
        if client.outbox.pending() <= LOW_WATER_BYTES {
            // Nobody waits for it, but for those that are not let go all at once.
            if self.let_first_go(receiver, LET_GO_AT_ONCE) {
                self.look_again(receiver, now + LET_GO_EVERY);
            }
            return;
        }
        let progress = client
            .progress_at
            .is_none_or(|at| now.duration_since(at) < PROGRESS_EVERY);
        let mut publishers = holding.publishers.iter();
        if !progress || publishers.any(|held| held.nearly_all && held.until <= now) {
            // From here on its backlog grows, until it catches up or is cut off.
            client.stuck = true;
        }
        self.let_some_go(receiver);
        let client = &self.receivers.clients[receiver as usize];
        let holding = client.holding.as_ref().expect("it was there above");
        // Also where it holds nobody: as long as it makes no progress it is asked in vain with each message.
        if !client.stuck || !holding.publishers.is_empty() {
            let untils = holding.publishers.iter().map(|held| held.until);
            let first = untils.filter(|until| *until > now).min();
            let next = now + PROGRESS_EVERY;
            self.look_again(receiver, first.map_or(next, |until| until.min(next)));
        }
    }

    /// Lets those publishers go that need not wait any more.
    fn let_some_go(&mut self, receiver: Slot) {
        let now = self.now;
        let Some(holding) = &mut self.receivers.clients[receiver as usize].holding else {
            return;
        };
        let all = std::mem::take(&mut holding.publishers);
        let (stay, go): (Vec<_>, Vec<_>) = all.into_iter().partition(|held| {
            (held.nearly_all || held.until > now)
                && self.must_wait(receiver, held.publisher, GAP_BYTES)
        });
        if let Some(holding) = &mut self.receivers.clients[receiver as usize].holding {
            holding.publishers = stay;
        }
        for held in go {
            self.tell_publisher(held.publisher, false);
        }
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
    use super::super::propagate::tests::PEER;
    use super::super::settings::{ClusterSettings, Settings};
    use super::*;
    use crate::util::random::Random;
    use crate::util::region::RegionMut;
    use std::sync::Arc;

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

    /// A part of this process that listens to `x`.
    fn open_internal(broker: &mut Broker, now: Instant) -> Slot {
        let slot = broker.open_internal(100, PEER, now);
        broker.handle_bytes(slot, b"CONNECT {\"verbose\":false}\r\nSUB x 1\r\n", now);
        drain(broker, slot, now);
        slot
    }

    fn message(subject: &str, bytes: usize) -> Vec<u8> {
        let head = format!("PUB {subject} {bytes}\r\n");
        [head.as_bytes(), &vec![b'.'; bytes], b"\r\n"].concat()
    }

    /// Publishes until it is held back; returns how many bytes wait for the receiver then.
    fn fill(broker: &mut Broker, publisher: Slot, receiver: Slot, now: Instant) -> usize {
        let message = message("x", 10_000);
        while broker.wants_bytes(publisher) {
            broker.handle_bytes(publisher, &message, now);
            let pending = broker.client(receiver).unwrap().outbox.pending();
            assert!(pending < 100 << 20, "held back by nothing");
        }
        broker.client(receiver).unwrap().outbox.pending()
    }

    #[test]
    fn clients_wait_for_a_part_of_this_process_as_long_as_it_takes() {
        let (mut broker, now) = broker(Settings::default());
        let internal = open_internal(&mut broker, now);
        // Somebody who keeps up does not make it a minority.
        let (other, quick) = (open(&mut broker, 3, now), open(&mut broker, 4, now));
        broker.handle_bytes(quick, b"SUB x 1\r\n", now);
        let publisher = open(&mut broker, 2, now);
        let message = message("x", 10_000);
        while broker.wants_bytes(publisher) {
            broker.handle_bytes(publisher, &message, now);
            drain(&mut broker, quick, now);
        }
        broker.start_write(internal, 64, usize::MAX, &mut Vec::new());
        let mut at = now;
        for _ in 0..600 {
            at += Duration::from_millis(100);
            broker.handle_timeouts(at);
            assert!(!broker.wants_bytes(publisher));
        }
        // It is stuck by now, and others are held back all the same.
        assert!(fill(&mut broker, other, internal, at) < 2 << 20);
        drain(&mut broker, internal, at);
        let mut released = resumed(&mut broker);
        released.sort_unstable();
        let mut expected = vec![publisher, other];
        expected.sort_unstable();
        assert_eq!(released, expected);
    }

    #[test]
    fn a_route_waits_for_a_part_of_this_process_when_very_much_waits_there() {
        let mut cluster = ClusterSettings {
            pending_bytes_max: usize::MAX,
            ..ClusterSettings::default()
        };
        cluster.info.server_id = "own".into();
        let settings = Settings {
            cluster: Some(cluster),
            ..Settings::default()
        };
        let (mut broker, now) = broker(settings);
        let internal = open_internal(&mut broker, now);
        let route = broker.open_route(50, PEER, None, now);
        let info = b"INFO {\"server_id\":\"another\",\"host\":\"0.0.0.0\",\"port\":6222}\r\n";
        broker.handle_bytes(route, info, now);
        assert!(broker.wants_bytes(route), "it is a route");
        let head = b"MSG x RSID:100:1 100000\r\n";
        let message = [&head[..], &[b'.'; 100_000], b"\r\n"].concat();
        let pending = |broker: &Broker| broker.client(internal).unwrap().outbox.pending();
        let mut at = now;
        while pending(&broker) < ROUTES_WAIT_BYTES - 200_000 {
            broker.handle_bytes(route, &message, at);
            if !broker.wants_bytes(route) {
                broker.start_write(internal, 64, usize::MAX, &mut Vec::new());
                at += PROGRESS_EVERY;
                broker.handle_timeouts(at);
            }
            assert!(broker.wants_bytes(route), "with {}", pending(&broker));
        }
        while broker.wants_bytes(route) {
            broker.handle_bytes(route, &message, at);
            assert!(pending(&broker) < ROUTES_WAIT_BYTES + 200_000);
        }
        at += 10 * CATCH_UP_WITHIN;
        broker.handle_timeouts(at);
        assert!(!broker.wants_bytes(route));
        // Long before all of it is gone it goes on.
        broker.handle_written(internal, 2 << 20, at);
        at += PROGRESS_EVERY;
        broker.handle_timeouts(at);
        assert!(broker.wants_bytes(route));
    }

    #[test]
    fn a_part_of_this_process_is_read_from_however_much_waits_for_it() {
        let (mut broker, now) = broker(Settings::default());
        let internal = open_internal(&mut broker, now);
        let publisher = open(&mut broker, 2, now);
        fill(&mut broker, publisher, internal, now);
        broker.handle_bytes(internal, b"PING\r\nPUB x 2\r\nhi\r\n", now);
        assert!(broker.wants_bytes(internal));
    }

    /// What others sent it is no reason not to listen to it: it may wait for that itself.
    #[test]
    fn whoever_gets_much_is_read_from_all_the_same() {
        let mut cluster = ClusterSettings {
            pending_bytes_max: usize::MAX,
            ..ClusterSettings::default()
        };
        cluster.info.server_id = "own".into();
        let settings = Settings {
            cluster: Some(cluster),
            ..Settings::default()
        };
        let (mut broker, now) = broker(settings);
        let route = broker.open_route(50, PEER, None, now);
        let hello = b"INFO {\"server_id\":\"another\"}\r\nSUB x RSID:9:1\r\n";
        broker.handle_bytes(route, hello, now);
        let client = open(&mut broker, 2, now);
        broker.handle_bytes(client, b"SUB x 1\r\n", now);
        let publisher = open(&mut broker, 3, now);
        for _ in 0..3 {
            broker.handle_bytes(publisher, &message("x", 600_000), now);
        }
        for receiver in [route, client] {
            assert!(broker.client(receiver).unwrap().outbox.pending() > HIGH_WATER_BYTES);
            broker.handle_bytes(receiver, b"PING\r\n", now);
            assert!(broker.wants_bytes(receiver));
        }
    }

    #[test]
    fn many_that_wait_for_a_part_of_this_process_are_let_go_one_after_another() {
        let (mut broker, now) = broker(Settings::default());
        let internal = open_internal(&mut broker, now);
        let publishers: Vec<Slot> = (0..100).map(|n| open(&mut broker, 1000 + n, now)).collect();
        let message = message("x", 1_200_000 / 8);
        for publisher in publishers.iter().cycle().take(108) {
            broker.handle_bytes(*publisher, &message, now);
        }
        let waiting = |broker: &Broker| {
            let waits = |slot: &&Slot| !broker.wants_bytes(**slot);
            publishers.iter().filter(waits).count()
        };
        let before = waiting(&broker);
        assert!(before > 90, "{before}");
        drain(&mut broker, internal, now);
        assert_eq!(waiting(&broker), before - LET_GO_AT_ONCE);
        // Nobody says anything: the others go on as well.
        let mut at = now + PROGRESS_EVERY;
        for _ in 0..before / LET_GO_AT_ONCE {
            broker.handle_timeouts(at);
            at += LET_GO_EVERY;
        }
        assert_eq!(waiting(&broker), 0);
    }

    /// However long that is: its PONGs are not read meanwhile.
    #[test]
    fn whoever_is_held_back_is_not_stale() {
        let settings = Settings::default();
        let interval = settings.ping_interval;
        let (mut broker, now) = broker(settings);
        let internal = open_internal(&mut broker, now);
        let publisher = open(&mut broker, 2, now);
        fill(&mut broker, publisher, internal, now);
        let mut at = now;
        for _ in 0..10 {
            at += interval;
            broker.handle_timeouts(at);
        }
        assert_eq!(broker.client(publisher).unwrap().phase, Phase::Open);
        drain(&mut broker, internal, at);
        assert!(broker.wants_bytes(publisher));
        broker.handle_timeouts(at + interval);
        assert_eq!(broker.client(publisher).unwrap().phase, Phase::Open);
    }

    #[test]
    fn a_slow_receiver_holds_a_carrier_when_it_is_on_its_way_to_the_bound() {
        let settings = Settings::default();
        let mark = settings.pending_bytes_max / HOLDS_CARRIERS_PART;
        let (mut broker, now) = broker(settings);
        let internal = open_internal(&mut broker, now);
        let receiver = open(&mut broker, 2, now);
        broker.handle_bytes(receiver, b"SUB y 1\r\n", now);
        let message = message("y", 10_000);
        while broker.wants_bytes(internal) {
            broker.handle_bytes(internal, &message, now);
            assert_eq!(broker.client(receiver).unwrap().phase, Phase::Open);
        }
        let pending = broker.client(receiver).unwrap().outbox.pending();
        assert!((mark..mark + 20_000).contains(&pending), "{pending}");
        // Somewhat less is enough.
        broker.handle_written(receiver, GAP_BYTES + 20_000, now + PROGRESS_EVERY / 2);
        broker.handle_timeouts(now + PROGRESS_EVERY);
        assert_eq!(resumed(&mut broker), [internal]);
        assert!(!broker.client(receiver).unwrap().stuck);
    }

    /// One that listens to `x` with eight others, and alone to `y`; who publishes to each of them; and the others.
    fn two_kinds_of_publishers(broker: &mut Broker, now: Instant) -> (Slot, [Slot; 2], Vec<Slot>) {
        let receiver = open(broker, 1, now);
        broker.handle_bytes(receiver, b"SUB x 1\r\nSUB y 2\r\n", now);
        let others: Vec<Slot> = (2..10).map(|cid| open(broker, cid, now)).collect();
        for other in &others {
            broker.handle_bytes(*other, b"SUB x 1\r\n", now);
        }
        let publishers = [open(broker, 10, now), open(broker, 11, now)];
        (receiver, publishers, others)
    }

    /// Publishes once, with the others taking all of it.
    fn publish(broker: &mut Broker, from: Slot, subject: &str, others: &[Slot], at: Instant) {
        broker.handle_bytes(from, &message(subject, 600_000), at);
        for other in others {
            drain(broker, *other, at);
        }
    }

    #[test]
    fn publishers_wait_by_their_own_terms() {
        for alone_first in [false, true] {
            let (mut broker, now) = broker(Settings::default());
            let (receiver, publishers, others) = two_kinds_of_publishers(&mut broker, now);
            let [many, alone] = publishers;
            let mut order = [(many, "x"), (alone, "y")];
            if alone_first {
                order.reverse();
            }
            publish(&mut broker, order[0].0, order[0].1, &others, now);
            for (publisher, subject) in order {
                publish(&mut broker, publisher, subject, &others, now);
                assert!(!broker.wants_bytes(publisher), "{subject} is held");
            }
            // It takes a little all the time. Whose message has other receivers goes on soon.
            let mut at = now;
            for _ in 0..5 {
                broker.start_write(receiver, 64, usize::MAX, &mut Vec::new());
                at += ALLOWANCE;
                broker.handle_written(receiver, 1000, at);
                broker.handle_timeouts(at);
                assert!(broker.wants_bytes(many) && !broker.wants_bytes(alone));
            }
            // In its next second it may be held again, and the other one still is.
            publish(&mut broker, many, "x", &others, at);
            assert!(broker.wants_bytes(many));
            while at < now + PERIOD {
                broker.start_write(receiver, 64, usize::MAX, &mut Vec::new());
                at += ALLOWANCE;
                broker.handle_written(receiver, 1000, at);
                broker.handle_timeouts(at);
            }
            publish(&mut broker, many, "x", &others, at);
            assert!(!broker.wants_bytes(many) && !broker.wants_bytes(alone));
            // The time of the one runs out in the end, and from then on nobody waits.
            while at < now + CATCH_UP_WITHIN {
                broker.start_write(receiver, 64, usize::MAX, &mut Vec::new());
                at += ALLOWANCE;
                broker.handle_written(receiver, 1000, at);
                broker.handle_timeouts(at);
            }
            publish(&mut broker, many, "x", &others, at);
            assert!(broker.wants_bytes(many) && broker.wants_bytes(alone));
        }
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
