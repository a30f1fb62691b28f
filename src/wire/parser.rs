//! The byte-at-a-time state machine of the client and route protocols.
//!
//! It resumes at any byte: what a read leaves unfinished waits in `held`, everything else is handed
//! to the `Sink` as slices of the input, uncopied. A message that arrives whole never touches
//! `held`; one that does not is assembled there in the form in which it will leave (see `Message`).
//!
//! ```text
//!            letters of a verb            blanks            first other byte        LF
//!   Start ----------------------> Verb end ------> Space(verb) ----------> Argument(verb) ---.
//!     ^                              | PING PONG +OK: anything up to LF                        |
//!     |<-----------------------------'                                                        |
//!     |<------------------- SUB UNSUB CONNECT INFO -ERR: line handed to the sink ---------------|
//!     '---- Payload: size + 2 bytes, the last one LF <---- PUB HPUB MSG HMSG -----------------'
//! ```
//!
//! The language is gnatsd 1.1.0's (server/parser.go), with its tolerance: verbs in any case, blanks
//! and tabs, bare LF, junk after PING, PONG and +OK, and the first byte of a payload's terminator
//! unchecked. HPUB and HMSG are nats-server 2.2's.

use super::args::{Arguments, number};
use super::errors;
use super::run::{Run, skip_messages};
use bytes::Bytes;
use memchr::memchr;

/// Messages from this size on (in their outgoing form) are shared by reference count instead of
/// being copied once per receiver.
pub const SHARED_BYTES_MIN: usize = 16 << 10;

/// Clients of later servers send CONNECT lines longer than gnatsd's limit of 1024 bytes (names,
/// signatures), so a CONNECT may always be this long.
const CONNECT_BYTES_MAX: usize = 4096;
/// gnatsd reads so much of a new connection at once, in which it checks no length.
pub(super) const FIRST_READ_BYTES: usize = 512;

/// Sizes of messages are kept in 32 bits: a body may not be larger than this, whatever the limit is.
/// What is left is for the line in front of it.
pub const BODY_BYTES_MAX: u64 = u32::MAX as u64 - (256 << 20);

/// Bytes of input shown in the log when they are no protocol.
const SNIPPET_BYTES_MAX: usize = 32;

/// A slice with its surroundings: `over` may be read past `len`, which lets short copies be made
/// in fixed sizes.
#[derive(Clone, Copy, Debug)]
pub struct Padded<'a> {
    pub over: &'a [u8],
    pub len: usize,
}

impl<'a> Padded<'a> {
    #[inline(always)]
    pub fn new(over: &'a [u8], len: usize) -> Self {
        debug_assert!(len <= over.len());
        Self { over, len }
    }

    pub fn exact(bytes: &'a [u8]) -> Self {
        Self {
            over: bytes,
            len: bytes.len(),
        }
    }

    #[inline(always)]
    pub fn bytes(&self) -> &'a [u8] {
        &self.over[..self.len]
    }
}

/// A published (or routed) message, in the form in which it leaves again.
///
/// `tail` is everything behind `MSG subject sid `: `[reply ]size CRLF payload CRLF`, or with
/// headers `[reply ]header-size total-size CRLF headers payload CRLF`. The digits are the
/// publisher's own, as gnatsd passes them on.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    pub subject: Padded<'a>,
    pub tail: Padded<'a>,
    /// Bytes of the reply subject at the start of `tail`; 0 means there is none.
    pub reply_bytes: usize,
    /// Bytes of the header block at the start of the body, for HPUB and HMSG.
    pub header_bytes: Option<u32>,
    /// Headers and payload, without the terminator.
    pub body_bytes: usize,
    /// From routes only: the subscription id the message is addressed to.
    pub sid: &'a [u8],
}

impl<'a> Message<'a> {
    pub fn reply(&self) -> Option<&'a [u8]> {
        (self.reply_bytes > 0).then(|| &self.tail.over[..self.reply_bytes])
    }

    /// Headers and payload with the two bytes of the terminator.
    pub fn body(&self) -> &'a [u8] {
        let tail = self.tail.bytes();
        &tail[tail.len() - self.body_bytes - 2..]
    }
}

/// The sink wants no more of this input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop;

/// Receiver of what the parser finds, and keeper of the settings it asks for while it goes: any
/// call may change them for the bytes behind.
pub trait Sink {
    /// While true, a verb that does not begin with C is a violation (authorization is pending).
    fn connect_only(&self) -> bool;
    /// Whether HPUB (from clients) and HMSG (from routes) are spoken here.
    fn headers(&self) -> bool;
    /// Largest body; `u64::MAX` means no limit but `BODY_BYTES_MAX`.
    fn payload_bytes_max(&self) -> u64;
    /// Largest unfinished argument line.
    fn control_line_bytes_max(&self) -> usize;

    fn connect(&mut self, json: &[u8]) -> Result<(), Stop>;
    fn info(&mut self, json: &[u8]) -> Result<(), Stop>;
    /// `owned` is the tail once more, shared, when the message had to be assembled anyway.
    fn message(&mut self, message: &Message<'_>, owned: Option<Bytes>) -> Result<(), Stop>;
    /// Several messages at once; a sink that does better than one by one says how.
    #[inline]
    fn run(&mut self, run: &Run<'_>) -> Result<(), Stop> {
        run.messages()
            .try_for_each(|message| self.message(&message, None))
    }
    /// Whether it helps to know subjects before their messages come.
    #[inline]
    fn looks_ahead(&self) -> bool {
        false
    }
    /// Subjects of messages that come next, at most `run::AHEAD_MAX`. What follows may not depend on it.
    fn look_ahead(&self, _: &[Padded<'_>]) {}
    fn subscribe(&mut self, subject: &[u8], queue: Option<&[u8]>, sid: &[u8]) -> Result<(), Stop>;
    /// `max` None: now.
    fn unsubscribe(&mut self, sid: &[u8], max: Option<u64>) -> Result<(), Stop>;
    fn ping(&mut self) -> Result<(), Stop>;
    fn pong(&mut self) -> Result<(), Stop>;
    fn error(&mut self, text: &[u8]) -> Result<(), Stop>;
}

/// Why parsing ended. The texts for the peer are the caller's business; `Display` is for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No verb, or a payload that does not end where it should.
    UnknownOperation {
        kind: Kind,
        state: State,
        at: usize,
        snippet: Vec<u8>,
    },
    /// A line whose arguments make no sense; the text says which.
    BadArguments {
        what: String,
        verb: Verb,
        line: Box<[u8]>,
    },
    ControlLineTooLong,
    PayloadTooBig {
        bytes: u64,
        max: u64,
        verb: Verb,
        line: Box<[u8]>,
    },
    ConnectMissing,
    HeadersNotSupported,
    Stopped,
}

impl From<Stop> for Fault {
    fn from(_: Stop) -> Self {
        Self::Stopped
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::UnknownOperation {
                kind,
                state,
                at,
                snippet,
            } => write!(
                f,
                "{} Parser ERROR, state={}, i={at}: proto='{}...'",
                kind.name(),
                state.number(),
                errors::quoted(snippet)
            ),
            Self::BadArguments { what, line, .. } => {
                write!(f, "{what}: '{}'", String::from_utf8_lossy(line))
            }
            Self::ControlLineTooLong => f.write_str(errors::CONTROL_LINE_EXCEEDED),
            Self::PayloadTooBig { bytes, max, .. } => {
                write!(f, "Maximum Payload Exceeded: {bytes} vs {max}")
            }
            Self::ConnectMissing => f.write_str("a verb before CONNECT"),
            Self::HeadersNotSupported => f.write_str("message headers not supported"),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

/// Verbs with arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Connect,
    Info,
    Publish,
    PublishHeaders,
    Message,
    MessageHeaders,
    Subscribe,
    Unsubscribe,
    Error,
}

impl Verb {
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "CONNECT",
            Self::Info => "INFO",
            Self::Publish => "PUB",
            Self::PublishHeaders => "HPUB",
            Self::Message => "MSG",
            Self::MessageHeaders => "HMSG",
            Self::Subscribe => "SUB",
            Self::Unsubscribe => "UNSUB",
            Self::Error => "-ERR",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[rustfmt::skip]
pub enum State {
    Start,
    Plus, PlusO, PlusOk,
    Minus, MinusE, MinusEr, MinusErr,
    C, Co, Con, Conn, Conne, Connec, Connect,
    H, Hp, Hpu, Hpub, Hm, Hms, Hmsg,
    I, In, Inf, Info,
    M, Ms, Msg,
    P, Pi, Pin, Ping, Po, Pon, Pong, Pu, Pub,
    S, Su, Sub,
    U, Un, Uns, Unsu, Unsub,
    /// Blanks between a verb and its arguments.
    Space(Verb),
    /// Inside a line; what earlier reads brought of it is in `held`.
    Argument(Verb),
    /// Inside a message; `held` has its subject, sid and tail so far.
    Payload,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Client,
    Route,
}

impl Kind {
    /// The word for it in gnatsd's log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Client => "Client",
            Self::Route => "Router",
        }
    }
}

impl State {
    /// gnatsd's numbers, which stand in its log; those of verbs it does not know follow.
    #[rustfmt::skip]
    fn number(self) -> u8 {
        match self {
            Self::Start => 0,
            Self::Plus => 1, Self::PlusO => 2, Self::PlusOk => 3,
            Self::Minus => 4, Self::MinusE => 5, Self::MinusEr => 6, Self::MinusErr => 7,
            Self::Space(Verb::Error) => 8, Self::Argument(Verb::Error) => 9,
            Self::C => 10, Self::Co => 11, Self::Con => 12, Self::Conn => 13, Self::Conne => 14,
            Self::Connec => 15, Self::Connect | Self::Space(Verb::Connect) => 16,
            Self::Argument(Verb::Connect) => 17,
            Self::P => 18, Self::Pu => 19, Self::Pub => 20,
            Self::Space(Verb::Publish) => 21, Self::Argument(Verb::Publish) => 22,
            Self::Pi => 23, Self::Pin => 24, Self::Ping => 25,
            Self::Po => 26, Self::Pon => 27, Self::Pong => 28,
            // Where faults are found in a payload: at its end.
            Self::Payload => 30,
            Self::S => 31, Self::Su => 32, Self::Sub => 33,
            Self::Space(Verb::Subscribe) => 34, Self::Argument(Verb::Subscribe) => 35,
            Self::U => 36, Self::Un => 37, Self::Uns => 38, Self::Unsu => 39, Self::Unsub => 40,
            Self::Space(Verb::Unsubscribe) => 41, Self::Argument(Verb::Unsubscribe) => 42,
            Self::M => 43, Self::Ms => 44, Self::Msg => 45,
            Self::Space(Verb::Message) => 46, Self::Argument(Verb::Message) => 47,
            Self::I => 48, Self::In => 49, Self::Inf => 50,
            Self::Info | Self::Space(Verb::Info) => 51, Self::Argument(Verb::Info) => 52,
            Self::H => 53, Self::Hp => 54, Self::Hpu => 55, Self::Hpub => 56,
            Self::Space(Verb::PublishHeaders) => 57, Self::Argument(Verb::PublishHeaders) => 58,
            Self::Hm => 59, Self::Hms => 60, Self::Hmsg => 61,
            Self::Space(Verb::MessageHeaders) => 62, Self::Argument(Verb::MessageHeaders) => 63,
        }
    }
}

/// Lengths of a message under assembly in `held`: `subject sid tail`.
#[derive(Clone, Copy, Debug, Default)]
struct Assembly {
    subject_bytes: u32,
    sid_bytes: u32,
    reply_bytes: u32,
    header_bytes: Option<u32>,
    body_bytes: usize,
    /// Length of `held` when the message is complete.
    complete_bytes: usize,
}

#[derive(Debug)]
pub struct Parser {
    kind: Kind,
    state: State,
    held: Vec<u8>,
    /// Boxed: only a connection in the middle of a message has one.
    assembly: Option<Box<Assembly>>,
    /// Where in the last input a CONNECT ended that the sink stopped at.
    stopped_at: u32,
}

impl Parser {
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            state: State::Start,
            held: Vec::new(),
            assembly: None,
            stopped_at: 0,
        }
    }

    /// Bytes of memory kept for an unfinished line or message.
    pub fn held_bytes(&self) -> usize {
        self.held.capacity()
    }

    /// It is between two lines.
    pub fn is_idle(&self) -> bool {
        self.state == State::Start
    }

    /// After a CONNECT at which the sink stopped: where the input goes on behind it.
    pub fn stopped_at(&self) -> usize {
        self.stopped_at as usize
    }

    /// Feeds the next bytes of the connection. After an error the parser must not be fed again,
    /// unless the sink itself stopped it in CONNECT.
    pub fn parse<S: Sink>(&mut self, input: &[u8], sink: &mut S) -> Result<(), Fault> {
        self.run::<S, true>(input, sink)
    }

    /// The machine alone, without the fast path: the reference in tests and fuzzing.
    pub fn parse_slowly<S: Sink>(&mut self, input: &[u8], sink: &mut S) -> Result<(), Fault> {
        self.run::<S, false>(input, sink)
    }

    fn run<S: Sink, const FAST: bool>(&mut self, input: &[u8], sink: &mut S) -> Result<(), Fault> {
        let mut at = 0;
        while at < input.len() {
            at = match self.state {
                State::Start => {
                    if FAST && !sink.connect_only() {
                        at = match self.kind {
                            Kind::Client => skip_messages::<S, false>(input, at, sink)?,
                            Kind::Route => skip_messages::<S, true>(input, at, sink)?,
                        };
                        if at == input.len() {
                            break;
                        }
                    }
                    if sink.connect_only() && !matches!(input[at], b'C' | b'c') {
                        return Err(Fault::ConnectMissing);
                    }
                    self.letter(input, at)?
                }
                State::Space(verb) => match input[at] {
                    b' ' | b'\t' => at + 1,
                    _ => {
                        self.state = State::Argument(verb);
                        at
                    }
                },
                State::Argument(verb) => self.argument(verb, input, at, sink)?,
                State::Payload => self.payload(input, at, sink)?,
                State::PlusOk | State::Ping | State::Pong => match memchr(b'\n', &input[at..]) {
                    None => input.len(),
                    Some(length) => {
                        match self.state {
                            State::Ping => sink.ping()?,
                            State::Pong => sink.pong()?,
                            _ => {}
                        }
                        self.state = State::Start;
                        at + length + 1
                    }
                },
                _ => self.letter(input, at)?,
            };
        }
        // gnatsd checks the limit where a read ends inside an argument, and nowhere else.
        if let State::Argument(verb) = self.state
            && self.held.len() > line_bytes_max(verb, sink)
        {
            return Err(Fault::ControlLineTooLong);
        }
        Ok(())
    }

    /// One byte of a verb, or the one behind it; returns where to go on.
    #[rustfmt::skip]
    fn letter(&mut self, input: &[u8], at: usize) -> Result<usize, Fault> {
        use State::*;
        let byte = input[at].to_ascii_uppercase();
        let route = self.kind == Kind::Route;
        let blank = matches!(byte, b' ' | b'\t');
        let next = match (self.state, byte) {
            (Start, b'C') => C, (Start, b'H') => H, (Start, b'I') => I, (Start, b'P') => P,
            (Start, b'S') => S, (Start, b'U') => U, (Start, b'+') => Plus, (Start, b'-') => Minus,
            (Start, b'M') if route => M,
            (Plus, b'O') => PlusO, (PlusO, b'K') => PlusOk,
            (Minus, b'E') => MinusE, (MinusE, b'R') => MinusEr, (MinusEr, b'R') => MinusErr,
            (MinusErr, _) if blank => Space(Verb::Error),
            (C, b'O') => Co, (Co, b'N') => Con, (Con, b'N') => Conn, (Conn, b'E') => Conne,
            (Conne, b'C') => Connec, (Connec, b'T') => Connect,
            // These two take their JSON without a blank as well.
            (Connect, _) => { self.state = Space(Verb::Connect); return Ok(at) }
            (I, b'N') => In, (In, b'F') => Inf, (Inf, b'O') => Info,
            (Info, _) => { self.state = Space(Verb::Info); return Ok(at) }
            (P, b'U') => Pu, (Pu, b'B') => Pub, (Pub, _) if blank => Space(Verb::Publish),
            (P, b'I') => Pi, (Pi, b'N') => Pin, (Pin, b'G') => Ping,
            (P, b'O') => Po, (Po, b'N') => Pon, (Pon, b'G') => Pong,
            (H, b'P') if !route => Hp, (Hp, b'U') => Hpu, (Hpu, b'B') => Hpub,
            (Hpub, _) if blank => Space(Verb::PublishHeaders),
            (H, b'M') if route => Hm, (Hm, b'S') => Hms, (Hms, b'G') => Hmsg,
            (Hmsg, _) if blank => Space(Verb::MessageHeaders),
            (M, b'S') => Ms, (Ms, b'G') => Msg, (Msg, _) if blank => Space(Verb::Message),
            (S, b'U') => Su, (Su, b'B') => Sub, (Sub, _) if blank => Space(Verb::Subscribe),
            (U, b'N') => Un, (Un, b'S') => Uns, (Uns, b'U') => Unsu, (Unsu, b'B') => Unsub,
            (Unsub, _) if blank => Space(Verb::Unsubscribe),
            _ => return Err(self.unknown_operation(input, at)),
        };
        self.state = next;
        Ok(at + 1)
    }

    fn unknown_operation(&self, input: &[u8], at: usize) -> Fault {
        // gnatsd leaves the last byte of the input out.
        let end = match at + SNIPPET_BYTES_MAX {
            end if end > input.len() => input.len() - 1,
            end => end,
        };
        Fault::UnknownOperation {
            kind: self.kind,
            state: self.state,
            at,
            snippet: input[at..end].to_vec(),
        }
    }

    fn argument<S: Sink>(
        &mut self,
        verb: Verb,
        input: &[u8],
        at: usize,
        sink: &mut S,
    ) -> Result<usize, Fault> {
        let Some(length) = memchr(b'\n', &input[at..]) else {
            self.held.extend_from_slice(&input[at..]);
            return Ok(input.len());
        };
        // Its reads of a new connection bring that much; ours bring more, and what such a line says (a subject) would be
        // told to other servers, which do not take it.
        let max = line_bytes_max(verb, sink).saturating_add(FIRST_READ_BYTES);
        if self.kind == Kind::Client && self.held.len() + length > max {
            return Err(Fault::ControlLineTooLong);
        }
        let end = at + length + 1;
        self.state = State::Start;
        if self.held.is_empty() {
            return self.line(verb, &input[at..end - 1], input, end, sink);
        }
        // The line lies in two or more reads: put it together, and give the memory back unless the
        // message behind it takes it over.
        self.held.extend_from_slice(&input[at..end - 1]);
        let line = std::mem::take(&mut self.held);
        self.line(verb, &line, input, end, sink)
    }

    /// A complete line without its LF; `end` is where the input goes on behind it.
    fn line<S: Sink>(
        &mut self,
        verb: Verb,
        line: &[u8],
        input: &[u8],
        end: usize,
        sink: &mut S,
    ) -> Result<usize, Fault> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match verb {
            Verb::Connect => {
                self.stopped_at = end as u32;
                sink.connect(line)?;
            }
            Verb::Info => sink.info(line)?,
            Verb::Error => sink.error(line)?,
            Verb::Subscribe => match *Arguments::of_subscription(line).as_slice() {
                [subject, sid] => sink.subscribe(subject, None, sid)?,
                [subject, queue, sid] => sink.subscribe(subject, Some(queue), sid)?,
                _ => return Err(bad_arguments("processSub Parse Error", verb, line)),
            },
            Verb::Unsubscribe => match *Arguments::of_subscription(line).as_slice() {
                [sid] => sink.unsubscribe(sid, None)?,
                [sid, max] => sink.unsubscribe(sid, number(max).filter(|max| *max > 0))?,
                _ => return Err(bad_arguments("processUnsub Parse Error", verb, line)),
            },
            Verb::Publish | Verb::PublishHeaders | Verb::Message | Verb::MessageHeaders => {
                return self.begin_message(verb, line, input, end, sink);
            }
        }
        Ok(end)
    }

    /// Reads the line of a message and either hands the whole message on or begins to assemble it.
    fn begin_message<S: Sink>(
        &mut self,
        verb: Verb,
        line: &[u8],
        input: &[u8],
        at: usize,
        sink: &mut S,
    ) -> Result<usize, Fault> {
        let arguments = Arguments::of_message(line);
        let mut rest = arguments.as_slice();
        let name = match verb {
            Verb::Publish => "processPub",
            Verb::PublishHeaders => "processHeaderPub",
            _ => "processMsgArgs",
        };
        let wrong_count = || bad_arguments(&format!("{name} Parse Error"), verb, line);
        let mut take = || {
            let (first, others) = rest.split_first().ok_or_else(wrong_count)?;
            rest = others;
            Ok::<_, Fault>(*first)
        };
        let with_headers = matches!(verb, Verb::PublishHeaders | Verb::MessageHeaders);
        if with_headers && !sink.headers() {
            return Err(Fault::HeadersNotSupported);
        }
        let subject = take()?;
        let sid = if matches!(verb, Verb::Message | Verb::MessageHeaders) {
            take()?
        } else {
            b""
        };
        let (reply, header_digits, digits) = match (with_headers, rest) {
            (false, [digits]) => (None, None, digits),
            (false, [reply, digits]) => (Some(*reply), None, digits),
            (true, [header_digits, digits]) => (None, Some(*header_digits), digits),
            (true, [reply, header_digits, digits]) => (Some(*reply), Some(*header_digits), digits),
            _ => return Err(wrong_count()),
        };
        let bad_size = || bad_arguments(&format!("{name} Bad or Missing Size"), verb, line);
        let bytes = number(digits).ok_or_else(bad_size)?;
        let max = sink.payload_bytes_max().min(BODY_BYTES_MAX);
        if bytes > max {
            return Err(Fault::PayloadTooBig {
                bytes,
                max,
                verb,
                line: line.into(),
            });
        }
        let header_bytes = match header_digits {
            None => None,
            Some(digits) => match number(digits) {
                Some(header) if header <= bytes => {
                    Some(u32::try_from(header).map_err(|_| bad_size())?)
                }
                _ => return Err(bad_size()),
            },
        };
        let body_bytes = usize::try_from(bytes).map_err(|_| bad_size())?;

        // The outgoing form: subject and sid aside, then the tail as far as the input has it.
        let mut held = Vec::new();
        let present = (input.len() - at).min(body_bytes.saturating_add(2));
        held.reserve(line.len() + 16 + present);
        held.extend_from_slice(subject);
        held.extend_from_slice(sid);
        for argument in [reply, header_digits].into_iter().flatten() {
            held.extend_from_slice(argument);
            held.push(b' ');
        }
        held.extend_from_slice(digits);
        held.extend_from_slice(b"\r\n");
        let complete_bytes = held
            .len()
            .checked_add(body_bytes)
            .and_then(|n| n.checked_add(2))
            .ok_or_else(bad_size)?;
        self.assembly = Some(Box::new(Assembly {
            subject_bytes: subject.len() as u32,
            sid_bytes: sid.len() as u32,
            reply_bytes: reply.map_or(0, |reply| reply.len() as u32),
            header_bytes,
            body_bytes,
            complete_bytes,
        }));
        self.held = held;
        self.state = State::Payload;
        self.payload(input, at, sink)
    }

    fn payload<S: Sink>(&mut self, input: &[u8], at: usize, sink: &mut S) -> Result<usize, Fault> {
        let assembly = self
            .assembly
            .as_deref()
            .expect("the state says there is one");
        let missing = assembly.complete_bytes - self.held.len();
        let end = at + missing.min(input.len() - at);
        // Memory follows what really arrived, not what the line announced.
        self.held.extend_from_slice(&input[at..end]);
        if self.held.len() < assembly.complete_bytes {
            return Ok(end);
        }
        if self.held.last() != Some(&b'\n') {
            return Err(self.unknown_operation(input, end - 1));
        }
        let assembly = *self.assembly.take().expect("seen above");
        self.state = State::Start;
        let held = std::mem::take(&mut self.held);
        let subject_end = assembly.subject_bytes as usize;
        let tail_at = subject_end + assembly.sid_bytes as usize;
        let message = |held: &[u8], sink: &mut S, owned| {
            let message = Message {
                subject: Padded::new(held, subject_end),
                tail: Padded::exact(&held[tail_at..]),
                reply_bytes: assembly.reply_bytes as usize,
                header_bytes: assembly.header_bytes,
                body_bytes: assembly.body_bytes,
                sid: &held[subject_end..tail_at],
            };
            sink.message(&message, owned)
        };
        if held.len() - tail_at >= SHARED_BYTES_MIN {
            let whole = Bytes::from(held);
            message(&whole, sink, Some(whole.slice(tail_at..)))?;
        } else {
            message(&held, sink, None)?;
        }
        Ok(end)
    }
}

fn line_bytes_max(verb: Verb, sink: &impl Sink) -> usize {
    match verb {
        Verb::Connect => sink.control_line_bytes_max().max(CONNECT_BYTES_MAX),
        _ => sink.control_line_bytes_max(),
    }
}

fn bad_arguments(what: &str, verb: Verb, line: &[u8]) -> Fault {
    Fault::BadArguments {
        what: what.to_owned(),
        verb,
        line: line.into(),
    }
}

/// What a parser reported, as plain values: the common ground of tests and fuzzing.
#[doc(hidden)]
pub mod fuzz {
    use super::*;

    /// A sink that writes everything down.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Record {
        pub events: Vec<String>,
        pub connect_only: bool,
        pub headers: bool,
        pub payload_bytes_max: u64,
        pub control_line_bytes_max: usize,
        /// It stops at each CONNECT, and what is behind it is parsed later.
        pub stops: bool,
    }

    impl Default for Record {
        fn default() -> Self {
            Self {
                events: Vec::new(),
                connect_only: false,
                headers: false,
                payload_bytes_max: 1 << 20,
                // Where the limit is checked depends on where reads end, so equivalence is judged
                // without it; `endless_lines_end` below has the limit.
                control_line_bytes_max: usize::MAX,
                stops: false,
            }
        }
    }

    impl Record {
        /// With the settings these flags choose; the lowest one is for the kind of the connection.
        pub fn of(flags: u8) -> Self {
            Self {
                headers: flags & 4 == 0,
                // Bodies are that large and larger, too.
                payload_bytes_max: [1 << 20, 8, 64, u64::MAX][usize::from(flags >> 3) % 4],
                ..Self::default()
            }
        }

        fn note(&mut self, text: String) -> Result<(), Stop> {
            self.events.push(text);
            Ok(())
        }
    }

    impl Sink for Record {
        fn connect_only(&self) -> bool {
            self.connect_only
        }
        fn headers(&self) -> bool {
            self.headers
        }
        fn payload_bytes_max(&self) -> u64 {
            self.payload_bytes_max
        }
        fn control_line_bytes_max(&self) -> usize {
            self.control_line_bytes_max
        }
        fn connect(&mut self, json: &[u8]) -> Result<(), Stop> {
            self.connect_only = false;
            self.note(format!("CONNECT {}", json.escape_ascii()))?;
            if self.stops { Err(Stop) } else { Ok(()) }
        }
        fn info(&mut self, json: &[u8]) -> Result<(), Stop> {
            self.note(format!("INFO {}", json.escape_ascii()))
        }
        fn message(&mut self, m: &Message<'_>, owned: Option<Bytes>) -> Result<(), Stop> {
            if let Some(owned) = owned {
                assert_eq!(owned, m.tail.bytes());
            }
            assert_eq!(m.body().len(), m.body_bytes + 2);
            assert_eq!(m.body().last(), Some(&b'\n'));
            assert!(m.header_bytes.is_none_or(|h| h as usize <= m.body_bytes));
            self.note(format!(
                "MSG {} {} {:?} {:?} {}",
                m.subject.bytes().escape_ascii(),
                m.sid.escape_ascii(),
                m.reply().map(|r| r.escape_ascii().to_string()),
                m.header_bytes,
                m.tail.bytes().escape_ascii()
            ))
        }
        fn subscribe(
            &mut self,
            subject: &[u8],
            queue: Option<&[u8]>,
            sid: &[u8],
        ) -> Result<(), Stop> {
            self.note(format!("SUB {subject:?} {queue:?} {sid:?}"))
        }
        fn unsubscribe(&mut self, sid: &[u8], max: Option<u64>) -> Result<(), Stop> {
            self.note(format!("UNSUB {sid:?} {max:?}"))
        }
        fn ping(&mut self) -> Result<(), Stop> {
            self.note("PING".into())
        }
        fn pong(&mut self) -> Result<(), Stop> {
            self.note("PONG".into())
        }
        fn error(&mut self, text: &[u8]) -> Result<(), Stop> {
            self.note(format!("-ERR {}", text.escape_ascii()))
        }
    }

    /// How parsing ended, without what depends on where reads ended.
    fn outcome(result: Result<(), Fault>) -> String {
        match result {
            Ok(()) => "more".into(),
            Err(Fault::UnknownOperation { state, .. }) => format!("unknown in {state:?}"),
            Err(fault) => fault.to_string(),
        }
    }

    /// Everything the pieces say to a parser, with or without the fast path. Where the sink stops, the rest of the piece is the next one.
    pub fn record(kind: Kind, fast: bool, sink: &Record, pieces: &[&[u8]]) -> (Record, String) {
        let (mut parser, mut sink) = (Parser::new(kind), sink.clone());
        for piece in pieces {
            let mut piece = *piece;
            let result = loop {
                let result = match fast {
                    true => parser.parse(piece, &mut sink),
                    false => parser.parse_slowly(piece, &mut sink),
                };
                match result {
                    Err(Fault::Stopped) => piece = &piece[parser.stopped_at()..],
                    result => break result,
                }
            };
            if result.is_err() {
                return (sink, outcome(result));
            }
        }
        (sink, outcome(Ok(())))
    }

    /// The first byte chooses the kind of connection and the settings; the rest is the stream,
    /// which must mean the same whole, byte by byte, in pieces of several sizes, and without the
    /// fast path.
    pub fn check(data: &[u8]) {
        let Some((&flags, stream)) = data.split_first() else {
            return;
        };
        let kind = if flags & 1 == 0 {
            Kind::Client
        } else {
            Kind::Route
        };
        let chosen = usize::from(flags >> 3);
        let sink = Record {
            connect_only: flags & 2 != 0,
            ..Record::of(flags)
        };
        let expect = record(kind, false, &sink, &[stream]);
        assert_eq!(record(kind, true, &sink, &[stream]), expect, "fast path");
        let stopping = Record {
            stops: true,
            ..sink.clone()
        };
        let (mut stopped, end) = record(kind, true, &stopping, &[stream]);
        stopped.stops = false;
        assert_eq!((stopped, end), expect, "with stops");
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(record(kind, true, &sink, &bytes), expect, "byte by byte");
        // The fast path looks 36 bytes ahead: there are pieces in which it has nothing to do, and pieces that it
        // leaves to the machine at their end and takes up again in the next.
        for sizes in [
            [chosen + 2; 2],
            [16 * (chosen + 3); 2],
            [7, 64 + 8 * chosen],
            // One cut, and another stream has it elsewhere.
            [place_in(stream), usize::MAX],
        ] {
            let pieces = cut(stream, sizes);
            assert_eq!(record(kind, true, &sink, &pieces), expect, "in {sizes:?}");
        }
    }

    /// Somewhere within it, by the sum of what it says.
    fn place_in(stream: &[u8]) -> usize {
        let step = |sum: usize, byte: &u8| sum.wrapping_mul(31).wrapping_add(usize::from(*byte));
        stream.iter().fold(0, step) % stream.len().max(1)
    }

    /// In pieces of these sizes in turn.
    fn cut(mut stream: &[u8], sizes: [usize; 2]) -> Vec<&[u8]> {
        let mut pieces = Vec::new();
        for size in sizes.into_iter().cycle() {
            let (piece, rest) = stream.split_at(size.min(stream.len()));
            pieces.push(piece);
            stream = rest;
            if stream.is_empty() {
                break;
            }
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::fuzz::{Record, check, record};
    use super::*;

    fn events(input: &[u8]) -> (Vec<String>, String) {
        let sink = Record {
            headers: true,
            ..Record::default()
        };
        let (sink, outcome) = record(Kind::Client, true, &sink, &[input]);
        (sink.events, outcome)
    }

    /// Streams with every verb and every oddity gnatsd 1.1.0 is known to accept or refuse.
    const VECTORS: &[&[u8]] = &[
        b"CONNECT {\"verbose\":false}\r\nPING\r\nPONG\r\n+OK\r\n-ERR 'x y'\r\nINFO {}\r\n",
        b"CONNECT{}\nconnect \t {}\r\n",
        b"PUB foo 2\r\nhi\r\npub foo bar 002\r\nhi\r\nPUB\tfoo \t 0 \r\n\r\n",
        b"PUB foo 33\r\n0123456789abcdef0123456789abcdef\n\r\nPUB foo 2\r\nhi!\n",
        b"SUB foo 1\r\nSUB foo q 2\r\nsub fo\ro 1\nSUB foo 1\r\r\nUNSUB 1\r\nUNSUB 1 5\r\nUNSUB 1 xx\r\nUNSUB 1 0\r\n",
        b"HPUB foo 12 14\r\nNATS/1.0\r\n\r\nhi\r\nhpub foo reply 4 4\r\nabcd\r\n",
        b"PUB foo a.reply.subject.that.is.quite.long.and.spans.more.than.thirty.two.bytes 64\r\n0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\r\nPING\r\n",
        b"PUB foo 2\r\nhi\r\nPUB foo 2\r\nho\r\nPUB foo 2\r\nhu\r\nPUB foo r 3\r\nhey\r\nPUB fop 2\r\nhi\r\nPUB foo 2\r\nhi\r\n",
        b"PUB a.subject.that.is.longer.than.32.bytes 2\r\nhi\r\nPUB a.subject.that.is.longer.than.32.bytes 2\r\nho\r\nPUB a.subject.that.is.longer.than.32.bytez 2\r\nho\r\n",
        b"PUB foo 2\r\nhi\r\nPUB foo 2\r\nhi!\nPUB foo 2\r\nPUB foo 2\r\nhi\r\nPING\r\nPUB foo 2\r\nhi\r\n",
        b"MSG foo RSID:1:2 2\r\nhi\r\nMSG foo RSID:1:2 2\r\nhi\r\nMSG foo RSID:1:3 2\r\nhi\r\nMSG foo RSID:1:3 r 2\r\nhi\r\n",
        b"PING foo\r\nPINGX\r\nPONG?\r\n+OKAY\n",
        b"PUB  foo 2\r\nhi\r\nPUB foo  bar 2\r\nhi\r\nPUB fo\ro 2\r\nhi\r\nPUB fo\x01o re\x02ply 2\r\nhi\r\n",
        b"PUB foo 18446744073709551618\r\nhi\r\n",
        b"PUB foo 2\r\nhi\r\nFOO\r\n",
        b" PING\r\n",
        b"\r\n",
        b"PUB\r\n",
        b"PUB foo\r\n",
        b"PUB foo bar baz 2\r\nhi\r\n",
        b"PUB foo -1\r\n",
        b"PUB foo 1\r\r\n",
        b"PUB foo 1048577\r\n",
        b"PUB foo 2\r\nhello\r\n",
        b"PUB foo 10\r\nhello\r\nPING\r\nPING\r\n",
        b"SUB foo\r\n",
        b"SUB \r\n",
        b"SUB a b c d\r\n",
        b"UNSUB a b c\r\n",
        b"HPUB foo 14 12\r\nNATS/1.0\r\n\r\nhi\r\n",
        b"HPUB foo  12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
        b"HPUB foo 12\r\n",
        b"MSG foo RSID:1:2 2\r\nhi\r\nMSG foo QRSID:1:2 reply 2\r\nhi\r\nHMSG foo RSID:1:2 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
        b"SUB foo  RSID:2:1\r\nSUB bar q QRSID:2:2\r\nUNSUB RSID:2:3 5\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PU\rB foo 2\r\nhi\r\n",
    ];

    #[test]
    fn vectors_mean_the_same_at_every_split() {
        for vector in VECTORS {
            for kind in [Kind::Client, Kind::Route] {
                for headers in [false, true] {
                    let sink = Record {
                        headers,
                        ..Record::default()
                    };
                    let expect = record(kind, false, &sink, &[vector]);
                    for split in 0..=vector.len() {
                        let (a, b) = vector.split_at(split);
                        for fast in [false, true] {
                            let got = record(kind, fast, &sink, &[a, b]);
                            assert_eq!(got, expect, "{} at {split}", vector.escape_ascii());
                        }
                    }
                }
            }
            for flags in [0u8, 1, 2, 4, 0b11000, 0xff] {
                check(&[&[flags], *vector].concat());
            }
        }
    }

    #[test]
    fn two_splits_of_a_message_with_everything() {
        let stream = b"HPUB a.b re.ply 12 14\r\nNATS/1.0\r\n\r\nhi\r\nPUB x 3\r\nabc\r\n";
        let sink = Record {
            headers: true,
            ..Record::default()
        };
        let expect = record(Kind::Client, false, &sink, &[stream]);
        for i in 0..stream.len() {
            for j in i..stream.len() {
                let got = record(
                    Kind::Client,
                    true,
                    &sink,
                    &[&stream[..i], &stream[i..j], &stream[j..]],
                );
                assert_eq!(got, expect, "{i} {j}");
            }
        }
    }

    #[test]
    fn messages_keep_the_publishers_digits() {
        let (got, outcome) = events(b"PUB foo bar 002\r\nhi\r\n");
        assert_eq!(got, ["MSG foo  Some(\"bar\") None bar 002\\r\\nhi\\r\\n"]);
        assert_eq!(outcome, "more");
    }

    #[test]
    fn what_is_no_protocol_is_told_apart() {
        for (input, expect) in [
            (&b"FOO\r\n"[..], "unknown in Start"),
            (b"PUB\r\n", "unknown in Pub"),
            (b"PUB foo\r\n", "processPub Parse Error: 'foo'"),
            (
                b"PUB foo -1\r\n",
                "processPub Bad or Missing Size: 'foo -1'",
            ),
            (b"SUB x\r\n", "processSub Parse Error: 'x'"),
            (
                b"PUB foo 2000000\r\n",
                "Maximum Payload Exceeded: 2000000 vs 1048576",
            ),
            (b"PUB foo 0\r\nx\r\n", "unknown in Payload"),
        ] {
            assert_eq!(events(input).1, expect, "{}", input.escape_ascii());
        }
    }

    #[test]
    fn the_log_says_it_as_gnatsd_does() {
        for (kind, input, expect) in [
            (
                Kind::Client,
                &b"FOO\r\n"[..],
                r#"Client Parser ERROR, state=0, i=0: proto='"FOO\r"...'"#,
            ),
            (
                Kind::Client,
                b"PING\r\nPUBLISH 0123456789 0123456789 0123456789\r\n",
                r#"Client Parser ERROR, state=20, i=9: proto='"LISH 0123456789 0123456789 01234"...'"#,
            ),
            (
                Kind::Route,
                b"UNSUX",
                r#"Router Parser ERROR, state=39, i=4: proto='""...'"#,
            ),
            (
                Kind::Route,
                b"MSG foo 1\r\n",
                "processMsgArgs Parse Error: 'foo 1'",
            ),
        ] {
            let fault = Parser::new(kind).parse(input, &mut Record::default());
            assert_eq!(fault.unwrap_err().to_string(), expect);
        }
    }

    #[test]
    fn nothing_but_connect_while_authorization_is_pending() {
        let sink = Record {
            connect_only: true,
            ..Record::default()
        };
        assert_eq!(
            record(Kind::Client, true, &sink, &[b"PING\r\n"]).1,
            "a verb before CONNECT"
        );
        assert_eq!(
            record(Kind::Client, true, &sink, &[b"Cxyz\r\n"]).1,
            "unknown in C"
        );
        let (sink, outcome) = record(Kind::Client, true, &sink, &[b"connect {}\r\nPING\r\n"]);
        assert_eq!((sink.events.len(), outcome.as_str()), (2, "more"));
    }

    #[test]
    fn endless_lines_end() {
        let mut sink = Record {
            control_line_bytes_max: 20,
            ..Record::default()
        };
        let mut parser = Parser::new(Kind::Client);
        // A whole line in one read may be as long as a first read of gnatsd, a piece of one may not.
        parser
            .parse(b"SUB 0123456789.0123456789.0123456789 1\r\n", &mut sink)
            .unwrap();
        let long = |bytes| format!("SUB {} 1\r\nPING\r\n", "a".repeat(bytes));
        let whole = |kind, bytes| record(kind, true, &sink, &[long(bytes).as_bytes()]).1;
        assert_eq!(whole(Kind::Client, 500), "more");
        let too_long = Fault::ControlLineTooLong.to_string();
        assert_eq!(whole(Kind::Client, 600), too_long);
        assert_eq!(whole(Kind::Route, 600), "more");
        parser
            .parse(b"SUB 0123456789.012345678", &mut sink)
            .unwrap();
        let fault = parser.parse(b"9", &mut sink).unwrap_err();
        assert_eq!(fault, Fault::ControlLineTooLong);
        // CONNECT may be longer, but not endless.
        let mut parser = Parser::new(Kind::Client);
        parser.parse(b"CONNECT ", &mut sink).unwrap();
        parser.parse(&[b'a'; CONNECT_BYTES_MAX], &mut sink).unwrap();
        assert_eq!(
            parser.parse(b"a", &mut sink).unwrap_err(),
            Fault::ControlLineTooLong
        );
    }

    #[test]
    fn sizes_beyond_32_bits_are_refused_without_a_limit_too() {
        for (line, bytes) in [
            ("PUB foo {}", BODY_BYTES_MAX),
            ("HPUB foo 12 {}", BODY_BYTES_MAX),
            ("PUB foo {}", u64::from(u32::MAX) + 6),
        ] {
            let line = line.replace("{}", &bytes.to_string()) + "\r\n";
            let mut sink = Record {
                headers: true,
                payload_bytes_max: u64::MAX,
                ..Record::default()
            };
            let result = Parser::new(Kind::Client).parse(line.as_bytes(), &mut sink);
            let refused = matches!(result, Err(Fault::PayloadTooBig { .. }));
            assert_eq!(refused, bytes > BODY_BYTES_MAX, "{line}");
            assert_eq!(result.is_ok(), !refused, "{line}");
        }
    }

    #[test]
    fn memory_follows_what_arrived() {
        let mut parser = Parser::new(Kind::Client);
        parser
            .parse(b"PUB foo 1000000\r\nabc", &mut Record::default())
            .unwrap();
        assert!(parser.held_bytes() < 1000);
    }

    proptest::proptest! {
        #[test]
        fn any_mixture_means_the_same_at_any_split(
            flags: u8,
            picks in proptest::collection::vec((0..VECTORS.len(), 0..80usize), 0..6),
            junk in proptest::collection::vec(proptest::num::u8::ANY, 0..40),
        ) {
            let mut data = vec![flags];
            for (vector, cut) in picks {
                let vector = VECTORS[vector];
                data.extend_from_slice(&vector[..vector.len() - cut.min(vector.len()) / 8]);
            }
            data.extend_from_slice(&junk);
            check(&data);
        }
    }
}
