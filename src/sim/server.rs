//! One simulated server: its brokers, and the sockets between them and the network.

use super::net::{ConnectionId, Item, Micros, Side};
use crate::broker::Broker;
use crate::broker::mail::Batch;
use crate::broker::outbox::Piece;
use crate::broker::settings::{ClusterSettings, Settings};
use crate::config::route_url::RouteUrl;
use crate::util::random::Random;
use crate::util::region::RegionMut;
use crate::wire::info::Info;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

const ROUTE_PORT: u16 = 6222;
const REGION_BYTES: usize = 256 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Open,
    /// What is pending may still leave.
    Flushing {
        until: Micros,
    },
}

pub struct Socket {
    pub connection: ConnectionId,
    pub side: Side,
    pub stage: Stage,
    received: Vec<u8>,
    /// The peer closed behind what was received.
    ended: bool,
}

/// One loop of a server.
pub struct Lane {
    pub broker: Broker,
    pub sockets: Vec<Option<Socket>>,
    pub mail: Vec<(u16, Batch)>,
    pub client_urls: Option<Arc<Vec<String>>>,
    /// Slots with input, and slots whose pipe has room again.
    pub readable: Vec<u32>,
    pub writable: Vec<u32>,
    /// A turn is coming.
    pub awake: bool,
    /// The deadline for which a turn is coming.
    pub deadline: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    /// The process ended.
    Stopped,
    /// The machine is gone.
    Dark,
}

pub struct Server {
    site: usize,
    state: State,
    /// Counts the processes that ran here.
    pub life: u32,
    pub id: String,
    pub routes: Vec<RouteUrl>,
    pub lanes: Vec<Lane>,
    pub last_cid: u64,
    loops: u16,
    connect_retries: u32,
}

impl Server {
    /// Servers that know one seed, their neighbour, or all of them.
    pub fn cluster(sites: usize, random: &mut fastrand::Rng) -> Vec<Server> {
        let shape = random.u8(..4);
        let knows = |site: usize, other: usize| match shape {
            0 => other == 0,
            1 => other + 1 == site,
            2 => other == (site + 1) % sites,
            _ => true,
        };
        (0..sites)
            .map(|site| Server {
                site,
                state: State::Stopped,
                life: 0,
                id: String::new(),
                routes: (0..sites)
                    .filter(|other| knows(site, *other))
                    .map(|other| RouteUrl {
                        host: Self::address(other).ip().to_string(),
                        port: ROUTE_PORT,
                        user: String::new(),
                        password: Default::default(),
                    })
                    .collect(),
                lanes: Vec::new(),
                last_cid: 0,
                loops: random.u16(1..=2),
                connect_retries: random.u32(..2),
            })
            .collect()
    }

    pub fn address(site: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, site as u8], ROUTE_PORT))
    }

    pub fn site_of(url: &RouteUrl) -> usize {
        let last = url
            .host
            .rsplit('.')
            .next()
            .and_then(|part| part.parse().ok());
        last.expect("all addresses are of the simulation")
    }

    pub fn client_url(site: usize) -> String {
        format!("10.0.0.{site}:4222")
    }

    pub fn is_running(&self) -> bool {
        self.state == State::Running
    }

    /// Its machine answers nothing at all.
    pub fn is_dark(&self) -> bool {
        self.state == State::Dark
    }

    /// Whether this is still the same process.
    pub fn is_in(&self, life: u32) -> bool {
        self.is_running() && self.life == life
    }

    pub fn start(&mut self, random: &mut fastrand::Rng, now: Instant) {
        self.state = State::Running;
        self.life += 1;
        self.last_cid = 0;
        // Which of two ids is smaller decides which of two connections stays.
        self.id = format!("{:04x}-{}-{}", random.u16(..), self.site, self.life);
        let settings = Arc::new(self.settings());
        self.lanes = (0..self.loops)
            .map(|index| Lane::new(settings.clone(), index, self.loops, random.u64(..), now))
            .collect();
    }

    pub fn stop(&mut self, notice: bool) -> Vec<Lane> {
        self.state = if notice { State::Stopped } else { State::Dark };
        std::mem::take(&mut self.lanes)
    }

    fn settings(&self) -> Settings {
        let urls = vec![Self::client_url(self.site)];
        let info = Info {
            server_id: self.id.clone(),
            max_payload: 1 << 20,
            proto: 1,
            headers: true,
            ..Info::default()
        };
        let cluster = ClusterSettings {
            info: Info {
                host: Self::address(self.site).ip().to_string(),
                port: ROUTE_PORT,
                connect_urls: urls.clone(),
                ..info.clone()
            },
            client_urls: urls,
            routes: self.routes.clone(),
            connect_retries: self.connect_retries,
            pending_bytes_max: 256 << 10,
            ..ClusterSettings::default()
        };
        Settings {
            info,
            write_deadline: Duration::from_millis(600),
            ping_interval: Duration::from_millis(800),
            cluster: Some(cluster),
            ..Settings::default()
        }
    }
}

impl Lane {
    fn new(settings: Arc<Settings>, index: u16, loops: u16, seed: u64, now: Instant) -> Self {
        let region = RegionMut::map(REGION_BYTES).expect("memory for a region");
        Self {
            broker: Broker::new(settings, index, loops, region, Random::new(seed), now),
            sockets: Vec::new(),
            mail: Vec::new(),
            client_urls: None,
            readable: Vec::new(),
            writable: Vec::new(),
            awake: false,
            deadline: None,
        }
    }

    pub fn take_place(&mut self, slot: u32, connection: ConnectionId, side: Side) {
        let slot = slot as usize;
        if self.sockets.len() <= slot {
            self.sockets.resize_with(slot + 1, || None);
        }
        assert!(self.sockets[slot].is_none(), "a slot was given out twice");
        self.sockets[slot] = Some(Socket {
            connection,
            side,
            stage: Stage::Open,
            received: Vec::new(),
            ended: false,
        });
    }

    pub fn socket(&mut self, slot: u32) -> &mut Socket {
        self.sockets[slot as usize].as_mut().expect("it is open")
    }

    /// Ends a connection; its slot is free.
    pub fn leave(&mut self, slot: u32) -> Socket {
        self.broker.release(slot);
        self.readable.retain(|other| *other != slot);
        self.writable.retain(|other| *other != slot);
        self.sockets[slot as usize].take().expect("it was open")
    }

    pub fn is_writable(&mut self, slot: u32) {
        self.writable.push(slot);
    }

    pub fn receive(&mut self, slot: u32, item: Item) {
        let socket = self.socket(slot);
        match item {
            Item::Bytes(bytes) => socket.received.extend(bytes),
            Item::End => socket.ended = true,
            Item::Reset => {
                socket.received.clear();
                socket.ended = true;
            }
        }
        self.readable.push(slot);
    }

    pub fn act_on_input(&mut self, now: Instant) {
        for slot in std::mem::take(&mut self.readable) {
            let Some(socket) = self.sockets.get_mut(slot as usize).and_then(Option::as_mut) else {
                continue;
            };
            if !self.broker.wants_bytes(slot) {
                continue; // held back, or on its way out
            }
            let bytes = std::mem::take(&mut socket.received);
            self.broker.handle_bytes(slot, &bytes, now);
            if socket.ended && self.broker.wants_bytes(slot) {
                self.broker.handle_gone(slot, now);
            }
        }
    }

    /// What this connection has to write, all of it.
    pub fn pending(&mut self, slot: u32) -> Vec<u8> {
        let mut pieces = Vec::new();
        self.broker
            .start_write(slot, usize::MAX, usize::MAX, &mut pieces);
        let mut bytes = Vec::new();
        for piece in &pieces {
            match piece {
                Piece::Region { offset, len } => {
                    bytes.extend_from_slice(self.broker.output(*offset, *len));
                }
                Piece::Shared(shared) => bytes.extend_from_slice(shared),
            }
        }
        bytes
    }

    /// Connections that were told why, or had their time to hear it.
    pub fn done_flushing(&self, now: Micros) -> Vec<u32> {
        let sockets = (0..).zip(&self.sockets);
        let flushing = sockets.filter_map(|(slot, socket)| match socket.as_ref()?.stage {
            Stage::Open => None,
            Stage::Flushing { until } => Some((slot, until)),
        });
        flushing
            .filter(|(slot, until)| *until <= now || !self.broker.has_output(*slot))
            .map(|(slot, _)| slot)
            .collect()
    }
}
