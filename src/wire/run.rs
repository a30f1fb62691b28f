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
/// Subjects told of at once. Looked up together, what each waits for from memory comes at the same time.
pub const AHEAD_MAX: usize = 8;

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

    /// The places of the tails, counted from where the region begins.
    pub fn tails_in_region(&self) -> impl Iterator<Item = Tail> + use<'a> {
        let from = self.tails.first().map_or(0, |first| first.at);
        self.tails.iter().map(move |tail| Tail {
            at: tail.at - from,
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
    // Up to there the sink knows the subjects.
    let mut told = at;
    while let Some((message, end)) = fast::message::<ROUTED>(input, at, bytes_max, headers) {
        // The verb, the subject and the sid, with the blanks behind them.
        let start_bytes = end - message.tail.len - at;
        let small = message.header_bytes.is_none() && message.tail.len < SHARED_BYTES_MIN;
        if small && same_bytes(input, at, end, start_bytes) {
            at = take_run::<S, ROUTED>(input, at, &message, end, bytes_max, sink)?;
        } else {
            if end > told && sink.looks_ahead() {
                told = look_ahead::<S, ROUTED>(input, at, bytes_max, sink);
            }
            sink.message(&message, None)?;
            at = end;
        }
    }
    Ok(at)
}

/// Tells of the subjects of the next few messages; returns where the last of them ends.
#[inline(never)]
fn look_ahead<S: Sink, const ROUTED: bool>(
    input: &[u8],
    mut at: usize,
    bytes_max: u64,
    sink: &S,
) -> usize {
    let mut subjects = [Padded::new(input, 0); AHEAD_MAX];
    let mut count = 0;
    while count < AHEAD_MAX
        && let Some((message, end)) = fast::message::<ROUTED>(input, at, bytes_max, true)
    {
        subjects[count] = message.subject;
        count += 1;
        at = end;
    }
    sink.look_ahead(&subjects[..count]);
    at
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::parser::{Kind, Parser};
    use std::cell::RefCell;

    /// Wants to know subjects before their messages come, and is told.
    #[derive(Default)]
    struct Foreseeing {
        told: RefCell<Vec<String>>,
        /// Subjects of messages that came alone, with how many it knew by then.
        came: Vec<(String, usize)>,
        in_runs: usize,
    }

    impl Sink for Foreseeing {
        fn looks_ahead(&self) -> bool {
            true
        }
        fn look_ahead(&self, subjects: &[Padded<'_>]) {
            assert!((1..=AHEAD_MAX).contains(&subjects.len()));
            let text = |subject: &Padded<'_>| String::from_utf8(subject.bytes().into()).unwrap();
            self.told.borrow_mut().extend(subjects.iter().map(text));
        }
        fn connect_only(&self) -> bool {
            false
        }
        fn headers(&self) -> bool {
            true
        }
        fn payload_bytes_max(&self) -> u64 {
            1 << 20
        }
        fn control_line_bytes_max(&self) -> usize {
            1024
        }
        fn connect(&mut self, _: &[u8]) -> Result<(), Stop> {
            Ok(())
        }
        fn info(&mut self, _: &[u8]) -> Result<(), Stop> {
            Ok(())
        }
        fn message(&mut self, message: &Message<'_>, _: Option<bytes::Bytes>) -> Result<(), Stop> {
            let subject = String::from_utf8(message.subject.bytes().into()).unwrap();
            self.came.push((subject, self.told.borrow().len()));
            Ok(())
        }
        fn run(&mut self, run: &Run<'_>) -> Result<(), Stop> {
            self.in_runs += run.count();
            Ok(())
        }
        fn subscribe(&mut self, _: &[u8], _: Option<&[u8]>, _: &[u8]) -> Result<(), Stop> {
            Ok(())
        }
        fn unsubscribe(&mut self, _: &[u8], _: Option<u64>) -> Result<(), Stop> {
            Ok(())
        }
        fn ping(&mut self) -> Result<(), Stop> {
            Ok(())
        }
        fn pong(&mut self) -> Result<(), Stop> {
            Ok(())
        }
        fn error(&mut self, _: &[u8]) -> Result<(), Stop> {
            Ok(())
        }
    }

    fn after(stream: &str) -> Foreseeing {
        let mut sink = Foreseeing::default();
        let mut parser = Parser::new(Kind::Client);
        parser.parse(stream.as_bytes(), &mut sink).unwrap();
        sink
    }

    #[test]
    fn each_subject_is_told_once_and_before_its_message() {
        let stream: String = (0..50)
            .map(|at| match at % 3 {
                0 => format!("HPUB s.{at} 12 14\r\nNATS/1.0\r\n\r\nhi\r\n"),
                1 => format!("PUB s.{at} inbox.{at} 2\r\nhi\r\n"),
                _ => format!("PUB s.{at} 0\r\n\r\n"),
            })
            .collect();
        // What follows is for the fast path to look into.
        let sink = after(&format!("{stream}{}", "PING\r\n".repeat(20)));
        let all: Vec<String> = (0..50).map(|at| format!("s.{at}")).collect();
        assert_eq!(*sink.told.borrow(), all);
        assert_eq!(sink.came.len(), 50);
        for (at, (subject, told)) in sink.came.iter().enumerate() {
            assert_eq!(*subject, all[at]);
            assert!(at < *told && *told <= at + AHEAD_MAX, "{at}: {told}");
        }
    }

    #[test]
    fn what_comes_in_runs_needs_no_telling() {
        let stream = "PUB s.1 2\r\nhi\r\n".repeat(100) + &"PING\r\n".repeat(20);
        let sink = after(&stream);
        assert_eq!((sink.in_runs, sink.told.borrow().len()), (100, 0));
        // Single ones between runs.
        let mixed = "PUB a 1\r\nx\r\nPUB b 1\r\nx\r\nPUB b 1\r\ny\r\nPUB c 1\r\nx\r\n".repeat(30);
        let sink = after(&(mixed + &"PING\r\n".repeat(20)));
        assert_eq!((sink.in_runs, sink.came.len()), (60, 60));
        assert!(sink.told.borrow().len() <= 120);
        for (subject, told) in &sink.came {
            assert!(sink.told.borrow()[..*told].contains(subject));
        }
    }
}
