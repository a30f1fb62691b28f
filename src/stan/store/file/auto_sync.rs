//! Bringing to the disk, now and then, what no flush does: everything without `file_sync`, and with it the marks of
//! subscriptions, clients and indexes.

use super::FileStore;
use super::files::StoreFile;
use std::sync::Arc;
use std::thread::JoinHandle;

/// The files are synced one by one, by a thread that nobody waits for.
#[derive(Default)]
pub struct AutoSync {
    /// Nanoseconds since the epoch; 0: not yet.
    synced_at: i64,
    thread: Option<JoinHandle<()>>,
}

impl AutoSync {
    fn start(&mut self, files: Vec<Arc<StoreFile>>) {
        let work = move || {
            for file in files {
                if let Err(error) = file.sync() {
                    log::error!(
                        "STREAM: syncing {}: {error}: what was written to it lately may not be on the disk",
                        file.path().display()
                    );
                }
            }
        };
        let thread = std::thread::Builder::new().name("auto-sync".into());
        match thread.spawn(work) {
            Ok(thread) => self.thread = Some(thread),
            Err(error) => log::error!("STREAM: auto sync: {error}"),
        }
    }

    fn is_busy(&self) -> bool {
        self.thread
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
    }

    /// Waits for what is under way.
    pub fn finish(&mut self) {
        if let Some(thread) = self.thread.take() {
            // It has no way to panic, and nobody depends on it.
            let _ = thread.join();
        }
    }
}

impl FileStore {
    /// How often a file was synced; waits for those that are.
    #[cfg(test)]
    pub fn syncs(&mut self) -> usize {
        self.auto_sync.finish();
        self.files.syncs.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Of messages lately written, and of files read ahead.
    #[cfg(test)]
    pub fn bytes_in_memory(&self) -> (usize, usize) {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let load = |bytes: &AtomicUsize| bytes.load(Ordering::Relaxed);
        let files = &self.files;
        (load(&files.recent_bytes), load(&files.ahead_bytes))
    }

    #[cfg(test)]
    pub fn open_files(&self) -> usize {
        self.files.open_count()
    }

    #[cfg(test)]
    pub fn close_files(&self) {
        self.files.close_all();
    }

    /// To be called every second or so.
    pub(super) fn auto_sync(&mut self, now: i64) {
        let interval = self.options.auto_sync.as_nanos() as i64;
        if self.auto_sync.synced_at == 0 {
            self.auto_sync.synced_at = now;
        }
        // A disk that needs longer than the interval gets no second thread.
        if interval == 0 || now - self.auto_sync.synced_at < interval || self.auto_sync.is_busy() {
            return;
        }
        self.auto_sync.synced_at = now;
        if self.commits.is_some() {
            // The log needs to know what is on the disk, so it sees to it.
            return self.retire_log_if_free();
        }
        let mut files = Vec::new();
        for channel in self.channels.iter_mut() {
            files.extend(channel.log.take_unsynced());
            files.extend(channel.subs.take_unsynced());
        }
        if std::mem::take(&mut self.clients.unsynced) {
            files.push(self.clients.file());
        }
        if !files.is_empty() {
            self.auto_sync.start(files);
        }
    }
}
