//! midge-top, the real program, against a real server: one snapshot, and a terminal with keys pressed.

mod support;

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use support::{Server, free_port, until};

const TOP: &str = env!("CARGO_BIN_EXE_midge-top");

fn watched_server() -> (Server, u16, support::Client) {
    let http = free_port();
    let server = Server::start(&["--threads", "2", "-m", &http.to_string()]);
    let mut client = support::Client::raw(server.port);
    client.send(b"CONNECT {\"verbose\":false,\"name\":\"watched\",\"lang\":\"none\"}\r\nSUB a.subject 1\r\n");
    client.ping();
    for _ in 0..100 {
        client.publish("a.subject", b"0123456789");
    }
    client.ping();
    (server, http, client)
}

#[test]
fn one_snapshot_as_text_and_as_values() {
    let (server, http, _client) = watched_server();
    let run = |more: &[&str]| {
        let output = Command::new(TOP)
            .args([
                "-s",
                "127.0.0.1",
                "-m",
                &http.to_string(),
                "-d",
                "0.1",
                "-o",
                "-",
            ])
            .args(more)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let text = run(&["-u"]);
    for words in [
        "NATS server version 1.1.0",
        "Connections Polled: 1",
        "watched",
        "a.subject",
        "MSGS_TO",
    ] {
        assert!(text.contains(words), "{words} is missing in\n{text}");
    }
    let values = run(&["-l", ";", "-b"]);
    assert!(
        values.contains("Connections Polled;1\n") && values.contains(";watched;1;"),
        "{values}"
    );
    server.stop();
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let output = Command::new(TOP)
        .args(["-m", &free_port().to_string()])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("/varz smoke test failed"), "{text}");
}

#[test]
fn keys_change_the_screen() {
    let (server, http, _client) = watched_server();
    // util-linux's script gives the program a terminal.
    let line = format!("stty rows 30 cols 150; exec {TOP} -m {http} -d 0.2");
    let mut child = Command::new("script")
        .args(["-qfec", &line, "/dev/null"])
        .env("TERM", "xterm-256color")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program script (util-linux) gives the test its terminal");
    let screen = Arc::new(Mutex::new(vt100::Parser::new(30, 150, 0)));
    let mut output = child.stdout.take().unwrap();
    let reader = std::thread::spawn({
        let screen = screen.clone();
        move || {
            let mut bytes = [0; 4096];
            while let Ok(read) = output.read(&mut bytes)
                && read > 0
            {
                screen.lock().unwrap().process(&bytes[..read]);
            }
        }
    });
    let shows = |words: &str| {
        let text = || screen.lock().unwrap().screen().contents();
        until(words, || text().contains(words));
    };
    let mut keys = child.stdin.take().unwrap();
    let mut press = |text: &str| {
        keys.write_all(text.as_bytes()).unwrap();
        keys.flush().unwrap();
    };
    shows("watched");
    press("s");
    shows("a.subject");
    press("2");
    shows("TOTAL");
    press("5");
    shows("LOOP");
    press("?");
    shows("follow routes");
    press("?1osubs\r");
    shows("sort subs");
    press("/nothing like it\r");
    shows("no connections");
    press("q");
    assert!(child.wait().unwrap().success());
    reader.join().unwrap();
    server.stop();
}
