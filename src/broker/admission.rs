//! Who gets in, and who may stay when the settings change.

use super::client::{Client, Phase};
use super::deliver::Receivers;
use super::effect::Effect;
use super::settings::Settings;
use super::{Broker, Slot, auth, peers, perms};
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
        let loops = self.peers.len() as u16;
        self.backlog_bytes_max = peers::backlog_bytes_max(loops, settings.pending_bytes_max);
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
                client.judged_again = true;
                let (cid, now) = (client.cid, self.now);
                self.handle_verdict(slot, cid, permissions, true, now);
            }
            auth::Verdict::Granted(permissions) => {
                self.take_over_permissions(slot, permissions);
                self.end_forbidden_subscriptions(slot);
            }
            auth::Verdict::Denied => self.refuse(slot, errors::AUTHORIZATION_VIOLATION),
            auth::Verdict::Verify { proof, permissions } => {
                // A CONNECT whose check is under way still waits for its +OK.
                let login = client.verifying && client.answer_connect;
                client.answer_connect = login;
                client.judged_again = true;
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
        let judged_again = std::mem::take(&mut client.judged_again);
        if !good {
            self.log_authorization_error(slot);
            return self.refuse(slot, errors::AUTHORIZATION_VIOLATION);
        }
        client.unauthorized = false;
        let deferred = std::mem::take(&mut client.deferred);
        self.take_over_permissions(slot, permissions);
        if answer && self.admit(slot).is_err() {
            return;
        }
        if judged_again {
            self.end_forbidden_subscriptions(slot);
        }
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

    /// What a connection may do from now on. Subscriptions it has stay, as with gnatsd, even those it could
    /// not make any more, but nothing comes on them that is denied by now.
    pub(super) fn take_over_permissions(
        &mut self,
        slot: Slot,
        permissions: Option<Arc<perms::Permissions>>,
    ) {
        let Receivers {
            clients,
            subscriptions,
            ..
        } = &mut self.receivers;
        let client = &mut clients[slot as usize];
        let same = match (&client.permissions, &permissions) {
            (None, None) => true,
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            _ => false,
        };
        if same {
            return;
        }
        for id in client.subscriptions.iter() {
            let record = &mut subscriptions[*id as usize];
            let subject = self.sublist.pattern(record.place.interest);
            let queue = record.queue.map(|queue| self.sublist.queue_name(queue));
            let filtered = permissions
                .as_ref()
                .is_some_and(|p| p.may_subscribe(subject, queue) != perms::Subscribing::Allowed);
            record.care = record.care.with_filter(filtered);
        }
        client.permissions = permissions;
    }

    /// Only a reload ends subscriptions.
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
            if permissions.may_subscribe(subject, queue) == perms::Subscribing::Denied {
                let sid = String::from_utf8_lossy(self.sid(id));
                let text = format!(
                    "{} (sid {sid})",
                    errors::subscription_violation(subject, None)
                );
                self.append(slot, error_line(&text).as_bytes());
                self.remove_subscription(slot, id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::auth::{Auth, Secret, User};
    use super::super::perms::{Permissions, Rule, SubscribeRules};
    use super::super::propagate::tests::{PEER, written};
    use super::*;
    use crate::util::random::Random;
    use crate::util::region::RegionMut;
    use std::collections::HashMap;

    fn rules(subject: &str) -> Vec<Rule> {
        let rule = Rule {
            subject: subject.as_bytes().into(),
            queue: None,
        };
        vec![rule]
    }

    /// `first` may do everything, `second` may subscribe to a part of `a.>`; both have a password in this form.
    fn settings(password: &str) -> Arc<Settings> {
        let user = |permissions| User {
            password: Secret::new(password),
            permissions,
        };
        let subscribe = SubscribeRules::new(Some(rules("a.>")), rules("a.secret"));
        let second = Permissions {
            subscribe,
            ..Permissions::default()
        };
        let users = [("first", None), ("second", Some(Arc::new(second)))];
        let auth = Auth {
            listed: true,
            users: HashMap::from(users.map(|(name, p)| (name.to_owned(), user(p)))),
            ..Auth::default()
        };
        Arc::new(Settings {
            auth,
            ..Settings::default()
        })
    }

    fn broker(settings: Arc<Settings>, now: Instant) -> Broker {
        let region = RegionMut::map(1 << 20).unwrap();
        Broker::new(settings, 0, 1, region, Random::new(1), now)
    }

    /// Whoever checks passwords finds all of them right.
    fn answer_verdicts(broker: &mut Broker, now: Instant) {
        let mut effects = Vec::new();
        broker.take_effects(&mut effects);
        for effect in effects {
            let Effect::Verify {
                slot,
                cid,
                permissions,
                ticket,
                ..
            } = effect
            else {
                continue;
            };
            if ticket.strong_count() > 0 {
                broker.handle_verdict(slot, cid, permissions, true, now);
            }
        }
    }

    fn login(broker: &mut Broker, slot: Slot, user: &str, now: Instant) {
        let line = format!("CONNECT {{\"verbose\":false,\"user\":\"{user}\",\"pass\":\"p\"}}\r\n");
        broker.handle_bytes(slot, line.as_bytes(), now);
    }

    const PUBLISHES: &[u8] = b"PUB a.x 0\r\n\r\nPUB a.secret 0\r\n\r\nPUB b 0\r\n\r\n";
    const ALL: &str = "MSG a.x 1 0\r\n\r\nMSG a.secret 1 0\r\n\r\nMSG b 2 0\r\n\r\n";
    const NOT_DENIED: &str = "MSG a.x 1 0\r\n\r\nMSG b 2 0\r\n\r\n";

    #[test]
    fn a_second_connect_means_the_same_whatever_form_the_password_has() {
        let now = Instant::now();
        for password in ["p", "$2a$11$x"] {
            let mut broker = broker(settings(password), now);
            let slot = broker.open(1, PEER, now);
            let publisher = broker.open(2, PEER, now);
            for slot in [slot, publisher] {
                login(&mut broker, slot, "first", now);
            }
            answer_verdicts(&mut broker, now);
            broker.handle_bytes(slot, b"SUB a.> 1\r\nSUB b 2\r\n", now);
            written(&mut broker, slot, now);
            let users = [("second", NOT_DENIED), ("first", ALL)];
            for (user, expect) in users.repeat(2) {
                login(&mut broker, slot, user, now);
                answer_verdicts(&mut broker, now);
                broker.handle_bytes(publisher, PUBLISHES, now);
                let got = written(&mut broker, slot, now);
                assert_eq!(got, expect, "{password} {user}");
            }
            assert_eq!(broker.subscription_count(), 2);
            // What is new is judged by who it is now.
            login(&mut broker, slot, "second", now);
            answer_verdicts(&mut broker, now);
            broker.handle_bytes(slot, b"SUB b 3\r\n", now);
            let refused = "-ERR 'Permissions Violation for Subscription to \"b\"'\r\n";
            assert_eq!(written(&mut broker, slot, now), refused, "{password}");
        }
    }

    #[test]
    fn a_reload_ends_what_is_not_allowed_any_more() {
        let now = Instant::now();
        let ended = "-ERR 'Permissions Violation for Subscription to \"b\" (sid 2)'\r\n";
        for password in ["p", "$2a$11$x"] {
            // The reload comes when the second CONNECT has been judged, or while it is.
            for judged_before in [true, false] {
                let mut broker = broker(settings(password), now);
                let slot = broker.open(1, PEER, now);
                login(&mut broker, slot, "first", now);
                answer_verdicts(&mut broker, now);
                broker.handle_bytes(slot, b"SUB a.> 1\r\nSUB b 2\r\n", now);
                login(&mut broker, slot, "second", now);
                if judged_before {
                    answer_verdicts(&mut broker, now);
                }
                written(&mut broker, slot, now);
                let mut reloaded = Settings::clone(&settings(password));
                reloaded.auth.users.remove("first");
                broker.reconfigure(Arc::new(reloaded), now);
                answer_verdicts(&mut broker, now);
                let told = written(&mut broker, slot, now);
                assert_eq!(told, ended, "{password} {judged_before}");
                assert_eq!(broker.subscription_count(), 1);
            }
        }
    }
}
