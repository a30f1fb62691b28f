//! The rules of the house that no compiler checks: who may import whom, and where `unsafe` may stand.

use std::path::{Path, PathBuf};

/// Folder (or file) and what it may import of the crate.
const ALLOWED: &[(&str, &[&str])] = &[
    ("util", &["util"]),
    ("wire", &["wire", "util"]),
    ("subject", &["subject", "util"]),
    (
        "config",
        &[
            "config",
            "util",
            "subject",
            "VERSION",
            "COMPATIBLE_VERSION",
            "STREAMING_VERSION",
            "GIT_COMMIT",
        ],
    ),
    ("uring", &["uring", "util"]),
    ("tls", &["tls", "util", "config"]),
    ("top", &["top", "util", "VERSION"]),
    ("stan", &["stan", "util", "subject", "config"]),
    ("broker", &["broker", "util", "wire", "subject", "config"]),
    (
        "sim",
        &["sim", "broker", "wire", "subject", "config", "util"],
    ),
    ("monitor", &["monitor", "util", "config", "VERSION"]),
    ("logging", &["logging", "util", "config"]),
    ("passwd", &["passwd"]),
    (
        "admin",
        &["admin", "server", "stan", "config", "util", "VERSION"],
    ),
    (
        "server",
        &[
            "server",
            "broker",
            "config",
            "logging",
            "monitor",
            "uring",
            "util",
            "wire",
            "stan",
            "subject",
            "tls",
            "VERSION",
            "COMPATIBLE_VERSION",
            "STREAMING_VERSION",
            "GIT_COMMIT",
        ],
    ),
];

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &mut found);
    found
        .iter_mut()
        .for_each(|(path, _)| *path = path.strip_prefix(&root).unwrap().to_owned());
    assert!(found.len() > 30, "the sources are not where they should be");
    found
}

#[test]
fn imports_follow_the_table() {
    for (path, text) in sources() {
        let first = path
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_str()
            .unwrap();
        let home = first.trim_end_matches(".rs");
        if matches!(home, "lib" | "main" | "bin") {
            continue;
        }
        let (_, allowed) = ALLOWED
            .iter()
            .find(|(name, _)| *name == home)
            .unwrap_or_else(|| panic!("{home} has no row in the table"));
        for (number, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("//") {
                continue;
            }
            for part in line.split("crate::").skip(1) {
                let name: String = part
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
                assert!(
                    name.is_empty() || allowed.contains(&name.as_str()),
                    "src/{}:{}: {home} must not import {name}",
                    path.display(),
                    number + 1
                );
            }
        }
    }
}

#[test]
fn unsafe_code_stands_where_it_may() {
    for (path, text) in sources() {
        let name = path.file_name().unwrap().to_str().unwrap();
        let may = path.starts_with("uring") || matches!(name, "sys.rs" | "region.rs");
        let uses = text.lines().any(|line| {
            let code = line.split("//").next().unwrap();
            code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl")
        });
        assert!(may || !uses, "src/{} has unsafe code", path.display());
    }
}

#[test]
fn nothing_is_left_to_do() {
    let words = ["TODO", "FIXME", "todo!(", "unimplemented!("];
    for (path, text) in sources() {
        for word in words {
            assert!(!text.contains(word), "src/{}: {word}", path.display());
        }
    }
}
