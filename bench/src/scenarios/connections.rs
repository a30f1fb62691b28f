//! What connections cost: those that come and go, and those that stay.

use super::{Outcome, SLICES, Setting};
use crate::bed::Bed;
use crate::connection::{AT_ONCE, Connection, Result};
use std::time::{Duration, Instant};

/// Clients come back all together, as after a restart of the server, and stay until all are there: bytes of memory, and CPU time, of each.
pub fn storm(bed: &Bed, setting: &Setting) -> Result<[Outcome; 2]> {
    let count = setting.scaled(300) * AT_ONCE;
    let server = &bed.servers[0];
    let (before, meter) = (server.memory(), bed.meter(0)?);
    let open = Connection::open_many(&bed.target(), count)?;
    let memory = server.memory().saturating_sub(before);
    let elapsed = meter.elapsed();
    drop(open);
    settle_closes(bed, Duration::from_millis(200))?;
    let of = |all: f64| Outcome::of(all / count as f64, count as u64, elapsed);
    Ok([of(memory as f64), of(meter.cpu_ns()?)])
}

/// They come one by one, and go all together.
pub fn one_by_one(bed: &Bed, setting: &Setting) -> Result<Outcome> {
    let count = setting.scaled(400);
    in_slices(bed, setting, count, || {
        let open = (0..count).map(|_| Connection::open(&bed.target()));
        open.collect::<Result<Vec<_>>>().map(drop)
    })
}

/// One after the other, each closed before the next.
pub fn handshakes(bed: &Bed, setting: &Setting) -> Result<Outcome> {
    let count = setting.scaled(200);
    in_slices(bed, setting, count, || {
        let mut open = (0..count).map(|_| Connection::open(&bed.target()));
        open.try_for_each(|open| open.map(drop))
    })
}

/// So many connections in each slice.
fn in_slices(
    bed: &Bed,
    setting: &Setting,
    count: usize,
    connect: impl Fn() -> Result<()>,
) -> Result<Outcome> {
    let mut connecting = Duration::ZERO;
    let more = |done, _| done < SLICES;
    let slices = setting.slices_while(bed, more, || {
        let start = Instant::now();
        connect()?;
        connecting += start.elapsed();
        settle_closes(bed, Duration::from_millis(50))
    })?;
    let count = u64::from(SLICES) * count as u64;
    let figure = slices.cpu_ns[0] / count as f64;
    Ok(Outcome::of(figure, count, connecting))
}

/// The closes are part of the price; another connection is served when they are done, or soon after.
fn settle_closes(bed: &Bed, soon: Duration) -> Result<()> {
    Connection::open(&bed.target())?;
    std::thread::sleep(soon);
    Ok(())
}
