//! Log lines in the layout of gnatsd, written by a thread of their own.
//!
//! `[pid] YYYY/MM/DD HH:MM:SS.uuuuuu [LVL] text`. Whoever logs never waits: lines go through a
//! bounded queue, and when that is full they are counted and the count is logged later. May import
//! util and config; must not know who logs.

use crate::config::Options;
use log::{Level, LevelFilter, Record};
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};

/// Target of records that end the process; they are labelled FTL.
pub const FATAL: &str = "fatal";

/// Target of the streaming part's debug lines, which have a switch of their own.
pub const STREAM_DEBUG: &str = "stan-debug";

/// Lines waiting for the writer before more are dropped.
const QUEUE_LINES: usize = 16 << 10;

static QUEUE: OnceLock<SyncSender<Job>> = OnceLock::new();
static DROPPED: AtomicU64 = AtomicU64::new(0);
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
    File { path: String, file: File },
    Syslog { tag: String, wire: SyslogWire },
}

enum SyslogWire {
    Local(UnixDatagram),
    Udp(UdpSocket),
    Tcp(TcpStream),
}

/// Starts logging as the options say. Called once, before anything is logged.
pub fn init(options: &Options) -> Result<(), String> {
    let (queue, jobs) = sync_channel(QUEUE_LINES);
    QUEUE.set(queue).map_err(|_| "logging was started twice")?;
    let sink = open(options)?;
    set_levels(options);
    std::thread::Builder::new()
        .name("log".into())
        .spawn(move || write_all(sink, &jobs))
        .map_err(|error| format!("log thread: {error}"))?;
    env_logger::Builder::new()
        .filter_level(LevelFilter::Off)
        .filter_module("midge", LevelFilter::Trace)
        .filter_module(FATAL, LevelFilter::Trace)
        .filter_module(STREAM_DEBUG, LevelFilter::Trace)
        .format(format_line)
        .target(env_logger::Target::Pipe(Box::new(Enqueue)))
        .try_init()
        .map_err(|error| error.to_string())?;
    set_levels(options);
    Ok(())
}

/// Takes over changed options; lines logged before this still go where they went.
pub fn reconfigure(options: &Options) -> Result<(), String> {
    let sink = open(options)?;
    send(Job::Switch(sink));
    set_levels(options);
    Ok(())
}

/// Opens the log file anew, after it was moved away.
pub fn reopen() {
    send(Job::Reopen);
}

/// Waits until everything logged so far is written.
pub fn flush() {
    let (done, wait) = channel();
    send(Job::Flush(done));
    let _ = wait.recv();
}

fn send(job: Job) {
    if let Some(queue) = QUEUE.get() {
        let _ = queue.send(job);
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
        let path = options.log_file.clone();
        let file =
            open_file(&path).map_err(|error| format!("could not open log file {path}: {error}"))?;
        return Ok(Sink::File { path, file });
    }
    let tag = std::env::args().next().unwrap_or_default();
    let tag = tag.rsplit('/').next().unwrap_or_default().to_owned();
    if !options.remote_syslog.is_empty() {
        let url = &options.remote_syslog;
        let (network, address) = url.split_once("://").unwrap_or((url, ""));
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
            "tcp" => SyslogWire::Tcp(TcpStream::connect(address).map_err(failed)?),
            "unix" | "unixgram" => SyslogWire::Local(local_syslog(address).map_err(failed)?),
            other => return Err(format!("error invalid network type: {other:?}")),
        };
        return Ok(Sink::Syslog { tag, wire });
    }
    if options.syslog {
        let socket = local_syslog("/dev/log")
            .map_err(|error| format!("error connecting to syslog: {error}"))?;
        return Ok(Sink::Syslog {
            tag,
            wire: SyslogWire::Local(socket),
        });
    }
    Ok(Sink::Stderr)
}

fn local_syslog(path: &str) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    Ok(socket)
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
            DROPPED.fetch_add(1, Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_all(mut sink: Sink, jobs: &Receiver<Job>) {
    for job in jobs {
        match job {
            Job::Line(line) => sink.write(&line),
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
    }
}

impl Sink {
    /// A log that cannot be written must not take the server down.
    fn write(&mut self, line: &[u8]) {
        let _ = match self {
            Self::Stderr => io::stderr().write_all(line),
            Self::File { file, .. } => file.write_all(line),
            Self::Syslog { tag, wire } => {
                let (severity, text) = line.split_at(1);
                let severity = severity[0].wrapping_sub(b'0');
                // Local messages belong to facility daemon, remote ones to none.
                let local = matches!(wire, SyslogWire::Local(_));
                let priority = severity + if local { 3 * 8 } else { 0 };
                let time = chrono::Local::now();
                let pid = std::process::id();
                let mut datagram = match local {
                    true => format!(
                        "<{priority}>{} {tag}[{pid}]: ",
                        time.format("%b %e %H:%M:%S")
                    ),
                    false => {
                        let host = nix::unistd::gethostname()
                            .ok()
                            .and_then(|host| host.into_string().ok());
                        let time = time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
                        format!(
                            "<{priority}>{time} {} {tag}[{pid}]: ",
                            host.as_deref().unwrap_or("localhost")
                        )
                    }
                }
                .into_bytes();
                datagram.extend_from_slice(text);
                match wire {
                    SyslogWire::Local(socket) => socket.send(&datagram).map(drop),
                    SyslogWire::Udp(socket) => socket.send(&datagram).map(drop),
                    SyslogWire::Tcp(stream) => stream.write_all(&datagram),
                }
            }
        };
    }

    fn reopen(&mut self) {
        match self {
            Self::File { path, file } => match open_file(path) {
                Ok(fresh) => {
                    *file = fresh;
                    log::info!("File log re-opened");
                }
                Err(error) => log::error!("could not re-open log file {path}: {error}"),
            },
            _ => log::info!("File log re-open ignored, not a file logger"),
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
}
