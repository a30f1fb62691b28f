//! What an operator does: configuration files, logins, permissions, reload.

mod support;

use nix::sys::signal::Signal;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use support::{Client, File, Op, Process, SEED, Server, enter, free_port, login, until};

const NKEY: &str = "UAB7FJ7ZLXK66JYR6NGSXIT3JO32FBVKOHIZNFBCVRCJ7RLE7M2WZYTZ";

fn midge(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_midge"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn hash(password: &str) -> String {
    let made = midge(&["passwd", "--cost", "5"], password);
    assert!(made.status.success(), "{}", text(&made.stderr));
    text(&made.stdout).trim().to_owned()
}

fn violation() -> Op {
    Op::Err("Authorization Violation".into())
}

fn example(name: &str) -> String {
    format!("{}/docs/examples/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_example_is_valid_without_a_warning() {
    let mut checked = 0;
    for folder in ["docs/examples", "packaging"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path
                .extension()
                .is_some_and(|extension| extension == "conf")
            {
                let output = midge(&["-t", "-c", path.to_str().unwrap()], "");
                assert!(output.status.success(), "{}", text(&output.stderr));
                let said = text(&output.stdout);
                let warned = said.lines().any(|line| line.starts_with("warning:"));
                assert!(!warned, "{}: {said}", path.display());
                checked += 1;
            }
        }
    }
    assert!(checked >= 4);
}

/// The addresses of the example are taken on any machine that runs tests, so a copy moves them.
fn elsewhere(name: &str) -> File {
    let config = std::fs::read_to_string(example(name)).unwrap();
    let moved: Vec<&str> = config
        .lines()
        .filter(|line| {
            !["http:", "listen:", "port:", "host:"]
                .iter()
                .any(|key| line.starts_with(key))
        })
        .collect();
    // So does the cluster, whose other members nobody answers for.
    let moved = moved.join("\n");
    let moved = moved.replace("port: 6222", "port: -1");
    let file = File::new(&moved.replace(":6223", ":1").replace(":6224", ":1"));
    let sites = file.folder.path().join("sites");
    std::fs::create_dir(&sites).unwrap();
    std::fs::copy(example("sites/north.conf"), sites.join("north.conf")).unwrap();
    file
}

#[test]
fn the_large_configuration_of_a_gnatsd() {
    let lines = std::fs::read_to_string(example("gnatsd.conf")).unwrap();
    assert!(lines.lines().count() >= 300);
    let file = elsewhere("gnatsd.conf");
    let server = Server::start(&["-c", file.path()]);
    assert!(!server.log().contains("[WRN]"), "{}", server.log());
    let port = server.port;

    let mut ruth = enter(port, "ruth", "operator");
    ruth.send(b"SUB > 1\r\n");
    ruth.ping();
    let mut orders = enter(port, "orders-north", "orders-north-2016");
    orders.send(b"SUB orders.requests.* 1\r\nSUB billing.> 2\r\nPUB orders.events.new 1\r\nx\r\nPUB stock.events.x 1\r\nx\r\n");
    orders.ping();
    assert_eq!(
        orders.kept(),
        [
            Op::Err("Permissions Violation for Subscription to \"billing.>\"".into()),
            Op::Err("Permissions Violation for Publish to \"stock.events.x\"".into()),
        ]
    );
    ruth.ping();
    assert_eq!(ruth.kept().len(), 1);
    let mut web = enter(port, "web-south", "web-south-2017");
    web.publish("orders.requests.new", b"two shoes");
    assert_eq!(orders.op().payload(), b"two shoes");
    let mut intern = enter(port, "intern", "intern");
    intern.send(b"PUB sandbox.a 0\r\n\r\nPUB orders.events.new 0\r\n\r\n");
    intern.ping();
    assert_eq!(intern.kept().len(), 1);
    enter(port, "scanner-harbour-4", "4harbour");
    assert_eq!(
        login(port, r#"{"user":"ruth","pass":"wrong"}"#).1,
        violation()
    );
    assert_eq!(
        login(port, r#"{"user":"nobody","pass":"operator"}"#).1,
        violation()
    );
    server.stop();
}

#[test]
fn the_example_of_what_is_new() {
    let file = elsewhere("modern.conf");
    let server = Server::start(&["-c", file.path()]);
    let port = server.port;

    // Who says nothing is the guest.
    let mut guest = server.client();
    guest.send(b"SUB public.x 1\r\nSUB private.x 2\r\nPUB admin.stop 0\r\n\r\n");
    guest.ping();
    assert_eq!(guest.kept().len(), 2);

    // Answers go to who asked, once, and nowhere else.
    let mut calculator = enter(port, "calculator", "calculator");
    calculator.send(b"SUB calc.add 1\r\n");
    calculator.ping();
    let mut worker = guest;
    worker.send(b"SUB _INBOX.1 9\r\nPUB calc.add _INBOX.1 3\r\n1+1\r\n");
    assert_eq!(calculator.op().payload(), b"1+1");
    calculator.send(b"PUB _INBOX.1 1\r\n2\r\nPUB _INBOX.1 1\r\n2\r\nPUB _INBOX.2 1\r\n2\r\n");
    calculator.ping();
    let refused = |subject| Op::Err(format!("Permissions Violation for Publish to {subject:?}"));
    assert_eq!(
        calculator.kept(),
        [refused("_INBOX.1"), refused("_INBOX.2")]
    );
    assert_eq!(worker.op().payload(), b"2");

    // Only in its queue group.
    let mut worker = enter(port, "worker", "worker");
    worker.send(b"SUB jobs.new 1\r\nSUB jobs.new others 2\r\nSUB jobs.new workers 3\r\n");
    worker.ping();
    assert_eq!(worker.kept().len(), 2);

    // A subject of too many tokens.
    let deep = vec!["public"; 17].join(".");
    worker.send(format!("SUB {deep} 4\r\n").as_bytes());
    worker.ping();
    assert_eq!(worker.kept().len(), 1);
    server.stop();
}

#[tokio::test]
async fn a_user_with_a_key() {
    let file = elsewhere("modern.conf");
    let server = Server::start(&["-c", file.path(), "-DV"]);
    let client = async_nats::ConnectOptions::with_nkey(SEED.to_owned())
        .connect(server.url())
        .await
        .unwrap();
    let mut messages = client.subscribe("anything").await.unwrap();
    client.publish("anything", "x".into()).await.unwrap();
    assert!(futures::StreamExt::next(&mut messages).await.is_some());

    // A signature of something else, of nothing, and a key nobody knows.
    let nonsense = "A".repeat(86);
    let unknown = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";
    for (key, signature) in [(NKEY, &*nonsense), (NKEY, ""), (unknown, &nonsense)] {
        let connect = format!(r#"{{"nkey":"{key}","sig":"{signature}"}}"#);
        assert_eq!(login(server.port, &connect).1, violation());
    }
    server.wait_log("Authorization Error - Nkey");
    assert!(!server.log().contains(SEED) && !server.log().contains(&nonsense));
    server.stop();
}

#[test]
fn mistakes_in_a_file_are_told_all_at_once() {
    let file = File::new(
        "port: yes\nmax_paylod: 5\nauthorization {\n  users = [\n    {user: a}\n    {user: b, password: c, permissions: {publish: ['x..y', 'z.'], import: q}}\n    \
         {user: c, password: 1, role: x}\n  ]\n}\njetstream: {}\nKNOWN = 4\nmax_subs: $KNOWN\n",
    );
    let output = midge(&["-t", "-c", file.path()], "");
    assert_eq!(output.status.code(), Some(1));
    let shown = text(&output.stderr).replace(file.path(), "F");
    assert_eq!(
        shown,
        "midge: F:1:7: port: expected an integer, got a boolean\n\
         F:2:1: unknown field \"max_paylod\", did you mean \"max_payload\"?\n\
         F:5:5: users: User entry requires a user and a password\n\
         F:6:52: users: Subject \"x..y\" is not a valid subject\n\
         F:6:60: users: Subject \"z.\" is not a valid subject\n\
         F:6:67: users: Unknown field import parsing permissions\n\
         F:7:25: users: expected a string in quotes, got an integer\n\
         F:7:28: unknown field \"role\"\n\
         F:10:1: \"jetstream\" is not supported by midge and ignored: there is no JetStream\n\
         Try 'midge --help'.\n"
    );

    // At a start, what is unknown is a warning, but under --strict.
    file.write("max_paylod: 5\n");
    let server = Server::start(&["-c", file.path()]);
    server.wait_log("max_payload");
    assert!(server.log().contains("[WRN]"));
    server.stop();
    let output = midge(&["--strict", "-c", file.path()], "");
    assert_eq!(output.status.code(), Some(1));
}

/// What container engines refuse by default, and this profile is there for.
#[test]
fn the_seccomp_profile_allows_the_ring() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/seccomp.json");
    let profile = std::fs::read(path).unwrap();
    let profile: serde_json::Value = serde_json::from_slice(&profile).unwrap();
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    let groups = profile["syscalls"].as_array().unwrap();
    let allowed: Vec<&str> = groups
        .iter()
        .filter(|group| group["action"] == "SCMP_ACT_ALLOW")
        .flat_map(|group| group["names"].as_array().unwrap())
        .map(|name| name.as_str().unwrap())
        .collect();
    for name in [
        "io_uring_setup",
        "io_uring_enter",
        "io_uring_register",
        "setpriority",
    ] {
        assert!(allowed.contains(&name), "{name}");
    }
    assert!(!allowed.contains(&"ptrace") && !allowed.contains(&"bpf"));
}

#[test]
fn passwords_are_hashed_by_passwd() {
    let made = hash("a password");
    let file = File::new(&format!("authorization {{ user: u, password: {made} }}"));
    let server = Server::start(&["-c", file.path()]);
    enter(server.port, "u", "a password");
    assert_eq!(
        login(server.port, r#"{"user":"u","pass":"b"}"#).1,
        violation()
    );
    assert!(!midge(&["passwd"], "").status.success());
    server.stop();
}

#[test]
fn an_empty_list_of_users_lets_nobody_in() {
    let file = File::new("authorization { users: [] }");
    let server = Server::start(&["-c", file.path()]);
    server.wait_log("the list of users is empty: no client can log in");
    for connect in ["{}", r#"{"user":"a","pass":"b"}"#, r#"{"auth_token":"t"}"#] {
        assert_eq!(login(server.port, connect).1, violation(), "{connect}");
    }
    // And so it is after a reload that empties the list.
    file.write("authorization { users: [{user: a, password: b}] }");
    server.reload();
    let mut client = enter(server.port, "a", "b");
    file.write("authorization { users: [] }");
    server.reload();
    assert_eq!(client.op(), violation());
    let check = midge(&["-t", "-c", file.path()], "");
    assert!(check.status.success());
    assert!(text(&check.stdout).starts_with("warning: the list of users is empty"));
    server.stop();
}

/// As a Go program does that listens at 0.0.0.0, which is the default.
#[test]
fn any_address_is_one_of_ipv6_too() {
    let server = Server::start(&["-a", "0.0.0.0", "-D"]);
    assert!(server.log().contains(&format!(
        "Listening for client connections on 0.0.0.0:{}",
        server.port
    )));
    let greeted = |ip: &str| {
        let address = format!("{ip}:{}", server.port);
        let stream = std::net::TcpStream::connect(address).unwrap();
        let mut info = String::new();
        BufReader::new(stream).read_line(&mut info).unwrap();
        assert!(info.starts_with("INFO "), "{info}");
        server.wait_log(&format!("{ip}:"));
    };
    greeted("127.0.0.1");
    match std::net::TcpListener::bind("[::1]:0") {
        Ok(_) => greeted("[::1]"),
        Err(error) => eprintln!("not tried with IPv6, which this machine lacks: {error}"),
    }
    server.stop();
}

#[test]
fn ports_are_written_to_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let server = Server::start(&["--ports_file_dir", path, "-m", "-1"]);
    let file = folder.path().join(format!("midge_{}.ports", server.id()));
    let ports: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(ports["nats"][0], server.url());
    let monitoring = ports["monitoring"][0].as_str().unwrap();
    assert!(monitoring.starts_with("http://127.0.0.1:"), "{ports}");
    server.stop();
    assert!(!file.exists());
    let output = midge(&["-p", "-1", "--ports_file_dir", "/no/such/folder"], "");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("Could not write ports file"));
}

#[test]
fn the_ports_file_has_addresses_that_can_be_connected_to() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["-p", "-1", "-m", "-1", "--cluster", "nats://0.0.0.0:-1"];
    let (server, ports) = Process::start(folder.path(), Stdio::null(), &arguments);
    for (key, scheme) in [
        ("nats", "nats"),
        ("monitoring", "http"),
        ("cluster", "nats"),
    ] {
        let urls = ports.urls[key].as_array().unwrap();
        assert!(
            urls[0]
                .as_str()
                .unwrap()
                .starts_with(&format!("{scheme}://127.0.0.1:"))
        );
        for url in urls {
            let address = url.as_str().unwrap().split_once("://").unwrap().1;
            assert!(!address.starts_with("0.0.0.0"), "{url}");
            std::net::TcpStream::connect(address).unwrap();
        }
    }
    assert!(server.end().success());
    assert!(!ports.file.exists());
}

/// As docs/OPERATIONS.md says to try midge with the file of a gnatsd that runs.
#[test]
fn flags_keep_a_trial_away_from_what_is_anothers() {
    let file = File::new("");
    let (pid, log) = (file.beside("gnatsd.pid"), file.beside("gnatsd.log"));
    let port = free_port();
    file.write(&format!(
        "port: 4222\nhttp_port: 8222\npid_file: {pid:?}\nlog_file: {log:?}\nsyslog: true\nremote_syslog: 'udp://127.0.0.1:{port}'\n\
         cluster {{ listen: '127.0.0.1:{port}', routes: ['nats://127.0.0.1:{port}'] }}\n"
    ));
    std::fs::write(&pid, "1234567").unwrap();
    let http = free_port().to_string();
    let operations = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/OPERATIONS.md");
    let flags = r#"-m 18222 --cluster "" -P "" -l "" -s=false -r """#;
    assert!(std::fs::read_to_string(operations).unwrap().contains(flags));
    let flags = flags.replace('"', "").replace("18222", &http);
    let words: Vec<&str> = flags.split(' ').collect();
    let server = Server::start(&[&["-c", file.path()], &*words].concat());
    assert!(!server.log().contains("route"), "{}", server.log());
    server.stop();
    assert_eq!(std::fs::read_to_string(&pid).unwrap(), "1234567");
    assert!(!Path::new(&log).exists());
}

/// A code span that begins with a flag speaks of one of our programs; a flag of another one stands behind its name.
#[test]
fn flags_that_the_documents_name_exist() {
    let is_word = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    let mut known = std::collections::HashSet::new();
    for (program, arguments) in [
        (env!("CARGO_BIN_EXE_midge"), &["--help"][..]),
        (env!("CARGO_BIN_EXE_midge"), &["stan", "--help"]),
        (env!("CARGO_BIN_EXE_midge-top"), &["--help"]),
    ] {
        let output = Command::new(program).args(arguments).output().unwrap();
        let help = text(&output.stdout);
        let words = help
            .split(|c: char| !is_word(c))
            .filter(|word| word.starts_with('-'));
        known.extend(words.map(|word| word.trim_start_matches('-').to_owned()));
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut documents = vec![root.join("README.md")];
    for entry in std::fs::read_dir(root.join("docs")).unwrap() {
        let path = entry.unwrap().path();
        // That one tells of what was.
        let history = path.ends_with("DECISIONS.md");
        if !history && path.extension().is_some_and(|extension| extension == "md") {
            documents.push(path);
        }
    }
    let mut checked = 0;
    for path in documents {
        let text = std::fs::read_to_string(&path).unwrap();
        let spans = text.split('`').skip(1).step_by(2);
        let commands = text.lines().filter_map(|line| line.strip_prefix("    "));
        let ours = |span: &&str| span.starts_with("--") || span.starts_with("midge ");
        for span in spans.chain(commands).filter(ours) {
            let flags = span
                .split_whitespace()
                .filter_map(|word| word.strip_prefix("--"));
            for flag in flags {
                let name = flag.split(|c: char| !is_word(c)).next().unwrap_or("");
                assert!(known.contains(name), "{}: {span:?}", path.display());
                checked += 1;
            }
        }
    }
    assert!(checked > 50, "{checked}");
}

#[test]
fn a_flood_of_logins_does_not_slow_traffic() {
    // Expensive enough that a hundred of them take many seconds.
    let slow = text(&midge(&["passwd", "--cost", "11"], "right").stdout);
    let file = File::new(&format!(
        "authorization {{ timeout: 60, users = [{{user: u, password: {}}}, {{user: plain, password: 'plain'}}] }}",
        slow.trim()
    ));
    let server = Server::start(&["-c", file.path(), "--threads", "1"]);
    let port = server.port;
    let mut busy = enter(port, "plain", "plain");
    drop(enter(port, "u", "right"));

    let flood: Vec<Client> = (0..100)
        .map(|n| {
            let mut client = Client::raw(port);
            client
                .send(format!("CONNECT {{\"user\":\"u\",\"pass\":\"wrong {n}\"}}\r\n").as_bytes());
            client
        })
        .collect();
    // Traffic goes on, and who was in before gets in again, long before the last was refused.
    let start = Instant::now();
    for _ in 0..200 {
        busy.ping();
    }
    enter(port, "u", "right");
    let took = start.elapsed();
    let refused = server.log().matches("Authorization Error").count();
    assert!(
        refused < 100,
        "the flood was over before anything was measured"
    );
    assert!(took < Duration::from_secs(3), "{took:?}");
    // Nobody waits for the rest.
    drop(flood);
    server.stop();
}

#[test]
fn a_reload_with_hashed_passwords() {
    let made = hash("p");
    let config = |rules: &str| {
        format!(
            "authorization {{ users = [{{user: u, password: {made}, permissions: {{publish: x, subscribe: {rules}}}}}] }}"
        )
    };
    let file = File::new(&config("['a', 'b']"));
    let server = Server::start(&["-c", file.path()]);
    let (mut client, answer) = login(server.port, r#"{"verbose":true,"user":"u","pass":"p"}"#);
    assert_eq!((answer, client.op()), (Op::Ok, Op::Pong));
    client.send(b"SUB a 1\r\nSUB b 2\r\n");
    assert_eq!((client.op(), client.op()), (Op::Ok, Op::Ok));

    // The password is checked again, away from the loop; what comes out of it takes effect.
    file.write(&config("b"));
    server.reload();
    let gone = "Permissions Violation for Subscription to \"a\" (sid 1)";
    assert_eq!(client.op(), Op::Err(gone.into()));
    client.ping();
    assert_eq!(client.kept(), []); // no +OK, for nobody asked

    file.write("authorization { users = [{user: v, password: 'p'}] }");
    server.reload();
    assert_eq!((client.op(), client.op()), (violation(), Op::Eof));
    server.stop();
}

#[test]
fn a_reload_that_fails_changes_nothing() {
    let file = File::new("max_payload: 100\nmax_connections: 10\n");
    let server = Server::start(&["-c", file.path()]);
    let mut client = server.client();
    for (config, reason) in [
        (
            "max_payload: 5\nlog_file: '/no/such/folder/log'",
            "could not open log file",
        ),
        (
            "max_payload: 5\nremote_syslog: 'ftp://x'",
            "error invalid network type: \"ftp\"",
        ),
        ("max_payload: 5\nclient_advertise: 'x:y'", "ClientAdvertise"),
        ("max_payload: 5\nno_auth_user: x", "no_auth_user"),
        (
            "max_payload: 5\nserver_name: other",
            "not supported for ServerName: old=, new=other",
        ),
        (
            "max_payload: 5\nports_file_dir: '/tmp'",
            "not supported for ports_file_dir",
        ),
        ("max_payload: nonsense", "max_payload: expected an integer"),
        ("max_payload: 5\nx {", "a '{' without its '}'"),
    ] {
        file.write(config);
        server.reload();
        server.wait_log(reason);
        client.send(b"PUB x 50\r\n");
        client.send(&[b'x'; 50]);
        client.send(b"\r\n");
        client.ping();
        assert_eq!(client.kept(), [], "{config}");
    }
    assert!(!server.log().contains("Reloaded"), "{}", server.log());
    file.write("max_payload: 200\nping_interval: '90s'\nwrite_deadline: '500ms'");
    server.reload();
    for line in [
        "Reloaded: ping_interval = 1m30s\n",
        "Reloaded: max_payload = 200\n",
        "Reloaded: write_deadline = 500ms\n",
        "Reloaded server configuration\n",
    ] {
        server.wait_log(line);
    }
    server.stop();
}

#[test]
fn a_pipe_is_not_read_again() {
    let file = File::new("debug: true");
    let server = Server::start(&["-c", file.path()]);
    std::fs::remove_file(file.path()).unwrap();
    nix::unistd::mkfifo(file.path(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    server.signal(Signal::SIGHUP);
    server.wait_log("is no regular file and cannot be read again");
    server.stop();
}

#[test]
fn authorization_comes_before_what_else_is_wrong() {
    let file = File::new(&format!(
        "authorization {{ users = [{{user: plain, password: p}}, {{user: hashed, password: '{}'}}] }}",
        hash("p")
    ));
    let server = Server::start(&["-c", file.path()]);
    let answer = |connect: &str| login(server.port, connect).1;
    let error = |text: &str| Op::Err(text.into());
    for user in ["plain", "hashed"] {
        let with = |rest: &str| answer(&format!(r#"{{"verbose":false,"user":"{user}",{rest}}}"#));
        assert_eq!(with(r#""pass":"x","protocol":7"#), violation());
        assert_eq!(with(r#""pass":"x","no_responders":true"#), violation());
        assert_eq!(
            with(r#""pass":"p","protocol":7"#),
            error("Invalid Client Protocol")
        );
        assert_eq!(
            with(r#""pass":"p","no_responders":true"#),
            error("no responders requires headers support")
        );
        assert_eq!(with(r#""pass":"p","name":"\ud800""#), Op::Pong);
    }
    for verb in [&b"FOO\r\n"[..], b"PING\r\n", b"\r\n"] {
        let mut client = Client::raw(server.port);
        client.send(verb);
        assert_eq!((client.op(), client.op()), (violation(), Op::Eof));
    }
    server.wait_log("Authorization Error - User \"\"");
    server.stop();
}

#[test]
fn what_is_invalid_and_forbidden_is_told_in_gnatsds_order() {
    let file = File::new(
        "authorization { users = [{user: u, password: p, permissions: {publish: \"ok.>\", subscribe: \"ok.>\"}}] }",
    );
    let server = Server::start(&["-c", file.path()]);
    let answers = |connect: &str, said: &str| {
        let mut client = Client::raw(server.port);
        let connect = format!(r#"CONNECT {{"user":"u","pass":"p","verbose":false{connect}}}"#);
        client.send(format!("{connect}\r\n{said}PING\r\n").as_bytes());
        let mut answers = Vec::new();
        while let Op::Err(text) = client.op() {
            answers.push(text);
        }
        answers
    };
    let publish = |subject: &str| answers("", &format!("PUB {subject} 0\r\n\r\n"));
    let forbidden = |subject: &str| format!("Permissions Violation for Publish to \"{subject}\"");
    assert_eq!(publish("ok.a"), [""; 0]);
    assert_eq!(publish("no"), [forbidden("no")]);
    assert_eq!(publish("ok..a"), ["Invalid Subject"]);
    for both in ["no..a", "no.>", "_SYS..a"] {
        assert_eq!(
            publish(both),
            ["Invalid Subject".to_owned(), forbidden(both)]
        );
    }
    let subscribe = "SUB no..a 1\r\nSUB ok..a 1\r\nSUB no q 1\r\n";
    let text = |rest: &str| format!("Permissions Violation for Subscription to {rest}");
    let told = |connect: &str, group: &str| {
        let expect = [
            text("\"no..a\""),
            "Invalid Subject".to_owned(),
            text("\"no\"") + group,
        ];
        assert_eq!(answers(connect, subscribe), expect);
    };
    told("", "");
    // nats-server's form, for its clients.
    told(r#","headers":true"#, " using queue \"q\"");
    server.stop();
}

/// A document of the monitoring port, without its blanks.
fn monitor(port: u16, path: &str) -> String {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    body.split_whitespace().collect()
}

#[test]
fn varz_counts_itself_and_knows_where_clients_may_connect() {
    let (http, cluster) = (free_port(), free_port());
    let route = format!("nats://127.0.0.1:{cluster}");
    let a = Server::start(&["-m", &http.to_string(), "--cluster", &route]);
    let varz = monitor(http, "/varz");
    assert!(
        varz.contains(r#""/varz":1}"#) && varz.contains(r#""auth_timeout":1,"#),
        "{varz}"
    );
    assert!(!varz.contains("connect_urls"), "{varz}");
    monitor(http, "/connz?limit=x");
    monitor(http, "/connz");
    monitor(http, "/subscriptionsz");
    let varz = monitor(http, "/varz");
    let counted = r#""http_req_stats":{"/":0,"/connz":1,"/routez":0,"/subsz":1,"/varz":2}"#;
    assert!(varz.contains(counted), "{varz}");
    let b = Server::start(&["--cluster", "nats://127.0.0.1:-1", "--routes", &route]);
    let urls = format!(
        r#""connect_urls":["127.0.0.1:{}","127.0.0.1:{}"]"#,
        a.port, b.port
    );
    until("both addresses", || monitor(http, "/varz").contains(&urls));
    b.stop();
    a.stop();
}

/// One that wants to hear of changes.
fn client_of_today(server: &Server) -> Client {
    let mut client = Client::raw(server.port);
    client.send(b"CONNECT {\"verbose\":false,\"protocol\":1}\r\n");
    client.ping();
    client
}

#[test]
fn a_lame_duck_tells_its_clients_and_minds_its_signals() {
    let file = File::new("lame_duck_duration: '30m'\nlame_duck_grace_period: '20m'");
    let server = Server::start(&["-c", file.path()]);
    let mut client = client_of_today(&server);
    server.signal(Signal::SIGUSR2);
    let Op::Info(info) = client.op() else {
        panic!("expected an INFO");
    };
    assert!(info.contains(r#""ldm":true"#), "{info}");
    let refused = || std::net::TcpStream::connect(("127.0.0.1", server.port)).is_err();
    until("nobody listens", refused);
    server.signal(Signal::SIGUSR1);
    server.wait_log("File log re-open ignored, not a file logger");
    server.signal(Signal::SIGHUP);
    server.wait_log("The configuration is not reloaded in lame duck mode");
    client.ping();
    server.stop();
}

#[test]
fn a_lame_duck_ends_when_its_clients_have_gone() {
    let file = File::new("lame_duck_duration: '2s'\nlame_duck_grace_period: '0s'");
    let mut server = Server::start(&["-c", file.path()]);
    let mut clients: Vec<Client> = (0..5).map(|_| client_of_today(&server)).collect();
    server.signal(Signal::SIGUSR2);
    for client in &mut clients {
        let mut told = Vec::new();
        while told.last() != Some(&Op::Eof) {
            told.push(client.op());
        }
        assert!(matches!(&told[0], Op::Info(_)), "{told:?}");
    }
    until("the end of the server", || !server.is_running());
}

#[test]
fn signals_that_come_in_a_burst_are_survived() {
    let file = File::new("debug: true");
    let server = Server::start(&["-c", file.path()]);
    let mut client = server.client();
    for _ in 0..200 {
        server.signal(Signal::SIGHUP);
        server.signal(Signal::SIGUSR1);
    }
    client.ping();
    server.wait_log("Reloaded server configuration");
    server.stop();
}
