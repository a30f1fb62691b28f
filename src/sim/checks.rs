//! What every client did and got, and whether that is what was promised.

use super::net::{DELAY_MAX, MILLI, Micros};
use crate::subject::token;
use std::collections::{BTreeMap, BTreeSet};

/// While no link fails, interest and messages are where they belong within this time.
pub const SETTLE: Micros = 500 * MILLI;

/// An UNSUB with a maximum that was sent behind its SUB has arrived.
const LIMIT_KNOWN: Micros = 2 * DELAY_MAX;

pub type MessageId = usize;
pub type SubscriptionId = usize;

pub struct Message {
    pub publisher: usize,
    pub subject: String,
    pub at: Micros,
    /// Published while links were stable: it has to arrive.
    pub promised: bool,
    /// A reply: it has to reach this subscription although that is new.
    pub answers: Option<SubscriptionId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Unsubscribed,
    Limit,
    ClientGone,
}

pub struct Subscription {
    pub client: usize,
    pub sid: String,
    pub pattern: String,
    pub queue: Option<&'static str>,
    pub max: Option<usize>,
    pub since: Micros,
    pub ended: Option<(Micros, Ended)>,
    pub got: BTreeSet<MessageId>,
}

impl Subscription {
    fn matches(&self, subject: &str) -> bool {
        token::pattern_matches(self.pattern.as_bytes(), subject.as_bytes())
    }

    /// Its interest was known everywhere when the message was published, and stayed until it arrived.
    fn is_settled_for(&self, message: &Message) -> bool {
        let stays = |(at, _)| at >= message.at + SETTLE;
        self.since + SETTLE <= message.at && self.ended.is_none_or(stays)
    }

    /// Its client went about when the message came by, which may have taken the message along.
    fn may_have_taken_along(&self, message: &Message) -> bool {
        matches!(self.ended, Some((at, Ended::ClientGone))
            if (message.at.saturating_sub(SETTLE)..message.at + SETTLE).contains(&at))
    }
}

#[derive(Default)]
pub struct Ledger {
    pub messages: Vec<Message>,
    pub subscriptions: Vec<Subscription>,
    by_sid: BTreeMap<(usize, String), SubscriptionId>,
    /// Latest message of a publisher at a subscription.
    latest: BTreeMap<(SubscriptionId, usize), MessageId>,
    groups_served: BTreeSet<(MessageId, &'static str)>,
    pub deliveries: usize,
}

impl Ledger {
    pub fn subscribe(&mut self, subscription: Subscription) -> SubscriptionId {
        let id = self.subscriptions.len();
        let key = (subscription.client, subscription.sid.clone());
        self.by_sid.insert(key, id);
        self.subscriptions.push(subscription);
        id
    }

    pub fn end(&mut self, id: SubscriptionId, at: Micros, how: Ended) {
        self.subscriptions[id].ended.get_or_insert((at, how));
    }

    pub fn live(&self) -> impl Iterator<Item = (SubscriptionId, &Subscription)> {
        let all = self.subscriptions.iter().enumerate();
        all.filter(|(_, subscription)| subscription.ended.is_none())
    }

    /// What was under way to it is lost, also to subscriptions that had just ended.
    pub fn client_gone(&mut self, client: usize, at: Micros) {
        for subscription in self.subscriptions.iter_mut().filter(|s| s.client == client) {
            let (ended, _) = *subscription.ended.get_or_insert((at, Ended::ClientGone));
            if ended + SETTLE > at {
                subscription.ended = Some((ended, Ended::ClientGone));
            }
        }
    }

    /// A client got a message; `still`: members of groups have not changed for a while.
    pub fn deliver(
        &mut self,
        client: usize,
        sid: &str,
        id: MessageId,
        subject: &str,
        still: bool,
        now: Micros,
    ) -> Result<SubscriptionId, String> {
        self.deliveries += 1;
        let to = *self
            .by_sid
            .get(&(client, sid.to_owned()))
            .ok_or_else(|| format!("client {client} has no subscription {sid}"))?;
        let message = &self.messages[id];
        let subscription = &mut self.subscriptions[to];
        if subject != message.subject || !subscription.matches(subject) {
            return Err(format!(
                "message {id} on {} came as {subject} to subscription {to} on {}",
                message.subject, subscription.pattern
            ));
        }
        if !subscription.got.insert(id) {
            return Err(format!("message {id} came twice to subscription {to}"));
        }
        let messages = &self.messages;
        let limited = |id: &&MessageId| messages[**id].at >= subscription.since + LIMIT_KNOWN;
        let counted = subscription.got.iter().filter(limited).count();
        if subscription.max.is_some_and(|max| counted > max) {
            return Err(format!("subscription {to} got more than its maximum"));
        }
        if subscription
            .max
            .is_some_and(|max| subscription.got.len() >= max)
        {
            subscription.ended.get_or_insert((now, Ended::Limit));
        }
        if let Some(queue) = subscription.queue
            && !self.groups_served.insert((id, queue))
        {
            return Err(format!("message {id} came twice to group {queue}"));
        }
        let queue = subscription.queue;
        let before = self.latest.insert((to, message.publisher), id);
        // A message for a member that has left, or had all it wanted, takes another way than those
        // behind it.
        let ordered = queue.is_none_or(|queue| still && self.is_lasting(queue, id));
        if let Some(before) = before.filter(|before| *before > id && ordered) {
            return Err(format!(
                "message {id} came behind {before} to subscription {to}"
            ));
        }
        Ok(to)
    }

    /// No member of the group had a maximum that it may have reached about when this was published.
    fn is_lasting(&self, queue: &'static str, id: MessageId) -> bool {
        let at = self.messages[id].at;
        !self.subscriptions.iter().any(|member| {
            let there = member.ended.is_none_or(|(ended, _)| ended + SETTLE >= at);
            member.queue == Some(queue) && member.max.is_some() && there
        })
    }

    /// Whether everything promised has arrived; called when nothing is under way any more.
    pub fn verdict(&self) -> Result<(), String> {
        for (id, message) in self.messages.iter().enumerate().filter(|(_, m)| m.promised) {
            self.check_plain(id, message)?;
            self.check_groups(id, message)?;
            self.check_reply(id, message)?;
        }
        self.check_limits()
    }

    fn check_plain(&self, id: MessageId, message: &Message) -> Result<(), String> {
        let owed = self.subscriptions.iter().position(|subscription| {
            subscription.queue.is_none()
                && subscription.max.is_none()
                && subscription.matches(&message.subject)
                && subscription.is_settled_for(message)
                && !subscription.got.contains(&id)
        });
        match owed {
            None => Ok(()),
            Some(to) => Err(format!(
                "message {id} on {} did not come to subscription {to} on {} of client {}",
                message.subject, self.subscriptions[to].pattern, self.subscriptions[to].client
            )),
        }
    }

    fn check_groups(&self, id: MessageId, message: &Message) -> Result<(), String> {
        let mut owed = BTreeSet::new();
        let mut excused = BTreeSet::new();
        for subscription in &self.subscriptions {
            let Some(queue) = subscription.queue else {
                continue;
            };
            if !subscription.matches(&message.subject) {
                continue;
            }
            if subscription.may_have_taken_along(message) {
                excused.insert(queue);
            } else if subscription.max.is_none() && subscription.is_settled_for(message) {
                owed.insert(queue);
            }
        }
        for queue in owed.difference(&excused) {
            if !self.groups_served.contains(&(id, queue)) {
                return Err(format!(
                    "message {id} on {} came to no member of group {queue}",
                    message.subject
                ));
            }
        }
        Ok(())
    }

    fn check_reply(&self, id: MessageId, message: &Message) -> Result<(), String> {
        let Some(inbox) = message.answers else {
            return Ok(());
        };
        let subscription = &self.subscriptions[inbox];
        let stays = |(at, how)| how != Ended::Limit && at >= message.at + SETTLE;
        let owed = subscription.ended.is_none_or(stays);
        let arrived = !owed || subscription.got.contains(&id);
        match arrived {
            true => Ok(()),
            false => Err(format!("reply {id} did not come to subscription {inbox}")),
        }
    }

    /// A subscription with a maximum gets as many as it asked for, if there are that many.
    fn check_limits(&self) -> Result<(), String> {
        for (id, subscription) in self.subscriptions.iter().enumerate() {
            let Some(max) = subscription.max.filter(|_| subscription.queue.is_none()) else {
                continue;
            };
            let owed = self.messages.iter().filter(|message| {
                let stays = !matches!(subscription.ended, Some((at, Ended::ClientGone | Ended::Unsubscribed))
                    if at < message.at + SETTLE);
                message.promised
                    && stays
                    && subscription.since + SETTLE <= message.at
                    && subscription.matches(&message.subject)
            });
            let owed = owed.count().min(max);
            if subscription.got.len() < owed {
                return Err(format!(
                    "subscription {id} got {} of {owed} messages, with a maximum of {max}",
                    subscription.got.len()
                ));
            }
        }
        Ok(())
    }
}
