//! The scenarios: what is published to whom, and which figure comes out.

use crate::load::{Connection, Crowd, Publisher, Result, Subscriber, wait_for};
use crate::server::Server;
use std::time::{Duration, Instant};

pub struct Setting {
    pub seconds: f64,
    pub quick: bool,
}

/// What one run measured.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// In the scenario's unit.
    pub figure: f64,
    /// Operations (publishes, requests, ...) per second of wall time; 0 where that means nothing.
    pub rate: f64,
}

pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    pub unit: &'static str,
    /// What midge must reach, in the unit.
    pub target: f64,
    pub run: fn(&Server, &Setting) -> Result<Outcome>,
}

const NS: &str = "ns CPU/publish";

pub static SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "publish-only",
        about: "1 publisher, nobody interested, 16 B",
        unit: NS,
        target: 28.0,
        run: |s, t| {
            flow(
                s,
                t,
                &Flow {
                    subscribers: 0,
                    ..FLOW
                },
            )
        },
    },
    Scenario {
        name: "1-to-1",
        about: "1 publisher, 1 subscriber, 16 B",
        unit: NS,
        target: 60.0,
        run: |s, t| flow(s, t, &FLOW),
    },
    Scenario {
        name: "1-to-8",
        about: "1 publisher, 8 subscribers, 16 B",
        unit: NS,
        target: 200.0,
        run: |s, t| {
            flow(
                s,
                t,
                &Flow {
                    subscribers: 8,
                    ..FLOW
                },
            )
        },
    },
    Scenario {
        name: "8-to-8-own",
        about: "8 publishers, each with a subscriber of its own, 16 B",
        unit: NS,
        target: 60.0,
        run: |s, t| {
            flow(
                s,
                t,
                &Flow {
                    publishers: 8,
                    subscribers: 8,
                    own_subjects: true,
                    ..FLOW
                },
            )
        },
    },
    Scenario {
        name: "1-to-1-1024B",
        about: "1 publisher, 1 subscriber, 1024 B",
        unit: NS,
        target: 1000.0,
        run: |s, t| {
            flow(
                s,
                t,
                &Flow {
                    payload: 1024,
                    ..FLOW
                },
            )
        },
    },
    Scenario {
        name: "4-to-4-shared",
        about: "4 publishers, 4 subscribers, one subject, 128 B",
        unit: NS,
        target: 230.0,
        run: |s, t| {
            flow(
                s,
                t,
                &Flow {
                    publishers: 4,
                    subscribers: 4,
                    payload: 128,
                    ..FLOW
                },
            )
        },
    },
    Scenario {
        name: "queue-of-4",
        about: "1 publisher, a queue group of 4, 16 B",
        unit: NS,
        target: 75.0,
        run: |s, t| {
            flow(
                s,
                t,
                &Flow {
                    subscribers: 4,
                    queue: true,
                    ..FLOW
                },
            )
        },
    },
    Scenario {
        name: "1000-subjects",
        about: "1000 subjects in turn, a subscription each, 16 B",
        unit: NS,
        target: 90.0,
        run: |s, t| {
            flow(
                s,
                t,
                &Flow {
                    subjects: 1000,
                    ..FLOW
                },
            )
        },
    },
    Scenario {
        name: "10000-subjects",
        about: "10000 subjects in turn, a subscription each, 16 B",
        unit: NS,
        target: 150.0,
        run: |s, t| {
            flow(
                s,
                t,
                &Flow {
                    subjects: 10_000,
                    ..FLOW
                },
            )
        },
    },
    Scenario {
        name: "10000-wildcard",
        about: "10000 subjects in turn, one wildcard subscription, 16 B",
        unit: NS,
        target: 120.0,
        run: |s, t| {
            flow(
                s,
                t,
                &Flow {
                    subjects: 10_000,
                    wildcard: true,
                    ..FLOW
                },
            )
        },
    },
    Scenario {
        name: "cold-200k",
        about: "200000 distinct subjects with a subscription each, every one once",
        unit: NS,
        target: 600.0,
        run: cold,
    },
    Scenario {
        name: "subscribe-200k",
        about: "200000 SUBs of distinct subjects",
        unit: "ns CPU/SUB",
        target: 800.0,
        run: subscribe,
    },
    Scenario {
        name: "request-reply",
        about: "32 clients, one request each at a time, 16 B",
        unit: "ns CPU/request",
        target: 8000.0,
        run: requests,
    },
    Scenario {
        name: "idle-memory",
        about: "10000 idle connections",
        unit: "bytes/connection",
        target: 1536.0,
        run: |s, t| connections(s, t, |c| c.memory),
    },
    Scenario {
        name: "subscription-memory",
        about: "200000 subscriptions of distinct subjects",
        unit: "bytes/subscription",
        target: 130.0,
        run: subscription_memory,
    },
    Scenario {
        name: "accept",
        about: "connect, CONNECT, PING, PONG, close",
        unit: "ns CPU/connection",
        target: 60_000.0,
        run: |s, t| connections(s, t, |c| c.cpu),
    },
];

struct Flow {
    publishers: usize,
    /// 0: nobody is interested.
    subscribers: usize,
    payload: usize,
    subjects: usize,
    own_subjects: bool,
    queue: bool,
    wildcard: bool,
}

const FLOW: Flow = Flow {
    publishers: 1,
    subscribers: 1,
    payload: 16,
    subjects: 1,
    own_subjects: false,
    queue: false,
    wildcard: false,
};

fn subject(number: usize) -> String {
    format!("b.{number:06}")
}

/// A message as a subscriber of ours sees it; widths are what counts.
fn sample(payload: usize) -> Vec<u8> {
    let mut message = format!("MSG {} {:06} {payload}\r\n", subject(0), 0).into_bytes();
    message.resize(message.len() + payload, b'x');
    message.extend_from_slice(b"\r\n");
    message
}

fn flow(server: &Server, setting: &Setting, flow: &Flow) -> Result<Outcome> {
    let address = server.address();
    let message = sample(flow.payload);
    let queue = if flow.queue { "group " } else { "" };
    let mut subscribers = Vec::new();
    for index in 0..flow.subscribers {
        let lines: String = if flow.wildcard {
            format!("SUB b.* {:06}\r\n", 1)
        } else if flow.own_subjects {
            format!("SUB {} {queue}{:06}\r\n", subject(index), 1)
        } else {
            (0..flow.subjects)
                .map(|n| format!("SUB {} {queue}{n:06}\r\n", subject(n)))
                .collect()
        };
        subscribers.push(Subscriber::new(address, &lines, message.clone())?);
    }
    let mut publishers = Vec::new();
    for index in 0..flow.publishers {
        let subjects: Vec<String> = match flow.own_subjects {
            true => vec![subject(index)],
            false => (0..flow.subjects).map(subject).collect(),
        };
        publishers.push(Publisher::new(address, &subjects, flow.payload)?);
    }
    let copies = match (flow.subscribers, flow.own_subjects || flow.queue) {
        (0, _) => 0,
        (_, true) => 1,
        (n, false) => n as u64,
    };
    let mut total = 0;
    let mut publish = |seconds: f64| -> Result<u64> {
        let until = Instant::now() + Duration::from_secs_f64(seconds);
        let published: Vec<Result<u64>> = std::thread::scope(|scope| {
            let running: Vec<_> = publishers
                .iter_mut()
                .map(|p| scope.spawn(move || p.run(until)))
                .collect();
            running
                .into_iter()
                .map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|_| Err("a publisher panicked".into()))
                })
                .collect()
        });
        let published = published.into_iter().sum::<Result<u64>>()?;
        total += published * copies * message.len() as u64;
        wait_for(&subscribers, total)?;
        Ok(published)
    };
    publish(setting.seconds / 5.0)?; // warm-up
    let (cpu, start) = (server.cpu_ns(), Instant::now());
    let published = publish(setting.seconds)?;
    let (elapsed, cpu) = (start.elapsed().as_secs_f64(), server.cpu_ns() - cpu);
    for subscriber in subscribers {
        subscriber.finish()?;
    }
    Ok(Outcome {
        figure: cpu as f64 / published as f64,
        rate: published as f64 / elapsed,
    })
}

fn many(setting: &Setting) -> usize {
    if setting.quick { 20_000 } else { 200_000 }
}

fn all_subscriptions(count: usize) -> String {
    (0..count)
        .map(|n| format!("SUB {} {n:06}\r\n", subject(n)))
        .collect()
}

fn cold(server: &Server, setting: &Setting) -> Result<Outcome> {
    let count = many(setting);
    // A stride that shares no factor with the count visits every subject in no helpful order.
    let subjects: Vec<String> = (0..count).map(|n| subject(n * 7919 % count)).collect();
    let subscriber = Subscriber::new(server.address(), &all_subscriptions(count), sample(16))?;
    let mut publisher = Publisher::new(server.address(), &subjects, 16)?;
    let (cpu, start) = (server.cpu_ns(), Instant::now());
    let published = publisher.run_once()?;
    wait_for(
        std::slice::from_ref(&subscriber),
        published * sample(16).len() as u64,
    )?;
    let (elapsed, cpu) = (start.elapsed().as_secs_f64(), server.cpu_ns() - cpu);
    subscriber.finish()?;
    Ok(Outcome {
        figure: cpu as f64 / published as f64,
        rate: published as f64 / elapsed,
    })
}

fn subscribe(server: &Server, setting: &Setting) -> Result<Outcome> {
    let count = many(setting);
    let lines = all_subscriptions(count);
    let mut connection = Connection::open(server.address())?;
    let (cpu, start) = (server.cpu_ns(), Instant::now());
    connection.write(lines.as_bytes())?;
    connection.settle()?;
    let (elapsed, cpu) = (start.elapsed().as_secs_f64(), server.cpu_ns() - cpu);
    Ok(Outcome {
        figure: cpu as f64 / count as f64,
        rate: count as f64 / elapsed,
    })
}

fn subscription_memory(server: &Server, setting: &Setting) -> Result<Outcome> {
    let count = many(setting);
    let mut connection = Connection::open(server.address())?;
    let before = server.memory();
    connection.write(all_subscriptions(count).as_bytes())?;
    connection.settle()?;
    Ok(Outcome {
        figure: server.memory().saturating_sub(before) as f64 / count as f64,
        rate: 0.0,
    })
}

/// All clients and the responder in one thread, so that the server is not charged with waking up
/// one thread of ours per message.
fn requests(server: &Server, setting: &Setting) -> Result<Outcome> {
    const CLIENTS: usize = 32;
    let mut all = Vec::new();
    for index in 0..=CLIENTS {
        let mut connection = Connection::open(server.address())?;
        let line = match index {
            CLIENTS => "SUB service 1\r\n".to_owned(),
            _ => format!("SUB _INBOX.{index:04} 1\r\n"),
        };
        connection.write(line.as_bytes())?;
        connection.settle()?;
        all.push(connection);
    }
    let mut crowd = Crowd::new(all)?;
    let request =
        |index: usize| format!("PUB service _INBOX.{index:04} 16\r\n0123456789abcdef\r\n");
    let mut ask = |seconds: f64| -> Result<u64> {
        let until = Instant::now() + Duration::from_secs_f64(seconds);
        for index in 0..CLIENTS {
            crowd.write(index, request(index).as_bytes())?;
        }
        let (mut done, mut waiting) = (0, CLIENTS);
        let mut reply = None;
        crowd.serve(|index, line, answer| {
            match (line.split(' ').collect::<Vec<_>>().as_slice(), index) {
                (["MSG", "service", _, inbox, _], CLIENTS) => reply = Some((*inbox).to_owned()),
                (["0123456789abcdef"], CLIENTS) => {
                    let inbox = reply.take().ok_or("a payload without its head")?;
                    answer.extend_from_slice(format!("PUB {inbox} 16\r\n{line}\r\n").as_bytes());
                }
                (["MSG", inbox, _, "16"], _) if *inbox == format!("_INBOX.{index:04}") => {}
                (["0123456789abcdef"], _) => {
                    done += 1;
                    match Instant::now() < until {
                        true => answer.extend_from_slice(request(index).as_bytes()),
                        false => waiting -= 1,
                    }
                }
                _ => return Err(format!("a wrong answer: {line}")),
            }
            Ok(waiting > 0)
        })?;
        Ok(done)
    };
    ask(setting.seconds / 5.0)?;
    let (cpu, start) = (server.cpu_ns(), Instant::now());
    let done = ask(setting.seconds)?;
    let (elapsed, cpu) = (start.elapsed().as_secs_f64(), server.cpu_ns() - cpu);
    Ok(Outcome {
        figure: cpu as f64 / done as f64,
        rate: done as f64 / elapsed,
    })
}

struct Cost {
    memory: f64,
    cpu: f64,
}

fn connections(server: &Server, setting: &Setting, figure: fn(&Cost) -> f64) -> Result<Outcome> {
    let count = if setting.quick { 500 } else { 9_500 };
    let (memory, cpu, start) = (server.memory(), server.cpu_ns(), Instant::now());
    let mut open = Vec::new();
    for _ in 0..count {
        open.push(Connection::open(server.address())?);
    }
    let memory = server.memory().saturating_sub(memory);
    let elapsed = start.elapsed().as_secs_f64();
    drop(open);
    // The closes are part of the price; another connection is served when they are done.
    Connection::open(server.address())?;
    std::thread::sleep(Duration::from_millis(200));
    let cpu = server.cpu_ns() - cpu;
    let per = |amount: f64| amount / count as f64;
    let cost = Cost {
        memory: per(memory as f64),
        cpu: per(cpu as f64),
    };
    Ok(Outcome {
        figure: figure(&cost),
        rate: count as f64 / elapsed,
    })
}
