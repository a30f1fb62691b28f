//! A member leaves its queue group shortly before the power goes.

use super::*;

/// Bytes of the record of an end.
const END_BYTES: usize = 10;

/// What of the file of subscriptions reached the disk, of what was written when the member left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Left {
    All,
    /// Its end, and not who got what it had pending.
    End,
    Nothing,
}

fn member(id: u64, is_durable: bool) -> pb::SubState {
    pb::SubState {
        id,
        client_id: format!("client-{id}"),
        queue_group: "durable:group".into(),
        is_durable,
        ..pb::SubState::default()
    }
}

#[test]
fn what_a_member_had_pending_is_with_another_one() {
    for (is_durable, left) in [
        (true, Left::All),
        (true, Left::End),
        (true, Left::Nothing),
        (false, Left::All),
        (false, Left::Nothing),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let path = root.join("foo").join("subs.dat");
        let len = || std::fs::metadata(&path).unwrap().len() as usize;
        let (mut store, channel) = prepare(root);
        for _ in 0..6 {
            publish(&mut store, channel, "a").unwrap();
        }
        for id in [1, 2] {
            store.add_sub(channel, &member(id, is_durable)).unwrap();
        }
        for seq in 1..=6 {
            store.sub_sent(channel, 2 - seq % 2, seq).unwrap();
        }
        for seq in [2, 4, 6] {
            store.sub_acked(channel, 2, seq).unwrap();
        }
        store.flush(channel).unwrap();
        settle(&mut store).unwrap();
        let before = len();
        for seq in [1, 3, 5] {
            store.sub_sent(channel, 2, seq).unwrap();
        }
        store.delete_sub(channel, 1).unwrap();
        store.flush(channel).unwrap();
        settle(&mut store).unwrap();
        let behind = len();
        if left == Left::All {
            for seq in [1, 3, 5] {
                store.sub_acked(channel, 2, seq).unwrap();
            }
            store.flush(channel).unwrap();
        }
        drop(store);
        let mut bytes = std::fs::read(&path).unwrap();
        match left {
            Left::All => {}
            Left::End => bytes[before..behind - END_BYTES].fill(0),
            Left::Nothing => bytes.truncate(before),
        }
        std::fs::write(&path, bytes).unwrap();
        // Nothing that was acknowledged comes again where everything is there.
        let expected: &[u64] = match left {
            Left::All => &[],
            Left::End | Left::Nothing => &[1, 3, 5],
        };
        for _ in 0..2 {
            let (_, recovered) = open(root, synced(), limits(0, 0, 0));
            let what = format!("durable: {is_durable}, left: {left:?}");
            assert_eq!(subs(&recovered), [2], "{what}");
            let other = &recovered.channels[0].subscriptions[0];
            assert_eq!(other.pending, expected, "{what}");
            assert_eq!(other.state.last_sent, 6, "{what}");
        }
    }
}

/// Bytes of a record that says that a message was sent.
const SENT_BYTES: usize = 12;

#[test]
fn a_mark_that_is_lost_is_made_up_for_with_an_empty_log_too() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let path = root.join("foo").join("subs.dat");
    let (mut store, channel) = prepare(root);
    for _ in 0..6 {
        publish(&mut store, channel, "a").unwrap();
    }
    store.add_sub(channel, &durable(1)).unwrap();
    store.flush(channel).unwrap();
    settle(&mut store).unwrap();
    store.close();
    drop(store);
    // Only marks from here on, which the log has nothing of.
    let (mut store, _) = open(root, synced(), limits(0, 0, 0));
    let before = std::fs::metadata(&path).unwrap().len() as usize;
    for seq in 1..=6 {
        store.sub_sent(channel, 1, seq).unwrap();
    }
    store.flush(channel).unwrap();
    drop(store);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.drain(before + SENT_BYTES..before + 3 * SENT_BYTES);
    std::fs::write(&path, bytes).unwrap();
    for _ in 0..2 {
        let (mut store, recovered) = open(root, synced(), limits(0, 0, 0));
        let sub = &recovered.channels[0].subscriptions[0];
        assert_eq!(sub.pending, [1, 2, 3, 4, 5, 6]);
        // A clean stop leaves no log.
        store.close();
    }
}
