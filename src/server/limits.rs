//! Limits of channels and where their dead letters go, from the options; and the table of them in the log.

use crate::config::streaming::{
    CHANNEL_MARK, ChannelLimitOptions, StoreKind, StreamingOptions, duration_text,
};
use crate::stan::engine::{DeadLetterRule, DeadLetters};
use crate::stan::store::{ChannelLimits, LimitsOf, friendly_bytes};
use crate::subject::token;
use std::sync::Arc;

/// Of the table in the log, where no line is longer.
const LINE_WIDTH: usize = 34;

/// The limits of every entry, with what it inherits filled in.
struct Resolved {
    defaults: ChannelLimitOptions,
    /// From wide to narrow.
    entries: Vec<Entry>,
}

struct Entry {
    name: String,
    limits: ChannelLimitOptions,
    /// The entry it inherits from; None: from the defaults.
    parent: Option<usize>,
}

impl Resolved {
    /// An entry takes what it does not say from the narrowest of the wider entries that match its own name, wildcards
    /// and all: `*.bar` does not match `foo.*`, so a channel `foo.bar` has nothing of it when there is a `foo.*`.
    fn new(options: &StreamingOptions) -> Self {
        let mut names: Vec<&String> = options.channels.keys().collect();
        names.sort_by_key(|name| width(name));
        let defaults = options.limits.clone();
        let mut entries: Vec<Entry> = Vec::with_capacity(names.len());
        for name in names {
            let parent = entries.iter().rposition(|wider| wider.matches(name));
            let above = parent.map_or(&defaults, |parent| &entries[parent].limits);
            let limits = filled(&options.channels[name], above);
            entries.push(Entry {
                name: name.clone(),
                limits,
                parent,
            });
        }
        Self { defaults, entries }
    }

    /// The narrowest entry that matches is all there is to say of a channel.
    fn of(&self, channel: &str) -> &ChannelLimitOptions {
        let own = self.entries.iter().rfind(|entry| entry.matches(channel));
        own.map_or(&self.defaults, |entry| &entry.limits)
    }

    fn above(&self, entry: &Entry) -> &ChannelLimitOptions {
        let parent = entry.parent.map(|parent| &self.entries[parent].limits);
        parent.unwrap_or(&self.defaults)
    }
}

impl Entry {
    fn matches(&self, name: &str) -> bool {
        token::pattern_matches(self.name.as_bytes(), name.as_bytes())
    }
}

fn filled(own: &ChannelLimitOptions, above: &ChannelLimitOptions) -> ChannelLimitOptions {
    ChannelLimitOptions {
        max_subscriptions: own.max_subscriptions.or(above.max_subscriptions),
        max_msgs: own.max_msgs.or(above.max_msgs),
        max_bytes: own.max_bytes.or(above.max_bytes),
        max_age: own.max_age.or(above.max_age),
        max_inactivity: own.max_inactivity.or(above.max_inactivity),
        max_redeliveries: own.max_redeliveries.or(above.max_redeliveries),
        dead_letter: own
            .dead_letter
            .as_ref()
            .or(above.dead_letter.as_ref())
            .cloned(),
    }
}

/// Sorts patterns from wide to narrow, token by token; those of the same beginning stand together.
fn width(pattern: &str) -> Vec<(u8, &str)> {
    let rank = |token| match token {
        ">" => (0, token),
        "*" => (1, token),
        _ => (2, token),
    };
    pattern.split('.').map(rank).collect()
}

/// Limits of a channel, by its name.
pub fn of(options: &StreamingOptions) -> LimitsOf {
    let resolved = Resolved::new(options);
    Box::new(move |name| effective(resolved.of(name)))
}

/// Those of all channels that no entry matches, and those of the entries.
pub fn all(options: &StreamingOptions) -> (ChannelLimits, Vec<(String, ChannelLimits)>) {
    let resolved = Resolved::new(options);
    let entries = resolved.entries.iter();
    let entries = entries.map(|entry| (entry.name.clone(), effective(&entry.limits)));
    (effective(&resolved.defaults), entries.collect())
}

fn effective(limits: &ChannelLimitOptions) -> ChannelLimits {
    ChannelLimits {
        subscriptions: number(limits.max_subscriptions) as u64,
        messages: number(limits.max_msgs) as u64,
        bytes: number(limits.max_bytes) as u64,
        age: number(limits.max_age),
        inactivity: number(limits.max_inactivity),
    }
}

/// Negative is no limit, as 0 is.
fn number(limit: Option<i64>) -> i64 {
    limit.unwrap_or(0).max(0)
}

/// Which channels have dead letters. A channel that takes dead letters of others has none of its own: they
/// would go round in circles, or from one channel to the next for ever.
pub fn dead_letters(options: &StreamingOptions) -> DeadLetters {
    let resolved = Resolved::new(options);
    let all = || std::iter::once(&options.limits).chain(options.channels.values());
    if !all().any(|limits| limits.max_redeliveries.is_some_and(|max| max > 0)) {
        return DeadLetters::default();
    }
    let targets: Vec<String> = all()
        .filter_map(|limits| limits.dead_letter.clone())
        .collect();
    DeadLetters(Arc::new(move |name| {
        let limits = resolved.of(name);
        let max = limits.max_redeliveries.filter(|max| *max > 0)?;
        let template = limits.dead_letter.as_ref()?;
        if targets.iter().any(|target| takes_letters(target, name)) {
            return None;
        }
        Some(DeadLetterRule {
            max_redeliveries: u32::try_from(max).unwrap_or(u32::MAX),
            target: template.replace(CHANNEL_MARK, name),
        })
    }))
}

fn takes_letters(template: &str, name: &str) -> bool {
    match template.split_once(CHANNEL_MARK) {
        None => template == name,
        Some((before, behind)) => {
            let middle = name
                .strip_prefix(before)
                .and_then(|rest| rest.strip_suffix(behind));
            // A template that is nothing but the mark makes every channel its own.
            middle.is_some_and(|middle| !middle.is_empty())
        }
    }
}

/// The original's table of limits.
pub fn tell(options: &StreamingOptions) {
    let default = StreamingOptions::default();
    let kind = match options.store {
        StoreKind::Memory => "MEMORY",
        StoreKind::File => "FILE",
    };
    log::info!("STREAM: Message store is {kind}");
    if !options.dir.is_empty() {
        log::info!("STREAM: Store location: {}", options.dir);
    }
    log::info!("STREAM: ---------- Store Limits ----------");
    let line = |name: &str, value: String, is_default: bool| {
        let mark = if is_default { " *" } else { "" };
        log::info!("STREAM: {name}{value:>13}{mark}");
    };
    let same = options.max_channels == default.max_channels;
    line("Channels:        ", count(options.max_channels), same);
    log::info!("STREAM: --------- Channels Limits --------");
    for (shown, usual) in shown(&options.limits).iter().zip(shown(&default.limits)) {
        // Ours is shown where it is used.
        if shown.what != REDELIVERIES || shown.limit > 0 {
            let same = shown.limit == usual.limit;
            line(&format!("  {:<13}: ", shown.what), shown.text.clone(), same);
        }
    }
    let (entries, width) = listed(&Resolved::new(options));
    if !entries.is_empty() {
        log::info!("STREAM: {:-^width$}", " List of Channels ");
        for text in entries {
            log::info!("STREAM: {text}");
        }
    }
    log::info!("STREAM: {}", "-".repeat(width));
}

/// Entries of single channels, from wide to narrow, with what they have of their own; and how long the longest line is.
fn listed(resolved: &Resolved) -> (Vec<String>, usize) {
    let entries = &resolved.entries;
    let tokens = |entry: &Entry| entry.name.split('.').count();
    let levels = entries.iter().map(tokens).max().unwrap_or(0);
    let mut lines = Vec::new();
    for entry in entries {
        let wider = entries.iter().take_while(|other| other.name != entry.name);
        let level = wider.filter(|other| other.matches(&entry.name)).count();
        let (left, right) = (" ".repeat(level), " ".repeat(levels.saturating_sub(level)));
        lines.push(format!("{left}{}", entry.name));
        let above = shown(resolved.above(entry));
        for (own, above) in shown(&entry.limits).iter().zip(above) {
            if own.limit != above.limit {
                lines.push(format!(
                    "{left} |-> {:<13} {right}{:>13}",
                    own.what, own.text
                ));
            }
        }
    }
    let longest = lines.iter().map(String::len).max().unwrap_or(0);
    (lines, longest.max(LINE_WIDTH))
}

struct ShownLimit {
    what: &'static str,
    limit: i64,
    text: String,
}

const REDELIVERIES: &str = "Redeliveries";

/// Limits as they are shown.
fn shown(limits: &ChannelLimitOptions) -> [ShownLimit; 6] {
    let shown = |what, limit, text: fn(i64) -> String| {
        let limit = number(limit);
        let text = text(limit);
        ShownLimit { what, limit, text }
    };
    [
        shown("Subscriptions", limits.max_subscriptions, count),
        shown("Messages", limits.max_msgs, count),
        shown("Bytes", limits.max_bytes, bytes),
        shown("Age", limits.max_age, period),
        shown("Inactivity", limits.max_inactivity, period),
        shown(REDELIVERIES, limits.max_redeliveries, count),
    ]
}

fn count(limit: i64) -> String {
    match limit {
        0 => "unlimited".to_owned(),
        limit => limit.to_string(),
    }
}

fn period(nanos: i64) -> String {
    match nanos {
        0 => "unlimited".to_owned(),
        nanos => duration_text(nanos),
    }
}

fn bytes(limit: i64) -> String {
    match limit {
        0 => "unlimited".to_owned(),
        limit => friendly_bytes(limit as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_inherited_from_wide_to_narrow() {
        let mut options = StreamingOptions::default();
        let own = |msgs, bytes| ChannelLimitOptions {
            max_msgs: msgs,
            max_bytes: bytes,
            ..ChannelLimitOptions::default()
        };
        options
            .channels
            .insert("foo.>".into(), own(Some(5), Some(100)));
        options.channels.insert("foo.*".into(), own(Some(4), None));
        options
            .channels
            .insert("foo.bar".into(), own(Some(0), None));
        options
            .channels
            .insert("*.bar".into(), own(Some(9), Some(9)));
        let limits = of(&options);
        let get = |name| (limits(name).messages, limits(name).bytes);
        assert_eq!(get("foo.bar"), (0, 100));
        assert_eq!(get("foo.baz"), (4, 100));
        assert_eq!(get("foo.a.b"), (5, 100));
        assert_eq!(get("x.bar"), (9, 9));
        assert_eq!(get("other"), (1_000_000, 1_024_000_000));
    }

    /// Entries that say no more than how many messages there may be (-1: not even that), by name.
    fn with(entries: &[(&str, i64)]) -> StreamingOptions {
        let mut options = StreamingOptions::default();
        options.limits.max_msgs = Some(10);
        for (name, msgs) in entries {
            let own = ChannelLimitOptions {
                max_msgs: Some(*msgs).filter(|msgs| *msgs >= 0),
                ..ChannelLimitOptions::default()
            };
            options.channels.insert((*name).into(), own);
        }
        options
    }

    #[test]
    fn a_pattern_that_matches_the_channel_alone_leaves_nothing_to_it() {
        let check = |entries: &[(&str, i64)], channel: &str, msgs: u64| {
            let limits = of(&with(entries));
            assert_eq!(limits(channel).messages, msgs, "{channel} of {entries:?}");
        };
        // Of the channel foo.bar's two patterns, neither matches the other's name.
        check(&[("*.bar", 2), ("foo.*", -1)], "foo.bar", 10);
        check(&[("*.bar", 2), ("foo.*", -1)], "x.bar", 2);
        // An own entry inherits from the narrowest pattern, and that one from the defaults.
        check(
            &[("*.bar", 2), ("foo.*", -1), ("foo.bar", -1)],
            "foo.bar",
            10,
        );
        let three = [("foo.*.baz", 3), ("foo.bar.*", -1), ("foo.bar.baz", -1)];
        check(&three, "foo.bar.baz", 10);
        check(&three, "foo.x.baz", 3);
        check(&[("*.bar", 2), ("foo.bar", -1)], "foo.bar", 2);
        // As the original has it: `>` at the end of a name is a token that `*` matches.
        check(&[("*.*", 5), ("foo.>", -1)], "foo.a.b", 5);
        check(&[("*.*", 5), ("*.>", 4)], "a.b", 5);
        check(&[("*.*", 5), ("*.>", 4)], "a.b.c", 4);
        check(&[(">", 5), ("foo.>", -1)], "foo.a", 5);
    }

    /// The original's way: a tree of tokens that is gone through from wide to narrow, where every match is filled from
    /// the match before it.
    mod original {
        use std::collections::BTreeMap;

        #[derive(Default)]
        struct Node {
            next: BTreeMap<String, Node>,
            entry: Option<String>,
        }

        impl Node {
            fn collect(&self, tokens: &[&str], found: &mut Vec<String>) {
                let Some((first, rest)) = tokens.split_first() else {
                    return found.extend(self.entry.clone());
                };
                if let Some(all) = self.next.get(">") {
                    found.extend(all.entry.clone());
                }
                let literal = Some(*first).filter(|token| !matches!(*token, "*" | ">"));
                for next in [Some("*"), literal].into_iter().flatten() {
                    if let Some(node) = self.next.get(next) {
                        node.collect(rest, found);
                    }
                }
            }

            /// Also those with further ones behind them, which the original forgets.
            fn names(&self, found: &mut Vec<String>) {
                found.extend(self.entry.clone());
                let rank = |token: &str| ["*", ">"].iter().position(|wild| *wild == token);
                let mut next: Vec<&String> = self.next.keys().collect();
                next.sort_by_key(|token| std::cmp::Reverse(rank(token)));
                for token in next {
                    self.next[token].names(found);
                }
            }
        }

        /// Messages of a channel by the entries, where -1 is inherited and 10 the default.
        pub fn messages(entries: &[(&str, i64)], channel: &str) -> i64 {
            let mut root = Node::default();
            for (name, _) in entries {
                let mut node = &mut root;
                for token in name.split('.') {
                    node = node.next.entry(token.into()).or_default();
                }
                node.entry = Some((*name).into());
            }
            let matching = |name: &str| {
                let mut found = Vec::new();
                root.collect(&name.split('.').collect::<Vec<_>>(), &mut found);
                found
            };
            let own: BTreeMap<&str, i64> = entries.iter().copied().collect();
            let mut filled: BTreeMap<String, i64> = BTreeMap::new();
            let mut names = Vec::new();
            root.names(&mut names);
            for name in names {
                let mut above = 10;
                for one in matching(&name) {
                    let inherited = match own[one.as_str()] {
                        -1 => above,
                        own => own,
                    };
                    above = *filled.entry(one).or_insert(inherited);
                }
            }
            matching(channel).last().map_or(10, |name| filled[name])
        }
    }

    proptest::proptest! {
        #[test]
        fn inheritance_is_the_originals(
            entries in proptest::collection::btree_map(
                "([ab*]\\.){0,3}[ab*>]",
                -1i64..9,
                0..9,
            ),
            channel in "([ab]\\.){0,3}[ab]",
        ) {
            let entries: Vec<(&str, i64)> =
                entries.iter().map(|(name, msgs)| (name.as_str(), *msgs)).collect();
            let expected = original::messages(&entries, &channel);
            proptest::prop_assert_eq!(of(&with(&entries))(&channel).messages as i64, expected);
        }
    }

    #[test]
    fn dead_letters_do_not_breed() {
        let mut options = StreamingOptions::default();
        assert_eq!((dead_letters(&options).0)("foo"), None);
        options.limits.max_redeliveries = Some(3);
        let own = ChannelLimitOptions {
            max_redeliveries: Some(1),
            dead_letter: Some("lost".into()),
            ..ChannelLimitOptions::default()
        };
        options.channels.insert("foo.*".into(), own.clone());
        let off = ChannelLimitOptions {
            max_redeliveries: Some(0),
            ..own
        };
        options.channels.insert("foo.off".into(), off);
        let rules = dead_letters(&options);
        let get = |name: &str| (rules.0)(name).map(|rule| (rule.max_redeliveries, rule.target));
        assert_eq!(get("foo"), Some((3, "dead.foo".into())));
        assert_eq!(get("foo.bar"), Some((1, "lost".into())));
        assert_eq!(get("foo.off"), None);
        assert_eq!(get("dead.foo"), None);
        assert_eq!(get("lost"), None);
    }

    #[test]
    fn sizes_are_shown_as_the_original_does() {
        assert_eq!(bytes(1_024_000_000), "976.56 MB");
        assert_eq!((bytes(60), bytes(0)), ("60 B".into(), "unlimited".into()));
        for (nanos, text) in [
            (0, "unlimited"),
            (500_000_000, "500ms"),
            (1_500_000_000, "1.5s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
            (86_400_000_000_000, "24h0m0s"),
            (3_661_000_000_010, "1h1m1.00000001s"),
        ] {
            assert_eq!(period(nanos), text);
        }
    }

    #[test]
    fn channels_are_listed_as_the_original_does() {
        let mut options = StreamingOptions::default();
        let own = |change: fn(&mut ChannelLimitOptions)| {
            let mut own = ChannelLimitOptions::default();
            change(&mut own);
            own
        };
        for (name, own) in [
            ("foo", own(|own| own.max_msgs = Some(5))),
            ("bar.*", own(|own| own.max_bytes = Some(1000))),
            ("bar.baz", own(|own| own.max_subscriptions = Some(3))),
        ] {
            options.channels.insert(name.into(), own);
        }
        let expected = [
            "bar.*",
            " |-> Bytes                  1000 B",
            " bar.baz",
            "  |-> Subscriptions              3",
            "foo",
            " |-> Messages                    5",
        ];
        assert_eq!(
            listed(&Resolved::new(&options)),
            (expected.map(Into::into).into(), 34)
        );
    }

    #[test]
    fn every_entry_is_listed_and_long_lines_make_the_table_wider() {
        let entries = [
            ("foo.>", 5),
            ("foo.*", 5),
            ("foo.*.a-name-that-takes-very-much-room", 7),
        ];
        let (lines, width) = listed(&Resolved::new(&with(&entries)));
        let expected = [
            "foo.>",
            " |-> Messages                     5",
            " foo.*",
            " foo.*.a-name-that-takes-very-much-room",
            "  |-> Messages                    7",
        ];
        assert_eq!((lines, width), (expected.map(Into::into).into(), 39));
        let (all, entries) = all(&with(&[(">", 5), ("foo.>", -1), ("foo.*", 0)]));
        let of_entries: Vec<(&str, u64)> = entries
            .iter()
            .map(|(name, limits)| (name.as_str(), limits.messages))
            .collect();
        assert_eq!(of_entries, [(">", 5), ("foo.>", 5), ("foo.*", 0)]);
        assert_eq!(all.messages, 10);
    }
}
