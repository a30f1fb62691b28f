//! The machine it all runs on: what it is, and whether it has time.

use crate::interrupt;
use std::fs::read_to_string;
use std::path::Path;
use std::time::{Duration, Instant};

/// Of a CPU's time; more, and figures depend on what the rest does.
const BUSY_MAX: f64 = 0.03;
const LOOK: Duration = Duration::from_secs(2);

/// Of a run's time that something else took from the server's CPU: as a median over the runs of a scenario it is told above that.
pub const FOREIGN_MAX: f64 = 0.05;

/// `one_core`: the CPUs of server and load are threads of one.
pub fn description(one_core: bool) -> String {
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
        "{}, {cores} cores, Linux {}, TCP {}{}",
        model.map_or("unknown CPU", |(_, name)| name),
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/sys/net/ipv4/tcp_congestion_control").trim(),
        match one_core {
            true => ", server and load on threads of one core",
            false => "",
        }
    )
}

/// CPUs for server and load, out of those there are: the ones asked for, or the first that are left, of another core if there is
/// one. The same for both only where there is no other. `cores`: the CPUs that are threads of one, of each core.
pub fn pair(
    server: Option<usize>,
    load: Option<usize>,
    usable: &[usize],
    cores: &[Vec<usize>],
) -> Result<(usize, usize), String> {
    let asked = [("--server-cpu", server), ("--load-cpu", load)];
    for (flag, cpu) in asked {
        if let Some(cpu) = cpu.filter(|cpu| !usable.contains(cpu)) {
            let list: Vec<String> = usable.iter().map(usize::to_string).collect();
            return Err(format!(
                "{flag} {cpu}: there is no such CPU for this program; it may use {}",
                list.join(" ")
            ));
        }
    }
    let first_beside = |taken: Option<usize>| {
        let others = || usable.iter().filter(|cpu| Some(**cpu) != taken);
        let elsewhere =
            others().find(|cpu| !taken.is_some_and(|taken| is_one_core(taken, **cpu, cores)));
        elsewhere.or(others().next()).or(usable.first()).copied()
    };
    let server = server.or_else(|| first_beside(load));
    let load = load.or_else(|| first_beside(server));
    match (server, load) {
        (Some(server), Some(load)) if server == load && usable.len() > 1 => Err(format!(
            "server and load are both to run on CPU {load}: give each its own"
        )),
        (Some(server), Some(load)) => Ok((server, load)),
        _ => Err("there is no CPU for this program".into()),
    }
}

/// Whether two different CPUs are threads of one core.
pub fn is_one_core(one: usize, other: usize, cores: &[Vec<usize>]) -> bool {
    one != other
        && cores
            .iter()
            .any(|core| core.contains(&one) && core.contains(&other))
}

/// The threads of the core of each of these CPUs, as far as the kernel tells.
pub fn cores(cpus: &[usize]) -> Vec<Vec<usize>> {
    let of = |cpu: &usize| {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        cpu_list(&read_to_string(path).unwrap_or_default())
    };
    cpus.iter().map(of).collect()
}

/// A list of the kernel's: `0-3,8`.
fn cpu_list(text: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    let ranges = text.trim().split(',').filter_map(range);
    ranges.flatten().collect()
}

/// How much of a CPU something else takes meanwhile: the host of a virtual machine, or programs other than our servers.
///
/// Of other programs their user time alone is seen. Interrupts cannot be told apart: those of loopback are the sender's own, and
/// those of a disk belong to the server that syncs; nor can what kernel threads write for it.
pub struct Watch {
    cpu: usize,
    start: Instant,
    before: Option<f64>,
}

impl Watch {
    pub fn start(cpu: usize) -> Self {
        Self {
            cpu,
            start: Instant::now(),
            before: foreign_seconds(cpu),
        }
    }

    /// Part of the time since; not a number where it cannot be seen.
    pub fn part(&self) -> f64 {
        let elapsed = self.start.elapsed().as_secs_f64();
        match (self.before, foreign_seconds(self.cpu)) {
            // Both clocks tick: a tick may be counted here and not yet there.
            (Some(before), Some(now)) => ((now - before) / elapsed).max(0.0),
            _ => f64::NAN,
        }
    }
}

/// User time and stolen time of a CPU, less the user time of all our servers, those that have ended included: they run nowhere else. Processes that hold idle connections
/// are among them and do; those have nothing to do any more when a watch starts.
fn foreign_seconds(cpu: usize) -> Option<f64> {
    let all = ticks(&read_to_string("/proc/stat").ok()?, cpu)?;
    // user, nice, system, idle, waiting for disks, irq, softirq, stolen
    let taken = all.first()? + all.get(1)? + all.get(7)?;
    let ended = process_ticks(&read_to_string("/proc/self/stat").ok()?)?.1;
    let running = interrupt::children()
        .into_iter()
        .filter_map(|id| read_to_string(format!("/proc/{id}/stat")).ok());
    let running: u64 = running
        .filter_map(|stat| Some(process_ticks(&stat)?.0))
        .sum();
    Some((taken as f64 - (ended + running) as f64) / TICKS_PER_SECOND)
}

/// What Linux tells programs, whatever it counts by.
const TICKS_PER_SECOND: f64 = 100.0;

/// User time of a process, and of its children that it has waited for.
fn process_ticks(stat: &str) -> Option<(u64, u64)> {
    // Its name may hold anything.
    let (_, words) = stat.rsplit_once(") ")?;
    let words: Vec<&str> = words.split(' ').collect();
    Some((words.get(11)?.parse().ok()?, words.get(13)?.parse().ok()?))
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

/// Says that stores would not be on a disk, if so.
pub fn stores_in_memory() -> Option<String> {
    let folder = std::env::temp_dir();
    let folder = folder.canonicalize().unwrap_or(folder);
    let mounts = read_to_string("/proc/self/mounts").ok()?;
    let kind = file_system(&mounts, &folder).filter(|kind| matches!(*kind, "tmpfs" | "ramfs"))?;
    Some(format!(
        "Stores go to {}, which is in memory ({kind}): syncs cost nothing there, and figures of file stores say \
         nothing of a disk. Set TMPDIR to a folder that is on one.",
        folder.display()
    ))
}

/// The kind of file system a path is on. Of several mounts at one place the last is seen.
fn file_system<'m>(mounts: &'m str, path: &Path) -> Option<&'m str> {
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (place, kind) = (words.nth(1)?, words.next()?);
        let place = place.replace("\\040", " ");
        path.starts_with(&place).then_some((place.len(), kind))
    });
    mounts
        .max_by_key(|(length, _)| *length)
        .map(|(_, kind)| kind)
}

/// What a CPU did since the start, in ticks by kind.
fn ticks(stat: &str, cpu: usize) -> Option<Vec<u64>> {
    let name = format!("cpu{cpu}");
    let mut lines = stat.lines().map(str::split_whitespace);
    let line = lines.find_map(|mut words| (words.next()? == name).then_some(words))?;
    Some(line.map_while(|word| word.parse().ok()).collect())
}

/// Idle and all time of a CPU since the start, in ticks.
fn times(stat: &str, cpu: usize) -> Option<(u64, u64)> {
    let ticks = ticks(stat, cpu)?;
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
    fn server_and_load_have_a_cpu_each() {
        let pair = |server, load, usable: &[usize]| pair(server, load, usable, &[]);
        assert_eq!(pair(None, None, &[0, 1, 2]), Ok((0, 1)));
        assert_eq!(pair(None, None, &[2, 5]), Ok((2, 5)));
        assert_eq!(pair(Some(1), None, &[0, 1]), Ok((1, 0)));
        assert_eq!(pair(None, Some(0), &[0, 1]), Ok((1, 0)));
        assert!(pair(Some(1), Some(1), &[0, 1]).is_err());
        assert_eq!(pair(None, None, &[3]), Ok((3, 3)), "there is no other");
        let error = pair(Some(99), None, &[0, 1]).unwrap_err();
        assert!(
            error.contains("--server-cpu 99") && error.ends_with("0 1"),
            "{error}"
        );
        assert!(pair(None, Some(1), &[0, 2]).is_err());
    }

    #[test]
    fn the_load_has_a_core_of_its_own_where_there_is_one() {
        let cores = [vec![0, 1], vec![2, 3]];
        let of = |server, load, usable: &[usize]| pair(server, load, usable, &cores).unwrap();
        assert_eq!(of(None, None, &[0, 1, 2, 3]), (0, 2));
        assert_eq!(of(Some(1), None, &[0, 1, 2, 3]), (1, 2));
        assert_eq!(of(None, Some(0), &[0, 1, 2, 3]), (2, 0));
        assert_eq!(of(None, None, &[0, 1]), (0, 1), "there is no other");
        assert_eq!(of(Some(0), Some(1), &[0, 1, 2]), (0, 1), "asked for");
        assert!(is_one_core(0, 1, &cores) && !is_one_core(1, 2, &cores));
        assert!(!is_one_core(0, 0, &cores));
    }

    #[test]
    fn lists_of_cpus() {
        assert_eq!(cpu_list("0-1\n"), [0, 1]);
        assert_eq!(cpu_list("0,64"), [0, 64]);
        assert_eq!(cpu_list("3-5,8"), [3, 4, 5, 8]);
        assert!(cpu_list("").is_empty());
    }

    #[test]
    fn user_time_of_a_process_is_read() {
        let stat = "42 (a) b) S 1 42 42 0 -1 4194560 137 0 0 0 17 5 11 3 20 0 8 0 100 1 2";
        assert_eq!(process_ticks(stat), Some((17, 11)));
        assert_eq!(process_ticks("42 (a) S 1"), None);
    }

    #[test]
    fn the_file_system_of_a_path_is_that_of_the_innermost_mount() {
        let mounts = "rootfs / rootfs rw 0 0\n/dev/vda / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n\
                      /dev/vdb /tmp/a\\040disk xfs rw 0 0\n";
        for (path, kind) in [
            ("/home/me", "ext4"),
            ("/tmpfiles", "ext4"),
            ("/tmp", "tmpfs"),
            ("/tmp/x", "tmpfs"),
            ("/tmp/a disk/x", "xfs"),
        ] {
            assert_eq!(file_system(mounts, Path::new(path)), Some(kind), "{path}");
        }
    }

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
