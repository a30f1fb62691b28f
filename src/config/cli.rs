//! The command line: gnatsd's flags, built from the table.
//!
//! Flags take one dash or two, and their value behind a blank or `=`; switches take a value behind
//! `=` alone. Unlike the original, a flag we do not know ends with exit code 1.

use super::Options;
use super::file::{self, Data, Found, Position, Value, integer};
use super::options::{all_of, none_of};
use super::signal::{self, SignalRequest};
use super::streaming;
use super::table::{self, Group, Kind, Row, dashed, rows};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction};
use std::path::{Path, PathBuf};

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    Run {
        source: Source,
        options: Box<Options>,
        warnings: Vec<String>,
    },
    /// `-t`: what to print if the files that the options name are good as well.
    Check {
        options: Box<Options>,
        warnings: Vec<String>,
        verdict: String,
    },
    /// Something to print, and that is all.
    Print(String),
    /// `-sl`: a signal for a running server.
    Signal(SignalRequest),
}

/// Where the options came from, so that they can be read again.
#[derive(Clone, Debug, Default)]
pub struct Source {
    config_file: Option<PathBuf>,
    /// Flags in the order of the command line, with their values.
    flags: Vec<(usize, Value)>,
    /// Keys nobody knows are errors: `-t` and `--strict`.
    strict: bool,
    /// The program was started by the streaming server's name.
    streaming: bool,
}

impl Source {
    /// Reads the files anew, and puts the flags over them.
    pub fn read(&self) -> Result<(Options, Vec<String>), String> {
        let mut asked = Options::default();
        self.put_flags(&mut asked)?;
        let mut options = Options::default();
        let mut warnings = Vec::new();
        options.streaming.enabled = self.streaming;
        // One file serves both parts; two serve one each.
        let named = |path: &PathBuf| !path.as_os_str().is_empty();
        let streaming_file = asked.streaming.config_file.clone().filter(named);
        let main_file = self.config_file.clone().or(streaming_file.clone());
        let streaming_file = streaming_file.or(self.config_file.clone());
        let streaming = self.streaming || asked.streaming.enabled;
        let (mut errors, mut misread) = (Vec::new(), false);
        let mut tell = |found: Found, path: &Path| {
            misread |= !found.errors.is_empty();
            let (mut wrong, mut remarks) = found.told(path, self.strict);
            errors.append(&mut wrong);
            warnings.append(&mut remarks);
        };
        if let Some(path) = &main_file {
            let mut entries = file::read(path)?;
            let mut found = Found::default();
            file::keep_last(&mut entries, &mut found);
            table::apply(&mut options, &entries, &mut found, streaming);
            if streaming_file == main_file {
                let readers = streaming::Readers::Both;
                streaming::apply_file(&mut options, &entries, &mut found, streaming, readers);
            }
            tell(found, path);
            options.config_file = Some(path.clone());
        }
        if let Some(path) = streaming_file
            .as_ref()
            .filter(|path| Some(*path) != main_file.as_ref())
        {
            let mut entries = file::read(path)?;
            let mut found = Found::default();
            file::keep_last(&mut entries, &mut found);
            let readers = streaming::Readers::Us;
            streaming::apply_file(&mut options, &entries, &mut found, streaming, readers);
            streaming::unknown_at_top(&entries, &mut found);
            tell(found, path);
        }
        // What is made of values that could not be read would be told wrongly.
        if misread {
            return Err(errors.join("\n"));
        }
        // Credentials of the file that contradict each other are a mistake; flags over them are a choice.
        let credentials = options.check_credentials();
        self.put_flags(&mut options)?;
        options.put_defaults();
        all_of([none_of(errors), credentials, options.check()])?;
        warnings.extend(options.remarks());
        Ok((options, warnings))
    }

    fn put_flags(&self, options: &mut Options) -> Result<(), String> {
        for (index, value) in &self.flags {
            let row = row(*index);
            (row.set)(options, value)
                .map_err(|error| format!("{}: {error}", flag_names(row.flags)))?;
        }
        // Wherever it stands: the other flags of TLS would switch it on.
        let tls = |(index, _): &&(usize, Value)| row(*index).flags == ["tls"];
        if let Some((_, value)) = self.flags.iter().rev().find(tls)
            && value.data == Data::Bool(false)
        {
            options.tls.enabled = false;
        }
        Ok(())
    }
}

fn row(index: usize) -> &'static Row {
    rows().nth(index).expect("an index of this very list")
}

/// Names the server is called by.
pub fn program_name(argument: Option<&std::ffi::OsStr>) -> String {
    let name = argument
        .map(std::path::Path::new)
        .and_then(|path| path.file_name());
    match name.and_then(|name| name.to_str()) {
        Some(name @ ("gnatsd" | "nats-server" | STREAMING_NAME)) => name.to_owned(),
        _ => "midge".to_owned(),
    }
}

pub const STREAMING_NAME: &str = "nats-streaming-server";

pub fn version_line(program: &str) -> String {
    match program {
        STREAMING_NAME => format!(
            "nats-streaming-server version {}, nats-server version {}",
            crate::STREAMING_VERSION,
            crate::COMPATIBLE_VERSION
        ),
        "midge" => {
            let commit = if crate::GIT_COMMIT.is_empty() {
                String::new()
            } else {
                format!(" ({})", crate::GIT_COMMIT)
            };
            format!(
                "midge {}{commit}, compatible with nats-server version {}",
                crate::VERSION,
                crate::COMPATIBLE_VERSION
            )
        }
        _ => format!("nats-server version {}", crate::COMPATIBLE_VERSION),
    }
}

pub fn usage(program: &str) -> String {
    let mut text = format!("\nUsage: {program} [options]\n");
    for (group, title) in Group::ALL {
        text += &format!("\n{title}:\n");
        for row in rows().filter(|row| row.group == group && !row.flags.is_empty()) {
            text += &help_line(&flag_names(row.flags), row.kind, row.doc, row.default);
        }
        if group == Group::Server {
            text += &help_line("-c, --config", Kind::Text, "Configuration file.", "");
            text += &help_line("-t", Kind::Bool, "Check the configuration and exit.", "");
            text += &help_line(
                "passwd",
                Kind::Bool,
                "Hash a password for the configuration file.",
                "",
            );
            text += &help_line(
                "stan",
                Kind::Bool,
                "Look at a streaming server and its channels, or change them: stan --help.",
                "",
            );
            text += &help_line(
                "-sl, --signal",
                Kind::Text,
                "Send a signal to a running server and exit: stop, quit, term, reopen, reload, ldm; SIGNAL=PID names the process, by number or pid file.",
                "",
            );
        }
    }
    text += "\nCommon Options:\n";
    text += &help_line("-h, --help", Kind::Bool, "Show this message.", "");
    text += &help_line("-v, --version", Kind::Bool, "Show the version.", "");
    text += &help_line("--help_tls", Kind::Bool, "Show help on TLS.", "");
    text
}

fn flag_names(flags: &[&str]) -> String {
    flags
        .iter()
        .map(|flag| dashed(flag))
        .collect::<Vec<_>>()
        .join(", ")
}

fn help_line(names: &str, kind: Kind, doc: &str, default: &str) -> String {
    let value = match kind {
        Kind::Bool | Kind::Block => "",
        Kind::Int => " <number>",
        Kind::Text => " <text>",
        Kind::Duration => " <time>",
    };
    let default = if default.is_empty() || default == "false" {
        String::new()
    } else {
        format!(" (default: {default})")
    };
    format!("    {:<38} {doc}{default}\n", format!("{names}{value}"))
}

const TLS_HELP: &str = "
TLS for clients: -tls with -tlscert and -tlskey, or a tls block in the configuration file. Its keys:

    cert_file, key_file     certificate (with those up to the authority) and private key, PEM
    ca_file                 authorities for client certificates, PEM
    verify                  require and verify client certificates
    verify_and_map          the same, and the certificate says which user it is
    timeout                 seconds a handshake may take (0.5)
    handshake_first         begin with the handshake, INFO comes inside
    cipher_suites           for TLS 1.2: TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
                            TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305, TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
                            TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305
    curve_preferences       X25519, CurveP256, CurveP384

TLS 1.2 and 1.3 are offered. A cluster has a tls block of its own, with the same keys; certificates are verified both ways there.
";

pub fn parse(
    program: &str,
    arguments: impl IntoIterator<Item = String>,
) -> Result<Command, String> {
    let mut command = clap::Command::new("midge")
        .disable_help_flag(true)
        .disable_version_flag(true)
        .no_binary_name(true)
        .arg(Arg::new("word").num_args(0..).action(ArgAction::Append))
        .arg(
            Arg::new("config")
                .long("config")
                .alias("c")
                .action(ArgAction::Set)
                .overrides_with("config"),
        )
        .arg(
            Arg::new("signal")
                .long("signal")
                .alias("sl")
                .action(ArgAction::Set)
                .overrides_with("signal"),
        );
    for (name, aliases) in [
        ("help", "h"),
        ("version", "v"),
        ("help_tls", "help-tls"),
        ("check", "t"),
    ] {
        command = command.arg(
            Arg::new(name)
                .long(name)
                .alias(aliases)
                .action(ArgAction::Count),
        );
    }
    for (index, row) in rows().enumerate().filter(|(_, row)| !row.flags.is_empty()) {
        let mut arg = Arg::new(index.to_string())
            .long(row.flags[0])
            .aliases(row.flags[1..].to_vec())
            .action(ArgAction::Append);
        if row.kind == Kind::Bool {
            arg = arg
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true");
        }
        command = command.arg(arg);
    }
    let (arguments, open) = normal(arguments);
    let matches = command
        .try_get_matches_from(arguments)
        .map_err(|error| flag_error(&error, open))?;

    match matches
        .get_many::<String>("word")
        .and_then(|mut words| words.next())
        .map(String::as_str)
    {
        None => {}
        Some("version") => return Ok(Command::Print(version_line(program) + "\n")),
        Some("help") => return Ok(Command::Print(usage(program))),
        Some(word) => return Err(format!("unrecognized command: {word:?}")),
    }
    let asks_streaming = rows()
        .position(|row| row.flags == ["streaming"])
        .is_some_and(|index| matches.get_many::<String>(&index.to_string()).is_some());
    let shown_as = match asks_streaming {
        true => STREAMING_NAME,
        false => program,
    };
    for (flag, text) in [
        ("help", usage(program)),
        ("version", version_line(shown_as) + "\n"),
        ("help_tls", TLS_HELP.to_owned()),
    ] {
        if matches.get_count(flag) > 0 {
            return Ok(Command::Print(text));
        }
    }
    let request = matches.get_one::<String>("signal");
    if let Some(request) = request.filter(|request| !request.is_empty()) {
        return signal::parse(request).map(Command::Signal);
    }
    let mut flags: Vec<(usize, usize, Value)> = Vec::new();
    for (index, row) in rows().enumerate().filter(|(_, row)| !row.flags.is_empty()) {
        let id = index.to_string();
        let values = matches.get_many::<String>(&id).into_iter().flatten();
        let places = matches.indices_of(&id).into_iter().flatten();
        for (place, text) in places.zip(values) {
            flags.push((place, index, value_of(row, text)?));
        }
    }
    flags.sort_by_key(|(place, ..)| *place);
    let check = matches.get_count("check") > 0;
    let mut source = Source {
        config_file: matches
            .get_one::<String>("config")
            .filter(|path| !path.is_empty())
            .map(PathBuf::from),
        flags: flags
            .into_iter()
            .map(|(_, row, value)| (row, value))
            .collect(),
        strict: check,
        streaming: program == STREAMING_NAME,
    };
    source.strict |= source
        .flags
        .iter()
        .any(|(index, value)| row(*index).flags[0] == "strict" && value.data == Data::Bool(true));
    let (options, warnings) = source.read()?;
    if check {
        let shown = options
            .config_file
            .as_deref()
            .unwrap_or_else(|| std::path::Path::new("(no file)"));
        let verdict = format!("configuration {} is valid", shown.display());
        return Ok(Command::Check {
            options: Box::new(options),
            warnings,
            verdict,
        });
    }
    Ok(Command::Run {
        source,
        options: Box::new(options),
        warnings,
    })
}

/// The command line in the one form clap is given, `--flag=value`. For Go's flags one dash is as good as two,
/// and what stands behind a flag that takes a value is its value, whatever it begins with. The last one may be
/// without: its name, as it was given, is the second thing returned.
fn normal(arguments: impl IntoIterator<Item = String>) -> (Vec<String>, Option<String>) {
    let mut flags: Vec<&str> = vec!["c", "config", "sl", "signal"];
    let rows = rows().filter(|row| row.kind != Kind::Bool);
    flags.extend(rows.flat_map(|row| row.flags));
    let (mut normal, mut open) = (Vec::new(), None);
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let name = argument
            .strip_prefix("--")
            .or(argument.strip_prefix('-'))
            .filter(|name| !name.is_empty() && !name.starts_with('-'));
        match name {
            None => normal.push(argument),
            Some(name) if flags.contains(&name) => {
                let value = arguments.next().map(|value| format!("={value}"));
                open = value.is_none().then(|| dashed(name));
                normal.push(format!("--{name}{}", value.unwrap_or_default()));
            }
            Some(name) => normal.push(format!("--{name}")),
        }
    }
    (normal, open)
}

/// Whether a process with these arguments is a server, not one of the commands that do something and end.
pub(super) fn serves(arguments: &[String]) -> bool {
    let command = arguments.first().map(String::as_str);
    let (arguments, _) = normal(arguments.iter().cloned());
    let ends = |argument: &String| match argument.split_once('=') {
        Some((name, value)) => matches!(name, "--sl" | "--signal") && !value.is_empty(),
        None => matches!(argument.as_str(), "--t" | "--check"),
    };
    !matches!(command, Some("passwd" | "stan")) && !arguments.iter().any(ends)
}

fn value_of(row: &Row, text: &str) -> Result<Value, String> {
    let at = Position {
        file: dashed(row.flags[0]).into(),
        line: 1,
        column: 1,
    };
    let bad = || {
        format!(
            "invalid value {text:?} for flag {}: parse error",
            flag_names(row.flags)
        )
    };
    let data = match row.kind {
        Kind::Bool => match text.to_ascii_lowercase().as_str() {
            "true" | "t" | "1" => Data::Bool(true),
            "false" | "f" | "0" => Data::Bool(false),
            _ => return Err(bad()),
        },
        Kind::Int => Data::Int(integer(text).ok_or_else(bad)?),
        Kind::Text | Kind::Duration | Kind::Block => Data::Text(text.to_owned()),
    };
    Ok(Value { data, at })
}

/// clap's errors in the words of Go's flags, which users of gnatsd know.
fn flag_error(error: &clap::Error, open: Option<String>) -> String {
    let argument = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => {
            let name = argument
                .split([' ', '=', '<', '['])
                .next()
                .unwrap_or("")
                .trim_start_matches('-');
            dashed(name)
        }
        _ => String::new(),
    };
    match error.kind() {
        ErrorKind::UnknownArgument => format!("flag provided but not defined: {argument}"),
        ErrorKind::InvalidValue | ErrorKind::NoEquals => {
            format!("flag needs an argument: {}", open.unwrap_or(argument))
        }
        _ => error.to_string().trim().to_owned(),
    }
}

#[cfg(test)]
mod tests;
