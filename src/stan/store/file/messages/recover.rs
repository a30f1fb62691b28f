//! What a slice has, when the store is opened.
//!
//! The index is read from its beginning, an entry at a time; as long as each follows the one before, the data is not
//! looked at. Where entries are of no use, the next usable one says up to where the data must be gone through, and which
//! numbers must be found there. What no entry covers, at the end, is gone through as well. A message that
//! cannot be found keeps its number: it gets an entry for the damaged bytes, which no lookup will take for a
//! message. Only what a crash leaves at the end is cut off.

use super::super::damage::{Damage, keep_copy};
use super::super::disk::{self, File};
use super::super::files::StoreFile;
use super::super::io_error;
use super::super::progress::Progress;
use super::super::records::{
    Crc, HEADER_BYTES, INDEX_BYTES, IndexEntry, OVERHEAD_BYTES, VERSION, payload_of,
};
use super::super::scan::{Scanner, sequence_of};
use crate::stan::store::{Seq, StoreError};
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

const BEGIN: u64 = VERSION.len() as u64;
const HEADER: u64 = HEADER_BYTES as u64;
const ENTRY: u64 = INDEX_BYTES as u64;
/// Entries gathered before they are written.
const OUTPUT_BYTES: usize = 256 << 10;
/// How often progress is told of, in messages.
const STEP: u64 = 1 << 16;
/// Most bytes an entry for a lost message names.
const PLACEHOLDER_MAX: u64 = 1 << 16;

pub struct Recovery<'a> {
    pub crc: &'a Crc,
    pub damage: Damage<'a>,
    pub channel: &'a str,
    pub progress: &'a Progress,
}

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    pub first: Seq,
    pub count: u64,
    /// As limits count.
    pub bytes: u64,
    pub first_timestamp: i64,
    pub last_timestamp: i64,
    pub data_end: u64,
}

impl Contents {
    fn last(&self) -> Seq {
        self.first + self.count - 1
    }
}

/// Reads a slice, and mends its files where they need it. `before` is the last number of the slices
/// before, 0 if there are none.
pub fn slice(
    data: &Arc<StoreFile>,
    index: &Arc<StoreFile>,
    before: Seq,
    recovery: &Recovery,
) -> Result<Contents, StoreError> {
    let mut walk = Walk::open(data, index, before, recovery)?;
    walk.check_versions()?;
    let used = walk.follow_index()?;
    walk.end_of_index(used)?;
    let indexed = walk.found.count;
    let end = walk.data.len();
    walk.fill(end, None)?;
    walk.finish()?;
    if walk.found.count == indexed {
        walk.check_end()?;
    }
    recovery.progress.add_messages(walk.found.count % STEP);
    Ok(walk.found)
}

/// Where entries of the index go.
enum Output {
    /// Behind those that are there, once all of those have been read.
    Append,
    /// To another file, which takes over the name.
    Anew { file: File, path: PathBuf },
}

struct Walk<'a> {
    recovery: &'a Recovery<'a>,
    data_file: &'a Arc<StoreFile>,
    index_file: &'a Arc<StoreFile>,
    data: Scanner,
    index: Scanner,
    before: Seq,
    found: Contents,
    output: Output,
    /// Entries that are to be written, and how many are in the output already.
    entries: Vec<u8>,
    entries_out: u64,
}

impl<'a> Walk<'a> {
    fn open(
        data_file: &'a Arc<StoreFile>,
        index_file: &'a Arc<StoreFile>,
        before: Seq,
        recovery: &'a Recovery<'a>,
    ) -> Result<Self, StoreError> {
        let scanner = |file: &Arc<StoreFile>| {
            let scanner = file.make().and_then(Scanner::new);
            scanner.map_err(|error| io_error("opening", file.path(), error))
        };
        Ok(Self {
            recovery,
            data_file,
            index_file,
            data: scanner(data_file)?,
            index: scanner(index_file)?,
            before,
            found: Contents {
                data_end: BEGIN,
                ..Contents::default()
            },
            output: Output::Append,
            entries: Vec::new(),
            entries_out: 0,
        })
    }

    fn reading_data(&self) -> impl Fn(io::Error) -> StoreError + use<> {
        let path = self.data_file.path().to_owned();
        move |error| io_error("reading", &path, error)
    }

    fn reading_index(&self) -> impl Fn(io::Error) -> StoreError + use<> {
        let path = self.index_file.path().to_owned();
        move |error| io_error("reading", &path, error)
    }

    /// Every file begins with the version. A file that was just made may lack it.
    fn check_versions(&mut self) -> Result<(), StoreError> {
        for (scanner, file) in [
            (&mut self.data, self.data_file),
            (&mut self.index, self.index_file),
        ] {
            let failed = |error| io_error("reading", file.path(), error);
            let begin = scanner.bytes(0, VERSION.len()).map_err(failed)?.to_vec();
            if begin == VERSION {
                continue;
            }
            let is_new = begin.len() < VERSION.len() || begin.iter().all(|byte| *byte == 0);
            if !is_new {
                self.recovery
                    .damage
                    .found(file.path(), 0, unsupported_version(&begin))?;
            }
            let written = file.get().and_then(|file| file.write_all_at(&VERSION, 0));
            written.map_err(|error| io_error("writing", file.path(), error))?;
        }
        Ok(())
    }

    fn last(&self) -> Seq {
        match self.found.count {
            0 => self.before,
            _ => self.found.last(),
        }
    }

    // ---- the index

    /// Takes over all entries that can be used, with what lies between them; returns how many entries were
    /// looked at.
    fn follow_index(&mut self) -> Result<u64, StoreError> {
        let slots = self.index.len().saturating_sub(BEGIN) / ENTRY;
        let mut slot = 0;
        while slot < slots {
            let entry = self.entry(slot)?;
            if let Some(entry) = entry.filter(|entry| self.follows(entry)) {
                self.accept(entry)?;
                slot += 1;
                continue;
            }
            let Some((usable, entry)) = self.usable_from(slot, slots)? else {
                break;
            };
            self.jump(slot, usable, entry)?;
            slot = usable + 1;
        }
        Ok(slot)
    }

    fn entry(&mut self, slot: u64) -> Result<Option<IndexEntry>, StoreError> {
        let failed = self.reading_index();
        let bytes = self.index.bytes(BEGIN + slot * ENTRY, INDEX_BYTES);
        let bytes = bytes.map_err(failed)?;
        Ok(bytes
            .try_into()
            .ok()
            .and_then(|bytes| IndexEntry::read(bytes, self.recovery.crc)))
    }

    fn are_zero(&mut self, from: u64, to: u64) -> Result<bool, StoreError> {
        let failed = self.reading_index();
        for slot in from..to {
            let bytes = self.index.bytes(BEGIN + slot * ENTRY, INDEX_BYTES);
            if bytes.map_err(&failed)?.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn within_data(&self, entry: &IndexEntry) -> bool {
        entry.offset >= BEGIN && entry_end(entry) <= self.data.len()
    }

    /// Whether the entry is the next one, without anything between it and the one before.
    fn follows(&self, entry: &IndexEntry) -> bool {
        let next = match self.found.count {
            // Slices in between may be missing; limits remove messages.
            0 => entry.seq > self.before,
            _ => entry.seq == self.last() + 1,
        };
        next && self.within_data(entry)
    }

    /// The next entry that can be used, from this one on.
    fn usable_from(
        &mut self,
        slot: u64,
        slots: u64,
    ) -> Result<Option<(u64, IndexEntry)>, StoreError> {
        for slot in slot..slots {
            let entry = self.entry(slot)?;
            let usable = entry.filter(|entry| {
                let room = entry.offset.checked_sub(self.found.data_end);
                entry.seq > self.last()
                    && room.is_some_and(|room| self.may_miss(entry.seq, room))
                    && self.within_data(entry)
            });
            if let Some(entry) = usable {
                return Ok(Some((slot, entry)));
            }
        }
        Ok(None)
    }

    /// Whether so many bytes may have had all messages up to this one.
    fn may_miss(&self, next: Seq, bytes: u64) -> bool {
        self.found.count == 0 || next - self.last() - 1 <= bytes / HEADER
    }

    /// From an entry of no use to the next one that can be used.
    fn jump(&mut self, slot: u64, usable: u64, entry: IndexEntry) -> Result<(), StoreError> {
        let from = BEGIN + slot * ENTRY;
        let to = BEGIN + usable * ENTRY;
        let path = self.index_file.path();
        let missing = usable - slot;
        let file = self.index_file.get().map_err(self.reading_index())?;
        if missing == 0 {
            let why = format!(
                "entries of messages {} to {} are missing; they are looked for in the data",
                self.last() + 1,
                entry.seq - 1
            );
            self.recovery.damage.found(path, from, why)?;
        } else if self.are_zero(slot, usable)? {
            log::warn!(
                "STREAM: channel {:?}: {}: {missing} entries at byte {from} were not written; they are made again from the data",
                self.recovery.channel,
                path.display()
            );
        } else {
            let why =
                format!("{missing} index entries are damaged; they are made again from the data");
            (self.recovery.damage).found_bytes(&file, path, (from, to), why)?;
        }
        self.write_anew(&file, slot)?;
        // The place of an entry tells its number, even if nothing before it is of use.
        let first = entry.seq.saturating_sub(usable).max(self.before + 1);
        if self.found.count == 0 && entry.seq - first == missing {
            self.found.first = first;
        }
        self.fill(entry.offset, Some(entry.seq))?;
        self.accept(entry)
    }

    /// What of the index lies behind the last usable entry: nothing, remains of a crash, or damage.
    fn end_of_index(&mut self, used: u64) -> Result<(), StoreError> {
        let end = BEGIN + used * ENTRY;
        let len = self.index.len();
        if len <= end || self.index.is_zero_from(end).map_err(self.reading_index())? {
            return Ok(());
        }
        let path = self.index_file.path();
        let slots = (len - BEGIN) / ENTRY;
        let (mut whole, mut damaged) = (None, 0);
        for slot in used..slots {
            match self.entry(slot)? {
                Some(entry) => whole = Some(entry.seq),
                None if self.are_zero(slot, slot + 1)? => {}
                None => damaged += 1,
            }
        }
        let file = self.index_file.get().map_err(self.reading_index())?;
        if damaged > 0 {
            let why =
                format!("{damaged} index entries are damaged; they are made again from the data");
            (self.recovery.damage).found_bytes(&file, path, (end, len), why)?;
        }
        match whole {
            Some(last) => {
                log::error!(
                    "STREAM: channel {:?}: {} tells of messages up to {last} that {} does not have, which ends at byte {}",
                    self.recovery.channel,
                    path.display(),
                    self.data_file.path().display(),
                    self.data.len()
                );
                keep_copy(&file, path, end, len);
            }
            None if damaged == 0 => log::warn!(
                "STREAM: {}: {} bytes at byte {end} are part of an index entry; they are cut off",
                path.display(),
                len - end
            ),
            None => {}
        }
        Ok(())
    }

    // ---- the data

    /// Goes through the data up to `end`, where a message with the number `upper` begins; without one, up to the end of the
    /// file, of which what is no message is cut off.
    fn fill(&mut self, end: u64, upper: Option<Seq>) -> Result<(), StoreError> {
        let failed = self.reading_data();
        while self.found.data_end < end {
            let (at, crc) = (self.found.data_end, self.recovery.crc);
            let above = self.last();
            let below = match (upper, self.found.count) {
                (Some(upper), _) => upper,
                (None, 0) => Seq::MAX,
                // More messages than that have no room in what is left.
                (None, _) => above + (end - at) / HEADER + 2,
            };
            let message = self.data.message(at, end, crc).map_err(&failed)?;
            if let Some(message) =
                message.filter(|message| message.sequence > above && message.sequence < below)
            {
                self.lose(at, at, message.sequence)?;
                let size = self.data.bytes(at, 4).map_err(&failed)?;
                let size = u32::from_le_bytes(*size.first_chunk().expect("a whole record"));
                self.add(IndexEntry {
                    seq: message.sequence,
                    offset: at,
                    timestamp: message.timestamp,
                    size,
                })?;
                continue;
            }
            let range = (above, below);
            let next = (self.data)
                .find_message(at + 1, end, self.recovery.channel, range, crc)
                .map_err(&failed)?;
            match (next, upper) {
                (Some((next, seq)), _) => self.lose(at, next, seq)?,
                (None, Some(upper)) => self.lose(at, end, upper)?,
                (None, None) => return self.cut(at),
            }
        }
        match upper {
            Some(upper) => self.lose(end, end, upper),
            None => Ok(()),
        }
    }

    /// The messages below `next` cannot be found; damaged bytes, if any, are where they were.
    fn lose(&mut self, from: u64, to: u64, next: Seq) -> Result<(), StoreError> {
        let path = self.data_file.path();
        let first = match self.found.count {
            // The oldest slice: what was before its first message is not known.
            0 if self.found.first == 0 && self.before == 0 => next,
            // Whole slices may be missing: more than fits in these bytes was not in them.
            0 if self.found.first == 0 && next - self.before - 1 > (to - from) / HEADER => next,
            0 if self.found.first == 0 => self.before + 1,
            0 => self.found.first,
            _ => self.last() + 1,
        };
        let lost = next - first;
        let why = match lost {
            0 => "bytes that are no message".to_owned(),
            1 => format!("message {first} is damaged; it will not be served"),
            _ => format!(
                "messages {first} to {} are damaged; they will not be served",
                next - 1
            ),
        };
        if from < to {
            let file = self.data_file.get().map_err(self.reading_data())?;
            (self.recovery.damage).found_bytes(&file, path, (from, to), why)?;
        } else if lost > 0 {
            self.recovery.damage.found(path, from, why)?;
        }
        let data_end = self.found.data_end.max(to);
        for (nth, seq) in (first..next).enumerate() {
            // The bytes are shared out, so that entries stay in order: each has a header, the last one the rest, but not
            // more than whoever looks it up should have to read.
            let offset = from + (nth as u64 * HEADER).min((to - from).saturating_sub(HEADER));
            let rest = match seq + 1 == next {
                true => to.saturating_sub(offset + HEADER).min(PLACEHOLDER_MAX),
                false => 0,
            };
            self.add(IndexEntry {
                seq,
                offset: offset.max(BEGIN),
                timestamp: self.found.last_timestamp,
                size: rest as u32,
            })?;
        }
        self.found.data_end = data_end;
        Ok(())
    }

    /// Nothing behind `at` is a message.
    fn cut(&mut self, at: u64) -> Result<(), StoreError> {
        let failed = self.reading_data();
        let path = self.data_file.path();
        let len = self.data.len();
        let zeros = self.data.is_zero_from(at).map_err(&failed)?;
        log::warn!(
            "STREAM: channel {:?}: {}: {} bytes{} behind the last whole message, at byte {at}, are cut off",
            self.recovery.channel,
            path.display(),
            len - at,
            if zeros { " of zeros" } else { "" }
        );
        let file = self.data_file.get().map_err(&failed)?;
        if !zeros {
            keep_copy(&file, path, at, len);
        }
        file.set_len(at.max(BEGIN))
            .map_err(|error| io_error("truncating", path, error))?;
        self.data.shrink(at.max(BEGIN));
        Ok(())
    }

    // ---- what comes of it

    /// An entry that is in the index.
    fn accept(&mut self, entry: IndexEntry) -> Result<(), StoreError> {
        if self.recovery.damage.strict {
            self.check_strictly(&entry)?;
        }
        match self.output {
            Output::Append => self.count(&entry),
            Output::Anew { .. } => self.add(entry)?,
        }
        if self.found.count.is_multiple_of(STEP) {
            self.recovery.progress.add_messages(STEP);
        }
        Ok(())
    }

    /// An entry that is to be in the index.
    fn add(&mut self, entry: IndexEntry) -> Result<(), StoreError> {
        if self.entries.is_empty() && self.entries_out == 0 && matches!(self.output, Output::Append)
        {
            self.entries_out = self.found.count;
        }
        entry.put(&mut self.entries, self.recovery.crc);
        self.count(&entry);
        match self.entries.len() >= OUTPUT_BYTES {
            true => self.write_entries(),
            false => Ok(()),
        }
    }

    fn count(&mut self, entry: &IndexEntry) {
        let found = &mut self.found;
        if found.count == 0 {
            found.first = entry.seq;
            found.first_timestamp = entry.timestamp;
        }
        found.count += 1;
        found.bytes += u64::from(entry.size) + OVERHEAD_BYTES;
        found.last_timestamp = entry.timestamp;
        found.data_end = found.data_end.max(entry_end(entry).min(self.data.len()));
    }

    /// From here on the index is written to another file, which begins with the entries used so far.
    fn write_anew(&mut self, index: &File, slots: u64) -> Result<(), StoreError> {
        if matches!(self.output, Output::Anew { .. }) {
            return Ok(());
        }
        let mut name = self.index_file.path().as_os_str().to_owned();
        name.push(".new");
        let path = PathBuf::from(name);
        let copy = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(true);
            let file = File::open(&options, &path)?;
            file.write_all_at(&VERSION, 0)?;
            let (mut at, end) = (BEGIN, BEGIN + slots * ENTRY);
            let mut piece = Vec::new();
            while at < end {
                piece.resize((end - at).min(OUTPUT_BYTES as u64) as usize, 0);
                index.read_exact_at(&mut piece, at)?;
                file.write_all_at(&piece, at)?;
                at += piece.len() as u64;
            }
            Ok(file)
        };
        let file = copy().map_err(|error| io_error("writing", &path, error))?;
        self.entries_out = slots;
        self.output = Output::Anew { file, path };
        Ok(())
    }

    fn write_entries(&mut self) -> Result<(), StoreError> {
        let at = BEGIN + self.entries_out * ENTRY;
        let written = match &self.output {
            Output::Append => self
                .index_file
                .get()
                .and_then(|file| file.write_all_at(&self.entries, at)),
            Output::Anew { file, .. } => file.write_all_at(&self.entries, at),
        };
        written.map_err(|error| io_error("writing", self.index_file.path(), error))?;
        self.entries_out += (self.entries.len() / INDEX_BYTES) as u64;
        self.entries.clear();
        Ok(())
    }

    /// Brings the index to what was found.
    fn finish(&mut self) -> Result<(), StoreError> {
        let path = self.index_file.path();
        let failed = |error| io_error("writing", path, error);
        let len = BEGIN + self.found.count * ENTRY;
        let untouched = matches!(self.output, Output::Append) && self.entries_out == 0;
        if untouched && self.entries.is_empty() {
            if self.index.len().max(BEGIN) != len {
                let cut = self.index_file.get().and_then(|file| file.set_len(len));
                cut.map_err(failed)?;
            }
            return Ok(());
        }
        self.write_entries()?;
        match std::mem::replace(&mut self.output, Output::Append) {
            Output::Append => {
                let end = |file: Arc<File>| file.set_len(len).and_then(|()| file.sync_data());
                self.index_file.get().and_then(end).map_err(failed)
            }
            Output::Anew { file, path: new } => {
                let take_over = file.sync_all().and_then(|()| disk::rename(&new, path));
                take_over.map_err(failed)?;
                self.index_file.replace(file);
                Ok(())
            }
        }
    }

    // ---- whether messages are what they were

    fn is_whole(&mut self, entry: &IndexEntry) -> Result<bool, StoreError> {
        let failed = self.reading_data();
        let len = HEADER_BYTES + entry.size as usize;
        let record = self.data.bytes(entry.offset, len).map_err(failed)?;
        Ok(payload_of(record, self.recovery.crc)
            .is_some_and(|payload| sequence_of(payload) == Some(entry.seq)))
    }

    /// Damage in the middle is a reason not to start. At the end it may be what a crash left.
    fn check_strictly(&mut self, entry: &IndexEntry) -> Result<(), StoreError> {
        if entry_end(entry) >= self.data.len() || self.is_whole(entry)? {
            return Ok(());
        }
        let why = format!("message {} does not fit its checksum", entry.seq);
        (self.recovery.damage).found(self.data_file.path(), entry.offset, why)
    }

    /// The index may have come to the disk before the data did. A record that was not written ends in zeros, which no message
    /// does: it is cut off. Others are damaged.
    fn check_end(&mut self) -> Result<(), StoreError> {
        let (reading, index) = (self.reading_index(), self.index_file.clone());
        let index = index.get().map_err(&reading)?;
        let mut end = self.data.len();
        while self.found.count > 0 {
            let read = |nth: u64| {
                let mut bytes = [0; INDEX_BYTES];
                index.read_exact_at(&mut bytes, BEGIN + nth * ENTRY)?;
                Ok(IndexEntry::read(&bytes, self.recovery.crc))
            };
            let nth = self.found.count - 1;
            let entry = read(nth).map_err(&reading)?;
            let entry = entry.expect("written or checked a moment ago");
            if entry.size == 0 || self.is_whole(&entry)? {
                break;
            }
            let reading = self.reading_data();
            let last_byte = self.data.bytes(entry_end(&entry) - 1, 1);
            if last_byte.map_err(&reading)? != [0] {
                // It keeps its number: it may have been acknowledged.
                let why = format!("message {} is damaged; it will not be served", entry.seq);
                let file = self.data_file.get().map_err(reading)?;
                let range = (entry.offset, entry_end(&entry));
                // Nothing follows that would make it damage in the middle.
                let damage = Damage {
                    strict: false,
                    ..self.recovery.damage
                };
                damage.found_bytes(&file, self.data_file.path(), range, why)?;
                break;
            }
            let before = match nth {
                0 => None,
                _ => read(nth - 1).map_err(&reading)?,
            };
            end = entry.offset;
            self.found.count -= 1;
            self.found.bytes -= u64::from(entry.size) + OVERHEAD_BYTES;
            self.found.last_timestamp = before.map_or(0, |entry| entry.timestamp);
            self.found.data_end = before.map_or(BEGIN, |entry| entry_end(&entry));
        }
        if end == self.data.len() {
            return Ok(());
        }
        log::warn!(
            "STREAM: channel {:?}: {}: messages from {} on were not written; they are cut off at byte {end}",
            self.recovery.channel,
            self.data_file.path().display(),
            self.last() + 1
        );
        let (data_path, index_path) = (self.data_file.path(), self.index_file.path());
        let data = self.data_file.get().map_err(self.reading_data())?;
        keep_copy(&data, data_path, end, self.data.len());
        index
            .set_len(BEGIN + self.found.count * ENTRY)
            .map_err(|error| io_error("truncating", index_path, error))?;
        data.set_len(end)
            .map_err(|error| io_error("truncating", data_path, error))
    }
}

/// Where the record of an entry ends.
fn entry_end(entry: &IndexEntry) -> u64 {
    entry.offset.saturating_add(HEADER + u64::from(entry.size))
}

pub fn unsupported_version(begin: &[u8]) -> String {
    let version = begin.first_chunk().copied().map_or(0, u32::from_le_bytes);
    format!("unsupported file version: {version} (supports [1..1])")
}
