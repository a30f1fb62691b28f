//! The file store, in the format of nats-streaming-server 0.9.2, so that its data opens here and
//! ours opens there. docs/STORE-FORMAT.md has the layout and what happens after a crash.

mod ahead;
mod archive;
mod auto_sync;
mod commit;
#[cfg(test)]
pub mod crash;
mod damage;
mod deletion;
mod disk;
#[cfg(test)]
pub mod faults;
mod files;
mod identity;
mod log_format;
mod messages;
mod open;
mod pending;
mod progress;
mod purge;
mod recent;
mod records;
mod replay;
mod scan;
mod shared_log;
#[cfg(test)]
pub mod steps;
mod subs;
mod sync;
#[cfg(test)]
pub mod trace;
mod typed_log;

use super::*;
use channels::Channels;
use commit::Commits;
use deletion::Deleted;
use files::Files;
use identity::Identity;
use log_format::Entry;
use messages::MessageLog;
use progress::Progress;
use prost::Message;
pub use records::Crc;
use records::RECORD_BYTES_MAX;
use replay::TypedRecord;
use shared_log::SharedLog;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use subs::{Crash, SubsLog};
pub use sync::Wake;
use typed_log::TypedLog;

const LOG_BYTES_MAX: u64 = 64 << 20;
const CLIENT_ADD: u8 = 1;
const CLIENT_DELETE: u8 = 2;

/// What the options come to.
#[derive(Clone, Debug)]
pub struct FileOptions {
    pub sync: bool,
    pub crc: Crc,
    pub buffer_bytes_max: usize,
    pub compact: bool,
    pub compact_fragmentation: u64,
    pub compact_interval: Duration,
    pub compact_min_size: u64,
    pub slice_count_max: u64,
    pub slice_bytes_max: u64,
    /// Nanoseconds.
    pub slice_age_max: i64,
    pub archive_script: String,
    /// How often everything is brought to the disk; zero: never.
    pub auto_sync: Duration,
    /// Most bytes read at a time for whoever goes through the messages; 0: what was asked for.
    pub read_ahead_bytes: usize,
    /// Most files kept open; 0: as many as the process may.
    pub descriptors_max: u64,
    /// Channels read at a time at the start.
    pub recovery_threads: usize,
    /// Refuse to start on damage, and look for it everywhere.
    pub strict: bool,
    /// A file of the log that has reached this is retired.
    pub log_bytes_max: u64,
}

impl FileOptions {
    pub fn new(options: &crate::config::streaming::FileStoreOptions) -> Self {
        Self {
            sync: options.sync,
            crc: Crc::new(options.crc_polynomial as u32, options.check_crc),
            buffer_bytes_max: options.buffer_size as usize,
            compact: options.compact,
            compact_fragmentation: options.compact_fragmentation as u64,
            compact_interval: Duration::from_secs(options.compact_interval.max(0) as u64),
            compact_min_size: options.compact_min_size as u64,
            slice_count_max: options.slice_max_msgs as u64,
            slice_bytes_max: options.slice_max_bytes as u64,
            slice_age_max: options.slice_max_age,
            archive_script: options.slice_archive_script.clone(),
            auto_sync: options.auto_sync,
            read_ahead_bytes: options.read_buffer_size as usize,
            descriptors_max: options.descriptors_limit as u64,
            recovery_threads: options.parallel_recovery.clamp(1, 256) as usize,
            strict: options.strict_recovery,
            log_bytes_max: LOG_BYTES_MAX,
        }
    }

    /// Count, bytes and age (nanoseconds) of one slice; 0 is no limit. Without any, a quarter of the
    /// channel's own.
    fn slice_limits(&self, limits: &ChannelLimits) -> (u64, u64, i64) {
        let own = (
            self.slice_count_max,
            self.slice_bytes_max,
            self.slice_age_max,
        );
        if own != (0, 0, 0) {
            return own;
        }
        let quarter = |limit: u64| if limit == 0 { 0 } else { (limit / 4).max(1) };
        let age = if limits.age == 0 {
            0
        } else {
            (limits.age / 4).max(1_000_000_000)
        };
        (quarter(limits.messages), quarter(limits.bytes), age)
    }

    /// Files nobody needs any more: removed, or handed to the script.
    fn dispose(&self, channel: &str, data: &Path, index: &Path) {
        let remove = || {
            let _ = disk::remove_file(index);
            let _ = disk::remove_file(data);
        };
        if self.archive_script.is_empty() {
            return remove();
        }
        let backup = |path: &Path| {
            let mut name = path.as_os_str().to_owned();
            name.push(".bak");
            PathBuf::from(name)
        };
        let (data_backup, index_backup) = (backup(data), backup(index));
        let renamed =
            disk::rename(data, &data_backup).and_then(|()| disk::rename(index, &index_backup));
        if let Err(error) = renamed {
            log::error!("STREAM: archiving {}: {error}", data.display());
            return remove();
        }
        archive::begin(&self.archive_script, channel, &data_backup, &index_backup);
    }
}

fn io_error(what: &'static str, path: &Path, error: std::io::Error) -> StoreError {
    StoreError::Io {
        what,
        path: path.to_owned(),
        error,
    }
}

/// No room for what is written, which may change; other errors say nothing of what the disk has.
fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Of a sync, or of a write that is one.
fn sync_error(what: &'static str, path: &Path, error: std::io::Error) -> StoreError {
    StoreError::Sync {
        what,
        path: path.to_owned(),
        error,
    }
}

fn is_sync(error: &StoreError) -> bool {
    matches!(error, StoreError::Sync { .. })
}

struct Channel {
    name: String,
    folder: PathBuf,
    log: MessageLog,
    subs: SubsLog,
    /// It waits for the next commit.
    queued: bool,
    /// Its folder is new since the last sync of the root.
    made: bool,
    /// Why its subscriptions cannot be written, if it is not for want of room: it takes no more of anything.
    broken: Option<String>,
}

impl Channel {
    /// What cannot be written is tried again with what comes next.
    fn write_subs(&mut self, options: &FileOptions) -> Result<(), StoreError> {
        let written = self.subs.write(&self.folder, options);
        let reason = match &written {
            Err(StoreError::Io { error, .. }) if is_full(error) => None,
            Err(error) => Some(error.to_string()),
            Ok(()) => None,
        };
        match (&self.broken, &reason) {
            (None, Some(why)) => log::error!(
                "STREAM: channel {:?} takes no messages and subscriptions, because its own cannot be written: {why}",
                self.name
            ),
            (Some(_), None) => log::info!("STREAM: channel {:?} goes on", self.name),
            _ => {}
        }
        self.broken = reason;
        written
    }

    /// Whether it takes anything, which may have changed.
    fn check(&mut self, options: &FileOptions) -> Result<(), StoreError> {
        if self.broken.is_none() || self.write_subs(options).is_ok() {
            return Ok(());
        }
        let why = self.broken.clone();
        why.map_or(Ok(()), |why| Err(StoreError::Refused(why)))
    }
}

pub struct FileStore {
    root: PathBuf,
    options: FileOptions,
    limits_of: LimitsOf,
    channels: Channels<Channel>,
    clients: TypedLog,
    /// Registered clients, for rewriting their file.
    registered: BTreeMap<String, pb::ClientInfo>,
    client_records: u64,
    /// The root has new names since it was synced last.
    root_changed: bool,
    /// None: nothing is synced.
    commits: Option<Commits>,
    files: Arc<Files>,
    /// Channels that are gone, and the log may have something of.
    deleted: Vec<Deleted>,
    identity: Identity,
    auto_sync: auto_sync::AutoSync,
}

impl FileStore {
    fn note_client(&mut self, kind: u8, payload: &[u8]) {
        if let Some(commits) = &mut self.commits {
            commits.note(&Entry::Client { kind, payload });
        }
    }

    fn note_sub(&mut self, channel: ChannelId, (kind, payload): &TypedRecord) {
        let Self {
            channels, commits, ..
        } = self;
        if let Some(commits) = commits {
            commits.note(&Entry::Sub {
                channel: &channels.at(channel).name,
                kind: *kind,
                payload,
            });
        }
    }

    fn set_sub(
        &mut self,
        channel: ChannelId,
        state: &pb::SubState,
        new: bool,
    ) -> Result<(), StoreError> {
        let subs = &mut self.channels.at_mut(channel).subs;
        subs.check_size(state)?;
        let record = subs.set(state, new);
        self.note_sub(channel, &record);
        Ok(())
    }

    /// Whether all of them are in the file.
    fn write_subs(&mut self, id: ChannelId) -> bool {
        let Self {
            channels, options, ..
        } = self;
        let channel = channels.at_mut(id);
        let written = channel.write_subs(options);
        if let (Err(error), None) = (&written, &channel.broken) {
            log::error!("STREAM: {error}");
        }
        self.fail_on_sync(&written);
        written.is_ok()
    }

    fn may_note(&self) -> Result<(), StoreError> {
        let log = self.commits.as_ref().map(|commits| &commits.log);
        log.map_or(Ok(()), SharedLog::may_note)
    }

    /// At the end: everything written and synced, and no log left.
    fn write_everything(&mut self) -> Result<(), StoreError> {
        for id in self.channels.ids() {
            self.flush(id)?;
        }
        self.empty_log()?;
        match self.commits.take() {
            Some(_) => {
                shared_log::remove(&self.root);
                self.remove_deleted();
            }
            None => {
                self.write_records()?;
                let (files, _) = self.take_dirty();
                for file in files {
                    let synced = file.sync();
                    synced.map_err(|error| sync_error("syncing", file.path(), error))?;
                }
            }
        }
        Ok(())
    }

    fn write_clients(&mut self) -> Result<(), StoreError> {
        self.client_records += 1;
        self.settle_clients()
    }

    /// It is not known what the disk has.
    fn fail_on_sync(&mut self, result: &Result<(), StoreError>) {
        if let (Err(error), Some(commits)) = (result, &mut self.commits)
            && is_sync(error)
        {
            commits.fail(StoreError::Refused(error.to_string()));
        }
    }

    /// What was gathered goes to the file, which is rewritten where that is due.
    fn settle_clients(&mut self) -> Result<(), StoreError> {
        let settled = self.try_to_settle_clients();
        self.fail_on_sync(&settled);
        settled
    }

    fn try_to_settle_clients(&mut self) -> Result<(), StoreError> {
        let written = self.clients.write();
        let needed = self.registered.len() as u64;
        let dead = self.client_records.saturating_sub(needed);
        if self
            .clients
            .wants_compaction(dead, self.client_records, &self.options)
        {
            let unique = crate::util::random::Random::from_entropy().id();
            let registered = &self.registered;
            let compacted =
                self.clients
                    .compact(&self.root.join(format!("clients.dat{unique}")), |put| {
                        for client in registered.values() {
                            put(CLIENT_ADD, &client.encode_to_vec());
                        }
                    });
            match compacted {
                Ok(()) => {
                    self.client_records = needed;
                    return Ok(());
                }
                Err(error) if is_sync(&error) => return Err(error),
                // The file is whole without it.
                Err(error) => log::error!("STREAM: {error}"),
            }
        }
        written
    }
}

impl Store for FileStore {
    fn kind(&self) -> &'static str {
        "FILE"
    }

    fn save_server(&mut self, info: &pb::ServerInfo) -> Result<(), StoreError> {
        self.identity.save(info, &self.options.crc)
    }

    fn add_client(&mut self, client: &pb::ClientInfo) -> Result<(), StoreError> {
        self.may_note()?;
        let payload = client.encode_to_vec();
        if payload.len() > RECORD_BYTES_MAX as usize {
            return Err(StoreError::Refused(format!(
                "the registration of the client has {} bytes, {} takes {RECORD_BYTES_MAX}: use a shorter id or heartbeat inbox",
                payload.len(),
                self.clients.file().path().display()
            )));
        }
        let gathered = self.clients.gathered();
        self.clients.push(CLIENT_ADD, &payload);
        let before = self.registered.insert(client.id.clone(), client.clone());
        let written = self.write_clients();
        if written.is_err() {
            // It is refused, and must not be there at the next start.
            self.clients.take_back(gathered);
            match before {
                Some(before) => self.registered.insert(client.id.clone(), before),
                None => self.registered.remove(&client.id),
            };
        } else {
            self.note_client(CLIENT_ADD, &payload);
        }
        written
    }

    fn delete_client(&mut self, id: &str) -> Result<(), StoreError> {
        let payload = pb::ClientDelete { id: id.to_owned() }.encode_to_vec();
        self.clients.push(CLIENT_DELETE, &payload);
        self.registered.remove(id);
        self.note_client(CLIENT_DELETE, &payload);
        self.write_clients()
    }

    fn create_channel(&mut self, name: &str) -> Result<ChannelId, StoreError> {
        self.may_note()?;
        if shared_log::NAMES.contains(&name) || Deleted::read(&self.root, name).is_some() {
            // Whether there is one now or not: the next start would take it for that.
            let text = format!("{name:?} is a name that the store itself has use for");
            return Err(StoreError::Refused(text));
        }
        self.settle_deletion(name)?;
        let folder = self.root.join(name);
        if folder.is_symlink() {
            // Starts pass over it, as the original's do: what went there would be gone then.
            let text = format!("{} is a symbolic link", folder.display());
            return Err(StoreError::Refused(text));
        }
        let is_new = !folder.exists();
        disk::create_folder(&folder).map_err(|error| io_error("mkdir", &folder, error))?;
        let limits = (self.limits_of)(name);
        let opened = open::channel(
            &folder,
            name,
            limits,
            &self.options,
            &self.files,
            Crash::default(),
            &Progress::new(1),
        );
        let mut channel = opened.inspect_err(|_| {
            // The next start would take it for a channel.
            if is_new && let Err(error) = disk::remove_folder(&folder) {
                log::error!("STREAM: removing {}: {error}", folder.display());
            }
        })?;
        channel.made = true;
        let id = self.channels.push(channel);
        if let Some(commits) = &mut self.commits {
            commits.note(&Entry::Created { channel: name });
        }
        Ok(id)
    }

    fn delete_channel(&mut self, channel: ChannelId) -> Result<(), StoreError> {
        self.delete(channel)
    }

    fn purge(&mut self, channel: ChannelId, up_to: Seq) -> Result<u64, StoreError> {
        let bounds = self.bounds(channel);
        let up_to = up_to.min(bounds.last);
        if bounds.messages == 0 || up_to < bounds.first {
            return Ok(0);
        }
        let folder = &self.channels.at(channel).folder;
        let mark = purge::Mark::Purged;
        let written = purge::write(folder, mark, &self.options.crc, up_to + 1);
        self.fail_on_sync(&written);
        written?;
        let Self {
            channels, options, ..
        } = self;
        channels.at_mut(channel).log.purge(up_to + 1, options)
    }

    fn limits(&self, channel: ChannelId) -> ChannelLimits {
        self.channels.at(channel).log.limits
    }

    fn bounds(&self, channel: ChannelId) -> Bounds {
        self.channels.at(channel).log.bounds()
    }

    fn append(&mut self, channel: ChannelId, message: NewMessage<'_>) -> Result<Seq, StoreError> {
        let Self {
            channels,
            options,
            commits,
            ..
        } = self;
        if let Some(commits) = commits {
            commits.check_told(channel)?;
        }
        let channel = channels.at_mut(channel);
        channel.check(options)?;
        channel.log.append(message, options)
    }

    fn lookup(&mut self, channel: ChannelId, seq: Seq) -> Result<Option<Bytes>, StoreError> {
        self.channels.at_mut(channel).log.lookup(seq)
    }

    fn first_since(&mut self, channel: ChannelId, timestamp: i64) -> Result<Seq, StoreError> {
        self.channels.at_mut(channel).log.first_since(timestamp)
    }

    fn expire(&mut self, channel: ChannelId, now: i64) -> Option<i64> {
        let Self {
            channels, options, ..
        } = self;
        match channels.at_mut(channel).log.expire(now, options) {
            Ok(next) => next,
            Err(error) => {
                log::error!("STREAM: {error}");
                Some(now + 1_000_000_000)
            }
        }
    }

    fn may_subscribe(&mut self, channel: ChannelId) -> Result<(), StoreError> {
        self.may_note()?;
        let Self {
            channels, options, ..
        } = self;
        channels.at_mut(channel).check(options)
    }

    fn add_sub(&mut self, channel: ChannelId, state: &pb::SubState) -> Result<(), StoreError> {
        self.may_subscribe(channel)?;
        self.set_sub(channel, state, true)
    }

    fn update_sub(&mut self, channel: ChannelId, state: &pb::SubState) -> Result<(), StoreError> {
        self.set_sub(channel, state, false)
    }

    fn delete_sub(&mut self, channel: ChannelId, id: u64) -> Result<(), StoreError> {
        let record = self.channels.at_mut(channel).subs.delete(id);
        self.note_sub(channel, &record);
        Ok(())
    }

    fn sub_sent(&mut self, channel: ChannelId, id: u64, seq: Seq) -> Result<(), StoreError> {
        self.channels.at_mut(channel).subs.sent(id, seq);
        Ok(())
    }

    fn sub_acked(&mut self, channel: ChannelId, id: u64, seq: Seq) -> Result<(), StoreError> {
        self.channels.at_mut(channel).subs.acked(id, seq);
        Ok(())
    }

    fn flush(&mut self, id: ChannelId) -> Result<Flushed, StoreError> {
        if self.channels.get(id).is_none() {
            return Ok(Flushed::Now);
        }
        self.write_subs(id);
        let Self {
            channels,
            options,
            commits,
            ..
        } = self;
        let channel = channels.at_mut(id);
        let Some(commits) = commits else {
            channel.log.write(options)?;
            if options.auto_sync.is_zero() {
                channel.log.take_unsynced();
                channel.subs.take_unsynced();
            }
            return Ok(Flushed::Now);
        };
        if channel.log.has_gathered() && !std::mem::replace(&mut channel.queued, true) {
            commits.queue(id);
        }
        match channel.queued || channel.log.has_staged() {
            true => Ok(Flushed::Later),
            // Marks of subscriptions wait for the next checkpoint: they are with the system, and losing some only
            // repeats deliveries.
            false => Ok(Flushed::Now),
        }
    }

    fn commit(&mut self) {
        self.begin_commit();
    }

    fn completed(&mut self) -> Option<Result<Completion, StoreError>> {
        self.next_completion()
    }

    fn next_commit(&self) -> Option<u64> {
        self.commits
            .as_ref()
            .map(|commits| commits.log.last_noted())
    }

    fn committed(&self) -> u64 {
        self.commits
            .as_ref()
            .map_or(0, |commits| commits.log.committed())
    }

    fn refused(&mut self) -> Option<(u64, StoreError)> {
        self.commits.as_mut()?.refused.take()
    }

    fn backlog_bytes(&self) -> usize {
        match &self.commits {
            Some(commits) => commits.queued_bytes(&self.channels),
            None => 0,
        }
    }

    fn maintain(&mut self, now: i64) {
        self.auto_sync(now);
        for channel in self.channels.iter_mut() {
            channel.log.give_back();
        }
        self.retire_idle_log();
        self.remove_deleted();
        if let Some(commits) = &mut self.commits {
            commits.held = false;
            commits.log.try_again();
        }
    }

    fn close(&mut self) {
        self.auto_sync.finish();
        if let Err(error) = self.write_everything() {
            log::error!("STREAM: {error}");
        }
    }
}
