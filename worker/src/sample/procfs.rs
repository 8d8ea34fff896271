//! CPU time and resident memory of a process tree, and of the host, from /proc.

use modelmeter_common::part::HostUse;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

/// One process.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Process {
    parent: u32,
    group: u32,
    /// User and system time, in clock ticks.
    ticks: u64,
    /// In clock ticks since boot: with the pid, who it is.
    started: u64,
    rss_pages: u64,
}

/// The processes under an engine, itself included: its descendants and its process group.
#[derive(Clone, Debug, Default)]
pub struct Tree(BTreeMap<u32, Process>);

impl Tree {
    /// The tree as it is now; empty if the engine has ended.
    pub fn read(root: u32) -> Self {
        let all = all_processes();
        let Some(of) = all.get(&root).map(|p| p.group) else { return Self::default() };
        // A group is the engine's own only if the engine leads it.
        let mut members: BTreeSet<u32> = all
            .iter()
            .filter(|(pid, p)| **pid == root || (of == root && p.group == root))
            .map(|(pid, _)| *pid)
            .collect();
        loop {
            let children = all.iter().filter(|(pid, p)| members.contains(&p.parent) && !members.contains(pid));
            let children: Vec<u32> = children.map(|(pid, _)| *pid).collect();
            if children.is_empty() {
                break;
            }
            members.extend(children);
        }
        Self(all.into_iter().filter(|(pid, _)| members.contains(pid)).collect())
    }

    /// Whether the engine has ended.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The process ids.
    pub fn pids(&self) -> Vec<u32> {
        self.0.keys().copied().collect()
    }

    /// CPU time used since an earlier look; processes that came since count from their start.
    pub fn cpu_seconds_since(&self, before: &Self) -> f64 {
        let used = |(pid, now): (&u32, &Process)| match before.0.get(pid) {
            Some(then) if then.started == now.started => now.ticks.saturating_sub(then.ticks),
            _ => now.ticks,
        };
        self.0.iter().map(used).sum::<u64>() as f64 / ticks_per_second()
    }

    /// Resident memory.
    pub fn rss_bytes(&self) -> u64 {
        self.0.values().map(|p| p.rss_pages).sum::<u64>() * page_bytes()
    }
}

fn all_processes() -> BTreeMap<u32, Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    let pids = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: u32| Some((pid, parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?)))
        .collect()
}

/// Source: proc(5), /proc/pid/stat. The name, in parentheses, may hold anything.
fn parse_stat(stat: &str) -> Option<Process> {
    let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Process {
        parent: number(4)? as u32,
        group: number(5)? as u32,
        ticks: number(14)? + number(15)?,
        started: number(22)?,
        rss_pages: number(24)?,
    })
}

fn ticks_per_second() -> f64 {
    // SAFETY: reads a constant of the system.
    unsafe { libc::sysconf(libc::_SC_CLK_TCK) as f64 }
}

fn page_bytes() -> u64 {
    // SAFETY: reads a constant of the system.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as u64 }
}

/// The host's CPU times since boot, in clock ticks of all cores together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HostTimes {
    total: u64,
    idle: u64,
    steal: u64,
}

impl HostTimes {
    /// As they are now; none where /proc/stat cannot be read.
    pub fn read() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/stat").ok()?)
    }

    /// Source: proc(5), /proc/stat: user nice system idle iowait irq softirq steal (guest times are in user).
    fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().find(|l| l.starts_with("cpu "))?;
        let times: Vec<u64> = line.split_whitespace().skip(1).take(8).filter_map(|t| t.parse().ok()).collect();
        let [_, _, _, idle, iowait, _, _, steal] = times[..] else { return None };
        Some(Self { total: times.iter().sum(), idle: idle + iowait, steal })
    }

    /// Shares of all cores' time since an earlier look; steal is not busy.
    pub fn use_since(&self, before: &Self) -> HostUse {
        let total = self.total.saturating_sub(before.total).max(1) as f64;
        let idle = self.idle.saturating_sub(before.idle) as f64;
        let steal = self.steal.saturating_sub(before.steal) as f64;
        HostUse { cpu_busy_ratio: ((total - idle - steal) / total).max(0.0), steal_ratio: steal / total }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_do_not_confuse() {
        let stat = "42 (a) b) S 7 42 1 0 -1 4194560 1 0 0 0 30 12 0 0 20 0 4 0 999 1000 77 18446744073709551615";
        let expected = Process { parent: 7, group: 42, ticks: 42, started: 999, rss_pages: 77 };
        assert_eq!(parse_stat(stat), Some(expected));
        assert_eq!(parse_stat("42 (x"), None);
    }

    #[test]
    fn host_shares_add_up() {
        let parse = |line: &str| HostTimes::parse(line).unwrap();
        let (a, b) = (parse("cpu  10 0 10 70 10 0 0 0 0 0\n"), parse("cpu  40 0 20 100 20 0 10 10 0 0\n"));
        let used = b.use_since(&a);
        assert!((used.cpu_busy_ratio - 0.5).abs() < 1e-9 && (used.steal_ratio - 0.1).abs() < 1e-9, "{used:?}");
    }

    #[test]
    fn this_process_is_seen_to_work() {
        let before = Tree::read(std::process::id());
        let end = std::time::Instant::now() + std::time::Duration::from_millis(120);
        let mut x = 0u64;
        while std::time::Instant::now() < end {
            x = std::hint::black_box(x.wrapping_add(1));
        }
        let now = Tree::read(std::process::id());
        assert!(now.cpu_seconds_since(&before) >= 0.05 && now.rss_bytes() > 1 << 20);
        assert!(Tree::read(u32::MAX - 1).is_empty());
    }
}
