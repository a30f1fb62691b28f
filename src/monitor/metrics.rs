//! `/metrics`: the figures of /varz and /routez in Prometheus' text format.
//!
//! Names follow prometheus-nats-exporter where it has the figure (`gnatsd_varz_...`), so that
//! dashboards made for it keep working, and so counters with such a name lack the `_total` that Prometheus
//! asks for; what only midge has begins with `midge_`, and its counters end in `_total`.

use super::model::{LoopEntry, Routez, Varz};
use super::streaming::{Overview, Overviewz};
use std::fmt::{Display, Write};

struct Text {
    out: String,
    server: String,
}

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        let _ = writeln!(self.out, "{name}{{server_id=\"{}\"}} {value}", self.server);
    }

    fn labelled(&mut self, name: &str, labels: &str, value: impl Display) {
        let server = &self.server;
        let _ = writeln!(
            self.out,
            "{name}{{server_id=\"{server}\",{labels}}} {value}"
        );
    }
}

/// A label's value: backslash, quote and line feed escaped.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

pub fn text(varz: &Varz, routez: &Routez, uptime_seconds: f64, log_lines_dropped: u64) -> String {
    let mut text = Text {
        out: String::new(),
        server: escaped(&varz.server_id),
    };
    let (gauge, counter) = ("gauge", "counter");
    text.one(
        "gnatsd_varz_connections",
        gauge,
        "Client connections.",
        varz.connections,
    );
    text.one(
        "gnatsd_varz_total_connections",
        counter,
        "Client connections since the start.",
        varz.total_connections,
    );
    text.one(
        "gnatsd_varz_subscriptions",
        gauge,
        "Subscriptions, those of routes included.",
        varz.subscriptions,
    );
    text.one(
        "gnatsd_varz_in_msgs",
        counter,
        "Messages received.",
        varz.in_msgs,
    );
    text.one(
        "gnatsd_varz_out_msgs",
        counter,
        "Messages sent.",
        varz.out_msgs,
    );
    text.one(
        "gnatsd_varz_in_bytes",
        counter,
        "Payload bytes received.",
        varz.in_bytes,
    );
    text.one(
        "gnatsd_varz_out_bytes",
        counter,
        "Payload bytes sent.",
        varz.out_bytes,
    );
    text.one(
        "gnatsd_varz_slow_consumers",
        counter,
        "Connections cut off because they did not read.",
        varz.slow_consumers,
    );
    text.one(
        "gnatsd_varz_mem",
        gauge,
        "Resident memory in bytes.",
        varz.mem,
    );
    text.one(
        "gnatsd_varz_cpu",
        gauge,
        "CPU use in percent of one core.",
        varz.cpu.0,
    );
    text.one(
        "gnatsd_varz_cores",
        gauge,
        "Cores this process may use.",
        varz.cores,
    );
    text.one(
        "gnatsd_varz_routes",
        gauge,
        "Registered routes.",
        varz.routes,
    );
    text.one(
        "gnatsd_varz_remotes",
        gauge,
        "Other servers in the cluster.",
        varz.remotes,
    );
    text.one(
        "gnatsd_varz_max_connections",
        gauge,
        "Most client connections allowed.",
        varz.max_connections,
    );
    text.one(
        "gnatsd_varz_max_payload",
        gauge,
        "Largest payload in bytes.",
        varz.max_payload,
    );
    text.one(
        "midge_uptime_seconds",
        gauge,
        "Seconds since the start.",
        uptime_seconds,
    );
    text.one(
        "midge_log_lines_dropped_total",
        counter,
        "Log lines that could not be written, or not fast enough.",
        log_lines_dropped,
    );
    text.family("midge_info", gauge, "Version of the server.");
    text.labelled(
        "midge_info",
        &format!(
            "version=\"{}\",server_name=\"{}\"",
            crate::VERSION,
            escaped(&varz.server_name)
        ),
        1,
    );
    for (name, kind, help, get) in [
        (
            "midge_loop_connections",
            gauge,
            "Client connections per event loop.",
            (|l| l.connections as u64) as fn(&LoopEntry) -> u64,
        ),
        (
            "midge_loop_subscriptions",
            gauge,
            "Subscriptions per event loop.",
            |l| l.subscriptions as u64,
        ),
        (
            "midge_loop_in_msgs_total",
            counter,
            "Messages received per event loop.",
            |l| l.in_msgs,
        ),
        (
            "midge_loop_out_msgs_total",
            counter,
            "Messages sent per event loop.",
            |l| l.out_msgs,
        ),
    ] {
        text.family(name, kind, help);
        for (index, figures) in varz.loops.iter().enumerate() {
            text.labelled(name, &format!("loop=\"{index}\""), get(figures));
        }
    }
    for (name, kind, help, get) in [
        (
            "gnatsd_routez_in_msgs",
            counter,
            "Messages received over a route.",
            (|r| r.in_msgs) as fn(&super::model::RoutezEntry) -> u64,
        ),
        (
            "gnatsd_routez_out_msgs",
            counter,
            "Messages sent over a route.",
            |r| r.out_msgs,
        ),
        (
            "gnatsd_routez_in_bytes",
            counter,
            "Payload bytes received over a route.",
            |r| r.in_bytes,
        ),
        (
            "gnatsd_routez_out_bytes",
            counter,
            "Payload bytes sent over a route.",
            |r| r.out_bytes,
        ),
        (
            "gnatsd_routez_pending_size",
            gauge,
            "Bytes waiting for a route.",
            |r| r.pending_size as u64,
        ),
        (
            "gnatsd_routez_subscriptions",
            gauge,
            "Subscriptions learned over a route.",
            |r| r.subscriptions as u64,
        ),
    ] {
        text.family(name, kind, help);
        for route in &routez.routes {
            let labels = format!(
                "rid=\"{}\",remote_id=\"{}\"",
                route.rid,
                escaped(&route.remote_id)
            );
            text.labelled(name, &labels, get(route));
        }
    }
    text.out
}

/// Channels' figures; names again as the exporter's (`nss_...`) where it has them.
pub fn streaming(server_id: &str, overview: &Overviewz) -> String {
    let mut text = Text {
        out: String::new(),
        server: escaped(server_id),
    };
    let (gauge, counter) = ("gauge", "counter");
    let channels = &overview.channels;
    let sum = |of: fn(&Overview) -> u64| channels.iter().map(of).sum::<u64>();
    for (name, help, value) in [
        (
            "nss_server_clients",
            "Streaming clients.",
            overview.clients as u64,
        ),
        ("nss_server_channels", "Channels.", channels.len() as u64),
        (
            "nss_server_subscriptions",
            "Subscriptions of all channels.",
            sum(|channel| channel.subscriptions as u64),
        ),
        (
            "nss_server_msgs_total",
            "Messages stored.",
            sum(|channel| channel.msgs),
        ),
        (
            "nss_server_bytes_total",
            "Bytes stored.",
            sum(|channel| channel.bytes),
        ),
    ] {
        text.one(name, gauge, help, value);
    }
    for (name, kind, help, get) in [
        (
            "nss_chan_msgs_total",
            gauge,
            "Messages stored.",
            (|c| c.msgs as f64) as fn(&Overview) -> f64,
        ),
        ("nss_chan_bytes_total", gauge, "Bytes stored.", |c| {
            c.bytes as f64
        }),
        (
            "nss_chan_last_seq",
            gauge,
            "Number of the last message.",
            |c| c.last_seq as f64,
        ),
        (
            "nss_chan_subs_pending_count",
            gauge,
            "Messages sent and not acknowledged by subscribers.",
            |c| c.pending as f64,
        ),
        (
            "midge_chan_subscriptions",
            gauge,
            "Subscriptions, those of absent durables included.",
            |c| c.subscriptions as f64,
        ),
        (
            "midge_chan_subs_stalled",
            gauge,
            "Subscriptions with as much pending as they allow.",
            |c| c.stalled as f64,
        ),
        (
            "midge_chan_acknowledged_total",
            counter,
            "Publishes acknowledged.",
            |c| c.acknowledged as f64,
        ),
        (
            "midge_chan_redelivered_total",
            counter,
            "Messages sent again.",
            |c| c.redelivered as f64,
        ),
        (
            "midge_chan_dead_lettered_total",
            counter,
            "Messages that went to a channel of dead letters.",
            |c| c.dead_lettered as f64,
        ),
        (
            "midge_chan_oldest_unacked_seconds",
            gauge,
            "Age of the delivery that waits longest for its ack.",
            |c| c.oldest_unacked_seconds.unwrap_or(0.0),
        ),
    ] {
        text.family(name, kind, help);
        for channel in channels {
            let labels = format!("channel=\"{}\"", escaped(&channel.name));
            text.labelled(name, &labels, get(channel));
        }
    }
    text.out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_counters_and_no_others_end_in_total() {
        let channels = streaming("a", &Overviewz::default());
        let text = text(&Varz::default(), &Routez::default(), 0.0, 0) + &channels;
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let own: Vec<&str> = types.filter(|line| line.starts_with("midge_")).collect();
        assert!(own.contains(&"midge_chan_redelivered_total counter"));
        for line in own {
            let (name, kind) = line.split_once(' ').unwrap();
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
        }
    }

    #[test]
    fn every_line_is_a_comment_or_a_sample() {
        let varz = Varz {
            server_id: "a\"b".into(),
            in_msgs: 7,
            loops: vec![LoopEntry::default(); 2],
            ..Varz::default()
        };
        let overview = Overviewz {
            channels: vec![Overview {
                name: "foo".into(),
                pending: 3,
                ..Overview::default()
            }],
            ..Overviewz::default()
        };
        let streaming = streaming("a\"b", &overview);
        let text = text(&varz, &Routez::default(), 1.5, 0) + &streaming;
        assert!(
            text.contains("nss_chan_subs_pending_count{server_id=\"a\\\"b\",channel=\"foo\"} 3\n")
        );
        assert!(text.contains("gnatsd_varz_in_msgs{server_id=\"a\\\"b\"} 7\n"));
        assert!(text.contains("midge_loop_in_msgs_total{server_id=\"a\\\"b\",loop=\"1\"} 0\n"));
        for line in text.lines() {
            let sample = line
                .rsplit_once(' ')
                .is_some_and(|(_, value)| value.parse::<f64>().is_ok());
            assert!(line.starts_with("# ") || sample, "{line}");
        }
    }
}
