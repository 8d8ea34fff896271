//! CPU time and resident memory of a process tree, and of the host, from /proc.

use modelmeter_common::part::HostUse;
use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How old a look at all processes may be.
const FRESH: Duration = Duration::from_secs(5);

/// Threads that ran for less than this say nothing of how long they waited.
const ENOUGH_NS: u64 = 10_000_000;

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

/// What the scheduler keeps of a thread, in ns since it was made. Source: Linux, Documentation/scheduler/sched-stats.rst.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Scheduled {
    ran: u64,
    /// Ready to run, without a core.
    waited: u64,
}

/// The processes under an engine, itself included: its descendants and its process group.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    processes: BTreeMap<u32, Process>,
    /// By thread, where the kernel keeps it.
    threads: BTreeMap<u32, Scheduled>,
}

impl Tree {
    /// The tree as it is now; empty if the engine has ended.
    pub fn read(root: u32) -> Self {
        let Some(engine) = process(root) else { return Self::default() };
        let mut members = BTreeMap::from([(root, engine)]);
        let mut next = vec![root];
        // A group is the engine's own only if the engine leads it.
        if engine.group == root {
            next.extend(orphans(root));
        }
        while let Some(pid) = next.pop() {
            let Some(found) = process(pid) else { continue };
            members.insert(pid, found);
            next.extend(children(pid).into_iter().filter(|child| !members.contains_key(child)));
        }
        let threads = members.keys().flat_map(|pid| threads(*pid)).collect();
        Self { processes: members, threads }
    }

    /// Whether the engine has ended.
    pub fn is_empty(&self) -> bool {
        self.processes.is_empty()
    }

    /// The process ids.
    pub fn pids(&self) -> Vec<u32> {
        self.processes.keys().copied().collect()
    }

    /// CPU time used since an earlier look; processes that came since count from their start.
    pub fn cpu_seconds_since(&self, before: &Self) -> f64 {
        let used = |(pid, now): (&u32, &Process)| match before.processes.get(pid) {
            Some(then) if then.started == now.started => now.ticks.saturating_sub(then.ticks),
            _ => now.ticks,
        };
        self.processes.iter().map(used).sum::<u64>() as f64 / ticks_per_second()
    }

    /// The same by the scheduler, which counts in ns; none where it does not tell. Threads that ended meanwhile are left out.
    pub fn ran_seconds_since(&self, before: &Self) -> Option<f64> {
        let [ran, _] = self.scheduled_since(before);
        (!self.threads.is_empty()).then_some(ran as f64 / 1e9)
    }

    /// Of the time since an earlier look in which its threads could run, the share in which they waited for a core. None where
    /// that is not known, or they hardly ran.
    pub fn waited_ratio_since(&self, before: &Self) -> Option<f64> {
        let [ran, waited] = self.scheduled_since(before);
        (ran >= ENOUGH_NS).then(|| waited as f64 / (ran + waited) as f64)
    }

    /// How long its threads ran, and waited for a core, since an earlier look, in ns.
    fn scheduled_since(&self, before: &Self) -> [u64; 2] {
        // A thread that came since counts from its start; one whose number is another's by now, from zero.
        let since = |(thread, now): (&u32, &Scheduled)| {
            let then = before.threads.get(thread).copied().unwrap_or_default();
            [now.ran.saturating_sub(then.ran), now.waited.saturating_sub(then.waited)]
        };
        self.threads.iter().map(since).fold([0, 0], |[a, b], [c, d]| [a + c, b + d])
    }

    /// Resident memory.
    pub fn rss_bytes(&self) -> u64 {
        self.processes.values().map(|p| p.rss_pages).sum::<u64>() * page_bytes()
    }
}

fn process(pid: u32) -> Option<Process> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// What the scheduler keeps of each thread of a process.
fn threads(pid: u32) -> Vec<(u32, Scheduled)> {
    let folder = format!("/proc/{pid}/task");
    let one = |thread: u32| {
        let text = fs::read_to_string(format!("{folder}/{thread}/schedstat")).ok()?;
        Some((thread, parse_schedstat(&text)?))
    };
    numbered(&folder).filter_map(one).collect()
}

fn parse_schedstat(text: &str) -> Option<Scheduled> {
    let mut numbers = text.split_whitespace().map(str::parse::<u64>);
    Some(Scheduled { ran: numbers.next()?.ok()?, waited: numbers.next()?.ok()? })
}

fn numbered(folder: &str) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
}

/// The children of a process: asked of each of its threads (proc(5), /proc/pid/task/tid/children), where the kernel
/// was built to tell.
fn children(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for thread in numbered(&format!("/proc/{pid}/task")) {
        match fs::read_to_string(format!("/proc/{pid}/task/{thread}/children")) {
            Ok(list) => found.extend(list.split_whitespace().filter_map(|child| child.parse::<u32>().ok())),
            Err(e) if e.kind() == ErrorKind::NotFound && !tells_children() => {
                return seen().iter().filter(|(_, p)| p.parent == pid).map(|(pid, _)| *pid).collect();
            }
            // The thread ended.
            Err(_) => {}
        }
    }
    found
}

/// Whether the kernel has CONFIG_PROC_CHILDREN.
fn tells_children() -> bool {
    static TELLS: LazyLock<bool> =
        LazyLock::new(|| fs::exists(format!("/proc/self/task/{}/children", std::process::id())).unwrap_or(false));
    *TELLS
}

/// Members of a group whose parent ended: nobody lists them as children, so they come from a look at everything.
fn orphans(group: u32) -> Vec<u32> {
    let is_member = |(pid, p): &(&u32, &Process)| {
        // Pids are used again: it must be the same process still.
        p.group == group && **pid != group && process(**pid).is_some_and(|now| now.started == p.started)
    };
    seen().iter().filter(is_member).map(|(pid, _)| *pid).collect()
}

/// All processes of the host, as they were at most [`FRESH`] ago: on a host with many of them a look is dear, and
/// each point begins and ends with one.
fn seen() -> Arc<BTreeMap<u32, Process>> {
    type Seen = Option<(Instant, Arc<BTreeMap<u32, Process>>)>;
    static SEEN: Mutex<Seen> = Mutex::new(None);
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    match &*seen {
        Some((at, all)) if at.elapsed() < FRESH => all.clone(),
        _ => {
            let all: BTreeMap<u32, Process> = numbered("/proc").filter_map(|pid| Some((pid, process(pid)?))).collect();
            let all = Arc::new(all);
            *seen = Some((Instant::now(), all.clone()));
            all
        }
    }
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

    /// Shares of all cores' time since an earlier look; steal is not busy. None where no tick has passed.
    pub fn use_since(&self, before: &Self) -> Option<HostUse> {
        let total = self.total.saturating_sub(before.total) as f64;
        let idle = self.idle.saturating_sub(before.idle) as f64;
        let steal = self.steal.saturating_sub(before.steal) as f64;
        let busy = (total - idle - steal).max(0.0);
        (total > 0.0).then(|| HostUse {
            cpu_busy_ratio: busy / total,
            steal_ratio: steal / total,
            ..HostUse::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Read, process::Stdio};

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
        let used = b.use_since(&a).unwrap();
        assert!((used.cpu_busy_ratio - 0.5).abs() < 1e-9 && (used.steal_ratio - 0.1).abs() < 1e-9, "{used:?}");
    }

    #[test]
    fn without_a_tick_nothing_is_known_of_the_host() {
        let times = HostTimes::parse("cpu  10 0 10 70 10 0 0 0 0 0\n").unwrap();
        assert_eq!(times.use_since(&times), None);
        assert_eq!(HostTimes::parse("cpu  10 0 10 70\n"), None, "too few figures");
    }

    #[test]
    fn children_and_grandchildren_are_in_the_tree_at_once() {
        let mut command = std::process::Command::new("sh");
        let mut shell = command.args(["-c", "sleep 60 & echo; wait"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = [0];
        shell.stdout.take().unwrap().read_exact(&mut line).unwrap();
        let of_shell = Tree::read(shell.id()).pids();
        let ours = Tree::read(std::process::id()).pids();
        for pid in of_shell.iter().filter(|pid| **pid != shell.id()) {
            std::process::Command::new("kill").arg(pid.to_string()).status().unwrap();
        }
        shell.wait().unwrap();
        assert_eq!(of_shell.len(), 2, "{of_shell:?}");
        assert!(of_shell.iter().all(|pid| ours.contains(pid)), "{ours:?}");
        assert!(Tree::read(shell.id()).is_empty());
    }

    #[test]
    fn waiting_for_a_core_is_a_share_of_the_time_that_threads_could_run() {
        assert_eq!(parse_schedstat("951 49 3\n"), Some(Scheduled { ran: 951, waited: 49 }));
        assert_eq!(parse_schedstat("951"), None);
        let look = |threads: &[(u32, u64, u64)]| Tree {
            threads: threads.iter().map(|&(thread, ran, waited)| (thread, Scheduled { ran, waited })).collect(),
            ..Tree::default()
        };
        let ms = 1_000_000;
        let before = look(&[(1, 500 * ms, 0), (2, 7 * ms, 90 * ms), (3, ms, ms)]);
        // The third ended; the fourth came; the second went on.
        let now = look(&[(1, 560 * ms, 0), (2, 27 * ms, 100 * ms), (4, 10 * ms, 0)]);
        assert_eq!(now.waited_ratio_since(&before), Some(0.1));
        assert_eq!(now.waited_ratio_since(&now), None, "nothing ran");
    }

    /// Two busy threads on one core each wait for half of the time.
    #[test]
    fn threads_that_share_a_core_are_seen_to_wait() {
        let core = modelmeter_meter::threads::available_cores()[0];
        let spin = || {
            let mut command = std::process::Command::new("sh");
            let child = command.args(["-c", "while :; do :; done"]).spawn().unwrap();
            let set = modelmeter_meter::threads::set_of(&[core]);
            // SAFETY: the set is ours, and the child lives until it is waited for.
            unsafe { libc::sched_setaffinity(child.id() as libc::pid_t, size_of::<libc::cpu_set_t>(), &set) };
            child
        };
        let mut children = [spin(), spin()];
        let (root, deadline) = (children[0].id(), Instant::now() + Duration::from_secs(20));
        let before = Tree::read(root);
        let mut ratio = None;
        while ratio.is_none_or(|ratio| ratio < 0.3) && Instant::now() < deadline {
            ratio = Tree::read(root).waited_ratio_since(&before);
        }
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(ratio.is_some_and(|ratio| (0.3..1.0).contains(&ratio)), "{ratio:?}");
    }

    #[test]
    fn this_process_is_seen_to_work() {
        let before = Tree::read(std::process::id());
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut now = before.clone();
        while now.cpu_seconds_since(&before) < 0.05 {
            assert!(Instant::now() < deadline, "{now:?}");
            now = Tree::read(std::process::id());
        }
        assert!(now.rss_bytes() > 1 << 20);
        assert!(Tree::read(u32::MAX - 1).is_empty());
    }
}
