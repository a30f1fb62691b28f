//! What the shapes of recv and write cost on this machine: `cargo test --release --lib measure --
//! --ignored --nocapture --test-threads=1`. Nothing fails here; the table goes into docs/DECISIONS.md.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::Pid;

use super::{Io, Kind, Ring, RingConfig, Segment, Token, Wait};
use crate::util::region::RegionMut;

const UNIT: usize = 65536;
const UNITS: usize = 60_000;

fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).unwrap();
    // One core only: the figures are worse, the comparison holds.
    let _ = sched_setaffinity(Pid::from_raw(0), &set);
}

/// User and system time of the calling thread, in ns.
fn cpu_ns() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
    [usage.user_time(), usage.system_time()]
        .iter()
        .map(|time| time.tv_sec() as f64 * 1e9 + time.tv_usec() as f64 * 1e3)
        .sum()
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (one, listener.accept().unwrap().0)
}

fn source(mut socket: TcpStream, bytes: usize) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        pin(1);
        let block = vec![7; 256 << 10];
        let mut left = bytes;
        while left > 0 {
            let count = left.min(block.len());
            socket.write_all(&block[..count]).unwrap();
            left -= count;
        }
    })
}

fn sink(mut socket: TcpStream) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        pin(1);
        let mut block = vec![0; 256 << 10];
        while socket.read(&mut block).unwrap() > 0 {}
    })
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    Fixed,
    Region,
    Shared,
    Plain,
}

/// ns of CPU per 64 KiB received and, with a shape, as much written.
fn run(shape: Option<(Shape, usize)>, recv: Option<(u16, u32)>) -> f64 {
    pin(0);
    let mut region = RegionMut::map(4 << 20).unwrap();
    region.as_mut().fill(1);
    let keep_alive = region.keep_alive();
    let mut config = RingConfig::new(&keep_alive);
    if let Some((bufs, bytes)) = recv {
        (config.recv_bufs, config.recv_buf_bytes) = (bufs, bytes);
    }
    let mut ring = Ring::new(&config).unwrap();
    ring.register_region().unwrap();
    match shape {
        Some((Shape::Shared, _)) => ring.pretend(true, false),
        Some((Shape::Plain, _)) => ring.pretend(false, false),
        _ => {}
    }
    let segments: Vec<Segment> = match shape {
        None => Vec::new(),
        Some((Shape::Shared, n)) => (0..n)
            .map(|_| Segment::Shared(Bytes::from(vec![1; UNIT / n])))
            .collect(),
        Some((_, n)) => (0..n)
            .map(|i| Segment::Region {
                offset: (i * 3 * UNIT / n) as u32,
                len: (UNIT / n) as u32,
            })
            .collect(),
    };
    let (source_end, input) = pair();
    let (output, sink_end) = pair();
    let source = recv.map(|_| source(source_end, UNIT * UNITS));
    let sink = sink(sink_end);
    let (recv_token, write_token) = (Token::new(Kind::Recv, 0, 0), Token::new(Kind::Write, 0, 0));
    let mut out = Vec::new();
    let (mut received, mut written) = (0, 0);
    let start = cpu_ns();
    if recv.is_some() {
        ring.recv(recv_token, input.as_raw_fd());
    }
    if shape.is_some() {
        ring.write(write_token, output.as_raw_fd(), &segments);
    }
    while (recv.is_some() && received < UNIT * UNITS) || (shape.is_some() && written < UNIT * UNITS)
    {
        ring.turn(Wait::Until(Duration::from_secs(5)), &mut out)
            .unwrap();
        for completion in out.drain(..) {
            let count = completion.result.unwrap() as usize;
            if let Some(buf) = completion.buf {
                ring.recycle(buf);
                received += count;
                if received < UNIT * UNITS {
                    ring.recv(recv_token, input.as_raw_fd());
                }
            } else {
                written += count;
                if written < UNIT * UNITS {
                    ring.write(write_token, output.as_raw_fd(), &segments);
                }
            }
        }
    }
    let spent = cpu_ns() - start;
    drop(ring);
    drop(output);
    if let Some(source) = source {
        source.join().unwrap();
    }
    sink.join().unwrap();
    spent / UNITS as f64
}

#[test]
#[ignore = "a measurement"]
fn writes_and_recvs() {
    println!("write only, ns of CPU per 64 KiB");
    for n in [1, 2, 4, 16] {
        let kinds = if n == 1 {
            vec![("WriteFixed", Shape::Fixed), ("Write", Shape::Plain)]
        } else {
            vec![("WritevFixed", Shape::Region), ("Writev", Shape::Plain)]
        };
        for (name, shape) in kinds
            .into_iter()
            .chain([("Writev of Bytes", Shape::Shared)])
        {
            let runs: Vec<String> = (0..3)
                .map(|_| format!("{:6.0}", run(Some((shape, n)), None)))
                .collect();
            println!("{n:2} segments {name:16} {}", runs.join(" "));
        }
    }
    println!("recv only, ns of CPU per 64 KiB");
    for (bufs, kib) in [
        (1, 32),
        (64, 32),
        (1, 64),
        (4, 64),
        (16, 64),
        (64, 64),
        (1, 128),
        (4, 128),
        (64, 128),
        (1, 256),
        (4, 256),
        (16, 256),
    ] {
        let runs: Vec<String> = (0..3)
            .map(|_| format!("{:6.0}", run(None, Some((bufs, kib << 10)))))
            .collect();
        println!("{bufs:2} buffers of {kib:3} KiB {}", runs.join(" "));
    }
    println!("both, ns of CPU per 64 KiB in and 64 KiB out");
    for (name, shape, n) in [
        ("WriteFixed", Shape::Fixed, 1),
        ("WritevFixed", Shape::Region, 4),
        ("Writev", Shape::Plain, 4),
    ] {
        let runs: Vec<String> = (0..3)
            .map(|_| format!("{:6.0}", run(Some((shape, n)), Some((64, 65536)))))
            .collect();
        println!("{name:12} {}", runs.join(" "));
    }
}
