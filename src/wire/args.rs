//! Splitting of argument lines, and their numbers.

/// The widest line we split: `HMSG subject sid reply header-size total-size`.
pub const ARGUMENTS_MAX: usize = 5;

/// The arguments of a line, or how many there are when there are too many.
#[derive(Clone, Copy, Debug)]
pub struct Arguments<'a> {
    found: [&'a [u8]; ARGUMENTS_MAX],
    count: usize,
}

impl<'a> Arguments<'a> {
    /// PUB and the like part arguments by blanks and tabs alone: a CR inside is data.
    pub fn of_message(line: &'a [u8]) -> Self {
        Self::split(line, |b| b == b' ' || b == b'\t')
    }

    /// SUB and UNSUB part them by CR as well.
    pub fn of_subscription(line: &'a [u8]) -> Self {
        Self::split(line, |b| matches!(b, b' ' | b'\t' | b'\r' | b'\n'))
    }

    fn split(line: &'a [u8], is_blank: impl Fn(u8) -> bool) -> Self {
        let mut arguments = Self {
            found: [b""; ARGUMENTS_MAX],
            count: 0,
        };
        for argument in line.split(|b| is_blank(*b)).filter(|a| !a.is_empty()) {
            if let Some(place) = arguments.found.get_mut(arguments.count) {
                *place = argument;
            }
            arguments.count += 1;
        }
        arguments
    }

    /// The arguments, or an empty slice when there were more than any verb takes.
    pub fn as_slice(&self) -> &[&'a [u8]] {
        self.found.get(..self.count).unwrap_or_default()
    }
}

/// gnatsd's number: ASCII digits only, no sign; 64 bits wrap around silently (so that
/// 18446744073709551618 is 2, as observed), and what comes out negative is no number.
pub fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    let mut n: i64 = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        n = n.wrapping_mul(10).wrapping_add(i64::from(digit - b'0'));
    }
    u64::try_from(n).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (digits, expect) in [
            (&b"0"[..], Some(0)),
            (b"002", Some(2)),
            (b"1048576", Some(1048576)),
            (b"18446744073709551618", Some(2)),
            (b"9223372036854775808", None),
            (b"", None),
            (b"-1", None),
            (b"+1", None),
            (b"1x", None),
        ] {
            assert_eq!(number(digits), expect, "{digits:?}");
        }
    }

    #[test]
    fn arguments() {
        let split = Arguments::of_message(b"foo\t\t bar  2 ");
        assert_eq!(split.as_slice(), [&b"foo"[..], b"bar", b"2"]);
        assert_eq!(
            Arguments::of_subscription(b"fo\ro 1").as_slice(),
            [&b"fo"[..], b"o", b"1"]
        );
        assert_eq!(Arguments::of_message(b"fo\ro 1").as_slice().len(), 2);
        assert!(Arguments::of_message(b"1 2 3 4 5 6").as_slice().is_empty());
        assert!(Arguments::of_message(b"  ").as_slice().is_empty());
    }
}
