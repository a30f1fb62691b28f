//! The open files of a store: as many as the limit allows, over all channels.
//!
//! A file is named by a handle and opened when somebody needs it. When too many are open, one that was not
//! used lately is closed: a hand goes round over the open ones, spares each that was used since it last came by, and
//! closes the first that was not. Whoever works with a file at that moment keeps it until done.

use super::disk::{self, File};
use crate::util::lock;
use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// Fewer than these are of no use: an index and its data are written in turn.
const LIMIT_MIN: usize = 4;
/// Descriptors of the process that are not held for long.
const MOMENTARY: usize = 8;

pub struct Files {
    limit: usize,
    /// From here on descriptors are for what is open for a moment: directories, and files being rewritten.
    fds_end: RawFd,
    count: AtomicUsize,
    /// Open files in the order the hand comes by; some may be closed or gone by now.
    round: Mutex<VecDeque<Weak<StoreFile>>>,
    /// Bytes of files that were read ahead, all together.
    pub ahead_bytes: AtomicUsize,
    /// And of the last messages of the channels (`recent.rs`).
    pub recent_bytes: AtomicUsize,
    #[cfg(test)]
    pub syncs: AtomicUsize,
}

impl Files {
    /// `limit` 0: half of what the process may have, the other half being for its clients.
    pub fn new(limit: u64) -> Arc<Self> {
        let of_process = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
            .map_or(1024, |(soft, _)| soft);
        let most = (of_process / 2).clamp(LIMIT_MIN as u64, 1 << 20);
        if limit > most {
            log::warn!(
                "STREAM: file_descriptors_limit is {limit}, but the process may open {of_process} files in all: {most} is used; raise RLIMIT_NOFILE (LimitNOFILE= in a systemd unit)"
            );
        }
        let limit = if limit == 0 { most } else { limit.min(most) };
        Arc::new(Self {
            limit: (limit as usize).max(LIMIT_MIN),
            fds_end: of_process
                .saturating_sub(MOMENTARY as u64)
                .try_into()
                .unwrap_or(RawFd::MAX),
            count: AtomicUsize::new(0),
            round: Mutex::new(VecDeque::new()),
            ahead_bytes: AtomicUsize::new(0),
            recent_bytes: AtomicUsize::new(0),
            #[cfg(test)]
            syncs: AtomicUsize::new(0),
        })
    }

    /// A file that is not open yet, and need not exist.
    pub fn file(self: &Arc<Self>, path: PathBuf) -> Arc<StoreFile> {
        Arc::new(StoreFile {
            files: self.clone(),
            path,
            open: Mutex::new(None),
            used: AtomicBool::new(false),
            gone: AtomicBool::new(false),
        })
    }

    #[cfg(test)]
    pub fn open_count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub fn close_all(&self) {
        for file in lock(&self.round).drain(..) {
            file.upgrade().inspect(|file| file.close());
        }
    }

    /// Closes files until there are fewer than `limit`, or none is left to close.
    fn make_room(&self, limit: usize) {
        let mut round = lock(&self.round);
        // Twice round: the first time every one may have been used.
        for _ in 0..2 * round.len() {
            if self.count.load(Ordering::Relaxed) < limit {
                return;
            }
            let Some(file) = round.pop_front().and_then(|file| file.upgrade()) else {
                continue;
            };
            if file.used.swap(false, Ordering::Relaxed) {
                round.push_back(Arc::downgrade(&file));
            } else {
                file.close();
            }
        }
    }

    fn note_open(&self, file: &Arc<StoreFile>) {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let mut round = lock(&self.round);
        round.push_back(Arc::downgrade(file));
        if round.len() > 2 * count + 16 {
            round.retain(|file| {
                file.upgrade()
                    .is_some_and(|file| lock(&file.open).is_some())
            });
        }
    }
}

/// A file by its path, open or not.
pub struct StoreFile {
    files: Arc<Files>,
    path: PathBuf,
    open: Mutex<Option<Arc<File>>>,
    /// Since the hand came by.
    used: AtomicBool,
    /// Removed from its folder.
    gone: AtomicBool,
}

impl StoreFile {
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn files(&self) -> &Arc<Files> {
        &self.files
    }

    /// The open file, which must exist.
    pub fn get(self: &Arc<Self>) -> io::Result<Arc<File>> {
        self.open_with(OpenOptions::new().read(true).write(true))
    }

    /// The same, made if it does not exist.
    pub fn make(self: &Arc<Self>) -> io::Result<Arc<File>> {
        self.open_with(OpenOptions::new().read(true).write(true).create(true))
    }

    fn open_with(self: &Arc<Self>, options: &OpenOptions) -> io::Result<Arc<File>> {
        if let Some(file) = &*lock(&self.open) {
            self.used.store(true, Ordering::Relaxed);
            return Ok(file.clone());
        }
        // No lock of one file is held while another one is closed.
        self.files.make_room(self.files.limit);
        let opened = File::open(options, &self.path).or_else(|error| {
            if !disk::is_not_opened(&error) {
                return Err(error);
            }
            self.files.make_room(self.files.limit / 2);
            File::open(options, &self.path)
        });
        let opened = opened?;
        // The system gives the lowest that is free.
        if opened.fd() >= self.files.fds_end {
            let count = self.files.count.load(Ordering::Relaxed);
            self.files.make_room(count.saturating_sub(MOMENTARY));
        }
        Ok(self.keep(Arc::new(opened)))
    }

    /// Another thread may have opened it meanwhile; that one stays.
    fn keep(self: &Arc<Self>, file: Arc<File>) -> Arc<File> {
        {
            let mut open = lock(&self.open);
            if let Some(open) = &*open {
                return open.clone();
            }
            *open = Some(file.clone());
        }
        self.files.note_open(self);
        file
    }

    /// This one has taken over the name.
    pub fn replace(self: &Arc<Self>, file: File) {
        self.close();
        self.keep(Arc::new(file));
    }

    pub fn close(&self) {
        if lock(&self.open).take().is_some() {
            self.files.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// It is about to be removed: nobody need bring it to the disk any more.
    pub fn forget(&self) {
        self.gone.store(true, Ordering::Relaxed);
        self.close();
    }

    /// Brings it to the disk, also what was written before it was closed last.
    pub fn sync(self: &Arc<Self>) -> io::Result<()> {
        #[cfg(test)]
        self.files.syncs.fetch_add(1, Ordering::Relaxed);
        match self.get() {
            Ok(file) => file.sync_data(),
            Err(_) if self.gone.load(Ordering::Relaxed) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Drop for StoreFile {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn no_more_are_open_than_the_limit_allows() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::new(10);
        let all: Vec<_> = (0..100u8)
            .map(|n| files.file(folder.path().join(n.to_string())))
            .collect();
        assert_eq!(files.open_count(), 0);
        assert!(all[0].get().is_err(), "it does not exist");
        for round in 0..3u64 {
            for (n, file) in all.iter().enumerate() {
                file.make()
                    .unwrap()
                    .write_all_at(&[n as u8], round)
                    .unwrap();
                assert!(files.open_count() <= 10, "{} are open", files.open_count());
            }
        }
        for (n, file) in all.iter().enumerate() {
            let mut bytes = [0; 3];
            file.get().unwrap().read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!(bytes, [n as u8; 3]);
            file.sync().unwrap();
        }
        drop(all);
        assert_eq!(files.open_count(), 0);
        assert!(lock(&files.round).len() <= 2 * 10 + 16 + 1);
    }

    #[test]
    fn what_is_used_stays_open() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::new(10);
        let busy = files.file(folder.path().join("busy"));
        busy.make().unwrap();
        for n in 0..100 {
            let file = files.file(folder.path().join(n.to_string()));
            file.make().unwrap();
            std::mem::forget(file);
            assert!(lock(&busy.open).is_some(), "closed by the {n}th file");
            busy.get().unwrap();
        }
    }

    #[test]
    fn a_removed_file_needs_no_sync() {
        let folder = tempfile::tempdir().unwrap();
        let file = Files::new(10).file(folder.path().join("a"));
        file.make().unwrap();
        std::fs::remove_file(file.path()).unwrap();
        file.close();
        assert!(file.sync().is_err());
        file.forget();
        file.sync().unwrap();
    }
}
