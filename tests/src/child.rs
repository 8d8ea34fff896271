//! A process that a test started, in a process group of its own that never outlives the test.

use crate::{eventually, logs};
use anyhow::{Context, Result};
use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{self, Command, ExitStatus, Stdio},
    time::Duration,
};

/// A running process with its group and its log.
pub struct Child {
    name: String,
    process: process::Child,
    /// Waits on a pipe for the end of this test process, however it ends, and then ends the group.
    guard: process::Child,
    log: PathBuf,
}

impl Child {
    /// Starts `command`; what it prints is appended to `log`.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let out = File::options().create(true).append(true).open(log).with_context(|| format!("{}", log.display()))?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).process_group(0);
        let process = command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?;
        let guard = guard(process.id())?;
        logs::add(name, log);
        Ok(Self { name: name.to_owned(), process, guard, log: log.to_owned() })
    }

    /// Its process id, which is its group's too.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// What it printed so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How it ended; none while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().ok().flatten()
    }

    /// Sends a signal to the process alone.
    pub fn signal(&mut self, signal: i32) -> Result<()> {
        anyhow::ensure!(self.ended().is_none(), "{} ended before it could be signalled", self.name);
        send(i32::try_from(self.id())?, signal)
    }

    /// Sends a signal to the whole group.
    pub fn signal_group(&mut self, signal: i32) -> Result<()> {
        anyhow::ensure!(self.ended().is_none(), "{} ended before it could be signalled", self.name);
        send(-i32::try_from(self.id())?, signal)
    }

    /// SIGKILL to the whole group, and waits for its end.
    pub fn kill(&mut self) -> Result<()> {
        self.signal_group(libc::SIGKILL)?;
        self.process.wait()?;
        Ok(())
    }

    /// SIGTERM to the process, and how it ended; an error with its log if it runs on past the limit.
    pub async fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(libc::SIGTERM)?;
        let what = format!("{} ends after SIGTERM", self.name);
        eventually(&what, limit, || std::future::ready(self.ended())).await
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // The group first: an unreaped leader keeps its number from being used again.
        let _ = i32::try_from(self.id()).map(|group| send(-group, libc::SIGKILL));
        let _ = self.process.wait();
        let _ = self.guard.kill();
        let _ = self.guard.wait();
        logs::remove(&self.log);
    }
}

fn guard(group: u32) -> Result<process::Child> {
    let mut guard = Command::new("sh");
    guard.args(["-c", "read -r _; kill -KILL \"-$1\"", "guard", &group.to_string()]);
    guard.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    guard.spawn().context("cannot start a guard")
}

fn send(pid: i32, signal: i32) -> Result<()> {
    // SAFETY: kill has no memory effects.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()).with_context(|| format!("signal {signal} to {pid}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the process is there and no zombie.
    fn alive(pid: &str) -> bool {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, fields)| !fields.starts_with(['Z', 'X']))
    }

    /// A shell whose own child would outlive it.
    fn family(log: &Path) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & echo $!; wait"]);
        assert!(!log.exists());
        command
    }

    async fn grandchild(child: &Child) -> String {
        let printed = eventually("the shell prints", Duration::from_secs(10), || async {
            child.log().lines().next().map(str::to_owned)
        });
        let pid = printed.await.unwrap();
        assert!(alive(&pid));
        pid
    }

    #[tokio::test]
    async fn dropping_ends_the_whole_group() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let child = Child::spawn("family", family(&log), &log).unwrap();
        let pid = grandchild(&child).await;
        drop(child);
        eventually("the grandchild ends", Duration::from_secs(10), || async { (!alive(&pid)).then_some(()) })
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn the_guard_ends_the_group_when_its_pipe_closes() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut child = Child::spawn("family", family(&log), &log).unwrap();
        let pid = grandchild(&child).await;
        drop(child.guard.stdin.take()); // what the kernel does when this process dies
        eventually("the grandchild ends", Duration::from_secs(10), || async { (!alive(&pid)).then_some(()) })
            .await
            .unwrap();
    }
}
