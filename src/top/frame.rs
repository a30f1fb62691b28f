//! The text of a screen, with nats-top's columns; also the snapshots of `-o`.

use super::data::Connection;
use super::rates::{Rates, Watched};
use std::collections::HashMap;

/// What is shown of what is known.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub raw_bytes: bool,
    pub subscriptions: bool,
    /// Rates in place of totals per connection.
    pub rates: bool,
    pub filter: String,
    /// Names of addresses, where they were looked up.
    pub names: HashMap<String, String>,
}

/// 1024 per step, one decimal.
pub fn size(bytes: f64, raw: bool) -> String {
    scaled(bytes, 1024.0, &["", "K", "M", "G"], raw)
}

/// 1000 per step, one decimal.
pub fn count(number: f64) -> String {
    scaled(number, 1000.0, &["", "K", "M", "B", "T"], false)
}

fn scaled(mut value: f64, step: f64, units: &[&str], raw: bool) -> String {
    if raw || value < step {
        return format!("{value:.0}");
    }
    let mut unit = 0;
    while value >= step && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    format!("{value:.1}{}", units[unit])
}

/// The lines above the table.
pub fn header(server: &Watched, view: &View) -> Vec<String> {
    let varz = &server.now.varz;
    let error = server
        .now
        .error
        .as_deref()
        .map_or(String::new(), |e| format!(" away: {e}"));
    let mut lines = vec![format!(
        "NATS server version {} (uptime: {}){error}",
        varz.version, varz.uptime
    )];
    lines.push(
        "Server:".to_owned()
            + &match varz.server_name.as_str() {
                "" => String::new(),
                name if name == varz.server_id => String::new(),
                name => format!(" {name}"),
            },
    );
    let Rates {
        in_msgs,
        out_msgs,
        in_bytes,
        out_bytes,
    } = server.rates;
    let size = |bytes: f64| size(bytes, view.raw_bytes);
    lines.push(format!("  ID:   {}", varz.server_id));
    lines.push(format!(
        "  Load: CPU:  {:.1}%  Memory: {}  Slow Consumers: {}",
        varz.cpu,
        size(varz.mem as f64),
        varz.slow_consumers
    ));
    lines.push(format!(
        "  In:   Msgs: {}  Bytes: {}  Msgs/Sec: {in_msgs:.1}  Bytes/Sec: {}",
        count(varz.in_msgs as f64),
        size(varz.in_bytes as f64),
        size(in_bytes)
    ));
    lines.push(format!(
        "  Out:  Msgs: {}  Bytes: {}  Msgs/Sec: {out_msgs:.1}  Bytes/Sec: {}",
        count(varz.out_msgs as f64),
        size(varz.out_bytes as f64),
        size(out_bytes)
    ));
    lines
}

/// Names of the columns, and the cells of each connection shown.
pub fn table(server: &Watched, view: &View) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let connections: Vec<&Connection> = server
        .now
        .connz
        .connections
        .iter()
        .filter(|connection| matches(connection, view))
        .collect();
    let named = connections
        .iter()
        .any(|connection| !connection.name.is_empty());
    let mut heads = vec!["HOST", "CID"];
    heads.extend(named.then_some("NAME"));
    heads.extend(["SUBS", "PENDING"]);
    heads.extend(match view.rates {
        true => ["MSGS_TO/S", "MSGS_FROM/S", "BYTES_TO/S", "BYTES_FROM/S"],
        false => ["MSGS_TO", "MSGS_FROM", "BYTES_TO", "BYTES_FROM"],
    });
    heads.extend(["LANG", "VERSION", "UPTIME", "LAST_ACTIVITY"]);
    heads.extend(view.subscriptions.then_some("SUBSCRIPTIONS"));
    let rates = if view.rates {
        server.connection_rates()
    } else {
        HashMap::new()
    };
    let rows = connections.iter().map(|connection| {
        let host = view.names.get(&connection.ip).unwrap_or(&connection.ip);
        let mut cells = vec![
            format!("{host}:{}", connection.port),
            connection.cid.to_string(),
        ];
        cells.extend(named.then(|| connection.name.clone()));
        cells.push(connection.subscriptions.to_string());
        cells.push(size(connection.pending_bytes as f64, view.raw_bytes));
        let shown = match (view.rates, rates.get(&connection.cid)) {
            (true, rates) => rates.copied().unwrap_or_default(),
            (false, _) => Rates {
                out_msgs: connection.out_msgs as f64,
                in_msgs: connection.in_msgs as f64,
                out_bytes: connection.out_bytes as f64,
                in_bytes: connection.in_bytes as f64,
            },
        };
        cells.push(count(shown.out_msgs));
        cells.push(count(shown.in_msgs));
        cells.push(size(shown.out_bytes, view.raw_bytes));
        cells.push(size(shown.in_bytes, view.raw_bytes));
        cells.push(connection.lang.clone());
        cells.push(connection.version.clone());
        cells.push(connection.uptime.clone());
        cells.push(connection.last_activity.clone());
        cells.extend(
            view.subscriptions
                .then(|| connection.subscriptions_list.join(", ")),
        );
        cells
    });
    let rows = rows.collect();
    (heads, rows)
}

fn matches(connection: &Connection, view: &View) -> bool {
    let word = view.filter.to_lowercase();
    let holds = |text: &str| text.to_lowercase().contains(&word);
    word.is_empty()
        || holds(&connection.name)
        || holds(&format!("{}:{}", connection.ip, connection.port))
        || connection
            .subscriptions_list
            .iter()
            .any(|subject| holds(subject))
}

/// Columns of equal width, the first one wide enough for an address.
pub fn aligned(heads: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    const HOST_WIDTH: usize = 15;
    let widths: Vec<usize> = (0..heads.len())
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
            let least = if column == 0 { HOST_WIDTH } else { 0 };
            widest.max(heads[column].len()).max(least) + 2
        })
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<String>().trim_end().to_owned()
    };
    let mut lines = vec![line(&mut heads.iter().copied())];
    for row in rows {
        lines.push(line(&mut row.iter().map(String::as_str)));
    }
    lines
}

/// The whole screen as text.
pub fn text(server: &Watched, view: &View) -> String {
    let mut lines = header(server, view);
    lines.push(String::new());
    lines.push(format!(
        "Connections Polled: {}",
        server.now.connz.num_connections
    ));
    let (heads, rows) = table(server, view);
    lines.extend(
        aligned(&heads, &rows)
            .into_iter()
            .map(|line| format!("  {line}")),
    );
    lines.join("\n") + "\n"
}

/// The same as values parted by a delimiter, for programs.
pub fn delimited(server: &Watched, view: &View, delimiter: &str) -> String {
    let varz = &server.now.varz;
    let quoted = |cell: &str| match cell.contains(delimiter) || cell.contains(['"', '\n']) {
        true => format!("\"{}\"", cell.replace('"', "\"\"")),
        false => cell.to_owned(),
    };
    let line = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|cell| quoted(cell)).collect();
        cells.join(delimiter) + "\n"
    };
    let pairs = [
        ("NATS server version", varz.version.clone()),
        ("uptime", varz.uptime.clone()),
        ("Server", varz.server_name.clone()),
        ("ID", varz.server_id.clone()),
        ("CPU", format!("{:.1}%", varz.cpu)),
        ("Memory", size(varz.mem as f64, view.raw_bytes)),
        ("Slow Consumers", varz.slow_consumers.to_string()),
        ("In Msgs", count(varz.in_msgs as f64)),
        ("In Bytes", size(varz.in_bytes as f64, view.raw_bytes)),
        ("In Msgs/Sec", format!("{:.1}", server.rates.in_msgs)),
        ("In Bytes/Sec", size(server.rates.in_bytes, view.raw_bytes)),
        ("Out Msgs", count(varz.out_msgs as f64)),
        ("Out Bytes", size(varz.out_bytes as f64, view.raw_bytes)),
        ("Out Msgs/Sec", format!("{:.1}", server.rates.out_msgs)),
        (
            "Out Bytes/Sec",
            size(server.rates.out_bytes, view.raw_bytes),
        ),
        (
            "Connections Polled",
            server.now.connz.num_connections.to_string(),
        ),
    ];
    let mut out: String = pairs
        .map(|(name, value)| line(&[name.to_owned(), value]))
        .concat();
    let (heads, rows) = table(server, view);
    out += &line(
        &heads
            .iter()
            .map(|head| (*head).to_owned())
            .collect::<Vec<_>>(),
    );
    for row in rows {
        out += &line(&row);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::data::Snapshot;

    fn recorded(folder: &str) -> Watched {
        let read = |name: &str| {
            let path = format!(
                "{}/tests/data/top/{folder}/{name}.json",
                env!("CARGO_MANIFEST_DIR")
            );
            std::fs::read_to_string(path).unwrap()
        };
        let mut watched = Watched::default();
        watched.update(Snapshot {
            address: "127.0.0.1:8222".into(),
            varz: serde_json::from_str(&read("varz")).unwrap(),
            connz: serde_json::from_str(&read("connz")).unwrap(),
            ..Snapshot::default()
        });
        watched
    }

    /// Compares with a file beside the recorded JSON; `MIDGE_REWRITE_FRAMES=1` writes it anew.
    fn compare(folder: &str, name: &str, frame: &str) {
        let path = format!(
            "{}/tests/data/top/{folder}/{name}",
            env!("CARGO_MANIFEST_DIR")
        );
        if std::env::var_os("MIDGE_REWRITE_FRAMES").is_some() {
            std::fs::write(&path, frame).unwrap();
        }
        assert_eq!(frame, std::fs::read_to_string(&path).unwrap(), "{path}");
    }

    #[test]
    fn frames_of_recorded_servers() {
        for folder in ["midge", "nats-server"] {
            let server = recorded(folder);
            let plain = View::default();
            compare(folder, "frame.txt", &text(&server, &plain));
            compare(folder, "frame.csv", &delimited(&server, &plain, ","));
            let full = View {
                raw_bytes: true,
                subscriptions: true,
                ..View::default()
            };
            compare(folder, "frame-full.txt", &text(&server, &full));
        }
    }

    #[test]
    fn filters_look_at_names_addresses_and_subjects() {
        let mut connection = Connection {
            ip: "10.0.0.1".into(),
            name: "Billing".into(),
            ..Connection::default()
        };
        connection.subscriptions_list.push("orders.>".into());
        for (word, shown) in [
            ("", true),
            ("bill", true),
            ("10.0", true),
            ("ORDERS", true),
            ("x", false),
        ] {
            let view = View {
                filter: word.into(),
                ..View::default()
            };
            assert_eq!(matches(&connection, &view), shown, "{word}");
        }
    }

    #[test]
    fn units() {
        assert_eq!(size(1023.0, false), "1023");
        assert_eq!(size(1536.0, false), "1.5K");
        assert_eq!(size(1536.0, true), "1536");
        assert_eq!(count(999.0), "999");
        assert_eq!(count(2_500_000.0), "2.5M");
        assert_eq!(count(2.5e9), "2.5B");
    }
}
