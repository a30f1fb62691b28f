//! TLS end to end, with a real client: INFO in plain text and handshake first, client certificates, and
//! certificates renewed while connections stay.

mod support;

use std::path::Path;
use support::Server;

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
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let params = rcgen::CertificateParams::new(names).unwrap();
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
