//! What several loops promise, over raw sockets: visibility, order, exactly one member per group.

mod support;

use support::{Client, Op, Server};

fn server() -> Server {
    Server::start(&["--threads", "3"])
}

#[test]
fn a_confirmed_subscription_gets_what_is_published_after() {
    let server = server();
    let mut clients: Vec<Client> = (0..6).map(|_| server.client()).collect();
    for round in 0..3000 {
        let (subscriber, publisher) = (round % 6, (round / 6 + 1 + round) % 6);
        if subscriber == publisher {
            continue;
        }
        let subject = if round % 2 == 0 {
            format!("v.{round}")
        } else {
            format!("v.{round}.*")
        };
        clients[subscriber].send(format!("SUB {subject} {round}\r\nPING\r\n").as_bytes());
        assert_eq!(clients[subscriber].op(), Op::Pong);
        clients[publisher].publish(&subject.replace('*', "x"), b"now");
        assert_eq!(clients[subscriber].op().payload(), b"now", "round {round}");
        clients[subscriber].send(format!("UNSUB {round}\r\n").as_bytes());
    }
    server.stop();
}

#[test]
fn every_subscriber_sees_a_publishers_messages_in_order() {
    const COUNT: usize = 60_000;
    let server = server();
    let mut subscribers: Vec<Client> = (0..5).map(|_| server.client()).collect();
    for subscriber in &mut subscribers {
        subscriber.send(b"SUB o.* 1\r\n");
        subscriber.ping();
    }
    let readers: Vec<_> = subscribers
        .into_iter()
        .map(|mut subscriber| {
            std::thread::spawn(move || {
                let mut next = [0usize; 2];
                for _ in 0..COUNT * 2 {
                    let op = subscriber.op();
                    let text = std::str::from_utf8(&op.payload()[..10])
                        .unwrap()
                        .trim()
                        .to_owned();
                    let (publisher, number) = text.split_once('-').unwrap();
                    let publisher: usize = publisher.parse().unwrap();
                    assert_eq!(number.parse::<usize>().unwrap(), next[publisher]);
                    next[publisher] += 1;
                }
            })
        })
        .collect();
    let publishers: Vec<_> = (0..2)
        .map(|publisher| {
            let mut client = server.client();
            std::thread::spawn(move || {
                for number in 0..COUNT {
                    let mut payload =
                        format!("{:<10}", format!("{publisher}-{number}")).into_bytes();
                    // Small ones are copied, large ones shared: they must not overtake each other.
                    if number % 500 == 250 {
                        payload.resize(100_000, b'.');
                    }
                    client.publish(&format!("o.{}", number % 3), &payload);
                }
                client.ping();
            })
        })
        .collect();
    for thread in publishers.into_iter().chain(readers) {
        thread.join().unwrap();
    }
    server.stop();
}

#[test]
fn groups_over_all_loops_get_each_message_once() {
    let server = server();
    let mut members: Vec<Client> = (0..6).map(|_| server.client()).collect();
    for (index, member) in members.iter_mut().enumerate() {
        // One group, whatever the pattern its members subscribed with.
        let subject = ["g.a", "g.*", "g.>"][index % 3];
        member.send(format!("SUB {subject} q 1\r\n").as_bytes());
        member.ping();
    }
    let mut publisher = server.client();
    for number in 0..6000 {
        publisher.publish("g.a", number.to_string().as_bytes());
    }
    publisher.ping();
    let mut seen = std::collections::HashSet::new();
    let mut total = 0;
    let mut counts = vec![0; members.len()];
    support::until("all messages", || {
        for (member, count) in members.iter_mut().zip(&mut counts) {
            member.ping();
            for op in member.kept() {
                assert!(seen.insert(op.payload().to_vec()), "a message came twice");
                total += 1;
                *count += 1;
            }
        }
        total == 6000
    });
    assert!(
        counts.iter().all(|count| (700..1300).contains(count)),
        "{counts:?}"
    );
    server.stop();
}

#[test]
fn members_that_leave_lose_nothing() {
    let server = server();
    let mut stays = server.client();
    stays.send(b"SUB leave q 1\r\n");
    stays.ping();
    let mut publisher = server.client();
    let mut total = 0;
    for round in 0..200 {
        let mut leaver = server.client();
        leaver.send(b"SUB leave q 1\r\n");
        leaver.ping();
        for number in 0..5 {
            publisher.publish("leave", format!("{round}.{number}").as_bytes());
        }
        publisher.ping();
        // Unsubscribed, it still gets what was chosen for it before, and nothing after its PONG.
        leaver.send(b"UNSUB 1\r\n");
        leaver.ping();
        total += leaver.kept().len();
    }
    support::until("the rest at the member that stays", || {
        stays.ping();
        total += stays.kept().len();
        total == 1000
    });
    server.stop();
}

#[test]
fn echo_and_no_responders_across_loops() {
    let server = server();
    let mut clients: Vec<Client> = (0..3).map(|_| server.client()).collect();
    for (index, client) in clients.iter_mut().enumerate() {
        client.send(
            format!("CONNECT {{\"echo\":{},\"headers\":true,\"no_responders\":true}}\r\nSUB e 1\r\nSUB inbox.{index} 2\r\n", index != 0)
                .as_bytes(),
        );
        client.ping();
    }
    clients[0].publish("e", b"x");
    clients[0].ping();
    assert_eq!(clients[0].kept(), []);
    for client in &mut clients[1..] {
        assert_eq!(client.op().payload(), b"x");
    }
    clients[1].send(b"PUB nobody inbox.1 0\r\n\r\nPUB e inbox.1 0\r\n\r\n");
    let Op::Msg {
        headers, subject, ..
    } = clients[1].op()
    else {
        panic!("no answer")
    };
    assert_eq!(
        (subject.as_str(), headers.starts_with(b"NATS/1.0 503")),
        ("inbox.1", true)
    );
    assert!(matches!(clients[1].op(), Op::Msg { subject, .. } if subject == "e"));
    server.stop();
}
