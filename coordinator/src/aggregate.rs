//! The fold of a cell's repeats into its profile: pure, independent of the order of its input, recomputable from the
//! parts at any time.

use modelmeter_common::{
    SCHEMA_VERSION, Timestamp, VERSION,
    device::{CPU_CLASS, DeviceKind},
    engine::ENDPOINT,
    fold::fold_points,
    load::{Load, LoadPoint, Sla},
    part::{Deployment, Final, Metric, Outcome, Part, Point, Reason, ServerTimes},
    profile::{
        Distribution, Latency, Lateness, PeakSummary, Profile, ProfileArtifact, ProfileDevice, ProfileEngine,
        ProfilePoint, ProfileState, Repeat, ServerLatency, SlaResult, Summary,
    },
    request::RequestDoc,
    stats::{
        Figure, Histogram,
        percentile::Percentile,
        sample::Sample,
        sla::{holds, is_met, shows_miss},
    },
    task::Task,
};
use std::collections::BTreeMap;

const NS_PER_MS: f64 = 1e6;

/// The winning attempt of one repeat.
pub struct Measured {
    /// Number of the repeat.
    pub repeat: u32,
    /// Final of the attempt, `Done`.
    pub last: Final,
    /// Its parts.
    pub parts: Vec<Part>,
}

/// The profile of a cell whose repeats have all ended. `tasks` has at least one.
pub fn profile(request: &RequestDoc, tasks: &[Task], measured: &[Measured], revision: u64) -> Profile {
    let mut tasks: Vec<&Task> = tasks.iter().collect();
    tasks.sort_by_key(|task| task.repeat);
    let mut measured: Vec<&Measured> = measured.iter().collect();
    measured.sort_by_key(|m| m.repeat);
    let (task, cell) = (tasks[0], &tasks[0].cell);
    let folded = fold(&measured);
    let sla = request.request.sla.as_ref().map(|sla| match request.request.load {
        Load::SlaSearch { .. } => judge_searches(sla, &measured),
        _ => judge(sla, &measured, &folded, needed(request, tasks.len())),
    });
    let reference = folded.first().filter(|point| point.valid).map(summary);
    let peak = headline(folded.iter().filter(|point| point.valid), &measured, needed(request, tasks.len())).map(peak);
    let mut unavailable = BTreeMap::new();
    if reference.is_none() && !measured.is_empty() {
        let message = "the reference's point is not valid; it says why";
        unavailable.insert("reference".to_owned(), reason("no_valid_point", message));
    }
    if peak.is_none() && !measured.is_empty() {
        let is_fit = |point: &Point| point.valid && point.requests_per_s.is_some();
        let why = if folded.iter().any(is_fit) {
            reason(
                "not_every_repeat",
                "certified figures rest on every repeat, and no valid load point was measured in each",
            )
        } else if folded.iter().any(|point| point.valid) {
            reason("no_throughput", "no valid load point has a throughput; each point says why")
        } else {
            reason("no_valid_point", "no load point was valid; each point says why")
        };
        unavailable.insert("peak".to_owned(), why);
    }
    if let (Some(SlaResult { met: None, .. }), false) = (&sla, measured.is_empty()) {
        let message = "no valid load point shows that it is met, at 99 % confidence, or that it is missed";
        unavailable.insert("sla.met".to_owned(), reason("not_shown", message));
    }
    let is_elsewhere = cell.engine == ENDPOINT;
    if is_elsewhere {
        let message = "the server was not launched here: its device is not known";
        unavailable.insert("device.name".to_owned(), reason("not_local", message));
    }
    let deployments = || measured.iter().filter_map(|m| deployment(&m.last));
    Profile {
        id: task.profile_id,
        schema_version: SCHEMA_VERSION,
        modelmeter_version: VERSION.to_owned(),
        revision,
        request_id: request.id,
        state: match measured.len() {
            0 => ProfileState::Failed,
            n if n < tasks.len() || tasks.iter().any(|task| task.winner.is_none()) => ProfileState::Partial,
            _ if !folded.iter().any(|point| point.valid) => ProfileState::Invalid,
            _ => ProfileState::Done,
        },
        error: tasks.iter().filter(|task| task.winner.is_none()).find_map(|task| task.error.clone()),
        created_at: tasks.iter().map(|task| task.since_at).max().unwrap_or(Timestamp(0)),
        labels: request.request.labels.clone(),
        model: cell.model.clone(),
        artifact: cell.artifact.as_ref().map(|a| ProfileArtifact {
            format: a.format,
            sha256: a.sha256.clone(),
            bytes: a.bytes,
        }),
        inputs: cell.inputs.clone(),
        inspector: cell.inspector.clone(),
        engine: ProfileEngine {
            name: cell.engine.clone(),
            version: deployments().next().map(|d| d.engine_version.clone()),
            launch: deployments().next().map(|d| d.launch.clone()),
            image_digest: deployments().next().and_then(|d| d.image_digest.clone()),
            settings: cell.engine_settings.clone(),
        },
        device: device(&cell.device_class, is_elsewhere, measured.first().map(|m| &m.last)),
        batch_size: cell.batch_size,
        repeats: measured
            .iter()
            .map(|m| Repeat {
                worker: m.last.worker.clone(),
                device_uuid: m.last.device.uuid.clone(),
                attempt: m.last.attempt,
                client_cpus: deployment(&m.last).and_then(|d| d.client_cpus.clone()),
                engine_cpus: deployment(&m.last).and_then(|d| d.engine_cpus.clone()),
            })
            .collect(),
        deploy_ms: deployments().find_map(|d| d.deploy_ms),
        first_inference_ms: deployments().find_map(|d| d.first_inference_ms),
        reference,
        peak,
        sla,
        points: folded.iter().map(|point| profile_point(point, repeats_of(point.load, &measured))).collect(),
        unavailable,
    }
}

/// The points of all repeats, folded by equal load, in the order of the load.
fn fold(measured: &[&Measured]) -> Vec<Point> {
    let mut by_load: Vec<(LoadPoint, Vec<&Point>)> = Vec::new();
    for part in measured.iter().flat_map(|m| &m.parts) {
        match by_load.iter_mut().find(|(load, _)| *load == part.point.load) {
            Some((_, points)) => points.push(&part.point),
            None => by_load.push((part.point.load, vec![&part.point])),
        }
    }
    by_load.sort_by(|(a, _), (b, _)| size(a).total_cmp(&size(b)));
    by_load.into_iter().filter_map(|(_, points)| fold_points(&points)).collect()
}

/// Sort key of loads: the reference, one in flight or the lowest rate, comes first.
fn size(load: &LoadPoint) -> f64 {
    match load {
        LoadPoint::Closed { concurrency } => f64::from(*concurrency),
        LoadPoint::Open { rate_per_s, .. } => *rate_per_s,
    }
}

/// The point with the most inferences a second; one whose throughput is only observed, where no other is.
fn best<'a>(points: impl Iterator<Item = &'a Point>) -> Option<&'a Point> {
    let is_supported = |p: &Point| p.requests_per_s.is_some_and(|rate| rate.ci95.is_some());
    let by_support = |a: &&Point, b: &&Point| is_supported(a).cmp(&is_supported(b)).then(rate(a).total_cmp(&rate(b)));
    points.filter(|p| p.requests_per_s.is_some()).max_by(by_support)
}

/// Number of repeats that measured this load.
fn repeats_of(load: LoadPoint, measured: &[&Measured]) -> u32 {
    measured.iter().filter(|m| m.parts.iter().any(|part| part.point.load == load)).count() as u32
}

/// Number of repeats that a certified headline needs: all that were asked for. Other headlines need one.
fn needed(request: &RequestDoc, repeats: usize) -> u32 {
    if request.request.stop.certified { repeats as u32 } else { 1 }
}

/// The fastest of these points that every repeat measured, since a sweep refines other loads in each repeat; where there is
/// none, the fastest that at least `needed` repeats measured.
fn headline<'a>(
    points: impl Iterator<Item = &'a Point> + Clone,
    measured: &[&Measured],
    needed: u32,
) -> Option<&'a Point> {
    let by = |least: u32| best(points.clone().filter(|point| repeats_of(point.load, measured) >= least));
    by(needed.max(measured.len() as u32)).or_else(|| by(needed))
}

fn rate(point: &Point) -> f64 {
    point.requests_per_s.map_or(0.0, |rate| rate.value)
}

fn sample(point: &Point) -> Sample<'_> {
    Sample { latency: &point.latency, failures: point.errors }
}

/// Whether the SLA holds at 99 % confidence at some valid point of all repeats and is missed in none of them, and the
/// fastest such point.
fn judge(sla: &Sla, measured: &[&Measured], folded: &[Point], needed: u32) -> SlaResult {
    let repeats = |load| measured.iter().flat_map(|m| &m.parts).map(|p| &p.point).filter(move |p| p.load == load);
    let meets = |point: &Point| {
        point.valid
            && is_met(sla, sample(point), &point.percentiles)
            && repeats(point.load).all(|repeat| holds(sla, sample(repeat)))
    };
    let best = headline(folded.iter().filter(|point| meets(point)), measured, needed);
    // The SLA is missed only where every valid point shows that it misses it; otherwise the question stays open.
    let mut valid = folded.iter().filter(|point| point.valid).peekable();
    let misses = |point: &Point| shows_miss(sla, sample(point), &point.percentiles);
    let is_missed = valid.peek().is_some() && valid.all(|point| misses(point) || repeats(point.load).any(misses));
    let met = if best.is_some() { Some(true) } else { is_missed.then_some(false) };
    SlaResult { percentile: sla.percentile, latency_ms: sla.latency_ms, met, best: best.map(peak) }
}

/// Each repeat of a search has rates of its own: the rate that all of them support is the lowest that one found.
fn judge_searches(sla: &Sla, measured: &[&Measured]) -> SlaResult {
    let found = measured.iter().map(|m| judge(sla, &[*m], &fold(&[*m]), 1));
    let rate = |found: &SlaResult| found.best.as_ref().and_then(|best| best.summary.throughput_inferences_per_s);
    found
        .min_by(|a, b| rate(a).unwrap_or(0.0).total_cmp(&rate(b).unwrap_or(0.0)))
        .unwrap_or_else(|| judge(sla, &[], &[], 1))
}

fn deployment(last: &Final) -> Option<&Deployment> {
    match &last.outcome {
        Outcome::Done { deployment, .. } => Some(deployment),
        Outcome::Failed { .. } => None,
    }
}

/// The device that a cell ran on; for a cell that never ran, the fields that its class tells.
fn device(class: &str, is_elsewhere: bool, last: Option<&Final>) -> ProfileDevice {
    match last.map(|last| &last.device).filter(|_| !is_elsewhere) {
        Some(device) => ProfileDevice {
            kind: device.kind,
            class: device.class.clone(),
            name: Some(device.name.clone()),
            driver: device.driver.clone(),
            cuda: device.cuda.clone(),
            ecc_enabled: device.ecc_enabled,
            mig_enabled: device.mig_enabled,
            memory_total_bytes: device.memory_total_bytes,
        },
        None => ProfileDevice {
            kind: match class {
                _ if is_elsewhere => DeviceKind::Remote,
                CPU_CLASS => DeviceKind::Cpu,
                _ => DeviceKind::Gpu,
            },
            class: class.to_owned(),
            name: None,
            driver: None,
            cuda: None,
            ecc_enabled: None,
            mig_enabled: None,
            memory_total_bytes: None,
        },
    }
}

fn throughput(point: &Point) -> Option<Figure> {
    point.requests_per_s.map(|rate| rate.times(f64::from(point.batch_size)))
}

fn summary(point: &Point) -> Summary {
    let throughput = throughput(point);
    let [p50, p95, p99] = [50.0, 95.0, 99.0].map(|q| percentile(&point.percentiles, q));
    Summary {
        load: point.load.into(),
        throughput_inferences_per_s: throughput.map(|t| t.value),
        throughput_ci95_inferences_per_s: throughput.and_then(|t| t.ci95),
        p50_latency_ms: p50.map(|p| p.value),
        p50_latency_ci95_ms: p50.and_then(|p| p.ci95),
        p95_latency_ms: p95.map(|p| p.value),
        p95_latency_ci95_ms: p95.and_then(|p| p.ci95),
        p99_latency_ms: p99.map(|p| p.value),
        p99_latency_ci95_ms: p99.and_then(|p| p.ci95),
    }
}

fn peak(point: &Point) -> PeakSummary {
    let gpu = point.gpu.as_ref();
    PeakSummary {
        summary: summary(point),
        gpu_memory_used_bytes: gpu.and_then(|g| g.memory_used_bytes),
        gpu_memory_used_ratio: gpu.and_then(|g| g.memory_used_ratio),
        gpu_memory_delta_bytes: gpu.and_then(|g| g.memory_delta_bytes),
        gpu_utilization_ratio: gpu.and_then(|g| g.utilization_ratio),
    }
}

fn percentile(percentiles: &[Percentile], q: f64) -> Option<Figure> {
    percentiles.iter().find(|p| p.q == q).and_then(|p| p.ms)
}

fn profile_point(point: &Point, repeats: u32) -> ProfilePoint {
    let successes = point.requests.saturating_sub(point.errors);
    let mut unavailable = point.unavailable.clone();
    if matches!(point.load, LoadPoint::Closed { .. }) {
        for path in ["service_ms", "send_lateness_ms"] {
            unavailable.insert(path.to_owned(), reason("closed_loop", "only an open loop has a schedule"));
        }
    }
    let inferences = successes * u64::from(point.batch_size);
    let energy_j = point.gpu.as_ref().and_then(|gpu| gpu.energy_j).filter(|_| inferences > 0);
    if energy_j.is_none() {
        let of_gpu = ["gpu.energy_j", "gpu"].into_iter().find_map(|path| point.unavailable.get(path)).cloned();
        let why = match of_gpu {
            _ if inferences == 0 => reason("no_inferences", "no inference succeeded"),
            Some(why) => why,
            None => reason("no_energy", "the device's energy is not known for all repeats"),
        };
        unavailable.insert("energy_per_inference_j".to_owned(), why);
    }
    ProfilePoint {
        load: point.load.into(),
        repeats,
        duration_s: point.duration_s,
        requests: point.requests,
        errors: point.errors,
        resent: point.resent,
        error_kinds: point.error_kinds.clone(),
        answers: point.answers.clone(),
        inferences,
        requests_per_s: point.requests_per_s.map(|r| r.value),
        throughput_inferences_per_s: throughput(point),
        latency_ms: latency(&point.latency, &point.percentiles),
        // Service time has no intervals of its own: plain percentiles would look as sure as the others.
        service_ms: point.service.as_ref().map(|h| Latency {
            mean: (!h.is_empty()).then(|| h.mean_ns() / NS_PER_MS),
            max: (!h.is_empty()).then(|| h.max_ns() as f64 / NS_PER_MS),
            ..Latency::default()
        }),
        send_lateness_ms: point.send_lateness.as_ref().filter(|h| !h.is_empty()).map(|h| Lateness {
            p50: h.percentile_ns(50.0) as f64 / NS_PER_MS,
            p99: h.percentile_ns(99.0) as f64 / NS_PER_MS,
            max: h.max_ns() as f64 / NS_PER_MS,
        }),
        gpu: point.gpu.clone(),
        energy_per_inference_j: energy_j.map(|joules| joules / inferences as f64),
        engine_cpu: point.engine_cpu,
        server: point.server.and_then(server),
        client_cpu_cores: point.client_cpu_cores,
        host: point.host,
        converged: point.converged,
        valid: point.valid,
        warnings: point.warnings.clone(),
        unavailable,
        metrics: point.metrics.iter().map(|metric| (metric.name.clone(), distribution(metric))).collect(),
    }
}

fn distribution(metric: &Metric) -> Distribution {
    Distribution { unit: metric.unit.clone(), values: latency(&metric.values, &metric.percentiles) }
}

/// Means over the calls; none without calls.
fn server(times: ServerTimes) -> Option<ServerLatency> {
    let mean_ms = |ns: u64| ns as f64 / times.requests as f64 / NS_PER_MS;
    (times.requests > 0).then(|| ServerLatency {
        requests: times.requests,
        executions: times.executions,
        queue_ms: mean_ms(times.queue_ns),
        compute_input_ms: mean_ms(times.compute_input_ns),
        compute_infer_ms: mean_ms(times.compute_infer_ns),
        compute_output_ms: mean_ms(times.compute_output_ns),
    })
}

fn latency(histogram: &Histogram, percentiles: &[Percentile]) -> Latency {
    Latency {
        mean: (!histogram.is_empty()).then(|| histogram.mean_ns() / NS_PER_MS),
        p50: percentile(percentiles, 50.0),
        p90: percentile(percentiles, 90.0),
        p95: percentile(percentiles, 95.0),
        p99: percentile(percentiles, 99.0),
        p99_9: percentile(percentiles, 99.9),
        max: (!histogram.is_empty()).then(|| histogram.max_ns() as f64 / NS_PER_MS),
    }
}

fn reason(code: &str, message: &str) -> Reason {
    Reason { code: code.to_owned(), message: message.to_owned() }
}

#[cfg(test)]
mod tests;
