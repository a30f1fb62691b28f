//! Requests: flat out, and at a fixed rate without coordinated omission.

use super::{Outcome, SLICES, Setting};
use crate::bed::Bed;
use crate::connection::{Connection, Crowd, Result};
use crate::stats::{Latency, histogram};
use hdrhistogram::Histogram;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

const CLIENTS: usize = 32;
const PAYLOAD: &str = "0123456789abcdef";

/// The clients, and behind them the responder.
fn crowd(bed: &Bed) -> Result<Crowd> {
    let mut all = Vec::new();
    for index in 0..=CLIENTS {
        let mut connection = Connection::open(&bed.target())?;
        let line = match index {
            CLIENTS => "SUB service 1\r\n".to_owned(),
            _ => format!("SUB _INBOX.{index:04} 1\r\n"),
        };
        connection.write(line.as_bytes())?;
        connection.settle()?;
        all.push(connection);
    }
    Crowd::new(all)
}

fn request(index: usize) -> String {
    format!("PUB service _INBOX.{index:04} 16\r\n{PAYLOAD}\r\n")
}

/// What a line that came in means.
enum Came {
    Nothing,
    Answer,
}

/// Plays the responder, and tells the clients' answers.
#[derive(Default)]
struct Service {
    reply: Option<String>,
}

impl Service {
    fn line(&mut self, index: usize, line: &str, answer: &mut Vec<u8>) -> Result<Came> {
        let words: Vec<&str> = line.split(' ').collect();
        match (words.as_slice(), index) {
            (["MSG", "service", _, inbox, _], CLIENTS) => self.reply = Some((*inbox).to_owned()),
            ([PAYLOAD], CLIENTS) => {
                let inbox = self.reply.take().ok_or("a payload without its head")?;
                answer.extend_from_slice(format!("PUB {inbox} 16\r\n{line}\r\n").as_bytes());
            }
            (["MSG", inbox, _, "16"], _) if *inbox == format!("_INBOX.{index:04}") => {}
            ([PAYLOAD], _) => return Ok(Came::Answer),
            (["PING"], _) => answer.extend_from_slice(b"PONG\r\n"),
            _ => return Err(format!("a wrong answer: {line}")),
        }
        Ok(Came::Nothing)
    }
}

/// All clients and the responder in one thread, so that the server is not charged with waking up
/// one thread of ours per message.
pub fn flat_out(bed: &Bed, setting: &Setting) -> Result<Outcome> {
    let mut crowd = crowd(bed)?;
    let mut ask = |time: Duration, times: &mut Histogram<u64>| -> Result<()> {
        let until = Instant::now() + time;
        let mut sent = [Instant::now(); CLIENTS];
        for index in 0..CLIENTS {
            crowd.write(index, request(index).as_bytes())?;
        }
        let (mut service, mut waiting) = (Service::default(), CLIENTS);
        crowd.serve(|index, line, answer| {
            if let Came::Answer = service.line(index, line, answer)? {
                let now = Instant::now();
                times.saturating_record((now - sent[index]).as_nanos() as u64);
                if now < until {
                    sent[index] = now;
                    answer.extend_from_slice(request(index).as_bytes());
                } else {
                    waiting -= 1;
                }
            }
            Ok(waiting > 0)
        })
    };
    let warm_up = Duration::from_secs_f64(setting.seconds / 5.0);
    ask(warm_up, &mut histogram())?;
    let mut times = histogram();
    let slices = setting.slices(bed, SLICES, setting.seconds, |time| ask(time, &mut times))?;
    let done = times.len();
    Ok(Outcome {
        latency: Some(Latency::of(&times)),
        ..Outcome::of(slices.cpu_ns[0] / done as f64, done, slices.elapsed)
    })
}

/// Requests leave when they are due, however the ones before fare; each is timed from then. Our thread never
/// sleeps meanwhile: how long a machine takes to wake it says nothing of the server.
/// The median of that, and the CPU time of each.
pub fn at_rate(bed: &Bed, setting: &Setting, per_second: u64) -> Result<[Outcome; 2]> {
    let mut crowd = crowd(bed)?;
    let mut ask = |time: Duration, times: &mut Histogram<u64>| {
        ask_at_rate(&mut crowd, per_second, time, times)
    };
    let warm_up = Duration::from_secs_f64(setting.longer() / 10.0);
    ask(warm_up, &mut histogram())?;
    let (mut answered, mut times) = (0, histogram());
    let slices = setting.slices(bed, SLICES, setting.longer(), |time| {
        answered += ask(time, &mut times)?;
        Ok(())
    })?;
    let of = |figure| Outcome::of(figure, answered, slices.elapsed);
    let latency = Latency::of(&times);
    let timed = Outcome {
        latency: Some(latency.clone()),
        ..of(latency.p50)
    };
    Ok([timed, of(slices.cpu_ns[0] / answered as f64)])
}

/// So many a second for so long, until all are answered; returns how many that is.
fn ask_at_rate(
    crowd: &mut Crowd,
    per_second: u64,
    time: Duration,
    times: &mut Histogram<u64>,
) -> Result<u64> {
    let start = Instant::now();
    let total = (per_second as f64 * time.as_secs_f64()).max(1.0) as u64;
    // The first meet a machine that has done something else; one request at least is measured.
    let skipped = (per_second / 100).min(total - 1);
    let due = |number: u64| start + Duration::from_nanos(number * 1_000_000_000 / per_second);
    let mut waiting: Vec<VecDeque<u64>> = vec![VecDeque::new(); CLIENTS];
    let (mut sent, mut answered) = (0, 0);
    let mut service = Service::default();
    while answered < total {
        while sent < total && due(sent) <= Instant::now() {
            let client = (sent % CLIENTS as u64) as usize;
            crowd.write(client, request(client).as_bytes())?;
            waiting[client].push_back(sent);
            sent += 1;
        }
        let wait = match sent < total {
            true => Duration::ZERO,
            false => Duration::from_secs(10),
        };
        // Where there is one CPU only, the server needs it.
        std::thread::yield_now();
        let came = crowd.serve_ready(wait, |index, line, answer| {
            if let Came::Answer = service.line(index, line, answer)? {
                let number = waiting[index].pop_front().ok_or("an answer to nothing")?;
                if number >= skipped {
                    let late = Instant::now().saturating_duration_since(due(number));
                    times.saturating_record(late.as_nanos() as u64);
                }
                answered += 1;
            }
            Ok(())
        })?;
        if !came && sent == total && answered < total {
            return Err(format!("{} requests were not answered", total - answered));
        }
    }
    // The last one is due before the time is over.
    std::thread::sleep(time.saturating_sub(start.elapsed()));
    Ok(total)
}
