//! The monitoring documents as any server of the family writes them. Everything is optional: what a
//! server does not say is shown as blank or zero.

use serde::Deserialize;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Varz {
    pub server_id: String,
    pub server_name: String,
    pub version: String,
    pub uptime: String,
    pub now: String,
    pub cpu: f64,
    pub mem: u64,
    pub connections: u64,
    pub subscriptions: u64,
    pub routes: u64,
    pub slow_consumers: u64,
    pub in_msgs: u64,
    pub out_msgs: u64,
    pub in_bytes: u64,
    pub out_bytes: u64,
    /// midge only.
    pub loops: Vec<Loop>,
    pub slow_consumer_list: Vec<SlowConsumer>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Loop {
    pub connections: u64,
    pub subscriptions: u64,
    pub in_msgs: u64,
    pub out_msgs: u64,
    pub cpu: f64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SlowConsumer {
    pub cid: u64,
    pub address: String,
    pub name: String,
    pub pending_bytes: u64,
    pub cause: String,
    pub time: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Connz {
    pub num_connections: u64,
    pub total: u64,
    pub connections: Vec<Connection>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Connection {
    pub cid: u64,
    pub ip: String,
    pub port: u16,
    pub name: String,
    pub subscriptions: u64,
    pub pending_bytes: u64,
    pub out_msgs: u64,
    pub in_msgs: u64,
    pub out_bytes: u64,
    pub in_bytes: u64,
    pub lang: String,
    pub version: String,
    pub uptime: String,
    pub last_activity: String,
    pub subscriptions_list: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Routez {
    pub routes: Vec<Route>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Route {
    pub remote_id: String,
    pub ip: String,
}

/// /streaming/channelsz?subs=1
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Channelsz {
    pub channels: Vec<Channel>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Channel {
    pub name: String,
    pub msgs: u64,
    pub bytes: u64,
    pub first_seq: u64,
    pub last_seq: u64,
    pub subscriptions: Vec<StreamingSub>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct StreamingSub {
    pub client_id: String,
    pub pending_count: u64,
    pub is_offline: bool,
    pub is_stalled: bool,
    pub last_sent: u64,
}

/// Everything one look at one server brought.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// As the server was named on the command line, or found.
    pub address: String,
    pub varz: Varz,
    pub connz: Connz,
    pub routez: Routez,
    /// None: it does not stream.
    pub channels: Option<Channelsz>,
    /// Why there is no answer; the rest is from the last one.
    pub error: Option<String>,
}
