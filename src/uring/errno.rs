//! Error numbers as the kernel gives them in completions. Knows no operation.

use std::fmt;

/// A positive errno value.
///
/// Not `io::Error`: that is larger, not `Copy` and not comparable, and a completion carries one of
/// these in the common path.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl Errno {
    pub const AGAIN: Errno = Errno(libc::EAGAIN);
    pub const ALREADY: Errno = Errno(libc::EALREADY);
    pub const BADF: Errno = Errno(libc::EBADF);
    pub const CANCELED: Errno = Errno(libc::ECANCELED);
    pub const CONNRESET: Errno = Errno(libc::ECONNRESET);
    pub const INVAL: Errno = Errno(libc::EINVAL);
    pub const MFILE: Errno = Errno(libc::EMFILE);
    /// A recv found no receive buffer left: recycle some, then arm it again.
    pub const NOBUFS: Errno = Errno(libc::ENOBUFS);
    pub const NOENT: Errno = Errno(libc::ENOENT);
    pub const NOMEM: Errno = Errno(libc::ENOMEM);
    pub const NOSYS: Errno = Errno(libc::ENOSYS);
    pub const PERM: Errno = Errno(libc::EPERM);
    pub const PIPE: Errno = Errno(libc::EPIPE);

    /// The errno of an error that came from a system call; EIO for one that did not.
    pub fn of(error: &std::io::Error) -> Errno {
        Errno(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl From<Errno> for std::io::Error {
    fn from(errno: Errno) -> std::io::Error {
        std::io::Error::from_raw_os_error(errno.0)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::io::Error::from(*self).fmt(f)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Errno {}
