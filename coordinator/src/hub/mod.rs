//! The seam to the model hub, in our words. The hub is the truth: each change of state is one
//! compare-and-swap on one document, each part and final is inserted once and never changed.
//! `design.md` beside this file says how the two adapters keep that.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod leaders;
pub mod mongo;
mod open;
pub mod sqlite;

pub use leaders::{Lead, Leaders};
pub use open::open;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use modelmeter_common::{
    Problem, ProfileId, RequestId, TaskId, Timestamp,
    artifact::verify::Mismatch,
    model::{ArtifactRef, Model},
    part::{Final, Part},
    profile::Profile,
    request::RequestDoc,
    status::WorkerDoc,
    task::{Task, TaskState},
};

/// Whether an insert stored its document or found one with the same key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inserted {
    /// Stored now.
    New,
    /// A document with this key was there: nothing changed.
    Existed,
}

/// Which tasks to list. Every field that is set must hold; results are in the order of (request, order).
#[derive(Clone, Default, Debug)]
pub struct TaskFilter {
    /// Of this request.
    pub request: Option<RequestId>,
    /// In one of these states; empty: any.
    pub states: Vec<TaskState>,
    /// Of this deployment.
    pub deployment_key: Option<String>,
    /// Queued to or claimed from this pool.
    pub pool: Option<String>,
    /// At most this many.
    pub limit: Option<u32>,
}

/// Which profiles to list, newest first.
#[derive(Clone, Default, Debug)]
pub struct ProfileFilter {
    /// Of this request.
    pub request: Option<RequestId>,
    /// Of the model with this name.
    pub model: Option<String>,
    /// And of this version.
    pub version: Option<String>,
    /// At most this many.
    pub limit: Option<u32>,
}

/// Counts of a request's tasks by state.
pub type TaskCounts = std::collections::BTreeMap<TaskState, u64>;

/// The hub. Writes that return have been acknowledged durably (majority and journal where there are several).
#[async_trait]
pub trait Hub: Leaders + Send + Sync + 'static {
    /// The hub's clock, by which leases are judged.
    async fn now(&self) -> Result<Timestamp, HubError>;

    async fn insert_request(&self, request: &RequestDoc) -> Result<Inserted, HubError>;
    async fn request(&self, id: RequestId) -> Result<Option<RequestDoc>, HubError>;
    /// Newest first; `running_only` leaves out the ended ones.
    async fn requests(&self, running_only: bool, limit: u32) -> Result<Vec<RequestDoc>, HubError>;
    /// Replaces the document if it still equals `old` in `state` and `expanded`; `false`: it did not.
    async fn update_request(&self, old: &RequestDoc, new: &RequestDoc) -> Result<bool, HubError>;

    /// Inserts those that are not there yet, in no order; gives how many were new.
    async fn insert_tasks(&self, tasks: &[Task]) -> Result<u64, HubError>;
    async fn task(&self, id: TaskId) -> Result<Option<Task>, HubError>;
    async fn tasks(&self, filter: &TaskFilter) -> Result<Vec<Task>, HubError>;
    async fn count_tasks(&self, request: RequestId) -> Result<TaskCounts, HubError>;
    /// Replaces the task if its revision is still `old.revision`; `false`: another change came first.
    async fn swap_task(&self, old: &Task, new: &Task) -> Result<bool, HubError>;

    async fn insert_part(&self, part: &Part, sha256: &str) -> Result<Inserted, HubError>;
    /// The parts of one attempt with their sha256, in the order of `seq`.
    async fn parts(&self, task: TaskId, attempt: u32) -> Result<Vec<(Part, String)>, HubError>;
    async fn insert_final(&self, last: &Final) -> Result<Inserted, HubError>;
    /// The finals of a task, by attempt.
    async fn finals(&self, task: TaskId) -> Result<Vec<Final>, HubError>;

    /// Inserts the profile if `replaces` is none, else replaces the one of that revision; `false`: another came first.
    async fn put_profile(&self, profile: &Profile, replaces: Option<u64>) -> Result<bool, HubError>;
    async fn profile(&self, id: ProfileId) -> Result<Option<Profile>, HubError>;
    async fn profiles(&self, filter: &ProfileFilter) -> Result<Vec<Profile>, HubError>;

    /// Inserts or replaces by name.
    async fn put_worker(&self, worker: &WorkerDoc) -> Result<(), HubError>;
    async fn workers(&self) -> Result<Vec<WorkerDoc>, HubError>;

    /// Inserts the model if `old` is none, else replaces the one of its name and version if that still has the artifacts of
    /// `old`; `false`: another change came first.
    async fn swap_model(&self, old: Option<&Model>, new: &Model) -> Result<bool, HubError>;
    /// The newest of this name, or the one of this version too.
    async fn model(&self, name: &str, version: Option<&str>) -> Result<Option<Model>, HubError>;
    /// All, or those of this name; newest first.
    async fn models(&self, name: Option<&str>) -> Result<Vec<Model>, HubError>;

    async fn has_artifact(&self, sha256: &str) -> Result<bool, HubError>;
    /// Stores a stream of bytes under `artifact.sha256`; nothing is kept unless size and sha256 hold
    /// ([`HubError::Mismatch`]) and the stream ends without an error.
    async fn put_artifact(&self, artifact: &ArtifactRef, bytes: ByteStream) -> Result<Inserted, HubError>;
    /// The bytes in order, in pieces of at most 1 MiB.
    async fn artifact(&self, sha256: &str) -> Result<Option<ByteStream>, HubError>;
}

/// The largest piece in which an artifact is read.
const PIECE: usize = 1024 * 1024;

/// Bytes on their way in or out.
pub type ByteStream = BoxStream<'static, Result<Bytes, HubError>>;

/// Why a hub call failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum HubError {
    #[error("cannot reach the hub at {address}: {reason}")]
    Unreachable { address: String, reason: String },
    #[error("hub address '{address}' is not valid: {reason}")]
    BadUrl { address: String, reason: String },
    #[error("the hub at {address} refused the credentials: {reason}")]
    Unauthenticated { address: String, reason: String },
    /// A write may have happened: repeat it or read.
    #[error("the hub did not answer within {0:?}")]
    TimedOut(std::time::Duration),
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    #[error("the hub holds a document that does not read as a {what}: {reason}")]
    Corrupt { what: &'static str, reason: String },
    #[error("the hub cannot write: {0}")]
    Storage(String),
    #[error("the hub failed: {0}")]
    Failed(String),
}

impl HubError {
    /// Whether the same call may succeed later.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::TimedOut(_) | Self::Failed(_))
    }

    /// Whether the hub was not there for anybody, rather than this one call being amiss.
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::TimedOut(_) | Self::Storage(_))
    }
}

impl From<HubError> for Problem {
    fn from(error: HubError) -> Self {
        use modelmeter_common::Code;
        let (code, hint) = match &error {
            HubError::Unreachable { .. } => (Code::Unreachable, Some("check that it runs and that --hub names it")),
            HubError::TimedOut(_) => (Code::Unreachable, Some("check that the hub is up and not overloaded")),
            HubError::Unauthenticated { .. } => {
                (Code::Unauthenticated, Some("put a user that may read and write the database into the address"))
            }
            HubError::BadUrl { .. } => (
                Code::InvalidArgument,
                Some("mongodb://HOST:PORT/DATABASE, mongodb+srv://HOST/DATABASE, sqlite:PATH or the path of a file"),
            ),
            HubError::Mismatch(_) => (Code::InvalidArgument, Some("the upload was cut off or altered; send it again")),
            HubError::Storage(_) => (Code::Storage, Some("check free space and permissions of the hub's folder")),
            HubError::Corrupt { .. } | HubError::Failed(_) => (Code::Internal, None),
        };
        let problem = Self::new(code, error.to_string());
        match hint {
            Some(hint) => problem.with_hint(hint),
            None => problem,
        }
    }
}
