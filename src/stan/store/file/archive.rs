//! The script that gets slices nobody needs any more. It runs beside the server, which logs what it says.

use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Of its output in the log; the rest is dropped.
const OUTPUT_BYTES_MAX: u64 = 4 << 10;

/// Hands both files over, and waits for the end elsewhere, so that no zombie is left.
pub fn begin(script: &str, channel: &str, data: &Path, index: &Path) {
    let failed = |error: io::Error| {
        log::error!("STREAM: Error invoking archive script {script:?}: {error} (output=)");
    };
    let (child, said) = match start(script, channel, data, index) {
        Ok(started) => started,
        Err(error) => return failed(error),
    };
    let script = script.to_owned();
    let files = format!("{channel} ({} and {})", data.display(), index.display());
    let wait = move || {
        let (error, line) = end(child, said, &script, &files);
        match error {
            true => log::error!("STREAM: {line}"),
            false => log::info!("STREAM: {line}"),
        }
    };
    let thread = std::thread::Builder::new().name("stan-archive".into());
    if let Err(error) = thread.spawn(wait) {
        failed(error);
    }
}

/// With one pipe for all it says, in the order in which it says it.
fn start(
    script: &str,
    channel: &str,
    data: &Path,
    index: &Path,
) -> io::Result<(Child, io::PipeReader)> {
    let (said, says) = io::pipe()?;
    let mut command = Command::new(script);
    command.arg(channel).arg(data).arg(index);
    command.stdin(Stdio::null()).stdout(says.try_clone()?);
    // The command has our end for writing, and is dropped here.
    let child = command.stderr(says).spawn()?;
    Ok((child, said))
}

/// Whether it failed, and what to tell.
fn end(mut child: Child, mut said: io::PipeReader, script: &str, files: &str) -> (bool, String) {
    let mut output = Vec::new();
    let read = said
        .by_ref()
        .take(OUTPUT_BYTES_MAX)
        .read_to_end(&mut output);
    // It must not wait for us.
    let dropped = read.and_then(|_| io::copy(&mut said, &mut io::sink()));
    // On one line of the log.
    let output = String::from_utf8_lossy(&output);
    let mut output = output.trim_end().escape_debug().to_string();
    if let Ok(bytes) = dropped
        && bytes > 0
    {
        output += &format!(" [and {bytes} bytes more]");
    }
    match child.wait() {
        Ok(status) if status.success() => (
            false,
            format!("Output of archive script for {files}: {output}"),
        ),
        Ok(status) => (
            true,
            format!("Error invoking archive script {script:?}: {status} (output={output})"),
        ),
        Err(error) => (
            true,
            format!("Error invoking archive script {script:?}: {error} (output={output})"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// What is told of a script with these lines.
    fn told(lines: &str) -> (bool, String) {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("script");
        std::fs::write(&script, format!("#!/bin/sh\n{lines}\n")).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o700)).unwrap();
        let script = script.to_str().unwrap();
        // Another thread of the tests may fork while the script is open for writing.
        let started = (0..100).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            start(script, "foo", Path::new("a"), Path::new("b")).ok()
        });
        let (child, said) = started.unwrap();
        end(child, said, "script", "foo (a and b)")
    }

    #[test]
    fn what_a_script_says_is_told() {
        let text = "Output of archive script for foo (a and b): foo a b bad";
        let (failed, line) = told("printf '%s ' $*; echo bad >&2; cat");
        assert_eq!((failed, line.as_str()), (false, text));
        let text = "Error invoking archive script \"script\": exit status: 3 (output=no)";
        let (failed, line) = told("echo no; exit 3");
        assert_eq!((failed, line.as_str()), (true, text));
        let (_, line) = told("head -c 100000 /dev/zero | tr '\\0' x");
        assert!(line.ends_with("x [and 95904 bytes more]"), "{line}");
        assert!(line.len() < 5000);
    }
}
