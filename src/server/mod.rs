//! Glue between the kernel and the broker: listeners, event loops, signals, the monitoring port.
//!
//! The only folder that sees both ring and broker; it holds no rule of any protocol.

mod accept;
mod congestion;
mod connection;
mod dial;
mod event_loop;
mod limits;
mod listener;
#[doc(hidden)]
pub mod mailbox;
mod monitor;
mod monitor_http;
mod monitor_streaming;
mod monitor_turns;
pub mod nats_client;
mod nats_link;
pub mod nats_login;
mod process;
mod reload;
mod run;
mod settings;
mod streaming;
mod streaming_probe;
mod tls_link;
mod verifier;

pub use run::{StartError, hold_signals, run};
pub use tls_link::check;
