//! Any requests to an engine: no panic, a publish behind them is still acknowledged, and what is read in place is what prost reads.

use super::engine::{DeadLetterRule, DeadLetters, Engine, Settings};
use super::in_place::{Ack, Publish};
use super::outlet::{Inlet, Outlet};
use super::pb;
use super::store::memory::MemoryStore;
use super::store::{ChannelLimits, Recovered};
use super::subs::SECOND;
use crate::util::random::Random;
use prost::Message;
use std::sync::Arc;

/// What requests of administration may be about.
const VERBS: [&str; 10] = [
    "info",
    "channels",
    "channel",
    "durables",
    "pending",
    "purge",
    "delete",
    "remove-durable",
    "skip",
    "nothing",
];
const INLETS: u8 = 12;
const ACK_INBOXES_MAX: usize = 20;

#[derive(Default)]
struct Answers {
    acks: usize,
    /// Where subscriptions are acknowledged.
    ack_inboxes: Vec<String>,
}

impl Outlet for Answers {
    /// Clients choose inboxes: what comes on this subject may be a message to one of them.
    fn publish(&mut self, subject: &str, _: Option<&str>, payload: &[u8]) {
        let ack = pb::PubAck::decode(payload).ok();
        let ours = ack.is_some_and(|ack| ack.guid == b"last" && ack.error.is_empty());
        self.acks += usize::from(subject == "ack" && ours);
        if subject == "reply"
            && let Ok(response) = pb::SubscriptionResponse::decode(payload)
            && !response.ack_inbox.is_empty()
            && self.ack_inboxes.len() < ACK_INBOXES_MAX
        {
            self.ack_inboxes.push(response.ack_inbox);
        }
    }

    fn subscribe(&mut self, _: Inlet, _: &str) {}

    fn unsubscribe(&mut self, _: Inlet) {}
}

impl Answers {
    /// The subject a request comes on; `choice` is what of the inlet's byte says no inlet.
    fn subject(&self, inlet: Inlet, choice: usize) -> String {
        match inlet {
            Inlet::ADMIN => format!("_STAN_ADMIN.c.{}", VERBS[choice % VERBS.len()]),
            Inlet::ACK if !self.ack_inboxes.is_empty() => {
                self.ack_inboxes[choice % self.ack_inboxes.len()].clone()
            }
            _ => "_INBOX.x.p1".into(),
        }
    }
}

/// Requests as `inlet, length, payload`; an inlet of 0 lets as many seconds pass.
pub fn check(mut data: &[u8]) {
    let settings = Settings {
        cluster_id: "c".into(),
        discover_prefix: "_STAN.discover".into(),
        max_channels: 1000,
        heartbeat_interval: 30 * SECOND,
        heartbeat_timeout: SECOND,
        heartbeat_failures: 2,
        replace_durable: false,
        debug: false,
        trace: false,
        admin: true,
        dead_letters: DeadLetters(Arc::new(|name| {
            let rule = DeadLetterRule {
                max_redeliveries: 1,
                target: "dead".into(),
            };
            (name != "dead").then_some(rule)
        })),
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
    engine.go_on(&mut out, now);
    while let [inlet, length, rest @ ..] = data {
        if *inlet == 0 {
            now += i64::from(*length) * SECOND;
            engine.handle_timeouts(now, &mut out);
            data = rest;
        } else {
            let (payload, behind) = rest.split_at(usize::from(*length).min(rest.len()));
            read_both_ways(payload);
            let choice = usize::from(*inlet / INLETS);
            let inlet = Inlet(u32::from(*inlet % INLETS));
            let subject = out.subject(inlet, choice);
            engine.handle_message(inlet, &subject, Some("reply"), payload, now, &mut out);
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
    let connect = connect.encode_to_vec();
    engine.handle_message(Inlet::CONNECT, "", Some("reply"), &connect, now, &mut out);
    let publish = publish.encode_to_vec();
    engine.handle_message(Inlet::PUBLISH, "", Some("ack"), &publish, now, &mut out);
    engine
        .end_turn(now, &mut out)
        .expect("memory does not fail");
    assert_eq!(out.acks, 1);
}

/// Whether these bytes are a publish, and whether an ack: by prost and where they lie, which must be the same.
pub fn read_both_ways(bytes: &[u8]) -> [bool; 2] {
    let publish = pb::PubMsg::decode(bytes).ok();
    let expected = publish.as_ref().map(|publish| Publish {
        client_id: &publish.client_id,
        guid: &publish.guid,
        subject: &publish.subject,
        reply: &publish.reply,
        data: &publish.data,
        conn_id: &publish.conn_id,
    });
    assert_eq!(Publish::read(bytes), expected, "{bytes:?}");
    let ack = pb::Ack::decode(bytes).ok();
    let expected = ack.as_ref().map(|ack| Ack {
        subject: &ack.subject,
        sequence: ack.sequence,
    });
    assert_eq!(Ack::read(bytes), expected, "{bytes:?}");
    [publish.is_some(), ack.is_some()]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A subscription, a message, acks and requests of administration, in the form of the fuzzer's inputs.
    #[test]
    fn requests_of_every_kind() {
        let mut data = Vec::new();
        let mut put = |inlet: Inlet, choice: u8, payload: Vec<u8>| {
            data.push(inlet.0 as u8 + choice * INLETS);
            data.push(payload.len() as u8);
            data.extend(payload);
        };
        let client_id = || "me".to_owned();
        let connect = pb::ConnectRequest {
            client_id: client_id(),
            heartbeat_inbox: "hb".into(),
            ..Default::default()
        };
        put(Inlet::CONNECT, 0, connect.encode_to_vec());
        let subscribe = pb::SubscriptionRequest {
            client_id: client_id(),
            subject: "foo".into(),
            inbox: "in".into(),
            max_in_flight: 2,
            ack_wait_seconds: 1,
            durable_name: "d".into(),
            ..Default::default()
        };
        put(Inlet::SUBSCRIBE, 0, subscribe.encode_to_vec());
        let publish = pb::PubMsg {
            client_id: client_id(),
            guid: "g".into(),
            subject: "foo".into(),
            ..Default::default()
        };
        for _ in 0..5 {
            put(Inlet::PUBLISH, 0, publish.encode_to_vec());
        }
        let ack = pb::Ack {
            subject: "foo".into(),
            sequence: 1,
        };
        put(Inlet::ACK, 0, ack.encode_to_vec());
        for seconds in [2, 2, 2] {
            put(Inlet(0), 0, vec![0; seconds]);
        }
        for (choice, request) in [
            (1, "{}"),
            (2, r#"{"channel":"foo"}"#),
            (4, r#"{"channel":"foo","client":"me","durable":"d"}"#),
            (8, r#"{"channel":"foo","subscription":1,"sequence":2}"#),
            (5, r#"{"channel":"foo","to":3}"#),
            (6, r#"{"channel":"foo","force":true}"#),
        ] {
            put(Inlet::ADMIN, choice, request.into());
        }
        check(&data);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes(data: Vec<u8>) {
            super::check(&data);
        }
    }
}
