//! Vector instructions and system calls behind a safe face. One of the few places outside uring/
//! with `unsafe`.
#![allow(unsafe_code)]

/// Marks of the bytes <= b' ' in 32 bytes, lowest bit first.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn blanks(chunk: &[u8; 32]) -> u32 {
    use std::arch::x86_64::{
        _mm_cmpeq_epi8, _mm_loadu_si128, _mm_min_epu8, _mm_movemask_epi8, _mm_set1_epi8,
    };
    let half = |at: usize| {
        // SAFETY: `at` is 0 or 16, so the unaligned load reads 16 bytes inside the 32 that `chunk`
        // borrows; SSE2 belongs to the baseline of x86_64.
        unsafe {
            let v = _mm_loadu_si128(chunk.as_ptr().add(at).cast());
            _mm_movemask_epi8(_mm_cmpeq_epi8(_mm_min_epu8(v, _mm_set1_epi8(0x20)), v)) as u32
        }
    };
    half(0) | half(16) << 16
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub fn blanks(chunk: &[u8; 32]) -> u32 {
    chunk
        .iter()
        .rev()
        .fold(0, |marks, byte| marks << 1 | u32::from(*byte <= b' '))
}

/// Whether the first `len` bytes of both, at most 32, are the same.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn same_start(one: &[u8; 32], other: &[u8; 32], len: usize) -> bool {
    use std::arch::x86_64::{_mm_cmpeq_epi8, _mm_loadu_si128, _mm_movemask_epi8};
    debug_assert!(len <= 32);
    let half = |at: usize| {
        // SAFETY: `at` is 0 or 16, so both unaligned loads read 16 bytes inside the 32 that are
        // borrowed; SSE2 belongs to the baseline of x86_64.
        unsafe {
            let one = _mm_loadu_si128(one.as_ptr().add(at).cast());
            let other = _mm_loadu_si128(other.as_ptr().add(at).cast());
            _mm_movemask_epi8(_mm_cmpeq_epi8(one, other)) as u32
        }
    };
    let same = half(0) | half(16) << 16;
    // The first byte that differs, or 32.
    (!same).trailing_zeros() as usize >= len
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub fn same_start(one: &[u8; 32], other: &[u8; 32], len: usize) -> bool {
    one[..len] == other[..len]
}

/// Sets the priority of the calling thread against all others; false where that is not allowed,
/// as for numbers below 0 without the right to it.
pub fn set_thread_nice(nice: i32) -> bool {
    // SAFETY: a system call on plain numbers; 0 stands for the calling thread, which is what Linux
    // takes "process" to mean here.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) == 0 }
}

#[cfg(test)]
mod tests {
    #[test]
    fn starts_are_the_same_up_to_the_first_byte_that_differs() {
        let one: [u8; 32] = std::array::from_fn(|i| i as u8);
        for place in 0..=32 {
            let mut other = one;
            if let Some(byte) = other.get_mut(place) {
                *byte ^= 0x80;
            }
            for len in 0..=32 {
                assert_eq!(super::same_start(&one, &other, len), len <= place);
            }
        }
    }

    #[test]
    fn every_byte_value_is_marked_rightly_at_every_place() {
        for value in 0..=u8::MAX {
            for place in 0..32 {
                let mut chunk = [b'x'; 32];
                chunk[place] = value;
                let expect = if value <= b' ' { 1u32 << place } else { 0 };
                assert_eq!(super::blanks(&chunk), expect, "{value} at {place}");
            }
        }
    }
}
