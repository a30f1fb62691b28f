//! What is told in the log, where it goes, and what never gets there.

mod support;

use std::io::Write;
use std::process::Stdio;
use support::{Client, File, Op, Process, SEED, Server, enter, free_port, login, until};

#[test]
fn secrets_do_not_get_into_the_log() {
    let secrets = [
        "hunter2",
        "correct-horse",
        "t0k3n-of-joy",
        "battery-staple",
        "1mpossible",
    ];
    let file = File::new(
        "authorization { users = [{user: a, password: 'hunter2'}, {user: b, password: 'correct-horse'}] }",
    );
    let server = Server::start(&["-c", file.path(), "-DV"]);
    let port = server.port;
    enter(port, "a", "hunter2");
    for connect in [
        r#"{"user":"a","pass":"battery-staple"}"#,
        r#"{"user":"a","PASS":"battery-staple","auth_token":"t0k3n-of-joy"}"#,
        r#"["t0k3n-of-joy"]"#,
        r#"{"pass":"battery-staple""#,
        r#"{"pass":["battery-staple"]}"#,
        r#"{"user":5,"pass":"battery-staple"}"#,
    ] {
        login(port, connect);
    }
    for config in [
        "authorization { user: a, password: 'battery-staple' }",
        "authorization { token: 't0k3n-of-joy' }",
        "authorization { user: a, password: 1mpossible }",
        "authorization { user: a, password: 'x' 'correct-horse' }",
        "authorization { token: [t0k3n-of-joy] }",
        "authorization { users = [{user: a, password: {x: 'hunter2'}}] }",
        "authorization { users = [{user: 'u', nkey: SUAP4PCGWTBJ42WOQYVP35CVIBSMPO66TBJ7RJ2NNEUI4KE3JPH4MSP27M}] }",
    ] {
        file.write(config);
        server.reload();
    }
    let log = server.log();
    server.stop();
    assert!(
        log.contains("CONNECT") && log.contains("Reloaded: authorization token"),
        "{log}"
    );
    for secret in secrets.iter().chain([&SEED]) {
        assert!(!log.contains(secret), "{secret}: {log}");
    }
}

#[test]
fn a_log_file_is_moved_away_at_its_size() {
    let file = File::new("");
    let log = file.beside("midge.log");
    file.write(&format!(
        "log_file: {log:?}\nlogfile_size_limit: 4kb\nlogfile_max_num: 3\ndebug: true\n"
    ));
    let arguments = ["-a", "127.0.0.1", "-p", "-1", "-c", file.path()];
    let (server, ports) = Process::start(file.folder.path(), Stdio::inherit(), &arguments);
    let port = ports.port("nats");
    let logs = || {
        let folder = std::fs::read_dir(file.folder.path()).unwrap();
        let names = folder.map(|entry| entry.unwrap().path());
        names
            .filter(|path| path.to_str().unwrap().starts_with(&log))
            .collect::<Vec<_>>()
    };
    until("four log files", || {
        Client::raw(port);
        logs().len() == 4
    });
    for _ in 0..100 {
        Client::raw(port);
    }
    // While it runs, more of them are moved away and removed.
    assert!(server.end().success());
    for path in logs() {
        let content = std::fs::read_to_string(&path).unwrap();
        assert!(content.len() <= 4096, "{}", path.display());
        assert!(content.is_empty() || content.ends_with('\n'));
        assert!(content.lines().all(|line| line.contains("] ")), "{content}");
    }
    assert!(logs().len() <= 4);
}

/// Nobody reads what it logs, and a pipe takes only so much.
#[test]
fn a_log_that_hangs_does_not_keep_the_server_from_ending() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["-a", "127.0.0.1", "-p", "-1", "-V"];
    let (server, ports) = Process::start(folder.path(), Stdio::piped(), &arguments);
    let mut client = Client::raw(ports.port("nats"));
    for _ in 0..20 {
        client.send(&b"PUB a.rather.long.subject 3\r\nabc\r\n".repeat(100));
        client.ping();
    }
    server.end();
}

#[test]
fn the_protocol_is_traced_both_ways() {
    let file = File::new("trace: true\nmax_traced_msg_len: 3");
    let server = Server::start(&["-c", file.path()]);
    let mut client = server.client();
    client.send(b"SUB foo 1\r\nPUB foo rep 6\r\nabcdef\r\nSUB a..b 2\r\n");
    client.ping();
    for line in [
        "->> [SUB foo 1]",
        "->> [PUB foo rep 6]",
        "->> MSG_PAYLOAD: [abc...]",
        "<<- [MSG foo 1 rep 6]",
        "<<- [-ERR Invalid Subject]",
        "<<- [PONG]",
    ] {
        server.wait_log(line);
    }
    server.stop();
}

#[test]
fn routes_are_traced_as_well() {
    let file = File::new("trace: true");
    let cluster = free_port();
    let url = format!("nats://127.0.0.1:{cluster}");
    let server = Server::start(&["-c", file.path(), "--cluster", &url]);
    let mut route = std::net::TcpStream::connect(("127.0.0.1", cluster)).unwrap();
    let said = "INFO {\"server_id\":\"other\"}\r\nSUB foo q QRSID:1:1\r\nMSG bar RSID:1:2 0\r\n\r\nMSG bar RSID:1:2 r 2\r\nhi\r\nUNSUB QRSID:1:1\r\nFOO\r\n";
    route.write_all(said.as_bytes()).unwrap();
    for line in [
        "->> [SUB foo q QRSID:1:1]",
        "->> [MSG bar RSID:1:2 0]",
        "->> [MSG bar RSID:1:2 r 2]",
        "->> MSG_PAYLOAD: [hi]",
        "->> [UNSUB QRSID:1:1]",
        "<-> [DELSUB QRSID:1:1]",
        "Error reading from client: Router Parser ERROR, state=0, ",
    ] {
        server.wait_log(line);
    }
    server.stop();
}

/// What gnatsd 1.1.0 writes, word for word; programs that watch logs know it.
#[test]
fn the_log_says_what_gnatsd_said() {
    let file = File::new("trace: true\ndebug: true");
    let server = Server::start(&["-c", file.path()]);
    let mut client = server.client();
    client.send(
        b"SUB foo 1\r\nUNSUB 1 2\r\nPUB foo 0\r\n\r\nPUB foo 0\r\n\r\nSUB foo 2\r\nUNSUB 2\r\n",
    );
    client.ping();
    let faults: [(&[u8], &str); 7] = [
        (b"SUB foo\r\n", "processSub Parse Error: 'foo'"),
        (b"PUB foo x\r\n", "processPub Bad or Missing Size: 'foo x'"),
        (
            b"FOO\r\n",
            "Client Parser ERROR, state=0, i=0: proto='\"FOO\\r\"...'",
        ),
        (b"CONNECT {\"protocol\":5}\r\n", "Invalid Client Protocol"),
        (
            &[b"SUB ".as_slice(), &[b'a'; 1100]].concat(),
            "Maximum Control Line Exceeded",
        ),
        (b"CONNECT x\r\n", ""),
        (b"INFO x\r\n", ""),
    ];
    for (said, logged) in faults {
        let before = server.log().matches("Error reading from client: ").count();
        let mut client = Client::raw(server.port);
        client.send(said);
        while client.op() != Op::Eof {}
        until("the error", || {
            server.log().matches("Error reading from client: ").count() > before
        });
        server.wait_log(&format!("Error reading from client: {logged}"));
    }
    let mut client = Client::raw(server.port);
    client.send(b"PUB foo 2000000\r\n");
    while client.op() != Op::Eof {}
    for line in [
        "[DBG] 127.0.0.1:",
        "Deferring actual UNSUB(foo): 2 max, 0 received",
        "Auto-unsubscribe limit of 2 reached for sid '1'",
        "<-> [DELSUB 1]",
        "<-> [DELSUB 2]",
        "->> [SUB foo]",
        "->> [PUB foo x]",
        "->> [PUB foo 2000000]",
        "Maximum Payload Exceeded: 2000000 vs 1048576",
    ] {
        server.wait_log(line);
    }
    server.stop();
}
