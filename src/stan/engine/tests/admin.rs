//! Requests of administration.

use super::*;
use serde_json::{Value, json};

impl World {
    fn ask(&mut self, verb: &str, request: Value) -> Value {
        let subject = format!("_STAN_ADMIN.c.{verb}");
        self.took();
        self.send(Inlet::ADMIN, &subject, request.to_string().into_bytes());
        let taken = self.out.0.iter();
        let at = taken
            .clone()
            .position(|(subject, ..)| subject == "reply.to");
        let (_, _, answer) = self.out.0.remove(at.expect("every request is answered"));
        serde_json::from_slice(&answer).unwrap()
    }

    fn refused(&mut self, verb: &str, request: Value) -> String {
        let answer = self.ask(verb, request);
        answer["error"].as_str().expect("an error").to_owned()
    }

    fn close(&mut self, id: &str) {
        let close = pb::CloseRequest {
            client_id: id.into(),
        };
        self.send(Inlet::CLOSE, "", close.encode_to_vec());
        self.took();
    }
}

fn durable(r: &mut pb::SubscriptionRequest) {
    r.durable_name = "d".into();
}

#[test]
fn channels_and_durables_are_shown() {
    let mut world = World::new();
    world.connect("me");
    let acks = world.subscribe(durable);
    for channel in ["foo", "foo", "bar"] {
        world.publish("me", channel);
    }
    world.ack(&acks, 1);
    let info = world.ask("info", json!({}));
    assert_eq!(
        (&info["channels"], &info["messages"]),
        (&json!(2), &json!(3))
    );
    let list = world.ask("channels", json!({}));
    let names: Vec<&Value> = list["channels"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| &c["name"])
        .collect();
    assert_eq!(names, ["bar", "foo"]);
    assert_eq!(list["channels"][1]["pending"], 1);
    assert!(list.get("more").is_none());
    let first = world.ask("channels", json!({ "limit": 1 }));
    assert_eq!(first["more"], "bar");
    let second = world.ask("channels", json!({ "limit": 1, "after": "bar" }));
    assert_eq!(second["channels"][0]["name"], "foo");
    let foo = world.ask("channel", json!({ "channel": "foo" }));
    assert_eq!(foo["subscriptions"][0]["durable"], "d");
    assert_eq!(foo["subscriptions"][0]["is_offline"], false);
    world.close("me");
    let durables = world.ask("durables", json!({}));
    let durable = &durables["durables"][0];
    assert_eq!(
        (&durable["channel"], &durable["is_offline"]),
        (&json!("foo"), &json!(true))
    );
    assert_eq!(
        (&durable["last_sent"], &durable["pending"]),
        (&json!(2), &json!(1))
    );
    let pending = world.ask(
        "pending",
        json!({ "channel": "foo", "client": "me", "durable": "d" }),
    );
    assert_eq!(
        (
            &pending["pending"][0]["sequence"],
            &pending["pending"][0]["deliveries"]
        ),
        (&json!(2), &json!(1))
    );
    let none = world.ask("durables", json!({ "channel": "bar" }));
    assert_eq!(none["durables"], json!([]));
}

/// An answer is one message; whatever there is fits into several.
#[test]
fn long_lists_come_in_pieces() {
    let mut world = World::with(
        |settings| settings.max_channels = 0,
        MemoryStore::new(Box::new(|_| ChannelLimits::default())),
    );
    world.connect("me");
    for number in 0..500 {
        let channel = format!("channel.{number:03}.{}", "x".repeat(100));
        world.publish("me", &channel);
        for name in ["a", "b"] {
            world.subscribe(|r| {
                r.subject = channel.clone();
                r.durable_name = name.into();
            });
        }
    }
    for (verb, name, count) in [
        ("channels", "channels", 500),
        ("durables", "durables", 1000),
    ] {
        let (mut request, mut seen) = (json!({}), Vec::new());
        loop {
            let answer = world.ask(verb, request);
            assert!(answer.to_string().len() < 64 << 10);
            let items = answer[name].as_array().unwrap();
            let key = |item: &Value| match name {
                "channels" => item["name"].to_string(),
                _ => format!("{} {}", item["channel"], item["subscription"]),
            };
            seen.extend(items.iter().map(key));
            match answer.get("more") {
                Some(more) => request = json!({ "after": more }),
                None => break,
            }
        }
        assert_eq!(seen.len(), count, "{verb}");
        assert!(seen.is_sorted(), "{verb}");
        seen.dedup();
        assert_eq!(seen.len(), count, "{verb}");
    }
}

#[test]
fn a_purge_frees_subscribers_and_numbers_go_on() {
    let mut world = World::new();
    world.connect("me");
    let acks = world.subscribe(|r| r.max_in_flight = 2);
    for _ in 0..5 {
        world.publish("me", "foo");
    }
    assert_eq!(world.got("in"), [(1, false), (2, false)]);
    let answer = world.ask("purge", json!({ "channel": "foo", "to": 3 }));
    assert_eq!(
        (&answer["purged"], &answer["first"], &answer["last"]),
        (&json!(3), &json!(4), &json!(5))
    );
    assert_eq!(
        world.got("in"),
        [(4, false), (5, false)],
        "what is gone needs no ack"
    );
    world.wait(60 * SECOND);
    assert_eq!(world.got("in"), [(4, true), (5, true)]);
    let answer = world.ask("purge", json!({ "channel": "foo" }));
    assert_eq!(
        (&answer["purged"], &answer["messages"]),
        (&json!(2), &json!(0))
    );
    world.publish("me", "foo");
    assert_eq!(world.got("in"), [(6, false)]);
    world.ack(&acks, 6);
    world.wait(60 * SECOND);
    assert_eq!(world.got("in"), []);
}

#[test]
fn a_channel_is_deleted_with_what_it_has() {
    let mut world = World::new();
    world.connect("me");
    let acks = world.subscribe(durable);
    world.publish("me", "foo");
    let error = world.refused("delete", json!({ "channel": "foo" }));
    assert!(error.contains("1 active subscriptions"), "{error}");
    world.ask("delete", json!({ "channel": "foo", "force": true }));
    world.ack(&acks, 1);
    world.wait(60 * SECOND);
    assert_eq!(world.got("in"), []);
    assert!(
        world
            .refused("delete", json!({ "channel": "foo" }))
            .contains("not found")
    );
    // It begins anew, and so does the durable.
    world.publish("me", "foo");
    world.subscribe(durable);
    assert_eq!(world.got("in"), [(1, false)]);
    world.close("me");
    world.ask("delete", json!({ "channel": "foo" }));
}

#[test]
fn a_durable_whose_client_is_away_can_be_removed() {
    let mut world = World::new();
    world.connect("me");
    world.subscribe(durable);
    world.publish("me", "foo");
    let which = || json!({ "channel": "foo", "client": "me", "durable": "d" });
    assert!(
        world
            .refused("remove-durable", which())
            .contains("is active")
    );
    world.close("me");
    world.ask("remove-durable", which());
    assert!(
        world
            .refused("remove-durable", which())
            .contains("no such subscription")
    );
    world.connect("me");
    world.subscribe(|r| {
        durable(r);
        r.start_position = 0;
    });
    assert_eq!(
        world.got("in"),
        [],
        "it is a new one, and begins with what comes"
    );
    // A durable group by its name.
    let group = |r: &mut pb::SubscriptionRequest| {
        durable(r);
        r.queue_group = "g".into();
    };
    world.subscribe(group);
    let which = || json!({ "channel": "foo", "queue": "d:g" });
    assert!(
        world
            .refused("remove-durable", which())
            .contains("is active")
    );
    world.close("me");
    world.ask("remove-durable", which());
    world.connect("me");
    world.subscribe(group);
    assert_eq!(world.got("in"), [(1, false)]);
}

#[test]
fn a_poisoned_message_is_skipped() {
    let mut world = World::new();
    world.connect("me");
    world.subscribe(|r| {
        durable(r);
        r.max_in_flight = 1;
    });
    world.publish("me", "foo");
    world.publish("me", "foo");
    assert_eq!(world.got("in"), [(1, false)]);
    let skip = |sequence: u64| json!({ "channel": "foo", "client": "me", "durable": "d", "sequence": sequence });
    assert!(world.refused("skip", skip(2)).contains("not pending"));
    assert_eq!(world.ask("skip", skip(1))["skipped"], 1);
    assert_eq!(world.got("in"), [(2, false)]);
    world.wait(6 * SECOND);
    assert_eq!(world.got("in"), [(2, true)]);
    assert!(world.refused("skip", skip(1)).contains("not pending"));
}

#[test]
fn changes_need_leave_and_mistakes_change_nothing() {
    let mut world = World::with(
        |settings| settings.admin = false,
        MemoryStore::new(Box::new(|_| ChannelLimits::default())),
    );
    world.connect("me");
    world.publish("me", "foo");
    for verb in ["purge", "delete", "remove-durable", "skip"] {
        let error = world.refused(verb, json!({ "channel": "foo" }));
        assert!(error.contains("administration is off"), "{error}");
    }
    assert_eq!(world.ask("info", json!({}))["changes_allowed"], false);
    let mut world = World::new();
    world.connect("me");
    world.publish("me", "foo");
    for (verb, request) in [
        ("purge", json!({})),
        ("purge", json!({ "channel": "foo", "upto": 1 })),
        ("purge", json!({ "channel": "foo", "to": -1 })),
        ("purge", json!({ "channel": "bar" })),
        ("purge", json!([])),
        ("delete", json!({ "channel": "f*" })),
        ("skip", json!({ "channel": "foo", "sequence": 1 })),
        ("frob", json!({})),
        ("durables", json!({ "after": "x" })),
        (
            "channel",
            json!({ "channel": "foo", "after": "18446744073709551615" }),
        ),
    ] {
        world.refused(verb, request);
    }
    assert_eq!(world.ask("info", json!({}))["messages"], 1);
}
