//! Sockets of the monitoring port: ordinary threads, a bounded number of them.

use super::monitor::Monitor;
use super::monitor_turns::{Admission, Guests, Turnstile};
use crate::monitor::http::{self, Parsed, Request, Response};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Monitoring connections at a time. Idle ones make room for further ones; where none is, those are told
/// that there are too many, and closed when there are many of them as well.
const CONNECTIONS_MAX: usize = 64;
const REFUSED_MAX: usize = 64;
/// A request may be on its way for so long before its connection counts as idle.
const IDLE_AFTER: Duration = Duration::from_millis(500);
/// A request may take this long to arrive, and a part of an answer to leave.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The same for connections above the limit.
const REFUSED_TIMEOUT: Duration = Duration::from_secs(1);

/// Long documents being built or sent at a time, and those that wait for it: memory is for so many.
const LONG_AT_A_TIME: usize = 2;
const LONG_WAITING_MAX: usize = 16;
const LONG_PATIENCE: Duration = Duration::from_secs(10);
/// A list that came out shorter than this may be sent as slowly as it likes.
const LONG_BYTES: usize = 1 << 20;
/// While others wait, a long document has to leave at this rate.
const LONG_BYTES_PER_SECOND: usize = 1 << 20;
const WRITE_BYTES: usize = 64 << 10;

/// The event loops come first.
const NICE: i32 = 10;

struct Port {
    monitor: Arc<Monitor>,
    https: bool,
    guests: Guests,
    long: Turnstile,
}

pub fn start(listener: OwnedFd, monitor: Arc<Monitor>, https: bool) -> std::io::Result<()> {
    let listener = TcpListener::from(listener);
    let port = Arc::new(Port {
        monitor,
        https,
        guests: Guests::new(CONNECTIONS_MAX, REFUSED_MAX, IDLE_AFTER),
        long: Turnstile::new(LONG_AT_A_TIME, LONG_WAITING_MAX),
    });
    let accept = move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                std::thread::sleep(Duration::from_millis(100));
                continue;
            };
            let Some(admission) = port.guests.admit(&stream) else {
                continue;
            };
            let body = {
                let port = port.clone();
                move || {
                    crate::util::set_thread_nice(NICE);
                    let _ = port.begin(stream, admission);
                    port.guests.gone(admission);
                }
            };
            if std::thread::Builder::new()
                .name("monitor".into())
                .spawn(body)
                .is_err()
            {
                port.guests.gone(admission);
            }
        }
    };
    std::thread::Builder::new()
        .name("monitor-accept".into())
        .spawn(accept)
        .map(drop)
}

fn unavailable(text: &str) -> Response {
    Response::text(503, text)
}

impl Port {
    fn begin(&self, socket: TcpStream, admission: Admission) -> std::io::Result<()> {
        socket.set_write_timeout(Some(TIMEOUT))?;
        if !self.https {
            return self.serve(&socket, &socket, admission);
        }
        let Some(config) = self.monitor.tls() else {
            return Ok(());
        };
        let session = rustls::ServerConnection::new(config).map_err(std::io::Error::other)?;
        let stream = rustls::StreamOwned::new(session, &socket);
        self.serve(stream, &socket, admission)
    }

    /// One connection: requests until it is closed, or too slow.
    fn serve(
        &self,
        mut stream: impl Read + Write,
        socket: &TcpStream,
        admission: Admission,
    ) -> std::io::Result<()> {
        let (timeout, refused) = match admission {
            Admission::Served(_) => (TIMEOUT, false),
            Admission::Refused => (REFUSED_TIMEOUT, true),
        };
        let mut input = Vec::new();
        loop {
            let until = Instant::now() + timeout;
            let parsed = loop {
                match http::parse(&input) {
                    Parsed::Request(request, length) => {
                        input.drain(..length);
                        break Ok(request);
                    }
                    Parsed::Bad(response) => break Err(response),
                    Parsed::Incomplete => {}
                }
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(());
                }
                socket.set_read_timeout(Some(left))?;
                let mut chunk = [0; 4096];
                match stream.read(&mut chunk)? {
                    0 => return Ok(()),
                    read => input.extend_from_slice(&chunk[..read]),
                }
            };
            if !self.guests.set_idle(admission, false) {
                return Ok(());
            }
            let keep_alive = match parsed {
                Ok(request) if !refused => self.answer(&mut stream, &request)?,
                Ok(_) => {
                    let response = unavailable("503 too many monitoring connections\n");
                    self.send(&mut stream, response, false, false)?;
                    false
                }
                Err(response) => {
                    self.send(&mut stream, response, false, false)?;
                    false
                }
            };
            if !keep_alive || !self.guests.set_idle(admission, true) {
                return Ok(());
            }
        }
    }

    /// Whether another request may follow.
    fn answer(&self, stream: &mut impl Write, request: &Request) -> std::io::Result<bool> {
        let mut turn = None;
        let response = if Monitor::is_list(&request.path) {
            turn = self.long.enter(LONG_PATIENCE);
            match turn {
                Some(_) => self.monitor.answer(request),
                None => unavailable("503 too many requests for lists\n"),
            }
        } else {
            self.monitor.answer(request)
        };
        if response.body.len() < LONG_BYTES {
            turn = None;
        }
        self.send(stream, response, request.head_only, request.keep_alive)?;
        drop(turn);
        Ok(request.keep_alive)
    }

    fn send(
        &self,
        stream: &mut impl Write,
        response: Response,
        head_only: bool,
        keep_alive: bool,
    ) -> std::io::Result<()> {
        let long = response.body.len() >= LONG_BYTES;
        let seconds = response.body.len() / LONG_BYTES_PER_SECOND;
        let until = Instant::now() + TIMEOUT + Duration::from_secs(seconds as u64);
        let date = chrono::Utc::now().format("%a, %d %b %Y %H:%M:%S GMT");
        let mut first = response.head(&date.to_string(), keep_alive).into_bytes();
        let body = match head_only {
            true => &[],
            false => response.body.as_bytes(),
        };
        let (start, rest) = body.split_at(body.len().min(WRITE_BYTES));
        first.extend_from_slice(start);
        stream.write_all(&first)?;
        for part in rest.chunks(WRITE_BYTES) {
            if long && Instant::now() >= until && self.long.somebody_waits() {
                return Err(std::io::ErrorKind::TimedOut.into());
            }
            stream.write_all(part)?;
        }
        stream.flush()
    }
}
