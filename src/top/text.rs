//! A snapshot as text or as delimited values, laid out as nats-top does, for scripts that read it.

use super::json::{Connection, Connz, Varz};
use super::rates::Rates;
use super::units::{bytes, count};
use std::fmt::Write;

const HOST_WIDTH_MIN: usize = 15;
const COLUMNS: [&str; 10] = [
    "SUBS",
    "PENDING",
    "MSGS_TO",
    "MSGS_FROM",
    "BYTES_TO",
    "BYTES_FROM",
    "LANG",
    "VERSION",
    "UPTIME",
    "LAST_ACTIVITY",
];
const WIDTHS: [usize; 10] = [6, 10, 10, 10, 10, 10, 7, 7, 7, 40];

pub struct Snapshot<'a> {
    pub varz: &'a Varz,
    pub connz: &'a Connz,
    pub rates: Rates,
    pub error: &'a str,
    pub raw: bool,
    pub subscriptions: bool,
    /// The name of an address, where names are wanted and known.
    pub name_of: &'a dyn Fn(&str) -> Option<String>,
}

impl Snapshot<'_> {
    /// The grid for people.
    pub fn grid(&self) -> String {
        let varz = self.varz;
        let id = text(&varz.server_id);
        let name = match text(&varz.server_name) {
            name if name == id => String::new(),
            name => name,
        };
        let mut out = format!(
            "NATS server version {} (uptime: {}) {}\nServer: {name}\n  ID:   {id}\n",
            text(&varz.version),
            text(&varz.uptime),
            shown(self.error)
        );
        let _ = writeln!(
            out,
            "  Load: CPU:  {:.1}%  Memory: {}  Slow Consumers: {}",
            varz.cpu.unwrap_or(0.0),
            bytes(false, varz.mem.unwrap_or(0)),
            varz.slow_consumers.unwrap_or(0)
        );
        for (direction, msgs, size, rate, size_rate) in self.flows() {
            let label = format!("{direction}:");
            let _ = writeln!(
                out,
                "  {label:<5} Msgs: {msgs}  Bytes: {size}  Msgs/Sec: {rate:.1}  Bytes/Sec: {size_rate}"
            );
        }
        let polled = self.connz.num_connections.unwrap_or(0);
        let _ = write!(out, "\nConnections Polled: {polled}\n");

        let list = self.list();
        let hosts: Vec<String> = list
            .iter()
            .map(|connection| self.host(connection))
            .collect();
        let names: Vec<String> = list
            .iter()
            .map(|connection| text(&connection.name))
            .collect();
        let host_width = grown(HOST_WIDTH_MIN, hosts.iter().map(String::len));
        let name_width = grown(0, names.iter().map(String::len));
        let mut line =
            |host: &str, cid: &str, name: &str, values: &[String], subs: Option<&str>| {
                let _ = write!(out, "  {host:<host_width$}  {cid:<6} ");
                if name_width > 0 {
                    let _ = write!(out, "{name:<width$} ", width = name_width.max(4));
                }
                for (at, (value, width)) in values.iter().zip(WIDTHS).enumerate() {
                    let gap = if at == 0 { "" } else { "  " };
                    let _ = write!(out, "{gap}{value:<width$}");
                }
                out.push_str(subs.unwrap_or_default());
                out.push('\n');
            };
        let titles = COLUMNS.map(str::to_owned);
        let title = format!("{:>13}", "SUBSCRIPTIONS");
        let titled = self.subscriptions.then_some(title.as_str());
        line("HOST", "CID", "NAME", &titles, titled);
        for ((connection, host), name) in list.iter().zip(&hosts).zip(&names) {
            let cid = connection.cid.unwrap_or(0).to_string();
            let subjects = self.subjects(connection, ", ");
            line(
                host,
                &cid,
                name,
                &self.values(connection),
                self.subscriptions.then_some(subjects.as_str()),
            );
        }
        out
    }

    /// The same separated by `delimiter`, for spreadsheets.
    pub fn delimited(&self, delimiter: &str) -> String {
        let varz = self.varz;
        let mut lines = vec![
            vec![
                "NATS server version".into(),
                text(&varz.version),
                format!("(uptime: {})", text(&varz.uptime)),
                shown(self.error),
            ],
            vec!["Server:".to_owned()],
            vec![
                "Load:".into(),
                "CPU:".into(),
                format!("{:.1}%", varz.cpu.unwrap_or(0.0)),
                "Memory:".into(),
                bytes(false, varz.mem.unwrap_or(0)),
                "Slow Consumers:".into(),
                varz.slow_consumers.unwrap_or(0).to_string(),
            ],
        ];
        for (direction, msgs, size, rate, size_rate) in self.flows() {
            lines.push(vec![
                format!("{direction}:"),
                "Msgs:".into(),
                msgs,
                "Bytes:".into(),
                size,
                "Msgs/Sec:".into(),
                format!("{rate:.1}"),
                "Bytes/Sec:".into(),
                size_rate,
            ]);
        }
        lines.push(vec![String::new()]);
        lines.push(vec![
            "Connections Polled:".into(),
            self.connz.num_connections.unwrap_or(0).to_string(),
        ]);
        let mut titles: Vec<String> = ["HOST", "CID", "NAME"].map(str::to_owned).into();
        titles.extend(COLUMNS.map(str::to_owned));
        if self.subscriptions {
            titles.push("SUBSCRIPTIONS".into());
        }
        lines.push(titles);
        for connection in self.list() {
            let mut line = vec![
                self.host(connection),
                connection.cid.unwrap_or(0).to_string(),
                text(&connection.name),
            ];
            line.extend(self.values(connection));
            if self.subscriptions {
                // Blanks, since a comma may well be the delimiter.
                line.push(self.subjects(connection, "  "));
            }
            lines.push(line);
        }
        lines
            .iter()
            .map(|line| line.join(delimiter) + "\n")
            .collect()
    }

    fn list(&self) -> &[Connection] {
        self.connz.connections.as_deref().unwrap_or_default()
    }

    /// Direction, messages, bytes, and both per second.
    fn flows(&self) -> [(&'static str, String, String, f64, String); 2] {
        let (varz, rates, raw) = (self.varz, self.rates, self.raw);
        let flow = |direction, msgs: Option<u64>, size: Option<u64>, rate, size_rate: f64| {
            (
                direction,
                count(raw, msgs.unwrap_or(0)),
                bytes(raw, size.unwrap_or(0)),
                rate,
                bytes(raw, size_rate as u64),
            )
        };
        [
            flow(
                "In",
                varz.in_msgs,
                varz.in_bytes,
                rates.in_msgs,
                rates.in_bytes,
            ),
            flow(
                "Out",
                varz.out_msgs,
                varz.out_bytes,
                rates.out_msgs,
                rates.out_bytes,
            ),
        ]
    }

    fn host(&self, connection: &Connection) -> String {
        match connection.ip.as_deref().and_then(self.name_of) {
            Some(name) => shown(&name),
            None => {
                let (ip, port) = (text(&connection.ip), connection.port.unwrap_or(0));
                format!("{ip}:{port}")
            }
        }
    }

    fn values(&self, connection: &Connection) -> [String; 10] {
        let raw = self.raw;
        [
            connection.subscriptions.unwrap_or(0).to_string(),
            count(raw, connection.pending_bytes.unwrap_or(0)),
            count(raw, connection.out_msgs.unwrap_or(0)),
            count(raw, connection.in_msgs.unwrap_or(0)),
            bytes(raw, connection.out_bytes.unwrap_or(0)),
            bytes(raw, connection.in_bytes.unwrap_or(0)),
            text(&connection.lang),
            text(&connection.version),
            text(&connection.uptime),
            go_time(&text(&connection.last_activity)),
        ]
    }

    fn subjects(&self, connection: &Connection, between: &str) -> String {
        let list = connection.subscriptions_list.iter().flatten();
        let subjects: Vec<String> = list.map(|subject| shown(subject)).collect();
        subjects.join(between)
    }
}

/// What others chose to be called must neither move the cursor nor begin a line.
pub fn harmless(letter: char) -> char {
    if letter.is_control() { '?' } else { letter }
}

fn shown(text: &str) -> String {
    text.chars().map(harmless).collect()
}

fn text(value: &Option<String>) -> String {
    shown(value.as_deref().unwrap_or(""))
}

/// nats-top's width of a column: two more than what does not fit, each time something does not.
fn grown(least: usize, lengths: impl Iterator<Item = usize>) -> usize {
    lengths.fold(least, |width, length| match length > width {
        true => length + 2,
        false => width,
    })
}

/// A time as Go prints it: `2026-11-24 00:27:02.43240366 +0000 UTC`. A zone has no name here.
pub fn go_time(rfc3339: &str) -> String {
    let Ok(time) = chrono::DateTime::parse_from_rfc3339(rfc3339) else {
        return rfc3339.into();
    };
    let nanos = format!("{:09}", time.timestamp_subsec_nanos());
    let nanos = nanos.trim_end_matches('0');
    let dot = if nanos.is_empty() { "" } else { "." };
    let offset = time.format("%z").to_string();
    let zone = match rfc3339.ends_with('Z') {
        true => "UTC",
        false => offset.as_str(),
    };
    format!(
        "{}{dot}{nanos} {offset} {zone}",
        time.format("%Y-%m-%d %H:%M:%S")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What nats-top itself writes (its newest commit, 69634b1) when it is given the same documents.
    #[test]
    fn layouts_are_those_of_nats_top() {
        let data = |name: &str| {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/top");
            std::fs::read_to_string(format!("{folder}/{name}")).unwrap()
        };
        for server in ["gnatsd", "nats-server"] {
            let varz = data(&format!("{server}-varz-2.json"));
            let connz = data(&format!("{server}-connz-2.json"));
            let mut snapshot = Snapshot {
                varz: &serde_json::from_str(&varz).unwrap(),
                connz: &serde_json::from_str(&connz).unwrap(),
                rates: Rates::default(),
                error: "",
                raw: false,
                subscriptions: false,
                name_of: &|_| None,
            };
            assert_eq!(snapshot.grid(), data(&format!("{server}.txt")));
            snapshot.subscriptions = true;
            assert_eq!(snapshot.delimited(";"), data(&format!("{server}.csv")));
            snapshot.raw = true;
            let expect = data(&format!("{server}-subscriptions.txt"));
            assert_eq!(snapshot.grid(), expect);
        }
    }

    #[test]
    fn names_of_others_do_nothing_to_the_terminal() {
        let connection = serde_json::json!({
            "ip": "a\u{1b}[2J",
            "name": "b\u{9b}2J\r\n",
            "lang": "c\n",
            "version": "d\u{7}",
            "subscriptions_list": ["e\u{1b}]0;x\u{7}"],
        });
        let connz = serde_json::json!({ "connections": [connection] });
        let varz = serde_json::json!({ "server_name": "f\u{1b}c", "version": "1\n2" });
        let named = |_: &str| Some("h\u{1b}".to_owned());
        let mut snapshot = Snapshot {
            varz: &serde_json::from_value(varz).unwrap(),
            connz: &serde_json::from_value(connz).unwrap(),
            rates: Rates::default(),
            error: "g\u{1b}",
            raw: false,
            subscriptions: true,
            name_of: &|_| None,
        };
        let harmful = |c: char| c.is_control() && c != '\n' && c != '\t';
        let (grid, delimited) = (snapshot.grid(), snapshot.delimited("\t"));
        for text in [&grid, &delimited] {
            assert!(!text.contains(harmful), "{text:?}");
            assert!(text.contains("b?2J??"), "{text:?}");
            assert!(text.contains("e?]0;x?"), "{text:?}");
        }
        // The head, and a line for the titles and one for the connection.
        assert_eq!(grid.lines().count(), 10, "{grid}");
        assert_eq!(delimited.lines().count(), 9, "{delimited}");
        snapshot.name_of = &named;
        assert!(snapshot.grid().contains("h?"));
    }

    #[test]
    fn times_as_go_prints_them() {
        for (time, expect) in [
            (
                "2026-11-24T00:27:02.43240366Z",
                "2026-11-24 00:27:02.43240366 +0000 UTC",
            ),
            ("2026-11-24T00:27:02Z", "2026-11-24 00:27:02 +0000 UTC"),
            (
                "2016-02-09T00:13:24.75-08:00",
                "2016-02-09 00:13:24.75 -0800 -0800",
            ),
            ("0001-01-01T00:00:00Z", "0001-01-01 00:00:00 +0000 UTC"),
            ("", ""),
        ] {
            assert_eq!(go_time(time), expect);
        }
    }

    #[test]
    fn columns_grow_as_the_originals() {
        assert_eq!(grown(15, [15, 3].into_iter()), 15);
        assert_eq!(grown(15, [16, 18, 19].into_iter()), 21);
    }
}
