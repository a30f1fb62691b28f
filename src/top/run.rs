//! From a command line to a snapshot or a screen.

use super::app;
use super::fetch::{Answer, Ask, Client, ConnectionsAsk};
use super::json::Connz;
use super::names::Names;
use super::options::{self, Command, Options, SERVER_SORT_KEYS, Surroundings};
use super::rates::{Rates, ServerRates};
use super::text::Snapshot;
use std::io::Write;
use std::time::Instant;

pub fn main(arguments: impl IntoIterator<Item = String>) -> Result<(), String> {
    match options::parse(arguments, Surroundings::of_environment())? {
        Command::Print(text) => {
            print!("{text}");
            Ok(())
        }
        Command::Run(options) => run(*options),
    }
}

fn run(options: Options) -> Result<(), String> {
    let https = options.servers.iter().any(|address| address.https);
    let client = Client::new(&options.tls, https)?;
    match &options.output {
        Some(output) => {
            let text = snapshots(&client, &options)?;
            write(output, &text)
        }
        // Servers that are away now may come back: the screen says so.
        None => app::follow(client, &options),
    }
}

/// The last of as many refreshes as asked for, of each server. One of them must answer.
fn snapshots(client: &Client, options: &Options) -> Result<String, String> {
    let ask = Ask {
        connections: Some(ConnectionsAsk {
            limit: options.limit,
            sort: server_key(&options.sort).into(),
            // A filter looks at subjects too.
            subscriptions: options.subscriptions || !options.filter.is_empty(),
        }),
        ..Ask::default()
    };
    let refreshes = options.refreshes_max.unwrap_or(1);
    let started = Instant::now();
    let mut rates: Vec<ServerRates> = vec![ServerRates::default(); options.servers.len()];
    let mut names = Names::default();
    let mut parts = Vec::new();
    for refresh in 0..refreshes {
        if refresh > 0 {
            std::thread::sleep(options.interval);
        }
        parts.clear();
        let mut failures = Vec::new();
        for (address, rates) in options.servers.iter().zip(&mut rates) {
            let (answer, error) = match client.answer(address, &ask) {
                Ok(mut answer) => {
                    rates.take_varz(&answer.varz, started.elapsed().as_secs_f64());
                    let trouble = answer.trouble.take().map(|failure| failure.to_string());
                    (answer, trouble)
                }
                Err(failure) => {
                    failures.push(format!("{address}: {failure}"));
                    (Answer::default(), Some(failure.to_string()))
                }
            };
            if options.lookup {
                names.want_all(answer.connz.as_ref());
                names.resolve();
            }
            let now = rates.now.unwrap_or_default();
            parts.push(snapshot(&answer, now, error.as_deref(), &names, options));
        }
        if failures.len() == options.servers.len() {
            return Err(format!("/varz smoke test failed: {}", failures.join("; ")));
        }
    }
    Ok(parts.join("\n"))
}

fn snapshot(
    answer: &Answer,
    rates: Rates,
    error: Option<&str>,
    names: &Names,
    options: &Options,
) -> String {
    let mut connz = answer.connz.clone().unwrap_or_default();
    if !options.filter.is_empty() {
        let list = connz.connections.get_or_insert_default();
        list.retain(|connection| connection.holds(&options.filter));
    }
    let snapshot = Snapshot {
        varz: &answer.varz,
        connz: &connz,
        rates,
        error: error.unwrap_or(""),
        raw: options.raw,
        subscriptions: options.subscriptions,
        name_of: &|ip| names.name_of(ip).map(str::to_owned),
    };
    match &options.delimiter {
        Some(delimiter) => snapshot.delimited(delimiter),
        None => snapshot.grid(),
    }
}

impl Names {
    /// Wants the names of all who are connected.
    pub fn want_all(&mut self, connz: Option<&Connz>) {
        let lists = connz.and_then(|connz| connz.connections.as_ref());
        for connection in lists.into_iter().flatten() {
            self.want(connection.ip.as_deref().unwrap_or(""));
        }
    }
}

/// The key to ask a server for; what only we sort by, it need not know.
pub fn server_key(key: &str) -> &str {
    match SERVER_SORT_KEYS.contains(&key) {
        true => key,
        false => "cid",
    }
}

fn write(output: &str, text: &str) -> Result<(), String> {
    let result = match output {
        "-" => std::io::stdout().write_all(text.as_bytes()),
        path => std::fs::write(path, text),
    };
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(format!("failed to write the snapshot to {output}: {error}"))
        }
        _ => Ok(()),
    }
}
