//! The unit of work, and the pure rules of how its state may change.
//!
//! A transition takes the task as it is and gives the task as it shall be; the hub writes it with one
//! compare-and-swap on `revision`. Terminal states never change. RELIABILITY: what survives which
//! fault is argued in ARCHITECTURE.md.

use crate::{
    Code, Incarnation, PoolId, Problem, ProfileId, RequestId, SCHEMA_VERSION, TaskId, Timestamp,
    engine::ENDPOINT,
    load::{Load, Sla, Stop},
    model::{ArtifactRef, ModelRef, TensorShape},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};

/// Attempts that may end in a failure of the engine.
pub const MAX_FAILURES: u32 = 3;
/// Attempts that may end with the death of their worker.
pub const MAX_DEATHS: u32 = 10;
/// Tasks in a row that a slot may take without going back to the queue.
pub const MAX_CLAIMS_IN_A_ROW: u32 = 32;
/// The name of the engines' own inspectors.
pub const DEFAULT_INSPECTOR: &str = "default";

/// One point of the matrix.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Cell {
    /// The model.
    pub model: ModelRef,
    /// What the engine loads; none for a server that already runs.
    pub artifact: Option<ArtifactRef>,
    /// The engine's name.
    pub engine: String,
    /// Its settings, one value each.
    pub engine_settings: BTreeMap<String, Value>,
    /// The device class.
    pub device_class: String,
    /// Items in a call.
    pub batch_size: u32,
    /// What is sent, batch axis included.
    pub inputs: Vec<TensorShape>,
    /// The inspector's name.
    pub inspector: String,
}

impl Cell {
    /// The canonical key: this cell and no other, the same on every machine. Compact JSON in the order
    /// of the fields, maps in the order of their keys.
    pub fn key(&self) -> String {
        serde_json::to_string(self).expect("a cell holds nothing that JSON cannot carry")
    }

    /// What consecutive tasks must share to be served by one deployment.
    pub fn deployment_key(&self) -> String {
        let parts = (&self.model, &self.artifact, &self.engine, &self.engine_settings, &self.device_class);
        serde_json::to_string(&parts).expect("a cell holds nothing that JSON cannot carry")
    }
}

/// What to measure in a cell: shared by all tasks of a request.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The load.
    pub load: Load,
    /// A fixed number of calls a point instead of the stop rule.
    pub batches: Option<u64>,
    /// When a point ends.
    pub stop: Stop,
    /// The latency to stay under.
    pub sla: Option<Sla>,
    /// Wall time of the task, deploying excluded; its points share it out.
    pub budget_ms: Option<u64>,
    /// How much longer the reference may go on where it lacks calls with which p95 or p99 are seen.
    #[serde(default)]
    pub grace_ms: u64,
    /// Of test data and arrivals.
    pub seed: u64,
    /// Test data of the user's own.
    pub data: Option<ArtifactRef>,
    /// The axis that counts items in each output of which that is known; none: its rows are its own.
    #[serde(default)]
    pub output_axes: BTreeMap<String, Option<u32>>,
}

/// What a worker gets with a claim.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Assignment {
    /// The request it belongs to.
    pub request_id: RequestId,
    /// The task.
    pub task_id: TaskId,
    /// The attempt granted.
    pub attempt: u32,
    /// Which repeat of the cell, from 0: each has arrivals of its own.
    pub repeat: u32,
    /// The cell.
    pub cell: Cell,
    /// What to measure.
    pub plan: Plan,
}

/// Where a task stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// In the hub alone.
    Waiting,
    /// A hint is on its pool's queue.
    Queued,
    /// A slot works on it under a lease.
    Claimed,
    /// Profiled: never changes again.
    Done,
    /// Measured, but no load point is valid: counts as failed, and never changes again.
    Invalid,
    /// Given up: never changes again.
    Failed,
    /// Stopped: never changes again.
    Cancelled,
}

impl TaskState {
    /// Every state, in the order of a task's life.
    pub const ALL: [Self; 7] =
        [Self::Waiting, Self::Queued, Self::Claimed, Self::Done, Self::Invalid, Self::Failed, Self::Cancelled];

    /// Whether it never changes again.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Done | Self::Invalid | Self::Failed | Self::Cancelled)
    }

    /// The name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Queued => "queued",
            Self::Claimed => "claimed",
            Self::Done => "done",
            Self::Invalid => "invalid",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Who holds a claimed task, until when by the hub's clock.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lease {
    /// The worker's name.
    pub worker: String,
    /// Its incarnation: a restarted worker is another.
    pub incarnation: Incarnation,
    /// The slot.
    pub slot: u32,
    /// The claim that it was granted to: asked again, since its answer was lost, it is granted again.
    pub claim_id: String,
    /// When it ends unless renewed.
    pub expires_at: Timestamp,
}

impl Lease {
    fn same_claim(&self, other: &Self) -> bool {
        !self.claim_id.is_empty() && *self == Self { expires_at: self.expires_at, ..other.clone() }
    }
}

/// A task as the hub keeps it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Task {
    /// UUIDv5 of request and cell and repeat.
    #[serde(rename = "_id")]
    pub id: TaskId,
    /// Version of this document.
    pub schema_version: u32,
    /// The request.
    pub request_id: RequestId,
    /// The profile that it is folded into.
    pub profile_id: ProfileId,
    /// Which repetition of the cell, from 0.
    pub repeat: u32,
    /// Its place in the request's seeded order.
    pub order: u32,
    /// What deployment it shares with others.
    pub deployment_key: String,
    /// The cell.
    pub cell: Cell,
    /// Where it stands.
    pub state: TaskState,
    /// Raised by each transition: what compare-and-swap compares.
    pub revision: u64,
    /// The pool whose queue holds its hint, while queued; whose slot runs it, while claimed.
    pub pool: Option<PoolId>,
    /// Number of attempts granted.
    pub attempt: u32,
    /// Attempts that the engine failed.
    pub failures: u32,
    /// Attempts whose worker died.
    pub deaths: u32,
    /// The holder, while claimed.
    pub lease: Option<Lease>,
    /// When it entered this state, by the hub's clock.
    pub since_at: Timestamp,
    /// What it waits for, or what its holder does.
    pub reason: Option<String>,
    /// Why the last attempt failed.
    pub error: Option<Problem>,
    /// The attempt whose parts count, once done or invalid.
    pub winner: Option<u32>,
}

/// Why a transition is not allowed from where the task stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Done, failed or cancelled.
    #[error("the task has ended")]
    Terminal,
    /// Another attempt holds it.
    #[error("another attempt holds the task")]
    Held,
    /// The caller's attempt is not the one that holds it.
    #[error("the attempt does not hold the task")]
    NotHolder,
    /// The state does not allow it.
    #[error("the task's state does not allow it")]
    State,
}

impl Task {
    /// A repeat of a cell, waiting; `order` is for the request to set.
    pub fn new(request_id: RequestId, cell: Cell, repeat: u32, now: Timestamp) -> Self {
        let key = cell.key();
        Self {
            id: request_id.task(&key, repeat),
            schema_version: SCHEMA_VERSION,
            request_id,
            profile_id: request_id.profile(&key),
            repeat,
            order: 0,
            deployment_key: cell.deployment_key(),
            cell,
            state: TaskState::Waiting,
            revision: 0,
            pool: None,
            attempt: 0,
            failures: 0,
            deaths: 0,
            lease: None,
            since_at: now,
            reason: None,
            error: None,
            winner: None,
        }
    }

    fn stepped(&self, state: TaskState, now: Timestamp) -> Self {
        Self { state, revision: self.revision + 1, since_at: now, reason: None, ..self.clone() }
    }

    /// waiting → queued: its hint is about to be published to this pool.
    pub fn queue(&self, pool: &PoolId, now: Timestamp) -> Result<Self, Refusal> {
        match self.state {
            TaskState::Waiting => Ok(Self { pool: Some(pool.clone()), ..self.stepped(TaskState::Queued, now) }),
            state => Err(refusal(state)),
        }
    }

    /// queued → waiting: its hint may be lost, or its pool is gone.
    pub fn unqueue(&self, reason: &str, now: Timestamp) -> Result<Self, Refusal> {
        match self.state {
            TaskState::Queued => Ok(self.to_waiting(reason, now)),
            state => Err(refusal(state)),
        }
    }

    /// waiting or queued → claimed, with a new attempt. A hint may be doubled or stale, so both are fine.
    /// The same claim once more is granted the same attempt.
    pub fn claim(&self, pool: &PoolId, lease: Lease, now: Timestamp) -> Result<Self, Refusal> {
        match self.state {
            TaskState::Waiting | TaskState::Queued => Ok(Self {
                attempt: self.attempt + 1,
                pool: Some(pool.clone()),
                lease: Some(lease),
                ..self.stepped(TaskState::Claimed, now)
            }),
            TaskState::Claimed if self.lease.as_ref().is_some_and(|held| held.same_claim(&lease)) => {
                Ok(Self { lease: Some(lease), revision: self.revision + 1, ..self.clone() })
            }
            state => Err(refusal(state)),
        }
    }

    /// The holder's worker came back as another incarnation, with the attempt's result in its journal.
    pub fn adopt(
        &self,
        attempt: u32,
        incarnation: &Incarnation,
        now: Timestamp,
        lease: Duration,
    ) -> Result<Self, Refusal> {
        let held = self.holder(attempt)?;
        let lease = Lease { incarnation: incarnation.clone(), expires_at: now.plus(lease), ..held.clone() };
        Ok(Self { lease: Some(lease), revision: self.revision + 1, ..self.clone() })
    }

    /// The holder is alive: the lease ends later, and says what it does.
    pub fn renew(
        &self,
        attempt: u32,
        incarnation: &Incarnation,
        now: Timestamp,
        lease: Duration,
        progress: &str,
    ) -> Result<Self, Refusal> {
        let held = self.holder(attempt)?;
        if held.incarnation != *incarnation {
            return Err(Refusal::NotHolder);
        }
        let lease = Lease { expires_at: now.plus(lease), ..held.clone() };
        let reason = (!progress.is_empty()).then(|| progress.to_owned());
        Ok(Self { lease: Some(lease), revision: self.revision + 1, reason, ..self.clone() })
    }

    /// claimed → waiting: the worker stops and gives it back unmeasured.
    pub fn hand_back(&self, attempt: u32, reason: &str, now: Timestamp) -> Result<Self, Refusal> {
        self.holder(attempt)?;
        Ok(self.to_waiting(reason, now))
    }

    /// claimed → waiting, or failed after too many: the lease ran out or the worker came back as another.
    pub fn lose(&self, attempt: u32, now: Timestamp) -> Result<Self, Refusal> {
        let worker = self.holder(attempt)?.worker.clone();
        let deaths = self.deaths + 1;
        let error = Problem::new(Code::NoWorker, format!("worker {worker} was lost in attempt {attempt}"));
        let next = self.to_waiting(&format!("worker {worker} was lost; it waits to be run again"), now);
        let next = Self { deaths, error: Some(error.clone()), ..next };
        Ok(if deaths >= MAX_DEATHS { next.failed(error, now) } else { next })
    }

    /// An attempt's failure: waiting for another, or failed. One that no longer holds the task changes nothing.
    pub fn fail(&self, attempt: u32, error: Problem, now: Timestamp) -> Result<Self, Refusal> {
        self.holder(attempt)?;
        let failures = self.failures + 1;
        let next = Self {
            failures,
            error: Some(error.clone()),
            ..self.to_waiting(&format!("attempt {attempt} failed: {error}"), now)
        };
        // A server that already runs is not deployed anew: where it did not answer in time, it would not the next time.
        let would_hang = self.cell.engine == ENDPOINT && error.code == Code::DeadlineExceeded;
        let is_final = failures >= MAX_FAILURES || !error.code.retryable() || would_hang;
        Ok(if is_final { next.failed(error, now) } else { next })
    }

    /// any live state → done, or invalid where none of the attempt's load points is valid: the first complete attempt wins,
    /// also one whose lease ran out meanwhile.
    pub fn complete(&self, attempt: u32, is_valid: bool, now: Timestamp) -> Result<Self, Refusal> {
        if self.state.is_terminal() {
            return Err(Refusal::Terminal);
        }
        if attempt == 0 || attempt > self.attempt {
            return Err(Refusal::NotHolder);
        }
        let state = if is_valid { TaskState::Done } else { TaskState::Invalid };
        Ok(Self { winner: Some(attempt), lease: None, error: None, ..self.stepped(state, now) })
    }

    /// waiting → failed: no slot can run it.
    pub fn give_up(&self, error: Problem, now: Timestamp) -> Result<Self, Refusal> {
        match self.state {
            TaskState::Waiting => Ok(self.failed(error, now)),
            state => Err(refusal(state)),
        }
    }

    /// any live state → cancelled.
    pub fn cancel(&self, reason: &str, now: Timestamp) -> Result<Self, Refusal> {
        if self.state.is_terminal() {
            return Err(Refusal::Terminal);
        }
        let error = Some(Problem::new(Code::Cancelled, reason));
        Ok(Self { lease: None, error, ..self.stepped(TaskState::Cancelled, now) })
    }

    fn holder(&self, attempt: u32) -> Result<&Lease, Refusal> {
        match (&self.lease, self.state) {
            (_, state) if state.is_terminal() => Err(Refusal::Terminal),
            (Some(lease), TaskState::Claimed) if attempt == self.attempt => Ok(lease),
            _ => Err(Refusal::NotHolder),
        }
    }

    fn to_waiting(&self, reason: &str, now: Timestamp) -> Self {
        Self { pool: None, lease: None, reason: Some(reason.to_owned()), ..self.stepped(TaskState::Waiting, now) }
    }

    fn failed(&self, error: Problem, now: Timestamp) -> Self {
        let reason = Some(error.to_string());
        Self {
            pool: None,
            lease: None,
            error: Some(error),
            reason,
            state: TaskState::Failed,
            since_at: now,
            revision: self.revision + 1,
            ..self.clone()
        }
    }
}

fn refusal(state: TaskState) -> Refusal {
    match state {
        TaskState::Claimed => Refusal::Held,
        state if state.is_terminal() => Refusal::Terminal,
        _ => Refusal::State,
    }
}

#[cfg(test)]
#[path = "task_tests.rs"]
mod tests;
