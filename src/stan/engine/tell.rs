//! Lines of the log, in the original's words. What clients chose and nobody has checked is escaped.

use super::Engine;
use super::requests::text;
use crate::stan::pb;
use crate::stan::subs::Sub;
use std::fmt::Arguments;

impl Engine {
    pub(super) fn debug(&self, line: Arguments<'_>) {
        if self.settings.debug {
            log::info!(target: "stan-debug", "STREAM: {line}");
        }
    }

    pub(super) fn tell_refused_sub(&self, request: &pb::SubscriptionRequest, error: &str) {
        let client = request.client_id.escape_debug();
        let from = &self.info.subscribe;
        let invalid = |what: &str, value: i32| {
            log::error!(
                "STREAM: [Client:{client}] Invalid {what} ({value}) in subscription request from {from}"
            );
        };
        match error {
            text::CLIENT_MISSING => {
                log::error!("STREAM: Missing ClientID in subscription request from {from}");
            }
            text::INVALID_ACK_WAIT => invalid("AckWait", request.ack_wait_seconds),
            text::INVALID_IN_FLIGHT => invalid("MaxInflight", request.max_in_flight),
            text::INVALID_START => invalid("StartPosition", request.start_position),
            text::INVALID_SUBJECT => log::error!(
                "STREAM: [Client:{client}] Invalid channel {:?} in subscription request from {from}",
                request.subject
            ),
            text::INVALID_DURABLE_NAME => log::error!(
                "STREAM: [Client:{client}] Invalid DurableName ({:?}) for queue subscriber from {}",
                request.durable_name,
                request.subject
            ),
            text::DURABLE_IN_USE => {
                log::error!(
                    "STREAM: [Client:{client}] Duplicate durable subscription registration"
                );
            }
            _ => log::error!(
                "STREAM: Unable to add subscription for {}: {error}",
                request.subject
            ),
        }
    }

    pub(super) fn tell_refused_unsub(
        &self,
        request: &pb::UnsubscribeRequest,
        for_good: bool,
        error: &str,
    ) {
        let client = request.client_id.escape_debug();
        let action = if for_good { "unsub" } else { "sub close" };
        let (subject, inbox) = (request.subject.escape_debug(), request.inbox.escape_debug());
        if error == text::UNKNOWN_CLIENT {
            log::error!("STREAM: [Client:{client}] {action} request for missing client");
        } else if self.by_name.contains_key(&request.subject) {
            log::error!("STREAM: [Client:{client}] {action} request for missing inbox {inbox}");
        } else {
            log::error!("STREAM: [Client:{client}] {action} request missing subject {subject}");
        }
    }
}

/// What a publish says of itself, but for its data.
pub(super) fn tell_refused_publish(message: &pb::PubMsg) {
    log::error!(
        "STREAM: Received invalid client publish message clientID:{:?} guid:{:?} subject:{:?}",
        message.client_id,
        message.guid,
        message.subject
    );
}

pub(super) fn trace(line: Arguments<'_>) {
    log::info!(target: "stan-trace", "STREAM: {line}");
}

pub(super) fn trace_message(what: &str, sub: &Sub, channel: &str, seq: u64) {
    trace(format_args!(
        "[Client:{}] {what} subid={}, subject={channel}, seq={seq}",
        sub.state.client_id,
        sub.id()
    ));
}
