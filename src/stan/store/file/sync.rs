//! Threads that wait for the disk, so that the engine does not: a slow sync of one channel stops no
//! other.

use super::files::StoreFile;
use crate::stan::store::{ChannelId, Completion, Seq};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

const THREADS: usize = 16;

/// Files to be brought to the disk, and what is durable then.
pub struct Job {
    pub channel: ChannelId,
    pub up_to: Seq,
    pub files: Vec<Arc<StoreFile>>,
}

/// Called when a completion has come in; wakes the engine.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

pub struct Syncer {
    jobs: Option<Sender<Job>>,
    done: Receiver<(Completion, std::io::Result<()>)>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Syncer {
    pub fn start(wake: &Wake) -> std::io::Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let (report, done) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let threads = (0..THREADS).map(|index| {
            let (queue, report, wake) = (queue.clone(), report.clone(), wake.clone());
            let work = move || {
                loop {
                    let job = {
                        let queue = queue
                            .lock()
                            .unwrap_or_else(|poisoned| poisoned.into_inner());
                        queue.recv()
                    };
                    let Ok(job) = job else {
                        return;
                    };
                    let result = job.files.iter().try_for_each(StoreFile::sync);
                    let completion = Completion {
                        channel: job.channel,
                        up_to: job.up_to,
                        more: false,
                    };
                    if report.send((completion, result)).is_err() {
                        return;
                    }
                    wake();
                }
            };
            std::thread::Builder::new()
                .name(format!("sync-{index}"))
                .spawn(work)
        });
        Ok(Self {
            jobs: Some(jobs),
            threads: threads.collect::<Result<_, _>>()?,
            done,
        })
    }

    pub fn submit(&self, job: Job) {
        let jobs = self.jobs.as_ref().expect("open until dropped");
        jobs.send(job).expect("the threads live as long as this");
    }

    pub fn completed(&self) -> Option<(Completion, std::io::Result<()>)> {
        self.done.try_recv().ok()
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
