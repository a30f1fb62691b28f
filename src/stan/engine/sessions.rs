//! Clients: how they connect, close and ping, and their heartbeats.

use super::answers::{Refusal, answer};
use super::tell::Shown;
use super::timers::Timer;
use super::{Engine, text};
use crate::stan::clients::Challenger;
use crate::stan::names::is_valid_client;
use crate::stan::outlet::Outlet;
use crate::stan::pb;
use crate::stan::subs::SECOND;
use prost::Message;

/// How long a client has to show that it is there when another one wants its id.
const PROBE_TIME: i64 = SECOND / 2;
/// Marks the subject a probe is answered on.
const PROBE_MARK: char = 'p';

impl Engine {
    pub(super) fn handle_connect(
        &mut self,
        payload: &[u8],
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
            invalid => {
                let (id, error) = match invalid {
                    Ok(request) => (request.client_id, "<nil>".to_owned()),
                    Err(error) => (String::new(), error.to_string()),
                };
                log::error!(
                    "STREAM: [Client:?] Invalid conn request: ClientID={}, Inbox=, err={error}",
                    Shown(&id)
                );
                return refuse(text::INVALID_CONNECT, out);
            }
        };
        if !is_valid_client(&request.client_id) {
            log::error!(
                "STREAM: [Client:{}] Invalid ClientID, only alphanumeric and `-` or `_` characters allowed",
                Shown(&request.client_id)
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
            let at = self.now.saturating_add(self.settings.heartbeat_interval);
            self.plan_heartbeat(serial, at);
            let (id, inbox) = (Shown(&id), Shown(&inbox));
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
        payload: &[u8],
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
                let client = Shown(&request.client_id);
                log::error!("STREAM: Unknown client \"{client}\" in close request");
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
        let (shown, inbox) = (Shown(id), Shown(&client.info.heartbeat_inbox));
        self.debug(format_args!("[Client:{shown}] Closed (Inbox={inbox})"));
        // Whoever waits for the id need not wait any longer.
        if let Some(challenger) = client.challenger {
            self.register(challenger.info, &challenger.reply, out);
        }
        true
    }

    pub(super) fn handle_ping(
        &mut self,
        payload: &[u8],
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
        let at = self.now.saturating_add(self.settings.heartbeat_timeout);
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
        let next = self.now.saturating_add(self.settings.heartbeat_interval);
        let client = self.clients.with_serial(serial);
        let Some(client) = client.filter(|one| one.beat_out && one.beat_over_at == at) else {
            return;
        };
        client.beat_out = false;
        client.failures += 1;
        if client.failures > max {
            let id = client.info.id.clone();
            let shown = Shown(&id);
            self.debug(format_args!("[Client:{shown}] Timed out on heartbeats"));
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
        let next = self.now.saturating_add(self.settings.heartbeat_interval);
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
                    "[Client:{}] Connect failed; already connected",
                    Shown(&id)
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
        self.debug(format_args!(
            "[Client:{}] Replaced old client (Inbox={})",
            Shown(&id),
            Shown(&challenger.info.heartbeat_inbox)
        ));
        self.register(challenger.info, &challenger.reply, out);
    }
}
