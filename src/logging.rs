//! Log lines in the layout of gnatsd, written by a thread of their own.
//!
//! `[pid] YYYY/MM/DD HH:MM:SS.uuuuuu [LVL] text`. Whoever logs never waits: lines go through a
//! bounded queue, and when that is full they are counted and the count is logged later. What waits
//! in the queue is written at once, not line by line. May import util and config; must not know who
//! logs.

use crate::config::Options;
use log::{Level, LevelFilter, Record};
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::net::{TcpStream, ToSocketAddrs, UdpSocket};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::time::{Duration, Instant};

/// Target of records that end the process; they are labelled FTL.
pub const FATAL: &str = "fatal";

/// Target of the streaming part's debug lines, which have a switch of their own.
pub const STREAM_DEBUG: &str = "stan-debug";
/// And of its trace.
pub const STREAM_TRACE: &str = "stan-trace";

/// Lines waiting for the writer before more are dropped.
const QUEUE_LINES: usize = 16 << 10;
/// Lines are written together up to this size.
const BATCH_BYTES: usize = 64 << 10;
/// The writer comes before the event loops where it may: a line late by a time slice of each of
/// them is a line that is missing when something crashes. It has little to do.
const WRITER_NICE: i32 = -5;
/// A syslog server at the other end of a TCP connection may take this long.
const SYSLOG_PATIENCE: Duration = Duration::from_secs(2);
/// Time between attempts to reach one that was lost.
const SYSLOG_RETRY: Duration = Duration::from_secs(1);
/// The writer may hang this long before the rest of the process goes on without it.
const PATIENCE: Duration = Duration::from_secs(2);

static QUEUE: OnceLock<SyncSender<Job>> = OnceLock::new();
static DROPPED: AtomicU64 = AtomicU64::new(0);
static DROPPED_EVER: AtomicU64 = AtomicU64::new(0);
static DEBUG: AtomicBool = AtomicBool::new(false);
static TIMES: AtomicBool = AtomicBool::new(true);
static COLOURS: AtomicBool = AtomicBool::new(false);
/// The sink wants priorities in place of our times and labels.
static SYSLOG: AtomicBool = AtomicBool::new(false);

enum Job {
    Line(Vec<u8>),
    Switch(Sink),
    Reopen,
    Flush(Sender<()>),
}

enum Sink {
    Stderr,
    File(LogFile),
    Syslog { tag: String, wire: SyslogWire },
}

enum SyslogWire {
    Local {
        path: String,
        socket: UnixDatagram,
    },
    Udp(UdpSocket),
    Tcp {
        address: String,
        /// None while the server cannot be reached.
        stream: Option<TcpStream>,
        lost_at: Instant,
    },
}

struct LogFile {
    path: String,
    file: File,
    bytes: u64,
    /// It is moved away when it would grow beyond this; 0: never.
    bytes_max: u64,
    /// Moved files to keep; 0: all.
    files_max: usize,
}

/// Where the lines will go, opened and ready.
pub struct Prepared {
    sink: Sink,
    levels: Options,
}

/// Starts logging as the options say. Called once, before anything is logged.
pub fn init(options: &Options) -> Result<(), String> {
    let (queue, jobs) = sync_channel(QUEUE_LINES);
    QUEUE.set(queue).map_err(|_| "logging was started twice")?;
    let sink = open(options)?;
    set_levels(options);
    let body = move || {
        crate::util::set_thread_nice(WRITER_NICE);
        write_all(sink, &jobs);
    };
    std::thread::Builder::new()
        .name("log".into())
        .spawn(body)
        .map_err(|error| format!("log thread: {error}"))?;
    env_logger::Builder::new()
        .filter_level(LevelFilter::Off)
        .filter_module("midge", LevelFilter::Trace)
        .filter_module(FATAL, LevelFilter::Trace)
        .filter_module(STREAM_DEBUG, LevelFilter::Trace)
        .filter_module(STREAM_TRACE, LevelFilter::Trace)
        .format(format_line)
        .target(env_logger::Target::Pipe(Box::new(Enqueue)))
        .try_init()
        .map_err(|error| error.to_string())?;
    set_levels(options);
    Ok(())
}

/// Opens what changed options ask for, without writing to it yet.
pub fn prepare(options: &Options) -> Result<Prepared, String> {
    Ok(Prepared {
        sink: open(options)?,
        levels: options.clone(),
    })
}

/// Takes over changed options; lines logged before this still go where they went.
pub fn switch(prepared: Prepared) {
    send(Job::Switch(prepared.sink));
    set_levels(&prepared.levels);
}

/// Lines dropped since the start, because they came faster than they could be written.
pub fn dropped() -> u64 {
    DROPPED_EVER.load(Relaxed)
}

/// Opens the log file anew, after it was moved away.
pub fn reopen() {
    send(Job::Reopen);
}

/// Waits until everything logged so far is written, but not for long where it is not: a pipe that nobody reads
/// must not keep a server from ending.
pub fn flush() {
    let (done, wait) = channel();
    send(Job::Flush(done));
    let _ = wait.recv_timeout(PATIENCE);
}

/// What is no line is not dropped at once when the queue is full.
fn send(mut job: Job) {
    let Some(queue) = QUEUE.get() else { return };
    let until = Instant::now() + PATIENCE;
    loop {
        match queue.try_send(job) {
            Err(TrySendError::Full(back)) if Instant::now() < until => job = back,
            _ => return,
        }
        std::thread::sleep(PATIENCE / 400);
    }
}

fn set_levels(options: &Options) {
    DEBUG.store(options.debug, Relaxed);
    TIMES.store(options.logtime, Relaxed);
    let plain = options.log_file.is_empty() && !options.syslog && options.remote_syslog.is_empty();
    SYSLOG.store(options.log_file.is_empty() && !plain, Relaxed);
    COLOURS.store(plain && io::stderr().is_terminal(), Relaxed);
    log::set_max_level(match (options.trace, options.debug) {
        (true, _) => LevelFilter::Trace,
        (false, true) => LevelFilter::Debug,
        (false, false) => LevelFilter::Info,
    });
}

/// A file wins over a remote syslog, that over the local one, and standard error is what is left.
fn open(options: &Options) -> Result<Sink, String> {
    if !options.log_file.is_empty() {
        let path = &options.log_file;
        let file = LogFile::open(path, options.log_size_bytes_max, options.log_files_max)
            .map_err(|error| format!("could not open log file {path}: {error}"))?;
        return Ok(Sink::File(file));
    }
    let tag = std::env::args().next().unwrap_or_default();
    let tag = tag.rsplit('/').next().unwrap_or_default().to_owned();
    if !options.remote_syslog.is_empty() {
        let url = &options.remote_syslog;
        let (network, address) = url.split_once("://").unwrap_or((url, ""));
        let address = match network {
            "udp" | "tcp" => address.trim_end_matches('/'),
            _ => address,
        };
        let failed = |error: io::Error| format!("error connecting to syslog {url}: {error}");
        let wire = match network {
            "udp" => {
                let socket = UdpSocket::bind(if address.starts_with('[') {
                    "[::]:0"
                } else {
                    "0.0.0.0:0"
                })
                .map_err(failed)?;
                socket.connect(address).map_err(failed)?;
                SyslogWire::Udp(socket)
            }
            "tcp" => SyslogWire::Tcp {
                address: address.to_owned(),
                stream: Some(connect(address).map_err(failed)?),
                lost_at: Instant::now(),
            },
            "unix" | "unixgram" => SyslogWire::local(address).map_err(failed)?,
            other => return Err(format!("error invalid network type: {other:?}")),
        };
        return Ok(Sink::Syslog { tag, wire });
    }
    if options.syslog {
        let wire = SyslogWire::local("/dev/log")
            .map_err(|error| format!("error connecting to syslog: {error}"))?;
        return Ok(Sink::Syslog { tag, wire });
    }
    Ok(Sink::Stderr)
}

fn local_syslog(path: &str) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    Ok(socket)
}

fn connect(address: &str) -> io::Result<TcpStream> {
    let mut result = Err(io::ErrorKind::AddrNotAvailable.into());
    for address in address.to_socket_addrs()? {
        result = TcpStream::connect_timeout(&address, SYSLOG_PATIENCE);
        if let Ok(stream) = &result {
            stream.set_write_timeout(Some(SYSLOG_PATIENCE))?;
            break;
        }
    }
    result
}

fn open_file(path: &str) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o660)
        .open(path)
}

/// Label and colour of a record, and its syslog severity.
fn label(record: &Record<'_>) -> (&'static str, u8, u8) {
    match (record.target(), record.level()) {
        (FATAL, _) => ("FTL", 31, 2),
        (STREAM_DEBUG, _) => ("DBG", 36, 7),
        (STREAM_TRACE, _) => ("TRC", 33, 5),
        (_, Level::Error) => ("ERR", 31, 3),
        (_, Level::Warn) => ("WRN", 33, 4),
        (_, Level::Info) => ("INF", 32, 5),
        (_, Level::Debug) => ("DBG", 36, 7),
        (_, Level::Trace) => ("TRC", 33, 5),
    }
}

fn format_line(out: &mut impl Write, record: &Record<'_>) -> io::Result<()> {
    // Trace does not imply debug here.
    if record.level() == Level::Debug && !DEBUG.load(Relaxed) {
        return Ok(());
    }
    let (label, colour, severity) = label(record);
    let pid = std::process::id();
    if SYSLOG.load(Relaxed) {
        return writeln!(out, "{severity}{}", record.args());
    }
    write!(out, "[{pid}] ")?;
    if TIMES.load(Relaxed) {
        write!(
            out,
            "{} ",
            chrono::Local::now().format("%Y/%m/%d %H:%M:%S%.6f")
        )?;
    }
    match COLOURS.load(Relaxed) {
        true => writeln!(out, "[\x1b[{colour}m{label}\x1b[0m] {}", record.args()),
        false => writeln!(out, "[{label}] {}", record.args()),
    }
}

/// Where env_logger writes to: one call per record.
struct Enqueue;

impl Write for Enqueue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(queue) = QUEUE.get().filter(|_| !line.is_empty())
            && let Err(TrySendError::Full(_)) = queue.try_send(Job::Line(line.to_vec()))
        {
            count_dropped(1);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn count_dropped(lines: u64) {
    DROPPED.fetch_add(lines, Relaxed);
    DROPPED_EVER.fetch_add(lines, Relaxed);
}

fn write_all(mut sink: Sink, jobs: &Receiver<Job>) {
    let mut batch = Vec::with_capacity(BATCH_BYTES);
    let mut next = jobs.recv().ok();
    while let Some(job) = next.take() {
        match job {
            Job::Line(line) => {
                batch.extend_from_slice(&line);
                // Syslog takes one line at a time.
                while batch.len() < BATCH_BYTES && sink.takes_many() && next.is_none() {
                    match jobs.try_recv() {
                        Ok(Job::Line(line)) => batch.extend_from_slice(&line),
                        Ok(other) => next = Some(other),
                        Err(_) => break,
                    }
                }
                sink.write(&batch);
                batch.clear();
            }
            Job::Switch(other) => sink = other,
            Job::Reopen => sink.reopen(),
            Job::Flush(done) => drop(done),
        }
        let dropped = DROPPED.swap(0, Relaxed);
        if dropped > 0 {
            log::warn!(
                "{dropped} log lines were dropped because the log could not be written fast enough"
            );
        }
        if next.is_none() {
            next = jobs.recv().ok();
        }
    }
}

impl LogFile {
    fn open(path: &str, bytes_max: u64, files_max: usize) -> io::Result<Self> {
        let file = open_file(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            bytes,
            bytes_max,
            files_max,
        })
    }

    /// Whole lines.
    fn write(&mut self, mut lines: &[u8]) -> io::Result<()> {
        while self.bytes_max > 0 && self.bytes + lines.len() as u64 > self.bytes_max {
            // As many lines as still fit; a line longer than the limit has a file of its own.
            let room = usize::try_from(self.bytes_max.saturating_sub(self.bytes));
            let room = room.unwrap_or(usize::MAX).min(lines.len());
            let end = memchr::memrchr(b'\n', &lines[..room]).map_or(0, |at| at + 1);
            let (now, later) = lines.split_at(end);
            self.append(now)?;
            lines = later;
            if self.bytes == 0 {
                let end = memchr::memchr(b'\n', lines).map_or(lines.len(), |at| at + 1);
                let (now, later) = lines.split_at(end);
                self.append(now)?;
                lines = later;
            }
            if lines.is_empty() {
                return Ok(());
            }
            if self.rotate().is_err() {
                break; // a log too long is better than none
            }
        }
        self.append(lines)
    }

    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        self.file.write_all(lines)?;
        self.bytes += lines.len() as u64;
        Ok(())
    }

    /// Moves the file away under the time, as later servers name it, and begins a new one.
    fn rotate(&mut self) -> io::Result<()> {
        let time = chrono::Local::now().format("%Y.%m.%d.%H.%M.%S.%9f");
        std::fs::rename(&self.path, format!("{}.{time}", self.path))?;
        self.file = open_file(&self.path)?;
        self.bytes = 0;
        if self.files_max > 0 {
            let mut moved = moved_files(Path::new(&self.path))?;
            moved.sort_unstable();
            let surplus = moved.len().saturating_sub(self.files_max);
            for old in &moved[..surplus] {
                std::fs::remove_file(old)?;
            }
        }
        Ok(())
    }

    fn reopen(&mut self) -> io::Result<()> {
        *self = Self::open(&self.path, self.bytes_max, self.files_max)?;
        Ok(())
    }
}

/// What `rotate` made of a log file before; their names sort by time.
fn moved_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    let name = path.file_name().and_then(|name| name.to_str());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder.unwrap_or(Path::new(".")))? {
        let path = entry?.path();
        let time = path
            .file_name()
            .and_then(|other| other.to_str()?.strip_prefix(name?)?.strip_prefix('.'));
        let parts = |time: &str| time.split('.').map(str::len).eq([4, 2, 2, 2, 2, 2, 9]);
        let digits = |time: &str| time.bytes().all(|c| c.is_ascii_digit() || c == b'.');
        if time.is_some_and(|time| parts(time) && digits(time)) {
            found.push(path);
        }
    }
    Ok(found)
}

impl Sink {
    fn takes_many(&self) -> bool {
        !matches!(self, Self::Syslog { .. })
    }

    /// A log that cannot be written must not take the server down.
    fn write(&mut self, lines: &[u8]) {
        let result = match self {
            Self::Stderr => io::stderr().write_all(lines),
            Self::File(file) => file.write(lines),
            Self::Syslog { tag, wire } => wire.send(tag, lines),
        };
        if result.is_err() {
            // Only counted: a line about it would not get through either.
            DROPPED_EVER.fetch_add(memchr::memchr_iter(b'\n', lines).count() as u64, Relaxed);
        }
    }

    fn reopen(&mut self) {
        match self {
            Self::File(log) => match log.reopen() {
                Ok(()) => log::info!("File log re-opened"),
                Err(error) => log::error!("could not re-open log file {}: {error}", log.path),
            },
            _ => log::info!("File log re-open ignored, not a file logger"),
        }
    }
}

impl SyslogWire {
    fn local(path: &str) -> io::Result<Self> {
        Ok(Self::Local {
            path: path.to_owned(),
            socket: local_syslog(path)?,
        })
    }

    /// `line` begins with a digit, its severity.
    fn send(&mut self, tag: &str, line: &[u8]) -> io::Result<()> {
        let (severity, text) = line.split_at(1);
        let severity = severity[0].wrapping_sub(b'0');
        let time = chrono::Local::now();
        let pid = std::process::id();
        // Local messages belong to facility daemon, remote ones to none.
        let head = match self {
            Self::Local { .. } => {
                let time = time.format("%b %e %H:%M:%S");
                format!("<{}>{time} {tag}[{pid}]: ", severity + 3 * 8)
            }
            _ => {
                let host = nix::unistd::gethostname().ok();
                let host = host.and_then(|host| host.into_string().ok());
                let time = time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
                let host = host.as_deref().unwrap_or("localhost");
                format!("<{severity}>{time} {host} {tag}[{pid}]: ")
            }
        };
        let mut datagram = head.into_bytes();
        datagram.extend_from_slice(text);
        match self {
            Self::Local { path, socket } => {
                if socket.send(&datagram).is_ok() {
                    return Ok(());
                }
                // A daemon that was started again has made its socket anew.
                *socket = local_syslog(path)?;
                socket.send(&datagram).map(drop)
            }
            Self::Udp(socket) => socket.send(&datagram).map(drop),
            Self::Tcp {
                address,
                stream,
                lost_at,
            } => {
                if stream.is_none() && lost_at.elapsed() >= SYSLOG_RETRY {
                    *lost_at = Instant::now();
                    *stream = connect(address).ok();
                }
                let sent = match stream {
                    Some(stream) => stream.write_all(&datagram),
                    None => Err(io::ErrorKind::NotConnected.into()),
                };
                if sent.is_err() && stream.take().is_some() {
                    *lost_at = Instant::now();
                }
                sent
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_the_layout_of_the_original() {
        let record = |level, target, text| {
            let mut line: Vec<u8> = Vec::new();
            let args = format_args!("{}", text).to_string();
            format_line(
                &mut line,
                &Record::builder()
                    .level(level)
                    .target(target)
                    .args(format_args!("{args}"))
                    .build(),
            )
            .unwrap();
            String::from_utf8(line).unwrap()
        };
        let shown = record(Level::Info, "midge", "Server is ready");
        let (pid, rest) = shown.split_once(' ').unwrap();
        assert_eq!(pid, format!("[{}]", std::process::id()));
        let (time, rest) = rest.split_at(26);
        assert!(
            time.chars().filter(char::is_ascii_digit).count() == 20,
            "{time}"
        );
        assert_eq!(rest, " [INF] Server is ready\n");
        assert!(record(Level::Error, FATAL, "x").ends_with("[FTL] x\n"));
    }

    #[test]
    fn a_log_file_is_moved_away_when_it_is_full() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        // Files of others beside it stay.
        std::fs::write(folder.path().join("a.log.old"), "x").unwrap();
        let mut log = LogFile::open(path.to_str().unwrap(), 20, 2).unwrap();
        log.write(b"one\ntwo\n").unwrap();
        log.write(b"three four\nfive\nsix\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"five\nsix\n");
        let moved = moved_files(&path).unwrap();
        assert_eq!(moved.len(), 1);
        assert_eq!(std::fs::read(&moved[0]).unwrap(), b"one\ntwo\nthree four\n");
        for _ in 0..5 {
            log.write(b"a line longer than the limit\n").unwrap();
        }
        let moved = moved_files(&path).unwrap();
        assert_eq!(moved.len(), 2, "{moved:?}");
        assert!(folder.path().join("a.log.old").exists());
        // What is there counts when the file is opened again.
        let again = LogFile::open(path.to_str().unwrap(), 20, 2).unwrap();
        assert_eq!(again.bytes, log.bytes);
    }

    #[test]
    fn a_local_syslog_daemon_may_start_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let mut wire = SyslogWire::local(path.to_str().unwrap()).unwrap();
        let mut received = [0; 100];
        wire.send("midge", b"5one").unwrap();
        let length = daemon.recv(&mut received).unwrap();
        assert!(received[..length].ends_with(b"]: one"));
        drop(daemon);
        std::fs::remove_file(&path).unwrap();
        assert!(wire.send("midge", b"5lost").is_err());
        let daemon = UnixDatagram::bind(&path).unwrap();
        wire.send("midge", b"5two").unwrap();
        let length = daemon.recv(&mut received).unwrap();
        assert!(received[..length].ends_with(b"]: two"));
    }

    #[test]
    fn a_lost_syslog_connection_is_made_again() {
        use std::io::{BufRead, BufReader};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut wire = SyslogWire::Tcp {
            stream: Some(connect(&address).unwrap()),
            address,
            lost_at: Instant::now(),
        };
        let read_one = |listener: &std::net::TcpListener| {
            let mut reader = BufReader::new(listener.accept().unwrap().0);
            move || {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                line
            }
        };
        let mut first = read_one(&listener);
        wire.send("midge", b"5one\n").unwrap();
        let line = first();
        assert!(
            line.starts_with("<5>") && line.ends_with("]: one\n"),
            "{line}"
        );
        drop(first);
        let until = Instant::now() + Duration::from_secs(20);
        let second = std::thread::spawn(move || read_one(&listener)());
        while !second.is_finished() {
            assert!(Instant::now() < until);
            let _ = wire.send("midge", b"3again\n");
            std::thread::sleep(Duration::from_millis(20));
        }
        let line = second.join().unwrap();
        assert!(
            line.starts_with("<3>") && line.ends_with("]: again\n"),
            "{line}"
        );
    }
}
