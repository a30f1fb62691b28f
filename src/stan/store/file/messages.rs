//! The messages of one channel: slices, each a data file and its index.
//!
//! The index is read, not kept: entry n of a slice is at a known place in its file. What was
//! appended lately is also in memory, and everything not yet written is.
//!
//! Data is written before the index entries that point to it, and both before a flush is over; only the data is
//! brought to the disk by it. What that leaves after a crash is the matter of `recover`.

mod recover;

pub use recover::unsupported_version;

use super::ahead::Block;
use super::damage::Damage;
use super::files::{Files, StoreFile};
use super::progress::Progress;
use super::records::{
    Crc, HEADER_BYTES, INDEX_BYTES, IndexEntry, OVERHEAD_BYTES, VERSION, payload_of, put_untyped,
};
use super::scan::sequence_of;
use super::{FileOptions, io_error, purge};
use crate::stan::pb;
use crate::stan::store::memory::tell_of_limit;
use crate::stan::store::{Bounds, ChannelLimits, Seq, StoreError};
use bytes::Bytes;
use prost::Message;
use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Written messages kept in memory, for those who read along.
const RECENT_MESSAGES_MAX: usize = 4096;
const RECENT_BYTES_MAX: usize = 4 << 20;
/// Index entries read at a time by whoever goes through the messages.
const INDEX_AHEAD_BYTES: usize = 64 << 10;
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
    data: Arc<StoreFile>,
    index: Arc<StoreFile>,
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
    files: Arc<Files>,
    crc: Crc,
    pub limits: ChannelLimits,
    read_ahead_bytes: usize,
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
    unsynced: Vec<Arc<StoreFile>>,
    /// Pieces of a data file and of an index, for a reader who goes through all messages.
    data_block: Block,
    index_block: Block,
    last_looked_up: Seq,
    written: Mark,
    /// The next message begins a new slice, so that the files of the purged ones can go.
    next_slice: bool,
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
        files: &Arc<Files>,
        progress: &Progress,
    ) -> Result<Self, StoreError> {
        let mut log = Self {
            folder: folder.to_owned(),
            channel: channel.to_owned(),
            files: files.clone(),
            crc: options.crc.clone(),
            limits,
            read_ahead_bytes: options.read_ahead_bytes,
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
            next_slice: false,
            told_of_limit: false,
            damaged: Vec::new(),
        };
        let damage = Damage {
            strict: options.strict,
            channel: Some(channel),
        };
        for number in log.numbers(&damage)? {
            log.recover(number, damage, progress)?;
        }
        if let Some(first) = log.slices.iter().find(|slice| slice.count > 0) {
            log.first = first.first;
        }
        log.written = log.mark();
        let first = purge::read(folder, &options.crc, &damage)?;
        log.purge(first, options)?;
        log.apply_limits(options)?;
        Ok(log)
    }

    /// The numbers of the slices in the folder, in order.
    fn numbers(&self, damage: &Damage) -> Result<Vec<u64>, StoreError> {
        let failed = |error| io_error("reading", &self.folder, error);
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let Some(middle) = name
                .strip_prefix("msgs.")
                .and_then(|rest| rest.strip_suffix(".dat").or(rest.strip_suffix(".idx")))
            else {
                continue;
            };
            match middle.parse() {
                Ok(number) if entry.file_type().map_err(failed)?.is_file() => numbers.push(number),
                _ => damage.found(&entry.path(), 0, "no file of this store; it is left alone")?,
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        Ok(numbers)
    }

    fn recover(
        &mut self,
        number: u64,
        damage: Damage,
        progress: &Progress,
    ) -> Result<(), StoreError> {
        let (data, index) = (self.file(number, "dat"), self.file(number, "idx"));
        let data_is_missing = !data.path().exists();
        let recovery = recover::Recovery {
            crc: &self.crc,
            damage,
            channel: &self.channel,
            progress,
        };
        let found = recover::slice(&data, &index, self.last, &recovery)?;
        if data_is_missing {
            damage.found(data.path(), 0, "the file is missing, its index is there")?;
        }
        let first = match found.count {
            0 => self.last + 1,
            _ => found.first,
        };
        if first > self.last + 1 && self.messages > 0 {
            let why = format!(
                "messages {} to {} are missing on the disk",
                self.last + 1,
                first - 1
            );
            damage.found(data.path(), 0, why)?;
        }
        if found.count > 0 {
            self.last = first + found.count - 1;
            self.last_timestamp = found.last_timestamp;
        }
        self.messages += found.count;
        self.bytes += found.bytes;
        // Only the last slice is written to; the others are opened when somebody reads them.
        if let Some(slice) = self.slices.back() {
            slice.data.close();
            slice.index.close();
        }
        self.slices.push_back(Slice {
            number,
            first,
            count: found.count,
            bytes: found.bytes,
            last_timestamp: found.last_timestamp,
            data_end: found.data_end,
            begun_at: found.first_timestamp,
            data,
            index,
        });
        Ok(())
    }

    /// The next message gets a number above this one, which somebody has seen.
    pub fn go_on_after(&mut self, seq: Seq) {
        if seq <= self.last {
            return;
        }
        log::error!(
            "STREAM: channel {:?}: subscriptions were sent messages up to {seq}, the last one here is {}; the next one is {}",
            self.channel,
            self.last,
            seq + 1
        );
        self.last = seq;
        if self.messages == 0 {
            self.first = seq + 1;
        }
        self.written = self.mark();
    }

    fn path(&self, number: u64, suffix: &str) -> PathBuf {
        self.folder.join(format!("msgs.{number}.{suffix}"))
    }

    fn file(&self, number: u64, suffix: &str) -> Arc<StoreFile> {
        self.files.file(self.path(number, suffix))
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
                || (age_max > 0 && slice.count > 0 && now - slice.begun_at >= age_max)
                || self.next_slice;
            // In a slice every number follows the one before.
            let gap = slice.count > 0 && slice.last() < self.last;
            if slice.count == 0 || !(full || gap) {
                return Ok(());
            }
            self.write()?;
        }
        let number = self.slices.back().map_or(1, |slice| slice.number + 1);
        let (data, index) = (self.file(number, "dat"), self.file(number, "idx"));
        for file in [&data, &index] {
            let begin = |file: &Arc<StoreFile>| {
                let open = file.make()?;
                open.set_len(0)?;
                open.write_all_at(&VERSION, 0)
            };
            begin(file).map_err(|error| io_error("writing", file.path(), error))?;
        }
        if let Ok(folder) = File::open(&self.folder) {
            // The names must survive as well.
            let _ = folder.sync_all();
        }
        // Files of slices that are only read are opened again when someone reads them.
        if let Some(slice) = self.slices.back() {
            slice.data.close();
            slice.index.close();
        }
        self.slices.push_back(Slice {
            number,
            first: self.last + 1,
            count: 0,
            bytes: 0,
            last_timestamp: 0,
            data_end: VERSION.len() as u64,
            begun_at: now,
            data,
            index,
        });
        self.next_slice = false;
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
        let (data, index) = (slice.data.clone(), slice.index.clone());
        let write = |file: &Arc<StoreFile>, bytes: &[u8], at| {
            let written = file.get().and_then(|file| file.write_all_at(bytes, at));
            written.map_err(|error| io_error("writing", file.path(), error))
        };
        let result = write(&data, &self.data_buffer, data_end)
            .and_then(|()| write(&index, &self.index_buffer, index_end));
        self.data_buffer.clear();
        self.index_buffer.clear();
        if let Err(error) = result {
            // What the files have beyond their old ends must not be taken for messages.
            for (file, end) in [(&index, index_end), (&data, data_end)] {
                let _ = file.get().and_then(|file| file.set_len(end));
            }
            self.take_back();
            return Err(error);
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
    pub fn take_unsynced(&mut self) -> Vec<Arc<StoreFile>> {
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
        let ahead_bytes = if ahead { self.read_ahead_bytes } else { 0 };
        let entry = self.entry_of(slice, seq, ahead)?;
        let data = self.slices[slice].data.clone();
        let end = match slice + 1 == self.slices.len() {
            true => self.written.data_end,
            false => self.slices[slice].data_end,
        };
        let len = HEADER_BYTES + entry.size as usize;
        let number = self.slices[slice].number;
        let record = self
            .data_block
            .read(&data, number, entry.offset, len, ahead_bytes, end)
            .map_err(|error| io_error("reading", &self.path(number, "dat"), error))?;
        let payload = payload_of(&record, &self.crc);
        match payload.is_some_and(|payload| sequence_of(payload) == Some(seq)) {
            true => Ok(Some(record.slice(HEADER_BYTES..))),
            false => {
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
            let index = self.slices[slice].index.clone();
            let ahead_bytes = if ahead { INDEX_AHEAD_BYTES } else { 0 };
            let place = |nth: u64| VERSION.len() as u64 + nth * INDEX_BYTES as u64;
            let end = place(written.min(self.slices[slice].count));
            let number = self.slices[slice].number;
            let read = self
                .index_block
                .read(&index, number, place(nth), INDEX_BYTES, ahead_bytes, end)
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

    /// Files of slices that are only read need not stay open, nor what was read ahead.
    pub fn close_old_files(&mut self) {
        (self.data_block, self.index_block) = (Block::default(), Block::default());
        let last = self.slices.len().saturating_sub(1);
        for slice in self.slices.iter().take(last) {
            slice.data.close();
            slice.index.close();
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
            if !self.drop_first_slice(options) {
                self.drop_first()?;
            }
        }
        self.drop_empty_slices(options);
        Ok(())
    }

    /// A slice of which no message can stay goes at once; false if there is none.
    fn drop_first_slice(&mut self, options: &FileOptions) -> bool {
        let limits = self.limits;
        let (Some(slice), Some(next)) = (self.slices.front(), self.slices.get(1)) else {
            return false;
        };
        let (count, bytes) = (slice.count, slice.bytes);
        let still_too_much = (limits.messages > 0 && self.messages >= limits.messages + count)
            || (limits.bytes > 0 && self.bytes.saturating_sub(bytes) >= limits.bytes);
        let whole = count > 0 && self.first == slice.first && self.front.is_empty();
        if !whole || !still_too_much || self.messages <= count || next.count == 0 {
            return false;
        }
        self.first = next.first;
        self.uncount(count, bytes);
        self.drop_empty_slices(options);
        true
    }

    fn uncount(&mut self, count: u64, bytes: u64) {
        self.messages -= count;
        self.bytes = self.bytes.saturating_sub(bytes);
        self.written.messages = self.written.messages.saturating_sub(count);
        self.written.bytes = self.written.bytes.saturating_sub(bytes);
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
            let last = self.slices[slice].last();
            let last = last.min(self.first + FRONT_ENTRIES - 1);
            for seq in self.first..=last {
                let entry = match self.entry_of(slice, seq, true) {
                    Ok(entry) => (entry.size, entry.timestamp),
                    // It can go like any other.
                    Err(StoreError::Damaged { .. }) => (0, self.slices[slice].begun_at),
                    Err(error) => return Err(error),
                };
                self.front.push_back(entry);
            }
        }
        Ok(self.front[0])
    }

    fn drop_first(&mut self) -> Result<(), StoreError> {
        let (size, _) = self.front()?;
        self.front.pop_front();
        let cost = u64::from(size) + OVERHEAD_BYTES;
        self.uncount(1, cost);
        self.first += 1;
        if self.messages == 0 {
            self.first = self.last + 1;
        }
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

    /// Everything before this message goes; returns how many messages that were. Numbers go on behind
    /// what was purged, even if the files of the last ones are lost.
    pub fn purge(&mut self, first: Seq, options: &FileOptions) -> Result<u64, StoreError> {
        let before = self.messages;
        if first > self.last {
            (self.first, self.last) = (first.max(self.first), (first.max(1) - 1).max(self.last));
            (self.messages, self.bytes) = (0, 0);
            (self.written.messages, self.written.bytes) = (0, 0);
            self.written.last = self.last;
            self.next_slice = self.slices.back().is_some_and(|slice| slice.count > 0);
            self.front.clear();
        }
        while self.messages > 0 && self.first < first {
            self.drop_first()?;
        }
        self.drop_empty_slices(options);
        Ok(before - self.messages)
    }

    /// Files whose messages have all gone, except those of the last slice.
    fn drop_empty_slices(&mut self, options: &FileOptions) {
        while self.slices.len() > 1 {
            let slice = &self.slices[0];
            if slice.count > 0 && slice.last() >= self.first {
                return;
            }
            let (data, index) = (slice.data.clone(), slice.index.clone());
            self.slices.pop_front();
            self.unsynced.retain(|file| !Arc::ptr_eq(file, &data));
            data.forget();
            index.forget();
            options.dispose(&self.channel, data.path(), index.path());
        }
    }

    /// The folder is about to be removed.
    pub fn forget(&mut self) {
        self.unsynced.clear();
        for slice in &self.slices {
            slice.data.forget();
            slice.index.forget();
        }
    }

    /// Writes and syncs what is left.
    pub fn close(&mut self) {
        if let Err(error) = self.write() {
            log::error!("STREAM: {error}");
        }
        for file in self.take_unsynced() {
            if let Err(error) = file.sync() {
                log::error!("STREAM: syncing {}: {error}", file.path().display());
            }
        }
    }
}
