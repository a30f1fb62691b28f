//! Starts the real binary and speaks to it over raw sockets.
#![allow(dead_code)] // each test file uses its own part

pub mod stan;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long anything that must come may take on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Server {
    child: Child,
    pub port: u16,
    log: Arc<Mutex<String>>,
}

/// A loopback port that is free now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

impl Server {
    pub fn start(arguments: &[&str]) -> Server {
        // Somebody else may take the port between our look and the start.
        for _ in 0..5 {
            if let Some(server) = Self::try_start(free_port(), arguments) {
                return server;
            }
        }
        panic!("the server does not start");
    }

    pub fn start_at(port: u16, arguments: &[&str]) -> Server {
        Self::try_start(port, arguments).expect("the server starts")
    }

    /// With so many descriptors and no more.
    pub fn start_with_files(files: u32, port: u16, arguments: &[&str]) -> Server {
        let mut shell = Command::new("sh");
        let script = format!("ulimit -n {files} && exec \"$0\" \"$@\"");
        shell.args(["-c", &script, env!("CARGO_BIN_EXE_midge")]);
        Self::try_command(shell, port, arguments).expect("the server starts")
    }

    fn try_start(port: u16, arguments: &[&str]) -> Option<Server> {
        let command = Command::new(env!("CARGO_BIN_EXE_midge"));
        Self::try_command(command, port, arguments)
    }

    fn try_command(mut command: Command, port: u16, arguments: &[&str]) -> Option<Server> {
        let mut child = command
            .args(["-a", "127.0.0.1", "-p", &port.to_string()])
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (ready, wait) = std::sync::mpsc::channel();
        std::thread::spawn({
            let log = log.clone();
            move || {
                for line in stderr.lines().map_while(Result::ok) {
                    if line.contains("Server is ready") {
                        let _ = ready.send(());
                    }
                    *log.lock().unwrap() += &(line + "\n");
                }
            }
        });
        let started = wait.recv_timeout(PATIENCE).is_ok();
        let server = Server { child, port, log };
        match started {
            true => Some(server),
            false => {
                eprintln!("{}", server.log());
                None
            }
        }
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn wait_log(&self, words: &str) {
        until(words, || self.log().contains(words));
    }

    pub fn client(&self) -> Client {
        let mut client = Client::raw(self.port);
        client.send(b"CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true}\r\n");
        client.ping();
        client
    }

    /// Resident bytes.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
            * 1024
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// SIGHUP, and waits for the line that says how it went.
    pub fn reload(&self) {
        let told = || {
            let log = self.log();
            let ends = ["Failed to reload server", "Reloaded server"];
            ends.map(|words| log.matches(words).count())
        };
        let before = told();
        self.signal(nix::sys::signal::Signal::SIGHUP);
        until("the end of a reload", || told() != before);
    }

    /// The end without a warning.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn stop(mut self) {
        self.signal(nix::sys::signal::Signal::SIGINT);
        assert!(self.child.wait().unwrap().success(), "{}", self.log());
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of the server\n{}", self.log());
        }
    }
}

/// The program as it is, for what `Server` does otherwise: its ports, where it listens, where its log goes. It does
/// not outlive the test.
pub struct Process(Child);

impl Process {
    /// Waits until it has told in the folder where it listens.
    pub fn start(folder: &Path, stderr: Stdio, arguments: &[&str]) -> (Self, Ports) {
        let child = Command::new(env!("CARGO_BIN_EXE_midge"))
            .args(arguments)
            .arg("--ports_file_dir")
            .arg(folder)
            .stdin(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let process = Self(child);
        let ports = Ports::of(&process.0, folder);
        (process, ports)
    }

    /// Asks it to end, and waits for that.
    pub fn end(mut self) -> ExitStatus {
        let pid = nix::unistd::Pid::from_raw(self.0.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let mut status = None;
        until("the end of the server", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn until(what: &str, done: impl FnMut() -> bool) {
    until_or(|| format!("waited in vain for: {what}"), done);
}

/// The same with more to say in the end.
pub fn until_or(why: impl Fn() -> String, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "{}", why());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Info(String),
    Msg {
        subject: String,
        sid: String,
        reply: Option<String>,
        headers: Vec<u8>,
        payload: Vec<u8>,
    },
    Ok,
    Ping,
    Pong,
    Err(String),
    Eof,
}

impl Op {
    pub fn payload(&self) -> &[u8] {
        match self {
            Op::Msg { payload, .. } => payload,
            other => panic!("expected a message, got {other:?}"),
        }
    }
}

/// A strict reader of what the server says.
pub struct Client {
    pub stream: TcpStream,
    reader: BufReader<TcpStream>,
    /// Read on the way to a PONG.
    kept: std::collections::VecDeque<Op>,
}

impl Client {
    pub fn raw(port: u16) -> Client {
        let stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let reader = BufReader::with_capacity(256 << 10, stream.try_clone().unwrap());
        let mut client = Client {
            stream,
            reader,
            kept: Default::default(),
        };
        assert!(matches!(client.op(), Op::Info(_)));
        client
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn publish(&mut self, subject: &str, payload: &[u8]) {
        let mut bytes = format!("PUB {subject} {}\r\n", payload.len()).into_bytes();
        bytes.extend_from_slice(payload);
        bytes.extend_from_slice(b"\r\n");
        self.send(&bytes);
    }

    pub fn op(&mut self) -> Op {
        match self.kept.pop_front() {
            Some(op) => op,
            None => self.read_op(),
        }
    }

    /// The next thing the server says; its PINGs are answered on the way.
    pub fn read_op(&mut self) -> Op {
        loop {
            match self.read_any() {
                Op::Ping => self.send(b"PONG\r\n"),
                op => return op,
            }
        }
    }

    /// The next thing the server says; PINGs are left unanswered.
    pub fn read_any(&mut self) -> Op {
        let mut line = Vec::new();
        match self.reader.read_until(b'\n', &mut line) {
            Ok(0) => return Op::Eof,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Op::Eof,
            Err(error) => panic!("nothing came: {error}"),
        }
        let line = String::from_utf8(line).unwrap();
        let line = line
            .strip_suffix("\r\n")
            .unwrap_or_else(|| panic!("a line without CRLF: {line:?}"));
        let words: Vec<&str> = line.split(' ').collect();
        let size = |word: &str| word.parse::<usize>().unwrap();
        match *words.as_slice() {
            ["+OK"] => Op::Ok,
            ["PING"] => Op::Ping,
            ["PONG"] => Op::Pong,
            ["INFO", ..] => Op::Info(line[5..].into()),
            ["-ERR", ..] => Op::Err(line[5..].trim_matches('\'').into()),
            ["MSG", subject, sid, bytes] => self.message(subject, sid, None, 0, size(bytes)),
            ["MSG", subject, sid, reply, bytes] => {
                self.message(subject, sid, Some(reply), 0, size(bytes))
            }
            ["HMSG", subject, sid, head, bytes] => {
                self.message(subject, sid, None, size(head), size(bytes))
            }
            ["HMSG", subject, sid, reply, head, bytes] => {
                self.message(subject, sid, Some(reply), size(head), size(bytes))
            }
            _ => panic!("unknown line {line:?}"),
        }
    }

    /// As `read_op`, where the stream may end in the middle of something.
    pub fn read_op_or_cut(&mut self) -> Op {
        let mut byte = [0; 65536];
        match self.reader.read(&mut byte) {
            Ok(0) | Err(_) => Op::Eof,
            Ok(_) => Op::Ok,
        }
    }

    fn message(
        &mut self,
        subject: &str,
        sid: &str,
        reply: Option<&str>,
        head: usize,
        bytes: usize,
    ) -> Op {
        let mut body = vec![0; bytes + 2];
        self.reader.read_exact(&mut body).unwrap();
        assert!(body.ends_with(b"\r\n"));
        body.truncate(bytes);
        let payload = body.split_off(head);
        Op::Msg {
            subject: subject.into(),
            sid: sid.into(),
            reply: reply.map(Into::into),
            headers: body,
            payload,
        }
    }

    /// PING, and everything up to its PONG is kept for `op`.
    pub fn ping(&mut self) {
        self.send(b"PING\r\n");
        loop {
            match self.read_op() {
                Op::Pong => return,
                Op::Eof => panic!("closed instead of a PONG, after {:?}", self.kept),
                op => self.kept.push_back(op),
            }
        }
    }

    pub fn kept(&mut self) -> Vec<Op> {
        self.kept.drain(..).collect()
    }
}

/// Of the user with a key in docs/examples/modern.conf; good for nothing else.
pub const SEED: &str = "SUAP4PCGWTBJ42WOQYVP35CVIBSMPO66TBJ7RJ2NNEUI4KE3JPH4MSP27M";

/// A configuration file in a folder of its own.
pub struct File {
    pub folder: tempfile::TempDir,
    pub path: PathBuf,
}

impl File {
    pub fn new(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.conf");
        std::fs::write(&path, config).unwrap();
        Self { folder, path }
    }

    pub fn write(&self, config: &str) {
        std::fs::write(&self.path, config).unwrap();
    }

    pub fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }

    pub fn beside(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }
}

/// What the server says to a CONNECT and a PING: PONG, or an error.
pub fn login(port: u16, connect: &str) -> (Client, Op) {
    let mut client = Client::raw(port);
    client.send(format!("CONNECT {connect}\r\nPING\r\n").as_bytes());
    let answer = client.op();
    (client, answer)
}

pub fn enter(port: u16, user: &str, password: &str) -> Client {
    let (client, answer) = login(
        port,
        &format!(r#"{{"verbose":false,"pedantic":false,"user":"{user}","pass":"{password}"}}"#),
    );
    assert_eq!(answer, Op::Pong, "{user}");
    client
}

/// What a server that was given a folder for it says of where it listens.
pub struct Ports {
    pub file: PathBuf,
    pub urls: serde_json::Value,
}

impl Ports {
    /// Waits for it.
    fn of(server: &Child, folder: &Path) -> Self {
        let file = folder.join(format!("midge_{}.ports", server.id()));
        until("the ports file", || file.exists());
        let urls = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        Self { file, urls }
    }

    /// Of the first address of a kind.
    pub fn port(&self, kind: &str) -> u16 {
        let url = self.urls[kind][0].as_str().unwrap();
        url.rsplit_once(':').unwrap().1.parse().unwrap()
    }
}
