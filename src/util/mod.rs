//! Bits every other module may use: registered memory and its pool, random numbers, ids.
//!
//! May import std (and `libc` where a file is marked as system code). Must not know the rest.

pub mod go_json;
pub mod nkey;
pub mod pool;
pub mod random;
pub mod region;
mod sys;
pub use sys::{blanks, same_start, set_thread_nice};
