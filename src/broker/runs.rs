//! Delivery of runs: many small messages to one subject at once.
//!
//! The outcome is that of delivering the messages one by one, but each receiver is visited once: its
//! records are looked up once, `MSG subject sid ` is made once, and a tight loop copies that and the
//! tails. That is done where nobody could tell the difference:
//!
//! - all matching subscriptions are plain ones of different connections, or
//! - there is one queue group, of different connections, and nothing else,
//!
//! and none of them wants care per message (a limit, permissions). Otherwise the messages are delivered one
//! by one, so that a connection with several subscriptions gets each message on all of them before the
//! next one.

use super::client::{Client, Phase};
use super::deliver::{Origin, Receivers, put_head};
use super::mail::Envelope;
use super::outbox::{PADDING, put};
use super::peers::BACKLOG_BYTES_MAX;
use super::subs::{Care, Subscription, Target};
use super::{Broker, Slot, hold, mark_dirty};
use crate::subject::sublist::{Group, InterestId};
use crate::util::pool::Pool;
use crate::wire::parser::Padded;
use crate::wire::run::{RUN_MESSAGES_MAX, Run, Tail};

/// Longest `MSG subject sid ` that is made once per receiver.
const HEAD_BYTES_MAX: usize = 192;
/// Groups up to this size are looked through before a run is dealt out.
const GROUP_MEMBERS_MAX: usize = 64;
const _: () = assert!(GROUP_MEMBERS_MAX < u8::MAX as usize);

/// How a run can be delivered to those who match.
enum Way {
    /// To plain subscriptions, each getting all of it.
    Whole,
    /// To the members of the only queue group there is.
    Dealt,
    OneByOne,
}

impl Broker {
    /// Delivers a run to everybody interested.
    pub(super) fn deliver_run(&mut self, origin: &Origin, run: &Run<'_>) {
        let mut matched = std::mem::take(&mut self.matched);
        self.sublist.matches(run.subject.bytes(), &mut matched);
        let way = match matched.is_empty() {
            true => Way::Whole,
            false => self.way(origin, run, &matched),
        };
        match way {
            Way::Whole => self.deliver_whole(origin, run, &matched),
            Way::Dealt => self.deal_out(origin, run, matched[0]),
            Way::OneByOne => {}
        }
        self.matched = matched;
        if let Way::OneByOne = way {
            for message in run.messages() {
                self.deliver_again(origin, &message);
            }
        }
    }

    fn way(&mut self, origin: &Origin, run: &Run<'_>, matched: &[InterestId]) -> Way {
        if log::log_enabled!(log::Level::Trace) {
            return Way::OneByOne;
        }
        let Self {
            receivers, sublist, ..
        } = self;
        receivers.visit = receivers.visit.wrapping_add(1);
        let groups = |id: &InterestId| sublist.interest(*id).groups();
        let others_count = !(origin.from_route || origin.from_loop.is_some());
        if others_count && matched.iter().any(|id| !groups(id).is_empty()) {
            return match matched {
                [id] if sublist.interest(*id).plain().is_empty() => match groups(id) {
                    [group] if receivers.can_deal_out(run, group) => Way::Dealt,
                    _ => Way::OneByOne,
                },
                _ => Way::OneByOne,
            };
        }
        for id in matched {
            for subscription in sublist.interest(*id).plain() {
                if !receivers.is_plain_and_new(run, *subscription) {
                    return Way::OneByOne;
                }
            }
        }
        Way::Whole
    }

    fn deliver_whole(&mut self, origin: &Origin, run: &Run<'_>, matched: &[InterestId]) {
        let mut count = 0;
        let Self {
            receivers,
            sublist,
            matched_peers,
            peers,
            reached_routes,
            ..
        } = self;
        for id in matched {
            for subscription in sublist.interest(*id).plain() {
                match receivers.subscriptions[*subscription as usize].target() {
                    Target::Client(slot) => {
                        count += receivers.append_run(origin, run, *subscription, slot);
                    }
                    // The publisher's loop itself serves the other loops.
                    Target::Loop(_) if origin.from_loop.is_some() => {}
                    Target::Loop(index) => peers[index as usize].ask_plain(index, matched_peers),
                    // One hop only, and once over each route.
                    Target::Route(slot) => {
                        if !origin.from_route && !reached_routes.contains(&slot) {
                            reached_routes.push(slot);
                            count += receivers.append_run(origin, run, *subscription, slot);
                        }
                    }
                }
            }
        }
        reached_routes.clear();
        if !matched_peers.is_empty() {
            self.send_run_to_peers(origin, run, count);
        }
        self.finish_run(
            origin,
            run,
            count,
            run.count() as u64,
            run.body_bytes as u64,
        );
    }

    /// Each message to one member of a group, chosen evenly.
    fn deal_out(&mut self, origin: &Origin, run: &Run<'_>, interest: InterestId) {
        let Self {
            receivers,
            sublist,
            random,
            ..
        } = self;
        let group = &sublist.interest(interest).groups()[0];
        let members = group.len();
        let mut taker = [0; RUN_MESSAGES_MAX];
        let takes = |index: usize| {
            group
                .member(index)
                .is_some_and(|id| receivers.takes(origin, id))
        };
        let able: [bool; GROUP_MEMBERS_MAX] = std::array::from_fn(takes);
        for taker in &mut taker[..run.count()] {
            let first = random.below(members as u32) as usize;
            let member = (first..members).chain(0..first).find(|index| able[*index]);
            *taker = member.map_or(u8::MAX, |index| index as u8);
        }
        let (mut messages, mut bytes) = (0, 0);
        let mut tails = [Tail::default(); RUN_MESSAGES_MAX];
        for index in 0..members {
            let part = run.select(|at| taker[at] == index as u8, &mut tails);
            if let Some(id) = group.member(index).filter(|_| part.count() > 0)
                && let Target::Client(slot) = receivers.subscriptions[id as usize].target()
            {
                receivers.append_run(origin, &part, id, slot);
                messages += part.count() as u64;
                bytes += part.body_bytes as u64;
            }
        }
        self.finish_run(origin, run, u32::from(messages > 0), messages, bytes);
    }

    /// What is left to do once all receivers have been visited: each message had `receivers`, all
    /// together had so many messages and bytes.
    fn finish_run(
        &mut self,
        origin: &Origin,
        run: &Run<'_>,
        receivers: u32,
        messages: u64,
        bytes: u64,
    ) {
        let copies = u64::from(receivers);
        self.totals.traffic.messages_out += copies * messages;
        self.totals.traffic.bytes_out += copies * bytes;
        self.totals.fanout_max = self.totals.fanout_max.max(receivers);
        if self.receivers.anything_left()
            && let Some(first) = run.messages().next()
        {
            self.finish_rare(origin, &first, receivers);
        }
    }

    fn send_run_to_peers(&mut self, origin: &Origin, run: &Run<'_>, others: u32) {
        let targets = std::mem::take(&mut self.matched_peers);
        for index in &targets {
            let peer = &mut self.peers[*index as usize];
            peer.plain = false;
            let envelope = Envelope {
                plain: true,
                hops: origin.hops,
                others,
                publisher: origin.publisher,
            };
            peer.outgoing.push_run(run, envelope);
            if peer.bytes_ahead() > BACKLOG_BYTES_MAX {
                self.wait_for_peer(*index, origin.publisher);
            }
        }
        self.matched_peers = targets;
        self.matched_peers.clear();
    }
}

impl Receivers {
    /// Whether the subscription is that of a connection not seen in this visit, or leads elsewhere,
    /// and takes messages without further ado.
    #[inline(always)]
    fn is_plain_and_new(&mut self, run: &Run<'_>, id: u32) -> bool {
        let subscription = &self.subscriptions[id as usize];
        let (Target::Client(slot) | Target::Route(slot)) = subscription.target() else {
            return true;
        };
        let client = &mut self.clients[slot as usize];
        let seen = std::mem::replace(&mut client.visit, self.visit) == self.visit;
        // A route has many subscriptions, of which one gets the message.
        (!seen || client.route.is_some()) && fits(run, subscription)
    }

    fn can_deal_out(&mut self, run: &Run<'_>, group: &Group) -> bool {
        if group.len() > GROUP_MEMBERS_MAX || group.total_weight() != group.len() as u64 {
            return false;
        }
        let mut members = (0..group.len()).filter_map(|index| group.member(index));
        members.all(|id| {
            let target = self.subscriptions[id as usize].target();
            matches!(target, Target::Client(_)) && self.is_plain_and_new(run, id)
        })
    }

    /// Whether the connection of a subscription gets messages of this origin now.
    #[inline(always)]
    fn takes(&self, origin: &Origin, id: u32) -> bool {
        match self.subscriptions[id as usize].target() {
            Target::Client(slot) => {
                origin.no_echo != Some(slot) && self.clients[slot as usize].phase == Phase::Open
            }
            Target::Route(_) | Target::Loop(_) => false,
        }
    }

    /// The whole run for one subscription; returns the number of receivers that makes.
    #[inline(always)]
    fn append_run(&mut self, origin: &Origin, run: &Run<'_>, id: u32, slot: Slot) -> u32 {
        let subscription = &mut self.subscriptions[id as usize];
        let client = &mut self.clients[slot as usize];
        if origin.no_echo == Some(slot) || client.phase != Phase::Open {
            return 0;
        }
        let sid = subscription.short_sid().expect("seen by `fits`");
        put_run(run, client, sid, &mut self.pool);
        subscription.delivered += run.count() as u64;
        mark_dirty(client, slot, &mut self.dirty);
        if client.outbox.pending() > hold::HIGH_WATER_BYTES {
            let max = self.pending_bytes_max(slot);
            self.note_backlog(slot, max);
        }
        1
    }
}

/// Whether a run can go to this subscription as a whole.
#[inline(always)]
fn fits(run: &Run<'_>, subscription: &Subscription) -> bool {
    subscription.care == Care::Nothing
        && subscription
            .short_sid()
            .is_some_and(|sid| 6 + run.subject.len + sid.len <= HEAD_BYTES_MAX)
}

/// Every message of the run into the outbox of a connection.
#[inline(always)]
fn put_run(run: &Run<'_>, client: &mut Client, sid: Padded<'_>, pool: &mut Pool) {
    let mut head = [0; HEAD_BYTES_MAX + PADDING];
    let head_bytes = put_head(&mut head, run.subject, sid, false);
    let head = Padded::new(&head, head_bytes);
    let bytes = run.count() * head_bytes + run.tail_bytes;
    client.outbox.append_with(pool, bytes, |to| {
        let mut at = 0;
        for tail in run.tails() {
            at = put(to, at, head);
            at = put(to, at, tail);
        }
        at
    });
    client.traffic.messages_out += run.count() as u64;
    client.traffic.bytes_out += run.body_bytes as u64;
}

/// Runs against messages one by one: nobody may see a difference.
#[doc(hidden)]
pub mod fuzz {
    use super::*;
    use crate::broker::mail::{Backlog, Batch};
    use crate::broker::outbox::Piece;
    use crate::broker::perms::{Permissions, Responses, Rule, Rules};
    use crate::broker::settings::{ClusterSettings, Settings};
    use crate::util::random::Random;
    use crate::util::region::RegionMut;
    use bytes::Bytes;
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    const LOOPS: u16 = 2;
    /// Of each loop. The last one may not publish and receive everything.
    const CLIENTS: usize = 7;
    const RESTRICTED: usize = CLIENTS - 1;
    /// On the first loop, in the slots behind its clients; the second one understands headers.
    const ROUTES: usize = 2;
    /// Pending output of this size is put in front of a connection that is to be far behind.
    const FLOOD_BYTES: usize = hold::HIGH_WATER_BYTES + 1;
    /// Around the longest subject of which the head is made once per receiver, with sids of clients and of routes.
    const LONG_SUBJECT_BYTES: usize = HEAD_BYTES_MAX - 18;

    fn cid(home: usize, slot: usize) -> u64 {
        1 + home as u64 + u64::from(LOOPS) * slot as u64
    }

    fn rules(subjects: &[&str]) -> Vec<Rule> {
        let rule = |subject: &&str| Rule {
            subject: subject.as_bytes().into(),
            queue: None,
        };
        subjects.iter().map(rule).collect()
    }

    fn restricted() -> Permissions {
        Permissions {
            publish: Rules {
                allow: Some(rules(&["a", "a.>"])),
                deny: rules(&["a.c"]),
            },
            subscribe: Rules {
                allow: None,
                deny: rules(&["a.b"]),
            },
            responses: Some(Responses {
                messages_max: Some(2),
                expires: None,
            }),
        }
    }

    /// Two loops with a few clients each, and two routes.
    struct House {
        brokers: Vec<Broker>,
        /// What each connection has taken, by loop and slot.
        taken: Vec<Vec<Vec<u8>>>,
        now: Instant,
    }

    impl House {
        fn new(now: Instant) -> Self {
            let mut settings = Settings {
                pending_bytes_max: usize::MAX,
                ..Settings::default()
            };
            settings.info.headers = true;
            let mut cluster = ClusterSettings {
                pending_bytes_max: usize::MAX,
                ..ClusterSettings::default()
            };
            cluster.info.server_id = "own".into();
            settings.cluster = Some(cluster);
            let settings = Arc::new(settings);
            let restricted = Arc::new(restricted());
            let peer = SocketAddr::from(([127, 0, 0, 1], 1));
            let brokers = (0..LOOPS).map(|index| {
                let region = RegionMut::map(512 << 10).expect("a small mapping");
                let random = Random::new(7);
                let mut broker = Broker::new(settings.clone(), index, LOOPS, region, random, now);
                for client in 0..CLIENTS {
                    let slot = broker.open(cid(index.into(), client), peer, now);
                    let echo = client % 3 != 2;
                    let hello = format!(
                        "CONNECT {{\"verbose\":{},\"pedantic\":{},\"echo\":{echo},\"headers\":true,\"no_responders\":{}}}\r\n",
                        client == 4,
                        client == 3,
                        client == 1
                    );
                    broker.handle_bytes(slot, hello.as_bytes(), now);
                }
                broker.take_over_permissions(RESTRICTED as Slot, Some(restricted.clone()));
                broker
            });
            let connections = [CLIENTS + ROUTES, CLIENTS];
            let mut house = Self {
                brokers: brokers.collect(),
                taken: connections.map(|count| vec![Vec::new(); count]).into(),
                now,
            };
            for (id, headers) in [("old", false), ("new", true)] {
                let broker = &mut house.brokers[0];
                let slot = broker.clients().count();
                broker.open_route(cid(0, slot), peer, None, now);
                let hello = format!("INFO {{\"server_id\":\"{id}\",\"headers\":{headers}}}\r\n");
                house.feed(0, slot, hello.as_bytes());
            }
            house.exchange();
            house
        }

        fn feed(&mut self, home: usize, slot: usize, bytes: &[u8]) {
            self.brokers[home].handle_bytes(slot as Slot, bytes, self.now);
        }

        /// As the end of a turn: mail goes to the other loop, which works it off.
        fn exchange(&mut self) {
            for (from, to) in [(0, 1), (1, 0)] {
                self.brokers[from].end_turn();
                let batch = self.brokers[from].take_mail(to as u16, Batch::default());
                self.brokers[to].handle_mail(from as u16, &batch, self.now);
                self.brokers[from].set_backlog(to as u16, Backlog::default());
            }
        }

        /// A connection is far behind.
        fn flood(&mut self, home: usize, slot: usize, flood: &Bytes) {
            let Receivers { clients, pool, .. } = &mut self.brokers[home].receivers;
            clients[slot].outbox.append_shared(pool, flood.clone());
        }

        /// A connection takes all that is pending.
        fn drain(&mut self, home: usize, slot: usize) {
            let broker = &mut self.brokers[home];
            let outbox = &mut broker.receivers.clients[slot].outbox;
            let (pending, mut pieces) = (outbox.pending(), Vec::new());
            outbox.pieces(usize::MAX, usize::MAX, &mut pieces);
            let taken = &mut self.taken[home][slot];
            for piece in pieces {
                match piece {
                    Piece::Region { offset, len } => {
                        taken.extend_from_slice(broker.receivers.pool.bytes(offset, len));
                    }
                    Piece::Shared(bytes) if bytes.len() == FLOOD_BYTES => taken.push(b'~'),
                    Piece::Shared(bytes) => taken.extend_from_slice(&bytes),
                }
            }
            broker.handle_written(slot as Slot, pending, self.now);
        }

        fn pass(&mut self, time: Duration) {
            self.now += time;
            for broker in &mut self.brokers {
                broker.handle_timeouts(self.now);
            }
        }

        /// Only who was flooded gets above the mark: the others would get there within a run, which sees it at its end.
        fn keep_below_high_water(&mut self) {
            for (home, slot) in self.places() {
                let pending = self.brokers[home].receivers.clients[slot].outbox.pending();
                if (hold::HIGH_WATER_BYTES / 4..FLOOD_BYTES).contains(&pending) {
                    self.drain(home, slot);
                }
            }
        }

        fn places(&self) -> Vec<(usize, usize)> {
            let homes = self.taken.iter().enumerate();
            homes
                .flat_map(|(home, slots)| (0..slots.len()).map(move |slot| (home, slot)))
                .collect()
        }

        /// Everything each connection was sent, and what was counted. When all have taken what they were sent,
        /// nobody is held back any more.
        fn outcome(mut self) -> Vec<(String, Vec<u8>)> {
            let mut outcome = Vec::new();
            for broker in &self.brokers {
                let mut delivered: Vec<_> = (broker.receivers.subscriptions.iter())
                    .map(|(id, subscription)| (id, subscription.delivered))
                    .collect();
                delivered.sort_unstable();
                let counted = format!("{:?} {delivered:?}", broker.totals());
                outcome.push((counted, Vec::new()));
            }
            for (home, slot) in self.places() {
                let client = &self.brokers[home].receivers.clients[slot];
                let counted = format!("{:?} held by {}", client.traffic, client.held_by);
                self.drain(home, slot);
                outcome.push((counted, std::mem::take(&mut self.taken[home][slot])));
            }
            self.exchange();
            for (home, slot) in self.places() {
                let client = &self.brokers[home].receivers.clients[slot];
                assert_eq!(client.held_by, 0, "loop {home}, slot {slot}");
            }
            outcome
        }
    }

    /// Reads `data` as a script: who subscribes to what, who publishes how much of what, who is behind, and who
    /// takes what is pending.
    pub fn check(data: &[u8]) {
        const SUBJECTS: [&str; 6] = [
            "a",
            "a.b",
            "a.c",
            "b",
            "a.much.longer.subject.of.more.than.32",
            "_SYS.x",
        ];
        const PATTERNS: [&str; 8] = ["a", "a.b", "a.*", "a.>", ">", "b", "a.b", "a.c"];
        let now = Instant::now();
        let flood = Bytes::from(vec![0; FLOOD_BYTES]);
        let (mut together, mut apart) = (House::new(now), House::new(now));
        let mut bytes = data.iter().copied();
        // Subscriptions that were made, with the cids of their connections.
        let mut made: Vec<(u64, String)> = Vec::new();
        while let Some(op) = bytes.next() {
            let mut next = || usize::from(bytes.next().unwrap_or(0));
            let (home, slot) = match (usize::from(op >> 7), next()) {
                (home, who @ 0..192) => (home, who % RESTRICTED),
                (home, 192..224) => (home, RESTRICTED),
                (_, who) => (0, CLIENTS + who % ROUTES),
            };
            let routed = slot >= CLIENTS;
            let mut lines: Vec<String> = Vec::new();
            match (op % 4, op / 4 % 8) {
                (0, _) => {
                    let pattern = PATTERNS[next() % PATTERNS.len()];
                    let queue = ["", "", "q ", "r "][next() % 4];
                    let prefix = match (routed, queue) {
                        (false, _) => "",
                        (true, "") => "RSID:7:",
                        (true, _) => "QRSID:7:",
                    };
                    let long = if next() % 8 == 0 {
                        "-a-very-long-sid"
                    } else {
                        ""
                    };
                    let sid = format!("{prefix}{}{long}", made.len() + 1);
                    lines.push(format!("SUB {pattern} {queue}{sid}\r\n"));
                    if next() % 4 == 0 {
                        lines.push(format!("UNSUB {sid} {}\r\n", next() % 5 + 1));
                    }
                    made.push((cid(home, slot), sid));
                }
                (1, 6) => {
                    next();
                    together.flood(home, slot, &flood);
                    apart.flood(home, slot, &flood);
                }
                (1, 7) => {
                    let time = Duration::from_millis(10 * (next() % 64) as u64);
                    for house in [&mut together, &mut apart] {
                        house.drain(home, slot);
                        house.pass(time);
                    }
                }
                (1, _) => {
                    let chosen = (next() % (made.len() + 1)).checked_sub(1);
                    let sid = chosen.map_or("0", |at| made[at].1.as_str());
                    lines.push(format!("UNSUB {sid}\r\n"));
                }
                _ => {
                    for _ in 0..next() % 12 {
                        let subject = match next() {
                            at @ 240.. => long_subject(at % 16),
                            at => SUBJECTS[at % SUBJECTS.len()].to_owned(),
                        };
                        let reply = ["", "", "", "b ", "nobody "][next() % 5];
                        let body = "x".repeat(next() % 40 * (next() % 4));
                        let with_headers = next() % 8 == 0;
                        let to = match routed {
                            false => String::new(),
                            true => addressee(next(), &made),
                        };
                        let verb = match (routed, with_headers) {
                            (false, false) => "PUB",
                            (false, true) => "HPUB",
                            (true, false) => "MSG",
                            (true, true) => "HMSG",
                        };
                        let line = match with_headers {
                            true => {
                                let bytes = body.len() + 12;
                                format!(
                                    "{verb} {subject} {to}{reply}12 {bytes}\r\nNATS/1.0\r\n\r\n{body}\r\n"
                                )
                            }
                            false => {
                                let bytes = body.len();
                                format!("{verb} {subject} {to}{reply}{bytes}\r\n{body}\r\n")
                            }
                        };
                        for _ in 0..next() % 6 {
                            lines.push(line.clone());
                        }
                    }
                }
            }
            together.feed(home, slot, lines.concat().as_bytes());
            for line in &lines {
                apart.feed(home, slot, line.as_bytes());
            }
            for house in [&mut together, &mut apart] {
                house.exchange();
                house.keep_below_high_water();
            }
        }
        let outcomes = together.outcome().into_iter().zip(apart.outcome());
        for ((counted, sent), (counted_apart, sent_apart)) in outcomes {
            assert_eq!(counted, counted_apart);
            // Made readable only where they differ: that takes most of the time otherwise.
            assert!(
                sent == sent_apart,
                "{}\n{}",
                sent.escape_ascii(),
                sent_apart.escape_ascii()
            );
        }
    }

    fn long_subject(bytes_more: usize) -> String {
        format!("a.{}", "x".repeat(LONG_SUBJECT_BYTES - 2 + bytes_more))
    }

    /// Whom a message of another server is for: plain subscriptions, or what that server takes for a member of
    /// a queue group.
    fn addressee(choice: usize, made: &[(u64, String)]) -> String {
        match made.get(choice / 4) {
            Some((cid, sid)) if choice.is_multiple_of(4) => format!("QRSID:{cid}:{sid} "),
            _ => "RSID:1:1 ".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    proptest::proptest! {
        #[test]
        fn runs_do_what_messages_one_by_one_do(
            data in proptest::collection::vec(proptest::num::u8::ANY, 0..400),
        ) {
            super::fuzz::check(&data);
        }
    }
}
