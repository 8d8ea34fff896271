//! The expansion of a stored request into tasks. Repeated after a crash, by any coordinator, it has the same result.

use super::{tell, transition};
use crate::{core::Core, hub::HubError, plan};
use modelmeter_common::{
    Code, Problem,
    event::What,
    request::{RequestDoc, RequestState},
};

/// Inserts the tasks of a stored request that are not there yet, and marks it expanded. The inner error says why it does
/// not expand: it never will, so that it has been ended as failed.
pub async fn expand(core: &Core, doc: &RequestDoc) -> Result<Result<(), Problem>, HubError> {
    let cells = match core.hub.model(&doc.model.name, Some(&doc.model.version)).await? {
        Some(model) => plan::expand::cells_again(doc, &model),
        None => Err(Problem::new(Code::NotFound, format!("model {} vanished", doc.model)).with_field("model")),
    };
    let cells = match cells {
        Ok(cells) => cells,
        Err(problem) => return fail(core, doc, &problem).await.map(|()| Err(problem)),
    };
    core.hub.insert_tasks(&plan::expand::tasks(doc.id, &doc.request, &cells, doc.created_at)).await?;
    core.hub.update_request(doc, &RequestDoc { expanded: true, ..doc.clone() }).await?;
    tell::happened(core, doc.id, What::Expanded { tasks: doc.tasks });
    core.wake();
    Ok(Ok(()))
}

/// Ends a request that cannot be expanded, with whatever an earlier try had inserted.
async fn fail(core: &Core, request: &RequestDoc, why: &Problem) -> Result<(), HubError> {
    tracing::warn!(request = %request.id, %why, "the request does not expand");
    transition::cancel_tasks(core, request.id, &format!("the request does not expand: {why}")).await?;
    let (ended_at, error) = (Some(core.now()), Some(why.clone()));
    let failed = RequestDoc { state: RequestState::Failed, ended_at, error, ..request.clone() };
    core.hub.update_request(request, &failed).await?;
    tell::ended(core, request.id, RequestState::Failed);
    Ok(())
}
