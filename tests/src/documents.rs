//! Documents with every field filled, and with what storage gets wrong: unsigned integers beyond the signed
//! ones, whole floats, dots and dollars in keys, times inside user data, text of many scripts. Tests of every crate build theirs on these.
#![allow(clippy::unwrap_used, missing_docs)] // these are tests, and a failure is meant to panic

use modelmeter_common::{
    Code, Problem, ProfileId, RequestId, SCHEMA_VERSION, Timestamp, VERSION,
    device::{Device, DeviceKind},
    load::{Arrivals, LoadPoint},
    model::{ArtifactRef, Datatype, Dim, Format, Model, ModelRef, TensorShape, TensorSpec},
    part::*,
    profile::*,
    request::{Request, RequestDoc, RequestState},
    stats::{
        Figure, Histogram,
        percentile::{Basis, Percentile},
    },
    status::{Abilities, SlotDoc, WorkerDoc},
    task::{Cell, Lease, Task},
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const UNICODE: &str = "größe 模型 \u{1f680} \"quoted\" \\ \n end";

pub fn at(ms: i64) -> Timestamp {
    Timestamp(1_774_017_296_789 + ms)
}

pub fn model_ref(name: &str, version: &str) -> ModelRef {
    ModelRef { name: name.to_owned(), version: version.to_owned() }
}

fn settings() -> BTreeMap<String, Value> {
    let value = json!({
        "threads": 4, "whole": 1.0, "tenth": 0.1, "third": 1.0 / 3.0, "tiny": 5e-324, "negative": -7, "flag": true,
        "none": null, "most": u64::MAX, "deep": {"a": [{"b": [[1, 2.5], []], "c.d": {"$e": UNICODE}}]},
    });
    serde_json::from_value(value).unwrap()
}

fn labels() -> BTreeMap<String, String> {
    let labels = [
        (UNICODE, UNICODE),
        ("built_at", "2026-03-20T14:34:56Z"),
        ("seen_at", "2026-03-20T14:34:56.789Z"),
        ("said_at", "yesterday"),
        ("team.name", "a.b"),
    ];
    labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

pub fn request(model: &str, state: RequestState, created: i64) -> RequestDoc {
    let asked = Request {
        model: model.to_owned(),
        engine_settings: [("rten".to_owned(), settings())].into(),
        shapes: [("x".to_owned(), vec![vec![1, 3, 224, 224], vec![1, 3, 32, 32]])].into(),
        batch_sizes: vec![1, 8],
        seed: u64::MAX,
        labels: labels(),
        ..Request::default()
    };
    RequestDoc {
        id: RequestId::random(),
        schema_version: SCHEMA_VERSION,
        created_at: at(created),
        ended_at: state.is_terminal().then(|| at(created + 1)),
        state,
        expanded: false,
        tasks: 4,
        cells: 2,
        model: model_ref(model, "1"),
        request: asked,
        formats: [("rten".to_owned(), Format::Onnx)].into(),
        devices_of: [("rten".to_owned(), ["cpu".to_owned()].into())].into(),
        output_axes: [("y".to_owned(), Some(1)), ("z".to_owned(), None)].into(),
        error: None,
    }
}

pub fn cell(batch_size: u32) -> Cell {
    Cell {
        model: model_ref("m", "1"),
        artifact: Some(ArtifactRef { format: Format::Onnx, sha256: "ab".repeat(32), bytes: 1 << 40 }),
        engine: "rten".to_owned(),
        engine_settings: settings(),
        device_class: "cpu".to_owned(),
        batch_size,
        inputs: vec![TensorShape::new(UNICODE, Datatype::Fp32, vec![1, 3])],
        inspector: "default".to_owned(),
    }
}

/// Task `order` of a request, waiting.
pub fn task(request: RequestId, order: u32) -> Task {
    let task = Task::new(request, cell(order + 1), 0, at(0));
    Task {
        order,
        // Longer than any index of MongoDB used to take.
        deployment_key: format!("{}{}", task.deployment_key, "x".repeat(1500)),
        reason: Some(UNICODE.to_owned()),
        error: Some(Problem::new(Code::EngineFailed, UNICODE).with_hint("try again")),
        ..task
    }
}

pub fn lease(slot: u32) -> Lease {
    Lease {
        worker: format!("w{slot}"),
        incarnation: "i".into(),
        slot,
        claim_id: "c".to_owned(),
        expires_at: at(30_000),
    }
}

pub fn device() -> Device {
    Device {
        kind: DeviceKind::Gpu,
        class: "nvidia-a10".to_owned(),
        name: "NVIDIA A10".to_owned(),
        index: Some(0),
        uuid: Some("GPU-1".to_owned()),
        driver: Some("550.1".to_owned()),
        cuda: Some("12.4".to_owned()),
        ecc_enabled: Some(true),
        mig_enabled: Some(false),
        memory_total_bytes: Some(24 << 30),
        cores: None,
    }
}

fn histogram() -> Histogram {
    let mut histogram = Histogram::default();
    (1..=2000_u64).for_each(|i| histogram.record(i * i * 1_000));
    histogram
}

fn figure(value: f64) -> Figure {
    Figure { value, ci95: Some([value * 0.9, value * 1.1]), lower95: None }
}

fn gpu() -> GpuUse {
    GpuUse {
        utilization_ratio: Some(1.0),
        memory_used_bytes: Some(1 << 34),
        memory_delta_bytes: Some(-(1 << 33)),
        power_w: Some(149.1),
        throttle: vec!["sw_power_cap".to_owned()],
        ..GpuUse::default()
    }
}

fn unavailable() -> BTreeMap<String, Reason> {
    let reason = Reason { code: "no_gpu".to_owned(), message: UNICODE.to_owned() };
    [("gpu.utilization_ratio".to_owned(), reason.clone()), ("latency_ms.p99_9".to_owned(), reason)].into()
}

fn point() -> Point {
    Point {
        load: LoadPoint::Open { rate_per_s: 200.0, arrivals: Arrivals::Poisson },
        batch_size: 8,
        warmup_s: 0.5,
        duration_s: 2.0,
        requests: 1_000_000,
        errors: 3,
        resent: 7,
        error_kinds: [("UNAVAILABLE: a.b $c".to_owned(), 3)].into(),
        answers: Default::default(),
        requests_per_s: Some(figure(199.999_999_999_999_97)),
        latency: histogram(),
        percentiles: vec![
            Percentile {
                q: 99.9,
                ms: Some(figure(1.0 / 3.0)),
                basis: Basis::Ranks,
                beyond: 30,
                needs: 20_000,
                had: 30_000,
                sure: 25_000,
                sure_unjoined: 26_000,
            },
            Percentile {
                q: 50.0,
                ms: Some(Figure { lower95: Some(0.1), ..Figure::observed(2.0 / 7.0) }),
                basis: Basis::None,
                beyond: 1,
                needs: 100,
                had: 3,
                sure: 2,
                sure_unjoined: 2,
            },
        ],
        service: Some(Histogram::default()),
        send_lateness: None,
        gpu: Some(gpu()),
        engine_cpu: Some(EngineCpu { cores: 2.0, rss_bytes: 1 << 33 }),
        server: None,
        client_cpu_cores: 0.1 + 0.2,
        host: Some(HostUse {
            cpu_busy_ratio: 0.0,
            steal_ratio: 1e-300,
            throttled_ratio: Some(0.25),
            speed_range: Some([0.9, 1.0 / 0.9]),
        }),
        converged: true,
        valid: false,
        warnings: vec![Warning { code: "noisy".to_owned(), message: UNICODE.to_owned() }],
        unavailable: unavailable(),
        metrics: vec![metric()],
    }
}

fn metric() -> Metric {
    let mut values = Histogram::default();
    values.record(7_000_000);
    Metric { name: "ttft_ms".to_owned(), unit: "ms".to_owned(), values, failures: 1, percentiles: Vec::new() }
}

pub fn part(task: &Task, attempt: u32, seq: u32) -> Part {
    let (request_id, task_id) = (task.request_id, task.id);
    Part { schema_version: SCHEMA_VERSION, request_id, task_id, attempt, seq, point: point() }
}

pub fn last(task: &Task, attempt: u32) -> Final {
    let deployment = Deployment {
        engine_version: "0.27".to_owned(),
        launch: "process".to_owned(),
        image_digest: None,
        deploy_ms: Some(3.0),
        first_inference_ms: Some(0.7),
        client_cpus: None,
        engine_cpus: None,
    };
    let outcome = match attempt % 2 {
        0 => Outcome::Done { parts: vec!["00".repeat(32), "ff".repeat(32)], deployment },
        _ => Outcome::Failed { error: Problem::new(Code::EngineFailed, UNICODE) },
    };
    Final {
        schema_version: SCHEMA_VERSION,
        request_id: task.request_id,
        task_id: task.id,
        attempt,
        worker: UNICODE.to_owned(),
        device: device(),
        started_at: at(1),
        ended_at: at(2),
        outcome,
    }
}

pub fn profile(request: RequestId, model: ModelRef, batch_size: u32, created: i64) -> Profile {
    let load = ProfileLoad::Closed { concurrency: 1 };
    let summary = Summary {
        load,
        throughput_inferences_per_s: Some(17.0),
        throughput_ci95_inferences_per_s: Some([16.0, 18.0]),
        p50_latency_ms: Some(58.3),
        p50_latency_ci95_ms: Some([58.0, 58.6]),
        p95_latency_ms: Some(61.0),
        p95_latency_ci95_ms: None,
        p99_latency_ms: None,
        p99_latency_ci95_ms: None,
    };
    let peak = PeakSummary {
        summary: summary.clone(),
        gpu_memory_used_bytes: Some(1 << 34),
        gpu_memory_used_ratio: Some(0.66),
        gpu_memory_delta_bytes: Some(-1),
        gpu_utilization_ratio: Some(1.0),
    };
    let shown = cell(batch_size);
    Profile {
        id: ProfileId(request.profile(&format!("{model}/{batch_size}")).0),
        schema_version: SCHEMA_VERSION,
        modelmeter_version: VERSION.to_owned(),
        revision: 0,
        request_id: request,
        state: ProfileState::Partial,
        error: Some(Problem::new(Code::NoWorker, UNICODE)),
        created_at: at(created),
        labels: labels(),
        model,
        artifact: Some(ProfileArtifact { format: Format::Onnx, sha256: "ab".repeat(32), bytes: 3 }),
        inputs: shown.inputs,
        inspector: shown.inspector,
        engine: ProfileEngine {
            name: shown.engine,
            version: Some("0.27".to_owned()),
            launch: None,
            image_digest: None,
            settings: settings(),
        },
        device: ProfileDevice {
            kind: DeviceKind::Cpu,
            class: "cpu".to_owned(),
            name: Some(UNICODE.to_owned()),
            driver: None,
            cuda: None,
            ecc_enabled: None,
            mig_enabled: None,
            memory_total_bytes: Some(24 << 30),
        },
        batch_size,
        repeats: vec![Repeat {
            worker: "w".to_owned(),
            device_uuid: None,
            attempt: 1,
            client_cpus: Some(vec![3]),
            engine_cpus: Some(vec![0, 1, 2]),
        }],
        deploy_ms: Some(100.0),
        first_inference_ms: None,
        reference: Some(summary),
        sla: Some(SlaResult { percentile: 99.9, latency_ms: 50.0, met: Some(true), best: Some(peak.clone()) }),
        peak: Some(peak),
        points: vec![profile_point(load)],
        unavailable: unavailable(),
    }
}

fn distribution() -> Distribution {
    Distribution { unit: "ms".to_owned(), values: Latency { mean: Some(7.0), ..Latency::default() } }
}

fn profile_point(load: ProfileLoad) -> ProfilePoint {
    let latency = Latency { mean: Some(1.0), p50: Some(figure(0.1)), max: Some(9.0), ..Latency::default() };
    ProfilePoint {
        load,
        repeats: 2,
        duration_s: 30.0,
        requests: 3,
        errors: 0,
        resent: 0,
        error_kinds: BTreeMap::new(),
        answers: Default::default(),
        inferences: 24,
        requests_per_s: Some(2.0 / 3.0),
        throughput_inferences_per_s: Some(figure(17.1)),
        latency_ms: latency.clone(),
        service_ms: Some(latency),
        send_lateness_ms: Some(Lateness { p50: 0.0, p99: 1.5, max: 2.0 }),
        gpu: Some(gpu()),
        energy_per_inference_j: Some(0.125),
        engine_cpu: None,
        server: None,
        client_cpu_cores: 0.25,
        host: None,
        converged: false,
        valid: true,
        warnings: Vec::new(),
        unavailable: unavailable(),
        metrics: BTreeMap::from([("ttft_ms".to_owned(), distribution())]),
    }
}

pub fn worker(name: &str) -> WorkerDoc {
    let pool = "cpu-0123456789abcdef".into();
    let abilities = Abilities {
        formats: [("rten".to_owned(), vec![Format::Onnx])].into(),
        inspectors: ["photos".to_owned()].into(),
        lacking: [("my.own".to_owned(), Problem::new(Code::NotInstalled, UNICODE))].into(),
        no_gpu: None,
    };
    WorkerDoc {
        name: name.to_owned(),
        schema_version: SCHEMA_VERSION,
        incarnation: "i1".into(),
        version: VERSION.to_owned(),
        wire_version: modelmeter_common::wire::VERSION,
        slots: vec![SlotDoc { index: 0, device: device(), engines: vec!["rten".to_owned()], abilities, pool }],
        labels: labels(),
        registered_at: at(0),
        seen_at: at(1),
    }
}

pub fn model(name: &str, version: &str, created: i64) -> Model {
    let shape = vec![Dim::Dynamic("batch".to_owned()), Dim::Fixed(3), Dim::Dynamic(String::new())];
    let tensor = TensorSpec { name: UNICODE.to_owned(), dtype: Datatype::Bytes, shape };
    Model {
        schema_version: SCHEMA_VERSION,
        id: model_ref(name, version),
        created_at: at(created),
        artifacts: vec![ArtifactRef { format: Format::Savedmodel, sha256: "cd".repeat(32), bytes: 1 }],
        inputs: vec![tensor.clone()],
        outputs: vec![tensor],
        weights: [Datatype::Fp16, Datatype::Int64].into(),
    }
}
