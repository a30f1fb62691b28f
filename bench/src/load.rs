//! Load on raw sockets: publishers that write prepared batches, subscribers that count bytes.
//!
//! All messages of a subscriber have the same length on the wire (subjects and sids have fixed
//! widths), so that counting bytes counts messages. A payload begins with a number, where there is
//! room; of the first messages of each read, content and order are checked, and of messages that no
//! read holds whole the front of each read and every number.

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use rustls::{ClientConnection, StreamOwned};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub type Result<T> = std::result::Result<T, String>;

const PATIENCE: Duration = Duration::from_secs(60);
/// Batches a publisher may have under way without a PONG.
const BATCHES_AHEAD: usize = 4;
/// Digits of the number a payload begins with, where it is no shorter.
const NUMBER_BYTES: usize = 8;
/// Messages a publisher prepares at least: were there one, its number would say nothing of order.
const PREPARED_MIN: usize = 16;
/// What a receiver reads at a time, at most.
const READ_BYTES: usize = 256 << 10;
/// Longer messages are looked at in pieces, as a read seldom holds a whole one.
const WHOLE_BYTES_MAX: usize = 16 << 10;
/// Of such a piece so much is compared.
const PIECE_BYTES: usize = 4096;

/// Where to connect, and how.
#[derive(Clone)]
pub struct Target {
    pub address: SocketAddr,
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// Whose name is the password too.
    pub user: Option<&'static str>,
}

enum Wire {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

pub struct Message {
    pub subject: String,
    pub reply: Option<String>,
    pub payload: Vec<u8>,
}

pub struct Connection {
    wire: Wire,
    buffer: Vec<u8>,
    /// Bytes at the front of the buffer that `message` has taken.
    taken: usize,
}

fn failed(error: std::io::Error) -> String {
    format!("connection: {error}")
}

impl Connection {
    pub fn open(target: &Target) -> Result<Self> {
        let mut connection = Self::dial(target)?.introduced(target)?;
        connection.pong()?;
        Ok(connection)
    }

    /// Many at once: each step is taken for all of them before the next one is.
    pub fn open_together(target: &Target, count: usize) -> Result<Vec<Self>> {
        let dialed: Vec<Self> = (0..count)
            .map(|_| Self::dial(target))
            .collect::<Result<_>>()?;
        let mut connections: Vec<Self> = dialed
            .into_iter()
            .map(|connection| connection.introduced(target))
            .collect::<Result<_>>()?;
        connections.iter_mut().try_for_each(Self::pong)?;
        Ok(connections)
    }

    fn dial(target: &Target) -> Result<Self> {
        let stream = TcpStream::connect(target.address).map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
        Ok(Self {
            wire: Wire::Plain(stream),
            buffer: Vec::new(),
            taken: 0,
        })
    }

    /// Answers INFO; the PONG is still to come.
    fn introduced(mut self, target: &Target) -> Result<Self> {
        self.line()?;
        if let Some(config) = &target.tls {
            self = self.secured(config)?;
        }
        let user = target
            .user
            .map(|user| format!(r#","user":"{user}","pass":"{user}""#));
        let connect = format!(
            "CONNECT {{\"verbose\":false,\"pedantic\":false,\"protocol\":1{}}}\r\nPING\r\n",
            user.unwrap_or_default()
        );
        self.write(connect.as_bytes())?;
        // The first write is behind the handshake.
        if let Wire::Tls(stream) = &self.wire {
            is_tls_1_3(stream.conn.protocol_version())?;
        }
        Ok(self)
    }

    fn secured(self, config: &Arc<rustls::ClientConfig>) -> Result<Self> {
        let Wire::Plain(stream) = self.wire else {
            return Ok(self);
        };
        let name = "localhost".try_into().expect("a valid name");
        let session =
            ClientConnection::new(config.clone(), name).map_err(|error| error.to_string())?;
        Ok(Self {
            wire: Wire::Tls(Box::new(StreamOwned::new(session, stream))),
            buffer: self.buffer,
            taken: 0,
        })
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.wire {
            Wire::Plain(stream) => stream.write_all(bytes),
            Wire::Tls(stream) => stream.write_all(bytes),
        }
        .map_err(failed)
    }

    /// What has come in, at most as much as fits; 0: the other side has closed.
    pub fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        match &mut self.wire {
            Wire::Plain(stream) => stream.read(into),
            Wire::Tls(stream) => stream.read(into),
        }
    }

    /// The next line, without its CRLF.
    pub fn line(&mut self) -> Result<String> {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            let mut chunk = [0; 4096];
            match self.read(&mut chunk).map_err(failed)? {
                0 => return Err("the server closed the connection".into()),
                read => self.buffer.extend_from_slice(&chunk[..read]),
            }
        }
    }

    pub fn pong(&mut self) -> Result<()> {
        loop {
            match self.line()?.as_str() {
                "PONG" => return Ok(()),
                line if line.starts_with("-ERR") => return Err(line.to_owned()),
                "PING" => self.write(b"PONG\r\n")?,
                _ => {} // INFO again
            }
        }
    }

    /// Until the server has acted on everything sent so far.
    pub fn settle(&mut self) -> Result<()> {
        self.write(b"PING\r\n")?;
        self.pong()
    }

    pub fn timeout(&self, time: Duration) -> Result<()> {
        self.stream().set_read_timeout(Some(time)).map_err(failed)
    }

    /// The next MSG; PINGs are answered on the way.
    pub fn message(&mut self) -> Result<Message> {
        loop {
            if let Some(message) = self.buffered_message()? {
                return Ok(message);
            }
            self.fill()?;
        }
    }

    /// Whether `message` would return without waiting.
    pub fn has_message(&self) -> bool {
        let rest = &self.buffer[self.taken..];
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            return false;
        };
        let length = rest[..end].split(|byte| *byte == b' ').next_back();
        let length = length.and_then(|text| std::str::from_utf8(text).ok());
        let length = length.and_then(|text| text.trim_end().parse::<usize>().ok());
        rest.starts_with(b"MSG ") && length.is_some_and(|length| rest.len() >= end + length + 3)
    }

    fn buffered_message(&mut self) -> Result<Option<Message>> {
        loop {
            let rest = &self.buffer[self.taken..];
            let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
                return Ok(None);
            };
            let line = String::from_utf8_lossy(&rest[..end]);
            let words: Vec<&str> = line.trim_end().split(' ').collect();
            let (reply, length) = match words.as_slice() {
                ["MSG", _, _, length] => (None, length),
                ["MSG", _, _, reply, length] => (Some((*reply).to_owned()), length),
                ["PING"] => {
                    self.taken += end + 1;
                    self.write(b"PONG\r\n")?;
                    continue;
                }
                ["-ERR", ..] => return Err(line.into_owned()),
                _ => {
                    self.taken += end + 1;
                    continue;
                }
            };
            let length: usize = length
                .parse()
                .map_err(|_| format!("a wrong line: {line}"))?;
            let Some(payload) = rest.get(end + 1..end + 1 + length) else {
                return Ok(None);
            };
            if rest.len() < end + 1 + length + 2 {
                return Ok(None);
            }
            let message = Message {
                subject: words[1].to_owned(),
                reply,
                payload: payload.to_vec(),
            };
            self.taken += end + 1 + length + 2;
            return Ok(Some(message));
        }
    }

    /// Reads on behind what is not taken yet.
    fn fill(&mut self) -> Result<()> {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        let at = self.buffer.len();
        self.buffer.resize(at + (64 << 10), 0);
        let mut buffer = std::mem::take(&mut self.buffer);
        let read = self.read(&mut buffer[at..]);
        buffer.truncate(at + *read.as_ref().unwrap_or(&0));
        self.buffer = buffer;
        match read.map_err(failed)? {
            0 => Err("the server closed the connection".into()),
            _ => Ok(()),
        }
    }

    /// Messages that want an answer of no content.
    pub fn answer_heartbeat(&mut self, message: &Message) -> Result<()> {
        match &message.reply {
            Some(reply) => self.write(format!("PUB {reply} 0\r\n\r\n").as_bytes()),
            None => Ok(()),
        }
    }

    pub fn stream(&self) -> &TcpStream {
        match &self.wire {
            Wire::Plain(stream) => stream,
            Wire::Tls(stream) => &stream.sock,
        }
    }
}

/// The titles of these scenarios say so.
fn is_tls_1_3(version: Option<rustls::ProtocolVersion>) -> Result<()> {
    match version {
        Some(rustls::ProtocolVersion::TLSv1_3) => Ok(()),
        other => Err(format!(
            "the server talks {} and not TLS 1.3",
            other
                .and_then(|version| version.as_str())
                .unwrap_or("an unknown version")
        )),
    }
}

/// Publishes of numbered messages, to the subjects in turn; each batch ends with a PING.
pub fn batches(
    subjects: &[String],
    payload: usize,
    per_batch: usize,
    count: usize,
) -> Vec<Vec<u8>> {
    let mut all = subjects.iter().cycle().zip(0u64..);
    let batch = |_| {
        let mut batch = Vec::new();
        for (subject, number) in all.by_ref().take(per_batch) {
            batch.extend_from_slice(format!("PUB {subject} {payload}\r\n").as_bytes());
            let end = batch.len() + payload;
            if payload >= NUMBER_BYTES {
                batch.extend_from_slice(format!("{number:08}").as_bytes());
            }
            batch.resize(end, b'x');
            batch.extend_from_slice(b"\r\n");
        }
        batch.extend_from_slice(b"PING\r\n");
        batch
    };
    (0..count).map(batch).collect()
}

/// Writes its batches round and round.
pub struct Publisher {
    connection: Connection,
    batches: Vec<Vec<u8>>,
    messages_per_batch: u64,
    next: usize,
}

impl Publisher {
    /// `subjects` are published to in turn.
    pub fn new(target: &Target, subjects: &[String], payload: usize) -> Result<Self> {
        const BATCH_BYTES: usize = 64 << 10;
        let message_bytes = subjects[0].len() + payload + 20;
        let per_batch = (BATCH_BYTES / message_bytes).max(1);
        // Enough batches to get through all subjects.
        let count = subjects.len().max(PREPARED_MIN).div_ceil(per_batch);
        let batches = batches(subjects, payload, per_batch, count);
        Ok(Self {
            connection: Connection::open(target)?,
            batches,
            messages_per_batch: per_batch as u64,
            next: 0,
        })
    }

    /// Publishes until then; returns the number of messages, all of which the server has taken.
    pub fn run(&mut self, until: Instant) -> Result<u64> {
        let (mut messages, mut ahead) = (0, 0);
        while Instant::now() < until {
            self.connection.write(&self.batches[self.next])?;
            self.next = (self.next + 1) % self.batches.len();
            messages += self.messages_per_batch;
            ahead += 1;
            if ahead >= BATCHES_AHEAD {
                self.connection.pong()?;
                ahead -= 1;
            }
        }
        for _ in 0..ahead {
            self.connection.pong()?;
        }
        Ok(messages)
    }

    /// Everything once.
    pub fn run_once(&mut self) -> Result<u64> {
        for index in 0..self.batches.len() {
            self.connection.write(&self.batches[index])?;
            if index >= BATCHES_AHEAD {
                self.connection.pong()?;
            }
        }
        for _ in 0..self.batches.len().min(BATCHES_AHEAD) {
            self.connection.pong()?;
        }
        Ok(self.messages_per_batch * self.batches.len() as u64)
    }
}

/// Counts what arrives, in a thread of its own.
pub struct Subscriber {
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
    stream: TcpStream,
}

impl Subscriber {
    /// `subscriptions` are whole SUB lines; every message must look like the expected one.
    pub fn new(target: &Target, subscriptions: &str, expected: Expected) -> Result<Self> {
        let mut connection = Connection::open(target)?;
        connection.write(subscriptions.as_bytes())?;
        connection.settle()?;
        let stream = connection.stream().try_clone().map_err(failed)?;
        let (received, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let thread = std::thread::spawn({
            let (received, stop) = (received.clone(), stop.clone());
            move || count(connection, &expected, &received, &stop)
        });
        Ok(Self {
            received,
            stop,
            thread,
            stream,
        })
    }

    pub fn finish(self) -> Result<()> {
        self.stop.store(true, SeqCst);
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
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
    tally.take(expected, &mut std::mem::take(&mut connection.buffer))?;
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
    let epoll = Epoll::new(EpollCreateFlags::empty()).map_err(|error| error.to_string())?;
    let mut tallies = Vec::new();
    for (index, connection) in connections.iter_mut().enumerate() {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, index as u64);
        epoll
            .add(connection.stream(), event)
            .map_err(|error| error.to_string())?;
        let mut tally = Tally::default();
        tally.take(expected, &mut std::mem::take(&mut connection.buffer))?;
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

/// Many connections served by this one thread: what is ready is answered by `on_line`, which gets
/// the index of the connection and a line, and appends what to write back.
pub struct Crowd {
    connections: Vec<Connection>,
    chunk: Vec<u8>,
}

impl Crowd {
    pub fn new(connections: Vec<Connection>) -> Result<Self> {
        for connection in &connections {
            connection.stream().set_nonblocking(true).map_err(failed)?;
        }
        Ok(Self {
            connections,
            chunk: vec![0; 64 << 10],
        })
    }

    /// Writes a few bytes, which a socket without backlog always takes.
    pub fn write(&mut self, index: usize, bytes: &[u8]) -> Result<()> {
        self.connections[index].write(bytes)
    }

    /// Waits for input and hands every whole line on; returns when `on_line` says so.
    pub fn serve(
        &mut self,
        mut on_line: impl FnMut(usize, &str, &mut Vec<u8>) -> Result<bool>,
    ) -> Result<()> {
        let mut go_on = true;
        while go_on {
            let came = self.serve_ready(Duration::from_secs(10), |index, line, answer| {
                go_on &= on_line(index, line, answer)?;
                Ok(())
            })?;
            if !came {
                return Err("nothing came for ten seconds".into());
            }
        }
        Ok(())
    }

    /// Waits that long for input, and hands every whole line of it on; false: none came.
    pub fn serve_ready(
        &mut self,
        wait: Duration,
        mut on_line: impl FnMut(usize, &str, &mut Vec<u8>) -> Result<()>,
    ) -> Result<bool> {
        let ready = self.ready(wait)?;
        let mut answer = Vec::new();
        for index in &ready {
            let connection = &mut self.connections[*index];
            match connection.read(&mut self.chunk) {
                Ok(0) => return Err("the server closed the connection".into()),
                Ok(read) => connection.buffer.extend_from_slice(&self.chunk[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(failed(error)),
            }
            let mut from = 0;
            while let Some(length) = connection.buffer[from..]
                .iter()
                .position(|byte| *byte == b'\n')
            {
                let line = String::from_utf8_lossy(&connection.buffer[from..from + length]);
                on_line(*index, line.trim_end(), &mut answer)?;
                from += length + 1;
            }
            connection.buffer.drain(..from);
            if !answer.is_empty() {
                connection.write(&answer)?;
                answer.clear();
            }
        }
        Ok(!ready.is_empty())
    }

    fn ready(&self, wait: Duration) -> Result<Vec<usize>> {
        use nix::poll::{PollFd, PollFlags, ppoll};
        use std::os::fd::AsFd;
        let mut watched: Vec<PollFd<'_>> = self
            .connections
            .iter()
            .map(|c| PollFd::new(c.stream().as_fd(), PollFlags::POLLIN))
            .collect();
        ppoll(&mut watched, Some(wait.into()), None).map_err(|error| error.to_string())?;
        let is_ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        let all = 0..watched.len();
        Ok(all.filter(|index| is_ready(&watched[*index])).collect())
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

    #[test]
    fn numbers_of_long_messages_differ() {
        let prepared = batches(&["b.000000".into()], 64 << 10, 1, PREPARED_MIN);
        assert_eq!(prepared.len(), 16);
        let numbers: Vec<&[u8]> = prepared.iter().map(|batch| &batch[20..28]).collect();
        assert_eq!(
            (numbers[0], numbers[15]),
            (&b"00000000"[..], &b"00000015"[..])
        );
        assert!(prepared[3].ends_with(b"xx\r\nPING\r\n"));
    }

    #[test]
    fn older_tls_is_refused() {
        use rustls::ProtocolVersion::{TLSv1_2, TLSv1_3};
        assert_eq!(is_tls_1_3(Some(TLSv1_3)), Ok(()));
        assert!(is_tls_1_3(Some(TLSv1_2)).unwrap_err().contains("TLSv1_2"));
        assert!(is_tls_1_3(None).is_err());
    }
}
