//! `-sl SIGNAL[=PID]`: tell a running server something.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Names under which a server may run.
const PROGRAMS: [&str; 3] = ["midge", "gnatsd", "nats-server"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignalRequest {
    signal: Signal,
    pid: Option<i32>,
}

pub fn parse(text: &str) -> Result<SignalRequest, String> {
    let parts: Vec<&str> = text.split('=').collect();
    let (word, pid) = match *parts.as_slice() {
        [word] => (word, None),
        [word, pid] => (word, Some(pid)),
        _ => {
            return Err(format!(
                "invalid signal parameters: [{}]",
                parts[2..].join(" ")
            ));
        }
    };
    let signal = match word {
        "stop" => Signal::SIGKILL,
        "quit" => Signal::SIGINT,
        "reopen" => Signal::SIGUSR1,
        "reload" => Signal::SIGHUP,
        "ldm" => Signal::SIGUSR2,
        "term" => Signal::SIGTERM,
        _ => return Err(format!("unknown signal {word:?}")),
    };
    let pid = match pid {
        None | Some("") => None,
        Some(text) => {
            // A number, or the path of a pid file.
            let written = match text.parse::<i32>() {
                Ok(_) => text.to_owned(),
                Err(_) => std::fs::read_to_string(text).unwrap_or_default(),
            };
            match written.trim().parse() {
                Ok(pid) if pid > 0 => Some(pid),
                _ => return Err(format!("invalid pid: {text}")),
            }
        }
    };
    Ok(SignalRequest { signal, pid })
}

impl SignalRequest {
    pub fn send(self) -> Result<(), String> {
        let pid = match self.pid {
            Some(pid) => pid,
            None => the_only_server()?,
        };
        kill(Pid::from_raw(pid), self.signal).map_err(|error| error.desc().to_lowercase())
    }
}

/// The one process that runs under one of our names, this one apart.
fn the_only_server() -> Result<i32, String> {
    let own = std::process::id() as i32;
    let mut found = Vec::new();
    let processes =
        std::fs::read_dir("/proc").map_err(|_| "unable to resolve pid, try providing one")?;
    for process in processes.flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        if pid != own && PROGRAMS.contains(&name.trim()) {
            found.push(pid);
        }
    }
    match *found {
        [] => Err("no gnatsd processes running".into()),
        [pid] => Ok(pid),
        _ => {
            found.sort_unstable();
            let list: Vec<String> = found.iter().map(i32::to_string).collect();
            Err(format!(
                "multiple gnatsd processes running:\n{}",
                list.join("\n")
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests() {
        assert_eq!(
            parse("reload=12"),
            Ok(SignalRequest {
                signal: Signal::SIGHUP,
                pid: Some(12)
            })
        );
        assert_eq!(
            parse("quit"),
            Ok(SignalRequest {
                signal: Signal::SIGINT,
                pid: None
            })
        );
        assert_eq!(
            parse("nonsense=1").unwrap_err(),
            "unknown signal \"nonsense\""
        );
        assert_eq!(parse("quit=abc").unwrap_err(), "invalid pid: abc");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        std::fs::write(&path, "12").unwrap();
        let request = format!("reload={}", path.display());
        assert_eq!(parse(&request).unwrap().pid, Some(12));
        assert_eq!(
            parse("quit=1=2").unwrap_err(),
            "invalid signal parameters: [2]"
        );
    }
}
