//! Where a long run is: one line that changes on a terminal, a line per trial anywhere else.

use std::fmt::Arguments;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

pub struct Progress {
    on_terminal: bool,
    /// Scenarios, those under way not included: trials of several take longer.
    done: usize,
    under_way: usize,
    /// Of one pass.
    total: usize,
    passes: usize,
    start: Instant,
}

impl Progress {
    pub fn new(total: usize, passes: usize) -> Self {
        Self {
            on_terminal: std::io::stderr().is_terminal(),
            done: 0,
            under_way: 0,
            total,
            passes,
            start: Instant::now(),
        }
    }

    /// So many scenarios begin.
    pub fn begin(&mut self, names: &str, scenarios: usize) {
        self.done += self.under_way;
        self.under_way = scenarios;
        if !self.on_terminal {
            print(format_args!("{}{names}\n", self.place()));
        }
    }

    /// A round of it begins.
    pub fn round(&self, what: &str) {
        if self.on_terminal {
            print(format_args!("\r{}{what}\x1b[K", self.place()));
        }
    }

    pub fn say(&self, text: &str) {
        match self.on_terminal {
            true => print(format_args!("\r{text}\x1b[K\n")),
            false => print(format_args!("{text}\n")),
        }
    }

    /// Leaves the line to what is printed next.
    pub fn clear(&self) {
        if self.on_terminal {
            print(format_args!("\r\x1b[K"));
        }
    }

    fn place(&self) -> String {
        let elapsed = self.start.elapsed();
        place(elapsed, self.done, self.total, self.passes)
    }
}

/// Where one is after so many scenarios of so many in each pass.
fn place(elapsed: Duration, done: usize, total: usize, passes: usize) -> String {
    let scenario = format!("{}/{total}", done % total + 1);
    let pass = match passes {
        1 => String::new(),
        _ => format!("pass {} of {passes}, ", done / total + 1),
    };
    let left = left(elapsed, done, total * passes);
    let left = left.map(|left| format!(", {left} left"));
    format!("[{pass}{scenario}{}] ", left.unwrap_or_default())
}

/// A terminal that is gone ends nothing: `eprint` would panic, and leave servers behind.
fn print(text: Arguments<'_>) {
    let _ = std::io::stderr().write_fmt(text);
}

/// The rest, if it is like what is done; None: not enough of it is.
fn left(elapsed: Duration, done: usize, total: usize) -> Option<String> {
    if done == 0 || elapsed < Duration::from_secs(10) {
        return None;
    }
    let left = elapsed.as_secs_f64() / done as f64 * total.saturating_sub(done) as f64;
    Some(match left < 100.0 {
        true => format!("{left:.0} s"),
        false => format!("{:.0} min", left / 60.0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_counts_from_the_first_scenario_on() {
        let at = |done, passes| place(Duration::from_secs(30), done, 10, passes);
        assert_eq!(at(0, 1), "[1/10] ");
        assert_eq!(at(6, 1), "[7/10, 20 s left] ");
        assert_eq!(at(9, 3), "[pass 1 of 3, 10/10, 70 s left] ");
        assert_eq!(at(10, 3), "[pass 2 of 3, 1/10, 60 s left] ");
    }

    #[test]
    fn the_rest_is_like_what_is_done() {
        let after = |seconds, done| left(Duration::from_secs(seconds), done, 50);
        assert_eq!(after(5, 3), None);
        assert_eq!(after(20, 0), None);
        assert_eq!(after(20, 1).as_deref(), Some("16 min"));
        assert_eq!(after(980, 49).as_deref(), Some("20 s"));
        assert_eq!(after(1000, 50).as_deref(), Some("0 s"));
    }
}
