//! Medians, estimates and how sure they are, and percentiles of latencies.

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

/// What values are spread around that are too high by a factor as often as too low by it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    pub value: f64,
    /// How wide the interval is that it lies in, to 97 % at least, as part of it; None: there are too few values to say.
    pub width: Option<f64>,
}

impl Estimate {
    /// Of Hodges and Lehmann: the median of the geometric means of all pairs, each value with itself as well. Some wild values move it as little as
    /// they do a median, and what the others say is not thrown away. The ends of the interval are two of the means, by Wilcoxon's test of signed ranks.
    pub fn of(values: &[f64]) -> Self {
        let logarithms: Vec<f64> = values.iter().map(|value| value.ln()).collect();
        let logarithms = sorted(&logarithms);
        let count = logarithms.len();
        let pairs = (0..count).flat_map(|first| (first..count).map(move |second| (first, second)));
        let means: Vec<f64> = pairs
            .map(|(first, second)| (logarithms[first] + logarithms[second]) / 2.0)
            .collect();
        let value = spread(&means).median.exp();
        let width = outer(count).checked_sub(1).map(|outer| {
            let means = sorted(&means);
            let (low, high) = (means[outer].exp(), means[means.len() - 1 - outer].exp());
            (high - low) / value
        });
        Self { value, width }
    }
}

/// The largest rank from either end beyond which the estimate lies in at most 3.2 % of cases, among the means of all pairs of so many values; 0: none. Six
/// values reach that.
fn outer(count: usize) -> usize {
    const OUTSIDE_MAX: f64 = 0.032;
    // How likely each sum is of those of the ranks 1 to `count` that belong to values above it, if coins decide which do.
    let mut likely = vec![1.0];
    for rank in 1..=count {
        let mut with = vec![0.0; likely.len() + rank];
        for (sum, part) in likely.iter().enumerate() {
            with[sum] += part / 2.0;
            with[sum + rank] += part / 2.0;
        }
        likely = with;
    }
    let mut fewer = 0.0;
    let is_inside = |part: &f64| {
        fewer += part;
        2.0 * fewer > OUTSIDE_MAX
    };
    likely.iter().position(is_inside).unwrap_or(0)
}

/// Fewer rounds have no interval.
pub const FIRST_LOOK: usize = 6;

/// Whether to look at the interval after so many rounds: where there are a third more than at the look before. Who looks after every round stops at the
/// first interval that is narrow by luck.
pub fn is_worth_a_look(rounds: usize) -> bool {
    let looks = std::iter::successors(Some(FIRST_LOOK), |look: &usize| {
        Some((look * 4).div_ceil(3))
    });
    looks.take_while(|look| *look <= rounds).last() == Some(rounds)
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
    fn an_estimate_lies_between_means_of_pairs() {
        let of = |values: &[f64]| Estimate::of(values);
        let near = |value: f64, expected: f64| (value / expected - 1.0).abs() < 1e-9;
        assert!(near(of(&[2.0]).value, 2.0) && of(&[2.0]).width.is_none());
        // The means are 1, 2, 4, 4, 8, 16.
        assert!(near(of(&[1.0, 16.0, f64::NAN, 4.0]).value, 4.0));
        // A wild one counts as one that is too high, however high it is.
        let values = [4.0, 4.1, 3.9, 4.0, 4.0, 4.0, 4.0];
        let wild = [4.0, 4.1, 3.9, 4.0, 4000.0, 4.0, 4.0];
        assert!(near(of(&values).value, 4.0) && near(of(&wild).value, 4.0));
        let width = of(&[1.0, 2.0, 2.0, 2.0, 2.0, 4.0]).width.unwrap();
        assert!(near(width, (4.0 - 1.0) / 2.0), "{width}");
        assert!(of(&[2.0; 5]).width.is_none() && of(&[]).value.is_nan());
    }

    #[test]
    fn how_sure_an_estimate_is_depends_on_how_many_values_there_are() {
        // By the tables of the signed rank test: P(W <= 0) of 6 is 1/64, P(W <= 6) of 10 is 14/1024 and P(W <= 7) of it 19/1024.
        let of = [5, 6, 10, 25].map(outer);
        assert_eq!(of, [0, 1, 7, 84]);
    }

    #[test]
    fn there_are_few_chances_to_be_lucky() {
        let looks: Vec<usize> = (0..301).filter(|rounds| is_worth_a_look(*rounds)).collect();
        let first = [6, 8, 11, 15, 20, 27, 36, 48];
        assert_eq!(looks, [&first[..], &[64, 86, 115, 154, 206, 275]].concat());
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
