//! Stamps the git commit into the binary, and nothing else.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if let Some((own, shared)) = git_folders() {
        for path in [own.join("HEAD"), shared.join("refs/heads")] {
            // With a path that is not there cargo would build everything each time.
            if path.exists() {
                println!("cargo:rerun-if-changed={}", path.display());
            }
        }
    }
    let commit = Command::new("git")
        .args(["rev-parse", "--short", "HEAD"])
        .output()
        .ok()
        .filter(|out| out.status.success())
        .and_then(|out| String::from_utf8(out.stdout).ok())
        .unwrap_or_default();
    println!("cargo:rustc-env=MIDGE_GIT_COMMIT={}", commit.trim());
}

/// Git's folder of this tree, and the one it shares with other worktrees. None: the sources came without.
fn git_folders() -> Option<(PathBuf, PathBuf)> {
    let git = Path::new(".git");
    if git.is_dir() {
        return Some((git.into(), git.into()));
    }
    // Of a worktree it is a file that says where.
    let said = std::fs::read_to_string(git).ok()?;
    let own = PathBuf::from(said.strip_prefix("gitdir:")?.trim());
    let shared = match std::fs::read_to_string(own.join("commondir")) {
        Ok(path) => own.join(path.trim()),
        Err(_) => own.clone(),
    };
    Some((own, shared))
}
