//! Bodies of fuzz targets that need a whole broker; ordinary tests call them too.

use super::auth::{Auth, Secret};
use super::effect::{Dial, Effect};
use super::outbox::Piece;
use super::settings::{ClusterSettings, Settings};
use super::{Broker, Slot};
use crate::config::route_url::RouteUrl;
use crate::util::random::Random;
use crate::util::region::RegionMut;
use crate::wire::parser::Kind;
use crate::wire::parser::fuzz::{Record, record};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);
const ROUTES_MAX: usize = 4;
/// Separates the steps of a script; it occurs in no protocol text.
const STEP: u8 = 0xff;

/// A broker and everything it has sent.
struct World {
    broker: Broker,
    now: Instant,
    cid: u64,
    /// By connection, those that are open.
    sent: BTreeMap<Slot, Vec<u8>>,
    effects: Vec<Effect>,
    dials: usize,
}

impl World {
    fn new(route_auth: Auth) -> Self {
        let mut settings = Settings::default();
        settings.info.headers = true;
        let mut cluster = ClusterSettings {
            auth: route_auth,
            auth_timeout: Duration::from_secs(1),
            client_urls: vec!["127.0.0.1:4222".into()],
            pending_bytes_max: 1 << 20,
            ..ClusterSettings::default()
        };
        cluster.info.server_id = "own".into();
        cluster.info.headers = true;
        settings.cluster = Some(cluster);
        let (now, region) = (Instant::now(), RegionMut::map(1 << 20));
        let region = region.expect("a mebibyte of memory");
        Self {
            broker: Broker::new(Arc::new(settings), 0, 1, region, Random::new(1), now),
            now,
            cid: 0,
            sent: BTreeMap::new(),
            effects: Vec::new(),
            dials: 0,
        }
    }

    fn client(&mut self, connect: &str, subscribe: &str) -> Slot {
        self.cid += 1;
        let slot = self.broker.open(self.cid, PEER, self.now);
        self.sent.insert(slot, Vec::new());
        let hello = format!("CONNECT {connect}\r\n{subscribe}");
        self.feed(slot, hello.as_bytes());
        self.turn();
        self.sent.insert(slot, Vec::new());
        slot
    }

    fn route(&mut self, dialled: bool) -> Slot {
        self.cid += 1;
        let dial = dialled.then(|| Dial {
            url: RouteUrl::parse("nats://127.0.0.1:2").expect("an address"),
            explicit: true,
            wait: Duration::ZERO,
            retries: 0,
        });
        let slot = self.broker.open_route(self.cid, PEER, dial, self.now);
        self.sent.insert(slot, Vec::new());
        slot
    }

    fn feed(&mut self, slot: Slot, bytes: &[u8]) {
        self.broker.handle_bytes(slot, bytes, self.now);
    }

    /// What a loop does at the end of a turn, until nothing is left to do.
    fn turn(&mut self) {
        loop {
            self.broker.end_turn();
            let mut dirty = Vec::new();
            self.broker.take_dirty(&mut dirty);
            for slot in &dirty {
                self.write(*slot);
            }
            let mut effects = std::mem::take(&mut self.effects);
            self.broker.take_effects(&mut effects);
            if dirty.is_empty() && effects.is_empty() {
                return;
            }
            for effect in effects.drain(..) {
                self.apply(effect);
            }
            self.effects = effects;
        }
    }

    fn write(&mut self, slot: Slot) {
        let mut pieces = Vec::new();
        while self.broker.has_output(slot) {
            pieces.clear();
            self.broker.start_write(slot, 64, usize::MAX, &mut pieces);
            let sent = self.sent.entry(slot).or_default();
            let before = sent.len();
            for piece in &pieces {
                sent.extend_from_slice(match piece {
                    Piece::Region { offset, len } => self.broker.output(*offset, *len),
                    Piece::Shared(bytes) => bytes,
                });
            }
            let bytes = sent.len() - before;
            assert!(bytes > 0, "output that is never written");
            self.broker.handle_written(slot, bytes, self.now);
        }
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Close { slot, .. } => {
                self.write(slot);
                self.broker.release(slot);
                self.judge(slot);
            }
            Effect::Verify { slot, cid, .. } => {
                self.broker.handle_verdict(slot, cid, None, false, self.now);
            }
            Effect::ClientUrls(urls) => self.broker.set_client_urls(urls),
            Effect::Dial(_) => self.dials += 1,
            Effect::Resume { .. } => {}
        }
    }

    /// Everything a connection was sent is protocol, with nothing left open.
    fn judge(&mut self, slot: Slot) {
        let sent = self.sent.remove(&slot).expect("each is judged once");
        // MSG and HMSG are what a parser of routes reads.
        let sink = Record {
            headers: true,
            ..Record::default()
        };
        // A message that is not whole would take this for a part of itself.
        let (read, outcome) = record(Kind::Route, false, &sink, &[&sent, b"PING\r\n"]);
        let last = read.events.last().map(String::as_str);
        assert_eq!(
            (outcome.as_str(), last),
            ("more", Some("PING")),
            "{}",
            sent.escape_ascii()
        );
    }

    fn take(&mut self, slot: Slot) -> Vec<u8> {
        std::mem::take(self.sent.get_mut(&slot).expect("it is open"))
    }

    /// Closes everything; nothing may stay behind.
    fn end(mut self) {
        let slots: Vec<Slot> = self.sent.keys().copied().collect();
        for slot in slots {
            self.broker.handle_gone(slot, self.now);
        }
        self.turn();
        assert!(self.sent.is_empty());
        assert_eq!(self.broker.chunks_taken(), 0);
        assert_eq!(self.broker.subscription_count(), 0);
        assert_eq!(self.broker.sublist().pattern_count(), 0);
        assert!(self.broker.route_slots().is_empty());
    }
}

/// Any steps of other servers: routes come, say anything, go, and time passes. No panic; what leaves
/// is protocol; a route hears of what we want and gets what it asked for; clients of ours go on
/// unharmed; nothing stays behind.
///
/// Steps are separated by 0xff; the first byte of each says what it is.
pub fn routes(data: &[u8]) {
    let Some((flags, script)) = data.split_first() else {
        return;
    };
    let mut auth = Auth::default();
    if flags & 1 != 0 {
        auth.single = Some(("user".into(), Secret::new("password")));
    }
    let mut world = World::new(auth);
    let quiet = "{\"verbose\":false}";
    let subscriber = world.client(quiet, "SUB own.check 1\r\nSUB own.group q 2\r\n");
    let publisher = world.client(quiet, "");
    if flags & 2 != 0 {
        // More than a route hears of at once, and of one client less than a portion of those that go.
        for client in 0..4 {
            let lines = (0..15).map(|n| format!("SUB many.{client}.{n} {n}\r\n"));
            world.client(quiet, &lines.collect::<String>());
        }
    }
    let mut routes: Vec<Slot> = Vec::new();
    for step in script.split(|byte| *byte == STEP) {
        let Some((what, rest)) = step.split_first() else {
            continue;
        };
        let chosen = routes.get(usize::from(what >> 4) % ROUTES_MAX).copied();
        match (what % 16, chosen) {
            (0 | 1, _) if routes.len() < ROUTES_MAX => routes.push(world.route(what % 16 == 1)),
            (2, Some(route)) => world.broker.handle_gone(route, world.now),
            (3, _) => {
                world.now += Duration::from_secs(u64::from(rest.first().copied().unwrap_or(1)));
                world.broker.handle_timeouts(world.now);
            }
            (4, _) => world.feed(publisher, b"PUB own.check 2\r\nhi\r\nPUB a.b r 2\r\nhi\r\n"),
            (_, Some(route)) => world.feed(route, rest),
            (_, None) => {}
        }
        world.turn();
        // Clients answer PINGs; routes may, or may not.
        for client in [subscriber, publisher] {
            world.feed(client, b"PONG\r\n");
        }
        routes.retain(|route| world.sent.contains_key(route));
    }
    assert!(world.dials <= data.len());
    // The clients of this server have what they had, once each.
    world.take(subscriber);
    world.feed(publisher, b"PUB own.check 2\r\nhi\r\n");
    world.turn();
    assert_eq!(
        world.take(subscriber),
        b"MSG own.check 1 2\r\nhi\r\n",
        "a client misses its message, or has it twice"
    );
    let before: u64 = world.broker.totals_out();
    world.feed(publisher, b"PUB own.group 2\r\nhi\r\n");
    world.turn();
    assert!(world.broker.totals_out() > before, "nobody of the group");
    world.serve_another(publisher, data);
    world.end();
}

impl World {
    /// One more server comes, with manners: it hears of what we want, and gets what it asks for, once.
    fn serve_another(&mut self, publisher: Slot, data: &[u8]) {
        // Nobody may have called itself so.
        let mut names = (0..).map(|number| format!("another-{number}"));
        let taken = |name: &str| data.windows(name.len()).any(|part| part == name.as_bytes());
        let name = names.find(|name| !taken(name)).expect("data is finite");
        let route = self.route(false);
        let hello = format!(
            "CONNECT {{\"verbose\":false,\"user\":\"user\",\"pass\":\"password\"}}\r\nINFO {{\"server_id\":\"{name}\"}}\r\nPING\r\n"
        );
        self.feed(route, hello.as_bytes());
        self.turn();
        let told = String::from_utf8_lossy(&self.take(route)).into_owned();
        for wanted in ["SUB own.check  RSID:", "SUB own.group q QRSID:", "PONG\r\n"] {
            assert!(told.contains(wanted), "{wanted} is missing in {told}");
        }
        self.feed(route, b"SUB a.b  RSID:1:1\r\n");
        self.feed(publisher, b"PUB a.b 2\r\nhi\r\n");
        self.turn();
        assert_eq!(self.take(route), b"MSG a.b RSID:1:1 2\r\nhi\r\n");
    }
}

impl Broker {
    /// Messages out of all connections that are open.
    fn totals_out(&self) -> u64 {
        self.clients()
            .map(|(_, client)| client.traffic.messages_out)
            .sum()
    }
}

/// Messages with any headers, published by a client and by another server: each receiver gets the
/// form it understands, byte for byte.
///
/// Each message is four bytes (what it is, sizes, how it is cut) and what its sizes ask for.
pub fn headers(mut data: &[u8]) {
    let mut world = World::new(Auth::default());
    let connect =
        |headers| format!("{{\"verbose\":false,\"pedantic\":false,\"headers\":{headers}}}");
    let plain = world.client(&connect(false), "SUB a.> 1\r\n");
    let modern = world.client(&connect(true), "SUB a.* 22\r\n");
    let publisher = world.client(&connect(true), "");
    let mut route = |id: &str, headers: bool| {
        let slot = world.route(false);
        let hello = format!(
            "INFO {{\"server_id\":\"{id}\",\"headers\":{headers}}}\r\nSUB a.b  RSID:7:7\r\n"
        );
        world.feed(slot, hello.as_bytes());
        world.turn();
        slot
    };
    let (old_route, route) = (route("old", false), route("new", true));
    world.turn();
    let receivers = [(plain, "1", false), (modern, "22", true)];
    let servers = [(old_route, "RSID:7:7", false), (route, "RSID:7:7", true)];
    for (slot, ..) in receivers.iter().chain(&servers) {
        world.take(*slot);
    }
    while let [flags, header_bytes, payload_bytes, cut, rest @ ..] = data {
        let with_headers = flags & 1 != 0;
        let header_bytes = match with_headers {
            true => usize::from(*header_bytes).min(rest.len()),
            false => 0,
        };
        let (header, rest) = rest.split_at(header_bytes);
        let (payload, rest) = rest.split_at(usize::from(*payload_bytes).min(rest.len()));
        data = rest;
        // Large messages take another way.
        let times = if flags & 4 != 0 { 200 } else { 1 };
        let (header, payload) = (header.repeat(times), payload.repeat(times));
        let reply = if flags & 2 != 0 { "r " } else { "" };
        let total = header.len() + payload.len();
        let sizes = match with_headers {
            true => format!("{} {total}", header.len()),
            false => total.to_string(),
        };
        let by_route = flags & 8 != 0;
        let (from, line) = match (by_route, with_headers) {
            (false, false) => (publisher, format!("PUB a.b {reply}{sizes}\r\n")),
            (false, true) => (publisher, format!("HPUB a.b {reply}{sizes}\r\n")),
            (true, false) => (route, format!("MSG a.b RSID:1:1 {reply}{sizes}\r\n")),
            (true, true) => (route, format!("HMSG a.b RSID:1:1 {reply}{sizes}\r\n")),
        };
        let sent = [line.as_bytes(), &header, &payload, b"\r\n"].concat();
        for piece in sent.chunks(usize::from(*cut) * times + 1) {
            world.feed(from, piece);
        }
        world.turn();
        let expected = |sid: &str, understands: bool| match (with_headers, understands) {
            (true, true) => [
                format!("HMSG a.b {sid} {reply}{sizes}\r\n").as_bytes(),
                &header,
                &payload,
                b"\r\n",
            ]
            .concat(),
            _ => [
                format!("MSG a.b {sid} {reply}{}\r\n", payload.len()).as_bytes(),
                &payload,
                b"\r\n",
            ]
            .concat(),
        };
        for (slot, sid, understands) in receivers {
            assert!(world.take(slot) == expected(sid, understands), "{sid}");
        }
        for (slot, sid, understands) in servers {
            let expected = match by_route {
                true => Vec::new(),
                false => expected(sid, understands),
            };
            assert!(world.take(slot) == expected, "{sid} {understands}");
        }
    }
    world.end();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    /// Two servers, one of them dialled; the second tells of a third one.
    const SCRIPT: &[&[u8]] = &[
        b"\x00\x00",
        b"\x05INFO {\"server_id\":\"x\",\"port\":6222,\"connect_urls\":[\"1.2.3.4:5\"]}\r\nSUB own.check  RSID:1:1\r\nSUB own.group q QRSID:1:2\r\n",
        b"\x01",
        b"\x15INFO {\"server_id\":\"y\",\"headers\":true}\r\nINFO {\"server_id\":\"z\",\"ip\":\"nats-route://1.2.3.4:5/\"}\r\n",
        b"\x04",
        b"\x05MSG own.check RSID:1:1 2\r\nhi\r\nMSG own.group QRSID:1:2 2\r\nhi\r\nUNSUB RSID:1:1\r\n",
        b"\x15SUB a.b r QRSID:4:4\r\nUNSUB QRSID:4:4 2\r\nPING\r\nHMSG own.check RSID:1:1 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
        b"\x04",
        b"\x03\x78",
        b"\x04",
        b"\x02",
        b"\x03\xf0",
    ];

    #[test]
    fn a_script() {
        for flags in 0..4 {
            let mut data = SCRIPT.join(&super::STEP);
            data[0] = flags;
            super::routes(&data);
        }
    }

    proptest! {
        #[test]
        fn any_steps(
            flags: u8,
            picks in proptest::collection::vec((0..SCRIPT.len(), 0..200usize, "[ -~]{0,3}"), 0..14),
        ) {
            let mut data = vec![flags];
            for (pick, cut, junk) in picks {
                let step = SCRIPT[pick];
                data.push(super::STEP);
                data.extend_from_slice(&step[..step.len() - cut.saturating_sub(150).min(step.len())]);
                data.extend_from_slice(junk.as_bytes());
            }
            super::routes(&data);
        }

        #[test]
        fn any_headers(data in proptest::collection::vec(any::<u8>(), 0..600)) {
            super::headers(&data);
        }
    }
}
