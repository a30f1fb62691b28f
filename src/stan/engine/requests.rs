//! Requests of clients: connect, subscribe, unsubscribe, close, ping; and their heartbeats.

use super::Engine;
use super::answers::{About, Refusal};
use super::timers::Timer;
use crate::stan::channel::durable_key;
use crate::stan::clients::{Challenger, ChannelIndex};
use crate::stan::names::{is_valid_channel, is_valid_client};
use crate::stan::outlet::Outlet;
use crate::stan::pb::{self, StartPosition};
use crate::stan::store::Seq;
use crate::stan::subs::{SECOND, Sub};
use bytes::Bytes;
use prost::Message;

/// How long a client has to show that it is there when another one wants its id.
const PROBE_TIME: i64 = SECOND / 2;
/// Marks the subject a probe is answered on.
const PROBE_MARK: char = 'p';

/// Error texts of the original, which client libraries show.
pub(super) mod text {
    pub const INVALID_CONNECT: &str = "stan: invalid connection request";
    pub const INVALID_CLIENT_ID: &str =
        "stan: invalid clientID: only alphanumeric and `-` or `_` characters allowed";
    pub const ID_IN_USE: &str = "stan: clientID already registered";
    pub const INVALID_CLOSE: &str = "stan: invalid close request";
    pub const UNKNOWN_CLIENT: &str = "stan: unknown clientID";
    pub const INVALID_SUBSCRIBE: &str = "stan: invalid subscription request";
    pub const CLIENT_MISSING: &str = "stan: clientID missing";
    pub const INVALID_ACK_WAIT: &str = "stan: invalid ack wait time, should be >= 1s";
    pub const INVALID_IN_FLIGHT: &str = "stan: invalid MaxInflight, should be >= 1";
    pub const INVALID_START: &str = "stan: invalid start position";
    pub const INVALID_SUBJECT: &str = "stan: invalid subject";
    pub const INVALID_DURABLE_NAME: &str =
        "stan: durable name of a durable queue subscriber can't contain the character ':'";
    pub const DURABLE_IN_USE: &str = "stan: duplicate durable registration";
    pub const TOO_MANY_SUBS: &str = "too many subscriptions per channel";
    pub const INVALID_UNSUBSCRIBE: &str = "stan: invalid unsubscribe request";
    pub const INVALID_SUB: &str = "stan: invalid subscription";
    pub const REPLACED: &str = "client has been replaced or is no longer registered";
}

fn answer(reply: Option<&str>, response: &impl Message, out: &mut dyn Outlet) {
    if let Some(reply) = reply {
        out.publish(reply, None, &response.encode_to_vec());
    }
}

fn sub_error(error: &str) -> pb::SubscriptionResponse {
    pb::SubscriptionResponse {
        error: error.to_owned(),
        ..Default::default()
    }
}

fn sub_refusal(error: &str) -> Vec<u8> {
    sub_error(error).encode_to_vec()
}

impl Engine {
    // ---- connect and close

    pub(super) fn handle_connect(
        &mut self,
        payload: Bytes,
        reply: Option<&str>,
        out: &mut dyn Outlet,
    ) {
        let refuse = |error: &str, out: &mut dyn Outlet| {
            let response = pb::ConnectResponse {
                error: error.to_owned(),
                ..Default::default()
            };
            answer(reply, &response, out);
        };
        let request = match pb::ConnectRequest::decode(payload) {
            Ok(request) if !request.heartbeat_inbox.is_empty() => request,
            _ => {
                log::error!("STREAM: [Client:?] Invalid conn request");
                return refuse(text::INVALID_CONNECT, out);
            }
        };
        if !is_valid_client(&request.client_id) {
            log::error!(
                "STREAM: [Client:{}] Invalid ClientID, only alphanumeric and `-` or `_` characters allowed",
                request.client_id.escape_debug()
            );
            return refuse(text::INVALID_CLIENT_ID, out);
        }
        let info = pb::ClientInfo {
            id: request.client_id,
            heartbeat_inbox: request.heartbeat_inbox,
            conn_id: request.conn_id,
            protocol: request.protocol,
            ping_interval: request.ping_interval,
            ping_max_out: request.ping_max_out,
        };
        let now = self.now;
        let answers = &self.answers;
        let Some(known) = self.clients.get_mut(&info.id) else {
            return self.register(info, reply.unwrap_or(""), out);
        };
        if known.challenger.is_some() {
            return refuse(text::ID_IN_USE, out);
        }
        // Is the one who has the id still there?
        let serial = known.serial;
        known.challenger = Some(Challenger {
            info,
            reply: reply.unwrap_or("").into(),
            until: now + PROBE_TIME,
        });
        let probe = format!("{answers}.{PROBE_MARK}{serial}");
        out.publish(&known.info.heartbeat_inbox, Some(&probe), b"");
        self.timers.push(now + PROBE_TIME, Timer::ProbeOver(serial));
    }

    fn register(&mut self, info: pb::ClientInfo, reply: &str, out: &mut dyn Outlet) {
        let (id, inbox, protocol) = (info.id.clone(), info.heartbeat_inbox.clone(), info.protocol);
        let mut response = pb::ConnectResponse {
            pub_prefix: self.info.publish.clone(),
            sub_requests: self.info.subscribe.clone(),
            unsub_requests: self.info.unsubscribe.clone(),
            close_requests: self.info.close.clone(),
            sub_close_requests: self.info.sub_close.clone(),
            protocol: 1,
            ..Default::default()
        };
        if protocol >= 1 {
            response.ping_requests = self.ping_subject.clone();
            response.ping_interval = info.ping_interval;
            response.ping_max_out = info.ping_max_out;
        }
        if let Err(error) = self.store.add_client(&info) {
            log::error!("STREAM: {error}");
            response = pb::ConnectResponse {
                error: error.to_string(),
                ..Default::default()
            };
        } else {
            let serial = self.clients.insert(info);
            let at = self.now + self.settings.heartbeat_interval;
            self.plan_heartbeat(serial, at);
            self.debug(format_args!("[Client:{id}] Connected (Inbox={inbox})"));
        }
        answer(
            Some(reply).filter(|reply| !reply.is_empty()),
            &response,
            out,
        );
    }

    pub(super) fn handle_close(
        &mut self,
        payload: Bytes,
        reply: Option<&str>,
        out: &mut dyn Outlet,
    ) {
        let error = match pb::CloseRequest::decode(payload) {
            Err(_) => {
                let subject = &self.info.close;
                log::error!("STREAM: Received invalid close request, subject={subject}");
                text::INVALID_CLOSE
            }
            Ok(request) if self.close_client(&request.client_id, out) => "",
            Ok(request) => {
                let client = request.client_id;
                log::error!("STREAM: Unknown client {client:?} in close request");
                text::UNKNOWN_CLIENT
            }
        };
        let response = pb::CloseResponse {
            error: error.to_owned(),
        };
        let refusal: Option<Refusal> = error.is_empty().then_some(|error| {
            let error = error.to_owned();
            pb::CloseResponse { error }.encode_to_vec()
        });
        self.answer_durably(reply, response.encode_to_vec(), refusal, None, out);
    }

    /// Ends everything a client has; false when there is no such client.
    fn close_client(&mut self, id: &str, out: &mut dyn Outlet) -> bool {
        let Some(client) = self.clients.get(id) else {
            return false;
        };
        for (index, sub) in client.subs.clone() {
            self.end_sub(index, sub, false, out);
        }
        let Some(client) = self.clients.remove(id) else {
            return false;
        };
        let result = self.store.delete_client(id);
        self.log_error(result);
        let inbox = client.info.heartbeat_inbox;
        self.debug(format_args!("[Client:{id}] Closed (Inbox={inbox})"));
        // Whoever waits for the id need not wait any longer.
        if let Some(challenger) = client.challenger {
            self.register(challenger.info, &challenger.reply, out);
        }
        true
    }

    pub(super) fn handle_ping(
        &mut self,
        payload: Bytes,
        reply: Option<&str>,
        out: &mut dyn Outlet,
    ) {
        let Ok(ping) = pb::Ping::decode(payload) else {
            return;
        };
        let Some(reply) = reply.filter(|_| !ping.conn_id.is_empty()) else {
            return;
        };
        if let Some(client) = self.clients.with_connection(&ping.conn_id) {
            // One that was thought gone is there: it need not wait for its next heartbeat to be healthy.
            let (serial, ask) = (client.serial, client.failures > 0 && !client.beat_out);
            out.publish(reply, None, b"");
            if ask {
                self.send_heartbeat(serial, out);
            }
            return;
        }
        let response = pb::PingResponse {
            error: text::REPLACED.to_owned(),
        };
        answer(Some(reply), &response, out);
    }

    // ---- heartbeats

    pub(super) fn plan_heartbeat(&mut self, serial: u64, at: i64) {
        if let Some(client) = self.clients.with_serial(serial) {
            client.beat_at = at;
            self.timers.push(at, Timer::Heartbeat(serial));
        }
    }

    pub(super) fn handle_heartbeat(&mut self, serial: u64, at: i64, out: &mut dyn Outlet) {
        let client = self.clients.with_serial(serial);
        if client.is_some_and(|client| client.beat_at == at && !client.beat_out) {
            self.send_heartbeat(serial, out);
        }
    }

    fn send_heartbeat(&mut self, serial: u64, out: &mut dyn Outlet) {
        let at = self.now + self.settings.heartbeat_timeout;
        let subject = format!("{}.{serial}", self.answers);
        let Some(client) = self.clients.with_serial(serial) else {
            return;
        };
        client.beat_out = true;
        client.beat_over_at = at;
        out.publish(&client.info.heartbeat_inbox, Some(&subject), b"");
        self.timers.push(at, Timer::HeartbeatOver(serial));
    }

    pub(super) fn heartbeat_over(&mut self, serial: u64, at: i64, out: &mut dyn Outlet) {
        let max = self.settings.heartbeat_failures;
        let next = self.now + self.settings.heartbeat_interval;
        let client = self.clients.with_serial(serial);
        let Some(client) = client.filter(|one| one.beat_out && one.beat_over_at == at) else {
            return;
        };
        client.beat_out = false;
        client.failures += 1;
        if client.failures > max {
            let id = client.info.id.clone();
            self.debug(format_args!("[Client:{id}] Timed out on heartbeats"));
            self.close_client(&id, out);
            return;
        }
        self.plan_heartbeat(serial, next);
    }

    /// Any answer will do; the subject says to what.
    pub(super) fn handle_answer(&mut self, subject: &str, out: &mut dyn Outlet) {
        let Some(token) = subject.rsplit('.').next() else {
            return;
        };
        let (probe, digits) = match token.strip_prefix(PROBE_MARK) {
            Some(digits) => (true, digits),
            None => (false, token),
        };
        let next = self.now + self.settings.heartbeat_interval;
        let Ok(serial) = digits.parse() else {
            return;
        };
        let Some(client) = self.clients.with_serial(serial) else {
            return;
        };
        client.failures = 0;
        if probe {
            if let Some(challenger) = client.challenger.take() {
                let id = client.info.id.clone();
                self.debug(format_args!(
                    "[Client:{id}] Connect failed; already connected"
                ));
                let response = pb::ConnectResponse {
                    error: text::ID_IN_USE.to_owned(),
                    ..Default::default()
                };
                answer(Some(&challenger.reply), &response, out);
            }
        } else if std::mem::take(&mut client.beat_out) {
            self.plan_heartbeat(serial, next);
        }
    }

    pub(super) fn probe_over(&mut self, serial: u64, at: i64, out: &mut dyn Outlet) {
        let Some(client) = self.clients.with_serial(serial) else {
            return;
        };
        // The timer may be of an earlier one, which was answered.
        let Some(challenger) = client.challenger.take_if(|one| one.until == at) else {
            return;
        };
        let id = client.info.id.clone();
        self.close_client(&id, out);
        let inbox = &challenger.info.heartbeat_inbox;
        self.debug(format_args!(
            "[Client:{id}] Replaced old client (Inbox={inbox})"
        ));
        self.register(challenger.info, &challenger.reply, out);
    }

    // ---- subscribe

    pub(super) fn handle_subscribe(
        &mut self,
        payload: Bytes,
        reply: Option<&str>,
        out: &mut dyn Outlet,
    ) {
        let request = match pb::SubscriptionRequest::decode(payload) {
            Ok(request) => request,
            Err(error) => {
                let from = &self.info.subscribe;
                log::error!("STREAM: Invalid Subscription request from {from}: {error}");
                return answer(reply, &sub_error(text::INVALID_SUBSCRIBE), out);
            }
        };
        if let Err(error) = self.subscribe(&request, reply, out) {
            self.tell_refused_sub(&request, &error);
            answer(reply, &sub_error(&error), out);
        }
    }

    /// The checks of a request, in the original's order.
    fn check(request: &pb::SubscriptionRequest) -> Result<StartPosition, &'static str> {
        if request.client_id.is_empty() {
            return Err(text::CLIENT_MISSING);
        }
        if request.ack_wait_seconds <= 0 {
            return Err(text::INVALID_ACK_WAIT);
        }
        if request.max_in_flight <= 0 {
            return Err(text::INVALID_IN_FLIGHT);
        }
        let start = StartPosition::from_number(request.start_position);
        let start = start.ok_or(text::INVALID_START)?;
        if !is_valid_channel(&request.subject) {
            return Err(text::INVALID_SUBJECT);
        }
        Ok(start)
    }

    fn subscribe(
        &mut self,
        request: &pb::SubscriptionRequest,
        reply: Option<&str>,
        out: &mut dyn Outlet,
    ) -> Result<(), String> {
        let start = Self::check(request)?;
        let index = self.channel_named(&request.subject)?;
        let durable = !request.durable_name.is_empty();
        let grouped = !request.queue_group.is_empty();
        if grouped && durable && request.durable_name.contains(':') {
            return Err(text::INVALID_DURABLE_NAME.into());
        }
        let name = &self.channel(index).name;
        let key = durable_key(&request.client_id, name, &request.durable_name);
        let mut offline = None;
        if durable && !grouped {
            let channel = self.channel(index);
            if let Some(id) = channel.durables.get(&key).copied() {
                let active = channel.subs.get(&id).is_some_and(|sub| sub.active);
                if active && !self.settings.replace_durable {
                    return Err(text::DURABLE_IN_USE.into());
                }
                if active {
                    self.end_sub(index, id, false, out);
                }
                offline = Some(id);
            }
        }
        if self.clients.get(&request.client_id).is_none() {
            return Err(format!("can't find clientID: {}", request.client_id));
        }
        let ack_inbox = format!(
            "{}.{}.{}",
            self.info.ack_subs,
            request.subject,
            self.random.id()
        );
        let group = match (grouped, durable) {
            (true, true) => format!("{}:{}", request.durable_name, request.queue_group),
            _ => request.queue_group.clone(),
        };
        if grouped && let Some(queue) = self.channel(index).queues.get(&group) {
            offline = queue.shadow;
        }
        let state = pb::SubState {
            client_id: request.client_id.clone(),
            inbox: request.inbox.clone(),
            ack_inbox: ack_inbox.clone(),
            max_in_flight: request.max_in_flight,
            ack_wait_seconds: request.ack_wait_seconds,
            is_closed: false,
            ..Default::default()
        };
        match offline {
            Some(id) => self.resume(index, id, state, reply, out),
            None => {
                let durable_name = if grouped {
                    String::new()
                } else {
                    request.durable_name.clone()
                };
                let state = pb::SubState {
                    queue_group: group,
                    durable_name,
                    is_durable: durable,
                    ..state
                };
                self.add_sub(index, state, start, request, reply, out)
            }
        }
    }

    /// A subscription that was not there before.
    fn add_sub(
        &mut self,
        index: ChannelIndex,
        mut state: pb::SubState,
        start: StartPosition,
        request: &pb::SubscriptionRequest,
        reply: Option<&str>,
        out: &mut dyn Outlet,
    ) -> Result<(), String> {
        let channel = self.channel(index);
        let (store, count) = (channel.store, channel.subs.len() as u64);
        let max = self.store.limits(store).subscriptions;
        if max > 0 && count >= max {
            return Err(text::TOO_MANY_SUBS.into());
        }
        let group = self.channel(index).queues.get(&state.queue_group);
        let group = group.filter(|_| !state.queue_group.is_empty());
        let stands = group.map(|group| group.last_sent);
        let group = stands.is_some();
        state.last_sent = match stands {
            // Where the group stands counts, not what the newcomer asks for.
            Some(last_sent) => last_sent,
            None => self.start_at(index, start, request),
        };
        let channel = self.channel(index);
        state.id = channel.new_sub_id();
        self.store
            .add_sub(store, &state)
            .map_err(|error| error.to_string())?;
        self.mark_dirty(index);
        let response = pb::SubscriptionResponse {
            ack_inbox: state.ack_inbox.clone(),
            ..Default::default()
        };
        let (id, grouped) = (state.id, state.queue_group.clone());
        let sending = match group {
            true => "Added member to",
            false => "Started new",
        };
        self.tell_sub(sending, index, &state, |actual| match (group, start) {
            (true, _) => String::new(),
            (_, StartPosition::NewOnly) => format!(", sending new-only, seq={actual}"),
            (_, StartPosition::LastReceived) => format!(", sending last message, seq={actual}"),
            (_, StartPosition::TimeDeltaStart) => format!(", sending from time, seq={actual}"),
            (_, StartPosition::SequenceStart) => format!(
                ", sending from sequence, asked_seq={} actual_seq={actual}",
                request.start_sequence
            ),
            (_, StartPosition::First) => format!(", sending from beginning, seq={actual}"),
        });
        let durable = state.is_durable;
        self.place_sub(index, Sub::new(state, true));
        if durable {
            let about = About {
                index,
                id,
                resumed: false,
            };
            self.answer_durably(
                reply,
                response.encode_to_vec(),
                Some(sub_refusal),
                Some(about),
                out,
            );
            return Ok(());
        }
        answer(reply, &response, out);
        match grouped.is_empty() {
            true => self.deliver_to(index, id, out),
            false => self.deliver_to_group(index, &grouped, out),
        }
        Ok(())
    }

    /// A line of the debug log about a subscription, in the original's words.
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
        let (kind, name) = match (state.is_durable, state.queue_group.is_empty()) {
            (false, true) => ("", String::new()),
            (true, true) => ("durable ", format!(" durable={},", state.durable_name)),
            (false, false) => ("queue ", format!(" queue={},", state.queue_group)),
            (true, false) => ("durable queue ", format!(" queue={},", state.queue_group)),
        };
        self.debug(format_args!(
            "[Client:{}] {what} {kind}subscription, subject={channel}, inbox={},{name} subid={}{}",
            state.client_id,
            state.inbox,
            state.id,
            more(state.last_sent + 1)
        ));
    }

    /// The message before the first one to be sent.
    fn start_at(
        &mut self,
        index: ChannelIndex,
        start: StartPosition,
        request: &pb::SubscriptionRequest,
    ) -> Seq {
        let store = self.channel(index).store;
        let bounds = self.store.bounds(store);
        // A limit may have removed messages for new ones that are not durable yet, and may never be.
        let durable_to = self.channel(index).durable_to;
        let before_first = bounds.first.saturating_sub(1).min(durable_to);
        match start {
            _ if bounds.last == 0 => 0,
            StartPosition::NewOnly => bounds.last,
            StartPosition::LastReceived if bounds.messages == 0 => bounds.last,
            StartPosition::LastReceived => bounds.last - 1,
            StartPosition::First => before_first,
            StartPosition::SequenceStart => match request.start_sequence {
                asked if asked < bounds.first => before_first,
                asked if asked > bounds.last => bounds.last,
                asked => asked - 1,
            },
            StartPosition::TimeDeltaStart => {
                let since = self.now.saturating_sub(request.start_time_delta);
                if request.start_time_delta <= 0 {
                    return bounds.last;
                }
                match self.store.first_since(store, since) {
                    Ok(seq) => seq.saturating_sub(1).clamp(before_first, bounds.last),
                    Err(error) => {
                        log::error!("STREAM: {error}");
                        before_first
                    }
                }
            }
        }
    }

    /// A durable, or a durable group, whose place was kept: pending messages first, then new ones.
    fn resume(
        &mut self,
        index: ChannelIndex,
        id: u64,
        new: pb::SubState,
        reply: Option<&str>,
        out: &mut dyn Outlet,
    ) -> Result<(), String> {
        let channel = self.channel(index);
        let store = channel.store;
        let Some(sub) = channel.subs.get_mut(&id) else {
            return Err(text::INVALID_SUBSCRIBE.into());
        };
        let state = pb::SubState {
            id,
            queue_group: sub.state.queue_group.clone(),
            durable_name: sub.state.durable_name.clone(),
            last_sent: sub.state.last_sent,
            is_durable: true,
            ..new
        };
        self.store
            .update_sub(store, &state)
            .map_err(|error| error.to_string())?;
        let channel = self.channel(index);
        if let Some(sub) = channel.subs.get_mut(&id) {
            sub.state = state.clone();
            sub.active = true;
        }
        let group = state.queue_group.clone();
        match channel.queues.get_mut(&group) {
            Some(queue) if !group.is_empty() => {
                queue.shadow = None;
                queue.members.push_back(id);
            }
            _ => channel.plain.push(id),
        }
        self.mark_dirty(index);
        self.attach(index, id, &state);
        let response = pb::SubscriptionResponse {
            ack_inbox: state.ack_inbox.clone(),
            ..Default::default()
        };
        self.tell_sub("Resumed", index, &state, |_| String::new());
        let about = About {
            index,
            id,
            resumed: true,
        };
        self.answer_durably(
            reply,
            response.encode_to_vec(),
            Some(sub_refusal),
            Some(about),
            out,
        );
        Ok(())
    }

    // ---- unsubscribe

    pub(super) fn handle_unsubscribe(
        &mut self,
        payload: Bytes,
        reply: Option<&str>,
        for_good: bool,
        out: &mut dyn Outlet,
    ) {
        let response = match pb::UnsubscribeRequest::decode(payload) {
            Err(_) => {
                match for_good {
                    true => {
                        let from = &self.info.unsubscribe;
                        log::error!("STREAM: Invalid unsub request from {from}");
                    }
                    false => {
                        let from = &self.info.sub_close;
                        log::error!("STREAM: Invalid sub close request from {from}");
                    }
                }
                sub_error(text::INVALID_UNSUBSCRIBE)
            }
            Ok(request) => match self.unsubscribe(&request, for_good, out) {
                Ok(()) => pb::SubscriptionResponse::default(),
                Err(error) => {
                    self.tell_refused_unsub(&request, for_good, error);
                    sub_error(error)
                }
            },
        };
        let refusal: Option<Refusal> = response.error.is_empty().then_some(sub_refusal);
        self.answer_durably(reply, response.encode_to_vec(), refusal, None, out);
    }

    fn unsubscribe(
        &mut self,
        request: &pb::UnsubscribeRequest,
        for_good: bool,
        out: &mut dyn Outlet,
    ) -> Result<(), &'static str> {
        let index = self.by_name.get(&request.subject).copied();
        let index = index.ok_or(text::INVALID_SUB)?;
        let by_ack = self.ack_inboxes.get(&request.inbox).copied();
        let by_ack = by_ack.filter(|(channel, _)| *channel == index);
        // Later clients may name the inbox they are delivered to.
        let channel = self.channel(index);
        let by_inbox = channel.subs.iter().find(|(_, sub)| {
            sub.active
                && sub.state.inbox == request.inbox
                && sub.state.client_id == request.client_id
        });
        let id = by_ack.map(|(_, id)| id).or(by_inbox.map(|(id, _)| *id));
        let id = id.ok_or(text::INVALID_SUB)?;
        let owner = channel.subs.get(&id).map(|sub| sub.state.client_id.clone());
        let known = self.clients.get(&request.client_id).is_some();
        if !known || owner.as_deref() != Some(&request.client_id) {
            return Err(text::UNKNOWN_CLIENT);
        }
        self.end_sub(index, id, for_good, out);
        Ok(())
    }
}
