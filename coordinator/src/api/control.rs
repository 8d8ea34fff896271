//! What a user calls.

use super::{artifacts, from_json, hub_status, models, not_found, parse, status_of, submit, to_json};
use crate::{
    core::Core,
    hub::{ProfileFilter, ProfileQuery, TaskFilter},
    status,
};
use futures::{Stream, StreamExt};
use modelmeter_common::{
    RequestId,
    model::Model,
    request::{Request as Asked, RequestDoc},
    status::Status as RequestStatus,
};
use modelmeter_proto::control::{
    AddModelReply, AddModelRequest, ArtifactChunk, ArtifactIds, CancelReply, CancelRequest, Document, DocumentsReply,
    ListModelsRequest, ListRequestsRequest, ListWorkersRequest, PlanReply, PlanRequest, PutArtifactReply,
    ResultsRequest, StatusReply, StatusRequest, SubmitReply, SubmitRequest, control_server::Control,
};
use std::{pin::Pin, sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// Watchers hear of changes at most this often, and at least every [`WATCH_IDLE`].
const WATCH_GAP: Duration = Duration::from_millis(100);
const WATCH_MAX_GAP: Duration = Duration::from_secs(2);
const WATCH_IDLE: Duration = Duration::from_secs(1);
/// A watcher waits this much longer for each cell, since each status reads them all.
const WATCH_GAP_A_CELL: Duration = Duration::from_millis(1);
const DEFAULT_RESULTS: u32 = 1000;
const DEFAULT_REQUESTS: u32 = 100;

/// The `Control` service.
pub struct ControlApi {
    core: Arc<Core>,
    stop: CancellationToken,
}

type Reply<T> = Result<Response<T>, Status>;
type Sent<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl ControlApi {
    pub fn new(core: Arc<Core>, stop: CancellationToken) -> Self {
        Self { core, stop }
    }

    async fn request_doc(&self, id: &str) -> Result<RequestDoc, Status> {
        let parsed: RequestId = parse("request_id", id)?;
        let found = self.core.hub.request(parsed).await.map_err(hub_status)?;
        found.ok_or_else(|| not_found("request", id, "`modelmeter requests` lists those that are there"))
    }
}

async fn status_of_request(core: &Core, request: &RequestDoc) -> Result<RequestStatus, Status> {
    let tasks =
        core.hub.tasks(&TaskFilter { request: Some(request.id), ..Default::default() }).await.map_err(hub_status)?;
    let pools = core.pools().await.map_err(hub_status)?;
    let stuck = core.stuck.lock().expect("never poisoned: no panic while held").clone();
    Ok(status::status(request, &tasks, &pools, stuck.as_deref()))
}

fn documents<T: serde::Serialize>(all: &[T]) -> Reply<DocumentsReply> {
    let documents: Result<_, Status> = all.iter().map(|one| Ok(Document { json: to_json(one)? })).collect();
    Ok(Response::new(DocumentsReply { documents: documents? }))
}

#[tonic::async_trait]
impl Control for ControlApi {
    type WatchStream = Sent<StatusReply>;
    type ResultsStream = Sent<Document>;

    async fn submit(&self, request: Request<SubmitRequest>) -> Reply<SubmitReply> {
        let SubmitRequest { request_id, request_json } = request.into_inner();
        let asked = from_json::<Asked>("request", &request_json)?.certified();
        let id = parse("request_id", &request_id)?;
        let (tasks, existed) = submit::submit(&self.core, id, asked).await.map_err(|p| status_of(&p))?;
        Ok(Response::new(SubmitReply { request_id, tasks, existed }))
    }

    async fn plan(&self, request: Request<PlanRequest>) -> Reply<PlanReply> {
        let asked = from_json::<Asked>("request", &request.into_inner().request_json)?.certified();
        let plan = submit::plan(&self.core, &asked).await.map_err(|p| status_of(&p))?;
        Ok(Response::new(PlanReply { plan_json: to_json(&plan)? }))
    }

    async fn list_requests(&self, request: Request<ListRequestsRequest>) -> Reply<DocumentsReply> {
        let limit = Some(request.into_inner().limit).filter(|n| *n > 0).unwrap_or(DEFAULT_REQUESTS);
        documents(&self.core.hub.requests(false, limit).await.map_err(hub_status)?)
    }

    async fn status(&self, request: Request<StatusRequest>) -> Reply<StatusReply> {
        let doc = self.request_doc(&request.into_inner().request_id).await?;
        let status = status_of_request(&self.core, &doc).await?;
        Ok(Response::new(StatusReply { status_json: to_json(&status)? }))
    }

    async fn watch(&self, request: Request<StatusRequest>) -> Reply<Self::WatchStream> {
        let doc = self.request_doc(&request.into_inner().request_id).await?;
        let (sender, receiver) = mpsc::channel(1);
        let (core, stop) = (self.core.clone(), self.stop.clone());
        // Ends with the request, with its reader, or with the coordinator.
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = watch(&core, doc, &sender) => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn cancel(&self, request: Request<CancelRequest>) -> Reply<CancelReply> {
        let CancelRequest { request_id, reason } = request.into_inner();
        let doc = self.request_doc(&request_id).await?;
        if !doc.expanded {
            // What broke off would be taken up again by the sweep, and run: tasks must be there to be cancelled. What
            // does not expand has ended by that.
            if let Err(error) = submit::expand(&self.core, &doc).await {
                tracing::warn!(%error, request = %doc.id, "cancelling what there is of it");
            }
        }
        let reason = if reason.is_empty() { "cancelled by the user" } else { &reason };
        let tasks_cancelled = self.core.cancel_tasks(doc.id, reason).await.map_err(hub_status)?;
        Ok(Response::new(CancelReply { tasks_cancelled }))
    }

    async fn results(&self, request: Request<ResultsRequest>) -> Reply<Self::ResultsStream> {
        let ResultsRequest { request_id, model, limit } = request.into_inner();
        let request = if request_id.is_empty() { None } else { Some(self.request_doc(&request_id).await?.id) };
        let limit = match (limit, request) {
            (0, Some(_)) => None,
            (0, None) => Some(DEFAULT_RESULTS),
            (limit, _) => Some(limit),
        };
        let filter = ProfileFilter { request, ..Default::default() };
        let all = ProfileQuery { filter, limit, ..Default::default() };
        let profiles = super::profiles(&self.core, all, &model).await.map_err(|p| status_of(&p))?;
        let sent = profiles.map(|profile| Ok(Document { json: to_json(&profile.map_err(hub_status)?)? }));
        Ok(Response::new(Box::pin(sent)))
    }

    async fn list_workers(&self, _: Request<ListWorkersRequest>) -> Reply<DocumentsReply> {
        documents(&self.core.live_workers().await.map_err(hub_status)?)
    }

    async fn missing_artifacts(&self, request: Request<ArtifactIds>) -> Reply<ArtifactIds> {
        let mut missing = Vec::new();
        for sha256 in request.into_inner().sha256 {
            if !self.core.hub.has_artifact(&sha256).await.map_err(hub_status)? {
                missing.push(sha256);
            }
        }
        Ok(Response::new(ArtifactIds { sha256: missing }))
    }

    async fn put_artifact(&self, request: Request<Streaming<ArtifactChunk>>) -> Reply<PutArtifactReply> {
        artifacts::put(&self.core, request.into_inner()).await.map(Response::new)
    }

    async fn add_model(&self, request: Request<AddModelRequest>) -> Reply<AddModelReply> {
        let model: Model = from_json("model", &request.into_inner().model_json)?;
        let model = models::add(&self.core, &model).await.map_err(|p| status_of(&p))?;
        Ok(Response::new(AddModelReply { model_json: to_json(&model)? }))
    }

    async fn list_models(&self, request: Request<ListModelsRequest>) -> Reply<DocumentsReply> {
        let name = request.into_inner().name;
        let name = Some(name.as_str()).filter(|name| !name.is_empty());
        documents(&self.core.hub.models(name).await.map_err(hub_status)?)
    }
}

/// Sends the status at once and after each change, until the request or the reader ends.
async fn watch(core: &Core, mut doc: RequestDoc, sender: &mpsc::Sender<Result<StatusReply, Status>>) {
    let mut changes = core.subscribe();
    let mut last = String::new();
    loop {
        let step = async {
            doc = core.hub.request(doc.id).await.map_err(hub_status)?.unwrap_or_else(|| doc.clone());
            let status = status_of_request(core, &doc).await?;
            Ok::<_, Status>((to_json(&status)?, status.cells.len()))
        };
        let (json, cells) = match step.await {
            Ok(step) => step,
            Err(status) => return drop(sender.send(Err(status)).await),
        };
        if json != last {
            last.clone_from(&json);
            if sender.send(Ok(StatusReply { status_json: json })).await.is_err() {
                return;
            }
        }
        if doc.state.is_terminal() {
            return;
        }
        tokio::time::sleep((WATCH_GAP + WATCH_GAP_A_CELL * cells as u32).min(WATCH_MAX_GAP)).await;
        let ours = async {
            // A lagged receiver has missed changes, perhaps ours: look.
            while let Ok(changed) = changes.recv().await {
                if changed == doc.id {
                    break;
                }
            }
        };
        tokio::select! {
            () = ours => {}
            () = sender.closed() => return,
            () = tokio::time::sleep(WATCH_IDLE) => {}
        }
    }
}
