//! Runs against messages one by one: nobody may see a difference.

use super::*;
use crate::broker::hold;
use crate::broker::mail::{Backlog, Batch};
use crate::broker::outbox::Piece;
use crate::broker::perms::{Permissions, PublishRules, Responses, Rule, SubscribeRules};
use crate::broker::settings::{ClusterSettings, Settings};
use crate::util::random::Random;
use crate::util::region::RegionMut;
use crate::wire::parser::SHARED_BYTES_MIN;
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
/// More than a run may have, of messages and of bytes.
const MANY: usize = RUN_MESSAGES_MAX + 16;
const MUCH: usize = 4096;
/// With more subscriptions so much for each of them would bring others than those flooded above the mark.
const MADE_FOR_MUCH_MAX: usize = 16;

fn cid(home: usize, slot: usize) -> u64 {
    1 + home as u64 + u64::from(LOOPS) * slot as u64
}

fn restricted() -> Permissions {
    Permissions {
        publish: PublishRules {
            allow: Some([&b"a"[..], b"a.>"].into_iter().collect()),
            deny: [&b"a.c"[..]].into_iter().collect(),
        },
        subscribe: SubscribeRules::new(
            None,
            vec![Rule {
                subject: (*b"a.b").into(),
                queue: None,
            }],
        ),
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
            let lag = self.brokers[from].lag();
            self.brokers[to].set_lag(from as u16, lag);
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
                    let much = lines.is_empty() && made.len() <= MADE_FOR_MUCH_MAX;
                    let body_bytes = match (next(), next()) {
                        (255, _) if much => SHARED_BYTES_MIN,
                        (252.., _) if much => MUCH,
                        (tens, times) => tens % 40 * (times % 4),
                    };
                    let body = "x".repeat(body_bytes);
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
                    let copies = match next() % 6 {
                        5 if much && body_bytes < MUCH => MANY,
                        copies if body_bytes < SHARED_BYTES_MIN => copies,
                        copies => copies.min(1),
                    };
                    lines.extend(std::iter::repeat_n(line, copies));
                }
            }
        }
        // Runs end where reads do.
        let all = lines.concat();
        let (first, second) = all.split_at(all.len() * usize::from(op / 4 % 8) / 8);
        together.feed(home, slot, first.as_bytes());
        together.feed(home, slot, second.as_bytes());
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
