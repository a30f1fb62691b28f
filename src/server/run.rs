//! The process: from options to running loops, and what signals do to them.

use super::accept::Acceptor;
use super::congestion;
use super::dial::Dialer;
use super::event_loop::{Command, EventLoop, Shared};
use super::listener::Listener;
use super::mailbox::Mesh;
use super::monitor::Monitor;
use super::monitor_http;
use super::reload;
use super::settings::{Identity, settings};
use super::streaming::Streaming;
use super::tls_link::{Terms, TlsTerms};
use super::verifier::Verifier;
use crate::broker::Broker;
use crate::broker::settings::Settings;
use crate::config::Options;
use crate::config::cli::Source;
use crate::config::streaming::StoreKind;
use crate::uring::{self, Io, Ring, RingConfig};
use crate::util::random::Random;
use crate::util::region::RegionMut;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use std::os::fd::{IntoRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Output memory of each loop that is registered with its ring, and thereby pinned.
const REGION_BYTES: usize = 4 << 20;
/// What a loop locks at most: its region, and its ring where the kernel counts that.
const LOCKED_BYTES: usize = REGION_BYTES + (1 << 20);
/// Descriptors that clients do not get, where there is a file store.
const STORE_FDS: u64 = 32;
/// Lame duck mode closes connections this often.
const LAME_DUCK_STEP: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub enum StartError {
    Unusable(uring::Unusable),
    Options(String),
    Listen {
        what: &'static str,
        address: String,
        error: std::io::Error,
    },
    PidFile(std::io::Error),
    PortsFile(std::io::Error),
    Loop(std::io::Error),
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unusable(unusable) => unusable.fmt(f),
            Self::Options(text) => f.write_str(text),
            Self::Listen {
                what,
                address,
                error,
            } => {
                let reason = match error.kind() {
                    std::io::ErrorKind::AddrInUse => "bind: address already in use".into(),
                    _ => error.to_string(),
                };
                write!(f, "{what}: {address}, \"listen tcp {address}: {reason}\"")
            }
            Self::PidFile(error) => write!(f, "Could not write pidfile: {error}"),
            Self::PortsFile(error) => write!(f, "Could not write ports file: {error}"),
            Self::Loop(error) => write!(f, "event loop: {error}"),
        }
    }
}

impl From<std::io::Error> for StartError {
    fn from(error: std::io::Error) -> Self {
        Self::Loop(error)
    }
}

impl From<nix::Error> for StartError {
    fn from(error: nix::Error) -> Self {
        Self::Loop(error.into())
    }
}

/// A running server, seen from the thread that looks after it.
pub(super) struct Running {
    pub options: Options,
    pub shared: Arc<Shared>,
    pub monitor: Arc<Monitor>,
    pub identity: Identity,
}

/// Keeps signals for the calling thread, to be waited for; threads it starts later inherit that. A
/// thread started before would take a signal that comes while this one is busy, and the process
/// would die of it: so this comes first of all.
pub fn hold_signals() -> nix::Result<SigSet> {
    let signals = SigSet::from_iter([
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ]);
    signals.thread_block()?;
    // A file that may grow no further (RLIMIT_FSIZE) is an error to whoever writes it, not the end of the process.
    SigSet::from_iter([Signal::SIGXFSZ]).thread_block()?;
    Ok(signals)
}

/// Runs the server until a signal ends it.
pub fn run(source: &Source, options: Options) -> Result<(), StartError> {
    uring::probe().map_err(StartError::Unusable)?;
    let signals = hold_signals()?;
    raise_descriptor_limit();

    log::info!(
        "Starting nats-server version {} (midge {})",
        crate::COMPATIBLE_VERSION,
        crate::VERSION
    );
    let commit = if crate::GIT_COMMIT.is_empty() {
        "not set"
    } else {
        crate::GIT_COMMIT
    };
    log::info!("Git commit [{commit}]");

    let server_id = Random::from_entropy().id();
    let tls = TlsTerms::default();
    let terms = |options, mutual| Terms::load(options, mutual).map_err(StartError::Options);
    tls.set(
        terms(&options.tls, false)?,
        terms(&options.cluster.tls, true)?,
    );
    let listeners = Listeners::open(&options)?;
    log::debug!("Server id is {server_id}");

    let cluster_address = listeners.routes.as_ref().map(|listener| listener.address);
    let identity = Identity {
        server_id,
        port: listeners.clients.as_ref().map_or(0, |l| l.address.port()),
        cluster_port: cluster_address.map(|address| address.port()),
    };
    let settings = settings(&options, &identity).map_err(StartError::Options)?;
    let loops = loops(&options);
    let fds = (
        listeners.clients.map(|l| l.fd),
        listeners.routes.map(|l| l.fd),
    );
    let unpaced = |fd: &Option<_>| fd.as_ref().and_then(congestion::without_pacing);
    let congestion_elsewhere = unpaced(&fds.0).or(unpaced(&fds.1));
    let shared = Arc::new(Shared {
        mesh: Mesh::new(loops)?,
        connections_max: AtomicUsize::new(connections_max(&options)),
        client_fds_end: client_fds_end(&options),
        verifier: Verifier::default(),
        dialer: Dialer::default(),
        tls,
        congestion_elsewhere,
    });
    let (threads, gates) = start_loops(&shared, &Arc::new(settings), fds)?;
    write_pid_file(&options.pid_file).map_err(StartError::PidFile)?;
    let ports_file = listeners
        .ports
        .write(&options.ports_file_dir)
        .map_err(StartError::PortsFile)?;
    let monitor = Arc::new(Monitor::new(shared.clone(), &options, &identity));
    if let Some(listener) = listeners.monitor {
        monitor_http::start(listener.fd, monitor.clone(), options.https_port != 0)?;
    }
    log::info!("Server is ready");
    if let Some(address) = cluster_address {
        log::info!("Listening for route connections on {address}");
    }
    // Whoever gets INFO can rely on what the log and the pid file say.
    crate::logging::flush();
    for gate in gates {
        let _ = gate.send(());
    }
    if cluster_address.is_some() {
        Dialer::configure(&shared, &options.cluster.routes);
    }
    let running = Running {
        options,
        shared,
        monitor,
        identity,
    };
    if running.options.streaming.enabled {
        start_streaming(&running)?;
    }
    let running = look_after(running, source, &signals)?;
    stop(&running, threads, ports_file)
}

/// The sockets others come to.
struct Listeners {
    monitor: Option<Listener>,
    clients: Option<Listener>,
    routes: Option<Listener>,
    /// How they are reached.
    ports: Ports,
}

impl Listeners {
    fn open(options: &Options) -> Result<Self, StartError> {
        let mut ports = Ports::default();
        let (monitor_port, scheme) = match options.https_port {
            0 => (options.http_port, "http"),
            port => (port, "https"),
        };
        let monitor = match monitor_port {
            0 => None,
            port => {
                let host = if options.http_host.is_empty() {
                    &options.host
                } else {
                    &options.http_host
                };
                let listener = Listener::open("Error starting http monitor", host, port)?;
                log::info!("Starting {scheme} monitor on {}", listener.address);
                ports.monitoring = listener.reachable(scheme);
                Some(listener)
            }
        };
        // Clients of a streaming server behind another NATS server connect there.
        let external = options.streaming.enabled && !options.streaming.nats_server.is_empty();
        let clients = if external {
            None
        } else {
            let listener = Listener::open("Error listening on port", &options.host, options.port)?;
            log::info!("Listening for client connections on {}", listener.address);
            let scheme = if options.tls.enabled { "tls" } else { "nats" };
            ports.nats = listener.reachable(scheme);
            Some(listener)
        };
        if options.tls.enabled {
            log::info!("TLS required for client connections");
        }
        let routes = match options.cluster.port {
            0 => None,
            port => {
                let what = "Error listening on router port";
                let listener = Listener::open(what, &options.cluster.host, port)?;
                ports.cluster = listener.reachable("nats");
                Some(listener)
            }
        };
        Ok(Self {
            monitor,
            clients,
            routes,
            ports,
        })
    }
}

fn start_streaming(running: &Running) -> Result<(), StartError> {
    let shared = &running.shared;
    let connect = |fd| shared.mesh.door(0).command(Command::Internal { fd });
    match Streaming::start(&running.options, &shared.dialer.routes, connect) {
        Ok(streaming) => running.monitor.set_streaming(streaming),
        Err(error) => {
            let text = format!("STREAM: Failed to start: {error}");
            return Err(StartError::Options(text));
        }
    }
    Ok(())
}

/// Does what signals ask for, until one asks for the end.
fn look_after(
    mut running: Running,
    source: &Source,
    signals: &SigSet,
) -> Result<Running, StartError> {
    // Made now: when it is wanted clients may have all descriptors.
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    let signals_read = SignalFd::with_flags(signals, flags)?;
    loop {
        match signals.wait()? {
            Signal::SIGINT | Signal::SIGTERM => break,
            Signal::SIGUSR1 => crate::logging::reopen(),
            Signal::SIGHUP => reload::reload(source, &mut running),
            Signal::SIGUSR2 => {
                lame_duck(&running, &signals_read)?;
                break;
            }
            _ => {}
        }
    }
    Ok(running)
}

fn stop(
    running: &Running,
    threads: Vec<LoopThread>,
    ports_file: Option<PathBuf>,
) -> Result<(), StartError> {
    running.monitor.stop_streaming();
    log::info!("Server Exiting..");
    if let Some(path) = ports_file
        && let Err(error) = std::fs::remove_file(&path)
    {
        log::warn!("Could not remove {}: {error}", path.display());
    }
    for door in running.shared.mesh.doors() {
        door.command(Command::Stop);
    }
    for thread in threads {
        match thread.join() {
            Ok(result) => result?,
            Err(_) => log::error!("an event loop ended by a panic"),
        }
    }
    Ok(())
}

/// As many loops as asked for, or one per core this process may use.
fn loops(options: &Options) -> u16 {
    match options.threads {
        0 => std::thread::available_parallelism().map_or(1, |cores| cores.get().min(256) as u16),
        threads => threads.min(256) as u16,
    }
}

pub(super) fn connections_max(options: &Options) -> usize {
    usize::try_from(options.max_connections).unwrap_or(usize::MAX)
}

/// How many loops could register their output memory: the last one tells.
struct Registrations {
    loops: u16,
    left: AtomicUsize,
    failed: AtomicUsize,
}

impl Registrations {
    fn new(loops: u16) -> Self {
        Self {
            loops,
            left: AtomicUsize::new(loops.into()),
            failed: AtomicUsize::new(0),
        }
    }

    fn note(&self, registered: std::io::Result<()>) {
        if let Err(error) = &registered {
            self.failed.fetch_add(1, Ordering::SeqCst);
            // Nothing else is known to happen.
            if error.raw_os_error() != Some(libc::ENOMEM) {
                log::warn!("output buffers of an event loop could not be registered: {error}");
            }
        }
        let is_last = self.left.fetch_sub(1, Ordering::SeqCst) == 1;
        let (loops, failed) = (self.loops, self.failed.load(Ordering::SeqCst));
        if is_last && failed > 0 {
            let total = (usize::from(loops) * LOCKED_BYTES) >> 20;
            log::warn!(
                "{failed} of {loops} event loops write the slower, unregistered way, because their output buffers could not be \
                 locked in memory: raise RLIMIT_MEMLOCK (LimitMEMLOCK= in a systemd unit) to {total} MiB or more"
            );
        }
    }
}

type LoopThread = JoinHandle<std::io::Result<()>>;

/// Starts every loop in a thread of its own. None runs before its gate is opened, when the doorbells
/// of all are known.
fn start_loops(
    shared: &Arc<Shared>,
    settings: &Arc<Settings>,
    listeners: (Option<OwnedFd>, Option<OwnedFd>),
) -> Result<(Vec<LoopThread>, Vec<mpsc::Sender<()>>), StartError> {
    let mut listeners = Some(listeners);
    let registrations = Arc::new(Registrations::new(shared.mesh.loops()));
    let (ready, started) = mpsc::channel();
    let mut threads = Vec::new();
    for index in 0..shared.mesh.loops() {
        let (shared, settings, ready) = (shared.clone(), settings.clone(), ready.clone());
        let registrations = registrations.clone();
        // The loop keeps it for as long as the process lives.
        let (clients, routes) = listeners.take().map_or((None, None), |(clients, routes)| {
            (
                clients.map(IntoRawFd::into_raw_fd),
                routes.map(IntoRawFd::into_raw_fd),
            )
        });
        let body = move || {
            let region = RegionMut::map(REGION_BYTES)?;
            let mut ring = match Ring::new(&RingConfig::new(&region.keep_alive())) {
                Ok(ring) => ring,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return Ok(());
                }
            };
            let door = shared.mesh.door(index);
            door.set_ring_fd(ring.fd());
            let broker = Broker::new(
                settings,
                index,
                shared.mesh.loops(),
                region,
                Random::from_entropy(),
                Instant::now(),
            );
            let (go, gate) = mpsc::channel::<()>();
            let _ = ready.send(Ok(go));
            drop(ready);
            match gate.recv() {
                Ok(()) => {
                    registrations.note(ring.register_region());
                    let (loops, now) = (shared.mesh.loops(), ring.now());
                    let acceptor = Acceptor::new(clients, routes, loops, now);
                    let result = EventLoop::new(index, ring, broker, shared, acceptor).run();
                    if result.is_err() {
                        // A server that lacks a loop must not look like one that runs. The main thread waits for
                        // signals: it ends the others, and says why.
                        kill(Pid::this(), Signal::SIGTERM)?;
                    }
                    result
                }
                Err(_) => Ok(()), // another loop could not start
            }
        };
        threads.push(
            std::thread::Builder::new()
                .name(format!("loop-{index}"))
                .spawn(body)?,
        );
    }
    drop(ready);
    let gates: Vec<_> = started
        .iter()
        .take(threads.len())
        .collect::<Result<_, _>>()
        .map_err(StartError::Unusable)?;
    if gates.len() < threads.len() {
        // One could not even map its memory; its thread has the reason.
        drop(gates);
        for thread in threads {
            if let Ok(Err(error)) = thread.join() {
                return Err(StartError::Loop(error));
            }
        }
        return Err(StartError::Loop(std::io::ErrorKind::OutOfMemory.into()));
    }
    Ok((threads, gates))
}

/// Decimal and without a newline, as the original; it stays behind at the end.
pub(super) fn write_pid_file(path: &str) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    if path.is_empty() {
        return Ok(());
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o660)
        .open(path)?;
    std::io::Write::write_all(&mut file, std::process::id().to_string().as_bytes())
}

/// Where we are reached, for whoever started us on any free port; in the form of nats-server.
#[derive(Default, serde::Serialize)]
struct Ports {
    nats: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    monitoring: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cluster: Vec<String>,
}

impl Ports {
    /// Writes `<program>_<pid>.ports` in a folder, whole or not at all; None where none is named.
    fn write(&self, folder: &str) -> std::io::Result<Option<PathBuf>> {
        if folder.is_empty() {
            return Ok(None);
        }
        let program = std::env::args_os().next().map(PathBuf::from);
        let program = program
            .as_deref()
            .and_then(|path| path.file_name()?.to_str());
        let name = format!(
            "{}_{}.ports",
            program.unwrap_or("midge"),
            std::process::id()
        );
        let path = Path::new(folder).join(&name);
        let partial = Path::new(folder).join(format!(".{name}.partial"));
        std::fs::write(&partial, serde_json::to_vec(self)?)?;
        std::fs::rename(&partial, &path)?;
        Ok(Some(path))
    }
}

/// Takes no new clients, tells those it has, and lets them go one by one so that they do not all
/// arrive elsewhere at once. Ends early when told to stop.
fn lame_duck(running: &Running, signals: &SignalFd) -> Result<(), StartError> {
    log::info!("Entering lame duck mode, stop accepting new clients");
    let doors = running.shared.mesh.doors();
    doors[0].command(Command::CloseListener);
    let options = &running.options;
    if let Ok(mut settings) = settings(options, &running.identity) {
        settings.info.ldm = true;
        let settings = Arc::new(settings);
        for door in doors {
            door.command(Command::Reconfigure(settings.clone()));
            door.command(Command::Announce);
        }
    }
    let stopped = |wait: Duration| -> nix::Result<bool> {
        // A signal that ends the server ends the waiting as well.
        let until = Instant::now() + wait;
        loop {
            let left = until
                .saturating_duration_since(Instant::now())
                .min(LAME_DUCK_STEP);
            if left.is_zero() {
                return Ok(false);
            }
            std::thread::sleep(left);
            while let Some(come) = signals.read_signal()? {
                match Signal::try_from(come.ssi_signo as i32) {
                    Ok(Signal::SIGINT | Signal::SIGTERM) => return Ok(true),
                    Ok(Signal::SIGUSR1) => crate::logging::reopen(),
                    Ok(Signal::SIGHUP) => {
                        log::warn!("The configuration is not reloaded in lame duck mode");
                    }
                    _ => {}
                }
            }
        }
    };
    if stopped(options.lame_duck_grace_period)? {
        return Ok(());
    }
    let count = || {
        doors
            .iter()
            .map(|door| door.connections.load(Ordering::Relaxed))
            .sum::<usize>()
    };
    let time = options
        .lame_duck_duration
        .saturating_sub(options.lame_duck_grace_period);
    let steps = (time.as_millis() / LAME_DUCK_STEP.as_millis()).max(1) as usize;
    log::info!("Closing existing clients");
    let per_step = count().div_ceil(steps).max(1);
    while count() > 0 {
        let fullest = doors
            .iter()
            .max_by_key(|door| door.connections.load(Ordering::Relaxed));
        if let Some(door) = fullest {
            door.command(Command::Dismiss {
                count: per_step,
                text: None,
            });
        }
        if stopped(LAME_DUCK_STEP)? {
            break;
        }
    }
    Ok(())
}

/// Some are kept for the files of streaming: without any the store could only refuse what is published.
fn client_fds_end(options: &Options) -> RawFd {
    use nix::sys::resource::{Resource, getrlimit};
    let streaming = &options.streaming;
    let all = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
    match streaming.enabled && streaming.store == StoreKind::File && all > 0 {
        true => (all - STORE_FDS.min(all / 4))
            .try_into()
            .unwrap_or(RawFd::MAX),
        false => RawFd::MAX,
    }
}

/// Every connection is a descriptor: use what the system allows.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
