//! The scenarios: what is done to the servers, and which figure comes out.

mod cluster;
mod connections;
mod flow;
mod latency;
mod slow;
mod streaming;
mod subjects;

use crate::bed::{Bed, Meter, Setup, Store};
use crate::connection::Result;
use crate::machine::Watch;
use crate::relay::Runner;
use crate::stats::Latency;
use flow::{FLOW, Flow, flow};
use std::cell::Cell;
use std::time::{Duration, Instant};

pub struct Setting<'r> {
    pub seconds: f64,
    pub quick: bool,
    /// This turn, beside those on other servers.
    pub runner: &'r Runner,
    /// Of the time that is measured.
    pub watch: Cell<Watch>,
}

/// What a turn does to its servers while it is measured is cut into slices, between which the turns on other servers have theirs: so many, if
/// nothing else is asked for.
const SLICES: u32 = 5;

/// What the slices took together.
struct Slices {
    /// By server of the bed.
    cpu_ns: Vec<f64>,
    elapsed: Duration,
}

impl Setting<'_> {
    /// For what takes its time to become even, such as a store.
    fn longer(&self) -> f64 {
        self.seconds * if self.quick { 1.0 } else { 4.0 }
    }

    /// Measures for so long, in so many slices. A slice ends when the servers have done everything it gave them; where that takes longer, there are fewer.
    fn slices(
        &self,
        bed: &Bed,
        count: u32,
        seconds: f64,
        mut slice: impl FnMut(Duration) -> Result<()>,
    ) -> Result<Slices> {
        let all = Duration::from_secs_f64(seconds);
        self.slices_while(bed, |_, elapsed| elapsed < all, || slice(all / count))
    }

    /// Slices for as long as there are to be more after so many and such a time, one at least. All that the servers use from the first to the last of
    /// them counts, between them too: what a garbage collector or a store has left to do is part of the price.
    fn slices_while(
        &self,
        bed: &Bed,
        more: impl Fn(u32, Duration) -> bool,
        mut slice: impl FnMut() -> Result<()>,
    ) -> Result<Slices> {
        self.runner.pass();
        self.watch.set(Watch::start(bed.cpu));
        let meters = (0..bed.servers.len()).map(|server| bed.meter(server));
        let meters = meters.collect::<Result<Vec<_>>>()?;
        let (mut done, mut elapsed) = (0, Duration::ZERO);
        loop {
            let start = Instant::now();
            slice()?;
            elapsed += start.elapsed();
            done += 1;
            if !more(done, elapsed) {
                break;
            }
            self.runner.pass();
        }
        let cpu_ns = meters.iter().map(Meter::cpu_ns).collect::<Result<_>>()?;
        // The others have their last slices before anything is torn down.
        self.runner.pass();
        Ok(Slices { cpu_ns, elapsed })
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

/// What a report has a line for.
pub struct Scenario {
    pub name: String,
    pub group: Group,
    pub about: String,
    pub unit: &'static str,
    /// What midge must reach, in the unit.
    pub target: Option<f64>,
    /// Where it stands on the axis of its group's plot.
    pub x: Option<f64>,
}

type Run = Box<dyn Fn(&Bed, &Setting) -> Result<Vec<Outcome>> + Send + Sync>;

/// What is done to a server in one turn, and the scenarios that have their figures from it: mostly one, and several where they would do the same to it.
pub struct Trial {
    pub setup: Setup,
    pub scenarios: Vec<Scenario>,
    /// An outcome for each of them.
    run: Run,
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
/// Of a server to itself: what begins like this is one.
pub const OF_ITS_OWN: &str = "of that ";
const OF_SEVEN: &str = "of that with 7";
const OF_EIGHT: &str = "of that with 8";
/// Of CPU times, which of a server that runs already are not known.
pub const OF_TEN: &str = "of that among 10";

/// Of a median of latencies, measured in what a sync of the same disk takes meanwhile.
pub const FDATASYNCS: &str = "p50, fdatasyncs";

/// Whether figures in this unit are compared between servers: how many times as large another server's ratio to itself is says nothing.
pub fn is_compared(unit: &str) -> bool {
    !unit.starts_with(OF_ITS_OWN)
}

impl Scenario {
    fn new(group: Group, name: impl Into<String>, about: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            group,
            about: about.into(),
            unit: PUBLISH,
            target: None,
            x: None,
        }
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

    fn x(self, x: f64) -> Self {
        Self { x: Some(x), ..self }
    }

    /// It has a trial for itself.
    fn alone(
        self,
        run: impl Fn(&Bed, &Setting) -> Result<Outcome> + Send + Sync + 'static,
    ) -> Trial {
        Trial::new([self], move |bed, setting| Ok([run(bed, setting)?]))
    }

    fn flow(self, what: Flow) -> Trial {
        self.alone(move |bed, setting| Ok(flow(bed, setting, &what)?.swap_remove(0)))
    }
}

impl Trial {
    fn new<const N: usize>(
        scenarios: [Scenario; N],
        run: impl Fn(&Bed, &Setting) -> Result<[Outcome; N]> + Send + Sync + 'static,
    ) -> Self {
        Self {
            setup: Setup::One,
            scenarios: scenarios.into(),
            run: Box::new(move |bed, setting| run(bed, setting).map(Vec::from)),
        }
    }

    fn setup(self, setup: Setup) -> Self {
        Self { setup, ..self }
    }

    /// Without the scenarios that are not wanted; None: none is.
    pub fn only(self, wanted: impl Fn(Setup, &Scenario) -> bool) -> Option<Self> {
        let wanted = |scenario: &Scenario| wanted(self.setup, scenario);
        let kept: Vec<bool> = self.scenarios.iter().map(wanted).collect();
        let scenarios = only(&kept, self.scenarios);
        let run = move |bed: &Bed, setting: &Setting| Ok(only(&kept, (self.run)(bed, setting)?));
        (!scenarios.is_empty()).then_some(Self {
            scenarios,
            run: Box::new(run),
            ..self
        })
    }

    /// An outcome for each of the scenarios.
    pub fn run(&self, bed: &Bed, setting: &Setting) -> Result<Vec<Outcome>> {
        (self.run)(bed, setting)
    }

    /// For a line that must be short.
    pub fn title(&self) -> String {
        let name = &self.scenarios[0].name;
        match self.scenarios.len() {
            1 => name.clone(),
            n => format!("{name} (+{})", n - 1),
        }
    }

    pub fn names(&self) -> String {
        let names: Vec<&str> = self.scenarios.iter().map(|one| &*one.name).collect();
        names.join(", ")
    }
}

/// Those that are kept.
fn only<T>(kept: &[bool], all: Vec<T>) -> Vec<T> {
    let pairs = all.into_iter().zip(kept);
    pairs
        .filter(|(_, kept)| **kept)
        .map(|(one, _)| one)
        .collect()
}

/// All there are, in the order of the report, but for figures that come of a turn of another section.
pub fn all() -> Vec<Trial> {
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

/// One by one.
pub fn each() -> impl Iterator<Item = Scenario> {
    all().into_iter().flat_map(|trial| trial.scenarios)
}

fn core() -> Vec<Trial> {
    let new =
        |name: &str, about: &str, target| Scenario::new(Group::Core, name, about).target(target);
    let flow = |name, about, target, what| new(name, about, target).flow(what);
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
        Trial::new(
            [
                new(
                    "cold-200k",
                    "200000 distinct subjects with a subscription each, every one once",
                    600.0,
                ),
                new("subscribe-200k", "200000 SUBs of distinct subjects", 800.0).unit("ns CPU/SUB"),
                new(
                    "subscription-memory",
                    "200000 subscriptions of distinct subjects",
                    130.0,
                )
                .unit("bytes/subscription"),
            ],
            subjects::many,
        ),
        new(
            "request-reply",
            "32 clients, one request each at a time, 16 B",
            8000.0,
        )
        .unit("ns CPU/request")
        .alone(latency::flat_out),
        flow(
            "two-loops-1-to-1",
            "1 publisher and 1 subscriber on different event loops, 16 B",
            75.0,
            FLOW,
        )
        .setup(Setup::Loops(2)),
        Trial::new(
            [
                new(
                    "route-publisher-side",
                    "across a route, 16 B: CPU of the publisher's server",
                    80.0,
                ),
                new(
                    "route-subscriber-side",
                    "across a route, 16 B: CPU of the subscriber's server",
                    60.0,
                ),
            ],
            flow::across,
        )
        .setup(Setup::Route),
        Trial::new(
            [
                new("idle-memory", "9600 idle connections", 1536.0).unit("bytes/connection"),
                Scenario::new(
                    Group::Load,
                    "connect-storm",
                    "connect, CONNECT, PING, PONG by 9600 clients, 32 at once; close",
                )
                .unit("ns CPU/connection"),
            ],
            connections::storm,
        ),
        new("accept", "connect, CONNECT, PING, PONG, close", 60_000.0)
            .unit("ns CPU/connection")
            .alone(connections::one_by_one),
    ]
}

fn payloads() -> Vec<Trial> {
    let of = |bytes: usize| {
        let about = format!("1 publisher, 1 subscriber, {bytes} B");
        let what = Flow {
            payload: bytes,
            ..FLOW
        };
        Scenario::new(Group::Payload, format!("payload-{bytes}"), about)
            .x(bytes as f64)
            .flow(what)
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

fn fan_outs() -> Vec<Trial> {
    let of = |subscribers: usize| {
        let about = format!("1 publisher, {subscribers} subscribers, 16 B");
        let what = Flow {
            subscribers,
            one_thread: true,
            ..FLOW
        };
        Scenario::new(Group::FanOut, format!("fan-out-{subscribers}"), about)
            .x(subscribers as f64)
            .flow(what)
    };
    [1, 4, 16, 64, 250, 1000].map(of).into()
}

fn loads() -> Vec<Trial> {
    let new = |name: &str, about: &str| Scenario::new(Group::Load, name, about);
    let flow = |name: &str, about: &str, what| new(name, about).flow(what);
    let among = |name: &str, idle: usize| {
        new(
            name,
            &format!("1 publisher, 1 subscriber, 16 B, among {idle} idle connections"),
        )
    };
    let slow_reader = "1 publisher, 8 subscribers, one reads 10 MB/s, and comes back when it is cut off: time per message to the others";
    let beside_reader = |name: &str, about: &str| {
        new(name, about)
            .unit(OF_EIGHT)
            .target(1.05)
            .alone(|bed, setting| slow::cost(bed, setting, slow::Slow::Reads(10_000_000)))
    };
    vec![
        Trial::new(
            [
                among("among-10-idle", 10),
                among("among-10000-idle", flow::IDLE),
                among("among-10000-idle-ratio", flow::IDLE)
                    .unit(OF_TEN)
                    .target(1.2),
            ],
            flow::among,
        ),
        new(
            "slow-consumer",
            "1 publisher, 8 subscribers, one stops reading for good: time per message to the others",
        )
        .unit(OF_SEVEN)
        .target(1.05)
        .alone(|bed, setting| slow::cost(bed, setting, slow::Slow::Silent)),
        beside_reader("slow-reader", slow_reader),
        beside_reader(
            "slow-reader-9-loops",
            &format!("each on a loop of its own: {slow_reader}"),
        )
        .setup(Setup::Loops(9)),
        new(
            "cold-200k-wildcards",
            "200000 distinct subjects, every one once, 1000 wildcard subscriptions, 16 B",
        )
        .alone(subjects::wildcards),
        new(
            "subscription-churn",
            "500 SUBs and 500 UNSUBs beside every 1000 publishes, 1 to 1, 16 B",
        )
        .unit("ns CPU/operation")
        .alone(subjects::churn),
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
        )
        .unit("ns CPU/connection")
        .alone(connections::handshakes)
        .setup(Setup::Tls),
    ]
}

fn latencies() -> Vec<Trial> {
    let of = |per_second: u64| {
        let (name, about) = (
            format!("requests-{per_second}"),
            format!("{per_second} requests a second, 16 B"),
        );
        let timed = format!("{about}, timed from when they were due");
        Trial::new(
            [
                Scenario::new(Group::Latency, &*name, timed)
                    .unit("us p50")
                    .x(per_second as f64),
                Scenario::new(Group::Load, format!("{name}-cpu"), about).unit("ns CPU/request"),
            ],
            move |bed, setting| latency::at_rate(bed, setting, per_second),
        )
    };
    [1_000, 5_000, 20_000].map(of).into()
}

fn clusters() -> Vec<Trial> {
    let new = |name: &str, about: &str| Scenario::new(Group::Cluster, name, about).unit("ms");
    let soon = |name, about| new(name, about).target(2000.0);
    let delay = |name, about| new(name, about).target(50.0);
    let trials = [
        soon("mesh-of-5", "5 servers that know one of them become a mesh").alone(cluster::mesh),
        Trial::new(
            [
                soon(
                    "join-100k",
                    "a server joins one with 100000 subscriptions: until it knows them",
                ),
                delay(
                    "join-100k-delay",
                    "the same: longest delay of a message meanwhile, on each server and across",
                ),
            ],
            cluster::join,
        ),
        Trial::new(
            [
                soon(
                    "arrive-100k",
                    "a client makes 100000 subscriptions: until the other server knows them",
                ),
                delay(
                    "arrive-100k-delay",
                    "the same: longest delay of a message meanwhile, on each server and across",
                ),
                delay(
                    "leave-100k-delay",
                    "a client with 100000 subscriptions goes: longest delay of a message meanwhile",
                ),
            ],
            cluster::come_and_go,
        ),
    ];
    let trials = trials.into_iter();
    trials.map(|trial| trial.setup(Setup::Cluster)).collect()
}

fn streaming() -> Vec<Trial> {
    let new = |name: &str, about: &str| {
        Scenario::new(Group::Streaming, name, format!("128 B, {about}")).unit("us CPU/message")
    };
    let on = |store, trial: Trial| trial.setup(Setup::Streaming(store));
    let publish = |scenario: Scenario, channels| {
        scenario.alone(move |bed, setting| streaming::publish(bed, setting, channels))
    };
    let deliver = |scenario: Scenario| scenario.alone(streaming::with_subscriber);
    // Where a start takes as long as all else, one in a turn is enough.
    let recovery = |name: &str, channels, starts| {
        let about = format!("a start on 1000000 messages, channels: {channels}");
        Trial::new(
            [
                new(name, &about).unit("ms"),
                new(&format!("{name}-memory"), &about).unit("MB"),
            ],
            move |bed, setting| streaming::recovery(bed, setting, channels, starts),
        )
    };
    let synchronous = "file store, one publish at a time";
    vec![
        on(
            Store::Memory,
            publish(
                new("stan-memory", "memory store, 1024 publishes ahead").target(1.0),
                1,
            ),
        ),
        on(
            Store::Memory,
            publish(
                new(
                    "stan-memory-16-channels",
                    "memory store, 16 channels, 1024 publishes ahead",
                ),
                16,
            ),
        ),
        on(
            Store::Memory,
            publish(
                new(
                    "stan-memory-1000-channels",
                    "memory store, 1000 channels, 1024 publishes ahead",
                ),
                1000,
            ),
        ),
        on(
            Store::File,
            publish(
                new("stan-file", "file store, 1024 publishes ahead").target(1.5),
                1,
            ),
        ),
        on(
            Store::FileUnsynced,
            publish(
                new(
                    "stan-file-no-sync",
                    "file store without sync, 1024 publishes ahead",
                ),
                1,
            ),
        ),
        on(
            Store::File,
            publish(
                new(
                    "stan-file-16-channels",
                    "file store, 16 channels, 1024 publishes ahead",
                )
                .target(2.0),
                16,
            ),
        ),
        on(
            Store::File,
            publish(
                new(
                    "stan-file-1000-channels",
                    "file store, 1000 channels, 1024 publishes ahead",
                ),
                1000,
            ),
        ),
        on(
            Store::File,
            deliver(
                new(
                    "stan-file-subscriber",
                    "file store, a subscriber acking, 1024 ahead",
                )
                .target(3.0),
            ),
        ),
        on(
            Store::Memory,
            deliver(new(
                "stan-memory-subscriber",
                "memory store, a subscriber acking, 1024 ahead",
            )),
        ),
        on(
            Store::File,
            new("stan-file-replay", "file store, replay of stored messages")
                .alone(streaming::replay),
        ),
        on(
            Store::File,
            Trial::new(
                [
                    new("stan-file-synchronous", synchronous),
                    new("stan-file-synchronous-latency", synchronous)
                        .unit(FDATASYNCS)
                        .target(1.3),
                ],
                streaming::synchronous,
            ),
        ),
        on(Store::FileUnsynced, recovery("stan-recovery", 1, 3)),
        on(
            Store::FileUnsynced,
            recovery("stan-recovery-1000-channels", 1000, 1),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::Relay;
    use std::collections::HashSet;

    /// A turn beside which there is no other.
    fn alone(runner: &Runner) -> Setting<'_> {
        Setting {
            seconds: 1.0,
            quick: true,
            runner,
            watch: Cell::new(Watch::start(0)),
        }
    }

    #[test]
    fn slices_end_when_they_have_taken_long_enough() {
        let (runner, bed) = (Relay::runners(1).remove(0), Bed::empty());
        let (setting, nap) = (alone(&runner), Duration::from_millis(5));
        let mut asked = Vec::new();
        let slices = setting.slices(&bed, 4, 0.001, |time| {
            asked.push(time);
            std::thread::sleep(nap);
            Ok(())
        });
        // The first takes longer than all should.
        assert_eq!(asked, [Duration::from_micros(250)]);
        assert!(slices.is_ok_and(|slices| slices.elapsed >= nap && slices.cpu_ns.is_empty()));
        let failed = setting.slices(&bed, 4, 1.0, |_| Err("lost".into()));
        assert_eq!(failed.err().as_deref(), Some("lost"));
    }

    #[test]
    fn names_are_unique() {
        let all: Vec<Scenario> = each().collect();
        let names: HashSet<&str> = all.iter().map(|scenario| &*scenario.name).collect();
        assert_eq!(names.len(), all.len());
    }

    #[test]
    fn a_scenario_that_is_wanted_keeps_its_own_figure() {
        let trial = || {
            let scenarios = ["a", "b", "c"].map(|name| Scenario::new(Group::Core, name, ""));
            let outcomes = |_: &Bed, _: &Setting| {
                Ok([1.0, 2.0, 3.0].map(|figure| Outcome {
                    figure,
                    ..Outcome::default()
                }))
            };
            Trial::new(scenarios, outcomes).setup(Setup::Tls)
        };
        let bed = Bed::empty();
        let runner = Relay::runners(1).remove(0);
        let setting = alone(&runner);
        let of = |names: &[&str]| {
            let trial =
                trial().only(|setup, one| setup == Setup::Tls && names.contains(&&*one.name))?;
            let outcomes = trial.run(&bed, &setting).unwrap();
            let figures: Vec<f64> = outcomes.iter().map(|outcome| outcome.figure).collect();
            Some((trial.names(), figures))
        };
        assert_eq!(of(&["a", "c"]), Some(("a, c".into(), vec![1.0, 3.0])));
        assert_eq!(of(&["b"]), Some(("b".into(), vec![2.0])));
        assert_eq!(of(&["d"]), None);
    }
}
