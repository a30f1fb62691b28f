//! Congestion control of connections that are accepted.
//!
//! BBR, which many hosts have by default, paces what each connection sends by a timer of its own. That is of use on the way to other
//! hosts. Within this one there is no way to find out about, and the timers cost a loop that serves several receivers
//! a fifth of its time. So listeners do without, and connections from elsewhere get back what the system chose.

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, getsockopt, setsockopt, socket, sockopt::TcpCongestion,
};
use std::ffi::OsString;
use std::os::fd::OwnedFd;

/// Always there, and allowed for everybody.
const WITHOUT_PACING: &str = "reno";
const PACING: &str = "bbr";

/// Connections of this listener do without pacing. Returns what those from other hosts are to get back; None: all is
/// left as it is.
pub fn without_pacing(listener: &OwnedFd) -> Option<OsString> {
    let chosen = getsockopt(listener, TcpCongestion).ok()?;
    if !chosen.to_str()?.starts_with(PACING) {
        return None;
    }
    let plain = OsString::from(WITHOUT_PACING);
    // Who may not choose it again on a connection does not give it away.
    let trial = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .ok()?;
    let given_back = setsockopt(&trial, TcpCongestion, &plain)
        .and_then(|()| setsockopt(&trial, TcpCongestion, &chosen));
    given_back.ok()?;
    setsockopt(listener, TcpCongestion, &plain).ok()?;
    Some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    fn congestion_control(socket: &impl std::os::fd::AsFd) -> OsString {
        getsockopt(socket, TcpCongestion).unwrap()
    }

    #[test]
    fn connections_do_without_pacing() {
        let listener = OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
        let bbr = OsString::from("bbr");
        if setsockopt(&listener, TcpCongestion, &bbr).is_err() {
            println!("skipped: this kernel has no BBR");
            return;
        }
        assert_eq!(without_pacing(&listener).unwrap(), bbr);
        let listener = TcpListener::from(listener);
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert_eq!(congestion_control(&accepted), WITHOUT_PACING);
        setsockopt(&accepted, TcpCongestion, &bbr).unwrap();
        assert_eq!(congestion_control(&accepted), bbr);
    }

    #[test]
    fn what_does_not_pace_is_left_as_it_is() {
        let listener = OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
        setsockopt(&listener, TcpCongestion, &OsString::from("reno")).unwrap();
        assert_eq!(without_pacing(&listener), None);
        assert_eq!(congestion_control(&listener), "reno");
    }
}
