//! What must be found after a loss of power, and whether it is.

use super::world::{Durable, EARLIER, World, content};
use super::*;

/// What must be found, whatever happened since the round began.
#[derive(Clone, Default)]
pub struct Promised {
    /// Contents by channel, in order, with the number of the first.
    pub messages: BTreeMap<String, (u64, Vec<u64>)>,
    /// Confirmed durables, with what their clients acknowledged.
    pub durables: BTreeMap<String, Durable>,
    pub members: Members,
    /// The first message that the limit cannot have removed, in any round.
    pub kept: u64,
    pub aged: Aged,
    /// The client was found.
    pub connected: bool,
}

/// Those of the durable group.
#[derive(Clone, Default)]
pub struct Members {
    /// Where the one that stays acknowledges, and the other one if it is there.
    pub stays: String,
    pub comes: Option<String>,
    /// What was acknowledged.
    pub acked: BTreeSet<u64>,
}

impl Members {
    /// Whoever comes and goes: what was sent to the group is pending with a member, or acknowledged.
    fn check(&self, recovered: &Recovered, first: u64) -> Result<(), String> {
        let mut channels = recovered.channels.iter();
        let channel = channels.find(|channel| channel.name == GROUP);
        let subs = channel.map_or(&[][..], |channel| &channel.subscriptions);
        let Some(last_sent) = subs.iter().map(|sub| sub.state.last_sent).max() else {
            return Err(format!("{GROUP}: the durable group is gone"));
        };
        let is_pending = |seq: &u64| subs.iter().any(|sub| sub.pending.contains(seq));
        let mut sent = first..=last_sent;
        match sent.find(|seq| !self.acked.contains(seq) && !is_pending(seq)) {
            None => Ok(()),
            Some(seq) => Err(format!(
                "{GROUP}: no member will see message {seq}, which nobody acknowledged, of {last_sent}: {subs:?}"
            )),
        }
    }
}

/// What is known of the channel whose messages go by age: whether they are there or not, their numbers are theirs.
#[derive(Clone, Default)]
pub struct Aged {
    /// Content and time by number.
    messages: BTreeMap<u64, (u64, i64)>,
    last: u64,
}

impl Aged {
    fn check(
        &mut self,
        (first, found): &(u64, Vec<u64>),
        expected: &Expected,
    ) -> Result<(), String> {
        let nothing = Vec::new();
        let published = expected.published.get("aged").unwrap_or(&nothing);
        let mut must = self.last;
        let acked = expected.acked.get("aged");
        for (seq, content) in (self.last + 1..).zip(published) {
            self.messages
                .insert(seq, (*content, expected.times[content]));
            if acked.is_some_and(|acked| acked.contains(content)) {
                must = seq;
            }
        }
        for (seq, content) in (*first..).zip(found) {
            let known = self.messages.get(&seq).map(|(content, _)| *content);
            if known != Some(*content) {
                return Err(format!(
                    "aged: message {seq} is {content}, it was {known:?}"
                ));
            }
        }
        let last = first + found.len() as u64 - 1;
        if last < must {
            return Err(format!("aged: the last number is {last}, it was {must}"));
        }
        let gone = self.messages.range(..*first);
        if let Some((seq, _)) = gone
            .filter(|(seq, _)| **seq <= must)
            .find(|(_, (_, at))| at + AGE > expected.now)
        {
            return Err(format!("aged: message {seq} is gone before its time"));
        }
        self.last = last;
        self.messages.retain(|seq, _| *seq <= last);
        Ok(())
    }
}

/// What is to be found after a round.
pub struct Expected {
    /// Messages published beside those promised before: unacknowledged ones may be there or not.
    pub acked: BTreeMap<String, BTreeSet<u64>>,
    pub delivered: Vec<(String, u64, u64)>,
    pub published: BTreeMap<String, Vec<u64>>,
    pub times: BTreeMap<u64, i64>,
    /// When the round ended.
    pub now: i64,
    pub before: BTreeMap<String, (u64, Vec<u64>)>,
    pub durables: BTreeMap<String, (Durable, Fate)>,
    pub members: Members,
    pub connected: bool,
    /// A channel may have been removed because nobody used it.
    pub removed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    There,
    Gone,
    Either,
}

pub fn expected(world: &World, cut: usize) -> Expected {
    let told = &world.out.told;
    let mut acked: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for (_, channel, content) in told.acked.iter().filter(|(at, ..)| *at <= cut) {
        acked.entry(channel.clone()).or_default().insert(*content);
    }
    let delivered = told.delivered.iter().filter(|(at, ..)| *at <= cut);
    let delivered = delivered
        .map(|(_, channel, seq, content)| (channel.clone(), *seq, *content))
        .collect();
    let answered: BTreeSet<&String> = told
        .answered
        .iter()
        .filter(|(at, _)| *at <= cut)
        .map(|(_, reply)| reply)
        .collect();
    let mut durables = BTreeMap::new();
    for (name, all) in &world.durables {
        // The last one that was asked for, and what was said of its end.
        let mut last = all.last().expect("there is one").clone();
        let made = last.promised || last.made.iter().any(|reply| answered.contains(reply));
        let fate = match &last.ended {
            Some(reply) if answered.contains(reply) => Fate::Gone,
            None if made => Fate::There,
            _ => Fate::Either,
        };
        if !made {
            // What is found may be the one before.
            last.acked = all.iter().flat_map(|one| one.acked.clone()).collect();
        }
        (last.made, last.ended) = (Vec::new(), None);
        durables.insert(name.clone(), (last, fate));
    }
    let group = &world.group;
    let knows = |came: &&String| *came == EARLIER || answered.contains(came);
    let came = group.came.as_ref().filter(knows);
    let inbox = |came: &String| world.out.ack_inboxes.get(came).cloned();
    let by_then = group.acked.iter().filter(|(at, _)| *at <= cut);
    let members = Members {
        stays: group.stays.clone(),
        comes: came.and_then(inbox),
        acked: by_then.map(|(_, seq)| *seq).collect(),
    };
    let connected = !acked.is_empty();
    Expected {
        before: BTreeMap::new(),
        removed: false,
        acked,
        delivered,
        published: world.published.clone(),
        times: world.times.clone(),
        now: world.now,
        durables,
        members,
        connected,
    }
}

/// What the power leaves of the log does not pass for damage. In an index and among records that nothing was promised of, a part
/// may be there and one before it not, which looks the same.
pub fn log_is_no_damage(folder: &Path, options: &FileOptions) -> Result<(), String> {
    let mut options = options.clone();
    options.strict = true;
    let opened = FileStore::open_in_steps(folder, options, limits(), &Arc::default());
    let text = opened.err().map(|error| error.to_string());
    match text.filter(|text| text.contains("midge.log")) {
        Some(text) => Err(format!("taken for damage: {text}")),
        None => Ok(()),
    }
}

/// Opens what is left, and compares.
pub fn verify(
    folder: &Path,
    options: &FileOptions,
    expected: &Expected,
    promised: &mut Promised,
) -> Result<(), String> {
    let steps = Arc::new(Steps::default());
    let (mut store, recovered) =
        FileStore::open_in_steps(folder, options.clone(), limits(), &steps)
            .map_err(|error| format!("does not open: {error}"))?;
    let connected = recovered.clients.iter().any(|client| client.id == "me");
    if (expected.connected || promised.connected) && !connected {
        return Err("the client is not registered any more".into());
    }
    promised.connected = connected;
    let empty = BTreeSet::new();
    for name in CHANNELS {
        let found = read(&mut store, &recovered, name)?;
        if name == "aged" {
            promised.aged.check(&found, expected)?;
            continue;
        }
        let acked = expected.acked.get(name).unwrap_or(&empty);
        let before = promised
            .messages
            .get(name)
            .cloned()
            .unwrap_or((1, Vec::new()));
        messages_are_right(name, &found, &before, acked, expected)?;
        promised.messages.insert(name.into(), found);
    }
    for (channel, seq, content) in &expected.delivered {
        let (first, contents) = &promised.messages[channel];
        let nth = seq.checked_sub(*first);
        let there = nth.map(|nth| contents.get(nth as usize).copied());
        match there {
            None => {} // it went by a limit
            Some(there) if there == Some(*content) => {}
            Some(there) => {
                return Err(format!(
                    "{channel}: message {seq} was delivered as {content} and is {there:?} now"
                ));
            }
        }
    }
    let mut members = expected.members.clone();
    members.acked.append(&mut promised.members.acked);
    members.check(&recovered, promised.messages[GROUP].0)?;
    promised.members = members;
    let mut durables = BTreeMap::new();
    for (name, (durable, fate)) in &expected.durables {
        let channel = recovered
            .channels
            .iter()
            .find(|channel| channel.name == *name);
        let subs = channel.map_or(&[][..], |channel| &channel.subscriptions);
        let found = subs.iter().find(|sub| sub.state.durable_name == "d");
        match (found, fate) {
            (None, Fate::There) => {
                return Err(format!("{name}: the durable is gone, there are {subs:?}"));
            }
            (Some(_), Fate::Gone) => return Err(format!("{name}: the durable is back")),
            (None, _) => continue,
            (Some(_), _) => {}
        }
        let Some(found) = found else {
            continue;
        };
        let (_, before) = expected
            .before
            .get(name)
            .cloned()
            .unwrap_or((1, Vec::new()));
        let kept_from = match name.as_str() {
            // What had gone by the limit may be there again; nobody waits for it.
            "last" => {
                let published = expected.published.get(name).map_or(0, Vec::len);
                let last = expected.before.get(name).map_or(0, |(first, _)| first - 1);
                let kept = (last + (before.len() + published) as u64).saturating_sub(LAST_MAX) + 1;
                promised.kept = promised.kept.max(kept);
                promised.kept
            }
            _ => promised.messages[name].0,
        };
        for seq in kept_from..=found.state.last_sent {
            if !found.pending.contains(&seq) && !durable.acked.contains(&seq) {
                return Err(format!(
                    "{name}: the durable will not see message {seq}, which it did not acknowledge: pending {:?} of {}, acknowledged {:?}",
                    found.pending, found.state.last_sent, durable.acked
                ));
            }
        }
        if *fate == Fate::There || *fate == Fate::Either {
            durables.insert(name.clone(), durable.clone());
        }
    }
    promised.durables = durables;
    Ok(())
}

/// The number of the first message, and all contents.
pub fn read(
    store: &mut FileStore,
    recovered: &Recovered,
    name: &str,
) -> Result<(u64, Vec<u64>), String> {
    let Some(channel) = recovered
        .channels
        .iter()
        .find(|channel| channel.name == name)
    else {
        return Ok((1, Vec::new()));
    };
    let bounds = store.bounds(channel.id);
    let mut contents = Vec::new();
    for seq in bounds.first.max(1)..=bounds.last {
        match store.lookup(channel.id, seq) {
            Ok(Some(bytes)) => {
                let message = pb::MsgProto::decode(bytes).map_err(|e| format!("{name}: {e}"))?;
                if message.sequence != seq {
                    return Err(format!(
                        "{name}: message {} stands as {seq}",
                        message.sequence
                    ));
                }
                contents.push(content(&message.data));
            }
            Ok(None) => return Err(format!("{name}: message {seq} is not there")),
            Err(error) => return Err(format!("{name}: message {seq}: {error}")),
        }
    }
    Ok((bounds.first.max(1), contents))
}

pub fn messages_are_right(
    name: &str,
    (first, found): &(u64, Vec<u64>),
    (first_before, before): &(u64, Vec<u64>),
    acked: &BTreeSet<u64>,
    expected: &Expected,
) -> Result<(), String> {
    if !found.windows(2).all(|pair| pair[0] < pair[1]) {
        return Err(format!("{name}: out of order: {found:?}"));
    }
    let empty = Vec::new();
    let published = expected.published.get(name).unwrap_or(&empty);
    let known: BTreeSet<u64> = before.iter().chain(published).copied().collect();
    if let Some(unknown) = found.iter().find(|content| !known.contains(content)) {
        return Err(format!(
            "{name}: {unknown} was not published, or not any more there"
        ));
    }
    if name == "short" && expected.removed {
        // It may have been removed, and made again: then all of one life are there, or none.
        let there: BTreeSet<u64> = found.iter().copied().collect();
        let latest = acked.last().copied();
        return match latest {
            Some(latest) if found.first().is_some_and(|first| *first <= latest) => {
                let lost = acked
                    .iter()
                    .find(|content| **content >= found[0] && !there.contains(content));
                lost.map_or(Ok(()), |lost| {
                    Err(format!("{name}: {lost} was acknowledged and is lost"))
                })
            }
            _ => Ok(()),
        };
    }
    // What limits leave is the end.
    let limited = name == "last";
    let must: BTreeSet<u64> = before.iter().chain(acked).copied().collect();
    for content in &must {
        let gone_by_limit = limited && found.len() as u64 >= LAST_MAX && *content < found[0];
        if !found.contains(content) && !gone_by_limit {
            return Err(format!(
                "{name}: {content} was acknowledged and is lost, of {found:?}"
            ));
        }
    }
    // Numbers go on.
    if let (Some(old), true) = (before.first(), first >= first_before)
        && let Some(nth) = found.iter().position(|content| content == old)
        && first + nth as u64 != *first_before
    {
        return Err(format!("{name}: numbers have moved"));
    }
    if first < first_before && !limited {
        return Err(format!("{name}: begins with {first}, not {first_before}"));
    }
    Ok(())
}
