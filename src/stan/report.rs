//! What monitoring is told of the streaming part.

#[derive(Clone, Debug, Default)]
pub struct Report {
    pub cluster_id: String,
    pub store: &'static str,
    pub clients: Vec<ClientReport>,
    pub channels: Vec<ChannelReport>,
}

#[derive(Clone, Debug, Default)]
pub struct ClientReport {
    pub id: String,
    pub hb_inbox: String,
}

#[derive(Clone, Debug, Default)]
pub struct ChannelReport {
    pub name: String,
    pub msgs: u64,
    pub bytes: u64,
    pub first_seq: u64,
    pub last_seq: u64,
    /// Since the server's start.
    pub acknowledged: u64,
    pub redelivered: u64,
    pub dead_lettered: u64,
    /// Nanoseconds since the epoch.
    pub oldest_unacked: Option<i64>,
    pub subscriptions: Vec<SubReport>,
}

#[derive(Clone, Debug, Default)]
pub struct SubReport {
    pub client_id: String,
    pub inbox: String,
    pub ack_inbox: String,
    pub durable_name: String,
    pub queue_name: String,
    pub is_durable: bool,
    pub is_offline: bool,
    pub max_inflight: i32,
    pub ack_wait: i32,
    pub last_sent: u64,
    pub pending_count: usize,
    pub is_stalled: bool,
}
