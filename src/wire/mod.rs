//! The NATS text protocol as bytes: parser, encoder, JSON bodies, error texts.
//!
//! May import util. Deliberately absent: sockets, clocks, clients, subscriptions. This folder turns
//! bytes into values and back; it decides nothing.

pub mod args;
pub mod connect;
pub mod encode;
pub mod errors;
mod fast;
#[doc(hidden)]
pub mod fuzz;
pub mod info;
pub mod parser;
pub mod run;
