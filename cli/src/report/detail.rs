//! Everything that is known besides the figures (`--detail`): what failed, each invalid load point, why a figure or its
//! interval is missing, each warning, cold starts, the servers' own times.

use super::{
    View,
    cell::{Cell, Group, load, state},
    number::{self, number},
    text::wrap,
};
use modelmeter_common::{
    device::DeviceKind,
    profile::{Latency, ProfilePoint, ProfileState},
    stats::Figure,
};
use std::collections::BTreeSet;

/// The percentiles, as documents name them.
type Percentile = (&'static str, fn(&Latency) -> Option<Figure>);
const PERCENTILES: [Percentile; 5] =
    [("p50", |ms| ms.p50), ("p90", |ms| ms.p90), ("p95", |ms| ms.p95), ("p99", |ms| ms.p99), ("p99_9", |ms| ms.p99_9)];

/// All of it.
pub fn lines(group: &Group, view: View) -> Vec<String> {
    let cells = || group.cells.iter();
    let mut sentences = vec!["inf/s: items of a batch a second, successes only; latencies are the client's".to_owned()];
    sentences.extend(cells().filter_map(failure));
    sentences.extend(cells().flat_map(invalid));
    sentences.extend(cells().filter_map(missing_figures));
    sentences.extend(cells().filter_map(missing_percentiles));
    sentences.extend(cells().flat_map(warnings));
    sentences.extend(cold_starts(group));
    sentences.extend(cells().filter_map(server));
    sentences.extend(gpu(group));
    let paint = view.paint();
    let mut lines = Vec::new();
    for paragraph in sentences.iter().flat_map(|sentence| sentence.lines()) {
        let mut wrapped = wrap(paragraph, view.width);
        wrapped[0] = paint.line(&wrapped[0]);
        lines.append(&mut wrapped);
    }
    lines.push(format!("kept: modelmeter results --request {}", group.cells[0].profile.request_id));
    lines
}

/// Why a cell has not all of its figures, with the engine's last words.
fn failure(cell: &Cell) -> Option<String> {
    let p = cell.profile;
    let error = p.error.as_ref().filter(|_| p.state != ProfileState::Done)?;
    let mut text = format!("{}: {}: {}", state(p), cell.name, error.to_string().replace('\n', "\n    "));
    if let Some(hint) = &error.hint {
        text += &format!("\n  hint: {hint}");
    }
    Some(text)
}

/// What made each load point invalid.
fn invalid(cell: &Cell) -> Vec<String> {
    let points = cell.profile.points.iter().filter(|point| !point.valid);
    points.map(|point| format!("invalid: {}, {}: {}", cell.name, load(point.load), why_invalid(point))).collect()
}

/// What made a load point invalid.
pub fn why_invalid(point: &ProfilePoint) -> String {
    let why = point.warnings.iter().filter(|warning| warning.spoils()).map(|warning| warning.message.as_str());
    why.collect::<Vec<_>>().join("; ")
}

/// Why there is no throughput, or whether the SLA holds is open.
fn missing_figures(cell: &Cell) -> Option<String> {
    let reason = |(path, what): (&str, &str)| {
        let why = &cell.profile.unavailable.get(path)?.message;
        Some(format!("{what}: {why}"))
    };
    let reasons: Vec<String> = [("peak", "inf/s"), ("sla.met", "SLA")].into_iter().filter_map(reason).collect();
    (!reasons.is_empty()).then(|| format!("missing: {}: {}", cell.name, reasons.join("; ")))
}

/// Percentiles of the reference that are missing or observed only, each with its reason.
fn missing_percentiles(cell: &Cell) -> Option<String> {
    let point = cell.reference()?;
    let reason = |(name, of): Percentile| {
        let path = format!("latency_ms.{name}");
        let reason = point.unavailable.get(&path).or_else(|| point.unavailable.get(&format!("{path}.ci95")))?;
        let seen = number::shown(of(&point.latency_ms), point.valid).map(|shown| {
            format!("{} {} {}: ", name.replace('_', "."), shown.text(), shown.ends()).replace(" : ", ": ")
        });
        Some(seen.unwrap_or_default() + &reason.message)
    };
    let reasons: Vec<String> = PERCENTILES.into_iter().filter_map(reason).collect();
    (!reasons.is_empty()).then(|| format!("missing: {}, {}: {}", cell.name, load(point.load), reasons.join("; ")))
}

/// Each warning of each load point that is valid in spite of it.
fn warnings(cell: &Cell) -> Vec<String> {
    let of_point = |point: &ProfilePoint| {
        let at = load(point.load);
        let line = |message: &String| format!("warning: {}, {at}: {message}", cell.name);
        point.warnings.iter().filter(|w| !w.spoils()).map(|w| line(&w.message)).collect::<Vec<_>>()
    };
    cell.profile.points.iter().flat_map(of_point).collect()
}

/// What the first call after a launch waits for, once for each engine and device.
fn cold_starts(group: &Group) -> Vec<String> {
    let mut told = BTreeSet::new();
    let mut lines = Vec::new();
    for p in group.cells.iter().map(|cell| cell.profile) {
        let (Some(ready_ms), Some(first_ms)) = (p.deploy_ms, p.first_inference_ms) else { continue };
        if told.insert((&p.engine.name, &p.device.class)) {
            let (engine, device, ready_s) = (&p.engine.name, &p.device.class, ready_ms / 1e3);
            let first = number(first_ms);
            lines.push(format!(
                "cold start: {engine} on {device} is ready after {ready_s:.2} s, its first call takes {first} ms"
            ));
        }
    }
    lines
}

/// Where the server says that the time of a single call went, beside the client's latency.
fn server(cell: &Cell) -> Option<String> {
    let point = cell.reference()?;
    let (server, mean) = (point.server?, point.latency_ms.mean?);
    let compute = server.compute_input_ms + server.compute_infer_ms + server.compute_output_ms;
    let [queue, compute, mean] = [server.queue_ms, compute, mean].map(number);
    Some(format!("server: {} says of {mean} ms a call: {queue} ms in its queue, {compute} ms computing", cell.name))
}

/// Why GPU figures are missing where there is a GPU, each reason once.
fn gpu(group: &Group) -> Vec<String> {
    let of_point = |point: &ProfilePoint| {
        ["gpu", "gpu.memory_used_bytes"].into_iter().find_map(|path| Some(point.unavailable.get(path)?.message.clone()))
    };
    let on_gpus = group.cells.iter().filter(|cell| cell.profile.device.kind == DeviceKind::Gpu);
    let reasons: BTreeSet<String> = on_gpus.filter_map(|cell| of_point(cell.peak()?)).collect();
    reasons.into_iter().map(|reason| format!("GPU: {reason}")).collect()
}
