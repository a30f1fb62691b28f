//! Who gets in, and who may stay when the settings change.

use super::client::{Client, Phase};
use super::effect::Effect;
use super::settings::Settings;
use super::{Broker, Slot, auth, perms};
use crate::util::nkey::encode_nonce;
use crate::wire::connect::Connect;
use crate::wire::encode::{self, error_line};
use crate::wire::errors;
use crate::wire::parser::{Kind, Stop};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Instant;

/// Largest CONNECT protocol we know.
const PROTOCOL_MAX: i64 = 1;

impl Broker {
    /// What this connection is told to sign: a keyed hash of its number, so that nobody can know it
    /// before, and it need not be kept.
    pub(super) fn nonce(&self, slot: Slot) -> Option<auth::Nonce> {
        let cid = self.receivers.clients[slot as usize].cid;
        self.settings.nonces.then(|| {
            let half = |index: u8| self.nonce_key.hash_one((cid, index)).to_le_bytes();
            let (first, second) = (half(0), half(1));
            let bytes = std::array::from_fn(|i| if i < 8 { first[i] } else { second[i - 8] });
            encode_nonce(bytes)
        })
    }

    /// Has a proof checked; until the answer comes, nothing is read from the connection.
    pub(super) fn verify(
        &mut self,
        slot: Slot,
        proof: auth::Proof,
        permissions: Option<Arc<perms::Permissions>>,
    ) {
        let client = &mut self.receivers.clients[slot as usize];
        client.verifying = true;
        let ticket = client.ticket.insert(Arc::new(()));
        self.effects.push(Effect::Verify {
            slot,
            cid: client.cid,
            proof,
            permissions,
            ticket: Arc::downgrade(ticket),
        });
    }

    /// New settings. Who would not get in any more, client or server, is told so and closed; subscriptions
    /// that are not allowed any more end.
    pub fn reconfigure(&mut self, settings: Arc<Settings>, now: Instant) {
        self.now = now;
        self.receivers.set_limits(&settings);
        let route_auth = |settings: &Settings| settings.cluster.as_ref().map(|c| c.auth.clone());
        let clients_too = settings.auth != self.settings.auth;
        let routes_too = route_auth(&settings) != route_auth(&self.settings);
        self.settings = settings;
        if !clients_too && !routes_too {
            return;
        }
        let open = |client: &Client| client.phase == Phase::Open;
        let clients = self.clients().filter(|(_, client)| open(client));
        let slots = clients.map(|(slot, client)| (slot, client.kind));
        for (slot, kind) in slots.collect::<Vec<_>>() {
            match kind {
                Kind::Client if clients_too => self.judge_again(slot),
                Kind::Route if routes_too => self.judge_route_again(slot),
                Kind::Client | Kind::Route => {}
            }
        }
    }

    fn judge_again(&mut self, slot: Slot) {
        let nonce = self.nonce(slot);
        let client = &mut self.receivers.clients[slot as usize];
        if client.phase == Phase::Closing || client.internal {
            return;
        }
        let default = Connect::default();
        let connect = client.connect.as_deref().unwrap_or(&default);
        let verdict = self.settings.auth.judge(connect, client.shown(nonce));
        match verdict {
            auth::Verdict::Granted(permissions) if client.verifying => {
                // The answer that is under way is to a question of yesterday.
                let (cid, now) = (client.cid, self.now);
                self.handle_verdict(slot, cid, permissions, true, now);
            }
            auth::Verdict::Granted(permissions) => {
                client.permissions = permissions;
                self.end_forbidden_subscriptions(slot);
            }
            auth::Verdict::Denied => self.refuse(slot, errors::AUTHORIZATION_VIOLATION),
            auth::Verdict::Verify { proof, permissions } => {
                // A CONNECT whose check is under way still waits for its +OK.
                let login = client.verifying && client.answer_connect;
                client.answer_connect = login;
                self.verify(slot, proof, permissions);
            }
        }
    }

    /// The answer to `Effect::Verify`.
    pub fn handle_verdict(
        &mut self,
        slot: Slot,
        cid: u64,
        permissions: Option<Arc<perms::Permissions>>,
        good: bool,
        now: Instant,
    ) {
        self.now = now;
        let Some(client) = self.receivers.clients.get_mut(slot as usize) else {
            return;
        };
        if client.cid != cid || client.phase == Phase::Closing {
            return;
        }
        client.verifying = false;
        client.ticket = None;
        let answer = std::mem::take(&mut client.answer_connect);
        if !good {
            self.log_authorization_error(slot);
            return self.refuse(slot, errors::AUTHORIZATION_VIOLATION);
        }
        client.unauthorized = false;
        client.permissions = permissions;
        let deferred = std::mem::take(&mut client.deferred);
        if answer && self.admit(slot).is_err() {
            return;
        }
        self.end_forbidden_subscriptions(slot);
        self.handle_bytes(slot, &deferred, now);
        if self.wants_bytes(slot) {
            self.effects.push(Effect::Resume { slot });
        }
    }

    /// A CONNECT is good as far as authorization goes, which comes first: the rest of it is looked at, and
    /// acknowledged to those who want that.
    pub(super) fn admit(&mut self, slot: Slot) -> Result<(), Stop> {
        let client = &self.receivers.clients[slot as usize];
        let connect = client.connect.as_deref().expect("it was read");
        let fault = match client.kind {
            Kind::Client if !(0..=PROTOCOL_MAX).contains(&connect.protocol) => {
                Some(errors::INVALID_CLIENT_PROTOCOL)
            }
            Kind::Client if connect.no_responders && !connect.headers => {
                Some(errors::NO_RESPONDERS_NEEDS_HEADERS)
            }
            // A client that took the route port for its own: servers have no language.
            Kind::Route if !connect.lang.is_empty() => Some(errors::CLIENT_ON_ROUTE_PORT),
            _ => None,
        };
        if let Some(text) = fault {
            self.refuse(slot, text);
            self.log_read_error(slot, &text);
            return Err(Stop);
        }
        if client.kind == Kind::Client {
            log::debug!("{} - {}", client.label(), client.introduction());
            if client.verbose {
                self.append(slot, encode::OK);
            }
        }
        Ok(())
    }

    #[cold]
    pub(super) fn log_authorization_error(&self, slot: Slot) {
        let client = &self.receivers.clients[slot as usize];
        let label = client.label();
        let named = client.kind == Kind::Client && self.settings.auth.listed;
        let (user, nkey) = match &client.connect {
            Some(connect) => (&*connect.user, &*connect.nkey),
            None => ("", ""),
        };
        match named {
            true if user.is_empty() && !nkey.is_empty() => {
                log::error!("{label} - Authorization Error - Nkey {nkey:?}");
            }
            true => log::error!("{label} - Authorization Error - User {user:?}"),
            false => log::error!("{label} - Authorization Error"),
        }
    }

    fn end_forbidden_subscriptions(&mut self, slot: Slot) {
        let client = &self.receivers.clients[slot as usize];
        let Some(permissions) = client.permissions.clone() else {
            return;
        };
        let all: Vec<u32> = client.subscriptions.iter().copied().collect();
        for id in all {
            let record = &self.receivers.subscriptions[id as usize];
            let subject = self.sublist.pattern(record.place.interest);
            let queue = record.queue.map(|queue| self.sublist.queue_name(queue));
            let verdict = permissions.may_subscribe(subject, queue);
            if verdict == perms::Subscribing::Denied {
                let sid = String::from_utf8_lossy(self.sid(id));
                let text = format!(
                    "{} (sid {sid})",
                    errors::subscription_violation(subject, None)
                );
                self.append(slot, error_line(&text).as_bytes());
                self.remove_subscription(slot, id);
            } else {
                let filtered = verdict == perms::Subscribing::Filtered;
                let record = &mut self.receivers.subscriptions[id as usize];
                record.care = record.care.with_filter(filtered);
            }
        }
    }
}
