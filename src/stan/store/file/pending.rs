//! Messages on their way to the files of a channel: gathered in memory, in order, and cut where a slice ends.

use super::files::StoreFile;
use super::io_error;
use super::records::{Crc, HEADER_BYTES, INDEX_BYTES, IndexEntry, VERSION, put_untyped};
use crate::stan::store::{Seq, StoreError};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// What goes to one slice.
pub struct Piece {
    pub slice: u64,
    pub data_file: Arc<StoreFile>,
    index_file: Arc<StoreFile>,
    /// Places in the files.
    pub data_at: u64,
    index_at: u64,
    pub count: u64,
    pub data_bytes: usize,
    pub last_timestamp: i64,
}

#[derive(Default)]
pub struct Pending {
    pub pieces: Vec<Piece>,
    data: Vec<u8>,
    index: Vec<u8>,
    /// The last message before and in it, and its time: to what a failed write takes everything back.
    pub last: Seq,
    pub last_timestamp: i64,
}

/// Where the next message of a slice goes.
pub struct Place<'a> {
    pub slice: u64,
    pub data_file: &'a Arc<StoreFile>,
    pub index_file: &'a Arc<StoreFile>,
    /// Messages the slice has already, and where their data ends.
    pub count: u64,
    pub data_end: u64,
}

impl Pending {
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub fn data_bytes(&self) -> usize {
        self.data.len()
    }

    /// As limits count.
    pub fn bytes(&self) -> usize {
        self.data.len() + self.index.len()
    }

    pub fn push(&mut self, place: &Place<'_>, seq: Seq, timestamp: i64, payload: &[u8], crc: &Crc) {
        let entry = IndexEntry {
            seq,
            offset: place.data_end,
            timestamp,
            size: payload.len() as u32,
        };
        put_untyped(&mut self.data, crc, payload);
        entry.put(&mut self.index, crc);
        (self.last, self.last_timestamp) = (seq, timestamp);
        let bytes = HEADER_BYTES + payload.len();
        if let Some(piece) = self.pieces.last_mut()
            && piece.slice == place.slice
        {
            piece.count += 1;
            piece.data_bytes += bytes;
            piece.last_timestamp = timestamp;
            return;
        }
        self.pieces.push(Piece {
            slice: place.slice,
            data_file: place.data_file.clone(),
            index_file: place.index_file.clone(),
            data_at: place.data_end,
            index_at: VERSION.len() as u64 + place.count * INDEX_BYTES as u64,
            count: 1,
            data_bytes: bytes,
            last_timestamp: timestamp,
        });
    }

    /// The encoded index entry of the nth message.
    pub fn entry(&self, nth: usize) -> Option<&[u8; INDEX_BYTES]> {
        self.index.get(nth * INDEX_BYTES..)?.first_chunk()
    }

    pub fn count(&self) -> usize {
        self.index.len() / INDEX_BYTES
    }

    /// The pieces with their data.
    pub fn data(&self) -> impl Iterator<Item = (&Piece, &[u8])> {
        let mut rest = &self.data[..];
        self.pieces.iter().map(move |piece| {
            let (data, after) = rest.split_at(piece.data_bytes);
            rest = after;
            (piece, data)
        })
    }

    /// Writes data and index of every piece to the files. On an error the files are cut to what they were.
    pub fn write(&self) -> Result<(), StoreError> {
        let write = |file: &Arc<StoreFile>, bytes: &[u8], at| {
            let written = file.get().and_then(|file| file.write_all_at(bytes, at));
            written.map_err(|error| io_error("writing", file.path(), error))
        };
        let mut entries = &self.index[..];
        for (piece, data) in self.data() {
            let (index, after) = entries.split_at(piece.count as usize * INDEX_BYTES);
            entries = after;
            write(&piece.data_file, data, piece.data_at)
                .and_then(|()| write(&piece.index_file, index, piece.index_at))
                .inspect_err(|_| self.cut_files())?;
        }
        Ok(())
    }

    /// What the files have beyond their old ends must not be taken for messages.
    fn cut_files(&self) {
        for piece in &self.pieces {
            for (file, end) in [
                (&piece.index_file, piece.index_at),
                (&piece.data_file, piece.data_at),
            ] {
                let _ = file.get().and_then(|file| file.set_len(end));
            }
        }
    }

    pub fn clear(&mut self) {
        self.pieces.clear();
        self.data.clear();
        self.index.clear();
    }

    /// Memory that a large batch took.
    pub fn give_back(&mut self) {
        if self.is_empty() {
            *self = Self::default();
        }
    }
}
