//! A server, or a whole cluster, at a glance; the front door of `midge::top`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = std::env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned());
    match midge::top::run::main(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("midge-top: {error}\nTry 'midge-top -help'.");
            ExitCode::FAILURE
        }
    }
}
