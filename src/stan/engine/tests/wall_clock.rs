//! The wall clock is set while the server runs.

use super::*;

const MONTH: i64 = 30 * 24 * 3600 * SECOND;
const AGE: i64 = 100 * SECOND;

/// A server that keeps messages for a while, with a client.
fn world() -> World {
    let limits = |_: &str| ChannelLimits {
        age: AGE,
        ..ChannelLimits::default()
    };
    let mut world = World::with(|_| {}, MemoryStore::new(Box::new(limits)));
    world.connect("me");
    world
}

impl World {
    /// The wall clock is so far ahead of the other one from now on.
    fn set_wall_clock(&mut self, ahead: i64) {
        self.engine.handle_clock(self.now, self.now + ahead);
    }

    fn stamps(&mut self, inbox: &str) -> Vec<i64> {
        let sent = self.took().into_iter();
        let sent = sent.filter(|(subject, ..)| subject == inbox);
        sent.map(|(.., payload)| pb::MsgProto::decode(&payload[..]).unwrap().timestamp)
            .collect()
    }

    fn held(&self) -> u64 {
        self.engine.report().channels[0].msgs
    }
}

#[test]
fn messages_are_stamped_by_it_and_deadlines_stay() {
    let mut world = world();
    world.subscribe(|_| {});
    let begun = world.now;
    world.set_wall_clock(MONTH);
    world.publish("me", "foo");
    assert_eq!(world.stamps("in"), [begun + MONTH]);
    world.wait(4 * SECOND);
    assert_eq!(world.took(), [], "AckWait is five seconds");
    // Set back: time stands still, for stamps, until it has come that far again.
    world.set_wall_clock(0);
    world.publish("me", "foo");
    assert_eq!(world.stamps("in"), [begun + MONTH]);
    world.wait(SECOND);
    assert_eq!(world.got("in"), [(1, true)]);
    let oldest = world.engine.report().channels[0].oldest_unacked;
    assert_eq!(oldest, Some(begun));
    world.set_wall_clock(MONTH);
    let oldest = world.engine.report().channels[0].oldest_unacked;
    assert_eq!(oldest, Some(begun + MONTH));
}

#[test]
fn messages_grow_old_by_it() {
    let mut world = world();
    world.set_wall_clock(MONTH);
    world.publish("me", "foo");
    world.wait(AGE - SECOND);
    assert_eq!(world.held(), 1);
    world.wait(SECOND);
    assert_eq!(world.held(), 0);
}

#[test]
fn messages_of_a_quiet_channel_grow_old_when_it_is_set_forward() {
    let mut world = world();
    world.publish("me", "foo");
    world.set_wall_clock(AGE - 10 * SECOND);
    world.wait(9 * SECOND);
    assert_eq!(world.held(), 1);
    world.wait(SECOND);
    assert_eq!(world.held(), 0);
    // By more than they may live.
    world.publish("me", "foo");
    world.set_wall_clock(3 * AGE);
    assert_eq!(world.held(), 0);
    // Set back, and forward again in steps.
    world.publish("me", "foo");
    world.set_wall_clock(0);
    for step in 1..=1000 {
        world.set_wall_clock(step * (5 * AGE / 1000));
    }
    assert_eq!(world.held(), 0);
}

#[test]
fn a_subscription_from_a_time_on_begins_by_it() {
    let mut world = world();
    world.set_wall_clock(MONTH);
    world.publish("me", "foo");
    world.wait(10 * SECOND);
    world.publish("me", "foo");
    world.took();
    world.subscribe(|r| {
        r.start_position = pb::StartPosition::TimeDeltaStart as i32;
        r.start_time_delta = 5 * SECOND;
    });
    assert_eq!(world.got("in"), [(2, false)]);
}

#[test]
fn limits_longer_than_time_itself_mean_never() {
    let limits = |_: &str| ChannelLimits {
        inactivity: i64::MAX,
        age: i64::MAX,
        ..ChannelLimits::default()
    };
    let long = |settings: &mut Settings| {
        settings.heartbeat_interval = i64::MAX;
        settings.heartbeat_timeout = i64::MAX;
    };
    let mut world = World::with(long, MemoryStore::new(Box::new(limits)));
    world.connect("me");
    world.publish("me", "foo");
    world.took();
    world.wait(MONTH);
    assert_eq!((world.took(), world.held()), (vec![], 1));
}
