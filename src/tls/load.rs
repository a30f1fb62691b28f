//! From options to rustls' settings. Whatever is wrong is said with the file it is in.

use super::{kinds, verify};
use crate::config::options::TlsOptions;
use rustls::crypto::{CryptoProvider, SupportedKxGroup, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedCipherSuite};
use std::sync::Arc;

/// What one tls block gives.
#[derive(Clone, Debug)]
pub struct Configs {
    pub server: Arc<ServerConfig>,
    /// The same without asking for client certificates, for monitoring.
    pub monitor: Arc<ServerConfig>,
    /// For the dialling side of routes; None without authorities to trust.
    pub client: Option<Arc<ClientConfig>>,
    /// What the operator should know, although it does not keep a server from starting.
    pub warnings: Vec<String>,
}

/// `mutual`: peers must show certificates whatever `verify` says, as between servers.
pub fn load(options: &TlsOptions, mutual: bool) -> Result<Configs, String> {
    let provider = Arc::new(provider(options)?);
    let (chain, key) = identity(options)?;
    let authorities = authorities(&options.ca_file)?;
    let builder = || {
        ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())
    };
    let pair = |error| unfit(&options.cert_file, &options.key_file, &error);
    let unfounded = |error| format!("failed to parse root ca certificate: {error}");
    let open = builder()?
        .with_no_client_auth()
        .with_single_cert(chain.clone(), key.clone_key())
        .map_err(pair)?;
    let open = Arc::new(open);
    let server = match (&authorities, options.verify || options.map || mutual) {
        (Some(authorities), true) => {
            let verifier = verify::of_clients(authorities, provider.clone()).map_err(unfounded)?;
            let config = builder()?
                .with_client_cert_verifier(verifier)
                .with_single_cert(chain.clone(), key.clone_key())
                .map_err(pair)?;
            Arc::new(config)
        }
        (None, true) => {
            return Err("tls: client certificates cannot be verified without ca_file".into());
        }
        (_, false) => open.clone(),
    };
    let client = match &authorities {
        Some(authorities) => {
            let verifier = verify::of_servers(authorities, provider.clone()).map_err(unfounded)?;
            let config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(|error| error.to_string())?
                .dangerous()
                .with_custom_certificate_verifier(verifier)
                .with_client_auth_cert(chain, key)
                .map_err(pair)?;
            Some(Arc::new(config))
        }
        None => None,
    };
    Ok(Configs {
        server,
        monitor: open,
        client,
        warnings: authorities.map_or_else(Vec::new, |authorities| authorities.warnings),
    })
}

fn identity(
    options: &TlsOptions,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
    let failed = |file: &str, error: &dyn std::fmt::Display| {
        format!("error parsing X509 certificate/key pair: {file}: {error}")
    };
    let chain = CertificateDer::pem_file_iter(&options.cert_file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| failed(&options.cert_file, &error))?;
    let Some(own) = chain.first() else {
        return Err(failed(&options.cert_file, &"no certificate in the file"));
    };
    if let Some(fault) = kinds::fault_of_own(own) {
        return Err(failed(&options.cert_file, &fault));
    }
    let key = PrivateKeyDer::from_pem_file(&options.key_file)
        .map_err(|error| failed(&options.key_file, &error))?;
    Ok((chain, key))
}

/// Why rustls refuses a certificate with its key.
pub(super) fn unfit(cert_file: &str, key_file: &str, error: &rustls::Error) -> String {
    let hint = match error {
        // It says so of whatever it cannot read.
        rustls::Error::General(_) => format!("; keys may be {}", kinds::KEYS),
        _ => String::new(),
    };
    format!("error parsing X509 certificate/key pair: {cert_file} and {key_file}: {error}{hint}")
}

/// Whom a `ca_file` says to trust.
#[derive(Debug)]
pub(super) struct Authorities {
    pub store: Arc<RootCertStore>,
    /// Its certificates as they stand there.
    pub listed: Vec<CertificateDer<'static>>,
    /// Certificates that are of no use, where others are.
    pub warnings: Vec<String>,
}

pub(super) fn authorities(file: &str) -> Result<Option<Authorities>, String> {
    if file.is_empty() {
        return Ok(None);
    }
    let failed = |error: &dyn std::fmt::Display| {
        format!("failed to parse root ca certificate: {file}: {error}")
    };
    let mut store = RootCertStore::empty();
    let (mut listed, mut faults) = (Vec::new(), Vec::new());
    let certificates = CertificateDer::pem_file_iter(file).map_err(|error| failed(&error))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| failed(&error))?;
        if let Some(fault) = kinds::fault_of_authority(&certificate) {
            faults.push(fault);
            continue;
        }
        let added = store.add(certificate.clone());
        added.map_err(|error| failed(&error))?;
        listed.push(certificate);
    }
    if store.is_empty() {
        let fault = faults
            .first()
            .map_or("no certificate in the file", String::as_str);
        return Err(failed(&fault));
    }
    let warnings = faults
        .iter()
        .map(|fault| format!("ca_file {file}: {fault}"));
    Ok(Some(Authorities {
        store: Arc::new(store),
        listed,
        warnings: warnings.collect(),
    }))
}

/// Suites and curves as the options order them. Those of TLS 1.3 are always there.
fn provider(options: &TlsOptions) -> Result<CryptoProvider, String> {
    let mut provider = ring::default_provider();
    if !options.cipher_suites.is_empty() {
        let all = std::mem::take(&mut provider.cipher_suites);
        let named = options.cipher_suites.iter().map(|name| suite(name, &all));
        let mut chosen = named.collect::<Result<Vec<_>, _>>()?;
        let rest = all.iter().filter(|suite| suite.tls13().is_some()).copied();
        chosen.extend(rest);
        provider.cipher_suites = chosen;
    }
    if !options.curves.is_empty() {
        let named = options.curves.iter().map(|name| curve(name));
        provider.kx_groups = named.collect::<Result<_, _>>()?;
    }
    Ok(provider)
}

fn suite(name: &str, all: &[SupportedCipherSuite]) -> Result<SupportedCipherSuite, String> {
    let found = all.iter().copied().find(|suite| {
        let known = suite_name(*suite);
        // Go knows the ChaCha20 suites by a shorter name as well.
        known == name || known.strip_suffix("_SHA256") == Some(name)
    });
    found.ok_or_else(|| match GO_SUITES_NOT_HERE.contains(&name) {
        true => format!(
            "cipher suite {name} is not offered here, because it is weak: use the ECDHE suites with GCM or CHACHA20"
        ),
        false => format!("Unrecognized cipher {name}"),
    })
}

/// Names the original takes and rustls rightly does not.
const GO_SUITES_NOT_HERE: &[&str] = &[
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
];

/// The name of a suite as Go and the standard have it.
pub(super) fn suite_name(suite: SupportedCipherSuite) -> String {
    let name = format!("{:?}", suite.suite());
    name.replace("TLS13_", "TLS_")
}

fn curve(name: &str) -> Result<&'static dyn SupportedKxGroup, String> {
    match name {
        "X25519" => Ok(ring::kx_group::X25519),
        "CurveP256" => Ok(ring::kx_group::SECP256R1),
        "CurveP384" => Ok(ring::kx_group::SECP384R1),
        "CurveP521" => {
            Err("curve CurveP521 is not offered here: use X25519, CurveP256 or CurveP384".into())
        }
        _ => Err(format!("Unrecognized curve preference {name}")),
    }
}
