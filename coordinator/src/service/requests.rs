//! Stored requests: find, list, show and cancel them.

use super::{expansion, not_found, stated, status, transition};
use crate::{core::Core, hub::TaskFilter};
use modelmeter_common::{Problem, RequestId, request::RequestDoc, status::Status};

/// Requests in a list without a limit.
const USUAL_LIMIT: u32 = 100;

/// The request with this id.
///
/// # Errors
/// `not_found`.
pub async fn find(core: &Core, id: RequestId) -> Result<RequestDoc, Problem> {
    let found = core.hub.request(id).await?;
    found.ok_or_else(|| not_found("request", &id.to_string(), "`modelmeter requests` lists those that are there"))
}

/// The newest requests.
pub async fn list(core: &Core, limit: Option<u32>) -> Result<Vec<RequestDoc>, Problem> {
    Ok(core.hub.requests(false, stated(limit).unwrap_or(USUAL_LIMIT)).await?)
}

/// The status of a request, cell by cell.
pub async fn status(core: &Core, request: &RequestDoc) -> Result<Status, Problem> {
    let tasks = core.hub.tasks(&TaskFilter { request: Some(request.id), ..Default::default() }).await?;
    Ok(status::status(request, &tasks, &core.pools().await?, core.stuck().as_deref()))
}

/// Cancels what of a request has not ended; gives how many tasks that were.
///
/// # Errors
/// `not_found`.
pub async fn cancel(core: &Core, id: RequestId, reason: &str) -> Result<u64, Problem> {
    let request = find(core, id).await?;
    if !request.expanded {
        // What broke off would be taken up again by the sweep, and run: tasks must be there to be cancelled. A request
        // that does not expand has ended by that.
        if let Err(error) = expansion::expand(core, &request).await {
            tracing::warn!(%error, request = %request.id, "cancelling what there is of it");
        }
    }
    let reason = if reason.is_empty() { "cancelled by the user" } else { reason };
    Ok(transition::cancel_tasks(core, request.id, reason).await?)
}
