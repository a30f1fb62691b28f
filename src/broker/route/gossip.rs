//! What servers tell each other of third ones, and clients of all of them.

use crate::broker::Broker;
use crate::broker::effect::{Dial, Effect};
use crate::config::route_url::{RouteUrl, host_and_port};
use crate::wire::info::Info;
use std::net::SocketAddr;
use std::time::Duration;

impl Broker {
    /// Another server told of a third one: dial it, unless we know it.
    pub(super) fn learn_of_server(&mut self, own: &str, info: &Info) {
        let cluster = self.cluster();
        let configured = |url: &RouteUrl| url.same_place(&info.host, info.port);
        if info.server_id == own
            || self.route_to(&info.server_id).is_some()
            || cluster.routes.iter().any(configured)
        {
            return;
        }
        match RouteUrl::parse(&info.ip) {
            Ok(mut url) => {
                if info.auth_required {
                    url.user = cluster.user.clone();
                    url.password = cluster.password.clone();
                }
                let retries = cluster.connect_retries;
                self.effects.push(Effect::Dial(Dial {
                    url,
                    explicit: false,
                    wait: Duration::ZERO,
                    retries,
                }));
            }
            Err(error) => log::error!("A server was announced at {:?}: {error}", info.ip),
        }
    }

    // ---- what clients are told

    pub(super) fn learn_urls(&mut self, urls: &[String]) {
        let new = |known: &[String], url: &String| !known.contains(url);
        let before = self.routes.peer_urls.len();
        for url in urls {
            if new(&self.routes.peer_urls, url) {
                self.routes.peer_urls.push(url.clone());
            }
        }
        if self.routes.peer_urls.len() > before {
            self.announce_urls();
        }
    }

    /// Addresses another route still names stay.
    pub(super) fn forget_urls(&mut self, urls: &[String]) {
        let kept: Vec<String> = self
            .routes
            .registered
            .iter()
            .filter_map(|slot| self.receivers.clients[*slot as usize].route.as_ref())
            .filter_map(|route| route.info.as_ref())
            .flat_map(|info| info.connect_urls.iter().cloned())
            .collect();
        let before = self.routes.peer_urls.len();
        self.routes
            .peer_urls
            .retain(|url| !urls.contains(url) || kept.contains(url));
        if self.routes.peer_urls.len() < before {
            self.announce_urls();
        }
    }

    fn announce_urls(&mut self) {
        let cluster = self.cluster();
        if cluster.no_advertise {
            return;
        }
        let mut urls = cluster.client_urls.clone();
        let peers = self.routes.peer_urls.iter();
        urls.extend(
            peers
                .filter(|url| !cluster.client_urls.contains(url))
                .cloned(),
        );
        self.effects.push(Effect::ClientUrls(urls.into()));
    }
}

/// The INFO of a new server as it goes to the others: with the address it can be dialled at.
pub(super) fn announcement(info: &Info, peer: SocketAddr) -> Info {
    let mut info = info.clone();
    if info.ip.is_empty() {
        let address = host_and_port(&peer.ip().to_string(), info.port);
        info.ip = format!("nats-route://{address}/");
    }
    info
}
