//! One TLS connection, either side: ciphertext in, plain text out, and the other way round.

use super::{kinds, load::suite_name, names};
use rustls::pki_types::ServerName;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, Connection,
    ProtocolVersion, ServerConfig, ServerConnection,
};
use std::io::{Read, Write};
use std::sync::Arc;

/// The first byte of every handshake record.
const HANDSHAKE_RECORD: u8 = 22;

#[derive(Debug)]
pub struct Session {
    connection: Connection,
    /// Nothing has come in yet.
    fresh: bool,
    /// The peer said that nothing follows.
    ended: bool,
}

/// Why a session ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    /// The peer goes on in plain text.
    PlainText,
    /// What went wrong; an alert for the peer may be pending.
    Broken(String),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PlainText => f.write_str("first record does not look like a TLS handshake"),
            Self::Broken(text) => f.write_str(text),
        }
    }
}

/// What was agreed on, by the names the original shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    pub version: &'static str,
    pub cipher_suite: String,
    /// The names in the peer's certificate, where it had to show one.
    pub names: Vec<String>,
}

impl Session {
    pub fn server(config: Arc<ServerConfig>) -> Result<Self, String> {
        let connection = ServerConnection::new(config).map_err(|error| error.to_string())?;
        Ok(Self::new(connection.into()))
    }

    /// `host`: whom the peer's certificate must name.
    pub fn client(config: Arc<ClientConfig>, host: &str) -> Result<Self, String> {
        let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
        let connection = ClientConnection::new(config, name).map_err(|error| error.to_string())?;
        Ok(Self::new(connection.into()))
    }

    fn new(mut connection: Connection) -> Self {
        // Whoever writes bounds what is pending by itself.
        connection.set_buffer_limit(None);
        Self {
            connection,
            fresh: true,
            ended: false,
        }
    }

    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Whether the peer has said that nothing follows (`close_notify`): the end of its stream, as much as
    /// that of the socket. Many close the socket only when we have.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Takes ciphertext in and appends the plain text in it to `plain`. There may be output
    /// afterwards, also after a fault.
    pub fn receive(&mut self, mut bytes: &[u8], plain: &mut Vec<u8>) -> Result<(), Fault> {
        if std::mem::take(&mut self.fresh)
            && matches!(self.connection, Connection::Server(_))
            && bytes.first().is_some_and(|byte| *byte != HANDSHAKE_RECORD)
        {
            return Err(Fault::PlainText);
        }
        let broken = |error: &dyn std::fmt::Display| Fault::Broken(error.to_string());
        while !bytes.is_empty() {
            let taken = self.connection.read_tls(&mut bytes);
            if taken.map_err(|error| broken(&error))? == 0 {
                break;
            }
            let state = self.connection.process_new_packets();
            let state = state.map_err(|error| Fault::Broken(in_words(&error)))?;
            self.ended = state.peer_has_closed();
            let ready = state.plaintext_bytes_to_read();
            let at = plain.len();
            plain.resize(at + ready, 0);
            let read = self.connection.reader().read_exact(&mut plain[at..]);
            read.map_err(|error| broken(&error))?;
        }
        Ok(())
    }

    /// Plain text to go out. Bytes of one call share records as far as those are large.
    pub fn send(&mut self, plain: &[u8]) {
        let written = self.connection.writer().write_all(plain);
        written.expect("the buffer has no limit");
    }

    /// Says that nothing follows.
    pub fn close(&mut self) {
        self.connection.send_close_notify();
    }

    /// Appends the ciphertext that is ready to go out.
    pub fn take_output(&mut self, out: &mut Vec<u8>) {
        while self.connection.wants_write() {
            let written = self.connection.write_tls(out);
            written.expect("a Vec takes everything");
        }
    }

    /// Once the handshake is done.
    pub fn describe(&self) -> Option<Described> {
        let version = match self.connection.protocol_version()? {
            ProtocolVersion::TLSv1_2 => "1.2",
            ProtocolVersion::TLSv1_3 => "1.3",
            _ => "unknown",
        };
        let certificate = self.connection.peer_certificates().and_then(<[_]>::first);
        Some(Described {
            version,
            names: certificate.map(names::of).unwrap_or_default(),
            cipher_suite: suite_name(self.connection.negotiated_cipher_suite()?),
        })
    }
}

/// An error of rustls, with what it leaves out.
fn in_words(error: &rustls::Error) -> String {
    match error {
        // Its own words begin with the names of types.
        rustls::Error::InvalidCertificate(CertificateError::Other(fault)) => {
            format!("invalid peer certificate: {fault}")
        }
        rustls::Error::InvalidCertificate(
            CertificateError::UnsupportedSignatureAlgorithmContext { .. }
            | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. },
        ) => "invalid peer certificate: it is, or one between it and the authority is, signed in a way that cannot be \
              verified: use RSA or ECDSA with SHA-256"
            .into(),
        // Peers keep back what they know not to be taken, and say no more than this.
        rustls::Error::NoCertificatesPresented => {
            format!(
                "{error}: it has none, or none whose key is {}",
                kinds::KEYS
            )
        }
        rustls::Error::AlertReceived(AlertDescription::HandshakeFailure) => format!(
            "{error}: no protocol version or cipher suite in common, or no certificate whose key is {}",
            kinds::KEYS
        ),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::options::TlsOptions;
    use crate::tls::{Configs, load};
    use proptest::prelude::*;

    /// A certificate for `localhost` that is its own authority.
    fn configs(change: impl FnOnce(&mut TlsOptions)) -> Result<Configs, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let mut options = TlsOptions {
            enabled: true,
            cert_file: file("cert.pem", &made.cert.pem()),
            key_file: file("key.pem", &made.signing_key.serialize_pem()),
            ca_file: file("ca.pem", &made.cert.pem()),
            ..TlsOptions::default()
        };
        change(&mut options);
        load(&options, false)
    }

    fn pair(configs: &Configs, host: &str) -> (Session, Session) {
        (
            Session::server(configs.server.clone()).unwrap(),
            Session::client(configs.client.clone().unwrap(), host).unwrap(),
        )
    }

    /// Moves bytes from one side to the other, in pieces of these sizes.
    fn pump(
        from: &mut Session,
        to: &mut Session,
        sizes: &mut impl Iterator<Item = usize>,
    ) -> Result<Vec<u8>, Fault> {
        let (mut wire, mut plain) = (Vec::new(), Vec::new());
        from.take_output(&mut wire);
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            let size = sizes.next().unwrap().clamp(1, rest.len());
            to.receive(&rest[..size], &mut plain)?;
            rest = &rest[size..];
        }
        Ok(plain)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]
        #[test]
        fn everything_crosses_in_pieces_of_any_size(
            sizes in proptest::collection::vec(1..20_000usize, 1..20),
            payload in proptest::collection::vec(any::<u8>(), 0..100_000),
        ) {
            let configs = configs(|_| {}).unwrap();
            let (mut server, mut client) = pair(&configs, "localhost");
            let mut sizes = sizes.into_iter().cycle();
            for _ in 0..4 {
                pump(&mut client, &mut server, &mut sizes).unwrap();
                pump(&mut server, &mut client, &mut sizes).unwrap();
            }
            prop_assert!(!server.is_handshaking() && !client.is_handshaking());
            prop_assert_eq!(server.describe().unwrap().version, "1.3");
            client.send(&payload);
            prop_assert_eq!(&pump(&mut client, &mut server, &mut sizes).unwrap(), &payload);
            server.send(&payload);
            server.close();
            prop_assert!(!client.has_ended());
            prop_assert_eq!(&pump(&mut server, &mut client, &mut sizes).unwrap(), &payload);
            prop_assert!(client.has_ended() && !server.has_ended());
        }

        #[test]
        fn garbage_ends_the_session_and_nothing_else(bytes in proptest::collection::vec(any::<u8>(), 1..3000)) {
            let configs = configs(|_| {}).unwrap();
            let (mut server, _) = pair(&configs, "localhost");
            let mut plain = Vec::new();
            let _ = server.receive(&bytes, &mut plain);
            server.take_output(&mut Vec::new());
            prop_assert!(plain.is_empty() && server.is_handshaking());
        }
    }

    #[test]
    fn plain_text_is_recognised() {
        let configs = configs(|_| {}).unwrap();
        let (mut server, _) = pair(&configs, "localhost");
        assert_eq!(
            server.receive(b"CONNECT {}\r\n", &mut Vec::new()),
            Err(Fault::PlainText)
        );
    }

    #[test]
    fn a_certificate_of_another_name_is_refused() {
        let configs = configs(|_| {}).unwrap();
        let (mut server, mut client) = pair(&configs, "elsewhere.example");
        let mut whole = std::iter::repeat(usize::MAX);
        pump(&mut client, &mut server, &mut whole).unwrap();
        let refused = pump(&mut server, &mut client, &mut whole).unwrap_err();
        assert!(
            refused.to_string().contains("elsewhere.example"),
            "{refused}"
        );
    }

    #[test]
    fn suites_and_curves() {
        let chosen =
            configs(|o| o.cipher_suites = vec!["TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305".into()]);
        assert!(chosen.is_ok());
        for (suites, curves, says) in [
            (
                vec!["TLS_RSA_WITH_RC4_128_SHA"],
                vec![],
                "is not offered here",
            ),
            (
                vec!["TLS_NONSENSE"],
                vec![],
                "Unrecognized cipher TLS_NONSENSE",
            ),
            (vec![], vec!["CurveP521"], "is not offered here"),
            (vec![], vec!["P1"], "Unrecognized curve preference P1"),
        ] {
            let error = configs(|o| {
                o.cipher_suites = suites.iter().map(|s| s.to_string()).collect();
                o.curves = curves.iter().map(|s: &&str| s.to_string()).collect();
            });
            let error = error.unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        let error = configs(|o| o.key_file = o.cert_file.clone()).unwrap_err();
        assert!(
            error.contains("error parsing X509 certificate/key pair"),
            "{error}"
        );
        let error = configs(|o| o.ca_file = "/nonexistent".into()).unwrap_err();
        assert!(
            error.contains("failed to parse root ca certificate: /nonexistent"),
            "{error}"
        );
    }

    #[test]
    fn kinds_that_cannot_be_used_are_named_with_their_file() {
        let data = |name: &str| format!("{}/src/tls/testdata/{name}", env!("CARGO_MANIFEST_DIR"));
        for (name, words) in [
            ("v1.pem", "v1.pem: it is of X.509 version 1"),
            ("p521.pem", "p521.pem: its key is ECDSA on P-521"),
            ("rsa1024.pem", "rsa1024.pem: its key is RSA with 1024 bits"),
        ] {
            let error = configs(|o| o.cert_file = data(name)).unwrap_err();
            assert!(error.contains(words), "{error}");
            assert!(error.contains("make a new"), "{error}");
        }
        let error = configs(|o| o.ca_file = data("p521.pem")).unwrap_err();
        let words = "p521.pem: the certificate of \"CN=p521\": its key is ECDSA on P-521";
        assert!(error.contains(words), "{error}");
        assert!(configs(|o| o.ca_file = data("v1.pem")).is_ok());
        // Beside others it does no harm.
        let both = tempfile::NamedTempFile::new().unwrap();
        let text =
            ["p521.pem", "byv1.pem"].map(|name| std::fs::read_to_string(data(name)).unwrap());
        std::fs::write(both.path(), text.concat()).unwrap();
        let found = configs(|o| o.ca_file = both.path().to_str().unwrap().to_owned()).unwrap();
        assert!(
            matches!(&found.warnings[..], [one] if one.contains("P-521")),
            "{:?}",
            found.warnings
        );
    }
}
