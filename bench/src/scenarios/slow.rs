//! One slow consumer among eight: what that costs the other seven.

use super::flow::{ordered, sample, subject};
use super::{Outcome, Setting};
use crate::bed::Bed;
use crate::connection::{Connection, Result, Target};
use crate::publish::Publisher;
use crate::receive::{Due, Subscriber, wait_for};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

const SUBSCRIBERS: usize = 8;
const PAYLOAD: usize = 128;
/// How often whoever reads slowly does.
const READ_EVERY: Duration = Duration::from_millis(10);

/// What the slow one does.
#[derive(Clone, Copy)]
pub enum Slow {
    Silent,
    /// Reads so many bytes a second, and comes back when it was cut off.
    Reads(usize),
}

impl Slow {
    /// Subscribes, and goes on until it is told to stop.
    fn start<'s>(
        self,
        scope: &'s Scope<'s, '_>,
        target: Target,
        stop: &'s AtomicBool,
    ) -> Result<ScopedJoinHandle<'s, Result<()>>> {
        let mut connection = subscribed(&target)?;
        Ok(scope.spawn(move || {
            let bytes = match self {
                Self::Silent => 0,
                Self::Reads(bytes) => bytes / (1000 / READ_EVERY.as_millis() as usize),
            };
            let mut chunk = vec![0; bytes];
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(READ_EVERY);
                let read = match self {
                    Self::Silent => continue,
                    Self::Reads(_) => connection.read(&mut chunk),
                };
                match read {
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    // Some servers close it again at once.
                    Ok(0) | Err(_) => {
                        if let Ok(new) = subscribed(&target) {
                            connection = new;
                        }
                    }
                    Ok(_) => {}
                }
            }
            Ok(())
        }))
    }
}

/// Also of a panic, or the scope would wait for ever.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn line() -> String {
    format!("SUB {} {:06}\r\n", subject(0), 1)
}

fn subscribed(target: &Target) -> Result<Connection> {
    let mut connection = Connection::open(target)?;
    connection.write(line().as_bytes())?;
    connection.settle()?;
    connection.timeout(READ_EVERY)?;
    Ok(connection)
}

/// Messages a second that flow to this many subscribers.
fn rate(bed: &Bed, seconds: f64, readers: usize, slow: Option<Slow>) -> Result<f64> {
    let (target, stop) = (bed.target(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let slow = slow
            .map(|slow| slow.start(scope, target.clone(), &stop))
            .transpose()?;
        let rate = {
            let _stop = StopAtEnd(&stop);
            rate_of(&target, seconds, readers)
        };
        slow.map_or(Ok(()), |slow| slow.join().expect("it does not panic"))?;
        rate
    })
}

fn rate_of(target: &Target, seconds: f64, readers: usize) -> Result<f64> {
    let readers = (0..readers)
        .map(|_| Subscriber::new(target, &line(), ordered(PAYLOAD)))
        .collect::<Result<Vec<_>>>()?;
    let mut publisher = Publisher::new(target, &[subject(0)], PAYLOAD, SUBSCRIBERS)?;
    let start = Instant::now();
    let published = publisher.run(start + Duration::from_secs_f64(seconds))?;
    let share = published * sample(PAYLOAD).len() as u64;
    // Nobody who reads may miss a message.
    let waited = wait_for(&readers, &Due::Each(vec![share; readers.len()]));
    let rate = published as f64 / start.elapsed().as_secs_f64();
    for reader in readers {
        reader.finish()?;
    }
    waited.map(|()| rate)
}

/// How many times as long a message to the others takes: as without it, where it is soon cut off and never comes back, and as with one that is as fast as they
/// are, where it comes back, as soon as it has read what the kernel still had for it.
pub fn cost(bed: &Bed, setting: &Setting, slow: Slow) -> Result<Outcome> {
    let (readers, seconds) = match slow {
        // Long enough for a hold-up of some seconds to show as what it is.
        Slow::Silent => (SUBSCRIBERS - 1, setting.longer() * 5.0),
        Slow::Reads(_) => (SUBSCRIBERS, setting.longer() * 2.0),
    };
    let undisturbed = |seconds| rate(bed, seconds, readers, None);
    undisturbed(setting.longer() / 5.0)?; // warm-up
    // Half of it before and half of it after, as what a machine does beside changes meanwhile.
    let before = undisturbed(seconds / 2.0)?;
    let beside = rate(bed, seconds, SUBSCRIBERS - 1, Some(slow))?;
    let after = undisturbed(seconds / 2.0)?;
    Ok(Outcome {
        figure: (before + after) / 2.0 / beside,
        rate: beside,
        ..Outcome::default()
    })
}
