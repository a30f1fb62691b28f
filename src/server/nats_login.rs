//! Where a NATS server is, and who we are there: URLs, and keys from files.

use crate::config::options::Credentials;
use crate::config::route_url::RouteUrl;
use crate::util::nkey;
use ed25519_dalek::{Signer, SigningKey};

const PORT_DEFAULT: u16 = 4222;

/// `nats://user:password@host:port`, or `tls://...`.
#[derive(Clone, Debug)]
pub struct NatsUrl {
    pub place: RouteUrl,
    pub tls: bool,
    /// The name in the server's certificate, unless another one is configured.
    pub certified_as: String,
}

impl NatsUrl {
    pub fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("nats", text));
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "nats" => false,
            "tls" => true,
            _ => {
                return Err(format!(
                    "{scheme}:// is no scheme of NATS: use nats:// or tls://"
                ));
            }
        };
        let place = RouteUrl::parse(&format!("nats://{rest}"))?;
        Ok(Self {
            certified_as: place.host.clone(),
            place,
            tls,
        })
    }

    /// Another server of the cluster, as this one tells of it: mostly by a bare address, so that everything else is as it is here.
    pub fn beside(&self, address: &str) -> Option<Self> {
        let told = RouteUrl::parse(&format!("nats://{address}")).ok()?;
        let place = RouteUrl {
            host: told.host,
            port: told.port,
            ..self.place.clone()
        };
        Some(Self {
            place,
            ..self.clone()
        })
    }

    pub fn same_place(&self, other: &Self) -> bool {
        self.place.same_place(&other.place.host, other.place.port)
    }

    /// The same for tools, where the port may be left out.
    pub fn parse_loosely(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("nats", text));
        let rest = rest.trim_end_matches('/');
        let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        let with_port = match host.rsplit_once(':') {
            Some((_, port)) => !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()),
            None => false,
        };
        match with_port && !host.ends_with(']') {
            true => Self::parse(&format!("{scheme}://{rest}")),
            false => Self::parse(&format!("{scheme}://{rest}:{PORT_DEFAULT}")),
        }
    }
}

/// An nkey, and with a credentials file the JWT that vouches for it.
pub struct Keys {
    key: SigningKey,
    pub token: Option<String>,
}

impl Keys {
    /// None: no file is named.
    pub fn read(credentials: &Credentials) -> Result<Option<Self>, String> {
        let (file, both) = match (&*credentials.credentials_file, &*credentials.seed_file) {
            ("", "") => return Ok(None),
            ("", file) => (file, false),
            (file, _) => (file, true),
        };
        let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
        let words = || text.lines().map(str::trim);
        // Between lines of dashes, or alone in the file.
        let seed = words().find_map(nkey::decode_seed);
        let seed =
            seed.ok_or_else(|| format!("{file}: there is no seed of a user's nkey in it"))?;
        let token = words()
            .find(|line| line.starts_with("eyJ"))
            .map(str::to_owned);
        if both && token.is_none() {
            return Err(format!("{file}: there is no JWT in it"));
        }
        Ok(Some(Self {
            key: SigningKey::from_bytes(&seed),
            token: token.filter(|_| both),
        }))
    }

    pub fn public(&self) -> String {
        nkey::encode_user(self.key.verifying_key().as_bytes())
    }

    pub fn sign(&self, nonce: &str) -> String {
        nkey::encode_base64(&self.key.sign(nonce.as_bytes()).to_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let url = NatsUrl::parse_loosely("me:secret@example.org").unwrap();
        assert_eq!(
            (url.place.address().as_str(), url.tls),
            ("example.org:4222", false)
        );
        assert_eq!(url.place.user, "me");
        let url = NatsUrl::parse_loosely("tls://[::1]:5").unwrap();
        assert_eq!((url.place.address().as_str(), url.tls), ("[::1]:5", true));
        assert_eq!(NatsUrl::parse_loosely("[::1]").unwrap().place.port, 4222);
        assert!(
            NatsUrl::parse("nats://example.org").is_err(),
            "a port is needed"
        );
        assert!(NatsUrl::parse("http://example.org:80").is_err());
    }

    #[test]
    fn others_of_a_cluster_know_us_as_the_first_one_does() {
        let first = NatsUrl::parse("tls://me:secret@example.org:4222").unwrap();
        let other = first.beside("[::1]:5").unwrap();
        assert_eq!(other.place.address(), "[::1]:5");
        let (user, password) = (&*other.place.user, &*other.place.password.0);
        assert_eq!((user, password, other.tls), ("me", "secret", true));
        assert_eq!(other.certified_as, "example.org");
        assert!(first.same_place(&NatsUrl::parse("nats://EXAMPLE.org:4222").unwrap()));
        assert!(first.beside("nothing").is_none() && first.beside("").is_none());
    }

    #[test]
    fn keys_come_from_files() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("me.creds");
        let seed = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
        let jwt = "eyJ0eXAiOiJqd3QifQ.e30.x";
        let text = format!(
            "---\n{jwt}\n---\n\n*** keep it\n-----BEGIN USER NKEY SEED-----\n{seed}\n------\n"
        );
        std::fs::write(&file, text).unwrap();
        let mut credentials = Credentials::default();
        assert!(Keys::read(&credentials).unwrap().is_none());
        credentials.credentials_file = file.to_str().unwrap().into();
        let keys = Keys::read(&credentials).unwrap().unwrap();
        assert_eq!(keys.token.as_deref(), Some(jwt));
        assert!(nkey::decode_user(&keys.public()).is_some());
        std::fs::write(&file, "nothing").unwrap();
        assert!(Keys::read(&credentials).is_err());
    }
}
