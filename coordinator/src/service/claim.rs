//! Claims: the one place where a task starts to run. A claim is decided by the registered slot's pool and one
//! compare-and-swap on the task.

use super::{
    not_found,
    transition::{Step, step, step_from},
    workers,
};
use crate::{
    core::Core,
    hub::{HubError, TaskFilter},
    plan::{budget, pool::Pool},
};
use modelmeter_common::{
    Incarnation, Problem, TaskId,
    request::RequestDoc,
    task::{Assignment, Lease, Plan, Refusal, Task, TaskState},
};
use std::sync::atomic::Ordering::Relaxed;

/// Candidates that one `claim_next` tries before it says that none is left.
const CLAIM_NEXT_TRIES: u32 = 8;

/// A worker's slot, as a claim names it.
pub struct Claimant<'a> {
    /// The worker's name.
    pub worker: &'a str,
    /// The worker's incarnation.
    pub incarnation: &'a Incarnation,
    /// The slot.
    pub slot: u32,
    /// The claim: repeated because its answer was lost, it is granted the same attempt again. Empty: never.
    pub claim_id: &'a str,
}

/// The answer to a claim.
pub enum Answer {
    /// The slot runs this attempt.
    Granted(Box<Assignment>),
    /// The slot does not run the task.
    Refused(Why),
}

/// The reason why a claim is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// Another attempt holds the task.
    Held,
    /// The task has ended.
    Terminal,
    /// There is no such task.
    Unknown,
    /// This slot cannot run the task.
    WrongSlot,
    /// Nothing is left of this deployment.
    NothingLeft,
    /// The incarnation is not the registered one.
    StaleWorker,
}

/// Grants a task to a slot, or says why not.
pub async fn claim(core: &Core, task: TaskId, by: &Claimant<'_>) -> Result<Answer, Problem> {
    let pool = match pool_of(core, by).await? {
        Ok(pool) => pool,
        Err(why) => return Ok(Answer::Refused(why)),
    };
    match core.hub.task(task).await? {
        Some(task) => grant(core, task, by, &pool).await,
        None => Ok(Answer::Refused(Why::Unknown)),
    }
}

/// Grants a slot the next task of the same request and deployment, so that an engine serves several cells.
pub async fn claim_next(core: &Core, after: TaskId, by: &Claimant<'_>) -> Result<Answer, Problem> {
    let pool = match pool_of(core, by).await? {
        Ok(pool) => pool,
        Err(why) => return Ok(Answer::Refused(why)),
    };
    let Some(after) = core.hub.task(after).await? else { return Ok(Answer::Refused(Why::Unknown)) };
    let same_deployment = TaskFilter {
        request: Some(after.request_id),
        states: vec![TaskState::Waiting, TaskState::Queued],
        deployment_key: Some(after.deployment_key),
        limit: Some(CLAIM_NEXT_TRIES),
        ..Default::default()
    };
    let mut candidates = core.hub.tasks(&same_deployment).await?;
    if !candidates.is_empty() {
        // Slots that ask at once begin at different places, and do not race for the same task.
        let begin = core.turn.fetch_add(1, Relaxed) % candidates.len();
        candidates.rotate_left(begin);
    }
    for task in candidates {
        let answer = grant(core, task, by, &pool).await?;
        if matches!(answer, Answer::Granted(_)) {
            return Ok(answer);
        }
    }
    Ok(Answer::Refused(Why::NothingLeft))
}

/// The pool of the slot that claims, or why it may not.
async fn pool_of(core: &Core, by: &Claimant<'_>) -> Result<Result<Pool, Why>, Problem> {
    let Some(worker) = workers::registered(core, by.worker, by.incarnation).await? else {
        return Ok(Err(Why::StaleWorker));
    };
    let slot = worker.slots.iter().find(|slot| slot.index == by.slot);
    Ok(slot.map(Pool::from).ok_or(Why::WrongSlot))
}

async fn grant(core: &Core, task: Task, by: &Claimant<'_>, pool: &Pool) -> Result<Answer, Problem> {
    let id = task.id;
    let step_taken = step_from(core, task, |task, now| {
        if !pool.fits(&task.cell) {
            return Err(Refusal::State);
        }
        let lease = Lease {
            worker: by.worker.to_owned(),
            incarnation: by.incarnation.clone(),
            slot: by.slot,
            claim_id: by.claim_id.to_owned(),
            expires_at: now.plus(core.lease),
        };
        task.claim(&pool.id, lease, now)
    });
    match step_taken.await? {
        Step::Stepped(task) => {
            core.wake();
            Ok(Answer::Granted(Box::new(assignment(core, &task).await?)))
        }
        Step::Unknown => Ok(Answer::Refused(Why::Unknown)),
        Step::Refused(Refusal::Held, _) => Ok(Answer::Refused(Why::Held)),
        Step::Refused(Refusal::Terminal, _) => Ok(Answer::Refused(Why::Terminal)),
        Step::Refused(..) => {
            step(core, id, |task, now| task.unqueue("it was queued to a pool that cannot run it", now)).await?;
            Ok(Answer::Refused(Why::WrongSlot))
        }
    }
}

async fn assignment(core: &Core, task: &Task) -> Result<Assignment, Problem> {
    let request = core.stored_request(task.request_id).await?;
    let request = request.ok_or_else(|| not_found("request", &task.request_id.to_string(), "it vanished"))?;
    Ok(Assignment {
        request_id: task.request_id,
        task_id: task.id,
        attempt: task.attempt,
        repeat: task.repeat,
        cell: task.cell.clone(),
        plan: plan_of(core, &request).await?,
    })
}

/// The plan of a stored request's tasks.
async fn plan_of(core: &Core, doc: &RequestDoc) -> Result<Plan, HubError> {
    let rounds = match doc.request.budget_ms {
        Some(_) => budget::rounds(budget::kinds(doc), &core.pools().await?),
        None => 1,
    };
    Ok(Plan { output_axes: doc.output_axes.clone(), ..budget::plan(&doc.request, rounds) })
}
