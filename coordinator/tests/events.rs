//! What a watcher is told: the whole once, then what changes, with a place to resume from.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "the other tests use the rest")]
mod support;

use modelmeter_common::{
    RequestId,
    event::{RequestEvent, What},
    request::RequestState,
    task::TaskState,
};
use modelmeter_proto::control::{CancelRequest, WatchReply, WatchRequest};
use std::time::Duration;
use support::{
    House,
    watcher::{Watcher, events},
    watching,
};

const LEASE: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(20);
const CELLS: u32 = 1000;
const CELLS_TRIED: usize = 5;

async fn cancel(house: &mut House, id: RequestId) {
    let request = CancelRequest { request_id: id.to_string(), reason: String::new() };
    house.control.cancel(request).await.unwrap();
}

#[tokio::test]
async fn a_watcher_of_many_cells_is_told_what_changes_and_no_more() {
    let mut house = House::build(LEASE).await;
    house.hears().await;
    let id = house.submit(|request| request.batch_sizes = (1..=CELLS).collect()).await;
    let mut watcher = Watcher::begin(&mut house.control, watching(id)).await;
    assert_eq!(watcher.status.cells.len(), CELLS as usize);
    let whole = watcher.last.status_json.len();
    watcher.until(|told| told.count(TaskState::Queued) == 2).await;
    // Where something cannot be told as an event the whole is told: the next cell shows what one costs.
    let mut costs = None;
    for cell in 1..=CELLS_TRIED {
        watcher.events.clear();
        let task = house.claim("one").await.unwrap();
        house.measure(&task, 10.0).await;
        let (mut bytes, mut is_whole) = (0, false);
        let is_told = |watcher: &Watcher| watcher.events.iter().any(|e| matches!(e.what, What::CellDone { .. }));
        while watcher.count(TaskState::Done) < cell || !(is_whole || is_told(&watcher)) {
            let next =
                tokio::time::timeout(LIMIT, watcher.replies.message()).await.expect("it is told").unwrap().unwrap();
            bytes += next.status_json.len() + next.events_json.iter().map(String::len).sum::<usize>();
            is_whole |= !next.status_json.is_empty();
            watcher.take(next);
        }
        if !is_whole {
            costs = Some((bytes, task));
            break;
        }
    }
    let (bytes, task) = costs.expect("a cell is told as events");
    assert!(bytes < whole / 20, "{bytes} bytes for one cell of {CELLS}, which are {whole}");
    assert!(watcher.events.windows(2).all(|pair| pair[0].seq < pair[1].seq), "{:?}", watcher.events);
    let measured =
        |event: &RequestEvent| matches!(event.what, What::PointMeasured { task_id, .. } if task_id == task.task_id);
    assert_eq!(watcher.events.iter().filter(|event| measured(event)).count(), 1);

    cancel(&mut house, id).await;
    let ended = house.ended(id).await;
    assert_eq!(ended.state, RequestState::Cancelled);
    watcher.until(|told| told.status.state.is_terminal()).await;
    assert_eq!(watcher.status, ended);
    house.close().await;
}

#[tokio::test]
async fn a_watch_is_resumed_after_what_was_told() {
    let mut house = House::build(LEASE).await;
    house.hears().await;
    let id = house.submit(|request| request.batch_sizes = vec![1, 2]).await;
    let mut watcher = Watcher::begin(&mut house.control, watching(id)).await;
    let task = house.claim("one").await.unwrap();
    watcher.until(|told| told.count(TaskState::Claimed) == 1).await;
    let WatchReply { feed, seq, .. } = watcher.last.clone();
    drop(watcher);
    house.measure(&task, 10.0).await;

    let after = WatchRequest { request_id: id.to_string(), feed, after_seq: seq };
    let mut replies = house.control.watch(after.clone()).await.unwrap().into_inner();
    let mut told = Vec::new();
    while !told.iter().any(|event: &RequestEvent| matches!(event.what, What::CellDone { .. })) {
        let next = tokio::time::timeout(LIMIT, replies.message()).await.expect("it is told").unwrap().unwrap();
        assert!(next.status_json.is_empty(), "it knows where the request stands");
        told.extend(events(&next));
    }
    assert!(told.iter().all(|event| event.seq > seq), "after {seq}: {told:?}");

    // A place that no coordinator knows any more: from the start.
    let elsewhere = WatchRequest { feed: uuid::Uuid::new_v4().to_string(), ..after };
    let watcher = Watcher::begin(&mut house.control, elsewhere).await;
    assert_eq!(watcher.count(TaskState::Done), 1);
    house.close().await;
}
