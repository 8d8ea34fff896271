//! Real children: each way for one to end, or not to.

use super::*;
use crate::testing::until;
use std::{fs, path::Path, time::Instant};

fn shell(folder: &Path, script: &str) -> Command {
    Command {
        what: "engine test".into(),
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        env: vec![("GREETING".into(), "hello".into())],
        cores: None,
        inherit: Vec::new(),
        log: folder.join("logs/test.log"),
        census: Census::default(),
        talk: None,
    }
}

async fn until_said(process: &Process, word: &str) {
    until(&format!("the child says {word}"), || process.watched.tail.borrow().text().contains(word)).await;
}

fn nothing_left(process: &Process) -> bool {
    process::session_members(process.identity().pid).is_empty()
}

#[tokio::test]
async fn a_child_that_dies_at_once_leaves_its_last_words() {
    let folder = tempfile::tempdir().unwrap();
    let process = start(shell(folder.path(), "echo $GREETING; echo no such model >&2; exit 7")).await.unwrap();
    assert_eq!(process.watched.ended().await, "exited with code 7");
    assert_eq!(process.watched.last_lines().await, "hello\nno such model");
    assert_eq!(fs::read_to_string(&process.watched.log_path).unwrap(), "hello\nno such model\n");
}

#[tokio::test]
async fn a_program_that_is_not_there_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let command = Command { program: "/nonexistent/engine".into(), ..shell(folder.path(), "") };
    let problem = start(command).await.unwrap_err();
    assert_eq!(problem.code, Code::NotInstalled);
    assert!(problem.message.contains("/nonexistent/engine"), "{problem}");
}

#[tokio::test]
async fn a_polite_child_ends_at_sigterm_without_the_grace() {
    let folder = tempfile::tempdir().unwrap();
    let process = start(shell(folder.path(), "echo up; exec sleep 1000")).await.unwrap();
    until_said(&process, "up").await;
    let started = Instant::now();
    process.stop().await;
    assert!(started.elapsed() < GRACE / 2);
    assert_eq!(process.watched.ended().await, "was killed by signal 15");
}

#[tokio::test]
async fn a_child_that_ignores_sigterm_is_killed_with_its_grandchildren() {
    let folder = tempfile::tempdir().unwrap();
    // The grandchildren: one in the group, one in a group of its own, as job control makes them.
    let script =
        "trap '' TERM; sleep 1000 & set -m; (trap '' TERM; sleep 1000) & echo up; while :; do sleep 0.05; done";
    let process = start(shell(folder.path(), script)).await.unwrap();
    until_said(&process, "up").await;
    until("three processes run", || process::session_members(process.identity().pid).len() >= 3).await;
    process.stop().await;
    assert!(nothing_left(&process));
    assert_eq!(process.watched.ended().await, "was killed by signal 9");
}

#[tokio::test]
async fn grandchildren_do_not_outlive_a_leader_that_ends_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let process = start(shell(folder.path(), "sleep 1000 & sleep 1000 & echo bye")).await.unwrap();
    assert_eq!(process.watched.ended().await, "exited with code 0");
    assert!(nothing_left(&process));
    assert_eq!(process.watched.last_lines().await, "bye");
}

#[tokio::test]
async fn a_dropped_child_is_killed_and_reaped() {
    let folder = tempfile::tempdir().unwrap();
    let command = shell(folder.path(), "sleep 1000 & echo up; sleep 1000");
    let census = command.census.clone();
    let process = start(command).await.unwrap();
    until_said(&process, "up").await;
    let identity = process.identity();
    drop(process);
    census.none_left().await;
    assert_ne!(Identity::of(identity.pid), Some(identity));
    assert!(process::session_members(identity.pid).is_empty());
}

#[tokio::test]
async fn a_child_is_pinned_and_leads_its_own_session() {
    let folder = tempfile::tempdir().unwrap();
    let core = modelmeter_meter::threads::available_cores()[0];
    let script = "grep Cpus_allowed_list /proc/self/status; exec sleep 1000";
    let process = start(Command { cores: Some(vec![core]), ..shell(folder.path(), script) }).await.unwrap();
    until_said(&process, "Cpus_allowed_list").await;
    let said = process.watched.tail.borrow().text();
    assert_eq!(said.split_whitespace().last(), Some(core.to_string().as_str()));
    assert_eq!(process::session_members(process.identity().pid), [process.identity().pid]);
    process.stop().await;
}
