//! SIGHUP: the configuration is read again, compared, and what changed takes effect.

use super::dial::Dialer;
use super::event_loop::Command;
use super::run::{Running, connections_max, write_pid_file};
use super::settings::settings;
use super::tls_link::Terms;
use crate::config::Options;
use crate::config::cli::Source;
use crate::config::diff::{self, Change};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A loop takes in a new configuration between two turns, which last milliseconds.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(2);

pub(super) fn reload(source: &Source, running: &mut Running) {
    let Some(file) = &running.options.config_file else {
        return failed("Can only reload config when a file is provided using -c or --config");
    };
    // A pipe, as of `-c <(...)`, is read once; to wait for more would be to wait for ever.
    if std::fs::metadata(file).is_ok_and(|found| !found.is_file()) {
        let file = file.display();
        return failed(&format!(
            "{file} is no regular file and cannot be read again"
        ));
    }
    match source
        .read()
        .and_then(|(options, warnings)| apply(running, options, &warnings))
    {
        Ok(()) => {
            running.monitor.reloaded();
            log::info!("Reloaded server configuration");
        }
        Err(error) => failed(&error),
    }
}

fn failed(error: &str) {
    log::error!("Failed to reload server configuration: {error}");
}

fn apply(running: &mut Running, new: Options, warnings: &[String]) -> Result<(), String> {
    let changes = diff::changes(&running.options, &new);
    if let Some(refusal) = changes.iter().find_map(Change::refusal) {
        return Err(refusal);
    }
    // Whatever can fail comes before anything takes effect.
    let settings = Arc::new(settings(&new, &running.identity)?);
    // Also where no option changed: the files may have.
    let tls = (
        Terms::load(&new.tls, false)?,
        Terms::load(&new.cluster.tls, true)?,
    );
    let log = crate::logging::prepare(&new)?;
    for warning in warnings {
        log::warn!("{warning}");
    }
    let changed = |name| changes.iter().any(|change| change.name() == name);
    let (pid_file, routes) = (changed("pid_file"), changed("cluster.routes"));
    let mut lines: Vec<String> = changes.iter().map(Change::line).collect();
    lines.dedup();
    connections(running, &new);
    for line in lines {
        log::info!("{line}");
    }
    if pid_file && let Err(error) = write_pid_file(&new.pid_file) {
        log::error!("Could not write pidfile: {error}");
    }
    crate::logging::switch(log);
    running.shared.tls.set(tls.0, tls.1);
    for door in running.shared.mesh.doors() {
        door.command(Command::Reconfigure(settings.clone()));
    }
    if routes && running.identity.cluster_port.is_some() {
        Dialer::configure(&running.shared, &new.cluster.routes);
    }
    settle(running);
    running.monitor.set_options(&new);
    running.options = new;
    Ok(())
}

/// Waits until every loop has carried out the commands it was given: who reads that the
/// configuration was reloaded may count on it. A loop that is stuck does not stop the reload.
fn settle(running: &Running) {
    let (done, settled) = std::sync::mpsc::channel();
    let doors = running.shared.mesh.doors();
    for door in doors {
        door.command(Command::Acknowledge(done.clone()));
    }
    let until = Instant::now() + SETTLE_TIME_MAX;
    for _ in doors {
        let left = until.saturating_duration_since(Instant::now());
        if settled.recv_timeout(left).is_err() {
            log::warn!("A loop has not yet taken in the new configuration");
            return;
        }
    }
}

/// A lower limit closes as many connections as are too many, wherever they are.
fn connections(running: &Running, new: &Options) {
    let max = connections_max(new);
    running.shared.connections_max.store(max, Ordering::Relaxed);
    let doors = running.shared.mesh.doors();
    let counts: Vec<usize> = doors
        .iter()
        .map(|door| door.connections.load(Ordering::Relaxed))
        .collect();
    let mut surplus = counts.iter().sum::<usize>().saturating_sub(max);
    if surplus > 0 {
        log::info!("Closed {surplus} connections to fall within max_connections");
    }
    for (door, count) in doors.iter().zip(counts) {
        let here = surplus.min(count);
        surplus -= here;
        if here > 0 {
            let text = Some(crate::wire::errors::CONNECTIONS_EXCEEDED);
            door.command(Command::Dismiss { count: here, text });
        }
    }
}
