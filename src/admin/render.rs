//! Answers as text.

use super::options::Command;
use serde_json::Value;

/// A column: its title and what stands there.
type Column = (&'static str, fn(&Value) -> String);

const CHANNELS: &[Column] = &[
    ("CHANNEL", |v| word(&v["name"])),
    ("MESSAGES", |v| word(&v["messages"])),
    ("BYTES", |v| word(&v["bytes"])),
    ("FIRST", |v| word(&v["first"])),
    ("LAST", |v| word(&v["last"])),
    ("SUBS", |v| word(&v["subscriptions"])),
    ("OFFLINE", |v| word(&v["offline"])),
    ("PENDING", |v| word(&v["pending"])),
    ("OLDEST", |v| age(&v["oldest_unacked_seconds"])),
    ("DEAD", |v| word(&v["dead_lettered"])),
];

const SUBSCRIPTIONS: &[Column] = &[
    ("NUMBER", |v| word(&v["subscription"])),
    ("CLIENT", |v| word(&v["client"])),
    ("DURABLE", durable),
    ("QUEUE", |v| word(&v["queue"])),
    ("STATE", state),
    ("LAST SENT", |v| word(&v["last_sent"])),
    ("BEHIND", |v| word(&v["behind"])),
    ("PENDING", |v| word(&v["pending"])),
    ("OLDEST", |v| age(&v["oldest_unacked_seconds"])),
    ("MAX IN FLIGHT", |v| word(&v["max_in_flight"])),
    ("ACK WAIT", |v| format!("{}s", word(&v["ack_wait_seconds"]))),
];

const PENDING: &[Column] = &[
    ("MESSAGE", |v| word(&v["sequence"])),
    ("SUBSCRIPTION", |v| word(&v["subscription"])),
    ("DELIVERIES", |v| word(&v["deliveries"])),
    ("SINCE", |v| age(&v["since_seconds"])),
];

pub fn text(command: &Command, answer: &Value) -> String {
    match command {
        Command::List => list(CHANNELS, &answer["channels"], "no channels"),
        Command::Server => fields(answer),
        Command::Channel { .. } => {
            let subscriptions = &answer["subscriptions"];
            format!(
                "{}\n{}",
                fields(&answer["channel"]),
                list(SUBSCRIPTIONS, subscriptions, "no subscriptions")
            )
        }
        Command::Durables { .. } => {
            let mut columns: Vec<Column> = vec![("CHANNEL", |v| word(&v["channel"]))];
            columns.extend_from_slice(SUBSCRIPTIONS);
            list(&columns, &answer["durables"], "no durables")
        }
        Command::Pending { .. } => list(PENDING, &answer["pending"], "nothing is pending"),
        Command::Purge { channel, .. } => format!(
            "{} messages purged from channel {channel:?}, {} left; the next one is {}\n",
            answer["purged"],
            answer["messages"],
            answer["last"].as_u64().unwrap_or(0) + 1
        ),
        Command::Remove { channel, .. } => format!("channel {channel:?} deleted\n"),
        Command::RemoveDurable { target: which } => {
            format!("removed the durable {}\n", target(which))
        }
        Command::Skip { target: which } => {
            format!(
                "message {} skipped for {}\n",
                which["sequence"],
                target(which)
            )
        }
    }
}

/// The subscription a request names.
pub fn target(request: &Value) -> String {
    let channel = &request["channel"];
    if let Some(queue) = request["queue"].as_str() {
        return format!("queue group {queue:?} of channel {channel}");
    }
    if let Some(id) = request["subscription"].as_u64() {
        return format!("subscription {id} of channel {channel}");
    }
    format!(
        "{} of client {} on channel {channel}",
        request["durable"], request["client"]
    )
}

fn list(columns: &[Column], items: &Value, none: &str) -> String {
    let items = items.as_array().map_or(&[][..], Vec::as_slice);
    if items.is_empty() {
        return format!("{none}\n");
    }
    let titles = columns.iter().map(|(title, _)| (*title).to_owned());
    let mut rows = vec![titles.collect::<Vec<String>>()];
    for item in items {
        rows.push(columns.iter().map(|(_, show)| show(item)).collect());
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..columns.len())
        .map(|column| width(column).unwrap_or(0))
        .collect();
    // Numbers stand to the right.
    let right: Vec<bool> = (0..columns.len())
        .map(|column| {
            rows[1..]
                .iter()
                .all(|row| row[column].starts_with(|c: char| c.is_ascii_digit() || c == '-'))
        })
        .collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row
            .iter()
            .enumerate()
            .map(|(column, cell)| match right[column] {
                true => format!("{cell:>width$}", width = widths[column]),
                false => format!("{cell:<width$}", width = widths[column]),
            });
        let line = cells.collect::<Vec<String>>().join("  ");
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn fields(value: &Value) -> String {
    let mut text = String::new();
    for (name, value) in value.as_object().into_iter().flatten() {
        match value {
            Value::Object(inner) => {
                for (inner_name, value) in inner {
                    text += &format!("{:<28}{}\n", format!("{name}.{inner_name}"), word(value));
                }
            }
            value => text += &format!("{name:<28}{}\n", word(value)),
        }
    }
    text
}

/// Strings without quotes; what a terminal would act on is escaped.
fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) if text.is_empty() => "-".into(),
        Value::String(text) => text
            .chars()
            .flat_map(|c| match c.is_control() {
                true => c.escape_default().collect::<Vec<char>>(),
                false => vec![c],
            })
            .collect(),
        other => other.to_string(),
    }
}

fn durable(sub: &Value) -> String {
    match sub["durable"].as_str() {
        Some(name) => word(&name.into()),
        None if sub["is_durable"] == true => "group".into(),
        None => "-".into(),
    }
}

fn state(sub: &Value) -> String {
    let text = match (sub["is_offline"] == true, sub["is_stalled"] == true) {
        (true, _) => "offline",
        (false, true) => "stalled",
        (false, false) => "active",
    };
    text.into()
}

fn age(seconds: &Value) -> String {
    let Some(seconds) = seconds.as_f64() else {
        return "-".into();
    };
    match seconds as u64 {
        0..60 => format!("{seconds:.1}s"),
        whole @ 60..3600 => format!("{}m{}s", whole / 60, whole % 60),
        whole => format!("{}h{}m", whole / 3600, whole / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_table_of_channels() {
        let answer = json!({ "channels": [
            { "name": "foo", "messages": 3, "bytes": 120, "first": 1, "last": 3, "subscriptions": 2,
              "offline": 1, "pending": 2, "oldest_unacked_seconds": 75.2, "dead_lettered": 0 },
            { "name": "a\u{1b}[2J", "messages": 12000, "bytes": 5, "first": 1, "last": 12000, "subscriptions": 0,
              "offline": 0, "pending": 0, "dead_lettered": 0 },
        ]});
        let text = text(&Command::List, &answer);
        let expected = "\
CHANNEL     MESSAGES  BYTES  FIRST   LAST  SUBS  OFFLINE  PENDING  OLDEST  DEAD
foo                3    120      1      3     2        1        2   1m15s     0
a\\u{1b}[2J     12000      5      1  12000     0        0        0       -     0
";
        assert_eq!(text, expected);
    }
}
