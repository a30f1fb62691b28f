//! One slow consumer among eight: what that costs the other seven.

use super::flow::{ordered, sample, subject};
use super::{Outcome, Setting};
use crate::bed::Bed;
use crate::load::{Connection, Due, Publisher, Result, Subscriber, wait_for};
use std::time::{Duration, Instant};

const SUBSCRIBERS: usize = 8;
const PAYLOAD: usize = 128;

/// Messages a second that flow to this many subscribers.
fn rate(bed: &Bed, seconds: f64, readers: usize, with_slow_one: bool) -> Result<f64> {
    let target = bed.target();
    let line = format!("SUB {} {:06}\r\n", subject(0), 1);
    let slow = match with_slow_one {
        true => {
            let mut connection = Connection::open(&target)?;
            connection.write(line.as_bytes())?;
            connection.settle()?;
            Some(connection)
        }
        false => None,
    };
    let readers = (0..readers)
        .map(|_| Subscriber::new(&target, &line, ordered(PAYLOAD)))
        .collect::<Result<Vec<_>>>()?;
    let mut publisher = Publisher::new(&target, &[subject(0)], PAYLOAD)?;
    let start = Instant::now();
    let published = publisher.run(start + Duration::from_secs_f64(seconds))?;
    let share = published * sample(PAYLOAD).len() as u64;
    // Nobody who reads may miss a message.
    let waited = wait_for(&readers, &Due::Each(vec![share; readers.len()]));
    let rate = published as f64 / start.elapsed().as_secs_f64();
    for reader in readers {
        reader.finish()?;
    }
    drop(slow);
    waited.map(|()| rate)
}

/// How many times as long a message to the others takes.
pub fn cost(bed: &Bed, setting: &Setting) -> Result<Outcome> {
    // Long enough for a hold-up of some seconds to show as what it is.
    let seconds = setting.seconds * 5.0;
    rate(bed, setting.seconds / 5.0, SUBSCRIBERS - 1, false)?; // warm-up
    let alone = rate(bed, seconds, SUBSCRIBERS - 1, false)?;
    let beside = rate(bed, seconds, SUBSCRIBERS - 1, true)?;
    Ok(Outcome {
        figure: alone / beside,
        rate: beside,
        ..Outcome::default()
    })
}
