//! Clusters that form: how soon they are whole, and what that does to messages meanwhile.

use super::{Outcome, Setting};
use crate::bed::Bed;
use crate::connection::{Connection, Crowd, Result, Target};
use crate::stats::{Latency, histogram};
use hdrhistogram::Histogram;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

const MESH: usize = 5;
const SUBSCRIPTIONS: usize = 100_000;
/// Subscriptions that are watched for being known at the other server.
const WATCHED: usize = 50;
const PROBE_EVERY: Duration = Duration::from_millis(1);
const ASK_EVERY: Duration = Duration::from_millis(5);
/// Messages flow so long before anything happens, and so long while a client's subscriptions go.
const BEFORE: Duration = Duration::from_millis(100);
const AFTER_LEAVING: Duration = Duration::from_millis(800);
const PATIENCE: Duration = Duration::from_secs(30);

/// From the start of the first of five servers, which only know that one, until a message of each
/// reaches clients of all.
pub fn mesh(bed: &Bed, _: &Setting) -> Result<Outcome> {
    let start = Instant::now();
    let more = (0..MESH - 1).map(|_| bed.start_member());
    let more = more.collect::<Result<Vec<_>>>()?;
    let targets = std::iter::once(bed.target()).chain(more.iter().map(|server| Target {
        address: server.address,
        tls: None,
        user: None,
    }));
    let mut connections = Vec::new();
    for target in targets {
        let mut connection = Connection::open(&target)?;
        connection.write(b"SUB mesh.* 1\r\n")?;
        connection.settle()?;
        connections.push(connection);
    }
    let mut crowd = Crowd::new(connections)?;
    let mut heard = [[false; MESH]; MESH];
    while heard.iter().flatten().any(|heard| !heard) {
        if start.elapsed() > PATIENCE {
            return Err(format!("the mesh is not whole: {heard:?}"));
        }
        for index in 0..MESH {
            crowd.write(index, format!("PUB mesh.{index} 0\r\n\r\n").as_bytes())?;
        }
        crowd.serve_ready(ASK_EVERY, |index, line, _| {
            let from = line
                .strip_prefix("MSG mesh.")
                .and_then(|rest| rest.get(..1));
            if let Some(from) = from.and_then(|from| from.parse::<usize>().ok()) {
                heard[index][from] = true;
            }
            Ok(())
        })?;
    }
    Ok(Outcome {
        figure: start.elapsed().as_secs_f64() * 1000.0,
        ..Outcome::default()
    })
}

/// What makes a server tell another of many subscriptions at once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Burst {
    /// The other one joins.
    Join,
    /// A client makes them.
    Arrive,
    /// The client that had them goes.
    Leave,
}

/// What is measured meanwhile.
struct Storm {
    /// From the beginning until the other server knows the subscriptions.
    settled: Duration,
    /// Of messages that flowed meanwhile: among clients of each server, and from the first to the
    /// second over the route the subscriptions go over.
    delays: Histogram<u64>,
}

/// Longest delay of a message, in milliseconds.
pub fn storm_delay(bed: &Bed, setting: &Setting, burst: Burst) -> Result<Outcome> {
    let delays = storm(bed, setting, burst)?.delays;
    Ok(Outcome {
        figure: delays.max() as f64 / 1e6,
        latency: Some(Latency::of(&delays)),
        ..Outcome::default()
    })
}

pub fn storm_settles(bed: &Bed, setting: &Setting, burst: Burst) -> Result<Outcome> {
    let settled = storm(bed, setting, burst)?.settled;
    let count = setting.scaled(SUBSCRIPTIONS) as u64;
    Ok(Outcome::of(settled.as_secs_f64() * 1000.0, count, settled))
}

fn storm(bed: &Bed, setting: &Setting, burst: Burst) -> Result<Storm> {
    let count = setting.scaled(SUBSCRIPTIONS);
    let first = bed.target();
    let mut holder = Connection::open(&first)?;
    let lines: String = (0..count)
        .map(|n| format!("SUB storm.{n:06} {n}\r\n"))
        .collect();
    if burst != Burst::Arrive {
        holder.write(lines.as_bytes())?;
        holder.settle()?;
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let measured = (|| {
            let mut probes = Vec::new();
            let mut start_probe = |paths| probes.push(scope.spawn(|| probe(paths, &stop)));
            let here = || Ok::<_, String>(vec![Path::new("here", &first, &first, true)?]);
            let there = |second: &Target| {
                Ok::<_, String>(vec![
                    Path::new("there", second, second, true)?,
                    Path::new("across", &first, second, false)?,
                ])
            };
            if burst == Burst::Join {
                start_probe(here()?);
                std::thread::sleep(BEFORE);
            }
            let server = bed.start_member()?;
            let mut start = Instant::now();
            let second = Target {
                address: server.address,
                tls: None,
                user: None,
            };
            let mut publisher = Connection::open(&second)?;
            if burst == Burst::Join {
                start_probe(there(&second)?);
            } else if burst == Burst::Arrive {
                start_probe(here()?);
                start_probe(there(&second)?);
                std::thread::sleep(BEFORE);
                start = Instant::now();
                holder.write(lines.as_bytes())?;
                holder.settle()?;
            }
            // It stays to the end, unless it is to go: to lose what it had would be a storm of its own.
            let mut holder = Crowd::new(vec![holder])?;
            settles(&mut publisher, &mut holder, count, start)?;
            let settled = start.elapsed();
            if burst == Burst::Leave {
                start_probe(here()?);
                start_probe(there(&second)?);
                std::thread::sleep(BEFORE);
                drop(holder);
                std::thread::sleep(AFTER_LEAVING);
            }
            std::thread::sleep(Duration::from_millis(200));
            stop.store(true, SeqCst);
            let mut delays = histogram();
            for probe in probes {
                delays
                    .add(joined(probe)?)
                    .map_err(|error| error.to_string())?;
            }
            Ok(Storm { settled, delays })
        })();
        // Also where something failed: the probes must end.
        stop.store(true, SeqCst);
        measured
    })
}

fn joined(thread: ScopedJoinHandle<'_, Result<Histogram<u64>>>) -> Result<Histogram<u64>> {
    thread.join().expect("it does not panic")
}

/// Until what is published at the second server reaches each of the subscriptions that are watched.
fn settles(
    publisher: &mut Connection,
    holder: &mut Crowd,
    count: usize,
    start: Instant,
) -> Result<()> {
    let mut missing: Vec<usize> = (0..WATCHED)
        .map(|n| n * (count - 1) / (WATCHED - 1))
        .collect();
    while !missing.is_empty() {
        if start.elapsed() > PATIENCE {
            return Err(format!("{} subscriptions are not known", missing.len()));
        }
        let ask = missing
            .iter()
            .map(|n| format!("PUB storm.{n:06} 0\r\n\r\n"));
        publisher.write(ask.collect::<String>().as_bytes())?;
        publisher.settle()?;
        let next = Instant::now() + ASK_EVERY;
        while !missing.is_empty() && Instant::now() < next {
            let wait = next.saturating_duration_since(Instant::now());
            holder.serve_ready(wait, |_, line, answer| {
                let number = line
                    .strip_prefix("MSG storm.")
                    .and_then(|rest| rest.get(..6));
                if let Some(number) = number.and_then(|number| number.parse::<usize>().ok()) {
                    missing.retain(|n| *n != number);
                }
                if line == "PING" {
                    answer.extend_from_slice(b"PONG\r\n");
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Where probes go from and to.
struct Path {
    subject: &'static str,
    publisher: Connection,
    subscriber: Connection,
    /// Nothing may be lost, also not at the beginning.
    settled: bool,
}

impl Path {
    fn new(subject: &'static str, from: &Target, to: &Target, settled: bool) -> Result<Self> {
        let mut subscriber = Connection::open(to)?;
        subscriber.write(format!("SUB probe.{subject} 1\r\n").as_bytes())?;
        subscriber.settle()?;
        Ok(Self {
            subject,
            publisher: Connection::open(from)?,
            subscriber,
            settled,
        })
    }
}

/// How far one path has come.
#[derive(Clone, Copy)]
struct Progress {
    sent: u64,
    /// The number that must come next; None: the first that comes says.
    next: Option<u64>,
}

/// Sends a message on every path each millisecond until told to stop, and waits for those under
/// way; what comes must come in order and without gaps.
fn probe(paths: Vec<Path>, stop: &AtomicBool) -> Result<Histogram<u64>> {
    let mut progress: Vec<Progress> = Vec::new();
    let (mut subjects, mut connections) = (Vec::new(), Vec::new());
    for path in paths {
        progress.push(Progress {
            sent: 0,
            next: path.settled.then_some(0),
        });
        subjects.push(path.subject);
        connections.extend([path.publisher, path.subscriber]);
    }
    let mut crowd = Crowd::new(connections)?;
    let mut delays = histogram();
    let (start, mut due) = (Instant::now(), Instant::now());
    let mut stopped_at = None;
    loop {
        let now = Instant::now();
        if stop.load(SeqCst) {
            let at = *stopped_at.get_or_insert(now);
            if progress.iter().all(|path| path.next == Some(path.sent)) {
                return Ok(delays);
            }
            if now - at > Duration::from_secs(10) {
                return Err("messages were lost while the cluster formed".into());
            }
        } else if now >= due {
            due = now + PROBE_EVERY;
            for (index, subject) in subjects.iter().enumerate() {
                let nanos = start.elapsed().as_nanos();
                let number = progress[index].sent;
                let line = format!("PUB probe.{subject} 32\r\n{number:016}{nanos:016}\r\n");
                crowd.write(2 * index, line.as_bytes())?;
                progress[index].sent += 1;
            }
        }
        let wait = due.saturating_duration_since(Instant::now());
        crowd.serve_ready(
            wait.max(Duration::from_micros(50)),
            |index, line, answer| {
                if line == "PING" {
                    answer.extend_from_slice(b"PONG\r\n");
                }
                if line.len() != 32 || !line.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Ok(());
                }
                let (number, nanos) = line.split_at(16);
                let (number, nanos): (u64, u64) = (
                    number.parse().map_err(|_| "a wrong probe")?,
                    nanos.parse().map_err(|_| "a wrong probe")?,
                );
                let path = &mut progress[index / 2];
                if path.next.is_some_and(|next| next != number) {
                    return Err(format!("probe {number} came in place of {:?}", path.next));
                }
                path.next = Some(number + 1);
                delays.saturating_record(start.elapsed().as_nanos() as u64 - nanos);
                Ok(())
            },
        )?;
    }
}
