//! Glue between the kernel and the broker: listeners, event loops, signals.
//!
//! The only folder that sees both ring and broker; it holds no rule of any protocol.

mod connection;
mod event_loop;
mod mailbox;
mod run;

pub use run::{ServerOptions, StartError, run};
