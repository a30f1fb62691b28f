//! Looks at servers over HTTP.

use super::data::{Channelsz, Connz, Routez, Snapshot, Varz};
use super::options::TopOptions;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::time::Duration;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

const TIMEOUT: Duration = Duration::from_secs(3);
/// Documents larger than this are not read.
const BODY_BYTES_MAX: u64 = 64 << 20;

pub struct Fetcher {
    agent: ureq::Agent,
    scheme: &'static str,
    port: u16,
}

/// What a look is to bring.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub sort: String,
    pub limit: usize,
    pub subscriptions: bool,
}

impl Fetcher {
    pub fn new(options: &TopOptions) -> Result<Self, String> {
        let read = |path: &String| std::fs::read(path).map_err(|error| format!("{path}: {error}"));
        let certificates = |path: &String| -> Result<Vec<Certificate<'static>>, String> {
            let bytes = read(path)?;
            let items: Result<Vec<_>, _> = ureq::tls::parse_pem(&bytes).collect();
            let items = items.map_err(|error| format!("{path}: {error}"))?;
            let certificates = items.into_iter().filter_map(|item| match item {
                ureq::tls::PemItem::Certificate(certificate) => Some(certificate),
                _ => None,
            });
            Ok(certificates.collect())
        };
        let mut tls = TlsConfig::builder().disable_verification(options.insecure);
        if let Some(path) = &options.ca {
            tls = tls.root_certs(RootCerts::new_with_certs(&certificates(path)?));
        }
        if let (Some(cert), Some(key)) = (&options.cert, &options.key) {
            let private =
                PrivateKey::from_pem(&read(key)?).map_err(|error| format!("{key}: {error}"))?;
            tls = tls.client_cert(Some(ClientCert::new_with_certs(
                &certificates(cert)?,
                private,
            )));
        }
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .tls_config(tls.build())
            .build();
        Ok(Self {
            agent: config.into(),
            scheme: if options.https { "https" } else { "http" },
            port: options.port,
        })
    }

    /// `host:port` of a server as it was named.
    pub fn address(&self, server: &str) -> String {
        let has_port = server.rsplit_once(':').is_some_and(|(host, port)| {
            port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']'))
        });
        match (has_port, server.contains(':')) {
            (true, _) => server.to_owned(),
            (false, true) => format!("[{}]:{}", server.trim_matches(['[', ']']), self.port),
            (false, false) => format!("{server}:{}", self.port),
        }
    }

    fn get<T: DeserializeOwned>(&self, address: &str, path: &str) -> Result<T, String> {
        let url = format!("{}://{address}{path}", self.scheme);
        let mut answer = self
            .agent
            .get(&url)
            .call()
            .map_err(|error| error.to_string())?;
        let body = answer
            .body_mut()
            .with_config()
            .limit(BODY_BYTES_MAX)
            .read_to_string()
            .map_err(|error| error.to_string())?;
        serde_json::from_str(&body).map_err(|error| format!("{path}: {error}"))
    }

    /// Whether a server is there at all.
    pub fn smoke_test(&self, server: &str) -> Result<(), String> {
        let address = self.address(server);
        self.get::<Varz>(&address, "/varz")
            .map(drop)
            .map_err(|error| format!("midge-top: /varz smoke test failed: {address}: {error}"))
    }

    pub fn look(&self, server: &str, wanted: &Wanted) -> Snapshot {
        let address = self.address(server);
        let subs = if wanted.subscriptions { "&subs=1" } else { "" };
        let connz = format!("/connz?limit={}&sort={}{subs}", wanted.limit, wanted.sort);
        let snapshot = || {
            Ok::<_, String>(Snapshot {
                varz: self.get(&address, "/varz")?,
                connz: self.get::<Connz>(&address, &connz)?,
                // Servers of other kinds may lack these two.
                routez: self.get::<Routez>(&address, "/routez").unwrap_or_default(),
                channels: self
                    .get::<Channelsz>(&address, "/streaming/channelsz?subs=1")
                    .ok(),
                address: address.clone(),
                error: None,
            })
        };
        snapshot().unwrap_or_else(|error| Snapshot {
            address: address.clone(),
            error: Some(error),
            ..Snapshot::default()
        })
    }

    /// Addresses of other servers, by the routes of those we know: the same monitoring port is tried at
    /// each. Servers already known by id are left out.
    pub fn discover(&self, known: &[Snapshot]) -> Vec<String> {
        let ids: BTreeSet<&str> = known.iter().map(|s| s.varz.server_id.as_str()).collect();
        let remote = known.iter().flat_map(|s| &s.routez.routes);
        let new: BTreeSet<&str> = remote
            .filter(|route| !ids.contains(route.remote_id.as_str()))
            .map(|route| route.ip.as_str())
            .collect();
        let addresses: BTreeSet<&str> = known.iter().map(|s| s.address.as_str()).collect();
        new.into_iter()
            .map(|ip| self.address(ip))
            .filter(|address| !addresses.contains(address.as_str()))
            .filter(|address| self.get::<Varz>(address, "/varz").is_ok())
            .collect()
    }
}
