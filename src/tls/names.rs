//! The names a client certificate gives for its owner, as nats-server's `verify_and_map` tries them.

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::{Oid, asn1_rs::oid};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::{AttributeTypeAndValue, RelativeDistinguishedName, X509Name};

/// E-mail addresses, then DNS names, then URIs, then the subject in both orders that are in use:
/// `CN=..,O=..,C=..` (RFC 2253, which Go's servers show) and as it stands in the certificate.
/// Empty where the certificate cannot be read, which the verification before has ruled out.
pub fn of(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let (mut emails, mut hosts, mut uris) = (Vec::new(), Vec::new(), Vec::new());
    if let Ok(Some(names)) = certificate.subject_alternative_name() {
        for name in &names.value.general_names {
            match name {
                GeneralName::RFC822Name(email) => emails.push((*email).to_owned()),
                GeneralName::DNSName(host) => hosts.push((*host).to_owned()),
                GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                _ => {}
            }
        }
    }
    let subjects = subject(certificate.subject());
    [emails, hosts, uris, subjects].concat()
}

fn subject(name: &X509Name<'_>) -> Vec<String> {
    let mut parts: Vec<String> = name.iter().map(relative_name).collect();
    if parts.is_empty() {
        return Vec::new();
    }
    let as_it_stands = parts.join(",");
    parts.reverse();
    vec![parts.join(","), as_it_stands]
}

fn relative_name(name: &RelativeDistinguishedName<'_>) -> String {
    let attributes: Vec<String> = name.iter().map(attribute).collect();
    attributes.join("+")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type();
    match (short_name(oid), attribute.as_str()) {
        (Some(short), Ok(text)) => format!("{short}={}", escaped(text)),
        (None, Ok(text)) => format!("{oid}={}", escaped(text)),
        (_, Err(_)) => format!("{oid}=?"),
    }
}

/// RFC 2253, and what Go adds.
fn short_name(oid: &Oid<'_>) -> Option<&'static str> {
    let known = [
        (oid!(2.5.4.3), "CN"),
        (oid!(2.5.4.5), "SERIALNUMBER"),
        (oid!(2.5.4.6), "C"),
        (oid!(2.5.4.7), "L"),
        (oid!(2.5.4.8), "ST"),
        (oid!(2.5.4.9), "STREET"),
        (oid!(2.5.4.10), "O"),
        (oid!(2.5.4.11), "OU"),
        (oid!(2.5.4.17), "POSTALCODE"),
        (oid!(0.9.2342.19200300.100.1.25), "DC"),
    ];
    let found = known.iter().find(|(known, _)| known == oid);
    found.map(|(_, short)| *short)
}

/// A value as RFC 2253 writes it, so that nobody's name reads like another attribute.
fn escaped(text: &str) -> String {
    let last = text.chars().count().saturating_sub(1);
    let mut escaped = String::with_capacity(text.len());
    for (at, c) in text.chars().enumerate() {
        let special = matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';')
            || (c == '#' && at == 0)
            || (c == ' ' && (at == 0 || at == last));
        if special {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    fn names(params: &CertificateParams) -> Vec<String> {
        let key = KeyPair::generate().unwrap();
        of(params.self_signed(&key).unwrap().der())
    }

    #[test]
    fn in_the_order_they_are_tried() {
        let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        let text = |text: &str| text.try_into().unwrap();
        params.subject_alt_names.extend([
            SanType::URI(text("spiffe://example/a")),
            SanType::Rfc822Name(text("a@example.com")),
        ]);
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in [
            (DnType::CountryName, "DE"),
            (DnType::OrganizationName, "Us, Them+Co"),
            (DnType::CommonName, "#1 a "),
        ] {
            params.distinguished_name.push(kind, value);
        }
        assert_eq!(
            names(&params),
            [
                "a@example.com",
                "a.example",
                "spiffe://example/a",
                r"CN=\#1 a\ ,O=Us\, Them\+Co,C=DE",
                r"C=DE,O=Us\, Them\+Co,CN=\#1 a\ ",
            ]
        );
    }

    #[test]
    fn none_in_what_is_no_certificate() {
        assert!(of(&CertificateDer::from(vec![1, 2, 3])).is_empty());
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        assert!(names(&params).is_empty());
    }
}
