//! Receive buffers in the kernel's keeping: a provided buffer ring and the memory behind it.
//!
//! The kernel takes a buffer from the head of the ring when it has data for a recv, we add buffers at
//! the tail. Each entry is 16 bytes: address, length, buffer id, and two bytes that mean nothing
//! except in entry 0, where they are the tail:
//!
//! ```text
//! entry 0   | addr: u64 | len: u32 | bid: u16 | TAIL: u16 |
//! entry 1   | addr: u64 | len: u32 | bid: u16 | unused    |
//! ```
//!
//! A buffer is either **provided** (the kernel may write to it at any time; we have no reference to
//! it) or **on loan** (the kernel gave it out with a completion and will not touch it; we may read
//! it). `lent` says which; every access checks it, so even a `RecvBuf` given to the wrong ring cannot
//! reach bytes that the kernel is writing.
#![allow(unsafe_code)]

use std::io;
use std::mem::size_of;
use std::sync::atomic::{AtomicU16, Ordering};

use super::RecvBuf;
use crate::util::region::{Region, RegionMut};

/// The kernel refuses larger rings.
const COUNT_MAX: u16 = 1 << 15;

/// `struct io_uring_buf`
#[repr(C)]
struct Entry {
    address: u64,
    len: u32,
    id: u16,
    /// The ring's tail, in entry 0 only.
    tail: AtomicU16,
}

const _: () = assert!(size_of::<Entry>() == 16);

/// Owns the memory. Must outlive every recv of the ring it is registered with.
pub(super) struct ProvidedBuffers {
    entries: Region,
    data: Region,
    /// A power of two.
    count: u16,
    buf_bytes: u32,
    /// Buffers provided so far, modulo 2^16.
    tail: u16,
    lent: Vec<bool>,
    lent_count: u16,
}

impl ProvidedBuffers {
    pub(super) fn new(count: u16, buf_bytes: u32) -> io::Result<ProvidedBuffers> {
        assert!(
            count.is_power_of_two() && count <= COUNT_MAX,
            "the number of receive buffers is a power of two up to 32768"
        );
        assert!(buf_bytes > 0, "a receive buffer has at least one byte");
        let data_bytes = (count as usize)
            .checked_mul(buf_bytes as usize)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        // The writers are dropped at once: from here on the memory belongs to the kernel's side,
        // and only the pointers below, guarded by `lent`, reach it.
        let mut buffers = ProvidedBuffers {
            entries: RegionMut::map(count as usize * size_of::<Entry>())?.keep_alive(),
            data: RegionMut::map(data_bytes)?.keep_alive(),
            count,
            buf_bytes,
            tail: 0,
            lent: vec![false; count as usize],
            lent_count: 0,
        };
        for id in 0..count {
            buffers.provide(id);
        }
        Ok(buffers)
    }

    /// Where the ring of entries lies, for registering it.
    pub(super) fn ring_address(&self) -> u64 {
        self.entries.base() as u64
    }

    pub(super) fn count(&self) -> u16 {
        self.count
    }

    /// Buffers the kernel holds.
    pub(super) fn free(&self) -> usize {
        usize::from(self.count - self.lent_count)
    }

    /// Takes over a buffer that a completion named.
    pub(super) fn lend(&mut self, id: u16, len: u32) -> RecvBuf {
        assert!(id < self.count, "the kernel named a buffer we never made");
        assert!(len <= self.buf_bytes, "more bytes than the buffer holds");
        assert!(
            !self.lent[usize::from(id)],
            "the kernel gave a buffer out twice"
        );
        self.lent[usize::from(id)] = true;
        self.lent_count += 1;
        RecvBuf { id, len }
    }

    pub(super) fn bytes(&self, buf: &RecvBuf) -> &[u8] {
        assert!(
            self.lent[usize::from(buf.id)],
            "a receive buffer of another ring"
        );
        assert!(
            buf.len <= self.buf_bytes,
            "a receive buffer of another ring"
        );
        // SAFETY: the buffer is on loan, so the kernel does not write to it until `recycle`, which
        // needs `&mut self` and so ends this borrow first. The asserts keep the range inside the
        // mapping, whose bytes are initialised from the start (zeroed), and `self` keeps it alive.
        unsafe { std::slice::from_raw_parts(self.address(buf.id), buf.len as usize) }
    }

    pub(super) fn recycle(&mut self, buf: RecvBuf) {
        assert!(
            self.lent[usize::from(buf.id)],
            "a receive buffer of another ring, or one recycled before"
        );
        self.lent[usize::from(buf.id)] = false;
        self.lent_count -= 1;
        self.provide(buf.id);
    }

    fn address(&self, id: u16) -> *const u8 {
        self.data
            .base()
            .wrapping_add(usize::from(id) * self.buf_bytes as usize)
    }

    /// Writes the buffer's entry at the tail and moves the tail past it.
    fn provide(&mut self, id: u16) {
        debug_assert!(!self.lent[usize::from(id)]);
        let entries: *mut Entry = self.entries.base().cast();
        let entry = entries.wrapping_add(usize::from(self.tail & (self.count - 1)));
        // SAFETY: the mask keeps `entry` inside the mapping of `count` entries, which `self` keeps
        // alive. The place is free: at most `count` buffers exist and this one is not in the ring,
        // so the kernel has taken what was here. It reads entries only below the tail. The entry's
        // own two bytes of tail are left alone, and no reference to the shared memory is made.
        unsafe {
            (&raw mut (*entry).address).write(self.address(id) as u64);
            (&raw mut (*entry).len).write(self.buf_bytes);
            (&raw mut (*entry).id).write(id);
        }
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: entry 0 is inside the mapping; its tail is only accessed atomically, by the kernel
        // (which loads it with acquire) and here. Release makes the entry visible before it.
        unsafe { (*entries).tail.store(self.tail, Ordering::Release) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry_at(buffers: &ProvidedBuffers, index: usize) -> (u64, u32, u16) {
        let entry = buffers
            .entries
            .copy_as_kernel((index * size_of::<Entry>()) as u32, 16)
            .unwrap();
        (
            u64::from_ne_bytes(entry[..8].try_into().unwrap()),
            u32::from_ne_bytes(entry[8..12].try_into().unwrap()),
            u16::from_ne_bytes(entry[12..14].try_into().unwrap()),
        )
    }

    fn tail(buffers: &ProvidedBuffers) -> u16 {
        let bytes = buffers.entries.copy_as_kernel(14, 2).unwrap();
        u16::from_ne_bytes(bytes.try_into().unwrap())
    }

    #[test]
    fn entries_and_tail_are_laid_out_as_the_kernel_reads_them() {
        let mut buffers = ProvidedBuffers::new(4, 1000).unwrap();
        assert_eq!(tail(&buffers), 4);
        for id in 0..4 {
            let expected = (buffers.address(id) as u64, 1000, id);
            assert_eq!(entry_at(&buffers, usize::from(id)), expected);
        }
        let (first, second) = (buffers.lend(0, 1000), buffers.lend(1, 7));
        assert_eq!(buffers.free(), 2);
        assert_eq!(buffers.bytes(&second).len(), 7);
        buffers.recycle(second);
        buffers.recycle(first);
        assert_eq!(tail(&buffers), 6);
        assert_eq!(entry_at(&buffers, 0).2, 1);
        assert_eq!(entry_at(&buffers, 1).2, 0);
        assert_eq!(buffers.free(), 4);
    }

    #[test]
    fn the_tail_wraps_after_65536_buffers() {
        let mut buffers = ProvidedBuffers::new(2, 16).unwrap();
        for round in 0..70_000u32 {
            let buf = buffers.lend((round % 2) as u16, 1);
            buffers.recycle(buf);
        }
        assert_eq!(tail(&buffers), 70_002u32 as u16);
    }

    #[test]
    #[should_panic(expected = "another ring")]
    fn a_buffer_that_is_not_on_loan_cannot_be_read() {
        let (mut one, other) = (
            ProvidedBuffers::new(2, 16).unwrap(),
            ProvidedBuffers::new(2, 16).unwrap(),
        );
        let buf = one.lend(0, 16);
        other.bytes(&buf);
    }
}
