//! The screen that follows the servers: keys and news in, frames out.

use super::draw::{Screen, draw};
use super::fetch::{Ask, Client, ConnectionsAsk};
use super::fleet::Fleet;
use super::help;
use super::names::{Names, Resolver};
use super::options::{Address, Options, SERVER_SORT_KEYS, View, check_sort};
use super::poll::{News, Poller, probe};
use super::rows::Style;
use super::run::server_key;
use crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use ratatui::layout::Rect;
use std::collections::HashMap;
use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

/// News are shown this soon.
const TICK: Duration = Duration::from_millis(50);
const PAGE_LINES: usize = 20;
/// Within it the screen ends when it is asked to. Who reads keys of a terminal that is gone does not come back from
/// that, and who writes to one that is stopped may wait for long.
const END_GRACE: Duration = Duration::from_secs(3);

pub fn follow(client: Client, options: &Options) -> Result<(), String> {
    let asked_to_end = end_from_outside().map_err(|error| format!("signals: {error}"))?;
    let mut app = App::new(client, options);
    let mut terminal = ratatui::try_init().map_err(|error| format!("terminal: {error}"))?;
    let result = app.run(&mut terminal, &asked_to_end);
    ratatui::restore();
    result.map_err(|error| format!("terminal: {error}"))
}

/// Ends that come from outside leave the terminal in order as well: signals, and the end of the terminal
/// itself, of which no signal tells where somebody before us ignores SIGHUP, as `nohup` does.
fn end_from_outside() -> nix::Result<Arc<AtomicBool>> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
        signals.add(signal);
    }
    signals.thread_block()?;
    let asked = Arc::new(AtomicBool::new(false));
    end_after(&asked, move || signals.wait().is_ok());
    if let Some(terminal) = terminal() {
        end_after(&asked, move || has_gone(&terminal));
    }
    Ok(asked)
}

/// Asks for the end once `wait` says so, and sees to it that it comes.
fn end_after(asked: &Arc<AtomicBool>, wait: impl FnOnce() -> bool + Send + 'static) {
    let asked = asked.clone();
    std::thread::spawn(move || {
        if wait() {
            asked.store(true, SeqCst);
            std::thread::sleep(END_GRACE);
            // This much can be done without writing to it.
            let _ = crossterm::terminal::disable_raw_mode();
            std::process::exit(1);
        }
    });
}

/// Where keys come from.
fn terminal() -> Option<OwnedFd> {
    let stdin = std::io::stdin();
    match stdin.is_terminal() {
        true => stdin.as_fd().try_clone_to_owned().ok(),
        false => File::open("/dev/tty").ok().map(OwnedFd::from),
    }
}

/// Waits for the other end of the terminal to be closed; false: there is no way to tell.
fn has_gone(terminal: &OwnedFd) -> bool {
    loop {
        // That it has gone is told unasked.
        let mut asked = [PollFd::new(terminal.as_fd(), PollFlags::empty())];
        match poll(&mut asked, PollTimeout::NONE) {
            Ok(_) => return asked[0].revents() != Some(PollFlags::POLLNVAL),
            Err(nix::Error::EINTR) => {}
            Err(_) => return false,
        }
    }
}

struct App {
    client: Client,
    interval: Duration,
    refreshes_max: Option<u64>,
    cluster: bool,
    lookup: bool,
    fleet: Fleet,
    pollers: HashMap<Address, Poller>,
    resolver: Resolver,
    news: Receiver<News>,
    tell: Sender<News>,
    screen: Screen,
    /// Of the terminal, when it was last drawn on.
    area: Rect,
    ask: Ask,
    started: Instant,
    /// Looks at the first server.
    refreshes: u64,
}

impl App {
    fn new(client: Client, options: &Options) -> Self {
        let (tell, news) = mpsc::channel();
        let names = tell.clone();
        let mut app = Self {
            client,
            interval: options.interval,
            refreshes_max: options.refreshes_max,
            cluster: options.cluster,
            lookup: options.lookup,
            fleet: Fleet::new(&options.servers),
            pollers: HashMap::new(),
            resolver: Resolver::start(move |ip, name| names.send(News::Name(ip, name)).is_ok()),
            news,
            tell,
            screen: Screen {
                view: options.view,
                look: Style {
                    raw: options.raw,
                    rates: false,
                    subscriptions: options.subscriptions,
                    filter: options.filter.clone(),
                },
                sort: options.sort.clone(),
                limit: options.limit,
                colour: options.colour,
                ascii: options.ascii,
                ..Screen::default()
            },
            area: Rect::default(),
            ask: Ask::default(),
            started: Instant::now(),
            refreshes: 0,
        };
        app.ask = app.wanted();
        for address in &options.servers {
            app.poll(address.clone());
        }
        app
    }

    /// What the view shows is asked for, and no more.
    fn wanted(&self) -> Ask {
        let screen = &self.screen;
        let connections = ConnectionsAsk {
            limit: screen.limit,
            sort: server_key(&screen.sort).into(),
            subscriptions: screen.look.subscriptions || !screen.look.filter.is_empty(),
        };
        Ask {
            connections: (screen.view == View::Connections).then_some(connections),
            routes: self.cluster,
            streaming: matches!(screen.view, View::Channels | View::Clients),
            closed: screen.view == View::Slow,
        }
    }

    fn poll(&mut self, address: Address) {
        let poller = Poller::start(
            self.client.clone(),
            address.clone(),
            self.ask.clone(),
            self.interval,
            self.tell.clone(),
        );
        self.pollers.insert(address, poller);
    }

    fn run(
        &mut self,
        terminal: &mut ratatui::DefaultTerminal,
        asked_to_end: &AtomicBool,
    ) -> std::io::Result<()> {
        let mut changed = true;
        loop {
            changed |= self.take_news();
            if changed {
                let frame = terminal.draw(|f| draw(f, &self.fleet, &self.screen))?;
                self.area = frame.area;
                changed = false;
            }
            let done = self
                .refreshes_max
                .is_some_and(|most| self.refreshes >= most);
            if done || asked_to_end.load(SeqCst) {
                return Ok(());
            }
            if !event::poll(TICK)? {
                continue;
            }
            match event::read()? {
                Event::Key(key) if key.kind == KeyEventKind::Press => {
                    if !self.handle_key(key) {
                        return Ok(());
                    }
                    self.ask_anew();
                    changed = true;
                }
                Event::Resize(..) => changed = true,
                _ => {}
            }
        }
    }

    /// True: there is something new to see.
    fn take_news(&mut self) -> bool {
        let mut changed = false;
        while let Ok(news) = self.news.try_recv() {
            match news {
                News::Look(address, look) => {
                    let first = self.fleet.servers.first();
                    self.refreshes += u64::from(first.is_some_and(|seen| seen.address == address));
                    if self.screen.frozen {
                        continue;
                    }
                    if let Ok(answer) = &*look
                        && self.lookup
                    {
                        self.screen.names.want_all(answer.connz.as_ref());
                    }
                    let clock = self.started.elapsed().as_secs_f64();
                    self.fleet.take(&address, *look, clock);
                }
                News::Found(address, id) => {
                    if self.fleet.admit(address.clone(), id.as_deref()) {
                        self.poll(address);
                    }
                }
                News::Name(ip, name) => self.screen.names.set(ip, name),
            }
            changed = true;
        }
        for ip in self.screen.names.take_wanted() {
            self.resolver.look_up(ip);
        }
        if self.cluster && changed {
            for address in self.fleet.candidates(Instant::now()) {
                probe(self.client.clone(), address, self.tell.clone());
            }
        }
        changed
    }

    fn ask_anew(&mut self) {
        let ask = self.wanted();
        if ask != self.ask {
            self.pollers
                .values()
                .for_each(|poller| poller.ask(ask.clone()));
            self.ask = ask;
        }
    }

    /// False: quit.
    fn handle_key(&mut self, key: KeyEvent) -> bool {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return key.code != KeyCode::Char('c');
        }
        if self.screen.prompt.is_some() {
            self.type_key(key.code);
            return true;
        }
        if self.screen.help {
            self.read_help(key.code);
            return true;
        }
        let servers = self.fleet.servers.len();
        let screen = &mut self.screen;
        screen.message.clear();
        match key.code {
            KeyCode::Char('q') => return false,
            KeyCode::Char('?' | 'h') => (screen.help, screen.help_scroll) = (true, 0),
            KeyCode::Char(digit @ '1'..='6') => {
                screen.view = View::ALL[digit as usize - '1' as usize];
                (screen.scroll, screen.sorted_by) = (0, None);
            }
            KeyCode::Tab => screen.selected = next_server(screen.selected, servers),
            KeyCode::Char('o') => screen.prompt = Some(("sort by", String::new())),
            KeyCode::Char('n') => screen.prompt = Some(("number of connections", String::new())),
            KeyCode::Char('/') => screen.prompt = Some(("only what has", String::new())),
            KeyCode::Char('<') => self.sort_beside(-1),
            KeyCode::Char('>') => self.sort_beside(1),
            KeyCode::Char('s') => screen.look.subscriptions = !screen.look.subscriptions,
            KeyCode::Char('d') => {
                self.lookup = !self.lookup;
                screen.names = Names::default();
            }
            KeyCode::Char('c') => {
                self.cluster = !self.cluster;
                screen.view = View::Cluster;
            }
            KeyCode::Char('b') => screen.look.raw = !screen.look.raw,
            KeyCode::Char(' ') => screen.look.rates = !screen.look.rates,
            KeyCode::Char('f') => screen.frozen = !screen.frozen,
            KeyCode::Up => screen.scroll = screen.scroll.saturating_sub(1),
            KeyCode::Down => screen.scroll += 1,
            KeyCode::PageUp => screen.scroll = screen.scroll.saturating_sub(PAGE_LINES),
            KeyCode::PageDown => screen.scroll += PAGE_LINES,
            KeyCode::Home => screen.scroll = 0,
            _ => {}
        }
        self.bound_scroll();
        true
    }

    /// A key while the help is shown: it goes, unless there is more of it to see.
    fn read_help(&mut self, key: KeyCode) {
        let most = help::scroll_max(self.area);
        let screen = &mut self.screen;
        match key {
            KeyCode::Up if most > 0 => screen.help_scroll = screen.help_scroll.saturating_sub(1),
            KeyCode::Down if most > 0 => screen.help_scroll = most.min(screen.help_scroll + 1),
            _ => screen.help = false,
        }
    }

    fn bound_scroll(&mut self) {
        if self.screen.scroll > 0 {
            let last = self.screen.table(&self.fleet).rows.len().saturating_sub(1);
            self.screen.scroll = self.screen.scroll.min(last);
        }
    }

    /// Sorts by the next column in this direction.
    fn sort_beside(&mut self, step: isize) {
        let table = self.screen.table(&self.fleet);
        let count = table.columns.len() as isize;
        if self.screen.view != View::Connections {
            let from = self
                .screen
                .sorted_by
                .map_or(-step.min(0), |at| at as isize + step);
            self.screen.sorted_by = Some(from.rem_euclid(count) as usize);
            return;
        }
        let mut at = table.column_of(&self.screen.sort).unwrap_or(0) as isize;
        // Columns without a key are no order.
        for _ in 0..count {
            at = (at + step).rem_euclid(count);
            let key = table.columns[at as usize].key;
            if check_sort(key).is_ok() {
                self.screen.sort = key.into();
                return;
            }
        }
    }

    /// A key while a line is being typed.
    fn type_key(&mut self, key: KeyCode) {
        let Some((question, answer)) = &mut self.screen.prompt else {
            return;
        };
        match key {
            KeyCode::Esc => self.screen.prompt = None,
            KeyCode::Backspace => drop(answer.pop()),
            KeyCode::Char(letter) => answer.push(letter),
            KeyCode::Enter => {
                let (question, answer) = (*question, std::mem::take(answer));
                self.screen.prompt = None;
                self.accept(question, answer);
            }
            _ => {}
        }
    }

    fn accept(&mut self, question: &str, answer: String) {
        let screen = &mut self.screen;
        match question {
            "sort by" => match check_sort(&answer) {
                Ok(()) => screen.sort = answer,
                Err(error) => {
                    screen.message = format!("{error}; try {}", SERVER_SORT_KEYS.join(" "));
                }
            },
            "only what has" => (screen.look.filter, screen.scroll) = (answer, 0),
            _ => match answer.parse::<i64>() {
                Ok(limit) if limit > 0 => screen.limit = limit,
                _ => screen.message = format!("{answer:?} is no number of connections"),
            },
        }
    }
}

/// All, then one after the other, then all again.
fn next_server(selected: Option<usize>, servers: usize) -> Option<usize> {
    match selected {
        _ if servers < 2 => None,
        None => Some(0),
        Some(at) => Some(at + 1).filter(|next| *next < servers),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tab_goes_round() {
        let mut at = None;
        let mut seen = Vec::new();
        for _ in 0..4 {
            at = next_server(at, 2);
            seen.push(at);
        }
        assert_eq!(seen, [Some(0), Some(1), None, Some(0)]);
        assert_eq!(next_server(None, 1), None);
    }
}
