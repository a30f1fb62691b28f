//! Minutes of mixed load with clients that come and go: `MIDGE_SOAK_SECONDS=600 cargo test --release
//! --test soak -- --ignored --nocapture`. Those that stay lose nothing and see no disorder; memory stays flat.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};
use support::{Client, Op, Server};

#[test]
#[ignore = "takes as long as it is told to"]
fn clients_that_stay_lose_nothing() {
    let seconds = std::env::var("MIDGE_SOAK_SECONDS")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(20);
    let server = Server::start(&["--threads", "2"]);
    let stop = AtomicBool::new(false);
    let (published, churned) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut samples = Vec::new();
    std::thread::scope(|scope| {
        let subscribers: Vec<_> = (0..3)
            .map(|index| {
                let mut client = server.client();
                client.send(format!("SUB soak.{} 1\r\n", ["*", ">", "*"][index]).as_bytes());
                client.ping();
                scope.spawn(move || {
                    // The number of the next message of each publisher; the last word is "end".
                    let (mut next, mut ended) = ([0u64; 2], 0);
                    while ended < 2 {
                        let Op::Msg {
                            subject, payload, ..
                        } = client.op()
                        else {
                            continue;
                        };
                        if payload == b"end" {
                            ended += 1;
                            continue;
                        }
                        let publisher = usize::from(subject == "soak.1");
                        let number = u64::from_le_bytes(payload[..8].try_into().unwrap());
                        assert_eq!(number, next[publisher], "lost or out of order");
                        next[publisher] += 1;
                    }
                    next
                })
            })
            .collect();
        for publisher in 0..2 {
            let (server, stop, published) = (&server, &stop, &published);
            scope.spawn(move || {
                let mut client = server.client();
                let mut random = midge::util::random::Random::new(publisher);
                let mut number = 0u64;
                while !stop.load(SeqCst) {
                    for _ in 0..50 {
                        let mut payload = number.to_le_bytes().to_vec();
                        let extra = [0, 100, 2000, 60_000][random
                            .below(100)
                            .checked_sub(96)
                            .map_or(random.below(3), |_| 3)
                            as usize];
                        payload.resize(8 + extra, b'.');
                        client.publish(&format!("soak.{publisher}"), &payload);
                        number += 1;
                    }
                    client.ping();
                    published.fetch_add(50, SeqCst);
                }
                client.publish(&format!("soak.{publisher}"), b"end");
                client.ping();
            });
        }
        for seed in 0..3 {
            let (server, stop, churned) = (&server, &stop, &churned);
            scope.spawn(move || {
                let mut random = midge::util::random::Random::new(100 + seed);
                while !stop.load(SeqCst) {
                    let mut client = Client::raw(server.port);
                    let subject = ["soak.*", "soak.0", "other", "soak.>"][random.below(4) as usize];
                    let queue = ["", "q "][random.below(2) as usize];
                    client.send(format!("CONNECT {{\"verbose\":false}}\r\nSUB {subject} {queue}1\r\nUNSUB 1 20\r\n").as_bytes());
                    match random.below(4) {
                        0 => client.send(b"PUB other 100000\r\nnever finished"),
                        1 => client.send(b"GARBAGE\r\n"),
                        2 => client.ping(),
                        _ => {}
                    }
                    churned.fetch_add(1, SeqCst);
                }
            });
        }
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            std::thread::sleep(Duration::from_secs((seconds / 20).max(1)));
            samples.push(server.memory() >> 10);
        }
        stop.store(true, SeqCst);
        for subscriber in subscribers {
            let next = subscriber.join().unwrap();
            assert!(next.iter().all(|count| *count > 0));
        }
    });
    println!(
        "{} messages, {} clients came and went; memory in KiB: {samples:?}",
        published.load(SeqCst),
        churned.load(SeqCst)
    );
    let (early, late) = (samples[samples.len() / 4], samples[samples.len() - 1]);
    assert!(
        late < early + (16 << 10),
        "memory rose from {early} to {late} KiB"
    );
    server.stop();
}
