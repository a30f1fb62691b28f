//! The real [`Io`]: an io_uring of one thread, its receive buffers, its registered region.
//!
//! Who owns the memory the kernel may touch, and until when:
//!
//! | memory                         | touched by      | owner               | free again             |
//! |--------------------------------|-----------------|---------------------|------------------------|
//! | receive buffers and their ring | recv            | `buffers`           | when the ring is gone  |
//! | region segments                | write           | `region` (an `Arc`) | when the ring is gone  |
//! | iovecs, `Bytes`                | write           | a slot in `operations` | at the completion |
//!
//! All three outlive the ring: see `Drop`.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use bytes::Bytes;
use io_uring::types::{CancelBuilder, Fd, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use super::buffers::ProvidedBuffers;
use super::errno::Errno;
use super::probe::{self, Features, Unusable};
use super::sys::{self, RingName};
use super::token::{Kind, Token};
use super::{Completion, Io, RecvBuf, SEGMENTS_MAX, Segment, Wait};
use crate::util::region::Region;

/// The only group of provided buffers, and the only registered buffer.
const BUFFER_GROUP: u16 = 0;
const REGION_INDEX: u16 = 0;

/// Most slots of a caller: bounds the table from slots to operations, and no process has more
/// descriptors than this.
const SLOTS_MAX: u32 = 1 << 26;

/// `operation_of_slot` where there is none.
const NONE: u32 = u32::MAX;

/// How long a ring that is dropped waits for the kernel to let go of its memory.
const TEARDOWN_MAX: Duration = Duration::from_secs(2);

/// What a ring is made of.
#[derive(Clone, Copy, Debug)]
pub struct RingConfig<'a> {
    /// Operations queued before the kernel must be entered. A power of two.
    pub sq_entries: u32,
    /// Completions the kernel keeps in shared memory; more are kept, at a cost. Well above
    /// `sq_entries`.
    pub cq_entries: u32,
    /// Receive buffers, a power of two.
    pub recv_bufs: u16,
    pub recv_buf_bytes: u32,
    /// Where [`Segment::Region`] points. Pinned in memory by the ring.
    pub region: &'a Region,
}

impl<'a> RingConfig<'a> {
    pub fn new(region: &'a Region) -> RingConfig<'a> {
        RingConfig {
            sq_entries: 1024,
            cq_entries: 8192,
            recv_bufs: 64,
            recv_buf_bytes: 65536,
            region,
        }
    }
}

/// An io_uring. Belongs to the thread that made it, which is why it is not `Send`.
pub struct Ring {
    /// Dropped by hand, before `memory`.
    ring: ManuallyDrop<IoUring>,
    /// What the kernel may touch. Dropped by hand, after `ring`.
    memory: ManuallyDrop<Memory>,
    name: RingName,
    enter_flags: u32,
    features: Features,
    /// Operations handed in that will complete and have not: all but closes and doorbells, which
    /// complete on failure only and touch no memory of ours.
    in_flight: usize,
    /// Completions reaped while making room in the submission queue.
    early: VecDeque<Completion>,
    _not_send: PhantomData<*const ()>,
}

struct Memory {
    buffers: ProvidedBuffers,
    region: Region,
    operations: Operations,
}

impl Ring {
    /// To be called in the thread that will use the ring.
    pub fn new(config: &RingConfig<'_>) -> Result<Ring, Unusable> {
        let (ring, features) = probe::build(config.sq_entries, config.cq_entries)?;
        let buffers = ProvidedBuffers::new(config.recv_bufs, config.recv_buf_bytes)
            .map_err(|error| Unusable::now("mmap of receive buffers", &error))?;
        // SAFETY: the address is that of `count` entries in a mapping owned by `buffers`, which
        // `Ring::drop` frees only after the ring is closed.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(
                buffers.ring_address(),
                buffers.count(),
                BUFFER_GROUP,
                0,
            )
        }
        .map_err(|error| Unusable::now("io_uring_register (buffer ring)", &error))?;
        let fd = ring.as_raw_fd();
        // Worth nanoseconds only, so a failure (a kernel without it, a full table) is no matter.
        let name = match sys::register_ring(fd) {
            Ok(index) => RingName::Index(index),
            Err(_) => RingName::Fd(fd),
        };
        Ok(Ring {
            ring: ManuallyDrop::new(ring),
            memory: ManuallyDrop::new(Memory {
                buffers,
                region: config.region.clone(),
                operations: Operations::default(),
            }),
            name,
            enter_flags: if features.no_iowait {
                sys::ENTER_NO_IOWAIT
            } else {
                0
            },
            features,
            in_flight: 0,
            early: VecDeque::new(),
            _not_send: PhantomData,
        })
    }

    /// Pins the region and makes it registered buffer 0. Writes work without it, a little slower. To be called once all rings of
    /// the process are there: what may be locked is one budget for all, a ring must have its part of it, and a region need not.
    pub fn register_region(&mut self) -> io::Result<()> {
        let region = &self.memory.region;
        let whole = libc::iovec {
            iov_base: region.base().cast(),
            iov_len: region.len(),
        };
        // SAFETY: the kernel pins the pages of a mapping that exists now. The ring keeps a `Region`, so
        // the range is not unmapped and reused for something else while the ring lives.
        unsafe { self.ring.submitter().register_buffers(&[whole]) }?;
        self.features.registered_region = true;
        Ok(())
    }

    /// Makes writes go as they would on a lesser kernel or under a lower limit.
    #[cfg(test)]
    pub(super) fn pretend(&mut self, registered_region: bool, writev_fixed: bool) {
        self.features.registered_region &= registered_region;
        self.features.writev_fixed &= writev_fixed;
    }

    /// Queues an entry, entering the kernel first when the queue is full.
    ///
    /// # Safety
    ///
    /// Memory the entry names must be part of `self.memory` and stay there until the entry's
    /// completion was reaped.
    unsafe fn push(&mut self, token: Token, entry: squeue::Entry) {
        let entry = entry.user_data(token.pack());
        // SAFETY: the caller's promise.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.make_room();
        }
        if counts(token.kind) {
            self.in_flight += 1;
        }
    }

    /// Hands the full queue to the kernel. It may be out of memory for a moment, or refuse more
    /// while completions wait: then reaping some is what helps.
    fn make_room(&mut self) {
        let queued = self.ring.submission().len() as u32;
        if let Err(error) = self.enter(queued, 0, 0, None) {
            // The entries are ours and so is the ring: any other error is our own bug.
            panic!("io_uring_enter refused a full submission queue: {error}");
        }
        if self.ring.submission().is_full() {
            if let Err(error) = self.enter(0, 0, sys::ENTER_GETEVENTS, None) {
                panic!("io_uring_enter cannot report completions: {error}");
            }
            let mut early = Vec::new();
            self.reap(&mut early);
            self.early.extend(early);
            std::thread::yield_now();
        }
    }

    /// Enters the kernel; what passes by itself is not an error.
    fn enter(
        &mut self,
        to_submit: u32,
        min_complete: u32,
        flags: u32,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        let flags = flags | self.enter_flags;
        // SAFETY: entries get into the queue through `push` only, whose contract this is.
        let taken = unsafe { sys::enter(self.name, to_submit, min_complete, flags, timeout) };
        match taken {
            Ok(_) => Ok(()),
            Err(error) => match Errno::of(&error).0 {
                // The time is up, or a signal came.
                libc::ETIME | libc::EINTR => Ok(()),
                // Out of memory for requests, or completions are to be reaped first. What was not
                // taken stays queued for the next entry.
                libc::EAGAIN | libc::EBUSY => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Moves all completions from shared memory into `out`.
    fn reap(&mut self, out: &mut Vec<Completion>) {
        let mut queue = self.ring.completion();
        out.reserve(queue.len());
        for entry in &mut queue {
            let token = Token::unpack(entry.user_data())
                .expect("only tokens are put into user_data, by this and by sibling rings");
            let more = cqueue::more(entry.flags());
            if counts(token.kind) && !more {
                self.in_flight -= 1;
            }
            let result = match entry.result() {
                moved @ 0.. => Ok(moved as u32),
                errno => Err(Errno(-errno)),
            };
            if token.kind == Kind::Write {
                self.memory.operations.finish(token);
            }
            let buf = cqueue::buffer_select(entry.flags()).and_then(|id| {
                let buf = self.memory.buffers.lend(id, result.unwrap_or(0));
                if buf.len > 0 {
                    Some(buf)
                } else {
                    // An end of stream or an error needs no buffer; the caller never sees it.
                    self.memory.buffers.recycle(buf);
                    None
                }
            });
            out.push(Completion {
                token,
                result,
                buf,
                more,
            });
        }
    }

    /// Ends everything in flight and waits for it. Whether the kernel has let go of all memory.
    fn wind_down(&mut self) -> bool {
        let deadline = Instant::now() + TEARDOWN_MAX;
        let mut completions = Vec::from(std::mem::take(&mut self.early));
        let mut quiet = false;
        while !quiet && Instant::now() < deadline {
            // What is still queued goes first: only what the kernel knows can be cancelled.
            let queued = self.ring.submission().len() as u32;
            if self.enter(queued, 0, sys::ENTER_GETEVENTS, None).is_err() {
                break;
            }
            // Fails with ENOENT when there is nothing to cancel, which is as good.
            let _ = self.ring.submitter().register_sync_cancel(
                Some(Timespec::new().nsec(100_000_000)),
                CancelBuilder::any(),
            );
            self.reap(&mut completions);
            quiet = self.in_flight == 0 && self.ring.submission().is_empty();
            if !quiet {
                let slice = Some(Duration::from_millis(10));
                if self.enter(0, 1, sys::ENTER_GETEVENTS, slice).is_err() {
                    break;
                }
                self.reap(&mut completions);
                quiet = self.in_flight == 0 && self.ring.submission().is_empty();
            }
        }
        for completion in completions {
            if let (Kind::Accept, Ok(fd)) = (completion.token.kind, completion.result) {
                // SAFETY: the descriptor was made for us by an accept whose completion nobody has
                // seen, so nobody else uses or closes it.
                unsafe { libc::close(fd as RawFd) };
            }
        }
        quiet
    }
}

/// Whether operations of this kind complete here exactly once per request, success or not.
fn counts(kind: Kind) -> bool {
    !matches!(kind, Kind::Close | Kind::Doorbell | Kind::DoorbellSent)
}

impl Io for Ring {
    fn accept(&mut self, token: Token, listener: RawFd) {
        assert_eq!(token.kind, Kind::Accept);
        let entry = opcode::AcceptMulti::new(Fd(listener))
            .flags(libc::SOCK_CLOEXEC)
            .build();
        // SAFETY: names no memory.
        unsafe { self.push(token, entry) };
    }

    fn recv(&mut self, token: Token, fd: RawFd) {
        assert_eq!(token.kind, Kind::Recv);
        // Length 0 means the whole of the buffer that is picked.
        let entry = opcode::Recv::new(Fd(fd), std::ptr::null_mut(), 0)
            .buf_group(BUFFER_GROUP)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT);
        // SAFETY: the kernel writes into a provided buffer, owned by `memory.buffers`, which has no
        // reference to it until the completion lends it out.
        unsafe { self.push(token, entry) };
    }

    fn write(&mut self, token: Token, fd: RawFd, segments: &[Segment]) {
        assert_eq!(token.kind, Kind::Write);
        assert!(!segments.is_empty(), "a write of nothing");
        assert!(
            segments.len() <= SEGMENTS_MAX,
            "more segments than a vector may have"
        );
        let registered = self.features.registered_region;
        let fd = Fd(fd);
        let memory = &mut *self.memory;
        // A slot even where there is nothing to keep: that no second write can be in flight under
        // the same token is what lets a completion free the right memory.
        let operation = memory.operations.start(token);
        if let [Segment::Region { offset, len }] = *segments {
            let start = memory.region.range(offset, len);
            let entry = if registered {
                opcode::WriteFixed::new(fd, start, len, REGION_INDEX).build()
            } else {
                opcode::Write::new(fd, start, len).build()
            };
            // SAFETY: the range lies inside `memory.region`, which is kept until the ring is gone.
            unsafe { self.push(token, entry) };
            return;
        }
        let mut all_in_region = true;
        for segment in segments {
            let (start, len) = match segment {
                Segment::Region { offset, len } => {
                    (memory.region.range(*offset, *len), *len as usize)
                }
                Segment::Shared(bytes) => {
                    all_in_region = false;
                    operation.shared.push(bytes.clone());
                    (bytes.as_ptr(), bytes.len())
                }
            };
            operation.vector.push(libc::iovec {
                iov_base: start.cast_mut().cast(),
                iov_len: len,
            });
        }
        let (vector, count) = (operation.vector.as_ptr(), operation.vector.len() as u32);
        let entry = if all_in_region && registered && self.features.writev_fixed {
            opcode::WritevFixed::new(fd, vector, count, REGION_INDEX).build()
        } else {
            opcode::Writev::new(fd, vector, count).build()
        };
        // SAFETY: the vector is on the heap of the operation's slot, which nobody touches before
        // `finish` at the completion. It names ranges of `memory.region`, kept until the ring is
        // gone, and bytes of which the slot holds clones: immutable, and in place while a clone is.
        unsafe { self.push(token, entry) };
    }

    fn cancel(&mut self, target: Token) {
        let entry = opcode::AsyncCancel::new(target.pack()).build();
        // SAFETY: names no memory.
        unsafe { self.push(target.with_kind(Kind::Cancel), entry) };
    }

    fn close(&mut self, fd: RawFd) {
        assert!(fd >= 0, "not a descriptor");
        let entry = opcode::Close::new(Fd(fd))
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS);
        // SAFETY: names no memory.
        unsafe { self.push(Token::new(Kind::Close, fd as u32, 0), entry) };
    }

    fn ring_doorbell(&mut self, other_ring_fd: RawFd, token: Token) {
        assert_eq!(token.kind, Kind::Doorbell);
        let entry = opcode::MsgRingData::new(Fd(other_ring_fd), 0, token.pack(), None)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS);
        // SAFETY: names no memory.
        unsafe { self.push(token.with_kind(Kind::DoorbellSent), entry) };
    }

    fn watch(&mut self, token: Token, fd: RawFd) {
        assert_eq!(token.kind, Kind::Watch);
        let entry = opcode::PollAdd::new(Fd(fd), libc::POLLIN as u32)
            .multi(true)
            .build();
        // SAFETY: names no memory.
        unsafe { self.push(token, entry) };
    }

    fn turn(&mut self, wait: Wait, out: &mut Vec<Completion>) -> io::Result<()> {
        // What is there already must not sleep until something else happens.
        let wait = if self.early.is_empty() {
            wait
        } else {
            Wait::No
        };
        out.extend(self.early.drain(..));
        let (queued, due) = {
            let queue = self.ring.submission();
            (queue.len() as u32, queue.taskrun() || queue.cq_overflow())
        };
        let (min_complete, timeout) = match wait {
            Wait::No => (0, None),
            Wait::Until(timeout) => (1, Some(timeout)),
            Wait::Forever => (1, None),
        };
        // Completions are made only when this thread enters: a turn that neither waits nor has
        // anything to hand in enters only when the kernel says that there is work.
        if queued > 0 || due || min_complete > 0 {
            self.enter(queued, min_complete, sys::ENTER_GETEVENTS, timeout)?;
        }
        self.reap(out);
        // Completions beyond the queue are kept by the kernel and moved up by an entry.
        while self.ring.submission().cq_overflow() {
            self.enter(0, 0, sys::ENTER_GETEVENTS, None)?;
            self.reap(out);
        }
        Ok(())
    }

    fn bytes(&self, buf: &RecvBuf) -> &[u8] {
        self.memory.buffers.bytes(buf)
    }

    fn recycle(&mut self, buf: RecvBuf) {
        self.memory.buffers.recycle(buf);
    }

    fn free_bufs(&self) -> usize {
        self.memory.buffers.free()
    }

    fn peer_address(&self, fd: RawFd) -> io::Result<SocketAddr> {
        use nix::sys::socket::{SockaddrStorage, getpeername};
        let address: SockaddrStorage = getpeername(fd)?;
        if let Some(v4) = address.as_sockaddr_in() {
            return Ok(SocketAddr::new(v4.ip().into(), v4.port()));
        }
        match address.as_sockaddr_in6() {
            Some(v6) => Ok(SocketAddr::new(v6.ip().to_canonical(), v6.port())),
            None => Err(io::ErrorKind::AddrNotAvailable.into()),
        }
    }

    fn shut_down_writes(&mut self, fd: RawFd) {
        // By a system call of its own: the ring would give it to a thread of the kernel's.
        let _ = nix::sys::socket::shutdown(fd, nix::sys::socket::Shutdown::Write);
    }

    fn set_congestion_control(&self, fd: RawFd, name: &OsString) -> io::Result<()> {
        use nix::sys::socket::{setsockopt, sockopt::TcpCongestion};
        // SAFETY: the descriptor is open for as long as this call: whoever accepted it hands it in, and closes it later, through `close`.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        Ok(setsockopt(&fd, TcpCongestion, name)?)
    }

    fn fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    fn now(&self) -> Instant {
        Instant::now()
    }
}

impl Drop for Ring {
    /// Ends what is in flight, closes the ring, and only then frees the memory.
    ///
    /// Closing alone is not enough: the kernel takes a ring apart in the background, so a recv that
    /// is armed when its buffers are unmapped can still write, into whatever the allocator has put
    /// there since. Nor is the order of struct fields: it would be right by accident until
    /// somebody sorts them. Should the kernel keep something past the time allowed (an operation
    /// on a device or a file can), its memory is leaked: a process that drops a ring is about to
    /// end anyway, and a leak corrupts nothing.
    fn drop(&mut self) {
        let quiet = self.wind_down();
        if let RingName::Index(index) = self.name {
            // The entry in the thread's table holds the ring open even when its descriptor is gone.
            let _ = sys::unregister_ring(self.ring.as_raw_fd(), index);
        }
        // SAFETY: this is the only place that drops either field, and nothing uses them after.
        unsafe {
            ManuallyDrop::drop(&mut self.ring);
            if quiet {
                ManuallyDrop::drop(&mut self.memory);
            }
        }
        if !quiet {
            log::warn!("a ring was closed with operations in flight; their memory is not reused");
        }
    }
}

/// Slots for operations with memory of their own, found by the caller's slot.
#[derive(Default)]
struct Operations {
    /// Indexed by `Token::slot`; grows to the highest slot that ever needed one.
    operation_of_slot: Vec<u32>,
    operations: Vec<Operation>,
    free: Vec<u32>,
}

struct Operation {
    token: Option<Token>,
    vector: Vec<libc::iovec>,
    shared: Vec<Bytes>,
}

impl Operations {
    fn start(&mut self, token: Token) -> &mut Operation {
        assert!(token.slot < SLOTS_MAX, "slot out of all proportion");
        let slot = token.slot as usize;
        if slot >= self.operation_of_slot.len() {
            self.operation_of_slot.resize(slot + 1, NONE);
        }
        assert_eq!(
            self.operation_of_slot[slot], NONE,
            "a second write in flight on slot {slot}"
        );
        let index = self.free.pop().unwrap_or_else(|| {
            self.operations.push(Operation {
                token: None,
                vector: Vec::new(),
                shared: Vec::new(),
            });
            (self.operations.len() - 1) as u32
        });
        self.operation_of_slot[slot] = index;
        let operation = &mut self.operations[index as usize];
        assert!(operation.token.is_none(), "a free operation is in flight");
        operation.token = Some(token);
        operation
    }

    /// Frees the operation of a completed write.
    fn finish(&mut self, token: Token) {
        let index = std::mem::replace(&mut self.operation_of_slot[token.slot as usize], NONE);
        let operation = &mut self.operations[index as usize];
        assert_eq!(operation.token, Some(token), "completion of another write");
        operation.token = None;
        operation.vector.clear();
        operation.shared.clear();
        self.free.push(index);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::IntoRawFd;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use std::thread;

    use super::*;
    use crate::util::region::RegionMut;

    const REGION_BYTES: usize = 4 << 20;

    fn ring_with(change: impl FnOnce(&mut RingConfig<'_>)) -> (Ring, RegionMut) {
        let mut region = RegionMut::map(REGION_BYTES).unwrap();
        for (index, byte) in region.as_mut().iter_mut().enumerate() {
            *byte = pattern(index);
        }
        let keep_alive = region.keep_alive();
        let mut config = RingConfig::new(&keep_alive);
        change(&mut config);
        let mut ring = Ring::new(&config).unwrap_or_else(|unusable| panic!("{unusable}"));
        // Under a low RLIMIT_MEMLOCK it cannot; the ring works all the same.
        let registered = ring.register_region().is_ok();
        assert_eq!(ring.features.registered_region, registered);
        (ring, region)
    }

    fn pattern(index: usize) -> u8 {
        (index % 251) as u8 ^ (index / 4096) as u8
    }

    fn token(kind: Kind, slot: u32) -> Token {
        Token::new(kind, slot, 7)
    }

    /// Turns until something completes and takes it out of `pending`.
    fn next(ring: &mut Ring, pending: &mut Vec<Completion>) -> Completion {
        let deadline = Instant::now() + Duration::from_secs(10);
        while pending.is_empty() {
            assert!(Instant::now() < deadline, "nothing completes");
            ring.turn(Wait::Until(Duration::from_secs(1)), pending)
                .unwrap();
        }
        pending.remove(0)
    }

    fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (one, listener.accept().unwrap().0)
    }

    #[test]
    fn accept_stays_armed() {
        let (mut ring, _region) = ring_with(|_| ());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        ring.accept(token(Kind::Accept, 3), listener.as_raw_fd());
        let mut pending = Vec::new();
        for _ in 0..20 {
            let mut client = TcpStream::connect(address).unwrap();
            let accepted = next(&mut ring, &mut pending);
            assert_eq!(accepted.token, token(Kind::Accept, 3));
            assert!(accepted.more);
            let fd = accepted.result.unwrap() as RawFd;
            ring.close(fd);
            ring.turn(Wait::No, &mut pending).unwrap();
            assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
        }
        ring.cancel(token(Kind::Accept, 3));
        let mut ended = [next(&mut ring, &mut pending), next(&mut ring, &mut pending)];
        ended.sort_by_key(|completion| completion.token.kind as u8);
        assert_eq!(ended[0].token.kind, Kind::Accept);
        assert_eq!(ended[0].result, Err(Errno::CANCELED));
        assert!(!ended[0].more);
        assert_eq!(ended[1].token, token(Kind::Cancel, 3));
        assert!(ended[1].result.is_ok());
        assert_eq!(ring.in_flight, 0);
    }

    #[test]
    fn recv_and_recycle_for_many_rounds() {
        let (mut ring, _region) = ring_with(|config| {
            config.recv_bufs = 4;
            config.recv_buf_bytes = 512;
        });
        let (mut peer, socket) = UnixStream::pair().unwrap();
        let mut pending = Vec::new();
        let (mut sent, mut received) = (0usize, 0usize);
        for round in 0..5000 {
            let message: Vec<u8> = (0..1 + round % 700).map(|i| pattern(sent + i)).collect();
            peer.write_all(&message).unwrap();
            sent += message.len();
            while received < sent {
                ring.recv(token(Kind::Recv, 0), socket.as_raw_fd());
                let completion = next(&mut ring, &mut pending);
                let buf = completion.buf.unwrap();
                assert_eq!(completion.result, Ok(buf.len() as u32));
                for &byte in ring.bytes(&buf) {
                    assert_eq!(byte, pattern(received));
                    received += 1;
                }
                assert_eq!(ring.free_bufs(), 3);
                ring.recycle(buf);
            }
        }
        drop(peer);
        ring.recv(token(Kind::Recv, 0), socket.as_raw_fd());
        let end = next(&mut ring, &mut pending);
        assert_eq!(end.result, Ok(0));
        assert!(end.buf.is_none());
        assert_eq!(ring.free_bufs(), 4);
        assert_eq!(ring.in_flight, 0);
    }

    #[test]
    fn a_recv_without_buffers_says_so_and_can_be_armed_again() {
        let (mut ring, _region) = ring_with(|config| config.recv_bufs = 2);
        let pairs: Vec<_> = (0..3).map(|_| UnixStream::pair().unwrap()).collect();
        for (slot, (peer, socket)) in pairs.iter().enumerate() {
            (&*peer).write_all(b"hello").unwrap();
            ring.recv(token(Kind::Recv, slot as u32), socket.as_raw_fd());
        }
        let mut pending = Vec::new();
        let mut all: Vec<_> = (0..3).map(|_| next(&mut ring, &mut pending)).collect();
        let starved = all
            .iter()
            .position(|completion| completion.result == Err(Errno::NOBUFS))
            .expect("three recvs and two buffers");
        let starved = all.remove(starved);
        assert_eq!(ring.free_bufs(), 0);
        for completion in all {
            ring.recycle(completion.buf.unwrap());
        }
        ring.recv(
            starved.token,
            pairs[starved.token.slot as usize].1.as_raw_fd(),
        );
        let buf = next(&mut ring, &mut pending).buf.unwrap();
        assert_eq!(ring.bytes(&buf), b"hello");
        ring.recycle(buf);
    }

    #[test]
    fn idle_recvs_hold_no_buffers() {
        let (mut ring, _region) = ring_with(|config| config.recv_bufs = 2);
        let pairs: Vec<_> = (0..50).map(|_| UnixStream::pair().unwrap()).collect();
        for (slot, (_, socket)) in pairs.iter().enumerate() {
            ring.recv(token(Kind::Recv, slot as u32), socket.as_raw_fd());
        }
        let mut pending = Vec::new();
        ring.turn(Wait::No, &mut pending).unwrap();
        assert!(pending.is_empty());
        for (slot, (peer, _)) in pairs.iter().enumerate() {
            (&*peer).write_all(&[slot as u8]).unwrap();
            let completion = next(&mut ring, &mut pending);
            assert_eq!(completion.token.slot as usize, slot);
            ring.recycle(completion.buf.unwrap());
        }
    }

    /// Writes mixed shapes to a reader that is slow, and compares what arrives.
    fn write_mixed(mut ring: Ring) {
        let (mut peer, socket) = tcp_pair();
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::SndBuf, &32768).unwrap();
        let (sender, expected) = mpsc::channel::<Vec<u8>>();
        let reader = thread::spawn(move || {
            for message in expected {
                thread::sleep(Duration::from_micros(100));
                let mut got = vec![0; message.len()];
                peer.read_exact(&mut got).unwrap();
                assert!(got == message, "bytes changed or out of order");
            }
            assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        });
        let mut pending = Vec::new();
        let mut short = 0;
        for round in 0..100usize {
            let offset = (round * 7919 % (REGION_BYTES / 2)) as u32;
            let len = (1 + round * 4099 % 300_000) as u32;
            let region = Segment::Region { offset, len };
            let shared = Segment::Shared(Bytes::from(vec![round as u8; 1 + round * 31 % 50_000]));
            let mut segments = match round % 4 {
                0 => vec![region],
                1 => vec![
                    region.clone(),
                    Segment::Region { offset: 5, len: 10 },
                    region,
                ],
                2 => vec![shared.clone(), region, shared],
                _ => vec![shared],
            };
            let mut message = Vec::new();
            for segment in &segments {
                match segment {
                    Segment::Region { offset, len } => {
                        message.extend((*offset..offset + len).map(|i| pattern(i as usize)));
                    }
                    Segment::Shared(bytes) => message.extend_from_slice(bytes),
                }
            }
            sender.send(message).unwrap();
            while !segments.is_empty() {
                ring.write(token(Kind::Write, 9), socket.as_raw_fd(), &segments);
                let all: usize = segments.iter().map(Segment::len).sum();
                // The caller may forget its segments at once.
                let kept = std::mem::take(&mut segments);
                let done = next(&mut ring, &mut pending).result.unwrap() as usize;
                assert!(done > 0);
                short += usize::from(done < all);
                segments = rest(kept, done);
            }
        }
        assert!(
            short > 50,
            "only {short} short writes: the test tests nothing"
        );
        drop((sender, socket));
        reader.join().unwrap();
    }

    fn rest(segments: Vec<Segment>, mut done: usize) -> Vec<Segment> {
        let mut rest = Vec::new();
        for segment in segments {
            let skip = done.min(segment.len());
            done -= skip;
            if skip < segment.len() {
                rest.push(match segment {
                    Segment::Region { offset, len } => Segment::Region {
                        offset: offset + skip as u32,
                        len: len - skip as u32,
                    },
                    Segment::Shared(bytes) => Segment::Shared(bytes.slice(skip..)),
                });
            }
        }
        rest
    }

    #[test]
    fn mixed_writes_arrive_whole() {
        let (ring, _region) = ring_with(|_| ());
        write_mixed(ring);
    }

    #[test]
    fn mixed_writes_arrive_whole_without_vectored_fixed_writes() {
        let (mut ring, _region) = ring_with(|_| ());
        ring.pretend(true, false);
        write_mixed(ring);
    }

    #[test]
    fn mixed_writes_arrive_whole_without_a_registered_region() {
        let (mut ring, _region) = ring_with(|_| ());
        ring.pretend(false, false);
        write_mixed(ring);
    }

    /// Fills a socket until a write does not complete at once; what became of that write.
    fn write_to_full(ring: &mut Ring, socket: &TcpStream, segments: &[Segment]) -> Option<Errno> {
        let mut pending = Vec::new();
        for _ in 0..1000 {
            ring.write(token(Kind::Write, 0), socket.as_raw_fd(), segments);
            ring.turn(Wait::Until(Duration::from_millis(20)), &mut pending)
                .unwrap();
            match pending.pop() {
                None => return None,
                Some(completion) => match completion.result {
                    Ok(_) => {}
                    Err(errno) => return Some(errno),
                },
            }
        }
        panic!("the socket never fills");
    }

    #[test]
    fn a_write_waits_for_room_in_both_modes() {
        let region = Segment::Region {
            offset: 0,
            len: 1 << 20,
        };
        let shared = Segment::Shared(Bytes::from_static(&[1; 4096]));
        for (segments, nonblocking) in [
            (vec![region.clone()], false),
            (vec![region.clone()], true),
            (vec![region.clone(), region.clone()], false),
            (vec![region.clone(), region.clone()], true),
            (vec![shared.clone(), region.clone()], false),
            (vec![shared, region], true),
        ] {
            let (mut ring, _region) = ring_with(|_| ());
            let (mut peer, socket) = tcp_pair();
            socket.set_nonblocking(nonblocking).unwrap();
            assert_eq!(write_to_full(&mut ring, &socket, &segments), None);
            // It completes as soon as there is room.
            let mut pending = Vec::new();
            let mut buffer = vec![0; 1 << 20];
            while pending.is_empty() {
                assert!(peer.read(&mut buffer).unwrap() > 0);
                ring.turn(Wait::No, &mut pending).unwrap();
            }
            assert!(pending[0].result.unwrap() > 0);
        }
    }

    #[test]
    fn recv_waits_in_both_modes_and_can_be_cancelled() {
        let (mut ring, _region) = ring_with(|_| ());
        for nonblocking in [false, true] {
            let (_peer, socket) = tcp_pair();
            socket.set_nonblocking(nonblocking).unwrap();
            ring.recv(token(Kind::Recv, 1), socket.as_raw_fd());
            let mut pending = Vec::new();
            ring.turn(Wait::Until(Duration::from_millis(20)), &mut pending)
                .unwrap();
            assert!(pending.is_empty());
            ring.cancel(token(Kind::Recv, 1));
            let both = [next(&mut ring, &mut pending), next(&mut ring, &mut pending)];
            for completion in both {
                match completion.token.kind {
                    Kind::Recv => assert_eq!(completion.result, Err(Errno::CANCELED)),
                    _ => assert!(completion.result.is_ok()),
                }
            }
            ring.cancel(token(Kind::Recv, 1));
            let none = next(&mut ring, &mut pending);
            assert_eq!(none.result, Err(Errno::NOENT));
            assert_eq!(ring.free_bufs(), 64);
        }
    }

    #[test]
    fn the_end_of_writes_is_told_at_once() {
        let (mut ring, _region) = ring_with(|_| ());
        let (mut peer, socket) = tcp_pair();
        ring.shut_down_writes(socket.as_raw_fd());
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        // The other direction stays.
        peer.write_all(b"x").unwrap();
        ring.recv(token(Kind::Recv, 0), socket.as_raw_fd());
        let received = next(&mut ring, &mut Vec::new());
        assert_eq!(received.result, Ok(1));
        ring.recycle(received.buf.unwrap());
    }

    #[test]
    fn rings_in_two_threads_wake_each_other() {
        let (fd_sender, fds) = mpsc::channel();
        let (main_fd_sender, main_fds) = mpsc::channel();
        let other = thread::spawn(move || {
            let (mut ring, _region) = ring_with(|_| ());
            fd_sender.send(ring.fd()).unwrap();
            let main_fd = main_fds.recv().unwrap();
            let mut pending = Vec::new();
            for round in 0..2000 {
                while pending.is_empty() {
                    ring.turn(Wait::Forever, &mut pending).unwrap();
                }
                let rung = pending.remove(0);
                assert_eq!(rung.token, Token::new(Kind::Doorbell, 1, round));
                ring.ring_doorbell(main_fd, Token::new(Kind::Doorbell, 2, round));
            }
            ring.turn(Wait::No, &mut pending).unwrap();
            assert!(pending.is_empty(), "{pending:?}");
        });
        let (mut ring, _region) = ring_with(|_| ());
        main_fd_sender.send(ring.fd()).unwrap();
        let other_fd = fds.recv().unwrap();
        let mut pending = Vec::new();
        for round in 0..2000 {
            ring.ring_doorbell(other_fd, Token::new(Kind::Doorbell, 1, round));
            let rung = next(&mut ring, &mut pending);
            assert_eq!(rung.token, Token::new(Kind::Doorbell, 2, round));
        }
        other.join().unwrap();
        // A doorbell at something that is no ring fails, and only then completes here.
        let (socket, _peer) = UnixStream::pair().unwrap();
        ring.ring_doorbell(socket.as_raw_fd(), token(Kind::Doorbell, 1));
        let failed = next(&mut ring, &mut pending);
        assert_eq!(failed.token, token(Kind::DoorbellSent, 1));
        assert!(failed.result.is_err());
    }

    #[test]
    fn a_watched_eventfd_wakes_the_loop_each_time() {
        let (mut ring, _region) = ring_with(|_| ());
        let event = std::sync::Arc::new(nix::sys::eventfd::EventFd::new().unwrap());
        ring.watch(token(Kind::Watch, 0), event.as_raw_fd());
        let mut pending = Vec::new();
        for _ in 0..100 {
            let writer = event.clone();
            let writer = thread::spawn(move || writer.write(1).unwrap());
            let woken = next(&mut ring, &mut pending);
            assert_eq!(woken.token.kind, Kind::Watch);
            assert!(woken.more);
            assert_eq!(event.read().unwrap(), 1);
            writer.join().unwrap();
        }
    }

    #[test]
    fn turns_sleep_as_told() {
        let (mut ring, _region) = ring_with(|_| ());
        let mut pending = Vec::new();
        let start = Instant::now();
        ring.turn(Wait::No, &mut pending).unwrap();
        assert!(start.elapsed() < Duration::from_millis(20));
        ring.turn(Wait::Until(Duration::from_millis(30)), &mut pending)
            .unwrap();
        assert!(start.elapsed() >= Duration::from_millis(30));
        assert!(pending.is_empty());
    }

    #[test]
    fn full_queues_lose_nothing() {
        let (mut ring, _region) = ring_with(|config| {
            config.sq_entries = 4;
            config.cq_entries = 8;
        });
        let (socket, _peer) = UnixStream::pair().unwrap();
        let mut pending = Vec::new();
        // Each completes as well: 1000 completions against 8 places.
        for slot in 0..1000 {
            ring.cancel(Token::new(Kind::Recv, slot, 0));
        }
        for slot in 0..100 {
            ring.recv(Token::new(Kind::Recv, slot, 0), socket.as_raw_fd());
        }
        while pending.len() < 1000 {
            ring.turn(Wait::Until(Duration::from_secs(1)), &mut pending)
                .unwrap();
        }
        let slots: Vec<u32> = pending
            .iter()
            .map(|completion| completion.token.slot)
            .collect();
        assert_eq!(slots, (0..1000).collect::<Vec<_>>());
        assert_eq!(ring.in_flight, 100);
    }

    #[test]
    fn close_reports_failure_only() {
        let (mut ring, _region) = ring_with(|_| ());
        let (socket, mut peer) = UnixStream::pair().unwrap();
        ring.close(socket.into_raw_fd());
        let mut pending = Vec::new();
        ring.turn(Wait::No, &mut pending).unwrap();
        assert!(pending.is_empty());
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        ring.close(1 << 29);
        let failed = next(&mut ring, &mut pending);
        assert_eq!(failed.token.kind, Kind::Close);
        assert_eq!(failed.token.slot, 1 << 29);
        assert_eq!(failed.result, Err(Errno::BADF));
    }

    #[test]
    fn a_dropped_ring_lets_go_of_everything_first() {
        for round in 0..20 {
            let (mut ring, region) = ring_with(|config| config.recv_bufs = 4);
            let memory = region.keep_alive();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let (peer, socket) = tcp_pair();
            let (mut quiet_peer, quiet) = UnixStream::pair().unwrap();
            ring.accept(token(Kind::Accept, 0), listener.as_raw_fd());
            ring.recv(token(Kind::Recv, 1), quiet.as_raw_fd());
            let payload = Bytes::from(vec![3; 1 << 20]);
            let segments = [
                Segment::Region {
                    offset: 0,
                    len: 4 << 20,
                },
                Segment::Shared(payload.clone()),
            ];
            assert_eq!(write_to_full(&mut ring, &socket, &segments), None);
            drop(segments);
            // And one that the kernel has not seen yet, and a connection nobody has reaped.
            ring.recv(token(Kind::Recv, 2), socket.as_raw_fd());
            let mut waiting = (round % 2 == 0)
                .then(|| TcpStream::connect(listener.local_addr().unwrap()).unwrap());
            let start = Instant::now();
            drop(ring);
            assert!(
                start.elapsed() < TEARDOWN_MAX,
                "operations were left behind"
            );
            assert!(payload.is_unique(), "the slot of the write was not freed");
            drop(region);
            drop(memory);
            // The accepted connection was closed, the sockets are ours alone again.
            if let Some(waiting) = &mut waiting {
                assert!(matches!(waiting.read(&mut [0]), Ok(0) | Err(_)));
            }
            quiet_peer.write_all(b"nobody receives this").unwrap();
            drop((peer, socket));
        }
    }

    #[test]
    #[should_panic(expected = "a second write")]
    fn a_second_write_on_a_slot_is_refused() {
        let (mut ring, _region) = ring_with(|_| ());
        let (_peer, socket) = tcp_pair();
        let segment = [Segment::Region { offset: 0, len: 1 }];
        ring.write(token(Kind::Write, 0), socket.as_raw_fd(), &segment);
        ring.write(token(Kind::Write, 0), socket.as_raw_fd(), &segment);
    }

    #[test]
    #[should_panic(expected = "outside its region")]
    fn a_segment_outside_the_region_is_refused() {
        let (mut ring, _region) = ring_with(|_| ());
        let segment = [Segment::Region {
            offset: REGION_BYTES as u32,
            len: 1,
        }];
        ring.write(token(Kind::Write, 0), 0, &segment);
    }
}
