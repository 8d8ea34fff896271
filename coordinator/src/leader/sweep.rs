//! Looks for what was lost and puts it right: leases that ran out, hints that vanished, expansions that broke off,
//! attempts whose last part came late, cells that no slot can run.
//!
//! Everything here only repeats, by compare-and-swap, what another path should have done.

use crate::{
    collect,
    core::{Core, MAX_REQUESTS},
    hub::{HubError, TaskFilter},
    plan::pool::{self, Pool},
    service::{ending, expansion, transition::step},
};
use modelmeter_common::{
    PoolId,
    broker::task_queue,
    request::RequestDoc,
    task::{Refusal, Task, TaskState},
};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// A hint whose queue is empty was lost if nobody claimed its task for this long.
const LOST_HINT: Duration = Duration::from_secs(5);
/// A hint is published again after this long even if its queue is not empty.
const OLD_HINT: Duration = Duration::from_secs(600);
/// A claimed task's finals are looked at again after this long.
const LATE_PARTS: Duration = Duration::from_secs(5);

/// Sweeps every `every` until `stop`.
pub async fn run(core: Arc<Core>, every: Duration, stop: CancellationToken) {
    loop {
        if let Err(error) = sweep(&core).await {
            cut_short(&core, &error);
            tracing::warn!(%error, "sweep cut short");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = core.clock.sleep(every) => {}
        }
    }
}

async fn sweep(core: &Core) -> Result<(), HubError> {
    core.read_clock().await?;
    for request in core.hub.requests(true, MAX_REQUESTS).await? {
        if let Err(error) = sweep_request(core, &request).await {
            cut_short(core, &error);
            tracing::warn!(%error, request = %request.id, "its sweep was cut short");
        }
    }
    Ok(())
}

/// When the hub fails a sweep, it fails the workers' renewals too.
fn cut_short(core: &Core, error: &HubError) {
    if error.is_outage() {
        core.listen_anew();
    }
}

async fn sweep_request(core: &Core, request: &RequestDoc) -> Result<(), HubError> {
    // A request that does not expand has been ended.
    if !request.expanded && expansion::expand(core, request).await?.is_err() {
        return Ok(());
    }
    live_tasks(core, request).await?;
    ending::close_request(core, request).await
}

async fn live_tasks(core: &Core, request: &RequestDoc) -> Result<(), HubError> {
    let of = |states: Vec<TaskState>| TaskFilter { request: Some(request.id), states, ..Default::default() };
    for task in core.hub.tasks(&of(vec![TaskState::Claimed])).await? {
        claimed(core, &task).await?;
    }
    let (pools, mut depths) = (core.pools().await?, HashMap::new());
    for task in core.hub.tasks(&of(vec![TaskState::Queued])).await? {
        queued(core, &task, &pools, &mut depths).await?;
    }
    let overdue = core.now().since(request.created_at) >= Duration::from_millis(request.request.deadline_ms);
    // After a restart a worker is missing only once a lease has passed, unless the request is newer than the restart.
    let is_told = core.has_listened() || request.created_at >= core.listens_since();
    if is_told && (overdue || request.request.no_wait) {
        unschedulable(core, request, &pools, overdue).await?;
    }
    Ok(())
}

async fn claimed(core: &Core, task: &Task) -> Result<(), HubError> {
    let now = core.now();
    if now.since(task.since_at) >= LATE_PARTS {
        collect::settle_task(core, task.id).await?;
    }
    if core.has_listened() && task.lease.as_ref().is_some_and(|lease| lease.expires_at < now) {
        tracing::warn!(task = %task.id, worker = task.lease.as_ref().map(|l| l.worker.as_str()), "lease ran out");
        step(core, task.id, |current, now| {
            let held = current.lease.as_ref().is_some_and(|lease| lease.expires_at < now);
            if held { current.lose(task.attempt, now) } else { Err(Refusal::NotHolder) }
        })
        .await?;
    }
    Ok(())
}

async fn queued(
    core: &Core,
    task: &Task,
    pools: &[Pool],
    depths: &mut HashMap<PoolId, Option<u64>>,
) -> Result<(), HubError> {
    let (Some(pool), age) = (&task.pool, core.now().since(task.since_at)) else { return Ok(()) };
    if core.has_listened() && !pool::is_there(pool, pools) {
        step(core, task.id, |task, now| task.unqueue("its pool is gone", now)).await?;
        return Ok(());
    }
    if age < LOST_HINT {
        return Ok(());
    }
    if !depths.contains_key(pool) {
        // A broker that does not answer is no proof of loss: look again at the next sweep.
        let Ok(depth) = core.broker.depth(&task_queue(pool)).await else { return Ok(()) };
        depths.insert(pool.clone(), depth);
    }
    let empty = depths.get(pool).copied().flatten().is_none_or(|depth| depth == 0);
    if empty || age >= OLD_HINT {
        step(core, task.id, |task, now| task.unqueue("its hint was lost", now)).await?;
    }
    Ok(())
}

/// Ends waiting tasks that no slot can run.
async fn unschedulable(core: &Core, request: &RequestDoc, pools: &[Pool], overdue: bool) -> Result<(), HubError> {
    let waiting = TaskFilter { request: Some(request.id), states: vec![TaskState::Waiting], ..Default::default() };
    for task in core.hub.tasks(&waiting).await? {
        let Some(mut problem) = pool::why_not(&task.cell, pools) else { continue };
        if overdue {
            problem.message = format!("at the request's deadline {}", problem.message);
        }
        step(core, task.id, |task, now| task.give_up(problem.clone(), now)).await?;
    }
    Ok(())
}
