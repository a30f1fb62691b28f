//! Streaming end to end: the promises a client relies on, over crashes, lost connections and restarts; behind another
//! NATS server; and `midge stan`.

mod support;

use midge::stan::pb;
use prost::Message;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;
use support::stan::Stan;
use support::{Client, Server, free_port, until};

fn file_server(port: u16, folder: &str, more: &[&str]) -> Server {
    let arguments = [&["-st", "FILE", "-dir", folder], more].concat();
    let server = Server::start_at(port, &arguments);
    server.wait_log("Streaming Server is ready");
    server
}

fn memory_server(more: &[&str]) -> Server {
    let server = Server::start(&[&["--streaming"], more].concat());
    server.wait_log("Streaming Server is ready");
    server
}

fn stan(server: &Server, id: &str) -> Stan {
    Stan::connect(server.client(), "test-cluster", id).unwrap()
}

#[test]
fn nothing_acknowledged_is_lost_by_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let port = free_port();
    let server = file_server(port, path, &[]);
    let mut client = stan(&server, "me");
    let durable = client
        .subscribe("foo", |r| r.durable_name = "d".into())
        .unwrap();
    for number in 1..=200u64 {
        client.publish("foo", &number.to_le_bytes()).unwrap();
    }
    for number in 1..=200 {
        assert_eq!(client.next(&durable).sequence, number);
        if number <= 120 {
            client.ack(&durable, number);
        }
    }
    client.ping();
    server.kill();

    let server = file_server(port, path, &[]);
    // The client goes on by itself: the server knows it, and so does the durable.
    client.reconnect(server.client());
    assert_eq!(client.ping(), "");
    client.publish("foo", b"more").unwrap();
    let message = client.next(&durable);
    assert_eq!((message.sequence, message.redelivered), (201, false));
    client.close();
    // As somebody who comes back: what was not acknowledged first, then what follows.
    let mut client = stan(&server, "me");
    let durable = client
        .subscribe("foo", |r| r.durable_name = "d".into())
        .unwrap();
    for number in 121..=201 {
        let message = client.next(&durable);
        assert_eq!((message.sequence, message.redelivered), (number, true));
        client.ack(&durable, number);
    }
    // Anybody else gets everything, in order.
    let all = client.subscribe("foo", |_| {}).unwrap();
    for number in 1..=200u64 {
        let message = client.next(&all);
        assert_eq!(
            (message.sequence, &message.data[..]),
            (number, &number.to_le_bytes()[..])
        );
    }
    server.stop();
}

#[test]
fn a_client_of_a_memory_server_learns_of_its_restart() {
    let port = free_port();
    let start = || {
        let server = Server::start_at(port, &["--streaming"]);
        server.wait_log("Streaming Server is ready");
        server
    };
    let server = start();
    let mut client = stan(&server, "me");
    client.publish("foo", b"x").unwrap();
    assert_eq!(client.ping(), "");
    server.kill();
    let server = start();
    client.reconnect(server.client());
    let error = client.ping();
    assert_eq!(error, "client has been replaced or is no longer registered");
}

#[test]
fn whoever_holds_an_id_keeps_it_while_it_answers() {
    let server = memory_server(&[]);
    let mut first = stan(&server, "me");
    std::thread::scope(|scope| {
        let second = scope.spawn(|| Stan::connect(server.client(), "test-cluster", "me").err());
        // It answers the probe.
        while !second.is_finished() {
            assert_eq!(first.ping(), "");
        }
        let error = second.join().unwrap();
        assert_eq!(error.as_deref(), Some("stan: clientID already registered"));
    });
    // One that does not answer any more is replaced, and told so by its next ping.
    let mut second = stan(&server, "me");
    assert_eq!(second.ping(), "");
    assert!(first.ping().contains("has been replaced"));
    let refused = first.publish("foo", b"x").unwrap_err();
    assert_eq!(refused, "stan: invalid publish request");
    second.publish("foo", b"x").unwrap();
}

/// What the engine has to say to many is much more than what it is told: neither side may wait for the other to take its part
/// first.
#[test]
fn large_messages_to_many_all_arrive() {
    const PUBLISHERS: u64 = 4;
    const MESSAGES_EACH: u64 = 10;
    let server = memory_server(&["--threads", "1"]);
    let subscribers: Vec<_> = (0..16)
        .map(|number| {
            let mut client = stan(&server, &format!("subscriber-{number}"));
            let sub = client.subscribe("foo", |_| {}).unwrap();
            (client, sub)
        })
        .collect();
    let data = vec![b'x'; 900 << 10];
    std::thread::scope(|scope| {
        for (mut client, sub) in subscribers {
            scope.spawn(move || {
                for number in 1..=PUBLISHERS * MESSAGES_EACH {
                    assert_eq!(client.next(&sub).sequence, number);
                }
            });
        }
        for number in 0..PUBLISHERS {
            let mut client = stan(&server, &format!("publisher-{number}"));
            let data = &data;
            scope.spawn(move || {
                for _ in 0..MESSAGES_EACH {
                    client.send_message("foo", data);
                }
                for _ in 0..MESSAGES_EACH {
                    client.wait_ack().unwrap();
                }
            });
        }
    });
    server.stop();
}

#[test]
fn a_thousand_subscriptions_acknowledge() {
    let server = memory_server(&["-msu", "0"]);
    let mut client = stan(&server, "me");
    let subs: Vec<_> = (0..1000)
        .map(|_| client.subscribe("foo", |r| r.max_in_flight = 1).unwrap())
        .collect();
    for _ in 0..5 {
        client.send_message("foo", b"x");
    }
    for _ in 0..5 {
        client.wait_ack().unwrap();
    }
    for number in 1..=5 {
        for sub in &subs {
            // One at a time: the next comes for the ack.
            assert_eq!(client.next(sub).sequence, number);
            client.ack(sub, number);
        }
    }
    assert!(!client.has_more(&subs[0]));
}

/// `midge stan` with these arguments: whether it went well, and what it printed.
fn tool(server: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_midge"))
        .args(["stan", "-s", server, "--timeout", "20s"])
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[test]
fn an_operator_looks_after_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let port = free_port();
    let server = file_server(port, path, &["--stan_admin"]);
    let url = server.url();
    let run = |arguments: &[&str]| tool(&url, arguments);
    assert!(run(&["ls"]).1.contains("no channels"));
    let mut client = stan(&server, "me");
    let sub = client
        .subscribe("foo", |r| {
            (r.durable_name, r.max_in_flight) = ("d".into(), 1)
        })
        .unwrap();
    for _ in 0..10 {
        client.publish("foo", b"data").unwrap();
    }
    client.publish("bar", b"data").unwrap();
    assert_eq!(client.next(&sub).sequence, 1);

    let (good, text) = run(&["ls"]);
    assert!(
        good && text.contains("CHANNEL") && text.contains("foo") && text.contains("bar"),
        "{text}"
    );
    let (_, text) = run(&["durables", "--json"]);
    let durables: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(durables["durables"][0]["behind"], 9, "{text}");
    let which = ["--client", "me", "--durable", "d"];
    let (good, text) = run(&[&["pending", "foo"], &which[..]].concat());
    assert!(good && text.contains("DELIVERIES"), "{text}");

    // Nothing goes without a yes.
    let (good, text) = run(&[&["skip", "foo", "1"], &which[..]].concat());
    assert!(!good && text.contains("--yes"), "{text}");
    let (good, text) = run(&[&["skip", "foo", "1", "--yes"], &which[..]].concat());
    assert!(good, "{text}");
    assert_eq!(client.next(&sub).sequence, 2);
    let (good, text) = run(&["purge", "foo", "--to", "6", "--yes"]);
    assert!(good && text.contains("6 messages purged"), "{text}");
    assert_eq!(client.next(&sub).sequence, 7);
    let (good, text) = run(&["rm", "foo", "--yes"]);
    assert!(!good && text.contains("active subscriptions"), "{text}");
    client.close();
    let (good, text) = run(&["rm", "bar", "--yes"]);
    assert!(good, "{text}");
    server.kill();

    // It is so after a crash as well.
    let server = file_server(port, path, &["--stan_admin"]);
    let (_, text) = run(&["info", "--json"]);
    let info: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&info["channels"], &info["messages"]),
        (&1.into(), &4.into()),
        "{text}"
    );
    let (good, text) = run(&[&["rm-durable", "foo", "--yes"], &which[..]].concat());
    assert!(good, "{text}");
    assert!(run(&["durables"]).1.contains("no durables"));
    let (good, text) = run(&["purge", "foo", "--yes"]);
    assert!(good && text.contains("the next one is 11"), "{text}");
    let mut client = stan(&server, "me");
    client.publish("foo", b"data").unwrap();
    let sub = client.subscribe("foo", |_| {}).unwrap();
    assert_eq!(client.next(&sub).sequence, 11);
    let (good, text) = run(&["purge", "none", "--yes"]);
    assert!(!good && text.contains("not found"), "{text}");
}

#[test]
fn only_those_who_may_change_something() {
    // Open to everybody: looking alone.
    let open = memory_server(&[]);
    stan(&open, "me").publish("foo", b"x").unwrap();
    assert!(tool(&open.url(), &["ls"]).0);
    let (good, text) = tool(&open.url(), &["purge", "foo", "--yes"]);
    assert!(!good && text.contains("administration is off"), "{text}");
    // Nobody there.
    let (good, text) = tool(&open.url(), &["ls", "--cid", "other"]);
    assert!(
        !good && text.contains("no streaming server with cluster ID \"other\""),
        "{text}"
    );

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("midge.conf");
    let text = r#"
        authorization {
          default_permissions: { publish: { deny: "_STAN_ADMIN.>" } }
          users: [
            { user: app, password: a }
            { user: admin, password: b, permissions: { publish: "_STAN_ADMIN.>", subscribe: "_INBOX.>" } }
          ]
        }
        streaming { cluster_id: test-cluster }
    "#;
    std::fs::write(&file, text).unwrap();
    let server = Server::start(&["-c", file.to_str().unwrap()]);
    server.wait_log("Streaming Server is ready");
    let mut nats = Client::raw(server.port);
    nats.send(
        b"CONNECT {\"verbose\":false,\"pedantic\":false,\"user\":\"app\",\"pass\":\"a\"}\r\n",
    );
    let mut client = Stan::connect(nats, "test-cluster", "me").unwrap();
    client.publish("foo", b"x").unwrap();
    let place = format!("127.0.0.1:{}", server.port);
    let (good, text) = tool(&format!("nats://app:a@{place}"), &["ls"]);
    assert!(!good && text.contains("does not allow it"), "{text}");
    let (good, text) = tool(&place, &["ls"]);
    assert!(!good && text.contains("authorization violation"), "{text}");
    let (good, text) = tool(
        &place,
        &["purge", "foo", "--yes", "--user", "admin", "--pass", "b"],
    );
    assert!(good && text.contains("1 messages purged"), "{text}");
}

#[test]
fn messages_nobody_digests_become_dead_letters() {
    let server = memory_server(&["-max_redeliveries", "1", "-m", "-1"]);
    let mut client = stan(&server, "me");
    let sub = client
        .subscribe("foo", |r| (r.ack_wait_seconds, r.max_in_flight) = (1, 1))
        .unwrap();
    client.publish("foo", b"poison").unwrap();
    client.publish("foo", b"fine").unwrap();
    let dead = client.subscribe("dead.foo", |_| {}).unwrap();
    let first = client.next(&sub);
    let again = client.next(&sub);
    assert_eq!((first.redelivered, again.redelivered), (false, true));
    let letter = client.next(&dead);
    assert_eq!(&letter.data[..], b"poison");
    assert!(letter.reply.contains("\"sequence\":1"), "{}", letter.reply);
    assert_eq!(&client.next(&sub).data[..], b"fine");
    client.ack(&sub, 2);
    server.wait_log("was sent 2 times");
}

/// A certificate for loopback, signed by itself.
fn certificate(folder: &std::path::Path) -> (String, String) {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    (
        write("cert.pem", made.cert.pem()),
        write("key.pem", made.signing_key.serialize_pem()),
    )
}

#[test]
fn behind_another_nats_server_with_tls_and_users() {
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = certificate(folder.path());
    let file = folder.path().join("nats.conf");
    let text = format!(
        "tls {{ cert_file: '{cert}', key_file: '{key}', timeout: 20 }}
         authorization {{ users: [ {{ user: stan, password: s3cret }} ] }}"
    );
    std::fs::write(&file, text).unwrap();
    let port = free_port();
    let nats = || Server::start_at(port, &["-c", file.to_str().unwrap()]);
    let network = nats();
    let dead = free_port();
    // The first of the list is down.
    let urls = format!("nats://127.0.0.1:{dead},tls://stan:s3cret@127.0.0.1:{port}");
    let base = ["-ns", &urls, "--stan_admin", "-cid", "behind"];
    let with_ca = [&base[..], &["-tls_client_cacert", &cert]].concat();
    let server = Server::start(&with_ca);
    server.wait_log("Streaming Server is ready");
    let tls = ["--cid", "behind", "--tlscacert", &cert];
    let url = format!("tls://stan:s3cret@127.0.0.1:{port}");
    let (good, text) = tool(&url, &[&["info"], &tls[..]].concat());
    assert!(good && text.contains("MEMORY"), "{text}");

    // The network goes and comes back.
    network.kill();
    let network = nats();
    server.wait_log("reconnected to NATS Server");
    let (good, text) = tool(&url, &[&["info"], &tls[..]].concat());
    assert!(good, "{text}");

    // What goes wrong is said.
    let fails = |arguments: &[&str], words: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_midge"))
            .args(["-a", "127.0.0.1", "-p", "-1"])
            .args(arguments)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && text.contains(words),
            "{words}: {text}"
        );
    };
    fails(
        &with_ca,
        "discovered another streaming server with cluster ID \"behind\"",
    );
    let plain = format!("nats://stan:s3cret@127.0.0.1:{port}");
    fails(&["-ns", &plain], "secure connection required");
    let wrong = format!("tls://stan:wrong@127.0.0.1:{port}");
    fails(
        &["-ns", &wrong, "-tls_client_cacert", &cert],
        "authorization violation",
    );
    fails(
        &[
            "-ns",
            &format!("tls://stan:s3cret@127.0.0.1:{port}"),
            "-tls_client_cacert",
            &key,
        ],
        "ca certificate",
    );
    // Encryption alone.
    let loose = Server::start(&["-ns", &plain, "-secure", "-cid", "loose"]);
    loose.wait_log("Streaming Server is ready");
    drop(network);
}

#[test]
fn many_channels_fit_into_few_descriptors() {
    const FILES: u32 = 256;
    const CHANNELS: usize = 600;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let port = free_port();
    let start = || {
        let arguments = ["-st", "FILE", "-dir", path, "-mc", "0"];
        let server = Server::start_with_files(FILES, port, &arguments);
        server.wait_log("Streaming Server is ready");
        server
    };
    let name = |number: usize| format!("many.{number}");
    let publish_to_all = |client: &mut Stan, data: &[u8]| {
        for number in 0..CHANNELS {
            client.send_message(&name(number), data);
        }
        for _ in 0..CHANNELS {
            client.wait_ack().unwrap();
        }
    };
    let server = start();
    let mut client = stan(&server, "me");
    publish_to_all(&mut client, b"one");
    // Some have a subscription of which something is kept.
    for number in (0..CHANNELS).step_by(4) {
        let durable = |r: &mut midge::stan::pb::SubscriptionRequest| r.durable_name = "d".into();
        let sub = client.subscribe(&name(number), durable).unwrap();
        assert_eq!(client.next(&sub).sequence, 1);
        client.ack(&sub, 1);
    }
    assert_eq!(client.ping(), "");
    server.stop();

    let server = start();
    client.reconnect(server.client());
    publish_to_all(&mut client, b"two");
    client.close();
    server.kill();

    let server = start();
    let mut client = stan(&server, "me");
    // Room for those who come is left.
    let others: Vec<Client> = (0..32).map(|_| server.client()).collect();
    for number in 0..CHANNELS {
        let sub = client.subscribe(&name(number), |_| {}).unwrap();
        for (sequence, data) in [(1, b"one"), (2, b"two")] {
            let message = client.next(&sub);
            assert_eq!((message.sequence, &message.data[..]), (sequence, &data[..]));
        }
    }
    let open = std::fs::read_dir(format!("/proc/{}/fd", server.id())).unwrap();
    assert!(open.count() <= FILES as usize - 32, "{}", server.log());
    drop(others);
    let log = server.log();
    assert!(!log.contains("Too many open files"), "{log}");
}

#[test]
fn the_log_says_what_the_original_says() {
    let server = memory_server(&["-SDV"]);
    let mut client = stan(&server, "me");
    client.publish("foo", b"x").unwrap();
    let sub = client.subscribe("foo", |r| r.ack_wait_seconds = 1).unwrap();
    client.next(&sub);
    assert!(client.next(&sub).redelivered);
    client.ack(&sub, 1);
    assert!(client.subscribe("a..b", |_| {}).is_err());
    assert!(client.publish("a..b", b"x").is_err());
    client.close();
    for round in 0..2 {
        let mut client = stan(&server, "back");
        let sub = client.subscribe("bar", |r| r.durable_name = "d".into());
        if round == 0 {
            client.publish("bar", b"x").unwrap();
        }
        assert_eq!(client.next(&sub.unwrap()).redelivered, round == 1);
        client.close();
    }
    for line in [
        "[INF] STREAM: ----------------------------------",
        "[TRC] STREAM: [Client:me] Acking Publisher subj=foo guid=1",
        "[TRC] STREAM: [Client:me] Delivering msg to subid=1, subject=foo, seq=1",
        "[TRC] STREAM: [Client:me] Redelivering msg to subid=1, subject=foo, seq=1",
        "[TRC] STREAM: [Client:me] Processing ack for subid=1, subject=foo, seq=1",
        "[ERR] STREAM: [Client:me] Invalid channel \"a..b\" in subscription request from _STAN.sub.",
        "[ERR] STREAM: Received invalid client publish message clientID:\"me\" guid:\"1\" subject:\"a..b\"",
        "[DBG] STREAM: [Client:me] Closed (Inbox=",
        "[DBG] STREAM: [Client:back] Redelivering to subid=1, durable=d",
        "[TRC] STREAM: [Client:back] Redelivering to subid=1, seq=1",
    ] {
        server.wait_log(line);
    }
}

/// What monitoring says under a path.
#[test]
fn limits_are_told_as_the_original_tells_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("t");
    let limits = "max_msgs: 2, max_channels: 1, max_subs: 1";
    std::fs::write(&file, format!("streaming {{ limits {{ {limits} }} }}")).unwrap();
    let store = folder.path().join("store");
    let (file, store) = (file.to_str().unwrap(), store.to_str().unwrap());
    let port = free_port();
    let server = file_server(port, store, &["-sc", file]);
    let mut client = stan(&server, "me");
    for _ in 0..4 {
        client.publish("foo", b"x").unwrap();
    }
    assert!(client.publish("c", b"x").is_err());
    assert!(client.subscribe("c", |_| {}).is_err());
    client.subscribe("foo", |_| {}).unwrap();
    assert!(client.subscribe("foo", |_| {}).is_err());
    let mut nats = server.client();
    nats.publish("_STAN.discover.test-cluster", b"");
    nats.ping();
    for line in [
        "WARNING: Reached limits for store \"foo\" (msgs=2/2 bytes=120 B/976.56 MB), dropping old messages",
        ".c\": too many channels",
        "Unable to create channel for subscription on \"c\": too many channels",
        "[me:_INBOX.",
        "] on [foo]: too many subscriptions per channel",
        "Unable to add subscription for foo: too many subscriptions per channel",
        "[Client:?] Invalid conn request: ClientID=, Inbox=, err=<nil>",
    ] {
        server.wait_log(line);
    }
    let log = server.log();
    let about_publish = "[Client:me] Error processing message for subject \"_STAN.pub.";
    assert!(log.contains(about_publish), "{log}");
    assert_eq!(log.matches("too many channels").count(), 2, "{log}");
    assert_eq!(log.matches("Reached limits").count(), 1, "{log}");
    server.stop();
    // A start takes away what is too much by a new limit without a word; what comes gets the warning.
    let server = file_server(port, store, &["-sc", file, "-mm", "1"]);
    assert!(!server.log().contains("Reached limits"));
    client.reconnect(server.client());
    client.publish("foo", b"x").unwrap();
    server.wait_log("(msgs=1/1 bytes=60 B/976.56 MB)");
}

fn monitored(port: u16, path: &str) -> serde_json::Value {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    socket.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    let (_, body) = text.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap()
}

#[test]
fn while_the_other_nats_server_is_gone_time_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stan.conf");
    let text = "streaming { store_limits { channels { brief: { max_age: '2s' } } } }";
    std::fs::write(&file, text).unwrap();
    let (port, http) = (free_port(), free_port());
    let network = Server::start_at(port, &[]);
    let server = Server::start(&[
        "-ns",
        &format!("nats://127.0.0.1:{port}"),
        "-sc",
        file.to_str().unwrap(),
        "-m",
        &http.to_string(),
        // Unanswered for 2 s: out.
        "-hbi",
        "300ms",
        "-hbt",
        "700ms",
        "-hbf",
        "1",
    ]);
    server.wait_log("Streaming Server is ready");
    let mut client = stan(&network, "me");
    let durable = client
        .subscribe("long", |r| {
            r.durable_name = "d".into();
            r.max_in_flight = 1;
            r.ack_wait_seconds = 1;
        })
        .unwrap();
    for _ in 0..3 {
        client.publish("long", b"kept").unwrap();
    }
    assert_eq!(client.next(&durable).sequence, 1);
    client.publish("brief", b"old soon").unwrap();
    network.kill();
    server.wait_log("has been disconnected");
    // It tells, and it forgets what is too old.
    until("the end of a message", || {
        let path = "/streaming/channelsz?channel=brief";
        monitored(http, path)["msgs"] == 0
    });
    let clients = monitored(http, "/streaming/clientsz");
    assert_eq!(clients["total"], 1, "{clients}");

    let network = Server::start_at(port, &[]);
    server.wait_log("reconnected to NATS Server at");
    client.reconnect(network.client());
    for sequence in 1..=3 {
        let mut message = client.next(&durable);
        // One that was sent again before we were back may have come twice.
        while message.sequence < sequence {
            message = client.next(&durable);
        }
        assert_eq!(message.sequence, sequence);
        client.ack(&durable, sequence);
    }
    assert_eq!(client.ping(), "");
    client.publish("long", b"as before").unwrap();
    client.close();
}

/// A NATS server played by hand, with one connection at a time.
struct Played {
    listener: TcpListener,
    socket: TcpStream,
    lines: BufReader<TcpStream>,
    /// Of subscriptions: subject and sid.
    subs: Vec<(String, String)>,
}

impl Played {
    /// Takes a connection, and waits for the PING behind its subscriptions.
    fn take(listener: TcpListener) -> Self {
        let (mut socket, _) = listener.accept().unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        socket
            .write_all(b"INFO {\"max_payload\":1048576}\r\n")
            .unwrap();
        let lines = BufReader::new(socket.try_clone().unwrap());
        Self {
            listener,
            socket,
            lines,
            subs: Vec::new(),
        }
    }

    /// The next message published: subject and payload; None behind the end, or at a PING when that is waited for.
    fn next(&mut self, ping_ends: bool) -> Option<(String, Vec<u8>)> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).unwrap_or(0) == 0 {
                return None;
            }
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            match words[..] {
                ["PING"] => {
                    let _ = self.socket.write_all(b"PONG\r\n");
                    if ping_ends {
                        return None;
                    }
                }
                ["SUB", subject, sid] => self.subs.push((subject.into(), sid.into())),
                ["PUB", subject, .., bytes] => {
                    let mut payload = vec![0; bytes.parse::<usize>().unwrap() + 2];
                    self.lines.read_exact(&mut payload).unwrap();
                    payload.truncate(payload.len() - 2);
                    return Some((subject.into(), payload));
                }
                _ => {}
            }
        }
    }

    /// A message to whoever subscribed to this subject, or to the pattern above it.
    fn give(&mut self, subject: &str, reply: &str, payload: &[u8]) {
        let above = subject
            .rsplit_once('.')
            .map(|(above, _)| format!("{above}.>"));
        let of = |(pattern, _): &&(String, String)| {
            pattern == subject || Some(pattern) == above.as_ref()
        };
        let (_, sid) = self.subs.iter().find(of).unwrap();
        let mut line = format!("MSG {subject} {sid} {reply} {}\r\n", payload.len()).into_bytes();
        line.extend_from_slice(payload);
        line.extend_from_slice(b"\r\n");
        self.socket.write_all(&line).unwrap();
    }

    /// What is published until the first message for this subject, that included.
    fn until(&mut self, wanted: &str) -> Vec<(String, Vec<u8>)> {
        let mut all = Vec::new();
        while all
            .last()
            .is_none_or(|(subject, _): &(String, Vec<u8>)| subject != wanted)
        {
            all.push(self.next(false).expect("a connection"));
        }
        all
    }
}

#[test]
fn after_an_outage_deliveries_follow_the_answers_that_announce_them() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    let arguments = [
        "-ns",
        &url,
        "-st",
        "FILE",
        "-dir",
        folder.path().to_str().unwrap(),
    ];
    let starts = std::thread::spawn(move || {
        let mut network = Played::take(listener);
        // It logs in, looks for another of its name, and subscribes.
        while network
            .subs
            .iter()
            .all(|(subject, _)| !subject.starts_with("_STAN.sub."))
        {
            network.next(true);
        }
        network
    });
    let server = Server::start(&arguments);
    let mut network = starts.join().unwrap();
    let connect = pb::ConnectRequest {
        client_id: "me".into(),
        heartbeat_inbox: "beat".into(),
        ..Default::default()
    };
    network.give(
        "_STAN.discover.test-cluster",
        "connected",
        &connect.encode_to_vec(),
    );
    let (_, answer) = network.until("connected").pop().unwrap();
    let prefixes = pb::ConnectResponse::decode(&answer[..]).unwrap();
    let message = pb::PubMsg {
        client_id: "me".into(),
        guid: "1".into(),
        subject: "foo".into(),
        data: b"stored".to_vec().into(),
        ..Default::default()
    };
    let publish = format!("{}.foo", prefixes.pub_prefix);
    network.give(&publish, "acked", &message.encode_to_vec());
    network.until("acked");
    // The request and the end of the connection come at about the same time: it may be answered before, or after.
    for round in 0..8 {
        let inbox = format!("inbox.{round}");
        let answer = format!("subscribed.{round}");
        let request = pb::SubscriptionRequest {
            client_id: "me".into(),
            subject: "foo".into(),
            inbox: inbox.clone(),
            durable_name: format!("durable-{round}"),
            max_in_flight: 1,
            ack_wait_seconds: 1,
            start_position: 4,
            ..Default::default()
        };
        network.give(&prefixes.sub_requests, &answer, &request.encode_to_vec());
        network.socket.shutdown(Shutdown::Write).unwrap();
        let mut all: Vec<(String, Vec<u8>)> = std::iter::from_fn(|| network.next(false)).collect();
        network = Played::take(network.listener);
        all.extend(network.until(&inbox));
        let place = |wanted: &str| all.iter().position(|(subject, _)| subject == wanted);
        let (answered, delivered) = (place(&answer), place(&inbox));
        assert!(
            answered.is_some() && answered < delivered,
            "{round}: {answered:?}, {delivered:?}"
        );
    }
    drop(network);
    server.stop();
}

#[test]
fn what_is_not_there_yet_is_refused_by_name() {
    for (arguments, words) in [
        (&["-st", "SQL"][..], "the SQL store"),
        (
            &["-ft_group", "ft", "-st", "FILE", "-dir", "x"],
            "fault tolerance",
        ),
        (
            &["-clustered", "-st", "FILE", "-dir", "x"],
            "clustered mode",
        ),
        (&["-encrypt"], "encryption of the store"),
        (&["-st", "ZZZ"], "unknown store type: ZZZ"),
        (&["-dead_letter", "a.*"], "is no name of another channel"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_midge"))
            .args(["-p", "-1"])
            .args(arguments)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
        assert!(text.contains(words), "{arguments:?}: {text}");
    }
}

#[test]
fn an_inbox_too_long_for_a_line_ends_nothing() {
    let server = memory_server(&[]);
    let mut client = stan(&server, "me");
    for _ in 0..20 {
        client.publish("foo", b"text").unwrap();
    }
    let long = "x".repeat(100_000);
    client.subscribe("foo", |r| r.inbox = long).unwrap();
    assert_eq!(client.ping(), "");
    client.close();
    server.stop();
}

#[test]
fn a_message_as_large_as_may_be_is_delivered_again() {
    let server = memory_server(&[]);
    let mut client = stan(&server, "a");
    // As clients of older versions do; so what is delivered is larger than what was published.
    client.connection = String::new();
    let around = pb::PubMsg {
        client_id: "a".into(),
        guid: "1000000".into(),
        subject: "foo".into(),
        data: vec![b'x'; 1 << 20].into(),
        ..Default::default()
    };
    let around = around.encoded_len() - (1 << 20);
    let data = vec![b'x'; (1 << 20) - around];
    client.publish("foo", &data).unwrap();
    let sub = client.subscribe("foo", |r| r.ack_wait_seconds = 1).unwrap();
    for redelivered in [false, true] {
        let message = client.next(&sub);
        assert_eq!(message.redelivered, redelivered);
        assert!(message.data == data);
    }
    client.close();
    server.stop();
}

#[test]
fn clients_do_not_take_the_descriptors_of_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let arguments = ["-st", "FILE", "-dir", path];
    let server = Server::start_with_files(100, free_port(), &arguments);
    server.wait_log("Streaming Server is ready");
    let mut client = stan(&server, "me");
    client.publish("foo", b"one").unwrap();
    let connect = || TcpStream::connect(("127.0.0.1", server.port));
    let others: Vec<_> = (0..100).map(|_| connect().unwrap()).collect();
    // A greeting, or the end.
    let greeted = others.iter().filter(|other| {
        let mut other: &TcpStream = other;
        let _ = other.set_read_timeout(Some(support::PATIENCE));
        matches!(other.read(&mut [0]), Ok(1))
    });
    assert!((10..90).contains(&greeted.count()), "{}", server.log());
    server.wait_log("kept for the store");
    // More files than are open already.
    for number in 0..40 {
        client.publish(&format!("many.{number}"), b"one").unwrap();
    }
    // All of them are synced when nothing has come for a while.
    let log = folder.path().join("midge.log.1");
    until("an empty log", || {
        let bytes = std::fs::read(&log).unwrap();
        bytes.iter().take(16).all(|byte| *byte == 0)
    });
    client.publish("foo", b"two").unwrap();
    drop(others);
    server.stop();
}
