//! The adapters of embedded mode, which need no server: the memory broker and the SQLite hub pass the conformance suites.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use modelmeter_common::broker::{Broker, memory::MemoryBroker};
use modelmeter_coordinator::hub::{Hub, sqlite};
use modelmeter_tests::conformance::{
    broker,
    hub::{self, speed::speed},
};
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_broker_conforms() {
    let make = || async { Arc::new(MemoryBroker::new()) as Arc<dyn Broker> };
    broker::run_all(make).await;
    broker::fanout::run_all(make).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sqlite_hub_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = sqlite::open(&folder.path().join("new/folders/hub.db")).unwrap();
    hub::suite(Arc::new(sqlite)).await;
    let incoming = std::fs::read_dir(folder.path().join("new/folders/hub.db.artifacts")).unwrap();
    let left: Vec<_> = incoming.map(|entry| entry.unwrap().file_name()).filter(|name| name.len() != 64).collect();
    assert_eq!(left, Vec::<std::ffi::OsString>::new(), "no upload leaves a file behind");
}

/// Undoes what files of earlier builds lack.
const WITHOUT_KEYS: &str = "DROP INDEX tasks_waiting; ALTER TABLE tasks DROP COLUMN kind; DROP TRIGGER profile_inserted; DROP TRIGGER profile_replaced; DROP TABLE profile_keys;
    DROP TABLE profile_labels; DROP VIEW profile_keys_of";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sqlite_hub_answers_queries_as_a_list_does() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.db");
    hub::query::suite(Arc::new(sqlite::open(&path).unwrap()), 1500).await;
    // A file of an earlier build, which had no keys, is given them when it is opened.
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch(WITHOUT_KEYS).unwrap();
    drop(other);
    hub::query::asks(&sqlite::open(&path).unwrap(), 200).await;
}

/// The floor is far below what is usual, since the machine may be busy; the figures are printed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_share_the_commits_of_a_sqlite_hub() {
    let folder = tempfile::tempdir().unwrap();
    let hub: Arc<dyn Hub> = Arc::new(sqlite::open(&folder.path().join("hub.db")).unwrap());
    for (callers, n) in [(1, 100), (32, 50)] {
        let speed = speed(&hub, callers, n).await;
        eprintln!("{callers} callers: {speed:.0?}");
        assert!(speed.swaps_per_s > 20.0 && speed.parts_per_s > 20.0, "{callers} callers: {speed:.0?}");
    }
}
