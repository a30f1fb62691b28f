//! The parser by shape of message: time per message and bytes per second.

mod item;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use midge::wire::parser::{Kind, Message, Parser, Sink, Stop};
use std::hint::black_box;

const BATCH_BYTES: usize = 64 << 10;

/// Looks at what it gets and keeps nothing.
#[derive(Default)]
struct Ignore {
    messages: u64,
    bytes: usize,
}

impl Sink for Ignore {
    fn connect_only(&self) -> bool {
        false
    }
    fn headers(&self) -> bool {
        true
    }
    fn payload_bytes_max(&self) -> u64 {
        1 << 20
    }
    fn control_line_bytes_max(&self) -> usize {
        1024
    }
    fn connect(&mut self, _: &[u8]) -> Result<(), Stop> {
        Ok(())
    }
    fn info(&mut self, _: &[u8]) -> Result<(), Stop> {
        Ok(())
    }
    fn message(&mut self, message: &Message<'_>, _: Option<Bytes>) -> Result<(), Stop> {
        self.messages += 1;
        self.bytes += message.subject.len + message.tail.len;
        Ok(())
    }
    fn subscribe(&mut self, subject: &[u8], _: Option<&[u8]>, sid: &[u8]) -> Result<(), Stop> {
        self.messages += 1;
        self.bytes += subject.len() + sid.len();
        Ok(())
    }
    fn unsubscribe(&mut self, sid: &[u8], _: Option<u64>) -> Result<(), Stop> {
        self.messages += 1;
        self.bytes += sid.len();
        Ok(())
    }
    fn ping(&mut self) -> Result<(), Stop> {
        self.messages += 1;
        Ok(())
    }
    fn pong(&mut self) -> Result<(), Stop> {
        Ok(())
    }
    fn error(&mut self, _: &[u8]) -> Result<(), Stop> {
        Ok(())
    }
}

fn payload(head: &str, bytes: usize) -> Vec<u8> {
    let mut message = format!("{head}\r\n").into_bytes();
    message.resize(message.len() + bytes, b'x');
    message.extend_from_slice(b"\r\n");
    message
}

/// Name, who says it, and one message.
fn shapes() -> Vec<(&'static str, Kind, Vec<u8>)> {
    use Kind::{Client, Route};
    vec![
        ("pub-16B", Client, payload("PUB orders.eu 16", 16)),
        ("pub-128B", Client, payload("PUB orders.eu 128", 128)),
        ("pub-1024B", Client, payload("PUB orders.eu 1024", 1024)),
        (
            "pub-reply-16B",
            Client,
            payload("PUB orders.eu _INBOX.Zm9vYmFyYmF6.17 16", 16),
        ),
        (
            "pub-long-subject-16B",
            Client,
            payload(
                "PUB region.eu.country.de.city.berlin.shop.0815.orders.new 16",
                16,
            ),
        ),
        // Two blanks: left to the byte-at-a-time machine.
        ("pub-unusual-16B", Client, payload("PUB  orders.eu 16", 16)),
        (
            "hpub-16B",
            Client,
            b"HPUB orders.eu 18 34\r\nNATS/1.0\r\nA: b\r\n\r\n0123456789abcdef\r\n".to_vec(),
        ),
        ("msg-16B", Route, payload("MSG orders.eu RSID:17:4 16", 16)),
        ("sub", Client, b"SUB orders.eu.0815 workers 17\r\n".to_vec()),
        ("unsub", Client, b"UNSUB 17 1\r\n".to_vec()),
        ("ping", Client, b"PING\r\n".to_vec()),
    ]
}

fn parse(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse");
    for (name, kind, message) in shapes() {
        let count = BATCH_BYTES / message.len();
        let batch = message.repeat(count);
        group.throughput(Throughput::Bytes(message.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            let (mut parser, mut sink) = (Parser::new(kind), Ignore::default());
            item::time(bencher, count, || {
                parser.parse(black_box(&batch), &mut sink).expect("valid");
            });
            assert!(sink.messages.is_multiple_of(count as u64) && sink.bytes < usize::MAX);
        });
    }
    group.finish();
}

/// What arrives in reads that cut messages anywhere.
fn split(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse/pieces");
    let message = payload("PUB orders.eu 128", 128);
    let count = BATCH_BYTES / message.len();
    let batch = message.repeat(count);
    group.throughput(Throughput::Bytes(message.len() as u64));
    for piece_bytes in [1, 100, 1500, 16 << 10] {
        group.bench_function(BenchmarkId::from_parameter(piece_bytes), |bencher| {
            let (mut parser, mut sink) = (Parser::new(Kind::Client), Ignore::default());
            item::time(bencher, count, || {
                for piece in black_box(&batch).chunks(piece_bytes) {
                    parser.parse(piece, &mut sink).expect("valid");
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, parse, split);
criterion_main!(benches);
