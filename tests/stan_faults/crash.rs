//! A streaming server that is killed again and again, under load, and what is left each time.
//!
//! MIDGE_CRASH_ROUNDS and MIDGE_DAMAGE_ROUNDS set how often (`.ci/run` and `cargo test` do a few), MIDGE_CRASH_SEED
//! what happens.

use crate::client::{CHANNEL, Client, text_of};
use crate::support::{PATIENCE, Server};
use midge::stan::pb;
use prost::Message;
use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Publishes ahead of their acks, per publisher.
const WINDOW: usize = 1024;
const PUBLISHERS: usize = 2;

/// Publishes as fast as it can until the server has gone; returns what was acknowledged.
fn publish_until_gone(port: u16, publisher: usize, round: usize) -> Vec<String> {
    let mut acknowledged = Vec::new();
    let Some(mut client) = Client::connect(port, &format!("publisher-{publisher}-{round}")) else {
        return acknowledged;
    };
    let subject = format!("{}.{CHANNEL}", client.session.pub_prefix);
    let inbox = format!("{}.acks", client.inbox);
    let (mut sent, mut acks) = (0, 0);
    loop {
        let mut bytes = Vec::new();
        while sent - acks < WINDOW {
            let payload = client.publication(&format!("{publisher}-{round}-{sent}"));
            bytes.extend_from_slice(
                format!("PUB {subject} {inbox} {}\r\n", payload.len()).as_bytes(),
            );
            bytes.extend_from_slice(&payload);
            bytes.extend_from_slice(b"\r\n");
            sent += 1;
        }
        if client.send(&bytes).is_none() {
            // What came before the end counts.
            sent = usize::MAX;
        }
        let Some((subject, _, payload)) = client.next() else {
            return acknowledged;
        };
        if subject == inbox {
            let ack = pb::PubAck::decode(&payload[..]).unwrap();
            assert_eq!(ack.error, "");
            let guid = String::from_utf8(ack.guid).unwrap();
            assert_eq!(guid, format!("{publisher}-{round}-{acks}"), "acks in order");
            acks += 1;
            acknowledged.push(guid);
            if sent == usize::MAX {
                sent = acks + WINDOW;
            }
        }
    }
}

/// A durable that acknowledges everything.
#[derive(Default)]
struct Durable {
    /// Everything up to this one has come.
    seen: u64,
    /// Nothing up to this one may come again.
    done: u64,
    /// Its records were damaged: what comes, up to what is new, is not known.
    damaged: bool,
}

impl Durable {
    /// Receives until the server has gone.
    fn receive(&mut self, port: u16, round: usize, lost: &HashSet<u64>, ready: &AtomicBool) {
        let ended = self.receive_until_gone(port, round, lost, ready);
        ready.store(true, Ordering::SeqCst);
        assert!(ended.is_none());
    }

    fn receive_until_gone(
        &mut self,
        port: u16,
        round: usize,
        lost: &HashSet<u64>,
        ready: &AtomicBool,
    ) -> Option<()> {
        let mut client = Client::connect(port, "durable")?;
        // An ack that is behind this publish has been taken in when the publish is acknowledged.
        let marker = format!("marker-{round}");
        let acks = client.subscribe(|request| request.durable_name = "d".into())?;
        let mut up_to = 0;
        client.publish(
            &format!("{}.{CHANNEL}", client.session.pub_prefix.clone()),
            "nobody",
            &client.publication(&marker),
        )?;
        loop {
            let message = client.next_message()?;
            let seq = message.sequence;
            assert!(
                seq > self.done,
                "message {seq} comes again, {} was done",
                self.done
            );
            if self.damaged {
                self.seen = seq;
            } else if seq > self.seen {
                let skipped: Vec<u64> = (self.seen + 1..seq)
                    .filter(|seq| !lost.contains(seq))
                    .collect();
                assert!(
                    skipped.is_empty(),
                    "round {round}: {seq} after {}: {skipped:?}",
                    self.seen
                );
                self.seen = seq;
            } else {
                assert!(
                    message.redelivered,
                    "message {seq} comes twice without saying so"
                );
            }
            client.ack(&acks, seq)?;
            up_to = up_to.max(seq);
            if text_of(&message) == marker {
                // All that is pending from before came before it.
                client.publish_one(&format!("barrier-{round}"))?;
                self.done = up_to;
                self.damaged = false;
                ready.store(true, Ordering::SeqCst);
            }
        }
    }
}

struct Trial {
    folder: tempfile::TempDir,
    random: fastrand::Rng,
    acknowledged: HashSet<String>,
    durable: Durable,
    /// The last message that was looked at, and the last of each publisher and round.
    replayed: u64,
    newest: BTreeMap<String, u64>,
    /// Numbers of messages that damage took.
    lost: HashSet<u64>,
    /// How many it may have taken.
    hits: usize,
    total: u64,
}

impl Trial {
    fn new() -> Self {
        let seed = std::env::var("MIDGE_CRASH_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok())
            .unwrap_or_else(|| fastrand::u64(..));
        eprintln!("MIDGE_CRASH_SEED={seed}");
        Self {
            folder: tempfile::tempdir().unwrap(),
            random: fastrand::Rng::with_seed(seed),
            acknowledged: HashSet::new(),
            durable: Durable::default(),
            replayed: 0,
            newest: BTreeMap::new(),
            lost: HashSet::new(),
            hits: 0,
            total: 0,
        }
    }

    fn start(&self) -> Server {
        Server::start(&[
            "-st",
            "FILE",
            "-dir",
            self.folder.path().to_str().unwrap(),
            "-mm",
            "0",
            "-mb",
            "0",
            "-file_slice_max_msgs",
            "5000",
            "-hbi",
            "60s",
        ])
    }

    /// One life of the server: what the one before left, then load, then the end.
    fn round(&mut self, round: usize, may_lose: usize) {
        self.hits += may_lose;
        let server = self.start();
        self.check(&server, round, may_lose);
        let ready = Arc::new(AtomicBool::new(false));
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|publisher| {
                let port = server.port;
                std::thread::spawn(move || publish_until_gone(port, publisher, round))
            })
            .collect();
        let durable = std::thread::spawn({
            let (port, ready, lost) = (server.port, ready.clone(), self.lost.clone());
            let mut durable = std::mem::take(&mut self.durable);
            move || {
                durable.receive(port, round, &lost, &ready);
                durable
            }
        });
        // At a random moment, but not before the durable has caught up with what it missed.
        let end = Instant::now() + PATIENCE;
        while !ready.load(Ordering::SeqCst) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(self.random.u64(0..200_000)));
        drop(server); // SIGKILL
        for publisher in publishers {
            let acknowledged = publisher.join().unwrap();
            self.total += acknowledged.len() as u64;
            self.acknowledged.extend(acknowledged);
        }
        self.durable = durable.join().unwrap();
    }

    /// All messages since the last check are there, in order and without a gap, those acknowledged
    /// among them.
    fn check(&mut self, server: &Server, round: usize, may_lose: usize) {
        let mut client = Client::connect(server.port, &format!("check-{round}")).unwrap();
        let marker = format!("check-{round}");
        client.publish_one(&marker).unwrap();
        let from = self.replayed + 1;
        let acks = client.subscribe(|request| {
            request.start_position = 3;
            request.start_sequence = from;
        });
        let acks = acks.unwrap();
        let mut missing = Vec::new();
        loop {
            let message = client.next_message().expect("the server goes on");
            client.ack(&acks, message.sequence).unwrap();
            let text = text_of(&message);
            assert!(
                message.sequence > self.replayed,
                "message {} again",
                message.sequence
            );
            missing.extend(self.replayed + 1..message.sequence);
            self.replayed = message.sequence;
            if text == marker {
                break;
            }
            let (author, number) = text.rsplit_once('-').unwrap();
            let number: u64 = number.parse().unwrap();
            if let Some(newest) = self.newest.insert(author.to_owned(), number) {
                assert!(newest < number, "{text} after {author}-{newest}");
            }
            self.acknowledged.remove(&text);
        }
        assert!(
            missing.len() <= may_lose,
            "round {round}: messages {missing:?} are not there"
        );
        assert!(
            self.acknowledged.len() <= missing.len(),
            "round {round}: {} acknowledged messages are gone, one is {:?}",
            self.acknowledged.len() - missing.len(),
            self.acknowledged.iter().next()
        );
        self.acknowledged.clear();
        self.lost.extend(missing);
        self.newest
            .retain(|author, _| author.starts_with(|digit: char| digit.is_ascii_digit()));
    }

    /// Everything once more from the first message on.
    fn check_all(&mut self) {
        let server = self.start();
        let mut client = Client::connect(server.port, "check-all").unwrap();
        client.publish_one("check-all").unwrap();
        let acks = client.subscribe(|_| {}).unwrap();
        let mut last = 0;
        loop {
            let message = client.next_message().expect("the server goes on");
            client.ack(&acks, message.sequence).unwrap();
            // Damage also hits what was looked at before.
            self.lost.extend(last + 1..message.sequence);
            last = message.sequence;
            if text_of(&message) == "check-all" {
                break;
            }
        }
        assert!(last > self.replayed);
        assert!(
            self.lost.len() <= self.hits,
            "{:?} are not there",
            self.lost
        );
        eprintln!(
            "{} acknowledged messages of {last}, {} lost to damage",
            self.total,
            self.lost.len()
        );
        server.stop();
    }

    /// Files of the store that a damage may hit, those of messages first.
    fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for folder in [
            self.folder.path().join(CHANNEL),
            self.folder.path().to_owned(),
        ] {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                let known = ["msgs.", "subs.dat", "clients.dat", "server.dat"];
                if path.is_file()
                    && known.iter().any(|known| name.starts_with(known))
                    && !name.contains("damaged")
                    && !name.ends_with(".copy")
                {
                    files.push(path);
                }
            }
        }
        files.sort();
        files
    }
}

fn rounds(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |rounds| rounds.parse().unwrap())
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    let mut trial = Trial::new();
    for round in 0..rounds("MIDGE_CRASH_ROUNDS", 4) {
        trial.round(round, 0);
    }
    trial.check_all();
    assert!(trial.total > 0, "nothing was acknowledged");
}

#[test]
fn what_is_whole_survives_damage() {
    let mut trial = Trial::new();
    for round in 0..rounds("MIDGE_DAMAGE_ROUNDS", 4) {
        let hit = match round {
            0 => 0,
            _ => damage(&mut trial),
        };
        trial.round(round, hit);
    }
    trial.check_all();
}

/// Torn ends everywhere, and one flipped bit; returns how many messages that may cost.
fn damage(trial: &mut Trial) -> usize {
    let files = trial.files();
    let newest = |suffix: &str| {
        let of_kind = |path: &&PathBuf| path.extension().is_some_and(|found| found == suffix);
        let number = |path: &&PathBuf| -> Option<u64> {
            let name = path.file_stem()?.to_str()?;
            name.strip_prefix("msgs.")?.parse().ok()
        };
        files
            .iter()
            .filter(of_kind)
            .max_by_key(number)
            .cloned()
            .unwrap()
    };
    let subs = trial.folder.path().join(CHANNEL).join("subs.dat");
    let clients = trial.folder.path().join("clients.dat");
    for path in [newest("dat"), newest("idx"), subs.clone(), clients.clone()] {
        let torn: Vec<u8> = match trial.random.u8(0..3) {
            0 => vec![0; trial.random.usize(1..9000)],
            1 => vec![40, 0, 0, 0, 1, 2, 3, 4, 8],
            _ => vec![9; trial.random.usize(1..8)],
        };
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap();
        file.write_all(&torn).unwrap();
    }
    let hit = &files[trial.random.usize(0..files.len())];
    flip(hit, &mut trial.random);
    if *hit == subs || *hit == clients {
        // The durable may have to begin anew, or get again what it had.
        (trial.durable.done, trial.durable.damaged) = (0, true);
    }
    let is_data = hit.extension().is_some_and(|suffix| suffix == "dat");
    usize::from(
        is_data
            && hit
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with("msgs."),
    )
}

fn flip(path: &Path, random: &mut fastrand::Rng) {
    let mut bytes = std::fs::read(path).unwrap();
    if !bytes.is_empty() {
        let at = random.usize(0..bytes.len());
        bytes[at] ^= 1 << random.u8(0..8);
        eprintln!("{} byte {at}", path.display());
        std::fs::write(path, bytes).unwrap();
    }
}
