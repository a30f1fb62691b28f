//! Clients of the model: they come, publish, acknowledge and go.

use super::*;

impl Model {
    pub(super) fn connect(&mut self) -> Verdict {
        let id = self.one_of(&CLIENTS).to_owned();
        self.note(format_args!("connect {id}"));
        self.lives += 1;
        let request = pb::ConnectRequest {
            client_id: id.clone(),
            heartbeat_inbox: format!("hb.{id}.{}", self.lives),
            ..Default::default()
        };
        let life = self.lives;
        let answers = self.request(Inlet::CONNECT, "", request.encode_to_vec());
        let error = |answers: &[Vec<u8>]| {
            let response = pb::ConnectResponse::decode(&answers[0][..]).unwrap();
            response.error
        };
        let now = self.world.now;
        match self.clients.get_mut(&id) {
            None => {
                expect_eq("answers to connect", answers.len(), 1)?;
                expect_eq("connect", error(&answers), String::new())?;
                self.enter(&id, life);
            }
            Some(known) if known.probed.is_some() => {
                expect_eq("answers to connect", answers.len(), 1)?;
                expect_eq(
                    "connect",
                    error(&answers),
                    "stan: clientID already registered".into(),
                )?;
            }
            Some(known) => {
                expect_eq("answers to connect while it is probed", answers.len(), 0)?;
                known.probed = Some((now, life));
            }
        }
        self.judge()
    }

    pub(super) fn enter(&mut self, id: &str, life: u32) {
        let client = ModelClient {
            mute: false,
            failures: 0,
            beat: Beat::Next(self.world.now + HEARTBEAT_INTERVAL),
            probed: None,
            life,
        };
        self.clients.insert(id.to_owned(), client);
    }

    /// All subscriptions of a client end as by a close.
    pub(super) fn leave(&mut self, id: &str) {
        self.clients.remove(id);
        let own: Vec<(String, u64)> = self
            .subs
            .iter()
            .filter(|(_, sub)| sub.active && sub.client == id)
            .map(|(key, _)| key.clone())
            .collect();
        // In the order in which the engine has them: by channel as they came about, then by number.
        for key in own {
            self.end(&key, false);
        }
    }

    pub(super) fn close(&mut self) -> Verdict {
        let id = self.one_of(&CLIENTS).to_owned();
        self.note(format_args!("close {id}"));
        let request = pb::CloseRequest {
            client_id: id.clone(),
        };
        let answers = self.request(Inlet::CLOSE, "", request.encode_to_vec());
        let probed = self.clients.get(&id).and_then(|client| client.probed);
        let count = 1 + usize::from(probed.is_some());
        expect_eq("answers to a close", answers.len(), count)?;
        let answer = pb::CloseResponse::decode(&answers[count - 1][..]).unwrap();
        let expected = match self.clients.contains_key(&id) {
            true => "",
            false => "stan: unknown clientID",
        };
        expect_eq("close", answer.error.as_str(), expected)?;
        self.leave(&id);
        if let Some((_, life)) = probed {
            self.enter(&id, life);
        }
        self.judge()
    }

    pub(super) fn toggle_mute(&mut self) -> Verdict {
        let id = self.one_of(&CLIENTS).to_owned();
        self.note(format_args!("mute {id}"));
        if let Some(client) = self.clients.get_mut(&id) {
            client.mute = !client.mute;
        }
        Ok(())
    }

    pub(super) fn publish(&mut self) -> Verdict {
        let id = self.one_of(&CLIENTS).to_owned();
        let channel = self.one_of(&CHANNELS).to_owned();
        let count = self.rng.usize(1..4);
        self.note(format_args!("publish {count} by {id} on {channel}"));
        for _ in 0..count {
            let message = pb::PubMsg {
                client_id: id.clone(),
                guid: "g".into(),
                subject: channel.clone(),
                ..Default::default()
            };
            let answers = self.request(Inlet::PUBLISH, "", message.encode_to_vec());
            expect_eq("acks of a publish", answers.len(), 1)?;
            let ack = pb::PubAck::decode(&answers[0][..]).unwrap();
            let expected = match self.clients.contains_key(&id) {
                false => "stan: invalid publish request",
                true if !self.make_channel(&channel) => "too many channels",
                true => "",
            };
            expect_eq("publish", ack.error.as_str(), expected)?;
            if expected.is_empty() {
                let now = self.world.now;
                let held = self.channels.get_mut(&channel).unwrap();
                held.last += 1;
                held.times.push(now);
                if channel == "few" && held.last >= FEW {
                    held.drop_to(held.last - FEW);
                }
            }
            self.judge()?;
        }
        Ok(())
    }

    pub(super) fn make_channel(&mut self, name: &str) -> bool {
        if !self.channels.contains_key(name) && self.channels.len() >= CHANNELS_MAX {
            return false;
        }
        self.channels.entry(name.to_owned()).or_default();
        true
    }

    pub(super) fn ack(&mut self) -> Verdict {
        let mut choices: Vec<(String, String)> = self
            .subs
            .iter()
            .map(|(place, sub)| (place.0.clone(), sub.ack_inbox.clone()))
            .collect();
        // Now and then one that means nothing any more.
        if self.rng.u32(0..8) == 0 || choices.is_empty() {
            choices = self.old_inboxes.clone();
        }
        if choices.is_empty() {
            return Ok(());
        }
        let (channel, inbox) = choices[self.rng.usize(..choices.len())].clone();
        let place = self.find(|_, sub| sub.active && sub.ack_inbox == inbox);
        let unacked: Vec<u64> = place
            .as_ref()
            .map(|place| self.in_group_of(place))
            .unwrap_or_default();
        let seq = match unacked.is_empty() || self.rng.u32(0..10) == 0 {
            true => self.rng.u64(0..20),
            false => unacked[self.rng.usize(..unacked.len())],
        };
        self.note(format_args!("ack {seq} of {channel} on {inbox}"));
        let ack = pb::Ack {
            subject: channel,
            sequence: seq,
        };
        let answers = self.request(Inlet::ACK, &inbox, ack.encode_to_vec());
        expect_eq("answers to an ack", answers.len(), 0)?;
        if let Some(place) = place {
            self.forget(&place, seq);
        }
        self.judge()
    }

    /// Unacknowledged numbers of a subscription, or of all members of its group.
    pub(super) fn in_group_of(&self, place: &(String, u64)) -> Vec<u64> {
        let group = &self.subs[place].group;
        let mates = self.subs.iter().filter(|(other, sub)| {
            *other == place || (group.is_some() && other.0 == place.0 && sub.group == *group)
        });
        mates
            .flat_map(|(_, sub)| sub.unacked.keys().copied())
            .collect()
    }

    pub(super) fn forget(&mut self, place: &(String, u64), seq: u64) {
        let group = self.subs[place].group.clone();
        for (other, sub) in &mut self.subs {
            if other == place || (group.is_some() && other.0 == place.0 && sub.group == group) {
                sub.unacked.remove(&seq);
            }
        }
    }
}
