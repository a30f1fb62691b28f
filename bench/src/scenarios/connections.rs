//! What connections cost: those that come and go, and those that stay.

use super::{Outcome, Setting};
use crate::bed::Bed;
use crate::connection::{AT_ONCE, Connection, Result};
use std::time::Duration;

pub struct Cost {
    /// Bytes and nanoseconds of CPU per connection.
    pub memory: f64,
    pub cpu: f64,
}

/// Of so many connections that are made one by one.
pub fn cost(
    bed: &Bed,
    setting: &Setting,
    count: usize,
    figure: fn(&Cost) -> f64,
) -> Result<Outcome> {
    let count = setting.scaled(count);
    let server = &bed.servers[0];
    let (memory, meter) = (server.memory(), bed.meter(0)?);
    let mut open = Vec::new();
    for _ in 0..count {
        open.push(Connection::open(&bed.target())?);
    }
    let memory = server.memory().saturating_sub(memory);
    let elapsed = meter.elapsed();
    drop(open);
    settle_closes(bed)?;
    let cost = Cost {
        memory: memory as f64 / count as f64,
        cpu: meter.cpu_ns()? / count as f64,
    };
    Ok(Outcome::of(figure(&cost), count as u64, elapsed))
}

/// Clients come back all together, as after a restart of the server, and stay until all are there.
pub fn storm(bed: &Bed, setting: &Setting) -> Result<Outcome> {
    let count = setting.scaled(300) * AT_ONCE;
    let meter = bed.meter(0)?;
    let open = Connection::open_many(&bed.target(), count)?;
    let elapsed = meter.elapsed();
    drop(open);
    settle_closes(bed)?;
    Ok(Outcome::of(
        meter.cpu_ns()? / count as f64,
        count as u64,
        elapsed,
    ))
}

/// One after the other, each closed before the next.
pub fn handshakes(bed: &Bed, setting: &Setting) -> Result<Outcome> {
    let count = setting.scaled(1000);
    let meter = bed.meter(0)?;
    for _ in 0..count {
        Connection::open(&bed.target())?;
    }
    let elapsed = meter.elapsed();
    settle_closes(bed)?;
    Ok(Outcome::of(
        meter.cpu_ns()? / count as f64,
        count as u64,
        elapsed,
    ))
}

/// The closes are part of the price; another connection is served when they are done.
fn settle_closes(bed: &Bed) -> Result<()> {
    Connection::open(&bed.target())?;
    std::thread::sleep(Duration::from_millis(200));
    Ok(())
}
