//! A store that loses what a test wants lost.

use super::*;
use crate::stan::in_place::NewMessage;

/// Loses what a test wants lost on the way to the store.
pub(super) struct Forgetful<S>(pub(super) S, pub(super) Fault);

macro_rules! passed_on {
    ($($name:ident(&mut self $(, $arg:ident: $type:ty)*) -> $result:ty;)*) => {
        $(fn $name(&mut self $(, $arg: $type)*) -> $result { self.0.$name($($arg),*) })*
    };
}

impl<S: Store> Store for Forgetful<S> {
    fn kind(&self) -> &'static str {
        self.0.kind()
    }
    fn limits(&self, channel: ChannelId) -> ChannelLimits {
        self.0.limits(channel)
    }
    fn bounds(&self, channel: ChannelId) -> crate::stan::store::Bounds {
        self.0.bounds(channel)
    }
    fn sub_sent(&mut self, channel: ChannelId, id: u64, seq: u64) -> Result<(), StoreError> {
        match self.1 {
            Fault::SentForgotten => Ok(()),
            _ => self.0.sub_sent(channel, id, seq),
        }
    }
    fn sub_acked(&mut self, channel: ChannelId, id: u64, seq: u64) -> Result<(), StoreError> {
        match self.1 {
            Fault::AckForgotten => Ok(()),
            _ => self.0.sub_acked(channel, id, seq),
        }
    }
    passed_on! {
        save_server(&mut self, info: &pb::ServerInfo) -> Result<(), StoreError>;
        add_client(&mut self, client: &pb::ClientInfo) -> Result<(), StoreError>;
        delete_client(&mut self, id: &str) -> Result<(), StoreError>;
        create_channel(&mut self, name: &str) -> Result<ChannelId, StoreError>;
        delete_channel(&mut self, channel: ChannelId) -> Result<(), StoreError>;
        append(&mut self, channel: ChannelId, message: NewMessage<'_>) -> Result<u64, StoreError>;
        lookup(&mut self, channel: ChannelId, seq: u64) -> Result<Option<Bytes>, StoreError>;
        first_since(&mut self, channel: ChannelId, timestamp: i64) -> Result<u64, StoreError>;
        expire(&mut self, channel: ChannelId, now: i64) -> Option<i64>;
        purge(&mut self, channel: ChannelId, up_to: u64) -> Result<u64, StoreError>;
        add_sub(&mut self, channel: ChannelId, state: &pb::SubState) -> Result<(), StoreError>;
        update_sub(&mut self, channel: ChannelId, state: &pb::SubState) -> Result<(), StoreError>;
        delete_sub(&mut self, channel: ChannelId, id: u64) -> Result<(), StoreError>;
        flush(&mut self, channel: ChannelId) -> Result<crate::stan::store::Flushed, StoreError>;
        completed(&mut self) -> Option<Result<crate::stan::store::Completion, StoreError>>;
        maintain(&mut self, now: i64) -> ();
        close(&mut self) -> ();
    }
}
