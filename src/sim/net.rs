//! The simulated network: connections as two pipes of bytes, over links that can be cut.
//!
//! ```text
//!   send: bytes ─> cut into chunks, each with an arrival time no earlier than the one before
//!   pipe: (at, chunk) (at, chunk) (at, end) ─> arrive, unless the link is cut or the reader stalls
//! ```
//!
//! Like TCP: what waits at a cut link arrives after it is healed, in order; a sender may have `window`
//! bytes under way; bytes that reach a closed end are answered with a reset.

use std::collections::VecDeque;

/// Microseconds since the start of the simulation.
pub type Micros = u64;
pub const MILLI: Micros = 1000;
pub const SECOND: Micros = 1_000_000;

/// The longest a chunk takes over a link that works.
pub const DELAY_MAX: Micros = 20 * MILLI;

/// Index of a connection; never used again.
pub type ConnectionId = usize;
/// Which end of a connection: 0 opened it.
pub type Side = usize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Loop { site: usize, index: u16, slot: u32 },
    Client(usize),
    Closed,
}

#[derive(Debug)]
pub enum Item {
    Bytes(Vec<u8>),
    /// The sender closed; everything before this has arrived.
    End,
    /// The sender closed, and what was under way is lost.
    Reset,
}

#[derive(Debug)]
struct Pipe {
    queue: VecDeque<(Micros, Item)>,
    bytes: usize,
    window: usize,
    last_at: Micros,
    /// The reader takes nothing until then.
    stalled_until: Micros,
    /// Something waits for the link to be healed.
    parked: bool,
}

#[derive(Debug)]
pub struct Connection {
    pub ends: [End; 2],
    /// Where the ends are: a cut link between two sites stops it. Clients sit beside their server.
    pub sites: [usize; 2],
    /// Between two servers.
    pub is_route: bool,
    pipes: [Pipe; 2],
}

/// What `Network::arrive` found.
pub enum Arrival {
    Item(Item),
    /// Try again at this time.
    Later(Micros),
    Nothing,
}

pub struct Network {
    pub connections: Vec<Connection>,
    /// `cut[from][to]`: nothing arrives in this direction.
    cut: Vec<Vec<bool>>,
}

impl Network {
    pub fn new(sites: usize) -> Self {
        Self {
            connections: Vec::new(),
            cut: vec![vec![false; sites]; sites],
        }
    }

    /// A connection whose ends are still to be set.
    pub fn connect(&mut self, sites: [usize; 2], is_route: bool, window: usize) -> ConnectionId {
        let pipe = || Pipe {
            queue: VecDeque::new(),
            bytes: 0,
            window,
            last_at: 0,
            stalled_until: 0,
            parked: false,
        };
        self.connections.push(Connection {
            ends: [End::Closed; 2],
            sites,
            is_route,
            pipes: [pipe(), pipe()],
        });
        self.connections.len() - 1
    }

    /// Whether packets pass both ways.
    pub fn is_open(&self, a: usize, b: usize) -> bool {
        !self.cut[a][b] && !self.cut[b][a]
    }

    pub fn cut(&mut self, from: usize, to: usize) {
        self.cut[from][to] = true;
    }

    /// Heals all links; returns the pipes in which something waited.
    pub fn heal(&mut self) -> Vec<(ConnectionId, Side)> {
        self.cut.iter_mut().for_each(|row| row.fill(false));
        self.parked(|_| true)
    }

    /// The pipes in which something waited for this site to come back.
    pub fn waiting_for(&mut self, site: usize) -> Vec<(ConnectionId, Side)> {
        self.parked(|sites| sites.contains(&site))
    }

    fn parked(&mut self, between: impl Fn([usize; 2]) -> bool) -> Vec<(ConnectionId, Side)> {
        let mut waiting = Vec::new();
        let connections = self.connections.iter_mut().enumerate();
        for (id, connection) in connections.filter(|(_, c)| between(c.sites)) {
            for (side, pipe) in connection.pipes.iter_mut().enumerate() {
                if std::mem::take(&mut pipe.parked) {
                    waiting.push((id, side));
                }
            }
        }
        waiting
    }

    /// The reader of this pipe takes nothing until `until`.
    pub fn stall(&mut self, id: ConnectionId, side: Side, until: Micros) {
        self.connections[id].pipes[side].stalled_until = until;
    }

    /// What is in this pipe waits until the link is healed, or the reader's machine is back.
    pub fn park(&mut self, id: ConnectionId, side: Side) {
        self.connections[id].pipes[side].parked = true;
    }

    pub fn room(&self, id: ConnectionId, side: Side) -> usize {
        let pipe = &self.connections[id].pipes[side];
        pipe.window.saturating_sub(pipe.bytes)
    }

    /// Puts bytes on their way in chunks of random size; returns when each arrives.
    pub fn send(
        &mut self,
        id: ConnectionId,
        side: Side,
        bytes: &[u8],
        now: Micros,
        random: &mut fastrand::Rng,
    ) -> Vec<Micros> {
        let mut rest = bytes;
        let mut arrivals = Vec::new();
        while !rest.is_empty() {
            let most = rest.len();
            let len = match random.u8(..8) {
                0 => random.usize(1..=most.min(9)),
                1 | 2 => random.usize(1..=most),
                _ => most,
            };
            let (chunk, left) = rest.split_at(len);
            rest = left;
            arrivals.push(self.push(id, side, Item::Bytes(chunk.to_vec()), now, random));
        }
        arrivals
    }

    /// One end closes; returns when the other one notices.
    pub fn close(
        &mut self,
        id: ConnectionId,
        side: Side,
        item: Item,
        now: Micros,
        random: &mut fastrand::Rng,
    ) -> Micros {
        self.connections[id].ends[side] = End::Closed;
        if matches!(item, Item::Reset) {
            let pipe = &mut self.connections[id].pipes[side];
            pipe.queue.clear();
            pipe.bytes = 0;
        }
        self.push(id, side, item, now, random)
    }

    fn push(
        &mut self,
        id: ConnectionId,
        side: Side,
        item: Item,
        now: Micros,
        random: &mut fastrand::Rng,
    ) -> Micros {
        let pipe = &mut self.connections[id].pipes[side];
        if let Item::Bytes(bytes) = &item {
            pipe.bytes += bytes.len();
        }
        let at = pipe.last_at.max(now + random.u64(100..DELAY_MAX));
        pipe.last_at = at;
        pipe.queue.push_back((at, item));
        at
    }

    /// The next item of a pipe, if it has come.
    pub fn arrive(&mut self, id: ConnectionId, side: Side, now: Micros) -> Arrival {
        let connection = &mut self.connections[id];
        let (from, to) = (connection.sites[side], connection.sites[1 - side]);
        let pipe = &mut connection.pipes[side];
        let Some((at, _)) = pipe.queue.front() else {
            return Arrival::Nothing;
        };
        let at = (*at).max(pipe.stalled_until);
        if at > now {
            return Arrival::Later(at);
        }
        if self.cut[from][to] {
            pipe.parked = true;
            return Arrival::Nothing;
        }
        let (_, item) = pipe.queue.pop_front().expect("it was there above");
        if let Item::Bytes(bytes) = &item {
            pipe.bytes -= bytes.len();
        }
        Arrival::Item(item)
    }
}
