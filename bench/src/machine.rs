//! The machine it all runs on: what it is, and whether it has time.

use std::fs::read_to_string;
use std::time::Duration;

/// Of a CPU's time; more, and figures depend on what the rest does.
const BUSY_MAX: f64 = 0.03;
const LOOK: Duration = Duration::from_secs(2);

pub fn description() -> String {
    let read = |path| read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    // This process is bound to one of them.
    let cores = cpu
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    format!(
        "{}, {cores} cores, Linux {}, TCP {}",
        model.map_or("unknown CPU", |(_, name)| name),
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/sys/net/ipv4/tcp_congestion_control").trim()
    )
}

/// Says which of the CPUs have something else to do, if any.
pub fn busy(cpus: &[usize]) -> Option<String> {
    let before = read_to_string("/proc/stat").ok()?;
    std::thread::sleep(LOOK);
    let after = read_to_string("/proc/stat").ok()?;
    let percent = |cpu: usize| {
        let part = busy_part(times(&before, cpu)?, times(&after, cpu)?);
        (part > BUSY_MAX).then(|| format!("CPU {cpu} is busy to {:.0} %", 100.0 * part))
    };
    let busy: Vec<String> = cpus.iter().filter_map(|cpu| percent(*cpu)).collect();
    (!busy.is_empty()).then(|| {
        let what = busy.join(", ");
        format!(
            "{what} with something else: figures will be worse than they are, and ratios others."
        )
    })
}

/// Idle and all time of a CPU since the start, in ticks.
fn times(stat: &str, cpu: usize) -> Option<(u64, u64)> {
    let name = format!("cpu{cpu}");
    let mut lines = stat.lines().map(str::split_whitespace);
    let line = lines.find_map(|mut words| (words.next()? == name).then_some(words))?;
    let ticks: Vec<u64> = line.map_while(|word| word.parse().ok()).collect();
    // user, nice, system, idle, waiting for disks, ...
    let idle = ticks.get(3)? + ticks.get(4)?;
    Some((idle, ticks.iter().sum()))
}

fn busy_part(before: (u64, u64), after: (u64, u64)) -> f64 {
    let all = after.1.saturating_sub(before.1);
    let idle = after.0.saturating_sub(before.0);
    match all {
        0 => 0.0,
        all => all.saturating_sub(idle) as f64 / all as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_cpu_is_seen() {
        let stat =
            |busy, idle| format!("cpu  9 9 9 9 9\ncpu0 1 1 1 1 1\ncpu1 {busy} 0 5 {idle} 2 0 0\n");
        let (before, after) = (stat(100, 500), stat(125, 575));
        assert_eq!(times(&before, 1), Some((502, 607)));
        assert_eq!(times(&before, 2), None);
        let part = |cpu| busy_part(times(&before, cpu).unwrap(), times(&after, cpu).unwrap());
        assert_eq!(part(1), 0.25);
        assert_eq!(part(0), 0.0);
    }
}
