use super::*;
use crate::broker::client::PublisherRef;
use crate::broker::mail::Envelope;
use crate::uring::fake::{Adversity, FakeIo};
use crate::util::random::Random;
use crate::util::region::RegionMut;
use crate::wire::parser::{Message, Padded};
use std::os::fd::RawFd;

/// A loop over the scripted kernel, with a listener.
fn event_loop(seed: u64, adversity: Adversity) -> (EventLoop<FakeIo>, RawFd) {
    one_of(1, seed, adversity)
}

/// The first of so many.
fn one_of(loops: u16, seed: u64, adversity: Adversity) -> (EventLoop<FakeIo>, RawFd) {
    let region = RegionMut::map(1 << 20).unwrap();
    let mut io = FakeIo::new(seed, region.keep_alive());
    io.set_adversity(adversity);
    on(io, region, loops, seed)
}

fn on(mut io: FakeIo, region: RegionMut, loops: u16, seed: u64) -> (EventLoop<FakeIo>, RawFd) {
    let listener = io.open();
    let settings = Settings {
        write_deadline: Duration::from_secs(3600),
        ..Settings::default()
    };
    let broker = Broker::new(
        Arc::new(settings),
        0,
        loops,
        region,
        Random::new(seed),
        io.now(),
    );
    let shared = Arc::new(Shared {
        mesh: Mesh::new(loops).unwrap(),
        connections_max: std::sync::atomic::AtomicUsize::new(100),
        client_fds_end: std::os::fd::RawFd::MAX,
        verifier: Default::default(),
        dialer: Default::default(),
        tls: Default::default(),
        congestion_elsewhere: None,
    });
    // The descriptor other threads wake the loop by is real; nobody does here.
    let acceptor = Acceptor::new(Some(listener), None, loops, io.now());
    let event_loop = EventLoop::new(0, io, broker, shared, acceptor);
    (event_loop, listener)
}

fn turns(event_loop: &mut EventLoop<FakeIo>, count: usize) {
    for _ in 0..count {
        event_loop.turn().unwrap();
    }
}

fn connect(event_loop: &mut EventLoop<FakeIo>, listener: RawFd) -> RawFd {
    let fd = event_loop.io.push_accept(listener);
    let mut tries = 0;
    while !event_loop.io.is_armed(fd, Kind::Recv) {
        turns(event_loop, 1);
        tries += 1;
        assert!(tries < 1000, "the connection is not read from");
    }
    event_loop
        .io
        .deliver(fd, b"CONNECT {\"verbose\":false}\r\n");
    fd
}

/// What a peer got behind its INFO.
fn got(event_loop: &EventLoop<FakeIo>, fd: RawFd) -> Vec<u8> {
    let written = event_loop.io.written(fd);
    let end = written
        .windows(2)
        .position(|pair| pair == b"\r\n")
        .map_or(written.len(), |at| at + 2);
    written[end..].to_vec()
}

#[test]
fn every_byte_arrives_whatever_the_kernel_does() {
    for seed in 0..150 {
        let (mut event_loop, listener) = event_loop(seed, Adversity::SOME);
        let mut random = Random::new(seed);
        let subscribers: Vec<RawFd> = (0..3).map(|_| connect(&mut event_loop, listener)).collect();
        for fd in &subscribers {
            event_loop.io.deliver(*fd, b"SUB a.* 7\r\n");
        }
        turns(&mut event_loop, 200);
        let publisher = connect(&mut event_loop, listener);
        let mut expected = Vec::new();
        for number in 0..30u32 {
            let size = [random.below(40), random.below(3000), random.below(40_000)]
                [random.below(3) as usize];
            let mut message = format!("a.{number} {size}\r\n").into_bytes();
            let head = message.len();
            message.resize(head + size as usize, number as u8);
            message.extend_from_slice(b"\r\n");
            event_loop
                .io
                .deliver(publisher, &[b"PUB ", &message[..]].concat());
            let space = message.iter().position(|byte| *byte == b' ').unwrap();
            expected.extend_from_slice(b"MSG ");
            expected.extend_from_slice(&message[..space]);
            expected.extend_from_slice(b" 7");
            expected.extend_from_slice(&message[space..]);
            turns(&mut event_loop, random.below(5) as usize);
        }
        turns(&mut event_loop, 3000);
        for fd in &subscribers {
            assert!(got(&event_loop, *fd) == expected, "seed {seed}");
        }
    }
}

#[test]
fn connections_come_and_go_and_leave_nothing() {
    for seed in 0..150 {
        let (mut event_loop, listener) = event_loop(seed, Adversity::SOME);
        let mut random = Random::new(seed);
        let mut open: Vec<RawFd> = Vec::new();
        for _ in 0..40 {
            open.push(connect(&mut event_loop, listener));
            let fd = open[random.below(open.len() as u32) as usize];
            match random.below(6) {
                0 => event_loop.io.deliver(fd, b"SUB x 1\r\nSUB > 2\r\n"),
                1 => event_loop
                    .io
                    .deliver(fd, b"PUB x 5\r\nhello\r\nPUB y 40000"),
                2 => event_loop.io.deliver(fd, b"NONSENSE\r\n"),
                3 => event_loop.io.fail_recv(fd, Errno::CONNRESET),
                4 => event_loop.io.fail_write(fd, Errno::PIPE),
                _ => event_loop.io.close_peer(fd),
            }
            // What was told or failed to is on its way out, and must not be touched again.
            open.retain(|other| *other != fd);
            turns(&mut event_loop, random.below(4) as usize);
            event_loop.io.close_peer(fd);
        }
        for fd in open {
            event_loop.io.close_peer(fd);
        }
        let mut tries = 0;
        while event_loop.broker.clients().count() > 0 {
            turns(&mut event_loop, 1);
            tries += 1;
            assert!(tries < 20_000, "seed {seed}: {:?}", event_loop.places);
        }
        turns(&mut event_loop, 50);
        assert_eq!(event_loop.broker.subscription_count(), 0, "seed {seed}");
        assert_eq!(event_loop.broker.chunks_taken(), 0, "seed {seed}");
        assert!(
            event_loop
                .places
                .iter()
                .all(|place| place.connection.is_none())
        );
    }
}

#[test]
fn nobody_rings_at_a_loop_that_has_ended() {
    let (mut event_loop, _) = one_of(2, 1, Adversity::NONE);
    let shared = event_loop.shared.clone();
    shared.mesh.door(0).set_ring_fd(6);
    shared.mesh.door(1).set_ring_fd(7);
    event_loop.ring(1);
    let token = Token::new(Kind::Doorbell, 1, 0);
    assert_eq!(event_loop.io.take_doorbells(), [(7, token)]);
    shared.mesh.door(1).forget_ring_fd();
    event_loop.ring(1);
    assert_eq!(event_loop.io.take_doorbells(), []);
    drop(event_loop);
    assert_eq!(shared.mesh.door(0).ring_fd(), None);
}

/// The other loop sends the next batch as soon as it hears that one is worked off.
/// A loop is not woken for interest. What it is woken for may depend on it, whichever loop told it.
#[test]
fn interest_that_waits_counts_before_the_message_that_wakes() {
    let (mut event_loop, _) = one_of(3, 1, Adversity::NONE);
    let message = Message {
        subject: Padded::exact(b"x"),
        tail: Padded::exact(b"2\r\nhi\r\n"),
        reply_bytes: 0,
        header_bytes: None,
        body_bytes: 2,
        sid: b"",
    };
    let envelope = Envelope {
        plain: false,
        hops: 0,
        elsewhere: Default::default(),
        publisher: PublisherRef {
            slot: 0,
            cid: 2,
            carrier: false,
            no_echo: false,
        },
    };
    let (mut told, mut sent) = (Batch::default(), Batch::default());
    told.push_interest(b"x", Some(b"q"), 1);
    sent.push_message(&message, None, envelope, [&b"q"[..]].into_iter());
    assert!(sent.is_urgent() && !told.is_urgent());
    let mesh = &event_loop.shared.mesh;
    mesh.mailbox(2, 0).send(told);
    mesh.mailbox(1, 0).send(sent);
    turns(&mut event_loop, 1);
    let passed_on = event_loop.shared.mesh.mailbox(0, 2).receive();
    assert!(passed_on.is_some_and(|batch| batch.is_urgent()));
}

#[test]
fn mail_without_end_keeps_nobody_from_an_answer() {
    let (mut event_loop, listener) = one_of(2, 1, Adversity::NONE);
    let fd = connect(&mut event_loop, listener);
    turns(&mut event_loop, 10);
    let shared = event_loop.shared.clone();
    shared.mesh.door(1).set_ring_fd(7);
    let send = move || {
        let mailbox = shared.mesh.mailbox(1, 0);
        let mut batch = mailbox.spare();
        batch.push_interest(b"a.b", None, 1);
        mailbox.send(batch);
        mailbox.backlog(true);
    };
    send();
    // An end it has, or a loop that waits for it would hang the test.
    let mut left = 1000;
    event_loop.io.when_rung(move || {
        if left > 0 {
            left -= 1;
            send();
        }
    });
    event_loop.io.deliver(fd, b"PING\r\n");
    let mut tries = 0;
    while got(&event_loop, fd) != b"PONG\r\n" {
        turns(&mut event_loop, 1);
        tries += 1;
        assert!(tries < 100, "no answer");
    }
    let has_mail = event_loop.shared.mesh.has_mail(0);
    assert!(has_mail, "it was answered when the mail was over");
}

/// A PONG says that the other loops hear of what came before its PING, also where it has to wait for another write.
#[test]
fn what_waited_for_a_write_leaves_behind_the_mail() {
    let (mut event_loop, listener) = one_of(2, 1, Adversity::NONE);
    let fd = connect(&mut event_loop, listener);
    turns(&mut event_loop, 10);
    event_loop.io.set_room(fd, 0);
    event_loop.io.deliver(fd, b"PING\r\n");
    turns(&mut event_loop, 10);
    // In one turn the loop hears of these and of the end of its write.
    event_loop.io.deliver(fd, b"SUB a 1\r\nPING\r\n");
    event_loop.io.set_room(fd, usize::MAX);
    let shared = event_loop.shared.clone();
    assert!(!shared.mesh.has_mail(1));
    event_loop.io.when_writing(move |bytes| {
        assert_eq!(bytes, b"PONG\r\n");
        assert!(shared.mesh.has_mail(1), "written before the mail is sent");
    });
    turns(&mut event_loop, 10);
    assert_eq!(got(&event_loop, fd), b"PONG\r\nPONG\r\n");
}

#[test]
fn a_turn_tells_one_part_of_a_list() {
    let (mut event_loop, _) = event_loop(1, Adversity::NONE);
    let (reply, answers) = std::sync::mpsc::channel();
    let (done, is_done) = std::sync::mpsc::channel();
    let door_of = event_loop.shared.clone();
    for _ in 0..3 {
        let reply = reply.clone();
        let command = Command::Subjects { from: 0, reply };
        door_of.mesh.door(0).command(command);
    }
    door_of.mesh.door(0).command(Command::Acknowledge(done));
    event_loop.run_commands(true);
    for _ in 0..2 {
        assert_eq!(answers.try_iter().count(), 1);
        assert!(is_done.try_recv().is_err());
        turns(&mut event_loop, 1);
    }
    assert_eq!(answers.try_iter().count(), 1);
    turns(&mut event_loop, 1);
    assert!(is_done.try_recv().is_ok() && !event_loop.commands_left);
}

/// There are fewer receive buffers than connections that always have something to say.
#[test]
fn buffers_go_round() {
    let region = RegionMut::map(1 << 20).unwrap();
    let mut io = FakeIo::with_buffers(1, region.keep_alive(), 2, 65536);
    io.set_adversity(Adversity::NONE);
    let (mut event_loop, listener) = on(io, region, 1, 1);
    let fds: Vec<RawFd> = (0..5).map(|_| connect(&mut event_loop, listener)).collect();
    for _ in 0..100 {
        for fd in &fds {
            event_loop.io.deliver(*fd, b"PING\r\n");
        }
        turns(&mut event_loop, 1);
    }
    let answered = fds.iter().map(|fd| got(&event_loop, *fd).len() / 6);
    let answered: Vec<usize> = answered.collect();
    assert!(answered.iter().all(|count| *count > 25), "{answered:?}");
}

/// What many clients bring at once is worked off a client or so per turn, with output between.
#[test]
fn a_turn_takes_in_so_many_changes_only() {
    let (mut event_loop, listener) = event_loop(1, Adversity::NONE);
    let fds: Vec<RawFd> = (0..5).map(|_| connect(&mut event_loop, listener)).collect();
    turns(&mut event_loop, 10);
    let lines: String = (0..100).map(|n| format!("SUB a.{n} {n}\r\n")).collect();
    for fd in &fds {
        event_loop
            .io
            .deliver(*fd, (lines.clone() + "PING\r\n").as_bytes());
    }
    let mut most = 0;
    for _ in 0..50 {
        let before = event_loop.broker.subscription_count();
        turns(&mut event_loop, 1);
        most = most.max(event_loop.broker.subscription_count() - before);
    }
    assert_eq!(event_loop.broker.subscription_count(), 500);
    assert!(most <= 200, "{most} in one turn");
    for fd in fds {
        assert_eq!(got(&event_loop, fd), b"PONG\r\n");
    }
}

/// However often another one comes that is told to go and stays.
#[test]
fn whoever_was_told_to_go_has_so_long_only() {
    let (mut event_loop, listener) = event_loop(1, Adversity::NONE);
    let step = LOOK_AFTER / 2;
    let mut told = Vec::new();
    for _ in 0..100 {
        let fd = connect(&mut event_loop, listener);
        event_loop.io.deliver(fd, b"FOO\r\n");
        turns(&mut event_loop, 3);
        told.push(fd);
        event_loop.io.pass(step);
        turns(&mut event_loop, 1);
    }
    let left = told.iter().filter(|fd| event_loop.io.is_open(**fd)).count();
    let most = (DRAIN_TIME_MAX + LOOK_AFTER * 2).div_duration_f64(step);
    assert!(left as f64 <= most, "{left} are left");
    event_loop.io.pass(DRAIN_TIME_MAX);
    turns(&mut event_loop, 1);
    event_loop.io.pass(LOOK_AFTER);
    turns(&mut event_loop, 3);
    assert!(told.iter().all(|fd| !event_loop.io.is_open(*fd)));
    assert_eq!(event_loop.leaving, []);
}

/// A loop with a client that has no room for its own message yet.
fn with_a_message_pending() -> (EventLoop<FakeIo>, RawFd) {
    let (mut event_loop, listener) = event_loop(1, Adversity::NONE);
    let fd = connect(&mut event_loop, listener);
    turns(&mut event_loop, 10);
    event_loop.io.set_room(fd, 0);
    event_loop
        .io
        .deliver(fd, b"SUB a 1\r\nPUB a 5\r\nhello\r\n");
    turns(&mut event_loop, 10);
    (event_loop, fd)
}

#[test]
fn a_client_that_has_said_all_still_gets_what_is_pending() {
    let (mut event_loop, fd) = with_a_message_pending();
    event_loop.io.close_peer(fd);
    turns(&mut event_loop, 10);
    assert_eq!(event_loop.broker.subscription_count(), 0);
    event_loop.io.set_room(fd, usize::MAX);
    turns(&mut event_loop, 10);
    assert_eq!(got(&event_loop, fd), b"MSG a 1 5\r\nhello\r\n");
    assert!(!event_loop.io.is_open(fd));
}

#[test]
fn whoever_is_let_go_gets_what_is_pending() {
    let (mut event_loop, fd) = with_a_message_pending();
    let (count, text) = (1, None);
    let shared = event_loop.shared.clone();
    shared
        .mesh
        .door(0)
        .command(Command::Dismiss { count, text });
    event_loop.run_commands(true);
    turns(&mut event_loop, 10);
    event_loop.io.set_room(fd, usize::MAX);
    turns(&mut event_loop, 10);
    assert_eq!(got(&event_loop, fd), b"MSG a 1 5\r\nhello\r\n");
    assert!(event_loop.io.is_shut_down(fd));
}

#[test]
fn an_error_reaches_the_peer_before_the_end() {
    for seed in 0..50 {
        let (mut event_loop, listener) = event_loop(seed, Adversity::SOME);
        let fd = connect(&mut event_loop, listener);
        event_loop
            .io
            .deliver(fd, b"FOO\r\nmore of it that nobody reads\r\n");
        turns(&mut event_loop, 500);
        let expected = b"-ERR 'Unknown Protocol Operation'\r\n-ERR 'Parser Error'\r\n";
        assert_eq!(got(&event_loop, fd), expected, "seed {seed}");
        assert!(event_loop.io.is_shut_down(fd));
        event_loop.io.close_peer(fd);
        turns(&mut event_loop, 500);
        assert!(!event_loop.io.is_open(fd), "seed {seed}");
    }
}
