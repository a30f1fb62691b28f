//! A client of the simulation: reads what its server says.

use super::net::ConnectionId;
use crate::wire::info::Info;
use crate::wire::parser::{Kind, Message, Parser, Sink, Stop};
use bytes::Bytes;

pub struct Client {
    pub site: usize,
    pub cid: u64,
    pub connection: ConnectionId,
    pub open: bool,
    /// Where else it was told it can connect.
    pub connect_urls: Vec<String>,
    last_sid: u32,
    parser: Option<Parser>,
}

/// What a server says that wants a reaction.
pub enum Heard {
    Ping,
    Message {
        sid: String,
        subject: String,
        reply: Option<String>,
        payload: String,
    },
    Error(String),
}

impl Client {
    pub fn new(site: usize, cid: u64, connection: ConnectionId) -> Self {
        Self {
            site,
            cid,
            connection,
            open: true,
            connect_urls: Vec::new(),
            last_sid: 0,
            // To a parser, a server that speaks to its client is a server that speaks to a route.
            parser: Some(Parser::new(Kind::Route)),
        }
    }

    pub fn next_sid(&mut self) -> String {
        self.last_sid += 1;
        self.last_sid.to_string()
    }

    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Vec<Heard> {
        let mut parser = self.parser.take().expect("it is put back below");
        let mut ear = Ear {
            heard: Vec::new(),
            client: self,
        };
        if let Err(fault) = parser.parse(bytes, &mut ear) {
            ear.heard.push(Heard::Error(fault.to_string()));
        }
        let heard = ear.heard;
        self.parser = Some(parser);
        heard
    }
}

struct Ear<'c> {
    heard: Vec<Heard>,
    client: &'c mut Client,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Sink for Ear<'_> {
    fn connect_only(&self) -> bool {
        false
    }

    fn headers(&self) -> bool {
        true
    }

    fn payload_bytes_max(&self) -> u64 {
        u64::MAX
    }

    fn control_line_bytes_max(&self) -> usize {
        usize::MAX
    }

    fn connect(&mut self, _: &[u8]) -> Result<(), Stop> {
        Err(Stop)
    }

    fn info(&mut self, json: &[u8]) -> Result<(), Stop> {
        let info: Info = serde_json::from_slice(json).map_err(|_| Stop)?;
        self.client.connect_urls = info.connect_urls;
        Ok(())
    }

    fn message(&mut self, message: &Message<'_>, _: Option<Bytes>) -> Result<(), Stop> {
        let header_bytes = message.header_bytes.unwrap_or(0) as usize;
        self.heard.push(Heard::Message {
            sid: text(message.sid),
            subject: text(message.subject.bytes()),
            reply: message.reply().map(text),
            payload: text(&message.body()[header_bytes..message.body_bytes]),
        });
        Ok(())
    }

    fn subscribe(&mut self, _: &[u8], _: Option<&[u8]>, _: &[u8]) -> Result<(), Stop> {
        Err(Stop)
    }

    fn unsubscribe(&mut self, _: &[u8], _: Option<u64>) -> Result<(), Stop> {
        Err(Stop)
    }

    fn ping(&mut self) -> Result<(), Stop> {
        self.heard.push(Heard::Ping);
        Ok(())
    }

    fn pong(&mut self) -> Result<(), Stop> {
        Ok(())
    }

    fn error(&mut self, error: &[u8]) -> Result<(), Stop> {
        self.heard.push(Heard::Error(text(error)));
        Ok(())
    }
}
