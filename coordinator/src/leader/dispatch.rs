//! Keeps each pool's queue at about twice its slots, choosing the next task by weighted round robin over requests.
//!
//! A hint is published before the task is marked queued: dying in between costs a doubled hint, which the claim absorbs.

use crate::{
    core::{Core, MAX_REQUESTS},
    hub::{HubError, TaskFilter},
    plan::{budget, pool::Pool, schedule::Stride},
    service::transition::{Step, step_from},
};
use modelmeter_common::{
    PoolId, RequestId,
    broker::{BrokerError, task_queue},
    request::RequestDoc,
    task::{Task, TaskState},
    wire::{self, Hint},
};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Hints in a pool's queue for each of its slots.
const HINTS_PER_SLOT: u32 = 2;
/// Longest time between two rounds, also without a notification of new work.
const IDLE_ROUND: Duration = Duration::from_millis(500);
/// Rounds are at least this far apart, so that a burst of changes is one round.
const MIN_GAP: Duration = Duration::from_millis(20);

/// The reason why a round ended early; the next one starts afresh.
#[derive(Debug, thiserror::Error)]
enum DispatchError {
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// Dispatches until `stop`.
pub async fn run(core: Arc<Core>, stop: CancellationToken) {
    let (mut stride, mut declared) = (Stride::default(), HashSet::new());
    while !stop.is_cancelled() {
        let done = round(&core, &mut stride, &mut declared).await;
        if let Err(error) = &done {
            tracing::warn!(%error, "dispatch round cut short");
            declared.clear();
        }
        core.set_stuck(done.err().map(|error| error.to_string()));
        tokio::select! {
            () = stop.cancelled() => return,
            () = core.work.notified() => tokio::time::sleep(MIN_GAP).await,
            () = core.clock.sleep(IDLE_ROUND) => {}
        }
    }
}

async fn round(core: &Core, stride: &mut Stride, declared: &mut HashSet<String>) -> Result<(), DispatchError> {
    let requests = core.hub.requests(true, MAX_REQUESTS).await?;
    stride.keep(|id| requests.iter().any(|request| request.id == id));
    if requests.is_empty() {
        return Ok(());
    }
    for pool in core.pools().await? {
        let queue = task_queue(&pool.id);
        if declared.insert(queue.clone()) {
            core.broker.declare(&queue).await?;
        }
        fill(core, &pool, &queue, &requests, stride).await?;
    }
    Ok(())
}

/// Queues tasks for one pool until its queue holds enough hints.
async fn fill(
    core: &Core,
    pool: &Pool,
    queue: &str,
    requests: &[RequestDoc],
    stride: &mut Stride,
) -> Result<(), DispatchError> {
    let target = pool.slots * HINTS_PER_SLOT;
    let in_queue = TaskFilter {
        states: vec![TaskState::Queued],
        pool: Some(pool.id.clone()),
        limit: Some(target),
        ..Default::default()
    };
    let mut room = target.saturating_sub(core.hub.tasks(&in_queue).await?.len() as u32);
    let mut waiting: HashMap<RequestId, VecDeque<Task>> = HashMap::new();
    if room > 0 {
        for request in requests {
            waiting.insert(request.id, fitting(core, request, pool, room).await?);
        }
    }
    while room > 0 {
        let candidates: Vec<_> = requests
            .iter()
            .filter(|request| waiting.get(&request.id).is_some_and(|tasks| !tasks.is_empty()))
            .map(|request| (request.id, request.request.priority))
            .collect();
        let Some(chosen) = stride.choose(&candidates) else { break };
        let Some(task) = waiting.get_mut(&chosen).and_then(VecDeque::pop_front) else { break };
        publish(core, task, &pool.id, queue).await?;
        room -= 1;
    }
    Ok(())
}

/// The first waiting tasks of a request that this pool can run.
async fn fitting(core: &Core, request: &RequestDoc, pool: &Pool, room: u32) -> Result<VecDeque<Task>, HubError> {
    let kinds = pool.takes(budget::kinds(request));
    Ok(core.hub.waiting_tasks(request.id, &kinds, room).await?.into())
}

async fn publish(core: &Core, task: Task, pool: &PoolId, queue: &str) -> Result<(), DispatchError> {
    let hint = wire::encode_for_both(&Hint { task_id: task.id }).map_err(|e| HubError::Failed(e.to_string()))?;
    let message_id = format!("{}/{}", task.id, task.revision);
    core.broker.publish(queue, &message_id, &hint).await?;
    match step_from(core, task, |task, now| task.queue(pool, now)).await? {
        // The task was claimed or cancelled in between: the hint is stale, and its claim will be refused.
        Step::Stepped(_) | Step::Refused(..) | Step::Unknown => Ok(()),
    }
}
