//! midge-top: what a NATS server, or several, are doing, read from their monitoring ports.
//!
//! `data` is what the ports say (any server's; missing fields are blanks), `rates` what two answers
//! make together, `frame` the text of a screen, `draw` the same on a terminal, `fetch` and `app` do
//! the talking. May import util and `monitor::model`. Must not know the server or the broker.

pub mod app;
pub mod data;
pub mod draw;
pub mod fetch;
pub mod frame;
pub mod options;
pub mod rates;
