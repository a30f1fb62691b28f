//! Glue between the kernel and the broker: listeners, event loops, signals, the monitoring port.
//!
//! The only folder that sees both ring and broker; it holds no rule of any protocol.

mod connection;
mod event_loop;
mod mailbox;
mod monitor_http;
mod reload;
mod run;
mod settings;
mod signals;
mod verifier;

pub use run::{StartError, hold_signals, run};
