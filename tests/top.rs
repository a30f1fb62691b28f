//! midge-top, the real program, against real servers: snapshots, and a terminal with keys pressed.

mod support;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use support::{Server, free_port, until, until_or};

const TOP: &str = env!("CARGO_BIN_EXE_midge-top");

fn watched_server(more: &[&str]) -> (Server, u16, support::Client) {
    let http = free_port();
    let http_text = http.to_string();
    let server = Server::start(&[&["--threads", "2", "-m", &http_text], more].concat());
    let client = watched_client(&server);
    (server, http, client)
}

fn watched_client(server: &Server) -> support::Client {
    let mut client = support::Client::raw(server.port);
    client.send(b"CONNECT {\"verbose\":false,\"name\":\"watched\",\"lang\":\"none\"}\r\nSUB a.subject 1\r\n");
    client.ping();
    for _ in 0..100 {
        client.publish("a.subject", b"0123456789");
    }
    client.ping();
    client
}

fn top(arguments: &[&str]) -> Output {
    Command::new(TOP).args(arguments).output().unwrap()
}

fn shown(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn one_snapshot_as_text_and_as_values() {
    let (server, http, _client) = watched_server(&[]);
    let http = http.to_string();
    let run = |more: &[&str]| shown(&top(&[&["-m", &http, "-o", "-"], more].concat()));
    let text = run(&["-u", "-d", "0.2", "-r", "2"]);
    for words in [
        "NATS server version 1.1.0 (uptime: ",
        "\nConnections Polled: 1\n  HOST             CID    NAME",
        "watched",
        "a.subject",
    ] {
        assert!(text.contains(words), "{words} is missing in\n{text}");
    }
    let values = run(&["-l", ";", "-b"]);
    assert!(
        values.contains("\nConnections Polled:;1\nHOST;CID;NAME;SUBS;"),
        "{values}"
    );
    assert!(
        values.contains(";1;watched;1;0;100;100;1000;1000;none;;"),
        "{values}"
    );
    assert!(!run(&["-filter", "nobody"]).contains("watched"));
    // The subjects are looked through though they are not shown.
    assert!(run(&["-filter", "a.sub"]).contains("watched"));
    server.stop();
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let port = free_port().to_string();
    let output = top(&["-m", &port, "-o", "-"]);
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("/varz smoke test failed: 127.0.0.1:") && text.contains("refused"),
        "{text}"
    );
}

#[test]
fn the_clients_port_is_told_from_the_monitoring_port() {
    let server = Server::start(&[]);
    let output = top(&["-m", &server.port.to_string(), "-o", "-"]);
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains(": not HTTP: "), "{text}");
    let terminal = Terminal::start(&format!("-m {} -d 0.2 -r 9", server.port));
    terminal.shows("is away: not HTTP: ");
    terminal.expect_order();
    server.stop();
}

#[test]
fn https_with_a_client_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    std::fs::write(path("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(path("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let https = free_port().to_string();
    let (cert, key) = (path("cert.pem"), path("key.pem"));
    let server = Server::start(&["--tlscert", &cert, "--tlskey", &key, "-ms", &https]);
    let run = |more: &[&str]| top(&[&["-s", "localhost", "-ms", &https, "-o", "-"], more].concat());
    let text = shown(&run(&["-cacert", &cert, "-cert", &cert, "-key", &key]));
    assert!(text.contains("NATS server version"), "{text}");
    assert!(shown(&run(&["-k"])).contains("NATS server version"));
    let stranger = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    std::fs::write(path("other.pem"), stranger.cert.pem()).unwrap();
    assert!(!run(&["-cacert", &path("other.pem")]).status.success());
    let missing = run(&["-cacert", &path("missing.pem")]);
    assert!(String::from_utf8_lossy(&missing.stderr).contains("missing.pem"));
    server.stop();
}

/// Serves one TLS connection after the other to whoever shows a certificate of `authority`, a document
/// for any request.
fn strict_server(cert: &str, key: &str, authority: &str) -> u16 {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    let pem = |path: &str| CertificateDer::from_pem_file(path).unwrap();
    roots.add(pem(authority)).unwrap();
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        provider.clone(),
    );
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![pem(cert)], PrivateKeyDer::from_pem_file(key).unwrap())
        .unwrap();
    let config = Arc::new(config);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let session = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut stream = rustls::StreamOwned::new(session, socket);
            let mut request = [0; 4096];
            // Refused certificates show as errors here.
            if stream.read(&mut request).is_ok_and(|read| read > 0) {
                let body = "{\"version\": \"behind-a-certificate\"}";
                let head = format!(
                    "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all((head + body).as_bytes());
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        }
    });
    port
}

#[test]
fn the_clients_certificate_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    for name in ["server", "client"] {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        std::fs::write(path(&format!("{name}.pem")), made.cert.pem()).unwrap();
        std::fs::write(
            path(&format!("{name}.key")),
            made.signing_key.serialize_pem(),
        )
        .unwrap();
    }
    let (server, client) = (path("server.pem"), path("client.pem"));
    let port = strict_server(&server, &path("server.key"), &client).to_string();
    let run = |more: &[&str]| {
        let all = [
            &[
                "-s",
                "localhost",
                "-ms",
                &port,
                "-cacert",
                &server,
                "-o",
                "-",
            ],
            more,
        ];
        top(&all.concat())
    };
    let text = shown(&run(&["-cert", &client, "-key", &path("client.key")]));
    assert!(text.contains("behind-a-certificate"), "{text}");
    assert!(!run(&[]).status.success());
}

/// The program in a terminal of 150 by 30.
struct Terminal {
    child: Child,
    keys: Option<ChildStdin>,
    screen: Arc<Mutex<vt100::Parser>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Terminal {
    fn start(arguments: &str) -> Self {
        Self::start_after("true", arguments)
    }

    /// `before`: what the shell does first.
    fn start_after(before: &str, arguments: &str) -> Self {
        // util-linux's script gives the program a terminal. Its own line says how that was left.
        let line = format!(
            "{before}; stty rows 30 cols 150; {TOP} {arguments}; echo ended with $?; stty -a | grep -o '[ -]echo ' | tr -d ' '"
        );
        let mut child = Command::new("script")
            .args(["-qfec", &line, "/dev/null"])
            .env("TERM", "xterm-256color")
            .env("LC_ALL", "C.UTF-8")
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
        let keys = child.stdin.take();
        Self {
            child,
            keys,
            screen,
            reader: Some(reader),
        }
    }

    fn text(&self) -> String {
        self.screen.lock().unwrap().screen().contents()
    }

    fn shows(&self, words: &str) {
        let why = || format!("waited in vain for {words:?} on\n{}", self.text());
        until_or(why, || self.text().contains(words));
    }

    fn press(&mut self, text: &str) {
        let keys = self.keys.as_mut().unwrap();
        keys.write_all(text.as_bytes()).unwrap();
        keys.flush().unwrap();
    }

    /// After the program has ended: the terminal is as it was.
    fn expect_order(mut self) {
        self.shows("ended with 0");
        drop(self.keys.take());
        assert!(self.child.wait().unwrap().success());
        self.reader.take().unwrap().join().unwrap();
        let screen = self.screen.lock().unwrap();
        let text = screen.screen().contents();
        assert!(
            text.ends_with("\necho") && !text.contains("NATS server"),
            "{text}"
        );
        assert!(!screen.screen().alternate_screen() && !screen.screen().hide_cursor());
    }
}

impl Drop for Terminal {
    /// A test that fails leaves nothing running.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn keys_change_the_screen() {
    let (server, http, _client) = watched_server(&["--streaming"]);
    let mut terminal = Terminal::start(&format!("-m {http} -d 0.2"));
    terminal.shows("watched");
    for (keys, words) in [
        ("s", "a.subject"),
        (" ", "MSGS_TO/S"),
        ("2", "TOTAL"),
        ("3", "nothing is streamed here"),
        ("4", "nothing is streamed here"),
        ("5", "no slow consumers"),
        ("6", "LOOP"),
        ("?", "follow routes"),
        // Any key ends the help, and does nothing else: the loops are still there.
        ("q", "LOOP"),
        ("?31osubs\r", "sort subs"),
        (">", "sort pending"),
        // Not further: the column of names is there when connections are, which the new order has just asked for.
        ("<", "sort subs"),
        ("n7\r", "limit 7"),
        ("n7x\r", "is no number"),
        ("f", "FROZEN"),
        ("f/nothing like it\r", "no connections"),
        ("/a.sub\r", "watched"),
    ] {
        terminal.press(keys);
        terminal.shows(words);
    }
    terminal.press("q");
    terminal.expect_order();
    server.stop();
}

#[test]
fn a_server_goes_away_and_comes_back() {
    let (server, http, client) = watched_server(&[]);
    let gone = free_port();
    let terminal = Terminal::start(&format!(
        "-s 127.0.0.1:{gone},127.0.0.1:{http} -d 0.2 -view cluster"
    ));
    terminal.shows("1 of 2");
    terminal.shows("away: ");
    drop(client);
    let port = server.port;
    server.stop();
    terminal.shows("0 of 2");
    let server = Server::start_at(port, &["-m", &http.to_string()]);
    terminal.shows("1 of 2");
    // The one that was never there comes as well.
    let other = Server::start(&["-m", &gone.to_string()]);
    terminal.shows("2 of 2");
    let pid = running(&format!("-s 127.0.0.1:{gone}")).unwrap();
    kill(pid, Signal::SIGTERM).unwrap();
    terminal.expect_order();
    server.stop();
    other.stop();
}

#[test]
fn a_terminal_that_goes_away_takes_the_program_with_it() {
    let (server, http, _client) = watched_server(&[]);
    let arguments = format!("-m {http} -d 0.2");
    let mut terminal = Terminal::start(&arguments);
    terminal.shows("watched");
    assert!(running(&arguments).is_some());
    terminal.child.kill().unwrap();
    until("the end of midge-top", || running(&arguments).is_none());
    // Also where no signal tells it, as under `nohup`.
    let mut terminal = Terminal::start_after("trap '' HUP", &arguments);
    terminal.shows("watched");
    assert!(running(&arguments).is_some());
    terminal.child.kill().unwrap();
    until("the end of midge-top", || running(&arguments).is_none());
    server.stop();
}

#[test]
fn a_terminal_without_unicode_is_written_ascii() {
    let (server, http, _client) = watched_server(&[]);
    let arguments = format!("-m {http} -d 0.2");
    for (before, unicode) in [("true", true), ("export LC_ALL=C", false)] {
        let mut terminal = Terminal::start_after(before, &arguments);
        terminal.shows("watched");
        terminal.press("?");
        terminal.shows("follow routes");
        assert_eq!(!terminal.text().is_ascii(), unicode, "{}", terminal.text());
        terminal.press("xq");
        terminal.expect_order();
    }
    server.stop();
}

#[test]
fn a_short_terminal_scrolls_the_help() {
    let gone = free_port();
    // Whatever the size was before.
    let mut terminal = Terminal::start_after(
        &format!("stty rows 10 cols 40; {TOP} -m {gone}; true"),
        "-version",
    );
    terminal.shows("is away: conn");
    terminal.press("?");
    terminal.shows("streaming channels");
    terminal.press(&"\x1b[B".repeat(30));
    terminal.shows("quit");
    terminal.press("\x1b[A");
    terminal.press("xq");
    terminal.expect_order();
}

/// The process whose command line begins so.
fn running(arguments: &str) -> Option<Pid> {
    // The kernel ends each word with a zero.
    let begin = format!("{TOP}\0{}", arguments.replace(' ', "\0"));
    let mut processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes.find_map(|process| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read(process.path().join("cmdline")).ok()?;
        line.starts_with(begin.as_bytes())
            .then_some(Pid::from_raw(pid))
    })
}

#[test]
fn a_cluster_is_found_by_its_routes() {
    // A route tells the address, and the other's monitoring port is taken to be the same: so they need
    // addresses of their own. The second one, which has dialled, knows the first by its address.
    let http = free_port().to_string();
    let (a, b) = (free_port(), free_port());
    let cluster = |host: &str, port: u16| format!("nats://{host}:{port}");
    let start = |host: &str, port: u16, routes: &str| {
        let config = tempfile::NamedTempFile::new().unwrap();
        let text = format!(
            "host: {host}\nhttp: '{host}:{http}'\ncluster {{ host: {host}, port: {port}, routes: [{routes}] }}\n"
        );
        std::fs::write(config.path(), text).unwrap();
        (
            Server::start(&["-c", config.path().to_str().unwrap()]),
            config,
        )
    };
    let (one, _file) = start("127.0.0.1", a, "");
    let (two, _other) = start("127.0.0.2", b, &format!("'{}'", cluster("127.0.0.1", a)));
    let mut terminal = Terminal::start(&format!("-s 127.0.0.2 -m {http} -cluster -d 0.2"));
    terminal.shows("2 of 2");
    terminal.press("q");
    terminal.expect_order();
    one.stop();
    two.stop();
}
