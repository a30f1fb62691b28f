//! Clients over the engine: what they do, and what they are told.

use super::*;

/// What a client was told, and after how many operations of the disk.
#[derive(Default)]
pub struct Told {
    /// Of each channel, the messages acknowledged.
    pub acked: Vec<(usize, String, u64)>,
    /// Deliveries: channel, number, content.
    pub delivered: Vec<(usize, String, u64, u64)>,
    /// Answers to requests, by reply subject.
    pub answered: Vec<(usize, String)>,
}

pub struct Recorder {
    pub trace: Trace,
    pub told: Told,
    /// Ack inboxes by the reply subject they came on.
    pub ack_inboxes: BTreeMap<String, String>,
}

impl Outlet for Recorder {
    fn publish(&mut self, subject: &str, _: Option<&str>, payload: &[u8]) {
        let at = self.trace.op_count();
        if let Some(channel) = subject.strip_prefix("ack.") {
            let ack = pb::PubAck::decode(payload).unwrap();
            if ack.error.is_empty() {
                let content = std::str::from_utf8(&ack.guid).unwrap();
                let content = content.parse().unwrap();
                self.told.acked.push((at, channel.to_owned(), content));
            }
        } else if subject.starts_with("in.") {
            let message = pb::MsgProto::decode(payload).unwrap();
            let delivery = (
                at,
                message.subject,
                message.sequence,
                content(&message.data),
            );
            self.told.delivered.push(delivery);
        } else if subject.starts_with("reply.") {
            let answer = pb::SubscriptionResponse::decode(payload).unwrap();
            if answer.error.is_empty() {
                self.told.answered.push((at, subject.to_owned()));
                self.ack_inboxes
                    .insert(subject.to_owned(), answer.ack_inbox);
            }
        }
    }

    fn subscribe(&mut self, _: Inlet, _: &str) {}

    fn unsubscribe(&mut self, _: Inlet) {}
}

pub fn content(data: &[u8]) -> u64 {
    u64::from_le_bytes(*data.first_chunk().unwrap())
}

/// Stands for the reply subject of a join in an earlier round.
pub const EARLIER: &str = "earlier";

/// The durable group. One member stays; the other one comes and goes, and its client stays registered.
#[derive(Clone, Default)]
pub struct Group {
    /// Where the one that stays acknowledges.
    pub stays: String,
    /// Reply subject of the request with which the other one came.
    pub came: Option<String>,
    /// Messages that were acknowledged, and after how many operations of the disk.
    pub acked: Vec<(usize, u64)>,
}

/// A durable as its client sees it.
#[derive(Clone, Default, Debug)]
pub struct Durable {
    /// It was there when the round began.
    pub promised: bool,
    /// Reply subjects of the requests that made it, or took it up again, and of the one that ended it.
    pub made: Vec<String>,
    pub ended: Option<String>,
    pub acked: BTreeSet<u64>,
}

pub struct World {
    pub engine: Engine,
    pub out: Recorder,
    pub steps: Arc<Steps>,
    pub random: Random,
    pub now: i64,
    pub last_content: u64,
    pub last_reply: u64,
    pub published: BTreeMap<String, Vec<u64>>,
    /// Of contents.
    pub times: BTreeMap<u64, i64>,
    pub durables: BTreeMap<String, Vec<Durable>>,
    pub group: Group,
    /// The server was killed, so what was asked for and not confirmed may be there or not.
    killed: bool,
    /// Where numbers in the channel stood whose messages go by age.
    aged_before: u64,
}

/// A server that was started.
struct Started {
    engine: Engine,
    steps: Arc<Steps>,
    /// It knows the client.
    registered: bool,
    /// The last number in the channel whose messages go by age.
    aged_last: u64,
}

/// How a server is started.
pub struct Start<'a> {
    pub folder: &'a Path,
    pub options: &'a FileOptions,
    pub faults: Faults,
}

impl Start<'_> {
    fn start(&self, random: &mut Random, now: i64) -> Result<Started, String> {
        let steps = Arc::new(match self.faults {
            Faults::DoneTooSoon => Steps::that_lie(),
            _ => Steps::default(),
        });
        let (store, recovered) =
            FileStore::open_in_steps(self.folder, self.options.clone(), limits(), &steps)
                .map_err(|error| error.to_string())?;
        let registered = recovered.clients.iter().any(|client| client.id == "me");
        let mut channels = recovered.channels.iter();
        let aged = channels.find(|channel| channel.name == "aged");
        let aged_last = aged.map_or(0, |channel| store.bounds(channel.id).last);
        let random = Random::new(random.next_u64());
        let engine = Engine::new(settings(), Box::new(store), recovered, random, now)
            .map_err(|error| error.to_string())?;
        Ok(Started {
            engine,
            steps,
            registered,
            aged_last,
        })
    }
}

impl World {
    pub fn begin(
        start: &Start<'_>,
        random: &mut Random,
        now: i64,
        last_content: u64,
        out: Recorder,
    ) -> Result<Self, String> {
        let started = start.start(random, now)?;
        let mut world = Self {
            engine: started.engine,
            out,
            steps: started.steps,
            random: random.clone(),
            now,
            last_content,
            last_reply: 0,
            published: BTreeMap::new(),
            times: BTreeMap::new(),
            durables: BTreeMap::new(),
            group: Group::default(),
            killed: false,
            aged_before: started.aged_last,
        };
        world.connect_unless(started.registered);
        Ok(world)
    }

    fn connect_unless(&mut self, registered: bool) {
        let Self {
            engine, out, now, ..
        } = self;
        engine.start(out, *now);
        engine.go_on(out, *now);
        if !registered {
            self.connect("me");
        }
    }

    /// The server after a kill and a start, with the same clients.
    pub fn killed(self, start: &Start<'_>) -> Result<Self, String> {
        let Self {
            engine,
            out,
            mut random,
            now,
            last_content,
            last_reply,
            mut published,
            times,
            durables,
            mut group,
            aged_before,
            ..
        } = self;
        drop(engine);
        // Who was not answered does not know whether it is a member.
        group.came = group.came.filter(|came| out.ack_inboxes.contains_key(came));
        let started = start.start(&mut random, now)?;
        // The numbers of the others are free again.
        if let Some(aged) = published.get_mut("aged") {
            aged.truncate(started.aged_last.saturating_sub(aged_before) as usize);
        }
        let mut world = Self {
            engine: started.engine,
            out,
            steps: started.steps,
            random,
            now,
            last_content,
            last_reply,
            published,
            times,
            durables,
            group,
            killed: true,
            aged_before,
        };
        world.connect_unless(started.registered);
        let open = |all: &Vec<Durable>| all.last().is_some_and(|last| last.ended.is_none());
        let open: Vec<String> = world
            .durables
            .iter()
            .filter(|(_, all)| open(all))
            .map(|(name, _)| name.clone())
            .collect();
        for name in open {
            let again = world.subscribe(&name, "d");
            let all = world.durables.get_mut(&name).expect("it is open");
            all.last_mut().expect("it is open").made.push(again);
        }
        Ok(world)
    }

    /// Some of what may happen.
    pub fn live(&mut self) {
        let actions = 10 + self.random.below(60);
        for _ in 0..actions {
            self.act();
        }
    }

    fn new_reply(&mut self) -> String {
        self.last_reply += 1;
        format!("reply.{}", self.last_reply)
    }

    /// Closes a subscription, or unsubscribes, as the inlet says.
    fn end(&mut self, inlet: Inlet, client: &str, channel: &str, inbox: String, reply: &str) {
        let request = pb::UnsubscribeRequest {
            client_id: client.into(),
            subject: channel.into(),
            inbox,
            ..Default::default()
        };
        self.send(inlet, "", reply, &request);
    }

    pub fn send(&mut self, inlet: Inlet, subject: &str, reply: &str, request: &impl Message) {
        let payload = request.encode_to_vec();
        let Self {
            engine, out, now, ..
        } = self;
        engine.handle_message(inlet, subject, Some(reply), &payload, *now, out);
    }

    pub fn end_turn(&mut self) {
        let Self {
            engine, out, now, ..
        } = self;
        engine.handle_timeouts(*now, out);
        engine.end_turn(*now, out).unwrap();
    }

    /// Until the disk is done with all that it was asked for.
    pub fn settle(&mut self) {
        self.end_turn();
        while self.steps.waiting() > 0 {
            self.steps.step(0);
            self.end_turn();
        }
    }

    pub fn connect(&mut self, client: &str) {
        let request = pb::ConnectRequest {
            client_id: client.into(),
            heartbeat_inbox: "hb".into(),
            ..Default::default()
        };
        self.send(Inlet::CONNECT, "", "connected", &request);
    }

    pub fn publish(&mut self, channel: &str) {
        self.last_content += 1;
        let content = self.last_content;
        let mut data = content.to_le_bytes().to_vec();
        data.resize(8 + self.random.below(700) as usize, 7);
        let message = pb::PubMsg {
            client_id: "me".into(),
            guid: content.to_string().into(),
            subject: channel.into(),
            data: data.into(),
            ..Default::default()
        };
        self.times.insert(content, self.now);
        self.published
            .entry(channel.into())
            .or_default()
            .push(content);
        self.send(Inlet::PUBLISH, "", &format!("ack.{channel}"), &message);
    }

    pub fn subscribe(&mut self, channel: &str, durable: &str) -> String {
        let reply = self.new_reply();
        let request = pb::SubscriptionRequest {
            client_id: "me".into(),
            subject: channel.into(),
            inbox: format!("in.{channel}.{}", self.last_reply),
            max_in_flight: 20,
            ack_wait_seconds: 30,
            start_position: 4,
            durable_name: durable.into(),
            ..Default::default()
        };
        self.send(Inlet::SUBSCRIBE, "", &reply, &request);
        reply
    }

    /// A client becomes a member of the durable group.
    pub fn join(&mut self, client: &str) -> String {
        let reply = self.new_reply();
        let request = pb::SubscriptionRequest {
            client_id: client.into(),
            subject: GROUP.into(),
            inbox: format!("in.{GROUP}.{}", self.last_reply),
            queue_group: "g".into(),
            max_in_flight: 20,
            // A message that goes to the other member because it is due leaves two marks, of which the power may take one.
            ack_wait_seconds: 1_000_000,
            start_position: 4,
            durable_name: "d".into(),
            ..Default::default()
        };
        self.send(Inlet::SUBSCRIBE, "", &reply, &request);
        reply
    }

    /// The member of the group that comes and goes does so.
    fn come_or_go(&mut self) {
        let Some(came) = self.group.came.clone() else {
            self.group.came = Some(self.join("you"));
            return;
        };
        let Some(inbox) = self.out.ack_inboxes.get(&came).cloned() else {
            return; // not confirmed yet
        };
        let reply = self.new_reply();
        self.end(Inlet::SUB_CLOSE, "you", GROUP, inbox, &reply);
        self.group.came = None;
    }

    /// One thing that may happen.
    pub fn act(&mut self) {
        let channel = CHANNELS[self.random.below(CHANNELS.len() as u32) as usize];
        match self.random.below(22) {
            0..=7 => {
                for _ in 0..=self.random.below(4) {
                    self.publish(channel);
                }
            }
            8..=12 => {
                let waiting = self.steps.waiting() as u32;
                if waiting > 0 {
                    self.steps.step(self.random.below(waiting) as usize);
                }
            }
            13 => self.toggle_durable(channel),
            14 | 15 => self.acknowledge(channel),
            16 => {
                let now = self.now;
                self.engine.maintain(now);
            }
            17 => self.now += 40 * SECOND,
            18 => self.come_or_go(),
            19 => {
                for _ in 0..=self.random.below(4) {
                    self.publish(GROUP);
                }
            }
            _ => {}
        }
        if self.random.below(3) > 0 {
            self.end_turn();
        }
    }

    pub fn toggle_durable(&mut self, channel: &str) {
        if matches!(channel, "short" | "aged" | GROUP) {
            return;
        }
        let current = self
            .durables
            .get(channel)
            .and_then(|all| all.last())
            .cloned();
        match current.filter(|durable| durable.ended.is_none()) {
            None => {
                let made = vec![self.subscribe(channel, "d")];
                let last = self.durables.get(channel).and_then(|all| all.last());
                // Its end may have been forgotten.
                let before = last.filter(|_| self.killed);
                let durable = Durable {
                    made,
                    acked: before.map_or_else(BTreeSet::new, |last| last.acked.clone()),
                    ..Durable::default()
                };
                self.durables
                    .entry(channel.into())
                    .or_default()
                    .push(durable);
            }
            Some(durable) => {
                let made = durable.made.last().expect("it was asked for");
                let Some(inbox) = self.out.ack_inboxes.get(made).cloned() else {
                    return; // not confirmed yet
                };
                let reply = self.new_reply();
                // Closing keeps it, unsubscribing ends it.
                match self.random.below(2) {
                    0 => {
                        let all = self.durables.get_mut(channel).unwrap();
                        all.last_mut().unwrap().ended = Some(reply.clone());
                        self.end(Inlet::UNSUBSCRIBE, "me", channel, inbox, &reply);
                    }
                    _ => {
                        self.end(Inlet::SUB_CLOSE, "me", channel, inbox, &reply);
                        let again = self.subscribe(channel, "d");
                        let all = self.durables.get_mut(channel).unwrap();
                        all.last_mut().unwrap().made.push(again);
                    }
                }
            }
        }
    }

    /// Acknowledges some of what a durable was sent.
    pub fn acknowledge(&mut self, channel: &str) {
        if channel == GROUP {
            return self.acknowledge_for_group();
        }
        let Some(durable) = self.durables.get(channel).and_then(|all| all.last()) else {
            return;
        };
        let made = durable.made.last().expect("it was asked for");
        let Some(inbox) = self.out.ack_inboxes.get(made).cloned() else {
            return;
        };
        for sequence in self.sent(channel) {
            if self.random.below(2) > 0 {
                continue;
            }
            let ack = pb::Ack {
                subject: channel.into(),
                sequence,
            };
            let all = self.durables.get_mut(channel).unwrap();
            all.last_mut().unwrap().acked.insert(sequence);
            self.send(Inlet::ACK, &inbox, "", &ack);
        }
    }

    /// The same for the group; it does not matter which member it was.
    fn acknowledge_for_group(&mut self) {
        for sequence in self.sent(GROUP) {
            if self.random.below(2) > 0 {
                continue;
            }
            let ack = pb::Ack {
                subject: GROUP.into(),
                sequence,
            };
            let at = self.out.trace.op_count();
            self.group.acked.push((at, sequence));
            let inbox = self.group.stays.clone();
            self.send(Inlet::ACK, &inbox, "", &ack);
        }
    }

    /// Messages of a channel that were delivered.
    fn sent(&self, channel: &str) -> BTreeSet<u64> {
        let delivered = self.out.told.delivered.iter();
        let delivered = delivered.filter(|(_, of, ..)| of == channel);
        delivered.map(|(_, _, seq, _)| *seq).collect()
    }
}
