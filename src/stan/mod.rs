//! The streaming engine: at-least-once delivery over channels that remember.
//!
//! May import util, subject and config. Deliberately absent: sockets, the wall clock, the NATS wire
//! format. Messages and `now` come in through `Engine::handle_*`, what is to be published goes out
//! through an `Outlet`, and the disk is behind `store::Store`.

mod arena;
mod channel;
mod clients;
pub mod engine;
#[doc(hidden)]
pub mod fuzz;
pub mod in_place;
mod names;
pub mod outlet;
pub mod pb;
#[cfg(test)]
mod power_loss;
pub mod report;
pub mod store;
mod subs;
