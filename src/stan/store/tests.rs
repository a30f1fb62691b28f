//! One suite over every store, and what is left of a file store after damage.

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

fn message(text: &str, timestamp: i64) -> pb::MsgProto {
    pb::MsgProto {
        subject: "foo".into(),
        data: text.to_owned().into(),
        timestamp,
        ..pb::MsgProto::default()
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

#[test]
fn any_bit_may_flip() {
    let mut random = crate::util::random::Random::new(5);
    for name in [
        "foo/msgs.1.dat",
        "foo/msgs.1.idx",
        "foo/subs.dat",
        "clients.dat",
        "server.dat",
    ] {
        for _ in 0..60 {
            let folder = tempfile::tempdir().unwrap();
            prepared(folder.path(), options(|_| {}));
            let path = folder.path().join(name);
            let mut bytes = std::fs::read(&path).unwrap();
            let bit = random.below(bytes.len() as u32 * 8) as usize;
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, bytes).unwrap();
            let wake: Wake = Arc::new(|| {});
            // Refused with a reason, or served as far as it is whole; never a message that was not stored.
            let opened = FileStore::open(folder.path(), options(|_| {}), limits(0, 0, 0), &wake);
            let Ok((mut store, recovered)) = opened else {
                continue;
            };
            for channel in recovered.channels {
                for seq in 1..=store.bounds(channel.id).last {
                    let found = text(&mut store, channel.id, seq);
                    assert!(
                        found.is_none() || found == Some(format!("m{seq}")),
                        "{name} bit {bit}"
                    );
                }
            }
        }
    }
}

#[test]
fn files_of_subscriptions_are_rewritten() {
    let folder = tempfile::tempdir().unwrap();
    let small = || {
        options(|o| {
            o.compact_min_size = 0;
            o.compact_interval = std::time::Duration::from_secs(0);
        })
    };
    let (mut store, _) = open(folder.path(), small(), limits(0, 0, 0));
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
    let (_, recovered) = open(folder.path(), small(), limits(0, 0, 0));
    assert_eq!(recovered.channels[0].subscriptions[0].pending, [500]);
}

#[test]
fn a_flush_with_sync_is_over_when_the_store_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (ring, bell) = std::sync::mpsc::channel();
    let wake: Wake = Arc::new(move || {
        let _ = ring.send(());
    });
    let synced = options(|o| o.sync = true);
    let (mut store, _) = FileStore::open(folder.path(), synced, limits(0, 0, 0), &wake).unwrap();
    let channel = store.create_channel("foo").unwrap();
    store.append(channel, message("a", 1)).unwrap();
    assert_eq!(store.flush(channel).unwrap(), Flushed::Later);
    store.append(channel, message("b", 2)).unwrap();
    assert_eq!(store.flush(channel).unwrap(), Flushed::Later);
    let mut up_to = 0;
    while up_to < 2 {
        bell.recv_timeout(std::time::Duration::from_secs(30))
            .unwrap();
        while let Some(completion) = store.completed() {
            let completion = completion.unwrap();
            up_to = completion.up_to;
            if completion.more {
                assert_eq!(store.flush(channel).unwrap(), Flushed::Later);
            }
        }
    }
}
