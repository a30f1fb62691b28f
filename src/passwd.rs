//! `midge passwd`: a password in, its bcrypt hash out, for `password` and `token` in the file.
//!
//! May import nothing of the crate. Must not know who reads the hash.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::termios::{self, LocalFlags, SetArg};
use std::io::{self, BufRead, IsTerminal, Write};

/// What gnatsd's own tool uses.
const COST_DEFAULT: u32 = 11;
/// bcrypt looks at no more than this.
const PASSWORD_BYTES_MAX: usize = 72;

pub const USAGE: &str = "
Usage: midge passwd [--cost N]

Reads a password, twice from a terminal or as one line from standard input,
and prints its bcrypt hash for the configuration file:

    authorization { user: derek, password: \"$2a$11$...\" }

    --cost N    work for one comparison, doubled by each step (default: 11)
";

/// Runs the command; `arguments` are those behind its name.
pub fn run(arguments: &[String]) -> Result<String, String> {
    let cost = match arguments {
        [] => COST_DEFAULT,
        [help] if matches!(help.trim_start_matches('-'), "h" | "help") => return Ok(USAGE.into()),
        [flag, cost] if matches!(flag.trim_start_matches('-'), "c" | "cost") => cost
            .parse()
            .ok()
            .filter(|cost| (4..=20).contains(cost))
            .ok_or("expected a cost from 4 to 20")?,
        _ => return Err(format!("passwd: unknown arguments\n{USAGE}")),
    };
    let password = read().map_err(|error| format!("cannot read the password: {error}"))?;
    hash(&password, cost).map(|hash| hash + "\n")
}

/// In the `$2a$` form, the only one that gnatsd knows.
fn hash(password: &str, cost: u32) -> Result<String, String> {
    match password.len() {
        0 => return Err("the password is empty".into()),
        1..=PASSWORD_BYTES_MAX => {}
        bytes => {
            return Err(format!(
                "the password has {bytes} bytes, of which bcrypt would see the first {PASSWORD_BYTES_MAX} alone"
            ));
        }
    }
    bcrypt::hash_with_result(password, cost)
        .map(|parts| parts.format_for_version(bcrypt::Version::TwoA))
        .map_err(|error| error.to_string())
}

fn read() -> io::Result<String> {
    let input = io::stdin();
    if !input.is_terminal() {
        return line();
    }
    let before = termios::tcgetattr(&input)?;
    let mut silent = before.clone();
    silent.local_flags.remove(LocalFlags::ECHO);
    silent.local_flags.insert(LocalFlags::ECHONL);
    restore_on_signal(before.clone())?;
    termios::tcsetattr(&input, SetArg::TCSAFLUSH, &silent)?;
    let both = ask("Password: ").and_then(|first| Ok((first, ask("Again: ")?)));
    termios::tcsetattr(&input, SetArg::TCSAFLUSH, &before)?;
    match both? {
        (first, second) if first == second => Ok(first),
        _ => Err(io::Error::other("the two are not the same")),
    }
}

/// Ctrl-C must not leave a terminal behind that shows nothing.
fn restore_on_signal(before: termios::Termios) -> io::Result<()> {
    let mut ends = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        ends.add(signal);
    }
    ends.thread_block()?;
    std::thread::spawn(move || {
        if let Ok(signal) = ends.wait() {
            let _ = termios::tcsetattr(io::stdin(), SetArg::TCSAFLUSH, &before);
            eprintln!();
            std::process::exit(128 + signal as i32);
        }
    });
    Ok(())
}

fn ask(prompt: &str) -> io::Result<String> {
    eprint!("{prompt}");
    io::stderr().flush()?;
    line()
}

fn line() -> io::Result<String> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_fit_their_passwords() {
        let made = hash("s3cret", 4).unwrap();
        assert!(made.starts_with("$2a$04$") && made.len() == 60, "{made}");
        assert!(bcrypt::verify("s3cret", &made).unwrap());
        assert!(!bcrypt::verify("s3creT", &made).unwrap());
        assert!(hash("", 4).is_err() && hash(&"x".repeat(73), 4).is_err());
        assert!(hash(&"x".repeat(72), 4).is_ok());
    }

    #[test]
    fn arguments() {
        let run =
            |arguments: &[&str]| run(&arguments.iter().map(|a| a.to_string()).collect::<Vec<_>>());
        assert!(run(&["--help"]).unwrap().contains("--cost"));
        assert!(run(&["--cost", "99"]).unwrap_err().contains("4 to 20"));
        assert!(run(&["secret"]).unwrap_err().contains("Usage"));
    }
}
