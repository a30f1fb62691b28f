//! How far the start is, told every few seconds when it takes long.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const TOLD_EVERY: Duration = Duration::from_secs(3);

pub struct Progress {
    channels_all: u64,
    channels: AtomicU64,
    messages: AtomicU64,
    told_at: Mutex<Instant>,
}

impl Progress {
    pub fn new(channels_all: usize) -> Self {
        Self {
            channels_all: channels_all as u64,
            channels: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            told_at: Mutex::new(Instant::now()),
        }
    }

    pub fn add_messages(&self, count: u64) {
        self.messages.fetch_add(count, Ordering::Relaxed);
        self.tell();
    }

    pub fn add_channel(&self) {
        self.channels.fetch_add(1, Ordering::Relaxed);
        self.tell();
    }

    fn tell(&self) {
        // Another thread may be telling just now.
        let Ok(mut told_at) = self.told_at.try_lock() else {
            return;
        };
        if told_at.elapsed() >= TOLD_EVERY {
            *told_at = Instant::now();
            log::info!(
                "STREAM: Recovered {} of {} channels and {} messages so far",
                self.channels.load(Ordering::Relaxed),
                self.channels_all,
                self.messages.load(Ordering::Relaxed)
            );
        }
    }
}
