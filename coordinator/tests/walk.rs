//! The whole coordinator over its own gRPC, on the memory broker and the sqlite hub, with a worker that is played by
//! the test: what it is granted, what it publishes, and what becomes of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use modelmeter_common::{
    Code, Problem, RequestId, SCHEMA_VERSION, TaskId, Timestamp,
    broker::{Broker, RESULTS, memory::MemoryBroker},
    device::Device,
    load::LoadPoint,
    model::{ArtifactRef, Datatype, Dim, Format, Model, ModelRef, TensorSpec},
    part::{Deployment, Final, Outcome, Part, Point},
    profile::{Profile, ProfileState},
    request::{Request, RequestDoc, RequestState},
    stats::{Histogram, Interval},
    status::Status,
    task::{Assignment, Task, TaskState},
    wire::{self, Hint, sha256_hex},
};
use modelmeter_coordinator::{
    Handle, Options,
    hub::{self, Hub},
};
use modelmeter_proto::control::{
    AddModelRequest, ArtifactChunk, ArtifactHeader, AttemptRef, CancelRequest, ClaimNextRequest, ClaimRequest,
    HandBackRequest, RegisterRequest, RenewRequest, ResultsRequest, Slot, StatusRequest, SubmitRequest,
    artifact_chunk::Content, attempt_fate::Fate, claim_reply::Outcome as Claimed, control_client::ControlClient,
    refused::Why, work_client::WorkClient,
};
use std::{sync::Arc, time::Duration};
use tonic::transport::Channel;

const BYTES: &[u8] = b"not a model, but its bytes";

struct House {
    coordinator: Option<Handle>,
    broker: Arc<dyn Broker>,
    hub: Arc<dyn Hub>,
    control: ControlClient<Channel>,
    work: WorkClient<Channel>,
    queue: String,
    _home: tempfile::TempDir,
}

impl House {
    /// A coordinator with one model in its hub and one registered worker of one CPU slot.
    async fn build(lease: Duration) -> Self {
        let home = tempfile::tempdir().unwrap();
        let broker: Arc<dyn Broker> = Arc::new(MemoryBroker::new());
        let hub = hub::open(&home.path().join("hub.sqlite").display().to_string()).await.unwrap();
        let (coordinator, control, work) = start(lease, &broker, &hub).await;
        let coordinator = Some(coordinator);
        let mut house = Self { coordinator, broker, hub, control, work, queue: String::new(), _home: home };
        house.add_model("m", "1").await;
        house.queue = house.register("one").await;
        house
    }

    /// Another coordinator, on what the stopped one left.
    async fn restart(&mut self, lease: Duration) {
        let (coordinator, control, work) = start(lease, &self.broker, &self.hub).await;
        (self.coordinator, self.control, self.work) = (Some(coordinator), control, work);
    }

    async fn stop(&mut self) {
        self.coordinator.take().unwrap().stop().await;
    }

    /// Returns when everything that runs has been swept: what no slot can run, submitted later, is swept before it.
    async fn swept(&mut self) {
        for _ in 0..2 {
            let hopeless = |request: &mut Request| (request.no_wait, request.engines) = (true, vec!["onnx".into()]);
            let id = self.submit(hopeless).await;
            self.ended(id).await;
        }
    }

    async fn add_model(&mut self, name: &str, version: &str) {
        let artifact = ArtifactRef { format: Format::Onnx, sha256: sha256_hex(BYTES), bytes: BYTES.len() as u64 };
        let model = Model {
            schema_version: SCHEMA_VERSION,
            id: ModelRef { name: name.into(), version: version.into() },
            created_at: Timestamp::now(),
            artifacts: vec![artifact.clone()],
            inputs: vec![TensorSpec {
                name: "x".into(),
                dtype: Datatype::Fp32,
                shape: vec![Dim::Dynamic("batch".into()), Dim::Fixed(4)],
            }],
            outputs: vec![],
        };
        let header = ArtifactHeader { sha256: artifact.sha256, format: "onnx".into(), bytes: artifact.bytes };
        let chunks = [Content::Header(header), Content::Data(BYTES.to_vec())];
        let chunks = tokio_stream::iter(chunks.map(|content| ArtifactChunk { content: Some(content) }));
        self.control.put_artifact(chunks).await.unwrap();
        self.control.add_model(AddModelRequest { model_json: serde_json::to_string(&model).unwrap() }).await.unwrap();
    }

    /// Registers an incarnation of the worker; gives its slot's queue.
    async fn register(&mut self, incarnation: &str) -> String {
        self.try_register(incarnation, wire::VERSION).await.unwrap()
    }

    async fn try_register(&mut self, incarnation: &str, wire_version: u16) -> Result<String, tonic::Status> {
        let request = RegisterRequest {
            worker: "w".into(),
            incarnation: incarnation.into(),
            slots: vec![slot(&cpu(), &["rten"])],
            wire_version: wire_version.into(),
            ..Default::default()
        };
        Ok(self.work.register(request).await?.into_inner().queues.remove(0))
    }

    async fn submit(&mut self, change: impl FnOnce(&mut Request)) -> RequestId {
        let mut request = Request { model: "m".into(), engines: vec!["rten".into()], ..Request::default() };
        change(&mut request);
        let id = RequestId::random();
        let request_json = serde_json::to_string(&request).unwrap();
        let submit = SubmitRequest { request_id: id.to_string(), request_json };
        self.control.submit(submit.clone()).await.unwrap();
        assert!(self.control.submit(submit).await.unwrap().into_inner().existed, "idempotent by its id");
        id
    }

    async fn request(&self, id: RequestId) -> RequestDoc {
        self.hub.request(id).await.unwrap().unwrap()
    }

    /// Takes the next hint of the queue.
    async fn hint(&self) -> TaskId {
        let mut hints = self.broker.consume(&self.queue, 1).await.unwrap();
        let hint = tokio::time::timeout(Duration::from_secs(10), hints.next()).await.expect("a hint").unwrap();
        let Hint { task_id } = wire::decode(&hint.body).unwrap();
        hint.ack().await.unwrap();
        task_id
    }

    /// Takes the next hint of the queue and claims its task.
    async fn claim(&mut self, incarnation: &str) -> Result<Assignment, Why> {
        let task_id = self.hint().await;
        self.claim_task(task_id, incarnation, &uuid::Uuid::new_v4().to_string()).await
    }

    async fn claim_task(&mut self, task: TaskId, incarnation: &str, claim_id: &str) -> Result<Assignment, Why> {
        let claim = ClaimRequest {
            task_id: task.to_string(),
            worker: "w".into(),
            incarnation: incarnation.into(),
            slot: 0,
            claim_id: claim_id.into(),
        };
        outcome(self.work.claim(claim).await.unwrap().into_inner().outcome)
    }

    /// Gives it back, since a port is busy.
    async fn hand_back(&mut self, task: &Assignment) {
        let busy = Problem::new(Code::Busy, "port 8001 is held by something");
        let request = HandBackRequest {
            worker: "w".into(),
            incarnation: "one".into(),
            task_id: task.task_id.to_string(),
            attempt: task.attempt,
            reason: busy.message.clone(),
            problem_json: serde_json::to_string(&busy).unwrap(),
        };
        self.work.hand_back(request).await.unwrap();
    }

    async fn publish(&self, done: &Assignment, parts: &[Part], outcome: Outcome) {
        for part in parts {
            self.broker.publish(RESULTS, &part.id(), &wire::encode(part).unwrap()).await.unwrap();
        }
        let last = Final {
            schema_version: SCHEMA_VERSION,
            request_id: done.request_id,
            task_id: done.task_id,
            attempt: done.attempt,
            worker: "w".into(),
            device: cpu(),
            started_at: Timestamp::now(),
            ended_at: Timestamp::now(),
            outcome,
        };
        self.broker.publish(RESULTS, &last.id(), &wire::encode(&last).unwrap()).await.unwrap();
    }

    /// Publishes one part and the final that names it.
    async fn measure(&self, done: &Assignment, rate: f64) {
        let part = part(done, rate);
        let hash = sha256_hex(&wire::encode(&part).unwrap());
        self.publish(done, &[part], Outcome::Done { parts: vec![hash], deployment: deployment() }).await;
    }

    async fn status(&mut self, id: RequestId) -> Status {
        let request = StatusRequest { request_id: id.to_string() };
        serde_json::from_str(&self.control.status(request).await.unwrap().into_inner().status_json).unwrap()
    }

    /// Follows the request until it ends.
    async fn ended(&mut self, id: RequestId) -> Status {
        let mut watch = self.control.watch(StatusRequest { request_id: id.to_string() }).await.unwrap().into_inner();
        let mut last = None;
        let follow = async {
            while let Some(reply) = watch.message().await.unwrap() {
                last = Some(reply.status_json);
            }
        };
        tokio::time::timeout(Duration::from_secs(20), follow).await.expect("the request ends");
        serde_json::from_str(&last.unwrap()).unwrap()
    }

    async fn profiles(&mut self, id: RequestId) -> Vec<Profile> {
        let request = ResultsRequest { request_id: id.to_string(), ..Default::default() };
        let mut stream = self.control.results(request).await.unwrap().into_inner();
        let mut profiles = Vec::new();
        while let Some(document) = stream.message().await.unwrap() {
            profiles.push(serde_json::from_str(&document.json).unwrap());
        }
        profiles
    }

    async fn fate(&mut self, incarnation: &str, of: &Assignment) -> Fate {
        let attempt =
            AttemptRef { task_id: of.task_id.to_string(), attempt: of.attempt, progress: "warming up".into() };
        let request = RenewRequest { worker: "w".into(), incarnation: incarnation.into(), attempts: vec![attempt] };
        self.work.renew(request).await.unwrap().into_inner().fates[0].fate()
    }

    async fn close(mut self) {
        self.stop().await;
    }
}

async fn start(
    lease: Duration,
    broker: &Arc<dyn Broker>,
    hub: &Arc<dyn Hub>,
) -> (Handle, ControlClient<Channel>, WorkClient<Channel>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = Options::new(broker.clone(), hub.clone());
    let options = Options { lease, sweep_every: Duration::from_millis(50), ..options };
    let coordinator = modelmeter_coordinator::start(options, listener, None).await.unwrap();
    let channel = Channel::from_shared(format!("http://{}", coordinator.grpc_addr())).unwrap().connect().await.unwrap();
    (coordinator, ControlClient::new(channel.clone()), WorkClient::new(channel))
}

fn slot(device: &Device, engines: &[&str]) -> Slot {
    Slot {
        index: 0,
        device_json: serde_json::to_string(device).unwrap(),
        engines: engines.iter().map(ToString::to_string).collect(),
        abilities_json: String::new(),
    }
}

fn outcome(claimed: Option<Claimed>) -> Result<Assignment, Why> {
    match claimed.unwrap() {
        Claimed::Granted(granted) => Ok(serde_json::from_str(&granted.task_json).unwrap()),
        Claimed::Refused(refused) => Err(refused.why()),
    }
}

fn cpu() -> Device {
    Device::cpu("test", Some(1), Some(2))
}

fn deployment() -> Deployment {
    Deployment {
        engine_version: "0.27".into(),
        launch: "process".into(),
        image_digest: None,
        deploy_ms: Some(3.5),
        first_inference_ms: Some(1.5),
        client_cpus: None,
        engine_cpus: None,
    }
}

fn part(of: &Assignment, rate: f64) -> Part {
    let mut latency = Histogram::default();
    (0..100).for_each(|i| latency.record(1_000_000 + i));
    let point = Point {
        requests: 100,
        requests_per_s: Some(Interval { value: rate, ci95: [rate - 1.0, rate + 1.0] }),
        latency,
        ..Point::blank(LoadPoint::Closed { concurrency: 1 }, of.cell.batch_size)
    };
    Part {
        schema_version: SCHEMA_VERSION,
        request_id: of.request_id,
        task_id: of.task_id,
        attempt: of.attempt,
        seq: 0,
        point,
    }
}

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
    }
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
    // Nobody renews: after two leases the worker is not counted on. Its hint is not lost, and nobody will take it.
    let mut house = House::build(Duration::from_millis(100)).await;
    let id = house.submit(|request| request.batch_sizes = vec![1]).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    let reason = loop {
        let cell = house.status(id).await.cells.remove(0);
        let reason = cell.reason.unwrap();
        if cell.state == TaskState::Waiting && reason.contains("pool is gone") {
            break reason;
        }
        assert!(tokio::time::Instant::now() < deadline, "{:?}: {reason}", cell.state);
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(reason.contains("no worker is connected"), "{reason}");
    assert_eq!(house.broker.depth(&house.queue).await.unwrap(), Some(1), "the hint is still there");
    house.close().await;
}

#[tokio::test]
async fn a_budget_is_shared_by_the_slots_that_can_run_the_request() {
    let mut house = House::build(Duration::from_secs(30)).await;
    let gpu = Device { class: "nvidia-a10".into(), ..cpu() };
    let slots = vec![slot(&cpu(), &["onnx"]), Slot { index: 1, ..slot(&gpu, &["rten"]) }];
    let other = RegisterRequest { worker: "v".into(), incarnation: "v".into(), slots, ..Default::default() };
    house.work.register(other).await.unwrap();
    let asked = |request: &mut Request| {
        (request.batch_sizes, request.budget_ms) = ((1..=10).collect(), Some(100_000));
    };
    house.submit(asked).await;
    assert_eq!(house.claim("one").await.unwrap().plan.budget_ms, Some(8_500), "ten tasks, one slot");
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
