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

use super::auth::{Shown, Verdict};
use super::client::{Client, Phase};
use super::deliver::Origin;
use super::effect::{CloseReason, Dial, Effect};
use super::pace::Mark;
use super::propagate::QUEUE_SID_PREFIX;
use super::subs::Care;
use super::timers::Timer;
use super::{Broker, Slot};
use crate::config::route_url::{RouteUrl, host_and_port};
use crate::subject::token;
use crate::wire::connect::{Connect, masked, route_connect_line};
use crate::wire::info::Info;
use crate::wire::parser::{Kind, Message, Sink, Stop};
use crate::wire::run::Run;
use crate::wire::{encode, errors};
use bytes::Bytes;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Bodies larger than our own limit are taken from other servers up to this size, in case theirs is
/// larger.
const PAYLOAD_BYTES_MAX: u64 = 64 << 20;
/// An INFO with the addresses of many servers is long.
const CONTROL_LINE_BYTES_MAX: usize = 64 << 10;

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
            let login = (!url.user.is_empty()).then_some((&*url.user, &*url.password.0));
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

    /// Another server told of a third one: dial it, unless we know it.
    fn learn_of_server(&mut self, own: &str, info: &Info) {
        let cluster = self.cluster();
        let configured = |url: &RouteUrl| url.same_place(&info.host, info.port);
        if info.server_id == own
            || self.route_to(&info.server_id).is_some()
            || cluster.routes.iter().any(configured)
        {
            return;
        }
        match RouteUrl::parse(&info.ip) {
            Ok(mut url) => {
                if info.auth_required {
                    url.user = cluster.user.clone();
                    url.password = cluster.password.clone();
                }
                let retries = cluster.connect_retries;
                self.effects.push(Effect::Dial(Dial {
                    url,
                    explicit: false,
                    wait: Duration::ZERO,
                    retries,
                }));
            }
            Err(error) => log::error!("A server was announced at {:?}: {error}", info.ip),
        }
    }

    // ---- what clients are told

    fn learn_urls(&mut self, urls: &[String]) {
        let new = |known: &[String], url: &String| !known.contains(url);
        let before = self.routes.peer_urls.len();
        for url in urls {
            if new(&self.routes.peer_urls, url) {
                self.routes.peer_urls.push(url.clone());
            }
        }
        if self.routes.peer_urls.len() > before {
            self.announce_urls();
        }
    }

    /// Addresses another route still names stay.
    fn forget_urls(&mut self, urls: &[String]) {
        let kept: Vec<String> = self
            .routes
            .registered
            .iter()
            .filter_map(|slot| self.receivers.clients[*slot as usize].route.as_ref())
            .filter_map(|route| route.info.as_ref())
            .flat_map(|info| info.connect_urls.iter().cloned())
            .collect();
        let before = self.routes.peer_urls.len();
        self.routes
            .peer_urls
            .retain(|url| !urls.contains(url) || kept.contains(url));
        if self.routes.peer_urls.len() < before {
            self.announce_urls();
        }
    }

    fn announce_urls(&mut self) {
        let cluster = self.cluster();
        if cluster.no_advertise {
            return;
        }
        let mut urls = cluster.client_urls.clone();
        let peers = self.routes.peer_urls.iter();
        urls.extend(
            peers
                .filter(|url| !cluster.client_urls.contains(url))
                .cloned(),
        );
        self.effects.push(Effect::ClientUrls(urls.into()));
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
            self.close(slot, CloseReason::Silently);
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

/// The INFO of a new server as it goes to the others: with the address it can be dialled at.
fn announcement(info: &Info, peer: SocketAddr) -> Info {
    let mut info = info.clone();
    if info.ip.is_empty() {
        let address = host_and_port(&peer.ip().to_string(), info.port);
        info.ip = format!("nats-route://{address}/");
    }
    info
}

/// One read of a route, as the parser's sink.
pub(super) struct RouteSession<'b> {
    pub broker: &'b mut Broker,
    pub slot: Slot,
    pub messages: u64,
    pub bytes: u64,
}

impl RouteSession<'_> {
    fn client(&mut self) -> &mut Client {
        &mut self.broker.receivers.clients[self.slot as usize]
    }

    fn stop(&mut self, text: &str) -> Result<(), Stop> {
        self.broker.refuse(self.slot, text);
        Err(Stop)
    }

    fn trace(&mut self, line: std::fmt::Arguments<'_>) {
        if log::log_enabled!(log::Level::Trace) {
            log::trace!("{} - ->> [{line}]", self.client().label());
        }
    }

    fn origin(&self) -> Origin {
        Origin {
            no_echo: None,
            publisher: self.broker.publisher(self.slot),
            from_loop: None,
            hops: 0,
            others: 0,
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

impl Sink for RouteSession<'_> {
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
            log::error!("{} - CONNECT: {error}", self.client().label());
            return self.stop(errors::PARSER_ERROR);
        }
        if !connect.lang.is_empty() {
            return self.stop(errors::CLIENT_ON_ROUTE_PORT);
        }
        let verdict = self.broker.cluster().auth.judge(&connect, Shown::default());
        let client = self.client();
        client.connect = Some(Box::new(connect));
        match verdict {
            Verdict::Granted(_) => {
                client.unauthorized = false;
                Ok(())
            }
            Verdict::Denied => {
                log::error!("{} - Authorization Error", client.label());
                self.stop(errors::AUTHORIZATION_VIOLATION)
            }
            Verdict::Verify { proof, permissions } => {
                self.broker.verify(self.slot, proof, permissions);
                Err(Stop)
            }
        }
    }

    fn info(&mut self, json: &[u8]) -> Result<(), Stop> {
        let text = String::from_utf8_lossy(json).into_owned();
        self.trace(format_args!("INFO {text}"));
        match serde_json::from_str::<Info>(&text) {
            Ok(info) => {
                self.broker.handle_route_info(self.slot, info);
                self.go_on()
            }
            Err(error) => {
                log::error!("{} - INFO: {error}", self.client().label());
                self.stop(errors::PARSER_ERROR)
            }
        }
    }

    fn message(&mut self, message: &Message<'_>, owned: Option<Bytes>) -> Result<(), Stop> {
        self.messages += 1;
        self.bytes += message.body_bytes as u64;
        let origin = self.origin();
        self.broker.deliver_from_route(&origin, message, owned);
        self.go_on()
    }

    fn run(&mut self, run: &Run<'_>) -> Result<(), Stop> {
        if run.sid.starts_with(QUEUE_SID_PREFIX) {
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
        let known = self.broker.find_subscription(self.slot, sid).is_some();
        if !known && token::is_valid_subscription(subject) {
            self.broker
                .add_subscription(self.slot, subject, queue, sid, Care::Nothing);
        }
        Ok(())
    }

    fn unsubscribe(&mut self, sid: &[u8], max: Option<u64>) -> Result<(), Stop> {
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
        self.broker.append(self.slot, encode::PONG);
        Ok(())
    }

    fn pong(&mut self) -> Result<(), Stop> {
        self.trace(format_args!("PONG"));
        self.client().pings_out = 0;
        self.broker.route_has_taken_in(self.slot);
        Ok(())
    }

    fn error(&mut self, text: &[u8]) -> Result<(), Stop> {
        let label = self.client().label();
        log::error!("{label} - Route Error {}", String::from_utf8_lossy(text));
        self.broker.close(self.slot, CloseReason::Silently);
        Err(Stop)
    }
}

#[cfg(test)]
mod tests {
    use super::super::auth::Secret;
    use super::super::settings::{ClusterSettings, Settings};
    use super::*;
    use crate::util::random::Random;
    use crate::util::region::RegionMut;
    use std::sync::Arc;

    const PEER: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

    /// A broker with the server id "own".
    fn broker(now: Instant) -> Broker {
        let mut cluster = ClusterSettings::default();
        cluster.info.server_id = "own".into();
        let settings = Settings {
            cluster: Some(cluster),
            ..Settings::default()
        };
        let region = RegionMut::map(1 << 20).unwrap();
        Broker::new(Arc::new(settings), 0, 1, region, Random::new(1), now)
    }

    fn client(broker: &mut Broker, cid: u64, subscribe: &str, now: Instant) -> Slot {
        let slot = broker.open(cid, PEER, now);
        broker.handle_bytes(slot, b"CONNECT {\"verbose\":false}\r\n", now);
        broker.handle_bytes(slot, subscribe.as_bytes(), now);
        slot
    }

    /// A route to the server "another", which is one of us.
    fn route(broker: &mut Broker, cid: u64, dialled: bool, now: Instant) -> Slot {
        let dial = Dial {
            url: RouteUrl::parse("nats://127.0.0.1:2").unwrap(),
            explicit: true,
            wait: Duration::ZERO,
            retries: 0,
        };
        let slot = broker.open_route(cid, PEER, dialled.then_some(dial), now);
        let info = b"INFO {\"server_id\":\"another\",\"host\":\"0.0.0.0\",\"port\":6222,\"headers\":true}\r\n";
        broker.handle_bytes(slot, info, now);
        slot
    }

    fn messages(broker: &Broker, slot: Slot) -> u64 {
        broker.client(slot).unwrap().traffic.messages_out
    }

    #[test]
    fn a_message_for_a_member_that_left_stays_with_its_group() {
        let now = Instant::now();
        let mut broker = broker(now);
        let route = route(&mut broker, 9, false, now);
        let other_group = client(&mut broker, 1, "SUB x r 1\r\n", now);
        let same_group = client(&mut broker, 2, "SUB x q 1\r\n", now);
        let leaver = client(&mut broker, 3, "SUB x q 1\r\n", now);
        broker.end_turn();
        broker.handle_gone(leaver, now);
        broker.handle_bytes(route, b"MSG x QRSID:3:1 0\r\n\r\n", now);
        assert_eq!(messages(&broker, same_group), 1);
        broker.handle_gone(same_group, now);
        broker.handle_bytes(route, b"MSG x QRSID:2:1 0\r\n\r\n", now);
        assert_eq!(messages(&broker, other_group), 0);
    }

    #[test]
    fn only_dials_that_crossed_replace_a_route() {
        for (age, stays) in [(0, 1), (5, 0)] {
            let now = Instant::now();
            let mut broker = broker(now);
            // Ours would stay if "own" were smaller than "another".
            let routes = [true, false].map(|dialled| {
                let at = now + Duration::from_secs(if dialled { 0 } else { age });
                route(&mut broker, if dialled { 1 } else { 2 }, dialled, at)
            });
            assert_eq!(broker.route_slots(), [routes[stays]], "{age} s apart");
        }
    }

    #[test]
    fn a_new_password_is_for_the_routes_there_are() {
        let now = Instant::now();
        // Whom we dialled has nothing to show.
        for dialled in [false, true] {
            let mut broker = broker(now);
            let slot = route(&mut broker, 1, dialled, now);
            let mut settings = Settings::clone(&broker.settings);
            broker.reconfigure(Arc::new(settings.clone()), now);
            assert_eq!(broker.route_slots(), [slot]);
            let auth = &mut settings.cluster.as_mut().unwrap().auth;
            auth.single = Some(("user".into(), Secret::new("password")));
            broker.reconfigure(Arc::new(settings), now);
            assert_eq!(!broker.route_slots().is_empty(), dialled);
        }
    }

    #[test]
    fn a_route_that_was_given_up_is_dialled_again() {
        let now = Instant::now();
        for gone in [false, true] {
            let mut broker = broker(now);
            let slot = route(&mut broker, 1, false, now);
            match gone {
                true => broker.handle_gone(slot, now),
                false => (0..4).for_each(|turn| {
                    broker.handle_timeouts(now + turn * broker.settings.ping_interval);
                }),
            }
            assert!(broker.route_slots().is_empty());
            let mut effects = Vec::new();
            broker.take_effects(&mut effects);
            let dialled = effects.iter().find_map(|effect| match effect {
                Effect::Dial(dial) => Some(dial.url.address()),
                _ => None,
            });
            let expected = (!gone).then(|| "127.0.0.1:6222".to_owned());
            assert_eq!(dialled, expected);
        }
    }
}
