//! A real client library, end to end: async-nats against one loop and against two.

mod support;

use async_nats::{ConnectOptions, HeaderMap};
use futures::StreamExt;
use std::collections::HashSet;
use std::time::Duration;
use support::{PATIENCE, Server};

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("in time")
}

/// Until the server has acted on everything this client sent (`flush` only writes it out).
async fn settle(client: &async_nats::Client) {
    let inbox = client.new_inbox();
    let mut echo = client.subscribe(inbox.clone()).await.unwrap();
    client.publish(inbox, "".into()).await.unwrap();
    within(echo.next()).await.unwrap();
}

/// Both kinds of server, one after the other.
async fn with_servers<F: AsyncFn(&Server)>(check: F) {
    for threads in ["1", "2"] {
        let server = Server::start(&["--threads", threads]);
        check(&server).await;
        server.stop();
    }
}

#[tokio::test]
async fn publish_and_subscribe() {
    with_servers(async |server| {
        let client = async_nats::connect(server.url()).await.unwrap();
        let other = async_nats::connect(server.url()).await.unwrap();
        let mut plain = client.subscribe("a.b").await.unwrap();
        let mut wild = client.subscribe("a.*").await.unwrap();
        let mut rest = client.subscribe("a.>").await.unwrap();
        settle(&client).await;
        let mut headers = HeaderMap::new();
        headers.insert("Colour", "blue");
        other
            .publish_with_headers("a.b", headers, "hello".into())
            .await
            .unwrap();
        settle(&other).await;
        for subscriber in [&mut plain, &mut wild, &mut rest] {
            let message = within(subscriber.next()).await.unwrap();
            assert_eq!(
                (message.subject.as_str(), &message.payload[..]),
                ("a.b", &b"hello"[..])
            );
            assert_eq!(
                message.headers.unwrap().get("Colour").unwrap().as_str(),
                "blue"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn queue_groups_share_the_work() {
    with_servers(async |server| {
        let mut members = Vec::new();
        for _ in 0..4 {
            let client = async_nats::connect(server.url()).await.unwrap();
            let subscriber = client
                .queue_subscribe("work.>", "workers".into())
                .await
                .unwrap();
            settle(&client).await;
            members.push((client, subscriber));
        }
        let publisher = async_nats::connect(server.url()).await.unwrap();
        for number in 0..2000 {
            publisher
                .publish(format!("work.{}", number % 7), number.to_string().into())
                .await
                .unwrap();
        }
        settle(&publisher).await;
        let mut seen = HashSet::new();
        for (client, subscriber) in &mut members {
            settle(client).await;
            let mut own = 0;
            while let Ok(Some(message)) =
                tokio::time::timeout(Duration::from_millis(300), subscriber.next()).await
            {
                assert!(seen.insert(message.payload), "a message came twice");
                own += 1;
            }
            assert!(own > 300, "a member got only {own} of 2000");
        }
        assert_eq!(seen.len(), 2000);
    })
    .await;
}

#[tokio::test]
async fn requests_are_answered_or_refused_at_once() {
    with_servers(async |server| {
        let responder = async_nats::connect(server.url()).await.unwrap();
        let mut requests = responder.subscribe("service").await.unwrap();
        settle(&responder).await;
        tokio::spawn({
            let responder = responder.clone();
            async move {
                while let Some(request) = requests.next().await {
                    responder
                        .publish(request.reply.unwrap(), request.payload)
                        .await
                        .unwrap();
                }
            }
        });
        let client = async_nats::connect(server.url()).await.unwrap();
        for number in 0..200 {
            let answer = within(client.request("service", number.to_string().into()))
                .await
                .unwrap();
            assert_eq!(answer.payload, number.to_string());
        }
        let error = within(client.request("nobody", "".into()))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), async_nats::RequestErrorKind::NoResponders);
    })
    .await;
}

#[tokio::test]
async fn large_payloads_arrive_intact() {
    with_servers(async |server| {
        let client = async_nats::connect(server.url()).await.unwrap();
        let mut subscriber = client.subscribe("large").await.unwrap();
        settle(&client).await;
        let payload: Vec<u8> = (0..1 << 20)
            .map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        for _ in 0..10 {
            client
                .publish("large", payload.clone().into())
                .await
                .unwrap();
        }
        settle(&client).await;
        for _ in 0..10 {
            assert!(within(subscriber.next()).await.unwrap().payload == payload);
        }
    })
    .await;
}

#[tokio::test]
async fn a_thousand_subscriptions() {
    with_servers(async |server| {
        let client = async_nats::connect(server.url()).await.unwrap();
        let mut subscribers = Vec::new();
        for number in 0..1000 {
            subscribers.push(client.subscribe(format!("many.{number}")).await.unwrap());
        }
        settle(&client).await;
        let publisher = async_nats::connect(server.url()).await.unwrap();
        for number in 0..1000 {
            publisher
                .publish(format!("many.{number}"), number.to_string().into())
                .await
                .unwrap();
        }
        settle(&publisher).await;
        for (number, subscriber) in subscribers.iter_mut().enumerate() {
            assert_eq!(
                within(subscriber.next()).await.unwrap().payload,
                number.to_string()
            );
        }
    })
    .await;
}

#[tokio::test]
async fn clients_come_back_after_a_restart() {
    let server = Server::start(&["--threads", "2"]);
    let port = server.port;
    let (events, mut came) = tokio::sync::mpsc::unbounded_channel();
    let client = ConnectOptions::new()
        .reconnect_delay_callback(|_| Duration::from_millis(50))
        .event_callback(move |event| {
            let events = events.clone();
            async move {
                let _ = events.send(event.to_string());
            }
        })
        .connect(server.url())
        .await
        .unwrap();
    let mut subscriber = client.subscribe("after").await.unwrap();
    settle(&client).await;
    server.stop();
    let server = Server::start_at(port, &["--threads", "2"]);
    let mut disconnected = false;
    loop {
        let event = within(came.recv()).await.unwrap();
        disconnected |= event == "disconnected";
        if disconnected && event == "connected" {
            break;
        }
    }
    client.publish("after", "here again".into()).await.unwrap();
    settle(&client).await;
    assert_eq!(
        within(subscriber.next()).await.unwrap().payload,
        "here again"
    );
    server.stop();
}
