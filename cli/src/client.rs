//! The control API as the commands use it: typed, with errors as problems. A coordinator that is gone is noticed by
//! keep-alive, also while a call has been waiting for long.

use crate::args::RequestWord;
use modelmeter_common::{
    Code, Problem, RequestId,
    artifact::archive,
    event::RequestEvent,
    grpc,
    model::{ArtifactRef, Model},
    net::{Access, Connection, Limits, Peers, Tried, Unanswered, each_of},
    profile::Profile,
    request::{Request, RequestDoc},
    status::{Dryrun, Status, WorkerDoc},
};
use modelmeter_proto::control::{
    AddModelRequest, ArtifactChunk, ArtifactHeader, ArtifactIds, CancelRequest, Document, ListModelsRequest,
    ListRequestsRequest, ListWorkersRequest, PlanRequest, ResultsRequest, StatusRequest, SubmitRequest, WatchReply,
    WatchRequest, artifact_chunk::Content, control_client::ControlClient,
};
use serde::de::DeserializeOwned;
use std::{
    io::{BufWriter, ErrorKind, Write},
    path::Path,
    sync::Arc,
    time::Duration,
};
use tonic::{Response, Streaming};

/// Each address may take this long to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a connection is asked for a sign of life.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// A status of the largest request is far below this.
const MAX_MESSAGE_BYTES: usize = 256 << 20;
/// An artifact travels in pieces of this size.
const CHUNK_BYTES: usize = 1 << 20;

/// The coordinators that a command knows: the first that answers, and another where that one is lost.
#[derive(Clone)]
pub struct Client {
    peers: Arc<Peers>,
}

impl Client {
    /// Connects to the first of these that answers.
    ///
    /// # Errors
    /// `invalid_argument` for an address that is none; `unreachable` with each one tried.
    pub async fn connect(addresses: &[String]) -> Result<Self, Problem> {
        let full = |address: &String| match address.contains("://") {
            true => address.clone(),
            false => format!("http://{address}"),
        };
        let addresses: Vec<String> = addresses.iter().map(full).collect();
        let limits = Limits { connect: CONNECT_TIMEOUT, call: None, keep_alive: KEEP_ALIVE, while_idle: false };
        match Peers::connect("coordinator", &addresses, limits, Access::default()).await? {
            Ok(peers) => Ok(Self { peers: Arc::new(peers) }),
            Err(tried) => {
                Err(nobody_answers(&tried).with_hint("check the address, and that `modelmeter coordinator` runs there"))
            }
        }
    }

    /// Asks the coordinator, and each other one where it is gone: every call may be repeated.
    async fn call<Q, A, F>(&self, request: Q, call: impl Fn(Control, tonic::Request<Q>) -> F) -> Result<A, Problem>
    where
        Q: Clone,
        F: Future<Output = Result<Response<A>, tonic::Status>>,
    {
        let answer = self.peers.call(&request, |connection, request| call(control(connection), request)).await;
        answer.map_err(|unanswered| match unanswered {
            Unanswered::Refused(status) => problem(status),
            Unanswered::Unreached(tried) => match &tried[..] {
                [Tried { status: Some(status), .. }] => problem(status.clone()),
                several => nobody_answers(several).with_hint(KEPT),
            },
        })
    }

    /// Submits a request under this idempotency key; gives the number of its tasks.
    pub async fn submit(&mut self, id: RequestId, request: &Request) -> Result<u64, Problem> {
        let call = SubmitRequest { request_id: id.to_string(), request_json: json(request) };
        Ok(self.call(call, |mut c, r| async move { c.submit(r).await }).await?.tasks)
    }

    /// What a request would do; the hub need not have its model.
    pub async fn plan(&mut self, request: &Request, model: &Model) -> Result<Dryrun, Problem> {
        let call = PlanRequest { request_json: json(request), model_json: json(model) };
        read(&self.call(call, |mut c, r| async move { c.plan(r).await }).await?.plan_json)
    }

    /// The newest requests.
    pub async fn requests(&mut self, limit: u32) -> Result<Vec<RequestDoc>, Problem> {
        let reply =
            self.call(ListRequestsRequest { limit }, |mut c, r| async move { c.list_requests(r).await }).await?;
        read_all(&reply.documents)
    }

    /// The request that a word means.
    ///
    /// # Errors
    /// `not_found`; `invalid_argument` for the start of several ids.
    pub async fn meant(&mut self, word: &RequestWord) -> Result<RequestId, Problem> {
        match word {
            RequestWord::Id(start) => match start.parse() {
                Ok(id) => Ok(id),
                Err(_) => only(start, &self.requests(u32::MAX).await?),
            },
            RequestWord::Latest => self.requests(1).await?.first().map(|latest| latest.id).ok_or_else(|| {
                Problem::new(Code::NotFound, "there is no request yet")
                    .with_hint("`modelmeter profile MODEL` makes one")
            }),
        }
    }

    /// Where a request stands.
    pub async fn status(&mut self, id: RequestId) -> Result<Status, Problem> {
        let reply = self
            .call(StatusRequest { request_id: id.to_string() }, |mut c, r| async move { c.status(r).await })
            .await?;
        read(&reply.status_json)
    }

    /// What happens to a request, after what was told up to this place.
    pub async fn watch(&mut self, id: RequestId, after: &Place) -> Result<Watch, Problem> {
        let Place { feed, seq } = after.clone();
        let call = WatchRequest { request_id: id.to_string(), feed, after_seq: seq };
        Ok(Watch(self.call(call, |mut c, r| async move { c.watch(r).await }).await?))
    }

    /// Stops a request; gives the number of tasks that this stopped.
    pub async fn cancel(&mut self, id: RequestId, reason: &str) -> Result<u64, Problem> {
        let call = CancelRequest { request_id: id.to_string(), reason: reason.into() };
        Ok(self.call(call, |mut c, r| async move { c.cancel(r).await }).await?.tasks_cancelled)
    }

    /// Profiles out of the hub.
    pub async fn results(
        &mut self,
        request: Option<RequestId>,
        model: Option<&str>,
        limit: Option<u32>,
    ) -> Result<Vec<Profile>, Problem> {
        let call = ResultsRequest {
            request_id: request.map(|id| id.to_string()).unwrap_or_default(),
            model: model.unwrap_or_default().into(),
            limit: limit.unwrap_or(0),
        };
        let mut stream: Streaming<Document> = self.call(call, |mut c, r| async move { c.results(r).await }).await?;
        let mut profiles = Vec::new();
        while let Some(document) = stream.message().await.map_err(problem)? {
            profiles.push(read(&document.json)?);
        }
        Ok(profiles)
    }

    /// The workers that are known.
    pub async fn workers(&mut self) -> Result<Vec<WorkerDoc>, Problem> {
        let reply = self.call(ListWorkersRequest {}, |mut c, r| async move { c.list_workers(r).await }).await?;
        read_all(&reply.documents)
    }

    /// The models, or those of this name, newest first.
    pub async fn models(&mut self, name: Option<&str>) -> Result<Vec<Model>, Problem> {
        let call = ListModelsRequest { name: name.unwrap_or_default().into() };
        let reply = self.call(call, |mut c, r| async move { c.list_models(r).await }).await?;
        read_all(&reply.documents)
    }

    /// Adds a model whose artifacts, if it has any, lie in these files, beside the other formats of its name and version; what
    /// the hub has already is not sent. Gives the model as the hub has it then.
    pub async fn add_model(&mut self, model: &Model, files: &[(ArtifactRef, &Path)]) -> Result<Model, Problem> {
        self.add_artifacts(files).await?;
        let model_json = json(model);
        let reply = self.call(AddModelRequest { model_json }, |mut c, r| async move { c.add_model(r).await }).await?;
        read(&reply.model_json)
    }

    /// Sends the artifacts that the hub lacks.
    pub async fn add_artifacts(&mut self, files: &[(ArtifactRef, &Path)]) -> Result<(), Problem> {
        let sha256 = files.iter().map(|(artifact, _)| artifact.sha256.clone()).collect();
        let missing =
            self.call(ArtifactIds { sha256 }, |mut c, r| async move { c.missing_artifacts(r).await }).await?.sha256;
        for (artifact, path) in files.iter().filter(|(artifact, _)| missing.contains(&artifact.sha256)) {
            self.put_artifact(artifact, path).await?;
        }
        Ok(())
    }

    async fn put_artifact(&mut self, artifact: &ArtifactRef, path: &Path) -> Result<(), Problem> {
        let header = ArtifactHeader {
            sha256: artifact.sha256.clone(),
            format: artifact.format.to_string(),
            bytes: artifact.bytes,
        };
        let (send, receive) = tokio::sync::mpsc::channel(4);
        let path = path.to_owned();
        let sending = tokio::task::spawn_blocking(move || {
            // A closed channel means that the call has ended: its own error says why.
            let header = ArtifactChunk { content: Some(Content::Header(header)) };
            if send.blocking_send(header).is_err() {
                return Ok(());
            }
            let mut chunks = BufWriter::with_capacity(CHUNK_BYTES, Chunks(send));
            let sent = archive::write_to(&path, &mut chunks).and_then(|()| chunks.flush());
            sent.or_else(|e| match e.kind() {
                ErrorKind::BrokenPipe => Ok(()),
                _ => Err(Problem::invalid("model", format!("cannot read {}: {e}", path.display()))),
            })
        });
        let mut client = control(self.peers.current());
        let call = client.put_artifact(tokio_stream::wrappers::ReceiverStream::new(receive));
        let (sent, stored) = tokio::join!(sending, call);
        sent.map_err(|e| Problem::new(Code::Internal, format!("reading the artifact failed: {e}")))??;
        stored.map_err(problem)?;
        Ok(())
    }
}

/// The only request with an id that begins with these characters.
fn only(start: &str, requests: &[RequestDoc]) -> Result<RequestId, Problem> {
    let plain = |id: &str| id.replace('-', "");
    let begins = |id: &RequestId| plain(&id.to_string()).starts_with(&plain(start));
    let found: Vec<RequestId> = requests.iter().map(|request| request.id).filter(begins).collect();
    match found[..] {
        [only] => Ok(only),
        [] => Err(Problem::new(Code::NotFound, format!("no request's id begins with '{start}'"))
            .with_field("request")
            .with_hint("`modelmeter requests` lists those that are there")),
        [first, second, ..] => {
            let message = format!("'{start}' begins the ids of {} requests, such as {first} and {second}", found.len());
            Err(Problem::invalid("request", message).with_hint("give more of it, or latest for the newest"))
        }
    }
}

/// Writes become messages of a call.
struct Chunks(tokio::sync::mpsc::Sender<ArtifactChunk>);

impl Write for Chunks {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let chunk = ArtifactChunk { content: Some(Content::Data(data.to_vec())) };
        self.0.blocking_send(chunk).map(|()| data.len()).map_err(|_| ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A place in what a coordinator told of a request; the usual one is the start. Where the coordinator asked has no such place,
/// it begins anew with the whole status.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Place {
    feed: String,
    seq: u64,
}

/// What a coordinator told of a request at one time.
#[derive(Clone, PartialEq, Debug)]
pub struct News {
    /// Where the request stands; none: as the events before and these say.
    pub status: Option<Status>,
    /// What happened since.
    pub events: Vec<RequestEvent>,
    /// The place after this.
    pub place: Place,
}

/// A stream of news of one request, over one connection.
pub struct Watch(Streaming<WatchReply>);

impl Watch {
    /// The next news; none after the status of a request that has ended, and where the coordinator ended the stream.
    pub async fn next(&mut self) -> Result<Option<News>, Problem> {
        let Some(reply) = self.0.message().await.map_err(problem)? else { return Ok(None) };
        let WatchReply { status_json, events_json, feed, seq } = reply;
        let status = if status_json.is_empty() { None } else { Some(read(&status_json)?) };
        let events = events_json.iter().map(|event| read(event)).collect::<Result<_, _>>()?;
        Ok(Some(News { status, events, place: Place { feed, seq } }))
    }
}

/// Hint for a lost coordinator: the request goes on without this client.
const KEPT: &str = "finished results are in the hub; `modelmeter watch ID` follows the request again";

/// A call's status as a problem; a lost coordinator comes with the hint [`KEPT`].
fn problem(status: tonic::Status) -> Problem {
    match grpc::problem_of(&status) {
        gone @ Problem { code: Code::Unreachable, hint: None, .. } => gone.with_hint(KEPT),
        other => other,
    }
}

fn nobody_answers(tried: &[Tried]) -> Problem {
    Problem::new(Code::Unreachable, format!("no coordinator answers ({})", each_of(tried))).with_field("coordinator")
}

type Control = ControlClient<Connection>;

fn control(connection: Connection) -> Control {
    ControlClient::new(connection).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

fn json<T: serde::Serialize>(document: &T) -> String {
    serde_json::to_string(document).expect("our documents hold nothing that JSON cannot carry")
}

fn read<T: DeserializeOwned>(json: &str) -> Result<T, Problem> {
    serde_json::from_str(json).map_err(|e| {
        Problem::new(Code::BadResponse, format!("a document from the coordinator cannot be read: {e}"))
            .with_hint("use the same version of modelmeter on both sides")
    })
}

fn read_all<T: DeserializeOwned>(documents: &[Document]) -> Result<Vec<T>, Problem> {
    documents.iter().map(|document| read(&document.json)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::Embedded;
    use modelmeter_common::request::RequestState;

    #[test]
    fn the_start_of_an_id_is_enough_where_it_is_the_only_one() {
        let of = |id: &str| RequestDoc {
            id: id.parse().unwrap(),
            ..modelmeter_tests::documents::request(id, RequestState::Done, 0)
        };
        let ids = ["4b1f2c6e-0d3f-4a8e-9a57-2f1f6f0f6f11", "4b9f2c6e-0d3f-4a8e-9a57-2f1f6f0f6f11"];
        let requests = ids.map(of);
        for start in ["4b1", "4b1f2c6e-0d", "4b1f2c6e0d", ids[0]] {
            assert_eq!(only(start, &requests).unwrap(), requests[0].id, "{start}");
        }
        let several = only("4b", &requests).unwrap_err();
        assert!(several.code == Code::InvalidArgument && several.message.contains(ids[1]), "{several}");
        assert_eq!(only("5", &requests).unwrap_err().code, Code::NotFound);
    }

    #[tokio::test]
    async fn no_password_in_an_address_is_shown() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        for address in [format!("http://joe:hunter2@{closed}"), "http://joe:hunter2@ho st:1".to_owned()] {
            let Err(error) = Client::connect(&[address]).await else { panic!("connected") };
            let text = format!("{error} {error:?}");
            assert!(text.contains("***@") && !text.contains("hunter2") && !text.contains("joe"), "{text}");
        }
    }

    #[tokio::test]
    async fn another_coordinator_is_asked_where_one_is_gone() {
        let homes = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let start = async |home: &tempfile::TempDir| Embedded::start_read_only(home.path()).await.unwrap();
        let (first, second) = (start(&homes[0]).await, start(&homes[1]).await);
        let addresses = [first.address().to_owned(), second.address().to_owned()];
        let mut client = Client::connect(&addresses).await.unwrap();
        assert_eq!(client.requests(1).await.unwrap(), Vec::new());
        first.stop().await;
        assert_eq!(client.requests(1).await.unwrap(), Vec::new(), "the second has the same to say");
        second.stop().await;
        let gone = client.requests(1).await.unwrap_err();
        assert_eq!(gone.code, Code::Unreachable);
        assert!(addresses.iter().all(|address| gone.message.contains(address)), "{gone}");
    }

    #[tokio::test]
    async fn what_was_tried_is_told() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let Err(error) = Client::connect(&[format!("http://{closed}")]).await else { panic!("connected") };
        assert_eq!(error.code, Code::Unreachable);
        assert!(error.message.contains(&closed.to_string()) && error.message.contains("refused"), "{error}");
    }
}
