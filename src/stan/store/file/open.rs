//! Opening a store: its own files, then its channels, several at a time if wanted.

use super::damage::Damage;
use super::deletion::last_generation;
use super::files::{Files, StoreFile};
use super::identity::{Identity, Known};
use super::messages::MessageLog;
use super::progress::Progress;
use super::records::{RECORD_BYTES_MAX, VERSION};
use super::replay::{Logged, TypedRecord};
use super::scan::Scanner;
use super::shared_log::SharedLog;
use super::subs::{Crash, SubsLog};
use super::sync::{Syncer, Wake};
use super::typed_log::{Kinds, TypedLog};
use super::*;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const CLIENT_KINDS: Kinds = Kinds {
    sizes_max: &[RECORD_BYTES_MAX, RECORD_BYTES_MAX],
    first_byte: 0x0a,
    marks: &[],
};

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
        let syncer = match options.sync {
            true => Some(
                Syncer::start(wake)
                    .map_err(|error| io_error("starting threads for", root, error))?,
            ),
            false => None,
        };
        Self::open_with(root, options, limits_of, syncer)
    }

    /// With a disk that gets on when a test says so.
    #[cfg(test)]
    pub fn open_in_steps(
        root: &Path,
        options: FileOptions,
        limits_of: LimitsOf,
        steps: &Arc<super::steps::Steps>,
    ) -> Result<(Self, Recovered), StoreError> {
        let syncer = options.sync.then(|| Syncer::in_steps(steps.clone()));
        Self::open_with(root, options, limits_of, syncer)
    }

    fn open_with(
        root: &Path,
        options: FileOptions,
        limits_of: LimitsOf,
        syncer: Option<Syncer>,
    ) -> Result<(Self, Recovered), StoreError> {
        let files = Files::new(options.descriptors_max);
        let damage = Damage {
            strict: options.strict,
            channel: None,
        };
        let identity = Identity::open(root)?;
        let server = identity.read(&options.crc, &damage)?;
        let (names, deleted) = folders(root, &damage)?;
        if matches!(server, Known::Lost) && nothing_fits(root, &names, &options.crc) {
            return Err(StoreError::Refused(format!(
                "{}: neither server.dat nor the first message of any channel fits its checksum: is crc_poly what they were written with?",
                root.display()
            )));
        }
        let logged = match server {
            Known::Nothing => Logged::default(),
            Known::Info(_) | Known::Lost => replay::replay(root, &deleted, &damage)?,
        };
        // The log may have brought some back.
        let (names, _) = folders(root, &damage)?;
        let mut registered = BTreeMap::new();
        let mut client_records = 0;
        let clients = TypedLog::open(
            files.file(root.join("clients.dat")),
            &options.crc,
            &damage,
            &CLIENT_KINDS,
            |kind, payload| {
                client_records += 1;
                replay_client(&mut registered, kind, payload)
            },
        )?;
        let mut store = Self {
            root: root.to_owned(),
            options,
            limits_of,
            channels: Channels::default(),
            clients,
            registered,
            client_records,
            root_changed: true,
            commits: None,
            files,
            deleted,
            identity,
            auto_sync: Default::default(),
        };
        store.redo_clients(&logged.clients)?;
        let mut recovered = Recovered {
            clients: store.registered.values().cloned().collect(),
            ..Recovered::default()
        };
        // Without the server's own record nothing else counts, but what is there must not be mixed
        // with what comes.
        match server {
            Known::Info(server) => recovered.server = Some(*server),
            Known::Nothing if names.is_empty() => {}
            Known::Nothing => {
                return Err(StoreError::Refused(format!(
                    "{}: no server state recovered but channels present: restore server.dat, or move the channels away",
                    root.display()
                )));
            }
            Known::Lost => log::error!(
                "STREAM: {}: the names of the server are lost; it gets new ones, and clients must connect again",
                root.display()
            ),
        }
        for channel in store.open_channels(&names, &logged)? {
            recovered.channels.push(RecoveredChannel {
                name: channel.name.clone(),
                subscriptions: channel.subs.recovered(),
                last_sub_id: channel.subs.last_id(),
                id: store.channels.push(channel),
            });
        }
        store.begin_log(&logged, syncer)?;
        store.deleted.iter().for_each(Deleted::clear);
        store.remove_deleted();
        Ok((store, recovered))
    }

    /// What the log had is where it belongs, and goes to the disk there before the log is begun anew.
    fn begin_log(&mut self, logged: &Logged, syncer: Option<Syncer>) -> Result<(), StoreError> {
        let sync = |file: Arc<StoreFile>| {
            let synced = file.sync();
            synced.map_err(|error| sync_error("syncing", file.path(), error))
        };
        let sync_folder = |folder: &Path| {
            disk::sync_folder(folder).map_err(|error| sync_error("syncing", folder, error))
        };
        if !logged.clients.is_empty() {
            self.clients.rewrite()?;
            sync(self.clients.file())?;
        }
        for channel in self.channels.iter() {
            if logged.channels.contains_key(&channel.name) {
                channel.subs.rewrite()?;
                sync(channel.subs.file())?;
                // And the names of files that were not there.
                sync_folder(&channel.folder)?;
            }
        }
        if logged.tails.iter().any(Option::is_some) {
            sync_folder(&self.root)?;
        }
        let unwritten = self.clients.has_unwritten()
            || self
                .channels
                .iter()
                .any(|channel| channel.subs.has_unwritten());
        if syncer.is_some() && !(self.channels.ids().is_empty() && self.registered.is_empty()) {
            // A killed server may have written what it had not logged yet, and one without syncs, or the original, leaves
            // everything to the system and no trace of it. What is found counts, so it must last.
            let synced = disk::sync_all(&self.root);
            synced.map_err(|error| sync_error("syncing", &self.root, error))?;
        }
        if let Some(syncer) = syncer {
            let bytes_max = self.options.log_bytes_max;
            let above = last_generation(&self.deleted).unwrap_or(0);
            let tails = logged.tails;
            let mut log = SharedLog::open(&self.root, bytes_max, syncer, tails, unwritten, above)?;
            self.note_unwritten(logged, &mut log);
            self.commits = Some(Commits::new(log));
        } else if !unwritten {
            shared_log::remove(&self.root);
            // With what it has it must not come back over what is written now.
            sync_folder(&self.root)?;
        } else {
            // Nothing is logged without syncs: what the log has would be replayed over what came since.
            return Err(StoreError::Refused(format!(
                "{}: there is no room for subscriptions and clients that the log has: make room, or start with file_sync",
                self.root.display()
            )));
        }
        Ok(())
    }

    /// Records that found no room in their files go to the log again, with the first commit.
    fn note_unwritten(&self, logged: &Logged, log: &mut SharedLog) {
        if self.clients.has_unwritten() {
            for (kind, payload) in &logged.clients {
                let kind = *kind;
                log.note(&Entry::Client { kind, payload });
            }
        }
        for channel in self
            .channels
            .iter()
            .filter(|channel| channel.subs.has_unwritten())
        {
            let logged = logged.channels.get(&channel.name);
            for (kind, payload) in logged.iter().flat_map(|logged| &logged.subs) {
                log.note(&Entry::Sub {
                    channel: &channel.name,
                    kind: *kind,
                    payload,
                });
            }
        }
    }

    /// Registrations the log has and the file may lack.
    fn redo_clients(&mut self, records: &[TypedRecord]) -> Result<(), StoreError> {
        let mut registered = self.registered.clone();
        for (kind, payload) in records {
            replay_client(&mut registered, *kind, payload).map_err(|why| {
                StoreError::Refused(format!("a record of clients in the log: {why}"))
            })?;
        }
        if registered == self.registered {
            return Ok(());
        }
        for (kind, payload) in records {
            self.clients.push(*kind, payload);
            self.client_records += 1;
        }
        self.registered = registered;
        // On a full disk they wait until there is room.
        if let Err(error) = self.clients.write() {
            log::error!("STREAM: {error}");
        }
        Ok(())
    }

    /// In the order of the names, whatever the order in which threads are done with them.
    fn open_channels(&self, names: &[String], logged: &Logged) -> Result<Vec<Channel>, StoreError> {
        let limits: Vec<ChannelLimits> = names.iter().map(|name| (self.limits_of)(name)).collect();
        let progress = Progress::new(names.len());
        let opened: Vec<Mutex<Option<Channel>>> = names.iter().map(|_| Mutex::new(None)).collect();
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        let (root, options, files) = (&self.root, &self.options, &self.files);
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(name) = names.get(index) else {
                    return;
                };
                let folder = root.join(name);
                let of_channel = logged.channels.get(name);
                let crash = Crash {
                    logged: of_channel.map_or(&[][..], |logged| &logged.subs),
                    may_lack_marks: logged.is_there,
                };
                let result = channel(
                    &folder,
                    name,
                    limits[index],
                    options,
                    files,
                    crash,
                    &progress,
                );
                match result {
                    Ok(channel) => {
                        *opened[index].lock().expect("nobody panics with it") = Some(channel)
                    }
                    Err(error) => {
                        // The others need not go on.
                        next.store(names.len(), Ordering::Relaxed);
                        let mut failed = failed.lock().expect("nobody panics with it");
                        failed.get_or_insert(error);
                    }
                }
                progress.add_channel();
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..options.recovery_threads.min(names.len()) {
                scope.spawn(work);
            }
            work();
        });
        if let Some(error) = failed.into_inner().expect("all threads are done") {
            return Err(error);
        }
        let opened = opened.into_iter();
        Ok(opened
            .map(|channel| {
                channel
                    .into_inner()
                    .ok()
                    .flatten()
                    .expect("every one was opened")
            })
            .collect())
    }
}

/// Every directory is a channel, or was one.
fn folders(root: &Path, damage: &Damage) -> Result<(Vec<String>, Vec<Deleted>), StoreError> {
    let failed = |error| io_error("reading", root, error);
    let (mut names, mut deleted) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(root).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_symlink() && entry.path().is_dir() {
            log::warn!(
                "STREAM: {} is a symbolic link: it is no channel, and left alone",
                entry.path().display()
            );
        }
        if !kind.is_dir() {
            continue;
        }
        match entry.file_name().into_string() {
            // A deletion may have been decided, and interrupted.
            Ok(name) => match Deleted::read(root, &name) {
                Some(one) => deleted.push(one),
                None => names.push(name),
            },
            Err(_) => damage.found(&entry.path(), 0, "no name of a channel; it is left alone")?,
        }
    }
    names.sort_unstable();
    Ok((names, deleted))
}

/// Whether there are messages, and none that could be looked at is what it was: all cannot be damaged, so
/// the checksums must be others.
fn nothing_fits(root: &Path, names: &[String], crc: &Crc) -> bool {
    const LOOKED_AT: usize = 100;
    let mut options = std::fs::OpenOptions::new();
    options.read(true);
    let first_fits = |name: &String| {
        let path = root.join(name).join("msgs.1.dat");
        let mut scanner = Scanner::new(Arc::new(disk::File::open(&options, &path).ok()?)).ok()?;
        let (begin, end) = (VERSION.len() as u64, scanner.len());
        (end > begin).then(|| matches!(scanner.record(begin, end, false, crc), Ok(Some(_))))
    };
    let mut looked_at = names
        .iter()
        .filter_map(first_fits)
        .take(LOOKED_AT)
        .peekable();
    looked_at.peek().is_some() && !looked_at.any(|fits| fits)
}

/// Opens the files of one channel.
pub fn channel(
    folder: &Path,
    name: &str,
    limits: ChannelLimits,
    options: &FileOptions,
    files: &Arc<Files>,
    crash: Crash<'_>,
    progress: &Progress,
) -> Result<Channel, StoreError> {
    let damage = Damage {
        strict: options.strict,
        channel: Some(name),
    };
    let mut log = MessageLog::open(folder, name, limits, options, files, progress)?;
    let file = files.file(folder.join("subs.dat"));
    let first = log.bounds().first;
    let subs = SubsLog::open(file, options, &damage, first, crash)?;
    log.go_on_after(subs.highest_sent())?;
    Ok(Channel {
        name: name.to_owned(),
        folder: folder.to_owned(),
        log,
        subs,
        queued: false,
        made: false,
        broken: None,
    })
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
