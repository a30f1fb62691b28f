//! Administration: requests on `_STAN_ADMIN.<cluster>.<verb>`, JSON in and out. docs/PROTOCOL.md lists them.
//!
//! The subject is not below `_STAN`, because clients are commonly allowed all of that. Verbs that only look
//! are always answered; those that change something where the settings say so.

use super::answers::Refusal;
use super::{Engine, Shown};
use crate::stan::channel::Channel;
use crate::stan::clients::ChannelIndex;
use crate::stan::names::is_valid_channel;
use crate::stan::outlet::Outlet;
use crate::stan::store::Seq;
use crate::stan::subs::{Pending, Sub};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub(super) const SUBJECT_PREFIX: &str = "_STAN_ADMIN";
/// An answer is one message, whatever the payload limit is; lists continue with another request.
const ANSWER_BYTES_MAX: usize = 32 << 10;
const ITEMS_MAX: usize = 1000;

const OFF: &str = "administration is off: set streaming { admin: true }, \
     or give the server an authorization block and restrict _STAN_ADMIN.> to one user";

/// A list: what follows `after`, which is the `more` of the answer before.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ListRequest {
    after: String,
    limit: usize,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ChannelRequest {
    channel: String,
    after: String,
    limit: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PurgeRequest {
    channel: String,
    /// The last one to go; all of them without it.
    to: Option<Seq>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeleteRequest {
    channel: String,
    /// Even with subscriptions that are active.
    #[serde(default)]
    force: bool,
}

/// A subscription: by client and durable name, by queue group, or by number.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct SubRequest {
    channel: String,
    client: String,
    durable: String,
    queue: String,
    subscription: Option<u64>,
    sequence: Option<Seq>,
    after: String,
    limit: usize,
}

type Answer = Result<Value, String>;

impl Engine {
    pub(super) fn handle_admin(
        &mut self,
        subject: &str,
        payload: &[u8],
        reply: Option<&str>,
        out: &mut dyn Outlet,
    ) {
        let verb = subject.rsplit('.').next().unwrap_or("");
        let answer = self.administer(verb, payload, out);
        // Marks of single messages are with the system and no commit has them: losing one repeats a delivery.
        let refusal = (answer.is_ok() && verb == "remove-durable").then_some(refusal as Refusal);
        let answer = answer.map_or_else(|error| refusal_of(&error), |answer| answer.to_string());
        match refusal {
            Some(_) => self.answer_durably(reply, answer.into_bytes(), refusal, None, out),
            None => reply
                .into_iter()
                .for_each(|reply| out.publish(reply, None, answer.as_bytes())),
        }
    }

    fn administer(&mut self, verb: &str, payload: &[u8], out: &mut dyn Outlet) -> Answer {
        let changes = matches!(verb, "purge" | "delete" | "remove-durable" | "skip");
        if changes && !self.settings.admin {
            return Err(OFF.into());
        }
        match verb {
            "info" => parse::<ListRequest>(payload).map(|_| self.server_view()),
            "channels" => self.list_channels(&parse(payload)?),
            "channel" => self.show_channel(&parse(payload)?),
            "durables" => self.list_durables(&parse(payload)?),
            "pending" => self.list_pending(&parse(payload)?),
            "purge" => self.purge(&parse(payload)?, out),
            "delete" => self.delete(&parse(payload)?, out),
            "remove-durable" => self.remove_durable(&parse(payload)?, out),
            "skip" => self.skip(&parse(payload)?, out),
            _ => Err(format!(
                "unknown request {verb:?}: info, channels, channel, durables, pending, purge, delete, remove-durable, skip"
            )),
        }
    }

    fn existing(&self, name: &str) -> Result<ChannelIndex, String> {
        let index = self.by_name.get(name).copied();
        index.ok_or_else(|| match is_valid_channel(name) {
            true => format!("channel {name:?} not found"),
            false => format!("{name:?} is no name of a channel"),
        })
    }

    // ---- looking

    fn server_view(&self) -> Value {
        let channels = self.channels.iter().flatten();
        let (mut messages, mut bytes, mut subscriptions) = (0, 0, 0);
        for channel in channels {
            let bounds = self.store.bounds(channel.store);
            messages += bounds.messages;
            bytes += bounds.bytes;
            subscriptions += channel.subs.len();
        }
        json!({
            "cluster_id": self.info.cluster_id,
            "store": self.store.kind(),
            "clients": self.clients.count(),
            "channels": self.by_name.len(),
            "subscriptions": subscriptions,
            "messages": messages,
            "bytes": bytes,
            "changes_allowed": self.settings.admin,
        })
    }

    fn list_channels(&self, request: &ListRequest) -> Answer {
        let mut names: Vec<&String> = self
            .by_name
            .keys()
            .filter(|name| **name > request.after)
            .collect();
        // Of many channels only those of this answer are put in order.
        let wanted = limit(request.limit) + 1;
        if names.len() > wanted {
            names.select_nth_unstable(wanted);
            names.truncate(wanted + 1);
        }
        names.sort_unstable();
        let views = names.into_iter().filter_map(|name| {
            let channel = self.channels[*self.by_name.get(name)?].as_ref()?;
            Some((name.clone(), self.channel_view(channel)))
        });
        let mut answer = page("channels", views, request.limit);
        answer["total"] = self.by_name.len().into();
        Ok(answer)
    }

    fn channel_view(&self, channel: &Channel) -> Value {
        let bounds = self.store.bounds(channel.store);
        let limits = self.store.limits(channel.store);
        let subs = || channel.subs.values();
        let mut view = json!({
            "name": channel.name,
            "messages": bounds.messages,
            "bytes": bounds.bytes,
            "first": bounds.first,
            "last": bounds.last,
            "last_timestamp": bounds.last_timestamp,
            "subscriptions": channel.subs.len(),
            "offline": subs().filter(|sub| !sub.active).count(),
            "stalled": subs().filter(|sub| sub.is_stalled()).count(),
            "pending": subs().map(|sub| sub.pending.len()).sum::<usize>(),
            "acknowledged": channel.acknowledged,
            "redelivered": channel.redelivered,
            "dead_lettered": channel.dead_lettered,
            "limits": {
                "max_msgs": limits.messages,
                "max_bytes": limits.bytes,
                "max_age": limits.age,
                "max_subs": limits.subscriptions,
                "max_inactivity": limits.inactivity,
            },
        });
        if let Some(rule) = &channel.dead_letters {
            view["limits"]["max_redeliveries"] = rule.max_redeliveries.into();
            view["limits"]["dead_letter"] = rule.target.as_str().into();
        }
        if let Some(at) = subs().filter_map(Sub::oldest_unacked).min() {
            view["oldest_unacked_seconds"] = self.seconds_since(at).into();
        }
        view
    }

    fn seconds_since(&self, at: i64) -> f64 {
        self.now.saturating_sub(at).max(0) as f64 / 1e9
    }

    /// A channel and its subscriptions.
    fn show_channel(&mut self, request: &ChannelRequest) -> Answer {
        let index = self.existing(&request.channel)?;
        let after = number(&request.after)?;
        let channel = self.channels[index].as_ref().expect("found by its name");
        let views = channel
            .subs
            .range(after + 1..)
            .map(|(id, sub)| (id.to_string(), self.sub_view(channel, sub)));
        let mut answer = page("subscriptions", views, request.limit);
        answer["channel"] = self.channel_view(channel);
        Ok(answer)
    }

    fn sub_view(&self, channel: &Channel, sub: &Sub) -> Value {
        let state = &sub.state;
        let group = channel.queues.get(&sub.group);
        let last_sent = group.map_or(state.last_sent, |group| group.last_sent);
        let last = self.store.bounds(channel.store).last;
        let mut view = json!({
            "channel": channel.name,
            "subscription": sub.id(),
            "client": state.client_id,
            "inbox": state.inbox,
            "is_durable": state.is_durable,
            "is_offline": !sub.active,
            "is_stalled": sub.is_stalled(),
            "max_in_flight": state.max_in_flight,
            "ack_wait_seconds": state.ack_wait_seconds,
            "last_sent": last_sent,
            "behind": last.saturating_sub(last_sent),
            "pending": sub.pending.len(),
        });
        if !state.durable_name.is_empty() {
            view["durable"] = state.durable_name.as_str().into();
        }
        if !state.queue_group.is_empty() {
            view["queue"] = state.queue_group.as_str().into();
        }
        if let Some(at) = sub.oldest_unacked() {
            view["oldest_unacked_seconds"] = self.seconds_since(at).into();
        }
        view
    }

    /// Durables of one channel, or of all.
    fn list_durables(&self, request: &ChannelRequest) -> Answer {
        let mut names: Vec<&String> = match request.channel.is_empty() {
            true => self.by_name.keys().collect(),
            false => {
                self.existing(&request.channel)?;
                vec![&request.channel]
            }
        };
        names.sort_unstable();
        let (after_id, after_name) = match request.after.split_once(' ') {
            Some((id, name)) => (number(id)?, name),
            None if request.after.is_empty() => (0, ""),
            None => return Err(format!("{:?} is no place to go on", request.after)),
        };
        let channels = names
            .into_iter()
            .filter(|name| name.as_str() >= after_name)
            .filter_map(|name| self.channels[*self.by_name.get(name)?].as_ref());
        let views = channels.flat_map(|channel| {
            let behind = if channel.name == after_name {
                after_id
            } else {
                0
            };
            channel
                .subs
                .range(behind + 1..)
                .filter(|(_, sub)| sub.state.is_durable)
                .map(move |(id, sub)| {
                    let key = format!("{id} {}", channel.name);
                    (key, self.sub_view(channel, sub))
                })
        });
        Ok(page("durables", views, request.limit))
    }

    /// Messages sent and not acknowledged.
    fn list_pending(&self, request: &SubRequest) -> Answer {
        let (index, ids) = self.find_subs(request)?;
        let after = number(&request.after)?;
        let channel = self.channels[index].as_ref().expect("found by its name");
        // Of each subscription no more than this answer may show, and one that says that there are more.
        let wanted = limit(request.limit) + 1;
        let mut pending: Vec<(Seq, u64, &Pending)> = Vec::new();
        for sub in ids.iter().filter_map(|id| channel.subs.get(id)) {
            let of_sub = sub.pending.range(after.saturating_add(1)..).take(wanted);
            pending.extend(of_sub.map(|(seq, state)| (*seq, sub.id(), state)));
        }
        pending.sort_by_key(|(seq, ..)| *seq);
        let views = pending.into_iter().map(|(seq, id, state)| {
            let view = json!({
                "sequence": seq,
                "subscription": id,
                "deliveries": state.redeliveries + 1,
                "since_seconds": self.seconds_since(state.first_sent),
            });
            (seq.to_string(), view)
        });
        Ok(page("pending", views, request.limit))
    }

    /// The subscriptions a request names: one, or all members of a group.
    fn find_subs(&self, request: &SubRequest) -> Result<(ChannelIndex, Vec<u64>), String> {
        let index = self.existing(&request.channel)?;
        let channel = self.channels[index].as_ref().expect("found by its name");
        let matches = |sub: &&Sub| {
            let state = &sub.state;
            match (request.subscription, request.queue.is_empty()) {
                (Some(id), _) => sub.id() == id,
                (None, false) => state.queue_group == request.queue,
                (None, true) => {
                    state.queue_group.is_empty()
                        && state.is_durable
                        && state.client_id == request.client
                        && state.durable_name == request.durable
                }
            }
        };
        if request.subscription.is_none() && request.queue.is_empty() && request.durable.is_empty()
        {
            return Err("which one? Name client and durable, or queue, or subscription".into());
        }
        let found: Vec<u64> = channel.subs.values().filter(matches).map(Sub::id).collect();
        match found.is_empty() {
            true => Err(format!(
                "channel {:?} has no such subscription",
                channel.name
            )),
            false => Ok((index, found)),
        }
    }

    // ---- changing

    fn purge(&mut self, request: &PurgeRequest, out: &mut dyn Outlet) -> Answer {
        let index = self.existing(&request.channel)?;
        let channel = self.channel(index);
        let store = channel.store;
        // What is not on the disk yet is not there to be purged.
        let up_to = request.to.unwrap_or(Seq::MAX).min(channel.durable_to);
        let purged = self.store.purge(store, up_to).map_err(|error| {
            log::error!("STREAM: {error}");
            error.to_string()
        })?;
        if purged > 0 {
            log::info!(
                "STREAM: Channel \"{}\" has been purged up to message {up_to} on request, of {purged} messages",
                Shown(&request.channel)
            );
        }
        // Nobody needs to acknowledge what is gone.
        let channel = self.channel(index);
        let gone: Vec<(u64, Seq)> = channel
            .subs
            .iter()
            .flat_map(|(id, sub)| sub.pending.range(..=up_to).map(|(seq, _)| (*id, *seq)))
            .collect();
        for (id, seq) in gone {
            self.forget_pending(index, id, seq);
        }
        self.deliver(index, out);
        let bounds = self.store.bounds(store);
        Ok(json!({
            "channel": request.channel,
            "purged": purged,
            "messages": bounds.messages,
            "first": bounds.first,
            "last": bounds.last,
        }))
    }

    fn delete(&mut self, request: &DeleteRequest, out: &mut dyn Outlet) -> Answer {
        let index = self.existing(&request.channel)?;
        let channel = self.channel(index);
        let active = channel.subs.values().filter(|sub| sub.active).count();
        if active > 0 && !request.force {
            return Err(format!(
                "channel {:?} has {active} active subscriptions: end them first, or ask for it by force",
                request.channel
            ));
        }
        self.delete_channel(index, out)
            .map_err(|error| error.to_string())?;
        Ok(json!({ "channel": request.channel, "deleted": true }))
    }

    /// A durable whose client is away, or the kept place of a durable group.
    fn remove_durable(&mut self, request: &SubRequest, out: &mut dyn Outlet) -> Answer {
        let (index, found) = self.find_subs(request)?;
        let channel = self.channel(index);
        let of = |id: &u64| channel.subs.get(id);
        if found.iter().filter_map(of).any(|sub| !sub.state.is_durable) {
            return Err("that is no durable subscription".into());
        }
        if found.iter().filter_map(of).any(|sub| sub.active) {
            return Err(
                "the durable is active: its clients must close it, or be gone, first".into(),
            );
        }
        for id in &found {
            self.end_sub(index, *id, true, out);
            log::info!(
                "STREAM: Durable subscription {id} of channel \"{}\" has been removed on request",
                Shown(&request.channel)
            );
        }
        Ok(json!({ "channel": request.channel, "removed": found.len() }))
    }

    /// As if the message had been acknowledged.
    fn skip(&mut self, request: &SubRequest, out: &mut dyn Outlet) -> Answer {
        let (index, found) = self.find_subs(request)?;
        let seq = request.sequence.ok_or("which message? Name its sequence")?;
        let channel = self.channel(index);
        let holds = |id: &&u64| {
            let sub = channel.subs.get(id);
            sub.is_some_and(|sub| sub.pending.contains_key(&seq))
        };
        let Some(id) = found.iter().find(holds).copied() else {
            return Err(format!(
                "message {seq} is not pending: it was not sent yet, or is acknowledged"
            ));
        };
        let group = channel.subs[&id].group.clone();
        self.forget_pending(index, id, seq);
        log::info!(
            "STREAM: Message {seq} of channel \"{}\" has been skipped on request, for subscription {id}",
            Shown(&request.channel)
        );
        self.deliver_next(index, id, &group, out);
        Ok(json!({ "channel": request.channel, "subscription": id, "skipped": seq }))
    }
}

fn refusal_of(error: &str) -> String {
    json!({ "error": error }).to_string()
}

fn refusal(error: &str) -> Vec<u8> {
    refusal_of(error).into_bytes()
}

fn parse<T: DeserializeOwned>(payload: &[u8]) -> Result<T, String> {
    let payload = if payload.is_empty() { b"{}" } else { payload };
    serde_json::from_slice(payload).map_err(|error| format!("the request is no good: {error}"))
}

fn number(text: &str) -> Result<u64, String> {
    match text {
        "" => Ok(0),
        text => text
            .parse()
            .ok()
            .filter(|number| *number < u64::MAX)
            .ok_or_else(|| format!("{text:?} is no place to go on")),
    }
}

fn limit(asked: usize) -> usize {
    match asked {
        0 => ITEMS_MAX,
        asked => asked.min(ITEMS_MAX),
    }
}

/// As many of the items as one answer holds, and where the next one goes on.
fn page(name: &str, items: impl Iterator<Item = (String, Value)>, asked: usize) -> Value {
    let (mut list, mut bytes) = (Vec::new(), 0);
    let mut last = String::new();
    let mut more = None;
    for (key, item) in items {
        bytes += item.to_string().len();
        let full = list.len() >= limit(asked) || bytes > ANSWER_BYTES_MAX;
        if full && !list.is_empty() {
            more = Some(last);
            break;
        }
        list.push(item);
        last = key;
    }
    let mut answer = json!({ name: list });
    if let Some(more) = more {
        answer["more"] = more.into();
    }
    answer
}
