//! Times of one item where a run handles many, so that what criterion prints is nanoseconds of a message, not of a batch.

use criterion::Bencher;
use std::time::Instant;

/// `run` handles so many items each time.
pub fn time(bencher: &mut Bencher<'_>, items_per_run: usize, mut run: impl FnMut()) {
    bencher.iter_custom(|items| {
        let runs = items.div_ceil(items_per_run as u64);
        let start = Instant::now();
        for _ in 0..runs {
            run();
        }
        let each = start.elapsed().as_secs_f64() / (runs * items_per_run as u64) as f64;
        std::time::Duration::from_secs_f64(each * items as f64)
    });
}
