use super::*;
use std::{collections::BTreeMap, fs::OpenOptions, io::Write as _, time::Instant};

/// The groups as these files tell them.
fn parsed(groups: &str, mounts: &str, files: &[(&str, &str)]) -> CpuGroups {
    let files: BTreeMap<&Path, &str> = files.iter().map(|(path, text)| (Path::new(*path), *text)).collect();
    CpuGroups::parse(groups, mounts, |path| files.get(path).map(|text| (*text).to_owned()))
}

const V2: &str =
    "29 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
/// A machine with v1's controllers, and v2 mounted beside them without any.
const V1: &str = "23 28 0:21 / /proc rw,relatime shared:13 - proc proc rw\n\
    30 29 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw\n\
    34 29 0:31 / /sys/fs/cgroup/cpuset rw,nosuid shared:15 - cgroup cgroup rw,cpuset\n\
    35 29 0:32 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:16 - cgroup cgroup rw,cpu,cpuacct\n";

#[test]
fn the_least_of_nested_quotas_counts() {
    let groups = "0::/system.slice/batch.slice/job.service\n";
    let files = [
        ("/sys/fs/cgroup/system.slice/batch.slice/job.service/cpu.max", "max 100000\n"),
        ("/sys/fs/cgroup/system.slice/batch.slice/cpu.max", "150000 100000\n"),
        ("/sys/fs/cgroup/system.slice/cpu.max", "400000 100000\n"),
    ];
    let found = parsed(groups, V2, &files);
    assert_eq!((found.0.len(), found.cores()), (2, Some(1.5)));
    assert_eq!(found.0[0].folder, Path::new("/sys/fs/cgroup/system.slice/batch.slice"));
    assert_eq!((found.cap(8), found.cap(1)), (1, 1));
    assert_eq!(parsed(groups, V2, &[]).cores(), None);
    assert_eq!(parsed(groups, V2, &[]).cap(8), 8);
}

#[test]
fn v1_counts_where_it_has_the_controller() {
    let groups = "12:cpuset:/\n4:cpu,cpuacct:/docker/4f2a\n1:name=systemd:/docker/4f2a\n0::/docker/4f2a\n";
    let folder = "/sys/fs/cgroup/cpu,cpuacct/docker/4f2a";
    let (quota, period) = (format!("{folder}/cpu.cfs_quota_us"), format!("{folder}/cpu.cfs_period_us"));
    let found = parsed(groups, V1, &[(&quota, "250000\n"), (&period, "50000\n")]);
    assert_eq!((found.cores(), found.0[0].period), (Some(5.0), Duration::from_millis(50)));
    assert_eq!(found.cap(64), 5);
    assert_eq!(parsed(groups, V1, &[(&quota, "-1\n"), (&period, "100000\n")]).cores(), None);
}

#[test]
fn in_a_container_the_groups_name_is_the_hosts_or_none() {
    let mount = "901 889 0:28 /docker/4f2a /sys/fs/cgroup/cpu ro,nosuid master:17 - cgroup cgroup rw,cpu\n";
    let files = [("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000"), ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")];
    for name in ["/docker/4f2a", "/", "/../9c1b", "/docker/another"] {
        assert_eq!(parsed(&format!("3:cpu:{name}\n"), mount, &files).cores(), Some(0.5), "{name}");
    }
    // A group inside the container, and a mount point with a blank.
    let mount = mount.replace("/sys/fs/cgroup/cpu ", "/run/my\\040groups ");
    let files =
        [("/run/my groups/inner/cpu.cfs_quota_us", "75000"), ("/run/my groups/inner/cpu.cfs_period_us", "100000")];
    assert_eq!(parsed("3:cpu:/docker/4f2a/inner\n", &mount, &files).cores(), Some(0.75));
}

#[test]
fn what_does_not_read_is_no_quota() {
    for (groups, mounts) in
        [("", V2), ("0::/\n", ""), ("nonsense", V2), ("0::/\n", "29 23 - cgroup2\n"), ("5:memory:/\n", V1)]
    {
        assert_eq!(parsed(groups, mounts, &[("/sys/fs/cgroup/cpu.max", "1 1")]), CpuGroups::default(), "{groups:?}");
    }
    for max in ["", "max", "0 100000", "50000 0", "-1 100000", "a b"] {
        assert_eq!(parsed("0::/\n", V2, &[("/sys/fs/cgroup/cpu.max", max)]).cores(), None, "{max:?}");
    }
}

#[test]
fn both_versions_tell_how_long_they_stopped_a_group() {
    let v2 = "usage_usec 951028\nuser_usec 9\nsystem_usec 1\nnr_periods 20\nnr_throttled 19\nthrottled_usec 913000\nnr_bursts 0\n";
    let v1 = "nr_periods 20\nnr_throttled 19\nthrottled_time 913000000\n";
    let wanted = Throttling { periods: 19, stopped: Duration::from_millis(913) };
    assert_eq!((Throttling::parse(v2), Throttling::parse(v1)), (wanted, wanted));
    assert_eq!(Throttling::parse("usage_usec 1\n"), Throttling::default(), "no controller, no figures");
}

#[test]
fn the_share_stopped_is_of_the_time_however_many_threads_there_were() {
    let group = Limited { folder: PathBuf::new(), cores: 0.5, period: Duration::from_millis(100) };
    let after = |periods: u64, stopped_ms: u64, elapsed_ms: u64| {
        let now = Throttling { periods, stopped: Duration::from_millis(stopped_ms) };
        group.stopped(&Throttling::default(), &now, Duration::from_millis(elapsed_ms)).ratio
    };
    let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
    assert!(near(after(10, 500, 1000), 0.5), "one thread at half a core");
    assert!(near(after(10, 1500, 1000), 0.75), "two threads share it");
    assert!(near(after(5, 250, 1000), 0.25), "busy for half of the time");
    assert!(near(after(12, 600, 1000), 0.5), "periods at both ends are no more than all of the time");
    assert_eq!((after(0, 0, 1000), after(0, 0, 0)), (0.0, 0.0));
}

/// A real group, where this machine lets one be made.
#[test]
fn a_process_in_a_group_with_a_quota_is_seen_to_be_stopped() {
    let Some(group) = Group::make() else { return };
    let mut child = std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
    let joined = group.join(child.id());
    let deadline = Instant::now() + Duration::from_secs(20);
    let groups = CpuGroups::of(child.id());
    let (before, begun) = (groups.look(), Instant::now());
    let mut seen = None;
    while joined.is_ok() && Instant::now() < deadline && seen.is_none() {
        let stopped = groups.stopped(&before, &groups.look(), begun.elapsed());
        seen = stopped.filter(|stopped| begun.elapsed() > Duration::from_secs(1) && stopped.ratio > 0.2);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    joined.unwrap();
    assert_eq!(groups.cores(), Some(0.25));
    let Stopped { cores, ratio } = seen.expect("it was stopped");
    assert!(cores == 0.25 && ratio < 0.9, "{ratio}");
    assert_eq!(CpuGroups::of(std::process::id()), CpuGroups::own());
}

/// A group with a quarter of a core, gone when dropped.
struct Group {
    folder: PathBuf,
    join: &'static str,
}

impl Group {
    fn make() -> Option<Self> {
        let name = format!("modelmeter-test-{}", std::process::id());
        let v1 = [("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "25000")];
        let v2 = [("cpu.max", "25000 100000")];
        type Files<'a> = &'a [(&'a str, &'a str)];
        let ways: [(&str, &str, Files); 3] = [
            ("/sys/fs/cgroup/cpu", "tasks", &v1),
            ("/sys/fs/cgroup/cpu,cpuacct", "tasks", &v1),
            ("/sys/fs/cgroup", "cgroup.procs", &v2),
        ];
        for (root, join, quota) in ways {
            let folder = Path::new(root).join(&name);
            if fs::create_dir(&folder).is_err() {
                continue;
            }
            let group = Self { folder, join };
            // A file that is not there must not be made: where no controller is, it would be an ordinary one.
            if quota.iter().all(|(file, value)| group.write(file, value).is_ok()) {
                return Some(group);
            }
        }
        println!("skipped: no control group with a CPU quota can be made here");
        None
    }

    fn write(&self, file: &str, value: &str) -> std::io::Result<()> {
        OpenOptions::new().write(true).open(self.folder.join(file))?.write_all(value.as_bytes())
    }

    fn join(&self, pid: u32) -> std::io::Result<()> {
        self.write(self.join, &pid.to_string())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.folder).is_err() && Instant::now() < deadline {}
    }
}
