//! The last messages of a channel, in memory: for those who read along, and because what is not written is found nowhere
//! else.

use super::files::Files;
use crate::stan::arena::Arena;
use crate::stan::in_place::NewMessage;
use crate::stan::store::Seq;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Written messages kept of one channel.
const MESSAGES_MAX: usize = 4096;
const BYTES_MAX: usize = 4 << 20;
/// Those of all channels together; beyond that each keeps few.
const ALL_BYTES_MAX: usize = 256 << 20;
const FEW_BYTES_MAX: usize = 64 << 10;

pub struct Recent {
    /// Ending with the last one of the channel.
    messages: VecDeque<Bytes>,
    bytes: usize,
    arena: Arena,
    /// Where the bytes are counted, and how many of these are.
    files: Arc<Files>,
    counted: usize,
    /// Some came since the last `rest`.
    busy: bool,
}

impl Recent {
    pub fn new(files: &Arc<Files>) -> Self {
        Self {
            messages: VecDeque::new(),
            bytes: 0,
            arena: Arena::default(),
            files: files.clone(),
            counted: 0,
            busy: false,
        }
    }

    /// A message to be pushed.
    pub fn encoded(&mut self, message: &NewMessage<'_>, seq: Seq) -> Bytes {
        message.encoded(seq, &mut self.arena, self.bytes)
    }

    pub fn push(&mut self, message: Bytes) {
        self.bytes += message.len();
        self.messages.push_back(message);
        self.busy = true;
    }

    /// The message that is so many before the last one.
    pub fn before_last(&self, count: u64) -> Option<&Bytes> {
        let index = self.messages.len().checked_sub(1 + count as usize)?;
        self.messages.get(index)
    }

    /// The last ones go: they were taken back.
    pub fn take_back(&mut self, count: u64) {
        for _ in 0..count {
            if let Some(message) = self.messages.pop_back() {
                self.bytes -= message.len();
            }
        }
    }

    /// After a write.
    pub fn trim(&mut self, unwritten: usize) {
        let few = self.files.recent_bytes.load(Ordering::Relaxed) >= ALL_BYTES_MAX;
        let bytes_max = if few { FEW_BYTES_MAX } else { BYTES_MAX };
        self.keep(unwritten, MESSAGES_MAX, bytes_max);
    }

    /// Once a second or so: where nothing came since the last time, what is written goes. Returns whether that is so.
    pub fn rest(&mut self, unwritten: usize) -> bool {
        if std::mem::take(&mut self.busy) {
            return false;
        }
        self.keep(unwritten, 0, 0);
        if self.messages.is_empty() {
            self.messages = VecDeque::new();
            self.arena = Arena::default();
        }
        true
    }

    /// No more than these, but all that are not written.
    fn keep(&mut self, unwritten: usize, messages_max: usize, bytes_max: usize) {
        while self.messages.len() > unwritten
            && (self.messages.len() > messages_max || self.bytes > bytes_max)
            && let Some(message) = self.messages.pop_front()
        {
            self.bytes -= message.len();
        }
        self.count(self.bytes);
    }

    fn count(&mut self, bytes: usize) {
        let more = bytes.wrapping_sub(self.counted); // or less
        self.files.recent_bytes.fetch_add(more, Ordering::Relaxed);
        self.counted = bytes;
    }
}

impl Drop for Recent {
    fn drop(&mut self) {
        self.count(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(recent: &mut Recent, count: usize, bytes: usize) {
        for _ in 0..count {
            recent.push(vec![0u8; bytes].into());
        }
    }

    #[test]
    fn what_is_written_is_kept_within_limits_and_counted() {
        let files = Files::new(10);
        let counted = || files.recent_bytes.load(Ordering::Relaxed);
        let mut recent = Recent::new(&files);
        push(&mut recent, MESSAGES_MAX + 10, 1);
        recent.trim(MESSAGES_MAX + 5);
        assert_eq!(counted(), MESSAGES_MAX + 5, "what is not written stays");
        recent.trim(0);
        assert_eq!(counted(), MESSAGES_MAX);
        assert!(recent.before_last(MESSAGES_MAX as u64 - 1).is_some());
        assert!(recent.before_last(MESSAGES_MAX as u64).is_none());
        push(&mut recent, 3, BYTES_MAX / 2);
        recent.take_back(1);
        recent.trim(0);
        assert_eq!(counted(), BYTES_MAX);
        // Others have much.
        files
            .recent_bytes
            .fetch_add(ALL_BYTES_MAX, Ordering::Relaxed);
        push(&mut recent, 100, FEW_BYTES_MAX / 10);
        recent.trim(0);
        files
            .recent_bytes
            .fetch_sub(ALL_BYTES_MAX, Ordering::Relaxed);
        assert_eq!(counted(), FEW_BYTES_MAX / 10 * 10);
        drop(recent);
        assert_eq!(counted(), 0);
    }

    #[test]
    fn where_nothing_comes_what_is_written_goes() {
        let files = Files::new(10);
        let mut recent = Recent::new(&files);
        push(&mut recent, 10, 1);
        assert!(!recent.rest(4), "some came");
        assert!(recent.before_last(9).is_some());
        assert!(recent.rest(4));
        assert!(recent.before_last(3).is_some() && recent.before_last(4).is_none());
        assert!(recent.rest(0));
        assert!(recent.before_last(0).is_none());
        assert_eq!(files.recent_bytes.load(Ordering::Relaxed), 0);
    }
}
