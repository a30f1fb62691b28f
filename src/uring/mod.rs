//! The kernel interface of the event loop: operations in, completions out.
//!
//! [`Io`] is the whole of it. [`Ring`] is the real one, on io_uring; `fake::FakeIo` is a kernel
//! scripted by tests. May import util. Knows no NATS: it moves bytes and completions, and a
//! [`Token`] means nothing to it but which operation it stands for.
//!
//! The rule that makes every method of [`Io`] safe to call: **whatever memory the kernel may touch is
//! owned or kept alive by the ring until the kernel has said that it is done.** Received bytes land in
//! buffers of the ring, lent out as [`RecvBuf`] and given back with [`Io::recycle`]. Bytes to send lie
//! in the [`Region`](crate::util::region::Region) the ring keeps alive, or in shared `Bytes` of which
//! it holds a clone while the write is in flight. A caller that goes away early can therefore lose
//! messages, but never memory safety.
//!
//! No operation blocks the calling thread, and none needs a thread of the kernel's: recv, accept and a
//! write to a socket whose buffer is full wait in the kernel and complete once they can make
//! progress. For a write, kernel 6.18 does so whether or not the socket has `O_NONBLOCK` (the test
//! `a_write_waits_for_room_in_both_modes`). Earlier ones have answered EAGAIN at once on a non-blocking
//! socket, so leave sockets in **blocking** mode, which waits on all of them.
//!
//! The process must ignore SIGPIPE, as Rust programs do unless told otherwise: a write to a connection
//! the peer has reset raises it.

mod buffers;
mod errno;
#[cfg(any(test, fuzzing))]
pub mod fake;
#[cfg(test)]
mod measure;
mod probe;
mod ring;
mod sys;
mod token;

pub use errno::Errno;
pub use probe::{Unusable, probe};
pub use ring::{Ring, RingConfig};
pub use token::{Kind, Token};

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use bytes::Bytes;

/// Most segments one write may have: the kernel's own limit on a vector (UIO_MAXIOV).
pub const SEGMENTS_MAX: usize = 1024;

/// An answer of the kernel.
#[derive(Debug)]
pub struct Completion {
    pub token: Token,
    /// Bytes moved, or the descriptor of an accepted connection, or nothing of interest.
    pub result: Result<u32, Errno>,
    /// Received bytes: there exactly when a recv moved at least one byte.
    pub buf: Option<RecvBuf>,
    /// Whether the operation stays armed and will complete again (accept and watch).
    pub more: bool,
}

/// A receive buffer on loan. Not `Clone`, and must go back with [`Io::recycle`]: one that is dropped
/// is lost to the ring until the ring goes.
#[derive(Debug)]
#[must_use = "a receive buffer that is not recycled is lost"]
pub struct RecvBuf {
    id: u16,
    len: u32,
}

impl RecvBuf {
    /// Bytes received, at least 1.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len as usize
    }
}

/// A run of bytes to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// In the region the ring was made with. The bytes must stay as they are until the write has
    /// completed.
    Region { offset: u32, len: u32 },
    /// In memory shared with others, immutable by its type; sliced to what is to be written.
    Shared(Bytes),
}

impl Segment {
    /// Bytes in the segment.
    pub fn len(&self) -> usize {
        match self {
            Segment::Region { len, .. } => *len as usize,
            Segment::Shared(bytes) => bytes.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How long a turn may sleep when there is nothing to report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    No,
    Until(Duration),
    Forever,
}

/// What the event loop asks of the kernel.
///
/// Methods that start an operation queue it; it reaches the kernel with the next [`Io::turn`], or at
/// once when the queue is full. Nothing is ever dropped: every operation completes exactly once with
/// `more == false`, save for closes and doorbells that succeed. Operations of one turn may complete
/// in any order. A descriptor must stay open until what was started on it has completed.
pub trait Io {
    /// Accepts connections until cancelled or failed; each arrives as one completion whose result is
    /// the new descriptor, blocking and close-on-exec. It inherits TCP_NODELAY and buffer sizes from
    /// the listener, so setting them there saves a system call per connection.
    fn accept(&mut self, token: Token, listener: RawFd);

    /// Receives once into a buffer the kernel picks when data is there, so an idle connection holds
    /// none. `Ok(0)` is the end of the stream; [`Errno::NOBUFS`] means that all buffers are on loan
    /// and the recv is to be armed again after some came back, whether data was waiting or not.
    fn recv(&mut self, token: Token, fd: RawFd);

    /// Writes the segments in order, with one operation. A short count is normal and not an error:
    /// write the rest next. At most one write per slot may be in flight.
    fn write(&mut self, token: Token, fd: RawFd, segments: &[Segment]);

    /// Asks for the end of an operation. Completes as `Kind::Cancel` with the target's slot and
    /// generation: `Ok` when the target was found, [`Errno::NOENT`] when it has completed already,
    /// [`Errno::ALREADY`] when it is past stopping. The target completes on its own in each case.
    fn cancel(&mut self, target: Token);

    /// Closes a descriptor on which nothing is in flight. Completes only on failure, as `Kind::Close`
    /// with the descriptor as slot.
    fn close(&mut self, fd: RawFd);

    /// Makes `token`, of `Kind::Doorbell`, complete on another ring and wakes its thread. Completes
    /// here only on failure, as `Kind::DoorbellSent`.
    fn ring_doorbell(&mut self, other_ring_fd: RawFd, token: Token);

    /// Completes each time the descriptor becomes readable, until cancelled or failed.
    fn watch(&mut self, token: Token, fd: RawFd);

    /// Hands everything queued to the kernel, sleeps at most as told until something completes, and
    /// appends all completions to `out`. May return with nothing, on a signal for one.
    fn turn(&mut self, wait: Wait, out: &mut Vec<Completion>) -> io::Result<()>;

    /// The received bytes.
    fn bytes(&self, buf: &RecvBuf) -> &[u8];

    /// Gives a receive buffer back to the kernel.
    fn recycle(&mut self, buf: RecvBuf);

    /// Receive buffers that are not on loan.
    fn free_bufs(&self) -> usize;

    /// Who is at the other end of a connection.
    fn peer_address(&self, fd: RawFd) -> io::Result<SocketAddr>;

    /// Tells the peer that nothing more will be written. Takes effect at once, so what was written must have completed.
    /// An error is no matter: the connection is over then.
    fn shut_down_writes(&mut self, fd: RawFd);

    /// Takes effect at once.
    fn set_congestion_control(&self, fd: RawFd, name: &OsString) -> io::Result<()>;

    /// The ring's own descriptor: the address of its doorbell.
    fn fd(&self) -> RawFd;

    /// The time on a clock that never goes back.
    fn now(&self) -> Instant;
}
