//! Power-loss test: the engine over the file store, over a disk that forgets what was not synced.
//!
//! A run publishes, subscribes, acknowledges and lets the disk get on, all from one seed; then the power goes at some
//! operation of the disk, a directory is made of what may be left (`store::file::crash`), a copy of it opened, and held against
//! what clients had been told by then. What was found is promised from there on, and the next round begins with the directory as
//! it was left: the power may go while it is being mended.
//!
//! `MIDGE_POWER_SEEDS=10000 cargo test --release --lib power_loss`; a red run prints its seed, `MIDGE_POWER_SEED=n` replays it.

mod checks;
mod world;

use super::engine::{DeadLetters, Engine, Settings};
use super::outlet::{Inlet, Outlet};
use super::pb;
use super::store::file::crash::Disk;
use super::store::file::steps::Steps;
use super::store::file::trace::Trace;
use super::store::file::{FileOptions, FileStore};
use super::store::{ChannelLimits, LimitsOf, Recovered, Store};
use super::subs::SECOND;
use crate::config::streaming::StreamingOptions;
use crate::util::random::Random;
use checks::{Expected, Members, Promised, expected, log_is_no_damage, verify};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use world::{Durable, EARLIER, Group, Recorder, Start, Told, World};

const ROUNDS: u32 = 3;
/// `last` keeps few messages, `aged` keeps them for a while and has no subscriptions, `short` is removed when nobody uses it, and
/// the last one has a durable group and no other subscriptions.
const CHANNELS: [&str; 7] = ["a", "b", "c", "short", "last", "aged", GROUP];
const GROUP: &str = "group";
const AGE: i64 = 30 * SECOND;
const LAST_MAX: u64 = 5;
const IDLE: i64 = 100 * SECOND;

fn limits() -> LimitsOf {
    Box::new(|name| ChannelLimits {
        messages: if name == "last" { LAST_MAX } else { 0 },
        age: if name == "aged" { AGE } else { 0 },
        inactivity: if name == "short" { IDLE } else { 0 },
        ..ChannelLimits::default()
    })
}

/// What holds of a disk, or does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Faults {
    None,
    /// Syncs change nothing.
    SyncsIgnored,
    /// What the engine waits for is said to be done before it is.
    DoneTooSoon,
    /// The option `file_sync` is off.
    SyncOff,
}

fn settings() -> Settings {
    Settings {
        cluster_id: "c".into(),
        discover_prefix: "_STAN.discover".into(),
        max_channels: 0,
        heartbeat_interval: 1_000_000 * SECOND,
        heartbeat_timeout: 1_000_000 * SECOND,
        heartbeat_failures: 2,
        replace_durable: false,
        admin: true,
        dead_letters: DeadLetters::default(),
        debug: false,
        trace: false,
    }
}

fn options(random: &mut Random, faults: Faults) -> FileOptions {
    let mut options = StreamingOptions::default().file;
    options.sync = faults != Faults::SyncOff;
    options.slice_max_msgs = [0, 1, 3, 10][random.below(4) as usize];
    options.compact_min_size = 0;
    options.compact_interval = 0;
    let mut options = FileOptions::new(&options);
    options.log_bytes_max = 4096 * (1 + u64::from(random.below(8)));
    options
}

/// A run; what is wrong is returned.
fn run(seed: u64, faults: Faults) -> Result<(), String> {
    // Neighbours have states of their own, and the first numbers are thrown away.
    let mut random = Random::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C16));
    (0..8).for_each(|_| {
        random.next_u64();
    });
    let mut folder = tempfile::tempdir_in(shared_memory()).unwrap();
    let (mut content, mut now) = (0, 1_000_000 * SECOND);
    let mut promised = Promised {
        members: with_group(folder.path(), &mut random, now)?,
        ..Promised::default()
    };
    for round in 0..ROUNDS {
        let options = options(&mut random, faults);
        let next = tempfile::tempdir_in(shared_memory()).unwrap();
        let told = round_of(
            folder.path(),
            &options,
            &mut random,
            faults,
            (&mut content, &mut now),
            next.path(),
            &mut promised,
        )?;
        // A look mends what it finds, so it is taken at a copy: the next round begins with what the power left.
        let copied = || {
            let copy = tempfile::tempdir_in(shared_memory()).unwrap();
            copy_folder(next.path(), copy.path());
            copy
        };
        if faults == Faults::None && seed.is_multiple_of(4) {
            log_is_no_damage(copied().path(), &options)?;
        }
        verify(copied().path(), &options, &told, &mut promised)
            .map_err(|text| format!("round {round}: {text}"))?;
        folder = next;
        now += 40 * SECOND * i64::from(random.below(3));
    }
    Ok(())
}

/// The group is there from the beginning, with both members.
fn with_group(folder: &Path, random: &mut Random, now: i64) -> Result<Members, String> {
    let trace = Trace::begin(folder);
    let start = Start {
        folder,
        options: &options(random, Faults::None),
        faults: Faults::None,
    };
    let out = Recorder {
        trace: trace.clone(),
        told: Told::default(),
        ack_inboxes: BTreeMap::new(),
    };
    let mut world = World::begin(&start, random, now, 0, out)?;
    world.connect("you");
    let [stays, comes] = ["me", "you"].map(|client| world.join(client));
    world.settle();
    world.engine.close();
    trace.end();
    let inboxes = &mut world.out.ack_inboxes;
    let stays = inboxes.remove(&stays).expect("it was answered");
    Ok(Members {
        stays,
        comes: inboxes.remove(&comes),
        ..Members::default()
    })
}

/// Where temporary files cost no disk.
fn shared_memory() -> &'static Path {
    let memory = Path::new("/dev/shm");
    match memory.is_dir() {
        true => memory,
        false => Path::new("/tmp"),
    }
}

fn copy_folder(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().expect("of an entry"));
        if path.is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy_folder(&path, &to);
        } else {
            std::fs::copy(&path, &to).unwrap();
        }
    }
}

#[allow(clippy::too_many_arguments)]
fn round_of(
    folder: &Path,
    options: &FileOptions,
    random: &mut Random,
    faults: Faults,
    (last_content, clock): (&mut u64, &mut i64),
    next: &Path,
    promised: &mut Promised,
) -> Result<Expected, String> {
    let trace = Trace::begin(folder);
    let now = *clock;
    let members = &promised.members;
    let earlier = |inbox: &String| (EARLIER.to_owned(), inbox.clone());
    let out = Recorder {
        trace: trace.clone(),
        told: Told::default(),
        ack_inboxes: members.comes.iter().map(earlier).collect(),
    };
    let start = Start {
        folder,
        options,
        faults,
    };
    let mut world = World::begin(&start, random, now, *last_content, out)?;
    world.group = Group {
        stays: members.stays.clone(),
        came: members.comes.as_ref().map(|_| EARLIER.to_owned()),
        acked: Vec::new(),
    };
    for (name, durable) in &promised.durables {
        // It is taken up again.
        let durable = Durable {
            promised: true,
            made: vec![world.subscribe(name, "d")],
            ..durable.clone()
        };
        world.durables.insert(name.clone(), vec![durable]);
    }
    world.live();
    // The process is killed, which the disk does not notice, and started again.
    if faults == Faults::None && world.random.below(4) == 0 {
        world = world.killed(&start)?;
        world.live();
    }
    if world.random.below(8) == 0 {
        world.engine.close();
    }
    let ops = trace.ops();
    // The power goes at any time, but rather late than early.
    let cut = match world.random.below(3) {
        0 => ops.len(),
        1 => ops.len() - (world.random.below(12) as usize).min(ops.len()),
        _ => world.random.below(ops.len() as u32 + 1) as usize,
    };
    let mut disk = Disk::new(
        trace.root(),
        &trace.before(),
        faults == Faults::SyncsIgnored,
    );
    ops[..cut].iter().for_each(|op| disk.take(op));
    disk.after_power_loss(next, &mut world.random);
    trace.end();
    (*last_content, *clock) = (world.last_content, world.now);
    *random = world.random.clone();
    let removed = world.now - now >= IDLE;
    Ok(Expected {
        before: promised.messages.clone(),
        removed,
        ..expected(&world, cut)
    })
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    match number("MIDGE_POWER_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("MIDGE_POWER_SEEDS").unwrap_or(300),
    }
}

#[test]
fn what_was_promised_is_there_after_a_loss_of_power() {
    for seed in seeds() {
        if let Err(text) = run(seed, Faults::None) {
            panic!("MIDGE_POWER_SEED={seed}: {text}");
        }
    }
}

/// The checker itself: with these faults something must be missed.
#[test]
fn faults_are_found() {
    for faults in [Faults::SyncsIgnored, Faults::DoneTooSoon, Faults::SyncOff] {
        let found = (0..40).find_map(|seed| run(seed, faults).err().map(|text| (seed, text)));
        assert!(found.is_some(), "{faults:?} goes unnoticed");
    }
}
