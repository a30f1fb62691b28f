//! The protobuf messages of NATS Streaming: those clients send and get (package `pb` of the original),
//! and those in stores and between servers (`spb`). Field numbers are the wire format.

use prost::Message;

/// The server reads `in_place::Publish`, which is the same.
#[derive(Clone, PartialEq, Message)]
pub struct PubMsg {
    #[prost(string, tag = "1")]
    pub client_id: String,
    /// Sent back as it came: nobody says that it is text.
    #[prost(bytes = "vec", tag = "2")]
    pub guid: Vec<u8>,
    #[prost(string, tag = "3")]
    pub subject: String,
    #[prost(string, tag = "4")]
    pub reply: String,
    #[prost(bytes = "bytes", tag = "5")]
    pub data: bytes::Bytes,
    #[prost(bytes = "bytes", tag = "6")]
    pub conn_id: bytes::Bytes,
}

/// What can be read of a publish that has other strings that are no text.
#[derive(Clone, PartialEq, Message)]
pub struct PubGuid {
    #[prost(bytes = "vec", tag = "2")]
    pub guid: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PubAck {
    #[prost(bytes = "vec", tag = "1")]
    pub guid: Vec<u8>,
    #[prost(string, tag = "2")]
    pub error: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct MsgProto {
    #[prost(uint64, tag = "1")]
    pub sequence: u64,
    #[prost(string, tag = "2")]
    pub subject: String,
    #[prost(string, tag = "3")]
    pub reply: String,
    #[prost(bytes = "bytes", tag = "4")]
    pub data: bytes::Bytes,
    /// Nanoseconds since the epoch.
    #[prost(int64, tag = "5")]
    pub timestamp: i64,
    #[prost(bool, tag = "6")]
    pub redelivered: bool,
    #[prost(uint32, tag = "7")]
    pub redelivery_count: u32,
}

/// The server reads `in_place::Ack`, which is the same.
#[derive(Clone, PartialEq, Message)]
pub struct Ack {
    #[prost(string, tag = "1")]
    pub subject: String,
    #[prost(uint64, tag = "2")]
    pub sequence: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct ConnectRequest {
    #[prost(string, tag = "1")]
    pub client_id: String,
    #[prost(string, tag = "2")]
    pub heartbeat_inbox: String,
    #[prost(int32, tag = "3")]
    pub protocol: i32,
    #[prost(bytes = "bytes", tag = "4")]
    pub conn_id: bytes::Bytes,
    /// Seconds.
    #[prost(int32, tag = "5")]
    pub ping_interval: i32,
    #[prost(int32, tag = "6")]
    pub ping_max_out: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct ConnectResponse {
    #[prost(string, tag = "1")]
    pub pub_prefix: String,
    #[prost(string, tag = "2")]
    pub sub_requests: String,
    #[prost(string, tag = "3")]
    pub unsub_requests: String,
    #[prost(string, tag = "4")]
    pub close_requests: String,
    #[prost(string, tag = "5")]
    pub error: String,
    #[prost(string, tag = "6")]
    pub sub_close_requests: String,
    #[prost(string, tag = "7")]
    pub ping_requests: String,
    #[prost(int32, tag = "8")]
    pub ping_interval: i32,
    #[prost(int32, tag = "9")]
    pub ping_max_out: i32,
    #[prost(int32, tag = "10")]
    pub protocol: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct Ping {
    #[prost(bytes = "bytes", tag = "1")]
    pub conn_id: bytes::Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub struct PingResponse {
    #[prost(string, tag = "1")]
    pub error: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct SubscriptionRequest {
    #[prost(string, tag = "1")]
    pub client_id: String,
    #[prost(string, tag = "2")]
    pub subject: String,
    #[prost(string, tag = "3")]
    pub queue_group: String,
    #[prost(string, tag = "4")]
    pub inbox: String,
    #[prost(int32, tag = "5")]
    pub max_in_flight: i32,
    #[prost(int32, tag = "6")]
    pub ack_wait_seconds: i32,
    #[prost(string, tag = "7")]
    pub durable_name: String,
    /// A `StartPosition`; kept as a number because others are answered with an error.
    #[prost(int32, tag = "10")]
    pub start_position: i32,
    #[prost(uint64, tag = "11")]
    pub start_sequence: u64,
    /// Nanoseconds before now.
    #[prost(int64, tag = "12")]
    pub start_time_delta: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartPosition {
    NewOnly,
    LastReceived,
    TimeDeltaStart,
    SequenceStart,
    First,
}

impl StartPosition {
    pub fn from_number(number: i32) -> Option<Self> {
        Some(match number {
            0 => Self::NewOnly,
            1 => Self::LastReceived,
            2 => Self::TimeDeltaStart,
            3 => Self::SequenceStart,
            4 => Self::First,
            _ => return None,
        })
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct SubscriptionResponse {
    #[prost(string, tag = "2")]
    pub ack_inbox: String,
    #[prost(string, tag = "3")]
    pub error: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct UnsubscribeRequest {
    #[prost(string, tag = "1")]
    pub client_id: String,
    #[prost(string, tag = "2")]
    pub subject: String,
    /// The ack inbox; later clients may give the delivery inbox.
    #[prost(string, tag = "3")]
    pub inbox: String,
    #[prost(string, tag = "4")]
    pub durable_name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct CloseRequest {
    #[prost(string, tag = "1")]
    pub client_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct CloseResponse {
    #[prost(string, tag = "1")]
    pub error: String,
}

/// Between servers; publishes that are one are dropped silently.
#[derive(Clone, PartialEq, Message)]
pub struct CtrlMsg {
    #[prost(int32, tag = "1")]
    pub kind: i32,
    #[prost(string, tag = "2")]
    pub server_id: String,
    #[prost(bytes = "bytes", tag = "3")]
    pub data: bytes::Bytes,
    #[prost(string, tag = "4")]
    pub ref_id: String,
}

/// A subscription as stores keep it.
#[derive(Clone, PartialEq, Message)]
pub struct SubState {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(string, tag = "2")]
    pub client_id: String,
    #[prost(string, tag = "3")]
    pub queue_group: String,
    #[prost(string, tag = "4")]
    pub inbox: String,
    #[prost(string, tag = "5")]
    pub ack_inbox: String,
    #[prost(int32, tag = "6")]
    pub max_in_flight: i32,
    #[prost(int32, tag = "7")]
    pub ack_wait_seconds: i32,
    #[prost(string, tag = "8")]
    pub durable_name: String,
    #[prost(uint64, tag = "9")]
    pub last_sent: u64,
    #[prost(bool, tag = "10")]
    pub is_durable: bool,
    #[prost(bool, tag = "11")]
    pub is_closed: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct SubStateDelete {
    #[prost(uint64, tag = "1")]
    pub id: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct SubStateUpdate {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(uint64, tag = "2")]
    pub sequence: u64,
}

/// Names and prefixes of a server, kept for the life of its data.
#[derive(Clone, PartialEq, Message)]
pub struct ServerInfo {
    #[prost(string, tag = "1")]
    pub cluster_id: String,
    #[prost(string, tag = "2")]
    pub discovery: String,
    #[prost(string, tag = "3")]
    pub publish: String,
    #[prost(string, tag = "4")]
    pub subscribe: String,
    #[prost(string, tag = "5")]
    pub unsubscribe: String,
    #[prost(string, tag = "6")]
    pub close: String,
    #[prost(string, tag = "7")]
    pub sub_close: String,
    #[prost(string, tag = "8")]
    pub ack_subs: String,
    #[prost(string, tag = "9")]
    pub node_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ClientInfo {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub heartbeat_inbox: String,
    #[prost(bytes = "bytes", tag = "3")]
    pub conn_id: bytes::Bytes,
    #[prost(int32, tag = "4")]
    pub protocol: i32,
    #[prost(int32, tag = "5")]
    pub ping_interval: i32,
    #[prost(int32, tag = "6")]
    pub ping_max_out: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct ClientDelete {
    #[prost(string, tag = "1")]
    pub id: String,
}
