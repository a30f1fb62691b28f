//! How what a turn recorded becomes durable: one batch of the shared log for all channels.
//!
//! ```text
//!   gathered --flush--> queued --commit--> staged, in a batch under way --> durable: written to the channel's files
//! ```
//!
//! Nothing is in a channel's files that the log has not on the disk, and nothing is acknowledged that is not in both.

use super::files::StoreFile;
use super::log_format::{BATCH_HEADER_BYTES, ENTRY_HEADER_BYTES, Entry};
use super::shared_log::{Event, SharedLog};
use super::{Channel, FileStore};
use crate::stan::store::channels::Channels;
use crate::stan::store::{ChannelId, Completion, StoreError};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

/// Where the channels stand on the way to the disk.
pub struct Commits {
    pub log: SharedLog,
    /// Channels that wait for the next batch.
    queued: Vec<ChannelId>,
    /// Those with messages in the batch under way.
    under_way: Vec<ChannelId>,
    completions: VecDeque<Completion>,
    /// The batch under way has messages.
    staged: bool,
    /// There was no room for one with messages: what was noted is tried without any, so that it is answered however many
    /// publishes come.
    alone: bool,
    /// There was no room: nothing is tried again before there is more to write, or a second is over.
    pub held: bool,
    /// The last commit that found no room, to be told.
    pub refused: Option<(u64, StoreError)>,
    /// It is not known what the disk has.
    failure: Option<StoreError>,
}

impl Commits {
    pub fn new(log: SharedLog) -> Self {
        Self {
            log,
            queued: Vec::new(),
            under_way: Vec::new(),
            completions: VecDeque::new(),
            staged: false,
            alone: false,
            held: false,
            refused: None,
            failure: None,
        }
    }

    /// To be told with the next completion.
    pub fn fail(&mut self, error: StoreError) {
        self.failure = Some(error);
    }

    /// For the next batch.
    pub fn note(&mut self, entry: &Entry<'_>) {
        self.held = false;
        self.log.note(entry);
    }

    pub fn queue(&mut self, channel: ChannelId) {
        self.held = false;
        self.queued.push(channel);
    }

    /// An error while nobody has been told of messages that were taken back: theirs are the numbers that would be given now, and
    /// who waits for them would take these for its own.
    pub fn check_told(&self, channel: ChannelId) -> Result<(), StoreError> {
        let of_channel = |one: &&Completion| one.channel == channel;
        let mut untold = self.completions.iter().filter(of_channel);
        match untold.find_map(|one| one.taken_back.as_ref()) {
            Some(error) => Err(StoreError::Refused(error.to_string())),
            None => Ok(()),
        }
    }

    pub fn queued_bytes(&self, channels: &Channels<Channel>) -> usize {
        let queued = self.queued.iter().filter_map(|id| channels.get(*id));
        queued.map(|channel| channel.log.gathered_size().1).sum()
    }
}

impl FileStore {
    #[cfg(test)]
    pub fn waiting_notes(&self) -> usize {
        let log = self.commits.as_ref().map(|commits| &commits.log);
        log.map_or(0, SharedLog::notes_bytes)
    }

    /// Begins the next batch; false when there is nothing for it, or something in its way.
    pub(super) fn begin_commit(&mut self) -> bool {
        let Some(commits) = &mut self.commits else {
            return false;
        };
        if commits.held
            || commits.log.under_way()
            || (commits.queued.is_empty() && !commits.log.has_notes())
        {
            return false;
        }
        if commits.log.is_full() {
            if commits.log.can_retire() {
                self.retire_log(true);
            }
            if self
                .commits
                .as_ref()
                .is_some_and(|commits| !commits.log.has_room())
            {
                return false; // until the other one is free
            }
        }
        let Self {
            commits, channels, ..
        } = self;
        let commits = commits.as_mut().expect("it is there");
        let alone = std::mem::take(&mut commits.alone) && commits.log.has_notes();
        if !alone {
            commits.under_way.append(&mut commits.queued);
        }
        commits.staged = false;
        let under_way = commits.under_way.iter();
        let under_way = under_way.filter_map(|id| channels.get(*id));
        let bytes = under_way.map(room_for).sum();
        let (mut batch, from) = commits.log.begin(bytes);
        for id in &commits.under_way {
            let Some(channel) = channels.get_mut(*id) else {
                continue;
            };
            channel.queued = false;
            let staged = channel.log.stage();
            commits.staged |= !staged.is_empty();
            for (piece, bytes) in staged.data() {
                let entry = Entry::Data {
                    channel: &channel.name,
                    slice: piece.slice,
                    at: piece.data_at,
                    bytes,
                };
                entry.put(&mut batch);
            }
        }
        commits.log.submit(batch, from);
        true
    }

    pub(super) fn next_completion(&mut self) -> Option<Result<Completion, StoreError>> {
        loop {
            let commits = self.commits.as_mut()?;
            if let Some(error) = commits.failure.take() {
                return Some(Err(error));
            }
            if let Some(completion) = commits.completions.pop_front() {
                return Some(Ok(completion));
            }
            match commits.log.completed() {
                Some(Ok(event)) => self.note(event),
                Some(Err(error)) => return Some(Err(error)),
                None if self.begin_commit() => {}
                None => return None,
            }
        }
    }

    fn note(&mut self, event: Event) {
        let Self {
            commits,
            channels,
            options,
            ..
        } = self;
        let Some(commits) = commits else {
            return;
        };
        let no_room = match event {
            Event::Emptied | Event::Postponed => return,
            Event::Written => None,
            Event::NoRoom { commit, error } => {
                let text = error.to_string();
                // Notes without messages need less room, and say what of the messages in the log counts: they are
                // tried alone at once.
                if commits.staged {
                    commits.alone = true;
                } else {
                    commits.held = commits.queued.is_empty();
                    commits.refused = Some((commit, error));
                }
                Some(text)
            }
        };
        for id in commits.under_way.drain(..) {
            let channel = channels.get_mut(id);
            let Some(channel) = channel.filter(|channel| channel.log.has_staged()) else {
                continue;
            };
            let result = match &no_room {
                None => channel.log.write_staged(options),
                Some(text) => {
                    channel.log.take_back();
                    Err(StoreError::Refused(text.clone()))
                }
            };
            if result.is_err() {
                let (slice, len) = channel.log.written_end();
                commits.log.note_end(&channel.name, slice, len);
            }
            commits.completions.push_back(Completion {
                channel: id,
                up_to: channel.log.written_last(),
                taken_back: result.err(),
            });
        }
    }

    /// The log goes on in its other file, and this one is freed in the background. While some of what it has cannot be
    /// written to its file it stays, or that is `carried` over and this one freed when the other has it.
    fn retire_log(&mut self, carried: bool) {
        let written = self.write_records();
        if written.is_err() && !carried {
            return;
        }
        let (files, folders) = self.take_dirty();
        let Some(commits) = &mut self.commits else {
            return;
        };
        if written.is_err() {
            for (kind, payload) in self.clients.unwritten() {
                commits.log.note(&Entry::Client { kind, payload });
            }
            for channel in self.channels.iter() {
                for (kind, payload) in channel.subs.unwritten() {
                    let channel = &channel.name;
                    commits.log.note(&Entry::Sub {
                        channel,
                        kind,
                        payload,
                    });
                }
            }
        }
        commits.log.retire(files, folders, written.is_err());
    }

    pub(super) fn retire_log_if_free(&mut self) {
        if let Some(commits) = &self.commits
            && commits.log.can_retire()
        {
            self.retire_log(false);
        }
    }

    /// An idle log is emptied, so that little is left to be replayed after a crash.
    pub(super) fn retire_idle_log(&mut self) {
        if let Some(commits) = &mut self.commits
            && commits.log.is_idle()
        {
            self.retire_log(false);
        }
    }

    /// Records of subscriptions and clients go to their files; the first error, if any of them cannot. A commit may have had
    /// records of this turn that wait for its end.
    pub(super) fn write_records(&mut self) -> Result<(), StoreError> {
        let mut written = self.settle_clients();
        if let Err(error) = &written {
            log::error!("STREAM: {error}");
        }
        for id in self.channels.ids() {
            if self.channels.get(id).is_some() && !self.write_subs(id) {
                let file = self.channels.at(id).subs.file();
                let why = format!("{} lacks records", file.path().display());
                written = written.and(Err(StoreError::Refused(why)));
            }
        }
        written
    }

    /// Files and folders that no sync has covered.
    pub(super) fn take_dirty(&mut self) -> (Vec<Arc<StoreFile>>, Vec<PathBuf>) {
        let (mut files, mut folders) = (Vec::new(), Vec::new());
        for channel in self.channels.iter_mut() {
            files.extend(channel.log.take_unsynced());
            files.extend(channel.subs.take_unsynced());
            let made = std::mem::take(&mut channel.made);
            if channel.log.take_folder_changed() | made {
                folders.push(channel.folder.clone());
            }
            self.root_changed |= made;
        }
        if std::mem::take(&mut self.clients.unsynced) {
            files.push(self.clients.file());
        }
        if std::mem::take(&mut self.root_changed) {
            folders.push(self.root.clone());
        }
        (files, folders)
    }

    /// Waits until everything is in its files and on the disk, and the log empty.
    pub(super) fn empty_log(&mut self) -> Result<(), StoreError> {
        if let Some(commits) = &mut self.commits {
            commits.log.try_again();
        }
        loop {
            let Some(commits) = &self.commits else {
                return Ok(());
            };
            let (under_way, retiring) = (commits.log.under_way(), commits.log.retiring());
            if !under_way && self.begin_commit() {
                continue;
            }
            let Some(commits) = &mut self.commits else {
                return Ok(());
            };
            if !under_way && commits.log.waits_for_commit() {
                return commits.log.no_room();
            }
            if let Some(why) = commits.log.postponed().filter(|_| !under_way) {
                let text = format!("the log keeps what it has: {why}");
                return Err(StoreError::Refused(text));
            }
            if !under_way && !retiring {
                break;
            }
            let event = commits.log.wait()?;
            self.note(event);
        }
        self.write_records()?;
        let (files, folders) = self.take_dirty();
        match &mut self.commits {
            Some(commits) => commits.log.empty(files, folders),
            None => Ok(()),
        }
    }
}

/// An upper bound of what a channel adds to a batch.
fn room_for(channel: &Channel) -> usize {
    let (pieces, bytes) = channel.log.gathered_size();
    BATCH_HEADER_BYTES + pieces * (ENTRY_HEADER_BYTES + channel.name.len()) + bytes
}
