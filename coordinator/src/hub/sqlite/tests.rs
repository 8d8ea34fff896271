//! What the SQLite adapter adds to the conformance suite: a file that stays, that two processes share, and
//! clear refusals.

use super::super::{conformance, conformance::documents as docs};
use super::*;
use modelmeter_common::request::RequestState;
use std::sync::Arc;

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passes_the_conformance_suite() {
    let folder = tempfile::tempdir().unwrap();
    let hub = open(&folder.path().join("new/folders/hub.db")).unwrap();
    conformance::suite(Arc::new(hub)).await;
    let incoming = std::fs::read_dir(folder.path().join("new/folders/hub.db.artifacts")).unwrap();
    let left: Vec<_> = incoming.map(|entry| entry.unwrap().file_name()).filter(|name| name.len() != 64).collect();
    assert_eq!(left, Vec::<std::ffi::OsString>::new(), "no upload leaves a file behind");
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
    let next = task.queue("p", docs::at(1)).unwrap();
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

/// The floor is far below what is usual, since the machine may be busy; the figures are printed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_share_the_commits() {
    let (_folder, _, hub) = hub();
    let hub: Arc<dyn Hub> = Arc::new(hub);
    for (callers, n) in [(1, 100), (32, 50)] {
        let speed = conformance::speed::speed(&hub, callers, n).await;
        eprintln!("{callers} callers: {speed:.0?}");
        assert!(speed.swaps_per_s > 20.0 && speed.parts_per_s > 20.0, "{callers} callers: {speed:.0?}");
    }
}
