//! The ports file of nats-server 1.2: addresses really bound, for those who started us with port -1.

use serde::Serialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

#[derive(Debug, Default, Serialize)]
pub struct Ports {
    pub nats: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub monitoring: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cluster: Vec<String>,
}

/// Removed when dropped.
#[derive(Debug)]
pub struct PortsFile(PathBuf);

impl PortsFile {
    /// `NAME_PID.ports` in a directory; complete when it appears there.
    pub fn write(folder: &str, ports: &Ports) -> std::io::Result<Self> {
        let program = std::env::args().next().unwrap_or_default();
        let name = Path::new(&program).file_name().unwrap_or_default();
        let name = format!("{}_{}.ports", name.to_string_lossy(), std::process::id());
        let path = Path::new(folder).join(&name);
        let unfinished = Path::new(folder).join(format!(".{name}"));
        std::fs::write(&unfinished, serde_json::to_vec(ports)?)?;
        std::fs::rename(&unfinished, &path)?;
        Ok(Self(path))
    }
}

impl Drop for PortsFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

pub fn url(scheme: &str, address: SocketAddr) -> String {
    format!("{scheme}://{address}")
}
