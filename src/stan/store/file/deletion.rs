//! Channels on their way out.
//!
//! A deletion is one rename: to `midge.deleted.GENERATION.CHANNEL`. The log may still have records of the channel, and on a full
//! disk it cannot be emptied at once. So the folder stays, without its files, until no log has any: whoever replays leaves out
//! what batches up to that generation have of the channel. Until the log goes on in a later one, none of that name is made.

use super::{FileStore, disk, io_error, sync_error};
use crate::stan::store::{ChannelId, StoreError};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The generation follows, in as many digits as it has at most, and a dot: no channel has such a name, because none is made. It could
/// be one: nats-streaming-server takes every folder for a channel, and does not start if NATS refuses the name as a subject.
const DELETED: &str = "midge.deleted.";
/// The same with a hash.
const HASHED: &str = "midge.deleted-hash.";
const GENERATION_DIGITS: usize = 16;
/// Without a generation: earlier versions emptied the log first.
const EARLIER: &str = ".deleted.";
/// Of a file.
const NAME_BYTES_MAX: usize = 255;
/// More than anybody finds another name for.
const HASH_BYTES: usize = 16;

pub struct Deleted {
    pub folder: PathBuf,
    channel: Whose,
    /// The last one whose batches may have records of it; 0: none has.
    pub generation: u64,
}

/// Which channel it was.
enum Whose {
    Name(String),
    /// Of a name that is too long for that of the folder.
    Hash(String),
    /// It does not matter any more.
    Unknown,
}

impl Deleted {
    /// What the name of a folder says; None: it is a channel's.
    pub fn read(root: &Path, name: &str) -> Option<Self> {
        let folder = root.join(name);
        if name.starts_with(EARLIER) {
            return Some(Self {
                folder,
                channel: Whose::Unknown,
                generation: 0,
            });
        }
        let hash = name.strip_prefix(HASHED);
        let (generation, channel) = hash.or(name.strip_prefix(DELETED))?.split_once('.')?;
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let ours = generation.len() == GENERATION_DIGITS && generation.bytes().all(digit);
        let generation = Some(generation).filter(|_| ours)?;
        Some(Self {
            folder,
            channel: match hash {
                Some(_) => Whose::Hash(channel.to_owned()),
                None => Whose::Name(channel.to_owned()),
            },
            generation: u64::from_str_radix(generation, 16).ok()?,
        })
    }

    fn new(root: &Path, channel: &str, generation: u64) -> Self {
        let digits = format!("{generation:0GENERATION_DIGITS$x}");
        let mut name = format!("{DELETED}{digits}.{channel}");
        let mut whose = Whose::Name(channel.to_owned());
        if name.len() > NAME_BYTES_MAX {
            let hash = hashed(channel);
            name = format!("{HASHED}{digits}.{hash}");
            whose = Whose::Hash(hash);
        }
        // Without syncs all generations are the same, and there is no log to be told.
        if root.join(&name).exists() {
            let unique = crate::util::random::Random::from_entropy().id();
            name = format!("{HASHED}{digits}.{unique}");
        }
        Self {
            folder: root.join(name),
            channel: whose,
            generation,
        }
    }

    pub fn is_of(&self, channel: &str) -> bool {
        match &self.channel {
            Whose::Name(name) => name == channel,
            Whose::Hash(hash) => *hash == hashed(channel),
            Whose::Unknown => false,
        }
    }

    /// Nothing needs it any more.
    pub fn remove(&self) {
        let parent = self.folder.parent().unwrap_or(&self.folder);
        let removed = disk::remove_folder(&self.folder).and_then(|()| disk::sync_folder(parent));
        self.tell(removed);
    }

    /// What is in it goes, which makes room.
    pub fn clear(&self) {
        let clear = || {
            for entry in std::fs::read_dir(&self.folder)? {
                let entry = entry?;
                match entry.file_type()?.is_dir() {
                    true => disk::remove_folder(&entry.path())?,
                    false => disk::remove_file(&entry.path())?,
                }
            }
            Ok(())
        };
        self.tell(clear());
    }

    fn tell(&self, removed: std::io::Result<()>) {
        if let Err(error) = removed {
            let error = io_error("removing", &self.folder, error);
            log::error!("STREAM: {error}; the next start removes it");
        }
    }
}

impl FileStore {
    pub(super) fn delete(&mut self, id: ChannelId) -> Result<(), StoreError> {
        let log = self.commits.as_ref().map(|commits| &commits.log);
        let generation = log.map_or(0, |log| log.generation());
        let channel = self.channels.at(id);
        let deleted = Deleted::new(&self.root, &channel.name, generation);
        let folder = channel.folder.clone();
        let names = disk::Folder::open(&self.root)
            .map_err(|error| io_error("opening", &self.root, error))?;
        // One step decides: a crash before it leaves the whole channel, one behind it leaves a name that the
        // next start removes.
        disk::rename(&folder, &deleted.folder)
            .map_err(|error| io_error("removing", &folder, error))?;
        if let Err(error) = names.sync() {
            let _ = disk::rename(&deleted.folder, &folder);
            let failed = Err(sync_error("syncing", &self.root, error));
            self.fail_on_sync(&failed);
            return failed;
        }
        // What is under way is of this generation; what waits might come to the log in any later one.
        let Self {
            channels, commits, ..
        } = self;
        let channel = channels.at_mut(id);
        if let Some(commits) = commits {
            commits.log.forget(&channel.name);
        }
        channel.log.forget();
        channel.subs.forget();
        channels.remove(id);
        self.deleted.push(deleted);
        if self.try_to_empty_log().is_err() {
            self.deleted.iter().for_each(Deleted::clear);
            if let Err(error) = self.try_to_empty_log() {
                log::error!(
                    "STREAM: {error}: until then no other channel of a deleted one's name is made"
                );
            }
        }
        self.remove_deleted();
        Ok(())
    }

    fn try_to_empty_log(&mut self) -> Result<(), StoreError> {
        let emptied = self.empty_log();
        self.fail_on_sync(&emptied);
        let last = last_generation(&self.deleted);
        if let (Ok(()), Some(last), Some(commits)) = (&emptied, last, &mut self.commits) {
            commits.log.go_behind(last);
        }
        emptied
    }

    /// A channel of this name can be made when the log goes on behind what it has of the last one.
    pub(super) fn settle_deletion(&mut self, name: &str) -> Result<(), StoreError> {
        let same = self.deleted.iter().filter(|one| one.is_of(name));
        let (Some(last), Some(commits)) = (same.map(|one| one.generation).max(), &self.commits)
        else {
            return Ok(());
        };
        if commits.log.generation() > last {
            return Ok(());
        }
        self.try_to_empty_log()?;
        self.remove_deleted();
        Ok(())
    }

    /// Those that no log has anything of.
    pub(super) fn remove_deleted(&mut self) {
        let log = self.commits.as_ref().map(|commits| &commits.log);
        let (gone, kept) = std::mem::take(&mut self.deleted)
            .into_iter()
            .partition(|one| log.is_none_or(|log| log.begins_behind(one.generation)));
        self.deleted = kept;
        let gone: Vec<Deleted> = gone;
        gone.iter().for_each(Deleted::remove);
    }
}

/// The last generation whose batches may have records of any of them.
pub fn last_generation(deleted: &[Deleted]) -> Option<u64> {
    deleted.iter().map(|one| one.generation).max()
}

/// What stands for a name that is too long.
fn hashed(channel: &str) -> String {
    let hash = Sha256::digest(channel);
    let bytes = hash.iter().take(HASH_BYTES);
    bytes.fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
