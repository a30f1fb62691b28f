//! Figures side by side, for the terminal, for README, and as JSON.

use crate::machine;
use crate::scenarios::{Group, Outcome, Scenario};
use crate::server::Program;
use crate::stats::{Latency, Spread, ratios, spread, uncertainty};
use serde::Serialize;
use std::fmt::Write;

/// What is so certain is certain enough: the error of such a median is about a quarter of that, and two reports, whose errors add up to 5.4 %, agree within the 15 % we promise
/// but for one ratio in two hundred.
const SETTLED: f64 = 0.15;

/// One scenario on one server.
#[derive(Serialize)]
pub struct Row {
    pub scenario: String,
    pub group: Group,
    pub about: String,
    pub unit: &'static str,
    pub target: Option<f64>,
    pub x: Option<f64>,
    pub server: String,
    pub figures: Vec<f64>,
    pub rates: Vec<f64>,
    pub bytes_rates: Vec<f64>,
    /// Of each run.
    pub latencies: Vec<Latency>,
    pub peak_memory: u64,
}

impl Row {
    pub fn new(scenario: &Scenario, server: &str) -> Self {
        Self {
            scenario: scenario.name.clone(),
            group: scenario.group,
            about: scenario.about.clone(),
            unit: scenario.unit,
            target: scenario.target,
            x: scenario.x,
            server: server.into(),
            figures: Vec::new(),
            rates: Vec::new(),
            bytes_rates: Vec::new(),
            latencies: Vec::new(),
            peak_memory: 0,
        }
    }

    pub fn add(&mut self, outcome: Outcome, peak_memory: u64) {
        self.figures.push(outcome.figure);
        self.rates.push(outcome.rate);
        self.bytes_rates.push(outcome.bytes_rate);
        self.latencies.extend(outcome.latency);
        self.peak_memory = self.peak_memory.max(peak_memory);
    }

    /// A run that has no figure. It has its place all the same: rounds are compared by theirs.
    pub fn fail(&mut self) {
        self.figures.push(f64::NAN);
    }

    pub fn figure(&self) -> Spread {
        spread(&self.figures)
    }

    pub fn rate(&self) -> f64 {
        spread(&self.rates).median
    }

    pub fn bytes_rate(&self) -> f64 {
        spread(&self.bytes_rates).median
    }

    /// The median over the runs of one of the percentiles; None: not measured.
    pub fn latency(&self, of: fn(&Latency) -> f64) -> Option<f64> {
        let values: Vec<f64> = self.latencies.iter().map(of).collect();
        (!values.is_empty()).then(|| spread(&values).median)
    }
}

#[derive(Serialize)]
pub struct Report {
    pub machine: String,
    pub command: String,
    /// Names and versions.
    pub servers: Vec<(String, String)>,
    /// By scenario, and in it by server.
    pub rows: Vec<Vec<Row>>,
}

impl Report {
    pub fn new(programs: &[&Program]) -> Self {
        let command: Vec<String> = std::env::args()
            .skip(1)
            .map(|a| a.rsplit('/').next().unwrap_or("").to_owned())
            .collect();
        Self {
            machine: machine::description(),
            command: format!("midge-bench {}", command.join(" ")),
            servers: programs
                .iter()
                .map(|program| (program.name.clone(), program.version()))
                .collect(),
            rows: Vec::new(),
        }
    }

    pub fn add(&mut self, rows: Vec<Row>) {
        self.rows.push(rows);
    }

    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain data always serializes")
    }

    /// The rows of one section.
    pub fn of(&self, group: Group) -> impl Iterator<Item = &Vec<Row>> {
        self.rows.iter().filter(move |rows| rows[0].group == group)
    }

    /// The sections that were run, with their rows.
    pub fn sections(&self) -> impl Iterator<Item = (Group, Vec<&Vec<Row>>)> {
        let all = Group::ALL
            .iter()
            .map(|group| (*group, self.of(*group).collect::<Vec<_>>()));
        all.filter(|(_, rows)| !rows.is_empty())
    }

    pub fn table(&self) -> String {
        let mut text = String::new();
        for (group, section) in self.sections() {
            let servers = section[0].iter();
            let _ = write!(text, "{}\n{:<26} {:<18}", group.title(), "scenario", "unit");
            for row in servers {
                let _ = write!(text, " {:>14} {:>15}", row.server, "(min-max)");
            }
            let _ = writeln!(text, " {:>8} {:>8}", "ratio", "target");
            for rows in section {
                terminal_row(&mut text, rows);
            }
            text.push('\n');
        }
        text
    }

    pub fn markdown(&self) -> String {
        let mut text = String::new();
        for (group, section) in self.sections() {
            let _ = writeln!(text, "**{}**\n", group.title());
            text += "| scenario | unit |";
            for row in section[0] {
                let _ = write!(text, " {} |", row.server);
            }
            text += " ratio | target |\n|---|---|";
            text += &"---|".repeat(section[0].len() + 2);
            text.push('\n');
            for rows in &section {
                let _ = write!(text, "| {} | {} |", rows[0].about, rows[0].unit);
                for row in *rows {
                    let _ = write!(text, " {} |", short(row.figure().median));
                }
                let _ = writeln!(text, " {} | {} |", ratio(rows), target(&rows[0]));
            }
            text.push('\n');
            if group == Group::Latency {
                latencies(&mut text, &section);
            }
        }
        let _ = writeln!(text, "{}", self.provenance());
        text
    }

    /// Machine, versions and command.
    pub fn provenance(&self) -> String {
        let mut text = format!("{}. Medians", self.machine);
        for (name, version) in &self.servers {
            let _ = write!(text, "; {name}: {version}");
        }
        let _ = write!(text, ". `{}`", self.command);
        text
    }
}

/// All percentiles of the rows of a section.
fn latencies(text: &mut String, section: &[&Vec<Row>]) {
    *text += "| scenario | server | p50 | p99 | p99.9 | max |\n|---|---|---|---|---|---|\n";
    for row in section.iter().copied().flatten() {
        let _ = write!(text, "| {} | {} |", row.about, row.server);
        for (_, value) in percentiles(row) {
            let _ = write!(text, " {} |", value.map_or("-".into(), short));
        }
        text.push('\n');
    }
    text.push('\n');
}

fn percentiles(row: &Row) -> [(&'static str, Option<f64>); 4] {
    [
        ("p50", row.latency(|l| l.p50)),
        ("p99", row.latency(|l| l.p99)),
        ("p99.9", row.latency(|l| l.p999)),
        ("max", row.latency(|l| l.max)),
    ]
}

fn terminal_row(text: &mut String, rows: &[Row]) {
    let _ = write!(text, "{:<26} {:<18}", rows[0].scenario, rows[0].unit);
    for row in rows {
        let Spread { min, median, max } = row.figure();
        let _ = write!(
            text,
            " {:>14} {:>15}",
            short(median),
            format!("{}-{}", short(min), short(max))
        );
    }
    let _ = writeln!(text, " {:>8} {:>8}", ratio(rows), target(&rows[0]));
    for row in rows {
        let _ = writeln!(text, "    {}: {}", row.server, details(row));
    }
}

/// What stands behind a row's figure: rates, memory, latencies.
fn details(row: &Row) -> String {
    let mut known = Vec::new();
    let rates = spread(&row.rates);
    if rates.median > 0.0 {
        let (min, max) = (rate(rates.min), rate(rates.max));
        known.push(format!("{} /s ({min}-{max})", rate(rates.median)));
    }
    if row.bytes_rate() > 0.0 {
        known.push(format!("{}B/s", rate(row.bytes_rate())));
    }
    known.push(format!("peak {}B", rate(row.peak_memory as f64)));
    let measured = percentiles(row)
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name} {} us", short(value?))));
    known.extend(measured);
    known.join(", ")
}

/// Three digits or so.
pub fn short(value: f64) -> String {
    match value {
        v if v.is_nan() => "-".into(),
        v if v.abs() < 10.0 => format!("{v:.2}"),
        v if v.abs() < 100.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

fn target(row: &Row) -> String {
    row.target.map_or("-".into(), |target| target.to_string())
}

pub fn rate(rate: f64) -> String {
    match rate {
        r if r.is_nan() || r <= 0.0 => "-".into(),
        r if r >= 1e9 => format!("{:.2}G", r / 1e9),
        r if r >= 1e6 => format!("{:.2}M", r / 1e6),
        r if r >= 1e3 => format!("{:.1}k", r / 1e3),
        r => format!("{r:.0}"),
    }
}

/// How many times less the first server needs than the second: the median over the rounds.
pub fn ratio(rows: &[Row]) -> String {
    let [first, second, ..] = rows else {
        return "-".into();
    };
    match spread(&ratios(&first.figures, &second.figures)).median {
        median if median.is_finite() => format!("{median:.1}x"),
        _ => "-".into(),
    }
}

/// Whether one more round would hardly move what the rows say: the ratios of the others to the first, or the figures of the only one.
pub fn is_settled(rows: &[Row]) -> bool {
    let enough = |values: &[f64]| uncertainty(values).is_some_and(|width| width <= SETTLED);
    match rows {
        [] => true,
        [only] => enough(&only.figures),
        [first, others @ ..] => others
            .iter()
            .all(|other| enough(&ratios(&first.figures, &other.figures))),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Two servers, every scenario, made-up figures.
    pub fn report() -> Report {
        let mut report = Report {
            machine: "m".into(),
            command: "c".into(),
            servers: vec![("a".into(), "1".into()), ("b".into(), "2".into())],
            rows: vec![],
        };
        for scenario in crate::scenarios::all() {
            let rows = [("a", 10.0), ("b", 40.0)].map(|(server, figure)| {
                let mut row = Row::new(&scenario, server);
                let latency = Latency {
                    p50: figure,
                    p99: figure,
                    p999: figure,
                    max: figure,
                    curve: vec![(0.0, 1.0), (0.5, figure), (0.99, 3.0 * figure)],
                };
                let outcome = Outcome {
                    figure,
                    rate: 2e6,
                    bytes_rate: 3e7,
                    latency: Some(latency),
                };
                row.add(outcome, 1);
                row
            });
            report.add(rows.into());
        }
        report
    }

    #[test]
    fn rounds_that_differ_are_not_settled() {
        let with = |servers: &[&[f64]]| {
            let row = |figures: &&[f64]| {
                let mut row = Row::new(&crate::scenarios::all()[0], "a");
                row.figures = figures.to_vec();
                row
            };
            is_settled(&servers.iter().map(row).collect::<Vec<_>>())
        };
        let (near, far) = (
            [100.0, 107.0, 101.0, 110.0, 96.0],
            [100.0, 107.0, 101.0, 112.0, 96.0],
        );
        assert!(with(&[&near]) && !with(&[&far]) && !with(&[&near[1..]]));
        // All were slower in the second round.
        let (first, slow) = (
            [100.0, 300.0, 101.0, 99.0, 100.0],
            [300.0, 900.0, 301.0, 303.0, 298.0],
        );
        assert!(with(&[&first, &slow]));
        assert!(!with(&[&first, &slow, &[100.0; 5]]));
        assert!(!with(&[&[f64::NAN; 5], &slow]) && with(&[]));
    }

    #[test]
    fn tables_show_medians_and_ratios() {
        let report = report();
        assert!(report.table().contains("4.0x") && report.table().contains("2.00M"));
        assert!(
            report.markdown().contains("| 10.0 | 40.0 | 4.0x | 28 |"),
            "{}",
            report.markdown()
        );
    }
}
