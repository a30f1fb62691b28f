//! Dead letters, as the model has them: from `foo` to `dead`.

use super::*;

impl Model {
    /// What `dead` holds that no client published must have been due, and sent as often as it may be.
    pub(super) fn take_letters(&mut self) -> Verdict {
        let engine = &mut self.world.engine;
        let Some(index) = engine.by_name.get("dead").copied() else {
            return Ok(());
        };
        let store = engine.channel(index).store;
        let last = engine.store.bounds(store).last;
        let known = self.channels.get("dead").map_or(0, |held| held.last);
        for letter in known + 1..=last {
            let bytes = self.world.engine.store.lookup(store, letter).unwrap();
            let message = pb::MsgProto::decode(bytes.unwrap()).unwrap();
            self.note(format_args!("  letter {letter}: {}", message.reply));
            self.letter(&message)
                .map_err(|why| format!("letter {letter}, {}: {why}", message.reply))?;
            if !self.make_channel("dead") {
                return Err("it went to a channel too many".into());
            }
            let held = self.channels.get_mut("dead").unwrap();
            held.last += 1;
            held.times.push(message.timestamp);
            self.letters += 1;
        }
        Ok(())
    }

    fn letter(&mut self, message: &pb::MsgProto) -> Verdict {
        let now = self.world.now;
        let origin: serde_json::Value =
            serde_json::from_str(&message.reply).map_err(|_| "not from anywhere")?;
        expect_eq("its channel", origin["channel"].as_str(), Some("foo"))?;
        expect_eq("its time", message.timestamp, now)?;
        let number = |name: &str| origin[name].as_u64().unwrap_or(0);
        let (seq, deliveries) = (number("sequence"), number("deliveries") as u32);
        if deliveries <= self.redeliveries_max {
            return Err(format!("it was sent {deliveries} times"));
        }
        let is_its_own = |sub: &ModelSub| {
            let group = origin["queue"].as_str().unwrap_or("");
            let durable = sub.durable.as_ref().and_then(|key| key.rsplit('-').next());
            let own = origin["client"] == *sub.client && origin["durable"].as_str() == durable;
            sub.group.as_deref().unwrap_or("") == group && (own || !group.is_empty())
        };
        let is_due = |sub: &ModelSub| {
            let unacked = sub.unacked.get(&seq);
            unacked.is_some_and(|one| one.redeliveries + 1 == deliveries && one.from <= now)
        };
        let owners = self
            .subs
            .iter()
            .filter(|(place, sub)| place.0 == "foo" && is_its_own(sub) && is_due(sub));
        // Of several, the one for whom it is most urgent; not one that is sent it again in this very step.
        let is_sent = |sub: &ModelSub| {
            let mut sent = self.world.out.0.iter();
            sent.any(|(subject, _, payload)| {
                *subject == sub.inbox
                    && pb::MsgProto::decode(&payload[..]).is_ok_and(|other| other.sequence == seq)
            })
        };
        let owner = owners.min_by_key(|(_, sub)| (is_sent(sub), sub.unacked[&seq].until));
        if let Some(place) = owner.map(|(place, _)| place.clone()) {
            self.forget(&place, seq);
            return Ok(());
        }
        let mut ended = self.ending.values();
        let before = ended.any(|(channel, sub)| channel == "foo" && is_its_own(sub) && is_due(sub));
        match before {
            true => Ok(()),
            false => Err("it was not due, or not sent as often".into()),
        }
    }

    /// What should have become a letter, and found too many channels, stays for another AckWait, and is sent again then.
    pub(super) fn keep_what_cannot_leave(&mut self) {
        let now = self.world.now;
        if self.channels.contains_key("dead") || self.channels.len() < CHANNELS_MAX {
            return;
        }
        let max = self.redeliveries_max;
        for (place, sub) in &mut self.subs {
            if place.0 != "foo" {
                continue;
            }
            if !sub.active {
                // It may have been tried before its client went, within this very step.
                let spent = sub.unacked.values_mut();
                let spent = spent.filter(|one| one.redeliveries >= max && one.from <= now);
                spent.for_each(|one| one.unburied = true);
                continue;
            }
            let sick = sub.group.is_none() && self.sick.contains(&sub.client);
            let spent = sub
                .unacked
                .values_mut()
                .filter(|one| one.redeliveries >= max);
            for unacked in spent.filter(|one| one.from <= now) {
                let wait = match unacked.unplaced {
                    true => 6 * SECOND,
                    false => sub.ack_wait,
                };
                if unacked.until <= now && !unacked.unplaced && !sick {
                    unacked.from = now + wait;
                }
                unacked.until = unacked.until.max(now + wait);
                unacked.unburied = true;
            }
        }
    }
}
