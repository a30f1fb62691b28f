//! Whose certificate is good: webpki's rules, and one of Go's beside them.
//!
//! A certificate that stands in `ca_file` itself is trusted as it is, also where it is an authority's (CA:TRUE),
//! which webpki takes for nobody's own: many clusters share one that signed itself. Its dates, purpose and name count
//! as ever, and the handshake proves as ever that the peer has the key.

use super::kinds;
use super::load::Authorities;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};
use std::sync::Arc;
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

/// For those who accept connections.
pub fn of_clients(
    authorities: &Authorities,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, VerifierBuilderError> {
    let store = authorities.store.clone();
    let webpki = WebPkiClientVerifier::builder_with_provider(store, provider.clone()).build()?;
    Ok(Arc::new(Verifier {
        webpki,
        listed: authorities.listed.clone(),
        signatures: Signatures(provider),
    }))
}

/// For those who dial.
pub fn of_servers(
    authorities: &Authorities,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, VerifierBuilderError> {
    let store = authorities.store.clone();
    let webpki = WebPkiServerVerifier::builder_with_provider(store, provider.clone()).build()?;
    Ok(Arc::new(Verifier {
        webpki,
        listed: authorities.listed.clone(),
        signatures: Signatures(provider),
    }))
}

#[derive(Debug)]
struct Verifier<V: ?Sized> {
    webpki: Arc<V>,
    /// The certificates in `ca_file`.
    listed: Vec<CertificateDer<'static>>,
    signatures: Signatures,
}

/// What every verifier says of the proof that a peer has the key of its certificate.
#[derive(Debug)]
pub struct Signatures(pub Arc<CryptoProvider>);

type Proof = Result<HandshakeSignatureValid, Error>;

impl Signatures {
    fn algorithms(&self) -> &WebPkiSupportedAlgorithms {
        &self.0.signature_verification_algorithms
    }

    pub fn tls12(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Proof {
        let verdict = verify_tls12_signature(message, certificate, signature, self.algorithms());
        verdict.map_err(|refusal| in_words(refusal, certificate))
    }

    pub fn tls13(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Proof {
        let verdict = verify_tls13_signature(message, certificate, signature, self.algorithms());
        verdict.map_err(|refusal| in_words(refusal, certificate))
    }

    pub fn schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms().supported_schemes()
    }
}

/// What the peer of a handshake is to be.
#[derive(Clone, Copy)]
enum Role<'a> {
    Client,
    /// Of this name.
    Server(&'a ServerName<'a>),
}

impl<V: ?Sized> Verifier<V> {
    /// What becomes of webpki's refusal.
    fn appeal(
        &self,
        refusal: Error,
        certificate: &CertificateDer<'_>,
        role: Role<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let verdict = match self.listed.contains(certificate) {
            true => judge_listed(certificate, refusal, role, now),
            false if kinds::is_authority(certificate) && is_unnamed(&refusal) => Err(words(
                "it is an authority's (CA:TRUE), and as a peer's own it must stand in ca_file itself: put it there, \
                 or make a new one with CA:FALSE",
            )),
            false => Err(refusal),
        };
        verdict.map_err(|refusal| in_words(refusal, certificate))
    }
}

/// Judges a certificate that `ca_file` has itself.
fn judge_listed(
    certificate: &CertificateDer<'_>,
    refusal: Error,
    role: Role<'_>,
    now: UnixTime,
) -> Result<(), Error> {
    let unreadable = || Error::from(CertificateError::BadEncoding);
    // Refuses other versions, and critical extensions that nobody knows.
    let parsed = ParsedCertificate::try_from(certificate)?;
    let (_, read) = X509Certificate::from_der(certificate).map_err(|_| unreadable())?;
    let now = i64::try_from(now.as_secs()).map_err(|_| unreadable())?;
    let now = ASN1Time::from_timestamp(now).map_err(|_| unreadable())?;
    if !read.validity().is_valid_at(now) {
        // It is about the dates: webpki looks at them first.
        return Err(refusal);
    }
    let purposes = read.extended_key_usage().map_err(|_| unreadable())?;
    let allowed = purposes.is_none_or(|purposes| {
        let given = purposes.value;
        match role {
            Role::Client => given.any || given.client_auth,
            Role::Server(_) => given.any || given.server_auth,
        }
    });
    if !allowed {
        return Err(CertificateError::InvalidPurpose.into());
    }
    match role {
        Role::Client => Ok(()),
        Role::Server(name) => verify_server_name(&parsed, name),
    }
}

/// A refusal that says why, where the kind of the certificate is the reason.
fn in_words(refusal: Error, certificate: &CertificateDer<'_>) -> Error {
    kinds::fault_of_peer(certificate).map_or(refusal, |fault| words(&fault))
}

/// Whether rustls has no name of its own for a refusal of webpki, as for `CaUsedAsEndEntity`.
fn is_unnamed(refusal: &Error) -> bool {
    matches!(
        refusal,
        Error::InvalidCertificate(CertificateError::Other(_))
    )
}

fn words(text: &str) -> Error {
    CertificateError::Other(OtherError(Arc::from(Box::from(text)))).into()
}

impl ClientCertVerifier for Verifier<dyn ClientCertVerifier> {
    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verdict = self
            .webpki
            .verify_client_cert(certificate, intermediates, now);
        verdict.or_else(|refusal| {
            self.appeal(refusal, certificate, Role::Client, now)?;
            Ok(ClientCertVerified::assertion())
        })
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signatures.tls12(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signatures.tls13(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signatures.schemes()
    }
}

impl ServerCertVerifier for Verifier<WebPkiServerVerifier> {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verdict = self
            .webpki
            .verify_server_cert(certificate, intermediates, name, ocsp, now);
        verdict.or_else(|refusal| {
            self.appeal(refusal, certificate, Role::Server(name), now)?;
            Ok(ServerCertVerified::assertion())
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signatures.tls12(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signatures.tls13(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signatures.schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair};
    use rustls::RootCertStore;
    use rustls::crypto::ring;
    use rustls::pki_types::pem::PemObject;

    /// A certificate for `localhost` that signed itself and is an authority's.
    fn made(change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    /// What becomes of a certificate as a client's, and as the server's of this name.
    fn verdicts(
        listed: &[&CertificateDer<'static>],
        shown: &CertificateDer<'static>,
        name: &str,
    ) -> [Result<(), String>; 2] {
        let mut store = RootCertStore::empty();
        for certificate in listed {
            store.add((*certificate).clone()).unwrap();
        }
        let authorities = Authorities {
            store: Arc::new(store),
            listed: listed.iter().map(|listed| (*listed).clone()).collect(),
            warnings: Vec::new(),
        };
        let provider = Arc::new(ring::default_provider());
        let clients = of_clients(&authorities, provider.clone()).unwrap();
        let servers = of_servers(&authorities, provider).unwrap();
        let (name, now) = (
            ServerName::try_from(name.to_owned()).unwrap(),
            UnixTime::now(),
        );
        let client = clients.verify_client_cert(shown, &[], now);
        let server = servers.verify_server_cert(shown, &[], &name, &[], now);
        [
            client.map(|_| ()).map_err(|error| error.to_string()),
            server.map(|_| ()).map_err(|error| error.to_string()),
        ]
    }

    fn assert_refused(verdict: &Result<(), String>, words: &str) {
        assert!(
            verdict.as_ref().is_err_and(|error| error.contains(words)),
            "{words}: {verdict:?}"
        );
    }

    #[test]
    fn an_authority_is_a_peer_where_it_is_listed_itself() {
        let (shared, other) = (made(|_| {}), made(|_| {}));
        assert_eq!(
            verdicts(&[&other, &shared], &shared, "localhost"),
            [Ok(()), Ok(())]
        );
        for verdict in verdicts(&[&other], &shared, "localhost") {
            assert_refused(&verdict, "(CA:TRUE)");
        }
    }

    #[test]
    fn dates_purpose_and_name_count_as_ever() {
        let old = made(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
        let early = made(|params| params.not_before = rcgen::date_time_ymd(4000, 1, 1));
        for (shown, words) in [
            (old, "certificate expired"),
            (early, "certificate not valid yet"),
        ] {
            for verdict in verdicts(&[&shown], &shown, "localhost") {
                assert_refused(&verdict, words);
            }
        }
        let of = |purpose| made(|params| params.extended_key_usages = vec![purpose]);
        let server = of(ExtendedKeyUsagePurpose::ServerAuth);
        let [as_client, as_server] = verdicts(&[&server], &server, "localhost");
        assert_refused(&as_client, "InvalidPurpose");
        assert_eq!(as_server, Ok(()));
        let client = of(ExtendedKeyUsagePurpose::ClientAuth);
        let [as_client, as_server] = verdicts(&[&client], &client, "localhost");
        assert_eq!(as_client, Ok(()));
        assert_refused(&as_server, "InvalidPurpose");
        let shared = made(|_| {});
        let [as_client, as_server] = verdicts(&[&shared], &shared, "elsewhere.example");
        assert_eq!(as_client, Ok(()));
        assert_refused(&as_server, "elsewhere.example");
    }

    /// The files are made by openssl; `byv1.pem` is of the authority `v1.pem`.
    #[test]
    fn kinds_that_cannot_be_used_are_refused_in_words() {
        let read = |name: &str| {
            let path = format!("{}/src/tls/testdata/{name}", env!("CARGO_MANIFEST_DIR"));
            CertificateDer::from_pem_file(path).unwrap()
        };
        let known = made(|_| {});
        for (name, words) in [
            ("v1.pem", "it is of X.509 version 1"),
            ("p521.pem", "its key is ECDSA on P-521"),
            ("rsa1024.pem", "its key is RSA with 1024 bits"),
            ("sha1.pem", "it is signed with RSA and SHA-1"),
        ] {
            for verdict in verdicts(&[&known], &read(name), "localhost") {
                assert_refused(&verdict, words);
            }
        }
        let old = read("v1.pem");
        for verdict in verdicts(&[&old], &old, "localhost") {
            assert_refused(&verdict, "it is of X.509 version 1");
        }
        // Nobody looks at the signature of what is trusted as it is, nor at the version of an authority.
        let listed = read("sha1.pem");
        assert_eq!(verdicts(&[&listed], &listed, "localhost"), [Ok(()), Ok(())]);
        assert_eq!(
            verdicts(&[&old], &read("byv1.pem"), "localhost"),
            [Ok(()), Ok(())]
        );
    }
}
