//! A streaming client that takes it well when its server is gone.

use crate::support::PATIENCE;
use midge::stan::pb;
use prost::Message;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

pub const CHANNEL: &str = "crash";
/// Ends the subject that connect requests are answered on.
const CONNECTED: &str = ".connected";

/// A streaming client whose server may go at any moment: then everything says None.
pub struct Client {
    pub id: String,
    /// Begins the subjects of this connection.
    pub inbox: String,
    stream: TcpStream,
    reader: BufReader<TcpStream>,
    pub session: pb::ConnectResponse,
    requests: u32,
    /// What came while something else was waited for.
    kept: VecDeque<Delivery>,
}

/// What comes in: the subject it came on, the reply to it, and the payload.
pub type Delivery = (String, String, Vec<u8>);

impl Client {
    pub fn connect(port: u16, id: &str) -> Option<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_nodelay(true).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.set_write_timeout(Some(PATIENCE)).ok()?;
        // Whoever takes over an id must not answer the heartbeats of the one before.
        let local = stream.local_addr().ok()?.port();
        let inbox = format!("{id}-{port}-{local}");
        let mut client = Self {
            id: id.into(),
            inbox: inbox.clone(),
            reader: BufReader::with_capacity(1 << 18, stream.try_clone().ok()?),
            stream,
            session: pb::ConnectResponse::default(),
            requests: 0,
            kept: VecDeque::new(),
        };
        client.send(format!("CONNECT {{\"verbose\":false}}\r\nSUB {inbox}.> 1\r\n").as_bytes())?;
        let request = pb::ConnectRequest {
            client_id: id.into(),
            heartbeat_inbox: format!("{inbox}.heartbeat"),
            ..Default::default()
        };
        // The streaming part comes up behind the NATS part, and is not heard of until then.
        let end = Instant::now() + PATIENCE;
        client
            .stream
            .set_read_timeout(Some(Duration::from_millis(700)))
            .ok()?;
        // One inbox for all tries: on a busy machine the answer to an earlier one comes late, and the later ones are refused
        // because the id is taken, by us.
        let answers = format!("{inbox}{CONNECTED}");
        loop {
            client.publish(
                "_STAN.discover.test-cluster",
                &answers,
                &request.encode_to_vec(),
            )?;
            let answer = client.wait_for(&answers);
            let answer = answer.map(|bytes| pb::ConnectResponse::decode(&bytes[..]).unwrap());
            match answer {
                Some(answer) if answer.error.is_empty() => {
                    client.session = answer;
                    break;
                }
                _ if Instant::now() > end || client.is_gone() => return None,
                _ => {}
            }
        }
        client.stream.set_read_timeout(Some(PATIENCE)).ok()?;
        Some(client)
    }

    /// Whether the server has closed the connection.
    fn is_gone(&self) -> bool {
        use std::io::ErrorKind::{TimedOut, WouldBlock};
        match self.stream.peek(&mut [0]) {
            Ok(count) => count == 0,
            Err(error) => !matches!(error.kind(), TimedOut | WouldBlock),
        }
    }

    pub fn send(&mut self, bytes: &[u8]) -> Option<()> {
        self.stream.write_all(bytes).ok()
    }

    pub fn publish(&mut self, subject: &str, reply: &str, payload: &[u8]) -> Option<()> {
        let mut bytes = format!("PUB {subject} {reply} {}\r\n", payload.len()).into_bytes();
        bytes.extend_from_slice(payload);
        bytes.extend_from_slice(b"\r\n");
        self.send(&bytes)
    }

    pub fn request(&mut self, subject: &str, payload: &[u8]) -> Option<Vec<u8>> {
        self.requests += 1;
        let inbox = format!("{}.answer.{}", self.inbox, self.requests);
        self.publish(subject, &inbox, payload)?;
        self.wait_for(&inbox)
    }

    /// The next message; None when the server has gone.
    pub fn next(&mut self) -> Option<Delivery> {
        match self.kept.pop_front() {
            Some(kept) => Some(kept),
            None => self.receive(),
        }
    }

    /// The next one on this subject; others are kept.
    fn wait_for(&mut self, subject: &str) -> Option<Vec<u8>> {
        loop {
            let delivery = self.receive()?;
            if delivery.0 == subject {
                return Some(delivery.2);
            }
            self.kept.push_back(delivery);
        }
    }

    fn receive(&mut self) -> Option<Delivery> {
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line).ok()?;
            let line = line.strip_suffix("\r\n")?;
            let words: Vec<&str> = line.split(' ').collect();
            let (subject, reply, size) = match *words.as_slice() {
                ["MSG", subject, _, size] => (subject, "", size),
                ["MSG", subject, _, reply, size] => (subject, reply, size),
                ["PING"] => {
                    self.send(b"PONG\r\n")?;
                    continue;
                }
                ["INFO", ..] | ["PONG"] => continue,
                _ => panic!("{line:?}"),
            };
            let mut payload = vec![0; size.parse::<usize>().unwrap() + 2];
            self.reader.read_exact(&mut payload).ok()?;
            payload.truncate(payload.len() - 2);
            if subject.ends_with(".heartbeat") {
                self.publish(reply, "", b"")?;
                continue;
            }
            if subject.ends_with(CONNECTED) && !self.session.pub_prefix.is_empty() {
                continue; // to a try that nobody waits for any more
            }
            return Some((subject.into(), reply.into(), payload));
        }
    }

    pub fn publication(&self, text: &str) -> Vec<u8> {
        pb::PubMsg {
            client_id: self.id.clone(),
            guid: text.into(),
            subject: CHANNEL.into(),
            // Long enough that several pages are written at a time.
            data: format!("{text}{:.<100}", ' ').into(),
            ..Default::default()
        }
        .encode_to_vec()
    }

    /// One publish, and its ack: what is wrong, if anything.
    pub fn try_publish(&mut self, text: &str) -> Option<String> {
        let subject = format!("{}.{CHANNEL}", self.session.pub_prefix);
        let inbox = format!("{}.acks", self.inbox);
        self.publish(&subject, &inbox, &self.publication(text))?;
        let ack = pb::PubAck::decode(&self.wait_for(&inbox)?[..]).unwrap();
        assert_eq!(ack.guid, text.as_bytes());
        Some(ack.error)
    }

    pub fn publish_one(&mut self, text: &str) -> Option<()> {
        let error = self.try_publish(text)?;
        assert_eq!(error, "");
        Some(())
    }

    pub fn subscribe(
        &mut self,
        change: impl FnOnce(&mut pb::SubscriptionRequest),
    ) -> Option<String> {
        let mut request = pb::SubscriptionRequest {
            client_id: self.id.clone(),
            subject: CHANNEL.into(),
            inbox: format!("{}.in", self.inbox),
            max_in_flight: 4096,
            ack_wait_seconds: 30,
            start_position: 4,
            ..Default::default()
        };
        change(&mut request);
        let subject = self.session.sub_requests.clone();
        let answer = self.request(&subject, &request.encode_to_vec())?;
        let answer = pb::SubscriptionResponse::decode(&answer[..]).unwrap();
        assert_eq!(answer.error, "");
        Some(answer.ack_inbox)
    }

    /// The next message of the channel.
    pub fn next_message(&mut self) -> Option<pb::MsgProto> {
        let inbox = format!("{}.in", self.inbox);
        loop {
            let (subject, _, payload) = self.next()?;
            if subject == inbox {
                return Some(pb::MsgProto::decode(&payload[..]).unwrap());
            }
        }
    }

    pub fn ack(&mut self, inbox: &str, sequence: u64) -> Option<()> {
        let ack = pb::Ack {
            subject: CHANNEL.into(),
            sequence,
        };
        let payload = ack.encode_to_vec();
        let mut bytes = format!("PUB {inbox} {}\r\n", payload.len()).into_bytes();
        bytes.extend_from_slice(&payload);
        bytes.extend_from_slice(b"\r\n");
        self.send(&bytes)
    }
}

pub fn text_of(message: &pb::MsgProto) -> String {
    let text = String::from_utf8(message.data.to_vec()).unwrap();
    text.trim_end_matches('.').trim_end().to_owned()
}
