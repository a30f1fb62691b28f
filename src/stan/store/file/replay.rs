//! Replaying the shared log after a crash: what it has and the files lack is put there.
//!
//! A file that has everything is left as it is, whatever stands behind it: after a kill (and not a loss of power) nothing is
//! changed. Records of subscriptions and clients are handed to whoever opens those files.

use super::damage::Damage;
use super::deletion::Deleted;
use super::disk::{self, File};
use super::io_error;
use super::log_format::{self, BLOCK_BYTES, Batch, Entry};
use super::records::{INDEX_BYTES, VERSION};
use super::shared_log::NAMES;
use crate::stan::store::StoreError;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A record of subs.dat or clients.dat.
pub type TypedRecord = (u8, Vec<u8>);

/// What the logs held.
#[derive(Debug, Default)]
pub struct Logged {
    pub channels: BTreeMap<String, LoggedChannel>,
    pub clients: Vec<TypedRecord>,
    /// There are logs, be they empty: a server that syncs has had the directory, and did not come to its end.
    pub is_there: bool,
    /// Of each log that holds something.
    pub tails: [Option<Tail>; 2],
}

/// Where a log goes on.
#[derive(Clone, Copy, Debug)]
pub struct Tail {
    pub generation: u64,
    /// Of the next batch, and its place.
    pub number: u64,
    pub at: u64,
}

#[derive(Debug, Default)]
pub struct LoggedChannel {
    created: bool,
    pub subs: Vec<TypedRecord>,
    slices: BTreeMap<u64, Vec<Piece>>,
}

/// A piece of a data file; those of one file do not overlap, and rise.
#[derive(Debug, PartialEq, Eq)]
struct Piece {
    at: u64,
    bytes: Vec<u8>,
}

impl Piece {
    fn begins_file(&self) -> bool {
        self.at == VERSION.len() as u64
    }

    fn end(&self) -> u64 {
        self.at + self.bytes.len() as u64
    }
}

/// Reads the logs of a store and brings the messages in them to their files, and to the disk. The names of new files may not be
/// there yet. The logs stay: they are emptied when that, and everything else they hold, is there as well. What they have of channels that
/// were `deleted` is left out.
pub fn replay(root: &Path, deleted: &[Deleted], damage: &Damage<'_>) -> Result<Logged, StoreError> {
    let (mut logs, mut is_there) = (Vec::new(), false);
    for name in NAMES {
        let path = root.join(name);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => {
                is_there = true;
                bytes
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(io_error("reading", &path, error)),
        };
        logs.push((path, bytes));
    }
    let chains: Result<Vec<_>, _> = logs
        .iter()
        .map(|(path, bytes)| chain(path, bytes, damage))
        .collect();
    let mut chains = chains?;
    let tail = |chain: &Vec<(&Path, usize, Batch<'_>)>| {
        chain.last().map(|(.., batch)| Tail {
            generation: batch.generation,
            number: batch.number + 1,
            at: batch.next as u64,
        })
    };
    let tails = [tail(&chains[0]), tail(&chains[1])];
    for ((path, bytes), tail) in logs.iter().zip(&tails) {
        give_back_room(path, bytes.len() as u64, tail.map_or(0, |tail| tail.at))?;
    }
    chains.sort_by_key(|chain| chain.first().map_or(0, |(.., batch)| batch.generation));
    let mut logged = Logged {
        is_there,
        tails,
        ..Logged::default()
    };
    for (path, at, batch) in chains.into_iter().flatten() {
        for entry in batch.entries() {
            let entry = entry.map_err(|why| StoreError::Damaged {
                path: path.to_owned(),
                offset: at as u64,
                why: why.to_owned(),
            })?;
            let of_deleted = |one: &Deleted| {
                batch.generation <= one.generation
                    && entry.channel().is_some_and(|channel| one.is_of(channel))
            };
            if !deleted.iter().any(of_deleted) {
                logged.take(&entry);
            }
        }
    }
    logged.apply(root)?;
    Ok(logged)
}

/// What a log keeps behind its last batch is room for later ones. On a full disk what is restored needs it more.
fn give_back_room(path: &Path, len: u64, end: u64) -> Result<(), StoreError> {
    if len <= end {
        return Ok(());
    }
    let cut = File::make(path).and_then(|file| file.set_len(end));
    cut.map_err(|error| io_error("cutting", path, error))
}

/// The batches of one log, in order, with their places.
fn chain<'a>(
    path: &'a Path,
    bytes: &'a [u8],
    damage: &Damage<'_>,
) -> Result<Vec<(&'a Path, usize, Batch<'a>)>, StoreError> {
    let mut found: Vec<(&Path, usize, Batch<'_>)> = Vec::new();
    let lost = |from: usize, to: usize, why: String| {
        let file = File::open(OpenOptions::new().read(true), path);
        let file = file.map_err(|error| io_error("opening", path, error))?;
        damage.found_bytes(&file, path, (from as u64, to as u64), why)
    };
    // Behind the last batch stand those of earlier uses.
    let Some(mut generation) = log_format::generation(bytes) else {
        if !log_format::is_empty(bytes) {
            lost(
                0,
                bytes.len(),
                "it does not begin as a log does; none of it can be read".into(),
            )?;
        }
        return Ok(found);
    };
    if Batch::read(bytes, 0).is_none() {
        generation = log_format::mended_generation(bytes).unwrap_or(generation);
    }
    let (mut at, mut number, mut end) = (0, 0, 0);
    while at < bytes.len() {
        let batch = Batch::read(bytes, at);
        let batch = batch.filter(|found| found.generation == generation && found.number >= number);
        if let Some(batch) = batch {
            // One batch is begun when the one before is durable: what lies between two was durable as well.
            if batch.number > number {
                lost(
                    end,
                    at,
                    format!("{} commit(s) cannot be read", batch.number - number),
                )?;
            }
            (number, end) = (batch.number + 1, batch.next);
            found.push((path, at, batch));
        }
        at = batch.map_or(at + BLOCK_BYTES, |batch| batch.next);
    }
    Ok(found)
}

impl Logged {
    fn channel(&mut self, name: &str) -> &mut LoggedChannel {
        if !self.channels.contains_key(name) {
            let new = LoggedChannel::default();
            self.channels.insert(name.to_owned(), new);
        }
        self.channels.get_mut(name).expect("put there above")
    }

    fn take(&mut self, entry: &Entry<'_>) {
        match *entry {
            Entry::Data {
                channel,
                slice,
                at,
                bytes,
            } => {
                let pieces = self.channel(channel).slices.entry(slice).or_default();
                cut(pieces, at);
                match pieces.last_mut() {
                    Some(last) if last.end() == at => last.bytes.extend_from_slice(bytes),
                    _ => pieces.push(Piece {
                        at,
                        bytes: bytes.to_vec(),
                    }),
                }
            }
            Entry::End {
                channel,
                slice,
                len,
            } => {
                let slices = &mut self.channel(channel).slices;
                slices.retain(|number, _| *number <= slice);
                if let Some(pieces) = slices.get_mut(&slice) {
                    cut(pieces, len);
                }
            }
            Entry::Created { channel } => self.channel(channel).created = true,
            Entry::Sub {
                channel,
                kind,
                payload,
            } => self.channel(channel).subs.push((kind, payload.to_vec())),
            Entry::Client { kind, payload } => self.clients.push((kind, payload.to_vec())),
        }
    }

    fn apply(&mut self, root: &Path) -> Result<(), StoreError> {
        let mut gone = Vec::new();
        for (name, channel) in &self.channels {
            let folder = root.join(name);
            if !folder.is_dir() {
                if !channel.created {
                    log::warn!(
                        "STREAM: channel {name:?} was removed, what the log has of it is left out"
                    );
                    gone.push(name.clone());
                    continue;
                }
                disk::create_folder(&folder).map_err(|error| io_error("mkdir", &folder, error))?;
            }
            channel.apply(name, &folder)?;
        }
        gone.iter()
            .for_each(|name| drop(self.channels.remove(name)));
        Ok(())
    }
}

/// Takes everything from this place on out.
fn cut(pieces: &mut Vec<Piece>, at: u64) {
    pieces.retain(|piece| piece.at < at);
    if let Some(last) = pieces.last_mut()
        && last.end() > at
    {
        last.bytes.truncate((at - last.at) as usize);
    }
}

impl LoggedChannel {
    fn apply(&self, name: &str, folder: &Path) -> Result<(), StoreError> {
        let path = |number: u64, suffix| folder.join(format!("msgs.{number}.{suffix}"));
        let begins = |pieces: &Vec<Piece>| pieces.first().is_some_and(Piece::begins_file);
        // Files that were there before the log, and are not: their messages went by a limit, and so had all before them.
        let missing = self.slices.iter().filter(|(number, pieces)| {
            !pieces.is_empty() && !begins(pieces) && !path(**number, "dat").exists()
        });
        let mut removed = 0;
        for (number, _) in missing {
            if self.has_later(folder, *number) {
                removed = *number;
            } else {
                log::error!(
                    "STREAM: channel {name:?}: {} is missing, with messages that were acknowledged",
                    path(*number, "dat").display()
                );
            }
        }
        for (number, pieces) in self.slices.range(removed + 1..) {
            let (data, index) = (path(*number, "dat"), path(*number, "idx"));
            if begins(pieces) || data.exists() {
                for piece in pieces {
                    self.put(name, piece, &data, &index)?;
                }
            }
        }
        Ok(())
    }

    fn has_later(&self, folder: &Path, number: u64) -> bool {
        let logged = self.slices.range(number + 1..).next().is_some();
        logged || {
            let later = |name: &str| {
                let number_text = name.strip_prefix("msgs.")?.strip_suffix(".dat")?;
                Some(number_text.parse::<u64>().ok()? > number)
            };
            let mut entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            entries.any(|entry| later(&entry.file_name().to_string_lossy()) == Some(true))
        }
    }

    fn put(&self, name: &str, piece: &Piece, data: &Path, index: &Path) -> Result<(), StoreError> {
        let failed = |error| io_error("restoring", data, error);
        let file = File::make(data).map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        if piece.bytes.is_empty() {
            return Ok(());
        }
        // The version belongs to the first piece of a file.
        let begins = piece.begins_file();
        let at = if begins { 0 } else { piece.at };
        let bytes = match begins {
            true => [&VERSION, &piece.bytes[..]].concat(),
            false => piece.bytes.clone(),
        };
        if len < at {
            log::error!(
                "STREAM: channel {name:?}: {} ends at byte {len}; what the log has from byte {at} on cannot be put there",
                data.display()
            );
            return Ok(());
        }
        let mut there = vec![0; (len.min(piece.end()) - at) as usize];
        file.read_exact_at(&mut there, at).map_err(failed)?;
        if there != bytes {
            log::warn!(
                "STREAM: channel {name:?}: {} is restored from the log, bytes {at} to {}",
                data.display(),
                piece.end()
            );
            cut_index(index, at)?;
            file.write_all_at(&bytes, at)
                .and_then(|()| file.set_len(piece.end()))
                .map_err(failed)?;
        } else {
            rewrite(&file, &bytes, at).map_err(failed)?;
        }
        file.sync_all().map_err(failed)
    }
}

/// Writes what is there already: after a sync that failed, what is read may be in the system's cache alone, and the next sync
/// would not know of it.
pub fn rewrite(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    match file.write_all_at(bytes, at) {
        // A file system that never writes in place, and is full. There is nothing new in it.
        Err(error) if super::is_full(&error) => Ok(()),
        result => result,
    }
}

/// Entries of what is restored are made again.
fn cut_index(path: &Path, from: u64) -> Result<(), StoreError> {
    let failed = |error| io_error("restoring", path, error);
    let file = File::make(path).map_err(failed)?;
    let len = file.metadata().map_err(failed)?.len();
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0).map_err(failed)?;
    let entries = bytes.get(VERSION.len()..).unwrap_or_default();
    let before = |entry: &[u8]| {
        let offset = entry.get(8..16).and_then(|bytes| bytes.first_chunk());
        offset.is_some_and(|bytes| u64::from_le_bytes(*bytes) < from)
    };
    let kept = entries
        .chunks(INDEX_BYTES)
        .take_while(|e| before(e))
        .count();
    let kept = (VERSION.len() + kept * INDEX_BYTES) as u64;
    if kept < len {
        file.set_len(kept).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stan::store::file::sync::mark_empty;

    /// So many batches of a block each.
    fn log(batches: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in 0..batches {
            let from = bytes.len();
            log_format::begin(&mut bytes);
            Entry::Created { channel: "foo" }.put(&mut bytes);
            log_format::finish(&mut bytes, from, 7, number);
        }
        bytes
    }

    #[test]
    fn what_cannot_be_read_is_told_of_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("midge.log.1");
        let numbers = |bytes: &[u8], strict| {
            std::fs::write(&path, bytes).unwrap();
            let damage = Damage {
                strict,
                channel: None,
            };
            let found = chain(&path, bytes, &damage)?;
            Ok::<_, StoreError>(
                found
                    .iter()
                    .map(|(.., batch)| batch.number)
                    .collect::<Vec<_>>(),
            )
        };
        for (hit, rest, lost) in [
            (0, vec![], 0..3 * BLOCK_BYTES),
            (8, vec![1, 2], 0..BLOCK_BYTES),
            (26, vec![1, 2], 0..BLOCK_BYTES),
            (BLOCK_BYTES, vec![0, 2], BLOCK_BYTES..2 * BLOCK_BYTES),
        ] {
            let mut bytes = log(3);
            bytes[hit] ^= 1;
            let refused = numbers(&bytes, true).unwrap_err().to_string();
            assert!(
                refused.contains("midge.log.1") && refused.contains("read"),
                "{refused}"
            );
            assert_eq!(numbers(&bytes, false).unwrap(), rest);
            let kept = folder
                .path()
                .join(format!("midge.log.1.damaged-{}", lost.start));
            assert_eq!(std::fs::read(&kept).unwrap(), bytes[lost]);
            std::fs::remove_file(kept).unwrap();
        }
        // What a loss of power leaves is no damage, nor is a log that was emptied.
        let mut torn = log(3);
        torn[2 * BLOCK_BYTES + 40] ^= 1;
        assert_eq!(numbers(&torn, true).unwrap(), [0, 1]);
        let mut torn = log(3);
        torn[40] ^= 1;
        torn.truncate(BLOCK_BYTES);
        assert!(numbers(&torn, true).unwrap().is_empty());
        std::fs::write(&path, log(3)).unwrap();
        mark_empty(&File::make(&path).unwrap()).unwrap();
        let emptied = std::fs::read(&path).unwrap();
        assert_eq!(
            emptied[log_format::BATCH_HEADER_BYTES..],
            log(3)[log_format::BATCH_HEADER_BYTES..]
        );
        assert!(numbers(&emptied, true).unwrap().is_empty());
    }
}
