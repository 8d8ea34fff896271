//! Processes as the kernel knows them: who is who, who holds what open, and how a whole session ends.
//!
//! Linux only: `/proc` is the source. What is launched, and why, belongs to `engine`.

use std::{fs, io, path::Path, time::Duration};

/// What makes a pid mean one process: its start time, in clock ticks after boot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Identity {
    pub pid: u32,
    pub start_time: u64,
}

impl Identity {
    /// The process of this pid as it is now; none if there is none.
    pub fn of(pid: u32) -> Option<Self> {
        Stat::read(pid).map(|stat| Self { pid, start_time: stat.start_time })
    }

    /// This process.
    pub fn own() -> io::Result<Self> {
        Self::of(std::process::id()).ok_or_else(|| io::Error::other("cannot read /proc/self/stat"))
    }

    /// Whether it still runs. A zombie has ended.
    pub fn is_alive(self) -> bool {
        Stat::read(self.pid).is_some_and(|stat| stat.start_time == self.start_time && !stat.has_ended())
    }
}

/// What the start time of a process that starts now would be.
pub(crate) fn now() -> u64 {
    // SAFETY: the call fills a plain structure; neither can fail with these arguments.
    let (uptime, ticks_per_s) = unsafe {
        let mut uptime: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut uptime);
        (uptime, libc::sysconf(libc::_SC_CLK_TCK) as u64)
    };
    uptime.tv_sec as u64 * ticks_per_s + uptime.tv_nsec as u64 * ticks_per_s / 1_000_000_000
}

/// The fields of `/proc/<pid>/stat` that are used here. Source: proc_pid_stat(5).
struct Stat {
    state: char,
    session: u32,
    start_time: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may itself hold spaces and parentheses: count from the last one.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        Some(Self {
            state: fields.first()?.chars().next()?,
            session: fields.get(3)?.parse().ok()?,
            start_time: fields.get(19)?.parse().ok()?,
        })
    }

    fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }
}

/// Boot and pid namespace: only within one of them does a recorded pid mean anything.
pub(crate) fn realm() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("{} {}", boot.trim(), namespace.display())
}

fn pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
}

/// The living processes of a session.
pub(crate) fn session_members(session: u32) -> Vec<u32> {
    pids().filter(|&pid| Stat::read(pid).is_some_and(|stat| stat.session == session && !stat.has_ended())).collect()
}

/// The processes that hold something open whose link in `/proc/<pid>/fd` reads `target`.
pub(crate) fn holders(target: &Path) -> Vec<u32> {
    let holds = |pid: &u32| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd"));
        fds.into_iter().flatten().flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|link| link == target))
    };
    pids().filter(holds).collect()
}

/// Processes that inherited the flock on `file` which process `locker` took. Source: proc_pid_fdinfo(5), `lock:`.
pub(crate) fn flock_heirs(file: &Path, locker: u32) -> Vec<u32> {
    let locker = locker.to_string();
    let inherited = |pid: &u32| {
        fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().any(|fd| {
            let ours = || fs::read_link(fd.path()).is_ok_and(|link| link == file);
            let info = || fs::read_to_string(Path::new(&format!("/proc/{pid}/fdinfo")).join(fd.file_name()));
            let locked = |info: String| {
                info.lines().any(|line| line.contains("FLOCK") && line.split_whitespace().any(|word| word == locker))
            };
            ours() && info().is_ok_and(locked)
        })
    };
    holders(file).into_iter().filter(inherited).collect()
}

/// The name of a process, for messages.
pub(crate) fn name(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if name.trim().is_empty() { format!("pid {pid}") } else { format!("{} (pid {pid})", name.trim()) }
}

/// Sends a signal to one process; errors (it has gone, it is another user's) leave nothing to do.
pub(crate) fn signal(pid: u32, signal: libc::c_int) {
    if let Some(pid) = libc::pid_t::try_from(pid).ok().filter(|&pid| pid > 1) {
        // SAFETY: a plain system call on a pid above 1: never on ourselves, all processes or init.
        unsafe { libc::kill(pid, signal) };
    }
}

/// Sends a signal to a process group.
pub(crate) fn signal_group(group: u32, signal: libc::c_int) {
    if let Some(group) = libc::pid_t::try_from(group).ok().filter(|&group| group > 1) {
        // SAFETY: a plain system call on a group above 1.
        unsafe { libc::killpg(group, signal) };
    }
}

/// Kills whatever is left of a session: its group at once, then members that moved to groups of their own.
pub(crate) fn kill_session(session: u32) {
    signal_group(session, libc::SIGKILL);
    // A member may fork between the listing and the kill, and takes a moment to die; one that the kernel cannot
    // end (in uninterruptible sleep) must not hold us up for ever.
    for _ in 0..200 {
        let members = session_members(session);
        if members.is_empty() {
            return;
        }
        for pid in members {
            signal(pid, libc::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
