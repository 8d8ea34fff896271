//! The whole coordinator over its own gRPC, on the memory broker and the sqlite hub, with a worker that is played by
//! the test: what it is granted, what it publishes, and what becomes of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "the other tests use the rest")]
mod support;

use modelmeter_common::{
    Code, Problem, RequestId,
    part::Outcome,
    profile::ProfileState,
    request::{Request, RequestState},
    task::TaskState,
    wire,
};
use modelmeter_proto::control::{
    CancelRequest, ClaimNextRequest, ResultsRequest, SubmitRequest, attempt_fate::Fate, refused::Why,
};
use std::time::Duration;
use support::{House, outcome};
use tonic::transport::Channel;

#[tokio::test]
async fn a_request_walks_the_whole_path() {
    let mut house = House::build(Duration::from_secs(30)).await;
    let id = house.submit(|request| request.batch_sizes = vec![1, 2, 4]).await;
    let first = house.claim("one").await.unwrap();
    house.measure(&first, 10.0).await;
    // The rest by ClaimNext: one deployment serves them all.
    let mut last = first;
    for _ in 0..2 {
        let next = ClaimNextRequest {
            after_task_id: last.task_id.to_string(),
            worker: "w".into(),
            incarnation: "one".into(),
            slot: 0,
        };
        last = outcome(house.work.claim_next(next).await.unwrap().into_inner().outcome).unwrap();
        house.measure(&last, 20.0).await;
        house.measure(&last, 20.0).await; // doubled: absorbed
    }
    let status = house.ended(id).await;
    assert_eq!(status.state, RequestState::Done);
    assert!(status.cells.iter().all(|cell| cell.state == TaskState::Done && cell.attempts == 1), "{status:?}");
    let profiles = house.profiles(id).await;
    assert_eq!(profiles.len(), 3);
    for profile in &profiles {
        assert_eq!((profile.state, profile.repeats.len()), (ProfileState::Done, 1));
        let inferences = profile.peak.as_ref().unwrap().summary.throughput_inferences_per_s.unwrap();
        let rate = if profile.batch_size == profiles[0].batch_size {
            inferences / f64::from(profile.batch_size)
        } else {
            20.0
        };
        assert!(rate == 10.0 || rate == 20.0);
        assert_eq!(profile.engine.version.as_deref(), Some("0.27"));
    }
    house.close().await;
}

#[tokio::test]
async fn failures_are_tried_three_times_and_bad_results_once() {
    let mut house = House::build(Duration::from_secs(30)).await;
    let id = house.submit(|request| request.batch_sizes = vec![1]).await;
    for attempt in 1..=3 {
        let task = house.claim("one").await.unwrap();
        assert_eq!(task.attempt, attempt);
        let error = Problem::new(Code::EngineFailed, "the engine died: out of memory");
        house.publish(&task, &[], Outcome::Failed { error }).await;
    }
    let status = house.ended(id).await;
    assert_eq!((status.state, status.cells[0].attempts), (RequestState::Failed, 3));
    assert!(status.cells[0].reason.as_ref().unwrap().contains("out of memory"));
    assert_eq!(house.profiles(id).await[0].error.as_ref().unwrap().code, Code::EngineFailed);

    let id = house.submit(|request| request.batch_sizes = vec![1]).await;
    let task = house.claim("one").await.unwrap();
    house.publish(&task, &[], Outcome::Failed { error: Problem::new(Code::BadResponse, "NaN") }).await;
    assert_eq!(house.ended(id).await.cells[0].attempts, 1, "the same answer would come again");
    house.close().await;
}

#[tokio::test]
async fn a_lost_lease_is_run_again_and_the_first_complete_attempt_wins() {
    let mut house = House::build(Duration::from_millis(400)).await;
    let id = house.submit(|request| request.batch_sizes = vec![1]).await;
    let frozen = house.claim("one").await.unwrap();
    // Nobody renews: the lease runs out, the task is queued again, and the worker, seen again, takes it anew.
    house.register("one").await;
    let again = loop {
        match house.claim("one").await {
            Ok(task) => break task,
            Err(Why::Held) => {}
            Err(Why::StaleWorker) => drop(house.register("one").await),
            Err(why) => panic!("{why:?}"),
        }
    };
    assert_eq!(again.attempt, frozen.attempt + 1);
    assert_eq!(house.fate("one", &frozen).await, Fate::Lost);
    assert_eq!(house.fate("one", &again).await, Fate::Renewed);
    house.measure(&frozen, 10.0).await;
    house.ended(id).await;
    house.measure(&again, 99.0).await;
    assert_eq!(house.fate("one", &again).await, Fate::Terminal);
    let profiles = house.profiles(id).await;
    assert_eq!(profiles.len(), 1);
    assert_eq!(profiles[0].repeats[0].attempt, frozen.attempt, "the first complete one, never a mixture");
    assert_eq!(profiles[0].points[0].requests, 100);
    house.close().await;
}

#[tokio::test]
async fn a_claim_whose_reply_was_lost_is_granted_again_and_no_other() {
    let mut house = House::build(Duration::from_secs(600)).await;
    let id = house.submit(|request| request.batch_sizes = vec![1]).await;
    let task_id = house.hint().await;
    let first = house.claim_task(task_id, "one", "a").await.unwrap();
    assert_eq!(house.claim_task(task_id, "one", "a").await.unwrap(), first);
    assert_eq!(house.claim_task(task_id, "one", "b").await, Err(Why::Held), "a doubled hint is another claim");
    house.measure(&first, 10.0).await;
    assert_eq!(house.ended(id).await.cells[0].attempts, 1);
    assert_eq!(house.claim_task(task_id, "one", "a").await, Err(Why::Terminal));
    house.close().await;
}

#[tokio::test]
async fn a_new_incarnation_ends_the_leases_of_the_old_one() {
    let mut house = House::build(Duration::from_secs(600)).await;
    let id = house.submit(|request| request.batch_sizes = vec![1]).await;
    let before = house.claim("one").await.unwrap();
    house.register("two").await;
    let after = house.claim("two").await.unwrap();
    assert_eq!((after.task_id, after.attempt), (before.task_id, 2));
    let renewed = house.renew("one").await;
    assert!(renewed.replaced && !renewed.register_again, "two that live do not end each other's work in turn");
    assert!(!house.renew("two").await.replaced);
    house.measure(&after, 10.0).await;
    assert_eq!(house.ended(id).await.state, RequestState::Done);
    house.close().await;
}

#[tokio::test]
async fn a_worker_of_another_wire_version_is_refused() {
    let mut house = House::build(Duration::from_secs(30)).await;
    let refused = house.try_register("two", wire::VERSION + 1).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert!(refused.message().contains("wire version"), "{refused}");
    assert!(house.try_register("two", wire::PREVIOUS - 1).await.is_err());
    house.close().await;
}

#[tokio::test]
async fn a_worker_of_the_previous_wire_version_works() {
    let mut house = House::build(Duration::from_secs(30)).await;
    house.try_register("two", wire::PREVIOUS).await.unwrap();
    assert_eq!(house.hub.workers().await.unwrap()[0].wire_version, wire::PREVIOUS);
    let id = house.submit(|request| request.batch_sizes = vec![1]).await;
    // Bytes 4 and 5 of an envelope are its version: such a worker reads no other.
    let mut hints = house.broker.consume(&house.queue, 1).await.unwrap();
    let hint = tokio::time::timeout(Duration::from_secs(10), hints.next()).await.expect("a hint").unwrap();
    assert_eq!(hint.body[4..6], wire::PREVIOUS.to_be_bytes());
    hint.requeue().await.unwrap();
    drop(hints);
    let task = house.claim("two").await.unwrap();
    house.measure(&task, 10.0).await;
    assert_eq!(house.ended(id).await.state, RequestState::Done);
    house.close().await;
}

#[tokio::test]
async fn what_is_handed_back_waits_and_counts_only_where_the_request_does_not() {
    let mut house = House::build(Duration::from_secs(30)).await;
    let id = house.submit(|request| request.batch_sizes = vec![1]).await;
    for _ in 0..5 {
        let task = house.claim("one").await.unwrap();
        house.hand_back(&task).await;
    }
    let task = house.claim("one").await.unwrap();
    house.measure(&task, 10.0).await;
    assert_eq!(house.ended(id).await.state, RequestState::Done);

    let id = house.submit(|request| (request.batch_sizes, request.no_wait) = (vec![1], true)).await;
    for _ in 0..3 {
        let task = house.claim("one").await.unwrap();
        house.hand_back(&task).await;
    }
    let status = house.ended(id).await;
    assert_eq!(status.state, RequestState::Failed);
    assert!(status.cells[0].reason.as_ref().unwrap().contains("port 8001"), "{status:?}");
    house.close().await;
}

#[tokio::test]
async fn a_models_name_may_have_a_colon() {
    let mut house = House::build(Duration::from_secs(30)).await;
    house.add_model("llama:8b", "0a1b").await;
    let id = house.submit(|request| (request.model, request.batch_sizes) = ("llama:8b:0a1b".into(), vec![1])).await;
    let task = house.claim("one").await.unwrap();
    house.measure(&task, 10.0).await;
    house.ended(id).await;
    for (model, found) in [("llama:8b:0a1b", true), ("llama:8b", true), ("llama", false), ("llama:8b:2", false)] {
        let request = ResultsRequest { model: model.into(), ..Default::default() };
        let mut results = house.control.results(request).await.unwrap().into_inner();
        assert_eq!(results.message().await.unwrap().is_some(), found, "{model}");
        let (status, body) = house.get(&format!("/v1/profiles?model={model}")).await;
        assert!(status.contains("200") && (body != "[]") == found, "{model} over HTTP: {status} {body}");
    }
    let (status, body) = house.get("/v1/profiles?model=llama:").await;
    assert!(status.contains("400") && body.contains("NAME:VERSION"), "{status} {body}");
    house.close().await;
}

#[tokio::test]
async fn an_endpoint_is_nothing_to_wait_for() {
    let mut house = House::build(Duration::from_secs(30)).await;
    let request = Request { model: "m".into(), engines: vec!["endpoint".into()], ..Request::default() };
    let request_json = serde_json::to_string(&request).unwrap();
    let submit = SubmitRequest { request_id: RequestId::random().to_string(), request_json };
    let refused = house.control.submit(submit).await.unwrap_err();
    assert!(refused.message().contains("no worker offers 'endpoint'"), "{refused}");
    house.close().await;
}

#[tokio::test]
async fn cancelling_ends_what_runs_and_what_waits() {
    let mut house = House::build(Duration::from_secs(30)).await;
    let id = house.submit(|request| request.batch_sizes = vec![1, 2, 4, 8]).await;
    let running = house.claim("one").await.unwrap();
    let cancel = CancelRequest { request_id: id.to_string(), reason: "enough".into() };
    assert_eq!(house.control.cancel(cancel).await.unwrap().into_inner().tasks_cancelled, 4);
    assert_eq!(house.fate("one", &running).await, Fate::Cancelled);
    house.measure(&running, 10.0).await;
    let status = house.ended(id).await;
    assert_eq!(status.state, RequestState::Cancelled);
    assert!(status.cells.iter().all(|cell| cell.state == TaskState::Cancelled), "terminal states never change");
    house.close().await;
}

#[tokio::test]
async fn what_no_slot_can_run_waits_and_says_why_or_fails_at_once() {
    let mut house = House::build(Duration::from_secs(30)).await;
    let waits = house.submit(|request| request.devices = vec!["gpu".into()]).await;
    let reason = house.status(waits).await.cells[0].reason.clone().unwrap();
    assert!(reason.contains("no slot has device 'gpu'"), "{reason}");
    let fails = house
        .submit(|request| {
            request.engines = vec!["onnx".into()];
            request.no_wait = true;
        })
        .await;
    let status = house.ended(fails).await;
    assert_eq!(status.state, RequestState::Failed);
    assert!(status.cells[0].reason.as_ref().unwrap().contains("engine 'onnx'"), "{status:?}");
    house.close().await;
}

#[tokio::test]
async fn health_and_reflection_answer() {
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let house = House::build(Duration::from_secs(30)).await;
    let address = format!("http://{}", house.coordinator.as_ref().unwrap().grpc_addr());
    let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
    let check = HealthCheckRequest { service: "modelmeter.v1.Work".into() };
    let health = HealthClient::new(channel.clone()).check(check).await.unwrap().into_inner();
    assert_eq!(health.status(), ServingStatus::Serving);
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::iter([list]))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(services) = answer else { panic!("{answer:?}") };
    let names: Vec<_> = services.service.into_iter().map(|service| service.name).collect();
    assert!(names.contains(&"modelmeter.v1.Control".to_owned()), "{names:?}");
    house.close().await;
}
