//! A fixed set of patterns that is asked for every message.

use super::token::{has_wildcard, pattern_matches};

/// Whether one of some patterns matches a subject, in a time that hardly grows with their number as long as they
/// are names and `some.prefix.>`, as rules of permissions mostly are: both are found by binary search. Other
/// patterns are tried in turn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PatternSet {
    /// Sorted.
    names: Vec<Box<[u8]>>,
    /// What stands before the `>` of patterns without other wildcards. Sorted, and none begins with another one.
    prefixes: Vec<Box<[u8]>>,
    others: Vec<Box<[u8]>>,
}

impl PatternSet {
    pub fn matches(&self, subject: &[u8]) -> bool {
        self.has_prefix_of(subject)
            || self.has_name(subject)
            || self
                .others
                .iter()
                .any(|other| pattern_matches(other, subject))
    }

    /// What begins with a prefix stands directly behind it in order, and no other prefix does: only the last one that
    /// is not behind the subject can be its beginning.
    fn has_prefix_of(&self, subject: &[u8]) -> bool {
        let behind = self.prefixes.partition_point(|prefix| **prefix <= *subject);
        behind > 0 && subject.starts_with(&self.prefixes[behind - 1])
    }

    fn has_name(&self, subject: &[u8]) -> bool {
        self.names
            .binary_search_by(|name| (**name).cmp(subject))
            .is_ok()
    }
}

impl<'a> FromIterator<&'a [u8]> for PatternSet {
    fn from_iter<T: IntoIterator<Item = &'a [u8]>>(patterns: T) -> Self {
        let mut set = Self::default();
        for pattern in patterns {
            match prefix_of(pattern) {
                Some(prefix) => set.prefixes.push(prefix.into()),
                None if has_wildcard(pattern) => set.others.push(pattern.into()),
                None => set.names.push(pattern.into()),
            }
        }
        set.names.sort_unstable();
        set.names.dedup();
        set.prefixes.sort_unstable();
        set.prefixes.dedup_by(|later, kept| later.starts_with(kept));
        set
    }
}

/// Of `some.prefix.>` all but the `>`; of `>` nothing, with which every subject begins.
fn prefix_of(pattern: &[u8]) -> Option<&[u8]> {
    let prefix = pattern.strip_suffix(b">")?;
    match prefix.strip_suffix(b".") {
        None => prefix.is_empty().then_some(prefix),
        Some(names) => (!has_wildcard(names)).then_some(prefix),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn subject() -> impl Strategy<Value = String> {
        let token = prop_oneof![
            4 => "[ab]{0,2}",
            2 => Just("*".to_string()),
            2 => Just(">".to_string()),
            1 => Just(">>".to_string()),
        ];
        proptest::collection::vec(token, 1..4).prop_map(|tokens| tokens.join("."))
    }

    proptest! {
        #[test]
        fn matches_what_one_of_its_patterns_matches(
            patterns in proptest::collection::vec(subject(), 0..12),
            subjects in proptest::collection::vec(subject(), 1..12),
        ) {
            let set: PatternSet = patterns.iter().map(|pattern| pattern.as_bytes()).collect();
            for subject in subjects.iter().chain(&patterns) {
                let subject = subject.as_bytes();
                let expect = patterns.iter().any(|pattern| pattern_matches(pattern.as_bytes(), subject));
                prop_assert_eq!(set.matches(subject), expect, "{}", String::from_utf8_lossy(subject));
            }
        }
    }

    #[test]
    fn names_and_prefixes_are_looked_up() {
        let patterns = ["a", "b.>", "b.c.>", "d.*", "a", "e.*.>", "f>", ">.g"];
        let set: PatternSet = patterns.iter().map(|pattern| pattern.as_bytes()).collect();
        let text = |kept: &[Box<[u8]>]| -> Vec<String> {
            kept.iter()
                .map(|one| String::from_utf8_lossy(one).into())
                .collect()
        };
        assert_eq!(text(&set.names), ["a", "f>"]);
        assert_eq!(text(&set.prefixes), ["b."]);
        assert_eq!(text(&set.others), ["d.*", "e.*.>", ">.g"]);
        let all: PatternSet = [&b">"[..]].into_iter().collect();
        assert!(all.matches(b"x.y") && all.matches(b"") && !PatternSet::default().matches(b"x"));
    }
}
