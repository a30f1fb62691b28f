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
    Up(Box<NatsClient>),
    Away(Away),
}

pub struct Away {
    held: Output,
    found: Receiver<NatsClient>,
    /// Servers that the last one told of.
    others: Vec<NatsUrl>,
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

    /// Gives the connection up, and has a thread look for another one: to a server of the configured ones, or one that the last
    /// server told of. `event` tells when it has found it.
    pub fn lose(&mut self, urls: &[NatsUrl], terms: &Terms, event: &Arc<EventFd>) {
        let (held, others) = match self {
            Self::Up(client) => (client.output().held(), std::mem::take(client.others())),
            Self::Away(away) => (
                std::mem::take(&mut away.held),
                std::mem::take(&mut away.others),
            ),
        };
        let is_new = |other: &&NatsUrl| !urls.iter().any(|url| url.same_place(other));
        let all = urls.iter().chain(others.iter().filter(is_new));
        let (found, until) = dial(all.cloned().collect(), terms.clone(), event.clone());
        *self = Self::Away(Away {
            held,
            found,
            others,
            _until: until,
        });
    }

    /// What dialling led to since the last look; with a new connection comes what was held for it.
    pub fn found(&mut self) -> Result<Option<Output>, TryRecvError> {
        let Self::Away(away) = self else {
            return Ok(None);
        };
        match away.found.try_recv() {
            Ok(mut client) => {
                let held = std::mem::take(&mut away.held);
                if client.others().is_empty() {
                    *client.others() = std::mem::take(&mut away.others);
                }
                *self = Self::Up(Box::new(client));
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

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::PollFlags;
    use nix::sys::eventfd::EfdFlags;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(60);

    /// A server that takes one client, and tells of these.
    fn serve(listener: TcpListener, told: String) -> std::thread::JoinHandle<TcpStream> {
        std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            write!(socket, "INFO {{\"connect_urls\":[{told}]}}\r\n").unwrap();
            let mut said = Vec::new();
            while !said.ends_with(b"PING\r\n") {
                let mut bytes = [0; 1000];
                let read = socket.read(&mut bytes).unwrap();
                said.extend_from_slice(&bytes[..read]);
            }
            socket.write_all(b"PONG\r\n").unwrap();
            socket
        })
    }

    fn listen() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        (listener, address)
    }

    fn addresses(client: &mut NatsClient) -> Vec<String> {
        let others = client.others().iter();
        others.map(|url| url.place.address()).collect()
    }

    #[test]
    fn servers_that_were_told_of_are_tried_as_well() {
        let ((first, at), (second, elsewhere)) = (listen(), listen());
        let first = serve(first, "\"127.0.0.1:1\"".into());
        let urls = [NatsUrl::parse(&format!("nats://me:secret@{at}")).unwrap()];
        let terms = Terms::default();
        let mut client = NatsClient::connect(&urls, &terms).unwrap();
        assert_eq!(addresses(&mut client), ["127.0.0.1:1"]);
        // The list of another time takes its place, and one without any does not.
        let mut socket = first.join().unwrap();
        let told = format!("INFO {{\"connect_urls\":[\"{at}\",\"{elsewhere}\"]}}\r\nINFO {{}}\r\n");
        socket.write_all(told.as_bytes()).unwrap();
        let mut read = 0;
        while read < told.len() {
            let until = Instant::now() + LONG;
            client.wait_for(PollFlags::POLLIN, until, "INFO").unwrap();
            read += client.receive(|_, _| {}).unwrap();
        }
        assert_eq!(addresses(&mut client), [at.as_str(), &elsewhere]);
        // It goes, and the other one tells of nobody.
        drop(socket);
        let second = serve(second, String::new());
        let event = Arc::new(EventFd::from_flags(EfdFlags::empty()).unwrap());
        let mut link = Link::Up(Box::new(client));
        link.lose(&urls, &terms, &event);
        event.read().unwrap();
        link.found().unwrap().unwrap();
        let client = link.client().unwrap();
        assert_eq!(client.place(), elsewhere);
        assert_eq!(addresses(client), [at, elsewhere]);
        drop(second.join().unwrap());
    }
}
