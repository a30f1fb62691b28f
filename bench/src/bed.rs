//! What a scenario runs on: one server or several, with what they need on the disk.

use crate::connection::{Login, Result, Target};
use crate::server::{Program, Server, free_port};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How the servers of a scenario are started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setup {
    One,
    /// So many event loops, on one CPU like everything else.
    Loops(u16),
    Tls,
    /// Clients are a user who may do some things only.
    Permissions,
    /// Two servers with a route between them.
    Route,
    /// One server of a cluster, which others may join.
    Cluster,
    Streaming(Store),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    Memory,
    File,
    /// Acks do not wait for the disk.
    FileUnsynced,
}

/// As many subjects as a service of some size has, in the form that all versions read.
const PERMISSIONS: &str = r#"
authorization {
  users = [{
    user: bench, password: bench
    permissions: {
      publish: ["_INBOX.>", "health", "orders.*.placed", "billing.>", "audit.log", "users.*", "metrics.>", "b.>"]
      subscribe: ["_INBOX.>", "orders.>", "b.>"]
    }
  }]
}
"#;

pub struct Bed {
    pub servers: Vec<Server>,
    tls: Option<Arc<rustls::ClientConfig>>,
    login: Option<Login>,
    cluster: Option<Cluster>,
    /// How a server with a store is started.
    store: Option<(Program, Vec<String>)>,
    /// Where the servers run.
    pub cpu: usize,
    folder: tempfile::TempDir,
}

/// How further servers join the first one.
struct Cluster {
    program: Program,
    cpu: usize,
    /// Where the first server takes routes.
    port: u16,
}

impl Cluster {
    /// The arguments of a member, the first one or another.
    fn arguments(&self, first: bool) -> Result<Vec<String>> {
        // Later servers make names up, and refuse each other until they agree on one.
        let name = match self.program.version().contains("v2.") {
            true => "--cluster_name bench",
            false => "",
        };
        let seed = self.port;
        Ok(words(&match first {
            true => format!("--cluster nats://127.0.0.1:{seed} {name}"),
            false => {
                let port = free_port().map_err(|error| error.to_string())?;
                format!("--cluster nats://127.0.0.1:{port} --routes nats://127.0.0.1:{seed} {name}")
            }
        }))
    }

    fn start(&self, first: bool) -> Result<Server> {
        self.program.start(self.cpu, &self.arguments(first)?)
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(Into::into).collect()
}

impl Bed {
    pub fn new(program: &Program, setup: Setup, cpu: usize) -> Result<Self> {
        let folder = tempfile::tempdir().map_err(|error| format!("temporary folder: {error}"))?;
        let at = |name: &str| folder.path().join(name).display().to_string();
        let mut tls = None;
        let starts = match setup {
            Setup::One => vec![Vec::new()],
            Setup::Loops(loops) => {
                let program = program.with_loops(loops);
                return Ok(Self {
                    servers: vec![program.start(cpu, &[])?],
                    tls: None,
                    login: None,
                    cluster: None,
                    store: None,
                    cpu,
                    folder,
                });
            }
            Setup::Tls => {
                tls = Some(certificate(folder.path())?);
                vec![words(&format!(
                    "--tls --tlscert {} --tlskey {}",
                    at("cert.pem"),
                    at("key.pem")
                ))]
            }
            Setup::Permissions => {
                std::fs::write(at("server.conf"), PERMISSIONS)
                    .map_err(|error| format!("configuration file: {error}"))?;
                vec![words(&format!("-c {}", at("server.conf")))]
            }
            Setup::Route | Setup::Cluster => {
                let cluster = Cluster {
                    program: program.clone(),
                    cpu,
                    port: free_port().map_err(|error| error.to_string())?,
                };
                let mut servers = vec![cluster.start(true)?];
                if setup == Setup::Route {
                    servers.push(cluster.start(false)?);
                }
                return Ok(Self {
                    servers,
                    tls: None,
                    login: None,
                    cluster: Some(cluster),
                    store: None,
                    cpu,
                    folder,
                });
            }
            Setup::Streaming(store) => {
                let more = match store {
                    Store::Memory => "-st MEMORY".into(),
                    Store::File => format!("-st FILE -dir {}", at("store")),
                    Store::FileUnsynced => {
                        format!("-st FILE -dir {} --file_sync=false", at("store"))
                    }
                };
                // As many channels and messages as a scenario makes.
                vec![words(&format!("-cid bench -mc 0 -mm 0 -mb 0 {more}"))]
            }
        };
        let servers = starts.iter().map(|more| program.start(cpu, more));
        let store = || (program.clone(), starts[0].clone());
        let login = || Login::User {
            name: "bench".into(),
            password: "bench".into(),
        };
        Ok(Self {
            servers: servers.collect::<Result<_>>()?,
            tls,
            login: (setup == Setup::Permissions).then(login),
            cluster: None,
            store: matches!(setup, Setup::Streaming(_)).then(store),
            cpu,
            folder,
        })
    }

    /// Of a server that runs already.
    pub fn running(url: &str) -> Result<Self> {
        let (server, login) = Server::running(url)?;
        Ok(Self {
            servers: vec![server],
            tls: None,
            login,
            cluster: None,
            store: None,
            cpu: 0,
            folder: tempfile::tempdir().map_err(|error| error.to_string())?,
        })
    }

    #[cfg(test)]
    pub fn empty() -> Self {
        Self {
            servers: Vec::new(),
            tls: None,
            login: None,
            cluster: None,
            store: None,
            cpu: 0,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// One more server of the cluster, which knows the first.
    pub fn start_member(&self) -> Result<Server> {
        let cluster = self.cluster.as_ref().ok_or("the server is in no cluster")?;
        cluster.start(false)
    }

    /// Ends the server and starts it again on what it stored; the time goes from then on.
    pub fn start_again(&self) -> Result<(Server, Instant)> {
        let store = self.store.as_ref();
        let (program, arguments) = store.ok_or("the server has no store")?;
        self.servers[0].end()?;
        let start = Instant::now();
        Ok((program.start(self.cpu, arguments)?, start))
    }

    /// Where a server with a store has it, on the same disk.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn target(&self) -> Target {
        self.target_of(0)
    }

    pub fn target_of(&self, server: usize) -> Target {
        Target {
            address: self.servers[server].address,
            tls: self.tls.clone(),
            login: self.login.clone(),
        }
    }

    /// Starts to count the CPU time of one server.
    pub fn meter(&self, server: usize) -> Result<Meter<'_>> {
        let server = &self.servers[server];
        Ok(Meter {
            server,
            cpu: server.cpu_ns()?,
            start: Instant::now(),
        })
    }
}

pub struct Meter<'b> {
    server: &'b Server,
    cpu: Option<u64>,
    start: Instant,
}

impl Meter<'_> {
    /// Nanoseconds of CPU so far; not a number where the server is not ours.
    pub fn cpu_ns(&self) -> Result<f64> {
        match (self.cpu, self.server.cpu_ns()?) {
            (Some(before), Some(now)) => used(before, now, self.server.id()),
            _ => Ok(f64::NAN),
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// Nanoseconds that a server under load used: none at all would make it the best there is.
fn used(before: u64, now: u64, id: i32) -> Result<f64> {
    match now.checked_sub(before) {
        None => Err(format!("the CPU time of process {id} went back")),
        Some(0) => Err(format!(
            "process {id} used no CPU time: it is not the server, and a script that starts one must `exec` it"
        )),
        Some(used) => Ok(used as f64),
    }
}

/// A certificate for `localhost` in the folder, and the settings of a client that trusts it.
fn certificate(folder: &std::path::Path) -> Result<Arc<rustls::ClientConfig>> {
    let failed = |error: &dyn std::fmt::Display| format!("certificate: {error}");
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into(), "127.0.0.1".into()])
        .map_err(|error| failed(&error))?;
    std::fs::write(folder.join("cert.pem"), made.cert.pem()).map_err(|error| failed(&error))?;
    std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem())
        .map_err(|error| failed(&error))?;
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(made.cert.der().clone())
        .map_err(|error| failed(&error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // A handshake is to be a whole one each time.
    let mut config = config;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_time_is_not_the_best_time() {
        assert_eq!(used(3, 10, 1), Ok(7.0));
        assert!(used(10, 3, 1).is_err());
        let error = used(10, 10, 4711).unwrap_err();
        assert!(
            error.contains("4711") && error.contains("`exec`"),
            "{error}"
        );
    }
}
