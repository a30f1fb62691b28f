//! The options a server runs with, as plain values.

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
    pub users: Vec<UserOptions>,
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
    /// What later parts of midge need; checked at the start.
    pub tls: bool,
    pub tls_cert: String,
    pub tls_key: String,
    pub tls_ca: String,
    pub tls_verify: bool,
    pub cluster: String,
    pub routes: Option<Vec<String>>,
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
            users: Vec::new(),
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
            tls: false,
            tls_cert: String::new(),
            tls_key: String::new(),
            tls_ca: String::new(),
            tls_verify: false,
            cluster: String::new(),
            routes: None,
            strict: false,
        }
    }
}

impl Options {
    /// What no single option shows: contradictions between them. The texts are gnatsd's.
    pub fn check(&self) -> Result<(), String> {
        let single = !self.user.is_empty();
        let token = !self.token.0.is_empty();
        if single && token {
            return Err("Cannot have a user/pass and token".into());
        }
        if single && !self.users.is_empty() {
            return Err("Can not have a single user/pass and a users array".into());
        }
        if token && !self.users.is_empty() {
            return Err("Can not have a token and a users array".into());
        }
        if !self.no_auth_user.is_empty()
            && !self.users.iter().any(|user| user.name == self.no_auth_user)
        {
            return Err(format!(
                "no_auth_user {:?} is not one of the users",
                self.no_auth_user
            ));
        }
        if self
            .routes
            .as_ref()
            .is_some_and(|routes| !routes.is_empty())
            && self.cluster.is_empty()
        {
            return Err("solicited routes require cluster capabilities, e.g. --cluster".into());
        }
        if self.http_port != 0 && self.https_port != 0 {
            return Err(format!(
                "Can't start monitoring: can't specify both HTTP ({}) and HTTPs ({}) ports",
                self.http_port, self.https_port
            ));
        }
        if self.https_port != 0 && !self.tls {
            return Err("Can't start monitoring: TLS cert and key required for HTTPS".into());
        }
        if self.tls && self.tls_cert.is_empty() {
            return Err("TLS Server certificate must be present and valid".into());
        }
        if self.tls && self.tls_key.is_empty() {
            return Err("TLS Server private key must be present and valid".into());
        }
        // Running without what was asked for would be worse than not running.
        if self.tls {
            return Err("TLS is not available in this version of midge".into());
        }
        if !self.cluster.is_empty() {
            return Err("clustering is not available in this version of midge".into());
        }
        Ok(())
    }
}
