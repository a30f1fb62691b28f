//! The documents below /streaming, field by field as NATS Streaming Server 0.9.2.

use crate::util::go_json::go_json_pretty;
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, Serialize)]
pub struct Serverz {
    pub cluster_id: String,
    pub server_id: String,
    pub version: String,
    pub go: String,
    pub state: &'static str,
    pub now: String,
    pub start_time: String,
    pub uptime: String,
    pub clients: usize,
    pub subscriptions: usize,
    pub channels: usize,
    pub total_msgs: u64,
    pub total_bytes: u64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Storez {
    pub cluster_id: String,
    pub server_id: String,
    pub now: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub limits: StoreLimits,
    pub total_msgs: u64,
    pub total_bytes: u64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct StoreLimits {
    pub max_channels: i64,
    #[serde(flatten)]
    pub channel: Limits,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub channels: BTreeMap<String, Limits>,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Limits {
    pub max_msgs: u64,
    pub max_bytes: u64,
    /// Nanoseconds.
    pub max_age: i64,
    pub max_subscriptions: u64,
    /// Nanoseconds; the original's spelling.
    #[serde(rename = "MaxInactivity")]
    pub max_inactivity: i64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Clientsz {
    pub cluster_id: String,
    pub server_id: String,
    pub now: String,
    pub offset: usize,
    pub limit: usize,
    pub count: usize,
    pub total: usize,
    pub clients: Vec<Clientz>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Clientz {
    pub id: String,
    pub hb_inbox: String,
    /// By channel.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub subscriptions: BTreeMap<String, Vec<Subz>>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Channelsz {
    pub cluster_id: String,
    pub server_id: String,
    pub now: String,
    pub offset: usize,
    pub limit: usize,
    pub count: usize,
    pub total: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub channels: Vec<Channelz>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Channelz {
    pub name: String,
    pub msgs: u64,
    pub bytes: u64,
    pub first_seq: u64,
    pub last_seq: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subscriptions: Vec<Subz>,
}

/// A subscription, with the original's fields in their order.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Subz {
    pub client_id: String,
    pub inbox: String,
    pub ack_inbox: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub durable_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub queue_name: String,
    pub is_durable: bool,
    pub is_offline: bool,
    pub max_inflight: i32,
    pub ack_wait: i32,
    pub last_sent: u64,
    pub pending_count: usize,
    pub is_stalled: bool,
}

/// midge's own: what the live page shows of all channels.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Overviewz {
    pub cluster_id: String,
    pub store: &'static str,
    pub clients: usize,
    pub channels: Vec<Overview>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Overview {
    pub name: String,
    pub msgs: u64,
    pub bytes: u64,
    pub first_seq: u64,
    pub last_seq: u64,
    pub subscriptions: usize,
    /// Durables whose client is away.
    pub offline: usize,
    pub stalled: usize,
    /// Messages sent and not acknowledged by their subscribers.
    pub pending: usize,
    /// Since the start of the server.
    pub acknowledged: u64,
    pub redelivered: u64,
    /// Messages that went to a channel of dead letters.
    pub dead_lettered: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_unacked_seconds: Option<f64>,
}

pub const MENU: &str = "<!DOCTYPE html>
<html lang=\"en\">
<head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\"><title>midge streaming</title></head>
<body>
<h1>Streaming</h1>
<p><a href=\"/streaming/serverz\">server</a></p>
<p><a href=\"/streaming/storez\">store</a></p>
<p><a href=\"/streaming/clientsz\">clients</a></p>
<p><a href=\"/streaming/channelsz\">channels</a></p>
<p><a href=\"/streaming/overviewz\">overview</a></p>
</body>
</html>
";

/// Where a page of a list begins and ends: bad numbers count as 0, and no limit is 1024.
pub fn page(offset: i64, limit: i64, total: usize) -> (usize, usize, std::ops::Range<usize>) {
    let offset = usize::try_from(offset).unwrap_or(0);
    let limit = usize::try_from(limit)
        .ok()
        .filter(|limit| *limit > 0)
        .unwrap_or(1024);
    let start = offset.min(total);
    (offset, limit, start..start.saturating_add(limit).min(total))
}

pub fn json(value: &impl Serialize) -> String {
    go_json_pretty(value)
}
