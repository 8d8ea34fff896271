//! The device lock: one task at a time on a device, whatever happened to who held it before.
//!
//! A lock is an flock on `<lock-dir>/<uuid>` for a GPU. For CPU slots there is one file a core,
//! `cpu-core-<n>`: two sets of cores overlap exactly when they share a file, so the kernel itself
//! answers whether they do. With `shared_cpu` cores are locked shared: such workers overlap each
//! other, and never one that counts on having its cores alone.
//!
//! Engines inherit the lock, so an orphan keeps its device locked. Each lock file says in its first line
//! who holds it and which engines run under it; whoever takes the lock ends those of a dead holder first.

use crate::process::{self, Identity};
use modelmeter_common::{Code, Problem};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read, Seek, Write},
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// How long ended orphans may take to let go.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(3);
/// A record is one short line.
const MAX_RECORD_BYTES: u64 = 64 << 10;

/// What one slot needs for itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Claim {
    /// Names of lock files.
    pub exclusive: Vec<String>,
    /// The same, taken shared.
    pub shared: Vec<String>,
}

impl Claim {
    /// For a GPU by its UUID, and for a set of cores.
    pub fn new(uuid: Option<&str>, cores: &[u32], shared_cpu: bool) -> Self {
        let cores: Vec<String> = cores.iter().map(|core| format!("cpu-core-{core}")).collect();
        let mut exclusive: Vec<String> = uuid.map(str::to_owned).into_iter().collect();
        if shared_cpu {
            return Self { exclusive, shared: cores };
        }
        exclusive.extend(cores);
        Self { exclusive, shared: Vec::new() }
    }
}

/// Who holds a lock, and the engines that inherited it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    /// Boot and pid namespace in which the pids below mean something.
    realm: String,
    worker: String,
    holder: Identity,
    engines: Vec<Identity>,
}

impl Record {
    /// Whether its pids can be judged from here, and its holder has died.
    fn is_orphaned(&self) -> bool {
        self.realm == process::realm() && !self.holder.is_alive()
    }

    /// Ends what a dead holder left running.
    fn end_engines(&self) {
        for engine in &self.engines {
            // Where the leader is gone its pid cannot have been given to another as long as its session lives.
            let reused = Identity::of(engine.pid).is_some_and(|now| now != *engine);
            if !reused && !process::session_members(engine.pid).is_empty() {
                tracing::warn!(pid = engine.pid, worker = %self.worker, "ending an orphaned engine");
                process::kill_session(engine.pid);
            }
        }
    }
}

/// Whose a thing is that can inherit no lock, and whose death nothing tells it.
#[derive(Debug, Serialize, Deserialize)]
struct Owner {
    realm: String,
    holder: Identity,
    /// Device and inode of its exclusive lock files: the same from every container that sees them.
    locks: Vec<(u64, u64)>,
}

/// The locks of one slot. Let go when dropped and every engine that inherited them has ended.
#[derive(Debug)]
pub(crate) struct DeviceLock {
    exclusive: Vec<File>,
    shared: Vec<File>,
    record: Mutex<Record>,
}

impl DeviceLock {
    /// Takes all locks of a claim or none. Blocks for at most a few seconds, while orphans end.
    ///
    /// # Errors
    /// `busy`, naming the holder; `storage` if the folder cannot be written to.
    pub fn take(folder: &Path, claim: &Claim, worker: &str, slot: u32) -> Result<Self, Problem> {
        let folder = create_folder(folder)?;
        let own = Identity::own().map_err(|e| Problem::new(Code::Internal, e.to_string()))?;
        let record = Record { realm: process::realm(), worker: worker.into(), holder: own, engines: Vec::new() };
        // Shared locks carry no record of their own (they have many holders), so each such worker keeps one beside them.
        let private = (!claim.shared.is_empty()).then(|| format!("cpu-shared-{worker}-{slot}"));
        end_orphans(&folder);
        let exclusive = claim.exclusive.iter().chain(&private).map(|name| lock(&folder.join(name), false));
        let exclusive = exclusive.collect::<Result<Vec<_>, _>>()?;
        let shared = claim.shared.iter().map(|name| lock(&folder.join(name), true)).collect::<Result<Vec<_>, _>>()?;
        let lock = Self { exclusive, shared, record: Mutex::new(record) };
        lock.write()?;
        Ok(lock)
    }

    /// What an engine must inherit.
    pub fn fds(&self) -> Vec<RawFd> {
        self.exclusive.iter().chain(&self.shared).map(AsRawFd::as_raw_fd).collect()
    }

    /// Notes an engine that runs under this lock.
    pub fn add_engine(&self, engine: Identity) -> Result<(), Problem> {
        self.change(|engines| engines.push(engine))
    }

    /// Notes that an engine has ended.
    pub fn remove_engine(&self, engine: Identity) -> Result<(), Problem> {
        self.change(|engines| engines.retain(|other| *other != engine))
    }

    /// Says whose a container is that runs under this lock.
    pub fn owner(&self) -> String {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let owner = Owner { realm: record.realm.clone(), holder: record.holder, locks: self.inodes() };
        serde_json::to_string(&owner).expect("an owner is plain JSON")
    }

    /// Whether that owner is dead: seen to be so, or since a lock of its own is held here now.
    pub fn outlives(&self, owner: &str) -> bool {
        let Ok(owner) = serde_json::from_str::<Owner>(owner) else { return false };
        let is_dead = owner.realm == process::realm() && !owner.holder.is_alive();
        is_dead || self.inodes().iter().any(|inode| owner.locks.contains(inode))
    }

    fn inodes(&self) -> Vec<(u64, u64)> {
        self.exclusive.iter().filter_map(|file| file.metadata().ok()).map(|file| (file.dev(), file.ino())).collect()
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Identity>)) -> Result<(), Problem> {
        change(&mut self.record.lock().unwrap_or_else(PoisonError::into_inner).engines);
        self.write()
    }

    fn write(&self) -> Result<(), Problem> {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let mut line = serde_json::to_vec(&*record).map_err(|e| Problem::new(Code::Internal, e.to_string()))?;
        line.push(b'\n');
        for mut file in &self.exclusive {
            // In place (a rename would be another file, unlocked), the line before the cut, so that a reader
            // of the first line finds an old or a new one.
            let written =
                file.rewind().and_then(|()| file.write_all(&line)).and_then(|()| file.set_len(line.len() as u64));
            written.map_err(|e| Problem::new(Code::Storage, format!("cannot write a lock file: {e}")))?;
        }
        Ok(())
    }
}

/// The folder of the locks, made if it is not there, and open to all users if it is ours: they lock the same devices.
fn create_folder(folder: &Path) -> Result<PathBuf, Problem> {
    let create = || {
        fs::create_dir_all(folder)?;
        let mut how = OpenOptions::new();
        how.read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW);
        match how.open(folder) {
            // The mode is set on what was opened, never on what a link names.
            Ok(opened) if opened.metadata()?.uid() == own_uid() => {
                let _ = opened.set_permissions(Permissions::from_mode(0o1777));
            }
            // Not ours to open: somebody else made it.
            Ok(_) => {}
            Err(_) if is_trusted(fs::symlink_metadata(folder)?.uid()) => {}
            Err(_) => return Err(io::Error::other("it is a symbolic link that another user made")),
        }
        folder.canonicalize()
    };
    create().map_err(|e| {
        Problem::new(Code::Storage, format!("cannot use the lock folder {}: {e}", folder.display()))
            .with_field("lock_dir")
            .with_hint("name a folder that you may write to, the same for all workers of this machine")
    })
}

fn own_uid() -> u32 {
    // SAFETY: cannot fail.
    unsafe { libc::geteuid() }
}

/// Whether what this user says is as good as our own word.
fn is_trusted(uid: u32) -> bool {
    [own_uid(), 0].contains(&uid)
}

/// Ends the engines of every dead holder that left a record in this folder.
fn end_orphans(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if let Some(record) = read_record(&entry.path()).filter(Record::is_orphaned) {
            record.end_engines();
        }
    }
}

/// The first line of a lock file; none if it cannot be read, or if it is another user's word.
fn read_record(path: &Path) -> Option<Record> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path).ok()?;
    if !is_trusted(file.metadata().ok()?.uid()) {
        return None;
    }
    let mut text = String::new();
    file.take(MAX_RECORD_BYTES).read_to_string(&mut text).ok()?;
    serde_json::from_str(text.lines().next()?).ok()
}

fn lock(path: &Path, shared: bool) -> Result<File, Problem> {
    let storage = |e: io::Error| {
        Problem::new(Code::Storage, format!("cannot lock {}: {e}", path.display()))
            .with_hint("remove that file where nobody measures, or name another folder: worker.lock_dir")
    };
    // Where folders are sticky, Linux may refuse to create what another user has (fs.protected_regular).
    let open = |create| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(create).truncate(false).custom_flags(libc::O_NOFOLLOW).open(path)
    };
    let file = match open(false) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => open(true),
        found => found,
    };
    let file = file.map_err(storage)?;
    let found = file.metadata().map_err(storage)?;
    if !found.is_file() || found.nlink() > 1 {
        return Err(storage(io::Error::other("it is no file of its own, but may be a link to another")));
    }
    if found.uid() == own_uid() {
        let _ = file.set_permissions(Permissions::from_mode(0o666));
    }
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    loop {
        if try_flock(&file, shared).map_err(storage)? {
            return Ok(file);
        }
        let record = read_record(path);
        match &record {
            Some(record) if record.is_orphaned() && Instant::now() < deadline => {
                // Whoever has the dead holder's lock inherited it, recorded or not.
                let heirs = process::flock_heirs(path, record.holder.pid);
                heirs.into_iter().for_each(|pid| process::signal(pid, libc::SIGKILL));
                thread::sleep(Duration::from_millis(20));
            }
            _ => return Err(busy(path, record.as_ref())),
        }
    }
}

/// Locks an open file (`flock`) without waiting. `false`: somebody else has it.
pub fn try_flock(file: &File, shared: bool) -> io::Result<bool> {
    let how = if shared { libc::LOCK_SH } else { libc::LOCK_EX };
    // SAFETY: a plain system call on a descriptor that `file` keeps open.
    if unsafe { libc::flock(file.as_raw_fd(), how | libc::LOCK_NB) } == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        e if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
        e => Err(e),
    }
}

fn busy(path: &Path, record: Option<&Record>) -> Problem {
    let device = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let holder = match record {
        Some(record) if record.realm == process::realm() => {
            format!("worker '{}', pid {}", record.worker, record.holder.pid)
        }
        Some(record) => format!("worker '{}', pid {} of another container", record.worker, record.holder.pid),
        None => match process::holders(path).into_iter().find(|pid| *pid != std::process::id()) {
            Some(pid) => process::name(pid),
            None => "a process that cannot be seen from here".into(),
        },
    };
    Problem::new(Code::Busy, format!("device {device} is held by {holder} (lock {})", path.display()))
        .with_field("devices")
        .with_hint("stop that worker, choose other devices or cores, or have both share the CPU: --shared-cpu for each")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(folder: &Path, worker: &str, cores: &[u32], shared: bool) -> Result<DeviceLock, Problem> {
        DeviceLock::take(folder, &Claim::new(None, cores, shared), worker, 0)
    }

    #[test]
    fn cores_may_not_overlap_and_the_holder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let first = take(folder.path(), "w1", &[0, 1], false).unwrap();
        let _beside = take(folder.path(), "w2", &[2], false).unwrap();
        let problem = take(folder.path(), "w3", &[1, 3], false).unwrap_err();
        assert_eq!(problem.code, Code::Busy);
        for word in ["cpu-core-1", "'w1'", &format!("pid {}", std::process::id())] {
            assert!(problem.message.contains(word), "{word} in: {problem}");
        }
        // None of a claim that failed is kept.
        let _free = take(folder.path(), "w4", &[3], false).unwrap();
        drop(first);
        take(folder.path(), "w3", &[0, 1], false).unwrap();
    }

    #[test]
    fn shared_cores_are_shared_only_among_those_who_say_so() {
        let folder = tempfile::tempdir().unwrap();
        let first = take(folder.path(), "w1", &[0], true).unwrap();
        let second = take(folder.path(), "w2", &[0], true).unwrap();
        assert_eq!(take(folder.path(), "w3", &[0], false).unwrap_err().code, Code::Busy);
        drop((first, second));
        let _alone = take(folder.path(), "w3", &[0], false).unwrap();
        assert_eq!(take(folder.path(), "w1", &[0], true).unwrap_err().code, Code::Busy);
    }

    #[test]
    fn an_owner_is_outlived_by_whoever_has_its_lock_or_sees_it_dead() {
        let folder = tempfile::tempdir().unwrap();
        let first = take(folder.path(), "w1", &[0], false).unwrap();
        let beside = take(folder.path(), "w2", &[1], false).unwrap();
        let owner = first.owner();
        assert!(!beside.outlives(&owner) && !beside.outlives("no owner"));
        drop(first);
        let next = take(folder.path(), "w3", &[0], false).unwrap();
        // Of a container whose pids mean nothing here.
        assert!(next.outlives(&owner.replace(&process::realm(), "elsewhere")));
        let dead = owner.replace("start_time\":", "start_time\":1");
        assert!(beside.outlives(&dead), "{dead}");
    }

    #[test]
    fn a_link_is_no_way_to_open_another_folder_or_file() {
        let home = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let private = home.path().join("private");
        fs::create_dir(&private).unwrap();
        fs::set_permissions(&private, Permissions::from_mode(0o700)).unwrap();
        let link = home.path().join("locks");
        std::os::unix::fs::symlink(&private, &link).unwrap();
        let _held = take(&link, "w1", &[0], false).unwrap();
        assert_eq!(mode(&private), 0o700, "our own link may name it, and its mode stays");

        // Of another user, where one can be had.
        if own_uid() == 0 {
            std::os::unix::fs::lchown(&link, Some(12_345), None).unwrap();
            let problem = take(&link, "w2", &[1], false).unwrap_err();
            assert!(problem.code == Code::Storage && problem.message.contains("symbolic link"), "{problem}");
        } else {
            println!("skipped a link of another user: only root can make one");
        }

        let folder = home.path().join("shared");
        let _held = take(&folder, "w1", &[0], false).unwrap();
        assert_eq!((mode(&folder), mode(&folder.join("cpu-core-0"))), (0o1777, 0o666));
        let secret = home.path().join("secret");
        fs::write(&secret, "mine").unwrap();
        fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
        fs::hard_link(&secret, folder.join("cpu-core-1")).unwrap();
        let problem = take(&folder, "w2", &[1], false).unwrap_err();
        assert!(problem.code == Code::Storage && problem.message.contains("cpu-core-1"), "{problem}");
        assert_eq!((mode(&secret), fs::read_to_string(&secret).unwrap()), (0o600, "mine".into()));
    }

    #[test]
    fn a_damaged_record_is_no_record() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("GPU-1"), b"{\"realm\":\"x\"\xff").unwrap();
        let claim = Claim::new(Some("GPU-1"), &[], true);
        let _first = DeviceLock::take(folder.path(), &claim, "w1", 0).unwrap();
        assert_eq!(read_record(&folder.path().join("GPU-1")).unwrap().worker, "w1");
        assert_eq!(DeviceLock::take(folder.path(), &claim, "w2", 0).unwrap_err().code, Code::Busy);
    }
}
