//! Passwords against bcrypt hashes, and signatures of nonces, on threads of their own: one password
//! takes a tenth of a second by design, and a flood of logins must not slow traffic.
//!
//! Signatures do not wait behind passwords. Passwords found right are remembered (as a keyed hash
//! that dies with the process), so that clients that come back after a broken network do not take
//! minutes to get in, and a flood of wrong ones does not keep them out. Whoever hangs up is skipped.

use super::event_loop::{Command, Shared};
use crate::broker::Slot;
use crate::broker::auth::Proof;
use crate::broker::perms::Permissions;
use crate::util::lock;
use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, Weak};

/// Passwords that were found right lately; all are forgotten when there are more.
const REMEMBERED_MAX: usize = 16 << 10;
/// The event loops come first.
const NICE: i32 = 10;

pub struct Job {
    pub loop_index: u16,
    pub slot: Slot,
    pub cid: u64,
    pub proof: Proof,
    pub permissions: Option<Arc<Permissions>>,
    /// Gone when nobody waits any more.
    pub ticket: Weak<()>,
}

type Jobs = Sender<(Job, Arc<Shared>)>;

/// The threads start with the first job: most servers never need them.
#[derive(Default)]
pub struct Verifier {
    passwords: Mutex<Option<Jobs>>,
    signatures: Mutex<Option<Jobs>>,
    remembered: Arc<Remembered>,
}

impl Verifier {
    pub fn submit(&self, job: Job, shared: &Arc<Shared>) {
        let (queue, name, threads) = match &job.proof {
            Proof::Password { hash, given } => {
                if self.remembered.knows(hash, given) {
                    return answer(job, shared, true);
                }
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                (&self.passwords, "passwords", cores.div_ceil(2))
            }
            Proof::Signature { .. } => (&self.signatures, "signatures", 1),
        };
        let mut queue = lock(queue);
        let jobs = queue.get_or_insert_with(|| start(name, threads, &self.remembered));
        // The threads live as long as the sender.
        if let Err(unsent) = jobs.send((job, shared.clone())) {
            // None of them could be started; the next job tries again.
            *queue = None;
            answer(unsent.0.0, shared, false);
        }
    }
}

fn start(name: &str, threads: usize, remembered: &Arc<Remembered>) -> Jobs {
    let (sender, jobs) = channel::<(Job, Arc<Shared>)>();
    let jobs = Arc::new(Mutex::new(jobs));
    for _ in 0..threads {
        let (jobs, remembered) = (jobs.clone(), remembered.clone());
        let body = move || {
            crate::util::set_thread_nice(NICE);
            while let Some((job, shared)) = next(&jobs) {
                if job.ticket.strong_count() == 0 {
                    continue;
                }
                let good = check(&job.proof);
                if let (true, Proof::Password { hash, given }) = (good, &job.proof) {
                    remembered.insert(hash, given);
                }
                answer(job, &shared, good);
            }
        };
        if let Err(error) = std::thread::Builder::new().name(name.into()).spawn(body) {
            log::error!("cannot start a thread that checks {name}: {error}");
        }
    }
    sender
}

fn next<T>(jobs: &Mutex<Receiver<T>>) -> Option<T> {
    lock(jobs).recv().ok()
}

fn answer(job: Job, shared: &Shared, good: bool) {
    shared.mesh.door(job.loop_index).command(Command::Verdict {
        slot: job.slot,
        cid: job.cid,
        ticket: job.ticket,
        permissions: job.permissions,
        good,
    });
}

fn check(proof: &Proof) -> bool {
    match proof {
        // Hashes of other bcrypt variants ($2x$) and broken ones do not match anything.
        Proof::Password { hash, given } => bcrypt::verify(given.as_bytes(), hash).unwrap_or(false),
        Proof::Signature {
            key,
            signature,
            nonce,
        } => {
            let key = ed25519_dalek::VerifyingKey::from_bytes(key);
            let signature = ed25519_dalek::Signature::from_slice(signature);
            match (key, signature) {
                (Ok(key), Ok(signature)) => key.verify_strict(nonce, &signature).is_ok(),
                _ => false,
            }
        }
    }
}

/// Pairs of hash and password that belong together, as 128 bits under a key nobody knows.
#[derive(Default)]
struct Remembered {
    key: RandomState,
    pairs: Mutex<HashSet<[u64; 2]>>,
}

impl Remembered {
    fn digest(&self, hash: &str, given: &str) -> [u64; 2] {
        [0u8, 1].map(|half| self.key.hash_one((half, hash, given)))
    }

    fn knows(&self, hash: &str, given: &str) -> bool {
        lock(&self.pairs).contains(&self.digest(hash, given))
    }

    fn insert(&self, hash: &str, given: &str) {
        let mut pairs = lock(&self.pairs);
        if pairs.len() >= REMEMBERED_MAX {
            pairs.clear();
        }
        pairs.insert(self.digest(hash, given));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::{Signer, SigningKey};

    #[test]
    fn signatures() {
        let pair = SigningKey::from_bytes(&[7; 32]);
        let nonce = *b"aGVsbG8gd29ybGQ";
        let proof = |key, signature: &[u8], nonce| Proof::Signature {
            key,
            signature: signature.into(),
            nonce,
        };
        let signature = pair.sign(&nonce).to_bytes();
        let key = pair.verifying_key().to_bytes();
        assert!(check(&proof(key, &signature, nonce)));
        assert!(!check(&proof(key, &signature, *b"another nonce!!")));
        assert!(!check(&proof(key, &signature[1..], nonce)));
        assert!(!check(&proof(key, b"", nonce)));
        let other = SigningKey::from_bytes(&[8; 32]).verifying_key().to_bytes();
        assert!(!check(&proof(other, &signature, nonce)));
        // The neutral element as key would let one signature pass for many messages.
        let mut weak = [0; 32];
        weak[0] = 1;
        let mut forged = [0; 64];
        forged[0] = 1;
        assert!(!check(&proof(weak, &forged, nonce)));
    }

    #[test]
    fn right_passwords_are_remembered_with_their_hash() {
        let remembered = Remembered::default();
        remembered.insert("hash", "password");
        assert!(remembered.knows("hash", "password"));
        assert!(!remembered.knows("hash", "passwore") && !remembered.knows("hashp", "assword"));
    }
}
