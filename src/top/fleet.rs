//! What is known of all servers looked at, and which ones their routes lead to.

use super::fetch::Answer;
use super::options::Address;
use super::rates::{Rates, ServerRates};
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// Between two tries at an address where another server may be.
const PROBE_AGAIN: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Seen {
    pub address: Address,
    /// The last one there was, also while the server is away.
    pub answer: Answer,
    /// Why there is none now.
    pub away: Option<String>,
    pub rates: ServerRates,
    /// It was never there so far.
    fresh: bool,
}

impl Seen {
    pub fn new(address: Address) -> Self {
        Self {
            address,
            answer: Answer::default(),
            away: None,
            rates: ServerRates::default(),
            fresh: true,
        }
    }

    /// Takes the outcome of a look; `clock` is ours, in seconds.
    pub fn take(&mut self, look: Result<Answer, String>, clock: f64) {
        match look {
            Err(error) => {
                self.away = Some(error);
                self.rates = ServerRates::default();
            }
            Ok(answer) => {
                self.away = None;
                self.fresh = false;
                self.rates.take_varz(&answer.varz, clock);
                if let Some(connz) = &answer.connz {
                    self.rates.take_connz(connz, clock);
                }
                if let Some(streaming) = &answer.streaming {
                    self.rates.channels.take(&streaming.channels, clock);
                }
                self.answer = answer;
            }
        }
    }

    pub fn is_here(&self) -> bool {
        self.away.is_none() && !self.fresh
    }

    pub fn id(&self) -> Option<&str> {
        self.answer.varz.server_id.as_deref()
    }

    /// What people call it.
    pub fn name(&self) -> String {
        let varz = &self.answer.varz;
        let named = varz.server_name.clone().filter(|name| !name.is_empty());
        let name = named.or(varz.server_id.clone());
        name.unwrap_or_else(|| self.address.to_string())
    }

    /// Hosts of other servers of the cluster.
    fn neighbours(&self) -> impl Iterator<Item = String> {
        let routez = self.answer.routez.as_ref();
        let routes = routez.and_then(|routez| routez.routes.as_deref());
        let ips = routes.unwrap_or_default().iter();
        let urls = self.answer.varz.connect_urls.as_deref();
        let told = urls.unwrap_or_default().iter().filter_map(|url| {
            let (host, _) = url.rsplit_once(':')?;
            Some(host.trim_matches(['[', ']']).to_owned())
        });
        ips.filter_map(|route| route.ip.clone()).chain(told)
    }

    pub fn rates(&self) -> Rates {
        self.rates.now.unwrap_or_default()
    }
}

#[derive(Debug, Default)]
pub struct Fleet {
    pub servers: Vec<Seen>,
    probed: HashMap<Address, Instant>,
}

impl Fleet {
    pub fn new(addresses: &[Address]) -> Self {
        Self {
            servers: addresses.iter().cloned().map(Seen::new).collect(),
            probed: HashMap::new(),
        }
    }

    pub fn take(&mut self, address: &Address, look: Result<Answer, String>, clock: f64) {
        if let Some(seen) = self
            .servers
            .iter_mut()
            .find(|seen| seen.address == *address)
        {
            seen.take(look, clock);
        }
    }

    /// Whether another entry before this one is the same server under another name. It counts once.
    pub fn is_twin(&self, index: usize) -> bool {
        let seen = &self.servers[index];
        let before = &self.servers[..index];
        seen.id().is_some() && before.iter().any(|other| other.id() == seen.id())
    }

    /// Every server once.
    pub fn distinct(&self) -> impl Iterator<Item = &Seen> {
        let all = self.servers.iter().enumerate();
        all.filter(|(index, _)| !self.is_twin(*index))
            .map(|(_, seen)| seen)
    }

    /// Ids that routes name and nobody here has.
    fn missing(&self) -> HashSet<&str> {
        let known: HashSet<&str> = self.servers.iter().filter_map(Seen::id).collect();
        let here = self.servers.iter().filter(|seen| seen.is_here());
        let routes = here.filter_map(|seen| seen.answer.routez.as_ref()?.routes.as_ref());
        let ids = routes
            .flatten()
            .filter_map(|route| route.remote_id.as_deref());
        ids.filter(|id| !known.contains(id)).collect()
    }

    /// Addresses to try while somebody is missing: hosts that routes lead to or that clients are told of,
    /// with the monitoring port of the server that knows them.
    pub fn candidates(&mut self, now: Instant) -> Vec<Address> {
        if self.missing().is_empty() {
            return Vec::new();
        }
        let mut found = Vec::new();
        for seen in self.servers.iter().filter(|seen| seen.is_here()) {
            for host in seen.neighbours() {
                let address = Address {
                    host,
                    ..seen.address.clone()
                };
                let taken = self.servers.iter().any(|seen| seen.address == address);
                let at = self.probed.get(&address);
                let waits = at.is_some_and(|at| now.duration_since(*at) < PROBE_AGAIN);
                if !taken && !waits && !found.contains(&address) {
                    found.push(address);
                }
            }
        }
        let tried = found.iter().map(|address| (address.clone(), now));
        self.probed.extend(tried);
        found
    }

    /// A server answered at an address we tried; it is taken in only if a route names it. Whoever else
    /// listens there is none of ours.
    pub fn admit(&mut self, address: Address, id: Option<&str>) -> bool {
        let wanted = id.is_some_and(|id| self.missing().contains(id));
        let new = wanted && self.servers.iter().all(|seen| seen.address != address);
        if new {
            self.servers.push(Seen {
                // The next probe must find it known.
                answer: Answer {
                    varz: super::json::Varz {
                        server_id: id.map(str::to_owned),
                        ..Default::default()
                    },
                    ..Answer::default()
                },
                ..Seen::new(address)
            });
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: &str) -> Address {
        Address {
            https: false,
            host: host.into(),
            port: 8222,
        }
    }

    fn answer(id: &str, routes: &[(&str, &str)]) -> Answer {
        let routes: Vec<_> = routes
            .iter()
            .map(|(id, ip)| serde_json::json!({"remote_id": id, "ip": ip}))
            .collect();
        Answer {
            varz: serde_json::from_value(serde_json::json!({
                "server_id": id, "connect_urls": ["10.0.0.3:4222", "[fe80::4]:4222"],
            }))
            .unwrap(),
            routez: Some(serde_json::from_value(serde_json::json!({"routes": routes})).unwrap()),
            ..Answer::default()
        }
    }

    #[test]
    fn one_server_under_two_names_counts_once() {
        let mut fleet = Fleet::new(&[address("localhost"), address("127.0.0.1"), address("b")]);
        for (host, id) in [("localhost", "A"), ("127.0.0.1", "A"), ("b", "B")] {
            fleet.take(&address(host), Ok(answer(id, &[])), 0.0);
        }
        let distinct: Vec<_> = fleet.distinct().map(|seen| seen.id().unwrap()).collect();
        assert_eq!(distinct, ["A", "B"]);
    }

    #[test]
    fn routes_lead_to_servers_and_strangers_stay_out() {
        let mut fleet = Fleet::new(&[address("a")]);
        let now = Instant::now();
        let routes = [("B", "10.0.0.2"), ("A", "10.0.0.1"), ("C", "10.0.0.3")];
        fleet.take(&address("a"), Ok(answer("A", &routes)), 0.0);
        let tried = fleet.candidates(now);
        let expect = ["10.0.0.2", "10.0.0.1", "10.0.0.3", "fe80::4"];
        assert_eq!(tried, expect.map(address));
        assert!(fleet.candidates(now).is_empty(), "not again at once");
        assert_eq!(fleet.candidates(now + PROBE_AGAIN).len(), 4);
        assert!(!fleet.admit(address("10.0.0.2"), Some("stranger")));
        assert!(!fleet.admit(address("10.0.0.2"), None));
        assert!(fleet.admit(address("10.0.0.2"), Some("B")));
        assert!(!fleet.admit(address("b.example"), Some("B")), "once");
        assert_eq!(fleet.servers.len(), 2);
    }

    #[test]
    fn away_and_back() {
        let mut fleet = Fleet::new(&[address("a")]);
        assert!(!fleet.servers[0].is_here());
        fleet.take(&address("a"), Err("connection refused".into()), 0.0);
        fleet.take(&address("a"), Ok(answer("A", &[])), 1.0);
        assert!(fleet.servers[0].is_here());
        fleet.take(&address("a"), Err("no answer in time".into()), 2.0);
        let seen = &fleet.servers[0];
        assert_eq!(seen.id(), Some("A"), "what was known stays");
        assert!(!seen.is_here() && seen.rates.now.is_none());
    }
}
