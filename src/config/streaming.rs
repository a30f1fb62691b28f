//! Options of the streaming server: the keys and flags of nats-streaming-server 0.9.2.
//!
//! They stand in a `streaming` map of the file; a file without one is, when streaming is on, read
//! for streaming keys at its top level as well, as the original does.

use super::file::{Data, Entry, Found, Value};
use super::options::{ClientTlsOptions, Credentials, Hidden, Options, none_of};
use super::table::{
    self, Group, Kind, Row, Trouble, apply_one, boolean, expected, find, int, row, text,
    unknown_key, written_duration,
};
use crate::subject::token;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StoreKind {
    #[default]
    Memory,
    File,
}

/// Limits of a channel; None: inherited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChannelLimitOptions {
    pub max_subscriptions: Option<i64>,
    pub max_msgs: Option<i64>,
    pub max_bytes: Option<i64>,
    pub max_age: Option<i64>,
    pub max_inactivity: Option<i64>,
    /// How often a message is sent again before it goes to `dead_letter`; 0: for ever.
    pub max_redeliveries: Option<i64>,
    /// The channel it goes to; `{channel}` stands for the name of the one it comes from.
    pub dead_letter: Option<String>,
}

/// Stands for the name of the channel in `dead_letter`.
pub const CHANNEL_MARK: &str = "{channel}";
const DEAD_LETTER_DEFAULT: &str = "dead.{channel}";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStoreOptions {
    pub compact: bool,
    pub compact_fragmentation: i64,
    /// Seconds.
    pub compact_interval: i64,
    pub compact_min_size: i64,
    pub buffer_size: i64,
    pub check_crc: bool,
    pub crc_polynomial: i64,
    pub sync: bool,
    pub slice_max_msgs: i64,
    pub slice_max_bytes: i64,
    /// Nanoseconds.
    pub slice_max_age: i64,
    pub slice_archive_script: String,
    pub descriptors_limit: i64,
    pub parallel_recovery: i64,
    pub read_buffer_size: i64,
    /// Zero: off.
    pub auto_sync: Duration,
    pub strict_recovery: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamingOptions {
    pub enabled: bool,
    /// `-sc`: the file for the streaming part, where it is another one.
    pub config_file: Option<PathBuf>,
    pub cluster_id: String,
    pub discover_prefix: String,
    pub store: StoreKind,
    pub dir: String,
    pub debug: bool,
    pub trace: bool,
    /// Serve through this NATS server instead of our own.
    pub nats_server: String,
    /// How to connect there, and as whom.
    pub nats_tls: ClientTlsOptions,
    pub nats_credentials: Credentials,
    pub max_channels: i64,
    /// Defaults of all channels; nothing is None here.
    pub limits: ChannelLimitOptions,
    pub channels: BTreeMap<String, ChannelLimitOptions>,
    pub file: FileStoreOptions,
    pub heartbeat_interval: Duration,
    pub heartbeat_timeout: Duration,
    pub heartbeat_failures: i64,
    pub replace_durable: bool,
    /// Whether requests of administration may change things; None: if the server asks for credentials.
    pub admin: Option<bool>,
    pub io_batch_size: i64,
    /// Asked for, and not to be had in this version.
    pub missing: Vec<&'static str>,
}

impl Default for StreamingOptions {
    fn default() -> Self {
        Self {
            enabled: false,
            config_file: None,
            cluster_id: "test-cluster".into(),
            discover_prefix: "_STAN.discover".into(),
            store: StoreKind::Memory,
            dir: String::new(),
            debug: false,
            trace: false,
            nats_server: String::new(),
            nats_tls: ClientTlsOptions::default(),
            nats_credentials: Credentials::default(),
            max_channels: 100,
            limits: ChannelLimitOptions {
                max_subscriptions: Some(1000),
                max_msgs: Some(1_000_000),
                max_bytes: Some(1_024_000_000),
                max_age: Some(0),
                max_inactivity: Some(0),
                max_redeliveries: Some(0),
                dead_letter: Some(DEAD_LETTER_DEFAULT.into()),
            },
            channels: BTreeMap::new(),
            file: FileStoreOptions {
                compact: true,
                compact_fragmentation: 50,
                compact_interval: 300,
                compact_min_size: 1 << 20,
                buffer_size: 2 << 20,
                check_crc: true,
                crc_polynomial: 0xEDB8_8320,
                sync: true,
                slice_max_msgs: 0,
                slice_max_bytes: 64 << 20,
                slice_max_age: 0,
                slice_archive_script: String::new(),
                descriptors_limit: 0,
                parallel_recovery: 1,
                read_buffer_size: 2 << 20,
                auto_sync: Duration::from_secs(60),
                strict_recovery: false,
            },
            heartbeat_interval: Duration::from_secs(30),
            heartbeat_timeout: Duration::from_secs(10),
            heartbeat_failures: 10,
            replace_durable: false,
            admin: None,
            io_batch_size: 1024,
            missing: Vec::new(),
        }
    }
}

impl StreamingOptions {
    /// What no single option shows, one fault a line. The texts are the original's.
    pub fn check(&self) -> Result<(), String> {
        if !self.enabled {
            return Ok(());
        }
        let mut missing = self.missing.clone();
        missing.sort_unstable();
        missing.dedup();
        let unavailable = |what| format!("{what} is not available in this version of midge");
        let mut faults: Vec<String> = missing.into_iter().map(unavailable).collect();
        // Where nobody could connect: both are parts of the subject for that.
        for (what, value) in [
            ("cluster ID", &self.cluster_id),
            ("discover_prefix", &self.discover_prefix),
        ] {
            let no_space = !value.contains(|c: char| c.is_whitespace() || c.is_control());
            if !no_space || !token::is_valid_literal(value.as_bytes()) {
                faults.push(format!(
                    "{what} {value:?} cannot be part of a subject: it must be tokens parted by dots, none of them \
                     empty or a wildcard, without spaces"
                ));
            }
        }
        if self.max_channels < 0 {
            faults.push(format!(
                "max channels limit cannot be negative ({})",
                self.max_channels
            ));
        }
        for (what, value) in [
            ("subscriptions", self.limits.max_subscriptions),
            ("messages", self.limits.max_msgs),
            ("bytes", self.limits.max_bytes),
            ("age", self.limits.max_age),
            ("inactivity", self.limits.max_inactivity),
            ("redeliveries", self.limits.max_redeliveries),
        ] {
            if let Some(value) = value.filter(|value| *value < 0) {
                let value = match what {
                    "age" | "inactivity" => duration_text(value),
                    _ => value.to_string(),
                };
                faults.push(format!("max {what} limit cannot be negative ({value})"));
            }
        }
        let literal = |name: &&String| !name.split('.').any(|token| token == "*" || token == ">");
        let defined = self.channels.keys().filter(literal).count();
        if self.max_channels > 0 && defined as i64 > self.max_channels {
            faults.push(format!(
                "too many channels defined ({defined}). The max channels limit is set to {}",
                self.max_channels
            ));
        }
        if self.store == StoreKind::File {
            if self.dir.is_empty() {
                faults.push("for FILE stores, root directory must be specified".into());
            }
            faults.extend(self.file.faults().map(str::to_owned));
        }
        none_of(faults)
    }

    /// What is of no account, to be warned about at the start.
    pub fn remarks(&self) -> Vec<String> {
        let of_no_account = self.enabled && self.store == StoreKind::Memory;
        let faults = self.file.faults().filter(|_| of_no_account);
        let told = |fault| format!("{fault} (of no account for the MEMORY store)");
        faults.map(told).collect()
    }
}

impl FileStoreOptions {
    /// Values out of their ranges. The texts are the original's.
    fn faults(&self) -> impl Iterator<Item = &'static str> {
        let faults = [
            (
                self.buffer_size < 0,
                "buffer size value must be a positive number",
            ),
            (
                self.compact_interval < 1,
                "compact interval value must at least be 1 seconds",
            ),
            (
                self.compact_fragmentation < 1,
                "compact fragmentation value must at least be 1",
            ),
            (
                self.compact_min_size < 0,
                "compact minimum file size value must be a positive number",
            ),
            (
                !(1..=i64::from(u32::MAX)).contains(&self.crc_polynomial),
                "crc polynomial should be between 1 and 4294967295",
            ),
            (
                self.slice_max_msgs < 0 || self.slice_max_bytes < 0 || self.slice_max_age < 0,
                "slice max values must be positive numbers",
            ),
            (
                self.descriptors_limit < 0,
                "file descriptor limit must be a positive number",
            ),
            (
                self.read_buffer_size < 0,
                "read buffer size value must be a positive number",
            ),
            (
                self.parallel_recovery < 1,
                "parallel recovery value must be at least 1",
            ),
        ];
        let told = |(bad, text): (bool, _)| bad.then_some(text);
        faults.into_iter().filter_map(told)
    }
}

/// A duration in nanoseconds as Go writes it.
pub fn duration_text(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let (whole, rest) = (nanos.unsigned_abs() / SECOND, nanos.unsigned_abs() % SECOND);
    let fraction = Duration::from_nanos(rest);
    if whole == 0 && rest > 0 {
        return format!("{sign}{fraction:?}");
    }
    let fraction = format!("{:09}", fraction.as_nanos());
    let fraction = match fraction.trim_end_matches('0') {
        "" => String::new(),
        digits => format!(".{digits}"),
    };
    let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
    match (hours, minutes) {
        (0, 0) => format!("{sign}{seconds}{fraction}s"),
        (0, minutes) => format!("{sign}{minutes}m{seconds}{fraction}s"),
        (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}{fraction}s"),
    }
}

const SECOND: u64 = 1_000_000_000;

/// Names of nested maps, as rows have them.
fn block(name: &str) -> Option<&'static str> {
    Some(match name {
        "store_limits" | "storelimits" | "limits" => "store_limits",
        "file" | "file_options" => "file",
        "sql" | "sql_options" => "sql",
        "cluster" => "cluster",
        "tls" => "tls",
        _ => return None,
    })
}

/// Whether a key at the top of a file is one of ours and of nobody else.
pub(super) fn knows(key: &str) -> bool {
    let ours = |key: &str| find(&format!("streaming.{key}")).is_some();
    let theirs = |key: &str| find(key).is_some();
    let block_of_ours = block(key).is_some_and(|name| !matches!(name, "cluster" | "tls"));
    block_of_ours || (ours(key) && !theirs(key))
}

/// The `streaming` map of a file, or what stands in its place.
pub(super) fn section(entries: &[Entry]) -> Option<&Entry> {
    let mut entries = entries.iter();
    entries.find(|entry| entry.key.eq_ignore_ascii_case("streaming"))
}

/// Who reads a file besides us.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Readers {
    /// Nobody: every key is for the streaming part.
    Us,
    /// The NATS part, which has `cluster` and `tls` of its own.
    Both,
}

/// Takes over what a file says of streaming. `wanted`: streaming is on in any case, so a file
/// without a `streaming` map is read for our keys.
pub(super) fn apply_file(
    options: &mut Options,
    entries: &[Entry],
    found: &mut Found,
    wanted: bool,
    readers: Readers,
) {
    let section = section(entries).map(|entry| &entry.value);
    match section.map(|value| (&value.data, value)) {
        Some((Data::Map(inner), _)) => {
            options.streaming.enabled = true;
            apply_block(options, "streaming", inner, found, None);
        }
        Some((_, value)) => {
            let kind = value.kind();
            let text = format!("expected streaming section to be a map/struct, got {kind}");
            found.error(&value.at, text);
        }
        None if wanted => apply_block(options, "streaming", entries, found, Some(readers)),
        None => {}
    }
}

/// Warns about what neither part reads in a file that is for the streaming part alone.
pub(super) fn unknown_at_top(entries: &[Entry], found: &mut Found) {
    for entry in entries.iter().filter(|_| section(entries).is_none()) {
        let key = entry.key.to_ascii_lowercase();
        let ours = block(&key).is_some() || find(&format!("streaming.{key}")).is_some();
        if !ours && !table::is_for_core(&key) {
            unknown_key(&format!("streaming.{key}"), entry, found, true);
        }
    }
}

/// `whole_file`: there is no map around it.
fn apply_block(
    options: &mut Options,
    path: &str,
    entries: &[Entry],
    found: &mut Found,
    whole_file: Option<Readers>,
) {
    for entry in entries {
        let key = entry.key.to_ascii_lowercase();
        if path == "streaming"
            && let Some(name) = block(&key)
        {
            if whole_file == Some(Readers::Both) && matches!(name, "cluster" | "tls") {
                continue;
            }
            match &entry.value.data {
                Data::Map(inner) => {
                    if name == "cluster" {
                        options
                            .streaming
                            .missing
                            .push("streaming in clustered mode");
                    }
                    let path = format!("{path}.{name}");
                    apply_block(options, &path, inner, found, whole_file);
                }
                _ => {
                    let kind = entry.value.kind();
                    let text = format!("{key}: expected a map, got {kind}");
                    found.error(&entry.value.at, text);
                }
            }
            continue;
        }
        let full = format!("{path}.{key}");
        match find(&full) {
            Some(_) => apply_one(options, &full, entry, found),
            // The core server may know them.
            None if whole_file.is_some() && path == "streaming" => {}
            None => unknown_key(&full, entry, found, whole_file.is_some()),
        }
    }
}

/// A string and nothing else: numbers are not taken for names here.
fn string(value: &Value) -> Result<String, String> {
    match &value.data {
        Data::Text(text) => Ok(text.clone()),
        _ => expected(value, "a string"),
    }
}

fn period(value: &Value) -> Result<i64, String> {
    let text = string(value)?;
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.as_str()),
    };
    if digits == "0" {
        return Ok(0);
    }
    let duration = written_duration(digits, "24h")?;
    Ok(sign * duration.as_nanos() as i64)
}

/// Where a negative duration is as good as none.
fn period_or_none(value: &Value) -> Result<Duration, String> {
    Ok(Duration::from_nanos(period(value)?.max(0) as u64))
}

fn any_int(value: &Value) -> Result<i64, String> {
    int(value, i64::MIN..=i64::MAX)
}

fn store_kind(value: &Value, streaming: &mut StreamingOptions) -> Result<(), String> {
    let name = string(value)?;
    streaming.store = match name.to_ascii_uppercase().as_str() {
        "MEMORY" => StoreKind::Memory,
        "FILE" => StoreKind::File,
        "SQL" => {
            streaming.missing.push("the SQL store");
            return Ok(());
        }
        _ => return Err(format!("unknown store type: {name}")),
    };
    Ok(())
}

/// The name of a channel, or a pattern of such names.
fn dead_letter(value: &Value) -> Result<String, String> {
    let template = string(value)?;
    let name = template.replace(CHANNEL_MARK, "x");
    let valid = name.split('.').all(|token| !token.is_empty())
        && !name
            .contains(|c: char| matches!(c, '/' | '*' | '>' | '{' | '}') || c.is_ascii_control());
    match valid && template != CHANNEL_MARK && template.matches(CHANNEL_MARK).count() <= 1 {
        true => Ok(template),
        false => Err(format!(
            "{template:?} is no name of another channel, with {CHANNEL_MARK} at most once"
        )),
    }
}

/// The name of a channel, or a pattern: a wildcard is a token of its own, or nothing could match.
fn is_valid_pattern(name: &str) -> bool {
    let whole = |token: &str| token.len() == 1 || !token.contains(['*', '>']);
    token::is_valid_subscription(name.as_bytes())
        && name.split('.').all(whole)
        && !name.contains('/')
}

const LIMITS: &str = "streaming.store_limits.";

/// Options of all channels that one channel may have of its own.
fn limit_rows() -> impl Iterator<Item = (&'static str, &'static Row)> {
    let limits = ROWS
        .iter()
        .filter_map(|row| Some((row.key.strip_prefix(LIMITS)?, row)));
    limits.filter(|(name, _)| !matches!(*name, "max_channels" | "channels"))
}

/// Keys of the limits of a channel.
pub(super) fn limit_keys() -> impl Iterator<Item = &'static str> {
    limit_rows().flat_map(|(name, row)| std::iter::once(name).chain(row.aliases.iter().copied()))
}

fn channels(value: &Value) -> Result<BTreeMap<String, ChannelLimitOptions>, Trouble> {
    let Data::Map(entries) = &value.data else {
        return expected(value, "a map of channels").map_err(Into::into);
    };
    let mut trouble = Trouble::default();
    let mut channels = BTreeMap::new();
    for entry in entries {
        let name = match is_valid_pattern(&entry.key) {
            true => Ok(()),
            false => Err(format!("invalid channel name {:?}", entry.key)),
        };
        trouble.take(&entry.at, name);
        let limits = channel(&entry.value);
        if let Some(limits) = trouble.take(&entry.value.at, limits) {
            channels.insert(entry.key.clone(), limits);
        }
    }
    trouble.or(channels)
}

fn channel(value: &Value) -> Result<ChannelLimitOptions, Trouble> {
    let Data::Map(limits) = &value.data else {
        return expected(value, "a map of limits").map_err(Into::into);
    };
    let mut trouble = Trouble::default();
    // Read as those of all channels are.
    let mut own = Options::default();
    own.streaming.limits = ChannelLimitOptions::default();
    for limit in limits {
        let key = limit.key.to_ascii_lowercase();
        let row = limit_rows().find(|(name, row)| *name == key || row.aliases.contains(&&*key));
        // Others are warned about by the table.
        if let Some((_, row)) = row {
            trouble.take(&limit.value.at, (row.set)(&mut own, &limit.value));
        }
    }
    trouble.or(own.streaming.limits)
}

/// Sets an option, which also turns streaming on.
macro_rules! on {
    (|$o:ident, $v:ident| $body:expr) => {
        |options, $v| {
            options.streaming.enabled = true;
            let $o = &mut options.streaming;
            $body;
            Ok(())
        }
    };
}

#[rustfmt::skip]
pub static ROWS: &[Row] = &[
    row!("" [], ["streaming"], Bool, Streaming, "false", false, "Serve NATS Streaming as well; any other option of this group does so too.",
        |o, v| { o.streaming.enabled = boolean(v)?; Ok(()) }, streaming),
    row!("streaming.cluster_id" ["cid", "id"], ["cluster_id", "cid"], Text, Streaming, "test-cluster", false, "Cluster ID, which clients name when they connect.",
        on!(|o, v| o.cluster_id = string(v)?)),
    row!("streaming.discover_prefix" [], [], Text, Streaming, "_STAN.discover", false, "Prefix of the subject clients connect through.",
        on!(|o, v| o.discover_prefix = string(v)?)),
    row!("streaming.store" ["store_type", "storetype", "st"], ["store", "st"], Text, Streaming, "MEMORY", false, "Where messages are kept: MEMORY or FILE.",
        on!(|o, v| store_kind(v, o)?)),
    row!("streaming.dir" ["datastore"], ["dir"], Text, Streaming, "", false, "Directory of the FILE store.",
        on!(|o, v| o.dir = string(v)?)),
    row!("" [], ["sc", "stan_config"], Text, Streaming, "", false, "Configuration file for the streaming part.",
        on!(|o, v| o.config_file = Some(PathBuf::from(text(v)?)))),
    row!("streaming.stan_debug" ["sd"], ["SD", "stan_debug"], Bool, Streaming, "false", false, "Log what the streaming part does.",
        on!(|o, v| o.debug = boolean(v)?)),
    row!("streaming.stan_trace" ["sv"], ["SV", "stan_trace"], Bool, Streaming, "false", false, "Log every message of the streaming part.",
        on!(|o, v| o.trace = boolean(v)?)),
    row!("" [], ["SDV"], Bool, Streaming, "false", false, "Debug and trace of the streaming part.",
        on!(|o, v| { o.debug = boolean(v)?; o.trace = o.debug })),
    row!("streaming.nats_server_url" ["nats_server", "ns"], ["ns", "nats_server"], Text, Streaming, "the own one", false, "Serve through the NATS server at this URL instead.",
        on!(|o, v| o.nats_server = string(v)?)),
    row!("streaming.replace_durable" ["replace_durables", "replace_duplicate_durable", "replace_duplicate_durables"], ["replace_durable"], Bool, Streaming, "false", false, "A second subscription of an active durable replaces the first.",
        on!(|o, v| o.replace_durable = boolean(v)?)),
    row!("streaming.admin" [], ["stan_admin"], Bool, Streaming, "if clients need credentials", false, "Whether requests of `midge stan` may change things: purge and delete channels, remove durables, skip messages.",
        on!(|o, v| o.admin = Some(boolean(v)?))),
    row!("streaming.hb_interval" ["hbi", "server_to_client_hb_interval"], ["hbi", "hb_interval"], Text, Streaming, "30s", false, "Time between heartbeats to a client.",
        on!(|o, v| o.heartbeat_interval = period_or_none(v)?)),
    row!("streaming.hb_timeout" ["hbt", "server_to_client_hb_timeout"], ["hbt", "hb_timeout"], Text, Streaming, "10s", false, "Time a client has to answer one.",
        on!(|o, v| o.heartbeat_timeout = period_or_none(v)?)),
    row!("streaming.hb_fail_count" ["hbf", "server_to_client_hb_fail_count"], ["hbf", "hb_fail_count"], Int, Streaming, "10", false, "Unanswered heartbeats a client may have before it is closed.",
        on!(|o, v| o.heartbeat_failures = any_int(v)?)),
    row!("streaming.partitioning" [], [], Bool, Streaming, "false", false, "Share channels out among servers (not in this version).",
        on!(|o, v| if boolean(v)? { o.missing.push("partitioning") })),
    row!("streaming.ft_group" ["ft_group_name"], ["ft_group"], Text, Streaming, "", false, "Name of a fault tolerance group (not in this version).",
        on!(|o, v| if !string(v)?.is_empty() { o.missing.push("fault tolerance") })),

    row!("streaming.store_limits.max_channels" ["maxchannels", "mc"], ["mc", "max_channels"], Int, Streaming, "100", false, "Most channels; 0: no limit.",
        on!(|o, v| o.max_channels = any_int(v)?)),
    row!("streaming.store_limits.max_subs" ["max_subscriptions", "maxsubscriptions", "msu"], ["msu", "max_subs"], Int, Streaming, "1000", false, "Most subscriptions of a channel; 0: no limit.",
        on!(|o, v| o.limits.max_subscriptions = Some(any_int(v)?))),
    row!("streaming.store_limits.max_msgs" ["maxmsgs", "max_count", "maxcount", "mm"], ["mm", "max_msgs"], Int, Streaming, "1000000", false, "Most messages of a channel; 0: no limit.",
        on!(|o, v| o.limits.max_msgs = Some(any_int(v)?))),
    row!("streaming.store_limits.max_bytes" ["maxbytes", "mb"], ["mb", "max_bytes"], Int, Streaming, "976.56MB", false, "Most bytes of a channel; 0: no limit.",
        on!(|o, v| o.limits.max_bytes = Some(any_int(v)?))),
    row!("streaming.store_limits.max_age" ["maxage", "ma"], ["ma", "max_age"], Text, Streaming, "0s (no limit)", false, "How long messages are kept.",
        on!(|o, v| o.limits.max_age = Some(period(v)?))),
    row!("streaming.store_limits.max_inactivity" ["maxinactivity", "mi"], ["mi", "max_inactivity"], Text, Streaming, "0s (never)", false, "Delete channels that were not used for this long.",
        on!(|o, v| o.limits.max_inactivity = Some(period(v)?))),
    row!("streaming.store_limits.max_redeliveries" [], ["max_redeliveries"], Int, Streaming, "0 (no limit)", false, "How often a message that is not acknowledged is sent again before it goes to the dead letters.",
        on!(|o, v| o.limits.max_redeliveries = Some(any_int(v)?))),
    row!("streaming.store_limits.dead_letter" [], ["dead_letter"], Text, Streaming, "dead.{channel}", false, "The channel for those; {channel} stands for the name of the one they come from.",
        on!(|o, v| o.limits.dead_letter = Some(dead_letter(v)?))),
    row!("streaming.store_limits.channels" ["channels_limits", "channelslimits", "per_channel", "per_channel_limits"], [], Block, Streaming, "", false, "Limits of single channels, by name or pattern.",
        on!(|o, v| o.channels = channels(v)?)),

    row!("streaming.file.compact" ["compact_enabled"], ["file_compact_enabled"], Bool, Streaming, "true", false, "Rewrite files of clients and subscriptions when much of them is dead.",
        on!(|o, v| o.file.compact = boolean(v)?)),
    row!("streaming.file.compact_frag" ["compact_fragmentation"], ["file_compact_frag"], Int, Streaming, "50", false, "How much, in percent.",
        on!(|o, v| o.file.compact_fragmentation = any_int(v)?)),
    row!("streaming.file.compact_interval" [], ["file_compact_interval"], Int, Streaming, "300", false, "Seconds between two such rewrites.",
        on!(|o, v| o.file.compact_interval = any_int(v)?)),
    row!("streaming.file.compact_min_size" [], ["file_compact_min_size"], Int, Streaming, "1MB", false, "Smallest file that is rewritten.",
        on!(|o, v| o.file.compact_min_size = any_int(v)?)),
    row!("streaming.file.buffer_size" [], ["file_buffer_size"], Int, Streaming, "2MB", false, "Bytes gathered before they are written.",
        on!(|o, v| o.file.buffer_size = any_int(v)?)),
    row!("streaming.file.crc" ["do_crc"], ["file_crc"], Bool, Streaming, "true", false, "Check the checksums of what is read.",
        on!(|o, v| o.file.check_crc = boolean(v)?)),
    row!("streaming.file.crc_poly" [], ["file_crc_poly"], Int, Streaming, "3988292384", false, "Polynomial of the checksums.",
        on!(|o, v| o.file.crc_polynomial = any_int(v)?)),
    row!("streaming.file.sync" ["do_sync", "sync_on_flush"], ["file_sync"], Bool, Streaming, "true", false, "Acknowledge publishes only when they are on the disk.",
        on!(|o, v| o.file.sync = boolean(v)?)),
    row!("streaming.file.slice_max_msgs" ["slice_max_count", "slice_msgs", "slice_count"], ["file_slice_max_msgs"], Int, Streaming, "0 (no limit)", false, "Most messages of one file.",
        on!(|o, v| o.file.slice_max_msgs = any_int(v)?)),
    row!("streaming.file.slice_max_bytes" ["slice_max_size", "slice_bytes", "slice_size"], ["file_slice_max_bytes"], Int, Streaming, "64MB", false, "Most bytes of one file.",
        on!(|o, v| o.file.slice_max_bytes = any_int(v)?)),
    row!("streaming.file.slice_max_age" ["slice_age", "slice_max_time", "slice_time_limit"], ["file_slice_max_age"], Text, Streaming, "0s (no limit)", false, "Longest time one file is written to.",
        on!(|o, v| o.file.slice_max_age = period(v)?)),
    row!("streaming.file.slice_archive_script" ["slice_archive", "slice_script"], ["file_slice_archive_script"], Text, Streaming, "", false, "Program that gets files no longer needed: channel, data file, index file.",
        on!(|o, v| o.file.slice_archive_script = string(v)?)),
    row!("streaming.file.file_descriptors_limit" ["fds_limit"], ["file_fds_limit"], Int, Streaming, "0 (half of RLIMIT_NOFILE)", false, "Most files kept open; never more than half of what the process may open.",
        on!(|o, v| o.file.descriptors_limit = any_int(v)?)),
    row!("streaming.file.parallel_recovery" [], ["file_parallel_recovery"], Int, Streaming, "1", false, "Channels read at a time at the start.",
        on!(|o, v| o.file.parallel_recovery = any_int(v)?)),
    row!("streaming.file.read_buffer_size" ["file_read_buffer_size"], ["file_read_buffer_size"], Int, Streaming, "2MB", false, "Most bytes read at a time for a subscription that goes through stored messages; 0: one message.",
        on!(|o, v| o.file.read_buffer_size = any_int(v)?)),
    row!("streaming.file.auto_sync" ["file_auto_sync"], ["file_auto_sync"], Text, Streaming, "1m", false, "How often everything written is brought to the disk, whatever `sync` says; 0: never.",
        on!(|o, v| o.file.auto_sync = period_or_none(v)?)),
    row!("streaming.file.strict_recovery" [], ["strict_recovery", "file_strict_recovery"], Bool, Streaming, "false", false, "Refuse to start when a file is damaged, and read all data at the start to know. Otherwise damage is reported, what is damaged is kept aside, and the rest is served.",
        on!(|o, v| o.file.strict_recovery = boolean(v)?)),

    row!("" [], ["clustered"], Bool, Streaming, "false", false, "Run as a node of a Raft cluster (not in this version).",
        on!(|o, v| if boolean(v)? { o.missing.push("streaming in clustered mode") })),
    row!("streaming.cluster.node_id" [], ["cluster_node_id"], Text, Streaming, "", false, "Name of this node in a Raft cluster (not in this version).",
        on!(|o, v| { let _ = (o, v); })),
    row!("streaming.cluster.peers" [], ["cluster_peers"], Text, Streaming, "", false, "The other nodes (not in this version).",
        on!(|o, v| { let _ = (o, v); })),
    row!("streaming.cluster.bootstrap" [], ["cluster_bootstrap"], Bool, Streaming, "", false, "Begin a new cluster (not in this version).",
        on!(|o, v| { let _ = (o, v); })),
    row!("streaming.cluster.log_path" [], ["cluster_log_path"], Text, Streaming, "", false, "Directory of the Raft log (not in this version).",
        on!(|o, v| { let _ = (o, v); })),
    row!("streaming.cluster.log_cache_size" [], ["cluster_log_cache_size"], Text, Streaming, "", false, "Entries of it kept in memory (not in this version).",
        on!(|o, v| { let _ = (o, v); })),
    row!("streaming.cluster.log_snapshots" [], ["cluster_log_snapshots"], Text, Streaming, "", false, "Snapshots kept (not in this version).",
        on!(|o, v| { let _ = (o, v); })),
    row!("streaming.cluster.trailing_logs" [], ["cluster_trailing_logs"], Text, Streaming, "", false, "Entries kept behind a snapshot (not in this version).",
        on!(|o, v| { let _ = (o, v); })),
    row!("streaming.cluster.sync" [], ["cluster_sync"], Bool, Streaming, "", false, "Sync the Raft log (not in this version).",
        on!(|o, v| { let _ = (o, v); })),
    row!("streaming.cluster.raft_logging" [], ["cluster_raft_logging"], Bool, Streaming, "", false, "Log what Raft does (not in this version).",
        on!(|o, v| { let _ = (o, v); })),
    row!("streaming.cluster.allow_add_remove_node" ["allow_add_remove_nodes"], ["cluster_allow_add_remove_node"], Bool, Streaming, "", false, "Nodes may be added and removed by request (not in this version).",
        on!(|o, v| { let _ = (o, v); })),
    row!("" [], ["cluster_proceed_on_restore_failure", "cluster_nodes_connections", "cluster_bolt_free_list_sync", "cluster_bolt_free_list_map"], Bool, Streaming, "", false, "Further settings of a Raft cluster (not in this version).",
        on!(|o, v| { let _ = (o, v); })),
    row!("streaming.sql.driver" [], ["sql_driver"], Text, Streaming, "", false, "SQL driver, mysql or postgres (not in this version).",
        on!(|o, v| { let _ = (o, v); })),
    row!("streaming.sql.source" [], ["sql_source"], Text, Streaming, "", false, "SQL data source (not in this version).",
        on!(|o, v| { let _ = (o, v); })),
    row!("streaming.sql.no_caching" [], ["sql_no_caching"], Bool, Streaming, "", false, "Write each record at once (not in this version).",
        on!(|o, v| { let _ = (o, v); })),
    row!("streaming.sql.max_open_conns" ["max_conns"], ["sql_max_open_conns"], Text, Streaming, "", false, "Connections to the database (not in this version).",
        on!(|o, v| { let _ = (o, v); })),
    row!("streaming.sql.bulk_insert_limit" [], ["sql_bulk_insert_limit"], Text, Streaming, "", false, "Messages of one statement (not in this version).",
        on!(|o, v| { let _ = (o, v); })),
    row!("streaming.encrypt" [], ["encrypt"], Bool, Streaming, "", false, "Encrypt stored messages (not in this version).",
        on!(|o, v| if boolean(v)? { o.missing.push("encryption of the store") })),
    row!("streaming.encryption_cipher" ["cipher"], ["encryption_cipher"], Text, Streaming, "", false, "Cipher for that, AES or CHACHA (not in this version).",
        on!(|o, v| { let _ = (o, string(v)?); })),
    row!("streaming.encryption_key" [], ["encryption_key"], Text, Streaming, "", false, "Key for that (not in this version).",
        on!(|o, v| { let _ = (o, string(v)?); })),
    row!("streaming.syslog_name" [], ["syslog_name"], Text, Streaming, "", false, "Taken for the sake of the original's command lines, of no effect.",
        on!(|o, v| { let _ = (o, string(v)?); })),
    row!("" [], ["io_batch_size"], Int, Streaming, "1024", false, "Taken for the sake of the original's command lines, of no effect: what comes while a write is under way goes into the next one.",
        on!(|o, v| o.io_batch_size = any_int(v)?)),
    row!("" [], ["io_sleep_time"], Int, Streaming, "0", false, "The same.",
        on!(|o, v| { let _ = (o, any_int(v)?); })),
    row!("streaming.secure" [], ["secure"], Bool, Streaming, "false", false, "TLS to the NATS server of -ns, whose certificate is not verified unless the authorities are named.",
        on!(|o, v| o.nats_tls.secure = boolean(v)?)),
    row!("streaming.tls.client_cert" [], ["tls_client_cert"], Text, Streaming, "", false, "Certificate shown to the NATS server of -ns.",
        on!(|o, v| o.nats_tls.cert_file = string(v)?)),
    row!("streaming.tls.client_key" [], ["tls_client_key"], Text, Streaming, "", false, "Its key.",
        on!(|o, v| o.nats_tls.key_file = string(v)?)),
    row!("streaming.tls.client_ca" ["client_cacert"], ["tls_client_cacert"], Text, Streaming, "those of the system", false, "Authorities for the certificate of that server.",
        on!(|o, v| o.nats_tls.ca_file = string(v)?)),
    row!("streaming.tls.server_name" ["server_hostname"], [], Text, Streaming, "that of the URL", false, "The name in that certificate.",
        on!(|o, v| o.nats_tls.server_name = string(v)?)),
    row!("streaming.tls.skip_verify" ["insecure"], [], Bool, Streaming, "false", false, "Take any certificate of that server.",
        on!(|o, v| o.nats_tls.skip_verify = boolean(v)?)),
    row!("streaming.username" ["user"], [], Text, Streaming, "that of the URL, or --user", false, "User at the NATS server of -ns.",
        on!(|o, v| o.nats_credentials.user = text(v)?)),
    row!("streaming.password" ["pass"], [], Text, Streaming, "that of the URL, or --pass", false, "Its password.",
        on!(|o, v| o.nats_credentials.password = Hidden(text(v)?))),
    row!("streaming.token" [], [], Text, Streaming, "that of the URL, or --auth", false, "Token in place of a user.",
        on!(|o, v| o.nats_credentials.token = Hidden(text(v)?))),
    row!("streaming.nkey_seed_file" [], [], Text, Streaming, "", false, "File with the seed of an nkey, for the NATS server of -ns.",
        on!(|o, v| o.nats_credentials.seed_file = string(v)?)),
    row!("streaming.credentials" [], [], Text, Streaming, "", false, "File with a JWT and its nkey, for the NATS server of -ns.",
        on!(|o, v| o.nats_credentials.credentials_file = string(v)?)),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(change: impl FnOnce(&mut StreamingOptions)) -> Result<(), String> {
        let mut options = StreamingOptions {
            enabled: true,
            ..StreamingOptions::default()
        };
        change(&mut options);
        options.check()
    }

    #[test]
    fn nobody_could_connect_to_such_an_id() {
        for id in ["a", "a.b", "a*", "\u{e9}-1_x"] {
            assert_eq!(checked(|o| o.cluster_id = id.into()), Ok(()), "{id}");
        }
        for id in ["", "a b", "a\tb", ".a", "a..b", "*", "a.>", "a\r\n"] {
            let told = |part: &str, result: Result<(), String>| {
                let error = result.unwrap_err();
                let begin = format!("{part} {id:?} cannot be part of a subject");
                assert!(error.starts_with(&begin), "{error}");
            };
            told("cluster ID", checked(|o| o.cluster_id = id.into()));
            told(
                "discover_prefix",
                checked(|o| o.discover_prefix = id.into()),
            );
        }
    }

    #[test]
    fn wildcards_are_tokens_of_their_own() {
        for good in ["foo", "a b", "*", ">", "*.a.>", "$x.*"] {
            assert!(is_valid_pattern(good), "{good}");
        }
        for bad in ["", "a>b", "*a", "a.b*", "**", "a.>>", ">.a", "a.", "a/b"] {
            assert!(!is_valid_pattern(bad), "{bad}");
        }
    }

    #[test]
    fn values_of_the_file_store_are_checked_where_it_is_used() {
        let faulty = |o: &mut StreamingOptions| o.file.parallel_recovery = 0;
        let text = "parallel recovery value must be at least 1";
        let file = checked(|o| {
            (o.store, o.dir) = (StoreKind::File, "x".into());
            faulty(o);
        });
        assert_eq!(file, Err(text.into()));
        assert_eq!(checked(faulty), Ok(()));
        let mut options = StreamingOptions::default();
        faulty(&mut options);
        assert_eq!(options.remarks(), <[String; 0]>::default());
        options.enabled = true;
        let told = format!("{text} (of no account for the MEMORY store)");
        assert_eq!(options.remarks(), [told]);
        let age = checked(|o| o.limits.max_age = Some(-90_000_000_000));
        let text = "max age limit cannot be negative (-1m30s)";
        assert_eq!(age, Err(text.into()));
    }
}
