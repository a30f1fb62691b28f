//! One channel: its subscriptions and groups, and the publishes that wait for the disk.

use super::arena::{self, Arena};
use super::clients::ChannelIndex;
use super::engine::DeadLetterRule;
use super::names::is_valid_channel;
use super::subs::Sub;
use crate::stan::store::{ChannelId, Seq};
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// A publish that is stored, and acknowledged once it is durable.
#[derive(Debug)]
pub struct WaitingAck {
    pub seq: Seq,
    /// Where it goes, and behind that the guid.
    text: Bytes,
    reply_bytes: usize,
    /// Who published it, where that is to be logged.
    pub client: Option<Box<str>>,
}

impl WaitingAck {
    pub fn new(
        arena: &mut Arena,
        seq: Seq,
        reply: &str,
        guid: &[u8],
        client: Option<&str>,
    ) -> Self {
        // They all wait for the same commits.
        let text = arena.piece(reply.len() + guid.len(), arena::MUCH, |block| {
            block.extend_from_slice(reply.as_bytes());
            block.extend_from_slice(guid);
        });
        Self {
            seq,
            text,
            reply_bytes: reply.len(),
            client: client.map(Into::into),
        }
    }

    pub fn reply(&self) -> &str {
        let reply = &self.text[..self.reply_bytes];
        std::str::from_utf8(reply).expect("it was made of text")
    }

    pub fn guid(&self) -> &[u8] {
        &self.text[self.reply_bytes..]
    }

    pub fn bytes(&self) -> usize {
        self.text.len()
    }
}

/// A message that is leaving its subscription for this channel, as a dead letter.
#[derive(Debug)]
pub struct Departing {
    /// Its number here.
    pub letter: Seq,
    pub channel: ChannelIndex,
    pub sub: u64,
    pub group: Arc<str>,
    pub seq: Seq,
    pub deliveries: u32,
}

#[derive(Debug, Default)]
pub struct Queue {
    pub last_sent: Seq,
    /// In the order in which they are asked.
    pub members: VecDeque<u64>,
    /// The record that keeps a durable group's place while it has no members.
    pub shadow: Option<u64>,
}

#[derive(Debug)]
pub struct Channel {
    pub name: String,
    /// One that was found on the disk may have a name that no request may name.
    pub has_valid_name: bool,
    pub store: ChannelId,
    pub subs: BTreeMap<u64, Sub>,
    /// Subscriptions outside groups, in the order in which they came.
    pub plain: Vec<u64>,
    pub queues: BTreeMap<Arc<str>, Queue>,
    /// Durables outside groups, by the key that identifies them.
    pub durables: HashMap<String, u64>,
    pub last_sub_id: u64,
    /// Messages up to this one are durable, and may be delivered.
    pub durable_to: Seq,
    pub waiting: VecDeque<WaitingAck>,
    /// Deliveries wait for room on the way out, and go on from this one: of `plain` and, behind it, of `queues`.
    pub held_back: Option<usize>,
    /// Something is to be flushed at the end of the turn.
    pub dirty: bool,
    /// Since the server's start: publishes acknowledged, and messages sent again.
    pub acknowledged: u64,
    pub redelivered: u64,
    /// Messages that went to another channel because nobody acknowledged them.
    pub dead_lettered: u64,
    pub dead_letters: Option<DeadLetterRule>,
    /// Dead letters of other channels that wait for the disk.
    pub departing: VecDeque<Departing>,
    /// Last publish, or end of the last subscription.
    pub active_at: i64,
    /// The timer of the oldest message that is set; others are stale.
    pub age_timer: Option<i64>,
    pub inactivity_timer: bool,
    /// A timer is set for new messages that could not be read.
    pub reads_again: bool,
}

impl Channel {
    pub fn new(name: &str, store: ChannelId, now: i64) -> Self {
        Self {
            name: name.to_owned(),
            has_valid_name: is_valid_channel(name),
            store,
            subs: BTreeMap::new(),
            plain: Vec::new(),
            queues: BTreeMap::new(),
            durables: HashMap::new(),
            last_sub_id: 0,
            durable_to: 0,
            waiting: VecDeque::new(),
            held_back: None,
            dirty: false,
            acknowledged: 0,
            redelivered: 0,
            dead_lettered: 0,
            dead_letters: None,
            departing: VecDeque::new(),
            active_at: now,
            age_timer: None,
            inactivity_timer: false,
            reads_again: false,
        }
    }

    pub fn has_active_subs(&self) -> bool {
        self.subs.values().any(|sub| sub.active)
    }

    pub fn new_sub_id(&mut self) -> u64 {
        self.last_sub_id += 1;
        self.last_sub_id
    }
}

/// The original's identity of a durable, with its collisions.
pub fn durable_key(client: &str, channel: &str, durable: &str) -> String {
    format!("{client}-{channel}-{durable}")
}
