//! Median and spread, and percentiles of latencies.

use hdrhistogram::Histogram;

#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Spread {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

/// Of those that are numbers: a run that failed has none.
pub fn spread(values: &[f64]) -> Spread {
    let sorted = sorted(values);
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

/// How wide the interval is that holds the median of all that might have been measured, to 97 % at least, as part of the median of what was; None: there
/// are too few values to say.
///
/// The ends are two of the values, whatever these are spread like: each lies above that median or below it, as a coin falls.
pub fn uncertainty(values: &[f64]) -> Option<f64> {
    let sorted = sorted(values);
    let outer = outer(sorted.len()).checked_sub(1)?;
    let inner = spread(&sorted[outer..sorted.len() - outer]);
    Some((inner.max - inner.min) / inner.median)
}

/// The largest rank from either end beyond which the median lies in at most 3.2 % of cases, of so many values; 0: none. Six values reach that.
fn outer(count: usize) -> usize {
    const OUTSIDE_MAX: f64 = 0.032;
    // How likely it is that so many values lie below the median.
    let mut exactly = 0.5f64.powi(count as i32);
    let mut fewer = 0.0;
    for rank in 0..count {
        fewer += exactly;
        if 2.0 * fewer > OUTSIDE_MAX {
            return rank;
        }
        exactly *= (count - rank) as f64 / (rank + 1) as f64;
    }
    0
}

/// Whether to look at the interval after so many rounds: where it may leave one more value out than with a round less. Who looks after every round
/// stops at the first interval that is narrow by luck.
pub fn is_worth_a_look(rounds: usize) -> bool {
    rounds > 0 && outer(rounds) > outer(rounds - 1)
}

/// How many times more one server needed than the first, round by round: what the machine has to do beside the servers changes with time, and turns that
/// follow each other meet about the same of it. Not a number where a run of either failed.
pub fn ratios(first: &[f64], other: &[f64]) -> Vec<f64> {
    let rounds = first.iter().zip(other);
    rounds.map(|(first, other)| other / first).collect()
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let numbers = values.iter().copied().filter(|value| !value.is_nan());
    let mut sorted: Vec<f64> = numbers.collect();
    sorted.sort_by(f64::total_cmp);
    sorted
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
        assert_eq!(spread(&[1.0, f64::NAN, 2.0, 3.0]).median, 2.0);
    }

    #[test]
    fn rounds_are_compared_each_by_itself() {
        // The machine was twice as slow in the second and third, one run failed.
        let (first, other) = ([10.0, 20.0, 20.0, 10.0], [30.0, 60.0, f64::NAN, 30.0]);
        let ratios = ratios(&first, &other);
        assert_eq!((spread(&ratios).median, ratios.len()), (3.0, 4));
    }

    #[test]
    fn how_sure_a_median_is_depends_on_how_many_values_there_are() {
        // Of tables of the sign test: 3.1 % outside for 6 values, 2.1 % for 10, 1.5 % for 25.
        let of = [5, 6, 9, 10, 12, 13, 15, 16, 20, 25].map(outer);
        assert_eq!(of, [0, 1, 1, 2, 2, 3, 3, 4, 5, 7]);
        let values = [90.0, 95.0, 99.0, 101.0, 105.0, 110.0];
        assert_eq!(uncertainty(&values), Some(0.2));
        assert_eq!(uncertainty(&values[1..]), None);
        // The outermost of ten do not count.
        let more = [&values[..], &[1.0, 100.0, 100.0, 1000.0]].concat();
        assert_eq!(uncertainty(&more), Some(0.2));
    }

    #[test]
    fn there_are_few_chances_to_be_lucky() {
        let looks: Vec<usize> = (0..26).filter(|rounds| is_worth_a_look(*rounds)).collect();
        assert_eq!(looks, [6, 10, 13, 16, 18, 21, 24]);
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
