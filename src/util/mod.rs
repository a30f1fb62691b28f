//! Bits every other module may use: registered memory and its pool, random numbers, ids, keys in text form, JSON as Go writes it.
//!
//! May import std and serde_json (and `libc` where a file is marked as system code). Must not know the rest.

pub mod go_json;
pub mod nkey;
pub mod pool;
pub mod random;
pub mod region;
mod sys;

use std::sync::{Mutex, MutexGuard};

pub use sys::{blanks, same_start, set_thread_nice};

/// Also where somebody panicked who had it: that is the end of the process anyway (`panic = "abort"`), but for tests.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
