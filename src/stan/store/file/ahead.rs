//! Reading ahead: whoever reads message after message gets them from blocks of a file.

use super::files::{Files, StoreFile};
use bytes::Bytes;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The first block; each one behind it is twice as large as the one before, up to what is allowed.
const FIRST_BYTES: usize = 64 << 10;
/// Blocks of all channels together; beyond that all stay small.
const ALL_BYTES_MAX: usize = 64 << 20;

/// A piece of a file whose bytes do not change any more.
#[derive(Default)]
pub struct Block {
    /// Number of the slice the file is of.
    slice: u64,
    at: u64,
    bytes: Bytes,
    /// Where the bytes are counted.
    counted: Option<Arc<Files>>,
}

impl Block {
    /// `len` bytes at `at`. When they are not in the block and the reader reads on, the block becomes
    /// what follows from there, up to `end`, which must be written already; `ahead` is the most that it may be. What cannot be
    /// read behind them is no error.
    pub fn read(
        &mut self,
        file: &Arc<StoreFile>,
        slice: u64,
        at: u64,
        len: usize,
        ahead: usize,
        end: u64,
    ) -> io::Result<Bytes> {
        if let Some(found) = self.find(slice, at, len) {
            return Ok(found);
        }
        let all = &file.files().ahead_bytes;
        let grown = match all.load(Ordering::Relaxed) < ALL_BYTES_MAX {
            true => (2 * self.bytes.len()).max(FIRST_BYTES),
            false => FIRST_BYTES,
        };
        let wanted = (ahead.min(grown) as u64).min(end.saturating_sub(at));
        let mut bytes = vec![0; (wanted as usize).max(len)];
        let open = file.get()?;
        if let Err(error) = open.read_exact_at(&mut bytes, at) {
            if bytes.len() == len {
                return Err(error);
            }
            bytes.truncate(len);
            open.read_exact_at(&mut bytes, at)?;
            return Ok(bytes.into());
        }
        let bytes = Bytes::from(bytes);
        let found = bytes.slice(..len);
        if ahead > 0 {
            all.fetch_add(bytes.len(), Ordering::Relaxed);
            *self = Self {
                slice,
                at,
                bytes,
                counted: Some(file.files().clone()),
            };
        }
        Ok(found)
    }

    fn find(&self, slice: u64, at: u64, len: usize) -> Option<Bytes> {
        let from = at.checked_sub(self.at)? as usize;
        let within = self.slice == slice && from + len <= self.bytes.len();
        within.then(|| self.bytes.slice(from..from + len))
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(files) = &self.counted {
            files
                .ahead_bytes
                .fetch_sub(self.bytes.len(), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_with_and_without_a_block() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::new(10);
        let file = files.file(folder.path().join("a"));
        let content: Vec<u8> = (0..600_000u32).map(|n| (n * 7 % 251) as u8).collect();
        std::fs::write(file.path(), &content).unwrap();
        let mut block = Block::default();
        let mut read = |at: usize, len: usize, ahead: usize| {
            let end = content.len() as u64;
            let bytes = block.read(&file, 1, at as u64, len, ahead, end).unwrap();
            assert_eq!(bytes, &content[at..at + len], "{len} bytes at {at}");
        };
        for (at, len, ahead) in [
            (0, 10, 1 << 20),
            (10, 300_000, 1 << 20),
            (5, 20, 0),
            (599_990, 10, 1 << 20),
            (300_000, 1, 1 << 20),
            (299_999, 2, 1 << 20),
        ] {
            read(at, len, ahead);
        }
        // Another slice has other bytes at the same place.
        let other = files.file(folder.path().join("b"));
        std::fs::write(other.path(), [9; 20]).unwrap();
        assert_eq!(block.read(&other, 2, 0, 4, 100, 20).unwrap(), [9; 4][..]);
        assert!(block.read(&other, 2, 18, 4, 100, 20).is_err());
        // What is behind them cannot be read.
        assert_eq!(block.read(&other, 3, 0, 4, 100, 30).unwrap(), [9; 4][..]);
        assert_eq!(block.read(&other, 3, 16, 4, 100, 30).unwrap(), [9; 4][..]);
    }

    #[test]
    fn blocks_grow_up_to_what_is_allowed_and_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::new(10);
        let file = files.file(folder.path().join("a"));
        std::fs::write(file.path(), vec![1; 4 << 20]).unwrap();
        let counted = || files.ahead_bytes.load(Ordering::Relaxed);
        let mut block = Block::default();
        let mut at = 0;
        for expected in [64, 128, 256, 300, 300] {
            block.read(&file, 1, at, 10, 300 << 10, 4 << 20).unwrap();
            assert_eq!(counted(), expected << 10);
            at += counted() as u64;
        }
        let before = files
            .ahead_bytes
            .fetch_add(ALL_BYTES_MAX, Ordering::Relaxed);
        block.read(&file, 1, at, 10, 300 << 10, 4 << 20).unwrap();
        assert_eq!(counted() - ALL_BYTES_MAX, FIRST_BYTES);
        files
            .ahead_bytes
            .fetch_sub(ALL_BYTES_MAX, Ordering::Relaxed);
        drop(block);
        assert!(before > 0 && counted() == 0);
        // Without reading ahead nothing is kept.
        let mut block = Block::default();
        block.read(&file, 1, 0, 10, 0, 4 << 20).unwrap();
        assert_eq!(counted(), 0);
    }
}
