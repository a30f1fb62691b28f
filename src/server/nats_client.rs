//! The streaming engine's connection to NATS: to our own loops over a pair of sockets, or to another
//! server over TCP.

use crate::config::route_url::RouteUrl;
use crate::stan::outlet::{Inlet, Outlet};
use crate::wire::parser::{Fault, Kind, Message, Parser, Sink, Stop};
use bytes::Bytes;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Output waiting beyond which nothing more is read.
pub const OUTPUT_BYTES_MAX: usize = 8 << 20;
const READ_BYTES: usize = 256 << 10;
const CONNECT_TIME_MAX: Duration = Duration::from_secs(2);

/// A message on one of our subscriptions.
pub struct Incoming<'a> {
    pub inlet: Inlet,
    pub subject: &'a str,
    pub reply: Option<&'a str>,
    pub payload: Bytes,
}

enum Socket {
    Own(UnixStream),
    Other(TcpStream),
}

pub struct NatsClient {
    socket: Socket,
    parser: Parser,
    input: Vec<u8>,
    output: Output,
}

/// Lines of the protocol on their way out.
#[derive(Default)]
pub struct Output {
    bytes: Vec<u8>,
    /// Of those, already written.
    written: usize,
}

impl Outlet for Output {
    fn publish(&mut self, subject: &str, reply: Option<&str>, payload: &[u8]) {
        // Clients choose inboxes; none of them may bring lines of its own in.
        let clean =
            |text: &str| !text.is_empty() && !text.bytes().any(|byte| byte <= b' ' || byte == 0x7f);
        if !clean(subject) || !reply.is_none_or(clean) {
            return log::debug!("STREAM: {subject:?} is no subject to publish on");
        }
        let reply = reply.map_or(String::new(), |reply| format!("{reply} "));
        // A Vec takes whatever is written to it.
        let _ = write!(self.bytes, "PUB {subject} {reply}{}\r\n", payload.len());
        self.bytes.extend_from_slice(payload);
        self.bytes.extend_from_slice(b"\r\n");
    }

    fn subscribe(&mut self, inlet: Inlet, subject: &str) {
        let _ = write!(self.bytes, "SUB {subject} {}\r\n", inlet.0);
    }

    fn unsubscribe(&mut self, inlet: Inlet) {
        let _ = write!(self.bytes, "UNSUB {}\r\n", inlet.0);
    }
}

impl Output {
    pub fn len(&self) -> usize {
        self.bytes.len() - self.written
    }

    fn line(&mut self, line: &str) {
        self.bytes.extend_from_slice(line.as_bytes());
    }
}

impl NatsClient {
    /// Over a pair of sockets of which the other end was given to a loop.
    pub fn own(socket: UnixStream, name: &str) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let mut client = Self::new(Socket::Own(socket));
        client.say_hello(name, None);
        Ok(client)
    }

    /// Connects to the first server of the list that takes us.
    pub fn connect(urls: &[RouteUrl], name: &str) -> Result<Self, String> {
        let mut last = "nats: no servers available for connection".to_owned();
        for url in urls {
            match Self::connect_to(url, name) {
                Ok(client) => return Ok(client),
                Err(error) => last = format!("nats: {}: {error}", url.address()),
            }
        }
        Err(last)
    }

    fn connect_to(url: &RouteUrl, name: &str) -> io::Result<Self> {
        use std::net::ToSocketAddrs;
        let mut addresses = (url.host.as_str(), url.port).to_socket_addrs()?;
        let address = addresses.next().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let socket = TcpStream::connect_timeout(&address, CONNECT_TIME_MAX)?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let mut client = Self::new(Socket::Other(socket));
        client.say_hello(name, Some(url));
        client.output.line("PING\r\n");
        client.wait_for_pong()?;
        Ok(client)
    }

    fn new(socket: Socket) -> Self {
        Self {
            socket,
            // What servers say to clients is what they say to each other: MSG and so on.
            parser: Parser::new(Kind::Route),
            input: vec![0; READ_BYTES],
            output: Output::default(),
        }
    }

    fn say_hello(&mut self, name: &str, url: Option<&RouteUrl>) {
        let mut hello = serde_json::json!({
            "verbose": false, "pedantic": false, "name": name, "lang": "rust",
            "version": crate::VERSION, "protocol": 1,
        });
        if let Some(url) = url.filter(|url| !url.user.is_empty()) {
            let (user, password) = (&url.user, &url.password.0);
            if password.is_empty() {
                hello["auth_token"] = user.as_str().into();
            } else {
                hello["user"] = user.as_str().into();
                hello["pass"] = password.as_str().into();
            }
        }
        self.output.line(&format!("CONNECT {hello}\r\n"));
    }

    /// A server that refuses us says so instead.
    fn wait_for_pong(&mut self) -> io::Result<()> {
        let until = Instant::now() + CONNECT_TIME_MAX;
        while Instant::now() < until {
            self.flush()?;
            let mut sink = Receiver::new(|_: Incoming<'_>| {});
            self.read_once(&mut sink)?;
            if sink.pongs > 0 {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Own(socket) => socket.as_fd(),
            Socket::Other(socket) => socket.as_fd(),
        }
    }

    pub fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    pub fn output_len(&self) -> usize {
        self.output.len()
    }

    pub fn has_output(&self) -> bool {
        self.output.len() > 0
    }

    /// Hands over what came in; returns how many bytes that were. An error: the connection is over.
    pub fn receive(
        &mut self,
        mut take: impl FnMut(Incoming<'_>, &mut Output),
    ) -> io::Result<usize> {
        let mut output = std::mem::take(&mut self.output);
        let mut sink = Receiver::new(|incoming: Incoming<'_>| take(incoming, &mut output));
        let result = self.read_once(&mut sink);
        let pings = sink.pings;
        self.output = output;
        for _ in 0..pings {
            self.output.line("PONG\r\n");
        }
        result
    }

    fn read_once(&mut self, sink: &mut impl Sink) -> io::Result<usize> {
        let read = match &mut self.socket {
            Socket::Own(socket) => socket.read(&mut self.input),
            Socket::Other(socket) => socket.read(&mut self.input),
        };
        match read {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => match self.parser.parse(&self.input[..bytes], sink) {
                Ok(()) => Ok(bytes),
                Err(Fault::Stopped) => Err(io::Error::other("the server refused us")),
                Err(fault) => Err(io::Error::other(fault.to_string())),
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Writes what the socket takes.
    pub fn flush(&mut self) -> io::Result<()> {
        while self.output.len() > 0 {
            let rest = &self.output.bytes[self.output.written..];
            let written = match &mut self.socket {
                Socket::Own(socket) => socket.write(rest),
                Socket::Other(socket) => socket.write(rest),
            };
            match written {
                Ok(written) => self.output.written += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.output.len() == 0 {
            self.output.bytes.clear();
            self.output.bytes.shrink_to(1 << 20);
            self.output.written = 0;
        } else if self.output.written > OUTPUT_BYTES_MAX {
            self.output.bytes.drain(..self.output.written);
            self.output.written = 0;
        }
        Ok(())
    }
}

/// What a server says, sorted.
struct Receiver<F> {
    take: F,
    pings: u32,
    pongs: u32,
}

impl<F: FnMut(Incoming<'_>)> Receiver<F> {
    fn new(take: F) -> Self {
        Self {
            take,
            pings: 0,
            pongs: 0,
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
        64 << 20
    }

    fn control_line_bytes_max(&self) -> usize {
        64 << 10
    }

    fn connect(&mut self, _: &[u8]) -> Result<(), Stop> {
        Ok(())
    }

    fn info(&mut self, _: &[u8]) -> Result<(), Stop> {
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
            let headers = message.header_bytes.unwrap_or(0) as usize;
            let payload = &message.body()[headers..message.body_bytes];
            (self.take)(Incoming {
                inlet: Inlet(inlet),
                subject,
                reply: reply.flatten(),
                payload: Bytes::copy_from_slice(payload),
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
        log::error!("STREAM: NATS server: {}", String::from_utf8_lossy(text));
        Err(Stop)
    }
}
