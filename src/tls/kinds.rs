//! Kinds of certificates and keys that rustls does not take, in words: version, key and signature. Go took more of
//! them, so whoever comes from gnatsd may have one.

use rustls::pki_types::CertificateDer;
use x509_parser::oid_registry::{Oid, asn1_rs::oid};
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};
use x509_parser::public_key::PublicKey;

/// What keys may be.
pub const KEYS: &str = "RSA with 2048 to 4096 bits, ECDSA on P-256 or P-384, or Ed25519";
const RSA_BITS_MIN: usize = 2048;
/// Of a key we sign with; what others signed is checked up to twice as many.
const RSA_BITS_OWN_MAX: usize = 4096;
const RSA_BITS_MAX: usize = 8192;

/// Why we cannot show this certificate as our own, and what to do.
pub fn fault_of_own(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    version_fault(&certificate).or_else(|| key_fault(&certificate, RSA_BITS_OWN_MAX))
}

/// Why nothing this authority signed can be verified, and what to do. An authority may be of any version.
pub fn fault_of_authority(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let fault = key_fault(&certificate, RSA_BITS_MAX)?;
    let subject = certificate.subject().to_string();
    Some(format!("the certificate of {subject:?}: {fault}"))
}

/// Why a certificate that a peer showed cannot be verified, and what to do.
pub fn fault_of_peer(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    version_fault(&certificate)
        .or_else(|| key_fault(&certificate, RSA_BITS_MAX))
        .or_else(|| signature_fault(&certificate))
}

/// Whether it says that it may issue others (CA:TRUE).
pub fn is_authority(certificate: &CertificateDer<'_>) -> bool {
    let read = X509Certificate::from_der(certificate);
    read.is_ok_and(|(_, read)| read.is_ca())
}

fn version_fault(certificate: &X509Certificate<'_>) -> Option<String> {
    let version = certificate.version();
    (version != X509Version::V3).then(|| {
        format!(
            "it is of X.509 version {}, and only version 3 can be used: make a new certificate with subject alternative \
             names (openssl: -addext or -extfile with subjectAltName=DNS:...)",
            version.0 + 1
        )
    })
}

fn key_fault(certificate: &X509Certificate<'_>, rsa_bits_max: usize) -> Option<String> {
    let key = certificate.public_key();
    let kind = &key.algorithm.algorithm;
    let found = if *kind == oid!(1.2.840.113549.1.1.1) {
        let Ok(PublicKey::RSA(rsa)) = key.parsed() else {
            return None;
        };
        let bytes = rsa.modulus.iter().skip_while(|byte| **byte == 0).count();
        match (RSA_BITS_MIN..=rsa_bits_max).contains(&(bytes * 8)) {
            true => return None,
            false => format!("RSA with {} bits", bytes * 8),
        }
    } else if *kind == oid!(1.2.840.10045.2.1) {
        let parameters = key.algorithm.parameters.as_ref();
        let curve = parameters.and_then(|parameters| parameters.as_oid().ok())?;
        if curve == oid!(1.2.840.10045.3.1.7) || curve == oid!(1.3.132.0.34) {
            return None;
        }
        format!("ECDSA on {}", named(&curve))
    } else if *kind == oid!(1.3.101.112) {
        return None;
    } else {
        named(kind)
    };
    Some(format!(
        "its key is {found}, which cannot be used: make a new certificate whose key is {KEYS}"
    ))
}

fn signature_fault(certificate: &X509Certificate<'_>) -> Option<String> {
    let signature = &certificate.signature_algorithm.algorithm;
    let good = [
        oid!(1.2.840.113549.1.1.10),
        oid!(1.2.840.113549.1.1.11),
        oid!(1.2.840.113549.1.1.12),
        oid!(1.2.840.113549.1.1.13),
        oid!(1.2.840.10045.4.3.2),
        oid!(1.2.840.10045.4.3.3),
        oid!(1.3.101.112),
    ];
    (!good.contains(signature)).then(|| {
        format!(
            "it is signed with {}, which cannot be verified: have a new one signed with SHA-256",
            named(signature)
        )
    })
}

/// What old certificates have; others by their number.
fn named(oid: &Oid<'_>) -> String {
    let known = [
        (oid!(1.2.840.113549.1.1.4), "RSA and MD5"),
        (oid!(1.2.840.113549.1.1.5), "RSA and SHA-1"),
        (oid!(1.2.840.113549.1.1.10), "RSA for PSS alone"),
        (oid!(1.2.840.10040.4.1), "DSA"),
        (oid!(1.2.840.10045.4.1), "ECDSA and SHA-1"),
        (oid!(1.2.840.10045.4.3.4), "ECDSA and SHA-512"),
        (oid!(1.3.132.0.10), "secp256k1"),
        (oid!(1.3.132.0.33), "P-224"),
        (oid!(1.3.132.0.35), "P-521"),
        (oid!(1.3.101.113), "Ed448"),
    ];
    let found = known.iter().find(|(known, _)| known == oid);
    found.map_or_else(|| oid.to_string(), |(_, name)| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::random::Random;
    use rustls::pki_types::pem::PemObject;

    /// Nobody has verified anything of a peer's certificate when it comes here.
    #[test]
    fn damaged_certificates_harm_nobody() {
        let mut random = Random::new(1);
        for name in ["v1", "p521", "rsa1024", "sha1", "byv1"] {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/tls/testdata");
            let whole = CertificateDer::from_pem_file(format!("{folder}/{name}.pem")).unwrap();
            for _ in 0..2000 {
                let mut bytes = whole.to_vec();
                for _ in 0..=random.below(4) {
                    let at = random.below(bytes.len() as u32) as usize;
                    bytes[at] = random.next_u64() as u8;
                }
                if random.below(20) == 0 {
                    bytes.truncate(random.below(bytes.len() as u32) as usize);
                }
                let damaged = CertificateDer::from(bytes);
                let _ = fault_of_own(&damaged);
                let _ = fault_of_authority(&damaged);
                let _ = fault_of_peer(&damaged);
                let _ = is_authority(&damaged);
            }
        }
    }
}
