//! The options a server runs with, as plain values.

use super::route_url::{RouteUrl, parse_host_port};
use super::streaming::StreamingOptions;
use std::path::PathBuf;
use std::time::Duration;

/// Text that must not show in logs or debug output.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Hidden(pub String);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_empty() { "" } else { "***" })
    }
}

/// Subjects one may or may not use; with `subject queue` for subscriptions of a queue group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubjectRules {
    /// None: everything that is not denied.
    pub allow: Option<Vec<String>>,
    pub deny: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PermissionOptions {
    pub publish: SubjectRules,
    pub subscribe: SubjectRules,
    pub responses: Option<ResponseOptions>,
}

/// Who gets a request may answer it, whatever its other permissions say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseOptions {
    /// Answers to one request; None: any number.
    pub messages_max: Option<u32>,
    /// Time to answer; None: any.
    pub expires: Option<Duration>,
}

impl Default for ResponseOptions {
    fn default() -> Self {
        Self {
            messages_max: Some(1),
            expires: Some(Duration::from_secs(120)),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserOptions {
    /// Empty where the user is known by a key.
    pub name: String,
    pub password: Hidden,
    /// Public key in its text form, or empty.
    pub nkey: String,
    pub permissions: Option<PermissionOptions>,
}

/// A tls block, of clients or of the cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct TlsOptions {
    pub enabled: bool,
    pub cert_file: String,
    pub key_file: String,
    pub ca_file: String,
    /// Clients must show a certificate that the authorities in `ca_file` vouch for.
    pub verify: bool,
    /// They must, and it says who they are.
    pub map: bool,
    /// Seconds a handshake may take.
    pub timeout: f64,
    /// Names as Go has them; empty: all that are safe.
    pub cipher_suites: Vec<String>,
    pub curves: Vec<String>,
    /// TLS begins at once, INFO comes inside it.
    pub handshake_first: bool,
}

/// TLS and credentials for a connection to a NATS server, of the streaming part and of tools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientTlsOptions {
    /// TLS is wanted even if nothing else here says so.
    pub secure: bool,
    pub cert_file: String,
    pub key_file: String,
    pub ca_file: String,
    /// The name in the server's certificate, where it is not that of the URL.
    pub server_name: String,
    pub skip_verify: bool,
}

impl ClientTlsOptions {
    pub fn is_wanted(&self) -> bool {
        *self != Self::default()
    }
}

/// Who a client says it is. What a URL says counts before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    pub user: String,
    pub password: Hidden,
    pub token: Hidden,
    /// A file with the seed of an nkey.
    pub seed_file: String,
    /// A file with a JWT and the seed of its nkey.
    pub credentials_file: String,
}

impl Default for TlsOptions {
    fn default() -> Self {
        Self {
            enabled: false,
            cert_file: String::new(),
            key_file: String::new(),
            ca_file: String::new(),
            verify: false,
            map: false,
            timeout: 0.5,
            cipher_suites: Vec::new(),
            curves: Vec::new(),
            handshake_first: false,
        }
    }
}

impl TlsOptions {
    /// `mutual`: peers must show certificates whatever `verify` says, as between servers.
    fn check(&self, block: &str, mutual: bool) -> Result<(), String> {
        if self.enabled && self.cert_file.is_empty() {
            return Err("TLS Server certificate must be present and valid".into());
        }
        if self.enabled && self.key_file.is_empty() {
            return Err("TLS Server private key must be present and valid".into());
        }
        // gnatsd falls back on the authorities of the system, which vouch for everybody who has a domain.
        let verify = self.verify || self.map || mutual;
        if self.enabled && verify && self.ca_file.is_empty() {
            return Err(format!(
                "{block}: certificates of the other side cannot be verified without ca_file; set it to the file of the authority that signs them (not the authorities of the system, which gnatsd takes here: they vouch for strangers)"
            ));
        }
        Ok(())
    }
}

/// The cluster block: where routes are taken, and which ones are solicited.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterOptions {
    /// As clients see it.
    pub name: String,
    pub host: String,
    /// 0: no clustering; -1: any free port.
    pub port: i32,
    pub user: String,
    pub password: Hidden,
    pub auth_timeout: f64,
    pub routes: Vec<RouteUrl>,
    /// They were given on the command line, where they make no sense without an address.
    pub routes_by_flag: bool,
    /// Host or host:port told to other servers in place of the own one.
    pub advertise: String,
    pub no_advertise: bool,
    /// Tries beyond the first for routes that were not configured.
    pub connect_retries: u32,
    pub max_pending: usize,
    pub tls: TlsOptions,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            name: String::new(),
            host: "0.0.0.0".into(),
            port: 0,
            user: String::new(),
            password: Hidden::default(),
            auth_timeout: 1.0,
            routes: Vec::new(),
            routes_by_flag: false,
            advertise: String::new(),
            no_advertise: false,
            connect_retries: 0,
            max_pending: 256 << 20,
            tls: TlsOptions::default(),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    pub config_file: Option<PathBuf>,
    pub host: String,
    /// -1: any free port.
    pub port: i32,
    pub client_advertise: String,
    pub server_name: String,
    pub threads: usize,
    pub http_host: String,
    pub http_port: i32,
    pub https_port: i32,
    pub max_payload: i64,
    pub max_control_line: usize,
    pub max_connections: i64,
    pub max_subscriptions: i64,
    /// Tokens in the subject of a subscription; 0: no limit.
    pub max_subscription_tokens: usize,
    pub max_pending: usize,
    pub ping_interval: Duration,
    pub ping_max: u32,
    pub write_deadline: Duration,
    pub lame_duck_duration: Duration,
    pub lame_duck_grace_period: Duration,
    pub user: String,
    pub password: Hidden,
    pub token: Hidden,
    /// None: there is no such list. With an empty one nobody can log in.
    pub users: Option<Vec<UserOptions>>,
    pub default_permissions: Option<PermissionOptions>,
    pub no_auth_user: String,
    pub always_enable_nonce: bool,
    pub no_header_support: bool,
    pub auth_timeout: f64,
    pub debug: bool,
    pub trace: bool,
    pub logtime: bool,
    pub log_file: String,
    /// The log file is moved away when it reaches this size; 0: never.
    pub log_size_bytes_max: u64,
    /// Moved log files that are kept; 0: all.
    pub log_files_max: usize,
    pub syslog: bool,
    pub remote_syslog: String,
    /// Bytes of a payload that trace lines show; 0: all.
    pub traced_bytes_max: usize,
    pub pid_file: String,
    pub ports_file_dir: String,
    pub prof_port: i32,
    pub tls: TlsOptions,
    pub cluster: ClusterOptions,
    pub streaming: StreamingOptions,
    pub strict: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            config_file: None,
            host: "0.0.0.0".into(),
            port: 4222,
            client_advertise: String::new(),
            server_name: String::new(),
            threads: 0,
            http_host: String::new(),
            http_port: 0,
            https_port: 0,
            max_payload: 1 << 20,
            max_control_line: 1024,
            max_connections: 64 << 10,
            max_subscriptions: 0,
            max_subscription_tokens: 0,
            max_pending: 64 << 20,
            ping_interval: Duration::from_secs(120),
            ping_max: 2,
            write_deadline: Duration::from_secs(2),
            lame_duck_duration: Duration::from_secs(120),
            lame_duck_grace_period: Duration::from_secs(10),
            user: String::new(),
            password: Hidden::default(),
            token: Hidden::default(),
            users: None,
            default_permissions: None,
            no_auth_user: String::new(),
            always_enable_nonce: false,
            no_header_support: false,
            auth_timeout: 1.0,
            debug: false,
            trace: false,
            logtime: true,
            log_file: String::new(),
            log_size_bytes_max: 0,
            log_files_max: 0,
            syslog: false,
            remote_syslog: String::new(),
            traced_bytes_max: 0,
            pid_file: String::new(),
            ports_file_dir: String::new(),
            prof_port: 0,
            tls: TlsOptions::default(),
            cluster: ClusterOptions::default(),
            streaming: StreamingOptions::default(),
            strict: false,
        }
    }
}

impl Options {
    /// A zero or an empty address asks for the default, as in gnatsd. Where zero has a meaning of its own
    /// it stays: no monitoring, no clustering, no limit.
    pub fn put_defaults(&mut self) {
        let default = Self::default();
        fn put<T: Default + PartialEq>(value: &mut T, default: T) {
            if *value == T::default() {
                *value = default;
            }
        }
        put(&mut self.host, default.host);
        put(&mut self.port, default.port);
        put(&mut self.max_connections, default.max_connections);
        put(&mut self.max_payload, default.max_payload);
        put(&mut self.max_control_line, default.max_control_line);
        put(&mut self.max_pending, default.max_pending);
        put(&mut self.ping_interval, default.ping_interval);
        put(&mut self.ping_max, default.ping_max);
        put(&mut self.write_deadline, default.write_deadline);
        put(&mut self.auth_timeout, default.auth_timeout);
        put(&mut self.tls.timeout, default.tls.timeout);
        let (cluster, default) = (&mut self.cluster, default.cluster);
        put(&mut cluster.host, default.host);
        put(&mut cluster.auth_timeout, default.auth_timeout);
        put(&mut cluster.max_pending, default.max_pending);
        put(&mut cluster.tls.timeout, default.tls.timeout);
    }

    /// What no single option shows: contradictions between them, one a line. The texts are gnatsd's.
    pub fn check(&self) -> Result<(), String> {
        all_of([
            none_of(self.strangers()),
            none_of(self.addresses_at_odds()),
            none_of(self.ports_given_twice()),
            none_of(self.advertised_badly()),
            self.tls.check("tls", false),
            self.cluster.tls.check("cluster tls", true),
            self.streaming.check(),
        ])
    }

    /// Credentials of a file that contradict each other. Flags over a file may: `remarks` tells what counts then.
    pub fn check_credentials(&self) -> Result<(), String> {
        let single = !self.user.is_empty();
        let token = !self.token.0.is_empty();
        let listed = self.users.is_some();
        let faults = [
            (
                (single || !self.password.0.is_empty()) && token,
                "Cannot have a user/pass and token",
            ),
            (
                single && listed,
                "Can not have a single user/pass and a users array",
            ),
            (token && listed, "Can not have a token and a users array"),
        ];
        none_of(those_that_hold(&faults))
    }

    /// What counts otherwise than it seems, to be warned about at the start.
    pub fn remarks(&self) -> Vec<String> {
        let single = !self.user.is_empty();
        let token = !self.token.0.is_empty();
        let listed = self.users.is_some();
        let open = !(single || token || listed);
        let faults = [
            (
                self.users.as_ref().is_some_and(Vec::is_empty),
                "the list of users is empty: no client can log in",
            ),
            (
                single && listed,
                "user and password are ignored: there is a list of users, which counts before them",
            ),
            (
                token && listed,
                "the token is ignored: there is a list of users, which counts before it",
            ),
            (
                single && token && !listed,
                "user and password are ignored: there is a token, which counts before them",
            ),
            (
                open && !self.password.0.is_empty(),
                "a password without a user is ignored: clients need no credentials",
            ),
            (
                self.max_payload > i64::try_from(self.max_pending).unwrap_or(i64::MAX),
                "max_payload is above max_pending: a message is not held against who had less than max_pending waiting before it, so the sum of both may wait for a client",
            ),
        ];
        let mut remarks = those_that_hold(&faults);
        remarks.extend(self.streaming.remarks());
        remarks
    }

    /// Users that something names and the list does not have.
    fn strangers(&self) -> Vec<String> {
        let users = self.users.iter().flatten();
        let stranger = !self.no_auth_user.is_empty()
            && !users.into_iter().any(|user| user.name == self.no_auth_user);
        let no_auth_user = format!(
            "no_auth_user {:?} is not one of the users",
            self.no_auth_user
        );
        let faults = [
            (stranger, &*no_auth_user),
            (
                self.tls.map && self.users.is_none(),
                "verify_and_map needs a list of users for the certificates to name",
            ),
            (
                self.cluster.tls.map,
                "verify_and_map is for clients: routes have no list of users",
            ),
        ];
        those_that_hold(&faults)
    }

    /// Addresses to be told to others, which they could not read.
    fn advertised_badly(&self) -> Vec<String> {
        let (client, cluster) = (&self.client_advertise, &self.cluster.advertise);
        let fault = |advertise: &str, port: i32| {
            let wrong = |_| parse_host_port(advertise, port).err();
            (!advertise.is_empty()).then_some(()).and_then(wrong)
        };
        let mut faults = Vec::new();
        if let Some(error) = fault(client, self.port) {
            faults.push(format!(
                "Error setting server INFO with ClientAdvertise value of {client}, err={error}"
            ));
        }
        if self.cluster.port != 0
            && let Some(error) = fault(cluster, self.cluster.port)
        {
            faults.push(format!(
                "Error setting route INFO with Cluster.Advertise value of {cluster}, err={error}"
            ));
        }
        faults
    }

    /// Listeners that could not all be opened.
    fn ports_given_twice(&self) -> Vec<String> {
        let streaming = &self.streaming;
        let external = streaming.enabled && !streaming.nats_server.is_empty();
        let monitoring = match self.https_port {
            0 => self.http_port,
            port => port,
        };
        let monitoring_host = match self.http_host.is_empty() {
            true => &self.host,
            false => &self.http_host,
        };
        let listeners = [
            ("clients", &self.host, if external { 0 } else { self.port }),
            ("monitoring", monitoring_host, monitoring),
            ("routes", &self.cluster.host, self.cluster.port),
        ];
        let mut faults = Vec::new();
        for (index, (what, host, port)) in listeners.iter().enumerate() {
            for (later, host_of_later, port_of_later) in &listeners[index + 1..] {
                if *port > 0 && port == port_of_later && overlap(host, host_of_later) {
                    faults.push(format!(
                        "port {port} is given twice: for {what} and for {later}"
                    ));
                }
            }
        }
        faults
    }

    fn addresses_at_odds(&self) -> Vec<String> {
        let cluster = &self.cluster;
        let both = format!(
            "Can't start monitoring: can't specify both HTTP ({}) and HTTPs ({}) ports",
            self.http_port, self.https_port
        );
        let faults = [
            (
                cluster.routes_by_flag && !cluster.routes.is_empty() && cluster.port == 0,
                "solicited routes require cluster capabilities, e.g. --cluster",
            ),
            (self.http_port != 0 && self.https_port != 0, &both),
            (
                self.https_port != 0 && !self.tls.enabled,
                "Can't start monitoring: TLS cert and key required for HTTPS",
            ),
        ];
        those_that_hold(&faults)
    }
}

/// Whether no two listeners can have these addresses with one port.
fn overlap(one: &str, other: &str) -> bool {
    let any = |host: &str, families: &[&str]| families.contains(&host);
    let (v4, v6) = ("0.0.0.0", ["::", "[::]"]);
    let is_v6 = |host: &str| host.contains(':');
    one == other
        || any(one, &v6)
        || any(other, &v6)
        || (one == v4 && !is_v6(other))
        || (other == v4 && !is_v6(one))
}

/// All errors, one a line.
pub fn all_of(results: impl IntoIterator<Item = Result<(), String>>) -> Result<(), String> {
    none_of(results.into_iter().filter_map(Result::err).collect())
}

pub(super) fn none_of(errors: Vec<String>) -> Result<(), String> {
    match errors.is_empty() {
        true => Ok(()),
        false => Err(errors.join("\n")),
    }
}

fn those_that_hold(faults: &[(bool, &str)]) -> Vec<String> {
    let held = faults.iter().filter(|(holds, _)| *holds);
    held.map(|(_, text)| (*text).to_owned()).collect()
}
