//! What `status`, `watch`, `--dry-run` and `workers` show.

use crate::{
    Incarnation, PoolId, Problem, RequestId, Timestamp,
    device::Device,
    model::{Format, ModelRef, TensorShape},
    request::RequestState,
    task::TaskState,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Where a request stands, cell by cell.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Status {
    pub request_id: RequestId,
    pub state: RequestState,
    pub model: ModelRef,
    pub created_at: Timestamp,
    pub ended_at: Option<Timestamp>,
    #[serde(default)]
    pub error: Option<Problem>,
    pub cells: Vec<CellStatus>,
}

/// Where one repeat of a cell stands, and what it waits for.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct CellStatus {
    pub engine: String,
    pub engine_settings: BTreeMap<String, Value>,
    pub device: String,
    pub batch_size: u32,
    #[serde(default)]
    pub inputs: Vec<TensorShape>,
    pub repeat: u32,
    pub state: TaskState,
    pub attempts: u32,
    pub worker: Option<String>,
    pub reason: Option<String>,
    /// Whether it is still to run, and no slot that is there can run it.
    #[serde(default)]
    pub blocked: bool,
}

/// What a request would do.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Dryrun {
    pub model: ModelRef,
    pub cells: Vec<PlannedCell>,
    /// From the stop rules, the repeats and the slots that are there now.
    pub estimated_seconds: Estimate,
}

/// From the fastest to the slowest that the stop rules allow.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Estimate {
    pub low: f64,
    pub high: f64,
}

/// One cell of a dry run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct PlannedCell {
    pub engine: String,
    pub engine_settings: BTreeMap<String, Value>,
    pub device: String,
    pub batch_size: u32,
    #[serde(default)]
    pub inputs: Vec<TensorShape>,
    pub repeats: u32,
    /// Slots that could run it now.
    pub slots: u32,
    /// Why it cannot run now; null if it can.
    pub reason: Option<String>,
}

/// A worker as the hub knows it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct WorkerDoc {
    #[serde(rename = "_id")]
    pub name: String,
    pub schema_version: u32,
    pub incarnation: Incarnation,
    pub version: String,
    /// Of the envelope of its results ([`crate::wire::VERSION`]).
    #[serde(default)]
    pub wire_version: u16,
    pub slots: Vec<SlotDoc>,
    pub labels: BTreeMap<String, String>,
    pub registered_at: Timestamp,
    pub seen_at: Timestamp,
}

/// One slot of a worker.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct SlotDoc {
    pub index: u32,
    pub device: Device,
    pub engines: Vec<String>,
    /// What else it said of its engines.
    #[serde(default)]
    pub abilities: Abilities,
    /// The pool whose queue it consumes.
    pub pool: PoolId,
}

/// What a slot says of its engines besides their names, and why it lacks others.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Abilities {
    /// The artifact formats that each engine loads, best first; none: whatever there is.
    pub formats: BTreeMap<String, Vec<Format>>,
    /// The custom inspectors that it can run.
    pub inspectors: BTreeSet<String>,
    /// Engines that its machine knows and the slot cannot run: why, and what to do.
    pub lacking: BTreeMap<String, Problem>,
    /// Why its machine has no GPU that an engine could run on.
    pub no_gpu: Option<Problem>,
}
