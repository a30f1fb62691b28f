//! Time passes, and the server is started again.

use super::*;

impl Model {
    pub(super) fn wait(&mut self) -> Verdict {
        let ticks = match self.rng.u32(0..4) {
            0 => self.rng.i64(1..4),
            1..3 => self.rng.i64(4..30),
            _ => self.rng.i64(30..200),
        };
        self.note(format_args!("wait {ticks} ticks"));
        self.world.now += ticks * GRID;
        let now = self.world.now;
        let World { engine, out, .. } = &mut self.world;
        engine.handle_timeouts(now, out);
        engine.end_turn(now, out).unwrap();
        let mut over = Vec::new();
        for (id, client) in &mut self.clients {
            let heir = client.probed.map(|(_, life)| life);
            if client.probed.is_some_and(|(at, _)| at + PROBE_TIME <= now) {
                over.push((id.clone(), heir));
                continue;
            }
            match client.beat {
                Beat::Next(at) if at <= now => client.beat = Beat::Out(now + HEARTBEAT_TIMEOUT),
                Beat::Out(at) if at <= now => {
                    client.failures += 1;
                    client.beat = Beat::Next(now + HEARTBEAT_INTERVAL);
                    if client.failures > FAILURES_MAX {
                        over.push((id.clone(), heir));
                    }
                }
                _ => {}
            }
        }
        for (id, heir) in over {
            self.note(format_args!("  {id} is given up, for {heir:?}"));
            self.leave(&id);
            if let Some(life) = heir {
                self.enter(&id, life);
            }
        }
        // Answers to whoever wanted an id that is free now.
        self.world
            .out
            .0
            .retain(|(subject, ..)| subject != "reply.to");
        self.drop_what_is_old();
        self.drop_what_is_gone();
        self.judge()?;
        self.everything_due_was_sent()
    }

    fn drop_what_is_old(&mut self) {
        let now = self.world.now;
        if let Some(held) = self.channels.get_mut("aged") {
            while held.times.first().is_some_and(|at| at + AGE <= now) {
                self.aging.insert(held.first, held.times[0]);
                held.drop_to(held.first);
            }
        }
    }

    /// Time is over for what the store has no more: it is forgotten.
    pub(super) fn drop_what_is_gone(&mut self) {
        let now = self.world.now;
        for (place, sub) in &mut self.subs {
            let held = &self.channels[&place.0];
            let well = self
                .clients
                .get(&sub.client)
                .is_some_and(|c| c.failures == 0);
            let was_well = !self.sick.contains(&sub.client);
            if sub.active && ((well && was_well) || sub.group.is_some()) {
                sub.unacked
                    .retain(|seq, unacked| held.holds(*seq) || unacked.until > now);
                for (seq, unacked) in &mut sub.unacked {
                    unacked.forgotten |= !held.holds(*seq) && unacked.from <= now;
                }
            } else if sub.active && (well || was_well) {
                // Before its client fell silent, or after it spoke again, within this very step.
                for (seq, unacked) in &mut sub.unacked {
                    unacked.forgotten |= !held.holds(*seq);
                }
            }
        }
    }

    pub(super) fn everything_due_was_sent(&mut self) -> Verdict {
        let now = self.world.now;
        self.keep_what_cannot_leave();
        for (place, sub) in &mut self.subs {
            let client = self.clients.get(&sub.client);
            let healthy = client.is_some_and(|client| client.failures == 0)
                && !self.sick.contains(&sub.client);
            if !sub.active {
                continue;
            }
            let skipped = sub.group.is_none() && !healthy;
            for (seq, unacked) in &mut sub.unacked {
                if skipped && unacked.from <= now {
                    // It was due, or may have been, and is looked at again after another AckWait.
                    if unacked.from == unacked.until {
                        unacked.from = now + sub.ack_wait;
                    }
                    unacked.until = unacked.until.max(now + sub.ack_wait);
                } else if unacked.until <= now && !self.moved.contains(seq) {
                    return Err(format!(
                        "message {seq} of {} was due for {} and not sent again",
                        place.0, sub.inbox
                    ));
                }
            }
        }
        Ok(())
    }

    /// A crash, and a start from what the files have. Without files there is nothing to go on with.
    pub(super) fn restart(&mut self) -> Verdict {
        let Some(folder) = &self.folder else {
            self.note(format_args!("no restart"));
            return Ok(());
        };
        let path = folder.path().to_owned();
        let downtime = self.rng.i64(0..20) * GRID;
        self.note(format_args!("restart after {downtime} ns"));
        let now = self.world.now + downtime;
        let fault = self.fault;
        let replace = self.replace_durable;
        // The old engine must let go of the directory before the new one opens it.
        self.world = World::with(|_| {}, MemoryStore::new(limits()));
        let (store, recovered) = open(&path);
        let mut new = Settings {
            cluster_id: "c".into(),
            discover_prefix: "_STAN.discover".into(),
            max_channels: 0,
            heartbeat_interval: 0,
            heartbeat_timeout: 0,
            heartbeat_failures: 0,
            replace_durable: false,
            debug: false,
            trace: false,
            admin: true,
            dead_letters: DeadLetters::default(),
        };
        let once_too_often = u32::from(fault == Fault::OnceTooOften);
        settings(replace, self.redeliveries_max + once_too_often)(&mut new);
        let random = Random::new(self.rng.u64(..));
        let engine = Engine::new(
            new,
            Box::new(Forgetful(store, fault)),
            recovered,
            random,
            now,
        );
        self.world.engine = engine.unwrap();
        self.world.now = now;
        let World { engine, out, now } = &mut self.world;
        engine.start(out, *now);
        engine.go_on(out, *now);
        engine.end_turn(*now, out).unwrap();
        let now = *now;
        for client in self.clients.values_mut() {
            client.failures = 0;
            client.probed = None;
            client.beat = Beat::Next(now + HEARTBEAT_TIMEOUT);
        }
        self.drop_what_is_old();
        self.aging.clear();
        for (place, sub) in &mut self.subs {
            let held = &self.channels[&place.0];
            sub.unacked.retain(|seq, _| held.holds(*seq));
            for (seq, unacked) in &mut sub.unacked {
                let sent = held.times[(seq - held.first) as usize];
                let over = sent + sub.ack_wait <= now;
                let due = if over { now } else { now + sub.ack_wait };
                // Whose it is decides when, where that is not known.
                let (from, until) = match unacked.unplaced {
                    true => (now, now + 6 * SECOND),
                    false => (due, due),
                };
                *unacked = Unacked {
                    from,
                    until,
                    redeliveries: 0,
                    forgotten: false,
                    unplaced: unacked.unplaced,
                    unburied: false,
                };
            }
        }
        // What is due goes out when the engine first looks at its clock.
        let World { engine, out, now } = &mut self.world;
        engine.handle_timeouts(*now, out);
        engine.end_turn(*now, out).unwrap();
        self.judge()?;
        self.everything_due_was_sent()
    }
}
