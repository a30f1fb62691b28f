//! Can this process use io_uring, and which of its newer features are there?
//!
//! Run once at the start: what cannot work must end in one sentence that names cause and cure, not
//! in an error number at the first connection.

use super::Errno;
use io_uring::{IoUring, Probe, opcode};
use std::fmt;

/// The oldest kernel whose io_uring we use (SINGLE_ISSUER with DEFER_TASKRUN).
const KERNEL_MIN: (u32, u32) = (6, 1);

/// What newer kernels add.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Vectored writes from registered memory (6.15).
    pub writev_fixed: bool,
    /// Submission without the index array (6.6).
    pub no_sqarray: bool,
}

/// Why io_uring cannot be used here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    errno: Errno,
    kernel: String,
    /// /proc/sys/kernel/io_uring_disabled
    disabled: u32,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kernel = &self.kernel;
        if version_of(kernel).is_some_and(|version| version < KERNEL_MIN)
            || self.errno == Errno::NOSYS
        {
            let (major, minor) = KERNEL_MIN;
            write!(
                f,
                "io_uring cannot be used: midge needs Linux {major}.{minor} or later with io_uring built in, and this kernel is {kernel}"
            )
        } else if self.disabled > 0 {
            write!(
                f,
                "io_uring cannot be used: it is switched off by the sysctl kernel.io_uring_disabled = {}; set it to 0 to allow it",
                self.disabled
            )
        } else if self.errno == Errno::PERM {
            write!(
                f,
                "io_uring cannot be used: the system call was refused, as the default seccomp profiles of containers do; \
                 allow io_uring_setup, io_uring_enter and io_uring_register (docs/OPERATIONS.md has a profile)"
            )
        } else if self.errno == Errno::NOMEM {
            write!(
                f,
                "io_uring cannot be used: no memory for its rings; raise the limit on locked memory (ulimit -l, LimitMEMLOCK=)"
            )
        } else {
            write!(
                f,
                "io_uring cannot be used on this kernel ({kernel}): {}",
                self.errno
            )
        }
    }
}

impl std::error::Error for Unusable {}

fn version_of(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

impl Unusable {
    fn here(errno: Errno) -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        Self {
            errno,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            disabled: read("/proc/sys/kernel/io_uring_disabled")
                .trim()
                .parse()
                .unwrap_or(0),
        }
    }
}

/// Tries the setup the loops use, on a ring that is thrown away.
pub fn probe() -> Result<Features, Unusable> {
    let unusable = |error: std::io::Error| Unusable::here(Errno::of(&error));
    let ring = IoUring::<io_uring::squeue::Entry>::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(8)
        .map_err(unusable)?;
    let mut known = Probe::new();
    ring.submitter()
        .register_probe(&mut known)
        .map_err(unusable)?;
    let no_sqarray = IoUring::<io_uring::squeue::Entry>::builder()
        .setup_no_sqarray()
        .build(8)
        .is_ok();
    Ok(Features {
        writev_fixed: known.is_supported(opcode::WritevFixed::CODE),
        no_sqarray,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_has_its_own_cure() {
        for (errno, kernel, disabled, words) in [
            (Errno::INVAL, "5.15.0-91-generic", 0, "needs Linux 6.1"),
            (Errno::NOSYS, "6.1.0", 0, "needs Linux 6.1"),
            (Errno::PERM, "6.8.0", 2, "kernel.io_uring_disabled = 2"),
            (Errno::PERM, "6.8.0", 0, "seccomp"),
            (Errno::NOMEM, "6.8.0", 0, "locked memory"),
            (Errno::MFILE, "6.8.0", 0, "6.8.0"),
        ] {
            let text = Unusable {
                errno,
                kernel: kernel.into(),
                disabled,
            }
            .to_string();
            assert!(text.contains(words) && !text.contains('\n'), "{text}");
        }
    }

    #[test]
    fn kernel_releases_are_read() {
        assert_eq!(version_of("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(version_of("5.4"), Some((5, 4)));
        assert_eq!(version_of("x"), None);
    }
}
