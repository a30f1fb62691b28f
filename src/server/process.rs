//! What the kernel knows of this process: memory and CPU time, of all and of each loop.

use std::time::{Duration, Instant};

/// CPU used since the last look.
pub struct CpuUse {
    looked_at: Instant,
    used: Duration,
    loops: Vec<Duration>,
    /// Percent of one core.
    pub percent: f64,
    pub loop_percents: Vec<f64>,
}

impl Default for CpuUse {
    fn default() -> Self {
        Self {
            looked_at: Instant::now(),
            used: cpu_time(),
            loops: loop_times(),
            percent: 0.0,
            loop_percents: Vec::new(),
        }
    }
}

impl CpuUse {
    /// Brings the figures up to date, once a second at most.
    pub fn look(&mut self) {
        let elapsed = self.looked_at.elapsed();
        if elapsed < Duration::from_secs(1) {
            return;
        }
        let percent = |now: Duration, then: Duration| {
            100.0 * now.saturating_sub(then).as_secs_f64() / elapsed.as_secs_f64()
        };
        let (used, loops) = (cpu_time(), loop_times());
        self.percent = percent(used, self.used);
        let before = |index: usize| self.loops.get(index).copied().unwrap_or_default();
        self.loop_percents = (0..)
            .zip(&loops)
            .map(|(i, now)| percent(*now, before(i)))
            .collect();
        (self.used, self.loops) = (used, loops);
        self.looked_at = Instant::now();
    }
}

pub fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .unwrap_or(0);
    pages
        * nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
            .ok()
            .flatten()
            .unwrap_or(4096) as u64
}

fn cpu_time() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else {
        return Duration::ZERO;
    };
    let part = |time: nix::sys::time::TimeVal| {
        Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000)
    };
    part(usage.user_time()) + part(usage.system_time())
}

/// CPU time of each event loop, by the names and accounts of their threads.
fn loop_times() -> Vec<Duration> {
    let mut times: Vec<(usize, Duration)> = std::fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|task| {
            let read = |file: &str| std::fs::read_to_string(task.path().join(file)).ok();
            let index = read("comm")?.trim().strip_prefix("loop-")?.parse().ok()?;
            let nanos = read("schedstat")?.split(' ').next()?.parse().ok()?;
            Some((index, Duration::from_nanos(nanos)))
        })
        .collect();
    times.sort_unstable();
    times.into_iter().map(|(_, time)| time).collect()
}

/// Every thread with its state, as far as an unprivileged reader may know.
pub fn threads() -> String {
    let mut text = String::new();
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten();
    for task in tasks.flatten() {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let status = read("status");
        let state = status.lines().find_map(|line| line.strip_prefix("State:"));
        text += &format!(
            "thread {} [{}] {}: in {}\n",
            task.file_name().to_string_lossy(),
            state.unwrap_or("").trim(),
            read("comm").trim(),
            read("wchan").trim()
        );
    }
    text
}
