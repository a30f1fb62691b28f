//! Every message of the reader of configuration files, as a snapshot: `testdata/messages.txt`.
//!
//! A case is a file (or several, the others after a line `@ name`), a line `->`, and what is said of
//! it. `MIDGE_REWRITE_SNAPSHOTS=1 cargo test messages` writes the latter anew.

use super::options::{all_of, none_of};
use super::{Options, file, streaming, table};

const PATH: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/src/config/testdata/messages.txt"
);

fn said(case: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut name = "t";
    let mut content: Vec<u8> = Vec::new();
    let write = |name: &str, content: &[u8]| {
        if name != "nothing" {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
    };
    for line in case.lines() {
        match line.strip_prefix("@ ") {
            Some(next) => {
                write(name, &content);
                content.clear();
                name = next;
            }
            // <80> stands for a byte that is no UTF-8, <deep> for more blocks than
            // there may be, <end> for the end of the file without a newline.
            None => {
                let line = line.replace("<deep>", &"a {".repeat(40));
                let mut parts = line.split("<80>");
                content.extend_from_slice(parts.next().unwrap().as_bytes());
                for part in parts {
                    content.push(0x80);
                    content.extend_from_slice(part.as_bytes());
                }
                content.push(b'\n');
                if content.ends_with(b"<end>\n") {
                    content.truncate(content.len() - "<end>\n".len());
                }
            }
        }
    }
    write(name, &content);
    let (mut options, mut warnings) = (Options::default(), Vec::new());
    let path = folder.path().join("t");
    let result = file::read(&path).and_then(|mut entries| {
        let mut found = file::Found::default();
        file::keep_last(&mut entries, &mut found);
        table::apply(&mut options, &entries, &mut found, false);
        let readers = streaming::Readers::Both;
        streaming::apply_file(&mut options, &entries, &mut found, false, readers);
        let errors;
        (errors, warnings) = found.told(&path, false);
        none_of(errors)?;
        options.put_defaults();
        all_of([options.check_credentials(), options.check()])?;
        warnings.extend(options.remarks());
        Ok(())
    });
    let mut lines: Vec<String> = result.err().into_iter().collect();
    lines.extend(warnings.iter().map(|warning| format!("warning: {warning}")));
    let prefix = format!("{}/", folder.path().display());
    lines.join("\n").replace(&prefix, "")
}

#[test]
fn messages_are_as_they_were() {
    let recorded = std::fs::read_to_string(PATH).unwrap();
    let mut again = String::new();
    for case in recorded.split_inclusive("\n===\n") {
        let (input, _) = case.split_once("\n->\n").expect("a case has a line ->");
        again += &format!("{input}\n->\n{}\n===\n", said(input));
    }
    if std::env::var_os("MIDGE_REWRITE_SNAPSHOTS").is_some() {
        std::fs::write(PATH, &again).unwrap();
    }
    assert!(
        again == recorded,
        "messages changed; run with MIDGE_REWRITE_SNAPSHOTS=1 and look at the difference"
    );
}

/// The strings of a piece of source, without what stands in braces: the fixed parts of messages.
fn fixed_parts(source: &str) -> Vec<String> {
    let mut parts = Vec::new();
    for line in source.lines().filter(|line| !line.trim().starts_with("//")) {
        let line = line.replace("'\"'", "");
        let mut rest = &*line;
        while let Some((_, after)) = rest.split_once('"') {
            let mut literal = String::new();
            let mut letters = after.chars();
            while let Some(letter) = letters.next() {
                match letter {
                    '"' => break,
                    '\\' => literal.push(match letters.next() {
                        Some('n') => '\n',
                        other => other.unwrap_or(' '),
                    }),
                    _ => literal.push(letter),
                }
            }
            rest = letters.as_str();
            let longest = literal.split(['{', '}']).max_by_key(|part| part.len());
            parts.extend(longest.map(str::to_owned));
        }
    }
    parts
}

#[test]
fn no_message_is_without_a_case() {
    let between = |source: &'static str, from: &str, to: &str| {
        let from = source.find(from).expect(from);
        let to = from + source[from..].find(to).expect(to);
        &source[from..to]
    };
    let table = include_str!("table.rs");
    let sources = [
        between(include_str!("file.rs"), "pub fn read(", "#[cfg(test)]"),
        between(table, "fn expected", "macro_rules! row"),
        between(table, "const NOT_SUPPORTED", "fn distance"),
        between(
            include_str!("streaming.rs"),
            "pub(super) fn apply_file(",
            "/// A string and nothing else",
        ),
        between(
            include_str!("streaming.rs"),
            "fn channels(",
            "/// Sets an option, which",
        ),
        between(
            include_str!("options.rs"),
            "impl TlsOptions",
            "pub struct ClusterOptions",
        ),
        between(include_str!("options.rs"), "impl Options", "pub fn all_of"),
        between(
            include_str!("route_url.rs"),
            "pub fn parse(",
            "pub fn same_place",
        ),
    ];
    // Invariants, and what only files that cannot be read, variables of the environment or flags bring up.
    let exempt = [
        "' holds more than one value;  ",
        "there is always one",
        "solicited routes require cluster capabilities, e.g. --cluster",
        "expected cluster password to be set",
        "nats-route://",
        "user and password are ignored: there is a list of users, which counts before them",
        "the token is ignored: there is a list of users, which counts before it",
        "user and password are ignored: there is a token, which counts before them",
    ];
    let recorded = std::fs::read_to_string(PATH).unwrap();
    let (mut checked, mut missing) = (0, Vec::new());
    for part in sources.iter().flat_map(|source| fixed_parts(source)) {
        if part.trim().contains(' ') && !exempt.contains(&part.as_str()) {
            checked += 1;
            if !recorded.contains(&part) {
                missing.push(part);
            }
        }
    }
    assert!(missing.is_empty(), "no case brings up {missing:#?}");
    assert!(checked > 70, "{checked}");
}
