//! From a published message to bytes in outboxes, without sockets: encoding per receiver, and the way
//! through a mailbox to another loop.

mod item;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use midge::broker::mail::Batch;
use midge::broker::outbox::Piece;
use midge::broker::settings::Settings;
use midge::broker::{Broker, Slot};
use midge::server::mailbox::Mailbox;
use midge::util::random::Random;
use midge::util::region::RegionMut;
use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

const MESSAGES: usize = 500;

fn broker(index: u16, loops: u16, now: Instant) -> Broker {
    let region = RegionMut::map(64 << 20).expect("memory");
    let mut settings = Settings::default();
    settings.info.headers = true;
    Broker::new(
        Arc::new(settings),
        index,
        loops,
        region,
        Random::new(1),
        now,
    )
}

fn client(broker: &mut Broker, cid: u64, headers: bool, lines: &str, now: Instant) -> Slot {
    let slot = broker.open(cid, SocketAddr::from(([127, 0, 0, 1], 1)), now);
    let connect = format!(
        "CONNECT {{\"verbose\":false,\"pedantic\":false,\"headers\":{headers}}}\r\n{lines}"
    );
    broker.handle_bytes(slot, connect.as_bytes(), now);
    slot
}

/// Takes what is pending, as a flush pass does; returns how many bytes that was.
fn flush(
    broker: &mut Broker,
    dirty: &mut Vec<Slot>,
    pieces: &mut Vec<Piece>,
    now: Instant,
) -> usize {
    let mut total = 0;
    broker.end_turn();
    broker.take_dirty(dirty);
    for slot in dirty.drain(..) {
        while broker.has_output(slot) {
            pieces.clear();
            broker.start_write(slot, 1024, usize::MAX, pieces);
            let bytes = pieces.iter().map(|piece| match piece {
                Piece::Region { len, .. } => *len as usize,
                Piece::Shared(bytes) => bytes.len(),
            });
            let bytes = bytes.sum();
            broker.handle_written(slot, bytes, now);
            total += bytes;
        }
    }
    total
}

fn messages(head: &str, payload: usize) -> Vec<u8> {
    let mut one = format!("{head} {payload}\r\n").into_bytes();
    one.resize(one.len() + payload, b'x');
    one.extend_from_slice(b"\r\n");
    one.repeat(MESSAGES)
}

/// Parsing, matching and encoding for so many receivers of this size; the figure is per delivery.
fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    let now = Instant::now();
    for (receivers, payload) in [
        (1, 16),
        (1, 128),
        (1, 1024),
        (1, 32 << 10),
        (8, 16),
        (64, 16),
    ] {
        let mut broker = broker(0, 1, now);
        let publisher = client(&mut broker, 1, false, "", now);
        for cid in 0..receivers {
            client(&mut broker, cid + 2, false, "SUB orders.eu 1\r\n", now);
        }
        let batch = messages("PUB orders.eu", payload);
        let (mut dirty, mut pieces) = (Vec::new(), Vec::new());
        flush(&mut broker, &mut dirty, &mut pieces, now);
        let name = BenchmarkId::new(format!("{receivers}-receivers"), payload);
        group.bench_function(name, |bencher| {
            item::time(bencher, MESSAGES * receivers as usize, || {
                // In pieces of a recv, so that nobody is held back.
                for piece in black_box(&batch).chunks(64 << 10) {
                    broker.handle_bytes(publisher, piece, now);
                    assert!(flush(&mut broker, &mut dirty, &mut pieces, now) > 0);
                }
            });
        });
    }
    // Headers as they are, and cut off for who does not know them.
    for (name, headers) in [("headers", true), ("headers-cut-off", false)] {
        let mut broker = broker(0, 1, now);
        let publisher = client(&mut broker, 1, true, "", now);
        client(&mut broker, 2, headers, "SUB orders.eu 1\r\n", now);
        let one = b"HPUB orders.eu 18 34\r\nNATS/1.0\r\nA: b\r\n\r\n0123456789abcdef\r\n";
        let batch = one.repeat(MESSAGES);
        let (mut dirty, mut pieces) = (Vec::new(), Vec::new());
        group.bench_function(name, |bencher| {
            item::time(bencher, MESSAGES, || {
                broker.handle_bytes(publisher, black_box(&batch), now);
                assert!(flush(&mut broker, &mut dirty, &mut pieces, now) > 0);
            });
        });
    }
    group.finish();
}

/// Publisher on one loop, subscriber on the other, one batch of messages per turn.
fn mailbox(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("mailbox");
    let now = Instant::now();
    group.bench_function("empty-batch", |bencher| {
        let mailbox = Mailbox::new(2);
        bencher.iter(|| {
            mailbox.send(mailbox.spare());
            let batch = mailbox.receive().expect("just sent");
            black_box(mailbox.give_back(batch))
        });
    });
    for payload in [16, 1024, 32 << 10] {
        let (mut near, mut far) = (broker(0, 2, now), broker(1, 2, now));
        let publisher = client(&mut near, 1, false, "", now);
        client(&mut far, 2, false, "SUB orders.eu 1\r\n", now);
        far.end_turn();
        let interest = far.take_mail(0, Batch::default());
        near.handle_mail(1, &interest, now);
        let batch = messages("PUB orders.eu", payload);
        let mailbox = Mailbox::new(2);
        let (mut dirty, mut pieces) = (Vec::new(), Vec::new());
        flush(&mut near, &mut dirty, &mut pieces, now);
        flush(&mut far, &mut dirty, &mut pieces, now);
        group.bench_function(BenchmarkId::new("message", payload), |bencher| {
            item::time(bencher, MESSAGES, || {
                let mut written = 0;
                for piece in black_box(&batch).chunks(64 << 10) {
                    near.handle_bytes(publisher, piece, now);
                    near.end_turn();
                    mailbox.send(near.take_mail(1, mailbox.spare()));
                    let mail = mailbox.receive().expect("just sent");
                    far.handle_mail(0, &mail, now);
                    mailbox.give_back(mail);
                    near.set_backlog(1, mailbox.backlog(false));
                    written += flush(&mut far, &mut dirty, &mut pieces, now);
                }
                assert!(written >= MESSAGES * payload);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, encode, mailbox);
criterion_main!(benches);
