//! What the server writes, apart from the bodies of CONNECT and INFO.

use super::parser::Message;

pub const OK: &[u8] = b"+OK\r\n";
pub const PING: &[u8] = b"PING\r\n";
pub const PONG: &[u8] = b"PONG\r\n";

pub fn error_line(text: &str) -> String {
    format!("-ERR '{text}'\r\n")
}

/// The tail of a message for a receiver without headers: `[reply ]size CRLF payload CRLF`.
pub fn tail_without_headers(message: &Message<'_>) -> Vec<u8> {
    let header_bytes = message.header_bytes.unwrap_or(0) as usize;
    let payload = &message.body()[header_bytes..];
    let mut tail = Vec::with_capacity(message.reply_bytes + payload.len() + 16);
    if let Some(reply) = message.reply() {
        tail.extend_from_slice(reply);
        tail.push(b' ');
    }
    tail.extend_from_slice(format!("{}\r\n", message.body_bytes - header_bytes).as_bytes());
    tail.extend_from_slice(payload);
    tail
}

/// The tail of the answer to a request that reaches nobody: status 503 and no payload.
pub const NO_RESPONDERS_TAIL: &[u8] = b"16 16\r\nNATS/1.0 503\r\n\r\n\r\n";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::parser::Padded;

    #[test]
    fn headers_are_cut_off() {
        let tail = b"re.ply 12 14\r\nNATS/1.0\r\n\r\nhi\r\n";
        let message = Message {
            subject: Padded::exact(b"foo"),
            tail: Padded::exact(tail),
            reply_bytes: 6,
            header_bytes: Some(12),
            body_bytes: 14,
            sid: b"",
        };
        assert_eq!(tail_without_headers(&message), b"re.ply 2\r\nhi\r\n");
    }
}
