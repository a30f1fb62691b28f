//! What a user may publish and subscribe to.
//!
//! Rules are sets of subjects: a subscription is allowed when everything it could match is allowed
//! by one rule, denied when everything it could match is denied by one; what a wildcard subscription
//! catches of denied subjects is held back message by message.

use crate::subject::token::{is_subset, pattern_matches};

/// A pattern, and for subscriptions perhaps the queue groups it is meant for.
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

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// None: everything that is not denied.
    pub allow: Option<Vec<Rule>>,
    pub deny: Vec<Rule>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    pub publish: Rules,
    pub subscribe: Rules,
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
        let fits = |rule: &Rule| pattern_matches(&rule.subject, subject);
        self.publish
            .allow
            .as_ref()
            .is_none_or(|allow| allow.iter().any(fits))
            && !self.publish.deny.iter().any(fits)
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
        match self.subscribe.deny.iter().any(overlaps) {
            true => Subscribing::Filtered,
            false => Subscribing::Allowed,
        }
    }

    pub fn may_receive(&self, subject: &[u8], queue: Option<&[u8]>) -> bool {
        !self
            .subscribe
            .deny
            .iter()
            .any(|rule| pattern_matches(&rule.subject, subject) && rule.queue_fits(queue))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            publish: Rules {
                allow: Some(rules(&["a.>"])),
                deny: rules(&["a.secret"]),
            },
            ..Permissions::default()
        };
        assert!(permissions.may_publish(b"a.b") && !permissions.may_publish(b"a.secret"));
        assert!(!permissions.may_publish(b"b") && Permissions::default().may_publish(b"b"));
    }

    #[test]
    fn subscribing() {
        let permissions = Permissions {
            subscribe: Rules {
                allow: Some(rules(&["a.*", "q.> workers"])),
                deny: rules(&["a.x"]),
            },
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
        assert!(permissions.may_receive(b"a.b", None) && !permissions.may_receive(b"a.x", None));
    }
}
