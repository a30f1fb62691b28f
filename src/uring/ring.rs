//! The real kernel: one io_uring per event loop.
//!
//! Memory the kernel may touch, and who keeps it:
//! - receive buffers: `buffers`, for the life of the ring;
//! - the region: `region`, a keep-alive of the mapping, for the life of the ring;
//! - shared segments, vectors and addresses of one operation: an entry of `operations`, until the
//!   completion of that operation.
//!
//! `Drop` closes the ring before any of these is freed.
#![allow(unsafe_code)]

use super::buffers::ProvidedBuffers;
use super::probe::Features;
use super::sys::{self, RingName};
use super::{Completion, Errno, Io, Kind, RecvBuf, Segment, Token, Wait};
use crate::util::region::Region;
use bytes::Bytes;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{CancelBuilder, Fd};
use io_uring::{IoUring, cqueue, opcode};
use std::collections::HashMap;
use std::io;
use std::mem::ManuallyDrop;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

const BUFFER_GROUP: u16 = 0;
/// How long `Drop` waits for operations to come back after they were cancelled.
const LAST_WAIT: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug)]
pub struct RingConfig {
    /// Queue of operations not yet handed over; a full one is handed over at once.
    pub submissions: u32,
    pub completions: u32,
    /// A power of two.
    pub recv_bufs: u16,
    pub recv_buf_bytes: u32,
}

impl Default for RingConfig {
    fn default() -> Self {
        Self {
            submissions: 1024,
            completions: 16 << 10,
            recv_bufs: 64,
            recv_buf_bytes: 64 << 10,
        }
    }
}

/// What an operation in flight needs until it completes.
enum Kept {
    Vector {
        _iovecs: Box<[libc::iovec]>,
        _shared: Vec<Bytes>,
    },
    Address {
        _address: Box<libc::sockaddr_storage>,
    },
}

pub struct Ring {
    ring: ManuallyDrop<IoUring>,
    name: RingName,
    features: Features,
    /// The region is registered as buffer 0.
    registered: bool,
    wait_flags: u32,
    /// By packed token; few operations need an entry.
    operations: HashMap<u64, Kept>,
    in_flight: usize,
    buffers: ManuallyDrop<ProvidedBuffers>,
    region: Region,
    iovecs: Vec<libc::iovec>,
}

impl Ring {
    /// Makes a ring for the calling thread, which must be the only one to use it. When the memory of
    /// the region cannot be locked, writes go unregistered and the warning says so.
    pub fn new(
        config: RingConfig,
        features: Features,
        region: Region,
    ) -> io::Result<(Self, Option<String>)> {
        let mut builder = IoUring::builder();
        builder
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_clamp()
            .setup_cqsize(config.completions);
        if features.no_sqarray {
            builder.setup_no_sqarray();
        }
        let ring = builder.build(config.submissions)?;
        let buffers = ProvidedBuffers::new(config.recv_bufs, config.recv_buf_bytes)?;
        // SAFETY: the ring of entries lies in `buffers`, which `Drop` frees after the io_uring.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(
                buffers.ring_address(),
                buffers.count(),
                BUFFER_GROUP,
                0,
            )?;
        }
        let whole = libc::iovec {
            iov_base: region.base().cast(),
            iov_len: region.len(),
        };
        // SAFETY: `region` keeps the mapping alive until `Drop` has closed the io_uring.
        let registered = unsafe { ring.submitter().register_buffers(&[whole]) };
        let warning = registered.as_ref().err().map(|error| {
            format!(
                "the output memory of {} KiB could not be locked ({error}), writes are a little slower; raise the limit \
                 on locked memory (ulimit -l, LimitMEMLOCK=)",
                region.len() >> 10
            )
        });
        let name = match sys::register_ring(ring.as_raw_fd()) {
            Ok(index) => RingName::Index(index),
            Err(_) => RingName::Fd(ring.as_raw_fd()),
        };
        // SAFETY: nothing is queued yet, so the kernel takes no entry.
        let no_iowait = unsafe {
            sys::enter(
                name,
                0,
                0,
                sys::ENTER_GETEVENTS | sys::ENTER_NO_IOWAIT,
                None,
            )
        };
        let wait_flags = match no_iowait {
            Ok(_) => sys::ENTER_GETEVENTS | sys::ENTER_NO_IOWAIT,
            Err(_) => sys::ENTER_GETEVENTS,
        };
        let ring = Self {
            ring: ManuallyDrop::new(ring),
            name,
            features,
            registered: registered.is_ok(),
            wait_flags,
            operations: HashMap::new(),
            in_flight: 0,
            buffers: ManuallyDrop::new(buffers),
            region,
            iovecs: Vec::new(),
        };
        Ok((ring, warning))
    }

    fn push(&mut self, token: Token, entry: Entry) {
        let entry = entry.user_data(token.pack());
        loop {
            // SAFETY: what the entry names is owned or kept alive by `self`, see the module's head;
            // each caller in this file puts it there before it pushes.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                break;
            }
            self.hand_over(0, 0, None)
                .expect("a full queue can always be handed over");
        }
        self.in_flight += 1;
    }

    /// Enters the kernel with everything queued.
    fn hand_over(&mut self, want: u32, flags: u32, timeout: Option<Duration>) -> io::Result<()> {
        loop {
            let queued = {
                let mut queue = self.ring.submission();
                queue.sync();
                queue.len() as u32
            };
            // SAFETY: as in `push`.
            match unsafe { sys::enter(self.name, queued, want, flags, timeout) } {
                Ok(_) => return Ok(()),
                Err(error) => match error.raw_os_error() {
                    // Nothing came in time, or a signal did.
                    Some(libc::ETIME | libc::EINTR) => return Ok(()),
                    // The completion queue overflowed: the kernel wants it emptied first.
                    Some(libc::EBUSY | libc::EAGAIN) if want > 0 || flags != 0 => return Ok(()),
                    Some(libc::EBUSY | libc::EAGAIN) => std::thread::yield_now(),
                    _ => return Err(error),
                },
            }
        }
    }

    fn reap(&mut self, out: &mut Vec<Completion>) {
        loop {
            let mut seen = false;
            let mut queue = self.ring.completion();
            queue.sync();
            for entry in &mut queue {
                seen = true;
                let more = cqueue::more(entry.flags());
                if !more {
                    self.in_flight = self.in_flight.saturating_sub(1);
                }
                let Some(token) = Token::unpack(entry.user_data()) else {
                    continue;
                };
                if !more && matches!(token.kind, Kind::Write | Kind::Connect) {
                    self.operations.remove(&entry.user_data());
                }
                let result = match u32::try_from(entry.result()) {
                    Ok(result) => Ok(result),
                    Err(_) => Err(Errno(-entry.result())),
                };
                let buf = match (token.kind, cqueue::buffer_select(entry.flags())) {
                    (Kind::Recv, Some(id)) => {
                        let buf = self.buffers.lend(id, result.unwrap_or(0));
                        if buf.len() == 0 {
                            // The end of the stream took a buffer along.
                            self.buffers.recycle(buf);
                            None
                        } else {
                            Some(buf)
                        }
                    }
                    _ => None,
                };
                out.push(Completion {
                    token,
                    result,
                    buf,
                    more,
                });
            }
            if !seen {
                return;
            }
        }
    }
}

impl Io for Ring {
    fn accept(&mut self, token: Token, listener: RawFd) {
        self.push(
            token,
            opcode::AcceptMulti::new(Fd(listener))
                .flags(libc::SOCK_CLOEXEC)
                .build(),
        );
    }

    fn recv(&mut self, token: Token, fd: RawFd) {
        let entry = opcode::Recv::new(Fd(fd), std::ptr::null_mut(), 0)
            .buf_group(BUFFER_GROUP)
            .build();
        self.push(token, entry.flags(Flags::BUFFER_SELECT));
    }

    fn write(&mut self, token: Token, fd: RawFd, segments: &[Segment]) {
        assert!(!segments.is_empty(), "a write of nothing");
        if let [Segment::Region { offset, len }] = segments {
            let at = self.region.range(*offset, *len);
            let entry = match self.registered {
                true => opcode::WriteFixed::new(Fd(fd), at, *len, 0).build(),
                false => opcode::Write::new(Fd(fd), at, *len).build(),
            };
            return self.push(token, entry);
        }
        let mut all_region = true;
        let mut shared = Vec::new();
        self.iovecs.clear();
        for segment in segments {
            let (base, len) = match segment {
                Segment::Region { offset, len } => {
                    (self.region.range(*offset, *len), *len as usize)
                }
                Segment::Shared(bytes) => {
                    all_region = false;
                    shared.push(bytes.clone());
                    (bytes.as_ptr(), bytes.len())
                }
            };
            self.iovecs.push(libc::iovec {
                iov_base: base.cast_mut().cast(),
                iov_len: len,
            });
        }
        let iovecs: Box<[libc::iovec]> = self.iovecs.as_slice().into();
        let (at, count) = (iovecs.as_ptr(), iovecs.len() as u32);
        let entry = if all_region && self.registered && self.features.writev_fixed {
            opcode::WritevFixed::new(Fd(fd), at, count, 0).build()
        } else {
            opcode::Writev::new(Fd(fd), at, count).build()
        };
        let kept = Kept::Vector {
            _iovecs: iovecs,
            _shared: shared,
        };
        let previous = self.operations.insert(token.pack(), kept);
        assert!(previous.is_none(), "two writes of one token in flight");
        self.push(token, entry);
    }

    fn connect(&mut self, token: Token, fd: RawFd, address: SocketAddr) {
        let (address, length) = sys::socket_address(address);
        let address = Box::new(address);
        let entry =
            opcode::Connect::new(Fd(fd), std::ptr::from_ref(&*address).cast(), length).build();
        self.operations
            .insert(token.pack(), Kept::Address { _address: address });
        self.push(token, entry);
    }

    fn shutdown(&mut self, token: Token, fd: RawFd, how: Shutdown) {
        let how = match how {
            Shutdown::Read => libc::SHUT_RD,
            Shutdown::Write => libc::SHUT_WR,
            Shutdown::Both => libc::SHUT_RDWR,
        };
        self.push(token, opcode::Shutdown::new(Fd(fd), how).build());
    }

    fn cancel(&mut self, target: Token) {
        let entry = opcode::AsyncCancel::new(target.pack()).build();
        self.push(target.with_kind(Kind::Cancel), entry);
    }

    fn close(&mut self, fd: RawFd) {
        let token = Token::new(Kind::Close, fd as u32, 0);
        self.push(
            token,
            opcode::Close::new(Fd(fd))
                .build()
                .flags(Flags::SKIP_SUCCESS),
        );
        self.in_flight -= 1;
    }

    fn ring_doorbell(&mut self, other_ring_fd: RawFd, token: Token) {
        let entry = opcode::MsgRingData::new(Fd(other_ring_fd), 0, token.pack(), None).build();
        self.push(
            token.with_kind(Kind::DoorbellSent),
            entry.flags(Flags::SKIP_SUCCESS),
        );
        self.in_flight -= 1;
    }

    fn watch(&mut self, token: Token, fd: RawFd) {
        self.push(
            token,
            opcode::PollAdd::new(Fd(fd), libc::POLLIN as u32)
                .multi(true)
                .build(),
        );
    }

    fn turn(&mut self, wait: Wait, out: &mut Vec<Completion>) -> io::Result<()> {
        let (want, timeout) = match wait {
            Wait::No => (0, None),
            Wait::Until(timeout) => (1, Some(timeout)),
            Wait::Forever => (1, None),
        };
        self.hand_over(want, self.wait_flags, timeout)?;
        self.reap(out);
        Ok(())
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

    fn fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl Drop for Ring {
    /// Closing a ring does not wait for its operations: freed at once, their memory would be written
    /// to by the kernel (received bytes over somebody else's data) or sent with other contents. So
    /// everything is cancelled and reaped first; if something does not come back in time, its memory
    /// is leaked rather than freed.
    fn drop(&mut self) {
        let everything = CancelBuilder::any().all();
        let _ = self.ring.submitter().register_sync_cancel(None, everything);
        let deadline = Instant::now() + LAST_WAIT;
        let mut ignored = Vec::new();
        while self.in_flight > 0 && Instant::now() < deadline {
            if self
                .turn(Wait::Until(Duration::from_millis(10)), &mut ignored)
                .is_err()
            {
                break;
            }
            ignored.clear();
        }
        let quiet = self.in_flight == 0;
        if let RingName::Index(index) = self.name {
            let _ = sys::unregister_ring(self.ring.as_raw_fd(), index);
        }
        // SAFETY: neither is used again; the io_uring goes first.
        unsafe {
            ManuallyDrop::drop(&mut self.ring);
            if quiet {
                ManuallyDrop::drop(&mut self.buffers);
            }
        }
        if !quiet {
            std::mem::forget(std::mem::take(&mut self.operations));
            std::mem::forget(self.region.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uring::probe;
    use crate::util::region::RegionMut;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    fn ring(config: RingConfig) -> (Ring, RegionMut) {
        let region = RegionMut::map(1 << 20).unwrap();
        let (ring, warning) = Ring::new(config, probe().unwrap(), region.keep_alive()).unwrap();
        assert_eq!(warning, None);
        (ring, region)
    }

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (a, listener.accept().unwrap().0)
    }

    const RECV: Token = Token::new(Kind::Recv, 1, 0);
    const WRITE: Token = Token::new(Kind::Write, 1, 0);

    fn next(ring: &mut Ring) -> Completion {
        let mut out = Vec::new();
        while out.is_empty() {
            ring.turn(Wait::Until(Duration::from_secs(10)), &mut out)
                .unwrap();
        }
        assert_eq!(out.len(), 1);
        out.pop().unwrap()
    }

    #[test]
    fn bytes_come_in_and_buffers_go_round() {
        let (mut ring, _region) = ring(RingConfig {
            recv_bufs: 2,
            recv_buf_bytes: 64,
            ..RingConfig::default()
        });
        let (mut near, far) = pair();
        for round in 0..1000u32 {
            ring.recv(RECV, far.as_raw_fd());
            near.write_all(&round.to_le_bytes()).unwrap();
            let completion = next(&mut ring);
            assert_eq!((completion.token, completion.result), (RECV, Ok(4)));
            let buf = completion.buf.unwrap();
            assert_eq!(ring.bytes(&buf), round.to_le_bytes());
            ring.recycle(buf);
            assert_eq!(ring.free_bufs(), 2);
        }
        ring.recv(RECV, far.as_raw_fd());
        drop(near);
        assert_eq!(next(&mut ring).result, Ok(0));
        assert_eq!(ring.free_bufs(), 2);
    }

    #[test]
    fn without_buffers_a_recv_says_so() {
        let (mut ring, _region) = ring(RingConfig {
            recv_bufs: 1,
            recv_buf_bytes: 4,
            ..RingConfig::default()
        });
        let (mut near, far) = pair();
        near.write_all(b"12345678").unwrap();
        ring.recv(RECV, far.as_raw_fd());
        let first = next(&mut ring).buf.unwrap();
        ring.recv(RECV, far.as_raw_fd());
        assert_eq!(next(&mut ring).result, Err(Errno::NOBUFS));
        ring.recycle(first);
        ring.recv(RECV, far.as_raw_fd());
        let second = next(&mut ring).buf.unwrap();
        assert_eq!(ring.bytes(&second), b"5678");
        ring.recycle(second);
    }

    #[test]
    fn segments_of_every_kind_leave_in_order_and_wait_for_room() {
        let (mut ring, mut region) = ring(RingConfig::default());
        let (near, far) = pair();
        nix::sys::socket::setsockopt(&near, nix::sys::socket::sockopt::SndBuf, &(8 << 10)).unwrap();
        region.as_mut()[..5].copy_from_slice(b"hello");
        region.as_mut()[100..106].copy_from_slice(b" world");
        let large = Bytes::from(vec![7u8; 3 << 20]);
        let all = [
            vec![Segment::Region { offset: 0, len: 5 }],
            vec![
                Segment::Region { offset: 0, len: 5 },
                Segment::Region {
                    offset: 100,
                    len: 6,
                },
            ],
            vec![
                Segment::Region {
                    offset: 100,
                    len: 6,
                },
                Segment::Shared(large.clone()),
            ],
        ];
        let expected = [&b"hellohello world world"[..], &large].concat();
        let length = expected.len();
        let reader = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            let mut far = far;
            let mut got = vec![0; length];
            far.read_exact(&mut got).unwrap();
            got
        });
        for segments in all {
            let mut left: usize = segments.iter().map(Segment::len).sum();
            let total = left;
            while left > 0 {
                let mut skip = total - left;
                let rest: Vec<Segment> = segments
                    .iter()
                    .filter_map(|segment| {
                        let cut = skip.min(segment.len());
                        skip -= cut;
                        match segment {
                            _ if cut == segment.len() => None,
                            Segment::Region { offset, len } => Some(Segment::Region {
                                offset: offset + cut as u32,
                                len: len - cut as u32,
                            }),
                            Segment::Shared(bytes) => Some(Segment::Shared(bytes.slice(cut..))),
                        }
                    })
                    .collect();
                ring.write(WRITE, near.as_raw_fd(), &rest);
                let written = next(&mut ring).result.unwrap();
                assert!(written > 0);
                left -= written as usize;
            }
        }
        assert!(reader.join().unwrap() == expected);
        assert!(ring.operations.is_empty());
    }

    #[test]
    fn connections_arrive_one_by_one_from_one_accept() {
        let (mut ring, _region) = ring(RingConfig::default());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        ring.accept(Token::new(Kind::Accept, 0, 0), listener.as_raw_fd());
        for _ in 0..20 {
            let _near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let completion = next(&mut ring);
            assert!(completion.more);
            ring.close(completion.result.unwrap() as RawFd);
        }
    }

    #[test]
    fn a_doorbell_wakes_another_thread() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let bell = Token::new(Kind::Doorbell, 3, 0);
        let sleeper = std::thread::spawn(move || {
            let (mut ring, _region) = ring(RingConfig::default());
            sender.send(ring.fd()).unwrap();
            next(&mut ring).token
        });
        let (mut ring, _region) = ring(RingConfig::default());
        ring.ring_doorbell(receiver.recv().unwrap(), bell);
        ring.turn(Wait::No, &mut Vec::new()).unwrap();
        assert_eq!(sleeper.join().unwrap(), bell);
    }

    #[test]
    fn cancelled_operations_come_back() {
        let (mut ring, _region) = ring(RingConfig::default());
        let (_near, far) = pair();
        ring.recv(RECV, far.as_raw_fd());
        ring.turn(Wait::No, &mut Vec::new()).unwrap();
        ring.cancel(RECV);
        let mut out = Vec::new();
        while out.len() < 2 {
            ring.turn(Wait::Until(Duration::from_secs(10)), &mut out)
                .unwrap();
        }
        let of = |kind| out.iter().find(|c| c.token.kind == kind).unwrap().result;
        assert_eq!(of(Kind::Recv), Err(Errno::CANCELED));
        assert!(of(Kind::Cancel).is_ok());
    }

    #[test]
    fn a_ring_goes_with_everything_in_flight() {
        let (mut ring, region) = ring(RingConfig::default());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (near, far) = pair();
        ring.accept(Token::new(Kind::Accept, 0, 0), listener.as_raw_fd());
        ring.recv(RECV, near.as_raw_fd());
        let large = Bytes::from(vec![1u8; 32 << 20]);
        ring.write(WRITE, near.as_raw_fd(), &[Segment::Shared(large.clone())]);
        ring.turn(Wait::No, &mut Vec::new()).unwrap();
        ring.turn(Wait::No, &mut Vec::new()).unwrap();
        drop(ring);
        assert!(large.is_unique(), "the ring gave its share back");
        drop((region, far));
    }
}
