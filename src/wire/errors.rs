//! Every `-ERR` text a client can meet, in gnatsd 1.1.0's spelling.
//!
//! Client libraries match on these, and some close on any text they do not know: no new ones.

pub const UNKNOWN_PROTOCOL_OPERATION: &str = "Unknown Protocol Operation";
pub const PARSER_ERROR: &str = "Parser Error";
pub const CONTROL_LINE_EXCEEDED: &str = "Maximum Control Line Exceeded";
pub const PAYLOAD_VIOLATION: &str = "Maximum Payload Violation";
pub const INVALID_SUBJECT: &str = "Invalid Subject";
pub const AUTHORIZATION_VIOLATION: &str = "Authorization Violation";
pub const AUTHORIZATION_TIMEOUT: &str = "Authorization Timeout";
pub const INVALID_CLIENT_PROTOCOL: &str = "Invalid Client Protocol";
pub const CONNECTIONS_EXCEEDED: &str = "Maximum Connections Exceeded";
pub const STALE_CONNECTION: &str = "Stale Connection";
pub const TLS_REQUIRED: &str = "Secure Connection - TLS Required";
pub const CLIENT_ON_ROUTE_PORT: &str = "Attempted To Connect To Route Port";
/// 2.x texts for what 1.1.0 does not have.
pub const SUBSCRIPTIONS_EXCEEDED: &str = "maximum subscriptions exceeded";
pub const NO_RESPONDERS_NEEDS_HEADERS: &str = "no responders requires headers support";

/// `Permissions Violation for Publish to "<subject>"`.
pub fn publish_violation(subject: &[u8]) -> String {
    format!("Permissions Violation for Publish to {}", quoted(subject))
}

/// `Permissions Violation for Subscription to "<subject>"`, with the queue group for those who know
/// the 2.x form.
pub fn subscription_violation(subject: &[u8], queue: Option<&[u8]>) -> String {
    let mut text = format!(
        "Permissions Violation for Subscription to {}",
        quoted(subject)
    );
    if let Some(queue) = queue {
        text += &format!(" using queue {}", quoted(queue));
    }
    text
}

/// As above, for a subject longer than the configuration lets it be (2.x).
pub fn too_many_tokens(subject: &[u8]) -> String {
    subscription_violation(subject, None) + ", too many tokens"
}

/// Go's `%q`: double quotes, with control bytes and invalid UTF-8 as escapes. gnatsd quotes
/// subjects this way in errors and parser snippets in the log.
pub fn quoted(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() + 2);
    text.push('"');
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => text.push_str("\\\""),
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                '\x07' => text.push_str("\\a"),
                '\x08' => text.push_str("\\b"),
                '\x0b' => text.push_str("\\v"),
                '\x0c' => text.push_str("\\f"),
                c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                    text.push_str(&format!("\\x{:02x}", c as u32));
                }
                c if c.is_control() => text.push_str(&format!("\\u{:04x}", c as u32)),
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_quoted_as_go_does() {
        assert_eq!(quoted(b"foo.bar"), "\"foo.bar\"");
        assert_eq!(quoted(b"a\"b\\c\r\x00\xff"), r#""a\"b\\c\r\x00\xff""#);
        assert_eq!(quoted("h\u{e9}".as_bytes()), "\"h\u{e9}\"");
        assert_eq!(
            subscription_violation(b"a", Some(b"q")),
            "Permissions Violation for Subscription to \"a\" using queue \"q\""
        );
    }
}
