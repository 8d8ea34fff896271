//! What the SQLite adapter adds to the conformance suite: a file that stays, that two processes share, and
//! clear refusals.

use super::{
    super::{ProfileQuery, Profiles as _, TaskFilter, TaskKind, Work as _},
    *,
};
use crate::aggregate;
use modelmeter_common::request::RequestState;
use modelmeter_tests::documents as docs;

fn hub() -> (tempfile::TempDir, PathBuf, SqliteHub) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.db");
    let hub = open(&path).unwrap();
    (folder, path, hub)
}

fn refusal(path: &Path) -> String {
    match open(path) {
        Ok(_) => panic!("opened {}", path.display()),
        Err(error) => {
            assert!(matches!(error, HubError::Storage(_)), "{error}");
            error.to_string()
        }
    }
}

#[tokio::test]
async fn two_hubs_on_one_file_see_each_other_and_it_outlives_them() {
    let (_folder, path, a) = hub();
    let b = open(&path).unwrap();
    let request = docs::request("m", RequestState::Running, 0);
    assert_eq!(a.insert_request(&request).await.unwrap(), Inserted::New);
    assert_eq!(b.insert_request(&request).await.unwrap(), Inserted::Existed);
    let task = docs::task(request.id, 0);
    b.insert_tasks(std::slice::from_ref(&task)).await.unwrap();
    let next = task.queue(&"p".into(), docs::at(1)).unwrap();
    let (one, other) = tokio::join!(a.swap_task(&task, &next), b.swap_task(&task, &next));
    assert!(one.unwrap() != other.unwrap(), "exactly one wins");
    drop((a, b));
    assert_eq!(open(&path).unwrap().task(task.id).await.unwrap(), Some(next));
}

#[tokio::test]
async fn while_another_process_holds_the_write_lock_reads_go_on() {
    let (_folder, path, hub) = hub();
    let request = docs::request("m", RequestState::Running, 0);
    hub.insert_request(&request).await.unwrap();
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(hub.request(request.id).await.unwrap(), Some(request.clone()));
    let late = docs::request("late", RequestState::Running, 1);
    // Read and write in one batch: the write is refused in the end, and not half done.
    let (write, read) = tokio::join!(hub.insert_request(&late), hub.request(request.id));
    assert!(matches!(write, Err(HubError::TimedOut(_))), "{write:?}");
    assert_eq!(read.unwrap(), Some(request));
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(hub.request(late.id).await.unwrap(), None);
    assert_eq!(hub.insert_request(&late).await.unwrap(), Inserted::New);
}

#[test]
fn a_place_that_cannot_be_written_is_refused_with_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "not a database, and long enough to be read as the header of one, which it is not").unwrap();
    assert!(refusal(&file.join("hub.db")).contains("file"));
    assert!(refusal(Path::new("/proc/hub.db")).contains("/proc/hub.db"));
    assert!(refusal(folder.path()).contains(&folder.path().display().to_string()), "a folder is no file");
    let text = refusal(&file);
    assert!(text.contains("file") && text.contains("not a hub"), "{text}");
}

/// What version 1 wrote, row by row: each table's columns, its documents as JSON.
const VERSION_1: &str = include_str!("../../../tests/golden/v1.json");

#[tokio::test]
async fn documents_of_version_1_still_read_and_fold() {
    let (_folder, path, hub) = hub();
    let golden: serde_json::Value = serde_json::from_str(VERSION_1).unwrap();
    let other = rusqlite::Connection::open(&path).unwrap();
    for (table, rows) in golden.as_object().unwrap() {
        for row in rows.as_array().unwrap() {
            let row = row.as_object().unwrap();
            let names: Vec<&str> = row.keys().map(String::as_str).collect();
            let marks = vec!["?"; names.len()].join(", ");
            let insert = format!("INSERT INTO {table} ({}) VALUES ({marks})", names.join(", "));
            let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let values = row.values().map(|value| (!value.is_null()).then(|| text(value)));
            other.execute(&insert, rusqlite::params_from_iter(values)).unwrap();
        }
    }
    other.pragma_update(None, "user_version", 1).unwrap();
    drop((other, hub));
    let hub = open(&path).unwrap();
    let profile = &hub.profiles(&ProfileQuery::default()).await.unwrap().items[0];
    assert_eq!(profile.schema_version, 1);
    let mut waiting = hub.tasks(&TaskFilter::default()).await.unwrap().remove(0);
    let stored = waiting.clone();
    (waiting.state, waiting.revision) = (modelmeter_common::task::TaskState::Waiting, stored.revision + 1);
    assert!(hub.swap_task(&stored, &waiting).await.unwrap());
    let kind = TaskKind {
        engine: waiting.cell.engine.clone(),
        format: waiting.cell.artifact.as_ref().map(|artifact| artifact.format),
        device_class: waiting.cell.device_class.clone(),
        inspector: waiting.cell.inspector.clone(),
    };
    assert_eq!(hub.waiting_tasks(waiting.request_id, &[kind], 5).await.unwrap(), [waiting.clone()]);
    let back = modelmeter_common::task::Task { revision: waiting.revision + 1, ..stored };
    assert!(hub.swap_task(&waiting, &back).await.unwrap());
    let latency = &profile.points[0].latency_ms;
    assert!(latency.p50.unwrap().ci95.is_some() && latency.p95.is_none(), "it withheld p95: {latency:?}");
    let reference = profile.reference.as_ref().unwrap();
    assert!(reference.p50_latency_ms.is_some() && reference.p50_latency_ci95_ms.is_none());
    // Its parts fold to a profile of today's version with the same figures.
    let request = hub.request(profile.request_id).await.unwrap().unwrap();
    let task = hub.tasks(&TaskFilter { request: Some(request.id), ..Default::default() }).await.unwrap().remove(0);
    let last = hub.finals(task.id).await.unwrap().remove(0);
    let parts = hub.parts(task.id, 1).await.unwrap().into_iter().map(|(part, _)| part).collect();
    let folded = aggregate::profile(&request, &[task], &[aggregate::Measured { repeat: 0, last, parts }], 1);
    assert_eq!(folded.schema_version, SCHEMA_VERSION);
    let again = &folded.points[0].latency_ms;
    assert_eq!(again.p50.unwrap().ci95, latency.p50.unwrap().ci95);
    assert!(again.p95.is_some_and(|p95| p95.ci95.is_none()), "what was seen is shown: {again:?}");
    assert_eq!(folded.peak.unwrap().summary.load, profile.peak.as_ref().unwrap().summary.load);
    let version: u32 =
        rusqlite::Connection::open(&path).unwrap().pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version, SCHEMA_VERSION, "older programs leave it alone from now on");
}

#[test]
fn a_hub_of_a_newer_modelmeter_is_left_alone() {
    let (_folder, path, hub) = hub();
    drop(hub);
    let other = rusqlite::Connection::open(&path).unwrap();
    other.pragma_update(None, "user_version", SCHEMA_VERSION + 1).unwrap();
    assert!(refusal(&path).contains("newer modelmeter"));
}

#[tokio::test]
async fn a_damaged_document_is_corrupt_and_named() {
    let (_folder, path, hub) = hub();
    let request = docs::request("m", RequestState::Running, 0);
    hub.insert_request(&request).await.unwrap();
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute("UPDATE requests SET doc = '{\"_id\": 1}'", []).unwrap();
    let read = hub.request(request.id).await;
    assert!(matches!(read, Err(HubError::Corrupt { what: "request", .. })), "{read:?}");
}
