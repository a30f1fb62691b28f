//! Servers that form a cluster: what crosses a route, once, with headers, and in order, on any loops.

mod support;

use std::io::BufRead;
use support::{Client, Op, Server, free_port, until};

/// A server that takes routes; and its port for them.
fn node(routes: &[u16], threads: &str) -> (Server, u16) {
    let port = free_port();
    let cluster = format!("nats://127.0.0.1:{port}");
    let routes: Vec<String> = routes
        .iter()
        .map(|p| format!("nats://127.0.0.1:{p}"))
        .collect();
    let routes = routes.join(",");
    let arguments = [
        "--threads",
        threads,
        "--cluster",
        &cluster,
        "--routes",
        &routes,
        "-D",
    ];
    (Server::start(&arguments), port)
}

/// Waits until what one client publishes reaches the other.
fn settle(publisher: &mut Client, subscriber: &mut Client) {
    subscriber.send(b"SUB settle.me settle\r\n");
    subscriber.ping();
    until("interest to cross the route", || {
        publisher.publish("settle.me", b"");
        publisher.ping();
        subscriber.ping();
        subscriber
            .kept()
            .iter()
            .any(|op| matches!(op, Op::Msg { sid, .. } if sid == "settle"))
    });
    subscriber.send(b"UNSUB settle\r\n");
    subscriber.ping();
    subscriber.kept();
}

#[test]
fn a_cluster_has_a_name_for_clients_that_its_routes_do_not_ask_for() {
    let named = |name: &str, routes: &str| {
        let cluster = format!("nats://127.0.0.1:{}", free_port());
        let arguments = ["--cluster", &cluster, "--cluster_name", name];
        let server = Server::start(&[&arguments[..], &["--routes", routes]].concat());
        (server, cluster)
    };
    let (a, seed) = named("east", "");
    let (b, _) = named("west", &seed);
    let info = |server: &Server| {
        let mut line = String::new();
        let stream = std::net::TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        std::io::BufReader::new(stream)
            .read_line(&mut line)
            .unwrap();
        line
    };
    assert!(info(&a).contains(r#""cluster":"east""#), "{}", info(&a));
    assert!(info(&b).contains(r#""cluster":"west""#), "{}", info(&b));
    let (mut publisher, mut subscriber) = (a.client(), b.client());
    settle(&mut publisher, &mut subscriber);
    b.stop();
    a.stop();
}

#[test]
fn messages_cross_in_order_whatever_loops_they_start_and_end_on() {
    let (a, port) = node(&[], "2");
    let (b, _) = node(&[port], "2");
    let mut publishers: Vec<Client> = (0..2).map(|_| a.client()).collect();
    let mut subscribers: Vec<Client> = (0..2).map(|_| b.client()).collect();
    for subscriber in &mut subscribers {
        settle(&mut publishers[0], subscriber);
        subscriber.send(b"SUB order.* 1\r\n");
        subscriber.ping();
        settle(&mut publishers[1], subscriber);
    }
    const COUNT: u32 = 2000;
    for number in 0..COUNT {
        for (index, publisher) in publishers.iter_mut().enumerate() {
            publisher.publish(&format!("order.{index}"), &number.to_le_bytes());
        }
    }
    for subscriber in &mut subscribers {
        let mut next = [0u32; 2];
        while next != [COUNT; 2] {
            let Op::Msg {
                subject, payload, ..
            } = subscriber.op()
            else {
                continue;
            };
            let from = usize::from(subject.ends_with('1'));
            assert_eq!(payload, next[from].to_le_bytes());
            next[from] += 1;
        }
    }
    b.stop();
    a.stop();
}

#[test]
fn a_group_over_two_servers_gets_each_message_once() {
    let (a, port) = node(&[], "2");
    let (b, _) = node(&[port], "2");
    let mut publisher = a.client();
    let mut members: Vec<Client> = (0..6)
        .map(|i| if i % 2 == 0 { a.client() } else { b.client() })
        .collect();
    for member in &mut members {
        member.send(b"SUB work crew 7\r\n");
        member.ping();
    }
    let mut witness = b.client();
    settle(&mut publisher, &mut witness);
    const COUNT: usize = 3000;
    for _ in 0..COUNT {
        publisher.publish("work", b"x");
    }
    publisher.ping();
    settle(&mut publisher, &mut witness);
    let shares: Vec<usize> = members
        .iter_mut()
        .map(|member| {
            member.ping();
            member.kept().len()
        })
        .collect();
    assert_eq!(shares.iter().sum::<usize>(), COUNT, "{shares:?}");
    // Even over all members: each of six expects 500.
    assert!(
        shares.iter().all(|share| (350..650).contains(share)),
        "{shares:?}"
    );
    b.stop();
    a.stop();
}

#[test]
fn headers_cross_and_requests_without_responders_fail_at_once() {
    let (a, port) = node(&[], "1");
    let (b, _) = node(&[port], "2");
    let (mut asker, mut other) = (a.client(), b.client());
    settle(&mut asker, &mut other);
    other.send(b"SUB head 1\r\n");
    other.ping();
    settle(&mut asker, &mut other);
    asker.send(b"HPUB head 18 20\r\nNATS/1.0\r\nA: b\r\n\r\nhi\r\n");
    let Op::Msg {
        headers, payload, ..
    } = other.op()
    else {
        panic!("no message");
    };
    assert_eq!(headers, b"NATS/1.0\r\nA: b\r\n\r\n");
    assert_eq!(payload, b"hi");
    asker.send(b"SUB in.box 9\r\nPUB nobody.there in.box 0\r\n\r\n");
    asker.ping();
    let answers = asker.kept();
    let refused =
        |op: &Op| matches!(op, Op::Msg { headers, .. } if headers.starts_with(b"NATS/1.0 503"));
    assert!(answers.iter().any(refused), "{answers:?}");
    b.stop();
    a.stop();
}

#[test]
fn a_mesh_forms_from_one_seed_and_heals() {
    let (a, seed) = node(&[], "2");
    let (b, _) = node(&[seed], "1");
    let (c, c_port) = node(&[seed], "2");
    let (mut on_b, mut on_c) = (b.client(), c.client());
    settle(&mut on_b, &mut on_c);
    // Without the seed the others still know each other.
    a.stop();
    settle(&mut on_b, &mut on_c);
    drop(on_c);
    c.stop();
    let cluster = format!("nats://127.0.0.1:{c_port}");
    let seed_again = format!("nats://127.0.0.1:{seed}");
    let a = Server::start(&["--threads", "1", "--cluster", &seed_again]);
    let c = Server::start(&[
        "--threads",
        "1",
        "--cluster",
        &cluster,
        "--routes",
        &seed_again,
    ]);
    let mut on_c = c.client();
    settle(&mut on_b, &mut on_c);
    c.stop();
    b.stop();
    a.stop();
}

/// A server that does not read: the route is closed at its own bound, and clients do not notice.
#[test]
fn a_route_that_is_not_read_is_cut_off_and_local_traffic_goes_on() {
    let (port, folder) = (free_port(), tempfile::tempdir().unwrap());
    let config = folder.path().join("midge.conf");
    let text = format!(
        "write_deadline: \"60s\"\ncluster {{ listen: \"127.0.0.1:{port}\", max_pending: 4mb }}\n"
    );
    std::fs::write(&config, text).unwrap();
    let server = Server::start(&["--threads", "2", "-c", config.to_str().unwrap()]);
    let mut peer = RawRoute::connect(port);
    peer.say("SUB flood  RSID:1:1\r\nPING\r\n");
    peer.read_until("PONG\r\n");
    let (mut publisher, mut subscriber) = (server.client(), server.client());
    subscriber.send(b"SUB flood 1\r\n");
    subscriber.ping();
    publisher.publish("flood", b"first");
    assert_eq!(subscriber.op().payload(), b"first");
    peer.read_until("first\r\n");
    let before = server.memory();
    let payload = vec![b'.'; 64 << 10];
    let mut count = 0;
    while !server.log().contains("more than max_pending") {
        publisher.publish("flood", &payload);
        assert_eq!(subscriber.op().payload().len(), payload.len());
        count += 1;
        assert!(count < 4096, "256 MiB and no bound");
    }
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes for a bound of 4 MiB");
    publisher.publish("flood", b"last");
    assert_eq!(subscriber.op().payload(), b"last");
    // The same server may come again.
    let mut peer = RawRoute::connect(port);
    peer.read_until("SUB flood  RSID:");
    server.stop();
}

/// Another server, as bytes.
struct RawRoute(std::net::TcpStream);

impl RawRoute {
    fn connect(port: u16) -> Self {
        let stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
        let mut route = Self(stream);
        route.say("CONNECT {\"name\":\"raw\"}\r\nINFO {\"server_id\":\"raw\",\"host\":\"127.0.0.1\",\"port\":1}\r\n");
        route
    }

    fn say(&mut self, text: &str) {
        std::io::Write::write_all(&mut self.0, text.as_bytes()).unwrap();
    }

    fn read_until(&mut self, words: &str) {
        let mut heard = Vec::new();
        while !String::from_utf8_lossy(&heard).contains(words) {
            let mut byte = [0; 1];
            std::io::Read::read_exact(&mut self.0, &mut byte).unwrap();
            heard.push(byte[0]);
        }
    }
}

/// Five servers that know one of them. The time it takes is printed.
#[test]
fn five_servers_become_a_mesh() {
    let start = std::time::Instant::now();
    let (seed, port) = node(&[], "1");
    let mut servers = vec![seed];
    servers.extend((0..4).map(|_| node(&[port], "1").0));
    let started = start.elapsed();
    let routes = |server: &Server| server.log().matches("Registering remote route").count();
    until("four routes at each server", || {
        servers.iter().all(|server| routes(server) >= 4)
    });
    eprintln!(
        "five servers started in {started:?}, a mesh {:?} later",
        start.elapsed() - started
    );
    let mut clients: Vec<Client> = servers.iter().map(Server::client).collect();
    let (publisher, others) = clients.split_first_mut().unwrap();
    for other in others {
        settle(publisher, other);
    }
    servers.into_iter().for_each(Server::stop);
}

/// 100,000 subscriptions cross when a route forms. The time it takes is printed.
#[test]
fn many_subscriptions_cross_a_new_route() {
    let (a, port) = node(&[], "2");
    let mut subscriber = a.client();
    const COUNT: usize = 100_000;
    for sid in 0..COUNT {
        subscriber.send(format!("SUB many.{sid} {sid}\r\n").as_bytes());
    }
    subscriber.ping();
    let start = std::time::Instant::now();
    let (b, _) = node(&[port], "2");
    let mut publisher = b.client();
    let last = [0, COUNT / 2, COUNT - 1];
    until("the interest", || {
        for sid in last {
            publisher.publish(&format!("many.{sid}"), b"");
        }
        publisher.ping();
        subscriber.ping();
        subscriber.kept().len() == last.len()
    });
    eprintln!(
        "{COUNT} subscriptions crossed {:?} after the start of the second server",
        start.elapsed()
    );
    b.stop();
    a.stop();
}

/// Streaming servers of one cluster ID, with the ports of their routes.
fn streaming_arguments(port: u16, routes: u16) -> Vec<String> {
    let cluster = format!("nats://127.0.0.1:{port}");
    let routes = format!("nats://127.0.0.1:{routes}");
    ["--streaming", "--cluster", &cluster, "--routes", &routes]
        .map(str::to_owned)
        .to_vec()
}

#[test]
fn a_second_streaming_server_of_one_cluster_id_is_refused_over_a_route() {
    let (a_port, b_port) = (free_port(), free_port());
    let arguments = streaming_arguments(a_port, b_port);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let a = Server::start(&arguments);
    a.wait_log("Streaming Server is ready");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_midge"))
        .args(["-a", "127.0.0.1", "-p", "-1"])
        .args(streaming_arguments(b_port, a_port))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let words = "discovered another streaming server with cluster ID \"test-cluster\"";
    assert!(!output.status.success() && text.contains(words), "{text}");
}

#[test]
fn streaming_servers_of_one_cluster_id_that_started_alone_say_so_when_a_route_comes_up() {
    let (a_port, b_port) = (free_port(), free_port());
    let start = |port: u16| {
        let arguments = streaming_arguments(port, free_port());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let server = Server::start(&arguments);
        server.wait_log("Streaming Server is ready");
        server
    };
    let (a, b) = (start(a_port), start(b_port));
    let routes = format!("nats://127.0.0.1:{a_port},nats://127.0.0.1:{b_port}");
    let cluster = format!("nats://127.0.0.1:{}", free_port());
    let _between = Server::start(&["--cluster", &cluster, "--routes", &routes]);
    for server in [&a, &b] {
        server.wait_log("discovered another streaming server");
    }
    assert!(!a.log().contains("Failed to start"), "{}", a.log());
}
