//! Reading ahead: whoever reads message after message gets them from blocks of a file.

use super::files::StoreFile;
use bytes::Bytes;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

const BLOCK_BYTES: u64 = 256 << 10;

/// A piece of a file whose bytes do not change any more.
#[derive(Default)]
pub struct Block {
    /// Number of the slice the file is of.
    slice: u64,
    at: u64,
    bytes: Bytes,
}

impl Block {
    /// `len` bytes at `at`. When they are not in the block and the reader reads on (`ahead`), the block becomes
    /// what follows from there, up to `end`, which must be written already.
    pub fn read(
        &mut self,
        file: &Arc<StoreFile>,
        slice: u64,
        at: u64,
        len: usize,
        ahead: bool,
        end: u64,
    ) -> io::Result<Bytes> {
        if let Some(found) = self.find(slice, at, len) {
            return Ok(found);
        }
        let wanted = match ahead {
            true => BLOCK_BYTES.min(end.saturating_sub(at)).max(len as u64),
            false => len as u64,
        };
        let mut bytes = vec![0; wanted as usize];
        file.get()?.read_exact_at(&mut bytes, at)?;
        let bytes = Bytes::from(bytes);
        let found = bytes.slice(..len);
        if ahead {
            *self = Self { slice, at, bytes };
        }
        Ok(found)
    }

    fn find(&self, slice: u64, at: u64, len: usize) -> Option<Bytes> {
        let from = at.checked_sub(self.at)? as usize;
        let within = self.slice == slice && from + len <= self.bytes.len();
        within.then(|| self.bytes.slice(from..from + len))
    }
}

#[cfg(test)]
mod tests {
    use super::super::files::Files;
    use super::*;

    #[test]
    fn the_same_bytes_with_and_without_a_block() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::new(10);
        let file = files.file(folder.path().join("a"));
        let content: Vec<u8> = (0..600_000u32).map(|n| (n * 7 % 251) as u8).collect();
        std::fs::write(file.path(), &content).unwrap();
        let mut block = Block::default();
        let mut read = |at: usize, len: usize, ahead| {
            let end = content.len() as u64;
            let bytes = block.read(&file, 1, at as u64, len, ahead, end).unwrap();
            assert_eq!(bytes, &content[at..at + len], "{len} bytes at {at}");
        };
        for (at, len, ahead) in [
            (0, 10, true),
            (10, 300_000, true),
            (5, 20, false),
            (599_990, 10, true),
            (300_000, 1, true),
            (299_999, 2, true),
        ] {
            read(at, len, ahead);
        }
        // Another slice has other bytes at the same place.
        let other = files.file(folder.path().join("b"));
        std::fs::write(other.path(), [9; 20]).unwrap();
        assert_eq!(block.read(&other, 2, 0, 4, true, 20).unwrap(), [9; 4][..]);
        assert!(block.read(&other, 2, 18, 4, true, 20).is_err());
    }
}
