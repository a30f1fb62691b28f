//! A client's connection to NATS: to our own loops over a pair of sockets, or to another server over TCP. The streaming
//! engine is served through one, and `midge stan` asks through one.

use super::nats_login::{Keys, NatsUrl};
use crate::config::options::{ClientTlsOptions, Credentials};
use crate::stan::engine::Shown;
use crate::stan::outlet::{Inlet, Outlet};
use crate::tls::{self, Session};
use crate::wire::parser::{Fault, Kind, Message, Parser, Sink, Stop};
use bytes::Bytes;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{KeepAlive, TcpKeepIdle, TcpKeepInterval, TcpUserTimeout};
use serde::Deserialize;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Output waiting beyond which nothing more is read.
pub const OUTPUT_BYTES_MAX: usize = 8 << 20;
/// What is kept for the time after an outage, as the original's client library has it.
const HELD_BYTES_MAX: usize = 8 << 20;
/// Of that, what the lost connection had not taken: acks are still to come.
const UNSENT_BYTES_MAX: usize = HELD_BYTES_MAX / 2;
const READ_BYTES: usize = 256 << 10;
/// Plain text encrypted at once.
const CIPHER_BYTES: usize = 256 << 10;
/// What servers take of one line, where the operator has not changed it: gnatsd's default. Ours has no limit for us.
const ARGUMENT_BYTES_MAX: usize = 1024;
const INFO_BYTES_MAX: usize = 1 << 20;
const CONNECT_TIME_MAX: Duration = Duration::from_secs(2);
/// What was sent and not taken in by the other machine for so long ends the connection: without a word from it the kernel
/// alone would try for a quarter of an hour, while heartbeats count as unanswered.
const SILENCE_MS_MAX: u32 = 20_000;
/// Where nothing is under way that could stay unanswered, the kernel asks after so much silence, and then this often: a
/// connection that died while streaming is idle would be noticed by the first delivery otherwise, or never.
const ASK_AFTER_SECONDS: u32 = SILENCE_MS_MAX / 1000;
const ASK_EVERY_SECONDS: u32 = 5;
/// Of one message from another server, unless it says that it takes larger ones.
const PAYLOAD_BYTES_MAX: u64 = 64 << 20;
const CONTROL_LINE_BYTES_MAX: usize = 64 << 10;

const PUB: &[u8] = b"PUB ";
/// Of a payload's size.
const SIZE_DIGITS_MAX: usize = 10;

/// A message on one of our subscriptions.
pub struct Incoming<'a> {
    pub inlet: Inlet,
    pub subject: &'a str,
    pub reply: Option<&'a str>,
    pub headers: &'a [u8],
    pub payload: &'a [u8],
}

/// How a connection to another server is made.
#[derive(Clone, Default)]
pub struct Terms {
    pub name: String,
    pub credentials: Credentials,
    pub tls: ClientTlsOptions,
    /// Requests that nobody listens for are answered so.
    pub no_responders: bool,
}

enum Socket {
    Own(UnixStream),
    Other(TcpStream),
}

impl Socket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Own(socket) => socket.read(bytes),
            Self::Other(socket) => socket.read(bytes),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Own(socket) => socket.write(bytes),
            Self::Other(socket) => socket.write(bytes),
        }
    }
}

pub struct NatsClient {
    socket: Socket,
    tls: Option<Box<Session>>,
    parser: Parser,
    input: Vec<u8>,
    plain: Vec<u8>,
    output: Output,
    /// With TLS, what the socket has not taken yet.
    cipher: Vec<u8>,
    violations: Vec<String>,
    /// Answers to `ping`.
    pongs: u64,
    /// Where it leads to; None: our own loops.
    url: Option<NatsUrl>,
    /// Servers of its cluster, by the last INFO that tells of any.
    others: Vec<NatsUrl>,
}

/// Lines of the protocol on their way out.
#[derive(Default)]
pub struct Output {
    /// Whole lines, with their payloads.
    bytes: Vec<u8>,
    /// Of those, already written.
    written: usize,
    /// Largest payload the server takes; 0: not known, or no limit.
    payload_bytes_max: usize,
    /// Subject, reply and size in one line; 0: no limit.
    argument_bytes_max: usize,
    /// There is no connection: what is published is kept for the next one, as far as there is room.
    held: bool,
    dropped: u64,
}

impl Outlet for Output {
    fn publish(&mut self, subject: &str, reply: Option<&str>, payload: &[u8]) {
        if !is_clean(subject) || !reply.is_none_or(is_clean) {
            return log::debug!("STREAM: \"{}\" is no subject to publish on", Shown(subject));
        }
        // The server would end the connection for these.
        let argument = subject.len() + reply.map_or(0, str::len) + "  ".len() + SIZE_DIGITS_MAX;
        if self.argument_bytes_max > 0 && argument > self.argument_bytes_max {
            return log::error!(
                "STREAM: a message for \"{}\" is not sent: the NATS server takes no subject of that length",
                Shown(subject)
            );
        }
        if self.payload_bytes_max > 0 && payload.len() > self.payload_bytes_max {
            return log::error!(
                "STREAM: a message of {} bytes for \"{}\" is not sent: the NATS server takes {} at most",
                payload.len(),
                Shown(subject),
                self.payload_bytes_max
            );
        }
        if self.held && self.bytes.len() >= HELD_BYTES_MAX {
            self.dropped += 1;
            return;
        }
        self.bytes.extend_from_slice(PUB);
        self.bytes.extend_from_slice(subject.as_bytes());
        self.bytes.push(b' ');
        if let Some(reply) = reply {
            self.bytes.extend_from_slice(reply.as_bytes());
            self.bytes.push(b' ');
        }
        self.number(payload.len());
        self.bytes.extend_from_slice(b"\r\n");
        self.bytes.extend_from_slice(payload);
        self.bytes.extend_from_slice(b"\r\n");
    }

    fn subscribe(&mut self, inlet: Inlet, subject: &str) {
        if self.held {
            return; // all of them are made anew
        }
        // An ack inbox that data of other versions has may hold the blanks of its channel's name.
        if !is_clean(subject) {
            return log::error!(
                "STREAM: \"{}\" is no subject to subscribe to: acks of the subscription that has it do not come in, let its client subscribe again",
                Shown(subject)
            );
        }
        let _ = write!(self.bytes, "SUB {subject} {}\r\n", inlet.0);
    }

    fn unsubscribe(&mut self, inlet: Inlet) {
        if self.held {
            return;
        }
        let _ = write!(self.bytes, "UNSUB {}\r\n", inlet.0);
    }

    fn is_full(&self) -> bool {
        self.len() >= OUTPUT_BYTES_MAX
    }
}

impl Output {
    /// For the time without a connection, after this one: with the messages that it did not take whole. What it did take may
    /// not have arrived either, as ever when a connection breaks.
    pub fn held(&self) -> Self {
        let mut held = Self {
            payload_bytes_max: self.payload_bytes_max,
            argument_bytes_max: self.argument_bytes_max,
            held: true,
            ..Self::default()
        };
        let mut at = self.unsent();
        while let Some((_, end)) = self.line_at(at) {
            let line = &self.bytes[at..end];
            at = end;
            if !line.starts_with(PUB) {
                continue; // of that connection
            }
            match held.bytes.len() + line.len() <= UNSENT_BYTES_MAX {
                true => held.bytes.extend_from_slice(line),
                false => held.dropped += 1,
            }
        }
        held
    }

    /// Where the first line begins that is not written whole.
    fn unsent(&self) -> usize {
        let mut at = 0;
        while let Some((_, end)) = self.line_at(at)
            && end <= self.written
        {
            at = end;
        }
        at
    }

    /// Of the line that begins here: how large its payload is, and where it ends, payload and all.
    fn line_at(&self, at: usize) -> Option<(usize, usize)> {
        let rest = &self.bytes[at..];
        let end = at + memchr::memchr(b'\n', rest)? + 1;
        if !rest.starts_with(PUB) {
            return Some((0, end));
        }
        let digits = self.bytes[at..end]
            .trim_ascii_end()
            .rsplit(|byte| *byte == b' ')
            .next()?;
        let payload: usize = std::str::from_utf8(digits).ok()?.parse().ok()?;
        Some((payload, end + payload + 2))
    }

    /// What was held goes out behind what is here already, but for what this server does not take.
    pub fn release(&mut self, held: &Self) {
        let mut at = 0;
        while let Some((payload, end)) = held.line_at(at) {
            match self.payload_bytes_max == 0 || payload <= self.payload_bytes_max {
                true => self.bytes.extend_from_slice(&held.bytes[at..end]),
                false => log::error!(
                    "STREAM: a message of {payload} bytes is not sent: the NATS server takes {} at most",
                    self.payload_bytes_max
                ),
            }
            at = end;
        }
    }

    /// Messages there was no room for while there was no connection.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn len(&self) -> usize {
        self.bytes.len() - self.written
    }

    /// So much of it is written.
    fn take(&mut self, bytes: usize) {
        self.written += bytes;
        if self.len() == 0 {
            self.bytes.clear();
            self.bytes.shrink_to(1 << 20);
            self.written = 0;
        } else if self.written > OUTPUT_BYTES_MAX {
            let whole = self.unsent();
            self.bytes.drain(..whole);
            self.written -= whole;
        }
    }

    /// In decimal digits.
    fn number(&mut self, number: usize) {
        let (mut digits, mut at, mut rest) = ([0; 20], 20, number);
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                return self.bytes.extend_from_slice(&digits[at..]);
            }
        }
    }

    fn line(&mut self, line: &str) {
        self.bytes.extend_from_slice(line.as_bytes());
    }
}

/// What of a server's INFO concerns a client.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Info {
    tls_required: bool,
    tls_available: bool,
    max_payload: usize,
    nonce: String,
    headers: bool,
    connect_urls: Vec<String>,
}

impl NatsClient {
    /// Over a pair of sockets of which the other end was given to a loop.
    pub fn own(socket: UnixStream, name: &str) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let mut client = Self::new(Socket::Own(socket));
        let terms = Terms {
            name: name.to_owned(),
            ..Terms::default()
        };
        let hello = hello(&terms, None, &Info::default()).map_err(io::Error::other)?;
        client.output.line(&hello);
        Ok(client)
    }

    /// Connects to the first server of the list that takes us.
    pub fn connect(urls: &[NatsUrl], terms: &Terms) -> Result<Self, String> {
        let mut last = "nats: no servers available for connection".to_owned();
        for url in urls {
            match Self::connect_to(url, terms) {
                Ok(client) => return Ok(client),
                Err(error) => last = format!("nats: {}: {error}", url.place.address()),
            }
        }
        Err(last)
    }

    fn connect_to(url: &NatsUrl, terms: &Terms) -> Result<Self, String> {
        let place = (url.place.host.as_str(), url.place.port);
        let addresses = place.to_socket_addrs().map_err(|error| error.to_string())?;
        let mut last = "the name has no address".to_owned();
        for address in addresses {
            match TcpStream::connect_timeout(&address, CONNECT_TIME_MAX) {
                Ok(socket) => return Self::log_in(socket, url, terms),
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    }

    fn log_in(socket: TcpStream, url: &NatsUrl, terms: &Terms) -> Result<Self, String> {
        prepare(&socket).map_err(|error| error.to_string())?;
        let until = Instant::now() + CONNECT_TIME_MAX;
        let mut client = Self::new(Socket::Other(socket));
        client.url = Some(url.clone());
        let info = client.wait_for_info(until)?;
        client.note_others(&info.connect_urls);
        client.output.payload_bytes_max = info.max_payload;
        client.output.argument_bytes_max = ARGUMENT_BYTES_MAX;
        let wanted = url.tls || terms.tls.is_wanted();
        if info.tls_required && !wanted {
            return Err("secure connection required".into());
        }
        if wanted {
            if !info.tls_required && !info.tls_available {
                return Err("secure connection not available".into());
            }
            client.start_tls(url, terms, until)?;
        }
        client.output.line(&hello(terms, Some(url), &info)?);
        client.output.line("PING\r\n");
        client.wait_for_pong(until)?;
        Ok(client)
    }

    fn new(socket: Socket) -> Self {
        Self {
            socket,
            tls: None,
            // What servers say to clients is what they say to each other: MSG and so on.
            parser: Parser::new(Kind::Route),
            input: vec![0; READ_BYTES],
            plain: Vec::new(),
            output: Output::default(),
            cipher: Vec::new(),
            violations: Vec::new(),
            pongs: 0,
            url: None,
            others: Vec::new(),
        }
    }

    /// A server that advertises nobody says nothing of its cluster: what is known of it stays.
    fn note_others(&mut self, addresses: &[String]) {
        if let Some(url) = &self.url
            && !addresses.is_empty()
        {
            let others = addresses.iter().filter_map(|address| url.beside(address));
            self.others = others.collect();
        }
    }

    /// The first line, which comes without being asked for and before any TLS.
    fn wait_for_info(&mut self, until: Instant) -> Result<Info, String> {
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            // Byte by byte, since what follows may be of the handshake.
            let mut byte = [0];
            match self.socket.read(&mut byte) {
                Ok(0) => return Err("the server closed the connection".into()),
                Ok(_) if line.len() >= INFO_BYTES_MAX => break,
                Ok(_) => line.push(byte[0]),
                Err(error) if is_passing(&error) => {
                    self.wait_for(PollFlags::POLLIN, until, "INFO")?;
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        let text = String::from_utf8_lossy(&line);
        let body = text.trim_start().strip_prefix("INFO ");
        body.and_then(|body| serde_json::from_str(body).ok())
            .ok_or_else(|| "it is no NATS server: it does not begin with INFO".into())
    }

    fn start_tls(&mut self, url: &NatsUrl, terms: &Terms, until: Instant) -> Result<(), String> {
        let config = tls::client(&terms.tls)?;
        let name = match terms.tls.server_name.as_str() {
            "" => &url.certified_as,
            name => name,
        };
        self.tls = Some(Box::new(Session::client(config, name)?));
        while self.tls.as_ref().is_some_and(|tls| tls.is_handshaking()) {
            self.flush().map_err(|error| error.to_string())?;
            let mut sink = Receiver::new(|_: Incoming<'_>| {});
            let read = self.read_once(&mut sink);
            if read.map_err(|error| format!("tls: {error}"))? == 0 {
                self.wait_for(PollFlags::POLLIN, until, "the TLS handshake")?;
            }
        }
        Ok(())
    }

    /// A server that refuses us says so instead.
    fn wait_for_pong(&mut self, until: Instant) -> Result<(), String> {
        loop {
            self.flush().map_err(|error| error.to_string())?;
            let mut sink = Receiver::new(|_: Incoming<'_>| {});
            let read = self.read_once(&mut sink);
            if sink.pongs > 0 {
                return Ok(());
            }
            if read.map_err(|error| error.to_string())? == 0 {
                self.wait_for(PollFlags::POLLIN, until, "PONG")?;
            }
        }
    }

    /// Until the socket is ready, or it is too late.
    pub fn wait_for(&self, mut flags: PollFlags, until: Instant, what: &str) -> Result<(), String> {
        if self.has_output() {
            flags |= PollFlags::POLLOUT;
        }
        let left = until.saturating_duration_since(Instant::now());
        let millis = u16::try_from(left.as_millis().max(1)).unwrap_or(u16::MAX);
        let ready = poll(
            &mut [PollFd::new(self.fd(), flags)],
            PollTimeout::from(millis),
        );
        match ready {
            Ok(0) if Instant::now() >= until => Err(format!("timed out waiting for {what}")),
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Own(socket) => socket.as_fd(),
            Socket::Other(socket) => socket.as_fd(),
        }
    }

    /// Host and port of the other server.
    pub fn place(&self) -> String {
        let url = self.url.as_ref();
        url.map_or(String::new(), |url| url.place.address())
    }

    /// Other servers of its cluster, and maybe itself.
    pub fn others(&mut self) -> &mut Vec<NatsUrl> {
        &mut self.others
    }

    pub fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    pub fn output_len(&self) -> usize {
        self.output.len() + self.cipher.len()
    }

    /// Deliveries need not wait.
    pub fn has_room(&self) -> bool {
        !self.output.is_full()
    }

    pub fn has_output(&self) -> bool {
        self.output_len() > 0
    }

    /// When it is answered, the server has everything that was said before.
    pub fn ping(&mut self) {
        self.output.line("PING\r\n");
    }

    pub fn pongs(&self) -> u64 {
        self.pongs
    }

    /// What the server said since that it does not allow.
    pub fn take_violations(&mut self) -> Vec<String> {
        std::mem::take(&mut self.violations)
    }

    /// Hands over what came in; returns how many bytes that were. An error: the connection is over.
    pub fn receive(
        &mut self,
        mut take: impl FnMut(Incoming<'_>, &mut Output),
    ) -> io::Result<usize> {
        let mut output = std::mem::take(&mut self.output);
        let payload_bytes_max = output.payload_bytes_max as u64;
        let mut sink = Receiver::new(|incoming: Incoming<'_>| take(incoming, &mut output));
        match self.socket {
            // What our own loops have taken from a client must not end this connection.
            Socket::Own(_) => {
                (sink.payload_bytes_max, sink.control_line_bytes_max) = (u64::MAX, usize::MAX);
            }
            Socket::Other(_) => {
                sink.payload_bytes_max = PAYLOAD_BYTES_MAX.max(payload_bytes_max);
            }
        }
        let result = self.read_once(&mut sink);
        let (pings, pongs, violations) = (sink.pings, sink.pongs, sink.violations);
        self.pongs += u64::from(pongs);
        self.output = output;
        self.violations.extend(violations);
        for _ in 0..pings {
            self.output.line("PONG\r\n");
        }
        result
    }

    fn read_once(&mut self, sink: &mut Receiver<impl FnMut(Incoming<'_>)>) -> io::Result<usize> {
        let bytes = match self.socket.read(&mut self.input) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => bytes,
            Err(error) if is_passing(&error) => return Ok(0),
            Err(error) => return Err(error),
        };
        let mut input = &self.input[..bytes];
        if let Some(tls) = &mut self.tls {
            self.plain.clear();
            let received = tls.receive(input, &mut self.plain);
            tls.take_output(&mut self.cipher);
            received.map_err(|fault| io::Error::other(fault.to_string()))?;
            input = &self.plain;
        }
        let parsed = self.parser.parse(input, sink);
        self.note_others(&std::mem::take(&mut sink.connect_urls));
        match parsed {
            Ok(()) if self.tls.as_ref().is_some_and(|tls| tls.has_ended()) => {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            Ok(()) => Ok(bytes),
            Err(Fault::Stopped) => Err(io::Error::other(sink.refusal.clone())),
            Err(fault) => Err(io::Error::other(fault.to_string())),
        }
    }

    /// Writes what the socket takes.
    pub fn flush(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else {
            let rest = &mut self.output;
            let (written, result) = write_out(&mut self.socket, &rest.bytes[rest.written..]);
            rest.take(written);
            return result;
        };
        loop {
            let plain = &self.output.bytes[self.output.written..];
            let piece = &plain[..plain.len().min(CIPHER_BYTES)];
            // Encrypted piece by piece, so that no second copy of all that waits is made.
            if !piece.is_empty() && self.cipher.len() < CIPHER_BYTES && !tls.is_handshaking() {
                let taken = piece.len();
                tls.send(piece);
                self.output.take(taken);
            }
            tls.take_output(&mut self.cipher);
            let (written, result) = write_out(&mut self.socket, &self.cipher);
            self.cipher.drain(..written);
            result?;
            if !self.cipher.is_empty() || self.output.len() == 0 || tls.is_handshaking() {
                return Ok(());
            }
        }
    }
}

fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    setsockopt(socket, TcpUserTimeout, &SILENCE_MS_MAX)?;
    setsockopt(socket, KeepAlive, &true)?;
    setsockopt(socket, TcpKeepIdle, &ASK_AFTER_SECONDS)?;
    setsockopt(socket, TcpKeepInterval, &ASK_EVERY_SECONDS)?;
    socket.set_nonblocking(true)
}

/// How much the socket took, also where it failed then.
fn write_out(socket: &mut Socket, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut at = 0;
    while at < bytes.len() {
        match socket.write(&bytes[at..]) {
            Ok(written) => at += written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (at, Err(error)),
        }
    }
    (at, Ok(()))
}

/// Clients choose inboxes; none of them may bring arguments or lines of its own in.
fn is_clean(text: &str) -> bool {
    !text.is_empty() && !text.bytes().any(|byte| byte <= b' ' || byte == 0x7f)
}

fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, WouldBlock};
    matches!(error.kind(), WouldBlock | Interrupted)
}

/// The CONNECT line.
fn hello(terms: &Terms, url: Option<&NatsUrl>, info: &Info) -> Result<String, String> {
    let mut hello = serde_json::json!({
        "verbose": false, "pedantic": false, "name": terms.name, "lang": "rust",
        "version": crate::VERSION, "protocol": 1,
    });
    if terms.no_responders && info.headers {
        hello["headers"] = true.into();
        hello["no_responders"] = true.into();
    }
    let given = &terms.credentials;
    let mut user = (given.user.as_str(), given.password.0.as_str());
    let mut token = given.token.0.as_str();
    if let Some(place) = url
        .map(|url| &url.place)
        .filter(|place| !place.user.is_empty())
    {
        match place.password.0.as_str() {
            "" => token = &place.user,
            password => user = (&place.user, password),
        }
    }
    if !user.0.is_empty() {
        (hello["user"], hello["pass"]) = (user.0.into(), user.1.into());
    } else if !token.is_empty() {
        hello["auth_token"] = token.into();
    }
    if let Some(keys) = Keys::read(given)? {
        match &keys.token {
            Some(jwt) => hello["jwt"] = jwt.as_str().into(),
            None => hello["nkey"] = keys.public().into(),
        }
        hello["sig"] = keys.sign(&info.nonce).into();
    }
    Ok(format!("CONNECT {hello}\r\n"))
}

/// What a server says, sorted.
struct Receiver<F> {
    take: F,
    payload_bytes_max: u64,
    control_line_bytes_max: usize,
    pings: u32,
    pongs: u32,
    /// Why the server ends the connection.
    refusal: String,
    /// What it does not allow us.
    violations: Vec<String>,
    /// Servers of its cluster, if it told of them.
    connect_urls: Vec<String>,
}

impl<F: FnMut(Incoming<'_>)> Receiver<F> {
    fn new(take: F) -> Self {
        Self {
            take,
            payload_bytes_max: PAYLOAD_BYTES_MAX,
            control_line_bytes_max: CONTROL_LINE_BYTES_MAX,
            pings: 0,
            pongs: 0,
            refusal: String::new(),
            violations: Vec::new(),
            connect_urls: Vec::new(),
        }
    }
}

impl<F: FnMut(Incoming<'_>)> Sink for Receiver<F> {
    fn connect_only(&self) -> bool {
        false
    }

    fn headers(&self) -> bool {
        true
    }

    fn payload_bytes_max(&self) -> u64 {
        self.payload_bytes_max
    }

    fn control_line_bytes_max(&self) -> usize {
        self.control_line_bytes_max
    }

    fn connect(&mut self, _: &[u8]) -> Result<(), Stop> {
        Ok(())
    }

    fn info(&mut self, body: &[u8]) -> Result<(), Stop> {
        if let Ok(info) = serde_json::from_slice::<Info>(body)
            && !info.connect_urls.is_empty()
        {
            self.connect_urls = info.connect_urls;
        }
        Ok(())
    }

    fn message(&mut self, message: &Message<'_>, _: Option<Bytes>) -> Result<(), Stop> {
        let text = |bytes| std::str::from_utf8(bytes).ok();
        let inlet = text(message.sid).and_then(|sid| sid.parse().ok());
        let reply = message.reply().map(text);
        // Subjects that are no UTF-8 are nobody's of ours.
        if let (Some(inlet), Some(subject)) = (inlet, text(message.subject.bytes()))
            && reply != Some(None)
        {
            let (headers, payload) = message.body()[..message.body_bytes]
                .split_at(message.header_bytes.unwrap_or(0) as usize);
            (self.take)(Incoming {
                inlet: Inlet(inlet),
                subject,
                reply: reply.flatten(),
                headers,
                payload,
            });
        }
        Ok(())
    }

    fn subscribe(&mut self, _: &[u8], _: Option<&[u8]>, _: &[u8]) -> Result<(), Stop> {
        Ok(())
    }

    fn unsubscribe(&mut self, _: &[u8], _: Option<u64>) -> Result<(), Stop> {
        Ok(())
    }

    fn ping(&mut self) -> Result<(), Stop> {
        self.pings += 1;
        Ok(())
    }

    fn pong(&mut self) -> Result<(), Stop> {
        self.pongs += 1;
        Ok(())
    }

    fn error(&mut self, text: &[u8]) -> Result<(), Stop> {
        let text = String::from_utf8_lossy(text);
        let text = text.trim_matches([' ', '\'']);
        // Those that do not end the connection.
        if text
            .to_ascii_lowercase()
            .starts_with("permissions violation")
        {
            self.violations.push(text.to_owned());
            return Ok(());
        }
        self.refusal = text.to_ascii_lowercase();
        Err(Stop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(output: &mut Output, subject: &str, payload: &[u8]) {
        output.publish(subject, None, payload);
    }

    #[test]
    fn messages_not_taken_whole_are_held_and_lines_of_the_connection_are_not() {
        let mut output = Output::default();
        output.line("CONNECT {}\r\n");
        publish(&mut output, "a", b"gone");
        output.subscribe(Inlet(3), "x.*");
        let second = output.bytes.len();
        output.publish("b", Some("answer.to"), b"two\r\nlines\r\nPUB c 0\r\n");
        output.line("PING\r\n");
        publish(&mut output, "c", b"");
        output.unsubscribe(Inlet(3));
        let whole = output.bytes.len();
        let both = b"PUB b answer.to 21\r\ntwo\r\nlines\r\nPUB c 0\r\n\r\nPUB c 0\r\n\r\n";
        for written in 0..whole {
            output.written = written;
            let held = output.held();
            let text = held.bytes.as_slice();
            match written {
                _ if written < b"CONNECT {}\r\nPUB a 4\r\ngone\r\n".len() => {
                    assert_eq!(text, [b"PUB a 4\r\ngone\r\n".as_slice(), both].concat());
                }
                _ if written < second + 43 => assert_eq!(text, both),
                _ => assert!(both.ends_with(text)),
            }
            assert_eq!(held.dropped(), 0);
        }
    }

    #[test]
    fn what_is_held_is_bounded_and_what_is_left_out_counted() {
        let mut output = Output::default();
        let payload = vec![b'x'; 1 << 20];
        for _ in 0..6 {
            publish(&mut output, "a", &payload);
        }
        let mut held = output.held();
        assert_eq!((held.bytes.len() >> 20, held.dropped()), (3, 3));
        for _ in 0..6 {
            publish(&mut held, "ack", &payload);
        }
        assert_eq!((held.bytes.len() >> 20, held.dropped()), (8, 4));
    }

    #[test]
    fn what_the_next_server_does_not_take_is_not_sent() {
        let mut output = Output::default();
        publish(&mut output, "a", b"1");
        publish(&mut output, "b", b"much\r\ntoo much");
        publish(&mut output, "c", b"3\r\n");
        let mut next = Output {
            payload_bytes_max: 10,
            argument_bytes_max: 100,
            ..Output::default()
        };
        next.release(&output.held());
        publish(&mut next, &"d".repeat(100), b"4");
        publish(&mut next, "e", b"5");
        let text = String::from_utf8(next.bytes).unwrap();
        assert_eq!(text, "PUB a 1\r\n1\r\nPUB c 3\r\n3\r\n\r\nPUB e 1\r\n5\r\n");
    }

    #[test]
    fn subjects_that_are_more_than_one_argument_are_left_out() {
        let mut output = Output::default();
        for subject in ["", "_STAN.ack.id.a b.inbox", "a\tb", "a\r\nPING\r\n"] {
            publish(&mut output, subject, b"");
            output.publish("a", Some(subject), b"");
            output.subscribe(Inlet(101), subject);
        }
        output.subscribe(Inlet(102), "a.b");
        assert_eq!(output.bytes, b"SUB a.b 102\r\n");
    }

    #[test]
    fn our_own_loops_may_pass_on_what_they_let_in() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut client = NatsClient::own(ours, "test").unwrap();
        let subject = "s".repeat(2 * CONTROL_LINE_BYTES_MAX);
        let lines = format!(
            "MSG {subject} 7 2\r\nhi\r\nMSG foo 7 {}\r\n",
            PAYLOAD_BYTES_MAX + 1
        );
        let (mut left, mut subject_bytes) = (lines.len(), 0);
        // It is read while it is written.
        let sender = std::thread::spawn(move || {
            theirs.write_all(lines.as_bytes()).unwrap();
            theirs
        });
        let until = Instant::now() + Duration::from_secs(60);
        while left > 0 {
            client.wait_for(PollFlags::POLLIN, until, "more").unwrap();
            let received = client.receive(|incoming, _| subject_bytes = incoming.subject.len());
            left -= received.unwrap();
        }
        drop(sender.join().unwrap());
        assert_eq!(subject_bytes, subject.len());
    }

    #[test]
    fn output_that_is_cut_off_begins_with_a_line() {
        let mut output = Output::default();
        let payload = vec![b'x'; 1 << 20];
        for _ in 0..10 {
            publish(&mut output, "a", &payload);
        }
        let rest = output.bytes.len() - output.written - (9 << 20);
        output.take(9 << 20);
        assert!(output.bytes.starts_with(b"PUB a "));
        assert_eq!((output.bytes.len() >> 20, output.len()), (2, rest));
    }
}
