//! `-sl SIGNAL[=PID]`: tell a running server something.

use super::cli::{self, STREAMING_NAME};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Names under which a server may run.
const PROGRAMS: [&str; 4] = ["midge", "gnatsd", "nats-server", STREAMING_NAME];

/// As much of a name as the kernel keeps in `comm`.
const COMM_LEN_MAX: usize = 15;

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
        if pid != own && is_a_server(&process.path()) {
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

/// Whether a process, by its folder in /proc, has one of our names and serves: `midge stan` and the like do not.
fn is_a_server(process: &Path) -> bool {
    let read = |name: &str| std::fs::read(process.join(name)).unwrap_or_default();
    let comm = read("comm");
    let comm = comm.trim_ascii_end();
    let line = read("cmdline");
    let line = line.strip_suffix(b"\0").unwrap_or(&line);
    let mut words = line.split(|byte| *byte == 0);
    let called = words.next().unwrap_or_default();
    let named = |program: &&str| {
        if program.len() <= COMM_LEN_MAX {
            return comm == program.as_bytes();
        }
        // Others may begin alike: the whole name is that of the call, or of the file.
        let is_it = |path: &Path| path.file_name() == Some(OsStr::new(*program));
        comm == &program.as_bytes()[..COMM_LEN_MAX]
            && (is_it(Path::new(OsStr::from_bytes(called)))
                || std::fs::read_link(process.join("exe")).is_ok_and(|path| is_it(&path)))
    };
    let text = |word| String::from_utf8_lossy(word).into_owned();
    let arguments: Vec<String> = words.map(text).collect();
    PROGRAMS.iter().any(named) && cli::serves(&arguments)
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

    #[test]
    fn processes_are_known_by_their_whole_names() {
        let folder = tempfile::tempdir().unwrap();
        for (index, (name, arguments, known)) in [
            ("midge", &[][..], true),
            ("gnatsd", &["-p", "4222"], true),
            ("nats-streaming-server", &[], true),
            ("nats-streaming-exporter", &[], false),
            ("midges", &[], false),
            ("midge", &["-t"], false),
            ("midge", &["--signal", "reload"], false),
            ("nats-streaming-server", &["-sl=quit"], false),
        ]
        .into_iter()
        .enumerate()
        {
            let folder = folder.path().join(index.to_string());
            std::fs::create_dir(&folder).unwrap();
            let path = folder.join(name);
            std::os::unix::fs::symlink("/bin/sh", &path).unwrap();
            // It says when it runs, and does so until its input ends.
            let mut process = std::process::Command::new(path)
                .args(["-c", "echo; read line"])
                .args(arguments)
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let mut byte = [0];
            let mut output = process.stdout.take().unwrap();
            std::io::Read::read_exact(&mut output, &mut byte).unwrap();
            let found = is_a_server(Path::new(&format!("/proc/{}", process.id())));
            drop(process.stdin.take());
            process.wait().unwrap();
            assert_eq!(found, known, "{name} {arguments:?}");
        }
    }
}
