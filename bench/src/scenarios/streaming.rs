//! NATS Streaming: acknowledged publishes, and their delivery.

use super::{Outcome, SLICES, Setting};
use crate::bed::Bed;
use crate::connection::{Connection, Result, Target};
use crate::server::{self, Server};
use crate::stan::{self, Publisher, Start, Subscriber};
use crate::stats::{Latency, histogram, spread};
use hdrhistogram::Histogram;
use std::io::Write as _;
use std::time::{Duration, Instant};

const PAYLOAD: usize = 128;
/// Publishes ahead of their acks.
const WINDOW: usize = 1024;
const REPLAYED: usize = 200_000;
const RECOVERED: usize = 1_000_000;

fn connect(target: &Target, id: &str) -> Result<(Connection, stan::Session)> {
    let mut connection = Connection::open(target)?;
    let session = stan::connect(&mut connection, id)?;
    Ok((connection, session))
}

fn outcome(
    cpu_ns: f64,
    messages: u64,
    elapsed: Duration,
    times: Option<&Histogram<u64>>,
) -> Outcome {
    let outcome = Outcome::of(cpu_ns / 1000.0 / messages as f64, messages, elapsed);
    Outcome {
        bytes_rate: outcome.rate * PAYLOAD as f64,
        latency: times.map(Latency::of),
        ..outcome
    }
}

/// Publishes to so many channels in turn.
pub fn publish(bed: &Bed, setting: &Setting, channels: usize) -> Result<Outcome> {
    let target = bed.target();
    let (connection, session) = connect(&target, "publisher")?;
    let mut publisher = Publisher::new(connection, &session, channels, PAYLOAD, WINDOW)?;
    publisher.run(Duration::from_secs_f64(setting.longer() / 5.0))?;
    // Channels are made by their first publish.
    publisher.run_messages(channels as u64)?;
    let (mut messages, mut times) = (0, histogram());
    let slices = setting.slices(bed, SLICES, setting.longer(), |time| {
        let (published, took) = publisher.run(time)?;
        messages += published;
        times.add(took).map_err(|error| error.to_string())
    })?;
    Ok(outcome(
        slices.cpu_ns[0],
        messages,
        slices.elapsed,
        Some(&times),
    ))
}

/// One publish at a time: what that costs, and how many times as long the median one takes as an append with its fdatasync
/// on the same disk and CPU. The two take turns, as a disk of a virtual machine is faster and slower from one moment to the next.
pub fn synchronous(bed: &Bed, setting: &Setting) -> Result<[Outcome; 2]> {
    const TURNS: usize = 8;
    let syncs = setting.scaled(1600) / TURNS;
    let (connection, session) = connect(&bed.target(), "publisher")?;
    let mut publisher = Publisher::new(connection, &session, 1, PAYLOAD, 1)?;
    publisher.run(Duration::from_secs_f64(setting.longer() / 5.0))?;
    let (mut disk, mut acks) = (histogram(), histogram());
    let (mut messages, mut cpu, mut elapsed) = (0, 0.0, Duration::ZERO);
    for _ in 0..TURNS {
        time_syncs(bed, syncs, &mut disk)?;
        let meter = bed.meter(0)?;
        let (count, times) =
            publisher.run(Duration::from_secs_f64(setting.longer() / TURNS as f64))?;
        cpu += meter.cpu_ns()?;
        elapsed += meter.elapsed();
        messages += count;
        acks.add(times).map_err(|error| error.to_string())?;
    }
    let cost = outcome(cpu, messages, elapsed, Some(&acks));
    let p50 = Latency::of(&acks).p50;
    let latency = Outcome {
        figure: p50 / Latency::of(&disk).p50,
        ..cost.clone()
    };
    Ok([cost, latency])
}

/// Nanoseconds of an append of a payload and the fdatasync that makes it safe.
fn time_syncs(bed: &Bed, count: usize, times: &mut Histogram<u64>) -> Result<()> {
    let path = bed.folder().join("syncs");
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut file = std::fs::File::create(&path).map_err(failed)?;
    std::thread::scope(|scope| {
        let syncs = scope.spawn(|| -> Result<()> {
            server::pin(0, bed.cpu)?;
            for _ in 0..count {
                let start = Instant::now();
                file.write_all(&[b'x'; PAYLOAD]).map_err(failed)?;
                file.sync_data().map_err(failed)?;
                times.saturating_record(start.elapsed().as_nanos() as u64);
            }
            Ok(())
        });
        syncs.join().expect("it does not panic")
    })
}

/// Publishes with a subscriber on the channel, from which every message must come, in order.
pub fn with_subscriber(bed: &Bed, setting: &Setting) -> Result<Outcome> {
    let target = bed.target();
    let (connection, session) = connect(&target, "subscriber")?;
    let subscriber = Subscriber::start(connection, &session, "subscriber", Start::New, PAYLOAD)?;
    let (connection, session) = connect(&target, "publisher")?;
    let mut publisher = Publisher::new(connection, &session, 1, PAYLOAD, WINDOW)?;
    let (before, _) = publisher.run(Duration::from_secs_f64(setting.longer() / 5.0))?;
    subscriber.wait_for(before)?;
    let (mut messages, mut times) = (0, histogram());
    let slices = setting.slices(bed, SLICES, setting.longer(), |time| {
        let (published, took) = publisher.run(time)?;
        messages += published;
        subscriber.wait_for(before + messages)?;
        times.add(took).map_err(|error| error.to_string())
    });
    subscriber.finish()?;
    let slices = slices?;
    Ok(outcome(
        slices.cpu_ns[0],
        messages,
        slices.elapsed,
        Some(&times),
    ))
}

/// What is stored goes out to a new subscriber from the first message on.
pub fn replay(bed: &Bed, setting: &Setting) -> Result<Outcome> {
    let count = setting.scaled(REPLAYED) as u64;
    let target = bed.target();
    let (connection, session) = connect(&target, "publisher")?;
    let mut publisher = Publisher::new(connection, &session, 1, PAYLOAD, WINDOW)?;
    let count = publisher.run_messages(count)?;
    let (connection, session) = connect(&target, "subscriber")?;
    let meter = bed.meter(0)?;
    let subscriber = Subscriber::start(connection, &session, "subscriber", Start::First, PAYLOAD)?;
    let waited = subscriber.wait_for(count);
    let (cpu, elapsed) = (meter.cpu_ns()?, meter.elapsed());
    subscriber.finish()?;
    waited?;
    Ok(outcome(cpu, count, elapsed, None))
}

/// Stores messages, and starts the server again so many times: how many milliseconds until it answers the first client, and how many megabytes that takes
/// at most, as medians.
pub fn recovery(
    bed: &Bed,
    setting: &Setting,
    channels: usize,
    starts: usize,
) -> Result<[Outcome; 2]> {
    let count = setting.scaled(RECOVERED) as u64;
    let (connection, session) = connect(&bed.target(), "publisher")?;
    let mut publisher = Publisher::new(connection, &session, channels, PAYLOAD, WINDOW)?;
    let count = publisher.run_messages(count)?;
    let (mut milliseconds, mut peaks) = (Vec::new(), Vec::new());
    let mut last: Option<Server> = None;
    for _ in 0..starts {
        if let Some(server) = last.take() {
            server.end()?;
        }
        let (server, start) = bed.start_again()?;
        let mut connection = Connection::open(&server.target())?;
        stan::wait_until_up(&mut connection, Duration::from_secs(120))?;
        milliseconds.push(start.elapsed().as_secs_f64() * 1000.0);
        peaks.push(server.peak_memory() as f64);
        last = Some(server);
    }
    if let Some(server) = &last {
        check_stored(&server.target(), channels, count)?;
    }
    let [milliseconds, peak] = [milliseconds, peaks].map(|of| spread(&of).median);
    Ok(
        [milliseconds, peak / f64::from(1 << 20)].map(|figure| Outcome {
            peak_memory: Some(peak as u64),
            ..Outcome::of(
                figure,
                count,
                Duration::from_secs_f64(milliseconds / 1000.0),
            )
        }),
    )
}

/// Some of the channels must have every message: the last one of each has the number and the content it was given.
fn check_stored(target: &Target, channels: usize, count: u64) -> Result<()> {
    const CHECKED: usize = 20;
    let (mut connection, session) = connect(target, "reader")?;
    for channel in (0..channels).step_by(channels.div_ceil(CHECKED)) {
        stan::check_last(
            &mut connection,
            &session,
            "reader",
            stan::Stored::last(channel, channels, count),
            PAYLOAD,
        )?;
    }
    Ok(())
}
