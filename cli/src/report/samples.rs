//! Fixed profiles for the tests of this room.

use modelmeter_common::{
    Code, Problem, RequestId, SCHEMA_VERSION, Timestamp,
    device::DeviceKind,
    model::{Datatype, ModelRef, TensorShape},
    part::{GpuUse, HostUse, Reason, Warning},
    profile::{
        Latency, PeakSummary, Profile, ProfileDevice, ProfileEngine, ProfileLoad, ProfilePoint, ProfileState,
        SlaResult, Summary,
    },
    stats::Interval,
};
use std::collections::BTreeMap;
use uuid::Uuid;

fn around(value: f64, half: f64) -> Interval {
    Interval { value, ci95: [value - half, value + half] }
}

fn point(concurrency: u32, throughput: Interval, latency_ms: Latency) -> ProfilePoint {
    ProfilePoint {
        load: ProfileLoad::Closed { concurrency },
        duration_s: 2.0,
        requests: 2000,
        errors: 0,
        error_kinds: BTreeMap::new(),
        answers: Default::default(),
        inferences: 2000,
        requests_per_s: Some(throughput.value),
        throughput_inferences_per_s: Some(throughput),
        latency_ms,
        service_ms: None,
        send_lateness_ms: None,
        gpu: None,
        energy_per_inference_j: None,
        engine_cpu: None,
        server: None,
        client_cpu_cores: 0.1,
        host: Some(HostUse::default()),
        converged: true,
        valid: true,
        warnings: vec![],
        unavailable: BTreeMap::new(),
    }
}

fn summary(point: &ProfilePoint) -> Summary {
    let value = |interval: Option<Interval>| interval.map(|i| i.value);
    Summary {
        load: point.load,
        throughput_inferences_per_s: value(point.throughput_inferences_per_s),
        p50_latency_ms: value(point.latency_ms.p50),
        p95_latency_ms: value(point.latency_ms.p95),
        p99_latency_ms: value(point.latency_ms.p99),
    }
}

fn peak(point: &ProfilePoint) -> PeakSummary {
    let gpu = point.gpu.as_ref();
    PeakSummary {
        summary: summary(point),
        gpu_memory_used_bytes: gpu.and_then(|g| g.memory_used_bytes),
        gpu_memory_used_ratio: gpu.and_then(|g| g.memory_used_ratio),
        gpu_memory_delta_bytes: gpu.and_then(|g| g.memory_delta_bytes),
        gpu_utilization_ratio: gpu.and_then(|g| g.utilization_ratio),
    }
}

fn base(batch_size: u32, points: Vec<ProfilePoint>) -> Profile {
    let id = RequestId(Uuid::from_u128(7));
    Profile {
        id: id.profile(&batch_size.to_string()),
        schema_version: SCHEMA_VERSION,
        modelmeter_version: "0.1.0".into(),
        revision: 1,
        request_id: id,
        state: ProfileState::Done,
        error: None,
        created_at: Timestamp(0),
        labels: BTreeMap::new(),
        model: ModelRef { name: "mlp".into(), version: "0123456789ab".into() },
        artifact: None,
        inputs: vec![TensorShape::new("x", Datatype::Fp32, vec![u64::from(batch_size), 784])],
        inspector: "default".into(),
        engine: ProfileEngine {
            name: "rten".into(),
            version: Some("0.27.0".into()),
            launch: Some("process".into()),
            image_digest: None,
            settings: BTreeMap::new(),
        },
        device: ProfileDevice {
            kind: DeviceKind::Cpu,
            class: "cpu".into(),
            name: Some("Test CPU 3000".into()),
            driver: None,
            cuda: None,
            ecc_enabled: None,
            mig_enabled: None,
            memory_total_bytes: None,
        },
        batch_size,
        repeats: vec![],
        deploy_ms: Some(200.0),
        first_inference_ms: Some(5.0),
        reference: points.first().map(summary),
        peak: points.last().map(peak),
        sla: None,
        points,
        unavailable: BTreeMap::new(),
    }
}

/// A cell with every latency figure, and the same warning at both points.
pub fn cpu(batch_size: u32) -> Profile {
    let latency = |p50: f64| Latency {
        p50: Some(around(p50, 0.05)),
        p95: Some(around(1.4, 0.05)),
        p99: Some(around(1.9, 0.1)),
        ..Latency::default()
    };
    let warning = |share: u32| Warning {
        code: "client_limited".into(),
        message: if share == 1 {
            "the client was short of CPU: use another machine".into()
        } else {
            "the client was short of CPU: use another machine, again".into()
        },
    };
    let mut points = vec![point(1, around(900.0, 9.0), latency(1.1)), point(4, around(1500.0, 20.0), latency(2.5))];
    points[0].warnings.push(warning(1));
    points[1].warnings.push(warning(2));
    base(batch_size, points)
}

/// A cell that was too slow for its upper percentiles.
pub fn starved(batch_size: u32) -> Profile {
    let latency = Latency { p50: Some(around(400.0, 10.0)), ..Latency::default() };
    let mut only = point(1, around(20.0, 1.0), latency);
    for (path, needs) in [("latency_ms.p95", 72), ("latency_ms.p99", 368)] {
        let reason = Reason { code: "too_few_requests".into(), message: format!("needs {needs} requests, had 40") };
        only.unavailable.insert(path.into(), reason);
    }
    base(batch_size, vec![only])
}

/// A cell that could not be measured.
pub fn failed(batch_size: u32) -> Profile {
    let error = Problem::new(Code::EngineFailed, "engine rten exited with status 1")
        .with_hint("the whole log is /home/logs/rten.log");
    Profile { state: ProfileState::Failed, error: Some(error), ..base(batch_size, vec![]) }
}

/// A cell on a GPU that meets its agreement.
pub fn gpu(batch_size: u32, threads: u32) -> Profile {
    let latency = Latency {
        p50: Some(around(1.1, 0.05)),
        p95: Some(around(1.4, 0.1)),
        p99: Some(around(1.9, 0.1)),
        ..Latency::default()
    };
    let mut only = point(1, around(2000.0, 10.0), latency);
    only.gpu = Some(GpuUse {
        utilization_ratio: Some(0.87),
        memory_used_bytes: Some(25_232_932_864),
        memory_used_ratio: Some(0.29),
        ..GpuUse::default()
    });
    only.energy_per_inference_j = Some(0.1952);
    let mut profile = base(batch_size, vec![only]);
    profile.engine.name = "onnx".into();
    profile.engine.settings = [("threads".to_owned(), threads.into())].into();
    profile.device = ProfileDevice {
        kind: DeviceKind::Gpu,
        class: "nvidia-h100-80gb-hbm3".into(),
        name: Some("NVIDIA H100 80GB HBM3".into()),
        driver: Some("570.1".into()),
        cuda: Some("12.8".into()),
        ecc_enabled: None,
        mig_enabled: None,
        memory_total_bytes: Some(80 << 30),
    };
    profile.sla = Some(SlaResult { percentile: 95.0, latency_ms: 50.0, met: Some(true), best: profile.peak.clone() });
    profile
}
