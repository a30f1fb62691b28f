//! Small things around the server: password hashes, the ports file, checking of a configuration.

mod support;

use std::io::Write;
use std::process::{Command, Stdio};
use support::Ports;

const MIDGE: &str = env!("CARGO_BIN_EXE_midge");

#[test]
fn passwd_makes_a_hash_that_fits() {
    let mut child = Command::new(MIDGE)
        .arg("passwd")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"s3cret word\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let hash = String::from_utf8(output.stdout).unwrap();
    assert!(
        bcrypt::verify("s3cret word", hash.trim()).unwrap(),
        "{hash}"
    );
    let empty = Command::new(MIDGE)
        .arg("passwd")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!empty.status.success());
}

#[test]
fn the_ports_file_tells_what_was_bound_and_goes_with_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let mut child = Command::new(MIDGE)
        .args([
            "-a",
            "127.0.0.1",
            "-p",
            "-1",
            "-m",
            "-1",
            "--ports_file_dir",
            path,
        ])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let ports = Ports::of(&child, folder.path());
    for key in ["nats", "monitoring"] {
        let url = ports.urls[key][0].as_str().unwrap();
        let address = url.split_once("://").unwrap().1;
        std::net::TcpStream::connect(address).unwrap();
    }
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(!ports.file.exists());
}

#[test]
fn the_ports_file_has_addresses_that_can_be_connected_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let flags = ["-p", "-1", "-m", "-1", "--cluster", "nats://0.0.0.0:-1"];
    let mut child = Command::new(MIDGE)
        .args(flags)
        .args(["--ports_file_dir", path])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let ports = Ports::of(&child, folder.path());
    for (key, scheme) in [
        ("nats", "nats"),
        ("monitoring", "http"),
        ("cluster", "nats"),
    ] {
        let urls = ports.urls[key].as_array().unwrap();
        assert!(
            urls[0]
                .as_str()
                .unwrap()
                .starts_with(&format!("{scheme}://127.0.0.1:"))
        );
        for url in urls {
            let address = url.as_str().unwrap().split_once("://").unwrap().1;
            assert!(!address.starts_with("0.0.0.0"), "{url}");
            std::net::TcpStream::connect(address).unwrap();
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn every_mistake_of_a_file_is_named_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.conf");
    std::fs::write(
        &path,
        "port: \"x\"\nmax_payload: [1]\ncluster { routes: 7 }\nmax_paylod: 5\n",
    )
    .unwrap();
    let output = Command::new(MIDGE)
        .args(["-t", "-c"])
        .arg(&path)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    for place in ["bad.conf:1:7: port", "bad.conf:2:", "bad.conf:3:"] {
        assert!(text.contains(place), "{place} is missing in\n{text}");
    }
}

#[test]
fn the_examples_are_valid() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/examples");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "conf") {
            continue;
        }
        let output = Command::new(MIDGE)
            .args(["-t", "-c"])
            .arg(&path)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {text}", path.display());
    }
}
