//! The documents of the monitoring port, field by field as gnatsd 1.1.0.

use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Clone, Debug, Default, Serialize)]
pub struct Varz {
    pub server_id: String,
    pub version: String,
    pub git_commit: String,
    pub go: String,
    pub host: String,
    pub auth_required: bool,
    pub tls_required: bool,
    pub tls_verify: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub connect_urls: Vec<String>,
    pub addr: String,
    pub max_connections: i64,
    /// Nanoseconds.
    pub ping_interval: u64,
    pub ping_max: u32,
    pub http_host: String,
    pub http_port: i32,
    pub https_port: i32,
    pub auth_timeout: f64,
    pub max_control_line: usize,
    pub cluster: ClusterVarz,
    pub tls_timeout: f64,
    pub port: u16,
    pub max_payload: i64,
    pub start: String,
    pub now: String,
    pub uptime: String,
    /// Resident bytes.
    pub mem: u64,
    pub cores: usize,
    /// Percent of one core since the last look.
    pub cpu: Rounded,
    pub connections: usize,
    pub total_connections: u64,
    pub routes: usize,
    pub remotes: usize,
    pub in_msgs: u64,
    pub out_msgs: u64,
    pub in_bytes: u64,
    pub out_bytes: u64,
    pub slow_consumers: u64,
    pub subscriptions: usize,
    pub http_req_stats: BTreeMap<&'static str, u64>,
    pub config_load_time: String,
    // Ours.
    pub server_name: String,
    pub threads: usize,
    pub max_pending: usize,
    pub slow_consumer_list: Vec<SlowConsumerEntry>,
    pub loops: Vec<LoopEntry>,
}

/// One event loop.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LoopEntry {
    pub connections: usize,
    pub subscriptions: usize,
    pub in_msgs: u64,
    pub out_msgs: u64,
    /// Percent of one core since the last look.
    pub cpu: Rounded,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct ClusterVarz {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    pub addr: String,
    pub cluster_port: i32,
    pub auth_timeout: f64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct SlowConsumerEntry {
    pub cid: u64,
    pub address: String,
    pub name: String,
    pub pending_bytes: usize,
    pub cause: String,
    pub time: String,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Connz {
    pub server_id: String,
    pub now: String,
    /// On this page, and in all.
    pub num_connections: usize,
    pub total: usize,
    pub offset: usize,
    pub limit: usize,
    pub connections: Vec<ConnzEntry>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct ConnzEntry {
    pub cid: u64,
    pub ip: String,
    pub port: u16,
    pub start: String,
    pub last_activity: String,
    pub uptime: String,
    pub idle: String,
    pub pending_bytes: usize,
    pub in_msgs: u64,
    pub out_msgs: u64,
    pub in_bytes: u64,
    pub out_bytes: u64,
    pub subscriptions: usize,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub name: Box<str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub lang: Box<str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub version: Box<str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub tls_version: Box<str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub tls_cipher_suite: Box<str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub authorized_user: Box<str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subscriptions_list: Vec<String>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Routez {
    pub server_id: String,
    pub now: String,
    pub num_routes: usize,
    pub routes: Vec<RoutezEntry>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct RoutezEntry {
    pub rid: u64,
    pub remote_id: String,
    pub did_solicit: bool,
    pub is_configured: bool,
    pub ip: String,
    pub port: u16,
    pub pending_size: usize,
    pub in_msgs: u64,
    pub out_msgs: u64,
    pub in_bytes: u64,
    pub out_bytes: u64,
    pub subscriptions: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subscriptions_list: Vec<String>,
}

/// There is no cache of matches here, so what the original says of its cache is zero, and fan-out is
/// that of all messages since the start.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Subsz {
    pub num_subscriptions: usize,
    pub num_cache: usize,
    pub num_inserts: u64,
    pub num_removes: u64,
    pub num_matches: u64,
    pub cache_hit_rate: f64,
    pub max_fanout: u32,
    pub avg_fanout: f64,
}

/// A number with one decimal.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rounded(pub f64);

impl Serialize for Rounded {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64((self.0 * 10.0).round() / 10.0)
    }
}

/// gnatsd's uptimes: `5s`, `2h0m5s`, `1y3d2h1m5s`.
pub fn uptime(since: Duration) -> String {
    let seconds = since.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let years = days / 365;
    let parts = [
        (years, years, 'y'),
        (days, days % 365, 'd'),
        (hours, hours % 24, 'h'),
        (minutes, minutes % 60, 'm'),
    ];
    let shown = parts
        .iter()
        .filter(|(total, ..)| *total > 0)
        .map(|(_, part, unit)| format!("{part}{unit}"));
    shown.collect::<String>() + &format!("{}s", seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptimes_and_numbers() {
        for (seconds, expect) in [
            (5, "5s"),
            (65, "1m5s"),
            (7205, "2h0m5s"),
            (266_465, "3d2h1m5s"),
            (365 * 86_400 + 5, "1y0d0h0m5s"),
        ] {
            assert_eq!(uptime(Duration::from_secs(seconds)), expect);
        }
        assert_eq!(
            crate::util::go_json::go_json(&[Rounded(0.0), Rounded(12.34)]),
            "[0,12.3]"
        );
    }
}
