//! The closed list of things the broker asks its surroundings for. All are rare: nothing here
//! happens once per message.

use super::auth::Proof;
use super::perms::Permissions;
use std::sync::{Arc, Weak};

#[derive(Debug)]
pub enum Effect {
    /// Write what is pending, then close; the broker is done with the slot after `release`.
    Close { slot: u32, why: CloseReason },
    /// Receivers caught up: read from this connection again.
    Resume { slot: u32 },
    /// Check this off the loop, then call `handle_verdict`.
    Verify {
        slot: u32,
        cid: u64,
        proof: Proof,
        permissions: Option<Arc<Permissions>>,
        /// Gone when nobody waits for the answer any more.
        ticket: Weak<()>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer closed, or the socket failed.
    Gone,
    /// It was told why by an -ERR that should still reach it.
    Told,
    /// It does not read; what is pending is dropped.
    SlowConsumer,
    /// Without a word: what gnatsd does too.
    Silently,
}
