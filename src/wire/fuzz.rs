//! Bodies of fuzz targets over the wire format; ordinary tests call them too. What is said here of
//! streams holds for clients and for routes: the first byte of the data chooses which.

use super::info::Info;
use super::parser::fuzz::{Record, record};
use super::parser::{FIRST_READ_BYTES, Kind, Message, Parser, Sink, Stop};
use crate::util::go_json::go_text;
use bytes::Bytes;

/// An input can hold several of them.
const PAYLOAD_BYTES_MAX: u64 = 1024;
const CONTROL_LINE_BYTES_MAX: usize = 1024;
/// A CONNECT may be longer than other lines.
const LINE_BYTES_MAX: usize = 4096;
/// More than the fast path looks ahead.
const BEHIND: &[u8] = b"PING\r\nPING\r\nPING\r\nPING\r\nPING\r\nPING\r\nPING\r\n";

fn kind(flags: u8) -> Kind {
    match flags & 1 {
        0 => Kind::Client,
        _ => Kind::Route,
    }
}

/// Counts what comes, with limits as a server has them.
#[derive(Default)]
struct Counts {
    events: usize,
    is_client: bool,
    connect_only: bool,
    headers: bool,
}

impl Counts {
    fn count(&mut self) -> Result<(), Stop> {
        self.events += 1;
        Ok(())
    }
}

impl Sink for Counts {
    fn connect_only(&self) -> bool {
        self.connect_only
    }
    fn headers(&self) -> bool {
        self.headers
    }
    fn payload_bytes_max(&self) -> u64 {
        PAYLOAD_BYTES_MAX
    }
    fn control_line_bytes_max(&self) -> usize {
        CONTROL_LINE_BYTES_MAX
    }
    fn connect(&mut self, _: &[u8]) -> Result<(), Stop> {
        self.connect_only = false;
        self.count()
    }
    fn info(&mut self, _: &[u8]) -> Result<(), Stop> {
        self.count()
    }
    fn message(&mut self, message: &Message<'_>, _: Option<Bytes>) -> Result<(), Stop> {
        assert!(message.body_bytes as u64 <= PAYLOAD_BYTES_MAX);
        self.count()
    }
    fn subscribe(&mut self, subject: &[u8], queue: Option<&[u8]>, sid: &[u8]) -> Result<(), Stop> {
        let bytes = subject.len() + queue.map_or(0, <[u8]>::len) + sid.len();
        assert!(!self.is_client || bytes <= CONTROL_LINE_BYTES_MAX + FIRST_READ_BYTES);
        self.count()
    }
    fn unsubscribe(&mut self, _: &[u8], _: Option<u64>) -> Result<(), Stop> {
        self.count()
    }
    fn ping(&mut self) -> Result<(), Stop> {
        self.count()
    }
    fn pong(&mut self) -> Result<(), Stop> {
        self.count()
    }
    fn error(&mut self, _: &[u8]) -> Result<(), Stop> {
        self.count()
    }
}

/// Any stream, in reads of one size: no panic, no more events than it has lines, and memory that
/// follows what arrived, stays within the limits and is given back between lines.
pub fn parse(data: &[u8]) {
    let [flags, size, stream @ ..] = data else {
        return;
    };
    let mut sink = Counts {
        connect_only: flags & 2 != 0,
        headers: flags & 4 == 0,
        is_client: kind(*flags) == Kind::Client,
        ..Counts::default()
    };
    let mut parser = Parser::new(kind(*flags));
    let mut arrived = 0;
    let size = match *size {
        u8::MAX => stream.len().max(1),
        size => usize::from(size) + 1,
    };
    for piece in stream.chunks(size) {
        let result = parser.parse(piece, &mut sink);
        arrived += piece.len();
        let kept_max = 2 * (LINE_BYTES_MAX + PAYLOAD_BYTES_MAX as usize + piece.len());
        let kept = parser.held_bytes();
        assert!(
            kept <= (2 * arrived + 64).min(kept_max),
            "{kept} bytes kept of {arrived}"
        );
        if result.is_err() {
            break;
        }
        if parser.is_idle() {
            assert_eq!(kept, 0);
            arrived = 0;
        }
    }
    let lines = stream.iter().filter(|byte| **byte == b'\n').count();
    assert!(sink.events <= lines, "{} of {lines} lines", sink.events);
}

/// Any stream in one read means the same with the fast path and without it, also where enough
/// follows for the fast path to look ahead.
pub fn fast(data: &[u8]) {
    let Some((flags, stream)) = data.split_first() else {
        return;
    };
    let sink = Record::of(*flags);
    for stream in [stream, &[stream, BEHIND].concat()] {
        let slow = record(kind(*flags), false, &sink, &[stream]);
        assert_eq!(record(kind(*flags), true, &sink, &[stream]), slow);
    }
}

/// The body of an INFO: an error, or a value that leaves as a line which says the same.
pub fn info(data: &[u8]) {
    let Ok(info) = serde_json::from_str::<Info>(&go_text(data)) else {
        return;
    };
    let line = info.route_line();
    let body = line
        .strip_prefix("INFO ")
        .and_then(|rest| rest.strip_suffix("\r\n"))
        .expect("a line of its form");
    assert!(!body.contains(['\r', '\n']), "{body}");
    let again: Info = serde_json::from_str(body).expect("our own JSON");
    assert_eq!(again, info);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SEEDS: &[&[u8]] = &[
        b"\x00\x05CONNECT {}\r\nPUB a 3\r\nabc\r\nHPUB a b 12 14\r\nNATS/1.0\r\n\r\nhi\r\nSUB a q 1\r\nUNSUB 1 5\r\n",
        b"\x01\xffMSG a RSID:1:1 3\r\nabc\r\nHMSG a QRSID:1:1 r 12 14\r\nNATS/1.0\r\n\r\nhi\r\nSUB a  RSID:1:1\r\n",
        b"\x02\x00CONNECT {\"verbose\":false}\r\nPING\r\nPUB a 70000\r\n",
        b"{\"server_id\":\"a\",\"port\":4222,\"connect_urls\":[\"b:1\"],\"ip\":\"nats-route://c:2/\"}",
    ];

    #[test]
    fn seeds() {
        for seed in SEEDS {
            for cut in 0..seed.len() {
                parse(&seed[..cut]);
                fast(&seed[..cut]);
                info(&seed[cut..]);
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes(
            pick in 0..SEEDS.len(),
            at in 0..80usize,
            junk in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut data = SEEDS[pick].to_vec();
            data.splice(at.min(data.len()).., junk);
            parse(&data);
            fast(&data);
            info(&data);
        }
    }
}
