//! What a worker publishes: one part for each load point of an attempt, and one final.
//!
//! These travel as bincode ([`crate::wire`]), so no field may be skipped, flattened or untagged.

use crate::{
    Problem, RequestId, TaskId, Timestamp,
    device::Device,
    ids,
    load::LoadPoint,
    stats::{Figure, Histogram, percentile::Percentile},
    warning::{Severity, WarningCode},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;

/// The partial result of one load point of one attempt of a task.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Part {
    /// Version of this document.
    pub schema_version: u32,
    /// The request it belongs to.
    pub request_id: RequestId,
    /// The task.
    pub task_id: TaskId,
    /// The attempt; attempts are never mixed.
    pub attempt: u32,
    /// Its place in the attempt, from 0.
    pub seq: u32,
    /// What was measured.
    pub point: Point,
}

impl Part {
    /// Its key in the hub.
    pub fn id(&self) -> String {
        ids::part_id(self.task_id, self.attempt, self.seq)
    }
}

/// The end of an attempt: its outcome, and the parts that it must have to count.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Final {
    /// Version of this document.
    pub schema_version: u32,
    /// The request it belongs to.
    pub request_id: RequestId,
    /// The task.
    pub task_id: TaskId,
    /// The attempt.
    pub attempt: u32,
    /// The worker's name.
    pub worker: String,
    /// The device that it ran on.
    pub device: Device,
    /// The start, by the worker's own clock.
    pub started_at: Timestamp,
    /// The end, by the worker's own clock.
    pub ended_at: Timestamp,
    /// The outcome: the measured parts, or the reason of the failure.
    pub outcome: Outcome,
}

impl Final {
    /// Its key in the hub.
    pub fn id(&self) -> String {
        ids::final_id(self.task_id, self.attempt)
    }
}

/// How an attempt ended.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Measured: complete when each of these parts is in the hub.
    Done {
        /// The sha256 (hex) of each part's wire form, by seq.
        parts: Vec<String>,
        /// The engine that served.
        deployment: Deployment,
    },
    /// Not measured. The coordinator decides whether the task is tried again.
    Failed {
        /// Why.
        error: Problem,
    },
}

/// The engine as it was deployed for an attempt.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Deployment {
    /// The engine's own version.
    pub engine_version: String,
    /// `process`, `docker` or `attach`.
    pub launch: String,
    /// The image's digest, for `docker`.
    pub image_digest: Option<String>,
    /// Launch to ready; null where it already ran.
    pub deploy_ms: Option<f64>,
    /// The first call after ready; null where it already served.
    pub first_inference_ms: Option<f64>,
    /// Logical cores that the client was pinned to; null: none.
    pub client_cpus: Option<Vec<u32>>,
    /// Logical cores that the engine was pinned to; null: none, or it was not launched here.
    pub engine_cpus: Option<Vec<u32>>,
}

/// Defines a load point's document: a part's, which has distributions, or a profile's, which shows them as figures. The
/// fields that both have stand here once; a document names their groups where they stand among its own fields, since JSON,
/// and the wire even more, go by the order.
macro_rules! point_document {
    (
        $(#[$about:meta])*
        pub struct $name:ident {
            { $($before:tt)* } counts { $($figures:tt)* } gpu { $($energy:tt)* } engine_cpu { $($server:tt)* } soundness
            { $($metrics:tt)* }
        }
    ) => {
        $(#[$about])*
        #[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
        pub struct $name {
            $($before)*
            /// The measured time, of all repeats together.
            pub duration_s: f64,
            /// Calls that ended in the measured time, failures included.
            pub requests: u64,
            /// Calls that failed.
            pub errors: u64,
            /// Calls that were sent again, because the server said that it had not begun them: neither failures nor calls of
            /// their own.
            #[serde(default)]
            pub resent: u64,
            /// The failures, by kind.
            pub error_kinds: BTreeMap<String, u64>,
            /// What was found in the answers that were checked.
            #[serde(default)]
            pub answers: Answers,
            $($figures)*
            /// The GPU while this ran.
            pub gpu: Option<GpuUse>,
            $($energy)*
            /// The engine's process tree; none for a remote server.
            pub engine_cpu: Option<EngineCpu>,
            $($server)*
            /// Cores that the client itself used.
            pub client_cpu_cores: f64,
            /// The machine around it; none where it does not tell.
            pub host: Option<HostUse>,
            /// Whether the stop rule was met before the maximum duration.
            pub converged: bool,
            /// Whether it may be compared; if not, a warning says why.
            pub valid: bool,
            /// What a reader must know, with what to do.
            pub warnings: Vec<Warning>,
            /// Why a field of the profile's point is null, by its path within that point.
            pub unavailable: BTreeMap<String, Reason>,
            $($metrics)*
        }
    };
}

pub(crate) use point_document;

point_document! {
    /// The measurement of one load point.
    pub struct Point {
        {
            /// The load.
            pub load: LoadPoint,
            /// Items in a call.
            pub batch_size: u32,
            /// Warm-up before it, not part of it.
            pub warmup_s: f64,
        }
        counts {
            /// Successful calls a second; none where no call succeeded.
            pub requests_per_s: Option<Figure>,
            /// Latency of the successes: closed loop from the send, open loop from the scheduled time.
            pub latency: Histogram,
            /// The latency's percentiles, in the order of [`PERCENTILES`](crate::stats::percentile::PERCENTILES).
            pub percentiles: Vec<Percentile>,
            /// Open loop: latency from the actual send.
            pub service: Option<Histogram>,
            /// Open loop: actual minus scheduled send.
            pub send_lateness: Option<Histogram>,
        }
        gpu {}
        engine_cpu {
            /// What the server itself says of its time; none where it does not.
            pub server: Option<ServerTimes>,
        }
        soundness {
            /// What calls have besides their latency; absent from documents where there is none. On the wire the metrics
            /// follow the part ([`crate::wire`]).
            #[serde(
                default,
                skip_serializing_if = "Vec::is_empty",
                serialize_with = "not_on_the_wire",
                deserialize_with = "none_on_the_wire"
            )]
            pub metrics: Vec<Metric>,
        }
    }
}

/// Metrics where a format is for people, and nothing, not even a length, on the wire.
fn not_on_the_wire<S: Serializer>(metrics: &[Metric], serializer: S) -> Result<S::Ok, S::Error> {
    if serializer.is_human_readable() { metrics.serialize(serializer) } else { serializer.serialize_unit() }
}

fn none_on_the_wire<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Metric>, D::Error> {
    if deserializer.is_human_readable() { Vec::deserialize(deserializer) } else { Ok(Vec::new()) }
}

/// A duration that calls have besides their latency, such as the time to the first token: its distribution over a point.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Metric {
    /// The name in documents, such as `ttft_ms`.
    pub name: String,
    /// The unit in documents, in which a millisecond is 1.
    pub unit: String,
    /// The values of the calls that succeeded, in ns.
    pub values: Histogram,
    /// Calls that failed: they rank after every value.
    pub failures: u64,
    /// The percentiles of the values, in the order of [`PERCENTILES`](crate::stats::percentile::PERCENTILES).
    pub percentiles: Vec<Percentile>,
}

impl Point {
    /// A valid point without a call: the base on which simulations and tests fill in what they measure.
    pub fn blank(load: LoadPoint, batch_size: u32) -> Self {
        Self {
            load,
            batch_size,
            warmup_s: 0.0,
            duration_s: 1.0,
            requests: 0,
            errors: 0,
            resent: 0,
            error_kinds: BTreeMap::new(),
            answers: Answers::default(),
            requests_per_s: None,
            latency: Histogram::default(),
            percentiles: Vec::new(),
            service: None,
            send_lateness: None,
            gpu: None,
            engine_cpu: None,
            server: None,
            client_cpu_cores: 0.0,
            host: None,
            converged: true,
            valid: true,
            warnings: Vec::new(),
            unavailable: BTreeMap::new(),
            metrics: Vec::new(),
        }
    }
}

/// Answers of successful calls that were checked wholly: a sample.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Answers {
    /// Number of answers that were checked.
    pub checked: u64,
    /// Number of wrong answers, by what was wrong: `shape`, `values`, `dtype` and the like.
    pub wrong: BTreeMap<String, u64>,
}

/// A GPU while a point ran. Ratios are 0 to 1.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct GpuUse {
    pub utilization_ratio: Option<f64>,
    pub memory_used_bytes: Option<u64>,
    pub memory_used_ratio: Option<f64>,
    pub memory_delta_bytes: Option<i64>,
    pub memory_process_bytes: Option<u64>,
    pub power_w: Option<f64>,
    pub energy_j: Option<f64>,
    pub sm_clock_mhz: Option<f64>,
    pub temperature_c: Option<f64>,
    pub throttle: Vec<String>,
}

/// The engine's process tree while a point ran.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct EngineCpu {
    /// Cores used on average.
    pub cores: f64,
    /// Resident memory at the end.
    pub rss_bytes: u64,
}

/// What a server says of the calls of a point, from the start of its warm-up to its end: totals. Source: Triton's
/// statistics extension.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ServerTimes {
    /// Calls that succeeded.
    pub requests: u64,
    /// Times that the model ran: fewer than the calls where the server batches them.
    pub executions: u64,
    /// Waiting for the model, over all calls, in ns.
    pub queue_ns: u64,
    /// Preparing inputs, in ns.
    pub compute_input_ns: u64,
    /// Running the model, in ns.
    pub compute_infer_ns: u64,
    /// Handing over outputs, in ns.
    pub compute_output_ns: u64,
}

impl ServerTimes {
    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    /// The difference to `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        self.with(earlier, u64::saturating_sub)
    }

    fn with(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            requests: f(self.requests, other.requests),
            executions: f(self.executions, other.executions),
            queue_ns: f(self.queue_ns, other.queue_ns),
            compute_input_ns: f(self.compute_input_ns, other.compute_input_ns),
            compute_infer_ns: f(self.compute_infer_ns, other.compute_infer_ns),
            compute_output_ns: f(self.compute_output_ns, other.compute_output_ns),
        }
    }
}

/// The host while a point ran. Ratios are 0 to 1 of all cores.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct HostUse {
    pub cpu_busy_ratio: f64,
    pub steal_ratio: f64,
    /// Share of the time in which a CPU quota stopped client or engine, the greater of the two; none without a quota.
    #[serde(default)]
    pub throttled_ratio: Option<f64>,
    /// How slow and how fast the engine's cores were: the 5th and the 95th percentile of fixed work's speed over its median.
    /// None where the engine was not launched here, the point was too short, or its cores were never idle.
    #[serde(default)]
    pub speed_range: Option<[f64; 2]>,
}

/// A condition that makes a point less reliable, with what to do about it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Warning {
    /// For programs.
    pub code: String,
    /// For people: the condition, and what to do.
    pub message: String,
}

impl Warning {
    /// The kind of the warning.
    pub fn kind(&self) -> WarningCode {
        WarningCode::of(&self.code)
    }

    /// Whether a point with this warning is invalid.
    pub fn spoils(&self) -> bool {
        self.kind().severity() == Severity::Invalid
    }
}

/// Why a field is null.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reason {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
}
