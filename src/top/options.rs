//! nats-top's flags, and those of our own.

use clap::{Arg, ArgAction, Command};
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopOptions {
    /// host or host:port of each server.
    pub servers: Vec<String>,
    pub port: u16,
    pub https: bool,
    pub limit: usize,
    pub interval: Duration,
    /// Refreshes before the end; None: no end.
    pub refreshes: Option<u64>,
    pub sort: String,
    /// One snapshot to this file, or to the standard output (`-`).
    pub output: Option<String>,
    /// Makes the snapshot a list of values parted by this.
    pub delimiter: Option<String>,
    pub raw_bytes: bool,
    pub lookup: bool,
    pub subscriptions: bool,
    /// Follow routes to the other servers of the cluster.
    pub cluster: bool,
    pub cert: Option<String>,
    pub key: Option<String>,
    pub ca: Option<String>,
    pub insecure: bool,
    pub filter: String,
    pub colours: bool,
}

pub const SORT_KEYS: [&str; 10] = [
    "cid",
    "subs",
    "pending",
    "msgs_to",
    "msgs_from",
    "bytes_to",
    "bytes_from",
    "idle",
    "last",
    "uptime",
];

pub enum Asked {
    Run(Box<TopOptions>),
    Print(String),
}

fn command() -> Command {
    let value = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).help(help).action(ArgAction::Set)
    };
    let switch = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .help(help)
            .action(ArgAction::SetTrue)
    };
    Command::new("midge-top")
        .about("Shows what NATS servers are doing, from their monitoring ports")
        .disable_version_flag(true)
        .arg(value("s", "Servers: host or host:port, parted by commas").default_value("127.0.0.1"))
        .arg(value("m", "Monitoring port").default_value("8222").value_parser(clap::value_parser!(u16)))
        .arg(value("ms", "Monitoring port for HTTPS; wins over -m").value_parser(clap::value_parser!(u16)))
        .arg(value("n", "Most connections shown").default_value("1024").value_parser(clap::value_parser!(usize)))
        .arg(value("d", "Seconds between two looks").default_value("1").value_parser(clap::value_parser!(f64)))
        .arg(value("r", "End after this many looks").allow_hyphen_values(true).default_value("-1").value_parser(clap::value_parser!(i64)))
        .arg(value("sort", "Sort connections by: cid, subs, pending, msgs_to, msgs_from, bytes_to, bytes_from, idle, last, uptime").default_value("cid"))
        .arg(value("o", "Write one snapshot to this file (- is the standard output) and exit"))
        .arg(value("l", "Delimiter for -o: the snapshot becomes a list of values"))
        .arg(value("filter", "Show connections whose name, address or subjects hold this").default_value(""))
        .arg(switch("b", "Show bytes as plain numbers"))
        .arg(switch("lookup", "Look up the names of addresses"))
        .arg(switch("u", "Show subscriptions").alias("display-subscriptions-column"))
        .arg(switch("cluster", "Show the other servers of the cluster as well, by their routes"))
        .arg(value("cert", "Client certificate (PEM)"))
        .arg(value("key", "Its private key (PEM)"))
        .arg(value("cacert", "Authorities for the server's certificate (PEM)"))
        .arg(switch("k", "Do not verify the server's certificate"))
        .arg(switch("no-color", "Use no colours (as NO_COLOR in the environment)"))
        .arg(switch("version", "Show the version").alias("v"))
}

/// One dash or two make no difference, as in the original.
pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Asked, String> {
    let normal = arguments
        .into_iter()
        .map(|argument| match argument.strip_prefix('-') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_alphabetic()) && rest != "h" => {
                format!("--{rest}")
            }
            _ => argument,
        });
    let all = std::iter::once("midge-top".to_owned()).chain(normal);
    let matches = match command().try_get_matches_from(all) {
        Ok(matches) => matches,
        Err(error) if error.kind() == clap::error::ErrorKind::DisplayHelp => {
            return Ok(Asked::Print(error.to_string()));
        }
        Err(error) => return Err(error.to_string()),
    };
    if matches.get_flag("version") {
        return Ok(Asked::Print(format!("midge-top v{}\n", crate::VERSION)));
    }
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let https_port = matches
        .get_one::<u16>("ms")
        .copied()
        .filter(|port| *port > 0);
    let sort = text("sort").unwrap_or_default();
    if !SORT_KEYS.contains(&sort.as_str()) {
        return Err(format!(
            "{sort:?} is no sort key: use one of {}",
            SORT_KEYS.join(", ")
        ));
    }
    let seconds = matches.get_one::<f64>("d").copied().unwrap_or(1.0);
    if !(0.1..=86_400.0).contains(&seconds) {
        return Err(format!("-d {seconds}: expected 0.1 to 86400 seconds"));
    }
    let servers = text("s").unwrap_or_default();
    Ok(Asked::Run(Box::new(TopOptions {
        servers: servers
            .split(',')
            .map(|s| s.trim().to_owned())
            .filter(|s| !s.is_empty())
            .collect(),
        port: https_port.or(matches.get_one("m").copied()).unwrap_or(8222),
        https: https_port.is_some(),
        limit: matches.get_one("n").copied().unwrap_or(1024),
        interval: Duration::from_secs_f64(seconds),
        refreshes: matches
            .get_one::<i64>("r")
            .and_then(|r| u64::try_from(*r).ok()),
        sort,
        output: text("o"),
        delimiter: text("l").filter(|l| !l.is_empty()),
        raw_bytes: matches.get_flag("b"),
        lookup: matches.get_flag("lookup"),
        subscriptions: matches.get_flag("u"),
        cluster: matches.get_flag("cluster"),
        cert: text("cert"),
        key: text("key"),
        ca: text("cacert"),
        insecure: matches.get_flag("k"),
        filter: text("filter").unwrap_or_default(),
        colours: !matches.get_flag("no-color")
            && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> Result<TopOptions, String> {
        match parse(line.split(' ').filter(|w| !w.is_empty()).map(str::to_owned))? {
            Asked::Run(options) => Ok(*options),
            Asked::Print(text) => Err(text),
        }
    }

    #[test]
    fn flags_of_the_original() {
        let options =
            run("-s a,b:1 -m 1234 -n 5 -d 2 -r 3 -sort msgs_to -o - -l , -b -lookup -u -k")
                .unwrap();
        assert_eq!(options.servers, ["a", "b:1"]);
        assert_eq!(
            (options.port, options.limit, options.refreshes),
            (1234, 5, Some(3))
        );
        assert_eq!(options.interval, Duration::from_secs(2));
        assert_eq!(
            (options.output.as_deref(), options.delimiter.as_deref()),
            (Some("-"), Some(","))
        );
        assert!(options.raw_bytes && options.lookup && options.subscriptions && options.insecure);
        assert_eq!(run("-ms 8443").unwrap().port, 8443);
        assert_eq!(run("").unwrap().refreshes, None);
        assert!(run("-sort nonsense").unwrap_err().contains("nonsense"));
        assert!(run("-v").unwrap_err().starts_with("midge-top v"));
        assert!(run("-nope").is_err());
    }
}
