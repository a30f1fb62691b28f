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
    /// Those of the region that were handed out to some class so far.
    blocks: Vec<Block>,
    /// Offsets of free chunks.
    free: [Vec<u32>; 3],
    taken: u32,
}

/// `BLOCK_BYTES` of the region, cut into chunks of one class until none of them is in use and another class wants it.
#[derive(Debug)]
struct Block {
    class: Class,
    /// Chunks in use.
    taken: u32,
}

fn block_of(offset: u32) -> usize {
    (offset / BLOCK_BYTES) as usize
}

impl Pool {
    pub fn new(region: RegionMut) -> Self {
        assert!(
            region.len() < u32::MAX as usize,
            "chunks are addressed by 32 bits"
        );
        Self {
            region,
            blocks: Vec::new(),
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
        self.blocks[block_of(offset)].taken += 1;
        Some(offset)
    }

    fn carve(&mut self, class: Class) -> Option<u32> {
        let block = if (self.blocks.len() + 1) * BLOCK_BYTES as usize <= self.region.len() {
            self.blocks.push(Block { class, taken: 0 });
            (self.blocks.len() - 1) as u32 * BLOCK_BYTES
        } else {
            self.reclaim()?
        };
        self.blocks[block_of(block)].class = class;
        let size = CHUNK_BYTES[class as usize];
        // Pushed downward so that chunks come out in rising order: fewer pages touched.
        let mut at = block + BLOCK_BYTES;
        while at > block + size {
            at -= size;
            self.free[class as usize].push(at);
        }
        Some(block)
    }

    /// The fresh memory is gone; a block that is not in use may still be taken from its class. Without it a moment in
    /// which everything was wanted in small chunks would leave no large ones for as long as the process lives.
    fn reclaim(&mut self) -> Option<u32> {
        if let Some(block) = self.free[LARGEST as usize].pop() {
            return Some(block);
        }
        let idle = self.blocks.iter().position(|block| block.taken == 0)?;
        let class = self.blocks[idle].class;
        self.free[class as usize].retain(|offset| block_of(*offset) != idle);
        Some(idle as u32 * BLOCK_BYTES)
    }

    pub fn give(&mut self, offset: u32, class: Class) {
        let block = &mut self.blocks[block_of(offset)];
        assert!(block.taken > 0, "a chunk came back twice");
        assert_eq!(block.class, class, "a chunk came back as another");
        block.taken -= 1;
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
    fn small_chunks_become_large_ones_again() {
        let mut pool = Pool::new(RegionMut::map(256 << 10).unwrap());
        let small: Vec<u32> = std::iter::from_fn(|| pool.take(0)).collect();
        assert_eq!(small.len(), 128);
        let (kept, others) = small.split_first().unwrap();
        for offset in others {
            pool.give(*offset, 0);
        }
        // Not the block of the one that is kept.
        let large = pool.take(2).expect("nobody has anything of it");
        assert_ne!(block_of(large), block_of(*kept));
        assert_eq!(pool.take(2), None);
        // Nothing of it is given out twice.
        assert_eq!(std::iter::from_fn(|| pool.take(0)).count(), 63);
        pool.give(large, 2);
        assert_eq!(std::iter::from_fn(|| pool.take(1)).count(), 8);
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
