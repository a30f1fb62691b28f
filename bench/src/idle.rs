//! Connections that do nothing, in a process of their own: of several servers side by side there are more than one process may have files open.

use crate::arguments::HoldArguments;
use crate::connection::{Connection, Result, Target};
use crate::interrupt;
use std::fmt::Display;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};

/// What the other process says when all are open; anything else says why they are not.
const READY: &str = "ready";

pub struct Idle {
    holder: Child,
}

impl Idle {
    /// So many, without TLS.
    pub fn open(target: &Target, count: usize) -> Result<Self> {
        // This very program, also where its file is another one by now.
        let mut command = Command::new("/proc/self/exe");
        command
            .args(["hold", &target.address.to_string(), &count.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let holder = interrupt::spawn(&mut command).map_err(failed)?;
        let mut idle = Self { holder };
        // Not among the arguments, which everybody on the machine can see.
        let login = serde_json::to_string(&target.login).expect("plain data always serializes");
        let ask = idle.holder.stdin.as_mut().expect("it is piped");
        writeln!(ask, "{login}").map_err(failed)?;
        let said = idle.holder.stdout.take().expect("it is piped");
        let mut line = String::new();
        BufReader::new(said).read_line(&mut line).map_err(failed)?;
        match line.trim_end() {
            READY => Ok(idle),
            "" => Err(failed("their process ended")),
            other => Err(failed(other)),
        }
    }

    /// They were there all the time.
    pub fn finish(mut self) -> Result<()> {
        match self.end().map_err(failed)? {
            status if status.success() => Ok(()),
            status => Err(failed(format!(
                "their process ended early, or they did ({status})"
            ))),
        }
    }

    fn end(&mut self) -> std::io::Result<ExitStatus> {
        // What it waits for.
        drop(self.holder.stdin.take());
        // Its id is its own until it is waited for.
        interrupt::forget(self.holder.id());
        self.holder.wait()
    }
}

fn failed(error: impl Display) -> String {
    format!("idle connections: {error}")
}

impl Drop for Idle {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// What the other process does: holds the connections until its stdin ends, as it does when whoever asked for them is gone.
pub fn hold(arguments: &HoldArguments) -> Result<()> {
    let mut stdin = std::io::stdin().lock();
    let mut login = String::new();
    stdin.read_line(&mut login).map_err(failed)?;
    let target = Target {
        address: arguments.address,
        tls: None,
        login: serde_json::from_str(&login).map_err(failed)?,
    };
    let open = match Connection::open_many(&target, arguments.count) {
        Ok(open) => open,
        Err(error) => return say(&error),
    };
    say(READY)?;
    let _ = stdin.read(&mut [0]);
    open.iter().try_for_each(Connection::is_open)
}

fn say(line: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").map_err(|error| error.to_string())
}
