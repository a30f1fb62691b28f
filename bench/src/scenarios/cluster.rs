//! Clusters that form: how soon they are whole, and what that does to messages meanwhile.

use super::flow::settle_servers;
use super::{Outcome, Setting};
use crate::bed::Bed;
use crate::connection::{Connection, Crowd, Result, Target};
use crate::server::Server;
use crate::stats::{Latency, histogram};
use hdrhistogram::Histogram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const MESH: usize = 5;
const SUBSCRIPTIONS: usize = 100_000;
/// Subscriptions that are watched for being known at the other server.
const WATCHED: usize = 50;
const PROBE_EVERY: Duration = Duration::from_millis(1);
const ASK_EVERY: Duration = Duration::from_millis(5);
/// Messages flow so long before anything happens, while a client's subscriptions go, and when all is over.
const BEFORE: Duration = Duration::from_millis(100);
const LEAVING: Duration = Duration::from_millis(800);
const AFTER: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(30);

/// From the start of the first of five servers, which only know that one, until a message of each
/// reaches clients of all.
pub fn mesh(bed: &Bed, _: &Setting) -> Result<Outcome> {
    let start = Instant::now();
    let more = (0..MESH - 1).map(|_| bed.start_member());
    let more = more.collect::<Result<Vec<_>>>()?;
    let targets = std::iter::once(bed.target()).chain(more.iter().map(Server::target));
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

/// A server joins one that has many subscriptions: how soon it knows them, and the longest delay of a message meanwhile.
pub fn join(bed: &Bed, setting: &Setting) -> Result<[Outcome; 2]> {
    let count = setting.scaled(SUBSCRIPTIONS);
    let first = bed.target();
    let mut holder = Connection::open(&first)?;
    holder.write(subscriptions(count).as_bytes())?;
    holder.settle()?;
    let mut probes = Probes::new("join");
    probes.start(&[("here", &first, &first)])?;
    std::thread::sleep(BEFORE);
    let server = bed.start_member()?;
    let start = Instant::now();
    let second = server.target();
    let mut publisher = Connection::open(&second)?;
    probes.start(&there(&first, &second))?;
    // It stays to the end: to lose what it had would be a storm of its own.
    let mut holder = Crowd::new(vec![holder])?;
    settles(&mut publisher, &mut holder, count, start)?;
    let settled = start.elapsed();
    std::thread::sleep(AFTER);
    Ok([known(count, settled), probes.longest_delay()?])
}

/// A client makes many subscriptions, and goes: how soon the other server knows them, and the longest delay of a message while they come and while they go.
pub fn come_and_go(bed: &Bed, setting: &Setting) -> Result<[Outcome; 3]> {
    let count = setting.scaled(SUBSCRIPTIONS);
    let first = bed.target();
    let server = bed.start_member()?;
    let second = server.target();
    settle_servers(&first, &second)?;
    let mut holder = Connection::open(&first)?;
    let mut publisher = Connection::open(&second)?;
    let start_probes = |name| {
        let mut probes = Probes::new(name);
        probes.start(&[("here", &first, &first)])?;
        probes.start(&there(&first, &second))?;
        std::thread::sleep(BEFORE);
        Ok::<_, String>(probes)
    };
    let lines = subscriptions(count);
    let coming = start_probes("coming")?;
    let start = Instant::now();
    holder.write(lines.as_bytes())?;
    holder.settle()?;
    let mut holder = Crowd::new(vec![holder])?;
    settles(&mut publisher, &mut holder, count, start)?;
    let settled = start.elapsed();
    std::thread::sleep(AFTER);
    let coming = coming.longest_delay()?;
    let going = start_probes("going")?;
    drop(holder);
    std::thread::sleep(LEAVING + AFTER);
    Ok([known(count, settled), coming, going.longest_delay()?])
}

fn subscriptions(count: usize) -> String {
    let line = |n| format!("SUB storm.{n:06} {n}\r\n");
    (0..count).map(line).collect()
}

/// So long it took until all subscriptions were known.
fn known(count: usize, settled: Duration) -> Outcome {
    Outcome::of(settled.as_secs_f64() * 1000.0, count as u64, settled)
}

/// A name, and the servers from which and to which messages go.
type Way<'t> = (&'static str, &'t Target, &'t Target);

/// On the second server, and to it over the route that subscriptions go over.
fn there<'t>(first: &'t Target, second: &'t Target) -> [Way<'t>; 2] {
    [("there", second, second), ("across", first, second)]
}

/// Threads that send messages until they are told to stop, also where something failed.
struct Probes {
    /// No others on the same servers have it in their subjects.
    name: &'static str,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Histogram<u64>>>>,
}

impl Probes {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            stop: Arc::new(AtomicBool::new(false)),
            threads: Vec::new(),
        }
    }

    /// One thread for these.
    fn start(&mut self, ways: &[Way<'_>]) -> Result<()> {
        let paths = ways.iter().map(|way| Path::new(self.name, *way));
        let paths = paths.collect::<Result<Vec<_>>>()?;
        let stop = self.stop.clone();
        let probe = move || probe(paths, &stop);
        self.threads.push(std::thread::spawn(probe));
        Ok(())
    }

    /// Of all their messages, in milliseconds.
    fn longest_delay(mut self) -> Result<Outcome> {
        self.stop.store(true, SeqCst);
        let mut delays = histogram();
        for thread in self.threads.drain(..) {
            let of_one = thread.join().expect("it does not panic");
            let of_one = of_one.map_err(|error| format!("{}: {error}", self.name))?;
            delays.add(of_one).map_err(|error| error.to_string())?;
        }
        Ok(Outcome {
            figure: delays.max() as f64 / 1e6,
            latency: Some(Latency::of(&delays)),
            ..Outcome::default()
        })
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            // What failed is told already.
            let _ = thread.join();
        }
    }
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
    subject: String,
    publisher: Connection,
    subscriber: Connection,
    /// Nothing may be lost, also not at the beginning.
    settled: bool,
}

impl Path {
    fn new(probes: &str, (name, from, to): Way<'_>) -> Result<Self> {
        let subject = format!("probe.{probes}.{name}");
        let mut subscriber = Connection::open(to)?;
        subscriber.write(format!("SUB {subject} 1\r\n").as_bytes())?;
        subscriber.settle()?;
        Ok(Self {
            subject,
            publisher: Connection::open(from)?,
            subscriber,
            settled: from.address == to.address,
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
                let line = format!("PUB {subject} 32\r\n{number:016}{nanos:016}\r\n");
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
