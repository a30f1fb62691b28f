//! The program: one snapshot for scripts, or a screen that follows the servers.

use super::draw::{Page, Screen, draw};
use super::fetch::{Fetcher, Wanted};
use super::frame::{self, View};
use super::options::{SORT_KEYS, TopOptions};
use super::rates::Watched;
use crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use std::collections::HashMap;
use std::io::Write;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub fn run(options: &TopOptions) -> Result<(), String> {
    let fetcher = Fetcher::new(options)?;
    let first = options.servers.first().ok_or("-s: no server")?;
    fetcher.smoke_test(first)?;
    match &options.output {
        Some(path) => snapshot(options, &fetcher, path),
        None => follow(options, fetcher),
    }
}

fn wanted(options: &TopOptions) -> Wanted {
    Wanted {
        sort: options.sort.clone(),
        limit: options.limit,
        subscriptions: options.subscriptions,
    }
}

/// Two looks, one interval apart, so that there are rates; then the text.
fn snapshot(options: &TopOptions, fetcher: &Fetcher, path: &str) -> Result<(), String> {
    let mut text = String::new();
    for server in &options.servers {
        let mut watched = Watched::default();
        watched.update(fetcher.look(server, &wanted(options)));
        std::thread::sleep(options.interval);
        watched.update(fetcher.look(server, &wanted(options)));
        let view = View {
            raw_bytes: options.raw_bytes,
            subscriptions: options.subscriptions,
            filter: options.filter.clone(),
            names: if options.lookup {
                look_up(&watched)
            } else {
                HashMap::new()
            },
            ..View::default()
        };
        text += &match &options.delimiter {
            Some(delimiter) => frame::delimited(&watched, &view, delimiter),
            None => frame::text(&watched, &view),
        };
    }
    match path {
        "-" => std::io::stdout()
            .write_all(text.as_bytes())
            .map_err(|error| format!("standard output: {error}")),
        path => std::fs::write(path, text).map_err(|error| format!("{path}: {error}")),
    }
}

/// Names of the addresses of connections, by the system's resolver.
fn look_up(server: &Watched) -> HashMap<String, String> {
    let mut names = HashMap::new();
    for connection in &server.now.connz.connections {
        if let Ok(ip) = connection.ip.parse::<IpAddr>()
            && !names.contains_key(&connection.ip)
            && let Ok(name) = dns_lookup::lookup_addr(&ip)
        {
            names.insert(connection.ip.clone(), name);
        }
    }
    names
}

/// What the fetching thread is to do; the drawing one changes it.
struct Orders {
    wanted: Wanted,
    servers: Vec<String>,
    cluster: bool,
    lookup: bool,
}

enum News {
    Looked(Vec<super::data::Snapshot>),
    Names(HashMap<String, String>),
}

fn follow(options: &TopOptions, fetcher: Fetcher) -> Result<(), String> {
    let orders = Arc::new(Mutex::new(Orders {
        wanted: wanted(options),
        servers: options.servers.clone(),
        cluster: options.cluster,
        lookup: options.lookup,
    }));
    let (news, inbox) = channel();
    let (work, interval) = (orders.clone(), options.interval);
    std::thread::spawn(move || fetch_always(&fetcher, &work, interval, &news));
    let mut terminal = ratatui::try_init().map_err(|error| format!("terminal: {error}"))?;
    let result = show(&mut terminal, options, &orders, &inbox);
    ratatui::restore();
    result.map_err(|error| format!("terminal: {error}"))
}

fn lock(orders: &Mutex<Orders>) -> std::sync::MutexGuard<'_, Orders> {
    orders
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Looks at all servers once per interval, until nobody listens.
fn fetch_always(
    fetcher: &Fetcher,
    orders: &Mutex<Orders>,
    interval: Duration,
    news: &Sender<News>,
) {
    loop {
        let began = Instant::now();
        let (servers, wanted, cluster, lookup) = {
            let orders = lock(orders);
            (
                orders.servers.clone(),
                orders.wanted.clone(),
                orders.cluster,
                orders.lookup,
            )
        };
        let looks: Vec<_> = servers
            .iter()
            .map(|server| fetcher.look(server, &wanted))
            .collect();
        if cluster {
            let found = fetcher.discover(&looks);
            lock(orders).servers.extend(found);
        }
        if lookup {
            let mut names = HashMap::new();
            for look in &looks {
                let mut watched = Watched::default();
                watched.update(look.clone());
                names.extend(look_up(&watched));
            }
            if news.send(News::Names(names)).is_err() {
                return;
            }
        }
        if news.send(News::Looked(looks)).is_err() {
            return;
        }
        std::thread::sleep(interval.saturating_sub(began.elapsed()));
    }
}

fn show(
    terminal: &mut ratatui::DefaultTerminal,
    options: &TopOptions,
    orders: &Mutex<Orders>,
    inbox: &Receiver<News>,
) -> std::io::Result<()> {
    let mut servers: Vec<Watched> = Vec::new();
    let mut screen = Screen {
        view: View {
            raw_bytes: options.raw_bytes,
            subscriptions: options.subscriptions,
            filter: options.filter.clone(),
            ..View::default()
        },
        sort: options.sort.clone(),
        limit: options.limit,
        colours: options.colours,
        page: if options.servers.len() > 1 || options.cluster {
            Page::Servers
        } else {
            Page::Connections
        },
        ..Screen::default()
    };
    let mut refreshes = 0;
    let mut changed = true;
    loop {
        while let Ok(news) = inbox.try_recv() {
            match news {
                News::Names(names) => screen.view.names = names,
                News::Looked(looks) => {
                    refreshes += 1;
                    if !screen.frozen {
                        servers.resize_with(looks.len().max(servers.len()), Watched::default);
                        for (watched, look) in servers.iter_mut().zip(looks) {
                            watched.update(look);
                        }
                        changed = true;
                    }
                }
            }
        }
        if changed {
            terminal.draw(|f| draw(f, &servers, &screen))?;
            changed = false;
        }
        if options.refreshes.is_some_and(|most| refreshes >= most) {
            return Ok(());
        }
        // Keys are answered at once, news within a tenth of a second.
        if event::poll(Duration::from_millis(100))? {
            changed = true;
            if let Event::Key(key) = event::read()?
                && key.kind == KeyEventKind::Press
                && !handle_key(key, &mut screen, servers.len(), orders)
            {
                return Ok(());
            }
        }
    }
}

/// False: quit.
fn handle_key(key: KeyEvent, screen: &mut Screen, servers: usize, orders: &Mutex<Orders>) -> bool {
    if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
        return false;
    }
    if screen.prompt.is_some() {
        type_key(key, screen, orders);
        return true;
    }
    screen.message.clear();
    match key.code {
        KeyCode::Char('q') => return false,
        KeyCode::Char('?' | 'h') => screen.help = !screen.help,
        KeyCode::Esc => screen.help = false,
        KeyCode::Char(digit @ '1'..='5') => {
            screen.page = Page::ALL[digit as usize - '1' as usize].0;
            screen.scroll = 0;
        }
        KeyCode::Tab => screen.selected = (screen.selected + 1) % servers.max(1),
        KeyCode::Char('o') => screen.prompt = Some(("sort by", String::new())),
        KeyCode::Char('n') => screen.prompt = Some(("number of connections", String::new())),
        KeyCode::Char('/') => screen.prompt = Some(("show what holds", String::new())),
        KeyCode::Char('s') => {
            screen.view.subscriptions = !screen.view.subscriptions;
            lock(orders).wanted.subscriptions = screen.view.subscriptions;
        }
        KeyCode::Char('d') => {
            let mut orders = lock(orders);
            orders.lookup = !orders.lookup;
            screen.view.names.clear();
        }
        KeyCode::Char('c') => {
            let mut orders = lock(orders);
            orders.cluster = !orders.cluster;
            screen.page = Page::Servers;
        }
        KeyCode::Char('b') => screen.view.raw_bytes = !screen.view.raw_bytes,
        KeyCode::Char(' ') => screen.view.rates = !screen.view.rates,
        KeyCode::Char('f') => screen.frozen = !screen.frozen,
        KeyCode::Up => screen.scroll = screen.scroll.saturating_sub(1),
        KeyCode::Down => screen.scroll += 1,
        KeyCode::PageUp => screen.scroll = screen.scroll.saturating_sub(20),
        KeyCode::PageDown => screen.scroll += 20,
        KeyCode::Home => screen.scroll = 0,
        _ => {}
    }
    true
}

/// A key while a line is being typed.
fn type_key(key: KeyEvent, screen: &mut Screen, orders: &Mutex<Orders>) {
    let Some((question, answer)) = &mut screen.prompt else {
        return;
    };
    match key.code {
        KeyCode::Esc => screen.prompt = None,
        KeyCode::Backspace => drop(answer.pop()),
        KeyCode::Char(letter) => answer.push(letter),
        KeyCode::Enter => {
            let (question, answer) = (*question, std::mem::take(answer));
            screen.prompt = None;
            accept(question, &answer, screen, orders);
        }
        _ => {}
    }
}

fn accept(question: &str, answer: &str, screen: &mut Screen, orders: &Mutex<Orders>) {
    match question {
        "sort by" if SORT_KEYS.contains(&answer) => {
            screen.sort = answer.to_owned();
            lock(orders).wanted.sort = answer.to_owned();
        }
        "sort by" => screen.message = format!("{answer:?} is no sort key"),
        "show what holds" => {
            screen.view.filter = answer.to_owned();
            screen.scroll = 0;
        }
        _ => match answer.parse::<usize>() {
            Ok(limit) if limit > 0 => {
                screen.limit = limit;
                lock(orders).wanted.limit = limit;
            }
            _ => screen.message = format!("{answer:?} is no number of connections"),
        },
    }
}
