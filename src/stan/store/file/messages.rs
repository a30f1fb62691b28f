//! The messages of one channel: slices, each a data file and its index.
//!
//! The index is read, not kept: entry n of a slice is at a known place in its file. What was
//! appended lately is also in memory, and everything not yet written is.
//!
//! **After a crash.** Data is written before the index entries that point to it, and both before a
//! flush is over; only the data is brought to the disk by it. So the data file may have more whole
//! records than the index, which are indexed anew; a torn record at its end was never acknowledged, and is cut off; a torn or
//! wrong index is cut back to its last good entry and continued from the data. A record in the middle
//! whose checksum is wrong keeps its number, is reported, and is not served.

use super::ahead::Block;
use super::records::{
    Crc, Found, HEADER_BYTES, INDEX_BYTES, IndexEntry, OVERHEAD_BYTES, VERSION, look, put_untyped,
};
use super::{FileOptions, io_error};
use crate::stan::pb;
use crate::stan::store::memory::tell_of_limit;
use crate::stan::store::{Bounds, ChannelLimits, Seq, StoreError};
use bytes::Bytes;
use prost::Message;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Written messages kept in memory, for those who read along.
const RECENT_MESSAGES_MAX: usize = 4096;
const RECENT_BYTES_MAX: usize = 4 << 20;
/// Index entries read at once when messages go for good.
const FRONT_ENTRIES: u64 = 1024;

struct Slice {
    number: u64,
    first: Seq,
    /// Entries in the index, those in the buffer included.
    count: u64,
    /// As limits count.
    bytes: u64,
    last_timestamp: i64,
    /// Where the next record goes.
    data_end: u64,
    /// When its first message was written.
    begun_at: i64,
    data: Option<Arc<File>>,
    index: Option<Arc<File>>,
}

impl Slice {
    fn last(&self) -> Seq {
        self.first + self.count - 1
    }
}

/// A point to which a failed write takes everything back.
#[derive(Clone, Copy, Default)]
struct Mark {
    last: Seq,
    messages: u64,
    bytes: u64,
    last_timestamp: i64,
    slice_count: u64,
    slice_bytes: u64,
    slice_timestamp: i64,
    data_end: u64,
}

pub struct MessageLog {
    folder: PathBuf,
    channel: String,
    crc: Crc,
    pub limits: ChannelLimits,
    slices: VecDeque<Slice>,
    first: Seq,
    last: Seq,
    messages: u64,
    bytes: u64,
    last_timestamp: i64,
    data_buffer: Vec<u8>,
    index_buffer: Vec<u8>,
    /// The last messages, ending with `last`.
    recent: VecDeque<Bytes>,
    recent_bytes: usize,
    /// Size and time of the first messages, read ahead.
    front: VecDeque<(u32, i64)>,
    /// Files with writes that no sync has covered.
    unsynced: Vec<Arc<File>>,
    /// Pieces of a data file and of an index, for a reader who goes through all messages.
    data_block: Block,
    index_block: Block,
    last_looked_up: Seq,
    written: Mark,
    told_of_limit: bool,
    /// Numbers of records that were reported as damaged.
    damaged: Vec<Seq>,
}

impl MessageLog {
    /// Opens the log of a channel, or makes an empty one.
    pub fn open(
        folder: &Path,
        channel: &str,
        limits: ChannelLimits,
        options: &FileOptions,
    ) -> Result<Self, StoreError> {
        let mut log = Self {
            folder: folder.to_owned(),
            channel: channel.to_owned(),
            crc: options.crc.clone(),
            limits,
            slices: VecDeque::new(),
            first: 1,
            last: 0,
            messages: 0,
            bytes: 0,
            last_timestamp: 0,
            data_buffer: Vec::new(),
            index_buffer: Vec::new(),
            recent: VecDeque::new(),
            recent_bytes: 0,
            front: VecDeque::new(),
            unsynced: Vec::new(),
            data_block: Block::default(),
            index_block: Block::default(),
            last_looked_up: 0,
            written: Mark::default(),
            told_of_limit: false,
            damaged: Vec::new(),
        };
        let mut numbers = log.numbers()?;
        numbers.sort_unstable();
        for number in numbers {
            log.recover(number)?;
        }
        if let Some(first) = log.slices.iter().find(|slice| slice.count > 0) {
            log.first = first.first;
        }
        log.written = log.mark();
        log.apply_limits(options)?;
        Ok(log)
    }

    /// The numbers of the slices in the folder.
    fn numbers(&self) -> Result<Vec<u64>, StoreError> {
        let failed = |error| io_error("reading", &self.folder, error);
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let name = name.to_string_lossy();
            let Some(middle) = name
                .strip_prefix("msgs.")
                .and_then(|rest| rest.strip_suffix(".dat").or(rest.strip_suffix(".idx")))
            else {
                continue;
            };
            let number = middle.parse().map_err(|_| {
                StoreError::Refused(format!(
                    "{}: {name} is no file of this store",
                    self.folder.display()
                ))
            })?;
            if !numbers.contains(&number) {
                numbers.push(number);
            }
        }
        Ok(numbers)
    }

    fn path(&self, number: u64, suffix: &str) -> PathBuf {
        self.folder.join(format!("msgs.{number}.{suffix}"))
    }

    fn open_file(&self, number: u64, suffix: &str) -> Result<File, StoreError> {
        let path = self.path(number, suffix);
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| io_error("opening", &path, error))
    }

    // ---- recovery

    fn recover(&mut self, number: u64) -> Result<(), StoreError> {
        let (data_path, index_path) = (self.path(number, "dat"), self.path(number, "idx"));
        let read = |path: &Path| match std::fs::read(path) {
            Ok(bytes) => Ok(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(io_error("reading", path, error)),
        };
        let index = read(&index_path)?;
        let data_file = self.open_file(number, "dat")?;
        let data_len = data_file
            .metadata()
            .map_err(|error| io_error("reading", &data_path, error))?
            .len();
        check_version(&index, &index_path)?;

        // As much of the index as can be trusted and has data behind it.
        let mut entries: Vec<IndexEntry> = Vec::new();
        let mut data_end = VERSION.len() as u64;
        for chunk in index
            .get(VERSION.len()..)
            .unwrap_or_default()
            .chunks(INDEX_BYTES)
        {
            let entry = chunk
                .try_into()
                .ok()
                .and_then(|bytes| IndexEntry::read(bytes, &self.crc));
            let Some(entry) = entry.filter(|entry| {
                let end = entry.offset + HEADER_BYTES as u64 + u64::from(entry.size);
                let follows = entries.last().is_none_or(|last| entry.seq == last.seq + 1);
                end <= data_len && entry.offset == data_end && follows
            }) else {
                break;
            };
            data_end = entry.offset + HEADER_BYTES as u64 + u64::from(entry.size);
            entries.push(entry);
        }
        let indexed = entries.len();
        let index_len = VERSION.len() + indexed * INDEX_BYTES;
        if !index.is_empty() && index_len < index.len() {
            log::warn!(
                "STREAM: {} ends in {} bytes that are no index; they are cut off, and the data is indexed again from byte {data_end}",
                index_path.display(),
                index.len() - index_len
            );
        }

        // What the data has beyond that.
        let mut rest = vec![0; (data_len.saturating_sub(data_end)) as usize];
        data_file
            .read_exact_at(&mut rest, data_end)
            .map_err(|error| io_error("reading", &data_path, error))?;
        if data_len > 0 && data_len < VERSION.len() as u64 {
            rest.clear();
        } else if indexed == 0 && data_len > 0 {
            let mut version = [0; 4];
            let _ = data_file.read_exact_at(&mut version, 0);
            check_version(&version, &data_path)?;
        }
        let good = self.index_rest(&rest, data_end, &mut entries, &data_path)?;
        let new_end = data_end + good as u64;
        if new_end < data_len.max(VERSION.len() as u64) || data_len < VERSION.len() as u64 {
            let cut = |file: &File| {
                file.write_all_at(&VERSION, 0)?;
                file.set_len(new_end.max(VERSION.len() as u64))
            };
            cut(&data_file).map_err(|error| io_error("truncating", &data_path, error))?;
        }
        let index_file = self.open_file(number, "idx")?;
        let mut again = Vec::new();
        for entry in &entries[indexed..] {
            entry.put(&mut again, &self.crc);
        }
        if index.len() != index_len || !again.is_empty() {
            let rewrite = |file: &File| {
                file.write_all_at(&VERSION, 0)?;
                file.set_len(index_len as u64)?;
                file.write_all_at(&again, index_len as u64)?;
                file.sync_data()
            };
            rewrite(&index_file).map_err(|error| io_error("writing", &index_path, error))?;
        }

        let first = entries.first().map_or(self.last + 1, |entry| entry.seq);
        let bytes = entries
            .iter()
            .map(|entry| u64::from(entry.size) + OVERHEAD_BYTES)
            .sum();
        if let Some(last) = entries.last() {
            if first > self.last + 1 && self.messages > 0 {
                log::warn!(
                    "STREAM: channel {:?}: messages {} to {} are missing on the disk",
                    self.channel,
                    self.last + 1,
                    first - 1
                );
            }
            self.last = last.seq;
            self.last_timestamp = last.timestamp;
        }
        self.messages += entries.len() as u64;
        self.bytes += bytes;
        self.slices.push_back(Slice {
            number,
            first,
            count: entries.len() as u64,
            bytes,
            last_timestamp: entries.last().map_or(0, |entry| entry.timestamp),
            data_end: new_end,
            begun_at: entries.first().map_or(0, |entry| entry.timestamp),
            data: Some(Arc::new(data_file)),
            index: Some(Arc::new(index_file)),
        });
        Ok(())
    }

    /// Finds records in the data behind the index; returns how much of it is good.
    fn index_rest(
        &mut self,
        rest: &[u8],
        offset: u64,
        entries: &mut Vec<IndexEntry>,
        path: &Path,
    ) -> Result<usize, StoreError> {
        let mut at = 0;
        loop {
            let here = offset + at as u64;
            let previous = entries.last().copied();
            let next_seq = previous.map_or(self.last + 1, |last| last.seq + 1);
            match look(rest, at, false, &self.crc) {
                Found::Record { payload, next, .. } => {
                    let Ok(message) = pb::MsgProto::decode(payload) else {
                        log::error!(
                            "STREAM: {}: no message at byte {here}; the file is cut there",
                            path.display()
                        );
                        return Ok(at);
                    };
                    if previous.is_some() && message.sequence != next_seq {
                        log::error!(
                            "STREAM: {}: message {} at byte {here} where {next_seq} should be; the file is cut there",
                            path.display(),
                            message.sequence
                        );
                        return Ok(at);
                    }
                    entries.push(IndexEntry {
                        seq: message.sequence,
                        offset: here,
                        timestamp: message.timestamp,
                        size: payload.len() as u32,
                    });
                    at = next;
                }
                // Damage, unless nothing good follows: then it is the torn end of a crash.
                Found::BadChecksum { next }
                    if matches!(look(rest, next, false, &self.crc), Found::Record { .. }) =>
                {
                    log::error!(
                        "STREAM: channel {:?}: message {next_seq} in {} at byte {here} is damaged; it will not be served",
                        self.channel,
                        path.display()
                    );
                    entries.push(IndexEntry {
                        seq: next_seq,
                        offset: here,
                        timestamp: previous.map_or(0, |last| last.timestamp),
                        size: (next - at - HEADER_BYTES) as u32,
                    });
                    at = next;
                }
                Found::End => return Ok(at),
                Found::Zeros | Found::Torn | Found::BadChecksum { .. } => {
                    log::warn!(
                        "STREAM: {}: {} bytes behind the last whole message, at byte {here}, are cut off",
                        path.display(),
                        rest.len() - at
                    );
                    return Ok(at);
                }
            }
        }
    }

    // ---- writing

    pub fn bounds(&self) -> Bounds {
        Bounds {
            first: if self.last == 0 { 0 } else { self.first },
            last: self.last,
            messages: self.messages,
            bytes: self.bytes,
            last_timestamp: self.last_timestamp,
        }
    }

    pub fn append(
        &mut self,
        mut message: pb::MsgProto,
        options: &FileOptions,
    ) -> Result<Seq, StoreError> {
        self.make_slice(message.timestamp, options)?;
        message.sequence = self.last + 1;
        let encoded: Bytes = message.encode_to_vec().into();
        let slice = self.slices.back_mut().expect("made above");
        let entry = IndexEntry {
            seq: message.sequence,
            offset: slice.data_end,
            timestamp: message.timestamp,
            size: encoded.len() as u32,
        };
        put_untyped(&mut self.data_buffer, &self.crc, &encoded);
        entry.put(&mut self.index_buffer, &self.crc);
        if slice.count == 0 {
            slice.first = message.sequence;
            slice.begun_at = message.timestamp;
        }
        let cost = encoded.len() as u64 + OVERHEAD_BYTES;
        slice.count += 1;
        slice.bytes += cost;
        slice.data_end += (HEADER_BYTES + encoded.len()) as u64;
        slice.last_timestamp = message.timestamp;
        if self.messages == 0 {
            self.first = message.sequence;
        }
        self.last = message.sequence;
        self.messages += 1;
        self.bytes += cost;
        self.last_timestamp = message.timestamp;
        self.recent_bytes += encoded.len();
        self.recent.push_back(encoded);
        if self.data_buffer.len() >= options.buffer_bytes_max {
            self.write()?;
        }
        Ok(message.sequence)
    }

    /// A slice that may take one more message.
    fn make_slice(&mut self, now: i64, options: &FileOptions) -> Result<(), StoreError> {
        let (count_max, bytes_max, age_max) = options.slice_limits(&self.limits);
        if let Some(slice) = self.slices.back() {
            let full = (count_max > 0 && slice.count >= count_max)
                || (bytes_max > 0 && slice.bytes >= bytes_max)
                || (age_max > 0 && slice.count > 0 && now - slice.begun_at >= age_max);
            if !full || slice.count == 0 {
                return Ok(());
            }
            self.write()?;
        }
        let number = self.slices.back().map_or(1, |slice| slice.number + 1);
        let (data, index) = (
            self.open_file(number, "dat")?,
            self.open_file(number, "idx")?,
        );
        for (file, suffix) in [(&data, "dat"), (&index, "idx")] {
            file.set_len(0)
                .and_then(|()| file.write_all_at(&VERSION, 0))
                .map_err(|error| io_error("writing", &self.path(number, suffix), error))?;
        }
        if let Ok(folder) = File::open(&self.folder) {
            // The names must survive as well.
            let _ = folder.sync_all();
        }
        // Files of slices that are only read are opened again when someone reads them.
        if let Some(slice) = self.slices.back_mut() {
            (slice.data, slice.index) = (None, None);
        }
        self.slices.push_back(Slice {
            number,
            first: self.last + 1,
            count: 0,
            bytes: 0,
            last_timestamp: 0,
            data_end: VERSION.len() as u64,
            begun_at: now,
            data: Some(Arc::new(data)),
            index: Some(Arc::new(index)),
        });
        self.written = self.mark();
        self.drop_empty_slices(options);
        Ok(())
    }

    fn mark(&self) -> Mark {
        let slice = self.slices.back();
        Mark {
            last: self.last,
            messages: self.messages,
            bytes: self.bytes,
            last_timestamp: self.last_timestamp,
            slice_count: slice.map_or(0, |slice| slice.count),
            slice_bytes: slice.map_or(0, |slice| slice.bytes),
            slice_timestamp: slice.map_or(0, |slice| slice.last_timestamp),
            data_end: slice.map_or(0, |slice| slice.data_end),
        }
    }

    /// Hands the buffers to the system. On an error nothing of them stays: not in the files, and
    /// not in the log.
    pub fn write(&mut self) -> Result<(), StoreError> {
        if self.data_buffer.is_empty() {
            return Ok(());
        }
        let Mark {
            data_end,
            slice_count,
            ..
        } = self.written;
        let index_end = (VERSION.len() as u64) + slice_count * INDEX_BYTES as u64;
        let slice = self.slices.back().expect("there is data for it");
        let number = slice.number;
        let (data, index) = (slice.data.clone(), slice.index.clone());
        let (data, index) = (data.expect("open"), index.expect("open"));
        let result = data
            .write_all_at(&self.data_buffer, data_end)
            .map_err(|error| ("dat", error))
            .and_then(|()| {
                let written = index.write_all_at(&self.index_buffer, index_end);
                written.map_err(|error| ("idx", error))
            });
        self.data_buffer.clear();
        self.index_buffer.clear();
        if let Err((suffix, error)) = result {
            // What the files have beyond their old ends must not be taken for messages.
            let _ = index.set_len(index_end);
            let _ = data.set_len(data_end);
            self.take_back();
            return Err(io_error("writing", &self.path(number, suffix), error));
        }
        // The index need not reach the disk: what of it is lost is made again from the data.
        if !self.unsynced.iter().any(|file| Arc::ptr_eq(file, &data)) {
            self.unsynced.push(data);
        }
        self.written = self.mark();
        self.trim_recent();
        Ok(())
    }

    fn take_back(&mut self) {
        let mark = self.written;
        let lost = (self.last - mark.last) as usize;
        for _ in 0..lost {
            if let Some(message) = self.recent.pop_back() {
                self.recent_bytes -= message.len();
            }
        }
        let slice = self.slices.back_mut().expect("it was written to");
        slice.count = mark.slice_count;
        slice.bytes = mark.slice_bytes;
        slice.last_timestamp = mark.slice_timestamp;
        slice.data_end = mark.data_end;
        self.last = mark.last;
        self.messages = self.messages.saturating_sub(lost as u64).min(mark.messages);
        self.bytes = mark.bytes.min(self.bytes);
        self.last_timestamp = mark.last_timestamp;
        self.front.clear();
    }

    fn trim_recent(&mut self) {
        while self.recent.len() > RECENT_MESSAGES_MAX || self.recent_bytes > RECENT_BYTES_MAX {
            let Some(message) = self.recent.pop_front() else {
                return;
            };
            self.recent_bytes -= message.len();
        }
    }

    /// Files to be synced before what was written counts as durable.
    pub fn take_unsynced(&mut self) -> Vec<Arc<File>> {
        std::mem::take(&mut self.unsynced)
    }

    // ---- reading

    pub fn lookup(&mut self, seq: Seq) -> Result<Option<Bytes>, StoreError> {
        if seq < self.first || seq > self.last || self.messages == 0 {
            return Ok(None);
        }
        let first_recent = self.last + 1 - self.recent.len() as u64;
        if seq >= first_recent {
            return Ok(Some(self.recent[(seq - first_recent) as usize].clone()));
        }
        let Some(slice) = self.slice_of(seq) else {
            return Ok(None);
        };
        let ahead = seq == self.last_looked_up + 1;
        self.last_looked_up = seq;
        let entry = self.entry_of(slice, seq, ahead)?;
        let data = self.data_of(slice)?;
        let end = match slice + 1 == self.slices.len() {
            true => self.written.data_end,
            false => self.slices[slice].data_end,
        };
        let len = HEADER_BYTES + entry.size as usize;
        let number = self.slices[slice].number;
        let record = self
            .data_block
            .read(&data, number, entry.offset, len, ahead, end)
            .map_err(|error| io_error("reading", &self.path(number, "dat"), error))?;
        match look(&record, 0, false, &self.crc) {
            Found::Record { .. } => Ok(Some(record.slice(HEADER_BYTES..))),
            _ => {
                let path = self.path(number, "dat");
                let error = StoreError::Damaged {
                    path,
                    offset: entry.offset,
                    why: format!(
                        "message {seq} of channel {:?} does not fit its checksum",
                        self.channel
                    ),
                };
                if !self.damaged.contains(&seq) {
                    log::error!("STREAM: {error}; it will not be served");
                    self.damaged.push(seq);
                }
                Err(error)
            }
        }
    }

    fn slice_of(&self, seq: Seq) -> Option<usize> {
        let at = self.slices.partition_point(|slice| slice.first <= seq);
        let index = at.checked_sub(1)?;
        (seq <= self.slices[index].last() && self.slices[index].count > 0).then_some(index)
    }

    fn entry(&mut self, slice: usize, seq: Seq) -> Result<IndexEntry, StoreError> {
        self.entry_of(slice, seq, false)
    }

    fn entry_of(&mut self, slice: usize, seq: Seq, ahead: bool) -> Result<IndexEntry, StoreError> {
        let nth = seq - self.slices[slice].first;
        let mut bytes = [0; INDEX_BYTES];
        // The end of the index may still be in its buffer.
        let written = match slice + 1 == self.slices.len() {
            true => self.written.slice_count,
            false => u64::MAX,
        };
        if nth >= written {
            let at = (nth - written) as usize * INDEX_BYTES;
            bytes.copy_from_slice(&self.index_buffer[at..at + INDEX_BYTES]);
        } else {
            let index = self.index_of(slice)?;
            let place = |nth: u64| VERSION.len() as u64 + nth * INDEX_BYTES as u64;
            let end = place(written.min(self.slices[slice].count));
            let number = self.slices[slice].number;
            let read = self
                .index_block
                .read(&index, number, place(nth), INDEX_BYTES, ahead, end)
                .map_err(|error| io_error("reading", &self.path(number, "idx"), error))?;
            bytes.copy_from_slice(&read);
        }
        let entry = IndexEntry::read(&bytes, &self.crc).filter(|entry| entry.seq == seq);
        entry.ok_or_else(|| StoreError::Damaged {
            path: self.path(self.slices[slice].number, "idx"),
            offset: VERSION.len() as u64 + nth * INDEX_BYTES as u64,
            why: format!("no entry of message {seq}"),
        })
    }

    fn data_of(&mut self, slice: usize) -> Result<Arc<File>, StoreError> {
        if let Some(file) = &self.slices[slice].data {
            return Ok(file.clone());
        }
        let file = Arc::new(self.open_file(self.slices[slice].number, "dat")?);
        self.slices[slice].data = Some(file.clone());
        Ok(file)
    }

    fn index_of(&mut self, slice: usize) -> Result<Arc<File>, StoreError> {
        if let Some(file) = &self.slices[slice].index {
            return Ok(file.clone());
        }
        let file = Arc::new(self.open_file(self.slices[slice].number, "idx")?);
        self.slices[slice].index = Some(file.clone());
        Ok(file)
    }

    /// Files of slices that are only read need not stay open, nor what was read ahead.
    pub fn close_old_files(&mut self) {
        (self.data_block, self.index_block) = (Block::default(), Block::default());
        let last = self.slices.len().saturating_sub(1);
        for slice in self.slices.iter_mut().take(last) {
            (slice.data, slice.index) = (None, None);
        }
    }

    /// The first message not older than this; one past the last when all are.
    pub fn first_since(&mut self, timestamp: i64) -> Result<Seq, StoreError> {
        let young = |slice: &Slice| slice.count > 0 && slice.last_timestamp >= timestamp;
        let Some(slice) = self.slices.iter().position(young) else {
            return Ok(self.last + 1);
        };
        let (mut low, mut high) = (self.slices[slice].first, self.slices[slice].last());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.entry(slice, middle)?.timestamp < timestamp {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        Ok(low.max(self.first))
    }

    // ---- limits

    pub fn apply_limits(&mut self, options: &FileOptions) -> Result<(), StoreError> {
        let limits = self.limits;
        let too_much = |log: &Self| {
            (limits.messages > 0 && log.messages > limits.messages)
                || (limits.bytes > 0 && log.bytes > limits.bytes && log.messages > 1)
        };
        if !too_much(self) {
            return Ok(());
        }
        if !std::mem::replace(&mut self.told_of_limit, true) {
            tell_of_limit(&self.channel, self.messages, self.bytes, &limits);
        }
        while too_much(self) {
            self.drop_first()?;
        }
        self.drop_empty_slices(options);
        Ok(())
    }

    /// Removes what is too old; returns when the next message will be.
    pub fn expire(&mut self, now: i64, options: &FileOptions) -> Result<Option<i64>, StoreError> {
        let age = self.limits.age;
        if age == 0 {
            return Ok(None);
        }
        while self.messages > 0 {
            let (_, timestamp) = self.front()?;
            let at = timestamp.saturating_add(age);
            if at > now {
                return Ok(Some(at));
            }
            self.drop_first()?;
            self.drop_empty_slices(options);
        }
        Ok(None)
    }

    /// Size and time of the first message.
    fn front(&mut self) -> Result<(u32, i64), StoreError> {
        if self.front.is_empty() {
            let slice = self
                .slice_of(self.first)
                .ok_or_else(|| StoreError::Damaged {
                    path: self.folder.clone(),
                    offset: 0,
                    why: format!("message {} is in no file", self.first),
                })?;
            let last = self.slices[slice]
                .last()
                .min(self.first + FRONT_ENTRIES - 1);
            for seq in self.first..=last {
                let entry = self.entry(slice, seq)?;
                self.front.push_back((entry.size, entry.timestamp));
            }
        }
        Ok(self.front[0])
    }

    fn drop_first(&mut self) -> Result<(), StoreError> {
        let (size, _) = self.front()?;
        self.front.pop_front();
        let cost = u64::from(size) + OVERHEAD_BYTES;
        self.bytes -= cost;
        self.messages -= 1;
        self.written.bytes = self.written.bytes.saturating_sub(cost);
        self.written.messages = self.written.messages.saturating_sub(1);
        self.first += 1;
        // Gaps between slices are skipped.
        if self.messages > 0 && self.slice_of(self.first).is_none() {
            let at = self
                .slices
                .partition_point(|slice| slice.first <= self.first);
            if let Some(slice) = self.slices.get(at) {
                self.first = slice.first;
            }
        }
        Ok(())
    }

    /// Files whose messages have all gone, except those of the last slice.
    fn drop_empty_slices(&mut self, options: &FileOptions) {
        while self.slices.len() > 1 {
            let slice = &self.slices[0];
            if slice.count > 0 && slice.last() >= self.first {
                return;
            }
            let number = slice.number;
            self.slices.pop_front();
            options.dispose(
                &self.channel,
                &self.path(number, "dat"),
                &self.path(number, "idx"),
            );
        }
    }

    /// Writes and syncs what is left.
    pub fn close(&mut self) {
        if let Err(error) = self.write() {
            log::error!("STREAM: {error}");
        }
        for mut file in self.take_unsynced() {
            let synced = match Arc::get_mut(&mut file) {
                Some(file) => file.flush().and_then(|()| file.sync_data()),
                None => file.sync_data(),
            };
            if let Err(error) = synced {
                log::error!("STREAM: syncing {}: {error}", self.folder.display());
            }
        }
    }
}

/// An empty file is one that was just made; anything else must say version 1.
fn check_version(bytes: &[u8], path: &Path) -> Result<(), StoreError> {
    match bytes.first_chunk::<4>() {
        None => Ok(()),
        Some(version) if *version == VERSION => Ok(()),
        Some([0, 0, 0, 0]) => Ok(()),
        Some(version) => Err(StoreError::Refused(format!(
            "{}: unsupported file version: {} (supports [1..1])",
            path.display(),
            u32::from_le_bytes(*version)
        ))),
    }
}
