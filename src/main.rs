//! Flags to options, options to a running server, and how that went to an exit status. Elsewhere a process is ended only where
//! that cannot come up to here: by the streaming engine (server/streaming.rs), and by signals to whoever has changed the
//! terminal (passwd.rs, top/app.rs).

use midge::config::cli::{self, Command};
use midge::{admin, logging, passwd, server};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = cli::program_name(arguments.next().as_deref());
    let arguments: Vec<String> = arguments
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    if let [command, rest @ ..] = arguments.as_slice()
        && command == "passwd"
    {
        return match passwd::run(rest) {
            Ok(text) => {
                print!("{text}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("{program}: {error}");
                ExitCode::FAILURE
            }
        };
    }
    if let [command, rest @ ..] = arguments.as_slice()
        && command == "stan"
    {
        return admin::run(rest);
    }
    match cli::parse(&program, arguments) {
        Ok(Command::Print(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Ok(Command::Signal(request)) => match request.send() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&program, &error),
        },
        Ok(Command::Check {
            options,
            warnings,
            verdict,
        }) => match server::check(&options) {
            Ok(more) => {
                for warning in warnings.iter().chain(&more) {
                    println!("warning: {warning}");
                }
                println!("{verdict}");
                ExitCode::SUCCESS
            }
            Err(error) => fail(&program, &error),
        },
        Ok(Command::Run {
            source,
            options,
            warnings,
        }) => {
            let started = server::hold_signals()
                .map_err(|error| error.to_string())
                .and_then(|_| logging::init(&options));
            if let Err(error) = started {
                return fail(&program, &error);
            }
            for warning in warnings {
                log::warn!("{warning}");
            }
            let result = server::run(&source, *options);
            if let Err(error) = &result {
                log::error!(target: logging::FATAL, "{error}");
            }
            logging::flush();
            if result.is_ok() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => fail(&program, &error),
    }
}

fn fail(program: &str, error: &str) -> ExitCode {
    eprintln!("{program}: {error}\nTry '{program} --help'.");
    ExitCode::FAILURE
}
