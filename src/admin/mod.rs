//! `midge stan`: looks at a streaming server's channels and durables and tidies them up, through the NATS server
//! its clients use. docs/PROTOCOL.md has the requests.
//!
//! May import the NATS client of server/, config and util. Must not know the engine: it is asked over NATS alone.

mod client;
mod options;
mod render;

use client::Requests;
use options::{Command, Options, Parsed};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

/// Runs the command; `arguments` are those behind its name. 0: done; 1: it could not be; 2: it was not understood.
pub fn run(arguments: &[String]) -> ExitCode {
    let options = match options::parse(arguments) {
        Ok(Parsed::Print(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Ok(Parsed::Run(options)) => options,
        Err(error) => {
            eprintln!("midge stan: {error}\nTry 'midge stan --help'.");
            return ExitCode::from(2);
        }
    };
    match carry_out(&options) {
        Ok(text) => {
            // Whoever reads it may have seen enough.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("midge stan: {error}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out(options: &Options) -> Result<String, String> {
    let mut requests = Requests::connect(options)?;
    let answer = match &options.command {
        Command::List => requests.list("channels", json!({}), "channels")?,
        Command::Server => requests.ask("info", &json!({}))?,
        Command::Channel { channel } => {
            requests.list("channel", json!({ "channel": channel }), "subscriptions")?
        }
        Command::Durables { channel } => {
            let request = match channel {
                Some(channel) => json!({ "channel": channel }),
                None => json!({}),
            };
            requests.list("durables", request, "durables")?
        }
        Command::Pending { target } => requests.list("pending", target.clone(), "pending")?,
        Command::Purge { channel, to } => {
            let found = channel_of(&mut requests, channel)?;
            let what = match to {
                Some(to) => format!("purge messages up to {to}"),
                None => format!("purge all {} messages", found["messages"]),
            };
            confirm(options, &format!("{what} of channel {channel:?}"))?;
            let mut request = json!({ "channel": channel });
            if let Some(to) = to {
                request["to"] = (*to).into();
            }
            requests.ask("purge", &request)?
        }
        Command::Remove { channel, force } => {
            let found = channel_of(&mut requests, channel)?;
            confirm(
                options,
                &format!(
                    "delete channel {channel:?} with {} messages and {} subscriptions",
                    found["messages"], found["subscriptions"]
                ),
            )?;
            requests.ask("delete", &json!({ "channel": channel, "force": force }))?
        }
        Command::RemoveDurable { target } => {
            confirm(
                options,
                &format!("remove the durable {}", render::target(target)),
            )?;
            requests.ask("remove-durable", target)?
        }
        Command::Skip { target } => {
            confirm(
                options,
                &format!(
                    "skip message {} for {}",
                    target["sequence"],
                    render::target(target)
                ),
            )?;
            requests.ask("skip", target)?
        }
    };
    Ok(match options.json {
        true => format!("{answer:#}\n"),
        false => render::text(&options.command, &answer),
    })
}

fn channel_of(requests: &mut Requests, channel: &str) -> Result<Value, String> {
    let request = json!({ "channel": channel, "limit": 1 });
    let mut answer = requests.ask("channel", &request)?;
    Ok(answer["channel"].take())
}

/// Nothing is taken away without a yes.
fn confirm(options: &Options, what: &str) -> Result<(), String> {
    if options.yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(format!(
            "this would {what}: say --yes to do it without being asked"
        ));
    }
    eprint!("{what}, of cluster {:?}? [y/N] ", options.cluster_id);
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(|error| format!("cannot read the answer: {error}"))?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err("nothing was done".into()),
    }
}
