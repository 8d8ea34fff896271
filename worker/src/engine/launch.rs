//! Engine processes: started so that they cannot outlive the worker, and ended with all that they started.
//!
//! Each is the leader of a session of its own and asks the kernel to be killed when its parent dies. The kernel
//! takes the parent to be the *thread* that forked, so all are forked by one thread that lives as long as the
//! worker. An engine whose leader has ended is over: the rest of its session is killed before the leader is
//! reaped, while its pid cannot mean anything else.

use crate::{
    cpus::set_of,
    process::{self, Identity},
};
use modelmeter_common::{Code, Problem};
use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, PipeReader, PipeWriter, Read, Write},
    os::{
        fd::RawFd,
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    sync::{Arc, Mutex, OnceLock, PoisonError, mpsc},
    thread,
    time::Duration,
};
use tokio::sync::{oneshot, watch};

/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(3);
/// For the last output of a process that has ended to be read.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Lines kept for errors, and bytes of each.
const TAIL_LINES: usize = 40;
const LINE_BYTES: usize = 400;
/// A log file grows to this and no further.
const LOG_BYTES: u64 = 16 << 20;

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

/// How many engines have not wholly ended yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Census(Arc<watch::Sender<usize>>);

impl Census {
    /// Completes when there is none.
    pub async fn none_left(&self) {
        // Cannot fail: the sender is our own.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

/// A started engine. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    identity: Identity,
    log_path: PathBuf,
    exit: watch::Receiver<Option<ExitStatus>>,
    tail: watch::Receiver<Tail>,
    /// Whether the leader's pid is still ours to signal: cleared before it is reaped.
    ours: Arc<Mutex<bool>>,
}

type Job = (Command, oneshot::Sender<Result<Process, Problem>>);

/// Starts an engine.
///
/// # Errors
/// `not_installed` if the program is not there, `engine_failed` if it cannot be started, `storage` without a log.
pub(crate) async fn start(command: Command) -> Result<Process, Problem> {
    static LAUNCHER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let launcher = LAUNCHER.get_or_init(|| {
        let (jobs, queue) = mpsc::channel::<Job>();
        thread::spawn(move || {
            for (command, reply) in queue {
                // A caller that has gone drops the process, which ends it.
                let _ = reply.send(fork(command));
            }
        });
        jobs
    });
    let gone = || Problem::new(Code::Internal, "the launcher thread has ended");
    let (reply, started) = oneshot::channel();
    launcher.send((command, reply)).map_err(|_| gone())?;
    started.await.map_err(|_| gone())?
}

fn fork(mut command: Command) -> Result<Process, Problem> {
    let (log, talk) = (open_log(&command.log)?, command.talk.take());
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
    let tail = follow(output, log);
    let identity = Identity::of(child.id());
    let ours = Arc::new(Mutex::new(true));
    let exit = reap_later(child, ours.clone(), command.census);
    // Not reaped before `reap_later` ends, so a zombie at worst: its stat can be read.
    let identity = identity.ok_or_else(|| Problem::new(Code::EngineFailed, "the engine ended as it was started"))?;
    Ok(Process { identity, log_path: command.log, exit, tail, ours })
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
fn reap_later(mut child: Child, ours: Arc<Mutex<bool>>, census: Census) -> watch::Receiver<Option<ExitStatus>> {
    let (exit, receiver) = watch::channel(None);
    census.0.send_modify(|count| *count += 1);
    thread::spawn(move || {
        wait_unreaped(child.id());
        process::kill_session(child.id());
        let mut ours = ours.lock().unwrap_or_else(PoisonError::into_inner);
        *ours = false;
        let status = child.wait().unwrap_or_else(|_| ExitStatus::from_raw(0));
        drop(ours);
        exit.send_replace(Some(status));
        census.0.send_modify(|count| *count -= 1);
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

    pub fn log_path(&self) -> &Path {
        &self.log_path
    }

    pub fn is_alive(&self) -> bool {
        self.exit.borrow().is_none()
    }

    /// Completes when it has ended; says how, as in "exited with code 1".
    pub async fn ended(&self) -> String {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await.ok().and_then(|status| *status) {
            Some(status) => describe(status),
            None => "ended".into(),
        }
    }

    /// SIGTERM to the group, a grace, SIGKILL to the session. Nothing of it runs when this returns.
    pub async fn stop(&self) {
        self.signal(libc::SIGTERM);
        if tokio::time::timeout(GRACE, self.ended()).await.is_err() {
            tracing::warn!(pid = self.identity.pid, "the engine ignores SIGTERM: killing it");
            self.kill();
            self.ended().await;
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

    /// The last lines that it wrote.
    pub async fn last_lines(&self) -> String {
        let mut tail = self.tail.clone();
        if !self.is_alive() {
            // Its output may still be on the way; a descendant that escaped may hold it open for ever.
            let _ = tokio::time::timeout(LAST_WORDS, tail.wait_for(|tail| tail.ended)).await;
        }
        let lines = tail.borrow();
        lines.text()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

fn open_log(path: &Path) -> Result<File, Problem> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)
        .and_then(|()| File::create(path))
        .map_err(|e| Problem::new(Code::Storage, format!("cannot write {}: {e}", path.display())).with_field("home"))
}

/// The end of an engine's output.
#[derive(Debug, Default)]
struct Tail {
    lines: VecDeque<Vec<u8>>,
    ended: bool,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|&b| b == b'\n') {
            match self.lines.back_mut() {
                Some(line) if line.last() != Some(&b'\n') => extend_line(line, piece),
                _ => {
                    let mut line = Vec::new();
                    extend_line(&mut line, piece);
                    self.lines.push_back(line);
                }
            }
        }
        while self.lines.len() > TAIL_LINES {
            self.lines.pop_front();
        }
    }

    fn text(&self) -> String {
        let lines: Vec<_> = self.lines.iter().map(|line| String::from_utf8_lossy(line).trim_end().to_owned()).collect();
        lines.join("\n")
    }
}

/// Adds to a line up to its cap; its end is always kept.
fn extend_line(line: &mut Vec<u8>, piece: &[u8]) {
    let (text, newline) = match piece.split_last() {
        Some((b'\n', text)) => (text, true),
        _ => (piece, false),
    };
    let room = LINE_BYTES.saturating_sub(line.len());
    line.extend_from_slice(&text[..text.len().min(room)]);
    if newline {
        line.push(b'\n');
    }
}

/// Reads the output to its end on a thread of its own, so that the engine never blocks on a full pipe.
fn follow(mut output: PipeReader, mut log: File) -> watch::Receiver<Tail> {
    let (tail, receiver) = watch::channel(Tail::default());
    thread::spawn(move || {
        let (mut buffer, mut logged) = (vec![0; 16 << 10], 0);
        loop {
            let read = match output.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            if logged < LOG_BYTES {
                logged += read as u64;
                // A full disk must not stop the engine: the tail is kept all the same.
                let _ = log.write_all(&buffer[..read]);
            }
            tail.send_modify(|tail| tail.push(&buffer[..read]));
        }
        tail.send_modify(|tail| tail.ended = true);
    });
    receiver
}

#[cfg(test)]
#[path = "launch_tests.rs"]
mod tests;
