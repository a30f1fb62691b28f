//! JSON as Go's encoder writes it and its decoder reads it, which is what users of the originals see.

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter};
use std::borrow::Cow;
use std::io;

/// JSON as Go writes it: compact, with `<`, `>`, `&` and the two line separators escaped.
pub fn go_json(value: &impl Serialize) -> String {
    written(value, CompactFormatter)
}

/// The same, indented by two.
pub fn go_json_pretty(value: &impl Serialize) -> String {
    written(value, PrettyFormatter::new())
}

fn written(value: &impl Serialize, formatter: impl Formatter) -> String {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, GoNumbers(formatter));
    value
        .serialize(&mut serializer)
        .expect("plain data always serializes");
    escape_as_go(String::from_utf8(bytes).expect("JSON is UTF-8"))
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

/// Whole floats without a decimal point, very small and very large ones with an exponent.
fn go_float(value: f64) -> String {
    let size = value.abs();
    if size == 0.0 || (1e-6..1e21).contains(&size) {
        return value.to_string();
    }
    let text = format!("{value:e}");
    match text.contains("e-") {
        true => text,
        false => text.replace('e', "e+"),
    }
}

/// A formatter with Go's floats in place of its own.
struct GoNumbers<F>(F);

macro_rules! pass_on {
    ($($name:ident($($argument:ident: $kind:ty),*);)*) => {
        $(fn $name<W: io::Write + ?Sized>(&mut self, to: &mut W $(, $argument: $kind)*) -> io::Result<()> {
            self.0.$name(to $(, $argument)*)
        })*
    };
}

impl<F: Formatter> Formatter for GoNumbers<F> {
    fn write_f64<W: io::Write + ?Sized>(&mut self, to: &mut W, value: f64) -> io::Result<()> {
        to.write_all(go_float(value).as_bytes())
    }

    pass_on! {
        begin_array();
        end_array();
        begin_array_value(first: bool);
        end_array_value();
        begin_object();
        end_object();
        begin_object_key(first: bool);
        end_object_key();
        begin_object_value();
        end_object_value();
    }
}

/// A document from outside, with what Go's decoder reads as U+FFFD replaced by it: bytes that are no
/// UTF-8, each of them, and escapes that are half of a surrogate pair.
pub fn go_text(json: &[u8]) -> Cow<'_, str> {
    let text = match std::str::from_utf8(json) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => Cow::Owned(replaced(json)),
    };
    // Surrogates are D800 to DFFF; few documents have any.
    let surrogates = |text: &str| text.contains("\\ud") || text.contains("\\uD");
    match surrogates(&text) {
        true => Cow::Owned(without_lone_surrogates(&text)),
        false => text,
    }
}

fn replaced(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() + 16);
    for chunk in bytes.utf8_chunks() {
        text += chunk.valid();
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    text
}

fn without_lone_surrogates(json: &str) -> String {
    const ESCAPE_BYTES: usize = "\\uXXXX".len();
    let unit = |at: usize| {
        let escape = json.get(at..at + ESCAPE_BYTES)?.strip_prefix("\\u")?;
        u16::from_str_radix(escape, 16).ok()
    };
    let mut text = String::with_capacity(json.len());
    let mut rest = 0;
    while let Some(found) = json[rest..].find('\\') {
        let at = rest + found;
        text += &json[rest..at];
        let length = match (unit(at), unit(at + ESCAPE_BYTES)) {
            (Some(0xD800..0xDC00), Some(0xDC00..0xE000)) => 2 * ESCAPE_BYTES,
            (Some(0xD800..0xE000), _) => {
                text += "\\ufffd";
                rest = at + ESCAPE_BYTES;
                continue;
            }
            (Some(_), _) => ESCAPE_BYTES,
            // One character behind the backslash, which may be another one.
            (None, _) => 1 + json[at + 1..].chars().next().map_or(0, char::len_utf8),
        };
        rest = at + length;
        text += &json[at..rest];
    }
    text + &json[rest..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_escaped_as_go_does() {
        assert_eq!(go_json(&"a<b>&c"), r#""a\u003cb\u003e\u0026c""#);
        assert_eq!(go_json(&"\u{2028}\u{2029}"), r#""\u2028\u2029""#);
        assert_eq!(go_json(&"\u{2027}ä"), "\"\u{2027}ä\"");
        assert_eq!(go_json_pretty(&[1.0, 0.5]), "[\n  1,\n  0.5\n]");
        assert_eq!(go_json_pretty(&[0; 0]), "[]");
        let object = std::collections::BTreeMap::from([("a", 1), ("b", 2)]);
        assert_eq!(go_json_pretty(&object), "{\n  \"a\": 1,\n  \"b\": 2\n}");
    }

    #[test]
    fn floats_are_written_as_go_does() {
        for (value, expect) in [
            (0.0, "0"),
            (2.0, "2"),
            (-1.5, "-1.5"),
            (12.3, "12.3"),
            (1e-6, "0.000001"),
            (1e-7, "1e-7"),
            (1.5e-10, "1.5e-10"),
            (1e20, "100000000000000000000"),
            (1e21, "1e+21"),
            (2.5e300, "2.5e+300"),
        ] {
            assert_eq!(go_json(&value), expect);
        }
    }

    #[test]
    fn what_is_no_text_is_replaced() {
        for (json, expect) in [
            (&br#"{"a":"b"}"#[..], r#"{"a":"b"}"#),
            (br#""\ud800""#, r#""\ufffd""#),
            (br#""\uDC00x\ud83d""#, r#""\ufffdx\ufffd""#),
            (br#""\ud83d\ude00""#, r#""\ud83d\ude00""#),
            (br#""\ud800\ud83d\ude00""#, r#""\ufffd\ud83d\ude00""#),
            (br#""\ud800\u0041""#, r#""\ufffd\u0041""#),
            // A backslash, and what looks like an escape.
            (br#""\\ud800""#, r#""\\ud800""#),
            (br#""\ud8"#, r#""\ud8"#),
            (b"\"\xff\xe2\x82\"", "\"\u{fffd}\u{fffd}\u{fffd}\""),
            (b"\\ud800\\", "\\ufffd\\"),
            (b"\\ud80\xff", "\\ud80\u{fffd}"),
        ] {
            assert_eq!(go_text(json), expect, "{}", json.escape_ascii());
        }
    }
}
