//! Who may connect, and with which permissions.

use super::perms::Permissions;
use crate::util::nkey::{self, PublicKey};
use crate::wire::connect::Connect;
use std::collections::HashMap;
use std::sync::Arc;

/// A password or token, plain or as bcrypt hash. Never shown, not even by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<str>);

impl Secret {
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// bcrypt hashes are known by their prefix (gnatsd: `$2a$`; later servers: b, x and y as well).
    fn is_hash(&self) -> bool {
        ["$2a$", "$2b$", "$2x$", "$2y$"]
            .iter()
            .any(|prefix| self.0.starts_with(prefix))
    }

    fn check(&self, given: &str) -> Check {
        if self.is_hash() {
            Check::Hash {
                hash: self.0.clone(),
                given: given.into(),
            }
        } else if equal_in_constant_time(self.0.as_bytes(), given.as_bytes()) {
            Check::Equal
        } else {
            Check::Different
        }
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

enum Check {
    Equal,
    Different,
    Hash { hash: Box<str>, given: Box<str> },
}

/// What takes too long to check on an event loop.
#[derive(Clone, PartialEq, Eq)]
pub enum Proof {
    /// A password against a bcrypt hash.
    Password { hash: Box<str>, given: Box<str> },
    /// An Ed25519 signature of a nonce.
    Signature {
        key: PublicKey,
        signature: Box<[u8]>,
        nonce: Nonce,
    },
}

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password",
            Self::Signature { .. } => "Signature",
        })
    }
}

/// Told in INFO, for the client to sign.
pub type Nonce = [u8; 15];

/// Takes the same time wherever the two differ; only the length shows.
fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len()
        && std::hint::black_box(a.iter().zip(b).fold(0, |d, (x, y)| d | (x ^ y))) == 0
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub password: Secret,
    pub permissions: Option<Arc<Permissions>>,
}

/// Checked in this order, as gnatsd does: users, else token, else the single user, else open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Auth {
    /// Users are those of a list, even an empty one: then nobody comes in.
    pub listed: bool,
    pub users: HashMap<String, User>,
    /// Users that sign a nonce in place of showing a password.
    pub nkeys: HashMap<PublicKey, Option<Arc<Permissions>>>,
    pub token: Option<Secret>,
    pub single: Option<(String, Secret)>,
    /// Stands in for clients that name no user.
    pub no_auth_user: Option<String>,
    /// Users are those that certificates name (nats-server's `verify_and_map`); nothing else counts.
    pub certified: bool,
}

/// What a client has shown before it named a user.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shown<'c> {
    /// What this connection was told to sign.
    pub nonce: Option<Nonce>,
    /// The names in its verified certificate, in the order they are tried.
    pub certificate: &'c [String],
}

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Granted(Option<Arc<Permissions>>),
    Denied,
    Verify {
        proof: Proof,
        permissions: Option<Arc<Permissions>>,
    },
}

impl Auth {
    pub fn required(&self) -> bool {
        self.certified || self.listed || self.token.is_some() || self.single.is_some()
    }

    pub fn judge(&self, connect: &Connect, shown: Shown<'_>) -> Verdict {
        if self.certified {
            let user = shown
                .certificate
                .iter()
                .find_map(|name| self.users.get(name));
            return user.map_or(Verdict::Denied, |user| {
                Verdict::Granted(user.permissions.clone())
            });
        }
        let (secret, given, permissions) = if self.listed {
            if !connect.nkey.is_empty() && !self.nkeys.is_empty() {
                return self.judge_signature(connect, shown.nonce);
            }
            let anonymous =
                connect.user.is_empty() && connect.pass.is_empty() && connect.auth_token.is_empty();
            if let Some(user) = self.no_auth_user.as_ref().filter(|_| anonymous) {
                let permissions = self
                    .users
                    .get(user)
                    .and_then(|user| user.permissions.clone());
                return Verdict::Granted(permissions);
            }
            let Some(user) = self.users.get(&*connect.user) else {
                return Verdict::Denied;
            };
            (&user.password, &connect.pass, user.permissions.clone())
        } else if let Some(token) = &self.token {
            (token, &connect.auth_token, None)
        } else if let Some((name, password)) = &self.single {
            if !equal_in_constant_time(name.as_bytes(), connect.user.as_bytes()) {
                return Verdict::Denied;
            }
            (password, &connect.pass, None)
        } else {
            return Verdict::Granted(None);
        };
        match secret.check(given) {
            Check::Equal => Verdict::Granted(permissions),
            Check::Different => Verdict::Denied,
            Check::Hash { hash, given } => Verdict::Verify {
                proof: Proof::Password { hash, given },
                permissions,
            },
        }
    }

    fn judge_signature(&self, connect: &Connect, nonce: Option<Nonce>) -> Verdict {
        let known = nkey::decode_user(&connect.nkey)
            .and_then(|key| Some((key, self.nkeys.get(&key)?.clone())));
        let signature = nkey::decode_base64(&connect.sig);
        match (known, signature, nonce) {
            (Some((key, permissions)), Some(signature), Some(nonce)) => Verdict::Verify {
                proof: Proof::Signature {
                    key,
                    signature: signature.into(),
                    nonce,
                },
                permissions,
            },
            _ => Verdict::Denied,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(json: &str) -> Connect {
        let mut connect = Connect::default();
        connect.update(json.as_bytes()).unwrap();
        connect
    }

    #[test]
    fn each_way_to_authorize() {
        let open = Auth::default();
        assert!(!open.required());
        assert_eq!(
            open.judge(&connect("{}"), Shown::default()),
            Verdict::Granted(None)
        );

        let token = Auth {
            token: Some(Secret::new("t")),
            ..Auth::default()
        };
        assert_eq!(
            token.judge(&connect(r#"{"auth_token":"t"}"#), Shown::default()),
            Verdict::Granted(None)
        );
        assert_eq!(
            token.judge(&connect(r#"{"auth_token":"x"}"#), Shown::default()),
            Verdict::Denied
        );
        assert_eq!(
            token.judge(&connect("{}"), Shown::default()),
            Verdict::Denied
        );

        let single = Auth {
            single: Some(("u".into(), Secret::new("p"))),
            ..Auth::default()
        };
        assert_eq!(
            single.judge(&connect(r#"{"user":"u","pass":"p"}"#), Shown::default()),
            Verdict::Granted(None)
        );
        assert_eq!(
            single.judge(&connect(r#"{"user":"u","pass":"q"}"#), Shown::default()),
            Verdict::Denied
        );

        let user = User {
            password: Secret::new("$2a$11$x"),
            permissions: None,
        };
        let nobody = Auth {
            listed: true,
            ..Auth::default()
        };
        assert!(nobody.required());
        for login in [
            "{}",
            r#"{"user":"u","pass":"p"}"#,
            r#"{"user":"","nkey":"U"}"#,
        ] {
            let verdict = nobody.judge(&connect(login), Shown::default());
            assert_eq!(verdict, Verdict::Denied, "{login}");
        }

        let users = Auth {
            listed: true,
            users: HashMap::from([("u".into(), user)]),
            ..Auth::default()
        };
        assert!(matches!(
            users.judge(&connect(r#"{"user":"u","pass":"p"}"#), Shown::default()),
            Verdict::Verify { .. }
        ));
        assert_eq!(
            users.judge(&connect(r#"{"user":"x","pass":"p"}"#), Shown::default()),
            Verdict::Denied
        );
        assert!(!format!("{users:?}").contains("$2a$"));
    }

    #[test]
    fn users_with_keys() {
        let key = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";
        let auth = Auth {
            listed: true,
            nkeys: HashMap::from([(nkey::decode_user(key).unwrap(), None)]),
            ..Auth::default()
        };
        assert!(auth.required());
        let told = Shown {
            nonce: Some(*b"aGVsbG8gd29ybGQ"),
            ..Shown::default()
        };
        let good = connect(&format!(r#"{{"nkey":"{key}","sig":"AAAA"}}"#));
        assert!(matches!(
            auth.judge(&good, told),
            Verdict::Verify {
                proof: Proof::Signature { .. },
                ..
            }
        ));
        // Before a reload brought keys, nobody was told a nonce.
        assert_eq!(auth.judge(&good, Shown::default()), Verdict::Denied);
        for bad in [
            "{}".to_string(),
            format!(r#"{{"nkey":"{key}","sig":"not base64!"}}"#),
            r#"{"nkey":"UAAA","sig":"AAAA"}"#.to_string(),
            r#"{"user":"","pass":""}"#.to_string(),
        ] {
            assert_eq!(auth.judge(&connect(&bad), told), Verdict::Denied, "{bad}");
        }
    }

    #[test]
    fn certificates_name_users() {
        let user = User {
            password: Secret::new(""),
            permissions: None,
        };
        let auth = Auth {
            users: HashMap::from([("CN=a,O=b".into(), user)]),
            certified: true,
            ..Auth::default()
        };
        let judge = |json: &str, names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let shown = Shown {
                certificate: &names,
                ..Shown::default()
            };
            auth.judge(&connect(json), shown)
        };
        let granted = Verdict::Granted(None);
        assert_eq!(judge("{}", &["localhost", "CN=a,O=b"]), granted);
        assert_eq!(judge("{}", &["localhost"]), Verdict::Denied);
        // What CONNECT says does not count.
        let named = r#"{"user":"CN=a,O=b","pass":""}"#;
        assert_eq!(judge(named, &[]), Verdict::Denied);
    }
}
