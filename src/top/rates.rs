//! What two answers of a server make together: rates.

use super::data::{Snapshot, Varz};
use chrono::DateTime;
use std::collections::{HashMap, VecDeque};

/// Looks kept for the sparklines.
const HISTORY: usize = 120;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    pub in_msgs: f64,
    pub out_msgs: f64,
    pub in_bytes: f64,
    pub out_bytes: f64,
}

/// The last looks at one server.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    pub now: Snapshot,
    before: Option<Snapshot>,
    pub rates: Rates,
    /// Messages per second, oldest first.
    pub in_history: VecDeque<u64>,
    pub out_history: VecDeque<u64>,
    seconds: f64,
}

fn seconds(from: &str, to: &str) -> Option<f64> {
    let parse = |text| DateTime::parse_from_rfc3339(text).ok();
    let elapsed = parse(to)? - parse(from)?;
    let seconds = elapsed.num_microseconds()? as f64 / 1e6;
    (seconds > 0.0).then_some(seconds)
}

/// A counter that went back belongs to a server that was started anew.
fn per_second(now: u64, before: u64, seconds: f64) -> f64 {
    now.checked_sub(before)
        .map_or(0.0, |grown| grown as f64 / seconds)
}

impl Watched {
    pub fn update(&mut self, snapshot: Snapshot) {
        if let Some(error) = snapshot.error {
            // The server is away: its last figures stay, its rates do not.
            self.now.error = Some(error);
            self.now.address = snapshot.address;
            self.rates = Rates::default();
            return;
        }
        let before = std::mem::replace(&mut self.now, snapshot);
        let same = before.varz.server_id == self.now.varz.server_id && before.error.is_none();
        let elapsed = seconds(&before.varz.now, &self.now.varz.now).filter(|_| same);
        match elapsed {
            None => self.before = None,
            Some(elapsed) => {
                let (now, then): (&Varz, &Varz) = (&self.now.varz, &before.varz);
                self.seconds = elapsed;
                self.rates = Rates {
                    in_msgs: per_second(now.in_msgs, then.in_msgs, elapsed),
                    out_msgs: per_second(now.out_msgs, then.out_msgs, elapsed),
                    in_bytes: per_second(now.in_bytes, then.in_bytes, elapsed),
                    out_bytes: per_second(now.out_bytes, then.out_bytes, elapsed),
                };
                for (history, value) in [
                    (&mut self.in_history, self.rates.in_msgs),
                    (&mut self.out_history, self.rates.out_msgs),
                ] {
                    history.push_back(value as u64);
                    if history.len() > HISTORY {
                        history.pop_front();
                    }
                }
                self.before = Some(before);
            }
        }
    }

    /// Rates of connections by cid; empty without two looks.
    pub fn connection_rates(&self) -> HashMap<u64, Rates> {
        let Some(before) = &self.before else {
            return HashMap::new();
        };
        let then: HashMap<u64, _> = before
            .connz
            .connections
            .iter()
            .map(|c| (c.cid, c))
            .collect();
        let rate = |c: &super::data::Connection| {
            let old = then.get(&c.cid)?;
            let rates = Rates {
                in_msgs: per_second(c.in_msgs, old.in_msgs, self.seconds),
                out_msgs: per_second(c.out_msgs, old.out_msgs, self.seconds),
                in_bytes: per_second(c.in_bytes, old.in_bytes, self.seconds),
                out_bytes: per_second(c.out_bytes, old.out_bytes, self.seconds),
            };
            Some((c.cid, rates))
        };
        self.now.connz.connections.iter().filter_map(rate).collect()
    }

    /// Messages per second of each loop, in and out.
    pub fn loop_rates(&self) -> Vec<(f64, f64)> {
        let before = self
            .before
            .as_ref()
            .map_or(&[][..], |before| &before.varz.loops);
        let loops = self.now.varz.loops.iter().enumerate();
        loops
            .map(|(index, now)| match before.get(index) {
                Some(then) => (
                    per_second(now.in_msgs, then.in_msgs, self.seconds),
                    per_second(now.out_msgs, then.out_msgs, self.seconds),
                ),
                None => (0.0, 0.0),
            })
            .collect()
    }

    /// Messages stored per second, by channel.
    pub fn channel_rate(&self, name: &str) -> f64 {
        let last = |snapshot: &Snapshot| {
            let channels = snapshot.channels.as_ref()?;
            let channel = channels
                .channels
                .iter()
                .find(|channel| channel.name == name)?;
            Some(channel.last_seq)
        };
        match (last(&self.now), self.before.as_ref().and_then(last)) {
            (Some(now), Some(before)) => per_second(now, before, self.seconds),
            _ => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(now: &str, in_msgs: u64) -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.varz.now = now.into();
        snapshot.varz.in_msgs = in_msgs;
        snapshot
    }

    #[test]
    fn rates_follow_the_servers_clock() {
        let mut watched = Watched::default();
        watched.update(look("2026-01-01T00:00:00Z", 100));
        assert_eq!(watched.rates.in_msgs, 0.0);
        watched.update(look("2026-01-01T00:00:02.5+00:00", 350));
        assert_eq!(watched.rates.in_msgs, 100.0);
        // Started anew: the counter went back.
        watched.update(look("2026-01-01T00:00:04Z", 3));
        assert_eq!(watched.rates.in_msgs, 0.0);
        let away = Snapshot {
            error: Some("away".into()),
            ..Snapshot::default()
        };
        watched.update(away);
        assert_eq!(watched.now.varz.in_msgs, 3);
        assert_eq!(watched.in_history, [100, 0]);
    }
}
