//! Names of channels and clients.

/// The original's rule for channels: tokens parted by dots, none empty, no `/`, no `*` or `>` anywhere.
pub fn is_valid_channel(name: &str) -> bool {
    !name.is_empty()
        && name.split('.').all(|token| !token.is_empty())
        && !name.contains(['/', '*', '>'])
        // What would end a line of the protocol in the subject of its acks.
        && !name.contains(['\r', '\n'])
}

pub fn is_valid_client(id: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    !id.is_empty() && id.chars().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_and_clients() {
        for good in ["foo", "foo.bar", "$SYS", "a b", "a\tb", "\u{e9}"] {
            assert!(is_valid_channel(good), "{good}");
        }
        for bad in [
            "", ".", ".foo", "foo.", "a..b", "foo.*", "a>b", "a/b", "a\rb", "a\nb",
        ] {
            assert!(!is_valid_channel(bad), "{bad}");
        }
        assert!(is_valid_client("me-1_X") && !is_valid_client("a.b") && !is_valid_client(""));
    }
}
