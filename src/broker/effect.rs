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
    /// What it waited for has come (receivers or its own output caught up, other loops and servers took in its
    /// changes, its password was checked): read from this connection again.
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
    /// Tries a second apart after the first, where it is not explicit.
    pub retries: u32,
}

const RETRY_EVERY: Duration = Duration::from_secs(1);
/// Where a server cannot be reached that is not configured, further tries become rare, and end after
/// about an hour. The original gives up at once, and a mesh that was cut stays incomplete.
const PAUSE_MAX: Duration = Duration::from_secs(60);
const PATIENT_TRIES: u32 = 64;

impl Dial {
    /// How long to wait after a try that failed, with `tries` before it; None: give up.
    pub fn pause_after(&self, tries: u32) -> Option<Duration> {
        if self.explicit || tries < self.retries {
            return Some(RETRY_EVERY);
        }
        let patient = tries - self.retries;
        let pause = RETRY_EVERY.saturating_mul(2u32.saturating_pow(patient));
        (patient < PATIENT_TRIES).then_some(pause.min(PAUSE_MAX))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_where_a_route_is_not_configured() {
        let mut dial = Dial {
            url: RouteUrl::parse("nats://a:1").unwrap(),
            explicit: false,
            wait: Duration::ZERO,
            retries: 2,
        };
        let pauses = |dial: &Dial| -> Vec<Option<u64>> {
            let pause = |tries| dial.pause_after(tries).map(|pause| pause.as_secs());
            [0, 1, 2, 3, 4, 9, 65, 66].map(pause).into()
        };
        let some = [1, 1, 1, 2, 4, 60, 60].map(Some);
        assert_eq!(pauses(&dial), [&some[..], &[None]].concat());
        dial.explicit = true;
        assert_eq!(pauses(&dial), [Some(1); 8]);
    }
}
