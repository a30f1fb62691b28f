//! The two system calls we make ourselves, in place of the io-uring crate's: it can register a
//! ring's descriptor but forgets the index with its `Submitter`, which cannot live beside the ring.
//!
//! The numbers are those of linux/io_uring.h; the kernel never changes one.
#![allow(unsafe_code)]

use std::io;
use std::mem::size_of;
use std::os::fd::RawFd;
use std::ptr;
use std::time::Duration;

/// Reap: run deferred work and wait for the completions asked for.
pub(super) const ENTER_GETEVENTS: u32 = 1 << 0;
const ENTER_EXT_ARG: u32 = 1 << 3;
const ENTER_REGISTERED_RING: u32 = 1 << 4;
/// Since 6.15: sleeping with operations in flight does not count as waiting for a disk. Without it
/// an idle server shows up as 100 % iowait.
pub(super) const ENTER_NO_IOWAIT: u32 = 1 << 7;

const REGISTER_RING_FDS: u32 = 20;
const UNREGISTER_RING_FDS: u32 = 21;

/// How `enter` names the ring: by descriptor, or by index in the table of the calling thread, which
/// saves the kernel a counted look-up in the table of descriptors.
#[derive(Clone, Copy, Debug)]
pub(super) enum RingName {
    Fd(RawFd),
    Index(u32),
}

/// `struct __kernel_timespec`
#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

/// `struct io_uring_getevents_arg`
#[repr(C)]
struct GeteventsArg {
    signal_mask: u64,
    signal_mask_bytes: u32,
    min_wait_us: u32,
    timespec: u64,
}

/// `struct io_uring_rsrc_update`
#[repr(C)]
struct ResourceUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// Submits `to_submit` entries and waits for `min_complete` completions, at most for `timeout`.
/// Returns how many entries the kernel took.
///
/// # Safety
///
/// Every entry the kernel is made to take must name memory that stays valid until its completion.
pub(super) unsafe fn enter(
    ring: RingName,
    to_submit: u32,
    min_complete: u32,
    flags: u32,
    timeout: Option<Duration>,
) -> io::Result<u32> {
    let (number, flags) = match ring {
        RingName::Fd(fd) => (fd, flags),
        RingName::Index(index) => (index as i32, flags | ENTER_REGISTERED_RING),
    };
    let timespec = timeout.map(|timeout| Timespec {
        seconds: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        nanoseconds: i64::from(timeout.subsec_nanos()),
    });
    let argument = GeteventsArg {
        signal_mask: 0,
        signal_mask_bytes: 0,
        min_wait_us: 0,
        timespec: timespec
            .as_ref()
            .map_or(0, |timespec| ptr::from_ref(timespec) as u64),
    };
    // SAFETY: `argument` and the timespec it points to live on this frame over the whole call and
    // have the size and layout EXT_ARG asks for. What the entries name is the caller's promise.
    let taken = unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            number,
            to_submit,
            min_complete,
            flags | ENTER_EXT_ARG,
            ptr::from_ref(&argument),
            size_of::<GeteventsArg>(),
        )
    };
    if taken < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(taken as u32)
    }
}

/// Enters the ring in the calling thread's table of rings. The entry holds the ring open even when
/// its descriptor is closed, until [`unregister_ring`] or the end of the thread.
pub(super) fn register_ring(fd: RawFd) -> io::Result<u32> {
    let mut update = ResourceUpdate {
        offset: u32::MAX, // the kernel picks the index
        reserved: 0,
        data: fd as u64,
    };
    register(fd, REGISTER_RING_FDS, &mut update)?;
    Ok(update.offset)
}

pub(super) fn unregister_ring(fd: RawFd, index: u32) -> io::Result<()> {
    let mut update = ResourceUpdate {
        offset: index,
        reserved: 0,
        data: 0,
    };
    register(fd, UNREGISTER_RING_FDS, &mut update)
}

fn register(fd: RawFd, opcode: u32, update: &mut ResourceUpdate) -> io::Result<()> {
    // SAFETY: both opcodes read and write exactly one `io_uring_rsrc_update`, which is borrowed
    // exclusively over the call, and keep no pointer to it.
    let done = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            fd,
            opcode,
            ptr::from_mut(update),
            1,
        )
    };
    match done {
        1 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
