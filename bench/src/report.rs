//! Figures side by side, for the terminal, for README, and as JSON.

use crate::scenarios::{Outcome, Scenario};
use crate::server::Program;
use crate::stats::{Spread, spread};
use serde::Serialize;

#[derive(Serialize)]
pub struct Row {
    scenario: &'static str,
    about: &'static str,
    unit: &'static str,
    target: f64,
    server: String,
    figures: Vec<f64>,
    rates: Vec<f64>,
    peak_memory: u64,
}

impl Row {
    pub fn new(scenario: &Scenario, server: &str) -> Self {
        Self {
            scenario: scenario.name,
            about: scenario.about,
            unit: scenario.unit,
            target: scenario.target,
            server: server.into(),
            figures: Vec::new(),
            rates: Vec::new(),
            peak_memory: 0,
        }
    }

    pub fn add(&mut self, outcome: Outcome, peak_memory: u64) {
        self.figures.push(outcome.figure);
        self.rates.push(outcome.rate);
        self.peak_memory = self.peak_memory.max(peak_memory);
    }

    fn figure(&self) -> Spread {
        spread(&self.figures)
    }
}

#[derive(Serialize)]
pub struct Report {
    machine: String,
    command: String,
    servers: Vec<(String, String)>,
    /// By scenario, and in it by server.
    rows: Vec<Vec<Row>>,
}

impl Report {
    pub fn new(programs: &[Program]) -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let model = cpu
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        // This process is bound to one of them.
        let cores = cpu
            .lines()
            .filter(|line| line.starts_with("processor"))
            .count();
        let machine = format!(
            "{}, {cores} cores, Linux {}",
            model.map_or("unknown CPU", |(_, name)| name),
            read("/proc/sys/kernel/osrelease").trim()
        );
        let command: Vec<String> = std::env::args()
            .skip(1)
            .map(|a| a.rsplit('/').next().unwrap_or("").to_owned())
            .collect();
        Self {
            machine,
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

    pub fn table(&self) -> String {
        let mut text = format!("{:<22} {:<18}", "scenario", "unit");
        for (name, _) in &self.servers {
            text += &format!(" {name:>14} {:>15} {:>11}", "(min-max)", "per second");
        }
        text += &format!(" {:>8} {:>8}\n", "ratio", "target");
        for rows in &self.rows {
            text += &format!("{:<22} {:<18}", rows[0].scenario, rows[0].unit);
            for row in rows {
                let Spread { min, median, max } = row.figure();
                text += &format!(
                    " {median:>14.1} {:>15} {:>11}",
                    format!("{min:.1}-{max:.1}"),
                    rate(spread(&row.rates).median)
                );
            }
            text += &format!(" {:>8} {:>8}\n", ratio(rows), rows[0].target);
        }
        text
    }

    pub fn markdown(&self) -> String {
        let mut text = String::from("| scenario | unit |");
        for (name, _) in &self.servers {
            text += &format!(" {name} |");
        }
        text += " ratio | target |\n|---|---|";
        text += &"---|".repeat(self.servers.len() + 2);
        text.push('\n');
        for rows in &self.rows {
            text += &format!("| {} | {} |", rows[0].about, rows[0].unit);
            for row in rows {
                text += &format!(" {:.0} |", row.figure().median);
            }
            text += &format!(" {} | {} |\n", ratio(rows), rows[0].target);
        }
        text += &format!("\n{}. Medians", self.machine);
        for (name, version) in &self.servers {
            text += &format!("; {name}: {version}");
        }
        text += &format!(". `{}`\n", self.command);
        text
    }
}

fn rate(rate: f64) -> String {
    match rate {
        r if r <= 0.0 => "-".into(),
        r if r >= 1e6 => format!("{:.2}M", r / 1e6),
        r if r >= 1e3 => format!("{:.1}k", r / 1e3),
        r => format!("{r:.0}"),
    }
}

/// How many times less the first server needs than the second.
fn ratio(rows: &[Row]) -> String {
    match rows {
        [first, second, ..] => format!("{:.1}x", second.figure().median / first.figure().median),
        _ => "-".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenarios::SCENARIOS;

    #[test]
    fn tables_show_medians_and_ratios() {
        let mut report = Report {
            machine: "m".into(),
            command: "c".into(),
            servers: vec![("a".into(), "1".into()), ("b".into(), "2".into())],
            rows: vec![],
        };
        let rows = [10.0, 40.0].map(|figure| {
            let mut row = Row::new(&SCENARIOS[0], "x");
            row.add(Outcome { figure, rate: 2e6 }, 1);
            row
        });
        report.add(rows.into());
        assert!(report.table().contains("4.0x") && report.table().contains("2.00M"));
        assert!(
            report.markdown().contains("| 10 | 40 | 4.0x | 28 |"),
            "{}",
            report.markdown()
        );
    }
}
