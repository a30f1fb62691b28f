//! One suite over every store, and what is left of a file store after damage.

mod faults;

use super::file::{FileOptions, FileStore, Wake};
use super::memory::MemoryStore;
use super::*;
use crate::config::streaming::FileStoreOptions;
use prost::Message;
use std::path::Path;
use std::sync::Arc;

fn limits(messages: u64, bytes: u64, age: i64) -> LimitsOf {
    Box::new(move |_| ChannelLimits {
        messages,
        bytes,
        age,
        ..ChannelLimits::default()
    })
}

fn options(change: impl FnOnce(&mut FileStoreOptions)) -> FileOptions {
    let mut options = crate::config::streaming::StreamingOptions::default().file;
    options.sync = false;
    change(&mut options);
    FileOptions::new(&options)
}

fn open(root: &Path, options: FileOptions, limits: LimitsOf) -> (FileStore, Recovered) {
    let wake: Wake = Arc::new(|| {});
    FileStore::open(root, options, limits, &wake).unwrap()
}

fn info() -> pb::ServerInfo {
    pb::ServerInfo {
        cluster_id: "c".into(),
        ..pb::ServerInfo::default()
    }
}

fn message(text: &str, timestamp: i64) -> NewMessage<'_> {
    NewMessage {
        subject: "foo",
        data: text.as_bytes(),
        timestamp,
        ..NewMessage::default()
    }
}

fn text(store: &mut dyn Store, channel: ChannelId, seq: Seq) -> Option<String> {
    let bytes = store.lookup(channel, seq).ok()??;
    let message = pb::MsgProto::decode(bytes).unwrap();
    assert_eq!(message.sequence, seq);
    Some(String::from_utf8(message.data.to_vec()).unwrap())
}

fn fill(store: &mut dyn Store, channel: ChannelId, numbers: std::ops::RangeInclusive<i64>) {
    for number in numbers {
        let seq = store
            .append(channel, message(&format!("m{number}"), number * 10))
            .unwrap();
        assert_eq!(seq, number as u64);
    }
    store.flush(channel).unwrap();
}

/// Runs a check over every kind of store.
fn over_all(limits_of: impl Fn() -> LimitsOf, check: impl Fn(&mut dyn Store)) {
    check(&mut MemoryStore::new(limits_of()));
    for slice_max_msgs in [0, 1, 7] {
        let folder = tempfile::tempdir().unwrap();
        let options = options(|o| o.slice_max_msgs = slice_max_msgs);
        check(&mut open(folder.path(), options, limits_of()).0);
    }
}

#[test]
fn messages_are_numbered_and_found() {
    over_all(
        || limits(0, 0, 0),
        |store| {
            let channel = store.create_channel("foo").unwrap();
            assert_eq!(store.bounds(channel), Bounds::default());
            assert_eq!(store.first_since(channel, 5).unwrap(), 1);
            fill(store, channel, 1..=20);
            let bounds = store.bounds(channel);
            assert_eq!((bounds.first, bounds.last, bounds.messages), (1, 20, 20));
            assert_eq!(text(store, channel, 7).as_deref(), Some("m7"));
            assert_eq!(text(store, channel, 21), None);
            assert_eq!(text(store, channel, 0), None);
            for (at, seq) in [
                (0, 1),
                (10, 1),
                (11, 2),
                (70, 7),
                (71, 8),
                (200, 20),
                (201, 21),
            ] {
                assert_eq!(store.first_since(channel, at).unwrap(), seq, "since {at}");
            }
        },
    );
}

#[test]
fn limits_drop_the_oldest() {
    over_all(
        || limits(5, 0, 0),
        |store| {
            let channel = store.create_channel("foo").unwrap();
            fill(store, channel, 1..=12);
            let bounds = store.bounds(channel);
            assert_eq!((bounds.first, bounds.last, bounds.messages), (8, 12, 5));
            assert_eq!(text(store, channel, 7), None);
            assert_eq!(text(store, channel, 8).as_deref(), Some("m8"));
        },
    );
    over_all(
        || limits(0, 1, 0),
        |store| {
            // The newest stays, even when it alone is too much.
            let channel = store.create_channel("foo").unwrap();
            fill(store, channel, 1..=3);
            assert_eq!(store.bounds(channel).first, 3);
        },
    );
    over_all(
        || limits(0, 0, 100),
        |store| {
            let channel = store.create_channel("foo").unwrap();
            fill(store, channel, 1..=10);
            assert_eq!(store.expire(channel, 150), Some(160));
            assert_eq!(store.bounds(channel).first, 6);
            assert_eq!(store.expire(channel, 1000), None);
            let bounds = store.bounds(channel);
            assert_eq!((bounds.first, bounds.last, bounds.messages), (11, 10, 0));
            fill(store, channel, 11..=11);
        },
    );
}

#[test]
fn a_purge_takes_the_oldest_and_numbers_go_on() {
    over_all(
        || limits(0, 0, 0),
        |store| {
            let channel = store.create_channel("foo").unwrap();
            assert_eq!(store.purge(channel, 5).unwrap(), 0);
            fill(store, channel, 1..=12);
            assert_eq!(store.purge(channel, 4).unwrap(), 4);
            assert_eq!(store.purge(channel, 4).unwrap(), 0);
            let bounds = store.bounds(channel);
            assert_eq!((bounds.first, bounds.last, bounds.messages), (5, 12, 8));
            assert_eq!(text(store, channel, 4), None);
            assert_eq!(text(store, channel, 5).as_deref(), Some("m5"));
            assert_eq!(store.purge(channel, Seq::MAX).unwrap(), 8);
            let bounds = store.bounds(channel);
            assert_eq!((bounds.first, bounds.last, bounds.messages), (13, 12, 0));
            assert_eq!(bounds.bytes, 0);
            assert_eq!(text(store, channel, 12), None);
            fill(store, channel, 13..=20);
            assert_eq!(store.bounds(channel).messages, 8);
            assert_eq!(text(store, channel, 13).as_deref(), Some("m13"));
        },
    );
}

#[test]
fn what_was_purged_stays_away() {
    for (slice_max_msgs, up_to) in [(0, 4), (0, 10), (3, 4), (3, 9), (3, 10)] {
        let folder = tempfile::tempdir().unwrap();
        let options = || options(|o| o.slice_max_msgs = slice_max_msgs);
        prepared(folder.path(), options());
        // Twice, and once more with something behind it.
        for round in 0..3 {
            let (mut store, recovered) = open(folder.path(), options(), limits(0, 0, 0));
            let channel = recovered.channels[0].id;
            if round == 0 {
                assert_eq!(store.purge(channel, up_to).unwrap(), up_to);
            }
            let bounds = store.bounds(channel);
            let left = 10 - up_to + round / 2;
            assert_eq!((bounds.first, bounds.messages), (up_to + 1, left));
            assert_eq!(text(&mut store, channel, up_to), None);
            if round == 1 {
                fill(&mut store, channel, 11..=11);
                store.close();
            }
            // In round 0 the process ends without a close, as by a crash.
        }
    }
}

#[test]
fn numbers_go_on_behind_a_purge_whose_files_are_lost() {
    let folder = tempfile::tempdir().unwrap();
    prepared(folder.path(), options(|_| {}));
    let (mut store, recovered) = open(folder.path(), options(|_| {}), limits(0, 0, 0));
    store.purge(recovered.channels[0].id, 10).unwrap();
    drop(store);
    // A new slice had been made, the old one removed, and the new one's message did not reach the disk.
    for suffix in ["dat", "idx"] {
        std::fs::remove_file(folder.path().join(format!("foo/msgs.1.{suffix}"))).unwrap();
        std::fs::write(
            folder.path().join(format!("foo/msgs.2.{suffix}")),
            [1, 0, 0, 0],
        )
        .unwrap();
    }
    for round in 0..2 {
        let (mut store, recovered) = open(folder.path(), options(|_| {}), limits(0, 0, 0));
        let channel = recovered.channels[0].id;
        assert_eq!(store.bounds(channel).last, 10 + round);
        if round == 0 {
            fill(&mut store, channel, 11..=11);
            store.close();
        }
    }
}

#[test]
fn a_deleted_channel_is_gone_even_if_it_was_interrupted() {
    let folder = tempfile::tempdir().unwrap();
    prepared(folder.path(), options(|_| {}));
    let root = folder.path();
    let (mut store, recovered) = open(root, options(|_| {}), limits(0, 0, 0));
    store.create_channel("bar").unwrap();
    store.delete_channel(recovered.channels[0].id).unwrap();
    let again = store.create_channel("foo").unwrap();
    fill(&mut store, again, 1..=1);
    store.close();
    drop(store);
    std::fs::rename(root.join("bar"), root.join(".deleted.x")).unwrap();
    let (store, recovered) = open(root, options(|_| {}), limits(0, 0, 0));
    let names: Vec<&str> = recovered.channels.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["foo"]);
    assert_eq!(store.bounds(recovered.channels[0].id).messages, 1);
    assert!(!root.join(".deleted.x").exists());
}

/// A directory with one channel of ten messages, and a durable that acknowledged some.
fn prepared(folder: &Path, options: FileOptions) {
    let (mut store, recovered) = open(folder, options, limits(0, 0, 0));
    assert!(recovered.server.is_none());
    store.save_server(&info()).unwrap();
    let client = pb::ClientInfo {
        id: "me".into(),
        heartbeat_inbox: "hb".into(),
        ..pb::ClientInfo::default()
    };
    store.add_client(&client).unwrap();
    store
        .add_client(&pb::ClientInfo {
            id: "gone".into(),
            ..client
        })
        .unwrap();
    store.delete_client("gone").unwrap();
    let channel = store.create_channel("foo").unwrap();
    fill(&mut store, channel, 1..=10);
    let state = pb::SubState {
        id: 1,
        client_id: "me".into(),
        is_durable: true,
        ..pb::SubState::default()
    };
    store.add_sub(channel, &state).unwrap();
    for seq in 1..=4 {
        store.sub_sent(channel, 1, seq).unwrap();
    }
    store.sub_acked(channel, 1, 2).unwrap();
    store.close();
}

#[test]
fn everything_is_there_after_a_restart() {
    for slice_max_msgs in [0, 3] {
        let folder = tempfile::tempdir().unwrap();
        let options = || options(|o| o.slice_max_msgs = slice_max_msgs);
        prepared(folder.path(), options());
        let (mut store, recovered) = open(folder.path(), options(), limits(0, 0, 0));
        assert_eq!(recovered.server, Some(info()));
        assert_eq!(recovered.clients.len(), 1);
        let channel = &recovered.channels[0];
        assert_eq!((channel.name.as_str(), channel.last_sub_id), ("foo", 1));
        assert_eq!(channel.subscriptions[0].pending, [1, 3, 4]);
        assert_eq!(channel.subscriptions[0].state.last_sent, 4);
        for seq in 1..=10 {
            assert_eq!(text(&mut store, channel.id, seq), Some(format!("m{seq}")));
        }
        fill(&mut store, channel.id, 11..=12);
    }
}

#[test]
fn a_second_process_is_kept_out() {
    let folder = tempfile::tempdir().unwrap();
    let _first = open(folder.path(), options(|_| {}), limits(0, 0, 0));
    let wake: Wake = Arc::new(|| {});
    let second = FileStore::open(folder.path(), options(|_| {}), limits(0, 0, 0), &wake);
    assert!(
        second
            .err()
            .unwrap()
            .to_string()
            .contains("in use by another process")
    );
}

/// Cuts or changes files of a prepared directory and looks at what is left.
fn after_damage(damage: impl FnOnce(&Path), check: impl FnOnce(&mut FileStore, ChannelId)) {
    let folder = tempfile::tempdir().unwrap();
    prepared(folder.path(), options(|_| {}));
    damage(&folder.path().join("foo"));
    let (mut store, recovered) = open(folder.path(), options(|_| {}), limits(0, 0, 0));
    check(&mut store, recovered.channels[0].id);
}

fn cut(path: &Path, bytes: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() - bytes)
        .unwrap();
}

fn append(path: &Path, bytes: &[u8]) {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(bytes).unwrap();
}

#[test]
fn a_torn_index_is_made_again_from_the_data() {
    for bytes in [1, 31, 32, 33, 100, 320] {
        after_damage(
            |folder| cut(&folder.join("msgs.1.idx"), bytes),
            |store, channel| {
                assert_eq!(store.bounds(channel).last, 10, "{bytes} bytes cut off");
                fill(store, channel, 11..=11);
                assert_eq!(text(store, channel, 10).as_deref(), Some("m10"));
            },
        );
    }
    after_damage(
        |folder| std::fs::remove_file(folder.join("msgs.1.idx")).unwrap(),
        |store, channel| assert_eq!(store.bounds(channel).messages, 10),
    );
    after_damage(
        |folder| append(&folder.join("msgs.1.idx"), &[0; 96]),
        |store, channel| fill(store, channel, 11..=12),
    );
}

#[test]
fn a_torn_message_is_cut_off_and_its_number_used_again() {
    for bytes in 1..15 {
        after_damage(
            |folder| cut(&folder.join("msgs.1.dat"), bytes),
            |store, channel| {
                assert_eq!(store.bounds(channel).last, 9);
                fill(store, channel, 10..=11);
                assert_eq!(text(store, channel, 9).as_deref(), Some("m9"));
            },
        );
    }
    for tail in [&[0u8; 50][..], &[20, 0, 0, 0, 1, 2, 3, 4, 5], &[9]] {
        after_damage(
            |folder| append(&folder.join("msgs.1.dat"), tail),
            |store, channel| {
                fill(store, channel, 11..=12);
                assert_eq!(text(store, channel, 12).as_deref(), Some("m12"));
            },
        );
    }
}

#[test]
fn a_damaged_message_is_not_served_and_harms_no_other() {
    for with_index in [true, false] {
        after_damage(
            |folder| {
                let path = folder.join("msgs.1.dat");
                let mut bytes = std::fs::read(&path).unwrap();
                let at = bytes.windows(2).position(|pair| pair == b"m5").unwrap();
                bytes[at] ^= 1;
                std::fs::write(&path, bytes).unwrap();
                if !with_index {
                    std::fs::remove_file(folder.join("msgs.1.idx")).unwrap();
                }
            },
            |store, channel| {
                assert_eq!(store.bounds(channel).last, 10);
                assert!(matches!(
                    store.lookup(channel, 5),
                    Err(StoreError::Damaged { .. })
                ));
                assert_eq!(text(store, channel, 4).as_deref(), Some("m4"));
                assert_eq!(text(store, channel, 6).as_deref(), Some("m6"));
            },
        );
    }
}

/// All of the directory's files, by their path in it.
fn files_of(folder: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    let bytes = std::fs::read(&path).unwrap();
                    files.push((path.strip_prefix(folder).unwrap().to_owned(), bytes));
                }
            }
        }
    }
    files.sort();
    files
}

fn write_files(folder: &Path, files: &[(std::path::PathBuf, Vec<u8>)]) {
    let _ = std::fs::remove_dir_all(folder);
    for (path, bytes) in files {
        let path = folder.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

#[test]
fn any_byte_may_be_damaged() {
    for slice_max_msgs in [0, 4] {
        let options = || options(|o| o.slice_max_msgs = slice_max_msgs);
        let folder = tempfile::tempdir().unwrap();
        prepared(folder.path(), options());
        let files = files_of(folder.path());
        // Thousands of starts: where syncing costs nothing, if there is such a place.
        let memory = Path::new("/dev/shm");
        let work = match memory.is_dir() {
            true => tempfile::tempdir_in(memory).unwrap(),
            false => tempfile::tempdir().unwrap(),
        };
        let work = work.path().join("store");
        for (name, content) in &files {
            for at in 0..content.len() {
                let flip = if at % 2 == 0 { 0x01 } else { 0xff };
                write_files(&work, &files);
                let mut bytes = content.clone();
                bytes[at] ^= flip;
                std::fs::write(work.join(name), bytes).unwrap();
                let what = format!("{} byte {at} xor {flip:#x}", name.display());
                served_but_one(&work, options(), name, &what);
                // And once more: nothing gets worse by what the first start mended.
                served_but_one(&work, options(), name, &what);
            }
        }
    }
}

/// Everything but what the damaged byte was part of is there.
fn served_but_one(root: &Path, options: FileOptions, damaged: &Path, what: &str) {
    let (mut store, recovered) = open(root, options, limits(0, 0, 0));
    let is = |name: &str| damaged.ends_with(name);
    assert!(
        recovered.server == Some(info()),
        "{what}: {:?}",
        recovered.server
    );
    let expected = if is("clients.dat") { 0..=2 } else { 1..=1 };
    assert!(
        expected.contains(&recovered.clients.len()),
        "{what}: clients"
    );
    let channel = &recovered.channels[0];
    let bounds = store.bounds(channel.id);
    assert_eq!(
        (bounds.first, bounds.last, bounds.messages),
        (1, 10, 10),
        "{what}"
    );
    let is_data = damaged.extension().is_some_and(|suffix| suffix == "dat")
        && damaged.to_string_lossy().contains("msgs");
    let mut lost = 0;
    for seq in 1..=10 {
        match text(&mut store, channel.id, seq) {
            Some(found) => assert_eq!(found, format!("m{seq}"), "{what}"),
            None => lost += 1,
        }
    }
    assert!(
        lost <= u64::from(is_data),
        "{what}: {lost} messages are lost"
    );
    if !is("subs.dat") {
        assert_eq!(channel.subscriptions[0].pending, [1, 3, 4], "{what}");
    } else if let Some(sub) = channel.subscriptions.first() {
        assert!(sub.state.last_sent >= 3, "{what}: {sub:?}");
    }
    // The next number is free.
    let seq = store.append(channel.id, message("m11", 110)).unwrap();
    assert_eq!(seq, 11, "{what}");
}

#[test]
fn damage_is_a_reason_not_to_start_for_those_who_want_it() {
    let folder = tempfile::tempdir().unwrap();
    let strict = || {
        options(|o| {
            o.strict_recovery = true;
            o.slice_max_msgs = 4;
        })
    };
    prepared(folder.path(), strict());
    let files = files_of(folder.path());
    let work = tempfile::tempdir().unwrap();
    let work = work.path().join("store");
    let wake: Wake = Arc::new(|| {});
    for (name, at, expected) in [
        ("foo/msgs.1.dat", 0, "unsupported file version"),
        ("foo/msgs.1.dat", 20, "message 1 does not fit its checksum"),
        ("foo/msgs.2.idx", 5, "index entries are damaged"),
        ("foo/subs.dat", 14, "no whole record"),
        ("clients.dat", 14, "no whole record"),
        ("server.dat", 12, "does not fit its checksum"),
    ] {
        write_files(&work, &files);
        let path = work.join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[at] ^= 0x10;
        std::fs::write(&path, bytes).unwrap();
        let refused = FileStore::open(&work, strict(), limits(0, 0, 0), &wake);
        let text = refused.err().expect("it is damaged").to_string();
        assert!(text.contains(name) && text.contains(expected), "{text}");
        if name.starts_with("foo") {
            assert!(text.contains("channel \"foo\""), "{text}");
        }
    }
    // What a crash leaves is no damage.
    write_files(&work, &files);
    append(&work.join("foo/msgs.3.dat"), &[20, 0, 0, 0, 1, 2, 3]);
    append(&work.join("foo/msgs.3.idx"), &[1; 10]);
    append(&work.join("foo/subs.dat"), &[0; 100]);
    append(&work.join("clients.dat"), &[5, 0, 0]);
    let (store, recovered) = open(&work, strict(), limits(0, 0, 0));
    assert_eq!(store.bounds(recovered.channels[0].id).last, 10);
}

#[test]
fn what_is_cut_off_or_left_out_is_kept_beside() {
    let kept = |folder: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut kept: Vec<_> = names.filter(|name| name.contains(".damaged-")).collect();
        kept.sort();
        kept
    };
    let folder = tempfile::tempdir().unwrap();
    prepared(folder.path(), options(|_| {}));
    let channel = folder.path().join("foo");
    let garbage = b"not a message at all";
    let end = std::fs::metadata(channel.join("msgs.1.dat")).unwrap().len();
    append(&channel.join("msgs.1.dat"), garbage);
    let index = std::fs::read(channel.join("msgs.1.idx")).unwrap();
    let mut damaged = index.clone();
    damaged[4 + 32 * 3 + 7] = 0xee;
    std::fs::write(channel.join("msgs.1.idx"), &damaged).unwrap();
    drop(open(folder.path(), options(|_| {}), limits(0, 0, 0)));
    let data_name = format!("msgs.1.dat.damaged-{end}");
    assert_eq!(
        kept(&channel),
        [data_name.clone(), "msgs.1.idx.damaged-100".into()]
    );
    assert_eq!(std::fs::read(channel.join(data_name)).unwrap(), garbage);
    let entry = std::fs::read(channel.join("msgs.1.idx.damaged-100")).unwrap();
    assert_eq!(entry, damaged[100..132]);
    assert_eq!(
        std::fs::read(channel.join("msgs.1.idx")).unwrap(),
        index,
        "mended"
    );
}

#[test]
fn files_of_nobody_and_lost_files_stop_no_other_channel() {
    let folder = tempfile::tempdir().unwrap();
    let small = || options(|o| o.slice_max_msgs = 4);
    prepared(folder.path(), small());
    let channel = folder.path().join("foo");
    std::fs::write(channel.join("msgs.x.dat"), b"?").unwrap();
    std::fs::create_dir(channel.join("msgs.9.idx")).unwrap();
    std::fs::write(channel.join("notes.txt"), b"mine").unwrap();
    std::fs::remove_file(channel.join("msgs.2.dat")).unwrap();
    std::fs::remove_file(channel.join("msgs.3.idx")).unwrap();
    let (mut store, recovered) = open(folder.path(), small(), limits(0, 0, 0));
    let id = recovered.channels[0].id;
    let bounds = store.bounds(id);
    assert_eq!((bounds.first, bounds.last, bounds.messages), (1, 10, 6));
    let served: Vec<u64> = (1..=10)
        .filter(|seq| text(&mut store, id, *seq).is_some())
        .collect();
    assert_eq!(served, [1, 2, 3, 4, 9, 10]);
    fill(&mut store, id, 11..=12);
}

#[test]
fn a_folder_that_is_a_symbolic_link_is_no_channel() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    prepared(folder.path(), options(|_| {}));
    let link = folder.path().join("foo");
    let elsewhere = other.path().join("foo");
    std::fs::rename(&link, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
    let (mut store, recovered) = open(folder.path(), options(|_| {}), limits(0, 0, 0));
    assert!(
        recovered
            .channels
            .iter()
            .all(|channel| channel.name != "foo")
    );
    let error = store.create_channel("foo").unwrap_err().to_string();
    assert!(error.ends_with("foo is a symbolic link"), "{error}");
    assert!(elsewhere.join("msgs.1.dat").exists());
}

#[test]
fn numbers_that_were_sent_are_not_given_again() {
    let folder = tempfile::tempdir().unwrap();
    prepared(folder.path(), options(|_| {}));
    for name in ["msgs.1.dat", "msgs.1.idx"] {
        std::fs::remove_file(folder.path().join("foo").join(name)).unwrap();
    }
    for last in [4, 5] {
        let (mut store, recovered) = open(folder.path(), options(|_| {}), limits(0, 0, 0));
        let channel = recovered.channels[0].id;
        assert_eq!(store.bounds(channel).last, last);
        let seq = store.append(channel, message("new", 1)).unwrap();
        assert_eq!(seq, last + 1);
        store.flush(channel).unwrap();
        assert_eq!(text(&mut store, channel, seq).as_deref(), Some("new"));
        store.sub_sent(channel, 1, seq).unwrap();
        store.close();
    }
}

#[test]
fn a_number_that_was_sent_is_not_given_again_when_its_reader_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    prepared(folder.path(), options(|o| o.sync = true));
    for name in ["msgs.1.dat", "msgs.1.idx"] {
        std::fs::remove_file(folder.path().join("foo").join(name)).unwrap();
    }
    let open = || open(folder.path(), options(|o| o.sync = true), limits(0, 0, 0));
    let (mut store, recovered) = open();
    assert_eq!(store.bounds(0).last, 4);
    for sub in &recovered.channels[0].subscriptions {
        store.delete_sub(0, sub.state.id).unwrap();
    }
    store.close();
    drop(store);
    let (mut store, recovered) = open();
    assert_eq!(recovered.channels[0].subscriptions, []);
    assert_eq!(store.append(0, message("new", 1)).unwrap(), 5);
    store.close();
    drop(store);
    assert_eq!(open().0.bounds(0).last, 5);
}

#[test]
fn names_of_the_server_come_back_from_their_copy() {
    let folder = tempfile::tempdir().unwrap();
    prepared(folder.path(), options(|_| {}));
    let path = folder.path().join("server.dat");
    let whole = std::fs::read(&path).unwrap();
    for content in [&b""[..], &whole[..4], &whole[..9], &[7; 30]] {
        std::fs::write(&path, content).unwrap();
        let (_, recovered) = open(folder.path(), options(|_| {}), limits(0, 0, 0));
        assert_eq!(recovered.server, Some(info()));
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }
    // Without one, as in a directory of the original.
    std::fs::remove_file(folder.path().join("server.dat.copy")).unwrap();
    std::fs::write(&path, &whole[..9]).unwrap();
    let (_, recovered) = open(folder.path(), options(|_| {}), limits(0, 0, 0));
    assert_eq!((recovered.server, recovered.channels.len()), (None, 1));
}

fn often_rewritten() -> FileOptions {
    options(|o| {
        o.compact_min_size = 0;
        o.compact_interval = 0;
    })
}

#[test]
fn files_of_subscriptions_are_rewritten() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = open(folder.path(), often_rewritten(), limits(0, 0, 0));
    store.save_server(&info()).unwrap();
    let channel = store.create_channel("foo").unwrap();
    let state = pb::SubState {
        id: 1,
        ..pb::SubState::default()
    };
    store.add_sub(channel, &state).unwrap();
    for seq in 1..=1000 {
        store.sub_sent(channel, 1, seq).unwrap();
        if seq != 500 {
            store.sub_acked(channel, 1, seq).unwrap();
        }
        store.flush(channel).unwrap();
    }
    drop(store);
    let size = std::fs::metadata(folder.path().join("foo/subs.dat"))
        .unwrap()
        .len();
    assert!(size < 1000, "{size} bytes");
    let (_, recovered) = open(folder.path(), often_rewritten(), limits(0, 0, 0));
    assert_eq!(recovered.channels[0].subscriptions[0].pending, [500]);
}

#[test]
fn a_rewritten_file_repeats_nothing_to_a_group() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = open(folder.path(), often_rewritten(), limits(0, 0, 0));
    store.save_server(&info()).unwrap();
    let channel = store.create_channel("foo").unwrap();
    fill(&mut store, channel, 1..=100);
    for id in 1..=2 {
        let state = pb::SubState {
            id,
            client_id: format!("client-{id}"),
            queue_group: "g".into(),
            ..pb::SubState::default()
        };
        store.add_sub(channel, &state).unwrap();
    }
    // The first one gets few of them.
    for seq in 1..=100 {
        let id = if seq <= 10 { 1 } else { 2 };
        store.sub_sent(channel, id, seq).unwrap();
        if seq != 50 {
            store.sub_acked(channel, id, seq).unwrap();
        }
        store.flush(channel).unwrap();
    }
    drop(store);
    let (_, recovered) = open(folder.path(), often_rewritten(), limits(0, 0, 0));
    let subs = recovered.channels[0].subscriptions.iter();
    let pending: Vec<Vec<Seq>> = subs.map(|sub| sub.pending.clone()).collect();
    assert_eq!(pending, [vec![], vec![50]]);
}

#[test]
fn memory_of_channels_is_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = open(folder.path(), options(|_| {}), limits(0, 0, 0));
    let channels = ["foo", "bar"].map(|name| store.create_channel(name).unwrap());
    for channel in channels {
        fill(&mut store, channel, 1..=5000);
        // The first ones are in the files alone.
        for seq in 1..=100 {
            assert_eq!(text(&mut store, channel, seq), Some(format!("m{seq}")));
        }
    }
    let both = store.bytes_in_memory();
    assert!(both.0 > 0 && both.1 > 0, "{both:?}");
    let [deleted, quiet] = channels;
    store.delete_channel(deleted).unwrap();
    assert_eq!(store.bytes_in_memory(), (both.0 / 2, both.1 / 2));
    store.maintain(1);
    assert_eq!(store.bytes_in_memory(), (both.0 / 2, 0));
    // Nothing has come to it since.
    store.maintain(2);
    assert_eq!(store.bytes_in_memory(), (0, 0));
    for seq in [1, 5000] {
        assert_eq!(text(&mut store, quiet, seq), Some(format!("m{seq}")));
    }
}

#[test]
fn what_is_too_large_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = open(folder.path(), options(|_| {}), limits(0, 0, 0));
    store.save_server(&info()).unwrap();
    let channel = store.create_channel("foo").unwrap();
    let inbox = "i".repeat(17 << 20);
    let client = pb::ClientInfo {
        id: "me".into(),
        heartbeat_inbox: inbox.clone(),
        ..pb::ClientInfo::default()
    };
    let error = store.add_client(&client).unwrap_err().to_string();
    assert!(error.contains("clients.dat"), "{error}");
    let small = pb::SubState {
        id: 1,
        client_id: "me".into(),
        durable_name: "d".into(),
        is_durable: true,
        ..pb::SubState::default()
    };
    let large = pb::SubState {
        inbox,
        ..small.clone()
    };
    let error = store.add_sub(channel, &large).unwrap_err().to_string();
    assert!(error.contains("subs.dat"), "{error}");
    store.add_sub(channel, &small).unwrap();
    store.update_sub(channel, &large).unwrap_err();
    let data = vec![0u8; (1 << 30) + 1];
    let huge = NewMessage {
        data: &data,
        ..message("", 1)
    };
    let error = store.append(channel, huge).unwrap_err().to_string();
    assert!(error.contains("\"foo\""), "{error}");
    store.close();
    drop(store);
    let (store, recovered) = open(folder.path(), options(|_| {}), limits(0, 0, 0));
    assert_eq!(recovered.clients, []);
    assert_eq!(recovered.channels[0].subscriptions.len(), 1);
    assert_eq!(recovered.channels[0].subscriptions[0].state, small);
    assert_eq!(store.bounds(recovered.channels[0].id).last, 0);
}

#[test]
fn a_flush_with_sync_is_over_when_the_store_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let wake: Wake = Arc::new(|| {});
    let synced = options(|o| o.sync = true);
    let (mut store, _) = FileStore::open(folder.path(), synced, limits(0, 0, 0), &wake).unwrap();
    let channel = store.create_channel("foo").unwrap();
    store.append(channel, message("a", 1)).unwrap();
    assert_eq!(store.flush(channel).unwrap(), Flushed::Later);
    store.commit();
    store.append(channel, message("b", 2)).unwrap();
    assert_eq!(store.flush(channel).unwrap(), Flushed::Later);
    let mut up_to = 0;
    while up_to < 2 {
        // A write on a thread of its own would have woken us.
        std::thread::yield_now();
        while let Some(completion) = store.completed() {
            let completion = completion.unwrap();
            up_to = completion.up_to;
        }
    }
}

#[test]
fn everything_comes_to_the_disk_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let with = |seconds| options(|o| o.auto_sync = std::time::Duration::from_secs(seconds));
    const SECOND: i64 = 1_000_000_000;
    let (mut store, _) = open(folder.path(), with(60), limits(0, 0, 0));
    store.save_server(&info()).unwrap();
    store.add_client(&pb::ClientInfo::default()).unwrap();
    let channel = store.create_channel("foo").unwrap();
    store.add_sub(channel, &pb::SubState::default()).unwrap();
    fill(&mut store, channel, 1..=10);
    for (now, syncs) in [(1, 0), (60, 0), (61, 3), (121, 3), (181, 3)] {
        store.maintain(now * SECOND);
        assert_eq!(store.syncs(), syncs, "after {now} s");
    }
    fill(&mut store, channel, 11..=11);
    store.maintain(241 * SECOND);
    assert_eq!(store.syncs(), 4);
    drop(store);
    let (mut store, recovered) = open(folder.path(), with(0), limits(0, 0, 0));
    fill(&mut store, recovered.channels[0].id, 12..=20);
    store.maintain(1);
    store.maintain(1000 * SECOND);
    assert_eq!(store.syncs(), 0);
}

#[test]
fn checksums_may_be_left_unchecked_or_be_others() {
    for (polynomial, check) in [
        (0xEDB8_8320, true),
        (0xEDB8_8320, false),
        (0x82F6_3B78, true),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let options = || {
            options(|o| {
                o.crc_polynomial = polynomial;
                o.check_crc = check;
            })
        };
        prepared(folder.path(), options());
        let path = folder.path().join("foo/msgs.1.dat");
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(2).position(|pair| pair == b"m5").unwrap();
        bytes[at + 1] = b'X';
        std::fs::write(&path, bytes).unwrap();
        let (mut store, recovered) = open(folder.path(), options(), limits(0, 0, 0));
        let channel = recovered.channels[0].id;
        let found = text(&mut store, channel, 5);
        assert_eq!(found.as_deref(), if check { None } else { Some("mX") });
        assert_eq!(text(&mut store, channel, 6).as_deref(), Some("m6"));
    }
}

#[test]
fn another_polynomial_is_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    prepared(folder.path(), options(|_| {}));
    let before = files_of(folder.path());
    let other = options(|o| o.crc_polynomial = 0x82F6_3B78);
    let wake: Wake = Arc::new(|| {});
    let refused = FileStore::open(folder.path(), other, limits(0, 0, 0), &wake);
    assert!(refused.err().unwrap().to_string().contains("crc_poly"));
    let after = files_of(folder.path());
    for file in before {
        assert!(after.contains(&file), "{}", file.0.display());
    }
}

#[test]
fn slices_end_by_count_bytes_and_age() {
    let slices = |folder: &Path| {
        let files = std::fs::read_dir(folder.join("foo")).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".idx")).count()
    };
    // Twenty messages of 40 and some bytes, 10 ns apart; all limits zero: a quarter of the channel's own.
    for (count, bytes, age, channel_count, expected) in [
        (7, 0, 0, 0, 3),
        (0, 1, 0, 0, 20),
        (0, 1 << 20, 0, 0, 1),
        (0, 0, 50, 0, 4),
        (0, 0, 0, 0, 1),
        (0, 0, 0, 40, 2),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let options = options(|o| {
            o.slice_max_msgs = count;
            o.slice_max_bytes = bytes;
            o.slice_max_age = age as i64;
        });
        let (mut store, _) = open(folder.path(), options, limits(channel_count, 0, 0));
        let channel = store.create_channel("foo").unwrap();
        for number in 1..=20 {
            fill(&mut store, channel, number..=number);
        }
        assert_eq!(slices(folder.path()), expected, "{count} {bytes} {age}");
    }
}

#[test]
fn old_slices_go_to_the_script() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    let script = folder.path().join("script");
    let told = folder.path().join("told");
    std::fs::write(
        &script,
        format!(
            "#!/bin/sh\necho \"$@\" >{0}.new\nmv {0}.new {0}\n",
            told.display()
        ),
    )
    .unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let options = options(|o| {
        o.slice_max_msgs = 4;
        o.slice_archive_script = script.to_str().unwrap().to_owned();
    });
    let (mut store, _) = open(&root, options, limits(4, 0, 0));
    let channel = store.create_channel("foo").unwrap();
    for number in 1..=8 {
        fill(&mut store, channel, number..=number);
    }
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !told.exists() && std::time::Instant::now() < end {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let names = ["dat", "idx"].map(|suffix| root.join(format!("foo/msgs.1.{suffix}.bak")));
    let expected = format!("foo {} {}\n", names[0].display(), names[1].display());
    assert_eq!(std::fs::read_to_string(told).unwrap(), expected);
    assert!(names[0].exists() && names[1].exists());
}

#[test]
fn many_channels_need_few_files_and_several_threads_open_them() {
    let folder = tempfile::tempdir().unwrap();
    let few = |threads| {
        options(|o| {
            o.descriptors_limit = 20;
            o.parallel_recovery = threads;
            o.slice_max_msgs = 2;
        })
    };
    let (mut store, _) = open(folder.path(), few(1), limits(0, 0, 0));
    store.save_server(&info()).unwrap();
    for number in 0..100 {
        let channel = store.create_channel(&format!("c{number}")).unwrap();
        fill(&mut store, channel, 1..=5);
        store
            .add_sub(
                channel,
                &pb::SubState {
                    id: 1,
                    ..Default::default()
                },
            )
            .unwrap();
        store.flush(channel).unwrap();
        assert!(store.open_files() <= 20);
    }
    store.close();
    drop(store);
    for threads in [1, 4, 1000] {
        let (mut store, recovered) = open(folder.path(), few(threads), limits(0, 0, 0));
        assert_eq!(recovered.channels.len(), 100);
        for (at, channel) in recovered.channels.iter().enumerate() {
            assert_eq!((channel.id as usize, channel.subscriptions.len()), (at, 1));
            assert_eq!(text(&mut store, channel.id, 3).as_deref(), Some("m3"));
            assert_eq!(store.bounds(channel.id).last, 5);
            assert!(store.open_files() <= 20);
        }
        let names: Vec<&str> = recovered
            .channels
            .iter()
            .map(|channel| &*channel.name)
            .collect();
        assert!(names.is_sorted());
    }
}

#[test]
fn a_lower_limit_takes_whole_slices_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let small = || options(|o| o.slice_max_msgs = 10);
    let (mut store, _) = open(folder.path(), small(), limits(0, 0, 0));
    store.save_server(&info()).unwrap();
    let channel = store.create_channel("foo").unwrap();
    fill(&mut store, channel, 1..=100);
    let one = store.bounds(channel).bytes / 100;
    store.close();
    drop(store);
    for (limit, first) in [((35, 0), 66), ((0, (one + 1) * 21 + 5), 80), ((1, 0), 100)] {
        let (mut store, recovered) = open(folder.path(), small(), limits(limit.0, limit.1, 0));
        let id = recovered.channels[0].id;
        let bounds = store.bounds(id);
        assert_eq!(
            (bounds.first, bounds.last, bounds.messages),
            (first, 100, 101 - first)
        );
        let mean = bounds.bytes / bounds.messages;
        assert!((one..one + 4).contains(&mean), "{mean} of {one}");
        assert_eq!(text(&mut store, id, first - 1), None);
        assert_eq!(text(&mut store, id, first), Some(format!("m{first}")));
    }
}
