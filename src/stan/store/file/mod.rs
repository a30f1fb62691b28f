//! The file store, in the format of nats-streaming-server 0.9.2, so that its data opens here and
//! ours opens there. docs/STORE-FORMAT.md has the layout and what happens after a crash.

mod ahead;
mod messages;
mod records;
mod subs;
mod sync;
mod typed_log;

use super::*;
use messages::MessageLog;
use prost::Message;
pub use records::Crc;
use records::{Found, VERSION, look, put_untyped};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::time::Duration;
use subs::SubsLog;
pub use sync::Wake;
use sync::{Job, Syncer};
use typed_log::TypedLog;

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
}

impl FileOptions {
    pub fn new(options: &crate::config::streaming::FileStoreOptions) -> Self {
        Self {
            sync: options.sync,
            crc: Crc::new(options.crc_polynomial as u32),
            buffer_bytes_max: options.buffer_size as usize,
            compact: options.compact,
            compact_fragmentation: options.compact_fragmentation as u64,
            compact_interval: options.compact_interval,
            compact_min_size: options.compact_min_size as u64,
            slice_count_max: options.slice_max_msgs as u64,
            slice_bytes_max: options.slice_max_bytes as u64,
            slice_age_max: options.slice_max_age.as_nanos() as i64,
            archive_script: options.slice_archive_script.clone(),
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
            let _ = std::fs::remove_file(index);
            let _ = std::fs::remove_file(data);
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
        let renamed = std::fs::rename(data, &data_backup)
            .and_then(|()| std::fs::rename(index, &index_backup));
        if let Err(error) = renamed {
            log::error!("STREAM: archiving {}: {error}", data.display());
            return remove();
        }
        let mut command = std::process::Command::new(&self.archive_script);
        command.arg(channel).arg(data_backup).arg(index_backup);
        match command.spawn() {
            Ok(mut child) => {
                // Waited for elsewhere, so that it leaves no zombie.
                std::thread::spawn(move || {
                    if let Ok(status) = child.wait()
                        && !status.success()
                    {
                        log::error!("STREAM: the archive script ended with {status}");
                    }
                });
            }
            Err(error) => log::error!("STREAM: archive script {:?}: {error}", self.archive_script),
        }
    }
}

fn io_error(what: &'static str, path: &Path, error: std::io::Error) -> StoreError {
    StoreError::Io {
        what,
        path: path.to_owned(),
        error,
    }
}

struct Channel {
    folder: PathBuf,
    log: MessageLog,
    subs: SubsLog,
    /// A sync is under way.
    syncing: bool,
    /// Another one is wanted once it is over.
    sync_again: bool,
    gone: bool,
}

pub struct FileStore {
    root: PathBuf,
    options: FileOptions,
    limits_of: LimitsOf,
    channels: Vec<Channel>,
    clients: TypedLog,
    /// Registered clients, for rewriting their file.
    registered: BTreeMap<String, pb::ClientInfo>,
    client_records: u64,
    syncer: Syncer,
    /// Held as long as the store is open: no two processes may write to one directory.
    server_file: nix::fcntl::Flock<File>,
}

impl FileStore {
    /// Opens a directory, or makes it.
    pub fn open(
        root: &Path,
        options: FileOptions,
        limits_of: LimitsOf,
        wake: &Wake,
    ) -> Result<(Self, Recovered), StoreError> {
        std::fs::create_dir_all(root).map_err(|error| {
            StoreError::Refused(format!(
                "unable to create the root directory [{}]: {error}",
                root.display()
            ))
        })?;
        let lock = lock(&root.join("server.dat"))?;
        let server = read_server(&root.join("server.dat"), &options.crc)?;
        let mut registered = BTreeMap::new();
        let mut client_records = 0;
        let clients = TypedLog::open(root.join("clients.dat"), &options, |kind, payload| {
            client_records += 1;
            replay_client(&mut registered, kind, payload)
        })?;
        let syncer =
            Syncer::start(wake).map_err(|error| io_error("starting threads for", root, error))?;
        let mut store = Self {
            root: root.to_owned(),
            options,
            limits_of,
            channels: Vec::new(),
            clients,
            registered,
            client_records,
            syncer,
            server_file: lock,
        };
        let mut recovered = Recovered {
            clients: store.registered.values().cloned().collect(),
            ..Recovered::default()
        };
        // Without the server's own record nothing else counts, but what is there must not be mixed
        // with what comes.
        let folders = store.folders()?;
        match server {
            Some(server) => recovered.server = Some(server),
            None if folders.is_empty() => return Ok((store, recovered)),
            None => {
                return Err(StoreError::Refused(format!(
                    "{}: no server state recovered but channels present: restore server.dat, or move the channels away",
                    root.display()
                )));
            }
        }
        for name in folders {
            let id = store.open_channel(&name)?;
            let channel = &store.channels[id as usize];
            recovered.channels.push(RecoveredChannel {
                id,
                name,
                subscriptions: channel.subs.recovered(),
                last_sub_id: channel.subs.last_id(),
            });
        }
        Ok((store, recovered))
    }

    /// Every directory is a channel.
    fn folders(&self) -> Result<Vec<String>, StoreError> {
        let failed = |error| io_error("reading", &self.root, error);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.root).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_dir() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn open_channel(&mut self, name: &str) -> Result<ChannelId, StoreError> {
        let folder = self.root.join(name);
        let limits = (self.limits_of)(name);
        let channel = Channel {
            log: MessageLog::open(&folder, name, limits, &self.options)?,
            subs: SubsLog::open(&folder, &self.options)?,
            folder,
            syncing: false,
            sync_again: false,
            gone: false,
        };
        self.channels.push(channel);
        Ok(self.channels.len() as ChannelId - 1)
    }

    fn channel(&self, channel: ChannelId) -> &Channel {
        &self.channels[channel as usize]
    }

    fn channel_mut(&mut self, channel: ChannelId) -> &mut Channel {
        &mut self.channels[channel as usize]
    }

    fn write_clients(&mut self) -> Result<(), StoreError> {
        self.client_records += 1;
        self.clients.write()?;
        let needed = self.registered.len() as u64;
        let dead = self.client_records.saturating_sub(needed);
        if self
            .clients
            .wants_compaction(dead, self.client_records, &self.options)
        {
            let unique = crate::util::random::Random::from_entropy().id();
            let registered = &self.registered;
            self.clients
                .compact(&self.root.join(format!("clients.dat{unique}")), |put| {
                    for client in registered.values() {
                        put(CLIENT_ADD, &client.encode_to_vec());
                    }
                })?;
            self.client_records = needed;
        }
        Ok(())
    }
}

fn lock(path: &Path) -> Result<nix::fcntl::Flock<File>, StoreError> {
    use nix::fcntl::{Flock, FlockArg};
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|error| io_error("opening", path, error))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        StoreError::Refused(format!(
            "{} is in use by another process ({error}): stop it first",
            path.display()
        ))
    })
}

fn read_server(path: &Path, crc: &Crc) -> Result<Option<pb::ServerInfo>, StoreError> {
    let bytes = std::fs::read(path).map_err(|error| io_error("reading", path, error))?;
    if bytes.len() <= VERSION.len() {
        return Ok(None);
    }
    let damaged = |why: &str| StoreError::Damaged {
        path: path.to_owned(),
        offset: VERSION.len() as u64,
        why: why.to_owned(),
    };
    if bytes[..4] != VERSION {
        return Err(damaged("unsupported file version (supports [1..1])"));
    }
    match look(&bytes, VERSION.len(), false, crc) {
        Found::Record { payload, .. } => pb::ServerInfo::decode(payload)
            .map(Some)
            .map_err(|error| damaged(&error.to_string())),
        Found::Torn => Err(damaged("unexpected EOF")),
        Found::Zeros | Found::End => Ok(None),
        Found::BadChecksum { .. } => Err(damaged("the record does not fit its checksum")),
    }
}

fn replay_client(
    registered: &mut BTreeMap<String, pb::ClientInfo>,
    kind: u8,
    payload: &[u8],
) -> Result<(), String> {
    let bad = |error: prost::DecodeError| error.to_string();
    match kind {
        CLIENT_ADD => {
            let client = pb::ClientInfo::decode(payload).map_err(bad)?;
            registered.insert(client.id.clone(), client);
        }
        CLIENT_DELETE => {
            registered.remove(&pb::ClientDelete::decode(payload).map_err(bad)?.id);
        }
        other => return Err(format!("invalid client record type: {other}")),
    }
    Ok(())
}

impl Store for FileStore {
    fn kind(&self) -> &'static str {
        "FILE"
    }

    fn save_server(&mut self, info: &pb::ServerInfo) -> Result<(), StoreError> {
        use std::os::unix::fs::FileExt;
        let path = self.root.join("server.dat");
        let mut bytes = VERSION.to_vec();
        put_untyped(&mut bytes, &self.options.crc, &info.encode_to_vec());
        let file: &File = &self.server_file;
        file.set_len(bytes.len() as u64)
            .and_then(|()| file.write_all_at(&bytes, 0))
            .and_then(|()| file.sync_all())
            .map_err(|error| io_error("writing", &path, error))
    }

    fn add_client(&mut self, client: &pb::ClientInfo) -> Result<(), StoreError> {
        self.clients.push(CLIENT_ADD, &client.encode_to_vec());
        self.registered.insert(client.id.clone(), client.clone());
        self.write_clients()
    }

    fn delete_client(&mut self, id: &str) -> Result<(), StoreError> {
        let record = pb::ClientDelete { id: id.to_owned() };
        self.clients.push(CLIENT_DELETE, &record.encode_to_vec());
        self.registered.remove(id);
        self.write_clients()
    }

    fn create_channel(&mut self, name: &str) -> Result<ChannelId, StoreError> {
        let folder = self.root.join(name);
        std::fs::create_dir_all(&folder).map_err(|error| io_error("mkdir", &folder, error))?;
        if let Ok(root) = File::open(&self.root) {
            let _ = root.sync_all();
        }
        self.open_channel(name)
    }

    fn delete_channel(&mut self, channel: ChannelId) -> Result<(), StoreError> {
        let channel = self.channel_mut(channel);
        channel.gone = true;
        std::fs::remove_dir_all(&channel.folder)
            .map_err(|error| io_error("removing", &channel.folder, error))
    }

    fn limits(&self, channel: ChannelId) -> ChannelLimits {
        self.channel(channel).log.limits
    }

    fn bounds(&self, channel: ChannelId) -> Bounds {
        self.channel(channel).log.bounds()
    }

    fn append(&mut self, channel: ChannelId, message: pb::MsgProto) -> Result<Seq, StoreError> {
        let Self {
            channels, options, ..
        } = self;
        let log = &mut channels[channel as usize].log;
        let seq = log.append(message, options)?;
        // A limit that cannot be applied now is applied with the next message.
        if let Err(error) = log.apply_limits(options) {
            log::error!("STREAM: {error}");
        }
        Ok(seq)
    }

    fn lookup(&mut self, channel: ChannelId, seq: Seq) -> Result<Option<Bytes>, StoreError> {
        self.channel_mut(channel).log.lookup(seq)
    }

    fn first_since(&mut self, channel: ChannelId, timestamp: i64) -> Result<Seq, StoreError> {
        self.channel_mut(channel).log.first_since(timestamp)
    }

    fn expire(&mut self, channel: ChannelId, now: i64) -> Option<i64> {
        let Self {
            channels, options, ..
        } = self;
        match channels[channel as usize].log.expire(now, options) {
            Ok(next) => next,
            Err(error) => {
                log::error!("STREAM: {error}");
                Some(now + 1_000_000_000)
            }
        }
    }

    fn add_sub(&mut self, channel: ChannelId, state: &pb::SubState) -> Result<(), StoreError> {
        self.channel_mut(channel).subs.add(state);
        Ok(())
    }

    fn update_sub(&mut self, channel: ChannelId, state: &pb::SubState) -> Result<(), StoreError> {
        self.channel_mut(channel).subs.update(state);
        Ok(())
    }

    fn delete_sub(&mut self, channel: ChannelId, id: u64) -> Result<(), StoreError> {
        self.channel_mut(channel).subs.delete(id);
        Ok(())
    }

    fn sub_sent(&mut self, channel: ChannelId, id: u64, seq: Seq) -> Result<(), StoreError> {
        self.channel_mut(channel).subs.sent(id, seq);
        Ok(())
    }

    fn sub_acked(&mut self, channel: ChannelId, id: u64, seq: Seq) -> Result<(), StoreError> {
        self.channel_mut(channel).subs.acked(id, seq);
        Ok(())
    }

    fn flush(&mut self, channel_id: ChannelId) -> Result<Flushed, StoreError> {
        let Self {
            channels,
            options,
            syncer,
            ..
        } = self;
        let channel = &mut channels[channel_id as usize];
        if channel.gone {
            return Ok(Flushed::Now);
        }
        channel.subs.write(&channel.folder, options)?;
        if channel.syncing {
            // What came meanwhile becomes one write and one sync when this one is over.
            channel.sync_again = true;
            return Ok(Flushed::Later);
        }
        channel.log.write()?;
        if !options.sync {
            channel.log.take_unsynced();
            channel.subs.take_unsynced();
            return Ok(Flushed::Now);
        }
        let mut files = channel.log.take_unsynced();
        if files.is_empty() {
            // Marks of subscriptions alone wait for the next message: they are with the system, and
            // losing some only repeats deliveries.
            return Ok(Flushed::Now);
        }
        files.extend(channel.subs.take_unsynced());
        channel.syncing = true;
        let up_to = channel.log.bounds().last;
        syncer.submit(Job {
            channel: channel_id,
            up_to,
            files,
        });
        Ok(Flushed::Later)
    }

    fn completed(&mut self) -> Option<Result<Completion, StoreError>> {
        let (mut completion, result) = self.syncer.completed()?;
        let channel = &mut self.channels[completion.channel as usize];
        channel.syncing = false;
        if let Err(error) = result {
            return Some(Err(io_error("syncing", &channel.folder, error)));
        }
        completion.more = std::mem::take(&mut channel.sync_again);
        Some(Ok(completion))
    }

    fn maintain(&mut self, _now: i64) {
        for channel in self.channels.iter_mut().filter(|channel| !channel.gone) {
            channel.log.close_old_files();
        }
    }

    fn close(&mut self) {
        for channel in self.channels.iter_mut().filter(|channel| !channel.gone) {
            channel.log.close();
            if let Err(error) = channel.subs.write(&channel.folder, &self.options) {
                log::error!("STREAM: {error}");
            }
            if let Some(file) = channel.subs.take_unsynced() {
                let _ = file.sync_data();
            }
        }
    }
}
