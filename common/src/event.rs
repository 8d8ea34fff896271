//! The events of a request, in sequence: hints to its watchers. The hub stays the truth, so that an event may be
//! missed; who missed one reads the status again.

use crate::{
    ProfileId, TaskId, Timestamp,
    request::RequestState,
    status::{CellStatus, Status},
};
use serde::{Deserialize, Serialize};

/// Something that happened to a request.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RequestEvent {
    /// Its place in the sequence, from 1 without gaps.
    pub seq: u64,
    /// When it happened, by the hub's clock.
    pub at: Timestamp,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// What may happen to a request.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum What {
    /// Its tasks are in the hub now.
    Expanded { tasks: u64 },
    /// A task's state changed, or what it waits for.
    Task {
        /// The place of its cell in the status.
        index: u32,
        /// The task's revision: the later of two events has the greater one.
        revision: u64,
        cell: Box<CellStatus>,
    },
    /// The holder of a task says what it does.
    Progress { index: u32, revision: u64, progress: Option<String> },
    /// A load point was measured, and its part stored.
    PointMeasured { task_id: TaskId, attempt: u32, point: u32 },
    /// The repeats of a cell have ended, and its profile is stored.
    CellDone { profile_id: ProfileId },
    /// The request has ended.
    Ended { state: RequestState },
}

impl Status {
    /// Brings a status up to date; `false` where the event tells of something that the status lacks, so that it has to be read
    /// again.
    pub fn apply(&mut self, event: &RequestEvent) -> bool {
        match &event.what {
            What::Task { index, cell, .. } => match self.cells.get_mut(*index as usize) {
                Some(known) => known.clone_from(cell),
                None => return false,
            },
            What::Progress { index, progress, .. } => match self.cells.get_mut(*index as usize) {
                Some(known) => known.reason.clone_from(progress),
                None => return false,
            },
            What::PointMeasured { .. } | What::CellDone { .. } => {}
            What::Expanded { .. } | What::Ended { .. } => return false,
        }
        true
    }
}
