//! A small client of NATS Streaming, over the raw one.

use super::{Client, Op};
use midge::stan::pb;
use prost::Message;
use std::collections::{HashMap, VecDeque};

const HEARTBEATS: u32 = 1;
const ANSWERS: u32 = 2;
const ACKS: u32 = 3;

pub struct Stan {
    pub nats: Client,
    pub id: String,
    pub connection: String,
    prefixes: pb::ConnectResponse,
    inbox: String,
    last: u32,
    deliveries: HashMap<u32, VecDeque<pb::MsgProto>>,
    answers: VecDeque<Vec<u8>>,
    acks: VecDeque<pb::PubAck>,
    subs: Vec<(u32, String)>,
}

#[derive(Clone, Debug)]
pub struct Sub {
    pub sid: u32,
    pub channel: String,
    pub ack_inbox: String,
}

impl Stan {
    pub fn connect(nats: Client, cluster: &str, id: &str) -> Result<Self, String> {
        static LAST: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = LAST.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let inbox = format!("_INBOX.{}.{number}", std::process::id());
        let mut client = Self {
            nats,
            id: id.into(),
            connection: format!("connection-{number}"),
            prefixes: pb::ConnectResponse::default(),
            inbox,
            last: 100,
            deliveries: HashMap::new(),
            answers: VecDeque::new(),
            acks: VecDeque::new(),
            subs: Vec::new(),
        };
        client.listen();
        let request = pb::ConnectRequest {
            client_id: id.into(),
            heartbeat_inbox: format!("{}.beat", client.inbox),
            protocol: 1,
            conn_id: client.connection.clone().into(),
            ping_interval: 5,
            ping_max_out: 3,
        };
        let subject = format!("_STAN.discover.{cluster}");
        let answer = client.request(&subject, &request.encode_to_vec());
        client.prefixes = pb::ConnectResponse::decode(&answer[..]).unwrap();
        match client.prefixes.error.is_empty() {
            true => Ok(client),
            false => Err(client.prefixes.error.clone()),
        }
    }

    fn listen(&mut self) {
        let inbox = &self.inbox;
        let mut lines = format!(
            "SUB {inbox}.beat {HEARTBEATS}\r\nSUB {inbox}.answer {ANSWERS}\r\nSUB {inbox}.ack {ACKS}\r\n"
        );
        for (sid, inbox) in &self.subs {
            lines += &format!("SUB {inbox} {sid}\r\n");
        }
        self.nats.send(lines.as_bytes());
        self.nats.ping();
    }

    /// The NATS connection broke, and there is a new one; the streaming one goes on.
    pub fn reconnect(&mut self, nats: Client) {
        self.nats = nats;
        self.listen();
    }

    pub fn request(&mut self, subject: &str, payload: &[u8]) -> Vec<u8> {
        self.send(subject, "answer", payload);
        loop {
            if let Some(answer) = self.answers.pop_front() {
                return answer;
            }
            self.pump();
        }
    }

    fn send(&mut self, subject: &str, reply: &str, payload: &[u8]) {
        let inbox = &self.inbox;
        let head = format!("PUB {subject} {inbox}.{reply} {}\r\n", payload.len());
        self.nats
            .send(&[head.as_bytes(), payload, b"\r\n"].concat());
    }

    /// Takes in one thing the server says.
    fn pump(&mut self) {
        let Op::Msg {
            sid,
            reply,
            payload,
            headers,
            ..
        } = self.nats.op()
        else {
            panic!("the server ends the connection, or complains");
        };
        assert!(headers.is_empty(), "nobody listens: {headers:?}");
        match sid.parse().unwrap() {
            HEARTBEATS => self.nats.publish(&reply.unwrap(), b""),
            ANSWERS => self.answers.push_back(payload),
            ACKS => self
                .acks
                .push_back(pb::PubAck::decode(&payload[..]).unwrap()),
            sid => {
                let message = pb::MsgProto::decode(&payload[..]).unwrap();
                self.deliveries.entry(sid).or_default().push_back(message);
            }
        }
    }

    /// Publishes without waiting for the ack.
    pub fn send_message(&mut self, channel: &str, data: &[u8]) {
        let message = pb::PubMsg {
            client_id: self.id.clone(),
            guid: data.len().to_string().into(),
            subject: channel.into(),
            data: data.to_vec().into(),
            conn_id: self.connection.clone().into(),
            ..Default::default()
        };
        let subject = format!("{}.{channel}", self.prefixes.pub_prefix);
        self.send(&subject, "ack", &message.encode_to_vec());
    }

    pub fn wait_ack(&mut self) -> Result<(), String> {
        loop {
            match self.acks.pop_front() {
                Some(ack) if ack.error.is_empty() => return Ok(()),
                Some(ack) => return Err(ack.error),
                None => self.pump(),
            }
        }
    }

    pub fn publish(&mut self, channel: &str, data: &[u8]) -> Result<(), String> {
        self.send_message(channel, data);
        self.wait_ack()
    }

    /// From the first message on, unless told otherwise.
    pub fn subscribe(
        &mut self,
        channel: &str,
        change: impl FnOnce(&mut pb::SubscriptionRequest),
    ) -> Result<Sub, String> {
        self.last += 1;
        let sid = self.last;
        let inbox = format!("{}.in.{sid}", self.inbox);
        self.nats.send(format!("SUB {inbox} {sid}\r\n").as_bytes());
        self.subs.push((sid, inbox.clone()));
        let mut request = pb::SubscriptionRequest {
            client_id: self.id.clone(),
            subject: channel.into(),
            inbox,
            max_in_flight: 1024,
            ack_wait_seconds: 30,
            start_position: 4,
            ..Default::default()
        };
        change(&mut request);
        let subject = self.prefixes.sub_requests.clone();
        let answer = self.request(&subject, &request.encode_to_vec());
        let answer = pb::SubscriptionResponse::decode(&answer[..]).unwrap();
        match answer.error.is_empty() {
            true => Ok(Sub {
                sid,
                channel: channel.into(),
                ack_inbox: answer.ack_inbox,
            }),
            false => Err(answer.error),
        }
    }

    pub fn next(&mut self, sub: &Sub) -> pb::MsgProto {
        loop {
            let queue = self.deliveries.entry(sub.sid).or_default();
            if let Some(message) = queue.pop_front() {
                return message;
            }
            self.pump();
        }
    }

    /// Whether something has come for a subscription; everything sent before this has.
    pub fn has_more(&mut self, sub: &Sub) -> bool {
        let subject = self.prefixes.ping_requests.clone();
        let ping = pb::Ping {
            conn_id: self.connection.clone().into(),
        };
        self.request(&subject, &ping.encode_to_vec());
        self.deliveries
            .get(&sub.sid)
            .is_some_and(|queue| !queue.is_empty())
    }

    pub fn ack(&mut self, sub: &Sub, sequence: u64) {
        let ack = pb::Ack {
            subject: sub.channel.clone(),
            sequence,
        };
        self.nats.publish(&sub.ack_inbox, &ack.encode_to_vec());
    }

    /// Empty: the server knows this connection.
    pub fn ping(&mut self) -> String {
        let subject = self.prefixes.ping_requests.clone();
        let ping = pb::Ping {
            conn_id: self.connection.clone().into(),
        };
        let answer = self.request(&subject, &ping.encode_to_vec());
        pb::PingResponse::decode(&answer[..]).unwrap().error
    }

    pub fn close(&mut self) {
        let request = pb::CloseRequest {
            client_id: self.id.clone(),
        };
        let subject = self.prefixes.close_requests.clone();
        let answer = self.request(&subject, &request.encode_to_vec());
        assert_eq!(pb::CloseResponse::decode(&answer[..]).unwrap().error, "");
    }
}
