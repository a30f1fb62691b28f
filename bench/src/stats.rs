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

/// What rounds say, and how surely.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    pub value: f64,
    /// How wide the interval is that it lies in, to about 97 %, as part of it; None: there are too few values to say.
    pub width: Option<f64>,
}

impl Estimate {
    /// Of Hodges and Lehmann, for values that are too high by a factor as often as too low by it: the median of the geometric means of all pairs, each value
    /// with itself as well. Some wild values move it as little as they do a median, and what the others say is not thrown away. The ends of the interval
    /// are two of the means, by Wilcoxon's test of signed ranks.
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

    /// How many times more another server needs than the first, both undisturbed. What else a machine has to do mostly makes rounds dearer, and not for all
    /// servers by the same factor: so each is judged by the better half of its rounds (`undisturbed`), whosever doing the worse half is. The interval is that
    /// of the same of 400 draws from the rounds (bootstrap), in which a round has the same place for both; of few rounds it is somewhat too narrow.
    pub fn between(first: &[f64], other: &[f64]) -> Self {
        const DRAWS: usize = 400;
        /// Of them, beyond either end.
        const OUTSIDE: usize = DRAWS * 3 / 200;
        let rounds: Vec<[f64; 2]> = first
            .iter()
            .zip(other)
            .map(|(first, other)| [first.ln(), other.ln()])
            .filter(|[first, other]| first.is_finite() && other.is_finite())
            .collect();
        let apart = |rounds: &[[f64; 2]]| {
            let of = |server: usize| undisturbed(rounds.iter().map(|round| round[server]));
            of(1) - of(0)
        };
        let value = apart(&rounds).exp();
        let width = (rounds.len() >= FIRST_LOOK).then(|| {
            let mut draw = Draw::new();
            let apart_drawn = |_| {
                let drawn = rounds.iter().map(|_| rounds[draw.below(rounds.len())]);
                apart(&drawn.collect::<Vec<_>>())
            };
            let drawn = sorted(&(0..DRAWS).map(apart_drawn).collect::<Vec<_>>());
            (drawn[DRAWS - 1 - OUTSIDE].exp() - drawn[OUTSIDE].exp()) / value
        });
        Self { value, width }
    }
}

/// The mean of the lower half of these, and of six at least.
fn undisturbed(logarithms: impl Iterator<Item = f64>) -> f64 {
    const AT_LEAST: usize = 6;
    let mut logarithms: Vec<f64> = logarithms.collect();
    logarithms.sort_by(f64::total_cmp);
    let half = logarithms.len().div_ceil(2);
    logarithms.truncate(half.max(AT_LEAST));
    logarithms.iter().sum::<f64>() / logarithms.len() as f64
}

/// Numbers as if by chance, and each time the same: two looks at the same rounds say the same.
pub struct Draw(u64);

impl Draw {
    pub fn new() -> Self {
        Self(1)
    }

    /// By a linear congruence (Knuth's MMIX), of which the upper bits are good.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % limit
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
    fn servers_are_compared_by_the_better_half_of_their_rounds() {
        let near = |value: f64, expected: f64| (value / expected - 1.0).abs() < 1e-9;
        // The machine was busy in the second half, which one of them felt more; one run failed.
        let quiet = [10.0, 10.0, 10.0, 10.0, 10.0, 10.0];
        let first = [&quiet[..], &[13.0; 6], &[20.0]].concat();
        let other = [
            &quiet.map(|figure| 3.0 * figure)[..],
            &[90.0; 6],
            &[f64::NAN],
        ]
        .concat();
        let estimate = Estimate::between(&first, &other);
        assert!(near(estimate.value, 3.0), "{estimate:?}");
        // In the interval there are draws with fewer quiet ones.
        assert!(
            estimate.width.is_some_and(|width| width > 0.02),
            "{estimate:?}"
        );
        assert_eq!(estimate, Estimate::between(&first, &other));
        assert_eq!(Estimate::between(&quiet, &quiet).width, Some(0.0));
        let few = Estimate::between(&[1.0; 5], &[2.0; 5]);
        assert!(near(few.value, 2.0) && few.width.is_none());
        assert!(Estimate::between(&[f64::NAN], &[1.0]).value.is_nan());
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
