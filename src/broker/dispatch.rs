//! What each operation of a client does.

use super::auth::Verdict;
use super::client::Phase;
use super::deliver::Origin;
use super::effect::CloseReason;
use super::hold::Elsewhere;
use super::perms::Subscribing;
use super::route::RouteSession;
use super::subs::Care;
use super::{Broker, Slot};
use crate::subject::token;
use crate::util::go_json::go_text;
use crate::wire::connect::masked;
use crate::wire::parser::{Fault, Kind, Message, Padded, Parser, Sink, Stop};
use crate::wire::run::Run;
use crate::wire::{encode, errors};
use bytes::Bytes;
use std::time::Instant;

/// Publishes to subjects with this prefix are refused, with or without authorization.
const RESERVED_PREFIX: &[u8] = b"_SYS.";

impl Broker {
    /// The next bytes of a connection.
    pub fn handle_bytes(&mut self, slot: Slot, bytes: &[u8], now: Instant) {
        self.now = now;
        let client = &mut self.receivers.clients[slot as usize];
        if client.phase == Phase::Closing {
            return;
        }
        if client.verifying {
            // At most what was on its way when reading stopped.
            client.deferred.extend_from_slice(bytes);
            return;
        }
        let changes_before = self.pace.changes();
        let mut parser = std::mem::replace(&mut client.parser, Parser::new(client.kind));
        let (result, messages, payload_bytes) = match client.kind {
            Kind::Client => {
                let settings = &self.settings;
                // What a part of this process passes on for clients must not end its connection.
                let (payload_bytes_max, control_line_bytes_max) = match client.internal {
                    true => (u64::MAX, usize::MAX),
                    false => (settings.payload_bytes_max, settings.control_line_bytes_max),
                };
                let mut session = Session {
                    payload_bytes_max,
                    control_line_bytes_max,
                    trace: log::log_enabled!(log::Level::Trace),
                    slot,
                    messages: 0,
                    bytes: 0,
                    broker: self,
                };
                let result = parser.parse(bytes, &mut session);
                (result, session.messages, session.bytes)
            }
            Kind::Route => match log::log_enabled!(log::Level::Trace) {
                true => RouteSession::<true>::read(self, slot, &mut parser, bytes),
                false => RouteSession::<false>::read(self, slot, &mut parser, bytes),
            },
        };
        self.totals.traffic.messages_in += messages;
        self.totals.traffic.bytes_in += payload_bytes;
        let high_water_bytes = self.receivers.limits(slot).high_water_bytes;
        let client = &mut self.receivers.clients[slot as usize];
        if client.verifying {
            client
                .deferred
                .extend_from_slice(&bytes[parser.stopped_at()..]);
        }
        client.parser = parser;
        client.traffic.messages_in += messages;
        client.traffic.bytes_in += payload_bytes;
        if messages > 0 {
            client.active_at = Some(now);
        }
        client.choked = client.own_lines > high_water_bytes
            && client.outbox.pending() > high_water_bytes
            && !client.internal
            && !client.is_registered_route();
        if self.pace.changes() != changes_before {
            self.pace_client(slot, changes_before);
        }
        if let Err(fault) = result {
            self.handle_fault(slot, &fault);
        }
    }

    /// Texts, levels and order of the lines in the log are gnatsd's.
    #[cold]
    fn handle_fault(&mut self, slot: Slot, fault: &Fault) {
        let label = self.receivers.clients[slot as usize].label();
        if let Fault::BadArguments { verb, line, .. } | Fault::PayloadTooBig { verb, line, .. } =
            fault
        {
            let line = String::from_utf8_lossy(line);
            log::trace!("{label} - ->> [{} {line}]", verb.name());
        }
        match fault {
            Fault::Stopped => {} // whoever stopped it has said why
            Fault::UnknownOperation { .. } => {
                self.append(
                    slot,
                    encode::error_line(errors::UNKNOWN_PROTOCOL_OPERATION).as_bytes(),
                );
                self.log_read_error(slot, fault);
                self.refuse(slot, errors::PARSER_ERROR);
            }
            Fault::BadArguments { .. } => {
                self.log_read_error(slot, fault);
                self.refuse(slot, errors::PARSER_ERROR);
            }
            Fault::ControlLineTooLong => {
                self.refuse(slot, errors::CONTROL_LINE_EXCEEDED);
                self.log_read_error(slot, fault);
            }
            Fault::PayloadTooBig { .. } => {
                log::error!("{label} - {fault}");
                self.refuse(slot, errors::PAYLOAD_VIOLATION);
            }
            Fault::ConnectMissing => {
                self.log_authorization_error(slot);
                self.refuse(slot, errors::AUTHORIZATION_VIOLATION);
            }
            Fault::HeadersNotSupported => {
                self.log_read_error(slot, fault);
                self.close(slot, CloseReason::Silently);
            }
        }
    }

    /// A message of a client or a route.
    #[cold]
    pub(super) fn trace_message(&self, slot: Slot, message: &Message<'_>) {
        let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let client = &self.receivers.clients[slot as usize];
        let (label, headers) = (client.label(), message.header_bytes.is_some());
        let (verb, sid) = match client.kind {
            Kind::Client if headers => ("HPUB", String::new()),
            Kind::Client => ("PUB", String::new()),
            Kind::Route if headers => ("HMSG", lossy(message.sid) + " "),
            Kind::Route => ("MSG", lossy(message.sid) + " "),
        };
        let tail = message.tail.bytes();
        let arguments = lossy(&tail[..tail.len() - message.body().len() - 2]);
        let subject = lossy(message.subject.bytes());
        log::trace!("{label} - ->> [{verb} {subject} {sid}{arguments}]");
        let payload = &message.body()[..message.body_bytes];
        match self
            .settings
            .traced_bytes_max
            .and_then(|max| payload.get(..max))
        {
            Some(start) => log::trace!("{label} - ->> MSG_PAYLOAD: [{}...]", lossy(start)),
            None => log::trace!("{label} - ->> MSG_PAYLOAD: [{}]", lossy(payload)),
        }
    }

    /// What a connection said that ends it.
    #[cold]
    pub(super) fn log_read_error(&self, slot: Slot, what: &dyn std::fmt::Display) {
        let label = self.receivers.clients[slot as usize].label();
        log::error!("{label} - Error reading from client: {what}");
    }
}

/// One read of one connection, as the parser's sink.
struct Session<'b> {
    broker: &'b mut Broker,
    payload_bytes_max: u64,
    control_line_bytes_max: usize,
    slot: Slot,
    trace: bool,
    /// Added to the counters at the end of the read.
    messages: u64,
    bytes: u64,
}

impl Session<'_> {
    #[inline(always)]
    fn client(&mut self) -> &mut super::client::Client {
        &mut self.broker.receivers.clients[self.slot as usize]
    }

    #[inline(always)]
    fn origin(&self) -> Origin {
        let client = &self.broker.receivers.clients[self.slot as usize];
        Origin {
            no_echo: (!client.echo).then_some(self.slot),
            publisher: super::client::PublisherRef {
                slot: self.slot,
                cid: client.cid,
                carrier: client.internal,
                no_echo: !client.echo,
            },
            from_loop: None,
            hops: 0,
            elsewhere: Elsewhere::default(),
            from_route: false,
        }
    }

    /// Whether a message to this subject goes on without further ado, as nearly all do; otherwise
    /// `check_publish` looks what is the matter.
    #[inline(always)]
    fn is_plain_publish(&self, subject: &[u8]) -> bool {
        let client = &self.broker.receivers.clients[self.slot as usize];
        !subject.starts_with(RESERVED_PREFIX)
            && (!client.pedantic || token::is_valid_literal(subject))
            && client
                .permissions
                .as_ref()
                .is_none_or(|p| p.may_publish(subject))
    }

    fn ok_if_verbose(&mut self) {
        if self.client().verbose {
            self.broker.append(self.slot, encode::OK);
        }
    }

    /// An error the connection survives.
    fn complain(&mut self, text: &str) {
        self.broker
            .append(self.slot, encode::error_line(text).as_bytes());
    }

    #[cold]
    fn trace_in(&mut self, line: std::fmt::Arguments<'_>) {
        let label = self.client().label();
        log::trace!("{label} - ->> [{line}]");
    }

    #[cold]
    fn refuse_publish(&mut self, subject: &[u8]) {
        let client = self.client();
        let user = client
            .connect
            .as_ref()
            .map_or(String::new(), |connect| connect.user.to_string());
        let label = client.label();
        self.complain(&errors::publish_violation(subject));
        log::error!(
            "{label} - Publish Violation - User {user:?}, Subject {}",
            errors::quoted(subject)
        );
    }

    /// What is not a plain publish: says what is wrong, if something is; false when the message must not be
    /// delivered.
    #[cold]
    fn check_publish(&mut self, subject: &[u8]) -> bool {
        let now = self.broker.now;
        // An invalid subject is told first, and whether it is permitted all the same.
        let invalid = self.client().pedantic && !token::is_valid_literal(subject);
        if invalid {
            self.complain(errors::INVALID_SUBJECT);
        }
        let client = self.client();
        let forbidden = subject.starts_with(RESERVED_PREFIX)
            || client
                .permissions
                .as_ref()
                .is_some_and(|p| !p.may_publish(subject));
        let answer = |answers: &mut Box<super::perms::Answers>| answers.take(subject, now);
        if forbidden && !client.answers.as_mut().is_some_and(answer) {
            self.refuse_publish(subject);
            return false;
        }
        if invalid {
            self.ok_if_verbose();
        }
        !invalid
    }

    fn stop(&mut self, text: &str) -> Result<(), Stop> {
        self.broker.refuse(self.slot, text);
        Err(Stop)
    }
}

impl Sink for Session<'_> {
    #[inline]
    fn looks_ahead(&self) -> bool {
        self.broker.looks_ahead()
    }

    fn look_ahead(&self, subjects: &[Padded<'_>]) {
        self.broker.look_ahead(subjects);
    }

    #[inline(always)]
    fn connect_only(&self) -> bool {
        self.broker.receivers.clients[self.slot as usize].unauthorized
    }

    #[inline(always)]
    fn headers(&self) -> bool {
        self.broker.receivers.clients[self.slot as usize].headers
    }

    #[inline(always)]
    fn payload_bytes_max(&self) -> u64 {
        self.payload_bytes_max
    }

    fn control_line_bytes_max(&self) -> usize {
        self.control_line_bytes_max
    }

    #[inline(always)]
    fn message(&mut self, message: &Message<'_>, owned: Option<Bytes>) -> Result<(), Stop> {
        self.messages += 1;
        self.bytes += message.body_bytes as u64;
        if self.trace {
            self.broker.trace_message(self.slot, message);
        }
        let slot = self.slot;
        let subject = message.subject.bytes();
        if !self.is_plain_publish(subject) && !self.check_publish(subject) {
            return Ok(());
        }
        let origin = self.origin();
        let client = &mut self.broker.receivers.clients[slot as usize];
        let wants_answer = client.no_responders && message.reply_bytes > 0;
        if client.verbose {
            self.broker.append(slot, encode::OK);
        }
        if !self.broker.untold.is_empty() {
            self.broker.tell_untold();
        }
        if !self.broker.catching_up.is_empty()
            && let Some(reply) = message.reply()
        {
            self.broker.tell_reply_subscriptions(reply);
        }
        let receivers = self.broker.deliver(&origin, message, owned);
        if receivers == 0
            && wants_answer
            && let Some(reply) = message.reply()
        {
            self.broker.answer_no_responders(slot, reply);
        }
        // A slow consumer may be the publisher itself.
        match self.broker.receivers.clients[slot as usize].phase {
            Phase::Open => Ok(()),
            Phase::Closing => Err(Stop),
        }
    }

    #[inline]
    fn run(&mut self, run: &Run<'_>) -> Result<(), Stop> {
        let client = &self.broker.receivers.clients[self.slot as usize];
        let one_by_one = self.trace
            || client.verbose
            || !self.is_plain_publish(run.subject.bytes())
            || (run.has_replies() && (client.no_responders || !self.broker.catching_up.is_empty()));
        if one_by_one {
            return run
                .messages()
                .try_for_each(|message| self.message(&message, None));
        }
        self.messages += run.count() as u64;
        self.bytes += run.body_bytes as u64;
        if !self.broker.untold.is_empty() {
            self.broker.tell_untold();
        }
        let origin = self.origin();
        self.broker.deliver_run(&origin, run);
        match self.client().phase {
            Phase::Open => Ok(()),
            Phase::Closing => Err(Stop),
        }
    }

    fn connect(&mut self, json: &[u8]) -> Result<(), Stop> {
        if self.trace {
            self.trace_in(format_args!("CONNECT {}", masked(json)));
        }
        let now = self.broker.now;
        let headers = self.broker.settings.info.headers;
        let client = self.client();
        client.active_at = Some(now);
        let mut connect = client.connect.take().unwrap_or_default();
        if let Err(error) = connect.update(json) {
            self.broker.log_read_error(self.slot, &error);
            return self.stop(errors::PARSER_ERROR);
        }
        let connect = &*client.connect.insert(connect);
        client.verbose = connect.verbose;
        client.pedantic = connect.pedantic;
        client.echo = connect.echo;
        client.headers = connect.headers && headers;
        client.no_responders = connect.no_responders && client.headers;
        let nonce = self.broker.nonce(self.slot);
        let client = &self.broker.receivers.clients[self.slot as usize];
        let judged = match client.internal {
            true => Some(Verdict::Granted(None)),
            false => client.connect.as_deref().map(|connect| {
                self.broker
                    .settings
                    .auth
                    .judge(connect, client.shown(nonce))
            }),
        };
        match judged.expect("CONNECT was read above") {
            Verdict::Granted(permissions) => {
                self.client().unauthorized = false;
                self.broker.take_over_permissions(self.slot, permissions);
                self.broker.admit(self.slot)
            }
            Verdict::Denied => {
                self.broker.log_authorization_error(self.slot);
                self.stop(errors::AUTHORIZATION_VIOLATION)
            }
            Verdict::Verify { proof, permissions } => {
                self.client().answer_connect = true;
                self.broker.verify(self.slot, proof, permissions);
                Err(Stop)
            }
        }
    }

    fn info(&mut self, json: &[u8]) -> Result<(), Stop> {
        if self.trace {
            self.trace_in(format_args!("INFO {}", String::from_utf8_lossy(json)));
        }
        // Clients have nothing to say here, but it must be JSON.
        match serde_json::from_str::<crate::wire::info::Info>(&go_text(json)) {
            Ok(_) => Ok(()),
            Err(error) => {
                self.broker.log_read_error(self.slot, &error);
                self.stop(errors::PARSER_ERROR)
            }
        }
    }

    fn subscribe(&mut self, subject: &[u8], queue: Option<&[u8]>, sid: &[u8]) -> Result<(), Stop> {
        if self.trace {
            let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let queue = queue.map_or(String::new(), |queue| lossy(queue) + " ");
            self.trace_in(format_args!("SUB {} {queue}{}", lossy(subject), lossy(sid)));
        }
        let now = self.broker.now;
        self.broker.pace.note_change();
        // Limits are for those outside.
        let limited = !self.client().internal;
        let settings = &self.broker.settings;
        let max = settings.subscriptions_max.filter(|_| limited);
        let tokens_max = settings.subscription_tokens_max.filter(|_| limited);
        let client = self.client();
        client.active_at = Some(now);
        let care = match client
            .permissions
            .as_ref()
            .map(|p| p.may_subscribe(subject, queue))
        {
            None | Some(Subscribing::Allowed) => Care::Nothing,
            Some(Subscribing::Filtered) => Care::Filtered,
            Some(Subscribing::Denied) => {
                let user = client
                    .connect
                    .as_ref()
                    .map_or(String::new(), |connect| connect.user.to_string());
                let label = client.label();
                // Clients of later servers want to know which of their subscriptions it is.
                let modern = client.connect.as_ref().is_some_and(|c| c.headers);
                let text = errors::subscription_violation(subject, queue.filter(|_| modern));
                self.complain(&text);
                log::error!(
                    "{label} - Subscription Violation - User {user:?}, Subject {}, SID {}",
                    errors::quoted(subject),
                    String::from_utf8_lossy(sid)
                );
                return Ok(());
            }
        };
        if !token::is_valid_subscription(subject) {
            self.complain(errors::INVALID_SUBJECT);
            return Ok(());
        }
        if tokens_max.is_some_and(|max| subject.split(|c| *c == b'.').count() > max) {
            self.complain(&errors::too_many_tokens(subject));
            return Ok(());
        }
        if max.is_some_and(|max| client.subscriptions.len() >= max) {
            self.complain(errors::SUBSCRIPTIONS_EXCEEDED);
            return Ok(());
        }
        // The first one with a sid stays; a second is acknowledged and ignored.
        if self.broker.find_subscription(self.slot, sid).is_none() {
            self.broker
                .add_subscription(self.slot, subject, queue, sid, care);
        }
        self.ok_if_verbose();
        Ok(())
    }

    fn unsubscribe(&mut self, sid: &[u8], max: Option<u64>) -> Result<(), Stop> {
        if self.trace {
            let max = max.map_or(String::new(), |max| format!(" {max}"));
            self.trace_in(format_args!("UNSUB {}{max}", String::from_utf8_lossy(sid)));
        }
        let now = self.broker.now;
        self.broker.pace.note_change();
        self.client().active_at = Some(now);
        if let Some(id) = self.broker.find_subscription(self.slot, sid) {
            match max {
                Some(max) => self.broker.limit_subscription(self.slot, id, max),
                None => self.broker.remove_subscription(self.slot, id),
            }
        }
        self.ok_if_verbose();
        Ok(())
    }

    fn ping(&mut self) -> Result<(), Stop> {
        if self.trace {
            self.trace_in(format_args!("PING"));
        }
        self.broker.append(self.slot, encode::PONG);
        let client = self.client();
        if client.connect.is_some() && !client.first_pong_sent {
            client.first_pong_sent = true;
            // What changed before this PONG is told right behind it.
            if client.understands_info() && client.info_is_old {
                client.info_is_old = false;
                let line = self.broker.info_line(self.slot);
                self.broker.append(self.slot, line.as_bytes());
            }
        }
        Ok(())
    }

    fn pong(&mut self) -> Result<(), Stop> {
        if self.trace {
            self.trace_in(format_args!("PONG"));
        }
        self.client().pings_out = 0;
        Ok(())
    }

    fn error(&mut self, text: &[u8]) -> Result<(), Stop> {
        let label = self.client().label();
        log::error!("{label} - Client Error {}", String::from_utf8_lossy(text));
        self.broker.close(self.slot, CloseReason::Silently);
        Err(Stop)
    }
}
