//! Any requests to an engine: no panic, and a publish behind them is still acknowledged.

use super::engine::{Engine, Settings};
use super::outlet::{Inlet, Outlet};
use super::pb;
use super::store::memory::MemoryStore;
use super::store::{ChannelLimits, Recovered};
use super::subs::SECOND;
use crate::util::random::Random;
use bytes::Bytes;
use prost::Message;

#[derive(Default)]
struct Answers {
    acks: usize,
}

impl Outlet for Answers {
    /// Clients choose inboxes: what comes on this subject may be a message to one of them.
    fn publish(&mut self, subject: &str, _: Option<&str>, payload: &[u8]) {
        let ack = pb::PubAck::decode(payload).ok();
        let ours = ack.is_some_and(|ack| ack.guid == "last" && ack.error.is_empty());
        self.acks += usize::from(subject == "ack" && ours);
    }

    fn subscribe(&mut self, _: Inlet, _: &str) {}

    fn unsubscribe(&mut self, _: Inlet) {}
}

/// Requests as `inlet, length, payload`; an inlet of 0 lets as many seconds pass.
pub fn check(mut data: &[u8]) {
    let settings = Settings {
        cluster_id: "c".into(),
        discover_prefix: "_STAN.discover".into(),
        max_channels: 50,
        heartbeat_interval: 30 * SECOND,
        heartbeat_timeout: SECOND,
        heartbeat_failures: 2,
        replace_durable: false,
        debug: false,
    };
    let limits = ChannelLimits {
        messages: 20,
        ..ChannelLimits::default()
    };
    let store = MemoryStore::new(Box::new(move |_| limits));
    let mut now = SECOND;
    let engine = Engine::new(
        settings,
        Box::new(store),
        Recovered::default(),
        Random::new(1),
        now,
    );
    let Ok(mut engine) = engine else {
        unreachable!("nothing was recovered");
    };
    let mut out = Answers::default();
    engine.start(&mut out, now);
    while let [inlet, length, rest @ ..] = data {
        if *inlet == 0 {
            now += i64::from(*length) * SECOND;
            engine.handle_timeouts(now, &mut out);
            data = rest;
        } else {
            let (payload, behind) = rest.split_at(usize::from(*length).min(rest.len()));
            let payload = Bytes::copy_from_slice(payload);
            let inlet = Inlet(u32::from(*inlet % 12));
            engine.handle_message(inlet, "_INBOX.x.p1", Some("reply"), payload, now, &mut out);
            data = behind;
        }
        engine
            .end_turn(now, &mut out)
            .expect("memory does not fail");
    }
    let connect = pb::ConnectRequest {
        client_id: "the-last-client".into(),
        heartbeat_inbox: "hb".into(),
        ..Default::default()
    };
    let publish = pb::PubMsg {
        client_id: "the-last-client".into(),
        guid: "last".into(),
        subject: "the-last-channel".into(),
        ..Default::default()
    };
    let connect = Bytes::from(connect.encode_to_vec());
    engine.handle_message(Inlet::CONNECT, "", Some("reply"), connect, now, &mut out);
    let publish = Bytes::from(publish.encode_to_vec());
    engine.handle_message(Inlet::PUBLISH, "", Some("ack"), publish, now, &mut out);
    engine
        .end_turn(now, &mut out)
        .expect("memory does not fail");
    assert_eq!(out.acks, 1);
}

#[cfg(test)]
mod tests {
    proptest::proptest! {
        #[test]
        fn any_bytes(data: Vec<u8>) {
            super::check(&data);
        }
    }
}
