//! Passwords against bcrypt hashes, on a thread of their own: one comparison takes a tenth of a
//! second by design, and a flood of logins must not slow traffic.

use super::event_loop::{Command, Shared};
use crate::broker::Slot;
use crate::broker::perms::Permissions;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};

pub struct Job {
    pub loop_index: u16,
    pub slot: Slot,
    pub cid: u64,
    pub hash: Box<str>,
    pub given: Box<str>,
    pub permissions: Option<Arc<Permissions>>,
}

type Jobs = Sender<(Job, Arc<Shared>)>;

/// The thread starts with the first job: most servers never need it.
#[derive(Default)]
pub struct Verifier(Mutex<Option<Jobs>>);

impl Verifier {
    pub fn submit(&self, job: Job, shared: &Arc<Shared>) {
        let mut sender = self
            .0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let sender = sender.get_or_insert_with(start);
        // The thread lives as long as the sender.
        let _ = sender.send((job, shared.clone()));
    }
}

fn start() -> Jobs {
    let (sender, jobs) = channel::<(Job, Arc<Shared>)>();
    let work = move || {
        for (job, shared) in jobs {
            let Job {
                loop_index,
                slot,
                cid,
                hash,
                given,
                permissions,
            } = job;
            // Hashes of other bcrypt variants ($2x$) and broken ones do not match anything.
            let good = bcrypt::verify(given.as_bytes(), &hash).unwrap_or(false);
            shared.mesh.door(loop_index).command(Command::Verdict {
                slot,
                cid,
                permissions,
                good,
            });
        }
    };
    if let Err(error) = std::thread::Builder::new()
        .name("verify".into())
        .spawn(work)
    {
        log::error!("cannot start the thread that checks passwords: {error}");
    }
    sender
}
