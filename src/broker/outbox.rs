//! The bounded output queue of one connection.
//!
//! ```text
//!   closed[0]  closed[1] ...            tail (open)
//!   |####----|  |##########|            |######......|
//!       ^ `written` bytes are out                ^ next message goes here
//! ```
//!
//! Segments leave in order; a write in flight covers a prefix of what is here, so bytes that were
//! handed out never move. The open tail may grow while the kernel reads the part before it.

use crate::util::pool::{self, CHUNK_BYTES, Class, Pool};
use crate::wire::parser::Padded;
use bytes::Bytes;
use std::collections::VecDeque;

/// Extra room asked for behind each piece, so that short copies can be made in one fixed size.
pub const PADDING: usize = 32;

/// Capacities of segments on the heap, used when the region is exhausted: one turn's output for many connections that
/// get little, and the most for one that gets much. Between them each is twice the one before.
const HEAP_SEGMENT_BYTES_MIN: usize = 1 << 10;
const HEAP_SEGMENT_BYTES_MAX: usize = 64 << 10;

/// A run of bytes to be written.
#[derive(Debug)]
pub enum Segment {
    /// A chunk of the pool, of which the first `len` bytes are output.
    Chunk { offset: u32, len: u32, class: Class },
    /// Memory of its own: a large message, shared, or output that found no room in the region.
    Shared(Bytes),
}

impl Segment {
    fn len(&self) -> usize {
        match self {
            Self::Chunk { len, .. } => *len as usize,
            Self::Shared(bytes) => bytes.len(),
        }
    }
}

/// What a write is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    Region { offset: u32, len: u32 },
    Shared(Bytes),
}

#[derive(Debug, Default)]
struct OpenChunk {
    offset: u32,
    len: u32,
    /// 0: there is no open chunk.
    capacity: u32,
    class: Class,
}

#[derive(Debug, Default)]
pub struct Outbox {
    open: OpenChunk,
    /// The class to begin with, learned from what earlier turns needed.
    class: Class,
    /// Bytes of the first segment that are already written.
    written: u32,
    /// Bytes not yet written.
    pending: usize,
    closed: VecDeque<Segment>,
    /// Open segment on the heap, behind `closed` and before nothing: exclusive with `open`.
    heap: Vec<u8>,
}

impl Outbox {
    #[inline(always)]
    pub fn pending(&self) -> usize {
        self.pending
    }

    pub fn is_empty(&self) -> bool {
        self.pending == 0
    }

    /// Appends up to `bytes` through `fill`, which gets at least `bytes + PADDING` to write into
    /// and returns how many of them count.
    #[inline(always)]
    pub fn append_with(
        &mut self,
        pool: &mut Pool,
        bytes: usize,
        fill: impl FnOnce(&mut [u8]) -> usize,
    ) {
        let OpenChunk {
            offset,
            len,
            capacity,
            ..
        } = self.open;
        if (len as usize) + bytes + PADDING > capacity as usize {
            return self.append_elsewhere(pool, bytes, fill);
        }
        let used = fill(pool.bytes_mut(offset + len, capacity - len));
        debug_assert!(used <= bytes);
        self.open.len += used as u32;
        self.pending += used;
    }

    /// The open chunk is full, or there is none.
    #[cold]
    fn append_elsewhere(
        &mut self,
        pool: &mut Pool,
        bytes: usize,
        fill: impl FnOnce(&mut [u8]) -> usize,
    ) {
        let needed = bytes + PADDING;
        if self.open.capacity > 0 {
            self.class = (self.open.class + 1).min(pool::LARGEST);
        }
        self.close_open(pool);
        let class = pool::class_for(needed).max(self.class);
        if self.heap.is_empty()
            && needed <= CHUNK_BYTES[class as usize] as usize
            && let Some(offset) = pool.take(class)
        {
            let capacity = CHUNK_BYTES[class as usize];
            let used = fill(pool.bytes_mut(offset, capacity));
            self.open = OpenChunk {
                offset,
                len: used as u32,
                capacity,
                class,
            };
            self.pending += used;
            return;
        }
        let capacity = self.heap.capacity();
        if self.heap.len() + needed > capacity {
            self.close_heap();
            let larger = (2 * capacity).clamp(HEAP_SEGMENT_BYTES_MIN, HEAP_SEGMENT_BYTES_MAX);
            self.heap.reserve_exact(needed.max(larger));
        }
        let at = self.heap.len();
        self.heap.resize(at + needed, 0);
        let used = fill(&mut self.heap[at..]);
        self.heap.truncate(at + used);
        self.pending += used;
    }

    /// Appends bytes that are kept alive by others as well.
    pub fn append_shared(&mut self, pool: &mut Pool, bytes: Bytes) {
        self.close_open(pool);
        self.close_heap();
        self.pending += bytes.len();
        self.closed.push_back(Segment::Shared(bytes));
    }

    pub fn append(&mut self, pool: &mut Pool, bytes: &[u8]) {
        self.append_with(pool, bytes.len(), |to| {
            to[..bytes.len()].copy_from_slice(bytes);
            bytes.len()
        });
    }

    fn close_open(&mut self, pool: &mut Pool) {
        let OpenChunk {
            offset,
            len,
            capacity,
            class,
        } = std::mem::take(&mut self.open);
        if capacity == 0 {
            return;
        }
        if self.closed.is_empty() && self.written == len {
            self.written = 0;
            pool.give(offset, class);
        } else if len == 0 {
            pool.give(offset, class);
        } else {
            self.closed.push_back(Segment::Chunk { offset, len, class });
        }
    }

    fn close_heap(&mut self) {
        // Also an empty one, which may have room reserved.
        let heap = std::mem::take(&mut self.heap);
        if !heap.is_empty() {
            self.closed.push_back(Segment::Shared(heap.into()));
        }
    }

    /// The next write: a prefix of what is pending, in at most `pieces_max` pieces and about
    /// `bytes_max` bytes.
    pub fn pieces(&mut self, pieces_max: usize, bytes_max: usize, out: &mut Vec<Piece>) {
        // The kernel must find heap bytes where they are, so that segment is closed now.
        self.close_heap();
        let mut skip = self.written;
        let mut bytes = 0;
        let segments = self.closed.iter().map(|segment| match segment {
            Segment::Chunk { offset, len, .. } => Piece::Region {
                offset: *offset,
                len: *len,
            },
            Segment::Shared(bytes) => Piece::Shared(bytes.clone()),
        });
        let open = (self.open.len > 0).then_some(Piece::Region {
            offset: self.open.offset,
            len: self.open.len,
        });
        for piece in segments.chain(open) {
            if out.len() == pieces_max || bytes >= bytes_max {
                break;
            }
            let piece = match piece {
                Piece::Region { offset, len } => Piece::Region {
                    offset: offset + skip,
                    len: len - skip,
                },
                Piece::Shared(shared) => Piece::Shared(shared.slice(skip as usize..)),
            };
            skip = 0;
            let len = match &piece {
                Piece::Region { len, .. } => *len as usize,
                Piece::Shared(shared) => shared.len(),
            };
            if len > 0 {
                bytes += len;
                out.push(piece);
            }
        }
    }

    /// The kernel took `bytes` of the last write.
    pub fn advance(&mut self, pool: &mut Pool, bytes: usize) {
        assert!(bytes <= self.pending, "more written than there was");
        self.close_heap();
        self.pending -= bytes;
        let mut left = bytes + self.written as usize;
        while let Some(first) = self.closed.front() {
            if left < first.len() {
                break;
            }
            left -= first.len();
            if let Some(Segment::Chunk { offset, class, .. }) = self.closed.pop_front() {
                pool.give(offset, class);
            }
        }
        self.written = left as u32;
        if self.pending == 0 {
            // Nothing stays behind: an idle connection holds no memory.
            self.class = self.open.class;
            if self.open.capacity > 0 && self.open.len <= self.open.capacity / 8 && self.class > 0 {
                self.class -= 1;
            }
            self.close_open(pool);
            assert_eq!(self.written, 0, "a segment outlived its bytes");
            if self.closed.capacity() > 0 {
                self.closed = VecDeque::new();
            }
        }
    }

    /// Drops everything; no write may be in flight.
    pub fn clear(&mut self, pool: &mut Pool) {
        for segment in std::mem::take(&mut self.closed) {
            if let Segment::Chunk { offset, class, .. } = segment {
                pool.give(offset, class);
            }
        }
        if self.open.capacity > 0 {
            pool.give(self.open.offset, self.open.class);
        }
        *self = Self::default();
    }

    #[cfg(test)]
    fn contents(&mut self, pool: &Pool) -> Vec<u8> {
        let mut pieces = Vec::new();
        self.pieces(usize::MAX, usize::MAX, &mut pieces);
        pieces
            .iter()
            .flat_map(|piece| match piece {
                Piece::Region { offset, len } => pool.bytes(*offset, *len).to_vec(),
                Piece::Shared(bytes) => bytes.to_vec(),
            })
            .collect()
    }
}

/// Copies `from` to `to[at..]` and returns where it ends; short pieces as 32 bytes at once, which
/// is cheaper than a copy of just the right length. `to` has `PADDING` bytes to spare.
#[inline(always)]
pub fn put(to: &mut [u8], at: usize, from: Padded<'_>) -> usize {
    let to = &mut to[at..];
    match (
        to.first_chunk_mut::<PADDING>(),
        from.over.first_chunk::<PADDING>(),
    ) {
        (Some(to), Some(over)) if from.len <= PADDING => *to = *over,
        _ => to[..from.len].copy_from_slice(from.bytes()),
    }
    at + from.len
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::region::RegionMut;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Append(usize),
        Share(usize),
        Write(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..3000usize).prop_map(Step::Append),
            1 => (100_000..140_000usize).prop_map(Step::Append),
            1 => (1..50_000usize).prop_map(Step::Share),
            4 => (0..200_000usize).prop_map(Step::Write),
        ];
        proptest::collection::vec(step, 0..60)
    }

    proptest! {
        /// Against a plain byte queue, with a region small enough to run out.
        #[test]
        fn behaves_as_a_queue_of_bytes(steps in steps()) {
            let mut pool = Pool::new(RegionMut::map(384 << 10).unwrap());
            let (mut outbox, mut model) = (Outbox::default(), Vec::new());
            let mut next = 0u8;
            let mut fresh = |n: usize| -> Vec<u8> {
                (0..n).map(|_| { next = next.wrapping_add(1); next }).collect()
            };
            for step in steps {
                match step {
                    Step::Append(n) => {
                        let bytes = fresh(n);
                        outbox.append(&mut pool, &bytes);
                        model.extend_from_slice(&bytes);
                    }
                    Step::Share(n) => {
                        let bytes = fresh(n);
                        outbox.append_shared(&mut pool, bytes.clone().into());
                        model.extend_from_slice(&bytes);
                    }
                    Step::Write(n) => {
                        let n = n.min(model.len());
                        outbox.advance(&mut pool, n);
                        model.drain(..n);
                    }
                }
                prop_assert_eq!(outbox.pending(), model.len());
                prop_assert!(outbox.contents(&pool) == model);
            }
            let rest = outbox.pending();
            outbox.advance(&mut pool, rest);
            prop_assert_eq!(pool.taken(), 0);
            prop_assert_eq!(outbox.closed.capacity() + outbox.heap.capacity(), 0);
        }
    }

    /// Thousands of connections may get a little in the same turn.
    #[test]
    fn beyond_the_region_a_little_output_takes_little() {
        let mut pool = Pool::new(RegionMut::map(128 << 10).unwrap());
        while pool.take(0).is_some() {}
        let mut outbox = Outbox::default();
        outbox.append(&mut pool, &[0; 100]);
        assert_eq!(outbox.heap.capacity(), HEAP_SEGMENT_BYTES_MIN);
        // And who gets much gets it in few pieces.
        for _ in 0..10_000 {
            outbox.append(&mut pool, &[0; 100]);
        }
        let mut pieces = Vec::new();
        outbox.pieces(usize::MAX, usize::MAX, &mut pieces);
        assert!(pieces.len() < 25, "{}", pieces.len());
    }

    #[test]
    fn a_write_is_limited_in_pieces_and_bytes() {
        let mut pool = Pool::new(RegionMut::map(1 << 20).unwrap());
        let mut outbox = Outbox::default();
        for _ in 0..10 {
            outbox.append_shared(&mut pool, vec![1; 1000].into());
        }
        let mut pieces = Vec::new();
        outbox.pieces(4, usize::MAX, &mut pieces);
        assert_eq!(pieces.len(), 4);
        pieces.clear();
        outbox.pieces(64, 1500, &mut pieces);
        assert_eq!(pieces.len(), 2);
        outbox.clear(&mut pool);
        assert_eq!(outbox.pending(), 0);
    }

    #[test]
    fn short_and_long_pieces_are_put_alike() {
        let source: Vec<u8> = (0..100).collect();
        for len in 0..70 {
            for room in [&source[..], &source[..len]] {
                let mut to = vec![0xff; 110];
                let end = put(&mut to, 3, Padded::new(room, len));
                assert_eq!((end, &to[3..end]), (3 + len, &source[..len]));
            }
        }
    }
}
