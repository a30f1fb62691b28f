//! Short pieces of bytes that are made and dropped in about the same order, many in one allocation.
//!
//! A block is given back with the last of its pieces. It is as large as what its owner keeps, within limits, so that one who keeps little holds little.

use bytes::{Bytes, BytesMut};

const BLOCK_BYTES_MIN: usize = 512;
const BLOCK_BYTES_MAX: usize = 64 << 10;

#[derive(Default)]
pub struct Arena {
    /// What is left of the last block.
    block: BytesMut,
}

impl Arena {
    /// A piece of so many bytes, which `write` appends. `kept`: bytes of pieces that are there, about.
    pub fn piece(&mut self, bytes: usize, kept: usize, write: impl FnOnce(&mut BytesMut)) -> Bytes {
        let block_bytes = kept.clamp(BLOCK_BYTES_MIN, BLOCK_BYTES_MAX);
        // Large ones would leave the ends of many blocks unused.
        if bytes > block_bytes / 4 {
            let mut own = BytesMut::with_capacity(bytes);
            write(&mut own);
            return own.freeze();
        }
        if self.block.capacity() < bytes {
            self.block = BytesMut::with_capacity(block_bytes);
        }
        write(&mut self.block);
        debug_assert_eq!(self.block.len(), bytes);
        self.block.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(arena: &mut Arena, kept: usize, text: &[u8]) -> Bytes {
        arena.piece(text.len(), kept, |block| block.extend_from_slice(text))
    }

    #[test]
    fn pieces_lie_one_behind_the_other() {
        let mut arena = Arena::default();
        let pieces: Vec<Bytes> = (0..100u8).map(|n| put(&mut arena, 0, &[n; 10])).collect();
        let first = pieces[0].as_ptr();
        assert_eq!(pieces[1].as_ptr(), first.wrapping_add(10));
        for (n, piece) in (0u8..).zip(&pieces) {
            assert_eq!(piece[..], [n; 10]);
        }
        let large = put(&mut arena, 0, &[0; 200]);
        let small = put(&mut arena, 0, &[1]);
        assert_eq!(small.as_ptr(), pieces[99].as_ptr().wrapping_add(10));
        assert_eq!((large.len(), small[0]), (200, 1));
        // The second block begins where the first has no room.
        assert_ne!(pieces[51].as_ptr(), first.wrapping_add(510));
    }

    #[test]
    fn blocks_are_as_large_as_what_is_kept() {
        let rest = |kept, bytes: usize| {
            let mut arena = Arena::default();
            put(&mut arena, kept, &vec![1; bytes]);
            arena.block.capacity()
        };
        assert_eq!(rest(0, 12), BLOCK_BYTES_MIN - 12);
        assert_eq!(rest(10_000, 1), 9_999);
        assert_eq!(rest(usize::MAX, 36), BLOCK_BYTES_MAX - 36);
    }
}
