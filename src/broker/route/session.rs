//! What a route says.

use crate::broker::auth::{Shown, Verdict};
use crate::broker::client::{Client, Phase};
use crate::broker::deliver::Origin;
use crate::broker::effect::CloseReason;
use crate::broker::hold::Elsewhere;
use crate::broker::propagate::QUEUE_SID_PREFIX;
use crate::broker::subs::Care;
use crate::broker::{Broker, Slot};
use crate::subject::token;
use crate::util::go_json::go_text;
use crate::wire::connect::{Connect, masked};
use crate::wire::info::Info;
use crate::wire::parser::{Fault, Message, Padded, Parser, Sink, Stop};
use crate::wire::run::Run;
use crate::wire::{encode, errors};
use bytes::Bytes;

/// Bodies larger than our own limit are taken from other servers up to this size, in case theirs is
/// larger.
const PAYLOAD_BYTES_MAX: u64 = 64 << 20;
/// An INFO with the addresses of many servers is long.
const CONTROL_LINE_BYTES_MAX: usize = 64 << 10;

/// One read of a route, as the parser's sink. With `TRACE` what the route says goes to the log; without,
/// messages do not even ask.
pub(in crate::broker) struct RouteSession<'b, const TRACE: bool> {
    broker: &'b mut Broker,
    slot: Slot,
    messages: u64,
    bytes: u64,
}

impl<'b, const TRACE: bool> RouteSession<'b, TRACE> {
    /// How the read ended, and the messages in it with the bytes of their payloads.
    pub fn read(
        broker: &'b mut Broker,
        slot: Slot,
        parser: &mut Parser,
        input: &[u8],
    ) -> (Result<(), Fault>, u64, u64) {
        let mut session = Self {
            broker,
            slot,
            messages: 0,
            bytes: 0,
        };
        let result = parser.parse(input, &mut session);
        (result, session.messages, session.bytes)
    }

    fn client(&mut self) -> &mut Client {
        &mut self.broker.receivers.clients[self.slot as usize]
    }

    fn stop(&mut self, text: &str) -> Result<(), Stop> {
        self.broker.refuse(self.slot, text);
        Err(Stop)
    }

    fn trace(&mut self, line: std::fmt::Arguments<'_>) {
        if TRACE {
            log::trace!("{} - ->> [{line}]", self.client().label());
        }
    }

    fn origin(&self) -> Origin {
        Origin {
            no_echo: None,
            publisher: self.broker.publisher(self.slot),
            from_loop: None,
            hops: 0,
            elsewhere: Elsewhere::default(),
            from_route: true,
        }
    }

    /// Whether this connection is still to be read from.
    fn go_on(&mut self) -> Result<(), Stop> {
        match self.client().phase {
            Phase::Open => Ok(()),
            Phase::Closing => Err(Stop),
        }
    }
}

impl<const TRACE: bool> Sink for RouteSession<'_, TRACE> {
    #[inline]
    fn looks_ahead(&self) -> bool {
        self.broker.looks_ahead()
    }

    fn look_ahead(&self, subjects: &[Padded<'_>]) {
        self.broker.look_ahead(subjects);
    }

    fn connect_only(&self) -> bool {
        self.broker.receivers.clients[self.slot as usize].unauthorized
    }

    fn headers(&self) -> bool {
        true
    }

    fn payload_bytes_max(&self) -> u64 {
        self.broker
            .settings
            .payload_bytes_max
            .max(PAYLOAD_BYTES_MAX)
    }

    fn control_line_bytes_max(&self) -> usize {
        CONTROL_LINE_BYTES_MAX
    }

    fn connect(&mut self, json: &[u8]) -> Result<(), Stop> {
        self.trace(format_args!("CONNECT {}", masked(json)));
        let mut connect = Connect::default();
        if let Err(error) = connect.update(json) {
            self.broker.log_read_error(self.slot, &error);
            return self.stop(errors::PARSER_ERROR);
        }
        let verdict = self.broker.cluster().auth.judge(&connect, Shown::default());
        let client = self.client();
        client.connect = Some(Box::new(connect));
        match verdict {
            Verdict::Granted(_) => {
                client.unauthorized = false;
                self.broker.admit(self.slot)
            }
            Verdict::Denied => {
                self.broker.log_authorization_error(self.slot);
                self.stop(errors::AUTHORIZATION_VIOLATION)
            }
            Verdict::Verify { proof, permissions } => {
                client.answer_connect = true;
                self.broker.verify(self.slot, proof, permissions);
                Err(Stop)
            }
        }
    }

    fn info(&mut self, json: &[u8]) -> Result<(), Stop> {
        self.trace(format_args!("INFO {}", String::from_utf8_lossy(json)));
        let text = go_text(json);
        match serde_json::from_str::<Info>(&text) {
            Ok(info) => {
                self.broker.handle_route_info(self.slot, info);
                self.go_on()
            }
            Err(error) => {
                self.broker.log_read_error(self.slot, &error);
                self.stop(errors::PARSER_ERROR)
            }
        }
    }

    fn message(&mut self, message: &Message<'_>, owned: Option<Bytes>) -> Result<(), Stop> {
        self.messages += 1;
        self.bytes += message.body_bytes as u64;
        if TRACE {
            self.broker.trace_message(self.slot, message);
        }
        let origin = self.origin();
        self.broker.deliver_from_route(&origin, message, owned);
        self.go_on()
    }

    fn run(&mut self, run: &Run<'_>) -> Result<(), Stop> {
        if TRACE || run.sid.starts_with(QUEUE_SID_PREFIX) {
            return run
                .messages()
                .try_for_each(|message| self.message(&message, None));
        }
        self.messages += run.count() as u64;
        self.bytes += run.body_bytes as u64;
        let origin = self.origin();
        self.broker.deliver_run(&origin, run);
        self.go_on()
    }

    fn subscribe(&mut self, subject: &[u8], queue: Option<&[u8]>, sid: &[u8]) -> Result<(), Stop> {
        let lossy = String::from_utf8_lossy;
        let (shown, group) = (lossy(subject), lossy(queue.unwrap_or_default()));
        self.trace(format_args!("SUB {shown} {group} {}", lossy(sid)));
        let known = self.broker.find_subscription(self.slot, sid).is_some();
        if !known && token::is_valid_subscription(subject) {
            self.broker
                .add_subscription(self.slot, subject, queue, sid, Care::Nothing);
        }
        Ok(())
    }

    fn unsubscribe(&mut self, sid: &[u8], max: Option<u64>) -> Result<(), Stop> {
        let shown = String::from_utf8_lossy(sid);
        match max {
            Some(max) => self.trace(format_args!("UNSUB {shown} {max}")),
            None => self.trace(format_args!("UNSUB {shown}")),
        }
        if let Some(id) = self.broker.find_subscription(self.slot, sid) {
            match max {
                Some(max) => self.broker.limit_subscription(self.slot, id, max),
                None => self.broker.remove_subscription(self.slot, id),
            }
        }
        Ok(())
    }

    fn ping(&mut self) -> Result<(), Stop> {
        self.trace(format_args!("PING"));
        let route = self.broker.route(self.slot);
        if route.silent_loops > 0 {
            route.pongs_owed = route.pongs_owed.saturating_add(1);
            return Ok(());
        }
        self.broker.append(self.slot, encode::PONG);
        // It is read from whatever waits for it, so this too counts.
        self.broker.bound_what_is_told(self.slot);
        self.go_on()
    }

    fn pong(&mut self) -> Result<(), Stop> {
        self.trace(format_args!("PONG"));
        self.client().pings_out = 0;
        self.broker.route_has_taken_in(self.slot);
        self.go_on()
    }

    fn error(&mut self, text: &[u8]) -> Result<(), Stop> {
        let label = self.client().label();
        log::error!("{label} - Route Error {}", String::from_utf8_lossy(text));
        self.broker.close(self.slot, CloseReason::Silently);
        Err(Stop)
    }
}
