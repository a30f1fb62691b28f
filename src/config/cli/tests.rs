use super::*;

fn run(arguments: &[&str]) -> Options {
    match parse("midge", arguments.iter().map(|a| a.to_string())).unwrap() {
        Command::Run { options, .. } => *options,
        other => panic!("{other:?}"),
    }
}

fn fails(arguments: &[&str]) -> String {
    parse("midge", arguments.iter().map(|a| a.to_string())).unwrap_err()
}

#[test]
fn addresses_without_a_host_are_all_addresses() {
    for (file, host) in [
        (
            "listen: :8922\nhttp: :8222\ncluster { listen: :6222 }",
            "0.0.0.0",
        ),
        ("listen = 127.0.0.1:8922", "127.0.0.1"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("midge.conf");
        std::fs::write(&path, file).unwrap();
        let options = run(&["-c", path.to_str().unwrap()]);
        assert_eq!(
            (options.host.as_str(), options.port),
            (host, 8922),
            "{file}"
        );
    }
    for (url, user) in [
        ("nats://:6222", ""),
        ("nats://a:b@:6222", "a"),
        ("nats://:-1", ""),
    ] {
        let options = run(&["--cluster", url]);
        let cluster = &options.cluster;
        let port = if url.ends_with("-1") { -1 } else { 6222 };
        assert_eq!(
            (cluster.host.as_str(), cluster.port, cluster.user.as_str()),
            ("0.0.0.0", port, user),
            "{url}"
        );
    }
}

#[test]
fn flags_in_all_forms() {
    for form in [
        &["-p", "77"][..],
        &["-p=77"],
        &["--p", "77"],
        &["--port=77"],
        &["-port", "77"],
    ] {
        assert_eq!(run(form).port, 77, "{form:?}");
    }
    assert_eq!(run(&["-p", "-1"]).port, -1);
    assert!(run(&["-DV"]).trace && run(&["-DV"]).debug && !run(&["-DV=false"]).debug);
    assert!(!run(&["-T=false"]).logtime && run(&["-T"]).logtime);
    let both = run(&["-D", "--net", "::1", "-D=false"]);
    assert_eq!((both.debug, both.host.as_str()), (false, "::1"));
}

#[test]
fn values_that_begin_with_a_dash_or_are_empty() {
    let options = run(&[
        "--pass", "-secret", "-user", "--", "-a", "", "--name", "-p=5",
    ]);
    assert_eq!(
        (&*options.user, &*options.password.0, &*options.server_name),
        ("--", "-secret", "-p=5")
    );
    assert_eq!(run(&["--pass=-x", "--user", "a"]).password.0, "-x");
    assert_eq!((&*options.host, options.port), ("0.0.0.0", 4222));
    assert_eq!(run(&["-c", "", "-sl", "", "-sc", ""]).config_file, None);
    assert!(fails(&["-c", "-t"]).contains("open -t: no such file"));
    assert_eq!(fails(&["-1"]), "flag provided but not defined: -1");
}

#[test]
fn commands_that_end_are_no_servers() {
    let serves = |line: &str| {
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        serves(&arguments)
    };
    for line in ["-p 4222", "-c stan", "--pass -t", "--name=--signal", "-sl="] {
        assert!(serves(line), "{line}");
    }
    for line in [
        "passwd",
        "stan ls",
        "-c a -t",
        "-sl quit",
        "--signal=reload=7",
    ] {
        assert!(!serves(line), "{line}");
    }
}

#[test]
fn tls_is_off_where_the_command_line_says_so() {
    assert!(!run(&["--tls=false", "--tlscert", "x"]).tls.enabled);
    assert!(
        !run(&["--tlscert", "x", "--tlsverify", "--tls=false"])
            .tls
            .enabled
    );
    assert!(
        run(&["--tlscert", "x", "--tls=false", "--tls", "--tlskey", "y"])
            .tls
            .enabled
    );
}

/// What a file with flags over it gives.
fn run_over(file: &str, flags: &[&str]) -> Result<(Options, Vec<String>), String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t");
    std::fs::write(&path, file).unwrap();
    let mut arguments = vec!["-c", path.to_str().unwrap()];
    arguments.extend(flags);
    match parse("midge", arguments.iter().map(|a| a.to_string()))? {
        Command::Run {
            options, warnings, ..
        } => Ok((*options, warnings)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn credentials_of_flags_over_those_of_a_file() {
    for (file, flags, remark) in [
        (
            "authorization { user: a, password: b }",
            &["--user", "c"][..],
            "",
        ),
        (
            "authorization { token: t }",
            &["--user", "a", "--pass", "b"],
            "user and password are ignored: there is a token, which counts before them",
        ),
        (
            "authorization { users: [{user: a, password: b}] }",
            &["--auth", "t"],
            "the token is ignored: there is a list of users, which counts before it",
        ),
        (
            "authorization { users: [{user: a, password: b}] }",
            &["--user", "c"],
            "user and password are ignored: there is a list of users, which counts before them",
        ),
        (
            "",
            &["--user", "a", "--auth", "t"],
            "user and password are ignored: there is a token, which counts before them",
        ),
        (
            "",
            &["--pass", "b"],
            "a password without a user is ignored: clients need no credentials",
        ),
    ] {
        let (_, warnings) = run_over(file, flags).unwrap();
        assert_eq!(warnings.concat(), remark, "{file} {flags:?}");
    }
    let error = run_over("authorization { user: a, token: t }", &["--user", "c"]).unwrap_err();
    assert_eq!(error, "Cannot have a user/pass and token");
}

#[test]
fn zeros_are_defaults() {
    let zeros = "port: 0, max_connections: 0, max_payload: 0, max_control_line: 0, max_pending: 0\n\
        ping_interval: 0, ping_max: 0, write_deadline: 0, net: ''\n\
        authorization { timeout: 0 }, tls { timeout: 0, cert_file: c, key_file: k }\n\
        cluster { net: '', max_pending: 0, authorization { timeout: 0 }, tls { timeout: 0, cert_file: c, key_file: k, ca_file: a } }";
    let (mut options, _) = run_over(zeros, &["--tls=false", "-p", "0"]).unwrap();
    options.config_file = None;
    for tls in [&mut options.tls, &mut options.cluster.tls] {
        assert_eq!(std::mem::take(tls).timeout, 0.5);
    }
    assert_eq!(options, Options::default());
    let (options, _) = run_over("http_port: 0, max_subscriptions: 0", &["-p", "-1"]).unwrap();
    assert_eq!(
        (options.port, options.http_port, options.max_subscriptions),
        (-1, 0, 0)
    );
}

#[test]
fn the_last_of_several_blocks_counts() {
    let file = "cluster { port: 7, no_advertise: true }\ncluster { port: 8 }\nstreaming { id: a }\nstreaming { dir: x }";
    let (options, warnings) = run_over(file, &[]).unwrap();
    assert_eq!(
        (options.cluster.port, options.cluster.no_advertise),
        (8, false)
    );
    assert_eq!(options.streaming.cluster_id, "test-cluster");
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("t:1:1: \"cluster\" is ignored here: it is given again at"));
    let error = run_over(file, &["--strict"]).unwrap_err();
    assert!(error.contains("is ignored here"), "{error}");
}

/// What `flags` say of a file (F) and a second one for the streaming part (S).
fn told(file: &str, streaming: Option<&str>, flags: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let mut arguments = vec!["-c".to_owned(), path("F")];
    std::fs::write(path("F"), file).unwrap();
    if let Some(streaming) = streaming {
        std::fs::write(path("S"), streaming).unwrap();
        arguments.extend(["-sc".into(), path("S")]);
    }
    arguments.extend(flags.iter().map(|flag| flag.to_string()));
    let lines = match parse("midge", arguments) {
        Ok(Command::Run { warnings, .. } | Command::Check { warnings, .. }) => {
            let lines = warnings.iter().map(|line| format!("warning: {line}"));
            lines.collect::<Vec<_>>().join("\n")
        }
        Ok(other) => panic!("{other:?}"),
        Err(error) => error,
    };
    lines.replace(&format!("{}/", folder.path().display()), "")
}

#[test]
fn keys_that_streaming_does_not_know_are_told() {
    let file = "streaming { stoer: FILE, dir: x }";
    let text = "F:1:13: unknown field \"stoer\", did you mean \"streaming.store\"?";
    assert_eq!(told(file, None, &[]), format!("warning: {text}"));
    for flag in ["-t", "--strict"] {
        assert_eq!(told(file, None, &[flag]), text);
    }
    // At the top of a file for both parts, and of one for the streaming part.
    let streaming = "port: 1\nusers: []\nauthorization { x: 1 }\njetstream {}\ncluster_id: a\nstoer: FILE\nlimits { dead_leter: x }";
    let (below, beside) = (
        "7:10: unknown field \"dead_leter\", did you mean \"store_limits.dead_letter\"?",
        "6:1: unknown field \"stoer\", did you mean \"store\"?",
    );
    let alone = told(streaming, None, &["--streaming"]);
    assert!(alone.contains(&format!("warning: F:{beside}")), "{alone}");
    assert!(alone.contains(&format!("warning: F:{below}")), "{alone}");
    let second = "2:1: unknown field \"users\"";
    assert_eq!(
        told("port: 1", Some(streaming), &["-t"]),
        format!("S:{second}\nS:{beside}\nS:{below}")
    );
    // Beside a streaming block nothing at the top is read.
    let both = "store: FILE\nstreaming { id: a }";
    assert_eq!(told("", Some(both), &["-t"]), "");
    let text = "F:1:1: unknown field \"store\"";
    assert_eq!(told(both, None, &["-t", "--streaming"]), text);
    // A variable is no key.
    let variable = "streaming { X: FILE, store: $X, dir: x }";
    assert_eq!(told(variable, None, &["-t"]), "");
}

#[test]
fn all_parts_of_a_file_are_told_in_its_order() {
    let file = "max_paylod: 1\nstreaming { hb_interval: foo\n channels: 1, max_chanels: 2 }\nport: x\n\
        http: \"1.2.3.4:1\"\ntls { certfile: a }";
    let lines = told(file, None, &["-t"]);
    let places: Vec<&str> = lines
        .lines()
        .map(|line| line.split_once(": ").unwrap().0)
        .collect();
    let expected = ["F:1:1", "F:2:26", "F:3:2", "F:3:15", "F:4:7", "F:6:7"];
    assert_eq!(places, expected, "{lines}");
    // What is at odds is told as well, if all values could be read.
    let file = "nosuch: 1\nhttp_port: 1\nhttps_port: 2\nstreaming { store: FILE, file { crc_poly: 0, fds_limit: -1 } }";
    assert_eq!(
        told(file, None, &["-t"]),
        "F:1:1: unknown field \"nosuch\"\n\
         Can't start monitoring: can't specify both HTTP (1) and HTTPs (2) ports\n\
         Can't start monitoring: TLS cert and key required for HTTPS\n\
         for FILE stores, root directory must be specified\n\
         crc polynomial should be between 1 and 4294967295\n\
         file descriptor limit must be a positive number"
    );
}

#[test]
fn ports_that_are_given_twice() {
    let clients_and = |other| format!("port 5000 is given twice: for clients and for {other}");
    for (file, text) in [
        ("port: 5000, http: 5000", clients_and("monitoring")),
        (
            "listen: '127.0.0.1:5000', http: '0.0.0.0:5000'",
            clients_and("monitoring"),
        ),
        (
            "listen: '127.0.0.1:5000', cluster { listen: '[::]:5000' }",
            clients_and("routes"),
        ),
        (
            "port: 5001, http: 5000, cluster { port: 5000 }",
            "port 5000 is given twice: for monitoring and for routes".into(),
        ),
        (
            "http: 4222",
            clients_and("monitoring").replace("5000", "4222"),
        ),
        (
            "listen: '127.0.0.1:5000', http: '127.0.0.2:5000', cluster { listen: '[::1]:5000' }",
            String::new(),
        ),
        ("port: -1, http: -1, cluster { port: -1 }", String::new()),
        (
            "port: 5000, http: 5000, streaming { ns: 'nats://a' }",
            String::new(),
        ),
    ] {
        assert_eq!(told(file, None, &["-t"]), text, "{file}");
    }
    assert_eq!(
        told("http: 5000", None, &["-p", "5000"]),
        clients_and("monitoring")
    );
}

#[test]
fn what_nats_streaming_server_takes() {
    for (flags, seconds) in [(&["-hbi", "-1s"][..], 0), (&["-hbi", "2s"], 2)] {
        let interval = run(flags).streaming.heartbeat_interval;
        assert_eq!(interval.as_secs(), seconds, "{flags:?}");
    }
    for flags in [
        &["-sql_no_caching", "-hbt=-5s"][..],
        &[
            "-cluster_bootstrap",
            "-cluster_sync",
            "-cluster_raft_logging=false",
        ],
        &["-file_compact_frag", "0", "-file_compact_interval", "-1"],
        &["-file_slice_max_age", "-1s"],
    ] {
        assert!(run(flags).streaming.enabled, "{flags:?}");
    }
    let flags = ["-st", "FILE", "-dir", "x", "-file_slice_max_age", "-1s"];
    assert_eq!(fails(&flags), "slice max values must be positive numbers");
}

#[test]
fn mistakes() {
    assert_eq!(fails(&["-nope"]), "flag provided but not defined: --nope");
    for flag in ["-p", "-c", "--config", "--port", "-sl"] {
        let told = format!("flag needs an argument: {flag}");
        assert_eq!(fails(&[flag]), told);
    }
    let flags = ["-nope", "-c"];
    assert_eq!(fails(&flags), "flag provided but not defined: --nope");
    assert_eq!(
        fails(&["-p", "abc"]),
        "invalid value \"abc\" for flag -p, --port: parse error"
    );
    assert_eq!(
        fails(&["frobnicate"]),
        "unrecognized command: \"frobnicate\""
    );
}

#[test]
fn help_names_every_flag() {
    let text = usage("gnatsd");
    assert!(text.starts_with("\nUsage: gnatsd [options]\n"));
    for row in rows() {
        for flag in row.flags {
            assert!(text.contains(&dashed(flag)), "{flag}");
        }
    }
    for part in ["\n    passwd ", "\n    stan ", "quit, term, reopen"] {
        assert!(text.contains(part), "{part}");
    }
}

#[test]
fn a_file_for_streaming_alone_has_cluster_and_tls_of_streaming() {
    let clustered = "cluster { node_id: a, bootstrap: true }";
    let text = told("port: 1", Some(clustered), &[]);
    assert!(text.contains("streaming in clustered mode"), "{text}");
    // That is one of routes where the NATS part reads it too.
    let routes = "cluster { port: 6222 }";
    assert_eq!(told(routes, None, &["--streaming"]), "");
    let tls = "tls { client_cert: 1 }";
    let text = told("port: 1", Some(tls), &[]);
    assert!(text.starts_with("S:1:"), "{text}");
}
