//! What happens in one simulation: clients that do this and that, and faults.

use super::checks::{SETTLE, SubscriptionId};
use super::net::{MILLI, Micros, SECOND};
use super::server::Server;
use super::world::World;
use crate::broker::propagate::ROUTE_LOOP;
use std::collections::{BTreeMap, BTreeSet};

const PATTERNS: &[&str] = &[
    "a", "a.b", "a.*", "a.>", "*.b", ">", "c.*.e", "c.x.e", "svc",
];
const SUBJECTS: &[&str] = &["a", "a.b", "a.c", "c.x.e", "x.b", "a.b.c"];
const SERVICE: &str = "svc";
const CLIENTS_MAX: usize = 12;

/// From the last fault being healed to a complete mesh, at most.
const HEAL_WITHIN: Micros = 60 * SECOND;
const LATE_DIALS: Micros = 3 * SECOND;

pub fn run(world: &mut World) -> Result<(), String> {
    for site in 0..world.servers.len() {
        world.start(site);
        let wait = world.random.u64(..100 * MILLI);
        world.run_for(wait);
    }
    with_faults(world);
    repair(world);
    settle(world)?;
    world.promising = true;
    world.saboteur.armed = true;
    clients_come_and_go(world);
    only_messages(world);
    world.settle_for(2 * SETTLE);
    broken(world)?;
    world.ledger.verdict()?;
    check_graph(world)?;
    everybody_leaves(world)
}

fn broken(world: &mut World) -> Result<(), String> {
    world.broken.take().map_or(Ok(()), Err)
}

// ---- phases

fn with_faults(world: &mut World) {
    let end = world.now + world.random.u64(SECOND..5 * SECOND);
    let mut next_fault = world.now + world.random.u64(..SECOND);
    while world.now < end && world.broken.is_none() {
        if world.now >= next_fault {
            fault(world);
            next_fault = world.now + world.random.u64(50 * MILLI..SECOND);
        }
        step(world, true);
        let wait = world.random.u64(..30 * MILLI);
        world.run_for(wait);
    }
}

fn clients_come_and_go(world: &mut World) {
    world.run_for(SETTLE);
    for _ in 0..world.random.usize(50..150) {
        step(world, true);
        let wait = world.random.u64(..30 * MILLI);
        world.run_for(wait);
    }
}

fn only_messages(world: &mut World) {
    world.still_since = Some(world.now);
    world.run_for(SETTLE);
    for _ in 0..100 {
        step(world, false);
        let wait = world.random.u64(..20 * MILLI);
        world.run_for(wait);
    }
}

/// All links work, all servers run.
fn repair(world: &mut World) {
    world.heal();
    for site in 0..world.servers.len() {
        if !world.servers[site].is_running() {
            world.start(site);
        }
    }
}

/// Waits for the mesh to be complete, and for all interest to be where it belongs.
fn settle(world: &mut World) -> Result<(), String> {
    let end = world.now + HEAL_WITHIN;
    while world.broken.is_none() {
        world.settle_for(2 * SETTLE);
        match check_graph(world) {
            Ok(()) => {
                // Whoever was still dialling finds the route there.
                world.settle_for(LATE_DIALS);
                check_graph(world)?;
                break;
            }
            Err(error) if world.now >= end => return Err(format!("after healing: {error}")),
            Err(_) => {}
        }
    }
    broken(world)
}

fn everybody_leaves(world: &mut World) -> Result<(), String> {
    for client in open_clients(world) {
        world.close_client(client);
    }
    world.settle_for(2 * SETTLE);
    broken(world)?;
    check_graph(world)?;
    check_rest(world)
}

// ---- what clients do

fn open_clients(world: &World) -> Vec<usize> {
    let clients = world.clients.iter().enumerate();
    clients
        .filter(|(_, client)| client.open)
        .map(|(number, _)| number)
        .collect()
}

/// One thing some client does; `changes`: also such that change interest.
fn step(world: &mut World, changes: bool) {
    let open = open_clients(world);
    if changes && (open.len() < 3 || open.len() < CLIENTS_MAX && world.random.u8(..20) == 0) {
        return connect(world);
    }
    let Some(client) = world.random.choice(&open).copied() else {
        return;
    };
    match world.random.u8(..100) {
        0..12 if changes => subscribe(world, client),
        12..20 if changes => unsubscribe(world),
        20..23 if changes => world.close_client(client),
        23..25 if changes => flicker(world, client),
        25 if changes => burst(world, client),
        26..40 => request(world, client),
        _ => {
            let subject = world.random.choice(SUBJECTS).expect("there are some");
            world.publish(client, subject, "", None);
        }
    }
}

fn connect(world: &mut World) {
    let site = world.random.usize(..world.servers.len());
    if world.servers[site].is_running() {
        let index = world.random.u16(..world.servers[site].lanes.len() as u16);
        world.open_client(site, index);
    }
}

fn subscribe(world: &mut World, client: usize) {
    let pattern = world.random.choice(PATTERNS).expect("there are some");
    let queue = [None, Some("q"), Some("r")][world.random.usize(..3)];
    let max = (world.random.u8(..4) == 0).then(|| world.random.usize(1..6));
    world.subscribe(client, pattern, queue, max);
}

fn unsubscribe(world: &mut World) {
    let live: Vec<SubscriptionId> = world.ledger.live().map(|(id, _)| id).collect();
    if let Some(id) = world.random.choice(&live) {
        world.unsubscribe(*id);
    }
}

/// Interest that comes and goes at once.
fn flicker(world: &mut World, client: usize) {
    for _ in 0..world.random.usize(1..4) {
        let pattern = world.random.choice(PATTERNS).expect("there are some");
        let id = world.subscribe(client, pattern, None, None);
        world.unsubscribe(id);
    }
}

/// Many subscriptions at once, which stay, end one by one, or go with their client; and a request
/// behind them.
fn burst(world: &mut World, client: usize) {
    let count = world.random.usize(20..150);
    let (first, max) = (world.random.usize(..1000), world.random.u8(..4) == 0);
    let ids: Vec<SubscriptionId> = (first..first + count)
        .map(|n| world.subscribe(client, &format!("burst.{n}"), None, max.then_some(3)))
        .collect();
    let n = world.random.usize(first..first + count);
    world.publish(client, &format!("burst.{n}"), "", None);
    request(world, client);
    let wait = world.random.u64(..30 * MILLI);
    if world.random.bool() {
        world.run_for(wait);
    }
    if !world.clients[client].open {
        return;
    }
    match world.random.u8(..4) {
        0 => world.close_client(client),
        1 => {}
        _ => {
            for id in ids {
                if world.ledger.subscriptions[id].ended.is_none() {
                    world.unsubscribe(id);
                }
            }
            request(world, client);
        }
    }
}

/// Whoever serves answers.
fn request(world: &mut World, client: usize) {
    let inbox = format!("_INBOX.{}.{}", client, world.ledger.messages.len());
    let max = world.random.bool().then_some(1);
    world.subscribe(client, &inbox, None, max);
    world.publish(client, SERVICE, &inbox, None);
}

// ---- faults

fn fault(world: &mut World) {
    let sites = world.servers.len();
    let (a, b) = (world.random.usize(..sites), world.random.usize(..sites));
    match world.random.u8(..10) {
        0 | 1 => world.cut(a, b),
        2 | 3 => {
            world.cut(a, b);
            world.cut(b, a);
        }
        4 => (0..sites).for_each(|other| {
            world.cut(a, other);
            world.cut(other, a);
        }),
        5 | 6 => world.heal(),
        7 => world.stall(),
        _ if world.servers[a].is_running() => {
            let notice = world.random.bool();
            world.stop(a, notice);
        }
        _ => world.start(a),
    }
}

// ---- what must be true once nothing is under way

/// Every server has one route to every other one, and knows exactly its interest and addresses.
fn check_graph(world: &World) -> Result<(), String> {
    let mut truth: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for server in &world.servers {
        truth.insert(&server.id, Vec::new());
    }
    for (_, subscription) in world.ledger.live() {
        let client = &world.clients[subscription.client];
        let prefix = if subscription.queue.is_some() {
            "QRSID"
        } else {
            "RSID"
        };
        let queue = subscription.queue.unwrap_or_default();
        let line = format!(
            "{} {queue} {prefix}:{}:{}",
            subscription.pattern, client.cid, subscription.sid
        );
        truth
            .entry(&world.servers[client.site].id)
            .or_default()
            .push(line);
    }
    truth.values_mut().for_each(|lines| lines.sort());
    for (site, server) in world.servers.iter().enumerate() {
        let known = server.lanes[ROUTE_LOOP as usize]
            .broker
            .interest_of_routes();
        for (id, lines) in truth.iter().filter(|(id, _)| **id != server.id) {
            let found = known
                .get(*id)
                .ok_or_else(|| format!("server {site} has no route to {id}"))?;
            if found != lines {
                return Err(format!(
                    "server {site} takes the interest of {id} for {found:?}, it is {lines:?}"
                ));
            }
        }
        if known.len() != truth.len() - 1 {
            return Err(format!("server {site} has routes to {:?}", known.keys()));
        }
        check_patterns(world, site)?;
    }
    check_addresses(world)
}

/// Each loop's table has the patterns of the whole cluster and no other.
fn check_patterns(world: &World, site: usize) -> Result<(), String> {
    let patterns: BTreeSet<&str> = world
        .ledger
        .live()
        .map(|(_, s)| s.pattern.as_str())
        .collect();
    for (index, lane) in world.servers[site].lanes.iter().enumerate() {
        let count = lane.broker.sublist().pattern_count();
        if count != patterns.len() {
            return Err(format!(
                "server {site}, loop {index} knows {count} patterns, there are {patterns:?}"
            ));
        }
    }
    Ok(())
}

/// Every client knows the addresses of all servers.
fn check_addresses(world: &World) -> Result<(), String> {
    let all: BTreeSet<String> = (0..world.servers.len()).map(Server::client_url).collect();
    for client in open_clients(world) {
        let told: BTreeSet<String> = world.clients[client].connect_urls.iter().cloned().collect();
        if told != all {
            return Err(format!("client {client} was told of {told:?}"));
        }
    }
    Ok(())
}

/// Nothing but the routes is left.
fn check_rest(world: &World) -> Result<(), String> {
    for (site, server) in world.servers.iter().enumerate() {
        for (index, lane) in server.lanes.iter().enumerate() {
            let broker = &lane.broker;
            let routes = broker.route_slots().len();
            let left = [
                ("connections", broker.clients().count() - routes),
                ("sockets", lane.sockets.iter().flatten().count() - routes),
                ("subscriptions", broker.subscription_count()),
                ("chunks of output", broker.chunks_taken() as usize),
                (
                    "connections with output",
                    broker
                        .clients()
                        .filter(|(slot, _)| broker.has_output(*slot))
                        .count(),
                ),
                (
                    "connections held back",
                    broker
                        .clients()
                        .filter(|(slot, _)| !broker.wants_bytes(*slot))
                        .count(),
                ),
            ];
            if let Some((what, count)) = left.iter().find(|(_, count)| *count > 0) {
                return Err(format!(
                    "at rest, server {site}, loop {index} has {count} {what}"
                ));
            }
        }
    }
    Ok(())
}
