//! Where a streaming server keeps what it promised to keep.
//!
//! A store holds, per channel, a log of messages and the state of subscriptions, and beside them the
//! registered clients and the server's own names. It enforces the limits of channels. Everything
//! recorded in one turn becomes durable together: each channel is flushed, `commit` begins what they have in common, and
//! `completed` tells when it is done; publishes are acknowledged after that and not before.
//!
//! May import `stan::pb`, util and config. Must not know clients, delivery, or how messages come.

mod channels;
pub mod file;
pub mod memory;
#[cfg(test)]
mod tests;

use crate::stan::in_place::NewMessage;
use crate::stan::pb;
use bytes::Bytes;
use std::path::PathBuf;

/// Names a channel of a store for as long as that is open.
pub type ChannelId = u32;
pub type Seq = u64;

/// Limits of one channel; 0 means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelLimits {
    pub subscriptions: u64,
    pub messages: u64,
    pub bytes: u64,
    /// Nanoseconds.
    pub age: i64,
    pub inactivity: i64,
}

/// What a channel holds. Without messages `first` is `last + 1`, or both are 0 if there never were
/// any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    pub first: Seq,
    pub last: Seq,
    pub messages: u64,
    /// As the original counts them, for limits and monitoring.
    pub bytes: u64,
    /// Of the newest message ever stored, nanoseconds since the epoch.
    pub last_timestamp: i64,
}

/// A subscription found at the start, with what was sent to it and not acknowledged.
#[derive(Clone, Debug, PartialEq)]
pub struct RecoveredSub {
    pub state: pb::SubState,
    pub pending: Vec<Seq>,
}

#[derive(Debug)]
pub struct RecoveredChannel {
    pub id: ChannelId,
    pub name: String,
    pub subscriptions: Vec<RecoveredSub>,
    /// The highest subscription id ever seen.
    pub last_sub_id: u64,
}

/// What a store held when it was opened. No server info: it is new.
#[derive(Debug, Default)]
pub struct Recovered {
    pub server: Option<pb::ServerInfo>,
    pub clients: Vec<pb::ClientInfo>,
    pub channels: Vec<RecoveredChannel>,
}

#[derive(Debug)]
pub enum StoreError {
    /// The system refused something.
    Io {
        what: &'static str,
        path: PathBuf,
        error: std::io::Error,
    },
    /// A sync failed, or a write that was to be one: it is not known what the disk has.
    Sync {
        what: &'static str,
        path: PathBuf,
        error: std::io::Error,
    },
    /// What is on the disk is not what was written.
    Damaged {
        path: PathBuf,
        offset: u64,
        why: String,
    },
    /// The data cannot be used with these settings.
    Refused(String),
}

impl std::fmt::Display for StoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io { what, path, error } | Self::Sync { what, path, error } => {
                write!(f, "{what} {}: {error}", path.display())
            }
            Self::Damaged { path, offset, why } => {
                write!(f, "{} is damaged at byte {offset}: {why}", path.display())
            }
            Self::Refused(text) => f.write_str(text),
        }
    }
}

/// A number of bytes as the original shows it.
pub fn friendly_bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KB", "MB", "GB", "TB", "PB", "EB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{value:.2} {}", UNITS[unit]),
    }
}

/// How far a flush got by the time it returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// Everything appended is as durable as the store's rules ask.
    Now,
    /// `completed` will tell.
    Later,
}

/// What became of messages whose flush was to be over later.
#[derive(Debug)]
pub struct Completion {
    pub channel: ChannelId,
    /// Messages of the channel up to this one are durable; or what stands behind it was taken back, and why.
    pub up_to: Seq,
    pub taken_back: Option<StoreError>,
}

/// The limits of a channel, by its name.
pub type LimitsOf = Box<dyn Fn(&str) -> ChannelLimits + Send>;

pub trait Store: Send {
    /// The name in monitoring.
    fn kind(&self) -> &'static str;

    fn save_server(&mut self, info: &pb::ServerInfo) -> Result<(), StoreError>;
    /// An error, and nothing has changed, for one that is too large for a record; the same holds for subscriptions.
    fn add_client(&mut self, client: &pb::ClientInfo) -> Result<(), StoreError>;
    fn delete_client(&mut self, id: &str) -> Result<(), StoreError>;

    fn create_channel(&mut self, name: &str) -> Result<ChannelId, StoreError>;
    /// With everything in it, and at once: after a crash it is either there or not. On an error it is
    /// there as before.
    fn delete_channel(&mut self, channel: ChannelId) -> Result<(), StoreError>;
    fn limits(&self, channel: ChannelId) -> ChannelLimits;
    fn bounds(&self, channel: ChannelId) -> Bounds;

    /// Stores a message behind the last one and returns its number; the oldest ones go where limits ask for it, as soon as
    /// this one cannot be taken back any more. Its number is set here. An error while `completed` is yet to tell of messages of the channel that
    /// were taken back.
    fn append(&mut self, channel: ChannelId, message: NewMessage<'_>) -> Result<Seq, StoreError>;
    /// The encoded message, or None where it has been removed. `Damaged`: it is there and cannot be
    /// read; others can.
    fn lookup(&mut self, channel: ChannelId, seq: Seq) -> Result<Option<Bytes>, StoreError>;
    /// The first message that is not older than this; one past the last when all are.
    fn first_since(&mut self, channel: ChannelId, timestamp: i64) -> Result<Seq, StoreError>;
    /// Removes what is too old; returns when to look again.
    fn expire(&mut self, channel: ChannelId, now: i64) -> Option<i64>;

    /// Removes messages up to this one for good and returns how many; durable when it returns. The caller
    /// asks for no more than what is durable.
    fn purge(&mut self, channel: ChannelId, up_to: Seq) -> Result<u64, StoreError>;

    /// Whether a subscription may be added, or one that waits be taken up again: an error while much waits for room on the
    /// disk already.
    fn may_subscribe(&mut self, channel: ChannelId) -> Result<(), StoreError> {
        let _ = channel;
        Ok(())
    }
    /// Records of subscriptions; ids are the caller's.
    fn add_sub(&mut self, channel: ChannelId, state: &pb::SubState) -> Result<(), StoreError>;
    fn update_sub(&mut self, channel: ChannelId, state: &pb::SubState) -> Result<(), StoreError>;
    fn delete_sub(&mut self, channel: ChannelId, id: u64) -> Result<(), StoreError>;
    fn sub_sent(&mut self, channel: ChannelId, id: u64, seq: Seq) -> Result<(), StoreError>;
    fn sub_acked(&mut self, channel: ChannelId, id: u64, seq: Seq) -> Result<(), StoreError>;

    /// Makes durable what was appended to a channel, or prepares it for `commit`. On an error the messages not
    /// yet written are taken back, so their numbers are free again.
    fn flush(&mut self, channel: ChannelId) -> Result<Flushed, StoreError>;
    /// Begins to make durable what was flushed and recorded, unless something is under way already.
    fn commit(&mut self) {}
    /// The next flush that is over. After an error it is not known what the disk has: nothing may be
    /// acknowledged any more.
    fn completed(&mut self) -> Option<Result<Completion, StoreError>>;
    /// The commit with which everything recorded so far of clients and subscriptions is durable; None: there is
    /// nothing to wait for.
    fn next_commit(&self) -> Option<u64> {
        None
    }
    /// Commits up to this one are durable.
    fn committed(&self) -> u64 {
        0
    }
    /// The last commit that found no room since this was asked, and what the system said: what it and those before it
    /// recorded is kept in memory, and comes with a later one.
    fn refused(&mut self) -> Option<(u64, StoreError)> {
        None
    }
    /// Bytes of messages in memory that wait for the next commit.
    fn backlog_bytes(&self) -> usize {
        0
    }
    /// Once a second or so: files and buffers nobody needs.
    fn maintain(&mut self, now: i64);
    /// Everything out, and durable.
    fn close(&mut self);
}
