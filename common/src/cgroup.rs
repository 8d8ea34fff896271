//! The CPU quotas of a process's control groups: what they allow, and for how long they stopped it.
//!
//! What belongs here: reading the texts of cgroup v1 and v2, purely, so that recorded texts are tests. What does not: judging
//! what a quota did to a measurement. Sources: cgroups(7), proc_pid_mountinfo(5), and of the kernel's documentation
//! admin-guide/cgroup-v2.rst (`cpu.max`, `cpu.stat`) and scheduler/sched-bwc.rst (their v1 counterparts).

use std::{
    fs,
    path::{Component, Path, PathBuf},
    time::Duration,
};

/// The groups of a process that limit its CPU time, from its own group up to the root of what is mounted.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct CpuGroups(Vec<Limited>);

/// A group with a quota.
#[derive(Clone, PartialEq, Debug)]
struct Limited {
    /// Where its files lie.
    folder: PathBuf,
    /// Cores' worth of CPU time in each period.
    cores: f64,
    period: Duration,
}

/// How often and how long a group was stopped since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Throttling {
    /// Periods in which its quota ran out.
    periods: u64,
    /// The time that its threads were stopped, summed over the cores.
    stopped: Duration,
}

/// What a quota did between two looks.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Stopped {
    /// Cores that the quota allows.
    pub cores: f64,
    /// Share of the time in which threads of the group were stopped.
    pub ratio: f64,
}

impl CpuGroups {
    /// Those of this process; empty where no quota can be read.
    pub fn own() -> Self {
        Self::read("self")
    }

    /// Those of another process of this machine.
    pub fn of(pid: u32) -> Self {
        Self::read(&pid.to_string())
    }

    fn read(process: &str) -> Self {
        let text = |path: &Path| fs::read_to_string(path).ok();
        let groups = text(&Path::new("/proc").join(process).join("cgroup"));
        let mounts = text(Path::new("/proc/self/mountinfo"));
        groups.zip(mounts).map(|(groups, mounts)| Self::parse(&groups, &mounts, text)).unwrap_or_default()
    }

    /// From the texts of `/proc/PID/cgroup` and `/proc/self/mountinfo`, and a way to read the groups' own files.
    fn parse(groups: &str, mounts: &str, text: impl Fn(&Path) -> Option<String>) -> Self {
        let Some((version, group)) = cpu_group(groups) else { return Self::default() };
        let limited = |folder: PathBuf| {
            let (cores, period) = version.limit(&folder, &text)?;
            Some(Limited { folder, cores, period })
        };
        Self(folders(version, group, mounts).into_iter().filter_map(limited).collect())
    }

    /// Cores that the tightest of the quotas allows; none where there is no quota.
    pub fn cores(&self) -> Option<f64> {
        self.0.iter().map(|group| group.cores).min_by(f64::total_cmp)
    }

    /// This many threads or slots, but no more than [`cap`] allows.
    pub fn cap(&self, count: usize) -> usize {
        cap(count, self.cores())
    }

    /// How far each group was stopped by now.
    pub fn look(&self) -> Vec<Throttling> {
        let stat = |group: &Limited| fs::read_to_string(group.folder.join("cpu.stat"));
        self.0.iter().map(|group| stat(group).map(|text| Throttling::parse(&text)).unwrap_or_default()).collect()
    }

    /// What the group that was stopped the most did between two looks that lie so far apart; none where there is no quota.
    pub fn stopped(&self, before: &[Throttling], now: &[Throttling], elapsed: Duration) -> Option<Stopped> {
        let looks = self.0.iter().zip(before.iter().zip(now));
        let of_each = looks.map(|(group, (before, now))| group.stopped(before, now, elapsed));
        of_each.max_by(|a, b| a.ratio.total_cmp(&b.ratio))
    }
}

impl Limited {
    /// The kernel sums the time over the cores on which threads were stopped. In a period in which the quota ran out, so many
    /// threads wanted to run as ran (the quota) and were stopped (that time): the share of the latter is the threads' share.
    fn stopped(&self, before: &Throttling, now: &Throttling, elapsed: Duration) -> Stopped {
        let stopped = now.stopped.saturating_sub(before.stopped).as_secs_f64();
        let in_periods = now.periods.saturating_sub(before.periods) as f64 * self.period.as_secs_f64();
        let wanted = stopped + self.cores * in_periods;
        let share = if wanted > 0.0 { stopped / wanted } else { 0.0 };
        let of_time = in_periods / elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
        Stopped { cores: self.cores, ratio: share * of_time.min(1.0) }
    }
}

impl Throttling {
    fn parse(stat: &str) -> Self {
        let field = |name: &str| {
            let value = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            value.and_then(|value| value.trim().parse::<u64>().ok())
        };
        let (v2, v1) = (field("throttled_usec"), field("throttled_time"));
        let stopped = v2.map(Duration::from_micros).or(v1.map(Duration::from_nanos));
        Self { periods: field("nr_throttled").unwrap_or(0), stopped: stopped.unwrap_or_default() }
    }
}

/// This many threads or slots, but at most one for each whole core of the quota: more would be stopped in each period. At
/// least one.
pub fn cap(count: usize, quota: Option<f64>) -> usize {
    quota.map_or(count, |cores| count.min((cores as usize).max(1)))
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Version {
    V1,
    V2,
}

impl Version {
    /// Cores and period of the quota of the group in this folder.
    fn limit(self, folder: &Path, text: impl Fn(&Path) -> Option<String>) -> Option<(f64, Duration)> {
        let (quota, period) = match self {
            Self::V1 => {
                let file = |name| text(&folder.join(name));
                (file("cpu.cfs_quota_us")?, file("cpu.cfs_period_us")?)
            }
            Self::V2 => {
                let max = text(&folder.join("cpu.max"))?;
                let (quota, period) = max.trim().split_once(' ')?;
                (quota.to_owned(), period.to_owned())
            }
        };
        // No quota is -1 in v1 and `max` in v2.
        let number = |text: &str| text.trim().parse::<u64>().ok().filter(|number| *number > 0);
        let (quota, period) = (number(&quota)?, number(&period)?);
        Some((quota as f64 / period as f64, Duration::from_micros(period)))
    }

    /// Whether this mount has the CPU controller: its type and the options of its superblock.
    fn is_mounted(self, kind: &str, options: &str) -> bool {
        match self {
            Self::V1 => kind == "cgroup" && options.split(',').any(|option| option == "cpu"),
            Self::V2 => kind == "cgroup2",
        }
    }
}

/// The group whose CPU quota counts: the one with v1's controller where that is mounted so, else v2's only one.
fn cpu_group(groups: &str) -> Option<(Version, &str)> {
    let lines = || groups.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let v1 = lines().find(|(controllers, _)| controllers.split(',').any(|controller| controller == "cpu"));
    let v2 = lines().find(|(controllers, _)| controllers.is_empty());
    v1.map(|(_, path)| (Version::V1, path)).or(v2.map(|(_, path)| (Version::V2, path)))
}

/// The folders of a group and of those that hold it, as far as they are mounted here. In a container the group's name may be
/// that of the host, of which only a part is mounted.
fn folders(version: Version, group: &str, mounts: &str) -> Vec<PathBuf> {
    let group = Path::new(group);
    let mut best: Option<(usize, PathBuf, PathBuf)> = None;
    for (root, point) in mounts.lines().filter_map(|line| mounted(version, line)) {
        let below = group.strip_prefix(&root).ok().filter(|below| is_plain(below)).map(Path::to_owned);
        let rank = if below.is_some() { 1 + root.components().count() } else { 0 };
        if best.as_ref().is_none_or(|(known, ..)| rank > *known) {
            best = Some((rank, point, below.unwrap_or_default()));
        }
    }
    let Some((_, point, below)) = best else { return Vec::new() };
    below.ancestors().map(|below| if below == Path::new("") { point.clone() } else { point.join(below) }).collect()
}

fn is_plain(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_)))
}

/// Root and mount point of a line of mountinfo that mounts the CPU controller.
fn mounted(version: Version, line: &str) -> Option<(PathBuf, PathBuf)> {
    let (of_mount, of_system) = line.split_once(" - ")?;
    let mut system = of_system.split(' ');
    let (kind, options) = (system.next()?, system.nth(1)?);
    let mut mount = of_mount.split(' ').skip(3);
    let (root, point) = (mount.next()?, mount.next()?);
    version.is_mounted(kind, options).then(|| (unescaped(root).into(), unescaped(point).into()))
}

/// A path of mountinfo, where blanks and the like are octal: `\040`.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut path = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let sign = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(u8::is_ascii);
        match sign {
            Some(sign) => {
                path.push(char::from(sign));
                path.push_str(&part[3..]);
            }
            None => {
                path.push('\\');
                path.push_str(part);
            }
        }
    }
    path
}

#[cfg(test)]
#[path = "cgroup_tests.rs"]
mod tests;
