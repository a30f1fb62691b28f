//! Subscribers that count bytes.
//!
//! All messages of a subscriber have the same length on the wire (subjects and sids have fixed
//! widths), so that counting bytes counts messages. A payload begins with a number, where there is
//! room; of the first messages of each read, content and order are checked, and of messages that no
//! read holds whole the front of each read and every number.

use crate::connection::{Connection, Result, Target, failed};
use crate::publish::NUMBER_BYTES;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use std::net::TcpStream;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a receiver reads at a time, at most.
const READ_BYTES: usize = 256 << 10;
/// Longer messages are looked at in pieces, as a read seldom holds a whole one.
const WHOLE_BYTES_MAX: usize = 16 << 10;
/// Of such a piece so much is compared.
const PIECE_BYTES: usize = 4096;

/// Ends the thread that reads a connection, when it is dropped: also where a turn fails, or the thread would load a server that is not ours.
pub struct Leash {
    stop: Arc<AtomicBool>,
    stream: TcpStream,
}

impl Leash {
    /// From now on a read of the connection takes as long as turns on other servers; who waits for messages has a patience of his own.
    pub fn new(connection: &Connection) -> Result<Self> {
        let stream = connection.stream().try_clone().map_err(failed)?;
        stream.set_read_timeout(None).map_err(failed)?;
        let stop = Arc::new(AtomicBool::new(false));
        Ok(Self { stop, stream })
    }

    /// Whether the end of the connection was asked for.
    pub fn stop(&self) -> Arc<AtomicBool> {
        self.stop.clone()
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// Counts what arrives, in a thread of its own.
pub struct Subscriber {
    received: Arc<AtomicU64>,
    thread: JoinHandle<Result<()>>,
    leash: Leash,
}

impl Subscriber {
    /// `subscriptions` are whole SUB lines; every message must look like the expected one.
    pub fn new(target: &Target, subscriptions: &str, expected: Expected) -> Result<Self> {
        let mut connection = Connection::open(target)?;
        connection.write(subscriptions.as_bytes())?;
        connection.settle()?;
        Self::of(connection, expected)
    }

    /// One that has subscribed already.
    pub fn of(connection: Connection, expected: Expected) -> Result<Self> {
        let leash = Leash::new(&connection)?;
        let received = Arc::new(AtomicU64::new(0));
        let thread = std::thread::spawn({
            let (received, stop) = (received.clone(), leash.stop());
            move || count(connection, &expected, &received, &stop)
        });
        Ok(Self {
            received,
            thread,
            leash,
        })
    }

    pub fn finish(self) -> Result<()> {
        drop(self.leash);
        self.thread.join().expect("it does not panic")
    }
}

/// What a subscriber's messages look like.
pub struct Expected {
    message: Vec<u8>,
    /// They are all of one publisher's, so they come in its order.
    ordered: bool,
    /// Where the number is; None: the payload is too short for one.
    number: Option<Range<usize>>,
    /// What is the same in all messages: not subject and sid, nor the number.
    fixed: [Range<usize>; 3],
}

impl Expected {
    pub fn new(message: Vec<u8>, ordered: bool) -> Self {
        let line_end = message.iter().position(|byte| *byte == b'\n');
        let payload_at = line_end.map_or(0, |at| at + 1);
        let mut words = message[..payload_at].rsplitn(2, |byte| *byte == b' ');
        let size_at = payload_at - words.next().map_or(0, <[u8]>::len);
        let payload_bytes = message.len() - payload_at - 2;
        let number_end = payload_at + NUMBER_BYTES;
        let number = (payload_bytes >= NUMBER_BYTES).then_some(payload_at..number_end);
        let rest_at = number.as_ref().map_or(payload_at, |number| number.end);
        Self {
            fixed: [0..4, size_at..payload_at, rest_at..message.len()],
            message,
            ordered,
            number,
        }
    }

    /// Whether a piece of a message, which begins at this place of it, looks as it should.
    fn check_piece(&self, at: usize, piece: &[u8]) -> Result<()> {
        for part in &self.fixed {
            let (from, to) = (part.start.max(at), part.end.min(at + piece.len()));
            if from < to && piece[from - at..to - at] != self.message[from..to] {
                return Err(wrong(piece));
            }
        }
        Ok(())
    }

    /// The number in a message, or in as much of its front as holds one, if it looks as it should.
    fn check(&self, message: &[u8]) -> Result<Option<u64>> {
        self.check_piece(0, message)?;
        let Some(number) = self.number.clone() else {
            return Ok(None);
        };
        let digits = std::str::from_utf8(&message[number]).map_err(|_| wrong(message))?;
        digits.parse().map(Some).map_err(|_| wrong(message))
    }

    /// Numbers begin anew when a publisher has come to the end of what it prepared.
    fn check_order(&self, first: Option<u64>, second: Option<u64>) -> Result<()> {
        match (first, second) {
            (Some(first), Some(second)) if self.ordered && second != first + 1 && second != 0 => {
                Err(format!("message {second} came right after {first}"))
            }
            _ => Ok(()),
        }
    }
}

fn wrong(message: &[u8]) -> String {
    const SHOWN: usize = 200;
    let front = &message[..message.len().min(SHOWN)];
    let more = if message.len() > SHOWN { "..." } else { "" };
    format!("a message came wrong: {}{more}", front.escape_ascii())
}

/// A server may ask between messages whether a subscriber that says nothing is still there.
#[derive(Default)]
struct Pings {
    /// Bytes of a PING that the last read ended with.
    begun: usize,
}

impl Pings {
    const PING: &[u8; 6] = b"PING\r\n";

    /// Returns how many bytes of messages are left, at the front. No message of ours has a P.
    fn take_out(&mut self, bytes: &mut [u8]) -> Result<usize> {
        if self.begun == 0 && !bytes.contains(&b'P') {
            return Ok(bytes.len());
        }
        let mut kept = 0;
        for at in 0..bytes.len() {
            let byte = bytes[at];
            if self.begun == 0 && byte != b'P' {
                bytes[kept] = byte;
                kept += 1;
            } else if byte == Self::PING[self.begun] {
                self.begun = (self.begun + 1) % Self::PING.len();
            } else {
                return Err("something came that is neither a message nor a PING".into());
            }
        }
        Ok(kept)
    }
}

/// What one connection got so far.
#[derive(Default)]
struct Tally {
    /// Bytes of messages.
    total: usize,
    pings: Pings,
    /// Of the last message whose number was read: its place among all, and the number.
    numbered: Option<(usize, u64)>,
}

impl Tally {
    /// Counts what a read brought, and looks at some of it.
    fn take(&mut self, expected: &Expected, bytes: &mut [u8]) -> Result<()> {
        let kept = self.pings.take_out(bytes)?;
        let bytes = &bytes[..kept];
        match expected.message.len() <= WHOLE_BYTES_MAX {
            true => self.check_messages(expected, bytes)?,
            false => self.check_pieces(expected, bytes)?,
        }
        self.total += kept;
        Ok(())
    }

    /// Bytes that are missing of the message the last read ended with.
    fn rest(&self, length: usize) -> usize {
        (length - self.total % length) % length
    }

    /// The first whole message of a read, and the one behind it.
    fn check_messages(&self, expected: &Expected, bytes: &[u8]) -> Result<()> {
        let length = expected.message.len();
        let messages = bytes.get(self.rest(length)..).unwrap_or_default();
        let mut messages = messages.chunks_exact(length);
        let (Some(first), second) = (messages.next(), messages.next()) else {
            return Ok(());
        };
        let first = expected.check(first)?;
        let second = second.map(|second| expected.check(second)).transpose()?;
        expected.check_order(first, second.flatten())
    }

    /// The piece that a read begins with, and the fronts of the messages that begin in it.
    fn check_pieces(&mut self, expected: &Expected, bytes: &[u8]) -> Result<()> {
        let length = expected.message.len();
        let rest = self.rest(length);
        let piece = bytes.len().min(rest).min(PIECE_BYTES);
        expected.check_piece(self.total % length, &bytes[..piece])?;
        for start in (rest..bytes.len()).step_by(length) {
            let front = &bytes[start..bytes.len().min(start + PIECE_BYTES)];
            if expected
                .number
                .as_ref()
                .is_some_and(|number| front.len() < number.end)
            {
                // A read that ends within a head leaves nothing to compare.
                continue;
            }
            let index = (self.total + start) / length;
            let number = expected.check(front)?;
            let before = self.numbered.filter(|(at, _)| at + 1 == index);
            expected.check_order(before.map(|(_, number)| number), number)?;
            self.numbered = number.map(|number| (index, number));
        }
        Ok(())
    }
}

fn count(
    mut connection: Connection,
    expected: &Expected,
    received: &AtomicU64,
    stop: &AtomicBool,
) -> Result<()> {
    let mut buffer = vec![0; READ_BYTES];
    let mut tally = Tally::default();
    tally.take(expected, &mut connection.take_buffered())?;
    loop {
        let read = match connection.read(&mut buffer) {
            Ok(0) if stop.load(SeqCst) => return Ok(()),
            Ok(0) => return Err("the server cut a subscriber off".into()),
            Ok(read) => read,
            Err(_) if stop.load(SeqCst) => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        tally.take(expected, &mut buffer[..read])?;
        received.store(tally.total as u64, SeqCst);
    }
}

/// Counts what many connections get, in one thread.
pub struct Audience {
    /// By connection.
    received: Arc<[AtomicU64]>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Audience {
    pub fn new(
        target: &Target,
        size: usize,
        subscription: &str,
        expected: Expected,
    ) -> Result<Self> {
        let mut connections = Vec::new();
        for _ in 0..size {
            let mut connection = Connection::open(target)?;
            connection.write(subscription.as_bytes())?;
            connection.settle()?;
            connection.stream().set_nonblocking(true).map_err(failed)?;
            connections.push(connection);
        }
        let received: Arc<[AtomicU64]> = (0..size).map(|_| AtomicU64::new(0)).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (received, stop) = (received.clone(), stop.clone());
            move || count_all(connections, &expected, &received, &stop)
        });
        Ok(Self {
            received,
            stop,
            thread,
        })
    }

    pub fn finish(self) -> Result<()> {
        self.stop.store(true, SeqCst);
        self.thread.join().expect("it does not panic")
    }
}

fn count_all(
    mut connections: Vec<Connection>,
    expected: &Expected,
    received: &[AtomicU64],
    stop: &AtomicBool,
) -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|error| error.to_string())?;
    let mut tallies = Vec::new();
    for (index, connection) in connections.iter_mut().enumerate() {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, index as u64);
        epoll
            .add(connection.stream(), event)
            .map_err(|error| error.to_string())?;
        let mut tally = Tally::default();
        tally.take(expected, &mut connection.take_buffered())?;
        tallies.push(tally);
    }
    let mut events = vec![EpollEvent::empty(); 256];
    let mut buffer = vec![0; READ_BYTES];
    while !stop.load(SeqCst) {
        let ready = epoll
            .wait(&mut events, 50u16)
            .map_err(|error| error.to_string())?;
        for event in &events[..ready] {
            let index = event.data() as usize;
            match connections[index].read(&mut buffer) {
                Ok(0) => return Err("the server cut a subscriber off".into()),
                Ok(read) => {
                    tallies[index].take(expected, &mut buffer[..read])?;
                    received[index].store(tallies[index].total as u64, SeqCst);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }
    Ok(())
}

/// Something that counts the bytes it gets.
pub trait Receives {
    /// By connection.
    fn counters(&self) -> &[AtomicU64];
    /// It stopped counting: there is something that `finish` tells.
    fn has_ended(&self) -> bool;
}

impl Receives for Subscriber {
    fn counters(&self) -> &[AtomicU64] {
        std::slice::from_ref(&self.received)
    }

    fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }
}

impl Receives for Audience {
    fn counters(&self) -> &[AtomicU64] {
        &self.received
    }

    fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }
}

/// What each connection of the receivers has got so far.
pub fn received(receivers: &[impl Receives]) -> Vec<u64> {
    let counters = receivers.iter().flat_map(Receives::counters);
    counters.map(|counter| counter.load(SeqCst)).collect()
}

/// How many bytes are to come.
pub enum Due {
    /// To each connection its own share.
    Each(Vec<u64>),
    /// To all together: who gets a message of a queue group is the server's choice.
    Together(u64),
}

impl Due {
    /// What is missing still of what is due. That somebody got more is wrong, also where another got less.
    fn missing(&self, received: &[u64]) -> Result<u64> {
        let more = |more: u64| format!("{more} bytes more than were published came");
        match self {
            Self::Each(shares) => {
                assert_eq!(shares.len(), received.len(), "everybody has a share");
                let pairs = shares.iter().zip(received);
                let missing = pairs.map(|(share, received)| {
                    let missing = share.checked_sub(*received);
                    missing.ok_or_else(|| more(received - share))
                });
                missing.sum()
            }
            Self::Together(bytes) => {
                let received: u64 = received.iter().sum();
                let missing = bytes.checked_sub(received);
                missing.ok_or_else(|| more(received - bytes))
            }
        }
    }
}

/// Waits until the receivers have got what is due.
pub fn wait_for(receivers: &[impl Receives], due: &Due) -> Result<()> {
    let (mut last, mut since) = (u64::MAX, Instant::now());
    loop {
        let missing = due.missing(&received(receivers))?;
        if missing == 0 {
            return Ok(());
        }
        if receivers.iter().any(Receives::has_ended) {
            return Err("a subscriber ended early".into());
        }
        if missing < last {
            (last, since) = (missing, Instant::now());
        } else if since.elapsed() > Duration::from_secs(10) {
            return Err(format!("{missing} bytes were lost"));
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_do_not_count() {
        let mut pings = Pings::default();
        let mut take = |text: &str| {
            let mut bytes = text.as_bytes().to_vec();
            let kept = pings.take_out(&mut bytes)?;
            Ok::<_, String>(String::from_utf8_lossy(&bytes[..kept]).into_owned())
        };
        let kept = ["aPING\r\nbPI", "NG\r", "\nc", "d"].map(|text| take(text).unwrap());
        assert_eq!(kept, ["ab", "", "c", "d"]);
        assert!(take("aPUB").is_err());
    }

    #[test]
    fn messages_are_checked() {
        let expected = expected(10);
        let check = |message: &str| expected.check(message.as_bytes()).ok();
        let good = "MSG b.000007 000123 10\r\n00000042xx\r\n";
        assert_eq!(check(good), Some(Some(42)));
        for (from, to) in [("MSG", "MSh"), (" 10", " 11"), ("xx", "xy"), ("42", "4?")] {
            assert_eq!(check(&good.replace(from, to)), None, "{to}");
        }
        let short = self::expected(2);
        assert_eq!(short.check(&short.message), Ok(None));
    }
    fn expected(payload: usize) -> Expected {
        let mut message = format!("MSG b.000000 000000 {payload}\r\n").into_bytes();
        message.resize(message.len() + payload, b'x');
        message.extend_from_slice(b"\r\n");
        Expected::new(message, true)
    }

    /// What a receiver of messages of these numbers gets.
    fn stream(payload: usize, numbers: &[u64]) -> Vec<u8> {
        let message = |number| format!("MSG b.000000 000001 {payload}\r\n{number:08}");
        let mut bytes = Vec::new();
        for number in numbers {
            let at = bytes.len();
            bytes.extend_from_slice(message(number).as_bytes());
            bytes.resize(at + expected(payload).message.len() - 2, b'x');
            bytes.extend_from_slice(b"\r\n");
        }
        bytes
    }

    /// What is counted of it, read in chunks of that size.
    fn tally(payload: usize, bytes: &[u8], chunk: usize) -> Result<usize> {
        let (mut tally, expected) = (Tally::default(), expected(payload));
        for read in bytes.to_vec().chunks_mut(chunk) {
            tally.take(&expected, read)?;
        }
        Ok(tally.total)
    }

    #[test]
    fn bytes_are_counted_however_they_are_read() {
        for payload in [16, 40_000] {
            let sent = stream(payload, &[0, 1, 2, 0, 1]);
            let with_ping = [&sent, &b"PING\r\n"[..], &sent].concat();
            for chunk in [1, 3, 50, 4097, 65_536, 1 << 20] {
                assert_eq!(tally(payload, &with_ping, chunk), Ok(2 * sent.len()));
            }
        }
    }

    #[test]
    fn long_messages_are_looked_at_though_no_read_holds_one() {
        let sent = stream(40_000, &[0, 1, 2]);
        let at = |place: usize| {
            let mut sent = sent.clone();
            sent[place] = b'?';
            tally(40_000, &sent, 30_000).is_err()
        };
        // Fronts of messages, and of reads; not what is far behind either.
        assert!(at(0) && at(100) && at(30_000) && at(33_000) && at(60_001));
        assert!(!at(29_000) && at(sent.len() / 3 + 24));
    }

    #[test]
    fn order_is_looked_at() {
        for payload in [16, 40_000] {
            for (numbers, fine) in [
                ([3, 4, 5], true),
                ([3, 4, 0], true),
                ([3, 5, 6], false),
                ([3, 3, 4], false),
            ] {
                let read = tally(payload, &stream(payload, &numbers), 30_000);
                assert_eq!(read.is_ok(), fine, "{payload} {numbers:?}");
            }
        }
    }

    #[test]
    fn nobody_gets_the_share_of_another() {
        let each = Due::Each(vec![10, 20]);
        assert_eq!(each.missing(&[10, 20]), Ok(0));
        assert_eq!(each.missing(&[4, 20]), Ok(6));
        assert!(each.missing(&[20, 10]).is_err() && each.missing(&[0, 30]).is_err());
        let together = Due::Together(30);
        assert_eq!(together.missing(&[30, 0]), Ok(0));
        assert_eq!(together.missing(&[0, 1]), Ok(29));
        assert!(together.missing(&[30, 1]).is_err());
    }
}
