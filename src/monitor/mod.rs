//! The monitoring port without sockets: requests, documents, metrics, the live page.
//!
//! May import util and config. Must not know live state: it gets values that were copied out.

pub mod http;
pub mod metrics;
pub mod model;
pub mod query;
pub mod streaming;
