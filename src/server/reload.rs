//! SIGHUP: the configuration is read again, compared, and what changed takes effect.

use super::dial::Dialer;
use super::event_loop::Command;
use super::run::{Running, connections_max, write_pid_file};
use super::settings::settings;
use super::tls_link::Terms;
use crate::broker::propagate::ROUTE_LOOP;
use crate::config::Options;
use crate::config::cli::Source;
use crate::config::options::ClusterOptions;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A loop takes in a new configuration between two turns, which last milliseconds.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(2);

pub(super) fn reload(source: &Source, running: &mut Running) {
    if running.options.config_file.is_none() {
        return failed("Can only reload config when a file is provided using -c or --config");
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
    let old = &running.options;
    let fixed = [
        ("Host", old.host.clone(), new.host.clone()),
        ("Port", old.port.to_string(), new.port.to_string()),
        ("HTTPHost", old.http_host.clone(), new.http_host.clone()),
        (
            "HTTPPort",
            old.http_port.to_string(),
            new.http_port.to_string(),
        ),
        (
            "HTTPSPort",
            old.https_port.to_string(),
            new.https_port.to_string(),
        ),
        (
            "ProfPort",
            old.prof_port.to_string(),
            new.prof_port.to_string(),
        ),
        (
            "ServerName",
            old.server_name.clone(),
            new.server_name.clone(),
        ),
        ("Threads", old.threads.to_string(), new.threads.to_string()),
    ];
    if let Some((name, old, new)) = fixed.iter().find(|(_, old, new)| old != new) {
        return Err(format!(
            "Config reload not supported for {name}: old={old}, new={new}"
        ));
    }
    let (old_cluster, new_cluster) = (&old.cluster, &new.cluster);
    if old_cluster.host != new_cluster.host {
        return Err(format!(
            "Config reload not supported for cluster host: old={}, new={}",
            old_cluster.host, new_cluster.host
        ));
    }
    if old_cluster.port != new_cluster.port {
        return Err(format!(
            "Config reload not supported for cluster port: old={}, new={}",
            old_cluster.port, new_cluster.port
        ));
    }
    let settings = Arc::new(settings(&new, &running.identity)?);
    // Also where no option changed: the files may have.
    let tls = (
        Terms::load(&new.tls, false)?,
        Terms::load(&new.cluster.tls, true)?,
    );
    for warning in warnings {
        log::warn!("{warning}");
    }
    for line in changes(old, &new) {
        log::info!("{line}");
    }
    connections(running, &new);
    if old_and_new(&running.options, &new, |o| &o.pid_file)
        && let Err(error) = write_pid_file(&new.pid_file)
    {
        log::error!("Could not write pidfile: {error}");
    }
    crate::logging::reconfigure(&new)?;
    running.shared.tls.set(tls.0, tls.1);
    for door in running.shared.mesh.doors() {
        door.command(Command::Reconfigure(settings.clone()));
    }
    if old_cluster.routes != new_cluster.routes && running.identity.cluster_port.is_some() {
        running
            .shared
            .mesh
            .door(ROUTE_LOOP)
            .command(Command::DropConfiguredRoutes);
        Dialer::configure(&running.shared, &new_cluster.routes);
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

fn old_and_new<T: PartialEq>(old: &Options, new: &Options, get: impl Fn(&Options) -> &T) -> bool {
    get(old) != get(new)
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

/// One line per changed option, in the original's words and order.
fn changes(old: &Options, new: &Options) -> Vec<String> {
    let mut lines = Vec::new();
    if old.client_advertise != new.client_advertise {
        lines.push(format!(
            "Reload: client_advertise = {}",
            new.client_advertise
        ));
    }
    let mut told = |changed: bool, what: &str, value: String| {
        if changed {
            let value = if value.is_empty() {
                value
            } else {
                format!(" = {value}")
            };
            lines.push(format!("Reloaded: {what}{value}"));
        }
    };
    told(old.trace != new.trace, "trace", new.trace.to_string());
    told(old.debug != new.debug, "debug", new.debug.to_string());
    told(
        old.logtime != new.logtime,
        "logtime",
        new.logtime.to_string(),
    );
    told(
        old.max_connections != new.max_connections,
        "max_connections",
        new.max_connections.to_string(),
    );
    told(old.users != new.users, "authorization users", String::new());
    told(
        old.user != new.user,
        "authorization username",
        String::new(),
    );
    told(
        old.password != new.password,
        "authorization password",
        String::new(),
    );
    told(old.token != new.token, "authorization token", String::new());
    told(
        old.ping_interval != new.ping_interval,
        "ping_interval",
        format!("{:?}", new.ping_interval),
    );
    told(
        old.ping_max != new.ping_max,
        "ping_max",
        new.ping_max.to_string(),
    );
    told(
        old.auth_timeout != new.auth_timeout,
        "authorization timeout",
        new.auth_timeout.to_string(),
    );
    told(
        old.max_control_line != new.max_control_line,
        "max_control_line",
        new.max_control_line.to_string(),
    );
    told(
        old.max_payload != new.max_payload,
        "max_payload",
        new.max_payload.to_string(),
    );
    told(
        old.max_subscriptions != new.max_subscriptions,
        "max_subscriptions",
        new.max_subscriptions.to_string(),
    );
    told(
        old.max_pending != new.max_pending,
        "max_pending",
        new.max_pending.to_string(),
    );
    let without_routes = |options: &Options| ClusterOptions {
        routes: Vec::new(),
        ..options.cluster.clone()
    };
    told(
        without_routes(old) != without_routes(new),
        "cluster",
        String::new(),
    );
    told(
        old.pid_file != new.pid_file,
        "pid_file",
        new.pid_file.clone(),
    );
    told(
        old.log_file != new.log_file,
        "log_file",
        new.log_file.clone(),
    );
    told(old.syslog != new.syslog, "syslog", new.syslog.to_string());
    told(
        old.remote_syslog != new.remote_syslog,
        "remote_syslog",
        new.remote_syslog.clone(),
    );
    told(
        old.tls.timeout != new.tls.timeout,
        "tls timeout",
        new.tls.timeout.to_string(),
    );
    let enabled = if new.tls.enabled {
        "enabled"
    } else {
        "disabled"
    };
    told(old.tls != new.tls, "tls", enabled.to_owned());
    told(
        old.write_deadline != new.write_deadline,
        "write_deadline",
        format!("{:?}", new.write_deadline),
    );
    lines
}
