//! Servers, clients and the network between them, moved by one queue of events.

use super::checks::{Ended, Ledger, MessageId, SETTLE, Subscription, SubscriptionId};
use super::client::{Client, Heard};
use super::net::{
    Arrival, Connection, ConnectionId, DELAY_MAX, End, Item, MILLI, Micros, Network, SECOND, Side,
};
use super::sabotage::Saboteur;
use super::server::{Lane, Server, Stage};
use crate::broker::effect::{CloseReason, Dial, Effect};
use crate::broker::mail::Backlog;
use crate::broker::propagate::{ROUTE_LOOP, next_cid};
use crate::wire::errors::STALE_CONNECTION;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// As server/dial.rs has them.
const CONNECT_TIME_MAX: Micros = SECOND;
/// A connection that was told why it is closed may take this long to read it.
const FLUSH_TIME_MAX: Micros = 2 * SECOND;
/// Between something that concerns a loop and its next turn, at most.
const TURN_WITHIN: Micros = 300;

enum Event {
    Turn {
        site: usize,
        life: u32,
        index: u16,
    },
    Arrive {
        connection: ConnectionId,
        side: Side,
    },
    Dial {
        site: usize,
        life: u32,
        dial: Dial,
        tries: u32,
    },
    Connect {
        site: usize,
        life: u32,
        to: usize,
        dial: Dial,
        tries: u32,
    },
}

pub struct World {
    pub now: Micros,
    started_at: Instant,
    events: BTreeMap<(Micros, u64), Event>,
    event_count: u64,
    pub random: fastrand::Rng,
    pub net: Network,
    pub servers: Vec<Server>,
    pub clients: Vec<Client>,
    pub ledger: Ledger,
    pub saboteur: Saboteur,
    /// Members of queue groups have not come or gone since then.
    pub still_since: Option<Micros>,
    /// Published messages have to arrive.
    pub promising: bool,
    /// The first promise that was broken.
    pub broken: Option<String>,
    /// The latest events, and how many are kept.
    trace: VecDeque<String>,
    trace_lines: usize,
}

impl World {
    pub fn new(seed: u64, saboteur: Saboteur, trace_lines: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let sites = random.usize(2..=5);
        let servers = Server::cluster(sites, &mut random);
        Self {
            now: 0,
            started_at: Instant::now(),
            events: BTreeMap::new(),
            event_count: 0,
            net: Network::new(sites),
            servers,
            clients: Vec::new(),
            ledger: Ledger::default(),
            saboteur,
            still_since: None,
            promising: false,
            broken: None,
            trace: VecDeque::new(),
            trace_lines,
            random,
        }
    }

    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if self.trace_lines == 0 {
            return;
        }
        if self.trace.len() == self.trace_lines {
            self.trace.pop_front();
        }
        let line = format!("{:>9.3} ms  {}", self.now as f64 / 1000.0, line());
        self.trace.push_back(line);
    }

    pub fn take_trace(&mut self) -> Vec<String> {
        std::mem::take(&mut self.trace).into()
    }

    fn breaks(&mut self, promise: String) {
        self.note(|| promise.clone());
        self.broken.get_or_insert(promise);
    }

    fn instant(&self) -> Instant {
        self.started_at + Duration::from_micros(self.now)
    }

    // ---- time

    fn at(&mut self, at: Micros, event: Event) {
        self.event_count += 1;
        self.events.insert((at, self.event_count), event);
    }

    /// Lets time pass, and then has every loop take in what it was not woken for.
    pub fn settle_for(&mut self, time: Micros) {
        self.run_for(time);
        for site in 0..self.servers.len() {
            for index in 0..self.servers[site].lanes.len() as u16 {
                self.wake(site, index);
            }
        }
        self.run_for(TURN_WITHIN);
    }

    /// Lets time pass, until a promise is broken at the latest.
    pub fn run_for(&mut self, time: Micros) {
        let end = self.now + time;
        while self.broken.is_none() {
            match self.events.first_key_value() {
                Some(((at, _), _)) if *at <= end => {}
                _ => break,
            }
            let ((at, _), event) = self.events.pop_first().expect("it was there above");
            self.now = self.now.max(at);
            self.handle(event);
        }
        self.now = end;
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Turn { site, life, index } => {
                if self.servers[site].is_in(life) {
                    self.turn(site, index);
                }
            }
            Event::Arrive { connection, side } => self.arrive(connection, side),
            Event::Dial {
                site,
                life,
                dial,
                tries,
            } => {
                if self.servers[site].is_in(life) {
                    self.dial(site, dial, tries);
                }
            }
            Event::Connect {
                site,
                life,
                to,
                dial,
                tries,
            } => {
                if self.servers[site].is_in(life) {
                    self.connect(site, to, dial, tries);
                }
            }
        }
    }

    // ---- servers come and go

    pub fn start(&mut self, site: usize) {
        let instant = self.instant();
        let server = &mut self.servers[site];
        server.start(&mut self.random, instant);
        let life = server.life;
        let id = server.id.clone();
        let routes = server.routes.clone();
        self.note(|| format!("server {site} starts as {id}"));
        for url in routes {
            let dial = Dial {
                url,
                explicit: true,
                wait: Duration::ZERO,
                retries: 0,
            };
            self.at(
                self.now,
                Event::Dial {
                    site,
                    life,
                    dial,
                    tries: 0,
                },
            );
        }
        for (connection, side) in self.net.waiting_for(site) {
            self.at(self.now, Event::Arrive { connection, side });
        }
    }

    /// Ends a server; with `notice` its kernel closes the connections, without it the machine is
    /// gone as well.
    pub fn stop(&mut self, site: usize, notice: bool) {
        self.note(|| format!("server {site} stops, notice: {notice}"));
        for lane in self.servers[site].stop(notice) {
            for socket in lane.sockets.into_iter().flatten() {
                let (connection, side) = (socket.connection, socket.side);
                self.net.connections[connection].ends[side] = End::Closed;
                if notice || !self.net.connections[connection].is_route {
                    self.close_end(connection, side, Item::End);
                }
            }
        }
    }

    fn dial(&mut self, site: usize, dial: Dial, tries: u32) {
        let to = Server::site_of(&dial.url);
        let life = self.servers[site].life;
        let reachable = self.net.is_open(site, to);
        if reachable && self.servers[to].is_running() {
            let at = self.now + self.random.u64(100..DELAY_MAX);
            return self.at(
                at,
                Event::Connect {
                    site,
                    life,
                    to,
                    dial,
                    tries,
                },
            );
        }
        self.note(|| format!("server {site} cannot dial {to}"));
        let Some(pause) = dial.pause_after(tries) else {
            return;
        };
        let refused = reachable && !self.servers[to].is_dark();
        let took = if refused { MILLI } else { CONNECT_TIME_MAX };
        let at = self.now + took + pause.as_micros() as Micros;
        self.at(
            at,
            Event::Dial {
                site,
                life,
                dial,
                tries: tries + 1,
            },
        );
    }

    fn connect(&mut self, site: usize, to: usize, dial: Dial, tries: u32) {
        let life = self.servers[site].life;
        if !self.servers[to].is_running() || !self.net.is_open(site, to) {
            return self.at(
                self.now,
                Event::Dial {
                    site,
                    life,
                    dial,
                    tries,
                },
            );
        }
        self.note(|| format!("server {site} connects to {to}"));
        let window = [4 << 10, 16 << 10, 256 << 10][self.random.usize(..3)];
        let connection = self.net.connect([site, to], true, window);
        self.open_route(site, connection, 0, Some(dial));
        self.open_route(to, connection, 1, None);
    }

    fn open_route(
        &mut self,
        site: usize,
        connection: ConnectionId,
        side: Side,
        dial: Option<Dial>,
    ) {
        let instant = self.instant();
        let other = self.net.connections[connection].sites[1 - side];
        let server = &mut self.servers[site];
        let cid = server.next_cid(ROUTE_LOOP);
        let lane = &mut server.lanes[ROUTE_LOOP as usize];
        let slot = lane
            .broker
            .open_route(cid, Server::address(other), dial, instant);
        lane.take_place(slot, connection, side);
        self.net.connections[connection].ends[side] = End::Loop {
            site,
            index: ROUTE_LOOP,
            slot,
        };
        self.wake(site, ROUTE_LOOP);
    }

    // ---- clients

    /// A new client at a server that runs.
    pub fn open_client(&mut self, site: usize, index: u16) -> usize {
        let instant = self.instant();
        let number = self.clients.len();
        let connection = self.net.connect([site, site], false, 64 << 10);
        let server = &mut self.servers[site];
        let cid = server.next_cid(index);
        let lane = &mut server.lanes[index as usize];
        let slot = lane
            .broker
            .open(cid, SocketAddr::from(([10, 1, 0, 1], 1)), instant);
        lane.take_place(slot, connection, 1);
        self.net.connections[connection].ends =
            [End::Client(number), End::Loop { site, index, slot }];
        self.clients.push(Client::new(site, cid, connection));
        self.note(|| {
            format!("client {number} (cid {cid}) connects to server {site}, loop {index}")
        });
        self.wake(site, index);
        let connect = "CONNECT {\"verbose\":false,\"pedantic\":false,\"protocol\":1,\"headers\":true}\r\nPING\r\n";
        self.say(number, connect);
        number
    }

    pub fn say(&mut self, client: usize, text: &str) {
        self.note(|| {
            format!(
                "client {client}: {}",
                text.trim_end().replace("\r\n", " | ")
            )
        });
        let connection = self.clients[client].connection;
        self.put_on_wire(connection, 0, text.as_bytes());
    }

    pub fn close_client(&mut self, client: usize) {
        self.note(|| format!("client {client} closes"));
        self.clients[client].open = false;
        self.ledger.client_gone(client, self.now);
        let connection = self.clients[client].connection;
        self.close_end(connection, 0, Item::End);
    }

    pub fn subscribe(
        &mut self,
        client: usize,
        pattern: &str,
        queue: Option<&'static str>,
        max: Option<usize>,
    ) -> SubscriptionId {
        let sid = self.clients[client].next_sid();
        let mut text = format!("SUB {pattern} {} {sid}\r\n", queue.unwrap_or_default());
        if let Some(max) = max {
            text += &format!("UNSUB {sid} {max}\r\n");
        }
        self.say(client, &text);
        self.ledger.subscribe(Subscription {
            client,
            sid,
            pattern: pattern.to_owned(),
            queue,
            max,
            since: self.now,
            ended: None,
            got: Default::default(),
        })
    }

    pub fn unsubscribe(&mut self, id: SubscriptionId) {
        self.ledger.end(id, self.now, Ended::Unsubscribed);
        let subscription = &self.ledger.subscriptions[id];
        let (client, text) = (
            subscription.client,
            format!("UNSUB {}\r\n", subscription.sid),
        );
        self.say(client, &text);
    }

    /// Publishes the next message, whose payload is its number.
    pub fn publish(
        &mut self,
        client: usize,
        subject: &str,
        reply: &str,
        answers: Option<SubscriptionId>,
    ) -> MessageId {
        let id = self.ledger.messages.len();
        self.ledger.messages.push(super::checks::Message {
            publisher: client,
            subject: subject.to_owned(),
            at: self.now,
            promised: self.promising,
            answers: answers.filter(|_| self.promising),
        });
        let size = match self.random.u8(..50) {
            0 => self.random.usize(10..20_000),
            1..5 => self.random.usize(10..2000),
            _ => 10,
        };
        let payload = format!("{id:<size$}");
        let text = match self.random.u8(..4) {
            0 => format!(
                "HPUB {subject} {reply} 12 {}\r\nNATS/1.0\r\n\r\n{payload}\r\n",
                size + 12
            ),
            _ => format!("PUB {subject} {reply} {size}\r\n{payload}\r\n"),
        };
        self.note(|| format!("client {client} publishes {id} on {subject}"));
        let connection = self.clients[client].connection;
        self.put_on_wire(connection, 0, text.as_bytes());
        id
    }

    fn client_hears(&mut self, number: usize, bytes: &[u8]) {
        for heard in self.clients[number].handle_bytes(bytes) {
            match heard {
                Heard::Ping => self.say(number, "PONG\r\n"),
                Heard::Message {
                    sid,
                    subject,
                    reply,
                    payload,
                } => {
                    self.client_gets(number, &sid, &subject, reply, &payload);
                }
                // A client on a stalled connection is taken for dead.
                Heard::Error(text) if text.contains(STALE_CONNECTION) && !self.promising => {}
                Heard::Error(text) => self.breaks(format!("client {number} was told {text}")),
            }
        }
    }

    fn client_gets(
        &mut self,
        number: usize,
        sid: &str,
        subject: &str,
        reply: Option<String>,
        payload: &str,
    ) {
        let Ok(id) = payload.trim_end().parse::<MessageId>() else {
            return self.breaks(format!("client {number} got {payload:?}"));
        };
        self.note(|| format!("client {number} gets {id} on {subject}, sid {sid}"));
        let still = self
            .still_since
            .is_some_and(|since| self.ledger.messages[id].at >= since + SETTLE);
        let result = self
            .ledger
            .deliver(number, sid, id, subject, still, self.now);
        match (result, reply) {
            (Err(promise), _) => self.breaks(promise),
            (Ok(to), Some(reply)) => self.answer(number, to, &reply, still),
            (Ok(_), None) => {}
        }
    }

    fn answer(&mut self, number: usize, to: SubscriptionId, reply: &str, still: bool) {
        if !self.clients[number].open {
            return;
        }
        // Through a member of a group that has left, a request may come by a third server, and earlier
        // than the interest in its reply.
        let direct = self.ledger.subscriptions[to].queue.is_none() || still;
        let inbox = self.ledger.live().find(|(_, s)| s.pattern == *reply);
        let inbox = inbox.map(|(id, _)| id).filter(|_| direct);
        self.publish(number, reply, "", inbox);
    }

    // ---- bytes

    fn put_on_wire(&mut self, connection: ConnectionId, side: Side, bytes: &[u8]) {
        let arrivals = self
            .net
            .send(connection, side, bytes, self.now, &mut self.random);
        for at in arrivals {
            self.at(at, Event::Arrive { connection, side });
        }
    }

    fn close_end(&mut self, connection: ConnectionId, side: Side, item: Item) {
        let at = self
            .net
            .close(connection, side, item, self.now, &mut self.random);
        self.at(at, Event::Arrive { connection, side });
    }

    pub fn cut(&mut self, from: usize, to: usize) {
        if from != to {
            self.note(|| format!("nothing gets from {from} to {to}"));
            self.net.cut(from, to);
        }
    }

    /// What one end of some connection sends is not read for a while.
    pub fn stall(&mut self) {
        let count = self.net.connections.len();
        if count > 0 {
            let connection = self.random.usize(..count);
            // Servers read what clients say.
            let is_route = self.net.connections[connection].is_route;
            let side = if is_route { self.random.usize(..2) } else { 1 };
            let until = self.now + self.random.u64(100 * MILLI..3 * SECOND);
            self.note(|| format!("side {side} of connection {connection} is not read"));
            self.net.stall(connection, side, until);
        }
    }

    pub fn heal(&mut self) {
        self.note(|| "all links are healed".into());
        for (connection, side) in self.net.heal() {
            let at = self.now + self.random.u64(..DELAY_MAX);
            self.at(at, Event::Arrive { connection, side });
        }
    }

    fn arrive(&mut self, connection: ConnectionId, side: Side) {
        let [from, to] = [side, 1 - side].map(|side| self.net.connections[connection].sites[side]);
        if from != to && self.servers[to].is_dark() {
            return self.net.park(connection, side);
        }
        let item = match self.net.arrive(connection, side, self.now) {
            Arrival::Item(item) => item,
            Arrival::Later(at) => return self.at(at, Event::Arrive { connection, side }),
            Arrival::Nothing => return,
        };
        // There may be more behind it that was parked.
        self.at(self.now, Event::Arrive { connection, side });
        if let End::Loop { site, index, slot } = self.net.connections[connection].ends[side] {
            self.servers[site].lanes[index as usize].is_writable(slot);
            self.wake(site, index);
        }
        match (self.net.connections[connection].ends[1 - side], item) {
            (End::Loop { site, index, slot }, item) => {
                self.servers[site].lanes[index as usize].receive(slot, item);
                self.wake(site, index);
            }
            (End::Client(number), Item::Bytes(bytes)) => self.client_hears(number, &bytes),
            (End::Client(number), Item::End | Item::Reset) => self.close_client(number),
            (End::Closed, Item::Bytes(_)) => {
                let Connection { ends, is_route, .. } = &self.net.connections[connection];
                if *is_route && ends[side] != End::Closed {
                    self.close_end(connection, 1 - side, Item::Reset);
                }
            }
            (End::Closed, Item::End | Item::Reset) => {}
        }
    }

    // ---- turns, as server/event_loop.rs has them

    fn wake(&mut self, site: usize, index: u16) {
        let server = &mut self.servers[site];
        let life = server.life;
        if !std::mem::replace(&mut server.lanes[index as usize].awake, true) {
            let at = self.now + self.random.u64(..TURN_WITHIN);
            self.at(at, Event::Turn { site, life, index });
        }
    }

    fn turn(&mut self, site: usize, index: u16) {
        let now = self.instant();
        let server = &mut self.servers[site];
        let loops = server.lanes.len() as u16;
        let lane = &mut server.lanes[index as usize];
        lane.awake = false;
        let mail = std::mem::take(&mut lane.mail);
        for (from, batch) in &mail {
            lane.broker.handle_mail(*from, batch, now);
        }
        for (from, _) in mail {
            if self.servers[site].lanes[from as usize]
                .broker
                .waits_for(index)
            {
                self.wake(site, from);
            }
        }
        let lane = &mut self.servers[site].lanes[index as usize];
        if let Some(urls) = lane.client_urls.take() {
            lane.broker.set_client_urls(urls);
        }
        lane.act_on_input(now);
        lane.broker.handle_timeouts(now);
        self.run_effects(site, index);
        self.servers[site].lanes[index as usize].broker.end_turn();
        self.send_mail(site, index, loops);
        self.flush(site, index);
        self.sleep(site, index, now);
    }

    fn run_effects(&mut self, site: usize, index: u16) {
        let mut effects = Vec::new();
        let life = self.servers[site].life;
        self.servers[site].lanes[index as usize]
            .broker
            .take_effects(&mut effects);
        for effect in effects {
            match effect {
                Effect::Close { slot, why } => self.begin_close(site, index, slot, why),
                Effect::Resume { slot } => {
                    self.servers[site].lanes[index as usize].readable.push(slot);
                    self.wake(site, index);
                }
                Effect::Dial(dial) => {
                    let to = dial.url.address();
                    self.note(|| format!("server {site} is going to dial {to}"));
                    let at = self.now + dial.wait.as_micros() as Micros;
                    self.at(
                        at,
                        Event::Dial {
                            site,
                            life,
                            dial,
                            tries: 0,
                        },
                    );
                }
                Effect::ClientUrls(urls) => {
                    for index in 0..self.servers[site].lanes.len() {
                        self.servers[site].lanes[index].client_urls = Some(urls.clone());
                        self.wake(site, index as u16);
                    }
                }
                Effect::Verify { .. } => unreachable!("no passwords here"),
            }
        }
    }

    fn begin_close(&mut self, site: usize, index: u16, slot: u32, why: CloseReason) {
        let now = self.now;
        self.note(|| format!("server {site}, loop {index} closes slot {slot}: {why:?}"));
        let lane = &mut self.servers[site].lanes[index as usize];
        match why {
            CloseReason::Told if lane.broker.has_output(slot) => {
                lane.socket(slot).stage = Stage::Flushing {
                    until: now + FLUSH_TIME_MAX,
                };
                let life = self.servers[site].life;
                self.at(now + FLUSH_TIME_MAX, Event::Turn { site, life, index });
            }
            _ => self.finish_close(site, index, slot),
        }
    }

    fn finish_close(&mut self, site: usize, index: u16, slot: u32) {
        let lane = &mut self.servers[site].lanes[index as usize];
        let socket = lane.leave(slot);
        // A socket closed with input that nobody has read resets the connection.
        let lost = self.random.u8(..4) == 0;
        let is_route = self.net.connections[socket.connection].is_route;
        let item = if lost && is_route {
            Item::Reset
        } else {
            Item::End
        };
        self.close_end(socket.connection, socket.side, item);
    }

    fn send_mail(&mut self, site: usize, index: u16, loops: u16) {
        let others = || (0..loops).filter(move |to| *to != index);
        for to in others() {
            let unread = &self.servers[site].lanes[to as usize].mail;
            let ours = unread.iter().filter(|(from, _)| *from == index);
            let changes = ours.map(|(_, batch)| batch.changes).sum();
            // A loop that is through with its mail does not tell: nobody waits for it, but for bursts.
            let backlog = Backlog { bytes: 0, changes };
            let lag = self.servers[site].lanes[to as usize].broker.lag();
            let broker = &mut self.servers[site].lanes[index as usize].broker;
            broker.set_backlog(to, backlog);
            broker.set_lag(to, lag);
        }
        let lane = &mut self.servers[site].lanes[index as usize];
        lane.broker.backlogs_are_set();
        for to in others() {
            let broker = &mut self.servers[site].lanes[index as usize].broker;
            if broker.has_mail(to) {
                let batch = broker.take_mail(to, Default::default());
                let wakes = batch.is_urgent() || broker.is_waited_for(to);
                let mail = &mut self.servers[site].lanes[to as usize].mail;
                mail.push((index, batch));
                if wakes {
                    self.wake(site, to);
                }
            }
        }
    }

    fn flush(&mut self, site: usize, index: u16) {
        let lane = &mut self.servers[site].lanes[index as usize];
        let mut dirty = std::mem::take(&mut lane.writable);
        lane.broker.take_dirty(&mut dirty);
        for slot in dirty {
            self.write(site, index, slot);
        }
        let late = self.servers[site].lanes[index as usize].done_flushing(self.now);
        for slot in late {
            self.finish_close(site, index, slot);
        }
    }

    fn write(&mut self, site: usize, index: u16, slot: u32) {
        let now = self.instant();
        loop {
            let lane: &mut Lane = &mut self.servers[site].lanes[index as usize];
            let Some(socket) = lane.sockets.get(slot as usize).and_then(Option::as_ref) else {
                return;
            };
            let (connection, side) = (socket.connection, socket.side);
            let mut bytes = lane.pending(slot);
            bytes.truncate(self.net.room(connection, side));
            if bytes.is_empty() {
                return;
            }
            lane.broker.handle_written(slot, bytes.len(), now);
            if self.net.connections[connection].is_route {
                self.saboteur.spoil(&mut bytes, &mut self.random);
            }
            self.put_on_wire(connection, side, &bytes);
        }
    }

    /// The next turn, where nothing else brings one about.
    fn sleep(&mut self, site: usize, index: u16, now: Instant) {
        let server = &mut self.servers[site];
        let life = server.life;
        let lane = &mut server.lanes[index as usize];
        if let Some(deadline) = lane.broker.next_deadline()
            && lane.deadline != Some(deadline)
        {
            lane.deadline = Some(deadline);
            let wait = deadline.saturating_duration_since(now).as_micros() as Micros + 1;
            self.at(self.now + wait, Event::Turn { site, life, index });
        }
    }
}

impl Server {
    /// The next connection's number on a loop.
    fn next_cid(&mut self, index: u16) -> u64 {
        self.last_cid = next_cid(self.last_cid, index, self.lanes.len() as u16);
        self.last_cid
    }
}
