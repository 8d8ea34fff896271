//! Engine processes: started so that they cannot outlive the worker, and ended with all that they started.
//!
//! Each is the leader of a session of its own and asks the kernel to be killed when its parent dies. The kernel
//! takes the parent to be the *thread* that forked, so all are forked by one thread that lives as long as the
//! worker. An engine whose leader has ended is over: the rest of its session is killed before the leader is
//! reaped, while its pid cannot mean anything else.

use super::{
    GRACE,
    watched::{Census, Counted, Log, Watched},
};
use crate::process::{self, Identity};
use modelmeter_common::{Code, Problem};
use modelmeter_meter::threads::set_of;
use std::{
    io::{self, PipeReader, PipeWriter, Read},
    os::{
        fd::RawFd,
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::PathBuf,
    process::{Child, ExitStatus, Stdio},
    sync::{Arc, Mutex, OnceLock, PoisonError, mpsc},
    thread,
    time::Duration,
};
use tokio::sync::{oneshot, watch};

/// What was killed ends within this, unless the kernel holds it.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// What is to be started.
#[derive(Debug)]
pub(crate) struct Command {
    /// As in "engine onnx".
    pub what: String,
    pub program: PathBuf,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Pinned to these cores.
    pub cores: Option<Vec<u32>>,
    /// Descriptors that stay open in it.
    pub inherit: Vec<RawFd>,
    /// Its output, both streams; the one before is overwritten.
    pub log: PathBuf,
    pub census: Census,
    /// Its standard input and output, where they are talked over; then its log is standard error alone.
    pub talk: Option<(PipeReader, PipeWriter)>,
}

/// A started engine. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    identity: Identity,
    pub watched: Watched,
    /// Whether the leader's pid is still ours to signal: cleared before it is reaped.
    ours: Arc<Mutex<bool>>,
}

type Job = (Command, Counted, oneshot::Sender<Result<Process, Problem>>);

/// Starts an engine.
///
/// # Errors
/// `not_installed` if the program is not there, `engine_failed` if it cannot be started, `storage` without a log.
pub(crate) async fn start(command: Command) -> Result<Process, Problem> {
    static LAUNCHER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let launcher = LAUNCHER.get_or_init(|| {
        let (jobs, queue) = mpsc::channel::<Job>();
        thread::spawn(move || {
            for (command, counted, reply) in queue {
                // A caller that has gone drops the process, which ends it.
                let _ = reply.send(fork(command, counted));
            }
        });
        jobs
    });
    let gone = || Problem::new(Code::Internal, "the launcher thread has ended");
    let (reply, started) = oneshot::channel();
    // Counted from here on: one that is on its way when its caller goes is waited for too.
    let counted = command.census.count();
    launcher.send((command, counted, reply)).map_err(|_| gone())?;
    started.await.map_err(|_| gone())?
}

fn fork(mut command: Command, counted: Counted) -> Result<Process, Problem> {
    let ((log, tail), talk) = (Log::create(&command.log)?, command.talk.take());
    let failed = |e: io::Error| {
        let code = if e.kind() == io::ErrorKind::NotFound { Code::NotInstalled } else { Code::EngineFailed };
        Problem::new(code, format!("cannot start {}: {}: {e}", command.what, command.program.display()))
            .with_hint("see 'modelmeter engines' for what is needed")
    };
    let (output, writer) = io::pipe().map_err(failed)?;
    let (stdin, stdout) = match talk {
        Some((stdin, stdout)) => (stdin.into(), stdout),
        None => (Stdio::null(), writer.try_clone().map_err(failed)?),
    };
    let mut os = std::process::Command::new(&command.program);
    os.args(&command.args).envs(command.env.iter().map(|(key, value)| (key, value)));
    os.stdin(stdin).stdout(stdout).stderr(writer);
    let cores = command.cores.as_deref().map(set_of);
    let (inherit, worker) = (command.inherit.clone(), process_id());
    // SAFETY: `prepare` makes system calls only; it neither allocates nor takes a lock.
    unsafe { os.pre_exec(move || prepare(worker, cores.as_ref(), &inherit)) };
    let child = os.spawn().map_err(failed)?;
    // The writing ends in `os` must go, or the output would never end.
    drop(os);
    follow(output, log);
    let identity = Identity::of(child.id());
    let ours = Arc::new(Mutex::new(true));
    let exit = reap_later(child, ours.clone(), counted);
    // Not reaped before `reap_later` ends, so a zombie at worst: its stat can be read.
    let identity = identity.ok_or_else(|| Problem::new(Code::EngineFailed, "the engine ended as it was started"))?;
    Ok(Process { identity, watched: Watched { exit, tail, log_path: command.log }, ours })
}

fn process_id() -> libc::pid_t {
    // SAFETY: cannot fail.
    unsafe { libc::getpid() }
}

/// In the child, between fork and exec.
fn prepare(worker: libc::pid_t, cores: Option<&libc::cpu_set_t>, inherit: &[RawFd]) -> io::Result<()> {
    let checked = |result: libc::c_int| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: plain system calls with valid arguments, allowed between fork and exec.
    unsafe {
        checked(libc::setsid())?;
        checked(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        if libc::getppid() != worker {
            // The worker died before the line above: nobody would ever kill us.
            libc::_exit(1);
        }
        if let Some(cores) = cores {
            checked(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), cores))?;
        }
        // Our own copies of the descriptors: they stay closed on exec in the worker.
        inherit.iter().try_for_each(|&fd| checked(libc::fcntl(fd, libc::F_SETFD, 0)))
    }
}

/// Waits for the end on a thread of its own; gives the status once nothing of the session is left.
fn reap_later(mut child: Child, ours: Arc<Mutex<bool>>, counted: Counted) -> watch::Receiver<Option<String>> {
    let (exit, receiver) = watch::channel(None);
    thread::spawn(move || {
        wait_unreaped(child.id());
        process::kill_session(child.id());
        let mut ours = ours.lock().unwrap_or_else(PoisonError::into_inner);
        *ours = false;
        let status = child.wait().unwrap_or_else(|_| ExitStatus::from_raw(0));
        drop(ours);
        exit.send_replace(Some(describe(status)));
        drop(counted);
    });
    receiver
}

/// Blocks until the process has ended, and leaves it a zombie.
fn wait_unreaped(pid: u32) {
    loop {
        // SAFETY: `info` is a plain structure that the call fills.
        let done = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(libc::P_PID, pid, &mut info, libc::WEXITED | libc::WNOWAIT)
        };
        if done == 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return;
        }
    }
}

impl Process {
    /// The leader of the engine's session.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// SIGTERM to the group, a grace, SIGKILL to the session. Nothing of it runs when this returns, unless the kernel does
    /// not let it go.
    pub async fn stop(&self) {
        self.signal(libc::SIGTERM);
        if tokio::time::timeout(GRACE, self.watched.ended()).await.is_err() {
            tracing::warn!(pid = self.identity.pid, "the engine ignores SIGTERM: killing it");
            self.kill();
            if tokio::time::timeout(KILL_TIMEOUT, self.watched.ended()).await.is_err() {
                tracing::error!(pid = self.identity.pid, "the engine cannot be killed: a device or file system hangs");
            }
        }
    }

    /// Ends it at once, without waiting.
    pub fn kill(&self) {
        self.signal(libc::SIGKILL);
    }

    fn signal(&self, signal: libc::c_int) {
        let ours = self.ours.lock().unwrap_or_else(PoisonError::into_inner);
        if *ours {
            process::signal_group(self.identity.pid, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => ended_with(code),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

/// How an engine ended that gave this exit code.
pub(super) fn ended_with(code: i32) -> String {
    format!("exited with code {code}")
}

/// Reads the output to its end on a thread of its own, so that the engine never blocks on a full pipe.
fn follow(mut output: PipeReader, mut log: Log) {
    thread::spawn(move || {
        let mut buffer = vec![0; 16 << 10];
        loop {
            match output.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => log.push(&buffer[..read]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    });
}

#[cfg(test)]
#[path = "launch_tests.rs"]
mod tests;
