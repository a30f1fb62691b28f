//! The process: from options to running loops, and back on a signal.

use super::event_loop::{Command, EventLoop, Shared, Snapshot};
use super::mailbox::Mesh;
use crate::broker::Broker;
use crate::broker::effect::Effect;
use crate::broker::settings::Settings;
use crate::uring::{self, Io, Ring, RingConfig};
use crate::util::random::Random;
use crate::util::region::RegionMut;
use nix::sys::signal::{SigSet, Signal};
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, mpsc};
use std::time::Instant;

/// Output memory of each loop that is registered with its ring, and thereby pinned.
const REGION_BYTES: usize = 4 << 20;
const BACKLOG: i32 = 4096;

/// What running a server takes beyond what its broker needs to know.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    pub host: String,
    /// -1 for any free port.
    pub port: i32,
    pub threads: u16,
    pub connections_max: usize,
    pub settings: Settings,
}

#[derive(Debug)]
pub enum StartError {
    Unusable(uring::Unusable),
    Listen {
        address: String,
        error: std::io::Error,
    },
    Loop(std::io::Error),
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unusable(unusable) => unusable.fmt(f),
            Self::Listen { address, error } => {
                let reason = match error.kind() {
                    std::io::ErrorKind::AddrInUse => "bind: address already in use".into(),
                    _ => error.to_string(),
                };
                write!(
                    f,
                    "Error listening on port: {address}, \"listen tcp {address}: {reason}\""
                )
            }
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

/// A listening socket whose connections inherit TCP_NODELAY.
fn listen(host: &str, port: i32) -> Result<(OwnedFd, SocketAddr), StartError> {
    use nix::sys::socket::{
        self, AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, sockopt,
    };
    let wanted = u16::try_from(port.max(0)).unwrap_or(0);
    let shown = format!("{host}:{wanted}");
    let failed = |error: std::io::Error| StartError::Listen {
        address: shown.clone(),
        error,
    };
    let address = (host.trim_matches(['[', ']']), wanted)
        .to_socket_addrs()
        .map_err(failed)?
        .next()
        .ok_or_else(|| failed(std::io::ErrorKind::AddrNotAvailable.into()))?;
    let open = || -> nix::Result<(OwnedFd, SocketAddr)> {
        let family = if address.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let fd = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        socket::setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        socket::setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
        if address.is_ipv6() && address.ip().is_unspecified() {
            // As Go does: `::` takes IPv4 as well.
            socket::setsockopt(&fd, sockopt::Ipv6V6Only, &false)?;
        }
        socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
        socket::listen(&fd, Backlog::new(BACKLOG)?)?;
        let bound: SockaddrStorage = socket::getsockname(fd.as_raw_fd())?;
        let port = bound
            .as_sockaddr_in()
            .map(|v4| v4.port())
            .or(bound.as_sockaddr_in6().map(|v6| v6.port()));
        let bound = SocketAddr::new(address.ip(), port.unwrap_or(wanted));
        Ok((
            fd.as_fd()
                .try_clone_to_owned()
                .map_err(|_| nix::Error::EMFILE)?,
            bound,
        ))
    };
    open().map_err(|error| failed(error.into()))
}

/// The number of loops when nothing is said: one per core this process may use.
pub fn default_threads() -> u16 {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(256) as u16)
}

/// Runs the server until a signal ends it.
pub fn run(mut options: ServerOptions) -> Result<(), StartError> {
    let features = uring::probe().map_err(StartError::Unusable)?;
    // Signals are taken by this thread alone; the loops inherit the mask.
    let signals = SigSet::from_iter([
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ]);
    signals.thread_block()?;
    raise_descriptor_limit();

    log::info!(
        "Starting nats-server version {} (midge {})",
        crate::COMPATIBLE_VERSION,
        crate::VERSION
    );
    log::debug!("Go build version none");
    let commit = if crate::GIT_COMMIT.is_empty() {
        "not set"
    } else {
        crate::GIT_COMMIT
    };
    log::info!("Git commit [{commit}]");

    let (listener, bound) = listen(&options.host, options.port)?;
    log::info!("Listening for client connections on {bound}");
    if options.settings.info.port == 0 {
        options.settings.info.port = bound.port();
    }
    log::debug!("Server id is {}", options.settings.info.server_id);

    let loops = options.threads.max(1);
    let settings = Arc::new(options.settings.clone());
    let shared = Arc::new(Shared {
        mesh: Mesh::new(loops)?,
        next_cid: AtomicU64::new(1),
        connections_max: AtomicUsize::new(options.connections_max),
        verify: Box::new(|_, effect| drop::<Effect>(effect)),
    });
    let mut listener = Some(listener);
    let (ready, started) = mpsc::channel();
    let mut threads = Vec::new();
    for index in 0..loops {
        let (shared, settings, ready, listener) = (
            shared.clone(),
            settings.clone(),
            ready.clone(),
            listener.take(),
        );
        let body = move || {
            let made = (|| {
                let region = RegionMut::map(REGION_BYTES)?;
                let (ring, warning) =
                    Ring::new(RingConfig::default(), features, region.keep_alive())?;
                Ok::<_, std::io::Error>((region, ring, warning))
            })();
            let (region, ring) = match made {
                Ok((region, ring, warning)) => {
                    if let Some(warning) = warning {
                        log::warn!("{warning}");
                    }
                    shared.mesh.door(index).set_ring_fd(ring.fd());
                    (region, ring)
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return Ok(());
                }
            };
            let broker = Broker::new(
                settings,
                index,
                loops,
                region,
                Random::from_entropy(),
                Instant::now(),
            );
            // Nobody runs before everybody's doorbell is known.
            let (go, wait) = mpsc::channel();
            let _ = ready.send(Ok(go));
            if wait.recv() == Ok(()) {
                EventLoop::new(index, ring, broker, shared, listener).run()
            } else {
                Ok(())
            }
        };
        threads.push(
            std::thread::Builder::new()
                .name(format!("loop-{index}"))
                .spawn(body)?,
        );
    }
    drop(ready);
    let gates = started.iter().take(usize::from(loops)).collect::<Result<Vec<_>, _>>();
    let gates = match gates {
        Ok(gates) => gates,
        Err(error) => return Err(StartError::Loop(error)),
    };
    for gate in gates {
        let _ = gate.send(());
    }
    log::info!("Server is ready");

    loop {
        match signals.wait()? {
            Signal::SIGINT | Signal::SIGTERM => break,
            _ => {}
        }
    }
    log::info!("Server Exiting..");
    for door in shared.mesh.doors() {
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

/// One snapshot of each loop.
pub fn snapshots(shared: &Shared) -> Vec<Snapshot> {
    let (reply, answers) = mpsc::channel();
    for door in shared.mesh.doors() {
        door.command(Command::Snapshot(reply.clone()));
    }
    drop(reply);
    answers.iter().collect()
}

/// Every connection is a descriptor: use what the system allows.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        if soft < hard {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
        }
    }
}
