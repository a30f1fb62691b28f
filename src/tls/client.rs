//! Settings of the connecting side, for programs that are clients of a NATS server.

use super::load::{Authorities, authorities, unfit};
use super::verify::{self, Signatures};
use crate::config::options::ClientTlsOptions;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use std::sync::Arc;

/// Without `ca_file` the system's authorities are trusted.
pub fn client(options: &ClientTlsOptions) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match options.skip_verify {
        true => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(Signatures(provider)))),
        false => {
            let trusted = match authorities(&options.ca_file)? {
                Some(authorities) => authorities,
                None => of_the_system()?,
            };
            let verifier = verify::of_servers(&trusted, provider);
            let verifier = verifier.map_err(|error| error.to_string())?;
            builder
                .dangerous()
                .with_custom_certificate_verifier(verifier)
        }
    };
    if options.cert_file.is_empty() && options.key_file.is_empty() {
        return Ok(Arc::new(builder.with_no_client_auth()));
    }
    let failed = |error: &dyn std::fmt::Display| {
        format!(
            "error parsing X509 certificate/key pair: {:?} and {:?}: {error}",
            options.cert_file, options.key_file
        )
    };
    let chain = CertificateDer::pem_file_iter(&options.cert_file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| failed(&error))?;
    let key = PrivateKeyDer::from_pem_file(&options.key_file).map_err(|error| failed(&error))?;
    let config = builder.with_client_auth_cert(chain, key);
    config
        .map(Arc::new)
        .map_err(|error| unfit(&options.cert_file, &options.key_file, &error))
}

fn of_the_system() -> Result<Authorities, String> {
    let mut store = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    store.add_parsable_certificates(found.certs);
    match store.is_empty() {
        true => Err("the system has no certificates of authorities: name a file of them".into()),
        false => Ok(Authorities {
            store: Arc::new(store),
            listed: Vec::new(),
            warnings: Vec::new(),
        }),
    }
}

/// Takes every certificate, as users asked who want encryption alone.
#[derive(Debug)]
struct Anybody(Signatures);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.tls12(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.tls13(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.schemes()
    }
}
