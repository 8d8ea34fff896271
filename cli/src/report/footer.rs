//! What stands below a table: why a figure is missing, what failed, what a reader must know, where it is kept.

use super::{
    number::{NONE, counted, number},
    profiles::{ended, load, point_of, shapes, shapes_differ},
};
use crate::job::settings_text;
use modelmeter_common::{
    device::DeviceKind,
    profile::{Profile, ProfilePoint, ProfileState},
};
use std::collections::{BTreeMap, BTreeSet};

/// More lines of one kind than this are summed up.
const MAX_LINES: usize = 12;

/// All of it, for the cells of one table.
pub fn footer(group: &[&Profile]) -> String {
    let mut lines = Vec::new();
    if group.iter().any(|p| p.peak.is_some()) {
        lines.push("inf/s: items of a batch per second, successes only; ± is half of the 95 % interval".into());
    }
    let names = Names { with_shapes: shapes_differ(group.iter().map(|p| p.inputs.as_slice())) };
    cold_starts(group, &mut lines);
    add(&mut lines, group.iter().flat_map(|p| missing_figures(p, &names)).collect());
    percentiles(group, &names, &mut lines);
    add(&mut lines, group.iter().filter_map(|p| server(p, &names)).collect());
    gpu(group, &mut lines);
    failures(group, &names, &mut lines);
    spoiled(group, &names, &mut lines);
    warnings(group, &names, &mut lines);
    let id = group[0].request_id;
    lines.push(format!("kept in the hub; to see it again: modelmeter results --request {id}"));
    lines.join("\n") + "\n"
}

/// How the lines name a cell.
struct Names {
    /// The inputs are part of it.
    with_shapes: bool,
}

impl Names {
    fn of(&self, p: &Profile) -> String {
        let settings = settings_text(&p.engine.settings);
        let settings = if settings.is_empty() { settings } else { format!(" ({settings})") };
        let shapes = if self.with_shapes { format!(" {}", shapes(&p.inputs)) } else { String::new() };
        format!("{}{settings} {}{shapes} batch {}", p.engine.name, p.device.class, p.batch_size)
    }
}

/// What the first call after a launch waits for, once for each engine and device.
fn cold_starts(group: &[&Profile], lines: &mut Vec<String>) {
    let mut told = BTreeSet::new();
    for p in group {
        let (Some(ready_ms), Some(first_ms)) = (p.deploy_ms, p.first_inference_ms) else { continue };
        if told.insert((&p.engine.name, &p.device.class)) {
            let (engine, device) = (&p.engine.name, &p.device.class);
            let (ready_s, first_ms) = (ready_ms / 1e3, number(first_ms));
            lines.push(format!(
                "cold start: {engine} {device}: ready after {ready_s:.2} s, first inference {first_ms} ms"
            ));
        }
    }
}

/// Percentiles of the reference that the samples cannot carry, a line a cell.
fn percentiles(group: &[&Profile], names: &Names, lines: &mut Vec<String>) {
    let missing: Vec<String> = group.iter().filter_map(|p| missing_percentiles(p, names)).collect();
    if missing.is_empty() {
        return;
    }
    add(lines, missing);
    lines.push(format!(
        "  figures marked {NONE} need longer runs: --max-duration 2m, a larger --budget or more --batches"
    ));
}

/// Why it has no throughput, or whether the SLA is met is open.
fn missing_figures(p: &Profile, names: &Names) -> Vec<String> {
    let reason = |(path, what): (&str, &str)| {
        let why = &p.unavailable.get(path)?.message;
        Some(format!("{NONE} {}: {what}: {why}", names.of(p)))
    };
    [("peak", "inf/s"), ("sla.met", "SLA")].into_iter().filter_map(reason).collect()
}

fn missing_percentiles(p: &Profile, names: &Names) -> Option<String> {
    let point = point_of(p, p.reference.as_ref()?.load)?;
    Some(format!("{NONE} {}: {}", names.of(p), why_missing(point)?))
}

/// Why percentiles of a point are missing, if any are.
pub(super) fn why_missing(point: &ProfilePoint) -> Option<String> {
    let reason = |name: &str| {
        let reason = point.unavailable.get(&format!("latency_ms.{name}"))?;
        Some(format!("{name} {}", reason.message))
    };
    let reasons: Vec<String> = ["p50", "p95", "p99"].into_iter().filter_map(reason).collect();
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

/// What made a point invalid.
pub(super) fn why_invalid(point: &ProfilePoint) -> String {
    let why = point.warnings.iter().filter(|warning| warning.spoils()).map(|warning| warning.message.as_str());
    why.collect::<Vec<_>>().join("; ")
}

/// Where the server says that the time of a single call went, beside the client's latency.
fn server(p: &Profile, names: &Names) -> Option<String> {
    let point = point_of(p, p.reference.as_ref()?.load)?;
    let (server, mean) = (point.server?, point.latency_ms.mean?);
    let compute = server.compute_input_ms + server.compute_infer_ms + server.compute_output_ms;
    let [queue, compute, mean] = [server.queue_ms, compute, mean].map(number);
    Some(format!("{} says of {mean} ms a call: {queue} ms in its queue, {compute} ms computing", names.of(p)))
}

/// Why the GPU columns are empty, each reason once.
fn gpu(group: &[&Profile], lines: &mut Vec<String>) {
    let lacking = group.iter().filter(|p| p.peak.as_ref().is_some_and(|peak| peak.gpu_memory_used_bytes.is_none()));
    let reasons: BTreeSet<String> = lacking.map(|p| gpu_reason(p)).collect();
    lines.extend(reasons.into_iter().map(|reason| format!("GPU: {reason}")));
}

fn gpu_reason(p: &Profile) -> String {
    let told = |point: &ProfilePoint| {
        let of_point = ["gpu", "gpu.memory_used_bytes"].into_iter().find_map(|path| point.unavailable.get(path));
        of_point.map(|reason| reason.message.clone())
    };
    match (p.points.iter().find_map(told), p.device.kind) {
        (Some(reason), _) => reason,
        (None, DeviceKind::Cpu) => "the device is a CPU".into(),
        (None, DeviceKind::Gpu) => "the driver gave no figures".into(),
    }
}

fn failures(group: &[&Profile], names: &Names, lines: &mut Vec<String>) {
    let mut failed = Vec::new();
    for p in group.iter().filter(|p| p.state != ProfileState::Done) {
        let Some(error) = &p.error else { continue };
        let mut text = format!("{}: {}: {}", ended(p), names.of(p), error.to_string().replace('\n', "\n    "));
        if let Some(hint) = &error.hint {
            text += &format!("\n  hint: {hint}");
        }
        failed.push(text);
    }
    add(lines, failed);
}

/// What each point that does not stand met.
fn spoiled(group: &[&Profile], names: &Names, lines: &mut Vec<String>) {
    let told = |p: &Profile, point: &ProfilePoint| {
        format!("invalid: {}, {}: {}", names.of(p), load(point.load), why_invalid(point))
    };
    let points =
        group.iter().flat_map(|p| p.points.iter().filter(|point| !point.valid).map(move |point| told(p, point)));
    add(lines, points.collect());
}

/// Each other warning once: messages of one code differ in their figures only, so that the first stands for all.
fn warnings(group: &[&Profile], names: &Names, lines: &mut Vec<String>) {
    let mut told: BTreeMap<&str, (String, u64)> = BTreeMap::new();
    for (p, point) in group.iter().flat_map(|p| p.points.iter().map(move |point| (p, point))) {
        for warning in point.warnings.iter().filter(|warning| !warning.spoils()) {
            let first = || format!("{} ({}, {}", warning.message, names.of(p), load(point.load));
            told.entry(&warning.code).and_modify(|(_, more)| *more += 1).or_insert_with(|| (first(), 0));
        }
    }
    lines.extend(told.into_values().map(|(first, more)| match more {
        0 => format!("warning: {first})"),
        _ => format!("warning: {first}, and {} more)", counted(more, "load point")),
    }));
}

fn add(lines: &mut Vec<String>, mut more: Vec<String>) {
    let hidden = more.len().saturating_sub(MAX_LINES);
    more.truncate(MAX_LINES);
    lines.extend(more);
    if hidden > 0 {
        lines.push(format!("  and {hidden} more like these (--json has all)"));
    }
}
