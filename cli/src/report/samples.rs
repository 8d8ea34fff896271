//! Fixed profiles for the tests of this room.

use modelmeter_common::{
    Code, Problem, RequestId, SCHEMA_VERSION, Timestamp,
    device::DeviceKind,
    model::{Datatype, ModelRef, TensorShape},
    part::{EngineCpu, GpuUse, HostUse, Reason, Warning},
    profile::{
        Latency, PeakSummary, Profile, ProfileDevice, ProfileEngine, ProfileLoad, ProfilePoint, ProfileState, Repeat,
        SlaResult, Summary,
    },
    stats::{Figure, Interval},
};
use std::collections::BTreeMap;
use uuid::Uuid;

fn around(value: f64, half: f64) -> Figure {
    Interval { value, ci95: [value - half, value + half] }.into()
}

fn seen(value: f64, lower95: f64) -> Figure {
    Figure { lower95: Some(lower95), ..Figure::observed(value) }
}

fn warning(code: &str, message: &str) -> Warning {
    Warning { code: code.into(), message: message.into() }
}

fn point(concurrency: u32, throughput: Figure, latency_ms: Latency) -> ProfilePoint {
    ProfilePoint {
        load: ProfileLoad::Closed { concurrency },
        repeats: 1,
        duration_s: 2.0,
        requests: 2000,
        errors: 0,
        resent: 0,
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
        engine_cpu: Some(EngineCpu { cores: 1.94, rss_bytes: 241_172_480 }),
        server: None,
        client_cpu_cores: 0.1,
        host: Some(HostUse::default()),
        converged: true,
        valid: true,
        warnings: vec![],
        unavailable: BTreeMap::new(),
        metrics: BTreeMap::new(),
    }
}

fn latency(p50: f64) -> Latency {
    Latency {
        p50: Some(around(p50, p50 * 0.05)),
        p90: Some(around(p50 * 1.2, p50 * 0.05)),
        p95: Some(around(p50 * 1.3, p50 * 0.05)),
        p99: Some(around(p50 * 1.7, p50 * 0.1)),
        ..Latency::default()
    }
}

fn summary(point: &ProfilePoint) -> Summary {
    let value = |figure: Option<Figure>| figure.map(|f| f.value);
    let ends = |figure: Option<Figure>| figure.and_then(|f| f.ci95);
    let ms = &point.latency_ms;
    Summary {
        load: point.load,
        throughput_inferences_per_s: value(point.throughput_inferences_per_s),
        throughput_ci95_inferences_per_s: ends(point.throughput_inferences_per_s),
        p50_latency_ms: value(ms.p50),
        p50_latency_ci95_ms: ends(ms.p50),
        p95_latency_ms: value(ms.p95),
        p95_latency_ci95_ms: ends(ms.p95),
        p99_latency_ms: value(ms.p99),
        p99_latency_ci95_ms: ends(ms.p99),
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
    let valid = || points.iter().filter(|point| point.valid);
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
        reference: valid().next().map(summary),
        peak: valid().next_back().map(peak),
        sla: None,
        points: points.clone(),
        unavailable: BTreeMap::new(),
    }
}

/// A cell in which every figure is supported.
pub fn cpu(batch_size: u32) -> Profile {
    let n = f64::from(batch_size);
    let points = vec![
        point(1, around(900.0 * n.sqrt(), 9.0), latency(1.1 * n.sqrt())),
        point(4, around(1500.0 * n.sqrt(), 20.0), latency(2.6 * n.sqrt())),
    ];
    base(batch_size, points)
}

/// A cell of calls that take over a second, on an engine of its own speed.
pub fn observed(batch_size: u32) -> Profile {
    let slow = Latency { p50: Some(seen(1400.0, 1290.0)), p90: Some(seen(1610.0, 1380.0)), ..Latency::default() };
    let mut points = vec![point(1, around(5.7, 0.6), slow)];
    points.push(point(2, around(5.9, 7.7), Latency { p50: Some(seen(2700.0, 2500.0)), ..Latency::default() }));
    (points[0].requests, points[0].duration_s) = (12, 16.8);
    let reasons = [
        ("p95", "p95 is seen from 20 calls on, there were 12"),
        ("p90.ci95", "5 calls beyond p90 are needed, there was 1: only a lower bound is sure"),
    ];
    for (name, message) in reasons {
        let reason = Reason { code: "too_few_requests".into(), message: message.into() };
        points[0].unavailable.insert(format!("latency_ms.{name}"), reason);
    }
    base(batch_size, points)
}

/// A cell of which no load point is valid.
pub fn invalid(batch_size: u32) -> Profile {
    let message = "5.0 % of the calls failed: UNAVAILABLE 100; lower the load or mend the server";
    let mut profile = cpu(batch_size);
    for point in &mut profile.points {
        point.valid = false;
        point.errors = 100;
        point.latency_ms.p95 = Some(Figure::observed(1.4));
        point.warnings.push(warning("errors", message));
    }
    let reason =
        Reason { code: "no_valid_point".into(), message: "no load point was valid; each point says why".into() };
    profile.unavailable.insert("peak".into(), reason);
    Profile { state: ProfileState::Invalid, reference: None, peak: None, ..profile }
}

/// A cell that could not be measured.
pub fn failed(batch_size: u32) -> Profile {
    let error =
        Problem::new(Code::EngineFailed, "engine rten exited with status 1\nthread main panicked\nout of memory")
            .with_hint("the whole log is /home/logs/rten.log");
    Profile { state: ProfileState::Failed, error: Some(error), ..base(batch_size, vec![]) }
}

/// A cell that was cancelled after its first load point.
pub fn cancelled(batch_size: u32) -> Profile {
    let error = Problem::new(Code::Cancelled, "interrupted by the user");
    let mut profile = cpu(batch_size);
    profile.points.truncate(1);
    let only = profile.points[0].clone();
    Profile { state: ProfileState::Partial, error: Some(error), peak: Some(peak(&only)), ..profile }
}

/// A cell that keeps an SLA of p95 ≤ 2 ms, misses it, or leaves it open.
pub fn sla(batch_size: u32, met: Option<bool>) -> Profile {
    let mut profile = cpu(batch_size);
    let best = met.filter(|met| *met).and(profile.reference.as_ref()).map(|_| peak(&profile.points[0]));
    if met.is_none() {
        profile.points[0].latency_ms.p95 = Some(seen(1.9, 1.7));
        let message = "no valid load point shows that it is met, at 99 % confidence, or that it is missed";
        profile.unavailable.insert("sla.met".into(), Reason { code: "not_shown".into(), message: message.into() });
    }
    profile.sla = Some(SlaResult { percentile: 95.0, latency_ms: 2.0, met, best });
    profile
}

/// A cell that three workers measured.
pub fn repeats(batch_size: u32) -> Profile {
    let repeat = |worker: &str| Repeat {
        worker: worker.into(),
        device_uuid: None,
        attempt: 1,
        client_cpus: None,
        engine_cpus: None,
    };
    Profile { repeats: ["w1", "w2", "w3"].map(repeat).to_vec(), ..cpu(batch_size) }
}

/// A cell on a GPU that keeps its SLA.
pub fn gpu(batch_size: u32, threads: u32) -> Profile {
    let mut only = point(1, around(2000.0, 10.0), latency(1.1));
    only.engine_cpu = None;
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

/// Two engines, one clearly faster than the other.
pub fn engines() -> Vec<Profile> {
    let mut cells = vec![cpu(1), cpu(4)];
    for batch_size in [1, 4] {
        let mut other = cpu(batch_size);
        other.engine.name = "onnx".into();
        other.engine.version = Some("1.32.0".into());
        for point in &mut other.points {
            point.throughput_inferences_per_s = point.throughput_inferences_per_s.map(|figure| figure.times(1.3));
            let ms = &mut point.latency_ms;
            [&mut ms.p50, &mut ms.p90, &mut ms.p95, &mut ms.p99].into_iter().for_each(|p| *p = p.map(|p| p.times(0.8)));
        }
        cells.push(other);
    }
    cells
}

/// Cells that met every kind of trouble at every load point.
pub fn streams_of_warnings() -> Vec<Profile> {
    let told = [
        (
            "drifting",
            "latency rose by 12 % from the first half of the measurement to the second; let clocks, temperature and caches settle, then measure again, or longer: --min-duration",
        ),
        ("not_converged", "the 95 % interval of throughput is ±7.0 %, not ±5.0 %; raise --max-duration or --precision"),
        ("steal", "other virtual machines took 5.1 % of this host's CPU time; use a dedicated host"),
        (
            "client_starved",
            "the client waited for a core 27 % of the time, which is in the latencies; give it cores of its own (--client-cpus, --engine-cpus) or the engine fewer threads",
        ),
        ("of_a_newer_version", "the moon was full; measure again next week"),
    ];
    let mut cells = vec![cpu(1), cpu(2), cpu(4), invalid(8), failed(16)];
    for point in cells.iter_mut().flat_map(|cell| &mut cell.points) {
        point.warnings.extend(told.map(|(code, message)| warning(code, message)));
    }
    cells[0].points[0].warnings.remove(2);
    cells
}
