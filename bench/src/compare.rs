//! Two reports of the same comparison side by side: how far their ratios are apart.

use crate::report::{estimate, short};
use crate::scenarios::is_compared;
use crate::stats::Estimate;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// What is read of a report's JSON.
#[derive(Deserialize)]
struct Run {
    rows: Vec<Vec<Measured>>,
}

#[derive(Deserialize)]
struct Measured {
    scenario: String,
    #[serde(default)]
    unit: String,
    server: String,
    /// None: not a number.
    figures: Vec<Option<f64>>,
}

impl Measured {
    fn figures(&self) -> Vec<f64> {
        let figures = self.figures.iter();
        figures.map(|figure| figure.unwrap_or(f64::NAN)).collect()
    }
}

/// Which ratio.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    scenario: String,
    /// The server the first one is compared with: itself, where the figure is such a ratio.
    server: String,
    /// What is measured: reports of different units do not speak of the same.
    unit: String,
}

impl Run {
    fn read(path: &str) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
        serde_json::from_str(&text)
            .map_err(|error| format!("{path}: no report of `midge-bench run --json`: {error}"))
    }

    /// Also those of the first server to itself.
    fn ratios(&self) -> BTreeMap<Key, Estimate> {
        let mut ratios = BTreeMap::new();
        for rows in &self.rows {
            let Some((first, others)) = rows.split_first() else {
                continue;
            };
            let mut insert = |server: &str, estimate: Estimate| {
                let key = Key {
                    scenario: first.scenario.clone(),
                    server: server.into(),
                    unit: first.unit.clone(),
                };
                ratios.insert(key, estimate);
            };
            if !is_compared(&first.unit) {
                insert(&first.server, Estimate::of(&first.figures()));
                continue;
            }
            for other in others {
                let (figures, others) = (first.figures(), other.figures());
                insert(&other.server, estimate(&first.unit, &figures, &others));
            }
        }
        ratios
    }
}

/// Reads two reports; the table of their ratios, and whether all of them agree within so many percent.
pub fn compare(first: &str, second: &str, within: f64) -> Result<(String, bool), String> {
    let (first, second) = (Run::read(first)?.ratios(), Run::read(second)?.ratios());
    if !first.keys().any(|key| is_compared(&key.unit)) {
        return Err("the first report has no ratios between servers: they take two, and figures that are no ratios themselves".into());
    }
    Ok(table(&first, &second, within))
}

fn table(
    first: &BTreeMap<Key, Estimate>,
    second: &BTreeMap<Key, Estimate>,
    within: f64,
) -> (String, bool) {
    let mut text = format!(
        "{:<35} {:<22} {:>8} {:>8} {:>7} {:>11}\n",
        "scenario", "server", "first", "second", "apart", "interval"
    );
    let (mut far, mut missing) = (0, 0);
    for (key, one) in first {
        let name = format!("{:<35} {:<22}", key.scenario, key.server);
        let Some(other) = second.get(key) else {
            missing += 1;
            let _ = writeln!(text, "{name} missing in the second report");
            continue;
        };
        let (a, b) = (one.value, other.value);
        // The same whichever of the two is the larger one.
        let apart = ((a / b).max(b / a) - 1.0) * 100.0;
        let both = one.width.zip(other.width);
        let uncertainty = both.map(|(one, other)| one.max(other));
        let note = match apart <= within {
            true => "",
            // What is not a number is not near anything.
            false if apart.is_nan() => "  <- not measured",
            false => "  <- too far",
        };
        far += usize::from(!note.is_empty());
        let _ = writeln!(
            text,
            "{name} {:>8} {:>8} {:>6}% {:>10}%{note}",
            short(a),
            short(b),
            short(apart),
            uncertainty.map_or("-".into(), |width| short(width * 100.0)),
        );
    }
    for key in second.keys().filter(|key| !first.contains_key(key)) {
        missing += 1;
        let _ = writeln!(
            text,
            "{:<35} {:<22} missing in the first report",
            key.scenario, key.server
        );
    }
    let _ = writeln!(
        text,
        "{} ratios, {far} of them more than {within} % apart, {missing} in one report only",
        first.len()
    );
    (text, far + missing == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(folder: &tempfile::TempDir, name: &str, figures: [&str; 2]) -> String {
        let path = folder.path().join(name);
        let row = |server: &str, figures: &str| {
            format!(
                r#"{{"scenario": "publish", "server": "{server}", "figures": {figures}, "more": 1}}"#
            )
        };
        let (a, b) = (row("a", figures[0]), row("b", figures[1]));
        std::fs::write(&path, format!(r#"{{"rows": [[{a}, {b}]]}}"#)).unwrap();
        path.display().to_string()
    }

    #[test]
    fn ratios_are_compared() {
        let folder = tempfile::tempdir().unwrap();
        let first = written(&folder, "1", ["[10, 11, 90, null]", "[100, 11, 9000, 5]"]);
        let near = written(&folder, "2", ["[20.0]", "[200]"]);
        let far = written(&folder, "3", ["[10]", "[120]"]);
        assert!(compare(&first, &near, 1.0).unwrap().1);
        let (table, agree) = compare(&first, &far, 15.0).unwrap();
        assert!(
            !agree && table.contains("20.0%") && table.contains("<- too far"),
            "{table}"
        );
        assert!(compare(&far, &first, 21.0).unwrap().1);
    }

    #[test]
    fn what_was_not_measured_agrees_with_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let whole = written(&folder, "1", ["[10]", "[100]"]);
        let without = written(&folder, "2", ["[null]", "[100]"]);
        let (table, agree) = compare(&whole, &without, 1000.0).unwrap();
        assert!(!agree && table.contains("<- not measured"), "{table}");
        let empty = folder.path().join("3").display().to_string();
        std::fs::write(&empty, r#"{"rows": []}"#).unwrap();
        let (table, agree) = compare(&whole, &empty, 15.0).unwrap();
        assert!(
            !agree && table.contains("missing in the second report") && !table.contains("too far"),
            "{table}"
        );
        assert!(
            table.contains("0 of them more than 15 % apart, 1 in one report only"),
            "{table}"
        );
        assert!(compare(&empty, &whole, 15.0).is_err());
        assert!(compare("/no/such/report", &whole, 15.0).is_err());
    }
}
