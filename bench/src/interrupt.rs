//! A run that is interrupted: the first signal ends it after the turns that have begun, in order; a second one at once.
//!
//! Signals are blocked in all threads but the one that waits for them, so that no system call of the load is cut short.

use crate::connection::Result;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, killpg};
use nix::unistd::Pid;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};

const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

static ASKED: AtomicBool = AtomicBool::new(false);
/// The processes that are ours and run, servers and those that hold idle connections, or are not waited for yet.
static CHILDREN: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// Watches for signals from now on; to be called before any other thread is there.
pub fn watch() -> Result<()> {
    let failed = |error| format!("signals: {error}");
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = ignored(&status);
    // What nohup and the like had us ignore stays ignored.
    let watched = SIGNALS
        .into_iter()
        .filter(|signal| (ignored >> (*signal as i32 - 1)) & 1 == 0);
    let watched: SigSet = watched.collect();
    watched.thread_block().map_err(failed)?;
    // A panic ends the program without any Drop (`panic = "abort"` in the workspace).
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        told(panic);
        kill_children();
    }));
    std::thread::spawn(move || {
        while let Ok(signal) = watched.wait() {
            if ASKED.swap(true, SeqCst) {
                kill_children();
                say(&format!("{signal} again: ended at once"));
                std::process::exit(1);
            }
            say(&format!(
                "{signal}: ends after the turns that have begun, and writes what there is; once more ends it at once"
            ));
        }
    });
    Ok(())
}

/// The terminal may be gone, which is what SIGHUP says; `eprintln` would panic then.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "\nmidge-bench: {text}");
}

/// Whether the run is to end.
pub fn asked() -> bool {
    ASKED.load(SeqCst)
}

/// Starts a server, or what holds idle connections, in a process group of its own, so that a terminal's Ctrl-C does not reach it, but we do.
///
/// The mask of a child is that of the thread which starts it (std has not reset it since Rust 1.66), and a server that
/// blocks SIGINT could not be asked to end. A signal that comes in the microseconds without a mask ends us as it would
/// have without any of this; setting the mask in the child alone would be `unsafe`.
pub fn spawn(command: &mut Command) -> std::io::Result<Child> {
    command.process_group(0);
    let blocked = SigSet::empty().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let mut children = CHILDREN.lock().unwrap_or_else(PoisonError::into_inner);
    let child = command.spawn();
    children.extend(child.as_ref().map(Child::id));
    drop(children);
    blocked.thread_set_mask()?;
    child
}

/// This one has ended, and its id may soon be somebody else's.
pub fn forget(child: u32) {
    let mut children = CHILDREN.lock().unwrap_or_else(PoisonError::into_inner);
    children.retain(|id| *id != child);
}

pub fn children() -> Vec<u32> {
    let children = CHILDREN.lock().unwrap_or_else(PoisonError::into_inner);
    children.clone()
}

fn kill_children() {
    for child in children() {
        let _ = killpg(Pid::from_raw(child as i32), Signal::SIGKILL);
    }
}

/// The signals that a process ignores, by /proc/PID/status: signal 1 is the lowest bit.
fn ignored(status: &str) -> u64 {
    let mut lines = status.lines();
    let mask = lines.find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    #[test]
    fn children_are_told_of_signals_though_we_block_them() {
        let mut blocked = SigSet::empty();
        blocked.add(Signal::SIGINT);
        blocked.thread_block().unwrap();
        let mut command = Command::new("grep");
        command.args(["^SigBlk:", "/proc/self/status"]);
        let child = spawn(command.stdout(Stdio::piped())).unwrap();
        let id = child.id();
        assert!(children().contains(&id));
        let output = child.wait_with_output().unwrap();
        forget(id);
        assert!(!children().contains(&id));
        let mask = String::from_utf8(output.stdout).unwrap();
        assert_eq!(mask.trim(), "SigBlk:\t0000000000000000");
        let still = SigSet::thread_get_mask().unwrap();
        assert!(still.contains(Signal::SIGINT) && !still.contains(Signal::SIGHUP));
    }

    #[test]
    fn what_nohup_ignores_is_read() {
        let status = "Name:\tx\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000001001\n";
        assert_eq!(ignored(status), 0x1001);
        assert_eq!(ignored("Name:\tx\n"), 0);
    }
}
