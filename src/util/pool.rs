//! Output memory of one event loop: chunks of three sizes carved from the region that is
//! registered with the ring.
//!
//! Chunks exist only while something is pending, so an idle connection costs nothing here. When
//! the region is used up, `take` says so and the caller falls back to the heap: the region bounds
//! what is pinned, not what can be pending.

use super::region::RegionMut;

/// Sizes of chunks in bytes. The first serves request-reply traffic, the last one turn of a
/// publisher at full speed, so that such a turn leaves in one write of one segment.
pub const CHUNK_BYTES: [u32; 3] = [2 << 10, 16 << 10, 128 << 10];
const BLOCK_BYTES: u32 = CHUNK_BYTES[2];
const _: () = assert!(
    BLOCK_BYTES.is_multiple_of(CHUNK_BYTES[0]) && BLOCK_BYTES.is_multiple_of(CHUNK_BYTES[1])
);

/// Index into `CHUNK_BYTES`.
pub type Class = u8;
pub const LARGEST: Class = 2;

/// The smallest class that holds `bytes`, or the largest.
pub fn class_for(bytes: usize) -> Class {
    CHUNK_BYTES
        .iter()
        .position(|size| bytes <= *size as usize)
        .unwrap_or(LARGEST as usize) as Class
}

#[derive(Debug)]
pub struct Pool {
    region: RegionMut,
    /// Bytes of the region handed out to some class so far; a block stays with its class.
    carved: u32,
    free: [Vec<u32>; 3],
    taken: u32,
}

impl Pool {
    pub fn new(region: RegionMut) -> Self {
        assert!(
            region.len() < u32::MAX as usize,
            "chunks are addressed by 32 bits"
        );
        Self {
            region,
            carved: 0,
            free: Default::default(),
            taken: 0,
        }
    }

    /// The offset of a free chunk of this class, or None when the region is used up.
    pub fn take(&mut self, class: Class) -> Option<u32> {
        let offset = match self.free[class as usize].pop() {
            Some(offset) => offset,
            None => self.carve(class)?,
        };
        self.taken += 1;
        Some(offset)
    }

    fn carve(&mut self, class: Class) -> Option<u32> {
        let block = if self.carved as usize + BLOCK_BYTES as usize <= self.region.len() {
            self.carved += BLOCK_BYTES;
            self.carved - BLOCK_BYTES
        } else {
            // The fresh memory is gone; a free large chunk may still be split.
            self.free[LARGEST as usize].pop()?
        };
        let size = CHUNK_BYTES[class as usize];
        // Pushed downward so that chunks come out in rising order: fewer pages touched.
        let mut at = block + BLOCK_BYTES;
        while at > block + size {
            at -= size;
            self.free[class as usize].push(at);
        }
        Some(block)
    }

    pub fn give(&mut self, offset: u32, class: Class) {
        assert!(self.taken > 0, "a chunk came back twice");
        self.taken -= 1;
        self.free[class as usize].push(offset);
    }

    /// `len` bytes of the region from `offset`.
    #[inline]
    pub fn bytes_mut(&mut self, offset: u32, len: u32) -> &mut [u8] {
        &mut self.region.as_mut()[offset as usize..offset as usize + len as usize]
    }

    #[inline]
    pub fn bytes(&self, offset: u32, len: u32) -> &[u8] {
        &self.region.as_ref()[offset as usize..offset as usize + len as usize]
    }

    /// Chunks in use, for tests of leaks and for monitoring.
    pub fn taken(&self) -> u32 {
        self.taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_never_overlap_and_come_back() {
        let mut pool = Pool::new(RegionMut::map(1 << 20).unwrap());
        let mut held = Vec::new();
        let mut covered = vec![false; 1 << 20];
        for class in [0, 1, 2, 0, 1, 0, 2, 2, 1] {
            let offset = pool.take(class).expect("there is room");
            for used in &mut covered[offset as usize..][..CHUNK_BYTES[class as usize] as usize] {
                assert!(!std::mem::replace(used, true), "overlap at class {class}");
            }
            held.push((offset, class));
        }
        for (offset, class) in held {
            pool.give(offset, class);
        }
        assert_eq!(pool.taken(), 0);
    }

    #[test]
    fn an_exhausted_region_says_so_and_recovers() {
        let mut pool = Pool::new(RegionMut::map(256 << 10).unwrap());
        let (a, b) = (pool.take(2).unwrap(), pool.take(2).unwrap());
        assert_eq!(pool.take(2), None);
        assert_eq!(pool.take(0), None);
        pool.give(a, 2);
        assert_eq!(pool.take(0), Some(a));
        pool.give(b, 2);
        assert_eq!(pool.take(2), Some(b));
    }
}
