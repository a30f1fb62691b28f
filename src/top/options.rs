//! The command line: nats-top's flags and ours.
//!
//! As Go's flags, ours take one dash or two, and switches a value behind `=`.

use clap::error::{ContextKind, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Keys that servers know; which of them depends on their age.
pub const SERVER_SORT_KEYS: [&str; 14] = [
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
    "start",
    "stop",
    "reason",
    "rtt",
];

/// Columns that only we can sort by.
pub const OWN_SORT_KEYS: [&str; 5] = ["host", "name", "lang", "version", "server"];

#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    pub servers: Vec<Address>,
    pub tls: TlsFiles,
    /// Connections asked for; nothing positive leaves it to the server.
    pub limit: i64,
    pub interval: Duration,
    pub refreshes_max: Option<u64>,
    pub sort: String,
    pub lookup: bool,
    /// Where to write a snapshot in place of showing the screen; `-` is standard output.
    pub output: Option<String>,
    pub delimiter: Option<String>,
    pub raw: bool,
    pub subscriptions: bool,
    pub view: View,
    pub filter: String,
    pub colour: bool,
    /// The terminal may show nothing else.
    pub ascii: bool,
    /// Follow routes to the other servers.
    pub cluster: bool,
}

/// A monitoring port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    pub https: bool,
    pub host: String,
    pub port: u16,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct TlsFiles {
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub ca: Option<PathBuf>,
    pub skip_verify: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    #[default]
    Connections,
    Cluster,
    Channels,
    Clients,
    Slow,
    Loops,
}

impl View {
    pub const ALL: [View; 6] = [
        View::Connections,
        View::Cluster,
        View::Channels,
        View::Clients,
        View::Slow,
        View::Loops,
    ];

    pub fn name(self) -> &'static str {
        match self {
            View::Connections => "connections",
            View::Cluster => "cluster",
            View::Channels => "channels",
            View::Clients => "clients",
            View::Slow => "slow",
            View::Loops => "loops",
        }
    }
}

#[derive(Debug, PartialEq)]
pub enum Command {
    Run(Box<Options>),
    /// Something to print, and that is all.
    Print(String),
}

pub const USAGE: &str = "
Usage: midge-top [options]

Servers:
    -s <host>                  Server to look at: host, host:port, or http(s)://host:port; may be given several
                               times or separated by commas. (default: 127.0.0.1)
    -cluster                   Follow routes to the other servers of the cluster, at the same monitoring port.
    -m <port>                  Monitoring port. (default: 8222)
    -ms <port>                 Monitoring port with TLS; wins over -m.
    -cert <file>               Client certificate (PEM).
    -key <file>                Key of the client certificate (PEM).
    -cacert <file>             Authorities to trust in place of the system's (PEM).
    -k                         Do not verify the server's certificate.

What to show:
    -view <name>               connections, cluster, channels, clients, slow or loops. (default: connections, or
                               cluster where there are several servers)
    -n <number>                Connections to ask for. (default: 1024)
    -sort <key>                cid, subs, pending, msgs_to, msgs_from, bytes_to, bytes_from, idle, last, uptime,
                               start, stop, reason, rtt (what the server knows of them), host, name, lang,
                               version, server. (default: cid)
    -filter <text>             Only connections, channels and clients with this in their name, host or subjects.
    -d <seconds>               Time between refreshes, 0.1 at least. (default: 1)
    -r <number>                Stop after so many refreshes.
    -b                         Numbers in full.
    -lookup                    Names of hosts in place of addresses.
    -u, -display-subscriptions-column
                               Show subscriptions.
    -color <when>              auto, always or never; auto heeds NO_COLOR. (default: auto)

For scripts:
    -o <file>                  Write one snapshot and exit; - is standard output. With -r 2 or more the last of so
                               many, which has rates.
    -l <text>                  With -o: values separated by this, as for CSV.

    -h, -help                  Show this message.
    -v, -version               Show the version.

Keys are told by ? while it runs.
";

/// What the surroundings say about the terminal.
#[derive(Clone, Copy, Debug, Default)]
pub struct Surroundings {
    pub no_colour: bool,
    pub ascii: bool,
}

impl Surroundings {
    pub fn of_environment() -> Self {
        Self::of(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let dumb = set("TERM").is_none_or(|term| term == "dumb");
        // The first that is set counts; without any the locale is C.
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set);
        let locale = locale.unwrap_or_default().to_lowercase();
        Self {
            no_colour: set("NO_COLOR").is_some() || dumb,
            ascii: dumb || !(locale.contains("utf-8") || locale.contains("utf8")),
        }
    }
}

pub fn parse(
    arguments: impl IntoIterator<Item = String>,
    surroundings: Surroundings,
) -> Result<Command, String> {
    // Go's flags know no difference between one dash and two.
    let normal = arguments
        .into_iter()
        .map(|argument| match argument.strip_prefix('-') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_alphabetic()) => {
                format!("--{rest}")
            }
            _ => argument,
        });
    let matches = command()
        .try_get_matches_from(normal)
        .map_err(|error| flag_error(&error))?;
    if matches.get_flag("help") {
        return Ok(Command::Print(USAGE.into()));
    }
    if matches.get_flag("version") {
        return Ok(Command::Print(format!("midge-top v{}\n", crate::VERSION)));
    }
    Ok(Command::Run(Box::new(options(&matches, surroundings)?)))
}

fn command() -> clap::Command {
    let mut command = clap::Command::new("midge-top")
        .disable_help_flag(true)
        .disable_version_flag(true)
        .no_binary_name(true);
    for name in [
        "s", "m", "ms", "cert", "key", "cacert", "view", "n", "sort", "filter", "d", "r", "color",
        "o", "l",
    ] {
        command = command.arg(
            Arg::new(name)
                .long(name)
                .action(ArgAction::Append)
                .allow_hyphen_values(true),
        );
    }
    for (name, alias) in [
        ("k", "insecure"),
        ("b", "raw"),
        ("lookup", "dns"),
        ("display-subscriptions-column", "u"),
        ("cluster", "c"),
        ("help", "h"),
        ("version", "v"),
    ] {
        command = command.arg(
            Arg::new(name)
                .long(name)
                .alias(alias)
                .num_args(0..=1)
                .require_equals(true)
                .default_value("false")
                .default_missing_value("true")
                .value_parser(clap::value_parser!(bool))
                .action(ArgAction::Set)
                .overrides_with(name),
        );
    }
    command
}

fn flag_error(error: &clap::Error) -> String {
    let what = error
        .get(ContextKind::InvalidArg)
        .map(|what| what.to_string().replacen("--", "-", 1))
        .unwrap_or_default();
    let what = what.split([' ', '[', '=']).next().unwrap_or_default();
    let value = error.get(ContextKind::InvalidValue);
    let missing = value.is_none_or(|value| value.to_string().is_empty());
    match error.kind() {
        ErrorKind::UnknownArgument => format!("unknown argument: {what}"),
        ErrorKind::InvalidValue if missing => format!("{what} needs a value"),
        _ => format!("{what}: not understood"),
    }
}

fn options(matches: &ArgMatches, surroundings: Surroundings) -> Result<Options, String> {
    let text = |name: &str| {
        let mut values = matches.get_many::<String>(name)?;
        values.next_back().cloned()
    };
    let path = |name: &str| {
        text(name)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    };
    let flag = |name: &str| matches.get_flag(name);

    let port = number(text("m"), 8222, "m")?;
    let (https, port) = match number(text("ms"), 0, "ms")? {
        0 => (false, port),
        port => (true, port),
    };
    let named: Vec<String> = match matches.get_many::<String>("s") {
        Some(values) => values.cloned().collect(),
        None => vec!["127.0.0.1".into()],
    };
    let mut servers = Vec::new();
    for name in named.iter().flat_map(|names| names.split(',')) {
        let address = Address::parse(name.trim(), https, port)?;
        if !servers.contains(&address) {
            servers.push(address);
        }
    }

    let sort = text("sort").unwrap_or_else(|| "cid".into());
    check_sort(&sort)?;
    let seconds: f64 = number(text("d"), 1.0, "d")?;
    if !(seconds.is_finite() && (0.0..=86_400.0).contains(&seconds)) {
        return Err(format!("-d {seconds}: not a time between refreshes"));
    }
    let refreshes: i64 = number(text("r"), -1, "r")?;
    let several = servers.len() > 1 || flag("cluster");
    let view = match text("view") {
        Some(name) => View::ALL
            .into_iter()
            .find(|known| known.name() == name)
            .ok_or_else(|| format!("-view {name}: there is no such view"))?,
        None if several => View::Cluster,
        None => View::Connections,
    };
    let colour = match text("color").as_deref() {
        None | Some("auto") => !surroundings.no_colour,
        Some("always") => true,
        Some("never") => false,
        Some(other) => return Err(format!("-color {other}: expected auto, always or never")),
    };
    let tls = TlsFiles {
        cert: path("cert"),
        key: path("key"),
        ca: path("cacert"),
        skip_verify: flag("k"),
    };
    if tls.cert.is_some() != tls.key.is_some() {
        return Err("-cert and -key need each other".into());
    }
    Ok(Options {
        servers,
        tls,
        limit: number(text("n"), 1024, "n")?,
        interval: Duration::from_secs_f64(seconds.max(0.1)),
        refreshes_max: u64::try_from(refreshes).ok().filter(|max| *max > 0),
        sort,
        lookup: flag("lookup"),
        output: text("o").filter(|path| !path.is_empty()),
        delimiter: text("l").filter(|text| !text.is_empty()),
        raw: flag("b"),
        subscriptions: flag("display-subscriptions-column"),
        view,
        filter: text("filter").unwrap_or_default(),
        colour,
        ascii: surroundings.ascii,
        cluster: flag("cluster"),
    })
}

pub fn check_sort(key: &str) -> Result<(), String> {
    match SERVER_SORT_KEYS.contains(&key) || OWN_SORT_KEYS.contains(&key) {
        true => Ok(()),
        false => Err(format!("invalid option to sort by: {key}")),
    }
}

fn number<T: std::str::FromStr>(text: Option<String>, default: T, name: &str) -> Result<T, String> {
    match text {
        None => Ok(default),
        Some(text) => text
            .parse()
            .map_err(|_| format!("-{name} {text}: not a number that fits")),
    }
}

impl Address {
    /// `host`, `host:port`, `[v6]:port`, or a URL; what is not said is as given.
    pub fn parse(text: &str, https: bool, port: u16) -> Result<Self, String> {
        let wrong = || format!("-s {text}: invalid monitoring endpoint");
        let (https, rest) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            Some(_) => return Err(wrong()),
            None => (https, text),
        };
        let rest = rest.trim_end_matches('/');
        let (host, port_text) = match rest.strip_prefix('[') {
            Some(inner) => {
                let (host, behind) = inner.split_once(']').ok_or_else(wrong)?;
                (host, behind.strip_prefix(':'))
            }
            // More than one colon without brackets: an address of IPv6, without a port.
            None if rest.matches(':').count() > 1 => (rest, None),
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        let odd = |c: char| c.is_whitespace() || c.is_control() || "/?#@".contains(c);
        if host.is_empty() || host.contains(odd) {
            return Err(wrong());
        }
        let port = match port_text {
            Some(port) => port.parse().map_err(|_| wrong())?,
            None => port,
        };
        match port {
            0 => Err("invalid monitoring port".into()),
            port => Ok(Self {
                https,
                host: host.into(),
                port,
            }),
        }
    }
}

/// `host:port`, for people.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, .. } = self;
        match host.contains(':') {
            true => write!(f, "[{host}]:{port}"),
            false => write!(f, "{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Options, String> {
        let words = line.split_whitespace().map(str::to_owned);
        match parse(words, Surroundings::default())? {
            Command::Run(options) => Ok(*options),
            Command::Print(text) => Err(text),
        }
    }

    #[test]
    fn what_a_terminal_can_show_is_told_by_the_locale() {
        let of = |variables: &[(&str, &str)]| {
            let mut all = vec![("TERM", "linux")];
            all.extend(variables);
            Surroundings::of(|name| {
                let found = all.iter().rev().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        for (variables, ascii) in [
            (&[][..], true),
            (&[("LANG", "en_US.UTF-8")], false),
            (&[("LC_CTYPE", "C.utf8"), ("LANG", "C")], false),
            (&[("LC_ALL", ""), ("LANG", "de_DE.UTF-8")], false),
            (&[("LC_ALL", "C"), ("LANG", "de_DE.UTF-8")], true),
            (
                &[("LC_CTYPE", "de_DE.ISO-8859-1"), ("LANG", "de_DE.UTF-8")],
                true,
            ),
            (&[("TERM", "dumb"), ("LANG", "de_DE.UTF-8")], true),
        ] {
            assert_eq!(of(variables).ascii, ascii, "{variables:?}");
        }
        assert!(of(&[("TERM", "dumb")]).no_colour && !of(&[]).no_colour);
    }

    #[test]
    fn nats_tops_flags() {
        let options = parsed("").unwrap();
        assert_eq!(options.servers, [address("127.0.0.1", 8222)]);
        assert_eq!((options.limit, options.sort.as_str()), (1024, "cid"));
        assert_eq!(options.interval, Duration::from_secs(1));
        assert_eq!((options.refreshes_max, options.raw), (None, false));

        let options = parsed(
            "-s a -m 1 -n 5 -d 2 -r 7 -sort subs -lookup -o - -l ; -b -u -cert c -key k -cacert x -k",
        )
        .unwrap();
        assert_eq!(options.servers, [address("a", 1)]);
        assert_eq!((options.limit, options.sort.as_str()), (5, "subs"));
        assert_eq!(options.interval, Duration::from_secs(2));
        assert_eq!(options.refreshes_max, Some(7));
        assert!(options.lookup && options.raw && options.subscriptions && options.tls.skip_verify);
        assert_eq!(options.output.as_deref(), Some("-"));
        assert_eq!(options.delimiter.as_deref(), Some(";"));
        assert_eq!(options.tls.ca, Some("x".into()));

        let options =
            parsed("--ms 8443 --display-subscriptions-column=true -b=false -r -1").unwrap();
        assert!(options.servers[0].https && options.subscriptions && !options.raw);
        assert_eq!(options.servers[0].port, 8443);
    }

    fn address(host: &str, port: u16) -> Address {
        Address {
            https: false,
            host: host.into(),
            port,
        }
    }

    #[test]
    fn several_servers() {
        let options = parsed("-s a,b:9 -s http://[::1]:7/ -s ::2 -m 1 -s a").unwrap();
        let expect = [
            address("a", 1),
            address("b", 9),
            address("::1", 7),
            address("::2", 1),
        ];
        assert_eq!(options.servers, expect);
        assert!(parsed("-s https://x:1").unwrap().servers[0].https);
        assert_eq!(expect[2].to_string(), "[::1]:7");
    }

    #[test]
    fn mistakes() {
        for (line, expect) in [
            ("-x", "unknown argument: -x"),
            ("-n", "-n needs a value"),
            ("-n many", "-n many: not a number that fits"),
            ("-m 0", "invalid monitoring port"),
            ("-s /", "-s /: invalid monitoring endpoint"),
            ("-s ftp://a", "-s ftp://a: invalid monitoring endpoint"),
            ("-sort size", "invalid option to sort by: size"),
            ("-view all", "-view all: there is no such view"),
            ("-cert c", "-cert and -key need each other"),
            ("-color red", "-color red: expected auto, always or never"),
            ("-d -1", "-d -1: not a time between refreshes"),
            ("-b=5", "-b: not understood"),
            ("word", "unknown argument: word"),
        ] {
            assert_eq!(parsed(line), Err(expect.into()), "{line}");
        }
    }

    #[test]
    fn things_to_print() {
        assert_eq!(
            parsed("-v"),
            Err(format!("midge-top v{}\n", crate::VERSION))
        );
        assert_eq!(parsed("--help"), Err(USAGE.into()));
    }
}
