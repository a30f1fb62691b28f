//! The body of CONNECT.
//!
//! Go's JSON rules, as far as clients can tell: keys match whatever the case of their letters, of
//! several that do the last one counts, unknown keys are ignored, `null` leaves a value as it was, a
//! wrong type is an error, and a second CONNECT keeps what it does not mention.

use crate::util::go_json::go_text;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

/// What a client said of itself; the defaults hold until it does.
#[derive(Clone, PartialEq, Eq)]
pub struct Connect {
    pub verbose: bool,
    pub pedantic: bool,
    pub tls_required: bool,
    pub echo: bool,
    pub headers: bool,
    pub no_responders: bool,
    pub protocol: i64,
    pub auth_token: Box<str>,
    pub user: Box<str>,
    pub pass: Box<str>,
    pub nkey: Box<str>,
    pub sig: Box<str>,
    pub name: Box<str>,
    pub lang: Box<str>,
    pub version: Box<str>,
}

/// Without secrets: what is shown may end in a log.
impl std::fmt::Debug for Connect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connect")
            .field("name", &self.name)
            .field("user", &self.user)
            .field("nkey", &self.nkey)
            .finish_non_exhaustive()
    }
}

impl Default for Connect {
    fn default() -> Self {
        Self {
            verbose: true,
            pedantic: true,
            tls_required: false,
            echo: true,
            headers: false,
            no_responders: false,
            protocol: 0,
            auth_token: "".into(),
            user: "".into(),
            pass: "".into(),
            nkey: "".into(),
            sig: "".into(),
            name: "".into(),
            lang: "".into(),
            version: "".into(),
        }
    }
}

impl Connect {
    /// Takes over what the body sets. On an error some fields may have been set; the connection
    /// ends anyway.
    pub fn update(&mut self, json: &[u8]) -> Result<(), String> {
        let text = go_text(json);
        let object: Option<Members> = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        for (key, value) in object.into_iter().flat_map(|members| members.0) {
            if value.is_null() {
                continue;
            }
            let flag = || {
                value
                    .as_bool()
                    .ok_or_else(|| format!("{key}: expected a boolean, got {value}"))
            };
            let text = || {
                let text = value
                    .as_str()
                    .ok_or_else(|| format!("{key}: expected a string"))?;
                Ok::<Box<str>, String>(text.into())
            };
            match folded(&key).as_str() {
                "verbose" => self.verbose = flag()?,
                "pedantic" => self.pedantic = flag()?,
                "tls_required" => self.tls_required = flag()?,
                "echo" => self.echo = flag()?,
                "headers" => self.headers = flag()?,
                "no_responders" => self.no_responders = flag()?,
                "protocol" => {
                    let number = value.as_i64();
                    self.protocol = number
                        .ok_or_else(|| format!("protocol: expected an integer, got {value}"))?;
                }
                "auth_token" => self.auth_token = text()?,
                "user" => self.user = text()?,
                "pass" => self.pass = text()?,
                "nkey" => self.nkey = text()?,
                "sig" => self.sig = text()?,
                "name" => self.name = text()?,
                "lang" => self.lang = text()?,
                "version" => self.version = text()?,
                _ => {}
            }
        }
        Ok(())
    }
}

/// What an object holds, as it stands there: also what has the key of something before it.
struct Members(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Members;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

impl std::fmt::Display for Members {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("{")?;
        for (index, (key, value)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{}:{value}", Value::from(key.as_str()))?;
        }
        f.write_str("}")
    }
}

/// A key as Go's `encoding/json` compares it: two letters beyond ASCII, the long s and the sign of Kelvin, stand for ones of it.
fn folded(key: &str) -> String {
    let letter = |letter: char| match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        letter => letter.to_ascii_lowercase(),
    };
    key.chars().map(letter).collect()
}

/// CONNECT of a server that dials another one; its id is the name.
pub fn route_connect_line(server_id: &str, login: Option<(&str, &str)>, tls: bool) -> String {
    #[derive(serde::Serialize)]
    struct Body<'a> {
        verbose: bool,
        pedantic: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pass: Option<&'a str>,
        tls_required: bool,
        name: &'a str,
    }
    let body = Body {
        verbose: false,
        pedantic: false,
        user: login.map(|(user, _)| user),
        pass: login.map(|(_, pass)| pass),
        tls_required: tls,
        name: server_id,
    };
    format!("CONNECT {}\r\n", crate::util::go_json::go_json(&body))
}

/// A CONNECT line fit for the log: secrets are replaced by asterisks.
pub fn masked(json: &[u8]) -> String {
    let text = go_text(json);
    let Ok(mut object) = serde_json::from_str::<Members>(&text) else {
        // Not readable as JSON, so we cannot tell what is secret in it.
        return format!("({} bytes that are no JSON object)", json.len());
    };
    for (key, value) in &mut object.0 {
        if matches!(folded(key).as_str(), "pass" | "auth_token" | "sig" | "jwt") {
            *value = Value::String("***".into());
        }
    }
    object.to_string()
}

/// The body of a fuzz target: no panic; what was read is what the JSON says, and reads the same again; in what is fit for the
/// log secrets are masked, and nothing else.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let object = serde_json::from_str::<Members>(&go_text(data));
    let object = object.ok().map(|object| object.0);
    let mut first = Connect::default();
    if first.update(data).is_ok() {
        let mut again = first.clone();
        again.update(data).expect("the same body");
        assert!(first == again);
        assert_said(&first, object.as_deref().unwrap_or_default());
    }
    let masked = masked(data);
    let Some(object) = object else {
        assert!(masked.ends_with(" bytes that are no JSON object)"));
        return;
    };
    let Members(masked) = serde_json::from_str(&masked).expect("our own JSON");
    assert_eq!(masked.len(), object.len());
    for ((key, shown), (said, value)) in masked.iter().zip(&object) {
        assert_eq!(key, said);
        const SECRETS: [&str; 4] = ["pass", "auth_token", "sig", "jwt"];
        match SECRETS.iter().any(|name| is_named(key, name)) {
            true => assert_eq!(shown, "***", "{key}"),
            // A number that is no integer may differ in its last bit when it is read again.
            false => {
                let again: Value = serde_json::from_str(&value.to_string()).expect("our own JSON");
                assert_eq!(*shown, again, "{key}");
            }
        }
    }
}

/// Whether a key is this name, letter by letter, in whatever case.
fn is_named(key: &str, name: &str) -> bool {
    let same = |pair: (char, char)| {
        pair.0.eq_ignore_ascii_case(&pair.1) || matches!(pair, ('\u{17f}', 's') | ('\u{212a}', 'k'))
    };
    key.chars().count() == name.len() && key.chars().zip(name.chars()).all(same)
}

/// Of several with one name the last one counts, and each must be of its type, as Go has it.
fn assert_said(connect: &Connect, object: &[(String, Value)]) {
    /// None: nobody said anything; an error: somebody said something of another type.
    fn said<'a, T>(
        object: &'a [(String, Value)],
        name: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, &'a Value> {
        let mut last = None;
        for (key, value) in object {
            if is_named(key, name) && !value.is_null() {
                last = Some(read(value).ok_or(value)?);
            }
        }
        Ok(last)
    }
    let default = Connect::default();
    let flags = |connect: &Connect| {
        [
            ("verbose", connect.verbose),
            ("pedantic", connect.pedantic),
            ("tls_required", connect.tls_required),
            ("echo", connect.echo),
            ("headers", connect.headers),
            ("no_responders", connect.no_responders),
        ]
    };
    for ((name, flag), (_, default)) in flags(connect).into_iter().zip(flags(&default)) {
        let expected = said(object, name, Value::as_bool).map(|said| said.unwrap_or(default));
        assert_eq!(Ok(flag), expected, "{name}");
    }
    let texts = [
        ("auth_token", &connect.auth_token),
        ("user", &connect.user),
        ("pass", &connect.pass),
        ("nkey", &connect.nkey),
        ("sig", &connect.sig),
        ("name", &connect.name),
        ("lang", &connect.lang),
        ("version", &connect.version),
    ];
    for (name, text) in texts {
        let expected = said(object, name, Value::as_str).map(Option::unwrap_or_default);
        assert_eq!(Ok(&**text), expected, "{name}");
    }
    let protocol = said(object, "protocol", Value::as_i64).map(Option::unwrap_or_default);
    assert_eq!(Ok(connect.protocol), protocol, "protocol");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_read_as_they_say() {
        for body in [
            r#"{"verbose":false,"USER":"a","user":"b","Pass":"c","jwt":5,"protocol":1,"x":[1,{"sig":"d"}]}"#,
            r#"{"echo":false,"no_responders":true,"headers":true,"auth_token":"t","sig":null,"lang":"\u00e9"}"#,
            "null",
            "{}",
            "[]",
            r#"{"pass":"s"#,
            r#"{"n\\p":13e-33}"#,
            r#"{"user":"a","USER":"b","user":null,"pass":"c","pass":"d"}"#,
        ] {
            fuzz(body.as_bytes());
        }
    }

    #[test]
    fn keys_match_in_any_case_and_values_add_up() {
        let mut connect = Connect::default();
        connect
            .update(br#"{"VERBOSE":false,"name":"a","x":[1,{"y":null}],"user":null}"#)
            .unwrap();
        assert!(!connect.verbose && connect.pedantic && &*connect.name == "a");
        connect.update(br#"{"pedantic":false}"#).unwrap();
        assert!(!connect.verbose && !connect.pedantic && &*connect.name == "a");
        connect.update(b"null").unwrap();
        connect.update(b"{}").unwrap();
        assert_eq!(&*connect.name, "a");
    }

    #[test]
    fn of_what_is_said_twice_the_last_one_counts() {
        let said = |body: &str| {
            let mut connect = Connect::default();
            let read = connect.update(body.as_bytes());
            read.map(|()| (connect.user, connect.verbose))
        };
        for (body, user) in [
            (r#"{"user":"first","USER":"second"}"#, "second"),
            (r#"{"USER":"first","user":"second"}"#, "second"),
            (r#"{"user":"first","user":null}"#, "first"),
        ] {
            assert_eq!(said(body), Ok((user.into(), true)), "{body}");
        }
        assert!(said(r#"{"verbose":"x","verbose":true}"#).is_err());
        let shown = masked(br#"{"user":"a","pass":"one","Pass":"two","lang":"z"}"#);
        assert_eq!(
            shown,
            r#"{"user":"a","pass":"***","Pass":"***","lang":"z"}"#
        );
    }

    #[test]
    fn letters_that_go_takes_for_others_count_as_these() {
        let body = "{\"pa\u{17f}\u{17f}\":\"a\",\"n\u{212a}ey\":\"b\",\"u\u{17f}er\":\"c\"}";
        let mut connect = Connect::default();
        connect.update(body.as_bytes()).unwrap();
        let said = [&*connect.pass, &*connect.nkey, &*connect.user];
        assert_eq!(said, ["a", "b", "c"]);
        assert!(!masked(body.as_bytes()).contains("\"a\""));
        fuzz(body.as_bytes());
    }

    #[test]
    fn what_is_no_text_is_replaced_not_refused() {
        let mut connect = Connect::default();
        connect
            .update(b"{\"name\":\"x\\ud800\",\"lang\":\"\xff\"}")
            .unwrap();
        assert_eq!((&*connect.name, &*connect.lang), ("x\u{fffd}", "\u{fffd}"));
    }

    #[test]
    fn what_is_no_object_or_has_wrong_types_is_refused() {
        for body in [
            "",
            "[]",
            "nope",
            "\"text\"",
            "{\"verbose\":",
            "{\"verbose\":\"yes\"}",
            "{\"user\":5}",
            "{\"protocol\":1.5}",
        ] {
            assert!(
                Connect::default().update(body.as_bytes()).is_err(),
                "{body}"
            );
        }
    }

    #[test]
    fn secrets_do_not_reach_the_log() {
        let line = masked(br#"{"user":"u","PASS":"s3cret","auth_token":"t0ken"}"#);
        assert!(
            line.contains("\"u\"") && !line.contains("s3cret") && !line.contains("t0ken"),
            "{line}"
        );
        assert!(!masked(b"{\"pass\":\"s3cret\"").contains("s3cret"));
    }
}
