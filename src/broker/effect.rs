//! The closed list of things the broker asks its surroundings for. All are rare: nothing here
//! happens once per message.

use super::auth::Proof;
use super::perms::Permissions;
use crate::config::route_url::RouteUrl;
use std::sync::{Arc, Weak};
use std::time::Duration;

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
    /// Make a connection to another server, and hand it to `open_route`.
    Dial(Dial),
    /// What clients of all loops are to be told of where else they can connect.
    ClientUrls(Arc<Vec<String>>),
}

/// A route to be dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dial {
    pub url: RouteUrl,
    /// It is in the configuration: it is tried until it is not any more.
    pub explicit: bool,
    /// Before the first try.
    pub wait: Duration,
    /// After the first, where it is not explicit.
    pub retries: u32,
}

/// Between two tries.
const RETRY_EVERY: Duration = Duration::from_secs(1);

impl Dial {
    /// How long to wait after a try that failed, with `tries` before it; None: give up.
    pub fn pause_after(&self, tries: u32) -> Option<Duration> {
        (self.explicit || tries < self.retries).then_some(RETRY_EVERY)
    }
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
