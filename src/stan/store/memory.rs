//! The store that forgets: everything in memory, nothing to recover.

use super::channels::Channels;
use super::*;
use crate::stan::arena::{Arena, PIECE_BYTES_MAX};
use std::collections::VecDeque;

/// For so many messages a channel may always have room.
const ROOM_MIN: usize = 64;

pub struct MemoryStore {
    limits_of: LimitsOf,
    channels: Channels<Channel>,
}

#[derive(Default)]
struct Channel {
    limits: ChannelLimits,
    /// Number of the first message in `messages`.
    first: Seq,
    messages: VecDeque<(i64, Bytes)>,
    bytes: u64,
    arena: Arena,
    /// Messages went since memory was last given back.
    shrank: bool,
    last_timestamp: i64,
    told_of_limit: bool,
    name: String,
}

impl MemoryStore {
    pub fn new(limits_of: LimitsOf) -> Self {
        Self {
            limits_of,
            channels: Channels::default(),
        }
    }
}

impl Channel {
    fn last(&self) -> Seq {
        self.first + self.messages.len() as u64 - 1
    }

    fn drop_first(&mut self) {
        if let Some((_, message)) = self.messages.pop_front() {
            self.bytes -= message.len() as u64;
            self.first += 1;
            self.shrank = true;
        }
    }

    /// Room for many more messages than are left.
    fn give_back(&mut self) {
        let needed = 2 * self.messages.len().max(ROOM_MIN);
        if self.messages.capacity() > 2 * needed {
            self.messages.shrink_to(needed);
        }
        // Few are left of many: they do not keep the blocks of these.
        if std::mem::take(&mut self.shrank) && self.messages.len() <= ROOM_MIN {
            for (_, message) in &mut self.messages {
                if message.len() <= PIECE_BYTES_MAX {
                    *message = Bytes::copy_from_slice(message);
                }
            }
            self.arena = Arena::default();
        }
    }

    fn apply_limits(&mut self) {
        let limits = self.limits;
        let too_much = |channel: &Self| {
            (limits.messages > 0 && channel.messages.len() as u64 > limits.messages)
                || (limits.bytes > 0 && channel.bytes > limits.bytes && channel.messages.len() > 1)
        };
        while too_much(self) {
            self.drop_first();
            if !std::mem::replace(&mut self.told_of_limit, true) {
                tell_of_limit(&self.name, self.messages.len() as u64, self.bytes, &limits);
            }
        }
    }
}

/// Said once per channel, with what there is when the first message is gone.
pub(super) fn tell_of_limit(name: &str, messages: u64, bytes: u64, limits: &ChannelLimits) {
    log::info!(
        "STREAM: WARNING: Reached limits for store {name:?} (msgs={messages}/{} bytes={}/{}), \
         dropping old messages to make room for new ones",
        limits.messages,
        friendly_bytes(bytes),
        friendly_bytes(limits.bytes)
    );
}

impl Store for MemoryStore {
    fn kind(&self) -> &'static str {
        "MEMORY"
    }

    fn save_server(&mut self, _: &pb::ServerInfo) -> Result<(), StoreError> {
        Ok(())
    }

    fn add_client(&mut self, _: &pb::ClientInfo) -> Result<(), StoreError> {
        Ok(())
    }

    fn delete_client(&mut self, _: &str) -> Result<(), StoreError> {
        Ok(())
    }

    fn create_channel(&mut self, name: &str) -> Result<ChannelId, StoreError> {
        let channel = Channel {
            limits: (self.limits_of)(name),
            first: 1,
            name: name.to_owned(),
            ..Channel::default()
        };
        Ok(self.channels.push(channel))
    }

    fn delete_channel(&mut self, channel: ChannelId) -> Result<(), StoreError> {
        self.channels.remove(channel);
        Ok(())
    }

    fn limits(&self, channel: ChannelId) -> ChannelLimits {
        self.channels.at(channel).limits
    }

    fn bounds(&self, channel: ChannelId) -> Bounds {
        let channel = self.channels.at(channel);
        let last = channel.last();
        Bounds {
            first: if last == 0 { 0 } else { channel.first },
            last,
            messages: channel.messages.len() as u64,
            bytes: channel.bytes,
            last_timestamp: channel.last_timestamp,
        }
    }

    fn append(&mut self, channel: ChannelId, message: NewMessage<'_>) -> Result<Seq, StoreError> {
        let channel = self.channels.at_mut(channel);
        let seq = channel.last() + 1;
        let encoded = message.encoded(seq, &mut channel.arena, channel.bytes as usize);
        channel.bytes += encoded.len() as u64;
        channel.messages.push_back((message.timestamp, encoded));
        channel.last_timestamp = message.timestamp;
        channel.apply_limits();
        Ok(seq)
    }

    fn lookup(&mut self, channel: ChannelId, seq: Seq) -> Result<Option<Bytes>, StoreError> {
        let channel = self.channels.at(channel);
        let index = seq.checked_sub(channel.first);
        let found = index.and_then(|index| channel.messages.get(index as usize));
        Ok(found.map(|(_, message)| message.clone()))
    }

    fn first_since(&mut self, channel: ChannelId, timestamp: i64) -> Result<Seq, StoreError> {
        let channel = self.channels.at(channel);
        let older = channel.messages.partition_point(|(at, _)| *at < timestamp);
        Ok(channel.first + older as u64)
    }

    fn expire(&mut self, channel: ChannelId, now: i64) -> Option<i64> {
        let channel = self.channels.at_mut(channel);
        let age = channel.limits.age;
        if age == 0 {
            return None;
        }
        while channel
            .messages
            .front()
            .is_some_and(|(at, _)| at.saturating_add(age) <= now)
        {
            channel.drop_first();
        }
        channel
            .messages
            .front()
            .map(|(at, _)| at.saturating_add(age))
    }

    fn purge(&mut self, channel: ChannelId, up_to: Seq) -> Result<u64, StoreError> {
        let channel = self.channels.at_mut(channel);
        let before = channel.messages.len();
        while !channel.messages.is_empty() && channel.first <= up_to {
            channel.drop_first();
        }
        Ok((before - channel.messages.len()) as u64)
    }

    fn add_sub(&mut self, _: ChannelId, _: &pb::SubState) -> Result<(), StoreError> {
        Ok(())
    }

    fn update_sub(&mut self, _: ChannelId, _: &pb::SubState) -> Result<(), StoreError> {
        Ok(())
    }

    fn delete_sub(&mut self, _: ChannelId, _: u64) -> Result<(), StoreError> {
        Ok(())
    }

    fn sub_sent(&mut self, _: ChannelId, _: u64, _: Seq) -> Result<(), StoreError> {
        Ok(())
    }

    fn sub_acked(&mut self, _: ChannelId, _: u64, _: Seq) -> Result<(), StoreError> {
        Ok(())
    }

    fn flush(&mut self, _: ChannelId) -> Result<Flushed, StoreError> {
        Ok(Flushed::Now)
    }

    fn completed(&mut self) -> Option<Result<Completion, StoreError>> {
        None
    }

    fn maintain(&mut self, _: i64) {
        for channel in self.channels.iter_mut() {
            channel.give_back();
        }
    }

    fn close(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_for_messages_that_are_gone_is_given_back() {
        let mut store = MemoryStore::new(Box::new(|_| ChannelLimits::default()));
        let channel = store.create_channel("foo").unwrap();
        for _ in 0..10_000 {
            let message = NewMessage::default();
            store.append(channel, message).unwrap();
        }
        store.purge(channel, 9_990).unwrap();
        let room = |store: &MemoryStore| store.channels.at(channel).messages.capacity();
        // Those that lie in a block keep all of it.
        let alone = |store: &MemoryStore| {
            let mut left = store.channels.at(channel).messages.iter();
            left.all(|(_, message)| message.is_unique())
        };
        assert!(room(&store) >= 10_000 && !alone(&store));
        store.maintain(0);
        assert!(room(&store) < 1000 && alone(&store));
        assert!(store.lookup(channel, 9_991).unwrap().is_some());
    }
}
