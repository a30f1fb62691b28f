//! TLS by rustls: certificates and settings from files, and sessions as bytes in, bytes out.
//!
//! May import util and config. Must not know sockets, the ring, or NATS.

mod client;
mod kinds;
mod load;
mod names;
mod session;
mod verify;

pub use client::client;
pub use load::{Configs, load};
pub use session::{Described, Fault, Session};
