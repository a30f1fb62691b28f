//! For tests: the disk gets on when the test says so.

use super::sync::{Checkpoint, Done, LogWrite};
use crate::util::lock;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

enum Job {
    Write(LogWrite),
    Checkpoint(Checkpoint),
}

/// What was asked of the disk and is not done, and what is done.
#[derive(Default)]
pub struct Steps {
    queues: Mutex<(VecDeque<Job>, VecDeque<Done>)>,
    /// A planted fault: what is asked is said to be done, and is not.
    lies: bool,
}

impl Steps {
    fn queues(&self) -> MutexGuard<'_, (VecDeque<Job>, VecDeque<Done>)> {
        lock(&self.queues)
    }

    pub fn that_lie() -> Self {
        Self {
            lies: true,
            ..Self::default()
        }
    }

    pub fn write(&self, write: LogWrite) {
        if self.lies {
            let (result, took) = (Ok(()), Duration::ZERO);
            let done = Done::Log {
                write,
                result,
                took,
            };
            return self.queues().1.push_back(done);
        }
        self.queues().0.push_back(Job::Write(write));
    }

    pub fn checkpoint(&self, checkpoint: Checkpoint) {
        self.queues().0.push_back(Job::Checkpoint(checkpoint));
    }

    pub fn waiting(&self) -> usize {
        self.queues().0.len()
    }

    /// Does the nth of what waits; the disk keeps no order.
    pub fn step(&self, nth: usize) {
        let job = self.queues().0.remove(nth);
        let done = match job.expect("there are so many") {
            Job::Write(write) => Done::Log {
                result: write.perform(),
                took: Duration::ZERO,
                write,
            },
            Job::Checkpoint(checkpoint) => Done::Checkpoint {
                result: checkpoint.perform(1),
                checkpoint,
            },
        };
        self.queues().1.push_back(done);
    }

    pub fn done(&self) -> Option<Done> {
        self.queues().1.pop_front()
    }

    /// Somebody waits.
    pub fn finish(&self) -> Done {
        if let Some(done) = self.done() {
            return done;
        }
        self.step(0);
        self.done().expect("something was done")
    }
}
