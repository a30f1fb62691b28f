//! Makes connections to other servers, each in a thread of its own: names are looked up and
//! connections waited for without a loop noticing.

use super::event_loop::{Command, Shared};
use crate::broker::effect::Dial;
use crate::broker::propagate::ROUTE_LOOP;
use crate::config::route_url::RouteUrl;
use crate::util::lock;
use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const CONNECT_TIME_MAX: Duration = Duration::from_secs(1);
/// A thread that looks a name up and waits needs little.
const STACK_BYTES: usize = 256 << 10;

/// What is dialled: the configured routes for as long as they are configured, others for a while.
#[derive(Default)]
pub struct Dialer {
    configured: Mutex<Configured>,
    pub routes: Arc<Routes>,
}

/// How far routes have come, for whoever waits for them.
#[derive(Default)]
pub struct Routes {
    /// First tries of configured ones that are not over.
    trying: AtomicUsize,
    /// Counts all that ever came up, from either side.
    opened: AtomicUsize,
}

impl Routes {
    pub fn are_tried(&self) -> bool {
        self.trying.load(Ordering::Acquire) == 0
    }

    pub fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }

    pub fn note_opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }
}

/// Over when it is dropped.
struct FirstTry(Arc<Routes>);

impl FirstTry {
    fn begin(routes: &Arc<Routes>) -> Self {
        routes.trying.fetch_add(1, Ordering::Relaxed);
        Self(routes.clone())
    }
}

impl Drop for FirstTry {
    fn drop(&mut self) {
        self.0.trying.fetch_sub(1, Ordering::Release);
    }
}

#[derive(Default)]
struct Configured {
    routes: Vec<RouteUrl>,
    /// Counts changes of the list: who tries an earlier one gives up.
    version: u64,
    /// The latest dial to each address that is not configured: an earlier one gives up.
    latest: HashMap<String, u64>,
    dials: u64,
}

impl Configured {
    fn wants(&self, dial: &Dial, number: u64) -> bool {
        let Dial { url, explicit, .. } = dial;
        if !explicit {
            return self.latest.get(&url.address()) == Some(&number);
        }
        let mut routes = self.routes.iter();
        self.version == number && routes.any(|route| route.same_place(&url.host, url.port))
    }

    fn forget(&mut self, dial: &Dial, number: u64) {
        let address = dial.url.address();
        if !dial.explicit && self.latest.get(&address) == Some(&number) {
            self.latest.remove(&address);
        }
    }
}

impl Dialer {
    /// Takes over a new list of routes: those of the one before are dropped, and all of it is dialled.
    pub fn configure(shared: &Arc<Shared>, routes: &[RouteUrl]) {
        let mut configured = shared.dialer.lock();
        configured.routes = routes.to_vec();
        configured.version += 1;
        // Whoever is dialled from the list before gives up from here on, and what came of that goes.
        let door = shared.mesh.door(ROUTE_LOOP);
        door.command(Command::DropConfiguredRoutes);
        drop(configured);
        for url in routes {
            let dial = Dial {
                url: url.clone(),
                explicit: true,
                wait: Duration::ZERO,
                retries: 0,
            };
            let first = FirstTry::begin(&shared.dialer.routes);
            Self::spawn(shared, dial, Some(first));
        }
    }

    /// Tries as often as the order says; a connection is handed to the loop of the routes.
    pub fn dial(shared: &Arc<Shared>, dial: Dial) {
        Self::spawn(shared, dial, None);
    }

    fn spawn(shared: &Arc<Shared>, dial: Dial, first: Option<FirstTry>) {
        let number = shared.dialer.number(&dial);
        let thread_shared = shared.clone();
        let spawned = std::thread::Builder::new()
            .name("dial".into())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                thread_shared
                    .dialer
                    .work(&thread_shared, dial, number, first)
            });
        if let Err(error) = spawned {
            log::error!("Error trying to connect to route: no thread: {error}");
        }
    }

    /// By which a dial knows whether it is still wanted.
    fn number(&self, dial: &Dial) -> u64 {
        let mut configured = self.lock();
        if dial.explicit {
            return configured.version;
        }
        configured.dials += 1;
        let number = configured.dials;
        configured.latest.insert(dial.url.address(), number);
        number
    }

    fn work(&self, shared: &Shared, dial: Dial, number: u64, mut first: Option<FirstTry>) {
        std::thread::sleep(dial.wait);
        let mut tries = 0;
        while self.is_wanted(&dial, number) {
            log::debug!("Trying to connect to route on {}", dial.url.address());
            match connect(&dial.url) {
                Ok((stream, peer)) => return self.hand_over(shared, dial, number, stream, peer),
                Err(error) => log::error!(
                    "Error trying to connect to route: dial tcp {}: {error}",
                    dial.url.address()
                ),
            }
            drop(first.take());
            let Some(pause) = dial.pause_after(tries) else {
                return self.forget(&dial, number);
            };
            tries += 1;
            std::thread::sleep(pause);
        }
    }

    /// Under the lock: a list that changes meanwhile drops what was handed over before.
    fn hand_over(
        &self,
        shared: &Shared,
        dial: Dial,
        number: u64,
        stream: TcpStream,
        peer: SocketAddr,
    ) {
        let mut configured = self.lock();
        if !configured.wants(&dial, number) {
            return;
        }
        configured.forget(&dial, number);
        let fd = stream.into();
        let door = shared.mesh.door(ROUTE_LOOP);
        door.command(Command::Route { fd, peer, dial });
    }

    fn is_wanted(&self, dial: &Dial, number: u64) -> bool {
        self.lock().wants(dial, number)
    }

    fn forget(&self, dial: &Dial, number: u64) {
        self.lock().forget(dial, number);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Configured> {
        lock(&self.configured)
    }
}

/// The first address of the name that answers.
fn connect(url: &RouteUrl) -> std::io::Result<(TcpStream, SocketAddr)> {
    let mut last = std::io::ErrorKind::AddrNotAvailable.into();
    for address in (url.host.as_str(), url.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIME_MAX) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok((stream, address));
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}
