//! The streaming engine's thread: between its NATS connection, its store and the clock.
//!
//! A turn: wait for messages, for the disk or for a deadline; hand everything that came to the engine;
//! end the turn, which flushes the store once for all of it; write what the engine has to say.

use super::nats_client::{NatsClient, OUTPUT_BYTES_MAX, Terms};
use super::nats_login::NatsUrl;
use crate::config::Options;
use crate::config::streaming::{CHANNEL_MARK, ChannelLimitOptions, StoreKind, StreamingOptions};
use crate::stan::engine::{DeadLetterRule, DeadLetters, Engine, Settings};
use crate::stan::outlet::{Inlet, Outlet};
use crate::stan::pb;
use crate::stan::report::Report;
use crate::stan::store::file::{FileOptions, FileStore, Wake};
use crate::stan::store::memory::MemoryStore;
use crate::stan::store::{ChannelLimits, LimitsOf, Recovered, Store};
use crate::subject::token;
use crate::util::random::Random;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use prost::Message;
use std::collections::BTreeMap;
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
/// How long another server of the same cluster ID has to answer at the start.
const PROBE_TIME: Duration = Duration::from_millis(250);
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
        let engine = Engine::new(settings(options), store, recovered, random, clock.now())
            .map_err(|error| error.to_string())?;
        match found {
            true => log::info!("STREAM: Recovered {} channel(s)", engine.channel_count()),
            false => log::info!("STREAM: No recovered state"),
        }
        tell_limits(streaming);
        let terms = terms(options);
        let urls = urls(&streaming.nats_server)?;
        let mut client = if urls.is_empty() {
            let (ours, theirs) = UnixStream::pair().map_err(|error| format!("sockets: {error}"))?;
            attach(theirs.into());
            NatsClient::own(ours, &terms.name).map_err(|error| format!("sockets: {error}"))?
        } else {
            NatsClient::connect(&urls, &terms)?
        };
        // Two of one name on one network would both serve every request.
        if !urls.is_empty() || options.cluster.port != 0 {
            look_for_another(&mut client, engine.info())?;
        }
        let (asks, queue) = channel();
        let mut host = Host {
            engine,
            client,
            urls,
            terms,
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
        log::info!("STREAM: Streaming Server is ready");
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

/// Fails when somebody answers to our cluster ID already.
fn look_for_another(client: &mut NatsClient, info: &pb::ServerInfo) -> Result<(), String> {
    const ANSWERS: Inlet = Inlet(99);
    let inbox = format!("_INBOX.{}", Random::from_entropy().id());
    // Without a heartbeat inbox it is refused, so it leaves no trace there.
    let request = pb::ConnectRequest {
        client_id: info.cluster_id.clone(),
        ..pb::ConnectRequest::default()
    };
    let output = client.output();
    output.subscribe(ANSWERS, &inbox);
    output.publish(&info.discovery, Some(&inbox), &request.encode_to_vec());
    let failed = |error: std::io::Error| format!("connection to NATS: {error}");
    let until = Instant::now() + PROBE_TIME;
    let mut answered = false;
    while !answered && Instant::now() < until {
        client.flush().map_err(failed)?;
        let read = client.receive(|incoming, _| {
            answered |= incoming.inlet == ANSWERS
                && incoming.headers.is_empty()
                && pb::ConnectResponse::decode(incoming.payload).is_ok();
        });
        if read.map_err(failed)? == 0 {
            // Too late is what is hoped for.
            let _ = client.wait_for(PollFlags::POLLIN, until, "another server");
        }
    }
    client.output().unsubscribe(ANSWERS);
    match answered {
        true => Err(format!(
            "discovered another streaming server with cluster ID {:?}",
            info.cluster_id
        )),
        false => Ok(()),
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
    urls: Vec<NatsUrl>,
    terms: Terms,
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
                    self.terms.name
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
        for violation in self.client.take_violations() {
            log::error!("STREAM: NATS server: {violation}");
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
            if let Ok(client) = NatsClient::connect(&self.urls, &self.terms) {
                log::info!(
                    "STREAM: connection {:?} reconnected to NATS Server",
                    self.terms.name
                );
                self.client = client;
                let now = self.clock.now();
                self.engine.start(self.client.output(), now);
                return true;
            }
        }
    }
}

fn settings(all: &Options) -> Settings {
    let options = &all.streaming;
    // Another server's authorization is not known here.
    let authorized = options.nats_server.is_empty() && asks_for_credentials(all);
    Settings {
        cluster_id: options.cluster_id.clone(),
        discover_prefix: options.discover_prefix.clone(),
        max_channels: options.max_channels as usize,
        heartbeat_interval: options.heartbeat_interval.as_nanos() as i64,
        heartbeat_timeout: options.heartbeat_timeout.as_nanos() as i64,
        heartbeat_failures: u32::try_from(options.heartbeat_failures.max(0)).unwrap_or(u32::MAX),
        replace_durable: options.replace_durable,
        debug: options.debug,
        admin: options.admin.unwrap_or(authorized),
        dead_letters: dead_letters(options),
    }
}

/// Whether nobody gets in without credentials.
fn asks_for_credentials(options: &Options) -> bool {
    let known =
        !options.user.is_empty() || !options.token.0.is_empty() || !options.users.is_empty();
    known && options.no_auth_user.is_empty()
}

/// How another NATS server is connected to. Credentials of our own clients are ours there too, unless the
/// streaming part has some of its own.
fn terms(all: &Options) -> Terms {
    let options = &all.streaming;
    let mut credentials = options.nats_credentials.clone();
    if credentials == Default::default() {
        credentials.user = all.user.clone();
        credentials.password = all.password.clone();
        credentials.token = all.token.clone();
    }
    let mut tls = options.nats_tls.clone();
    // As the original has it: `secure` alone asks for encryption and no more.
    tls.skip_verify |= tls.secure && tls.ca_file.is_empty();
    Terms {
        name: format!("_NSS-{}-send", options.cluster_id),
        credentials,
        tls,
        no_responders: false,
    }
}

/// One URL, or a list parted by commas; empty: none.
fn urls(text: &str) -> Result<Vec<NatsUrl>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    if !text.contains("://") {
        return Err(format!("malformed url: {text}"));
    }
    text.split(',')
        .map(|url| NatsUrl::parse(url.trim()))
        .collect()
}

/// What the options say of a channel: what they say of all channels, then every entry that matches its name, from the
/// widest to the narrowest; what an entry does not say it takes from the one before.
fn inherited(
    defaults: &ChannelLimitOptions,
    channels: &BTreeMap<String, ChannelLimitOptions>,
    name: &str,
) -> ChannelLimitOptions {
    let mut matching: Vec<(&String, &ChannelLimitOptions)> = channels
        .iter()
        .filter(|(pattern, _)| token::pattern_matches(pattern.as_bytes(), name.as_bytes()))
        .collect();
    matching.sort_by_key(|(pattern, _)| width(pattern));
    let mut limits = defaults.clone();
    for (_, own) in matching {
        limits.max_subscriptions = own.max_subscriptions.or(limits.max_subscriptions);
        limits.max_msgs = own.max_msgs.or(limits.max_msgs);
        limits.max_bytes = own.max_bytes.or(limits.max_bytes);
        limits.max_age = own.max_age.or(limits.max_age);
        limits.max_inactivity = own.max_inactivity.or(limits.max_inactivity);
        limits.max_redeliveries = own.max_redeliveries.or(limits.max_redeliveries);
        limits.dead_letter = own.dead_letter.clone().or(limits.dead_letter);
    }
    limits
}

pub fn limits_of(options: &StreamingOptions) -> LimitsOf {
    let (defaults, channels) = (options.limits.clone(), options.channels.clone());
    Box::new(move |name| {
        let limits = inherited(&defaults, &channels, name);
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

/// Which channels have dead letters. A channel that takes dead letters of others has none of its own: they
/// would go round in circles, or from one channel to the next for ever.
fn dead_letters(options: &StreamingOptions) -> DeadLetters {
    let (defaults, channels) = (options.limits.clone(), options.channels.clone());
    let all = || std::iter::once(&options.limits).chain(options.channels.values());
    if !all().any(|limits| limits.max_redeliveries.is_some_and(|max| max > 0)) {
        return DeadLetters::default();
    }
    let targets: Vec<String> = all()
        .filter_map(|limits| limits.dead_letter.clone())
        .collect();
    DeadLetters(Arc::new(move |name| {
        let limits = inherited(&defaults, &channels, name);
        let max = limits.max_redeliveries.filter(|max| *max > 0)?;
        let template = limits.dead_letter?;
        if targets.iter().any(|target| takes_letters(target, name)) {
            return None;
        }
        Some(DeadLetterRule {
            max_redeliveries: u32::try_from(max).unwrap_or(u32::MAX),
            target: template.replace(CHANNEL_MARK, name),
        })
    }))
}

fn takes_letters(template: &str, name: &str) -> bool {
    match template.split_once(CHANNEL_MARK) {
        None => template == name,
        Some((before, behind)) => {
            let middle = name
                .strip_prefix(before)
                .and_then(|rest| rest.strip_suffix(behind));
            // A template that is nothing but the mark makes every channel its own.
            middle.is_some_and(|middle| !middle.is_empty())
        }
    }
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
    fn dead_letters_do_not_breed() {
        let mut options = StreamingOptions::default();
        assert_eq!((dead_letters(&options).0)("foo"), None);
        options.limits.max_redeliveries = Some(3);
        let own = ChannelLimitOptions {
            max_redeliveries: Some(1),
            dead_letter: Some("lost".into()),
            ..ChannelLimitOptions::default()
        };
        options.channels.insert("foo.*".into(), own.clone());
        let off = ChannelLimitOptions {
            max_redeliveries: Some(0),
            ..own
        };
        options.channels.insert("foo.off".into(), off);
        let rules = dead_letters(&options);
        let get = |name: &str| (rules.0)(name).map(|rule| (rule.max_redeliveries, rule.target));
        assert_eq!(get("foo"), Some((3, "dead.foo".into())));
        assert_eq!(get("foo.bar"), Some((1, "lost".into())));
        assert_eq!(get("foo.off"), None);
        assert_eq!(get("dead.foo"), None);
        assert_eq!(get("lost"), None);
    }

    #[test]
    fn sizes_are_shown_as_the_original_does() {
        assert_eq!(bytes(1_024_000_000), "976.56 MB");
        assert_eq!((bytes(60), bytes(0)), ("60 B".into(), "unlimited".into()));
    }
}
