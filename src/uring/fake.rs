//! A kernel scripted by tests: [`Io`] without sockets or threads, and with a clock that stands until told.
//!
//! The test holds both ends. It plays the peers (`push_accept`, `deliver`, `close_peer`, `set_room`, ...)
//! and lets the loop under test run against the same object. What a real kernel leaves open is drawn
//! from a seeded generator, so a failing run is repeated by its seed: how received bytes are cut, how
//! short a write is, which of the ready operations complete in this turn and in which order.
//!
//! What the real kernel punishes with corruption, this one punishes with a panic that names it:
//! - an operation on a closed descriptor, or closing one with operations in flight;
//! - a second recv or write in flight on one descriptor, a second operation under one token;
//! - bytes of the region that change while a write of them is in flight;
//! - a receive buffer that was never given back (checked when the fake is dropped).
//!
//! Descriptors are numbers of the fake's own, far above those of the process.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use super::{Completion, Errno, Io, Kind, RecvBuf, Segment, Token, Wait};
use crate::util::region::Region;

const FIRST_FD: RawFd = 1_000_000;
const RING_FD: RawFd = FIRST_FD - 1;

/// Looks at the bytes of a write.
type Look = Box<dyn FnMut(&[u8])>;

/// How adverse the kernel is. Each is a chance out of 256.
#[derive(Clone, Copy, Debug)]
pub struct Adversity {
    /// A ready operation stays unreported for this turn.
    pub delay: u8,
    /// A recv or write moves less than it could.
    pub short: u8,
}

impl Adversity {
    /// Everything at once, whole, in the order asked.
    pub const NONE: Adversity = Adversity { delay: 0, short: 0 };
    pub const SOME: Adversity = Adversity {
        delay: 64,
        short: 128,
    };
}

/// See the module.
pub struct FakeIo {
    region: Region,
    random: Random,
    adversity: Adversity,
    buffers: FakeBuffers,
    sockets: BTreeMap<RawFd, Socket>,
    next_fd: RawFd,
    /// Operations in flight, in the order asked.
    in_flight: Vec<Operation>,
    /// Completions that are due, each list in its own order. The descriptor counts as busy until the
    /// last of them is delivered: before that the loop cannot know that the operation is over.
    due: BTreeMap<u64, VecDeque<(Option<RawFd>, Completion)>>,
    doorbells_rung: Vec<(RawFd, Token)>,
    when_rung: Option<Box<dyn FnMut()>>,
    when_writing: Option<Look>,
    last_wait: Option<Wait>,
    now: Instant,
}

#[derive(Default)]
struct Socket {
    open: bool,
    incoming: VecDeque<Vec<u8>>,
    incoming_end: Option<Result<(), Errno>>,
    written: Vec<u8>,
    /// Bytes the peer still has room for.
    room: usize,
    write_error: Option<Errno>,
    /// Exact sizes of the next writes, before chance is asked.
    write_counts: VecDeque<usize>,
    shut_down: bool,
    accepted: VecDeque<Result<RawFd, Errno>>,
    signals: usize,
}

struct Operation {
    token: Token,
    fd: RawFd,
    /// What a write was asked to write, and where it came from.
    segments: Vec<Segment>,
    snapshot: Vec<u8>,
}

impl FakeIo {
    /// A fake with 16 receive buffers of 64 KiB.
    pub fn new(seed: u64, region: Region) -> FakeIo {
        FakeIo::with_buffers(seed, region, 16, 65536)
    }

    pub fn with_buffers(seed: u64, region: Region, recv_bufs: u16, buf_bytes: u32) -> FakeIo {
        FakeIo {
            region,
            random: Random(seed),
            adversity: Adversity::SOME,
            buffers: FakeBuffers::new(recv_bufs, buf_bytes),
            sockets: BTreeMap::new(),
            next_fd: FIRST_FD,
            in_flight: Vec::new(),
            due: BTreeMap::new(),
            doorbells_rung: Vec::new(),
            when_rung: None,
            when_writing: None,
            last_wait: None,
            now: Instant::now(),
        }
    }

    pub fn set_adversity(&mut self, adversity: Adversity) {
        self.adversity = adversity;
    }

    // ---- what the test does in the place of peers and kernel

    /// A new open descriptor: a listener, an eventfd.
    pub fn open(&mut self) -> RawFd {
        let fd = self.next_fd;
        self.next_fd += 1;
        let socket = Socket {
            open: true,
            room: usize::MAX,
            ..Socket::default()
        };
        self.sockets.insert(fd, socket);
        fd
    }

    /// A peer connects to `listener`; returns the descriptor the loop will get.
    pub fn push_accept(&mut self, listener: RawFd) -> RawFd {
        let fd = self.open();
        self.socket(listener).accepted.push_back(Ok(fd));
        fd
    }

    /// Accepting fails once; the accept is then no longer armed.
    pub fn fail_accept(&mut self, listener: RawFd, errno: Errno) {
        self.socket(listener).accepted.push_back(Err(errno));
    }

    /// The peer sends bytes; chance decides how they are cut.
    pub fn deliver(&mut self, fd: RawFd, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.peer(fd).incoming.push_back(bytes.to_vec());
        }
    }

    /// The peer sends bytes that arrive in exactly these pieces, as far as buffers are large enough
    /// and [`Adversity::short`] is 0.
    pub fn deliver_in_pieces(&mut self, fd: RawFd, pieces: &[&[u8]]) {
        for piece in pieces {
            self.deliver(fd, piece);
        }
    }

    /// The peer ends its stream; what it sent before is received first.
    pub fn close_peer(&mut self, fd: RawFd) {
        self.peer(fd).incoming_end = Some(Ok(()));
    }

    /// As [`FakeIo::close_peer`], but the stream ends with an error.
    pub fn fail_recv(&mut self, fd: RawFd, errno: Errno) {
        self.peer(fd).incoming_end = Some(Err(errno));
    }

    /// How many more bytes the peer takes. Sockets start without bound; at 0 writes wait.
    pub fn set_room(&mut self, fd: RawFd, bytes: usize) {
        self.peer(fd).room = bytes;
    }

    /// The next writes move exactly as many bytes, or what there is if that is less.
    pub fn script_writes(&mut self, fd: RawFd, counts: &[usize]) {
        assert!(counts.iter().all(|&count| count > 0), "a write of nothing");
        self.peer(fd).write_counts.extend(counts);
    }

    /// This and all later writes fail.
    pub fn fail_write(&mut self, fd: RawFd, errno: Errno) {
        self.peer(fd).write_error = Some(errno);
    }

    /// Time goes by.
    pub fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// A watched descriptor becomes readable.
    pub fn signal(&mut self, fd: RawFd) {
        self.peer(fd).signals += 1;
    }

    /// Another ring rings.
    pub fn push_doorbell(&mut self, token: Token) {
        assert_eq!(token.kind, Kind::Doorbell);
        self.complete(token, None, Ok(0), false);
    }

    /// What another ring's loop does at once when it is rung.
    pub fn when_rung(&mut self, act: impl FnMut() + 'static) {
        self.when_rung = Some(Box::new(act));
    }

    /// Looks at the bytes of each write when it is asked for.
    pub fn when_writing(&mut self, look: impl FnMut(&[u8]) + 'static) {
        self.when_writing = Some(Box::new(look));
    }

    // ---- what the test looks at

    /// Everything written to a descriptor so far, also after it was closed.
    pub fn written(&self, fd: RawFd) -> Vec<u8> {
        self.sockets[&fd].written.clone()
    }

    /// As [`FakeIo::written`], and forgets it.
    pub fn take_written(&mut self, fd: RawFd) -> Vec<u8> {
        std::mem::take(&mut self.peer(fd).written)
    }

    pub fn is_open(&self, fd: RawFd) -> bool {
        self.sockets[&fd].open
    }

    /// Whether the loop said that it will write no more.
    pub fn is_shut_down(&self, fd: RawFd) -> bool {
        self.sockets[&fd].shut_down
    }

    /// Whether an operation of this kind is in flight on the descriptor.
    pub fn is_armed(&self, fd: RawFd, kind: Kind) -> bool {
        self.find(fd, kind).is_some()
    }

    /// Bytes delivered and not received yet.
    pub fn unread(&self, fd: RawFd) -> usize {
        self.sockets[&fd].incoming.iter().map(Vec::len).sum()
    }

    /// Doorbells rung at other rings since the last call, with those rings' descriptors.
    pub fn take_doorbells(&mut self) -> Vec<(RawFd, Token)> {
        std::mem::take(&mut self.doorbells_rung)
    }

    /// How the loop asked to sleep in its last turn.
    pub fn last_wait(&self) -> Option<Wait> {
        self.last_wait
    }

    /// Whether a turn would have nothing to report: what a test runs its loop until.
    pub fn is_idle(&self) -> bool {
        self.due.is_empty() && (0..self.in_flight.len()).all(|index| !self.is_ready(index))
    }

    // ---- inside

    /// As the test's side sees it: a peer may well act on a connection the loop has closed.
    fn peer(&mut self, fd: RawFd) -> &mut Socket {
        self.sockets.get_mut(&fd).expect("an unknown descriptor")
    }

    fn socket(&mut self, fd: RawFd) -> &mut Socket {
        match self.sockets.get_mut(&fd) {
            Some(socket) if socket.open => socket,
            Some(_) => panic!("descriptor {fd} is closed"),
            None => panic!("descriptor {fd} does not exist"),
        }
    }

    fn find(&self, fd: RawFd, kind: Kind) -> Option<usize> {
        self.in_flight
            .iter()
            .position(|operation| operation.fd == fd && operation.token.kind == kind)
    }

    fn start(&mut self, token: Token, kind: Kind, fd: RawFd, segments: &[Segment]) {
        assert_eq!(token.kind, kind);
        let _ = token.pack(); // checks the generation
        self.socket(fd);
        assert!(
            self.busy(fd, |busy| busy == kind).is_none(),
            "a second {kind:?} in flight on descriptor {fd}"
        );
        assert!(
            self.in_flight.iter().all(|other| other.token != token),
            "a second operation in flight as {token:?}"
        );
        let snapshot = self.read(segments);
        self.in_flight.push(Operation {
            token,
            fd,
            segments: segments.to_vec(),
            snapshot,
        });
    }

    fn read(&self, segments: &[Segment]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for segment in segments {
            match segment {
                Segment::Region { offset, len } => bytes.extend(
                    self.region
                        .copy_as_kernel(*offset, *len)
                        .expect("a process may read its own memory"),
                ),
                Segment::Shared(shared) => bytes.extend_from_slice(shared),
            }
        }
        bytes
    }

    fn complete(
        &mut self,
        token: Token,
        fd: Option<RawFd>,
        result: Result<u32, Errno>,
        more: bool,
    ) {
        let completion = Completion {
            token,
            result,
            buf: None,
            more,
        };
        self.post(fd, completion);
    }

    fn post(&mut self, fd: Option<RawFd>, completion: Completion) {
        let due = self.due.entry(completion.token.pack()).or_default();
        due.push_back((fd, completion));
    }

    /// An operation on the descriptor whose end the loop has not been told of.
    fn busy(&self, fd: RawFd, wanted: impl Fn(Kind) -> bool) -> Option<Token> {
        let in_flight = self.in_flight.iter().map(|o| (Some(o.fd), o.token));
        let due = self.due.values().flatten().map(|(fd, c)| (*fd, c.token));
        in_flight
            .chain(due)
            .find(|&(on, token)| on == Some(fd) && wanted(token.kind))
            .map(|(_, token)| token)
    }

    /// Whether the operation could make progress now.
    fn is_ready(&self, index: usize) -> bool {
        let operation = &self.in_flight[index];
        let socket = &self.sockets[&operation.fd];
        match operation.token.kind {
            Kind::Accept => !socket.accepted.is_empty(),
            // As in the kernel, a recv looks for a buffer before it looks for data.
            Kind::Recv => {
                self.buffers.free() == 0
                    || !socket.incoming.is_empty()
                    || socket.incoming_end.is_some()
            }
            Kind::Write => {
                socket.room > 0 || socket.write_error.is_some() || operation.snapshot.is_empty()
            }
            Kind::Watch => socket.signals > 0,
            other => unreachable!("{other:?} is never in flight"),
        }
    }

    /// Lets one ready operation make progress. Returns whether it stays armed.
    fn progress(&mut self, index: usize) -> bool {
        let (token, fd) = (self.in_flight[index].token, self.in_flight[index].fd);
        match token.kind {
            Kind::Accept => {
                let accepted = self.socket(fd).accepted.pop_front().expect("ready");
                self.complete(
                    token,
                    Some(fd),
                    accepted.map(|fd| fd as u32),
                    accepted.is_ok(),
                );
                accepted.is_ok()
            }
            Kind::Watch => {
                // Several signals before a look are one, as with an eventfd.
                self.socket(fd).signals = 0;
                self.complete(token, Some(fd), Ok(libc::POLLIN as u32), true);
                true
            }
            Kind::Recv => {
                let (result, buf) = self.receive(fd);
                let completion = Completion {
                    token,
                    result,
                    buf,
                    more: false,
                };
                self.post(Some(fd), completion);
                false
            }
            Kind::Write => {
                let result = self.transmit(index);
                self.complete(token, Some(fd), result, false);
                false
            }
            other => unreachable!("{other:?} is never in flight"),
        }
    }

    fn receive(&mut self, fd: RawFd) -> (Result<u32, Errno>, Option<RecvBuf>) {
        if self.buffers.free() == 0 {
            return (Err(Errno::NOBUFS), None);
        }
        let short = self.random.chance(self.adversity.short);
        let cut = self.random.next();
        let buf_bytes = self.buffers.buf_bytes;
        let socket = self.socket(fd);
        let Some(mut piece) = socket.incoming.pop_front() else {
            return match socket.incoming_end.expect("ready") {
                Ok(()) => (Ok(0), None),
                Err(errno) => (Err(errno), None),
            };
        };
        let mut len = piece.len().min(buf_bytes);
        if short {
            len = 1 + (cut % len as u64) as usize;
        }
        let rest = piece.split_off(len);
        if !rest.is_empty() {
            socket.incoming.push_front(rest);
        }
        (Ok(len as u32), Some(self.buffers.lend(piece)))
    }

    fn transmit(&mut self, index: usize) -> Result<u32, Errno> {
        self.check_unchanged(index);
        let short = self.random.chance(self.adversity.short);
        let cut = self.random.next();
        let operation = &mut self.in_flight[index];
        let bytes = std::mem::take(&mut operation.snapshot);
        operation.segments.clear();
        let fd = operation.fd;
        let socket = self.socket(fd);
        if let Some(errno) = socket.write_error {
            return Err(errno);
        }
        let mut count = bytes.len().min(socket.room);
        if let Some(scripted) = socket.write_counts.pop_front() {
            count = count.min(scripted);
        } else if short && count > 0 {
            count = 1 + (cut % count as u64) as usize;
        }
        if socket.room != usize::MAX {
            socket.room -= count;
        }
        socket.written.extend_from_slice(&bytes[..count]);
        Ok(count as u32)
    }

    fn check_unchanged(&self, index: usize) {
        let operation = &self.in_flight[index];
        assert!(
            self.read(&operation.segments) == operation.snapshot,
            "bytes changed while {:?} was writing them",
            operation.token
        );
    }
}

impl Io for FakeIo {
    fn accept(&mut self, token: Token, listener: RawFd) {
        self.start(token, Kind::Accept, listener, &[]);
    }

    fn recv(&mut self, token: Token, fd: RawFd) {
        self.start(token, Kind::Recv, fd, &[]);
    }

    fn write(&mut self, token: Token, fd: RawFd, segments: &[Segment]) {
        assert!(!segments.is_empty(), "a write of nothing");
        assert!(segments.len() <= super::SEGMENTS_MAX, "too many segments");
        self.start(token, Kind::Write, fd, segments);
        if let (Some(look), Some(operation)) = (&mut self.when_writing, self.in_flight.last()) {
            look(&operation.snapshot);
        }
    }

    fn shut_down_writes(&mut self, fd: RawFd) {
        let write = self.busy(fd, |kind| kind == Kind::Write);
        assert_eq!(write, None, "descriptor {fd} shut down under a write");
        let socket = self.socket(fd);
        socket.shut_down = true;
        socket.write_error = Some(Errno::PIPE);
    }

    fn cancel(&mut self, target: Token) {
        let found = self
            .in_flight
            .iter()
            .position(|operation| operation.token == target);
        let result = match found {
            Some(index) => {
                self.check_unchanged(index);
                let fd = self.in_flight.remove(index).fd;
                self.complete(target, Some(fd), Err(Errno::CANCELED), false);
                Ok(0)
            }
            None => Err(Errno::NOENT),
        };
        self.complete(target.with_kind(Kind::Cancel), None, result, false);
    }

    fn close(&mut self, fd: RawFd) {
        self.socket(fd).open = false;
        if let Some(token) = self.busy(fd, |_| true) {
            panic!("descriptor {fd} closed with {token:?} in flight");
        }
    }

    fn ring_doorbell(&mut self, other_ring_fd: RawFd, token: Token) {
        assert_eq!(token.kind, Kind::Doorbell);
        self.doorbells_rung.push((other_ring_fd, token));
        if let Some(act) = &mut self.when_rung {
            act();
        }
    }

    fn watch(&mut self, token: Token, fd: RawFd) {
        self.start(token, Kind::Watch, fd, &[]);
    }

    /// Returns at once, also when nothing is ready: time is the test's. A turn that may wait reports
    /// at least one completion if any is ready, as a real one would.
    fn turn(&mut self, wait: Wait, out: &mut Vec<Completion>) -> io::Result<()> {
        self.last_wait = Some(wait);
        let before = out.len();
        let delay = self.adversity.delay;
        loop {
            let mut index = 0;
            while index < self.in_flight.len() {
                if self.is_ready(index) && !self.random.chance(delay) && !self.progress(index) {
                    self.in_flight.remove(index);
                } else {
                    index += 1;
                }
            }
            // Completions of one operation keep their order, all else is mixed.
            let mixed = delay > 0;
            while !self.due.is_empty() {
                let pick = if mixed {
                    self.random.next() as usize % self.due.len()
                } else {
                    0
                };
                let token = *self.due.keys().nth(pick).expect("below the length");
                let list = self.due.get_mut(&token).expect("its own key");
                out.extend(list.pop_front().map(|(_, completion)| completion));
                if list.is_empty() {
                    self.due.remove(&token);
                }
                if self.random.chance(delay / 4) {
                    break;
                }
            }
            if wait == Wait::No || out.len() > before || self.is_idle() {
                return Ok(());
            }
        }
    }

    fn bytes(&self, buf: &RecvBuf) -> &[u8] {
        self.buffers.bytes(buf)
    }

    fn recycle(&mut self, buf: RecvBuf) {
        self.buffers.recycle(buf);
    }

    fn free_bufs(&self) -> usize {
        self.buffers.free()
    }

    /// The descriptor stands in for the port.
    fn peer_address(&self, fd: RawFd) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from(([127, 0, 0, 1], (fd - FIRST_FD) as u16)))
    }

    fn set_congestion_control(&self, _: RawFd, _: &OsString) -> io::Result<()> {
        Ok(())
    }

    fn fd(&self) -> RawFd {
        RING_FD
    }

    fn now(&self) -> Instant {
        self.now
    }
}

impl Drop for FakeIo {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        // Those in completions nobody has seen are not the loop's to give back.
        let undelivered = self
            .due
            .values()
            .flatten()
            .filter(|(_, completion)| completion.buf.is_some())
            .count();
        let lost = self.buffers.lent.len() - self.buffers.free() - undelivered;
        assert_eq!(lost, 0, "{lost} receive buffers were never recycled");
    }
}

/// Receive buffers as plain vectors: `None` is with the kernel.
struct FakeBuffers {
    lent: Vec<Option<Vec<u8>>>,
    buf_bytes: usize,
}

impl FakeBuffers {
    fn new(count: u16, buf_bytes: u32) -> FakeBuffers {
        FakeBuffers {
            lent: vec![None; usize::from(count)],
            buf_bytes: buf_bytes as usize,
        }
    }

    fn free(&self) -> usize {
        self.lent.iter().filter(|bytes| bytes.is_none()).count()
    }

    fn lend(&mut self, bytes: Vec<u8>) -> RecvBuf {
        let id = self
            .lent
            .iter()
            .position(Option::is_none)
            .expect("one free");
        let len = bytes.len() as u32;
        self.lent[id] = Some(bytes);
        RecvBuf { id: id as u16, len }
    }

    fn bytes(&self, buf: &RecvBuf) -> &[u8] {
        self.lent[usize::from(buf.id)]
            .as_deref()
            .expect("a receive buffer that is on loan")
    }

    fn recycle(&mut self, buf: RecvBuf) {
        let bytes = self.lent[usize::from(buf.id)].take();
        assert!(bytes.is_some(), "a receive buffer recycled twice");
    }
}

/// SplitMix64: enough chance for tests, and the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// True in `out_of_256` of 256 cases.
    fn chance(&mut self, out_of_256: u8) -> bool {
        (self.next() >> 56) < u64::from(out_of_256)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::region::RegionMut;
    use bytes::Bytes;

    fn fake(seed: u64) -> (FakeIo, RegionMut) {
        let region = RegionMut::map(65536).unwrap();
        (FakeIo::new(seed, region.keep_alive()), region)
    }

    fn token(kind: Kind, slot: u32) -> Token {
        Token::new(kind, slot, 1)
    }

    /// An echo server of the simplest kind, through accept, short reads and writes, to the close.
    #[test]
    fn echo_for_many_seeds() {
        for seed in 0..200 {
            let (mut io, mut region) = fake(seed);
            let listener = io.open();
            io.accept(token(Kind::Accept, u32::MAX), listener);
            let fds: Vec<RawFd> = (0..3).map(|_| io.push_accept(listener)).collect();
            let sent: Vec<Vec<u8>> = (0..3u8)
                .map(|who| {
                    (0..500u32)
                        .map(|i| (i as u8).wrapping_mul(who + 3))
                        .collect()
                })
                .collect();
            for (fd, bytes) in fds.iter().zip(&sent) {
                for piece in bytes.chunks(77) {
                    io.deliver(*fd, piece);
                }
                io.close_peer(*fd);
            }
            let mut pending_bytes: BTreeMap<u32, (usize, usize)> = BTreeMap::new();
            let mut out = Vec::new();
            while !io.is_idle() {
                io.turn(Wait::Forever, &mut out).unwrap();
                for completion in out.drain(..) {
                    let slot = completion.token.slot;
                    let fd = FIRST_FD + slot as RawFd;
                    let base = slot as usize % 8 * 4096;
                    match completion.token.kind {
                        Kind::Accept => {
                            assert!(completion.more);
                            let fd = completion.result.unwrap();
                            let slot = fd - FIRST_FD as u32;
                            io.recv(token(Kind::Recv, slot), fd as RawFd);
                        }
                        Kind::Recv => match completion.buf {
                            Some(buf) => {
                                let len = buf.len();
                                region.as_mut()[base..base + len].copy_from_slice(io.bytes(&buf));
                                io.recycle(buf);
                                pending_bytes.insert(slot, (base, len));
                            }
                            None => io.close(fd),
                        },
                        Kind::Write => {
                            let done = completion.result.unwrap() as usize;
                            let (start, len) = pending_bytes.remove(&slot).unwrap();
                            if done < len {
                                pending_bytes.insert(slot, (start + done, len - done));
                            } else {
                                io.recv(token(Kind::Recv, slot), fd);
                            }
                        }
                        other => panic!("{other:?}"),
                    }
                    if let Some(&(start, len)) = pending_bytes.get(&slot) {
                        let segment = Segment::Region {
                            offset: start as u32,
                            len: len as u32,
                        };
                        io.write(token(Kind::Write, slot), fd, &[segment]);
                    }
                }
            }
            for (fd, bytes) in fds.iter().zip(&sent) {
                assert!(&io.written(*fd) == bytes, "seed {seed}");
                assert!(!io.is_open(*fd), "seed {seed}");
            }
        }
    }

    #[test]
    fn writes_follow_their_script_and_wait_for_room() {
        let (mut io, _region) = fake(1);
        io.set_adversity(Adversity::NONE);
        let fd = io.open();
        let segments = [
            Segment::Shared(Bytes::from_static(b"hello ")),
            Segment::Shared(Bytes::from_static(b"world")),
        ];
        let mut out = Vec::new();
        io.script_writes(fd, &[8]);
        io.write(token(Kind::Write, 0), fd, &segments);
        io.turn(Wait::No, &mut out).unwrap();
        assert_eq!(out.pop().unwrap().result, Ok(8));
        assert_eq!(io.written(fd), b"hello wo");
        io.set_room(fd, 0);
        io.write(token(Kind::Write, 0), fd, &segments);
        io.turn(Wait::Forever, &mut out).unwrap();
        assert!(out.is_empty() && io.is_armed(fd, Kind::Write));
        io.cancel(token(Kind::Write, 0));
        io.turn(Wait::No, &mut out).unwrap();
        assert_eq!(out.len(), 2);
        assert_eq!(out[0].result, Err(Errno::CANCELED));
        io.fail_write(fd, Errno::PIPE);
        io.write(token(Kind::Write, 0), fd, &segments);
        io.turn(Wait::No, &mut out).unwrap();
        assert_eq!(out.pop().unwrap().result, Err(Errno::PIPE));
    }

    #[test]
    fn no_buffers_no_recv() {
        let region = RegionMut::map(4096).unwrap();
        let mut io = FakeIo::with_buffers(3, region.keep_alive(), 1, 16);
        io.set_adversity(Adversity::NONE);
        let (one, two) = (io.open(), io.open());
        io.deliver(one, b"1");
        io.recv(token(Kind::Recv, 1), one);
        io.recv(token(Kind::Recv, 2), two);
        let mut out = Vec::new();
        io.turn(Wait::No, &mut out).unwrap();
        assert_eq!(out[1].result, Err(Errno::NOBUFS));
        io.recycle(out.remove(0).buf.unwrap());
        assert_eq!(io.free_bufs(), 1);
    }

    #[test]
    #[should_panic(expected = "bytes changed while")]
    fn reusing_bytes_in_flight_is_caught() {
        let (mut io, mut region) = fake(1);
        let fd = io.open();
        io.set_room(fd, 0);
        io.write(
            token(Kind::Write, 0),
            fd,
            &[Segment::Region { offset: 0, len: 9 }],
        );
        io.turn(Wait::No, &mut Vec::new()).unwrap();
        region.as_mut()[4] = 1;
        io.set_room(fd, 100);
        io.turn(Wait::Forever, &mut Vec::new()).unwrap();
    }

    #[test]
    #[should_panic(expected = "is closed")]
    fn operations_on_closed_descriptors_are_caught() {
        let (mut io, _region) = fake(1);
        let fd = io.open();
        io.close(fd);
        io.recv(token(Kind::Recv, 0), fd);
    }

    #[test]
    #[should_panic(expected = "in flight")]
    fn closing_under_an_operation_is_caught() {
        let (mut io, _region) = fake(1);
        let fd = io.open();
        io.recv(token(Kind::Recv, 0), fd);
        io.close(fd);
    }

    #[test]
    #[should_panic(expected = "a second Recv")]
    fn two_recvs_are_caught() {
        let (mut io, _region) = fake(1);
        let fd = io.open();
        io.recv(token(Kind::Recv, 0), fd);
        io.recv(token(Kind::Recv, 1), fd);
    }

    #[test]
    #[should_panic(expected = "never recycled")]
    fn a_lost_buffer_is_caught() {
        let (mut io, _region) = fake(1);
        let fd = io.open();
        io.deliver(fd, b"x");
        io.recv(token(Kind::Recv, 0), fd);
        let mut out = Vec::new();
        io.turn(Wait::Forever, &mut out).unwrap();
        assert_eq!(out.len(), 1);
    }
}
