//! The calls of users.

use super::{artifacts, from_json, parse, refused, to_json};
use crate::{
    core::Core,
    events::Position,
    service::{
        artifacts as library, models, requests, results, submit,
        watch::{News, Watch},
        workers,
    },
};
use futures::{Stream, StreamExt};
use modelmeter_common::{RequestId, request::RequestDoc};
use modelmeter_proto::control::{
    AddModelReply, AddModelRequest, ArtifactChunk, ArtifactIds, CancelReply, CancelRequest, Document, DocumentsReply,
    ListModelsRequest, ListRequestsRequest, ListWorkersRequest, PlanReply, PlanRequest, PutArtifactReply,
    ResultsRequest, StatusReply, StatusRequest, SubmitReply, SubmitRequest, WatchReply, WatchRequest,
    control_server::Control,
};
use std::{pin::Pin, sync::Arc};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

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
        requests::find(&self.core, parse("request_id", id)?).await.map_err(refused)
    }
}

fn documents<T: serde::Serialize>(all: &[T]) -> Reply<DocumentsReply> {
    let documents: Result<_, Status> = all.iter().map(|one| Ok(Document { json: to_json(one)? })).collect();
    Ok(Response::new(DocumentsReply { documents: documents? }))
}

#[tonic::async_trait]
impl Control for ControlApi {
    type WatchStream = Sent<WatchReply>;
    type ResultsStream = Sent<Document>;

    async fn submit(&self, request: Request<SubmitRequest>) -> Reply<SubmitReply> {
        let SubmitRequest { request_id, request_json } = request.into_inner();
        let asked = from_json("request", &request_json)?;
        let id = parse("request_id", &request_id)?;
        let (tasks, existed) = submit::submit(&self.core, id, asked).await.map_err(refused)?;
        Ok(Response::new(SubmitReply { request_id, tasks, existed }))
    }

    async fn plan(&self, request: Request<PlanRequest>) -> Reply<PlanReply> {
        let PlanRequest { request_json, model_json } = request.into_inner();
        let asked = from_json("request", &request_json)?;
        let model = match model_json.as_str() {
            "" => None,
            json => Some(from_json("model", json)?),
        };
        let plan = submit::plan(&self.core, asked, model).await.map_err(refused)?;
        Ok(Response::new(PlanReply { plan_json: to_json(&plan)? }))
    }

    async fn list_requests(&self, request: Request<ListRequestsRequest>) -> Reply<DocumentsReply> {
        documents(&requests::list(&self.core, Some(request.into_inner().limit)).await.map_err(refused)?)
    }

    async fn status(&self, request: Request<StatusRequest>) -> Reply<StatusReply> {
        let doc = self.request_doc(&request.into_inner().request_id).await?;
        let status = requests::status(&self.core, &doc).await.map_err(refused)?;
        Ok(Response::new(StatusReply { status_json: to_json(&status)? }))
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Reply<Self::WatchStream> {
        let WatchRequest { request_id, feed, after_seq } = request.into_inner();
        // A feed that does not parse is one that is not here.
        let after = feed.parse().ok().map(|feed| Position { feed, seq: after_seq });
        let watch = Watch::new(self.core.clone(), parse("request_id", &request_id)?, after).await.map_err(refused)?;
        let (sender, receiver) = mpsc::channel(1);
        let stop = self.stop.clone();
        // Ends with the request, with its reader, or with the coordinator.
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = sender.closed() => {}
                () = tell(watch, &sender) => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn cancel(&self, request: Request<CancelRequest>) -> Reply<CancelReply> {
        let CancelRequest { request_id, reason } = request.into_inner();
        let id = parse("request_id", &request_id)?;
        let tasks_cancelled = requests::cancel(&self.core, id, &reason).await.map_err(refused)?;
        Ok(Response::new(CancelReply { tasks_cancelled }))
    }

    async fn results(&self, request: Request<ResultsRequest>) -> Reply<Self::ResultsStream> {
        let ResultsRequest { request_id, model, limit } = request.into_inner();
        let request = match request_id.as_str() {
            "" => None,
            id => Some(parse::<RequestId>("request_id", id)?),
        };
        let profiles = results::profiles(&self.core, request, &model, Some(limit)).await.map_err(refused)?;
        let sent = profiles.map(|profile| Ok(Document { json: to_json(&profile.map_err(|e| refused(e.into()))?)? }));
        Ok(Response::new(Box::pin(sent)))
    }

    async fn list_workers(&self, _: Request<ListWorkersRequest>) -> Reply<DocumentsReply> {
        documents(&workers::live(&self.core).await.map_err(refused)?)
    }

    async fn missing_artifacts(&self, request: Request<ArtifactIds>) -> Reply<ArtifactIds> {
        let sha256 = library::missing(&self.core, request.into_inner().sha256).await.map_err(refused)?;
        Ok(Response::new(ArtifactIds { sha256 }))
    }

    async fn put_artifact(&self, request: Request<Streaming<ArtifactChunk>>) -> Reply<PutArtifactReply> {
        artifacts::put(&self.core, request.into_inner()).await.map(Response::new)
    }

    async fn add_model(&self, request: Request<AddModelRequest>) -> Reply<AddModelReply> {
        let model = from_json("model", &request.into_inner().model_json)?;
        let model = models::add(&self.core, &model).await.map_err(refused)?;
        Ok(Response::new(AddModelReply { model_json: to_json(&model)? }))
    }

    async fn list_models(&self, request: Request<ListModelsRequest>) -> Reply<DocumentsReply> {
        documents(&models::list(&self.core, &request.into_inner().name).await.map_err(refused)?)
    }
}

/// Sends the status at once, and what changes, until the request ends.
async fn tell(mut watch: Watch, sender: &mpsc::Sender<Result<WatchReply, Status>>) {
    loop {
        let reply = match watch.next().await {
            Ok(Some(news)) => reply(&news, watch.position()),
            Ok(None) => return,
            Err(problem) => return drop(sender.send(Err(refused(problem))).await),
        };
        if sender.send(reply).await.is_err() {
            return;
        }
    }
}

fn reply(news: &News, at: Position) -> Result<WatchReply, Status> {
    let (status_json, events_json) = match news {
        News::Whole(status) => (to_json(status)?, Vec::new()),
        News::Events(events) => (String::new(), events.iter().map(to_json).collect::<Result<_, _>>()?),
    };
    Ok(WatchReply { status_json, events_json, feed: at.feed.to_string(), seq: at.seq })
}
