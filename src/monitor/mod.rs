//! Monitoring: what is shown, and HTTP as text in and text out.
//!
//! May import util, config and plain snapshots. Must not know the ring or live state.

pub mod http;
pub mod model;
