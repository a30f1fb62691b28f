//! Lines of the log, in the original's words. What clients chose and nobody has checked is escaped and cut.

use super::{Engine, text};
use crate::stan::clients::ChannelIndex;
use crate::stan::in_place::Publish;
use crate::stan::pb;
use crate::stan::store::Seq;
use crate::stan::subs::Sub;
use std::fmt::{self, Arguments, Display, Formatter, Write};

/// Characters of one string in a line.
const SHOWN_MAX: usize = 200;

/// A string as the log may have it: on one line, and of bounded length.
pub struct Shown<'a>(pub &'a str);

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut chars = self.0.chars();
        for char in chars.by_ref().take(SHOWN_MAX) {
            match char {
                '"' | '\'' => f.write_char(char)?,
                char => write!(f, "{}", char.escape_debug())?,
            }
        }
        match chars.as_str().len() {
            0 => Ok(()),
            left => write!(f, "... ({left} bytes more)"),
        }
    }
}

impl Engine {
    pub(super) fn debug(&self, line: Arguments<'_>) {
        if self.settings.debug {
            log::info!(target: "stan-debug", "STREAM: {line}");
        }
    }

    /// About a subscription; `more` is told the first message it gets.
    pub(super) fn tell_sub(
        &self,
        what: &str,
        index: ChannelIndex,
        state: &pb::SubState,
        more: impl FnOnce(Seq) -> String,
    ) {
        if !self.settings.debug {
            return;
        }
        let channel = self.channels[index].as_ref().map_or("", |one| &one.name);
        let (durable, queue) = (Shown(&state.durable_name), Shown(&state.queue_group));
        let (kind, name) = match (state.is_durable, state.queue_group.is_empty()) {
            (false, true) => ("", String::new()),
            (true, true) => ("durable ", format!(" durable={durable},")),
            (false, false) => ("queue ", format!(" queue={queue},")),
            (true, false) => ("durable queue ", format!(" queue={queue},")),
        };
        self.debug(format_args!(
            "[Client:{}] {what} {kind}subscription, subject={}, inbox={},{name} subid={}{}",
            Shown(&state.client_id),
            Shown(channel),
            Shown(&state.inbox),
            state.id,
            more(state.last_sent + 1)
        ));
    }

    pub(super) fn tell_refused_sub(&self, request: &pb::SubscriptionRequest, error: &str) {
        let client = Shown(&request.client_id);
        let subject = Shown(&request.subject);
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
                "STREAM: [Client:{client}] Invalid channel \"{subject}\" in subscription request from {from}"
            ),
            text::INVALID_DURABLE_NAME => log::error!(
                "STREAM: [Client:{client}] Invalid DurableName (\"{}\") for queue subscriber from {subject}",
                Shown(&request.durable_name)
            ),
            text::DURABLE_IN_USE => {
                log::error!(
                    "STREAM: [Client:{client}] Duplicate durable subscription registration"
                );
            }
            _ if !self.by_name.contains_key(&request.subject) => log::error!(
                "STREAM: Unable to create channel for subscription on \"{subject}\": {}",
                Shown(error)
            ),
            _ => log::error!(
                "STREAM: Unable to add subscription for {subject}: {}",
                Shown(error)
            ),
        }
    }

    /// Said before the request as a whole is told to be refused.
    pub(super) fn tell_not_stored(request: &pb::SubscriptionRequest, error: &str) {
        log::error!(
            "STREAM: Unable to store subscription [{}:{}] on [{}]: {}",
            Shown(&request.client_id),
            Shown(&request.inbox),
            Shown(&request.subject),
            Shown(error)
        );
    }

    pub(super) fn tell_refused_unsub(
        &self,
        request: &pb::UnsubscribeRequest,
        for_good: bool,
        error: &str,
    ) {
        let client = Shown(&request.client_id);
        let action = if for_good { "unsub" } else { "sub close" };
        let (subject, inbox) = (Shown(&request.subject), Shown(&request.inbox));
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
pub(super) fn tell_refused_publish(message: &Publish<'_>) {
    log::error!(
        "STREAM: Received invalid client publish message clientID:\"{}\" guid:\"{}\" subject:\"{}\"",
        Shown(message.client_id),
        Shown(&String::from_utf8_lossy(message.guid)),
        Shown(message.subject)
    );
}

pub(super) fn trace(line: Arguments<'_>) {
    log::info!(target: "stan-trace", "STREAM: {line}");
}

pub(super) fn trace_message(what: &str, sub: &Sub, channel: &str, seq: u64) {
    trace(format_args!(
        "[Client:{}] {what} subid={}, subject={}, seq={seq}",
        Shown(&sub.state.client_id),
        sub.id(),
        Shown(channel)
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_stay_on_one_line_and_short() {
        let shown = |text: &str| Shown(text).to_string();
        assert_eq!(shown("plain 'text' \"\u{fc}\""), "plain 'text' \"\u{fc}\"");
        assert_eq!(shown("a\n[FTL] \u{1b}[2J\\"), "a\\n[FTL] \\u{1b}[2J\\\\");
        assert_eq!(shown(&"\u{fc}".repeat(200)), "\u{fc}".repeat(200));
        let cut = format!("{}... (2 bytes more)", "x".repeat(200));
        assert_eq!(shown(&"x".repeat(202)), cut);
    }
}
