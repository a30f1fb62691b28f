//! Sockets that wait for connections.

use super::run::StartError;
use super::settings::interface_addresses;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Connections the kernel accepts before we take them over.
const BACKLOG: i32 = 4096;
/// A port that is in use may become free for this long.
const PORT_TIME_MAX: Duration = Duration::from_secs(1);

/// A listening socket whose connections inherit TCP_NODELAY.
pub struct Listener {
    pub fd: OwnedFd,
    /// As it was asked for, with the port that was got.
    pub address: SocketAddr,
    /// Whether it takes connections of IPv4 and of IPv6.
    both: bool,
}

impl Listener {
    pub fn open(what: &'static str, host: &str, port: i32) -> Result<Self, StartError> {
        let wanted = u16::try_from(port).unwrap_or(0);
        let shown = format!("{host}:{wanted}");
        let failed = |error: std::io::Error| StartError::Listen {
            what,
            address: shown.clone(),
            error,
        };
        let found = (host, wanted).to_socket_addrs().map_err(failed)?;
        let address =
            preferred(found).ok_or_else(|| failed(std::io::ErrorKind::AddrNotAvailable.into()))?;
        // The kernel gives the port of a ring that was killed back a moment after its process has gone, so
        // a server that is started again at once has to wait for it.
        let until = Instant::now() + PORT_TIME_MAX;
        loop {
            match Self::bind(address) {
                Err(nix::Error::EADDRINUSE) if wanted != 0 && Instant::now() < until => {
                    std::thread::sleep(PORT_TIME_MAX / 100);
                }
                result => return result.map_err(|error| failed(error.into())),
            }
        }
    }

    /// As Go does: `0.0.0.0` takes IPv6 as well, where the system has it, and `::` takes IPv4.
    fn bind(address: SocketAddr) -> nix::Result<Self> {
        let any = (Ipv6Addr::UNSPECIFIED, address.port());
        match address {
            SocketAddr::V4(v4) if v4.ip().is_unspecified() => {
                match Self::bind_as(address, any.into()) {
                    Err(nix::Error::EAFNOSUPPORT | nix::Error::EADDRNOTAVAIL) => {
                        Self::bind_as(address, address)
                    }
                    result => result,
                }
            }
            _ => Self::bind_as(address, address),
        }
    }

    fn bind_as(mut address: SocketAddr, real: SocketAddr) -> nix::Result<Self> {
        use nix::sys::socket::{
            self, AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, sockopt,
        };
        let family = match real.is_ipv4() {
            true => AddressFamily::Inet,
            false => AddressFamily::Inet6,
        };
        let both = real.is_ipv6() && real.ip().is_unspecified();
        let fd = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        socket::setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        socket::setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
        if both {
            socket::setsockopt(&fd, sockopt::Ipv6V6Only, &false)?;
        }
        socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(real))?;
        socket::listen(&fd, Backlog::new(BACKLOG)?)?;
        let bound: SockaddrStorage = socket::getsockname(fd.as_raw_fd())?;
        let port = bound
            .as_sockaddr_in()
            .map(|v4| v4.port())
            .or(bound.as_sockaddr_in6().map(|v6| v6.port()));
        address.set_port(port.unwrap_or(address.port()));
        Ok(Self { fd, address, both })
    }

    /// Where it is reached, as URLs: its address, or those of all interfaces where it takes any.
    pub fn reachable(&self, scheme: &str) -> Vec<String> {
        let Self { address, both, .. } = self;
        if !address.ip().is_unspecified() {
            return vec![format!("{scheme}://{address}")];
        }
        let mut urls: Vec<String> = interface_addresses()
            // An address local to a link needs the name of the link.
            .filter(|ip| *both || ip.is_ipv4())
            .filter(|ip| !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()))
            .map(|ip| format!("{scheme}://{}", SocketAddr::new(ip, address.port())))
            .collect();
        urls.dedup();
        urls
    }
}

/// As Go does: of a name with addresses of both kinds, such as `localhost`, the first of IPv4.
fn preferred(found: impl Iterator<Item = SocketAddr>) -> Option<SocketAddr> {
    let found: Vec<SocketAddr> = found.collect();
    let of_ipv4 = found.iter().find(|address| address.is_ipv4());
    of_ipv4.or(found.first()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_both_kinds_is_listened_at_as_ipv4() {
        let found = |addresses: &[&str]| {
            let parsed = addresses.iter().map(|address| address.parse().unwrap());
            preferred(parsed).map(|address| address.to_string())
        };
        assert_eq!(
            found(&["[::1]:1", "127.0.0.1:1"]).as_deref(),
            Some("127.0.0.1:1")
        );
        assert_eq!(found(&["[::1]:1"]).as_deref(), Some("[::1]:1"));
        assert_eq!(found(&[]), None);
    }
}
