//! The log that all channels share: what a turn stored goes to the disk as one write, wherever it belongs.
//!
//! ```text
//!   file:  Free --first batch--> Active --full, or idle--> Retiring --everything it has is in the files--> Free
//! ```
//!
//! A file that holds what could not be replayed wholly, because the disk was full, is `Kept` at the start, or stays active:
//! it is given up when the first commit has all of that again. So does one that finds no room to be emptied.
//!
//! There are two files, of which one is active. docs/STORE-FORMAT.md says why what it holds survives a crash, and
//! `log_format.rs` how it looks.

use super::disk::{File, Folder, is_not_opened};
use super::files::StoreFile;
use super::log_format::{self, BLOCK_BYTES, Entry};
use super::replay::Tail;
use super::sync::{
    Checkpoint, Done, LogWrite, Syncer, is_not_emptied, mark_empty, rewrite_first_block,
};
use super::{io_error, sync_error};
use crate::stan::store::StoreError;
use crate::util::random::Random;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Of the files in the root of the store. The original looks at directories there and at names it knows.
pub const NAMES: [&str; 2] = ["midge.log.1", "midge.log.2"];
/// While the other one is still retiring, the active one may grow to so many times its size.
const OVERGROWTH: u64 = 4;
const WRITING: &str = "writing the log";
const SYNCING_FILES: &str = "syncing the files of";
/// Notes that wait for room; beyond that nothing new is taken that needs one.
const NOTES_BYTES_MAX: usize = 4 << 20;
const GROW_BYTES_MAX: u64 = 1 << 20;
/// Rounds of `maintain` without a commit after which the log is emptied.
const IDLE_ROUNDS: u32 = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Active,
    Retiring,
    Kept,
}

struct LogFile {
    file: Arc<File>,
    state: State,
    /// Where the next batch goes.
    end: u64,
    /// Bytes the file has.
    len: u64,
}

pub struct SharedLog {
    root: PathBuf,
    /// Open all the time, so that syncs of everything tell what failed since.
    folder: Arc<Folder>,
    /// A file that has reached this is retired.
    bytes_max: u64,
    files: [LogFile; 2],
    active: usize,
    generation: u64,
    /// Of the next batch, within the generation.
    number: u64,
    /// Entries of the next batch beside messages.
    notes: Vec<u8>,
    notes_under_way: Vec<u8>,
    /// Where channels end whose messages were taken back; before the notes.
    ends: Ends,
    ends_under_way: Ends,
    /// A commit that somebody may wait for, with nothing left in it.
    owed: bool,
    /// What the system said when there was no room for the last batch.
    no_room: Option<String>,
    spare: Vec<u8>,
    under_way: bool,
    /// Commits begun and done since the start.
    begun: u64,
    done: u64,
    /// `begun` when `maintain` looked last, and how often it has been the same.
    seen: u64,
    idle_rounds: u32,
    syncer: Syncer,
    /// Of a retired log that is freed when what it has is in the next batch as well.
    deferred: Option<Checkpoint>,
    /// One for which there were no descriptors or no room, and what the system said; it is tried again now and then.
    postponed: Option<(Checkpoint, String)>,
    /// That was told.
    told: bool,
    /// What has to be synced with the next one as well.
    owing: (Vec<Arc<StoreFile>>, Vec<PathBuf>),
}

/// Slice and length by channel.
type Ends = BTreeMap<String, (u64, u64)>;

/// What has come to an end.
pub enum Event {
    /// The batch is durable.
    Written,
    /// There was no room for it: of its messages nothing counts, its notes come with the next one.
    NoRoom { commit: u64, error: StoreError },
    /// A log may be used again.
    Emptied,
    /// It cannot be emptied for want of descriptors or room, and keeps what it has.
    Postponed,
}

impl SharedLog {
    /// Makes the files, or empties what they hold (up to these tails): it must have been replayed. Where `keep`, or where there
    /// is no room to empty them, they stay, and go on there. New batches are of a generation behind `above`.
    pub fn open(
        root: &Path,
        bytes_max: u64,
        syncer: Syncer,
        tails: [Option<Tail>; 2],
        keep: bool,
        above: u64,
    ) -> Result<Self, StoreError> {
        let mut kept = if keep { tails } else { [None; 2] };
        let mut files = match LogFile::open_both(root, tails, kept) {
            Err(StoreError::Io { error, .. }) if !keep && super::is_full(&error) => {
                log::error!(
                    "STREAM: the log of {} keeps what it has: {error}",
                    root.display()
                );
                kept = tails;
                LogFile::open_both(root, tails, kept)?
            }
            opened => opened?,
        };
        let folder = Folder::open(root).map_err(|error| io_error("opening", root, error))?;
        let synced = folder.sync();
        synced.map_err(|error| sync_error("syncing", root, error))?;
        let generation_of = |which: &usize| kept[*which].map(|tail| tail.generation);
        let active = usize::from(generation_of(&1) > generation_of(&0));
        // Not one that what is left of earlier processes may have.
        let random = Random::from_entropy().next_u64();
        let new = match random >> 1 > above {
            true => random >> 1,
            false => above + 1 + (random >> 32),
        };
        let (generation, number) = match kept[active] {
            Some(tail) => {
                files[active].state = State::Active;
                (tail.generation, tail.number)
            }
            None => (new, 0),
        };
        Ok(Self {
            root: root.to_owned(),
            folder: Arc::new(folder),
            bytes_max,
            files,
            active,
            generation,
            number,
            notes: Vec::new(),
            notes_under_way: Vec::new(),
            ends: Ends::new(),
            ends_under_way: Ends::new(),
            owed: false,
            no_room: None,
            spare: Vec::new(),
            under_way: false,
            begun: 0,
            done: 0,
            seen: 0,
            idle_rounds: 0,
            syncer,
            deferred: None,
            postponed: None,
            told: false,
            owing: Default::default(),
        })
    }

    /// That of the next batch.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether all that the logs have is of later generations.
    pub fn begins_behind(&self, generation: u64) -> bool {
        let used = [State::Retiring, State::Kept];
        self.generation > generation && !self.files.iter().any(|file| used.contains(&file.state))
    }

    /// New batches are of a later generation, if the logs are empty.
    pub fn go_behind(&mut self, generation: u64) {
        let empty = |file: &LogFile| file.state == State::Free && file.end == 0;
        if self.files.iter().all(empty) {
            self.generation = self.generation.max(generation + 1);
        }
    }

    /// For the next batch.
    pub fn note(&mut self, entry: &Entry<'_>) {
        entry.put(&mut self.notes);
    }

    /// For the next batch: what was logged of the channel behind this place does not count.
    pub fn note_end(&mut self, channel: &str, slice: u64, len: u64) {
        self.ends.insert(channel.to_owned(), (slice, len));
    }

    /// Nothing of this channel comes to the log any more but what is under way: it was deleted.
    pub fn forget(&mut self, channel: &str) {
        self.owed = self.has_notes();
        for notes in [&mut self.notes, &mut self.notes_under_way] {
            *notes = log_format::without(notes, channel);
        }
        self.ends.remove(channel);
        self.ends_under_way.remove(channel);
    }

    pub fn has_notes(&self) -> bool {
        !self.notes.is_empty() || !self.ends.is_empty() || self.owed
    }

    /// An error while there is no room for what was noted already, and that is much.
    pub fn may_note(&self) -> Result<(), StoreError> {
        match &self.no_room {
            Some(why) if self.notes.len() + self.notes_under_way.len() > NOTES_BYTES_MAX => {
                let text = format!("{why}; no more is taken that would wait for room");
                Err(StoreError::Refused(text))
            }
            _ => Ok(()),
        }
    }

    /// Bytes of it, and the channels whose ends it has.
    #[cfg(test)]
    pub fn notes_bytes(&self) -> usize {
        let ends = self.ends.len() + self.ends_under_way.len();
        self.notes.len() + self.notes_under_way.len() + ends
    }

    pub fn under_way(&self) -> bool {
        self.under_way
    }

    /// The number of the commit that holds what was noted last.
    pub fn last_noted(&self) -> u64 {
        match self.has_notes() {
            true => self.begun + 1,
            false => self.begun,
        }
    }

    /// Commits up to this one are durable.
    pub fn committed(&self) -> u64 {
        self.done
    }

    pub fn is_full(&self) -> bool {
        self.files[self.active].end >= self.bytes_max
    }

    /// Whether a batch may be begun in the active file, full as it may be.
    pub fn has_room(&self) -> bool {
        // Before the first commit a kept one cannot be given up.
        self.done == 0 || self.files[self.active].end < OVERGROWTH * self.bytes_max
    }

    pub fn can_retire(&self) -> bool {
        self.files[1 - self.active].state == State::Free && !self.under_way
    }

    /// A buffer with the header and the notes of a batch; the messages follow, and then `submit`.
    pub fn begin(&mut self, entries_bytes: usize) -> (Vec<u8>, usize) {
        assert!(!self.under_way, "one batch at a time");
        self.owed = false;
        let mut buffer = std::mem::take(&mut self.spare);
        buffer.clear();
        let ends_bytes = |name: &String| log_format::ENTRY_HEADER_BYTES + name.len();
        let notes_bytes = self.ends.keys().map(ends_bytes).sum::<usize>() + self.notes.len();
        buffer.reserve(entries_bytes + notes_bytes + 4 * BLOCK_BYTES);
        let from = buffer.as_ptr().align_offset(BLOCK_BYTES);
        buffer.resize(from, 0);
        log_format::begin(&mut buffer);
        for (channel, (slice, len)) in &self.ends {
            let (slice, len) = (*slice, *len);
            Entry::End {
                channel,
                slice,
                len,
            }
            .put(&mut buffer);
        }
        self.ends_under_way = std::mem::take(&mut self.ends);
        buffer.extend_from_slice(&self.notes);
        self.notes_under_way.clear();
        std::mem::swap(&mut self.notes, &mut self.notes_under_way);
        (buffer, from)
    }

    pub fn submit(&mut self, mut buffer: Vec<u8>, from: usize) {
        log_format::finish(&mut buffer, from, self.generation, self.number);
        let aligned = buffer[from..].as_ptr().align_offset(BLOCK_BYTES) == 0;
        assert!(aligned, "room for all of it was reserved");
        let step = GROW_BYTES_MAX.min(self.bytes_max);
        let log = &mut self.files[self.active];
        let end = log.end + (buffer.len() - from) as u64;
        let len = log.len.max(end.next_multiple_of(step));
        log.state = State::Active;
        self.under_way = true;
        self.begun += 1;
        self.syncer.write(LogWrite {
            file: log.file.clone(),
            from,
            at: log.end,
            grow: log.len..if end > log.len { len } else { log.len },
            buffer,
        });
    }

    /// Goes on in the other file; this one is free again when these are synced, and the next batch is durable if that has
    /// something `carried` over.
    pub fn retire(&mut self, files: Vec<Arc<StoreFile>>, folders: Vec<PathBuf>, carried: bool) {
        assert!(self.can_retire());
        let which = self.active;
        let checkpoint = self.checkpoint(which, files, folders);
        self.files[which].state = State::Retiring;
        self.active = 1 - which;
        self.generation += 1;
        self.number = 0;
        match carried {
            true => self.deferred = Some(checkpoint),
            false => self.syncer.checkpoint(checkpoint),
        }
    }

    /// A retired log cannot be freed before the next batch is durable.
    pub fn waits_for_commit(&self) -> bool {
        self.deferred.is_some()
    }

    /// An error, if there was no room for the last batch.
    pub fn no_room(&self) -> Result<(), StoreError> {
        let refused = |why: &String| Err(StoreError::Refused(why.clone()));
        self.no_room.as_ref().map_or(Ok(()), refused)
    }

    /// Tries again what there were no descriptors for.
    pub fn try_again(&mut self) {
        if let Some((checkpoint, _)) = self.postponed.take() {
            self.syncer.checkpoint(checkpoint);
        }
    }

    /// Why the last checkpoint waits, if it does.
    pub fn postponed(&self) -> Option<&str> {
        self.postponed.as_ref().map(|(_, why)| why.as_str())
    }

    fn checkpoint(
        &mut self,
        which: usize,
        mut files: Vec<Arc<StoreFile>>,
        mut folders: Vec<PathBuf>,
    ) -> Checkpoint {
        files.append(&mut self.owing.0);
        folders.append(&mut self.owing.1);
        let log = self.files[which].file.clone();
        Checkpoint {
            files,
            folders,
            log,
            which,
            root: self.folder.clone(),
        }
    }

    /// The next thing that is over. After an error it is not known what the disk has.
    pub fn completed(&mut self) -> Option<Result<Event, StoreError>> {
        let done = self.syncer.completed()?;
        Some(self.note_done(done))
    }

    pub fn wait(&mut self) -> Result<Event, StoreError> {
        let done = self.syncer.wait();
        self.note_done(done)
    }

    fn note_done(&mut self, done: Done) -> Result<Event, StoreError> {
        match done {
            Done::Log { write, result, .. } => {
                self.under_way = false;
                let log = &mut self.files[self.active];
                let path = self.root.join(NAMES[self.active]);
                if let Err(error) = result {
                    if !super::is_full(&error) {
                        return Err(sync_error(WRITING, &path, error));
                    }
                    let error = io_error(WRITING, &path, error);
                    // The notes are tried again with the next batch, in their order.
                    self.notes_under_way.append(&mut self.notes);
                    std::mem::swap(&mut self.notes, &mut self.notes_under_way);
                    for (channel, end) in std::mem::take(&mut self.ends_under_way) {
                        self.ends.entry(channel).or_insert(end);
                    }
                    self.no_room = Some(error.to_string());
                    let commit = self.begun;
                    return Ok(Event::NoRoom { commit, error });
                }
                log.len = log.len.max(write.grow.end);
                log.end = write.at + (write.buffer.len() - write.from) as u64;
                self.number += 1;
                self.done = self.begun;
                self.spare = write.buffer;
                self.notes_under_way.clear();
                self.no_room = None;
                if let Some(checkpoint) = self.deferred.take() {
                    self.syncer.checkpoint(checkpoint);
                }
                self.give_up_kept()?;
                Ok(Event::Written)
            }
            Done::Checkpoint { checkpoint, result } => {
                if let Err(error) = &result
                    && (is_not_opened(error) || is_not_emptied(error))
                {
                    self.tell_postponed(error);
                    self.postponed = Some((checkpoint, error.to_string()));
                    return Ok(Event::Postponed);
                }
                result.map_err(|error| sync_error(SYNCING_FILES, &self.root, error))?;
                self.tell_opened();
                let log = &mut self.files[checkpoint.which];
                log.state = State::Free;
                log.end = 0;
                if log.len > self.bytes_max && log.file.set_len(self.bytes_max).is_ok() {
                    log.len = self.bytes_max;
                }
                Ok(Event::Emptied)
            }
        }
    }

    fn tell_postponed(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.told, true) {
            log::error!(
                "STREAM: the log of {} keeps what it has, until that is synced and the log can be emptied: {error}",
                self.root.display()
            );
        }
    }

    fn tell_opened(&mut self) {
        if std::mem::take(&mut self.told) {
            log::info!(
                "STREAM: the log of {} is emptied again",
                self.root.display()
            );
        }
    }

    /// What it held is in the files, and what is not is in the commit that has just been written.
    fn give_up_kept(&mut self) -> Result<(), StoreError> {
        for (log, name) in self.files.iter_mut().zip(NAMES) {
            if log.state != State::Kept {
                continue;
            }
            match mark_empty(&log.file) {
                Ok(()) => (log.state, log.end) = (State::Free, 0),
                // Tried again with the next commit.
                Err(error) if super::is_full(&error) => {}
                Err(error) => return Err(sync_error(WRITING, &self.root.join(name), error)),
            }
        }
        Ok(())
    }

    /// Whether nothing has come for a while, and the log holds something.
    pub fn is_idle(&mut self) -> bool {
        let quiet = std::mem::replace(&mut self.seen, self.begun) == self.begun;
        self.idle_rounds = if quiet { self.idle_rounds + 1 } else { 0 };
        self.idle_rounds >= IDLE_ROUNDS && self.files[self.active].end > 0 && self.can_retire()
    }

    pub fn retiring(&self) -> bool {
        self.files.iter().any(|file| file.state == State::Retiring)
    }

    /// Syncs these, here and now, and empties the active file; nothing may be under way, nor retiring.
    pub fn empty(
        &mut self,
        files: Vec<Arc<StoreFile>>,
        folders: Vec<PathBuf>,
    ) -> Result<(), StoreError> {
        assert!(!self.under_way && !self.retiring());
        let checkpoint = self.checkpoint(self.active, files, folders);
        if let Err(error) = checkpoint.sync(1) {
            if !is_not_opened(&error) {
                return Err(sync_error(SYNCING_FILES, &self.root, error));
            }
            let error = io_error(SYNCING_FILES, &self.root, error);
            self.owing = (checkpoint.files, checkpoint.folders);
            return Err(StoreError::Refused(error.to_string()));
        }
        self.tell_opened();
        // What is older goes first: alone it would be taken for all there is.
        self.give_up_kept()?;
        if self.files.iter().any(|file| file.state == State::Kept) {
            let text = "there is no room to empty the log of the last start";
            return Err(StoreError::Refused(text.to_owned()));
        }
        let path = self.root.join(NAMES[self.active]);
        if let Err(error) = mark_empty(&checkpoint.log) {
            if super::is_full(&error) {
                let error = io_error(WRITING, &path, error);
                return Err(StoreError::Refused(error.to_string()));
            }
            return Err(sync_error(WRITING, &path, error));
        }
        let log = &mut self.files[self.active];
        (log.state, log.end) = (State::Free, 0);
        self.generation += 1;
        self.number = 0;
        // What was noted is in the files as well.
        self.no_room = None;
        if self.has_notes() {
            self.notes.clear();
            self.ends.clear();
            self.owed = false;
            self.begun += 1;
        }
        self.done = self.begun;
        Ok(())
    }
}

/// Nothing needs the files any more.
pub fn remove(root: &Path) {
    for name in NAMES {
        let path = root.join(name);
        if let Err(error) = super::disk::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("STREAM: removing {}: {error}", path.display());
        }
    }
}

impl LogFile {
    /// The older one is emptied first: after a crash in between, it must not be replayed alone.
    fn open_both(
        root: &Path,
        tails: [Option<Tail>; 2],
        kept: [Option<Tail>; 2],
    ) -> Result<[Self; 2], StoreError> {
        let open = |which: usize| Self::open(&root.join(NAMES[which]), kept[which]);
        let generations = tails.map(|tail| tail.map(|tail| tail.generation));
        if generations[0] > generations[1] {
            let second = open(1)?;
            return Ok([open(0)?, second]);
        }
        Ok([open(0)?, open(1)?])
    }

    fn open(path: &Path, kept: Option<Tail>) -> Result<Self, StoreError> {
        let failed = |error| io_error("opening", path, error);
        let open = |direct| -> io::Result<File> {
            let file = File::open_durable(path, direct)?;
            // Which also tells whether it can be written so.
            match kept {
                Some(_) => rewrite_first_block(&file)?,
                None => mark_empty(&file)?,
            }
            Ok(file)
        };
        let file = match open(true) {
            // Not every file system lets files be written past its cache.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => open(false),
            result => result,
        };
        let file = file.map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len() / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        Ok(Self {
            file: Arc::new(file),
            state: if kept.is_some() {
                State::Kept
            } else {
                State::Free
            },
            end: kept.map_or(0, |tail| tail.at),
            len,
        })
    }
}
