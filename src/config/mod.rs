//! Options: one table for configuration file, command line, help and documentation.
//!
//! May import util and subject. Must not know anything that runs.

pub mod cli;
pub mod diff;
pub mod file;
#[cfg(test)]
mod messages;
pub mod options;
pub mod route_url;
pub mod signal;
pub mod streaming;
pub mod table;

pub use options::Options;
