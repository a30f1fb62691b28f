//! Publishers that write prepared batches of numbered messages.

use crate::connection::{Connection, Result, Target};
use std::time::Instant;

/// Batches a publisher may have under way without a PONG.
const BATCHES_AHEAD: usize = 4;
/// Digits of the number a payload begins with, where it is no shorter.
pub const NUMBER_BYTES: usize = 8;
/// Deliveries of a batch, about: those under way at the end of a turn are waited for, which must not be most of it.
const COPIES_MAX: usize = 500_000;
/// Messages a publisher prepares at least: were there one, its number would say nothing of order.
const PREPARED_MIN: usize = 16;

/// Publishes of numbered messages, to the subjects in turn; each batch ends with a PING.
pub fn batches(
    subjects: &[String],
    payload: usize,
    per_batch: usize,
    count: usize,
) -> Vec<Vec<u8>> {
    let mut all = subjects.iter().cycle().zip(0u64..);
    let batch = |_| {
        let mut batch = Vec::new();
        for (subject, number) in all.by_ref().take(per_batch) {
            batch.extend_from_slice(format!("PUB {subject} {payload}\r\n").as_bytes());
            let end = batch.len() + payload;
            if payload >= NUMBER_BYTES {
                batch.extend_from_slice(format!("{number:08}").as_bytes());
            }
            batch.resize(end, b'x');
            batch.extend_from_slice(b"\r\n");
        }
        batch.extend_from_slice(b"PING\r\n");
        batch
    };
    (0..count).map(batch).collect()
}

/// Writes its batches round and round.
pub struct Publisher {
    connection: Connection,
    batches: Vec<Vec<u8>>,
    messages_per_batch: u64,
    next: usize,
}

impl Publisher {
    /// `subjects` are published to in turn; of each message so many copies go out.
    pub fn new(
        target: &Target,
        subjects: &[String],
        payload: usize,
        copies: usize,
    ) -> Result<Self> {
        const BATCH_BYTES: usize = 64 << 10;
        let message_bytes = subjects[0].len() + payload + 20;
        let most = (COPIES_MAX / copies.max(1)).max(PREPARED_MIN);
        let per_batch = (BATCH_BYTES / message_bytes).clamp(1, most);
        // Enough batches to get through all subjects.
        let count = subjects.len().max(PREPARED_MIN).div_ceil(per_batch);
        let batches = batches(subjects, payload, per_batch, count);
        Ok(Self {
            connection: Connection::open(target)?,
            batches,
            messages_per_batch: per_batch as u64,
            next: 0,
        })
    }

    /// Publishes until then; returns the number of messages, all of which the server has taken.
    pub fn run(&mut self, until: Instant) -> Result<u64> {
        let (mut messages, mut ahead) = (0, 0);
        while Instant::now() < until {
            self.connection.write(&self.batches[self.next])?;
            self.next = (self.next + 1) % self.batches.len();
            messages += self.messages_per_batch;
            ahead += 1;
            if ahead >= BATCHES_AHEAD {
                self.connection.pong()?;
                ahead -= 1;
            }
        }
        for _ in 0..ahead {
            self.connection.pong()?;
        }
        Ok(messages)
    }

    /// Everything once.
    pub fn run_once(&mut self) -> Result<u64> {
        for index in 0..self.batches.len() {
            self.connection.write(&self.batches[index])?;
            if index >= BATCHES_AHEAD {
                self.connection.pong()?;
            }
        }
        for _ in 0..self.batches.len().min(BATCHES_AHEAD) {
            self.connection.pong()?;
        }
        Ok(self.messages_per_batch * self.batches.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_long_messages_differ() {
        let prepared = batches(&["b.000000".into()], 64 << 10, 1, PREPARED_MIN);
        assert_eq!(prepared.len(), 16);
        let numbers: Vec<&[u8]> = prepared.iter().map(|batch| &batch[20..28]).collect();
        assert_eq!(
            (numbers[0], numbers[15]),
            (&b"00000000"[..], &b"00000015"[..])
        );
        assert!(prepared[3].ends_with(b"xx\r\nPING\r\n"));
    }
}
