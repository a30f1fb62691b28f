//! midge: a NATS and NATS Streaming server on io_uring.
//!
//! Modules in reading order, along the way of a published message; docs/ARCHITECTURE.md tells the
//! same story in prose. Each `mod.rs` says what the module is, what it may import and what it must
//! not know; tests/tidy.rs holds us to it.

pub mod admin;
pub mod broker;
pub mod config;
pub mod logging;
pub mod monitor;
pub mod passwd;
pub mod server;
#[cfg(test)]
mod sim;
pub mod stan;
pub mod subject;
pub mod tls;
pub mod top;
pub mod uring;
pub mod util;
pub mod wire;

/// The version of gnatsd whose behaviour midge reproduces; clients see it in INFO.
pub const COMPATIBLE_VERSION: &str = "1.1.0";
/// The version of NATS Streaming Server whose behaviour midge reproduces.
pub const STREAMING_VERSION: &str = "0.9.2";
/// midge's own version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit this binary was built from, empty outside a git checkout.
pub const GIT_COMMIT: &str = env!("MIDGE_GIT_COMMIT");
