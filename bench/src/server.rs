//! Servers under test: found, started on a free port, pinned, watched, stopped.

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

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

    /// The same with two event loops, where it has such a thing.
    pub fn with_two_loops(&self) -> Self {
        let mut program = self.clone();
        let threads = program
            .arguments
            .iter()
            .position(|word| word == "--threads");
        if let Some(value) = threads.and_then(|at| program.arguments.get_mut(at + 1)) {
            *value = "2".into();
        }
        program
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
        let child = Command::new(&self.path)
            .args(["-a", "127.0.0.1", "-p", &port.to_string()])
            .args(&self.arguments)
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let server = Server {
            process: Some(child),
            address: ([127, 0, 0, 1], port).into(),
        };
        // Threads started later inherit this; those there already are pinned one by one below.
        pin(server.id(), cpu)?;
        let end = Instant::now() + Duration::from_secs(10);
        while !server.answers() {
            if Instant::now() > end {
                return Err(format!(
                    "{} {} does not send INFO on port {port}",
                    self.path.display(),
                    more.join(" ")
                ));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        for task in server.tasks() {
            pin(task, cpu)?;
        }
        Ok(server)
    }
}

pub fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

pub struct Server {
    /// None: somebody else's, of which only the address is known.
    process: Option<Child>,
    pub address: SocketAddr,
}

impl Server {
    /// A server that runs already.
    pub fn running(url: &str) -> Result<Self, String> {
        let address = url.strip_prefix("nats://").unwrap_or(url);
        let mut found = address
            .to_socket_addrs()
            .map_err(|error| format!("{url}: {error}"))?;
        let address = found.next().ok_or_else(|| format!("{url}: no address"))?;
        let server = Self {
            process: None,
            address,
        };
        match server.answers() {
            true => Ok(server),
            false => Err(format!("{url}: no NATS server answers")),
        }
    }

    fn id(&self) -> i32 {
        self.process.as_ref().map_or(0, |child| child.id() as i32)
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

    /// CPU time of all threads so far, in nanoseconds, as the scheduler counts it; None: not ours to see.
    pub fn cpu_ns(&self) -> Option<u64> {
        self.process.as_ref()?;
        let of = |task: &i32| {
            let text =
                std::fs::read_to_string(format!("/proc/{}/task/{task}/schedstat", self.id()))
                    .ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        };
        Some(self.tasks().iter().filter_map(of).sum())
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
            let _ = child.wait();
        }
    }
}

/// Binds a task (0: the calling thread and those it starts) to one CPU.
pub fn pin(task: i32, cpu: usize) -> Result<(), String> {
    let mut set = CpuSet::new();
    set.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(task), &set))
        .map_err(|error| format!("CPU {cpu}: {error}"))
}

pub fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
