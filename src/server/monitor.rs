//! Answers of the monitoring port, put together from what the loops tell.
//!
//! Lists are fetched from each loop in parts, of which a loop gives one per turn, so that no request holds a loop
//! up, however long the list is and however many ask.

use super::event_loop::{Command, Shared, Snapshot};
use super::mailbox::LoopDoor;
use super::monitor_streaming::{self, About};
use super::process::{CpuUse, resident_bytes, threads};
use super::settings::{Identity, settings};
use super::streaming::Streaming;
use crate::broker::propagate::ROUTE_LOOP;
use crate::broker::snapshot::{ConnectionInfo, Page};
use crate::config::Options;
use crate::monitor::http::{Request, Response};
use crate::monitor::metrics;
use crate::monitor::model::{
    ClusterVarz, Connz, ConnzEntry, LoopEntry, Rounded, Routez, RoutezEntry, SlowConsumerEntry,
    Subsz, Varz, uptime,
};
use crate::monitor::query::{ConnzOptions, Query, Sort};
use crate::stan::report::Report;
use crate::util::go_json::go_json_pretty;
use crate::util::lock;
use crate::wire::info::Info;
use crate::wire::parser::Kind;
use chrono::{DateTime, Local, SecondsFormat};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant, SystemTime};

/// A loop that does not answer within this is not healthy.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(5);

/// Endpoints whose requests are counted.
const COUNTED: [&str; 5] = ["/", "/connz", "/routez", "/subsz", "/varz"];

const ROOT_PAGE: &str = include_str!("../monitor/page.html");

/// What the original shows for a connection that never did anything: its arithmetic overflows.
const NEVER: &str = "0001-01-01T00:00:00Z";
const IDLE_SINCE_NEVER: &str = "292y171d23h47m16s";

pub struct Monitor {
    shared: Arc<Shared>,
    identity: Identity,
    started_at: DateTime<Local>,
    started: Instant,
    state: Mutex<State>,
    streaming: OnceLock<(About, Mutex<Streaming>)>,
}

struct State {
    options: Options,
    /// What the options make of the server.
    info: Info,
    loaded_at: DateTime<Local>,
    requests: BTreeMap<&'static str, u64>,
    cpu: CpuUse,
}

impl Monitor {
    pub fn new(shared: Arc<Shared>, options: &Options, identity: &Identity) -> Self {
        let now = Local::now();
        Self {
            shared,
            identity: identity.clone(),
            started_at: now,
            started: Instant::now(),
            state: Mutex::new(State {
                options: options.clone(),
                info: info(options, identity),
                loaded_at: now,
                requests: COUNTED.iter().map(|path| (*path, 0)).collect(),
                cpu: CpuUse::default(),
            }),
            streaming: OnceLock::new(),
        }
    }

    /// The engine is up; it is asked from here on, and stopped by `stop_streaming`.
    pub fn set_streaming(&self, streaming: Streaming) {
        let about = About {
            options: streaming.options.clone(),
            server_id: streaming.server_id.clone(),
        };
        let set = self.streaming.set((about, Mutex::new(streaming)));
        assert!(set.is_ok(), "there is one engine");
    }

    pub fn stop_streaming(&self) {
        if let Some((_, streaming)) = self.streaming.get() {
            lock(streaming).stop();
        }
    }

    /// None: there is no engine, or it does not answer. Others that ask it wait meanwhile.
    fn streaming_report(&self) -> Option<Report> {
        let (_, streaming) = self.streaming.get()?;
        lock(streaming).report()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub fn set_options(&self, options: &Options) {
        let info = info(options, &self.identity);
        let mut state = self.state();
        (state.options, state.info) = (options.clone(), info);
    }

    /// For https; None where TLS was switched off by a reload.
    pub fn tls(&self) -> Option<Arc<rustls::ServerConfig>> {
        let terms = self.shared.tls.clients()?;
        Some(terms.configs.monitor.clone())
    }

    pub fn reloaded(&self) {
        self.state().loaded_at = Local::now();
    }

    pub fn answer(&self, request: &Request) -> Response {
        let query = Query(&request.query);
        let answer = self.document(&request.path, query);
        let response = match answer {
            Ok(response) => response,
            Err(text) => return Response::text(400, &text),
        };
        match query.get("callback").filter(|name| !name.is_empty()) {
            Some(name) if response.kind == Response::JSON => Response {
                kind: "application/javascript",
                body: format!("{name}({})", response.body),
                ..response
            },
            _ => response,
        }
    }

    /// Whether the answer to a path may be long, and take the loops' time.
    pub fn is_list(path: &str) -> bool {
        matches!(
            path,
            "/connz"
                | "/routez"
                | "/metrics"
                | "/streaming/channelsz"
                | "/streaming/clientsz"
                | "/streaming/overviewz"
        )
    }

    /// Counts a request that is going to be answered, so that its own answer has it.
    fn count(&self, path: &'static str) {
        if let Some(count) = self.state().requests.get_mut(path) {
            *count += 1;
        }
    }

    /// The answer to a path; the error is the text of a status 400.
    fn document(&self, path: &str, query: Query<'_>) -> Result<Response, String> {
        let json = |value| Ok(Response::json(value));
        let of_all_loops = |value: Option<String>| Ok(value.map_or_else(no_answer, Response::json));
        match path {
            "/" => {
                self.count("/");
                Ok(Response::html(ROOT_PAGE.into()))
            }
            "/varz" => {
                self.count("/varz");
                of_all_loops(self.varz().map(|varz| go_json_pretty(&varz)))
            }
            "/connz" => {
                let options = query.connz()?;
                self.count("/connz");
                json(go_json_pretty(&self.connz(options)))
            }
            "/routez" => {
                let with_subjects = query.switch("subs")?;
                self.count("/routez");
                json(go_json_pretty(&self.routez(with_subjects)))
            }
            "/subsz" | "/subscriptionsz" => {
                self.count("/subsz");
                of_all_loops(self.subsz().map(|subsz| go_json_pretty(&subsz)))
            }
            "/stacksz" => json(threads()),
            "/metrics" => Ok(self.metrics().map_or_else(no_answer, |body| Response {
                status: 200,
                kind: "text/plain; version=0.0.4; charset=utf-8",
                body,
            })),
            "/healthz" => Ok(self.health()),
            _ => Ok(self.streaming_document(path, query)),
        }
    }

    fn streaming_document(&self, path: &str, query: Query<'_>) -> Response {
        let found = self.streaming.get().and_then(|(about, _)| {
            let report = || self.streaming_report();
            let up = self.started.elapsed();
            monitor_streaming::document(about, report, path, query, self.started_at, up)
        });
        found.unwrap_or_else(Response::not_found)
    }

    fn health(&self) -> Response {
        match self.snapshots() {
            Some(_) => Response::json("{\n  \"status\": \"ok\"\n}".into()),
            None => no_answer(),
        }
    }

    // ---- asking the loops

    fn snapshots(&self) -> Option<Vec<Snapshot>> {
        snapshots(self.shared.mesh.doors())
    }

    /// A list of one loop, part by part.
    fn pages<T>(
        &self,
        loop_index: u16,
        ask: impl Fn(u32, Sender<Page<T>>) -> Command,
        mut take: impl FnMut(T),
    ) {
        let door = self.shared.mesh.door(loop_index);
        let mut from = Some(0);
        while let Some(start) = from {
            let (reply, answer) = mpsc::channel();
            door.command(ask(start, reply));
            let Ok(page) = answer.recv_timeout(SNAPSHOT_TIMEOUT) else {
                return;
            };
            page.items.into_iter().for_each(&mut take);
            from = page.next;
        }
    }

    fn connections(&self, loop_index: u16, kind: Kind, take: impl FnMut(ConnectionInfo)) {
        let ask = |from, reply| Command::Connections { kind, from, reply };
        self.pages(loop_index, ask, take);
    }

    /// Subjects of the subscriptions of these connections, by cid.
    fn subjects(&self, cids: &HashSet<u64>) -> HashMap<u64, Vec<String>> {
        let mut subjects: HashMap<u64, Vec<String>> = HashMap::new();
        for loop_index in 0..self.shared.mesh.loops() {
            let ask = |from, reply| Command::Subjects { from, reply };
            self.pages(loop_index, ask, |(cid, subject)| {
                if cids.contains(&cid) {
                    let subject = String::from_utf8_lossy(&subject).into_owned();
                    subjects.entry(cid).or_default().push(subject);
                }
            });
        }
        subjects
    }

    // ---- documents

    fn varz(&self) -> Option<Varz> {
        let snapshots = self.snapshots()?;
        let sum = |get: &dyn Fn(&Snapshot) -> u64| snapshots.iter().map(get).sum::<u64>();
        let mut remotes = HashSet::new();
        if self.identity.cluster_port.is_some() {
            self.connections(ROUTE_LOOP, Kind::Route, |connection| {
                remotes.extend(connection.route.map(|route| route.remote_id));
            });
        }
        let mut state = self.state();
        state.cpu.look();
        let (options, info) = (&state.options, &state.info);
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
                time: time(slow.at.into()),
            });
        let cpu_of = |index: usize| state.cpu.loop_percents.get(index).copied();
        let loops = snapshots
            .iter()
            .enumerate()
            .map(|(index, loop_)| LoopEntry {
                connections: loop_.connections,
                subscriptions: loop_.subscriptions,
                in_msgs: loop_.totals.traffic.messages_in,
                out_msgs: loop_.totals.traffic.messages_out,
                cpu: Rounded(cpu_of(index).unwrap_or(0.0)),
            });
        Some(Varz {
            server_id: self.identity.server_id.clone(),
            version: info.version.clone(),
            git_commit: info.git_commit.clone(),
            go: String::new(),
            host: info.host.clone(),
            auth_required: info.auth_required,
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
                name: options.cluster.name.clone(),
                addr: options.cluster.host.clone(),
                cluster_port: i32::from(self.identity.cluster_port.unwrap_or(0)),
                auth_timeout: options.cluster.auth_timeout,
            },
            tls_required: info.tls_required,
            tls_verify: info.tls_verify,
            connect_urls: snapshots
                .first()
                .map_or_else(Vec::new, |snapshot| snapshot.client_urls.to_vec()),
            tls_timeout: options.tls.timeout,
            port: info.port,
            max_payload: options.max_payload,
            start: time(self.started_at),
            now: time(Local::now()),
            uptime: uptime(self.started.elapsed()),
            mem: resident_bytes(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            cpu: Rounded(state.cpu.percent),
            connections: snapshots.iter().map(|s| s.connections).sum(),
            total_connections: sum(&|s| s.totals.connections),
            routes: snapshots.iter().map(|s| s.routes).sum(),
            remotes: remotes.len(),
            in_msgs: sum(&|s| s.totals.traffic.messages_in),
            out_msgs: sum(&|s| s.totals.traffic.messages_out),
            in_bytes: sum(&|s| s.totals.traffic.bytes_in),
            out_bytes: sum(&|s| s.totals.traffic.bytes_out),
            slow_consumers: sum(&|s| s.totals.slow_consumers),
            subscriptions: snapshots.iter().map(|s| s.subscriptions).sum(),
            http_req_stats: state.requests.clone(),
            config_load_time: time(state.loaded_at),
            server_name: info.server_name.clone(),
            threads: snapshots.len(),
            max_pending: options.max_pending,
            slow_consumer_list: slow.collect(),
            loops: loops.collect(),
        })
    }

    fn connz(&self, options: ConnzOptions) -> Connz {
        let mut all = Vec::new();
        for loop_index in 0..self.shared.mesh.loops() {
            self.connections(loop_index, Kind::Client, |connection| all.push(connection));
        }
        if let Some(cid) = options.cid {
            all.retain(|connection| connection.cid == cid);
        }
        sort(&mut all, options.sort);
        let total = all.len();
        let page: Vec<ConnectionInfo> = all
            .into_iter()
            .skip(options.offset)
            .take(options.limit)
            .collect();
        let mut subjects = match options.subscriptions {
            true => self.subjects(&page.iter().map(|connection| connection.cid).collect()),
            false => HashMap::new(),
        };
        let connections: Vec<ConnzEntry> = page
            .into_iter()
            .map(|connection| {
                let list = subjects.remove(&connection.cid).unwrap_or_default();
                connz_entry(connection, options.user, list)
            })
            .collect();
        Connz {
            server_id: self.identity.server_id.clone(),
            now: time(Local::now()),
            num_connections: connections.len(),
            total,
            offset: options.offset,
            limit: options.limit,
            connections,
        }
    }

    fn routez(&self, with_subjects: bool) -> Routez {
        let mut routes = Vec::new();
        if self.identity.cluster_port.is_some() {
            self.connections(ROUTE_LOOP, Kind::Route, |connection| {
                routes.push(connection)
            });
        }
        let mut subjects = match with_subjects {
            true => self.subjects(&routes.iter().map(|connection| connection.cid).collect()),
            false => HashMap::new(),
        };
        let entry = |connection: ConnectionInfo| {
            let route = connection.route?;
            Some(RoutezEntry {
                rid: connection.cid,
                remote_id: route.remote_id,
                did_solicit: route.did_solicit,
                is_configured: route.is_configured,
                ip: connection.peer.ip().to_string(),
                port: connection.peer.port(),
                pending_size: connection.pending_bytes,
                in_msgs: connection.traffic.messages_in,
                out_msgs: connection.traffic.messages_out,
                in_bytes: connection.traffic.bytes_in,
                out_bytes: connection.traffic.bytes_out,
                subscriptions: connection.subscriptions,
                subscriptions_list: subjects.remove(&connection.cid).unwrap_or_default(),
            })
        };
        let routes: Vec<RoutezEntry> = routes.into_iter().filter_map(entry).collect();
        Routez {
            server_id: self.identity.server_id.clone(),
            now: time(Local::now()),
            num_routes: routes.len(),
            routes,
        }
    }

    fn subsz(&self) -> Option<Subsz> {
        let snapshots = self.snapshots()?;
        let sum = |get: &dyn Fn(&Snapshot) -> u64| snapshots.iter().map(get).sum::<u64>();
        let matches = sum(&|s| s.totals.traffic.messages_in);
        let deliveries = sum(&|s| s.totals.traffic.messages_out);
        Some(Subsz {
            num_subscriptions: snapshots.iter().map(|s| s.subscriptions).sum(),
            num_inserts: sum(&|s| s.totals.inserts),
            num_removes: sum(&|s| s.totals.removes),
            num_matches: matches,
            max_fanout: snapshots
                .iter()
                .map(|s| s.totals.fanout_max)
                .max()
                .unwrap_or(0),
            avg_fanout: deliveries as f64 / matches.max(1) as f64,
            ..Subsz::default()
        })
    }

    fn metrics(&self) -> Option<String> {
        let (varz, routez) = (self.varz()?, self.routez(false));
        let uptime_seconds = self.started.elapsed().as_secs_f64();
        let dropped = crate::logging::dropped();
        let mut text = metrics::text(&varz, &routez, uptime_seconds, dropped);
        if let Some(report) = self.streaming_report() {
            let overview = monitor_streaming::overview(&report);
            text += &metrics::streaming(&varz.server_id, &overview);
        }
        Some(text)
    }
}

/// The server was started with these options, or took them over, so they make sense.
fn info(options: &Options, identity: &Identity) -> Info {
    let settings = settings(options, identity);
    settings.expect("options that were taken").info
}

/// One snapshot of each loop in their order. None when one does not answer in time: the figures of some would be
/// taken for those of all, and a counter that is lower than before for a server that was started anew.
fn snapshots(doors: &[LoopDoor<Command>]) -> Option<Vec<Snapshot>> {
    let (reply, answers) = mpsc::channel();
    for door in doors {
        door.command(Command::Snapshot(reply.clone()));
    }
    drop(reply);
    let until = Instant::now() + SNAPSHOT_TIMEOUT;
    let next = || {
        let left = until.saturating_duration_since(Instant::now());
        answers.recv_timeout(left).ok()
    };
    let mut snapshots: Vec<Snapshot> = std::iter::from_fn(next).take(doors.len()).collect();
    snapshots.sort_by_key(|snapshot| snapshot.loop_index);
    (snapshots.len() == doors.len()).then_some(snapshots)
}

fn no_answer() -> Response {
    let body =
        "{\n  \"status\": \"unavailable\",\n  \"error\": \"an event loop does not answer\"\n}";
    Response {
        status: 503,
        ..Response::json(body.into())
    }
}

/// cid upward; everything else downward.
fn sort(connections: &mut [ConnectionInfo], by: Sort) {
    connections.sort_by_key(|connection| connection.cid);
    let key: fn(&ConnectionInfo) -> u64 = match by {
        Sort::Cid | Sort::Uptime => return,
        Sort::Subscriptions => |c| c.subscriptions as u64,
        Sort::Pending => |c| c.pending_bytes as u64,
        Sort::MessagesTo => |c| c.traffic.messages_out,
        Sort::MessagesFrom => |c| c.traffic.messages_in,
        Sort::BytesTo => |c| c.traffic.bytes_out,
        Sort::BytesFrom => |c| c.traffic.bytes_in,
        Sort::Last => return connections.sort_by_key(|c| Reverse(c.active_at)),
        Sort::Idle => return connections.sort_by_key(|c| c.active_at),
    };
    connections.sort_by_key(|connection| Reverse(key(connection)));
}

fn connz_entry(connection: ConnectionInfo, with_user: bool, list: Vec<String>) -> ConnzEntry {
    let now = SystemTime::now();
    let since = |at: SystemTime| uptime(now.duration_since(at).unwrap_or_default());
    ConnzEntry {
        cid: connection.cid,
        ip: connection.peer.ip().to_string(),
        port: connection.peer.port(),
        start: time(connection.started_at.into()),
        last_activity: connection
            .active_at
            .map_or(NEVER.into(), |at| time(at.into())),
        uptime: since(connection.started_at),
        idle: connection.active_at.map_or(IDLE_SINCE_NEVER.into(), since),
        pending_bytes: connection.pending_bytes,
        in_msgs: connection.traffic.messages_in,
        out_msgs: connection.traffic.messages_out,
        in_bytes: connection.traffic.bytes_in,
        out_bytes: connection.traffic.bytes_out,
        subscriptions: connection.subscriptions,
        name: connection.name,
        lang: connection.lang,
        version: connection.version,
        tls_version: connection.tls.as_ref().map_or("", |tls| tls.version).into(),
        tls_cipher_suite: connection
            .tls
            .map_or_else(|| "".into(), |tls| tls.cipher_suite),
        authorized_user: if with_user {
            connection.user
        } else {
            "".into()
        },
        subscriptions_list: list,
    }
}

/// RFC 3339 with nanoseconds and without trailing zeros, as Go writes times.
pub(super) fn time(at: DateTime<Local>) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Totals;
    use crate::server::mailbox::Mesh;
    use chrono::TimeZone;

    #[test]
    fn figures_are_those_of_all_loops_or_none() {
        let mesh = Mesh::new(2).unwrap();
        let answer = |index: u16, reply: Sender<Snapshot>| {
            let snapshot = Snapshot {
                loop_index: index,
                totals: Totals::default(),
                connections: 0,
                routes: 0,
                subscriptions: 0,
                slow_consumers: Vec::new(),
                client_urls: Arc::default(),
            };
            reply.send(snapshot).unwrap();
        };
        let of = |answering: &[u16]| -> Option<Vec<u16>> {
            let found = std::thread::scope(|scope| {
                let asking = scope.spawn(|| snapshots(mesh.doors()));
                for index in [1, 0] {
                    let reply = loop {
                        match mesh.door(index).take_command() {
                            Some(Command::Snapshot(reply)) => break reply,
                            _ => std::thread::yield_now(),
                        }
                    };
                    // Otherwise it is dropped, which ends the waiting.
                    if answering.contains(&index) {
                        answer(index, reply);
                    }
                }
                asking.join().unwrap()
            });
            Some(found?.iter().map(|one| one.loop_index).collect())
        };
        assert_eq!(of(&[0, 1]), Some(vec![0, 1]));
        assert_eq!(of(&[0]), None);
        assert_eq!(of(&[1]), None);
    }

    #[test]
    fn documents_that_grow_with_what_there_is_take_turns() {
        for path in ["/connz", "/metrics", "/streaming/overviewz"] {
            assert!(Monitor::is_list(path), "{path}");
        }
        for path in ["/", "/varz", "/healthz", "/streaming", "/nothing"] {
            assert!(!Monitor::is_list(path), "{path}");
        }
    }

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
}
