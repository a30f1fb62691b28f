//! The fast path beside the state machine: whole messages in their usual form, `PUB` and `HPUB` of
//! clients, `MSG` and `HMSG` of routes.
//!
//! Usual means: one blank between arguments, CRLF at the end of the line, and the message complete
//! in the input. Anything else is left to the machine, which accepts the same language and more;
//! `parser::fuzz` holds the two against each other.
//!
//! Blanks are found 32 bytes at a time: one compare marks every byte up to 0x20, and a control
//! byte other than the expected ones sends us back to the machine.

use super::parser::{Message, Padded};
use crate::util::blanks;

/// Walks from blank to blank.
struct Blanks<'a> {
    input: &'a [u8],
    /// Where the current 32 bytes begin, and the marks in them not yet visited.
    base: usize,
    marks: u32,
}

impl<'a> Blanks<'a> {
    #[inline(always)]
    fn from(input: &'a [u8], at: usize) -> Option<Self> {
        let marks = blanks(input.get(at..)?.first_chunk()?);
        Some(Self {
            input,
            base: at,
            marks,
        })
    }

    #[inline(always)]
    fn next(&mut self) -> Option<usize> {
        while self.marks == 0 {
            self.base += 32;
            self.marks = blanks(self.input.get(self.base..)?.first_chunk()?);
        }
        let at = self.base + self.marks.trailing_zeros() as usize;
        self.marks &= self.marks - 1;
        Some(at)
    }
}

/// Lines longer than this are left to the machine and its limits.
const LINE_BYTES_MAX: usize = 512;

/// The whole message at `at`, and where it ends in the input.
#[inline(always)]
pub fn message<const ROUTED: bool>(
    input: &[u8],
    at: usize,
    bytes_max: u64,
    headers: bool,
) -> Option<(Message<'_>, usize)> {
    let (plain, with_headers) = match ROUTED {
        true => (b"MSG ", b"HMSG"),
        false => (b"PUB ", b"HPUB"),
    };
    let word = u32::from_le_bytes(*input.get(at..)?.first_chunk()?);
    // Clearing bit 5 folds the case of letters and of nothing else.
    if word & 0xFFDF_DFDF == u32::from_le_bytes(*plain) {
        arguments::<false, ROUTED>(input, at + 4, bytes_max)
    } else if word & 0xDFDF_DFDF == u32::from_le_bytes(*with_headers)
        && headers
        && input.get(at + 4) == Some(&b' ')
    {
        arguments::<true, ROUTED>(input, at + 5, bytes_max)
    } else {
        None
    }
}

#[inline(always)]
fn arguments<const HEADERS: bool, const ROUTED: bool>(
    input: &[u8],
    subject_at: usize,
    bytes_max: u64,
) -> Option<(Message<'_>, usize)> {
    let mut blanks = Blanks::from(input, subject_at)?;
    let subject_end = blanks.next()?;
    let mut sid: &[u8] = b"";
    let mut tail_at = subject_end + 1;
    if ROUTED {
        let sid_end = blanks.next()?;
        sid = &input[tail_at..sid_end];
        if sid.is_empty() || input[sid_end] != b' ' {
            return None;
        }
        tail_at = sid_end + 1;
    }
    let first_end = blanks.next()?;
    // One or two numbers end the line; what stands before them is the reply.
    let (mut number_at, mut number_end, mut reply_bytes) = (tail_at, first_end, 0);
    let mut header_bytes = None;
    if HEADERS {
        if input[first_end] != b' ' {
            return None;
        }
        let second_end = blanks.next()?;
        let mut header_at = tail_at;
        (number_at, number_end) = (first_end + 1, second_end);
        if input[second_end] == b' ' {
            let third_end = blanks.next()?;
            reply_bytes = first_end - tail_at;
            if reply_bytes == 0 {
                return None; // two blanks in a row
            }
            header_at = first_end + 1;
            (number_at, number_end) = (second_end + 1, third_end);
        }
        header_bytes = Some(digits(&input[header_at..number_at - 1])?);
    } else if input[first_end] == b' ' {
        reply_bytes = first_end - tail_at;
        (number_at, number_end) = (first_end + 1, blanks.next()?);
    }
    if input[subject_end] != b' '
        || input[number_end] != b'\r'
        || *input.get(number_end + 1)? != b'\n'
        || subject_end == subject_at
        || (reply_bytes == 0 && tail_at != number_at && !HEADERS)
        || number_end - subject_at > LINE_BYTES_MAX
    {
        return None;
    }
    let body_bytes = digits(&input[number_at..number_end])?;
    if u64::from(body_bytes) > bytes_max || header_bytes.is_some_and(|h| h > body_bytes) {
        return None;
    }
    let end = number_end + 2 + body_bytes as usize + 2;
    if *input.get(end - 1)? != b'\n' {
        return None;
    }
    let message = Message {
        subject: Padded::new(&input[subject_at..], subject_end - subject_at),
        tail: Padded::new(&input[tail_at..], end - tail_at),
        reply_bytes,
        header_bytes,
        body_bytes: body_bytes as usize,
        sid,
    };
    Some((message, end))
}

/// Up to nine digits, so that nothing wraps; longer ones are the machine's.
#[inline(always)]
fn digits(text: &[u8]) -> Option<u32> {
    if text.is_empty() || text.len() > 9 {
        return None;
    }
    let mut n = 0;
    for byte in text {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        n = n * 10 + u32::from(digit);
    }
    Some(n)
}
