//! What is not there (a coordinator for a while, a worker, an engine, what a stored request needs) leaves nothing hanging.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "the other tests use the rest")]
mod support;

use modelmeter_common::{
    RequestId, Timestamp,
    device::Device,
    request::{Request, RequestDoc, RequestState},
    task::{Task, TaskState},
};
use modelmeter_proto::control::{RegisterRequest, Slot, attempt_fate::Fate};
use std::time::Duration;
use support::{House, cpu, slot};

#[tokio::test]
async fn settings_of_an_engine_that_auto_does_not_find_are_no_obstacle() {
    let mut house = House::build(Duration::from_secs(30)).await;
    let id = house
        .submit(|request| {
            (request.engines, request.batch_sizes) = (vec!["auto".into()], vec![1]);
            request.engine_settings.insert("onnx".into(), [("intra_op_threads".to_owned(), 2.into())].into());
        })
        .await;
    let task = house.claim("one").await.unwrap();
    assert_eq!(task.cell.engine, "rten");
    house.measure(&task, 10.0).await;
    assert_eq!(house.ended(id).await.state, RequestState::Done);
    house.close().await;
}

#[tokio::test]
async fn a_stored_request_that_does_not_expand_is_ended() {
    let mut house = House::build(Duration::from_secs(30)).await;
    let asked = house.submit(|_| {}).await;
    let mut stored = RequestDoc { id: RequestId::random(), expanded: false, ..house.request(asked).await };
    stored.request.engine_settings.insert("onnx".into(), [("intra_op_threads".to_owned(), 2.into())].into());
    house.hub.insert_request(&stored).await.unwrap();
    let status = house.ended(stored.id).await;
    assert_eq!((status.state, status.cells.len()), (RequestState::Failed, 0));
    assert!(house.request(stored.id).await.ended_at.is_some());
    house.close().await;
}

#[tokio::test]
async fn more_running_requests_than_the_loops_look_at_are_refused() {
    let mut house = House::build(Duration::from_secs(600)).await;
    let asked = house.submit(|_| {}).await;
    let stored = house.request(asked).await;
    for _ in 1..1000 {
        let another = RequestDoc { id: RequestId::random(), ..stored.clone() };
        house.hub.insert_request(&another).await.unwrap();
    }
    let refused = house.try_submit(RequestId::random(), &stored.request).await.unwrap_err();
    assert!(refused.message().contains("1000 requests are running"), "{refused}");
    assert!(house.try_submit(asked, &stored.request).await.unwrap().existed, "one that runs is none more");
    house.close().await;
}

#[tokio::test]
async fn leases_outlive_a_time_without_a_coordinator() {
    let lease = Duration::from_secs(600);
    let mut house = House::build(lease).await;
    let id = house.submit(|request| request.batch_sizes = vec![1]).await;
    let running = house.claim("one").await.unwrap();
    house.stop().await;
    let held = house.hub.task(running.task_id).await.unwrap().unwrap();
    let mut late = Task { revision: held.revision + 1, ..held.clone() };
    late.lease.as_mut().unwrap().expires_at = Timestamp(0);
    assert!(house.hub.swap_task(&held, &late).await.unwrap());
    house.restart(lease).await;
    house.swept().await;
    assert_eq!(house.fate("one", &running).await, Fate::Renewed, "it had no chance to say that it lives");
    house.measure(&running, 10.0).await;
    assert_eq!(house.ended(id).await.cells[0].attempts, 1);
    house.close().await;
}

#[tokio::test]
async fn what_is_queued_to_a_pool_that_is_gone_waits_for_another() {
    // Nobody renews: after two leases the worker is not counted on. The task's hint is not lost, and nobody will take it.
    let mut house = House::build(Duration::from_millis(100)).await;
    let id = house.submit(|request| request.batch_sizes = vec![1]).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let cell = house.status(id).await.cells.remove(0);
        let reason = cell.reason.unwrap();
        if cell.state == TaskState::Waiting && reason == "its pool is gone; no worker is connected" {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{:?}: {reason}", cell.state);
        if cell.state == TaskState::Waiting {
            // It was not counted on before its task could be queued.
            house.register("one").await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(house.broker.depth(&house.queue).await.unwrap() >= Some(1), "the hint is still there");
    house.close().await;
}

#[tokio::test]
async fn a_budget_is_shared_by_the_slots_that_can_run_the_request() {
    let mut house = House::build(Duration::from_secs(30)).await;
    let gpu = Device { class: "nvidia-a10".into(), ..cpu() };
    let slots = vec![slot(&cpu(), &["onnx"]), Slot { index: 1, ..slot(&gpu, &["rten"]) }];
    let wire_version = modelmeter_common::wire::VERSION.into();
    let other =
        RegisterRequest { worker: "v".into(), incarnation: "v".into(), slots, wire_version, ..Default::default() };
    house.work.register(other).await.unwrap();
    let asked = |request: &mut Request| {
        (request.batch_sizes, request.budget_ms) = ((1..=10).collect(), Some(100_000));
    };
    house.submit(asked).await;
    assert_eq!(house.claim("one").await.unwrap().plan.budget_ms, Some(9_000), "ten tasks, one slot");
    house.close().await;
}

#[tokio::test]
async fn a_budget_on_mixed_pools_is_shared_by_the_slots_with_the_most_to_do() {
    let mut house = House::build(Duration::from_secs(30)).await;
    let gpu = Device { class: "nvidia-a10".into(), ..cpu() };
    let mut slots: Vec<Slot> = (1..9).map(|index| Slot { index, ..slot(&gpu, &["rten"]) }).collect();
    slots.push(slot(&gpu, &["rten"]));
    let wire_version = modelmeter_common::wire::VERSION.into();
    let other =
        RegisterRequest { worker: "v".into(), incarnation: "v".into(), slots, wire_version, ..Default::default() };
    house.work.register(other).await.unwrap();
    let asked = |request: &mut Request| {
        request.devices = vec!["cpu".into(), "nvidia-a10".into()];
        (request.batch_sizes, request.budget_ms) = ((1..=10).collect(), Some(100_000));
    };
    house.submit(asked).await;
    let claimed = house.claim("one").await.unwrap();
    assert_eq!(claimed.plan.budget_ms, Some(9_000), "ten of the twenty tasks run on the only CPU slot, one by one");
    house.close().await;
}
