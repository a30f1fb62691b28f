//! Routes: connections to other servers, as special clients. All of them live on loop 0.
//!
//! ```text
//!               CONNECT (from who dialled), then INFO
//!   Greeting -------------------------------------------> Registered ---> closed: its interest goes,
//!      |                                                                  maybe it is dialled again
//!      |--- our own id: a route to ourselves; closed for good
//!      '--- id of a registered route: a duplicate; one of the two is closed
//! ```
//!
//! The protocol is gnatsd 1.1.0's (server/route.go). Who dials says CONNECT and INFO at once, the other
//! side INFO; the first INFO of the peer registers the route, and each side then tells its interest.

mod gossip;
mod session;

use gossip::announcement;
pub(super) use session::RouteSession;

use crate::broker::auth::{Shown, Verdict};
use crate::broker::client::{Client, Phase};
use crate::broker::effect::{CloseReason, Dial, Effect};
use crate::broker::pace::Mark;
use crate::broker::timers::Timer;
use crate::broker::{Broker, Slot};
use crate::config::route_url::RouteUrl;
use crate::wire::connect::route_connect_line;
use crate::wire::errors;
use crate::wire::info::Info;
use crate::wire::parser::Kind;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Before a configured route that was lost is dialled again, and how much that is spread.
const REDIAL_WAIT: Duration = Duration::from_secs(1);
const REDIAL_JITTER_MILLIS: u32 = 100;
/// Two servers that dial each other at once have both connections within this time.
const DIALS_CROSS_WITHIN: Duration = Duration::from_secs(1);

/// What a route has beyond other connections.
#[derive(Debug, Default)]
pub struct Route {
    /// We made this connection.
    pub dialled: bool,
    /// Whom we dialled, on this connection or on a duplicate of it.
    pub solicited: Option<Solicited>,
    /// Registered: what the other side said of itself.
    pub info: Option<Info>,
    pub registered_at: Option<Instant>,
    /// Both sides may have closed what the other kept: dial again in any case.
    pub retry: bool,
    /// Closed on purpose; not dialled again.
    pub unwanted: bool,
    /// Closed because nothing came or went any more: the other side may only be cut off from us, and
    /// is dialled again, whoever dialled it before.
    pub given_up: bool,
    /// What its next PONGs are for.
    pub asked: VecDeque<Asked>,
    /// Other loops that have not begun to tell their subscriptions.
    pub silent_loops: usize,
    /// PONGs that wait for them: whoever has one may rely on having been told, as gnatsd tells all on joining.
    pub pongs_owed: u32,
}

/// Why a route got a PING.
#[derive(Clone, Copy, Debug)]
pub enum Asked {
    /// The timer wants to know whether it is there.
    Sign,
    /// Then it is told what is left of the subscriptions there were when it came.
    Rest(Rest),
    /// Interest up to there has been taken in.
    Mark(Mark),
}

/// The subscriptions of one loop from this number on.
#[derive(Clone, Copy, Debug)]
pub struct Rest {
    pub loop_index: u16,
    pub from: u32,
}

#[derive(Clone, Debug)]
pub struct Solicited {
    pub url: RouteUrl,
    /// It is in the configuration.
    pub explicit: bool,
}

/// The routes of this server.
#[derive(Debug, Default)]
pub struct Routes {
    pub registered: Vec<Slot>,
    /// Client addresses of the other servers.
    peer_urls: Vec<String>,
}

impl Broker {
    pub(super) fn route(&mut self, slot: Slot) -> &mut Route {
        route(&mut self.receivers.clients[slot as usize])
    }

    fn cluster(&self) -> &super::settings::ClusterSettings {
        let cluster = self.settings.cluster.as_ref();
        cluster.expect("routes are opened only where there is a cluster")
    }

    /// Routes that are registered.
    pub fn route_slots(&self) -> &[Slot] {
        &self.routes.registered
    }

    /// A new connection to another server; `dial` when we made it.
    pub fn open_route(
        &mut self,
        cid: u64,
        peer: SocketAddr,
        dial: Option<Dial>,
        now: Instant,
    ) -> Slot {
        self.now = now;
        let unauthorized = dial.is_none() && self.cluster().auth.required();
        let mut client = Client::new(cid, Kind::Route, peer, unauthorized);
        client.route = Some(Box::new(Route {
            dialled: dial.is_some(),
            solicited: dial.map(|dial| Solicited {
                explicit: dial.explicit,
                url: dial.url,
            }),
            ..Route::default()
        }));
        let slot = self.receivers.clients.insert(client) as Slot;
        log::info!("{} - Route connection created", self.label(slot));
        let mut greeting = String::new();
        if let Some(Solicited { url, .. }) = self.route(slot).solicited.clone() {
            let cluster = self.cluster();
            // The other server looks at the user first, but it may be one that wants a password alone.
            let given = !url.user.is_empty() || !url.password.0.is_empty();
            let login = given.then_some((&*url.user, &*url.password.0));
            greeting =
                route_connect_line(&cluster.info.server_id, login, cluster.info.tls_required);
        }
        greeting += &self.cluster().info.route_line();
        self.append(slot, greeting.as_bytes());
        let ping_at = now + self.settings.ping_interval;
        self.timers.push(ping_at, slot, cid, Timer::Ping);
        if unauthorized {
            let at = now + self.cluster().auth_timeout;
            self.timers.push(at, slot, cid, Timer::Authorization);
        }
        slot
    }

    /// Called when a route is closed; its interest goes after this.
    pub(super) fn route_closed(&mut self, slot: Slot) {
        self.routes.registered.retain(|other| *other != slot);
        self.catching_up.retain(|(route, _)| route.slot != slot);
        let record = std::mem::take(self.route(slot));
        for asked in &record.asked {
            if let Asked::Mark(mark) = asked {
                self.mark_answered(*mark);
            }
        }
        if let Some(info) = &record.info {
            self.forget_urls(&info.connect_urls);
        }
        if record.unwanted {
            return;
        }
        let id = record.info.as_ref().map(|info| info.server_id.clone());
        let again = record.retry || record.given_up;
        let (dial_again, explicit, url) = match (record.solicited, &record.info) {
            (Some(Solicited { url, explicit }), _) => (explicit || again, explicit, url),
            (None, Some(info)) => (again, false, self.url_of(slot, info)),
            (None, None) => return,
        };
        if !dial_again {
            return;
        }
        if let Some(id) = id.filter(|id| self.route_to(id).is_some()) {
            log::debug!(
                "Not attempting reconnect for solicited route, already connected to \"{id}\""
            );
            return;
        }
        let wait = if explicit {
            REDIAL_WAIT
        } else {
            Duration::ZERO
        };
        let dial = Dial {
            url,
            explicit,
            wait: wait + self.jitter(),
            retries: self.cluster().connect_retries,
        };
        self.effects.push(Effect::Dial(dial));
    }

    /// Where a server that dialled us can be dialled.
    fn url_of(&self, slot: Slot, info: &Info) -> RouteUrl {
        let mut host = info.host.clone();
        let unspecified = |address: std::net::IpAddr| address.is_unspecified();
        if host.is_empty() || host.parse().is_ok_and(unspecified) {
            let peer = self.receivers.clients[slot as usize].peer;
            host = peer.ip().to_string();
        }
        RouteUrl {
            host,
            port: info.port,
            user: self.cluster().user.clone(),
            password: self.cluster().password.clone(),
        }
    }

    /// Nothing comes or goes on this connection any more; for a route, that does not mean that the
    /// other side has gone.
    pub(super) fn give_up(&mut self, slot: Slot) {
        if let Some(route) = &mut self.receivers.clients[slot as usize].route {
            route.given_up = true;
        }
    }

    fn jitter(&mut self) -> Duration {
        Duration::from_millis(u64::from(self.random.below(REDIAL_JITTER_MILLIS)))
    }

    /// The registered route to the server with this id.
    fn route_to(&self, id: &str) -> Option<Slot> {
        self.routes.registered.iter().copied().find(|slot| {
            let route = self.receivers.clients[*slot as usize].route.as_ref();
            route
                .and_then(|route| route.info.as_ref())
                .is_some_and(|info| info.server_id == id)
        })
    }

    // ---- INFO: registration, duplicates, gossip

    fn handle_route_info(&mut self, slot: Slot, info: Info) {
        let own = self.cluster().info.server_id.clone();
        if let Some(known) = &self.route(slot).info {
            let known = known.server_id.clone();
            if info.server_id != known {
                return self.learn_of_server(&own, &info);
            }
            // The original treats a second introduction like this as well.
            log::debug!(
                "{} - Detected duplicate remote route {known:?}",
                self.label(slot)
            );
            return self.close(slot, CloseReason::Silently);
        }
        if info.server_id == own {
            let label = self.label(slot);
            log::debug!(
                "{label} - Detected route to self, ignoring {:?}",
                info.server_id
            );
            self.route(slot).unwanted = true;
            return self.close(slot, CloseReason::Silently);
        }
        match self.route_to(&info.server_id) {
            Some(other) => self.resolve_duplicate(slot, other, info, &own),
            None => self.register(slot, info),
        }
    }

    /// Two connections to one server: one stays, and takes over what is known of the other.
    ///
    /// The original keeps the older one, so two servers that dial each other at once may each close
    /// what the other keeps, and try again. Two of us agree: of one in each direction, the one dialled
    /// by the server with the smaller id stays. A route that has been there for a while stays in any
    /// case, with the messages that are under way on it.
    fn resolve_duplicate(&mut self, new: Slot, old: Slot, info: Info, own: &str) {
        log::debug!(
            "{} - Detected duplicate remote route {:?}",
            self.label(new),
            info.server_id
        );
        let (new_is_ours, old_is_ours) = (self.route(new).dialled, self.route(old).dialled);
        let we_are_smaller = own < info.server_id.as_str();
        let now = self.now;
        let young = |at| now.duration_since(at) < DIALS_CROSS_WITHIN;
        let dials_crossed =
            new_is_ours != old_is_ours && self.route(old).registered_at.is_some_and(young);
        let new_stays = info.headers && dials_crossed && new_is_ours == we_are_smaller;
        let (winner, loser) = if new_stays { (new, old) } else { (old, new) };
        let record = self.route(loser);
        record.unwanted = true;
        let solicited = record.solicited.clone();
        let heir = self.route(winner);
        heir.retry = true;
        if let Some(solicited) = solicited {
            let explicit = solicited.explicit;
            heir.solicited.get_or_insert(solicited).explicit |= explicit;
        }
        self.close(loser, CloseReason::Silently);
        if new_stays {
            self.register(new, info);
        }
    }

    fn register(&mut self, slot: Slot, info: Info) {
        log::debug!(
            "{} - Registering remote route {:?}",
            self.label(slot),
            info.server_id
        );
        self.tell_untold();
        let others = self.routes.registered.clone();
        let client = &mut self.receivers.clients[slot as usize];
        client.headers = info.headers;
        let peer = client.peer;
        if !others.is_empty() {
            let line = announcement(&info, peer).route_line();
            for other in others {
                self.append(other, line.as_bytes());
            }
        }
        let urls = info.connect_urls.clone();
        let now = self.now;
        let record = self.route(slot);
        record.info = Some(info);
        record.registered_at = Some(now);
        self.routes.registered.push(slot);
        self.tell_new_route(slot);
        self.learn_urls(&urls);
    }

    // ---- reload

    /// The list of routes was changed: those that were configured go, and are dialled anew where they
    /// still are.
    pub fn drop_configured_routes(&mut self) {
        let slots: Vec<Slot> = self
            .clients()
            .filter(|(_, client)| {
                let solicited = client.route.as_ref().and_then(|r| r.solicited.as_ref());
                solicited.is_some_and(|solicited| solicited.explicit)
            })
            .map(|(slot, _)| slot)
            .collect();
        for slot in slots {
            self.route(slot).unwanted = true;
            self.close(slot, CloseReason::Told);
        }
    }

    /// What other servers must show was changed. Those we dialled had nothing to show.
    pub(super) fn judge_route_again(&mut self, slot: Slot) {
        let client = &self.receivers.clients[slot as usize];
        let record = client.route.as_ref();
        if client.phase == Phase::Closing || record.is_some_and(|route| route.dialled) {
            return;
        }
        // Who has not said anything yet is asked when the greeting comes.
        let Some(connect) = client.connect.as_deref() else {
            let auth_required = self.cluster().auth.required();
            let registered = record.is_some_and(|route| route.info.is_some());
            if auth_required && registered {
                return self.refuse(slot, errors::AUTHORIZATION_VIOLATION);
            }
            self.receivers.clients[slot as usize].unauthorized = auth_required;
            return;
        };
        match self.cluster().auth.judge(connect, Shown::default()) {
            // The answer that is under way is to a question of yesterday.
            Verdict::Granted(_) if client.verifying => {
                let (cid, now) = (client.cid, self.now);
                self.handle_verdict(slot, cid, None, true, now);
            }
            Verdict::Granted(_) => self.receivers.clients[slot as usize].unauthorized = false,
            Verdict::Denied => self.refuse(slot, errors::AUTHORIZATION_VIOLATION),
            Verdict::Verify { proof, permissions } => self.verify(slot, proof, permissions),
        }
    }

    fn label(&self, slot: Slot) -> String {
        self.receivers.clients[slot as usize].label()
    }
}

fn route(client: &mut Client) -> &mut Route {
    let route = client.route.as_deref_mut();
    route.expect("a connection of kind Route has the record")
}

#[cfg(test)]
mod tests;
