//! Servers under test: found, started on a free port, pinned, watched, stopped.

use crate::connection::{Login, Target};
use crate::interrupt;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use percent_encoding::percent_decode_str;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use url::Url;

/// More than any scenario has servers.
const GIVEN_REMEMBERED: usize = 64;

#[derive(Clone, Debug)]
pub struct Program {
    pub name: String,
    pub path: PathBuf,
    pub arguments: Vec<String>,
}

impl FromStr for Program {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, path) = text.split_once('=').ok_or("expected NAME=PATH")?;
        let path = PathBuf::from(path);
        match path.exists() {
            true => Ok(Self {
                name: name.into(),
                path,
                arguments: Vec::new(),
            }),
            false => Err(format!("there is no {}", path.display())),
        }
    }
}

impl Program {
    /// Stands for a server that runs already.
    pub fn running() -> Self {
        Self {
            name: "server".into(),
            path: PathBuf::new(),
            arguments: Vec::new(),
        }
    }

    /// A server found on the PATH, by the first of these names.
    pub fn installed(names: &[&str]) -> Option<Self> {
        let path = std::env::var_os("PATH")?;
        let folders: Vec<PathBuf> = std::env::split_paths(&path)
            .chain([PathBuf::from("/usr/sbin")])
            .collect();
        names.iter().find_map(|name| {
            let path = folders
                .iter()
                .map(|folder| folder.join(name))
                .find(|path| path.is_file())?;
            Some(Self {
                name: (*name).into(),
                path,
                arguments: Vec::new(),
            })
        })
    }

    /// The same with so many event loops, where it has such a thing: midge, or whatever is told of `--threads`.
    pub fn with_loops(&self, loops: u16) -> Self {
        let has_loops = self.version().starts_with("midge ");
        Self {
            arguments: with_loops(&self.arguments, loops, has_loops),
            ..self.clone()
        }
    }

    pub fn version(&self) -> String {
        let output = Command::new(&self.path).arg("-v").output();
        output.map_or(String::new(), |output| {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        })
    }

    /// Starts it on a free port, bound to one CPU, and waits for its INFO. `more` goes behind its own
    /// arguments.
    pub fn start(&self, cpu: usize, more: &[String]) -> Result<Server, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", self.path.display());
        let port = free_port().map_err(failed)?;
        let mut command = Command::new(&self.path);
        command
            .args(["-a", "127.0.0.1", "-p", &port.to_string()])
            .args(&self.arguments)
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = interrupt::spawn(&mut command).map_err(failed)?;
        let said = child.stderr.take().map(last_words);
        let mut server = Server {
            process: Some(child),
            address: ([127, 0, 0, 1], port).into(),
        };
        // Threads started later inherit this; those there already are pinned one by one below.
        pin(server.id(), cpu)?;
        let end = Instant::now() + START_GRACE;
        while !server.answers() {
            let outcome = match server.exit_status() {
                Some(status) => format!("ended ({status}) before it sent INFO on port {port}"),
                None if Instant::now() > end => format!("does not send INFO on port {port}"),
                None => {
                    std::thread::sleep(ASK_EVERY);
                    continue;
                }
            };
            drop(server);
            // Whoever it started may have its stderr still.
            let said = said.and_then(|said| said.recv_timeout(Duration::from_secs(1)).ok());
            let said = said.filter(|text| !text.is_empty());
            return Err(format!(
                "{} {outcome}; {}",
                self.command_line(more),
                said.map_or("nothing on stderr".into(), |text| format!(
                    "its stderr:\n{text}"
                ))
            ));
        }
        for task in server.tasks() {
            match pin(task, cpu) {
                // It has ended since it was listed.
                Err(_) if !server.tasks().contains(&task) => {}
                pinned => pinned?,
            }
        }
        Ok(server)
    }

    fn command_line(&self, more: &[String]) -> String {
        let mut words = vec![self.path.display().to_string()];
        words.extend(self.arguments.iter().chain(more).cloned());
        words.join(" ")
    }
}

/// These arguments, but for so many event loops. `has_loops`: also where they do not say how many.
fn with_loops(arguments: &[String], loops: u16, has_loops: bool) -> Vec<String> {
    let (mut kept, mut told) = (Vec::new(), has_loops);
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match word.strip_prefix("--").or(word.strip_prefix('-')) {
            Some("threads") => told |= words.next().is_some(),
            Some(flag) if flag.starts_with("threads=") => told = true,
            _ => kept.push(word.clone()),
        }
    }
    if told {
        kept.extend(["--threads".into(), loops.to_string()]);
    }
    kept
}

/// Within it a server sends INFO.
const START_GRACE: Duration = Duration::from_secs(10);
/// How often it is asked meanwhile: what a server that joins goes through is timed from its first answer.
const ASK_EVERY: Duration = Duration::from_millis(2);
const LAST_BYTES_MAX: usize = 4096;
const LAST_LINES_MAX: usize = 8;

/// Reads what a server says for as long as it can say something, or it would wait for us; the last lines are sent at its end.
fn last_words(mut stderr: ChildStderr) -> Receiver<String> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut last, mut bytes) = (Vec::new(), [0; LAST_BYTES_MAX]);
        while let Ok(read) = stderr.read(&mut bytes)
            && read > 0
        {
            last.extend_from_slice(&bytes[..read]);
            last.drain(..last.len().saturating_sub(LAST_BYTES_MAX));
        }
        let text = String::from_utf8_lossy(&last);
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        let from = lines.len().saturating_sub(LAST_LINES_MAX);
        // Nobody waits for those of a server that has started.
        let _ = tell.send(lines[from..].join("\n"));
    });
    told
}

/// One that nobody listens at, and that was not given before: it may be that nobody listens there yet.
pub fn free_port() -> std::io::Result<u16> {
    static GIVEN: Mutex<VecDeque<u16>> = Mutex::new(VecDeque::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        if !given.contains(&port) {
            given.push_back(port);
            if given.len() > GIVEN_REMEMBERED {
                given.pop_front();
            }
            return Ok(port);
        }
    }
}

/// What may be shown of a URL.
pub fn without_login(url: &str) -> String {
    match (url.find("://").map_or(0, |at| at + 3), url.rfind('@')) {
        (start, Some(end)) if end >= start => format!("{}{}", &url[..start], &url[end + 1..]),
        _ => url.into(),
    }
}

/// Host and port of nats://USER:PASSWORD@HOST:PORT, and who connects; what has no password is a token, as for clients.
fn parsed(url: &str) -> Result<(String, Option<Login>), String> {
    const PORT: u16 = 4222;
    let shown = without_login(url);
    let whole = match url.contains("://") {
        true => url.to_owned(),
        false => format!("nats://{url}"),
    };
    let parsed = Url::parse(&whole).map_err(|error| format!("{shown}: {error}"))?;
    if parsed.scheme() != "nats" {
        return Err(format!(
            "{shown}: only nats://HOST:PORT can be loaded, without TLS"
        ));
    }
    let host = parsed
        .host_str()
        .filter(|host| !host.is_empty())
        .ok_or_else(|| format!("{shown}: no host"))?;
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let login = match (parsed.username(), parsed.password()) {
        ("", None) => None,
        (token, None) => Some(Login::Token(decoded(token))),
        (name, Some(password)) => Some(Login::User {
            name: decoded(name),
            password: decoded(password),
        }),
    };
    Ok((format!("{host}:{}", parsed.port().unwrap_or(PORT)), login))
}

pub struct Server {
    /// None: somebody else's, of which only the address is known.
    process: Option<Child>,
    pub address: SocketAddr,
}

impl Server {
    /// A server that runs already, and who may connect to it.
    pub fn running(url: &str) -> Result<(Self, Option<Login>), String> {
        let (address, login) = parsed(url)?;
        let shown = without_login(url);
        let mut found = address
            .to_socket_addrs()
            .map_err(|error| format!("{shown}: {error}"))?;
        let address = found.next().ok_or_else(|| format!("{shown}: no address"))?;
        let server = Self {
            process: None,
            address,
        };
        match server.answers() {
            true => Ok((server, login)),
            false => Err(format!("{shown}: no NATS server answers")),
        }
    }

    pub fn id(&self) -> i32 {
        self.process.as_ref().map_or(0, |child| child.id() as i32)
    }

    /// None: it runs, or is not ours.
    fn exit_status(&mut self) -> Option<ExitStatus> {
        let process = self.process.as_mut()?;
        let status = process.try_wait().ok()??;
        interrupt::forget(process.id());
        // Its id may be somebody else's now.
        self.process = None;
        Some(status)
    }

    /// For clients of one that asks nobody who they are.
    pub fn target(&self) -> Target {
        Target {
            address: self.address,
            tls: None,
            login: None,
        }
    }

    /// Asks it to end, and waits until it has.
    pub fn end(&self) -> Result<(), String> {
        let pid = Pid::from_raw(self.id());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)
            .map_err(|error| format!("SIGINT: {error}"))?;
        let end = Instant::now() + Duration::from_secs(10);
        // It stays as a zombie until it is dropped.
        let is_there = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit(") ")
                .next()
                .is_some_and(|rest| !rest.starts_with('Z'))
        };
        while is_there() {
            if Instant::now() > end {
                return Err("the server does not end".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn answers(&self) -> bool {
        let Ok(stream) = TcpStream::connect(self.address) else {
            return false;
        };
        let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
        let mut line = String::new();
        BufReader::new(stream)
            .read_line(&mut line)
            .is_ok_and(|_| line.starts_with("INFO "))
    }

    fn tasks(&self) -> Vec<i32> {
        let folder = format!("/proc/{}/task", self.id());
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect()
    }

    /// CPU time of the process so far, in nanoseconds, as the scheduler counts it, also of threads that have ended; None: not ours to see.
    pub fn cpu_ns(&self) -> Result<Option<u64>, String> {
        match &self.process {
            Some(_) => cpu_ns(self.id()).map(Some),
            None => Ok(None),
        }
    }

    fn status(&self, name: &str) -> u64 {
        if self.process.is_none() {
            return 0;
        }
        let text =
            std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .unwrap_or(0)
            * 1024
    }

    /// Resident bytes now, and at most so far.
    pub fn memory(&self) -> u64 {
        self.status("VmRSS:")
    }

    pub fn peak_memory(&self) -> u64 {
        self.status("VmHWM:")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Asked first: what it writes at its end (a store, a profile for the compiler) is to be whole.
        let ended = self.process.is_some() && self.end().is_ok();
        if let Some(child) = &mut self.process {
            if !ended {
                let _ = child.kill();
            }
            // Its id is its own until it is waited for.
            interrupt::forget(child.id());
            let _ = child.wait();
        }
    }
}

fn cpu_ns(id: i32) -> Result<u64, String> {
    let clock = clock_getcpuclockid(Pid::from_raw(id));
    let time = clock.and_then(clock_gettime);
    time.map(|time| Duration::from(time).as_nanos() as u64)
        .map_err(|error| format!("CPU time of process {id}: {error}"))
}

/// Binds a task (0: the calling thread and those it starts) to one CPU.
pub fn pin(task: i32, cpu: usize) -> Result<(), String> {
    let mut set = CpuSet::new();
    set.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(task), &set))
        .map_err(|error| format!("CPU {cpu}: {error}"))
}

/// CPUs that the calling thread may run on.
pub fn usable_cpus() -> Result<Vec<usize>, String> {
    let set = sched_getaffinity(Pid::from_raw(0)).map_err(|error| format!("CPUs: {error}"))?;
    let all = 0..CpuSet::count();
    Ok(all.filter(|cpu| set.is_set(*cpu) == Ok(true)).collect())
}

pub fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn start(script: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        let program: Program = format!("x={}", path.display()).parse().unwrap();
        let cpu = usable_cpus().unwrap()[0];
        program.start(cpu, &[]).err().expect("it is no server")
    }

    #[test]
    fn threads_that_ended_count() {
        let id = std::process::id() as i32;
        let before = cpu_ns(id).unwrap();
        let work = || {
            let end = Instant::now() + Duration::from_millis(20);
            while Instant::now() < end {}
        };
        std::thread::spawn(work).join().unwrap();
        assert!(cpu_ns(id).unwrap() > before);
        // More than any process has on Linux; far greater ones do not fit a clock's id.
        assert!(cpu_ns(5_000_000).unwrap_err().contains("5000000"));
    }

    #[test]
    fn so_many_loops_whatever_was_told_before() {
        let of = |arguments: &str, has_loops| {
            let words: Vec<String> = arguments.split_whitespace().map(Into::into).collect();
            with_loops(&words, 2, has_loops).join(" ")
        };
        for told in ["--threads 1 -D", "-threads=1 -D", "-D --threads=4", "-D"] {
            assert_eq!(of(told, true), "-D --threads 2", "{told}");
        }
        assert_eq!(of("", true), "--threads 2");
        assert_eq!(of("--threads 1", false), "--threads 2");
        assert_eq!(of("-D", false), "-D");
    }

    #[test]
    fn urls_of_running_servers() {
        let of = |url| parsed(url).map_err(|error| error.contains(url));
        let user = |name: &str, password: &str| Login::User {
            name: name.into(),
            password: password.into(),
        };
        assert_eq!(of("nats://host:1"), Ok(("host:1".into(), None)));
        assert_eq!(of("host"), Ok(("host:4222".into(), None)));
        assert_eq!(of("127.0.0.1:5"), Ok(("127.0.0.1:5".into(), None)));
        assert_eq!(of("nats://[::1]/"), Ok(("[::1]:4222".into(), None)));
        let login = Some(user("a", "b@c"));
        assert_eq!(of("nats://a:b%40c@host"), Ok(("host:4222".into(), login)));
        let token = Some(Login::Token("t".into()));
        assert_eq!(of("nats://t@host:1"), Ok(("host:1".into(), token)));
        for wrong in ["tls://host:1", "nats://", "http://host", "nats://host:x"] {
            assert_eq!(of(wrong), Err(true), "{wrong}");
        }
        let error = parsed("tls://u:secret@host:1").unwrap_err();
        assert!(error.starts_with("tls://host:1: "), "{error}");
        assert_eq!(without_login("u:p@q@host"), "host");
    }

    #[test]
    fn a_server_that_does_not_start_is_quoted() {
        let error = start("for i in 1 2 3 4 5 6 7 8 9; do echo line $i >&2; done; exit 3");
        for words in ["/server ended (exit status: 3)", "\nline 2\n", "\nline 9"] {
            assert!(error.contains(words), "{words:?} is missing in {error}");
        }
        assert!(!error.contains("line 1"), "{error}");
        assert!(start("exit 1").ends_with("; nothing on stderr"));
    }
}
