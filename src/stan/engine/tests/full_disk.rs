//! What the engine does when the disk is full, or fails.

use super::*;
use crate::config::streaming::StreamingOptions;
use crate::stan::store::file::faults::{Fault, Planted, plant};
use crate::stan::store::file::steps::Steps;
use crate::stan::store::file::{FileOptions, FileStore};
use std::sync::Arc;

struct Disk {
    world: World,
    steps: Arc<Steps>,
    folder: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        Self::with(ChannelLimits::default())
    }

    fn with(limits: ChannelLimits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let steps = Arc::new(Steps::default());
        let options = FileOptions::new(&StreamingOptions::default().file);
        let limits = Box::new(move |_: &str| limits);
        let opened = FileStore::open_in_steps(folder.path(), options, limits, &steps);
        let world = World::with(|_| {}, opened.unwrap().0);
        let mut disk = Self {
            world,
            steps,
            folder,
        };
        disk.world.connect("me");
        disk.world.connect("you");
        disk.world.publish("me", "foo");
        disk.settle();
        disk.world.took();
        disk
    }

    /// The disk is done with what it was asked for.
    fn settle(&mut self) {
        while self.steps.waiting() > 0 {
            self.steps.step(0);
            let World { engine, out, now } = &mut self.world;
            engine.end_turn(*now, out).unwrap();
        }
    }

    fn request(&mut self, inlet: Inlet, request: &impl Message) -> Vec<u8> {
        self.world.send(inlet, "", request.encode_to_vec());
        self.settle();
        let mut answers = self.world.took().into_iter();
        let answer = answers.find(|(subject, ..)| subject == "reply.to");
        answer.expect("an answer").2
    }

    fn subscribe(&mut self) -> pb::SubscriptionResponse {
        let request = pb::SubscriptionRequest {
            client_id: "me".into(),
            subject: "foo".into(),
            inbox: "in".into(),
            max_in_flight: 10,
            ack_wait_seconds: 5,
            durable_name: "dur".into(),
            ..Default::default()
        };
        let answer = self.request(Inlet::SUBSCRIBE, &request);
        pb::SubscriptionResponse::decode(&answer[..]).unwrap()
    }

    fn unsubscribe(&mut self, inbox: &str) -> String {
        let request = pb::UnsubscribeRequest {
            client_id: "me".into(),
            subject: "foo".into(),
            inbox: inbox.into(),
            ..Default::default()
        };
        let answer = self.request(Inlet::UNSUBSCRIBE, &request);
        pb::SubscriptionResponse::decode(&answer[..]).unwrap().error
    }

    fn close(&mut self, id: &str) -> String {
        let client_id = id.to_owned();
        let answer = self.request(Inlet::CLOSE, &pb::CloseRequest { client_id });
        pb::CloseResponse::decode(&answer[..]).unwrap().error
    }

    /// Not even the room that the log has already stays.
    fn fill(&self) -> Planted {
        let log = self.folder.path().join("midge.log.1");
        nix::unistd::truncate(&log, 0).unwrap();
        plant(self.folder.path(), Fault::Full)
    }

    fn subs(&self) -> usize {
        let channels = self.world.engine.channels.iter().flatten();
        channels.map(|channel| channel.subs.len()).sum()
    }

    fn tick(&mut self) {
        let World { engine, out, now } = &mut self.world;
        engine.maintain(*now);
        engine.end_turn(*now, out).unwrap();
    }
}

#[test]
fn answers_say_that_there_was_no_room() {
    const NO_ROOM: &str = "No space left on device";
    let mut disk = Disk::new();
    let full = disk.fill();
    // A new durable is not there.
    let answer = disk.subscribe();
    assert!(answer.error.contains(NO_ROOM), "{answer:?}");
    assert_eq!((answer.ack_inbox.as_str(), disk.subs()), ("", 0));
    drop(full);
    let inbox = disk.subscribe().ack_inbox;
    assert_eq!(disk.subs(), 1);
    // What ends has ended, though nobody promises that it lasts.
    let full = disk.fill();
    let error = disk.unsubscribe(&inbox);
    assert!(error.contains(NO_ROOM), "{error}");
    assert_eq!(disk.subs(), 0);
    let error = disk.close("you");
    assert!(error.contains(NO_ROOM), "{error}");
    // An answer that is an error by itself stays what it is.
    assert_eq!(disk.close("you"), "stan: unknown clientID");
    drop(full);
    disk.tick();
    disk.settle();
    assert_eq!(disk.close("me"), "");
}

#[test]
fn a_refused_publish_takes_nothing_from_a_durable() {
    let mut disk = Disk::with(ChannelLimits {
        messages: 1,
        ..ChannelLimits::default()
    });
    disk.subscribe();
    disk.world.publish("me", "foo");
    disk.settle();
    assert_eq!(disk.world.got("in"), [(2, false)]);
    let full = disk.fill();
    disk.world.publish("me", "foo");
    disk.settle();
    assert_eq!(acks(&mut disk.world), 0);
    disk.world.wait(6 * SECOND);
    assert_eq!(disk.world.got("in"), [(2, true)]);
    drop(full);
    disk.tick();
    disk.world.publish("me", "foo");
    disk.settle();
    assert_eq!(disk.world.got("in"), [(3, false)]);
    // Now there is a newer one.
    disk.world.wait(6 * SECOND);
    assert_eq!(disk.world.got("in"), [(3, true)]);
}

/// Over a store without syncs.
fn without_syncs(folder: &std::path::Path) -> World {
    let mut options = FileOptions::new(&StreamingOptions::default().file);
    options.sync = false;
    let limits = Box::new(|_: &str| ChannelLimits::default());
    let wake: crate::stan::store::file::Wake = Arc::new(|| {});
    let (store, _) = FileStore::open(folder, options, limits, &wake).unwrap();
    let mut world = World::with(|_| {}, store);
    world.connect("me");
    world
}

#[test]
fn new_messages_that_cannot_be_read_just_now_come_later() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = without_syncs(folder.path());
    // More than are kept in memory.
    for _ in 0..5000 {
        world.publish("me", "foo");
    }
    world.took();
    let planted = plant(&folder.path().join("foo"), Fault::Read);
    world.subscribe(|request| request.max_in_flight = 1);
    world.subscribe(|request| {
        (request.inbox, request.queue_group) = ("group".into(), "group".into());
    });
    world.wait(20 * SECOND);
    assert!(world.got("in").is_empty());
    drop(planted);
    world.wait(6 * SECOND);
    let taken = world.took();
    let to = |inbox: &str| taken.iter().filter(|(to, ..)| to == inbox).count();
    assert_eq!((to("in"), to("group")), (1, 10));
}

#[test]
fn what_cannot_be_read_just_now_is_not_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = without_syncs(folder.path());
    world.subscribe(|request| request.max_in_flight = 1);
    // More than are kept in memory.
    for _ in 0..5000 {
        world.publish("me", "foo");
    }
    assert_eq!(world.got("in"), [(1, false)]);
    let planted = plant(&folder.path().join("foo"), Fault::Read);
    world.wait(6 * SECOND);
    assert_eq!(world.got("in"), [], "it holds its place");
    drop(planted);
    world.wait(6 * SECOND);
    assert_eq!(world.got("in"), [(1, true)]);
}

/// Acks without an error.
fn acks(world: &mut World) -> usize {
    let taken = world.took().into_iter();
    let acks = taken.filter(|(subject, ..)| subject == "reply.to");
    acks.filter(|(.., ack)| pb::PubAck::decode(&ack[..]).unwrap().error.is_empty())
        .count()
}

#[test]
fn what_is_taken_back_while_a_channel_is_deleted_is_not_acknowledged() {
    let mut disk = Disk::new();
    disk.world.publish("me", "doomed");
    disk.settle();
    disk.world.took();
    let full = disk.fill();
    // One under way, and one behind it.
    disk.world.publish("me", "foo");
    disk.world.publish("me", "foo");
    let doomed = disk.world.engine.by_name["doomed"];
    let World { engine, out, now } = &mut disk.world;
    engine.delete_channel(doomed, out).unwrap();
    drop(full);
    // In the same turn.
    let message = pb::PubMsg {
        client_id: "me".into(),
        guid: "g".into(),
        subject: "foo".into(),
        ..Default::default()
    };
    let payload = message.encode_to_vec();
    engine.handle_message(Inlet::PUBLISH, "", Some("reply.to"), &payload, *now, out);
    engine.end_turn(*now, out).unwrap();
    disk.tick();
    disk.settle();
    let acks = acks(&mut disk.world);
    let engine = &disk.world.engine;
    let stored = engine
        .store
        .bounds(engine.channels[0].as_ref().unwrap().store);
    assert_eq!(stored.last, 1 + acks as u64);
    assert!(
        engine
            .channels
            .iter()
            .flatten()
            .all(|channel| channel.waiting.is_empty())
    );
}

#[test]
fn what_was_taken_back_counts_for_no_subscription() {
    for start in [
        pb::StartPosition::NewOnly,
        pb::StartPosition::LastReceived,
        pb::StartPosition::TimeDeltaStart,
    ] {
        let mut disk = Disk::new();
        let full = disk.fill();
        for _ in 0..3 {
            disk.world.publish("me", "foo");
        }
        disk.world
            .subscribe(|request| request.start_position = start as i32);
        disk.settle();
        assert_eq!(acks(&mut disk.world), 0);
        drop(full);
        disk.tick();
        disk.world.publish("me", "foo");
        disk.settle();
        let got = disk.world.got("in");
        assert_eq!(got.last(), Some(&(2, false)), "{start:?}");
    }
}
