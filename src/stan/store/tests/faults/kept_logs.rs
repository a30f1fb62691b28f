//! A shared log stays as long as it holds what no other file does.

use super::*;

#[test]
fn both_logs_are_kept_until_what_they_hold_is_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let open = || open_in_steps(root);
    let (mut store, _, steps) = open();
    store.save_server(&info()).unwrap();
    store.create_channel("foo").unwrap();
    for id in 1..=4 {
        add_durable(&mut store, &steps, id);
    }
    drop(store);
    lose_subs(root);
    let full = plant(root, Fault::Full);
    for _ in 0..2 {
        let (_, recovered, _) = open();
        assert_eq!(subs(&recovered), [1, 2, 3, 4]);
    }
    // The first commit fails, and comes again.
    let (mut store, _, steps) = open();
    store.commit();
    steps.step(0);
    while store.completed().is_some() {}
    assert!(store.refused().is_some());
    drop(full);
    store.add_sub(0, &durable(5)).unwrap();
    store.commit();
    steps.step(0);
    while store.completed().is_some() {}
    drop(store);
    lose_subs(root);
    assert_eq!(subs(&open().1), [1, 2, 3, 4, 5]);
}

#[test]
fn a_log_stays_while_a_file_lacks_what_it_has() {
    const MINUTE: i64 = 60_000_000_000;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let (mut store, channel) = prepare(root);
    for number in 1..=2 {
        store
            .append(channel, message(&number.to_string(), number))
            .unwrap();
    }
    store.add_sub(channel, &durable(1)).unwrap();
    store.flush(channel).unwrap();
    settle(&mut store).unwrap();
    // What the log has the file has not, nor can it be rewritten.
    let full_there = plant(&root.join("foo"), Fault::Full);
    store.add_sub(channel, &durable(2)).unwrap();
    settle(&mut store).unwrap();
    let full = plant(root, Fault::Full);
    // More marks than are kept for a file that cannot grow.
    for round in 0..700_000 {
        store.sub_sent(channel, 1, 1 + round % 2).unwrap();
    }
    store.flush(channel).unwrap();
    for minute in 0..3 {
        store.maintain(1 + minute * MINUTE);
        while let Some(completion) = store.completed() {
            completion.unwrap();
        }
    }
    drop(store);
    drop((full, full_there));
    let (_, recovered) = open(root, synced(), limits(0, 0, 0));
    assert_eq!(subs(&recovered), [1, 2]);
}

#[test]
fn the_older_log_is_emptied_first() {
    for (commits, older, newer) in [
        (2, "midge.log.1", "midge.log.2"),
        (3, "midge.log.2", "midge.log.1"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let mut options = synced();
        options.log_bytes_max = 4096;
        let steps = Arc::new(Steps::default());
        let (mut store, _) =
            FileStore::open_in_steps(root, options, limits(0, 0, 0), &steps).unwrap();
        store.save_server(&info()).unwrap();
        store.create_channel("foo").unwrap();
        for id in 1..=commits {
            // Each batch fills a log. The other one is free again before the last commit, and not behind it.
            while id == commits && steps.waiting() > 0 {
                steps.step(0);
                while store.completed().is_some() {}
            }
            add_durable(&mut store, &steps, id);
        }
        drop(store);
        let trace = Trace::begin(root);
        let (_, recovered) = open(root, synced(), limits(0, 0, 0));
        trace.end();
        assert_eq!(subs(&recovered), (1..=commits).collect::<Vec<_>>());
        let (ops, before) = (trace.ops(), trace.before());
        let emptied = |name: &str| {
            let named = before.files.iter().find(|(path, ..)| path.ends_with(name));
            let log = named.unwrap().1;
            let empties = |op: &Op| matches!(op, Op::Write(id, 0, _) if *id == log);
            ops.iter().position(empties).unwrap()
        };
        assert!(emptied(older) < emptied(newer), "{older} is the older one");
    }
}

#[test]
fn a_log_that_is_kept_is_tried_before_it_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let _full = with_unwritten(root);
    let _planted = plant(&root.join("midge.log.1"), Fault::Direct);
    let (mut store, _) = open(root, synced(), limits(0, 0, 0));
    store.add_sub(0, &durable(2)).unwrap();
    settle(&mut store).unwrap();
}

#[test]
fn what_the_log_has_is_not_left_there_for_a_server_that_keeps_none() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let full = with_unwritten(root);
    let options = options(|o| o.sync = false);
    let open_without = || {
        let wake: crate::stan::store::file::Wake = Arc::new(|| {});
        FileStore::open(root, options.clone(), limits(0, 0, 0), &wake)
    };
    let error = open_without().err().unwrap().to_string();
    assert!(error.contains("make room"), "{error}");
    drop(full);
    assert_eq!(subs(&open_without().unwrap().1), [1]);
}

#[test]
fn what_a_server_without_syncs_left_is_on_the_disk_before_anything_counts_on_it() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let trace = Trace::begin(root);
    // One ends as it should, one is killed; neither leaves a log.
    for close in [true, false] {
        let (mut store, recovered) = open(root, options(|_| {}), limits(0, 0, 0));
        if recovered.server.is_none() {
            store.save_server(&info()).unwrap();
            store.create_channel("foo").unwrap();
        }
        for number in 1..=5 {
            store.append(0, message("old", number)).unwrap();
        }
        store.flush(0).unwrap();
        if close {
            store.close();
        }
    }
    let (mut store, _) = open(root, synced(), limits(0, 0, 0));
    publish(&mut store, 0, "new").unwrap();
    drop(store);
    trace.end();
    for seed in 0..20 {
        let mut disk = Disk::new(root, &trace.before(), false);
        trace.ops().iter().for_each(|op| disk.take(op));
        let left = tempfile::tempdir().unwrap();
        disk.after_power_loss(left.path(), &mut Random::new(seed));
        let (mut store, _) = open(left.path(), synced(), limits(0, 0, 0));
        assert_eq!(store.bounds(0).messages, 11, "seed {seed}");
        assert_eq!(text(&mut store, 0, 11).as_deref(), Some("new"));
    }
}

#[test]
fn a_log_that_goes_does_not_come_back_over_what_a_server_without_syncs_writes() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let (mut store, channel) = prepare(root);
    store.add_sub(channel, &durable(1)).unwrap();
    settle(&mut store).unwrap();
    drop(store);
    let trace = Trace::begin(root);
    drop(open(root, options(|_| {}), limits(0, 0, 0)));
    trace.end();
    let ops = trace.ops();
    let log = root.join("midge.log.1");
    let removed = |op: &Op| matches!(op, Op::Removed(path) if *path == log);
    let removed = ops.iter().position(removed).unwrap();
    let synced = |op: &Op| matches!(op, Op::FolderSynced(path) if path == root);
    assert!(ops[removed..].iter().any(synced));
}

#[test]
fn a_log_of_the_last_start_is_never_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let open = || open_in_steps(root);
    let (mut store, _, steps) = open();
    store.save_server(&info()).unwrap();
    store.create_channel("foo").unwrap();
    for id in 1..=4 {
        add_durable(&mut store, &steps, id);
    }
    drop(store);
    lose_subs(root);
    let full = plant(root, Fault::Full);
    let (mut store, ..) = open();
    drop(full);
    // The older one cannot be emptied, here and when a channel is deleted.
    let planted = plant(&root.join("midge.log.1"), Fault::NoRoom);
    store.delete_sub(0, 1).unwrap();
    let bar = store.create_channel("bar").unwrap();
    store.delete_channel(bar).unwrap();
    assert!(store.completed().is_none());
    drop(store);
    drop(planted);
    let recovered = open().1;
    assert_eq!(subs(&recovered), [2, 3, 4]);
    assert_eq!(names(&recovered), ["foo"]);
}

#[test]
fn an_old_log_stays_until_what_is_carried_over_is_durable() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let open = || open_in_steps(root);
    let (mut store, _, steps) = open();
    store.save_server(&info()).unwrap();
    store.create_channel("foo").unwrap();
    let bar = store.create_channel("bar").unwrap();
    let planted = plant(&root.join("foo").join("subs.dat"), Fault::Write);
    add_durable(&mut store, &steps, 1);
    // The log is full, and the file lacks the subscription.
    store.append(bar, message("a", 1)).unwrap();
    store.flush(bar).unwrap();
    store.commit();
    // Whatever of it the disk does first.
    steps.step(0);
    drop(store);
    drop(planted);
    let recovered = open().1;
    let foo = recovered.channels.iter().find(|one| one.name == "foo");
    assert_eq!(foo.unwrap().subscriptions.len(), 1);
}
