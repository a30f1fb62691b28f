//! The streaming engine's thread: between its NATS connection, its store and the clock.
//!
//! A turn: wait for messages, for the disk or for a deadline; hand everything that came to the engine;
//! end the turn, which flushes the store once for all of it; write what the engine has to say.

use super::dial::Routes;
use super::limits;
use super::nats_client::{NatsClient, OUTPUT_BYTES_MAX, Output, Terms};
use super::nats_link::Link;
use super::nats_login::NatsUrl;
use super::streaming_probe::{ANSWERS, Probe, Watch};
use crate::config::Options;
use crate::config::streaming::{StoreKind, StreamingOptions};
use crate::stan::engine::{Engine, Settings, Shown};
use crate::stan::report::Report;
use crate::stan::store::file::{FileOptions, FileStore, Wake};
use crate::stan::store::memory::MemoryStore;
use crate::stan::store::{Recovered, Store};
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
/// Messages that wait for a slow disk, beyond which nothing more is read.
const BACKLOG_BYTES_MAX: usize = 64 << 20;
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
    pub fn start(
        options: &Options,
        routes: &Arc<Routes>,
        attach: impl FnOnce(OwnedFd),
    ) -> Result<Self, String> {
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
        log::info!("STREAM: Recovering the state...");
        let (store, recovered) = open_store(streaming, &event)?;
        let found = recovered.server.is_some();
        let clock = Clock::new();
        let engine = Engine::new(settings(options), store, recovered, random, clock.now())
            .map_err(|error| error.to_string())?;
        match found {
            true => log::info!("STREAM: Recovered {} channel(s)", engine.channel_count()),
            false => log::info!("STREAM: No recovered state"),
        }
        limits::tell(streaming);
        let terms = terms(options);
        let urls = urls(&streaming.nats_server)?;
        let mut client = connect(&urls, &terms, attach)?;
        // Two of one name on one network would both serve every request.
        if !urls.is_empty() || options.cluster.port != 0 {
            let probe = Probe::new(engine.info());
            probe.look_for_another(&mut client, || routes.are_tried())?;
        }
        // What came up meanwhile may be as far as that now.
        let watch = Watch::new(Probe::new(engine.info()), routes);
        let (asks, queue) = channel();
        let mut host = Host {
            engine,
            link: Link::Up(Box::new(client)),
            urls,
            terms,
            event: event.clone(),
            asks: queue,
            clock,
            maintained_at: Instant::now(),
            told_ready: false,
            watch,
        };
        host.begin(&Output::default());
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
}

fn open_store(
    options: &StreamingOptions,
    event: &Arc<EventFd>,
) -> Result<(Box<dyn Store>, Recovered), String> {
    let limits = limits::of(options);
    if options.store == StoreKind::Memory {
        let store: Box<dyn Store> = Box::new(MemoryStore::new(limits));
        return Ok((store, Recovered::default()));
    }
    let ring = event.clone();
    // The counter cannot overflow: every wake-up empties it.
    let wake: Wake = Arc::new(move || {
        let _ = ring.write(1);
    });
    let file = FileOptions::new(&options.file);
    let opened = FileStore::open(Path::new(&options.dir), file, limits, &wake);
    let (store, recovered) = opened.map_err(|error| error.to_string())?;
    let store: Box<dyn Store> = Box::new(store);
    Ok((store, recovered))
}

/// To one of these servers; without any to our own loops.
fn connect(
    urls: &[NatsUrl],
    terms: &Terms,
    attach: impl FnOnce(OwnedFd),
) -> Result<NatsClient, String> {
    if !urls.is_empty() {
        return NatsClient::connect(urls, terms);
    }
    let failed = |error: std::io::Error| format!("sockets: {error}");
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    attach(theirs.into());
    NatsClient::own(ours, &terms.name).map_err(failed)
}

/// The end of the process: one without its streaming part must not look like one that has it. The main thread waits for
/// signals, and knows of no other end than one that was asked for.
fn give_up(why: &str) -> ! {
    log::error!(target: crate::logging::FATAL, "STREAM: {why}");
    crate::logging::flush();
    std::process::exit(2);
}

/// Nanoseconds for deadlines: what the wall clock showed at the start, and on from there without a jump, however that is set
/// later.
struct Clock {
    began: Instant,
    epoch: i64,
}

impl Clock {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            epoch: wall_clock(),
        }
    }

    fn now(&self) -> i64 {
        self.epoch + self.began.elapsed().as_nanos() as i64
    }
}

/// Nanoseconds since the epoch, as the system has it now.
fn wall_clock() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as i64)
}

struct Host {
    engine: Engine,
    link: Link,
    /// Of another NATS server; empty: our own.
    urls: Vec<NatsUrl>,
    terms: Terms,
    event: Arc<EventFd>,
    asks: Receiver<Ask>,
    clock: Clock,
    maintained_at: Instant,
    told_ready: bool,
    watch: Watch,
}

impl Host {
    fn run(mut self) {
        loop {
            self.wait();
            if self.answer_asks() {
                break;
            }
            self.engine.handle_clock(self.clock.now(), wall_clock());
            self.look_for_link();
            if let Err(error) = self.turn() {
                // Our own loops go on until we have stopped.
                if self.urls.is_empty() {
                    give_up(&format!(
                        "connection {:?} to this server's own event loops has ended: {error}; this is a fault of the server, which ends: start it again",
                        self.terms.name
                    ));
                }
                log::error!(
                    "STREAM: connection {:?} has been disconnected: {error}",
                    self.terms.name
                );
                self.lose_link();
            }
        }
        self.engine.close();
        log::info!("STREAM: Shutting down.");
    }

    fn wait(&mut self) {
        let reads = self.reads();
        let mut flags = PollFlags::empty();
        if reads {
            flags |= PollFlags::POLLIN;
        }
        let mut fds = vec![PollFd::new(self.event.as_fd(), PollFlags::POLLIN)];
        if let Link::Up(client) = &self.link {
            if client.has_output() {
                flags |= PollFlags::POLLOUT;
            }
            // Its end would be told all the time, also where nobody is to look at it now.
            if !flags.is_empty() {
                fds.push(PollFd::new(client.fd(), flags));
            }
        }
        // Rounded up, so that the deadline has come when the wait is over.
        let millis = self.wait_max().as_micros().div_ceil(1000) as u16;
        let _ = poll(&mut fds, PollTimeout::from(millis));
        let _ = self.event.read();
    }

    /// How long there is nothing to do when nothing happens.
    fn wait_max(&self) -> Duration {
        // Everything may have been written at once: nothing but us knows of the room then.
        if let Link::Up(client) = &self.link
            && client.has_room()
            && self.engine.waits_for_room()
        {
            return Duration::ZERO;
        }
        let maintain = MAINTAIN_EVERY.saturating_sub(self.maintained_at.elapsed());
        let due = self.engine.next_deadline().map_or(maintain, |at| {
            Duration::from_nanos(at.saturating_sub(self.clock.now()).max(0) as u64)
        });
        due.min(maintain)
    }

    /// Back-pressure: with much output waiting nothing more is read.
    fn reads(&self) -> bool {
        let room = match &self.link {
            Link::Up(client) => client.output_len() < OUTPUT_BYTES_MAX,
            Link::Away(_) => false,
        };
        room && self.engine.backlog_bytes() < BACKLOG_BYTES_MAX
    }

    fn turn(&mut self) -> std::io::Result<()> {
        let mut bytes = 0;
        while self.reads() && bytes < TURN_BYTES_MAX {
            let now = self.clock.now();
            let (engine, watch) = (&mut self.engine, &mut self.watch);
            let Some(client) = self.link.client() else {
                break;
            };
            let read = client.receive(|incoming, output| {
                if incoming.inlet == ANSWERS {
                    watch.count(&incoming);
                    return;
                }
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
        if let Some(client) = self.link.client() {
            // Whoever waits for this line may rely on our subscriptions being there.
            if client.pongs() > 0 && !std::mem::replace(&mut self.told_ready, true) {
                log::info!("STREAM: Streaming Server is ready");
            }
            for violation in client.take_violations() {
                log::error!("STREAM: NATS server: {}", Shown(&violation));
            }
        }
        self.act();
        self.link.flush()
    }

    /// Everything of a turn but the connection.
    fn act(&mut self) {
        let now = self.clock.now();
        self.engine.handle_timeouts(now, self.link.output());
        if let Err(error) = self.engine.end_turn(now, self.link.output()) {
            // What the disk has is not known any more; nothing may be acknowledged on top of that.
            give_up(&error.to_string());
        }
        if self.maintained_at.elapsed() >= MAINTAIN_EVERY {
            self.maintained_at = Instant::now();
            self.engine.maintain(now);
            if let Some(client) = self.link.client() {
                self.watch.go_on(client.output());
            }
        }
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

    /// Serves over the connection there is now. What was held comes before deliveries: some of it announces them.
    fn begin(&mut self, held: &Output) {
        let now = self.clock.now();
        let out = self.link.output();
        self.engine.start(out, now);
        out.release(held);
        self.engine.go_on(out, now);
        if let Some(client) = self.link.client() {
            client.ping();
        }
    }

    fn lose_link(&mut self) {
        self.engine.handle_disconnect();
        self.link.lose(&self.urls, &self.terms, &self.event);
        // What had come in before the loss is not left for the next deadline.
        self.act();
    }

    fn look_for_link(&mut self) {
        match self.link.found() {
            Ok(None) => {}
            Ok(Some(held)) => {
                let client = self.link.client();
                let place = client.map_or(String::new(), |client| client.place());
                log::info!(
                    "STREAM: connection {:?} reconnected to NATS Server at \"nats://{place}\"",
                    self.terms.name
                );
                self.begin(&held);
                match held.dropped() {
                    0 => {}
                    dropped => log::error!(
                        "STREAM: {dropped} messages found no room while there was no NATS server"
                    ),
                }
            }
            Err(_) => self.link.lose(&self.urls, &self.terms, &self.event),
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
        trace: options.trace,
        admin: options.admin.unwrap_or(authorized),
        dead_letters: limits::dead_letters(options),
    }
}

/// Whether nobody gets in without credentials.
fn asks_for_credentials(options: &Options) -> bool {
    let known = !options.user.is_empty() || !options.token.0.is_empty() || options.users.is_some();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stan::outlet::Inlet;
    use crate::stan::pb;
    use prost::Message;
    use std::io::Read;

    /// Over a pair of sockets, with a store in memory; the other end.
    fn host() -> (Host, UnixStream) {
        let options = Options::default();
        let store = MemoryStore::new(limits::of(&options.streaming));
        let (clock, random) = (Clock::new(), Random::new(1));
        let recovered = Recovered::default();
        let settings = settings(&options);
        let engine = Engine::new(settings, Box::new(store), recovered, random, clock.now());
        let engine = engine.unwrap();
        let watch = Watch::new(Probe::new(engine.info()), &Arc::default());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (_, asks) = channel();
        let host = Host {
            engine,
            link: Link::Up(Box::new(NatsClient::own(ours, "test").unwrap())),
            urls: Vec::new(),
            terms: Terms::default(),
            event: Arc::new(EventFd::new().unwrap()),
            asks,
            clock,
            maintained_at: Instant::now(),
            told_ready: false,
            watch,
        };
        (host, theirs)
    }

    #[test]
    fn deliveries_go_on_where_everything_was_written_at_once() {
        let (mut host, mut theirs) = host();
        theirs.set_nonblocking(true).unwrap();
        host.begin(&Output::default());
        let connect = pb::ConnectRequest {
            client_id: "me".into(),
            heartbeat_inbox: "beat".into(),
            ..Default::default()
        };
        let message = pb::PubMsg {
            client_id: "me".into(),
            guid: "1".into(),
            subject: "foo".into(),
            data: vec![0; 1 << 20].into(),
            ..Default::default()
        };
        let subscribe = pb::SubscriptionRequest {
            client_id: "me".into(),
            subject: "foo".into(),
            inbox: "inbox".into(),
            max_in_flight: 100,
            ack_wait_seconds: 30,
            start_position: 4,
            ..Default::default()
        };
        let mut requests = vec![(Inlet::CONNECT, connect.encode_to_vec())];
        requests.resize(1 + 20, (Inlet::PUBLISH, message.encode_to_vec()));
        requests.push((Inlet::SUBSCRIBE, subscribe.encode_to_vec()));
        for (inlet, request) in requests {
            let (now, out) = (host.clock.now(), host.link.output());
            host.engine
                .handle_message(inlet, "", None, &request, now, out);
            host.act();
        }
        let mut received = 0;
        for turn in 0..3 {
            while host.link.client().unwrap().has_output() {
                host.link.flush().unwrap();
                while let Ok(bytes) = theirs.read(&mut [0; 1 << 16]) {
                    received += bytes;
                }
            }
            let goes_on = turn < 2;
            assert_eq!(host.wait_max() == Duration::ZERO, goes_on, "{turn}");
            host.act();
        }
        assert!(received > 20 << 20);
    }
}
