//! Who may connect, and with which permissions.

use super::perms::Permissions;
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
    pub users: HashMap<String, User>,
    pub token: Option<Secret>,
    pub single: Option<(String, Secret)>,
    /// Stands in for clients that name no user.
    pub no_auth_user: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Granted(Option<Arc<Permissions>>),
    Denied,
    /// The password must be checked against a hash, which takes too long for an event loop.
    Verify {
        hash: Box<str>,
        given: Box<str>,
        permissions: Option<Arc<Permissions>>,
    },
}

impl Auth {
    pub fn required(&self) -> bool {
        !self.users.is_empty() || self.token.is_some() || self.single.is_some()
    }

    pub fn judge(&self, connect: &Connect) -> Verdict {
        let (secret, given, permissions) = if !self.users.is_empty() {
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
                hash,
                given,
                permissions,
            },
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
        assert_eq!(open.judge(&connect("{}")), Verdict::Granted(None));

        let token = Auth {
            token: Some(Secret::new("t")),
            ..Auth::default()
        };
        assert_eq!(
            token.judge(&connect(r#"{"auth_token":"t"}"#)),
            Verdict::Granted(None)
        );
        assert_eq!(
            token.judge(&connect(r#"{"auth_token":"x"}"#)),
            Verdict::Denied
        );
        assert_eq!(token.judge(&connect("{}")), Verdict::Denied);

        let single = Auth {
            single: Some(("u".into(), Secret::new("p"))),
            ..Auth::default()
        };
        assert_eq!(
            single.judge(&connect(r#"{"user":"u","pass":"p"}"#)),
            Verdict::Granted(None)
        );
        assert_eq!(
            single.judge(&connect(r#"{"user":"u","pass":"q"}"#)),
            Verdict::Denied
        );

        let user = User {
            password: Secret::new("$2a$11$x"),
            permissions: None,
        };
        let users = Auth {
            users: HashMap::from([("u".into(), user)]),
            ..Auth::default()
        };
        assert!(matches!(
            users.judge(&connect(r#"{"user":"u","pass":"p"}"#)),
            Verdict::Verify { .. }
        ));
        assert_eq!(
            users.judge(&connect(r#"{"user":"x","pass":"p"}"#)),
            Verdict::Denied
        );
        assert!(!format!("{users:?}").contains("$2a$"));
    }
}
