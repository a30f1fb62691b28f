//! The streaming server under faults: killed under load, with damaged files, on a full disk.

mod client;
mod crash;
mod full_disk;
#[path = "../support/mod.rs"]
mod support;
