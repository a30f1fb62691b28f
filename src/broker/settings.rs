//! What the broker needs to know of the configuration; one value, shared by all loops.

use super::auth::Auth;
use crate::config::options::Hidden;
use crate::config::route_url::RouteUrl;
use crate::wire::info::Info;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Settings {
    /// INFO for clients, but for what differs per client.
    pub info: Info,
    pub payload_bytes_max: u64,
    pub control_line_bytes_max: usize,
    /// Per client; None: no limit.
    pub subscriptions_max: Option<usize>,
    /// Tokens in the subject of a subscription; None: no limit.
    pub subscription_tokens_max: Option<usize>,
    /// Bytes of a payload shown by trace lines; None: all.
    pub traced_bytes_max: Option<usize>,
    /// INFO has a nonce to sign.
    pub nonces: bool,
    pub pending_bytes_max: usize,
    /// A connection with output pending that takes none of it for this long is cut off.
    pub write_deadline: Duration,
    pub ping_interval: Duration,
    pub pings_out_max: u32,
    pub auth: Auth,
    pub auth_timeout: Duration,
    /// None: this server takes no routes. Does not come or go while the server runs.
    pub cluster: Option<ClusterSettings>,
}

#[derive(Clone, Debug)]
pub struct ClusterSettings {
    /// INFO for other servers.
    pub info: Info,
    /// Addresses of this server for clients, as host:port.
    pub client_urls: Vec<String>,
    /// Neither tell other servers our client addresses, nor our clients theirs.
    pub no_advertise: bool,
    /// What other servers must show, and in what time.
    pub auth: Auth,
    pub auth_timeout: Duration,
    /// What we show where another server told of a third one.
    pub user: String,
    pub password: Hidden,
    /// The configured routes.
    pub routes: Vec<RouteUrl>,
    /// Further tries for routes that are not configured.
    pub connect_retries: u32,
    pub pending_bytes_max: usize,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self {
            info: Info::default(),
            client_urls: Vec::new(),
            no_advertise: false,
            auth: Auth::default(),
            auth_timeout: Duration::ZERO,
            user: String::new(),
            password: Hidden::default(),
            routes: Vec::new(),
            connect_retries: 0,
            pending_bytes_max: 256 << 20,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            info: Info::default(),
            payload_bytes_max: 1 << 20,
            control_line_bytes_max: 1024,
            subscriptions_max: None,
            subscription_tokens_max: None,
            traced_bytes_max: None,
            nonces: false,
            pending_bytes_max: 64 << 20,
            write_deadline: Duration::from_secs(2),
            ping_interval: Duration::from_secs(120),
            pings_out_max: 2,
            auth: Auth::default(),
            auth_timeout: Duration::from_secs(1),
            cluster: None,
        }
    }
}
