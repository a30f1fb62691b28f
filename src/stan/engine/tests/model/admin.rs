//! Requests of administration.

use super::*;

impl Model {
    pub(super) fn admin(
        &mut self,
        verb: &str,
        request: serde_json::Value,
    ) -> Result<serde_json::Value, String> {
        let subject = format!("_STAN_ADMIN.c.{verb}");
        let answers = self.request(Inlet::ADMIN, &subject, request.to_string().into_bytes());
        expect_eq("answers to a request of administration", answers.len(), 1)?;
        Ok(serde_json::from_slice(&answers[0]).unwrap())
    }

    pub(super) fn purge(&mut self) -> Verdict {
        let channel = self.one_of(&CHANNELS).to_owned();
        let to = self.rng.u64(0..25);
        self.note(format_args!("purge {channel} to {to}"));
        let request = serde_json::json!({ "channel": channel, "to": to });
        let answer = self.admin("purge", request)?;
        let Some(held) = self.channels.get_mut(&channel) else {
            return expect_eq("purge of no channel", answer["error"].is_string(), true);
        };
        let before = held.times.len();
        let to = to.min(held.last);
        held.drop_to(to);
        let purged = before - held.times.len();
        expect_eq("purged", answer["purged"].as_u64(), Some(purged as u64))?;
        for (place, sub) in &mut self.subs {
            if place.0 == channel {
                sub.unacked.retain(|seq, _| *seq > to);
            }
        }
        self.judge()
    }

    pub(super) fn delete(&mut self) -> Verdict {
        let channel = self.one_of(&CHANNELS).to_owned();
        let force = self.rng.bool();
        self.note(format_args!("delete {channel}, by force: {force}"));
        let request = serde_json::json!({ "channel": channel, "force": force });
        let answer = self.admin("delete", request)?;
        let active = self
            .subs
            .iter()
            .any(|(place, sub)| place.0 == channel && sub.active);
        let expected = self.channels.contains_key(&channel) && (force || !active);
        expect_eq("delete", answer["deleted"] == true, expected)?;
        if expected {
            let gone: Vec<(String, u64)> = self
                .subs
                .keys()
                .filter(|place| place.0 == channel)
                .cloned()
                .collect();
            for place in gone {
                let sub = self.subs.remove(&place).unwrap();
                self.old_inboxes.push((channel.clone(), sub.ack_inbox));
            }
            self.channels.remove(&channel);
        }
        self.judge()
    }

    pub(super) fn remove_durable(&mut self) -> Verdict {
        let Some(place) = self.find(|_, sub| sub.durable.is_some()) else {
            return Ok(());
        };
        let sub = self.subs[&place].clone();
        let name = sub
            .durable
            .as_ref()
            .and_then(|key| key.rsplit('-').next())
            .unwrap();
        self.note(format_args!("remove durable {name} of {}", sub.client));
        let request =
            serde_json::json!({ "channel": place.0, "client": sub.client, "durable": name });
        let answer = self.admin("remove-durable", request)?;
        expect_eq("remove-durable", answer["removed"] == 1, !sub.active)?;
        if !sub.active {
            self.subs.remove(&place);
        }
        self.judge()
    }

    pub(super) fn skip(&mut self) -> Verdict {
        let Some(place) = self.find(|_, sub| sub.durable.is_some()) else {
            return Ok(());
        };
        let sub = self.subs[&place].clone();
        let name = sub
            .durable
            .as_ref()
            .and_then(|key| key.rsplit('-').next())
            .unwrap();
        let seq = match sub.unacked.keys().next() {
            Some(seq) => *seq,
            None => self.rng.u64(1..20),
        };
        self.note(format_args!("skip {seq} for {name} of {}", sub.client));
        let request = serde_json::json!({ "channel": place.0, "client": sub.client, "durable": name, "sequence": seq });
        let answer = self.admin("skip", request)?;
        let unacked = sub.unacked.get(&seq);
        if !unacked.is_some_and(|unacked| unacked.forgotten) {
            expect_eq("skip", answer["skipped"] == seq, unacked.is_some())?;
        }
        self.forget(&place, seq);
        self.judge()
    }
}
