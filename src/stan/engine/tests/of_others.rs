//! What nats-streaming-server 0.9.2 and older ones leave, and who goes on from there.

use super::*;
use crate::stan::store::{RecoveredChannel, RecoveredSub};

const INVALID: &str = "stan: invalid publish request";

fn client(id: &str, connection: &str) -> pb::ClientInfo {
    pb::ClientInfo {
        id: id.into(),
        heartbeat_inbox: format!("hb.{id}"),
        conn_id: Bytes::from(connection.to_owned()),
        ..Default::default()
    }
}

/// A server that finds these clients.
fn found(clients: Vec<pb::ClientInfo>) -> World {
    let store = MemoryStore::new(Box::new(|_| ChannelLimits::default()));
    let recovered = Recovered {
        clients,
        ..Recovered::default()
    };
    World::found(|_| {}, store, recovered)
}

/// What a client of this connection is told of its publish.
fn publish(world: &mut World, id: &str, connection: &str) -> String {
    world.took();
    let message = pb::PubMsg {
        client_id: id.into(),
        guid: "g".into(),
        subject: "foo".into(),
        conn_id: Bytes::from(connection.to_owned()),
        ..Default::default()
    };
    world.send(Inlet::PUBLISH, "", message.encode_to_vec());
    let answers = world.took();
    let (.., ack) = answers.iter().find(|(to, ..)| to == "reply.to").unwrap();
    pb::PubAck::decode(ack.as_slice()).unwrap().error
}

#[test]
fn clients_go_on_whose_connections_are_not_recorded() {
    let mut world = found(vec![client("me", ""), client("you", "new")]);
    for connection in ["", "mine", "of yesterday"] {
        assert_eq!(publish(&mut world, "me", connection), "", "{connection}");
    }
    for (id, connection, error) in [
        ("you", "", ""),
        ("you", "new", ""),
        // It was replaced.
        ("you", "old", INVALID),
        ("nobody", "old", INVALID),
        ("nobody", "", INVALID),
    ] {
        assert_eq!(publish(&mut world, id, connection), error, "{id}");
    }
}

#[test]
fn a_client_that_was_replaced_here_is_refused() {
    let mut world = found(vec![client("me", "")]);
    assert_eq!(publish(&mut world, "me", "old"), "");
    let request = pb::ConnectRequest {
        client_id: "me".into(),
        heartbeat_inbox: "hb.new".into(),
        conn_id: Bytes::from("new"),
        ..Default::default()
    };
    world.send(Inlet::CONNECT, "", request.encode_to_vec());
    world.wait(SECOND);
    assert_eq!(publish(&mut world, "me", "new"), "");
    assert_eq!(publish(&mut world, "me", "old"), INVALID);
}

#[test]
fn durables_that_do_not_say_so_stay() {
    let mut store = MemoryStore::new(Box::new(|_| ChannelLimits::default()));
    let id = store.create_channel("foo").unwrap();
    let sub = |id, durable_name: &str, queue_group: &str| RecoveredSub {
        state: pb::SubState {
            id,
            client_id: "gone".into(),
            durable_name: durable_name.into(),
            queue_group: queue_group.into(),
            ..Default::default()
        },
        pending: Vec::new(),
    };
    let subscriptions = vec![sub(1, "d", ""), sub(2, "", ""), sub(3, "", "group")];
    for sub in &subscriptions {
        store.add_sub(id, &sub.state).unwrap();
    }
    let recovered = Recovered {
        channels: vec![RecoveredChannel {
            id,
            name: "foo".into(),
            last_sub_id: 3,
            subscriptions,
        }],
        ..Recovered::default()
    };
    let world = World::found(|_| {}, store, recovered);
    let report = world.engine.report();
    let subs = report.channels[0].subscriptions.iter();
    let names: Vec<&str> = subs.map(|sub| sub.durable_name.as_str()).collect();
    assert_eq!(names, ["d"]);
}

#[test]
fn subjects_that_an_older_server_did_not_have_are_made() {
    let store = MemoryStore::new(Box::new(|_| ChannelLimits::default()));
    let older = pb::ServerInfo {
        cluster_id: "c".into(),
        discovery: "_STAN.discover.c".into(),
        publish: "_STAN.pub.x".into(),
        ..Default::default()
    };
    let recovered = Recovered {
        server: Some(older),
        ..Recovered::default()
    };
    let world = World::found(|_| {}, store, recovered);
    let info = world.engine.info();
    assert!(info.sub_close.starts_with("_STAN.subclose."), "{info:?}");
    assert!(info.ack_subs.starts_with("_STAN.ack."), "{info:?}");
    assert_eq!(info.publish, "_STAN.pub.x");
}
