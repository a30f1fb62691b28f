//! Looks at servers, each on a thread of its own, so that one that hangs holds up nobody.

use super::fetch::{Answer, Ask, Client};
use super::json::Varz;
use super::options::Address;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

/// What the threads tell.
#[derive(Debug)]
pub enum News {
    /// A look at this server, and how it went.
    Look(Address, Box<Result<Answer, String>>),
    /// Somebody answers at an address where a server may be.
    Found(Address, Option<String>),
    Name(String, Option<String>),
}

/// Looks at one server again and again; ends with this.
#[derive(Debug)]
pub struct Poller {
    asks: Sender<Ask>,
}

impl Poller {
    pub fn start(
        client: Client,
        address: Address,
        ask: Ask,
        interval: Duration,
        news: Sender<News>,
    ) -> Self {
        let (asks, changes) = mpsc::channel();
        thread::spawn(move || {
            let mut ask = ask;
            loop {
                let began = Instant::now();
                let look = client.answer(&address, &ask);
                let look = look.map_err(|failure| failure.reason());
                if news
                    .send(News::Look(address.clone(), Box::new(look)))
                    .is_err()
                {
                    return;
                }
                match changes.recv_timeout(interval.saturating_sub(began.elapsed())) {
                    Ok(change) => ask = changes.try_iter().last().unwrap_or(change),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        });
        Self { asks }
    }

    /// From the next look on, which comes at once.
    pub fn ask(&self, ask: Ask) {
        let _ = self.asks.send(ask); // a thread that has ended has nobody to tell anything
    }
}

/// Tells whether a server answers there, and which.
pub fn probe(client: Client, address: Address, news: Sender<News>) {
    thread::spawn(move || {
        let id = client.get::<Varz>(&address, "/varz").ok();
        let id = id.and_then(|varz| varz.server_id);
        let _ = news.send(News::Found(address, id));
    });
}
