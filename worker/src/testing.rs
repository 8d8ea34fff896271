//! What unit tests of several modules build on.

use crate::{
    engine::{EngineSpec, Launch, Place, PortPair, PortPolicy, Ports},
    journal::{self, Entry},
    lock::{Claim, DeviceLock},
};
use modelmeter_common::{
    RequestId, SCHEMA_VERSION, TaskId, Timestamp,
    device::Device,
    engine::Protocol,
    load::LoadPoint,
    model::Format,
    part::{Deployment, Final, Outcome, Part, Point},
    wire,
};
use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

/// Waits on a predicate, at most ten seconds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn cpu() -> Device {
    Device::cpu("test", None, Some(1))
}

/// A slot with its locks and logs in `folder`.
pub fn place(folder: &Path, ports: PortPolicy) -> Place {
    let lock = DeviceLock::take(&folder.join("locks"), &Claim::new(None, &[0], false), "w", 0).unwrap();
    let [logs, run] = ["logs", "run"].map(|name| folder.join(name));
    Place {
        index: 0,
        device: cpu(),
        cores: None,
        lock,
        ports,
        logs,
        run,
        census: Default::default(),
        launched: Default::default(),
    }
}

/// An engine that runs a program.
pub fn engine(program: &str, args: &[&str]) -> EngineSpec {
    EngineSpec {
        name: "test".into(),
        version: None,
        launch: Launch::Process {
            program: program.into(),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            env: BTreeMap::new(),
        },
        layout: Default::default(),
        protocol: Protocol::KserveV2,
        ports: Ports { cpu: Some(PortPair { http: 0, grpc: 0, metrics: None }), gpu: None },
        formats: vec![Format::Onnx],
        ready_timeout: Duration::from_secs(5),
    }
}

/// A complete attempt 1 of some task, of so many parts.
pub fn entry(parts: u32) -> Entry {
    entry_of(parts, 1)
}

/// A complete attempt of some task.
pub fn entry_of(parts: u32, attempt: u32) -> Entry {
    let (request_id, task_id) = (RequestId(uuid::Uuid::from_u128(1)), TaskId(uuid::Uuid::from_u128(2)));
    let point = Point::blank(LoadPoint::Closed { concurrency: 1 }, 1);
    let part = |seq| Part { schema_version: SCHEMA_VERSION, request_id, task_id, attempt, seq, point: point.clone() };
    let parts: Vec<_> = (0..parts).map(|seq| journal::encode(&part(seq)).unwrap()).collect();
    let deployment = Deployment {
        engine_version: "1".into(),
        launch: "process".into(),
        image_digest: None,
        deploy_ms: None,
        first_inference_ms: None,
        client_cpus: None,
        engine_cpus: None,
    };
    let last = Final {
        schema_version: SCHEMA_VERSION,
        request_id,
        task_id,
        attempt,
        worker: "w".into(),
        device: cpu(),
        started_at: Timestamp(0),
        ended_at: Timestamp(1),
        outcome: Outcome::Done { parts: parts.iter().map(|part| wire::sha256_hex(part)).collect(), deployment },
    };
    Entry::new(parts, &last).unwrap()
}
