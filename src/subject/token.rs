//! Rules of single subjects and patterns, as in gnatsd 1.1.0.
//!
//! Tokens are separated by dots. `*` stands for one token and `>` for one or more at the end, each
//! only as a whole token: `fo*` and `foo.>>` are plain names. A published subject is always taken
//! as it stands, even where it holds `*` or empty tokens.

pub fn tokens(subject: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    subject.split(|byte| *byte == b'.')
}

/// May be subscribed to: no empty token, and nothing behind a `>`.
pub fn is_valid_subscription(subject: &[u8]) -> bool {
    let mut ended = false;
    for token in tokens(subject) {
        if token.is_empty() || ended {
            return false;
        }
        ended = token == b">";
    }
    true
}

/// May be published to by a pedantic client: no empty token and no wildcard.
pub fn is_valid_literal(subject: &[u8]) -> bool {
    tokens(subject).all(|token| !matches!(token, b"" | b"*" | b">"))
}

pub fn has_wildcard(subject: &[u8]) -> bool {
    tokens(subject).any(|token| matches!(token, b"*" | b">"))
}

/// Whether a published subject matches a pattern.
pub fn pattern_matches(pattern: &[u8], subject: &[u8]) -> bool {
    let mut rest = tokens(subject);
    let mut patterns = tokens(pattern).peekable();
    while let Some(token) = patterns.next() {
        let Some(given) = rest.next() else {
            return false;
        };
        match token {
            b">" if patterns.peek().is_none() => return true,
            b"*" => {}
            _ if token != given => return false,
            _ => {}
        }
    }
    rest.next().is_none()
}

/// Whether everything `pattern` matches is matched by `other` as well.
pub fn is_subset(pattern: &[u8], other: &[u8]) -> bool {
    let mut left = tokens(pattern);
    for token in tokens(other) {
        match (left.next(), token) {
            (None, _) => return false,
            (Some(_), b">") => return true,
            (Some(b">"), _) => return false,
            (Some(_), b"*") => {}
            (Some(b"*"), _) => return false,
            (Some(mine), theirs) if mine != theirs => return false,
            _ => {}
        }
    }
    left.next().is_none()
}

/// Whether some subject is matched by both.
pub fn overlaps(a: &[u8], b: &[u8]) -> bool {
    let (mut left, mut right) = (tokens(a), tokens(b));
    loop {
        match (left.next(), right.next()) {
            (None, None) => return true,
            (None, _) | (_, None) => return false,
            (Some(b">"), _) | (_, Some(b">")) => return true,
            (Some(b"*"), _) | (_, Some(b"*")) => {}
            (Some(mine), Some(theirs)) if mine != theirs => return false,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validity() {
        for good in [
            "foo", "foo.bar", "foo.*", "*", ">", "foo.>", "fo*", "*foo", "foo.**", "foo.>>", "fo>",
        ] {
            assert!(is_valid_subscription(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            ".",
            "foo.",
            ".foo",
            "foo..bar",
            "foo.>.bar",
            ">.a",
            ">.>",
        ] {
            assert!(!is_valid_subscription(bad.as_bytes()), "{bad}");
        }
        assert!(
            is_valid_literal(b"foo.b*r")
                && !is_valid_literal(b"foo.*")
                && !is_valid_literal(b"foo.")
        );
        assert!(has_wildcard(b"a.*.b") && has_wildcard(b"a.>") && !has_wildcard(b"a*.>b"));
    }

    #[test]
    fn matching() {
        for (pattern, subject, expect) in [
            ("foo", "foo", true),
            ("foo", "Foo", false),
            ("foo.*", "foo.bar", true),
            ("foo.*", "foo", false),
            ("foo.*", "foo.a.b", false),
            ("foo.>", "foo.a.b", true),
            ("foo.>", "foo", false),
            (">", "foo", true),
            ("*.*", ".foo", true),
            (">", ".foo", true),
            ("foo.*", "foo.", true),
            ("foo.*.a", "foo..a", true),
            ("foo.*", "foo.*", true),
            ("foo.bar", "foo.*", false),
            ("fo*", "foo", false),
            ("fo*", "fo*", true),
        ] {
            assert_eq!(
                pattern_matches(pattern.as_bytes(), subject.as_bytes()),
                expect,
                "{pattern} {subject}"
            );
        }
    }

    #[test]
    fn sets_of_subjects() {
        for (pattern, other, subset, overlap) in [
            ("a.b", "a.*", true, true),
            ("a.*", "a.>", true, true),
            ("a.*", "a.*", true, true),
            ("a.>", "a.*", false, true),
            ("a.*", "a.b", false, true),
            (">", "a.>", false, true),
            ("a.*.c", "a.b.*", false, true),
            ("a", "b", false, false),
            ("a.b", "a", false, false),
            ("a", "a.>", false, false),
            ("dflt.>", "dflt.*", false, true),
        ] {
            let (pattern, other) = (pattern.as_bytes(), other.as_bytes());
            assert_eq!(is_subset(pattern, other), subset, "{pattern:?} {other:?}");
            assert_eq!(overlaps(pattern, other), overlap, "{pattern:?} {other:?}");
            assert_eq!(overlaps(other, pattern), overlap, "{other:?} {pattern:?}");
        }
    }

    /// All of up to so many tokens of these.
    fn all(tokens: &[&str], levels: usize) -> Vec<String> {
        let mut of_length: Vec<String> = tokens.iter().map(ToString::to_string).collect();
        let mut all = of_length.clone();
        for _ in 1..levels {
            let longer = of_length.iter().flat_map(|front| {
                let with = move |token: &&str| format!("{front}.{token}");
                tokens.iter().map(with)
            });
            of_length = longer.collect();
            all.extend_from_slice(&of_length);
        }
        all
    }

    #[test]
    fn sets_are_what_their_subjects_say() {
        let patterns = all(&["a", "b", "*", ">"], 3);
        let patterns: Vec<&[u8]> = patterns
            .iter()
            .map(String::as_bytes)
            .filter(|pattern| is_valid_subscription(pattern))
            .collect();
        // One token that is in no pattern, and one level more than patterns have, stand for all others.
        let subjects = all(&["a", "b", "c"], 4);
        let matched = |pattern: &&[u8]| -> Vec<bool> {
            let subjects = subjects.iter();
            subjects
                .map(|subject| pattern_matches(pattern, subject.as_bytes()))
                .collect()
        };
        let matched: Vec<Vec<bool>> = patterns.iter().map(matched).collect();
        for (pattern, mine) in patterns.iter().zip(&matched) {
            for (other, theirs) in patterns.iter().zip(&matched) {
                let names = format!("{} {}", pattern.escape_ascii(), other.escape_ascii());
                let mut both = mine.iter().zip(theirs);
                let overlap = both.clone().any(|(mine, theirs)| *mine && *theirs);
                let subset = both.all(|(mine, theirs)| !mine || *theirs);
                assert_eq!(overlaps(pattern, other), overlap, "{names}");
                assert_eq!(is_subset(pattern, other), subset, "{names}");
            }
        }
    }
}
