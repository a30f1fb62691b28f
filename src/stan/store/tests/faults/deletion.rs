//! Channels that are deleted on such a disk stay deleted, whatever is left of them.

use super::*;

/// The folder of a deleted channel.
fn deleted_in(root: &Path) -> Option<std::path::PathBuf> {
    let mut entries = std::fs::read_dir(root).unwrap().flatten();
    let is_deleted = |path: &std::path::PathBuf| path.to_string_lossy().contains("deleted");
    entries.find_map(|entry| Some(entry.path()).filter(is_deleted))
}

/// Files in it.
fn left_of_deleted(root: &Path) -> Option<usize> {
    deleted_in(root).map(|folder| std::fs::read_dir(folder).unwrap().count())
}

#[test]
fn a_channel_deleted_on_a_full_disk_stays_away() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let (mut store, foo) = prepare(root);
    let bar = store.create_channel("bar").unwrap();
    publish(&mut store, foo, "a").unwrap();
    store.add_sub(bar, &durable(1)).unwrap();
    settle(&mut store).unwrap();
    let full = plant(root, Fault::Full);
    // The log cannot be emptied while this finds no room.
    store.add_sub(bar, &durable(2)).unwrap();
    store.delete_channel(foo).unwrap();
    assert_eq!(left_of_deleted(root), Some(0), "what was in it makes room");
    let error = store.create_channel("foo").unwrap_err().to_string();
    assert!(error.contains("bar"), "{error}");
    drop(store);
    let deleted = deleted_in(root).unwrap();
    std::fs::write(deleted.join("msgs.1.dat"), b"a kill came before").unwrap();
    for _ in 0..2 {
        let (store, recovered) = open(root, synced(), limits(0, 0, 0));
        let names: Vec<_> = recovered.channels.iter().map(|c| &c.name).collect();
        assert_eq!(names, ["bar"]);
        assert_eq!(left_of_deleted(root), Some(0));
        drop(store);
    }
    let (mut store, _) = open(root, synced(), limits(0, 0, 0));
    drop(full);
    let foo = store.create_channel("foo").unwrap();
    publish(&mut store, foo, "b").unwrap();
    drop(store);
    let (mut store, recovered) = open(root, synced(), limits(0, 0, 0));
    assert_eq!(recovered.channels[1].name, "foo");
    assert_eq!(text(&mut store, 1, 1).as_deref(), Some("b"));
    assert_eq!(left_of_deleted(root), None);
}

#[test]
fn numbers_are_not_given_again_before_it_is_told_that_they_were_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, foo, full) = full_store(folder.path());
    let bar = store.create_channel("bar").unwrap();
    store.append(bar, message("lost", 1)).unwrap();
    store.flush(bar).unwrap();
    store.commit();
    // This waits for the batch with the message, which finds no room.
    store.delete_channel(foo).unwrap();
    drop(full);
    let error = store.append(bar, message("early", 1)).unwrap_err();
    assert!(error.to_string().contains("No space"), "{error}");
    let told = store.completed().unwrap().unwrap();
    assert!((told.channel, told.up_to) == (bar, 0) && told.taken_back.is_some());
    publish(&mut store, bar, "kept").unwrap();
    assert_eq!(text(&mut store, bar, 1).as_deref(), Some("kept"));
}

#[test]
fn no_channel_has_a_name_that_the_store_has_use_for() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let (mut store, _) = open(root, synced(), limits(0, 0, 0));
    store.save_server(&info()).unwrap();
    for name in [
        "midge.log.1",
        "midge.log.2",
        "midge.deleted.0000000000000001.foo",
        "midge.deleted-hash.0000000000000001.0",
    ] {
        let error = store.create_channel(name).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
    // Those that others may have made are theirs.
    let like_it = [
        "midge.deleted.+000000000000001.foo",
        "midge.deleted.1.foo",
        "midge.deleted.foo",
        "midge.log.3",
    ];
    for name in like_it {
        let channel = store.create_channel(name).unwrap();
        publish(&mut store, channel, "kept").unwrap();
    }
    drop(store);
    let (store, recovered) = open(root, synced(), limits(0, 0, 0));
    assert_eq!(names(&recovered), like_it);
    for channel in &recovered.channels {
        assert_eq!(store.bounds(channel.id).messages, 1);
    }
}

#[test]
fn channels_of_any_name_stay_away() {
    const LONG: usize = 255;
    for name in ["foo.bar", &"l".repeat(LONG), &"ü.".repeat(80)[..239]] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let (mut store, foo) = prepare(root);
        let doomed = store.create_channel(name).unwrap();
        publish(&mut store, doomed, "old").unwrap();
        store.add_sub(foo, &durable(1)).unwrap();
        settle(&mut store).unwrap();
        let full = plant(root, Fault::Full);
        store.add_sub(foo, &durable(2)).unwrap();
        store.delete_channel(doomed).unwrap();
        // The original starts if it could be a channel.
        let left = deleted_in(root).unwrap();
        let left = left.file_name().unwrap().to_str().unwrap();
        assert!(crate::stan::names::is_valid_channel(left));
        assert!(store.create_channel(name).is_err());
        drop(store);
        let (store, recovered) = open(root, synced(), limits(0, 0, 0));
        assert_eq!(names(&recovered), ["foo"], "{name}");
        drop(store);
        drop(full);
        // And a later one of the name is whole.
        let (mut store, _) = open(root, synced(), limits(0, 0, 0));
        let later = store.create_channel(name).unwrap();
        publish(&mut store, later, "new").unwrap();
        drop(store);
        let (mut store, recovered) = open(root, synced(), limits(0, 0, 0));
        let later = recovered.channels.iter().find(|one| one.name == name);
        let later = later.unwrap().id;
        assert_eq!(store.bounds(later).messages, 1);
        assert_eq!(text(&mut store, later, 1).as_deref(), Some("new"));
    }
}

#[test]
fn what_waited_for_room_of_a_deleted_channel_comes_to_no_later_log() {
    const MINUTE: i64 = 60_000_000_000;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let (mut store, bar) = prepare(root);
    settle(&mut store).unwrap();
    let full = ["midge.log.1", "midge.log.2"].map(|name| {
        std::fs::write(root.join(name), b"").unwrap();
        plant(&root.join(name), Fault::Full)
    });
    let doomed = store.create_channel("doomed").unwrap();
    store.add_sub(doomed, &durable(1)).unwrap();
    settle(&mut store).unwrap_err();
    // The log cannot be emptied, and then it can be left.
    let broken = plant(&root.join("foo").join("subs.dat"), Fault::Write);
    store.add_sub(bar, &durable(2)).unwrap();
    store.delete_channel(doomed).unwrap();
    drop(broken);
    store.flush(bar).unwrap();
    for minute in 0..20 {
        store.maintain(1 + minute * MINUTE);
        while let Some(completion) = store.completed() {
            completion.unwrap();
        }
    }
    drop(full);
    settle_all(&mut store);
    drop(store);
    let (_, recovered) = open(root, synced(), limits(0, 0, 0));
    assert_eq!(names(&recovered), ["foo"]);
}

#[test]
fn a_deletion_that_cannot_be_brought_to_the_disk_leaves_the_channel_or_ends_it() {
    for sync in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let (mut store, _) = open(root, options(|o| o.sync = sync), limits(0, 0, 0));
        store.save_server(&info()).unwrap();
        let foo = store.create_channel("foo").unwrap();
        store.append(foo, message("a", 1)).unwrap();
        let planted = faults_at(root);
        store.delete_channel(foo).unwrap_err();
        drop(planted);
        let failed = std::iter::from_fn(|| store.completed()).any(|done| done.is_err());
        assert_eq!(failed, sync);
        if !sync {
            store.append(foo, message("b", 1)).unwrap();
            store.close();
            drop(store);
            let (store, recovered) = open(root, options(|_| {}), limits(0, 0, 0));
            assert_eq!(names(&recovered), ["foo"]);
            assert_eq!(store.bounds(0).messages, 2);
        }
    }
}

#[test]
fn a_later_channel_of_the_name_is_logged_behind_the_deleted_one() {
    const DELETED: &str = "midge.deleted.7fffffffffffff00.doomed";
    // Whether the log of the last start is kept or not.
    for kept in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let full = with_unwritten(root);
        std::fs::create_dir(root.join(DELETED)).unwrap();
        let full = kept.then_some(full);
        let (mut store, _) = open(root, synced(), limits(0, 0, 0));
        assert_eq!(root.join(DELETED).exists(), kept);
        drop(full);
        let doomed = store.create_channel("doomed").unwrap();
        publish(&mut store, doomed, "new").unwrap();
        drop(store);
        // With the power.
        let data = root.join("doomed").join("msgs.1.dat");
        nix::unistd::truncate(&data, 0).unwrap();
        let (mut store, recovered) = open(root, synced(), limits(0, 0, 0));
        let doomed = recovered.channels.iter().find(|one| one.name == "doomed");
        let doomed = doomed.unwrap().id;
        assert_eq!(text(&mut store, doomed, 1).as_deref(), Some("new"));
    }
}
