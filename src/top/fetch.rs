//! Getting the documents of a monitoring port over HTTP and HTTPS.

use super::json::{Channelsz, Clientsz, Connz, Routez, Varz};
use super::options::{Address, TlsFiles};
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use ureq::Agent;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig};

/// An answer that takes longer counts as none.
const TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A hundred thousand connections with their subscriptions are less.
const BODY_BYTES_MAX: u64 = 256 << 20;

/// Where distributions keep the authorities of the system.
const SYSTEM_AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What to get of a server beside `/varz`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ask {
    pub connections: Option<ConnectionsAsk>,
    pub routes: bool,
    pub streaming: bool,
    /// nats-server 2.x tells of slow consumers in its list of closed connections.
    pub closed: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ConnectionsAsk {
    pub limit: i64,
    pub sort: String,
    pub subscriptions: bool,
}

/// What came; a part that was not asked for, or that the server does not have, is none.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub varz: Varz,
    pub connz: Option<Connz>,
    pub routez: Option<Routez>,
    pub streaming: Option<Streaming>,
    pub closed: Option<Connz>,
    /// The server does not sort by the key asked for; it was asked without.
    pub sort_refused: bool,
    /// What went wrong with a part.
    pub trouble: Option<Failure>,
}

#[derive(Clone, Debug, Default)]
pub struct Streaming {
    pub channels: Channelsz,
    pub clients: Clientsz,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// The server answers, but not with what was asked for.
    Status(u16, String),
    /// It does not answer.
    NoAnswer(String),
    /// It answers, but not in JSON.
    Other(String),
}

impl Failure {
    /// What the screen has room for.
    pub fn reason(&self) -> String {
        match self {
            Failure::Status(status, text) => format!("status {status}: {text:?}"),
            Failure::NoAnswer(text) => text.clone(),
            Failure::Other(text) => format!("not JSON: {text}"),
        }
    }
}

/// As nats-top says it.
impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Status(status, text) => write!(f, "stats request failed {status}: {text:?}"),
            Failure::NoAnswer(text) => write!(f, "could not get stats from server: {text}"),
            Failure::Other(text) => write!(f, "could not unmarshal statz json: {text}"),
        }
    }
}

/// Cheap to clone; connections are kept and shared.
#[derive(Clone, Debug)]
pub struct Client {
    agent: Agent,
}

impl Client {
    pub fn new(files: &TlsFiles, https: bool) -> Result<Self, String> {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None) // monitoring ports are near
            .max_idle_connections_per_host(1)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(TIMEOUT))
            .user_agent(concat!("midge-top/", env!("CARGO_PKG_VERSION")));
        if https {
            config = config.tls_config(tls(files)?);
        }
        Ok(Self {
            agent: config.build().new_agent(),
        })
    }

    /// Everything asked for, from one server. An error means that not even `/varz` came.
    pub fn answer(&self, address: &Address, ask: &Ask) -> Result<Answer, Failure> {
        let mut answer = Answer {
            varz: self.get(address, "/varz")?,
            ..Answer::default()
        };
        if let Some(ask) = &ask.connections {
            let key = ask.sort.as_str();
            let mut connz = self.connz(address, ask, key);
            if matches!(&connz, Err(Failure::Status(400, _))) && key != "cid" {
                answer.sort_refused = true;
                connz = self.connz(address, ask, "cid");
            }
            answer.connz = answer.part(connz);
        }
        if ask.routes {
            let routez = self.get(address, "/routez");
            answer.routez = answer.part(routez);
        }
        if ask.streaming {
            let streaming = self.streaming(address);
            answer.streaming = answer.part(streaming);
        }
        if ask.closed {
            let closed = self.get(address, "/connz?state=closed&limit=1024");
            answer.closed = answer.part(closed);
        }
        Ok(answer)
    }

    fn connz(&self, address: &Address, ask: &ConnectionsAsk, key: &str) -> Result<Connz, Failure> {
        let subscriptions = if ask.subscriptions { "&subs=1" } else { "" };
        let limit = ask.limit;
        self.get(
            address,
            &format!("/connz?limit={limit}&sort={key}{subscriptions}"),
        )
    }

    fn streaming(&self, address: &Address) -> Result<Streaming, Failure> {
        Ok(Streaming {
            channels: self.get(address, "/streaming/channelsz?subs=1&limit=1024")?,
            clients: self.get(address, "/streaming/clientsz?limit=1024")?,
        })
    }

    pub fn get<T: DeserializeOwned>(&self, address: &Address, path: &str) -> Result<T, Failure> {
        let scheme = if address.https { "https" } else { "http" };
        let url = format!("{scheme}://{address}{path}");
        let (status, body) = match self.fetch(&url) {
            // The server may have closed a connection that we kept; a new one is tried.
            Err(error) if was_cut(&error) => self.fetch(&url),
            other => other,
        }
        .map_err(|error| Failure::NoAnswer(say(error)))?;
        if status != 200 {
            let text = String::from_utf8_lossy(&body);
            let line = text.lines().next().unwrap_or_default();
            return Err(Failure::Status(status, line.chars().take(80).collect()));
        }
        serde_json::from_slice(&body).map_err(|error| Failure::Other(error.to_string()))
    }

    fn fetch(&self, url: &str) -> Result<(u16, Vec<u8>), ureq::Error> {
        let mut response = self.agent.get(url).call()?;
        let body = response
            .body_mut()
            .with_config()
            .limit(BODY_BYTES_MAX)
            .read_to_vec()?;
        Ok((response.status().as_u16(), body))
    }
}

impl Answer {
    /// A part that a server does not have is not worth a word, another failure is.
    fn part<T>(&mut self, part: Result<T, Failure>) -> Option<T> {
        match part {
            Ok(part) => Some(part),
            Err(Failure::Status(404, _)) => None,
            Err(failure) => {
                self.trouble = Some(failure);
                None
            }
        }
    }
}

fn was_cut(error: &ureq::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    match error {
        ureq::Error::Io(error) => matches!(
            error.kind(),
            BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
        ),
        ureq::Error::Protocol(_) => true,
        _ => false,
    }
}

fn say(error: ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => match error.kind() {
            std::io::ErrorKind::ConnectionRefused => "connection refused".into(),
            _ => error.to_string(),
        },
        ureq::Error::Timeout(_) => "no answer in time".into(),
        ureq::Error::HostNotFound => "host not found".into(),
        ureq::Error::Protocol(error) => format!("not HTTP: {error}"),
        other => other.to_string(),
    }
}

fn tls(files: &TlsFiles) -> Result<TlsConfig, String> {
    let roots = match (&files.ca, files.skip_verify) {
        (Some(path), _) => certificates(path)?,
        (None, true) => Vec::new(),
        (None, false) => system_authorities()?,
    };
    let client = match (&files.cert, &files.key) {
        (Some(cert), Some(key)) => Some(ClientCert::new_with_certs(
            &certificates(cert)?,
            PrivateKey::from_pem(&read(key)?)
                .map_err(|error| format!("{}: {error}", key.display()))?,
        )),
        _ => None,
    };
    Ok(TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::new_with_certs(&roots))
        .client_cert(client)
        .disable_verification(files.skip_verify)
        .build())
}

fn system_authorities() -> Result<Vec<Certificate<'static>>, String> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let usual = SYSTEM_AUTHORITIES.iter().map(PathBuf::from);
    match named.into_iter().chain(usual).find(|path| path.exists()) {
        Some(path) => certificates(&path),
        None => {
            Err("no authorities of the system found; -cacert names some, -k does without".into())
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, String> {
    let pem = read(path)?;
    let items = ureq::tls::parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    let found: Vec<_> = items.collect();
    match found.is_empty() {
        true => Err(format!("{}: no certificate in it", path.display())),
        false => Ok(found),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}
