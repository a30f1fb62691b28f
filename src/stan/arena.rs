//! Short pieces of bytes that are made and dropped in about the same order, many in one allocation.
//!
//! A block is given back when all its pieces are gone and the next one is begun. It is an eighth of what its owner keeps, within a limit: what the ends of a row
//! hold in vain is little beside what is kept, and one who keeps little has a separate allocation for each piece.

use bytes::{Bytes, BytesMut};

const BLOCK_BYTES_MAX: usize = 64 << 10;
/// Blocks in what is kept, at least.
const BLOCKS: usize = 8;
/// Pieces in a block, at least: larger ones would leave the ends of many unused.
const PIECES: usize = 4;

/// Larger ones never lie in a block.
pub const PIECE_BYTES_MAX: usize = BLOCK_BYTES_MAX / PIECES;

/// What one keeps who keeps much, if not for long.
pub const MUCH: usize = BLOCKS * BLOCK_BYTES_MAX;

#[derive(Default)]
pub struct Arena {
    /// What is left of the last block.
    block: BytesMut,
}

impl Arena {
    /// A piece of so many bytes, which `write` appends. `kept`: bytes of pieces that are there, about.
    pub fn piece(&mut self, bytes: usize, kept: usize, write: impl FnOnce(&mut BytesMut)) -> Bytes {
        let block_bytes = (kept / BLOCKS).min(BLOCK_BYTES_MAX);
        if bytes > block_bytes / PIECES {
            let mut own = BytesMut::with_capacity(bytes);
            write(&mut own);
            debug_assert_eq!(own.len(), bytes);
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
        let mut put = |text: &[u8]| put(&mut arena, BLOCKS * 1000, text);
        let pieces: Vec<Bytes> = (0..100u8).map(|n| put(&[n; 9])).collect();
        let first = pieces[0].as_ptr();
        assert_eq!(pieces[1].as_ptr(), first.wrapping_add(9));
        for (n, piece) in (0u8..).zip(&pieces) {
            assert_eq!(piece[..], [n; 9]);
        }
        // One that is large is elsewhere, and the row goes on behind it.
        let (large, small) = (put(&[7; 251]), put(&[8; 100]));
        assert_eq!(large[..], [7; 251]);
        assert_eq!(small.as_ptr(), first.wrapping_add(900));
        // The second block begins where the first has no room.
        let next = put(&[9]);
        assert_ne!(next.as_ptr(), first.wrapping_add(1000));
        assert_eq!((pieces[0][0], small[99], next[0]), (0, 8, 9));
    }

    #[test]
    fn blocks_are_a_part_of_what_is_kept() {
        let rest = |kept, bytes: usize| {
            let mut arena = Arena::default();
            let piece = put(&mut arena, kept, &vec![1; bytes]);
            assert_eq!(piece.len(), bytes);
            arena.block.capacity()
        };
        assert_eq!(rest(0, 12), 0);
        assert_eq!(rest(8000, 250), 750);
        assert_eq!(rest(8000, 251), 0);
        assert_eq!(rest(usize::MAX, 36), BLOCK_BYTES_MAX - 36);
        assert_eq!(rest(MUCH, 36), BLOCK_BYTES_MAX - 36);
    }
}
