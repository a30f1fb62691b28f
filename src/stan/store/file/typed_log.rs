//! A file of typed records that is replayed at the start and rewritten when much of it is dead:
//! subs.dat and clients.dat.

use super::records::{Crc, Found, VERSION, look, put_typed};
use super::{FileOptions, io_error};
use crate::stan::store::StoreError;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

pub struct TypedLog {
    path: PathBuf,
    crc: Crc,
    file: Arc<File>,
    /// Bytes in the file.
    end: u64,
    buffer: Vec<u8>,
    /// Written to since the last sync.
    pub unsynced: bool,
    compacted_at: Option<Instant>,
}

impl TypedLog {
    /// Opens or makes the file and hands its records over, in order. A torn end is cut off; a record
    /// in the middle that does not fit its checksum is reported and left out.
    pub fn open(
        path: PathBuf,
        options: &FileOptions,
        mut record: impl FnMut(u8, &[u8]) -> Result<(), String>,
    ) -> Result<Self, StoreError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| io_error("opening", &path, error))?;
        let bytes = std::fs::read(&path).map_err(|error| io_error("reading", &path, error))?;
        let mut at = VERSION.len();
        match bytes.first_chunk::<4>() {
            Some(version) if *version == VERSION => {
                at = replay(&bytes, &path, &options.crc, &mut record)?;
            }
            Some(version) if *version != [0; 4] => {
                return Err(StoreError::Refused(format!(
                    "{}: unsupported file version: {} (supports [1..1])",
                    path.display(),
                    u32::from_le_bytes(*version)
                )));
            }
            _ => {}
        }
        if bytes.len() != at {
            file.set_len(at as u64)
                .and_then(|()| file.write_all_at(&VERSION, 0))
                .map_err(|error| io_error("writing", &path, error))?;
        }
        Ok(Self {
            path,
            crc: options.crc.clone(),
            file: Arc::new(file),
            end: at as u64,
            buffer: Vec::new(),
            unsynced: false,
            compacted_at: None,
        })
    }

    pub fn push(&mut self, kind: u8, payload: &[u8]) {
        put_typed(&mut self.buffer, &self.crc, kind, payload);
    }

    /// Hands what was gathered to the system. On an error it stays gathered.
    pub fn write(&mut self) -> Result<(), StoreError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.file.write_all_at(&self.buffer, self.end) {
            let _ = self.file.set_len(self.end);
            return Err(io_error("writing", &self.path, error));
        }
        self.end += self.buffer.len() as u64;
        self.buffer.clear();
        self.unsynced = true;
        Ok(())
    }

    pub fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// Whether the file should be rewritten, when `dead` of `all` records are of no use any more.
    pub fn wants_compaction(&self, dead: u64, all: u64, options: &FileOptions) -> bool {
        options.compact
            && self.end >= options.compact_min_size
            && dead * 100 >= all * options.compact_fragmentation
            && self
                .compacted_at
                .is_none_or(|at| at.elapsed() >= options.compact_interval)
    }

    /// Replaces the file by one with these records alone. It is complete and on the disk before it
    /// takes the name.
    pub fn compact(
        &mut self,
        temporary: &Path,
        fill: impl FnOnce(&mut dyn FnMut(u8, &[u8])),
    ) -> Result<(), StoreError> {
        let mut bytes = VERSION.to_vec();
        fill(&mut |kind, payload| put_typed(&mut bytes, &self.crc, kind, payload));
        let make = || {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(temporary)?;
            file.write_all_at(&bytes, 0)?;
            file.sync_all()?;
            std::fs::rename(temporary, &self.path)?;
            Ok(file)
        };
        let file = make().map_err(|error| io_error("rewriting", &self.path, error))?;
        self.file = Arc::new(file);
        self.end = bytes.len() as u64;
        self.buffer.clear();
        self.unsynced = false;
        self.compacted_at = Some(Instant::now());
        Ok(())
    }
}

/// Returns how much of the file is good.
fn replay(
    bytes: &[u8],
    path: &Path,
    crc: &Crc,
    record: &mut impl FnMut(u8, &[u8]) -> Result<(), String>,
) -> Result<usize, StoreError> {
    let mut at = VERSION.len();
    loop {
        match look(bytes, at, true, crc) {
            Found::Record {
                kind,
                payload,
                next,
            } => {
                record(kind, payload).map_err(|why| StoreError::Damaged {
                    path: path.to_owned(),
                    offset: at as u64,
                    why,
                })?;
                at = next;
            }
            Found::BadChecksum { next }
                if matches!(look(bytes, next, true, crc), Found::Record { .. }) =>
            {
                log::error!(
                    "STREAM: {}: the record at byte {at} is damaged and left out",
                    path.display()
                );
                at = next;
            }
            Found::End => return Ok(at),
            Found::Torn | Found::Zeros | Found::BadChecksum { .. } => {
                log::warn!(
                    "STREAM: {}: {} bytes behind the last whole record, at byte {at}, are cut off",
                    path.display(),
                    bytes.len() - at
                );
                return Ok(at);
            }
        }
    }
}
