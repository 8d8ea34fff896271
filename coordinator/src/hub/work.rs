//! Requests, their tasks, and the results of each attempt.

use super::{HubError, Inserted};
use async_trait::async_trait;
use modelmeter_common::{
    PoolId, RequestId, TaskId, Timestamp,
    model::Format,
    part::{Final, Part},
    request::RequestDoc,
    task::{Task, TaskState},
};

/// Which tasks to list. Every field that is set must hold; results are in the order of (request, order).
#[derive(Clone, Default, Debug)]
pub struct TaskFilter {
    /// Tasks of this request.
    pub request: Option<RequestId>,
    /// Tasks in one of these states; empty: in any.
    pub states: Vec<TaskState>,
    /// Tasks of this deployment.
    pub deployment_key: Option<String>,
    /// Tasks queued to or claimed from this pool.
    pub pool: Option<PoolId>,
    /// At most this many.
    pub limit: Option<u32>,
}

/// The abilities that a slot needs to run a task.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct TaskKind {
    /// The engine.
    pub engine: String,
    /// The format that the engine loads; none: the engine loads nothing.
    pub format: Option<Format>,
    /// The device class.
    pub device_class: String,
    /// The inspector.
    pub inspector: String,
}

/// Counts of a request's tasks by state.
pub type TaskCounts = std::collections::BTreeMap<TaskState, u64>;

/// Requests, tasks, parts and finals.
#[async_trait]
pub trait Work: Send + Sync + 'static {
    /// The hub's clock, by which leases are judged.
    async fn now(&self) -> Result<Timestamp, HubError>;

    async fn insert_request(&self, request: &RequestDoc) -> Result<Inserted, HubError>;
    async fn request(&self, id: RequestId) -> Result<Option<RequestDoc>, HubError>;
    /// The requests, newest first; `running_only` leaves out those that ended.
    async fn requests(&self, running_only: bool, limit: u32) -> Result<Vec<RequestDoc>, HubError>;
    /// Replaces the document if it still equals `old` in `state` and `expanded`; `false`: it did not.
    async fn update_request(&self, old: &RequestDoc, new: &RequestDoc) -> Result<bool, HubError>;

    /// Inserts the tasks that are not there yet, in no order; returns the number of new ones.
    async fn insert_tasks(&self, tasks: &[Task]) -> Result<u64, HubError>;
    async fn task(&self, id: TaskId) -> Result<Option<Task>, HubError>;
    async fn tasks(&self, filter: &TaskFilter) -> Result<Vec<Task>, HubError>;
    /// The first `limit` waiting tasks of a request that are of one of these kinds, in the order of `order`. The cost does not
    /// depend on how many others wait.
    async fn waiting_tasks(&self, request: RequestId, kinds: &[TaskKind], limit: u32) -> Result<Vec<Task>, HubError>;
    async fn count_tasks(&self, request: RequestId) -> Result<TaskCounts, HubError>;
    /// Replaces the task if its revision is still `old.revision`; `false`: another change came first.
    async fn swap_task(&self, old: &Task, new: &Task) -> Result<bool, HubError>;

    async fn insert_part(&self, part: &Part, sha256: &str) -> Result<Inserted, HubError>;
    /// The parts of one attempt with their sha256, in the order of `seq`.
    async fn parts(&self, task: TaskId, attempt: u32) -> Result<Vec<(Part, String)>, HubError>;
    async fn insert_final(&self, last: &Final) -> Result<Inserted, HubError>;
    /// The finals of a task, by attempt.
    async fn finals(&self, task: TaskId) -> Result<Vec<Final>, HubError>;
}
