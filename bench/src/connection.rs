//! Connections to a server: one that waits, and many that one thread serves.

use rustls::{ClientConnection, StreamOwned};
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

pub type Result<T> = std::result::Result<T, String>;

/// Longer than any server may take for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// Connections that are being made at any time where there are to be many.
pub const AT_ONCE: usize = 32;

/// Where to connect, and how.
#[derive(Clone)]
pub struct Target {
    pub address: SocketAddr,
    pub tls: Option<Arc<rustls::ClientConfig>>,
    pub login: Option<Login>,
}

/// Who connects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Login {
    User { name: String, password: String },
    Token(String),
}

impl Login {
    /// What CONNECT says of it, behind other fields.
    fn fields(&self) -> String {
        let json = |text: &str| serde_json::Value::from(text).to_string();
        match self {
            Self::User { name, password } => {
                format!(r#","user":{},"pass":{}"#, json(name), json(password))
            }
            Self::Token(token) => format!(r#","auth_token":{}"#, json(token)),
        }
    }
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

pub fn failed(error: std::io::Error) -> String {
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

    /// So many, some dozens of them at once.
    pub fn open_many(target: &Target, count: usize) -> Result<Vec<Self>> {
        let mut connections = Vec::with_capacity(count);
        while connections.len() < count {
            let some = AT_ONCE.min(count - connections.len());
            connections.extend(Self::open_together(target, some)?);
        }
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
        let login = target.login.as_ref().map(Login::fields);
        let connect = format!(
            "CONNECT {{\"verbose\":false,\"pedantic\":false,\"protocol\":1{}}}\r\nPING\r\n",
            login.unwrap_or_default()
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

    /// What was read and not looked at yet.
    pub fn take_buffered(&mut self) -> Vec<u8> {
        self.buffer.split_off(self.taken)
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

    /// Whether the other end has not closed it, whatever came from there meanwhile.
    pub fn is_open(&self) -> Result<()> {
        let mut stream = self.stream();
        stream.set_nonblocking(true).map_err(failed)?;
        let mut bytes = [0; 4096];
        loop {
            match stream.read(&mut bytes) {
                Ok(0) => return Err("the server closed it".into()),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(failed(error)),
            }
        }
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
    fn older_tls_is_refused() {
        use rustls::ProtocolVersion::{TLSv1_2, TLSv1_3};
        assert_eq!(is_tls_1_3(Some(TLSv1_3)), Ok(()));
        assert!(is_tls_1_3(Some(TLSv1_2)).unwrap_err().contains("TLSv1_2"));
        assert!(is_tls_1_3(None).is_err());
    }

    #[test]
    fn a_password_may_hold_anything() {
        let (name, password) = ("a".to_owned(), "\"b\\".to_owned());
        let login = Login::User { name, password };
        assert_eq!(login.fields(), r#","user":"a","pass":"\"b\\""#);
        assert_eq!(Login::Token("t".into()).fields(), r#","auth_token":"t""#);
    }

    #[test]
    fn a_connection_that_was_closed_is_not_open() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Target {
            address: listener.local_addr().unwrap(),
            tls: None,
            login: None,
        };
        let connection = Connection::dial(&target).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.write_all(b"PING\r\n").unwrap();
        // Waits for it.
        assert_eq!(connection.stream().peek(&mut [0]).unwrap(), 1);
        assert_eq!(connection.is_open(), Ok(()));
        drop(server);
        connection.stream().set_nonblocking(false).unwrap();
        assert_eq!(connection.stream().peek(&mut [0]).unwrap(), 0);
        assert!(connection.is_open().is_err());
    }
}
