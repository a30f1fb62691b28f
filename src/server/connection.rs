//! The socket side of a connection: what the kernel holds of it, and how it ends.
//!
//! ```text
//!   Open --told--> Flushing --all written--> Draining --peer's end, or time--> Closing
//!     |               |                                                           |
//!     '--gone, slow---'-----------------------------------------------------------' no operation in
//!                                                                                   flight: closed,
//!                                                                                   slot free
//! ```
//!
//! Draining exists because closing a socket with unread input makes the kernel send a reset, which
//! may overtake the error line that was to tell the peer why.

use super::tls_link::TlsLink;
use std::os::fd::RawFd;
use std::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Open,
    Flushing { until: Instant },
    Draining { until: Instant },
    Closing,
}

#[derive(Debug)]
pub struct Connection {
    pub fd: RawFd,
    pub stage: Stage,
    pub receiving: bool,
    pub writing: bool,
    pub tls: Option<Box<TlsLink>>,
}

impl Connection {
    pub fn new(fd: RawFd, tls: Option<Box<TlsLink>>) -> Self {
        Self {
            fd,
            stage: Stage::Open,
            receiving: false,
            writing: false,
            tls,
        }
    }

    /// The kernel holds nothing of it any more.
    pub fn is_quiet(&self) -> bool {
        !self.receiving && !self.writing
    }
}

/// A place for a connection, with the number of its tenant: completions for an earlier tenant are
/// told apart by it.
#[derive(Debug, Default)]
pub struct Place {
    pub generation: u32,
    pub connection: Option<Connection>,
}
