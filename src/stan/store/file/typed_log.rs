//! A file of typed records that is replayed at the start and rewritten when much of it is dead:
//! subs.dat and clients.dat.

use super::damage::{Damage, keep_copy};
use super::disk::{self, File};
use super::files::StoreFile;
use super::messages::unsupported_version;
use super::records::{Crc, HEADER_BYTES, VERSION, put_typed, typed_records};
use super::scan::Scanner;
use super::{FileOptions, io_error, sync_error};
use crate::stan::store::StoreError;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub struct TypedLog {
    file: Arc<StoreFile>,
    crc: Crc,
    /// Bytes in the file.
    end: u64,
    buffer: Vec<u8>,
    /// Written to since the last sync.
    pub unsynced: bool,
    compacted_at: Option<Instant>,
    /// Marks went that could not be written for long, and why not: the file must be rewritten.
    lost: Option<std::io::ErrorKind>,
    /// Kinds of records of which some may be lost.
    marks: &'static [u8],
}

/// Records kept for a file that takes none; beyond that marks are given up, and the file is rewritten from the state.
const BUFFER_BYTES_MAX: usize = 8 << 20;
/// Between attempts of that.
const REWRITE_EVERY: Duration = Duration::from_secs(1);

impl TypedLog {
    /// Opens or makes the file and hands its records over, in order. A torn end is cut off; records in
    /// the middle that are damaged are reported, kept aside and left out.
    pub fn open(
        file: Arc<StoreFile>,
        crc: &Crc,
        damage: &Damage,
        kinds: &Kinds,
        mut record: impl FnMut(u8, &[u8]) -> Result<(), String>,
    ) -> Result<Self, StoreError> {
        let end = replay(&file, crc, damage, kinds, &mut record)?;
        Ok(Self {
            file,
            crc: crc.clone(),
            end,
            buffer: Vec::new(),
            unsynced: false,
            compacted_at: None,
            lost: None,
            marks: kinds.marks,
        })
    }

    /// Whether the file lacks records that were pushed.
    pub fn has_unwritten(&self) -> bool {
        self.lost.is_some() || !self.buffer.is_empty()
    }

    /// It says something else than what is true now, and could not be rewritten: that is tried until it can be.
    pub fn must_be_rewritten(&mut self, why: std::io::ErrorKind) {
        self.lost = Some(why);
    }

    /// Those that must not be lost, in order.
    pub fn unwritten(&self) -> impl Iterator<Item = (u8, &[u8])> {
        let records = typed_records(&self.buffer);
        let records = records.filter(|(kind, _)| !self.marks.contains(kind));
        records.map(|(kind, record)| (kind, &record[HEADER_BYTES..]))
    }

    /// How much was gathered; `take_back` returns to that.
    pub fn gathered(&self) -> usize {
        self.buffer.len()
    }

    /// What was gathered since was refused, and is not written later.
    pub fn take_back(&mut self, gathered: usize) {
        self.buffer.truncate(gathered);
    }

    pub fn push(&mut self, kind: u8, payload: &[u8]) {
        put_typed(&mut self.buffer, &self.crc, kind, payload);
    }

    /// Hands what was gathered to the system. On an error it stays gathered, or the file must be rewritten.
    pub fn write(&mut self) -> Result<(), StoreError> {
        if !self.buffer.is_empty() {
            self.write_gathered()?;
        }
        if let Some(kind) = self.lost {
            let why = format!("{kind}: it lacks records, and is to be rewritten");
            let error = std::io::Error::new(kind, why);
            return Err(io_error("writing", self.file.path(), error));
        }
        Ok(())
    }

    fn write_gathered(&mut self) -> Result<(), StoreError> {
        let write = |file: Arc<File>| {
            let written = file.write_all_at(&self.buffer, self.end);
            // A part of it must not stay.
            written.inspect_err(|_| drop(file.set_len(self.end)))
        };
        if let Err(error) = self.file.get().and_then(write) {
            if self.buffer.len() > BUFFER_BYTES_MAX {
                let kept =
                    typed_records(&self.buffer).filter(|(kind, _)| !self.marks.contains(kind));
                self.buffer = kept.flat_map(|(_, record)| record).copied().collect();
                self.lost = Some(error.kind());
            }
            return Err(io_error("writing", self.file.path(), error));
        }
        self.end += self.buffer.len() as u64;
        self.buffer.clear();
        self.unsynced = true;
        Ok(())
    }

    /// Writes the file as it is, so that the next sync brings all of it to the disk (`replay::rewrite`).
    pub fn rewrite(&self) -> Result<(), StoreError> {
        let rewrite = |file: Arc<File>| {
            let mut bytes = vec![0; self.end as usize];
            file.read_exact_at(&mut bytes, 0)?;
            super::replay::rewrite(&file, &bytes, 0)
        };
        let written = self.file.get().and_then(rewrite);
        written.map_err(|error| io_error("writing", self.file.path(), error))
    }

    pub fn file(&self) -> Arc<StoreFile> {
        self.file.clone()
    }

    /// Whether the file should be rewritten, when `dead` of `all` records are of no use any more.
    pub fn wants_compaction(&self, dead: u64, all: u64, options: &FileOptions) -> bool {
        if self.lost.is_some() {
            return self
                .compacted_at
                .is_none_or(|at| at.elapsed() >= REWRITE_EVERY);
        }
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
        // Also when it fails: nobody tries without end.
        self.compacted_at = Some(Instant::now());
        let folder = self.file.path().parent().unwrap_or(Path::new("."));
        let opened = disk::Folder::open(folder);
        let names = opened.map_err(|error| io_error("opening", folder, error))?;
        let mut bytes = VERSION.to_vec();
        fill(&mut |kind, payload| put_typed(&mut bytes, &self.crc, kind, payload));
        let make = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(true);
            let file = File::open(&options, temporary)?;
            let written = file
                .write_all_at(&bytes, 0)
                .and_then(|()| file.sync_all())
                .and_then(|()| disk::rename(temporary, self.file.path()));
            written.inspect_err(|_| drop(disk::remove_file(temporary)))?;
            Ok(file)
        };
        let file = make().map_err(|error| io_error("rewriting", self.file.path(), error))?;
        self.file.replace(file);
        self.end = bytes.len() as u64;
        self.buffer.clear();
        self.unsynced = false;
        self.lost = None;
        // At once: the shared log may be emptied at any time, and the file that had the name is synced no more.
        let synced = names.sync();
        synced.map_err(|error| {
            let folder = self.file.path().parent().unwrap_or(Path::new("."));
            sync_error("syncing", folder, error)
        })
    }
}

/// What records of a file look like, to find the next one behind damage.
pub struct Kinds {
    /// Largest payload of each kind, from kind 1 on.
    pub sizes_max: &'static [u32],
    /// What each payload begins with.
    pub first_byte: u8,
    /// Those of which some may be lost.
    pub marks: &'static [u8],
}

impl Kinds {
    fn is_likely(&self, kind: u8, size: u32, first_byte: u8) -> bool {
        let size_max = (kind as usize)
            .checked_sub(1)
            .and_then(|kind| self.sizes_max.get(kind));
        first_byte == self.first_byte && size > 0 && size_max.is_some_and(|max| size <= *max)
    }
}

/// Returns where the next record goes.
fn replay(
    file: &Arc<StoreFile>,
    crc: &Crc,
    damage: &Damage,
    kinds: &Kinds,
    record: &mut impl FnMut(u8, &[u8]) -> Result<(), String>,
) -> Result<u64, StoreError> {
    let path = file.path();
    let reading = |error| io_error("reading", path, error);
    let writing = |error| io_error("writing", path, error);
    let open = file
        .make()
        .map_err(|error| io_error("opening", path, error))?;
    let mut scanner = Scanner::new(open.clone()).map_err(reading)?;
    let begin = scanner.bytes(0, VERSION.len()).map_err(reading)?.to_vec();
    if begin != VERSION {
        if begin.len() == VERSION.len() && begin != [0; 4] {
            damage.found(path, 0, unsupported_version(&begin))?;
        }
        open.write_all_at(&VERSION, 0).map_err(writing)?;
    }
    let (mut at, len) = (VERSION.len() as u64, scanner.len());
    while at < len {
        let whole = scanner.record(at, len, true, crc).map_err(reading)?;
        let next = match &whole {
            Some(whole) => match record(whole.kind, whole.payload) {
                Ok(()) => {
                    at = whole.next;
                    continue;
                }
                Err(why) => Some((whole.next, why)),
            },
            None => None,
        };
        let next = match next {
            Some(next) => Some(next),
            None => scanner
                .find_typed(
                    at + 1,
                    |kind, size, byte| kinds.is_likely(kind, size, byte),
                    crc,
                )
                .map_err(reading)?
                .map(|next| (next, "no whole record".to_owned())),
        };
        let Some((next, why)) = next else {
            let zeros = scanner.is_zero_from(at).map_err(reading)?;
            log::warn!(
                "STREAM: {}: {} bytes{} behind the last whole record, at byte {at}, are cut off",
                path.display(),
                len - at,
                if zeros { " of zeros" } else { "" }
            );
            if !zeros {
                keep_copy(&open, path, at, len);
            }
            open.set_len(at).map_err(writing)?;
            break;
        };
        let why = format!("{why}; {} bytes are left out", next - at);
        damage.found_bytes(&open, path, (at, next), why)?;
        at = next;
    }
    Ok(at)
}
