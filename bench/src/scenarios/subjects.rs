//! Many subjects: cold ones, the price of subscribing, and subscriptions that come and go.

use super::flow::{FLOW, flow, ordered, sample, subject};
use super::{Outcome, Setting};
use crate::bed::Bed;
use crate::load::{Connection, Publisher, Result, Subscriber, wait_for};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

const MANY: usize = 200_000;
const CHURNED: usize = 1000;

fn all_subscriptions(count: usize) -> String {
    let lines = (0..count).map(|n| format!("SUB {} {n:06}\r\n", subject(n)));
    lines.collect()
}

pub fn cold(bed: &Bed, setting: &Setting) -> Result<Outcome> {
    let count = setting.scaled(MANY);
    // A stride that shares no factor with the count visits every subject in no helpful order.
    let subjects: Vec<String> = (0..count).map(|n| subject(n * 7919 % count)).collect();
    let target = bed.target();
    let subscriber = Subscriber::new(&target, &all_subscriptions(count), ordered(16))?;
    let mut publisher = Publisher::new(&target, &subjects, 16)?;
    let meter = bed.meter(0);
    let published = publisher.run_once()?;
    let bytes = published * sample(16).len() as u64;
    wait_for(std::slice::from_ref(&subscriber), bytes)?;
    let (cpu, elapsed) = (meter.cpu_ns(), meter.elapsed());
    subscriber.finish()?;
    Ok(Outcome::of(cpu / published as f64, published, elapsed))
}

pub fn subscribe(bed: &Bed, setting: &Setting) -> Result<Outcome> {
    let count = setting.scaled(MANY);
    let lines = all_subscriptions(count);
    let mut connection = Connection::open(&bed.target())?;
    let meter = bed.meter(0);
    connection.write(lines.as_bytes())?;
    connection.settle()?;
    let (cpu, elapsed) = (meter.cpu_ns(), meter.elapsed());
    Ok(Outcome::of(cpu / count as f64, count as u64, elapsed))
}

pub fn memory(bed: &Bed, setting: &Setting) -> Result<Outcome> {
    let count = setting.scaled(MANY);
    let mut connection = Connection::open(&bed.target())?;
    let before = bed.servers[0].memory();
    connection.write(all_subscriptions(count).as_bytes())?;
    connection.settle()?;
    let more = bed.servers[0].memory().saturating_sub(before);
    Ok(Outcome {
        figure: more as f64 / count as f64,
        ..Outcome::default()
    })
}

/// Messages flow 1 to 1 while another connection subscribes to other subjects and ends that again.
pub fn churn(bed: &Bed, setting: &Setting) -> Result<Outcome> {
    let mut connection = Connection::open(&bed.target())?;
    let line = |n: usize| format!("SUB c.{n:06} {n}\r\nUNSUB {n}\r\n");
    let batch: String = (0..CHURNED).map(line).collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let churning = scope.spawn(|| -> Result<u64> {
            let mut operations = 0;
            while !stop.load(SeqCst) {
                connection.write(batch.as_bytes())?;
                connection.settle()?;
                operations += 2 * CHURNED as u64;
            }
            Ok(operations)
        });
        let meter = bed.meter(0);
        let flowed = flow(bed, setting, &FLOW);
        stop.store(true, SeqCst);
        let churned = churning
            .join()
            .unwrap_or_else(|_| Err("it panicked".into()))?;
        let flowed = flowed?;
        let (cpu, elapsed) = (meter.cpu_ns(), meter.elapsed());
        // The flow's own rate holds for its measured part; its warm-up is a fifth of that.
        let published = (flowed.rate * setting.seconds * 1.2) as u64;
        let operations = churned + published;
        Ok(Outcome::of(cpu / operations as f64, operations, elapsed))
    })
}
