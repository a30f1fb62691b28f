//! The command line of `midge stan`. As Go's flags, ours take one dash or two.

use crate::config::options::{ClientTlsOptions, Credentials, Hidden};
use crate::server::nats_login::NatsUrl;
use serde_json::{Value, json};
use std::time::Duration;

const SERVER_DEFAULT: &str = "nats://127.0.0.1:4222";

pub struct Options {
    pub servers: Vec<NatsUrl>,
    pub cluster_id: String,
    pub credentials: Credentials,
    pub tls: ClientTlsOptions,
    pub timeout: Duration,
    pub json: bool,
    pub yes: bool,
    pub command: Command,
}

#[derive(Debug, PartialEq)]
pub enum Command {
    List,
    Server,
    Channel { channel: String },
    Durables { channel: Option<String> },
    Pending { target: Value },
    Purge { channel: String, to: Option<u64> },
    Remove { channel: String, force: bool },
    RemoveDurable { target: Value },
    Skip { target: Value },
}

pub enum Parsed {
    Run(Box<Options>),
    Print(String),
}

pub const USAGE: &str = "
Usage: midge stan [options] <command>

Looks at a streaming server, and changes what clients cannot, through the NATS server its clients use.

Commands:
    ls                              list channels
    info [CHANNEL]                  the server, or a channel and its subscriptions
    durables [CHANNEL]              list durable subscriptions
    pending CHANNEL <which>         messages sent to a subscription and not acknowledged
    purge CHANNEL [--to SEQ]        remove all messages, or those up to this one; numbers go on
    rm CHANNEL [--force]            delete a channel; --force: even with active subscriptions
    rm-durable CHANNEL <which>      remove a durable whose client is away
    skip CHANNEL SEQ <which>        count a message as acknowledged

<which> subscription is meant:
    --client ID --durable NAME      a durable of a client
    --queue GROUP                   a queue group; NAME:GROUP when it is durable
    --subscription NUMBER           any one, by the number `info` shows

Options:
    -s, --server URL                nats:// or tls://[user:password@]host[:port], several parted by commas
                                    (default: $NATS_URL, or nats://127.0.0.1:4222)
    --cid, --cluster_id ID          cluster ID of the streaming server (default: test-cluster)
    --user NAME, --pass PASSWORD    credentials (default: $NATS_USER, $NATS_PASSWORD)
    --auth TOKEN                    a token in their place (default: $NATS_TOKEN)
    --nkey FILE, --creds FILE       a seed of an nkey, or a JWT with one
    --tls                           use TLS; the options below do so as well
    --tlscacert FILE                authorities to trust (default: those of the system)
    --tlscert FILE, --tlskey FILE   certificate to show, and its key
    --insecure                      take any certificate
    --timeout TIME                  how long to wait for an answer: 5s, 500ms (default: 5s)
    --json                          print JSON in place of tables
    --yes                           do not ask before something is taken away
    -h, --help                      show this message

Exit codes: 0 done, 1 not done, 2 not understood.
";

pub fn parse(arguments: &[String]) -> Result<Parsed, String> {
    let mut words = Vec::new();
    let mut given = Flags::default();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let Some(flag) = argument.strip_prefix('-').filter(|flag| !flag.is_empty()) else {
            words.push(argument.as_str());
            continue;
        };
        let flag = flag.strip_prefix('-').unwrap_or(flag);
        if flag.is_empty() {
            words.extend(rest.map(String::as_str));
            break;
        }
        let (name, inline) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        // As it was written, for messages.
        let shown = argument.split('=').next().unwrap_or_default();
        match name {
            "h" | "help" => return Ok(Parsed::Print(USAGE.into())),
            "tls" | "insecure" | "json" | "yes" | "force" => {
                if inline.is_some() {
                    return Err(format!("{shown} takes no value"));
                }
                given.switches.push(name.to_owned());
            }
            _ => {
                let value = inline.or_else(|| rest.next().cloned());
                given.set(name, shown, value)?;
            }
        }
    }
    if words.first() == Some(&"help") {
        return Ok(Parsed::Print(USAGE.into()));
    }
    let command = command(&words, &mut given)?;
    given
        .options(command)
        .map(|options| Parsed::Run(Box::new(options)))
}

/// What was given, with values.
#[derive(Default)]
struct Flags {
    server: Option<String>,
    cluster_id: Option<String>,
    credentials: Credentials,
    tls: ClientTlsOptions,
    timeout: Option<Duration>,
    client: Option<String>,
    durable: Option<String>,
    queue: Option<String>,
    subscription: Option<u64>,
    to: Option<u64>,
    switches: Vec<String>,
}

impl Flags {
    fn set(&mut self, name: &str, shown: &str, value: Option<String>) -> Result<(), String> {
        let value = || value.ok_or_else(|| format!("{shown} needs a value"));
        let number = |text: String| {
            text.parse::<u64>()
                .map_err(|_| format!("{shown}: {text:?} is no number"))
        };
        match name {
            "s" | "server" => self.server = Some(value()?),
            "cid" | "cluster_id" => self.cluster_id = Some(value()?),
            "user" => self.credentials.user = value()?,
            "pass" | "password" => self.credentials.password = Hidden(value()?),
            "auth" | "token" => self.credentials.token = Hidden(value()?),
            "nkey" => self.credentials.seed_file = value()?,
            "creds" => self.credentials.credentials_file = value()?,
            "tlscacert" => self.tls.ca_file = value()?,
            "tlscert" => self.tls.cert_file = value()?,
            "tlskey" => self.tls.key_file = value()?,
            "timeout" => {
                let value = value()?;
                let time = crate::config::table::go_duration(&value).filter(|time| !time.is_zero());
                let time =
                    time.ok_or_else(|| format!("{shown}: {value:?} is no time such as 5s"))?;
                self.timeout = Some(time);
            }
            "client" => self.client = Some(value()?),
            "durable" => self.durable = Some(value()?),
            "queue" => self.queue = Some(value()?),
            "subscription" => self.subscription = Some(number(value()?)?),
            "to" => self.to = Some(number(value()?)?),
            _ => return Err(format!("there is no option {shown}")),
        }
        Ok(())
    }

    fn take(&mut self, switch: &str) -> bool {
        let before = self.switches.len();
        self.switches.retain(|given| given != switch);
        self.switches.len() != before
    }

    /// Which subscription a command is about.
    fn target(&mut self, channel: &str) -> Result<Value, String> {
        let mut target = json!({ "channel": channel });
        match (
            self.client.take(),
            self.durable.take(),
            self.queue.take(),
            self.subscription.take(),
        ) {
            (Some(client), Some(durable), None, None) => {
                target["client"] = client.into();
                target["durable"] = durable.into();
            }
            (None, None, Some(queue), None) => target["queue"] = queue.into(),
            (None, None, None, Some(id)) => target["subscription"] = id.into(),
            _ => {
                return Err(
                    "which subscription? --client with --durable, or --queue, or --subscription"
                        .into(),
                );
            }
        }
        Ok(target)
    }

    fn options(mut self, command: Command) -> Result<Options, String> {
        for (flag, given) in [
            ("client", self.client.is_some()),
            ("durable", self.durable.is_some()),
            ("queue", self.queue.is_some()),
            ("subscription", self.subscription.is_some()),
            ("to", self.to.is_some()),
            ("force", self.take("force")),
        ] {
            if given {
                return Err(format!("--{flag} makes no sense with this command"));
            }
        }
        let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let servers = self.server.or_else(|| environment("NATS_URL"));
        let servers = servers.unwrap_or_else(|| SERVER_DEFAULT.into());
        let servers = servers.split(',').map(str::trim);
        let mut credentials = self.credentials;
        if credentials == Credentials::default() {
            credentials.user = environment("NATS_USER").unwrap_or_default();
            credentials.password = Hidden(environment("NATS_PASSWORD").unwrap_or_default());
            credentials.token = Hidden(environment("NATS_TOKEN").unwrap_or_default());
        }
        let has = |switch: &str| self.switches.iter().any(|given| given == switch);
        Ok(Options {
            servers: servers
                .map(NatsUrl::parse_loosely)
                .collect::<Result<_, _>>()?,
            cluster_id: self.cluster_id.unwrap_or_else(|| "test-cluster".into()),
            credentials,
            tls: ClientTlsOptions {
                secure: has("tls"),
                skip_verify: has("insecure"),
                ..self.tls
            },
            timeout: self.timeout.unwrap_or(Duration::from_secs(5)),
            json: has("json"),
            yes: has("yes"),
            command,
        })
    }
}

fn command(words: &[&str], flags: &mut Flags) -> Result<Command, String> {
    Ok(match words {
        [] => {
            return Err(
                "which command? ls, info, durables, pending, purge, rm, rm-durable, skip".into(),
            );
        }
        ["ls"] => Command::List,
        ["info"] => Command::Server,
        ["info", channel] => Command::Channel {
            channel: (*channel).into(),
        },
        ["durables"] => Command::Durables { channel: None },
        ["durables", channel] => Command::Durables {
            channel: Some((*channel).into()),
        },
        ["pending", channel] => Command::Pending {
            target: flags.target(channel)?,
        },
        ["purge", channel] => Command::Purge {
            channel: (*channel).into(),
            to: flags.to.take(),
        },
        ["rm", channel] => Command::Remove {
            channel: (*channel).into(),
            force: flags.take("force"),
        },
        ["rm-durable", channel] => Command::RemoveDurable {
            target: flags.target(channel)?,
        },
        ["skip", channel, sequence] => {
            let mut target = flags.target(channel)?;
            let sequence: u64 = sequence
                .parse()
                .map_err(|_| format!("{sequence:?} is no number of a message"))?;
            target["sequence"] = sequence.into();
            Command::Skip { target }
        }
        [
            command @ ("pending" | "purge" | "rm" | "rm-durable" | "skip"),
            ..,
        ] => {
            return Err(match *command {
                "skip" => "skip needs a channel and the number of a message".into(),
                _ => format!("{command} needs a channel"),
            });
        }
        [command @ ("ls" | "info" | "durables"), ..] => {
            return Err(format!("too many words behind {command}"));
        }
        [command, ..] => {
            return Err(format!(
                "there is no command {command:?}: ls, info, durables, pending, purge, rm, rm-durable, skip"
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> Options {
        let words: Vec<String> = line.split_whitespace().map(Into::into).collect();
        match parse(&words) {
            Ok(Parsed::Run(options)) => *options,
            Ok(Parsed::Print(text)) => panic!("{text}"),
            Err(error) => panic!("{error}"),
        }
    }

    fn fails(line: &str) -> String {
        let words: Vec<String> = line.split_whitespace().map(Into::into).collect();
        match parse(&words) {
            Err(error) => error,
            Ok(_) => panic!("{line} is no mistake"),
        }
    }

    #[test]
    fn commands_and_options_in_any_order() {
        let options = run("-s tls://me:x@a,b:5 purge --to=7 foo -cid c --yes");
        let places: Vec<String> = options
            .servers
            .iter()
            .map(|url| url.place.address())
            .collect();
        assert_eq!(places, ["a:4222", "b:5"]);
        assert_eq!((options.cluster_id.as_str(), options.yes), ("c", true));
        let channel = "foo".to_owned();
        let to = Some(7);
        assert_eq!(options.command, Command::Purge { channel, to });
        let options = run("skip foo 3 --queue d:g --json");
        let target = json!({ "channel": "foo", "queue": "d:g", "sequence": 3 });
        assert_eq!(options.command, Command::Skip { target });
    }

    #[test]
    fn mistakes_are_named() {
        for (line, part) in [
            ("", "which command"),
            ("frob", "no command \"frob\""),
            ("purge", "purge needs a channel"),
            ("purge foo bar", "purge needs a channel"),
            ("skip foo x --queue g", "is no number"),
            ("skip foo 3", "which subscription"),
            ("skip foo 3 --client c", "which subscription"),
            ("rm foo --to 3", "--to makes no sense"),
            ("ls --force", "--force makes no sense"),
            ("ls --nope 3", "no option --nope"),
            ("ls --nosuch", "no option --nosuch"),
            ("ls -nosuch=1", "no option -nosuch"),
            ("ls --timeout", "--timeout needs a value"),
            ("-s", "-s needs a value"),
            ("purge foo -to x", "-to: \"x\" is no number"),
            ("ls -tls=yes", "-tls takes no value"),
            ("ls --timeout soon", "is no time"),
            ("-s http://a ls", "no scheme of NATS"),
        ] {
            let error = fails(line);
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
