//! The status that `status` and `watch` show, purely: the state of each cell, and what it waits for and why.

use crate::plan::pool::{self, Pool};
use modelmeter_common::{
    Problem,
    request::RequestDoc,
    status::{CellStatus, Status},
    task::{Task, TaskState},
};

/// Where a request stands, cell by cell, in the order in which they run. `stuck`: why the coordinator cannot queue
/// anything now.
pub fn status(request: &RequestDoc, tasks: &[Task], pools: &[Pool], stuck: Option<&str>) -> Status {
    Status {
        request_id: request.id,
        state: request.state,
        model: request.model.clone(),
        created_at: request.created_at,
        ended_at: request.ended_at,
        error: request.error.clone(),
        cells: tasks.iter().map(|task| cell(task, pools, stuck)).collect(),
    }
}

/// The status of one task.
pub(super) fn cell(task: &Task, pools: &[Pool], stuck: Option<&str>) -> CellStatus {
    let is_to_run = matches!(task.state, TaskState::Waiting | TaskState::Queued);
    let blocked = is_to_run.then(|| pool::why_not(&task.cell, pools)).flatten();
    CellStatus {
        engine: task.cell.engine.clone(),
        engine_settings: task.cell.engine_settings.clone(),
        device: task.cell.device_class.clone(),
        batch_size: task.cell.batch_size,
        inputs: task.cell.inputs.clone(),
        repeat: task.repeat,
        state: task.state,
        attempts: task.attempt,
        worker: task.lease.as_ref().map(|lease| lease.worker.clone()),
        reason: why(task, pools, blocked.as_ref(), stuck),
        blocked: blocked.is_some(),
    }
}

/// The reason of a task's state: what it waits for, what it does, or why it failed.
fn why(task: &Task, pools: &[Pool], blocked: Option<&Problem>, stuck: Option<&str>) -> Option<String> {
    match task.state {
        TaskState::Waiting => {
            let waits = waits_for(blocked, stuck);
            Some(match &task.reason {
                Some(before) => format!("{before}; {waits}"),
                None => waits,
            })
        }
        TaskState::Queued => Some(match &task.pool {
            Some(pool) if pool::is_there(pool, pools) => format!("queued for a free slot of pool {pool}"),
            _ => format!("its pool is gone; {}", waits_for(blocked, stuck)),
        }),
        TaskState::Claimed => task.reason.clone().or_else(|| Some("being deployed".into())),
        TaskState::Failed | TaskState::Cancelled => task.error.as_ref().map(ToString::to_string),
        TaskState::Invalid => Some("measured, but no load point is valid; `modelmeter results` says why".into()),
        TaskState::Done => None,
    }
}

fn waits_for(blocked: Option<&Problem>, stuck: Option<&str>) -> String {
    match (blocked, stuck) {
        (Some(problem), _) => problem.message.clone(),
        (None, Some(stuck)) => format!("the coordinator cannot queue it: {stuck}"),
        (None, None) => "waits for its turn: the slots that can run it are busy".into(),
    }
}
