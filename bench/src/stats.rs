//! Median and spread, and percentiles of latencies.

use hdrhistogram::Histogram;

#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Spread {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

pub fn spread(values: &[f64]) -> Spread {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let median = match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    };
    Spread {
        min: sorted.first().copied().unwrap_or(f64::NAN),
        median,
        max: sorted.last().copied().unwrap_or(f64::NAN),
    }
}

/// How far values are apart, but for the outermost quarter at each end, as part of their median; not a number where there are none.
pub fn scatter(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let outer = sorted.len() / 4;
    let inner = spread(&sorted[outer..sorted.len() - outer]);
    (inner.max - inner.min) / inner.median
}

/// Nanoseconds up to a minute, to three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("sound bounds")
}

/// Microseconds.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
    /// Quantile and value, for a curve.
    pub curve: Vec<(f64, f64)>,
}

impl Latency {
    /// From nanoseconds.
    pub fn of(times: &Histogram<u64>) -> Self {
        let at = |quantile| times.value_at_quantile(quantile) as f64 / 1000.0;
        // Ever finer towards the slowest: 0, 0.5, 0.75, 0.875, ...
        let quantiles = (0..14).map(|step| 1.0 - 0.5f64.powi(step));
        Self {
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: times.max() as f64 / 1000.0,
            curve: quantiles.map(|quantile| (quantile, at(quantile))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(
            spread(&[3.0, 1.0, 2.0]),
            Spread {
                min: 1.0,
                median: 2.0,
                max: 3.0
            }
        );
        assert_eq!(spread(&[4.0, 1.0]).median, 2.5);
        assert!(spread(&[]).median.is_nan());
    }

    #[test]
    fn percentiles_are_microseconds() {
        let mut times = Histogram::new_with_bounds(1, 1_000_000_000, 3).unwrap();
        for value in 1..=1000 {
            times.record(value * 1000).unwrap();
        }
        let latency = Latency::of(&times);
        assert!((latency.p50 - 500.0).abs() < 2.0 && (latency.p99 - 990.0).abs() < 2.0);
        assert!(latency.curve.is_sorted_by_key(|(quantile, _)| *quantile));
    }
}
