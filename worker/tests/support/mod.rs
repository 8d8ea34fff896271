//! A coordinator in little (the `Work` service over real gRPC, with just enough rules), a KServe v2 server that
//! answers with zeros, and a worker between them.

mod coordinator;
mod server;

pub use coordinator::{FakeCoordinator, State};
pub use server::{FakeServer, MODEL};

use modelmeter_common::{
    Code, Problem, RequestId, TaskId,
    broker::{Broker, RESULTS, memory::MemoryBroker},
    device::{CPU_CLASS, Device},
    engine::Protocol,
    load::{Load, Stop},
    model::{ArtifactRef, Datatype, Format, ModelRef, TensorShape},
    part::{Final, Part},
    task::{Assignment, Cell, Plan},
    wire,
};
use modelmeter_worker::{EngineSpec, Lacking, Launch, Options, Patience, PortPair, PortPolicy, Ports, SlotOptions};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// The queue that the coordinator gives to every slot.
pub const QUEUE: &str = "modelmeter.tasks.test";

/// Everything around a worker.
pub struct Bench {
    pub folder: TempDir,
    pub broker: Arc<dyn Broker>,
    pub coordinator: FakeCoordinator,
    pub server: FakeServer,
}

impl Bench {
    pub async fn new() -> Self {
        let broker = Arc::new(MemoryBroker::new());
        broker.declare(QUEUE).await.unwrap();
        broker.declare(RESULTS).await.unwrap();
        Self {
            folder: tempfile::tempdir().unwrap(),
            broker,
            coordinator: FakeCoordinator::start().await,
            server: FakeServer::start().await,
        }
    }

    /// A worker of one CPU slot, whose engines are `endpoint` (the server) and `broken` (dies at once).
    pub fn options(&self) -> Options {
        Options {
            name: "w1".into(),
            broker: self.broker.clone(),
            coordinators: vec![self.coordinator.address.clone()],
            slots: vec![SlotOptions { device: cpu() }],
            engines: vec![
                engine(
                    "endpoint",
                    Launch::Attach { endpoint: self.server.address.parse().unwrap(), model: MODEL.into() },
                ),
                engine("broken", shell("echo cannot load $0; exit 3", "{model}")),
                engine("stuck", shell("trap '' TERM; echo $$ > $0; sleep 1000 & wait; sleep 1000", &self.pid_file())),
            ],
            lacking: Lacking {
                engines: BTreeMap::from([("onnx".into(), Problem::new(Code::NotInstalled, "no library"))]),
                gpu: Some(Problem::new(Code::NotInstalled, "no driver")),
            },
            inspectors: BTreeMap::new(),
            home: self.folder.path().join("home"),
            lock_dir: self.folder.path().join("locks"),
            ports: PortPolicy::Auto,
            client_cpus: None,
            engine_cpus: None,
            shared_cpu: false,
            patience: Patience::Refuse,
            labels: BTreeMap::from([("rack".into(), "r1".into())]),
        }
    }

    /// Where the engine `stuck` writes its pid.
    pub fn pid_file(&self) -> String {
        self.folder.path().join("pid").to_str().unwrap().to_owned()
    }

    pub async fn hint(&self, task: TaskId) {
        let body = wire::encode(&wire::Hint { task_id: task }).unwrap();
        self.broker.publish(QUEUE, &task.to_string(), &body).await.unwrap();
    }

    /// Takes results until the finals of so many attempts are in.
    pub async fn results(&self, finals: usize) -> Results {
        let mut results = Results::default();
        let mut consumer = self.broker.consume(RESULTS, 10).await.unwrap();
        while results.finals.len() < finals {
            let next = tokio::time::timeout(Duration::from_secs(20), consumer.next()).await;
            let delivery = next.unwrap_or_else(|_| panic!("no more results after {results:?}")).unwrap();
            match wire::kind(&delivery.body).unwrap() {
                wire::Kind::Part => {
                    let sha256 = wire::sha256_hex(&delivery.body);
                    results.parts.push((wire::decode(&delivery.body).unwrap(), sha256));
                }
                _ => results.finals.push(wire::decode(&delivery.body).unwrap()),
            }
            delivery.ack().await.unwrap();
        }
        results
    }

    pub fn journals(&self) -> usize {
        let files = std::fs::read_dir(self.folder.path().join("home/journal/w1")).unwrap();
        files.filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|e| e == "journal")).count()
    }
}

#[derive(Debug, Default)]
pub struct Results {
    pub parts: Vec<(Part, String)>,
    pub finals: Vec<Final>,
}

/// Waits on a predicate, at most ten seconds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn cpu() -> Device {
    Device::cpu("test", None, None)
}

fn engine(name: &str, launch: Launch) -> EngineSpec {
    EngineSpec {
        name: name.into(),
        version: None,
        launch,
        layout: Default::default(),
        protocol: Protocol::KserveV2,
        ports: Ports { cpu: Some(PortPair { http: 0, grpc: 0, metrics: None }), gpu: None },
        formats: vec![Format::Onnx],
        ready_timeout: Duration::from_secs(60),
    }
}

fn shell(script: &str, arg: &str) -> Launch {
    Launch::Process {
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into(), arg.into()],
        env: BTreeMap::new(),
    }
}

/// A task for an engine: so many calls with one and with two in flight.
pub fn assignment(number: u128, engine: &str, batches: u64) -> Assignment {
    Assignment {
        request_id: RequestId(uuid::Uuid::from_u128(1)),
        task_id: TaskId(uuid::Uuid::from_u128(1000 + number)),
        attempt: 0,
        repeat: 0,
        cell: Cell {
            model: ModelRef { name: MODEL.into(), version: "1".into() },
            artifact: None,
            engine: engine.into(),
            engine_settings: BTreeMap::new(),
            device_class: CPU_CLASS.into(),
            batch_size: 2,
            inputs: vec![TensorShape::new("x", Datatype::Fp32, vec![2, 4])],
            inspector: "default".into(),
        },
        plan: Plan {
            load: Load::Closed { concurrencies: vec![2] },
            batches: Some(batches),
            stop: Stop { min_duration_ms: 10, max_duration_ms: 60_000, ..Stop::default() },
            sla: None,
            budget_ms: Some(60_000),
            grace_ms: 0,
            seed: 1,
            data: None,
            output_axes: BTreeMap::new(),
        },
    }
}

/// The same with an artifact of this content.
pub fn with_artifact(assignment: Assignment, content: &[u8]) -> Assignment {
    let artifact = ArtifactRef { format: Format::Onnx, sha256: wire::sha256_hex(content), bytes: content.len() as u64 };
    Assignment { cell: Cell { artifact: Some(artifact), ..assignment.cell }, ..assignment }
}
