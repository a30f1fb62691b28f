//! Publishers that never stop, and subscribers that count.

use super::{Outcome, SLICES, Setting};
use crate::bed::Bed;
use crate::connection::{Connection, Result, Target};
use crate::idle::Idle;
use crate::publish::Publisher;
use crate::receive::{Audience, Due, Expected, Receives, Subscriber, received, wait_for};
use crate::server::Server;
use std::time::{Duration, Instant};

/// Longer than two servers may take to know each other.
const SETTLE_PATIENCE: Duration = Duration::from_secs(20);
/// Idle connections, of how many a flow is among few and among many.
const FEW_IDLE: usize = 10;
pub const IDLE: usize = 9900;
/// Among many nothing is measured before they have had a first PING: nats-server sends it about two seconds after a client came,
/// and thousands of them would be part of the figure.
const GREETING: Duration = Duration::from_millis(2500);

#[derive(Clone)]
pub struct Flow {
    pub publishers: usize,
    /// 0: nobody is interested.
    pub subscribers: usize,
    pub payload: usize,
    pub subjects: usize,
    pub own_subjects: bool,
    pub queue: bool,
    pub wildcard: bool,
    /// One thread of ours serves all subscribers.
    pub one_thread: bool,
    /// Subscribers are at the second server.
    pub far: bool,
}

pub const FLOW: Flow = Flow {
    publishers: 1,
    subscribers: 1,
    payload: 16,
    subjects: 1,
    own_subjects: false,
    queue: false,
    wildcard: false,
    one_thread: false,
    far: false,
};

pub fn subject(number: usize) -> String {
    format!("b.{number:06}")
}

/// The messages of one publisher.
pub fn ordered(payload: usize) -> Expected {
    Expected::new(sample(payload), true)
}

/// A message as a subscriber of ours sees it; widths are what counts.
pub fn sample(payload: usize) -> Vec<u8> {
    let mut message = format!("MSG {} {:06} {payload}\r\n", subject(0), 0).into_bytes();
    message.resize(message.len() + payload, b'x');
    message.extend_from_slice(b"\r\n");
    message
}

impl Flow {
    fn subscriptions(&self, subscriber: usize) -> String {
        let queue = if self.queue { "group " } else { "" };
        if self.wildcard {
            format!("SUB b.* {:06}\r\n", 1)
        } else if self.own_subjects {
            format!("SUB {} {queue}{:06}\r\n", subject(subscriber), 1)
        } else {
            let lines = (0..self.subjects).map(|n| format!("SUB {} {queue}{n:06}\r\n", subject(n)));
            lines.collect()
        }
    }

    fn expected(&self) -> Expected {
        let of_one = self.publishers == 1 || self.own_subjects;
        Expected::new(sample(self.payload), of_one && !self.queue)
    }

    /// What the receivers must have after so many messages of each publisher, beside what they had before.
    fn due(&self, published: &[u64], before: &[u64]) -> Due {
        let bytes = sample(self.payload).len() as u64;
        let all: u64 = published.iter().sum();
        if self.queue {
            return Due::Together(before.iter().sum::<u64>() + all * bytes);
        }
        let shares = before.iter().enumerate().map(|(receiver, before)| {
            let messages = match self.own_subjects {
                true => published[receiver],
                false => all,
            };
            before + messages * bytes
        });
        Due::Each(shares.collect())
    }

    /// How often each message is delivered.
    fn copies(&self) -> u64 {
        match (self.subscribers, self.own_subjects || self.queue) {
            (0, _) => 0,
            (_, true) => 1,
            (n, false) => n as u64,
        }
    }

    fn publishers(&self, target: &Target) -> Result<Vec<Publisher>> {
        let all = (0..self.publishers).map(|index| {
            let subjects: Vec<String> = match self.own_subjects {
                true => vec![subject(index)],
                false => (0..self.subjects).map(subject).collect(),
            };
            Publisher::new(target, &subjects, self.payload, self.copies() as usize)
        });
        all.collect()
    }
}

/// All publishers at once, for so long; returns how much each of them published.
fn publish(publishers: &mut [Publisher], time: Duration) -> Result<Vec<u64>> {
    let until = Instant::now() + time;
    std::thread::scope(|scope| {
        let running: Vec<_> = publishers
            .iter_mut()
            .map(|publisher| scope.spawn(move || publisher.run(until)))
            .collect();
        let results = running.into_iter();
        results
            .map(|thread| thread.join().expect("it does not panic"))
            .collect()
    })
}

/// From a server to another: what it costs each of them.
pub fn across(bed: &Bed, setting: &Setting) -> Result<[Outcome; 2]> {
    let outcomes = flow(bed, setting, &Flow { far: true, ..FLOW })?;
    Ok(outcomes.try_into().expect("a route has two servers"))
}

/// Among few connections that do nothing, among many, and how many times as much that is.
pub fn among(bed: &Bed, setting: &Setting) -> Result<[Outcome; 3]> {
    let target = &bed.target();
    let measured = || {
        // They take so long to prepare.
        let outcomes = measured(bed, setting, &FLOW, (4 * SLICES, setting.longer()))?;
        Ok::<_, String>(outcomes.into_iter().next().expect("there is a server"))
    };
    let few = Idle::open(target, FEW_IDLE)?;
    let among_few = measured()?;
    let more = Idle::open(target, setting.scaled(IDLE) - FEW_IDLE)?;
    let greeted = Instant::now() + GREETING;
    setting.runner.pass();
    std::thread::sleep(greeted.saturating_duration_since(Instant::now()));
    let among_many = measured()?;
    few.finish()?;
    more.finish()?;
    let ratio = Outcome {
        figure: among_many.figure / among_few.figure,
        ..Outcome::default()
    };
    Ok([among_few, among_many, ratio])
}

/// What it costs each server of the bed.
pub fn flow(bed: &Bed, setting: &Setting, flow: &Flow) -> Result<Vec<Outcome>> {
    if flow.far {
        settle_servers(&bed.target(), &bed.target_of(1))?;
    }
    measured(bed, setting, flow, (SLICES, setting.seconds))
}

/// Measured in so many slices, so long together.
type Time = (u32, f64);

fn measured(bed: &Bed, setting: &Setting, flow: &Flow, time: Time) -> Result<Vec<Outcome>> {
    let far = bed.target_of(if flow.far { 1 } else { 0 });
    if flow.one_thread {
        let lines = flow.subscriptions(0);
        let receivers = [Audience::new(
            &far,
            flow.subscribers,
            &lines,
            flow.expected(),
        )?];
        let outcome = measure(bed, setting, flow, time, &receivers);
        let [audience] = receivers;
        // What it has seen says more than that something is missing.
        audience.finish()?;
        return outcome;
    }
    let mut receivers = Vec::new();
    for index in 0..flow.subscribers {
        let lines = flow.subscriptions(index);
        receivers.push(Subscriber::new(&far, &lines, flow.expected())?);
    }
    let outcome = measure(bed, setting, flow, time, &receivers);
    for receiver in receivers {
        receiver.finish()?;
    }
    outcome
}

fn measure(
    bed: &Bed,
    setting: &Setting,
    flow: &Flow,
    (count, seconds): Time,
    receivers: &[impl Receives],
) -> Result<Vec<Outcome>> {
    let target = &bed.target();
    let mut publishers = flow.publishers(target)?;
    let before = match flow.far {
        true => settle_route(target, receivers)?,
        false => received(receivers),
    };
    let warm_up = Duration::from_secs_f64(setting.seconds / 5.0);
    let mut all = publish(&mut publishers, warm_up)?;
    wait_for(receivers, &flow.due(&all, &before))?;
    let mut published = 0;
    let slices = setting.slices(bed, count, seconds, |time| {
        let more = publish(&mut publishers, time)?;
        published += more.iter().sum::<u64>();
        all.iter_mut()
            .zip(more)
            .for_each(|(all, more)| *all += more);
        wait_for(receivers, &flow.due(&all, &before))
    })?;
    let delivered = published * flow.copies().max(1) * flow.payload as u64;
    let of = |(server, cpu): (&Server, f64)| Outcome {
        bytes_rate: delivered as f64 / slices.elapsed.as_secs_f64(),
        peak_memory: Some(server.peak_memory()),
        ..Outcome::of(cpu / published as f64, published, slices.elapsed)
    };
    Ok(bed.servers.iter().zip(slices.cpu_ns).map(of).collect())
}

/// Until the servers know each other: clients that are there when they come to are told of it, between messages.
pub fn settle_servers(near: &Target, far: &Target) -> Result<()> {
    const ASK_EVERY: Duration = Duration::from_millis(5);
    let (mut publisher, mut subscriber) = (Connection::open(near)?, Connection::open(far)?);
    subscriber.write(b"SUB settle 1\r\n")?;
    subscriber.settle()?;
    subscriber.timeout(ASK_EVERY)?;
    let end = Instant::now() + SETTLE_PATIENCE;
    loop {
        publisher.write(b"PUB settle 0\r\n\r\n")?;
        std::thread::sleep(ASK_EVERY);
        match subscriber.message() {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > end => {
                return Err(format!("no message comes across the route: {error}"));
            }
            Err(_) => {}
        }
    }
}

/// Publishes until interest has got across; returns the bytes that came of that, by receiver.
fn settle_route(target: &Target, receivers: &[impl Receives]) -> Result<Vec<u64>> {
    let mut connection = Connection::open(target)?;
    let end = Instant::now() + SETTLE_PATIENCE;
    let message = format!("PUB {} 16\r\n00000000xxxxxxxx\r\n", subject(0));
    while received(receivers).contains(&0) {
        if Instant::now() > end {
            return Err("no message comes across the route".into());
        }
        connection.write(message.as_bytes())?;
        connection.settle()?;
        std::thread::sleep(Duration::from_millis(50));
    }
    // What was published last may still be on its way.
    loop {
        let before = received(receivers);
        std::thread::sleep(Duration::from_millis(200));
        if received(receivers) == before {
            return Ok(before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_is_due_what_was_published_to_him() {
        let bytes = sample(16).len() as u64;
        let own = Flow {
            publishers: 2,
            subscribers: 2,
            own_subjects: true,
            ..FLOW
        };
        let of = |flow: &Flow, published: &[u64]| match flow.due(published, &[0, 1]) {
            Due::Each(shares) => shares,
            Due::Together(all) => vec![all],
        };
        assert_eq!(of(&own, &[5, 7]), [5 * bytes, 7 * bytes + 1]);
        assert_eq!(of(&FLOW, &[5]), [5 * bytes, 5 * bytes + 1]);
        let queue = Flow {
            queue: true,
            ..FLOW
        };
        assert_eq!(of(&queue, &[5, 7]), [12 * bytes + 1]);
    }
}
