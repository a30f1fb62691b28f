//! Without a connection to NATS: time and disk go on, clients are not to blame.
//!
//! Deliveries stay where they are, in the store: nothing counts as sent that nobody can have got. Heartbeats stop, and none that
//! was out counts as unanswered. What the disk completes meanwhile is still answered; the outlet keeps that for later.

use super::Engine;

impl Engine {
    /// The connection is lost; `start` goes on.
    pub fn handle_disconnect(&mut self) {
        self.away = true;
        for client in self.clients.iter_mut() {
            // Timers of heartbeats look at these times, so those that are set mean nothing any more.
            (client.beat_out, client.beat_at) = (false, i64::MAX);
            // Neither the question nor the answer has a way; whoever asks for the id gives up and asks again.
            client.challenger = None;
        }
    }

    pub(super) fn come_back(&mut self) {
        if !std::mem::take(&mut self.away) {
            return;
        }
        // As after a restart: clients need a moment to find the server again.
        let at = self.now.saturating_add(self.settings.heartbeat_timeout);
        let clients = self.clients.iter();
        let serials: Vec<u64> = clients.map(|client| client.serial).collect();
        for serial in serials {
            self.plan_heartbeat(serial, at);
        }
        // Of what was sent as often as it may be an ack may be under way; it is not given up before that had time to come.
        for channel in self.channels.iter_mut().flatten() {
            let Some(rule) = &channel.dead_letters else {
                continue;
            };
            for sub in channel.subs.values_mut() {
                sub.postpone(at, |pending| pending.redeliveries >= rule.max_redeliveries);
            }
        }
        let subs: Vec<_> = self
            .channels
            .iter()
            .enumerate()
            .flat_map(|(index, channel)| {
                let subs = channel.iter().flat_map(|channel| channel.subs.keys());
                subs.map(move |id| (index, *id))
            })
            .collect();
        for (index, id) in subs {
            self.arm(index, id);
        }
    }
}
