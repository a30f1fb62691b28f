//! Who waits for the disk.
//!
//! A write of the shared log is done by whoever begins it while the disk is fast, which saves two hand-overs
//! between threads. One that took long sends those of the next second to a thread, so that a slow disk does not
//! stop the engine. Checkpoints always have a thread of their own.

use super::disk::{self, File, Folder};
use super::files::StoreFile;
use super::log_format::{BATCH_HEADER_BYTES, BLOCK_BYTES};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A write of the log that takes longer stops the engine too long.
const SLOW: Duration = Duration::from_millis(2);
const SLOW_FOR: Duration = Duration::from_secs(1);
/// Larger writes go to the thread: the engine takes in the next messages meanwhile.
const OWN_BYTES_MAX: usize = 16 << 10;
/// Milliseconds that a file may take to be removed.
const REMOVAL_ROUNDS: u32 = 1000;
const ZEROS_BYTES: usize = 1 << 20;
/// Of more files and folders than these the whole file system is synced at once.
const ONE_BY_ONE_MAX: usize = 128;
/// Files a checkpoint syncs at a time; the system shares commits of its journal among them.
const CHECKPOINT_THREADS: usize = 4;

/// One batch of the log.
pub struct LogWrite {
    pub file: Arc<File>,
    /// The batch is what stands from here on, at an address that is a multiple of a block.
    pub from: usize,
    pub buffer: Vec<u8>,
    pub at: u64,
    /// What the file has to grow by before, in zeros, so that later writes change no metadata.
    pub grow: std::ops::Range<u64>,
}

impl LogWrite {
    pub fn perform(&self) -> io::Result<()> {
        if !self.grow.is_empty() {
            let zeros = vec![0; ZEROS_BYTES + BLOCK_BYTES];
            let skew = zeros.as_ptr().align_offset(BLOCK_BYTES);
            let mut at = self.grow.start;
            while at < self.grow.end {
                let bytes = (self.grow.end - at).min(ZEROS_BYTES as u64);
                let zeros = &zeros[skew..skew + bytes as usize];
                if let Err(error) = self.file.write_durably(zeros, at) {
                    // What there was of room is for the files.
                    let _ = self.file.set_len(self.grow.start);
                    return Err(error);
                }
                at += bytes;
            }
        }
        self.file.write_durably(&self.buffer[self.from..], self.at)
    }
}

/// Files to be synced before a log may be used again.
pub struct Checkpoint {
    pub files: Vec<Arc<StoreFile>>,
    pub folders: Vec<PathBuf>,
    /// The log that is marked as empty then, and its place.
    pub log: Arc<File>,
    pub which: usize,
    pub root: Arc<Folder>,
}

impl Checkpoint {
    pub fn perform(&self, threads: usize) -> io::Result<()> {
        self.sync(threads)?;
        mark_empty(&self.log).map_err(|error| match super::is_full(&error) {
            true => io::Error::new(error.kind(), NotEmptied(error)),
            false => error,
        })
    }

    /// All of it but the log. Where something was not opened (`disk::is_not_opened`) no sync has failed, and all of it may be
    /// tried again.
    pub fn sync(&self, threads: usize) -> io::Result<()> {
        let many = self.files.len() + self.folders.len() > ONE_BY_ONE_MAX;
        if many && self.root.has_sync_all() {
            self.tell_removed();
            self.removed_from();
            // An error may be of what is not ours: then each file tells its own.
            if self.root.sync_all().is_ok() {
                return Ok(());
            }
        }
        let next = AtomicUsize::new(0);
        let removed = Mutex::new(Vec::new());
        // The others are synced all the same: one that fails is told only once.
        let not_opened = Mutex::new(None);
        let work = || -> io::Result<()> {
            while let Some(file) = self.files.get(next.fetch_add(1, Ordering::Relaxed)) {
                match file.sync() {
                    // There is nothing that could be brought to the disk.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        tell_removed(file);
                        let mut removed = removed.lock().expect("nobody panics with it");
                        removed.extend(still_there(file.path()));
                    }
                    Err(error) if disk::is_not_opened(&error) => {
                        *not_opened.lock().expect("nobody panics with it") = Some(error);
                    }
                    result => result?,
                }
            }
            Ok(())
        };
        match threads.min(self.files.len()) {
            0 | 1 => work()?,
            threads => std::thread::scope(|scope| {
                let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
                let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
                let mut results = results.into_iter();
                results.try_for_each(|result| result.expect("nothing in it panics"))
            })?,
        }
        if let Some(error) = not_opened.into_inner().expect("all threads are done") {
            return Err(error);
        }
        let removed = removed.into_inner().expect("all threads are done");
        for folder in self
            .folders
            .iter()
            .chain(&self.removed_from())
            .chain(&removed)
        {
            match disk::sync_folder(folder) {
                // A channel deleted meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result?,
            }
        }
        Ok(())
    }

    fn tell_removed(&self) {
        let lost = |file: &&Arc<StoreFile>| !file.is_gone() && !file.path().exists();
        self.files
            .iter()
            .filter(lost)
            .for_each(|file| tell_removed(file));
    }

    /// Folders of files that were removed instead of being synced: that must last as well, or they come back with
    /// anything in them.
    fn removed_from(&self) -> Vec<PathBuf> {
        let gone = self.files.iter().filter(|file| file.is_gone());
        let mut folders: Vec<PathBuf> = gone
            .filter_map(|file| {
                // Who said so is about to remove it.
                for _ in 0..REMOVAL_ROUNDS {
                    if !file.path().exists() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                file.path().parent().map(Into::into)
            })
            .collect();
        folders.dedup();
        folders
    }
}

fn tell_removed(file: &StoreFile) {
    log::error!(
        "STREAM: {} was removed, and what it had is lost",
        file.path().display()
    );
}

/// The folder that lacks this path, or what is above it. That must last like any removal; it may be a channel that is being
/// deleted at this moment, whose folder has another name already.
fn still_there(path: &Path) -> Option<PathBuf> {
    let folder = path.ancestors().skip(1).find(|folder| folder.is_dir());
    folder.map(Into::into)
}

/// There was no room to mark a log as empty, on a file system that never writes in place. Everything else is done, and the log
/// is what it was.
#[derive(Debug)]
struct NotEmptied(io::Error);

impl std::fmt::Display for NotEmptied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for NotEmptied {}

pub fn is_not_emptied(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|inner| inner.is::<NotEmptied>())
}

/// A log that does not begin with a batch's header is empty; one that is so already stays what it is on a full disk. Nothing but the header changes, so that whatever part of the write a loss of power leaves, what is
/// behind it is not damaged.
pub fn mark_empty(log: &File) -> io::Result<()> {
    let mut is_empty = log.metadata()?.len() == 0;
    let mut room = BlockRoom::default();
    let block = room.block();
    match log.read_exact_at(block, 0) {
        Ok(()) => is_empty = block[..BATCH_HEADER_BYTES].iter().all(|byte| *byte == 0),
        Err(_) => block.fill(0), // there is none, or none that can be read
    }
    block[..BATCH_HEADER_BYTES].fill(0);
    match log.write_durably(block, 0) {
        Err(error) if is_empty && super::is_full(&error) => Ok(()),
        result => result,
    }
}

/// It stays what it is.
pub fn rewrite_first_block(log: &File) -> io::Result<()> {
    let mut room = BlockRoom::default();
    let block = room.block();
    log.read_exact_at(block, 0)?;
    match log.write_durably(block, 0) {
        // A file system that never writes in place.
        Err(error) if super::is_full(&error) => Ok(()),
        result => result,
    }
}

/// For a block that lies in memory as direct writes want it.
struct BlockRoom(Vec<u8>);

impl Default for BlockRoom {
    fn default() -> Self {
        Self(vec![0; 2 * BLOCK_BYTES])
    }
}

impl BlockRoom {
    fn block(&mut self) -> &mut [u8] {
        let skew = self.0.as_ptr().align_offset(BLOCK_BYTES);
        &mut self.0[skew..skew + BLOCK_BYTES]
    }
}

pub enum Done {
    Log {
        write: LogWrite,
        result: io::Result<()>,
        took: Duration,
    },
    Checkpoint {
        checkpoint: Checkpoint,
        result: io::Result<()>,
    },
}

/// Called when something is done; wakes the engine.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

enum Executor {
    Threads {
        writes: Sender<LogWrite>,
        checkpoints: Sender<Checkpoint>,
    },
    /// Whoever tests says when something is done.
    #[cfg(test)]
    Steps(Arc<super::steps::Steps>),
}

pub struct Syncer {
    /// None while it is being dropped.
    executor: Option<Executor>,
    done: Receiver<Done>,
    report: Sender<Done>,
    threads: Vec<std::thread::JoinHandle<()>>,
    own_from: Instant,
}

impl Syncer {
    pub fn start(wake: &Wake) -> io::Result<Self> {
        let (report, done) = channel();
        let (writes, write_queue) = channel::<LogWrite>();
        let (checkpoints, checkpoint_queue) = channel::<Checkpoint>();
        let threads = vec![
            spawn("sync-log", write_queue, &report, wake, |write: LogWrite| {
                let start = Instant::now();
                let result = write.perform();
                Done::Log {
                    write,
                    result,
                    took: start.elapsed(),
                }
            })?,
            spawn(
                "sync-files",
                checkpoint_queue,
                &report,
                wake,
                |checkpoint: Checkpoint| Done::Checkpoint {
                    result: checkpoint.perform(CHECKPOINT_THREADS),
                    checkpoint,
                },
            )?,
        ];
        Ok(Self {
            executor: Some(Executor::Threads {
                writes,
                checkpoints,
            }),
            done,
            report,
            threads,
            own_from: Instant::now(),
        })
    }

    #[cfg(test)]
    pub fn in_steps(steps: Arc<super::steps::Steps>) -> Self {
        let (report, done) = channel();
        Self {
            executor: Some(Executor::Steps(steps)),
            done,
            report,
            threads: Vec::new(),
            own_from: Instant::now(),
        }
    }

    fn send(&self, done: Done) {
        self.report
            .send(done)
            .expect("the other end is ours as well");
    }

    pub fn write(&mut self, write: LogWrite) {
        let small = write.buffer.len() - write.from <= OWN_BYTES_MAX;
        match self.executor.as_ref().expect("until it is dropped") {
            Executor::Threads { writes, .. } => {
                if small && write.grow.is_empty() && Instant::now() >= self.own_from {
                    self.write_here(write);
                } else {
                    writes.send(write).expect("the thread lives as long");
                }
            }
            #[cfg(test)]
            Executor::Steps(steps) => steps.write(write),
        }
    }

    fn write_here(&self, write: LogWrite) {
        let start = Instant::now();
        let result = write.perform();
        self.send(Done::Log {
            write,
            result,
            took: start.elapsed(),
        });
    }

    pub fn checkpoint(&self, checkpoint: Checkpoint) {
        match self.executor.as_ref().expect("until it is dropped") {
            Executor::Threads { checkpoints, .. } => {
                checkpoints
                    .send(checkpoint)
                    .expect("the thread lives as long");
            }
            #[cfg(test)]
            Executor::Steps(steps) => steps.checkpoint(checkpoint),
        }
    }

    /// The next thing that is over.
    pub fn completed(&mut self) -> Option<Done> {
        #[cfg(test)]
        if let Some(Executor::Steps(steps)) = &self.executor {
            return steps.done();
        }
        let done = self.done.try_recv().ok()?;
        Some(self.noted(done))
    }

    pub fn wait(&mut self) -> Done {
        #[cfg(test)]
        if let Some(Executor::Steps(steps)) = &self.executor {
            return steps.finish();
        }
        let done = self.done.recv().expect("we hold a sender ourselves");
        self.noted(done)
    }

    fn noted(&mut self, done: Done) -> Done {
        if let Done::Log { took, .. } = &done
            && *took > SLOW
        {
            self.own_from = Instant::now() + SLOW_FOR;
        }
        done
    }
}

fn spawn<J: Send + 'static>(
    name: &str,
    queue: Receiver<J>,
    report: &Sender<Done>,
    wake: &Wake,
    perform: impl Fn(J) -> Done + Send + 'static,
) -> io::Result<std::thread::JoinHandle<()>> {
    let (report, wake) = (report.clone(), wake.clone());
    let work = move || {
        while let Ok(job) = queue.recv() {
            if report.send(perform(job)).is_err() {
                return;
            }
            wake();
        }
    };
    std::thread::Builder::new().name(name.into()).spawn(work)
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.executor = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::files::Files;
    use super::super::trace::{Op, Trace};
    use super::*;

    /// As while a channel is deleted: its folder has another name, and nothing says yet that this lasts.
    #[test]
    fn a_log_is_emptied_when_it_lasts_that_files_are_gone() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let trace = Trace::begin(root);
        let checkpoint = Checkpoint {
            files: vec![Files::new(10).file(root.join("foo").join("msgs.1.dat"))],
            folders: Vec::new(),
            log: Arc::new(File::open_durable(&root.join("log"), false).unwrap()),
            which: 0,
            root: Arc::new(Folder::open(root).unwrap()),
        };
        checkpoint.perform(1).unwrap();
        trace.end();
        let ops = trace.ops();
        let synced = |op: &Op| matches!(op, Op::FolderSynced(path) if path == root);
        let synced = ops.iter().position(synced).unwrap();
        let emptied = |op: &Op| matches!(op, Op::Write(..));
        assert!(synced < ops.iter().position(emptied).unwrap());
    }

    #[test]
    fn many_files_are_synced_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let open = Arc::new(Folder::open(root).unwrap());
        if !open.has_sync_all() {
            return eprintln!("SKIPPED: the file system syncs files one by one");
        }
        let trace = Trace::begin(root);
        let files = Files::new(10);
        let files = (0..=ONE_BY_ONE_MAX).map(|n| files.file(root.join(n.to_string())));
        let checkpoint = Checkpoint {
            files: files.inspect(|file| drop(file.make())).collect(),
            folders: vec![root.to_owned()],
            log: Arc::new(File::open_durable(&root.join("log"), false).unwrap()),
            which: 0,
            root: open,
        };
        checkpoint.perform(1).unwrap();
        trace.end();
        let mut ops = trace.ops();
        ops.retain(|op| !matches!(op, Op::Made(..)));
        let kinds = ops.iter().take(2);
        let kinds: Vec<_> = kinds
            .map(|op| (matches!(op, Op::AllSynced), matches!(op, Op::Write(..))))
            .collect();
        assert_eq!(kinds, [(true, false), (false, true)]);
    }
}
