//! TLS end to end, with a real client: INFO in plain text and handshake first, client certificates, and
//! certificates renewed while connections stay.

mod support;

use rustls::pki_types::{CertificateDer, pem::PemObject};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use support::{Server, free_port};

struct Authority {
    folder: tempfile::TempDir,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        std::fs::write(folder.path().join("ca.pem"), cert.pem()).unwrap();
        Self {
            folder,
            issuer: rcgen::Issuer::new(params, key),
        }
    }

    /// Writes a certificate and its key.
    fn issue(&self, name: &str) {
        self.issue_until(name, 4000);
    }

    /// One that is good until the beginning of a year.
    fn issue_until(&self, name: &str, year: i32) {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.path(&format!("{name}.pem")), cert.pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn config(&self, more: &str) -> String {
        let text = format!(
            "tls {{ cert_file: '{}', key_file: '{}', ca_file: '{}', timeout: 20 {more} }}",
            self.path("server.pem"),
            self.path("server.key"),
            self.path("ca.pem")
        );
        let path = self.path("server.conf");
        std::fs::write(&path, text).unwrap();
        path
    }
}

async fn exchange(client: &async_nats::Client) {
    use futures::StreamExt;
    let mut sub = client.subscribe("secret.>").await.unwrap();
    client.flush().await.unwrap();
    let large = vec![7u8; 900_000];
    client.publish("secret.small", "x".into()).await.unwrap();
    client
        .publish("secret.large", large.clone().into())
        .await
        .unwrap();
    assert_eq!(&sub.next().await.unwrap().payload[..], b"x");
    assert!(sub.next().await.unwrap().payload[..] == large[..]);
}

fn options(authority: &Authority) -> async_nats::ConnectOptions {
    async_nats::ConnectOptions::new()
        .add_root_certificates(Path::new(&authority.path("ca.pem")).into())
        .require_tls(true)
}

#[tokio::test]
async fn a_client_with_tls_of_either_kind() {
    for first in [false, true] {
        let authority = Authority::new();
        authority.issue("server");
        let config = authority.config(if first { ", handshake_first: true" } else { "" });
        let server = Server::start(&["--threads", "2", "-c", &config]);
        let options = options(&authority);
        let options = if first { options.tls_first() } else { options };
        let client = options
            .connect(format!("tls://localhost:{}", server.port))
            .await
            .unwrap();
        exchange(&client).await;
        drop(client);
        server.stop();
    }
}

/// It gets INFO and the error together, and both in plain text: there is no session yet.
#[test]
fn a_server_that_is_full_says_so_before_the_handshake() {
    let authority = Authority::new();
    authority.issue("server");
    let config = authority.config("");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text + "\nmax_connections: 1\n").unwrap();
    let server = Server::start(&["--threads", "1", "-c", &config]);
    let connect = || {
        let socket = std::net::TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        let patience = Some(std::time::Duration::from_secs(60));
        socket.set_read_timeout(patience).unwrap();
        BufReader::new(socket)
    };
    let mut first = connect();
    let mut info = String::new();
    first.read_line(&mut info).unwrap();
    let mut told = String::new();
    connect().read_to_string(&mut told).unwrap();
    let (info, error) = told.split_once("\r\n").unwrap();
    assert!(info.starts_with("INFO {"), "{info}");
    assert_eq!(error, "-ERR 'Maximum Connections Exceeded'\r\n");
    server.stop();
}

/// Python's asyncio and others say that they are done, and close the socket when the server has.
#[test]
fn a_client_that_says_goodbye_is_let_go() {
    let authority = Authority::new();
    authority.issue("server");
    let config = authority.config(", handshake_first: true");
    let server = Server::start(&["--threads", "1", "-c", &config]);
    let mut roots = rustls::RootCertStore::empty();
    let ca = std::fs::read(authority.path("ca.pem")).unwrap();
    roots
        .add(CertificateDer::from_pem_slice(&ca).unwrap())
        .unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let config = std::sync::Arc::new(config);
    let open = || {
        let name = "localhost".try_into().unwrap();
        let session = rustls::ClientConnection::new(config.clone(), name).unwrap();
        let socket = std::net::TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        let patience = Some(std::time::Duration::from_secs(60));
        socket.set_read_timeout(patience).unwrap();
        BufReader::new(rustls::StreamOwned::new(session, socket))
    };
    let mut subscriber = open();
    let stream = subscriber.get_mut();
    stream
        .write_all(b"CONNECT {\"verbose\":false}\r\nSUB last.words 1\r\nPING\r\n")
        .unwrap();
    let mut lines = subscriber.by_ref().lines().map(Result::unwrap);
    assert!(lines.any(|line| line == "PONG"));
    let mut leaver = open();
    let stream = leaver.get_mut();
    stream
        .write_all(b"CONNECT {\"verbose\":false}\r\nPUB last.words 3\r\nbye\r\n")
        .unwrap();
    stream.conn.send_close_notify();
    stream.flush().unwrap();
    let mut lines = subscriber.by_ref().lines().map(Result::unwrap);
    assert!(lines.any(|line| line == "bye"));
    // INFO, and the end.
    leaver.read_to_end(&mut Vec::new()).unwrap();
    server.stop();
}

#[tokio::test]
async fn only_known_certificates_where_they_are_verified() {
    let authority = Authority::new();
    authority.issue("server");
    authority.issue("client");
    let config = authority.config(", verify: true");
    let server = Server::start(&["--threads", "1", "-c", &config]);
    let url = format!("tls://localhost:{}", server.port);
    assert!(options(&authority).connect(&url).await.is_err());
    let (cert, key) = (authority.path("client.pem"), authority.path("client.key"));
    let with_certificate = options(&authority).add_client_certificate(cert.into(), key.into());
    exchange(&with_certificate.connect(&url).await.unwrap()).await;
    server.stop();
}

#[tokio::test]
async fn a_renewed_certificate_is_taken_and_a_bad_one_is_not() {
    let authority = Authority::new();
    authority.issue("server");
    let config = authority.config("");
    let server = Server::start(&["--threads", "2", "-c", &config]);
    let url = format!("tls://localhost:{}", server.port);
    let early = options(&authority).connect(&url).await.unwrap();
    authority.issue("server");
    server.signal(nix::sys::signal::Signal::SIGHUP);
    server.wait_log("Reloaded server configuration");
    exchange(&options(&authority).connect(&url).await.unwrap()).await;
    std::fs::write(authority.path("server.pem"), "junk").unwrap();
    server.signal(nix::sys::signal::Signal::SIGHUP);
    server.wait_log("Failed to reload server configuration");
    let log = server.log();
    assert!(log.contains("server.pem"), "{log}");
    exchange(&options(&authority).connect(&url).await.unwrap()).await;
    exchange(&early).await;
    server.stop();
}

#[tokio::test]
async fn a_certificate_says_who_it_is() {
    let authority = Authority::new();
    for name in ["server", "client"] {
        authority.issue(name);
    }
    let config = authority.config(", verify_and_map: true");
    let users = "\nauthorization { users: [{user: localhost, permissions: {publish: 'secret.>', subscribe: 'secret.>'}}] }";
    let text = std::fs::read_to_string(&config).unwrap() + users;
    std::fs::write(&config, text).unwrap();
    let server = Server::start(&["-c", &config]);
    let certified = || {
        options(&authority).add_client_certificate(
            authority.path("client.pem").into(),
            authority.path("client.key").into(),
        )
    };
    let client = certified().connect(server.url()).await.unwrap();
    exchange(&client).await;
    client.publish("public", "x".into()).await.unwrap();
    client.flush().await.unwrap();
    server.wait_log("Publish Violation");

    // Without a user of that name it is nobody.
    let renamed = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, renamed.replace("user: localhost", "user: other")).unwrap();
    server.reload();
    assert!(certified().connect(server.url()).await.is_err());
    server.stop();
}

/// What the server makes of bytes in place of a handshake: it closes, and serves others.
#[tokio::test]
async fn a_handshake_that_is_none_harms_nobody() {
    use std::io::{Read, Write};
    for first in [false, true] {
        let authority = Authority::new();
        authority.issue("server");
        let config = authority.config(if first { ", handshake_first: true" } else { "" });
        let server = Server::start(&["-c", &config]);
        let client = options(&authority);
        let client = if first { client.tls_first() } else { client };
        let client = client.connect(server.url()).await.unwrap();
        let mut random = midge::util::random::Random::new(3);
        for round in 0..60 {
            let mut bad = std::net::TcpStream::connect(("127.0.0.1", server.port)).unwrap();
            bad.set_read_timeout(Some(support::PATIENCE)).unwrap();
            let mut bytes: Vec<u8> = (0..random.below(400))
                .map(|_| random.next_u64() as u8)
                .collect();
            // A record that looks like a handshake, with nothing sound in it.
            if round % 2 == 0 {
                let length = (bytes.len() as u16).to_be_bytes();
                bytes.splice(0..0, [22, 3, 1, length[0], length[1]]);
            }
            let _ = bad.write_all(&bytes);
            let _ = bad.shutdown(std::net::Shutdown::Write);
            let mut rest = Vec::new();
            let _ = bad.read_to_end(&mut rest);
        }
        exchange(&client).await;
        server.stop();
    }
}

#[tokio::test]
async fn certificates_out_of_their_time_or_of_strangers_are_refused() {
    let authority = Authority::new();
    authority.issue("server");
    let stranger = Authority::new();
    stranger.issue("stranger");
    authority.issue_until("expired", 2020);
    let config = authority.config(", verify: true");
    let server = Server::start(&["-c", &config, "-D"]);
    let with = |folder: &Authority, name: &str| {
        options(&authority)
            .add_client_certificate(
                folder.path(&format!("{name}.pem")).into(),
                folder.path(&format!("{name}.key")).into(),
            )
            .connect(server.url())
    };
    assert!(with(&authority, "expired").await.is_err());
    assert!(with(&stranger, "stranger").await.is_err());
    authority.issue("good");
    exchange(&with(&authority, "good").await.unwrap()).await;
    server.wait_log("TLS handshake error");
    let log = server.log();
    let line = log
        .lines()
        .find(|line| line.contains("TLS handshake error"));
    assert!(line.is_some_and(|line| line.contains("[DBG]")), "{log}");
    server.stop();
}

/// Writes a certificate that signed itself and is an authority's (CA:TRUE), as `openssl req -x509` makes them.
fn sign_itself(folder: &Path, name: &str, host: &str, until_year: i32) {
    let names = vec![host.to_owned(), "localhost.example".to_owned()];
    let mut params = rcgen::CertificateParams::new(names).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.not_after = rcgen::date_time_ymd(until_year, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = params.self_signed(&key).unwrap();
    std::fs::write(folder.join(format!("{name}.pem")), cert.pem()).unwrap();
    std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
}

/// A member of a cluster with this certificate for clients and routes, which trusts those in `ca.pem`.
fn member(folder: &Path, name: &str, port: u16, route: u16) -> Server {
    let folder = folder.to_str().unwrap();
    let tls = format!(
        "tls {{ cert_file: '{folder}/{name}.pem', key_file: '{folder}/{name}.key', ca_file: '{folder}/ca.pem', \
         verify: true, timeout: 20 }}\n"
    );
    let text = format!(
        "{tls} cluster {{ listen: '127.0.0.1:{port}', routes: ['nats://127.0.0.1:{route}']\n {tls} }}"
    );
    let config = format!("{folder}/{port}.conf");
    std::fs::write(&config, text).unwrap();
    Server::start(&["--threads", "1", "-D", "-c", &config])
}

/// A client that shows this certificate, and trusts `ca.pem` as servers do.
fn showing(folder: &Path, name: &str) -> async_nats::ConnectOptions {
    let file = |name: String| folder.join(name).to_str().unwrap().to_owned();
    let config = midge::tls::client(&midge::config::options::ClientTlsOptions {
        cert_file: file(format!("{name}.pem")),
        key_file: file(format!("{name}.key")),
        ca_file: file("ca.pem".into()),
        ..Default::default()
    });
    async_nats::ConnectOptions::new()
        .tls_client_config((*config.unwrap()).clone())
        .require_tls(true)
}

#[tokio::test]
async fn one_certificate_that_signed_itself_serves_a_whole_cluster() {
    use futures::StreamExt;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    sign_itself(folder, "shared", "127.0.0.1", 4000);
    sign_itself(folder, "stranger", "127.0.0.1", 4000);
    sign_itself(folder, "expired", "127.0.0.1", 2020);
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    std::fs::write(
        folder.join("ca.pem"),
        read("shared.pem") + &read("expired.pem"),
    )
    .unwrap();
    let ports = (free_port(), free_port());
    let first = member(folder, "shared", ports.0, ports.1);
    let second = member(folder, "shared", ports.1, ports.0);
    let here = showing(folder, "shared")
        .connect(first.url())
        .await
        .unwrap();
    let there = showing(folder, "shared")
        .connect(second.url())
        .await
        .unwrap();
    exchange(&here).await;
    let mut heard = here.subscribe("crossing").await.unwrap();
    here.flush().await.unwrap();
    let crossing = async {
        loop {
            there.publish("crossing", "x".into()).await.unwrap();
            there.flush().await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let patience = tokio::time::sleep(support::PATIENCE);
    tokio::select! {
        message = heard.next() => assert_eq!(&message.unwrap().payload[..], b"x"),
        () = crossing => {}
        () = patience => panic!("nothing crosses\n{}", first.log()),
    }
    assert!(
        showing(folder, "stranger")
            .connect(first.url())
            .await
            .is_err()
    );
    first.wait_log("must stand in ca_file itself");
    assert!(
        showing(folder, "expired")
            .connect(first.url())
            .await
            .is_err()
    );
    first.wait_log("certificate expired");
    first.stop();
    second.stop();
}

#[test]
fn routes_refuse_what_signed_itself_and_is_not_good() {
    for (name, host, until_year, listed, words) in [
        (
            "stranger",
            "127.0.0.1",
            4000,
            false,
            "must stand in ca_file itself",
        ),
        ("expired", "127.0.0.1", 2020, true, "certificate expired"),
        (
            "elsewhere",
            "elsewhere.example",
            4000,
            true,
            "certificate not valid for name",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        sign_itself(folder, "good", "127.0.0.1", 4000);
        sign_itself(folder, name, host, until_year);
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
        let mut ca = read("good.pem");
        if listed {
            ca += &read(&format!("{name}.pem"));
        }
        std::fs::write(folder.join("ca.pem"), ca).unwrap();
        let (dialled, nowhere) = (free_port(), free_port());
        let bad = member(folder, name, dialled, nowhere);
        let dialling = member(folder, "good", free_port(), dialled);
        dialling.wait_log(words);
        assert!(!dialling.log().contains("TLS handshake complete"));
        dialling.stop();
        bad.stop();
    }
}

#[test]
fn a_check_of_the_configuration_reads_certificates() {
    let authority = Authority::new();
    authority.issue("server");
    let config = authority.config("");
    let check = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_midge"));
        let output = command.args(["-t", "-c", &config]).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let warnings = said.lines().filter(|line| line.starts_with("warning:"));
        let told = warnings.collect::<String>() + &String::from_utf8(output.stderr).unwrap();
        (output.status.success(), told)
    };
    assert_eq!(check(), (true, String::new()));
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/src/tls/testdata");
    std::fs::copy(format!("{data}/p521.pem"), authority.path("ca.pem")).unwrap();
    let (good, text) = check();
    assert!(
        !good && text.contains("ca.pem: the certificate of \"CN=p521\""),
        "{text}"
    );
    std::fs::copy(format!("{data}/v1.pem"), authority.path("server.pem")).unwrap();
    let (good, text) = check();
    assert!(
        !good && text.contains("server.pem: it is of X.509 version 1"),
        "{text}"
    );
}
