//! Tables for the screen, from what is known of the servers.

use super::fleet::{Fleet, Seen};
use super::json::{Channel, Connection, StreamingSubscription};
use super::names::Names;
use super::rates::Rates;
use super::text::go_time;
use super::units;
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// A column; where there is not room for all, those with the highest `rank` go first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Column {
    pub title: &'static str,
    pub rank: u8,
    /// The key of nats-top that stands for it.
    pub key: &'static str,
}

const fn column(title: &'static str, rank: u8, key: &'static str) -> Column {
    Column { title, rank, key }
}

/// Longer texts are cut, but for the last column, which gets what is left.
const CELL_WIDTH_MAX: u16 = 40;
/// Which is not shown where less than this is left of a longer one.
const LAST_WIDTH_MIN: u16 = 30;

/// Blanks between two columns.
pub const COLUMN_GAP: u16 = 2;

/// What is shown, and what it is sorted by.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    pub text: String,
    /// None: sorted as text.
    pub value: Option<f64>,
}

#[derive(Clone, Debug, Default)]
pub struct Table {
    pub columns: Vec<Column>,
    pub rows: Vec<Vec<Cell>>,
    /// Below the rows, whatever they are sorted by.
    pub total: Option<Vec<Cell>>,
    /// Said in place of rows.
    pub none: &'static str,
}

/// How numbers and lists are to look.
#[derive(Clone, Debug, Default)]
pub struct Style {
    pub raw: bool,
    /// Rates in place of totals.
    pub rates: bool,
    pub subscriptions: bool,
    pub filter: String,
}

fn text(text: impl Into<String>) -> Cell {
    Cell {
        text: text.into(),
        value: None,
    }
}

fn shown(value: &Option<String>) -> Cell {
    text(value.clone().unwrap_or_default())
}

/// A number, or blank where the server does not tell.
fn number(value: Option<u64>) -> Cell {
    Cell {
        text: value.map_or(String::new(), |value| value.to_string()),
        value: Some(value.unwrap_or(0) as f64),
    }
}

impl Style {
    fn count(&self, value: Option<u64>) -> Cell {
        Cell {
            text: value.map_or(String::new(), |value| units::count(self.raw, value)),
            ..number(value)
        }
    }

    fn bytes(&self, value: Option<u64>) -> Cell {
        Cell {
            text: value.map_or(String::new(), |value| units::bytes(self.raw, value)),
            ..number(value)
        }
    }

    fn flow(&self, rates: Rates) -> [Cell; 4] {
        [
            self.count(Some(rates.in_msgs as u64)),
            self.count(Some(rates.out_msgs as u64)),
            self.bytes(Some(rates.in_bytes as u64)),
            self.bytes(Some(rates.out_bytes as u64)),
        ]
    }

    fn takes(&self, name: &str) -> bool {
        name.to_lowercase().contains(&self.filter.to_lowercase())
    }
}

/// A time as nats-top shows it, cut to the second.
fn time(value: &Option<String>) -> Cell {
    let long = go_time(value.as_deref().unwrap_or(""));
    text(long.chars().take(19).collect::<String>())
}

fn percent(value: Option<f64>) -> Cell {
    Cell {
        text: value.map_or(String::new(), |value| format!("{value:.1}")),
        value,
    }
}

impl Table {
    /// Sorts by a column: numbers from the largest on, text from A. Equal rows keep their order.
    pub fn sort(&mut self, column: usize) {
        let order = |a: &Vec<Cell>, b: &Vec<Cell>| match (a.get(column), b.get(column)) {
            (Some(a), Some(b)) => match (a.value, b.value) {
                (Some(a), Some(b)) => b.total_cmp(&a),
                _ => a.text.to_lowercase().cmp(&b.text.to_lowercase()),
            },
            _ => Ordering::Equal,
        };
        self.rows.sort_by(order);
    }

    pub fn column_of(&self, key: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.key == key)
    }

    /// Columns that fit this width, in their order, each with its own; the first always does.
    pub fn fitting(&self, width: u16) -> Vec<(usize, u16)> {
        let widths: Vec<u16> = (0..self.columns.len())
            .map(|at| {
                let lines = self.rows.iter().chain(&self.total);
                let cells = lines.filter_map(|row| row.get(at));
                let widest = cells
                    .map(|cell| cell.text.chars().count())
                    .max()
                    .unwrap_or(0);
                let width = widest.max(self.columns[at].title.len());
                u16::try_from(width).unwrap_or(u16::MAX)
            })
            .collect();
        let mut kept: Vec<usize> = (0..self.columns.len()).collect();
        let last = widths.len().saturating_sub(1);
        let width_of = |at: usize| match at == last {
            true => widths[at].min(LAST_WIDTH_MIN),
            false => widths[at].min(CELL_WIDTH_MAX),
        };
        let needed = |kept: &[usize]| {
            let all = kept
                .iter()
                .map(|at| u32::from(width_of(*at)) + u32::from(COLUMN_GAP));
            all.sum::<u32>().saturating_sub(u32::from(COLUMN_GAP))
        };
        while kept.len() > 1 && needed(&kept) > u32::from(width) {
            let least = kept
                .iter()
                .skip(1)
                .max_by_key(|at| (self.columns[**at].rank, **at));
            let least = *least.expect("there are two or more");
            kept.retain(|at| *at != least);
        }
        let left = u32::from(width).saturating_sub(needed(&kept));
        let left = u16::try_from(left).expect("no more is left than there was");
        let shown = kept.into_iter().map(|at| match at == last {
            // Subjects have no end.
            true => (at, widths[at].min(width_of(at).saturating_add(left))),
            false => (at, width_of(at)),
        });
        shown.map(|(at, column)| (at, column.min(width))).collect()
    }
}

/// The connections of one server, or of all.
pub fn connections(servers: &[&Seen], style: &Style, names: &Names) -> Table {
    let several = servers.len() > 1;
    let all = || {
        servers.iter().flat_map(|seen| {
            let connz = seen.answer.connz.as_ref();
            let list = connz.and_then(|connz| connz.connections.as_deref());
            list.unwrap_or_default().iter().map(move |one| (*seen, one))
        })
    };
    let any = |get: fn(&Connection) -> &Option<String>| {
        all().any(|(_, one)| get(one).as_ref().is_some_and(|text| !text.is_empty()))
    };
    let (named, rtt, user) = (
        any(|c| &c.name),
        any(|c| &c.rtt),
        any(|c| &c.authorized_user),
    );
    let mut columns = vec![column("HOST", 0, "host"), column("CID", 1, "cid")];
    columns.extend(several.then_some(column("SERVER", 2, "server")));
    columns.extend(named.then_some(column("NAME", 2, "name")));
    columns.extend([column("SUBS", 3, "subs"), column("PENDING", 3, "pending")]);
    columns.extend(match style.rates {
        true => [
            column("MSGS_TO/S", 2, "msgs_to"),
            column("MSGS_FROM/S", 2, "msgs_from"),
            column("BYTES_TO/S", 4, "bytes_to"),
            column("BYTES_FROM/S", 4, "bytes_from"),
        ],
        false => [
            column("MSGS_TO", 2, "msgs_to"),
            column("MSGS_FROM", 2, "msgs_from"),
            column("BYTES_TO", 4, "bytes_to"),
            column("BYTES_FROM", 4, "bytes_from"),
        ],
    });
    columns.extend([column("LANG", 7, "lang"), column("VERSION", 7, "version")]);
    columns.extend(rtt.then_some(column("RTT", 6, "rtt")));
    columns.extend(user.then_some(column("USER", 6, "user")));
    columns.extend([
        column("UPTIME", 5, "uptime"),
        column("LAST_ACTIVITY", 8, "last"),
    ]);
    columns.extend(
        style
            .subscriptions
            .then_some(column("SUBSCRIPTIONS", 1, "")),
    );
    let row = |(seen, one): (&Seen, &Connection)| {
        let host = match one.ip.as_deref().and_then(|ip| names.name_of(ip)) {
            Some(name) => format!("{name}:{}", one.port.unwrap_or(0)),
            None => one.host(),
        };
        let mut cells = vec![text(host), number(one.cid)];
        cells.extend(several.then(|| text(seen.name())));
        cells.extend(named.then(|| shown(&one.name)));
        cells.extend([number(one.subscriptions), style.bytes(one.pending_bytes)]);
        cells.extend(match style.rates {
            false => [
                style.count(one.out_msgs),
                style.count(one.in_msgs),
                style.bytes(one.out_bytes),
                style.bytes(one.in_bytes),
            ],
            true => {
                let rates = one.cid.and_then(|cid| seen.rates.connections.get(&cid));
                let [from, to, bytes_from, bytes_to] =
                    style.flow(rates.copied().unwrap_or_default());
                [to, from, bytes_to, bytes_from]
            }
        });
        cells.extend([shown(&one.lang), shown(&one.version)]);
        cells.extend(rtt.then(|| shown(&one.rtt)));
        cells.extend(user.then(|| shown(&one.authorized_user)));
        cells.extend([shown(&one.uptime), time(&one.last_activity)]);
        let subjects = one.subscriptions_list.as_deref().unwrap_or_default();
        cells.extend(style.subscriptions.then(|| text(subjects.join(", "))));
        cells
    };
    let rows = all().filter(|(_, one)| one.holds(&style.filter)).map(row);
    Table {
        rows: rows.collect(),
        columns,
        total: None,
        none: "no connections",
    }
}

/// A row per server, and their sum.
pub fn servers(fleet: &Fleet, style: &Style) -> Table {
    let columns = vec![
        column("SERVER", 0, ""),
        column("STATE", 1, ""),
        column("ADDRESS", 3, ""),
        column("VERSION", 7, ""),
        column("UPTIME", 6, ""),
        column("CPU%", 2, ""),
        column("MEM", 2, ""),
        column("CONNS", 1, ""),
        column("SUBS", 4, ""),
        column("ROUTES", 5, ""),
        column("IN/S", 1, ""),
        column("OUT/S", 1, ""),
        column("BYTES_IN/S", 5, ""),
        column("BYTES_OUT/S", 5, ""),
        column("SLOW", 3, ""),
    ];
    let row = |(index, seen): (usize, &Seen)| {
        let varz = &seen.answer.varz;
        let state = match (&seen.away, fleet.is_twin(index)) {
            (Some(why), _) => format!("away: {why}"),
            (None, true) => "the same again".into(),
            (None, false) => String::new(),
        };
        let mut cells = vec![
            text(seen.name()),
            text(state),
            text(seen.address.to_string()),
            shown(&varz.version),
            shown(&varz.uptime),
            percent(varz.cpu),
            style.bytes(varz.mem),
            number(varz.connections),
            number(varz.subscriptions),
            number(varz.routes),
        ];
        cells.extend(style.flow(seen.rates()));
        cells.push(number(varz.slow_consumers));
        cells
    };
    let all = fleet.servers.iter().enumerate();
    Table {
        rows: all
            .filter(|(_, seen)| style.takes(&seen.name()))
            .map(row)
            .collect(),
        columns,
        total: Some(total(fleet, style)),
        none: "no servers",
    }
}

fn total(fleet: &Fleet, style: &Style) -> Vec<Cell> {
    let here: Vec<&Seen> = fleet.distinct().filter(|seen| seen.is_here()).collect();
    let sum = |get: fn(&Seen) -> Option<u64>| Some(here.iter().filter_map(|seen| get(seen)).sum());
    let cpus = here.iter().filter_map(|seen| seen.answer.varz.cpu);
    let cpu = cpus.fold(0.0, |sum, cpu| sum + cpu);
    let mut rates = Rates::default();
    here.iter().for_each(|seen| rates.add(seen.rates()));
    let mut cells = vec![
        text("TOTAL"),
        text(""),
        text(format!("{} of {}", here.len(), fleet.distinct().count())),
        text(""),
        text(""),
        percent(Some(cpu)),
        style.bytes(sum(|seen| seen.answer.varz.mem)),
        number(sum(|seen| seen.answer.varz.connections)),
        number(sum(|seen| seen.answer.varz.subscriptions)),
        number(sum(|seen| seen.answer.varz.routes)),
    ];
    cells.extend(style.flow(rates));
    cells.push(number(sum(|seen| seen.answer.varz.slow_consumers)));
    cells
}

/// Who was cut off, by midge's list or by the closed connections of nats-server 2.x; the last first.
pub fn slow(servers: &[&Seen], style: &Style) -> Table {
    let columns = vec![
        column("WHEN", 1, ""),
        column("SERVER", 4, ""),
        column("CID", 3, ""),
        column("NAME", 2, ""),
        column("ADDRESS", 2, ""),
        column("PENDING", 3, ""),
        column("WHY", 1, ""),
    ];
    let mut rows = Vec::new();
    for seen in servers {
        let own = seen.answer.varz.slow_consumer_list.as_deref();
        rows.extend(own.unwrap_or_default().iter().map(|slow| {
            vec![
                time(&slow.time),
                text(seen.name()),
                number(slow.cid),
                shown(&slow.name),
                shown(&slow.address),
                style.bytes(slow.pending_bytes),
                shown(&slow.cause),
            ]
        }));
        let closed = seen.answer.closed.as_ref();
        let closed = closed.and_then(|connz| connz.connections.as_deref());
        let slow = closed.unwrap_or_default().iter().filter(|one| {
            let reason = one.reason.as_deref().unwrap_or("");
            reason.starts_with("Slow Consumer")
        });
        rows.extend(slow.map(|one| {
            vec![
                time(&one.stop),
                text(seen.name()),
                number(one.cid),
                shown(&one.name),
                text(one.host()),
                style.bytes(one.pending_bytes),
                shown(&one.reason),
            ]
        }));
    }
    rows.retain(|row| row.iter().any(|cell| style.takes(&cell.text)));
    rows.sort_by(|a, b| b[0].text.cmp(&a[0].text));
    Table {
        columns,
        rows,
        total: None,
        none: "no slow consumers, or a server that does not list them",
    }
}

fn subscriptions(channel: &Channel) -> &[StreamingSubscription] {
    channel.subscriptions.as_deref().unwrap_or_default()
}

fn channels_of(seen: &Seen) -> impl Iterator<Item = &Channel> {
    let streaming = seen.answer.streaming.as_ref();
    let list = streaming.and_then(|streaming| streaming.channels.channels.as_deref());
    list.unwrap_or_default().iter()
}

const NO_STREAMING: &str = "nothing is streamed here";

pub fn channels(servers: &[&Seen], style: &Style) -> Table {
    let columns = vec![
        column("CHANNEL", 0, ""),
        column("MSGS", 2, ""),
        column("BYTES", 4, ""),
        column("FIRST", 6, ""),
        column("LAST", 5, ""),
        column("IN/S", 1, ""),
        column("OUT/S", 1, ""),
        column("SUBS", 3, ""),
        column("AWAY", 5, ""),
        column("PENDING", 2, ""),
        column("STALLED", 5, ""),
        column("AGAIN", 7, ""),
        column("BEHIND", 3, ""),
    ];
    let row = |seen: &Seen, channel: &Channel| {
        let subs = subscriptions(channel);
        let name = channel.name.clone().unwrap_or_default();
        let rate = seen
            .rates
            .channels
            .now
            .get(&name)
            .cloned()
            .unwrap_or_default();
        let last = channel.last_seq.unwrap_or(0);
        let behind = subs
            .iter()
            .filter_map(|sub| last.checked_sub(sub.last_sent?));
        let again = subs.iter().filter_map(|sub| sub.redelivered);
        let count = |is: fn(&StreamingSubscription) -> Option<bool>| {
            let all = subs.iter().filter(|sub| is(sub) == Some(true));
            number(Some(all.count() as u64))
        };
        vec![
            text(name),
            style.count(channel.msgs),
            style.bytes(channel.bytes),
            number(channel.first_seq),
            number(channel.last_seq),
            style.count(Some(rate.published as u64)),
            style.count(Some(rate.delivered as u64)),
            number(Some(subs.len() as u64)),
            count(|sub| sub.is_offline),
            number(Some(subs.iter().filter_map(|sub| sub.pending_count).sum())),
            count(|sub| sub.is_stalled),
            number(again.reduce(|a, b| a + b)),
            number(behind.max()),
        ]
    };
    let all = servers
        .iter()
        .flat_map(|seen| channels_of(seen).map(|channel| (*seen, channel)));
    let rows = all
        .filter(|(_, channel)| style.takes(channel.name.as_deref().unwrap_or("")))
        .map(|(seen, channel)| row(seen, channel));
    Table {
        columns,
        rows: rows.collect(),
        total: None,
        none: NO_STREAMING,
    }
}

/// What the subscriptions of one streaming client add up to.
#[derive(Default)]
struct ClientSum {
    subscriptions: u64,
    durables: u64,
    pending: u64,
    stalled: u64,
    delivered: f64,
    channels: Vec<String>,
}

pub fn clients(servers: &[&Seen], style: &Style) -> Table {
    let columns = vec![
        column("CLIENT", 0, ""),
        column("SUBS", 2, ""),
        column("DURABLES", 4, ""),
        column("OUT/S", 1, ""),
        column("PENDING", 1, ""),
        column("STALLED", 3, ""),
        column("CHANNELS", 2, ""),
        column("HEARTBEATS", 6, ""),
    ];
    let mut rows = Vec::new();
    for seen in servers {
        let mut sums: BTreeMap<&str, ClientSum> = BTreeMap::new();
        for channel in channels_of(seen) {
            let name = channel.name.clone().unwrap_or_default();
            let rate = seen.rates.channels.now.get(&name);
            for sub in subscriptions(channel)
                .iter()
                .filter(|sub| sub.is_offline != Some(true))
            {
                let id = sub.client_id.as_deref().unwrap_or("");
                let sum = sums.entry(id).or_default();
                sum.subscriptions += 1;
                sum.durables += u64::from(sub.is_durable == Some(true));
                sum.pending += sub.pending_count.unwrap_or(0);
                sum.stalled += u64::from(sub.is_stalled == Some(true));
                if !sum.channels.contains(&name) {
                    sum.delivered += rate.and_then(|rate| rate.clients.get(id)).unwrap_or(&0.0);
                    sum.channels.push(name.clone());
                }
            }
        }
        let streaming = seen.answer.streaming.as_ref();
        let list = streaming.and_then(|streaming| streaming.clients.clients.as_deref());
        for client in list.unwrap_or_default() {
            let id = client.id.as_deref().unwrap_or("");
            let none = ClientSum::default();
            let sum = sums.get(id).unwrap_or(&none);
            if !style.takes(id) {
                continue;
            }
            rows.push(vec![
                text(id),
                number(Some(sum.subscriptions)),
                number(Some(sum.durables)),
                style.count(Some(sum.delivered as u64)),
                number(Some(sum.pending)),
                number(Some(sum.stalled)),
                text(sum.channels.join(", ")),
                shown(&client.hb_inbox),
            ]);
        }
    }
    Table {
        columns,
        rows,
        total: None,
        none: NO_STREAMING,
    }
}

pub fn loops(servers: &[&Seen], style: &Style) -> Table {
    let columns = vec![
        column("SERVER", 1, ""),
        column("LOOP", 0, ""),
        column("CPU%", 1, ""),
        column("CONNS", 2, ""),
        column("SUBS", 3, ""),
        column("IN/S", 2, ""),
        column("OUT/S", 2, ""),
    ];
    let mut rows = Vec::new();
    for seen in servers {
        let loops = seen.answer.varz.loops.as_deref().unwrap_or_default();
        for (index, figures) in loops.iter().enumerate() {
            let rates = seen.rates.loops.get(index).copied().unwrap_or_default();
            rows.push(vec![
                text(seen.name()),
                number(Some(index as u64)),
                percent(figures.cpu),
                number(figures.connections),
                number(figures.subscriptions),
                style.count(Some(rates.in_msgs as u64)),
                style.count(Some(rates.out_msgs as u64)),
            ]);
        }
    }
    Table {
        columns,
        rows,
        total: None,
        none: "only midge has loops",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let row = |name: &str, value: u64| vec![text(name), number(Some(value)), text("x")];
        Table {
            columns: vec![
                column("NAME", 0, "name"),
                column("VALUE", 1, ""),
                column("NOTE", 2, ""),
            ],
            rows: vec![row("b", 2), row("A", 10), row("c", 2)],
            total: None,
            none: "",
        }
    }

    #[test]
    fn numbers_sort_downward_and_text_upward() {
        let names = |table: &Table| -> String {
            table.rows.iter().map(|row| row[0].text.as_str()).collect()
        };
        let mut table = table();
        table.sort(1);
        assert_eq!(names(&table), "Abc");
        table.sort(0);
        assert_eq!(names(&table), "Abc");
        table.rows.reverse();
        table.sort(1);
        assert_eq!(names(&table), "Acb", "equal ones stay as they were");
        table.sort(99);
    }

    #[test]
    fn where_room_is_short_the_least_important_columns_go() {
        let kept =
            |width| -> Vec<usize> { table().fitting(width).iter().map(|(at, _)| *at).collect() };
        assert_eq!(kept(80), [0, 1, 2]);
        assert_eq!(kept(12), [0, 1]);
        assert_eq!(kept(3), [0]);
    }

    #[test]
    fn the_last_column_gets_what_is_left_and_takes_nothing_from_the_others() {
        let mut table = table();
        table.rows[0][0] = text("n".repeat(100));
        table.rows[1][2] = text("x".repeat(100_000));
        let widths = |width| -> Vec<u16> {
            let fitting = table.fitting(width);
            fitting.iter().map(|(_, width)| *width).collect()
        };
        assert_eq!(widths(89), [40, 5, 40]);
        assert_eq!(widths(149), [40, 5, 100]);
        assert_eq!(widths(79), [40, 5, 30]);
        assert_eq!(widths(78), [40, 5], "it has to be worth it");
        assert_eq!(widths(10), [10]);
    }
}
