//! The streaming engine's thread: between its NATS connection, its store and the clock.
//!
//! A turn: wait for messages, for the disk or for a deadline; hand everything that came to the engine;
//! end the turn, which flushes the store once for all of it; write what the engine has to say.

use super::nats_client::{NatsClient, OUTPUT_BYTES_MAX};
use crate::config::Options;
use crate::config::route_url::RouteUrl;
use crate::config::streaming::{ChannelLimitOptions, StoreKind, StreamingOptions};
use crate::stan::engine::{Engine, Settings};
use crate::stan::report::Report;
use crate::stan::store::file::{FileOptions, FileStore, Wake};
use crate::stan::store::memory::MemoryStore;
use crate::stan::store::{ChannelLimits, LimitsOf, Recovered, Store};
use crate::subject::token;
use crate::util::random::Random;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Messages handed over before a turn ends: what one group commit can hold.
const TURN_BYTES_MAX: usize = 4 << 20;
const RECONNECT_EVERY: Duration = Duration::from_millis(250);
const MAINTAIN_EVERY: Duration = Duration::from_secs(1);
const REPORT_TIME_MAX: Duration = Duration::from_secs(5);

enum Ask {
    Report(Sender<Report>),
    Stop,
}

/// A running engine, seen from elsewhere.
pub struct Streaming {
    asks: Sender<Ask>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    pub options: StreamingOptions,
    /// New at each start.
    pub server_id: String,
}

impl Streaming {
    /// Recovers the store and begins to serve. `attach` hands the other end of a pair of sockets to
    /// a loop.
    pub fn start(options: &Options, attach: impl FnOnce(OwnedFd)) -> Result<Self, String> {
        let streaming = &options.streaming;
        let mut random = Random::from_entropy();
        let server_id = random.id();
        log::info!(
            "STREAM: Starting nats-streaming-server[{}] version {}",
            streaming.cluster_id,
            crate::STREAMING_VERSION
        );
        log::info!("STREAM: ServerID: {server_id}");
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .map_err(|error| format!("eventfd: {error}"))?;
        let event = Arc::new(event);
        let ring = event.clone();
        // The counter cannot overflow: every wake-up empties it.
        let wake: Wake = Arc::new(move || {
            let _ = ring.write(1);
        });
        log::info!("STREAM: Recovering the state...");
        let clock = Clock::new();
        let limits_of = limits_of(streaming);
        let engine = match streaming.store {
            StoreKind::Memory => {
                let store: Box<dyn Store> = Box::new(MemoryStore::new(limits_of));
                (store, Recovered::default())
            }
            StoreKind::File => {
                let file = FileOptions::new(&streaming.file);
                let root = Path::new(&streaming.dir);
                let (store, recovered) = FileStore::open(root, file, limits_of, &wake)
                    .map_err(|error| error.to_string())?;
                (Box::new(store) as Box<dyn Store>, recovered)
            }
        };
        let (store, recovered) = engine;
        let found = recovered.server.is_some();
        let engine = Engine::new(settings(streaming), store, recovered, random, clock.now())
            .map_err(|error| error.to_string())?;
        match found {
            true => log::info!("STREAM: Recovered {} channel(s)", engine.channel_count()),
            false => log::info!("STREAM: No recovered state"),
        }
        tell_limits(streaming);
        let name = format!("_NSS-{}-send", streaming.cluster_id);
        let urls = urls(&streaming.nats_server)?;
        let client = if urls.is_empty() {
            let (ours, theirs) = UnixStream::pair().map_err(|error| format!("sockets: {error}"))?;
            attach(theirs.into());
            NatsClient::own(ours, &name).map_err(|error| format!("sockets: {error}"))?
        } else {
            NatsClient::connect(&urls, &name)?
        };
        let (asks, queue) = channel();
        let mut host = Host {
            engine,
            client,
            urls,
            name,
            event: event.clone(),
            asks: queue,
            clock,
            maintained_at: Instant::now(),
        };
        let now = host.clock.now();
        host.engine.start(host.client.output(), now);
        let thread = std::thread::Builder::new()
            .name("streaming".into())
            .spawn(move || host.run())
            .map_err(|error| format!("streaming thread: {error}"))?;
        Ok(Self {
            asks,
            wake: event,
            thread: Some(thread),
            options: streaming.clone(),
            server_id,
        })
    }

    /// What monitoring shows; None when the engine does not answer.
    pub fn report(&self) -> Option<Report> {
        let (reply, answer) = channel();
        self.asks.send(Ask::Report(reply)).ok()?;
        let _ = self.wake.write(1);
        answer.recv_timeout(REPORT_TIME_MAX).ok()
    }

    /// Everything to the disk, and the end.
    pub fn stop(&mut self) {
        let _ = self.asks.send(Ask::Stop);
        let _ = self.wake.write(1);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("STREAM: the engine ended by a panic");
        }
    }

    pub fn limits(&self, channel: &str) -> ChannelLimits {
        limits_of(&self.options)(channel)
    }
}

/// Nanoseconds since the epoch that never go back while the process lives.
struct Clock {
    began: Instant,
    epoch: i64,
}

impl Clock {
    fn new() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            began: Instant::now(),
            epoch: wall.map_or(0, |since| since.as_nanos() as i64),
        }
    }

    fn now(&self) -> i64 {
        self.epoch + self.began.elapsed().as_nanos() as i64
    }
}

struct Host {
    engine: Engine,
    client: NatsClient,
    /// Of another NATS server; empty: our own.
    urls: Vec<RouteUrl>,
    name: String,
    event: Arc<EventFd>,
    asks: Receiver<Ask>,
    clock: Clock,
    maintained_at: Instant,
}

impl Host {
    fn run(mut self) {
        loop {
            self.wait();
            if self.answer_asks() {
                break;
            }
            if let Err(error) = self.turn() {
                log::error!(
                    "STREAM: connection {:?} has been disconnected: {error}",
                    self.name
                );
                if self.urls.is_empty() || !self.reconnect() {
                    break;
                }
            }
        }
        self.engine.close();
        log::info!("STREAM: Shutting down.");
    }

    fn wait(&self) {
        let mut flags = PollFlags::empty();
        if self.reads() {
            flags |= PollFlags::POLLIN;
        }
        if self.client.has_output() {
            flags |= PollFlags::POLLOUT;
        }
        let mut fds = [
            PollFd::new(self.client.fd(), flags),
            PollFd::new(self.event.as_fd(), PollFlags::POLLIN),
        ];
        let maintain = MAINTAIN_EVERY.saturating_sub(self.maintained_at.elapsed());
        let due = self.engine.next_deadline().map_or(maintain, |at| {
            Duration::from_nanos(at.saturating_sub(self.clock.now()).max(0) as u64)
        });
        // Rounded up, so that the deadline has come when the wait is over.
        let millis = due.min(maintain).as_micros().div_ceil(1000) as u16;
        let _ = poll(&mut fds, PollTimeout::from(millis));
        let _ = self.event.read();
    }

    /// Back-pressure: with much output waiting nothing more is read.
    fn reads(&self) -> bool {
        self.client.output_len() < OUTPUT_BYTES_MAX
    }

    fn turn(&mut self) -> std::io::Result<()> {
        let mut bytes = 0;
        while self.reads() && bytes < TURN_BYTES_MAX {
            let now = self.clock.now();
            let engine = &mut self.engine;
            let read = self.client.receive(|incoming, output| {
                engine.handle_message(
                    incoming.inlet,
                    incoming.subject,
                    incoming.reply,
                    incoming.payload,
                    now,
                    output,
                );
            })?;
            if read == 0 {
                break;
            }
            bytes += read;
        }
        let now = self.clock.now();
        self.engine.handle_timeouts(now, self.client.output());
        if let Err(error) = self.engine.end_turn(now, self.client.output()) {
            // What the disk has is not known any more; nothing may be acknowledged on top of that.
            log::error!(target: crate::logging::FATAL, "STREAM: {error}");
            crate::logging::flush();
            std::process::exit(2);
        }
        if self.maintained_at.elapsed() >= MAINTAIN_EVERY {
            self.maintained_at = Instant::now();
            self.engine.maintain(now);
        }
        self.client.flush()
    }

    /// True: stop.
    fn answer_asks(&mut self) -> bool {
        while let Ok(ask) = self.asks.try_recv() {
            match ask {
                // Whoever asked may have given up.
                Ask::Report(reply) => drop(reply.send(self.engine.report())),
                Ask::Stop => return true,
            }
        }
        false
    }

    /// Tries until the server is back; false when told to stop meanwhile.
    fn reconnect(&mut self) -> bool {
        loop {
            std::thread::sleep(RECONNECT_EVERY);
            if self.answer_asks() {
                return false;
            }
            if let Ok(client) = NatsClient::connect(&self.urls, &self.name) {
                log::info!(
                    "STREAM: connection {:?} reconnected to NATS Server",
                    self.name
                );
                self.client = client;
                let now = self.clock.now();
                self.engine.start(self.client.output(), now);
                return true;
            }
        }
    }
}

fn settings(options: &StreamingOptions) -> Settings {
    Settings {
        cluster_id: options.cluster_id.clone(),
        discover_prefix: options.discover_prefix.clone(),
        max_channels: options.max_channels as usize,
        heartbeat_interval: options.heartbeat_interval.as_nanos() as i64,
        heartbeat_timeout: options.heartbeat_timeout.as_nanos() as i64,
        heartbeat_failures: u32::try_from(options.heartbeat_failures.max(0)).unwrap_or(u32::MAX),
        replace_durable: options.replace_durable,
        debug: options.debug,
    }
}

/// One URL, or a list parted by commas; empty: none.
fn urls(text: &str) -> Result<Vec<RouteUrl>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    if !text.contains("://") {
        return Err(format!("malformed url: {text}"));
    }
    text.split(',')
        .map(|url| RouteUrl::parse(url.trim()))
        .collect()
}

/// Limits of a channel: those of all channels, then every entry that matches its name, from the widest to
/// the narrowest; what an entry does not say it takes from the one before.
pub fn limits_of(options: &StreamingOptions) -> LimitsOf {
    let (defaults, channels) = (options.limits, options.channels.clone());
    Box::new(move |name| {
        let mut matching: Vec<(&String, &ChannelLimitOptions)> = channels
            .iter()
            .filter(|(pattern, _)| token::pattern_matches(pattern.as_bytes(), name.as_bytes()))
            .collect();
        matching.sort_by_key(|(pattern, _)| width(pattern));
        let mut limits = defaults;
        for (_, own) in matching {
            limits.max_subscriptions = own.max_subscriptions.or(limits.max_subscriptions);
            limits.max_msgs = own.max_msgs.or(limits.max_msgs);
            limits.max_bytes = own.max_bytes.or(limits.max_bytes);
            limits.max_age = own.max_age.or(limits.max_age);
            limits.max_inactivity = own.max_inactivity.or(limits.max_inactivity);
        }
        // Negative is no limit, as 0 is.
        let count = |limit: Option<i64>| limit.unwrap_or(0).max(0);
        ChannelLimits {
            subscriptions: count(limits.max_subscriptions) as u64,
            messages: count(limits.max_msgs) as u64,
            bytes: count(limits.max_bytes) as u64,
            age: count(limits.max_age),
            inactivity: count(limits.max_inactivity),
        }
    })
}

/// Sorts patterns from wide to narrow, token by token.
fn width(pattern: &str) -> Vec<u8> {
    let rank = |token: &str| match token {
        ">" => 0,
        "*" => 1,
        _ => 2,
    };
    pattern.split('.').map(rank).collect()
}

/// The original's table of limits.
fn tell_limits(options: &StreamingOptions) {
    let default = StreamingOptions::default();
    let line = |name: &str, value: String, is_default: bool| {
        let mark = if is_default { " *" } else { "" };
        log::info!("STREAM: {name}{value:>13}{mark}");
    };
    let count = |limit: i64| match limit {
        0 => "unlimited".to_owned(),
        limit => limit.to_string(),
    };
    let period = |nanos: i64| match nanos {
        0 => "unlimited".to_owned(),
        nanos => format!("{:?}", Duration::from_nanos(nanos as u64)),
    };
    let kind = match options.store {
        StoreKind::Memory => "MEMORY",
        StoreKind::File => "FILE",
    };
    log::info!("STREAM: Message store is {kind}");
    if !options.dir.is_empty() {
        log::info!("STREAM: Store location: {}", options.dir);
    }
    log::info!("STREAM: ---------- Store Limits ----------");
    let same = options.max_channels == default.max_channels;
    line("Channels:        ", count(options.max_channels), same);
    log::info!("STREAM: --------- Channels Limits --------");
    let (own, usual) = (&options.limits, &default.limits);
    let get = |limit: Option<i64>| limit.unwrap_or(0);
    line(
        "  Subscriptions: ",
        count(get(own.max_subscriptions)),
        own.max_subscriptions == usual.max_subscriptions,
    );
    line(
        "  Messages     : ",
        count(get(own.max_msgs)),
        own.max_msgs == usual.max_msgs,
    );
    line(
        "  Bytes        : ",
        bytes(get(own.max_bytes)),
        own.max_bytes == usual.max_bytes,
    );
    line(
        "  Age          : ",
        period(get(own.max_age)),
        own.max_age == usual.max_age,
    );
    line(
        "  Inactivity   : ",
        period(get(own.max_inactivity)),
        own.max_inactivity == usual.max_inactivity,
    );
}

fn bytes(limit: i64) -> String {
    let (mut value, mut unit) = (limit as f64, 0);
    while value >= 1024.0 && unit < 4 {
        value /= 1024.0;
        unit += 1;
    }
    match (limit, unit) {
        (0, _) => "unlimited".to_owned(),
        (limit, 0) => format!("{limit} B"),
        _ => format!("{value:.2} {}", ["B", "KB", "MB", "GB", "TB"][unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_inherited_from_wide_to_narrow() {
        let mut options = StreamingOptions::default();
        let own = |msgs, bytes| ChannelLimitOptions {
            max_msgs: msgs,
            max_bytes: bytes,
            ..ChannelLimitOptions::default()
        };
        options
            .channels
            .insert("foo.>".into(), own(Some(5), Some(100)));
        options.channels.insert("foo.*".into(), own(Some(4), None));
        options
            .channels
            .insert("foo.bar".into(), own(Some(0), None));
        options
            .channels
            .insert("*.bar".into(), own(Some(9), Some(9)));
        let limits = limits_of(&options);
        let get = |name| (limits(name).messages, limits(name).bytes);
        assert_eq!(get("foo.bar"), (0, 100));
        assert_eq!(get("foo.baz"), (4, 100));
        assert_eq!(get("foo.a.b"), (5, 100));
        assert_eq!(get("x.bar"), (9, 9));
        assert_eq!(get("other"), (1_000_000, 1_024_000_000));
    }

    #[test]
    fn sizes_are_shown_as_the_original_does() {
        assert_eq!(bytes(1_024_000_000), "976.56 MB");
        assert_eq!((bytes(60), bytes(0)), ("60 B".into(), "unlimited".into()));
    }
}
