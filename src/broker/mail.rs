//! What one loop tells another: batches of records, a batch per turn and receiver.
//!
//! Interest and messages travel in one sequence of bytes, because their order is a promise: interest
//! must be known before any message that was published causally after it. The rest (new
//! connections, holds) needs no order and rides along as values.
//!
//! ```text
//!   interest: kind u8 | plain or queue u8 | - u16 | count u32 | subject length u32 | queue length u32
//!             subject | queue
//!   message:  kind u8 | plain, flags of the publisher u8 | hops u8 | shared u8 | groups u32
//!             subject, reply, header (or none), body, tail lengths u32 | receivers elsewhere 4 x u32
//!             publisher slot u32, cid u64 | sid length u32 | subject | groups: (length u32, name)... | sid | tail
//!   run:      kind u8 | - u8 | count u16 | hops u8 | flags of the publisher u8 | - u16 | subject length u32
//!             receivers elsewhere 4 x u32 | publisher slot u32, cid u64 | region length u32 | subject | region, with `tails` saying where
//!             in it the tails lie
//!   lines:    kind u8 | one route or all u8 | - u16 | length u32 | route's slot u32, cid u64 | next u32 | lines
//!   mark:     kind u8 | - | position u64
//!   taken in: kind u8 | - | position u64
//!   wanted:   kind u8 | - | route's slot u32, cid u64 | from u32
//! ```
//!
//! Messages in a row are often for the same groups: `groups` says so, and the names stand with the first of them only.
//!
//! What is counted or measured fits: a message is smaller than 4 GiB (`BODY_BYTES_MAX` of the parser), so
//! is what a read brings, and a run has few messages. Of groups there may be any number, with names as
//! long as a line may get.

use super::client::PublisherRef;
use super::hold::{Count, Elsewhere};
use crate::wire::parser::{Message, Padded};
use crate::wire::run::{RUN_MESSAGES_MAX, Run, Tail};
use bytes::Bytes;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::RawFd;

const KIND_INTEREST: u8 = 1;
const KIND_MESSAGE: u8 = 2;
const KIND_ROUTE_LINES: u8 = 3;
const KIND_INTEREST_WANTED: u8 = 4;
const KIND_RUN: u8 = 5;
const KIND_MARK: u8 = 6;
const KIND_TAKEN_IN: u8 = 7;
const RUN_HEAD_BYTES: usize = 44;
const NO_HEADERS: u32 = u32::MAX;
/// In place of the number of groups: those of the message before that has any.
const SAME_GROUPS: u32 = u32::MAX;
const _: () = assert!(RUN_MESSAGES_MAX <= u16::MAX as usize);

/// A connection accepted by one loop for another.
#[derive(Debug)]
pub struct Arrival {
    pub fd: RawFd,
    pub cid: u64,
    pub peer: SocketAddr,
}

#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    /// Where in `bytes` the latest names of groups stand.
    groups: Range<usize>,
    /// Tails of large messages, in the order in which records name them.
    shared: Vec<Bytes>,
    /// Where in their regions the tails of runs lie, in the order of the records.
    tails: Vec<Tail>,
    /// Bytes of payload, and of names of groups, in `bytes` and `shared`, for the sender's bound on what is
    /// under way.
    pub weight: usize,
    /// Changes of interest in `bytes`.
    pub changes: usize,
    /// There is more in `bytes` than changes of interest, which can wait until the receiver has something to do.
    has_messages: bool,
    pub arrivals: Vec<Arrival>,
    /// Publishers of the receiving loop to hold back, or to let go again.
    pub holds: Vec<(PublisherRef, bool)>,
}

/// What was sent to another loop and is not yet worked off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    pub bytes: usize,
    /// Changes of interest.
    pub changes: usize,
}

/// A message on its way to another loop, beside the message itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// To all plain subscriptions of the receiving loop.
    pub plain: bool,
    /// How often it was passed on because the chosen member of a queue group had gone.
    pub hops: u8,
    pub elsewhere: Elsewhere,
    pub publisher: PublisherRef,
}

#[derive(Debug)]
pub enum Record<'a> {
    /// The sender now has `count` members at this subject (and queue group).
    Interest {
        subject: &'a [u8],
        queue: Option<&'a [u8]>,
        count: u32,
    },
    Message {
        message: Message<'a>,
        owned: Option<Bytes>,
        envelope: Envelope,
        groups: Groups<'a>,
    },
    /// For plain subscriptions only.
    Run { run: Run<'a>, envelope: Envelope },
    /// SUB and UNSUB lines for one route, or for all there are. Routes live on loop 0.
    RouteLines {
        route: Option<RouteRef>,
        /// That loop has begun to tell this route.
        first: bool,
        /// There are more for this route, from this number of a subscription on.
        next: Option<u32>,
        lines: &'a [u8],
    },
    /// The receiver is to tell a new route a batch of its subscriptions, from this number on.
    InterestWanted { route: RouteRef, from: u32 },
    /// Routes are to say when they have taken in the lines before this.
    Mark { position: u64 },
    /// All of them have, as far as the receiver's lines before this are concerned.
    TakenIn { position: u64 },
}

/// Names a route of loop 0 for the other loops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteRef {
    pub slot: u32,
    pub cid: u64,
}

/// Names of queue groups the message is for.
#[derive(Clone, Debug, Default)]
pub struct Groups<'a>(&'a [u8]);

impl<'a> Iterator for Groups<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk()?;
        let (name, rest) = rest.split_at(u32::from_le_bytes(*length) as usize);
        self.0 = rest;
        Some(name)
    }
}

const CARRIER: u8 = 1;
const NO_ECHO: u8 = 2;

fn publisher_flags(publisher: PublisherRef) -> u8 {
    (u8::from(publisher.carrier) * CARRIER) | (u8::from(publisher.no_echo) * NO_ECHO)
}

fn publisher(slot: u32, cid: u64, flags: u8) -> PublisherRef {
    PublisherRef {
        slot,
        cid,
        carrier: flags & CARRIER != 0,
        no_echo: flags & NO_ECHO != 0,
    }
}

fn numbers_of(elsewhere: Elsewhere) -> [u32; 4] {
    let Elsewhere { counted, loops } = elsewhere;
    [
        counted.receivers,
        counted.behind,
        loops.receivers,
        loops.behind,
    ]
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.arrivals.is_empty() && self.holds.is_empty()
    }

    /// Makes an emptied batch ready for another turn; so much of its memory is kept.
    pub fn clear(&mut self, keep_bytes: usize) {
        self.bytes.clear();
        self.groups = 0..0;
        let tails_bytes = keep_bytes / 4;
        self.bytes
            .shrink_to((keep_bytes - tails_bytes).min(256 << 10));
        self.shared.clear();
        self.tails.clear();
        self.tails
            .shrink_to((tails_bytes / size_of::<Tail>()).min(16 << 10));
        self.weight = 0;
        self.changes = 0;
        self.has_messages = false;
        self.arrivals.clear();
        self.holds.clear();
    }

    /// Whether the receiver has something to do about it now. Interest counts when a message comes.
    pub fn is_urgent(&self) -> bool {
        self.has_messages || !self.arrivals.is_empty() || !self.holds.is_empty()
    }

    /// Memory it holds on to.
    pub fn capacity_bytes(&self) -> usize {
        self.bytes.capacity() + self.tails.capacity() * size_of::<Tail>()
    }

    pub fn push_interest(&mut self, subject: &[u8], queue: Option<&[u8]>, count: u32) {
        self.bytes
            .extend_from_slice(&[KIND_INTEREST, u8::from(queue.is_some()), 0, 0]);
        for number in [
            count,
            subject.len() as u32,
            queue.map_or(0, <[u8]>::len) as u32,
        ] {
            self.bytes.extend_from_slice(&number.to_le_bytes());
        }
        self.bytes.extend_from_slice(subject);
        self.bytes.extend_from_slice(queue.unwrap_or_default());
        self.weight += 16 + subject.len();
        self.changes += 1;
    }

    pub fn push_message<'g>(
        &mut self,
        message: &Message<'_>,
        owned: Option<&Bytes>,
        envelope: Envelope,
        groups: impl Iterator<Item = &'g [u8]>,
    ) {
        self.has_messages = true;
        let subject = message.subject.bytes();
        let tail = message.tail.bytes();
        self.bytes.extend_from_slice(&[
            KIND_MESSAGE,
            u8::from(envelope.plain) | publisher_flags(envelope.publisher) << 1,
            envelope.hops,
            u8::from(owned.is_some()),
        ]);
        let count_at = self.bytes.len();
        let numbers = [
            0, // number of groups, set below
            subject.len() as u32,
            message.reply_bytes as u32,
            message.header_bytes.unwrap_or(NO_HEADERS),
            message.body_bytes as u32,
            tail.len() as u32,
        ];
        let elsewhere = numbers_of(envelope.elsewhere);
        for number in numbers.iter().chain(&elsewhere) {
            self.bytes.extend_from_slice(&number.to_le_bytes());
        }
        self.bytes
            .extend_from_slice(&envelope.publisher.slot.to_le_bytes());
        self.bytes
            .extend_from_slice(&envelope.publisher.cid.to_le_bytes());
        self.bytes
            .extend_from_slice(&(message.sid.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(subject);
        let groups_at = self.bytes.len();
        let mut count = 0u32;
        for name in groups {
            self.bytes
                .extend_from_slice(&(name.len() as u32).to_le_bytes());
            self.bytes.extend_from_slice(name);
            count += 1;
        }
        // Also what is not repeated is work for the receiver.
        self.weight += 64 + (self.bytes.len() - groups_at) + tail.len();
        if count > 0 {
            let (before, names) = self.bytes.split_at(groups_at);
            match before[self.groups.clone()] == *names {
                true => {
                    self.bytes.truncate(groups_at);
                    count = SAME_GROUPS;
                }
                false => self.groups = groups_at..self.bytes.len(),
            }
        }
        self.bytes[count_at..count_at + 4].copy_from_slice(&count.to_le_bytes());
        self.bytes.extend_from_slice(message.sid);
        match owned {
            Some(owned) => self.shared.push(owned.clone()),
            None => self.bytes.extend_from_slice(tail),
        }
    }

    pub fn push_run(&mut self, run: &Run<'_>, envelope: Envelope) {
        self.has_messages = true;
        let (subject, region) = (run.subject.bytes(), run.region());
        self.bytes
            .reserve(RUN_HEAD_BYTES + subject.len() + region.len());
        let count = (run.count() as u16).to_le_bytes();
        let PublisherRef { slot, cid, .. } = envelope.publisher;
        let kind = [
            KIND_RUN,
            0,
            count[0],
            count[1],
            envelope.hops,
            publisher_flags(envelope.publisher),
            0,
            0,
        ];
        self.bytes.extend_from_slice(&kind);
        self.bytes
            .extend_from_slice(&(subject.len() as u32).to_le_bytes());
        for number in numbers_of(envelope.elsewhere) {
            self.bytes.extend_from_slice(&number.to_le_bytes());
        }
        self.bytes.extend_from_slice(&slot.to_le_bytes());
        self.bytes.extend_from_slice(&cid.to_le_bytes());
        self.bytes
            .extend_from_slice(&(region.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(subject);
        self.tails.extend(run.tails_in_region());
        self.bytes.extend_from_slice(region);
        self.weight += 64 * run.count() + region.len();
    }

    pub fn push_route_lines(
        &mut self,
        route: Option<RouteRef>,
        first: bool,
        next: Option<u32>,
        lines: &[u8],
    ) {
        self.has_messages = true;
        let flags = [u8::from(route.is_some()), u8::from(first)];
        self.bytes
            .extend_from_slice(&[KIND_ROUTE_LINES, flags[0], flags[1], 0]);
        self.bytes
            .extend_from_slice(&(lines.len() as u32).to_le_bytes());
        self.push_route(route.unwrap_or(RouteRef { slot: 0, cid: 0 }));
        // Nothing goes on from the very first one.
        self.bytes
            .extend_from_slice(&next.unwrap_or(0).to_le_bytes());
        self.bytes.extend_from_slice(lines);
        self.weight += 16 + lines.len();
    }

    pub fn push_interest_wanted(&mut self, route: RouteRef, from: u32) {
        self.has_messages = true;
        self.bytes
            .extend_from_slice(&[KIND_INTEREST_WANTED, 0, 0, 0]);
        self.push_route(route);
        self.bytes.extend_from_slice(&from.to_le_bytes());
        self.weight += 16;
    }

    pub fn push_mark(&mut self, position: u64) {
        self.has_messages = true;
        self.bytes.extend_from_slice(&[KIND_MARK, 0, 0, 0]);
        self.bytes.extend_from_slice(&position.to_le_bytes());
    }

    pub fn push_taken_in(&mut self, position: u64) {
        self.has_messages = true;
        self.bytes.extend_from_slice(&[KIND_TAKEN_IN, 0, 0, 0]);
        self.bytes.extend_from_slice(&position.to_le_bytes());
    }

    fn push_route(&mut self, route: RouteRef) {
        self.bytes.extend_from_slice(&route.slot.to_le_bytes());
        self.bytes.extend_from_slice(&route.cid.to_le_bytes());
    }

    pub fn records(&self) -> Records<'_> {
        Records {
            bytes: &self.bytes,
            groups: Groups::default(),
            shared: self.shared.iter(),
            tails: &self.tails,
        }
    }
}

/// Reads back what the `push_` functions wrote. Both ends are this very program, so a malformed record is
/// a bug of ours and panics.
pub struct Records<'a> {
    /// What is still to be read.
    bytes: &'a [u8],
    /// Of the latest message that came with names.
    groups: Groups<'a>,
    shared: std::slice::Iter<'a, Bytes>,
    tails: &'a [Tail],
}

impl<'a> Records<'a> {
    #[inline]
    fn number(&mut self) -> u32 {
        let (number, rest) = self.bytes.split_first_chunk().expect("a whole record");
        self.bytes = rest;
        u32::from_le_bytes(*number)
    }

    #[inline]
    fn elsewhere(&mut self) -> Elsewhere {
        let mut count = || Count {
            receivers: self.number(),
            behind: self.number(),
        };
        Elsewhere {
            counted: count(),
            loops: count(),
        }
    }

    #[inline]
    fn long_number(&mut self) -> u64 {
        u64::from(self.number()) | u64::from(self.number()) << 32
    }

    fn route(&mut self) -> RouteRef {
        RouteRef {
            slot: self.number(),
            cid: self.long_number(),
        }
    }

    #[inline]
    fn groups(&mut self, count: u32) -> Groups<'a> {
        match count {
            0 => return Groups::default(),
            SAME_GROUPS => return self.groups.clone(),
            _ => {}
        }
        let from = self.bytes;
        for _ in 0..count {
            let length = self.number();
            self.take(length as usize);
        }
        self.groups = Groups(&from[..from.len() - self.bytes.len()]);
        self.groups.clone()
    }

    #[inline]
    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.bytes.split_at(length);
        self.bytes = rest;
        taken
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        let [kind, flag, low, high] = self.number_bytes()?;
        match kind {
            KIND_INTEREST => {
                let (count, subject_len, queue_len) = (self.number(), self.number(), self.number());
                let subject = self.take(subject_len as usize);
                let queue = self.take(queue_len as usize);
                Some(Record::Interest {
                    subject,
                    queue: (flag == 1).then_some(queue),
                    count,
                })
            }
            KIND_MESSAGE => {
                let (hops, shared, count) = (low, high, self.number());
                let lengths: [u32; 5] = std::array::from_fn(|_| self.number());
                let [subject_len, reply_len, header_len, body_len, tail_len] = lengths;
                let elsewhere = self.elsewhere();
                let slot = self.number();
                let cid = self.long_number();
                let sid_len = self.number();
                let subject = Padded::new(self.bytes, subject_len as usize);
                self.take(subject_len as usize);
                let groups = self.groups(count);
                let sid = self.take(sid_len as usize);
                let owned = (shared == 1).then(|| self.shared.next().expect("named by the record"));
                let tail = match owned {
                    Some(owned) => Padded::exact(owned),
                    None => {
                        let tail = Padded::new(self.bytes, tail_len as usize);
                        self.take(tail_len as usize);
                        tail
                    }
                };
                let message = Message {
                    subject,
                    tail,
                    reply_bytes: reply_len as usize,
                    header_bytes: (header_len != NO_HEADERS).then_some(header_len),
                    body_bytes: body_len as usize,
                    sid,
                };
                let envelope = Envelope {
                    plain: flag & 1 == 1,
                    hops,
                    elsewhere,
                    publisher: publisher(slot, cid, flag >> 1),
                };
                Some(Record::Message {
                    message,
                    owned: owned.cloned(),
                    envelope,
                    groups,
                })
            }
            KIND_RUN => {
                let [hops, flags, _, _] = self.number_bytes().expect("a whole record");
                let (subject_len, elsewhere) = (self.number(), self.elsewhere());
                let slot = self.number();
                let (cid, region_len) = (self.long_number(), self.number());
                let subject = Padded::new(self.bytes, subject_len as usize);
                self.take(subject_len as usize);
                let count = usize::from(u16::from_le_bytes([low, high]));
                let (tails, rest) = self.tails.split_at(count);
                self.tails = rest;
                let run = Run::new(subject, b"", self.bytes, tails);
                self.take(region_len as usize);
                let envelope = Envelope {
                    plain: true,
                    hops,
                    elsewhere,
                    publisher: publisher(slot, cid, flags),
                };
                Some(Record::Run { run, envelope })
            }
            KIND_ROUTE_LINES => {
                let length = self.number();
                let route = self.route();
                let next = self.number();
                let lines = self.take(length as usize);
                Some(Record::RouteLines {
                    route: (flag == 1).then_some(route),
                    first: low == 1,
                    next: (next > 0).then_some(next),
                    lines,
                })
            }
            KIND_INTEREST_WANTED => Some(Record::InterestWanted {
                route: self.route(),
                from: self.number(),
            }),
            KIND_MARK => Some(Record::Mark {
                position: self.long_number(),
            }),
            KIND_TAKEN_IN => Some(Record::TakenIn {
                position: self.long_number(),
            }),
            other => unreachable!("record of kind {other}"),
        }
    }
}

impl Records<'_> {
    #[inline]
    fn number_bytes(&mut self) -> Option<[u8; 4]> {
        let (bytes, rest) = self.bytes.split_first_chunk()?;
        self.bytes = rest;
        Some(*bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_in_order() {
        let mut batch = Batch::default();
        let publisher = PublisherRef {
            slot: 7,
            cid: 1 << 40,
            carrier: true,
            no_echo: true,
        };
        let envelope = Envelope {
            plain: true,
            hops: 1,
            elsewhere: Elsewhere {
                counted: Count {
                    receivers: 5,
                    behind: 3,
                },
                loops: Count {
                    receivers: 4,
                    behind: 2,
                },
            },
            publisher,
        };
        let small = Message {
            subject: Padded::exact(b"foo"),
            tail: Padded::exact(b"re 12 14\r\nNATS/1.0\r\n\r\nhi\r\n"),
            reply_bytes: 2,
            header_bytes: Some(12),
            body_bytes: 14,
            sid: b"7:1",
        };
        let owned = Bytes::from_static(b"2\r\nhi\r\n");
        let large = Message {
            tail: Padded::exact(&owned),
            reply_bytes: 0,
            header_bytes: None,
            body_bytes: 2,
            ..small
        };
        batch.push_interest(b"a.*", None, 1);
        batch.push_message(&small, None, envelope, [&b"q1"[..], b"q2"].into_iter());
        batch.push_interest(b"b", Some(b"q"), 4);
        let route = RouteRef { slot: 3, cid: 9 };
        batch.push_route_lines(Some(route), true, Some(5), b"SUB a  RSID:1:1\r\n");
        batch.push_route_lines(None, false, None, b"UNSUB RSID:1:1\r\n");
        batch.push_interest_wanted(route, 5);
        batch.push_mark(1 << 40);
        batch.push_taken_in(7);
        let input = b"5\r\nhello\r\nre 2\r\nhi\r\n";
        let tail = |at: usize, len, reply_bytes, body_bytes| {
            let message = Message {
                tail: Padded::new(&input[at..], len),
                reply_bytes,
                header_bytes: None,
                body_bytes,
                ..small
            };
            Tail::new(at, &message)
        };
        let tails = [tail(0, 10, 0, 5), tail(10, 10, 2, 2)];
        let run = Run::new(Padded::exact(b"foo"), b"", input, &tails);
        batch.push_run(&run, envelope);
        batch.push_message(
            &large,
            Some(&owned),
            Envelope {
                plain: false,
                ..envelope
            },
            std::iter::empty(),
        );
        let shown: Vec<String> = batch
            .records()
            .map(|record| match record {
                Record::Interest {
                    subject,
                    queue,
                    count,
                } => {
                    format!(
                        "{} {:?} {count}",
                        subject.escape_ascii(),
                        queue.map(<[u8]>::escape_ascii).map(|q| q.to_string())
                    )
                }
                Record::RouteLines {
                    route,
                    first,
                    next,
                    lines,
                } => {
                    let cid = route.map(|route| route.cid);
                    format!("lines {cid:?} {first} {next:?} {}", lines.escape_ascii())
                }
                Record::Mark { position } => format!("mark {position}"),
                Record::TakenIn { position } => format!("taken in {position}"),
                Record::InterestWanted { route, from } => format!("wanted {} {from}", route.cid),
                Record::Run { run, envelope: e } => {
                    assert_eq!((e, run.body_bytes), (envelope, 7));
                    let messages = run.messages().map(|m| {
                        let reply = m.reply().map(<[u8]>::len);
                        format!("{reply:?} {}", m.body().escape_ascii())
                    });
                    let messages: Vec<_> = messages.collect();
                    format!("run {} {messages:?}", run.subject.bytes().escape_ascii())
                }
                Record::Message {
                    message: m,
                    owned,
                    envelope: e,
                    groups,
                } => {
                    assert_eq!(e.publisher, publisher);
                    let groups: Vec<_> = groups.map(|g| g.escape_ascii().to_string()).collect();
                    format!(
                        "{} {} {:?} {:?} {} {} {} {:?} {groups:?} {}",
                        m.sid.escape_ascii(),
                        m.subject.bytes().escape_ascii(),
                        m.reply().map(<[u8]>::len),
                        m.header_bytes,
                        m.body().escape_ascii(),
                        e.plain,
                        e.hops,
                        numbers_of(e.elsewhere),
                        owned.is_some()
                    )
                }
            })
            .collect();
        assert_eq!(
            shown,
            [
                "a.* None 1",
                r#"7:1 foo Some(2) Some(12) NATS/1.0\r\n\r\nhi\r\n true 1 [5, 3, 4, 2] ["q1", "q2"] false"#,
                "b Some(\"q\") 4",
                "lines Some(9) true Some(5) SUB a  RSID:1:1\\r\\n",
                "lines None false None UNSUB RSID:1:1\\r\\n",
                "wanted 9 5",
                "mark 1099511627776",
                "taken in 7",
                r#"run foo ["None hello\\r\\n", "Some(2) hi\\r\\n"]"#,
                r#"7:1 foo None None hi\r\n false 1 [5, 3, 4, 2] [] true"#,
            ]
        );
        batch.clear(1 << 20);
        assert!(batch.is_empty() && batch.records().next().is_none());
    }

    #[test]
    fn names_of_groups_are_not_repeated() {
        let mut batch = Batch::default();
        let names: Vec<Vec<u8>> = (0..100).map(|n| format!("group{n}").into_bytes()).collect();
        let all = || names.iter().map(Vec::as_slice);
        let mut push = |groups: &mut dyn Iterator<Item = &[u8]>| {
            batch.push_message(&plain_message(), None, plain_envelope(), groups);
            (batch.bytes.len(), batch.weight)
        };
        let first = push(&mut all());
        push(&mut std::iter::empty());
        let before = push(&mut all());
        let repeated = push(&mut all());
        assert_eq!(repeated.1 - before.1, first.1);
        assert!(repeated.0 - before.0 < 100, "{before:?} {repeated:?}");
        push(&mut all().skip(1));
        push(&mut all());
        let counts = |batch: &Batch| -> Vec<usize> {
            let groups = batch.records().map(|record| match record {
                Record::Message { groups, .. } => groups,
                _ => unreachable!("messages were pushed"),
            });
            let known = |groups: Groups<'_>| {
                let groups: Vec<_> = groups.collect();
                assert!(all().skip(100 - groups.len()).eq(groups.iter().copied()));
                groups.len()
            };
            groups.map(known).collect()
        };
        assert_eq!(counts(&batch), [100, 0, 100, 100, 99, 100]);
        batch.clear(1 << 20);
        batch.push_message(&plain_message(), None, plain_envelope(), all());
        assert_eq!(counts(&batch), [100]);
    }

    fn plain_message() -> Message<'static> {
        Message {
            subject: Padded::exact(b"foo"),
            tail: Padded::exact(b"2\r\nhi\r\n"),
            reply_bytes: 0,
            header_bytes: None,
            body_bytes: 2,
            sid: b"7:1",
        }
    }

    fn plain_envelope() -> Envelope {
        Envelope {
            plain: true,
            hops: 1,
            elsewhere: Elsewhere::default(),
            publisher: PublisherRef {
                slot: 7,
                cid: 9,
                carrier: false,
                no_echo: false,
            },
        }
    }

    /// More groups than 16 bits count, and a name longer than they tell.
    #[test]
    fn many_groups_and_long_names_come_back() {
        let (message, envelope) = (plain_message(), plain_envelope());
        let mut names: Vec<Vec<u8>> = (0..70_000u32)
            .map(|number| number.to_string().into_bytes())
            .collect();
        names.push(vec![b'q'; 70_000]);
        let mut batch = Batch::default();
        batch.push_message(&message, None, envelope, names.iter().map(Vec::as_slice));
        batch.push_mark(7);
        assert!(batch.weight > 70_000);
        let mut records = batch.records();
        let Some(Record::Message {
            message: back,
            envelope: with,
            groups,
            ..
        }) = records.next()
        else {
            unreachable!("a message was pushed");
        };
        assert!(groups.eq(names.iter().map(Vec::as_slice)));
        assert_eq!((back.sid, back.body()), (&b"7:1"[..], &b"hi\r\n"[..]));
        assert_eq!(with, envelope);
        let mark = records.next();
        assert!(matches!(mark, Some(Record::Mark { position: 7 })));
        assert!(records.next().is_none());
    }
}
