//! Results into the hub: insert-only, keyed by part id, acknowledged after the write. A final names its parts and
//! their hashes; the first attempt that is complete wins; attempts are never mixed.

use crate::{
    core::Core,
    hub::{HubError, Inserted, TaskFilter},
    service::{
        ending::fold_cell,
        tell,
        transition::{Step, step},
    },
};
use modelmeter_common::{
    TaskId,
    broker::{Consumer, Delivery},
    event::What,
    part::{Final, Outcome, Part},
    task::TaskState,
    wire::{self, Kind, WireError},
};
use std::{sync::Arc, time::Duration};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Most results that are processed at once.
pub const PREFETCH: u16 = 64;
/// Pause between tries while the hub does not answer.
const HUB_PAUSE: Duration = Duration::from_secs(1);

/// Collects until `stop`, then finishes the results in process.
pub async fn run(core: Arc<Core>, mut results: Box<dyn Consumer>, stop: CancellationToken) {
    let mut hands = JoinSet::new();
    loop {
        let delivery = tokio::select! {
            () = stop.cancelled() => break,
            delivery = results.next() => delivery,
        };
        match delivery {
            Ok(delivery) => drop(hands.spawn(handle(core.clone(), delivery, stop.clone()))),
            Err(error) => {
                tracing::error!(%error, "results can no longer be consumed");
                break;
            }
        }
        while hands.try_join_next().is_some() {}
    }
    while hands.join_next().await.is_some() {}
}

/// The reason why a result cannot be stored.
#[derive(Debug, thiserror::Error)]
enum CollectError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Hub(#[from] HubError),
}

/// One delivery: tried again while the hub is away, quarantined if that cannot help. Its worker keeps it in the journal
/// and publishes it again.
async fn handle(core: Arc<Core>, delivery: Delivery, stop: CancellationToken) {
    let settled = loop {
        match take_in(&core, &delivery.body).await {
            Ok(()) => break delivery.ack().await,
            Err(CollectError::Hub(error)) if error.retryable() => {
                tracing::warn!(%error, "a result waits for the hub");
                tokio::select! {
                    () = stop.cancelled() => break delivery.requeue().await,
                    () = core.clock.sleep(HUB_PAUSE) => {}
                }
            }
            Err(error) => {
                tracing::warn!(%error, bytes = delivery.body.len(), "quarantined a result");
                break delivery.reject().await;
            }
        }
    };
    if let Err(error) = settled {
        tracing::warn!(%error, "a result could not be settled; it will come again");
    }
}

async fn take_in(core: &Core, body: &[u8]) -> Result<(), CollectError> {
    match wire::kind(body)? {
        Kind::Part => {
            let part: Part = wire::decode(body)?;
            if core.hub.insert_part(&part, &wire::sha256_hex(body)).await? == Inserted::New {
                let (task_id, attempt, point) = (part.task_id, part.attempt, part.seq);
                tell::happened(core, part.request_id, What::PointMeasured { task_id, attempt, point });
            }
            if core.expects_parts(part.task_id, part.attempt) {
                settle_task(core, part.task_id).await?;
            }
            Ok(())
        }
        Kind::Final => {
            let last: Final = wire::decode(body)?;
            // The final is remembered before the write, so that whichever of part and final comes second sees the
            // other.
            core.expect_parts(last.task_id, last.attempt);
            core.hub.insert_final(&last).await?;
            Ok(settle(core, &last).await?)
        }
        Kind::Hint => Err(WireError::Kind { got: Kind::Hint as u16, wanted: Kind::Part as u16 }.into()),
    }
}

/// Takes up what another coordinator left: attempts that are held and have a final, with all of their parts or not yet.
pub async fn resume(core: &Core) -> Result<(), HubError> {
    let claimed = TaskFilter { states: vec![TaskState::Claimed], ..Default::default() };
    for task in core.hub.tasks(&claimed).await? {
        for last in core.hub.finals(task.id).await? {
            core.expect_parts(last.task_id, last.attempt);
            settle(core, &last).await?;
        }
    }
    Ok(())
}

/// Settles whatever finals of a task are in the hub.
pub async fn settle_task(core: &Core, task: TaskId) -> Result<(), HubError> {
    for last in core.hub.finals(task).await? {
        settle(core, &last).await?;
    }
    Ok(())
}

/// Ends a task by a complete attempt, unless another was first, or counts an attempt's failure.
async fn settle(core: &Core, last: &Final) -> Result<(), HubError> {
    let (task, attempt) = (last.task_id, last.attempt);
    let taken = match &last.outcome {
        Outcome::Failed { error } => step(core, task, |task, now| task.fail(attempt, error.clone(), now)).await?,
        Outcome::Done { parts, .. } => match completed(core, last, parts).await? {
            Some(is_valid) => step(core, task, |task, now| task.complete(attempt, is_valid, now)).await?,
            None => return Ok(()),
        },
    };
    core.attempt_settled(task, attempt);
    if let Step::Stepped(task) = &taken {
        tracing::debug!(task = %task.id, attempt, state = task.state.as_str(), "attempt settled");
    }
    if let (Step::Refused(_, task), Outcome::Done { .. }) = (&taken, &last.outcome)
        && task.state == TaskState::Cancelled
        && let Some(request) = core.stored_request(task.request_id).await?
    {
        // The load points that a cancelled task had finished came after its cancellation.
        fold_cell(core, &request, task).await?;
    }
    Ok(())
}

/// Where every part that the final names is in the hub, with the hash that it names: whether one of them is valid.
async fn completed(core: &Core, last: &Final, wanted: &[String]) -> Result<Option<bool>, HubError> {
    let stored = core.hub.parts(last.task_id, last.attempt).await?;
    let is_complete =
        stored.len() == wanted.len() && stored.iter().zip(wanted).all(|((_, sha256), wanted)| sha256 == wanted);
    Ok(is_complete.then(|| stored.iter().any(|(part, _)| part.point.valid)))
}
