//! The command line.

use crate::server::Program;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    about = "Compares NATS servers: speed, CPU per message, latency, memory",
    version
)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Names the scenarios
    List,
    /// Runs scenarios against servers, side by side in slices
    Run(Box<RunArguments>),
    /// Holds two reports against each other: their ratios, and whether those agree
    Compare(CompareArguments),
    /// Holds idle connections for a run
    #[command(hide = true)]
    Hold(HoldArguments),
}

#[derive(clap::Args)]
pub struct HoldArguments {
    /// Of the server
    pub address: std::net::SocketAddr,
    pub count: usize,
}

#[derive(clap::Args)]
pub struct CompareArguments {
    /// A report of `run --json`
    pub first: String,
    /// Another one, of the same servers
    pub second: String,
    /// Percent a ratio may be apart
    #[arg(long, default_value_t = 15.0)]
    pub within: f64,
}

#[derive(clap::Args)]
pub struct RunArguments {
    /// The server to judge: NAME=PATH; started directly, so that a script in its place must `exec` it
    #[arg(long, required_unless_present = "url")]
    pub server: Option<Program>,
    /// Further arguments for it, in one string
    #[arg(long, default_value = "--threads 1", allow_hyphen_values = true)]
    pub server_args: String,
    /// A server to compare with: NAME=PATH, started directly as well; an installed nats-server or gnatsd when none is given
    #[arg(long)]
    pub peer: Vec<Program>,
    /// A streaming server to compare with: NAME=PATH; an installed nats-streaming-server when none is given
    #[arg(long)]
    pub streaming_peer: Vec<Program>,
    /// Do not compare with an installed server
    #[arg(long)]
    pub no_peer: bool,
    /// Load a server that runs already, at nats://HOST:PORT (USER:PASSWORD@ or TOKEN@ before the host, if need be), in place of starting any;
    /// its CPU time is not known then
    #[arg(long, conflicts_with_all = ["server", "peer", "streaming_peer"])]
    pub url: Option<String>,
    /// Scenarios whose names hold one of these words
    #[arg(long)]
    pub scenario: Vec<String>,
    /// Measured seconds per run; some scenarios take a multiple of it
    #[arg(long, default_value_t = 0.25, value_parser = seconds)]
    pub seconds: f64,
    /// Runs per server and scenario, at least [default: 12]; more until fifteen seconds are over, and where the ratio is so unsure that
    /// another report could well say something else
    #[arg(long, value_parser = repeat)]
    pub repeat: Option<usize>,
    /// Runs per server and scenario, at most
    #[arg(long, default_value_t = 300, value_parser = repeat)]
    pub repeat_max: usize,
    /// Seconds after which a scenario gets no more runs than the least number; several that are measured by one run have as many times that
    #[arg(long, default_value_t = 120.0, value_parser = seconds)]
    pub time_max: f64,
    /// One short run of each: a check that everything works, no measurement
    #[arg(long)]
    pub quick: bool,
    /// CPU for the server; the first one this program may use, if not given
    #[arg(long)]
    pub server_cpu: Option<usize>,
    /// CPU for the load; the first one that is left, if not given
    #[arg(long)]
    pub load_cpu: Option<usize>,
    /// Write all figures to this file
    #[arg(long)]
    pub json: Option<String>,
    /// Write the tables to this file
    #[arg(long)]
    pub markdown: Option<String>,
    /// Write tables and plots to this file
    #[arg(long)]
    pub html: Option<String>,
}

/// Who looks at fewer rounds finds too often, by luck, that they agree.
pub const REPEAT: usize = 12;

/// More than a day is a mistake.
const SECONDS_MAX: f64 = 86_400.0;

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= SECONDS_MAX => Ok(seconds),
        _ => Err(format!("expected more than 0 and at most {SECONDS_MAX}")),
    }
}

fn repeat(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(repeat) if repeat > 0 => Ok(repeat),
        _ => Err("expected 1 or more".into()),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// What `run` gets of these, beside a server.
    pub fn run_arguments(more: &[&str]) -> Result<RunArguments, String> {
        let words = [
            "midge-bench",
            "run",
            "--server",
            "x=/bin/false",
            "--no-peer",
        ];
        let parsed = Arguments::try_parse_from(words.iter().chain(more));
        match parsed.map_err(|error| error.to_string())?.command {
            Command::Run(arguments) => Ok(*arguments),
            _ => unreachable!("`run` was asked for"),
        }
    }
}
