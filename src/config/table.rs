//! Every option, once: file key, flags, kind, default, whether a reload takes it, and what it does.
//! The reader of files, the command line, `--help` and docs/CONFIG.md all come from here.

use super::diff::Setting;
use super::file::{Data, Entry, Found, Position, Value, integer};
use super::options::{
    ClusterOptions, Hidden, Options, PermissionOptions, ResponseOptions, SubjectRules, TlsOptions,
    UserOptions,
};
use super::route_url::{RouteUrl, split_host_port};
use crate::subject::token;
use crate::util::nkey;
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

type Set = fn(&mut Options, &Value) -> Result<(), Trouble>;

/// What is wrong with a value: with all of it, or at places inside.
#[derive(Debug, Default)]
pub struct Trouble(Vec<(Option<Position>, String)>);

impl From<String> for Trouble {
    fn from(text: String) -> Self {
        Self(vec![(None, text)])
    }
}

impl From<&str> for Trouble {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (_, text)) in self.0.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { "; " })?;
            f.write_str(text)?;
        }
        Ok(())
    }
}

impl Trouble {
    /// The value of a result; what went wrong is kept, with its place where it has none yet.
    pub(super) fn take<T>(
        &mut self,
        at: &Position,
        result: Result<T, impl Into<Trouble>>,
    ) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(trouble) => {
                let more: Trouble = trouble.into();
                let placed = more.0.into_iter().map(|(place, text)| {
                    let place = place.unwrap_or_else(|| at.clone());
                    (Some(place), text)
                });
                self.0.extend(placed);
                None
            }
        }
    }

    pub(super) fn or<T>(self, value: T) -> Result<T, Trouble> {
        if self.0.is_empty() {
            Ok(value)
        } else {
            Err(self)
        }
    }
}

/// What a reload does about a changed option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// It refuses, and names the option so ("" for the key).
    No(&'static str),
    /// It takes over the new value, and says so in these words ("" for `Reloaded: key`) with the
    /// value behind them.
    Yes(&'static str),
    /// The same without the value.
    Quiet(&'static str),
}

/// Where the value of a row is found.
pub struct Field {
    pub name: &'static str,
    pub get: fn(&Options) -> &dyn Setting,
}

pub struct Row {
    /// Name in the file, "" for flags alone; a dot parts block and key.
    pub key: &'static str,
    pub aliases: &'static [&'static str],
    pub flags: &'static [&'static str],
    pub kind: Kind,
    pub group: Group,
    pub default: &'static str,
    pub reload: Reload,
    pub doc: &'static str,
    pub set: Set,
    /// None where another row has it, several in a block.
    pub fields: &'static [Field],
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
        false => Err(match (*range.start(), *range.end()) {
            (start, i64::MAX) => format!("{number} is out of range: expected at least {start}"),
            (start, end) => format!("{number} is out of range: expected {start} to {end}"),
        }),
    }
}

pub(super) fn text(value: &Value) -> Result<String, String> {
    match &value.data {
        Data::Text(text) => Ok(text.clone()),
        Data::Int(number) => Ok(number.to_string()),
        _ => expected(value, "a string"),
    }
}

/// A password or token. A number would lose its leading zeros, so it needs quotes.
fn secret(value: &Value) -> Result<Hidden, String> {
    match &value.data {
        Data::Text(text) => Ok(Hidden(text.clone())),
        Data::Int(_) | Data::Float(_) => expected(value, "a string in quotes"),
        _ => expected(value, "a string"),
    }
}

/// Go's durations (`1m30s`, `300ms`), or a number of seconds.
fn duration(value: &Value) -> Result<Duration, String> {
    match &value.data {
        Data::Int(seconds) => u64::try_from(*seconds)
            .map(|seconds| Duration::from_secs(seconds).min(DURATION_MAX))
            .map_err(|_| "a duration cannot be negative".into()),
        Data::Float(seconds) if *seconds >= 0.0 => Ok(bounded(*seconds)),
        Data::Text(text) => written_duration(text, "300ms"),
        _ => expected(value, "a duration such as \"2s\""),
    }
}

/// What is longer counts as this: whoever writes the longest there is means never. Whatever is reckoned with
/// two of them and the time of day fits in 64 bits of nanoseconds.
pub const DURATION_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

const _: () = assert!(DURATION_MAX.as_nanos() < i64::MAX as u128 / 2);

/// Go's longest duration, in seconds.
const GO_SECONDS_MAX: f64 = i64::MAX as f64 / 1e9;

fn bounded(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.min(DURATION_MAX.as_secs_f64()))
}

/// One of Go's durations. `such_as`: an example for the message.
pub(super) fn written_duration(text: &str, such_as: &str) -> Result<Duration, String> {
    match go_seconds(text) {
        None => Err(format!(
            "{text:?} is no duration such as \"2s\" or {such_as:?}"
        )),
        Some(seconds) if seconds > GO_SECONDS_MAX => Err(format!(
            "{text:?} is too long for a duration; for never, write \"2562047h\""
        )),
        Some(seconds) => Ok(bounded(seconds)),
    }
}

pub fn go_duration(text: &str) -> Option<Duration> {
    written_duration(text, "").ok()
}

fn go_seconds(text: &str) -> Option<f64> {
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
    (!text.is_empty()).then_some(total)
}

/// `host:port`, `:port` or a port alone.
fn address(value: &Value) -> Result<(Option<String>, i32), String> {
    let text = match &value.data {
        Data::Int(port) => return Ok((None, port_number(*port)?)),
        Data::Text(text) => text,
        _ => return expected(value, "host:port or a port"),
    };
    let (host, port) =
        split_host_port(text).map_err(|_| format!("Could not parse address string {text:?}"))?;
    let port = port
        .parse()
        .map_err(|_| format!("Could not parse port {port:?}"))?;
    Ok((Some(host.to_owned()), port_number(port)?))
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

/// A limit of pending bytes: 0 for the default, or enough for a few lines.
fn pending(value: &Value) -> Result<usize, String> {
    match int(value, 0..=i64::MAX)? {
        0 => Ok(0),
        _ => int(value, 1 << 10..=i64::MAX).map(|bytes| bytes as usize),
    }
}

fn subjects(value: &Value) -> Result<Vec<String>, Trouble> {
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
    let mut trouble = Trouble::default();
    let values = match &value.data {
        Data::Array(values) => values,
        _ => std::slice::from_ref(value),
    };
    let subjects = values
        .iter()
        .filter_map(|value| trouble.take(&value.at, one(value)))
        .collect();
    trouble.or(subjects)
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
fn permissions(value: &Value) -> Result<PermissionOptions, Trouble> {
    let mut trouble = Trouble::default();
    let mut given: [Option<SubjectRules>; 2] = [None, None];
    let mut responses = None;
    let mut old_form = true;
    for entry in entries(value, "user permissions")? {
        let at = &entry.value.at;
        let direction = match entry.key.to_ascii_lowercase().as_str() {
            "publish" | "pub" => 0,
            "subscribe" | "sub" => 1,
            "allow_responses" | "allow_response" => {
                old_form = false;
                responses = trouble.take(at, allow_responses(&entry.value)).flatten();
                continue;
            }
            other => {
                let text = format!("Unknown field {other} parsing permissions");
                trouble.0.push((Some(entry.at.clone()), text));
                continue;
            }
        };
        old_form &= !matches!(entry.value.data, Data::Map(_));
        given[direction] = trouble.take(at, subject_rules(&entry.value));
    }
    let absent = || SubjectRules {
        allow: old_form.then(Vec::new),
        deny: Vec::new(),
    };
    let [mut publish, subscribe] = given.map(|rules| rules.unwrap_or_else(absent));
    if responses.is_some() {
        // Who may answer may publish nothing else, unless it says what.
        publish.allow.get_or_insert_default();
    }
    trouble.or(PermissionOptions {
        publish,
        subscribe,
        responses,
    })
}

fn subject_rules(value: &Value) -> Result<SubjectRules, Trouble> {
    let Data::Map(entries) = &value.data else {
        return Ok(SubjectRules {
            allow: Some(subjects(value)?),
            deny: Vec::new(),
        });
    };
    let mut trouble = Trouble::default();
    let mut rules = SubjectRules::default();
    for entry in entries {
        match entry.key.to_ascii_lowercase().as_str() {
            "allow" => rules.allow = trouble.take(&entry.value.at, subjects(&entry.value)),
            "deny" => {
                let deny = trouble.take(&entry.value.at, subjects(&entry.value));
                rules.deny = deny.unwrap_or_default();
            }
            other => {
                let text = format!("Unknown field {other} parsing permissions");
                trouble.0.push((Some(entry.at.clone()), text));
            }
        }
    }
    trouble.or(rules)
}

/// `true`, or a map that says how many answers and for how long; negative numbers are no limit.
fn allow_responses(value: &Value) -> Result<Option<ResponseOptions>, Trouble> {
    let entries = match &value.data {
        Data::Bool(on) => return Ok(on.then(ResponseOptions::default)),
        Data::Map(entries) => entries,
        _ => {
            return expected(value, "true, false or a map of max and expires").map_err(Into::into);
        }
    };
    let mut trouble = Trouble::default();
    let mut given = ResponseOptions::default();
    for entry in entries {
        let at = &entry.value.at;
        match entry.key.to_ascii_lowercase().as_str() {
            "max" | "max_msgs" | "max_messages" | "max_responses" => {
                match trouble.take(at, int(&entry.value, -1..=i64::from(i32::MAX))) {
                    Some(0) | None => {} // the default
                    Some(max) => given.messages_max = u32::try_from(max).ok(),
                }
            }
            "expires" | "expiration" | "ttl" => match &entry.value.data {
                Data::Int(-1) => given.expires = None,
                _ => match trouble.take(at, duration(&entry.value)) {
                    Some(time) if !time.is_zero() => given.expires = Some(time),
                    _ => {}
                },
            },
            other => {
                let text = format!("Unknown field {other} parsing permissions");
                trouble.0.push((Some(entry.at.clone()), text));
            }
        }
    }
    trouble.or(Some(given))
}

/// `certified`: certificates name the users, who need no password then.
fn users(value: &Value, certified: bool) -> Result<Vec<UserOptions>, Trouble> {
    let Data::Array(values) = &value.data else {
        return Err(format!("Expected users field to be an array, got {}", value.kind()).into());
    };
    let mut trouble = Trouble::default();
    let users = values
        .iter()
        .filter_map(|value| trouble.take(&value.at, user(value, certified)))
        .collect();
    trouble.or(users)
}

fn user(value: &Value, certified: bool) -> Result<UserOptions, Trouble> {
    let mut trouble = Trouble::default();
    let mut user = UserOptions::default();
    for entry in entries(value, "user entry")? {
        let (at, value) = (&entry.value.at, &entry.value);
        match entry.key.to_ascii_lowercase().as_str() {
            "user" | "username" => user.name = trouble.take(at, text(value)).unwrap_or_default(),
            "password" | "pass" => {
                user.password = trouble.take(at, secret(value)).unwrap_or_default();
            }
            "nkey" => user.nkey = trouble.take(at, user_nkey(value)).unwrap_or_default(),
            "permission" | "permissions" | "authorization" => {
                user.permissions = trouble.take(at, permissions(value));
            }
            _ => {} // `unknown_inside` warns about it
        }
    }
    let user = trouble.or(user)?;
    let (name, password) = (!user.name.is_empty(), !user.password.0.is_empty());
    match user.nkey.is_empty() {
        true if !(name && (password || certified)) => {
            Err("User entry requires a user and a password".into())
        }
        false if name || password => Err("Nkey users do not take usernames or passwords".into()),
        _ => Ok(user),
    }
}

fn user_nkey(value: &Value) -> Result<String, String> {
    let key = text(value)?;
    match nkey::decode_user(&key) {
        Some(_) => Ok(key),
        None if key.starts_with('S') => {
            // A seed: whoever reads the log must not learn it.
            Err("Not a valid public nkey for a user: this is a seed, which is secret".into())
        }
        None => Err(format!("Not a valid public nkey for a user: {key:?}")),
    }
}

/// One key of a tls block, which is on once it has any.
fn tls_key(tls: &mut TlsOptions, key: &str, value: &Value) -> Result<(), String> {
    match key {
        "cert_file" => tls.cert_file = text(value)?,
        "key_file" => tls.key_file = text(value)?,
        "ca_file" => tls.ca_file = text(value)?,
        "verify" => tls.verify = boolean(value)?,
        "verify_and_map" => tls.map = boolean(value)?,
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

/// A whole tls block.
fn tls_block(tls: &mut TlsOptions, value: &Value) -> Result<(), Trouble> {
    let mut trouble = Trouble::default();
    for entry in entries(value, "tls")? {
        let key = entry.key.to_ascii_lowercase();
        trouble.take(&entry.value.at, tls_key(tls, &key, &entry.value));
    }
    trouble.or(())
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
    let url = match without_host(&text) {
        Some(completed) => RouteUrl {
            host: String::new(),
            ..RouteUrl::parse(&completed)?
        },
        None => RouteUrl::parse(&text)?,
    };
    if !url.user.is_empty() && url.password.0.is_empty() {
        return Err("expected cluster password to be set".into());
    }
    cluster.host = url.host;
    cluster.port = if any_port { -1 } else { i32::from(url.port) };
    cluster.user = url.user;
    cluster.password = url.password;
    Ok(())
}

/// A URL that names a port alone, with some host: to listen everywhere, which only a URL of ours can ask for.
fn without_host(text: &str) -> Option<String> {
    let (before, port) = text.rsplit_once(':')?;
    let bare = before.ends_with("://") || before.ends_with('@');
    bare.then(|| format!("{before}anywhere:{port}"))
}

fn cluster_authorization(cluster: &mut ClusterOptions, value: &Value) -> Result<(), Trouble> {
    let mut trouble = Trouble::default();
    for entry in entries(value, "cluster authorization")? {
        let (at, value) = (&entry.value.at, &entry.value);
        match entry.key.to_ascii_lowercase().as_str() {
            "user" | "username" => cluster.user = trouble.take(at, text(value)).unwrap_or_default(),
            "password" | "pass" => {
                cluster.password = trouble.take(at, secret(value)).unwrap_or_default();
            }
            "timeout" => {
                let timeout = trouble.take(at, duration(value)).unwrap_or_default();
                cluster.auth_timeout = timeout.as_secs_f64();
            }
            "users" => {
                let text = "Cluster authorization does not allow multiple users";
                trouble.0.push((Some(entry.at.clone()), text.into()));
            }
            _ => {} // `unknown_inside` warns about it
        }
    }
    trouble.or(())
}

fn routes(value: &Value) -> Result<Vec<RouteUrl>, Trouble> {
    let values = match &value.data {
        Data::Array(values) => values,
        Data::Text(_) => std::slice::from_ref(value),
        _ => return expected(value, "a list of URLs").map_err(Into::into),
    };
    let mut trouble = Trouble::default();
    let urls = values
        .iter()
        .filter_map(|value| {
            let url = text(value).and_then(|url| RouteUrl::parse(&url));
            trouble.take(&value.at, url)
        })
        .collect();
    trouble.or(urls)
}

fn comma_list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
}

macro_rules! row {
    ($key:literal $aliases:tt, $flags:tt, $kind:ident, $group:ident, $default:literal, $reload:tt, $doc:literal, $set:expr
        $(, $first:ident $(. $more:ident)*)*) => {
        Row {
            key: $key,
            aliases: &$aliases,
            flags: &$flags,
            kind: Kind::$kind,
            group: Group::$group,
            default: $default,
            reload: $crate::config::table::reload!($reload),
            doc: $doc,
            set: $set,
            fields: &[$($crate::config::table::field!($first $(. $more)*)),*],
        }
    };
}

macro_rules! reload {
    (true) => {
        $crate::config::table::Reload::Yes("")
    };
    (false) => {
        $crate::config::table::Reload::No("")
    };
    ((yes $words:literal)) => {
        $crate::config::table::Reload::Yes($words)
    };
    ((quiet $words:literal)) => {
        $crate::config::table::Reload::Quiet($words)
    };
    ((no $name:literal)) => {
        $crate::config::table::Reload::No($name)
    };
}

macro_rules! field {
    ($($path:tt)+) => {
        $crate::config::table::Field {
            name: stringify!($($path)+),
            get: |options| &options.$($path)+,
        }
    };
}

pub(super) use {field, reload, row};

#[rustfmt::skip]
static CORE: &[Row] = &[
    row!("listen" [], [], Text, Server, "", false, "Client address as host:port, or a port alone.",
        |o, v| { let (host, port) = address(v)?; o.port = port; if let Some(host) = host { o.host = host }; Ok(()) }),
    row!("host" ["net"], ["a", "addr", "net"], Text, Server, "0.0.0.0", (no "Host"), "Bind to this host address.",
        |o, v| { o.host = text(v)?; Ok(()) }, host),
    row!("port" [], ["p", "port"], Int, Server, "4222", (no "Port"), "Port for clients; -1 takes any free one.",
        |o, v| { o.port = port(v)?; Ok(()) }, port),
    row!("client_advertise" [], ["client_advertise"], Text, Server, "", (yes "Reload: client_advertise"), "Address (host or host:port, IPv6 in brackets) told to clients in place of the own one.",
        |o, v| { o.client_advertise = text(v)?; Ok(()) }, client_advertise),
    row!("server_name" [], ["server_name", "n", "name"], Text, Server, "the server id", (no "ServerName"), "Name of this server, shown to clients and in monitoring.",
        |o, v| { o.server_name = text(v)?; Ok(()) }, server_name),
    row!("threads" [], ["threads"], Int, Server, "one per core", (no "Threads"), "Number of event loops.",
        |o, v| { o.threads = int(v, 0..=256)? as usize; Ok(()) }, threads),
    row!("http_port" ["monitor_port"], ["m", "http_port"], Int, Server, "0 (off)", (no "HTTPPort"), "Port for monitoring by HTTP.",
        |o, v| { o.http_port = port(v)?; Ok(()) }, http_port),
    row!("https_port" [], ["ms", "https_port"], Int, Server, "0 (off)", (no "HTTPSPort"), "Port for monitoring by HTTPS.",
        |o, v| { o.https_port = port(v)?; Ok(()) }, https_port),
    row!("http" [], [], Text, Server, "", (no "HTTPHost"), "Monitoring address as host:port, or a port alone.",
        |o, v| { let (host, port) = address(v)?; o.http_port = port; if let Some(host) = host { o.http_host = host }; Ok(()) }, http_host),
    row!("https" [], [], Text, Server, "", false, "The same for HTTPS.",
        |o, v| { let (host, port) = address(v)?; o.https_port = port; if let Some(host) = host { o.http_host = host }; Ok(()) }),
    row!("max_payload" [], [], Int, Server, "1mb", true, "Largest payload of a message in bytes; negative: no limit.",
        |o, v| { o.max_payload = int(v, i64::MIN..=i64::MAX)?; Ok(()) }, max_payload),
    row!("max_control_line" [], [], Int, Server, "1kb", true, "Largest unfinished protocol line in bytes.",
        |o, v| { o.max_control_line = int(v, 0..=64 << 20)? as usize; Ok(()) }, max_control_line),
    row!("max_connections" ["max_conn"], [], Int, Server, "64kb", true, "Most client connections; negative: no limit.",
        |o, v| { o.max_connections = int(v, i64::MIN..=i64::MAX)?; Ok(()) }, max_connections),
    row!("max_subscriptions" ["max_subs"], [], Int, Server, "0 (no limit)", true, "Most subscriptions of one connection.",
        |o, v| { o.max_subscriptions = int(v, i64::MIN..=i64::MAX)?; Ok(()) }, max_subscriptions),
    row!("max_subscription_tokens" ["max_sub_tokens"], [], Int, Server, "0 (no limit)", true, "Most tokens in the subject of a subscription.",
        |o, v| { o.max_subscription_tokens = int(v, 0..=255)? as usize; Ok(()) }, max_subscription_tokens),
    row!("no_header_support" [], [], Bool, Server, "false", false, "Neither offer nor take messages with headers.",
        |o, v| { o.no_header_support = boolean(v)?; Ok(()) }, no_header_support),
    row!("max_pending" [], ["max_pending"], Int, Server, "64mb", true, "Bytes kept for a connection that reads too slowly, before it is cut off.",
        |o, v| { o.max_pending = pending(v)?; Ok(()) }, max_pending),
    row!("ping_interval" [], [], Duration, Server, "120", true, "Time between PINGs to a client, in seconds or as a duration.",
        |o, v| { o.ping_interval = duration(v)?; Ok(()) }, ping_interval),
    row!("ping_max" [], [], Int, Server, "2", true, "PINGs a client may leave unanswered.",
        |o, v| { o.ping_max = int(v, 0..=1 << 20)? as u32; Ok(()) }, ping_max),
    row!("write_deadline" [], [], Duration, Server, "2s", true, "A connection that takes nothing of what is pending for this long is cut off.",
        |o, v| { o.write_deadline = duration(v).map_err(|error| format!("error parsing write_deadline: {error}"))?; Ok(()) }, write_deadline),
    row!("lame_duck_duration" [], [], Duration, Server, "2m", true, "Time over which clients are closed in lame duck mode.",
        |o, v| { o.lame_duck_duration = duration(v)?; Ok(()) }, lame_duck_duration),
    row!("lame_duck_grace_period" [], [], Duration, Server, "10s", true, "Time before the first client is closed in lame duck mode.",
        |o, v| { o.lame_duck_grace_period = duration(v)?; Ok(()) }, lame_duck_grace_period),
    row!("pid_file" ["pidfile"], ["P", "pid"], Text, Server, "", true, "File to write the process id to.",
        |o, v| { o.pid_file = text(v)?; Ok(()) }, pid_file),
    row!("ports_file_dir" [], ["ports_file_dir"], Text, Server, "", false, "Folder for a file, midge_PID.ports, that lists the URLs the server is reached at; removed at the end.",
        |o, v| { o.ports_file_dir = text(v)?; Ok(()) }, ports_file_dir),
    row!("prof_port" [], ["profile"], Int, Server, "0", (no "ProfPort"), "Accepted for compatibility; there is no Go profiler here.",
        |o, v| { o.prof_port = port(v)?; Ok(()) }, prof_port),
    row!("" [], ["strict"], Bool, Server, "false", false, "Treat unknown keys in the configuration file as errors.",
        |o, v| { o.strict = boolean(v)?; Ok(()) }, strict),

    row!("log_file" ["logfile"], ["l", "log"], Text, Logging, "stderr", true, "File to append log lines to.",
        |o, v| { o.log_file = text(v)?; Ok(()) }, log_file),
    row!("logfile_size_limit" ["log_size_limit"], ["log_size_limit"], Int, Logging, "0 (no limit)", true, "Move the log file away when it reaches this size in bytes, and begin a new one.",
        |o, v| { o.log_size_bytes_max = int(v, 0..=i64::MAX)? as u64; Ok(()) }, log_size_bytes_max),
    row!("logfile_max_num" ["log_max_num"], [], Int, Logging, "0 (all)", true, "Moved log files to keep; older ones are removed.",
        |o, v| { o.log_files_max = int(v, 0..=1 << 20)? as usize; Ok(()) }, log_files_max),
    row!("logtime" [], ["T", "logtime"], Bool, Logging, "true", true, "Begin log lines with the time.",
        |o, v| { o.logtime = boolean(v)?; Ok(()) }, logtime),
    row!("syslog" [], ["s", "syslog"], Bool, Logging, "false", true, "Log to the local syslog.",
        |o, v| { o.syslog = boolean(v)?; Ok(()) }, syslog),
    row!("remote_syslog" [], ["r", "remote_syslog"], Text, Logging, "", true, "Log to a syslog at udp://host:port, tcp://host:port or unix:///path.",
        |o, v| { o.remote_syslog = text(v)?; Ok(()) }, remote_syslog),
    row!("debug" [], ["D", "debug"], Bool, Logging, "false", true, "Log connections coming, going, and why.",
        |o, v| { o.debug = boolean(v)?; Ok(()) }, debug),
    row!("trace" [], ["V", "trace"], Bool, Logging, "false", true, "Log the protocol, with secrets masked.",
        |o, v| { o.trace = boolean(v)?; Ok(()) }, trace),
    row!("max_traced_msg_len" [], [], Int, Logging, "0 (all)", true, "Bytes of a payload shown by trace lines.",
        |o, v| { o.traced_bytes_max = int(v, 0..=i64::from(i32::MAX))? as usize; Ok(()) }, traced_bytes_max),
    row!("" [], ["DV"], Bool, Logging, "false", false, "Debug and trace.",
        |o, v| { o.debug = boolean(v)?; o.trace = o.debug; Ok(()) }),

    row!("authorization.user" ["username"], ["user"], Text, Authorization, "", (quiet "Reloaded: authorization username"), "The one user that may connect.",
        |o, v| { o.user = text(v)?; Ok(()) }, user),
    row!("authorization.password" ["pass"], ["pass"], Text, Authorization, "", true, "Password of that user, plain or as bcrypt hash.",
        |o, v| { o.password = secret(v)?; Ok(()) }, password),
    row!("authorization.token" [], ["auth"], Text, Authorization, "", true, "Token that clients must show, plain or as bcrypt hash.",
        |o, v| { o.token = secret(v)?; Ok(()) }, token),
    row!("authorization.timeout" [], [], Duration, Authorization, "1", true, "Seconds a client may take to send CONNECT.",
        |o, v| { o.auth_timeout = duration(v)?.as_secs_f64(); Ok(()) }, auth_timeout),
    row!("authorization.users" [], [], Block, Authorization, "", true, "List of users: user and password, or nkey; permissions. With an empty list nobody can log in.",
        |o, v| { o.users = Some(users(v, o.tls.map)?); Ok(()) }, users),
    row!("authorization.default_permissions" ["default_permission"], [], Block, Authorization, "", true, "Permissions of users without any of their own.",
        |o, v| { o.default_permissions = Some(permissions(v)?); Ok(()) }, default_permissions),
    row!("no_auth_user" [], [], Text, Authorization, "", true, "User that clients without credentials are taken for.",
        |o, v| { o.no_auth_user = text(v)?; Ok(()) }, no_auth_user),

    row!("always_enable_nonce" [], [], Bool, Authorization, "false", true, "Send a nonce in INFO although no user has an nkey.",
        |o, v| { o.always_enable_nonce = boolean(v)?; Ok(()) }, always_enable_nonce),

    row!("" [], ["tls"], Bool, Tls, "false", (yes "Reloaded: tls"), "Require TLS of clients; -tls=false switches it off, whatever file and other flags say.",
        |o, v| { o.tls.enabled = boolean(v)?; Ok(()) }, tls),
    row!("tls.cert_file" [], ["tlscert"], Text, Tls, "", true, "File with the server's certificate and those between it and the authority (PEM).",
        |o, v| Ok(tls_key(&mut o.tls, "cert_file", v)?)),
    row!("tls.key_file" [], ["tlskey"], Text, Tls, "", true, "File with the private key of the certificate (PEM).",
        |o, v| Ok(tls_key(&mut o.tls, "key_file", v)?)),
    row!("tls.ca_file" [], ["tlscacert"], Text, Tls, "", true, "File with the authorities client certificates are verified against (PEM).",
        |o, v| Ok(tls_key(&mut o.tls, "ca_file", v)?)),
    row!("tls.verify" [], ["tlsverify"], Bool, Tls, "false", true, "Require and verify client certificates, by the authorities in `ca_file`.",
        |o, v| Ok(tls_key(&mut o.tls, "verify", v)?)),
    row!("tls.verify_and_map" [], [], Bool, Tls, "false", true, "Verify client certificates, and take what they name (email, DNS name, URI or subject) for a user of the list.",
        |o, v| Ok(tls_key(&mut o.tls, "verify_and_map", v)?), tls.map),
    row!("tls.timeout" [], [], Duration, Tls, "0.5", true, "Seconds a handshake may take.",
        |o, v| Ok(tls_key(&mut o.tls, "timeout", v)?), tls.timeout),
    row!("tls.cipher_suites" [], [], Block, Tls, "all that are safe", true, "Cipher suites of TLS 1.2, by their names in Go.",
        |o, v| Ok(tls_key(&mut o.tls, "cipher_suites", v)?)),
    row!("tls.curve_preferences" [], [], Block, Tls, "all", true, "Curves in order of preference: X25519, CurveP256, CurveP384.",
        |o, v| Ok(tls_key(&mut o.tls, "curve_preferences", v)?)),
    row!("tls.handshake_first" [], [], Bool, Tls, "false", true, "Begin with the handshake; INFO comes inside TLS.",
        |o, v| Ok(tls_key(&mut o.tls, "handshake_first", v)?)),

    row!("cluster.listen" [], [], Text, Cluster, "", false, "Address for routes as host:port, or a port alone; without a port there is no clustering.",
        |o, v| { let (host, port) = address(v)?; o.cluster.port = port; if let Some(host) = host { o.cluster.host = host }; Ok(()) }),
    row!("" [], ["cluster", "cluster_listen"], Text, Cluster, "", false, "Address for routes as URL, nats://[user:password@]host:port; an empty one switches clustering off.",
        |o, v| Ok(cluster_url(&mut o.cluster, &text(v)?)?)),
    row!("cluster.host" ["net"], [], Text, Cluster, "0.0.0.0", (no "cluster host"), "Take routes at this host address.",
        |o, v| { o.cluster.host = text(v)?; Ok(()) }, cluster.host),
    row!("cluster.port" [], [], Int, Cluster, "0 (off)", (no "cluster port"), "Port for routes; -1 takes any free one.",
        |o, v| { o.cluster.port = port(v)?; Ok(()) }, cluster.port),
    row!("cluster.name" [], ["cluster_name"], Text, Cluster, "", (quiet "Reloaded: cluster"), "Name of the cluster, shown to clients and in monitoring. Servers that name it otherwise are not refused.",
        |o, v| { o.cluster.name = text(v)?; Ok(()) }, cluster.name),
    row!("cluster.authorization" [], [], Block, Cluster, "", (quiet "Reloaded: cluster"), "User, password and timeout for routes.",
        |o, v| cluster_authorization(&mut o.cluster, v), cluster.user, cluster.password, cluster.auth_timeout),
    row!("cluster.routes" [], [], Block, Cluster, "", (quiet "Reloaded: cluster routes"), "List of routes to solicit, as URLs.",
        |o, v| { o.cluster.routes = routes(v)?; Ok(()) }, cluster.routes),
    row!("" [], ["routes"], Text, Cluster, "", false, "Routes to solicit, parted by commas; in place of those of the file.",
        |o, v| { o.cluster.routes = comma_list(&text(v)?).map(RouteUrl::parse).collect::<Result<_, _>>()?; o.cluster.routes_by_flag = true; Ok(()) }, cluster.routes_by_flag),
    row!("cluster.cluster_advertise" ["advertise"], ["cluster_advertise"], Text, Cluster, "", (quiet "Reloaded: cluster"), "Address (host or host:port, IPv6 in brackets) told to other servers in place of the own one.",
        |o, v| { o.cluster.advertise = text(v)?; Ok(()) }, cluster.advertise),
    row!("cluster.no_advertise" [], ["no_advertise"], Bool, Cluster, "false", (quiet "Reloaded: cluster"), "Neither tell other servers our client addresses nor our clients theirs.",
        |o, v| { o.cluster.no_advertise = boolean(v)?; Ok(()) }, cluster.no_advertise),
    row!("cluster.connect_retries" [], ["connect_retries"], Int, Cluster, "0", (quiet "Reloaded: cluster"), "Further tries to reach a server that another one told of.",
        // Less than none is none there.
        |o, v| { o.cluster.connect_retries = int(v, i64::MIN..=i64::from(u32::MAX))?.max(0) as u32; Ok(()) }, cluster.connect_retries),
    row!("cluster.tls" [], [], Block, Cluster, "", (quiet "Reloaded: cluster"), "TLS of routes: the keys of the tls block; certificates are verified both ways.",
        |o, v| tls_block(&mut o.cluster.tls, v), cluster.tls),
    row!("cluster.max_pending" [], [], Int, Cluster, "256mb", (quiet "Reloaded: cluster"), "Bytes kept for a route that reads too slowly, before it is cut off.",
        |o, v| { o.cluster.max_pending = pending(v)?; Ok(()) }, cluster.max_pending),
];

/// All options: those of the core server, then those of streaming.
pub fn rows() -> impl DoubleEndedIterator<Item = &'static Row> + Clone {
    CORE.iter().chain(super::streaming::ROWS)
}

/// Blocks whose keys have rows of their own.
const KNOWN_BLOCKS: &[&str] = &["authorization", "tls", "cluster"];

/// The same of the streaming part.
const STREAMING_BLOCKS: &[&str] = &[
    "streaming",
    "streaming.store_limits",
    "streaming.file",
    "streaming.sql",
    "streaming.cluster",
    "streaming.tls",
];

/// Keys of blocks that are one row, for the warning about others. Permissions refuse unknown keys.
const KEYS_INSIDE: &[(&str, &[&str])] = &[
    (
        "authorization.users",
        &[
            "user",
            "username",
            "password",
            "pass",
            "nkey",
            "permission",
            "permissions",
            "authorization",
        ],
    ),
    (
        "cluster.authorization",
        &["user", "username", "password", "pass", "timeout", "users"],
    ),
];

/// Its keys are names of channels, whose keys are those of limits.
const CHANNELS: &str = "streaming.store_limits.channels";

/// What later servers know and midge does not do. A file that has it starts, as with gnatsd 1.1.0,
/// but whoever relies on it should be told more than that the key is unknown.
const NOT_SUPPORTED: &[(&str, &str)] = &[
    ("accounts", "its users cannot log in, and it guards nothing"),
    ("system_account", "there are no accounts"),
    ("system", "there are no accounts"),
    ("operator", "JWTs are not checked"),
    ("operators", "JWTs are not checked"),
    ("trusted", "JWTs are not checked"),
    ("trusted_keys", "JWTs are not checked"),
    ("resolver", "JWTs are not checked"),
    ("resolver_preload", "JWTs are not checked"),
    ("authorization.auth_callout", "no outside service is asked"),
    ("jetstream", "there is no JetStream"),
    ("leafnodes", "there are no leaf nodes"),
    ("leaf", "there are no leaf nodes"),
    ("gateway", "there are no gateways"),
    ("websocket", "there is no such listener"),
    ("mqtt", "there is no such listener"),
    ("disable_sublist_cache", "there is no such cache"),
    ("no_sublist_cache", "there is no such cache"),
    ("streaming.cluster.proceed_on_restore_failure", NO_RAFT),
    ("streaming.cluster.nodes_connections", NO_RAFT),
    ("streaming.cluster.raft_heartbeat_timeout", NO_RAFT),
    ("streaming.cluster.raft_election_timeout", NO_RAFT),
    ("streaming.cluster.raft_lease_timeout", NO_RAFT),
    ("streaming.cluster.raft_commit_timeout", NO_RAFT),
    ("streaming.cluster.bolt_free_list_sync", NO_RAFT),
    ("streaming.cluster.bolt_free_list_map", NO_RAFT),
];

const NO_RAFT: &str = "there are no Raft clusters";

/// Takes over what a file says of the core server; all errors and warnings are collected. `streaming`: a file
/// without a `streaming` map is read for those keys as well.
pub fn apply(options: &mut Options, file: &[Entry], found: &mut Found, streaming: bool) {
    let beside = streaming && super::streaming::section(file).is_none();
    // How users are read depends on what certificates are for.
    let (tls, rest): (Vec<&Entry>, _) = file
        .iter()
        .partition(|entry| entry.key.eq_ignore_ascii_case("tls"));
    for entry in tls.into_iter().chain(rest) {
        let key = entry.key.to_ascii_lowercase();
        // Read by the streaming part.
        if key == "streaming" || (beside && super::streaming::knows(&key)) {
            continue;
        }
        match (&entry.value.data, KNOWN_BLOCKS.contains(&key.as_str())) {
            (Data::Map(inner), true) => {
                // Also an empty one: who writes it does not want to be without.
                options.tls.enabled |= key == "tls";
                for inner in inner {
                    let path = format!("{key}.{}", inner.key.to_ascii_lowercase());
                    apply_one(options, &path, inner, found);
                }
            }
            (_, true) => {
                let kind = entry.value.kind();
                found.error(&entry.at, format!("{key}: expected a map, got {kind}"));
            }
            _ if find(&key).is_none() && beside => unknown_key(&key, entry, found, true),
            _ => apply_one(options, &key, entry, found),
        }
    }
}

pub(super) fn apply_one(options: &mut Options, path: &str, entry: &Entry, found: &mut Found) {
    let Some(row) = find(path) else {
        return unknown_key(path, entry, found, false);
    };
    unknown_inside(row.key, &entry.value, found);
    if let Err(Trouble(faults)) = (row.set)(options, &entry.value) {
        for (place, error) in faults {
            let at = place.as_ref().unwrap_or(&entry.value.at);
            found.error(at, format!("{}: {error}", entry.key));
        }
    }
}

/// `top`: streaming keys stand at the top of the file.
pub(super) fn unknown_key(path: &str, entry: &Entry, found: &mut Found, top: bool) {
    if entry.used.get() {
        // It serves as a variable.
    } else if path.starts_with("tls.") {
        // Whoever mistypes `cert_file` must not be left without TLS.
        let text = format!("error parsing tls config, unknown field [{:?}]", entry.key);
        found.error(&entry.at, text);
    } else if let Some((_, so)) = NOT_SUPPORTED.iter().find(|(key, _)| *key == path) {
        let key = &entry.key;
        let text = format!("{key:?} is not supported by midge and ignored: {so}");
        found.warn(&entry.at, text);
    } else {
        let rows = rows().map(|row| row.key).filter(|key| !key.is_empty());
        let names = rows.chain(KNOWN_BLOCKS.iter().chain(STREAMING_BLOCKS).copied());
        match top {
            false => unknown(entry, path, names, found),
            true => {
                let names = names.map(without_streaming);
                unknown(entry, without_streaming(path), names, found);
            }
        }
    }
}

fn without_streaming(path: &str) -> &str {
    path.strip_prefix("streaming.").unwrap_or(path)
}

/// Warns about keys that are not read inside of a block, or of the blocks of a list.
fn unknown_inside(path: &str, value: &Value, found: &mut Found) {
    let known: Vec<&str> = match KEYS_INSIDE.iter().find(|(block, _)| *block == path) {
        Some((_, known)) => known.to_vec(),
        None if path == CHANNELS => super::streaming::limit_keys().collect(),
        None => return,
    };
    let values: Vec<&Value> = match &value.data {
        Data::Array(values) => values.iter().collect(),
        Data::Map(entries) if path == CHANNELS => {
            entries.iter().map(|entry| &entry.value).collect()
        }
        _ => vec![value],
    };
    for value in values {
        let Data::Map(entries) = &value.data else {
            continue;
        };
        for entry in entries.iter().filter(|entry| !entry.used.get()) {
            let key = entry.key.to_ascii_lowercase();
            if !known.contains(&key.as_str()) {
                unknown(entry, &key, known.iter().copied(), found);
            }
        }
    }
}

/// The warning about a key nobody knows, with the known one it is most like.
fn unknown(
    entry: &Entry,
    path: &str,
    known: impl Iterator<Item = &'static str>,
    found: &mut Found,
) {
    let near = known
        .map(|name| (distance(path, name), name))
        .min()
        .filter(|(distance, _)| *distance <= 2)
        .map_or(String::new(), |(_, near)| {
            format!(", did you mean {near:?}?")
        });
    found.warn(&entry.at, format!("unknown field {:?}{near}", entry.key));
}

/// Whether a key at the top of a file is read by the core server, or told about there.
pub(super) fn is_for_core(key: &str) -> bool {
    let told = NOT_SUPPORTED.iter().any(|(known, _)| *known == key);
    find(key).is_some() || KNOWN_BLOCKS.contains(&key) || told
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
         start and are errors under `-t` and `--strict`, in `streaming` blocks too; so is a block or list that stands there twice, of which the last one counts.\n\
         A zero or an empty host asks for the default, where no other meaning is told.\n",
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
            let reload = match row.reload {
                Reload::Yes(_) | Reload::Quiet(_) => "yes",
                Reload::No(_) => "",
            };
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
    use crate::config::{file, streaming};

    fn read(text: &str) -> Result<(Options, Vec<String>), String> {
        let (mut options, mut found) = (Options::default(), Found::default());
        let entries = file::read_text(text, "t")?;
        apply(&mut options, &entries, &mut found, false);
        let (errors, warnings) = found.told("t".as_ref(), false);
        match errors.is_empty() {
            true => Ok((options, warnings)),
            false => Err(errors.join("\n")),
        }
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
    fn fuzzing_knows_all_names() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/parser-fuzz/config.dict");
        let words = std::fs::read_to_string(path).unwrap();
        let names = rows().flat_map(|row| row.key.split('.').chain(row.aliases.iter().copied()));
        for word in names.map(|name| format!("\"{name}\"")) {
            let is_known = words.lines().any(|line| line == word);
            assert!(word == "\"\"" || is_known, "{word} is not in {path}");
        }
    }

    #[test]
    fn permissions_in_both_forms() {
        let old = read(
            "authorization { users = [{user: a, password: b, permissions: {publish: 'x.>'}}] }",
        )
        .unwrap()
        .0;
        let old = old.users.unwrap()[0].permissions.clone().unwrap();
        assert_eq!(
            (old.publish.allow, old.subscribe.allow),
            (Some(vec!["x.>".into()]), Some(vec![]))
        );
        let new = read(
            "authorization { users = [{user: a, password: b, permissions: {publish: {deny: x}}}] }",
        )
        .unwrap()
        .0;
        let new = new.users.unwrap()[0].permissions.clone().unwrap();
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

    #[test]
    fn the_longest_durations() {
        let endless = format!("{}.5", "9".repeat(400));
        for (text, taken) in [
            ("9223372036854775807", true),
            ("99999999999999999999.5", true),
            (endless.as_str(), true),
            ("\"2562047h\"", true),
            ("\"2562047h47m16.854775807s\"", true),
            ("\"900000h\"", true),
            ("\"2562047h47m17s\"", false),
            ("\"5000000000000000h\"", false),
            ("\"99999999999999999999999999999999999999999h\"", false),
        ] {
            for key in ["write_deadline", "ping_interval", "lame_duck_duration"] {
                match read(&format!("{key}: {text}")) {
                    Ok((options, _)) => {
                        let times = [
                            options.write_deadline,
                            options.ping_interval,
                            options.lame_duck_duration,
                        ];
                        assert!(taken && times.contains(&DURATION_MAX), "{key}: {text}");
                        for time in times {
                            assert!(std::time::Instant::now().checked_add(time).is_some());
                        }
                    }
                    Err(error) => {
                        assert!(!taken && error.contains("is too long for a duration"));
                    }
                }
            }
            let (mut options, mut found) = (Options::default(), Found::default());
            let written = format!("streaming {{ hb_interval: {text}, limits {{ ma: {text} }} }}");
            let entries = file::read_text(&written, "t").unwrap();
            let readers = streaming::Readers::Both;
            streaming::apply_file(&mut options, &entries, &mut found, true, readers);
            // Numbers are no durations there.
            let taken = taken && text.starts_with('"');
            assert_eq!(found.errors.is_empty(), taken, "{text}: {found:?}");
            if taken {
                let nanos = DURATION_MAX.as_nanos() as i64;
                assert_eq!(options.streaming.heartbeat_interval, DURATION_MAX);
                assert_eq!(options.streaming.limits.max_age, Some(nanos));
            }
        }
        let (options, _) = read(&format!("authorization {{ timeout: {endless} }}")).unwrap();
        assert_eq!(options.auth_timeout, DURATION_MAX.as_secs_f64());
    }
}
