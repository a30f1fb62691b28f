//! A file system that is full, and has room again.
//!
//! It is a small tmpfs, which takes the right to mount one. Without it the test is skipped, and says so;
//! MIDGE_REQUIRE_MOUNT makes that a failure.

use crate::client::{CHANNEL, Client, text_of};
use crate::support::Server;
use std::path::{Path, PathBuf};
use std::process::Command;

const SIZE: u64 = 16 << 20;
const NO_SPACE: &str = "No space left on device";

struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    /// None: it may not be had.
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={SIZE}"), "tmpfs"]);
        let mounted = mount.arg(folder.path()).output();
        if mounted.as_ref().is_ok_and(|output| output.status.success()) {
            return Some(Self { folder });
        }
        let why = mounted.map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
        let why = format!("no tmpfs can be mounted here: {why:?}");
        assert!(std::env::var_os("MIDGE_REQUIRE_MOUNT").is_none(), "{why}");
        eprintln!("SKIPPED: {why}");
        None
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }

    /// Takes all room but so many bytes.
    fn fill(&self, but: u64) {
        let room = nix::sys::statvfs::statvfs(self.path()).unwrap();
        let free = room.blocks_available() * room.fragment_size();
        std::fs::write(self.filler(), vec![1; free.saturating_sub(but) as usize]).unwrap();
    }

    fn free(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn start(disk: &SmallDisk) -> Server {
    let folder = disk.path().join("store");
    Server::start(&[
        "-st",
        "FILE",
        "-dir",
        folder.to_str().unwrap(),
        "-file_slice_max_msgs",
        "300",
        // Files of subscriptions are rewritten all the time.
        "-file_compact_min_size",
        "0",
        "-file_compact_interval",
        "1",
        "-file_compact_frag",
        "1",
        "-hbi",
        "60s",
    ])
}

/// All messages there are, by number and text; the last one is published for it.
fn replay(server: &Server, marker: &str) -> Vec<(u64, String)> {
    let mut client = Client::connect(server.port, marker).unwrap();
    client.publish_one(marker).unwrap();
    read_to(&mut client, marker)
}

fn read_to(client: &mut Client, last: &str) -> Vec<(u64, String)> {
    let acks = client.subscribe(|_| {}).unwrap();
    let mut messages = Vec::new();
    loop {
        let message = client.next_message().unwrap();
        client.ack(&acks, message.sequence).unwrap();
        messages.push((message.sequence, text_of(&message)));
        if messages.last().unwrap().1 == last {
            return messages;
        }
    }
}

#[test]
fn a_full_disk_refuses_serves_and_recovers() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let mut server = start(&disk);
    let mut publisher = Client::connect(server.port, "publisher").unwrap();
    let mut reader = Client::connect(server.port, "reader").unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..12u64 {
        publisher.publish_one(&format!("before-{round}")).unwrap();
        acknowledged.push(format!("before-{round}"));
        // Another number of pages is left each time, so that other files are the first without.
        disk.fill((3 + 2 * round) * 4096);
        let mut refused = 0;
        for number in 0.. {
            let text = format!("{round}-{number}");
            let error = publisher.try_publish(&text).unwrap();
            if error.is_empty() {
                acknowledged.push(text);
            } else {
                assert!(error.contains(NO_SPACE), "{error}");
                refused += 1;
            }
            if refused == 20 {
                break;
            }
        }
        // What is stored is served, with marks and acks of a subscription that find no room.
        let served = {
            let last = acknowledged.last().unwrap().clone();
            let messages = read_to(&mut reader, &last);
            reader = Client::connect(server.port, &format!("reader-{round}")).unwrap_or(reader);
            messages
        };
        check(&served, &acknowledged);
        if round % 3 == 1 {
            // A start on a full disk.
            drop(server);
            server = start(&disk);
            assert!(!server.log().contains("damaged"), "{}", server.log());
            reader = Client::connect(server.port, "reader-again").unwrap();
            check(
                &read_to(&mut reader, acknowledged.last().unwrap()),
                &acknowledged,
            );
        }
        disk.free();
        if round % 3 == 1 {
            publisher = Client::connect(server.port, &format!("publisher-{round}")).unwrap();
            reader = Client::connect(server.port, &format!("reader-new-{round}")).unwrap();
            assert_eq!(publisher.session.error, "");
            assert_eq!(reader.session.error, "");
        }
    }
    acknowledged.push("end".into());
    check(&replay(&server, "end"), &acknowledged);
    server.stop();
    let server = start(&disk);
    assert!(!server.log().contains("cut off"), "{}", server.log());
    acknowledged.push("again".into());
    check(&replay(&server, "again"), &acknowledged);
    server.stop();
    assert!(disk.path().join("store").join(CHANNEL).exists());
}

/// Those acknowledged, without a gap in their numbers, and nothing that was refused.
fn check(messages: &[(u64, String)], acknowledged: &[String]) {
    let texts: Vec<&String> = messages.iter().map(|(_, text)| text).collect();
    assert_eq!(texts, acknowledged.iter().collect::<Vec<_>>());
    let numbers: Vec<u64> = messages.iter().map(|(seq, _)| *seq).collect();
    assert_eq!(numbers, (1..=messages.len() as u64).collect::<Vec<_>>());
}

#[test]
fn files_that_may_not_grow_are_an_error_and_no_end() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_str().unwrap();
    let mut server = Server::start(&["-st", "FILE", "-dir", dir]);
    let mut publisher = Client::connect(server.port, "publisher").unwrap();
    publisher.publish_one("before").unwrap();
    let limit = |bytes: &str| {
        let id = server.id().to_string();
        let size = format!("--fsize={bytes}:unlimited");
        let status = Command::new("prlimit").args(["--pid", &id, &size]).status();
        let status = status.expect("prlimit, of util-linux, bounds the files of the server");
        assert!(status.success());
    };
    limit("8192");
    let mut acknowledged = vec!["before".to_owned()];
    // What the log and the files have room for is taken.
    let error = loop {
        let text = format!("message-{}", acknowledged.len());
        let error = publisher.try_publish(&text).unwrap();
        match error.is_empty() {
            true => acknowledged.push(text),
            false => break error,
        }
    };
    assert!(error.contains("File too large"), "{error}");
    limit("unlimited");
    acknowledged.push("end".into());
    check(&replay(&server, "end"), &acknowledged);
    assert!(server.is_running());
    server.stop();
}
