//! The monitoring port: ordinary threads that ask the loops for snapshots.

use super::event_loop::{Command, Shared, Snapshot};
use crate::config::Options;
use crate::monitor::http::{self, Parsed, Request, Response};
use crate::monitor::model::{ClusterVarz, Rounded, SlowConsumerEntry, Varz, pretty, uptime};
use chrono::{DateTime, Local, SecondsFormat};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::time::{Duration, Instant};

/// Monitoring connections at a time; further ones are closed.
const CONNECTIONS_MAX: usize = 64;
/// A request may take this long to arrive, and an answer to leave.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A loop that does not answer within this is not healthy.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(5);

/// Endpoints whose requests are counted.
const COUNTED: [&str; 5] = ["/", "/connz", "/routez", "/subsz", "/varz"];

pub struct Monitor {
    shared: Arc<Shared>,
    server_id: String,
    port: u16,
    started_at: DateTime<Local>,
    started: Instant,
    state: Mutex<State>,
}

struct State {
    options: Options,
    loaded_at: DateTime<Local>,
    requests: BTreeMap<&'static str, u64>,
    cpu: CpuUse,
}

/// CPU used since the last look.
struct CpuUse {
    looked_at: Instant,
    used: Duration,
    percent: f64,
}

impl Monitor {
    pub fn new(shared: Arc<Shared>, options: &Options, server_id: &str, port: u16) -> Self {
        let now = Local::now();
        Self {
            shared,
            server_id: server_id.to_owned(),
            port,
            started_at: now,
            started: Instant::now(),
            state: Mutex::new(State {
                options: options.clone(),
                loaded_at: now,
                requests: COUNTED.iter().map(|path| (*path, 0)).collect(),
                cpu: CpuUse {
                    looked_at: Instant::now(),
                    used: cpu_time(),
                    percent: 0.0,
                },
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn set_options(&self, options: &Options) {
        self.state().options = options.clone();
    }

    pub fn reloaded(&self) {
        self.state().loaded_at = Local::now();
    }

    /// One snapshot of each loop, or fewer when some do not answer in time.
    fn snapshots(&self) -> Vec<Snapshot> {
        let (reply, answers) = mpsc::channel();
        let doors = self.shared.mesh.doors();
        for door in doors {
            door.command(Command::Snapshot(reply.clone()));
        }
        drop(reply);
        let until = Instant::now() + SNAPSHOT_TIMEOUT;
        let next = || {
            answers
                .recv_timeout(until.saturating_duration_since(Instant::now()))
                .ok()
        };
        std::iter::from_fn(next).take(doors.len()).collect()
    }

    fn answer(&self, request: &Request) -> Response {
        let counted = match request.path.as_str() {
            "/subscriptionsz" => "/subsz",
            other => other,
        };
        if let Some(count) = self.state().requests.get_mut(counted) {
            *count += 1;
        }
        let callback = query_value(&request.query, "callback");
        let body = match request.path.as_str() {
            "/" => return Response::html(ROOT_PAGE.into()),
            "/varz" => pretty(&self.varz()),
            "/healthz" => match self.snapshots().len() == self.shared.mesh.doors().len() {
                true => "{\n  \"status\": \"ok\"\n}".into(),
                false => {
                    let body = "{\n  \"status\": \"unavailable\",\n  \"error\": \"an event loop does not answer\"\n}";
                    return Response {
                        status: 503,
                        ..Response::json(body.into())
                    };
                }
            },
            _ => return Response::not_found(),
        };
        match callback {
            Some(name) if !name.is_empty() => Response {
                status: 200,
                kind: "application/javascript",
                body: format!("{name}({body})"),
            },
            _ => Response::json(body),
        }
    }

    fn varz(&self) -> Varz {
        let snapshots = self.snapshots();
        let sum = |get: &dyn Fn(&Snapshot) -> u64| snapshots.iter().map(get).sum::<u64>();
        let mut state = self.state();
        let cpu = state.cpu.look();
        let options = &state.options;
        let settings =
            super::settings::settings(options, &self.server_id, self.port).unwrap_or_default();
        let http_host = if options.http_host.is_empty() {
            &options.host
        } else {
            &options.http_host
        };
        let slow = snapshots
            .iter()
            .flat_map(|snapshot| &snapshot.slow_consumers)
            .map(|slow| SlowConsumerEntry {
                cid: slow.cid,
                address: slow.peer.to_string(),
                name: slow.name.clone(),
                pending_bytes: slow.pending_bytes,
                cause: slow.cause.clone(),
            });
        Varz {
            server_id: self.server_id.clone(),
            version: settings.info.version,
            git_commit: settings.info.git_commit,
            go: String::new(),
            host: settings.info.host,
            auth_required: settings.info.auth_required,
            addr: options.host.clone(),
            max_connections: options.max_connections,
            ping_interval: options.ping_interval.as_nanos() as u64,
            ping_max: options.ping_max,
            http_host: http_host.clone(),
            http_port: options.http_port,
            https_port: options.https_port,
            auth_timeout: options.auth_timeout,
            max_control_line: options.max_control_line,
            cluster: ClusterVarz {
                addr: "0.0.0.0".into(),
                cluster_port: 0,
                auth_timeout: 1.0,
            },
            tls_timeout: 0.5,
            port: settings.info.port,
            max_payload: options.max_payload,
            start: time(self.started_at),
            now: time(Local::now()),
            uptime: uptime(self.started.elapsed()),
            mem: resident_bytes(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            cpu: Rounded(cpu),
            connections: snapshots.iter().map(|s| s.connections).sum(),
            total_connections: sum(&|s| s.totals.connections),
            in_msgs: sum(&|s| s.totals.traffic.messages_in),
            out_msgs: sum(&|s| s.totals.traffic.messages_out),
            in_bytes: sum(&|s| s.totals.traffic.bytes_in),
            out_bytes: sum(&|s| s.totals.traffic.bytes_out),
            slow_consumers: sum(&|s| s.totals.slow_consumers),
            subscriptions: snapshots.iter().map(|s| s.subscriptions).sum(),
            http_req_stats: state.requests.clone(),
            config_load_time: time(state.loaded_at),
            server_name: settings.info.server_name,
            threads: snapshots.len(),
            max_pending: options.max_pending,
            slow_consumer_list: slow.collect(),
            ..Varz::default()
        }
    }
}

/// RFC 3339 with nanoseconds and without trailing zeros, as Go writes times.
fn time(at: DateTime<Local>) -> String {
    let text = at.to_rfc3339_opts(SecondsFormat::Nanos, true);
    let Some((seconds, rest)) = text.split_once('.') else {
        return text;
    };
    let zone = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    match rest[..zone].trim_end_matches('0') {
        "" => format!("{seconds}{}", &rest[zone..]),
        fraction => format!("{seconds}.{fraction}{}", &rest[zone..]),
    }
}

fn query_value<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query
        .split('&')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .unwrap_or(0);
    pages
        * nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
            .ok()
            .flatten()
            .unwrap_or(4096) as u64
}

fn cpu_time() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else {
        return Duration::ZERO;
    };
    let part = |time: nix::sys::time::TimeVal| {
        Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000)
    };
    part(usage.user_time()) + part(usage.system_time())
}

impl CpuUse {
    fn look(&mut self) -> f64 {
        let elapsed = self.looked_at.elapsed();
        if elapsed >= Duration::from_secs(1) {
            let used = cpu_time();
            self.percent = 100.0 * (used - self.used).as_secs_f64() / elapsed.as_secs_f64();
            self.used = used;
            self.looked_at = Instant::now();
        }
        self.percent
    }
}

const ROOT_PAGE: &str = "<!DOCTYPE html>
<html lang=\"en\">
<head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\"><title>midge</title></head>
<body>
<h1>midge</h1>
<p><a href=\"/varz\">varz</a></p>
<p><a href=\"/healthz\">healthz</a></p>
</body>
</html>
";

pub fn start(listener: OwnedFd, monitor: Arc<Monitor>) -> std::io::Result<()> {
    let listener = TcpListener::from(listener);
    let serving = Arc::new(AtomicUsize::new(0));
    let accept = move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                std::thread::sleep(Duration::from_millis(100));
                continue;
            };
            if serving.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
                continue;
            }
            let (monitor, serving) = (monitor.clone(), serving.clone());
            serving.fetch_add(1, Ordering::Relaxed);
            let body = {
                let serving = serving.clone();
                move || {
                    let _ = serve(stream, &monitor);
                    serving.fetch_sub(1, Ordering::Relaxed);
                }
            };
            if std::thread::Builder::new()
                .name("monitor".into())
                .spawn(body)
                .is_err()
            {
                serving.fetch_sub(1, Ordering::Relaxed);
            }
        }
    };
    std::thread::Builder::new()
        .name("monitor-accept".into())
        .spawn(accept)
        .map(drop)
}

/// One connection: requests until it is closed, or too slow.
fn serve(mut stream: TcpStream, monitor: &Monitor) -> std::io::Result<()> {
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut input = Vec::new();
    loop {
        let until = Instant::now() + TIMEOUT;
        let (response, head_only, keep_alive) = loop {
            match http::parse(&input) {
                Parsed::Request(request, length) => {
                    input.drain(..length);
                    break (
                        monitor.answer(&request),
                        request.head_only,
                        request.keep_alive,
                    );
                }
                Parsed::Bad(response) => break (response, false, false),
                Parsed::Incomplete => {}
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            stream.set_read_timeout(Some(left))?;
            let mut chunk = [0; 4096];
            match stream.read(&mut chunk)? {
                0 => return Ok(()),
                read => input.extend_from_slice(&chunk[..read]),
            }
        };
        stream.write_all(response.encode(head_only, keep_alive).as_bytes())?;
        if !keep_alive {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeZone;

    #[test]
    fn times_are_written_as_go_does() {
        let at = Local.timestamp_opt(1_700_000_000, 432_403_660).unwrap();
        assert!(
            time(at).contains(".43240366") && !time(at).contains(".432403660"),
            "{}",
            time(at)
        );
        assert!(!time(Local.timestamp_opt(1_700_000_000, 0).unwrap()).contains('.'));
    }

    #[test]
    fn queries() {
        assert_eq!(query_value("a=1&callback=x", "callback"), Some("x"));
        assert_eq!(query_value("callbacks=1", "callback"), None);
    }
}
