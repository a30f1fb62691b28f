//! Limits of channels and where their dead letters go, from the options; and the table of them in the log.

use crate::config::streaming::{CHANNEL_MARK, ChannelLimitOptions, StoreKind, StreamingOptions};
use crate::stan::engine::{DeadLetterRule, DeadLetters};
use crate::stan::store::{ChannelLimits, LimitsOf};
use crate::subject::token;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Of the table in the log.
const LINE_WIDTH: usize = 34;

/// What the options say of a channel: what they say of all channels, then every entry that matches its name, from the
/// widest to the narrowest; what an entry does not say it takes from the one before.
fn inherited(
    defaults: &ChannelLimitOptions,
    channels: &BTreeMap<String, ChannelLimitOptions>,
    name: &str,
) -> ChannelLimitOptions {
    let mut matching: Vec<(&String, &ChannelLimitOptions)> = channels
        .iter()
        .filter(|(pattern, _)| token::pattern_matches(pattern.as_bytes(), name.as_bytes()))
        .collect();
    matching.sort_by_key(|(pattern, _)| width(pattern));
    let mut limits = defaults.clone();
    for (_, own) in matching {
        limits.max_subscriptions = own.max_subscriptions.or(limits.max_subscriptions);
        limits.max_msgs = own.max_msgs.or(limits.max_msgs);
        limits.max_bytes = own.max_bytes.or(limits.max_bytes);
        limits.max_age = own.max_age.or(limits.max_age);
        limits.max_inactivity = own.max_inactivity.or(limits.max_inactivity);
        limits.max_redeliveries = own.max_redeliveries.or(limits.max_redeliveries);
        limits.dead_letter = own.dead_letter.clone().or(limits.dead_letter);
    }
    limits
}

/// Limits of a channel, by its name.
pub fn of(options: &StreamingOptions) -> LimitsOf {
    let (defaults, channels) = (options.limits.clone(), options.channels.clone());
    Box::new(move |name| {
        let limits = inherited(&defaults, &channels, name);
        // Negative is no limit, as 0 is.
        let count = |limit: Option<i64>| limit.unwrap_or(0).max(0);
        ChannelLimits {
            subscriptions: count(limits.max_subscriptions) as u64,
            messages: count(limits.max_msgs) as u64,
            bytes: count(limits.max_bytes) as u64,
            age: count(limits.max_age),
            inactivity: count(limits.max_inactivity),
        }
    })
}

/// Which channels have dead letters. A channel that takes dead letters of others has none of its own: they
/// would go round in circles, or from one channel to the next for ever.
pub fn dead_letters(options: &StreamingOptions) -> DeadLetters {
    let (defaults, channels) = (options.limits.clone(), options.channels.clone());
    let all = || std::iter::once(&options.limits).chain(options.channels.values());
    if !all().any(|limits| limits.max_redeliveries.is_some_and(|max| max > 0)) {
        return DeadLetters::default();
    }
    let targets: Vec<String> = all()
        .filter_map(|limits| limits.dead_letter.clone())
        .collect();
    DeadLetters(Arc::new(move |name| {
        let limits = inherited(&defaults, &channels, name);
        let max = limits.max_redeliveries.filter(|max| *max > 0)?;
        let template = limits.dead_letter?;
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

/// Sorts patterns from wide to narrow, token by token.
fn width(pattern: &str) -> Vec<u8> {
    let rank = |token: &str| match token {
        ">" => 0,
        "*" => 1,
        _ => 2,
    };
    pattern.split('.').map(rank).collect()
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
    let usual = shown(&default.limits);
    for ((name, value), (_, usual)) in shown(&options.limits).into_iter().zip(usual) {
        let same = value == usual;
        line(&format!("  {name:<13}: "), value, same);
    }
    if !options.channels.is_empty() {
        log::info!("STREAM: -------- List of Channels --------");
        for text in listed(options) {
            log::info!("STREAM: {text}");
        }
    }
    log::info!("STREAM: {}", "-".repeat(LINE_WIDTH));
}

/// Entries of single channels below those they inherit from, with what they have of their own.
fn listed(options: &StreamingOptions) -> Vec<String> {
    let mut lines = Vec::new();
    let mut names: Vec<&String> = options.channels.keys().collect();
    names.sort_by_key(|name| (width(name), *name));
    // The nearest wider entry is the one it is shown below.
    let parent = |name: &str| {
        let wider = |other: &&&String| {
            other.as_str() != name && token::pattern_matches(other.as_bytes(), name.as_bytes())
        };
        names.iter().rev().find(wider).copied()
    };
    let mut open: Vec<(&String, usize)> = Vec::new();
    let roots = names.iter().rev().filter(|name| parent(name).is_none());
    open.extend(roots.map(|name| (*name, 0)));
    while let Some((name, level)) = open.pop() {
        lines.push(format!("{}{name}", " ".repeat(level)));
        let of = |name: &str| shown(&inherited(&options.limits, &options.channels, name));
        let above = match parent(name) {
            Some(parent) => of(parent),
            None => shown(&options.limits),
        };
        for ((what, value), (_, above)) in of(name).into_iter().zip(above) {
            if value != above {
                let start = format!("{} |-> {what}", " ".repeat(level));
                let room = LINE_WIDTH.saturating_sub(start.len());
                lines.push(format!("{start}{value:>room$}"));
            }
        }
        let children = names
            .iter()
            .rev()
            .filter(|other| parent(other) == Some(name));
        open.extend(children.map(|child| (*child, level + 1)));
    }
    lines
}

/// Limits as they are shown.
fn shown(limits: &ChannelLimitOptions) -> Vec<(&'static str, String)> {
    let get = |limit: Option<i64>| limit.unwrap_or(0).max(0);
    let mut shown = vec![
        ("Subscriptions", count(get(limits.max_subscriptions))),
        ("Messages", count(get(limits.max_msgs))),
        ("Bytes", bytes(get(limits.max_bytes))),
        ("Age", period(get(limits.max_age))),
        ("Inactivity", period(get(limits.max_inactivity))),
    ];
    // Ours is shown where it is used.
    if get(limits.max_redeliveries) > 0 {
        shown.push(("Redeliveries", count(get(limits.max_redeliveries))));
    }
    shown
}

fn count(limit: i64) -> String {
    match limit {
        0 => "unlimited".to_owned(),
        limit => limit.to_string(),
    }
}

/// A duration as Go writes it.
fn period(nanos: i64) -> String {
    let nanos = match nanos {
        0 => return "unlimited".to_owned(),
        nanos => nanos.unsigned_abs(),
    };
    if nanos < 1_000_000_000 {
        return format!("{:?}", Duration::from_nanos(nanos));
    }
    let (minutes, rest) = (nanos / 60_000_000_000, nanos % 60_000_000_000);
    let seconds = format!("{:?}", Duration::from_nanos(rest + 1_000_000_000));
    // Printed with a second more, so that it is never in smaller units.
    let (whole, fraction) = seconds.trim_end_matches('s').split_once('.').map_or(
        (seconds.trim_end_matches('s'), String::new()),
        |(whole, rest)| (whole, format!(".{rest}")),
    );
    let whole: u64 = whole.parse().unwrap_or(1);
    let seconds = format!("{}{fraction}s", whole - 1);
    match (minutes / 60, minutes % 60) {
        (0, 0) => seconds,
        (0, minutes) => format!("{minutes}m{seconds}"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
    }
}

fn bytes(limit: i64) -> String {
    let (mut value, mut unit) = (limit as f64, 0);
    while value >= 1024.0 && unit < 4 {
        value /= 1024.0;
        unit += 1;
    }
    match (limit, unit) {
        (0, _) => "unlimited".to_owned(),
        (limit, 0) => format!("{limit} B"),
        _ => format!("{value:.2} {}", ["B", "KB", "MB", "GB", "TB"][unit]),
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
        let mut lines = listed(&options);
        // Which of the two that stand side by side comes first is of no account.
        if lines[0] == "foo" {
            lines.rotate_left(2);
        }
        assert_eq!(lines, expected);
    }
}
