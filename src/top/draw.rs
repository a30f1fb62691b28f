//! A frame, from what is known; nothing is asked or read here.

use super::fleet::{Fleet, Seen};
use super::help;
use super::names::Names;
use super::options::View;
use super::rates::Rates;
use super::rows::{self, Style as Look, Table};
use super::text::harmless;
use super::units;
use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Sparkline, Table as Widget};

/// Terminals at least this wide show curves beside the figures.
const WIDE: u16 = 100;
/// At the end of what is cut.
const ELLIPSIS: &str = "…";

/// All that decides what a frame looks like.
#[derive(Default)]
pub struct Screen {
    pub view: View,
    pub look: Look,
    /// A key of nats-top; of connections.
    pub sort: String,
    /// Of the other views: the column they are sorted by.
    pub sorted_by: Option<usize>,
    pub limit: i64,
    pub frozen: bool,
    pub help: bool,
    /// First line of the help shown.
    pub help_scroll: usize,
    /// A line being typed: its question, and the answer so far.
    pub prompt: Option<(&'static str, String)>,
    pub message: String,
    pub colour: bool,
    /// The terminal may show nothing else.
    pub ascii: bool,
    /// Which server this is about; None: all.
    pub selected: Option<usize>,
    /// First line of the table shown.
    pub scroll: usize,
    pub names: Names,
}

impl Screen {
    fn ink(&self, colour: Color) -> Style {
        match self.colour {
            true => Style::new().fg(colour),
            false => Style::new(),
        }
    }

    /// Colours of the terminal's own palette, which its owner has chosen to be read.
    pub fn head(&self) -> Style {
        self.ink(Color::Blue).add_modifier(Modifier::BOLD)
    }

    fn chosen<'f>(&self, fleet: &'f Fleet) -> Vec<&'f Seen> {
        match self.selected.and_then(|at| fleet.servers.get(at)) {
            Some(seen) => vec![seen],
            None => fleet.distinct().collect(),
        }
    }

    /// The table of this view, sorted.
    pub fn table(&self, fleet: &Fleet) -> Table {
        let chosen = self.chosen(fleet);
        let mut table = match self.view {
            View::Connections => rows::connections(&chosen, &self.look, &self.names),
            View::Cluster => rows::servers(fleet, &self.look),
            View::Channels => rows::channels(&chosen, &self.look),
            View::Clients => rows::clients(&chosen, &self.look),
            View::Slow => rows::slow(&chosen, &self.look),
            View::Loops => rows::loops(&chosen, &self.look),
        };
        let column = match self.view {
            View::Connections => table.column_of(&self.sort),
            _ => self.sorted_by,
        };
        // A server gives cid upwards, as we should.
        if let Some(column) =
            column.filter(|_| self.view != View::Connections || self.sort != "cid")
        {
            table.sort(column);
        }
        table
    }
}

pub fn draw(f: &mut Frame<'_>, fleet: &Fleet, screen: &Screen) {
    let [top, tabs, body, foot] = Layout::vertical([
        Constraint::Length(6),
        Constraint::Length(1),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(f.area());
    let wide = f.area().width >= WIDE;
    let [figures, curves] = Layout::horizontal(match wide {
        true => [Constraint::Min(60), Constraint::Length(40)],
        false => [Constraint::Min(20), Constraint::Length(0)],
    })
    .areas(top);
    let chosen = screen.chosen(fleet);
    let away = chosen.iter().all(|seen| !seen.is_here());
    let header = header(&chosen, screen).into_iter().enumerate();
    let header: Vec<Line<'_>> = header
        .map(|(index, text)| match (index, away) {
            (0, true) => Line::styled(text, screen.ink(Color::Red).add_modifier(Modifier::BOLD)),
            (0, false) => Line::styled(text, screen.head()),
            _ => Line::raw(text),
        })
        .collect();
    f.render_widget(Paragraph::new(header), figures);
    if wide {
        sparklines(f, curves, &chosen, screen);
    }
    f.render_widget(tab_line(screen, f.area().width), tabs);
    show_table(f, body, screen.table(fleet), screen);
    f.render_widget(foot_line(&chosen, screen), foot);
    if screen.help {
        help::draw(f, screen);
    }
    if screen.ascii {
        to_ascii(f.buffer_mut());
    }
}

/// What nats-top has above its table; of several servers their sums.
fn header(chosen: &[&Seen], screen: &Screen) -> Vec<String> {
    let raw = screen.look.raw;
    let sum = |get: fn(&Seen) -> Option<u64>| {
        let here = chosen
            .iter()
            .filter(|seen| seen.is_here() || chosen.len() == 1);
        here.filter_map(|seen| get(seen)).sum::<u64>()
    };
    let here = chosen.iter().filter(|seen| seen.is_here());
    let cpu = here
        .filter_map(|seen| seen.answer.varz.cpu)
        .fold(0.0, |sum, cpu| sum + cpu);
    let mut rates = Rates::default();
    chosen.iter().for_each(|seen| rates.add(seen.rates()));
    let [title, name, id] = match chosen {
        [seen] => of_one(seen),
        several => {
            let here = several.iter().filter(|seen| seen.is_here()).count();
            let title = format!(
                "{} NATS servers, {} away",
                several.len(),
                several.len() - here
            );
            [title, "Server: all".into(), String::new()]
        }
    };
    let flow = |label: &str, msgs, size, rate: f64, size_rate: f64| {
        format!(
            "  {label:<5} Msgs: {}  Bytes: {}  Msgs/Sec: {rate:.1}  Bytes/Sec: {}",
            units::count(raw, msgs),
            units::bytes(raw, size),
            units::bytes(raw, size_rate as u64)
        )
    };
    vec![
        title,
        name,
        id,
        format!(
            "  Load: CPU:  {cpu:.1}%  Memory: {}  Slow Consumers: {}",
            units::bytes(false, sum(|seen| seen.answer.varz.mem)),
            sum(|seen| seen.answer.varz.slow_consumers)
        ),
        flow(
            "In:",
            sum(|seen| seen.answer.varz.in_msgs),
            sum(|seen| seen.answer.varz.in_bytes),
            rates.in_msgs,
            rates.in_bytes,
        ),
        flow(
            "Out:",
            sum(|seen| seen.answer.varz.out_msgs),
            sum(|seen| seen.answer.varz.out_bytes),
            rates.out_msgs,
            rates.out_bytes,
        ),
    ]
}

fn of_one(seen: &Seen) -> [String; 3] {
    let varz = &seen.answer.varz;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let name = match text(&varz.server_name) {
        name if name == text(&varz.server_id) => String::new(),
        name => name,
    };
    let about = (text(&varz.version), text(&varz.uptime));
    let title = match (&seen.away, about) {
        (Some(why), (version, _)) if version.is_empty() => {
            format!("{} is away: {why}", seen.address)
        }
        (Some(why), (version, uptime)) => format!(
            "{} is away: {why} (was version {version}, uptime: {uptime})",
            seen.address
        ),
        (None, _) if !seen.is_here() => format!("{} is asked", seen.address),
        (None, (version, uptime)) => {
            let trouble = seen.answer.trouble.as_ref();
            let trouble = trouble.map(|failure| format!(" {}", failure.reason()));
            let trouble = trouble.unwrap_or_default();
            format!("NATS server version {version} (uptime: {uptime}){trouble}")
        }
    };
    [
        title,
        format!("Server: {name}"),
        format!("  ID:   {}", text(&varz.server_id)),
    ]
}

fn sparklines(f: &mut Frame<'_>, area: Rect, chosen: &[&Seen], screen: &Screen) {
    let halves = Layout::vertical([Constraint::Length(3), Constraint::Length(3)]).split(area);
    let parts = [
        ("in /s", (|rates| rates.in_msgs) as fn(&Rates) -> f64),
        ("out /s", |rates| rates.out_msgs),
    ];
    for (area, (name, get)) in halves.iter().zip(parts) {
        let width = area.width.saturating_sub(1) as usize;
        // The newest of each server stand above each other.
        let at = |back: usize| {
            let all = chosen.iter().filter_map(|seen| {
                let history = &seen.rates.history;
                history.get(history.len().checked_sub(back + 1)?)
            });
            all.map(get).sum::<f64>() as u64
        };
        let longest = chosen.iter().map(|seen| seen.rates.history.len()).max();
        let shown = longest.unwrap_or(0).min(width);
        let data: Vec<u64> = (0..shown).rev().map(at).collect();
        let now: f64 = chosen.iter().map(|seen| get(&seen.rates())).sum();
        let title = format!("{name} {}", units::count(screen.look.raw, now as u64));
        let line = Sparkline::default()
            .block(Block::new().borders(Borders::LEFT).title(title))
            .style(screen.ink(Color::Green))
            .data(&data);
        f.render_widget(line, *area);
    }
}

fn tab_line(screen: &Screen, width: u16) -> Line<'static> {
    let longest: usize = View::ALL.iter().map(|view| view.name().len() + 5).sum();
    let spans = View::ALL.iter().zip(1..).flat_map(|(view, number)| {
        let here = *view == screen.view;
        let style = match here {
            true => screen.head().add_modifier(Modifier::REVERSED),
            false => Style::new(),
        };
        let name = match here || longest <= usize::from(width) {
            true => format!(" {number} {} ", view.name()),
            false => format!(" {number} "),
        };
        [Span::styled(name, style), Span::raw(" ")]
    });
    Line::from(spans.collect::<Vec<_>>())
}

fn foot_line<'a>(chosen: &[&Seen], screen: &'a Screen) -> Line<'a> {
    if let Some((question, answer)) = &screen.prompt {
        return Line::styled(format!("{question}: {answer}_"), screen.head());
    }
    let connz = chosen.iter().filter_map(|seen| seen.answer.connz.as_ref());
    let polled: u64 = connz.filter_map(|connz| connz.num_connections).sum();
    let mut text = match screen.view {
        View::Connections => format!(
            "Connections Polled: {polled}  sort {}  limit {}",
            screen.sort, screen.limit
        ),
        view => view.name().to_owned(),
    };
    if !screen.look.filter.is_empty() {
        text += &format!("  filter {:?}", screen.look.filter);
    }
    if screen.frozen {
        text += "  FROZEN";
    }
    if chosen.iter().any(|seen| seen.answer.sort_refused) {
        text += "  (the server does not sort by that)";
    }
    if !screen.message.is_empty() {
        text += &format!("  {}", screen.message);
    }
    Line::raw(text + "  (? for help)")
}

fn show_table(f: &mut Frame<'_>, area: Rect, table: Table, screen: &Screen) {
    if table.rows.is_empty() && table.total.is_none() {
        return f.render_widget(Paragraph::new(table.none), area);
    }
    let fitting = table.fitting(area.width);
    let line = |row: &Vec<rows::Cell>| {
        let cells = fitting.iter().map(|(at, width)| {
            let text = row.get(*at).map_or("", |cell| &*cell.text);
            Cell::from(fitted(text, (*width).into()))
        });
        Row::new(cells.collect::<Vec<_>>())
    };
    let titles = fitting.iter().map(|(at, _)| table.columns[*at].title);
    let head = Row::new(titles.map(Cell::from).collect::<Vec<_>>()).style(screen.head());
    let scroll = screen.scroll.min(table.rows.len().saturating_sub(1));
    let total = table.total.iter().map(|row| line(row).style(screen.head()));
    let shown: Vec<Row<'_>> = table
        .rows
        .iter()
        .skip(scroll)
        .map(line)
        .chain(total)
        .collect();
    let widths = fitting.iter().map(|(_, width)| Constraint::Length(*width));
    let widget = Widget::new(shown, widths.collect::<Vec<_>>())
        .header(head)
        .column_spacing(rows::COLUMN_GAP);
    f.render_widget(widget, area);
}

/// A text, or what there is room for of it.
fn fitted(text: &str, width: usize) -> String {
    let mut letters = text.chars().map(harmless);
    let head: String = letters.by_ref().take(width).collect();
    if letters.next().is_none() || width == 0 {
        return head;
    }
    let kept = head.chars().take(width - 1);
    kept.chain(ELLIPSIS.chars()).collect()
}

/// Puts something that every terminal has in place of whatever is drawn.
fn to_ascii(buffer: &mut Buffer) {
    for cell in &mut buffer.content {
        let symbol = match cell.symbol() {
            symbol if symbol.is_ascii() => continue,
            "│" => "|",
            "─" => "-",
            "┌" | "┐" | "└" | "┘" => "+",
            // Bars, from the lowest to the highest.
            "▁" | "▂" => ".",
            "▃" | "▄" | "▅" => ":",
            "▆" | "▇" => "|",
            "█" => "#",
            ELLIPSIS => "~",
            _ => "?",
        };
        cell.set_symbol(symbol);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::fetch::{Answer, Failure, Streaming};
    use crate::top::options::Address;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde::de::DeserializeOwned;

    const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/top");

    /// None: nothing of the kind was recorded of this server.
    fn recorded<T: DeserializeOwned>(name: &str) -> Option<T> {
        let text = std::fs::read_to_string(format!("{DATA}/{name}.json")).ok()?;
        Some(serde_json::from_str(&text).expect(name))
    }

    fn answer(server: &str, look: u32) -> Answer {
        let part = |what: &str| format!("{server}-{what}-{look}");
        let streaming = recorded(&part("channelsz")).map(|channels| Streaming {
            channels,
            clients: recorded(&part("clientsz")).unwrap(),
        });
        Answer {
            varz: recorded(&part("varz"))
                .or(recorded(&format!("{server}-varz-2")))
                .unwrap_or_default(),
            connz: recorded(&part("connz")),
            routez: recorded(&part("routez")),
            closed: recorded(&part("closed")),
            streaming,
            ..Answer::default()
        }
    }

    fn address(host: &str) -> Address {
        Address {
            https: false,
            host: host.into(),
            port: 8222,
        }
    }

    /// Servers after two looks each.
    fn fleet(servers: &[&str]) -> Fleet {
        let addresses: Vec<Address> = servers.iter().map(|name| address(name)).collect();
        let mut fleet = Fleet::new(&addresses);
        for (name, address) in servers.iter().zip(&addresses) {
            let there = |look: &u32| {
                let of = |what| format!("{DATA}/{name}-{what}-{look}.json");
                ["varz", "channelsz"]
                    .iter()
                    .any(|what| std::path::Path::new(&of(what)).exists())
            };
            for look in [1, 2].into_iter().filter(there) {
                fleet.take(address, Ok(answer(name, look)), f64::from(look));
            }
        }
        fleet
    }

    fn drawn(fleet: &Fleet, screen: &Screen, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|f| draw(f, fleet, screen)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| {
            (0..width)
                .map(|x| buffer[(x, y)].symbol())
                .collect::<String>()
        };
        (0..height)
            .map(|y| line(y).trim_end().to_owned() + "\n")
            .collect()
    }

    fn screen(view: View) -> Screen {
        Screen {
            view,
            sort: "cid".into(),
            limit: 1024,
            ..Screen::default()
        }
    }

    /// Compares with a recorded frame; `MIDGE_REWRITE_FRAMES=1` writes it anew.
    fn compare(name: &str, frame: &str) {
        let path = format!("{DATA}/frames/{name}.txt");
        if std::env::var_os("MIDGE_REWRITE_FRAMES").is_some() {
            std::fs::create_dir_all(format!("{DATA}/frames")).unwrap();
            std::fs::write(&path, frame).unwrap();
        }
        let expect = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(frame, expect, "{path}");
    }

    #[test]
    fn frames_of_recorded_servers() {
        for server in ["midge", "nats-server", "gnatsd"] {
            let fleet = fleet(&[server]);
            let mut plain = screen(View::Connections);
            for (width, height) in [(140, 24), (60, 20), (80, 50)] {
                let name = format!("{server}-{width}x{height}");
                compare(&name, &drawn(&fleet, &plain, width, height));
            }
            plain.look.subscriptions = true;
            plain.look.rates = true;
            plain.look.raw = true;
            compare(&format!("{server}-full"), &drawn(&fleet, &plain, 180, 24));
        }
        let loops = drawn(&fleet(&["midge"]), &screen(View::Loops), 100, 14);
        compare("midge-loops", &loops);
        let slow = drawn(&fleet(&["slow"]), &screen(View::Slow), 120, 16);
        compare("slow", &slow);
    }

    #[test]
    fn a_cluster_and_what_is_streamed() {
        let mut several = fleet(&["midge", "midge-two", "gnatsd"]);
        several.take(&address("gnatsd"), Err("connection refused".into()), 3.0);
        compare("cluster", &drawn(&several, &screen(View::Cluster), 150, 16));
        let narrow = drawn(&several, &screen(View::Cluster), 50, 16);
        compare("cluster-narrow", &narrow);
        let all = drawn(&several, &screen(View::Connections), 150, 20);
        compare("cluster-connections", &all);
        let streaming = fleet(&["streaming"]);
        for view in [View::Channels, View::Clients] {
            let frame = drawn(&streaming, &screen(view), 120, 16);
            compare(view.name(), &frame);
        }
    }

    #[test]
    fn every_view_fits_any_terminal() {
        let mut several = fleet(&["midge", "nats-server", "streaming", "slow"]);
        several.servers.push(Seen::new(address("nobody")));
        for view in View::ALL {
            for (help, ascii) in [(false, false), (true, false), (true, true)] {
                for (width, height) in [(1, 1), (20, 5), (60, 20), (200, 60)] {
                    let screen = Screen {
                        help,
                        help_scroll: 1000,
                        ascii,
                        colour: true,
                        scroll: 1000,
                        ..screen(view)
                    };
                    drawn(&several, &screen, width, height);
                }
            }
        }
        drawn(&Fleet::default(), &screen(View::Connections), 80, 24);
    }

    #[test]
    fn many_subscriptions_leave_the_other_columns_alone() {
        let mut fleet = fleet(&["midge"]);
        let connz = fleet.servers[0].answer.connz.as_mut().unwrap();
        let list = (0..2000).map(|number| format!("many.subjects.{number}"));
        connz.connections.as_mut().unwrap()[0].subscriptions_list = Some(list.collect());
        let mut plain = screen(View::Connections);
        plain.look.subscriptions = true;
        for width in [80, 120, 180] {
            let frame = drawn(&fleet, &plain, width, 24);
            let row = frame.lines().nth(8).unwrap();
            assert!(row.starts_with("127.0.0.1:38808  5    billing "), "{frame}");
            assert!(
                row.ends_with('…') && row.contains("  many.subjects.0, many"),
                "{frame}"
            );
            assert_eq!(row.chars().count(), usize::from(width), "{frame}");
        }
    }

    #[test]
    fn why_a_server_is_away_is_seen_first() {
        let mut fleet = fleet(&["midge"]);
        fleet.servers.push(Seen::new(address("127.0.0.1")));
        let selected = |at: usize| Screen {
            selected: Some(at),
            ..screen(View::Connections)
        };
        let title = |fleet: &Fleet, screen: &Screen| {
            let frame = drawn(fleet, screen, 60, 24);
            frame.lines().next().unwrap().to_owned()
        };
        assert_eq!(title(&fleet, &selected(1)), "127.0.0.1:8222 is asked");
        let refused = || Err(Failure::NoAnswer("connection refused".into()).reason());
        for host in ["midge", "127.0.0.1"] {
            fleet.take(&address(host), refused(), 3.0);
        }
        let never = "127.0.0.1:8222 is away: connection refused";
        assert_eq!(title(&fleet, &selected(1)), never);
        let known = title(&fleet, &selected(0));
        assert!(
            known.starts_with("midge:8222 is away: connection refused (was version 1."),
            "{known}"
        );
        let cluster = drawn(&fleet, &screen(View::Cluster), 60, 24);
        assert!(
            cluster.contains("  away: connection refused\n"),
            "{cluster}"
        );
        fleet.take(&address("midge"), Ok(answer("midge", 2)), 4.0);
        let other = Failure::Status(500, "no".into());
        fleet.servers[0].answer.trouble = Some(other);
        assert!(title(&fleet, &selected(0)).ends_with(" status 500: \"no\""));
    }

    #[test]
    fn the_help_is_laid_out_for_what_there_is() {
        let fleet = fleet(&["midge"]);
        let mut screen = screen(View::Connections);
        screen.help = true;
        for (width, height) in [(80, 24), (80, 14), (200, 60), (40, 10), (39, 22)] {
            let whole = Rect::new(0, 0, width, height);
            let mut seen = String::new();
            for scroll in 0..=help::scroll_max(whole) {
                screen.help_scroll = scroll;
                seen += &drawn(&fleet, &screen, width, height);
            }
            for (key, words) in help::ENTRIES {
                let entry = format!("{key:<10}{words}");
                // The narrowest has no room for all of the last word.
                let entry = if width < 40 {
                    &entry[..20.min(entry.len())]
                } else {
                    &entry
                };
                assert!(seen.contains(entry), "{entry:?} is missing in {seen}");
            }
        }
        assert_eq!(help::scroll_max(Rect::new(0, 0, 80, 12)), 0, "two columns");
        assert_eq!(help::scroll_max(Rect::new(0, 0, 40, 10)), 12);
    }

    #[test]
    fn a_terminal_without_unicode_gets_ascii() {
        let mut fleet = fleet(&["midge"]);
        let connz = fleet.servers[0].answer.connz.as_mut().unwrap();
        connz.connections.as_mut().unwrap()[0].name = Some("bücher".repeat(20));
        for (help, width) in [(false, 140), (true, 80)] {
            let screen = Screen {
                help,
                ascii: true,
                ..screen(View::Connections)
            };
            let frame = drawn(&fleet, &screen, width, 24);
            assert!(frame.is_ascii(), "{frame}");
            let words = if help { "+midge-top---" } else { "b?cherb" };
            assert!(frame.contains(words), "{frame}");
        }
    }

    #[test]
    fn names_cannot_move_the_cursor() {
        let mut fleet = fleet(&["midge"]);
        let connz = fleet.servers[0].answer.connz.as_mut().unwrap();
        connz.connections.as_mut().unwrap()[0].name = Some("a\x1b[2Jb\nc".into());
        let frame = drawn(&fleet, &screen(View::Connections), 140, 20);
        assert!(frame.contains("a?[2Jb?c"), "{frame}");
    }
}
