//! Every option, once: file key, flags, kind, default, whether a reload takes it, and what it does.
//! The reader of files, the command line, `--help` and docs/CONFIG.md all come from here.

use super::file::{Data, Entry, Value, integer};
use super::options::{
    ClusterOptions, Hidden, Options, PermissionOptions, SubjectRules, TlsOptions, UserOptions,
};
use super::route_url::RouteUrl;
use crate::subject::token;
use std::time::Duration;

/// What a value looks like on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bool,
    Int,
    Text,
    Duration,
    /// Files only: a block or list.
    Block,
}

/// Sections of the help text and of the documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    Server,
    Logging,
    Authorization,
    Tls,
    Cluster,
    Streaming,
}

impl Group {
    pub const ALL: [(Group, &str); 6] = [
        (Group::Server, "Server Options"),
        (Group::Logging, "Logging Options"),
        (Group::Authorization, "Authorization Options"),
        (Group::Tls, "TLS Options"),
        (Group::Cluster, "Cluster Options"),
        (Group::Streaming, "Streaming Options"),
    ];
}

type Set = fn(&mut Options, &Value) -> Result<(), String>;

pub struct Row {
    /// Name in the file, "" for flags alone; a dot parts block and key.
    pub key: &'static str,
    pub aliases: &'static [&'static str],
    pub flags: &'static [&'static str],
    pub kind: Kind,
    pub group: Group,
    pub default: &'static str,
    /// Taken over by SIGHUP.
    pub reload: bool,
    pub doc: &'static str,
    pub set: Set,
}

pub(super) fn expected<T>(value: &Value, what: &str) -> Result<T, String> {
    Err(format!("expected {what}, got {}", value.kind()))
}

pub(super) fn boolean(value: &Value) -> Result<bool, String> {
    match value.data {
        Data::Bool(on) => Ok(on),
        _ => expected(value, "true or false"),
    }
}

pub(super) fn int(value: &Value, range: std::ops::RangeInclusive<i64>) -> Result<i64, String> {
    let number = match &value.data {
        Data::Int(number) => *number,
        // Environment variables and quoted numbers.
        Data::Text(text) => match integer(text) {
            Some(number) => number,
            None => return expected(value, "an integer"),
        },
        _ => return expected(value, "an integer"),
    };
    match range.contains(&number) {
        true => Ok(number),
        false => Err(format!(
            "{number} is out of range: expected {} to {}",
            range.start(),
            range.end()
        )),
    }
}

pub(super) fn text(value: &Value) -> Result<String, String> {
    match &value.data {
        Data::Text(text) => Ok(text.clone()),
        Data::Int(number) => Ok(number.to_string()),
        _ => expected(value, "a string"),
    }
}

/// Go's durations (`1m30s`, `300ms`), or a number of seconds.
fn duration(value: &Value) -> Result<Duration, String> {
    match &value.data {
        Data::Int(seconds) => u64::try_from(*seconds)
            .map(Duration::from_secs)
            .map_err(|_| "a duration cannot be negative".into()),
        Data::Float(seconds) if *seconds >= 0.0 => Ok(Duration::from_secs_f64(*seconds)),
        Data::Text(text) => go_duration(text)
            .ok_or_else(|| format!("{text:?} is no duration such as \"2s\" or \"300ms\"")),
        _ => expected(value, "a duration such as \"2s\""),
    }
}

pub fn go_duration(text: &str) -> Option<Duration> {
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..unit_at].parse().ok()?;
        rest = &rest[unit_at..];
        let unit_end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        total += number
            * match &rest[..unit_end] {
                "ns" => 1e-9,
                "us" | "\u{b5}s" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = &rest[unit_end..];
    }
    (!text.is_empty())
        .then(|| Duration::try_from_secs_f64(total).ok())
        .flatten()
}

/// `host:port`, `:port` or a port alone.
fn address(value: &Value) -> Result<(Option<String>, i32), String> {
    let text = match &value.data {
        Data::Int(port) => return Ok((None, port_number(*port)?)),
        Data::Text(text) => text,
        _ => return expected(value, "host:port or a port"),
    };
    let (host, port) = text
        .rsplit_once(':')
        .ok_or_else(|| format!("Could not parse address string {text:?}"))?;
    let port = port
        .parse()
        .map_err(|_| format!("Could not parse port {port:?}"))?;
    Ok((
        Some(host.trim_matches(['[', ']']).to_owned()),
        port_number(port)?,
    ))
}

fn port_number(port: i64) -> Result<i32, String> {
    match i32::try_from(port) {
        Ok(port @ -1..=65535) => Ok(port),
        _ => Err(format!(
            "Could not parse port \"{port}\": expected -1 to 65535"
        )),
    }
}

fn port(value: &Value) -> Result<i32, String> {
    port_number(int(value, -1..=65535)?)
}

fn subjects(value: &Value) -> Result<Vec<String>, String> {
    let one = |value: &Value| {
        let Data::Text(subject) = &value.data else {
            return Err(format!(
                "Expected subject permissions to be a subject, or array of subjects, got {}",
                value.kind()
            ));
        };
        let pattern = subject.split_whitespace().next().unwrap_or("");
        match token::is_valid_subscription(pattern.as_bytes()) {
            true => Ok(subject.clone()),
            false => Err(format!("Subject {subject:?} is not a valid subject")),
        }
    };
    match &value.data {
        Data::Array(values) => values.iter().map(one).collect(),
        _ => Ok(vec![one(value)?]),
    }
}

fn entries<'v>(value: &'v Value, what: &str) -> Result<&'v [Entry], String> {
    match &value.data {
        Data::Map(entries) => Ok(entries),
        _ => Err(format!(
            "Expected {what} to be a map/struct, got {}",
            value.kind()
        )),
    }
}

/// The old form (lists of allowed subjects) allows nothing in a direction it leaves out; the form
/// with `allow` and `deny` allows everything there, as in the servers that brought it.
fn permissions(value: &Value) -> Result<PermissionOptions, String> {
    let mut given: [Option<SubjectRules>; 2] = [None, None];
    let mut old_form = true;
    for entry in entries(value, "user permissions")? {
        let direction = match entry.key.to_ascii_lowercase().as_str() {
            "publish" | "pub" | "import" if !entry.key.eq_ignore_ascii_case("import") => 0,
            "subscribe" | "sub" => 1,
            other => return Err(format!("Unknown field {other} parsing permissions")),
        };
        let rules = match &entry.value.data {
            Data::Map(rules) => {
                old_form = false;
                let mut both = SubjectRules::default();
                for rule in rules {
                    match rule.key.to_ascii_lowercase().as_str() {
                        "allow" => both.allow = Some(subjects(&rule.value)?),
                        "deny" => both.deny = subjects(&rule.value)?,
                        other => return Err(format!("Unknown field {other} parsing permissions")),
                    }
                }
                both
            }
            _ => SubjectRules {
                allow: Some(subjects(&entry.value)?),
                deny: Vec::new(),
            },
        };
        given[direction] = Some(rules);
    }
    let absent = || SubjectRules {
        allow: old_form.then(Vec::new),
        deny: Vec::new(),
    };
    let [publish, subscribe] = given.map(|rules| rules.unwrap_or_else(absent));
    Ok(PermissionOptions { publish, subscribe })
}

fn users(value: &Value) -> Result<Vec<UserOptions>, String> {
    let Data::Array(values) = &value.data else {
        return Err(format!(
            "Expected users field to be an array, got {}",
            value.kind()
        ));
    };
    let mut users = Vec::new();
    for value in values {
        let mut user = UserOptions::default();
        for entry in entries(value, "user entry")? {
            match entry.key.to_ascii_lowercase().as_str() {
                "user" | "username" => user.name = text(&entry.value)?,
                "password" | "pass" => user.password = Hidden(text(&entry.value)?),
                "permission" | "permissions" | "authorization" => {
                    user.permissions = Some(permissions(&entry.value)?)
                }
                _ => {}
            }
        }
        if user.name.is_empty() || user.password.0.is_empty() {
            return Err("User entry requires a user and a password".into());
        }
        users.push(user);
    }
    Ok(users)
}

/// One key of a tls block, which is on once it has any.
fn tls_key(tls: &mut TlsOptions, key: &str, value: &Value) -> Result<(), String> {
    match key {
        "cert_file" => tls.cert_file = text(value)?,
        "key_file" => tls.key_file = text(value)?,
        "ca_file" => tls.ca_file = text(value)?,
        "verify" => tls.verify = boolean(value)?,
        "timeout" => tls.timeout = duration(value)?.as_secs_f64(),
        "cipher_suites" => {
            tls.cipher_suites = texts(value)?;
            if tls.cipher_suites.is_empty() {
                return Err("error parsing tls config, 'cipher_suites' cannot be empty".into());
            }
        }
        "curve_preferences" => tls.curves = texts(value)?,
        "handshake_first" => tls.handshake_first = boolean(value)?,
        other => {
            return Err(format!(
                "error parsing tls config, unknown field [{other:?}]"
            ));
        }
    }
    tls.enabled = true;
    Ok(())
}

fn texts(value: &Value) -> Result<Vec<String>, String> {
    match &value.data {
        Data::Array(values) => values.iter().map(text).collect(),
        _ => expected(value, "a list of names"),
    }
}

/// `-cluster`: a URL. One without credentials takes those of the file away.
fn cluster_url(cluster: &mut ClusterOptions, text: &str) -> Result<(), String> {
    if text.is_empty() {
        cluster.port = 0;
        return Ok(());
    }
    // -1 asks for any free port, but no URL can say that.
    let (text, any_port) = match text.strip_suffix(":-1") {
        Some(rest) => (format!("{rest}:1"), true),
        None => (text.to_owned(), false),
    };
    let url = RouteUrl::parse(&text)?;
    if !url.user.is_empty() && url.password.0.is_empty() {
        return Err("expected cluster password to be set".into());
    }
    cluster.host = url.host;
    cluster.port = if any_port { -1 } else { i32::from(url.port) };
    cluster.user = url.user;
    cluster.password = url.password;
    Ok(())
}

fn cluster_authorization(cluster: &mut ClusterOptions, value: &Value) -> Result<(), String> {
    for entry in entries(value, "cluster authorization")? {
        match entry.key.to_ascii_lowercase().as_str() {
            "user" | "username" => cluster.user = text(&entry.value)?,
            "password" | "pass" => cluster.password = Hidden(text(&entry.value)?),
            "timeout" => cluster.auth_timeout = duration(&entry.value)?.as_secs_f64(),
            "users" => return Err("Cluster authorization does not allow multiple users".into()),
            _ => {}
        }
    }
    Ok(())
}

fn routes(value: &Value) -> Result<Vec<RouteUrl>, String> {
    match &value.data {
        Data::Array(urls) => urls
            .iter()
            .map(|url| RouteUrl::parse(&text(url)?))
            .collect(),
        Data::Text(url) => Ok(vec![RouteUrl::parse(url)?]),
        _ => expected(value, "a list of URLs"),
    }
}

fn comma_list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
}

macro_rules! row {
    ($key:literal $aliases:tt, $flags:tt, $kind:ident, $group:ident, $default:literal, $reload:literal, $doc:literal, $set:expr) => {
        Row {
            key: $key,
            aliases: &$aliases,
            flags: &$flags,
            kind: Kind::$kind,
            group: Group::$group,
            default: $default,
            reload: $reload,
            doc: $doc,
            set: $set,
        }
    };
}
pub(super) use row;

#[rustfmt::skip]
static CORE: &[Row] = &[
    row!("listen" [], [], Text, Server, "", false, "Client address as host:port, or a port alone.",
        |o, v| { let (host, port) = address(v)?; o.port = port; if let Some(host) = host { o.host = host }; Ok(()) }),
    row!("host" ["net"], ["a", "addr", "net"], Text, Server, "0.0.0.0", false, "Bind to this host address.",
        |o, v| { o.host = text(v)?; Ok(()) }),
    row!("port" [], ["p", "port"], Int, Server, "4222", false, "Port for clients; -1 takes any free one.",
        |o, v| { o.port = port(v)?; Ok(()) }),
    row!("client_advertise" [], ["client_advertise"], Text, Server, "", true, "Address (host or host:port) told to clients in place of the own one.",
        |o, v| { o.client_advertise = text(v)?; Ok(()) }),
    row!("server_name" [], ["server_name", "n", "name"], Text, Server, "the server id", false, "Name of this server, shown to clients and in monitoring.",
        |o, v| { o.server_name = text(v)?; Ok(()) }),
    row!("threads" [], ["threads"], Int, Server, "one per core", false, "Number of event loops.",
        |o, v| { o.threads = int(v, 0..=256)? as usize; Ok(()) }),
    row!("http_port" ["monitor_port"], ["m", "http_port"], Int, Server, "0 (off)", false, "Port for monitoring by HTTP.",
        |o, v| { o.http_port = port(v)?; Ok(()) }),
    row!("https_port" [], ["ms", "https_port"], Int, Server, "0 (off)", false, "Port for monitoring by HTTPS.",
        |o, v| { o.https_port = port(v)?; Ok(()) }),
    row!("http" [], [], Text, Server, "", false, "Monitoring address as host:port, or a port alone.",
        |o, v| { let (host, port) = address(v)?; o.http_port = port; if let Some(host) = host { o.http_host = host }; Ok(()) }),
    row!("https" [], [], Text, Server, "", false, "The same for HTTPS.",
        |o, v| { let (host, port) = address(v)?; o.https_port = port; if let Some(host) = host { o.http_host = host }; Ok(()) }),
    row!("max_payload" [], [], Int, Server, "1mb", true, "Largest payload of a message in bytes; negative: no limit.",
        |o, v| { o.max_payload = int(v, i64::MIN..=i64::from(i32::MAX))?; if o.max_payload == 0 { o.max_payload = 1 << 20 }; Ok(()) }),
    row!("max_control_line" [], [], Int, Server, "1kb", true, "Largest unfinished protocol line in bytes.",
        |o, v| { o.max_control_line = int(v, 1..=64 << 20)? as usize; Ok(()) }),
    row!("max_connections" ["max_conn"], [], Int, Server, "64kb", true, "Most client connections; negative: no limit.",
        |o, v| { o.max_connections = int(v, i64::MIN..=i64::MAX)?; if o.max_connections == 0 { o.max_connections = 64 << 10 }; Ok(()) }),
    row!("max_subscriptions" ["max_subs"], [], Int, Server, "0 (no limit)", true, "Most subscriptions of one connection.",
        |o, v| { o.max_subscriptions = int(v, i64::MIN..=i64::MAX)?; Ok(()) }),
    row!("max_pending" [], ["max_pending"], Int, Server, "64mb", true, "Bytes kept for a connection that reads too slowly, before it is cut off.",
        |o, v| { o.max_pending = int(v, 1 << 10..=i64::MAX)? as usize; Ok(()) }),
    row!("ping_interval" [], [], Duration, Server, "120", true, "Time between PINGs to a client, in seconds or as a duration.",
        |o, v| { o.ping_interval = duration(v)?; if o.ping_interval.is_zero() { o.ping_interval = Duration::from_secs(120) }; Ok(()) }),
    row!("ping_max" [], [], Int, Server, "2", true, "PINGs a client may leave unanswered.",
        |o, v| { o.ping_max = int(v, 0..=1 << 20)? as u32; Ok(()) }),
    row!("write_deadline" [], [], Duration, Server, "2s", true, "A connection that takes nothing of what is pending for this long is cut off.",
        |o, v| { o.write_deadline = duration(v).map_err(|error| format!("error parsing write_deadline: {error}"))?; Ok(()) }),
    row!("lame_duck_duration" [], [], Duration, Server, "2m", true, "Time over which clients are closed in lame duck mode.",
        |o, v| { o.lame_duck_duration = duration(v)?; Ok(()) }),
    row!("lame_duck_grace_period" [], [], Duration, Server, "10s", true, "Time before the first client is closed in lame duck mode.",
        |o, v| { o.lame_duck_grace_period = duration(v)?; Ok(()) }),
    row!("pid_file" ["pidfile"], ["P", "pid"], Text, Server, "", true, "File to write the process id to.",
        |o, v| { o.pid_file = text(v)?; Ok(()) }),
    row!("prof_port" [], ["profile"], Int, Server, "0", false, "Accepted for compatibility; there is no Go profiler here.",
        |o, v| { o.prof_port = port(v)?; Ok(()) }),
    row!("" [], ["strict"], Bool, Server, "false", false, "Treat unknown keys in the configuration file as errors.",
        |o, v| { o.strict = boolean(v)?; Ok(()) }),

    row!("log_file" ["logfile"], ["l", "log"], Text, Logging, "stderr", true, "File to append log lines to.",
        |o, v| { o.log_file = text(v)?; Ok(()) }),
    row!("logtime" [], ["T", "logtime"], Bool, Logging, "true", true, "Begin log lines with the time.",
        |o, v| { o.logtime = boolean(v)?; Ok(()) }),
    row!("syslog" [], ["s", "syslog"], Bool, Logging, "false", true, "Log to the local syslog.",
        |o, v| { o.syslog = boolean(v)?; Ok(()) }),
    row!("remote_syslog" [], ["r", "remote_syslog"], Text, Logging, "", true, "Log to a syslog at udp://host:port, tcp://host:port or unix:///path.",
        |o, v| { o.remote_syslog = text(v)?; Ok(()) }),
    row!("debug" [], ["D", "debug"], Bool, Logging, "false", true, "Log connections coming, going, and why.",
        |o, v| { o.debug = boolean(v)?; Ok(()) }),
    row!("trace" [], ["V", "trace"], Bool, Logging, "false", true, "Log the protocol, with secrets masked.",
        |o, v| { o.trace = boolean(v)?; Ok(()) }),
    row!("" [], ["DV"], Bool, Logging, "false", false, "Debug and trace.",
        |o, v| { o.debug = boolean(v)?; o.trace = o.debug; Ok(()) }),

    row!("authorization.user" ["username"], ["user"], Text, Authorization, "", true, "The one user that may connect.",
        |o, v| { o.user = text(v)?; Ok(()) }),
    row!("authorization.password" ["pass"], ["pass"], Text, Authorization, "", true, "Password of that user, plain or as bcrypt hash.",
        |o, v| { o.password = Hidden(text(v)?); Ok(()) }),
    row!("authorization.token" [], ["auth"], Text, Authorization, "", true, "Token that clients must show, plain or as bcrypt hash.",
        |o, v| { o.token = Hidden(text(v)?); Ok(()) }),
    row!("authorization.timeout" [], [], Duration, Authorization, "1", true, "Seconds a client may take to send CONNECT.",
        |o, v| { o.auth_timeout = duration(v)?.as_secs_f64(); Ok(()) }),
    row!("authorization.users" [], [], Block, Authorization, "", true, "List of users: user, password, permissions.",
        |o, v| { o.users = users(v)?; Ok(()) }),
    row!("authorization.default_permissions" ["default_permission"], [], Block, Authorization, "", true, "Permissions of users without any of their own.",
        |o, v| { o.default_permissions = Some(permissions(v)?); Ok(()) }),
    row!("no_auth_user" [], [], Text, Authorization, "", true, "User that clients without credentials are taken for.",
        |o, v| { o.no_auth_user = text(v)?; Ok(()) }),

    row!("" [], ["tls"], Bool, Tls, "false", true, "Require TLS of clients; -tls=false switches the file's block off.",
        |o, v| { o.tls.enabled = boolean(v)?; Ok(()) }),
    row!("tls.cert_file" [], ["tlscert"], Text, Tls, "", true, "File with the server's certificate and those between it and the authority (PEM).",
        |o, v| tls_key(&mut o.tls, "cert_file", v)),
    row!("tls.key_file" [], ["tlskey"], Text, Tls, "", true, "File with the private key of the certificate (PEM).",
        |o, v| tls_key(&mut o.tls, "key_file", v)),
    row!("tls.ca_file" [], ["tlscacert"], Text, Tls, "", true, "File with the authorities client certificates are verified against (PEM).",
        |o, v| tls_key(&mut o.tls, "ca_file", v)),
    row!("tls.verify" [], ["tlsverify"], Bool, Tls, "false", true, "Require and verify client certificates.",
        |o, v| tls_key(&mut o.tls, "verify", v)),
    row!("tls.timeout" [], [], Duration, Tls, "0.5", true, "Seconds a handshake may take.",
        |o, v| tls_key(&mut o.tls, "timeout", v)),
    row!("tls.cipher_suites" [], [], Block, Tls, "all that are safe", true, "Cipher suites of TLS 1.2, by their names in Go.",
        |o, v| tls_key(&mut o.tls, "cipher_suites", v)),
    row!("tls.curve_preferences" [], [], Block, Tls, "all", true, "Curves in order of preference: X25519, CurveP256, CurveP384.",
        |o, v| tls_key(&mut o.tls, "curve_preferences", v)),
    row!("tls.handshake_first" [], [], Bool, Tls, "false", true, "Begin with the handshake; INFO comes inside TLS.",
        |o, v| tls_key(&mut o.tls, "handshake_first", v)),

    row!("cluster.listen" [], [], Text, Cluster, "", false, "Address for routes as host:port, or a port alone; without a port there is no clustering.",
        |o, v| { let (host, port) = address(v)?; o.cluster.port = port; if let Some(host) = host { o.cluster.host = host }; Ok(()) }),
    row!("" [], ["cluster", "cluster_listen"], Text, Cluster, "", false, "Address for routes as URL, nats://[user:password@]host:port; an empty one switches clustering off.",
        |o, v| cluster_url(&mut o.cluster, &text(v)?)),
    row!("cluster.host" ["net"], [], Text, Cluster, "0.0.0.0", false, "Take routes at this host address.",
        |o, v| { o.cluster.host = text(v)?; Ok(()) }),
    row!("cluster.port" [], [], Int, Cluster, "0 (off)", false, "Port for routes; -1 takes any free one.",
        |o, v| { o.cluster.port = port(v)?; Ok(()) }),
    row!("cluster.authorization" [], [], Block, Cluster, "", true, "User, password and timeout for routes.",
        |o, v| cluster_authorization(&mut o.cluster, v)),
    row!("cluster.routes" [], [], Block, Cluster, "", true, "List of routes to solicit, as URLs.",
        |o, v| { o.cluster.routes = routes(v)?; Ok(()) }),
    row!("" [], ["routes"], Text, Cluster, "", true, "Routes to solicit, parted by commas; in place of those of the file.",
        |o, v| { o.cluster.routes = comma_list(&text(v)?).map(RouteUrl::parse).collect::<Result<_, _>>()?; o.cluster.routes_by_flag = true; Ok(()) }),
    row!("cluster.cluster_advertise" ["advertise"], ["cluster_advertise"], Text, Cluster, "", true, "Address (host or host:port) told to other servers in place of the own one.",
        |o, v| { o.cluster.advertise = text(v)?; Ok(()) }),
    row!("cluster.no_advertise" [], ["no_advertise"], Bool, Cluster, "false", true, "Neither tell other servers our client addresses nor our clients theirs.",
        |o, v| { o.cluster.no_advertise = boolean(v)?; Ok(()) }),
    row!("cluster.connect_retries" [], ["connect_retries"], Int, Cluster, "0", true, "Further tries to reach a server that another one told of.",
        |o, v| { o.cluster.connect_retries = int(v, 0..=i64::from(u32::MAX))? as u32; Ok(()) }),
    row!("cluster.tls" [], [], Block, Cluster, "", true, "TLS of routes: the keys of the tls block; certificates are verified both ways.",
        |o, v| entries(v, "tls")?.iter().try_for_each(|entry| {
            let key = entry.key.to_ascii_lowercase();
            tls_key(&mut o.cluster.tls, &key, &entry.value).map_err(|error| format!("{}: {error}", entry.key))
        })),
    row!("cluster.max_pending" [], [], Int, Cluster, "256mb", true, "Bytes kept for a route that reads too slowly, before it is cut off.",
        |o, v| { o.cluster.max_pending = int(v, 1 << 10..=i64::MAX)? as usize; Ok(()) }),
];

/// All options: those of the core server, then those of streaming.
pub fn rows() -> impl DoubleEndedIterator<Item = &'static Row> + Clone {
    CORE.iter().chain(super::streaming::ROWS)
}

/// Blocks whose other keys are known to the original; what is in them is not read yet.
const KNOWN_BLOCKS: &[&str] = &["authorization", "tls", "cluster"];

/// Takes over what a file says. Errors and warnings name file, line and column; all are collected.
pub fn apply(
    options: &mut Options,
    file: &[Entry],
    warnings: &mut Vec<String>,
    streaming: bool,
) -> Result<(), String> {
    let mut errors = Vec::new();
    for entry in file {
        let key = entry.key.to_ascii_lowercase();
        // Read by the streaming part.
        if key == "streaming" || (streaming && super::streaming::knows(&key)) {
            continue;
        }
        match (&entry.value.data, KNOWN_BLOCKS.contains(&key.as_str())) {
            (Data::Map(inner), true) => {
                for inner in inner {
                    let path = format!("{key}.{}", inner.key.to_ascii_lowercase());
                    apply_one(options, &path, inner, warnings, &mut errors);
                }
            }
            (_, true) => errors.push(format!(
                "{}: {key}: expected a map, got {}",
                entry.at,
                entry.value.kind()
            )),
            _ => apply_one(options, &key, entry, warnings, &mut errors),
        }
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(errors.join("\n")),
    }
}

fn apply_one(
    options: &mut Options,
    path: &str,
    entry: &Entry,
    warnings: &mut Vec<String>,
    errors: &mut Vec<String>,
) {
    match find(path) {
        Some(row) => {
            if let Err(error) = (row.set)(options, &entry.value) {
                errors.push(format!("{}: {}: {error}", entry.value.at, entry.key));
            }
        }
        // A map may serve as a variable, and any other key too: only plain mistakes are worth a word.
        None => {
            let near =
                nearest(path).map_or(String::new(), |near| format!(", did you mean {near:?}?"));
            warnings.push(format!("{}: unknown field {:?}{near}", entry.at, entry.key));
        }
    }
}

/// The row of a key, by its name or an alias.
pub(super) fn find(path: &str) -> Option<&'static Row> {
    let (block, name) = path.rsplit_once('.').unwrap_or(("", path));
    rows().find(|row| {
        let (row_block, row_name) = row.key.rsplit_once('.').unwrap_or(("", row.key));
        !row.key.is_empty()
            && row_block == block
            && (row_name == name || row.aliases.contains(&name))
    })
}

/// The known key most like this one, if any is.
fn nearest(path: &str) -> Option<&'static str> {
    rows()
        .filter(|row| !row.key.is_empty())
        .map(|row| (distance(path, row.key), row.key))
        .min()
        .filter(|(distance, _)| *distance <= 2)
        .map(|(_, key)| key)
}

fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let cost = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// docs/CONFIG.md.
pub fn documentation() -> String {
    let mut text = String::from(
        "# Configuration\n\nGenerated from the table of options; `MIDGE_REWRITE_DOCS=1 cargo test documentation` writes it anew.\n\n\
         A configuration file (`-c FILE`) is read in gnatsd's grammar; flags win over the file. Unknown keys are warned about at the\n\
         start and are errors under `-t` and `--strict`.\n",
    );
    for (group, title) in Group::ALL {
        text += &format!(
            "\n## {title}\n\n| key | flags | default | reload | meaning |\n|---|---|---|---|---|\n"
        );
        for row in rows().filter(|row| row.group == group) {
            let names: Vec<String> = std::iter::once(&row.key)
                .chain(row.aliases)
                .filter(|name| !name.is_empty())
                .map(|name| format!("`{name}`"))
                .collect();
            let flags: Vec<String> = row
                .flags
                .iter()
                .map(|flag| format!("`{}`", dashed(flag)))
                .collect();
            let reload = if row.reload { "yes" } else { "" };
            text += &format!(
                "| {} | {} | {} | {reload} | {} |\n",
                names.join(" "),
                flags.join(" "),
                row.default,
                row.doc
            );
        }
    }
    text
}

/// A flag as users write it.
pub fn dashed(flag: &str) -> String {
    if flag.len() <= 2 {
        format!("-{flag}")
    } else {
        format!("--{flag}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file;

    fn read(text: &str) -> Result<(Options, Vec<String>), String> {
        let (mut options, mut warnings) = (Options::default(), Vec::new());
        apply(
            &mut options,
            &file::read_text(text, "t")?,
            &mut warnings,
            false,
        )?;
        Ok((options, warnings))
    }

    #[test]
    fn no_name_stands_twice() {
        let mut seen = std::collections::HashSet::new();
        for row in rows() {
            for flag in row.flags {
                assert!(seen.insert(format!("-{flag}")), "{flag}");
            }
            let block = row.key.rsplit_once('.').map_or("", |(block, _)| block);
            for name in std::iter::once(row.key.rsplit('.').next().unwrap_or(""))
                .chain(row.aliases.iter().copied())
            {
                assert!(
                    name.is_empty() || seen.insert(format!("{block}.{name}")),
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn documentation_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/CONFIG.md");
        if std::env::var_os("MIDGE_REWRITE_DOCS").is_some() {
            std::fs::write(path, documentation()).unwrap();
        }
        assert_eq!(
            std::fs::read_to_string(path).unwrap_or_default(),
            documentation(),
            "run with MIDGE_REWRITE_DOCS=1"
        );
    }

    #[test]
    fn permissions_in_both_forms() {
        let old = read(
            "authorization { users = [{user: a, password: b, permissions: {publish: 'x.>'}}] }",
        )
        .unwrap()
        .0;
        let old = old.users[0].permissions.clone().unwrap();
        assert_eq!(
            (old.publish.allow, old.subscribe.allow),
            (Some(vec!["x.>".into()]), Some(vec![]))
        );
        let new = read(
            "authorization { users = [{user: a, password: b, permissions: {publish: {deny: x}}}] }",
        )
        .unwrap()
        .0;
        let new = new.users[0].permissions.clone().unwrap();
        assert_eq!(
            (new.publish.allow, new.publish.deny, new.subscribe.allow),
            (None, vec!["x".to_string()], None)
        );
    }

    #[test]
    fn mistakes_are_told_all_at_once() {
        let error = read("port: yes\nmax_payload: [1]\nlisten: '127.0.0.1:abc'").unwrap_err();
        assert_eq!(
            error,
            "t:1:7: port: expected an integer, got a boolean\nt:2:14: max_payload: expected an integer, got an array\n\
             t:3:9: listen: Could not parse port \"abc\""
        );
        let (_, warnings) = read("max_paylod: 5").unwrap();
        assert_eq!(
            warnings,
            ["t:1:1: unknown field \"max_paylod\", did you mean \"max_payload\"?"]
        );
    }

    #[test]
    fn durations() {
        for (text, expect) in [
            ("2s", Some(2000)),
            ("1m30s", Some(90_000)),
            ("300ms", Some(300)),
            ("2 parsecs", None),
            ("", None),
            ("5", None),
        ] {
            assert_eq!(
                go_duration(text),
                expect.map(Duration::from_millis),
                "{text}"
            );
        }
    }
}
