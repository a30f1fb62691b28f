//! midge-bench: runs the same load against several NATS servers and compares what it costs them.
//!
//! Server and load run on different CPUs. The figure to compare is the CPU time the server used per
//! published message, from the kernel's own accounting: it does not depend on how fast the load
//! generator is, as long as the server keeps up.

mod arguments;
mod bed;
mod compare;
mod connection;
mod html;
mod idle;
mod interrupt;
mod machine;
mod progress;
mod publish;
mod receive;
mod relay;
mod report;
mod rounds;
mod scenarios;
mod server;
mod session;
mod stan;
mod stats;

use arguments::{Arguments, Command, CompareArguments};
use clap::Parser as _;
use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::List => list(),
        Command::Run(arguments) => interrupt::watch().and_then(|()| session::run(&arguments)),
        Command::Hold(arguments) => idle::hold(&arguments),
        Command::Compare(CompareArguments {
            first,
            second,
            within,
        }) => compare::compare(&first, &second, within).and_then(|(table, agree)| {
            print!("{table}");
            match agree {
                true => Ok(()),
                false => Err("the two reports do not agree".into()),
            }
        }),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The terminal may be gone.
            let _ = writeln!(std::io::stderr(), "midge-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn list() -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    for scenario in scenarios::each() {
        if writeln!(out, "{:<35} {}", scenario.name, scenario.about).is_err() {
            // Whoever reads has seen enough.
            break;
        }
    }
    Ok(())
}
