//! Addresses of routes: `nats-route://user:password@host:port`, with any scheme.

use super::options::Hidden;

/// Where a route is dialled, and the credentials shown there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteUrl {
    pub host: String,
    pub port: u16,
    pub user: String,
    pub password: Hidden,
}

/// The text of a URL that cannot be read, for messages: what may be a password is left out.
fn without_secret(text: &str) -> String {
    let start = text.find("://").map_or(0, |at| at + 3);
    match text[start..].rfind('@') {
        None => text.to_owned(),
        Some(end) => format!("{}***{}", &text[..start], &text[start + end..]),
    }
}

impl RouteUrl {
    /// Any scheme will do, and none as well; the port must be there.
    pub fn parse(text: &str) -> Result<Self, String> {
        let failed = |why: &str| {
            let shown = without_secret(text);
            format!("error parsing route url [{shown:?}]: {why}")
        };
        let with_scheme = match text.contains("://") {
            true => text.to_owned(),
            false => format!("nats-route://{text}"),
        };
        let url = url::Url::parse(&with_scheme).map_err(|error| failed(&error.to_string()))?;
        let host = url.host_str().unwrap_or("").trim_matches(['[', ']']);
        if host.is_empty() {
            return Err(failed("missing host in address"));
        }
        let port = url.port_or_known_default();
        let port = port.ok_or_else(|| failed("missing port in address"))?;
        let decoded = |text: &str| {
            let bytes = percent_encoding::percent_decode_str(text);
            bytes.decode_utf8_lossy().into_owned()
        };
        Ok(Self {
            host: host.to_owned(),
            port,
            user: decoded(url.username()),
            password: Hidden(decoded(url.password().unwrap_or(""))),
        })
    }

    /// `host:port`, as it is dialled and shown; IPv6 in brackets.
    pub fn address(&self) -> String {
        host_and_port(&self.host, self.port)
    }

    /// Whether both name the same place, whatever the case of letters; credentials do not count.
    pub fn same_place(&self, host: &str, port: u16) -> bool {
        self.port == port && self.host.eq_ignore_ascii_case(host)
    }
}

pub fn host_and_port(host: &str, port: impl std::fmt::Display) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

/// `host:port`, the host in brackets where it has colons; with the words of Go's `net.SplitHostPort`.
pub fn split_host_port(text: &str) -> Result<(&str, &str), String> {
    let failed = |why: &str| Err(format!("address {text}: {why}"));
    const MISSING_PORT: &str = "missing port in address";
    const TOO_MANY_COLONS: &str = "too many colons in address";
    let Some((before, port)) = text.rsplit_once(':') else {
        return failed(MISSING_PORT);
    };
    // Where a bracket has no place any more.
    let (host, opened, closed) = match text.strip_prefix('[') {
        Some(rest) => {
            let Some((host, behind)) = rest.split_once(']') else {
                return failed("missing ']' in address");
            };
            match behind.strip_prefix(':') {
                Some(end) if end == port => (host, rest, behind),
                Some(_) => return failed(TOO_MANY_COLONS),
                None => return failed(MISSING_PORT),
            }
        }
        None if before.contains(':') => return failed(TOO_MANY_COLONS),
        None => (before, text, text),
    };
    if opened.contains('[') {
        return failed("unexpected '[' in address");
    }
    if closed.contains(']') {
        return failed("unexpected ']' in address");
    }
    Ok((host, port))
}

/// `host` or `host:port`: without a port, or with 0 or -1, it is `default`.
pub fn parse_host_port(text: &str, default: i32) -> Result<(String, i32), String> {
    let completed = format!("{text}:{default}");
    let (host, port) = split_host_port(text).or_else(|_| split_host_port(&completed))?;
    let port = port
        .trim()
        .parse()
        .map_err(|_| format!("{port:?} is no port"))?;
    let port = match port {
        0 | -1 => default,
        port => port,
    };
    Ok((host.trim().to_owned(), port))
}

impl std::fmt::Display for RouteUrl {
    /// Without credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "nats-route://{}", self.address())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports_as_go_splits_them() {
        for (text, expect) in [
            ("h:5", Ok(("h", "5"))),
            ("[::1]:5", Ok(("::1", "5"))),
            (":5", Ok(("", "5"))),
            ("h:", Ok(("h", ""))),
            ("h", Err("address h: missing port in address")),
            ("[::1]", Err("address [::1]: missing port in address")),
            ("[::1]5:6", Err("address [::1]5:6: missing port in address")),
            (
                "[::1]:5:6",
                Err("address [::1]:5:6: too many colons in address"),
            ),
            ("::1:5", Err("address ::1:5: too many colons in address")),
            ("[::1:5", Err("address [::1:5: missing ']' in address")),
            ("h]:5", Err("address h]:5: unexpected ']' in address")),
            ("a[b:5", Err("address a[b:5: unexpected '[' in address")),
            ("[a[b]:5", Err("address [a[b]:5: unexpected '[' in address")),
            ("[a]:5]", Err("address [a]:5]: unexpected ']' in address")),
        ] {
            assert_eq!(
                split_host_port(text),
                expect.map_err(str::to_owned),
                "{text}"
            );
        }
        for (text, expect) in [
            ("h", Ok(("h", 7))),
            ("h:0", Ok(("h", 7))),
            ("h:-1", Ok(("h", 7))),
            ("h: 5", Ok(("h", 5))),
            ("[::1]", Ok(("::1", 7))),
            ("::1", Err("address ::1:7: too many colons in address")),
            ("h:x", Err("\"x\" is no port")),
            ("h:", Err("\"\" is no port")),
        ] {
            let expect = expect.map(|(host, port)| (host.to_owned(), port));
            assert_eq!(
                parse_host_port(text, 7),
                expect.map_err(str::to_owned),
                "{text}"
            );
        }
    }

    #[test]
    fn urls_of_all_spellings() {
        let url = RouteUrl::parse("nats-route://us%65r:p%40w@Host.example:5111/").unwrap();
        assert_eq!(
            (url.user.as_str(), url.password.0.as_str()),
            ("user", "p@w")
        );
        assert!(url.same_place("host.EXAMPLE", 5111));
        assert!(!format!("{url} {url:?}").contains("p@w"));
        assert_eq!(
            RouteUrl::parse("127.0.0.1:6").unwrap().address(),
            "127.0.0.1:6"
        );
        assert_eq!(
            RouteUrl::parse("nats://[::1]:6").unwrap().address(),
            "[::1]:6"
        );
        for bad in [
            "nats://127.0.0.1",
            "",
            "nats://:5",
            "nats://h:99999",
            "127.0.0.1",
        ] {
            assert!(RouteUrl::parse(bad).is_err(), "{bad}");
        }
    }
}
