//! What was sent, held against the model.

use super::*;

impl Model {
    /// Looks at everything the engine sent, and answers heartbeats, until there is nothing more.
    pub(super) fn judge(&mut self) -> Verdict {
        loop {
            self.take_letters()?;
            let mut sent = self.world.took();
            if sent.is_empty() {
                return Ok(());
            }
            self.spoil(&mut sent);
            for (subject, reply, payload) in sent {
                if let Some(rest) = subject.strip_prefix("hb.") {
                    self.beat(rest, &reply.unwrap_or_default());
                } else if subject.starts_with("in.") {
                    let message = pb::MsgProto::decode(&payload[..]).unwrap();
                    self.delivered(&subject, &message)?;
                } else if subject != "reply.to" {
                    return Err(format!("something was sent to {subject}"));
                }
            }
        }
    }

    pub(super) fn spoil(&mut self, sent: &mut Vec<(String, Option<String>, Vec<u8>)>) {
        let deliveries: Vec<usize> = sent
            .iter()
            .enumerate()
            .filter(|(_, (subject, ..))| subject.starts_with("in."))
            .map(|(at, _)| at)
            .collect();
        self.deliveries += deliveries.len();
        let Some(at) = deliveries.first().copied().filter(|_| self.deliveries > 5) else {
            return;
        };
        match self.fault {
            Fault::DeliveryLost => drop(sent.remove(at)),
            Fault::DeliveredTwice => sent.insert(at, sent[at].clone()),
            Fault::FlagLost => {
                let message = pb::MsgProto::decode(&sent[at].2[..]).unwrap();
                let plain = pb::MsgProto {
                    redelivered: false,
                    redelivery_count: 0,
                    ..message
                };
                sent[at].2 = plain.encode_to_vec();
            }
            _ => {}
        }
    }

    pub(super) fn beat(&mut self, inbox: &str, reply: &str) {
        self.note(format_args!("  heartbeat of {inbox}, answer to {reply}"));
        let (id, life) = inbox.rsplit_once('.').unwrap();
        let now = self.world.now;
        let Some(client) = self
            .clients
            .get_mut(id)
            .filter(|client| client.life.to_string() == life)
        else {
            return;
        };
        if client.mute {
            return;
        }
        client.failures = 0;
        if client.probed.take().is_none() {
            client.beat = Beat::Next(now + HEARTBEAT_INTERVAL);
        }
        let World { engine, out, .. } = &mut self.world;
        engine.handle_message(Inlet::ANSWER, reply, None, b"", now, out);
        engine.end_turn(now, out).unwrap();
        out.0.retain(|(subject, ..)| subject != "reply.to");
    }

    pub(super) fn delivered(&mut self, inbox: &str, message: &pb::MsgProto) -> Verdict {
        let (seq, now) = (message.sequence, self.world.now);
        let failed = |what: &str| Err(format!("message {seq} to {inbox}: {what}"));
        let Some(place) = self.find(|_, sub| sub.active && sub.inbox == inbox) else {
            return match self.ending.get(inbox).cloned() {
                Some((channel, sub)) => self.delivered_before_the_end(&channel, &sub, message),
                None => failed("the subscription is over"),
            };
        };
        if let Some(at) = self.aging.get(&seq).filter(|_| place.0 == "aged") {
            if *at != message.timestamp {
                return failed("its timestamp has changed");
            }
            return self.delivered_before_it_went(&place, message);
        }
        let held = self.channels.get_mut(&place.0).unwrap();
        if !held.holds(seq) {
            return failed("it is not stored any more");
        }
        if held.times[(seq - held.first) as usize] != message.timestamp {
            return failed("its timestamp has changed");
        }
        let sub = self.subs.get_mut(&place).unwrap();
        let ack_wait = sub.ack_wait;
        if !message.redelivered {
            let position = match &sub.group {
                Some(group) => held.groups.get_mut(group).unwrap(),
                None => &mut sub.position,
            };
            let start = (*position + 1).max(held.first);
            if seq != start {
                return failed(&format!("{start} comes first"));
            }
            *position = seq;
            let room = sub.max_in_flight - usize::from(self.fault == Fault::OneTooMany);
            let out = sub
                .unacked
                .values()
                .filter(|one| !one.forgotten && !one.unplaced)
                .count();
            if out >= room {
                return failed(&format!("{out} are out already: {:?}", sub.unacked));
            }
            let due = now + ack_wait;
            let unacked = Unacked {
                from: due,
                until: due,
                redeliveries: 0,
                forgotten: false,
                unplaced: false,
                unburied: false,
            };
            sub.unacked.insert(seq, unacked);
            return Ok(());
        }
        // In a group it may have been with another member.
        let group = sub.group.clone();
        let owner = self.find(|other, sub| {
            let mate =
                *other == place || (group.is_some() && other.0 == place.0 && sub.group == group);
            mate && sub.unacked.contains_key(&seq)
        });
        let Some(owner) = owner else {
            return failed("it came again, and is acknowledged or was never sent");
        };
        let unacked = self
            .subs
            .get_mut(&owner)
            .unwrap()
            .unacked
            .remove(&seq)
            .unwrap();
        let is_spent = place.0 == "foo" && unacked.redeliveries >= self.redeliveries_max;
        if is_spent && !unacked.unburied {
            return failed("it came again, and should be a dead letter");
        }
        if now < unacked.from {
            return failed("it came again too early");
        }
        if message.redelivery_count != unacked.redeliveries + 1 {
            return failed(&format!(
                "it came for the {}th time again, by its count the {}th",
                unacked.redeliveries + 1,
                message.redelivery_count
            ));
        }
        // From the old deadline on, unless that is over as well.
        let next = |due: i64| match due + ack_wait > now {
            true => due + ack_wait,
            false => now + ack_wait,
        };
        let (from, until) = (unacked.from.min(now), unacked.until.min(now));
        let renewed = Unacked {
            // The old deadline was somewhere between.
            from: match from == until {
                true => next(from),
                false => (from + ack_wait).max(now + GRID),
            },
            until: match from == until {
                true => next(until),
                false => now + ack_wait,
            },
            redeliveries: unacked.redeliveries + 1,
            forgotten: false,
            unplaced: false,
            unburied: false,
        };
        self.subs
            .get_mut(&place)
            .unwrap()
            .unacked
            .insert(seq, renewed);
        Ok(())
    }

    /// Within this step, and before its time was over: it is pending again, until that is noticed.
    fn delivered_before_it_went(
        &mut self,
        place: &(String, u64),
        message: &pb::MsgProto,
    ) -> Verdict {
        let (seq, now) = (message.sequence, self.world.now);
        self.forget(place, seq);
        let sub = self.subs.get_mut(place).unwrap();
        if !message.redelivered {
            let held = self.channels.get_mut(&place.0).unwrap();
            let position = match &sub.group {
                Some(group) => held.groups.get_mut(group).unwrap(),
                None => &mut sub.position,
            };
            if seq <= *position {
                return Err(format!(
                    "message {seq} is new to {}, and {position} was sent",
                    sub.inbox
                ));
            }
            *position = seq;
        }
        let unacked = Unacked {
            from: now,
            until: now + sub.ack_wait,
            redeliveries: message.redelivery_count,
            forgotten: true,
            unplaced: false,
            unburied: false,
        };
        sub.unacked.insert(seq, unacked);
        Ok(())
    }

    /// Within this step, and before the subscription ended: when exactly, the model does not know. What it was
    /// sent is with whoever has its place now.
    pub(super) fn delivered_before_the_end(
        &mut self,
        channel: &str,
        ended: &ModelSub,
        message: &pb::MsgProto,
    ) -> Verdict {
        let (seq, now) = (message.sequence, self.world.now);
        let heir = self.find(|place, sub| {
            let same = sub.inbox == ended.inbox;
            same || (place.0 == channel && sub.group.is_some() && sub.group == ended.group)
        });
        let Some(heir) = heir else {
            return Ok(()); // nobody has
        };
        if channel == "aged" && self.aging.contains_key(&seq) {
            return self.delivered_before_it_went(&heir, message);
        }
        let owner = self.find(|place, sub| {
            let mate = sub.group.is_some() && sub.group == ended.group;
            place.0 == channel && (*place == heir || mate) && sub.unacked.contains_key(&seq)
        });
        let held = self.channels.get_mut(channel).unwrap();
        let sub = self.subs.get_mut(&heir).unwrap();
        let mut redeliveries = 0;
        if let Some(owner) = owner.filter(|_| message.redelivered) {
            let sub = self.subs.get_mut(&owner).unwrap();
            redeliveries = sub.unacked.remove(&seq).unwrap().redeliveries + 1;
        } else if message.redelivered {
            return Err(format!(
                "message {seq} came again to {}, and is acknowledged",
                ended.inbox
            ));
        } else {
            let position = match &sub.group {
                Some(group) => held.groups.get_mut(group).unwrap(),
                None => &mut sub.position,
            };
            if Some(seq) != held.times.first().map(|_| (*position + 1).max(held.first)) {
                return Err(format!(
                    "message {seq} to {} is not the next one",
                    ended.inbox
                ));
            }
            *position = seq;
        }
        let unacked = Unacked {
            from: now,
            until: now + 12 * SECOND,
            redeliveries,
            forgotten: false,
            unplaced: true,
            unburied: false,
        };
        self.moved.insert(seq);
        self.subs
            .get_mut(&heir)
            .unwrap()
            .unacked
            .insert(seq, unacked);
        Ok(())
    }

    /// Nothing waits that could be sent.
    pub(super) fn must_be_quiet(&mut self) -> Verdict {
        // What a member left may be with any other one.
        self.keep_what_cannot_leave();
        let mut unplaced: BTreeMap<(String, String), usize> = BTreeMap::new();
        for (place, sub) in &self.subs {
            let left = sub.unacked.values().filter(|one| one.unplaced).count();
            if let Some(group) = &sub.group {
                *unplaced
                    .entry((place.0.clone(), group.clone()))
                    .or_default() += left;
            }
        }
        for (place, sub) in &mut self.subs {
            if !sub.active {
                continue;
            }
            let held = &self.channels[&place.0];
            let position = match &sub.group {
                Some(group) => held.groups[group],
                None => sub.position,
            };
            let own = sub.unacked.values().filter(|one| !one.unplaced).count();
            let left = match &sub.group {
                Some(group) => unplaced[&(place.0.clone(), group.clone())],
                None => sub.unacked.len() - own,
            };
            let has_room = own + left < sub.max_in_flight;
            if has_room && let Some(next) = held.next(position) {
                return Err(format!(
                    "message {next} of {} is not sent to {}",
                    place.0, sub.inbox
                ));
            }
            if std::mem::take(&mut sub.resumed) {
                let missing = sub
                    .unacked
                    .iter()
                    .find(|(_, unacked)| unacked.until <= self.world.now);
                if let Some((seq, _)) = missing {
                    return Err(format!(
                        "message {seq} was not sent again to {} when it came back",
                        sub.inbox
                    ));
                }
            }
        }
        Ok(())
    }
}
