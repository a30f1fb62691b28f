//! Load on raw sockets: publishers that write prepared batches, subscribers that count bytes.
//!
//! All messages of a subscriber have the same length on the wire (subjects and sids have fixed
//! widths), so that counting bytes counts messages; their content is checked by comparing each
//! message's first and last bytes in a sample.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub type Result<T> = std::result::Result<T, String>;

const PATIENCE: Duration = Duration::from_secs(60);
/// Batches a publisher may have under way without a PONG.
const BATCHES_AHEAD: usize = 4;

pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

fn failed(error: std::io::Error) -> String {
    format!("connection: {error}")
}

impl Connection {
    pub fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
        let mut connection = Self {
            stream,
            buffer: Vec::new(),
        };
        connection.line()?;
        connection.write(b"CONNECT {\"verbose\":false,\"pedantic\":false,\"protocol\":1}\r\n")?;
        connection.settle()?;
        Ok(connection)
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).map_err(failed)
    }

    /// The next line, without its CRLF.
    pub fn line(&mut self) -> Result<String> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk).map_err(failed)? {
                0 => return Err("the server closed the connection".into()),
                read => self.buffer.extend_from_slice(&chunk[..read]),
            }
        }
    }

    fn pong(&mut self) -> Result<()> {
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

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }
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
    pub fn new(address: SocketAddr, subjects: &[String], payload: usize) -> Result<Self> {
        const BATCH_BYTES: usize = 64 << 10;
        let message_bytes = subjects[0].len() + payload + 20;
        let per_batch = (BATCH_BYTES / message_bytes).max(1);
        // Enough batches to get through all subjects.
        let count = subjects.len().div_ceil(per_batch).max(1);
        let mut all = subjects.iter().cycle();
        let batches = (0..count)
            .map(|_| {
                let mut batch = Vec::new();
                for subject in all.by_ref().take(per_batch) {
                    batch.extend_from_slice(format!("PUB {subject} {payload}\r\n").as_bytes());
                    batch.resize(batch.len() + payload, b'x');
                    batch.extend_from_slice(b"\r\n");
                }
                batch.extend_from_slice(b"PING\r\n");
                batch
            })
            .collect();
        Ok(Self {
            connection: Connection::open(address)?,
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
    thread: Option<JoinHandle<Result<()>>>,
    stream: TcpStream,
}

impl Subscriber {
    /// `subscriptions` are whole SUB lines; every message must look like `message`.
    pub fn new(address: SocketAddr, subscriptions: &str, message: Vec<u8>) -> Result<Self> {
        let mut connection = Connection::open(address)?;
        connection.write(subscriptions.as_bytes())?;
        connection.settle()?;
        let stream = connection.stream().try_clone().map_err(failed)?;
        let (received, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let thread = std::thread::spawn({
            let (received, stop) = (received.clone(), stop.clone());
            move || count(connection, &message, &received, &stop)
        });
        Ok(Self {
            received,
            stop,
            thread: Some(thread),
            stream,
        })
    }

    pub fn received(&self) -> u64 {
        self.received.load(SeqCst)
    }

    pub fn finish(mut self) -> Result<()> {
        self.stop.store(true, SeqCst);
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        self.thread
            .take()
            .expect("joined once")
            .join()
            .unwrap_or_else(|_| Err("a subscriber panicked".into()))
    }
}

fn count(
    mut connection: Connection,
    message: &[u8],
    received: &AtomicU64,
    stop: &AtomicBool,
) -> Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let mut total = connection.buffer.len() as u64;
    loop {
        let read = match connection.stream.read(&mut buffer) {
            Ok(0) if stop.load(SeqCst) => return Ok(()),
            Ok(0) => return Err("the server cut a subscriber off".into()),
            Ok(read) => read,
            Err(_) if stop.load(SeqCst) => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        // The first whole message of this read: what is fixed in it must be there. (Subject and sid
        // may differ from message to message, verb and payload may not.)
        let at = (message.len() as u64 - total % message.len() as u64) as usize % message.len();
        if let Some(sample) = buffer[..read].get(at..at + message.len()) {
            let payload = message
                .len()
                .saturating_sub(message.iter().rposition(|b| *b == b' ').unwrap_or(0));
            let tail = message.len() - payload;
            if sample[..4] != message[..4] || sample[tail..] != message[tail..] {
                return Err(format!("a message came wrong: {}", sample.escape_ascii()));
            }
        }
        total += read as u64;
        received.store(total, SeqCst);
    }
}

/// Waits until the subscribers together have received that many bytes.
pub fn wait_for(subscribers: &[Subscriber], bytes: u64) -> Result<()> {
    let (mut last, mut since) = (0, Instant::now());
    loop {
        let received: u64 = subscribers.iter().map(Subscriber::received).sum();
        if received == bytes {
            return Ok(());
        }
        if received > bytes {
            return Err(format!(
                "{} bytes more than were published came",
                received - bytes
            ));
        }
        if received > last {
            (last, since) = (received, Instant::now());
        } else if since.elapsed() > Duration::from_secs(10) {
            return Err(format!("{} of {bytes} bytes were lost", bytes - received));
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// Many connections served by this one thread: what is ready is answered by `on_line`, which gets
/// the index of the connection and a line, and appends what to write back.
pub struct Crowd {
    connections: Vec<Connection>,
}

impl Crowd {
    pub fn new(connections: Vec<Connection>) -> Result<Self> {
        for connection in &connections {
            connection.stream.set_nonblocking(true).map_err(failed)?;
        }
        Ok(Self { connections })
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
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        let mut chunk = vec![0; 64 << 10];
        let mut answer = Vec::new();
        loop {
            let ready: Vec<usize> = {
                let mut watched: Vec<PollFd<'_>> = self
                    .connections
                    .iter()
                    .map(|c| PollFd::new(c.stream.as_fd(), PollFlags::POLLIN))
                    .collect();
                let count = poll(&mut watched, PollTimeout::from(10_000u16))
                    .map_err(|error| error.to_string())?;
                if count == 0 {
                    return Err("nothing came for ten seconds".into());
                }
                let is_ready =
                    |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
                (0..watched.len())
                    .filter(|index| is_ready(&watched[*index]))
                    .collect()
            };
            for index in ready {
                let connection = &mut self.connections[index];
                match connection.stream.read(&mut chunk) {
                    Ok(0) => return Err("the server closed the connection".into()),
                    Ok(read) => connection.buffer.extend_from_slice(&chunk[..read]),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                    Err(error) => return Err(failed(error)),
                }
                let mut from = 0;
                let mut go_on = true;
                while let Some(length) = connection.buffer[from..]
                    .iter()
                    .position(|byte| *byte == b'\n')
                {
                    let line = String::from_utf8_lossy(&connection.buffer[from..from + length]);
                    go_on &= on_line(index, line.trim_end(), &mut answer)?;
                    from += length + 1;
                }
                connection.buffer.drain(..from);
                if !answer.is_empty() {
                    connection.stream.write_all(&answer).map_err(failed)?;
                    answer.clear();
                }
                if !go_on {
                    return Ok(());
                }
            }
        }
    }
}
