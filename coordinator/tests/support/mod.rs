//! A whole coordinator over its own gRPC, on the memory broker and the sqlite hub, with a worker that is played by the
//! test.

pub mod clock;
pub mod counting;
pub mod faulty;
pub mod watcher;

use modelmeter_common::{
    Code, Problem, RequestId, SCHEMA_VERSION, TaskId, Timestamp,
    broker::{Broker, RESULTS, memory::MemoryBroker},
    device::Device,
    load::LoadPoint,
    model::{ArtifactRef, Datatype, Dim, Format, Model, ModelRef, TensorSpec},
    part::{Deployment, Final, Outcome, Part, Point},
    profile::Profile,
    request::{Request, RequestDoc},
    stats::{Figure, Histogram},
    status::Status,
    task::Assignment,
    wire::{self, Hint, sha256_hex},
};
use modelmeter_coordinator::{
    Handle, Options,
    clock::{Clock, Real},
    core::Leadership,
    hub::{self, Hub},
};
use modelmeter_proto::control::{
    AddModelRequest, ArtifactChunk, ArtifactHeader, AttemptRef, ClaimRequest, HandBackRequest, RegisterRequest,
    RenewReply, RenewRequest, ResultsRequest, Slot, StatusRequest, SubmitReply, SubmitRequest, WatchRequest,
    artifact_chunk::Content, attempt_fate::Fate, claim_reply::Outcome as Claimed, control_client::ControlClient,
    refused::Why, work_client::WorkClient,
};
use std::{sync::Arc, time::Duration};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::transport::Channel;

const BYTES: &[u8] = b"not a model, but its bytes";

pub struct House {
    pub coordinator: Option<Handle>,
    pub broker: Arc<dyn Broker>,
    pub hub: Arc<dyn Hub>,
    pub control: ControlClient<Channel>,
    pub work: WorkClient<Channel>,
    pub queue: String,
    /// The time by which the coordinator's rules go.
    pub clock: Arc<dyn Clock>,
    _home: tempfile::TempDir,
}

impl House {
    /// A coordinator with one model in its hub and one registered worker of one CPU slot.
    pub async fn build(lease: Duration) -> Self {
        Self::with_clock(lease, Arc::new(Real::default())).await
    }

    /// The same, by the time of this clock.
    pub async fn with_clock(lease: Duration, clock: Arc<dyn Clock>) -> Self {
        Self::on(Arc::new(MemoryBroker::new()), lease, clock).await
    }

    /// The same, on this broker.
    pub async fn on(broker: Arc<dyn Broker>, lease: Duration, clock: Arc<dyn Clock>) -> Self {
        let home = tempfile::tempdir().unwrap();
        let hub = hub::open(&home.path().join("hub.sqlite").display().to_string()).await.unwrap();
        let (coordinator, control, work) = start(lease, &broker, &hub, &clock).await;
        let coordinator = Some(coordinator);
        let mut house = Self { coordinator, broker, hub, control, work, queue: String::new(), clock, _home: home };
        house.add_model("m", "1").await;
        house.queue = house.register("one").await;
        house
    }

    /// Another coordinator, on what the stopped one left.
    pub async fn restart(&mut self, lease: Duration) {
        let (coordinator, control, work) = start(lease, &self.broker, &self.hub, &self.clock).await;
        (self.coordinator, self.control, self.work) = (Some(coordinator), control, work);
    }

    /// One more coordinator, on the same hub and broker, with connections to it.
    pub async fn another(&self, lease: Duration) -> (Handle, ControlClient<Channel>, WorkClient<Channel>) {
        self.another_on(&self.hub, lease).await
    }

    /// The same, which sees the hub through this one.
    pub async fn another_on(
        &self,
        hub: &Arc<dyn Hub>,
        lease: Duration,
    ) -> (Handle, ControlClient<Channel>, WorkClient<Channel>) {
        start(lease, &self.broker, hub, &self.clock).await
    }

    /// Returns once the coordinator leads.
    pub async fn leads(&self) {
        let leads = async {
            while self.coordinator.as_ref().unwrap().leadership() == Leadership::Follower {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), leads).await.expect("it leads");
    }

    /// Returns once the coordinator leads and hears others: from then on it misses no event.
    pub async fn hears(&self) {
        self.leads().await;
        let hears = async {
            while !self.coordinator.as_ref().unwrap().hears_others() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), hears).await.expect("it hears others");
    }

    /// The coordinator is gone at once, as if it was killed: it gives nothing up.
    pub fn kill(&mut self) {
        drop(self.coordinator.take());
    }

    pub async fn stop(&mut self) {
        self.coordinator.take().unwrap().stop().await;
    }

    /// Returns when everything that runs has been swept: what no slot can run, submitted later, is swept before it.
    pub async fn swept(&mut self) {
        for _ in 0..2 {
            let hopeless = |request: &mut Request| (request.no_wait, request.engines) = (true, vec!["onnx".into()]);
            let id = self.submit(hopeless).await;
            self.ended(id).await;
        }
    }

    pub async fn add_model(&mut self, name: &str, version: &str) {
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
            weights: Default::default(),
        };
        let header = ArtifactHeader { sha256: artifact.sha256, format: "onnx".into(), bytes: artifact.bytes };
        self.put_artifact(header, BYTES).await;
        self.control.add_model(AddModelRequest { model_json: serde_json::to_string(&model).unwrap() }).await.unwrap();
    }

    pub async fn put_artifact(&mut self, header: ArtifactHeader, bytes: &[u8]) {
        let chunks = [Content::Header(header), Content::Data(bytes.to_vec())];
        let chunks = tokio_stream::iter(chunks.map(|content| ArtifactChunk { content: Some(content) }));
        self.control.put_artifact(chunks).await.unwrap();
    }

    /// Status line and body of what the HTTP port answers.
    pub async fn get(&self, path: &str) -> (String, String) {
        let address = self.coordinator.as_ref().unwrap().http_addr().unwrap();
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }

    /// Registers an incarnation of the worker; gives its slot's queue.
    pub async fn register(&mut self, incarnation: &str) -> String {
        self.try_register(incarnation, wire::VERSION).await.unwrap()
    }

    pub async fn try_register(&mut self, incarnation: &str, wire_version: u16) -> Result<String, tonic::Status> {
        let request = RegisterRequest {
            worker: "w".into(),
            incarnation: incarnation.into(),
            slots: vec![slot(&cpu(), &["rten"])],
            wire_version: wire_version.into(),
            ..Default::default()
        };
        Ok(self.work.register(request).await?.into_inner().queues.remove(0))
    }

    pub async fn submit(&mut self, change: impl FnOnce(&mut Request)) -> RequestId {
        let mut request = Request { model: "m".into(), engines: vec!["rten".into()], ..Request::default() };
        change(&mut request);
        let id = RequestId::random();
        self.try_submit(id, &request).await.unwrap();
        assert!(self.try_submit(id, &request).await.unwrap().existed, "idempotent by its id");
        id
    }

    pub async fn try_submit(&mut self, id: RequestId, request: &Request) -> Result<SubmitReply, tonic::Status> {
        let request_json = serde_json::to_string(request).unwrap();
        let call = SubmitRequest { request_id: id.to_string(), request_json };
        Ok(self.control.submit(call).await?.into_inner())
    }

    pub async fn request(&self, id: RequestId) -> RequestDoc {
        self.hub.request(id).await.unwrap().unwrap()
    }

    /// Takes the next hint of the queue.
    pub async fn hint(&self) -> TaskId {
        let mut hints = self.broker.consume(&self.queue, 1).await.unwrap();
        let hint = tokio::time::timeout(Duration::from_secs(10), hints.next()).await.expect("a hint").unwrap();
        let Hint { task_id } = wire::decode(&hint.body).unwrap();
        hint.ack().await.unwrap();
        task_id
    }

    /// Takes the next hint of the queue and claims its task.
    pub async fn claim(&mut self, incarnation: &str) -> Result<Assignment, Why> {
        let task_id = self.hint().await;
        self.claim_task(task_id, incarnation, &uuid::Uuid::new_v4().to_string()).await
    }

    pub async fn claim_task(&mut self, task: TaskId, incarnation: &str, claim_id: &str) -> Result<Assignment, Why> {
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
    pub async fn hand_back(&mut self, task: &Assignment) {
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

    pub async fn publish(&self, done: &Assignment, parts: &[Part], outcome: Outcome) {
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
    pub async fn measure(&self, done: &Assignment, rate: f64) {
        let part = part(done, rate);
        let hash = sha256_hex(&wire::encode(&part).unwrap());
        self.publish(done, &[part], Outcome::Done { parts: vec![hash], deployment: deployment() }).await;
    }

    pub async fn status(&mut self, id: RequestId) -> Status {
        let request = StatusRequest { request_id: id.to_string() };
        serde_json::from_str(&self.control.status(request).await.unwrap().into_inner().status_json).unwrap()
    }

    /// Follows the request until it ends.
    pub async fn ended(&mut self, id: RequestId) -> Status {
        let mut watch = self.control.watch(watching(id)).await.unwrap().into_inner();
        let mut last = None;
        let follow = async {
            while let Some(reply) = watch.message().await.unwrap() {
                if !reply.status_json.is_empty() {
                    last = Some(reply.status_json);
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), follow).await.expect("the request ends");
        serde_json::from_str(&last.unwrap()).unwrap()
    }

    pub async fn profiles(&mut self, id: RequestId) -> Vec<Profile> {
        let request = ResultsRequest { request_id: id.to_string(), ..Default::default() };
        let mut stream = self.control.results(request).await.unwrap().into_inner();
        let mut profiles = Vec::new();
        while let Some(document) = stream.message().await.unwrap() {
            profiles.push(serde_json::from_str(&document.json).unwrap());
        }
        profiles
    }

    pub async fn fate(&mut self, incarnation: &str, of: &Assignment) -> Fate {
        self.renewed(incarnation, of, "warming up").await
    }

    /// Renews the lease of an attempt, and says what it does.
    pub async fn renewed(&mut self, incarnation: &str, of: &Assignment, progress: &str) -> Fate {
        let attempt = AttemptRef { task_id: of.task_id.to_string(), attempt: of.attempt, progress: progress.into() };
        let request = RenewRequest { worker: "w".into(), incarnation: incarnation.into(), attempts: vec![attempt] };
        self.work.renew(request).await.unwrap().into_inner().fates[0].fate()
    }

    pub async fn renew(&mut self, incarnation: &str) -> RenewReply {
        let request = RenewRequest { worker: "w".into(), incarnation: incarnation.into(), attempts: Vec::new() };
        self.work.renew(request).await.unwrap().into_inner()
    }

    pub async fn close(mut self) {
        self.stop().await;
    }
}

async fn start(
    lease: Duration,
    broker: &Arc<dyn Broker>,
    hub: &Arc<dyn Hub>,
    clock: &Arc<dyn Clock>,
) -> (Handle, ControlClient<Channel>, WorkClient<Channel>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let http = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = Options::new(broker.clone(), hub.clone());
    let options = Options { lease, sweep_every: Duration::from_millis(50), clock: clock.clone(), ..options };
    let coordinator = modelmeter_coordinator::start(options, listener, Some(http)).await.unwrap();
    let channel = Channel::from_shared(format!("http://{}", coordinator.grpc_addr())).unwrap().connect().await.unwrap();
    (coordinator, ControlClient::new(channel.clone()), WorkClient::new(channel))
}

/// A watch from the start.
pub fn watching(id: RequestId) -> WatchRequest {
    WatchRequest { request_id: id.to_string(), ..Default::default() }
}

pub fn slot(device: &Device, engines: &[&str]) -> Slot {
    Slot {
        index: 0,
        device_json: serde_json::to_string(device).unwrap(),
        engines: engines.iter().map(ToString::to_string).collect(),
        abilities_json: String::new(),
    }
}

pub fn outcome(claimed: Option<Claimed>) -> Result<Assignment, Why> {
    match claimed.unwrap() {
        Claimed::Granted(granted) => Ok(serde_json::from_str(&granted.task_json).unwrap()),
        Claimed::Refused(refused) => Err(refused.why()),
    }
}

pub fn cpu() -> Device {
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

pub fn part(of: &Assignment, rate: f64) -> Part {
    let mut latency = Histogram::default();
    (0..100).for_each(|i| latency.record(1_000_000 + i));
    let point = Point {
        requests: 100,
        requests_per_s: Some(Figure { value: rate, ci95: Some([rate - 1.0, rate + 1.0]), lower95: None }),
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
