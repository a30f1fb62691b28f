//! The machine it all runs on: what it is, and whether it has time.

use std::fs::read_to_string;
use std::path::Path;
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

/// CPUs for server and load, out of those there are: the ones asked for, or the first that are left. The same for both
/// only where there is no other.
pub fn pair(
    server: Option<usize>,
    load: Option<usize>,
    usable: &[usize],
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
        let mut others = usable.iter().filter(|cpu| Some(**cpu) != taken);
        others.next().or(usable.first()).copied()
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
    fn server_and_load_have_a_cpu_each() {
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
