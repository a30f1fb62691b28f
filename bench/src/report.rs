//! Figures side by side, for the terminal, for README, and as JSON.

use crate::machine::{self, FOREIGN_MAX};
use crate::scenarios::{FDATASYNCS, Group, Outcome, Scenario, is_compared};
use crate::server::{Program, without_login};
use crate::stats::{Estimate, Latency, Spread, spread};
use serde::Serialize;
use std::fmt::Write;

/// What is so certain is certain enough: simulated (`two_reports_agree`), two reports agree within the 15 % we promise on all of 1000 ratios that are spread by 10 % from
/// round to round, or that something beside makes dearer by 30 %, and on all but 10 of those spread by 17 %.
pub const SETTLED: f64 = 0.15;

/// One scenario on one server.
#[derive(Clone, Serialize)]
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
    /// Part of each run's time that something else took from the server's CPU.
    pub foreign: Vec<f64>,
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
            foreign: Vec::new(),
            peak_memory: 0,
        }
    }

    /// `peak_memory`: where the outcome says nothing of it.
    pub fn add(&mut self, outcome: Outcome, peak_memory: u64, foreign: f64) {
        let peak_memory = outcome.peak_memory.unwrap_or(peak_memory);
        self.foreign.push(foreign);
        self.figures.push(outcome.figure);
        self.rates.push(outcome.rate);
        self.bytes_rates.push(outcome.bytes_rate);
        self.latencies.extend(outcome.latency);
        self.peak_memory = self.peak_memory.max(peak_memory);
    }

    /// A run that has no figure. It has its place all the same: rounds are compared by theirs.
    pub fn fail(&mut self) {
        for values in [
            &mut self.figures,
            &mut self.rates,
            &mut self.bytes_rates,
            &mut self.foreign,
        ] {
            values.push(f64::NAN);
        }
    }

    /// What tells whether there are enough rounds: rates, where no figure is a number, as of a server whose CPU time is not known.
    fn compared(&self) -> &[f64] {
        match self.figures.iter().all(|figure| figure.is_nan()) {
            true => &self.rates,
            false => &self.figures,
        }
    }

    pub fn rounds(&self) -> usize {
        self.figures.len()
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

    /// The longest of all runs, which a median over them would hide; None: not measured.
    pub fn latency_max(&self) -> Option<f64> {
        self.latencies
            .iter()
            .map(|latency| latency.max)
            .max_by(f64::total_cmp)
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
    /// It did not come to its end.
    pub interrupted: bool,
    /// Names and versions.
    pub servers: Vec<(String, String)>,
    /// By scenario, and in it by server.
    pub rows: Vec<Vec<Row>>,
}

impl Report {
    pub fn new(programs: &[&Program], one_core: bool) -> Self {
        Self {
            machine: machine::description(one_core),
            command: format!("midge-bench {}", shortened(std::env::args().skip(1))),
            interrupted: false,
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
        serde_json::to_string(self).expect("plain data always serializes")
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
            let servers = section[0].iter().enumerate();
            let _ = write!(text, "{}\n{:<26} {:<18}", group.title(), "scenario", "unit");
            for (index, row) in servers {
                let _ = write!(text, " {:>14} {:>15}", row.server, "(min-max)");
                if index > 0 {
                    let _ = write!(text, " {:>16}", "ratio");
                }
            }
            let _ = writeln!(text, " {:>6} {:>8}", "rounds", "target");
            for rows in section {
                terminal_row(&mut text, rows);
            }
            text.push('\n');
        }
        text
    }

    /// The scenarios that shared the server's CPU with something else; None: none did.
    pub fn disturbed(&self) -> Option<String> {
        let parts = self.rows.iter().filter_map(|rows| {
            let runs: Vec<f64> = rows.iter().flat_map(|row| &row.foreign).copied().collect();
            let part = spread(&runs).median;
            (part > FOREIGN_MAX).then(|| format!("{} ({:.0} %)", rows[0].scenario, 100.0 * part))
        });
        let names: Vec<String> = parts.collect();
        (!names.is_empty()).then(|| {
            format!(
                "Something else took more than {:.0} % of the time of the server's CPU: {}.",
                100.0 * FOREIGN_MAX,
                names.join(", ")
            )
        })
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
                let ratio = ratio(rows, 1).map_or("-".into(), |ratio| ratio.to_string());
                let _ = writeln!(text, " {ratio} | {} |", target(&rows[0]));
            }
            text.push('\n');
            if section.iter().any(|rows| is_unsure(rows)) {
                let _ = writeln!(
                    text,
                    "`?`: the rounds say too little of this ratio, or differ too much; the interval it lies in is wider than {:.0} % of it.\n",
                    100.0 * SETTLED
                );
            }
            if group == Group::Latency {
                latencies(&mut text, &section);
            }
        }
        let _ = writeln!(text, "{}", self.provenance());
        text
    }

    /// Machine, versions and command.
    pub fn provenance(&self) -> String {
        let interrupted = if self.interrupted {
            "Interrupted. "
        } else {
            ""
        };
        let mut text = format!(
            "{interrupted}{}. Figures: medians; ratios: of the better half of each server's rounds, so not of the medians",
            self.machine
        );
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

/// Medians over the runs, and the longest of all, in microseconds; None: not measured.
pub fn percentiles(row: &Row) -> [(&'static str, Option<f64>); 4] {
    [
        ("p50", row.latency(|l| l.p50)),
        ("p99", row.latency(|l| l.p99)),
        ("p99.9", row.latency(|l| l.p999)),
        ("max", row.latency_max()),
    ]
}

fn terminal_row(text: &mut String, rows: &[Row]) {
    let _ = write!(text, "{:<26} {:<18}", rows[0].scenario, rows[0].unit);
    for (index, row) in rows.iter().enumerate() {
        let Spread { min, median, max } = row.figure();
        let _ = write!(
            text,
            " {:>14} {:>15}",
            short(median),
            format!("{}-{}", short(min), short(max))
        );
        if index > 0 {
            let ratio = ratio(rows, index).map_or("-".into(), |ratio| ratio.with_uncertainty());
            let _ = write!(text, " {ratio:>16}");
        }
    }
    let _ = writeln!(text, " {:>6} {:>8}", rows[0].rounds(), target(&rows[0]));
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

/// How many times less the first server needs than another.
pub struct Ratio(pub Estimate);

impl Ratio {
    fn is_sure(&self) -> bool {
        self.0.width.is_some_and(|width| width <= SETTLED)
    }

    /// Half of the interval.
    pub fn uncertainty(&self) -> Option<String> {
        let percent = 50.0 * self.0.width?;
        Some(match percent < 10.0 {
            true => format!("±{percent:.1} %"),
            false => format!("±{percent:.0} %"),
        })
    }

    pub fn with_uncertainty(&self) -> String {
        let mut words = vec![format!("{:.1}x", self.0.value)];
        words.extend(self.uncertainty());
        if !self.is_sure() {
            words.push("?".into());
        }
        words.join(" ")
    }
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let doubt = if self.is_sure() { "" } else { " ?" };
        write!(f, "{:.1}x{doubt}", self.0.value)
    }
}

/// How many times more another server needs than the first, in this unit.
pub fn estimate(unit: &str, first: &[f64], other: &[f64]) -> Estimate {
    match unit {
        // A disk that was busy when it was measured by itself makes a round better: the best ones are no better than others.
        FDATASYNCS => {
            let rounds = first.iter().zip(other);
            let ratios: Vec<f64> = rounds.map(|(first, other)| other / first).collect();
            Estimate::of(&ratios)
        }
        _ => Estimate::between(first, other),
    }
}

/// Of the first row to another one; None: there is no such row, or no round of it, or figures are ratios themselves.
pub fn ratio(rows: &[Row], other: usize) -> Option<Ratio> {
    let (first, other) = (rows.first()?, rows.get(other)?);
    if !is_compared(first.unit) {
        return None;
    }
    let of_them = estimate(first.unit, &first.figures, &other.figures);
    of_them.value.is_finite().then_some(Ratio(of_them))
}

/// Whether the ratio to the first peer has a question mark.
fn is_unsure(rows: &[Row]) -> bool {
    ratio(rows, 1).is_some_and(|ratio| !ratio.is_sure())
}

/// Whether one more round would hardly move what the rows say: the ratios of the others to the first, or the figures of the only one.
pub fn is_settled(rows: &[Row]) -> bool {
    let enough = |estimate: Estimate| estimate.width.is_some_and(|width| width <= SETTLED);
    match rows {
        [] => true,
        [only] => enough(Estimate::of(only.compared())),
        [first, ..] if !is_compared(first.unit) => enough(Estimate::of(&first.figures)),
        [first, others @ ..] => others
            .iter()
            .all(|other| enough(estimate(first.unit, &first.figures, &other.figures))),
    }
}

/// A command as it may be typed elsewhere: files without their folders, all else as it was.
fn shortened(words: impl Iterator<Item = String>) -> String {
    let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    let program = |text: &str| match text.split_once('=') {
        Some((kept, path)) => format!("{kept}={}", name(path)),
        None => text.to_owned(),
    };
    let value = |flag: &str, value: &str| match flag {
        "--server" | "--peer" | "--streaming-peer" => program(value),
        "--json" | "--markdown" | "--html" => name(value),
        "--url" => without_login(value),
        _ => value.to_owned(),
    };
    let (mut before, mut short) = (String::new(), Vec::new());
    for word in words {
        short.push(match word.split_once('=') {
            Some((flag, text)) if flag.starts_with("--") => format!("{flag}={}", value(flag, text)),
            _ => value(&before, &word),
        });
        before = word;
    }
    short.join(" ")
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::arguments::REPEAT;
    use crate::stats::{Draw, is_worth_a_look};

    /// Two servers, every scenario, made-up figures.
    pub fn report() -> Report {
        let mut report = Report {
            machine: "m".into(),
            command: "c".into(),
            interrupted: false,
            servers: vec![("a".into(), "1".into()), ("b".into(), "2".into())],
            rows: vec![],
        };
        for scenario in crate::scenarios::each() {
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
                    peak_memory: None,
                };
                row.add(outcome, 1, 0.01);
                row
            });
            report.add(rows.into());
        }
        report
    }

    /// Of how many in a thousand pairs of reports a ratio is more than 15 % apart, where the second server is spread so much from round to round by
    /// itself, and where what the machine does beside makes a round dearer by so much on the average, for the first server by half of it.
    fn apart(spread_of_rounds: f64, beside: f64) -> usize {
        let scenario = &crate::scenarios::all()[0].scenarios[0];
        let mut draw = Draw::new();
        let mut uniform = move || (1 + draw.below(1 << 31)) as f64 / f64::from(1u32 << 31);
        let mut round = move || {
            // Twelve of them together are spread by one, nearly as a bell.
            let bell = (0..12).map(|_| uniform()).sum::<f64>() - 6.0;
            let beside = -beside * uniform().ln();
            [
                (beside / 2.0).exp(),
                (spread_of_rounds * bell + beside).exp(),
            ]
        };
        let mut reported = move || {
            let mut rows = [Row::new(scenario, "a"), Row::new(scenario, "b")];
            for done in 1..=100 {
                let figures = round();
                rows.iter_mut()
                    .zip(figures)
                    .for_each(|(row, figure)| row.figures.push(figure));
                if done >= REPEAT && is_worth_a_look(done) && is_settled(&rows) {
                    break;
                }
            }
            estimate("ms", &rows[0].figures, &rows[1].figures).value
        };
        let pairs = (0..1000).map(|_| (reported(), reported()));
        pairs.filter(|(a, b)| (a / b).max(b / a) > 1.15).count()
    }

    #[test]
    fn two_reports_agree() {
        let kinds = [
            (0.05, 0.0),
            (0.1, 0.0),
            (0.17, 0.0),
            (0.05, 0.1),
            (0.05, 0.3),
        ];
        let apart = kinds.map(|(spread, beside)| apart(spread, beside));
        println!("of 1000 pairs of reports, more than 15 % apart: {apart:?}");
        let most = [0, 2, 15, 2, 2];
        assert!(
            apart.iter().zip(most).all(|(apart, most)| *apart <= most),
            "{apart:?}"
        );
    }

    #[test]
    fn where_a_disturbed_round_may_be_better_all_of_them_count() {
        let first = [[10.0; 6], [13.0; 6]].concat();
        let other = [[30.0; 6], [90.0; 6]].concat();
        let of = |unit| estimate(unit, &first, &other).value;
        assert!((of("ms") - 3.0).abs() < 1e-9 && of(FDATASYNCS) > 4.0);
    }

    #[test]
    fn rounds_that_differ_are_not_settled() {
        let with = |servers: &[&[f64]]| {
            let row = |figures: &&[f64]| of("a", figures);
            is_settled(&servers.iter().map(row).collect::<Vec<_>>())
        };
        let (near, far) = (
            [100.0, 107.0, 101.0, 111.0, 96.0, 102.0],
            [100.0, 107.0, 101.0, 112.0, 96.0, 102.0],
        );
        assert!(with(&[&near]) && !with(&[&far]) && !with(&[&near[1..]]));
        // All were slower in the second round.
        let (first, slow) = (
            [100.0, 300.0, 101.0, 99.0, 100.0, 100.0],
            [300.0, 900.0, 301.0, 303.0, 298.0, 300.0],
        );
        assert!(with(&[&first, &slow]));
        assert!(!with(&[&first, &slow, &[100.0; 6]]));
        assert!(!with(&[&[f64::NAN; 6], &slow]) && with(&[]));
    }

    /// A row of these figures.
    fn of(server: &str, figures: &[f64]) -> Row {
        let mut row = Row::new(&crate::scenarios::all()[0].scenarios[0], server);
        row.figures = figures.to_vec();
        row
    }

    #[test]
    fn ratios_of_ratios_are_not_told() {
        let mut rows = [of("a", &[1.0; 6]), of("b", &[5.0, 1.0, 9.0, 2.0, 7.0, 3.0])];
        assert!(ratio(&rows, 1).is_some() && !is_settled(&rows));
        for row in &mut rows {
            row.unit = crate::scenarios::OF_ITS_OWN;
        }
        assert!(ratio(&rows, 1).is_none() && is_settled(&rows));
    }

    #[test]
    fn rates_are_looked_at_where_there_is_no_figure() {
        let mut row = of("a", &[f64::NAN; 6]);
        row.rates = vec![100.0, 101.0, 102.0, 103.0, 104.0, 105.0];
        assert!(is_settled(std::slice::from_ref(&row)));
        row.rates[0] = 10.0;
        assert!(!is_settled(&[row]));
    }

    #[test]
    fn tables_show_medians_and_ratios() {
        let report = report();
        assert!(report.table().contains("4.0x ?") && report.table().contains("2.00M"));
        assert!(
            report.markdown().contains("| 10.0 | 40.0 | 4.0x ? | 28 |"),
            "{}",
            report.markdown()
        );
        assert!(report.markdown().contains("ratios: of the better half"));
    }

    #[test]
    fn ratios_tell_how_sure_they_are() {
        let first = of("a", &[10.0; 6]);
        let second = of("b", &[40.0, 41.0, 39.0, 40.0, 40.0, 42.0]);
        let third = of("c", &[10.0, 20.0, 30.0, 40.0, 50.0, 60.0]);
        let rows = vec![first, second, third];
        let with = |index| ratio(&rows, index).unwrap().with_uncertainty();
        assert_eq!([with(1), with(2)], ["4.0x ±2.1 %", "3.0x ±48 % ?"]);
        assert_eq!(ratio(&rows, 1).unwrap().to_string(), "4.0x");
        assert_eq!(ratio(&rows, 2).unwrap().to_string(), "3.0x ?");
        assert!(ratio(&rows, 3).is_none());
        let mut report = report();
        report.rows = vec![rows];
        let table = report.table();
        assert!(
            table.contains("±2.1 %") && table.contains("±48 % ?"),
            "{table}"
        );
        // Of the second peer's ratio nothing is said there.
        assert!(!report.markdown().contains('?'), "{}", report.markdown());
        report.rows[0].remove(1);
        assert!(
            report.markdown().contains("\n`?`: "),
            "{}",
            report.markdown()
        );
    }

    #[test]
    fn an_interrupted_report_says_so() {
        let mut report = report();
        assert!(!report.provenance().contains("nterrupted"));
        report.interrupted = true;
        assert!(report.provenance().starts_with("Interrupted. "));
    }

    #[test]
    fn scenarios_that_were_not_alone_are_named() {
        let mut report = report();
        assert_eq!(report.disturbed(), None);
        for row in &mut report.rows[1] {
            row.foreign = vec![0.02, 0.5, 0.08, f64::NAN];
        }
        let text = report.disturbed().unwrap();
        assert!(text.contains(": 1-to-1 (8 %)."), "{text}");
    }

    #[test]
    fn a_failed_run_has_a_place_everywhere() {
        let mut row = of("a", &[]);
        row.fail();
        row.add(Outcome::default(), 1, 0.0);
        let lengths = [row.figures.len(), row.rates.len(), row.bytes_rates.len()];
        assert_eq!((lengths, row.foreign.len()), ([2; 3], 2));
    }

    #[test]
    fn a_recorded_command_is_one_that_works() {
        let short = |text: &str| shortened(text.split(' ').map(Into::into));
        assert_eq!(
            short("run --server midge=/a/b/midge --peer=x=/c/y --json /d/e.json --html=f/g.html"),
            "run --server midge=midge --peer=x=y --json e.json --html=g.html"
        );
        for secret in ["--url nats://u:p@host:1", "--url=nats://u:p@host:1"] {
            assert_eq!(short(secret), secret.replace("u:p@", ""));
        }
        for kept in [
            "run --url nats://host:4222 --scenario 1-to-1",
            "run --url=nats://host:4222",
            "run --server-args=--config=/a/b",
            "compare /a/first.json b/second.json",
        ] {
            assert_eq!(short(kept), kept);
        }
    }
}
