//! The scenarios: what is done to the servers, and which figure comes out.

mod cluster;
mod connections;
mod flow;
mod latency;
mod slow;
mod streaming;
mod subjects;

use crate::bed::{Bed, Setup, Store};
use crate::connection::Result;
use crate::stats::Latency;
use cluster::Burst;
use flow::{FLOW, Flow, flow};
use std::time::Duration;
use streaming::Recovery;

pub struct Setting {
    pub seconds: f64,
    pub quick: bool,
}

impl Setting {
    /// For what takes its time to become even, such as a store.
    fn longer(&self) -> f64 {
        self.seconds * if self.quick { 1.0 } else { 4.0 }
    }

    /// A number of things, fewer of them for a quick look.
    fn scaled(&self, many: usize) -> usize {
        if self.quick { many / 10 } else { many }
    }
}

/// What one run measured.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// In the scenario's unit.
    pub figure: f64,
    /// Operations (publishes, requests, ...) per second of wall time; 0 where that means nothing.
    pub rate: f64,
    /// Payload bytes delivered per second; 0 where that means nothing.
    pub bytes_rate: f64,
    pub latency: Option<Latency>,
    /// Bytes, of the server that was measured, where that is not the first of its bed.
    pub peak_memory: Option<u64>,
}

impl Outcome {
    fn of(figure: f64, operations: u64, elapsed: Duration) -> Self {
        Self {
            figure,
            rate: operations as f64 / elapsed.as_secs_f64(),
            ..Self::default()
        }
    }
}

pub type Run = Box<dyn Fn(&Bed, &Setting) -> Result<Outcome>>;

pub struct Scenario {
    pub name: String,
    pub group: Group,
    pub about: String,
    pub unit: &'static str,
    /// What midge must reach, in the unit.
    pub target: Option<f64>,
    pub setup: Setup,
    /// Where it stands on the axis of its group's plot.
    pub x: Option<f64>,
    pub run: Run,
}

/// Sections of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    Core,
    Payload,
    FanOut,
    Load,
    Latency,
    Cluster,
    Streaming,
}

impl Group {
    pub const ALL: [Self; 7] = [
        Self::Core,
        Self::Payload,
        Self::FanOut,
        Self::Load,
        Self::Latency,
        Self::Cluster,
        Self::Streaming,
    ];

    pub fn title(self) -> &'static str {
        match self {
            Self::Core => "Core",
            Self::Payload => "Payload sizes, 1 publisher to 1 subscriber",
            Self::FanOut => "Fan-out, 1 publisher, 16 B",
            Self::Load => "Under odd loads",
            Self::Latency => "Latency of requests at a fixed rate",
            Self::Cluster => "Clusters that form",
            Self::Streaming => "NATS Streaming",
        }
    }
}

const PUBLISH: &str = "ns CPU/publish";
/// A ratio already, of a server to itself undisturbed: how many times as large that of another server is says nothing.
pub const OF_ITS_OWN: &str = "of that with 7";

impl Scenario {
    fn new(
        group: Group,
        name: impl Into<String>,
        about: impl Into<String>,
        run: impl Fn(&Bed, &Setting) -> Result<Outcome> + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            group,
            about: about.into(),
            unit: PUBLISH,
            target: None,
            setup: Setup::One,
            x: None,
            run: Box::new(run),
        }
    }

    fn flow(group: Group, name: impl Into<String>, about: impl Into<String>, what: Flow) -> Self {
        Self::new(group, name, about, move |bed, setting| {
            flow(bed, setting, &what)
        })
    }

    fn unit(self, unit: &'static str) -> Self {
        Self { unit, ..self }
    }

    fn target(self, target: f64) -> Self {
        Self {
            target: Some(target),
            ..self
        }
    }

    fn setup(self, setup: Setup) -> Self {
        Self { setup, ..self }
    }

    fn x(self, x: f64) -> Self {
        Self { x: Some(x), ..self }
    }
}

/// All there are, in the order of the report.
pub fn all() -> Vec<Scenario> {
    let groups = [
        core(),
        payloads(),
        fan_outs(),
        loads(),
        latencies(),
        clusters(),
        streaming(),
    ];
    groups.into_iter().flatten().collect()
}

fn core() -> Vec<Scenario> {
    let flow =
        |name, about, target, what| Scenario::flow(Group::Core, name, about, what).target(target);
    let subscribers = |subscribers| Flow {
        subscribers,
        ..FLOW
    };
    let subjects = |subjects, wildcard| Flow {
        subjects,
        wildcard,
        ..FLOW
    };
    let own = Flow {
        publishers: 8,
        subscribers: 8,
        own_subjects: true,
        ..FLOW
    };
    let shared = Flow {
        publishers: 4,
        subscribers: 4,
        payload: 128,
        ..FLOW
    };
    let kilobyte = Flow {
        payload: 1024,
        ..FLOW
    };
    let queue = Flow {
        subscribers: 4,
        queue: true,
        ..FLOW
    };
    let other = |name, about, unit, target, run: fn(&Bed, &Setting) -> Result<Outcome>| {
        Scenario::new(Group::Core, name, about, run)
            .unit(unit)
            .target(target)
    };
    vec![
        flow(
            "publish-only",
            "1 publisher, nobody interested, 16 B",
            28.0,
            subscribers(0),
        ),
        flow("1-to-1", "1 publisher, 1 subscriber, 16 B", 60.0, FLOW),
        flow(
            "1-to-8",
            "1 publisher, 8 subscribers, 16 B",
            200.0,
            subscribers(8),
        ),
        flow(
            "8-to-8-own",
            "8 publishers, each with a subscriber of its own, 16 B",
            60.0,
            own,
        ),
        flow(
            "1-to-1-1024B",
            "1 publisher, 1 subscriber, 1024 B",
            1000.0,
            kilobyte,
        ),
        flow(
            "4-to-4-shared",
            "4 publishers, 4 subscribers, one subject, 128 B",
            230.0,
            shared,
        ),
        flow(
            "queue-of-4",
            "1 publisher, a queue group of 4, 16 B",
            75.0,
            queue,
        ),
        flow(
            "1000-subjects",
            "1000 subjects in turn, a subscription each, 16 B",
            90.0,
            subjects(1000, false),
        ),
        flow(
            "10000-subjects",
            "10000 subjects in turn, a subscription each, 16 B",
            150.0,
            subjects(10_000, false),
        ),
        flow(
            "10000-wildcard",
            "10000 subjects in turn, one wildcard subscription, 16 B",
            120.0,
            subjects(10_000, true),
        ),
        other(
            "cold-200k",
            "200000 distinct subjects with a subscription each, every one once",
            PUBLISH,
            600.0,
            subjects::cold,
        ),
        other(
            "subscribe-200k",
            "200000 SUBs of distinct subjects",
            "ns CPU/SUB",
            800.0,
            subjects::subscribe,
        ),
        other(
            "request-reply",
            "32 clients, one request each at a time, 16 B",
            "ns CPU/request",
            8000.0,
            latency::flat_out,
        ),
        flow(
            "two-loops-1-to-1",
            "1 publisher and 1 subscriber on different event loops, 16 B",
            75.0,
            FLOW,
        )
        .setup(Setup::Loops(2)),
        flow(
            "route-publisher-side",
            "across a route, 16 B: CPU of the publisher's server",
            80.0,
            Flow { far: true, ..FLOW },
        )
        .setup(Setup::Route),
        flow(
            "route-subscriber-side",
            "across a route, 16 B: CPU of the subscriber's server",
            60.0,
            Flow {
                far: true,
                meter: 1,
                ..FLOW
            },
        )
        .setup(Setup::Route),
        other(
            "idle-memory",
            "10000 idle connections",
            "bytes/connection",
            1536.0,
            |b, s| connections::cost(b, s, 9_500, |c| c.memory),
        ),
        other(
            "subscription-memory",
            "200000 subscriptions of distinct subjects",
            "bytes/subscription",
            130.0,
            subjects::memory,
        ),
        other(
            "accept",
            "connect, CONNECT, PING, PONG, close",
            "ns CPU/connection",
            60_000.0,
            |b, s| connections::cost(b, s, 2_000, |c| c.cpu),
        ),
    ]
}

fn payloads() -> Vec<Scenario> {
    let of = |bytes: usize| {
        let about = format!("1 publisher, 1 subscriber, {bytes} B");
        let what = Flow {
            payload: bytes,
            ..FLOW
        };
        Scenario::flow(Group::Payload, format!("payload-{bytes}"), about, what).x(bytes as f64)
    };
    [
        0,
        16,
        128,
        1024,
        4096,
        16 << 10,
        64 << 10,
        256 << 10,
        1 << 20,
    ]
    .map(of)
    .into()
}

fn fan_outs() -> Vec<Scenario> {
    let of = |subscribers: usize| {
        let about = format!("1 publisher, {subscribers} subscribers, 16 B");
        let what = Flow {
            subscribers,
            one_thread: true,
            ..FLOW
        };
        Scenario::flow(Group::FanOut, format!("fan-out-{subscribers}"), about, what)
            .x(subscribers as f64)
    };
    [1, 4, 16, 64, 250, 1000].map(of).into()
}

fn loads() -> Vec<Scenario> {
    let new = |name: &str, about: &str, run: fn(&Bed, &Setting) -> Result<Outcome>| {
        Scenario::new(Group::Load, name, about, run)
    };
    let flow = |name: &str, about: &str, what| Scenario::flow(Group::Load, name, about, what);
    let among = |name: &str, idle: usize| {
        let about = format!("1 publisher, 1 subscriber, 16 B, among {idle} idle connections");
        flow(name, &about, Flow { idle, ..FLOW })
    };
    vec![
        among("among-10-idle", 10),
        among("among-10000-idle", 9_900),
        new(
            "slow-consumer",
            "1 publisher, 8 subscribers, one stops reading: time per message to the others",
            |bed, setting| slow::cost(bed, setting, slow::Slow::Silent),
        )
        .unit(OF_ITS_OWN)
        .target(1.05),
        new(
            "slow-reader-9-loops",
            "1 publisher, 8 subscribers, each on a loop of its own, one reads 10 MB/s: time per message to the others",
            |bed, setting| slow::cost(bed, setting, slow::Slow::Reads(10_000_000)),
        )
        .unit(OF_ITS_OWN)
        .setup(Setup::Loops(9)),
        new(
            "connect-storm",
            "connect, CONNECT, PING, PONG by 9600 clients, 32 at once; close",
            connections::storm,
        )
        .unit("ns CPU/connection"),
        new(
            "subscription-churn",
            "500 SUBs and 500 UNSUBs beside every 1000 publishes, 1 to 1, 16 B",
            subjects::churn,
        )
        .unit("ns CPU/operation"),
        flow(
            "permissions",
            "1000 subjects in turn, one wildcard subscription, of a user with 8 permitted subjects, 16 B",
            Flow {
                subjects: 1000,
                wildcard: true,
                ..FLOW
            },
        )
        .setup(Setup::Permissions),
        flow(
            "tls-1-to-1",
            "TLS 1.3: 1 publisher, 1 subscriber, 16 B",
            FLOW,
        )
        .setup(Setup::Tls),
        flow(
            "tls-1-to-1-1024B",
            "TLS 1.3: 1 publisher, 1 subscriber, 1024 B",
            Flow {
                payload: 1024,
                ..FLOW
            },
        )
        .setup(Setup::Tls),
        new(
            "tls-handshake",
            "TLS 1.3 handshake, CONNECT, PING, PONG, close",
            connections::handshakes,
        )
        .unit("ns CPU/connection")
        .setup(Setup::Tls),
    ]
}

fn latencies() -> Vec<Scenario> {
    let of = |per_second: u64| {
        let about = format!("{per_second} requests a second, 16 B, timed from when they were due");
        Scenario::new(
            Group::Latency,
            format!("requests-{per_second}"),
            about,
            move |bed, setting| latency::at_rate(bed, setting, per_second),
        )
        .unit("us p50")
        .x(per_second as f64)
    };
    [1_000, 5_000, 20_000].map(of).into()
}

fn clusters() -> Vec<Scenario> {
    let new = |name: &str, about: &str, target, run: fn(&Bed, &Setting) -> Result<Outcome>| {
        Scenario::new(Group::Cluster, name, about, run)
            .unit("ms")
            .target(target)
            .setup(Setup::Cluster)
    };
    vec![
        new(
            "mesh-of-5",
            "5 servers that know one of them become a mesh",
            2000.0,
            cluster::mesh,
        ),
        new(
            "join-100k",
            "a server joins one with 100000 subscriptions: until it knows them",
            2000.0,
            |bed, setting| cluster::storm_settles(bed, setting, Burst::Join),
        ),
        new(
            "join-100k-delay",
            "the same: longest delay of a message meanwhile, on each server and across",
            50.0,
            |bed, setting| cluster::storm_delay(bed, setting, Burst::Join),
        ),
        new(
            "arrive-100k",
            "a client makes 100000 subscriptions: until the other server knows them",
            2000.0,
            |bed, setting| cluster::storm_settles(bed, setting, Burst::Arrive),
        ),
        new(
            "arrive-100k-delay",
            "the same: longest delay of a message meanwhile, on each server and across",
            50.0,
            |bed, setting| cluster::storm_delay(bed, setting, Burst::Arrive),
        ),
        new(
            "leave-100k-delay",
            "a client with 100000 subscriptions goes: longest delay of a message meanwhile",
            50.0,
            |bed, setting| cluster::storm_delay(bed, setting, Burst::Leave),
        ),
    ]
}

fn streaming() -> Vec<Scenario> {
    let new = |name: &str, about: &str, store, target, run: Run| Scenario {
        name: name.into(),
        group: Group::Streaming,
        about: format!("128 B, {about}"),
        unit: "us CPU/message",
        target,
        setup: Setup::Streaming(store),
        x: None,
        run,
    };
    let publish = |channels| -> Run {
        Box::new(move |bed, setting| streaming::publish(bed, setting, channels, 1024))
    };
    let recovery = |name: &str, channels, what| Scenario {
        unit: match what {
            Recovery::Milliseconds => "ms",
            Recovery::PeakMegabytes => "MB",
        },
        ..new(
            name,
            &format!("a start on 1000000 messages, channels: {channels}"),
            Store::FileUnsynced,
            None,
            Box::new(move |bed, setting| streaming::recovery(bed, setting, channels, what)),
        )
    };
    let deliver = |acks| -> Run {
        Box::new(move |bed, setting| streaming::with_subscriber(bed, setting, acks))
    };
    vec![
        new(
            "stan-memory",
            "memory store, 1024 publishes ahead",
            Store::Memory,
            Some(1.0),
            publish(1),
        ),
        new(
            "stan-memory-16-channels",
            "memory store, 16 channels, 1024 publishes ahead",
            Store::Memory,
            None,
            publish(16),
        ),
        new(
            "stan-memory-1000-channels",
            "memory store, 1000 channels, 1024 publishes ahead",
            Store::Memory,
            None,
            publish(1000),
        ),
        new(
            "stan-file",
            "file store, 1024 publishes ahead",
            Store::File,
            Some(1.5),
            publish(1),
        ),
        new(
            "stan-file-no-sync",
            "file store without sync, 1024 publishes ahead",
            Store::FileUnsynced,
            None,
            publish(1),
        ),
        new(
            "stan-file-16-channels",
            "file store, 16 channels, 1024 publishes ahead",
            Store::File,
            Some(2.0),
            publish(16),
        ),
        new(
            "stan-file-1000-channels",
            "file store, 1000 channels, 1024 publishes ahead",
            Store::File,
            None,
            publish(1000),
        ),
        new(
            "stan-file-subscriber",
            "file store, a subscriber acking, 1024 ahead",
            Store::File,
            Some(3.0),
            deliver(true),
        ),
        new(
            "stan-memory-subscriber",
            "memory store, a subscriber acking, 1024 ahead",
            Store::Memory,
            None,
            deliver(true),
        ),
        new(
            "stan-file-replay",
            "file store, replay of stored messages",
            Store::File,
            None,
            Box::new(streaming::replay),
        ),
        new(
            "stan-file-synchronous",
            "file store, one publish at a time",
            Store::File,
            None,
            Box::new(|bed, setting| streaming::publish(bed, setting, 1, 1)),
        ),
        Scenario {
            unit: "p50, fdatasyncs",
            ..new(
                "stan-file-synchronous-latency",
                "file store, one publish at a time",
                Store::File,
                Some(1.3),
                Box::new(streaming::synchronous),
            )
        },
        recovery("stan-recovery", 1, Recovery::Milliseconds),
        recovery("stan-recovery-memory", 1, Recovery::PeakMegabytes),
        recovery("stan-recovery-1000-channels", 1000, Recovery::Milliseconds),
        recovery(
            "stan-recovery-1000-channels-memory",
            1000,
            Recovery::PeakMegabytes,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique() {
        let all = all();
        let names: HashSet<&str> = all.iter().map(|scenario| &*scenario.name).collect();
        assert_eq!(names.len(), all.len());
    }
}
