//! The profile: the fold of a cell's repeats, and the public contract of the hub. Units are in the names.

use crate::{
    Problem, ProfileId, RequestId, Timestamp,
    device::DeviceKind,
    load::{Arrivals, LoadPoint},
    model::{Format, ModelRef, TensorShape},
    part::{Answers, EngineCpu, GpuUse, HostUse, Reason, Warning, point_document},
    stats::Figure,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// One cell of one request, failed ones included.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Profile {
    #[serde(rename = "_id")]
    pub id: ProfileId,
    pub schema_version: u32,
    pub modelmeter_version: String,
    /// Raised each time it is folded anew: compare-and-swap.
    pub revision: u64,
    pub request_id: RequestId,
    pub state: ProfileState,
    pub error: Option<Problem>,
    /// When the cell's last repeat ended.
    pub created_at: Timestamp,
    pub labels: BTreeMap<String, String>,
    pub model: ModelRef,
    pub artifact: Option<ProfileArtifact>,
    pub inputs: Vec<TensorShape>,
    pub inspector: String,
    pub engine: ProfileEngine,
    pub device: ProfileDevice,
    pub batch_size: u32,
    pub repeats: Vec<Repeat>,
    pub deploy_ms: Option<f64>,
    pub first_inference_ms: Option<f64>,
    pub reference: Option<Summary>,
    pub peak: Option<PeakSummary>,
    pub sla: Option<SlaResult>,
    pub points: Vec<ProfilePoint>,
    /// Why a field is null, by its path.
    pub unavailable: BTreeMap<String, Reason>,
}

/// How a cell ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProfileState {
    /// Every repeat was measured.
    Done,
    /// Some repeats were, or the load points that were finished when the cell was cancelled.
    Partial,
    /// Measured, but no load point is valid: counts as failed.
    Invalid,
    /// None was.
    Failed,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ProfileArtifact {
    pub format: Format,
    pub sha256: String,
    pub bytes: u64,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ProfileEngine {
    pub name: String,
    pub version: Option<String>,
    pub launch: Option<String>,
    pub image_digest: Option<String>,
    pub settings: BTreeMap<String, Value>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ProfileDevice {
    pub kind: DeviceKind,
    pub class: String,
    pub name: Option<String>,
    pub driver: Option<String>,
    /// The newest CUDA that the driver supports.
    pub cuda: Option<String>,
    pub ecc_enabled: Option<bool>,
    pub mig_enabled: Option<bool>,
    pub memory_total_bytes: Option<u64>,
}

/// Where a repeat ran.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Repeat {
    pub worker: String,
    pub device_uuid: Option<String>,
    pub attempt: u32,
    /// Logical cores that the client was pinned to.
    #[serde(default)]
    pub client_cpus: Option<Vec<u32>>,
    /// Logical cores that the engine was pinned to.
    #[serde(default)]
    pub engine_cpus: Option<Vec<u32>>,
}

/// A load as documents show it.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum ProfileLoad {
    Closed { concurrency: u32 },
    Open { rate_per_s: f64, arrivals: Arrivals },
}

impl From<LoadPoint> for ProfileLoad {
    fn from(load: LoadPoint) -> Self {
        match load {
            LoadPoint::Closed { concurrency } => Self::Closed { concurrency },
            LoadPoint::Open { rate_per_s, arrivals } => Self::Open { rate_per_s, arrivals },
        }
    }
}

/// The headline of a point: what was observed, each with its 95 % interval where that is supported.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Summary {
    pub load: ProfileLoad,
    pub throughput_inferences_per_s: Option<f64>,
    #[serde(default)]
    pub throughput_ci95_inferences_per_s: Option<[f64; 2]>,
    pub p50_latency_ms: Option<f64>,
    #[serde(default)]
    pub p50_latency_ci95_ms: Option<[f64; 2]>,
    pub p95_latency_ms: Option<f64>,
    #[serde(default)]
    pub p95_latency_ci95_ms: Option<[f64; 2]>,
    pub p99_latency_ms: Option<f64>,
    #[serde(default)]
    pub p99_latency_ci95_ms: Option<[f64; 2]>,
}

/// The headline of the valid point with the most inferences a second among those that every repeat measured, where there
/// is one, with its device.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct PeakSummary {
    #[serde(flatten)]
    pub summary: Summary,
    pub gpu_memory_used_bytes: Option<u64>,
    pub gpu_memory_used_ratio: Option<f64>,
    pub gpu_memory_delta_bytes: Option<i64>,
    pub gpu_utilization_ratio: Option<f64>,
}

/// Whether the SLA was met, and the best point that met it; null where no valid point shows either.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct SlaResult {
    pub percentile: f64,
    pub latency_ms: f64,
    pub met: Option<bool>,
    pub best: Option<PeakSummary>,
}

point_document! {
    /// One load point, folded over the repeats.
    #[allow(missing_docs)]
    pub struct ProfilePoint {
        {
            pub load: ProfileLoad,
            /// Repeats that measured this load; 0 in documents that do not say.
            #[serde(default)]
            pub repeats: u32,
        }
        counts {
            pub inferences: u64,
            pub requests_per_s: Option<f64>,
            pub throughput_inferences_per_s: Option<Figure>,
            pub latency_ms: Latency,
            pub service_ms: Option<Latency>,
            pub send_lateness_ms: Option<Lateness>,
        }
        gpu {
            /// Joules of the GPU an inference.
            pub energy_per_inference_j: Option<f64>,
        }
        engine_cpu {
            /// The server's own account, beside `latency_ms`, which is the client's; none where it gives none.
            pub server: Option<ServerLatency>,
        }
        soundness {
            /// What calls have besides their latency, by name; absent where there is none.
            #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
            pub metrics: BTreeMap<String, Distribution>,
        }
    }
}

/// The distribution of a metric over a load point, in the unit that it names.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Distribution {
    pub unit: String,
    #[serde(flatten)]
    pub values: Latency,
}

/// Where a server says that the time of a call went: means over the calls of the point and of its warm-up.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ServerLatency {
    pub requests: u64,
    /// Times that the model ran: fewer than the calls where the server batches them.
    pub executions: u64,
    pub queue_ms: f64,
    pub compute_input_ms: f64,
    pub compute_infer_ms: f64,
    pub compute_output_ms: f64,
}

/// A latency distribution in milliseconds. A percentile is null until a call is expected to lie beyond it, and where it falls
/// among failures.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Latency {
    pub mean: Option<f64>,
    pub p50: Option<Figure>,
    pub p90: Option<Figure>,
    pub p95: Option<Figure>,
    pub p99: Option<Figure>,
    pub p99_9: Option<Figure>,
    pub max: Option<f64>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Lateness {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}
