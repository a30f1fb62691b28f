//! The messages of one channel: slices, each a data file and its index.
//!
//! The index is read, not kept: entry n of a slice is at a known place in its file. What was
//! appended lately is also in memory, and everything not yet written is.
//!
//! Messages are gathered, then staged, then written, the data before the index entries that point to it. Between the last
//! two steps the shared log brings them to the disk, where it is used (`shared_log.rs`). What a crash leaves is the matter
//! of `recover`.

mod recover;

pub use recover::unsupported_version;

use super::ahead::Block;
use super::damage::{Damage, Damaged};
use super::disk::is_not_opened;
use super::files::{Files, StoreFile};
use super::pending::{Pending, Place};
use super::progress::Progress;
use super::purge::{self, Mark};
use super::recent::Recent;
use super::records::{
    Crc, HEADER_BYTES, INDEX_BYTES, IndexEntry, MESSAGE_BYTES_MAX, OVERHEAD_BYTES, VERSION,
    payload_of,
};
use super::scan::sequence_of;
use super::{FileOptions, disk, io_error, is_sync};
use crate::stan::in_place::NewMessage;
use crate::stan::store::memory::tell_of_limit;
use crate::stan::store::{Bounds, ChannelLimits, Seq, StoreError};
use bytes::Bytes;
use std::collections::VecDeque;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Index entries read at a time by whoever goes through the messages.
const INDEX_AHEAD_BYTES: usize = 64 << 10;
/// Index entries read at once when messages go for good.
const FRONT_ENTRIES: u64 = 1024;

struct Slice {
    number: u64,
    first: Seq,
    /// Messages, those not yet written included.
    count: u64,
    /// As limits count.
    bytes: u64,
    last_timestamp: i64,
    /// Where the next record goes.
    data_end: u64,
    written: Written,
    /// When its first message was written.
    begun_at: i64,
    data: Arc<StoreFile>,
    index: Arc<StoreFile>,
}

/// What of a slice is in its files.
#[derive(Clone, Copy, Default)]
struct Written {
    count: u64,
    bytes: u64,
    last_timestamp: i64,
    data_end: u64,
}

impl Slice {
    fn last(&self) -> Seq {
        self.first + self.count - 1
    }
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
    /// Not yet staged for writing; staged, and not yet written.
    gathered: Pending,
    staged: Pending,
    /// The last message in the files, and its time.
    written: (Seq, i64),
    /// Slices whose messages have all gone, and the last message when they went. Their files go when that is
    /// written, and a later slice has one: what made them go, and the number of the last one, must be found after a crash.
    doomed: Vec<(Seq, Slice)>,
    /// The last messages, ending with `last`.
    recent: Recent,
    /// Size and time of the first messages, read ahead.
    front: VecDeque<(u32, i64)>,
    /// Files with writes that no sync has covered.
    unsynced: Vec<Arc<StoreFile>>,
    /// Names were made or removed since the last sync of the folder.
    folder_changed: bool,
    /// Pieces of a data file and of an index, for a reader who goes through all messages.
    data_block: Block,
    index_block: Block,
    last_looked_up: Seq,
    /// The next message begins a new slice, so that the files of the purged ones can go.
    next_slice: bool,
    told_of_limit: bool,
    damaged: Damaged,
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
            gathered: Pending::default(),
            staged: Pending::default(),
            written: (0, 0),
            doomed: Vec::new(),
            recent: Recent::new(files),
            front: VecDeque::new(),
            unsynced: Vec::new(),
            folder_changed: false,
            data_block: Block::default(),
            index_block: Block::default(),
            last_looked_up: 0,
            next_slice: false,
            told_of_limit: false,
            damaged: Damaged::default(),
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
        log.written = (log.last, log.last_timestamp);
        let first = purge::read(folder, Mark::Purged, &options.crc, &damage)?;
        log.purge(first, options)?;
        // What a start takes away is not worth the warning: it is for what comes.
        log.told_of_limit = true;
        log.apply_limits()?;
        log.told_of_limit = false;
        log.dispose(options);
        log.skip_to(purge::read(folder, Mark::Given, &options.crc, &damage)?);
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
        let written = Written {
            count: found.count,
            bytes: found.bytes,
            last_timestamp: found.last_timestamp,
            data_end: found.data_end,
        };
        self.slices.push_back(Slice {
            number,
            first,
            count: found.count,
            bytes: found.bytes,
            last_timestamp: found.last_timestamp,
            data_end: found.data_end,
            written,
            begun_at: found.first_timestamp,
            data,
            index,
        });
        Ok(())
    }

    /// The next message gets a number above this one, which somebody has seen. An error: it is not known whether the disk has
    /// that.
    pub fn go_on_after(&mut self, seq: Seq) -> Result<(), StoreError> {
        if seq <= self.last {
            return Ok(());
        }
        log::error!(
            "STREAM: channel {:?}: subscriptions were sent messages up to {seq}, the last one here is {}; the next one is {}",
            self.channel,
            self.last,
            seq + 1
        );
        self.skip_to(seq);
        // Who has seen it may be gone at the next start.
        match purge::write(&self.folder, Mark::Given, &self.crc, seq) {
            Err(error) if is_sync(&error) => return Err(error),
            Err(error) => log::error!("STREAM: {error}"),
            Ok(()) => {}
        }
        Ok(())
    }

    fn skip_to(&mut self, seq: Seq) {
        if seq <= self.last {
            return;
        }
        self.last = seq;
        if self.messages == 0 {
            self.first = seq + 1;
        }
        self.written.0 = self.last;
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
        message: NewMessage<'_>,
        options: &FileOptions,
    ) -> Result<Seq, StoreError> {
        let size = message.subject.len() + message.reply.len() + message.data.len();
        if size > MESSAGE_BYTES_MAX {
            return Err(StoreError::Refused(format!(
                "a message for channel {:?} has {size} bytes, the store takes {MESSAGE_BYTES_MAX}: publish smaller ones",
                self.channel
            )));
        }
        self.make_slice(message.timestamp, options)?;
        let seq = self.last + 1;
        let encoded = self.recent.encoded(&message, seq);
        let slice = self.slices.back_mut().expect("made above");
        let place = Place {
            slice: slice.number,
            data_file: &slice.data,
            index_file: &slice.index,
            count: slice.count,
            data_end: slice.data_end,
        };
        self.gathered
            .push(&place, seq, message.timestamp, &encoded, &self.crc);
        if slice.count == 0 {
            slice.first = seq;
            slice.begun_at = message.timestamp;
        }
        let cost = encoded.len() as u64 + OVERHEAD_BYTES;
        slice.count += 1;
        slice.bytes += cost;
        slice.data_end += (HEADER_BYTES + encoded.len()) as u64;
        slice.last_timestamp = message.timestamp;
        if self.messages == 0 {
            self.first = seq;
        }
        self.last = seq;
        self.messages += 1;
        self.bytes += cost;
        self.last_timestamp = message.timestamp;
        self.recent.push(encoded);
        // With the log, nothing is written before that has it.
        if !options.sync && self.gathered.data_bytes() >= options.buffer_bytes_max {
            self.write(options)?;
        }
        Ok(seq)
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
        self.folder_changed = true;
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
            written: Written {
                data_end: VERSION.len() as u64,
                ..Written::default()
            },
            begun_at: now,
            data,
            index,
        });
        self.next_slice = false;
        self.drop_empty_slices();
        Ok(())
    }

    /// Whether there is something to be staged, and whether something was and is not yet written.
    pub fn has_gathered(&self) -> bool {
        !self.gathered.is_empty()
    }

    pub fn has_staged(&self) -> bool {
        !self.staged.is_empty()
    }

    /// Pieces and bytes of what was gathered.
    pub fn gathered_size(&self) -> (usize, usize) {
        (self.gathered.pieces.len(), self.gathered.data_bytes())
    }

    /// What was gathered is to be written next; returns it.
    pub fn stage(&mut self) -> &Pending {
        assert!(
            self.staged.is_empty(),
            "what was staged before is not written"
        );
        std::mem::swap(&mut self.gathered, &mut self.staged);
        &self.staged
    }

    /// The last message in the files.
    pub fn written_last(&self) -> Seq {
        self.written.0
    }

    /// Hands what was gathered to the system.
    pub fn write(&mut self, options: &FileOptions) -> Result<(), StoreError> {
        self.stage();
        self.write_staged(options)
    }

    /// Hands what was staged to the system. On an error neither that nor what was gathered since stays: not in the
    /// files, and not here.
    pub fn write_staged(&mut self, options: &FileOptions) -> Result<(), StoreError> {
        if let Err(error) = self.staged.write() {
            self.take_back();
            return Err(error);
        }
        for piece in &self.staged.pieces {
            let slices = self.slices.iter_mut().rev();
            let mut slices = slices.take_while(|slice| slice.number >= piece.slice);
            if let Some(slice) = slices.find(|slice| slice.number == piece.slice) {
                let cost = piece.data_bytes as u64 + piece.count * INDEX_BYTES as u64;
                slice.written.count += piece.count;
                slice.written.bytes += cost;
                slice.written.data_end += piece.data_bytes as u64;
                slice.written.last_timestamp = piece.last_timestamp;
            }
            // The index need not reach the disk: what of it is lost is made again from the data.
            let known = |file: &Arc<StoreFile>| Arc::ptr_eq(file, &piece.data_file);
            if !self.unsynced.iter().rev().any(known) {
                self.unsynced.push(piece.data_file.clone());
            }
        }
        if !self.staged.is_empty() {
            self.written = (self.staged.last, self.staged.last_timestamp);
            self.staged.clear();
            // A limit that cannot be applied now is applied with what is written next.
            if let Err(error) = self.apply_limits() {
                log::error!("STREAM: {error}");
            }
        }
        self.recent.trim(self.unwritten());
        self.dispose(options);
        Ok(())
    }

    /// The place in the files behind the last message that is written, as the log names it.
    pub fn written_end(&self) -> (u64, u64) {
        let mut slices = self.slices.iter().rev();
        let last = slices.find(|slice| slice.written.count > 0);
        let last = last.or(self.slices.front());
        last.map_or((0, 0), |slice| (slice.number, slice.written.data_end))
    }

    /// Everything that is not in the files goes, and its numbers are free again.
    pub fn take_back(&mut self) {
        let (last, last_timestamp) = self.written;
        for seq in (last + 1).max(self.first)..=self.last {
            let entry = self.unwritten_entry((seq - last - 1) as usize);
            let entry = IndexEntry::read(entry, &self.crc).expect("it was just made");
            self.messages -= 1;
            self.bytes -= u64::from(entry.size) + OVERHEAD_BYTES;
        }
        self.recent.take_back(self.last - last);
        self.gathered.clear();
        self.staged.clear();
        for slice in &mut self.slices {
            let Written {
                count,
                bytes,
                last_timestamp,
                data_end,
            } = slice.written;
            (slice.count, slice.bytes) = (count, bytes);
            (slice.last_timestamp, slice.data_end) = (last_timestamp, data_end);
        }
        // Of slices begun since, one is enough.
        let empty = |slice: Option<&Slice>| slice.is_some_and(|slice| slice.count == 0);
        while self.slices.len() > 1
            && empty(self.slices.back())
            && empty(self.slices.get(self.slices.len() - 2))
        {
            if let Some(slice) = self.slices.pop_back() {
                for file in [slice.index, slice.data] {
                    file.forget();
                    let _ = disk::remove_file(file.path());
                }
            }
        }
        if let Some(slice) = self.slices.back_mut()
            && slice.count == 0
        {
            slice.first = last + 1;
        }
        self.last = last;
        self.first = self.first.min(last + 1);
        self.last_timestamp = last_timestamp;
        self.front.clear();
    }

    /// Of the messages that are not written, the nth one's.
    fn unwritten_entry(&self, nth: usize) -> &[u8; INDEX_BYTES] {
        let entry = match nth.checked_sub(self.staged.count()) {
            None => self.staged.entry(nth),
            Some(nth) => self.gathered.entry(nth),
        };
        entry.expect("it is not written")
    }

    /// Messages that are not in the files.
    fn unwritten(&self) -> usize {
        (self.last - self.written.0) as usize
    }

    /// Files with writes that no sync has covered; the caller sees to it.
    pub fn take_unsynced(&mut self) -> Vec<Arc<StoreFile>> {
        std::mem::take(&mut self.unsynced)
    }

    /// Whether the folder itself is to be synced; the caller sees to it.
    pub fn take_folder_changed(&mut self) -> bool {
        std::mem::take(&mut self.folder_changed)
    }

    // ---- reading

    pub fn lookup(&mut self, seq: Seq) -> Result<Option<Bytes>, StoreError> {
        if seq < self.first || seq > self.last || self.messages == 0 {
            return Ok(None);
        }
        if let Some(message) = self.recent.before_last(self.last - seq) {
            return Ok(Some(message.clone()));
        }
        let Some(slice) = self.slice_of(seq) else {
            return Ok(None);
        };
        let ahead = seq == self.last_looked_up + 1;
        self.last_looked_up = seq;
        let ahead_bytes = if ahead { self.read_ahead_bytes } else { 0 };
        let entry = self.entry_of(slice, seq, ahead)?;
        let data = self.slices[slice].data.clone();
        let end = self.slices[slice].written.data_end;
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
                self.damaged.tell(number, seq, &error);
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
        if let Some(unwritten) = seq.checked_sub(self.written.0 + 1) {
            bytes = *self.unwritten_entry(unwritten as usize);
        } else {
            let index = self.slices[slice].index.clone();
            let ahead_bytes = if ahead { INDEX_AHEAD_BYTES } else { 0 };
            let place = |nth: u64| VERSION.len() as u64 + nth * INDEX_BYTES as u64;
            let end = place(self.slices[slice].written.count);
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

    /// Files of slices that are only read need not stay open, nor what was read ahead; and where nothing comes, nothing that is
    /// in the files need be in memory.
    pub fn give_back(&mut self) {
        if self.recent.rest(self.unwritten()) {
            self.gathered.give_back();
            self.staged.give_back();
        }
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

    /// Old messages go for new ones that are in the files: for others, which may be taken back, nothing goes.
    fn apply_limits(&mut self) -> Result<(), StoreError> {
        let limits = self.limits;
        let too_much = |log: &Self| {
            let (messages, bytes) = log.in_files();
            (limits.messages > 0 && messages > limits.messages)
                || (limits.bytes > 0 && bytes > limits.bytes && messages > 1)
        };
        if !too_much(self) {
            return Ok(());
        }
        while too_much(self) {
            if !self.drop_first_slice() {
                self.drop_first()?;
            }
            if !std::mem::replace(&mut self.told_of_limit, true) {
                tell_of_limit(&self.channel, self.messages, self.bytes, &limits);
            }
        }
        self.drop_empty_slices();
        Ok(())
    }

    /// A slice of which no message can stay goes at once; false if there is none.
    fn drop_first_slice(&mut self) -> bool {
        let limits = self.limits;
        let (Some(slice), Some(next)) = (self.slices.front(), self.slices.get(1)) else {
            return false;
        };
        let Written { count, bytes, .. } = slice.written;
        let (held, held_bytes) = self.in_files();
        let still_too_much = (limits.messages > 0 && held >= limits.messages + count)
            || (limits.bytes > 0 && held_bytes.saturating_sub(bytes) >= limits.bytes);
        let whole = count > 0 && self.first == slice.first && self.front.is_empty();
        if !whole || !still_too_much || held <= count || next.written.count == 0 {
            return false;
        }
        self.first = next.first;
        self.uncount(count, bytes);
        self.drop_empty_slices();
        true
    }

    /// Messages that are in the files and have not gone, and their bytes.
    fn in_files(&self) -> (u64, u64) {
        if self.first > self.written.0 {
            return (0, 0);
        }
        let unwritten_bytes = self.staged.bytes() + self.gathered.bytes();
        (
            self.messages.saturating_sub(self.unwritten() as u64),
            self.bytes.saturating_sub(unwritten_bytes as u64),
        )
    }

    fn uncount(&mut self, count: u64, bytes: u64) {
        self.messages -= count;
        self.bytes = self.bytes.saturating_sub(bytes);
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
            self.drop_empty_slices();
            self.dispose(options);
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
            let mut unreadable = None;
            for seq in self.first..=last {
                let of = &self.slices[slice];
                let (begun_at, ends_at) = (of.begun_at, of.last_timestamp);
                let mean_bytes = (of.bytes / of.count).saturating_sub(OVERHEAD_BYTES) as u32;
                let entry = match self.entry_of(slice, seq, true) {
                    Ok(entry) => (entry.size, entry.timestamp),
                    // These can go like any other. One that cannot be read may be there another time, and does not go too
                    // early.
                    Err(StoreError::Damaged { .. }) => (mean_bytes, begun_at),
                    Err(StoreError::Io { error, .. }) if is_not_opened(&error) => {
                        return Err(io_error("reading", self.slices[slice].index.path(), error));
                    }
                    Err(error) => {
                        unreadable.get_or_insert(error);
                        (mean_bytes, ends_at)
                    }
                };
                self.front.push_back(entry);
            }
            if let Some(error) = unreadable {
                log::error!("STREAM: {error}");
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
            self.written.0 = self.last;
            self.next_slice = self.slices.back().is_some_and(|slice| slice.count > 0);
            self.front.clear();
        }
        while self.messages > 0 && self.first < first {
            self.drop_first()?;
        }
        self.drop_empty_slices();
        self.dispose(options);
        Ok(before - self.messages)
    }

    /// Slices whose messages have all gone, except the last one.
    fn drop_empty_slices(&mut self) {
        while self.slices.len() > 1 {
            let slice = &self.slices[0];
            if slice.count > 0 && slice.last() >= self.first {
                return;
            }
            let gone = self.slices.pop_front();
            self.doomed.extend(gone.map(|slice| (self.last, slice)));
        }
    }

    /// The files of those, when it is time.
    fn dispose(&mut self, options: &FileOptions) {
        let written = |slice: &Slice| slice.written.count > 0;
        if self.doomed.is_empty() || !self.slices.iter().any(written) {
            return;
        }
        let due = |(last, _): &(Seq, Slice)| *last <= self.written.0;
        let due = self.doomed.iter().take_while(|doomed| due(doomed)).count();
        for (_, slice) in self.doomed.drain(..due) {
            self.unsynced.retain(|file| !Arc::ptr_eq(file, &slice.data));
            slice.data.forget();
            slice.index.forget();
            options.dispose(&self.channel, slice.data.path(), slice.index.path());
            self.folder_changed = true;
        }
    }

    /// The folder is about to be removed.
    pub fn forget(&mut self) {
        self.unsynced.clear();
        let doomed = self.doomed.iter().map(|(_, slice)| slice);
        for slice in self.slices.iter().chain(doomed) {
            slice.data.forget();
            slice.index.forget();
        }
    }
}
