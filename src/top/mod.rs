//! midge-top: a server, or a whole cluster, at a glance, in a terminal.
//!
//! Whatever server is looked at, midge, gnatsd, nats-server or nats-streaming-server, it is seen
//! through its monitoring port alone. May import util. Must not know server or broker.
//!
//! An answer's way: `fetch` gets and reads it on a thread per server (`poll`), `fleet` keeps what is known
//! of each server with its `rates`, `rows` makes tables of that, `draw` a frame, and `app` shows it and
//! takes keys. `run` begins all that, or writes a snapshot for scripts (`text`). Only `fetch`, `poll`,
//! `names`, `app` and `run` touch the world; the rest is given what it needs.

mod app;
mod draw;
mod fetch;
mod fleet;
mod help;
mod json;
mod names;
mod options;
mod poll;
mod rates;
mod rows;
pub mod run;
mod text;
mod units;
