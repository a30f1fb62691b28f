//! Subscriptions: how they begin, come back and are told to end.

use super::answers::{About, Refusal, answer};
use super::{Engine, text};
use crate::stan::channel::durable_key;
use crate::stan::clients::ChannelIndex;
use crate::stan::names::is_valid_channel;
use crate::stan::outlet::Outlet;
use crate::stan::pb::{self, StartPosition};
use crate::stan::store::Seq;
use crate::stan::subs::Sub;
use prost::Message;

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
    pub(super) fn handle_subscribe(
        &mut self,
        payload: &[u8],
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
        if grouped && let Some(queue) = self.channel(index).queues.get(group.as_str()) {
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
        let not_stored = |error: String| {
            Self::tell_not_stored(request, &error);
            error
        };
        if max > 0 && count >= max {
            return Err(not_stored(text::TOO_MANY_SUBS.into()));
        }
        let group = self.channel(index).queues.get(state.queue_group.as_str());
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
            .map_err(|error| not_stored(error.to_string()))?;
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
            let resumed = false;
            let about = About { index, id, resumed };
            self.answer_subscribe(reply, &response, about, out);
            return Ok(());
        }
        answer(reply, &response, out);
        self.deliver_next(index, id, &grouped, out);
        Ok(())
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
        // New ones that are not durable yet may never be, and their numbers given again; and a limit may have removed messages
        // for them.
        let last = self.channel(index).durable_to.min(bounds.last);
        let before_first = bounds.first.saturating_sub(1).min(last);
        match start {
            _ if bounds.last == 0 => 0,
            StartPosition::NewOnly => last,
            StartPosition::LastReceived if bounds.messages == 0 => last,
            StartPosition::LastReceived => last.saturating_sub(1),
            StartPosition::First => before_first,
            StartPosition::SequenceStart => match request.start_sequence {
                asked if asked < bounds.first => before_first,
                asked if asked > last => last,
                asked => asked - 1,
            },
            StartPosition::TimeDeltaStart => {
                let since = self.wall().saturating_sub(request.start_time_delta);
                if request.start_time_delta <= 0 {
                    return last;
                }
                match self.store.first_since(store, since) {
                    Ok(seq) => seq.saturating_sub(1).clamp(before_first, last),
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
            .may_subscribe(store)
            .and_then(|()| self.store.update_sub(store, &state))
            .map_err(|error| error.to_string())?;
        let channel = self.channel(index);
        if let Some(sub) = channel.subs.get_mut(&id) {
            sub.state = state.clone();
            sub.active = true;
        }
        let group = state.queue_group.clone();
        match channel.queues.get_mut(group.as_str()) {
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
        let resumed = true;
        let about = About { index, id, resumed };
        self.answer_subscribe(reply, &response, about, out);
        Ok(())
    }

    /// When the subscription is durable.
    fn answer_subscribe(
        &mut self,
        reply: Option<&str>,
        response: &pb::SubscriptionResponse,
        about: About,
        out: &mut dyn Outlet,
    ) {
        let (yes, no) = (response.encode_to_vec(), Some(sub_refusal as Refusal));
        self.answer_durably(reply, yes, no, Some(about), out);
    }

    // ---- unsubscribe

    pub(super) fn handle_unsubscribe(
        &mut self,
        payload: &[u8],
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
        let channel = self.channel(index);
        // Later clients may name the inbox they are delivered to.
        let by_inbox = || {
            let mut subs = channel.subs.values();
            let found = subs.find(|sub| {
                sub.active
                    && sub.state.inbox == request.inbox
                    && sub.state.client_id == request.client_id
            });
            found.map(Sub::id)
        };
        let id = by_ack.map(|(_, id)| id).or_else(by_inbox);
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
