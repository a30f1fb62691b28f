//! Runs: messages of one connection, one behind the other, that go to the same subject.
//!
//! Publishers send many small messages to one subject in a row, and a read brings hundreds of
//! them. Taken together they are matched once, and each receiver is looked up once for all of them. What
//! stands whole in the input and has no headers becomes a run; everything else is handed on by itself.
//!
//! ```text
//!   PUB a.b 5\r\nhello\r\nPUB a.b 5\r\nworld\r\nPUB a.b inbox 2\r\nhi\r\n
//!           '--- tail --'         '--- tail --'         '--- tail ----'
//! ```
//!
//! Most messages of a run have the very line of the one before: it is compared and not read again.

use super::fast;
use super::parser::{Message, Padded, SHARED_BYTES_MIN, Sink, Stop};
use crate::util::same_start;

/// What one receiver gets in one piece, and so the overshoot of its bounds: so many messages, or, with
/// the last of them, up to `RUN_BYTES_MAX + SHARED_BYTES_MIN`.
pub const RUN_MESSAGES_MAX: usize = 64;
const RUN_BYTES_MAX: usize = 16 << 10;

/// One message of a run; places are those of the run's input.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tail {
    at: u32,
    len: u32,
    reply_bytes: u32,
    body_bytes: u32,
}

impl Tail {
    pub fn new(at: usize, message: &Message<'_>) -> Self {
        Self {
            at: at as u32,
            len: message.tail.len as u32,
            reply_bytes: message.reply_bytes as u32,
            body_bytes: message.body_bytes as u32,
        }
    }
}

/// Two messages or more, without headers, that differ in nothing but their tails.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    pub subject: Padded<'a>,
    /// From routes only: the subscription id they are addressed to.
    pub sid: &'a [u8],
    input: &'a [u8],
    tails: &'a [Tail],
    /// Sums over all messages.
    pub tail_bytes: usize,
    pub body_bytes: usize,
}

impl<'a> Run<'a> {
    /// A run whose tails lie in `input`.
    pub fn new(subject: Padded<'a>, sid: &'a [u8], input: &'a [u8], tails: &'a [Tail]) -> Self {
        let sum = |of: fn(&Tail) -> u32| tails.iter().map(|tail| of(tail) as usize).sum();
        Self {
            subject,
            sid,
            input,
            tails,
            tail_bytes: sum(|tail| tail.len),
            body_bytes: sum(|tail| tail.body_bytes),
        }
    }

    pub fn count(&self) -> usize {
        self.tails.len()
    }

    /// The part of the input in which the tails lie, with the lines between them.
    pub fn region(&self) -> &'a [u8] {
        match self.tails {
            [] => &[],
            [first, .., last] => &self.input[first.at as usize..(last.at + last.len) as usize],
            [only] => &self.input[only.at as usize..][..only.len as usize],
        }
    }

    /// The places of the tails once the region stands at `at`.
    pub fn moved(&self, at: usize) -> impl Iterator<Item = Tail> + use<'a> {
        let from = self.tails.first().map_or(0, |first| first.at);
        self.tails.iter().map(move |tail| Tail {
            at: tail.at - from + at as u32,
            ..*tail
        })
    }

    /// Whether any of them asks for an answer.
    pub fn has_replies(&self) -> bool {
        self.tails.iter().any(|tail| tail.reply_bytes > 0)
    }

    /// The part of it with the messages chosen by their place in the run.
    #[inline(always)]
    pub fn select<'b>(
        &self,
        chosen: impl Fn(usize) -> bool,
        tails: &'b mut [Tail; RUN_MESSAGES_MAX],
    ) -> Run<'b>
    where
        'a: 'b,
    {
        let mut count = 0;
        for (_, tail) in self.tails.iter().enumerate().filter(|(at, _)| chosen(*at)) {
            tails[count] = *tail;
            count += 1;
        }
        Run::new(self.subject, self.sid, self.input, &tails[..count])
    }

    #[inline(always)]
    pub fn tails(&self) -> impl Iterator<Item = Padded<'a>> + use<'a> {
        let input = self.input;
        let tails = self.tails.iter();
        tails.map(move |tail| Padded::new(&input[tail.at as usize..], tail.len as usize))
    }

    pub fn messages(&self) -> impl Iterator<Item = Message<'a>> + use<'a> {
        let Self {
            subject,
            sid,
            input,
            tails,
            ..
        } = *self;
        tails.iter().map(move |tail| Message {
            subject,
            tail: Padded::new(&input[tail.at as usize..], tail.len as usize),
            reply_bytes: tail.reply_bytes as usize,
            header_bytes: None,
            body_bytes: tail.body_bytes as usize,
            sid,
        })
    }
}

/// Hands on the messages that stand whole and in their usual form at `at`; returns where they end.
#[inline(always)]
pub fn skip_messages<S: Sink, const ROUTED: bool>(
    input: &[u8],
    mut at: usize,
    sink: &mut S,
) -> Result<usize, Stop> {
    let (bytes_max, headers) = (sink.payload_bytes_max(), sink.headers());
    while let Some((message, end)) = fast::message::<ROUTED>(input, at, bytes_max, headers) {
        // The verb, the subject and the sid, with the blanks behind them.
        let start_bytes = end - message.tail.len - at;
        let small = message.header_bytes.is_none() && message.tail.len < SHARED_BYTES_MIN;
        if small && same_bytes(input, at, end, start_bytes) {
            at = take_run::<S, ROUTED>(input, at, &message, end, bytes_max, sink)?;
        } else {
            sink.message(&message, None)?;
            at = end;
        }
    }
    Ok(at)
}

/// The first message of a run lies from `line` to `end`; hands on all of it and returns where it ends.
fn take_run<S: Sink, const ROUTED: bool>(
    input: &[u8],
    line: usize,
    first: &Message<'_>,
    end: usize,
    bytes_max: u64,
    sink: &mut S,
) -> Result<usize, Stop> {
    let start_bytes = end - first.tail.len - line;
    let line_bytes = end - 2 - first.body_bytes - line;
    let mut tails = [Tail::default(); RUN_MESSAGES_MAX];
    tails[0] = Tail::new(line + start_bytes, first);
    let (mut count, mut bytes, mut at) = (1, first.tail.len, end);
    while count < RUN_MESSAGES_MAX && bytes < RUN_BYTES_MAX {
        let repeated = at + (end - line);
        if input.get(repeated - 1) == Some(&b'\n') && same_bytes(input, line, at, line_bytes) {
            tails[count] = Tail {
                at: (at + start_bytes) as u32,
                ..tails[0]
            };
            bytes += first.tail.len;
            at = repeated;
        } else if same_bytes(input, line, at, start_bytes)
            && let Some((other, end)) = fast::message::<ROUTED>(input, at, bytes_max, false)
            && other.tail.len < SHARED_BYTES_MIN
        {
            tails[count] = Tail::new(at + start_bytes, &other);
            bytes += other.tail.len;
            at = end;
        } else {
            break;
        }
        count += 1;
    }
    match count {
        1 => sink.message(first, None)?,
        _ => sink.run(&Run::new(first.subject, first.sid, input, &tails[..count]))?,
    }
    Ok(at)
}

/// Whether the `bytes` at `one` stand at `other` again.
#[inline(always)]
fn same_bytes(input: &[u8], one: usize, other: usize, bytes: usize) -> bool {
    let chunk = |at: usize| input.get(at..).and_then(<[u8]>::first_chunk);
    match (chunk(one), chunk(other)) {
        (Some(one), Some(other)) if bytes <= 32 => same_start(one, other, bytes),
        _ => input.get(other..other + bytes) == Some(&input[one..one + bytes]),
    }
}
