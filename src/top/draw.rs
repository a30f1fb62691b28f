//! A screen on a terminal, from what is known; nothing is asked or read here.

use super::frame::{self, View, count, size};
use super::rates::Watched;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Clear, Paragraph, Row, Sparkline, Table};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Page {
    #[default]
    Connections,
    Servers,
    Slow,
    Channels,
    Loops,
}

impl Page {
    pub const ALL: [(Page, &str); 5] = [
        (Page::Connections, "connections"),
        (Page::Servers, "servers"),
        (Page::Slow, "slow consumers"),
        (Page::Channels, "channels"),
        (Page::Loops, "loops"),
    ];
}

/// All that decides what a screen looks like.
#[derive(Default)]
pub struct Screen {
    pub page: Page,
    pub view: View,
    pub sort: String,
    pub limit: usize,
    pub frozen: bool,
    pub help: bool,
    /// A line being typed: its question, and the answer so far.
    pub prompt: Option<(&'static str, String)>,
    pub message: String,
    pub colours: bool,
    /// Which server the upper part is about.
    pub selected: usize,
    /// First line of the table shown.
    pub scroll: usize,
}

impl Screen {
    fn style(&self, colour: Color) -> Style {
        match self.colours {
            true => Style::new().fg(colour),
            false => Style::new(),
        }
    }

    fn head(&self) -> Style {
        self.style(Color::Cyan).add_modifier(Modifier::BOLD)
    }
}

pub fn draw(f: &mut Frame<'_>, servers: &[Watched], screen: &Screen) {
    let selected = screen.selected.min(servers.len().saturating_sub(1));
    let Some(server) = servers.get(selected) else {
        return;
    };
    let wide = f.area().width >= 100;
    let [top, tabs, body, foot] = Layout::vertical([
        Constraint::Length(6),
        Constraint::Length(1),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(f.area());
    let [figures, lines] = Layout::horizontal(match wide {
        true => [Constraint::Min(60), Constraint::Length(40)],
        false => [Constraint::Min(20), Constraint::Length(0)],
    })
    .areas(top);
    let away = server.now.error.is_some();
    let header = frame::header(server, &screen.view).into_iter().enumerate();
    let header: Vec<Line<'_>> = header
        .map(|(index, text)| match (index, away) {
            (0, true) => Line::styled(text, screen.style(Color::Red)),
            (0, false) => Line::styled(text, screen.head()),
            _ => Line::raw(text),
        })
        .collect();
    f.render_widget(Paragraph::new(header), figures);
    if wide {
        sparklines(f, lines, server, screen);
    }
    f.render_widget(tab_line(screen), tabs);
    match screen.page {
        Page::Connections => {
            let (heads, rows) = frame::table(server, &screen.view);
            table(f, body, &heads, rows, screen, "no connections");
        }
        Page::Servers => servers_table(f, body, servers, screen),
        Page::Slow => slow_table(f, body, servers, screen),
        Page::Channels => channels_table(f, body, server, screen),
        Page::Loops => loops_table(f, body, server, screen),
    }
    f.render_widget(foot_line(server, screen), foot);
    if screen.help {
        help(f, screen);
    }
}

fn sparklines(f: &mut Frame<'_>, area: Rect, server: &Watched, screen: &Screen) {
    let halves = Layout::vertical([Constraint::Length(3), Constraint::Length(3)]).split(area);
    let histories = [
        ("in /s", &server.in_history, server.rates.in_msgs),
        ("out /s", &server.out_history, server.rates.out_msgs),
    ];
    for (area, (name, history, rate)) in halves.iter().zip(histories) {
        let width = area.width.saturating_sub(2) as usize;
        let data: Vec<u64> = history.iter().rev().take(width).rev().copied().collect();
        let title = format!("{name} {}", count(rate));
        let line = Sparkline::default()
            .block(Block::new().borders(Borders::LEFT).title(title))
            .style(screen.style(Color::Green))
            .data(&data);
        f.render_widget(line, *area);
    }
}

fn tab_line(screen: &Screen) -> Line<'static> {
    let spans = Page::ALL
        .iter()
        .zip(1..)
        .flat_map(|((page, name), number)| {
            let style = match *page == screen.page {
                true => screen.head().add_modifier(Modifier::REVERSED),
                false => Style::new(),
            };
            [
                Span::styled(format!(" {number} {name} "), style),
                Span::raw(" "),
            ]
        });
    Line::from(spans.collect::<Vec<_>>())
}

fn foot_line<'a>(server: &Watched, screen: &'a Screen) -> Line<'a> {
    if let Some((question, answer)) = &screen.prompt {
        return Line::styled(format!("{question}: {answer}_"), screen.head());
    }
    let mut text = format!(
        "Connections Polled: {}  sort {}  limit {}",
        server.now.connz.num_connections, screen.sort, screen.limit
    );
    if !screen.view.filter.is_empty() {
        text += &format!("  filter {:?}", screen.view.filter);
    }
    if screen.frozen {
        text += "  FROZEN";
    }
    if !screen.message.is_empty() {
        text += &format!("  {}", screen.message);
    }
    Line::raw(text + "  (? for help)")
}

fn table(
    f: &mut Frame<'_>,
    area: Rect,
    heads: &[&str],
    rows: Vec<Vec<String>>,
    screen: &Screen,
    none: &'static str,
) {
    if rows.is_empty() {
        return f.render_widget(Paragraph::new(none), area);
    }
    let widths: Vec<Constraint> = (0..heads.len())
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
            Constraint::Length(widest.max(heads[column].len()) as u16 + 1)
        })
        .collect();
    let scroll = screen.scroll.min(rows.len() - 1);
    let shown = rows.into_iter().skip(scroll);
    let shown = shown.map(|row| Row::new(row.into_iter().map(Cell::from)));
    let head =
        Row::new(heads.iter().map(|head| Cell::from((*head).to_owned()))).style(screen.head());
    f.render_widget(
        Table::new(shown, widths).header(head).column_spacing(1),
        area,
    );
}

fn servers_table(f: &mut Frame<'_>, area: Rect, servers: &[Watched], screen: &Screen) {
    let raw = screen.view.raw_bytes;
    let heads = [
        "SERVER",
        "ADDRESS",
        "VERSION",
        "UPTIME",
        "CPU%",
        "MEM",
        "CONNS",
        "SUBS",
        "ROUTES",
        "IN/S",
        "OUT/S",
        "BYTES_IN/S",
        "BYTES_OUT/S",
        "SLOW",
    ];
    let row = |server: &Watched| {
        let varz = &server.now.varz;
        let name = if varz.server_name.is_empty() {
            &varz.server_id
        } else {
            &varz.server_name
        };
        let name = match server.now.error {
            Some(_) => format!("{name} (away)"),
            None => name.clone(),
        };
        let rates = server.rates;
        vec![
            name,
            server.now.address.clone(),
            varz.version.clone(),
            varz.uptime.clone(),
            format!("{:.1}", varz.cpu),
            size(varz.mem as f64, raw),
            varz.connections.to_string(),
            varz.subscriptions.to_string(),
            varz.routes.to_string(),
            count(rates.in_msgs),
            count(rates.out_msgs),
            size(rates.in_bytes, raw),
            size(rates.out_bytes, raw),
            varz.slow_consumers.to_string(),
        ]
    };
    let mut rows: Vec<Vec<String>> = servers.iter().map(row).collect();
    let here = || servers.iter().filter(|server| server.now.error.is_none());
    let sum = |get: fn(&Watched) -> f64| here().map(get).sum::<f64>();
    let whole = |get: fn(&Watched) -> u64| here().map(get).sum::<u64>();
    rows.push(vec![
        "TOTAL".into(),
        format!("{} of {}", here().count(), servers.len()),
        String::new(),
        String::new(),
        format!("{:.1}", sum(|s| s.now.varz.cpu)),
        size(sum(|s| s.now.varz.mem as f64), raw),
        whole(|s| s.now.varz.connections).to_string(),
        whole(|s| s.now.varz.subscriptions).to_string(),
        whole(|s| s.now.varz.routes).to_string(),
        count(sum(|s| s.rates.in_msgs)),
        count(sum(|s| s.rates.out_msgs)),
        size(sum(|s| s.rates.in_bytes), raw),
        size(sum(|s| s.rates.out_bytes), raw),
        whole(|s| s.now.varz.slow_consumers).to_string(),
    ]);
    table(f, area, &heads, rows, screen, "");
}

fn slow_table(f: &mut Frame<'_>, area: Rect, servers: &[Watched], screen: &Screen) {
    let heads = ["WHEN", "SERVER", "CID", "NAME", "ADDRESS", "PENDING", "WHY"];
    let mut rows: Vec<Vec<String>> = servers
        .iter()
        .flat_map(|server| {
            server.now.varz.slow_consumer_list.iter().map(|slow| {
                vec![
                    slow.time.clone(),
                    server.now.address.clone(),
                    slow.cid.to_string(),
                    slow.name.clone(),
                    slow.address.clone(),
                    size(slow.pending_bytes as f64, screen.view.raw_bytes),
                    slow.cause.clone(),
                ]
            })
        })
        .collect();
    rows.sort_by(|a, b| b[0].cmp(&a[0]));
    let none = "no slow consumers, or a server that does not list them";
    table(f, area, &heads, rows, screen, none);
}

fn channels_table(f: &mut Frame<'_>, area: Rect, server: &Watched, screen: &Screen) {
    let heads = [
        "CHANNEL", "MSGS", "BYTES", "FIRST", "LAST", "IN/S", "SUBS", "OFFLINE", "PENDING",
        "STALLED", "BEHIND",
    ];
    let channels = server
        .now
        .channels
        .iter()
        .flat_map(|channels| &channels.channels);
    let rows = channels
        .filter(|channel| channel.name.contains(&screen.view.filter))
        .map(|channel| {
            let subs = &channel.subscriptions;
            let behind = subs
                .iter()
                .map(|sub| channel.last_seq.saturating_sub(sub.last_sent))
                .max();
            vec![
                channel.name.clone(),
                count(channel.msgs as f64),
                size(channel.bytes as f64, screen.view.raw_bytes),
                channel.first_seq.to_string(),
                channel.last_seq.to_string(),
                count(server.channel_rate(&channel.name)),
                subs.len().to_string(),
                subs.iter().filter(|sub| sub.is_offline).count().to_string(),
                subs.iter()
                    .map(|sub| sub.pending_count)
                    .sum::<u64>()
                    .to_string(),
                subs.iter().filter(|sub| sub.is_stalled).count().to_string(),
                behind.unwrap_or(0).to_string(),
            ]
        })
        .collect();
    let none = match server.now.channels {
        Some(_) => "no channels",
        None => "this server does not stream",
    };
    table(f, area, &heads, rows, screen, none);
}

fn loops_table(f: &mut Frame<'_>, area: Rect, server: &Watched, screen: &Screen) {
    let heads = ["LOOP", "CPU%", "CONNS", "SUBS", "IN/S", "OUT/S"];
    let loops = server
        .now
        .varz
        .loops
        .iter()
        .zip(server.loop_rates())
        .enumerate();
    let rows = loops
        .map(|(index, (figures, (in_rate, out_rate)))| {
            vec![
                index.to_string(),
                format!("{:.1}", figures.cpu),
                figures.connections.to_string(),
                figures.subscriptions.to_string(),
                count(in_rate),
                count(out_rate),
            ]
        })
        .collect();
    table(f, area, &heads, rows, screen, "only midge has loops");
}

const HELP: [&str; 15] = [
    "1-5        pages: connections, servers, slow consumers, channels, loops",
    "tab        next server, where there are several",
    "o          sort by: cid subs pending msgs_to msgs_from bytes_to bytes_from idle last uptime",
    "n          number of connections",
    "s          subscriptions on and off",
    "d          names of addresses on and off",
    "b          bytes as plain numbers",
    "space      rates of connections on and off",
    "/          show what holds a word",
    "f          freeze",
    "c          follow routes to the rest of the cluster",
    "up down    scroll, also pgup and pgdn",
    "? h        this help",
    "q ctrl-c   quit",
    "",
];

fn help(f: &mut Frame<'_>, screen: &Screen) {
    let whole = f.area();
    let width = whole.width.min(96);
    let height = whole.height.min(HELP.len() as u16 + 2);
    let area = Rect {
        x: (whole.width - width) / 2,
        y: (whole.height - height) / 2,
        width,
        height,
    };
    f.render_widget(Clear, area);
    let text = HELP.iter().map(|line| Line::raw(*line)).collect::<Vec<_>>();
    let block = Block::bordered()
        .title("midge-top")
        .border_style(screen.head());
    f.render_widget(Paragraph::new(text).block(block), area);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::data::{Connection, Snapshot};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn server(address: &str, away: bool) -> Watched {
        let mut watched = Watched::default();
        let mut snapshot = Snapshot {
            address: address.into(),
            ..Snapshot::default()
        };
        snapshot.varz.server_id = format!("ID-{address}");
        snapshot.varz.version = "1.1.0".into();
        snapshot.varz.connections = 1;
        snapshot.connz.num_connections = 1;
        snapshot.connz.connections.push(Connection {
            cid: 7,
            ip: "10.1.2.3".into(),
            port: 4000,
            name: "billing".into(),
            out_msgs: 12_345,
            ..Connection::default()
        });
        watched.update(snapshot.clone());
        if away {
            snapshot.error = Some("connection refused".into());
            watched.update(snapshot);
        }
        watched
    }

    fn drawn(servers: &[Watched], screen: &Screen, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|f| draw(f, servers, screen)).unwrap();
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

    #[test]
    fn every_page_fits_any_terminal() {
        let servers = [server("a:1", false), server("b:2", true)];
        for (page, _) in Page::ALL {
            for help in [false, true] {
                for (width, height) in [(20, 5), (40, 12), (80, 24), (200, 60), (1, 1)] {
                    let screen = Screen {
                        page,
                        help,
                        colours: true,
                        scroll: 3,
                        ..Screen::default()
                    };
                    drawn(&servers, &screen, width, height);
                }
            }
        }
    }

    #[test]
    fn connections_and_servers_are_shown() {
        let servers = [server("a:1", false), server("b:2", true)];
        let text = drawn(&servers, &Screen::default(), 160, 20);
        for words in [
            "NATS server version 1.1.0",
            "billing",
            "10.1.2.3:4000",
            "12.3K",
            "MSGS_TO",
        ] {
            assert!(text.contains(words), "{words} is missing in\n{text}");
        }
        let screen = Screen {
            page: Page::Servers,
            ..Screen::default()
        };
        let text = drawn(&servers, &screen, 160, 20);
        assert!(
            text.contains("ID-b:2 (away)") && text.contains("1 of 2"),
            "{text}"
        );
        let screen = Screen {
            selected: 1,
            ..Screen::default()
        };
        assert!(drawn(&servers, &screen, 160, 20).contains("away: connection refused"));
    }
}
