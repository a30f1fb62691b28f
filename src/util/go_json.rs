//! JSON as Go's encoder writes it, which is what users of the originals see.

use serde::Serialize;

/// JSON as Go writes it: compact, with `<`, `>`, `&` and the two line separators escaped.
pub fn go_json(value: &impl Serialize) -> String {
    escape_as_go(serde_json::to_string(value).expect("plain data always serializes"))
}

/// The same, indented by two.
pub fn go_json_pretty(value: &impl Serialize) -> String {
    escape_as_go(serde_json::to_string_pretty(value).expect("plain data always serializes"))
}

/// Those characters only ever stand inside strings, so plain replacement is right.
fn escape_as_go(json: String) -> String {
    // Most have none, INFO among them, which every connection is sent. The line separators begin with 0xe2.
    let suspect = |byte| matches!(byte, b'<' | b'>' | b'&' | 0xe2);
    if !json.bytes().any(suspect) {
        return json;
    }
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => escaped += &format!("\\u{:04x}", c as u32),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_escaped_as_go_does() {
        assert_eq!(go_json(&"a<b>&c"), r#""a\u003cb\u003e\u0026c""#);
        assert_eq!(go_json(&"\u{2028}\u{2029}"), r#""\u2028\u2029""#);
        assert_eq!(go_json(&"\u{2027}ä"), "\"\u{2027}ä\"");
    }
}
