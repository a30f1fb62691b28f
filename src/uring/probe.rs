//! Whether this kernel lets us have a ring, which of the newer features it has, and, if not, one
//! sentence that names the cause and the cure. Knows only the files under /proc it reads.

use std::fmt;
use std::fs;
use std::io;

use io_uring::{IoUring, Probe, opcode};

use super::errno::Errno;

/// Oldest kernel with SINGLE_ISSUER and DEFER_TASKRUN together.
const KERNEL_FLOOR: (u32, u32) = (6, 1);

const PROBE_ENTRIES: u32 = 8;

/// What the kernel offers a [`Ring`](super::Ring) beyond the floor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Features {
    /// Vectored writes from registered memory (6.15).
    pub(super) writev_fixed: bool,
    /// Sleeping in the ring is not accounted as waiting for a disk (6.15).
    pub(super) no_iowait: bool,
    /// The region is pinned and registered.
    pub(super) registered_region: bool,
}

/// Why there is no ring. Displays as one sentence with cause and cure, for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// Older than the floor; holds the running release.
    KernelTooOld(String),
    /// `kernel.io_uring_disabled` is 1 (all but a group and the privileged) or 2 (everybody).
    DisabledBySysctl(u32),
    /// A filter, in practice the default seccomp profile of a container.
    Filtered(Errno),
    /// Kernel built without io_uring, or a filter that says so.
    Missing,
    OutOfMemory,
    TooManyFiles,
    Other {
        step: &'static str,
        errno: Errno,
    },
}

/// Makes a small ring the way [`Ring`](super::Ring) does: whether there can be one.
pub fn probe() -> Result<(), Unusable> {
    build(PROBE_ENTRIES, PROBE_ENTRIES * 4).map(drop)
}

/// A ring with our set of flags, and what the kernel under it offers.
pub(super) fn build(sq_entries: u32, cq_entries: u32) -> Result<(IoUring, Features), Unusable> {
    let mut builder = IoUring::builder();
    builder
        // One thread submits and reaps: the kernel takes no locks and runs completions only when
        // that thread asks for them, in one batch, instead of interrupting it.
        .setup_single_issuer()
        .setup_defer_taskrun()
        // Tells in shared memory that completions are due, so a turn that must not wait can tell
        // without a system call that there is nothing to do.
        .setup_taskrun_flag()
        // One bad entry must not hold up the rest of a batch.
        .setup_submit_all()
        // Accept completes many times per submission, so completions outnumber submissions.
        .setup_cqsize(cq_entries)
        .setup_clamp();
    let mut without_sqarray = builder.clone();
    without_sqarray.setup_no_sqarray();
    let ring = match without_sqarray.build(sq_entries) {
        // Submission without the indirection array came with 6.6.
        Err(error) if Errno::of(&error) == Errno::INVAL => builder.build(sq_entries),
        made => made,
    }
    .map_err(|error| Unusable::now("io_uring_setup", &error))?;
    let mut operations = Probe::new();
    ring.submitter()
        .register_probe(&mut operations)
        .map_err(|error| Unusable::now("io_uring_register (probe)", &error))?;
    // Nothing to submit: whether it may be called at all.
    ring.submit()
        .map_err(|error| Unusable::now("io_uring_enter", &error))?;
    let features = Features {
        writev_fixed: operations.is_supported(opcode::WritevFixed::CODE),
        no_iowait: ring.params().is_feature_no_iowait(),
        ..Features::default()
    };
    Ok((ring, features))
}

impl Unusable {
    /// Explains an error with what the system says of itself at this moment.
    pub(super) fn now(step: &'static str, error: &io::Error) -> Unusable {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Unusable::explain(
            step,
            Errno::of(error),
            read("/proc/sys/kernel/io_uring_disabled")
                .trim()
                .parse()
                .ok(),
            read("/proc/sys/kernel/osrelease").trim(),
        )
    }

    /// `disabled` is the sysctl, where the kernel has it (6.6); `release` as `uname -r` prints it.
    fn explain(step: &'static str, errno: Errno, disabled: Option<u32>, release: &str) -> Unusable {
        // The version explains every other error of an old kernel, so it goes first. It is asked
        // only after a failure: a kernel with the features back-ported is welcome.
        if version(release).is_some_and(|version| version < KERNEL_FLOOR) {
            return Unusable::KernelTooOld(release.to_owned());
        }
        match (errno, disabled) {
            (Errno::PERM, Some(level @ 1..)) => Unusable::DisabledBySysctl(level),
            (Errno::PERM, _) => Unusable::Filtered(errno),
            (Errno(libc::EACCES), _) => Unusable::Filtered(errno),
            (Errno::NOSYS, _) => Unusable::Missing,
            (Errno::NOMEM, _) => Unusable::OutOfMemory,
            (Errno::MFILE | Errno(libc::ENFILE), _) => Unusable::TooManyFiles,
            _ => Unusable::Other { step, errno },
        }
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = KERNEL_FLOOR;
        match self {
            Unusable::KernelTooOld(release) => write!(
                f,
                "this kernel is Linux {release} and io_uring as needed here starts with Linux \
                 {major}.{minor}: run on a newer kernel"
            ),
            Unusable::DisabledBySysctl(1) => f.write_str(
                "io_uring is reserved to privileged processes by kernel.io_uring_disabled=1: set it \
                 to 0 with sysctl, or put the group of this process into kernel.io_uring_group",
            ),
            Unusable::DisabledBySysctl(level) => write!(
                f,
                "io_uring is switched off by kernel.io_uring_disabled={level}: set it to 0 with \
                 sysctl"
            ),
            Unusable::Filtered(errno) => write!(
                f,
                "io_uring is forbidden to this process ({errno}), most likely by the default seccomp \
                 profile of its container: allow the system calls io_uring_setup, io_uring_enter and \
                 io_uring_register, as docs/OPERATIONS.md shows"
            ),
            Unusable::Missing => f.write_str(
                "this kernel answers that it has no io_uring: it was built without CONFIG_IO_URING, or \
                 a container's seccomp profile hides the system calls io_uring_setup, io_uring_enter \
                 and io_uring_register, which docs/OPERATIONS.md shows how to allow",
            ),
            Unusable::OutOfMemory => f.write_str(
                "there is no memory for an io_uring: raise the memory limit of this process or of its \
                 container, and RLIMIT_MEMLOCK (LimitMEMLOCK= in a systemd unit), of which newer \
                 kernels want 256 KiB for each event loop",
            ),
            Unusable::TooManyFiles => f.write_str(
                "there is no file descriptor left for an io_uring: raise RLIMIT_NOFILE (LimitNOFILE= \
                 in a systemd unit)",
            ),
            Unusable::Other { step, errno } => write!(
                f,
                "io_uring cannot be used because {step} failed with \"{errno}\": docs/OPERATIONS.md \
                 lists what it needs"
            ),
        }
    }
}

impl std::error::Error for Unusable {}

/// The first two numbers of a release such as `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_and_cures() {
        let old = "this kernel is Linux 5.15.0-105-generic and io_uring as needed here starts with";
        let table: &[(i32, Option<u32>, &str, &[&str])] = &[
            (
                libc::EINVAL,
                None,
                "5.15.0-105-generic",
                &[old, "Linux 6.1: run"],
            ),
            (libc::ENOSYS, None, "5.15.0-105-generic", &[old]),
            (libc::EINVAL, None, "6.0.19", &["Linux 6.0.19"]),
            (
                libc::EPERM,
                Some(1),
                "6.6.8",
                &["kernel.io_uring_disabled=1", "io_uring_group"],
            ),
            (
                libc::EPERM,
                Some(2),
                "6.12",
                &["kernel.io_uring_disabled=2", "sysctl"],
            ),
            (
                libc::EPERM,
                Some(0),
                "6.18.44",
                &[
                    "io_uring_setup, io_uring_enter and io_uring_register",
                    "docs/OPERATIONS.md",
                    "seccomp",
                ],
            ),
            (
                libc::EPERM,
                None,
                "6.1.0-18-amd64",
                &["seccomp", "Operation not permitted"],
            ),
            (libc::EACCES, Some(0), "6.18", &["seccomp"]),
            (
                libc::ENOSYS,
                Some(0),
                "6.18",
                &["CONFIG_IO_URING", "io_uring_register", "docs/OPERATIONS.md"],
            ),
            (libc::ENOMEM, Some(0), "6.18", &["RLIMIT_MEMLOCK"]),
            (libc::EMFILE, Some(0), "6.18", &["RLIMIT_NOFILE"]),
            (
                libc::EINVAL,
                Some(0),
                "6.18",
                &["io_uring_setup failed", "Invalid argument"],
            ),
            (libc::EPERM, Some(0), "unknown", &["seccomp"]),
        ];
        for &(errno, disabled, release, expected) in table {
            let sentence =
                Unusable::explain("io_uring_setup", Errno(errno), disabled, release).to_string();
            for part in expected {
                assert!(sentence.contains(part), "{part:?} is not in {sentence:?}");
            }
            assert!(
                !sentence.contains('\n') && !sentence.contains(". "),
                "{sentence:?}"
            );
        }
    }

    #[test]
    fn releases() {
        assert_eq!(version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(version("6.1"), Some((6, 1)));
        assert_eq!(version("7-rc1"), None);
        assert_eq!(version(""), None);
    }

    #[test]
    fn this_kernel_has_a_ring() {
        probe().unwrap_or_else(|unusable| panic!("{unusable}"));
    }
}
