//! Publishes, and their acks.

use super::Engine;
use super::tell::{Shown, tell_refused_publish, trace};
use crate::stan::channel::{Channel, WaitingAck};
use crate::stan::clients::ChannelIndex;
use crate::stan::in_place::{NewMessage, Publish, put_ack};
use crate::stan::names::is_valid_channel;
use crate::stan::outlet::Outlet;
use crate::stan::pb;
use crate::stan::store::{Flushed, Seq, StoreError};
use prost::Message;

const INVALID_PUBLISH: &str = "stan: invalid publish request";
const BEING_DELETED: &str = "stan: channel is being deleted";
const TOO_MANY_CHANNELS: &str = "too many channels";

impl Engine {
    pub(super) fn handle_publish(
        &mut self,
        payload: &[u8],
        reply: Option<&str>,
        out: &mut dyn Outlet,
    ) {
        let Some(message) = Publish::read(payload) else {
            // Servers talk to each other on the same subjects.
            if pb::CtrlMsg::decode(payload).is_err() {
                log::error!("STREAM: Received invalid client publish message");
                let guid = pb::PubGuid::decode(payload).map_or(Vec::new(), |message| message.guid);
                refuse(reply, &guid, INVALID_PUBLISH, out);
            }
            return;
        };
        let known = self.by_name.get(message.subject).copied();
        let has_valid_name = match known {
            Some(index) => self.channel(index).has_valid_name,
            None => is_valid_channel(message.subject),
        };
        if message.guid.is_empty()
            || !has_valid_name
            || !self.clients.is_valid(message.client_id, message.conn_id)
        {
            tell_refused_publish(&message);
            return refuse(reply, message.guid, INVALID_PUBLISH, out);
        }
        let index = match known.map_or_else(|| self.channel_named(message.subject), Ok) {
            Ok(index) => index,
            Err(error) => {
                log::error!(
                    "STREAM: [Client:{}] Error processing message for subject \"{}.{}\": {}",
                    Shown(message.client_id),
                    self.info.publish,
                    Shown(message.subject),
                    Shown(&error)
                );
                return refuse(reply, message.guid, &error, out);
            }
        };
        let (now, wall, traced) = (self.now, self.wall(), self.settings.trace);
        let channel = self.channel(index);
        channel.active_at = now;
        let store = channel.store;
        let stored = NewMessage {
            timestamp: wall.max(self.store.bounds(store).last_timestamp),
            subject: message.subject,
            reply: message.reply,
            data: message.data,
        };
        match self.store.append(store, stored) {
            Ok(seq) => {
                if let Some(reply) = reply {
                    let client = traced.then_some(message.client_id);
                    let texts = &mut self.ack_texts;
                    let ack = WaitingAck::new(texts, seq, reply, message.guid, client);
                    self.ack_bytes += ack.bytes();
                    self.channel(index).waiting.push_back(ack);
                }
                self.mark_dirty(index);
            }
            Err(error) => {
                let text = error.to_string();
                refuse(reply, message.guid, &text, out);
                self.take_back(index, &error, out);
            }
        }
    }

    /// The channel of this name, made if need be; who asked tells why there is none.
    pub(super) fn channel_named(&mut self, name: &str) -> Result<ChannelIndex, String> {
        if let Some(index) = self.by_name.get(name) {
            return Ok(*index);
        }
        let max = self.settings.max_channels;
        if max > 0 && self.by_name.len() >= max {
            return Err(TOO_MANY_CHANNELS.into());
        }
        let store = self.store.create_channel(name);
        let store = store.map_err(|error| error.to_string())?;
        let index = self.channels.len();
        let mut channel = Channel::new(name, store, self.now);
        channel.dead_letters = (self.settings.dead_letters.0)(name);
        self.channels.push(Some(Box::new(channel)));
        self.by_name.insert(name.to_owned(), index);
        self.by_store.insert(store, index);
        log::info!("STREAM: Channel \"{}\" has been created", Shown(name));
        self.watch_inactivity(index);
        Ok(index)
    }

    /// Flushes what was touched, acknowledges what is durable, and delivers it; and writes down what
    /// that led to, so that nothing waits for the next turn.
    pub fn end_turn(&mut self, now: i64, out: &mut dyn Outlet) -> Result<(), StoreError> {
        self.now = now;
        loop {
            self.deliver_held_back(out);
            let mut dirty = std::mem::take(&mut self.dirty);
            let mut idle = dirty.is_empty();
            for index in dirty.drain(..) {
                self.flush(index, out);
            }
            if self.dirty.is_empty() {
                self.dirty = dirty; // with its room
            }
            self.store.commit();
            while let Some(completion) = self.store.completed() {
                let completion = completion?;
                idle = false;
                let Some(index) = self.by_store.get(&completion.channel).copied() else {
                    continue; // deleted meanwhile
                };
                self.durable(index, completion.up_to, out);
                if let Some(error) = completion.taken_back {
                    self.take_back(index, &error, out);
                }
            }
            idle &= !self.refuse_answers(out);
            self.release_answers(out);
            if idle && self.dirty.is_empty() {
                self.end_burials();
                return Ok(());
            }
        }
    }

    fn flush(&mut self, index: ChannelIndex, out: &mut dyn Outlet) {
        let channel = self.channel(index);
        channel.dirty = false;
        let store = channel.store;
        match self.store.flush(store) {
            Ok(Flushed::Now) => {
                let last = self.store.bounds(store).last;
                self.durable(index, last, out);
            }
            Ok(Flushed::Later) => {}
            Err(error) => self.take_back(index, &error, out),
        }
    }

    /// Messages of a channel up to this one are durable: subscribers get them, then publishers their
    /// acks.
    fn durable(&mut self, index: ChannelIndex, up_to: Seq, out: &mut dyn Outlet) {
        let channel = self.channel(index);
        if up_to > channel.durable_to {
            channel.durable_to = up_to;
            self.deliver(index, out);
            self.watch_age(index);
        }
        self.acknowledge(index, out);
        self.depart(index, out);
    }

    fn acknowledge(&mut self, index: ChannelIndex, out: &mut dyn Outlet) {
        let mut encoded = std::mem::take(&mut self.encoded);
        let mut bytes = 0;
        let channel = self.channel(index);
        while let Some(first) = channel.waiting.front()
            && first.seq <= channel.durable_to
            && let Some(waiting) = channel.waiting.pop_front()
        {
            if let Some(client) = &waiting.client {
                let subject = &channel.name;
                trace(format_args!(
                    "[Client:{}] Acking Publisher subj={} guid={}",
                    Shown(client),
                    Shown(subject),
                    Shown(&String::from_utf8_lossy(waiting.guid()))
                ));
            }
            encoded.clear();
            put_ack(&mut encoded, waiting.guid());
            out.publish(waiting.reply(), None, &encoded);
            channel.acknowledged += 1;
            bytes += waiting.bytes();
        }
        self.ack_bytes -= bytes;
        self.encoded = encoded;
    }

    /// The store could not write: what it took back is refused.
    fn take_back(&mut self, index: ChannelIndex, error: &StoreError, out: &mut dyn Outlet) {
        log::error!("STREAM: {error}");
        let store = self.channel(index).store;
        let last = self.store.bounds(store).last;
        let text = error.to_string();
        let mut bytes = 0;
        let channel = self.channel(index);
        while channel
            .waiting
            .back()
            .is_some_and(|waiting| waiting.seq > last)
        {
            if let Some(waiting) = channel.waiting.pop_back() {
                refuse(Some(waiting.reply()), waiting.guid(), &text, out);
                bytes += waiting.bytes();
            }
        }
        let kept = channel.departing.partition_point(|one| one.letter <= last);
        let returned = channel.departing.split_off(kept);
        self.ack_bytes -= bytes;
        self.return_letters(returned.into());
    }

    /// Whoever waits for an ack of this channel is told that there will be none.
    pub(super) fn refuse_waiting(&mut self, channel: &mut Channel, out: &mut dyn Outlet) {
        for waiting in channel.waiting.drain(..) {
            refuse(Some(waiting.reply()), waiting.guid(), BEING_DELETED, out);
            self.ack_bytes -= waiting.bytes();
        }
    }
}

fn refuse(reply: Option<&str>, guid: &[u8], error: &str, out: &mut dyn Outlet) {
    if let Some(reply) = reply {
        let ack = pb::PubAck {
            guid: guid.to_vec(),
            error: error.to_owned(),
        };
        out.publish(reply, None, &ack.encode_to_vec());
    }
}
