//! One anonymous mapping whose bytes the kernel may read at any time: the memory messages are
//! written from. Imports std and libc. Must not know rings, connections or what the bytes mean.
//!
//! The mapping has one writer, [`RegionMut`], and any number of keep-alives, [`Region`]. A keep-alive
//! gives no reference to the bytes, only their address: whoever holds one may name ranges to the
//! kernel, and the mapping stays until the last holder is gone. So the buffer pool can fill memory
//! through plain `&mut [u8]` while a ring keeps the very same memory alive for writes in flight.
//! That a range in flight is not refilled is the pool's promise; breaking it sends wrong bytes but
//! is no memory error, and the scripted kernel in `uring::fake` panics on it.
#![allow(unsafe_code)]

use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;

/// Transparent huge pages exist only on aligned ranges of this size on x86-64 and, with 4 KiB base
/// pages, aarch64.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// The only handle through which the bytes of a mapping can be read or written by Rust code.
#[derive(Debug)]
pub struct RegionMut {
    mapping: Arc<Mapping>,
}

/// Keeps a mapping alive and knows where it lies; gives no access to the bytes.
#[derive(Clone, Debug)]
pub struct Region {
    mapping: Arc<Mapping>,
}

#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is a pair of numbers until somebody dereferences the base. The only code that
// makes references from it is `RegionMut`, which is unique for its mapping and follows the borrow
// rules of `&self` and `&mut self`; munmap may be called from any thread.
unsafe impl Send for Mapping {}
// SAFETY: as above; no method of `Mapping` changes anything through `&self`.
unsafe impl Sync for Mapping {}

impl RegionMut {
    /// Maps `len_bytes` of zeroed memory, rounded up to whole pages.
    ///
    /// Memory is taken on first touch only, so an unused tail costs address space and nothing else,
    /// until the region is registered with a ring, which pins all of it.
    pub fn map(len_bytes: usize) -> io::Result<RegionMut> {
        Ok(RegionMut {
            mapping: Arc::new(Mapping::new(len_bytes)?),
        })
    }

    /// A handle that keeps the memory alive without giving access to it.
    pub fn keep_alive(&self) -> Region {
        Region {
            mapping: Arc::clone(&self.mapping),
        }
    }

    pub fn as_ptr(&self) -> *const u8 {
        self.mapping.base.as_ptr()
    }

    pub fn len(&self) -> usize {
        self.mapping.len
    }

    pub fn is_empty(&self) -> bool {
        self.mapping.len == 0
    }
}

impl AsRef<[u8]> for RegionMut {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: base and len describe a live mapping of initialised (zeroed) bytes, kept by the
        // Arc for at least as long as `self`. Rust code writes to it only through `&mut self`; the
        // kernel only reads what a ring names from this region.
        unsafe { std::slice::from_raw_parts(self.mapping.base.as_ptr(), self.mapping.len) }
    }
}

impl AsMut<[u8]> for RegionMut {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_ref`; `self` is the only RegionMut of this mapping (it is not Clone and
        // `map` makes one per mapping) and is borrowed exclusively, so no other reference exists.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.base.as_ptr(), self.mapping.len) }
    }
}

impl Region {
    /// Address of the first byte. Rust code outside `uring` has no use for it.
    pub fn base(&self) -> *mut u8 {
        self.mapping.base.as_ptr()
    }

    pub fn len(&self) -> usize {
        self.mapping.len
    }

    pub fn is_empty(&self) -> bool {
        self.mapping.len == 0
    }

    /// Address of `len` bytes at `offset`. Panics when they do not lie inside the region: a wrong
    /// range is our own bug, and the kernel would send somebody else's memory.
    pub fn range(&self, offset: u32, len: u32) -> *const u8 {
        let (offset, len) = (offset as usize, len as usize);
        assert!(
            offset <= self.mapping.len,
            "segment starts outside its region"
        );
        assert!(
            len <= self.mapping.len - offset,
            "segment ends outside its region"
        );
        self.mapping.base.as_ptr().wrapping_add(offset)
    }

    /// Copies `len` bytes at `offset` the way a ring would see them: the kernel reads them.
    ///
    /// Reading through a pointer would be undefined while the [`RegionMut`] is borrowed elsewhere,
    /// and nothing in the types forbids that. For tests; costs a system call.
    pub fn copy_as_kernel(&self, offset: u32, len: u32) -> io::Result<Vec<u8>> {
        let mut copy = vec![0u8; len as usize];
        let local = libc::iovec {
            iov_base: copy.as_mut_ptr().cast(),
            iov_len: copy.len(),
        };
        let remote = libc::iovec {
            iov_base: self.range(offset, len).cast_mut().cast(),
            iov_len: copy.len(),
        };
        // SAFETY: `local` is our own vector, alive and unaliased over the call; `remote` is only
        // read, by the kernel, and lies inside a mapping that `self` keeps alive.
        let copied = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
        match copied {
            -1 => Err(io::Error::last_os_error()),
            n if n as usize == copy.len() => Ok(copy),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Mapping {
    fn new(len_bytes: usize) -> io::Result<Mapping> {
        assert!(len_bytes > 0, "a region has at least one byte");
        let page_bytes = page_bytes();
        let len = len_bytes
            .checked_next_multiple_of(page_bytes)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        // mmap aligns to small pages only: take one huge page more and give back both ends.
        let huge = len >= HUGE_PAGE_BYTES;
        let slack = if huge { HUGE_PAGE_BYTES } else { 0 };
        let total = len.checked_add(slack).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a fresh anonymous mapping at an address the kernel chooses aliases nothing.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                total,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start: *mut u8 = start.cast();
        let skipped = if huge {
            start.align_offset(HUGE_PAGE_BYTES)
        } else {
            0
        };
        let base = start.wrapping_add(skipped);
        if huge {
            // SAFETY: both ranges are page-aligned parts of the mapping made above, outside
            // base..base+len, and nobody has a pointer into them. The advice on the rest changes
            // no contents. Failure of any of the three costs memory or speed only.
            unsafe {
                if skipped > 0 {
                    libc::munmap(start.cast(), skipped);
                }
                if slack > skipped {
                    libc::munmap(base.wrapping_add(len).cast(), slack - skipped);
                }
                libc::madvise(base.cast(), len, libc::MADV_HUGEPAGE);
            }
        }
        let base = NonNull::new(base).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { base, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and len are exactly what `new` kept of its mapping. The last Arc is going
        // away, so neither the RegionMut nor any keep-alive (a ring with writes in flight among
        // them) is left to use it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

fn page_bytes() -> usize {
    // SAFETY: sysconf reads a constant; it has no memory arguments.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).expect("the page size is always known on Linux")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_outlives_its_writer() {
        let mut writer = RegionMut::map(10_000).unwrap();
        assert_eq!(writer.len(), 12_288);
        writer.as_mut()[8..12].copy_from_slice(b"ping");
        let kept = writer.keep_alive();
        assert_eq!(kept.base().cast_const(), writer.as_ptr());
        assert_eq!(&writer.as_ref()[8..12], b"ping");
        drop(writer);
        assert_eq!(kept.copy_as_kernel(8, 4).unwrap(), b"ping");
    }

    #[test]
    fn large_regions_are_aligned_for_huge_pages() {
        for len in [HUGE_PAGE_BYTES, 3 * HUGE_PAGE_BYTES + 4096] {
            let mut writer = RegionMut::map(len).unwrap();
            assert_eq!(writer.as_ptr().align_offset(HUGE_PAGE_BYTES), 0);
            assert_eq!(writer.len(), len);
            let bytes = writer.as_mut();
            bytes[0] = 1;
            bytes[len - 1] = 2;
        }
    }

    #[test]
    fn ranges_are_checked_at_both_ends() {
        let region = RegionMut::map(4096).unwrap().keep_alive();
        region.range(0, 4096);
        region.range(4096, 0);
        for (offset, len) in [(4097, 0), (4096, 1), (1, 4096), (u32::MAX, u32::MAX)] {
            let outside = std::panic::catch_unwind(|| region.range(offset, len));
            assert!(outside.is_err(), "{offset}+{len} accepted");
        }
    }
}
