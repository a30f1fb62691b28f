//! A client of NATS Streaming, made for load: batches prepared as far as can be.

use crate::connection::{Connection, Result};
use crate::receive::Leash;
use crate::stats::histogram;
use hdrhistogram::Histogram;
use prost::Message;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const CLUSTER: &str = "bench";
/// Publishes written at a time.
const BATCH: usize = 64;

#[derive(Clone, PartialEq, Message)]
struct ConnectRequest {
    #[prost(string, tag = "1")]
    client_id: String,
    #[prost(string, tag = "2")]
    heartbeat_inbox: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Session {
    #[prost(string, tag = "1")]
    pub_prefix: String,
    #[prost(string, tag = "2")]
    sub_requests: String,
    #[prost(string, tag = "3")]
    unsub_requests: String,
    #[prost(string, tag = "4")]
    close_requests: String,
    #[prost(string, tag = "5")]
    error: String,
}

#[derive(Clone, PartialEq, Message)]
struct PubMsg {
    #[prost(string, tag = "1")]
    client_id: String,
    #[prost(string, tag = "2")]
    guid: String,
    #[prost(string, tag = "3")]
    subject: String,
    #[prost(bytes = "vec", tag = "5")]
    data: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct PubAck {
    #[prost(string, tag = "1")]
    guid: String,
    #[prost(string, tag = "2")]
    error: String,
}

#[derive(Clone, PartialEq, Message)]
struct MsgProto {
    #[prost(uint64, tag = "1")]
    sequence: u64,
    #[prost(string, tag = "2")]
    subject: String,
    #[prost(bytes = "vec", tag = "4")]
    data: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Ack {
    #[prost(string, tag = "1")]
    subject: String,
    #[prost(uint64, tag = "2")]
    sequence: u64,
}

#[derive(Clone, PartialEq, Message)]
struct SubscriptionRequest {
    #[prost(string, tag = "1")]
    client_id: String,
    #[prost(string, tag = "2")]
    subject: String,
    #[prost(string, tag = "4")]
    inbox: String,
    #[prost(int32, tag = "5")]
    max_in_flight: i32,
    #[prost(int32, tag = "6")]
    ack_wait_seconds: i32,
    #[prost(int32, tag = "10")]
    start_position: i32,
    #[prost(uint64, tag = "11")]
    start_sequence: u64,
}

#[derive(Clone, PartialEq, Message)]
struct SubscriptionResponse {
    #[prost(string, tag = "2")]
    ack_inbox: String,
    #[prost(string, tag = "3")]
    error: String,
}

fn decoded<M: Message + Default>(payload: &[u8]) -> Result<M> {
    M::decode(payload).map_err(|error| format!("an answer that is no protobuf: {error}"))
}

fn publication(subject: &str, reply: &str, message: &impl Message) -> Vec<u8> {
    let mut bytes = format!("PUB {subject} {reply} {}\r\n", message.encoded_len()).into_bytes();
    message.encode(&mut bytes).expect("a Vec grows");
    bytes.extend_from_slice(b"\r\n");
    bytes
}

pub fn channel(number: usize) -> String {
    format!("channel.{number:04}")
}

pub fn connect(connection: &mut Connection, id: &str) -> Result<Session> {
    connection.write(format!("SUB hb.{id} 1\r\nSUB in.{id} 2\r\n").as_bytes())?;
    let request = ConnectRequest {
        client_id: id.into(),
        heartbeat_inbox: format!("hb.{id}"),
    };
    // The server's streaming part may come up later than its INFO, and is not heard of until then.
    let end = Instant::now() + Duration::from_secs(10);
    connection.timeout(Duration::from_millis(200))?;
    let answer = loop {
        let subject = format!("_STAN.discover.{CLUSTER}");
        connection.write(&publication(&subject, &format!("in.{id}"), &request))?;
        match connection.message() {
            Ok(message) => break message,
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => {}
        }
    };
    connection.timeout(Duration::from_secs(30))?;
    let session: Session = decoded(&answer.payload)?;
    match session.error.is_empty() {
        true => Ok(session),
        false => Err(format!("refused: {}", session.error)),
    }
}

/// Asks for a session with no name until somebody refuses it.
pub fn wait_until_up(connection: &mut Connection, time: Duration) -> Result<()> {
    connection.write(b"SUB up 1\r\n")?;
    connection.timeout(Duration::from_millis(10))?;
    let end = Instant::now() + time;
    let subject = format!("_STAN.discover.{CLUSTER}");
    loop {
        connection.write(&publication(&subject, "up", &ConnectRequest::default()))?;
        match connection.message() {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => {}
        }
    }
}

pub struct Publisher {
    connection: Connection,
    /// One message to each channel; the guid is filled in, and the number its content begins with.
    templates: Vec<(Vec<u8>, [usize; 2])>,
    next: u64,
    window: usize,
    sent_at: VecDeque<(u64, Instant)>,
}

/// Of the guid, and of the number a message's content begins with.
const GUID_DIGITS: usize = 12;

/// What stands in a message behind its number.
fn filling(payload: usize) -> Vec<u8> {
    vec![b'x'; payload - GUID_DIGITS]
}

impl Publisher {
    pub fn new(
        mut connection: Connection,
        session: &Session,
        channels: usize,
        payload: usize,
        window: usize,
    ) -> Result<Self> {
        connection.write(b"SUB acks 3\r\n")?;
        connection.settle()?;
        let templates = (0..channels).map(|number| {
            let guid = "#".repeat(GUID_DIGITS);
            let message = PubMsg {
                client_id: "publisher".into(),
                guid: guid.clone(),
                subject: channel(number),
                data: [guid.as_bytes(), &filling(payload)].concat(),
            };
            let subject = format!("{}.{}", session.pub_prefix, channel(number));
            let bytes = publication(&subject, "acks", &message);
            let from = |from: usize| {
                let mut windows = bytes[from..].windows(GUID_DIGITS);
                let at = windows.position(|window| window == guid.as_bytes());
                from + at.expect("the guid and the content are in it")
            };
            let at = from(0);
            let places = [at, from(at + GUID_DIGITS)];
            (bytes, places)
        });
        Ok(Self {
            connection,
            templates: templates.collect(),
            next: 0,
            window,
            sent_at: VecDeque::new(),
        })
    }

    /// Publishes for so long; returns how many messages were acknowledged, which is all of them, and
    /// how many nanoseconds that took each.
    pub fn run(&mut self, time: Duration) -> Result<(u64, Histogram<u64>)> {
        let until = Instant::now() + time;
        self.publish(|_| Instant::now() < until)
    }

    /// So many, and what makes the last batch whole; returns how many that is.
    pub fn run_messages(&mut self, count: u64) -> Result<u64> {
        let (published, _) = self.publish(|published| published < count)?;
        Ok(published)
    }

    fn publish(&mut self, more: impl Fn(u64) -> bool) -> Result<(u64, Histogram<u64>)> {
        let (mut published, mut acknowledged) = (0u64, 0u64);
        let mut times = histogram();
        let mut batch = Vec::new();
        let step = BATCH.min(self.window);
        loop {
            let go_on = more(published);
            if !go_on && acknowledged == published {
                return Ok((published, times));
            }
            let ahead = (published - acknowledged) as usize;
            if go_on && ahead + step <= self.window {
                batch.clear();
                for _ in 0..step {
                    self.add(&mut batch);
                }
                self.connection.write(&batch)?;
                published += step as u64;
                continue;
            }
            acknowledged += self.take_acks(&mut times)?;
        }
    }

    fn add(&mut self, batch: &mut Vec<u8>) {
        let (bytes, places) = &self.templates[self.next as usize % self.templates.len()];
        let start = batch.len();
        batch.extend_from_slice(bytes);
        let number = format!("{:0GUID_DIGITS$}", self.next);
        for place in places {
            let from = start + place;
            batch[from..from + GUID_DIGITS].copy_from_slice(number.as_bytes());
        }
        self.sent_at.push_back((self.next, Instant::now()));
        self.next += 1;
    }

    /// At least one ack, and all that came with it. With several channels they come in any order, so that
    /// a guid is timed by its place in the window.
    fn take_acks(&mut self, times: &mut Histogram<u64>) -> Result<u64> {
        let mut count = 0;
        loop {
            let message = self.connection.message()?;
            if message.subject != "acks" {
                self.connection.answer_heartbeat(&message)?;
                continue;
            }
            let ack: PubAck = decoded(&message.payload)?;
            if !ack.error.is_empty() {
                return Err(format!("a publish was refused: {}", ack.error));
            }
            let guid: u64 = ack.guid.parse().map_err(|_| "an ack of somebody else's")?;
            let first = self.sent_at.front().ok_or("an ack too many")?.0;
            let place = guid.checked_sub(first).ok_or("an ack came twice")? as usize;
            let (number, at) = self.sent_at.get_mut(place).ok_or("an ack of nothing")?;
            if *number != guid {
                return Err("an ack came twice".into());
            }
            times.saturating_record(at.elapsed().as_nanos() as u64);
            *number = u64::MAX;
            while self.sent_at.front().is_some_and(|(n, _)| *n == u64::MAX) {
                self.sent_at.pop_front();
            }
            count += 1;
            if !self.connection.has_message() {
                return Ok(count);
            }
        }
    }
}

/// Which message of a channel a subscriber gets first.
#[derive(Clone, Copy)]
pub enum Start {
    New = 0,
    Last = 1,
    First = 4,
}

/// A message as it must be stored, of one publisher that publishes to so many channels in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    channel: usize,
    sequence: u64,
    /// Its place among those of all channels.
    number: u64,
}

impl Stored {
    /// The last one of a channel, of so many in all.
    pub fn last(channel: usize, channels: usize, count: u64) -> Self {
        let (channels, place) = (channels as u64, channel as u64);
        let sequence = (count + channels - 1 - place) / channels;
        Self {
            channel,
            sequence,
            number: (sequence - 1) * channels + place,
        }
    }

    fn check(&self, message: &MsgProto, filling: &[u8]) -> Result<()> {
        if message.sequence != self.sequence {
            let (came, due, name) = (message.sequence, self.sequence, channel(self.channel));
            return Err(format!("message {came} of {name} came in place of {due}"));
        }
        check_content(&message.data, self.number, filling)
    }
}

fn check_content(data: &[u8], number: u64, filling: &[u8]) -> Result<()> {
    let as_published = data
        .split_at_checked(GUID_DIGITS)
        .is_some_and(|(front, rest)| {
            let front = std::str::from_utf8(front).unwrap_or_default();
            front.parse() == Ok(number) && rest == filling
        });
    match as_published {
        true => Ok(()),
        false => Err(format!(
            "the content of message {number} came wrong: {}",
            data.escape_ascii()
        )),
    }
}

fn subscription(id: &str, channel: String, inbox: &str, start: Start) -> SubscriptionRequest {
    SubscriptionRequest {
        client_id: id.into(),
        subject: channel,
        inbox: inbox.into(),
        max_in_flight: 4096,
        ack_wait_seconds: 30,
        start_position: start as i32,
        start_sequence: 0,
    }
}

/// Asks for the last message that a channel has, which must be this one.
pub fn check_last(
    connection: &mut Connection,
    session: &Session,
    id: &str,
    stored: Stored,
    payload: usize,
) -> Result<()> {
    let inbox = format!("last.{}", stored.channel);
    let request = subscription(id, channel(stored.channel), &inbox, Start::Last);
    connection.write(format!("SUB {inbox} {}\r\n", 100 + stored.channel).as_bytes())?;
    connection.write(&publication(
        &session.sub_requests,
        &format!("in.{id}"),
        &request,
    ))?;
    loop {
        let message = connection.message()?;
        if message.subject == inbox {
            return stored.check(&decoded(&message.payload)?, &filling(payload));
        } else if message.subject == format!("in.{id}") {
            accepted(&message.payload)?;
        } else {
            connection.answer_heartbeat(&message)?;
        }
    }
}

/// The answer to a request for a subscription, which may be a refusal.
fn accepted(payload: &[u8]) -> Result<SubscriptionResponse> {
    let response: SubscriptionResponse = decoded(payload)?;
    match response.error.is_empty() {
        true => Ok(response),
        false => Err(format!("refused: {}", response.error)),
    }
}

/// Takes the messages of the first channel in a thread of its own, and acknowledges them.
pub struct Subscriber {
    received: Arc<AtomicU64>,
    leash: Leash,
    thread: JoinHandle<Result<()>>,
}

impl Subscriber {
    /// The channel must be the only one that is published to.
    pub fn start(
        mut connection: Connection,
        session: &Session,
        id: &str,
        start: Start,
        payload: usize,
    ) -> Result<Self> {
        connection.write(b"SUB deliveries 5\r\n")?;
        let request = subscription(id, channel(0), "deliveries", start);
        connection.write(&publication(
            &session.sub_requests,
            &format!("in.{id}"),
            &request,
        ))?;
        let mut early = Vec::new();
        let answer = loop {
            let message = connection.message()?;
            match message.subject.as_str() {
                "deliveries" => early.push(message.payload),
                _ => break message,
            }
        };
        let response = accepted(&answer.payload)?;
        let taking = Taking {
            early,
            ack_inbox: response.ack_inbox,
            filling: filling(payload),
        };
        let received = Arc::new(AtomicU64::new(0));
        let leash = Leash::new(&connection)?;
        let thread = std::thread::spawn({
            let (received, stop) = (received.clone(), leash.stop());
            move || match taking.run(connection, &received) {
                Err(_) if stop.load(SeqCst) => Ok(()),
                other => other,
            }
        });
        Ok(Self {
            received,
            leash,
            thread,
        })
    }

    pub fn wait_for(&self, messages: u64) -> Result<()> {
        let (mut last, mut since) = (0, Instant::now());
        loop {
            let received = self.received.load(SeqCst);
            if received > messages {
                return Err("more messages came than were published".into());
            }
            if received == messages {
                return Ok(());
            }
            if self.thread.is_finished() {
                return Err("the subscriber ended early".into());
            }
            if received > last {
                (last, since) = (received, Instant::now());
            } else if since.elapsed() > Duration::from_secs(10) {
                return Err(format!(
                    "{} messages were not delivered",
                    messages - received
                ));
            }
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    pub fn finish(self) -> Result<()> {
        drop(self.leash);
        self.thread.join().expect("it does not panic")
    }
}

/// How a subscriber takes its messages.
struct Taking {
    /// Those that came before the answer to its request.
    early: Vec<Vec<u8>>,
    ack_inbox: String,
    filling: Vec<u8>,
}

impl Taking {
    fn run(self, mut connection: Connection, received: &AtomicU64) -> Result<()> {
        let mut expected = 1;
        let mut out = Vec::new();
        let mut early = self.early.into_iter();
        loop {
            let payload = match early.next() {
                Some(payload) => payload,
                None => {
                    let message = connection.message()?;
                    if message.subject != "deliveries" {
                        connection.answer_heartbeat(&message)?;
                        continue;
                    }
                    message.payload
                }
            };
            let message: MsgProto = decoded(&payload)?;
            if expected != message.sequence {
                return Err(format!("message {} came out of order", message.sequence));
            }
            expected += 1;
            check_content(&message.data, message.sequence - 1, &self.filling)?;
            add_ack(&mut out, &self.ack_inbox, message);
            received.fetch_add(1, SeqCst);
            if !out.is_empty() && !connection.has_message() {
                connection.write(&out)?;
                out.clear();
            }
        }
    }
}

fn add_ack(out: &mut Vec<u8>, inbox: &str, message: MsgProto) {
    let ack = Ack {
        subject: message.subject,
        sequence: message.sequence,
    };
    out.extend_from_slice(&format!("PUB {inbox} {}\r\n", ack.encoded_len()).into_bytes());
    ack.encode(out).expect("a Vec grows");
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_message_of_a_channel_is_known() {
        let of = |channel, channels, count| {
            let last = Stored::last(channel, channels, count);
            (last.sequence, last.number)
        };
        assert_eq!(of(0, 1, 1000), (1000, 999));
        // Ten messages in turn to 4 channels: 0 4 8, 1 5 9, 2 6, 3 7.
        let all = [0, 1, 2, 3].map(|channel| of(channel, 4, 10));
        assert_eq!(all, [(3, 8), (3, 9), (2, 6), (2, 7)]);
    }

    #[test]
    fn a_message_is_what_was_published() {
        let stored = Stored::last(2, 4, 10);
        let check = |sequence, data: &str| {
            let message = MsgProto {
                sequence,
                subject: channel(2),
                data: data.into(),
            };
            stored.check(&message, &filling(16))
        };
        assert_eq!(check(2, "000000000006xxxx"), Ok(()));
        assert!(
            check(1, "000000000006xxxx")
                .unwrap_err()
                .contains("came in place of 2")
        );
        for wrong in [
            "000000000007xxxx",
            "000000000006xxx",
            "000000000006xxxy",
            "6",
            "",
        ] {
            assert!(check(2, wrong).is_err(), "{wrong}");
        }
    }
}
