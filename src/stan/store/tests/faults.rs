//! The file store over a disk that is full, or fails.

mod deletion;
mod kept_logs;
mod members;

use super::*;
use crate::stan::store::file::crash::Disk;
use crate::stan::store::file::faults::{Fault, plant};
use crate::stan::store::file::steps::Steps;
use crate::stan::store::file::trace::{Op, Trace};
use crate::util::random::Random;
use std::time::Duration;

fn synced() -> FileOptions {
    options(|o| o.sync = true)
}

fn prepare(root: &Path) -> (FileStore, ChannelId) {
    let (mut store, _) = open(root, synced(), limits(0, 0, 0));
    store.save_server(&info()).unwrap();
    let channel = store.create_channel("foo").unwrap();
    (store, channel)
}

fn durable(id: u64) -> pb::SubState {
    pb::SubState {
        id,
        client_id: "me".into(),
        durable_name: format!("durable-{id}"),
        is_durable: true,
        ..pb::SubState::default()
    }
}

/// Until everything recorded is durable, or there is no room for it.
fn settle(store: &mut FileStore) -> Result<(), StoreError> {
    let wanted = store.next_commit().unwrap();
    store.commit();
    while store.committed() < wanted {
        while let Some(completion) = store.completed() {
            completion?;
        }
        if let Some((commit, error)) = store.refused() {
            assert_eq!(commit, wanted);
            return Err(error);
        }
        std::thread::yield_now();
    }
    Ok(())
}

fn subs(recovered: &Recovered) -> Vec<u64> {
    let subs = recovered.channels[0].subscriptions.iter();
    subs.map(|sub| sub.state.id).collect()
}

/// With logs that are soon full, step by step.
fn open_in_steps(root: &Path) -> (FileStore, Recovered, Arc<Steps>) {
    let options = FileOptions {
        log_bytes_max: 4096,
        ..synced()
    };
    let steps = Arc::new(Steps::default());
    let opened = FileStore::open_in_steps(root, options, limits(0, 0, 0), &steps);
    let (store, recovered) = opened.unwrap();
    (store, recovered, steps)
}

/// What was not synced of the file of subscriptions is lost, which is all of it but the version.
fn lose_subs(root: &Path) {
    let path = root.join("foo").join("subs.dat");
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(4).unwrap();
}

#[test]
fn crashes_on_a_full_disk_lose_no_subscription() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let (mut store, channel) = prepare(root);
    store.add_sub(channel, &durable(1)).unwrap();
    settle(&mut store).unwrap();
    drop(store);
    lose_subs(root);
    for round in 0..3 {
        let full = plant(root, Fault::Full);
        for _ in 0..2 {
            let (_, recovered) = open(root, synced(), limits(0, 0, 0));
            assert_eq!(subs(&recovered), (1..=1 + round).collect::<Vec<_>>());
        }
        // There is room again while it runs; the file of subscriptions is not written to yet.
        let (mut store, _) = open(root, synced(), limits(0, 0, 0));
        drop(full);
        store.add_sub(0, &durable(2 + round)).unwrap();
        settle(&mut store).unwrap();
        drop(store);
        lose_subs(root);
    }
    let (mut store, recovered) = open(root, synced(), limits(0, 0, 0));
    assert_eq!(subs(&recovered), [1, 2, 3, 4]);
    store.close();
    drop(store);
    let (_, recovered) = open(root, synced(), limits(0, 0, 0));
    assert_eq!(subs(&recovered), [1, 2, 3, 4]);
}

/// One commit; a checkpoint that would free the other log waits.
fn add_durable(store: &mut FileStore, steps: &Steps, id: u64) {
    store.add_sub(0, &durable(id)).unwrap();
    store.commit();
    while steps.waiting() > 0 && store.committed() < id {
        steps.step(steps.waiting() - 1);
        while store.completed().is_some() {}
    }
    assert_eq!(store.committed(), id);
}

#[test]
fn what_finds_no_room_is_told_and_comes_with_a_later_commit() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let (mut store, channel) = prepare(root);
    // Nothing in it yet, and no room that it has already.
    std::fs::write(root.join("midge.log.1"), b"").unwrap();
    let full = plant(root, Fault::Full);
    store.add_sub(channel, &durable(1)).unwrap();
    let error = settle(&mut store).unwrap_err().to_string();
    assert!(error.contains("No space left on device"), "{error}");
    // Nothing is tried again by itself.
    assert!(store.completed().is_none());
    store.maintain(0);
    settle(&mut store).unwrap_err();
    drop(full);
    store.maintain(0);
    settle(&mut store).unwrap();
    drop(store);
    let (mut store, recovered) = open(root, synced(), limits(0, 0, 0));
    assert_eq!(subs(&recovered), [1]);
    // The end comes on a full disk as well.
    let _full = plant(root, Fault::Full);
    store.add_sub(0, &durable(2)).unwrap();
    store.close();
}

#[test]
fn nothing_is_durable_after_an_error_of_the_disk() {
    for fault in [Fault::Write, Fault::Sync] {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, channel) = prepare(folder.path());
        store.append(channel, message("a", 1)).unwrap();
        store.flush(channel).unwrap();
        let _planted = plant(&folder.path().join("midge.log.1"), fault);
        store.commit();
        let failed = loop {
            if let Some(completion) = store.completed() {
                break completion.is_err();
            }
            std::thread::yield_now();
        };
        assert!(failed);
        assert_eq!(store.committed(), 0);
    }
}

#[test]
fn after_a_sync_that_failed_everything_is_written_again_before_the_log_goes() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let (mut store, channel) = prepare(root);
    store.append(channel, message("a", 1)).unwrap();
    store.add_sub(channel, &durable(1)).unwrap();
    store.flush(channel).unwrap();
    settle(&mut store).unwrap();
    let planted = plant(&root.join("foo"), Fault::Sync);
    let failed = loop {
        store.maintain(0);
        if let Some(completion) = store.completed() {
            break completion.is_err();
        }
        std::thread::yield_now();
    };
    assert!(failed, "the checkpoint says that it failed");
    drop(store);
    drop(planted);
    // The files read as they should, and the next sync of them would say that all is well.
    let trace = Trace::begin(root);
    let (mut store, recovered) = open(root, synced(), limits(0, 0, 0));
    trace.end();
    assert_eq!(subs(&recovered), [1]);
    assert_eq!(text(&mut store, 0, 1).as_deref(), Some("a"));
    let (ops, before) = (trace.ops(), trace.before());
    let id_of = |name: &str| {
        let named = before.files.iter().find(|(path, ..)| path.ends_with(name));
        named.unwrap().1
    };
    let log = id_of("midge.log.1");
    let emptied = |op: &Op| matches!(op, Op::Write(id, 0, _) if *id == log);
    let emptied = ops.iter().position(emptied).unwrap();
    for (name, from) in [("msgs.1.dat", 4), ("subs.dat", 4)] {
        let (id, len) = (id_of(name), root.join("foo").join(name));
        let len = std::fs::metadata(len).unwrap().len();
        let written = ops.iter().position(|op| {
            matches!(op, Op::Write(of, at, bytes)
                if *of == id && *at <= from && at + bytes.len() as u64 == len)
        });
        let written = written.unwrap_or_else(|| panic!("{name} is not written again"));
        let synced = |op: &Op| matches!(op, Op::Sync(of) if *of == id);
        let synced = ops[written..].iter().position(synced).unwrap();
        assert!(written + synced < emptied, "{name}");
    }
}

#[test]
fn a_server_that_starts_on_a_full_disk_goes_on() {
    const MINUTE: i64 = 60_000_000_000;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let (mut store, _) = prepare(root);
    store.create_channel("bar").unwrap();
    store.close();
    drop(store);
    // The logs went with the end, and have no room of their own now.
    let full = plant(root, Fault::Full);
    let (mut store, recovered) = open(root, synced(), limits(0, 0, 0));
    assert_eq!(recovered.channels.len(), 2);
    for minute in 0..4 {
        store.maintain(1 + minute * MINUTE);
        while let Some(completion) = store.completed() {
            completion.unwrap();
        }
    }
    // What is to make room waits for all that is under way.
    store.delete_channel(0).unwrap();
    assert!(store.completed().is_none());
    drop(full);
    store.append(1, message("a", 1)).unwrap();
    store.add_sub(1, &durable(1)).unwrap();
    store.flush(1).unwrap();
    settle(&mut store).unwrap();
}

/// One whose log has room for nothing, not even in what it has already.
fn full_store(
    root: &Path,
) -> (
    FileStore,
    ChannelId,
    crate::stan::store::file::faults::Planted,
) {
    let (store, channel) = prepare(root);
    std::fs::write(root.join("midge.log.1"), b"").unwrap();
    let full = plant(&root.join("midge.log.1"), Fault::Full);
    (store, channel, full)
}

#[test]
fn publishers_that_try_again_at_once_do_not_keep_requests_from_being_answered() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, channel, full) = full_store(folder.path());
    store.add_sub(channel, &durable(1)).unwrap();
    let wanted = store.next_commit().unwrap();
    let publish = |store: &mut FileStore| {
        store.append(channel, message("a", 1)).unwrap();
        store.flush(channel).unwrap();
    };
    publish(&mut store);
    store.commit();
    let refused = (0..100_000).find_map(|_| {
        while let Some(completion) = store.completed() {
            assert!(completion.unwrap().taken_back.is_some());
            publish(&mut store);
        }
        std::thread::yield_now();
        store.refused()
    });
    assert!(refused.expect("what was noted is tried alone").0 >= wanted);
    drop(full);
    settle_all(&mut store);
    assert!(store.committed() > wanted);
}

/// Whatever was asked for is over.
fn settle_all(store: &mut FileStore) {
    let wanted = store.next_commit().unwrap();
    while store.committed() < wanted {
        store.maintain(0);
        store.commit();
        while let Some(completion) = store.completed() {
            completion.unwrap();
        }
        std::thread::yield_now();
    }
}

#[test]
fn what_waits_for_room_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, channel, full) = full_store(folder.path());
    let large = |id| pb::SubState {
        inbox: "i".repeat(60_000),
        ..durable(id)
    };
    let mut taken = 0;
    let error = (1..).find_map(|id| {
        let added = store.add_sub(channel, &large(id));
        taken += usize::from(added.is_ok());
        if added.is_ok() {
            settle(&mut store).unwrap_err();
        }
        assert!(id < 200, "everything is taken");
        added.err()
    });
    let error = error.unwrap().to_string();
    assert!(error.contains("No space left"), "{error}");
    assert!(store.may_subscribe(channel).is_err());
    assert!(store.create_channel("bar").is_err());
    assert!(!folder.path().join("bar").exists());
    // What ends something is taken.
    store.delete_sub(channel, 1).unwrap();
    drop(full);
    settle_all(&mut store);
    store.add_sub(channel, &durable(1000)).unwrap();
    store.close();
    drop(store);
    let (_, recovered) = open(folder.path(), synced(), limits(0, 0, 0));
    assert_eq!(subs(&recovered).len(), taken);
}

#[test]
fn refused_publishes_leave_nothing_behind_that_grows() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, channel, _full) = full_store(folder.path());
    for round in 0..100 {
        store.append(channel, message("a", round)).unwrap();
        store.flush(channel).unwrap();
        store.commit();
        while store.completed().is_none_or(|done| done.is_err()) {
            std::thread::yield_now();
        }
        while store.refused().is_none() {
            store.completed();
            std::thread::yield_now();
        }
    }
    assert!(store.waiting_notes() < 100, "{}", store.waiting_notes());
}

/// One message, on its way to the disk or refused.
fn publish(store: &mut FileStore, channel: ChannelId, text: &str) -> Result<(), StoreError> {
    let seq = store.append(channel, message(text, 1))?;
    store.flush(channel)?;
    store.commit();
    for _ in 0..50_000_000 {
        while let Some(completion) = store.completed() {
            let completion = completion?;
            if let Some(error) = completion.taken_back {
                return Err(error);
            }
            if completion.channel == channel && completion.up_to >= seq {
                return Ok(());
            }
        }
        std::thread::yield_now();
    }
    panic!("nobody is told what became of it");
}

/// Where there is no room for what is written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Full {
    Log,
    Channel,
    /// The same without syncs.
    ChannelAlone,
}

fn refused(store: &mut FileStore, root: &Path, full: Full, text: &str) {
    store.append(0, message(text, 1)).unwrap();
    let place = match full {
        Full::Log => "midge.log.1",
        Full::Channel | Full::ChannelAlone => "foo",
    };
    let planted = plant(&root.join(place), Fault::NoRoom);
    if full == Full::ChannelAlone {
        store.flush(0).unwrap_err();
        return;
    }
    store.flush(0).unwrap();
    store.commit();
    let completion = loop {
        match store.completed() {
            Some(completion) => break completion.unwrap(),
            None => std::thread::yield_now(),
        }
    };
    drop(planted);
    assert!(completion.taken_back.is_some());
}

#[test]
fn what_is_refused_takes_the_place_of_nothing() {
    const MESSAGE_BYTES: u64 = 50;
    for full in [Full::Log, Full::Channel, Full::ChannelAlone] {
        for (messages, bytes, per_slice) in [
            (2, 0, 0),
            (2, 0, 1),
            (2, 0, 2),
            (0, 3 * MESSAGE_BYTES - 1, 0),
            (0, 3 * MESSAGE_BYTES - 1, 1),
            (0, 3 * MESSAGE_BYTES - 1, 2),
        ] {
            let what = format!("{full:?} {messages} {bytes} {per_slice}");
            let folder = tempfile::tempdir().unwrap();
            let root = folder.path();
            let options = || {
                options(|o| {
                    o.sync = full != Full::ChannelAlone;
                    o.slice_max_msgs = per_slice;
                })
            };
            let (mut store, _) = open(root, options(), limits(messages, bytes, 0));
            store.save_server(&info()).unwrap();
            store.create_channel("foo").unwrap();
            let stored = |store: &mut FileStore, text: &str| match full {
                Full::ChannelAlone => {
                    store.append(0, message(text, 1)).unwrap();
                    store.flush(0).unwrap();
                }
                Full::Log | Full::Channel => publish(store, 0, text).unwrap(),
            };
            for text in ["a", "b", "c"] {
                stored(&mut store, text);
            }
            let before = store.bounds(0);
            assert_eq!((before.first, before.last, before.messages), (2, 3, 2));
            assert!((2 * MESSAGE_BYTES..3 * MESSAGE_BYTES - 1).contains(&before.bytes));
            for _ in 0..3 {
                refused(&mut store, root, full, "refused");
                assert_eq!(store.bounds(0), before, "{what}");
                assert_eq!(text(&mut store, 0, 2).as_deref(), Some("b"), "{what}");
                assert_eq!(text(&mut store, 0, 3).as_deref(), Some("c"), "{what}");
            }
            // There is room again.
            stored(&mut store, "d");
            let after = store.bounds(0);
            assert_eq!((after.first, after.last, after.messages), (3, 4, 2));
            assert_eq!(after.bytes, before.bytes, "{what}");
            assert_eq!(text(&mut store, 0, 2), None, "{what}");
            store.close();
            drop(store);
            let (mut store, _) = open(root, options(), limits(messages, bytes, 0));
            assert_eq!(store.bounds(0), after, "{what}");
            for (seq, expected) in [(3, "c"), (4, "d")] {
                assert_eq!(text(&mut store, 0, seq).as_deref(), Some(expected));
            }
        }
    }
}

#[test]
fn limits_apply_to_messages_whose_index_cannot_be_read() {
    for (messages, bytes, age) in [(10, 0, 0), (0, 570, 0), (0, 0, 100)] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let one_slice = options(|o| o.slice_max_msgs = 1000);
        let (mut store, _) = open(root, one_slice, limits(messages, bytes, age));
        store.save_server(&info()).unwrap();
        let channel = store.create_channel("foo").unwrap();
        // All of the same size.
        let next = |store: &mut FileStore, number: i64| {
            let now = 10_000 + number * 10;
            store.append(channel, message("text", now)).unwrap();
            store.flush(channel).unwrap();
            store.expire(channel, now);
        };
        (1..=20).for_each(|number| next(&mut store, number));
        let before = store.bounds(channel);
        assert_eq!((before.first, before.messages), (11, 10));
        // Not in memory any more.
        store.maintain(0);
        store.maintain(0);
        let planted = plant(&root.join("foo").join("msgs.1.idx"), Fault::Read);
        (21..=50).for_each(|number| next(&mut store, number));
        let bounds = store.bounds(channel);
        assert!(bounds.messages <= 20 && bounds.last == 50, "{bounds:?}");
        drop(planted);
        (51..=80).for_each(|number| next(&mut store, number));
        let after = store.bounds(channel);
        assert_eq!((after.first, after.messages), (71, 10));
        assert_eq!(after.bytes, before.bytes);
    }
}

#[test]
fn a_file_that_cannot_be_written_stops_its_channel_alone() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let mut options = synced();
    options.log_bytes_max = 8192;
    let (mut store, _) = open(root, options.clone(), limits(0, 0, 0));
    store.save_server(&info()).unwrap();
    let foo = store.create_channel("foo").unwrap();
    let bar = store.create_channel("bar").unwrap();
    settle(&mut store).unwrap();
    let planted = plant(&root.join("foo").join("subs.dat"), Fault::Write);
    store.add_sub(foo, &durable(1)).unwrap();
    store.flush(foo).unwrap();
    settle(&mut store).unwrap();
    let error = publish(&mut store, foo, "a").unwrap_err().to_string();
    assert!(error.contains("subs.dat"), "{error}");
    assert!(store.may_subscribe(foo).is_err());
    // Both logs are used several times.
    for _ in 0..30 {
        publish(&mut store, bar, "b").unwrap();
        store.add_sub(bar, &durable(9)).unwrap();
    }
    settle(&mut store).unwrap();
    drop(store);
    drop(planted);
    let (mut store, recovered) = open(root, options, limits(0, 0, 0));
    let named = |name: &str| {
        let mut channels = recovered.channels.iter();
        channels.find(|channel| channel.name == name).unwrap()
    };
    let (foo, bar) = (named("foo"), named("bar"));
    assert_eq!(foo.subscriptions.len(), 1, "it was confirmed");
    assert_eq!(store.bounds(bar.id).last, 30);
    publish(&mut store, foo.id, "a").unwrap();
}

#[test]
fn a_folder_that_somebody_removed_stops_its_channel_alone() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let mut options = synced();
    options.log_bytes_max = 8192;
    options.descriptors_max = 4;
    let (mut store, _) = open(root, options, limits(0, 0, 0));
    store.save_server(&info()).unwrap();
    let foo = store.create_channel("foo").unwrap();
    let bar = store.create_channel("bar").unwrap();
    let baz = store.create_channel("baz").unwrap();
    publish(&mut store, foo, "a").unwrap();
    std::fs::remove_dir_all(root.join("foo")).unwrap();
    // The files of it are closed, because others need theirs.
    publish(&mut store, bar, "b").unwrap();
    publish(&mut store, baz, "b").unwrap();
    store.add_sub(foo, &durable(1)).unwrap();
    store.flush(foo).unwrap();
    let error = publish(&mut store, foo, "a").unwrap_err().to_string();
    assert!(
        error.contains("foo") && error.contains("No such file"),
        "{error}"
    );
    for _ in 0..30 {
        publish(&mut store, bar, "b").unwrap();
    }
}

#[test]
fn a_rewritten_file_whose_name_is_not_on_the_disk_ends_it() {
    for clients in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let mut options = synced();
        (options.compact_min_size, options.compact_interval) = (0, Duration::ZERO);
        let (mut store, _) = open(root, options, limits(0, 0, 0));
        store.save_server(&info()).unwrap();
        let foo = store.create_channel("foo").unwrap();
        settle(&mut store).unwrap();
        let below = if clients {
            root.to_owned()
        } else {
            root.join("foo")
        };
        let client = pb::ClientInfo {
            id: "me".into(),
            heartbeat_inbox: "hb".into(),
            ..pb::ClientInfo::default()
        };
        let _planted = faults_at(&below);
        for id in 1..20 {
            if clients {
                let _ = store.add_client(&client);
                let _ = store.delete_client("me");
            } else {
                let _ = store.add_sub(foo, &durable(id));
                store.delete_sub(foo, id).unwrap();
                store.flush(foo).unwrap();
            }
        }
        let failed = std::iter::from_fn(|| store.completed()).find_map(Result::err);
        let failed = failed.expect("it is the end").to_string();
        assert!(failed.starts_with("syncing"), "{failed}");
    }
}

#[test]
fn a_purge_that_is_not_on_the_disk_for_certain_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let (mut store, channel) = prepare(root);
    publish(&mut store, channel, "a").unwrap();
    let _planted = faults_at(&root.join("foo"));
    let error = store.purge(channel, 1).unwrap_err();
    assert!(matches!(error, StoreError::Sync { .. }), "{error}");
    let failed = std::iter::from_fn(|| store.completed()).find_map(Result::err);
    let failed = failed.expect("it is the end").to_string();
    assert_eq!(failed, error.to_string());
}

/// Syncs of the folder itself fail.
fn faults_at(folder: &Path) -> crate::stan::store::file::faults::Planted {
    plant(folder, Fault::FolderSync)
}

/// A registration and a subscription that the log has and no file has room for.
fn with_unwritten(root: &Path) -> crate::stan::store::file::faults::Planted {
    let (mut store, channel) = prepare(root);
    store.add_sub(channel, &durable(1)).unwrap();
    settle(&mut store).unwrap();
    drop(store);
    lose_subs(root);
    plant(&root.join("foo"), Fault::Full)
}

fn names(recovered: &Recovered) -> Vec<&str> {
    let channels = recovered.channels.iter();
    channels.map(|channel| channel.name.as_str()).collect()
}

/// Until the checkpoint that an idle log begins is over, one way or the other.
fn go_idle(store: &mut FileStore, steps: &Steps) {
    while steps.waiting() == 0 {
        store.maintain(0);
    }
    while steps.waiting() > 0 {
        steps.step(0);
    }
    if let Some(completion) = store.completed() {
        panic!("{:?}", completion.map(|one| one.taken_back));
    }
}

fn log_is_empty(root: &Path) -> bool {
    let bytes = std::fs::read(root.join("midge.log.1")).unwrap();
    bytes.iter().take(16).all(|byte| *byte == 0)
}

#[test]
fn a_log_is_not_emptied_while_there_are_no_descriptors() {
    for place in ["", "foo/subs.dat"] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        prepare(root).0.close();
        let steps = Arc::new(Steps::default());
        let opened = FileStore::open_in_steps(root, synced(), limits(0, 0, 0), &steps);
        let (mut store, _) = opened.unwrap();
        add_durable(&mut store, &steps, 1);
        store.append(0, message("a", 1)).unwrap();
        store.flush(0).unwrap();
        store.commit();
        steps.step(0);
        assert!(store.completed().unwrap().unwrap().taken_back.is_none());
        // Not open, as those of a channel that was not used for long.
        store.close_files();
        let lacking = plant(&root.join(place), Fault::Open);
        go_idle(&mut store, &steps);
        assert!(!log_is_empty(root));
        // Again, with what comes meanwhile; the end waits for nothing.
        go_idle(&mut store, &steps);
        store.close();
        assert!(!log_is_empty(root));
        drop(lacking);
        go_idle(&mut store, &steps);
        assert!(log_is_empty(root));
        store.close();
        drop(store);
        let (mut store, recovered) = open(root, synced(), limits(0, 0, 0));
        assert_eq!(subs(&recovered), [1]);
        assert_eq!(text(&mut store, 0, 1).as_deref(), Some("a"));
    }
}

/// As a file system does that never writes in place.
#[test]
fn a_log_that_there_is_no_room_to_empty_keeps_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    prepare(root).0.close();
    let start = || {
        let steps = Arc::new(Steps::default());
        let opened = FileStore::open_in_steps(root, synced(), limits(0, 0, 0), &steps);
        let (store, recovered) = opened.unwrap();
        (store, recovered, steps)
    };
    let (mut store, _, steps) = start();
    add_durable(&mut store, &steps, 1);
    let full = plant(&root.join("midge.log.1"), Fault::NoRoom);
    go_idle(&mut store, &steps);
    store.maintain(0);
    go_idle(&mut store, &steps);
    assert!(!log_is_empty(root));
    // The end waits for nothing, and the next start goes on there.
    store.close();
    drop(store);
    assert!(!log_is_empty(root));
    lose_subs(root);
    let (mut store, recovered, steps) = start();
    assert_eq!(subs(&recovered), [1]);
    assert!(!log_is_empty(root));
    store.add_sub(0, &durable(2)).unwrap();
    store.commit();
    steps.step(0);
    while let Some(completion) = store.completed() {
        completion.unwrap();
    }
    assert!(store.refused().is_some());
    // At the end as well, when nothing retires.
    store.close();
    drop(full);
    store.maintain(0);
    store.commit();
    while steps.waiting() > 0 {
        steps.step(0);
        assert!(store.completed().is_none());
    }
    go_idle(&mut store, &steps);
    assert!(log_is_empty(root));
    drop(store);
    assert_eq!(subs(&start().1), [1, 2]);
    // Empty ones need no room.
    let _full = ["midge.log.1", "midge.log.2"].map(|log| plant(&root.join(log), Fault::NoRoom));
    assert_eq!(subs(&start().1), [1, 2]);
}

#[test]
fn a_start_that_cannot_sync_the_last_number_given_fails() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    prepared(root, options(|_| {}));
    for name in ["msgs.1.dat", "msgs.1.idx"] {
        std::fs::remove_file(root.join("foo").join(name)).unwrap();
    }
    let planted = plant(&root.join("foo"), Fault::FolderSync);
    let wake: Wake = Arc::new(|| {});
    let opened = FileStore::open(root, options(|_| {}), limits(0, 0, 0), &wake);
    let error = opened.err().unwrap();
    assert!(matches!(error, StoreError::Sync { .. }), "{error}");
    drop(planted);
    let (store, _) = open(root, options(|_| {}), limits(0, 0, 0));
    assert_eq!(store.bounds(0).last, 4);
}

#[test]
fn without_descriptors_what_needs_some_is_refused_and_nothing_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let options = FileOptions {
        compact_min_size: 0,
        compact_interval: Duration::ZERO,
        compact_fragmentation: 0,
        ..synced()
    };
    let (mut store, _) = open(root, options, limits(0, 0, 0));
    store.save_server(&info()).unwrap();
    let channel = store.create_channel("foo").unwrap();
    store.append(channel, message("a", 1)).unwrap();
    store.flush(channel).unwrap();
    settle(&mut store).unwrap();
    store.close_files();
    let lacking = plant(root, Fault::Open);
    // Written to the log, and not to the channel's files: taken back.
    store.append(channel, message("b", 2)).unwrap();
    store.flush(channel).unwrap();
    store.commit();
    let completion = loop {
        if let Some(completion) = store.completed() {
            break completion.unwrap();
        }
        std::thread::yield_now();
    };
    assert!(completion.taken_back.is_some());
    store.add_sub(channel, &durable(1)).unwrap();
    store.flush(channel).unwrap();
    settle(&mut store).unwrap();
    store.create_channel("bar").err().unwrap();
    assert!(!root.join("bar").exists());
    store.purge(channel, 1).unwrap_err();
    store.delete_channel(channel).unwrap_err();
    assert!(root.join("foo").is_dir());
    store.maintain(0);
    assert!(store.completed().is_none());
    drop(lacking);
    store.append(channel, message("c", 2)).unwrap();
    store.add_sub(channel, &durable(2)).unwrap();
    store.flush(channel).unwrap();
    settle(&mut store).unwrap();
    store.delete_channel(channel).unwrap();
    assert!(store.completed().is_none());
    store.close();
}
