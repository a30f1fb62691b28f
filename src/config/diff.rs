//! What changed between two configurations, read off the table of options: what a reload refuses,
//! and what it says of the rest.

use super::options::{Hidden, Options, PermissionOptions, TlsOptions, UserOptions};
use super::route_url::RouteUrl;
use super::streaming::StreamingOptions;
use super::table::{Reload, Row, rows};
use std::any::Any;
use std::time::Duration;

/// The value of an option, for comparison.
pub trait Setting {
    fn differs(&self, other: &dyn Setting) -> bool;
    /// For the log; None where the value is secret or too long to show.
    fn shown(&self) -> Option<String>;
    fn as_any(&self) -> &dyn Any;
}

/// How a type of value shows in the log.
pub trait Shown {
    fn shown(&self) -> Option<String>;
}

impl<T: Shown + PartialEq + 'static> Setting for T {
    fn differs(&self, other: &dyn Setting) -> bool {
        other.as_any().downcast_ref() != Some(self)
    }

    fn shown(&self) -> Option<String> {
        Shown::shown(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

macro_rules! plain {
    ($($type:ty),+) => {
        $(impl Shown for $type {
            fn shown(&self) -> Option<String> {
                Some(self.to_string())
            }
        })+
    };
}

macro_rules! untold {
    ($($type:ty),+) => {
        $(impl Shown for $type {
            fn shown(&self) -> Option<String> {
                None
            }
        })+
    };
}

plain!(bool, i32, i64, u32, u64, usize, f64, String);
untold!(
    Hidden,
    Option<Vec<UserOptions>>,
    Option<PermissionOptions>,
    Vec<RouteUrl>,
    StreamingOptions
);

impl Shown for TlsOptions {
    fn shown(&self) -> Option<String> {
        Some(if self.enabled { "enabled" } else { "disabled" }.into())
    }
}

impl Shown for Duration {
    fn shown(&self) -> Option<String> {
        Some(go_duration(*self))
    }
}

/// As Go writes durations: `2s`, `1m0s`, `300ms`.
pub fn go_duration(time: Duration) -> String {
    if time.is_zero() {
        return "0s".into();
    }
    if time < Duration::from_secs(1) {
        let nanoseconds = time.as_nanos() as f64;
        return match time.as_nanos() {
            ..1_000 => format!("{nanoseconds}ns"),
            1_000..1_000_000 => format!("{}\u{b5}s", nanoseconds / 1e3),
            _ => format!("{}ms", nanoseconds / 1e6),
        };
    }
    let seconds = time.as_secs();
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let rest = (seconds % 60) as f64 + f64::from(time.subsec_nanos()) / 1e9;
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

/// An option whose values differ.
pub struct Change<'o> {
    row: &'static Row,
    name: &'static str,
    old: &'o dyn Setting,
    new: &'o dyn Setting,
}

/// What the original looks at first, in its order; everything else comes behind, in the table's.
const ORDER: &[&str] = &[
    "client_advertise",
    "trace",
    "debug",
    "logtime",
    "max_connections",
    "users",
    "user",
    "password",
    "token",
    "ping_interval",
    "ping_max",
    "auth_timeout",
    "max_control_line",
    "max_payload",
    "cluster",
    "pid_file",
    "log_file",
    "syslog",
    "remote_syslog",
    "cluster.routes",
    "tls.timeout",
    "tls",
    "write_deadline",
];

pub fn changes<'o>(old: &'o Options, new: &'o Options) -> Vec<Change<'o>> {
    let mut found: Vec<Change<'o>> = rows()
        .flat_map(|row| row.fields.iter().map(move |field| (row, field)))
        .filter_map(|(row, field)| {
            let (old, new) = ((field.get)(old), (field.get)(new));
            let name = field.name;
            old.differs(new).then_some(Change {
                row,
                name,
                old,
                new,
            })
        })
        .collect();
    let place = |name: &str| {
        let block = name.split('.').next();
        let position = |name| ORDER.iter().position(|known| *known == name);
        position(name).or(block.and_then(position))
    };
    found.sort_by_key(|change| place(change.name()).unwrap_or(ORDER.len()));
    found
}

impl Change<'_> {
    /// Name of the field of `Options`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    fn key(&self) -> String {
        let name = match self.row.key {
            "" => self.row.flags[0],
            key => key,
        };
        name.replace('.', " ")
    }

    /// Why a reload cannot take this change over, if it cannot.
    pub fn refusal(&self) -> Option<String> {
        let name = match self.row.reload {
            Reload::Yes(_) | Reload::Quiet(_) => return None,
            Reload::No("") => self.key(),
            Reload::No(name) => name.to_owned(),
        };
        let values = match (self.old.shown(), self.new.shown()) {
            (Some(old), Some(new)) => format!(": old={old}, new={new}"),
            _ => String::new(),
        };
        Some(format!("Config reload not supported for {name}{values}"))
    }

    /// What the log says of it, in the original's words.
    pub fn line(&self) -> String {
        let what = match self.row.reload {
            Reload::Quiet(words) => return words.to_owned(),
            Reload::Yes("") | Reload::No(_) => format!("Reloaded: {}", self.key()),
            Reload::Yes(words) => words.to_owned(),
        };
        match self.new.shown() {
            Some(value) => format!("{what} = {value}"),
            None => what,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_the_options_belongs_to_one_row() {
        let mut names: Vec<&str> = rows()
            .flat_map(|row| row.fields)
            .map(|field| field.name)
            .collect();
        // Paths of the values in the shown form, in which each block is indented by four.
        let shown = format!("{:#?}", Options::default());
        let mut path: Vec<&str> = Vec::new();
        for line in shown.lines() {
            let text = line.trim_start();
            let depth = (line.len() - text.len()) / 4;
            let Some((field, value)) = text.split_once(": ").filter(|_| depth > 0) else {
                continue;
            };
            path.truncate(depth - 1);
            path.push(field);
            let block = value.ends_with("Options {");
            let exempt = path[0] == "config_file";
            let found = (1..=path.len()).any(|length| names.contains(&&*path[..length].join(".")));
            assert!(block || exempt || found, "no row has {}", path.join("."));
        }
        names.sort_unstable();
        names
            .windows(2)
            .for_each(|pair| assert_ne!(pair[0], pair[1]));
    }

    #[test]
    fn changes_in_the_words_and_order_of_the_original() {
        let old = Options::default();
        let new = Options {
            token: Hidden("s3cret".into()),
            trace: true,
            client_advertise: "x:1".into(),
            ping_interval: Duration::from_secs(60),
            user: "derek".into(),
            write_deadline: Duration::from_millis(1500),
            ..Options::default()
        };
        let lines: Vec<String> = changes(&old, &new).iter().map(Change::line).collect();
        assert_eq!(
            lines,
            [
                "Reload: client_advertise = x:1",
                "Reloaded: trace = true",
                "Reloaded: authorization username",
                "Reloaded: authorization token",
                "Reloaded: ping_interval = 1m0s",
                "Reloaded: write_deadline = 1.5s"
            ]
        );
        let moved = Options {
            port: 7,
            debug: true,
            ..Options::default()
        };
        let refusals: Vec<String> = changes(&old, &moved)
            .iter()
            .filter_map(Change::refusal)
            .collect();
        assert_eq!(
            refusals,
            ["Config reload not supported for Port: old=4222, new=7"]
        );
    }

    #[test]
    fn durations_as_go_writes_them() {
        for (milliseconds, expect) in [
            (0, "0s"),
            (300, "300ms"),
            (1500, "1.5s"),
            (60_000, "1m0s"),
            (7_265_000, "2h1m5s"),
        ] {
            assert_eq!(go_duration(Duration::from_millis(milliseconds)), expect);
        }
    }
}
