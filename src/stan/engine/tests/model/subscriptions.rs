//! Subscriptions of the model: where they begin, and what is left when they end.

use super::*;

impl Model {
    pub(super) fn subscribe(&mut self) -> Verdict {
        let id = self.one_of(&CLIENTS).to_owned();
        let channel = self.one_of(&CHANNELS).to_owned();
        let durable = match self.rng.u32(0..5) {
            0..2 => self.one_of(&["d", "e"]),
            _ => "",
        };
        let group = match self.rng.u32(0..5) {
            0..2 => self.one_of(&["g", "h"]),
            _ => "",
        };
        self.next_sub += 1;
        let number = self.next_sub;
        let inbox = format!("in.{number}");
        let start = self.rng.i32(0..5);
        let request = pb::SubscriptionRequest {
            client_id: id.clone(),
            subject: channel.clone(),
            queue_group: group.into(),
            inbox: inbox.clone(),
            max_in_flight: self.rng.i32(1..5),
            ack_wait_seconds: self.rng.i32(1..6),
            durable_name: durable.into(),
            start_position: start,
            start_sequence: self.rng.u64(0..12),
            start_time_delta: self.rng.i64(-1..40) * GRID,
        };
        self.note(format_args!("subscribe {request:?}"));
        let answers = self.request(Inlet::SUBSCRIBE, "", request.encode_to_vec());
        expect_eq("answers to subscribe", answers.len(), 1)?;
        let answer = pb::SubscriptionResponse::decode(&answers[0][..]).unwrap();
        let expected = self.expect_subscribe(&request, number, &answer.ack_inbox);
        expect_eq("subscribe", answer.error, expected)?;
        self.judge()
    }

    /// The error it is to be answered with; empty: it takes effect.
    pub(super) fn expect_subscribe(
        &mut self,
        request: &pb::SubscriptionRequest,
        number: u64,
        ack_inbox: &str,
    ) -> String {
        let channel = &request.subject;
        if !self.make_channel(channel) {
            return "too many channels".into();
        }
        let (grouped, durable) = (
            !request.queue_group.is_empty(),
            !request.durable_name.is_empty(),
        );
        let group = match (grouped, durable) {
            (true, true) => Some(format!("{}:{}", request.durable_name, request.queue_group)),
            (true, false) => Some(request.queue_group.clone()),
            (false, _) => None,
        };
        let key = (durable && !grouped)
            .then(|| format!("{}-{channel}-{}", request.client_id, request.durable_name));
        let known = self.clients.contains_key(&request.client_id);
        let mut kept = None;
        if key.is_some() {
            let found = self.find(|place, sub| place.0 == *channel && sub.durable == key);
            if let Some(place) = found {
                if self.subs[&place].active && !self.replace_durable {
                    return "stan: duplicate durable registration".into();
                }
                if self.subs[&place].active {
                    self.end(&place, false);
                }
                kept = Some(place);
            }
        }
        if !known {
            return format!("can't find clientID: {}", request.client_id);
        }
        if group.is_some() {
            kept = self.find(|place, sub| place.0 == *channel && sub.group == group && !sub.active);
        }
        let now = self.world.now;
        let fresh = ModelSub {
            client: request.client_id.clone(),
            durable: key,
            group: group.clone(),
            inbox: request.inbox.clone(),
            ack_inbox: ack_inbox.into(),
            max_in_flight: request.max_in_flight as usize,
            ack_wait: i64::from(request.ack_wait_seconds) * SECOND,
            active: true,
            position: 0,
            unacked: BTreeMap::new(),
            resumed: false,
        };
        if let Some(place) = kept {
            let sub = self.subs.get_mut(&place).unwrap();
            let old = std::mem::replace(sub, fresh);
            sub.durable = old.durable;
            (sub.position, sub.unacked) = (old.position, old.unacked);
            sub.resumed = true;
            // What is not stored any more needs no ack.
            let held = &self.channels[channel];
            sub.unacked.retain(|seq, _| held.holds(*seq));
            for unacked in sub.unacked.values_mut() {
                (unacked.from, unacked.until) = (now, now);
            }
            return String::new();
        }
        let count = self.subs.keys().filter(|place| place.0 == *channel).count();
        if count >= SUBS_MAX {
            return "too many subscriptions per channel".into();
        }
        let held = self.channels.get_mut(channel).unwrap();
        let start = start_of(held, request, now);
        let mut sub = fresh;
        match group {
            Some(group) => {
                held.groups.entry(group).or_insert(start);
            }
            None => sub.position = start,
        }
        self.subs.insert((channel.clone(), number), sub);
        String::new()
    }

    pub(super) fn find(
        &self,
        wanted: impl Fn(&(String, u64), &ModelSub) -> bool,
    ) -> Option<(String, u64)> {
        let found = self.subs.iter().find(|(place, sub)| wanted(place, sub));
        found.map(|(place, _)| place.clone())
    }

    pub(super) fn unsubscribe(&mut self) -> Verdict {
        let places: Vec<(String, u64)> = self.subs.keys().cloned().collect();
        if places.is_empty() {
            return Ok(());
        }
        let place = places[self.rng.usize(..places.len())].clone();
        let for_good = self.rng.bool();
        let sub = self.subs[&place].clone();
        self.note(format_args!(
            "unsubscribe {} for good: {for_good}",
            sub.inbox
        ));
        let request = pb::UnsubscribeRequest {
            client_id: sub.client.clone(),
            subject: place.0.clone(),
            inbox: sub.ack_inbox.clone(),
            ..Default::default()
        };
        let inlet = if for_good {
            Inlet::UNSUBSCRIBE
        } else {
            Inlet::SUB_CLOSE
        };
        let answers = self.request(inlet, "", request.encode_to_vec());
        let answer = pb::SubscriptionResponse::decode(&answers[0][..]).unwrap();
        let expected = if sub.active {
            ""
        } else {
            "stan: invalid subscription"
        };
        expect_eq("unsubscribe", answer.error.as_str(), expected)?;
        if sub.active {
            self.end(&place, for_good);
        }
        self.judge()
    }

    /// A subscription ends; what becomes of its place and of what it did not acknowledge.
    pub(super) fn end(&mut self, place: &(String, u64), for_good: bool) {
        let now = self.world.now;
        let held = &self.channels[&place.0];
        // Its timer may have come first, within this step.
        for (seq, unacked) in &mut self.subs.get_mut(place).unwrap().unacked {
            unacked.forgotten |= !held.holds(*seq);
        }
        let sub = self.subs[place].clone();
        let ended = (place.0.clone(), sub.clone());
        self.ending.insert(sub.inbox.clone(), ended);
        self.old_inboxes
            .push((place.0.clone(), sub.ack_inbox.clone()));
        let Some(group) = sub.group.clone() else {
            match sub.durable.is_some() && !for_good {
                true => self.subs.get_mut(place).unwrap().active = false,
                false => drop(self.subs.remove(place)),
            }
            return;
        };
        let mut others: Vec<(String, u64)> = self
            .subs
            .iter()
            .filter(|(other, sub)| {
                *other != place
                    && other.0 == place.0
                    && sub.group.as_ref() == Some(&group)
                    && sub.active
            })
            .map(|(other, _)| other.clone())
            .collect();
        if others.is_empty() {
            let durable = group.contains(':');
            match durable && !for_good {
                true => self.subs.get_mut(place).unwrap().active = false,
                false => {
                    self.subs.remove(place);
                    self.channels
                        .get_mut(&place.0)
                        .unwrap()
                        .groups
                        .remove(&group);
                }
            }
            return;
        }
        self.subs.remove(place);
        // Who gets what is not promised; each is sent again by the old deadline, or the new member's.
        others.sort();
        let heir = others.remove(0);
        let heir = self.subs.get_mut(&heir).unwrap();
        for (seq, mut unacked) in sub.unacked {
            unacked.from = unacked.from.min(now);
            unacked.until = unacked.until.max(now + sub.ack_wait).max(now + 6 * SECOND);
            unacked.unplaced = true;
            heir.unacked.insert(seq, unacked);
            self.moved.insert(seq);
        }
    }
}

/// The place before the first message of a new subscription, by the table of the reference.
fn start_of(held: &ModelChannel, request: &pb::SubscriptionRequest, now: i64) -> u64 {
    let (first, last) = (held.first, held.last);
    if last == 0 {
        return 0;
    }
    match request.start_position {
        0 => last,
        1 if held.times.is_empty() => last,
        1 => last - 1,
        2 if request.start_time_delta <= 0 => last,
        2 => {
            let since = now - request.start_time_delta;
            let older = held.times.iter().filter(|at| **at < since).count();
            first + older as u64 - 1
        }
        3 if request.start_sequence < first => first - 1,
        3 if request.start_sequence > last => last,
        3 => request.start_sequence - 1,
        _ => first - 1,
    }
}
