//! Many subjects: cold ones, the price of subscribing, and subscriptions that come and go.

use super::flow::{ordered, sample, subject};
use super::{Outcome, SLICES, Setting};
use crate::bed::Bed;
use crate::connection::{Connection, Result};
use crate::publish::{Publisher, batches};
use crate::receive::{Due, Subscriber, wait_for};
use std::time::{Duration, Instant};

const MANY: usize = 200_000;
/// Of each round: messages, and as many operations of SUBs and UNSUBs together.
const PUBLISHED: usize = 1000;
const CHURNED: usize = PUBLISHED / 2;

fn all_subscriptions(count: usize) -> String {
    let lines = (0..count).map(|n| format!("SUB {} {n:06}\r\n", subject(n)));
    lines.collect()
}

/// What the one subscriber gets of so many messages.
fn due(messages: u64) -> Due {
    Due::Each(vec![messages * sample(16).len() as u64])
}

/// Many subjects with a subscription each: what a message to each of them costs, what to subscribe did, and how much memory it took.
pub fn many(bed: &Bed, setting: &Setting) -> Result<[Outcome; 3]> {
    let count = setting.scaled(MANY);
    let lines = all_subscriptions(count);
    let mut connection = Connection::open(&bed.target())?;
    let server = &bed.servers[0];
    let (before, meter) = (server.memory(), bed.meter(0)?);
    connection.write(lines.as_bytes())?;
    connection.settle()?;
    let (cpu, elapsed) = (meter.cpu_ns()?, meter.elapsed());
    let peak_memory = Some(server.peak_memory());
    let subscribed = Outcome {
        peak_memory,
        ..Outcome::of(cpu / count as f64, count as u64, elapsed)
    };
    let memory = Outcome {
        figure: server.memory().saturating_sub(before) as f64 / count as f64,
        peak_memory,
        ..Outcome::default()
    };
    let cold = each_once(bed, connection, count, subject)?;
    Ok([cold, subscribed, memory])
}

/// Many subjects again, of which each wildcard subscription has two hundred, in no helpful order.
pub fn wildcards(bed: &Bed, setting: &Setting) -> Result<Outcome> {
    const OF_EACH: usize = 200;
    let count = setting.scaled(MANY);
    let mut connection = Connection::open(&bed.target())?;
    let lines = (0..count / OF_EACH).map(|n| format!("SUB {n:03}.* {n:06}\r\n"));
    connection.write(lines.collect::<String>().as_bytes())?;
    connection.settle()?;
    // As wide as the others are.
    let subject = |n| format!("{:03}.{:04}", n / OF_EACH, n % OF_EACH);
    each_once(bed, connection, count, subject)
}

/// What a message to each of so many subjects costs, all of which this client has subscribed to.
fn each_once(
    bed: &Bed,
    connection: Connection,
    count: usize,
    subject: impl Fn(usize) -> String,
) -> Result<Outcome> {
    // A stride that shares no factor with the count visits every subject in no helpful order.
    let subjects: Vec<String> = (0..count).map(|n| subject(n * 7919 % count)).collect();
    let subscriber = Subscriber::of(connection, ordered(16))?;
    let mut publisher = Publisher::new(&bed.target(), &subjects, 16, 1)?;
    let meter = bed.meter(0)?;
    let published = publisher.run_once()?;
    let waited = wait_for(std::slice::from_ref(&subscriber), &due(published));
    let (cpu, elapsed) = (meter.cpu_ns()?, meter.elapsed());
    subscriber.finish()?;
    waited?;
    Ok(Outcome::of(cpu / published as f64, published, elapsed))
}

/// Messages flow 1 to 1 while another connection subscribes to other subjects and ends that again.
pub fn churn(bed: &Bed, setting: &Setting) -> Result<Outcome> {
    let target = bed.target();
    let line = format!("SUB {} {:06}\r\n", subject(0), 1);
    let subscriber = Subscriber::new(&target, &line, ordered(16))?;
    let mut churn = Churn::new(bed)?;
    let warm_up = churn.run(Duration::from_secs_f64(setting.seconds / 5.0))?;
    let mut rounds = 0;
    let slices = setting.slices(bed, SLICES, setting.seconds, |time| {
        rounds += churn.run(time)?;
        let published = (warm_up + rounds) * PUBLISHED as u64;
        wait_for(std::slice::from_ref(&subscriber), &due(published))
    });
    subscriber.finish()?;
    let slices = slices?;
    let operations = rounds * (PUBLISHED + 2 * CHURNED) as u64;
    let figure = slices.cpu_ns[0] / operations as f64;
    Ok(Outcome::of(figure, operations, slices.elapsed))
}

/// Publishes and changes of subscriptions in lockstep: were each as fast as it can be, how many there are of which would be another
/// number for each server and each round, and so would the figure.
struct Churn {
    publisher: Connection,
    publishes: Vec<u8>,
    changer: Connection,
    changes: Vec<u8>,
}

impl Churn {
    fn new(bed: &Bed) -> Result<Self> {
        let mut prepared = batches(&[subject(0)], 16, PUBLISHED, 1);
        Ok(Self {
            publisher: Connection::open(&bed.target())?,
            publishes: prepared.remove(0),
            changer: Connection::open(&bed.target())?,
            changes: changes(),
        })
    }

    /// For so long; returns how many rounds that was.
    fn run(&mut self, time: Duration) -> Result<u64> {
        let until = Instant::now() + time;
        let mut rounds = 0;
        while Instant::now() < until {
            self.publisher.write(&self.publishes)?;
            self.changer.write(&self.changes)?;
            self.publisher.pong()?;
            self.changer.pong()?;
            rounds += 1;
        }
        Ok(rounds)
    }
}

fn changes() -> Vec<u8> {
    let line = |n: usize| format!("SUB c.{n:06} {n}\r\nUNSUB {n}\r\n");
    let lines: String = (0..CHURNED).map(line).collect();
    (lines + "PING\r\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_changes_as_often_as_it_publishes() {
        let count = |bytes: &[u8], verb: &str| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            text.lines().filter(|line| line.starts_with(verb)).count()
        };
        let publishes = batches(&[subject(0)], 16, PUBLISHED, 1).remove(0);
        let changes = changes();
        assert_eq!(count(&publishes, "PUB "), PUBLISHED);
        assert_eq!(
            count(&changes, "SUB ") + count(&changes, "UNSUB "),
            PUBLISHED
        );
        assert_eq!(count(&changes, "SUB "), count(&changes, "UNSUB "));
        assert!(publishes.ends_with(b"\nPING\r\n") && changes.ends_with(b"\nPING\r\n"));
    }
}
