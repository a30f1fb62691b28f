//! The documents of a monitoring port, whoever wrote them.
//!
//! Every field may be missing or of another type, and is none then: servers of ten years differ in
//! what they tell, and what one does not tell stays blank instead of spoiling the rest.

use serde::de::{Deserialize, Deserializer, IgnoredAny};
use std::collections::BTreeMap;

/// A struct whose fields are all optional and read loosely.
macro_rules! document {
    ($(#[$about:meta])* $name:ident { $($(#[$note:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$about])*
        #[derive(Clone, Debug, Default, serde::Deserialize)]
        #[serde(default)]
        pub struct $name {
            $($(#[$note])* #[serde(deserialize_with = "loose")] pub $field: Option<$type>,)*
        }
    };
}

document! {
    /// `/varz`
    Varz {
        server_id: String,
        server_name: String,
        version: String,
        host: String,
        port: u16,
        cluster: ClusterVarz,
        connect_urls: Vec<String>,
        start: String,
        now: String,
        uptime: String,
        mem: u64,
        cores: u64,
        cpu: f64,
        connections: u64,
        total_connections: u64,
        routes: u64,
        remotes: u64,
        in_msgs: u64,
        out_msgs: u64,
        in_bytes: u64,
        out_bytes: u64,
        slow_consumers: u64,
        subscriptions: u64,
        /// nats-server 2.x: slow consumers by kind.
        slow_consumer_stats: BTreeMap<String, u64>,
        /// midge: the last slow consumers, and its event loops.
        slow_consumer_list: Vec<SlowConsumer>,
        loops: Vec<EventLoop>,
    }
}

document! {
    ClusterVarz {
        name: String,
        addr: String,
        cluster_port: u16,
        urls: Vec<String>,
    }
}

document! {
    EventLoop {
        connections: u64,
        subscriptions: u64,
        in_msgs: u64,
        out_msgs: u64,
        cpu: f64,
    }
}

document! {
    SlowConsumer {
        cid: u64,
        address: String,
        name: String,
        pending_bytes: u64,
        cause: String,
        time: String,
    }
}

/// `/connz`. The list is read straight from the text: going through the loose way would keep all of
/// it twice.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct Connz {
    #[serde(deserialize_with = "loose")]
    pub server_id: Option<String>,
    #[serde(deserialize_with = "loose")]
    pub now: Option<String>,
    #[serde(deserialize_with = "loose")]
    pub num_connections: Option<u64>,
    #[serde(deserialize_with = "loose")]
    pub total: Option<u64>,
    pub connections: Option<Vec<Connection>>,
}

document! {
    Connection {
        cid: u64,
        ip: String,
        port: u16,
        start: String,
        last_activity: String,
        uptime: String,
        idle: String,
        pending_bytes: u64,
        in_msgs: u64,
        out_msgs: u64,
        in_bytes: u64,
        out_bytes: u64,
        subscriptions: u64,
        name: String,
        lang: String,
        version: String,
        tls_version: String,
        tls_cipher_suite: String,
        authorized_user: String,
        subscriptions_list: Vec<String>,
        // nats-server 2.x
        kind: String,
        account: String,
        rtt: String,
        stop: String,
        reason: String,
    }
}

document! {
    /// `/routez`
    Routez {
        server_id: String,
        num_routes: u64,
        routes: Vec<Route>,
    }
}

document! {
    Route {
        rid: u64,
        remote_id: String,
        remote_name: String,
        did_solicit: bool,
        ip: String,
        port: u16,
        in_msgs: u64,
        out_msgs: u64,
        in_bytes: u64,
        out_bytes: u64,
        subscriptions: u64,
    }
}

document! {
    /// `/streaming/channelsz?subs=1`
    Channelsz {
        now: String,
        count: u64,
        total: u64,
        channels: Vec<Channel>,
    }
}

document! {
    Channel {
        name: String,
        msgs: u64,
        bytes: u64,
        first_seq: u64,
        last_seq: u64,
        subscriptions: Vec<StreamingSubscription>,
    }
}

document! {
    StreamingSubscription {
        client_id: String,
        inbox: String,
        ack_inbox: String,
        durable_name: String,
        queue_name: String,
        is_durable: bool,
        is_offline: bool,
        is_stalled: bool,
        max_inflight: u64,
        ack_wait: u64,
        last_sent: u64,
        pending_count: u64,
        /// Messages sent again; the original does not tell.
        redelivered: u64,
    }
}

document! {
    /// `/streaming/clientsz`
    Clientsz {
        total: u64,
        clients: Vec<StreamingClient>,
    }
}

document! {
    StreamingClient {
        id: String,
        hb_inbox: String,
    }
}

impl Connection {
    /// Whether name, address or a subject has this in it, in any case.
    pub fn holds(&self, word: &str) -> bool {
        let word = word.to_lowercase();
        let holds = |text: &str| text.to_lowercase().contains(&word);
        let subjects = self.subscriptions_list.as_deref().unwrap_or_default();
        word.is_empty()
            || self.name.as_deref().is_some_and(holds)
            || holds(&self.host())
            || subjects.iter().any(|subject| holds(subject))
    }

    /// Address and port, as everybody shows them.
    pub fn host(&self) -> String {
        let ip = self.ip.as_deref().unwrap_or("");
        let port = self.port.unwrap_or(0);
        match ip.contains(':') {
            true => format!("[{ip}]:{port}"),
            false => format!("{ip}:{port}"),
        }
    }
}

/// The value if it is of the right type; anything else is none.
fn loose<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Loose<T> {
        Right(T),
        Other(IgnoredAny),
    }
    Ok(match Loose::deserialize(deserializer)? {
        Loose::Right(value) => Some(value),
        Loose::Other(IgnoredAny) => None,
    })
}

/// Seconds since 1970 of an RFC 3339 time.
pub fn seconds(time: &str) -> Option<f64> {
    let time = chrono::DateTime::parse_from_rfc3339(time).ok()?;
    Some(time.timestamp() as f64 + f64::from(time.timestamp_subsec_nanos()) / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_of_another_type_is_none() {
        let text = r#"{"version": "1.1.0", "mem": "much", "cpu": 1, "routes": -1, "new": {"a": [1]},
            "loops": null, "in_msgs": 3, "cluster": {"addr": 7, "cluster_port": 6222}}"#;
        let varz: Varz = serde_json::from_str(text).unwrap();
        assert_eq!(varz.version.as_deref(), Some("1.1.0"));
        assert_eq!((varz.mem, varz.routes, varz.out_msgs), (None, None, None));
        assert_eq!((varz.cpu, varz.in_msgs), (Some(1.0), Some(3)));
        assert!(varz.loops.is_none());
        let cluster = varz.cluster.unwrap();
        assert_eq!((cluster.addr, cluster.cluster_port), (None, Some(6222)));
    }

    #[test]
    fn filters_look_at_names_addresses_and_subjects() {
        let text = r#"{"ip": "10.0.0.1", "port": 7, "name": "Billing", "subscriptions_list": ["orders.>"]}"#;
        let connection: Connection = serde_json::from_str(text).unwrap();
        for (word, shown) in [
            ("", true),
            ("bill", true),
            (".1:7", true),
            ("ORDERS", true),
            ("x", false),
        ] {
            assert_eq!(connection.holds(word), shown, "{word}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(seconds("1970-01-01T00:00:01.5Z"), Some(1.5));
        assert_eq!(seconds("1970-01-01T01:00:01+01:00"), Some(1.0));
        assert_eq!(seconds("soon"), None);
    }
}
