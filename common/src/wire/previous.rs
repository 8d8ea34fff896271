//! Messages as wire version 2 laid them out, and how each reads as one of today. What differs is within a part's point
//! alone; finals and hints are the same. Where a part of version 2 says nothing of what today's has, the field is null (a
//! counter is 0), and the point's `unavailable` says why.

use crate::{
    RequestId, TaskId,
    load::LoadPoint,
    part::{self, Answers, EngineCpu, GpuUse, Reason, ServerTimes, Warning},
    stats::{
        Figure, Histogram, Interval,
        percentile::{self, Basis},
    },
};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Fields of a point of which version 2 says nothing.
const NOT_REPORTED: [&str; 3] = ["host.speed_range", "host.throttled_ratio", "resent"];

/// A part of version 2.
#[derive(Deserialize)]
pub struct Part {
    schema_version: u32,
    request_id: RequestId,
    task_id: TaskId,
    attempt: u32,
    seq: u32,
    point: Point,
}

#[derive(Deserialize)]
struct Point {
    load: LoadPoint,
    batch_size: u32,
    warmup_s: f64,
    duration_s: f64,
    requests: u64,
    errors: u64,
    error_kinds: BTreeMap<String, u64>,
    answers: Answers,
    requests_per_s: Option<Interval>,
    latency: Histogram,
    percentiles: Vec<Percentile>,
    service: Option<Histogram>,
    send_lateness: Option<Histogram>,
    gpu: Option<GpuUse>,
    engine_cpu: Option<EngineCpu>,
    server: Option<ServerTimes>,
    client_cpu_cores: f64,
    host: Option<HostUse>,
    converged: bool,
    valid: bool,
    warnings: Vec<Warning>,
    unavailable: BTreeMap<String, Reason>,
}

#[derive(Deserialize)]
struct Percentile {
    q: f64,
    ms: Option<Interval>,
    needs: u64,
    had: u64,
    sure: u64,
}

#[derive(Deserialize)]
struct HostUse {
    cpu_busy_ratio: f64,
    steal_ratio: f64,
}

impl From<Part> for part::Part {
    fn from(Part { schema_version, request_id, task_id, attempt, seq, point }: Part) -> Self {
        Self { schema_version, request_id, task_id, attempt, seq, point: point.into() }
    }
}

impl From<Point> for part::Point {
    fn from(old: Point) -> Self {
        let mut unavailable = old.unavailable;
        for path in NOT_REPORTED {
            let reason = Reason {
                code: "not_reported".to_owned(),
                message: "the worker is of an earlier version, which does not report it; upgrade it".to_owned(),
            };
            unavailable.entry(path.to_owned()).or_insert(reason);
        }
        Self {
            load: old.load,
            batch_size: old.batch_size,
            warmup_s: old.warmup_s,
            duration_s: old.duration_s,
            requests: old.requests,
            errors: old.errors,
            resent: 0,
            error_kinds: old.error_kinds,
            answers: old.answers,
            requests_per_s: old.requests_per_s.map(Figure::from),
            latency: old.latency,
            percentiles: old.percentiles.into_iter().map(Into::into).collect(),
            service: old.service,
            send_lateness: old.send_lateness,
            gpu: old.gpu,
            engine_cpu: old.engine_cpu,
            server: old.server,
            client_cpu_cores: old.client_cpu_cores,
            host: old.host.map(Into::into),
            converged: old.converged,
            valid: old.valid,
            warnings: old.warnings,
            metrics: Vec::new(),
            unavailable,
        }
    }
}

impl From<Percentile> for percentile::Percentile {
    /// Version 2 gave a percentile only where ranks bounded it, and judged that by the samples that were sure.
    fn from(Percentile { q, ms, needs, had, sure }: Percentile) -> Self {
        let basis = if ms.is_some() { Basis::Ranks } else { Basis::None };
        Self { q, ms: ms.map(Figure::from), basis, beyond: 0, needs, had, sure, sure_unjoined: sure }
    }
}

impl From<HostUse> for part::HostUse {
    fn from(HostUse { cpu_busy_ratio, steal_ratio }: HostUse) -> Self {
        Self { cpu_busy_ratio, steal_ratio, throttled_ratio: None, speed_range: None }
    }
}
