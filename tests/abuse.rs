//! Clients that misbehave harm themselves alone, and the server forgets them.

mod support;

use support::{Client, File, Op, Server, until};

#[test]
fn garbage_disturbs_nobody() {
    let server = Server::start(&["--threads", "2"]);
    let (mut subscriber, mut publisher) = (server.client(), server.client());
    subscriber.send(b"SUB ok 1\r\n");
    subscriber.ping();
    let mut random = midge::util::random::Random::new(11);
    for round in 0..300u32 {
        let mut bad = Client::raw(server.port);
        let garbage: Vec<u8> = (0..random.below(3000))
            .map(|_| random.next_u64() as u8)
            .collect();
        let _ = std::io::Write::write_all(&mut bad.stream, &garbage);
        drop(bad);
        publisher.publish("ok", &round.to_le_bytes());
        assert_eq!(subscriber.op().payload(), round.to_le_bytes());
    }
    server.stop();
}

#[test]
fn a_reset_inside_a_payload_delivers_nothing() {
    let server = Server::start(&["--threads", "2"]);
    let mut subscriber = server.client();
    subscriber.send(b"SUB x 1\r\n");
    subscriber.ping();
    for _ in 0..50 {
        let mut bad = server.client();
        bad.send(b"PUB x 100000\r\nhalf of it");
        nix::sys::socket::setsockopt(
            &bad.stream,
            nix::sys::socket::sockopt::Linger,
            &nix::libc::linger {
                l_onoff: 1,
                l_linger: 0,
            },
        )
        .unwrap();
    }
    let mut good = server.client();
    good.publish("x", b"whole");
    assert_eq!(subscriber.op().payload(), b"whole");
    server.stop();
}

#[test]
fn ten_thousand_connections_leave_nothing_behind() {
    let server = Server::start(&["--threads", "2"]);
    let round = || {
        for _ in 0..2500 {
            let mut client = server.client();
            client.send(b"SUB a.* 1\r\nSUB b q 2\r\nPUB c 3\r\nabc\r\n");
            client.ping();
        }
    };
    round();
    let before = server.memory();
    for _ in 0..3 {
        round();
    }
    // A loaded machine may take a moment to notice the last ones; the bound allows for that and for
    // receive buffers touched for the first time.
    until("memory to be back", || server.memory() < before + (8 << 20));
    server.stop();
}

#[test]
fn a_stuck_subscriber_is_cut_off_and_named() {
    let server = Server::start(&["--threads", "2"]);
    let mut stuck = Client::raw(server.port);
    stuck.send(b"CONNECT {\"verbose\":false,\"name\":\"sleepy\"}\r\nSUB flood 1\r\n");
    stuck.ping();
    let mut healthy = server.client();
    healthy.send(b"SUB flood 1\r\n");
    healthy.ping();
    const COUNT: usize = 3000;
    let reader = std::thread::spawn(move || {
        for number in 0..COUNT {
            assert_eq!(healthy.op().payload()[..8], number.to_le_bytes());
        }
    });
    let mut publisher = server.client();
    for number in 0..COUNT {
        let mut payload = number.to_le_bytes().to_vec();
        payload.resize(50_000, 0);
        publisher.publish("flood", &payload);
    }
    publisher.ping();
    reader.join().unwrap();
    until("the slow consumer in the log", || {
        let log = server.log();
        log.contains("Slow Consumer Detected") && log.contains("sleepy")
    });
    while stuck.read_op_or_cut() != Op::Eof {}
    server.stop();
}

#[test]
fn a_publisher_waits_for_a_receiver_that_reads() {
    let server = Server::start(&["--threads", "1"]);
    let mut subscriber = server.client();
    subscriber.send(b"SUB fast 1\r\n");
    subscriber.ping();
    const COUNT: usize = 40_000;
    let before = server.memory();
    let mut publisher = server.client();
    let writer = std::thread::spawn(move || {
        let mut payload = vec![0; 10_000];
        for number in 0..COUNT {
            payload[..8].copy_from_slice(&number.to_le_bytes());
            publisher.publish("fast", &payload);
        }
    });
    let mut most = 0;
    for number in 0..COUNT {
        assert_eq!(subscriber.op().payload()[..8], number.to_le_bytes());
        if number % 1000 == 0 {
            most = most.max(server.memory());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
    writer.join().unwrap();
    assert!(
        most < before + (48 << 20),
        "memory rose from {before} to {most}"
    );
    server.stop();
}

/// Half a gibibyte as a payload that never ends well, half as lines that are no protocol.
#[test]
fn a_gibibyte_of_garbage_costs_no_memory() {
    use std::io::Write;
    const HALF: usize = 512 << 20;
    let server = Server::start(&["--threads", "2"]);
    let block = vec![0xa5; 1 << 20];
    let mut good = server.client();
    good.send(b"SUB still.there 1\r\n");
    good.ping();
    let before = server.memory();
    let mut sent = 0;
    // One connection, messages of the largest size, filled with anything.
    let mut one = server.client();
    while sent < HALF {
        one.send(b"PUB nobody 1048576\r\n");
        one.send(&block);
        one.send(b"\r\n");
        sent += block.len();
    }
    one.ping();
    // Others are cut off at once; what they push into the socket until they notice is counted.
    while sent < 2 * HALF {
        let mut bad = Client::raw(server.port);
        let pushed = (0..16).take_while(|_| bad.stream.write_all(&block).is_ok());
        sent += (1 + pushed.count()) * block.len();
    }
    good.publish("still.there", b"yes");
    assert_eq!(good.op().payload(), b"yes");
    until("memory to be back", || {
        server.memory() < before + (16 << 20)
    });
    server.stop();
}

#[test]
fn half_open_peers_are_let_go() {
    let config = File::new("ping_interval: \"200ms\"\nping_max: 2\n");
    let server = Server::start(&["--threads", "2", "-c", config.path()]);
    // One says nothing any more, as a machine that lost its power; one has closed its half.
    let mut silent = server.client();
    let mut half = server.client();
    half.stream.shutdown(std::net::Shutdown::Write).unwrap();
    while half.read_op_or_cut() != Op::Eof {}
    let mut stale = false;
    loop {
        match silent.read_any() {
            Op::Eof => break,
            Op::Err(text) => stale |= text.contains("Stale Connection"),
            _ => {}
        }
    }
    assert!(stale, "the silent one was not told why it is closed");
    server.stop();
}

/// Sends bytes to the monitoring port and returns what comes until it closes, or the head of an answer.
fn http(port: u16, request: &[u8]) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
    // It may refuse while we are still writing.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => break,
            Ok(read) => answer.extend_from_slice(&chunk[..read]),
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn requests_that_are_none_do_not_stop_monitoring() {
    let port = support::free_port();
    let server = Server::start(&["-m", &port.to_string()]);
    let healthy = || {
        let answer = http(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    };
    // Heads that never end hold no one up.
    let _dripping: Vec<_> = (0..40)
        .map(|_| {
            use std::io::Write;
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.write_all(b"GET /varz HTTP/1.1\r\nX-A: b").unwrap();
            stream
        })
        .collect();
    healthy();
    let long = [
        b"GET /varz HTTP/1.1\r\nX-Long: ".as_slice(),
        &vec![b'x'; 1 << 20],
        b"\r\n\r\n",
    ]
    .concat();
    let refused = http(port, &long);
    assert!(
        refused.is_empty() || refused.starts_with("HTTP/1.1 431"),
        "{refused}"
    );
    for (request, status) in [
        // As gnatsd, which does not look at the method.
        (&b"BREW /varz HTTP/1.1\r\nHost: x\r\n\r\n"[..], "200"),
        (b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        (b"GET /connz?limit=many HTTP/1.1\r\nHost: x\r\n\r\n", "400"),
        (b"\x16\x03\x01\x00\x05hello\r\n\r\n", "400"),
        (b"GET /varz HTTP/9.9\r\n\r\n", "400"),
    ] {
        let answer = http(port, request);
        let expected = format!("HTTP/1.1 {status}");
        assert!(
            answer.starts_with(&expected),
            "{:?}: {answer}",
            request.escape_ascii().to_string()
        );
    }
    let mut random = midge::util::random::Random::new(5);
    for _ in 0..100 {
        let length = random.below(2000) as usize;
        let mut garbage: Vec<u8> = (0..length).map(|_| random.next_u64() as u8).collect();
        garbage.extend_from_slice(b"\r\n\r\n");
        http(port, &garbage);
    }
    healthy();
    server.stop();
}

#[test]
fn idle_monitoring_connections_lock_nobody_out() {
    let port = support::free_port();
    let server = Server::start(&["-m", &port.to_string()]);
    let idle: Vec<_> = (0..200)
        .map(|_| std::net::TcpStream::connect(("127.0.0.1", port)).unwrap())
        .collect();
    until("room", || {
        http(port, b"GET /varz HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("HTTP/1.1 200 OK\r\n")
    });
    drop(idle);
    server.stop();
}
