//! Answers below /streaming, from what the engine tells.

use super::monitor::time;
use crate::config::streaming::StreamingOptions;
use crate::monitor::http::Response;
use crate::monitor::model::uptime;
use crate::monitor::query::Query;
use crate::monitor::streaming::{
    Channelsz, Channelz, Clientsz, Clientz, Limits, MENU, Overview, Overviewz, Serverz,
    StoreLimits, Storez, Subz, json, page,
};
use crate::stan::report::{ChannelReport, ClientReport, Report, SubReport};
use crate::stan::store::ChannelLimits;
use chrono::{DateTime, Local};
use std::collections::BTreeMap;
use std::time::Duration;

/// What of the engine is known without asking it.
pub struct About {
    pub options: StreamingOptions,
    pub server_id: String,
}

/// None: no such page. `report` asks the engine, which may take a while; it is called for pages that show
/// something of it and for no others.
pub fn document(
    about: &About,
    report: impl FnOnce() -> Option<Report>,
    path: &str,
    query: Query<'_>,
    started_at: DateTime<Local>,
    up: Duration,
) -> Option<Response> {
    if path == "/streaming" {
        return Some(Response::html(MENU.into()));
    }
    let name = path.strip_prefix("/streaming/")?;
    let known = ["serverz", "storez", "clientsz", "channelsz", "overviewz"];
    if !known.contains(&name) {
        return None;
    }
    let Some(report) = report() else {
        let text = "Error getting information about channels state: the engine does not answer";
        return Some(Response::text(500, text));
    };
    let now = time(Local::now());
    let server_id = about.server_id.clone();
    let cluster_id = report.cluster_id.clone();
    let body = match name {
        "serverz" => json(&Serverz {
            cluster_id,
            server_id,
            version: crate::STREAMING_VERSION.into(),
            go: String::new(),
            state: "STANDALONE",
            now,
            start_time: time(started_at),
            uptime: uptime(up),
            clients: report.clients.len(),
            subscriptions: report.channels.iter().map(active_subscriptions).sum(),
            channels: report.channels.len(),
            total_msgs: report.channels.iter().map(|c| c.msgs).sum(),
            total_bytes: report.channels.iter().map(|c| c.bytes).sum(),
        }),
        "storez" => json(&Storez {
            cluster_id,
            server_id,
            now,
            kind: report.store,
            limits: limits(&about.options),
            total_msgs: report.channels.iter().map(|c| c.msgs).sum(),
            total_bytes: report.channels.iter().map(|c| c.bytes).sum(),
        }),
        "overviewz" => json(&overview(&report)),
        "clientsz" => return Some(clientsz(report, query, server_id, now)),
        _ => return Some(channelsz(report, query, server_id, now)),
    };
    Some(Response::json(body))
}

/// Durables that nobody holds are no subscriptions of the server, in its total.
fn active_subscriptions(channel: &ChannelReport) -> usize {
    let subs = channel.subscriptions.iter();
    subs.filter(|sub| !sub.is_offline).count()
}

pub fn overview(report: &Report) -> Overviewz {
    let now = Local::now().timestamp_nanos_opt().unwrap_or(0);
    let seconds = |at: i64| now.saturating_sub(at).max(0) as f64 / 1e9;
    let one = |channel: &ChannelReport| {
        let subs = &channel.subscriptions;
        Overview {
            name: channel.name.clone(),
            msgs: channel.msgs,
            bytes: channel.bytes,
            first_seq: channel.first_seq,
            last_seq: channel.last_seq,
            subscriptions: subs.len(),
            offline: subs.iter().filter(|sub| sub.is_offline).count(),
            stalled: subs.iter().filter(|sub| sub.is_stalled).count(),
            pending: subs.iter().map(|sub| sub.pending_count).sum(),
            acknowledged: channel.acknowledged,
            redelivered: channel.redelivered,
            dead_lettered: channel.dead_lettered,
            oldest_unacked_seconds: channel.oldest_unacked.map(seconds),
        }
    };
    Overviewz {
        cluster_id: report.cluster_id.clone(),
        store: report.store,
        clients: report.clients.len(),
        channels: report.channels.iter().map(one).collect(),
    }
}

/// What is no number is 0, and one that is too large the largest, as the original has it.
fn number(query: Query<'_>, name: &str) -> i64 {
    let text = query.get(name).unwrap_or_default();
    let number = text.parse::<i64>();
    number.unwrap_or_else(|error| match error.kind() {
        std::num::IntErrorKind::PosOverflow => i64::MAX,
        std::num::IntErrorKind::NegOverflow => i64::MIN,
        _ => 0,
    })
}

fn wants_subs(query: Query<'_>) -> bool {
    query.get("subs").as_deref() == Some("1")
}

fn client(report: &Report, client: &ClientReport, with_subs: bool) -> Clientz {
    let mut subscriptions: BTreeMap<String, Vec<Subz>> = BTreeMap::new();
    for channel in report.channels.iter().filter(|_| with_subs) {
        let own = channel.subscriptions.iter();
        for sub in own.filter(|sub| sub.client_id == client.id && !sub.is_offline) {
            let list = subscriptions.entry(channel.name.clone()).or_default();
            list.push(subscription(sub));
        }
    }
    Clientz {
        id: client.id.clone(),
        hb_inbox: client.hb_inbox.clone(),
        subscriptions,
    }
}

fn subscription(sub: &SubReport) -> Subz {
    let sub = sub.clone();
    Subz {
        client_id: sub.client_id,
        inbox: sub.inbox,
        ack_inbox: sub.ack_inbox,
        durable_name: sub.durable_name,
        queue_name: sub.queue_name,
        is_durable: sub.is_durable,
        is_offline: sub.is_offline,
        max_inflight: sub.max_inflight,
        ack_wait: sub.ack_wait,
        last_sent: sub.last_sent,
        pending_count: sub.pending_count,
        is_stalled: sub.is_stalled,
    }
}

fn clientsz(report: Report, query: Query<'_>, server_id: String, now: String) -> Response {
    let with_subs = wants_subs(query);
    if let Some(id) = query.get("client").filter(|id| !id.is_empty()) {
        return match report.clients.iter().find(|client| client.id == id) {
            Some(found) => Response::json(json(&client(&report, found, with_subs))),
            None => Response::text(404, &format!("Client {id} not found\n")),
        };
    }
    let total = report.clients.len();
    let (offset, limit, range) = page(number(query, "offset"), number(query, "limit"), total);
    let shown = report.clients[range].iter();
    let clients: Vec<Clientz> = shown.map(|one| client(&report, one, with_subs)).collect();
    Response::json(json(&Clientsz {
        cluster_id: report.cluster_id.clone(),
        server_id,
        now,
        offset,
        limit,
        count: clients.len(),
        total,
        clients,
    }))
}

fn channel(channel: &ChannelReport, with_subs: bool) -> Channelz {
    let subs = channel.subscriptions.iter().filter(|_| with_subs);
    Channelz {
        name: channel.name.clone(),
        msgs: channel.msgs,
        bytes: channel.bytes,
        first_seq: channel.first_seq,
        last_seq: channel.last_seq,
        subscriptions: subs.map(subscription).collect(),
    }
}

fn channelsz(report: Report, query: Query<'_>, server_id: String, now: String) -> Response {
    let with_subs = wants_subs(query);
    if let Some(name) = query.get("channel").filter(|name| !name.is_empty()) {
        return match report.channels.iter().find(|channel| channel.name == name) {
            Some(found) => Response::json(json(&channel(found, with_subs))),
            None => Response::text(404, &format!("Channel {name} not found\n")),
        };
    }
    let total = report.channels.len();
    let (offset, limit, range) = page(number(query, "offset"), number(query, "limit"), total);
    let shown = &report.channels[range];
    let mut answer = Channelsz {
        cluster_id: report.cluster_id.clone(),
        server_id,
        now,
        offset,
        limit,
        count: shown.len(),
        total,
        ..Channelsz::default()
    };
    match with_subs {
        true => answer.channels = shown.iter().map(|one| channel(one, true)).collect(),
        false => answer.names = shown.iter().map(|one| one.name.clone()).collect(),
    }
    Response::json(json(&answer))
}

fn limits(options: &StreamingOptions) -> StoreLimits {
    let of = |limits: ChannelLimits| Limits {
        max_msgs: limits.messages,
        max_bytes: limits.bytes,
        max_age: limits.age,
        max_subscriptions: limits.subscriptions,
        max_inactivity: limits.inactivity,
    };
    let (all, entries) = super::limits::all(options);
    let entries = entries.into_iter();
    StoreLimits {
        max_channels: options.max_channels,
        channel: of(all),
        channels: entries.map(|(name, limits)| (name, of(limits))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_is_asked_for_pages_that_show_something_of_it() {
        let about = About {
            options: StreamingOptions::default(),
            server_id: "S".into(),
        };
        let of = |path: &str| {
            let mut asked = false;
            let report = || {
                asked = true;
                None
            };
            let page = document(
                &about,
                report,
                path,
                Query(""),
                Local::now(),
                Duration::ZERO,
            );
            (page.map(|page| page.status), asked)
        };
        assert_eq!(of("/streaming"), (Some(200), false));
        for path in ["/streaming/", "/streaming/nothing", "/streamingz"] {
            assert_eq!(of(path), (None, false), "{path}");
        }
        assert_eq!(of("/streaming/storez"), (Some(500), true));
    }

    #[test]
    fn the_total_of_subscriptions_is_of_those_that_somebody_holds() {
        let sub = |is_offline| SubReport {
            is_offline,
            ..SubReport::default()
        };
        let report = || {
            Some(Report {
                channels: vec![ChannelReport {
                    subscriptions: vec![sub(false), sub(true), sub(false)],
                    ..ChannelReport::default()
                }],
                ..Report::default()
            })
        };
        let about = About {
            options: StreamingOptions::default(),
            server_id: "S".into(),
        };
        let ask = |path: &str, query: &str| {
            let page = document(
                &about,
                report,
                path,
                Query(query),
                Local::now(),
                Duration::ZERO,
            );
            page.unwrap().body
        };
        let total = ask("/streaming/serverz", "");
        assert!(total.contains("\"subscriptions\": 2"), "{total}");
        // One by one all are there.
        let all = ask("/streaming/channelsz", "subs=1");
        assert_eq!(all.matches("is_offline").count(), 3, "{all}");
    }

    #[test]
    fn numbers_of_a_query() {
        let get = |text: &str| number(Query(text), "limit");
        assert_eq!((get("limit=5"), get("limit=x"), get("")), (5, 0, 0));
        assert_eq!(get("limit=99999999999999999999"), i64::MAX);
        assert_eq!(get("limit=-99999999999999999999"), i64::MIN);
    }
}
