//! Pending signals, without taking them.

use nix::sys::signal::{SigSet, Signal};

/// Signals of ours that are blocked and have come: read from the kernel's own account.
pub fn pending() -> nix::Result<SigSet> {
    let mut set = SigSet::empty();
    let status = std::fs::read_to_string("/proc/self/status").map_err(|_| nix::Error::EIO)?;
    for line in status.lines() {
        let Some(mask) = line
            .strip_prefix("ShdPnd:")
            .or(line.strip_prefix("SigPnd:"))
        else {
            continue;
        };
        let mask = u64::from_str_radix(mask.trim(), 16).unwrap_or(0);
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            if mask >> (signal as i32 - 1) & 1 == 1 {
                set.add(signal);
            }
        }
    }
    Ok(set)
}
