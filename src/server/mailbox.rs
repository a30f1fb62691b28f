//! How loops talk to each other, and how other threads talk to them.
//!
//! For each ordered pair of loops there is a mailbox with one sender and one receiver: a queue of
//! batches, at most one batch per turn of the sender, and a queue on which emptied batches travel
//! back. The queue itself never refuses a batch, so interest is always under way before the PONG
//! that promises it; what is under way stays bounded because publishers that send to a loop with
//! too much backlog are not read from (see `broker::peers`).
//!
//! A loop that sleeps is woken for all but interest, which counts when a message comes: it takes in what waits of that before
//! anything else. One that goes to sleep says so first and then looks at its mailboxes once more; a sender first
//! puts a batch in and then looks whether the receiver sleeps. One of the two sees the other, in
//! whatever order these four steps fall: `tests::nobody_sleeps_on_mail` lets loom try them all.

use crate::broker::Lag;
use crate::broker::mail::{Backlog, Batch};
use crossbeam_queue::SegQueue;
use std::os::fd::{AsRawFd, RawFd};

#[cfg(midge_loom)]
use loom::sync::atomic::AtomicBool as SleepFlag;
#[cfg(not(midge_loom))]
use std::sync::atomic::AtomicBool as SleepFlag;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicUsize, Ordering};

/// Whether a loop sleeps in the kernel, and thus needs a doorbell.
#[derive(Debug)]
pub struct Sleep(SleepFlag);

impl Default for Sleep {
    fn default() -> Self {
        Self(SleepFlag::new(false))
    }
}

impl Sleep {
    /// The loop is about to sleep; it must look at all its mail after this and before it does.
    ///
    /// All three operations read and write in one step, so they stand in one order, each seeing what
    /// was done before the one before it: a sender's `must_ring` either comes after this and finds
    /// the loop asleep, or before it, and then its mail is visible here.
    pub fn announce(&self) {
        self.0.swap(true, Ordering::AcqRel);
    }

    pub fn over(&self) {
        self.0.swap(false, Ordering::AcqRel);
    }

    /// Called after mail was put in: true when this caller must ring.
    pub fn must_ring(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }
}

/// One direction between two loops.
#[derive(Debug)]
pub struct Mailbox {
    full: SegQueue<Batch>,
    empty: SegQueue<Batch>,
    /// Memory of those in `empty`, and the most of it.
    spare_bytes: AtomicUsize,
    spare_bytes_max: usize,
    /// Bytes, and changes of interest, put in and not yet worked off.
    backlog: AtomicUsize,
    changes: AtomicUsize,
    /// The sender holds publishers or bursts until the backlog is gone, and wants to hear of it.
    sender_waits: AtomicBool,
}

/// Memory of emptied batches kept for reuse by all senders of a loop, and by one of them: a sender whose receiver has not had its
/// turn yet sends several.
const SPARE_BYTES_MAX: usize = 4 << 20;
const SPARE_BYTES_OF_ONE_MAX: usize = 1 << 20;

impl Mailbox {
    /// Of one of so many loops.
    pub fn new(loops: usize) -> Self {
        Self {
            full: SegQueue::new(),
            empty: SegQueue::new(),
            spare_bytes_max: (SPARE_BYTES_MAX / loops).min(SPARE_BYTES_OF_ONE_MAX),
            spare_bytes: AtomicUsize::new(0),
            backlog: AtomicUsize::new(0),
            changes: AtomicUsize::new(0),
            sender_waits: AtomicBool::new(false),
        }
    }

    pub fn spare(&self) -> Batch {
        let Some(batch) = self.empty.pop() else {
            return Batch::default();
        };
        self.spare_bytes
            .fetch_sub(batch.capacity_bytes(), Ordering::Relaxed);
        batch
    }

    pub fn send(&self, batch: Batch) {
        self.backlog.fetch_add(batch.weight, Ordering::Relaxed);
        if batch.changes > 0 {
            self.changes.fetch_add(batch.changes, Ordering::Relaxed);
        }
        self.full.push(batch);
    }

    pub fn receive(&self) -> Option<Batch> {
        self.full.pop()
    }

    /// The batch has been worked off; true when the sender waits to hear of it.
    pub fn give_back(&self, mut batch: Batch) -> bool {
        self.backlog.fetch_sub(batch.weight, Ordering::SeqCst);
        if batch.changes > 0 {
            self.changes.fetch_sub(batch.changes, Ordering::SeqCst);
        }
        batch.clear(self.spare_bytes_max);
        // Only this end adds, so the bound holds.
        let bytes = batch.capacity_bytes();
        if self.spare_bytes.load(Ordering::Relaxed) + bytes <= self.spare_bytes_max {
            self.spare_bytes.fetch_add(bytes, Ordering::Relaxed);
            self.empty.push(batch);
        }
        self.sender_waits.swap(false, Ordering::SeqCst)
    }

    /// Batches to be received. All are counted that were sent before anything this end has heard of.
    pub fn len(&self) -> usize {
        self.full.len()
    }

    pub fn is_empty(&self) -> bool {
        self.full.is_empty()
    }

    /// What is not yet worked off. With `waiting` the receiver is asked to tell when that changes.
    pub fn backlog(&self, waiting: bool) -> Backlog {
        if waiting {
            self.sender_waits.store(true, Ordering::SeqCst);
        }
        Backlog {
            bytes: self.backlog.load(Ordering::SeqCst),
            changes: self.changes.load(Ordering::SeqCst),
        }
    }
}

/// What the other threads of the process may know and want of a loop.
#[derive(Debug)]
pub struct LoopDoor<C> {
    pub sleep: Sleep,
    /// Descriptor of the loop's ring, for doorbells of other loops; negative while there is none.
    ring_fd: AtomicI32,
    /// Connections the loop has or is about to get.
    pub connections: AtomicUsize,
    commands: SegQueue<C>,
    /// Wakes the loop for a command.
    event: nix::sys::eventfd::EventFd,
}

impl<C> LoopDoor<C> {
    fn new() -> nix::Result<Self> {
        use nix::sys::eventfd::{EfdFlags, EventFd};
        Ok(Self {
            sleep: Sleep::default(),
            ring_fd: AtomicI32::new(-1),
            connections: AtomicUsize::new(0),
            commands: SegQueue::new(),
            event: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        })
    }

    /// Called by ordinary threads.
    pub fn command(&self, command: C) {
        self.commands.push(command);
        // The counter cannot overflow: every wake-up empties it.
        self.wake();
    }

    /// Where its ring cannot be rung.
    pub fn wake(&self) {
        let _ = self.event.write(1);
    }

    /// Called by the loop after it was woken.
    pub fn take_command(&self) -> Option<C> {
        self.commands.pop()
    }

    pub fn event_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    pub fn silence_event(&self) {
        let _ = self.event.read();
    }

    pub fn set_ring_fd(&self, fd: RawFd) {
        self.ring_fd.store(fd, Ordering::SeqCst);
    }

    /// Before the ring is closed: its descriptor may be another one soon.
    pub fn forget_ring_fd(&self) {
        self.ring_fd.store(-1, Ordering::SeqCst);
    }

    /// None: the loop has ended, and its mail is read by nobody.
    pub fn ring_fd(&self) -> Option<RawFd> {
        let fd = self.ring_fd.load(Ordering::SeqCst);
        (fd >= 0).then_some(fd)
    }
}

/// How the receivers of each loop fare: a hint. All loops read all of it once a turn, and it seldom changes;
/// so it has lines of the cache to itself.
#[derive(Debug, Default)]
#[repr(align(128))]
struct LagLine([AtomicU8; LAG_LINE]);

const LAG_LINE: usize = 32;

/// Everything loops share.
#[derive(Debug)]
pub struct Mesh<C> {
    doors: Vec<LoopDoor<C>>,
    lags: Vec<LagLine>,
    /// From each loop to each loop, row by row.
    mailboxes: Vec<Mailbox>,
}

impl<C> Mesh<C> {
    pub fn new(loops: u16) -> nix::Result<Self> {
        let count = usize::from(loops);
        Ok(Self {
            doors: (0..count)
                .map(|_| LoopDoor::new())
                .collect::<nix::Result<_>>()?,
            lags: (0..count.div_ceil(LAG_LINE))
                .map(|_| LagLine::default())
                .collect(),
            mailboxes: (0..count * count).map(|_| Mailbox::new(count)).collect(),
        })
    }

    pub fn loops(&self) -> u16 {
        self.doors.len() as u16
    }

    pub fn door(&self, index: u16) -> &LoopDoor<C> {
        &self.doors[usize::from(index)]
    }

    pub fn doors(&self) -> &[LoopDoor<C>] {
        &self.doors
    }

    fn lag_of(&self, index: u16) -> &AtomicU8 {
        let index = usize::from(index);
        &self.lags[index / LAG_LINE].0[index % LAG_LINE]
    }

    /// Called by the loop itself.
    pub fn set_lag(&self, index: u16, lag: Lag) {
        if self.lag(index) != lag {
            self.lag_of(index).store(lag as u8, Ordering::Relaxed);
        }
    }

    /// How the receivers of this loop fare.
    pub fn lag(&self, index: u16) -> Lag {
        self.lag_of(index).load(Ordering::Relaxed).into()
    }

    pub fn mailbox(&self, from: u16, to: u16) -> &Mailbox {
        &self.mailboxes[usize::from(from) * self.doors.len() + usize::from(to)]
    }

    /// All loops but this one.
    pub fn others(&self, index: u16) -> impl Iterator<Item = u16> + use<C> {
        (0..self.loops()).filter(move |other| *other != index)
    }

    pub fn has_mail(&self, to: u16) -> bool {
        self.others(to)
            .any(|from| !self.mailbox(from, to).is_empty())
    }
}

#[cfg(all(test, midge_loom))]
mod tests {
    use super::{Ordering, Sleep};
    use loom::sync::Arc;
    use loom::sync::Mutex;
    use loom::sync::atomic::AtomicUsize;
    use loom::thread;

    /// Run with `RUSTFLAGS="--cfg midge_loom" cargo test --release --lib mailbox`.
    #[test]
    fn nobody_sleeps_on_mail() {
        loom::model(|| {
            let sleep = Arc::new(Sleep::default());
            let mail = Arc::new(AtomicUsize::new(0));
            let bell = Arc::new((Mutex::new(false), loom::sync::Condvar::new()));
            let sender = {
                let (sleep, mail, bell) = (sleep.clone(), mail.clone(), bell.clone());
                thread::spawn(move || {
                    for _ in 0..2 {
                        mail.fetch_add(1, Ordering::Release);
                        if sleep.must_ring() {
                            *bell.0.lock().unwrap() = true;
                            bell.1.notify_one();
                        }
                    }
                })
            };
            let mut received = 0;
            while received < 2 {
                sleep.announce();
                if mail.load(Ordering::Acquire) == received {
                    // Only the doorbell ends this sleep: a lost one would be a deadlock.
                    let mut rung = bell.0.lock().unwrap();
                    while !*rung {
                        rung = bell.1.wait(rung).unwrap();
                    }
                    *rung = false;
                }
                sleep.over();
                received = mail.load(Ordering::Acquire);
            }
            sender.join().unwrap();
        });
    }
}
