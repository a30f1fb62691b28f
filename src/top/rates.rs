//! Rates: differences of totals over differences of the server's own clock.

use super::json::{Channelsz, Connz, Varz, seconds};
use std::collections::{HashMap, VecDeque};

/// Samples kept for sparklines.
const HISTORY_MAX: usize = 240;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    pub in_msgs: u64,
    pub out_msgs: u64,
    pub in_bytes: u64,
    pub out_bytes: u64,
}

/// Per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    pub in_msgs: f64,
    pub out_msgs: f64,
    pub in_bytes: f64,
    pub out_bytes: f64,
}

impl Rates {
    pub fn add(&mut self, other: Rates) {
        self.in_msgs += other.in_msgs;
        self.out_msgs += other.out_msgs;
        self.in_bytes += other.in_bytes;
        self.out_bytes += other.out_bytes;
    }
}

impl Totals {
    /// None when a total went back: these are counters of something else then.
    fn since(&self, earlier: &Totals, elapsed: f64) -> Option<Rates> {
        let rate = |now: u64, then: u64| Some(now.checked_sub(then)? as f64 / elapsed);
        Some(Rates {
            in_msgs: rate(self.in_msgs, earlier.in_msgs)?,
            out_msgs: rate(self.out_msgs, earlier.out_msgs)?,
            in_bytes: rate(self.in_bytes, earlier.in_bytes)?,
            out_bytes: rate(self.out_bytes, earlier.out_bytes)?,
        })
    }
}

/// The rates of one server and of its connections.
#[derive(Clone, Debug, Default)]
pub struct ServerRates {
    /// Who told it, when by its clock, and what.
    last: Option<(String, f64, Totals)>,
    last_connections: HashMap<u64, Totals>,
    last_connections_at: Option<f64>,
    /// None until there are two samples of one run of a server.
    pub now: Option<Rates>,
    pub connections: HashMap<u64, Rates>,
    /// Of midge's event loops.
    pub loops: Vec<Rates>,
    last_loops: Vec<Totals>,
    /// The newest is the last.
    pub history: VecDeque<Rates>,
    pub channels: ChannelRates,
}

impl ServerRates {
    /// `clock`: our own seconds, for a server that does not tell its time.
    pub fn take_varz(&mut self, varz: &Varz, clock: f64) {
        let totals = Totals {
            in_msgs: varz.in_msgs.unwrap_or(0),
            out_msgs: varz.out_msgs.unwrap_or(0),
            in_bytes: varz.in_bytes.unwrap_or(0),
            out_bytes: varz.out_bytes.unwrap_or(0),
        };
        let at = varz.now.as_deref().and_then(seconds).unwrap_or(clock);
        let who = varz.server_id.clone().unwrap_or_default();
        if let Some((before, then, earlier)) = &self.last {
            if *before == who && at == *then {
                return; // the same sample again
            }
            let rates = match *before == who && at > *then {
                true => totals.since(earlier, at - then),
                false => None,
            };
            match rates {
                Some(rates) => {
                    self.loops = loop_rates(varz, &self.last_loops, at - then);
                    self.history.push_back(rates);
                    if self.history.len() > HISTORY_MAX {
                        self.history.pop_front();
                    }
                    self.now = Some(rates);
                }
                None => *self = Self::default(),
            }
        }
        self.last_loops = loop_totals(varz);
        self.last = Some((who, at, totals));
    }

    pub fn take_connz(&mut self, connz: &Connz, clock: f64) {
        let at = connz.now.as_deref().and_then(seconds).unwrap_or(clock);
        let elapsed = self.last_connections_at.map(|then| at - then);
        if elapsed.is_some_and(|elapsed| elapsed <= 0.0) {
            return;
        }
        let list = connz.connections.as_deref().unwrap_or_default();
        let mut totals = HashMap::with_capacity(list.len());
        self.connections.clear();
        for connection in list {
            let Some(cid) = connection.cid else { continue };
            let now = Totals {
                in_msgs: connection.in_msgs.unwrap_or(0),
                out_msgs: connection.out_msgs.unwrap_or(0),
                in_bytes: connection.in_bytes.unwrap_or(0),
                out_bytes: connection.out_bytes.unwrap_or(0),
            };
            totals.insert(cid, now);
            let earlier = self.last_connections.get(&cid);
            if let (Some(elapsed), Some(earlier)) = (elapsed, earlier)
                && let Some(rates) = now.since(earlier, elapsed)
            {
                self.connections.insert(cid, rates);
            }
        }
        self.last_connections = totals;
        self.last_connections_at = Some(at);
    }
}

fn loop_totals(varz: &Varz) -> Vec<Totals> {
    let loops = varz.loops.as_deref().unwrap_or_default().iter();
    let totals = loops.map(|figures| Totals {
        in_msgs: figures.in_msgs.unwrap_or(0),
        out_msgs: figures.out_msgs.unwrap_or(0),
        ..Totals::default()
    });
    totals.collect()
}

fn loop_rates(varz: &Varz, before: &[Totals], elapsed: f64) -> Vec<Rates> {
    let pairs = loop_totals(varz).into_iter().zip(before);
    let rates = pairs.map(|(now, then)| now.since(then, elapsed).unwrap_or_default());
    rates.collect()
}

/// The rates of the channels of a streaming server, by name.
#[derive(Clone, Debug, Default)]
pub struct ChannelRates {
    last: Option<(f64, HashMap<String, ChannelSample>)>,
    pub now: HashMap<String, ChannelRate>,
}

#[derive(Clone, Debug)]
struct ChannelSample {
    last_seq: u64,
    /// Last sent by client and ack inbox.
    sent: HashMap<(String, String), u64>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChannelRate {
    pub published: f64,
    pub delivered: f64,
    /// By client.
    pub clients: HashMap<String, f64>,
}

impl ChannelRates {
    pub fn take(&mut self, channelsz: &Channelsz, clock: f64) {
        let at = channelsz.now.as_deref().and_then(seconds).unwrap_or(clock);
        let before = match self.last.take() {
            Some((then, samples)) if at == then => {
                self.last = Some((then, samples));
                return;
            }
            Some((then, samples)) if at > then => Some((at - then, samples)),
            _ => None,
        };
        self.now.clear();
        let mut samples = HashMap::new();
        for channel in channelsz.channels.as_deref().unwrap_or_default() {
            let name = channel.name.clone().unwrap_or_default();
            let mut sample = ChannelSample {
                last_seq: channel.last_seq.unwrap_or(0),
                sent: HashMap::new(),
            };
            for subscription in channel.subscriptions.as_deref().unwrap_or_default() {
                let client = subscription.client_id.clone().unwrap_or_default();
                let inbox = subscription.ack_inbox.clone().unwrap_or_default();
                let sent = subscription.last_sent.unwrap_or(0);
                sample.sent.insert((client, inbox), sent);
            }
            if let Some((elapsed, earlier)) = &before
                && let Some(earlier) = earlier.get(&name)
            {
                self.now
                    .insert(name.clone(), sample.since(earlier, *elapsed));
            }
            samples.insert(name, sample);
        }
        self.last = Some((at, samples));
    }
}

impl ChannelSample {
    /// Subscriptions that came meanwhile do not count: where they began is not known.
    fn since(&self, earlier: &ChannelSample, elapsed: f64) -> ChannelRate {
        let mut rate = ChannelRate {
            published: self.last_seq.saturating_sub(earlier.last_seq) as f64 / elapsed,
            ..ChannelRate::default()
        };
        for (key, sent) in &self.sent {
            if let Some(then) = earlier.sent.get(key) {
                let delivered = sent.saturating_sub(*then) as f64 / elapsed;
                rate.delivered += delivered;
                *rate.clients.entry(key.0.clone()).or_default() += delivered;
            }
        }
        rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn varz(id: &str, second: u32, in_msgs: u64) -> Varz {
        Varz {
            server_id: Some(id.into()),
            now: Some(format!("2026-11-24T00:00:{second:02}Z")),
            in_msgs: Some(in_msgs),
            ..Varz::default()
        }
    }

    #[test]
    fn differences_by_the_servers_clock() {
        let mut rates = ServerRates::default();
        rates.take_varz(&varz("a", 1, 100), 0.0);
        assert_eq!(rates.now, None);
        rates.take_varz(&varz("a", 3, 300), 0.0);
        assert_eq!(rates.now.unwrap().in_msgs, 100.0);
        rates.take_varz(&varz("a", 3, 300), 9.0);
        assert_eq!(
            (rates.now.unwrap().in_msgs, rates.history.len()),
            (100.0, 1)
        );
    }

    #[test]
    fn another_server_begins_anew() {
        let mut rates = ServerRates::default();
        rates.take_varz(&varz("a", 1, 100), 0.0);
        rates.take_varz(&varz("a", 2, 200), 0.0);
        rates.take_varz(&varz("b", 3, 1000), 0.0);
        assert_eq!((rates.now, rates.history.len()), (None, 0));
        rates.take_varz(&varz("b", 4, 1010), 0.0);
        assert_eq!(rates.now.unwrap().in_msgs, 10.0);
        rates.take_varz(&varz("b", 5, 7), 0.0);
        assert_eq!(rates.now, None, "a total went back");
    }

    #[test]
    fn without_a_clock_of_the_server_ours_counts() {
        let mut rates = ServerRates::default();
        for (clock, in_msgs) in [(1.0, 0), (1.5, 50)] {
            let varz = Varz {
                in_msgs: Some(in_msgs),
                ..Varz::default()
            };
            rates.take_varz(&varz, clock);
        }
        assert_eq!(rates.now.unwrap().in_msgs, 100.0);
    }

    #[test]
    fn connections_by_cid() {
        let connz = |second: u32, list: &[(u64, u64)]| -> Connz {
            let list: Vec<String> = list
                .iter()
                .map(|(cid, out)| format!(r#"{{"cid": {cid}, "out_bytes": {out}}}"#))
                .collect();
            let text = format!(
                r#"{{"now": "2026-11-24T00:00:{second:02}Z", "connections": [{}]}}"#,
                list.join(",")
            );
            serde_json::from_str(&text).unwrap()
        };
        let mut rates = ServerRates::default();
        rates.take_connz(&connz(0, &[(1, 10), (2, 10)]), 0.0);
        assert!(rates.connections.is_empty());
        rates.take_connz(&connz(2, &[(2, 30), (3, 99)]), 0.0);
        assert_eq!(rates.connections.len(), 1, "3 is new, 1 is gone");
        assert_eq!(rates.connections[&2].out_bytes, 10.0);
    }

    #[test]
    fn channels_by_name_and_subscription() {
        let channelsz = |second: u32, seq: u64, subscriptions: &str| -> Channelsz {
            let text = format!(
                r#"{{"now": "2026-11-24T00:00:{second:02}Z", "channels": [
                    {{"name": "c", "last_seq": {seq}, "subscriptions": [{subscriptions}]}}]}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        let mut rates = ChannelRates::default();
        let old = r#"{"client_id": "me", "ack_inbox": "a", "last_sent": 5}"#;
        rates.take(&channelsz(0, 10, old), 0.0);
        let new = r#"{"client_id": "me", "ack_inbox": "a", "last_sent": 9},
            {"client_id": "you", "ack_inbox": "b", "last_sent": 1000}"#;
        rates.take(&channelsz(2, 20, new), 0.0);
        let rate = &rates.now["c"];
        assert_eq!((rate.published, rate.delivered), (5.0, 2.0));
        assert_eq!(rate.clients["me"], 2.0);
        assert!(!rate.clients.contains_key("you"));
    }
}
