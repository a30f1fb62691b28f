//! Dead letters: what was sent again as often as the limits allow goes to another channel.
//!
//! ```text
//!   pending --sent max_redeliveries times again, due--> leaving --copy durable--> (forgotten)
//!      ^                                                   |
//!      '--- the copy could not be stored: sent once more --'
//! ```
//!
//! The message stays pending until its copy is durable, so a crash in between repeats it and loses nothing.

use super::deliver::WAIT_FOR_ROOM;
use super::{Engine, Shown};
use crate::stan::channel::Departing;
use crate::stan::clients::ChannelIndex;
use crate::stan::in_place::NewMessage;
use crate::stan::outlet::Outlet;
use crate::stan::pb;
use crate::stan::store::{Seq, StoreError};
use prost::Message;
use serde_json::json;
use std::sync::Arc;

/// What becomes of messages of a channel that nobody acknowledges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterRule {
    /// How often a message is sent again.
    pub max_redeliveries: u32,
    /// The channel it goes to then.
    pub target: String,
}

/// Letters of one turn, and bytes that wait for the disk at its end: nothing else bounds what is due at once, and a commit has
/// room for so much only.
const LETTERS_MAX: usize = 1024;
const BYTES_MAX: usize = 64 << 20;

/// What was buried in this turn.
#[derive(Debug, Default)]
pub(super) struct Buried {
    letters: usize,
    /// With what waited for the disk before it.
    bytes: usize,
}

type RuleOf = dyn Fn(&str) -> Option<DeadLetterRule> + Send + Sync;

/// The rule of a channel, by its name.
#[derive(Clone)]
pub struct DeadLetters(pub Arc<RuleOf>);

impl Default for DeadLetters {
    fn default() -> Self {
        Self(Arc::new(|_| None))
    }
}

impl std::fmt::Debug for DeadLetters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DeadLetters")
    }
}

impl Engine {
    /// Whether a pending message was sent as often as it may be, and is not to be sent once more because it could not leave.
    pub(super) fn is_spent(&mut self, index: ChannelIndex, id: u64, seq: Seq) -> bool {
        let channel = self.channel(index);
        let Some(rule) = &channel.dead_letters else {
            return false;
        };
        let pending = channel.subs.get(&id).and_then(|sub| sub.pending.get(&seq));
        pending.is_some_and(|pending| {
            pending.redeliveries >= rule.max_redeliveries && !pending.unburied
        })
    }

    /// How long what is due waits, where so much was buried that more of it has to.
    pub(super) fn burial_wait(&mut self, index: ChannelIndex) -> Option<i64> {
        self.channel(index).dead_letters.as_ref()?;
        match self.buried {
            Buried { bytes, .. } if bytes >= BYTES_MAX => Some(WAIT_FOR_ROOM),
            // Until the next turn.
            Buried { letters, .. } if letters >= LETTERS_MAX => Some(1),
            _ => None,
        }
    }

    /// A turn is over.
    pub(super) fn end_burials(&mut self) {
        self.buried = Buried {
            letters: 0,
            bytes: self.store.backlog_bytes(),
        };
    }

    /// Stores the copy; the rest follows in `depart`. Where that cannot be done, the message is sent again
    /// later, and tried again then.
    pub(super) fn bury(&mut self, index: ChannelIndex, id: u64, seq: Seq, message: &[u8]) {
        let channel = self.channel(index);
        let Some(rule) = channel.dead_letters.clone() else {
            return;
        };
        let source = channel.name.clone();
        let Some(sub) = channel.subs.get_mut(&id) else {
            return;
        };
        let Some(pending) = sub.pending.get(&seq) else {
            return;
        };
        let deliveries = pending.redeliveries + 1;
        let (state, group) = (sub.state.clone(), sub.group.clone());
        let stored = match self.store_letter(
            &rule.target,
            &source,
            &state,
            seq,
            deliveries,
            message,
        ) {
            Ok(stored) => stored,
            Err(error) => {
                log::error!(
                    "STREAM: Message {seq} of channel \"{}\" cannot go to {:?}: {}; it stays pending",
                    Shown(&source),
                    rule.target,
                    Shown(&error)
                );
                return self.keep_unburied(index, id, seq);
            }
        };
        self.buried.letters += 1;
        self.buried.bytes += message.len();
        if let Some(sub) = self.channel(index).subs.get_mut(&id) {
            sub.note_leaving(seq);
        }
        let (target, letter) = stored;
        self.channel(target).departing.push_back(Departing {
            letter,
            channel: index,
            sub: id,
            group,
            seq,
            deliveries,
        });
        self.mark_dirty(target);
    }

    fn store_letter(
        &mut self,
        target: &str,
        source: &str,
        state: &pb::SubState,
        seq: Seq,
        deliveries: u32,
        message: &[u8],
    ) -> Result<(ChannelIndex, Seq), String> {
        let original = pb::MsgProto::decode(message).map_err(|error| error.to_string())?;
        let mut origin = json!({
            "channel": source,
            "sequence": seq,
            "timestamp": original.timestamp,
            "deliveries": deliveries,
            "client": state.client_id,
        });
        for (name, text) in [
            ("durable", &state.durable_name),
            ("queue", &state.queue_group),
            ("reply", &original.reply),
        ] {
            if !text.is_empty() {
                origin[name] = text.as_str().into();
            }
        }
        let (now, wall) = (self.now, self.wall());
        let target = self.channel_named(target)?;
        let channel = self.channel(target);
        channel.active_at = now;
        let (store, subject) = (channel.store, channel.name.clone());
        let letter = NewMessage {
            timestamp: wall.max(self.store.bounds(store).last_timestamp),
            subject: &subject,
            reply: &origin.to_string(),
            data: &original.data,
        };
        let stored = self.store.append(store, letter);
        stored
            .map(|letter| (target, letter))
            .map_err(|error: StoreError| error.to_string())
    }

    /// Letters of a channel that are durable now: their messages are pending no more.
    pub(super) fn depart(&mut self, target: ChannelIndex, out: &mut dyn Outlet) {
        loop {
            let channel = self.channel(target);
            let durable_to = channel.durable_to;
            let ready = channel.departing.front();
            if ready.is_none_or(|departing| departing.letter > durable_to) {
                return;
            }
            let name = channel.name.clone();
            let Some(departing) = channel.departing.pop_front() else {
                return;
            };
            let index = departing.channel;
            let Some(source) = self.channels.get_mut(index).and_then(Option::as_mut) else {
                continue; // deleted meanwhile
            };
            source.dead_lettered += 1;
            log::warn!(
                "STREAM: Message {} of channel \"{}\" was sent {} times to subscription {} and not acknowledged: it is message {} of channel \"{}\" now",
                departing.seq,
                Shown(&source.name),
                departing.deliveries,
                departing.sub,
                departing.letter,
                Shown(&name)
            );
            let owner = self.holder(index, departing.sub, &departing.group, departing.seq);
            self.forget_pending(index, owner, departing.seq);
            self.deliver_next(index, owner, &departing.group, out);
        }
    }

    /// Letters that the store took back, or that went with their channel: their messages are sent again.
    pub(super) fn return_letters(&mut self, departing: Vec<Departing>) {
        for one in departing {
            if self.channels.get(one.channel).is_some_and(Option::is_some) {
                let owner = self.holder(one.channel, one.sub, &one.group, one.seq);
                self.keep_unburied(one.channel, owner, one.seq);
            }
        }
    }

    /// A message that could not leave is sent again after AckWait, and tried again when it is due then.
    fn keep_unburied(&mut self, index: ChannelIndex, id: u64, seq: Seq) {
        self.keep(index, id, seq);
        if let Some(sub) = self.channel(index).subs.get_mut(&id) {
            sub.note_unburied(seq);
        }
    }

    /// A message that cannot be dealt with now is due again after AckWait.
    pub(super) fn keep(&mut self, index: ChannelIndex, id: u64, seq: Seq) {
        let now = self.now;
        if let Some(sub) = self.channel(index).subs.get_mut(&id) {
            sub.set_due(seq, now + sub.ack_wait());
        }
        self.arm(index, id);
    }
}
