//! Pending signals, without taking them.

use nix::sys::signal::SigSet;

/// Whether one of these signals, which are blocked, has come: read from the kernel's own account.
pub fn is_pending(signals: &SigSet) -> nix::Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(|_| nix::Error::EIO)?;
    let masks = status.lines().filter_map(|line| {
        line.strip_prefix("ShdPnd:")
            .or(line.strip_prefix("SigPnd:"))
    });
    let pending = masks
        .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .fold(0, |all, mask| all | mask);
    Ok(signals
        .iter()
        .any(|signal| pending >> (signal as i32 - 1) & 1 == 1))
}
