//! The `Work` service with one rule a call, and its state open to the tests.

use modelmeter_common::{TaskId, broker::RESULTS, task::Assignment};
use modelmeter_proto::control::{
    ArtifactChunk, ArtifactHeader, ArtifactId, AttemptFate, ClaimNextRequest, ClaimReply, ClaimRequest, Granted,
    HandBackReply, HandBackRequest, Refused, RegisterReply, RegisterRequest, RenewReply, RenewRequest,
    artifact_chunk::Content,
    attempt_fate::Fate,
    claim_reply::Outcome,
    refused::Why,
    work_server::{Work, WorkServer},
};
use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
};
use tokio_stream::{Stream, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status};

/// Renewals are a third of it apart: short, but no result is published twice in a test that does not mean it.
const LEASE_MS: u64 = 3_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Waiting,
    Claimed,
    Terminal,
    Cancelled,
}

#[derive(Default)]
pub struct Book {
    pub tasks: BTreeMap<TaskId, (Assignment, State)>,
    pub registered: Vec<RegisterRequest>,
    pub handed_back: Vec<HandBackRequest>,
    pub progress: Vec<String>,
    pub artifacts: BTreeMap<String, Vec<u8>>,
    /// What a worker that registers is told; [`LEASE_MS`] unless set.
    pub lease_ms: Option<u64>,
    /// Forgets its workers once: as a coordinator with a new hub would.
    pub forgetful: bool,
    /// Is not there for the next artifact.
    pub breaks_off: bool,
    /// Says that another process has this worker's name.
    pub replaced: bool,
}

pub struct FakeCoordinator {
    pub address: String,
    book: Arc<Mutex<Book>>,
}

impl FakeCoordinator {
    pub async fn start() -> Self {
        Self::on(tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    pub fn on(listener: tokio::net::TcpListener) -> Self {
        let address = format!("http://{}", listener.local_addr().unwrap());
        let book = Arc::<Mutex<Book>>::default();
        let service = WorkServer::new(Service(book.clone()));
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { address, book }
    }

    pub fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }

    pub fn add(&self, assignment: Assignment) -> TaskId {
        let id = assignment.task_id;
        self.book().tasks.insert(id, (assignment, State::Waiting));
        id
    }

    pub fn set(&self, task: TaskId, state: State) {
        self.book().tasks.get_mut(&task).unwrap().1 = state;
    }
}

struct Service(Arc<Mutex<Book>>);

impl Book {
    fn claim(&mut self, task: TaskId) -> Outcome {
        let refused = |why: Why| Outcome::Refused(Refused { why: why.into() });
        let Some((assignment, state)) = self.tasks.get_mut(&task) else { return refused(Why::Unknown) };
        match state {
            State::Waiting => {
                *state = State::Claimed;
                assignment.attempt += 1;
                Outcome::Granted(Granted {
                    task_id: task.to_string(),
                    attempt: assignment.attempt,
                    task_json: serde_json::to_string(assignment).unwrap(),
                })
            }
            State::Claimed => refused(Why::Held),
            State::Terminal | State::Cancelled => refused(Why::Terminal),
        }
    }

    fn fate(&self, task: &str, attempt: u32) -> Fate {
        match task.parse().ok().and_then(|task: TaskId| self.tasks.get(&task)) {
            Some((assignment, _)) if assignment.attempt != attempt => Fate::Lost,
            Some((_, State::Claimed)) => Fate::Renewed,
            Some((_, State::Terminal)) => Fate::Terminal,
            Some((_, State::Cancelled)) => Fate::Cancelled,
            Some((_, State::Waiting)) | None => Fate::Lost,
        }
    }
}

fn reply(outcome: Outcome) -> Result<Response<ClaimReply>, Status> {
    Ok(Response::new(ClaimReply { outcome: Some(outcome) }))
}

#[tonic::async_trait]
impl Work for Service {
    type GetArtifactStream = Pin<Box<dyn Stream<Item = Result<ArtifactChunk, Status>> + Send>>;

    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<RegisterReply>, Status> {
        let request = request.into_inner();
        let queues = request.slots.iter().map(|_| super::QUEUE.to_owned()).collect();
        let mut book = self.0.lock().unwrap();
        book.registered.push(request);
        let lease_ms = book.lease_ms.unwrap_or(LEASE_MS);
        Ok(Response::new(RegisterReply { queues, results_queue: RESULTS.into(), lease_ms }))
    }

    async fn claim(&self, request: Request<ClaimRequest>) -> Result<Response<ClaimReply>, Status> {
        let task = request.into_inner().task_id.parse().unwrap();
        reply(self.0.lock().unwrap().claim(task))
    }

    async fn claim_next(&self, request: Request<ClaimNextRequest>) -> Result<Response<ClaimReply>, Status> {
        let after: TaskId = request.into_inner().after_task_id.parse().unwrap();
        let mut book = self.0.lock().unwrap();
        let key = book.tasks[&after].0.cell.deployment_key();
        let fits = |(a, state): &(Assignment, State)| *state == State::Waiting && a.cell.deployment_key() == key;
        let next = book.tasks.iter().find(|(_, task)| fits(task)).map(|(id, _)| *id);
        reply(match next {
            Some(task) => book.claim(task),
            None => Outcome::Refused(Refused { why: Why::None.into() }),
        })
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewReply>, Status> {
        let mut book = self.0.lock().unwrap();
        let attempts = request.into_inner().attempts;
        book.progress.extend(attempts.iter().map(|attempt| attempt.progress.clone()));
        let register_again = std::mem::take(&mut book.forgetful);
        let fates = attempts.into_iter().map(|attempt| AttemptFate {
            fate: book.fate(&attempt.task_id, attempt.attempt).into(),
            task_id: attempt.task_id,
            attempt: attempt.attempt,
        });
        let fates = if register_again { Vec::new() } else { fates.collect() };
        Ok(Response::new(RenewReply { fates, register_again, replaced: book.replaced }))
    }

    async fn hand_back(&self, request: Request<HandBackRequest>) -> Result<Response<HandBackReply>, Status> {
        self.0.lock().unwrap().handed_back.push(request.into_inner());
        Ok(Response::new(HandBackReply {}))
    }

    async fn get_artifact(&self, request: Request<ArtifactId>) -> Result<Response<Self::GetArtifactStream>, Status> {
        let sha256 = request.into_inner().sha256;
        let bytes = self.0.lock().unwrap().artifacts.get(&sha256).cloned();
        let bytes = bytes.ok_or_else(|| Status::not_found("no such artifact"))?;
        if std::mem::take(&mut self.0.lock().unwrap().breaks_off) {
            return Err(Status::unavailable("restarting"));
        }
        let header = ArtifactHeader { sha256, format: "onnx".into(), bytes: bytes.len() as u64 };
        let mut chunks = vec![Content::Header(header)];
        chunks.extend(bytes.chunks(3).map(|piece| Content::Data(piece.to_vec())));
        let chunks = chunks.into_iter().map(|content| Ok(ArtifactChunk { content: Some(content) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks.collect::<Vec<_>>()))))
    }
}
