//! Deterministic simulation of a cluster: real brokers over a simulated network and clock. A seed goes
//! in, a verdict comes out, and the same seed takes the same course.
//!
//! May import util, wire, subject, config and broker. Deliberately absent: the ring, the server glue,
//! threads, real time. What server/event_loop.rs and server/dial.rs do with a broker is done here in
//! the same order (`server.rs`, `world.rs`).
//!
//! Faults: links cut in one or both directions, machines cut off, slow readers, servers stopped with
//! and without notice and started again, connections reset, any chunking and any delay up to 20 ms.
//!
//! ```text
//!   MIDGE_SIM_SEEDS=10000 cargo test --release --lib sim    this many seeds
//!   MIDGE_SIM_SEED=7 cargo test --lib sim                   one seed; if it fails, all its events
//! ```

mod checks;
mod client;
mod net;
mod sabotage;
mod server;
mod workload;
mod world;

use sabotage::{Sabotage, Saboteur};
use world::World;

const SEEDS: u64 = 300;
/// Events shown of a seed that fails; of one that was asked for, all.
const TRACE_LINES: usize = 80;
/// A planted fault must be noticed within this many seeds.
const SABOTAGE_SEEDS: u64 = 30;

/// What a course was like, to see that it was one.
#[derive(Debug, Default, PartialEq, Eq)]
struct Figures {
    messages: usize,
    deliveries: usize,
    subscriptions: usize,
    connections: usize,
}

fn run(seed: u64, sabotage: Sabotage) -> Result<Figures, String> {
    let mut world = World::new(seed, Saboteur::new(sabotage), 0);
    workload::run(&mut world).map(|()| Figures {
        messages: world.ledger.messages.len(),
        deliveries: world.ledger.deliveries,
        subscriptions: world.ledger.subscriptions.len(),
        connections: world.net.connections.len(),
    })
}

/// The last events of a seed that fails.
fn explain(seed: u64, sabotage: Sabotage, failure: &str) -> String {
    let lines = number("MIDGE_SIM_SEED").map_or(TRACE_LINES, |_| usize::MAX);
    let mut world = World::new(seed, Saboteur::new(sabotage), lines);
    let again = workload::run(&mut world);
    assert_eq!(
        again,
        Err(failure.to_owned()),
        "seed {seed} takes another course"
    );
    let trace = world.take_trace().join("\n");
    format!("{trace}\nseed {seed}: {failure}\nagain: MIDGE_SIM_SEED={seed} cargo test --lib sim")
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("the variable is a number"))
}

#[test]
fn clusters_keep_their_promises() {
    let seeds = match number("MIDGE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("MIDGE_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let mut total = Figures::default();
    for seed in seeds {
        match run(seed, Sabotage::Nothing) {
            Ok(figures) => {
                total.messages += figures.messages;
                total.deliveries += figures.deliveries;
                total.subscriptions += figures.subscriptions;
                total.connections += figures.connections;
            }
            Err(failure) => panic!("{}", explain(seed, Sabotage::Nothing, &failure)),
        }
    }
    eprintln!("{total:?}");
}

#[test]
fn a_seed_takes_the_same_course_again() {
    for seed in 0..3 {
        assert_eq!(run(seed, Sabotage::Nothing), run(seed, Sabotage::Nothing));
    }
}

#[test]
fn planted_faults_are_noticed() {
    for sabotage in [
        Sabotage::DropUnsub,
        Sabotage::DropMessage,
        Sabotage::RepeatMessage,
    ] {
        let noticed = (0..SABOTAGE_SEEDS).filter(|seed| run(*seed, sabotage).is_err());
        let noticed = noticed.count();
        eprintln!("{sabotage:?}: noticed in {noticed} of {SABOTAGE_SEEDS} seeds");
        assert!(noticed > SABOTAGE_SEEDS as usize / 3, "{sabotage:?}");
    }
}
