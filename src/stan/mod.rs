//! The streaming engine: at-least-once delivery over channels that remember.
//!
//! May import util, subject and config. Deliberately absent: sockets, threads, the wall clock, the
//! NATS wire format. Messages and `now` come in through `handle_*`, what is to be published goes out
//! through an `Outlet`, and the disk is behind `store::Store`.

pub mod engine;
pub mod pb;
pub mod store;
