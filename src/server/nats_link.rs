//! The streaming engine's connection to NATS, and the times without one.
//!
//! ```text
//!   Up --lost--> Away --a thread has dialled--> Up
//! ```

use super::nats_client::{NatsClient, Output, Terms};
use super::nats_login::NatsUrl;
use nix::sys::eventfd::EventFd;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::time::Duration;

/// As the original.
const RECONNECT_EVERY: Duration = Duration::from_millis(250);

pub enum Link {
    Up(NatsClient),
    Away(Away),
}

pub struct Away {
    held: Output,
    found: Receiver<NatsClient>,
    /// Dropped, it ends the dialling.
    _until: Sender<()>,
}

impl Link {
    pub fn client(&mut self) -> Option<&mut NatsClient> {
        match self {
            Self::Up(client) => Some(client),
            Self::Away(_) => None,
        }
    }

    pub fn output(&mut self) -> &mut Output {
        match self {
            Self::Up(client) => client.output(),
            Self::Away(away) => &mut away.held,
        }
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.client().map_or(Ok(()), NatsClient::flush)
    }

    /// Gives the connection up, and has a thread look for another one. `event` tells when it has found it.
    pub fn lose(&mut self, urls: &[NatsUrl], terms: &Terms, event: &Arc<EventFd>) {
        let (found, until) = dial(urls.to_vec(), terms.clone(), event.clone());
        let held = match self {
            Self::Up(client) => client.output().held(),
            Self::Away(away) => std::mem::take(&mut away.held),
        };
        *self = Self::Away(Away {
            held,
            found,
            _until: until,
        });
    }

    /// What dialling led to since the last look; with a new connection comes what was held for it.
    pub fn found(&mut self) -> Result<Option<Output>, TryRecvError> {
        let Self::Away(away) = self else {
            return Ok(None);
        };
        match away.found.try_recv() {
            Ok(client) => {
                let held = std::mem::take(&mut away.held);
                *self = Self::Up(client);
                Ok(Some(held))
            }
            Err(TryRecvError::Empty) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Tries until a server takes us, or nobody wants to know any more.
fn dial(
    urls: Vec<NatsUrl>,
    terms: Terms,
    event: Arc<EventFd>,
) -> (Receiver<NatsClient>, Sender<()>) {
    let (give, found) = channel();
    let (until, wanted) = channel();
    let tries = move || {
        while wanted.recv_timeout(RECONNECT_EVERY) == Err(RecvTimeoutError::Timeout) {
            if let Ok(client) = NatsClient::connect(&urls, &terms) {
                let _ = give.send(client);
                let _ = event.write(1);
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("stan-dial".into());
    if let Err(error) = thread.spawn(tries) {
        // Nobody holds the other end then, which is seen and tried again.
        log::error!("STREAM: thread that reconnects: {error}");
    }
    (found, until)
}
