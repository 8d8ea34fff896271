//! What is not there yet is waited for: said once, and ended by Ctrl-C.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "the other tests use the rest")]
mod support;

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    os::fd::AsRawFd,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};
use support::command;

const LIMIT: Duration = Duration::from_secs(60);

/// A started command, and the lines of its standard error as they come.
struct Started {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Started {
    fn new(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (stderr, (sender, lines)) = (child.stderr.take().unwrap(), mpsc::channel());
        thread::spawn(move || {
            BufReader::new(stderr).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines }
    }

    /// The line in which it says that it waits.
    fn waits(&self) -> String {
        let mut seen = Vec::new();
        loop {
            let line = self.lines.recv_timeout(LIMIT).unwrap_or_else(|e| panic!("{e}: {seen:?}"));
            if line.starts_with("waiting: ") {
                return line;
            }
            seen.push(line);
        }
    }

    /// Ends it as Ctrl-C does.
    fn interrupt(&self) {
        // SAFETY: a plain system call on a child that is not waited for yet.
        assert_eq!(unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGINT) }, 0);
    }

    /// Its exit code, and what else it said.
    fn ended(mut self) -> (Option<i32>, Vec<String>) {
        let code = self.child.wait().unwrap().code();
        (code, self.lines.iter().collect())
    }
}

fn hold(path: &Path) -> File {
    let file = File::create(path).unwrap();
    // SAFETY: the descriptor is open.
    assert_eq!(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) }, 0);
    file
}

fn profile(home: &Path) -> Started {
    let words =
        ["profile", "mlp", "--batch-sizes", "1", "--concurrency", "1", "--batches", "20", "--max-duration", "1s"];
    Started::new(command(home, &words))
}

#[test]
fn a_profile_waits_for_whoever_measures_in_its_home() {
    let home = tempfile::tempdir().unwrap();
    let held = hold(&home.path().join("lock"));
    let waiting = profile(home.path());
    let said = waiting.waits();
    assert!(said.contains(&format!("pid {}", std::process::id())) && said.contains("--no-wait"), "{said}");
    drop(held);
    let (code, said) = waiting.ended();
    assert_eq!(code, Some(0), "{said:?}");
    assert!(!said.iter().any(|line| line.starts_with("waiting: ")), "said once: {said:?}");
}

#[test]
fn a_profile_waits_for_a_device_and_ctrl_c_ends_the_wait() {
    let home = tempfile::tempdir().unwrap();
    let locks = home.path().join("locks");
    fs::create_dir(&locks).unwrap();
    let cores = thread::available_parallelism().unwrap().get();
    let held: Vec<File> = (0..cores.max(64)).map(|core| hold(&locks.join(format!("cpu-core-{core}")))).collect();
    let (first, second) = (profile(home.path()), tempfile::tempdir().unwrap());
    let said = first.waits();
    assert!(said.contains("device cpu-core-") && said.contains(&format!("pid {}", std::process::id())), "{said}");
    first.interrupt();
    assert_eq!(first.ended().0, Some(130));
    // With a home of its own and the same locks.
    let mut patient =
        command(second.path(), &["profile", "mlp", "--batch-sizes", "1", "--concurrency", "1", "--batches", "20"]);
    patient.env("MODELMETER_WORKER_LOCK_DIR", &locks);
    let patient = Started::new(patient);
    patient.waits();
    drop(held);
    let (code, said) = patient.ended();
    assert_eq!(code, Some(0), "{said:?}");
}

#[test]
fn services_wait_for_their_broker_and_say_so() {
    let home = tempfile::tempdir().unwrap();
    // Port 1 answers nobody.
    let broker = ["--broker", "amqp://joe:hunter2@127.0.0.1:1"];
    let coordinator = ["coordinator", "--hub", "hub.sqlite", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let worker = ["worker", "--coordinator", "http://127.0.0.1:1"];
    for words in [[&coordinator[..], &broker].concat(), [&worker[..], &broker].concat()] {
        let waiting = Started::new(command(home.path(), &words));
        let said = waiting.waits();
        assert!(said.contains("cannot reach the broker at 127.0.0.1:1") && !said.contains("hunter2"), "{said}");
        waiting.interrupt();
        assert_eq!(waiting.ended().0, Some(130), "{words:?}");
    }
}
