//! What a user may publish and subscribe to.
//!
//! Rules are sets of subjects: a subscription is allowed when everything it could match is allowed
//! by one rule, denied when everything it could match is denied by one; what a wildcard subscription
//! catches of denied subjects is held back message by message.

use crate::subject::set::PatternSet;
use crate::subject::token::{is_subset, pattern_matches};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A pattern, and perhaps the queue groups it is meant for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub subject: Box<[u8]>,
    /// Pattern of queue group names; None: plain subscriptions and every queue group.
    pub queue: Option<Box<[u8]>>,
}

impl Rule {
    fn queue_fits(&self, queue: Option<&[u8]>) -> bool {
        match (&self.queue, queue) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(rule), Some(queue)) => pattern_matches(rule, queue),
        }
    }
}

/// What may be published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishRules {
    /// None: everything that is not denied.
    pub allow: Option<PatternSet>,
    pub deny: PatternSet,
}

/// What may be subscribed to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubscribeRules {
    /// None: everything that is not denied.
    allow: Option<Vec<Rule>>,
    deny: Vec<Rule>,
    /// Those of `deny` that are meant for all, as messages are asked about them one by one.
    denied_to_all: PatternSet,
}

impl SubscribeRules {
    pub fn new(allow: Option<Vec<Rule>>, deny: Vec<Rule>) -> Self {
        let for_all = deny.iter().filter(|rule| rule.queue.is_none());
        Self {
            denied_to_all: for_all.map(|rule| &*rule.subject).collect(),
            allow,
            deny,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    pub publish: PublishRules,
    pub subscribe: SubscribeRules,
    /// Who gets a request may answer it, whatever the rules say.
    pub responses: Option<Responses>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Responses {
    /// Answers to one request; None: any number.
    pub messages_max: Option<u32>,
    /// Time to answer; None: any.
    pub expires: Option<Duration>,
}

/// Most requests one connection may have to answer; those beyond it cannot be answered.
const ANSWERS_MAX: usize = 1 << 16;
/// Below this many there is no looking for those that are over.
const ANSWERS_TIDY_MIN: usize = 64;

/// The subjects a connection may answer on.
#[derive(Debug, Default)]
pub struct Answers {
    open: HashMap<Box<[u8]>, Answer>,
    /// With this many, those that are over are looked for.
    tidy_at: usize,
}

#[derive(Debug)]
struct Answer {
    left: Option<u32>,
    until: Option<Instant>,
}

impl Answers {
    /// A request came, with this reply subject.
    pub fn grant(&mut self, reply: &[u8], responses: &Responses, now: Instant) {
        let over = |answer: &Answer| answer.until.is_some_and(|until| until <= now);
        if self.open.len() >= self.tidy_at.max(ANSWERS_TIDY_MIN) {
            self.open.retain(|_, answer| !over(answer));
            self.tidy_at = 2 * self.open.len();
        }
        if self.open.len() < ANSWERS_MAX {
            let answer = Answer {
                left: responses.messages_max,
                until: responses.expires.map(|time| now + time),
            };
            self.open.insert(reply.into(), answer);
        }
    }

    /// Whether this subject is a reply that may still be given; it counts as given.
    pub fn take(&mut self, subject: &[u8], now: Instant) -> bool {
        let Some(answer) = self.open.get_mut(subject) else {
            return false;
        };
        if answer.until.is_some_and(|until| until <= now) {
            self.open.remove(subject);
            return false;
        }
        match &mut answer.left {
            None => {}
            Some(1) => drop(self.open.remove(subject)),
            Some(left) => *left -= 1,
        }
        true
    }
}

/// The verdict on a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subscribing {
    Allowed,
    /// Allowed, but each message must be checked with `may_receive`.
    Filtered,
    Denied,
}

impl Permissions {
    pub fn may_publish(&self, subject: &[u8]) -> bool {
        let PublishRules { allow, deny } = &self.publish;
        allow.as_ref().is_none_or(|allow| allow.matches(subject)) && !deny.matches(subject)
    }

    pub fn may_subscribe(&self, subject: &[u8], queue: Option<&[u8]>) -> Subscribing {
        let covers = |rule: &Rule| is_subset(subject, &rule.subject) && rule.queue_fits(queue);
        if self
            .subscribe
            .allow
            .as_ref()
            .is_some_and(|allow| !allow.iter().any(covers))
            || self.subscribe.deny.iter().any(covers)
        {
            return Subscribing::Denied;
        }
        // A deny rule inside of what the subscription spans can only be judged per message.
        let overlaps = |rule: &Rule| {
            rule.queue_fits(queue) && crate::subject::token::overlaps(subject, &rule.subject)
        };
        // So is whether a message is a request.
        match self.responses.is_some() || self.subscribe.deny.iter().any(overlaps) {
            true => Subscribing::Filtered,
            false => Subscribing::Allowed,
        }
    }

    pub fn may_receive(&self, subject: &[u8], queue: Option<&[u8]>) -> bool {
        let denied_to_group = |rule: &Rule| {
            rule.queue.is_some()
                && rule.queue_fits(queue)
                && pattern_matches(&rule.subject, subject)
        };
        let SubscribeRules {
            deny,
            denied_to_all,
            ..
        } = &self.subscribe;
        !denied_to_all.matches(subject) && !deny.iter().any(denied_to_group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::strategy::Strategy as _;

    fn rules(patterns: &[&str]) -> Vec<Rule> {
        let rule = |pattern: &&str| match pattern.split_once(' ') {
            Some((subject, queue)) => Rule {
                subject: subject.as_bytes().into(),
                queue: Some(queue.as_bytes().into()),
            },
            None => Rule {
                subject: pattern.as_bytes().into(),
                queue: None,
            },
        };
        patterns.iter().map(rule).collect()
    }

    #[test]
    fn publishing() {
        let permissions = Permissions {
            publish: PublishRules {
                allow: Some([&b"a.>"[..]].into_iter().collect()),
                deny: [&b"a.secret"[..]].into_iter().collect(),
            },
            ..Permissions::default()
        };
        assert!(permissions.may_publish(b"a.b") && !permissions.may_publish(b"a.secret"));
        assert!(!permissions.may_publish(b"b") && Permissions::default().may_publish(b"b"));
    }

    #[test]
    fn subscribing() {
        let permissions = Permissions {
            subscribe: SubscribeRules::new(
                Some(rules(&["a.*", "q.> workers"])),
                rules(&["a.x", "a.y slow"]),
            ),
            ..Permissions::default()
        };
        for (subject, queue, expect) in [
            ("a.b", None, Subscribing::Allowed),
            ("a.*", None, Subscribing::Filtered),
            ("a.x", None, Subscribing::Denied),
            ("a.>", None, Subscribing::Denied),
            (">", None, Subscribing::Denied),
            ("q.1", None, Subscribing::Denied),
            ("q.1", Some("workers"), Subscribing::Allowed),
            ("q.1", Some("others"), Subscribing::Denied),
        ] {
            let got = permissions.may_subscribe(subject.as_bytes(), queue.map(str::as_bytes));
            assert_eq!(got, expect, "{subject} {queue:?}");
        }
        for (subject, queue, expect) in [
            ("a.b", None, true),
            ("a.x", None, false),
            ("a.x", Some("fast"), false),
            ("a.y", None, true),
            ("a.y", Some("fast"), true),
            ("a.y", Some("slow"), false),
        ] {
            let got = permissions.may_receive(subject.as_bytes(), queue.map(str::as_bytes));
            assert_eq!(got, expect, "{subject} {queue:?}");
        }
    }

    #[test]
    fn answering() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let twice = Responses {
            messages_max: Some(2),
            expires: Some(second),
        };
        let mut answers = Answers::default();
        answers.grant(b"r", &twice, now);
        assert!(!answers.take(b"other", now));
        assert!(answers.take(b"r", now) && answers.take(b"r", now) && !answers.take(b"r", now));
        answers.grant(b"r", &twice, now);
        assert!(!answers.take(b"r", now + second));
        let always = Responses {
            messages_max: None,
            expires: None,
        };
        answers.grant(b"r", &always, now);
        assert!((0..10).all(|_| answers.take(b"r", now + 1000 * second)));
        // What is never answered does not stay for ever, nor grow without bound.
        for n in 0..1000u64 {
            answers.grant(&n.to_le_bytes(), &twice, now + n as u32 * second);
        }
        assert!(answers.open.len() < 200, "{}", answers.open.len());
        for n in 0..2 * ANSWERS_MAX as u64 {
            answers.grant(&n.to_le_bytes(), &always, now);
        }
        assert_eq!(answers.open.len(), ANSWERS_MAX);
    }

    proptest::proptest! {
        /// What gets through is allowed and not denied, whatever the rules; and nothing else is held back.
        #[test]
        fn nothing_denied_gets_through(
            allow in proptest::option::of(proptest::collection::vec(pattern(), 0..4)),
            deny in proptest::collection::vec(pattern(), 0..4),
            queued in proptest::collection::vec(0..3usize, 8),
            subject in pattern(),
            queue in 0..3usize,
        ) {
            // Of some rules only for groups of a name.
            let queue_of = |kind: usize| [None, Some("q"), Some("r")][kind];
            let with_queues = |patterns: &[String], kinds: &[usize]| {
                let words = patterns.iter().zip(kinds).map(|(pattern, kind)| {
                    [Some(pattern.as_str()), queue_of(*kind)].into_iter().flatten().collect::<Vec<_>>().join(" ")
                });
                let words: Vec<String> = words.collect();
                rules(&words.iter().map(String::as_str).collect::<Vec<_>>())
            };
            let allow = allow.map(|patterns| with_queues(&patterns, &queued));
            let deny = with_queues(&deny, &queued[4..]);
            let permissions = Permissions {
                subscribe: SubscribeRules::new(allow.clone(), deny.clone()),
                ..Permissions::default()
            };
            let queue = queue_of(queue).map(str::as_bytes);
            let verdict = permissions.may_subscribe(subject.as_bytes(), queue);
            let tokens = ["a", "b", "c"];
            let two = tokens.iter().flat_map(|a| tokens.map(|b| format!("{a}.{b}")));
            let three = two.clone().flat_map(|front| tokens.map(|c| format!("{front}.{c}")));
            let all = tokens.map(String::from).into_iter().chain(two).chain(three);
            for published in all.filter(|one| pattern_matches(subject.as_bytes(), one.as_bytes())) {
                let hit = |rule: &Rule| rule.queue_fits(queue) && pattern_matches(&rule.subject, published.as_bytes());
                let denied = deny.iter().any(hit);
                proptest::prop_assert_eq!(permissions.may_receive(published.as_bytes(), queue), !denied, "{}", published);
                if verdict != Subscribing::Denied {
                    proptest::prop_assert!(allow.as_ref().is_none_or(|allow| allow.iter().any(hit)), "{published}");
                }
                proptest::prop_assert!(verdict != Subscribing::Allowed || !denied, "{published}");
            }
        }
    }

    fn pattern() -> impl proptest::strategy::Strategy<Value = String> {
        proptest::sample::select(vec![
            "a", "b", "*", ">", "a.b", "a.*", "a.>", "*.b", "*.*", "*.>", "b.>", "a.*.b", "a.b.>",
            "*.b.*", "*.*.*",
        ])
        .prop_map(String::from)
    }
}
