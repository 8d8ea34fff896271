//! The end of cells and requests: the last repeat folds its cell, the last cell closes its request.

use super::tell;
use crate::{
    aggregate,
    core::{Core, SWAP_TRIES},
    hub::{HubError, TaskFilter},
};
use modelmeter_common::{
    event::What,
    part::{Final, Outcome},
    profile::Profile,
    request::{RequestDoc, RequestState},
    task::{Task, TaskState},
};

/// Settles what follows from a task's terminal state: folds its cell if that was the last repeat, and closes its request
/// if that was the last cell.
pub(super) async fn task_ended(core: &Core, task: &Task) -> Result<(), HubError> {
    core.task_settled(task.id);
    let Some(request) = core.stored_request(task.request_id).await? else { return Ok(()) };
    fold_cell(core, &request, task).await?;
    if core.count_down(request.id).await? > 0 {
        return Ok(());
    }
    match core.hub.request(request.id).await? {
        Some(request) => close_request(core, &request).await,
        None => Ok(()),
    }
}

/// Writes the profile of a task's cell once all of its repeats have ended. Repeated, it writes the same.
pub async fn fold_cell(core: &Core, request: &RequestDoc, task: &Task) -> Result<Option<Profile>, HubError> {
    let key = task.cell.key();
    let mut repeats = Vec::new();
    for repeat in 0..request.request.repeats {
        let id = request.id.task(&key, repeat);
        let read = if id == task.id { Some(task.clone()) } else { core.hub.task(id).await? };
        match read {
            Some(task) if task.state.is_terminal() => repeats.push(task),
            _ => return Ok(None),
        }
    }
    let mut measured = Vec::new();
    for task in &repeats {
        // A cancelled task counts with the load points that it finished, any other only with a winning attempt.
        let counts = |last: &Final| match task.winner {
            Some(winner) => last.attempt == winner,
            None => task.state == TaskState::Cancelled && matches!(last.outcome, Outcome::Done { .. }),
        };
        let Some(last) = core.hub.finals(task.id).await?.into_iter().rfind(counts) else { continue };
        let parts = core.hub.parts(task.id, last.attempt).await?.into_iter().map(|(part, _)| part).collect();
        measured.push(aggregate::Measured { repeat: task.repeat, last, parts });
    }
    let mut profile = aggregate::profile(request, &repeats, &measured, 1);
    let mut replaces = None;
    for _ in 0..SWAP_TRIES {
        if core.hub.put_profile(&profile, replaces).await? {
            tell::happened(core, task.request_id, What::CellDone { profile_id: profile.id });
            return Ok(Some(profile));
        }
        if let Some(stored) = core.hub.profile(task.profile_id).await? {
            replaces = Some(stored.revision);
            if (Profile { revision: profile.revision, ..stored }) == profile {
                return Ok(Some(profile));
            }
            profile.revision = replaces.map_or(1, |revision| revision + 1);
        }
    }
    Err(HubError::Failed(format!("profile {} was changed {SWAP_TRIES} times under its fold", task.profile_id)))
}

/// Ends a request whose tasks have all ended, after each of its cells has a profile.
pub async fn close_request(core: &Core, request: &RequestDoc) -> Result<(), HubError> {
    let counts = core.hub.count_tasks(request.id).await?;
    let total: u64 = counts.values().sum();
    let ended: u64 = counts.iter().filter(|(state, _)| state.is_terminal()).map(|(_, n)| n).sum();
    if !request.expanded || total != request.tasks || ended != total {
        return Ok(());
    }
    let folded = core.hub.profile_ids(request.id).await?;
    if (folded.len() as u64) < request.cells {
        for task in core.hub.tasks(&TaskFilter { request: Some(request.id), ..Default::default() }).await? {
            if !folded.contains(&task.profile_id) {
                fold_cell(core, request, &task).await?;
            }
        }
    }
    let count = |state| counts.get(&state).copied().unwrap_or(0);
    let state = match (count(TaskState::Done), count(TaskState::Cancelled)) {
        (done, _) if done == total => RequestState::Done,
        (_, cancelled) if cancelled > 0 => RequestState::Cancelled,
        (0, _) => RequestState::Failed, // or measured without a valid point
        _ => RequestState::Partial,
    };
    let ended = RequestDoc { state, ended_at: Some(core.now()), ..request.clone() };
    if core.hub.update_request(request, &ended).await? {
        tracing::info!(request = %request.id, ?state, "request ended");
    }
    tell::ended(core, request.id, state);
    Ok(())
}
