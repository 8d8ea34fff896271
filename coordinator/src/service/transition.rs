//! Changes of a task's state: one compare-and-swap on its document, and what follows from it.

use super::{ending, tell};
use crate::{
    core::{Core, SWAP_TRIES},
    hub::{HubError, TaskFilter},
};
use modelmeter_common::{
    RequestId, TaskId, Timestamp,
    task::{Refusal, Task, TaskState},
};

/// The outcome of a transition.
pub enum Step {
    /// The transition was written; the task as it is now.
    Stepped(Box<Task>),
    /// The transition is not allowed; the task as it was.
    Refused(Refusal, Box<Task>),
    /// There is no such task.
    Unknown,
}

/// Applies one transition to a task by compare-and-swap.
pub async fn step(
    core: &Core,
    id: TaskId,
    change: impl Fn(&Task, Timestamp) -> Result<Task, Refusal>,
) -> Result<Step, HubError> {
    match core.hub.task(id).await? {
        Some(task) => step_from(core, task, change).await,
        None => Ok(Step::Unknown),
    }
}

/// Applies a transition to the task as it was read last, and reads it again after each lost race.
pub async fn step_from(
    core: &Core,
    mut old: Task,
    change: impl Fn(&Task, Timestamp) -> Result<Task, Refusal>,
) -> Result<Step, HubError> {
    for _ in 0..SWAP_TRIES {
        let new = match change(&old, core.now()) {
            Ok(new) => new,
            Err(refusal) => return Ok(Step::Refused(refusal, Box::new(old))),
        };
        if core.hub.swap_task(&old, &new).await? {
            tell::changed(core, &old, &new).await;
            if new.state.is_terminal() {
                ending::task_ended(core, &new).await?;
            } else if new.state == TaskState::Waiting {
                core.wake();
            }
            return Ok(Step::Stepped(Box::new(new)));
        }
        match core.hub.task(old.id).await? {
            Some(task) => old = task,
            None => return Ok(Step::Unknown),
        }
    }
    Err(HubError::Failed(format!("task {} was changed {SWAP_TRIES} times under this change", old.id)))
}

/// Cancels the tasks of a request that have not ended; gives how many.
pub async fn cancel_tasks(core: &Core, request: RequestId, reason: &str) -> Result<u64, HubError> {
    let states = TaskState::ALL.into_iter().filter(|state| !state.is_terminal()).collect();
    let mut cancelled = 0;
    for task in core.hub.tasks(&TaskFilter { request: Some(request), states, ..Default::default() }).await? {
        let step = step(core, task.id, |task, now| task.cancel(reason, now)).await?;
        cancelled += u64::from(matches!(step, Step::Stepped(_)));
    }
    Ok(cancelled)
}
