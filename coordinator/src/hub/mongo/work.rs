//! Requests, tasks, parts and finals in MongoDB.

use super::{
    super::{HubError, Inserted, TaskCounts, TaskFilter, TaskKind, Work},
    MongoHub, connect, decode_all,
    document::{decode, encode},
    int, keyed,
};
use async_trait::async_trait;
use futures::TryStreamExt as _;
use modelmeter_common::{
    RequestId, TaskId, Timestamp,
    model::Format,
    part::{Final, Part},
    request::RequestDoc,
    task::{Task, TaskState},
};
use mongodb::{
    bson::{Document, doc},
    options::Hint,
};

/// Documents in one insert, far under the server's message limit.
const INSERT_BATCH: usize = 1000;

fn task_filter(filter: &TaskFilter) -> Document {
    let mut query = Document::new();
    if let Some(request) = filter.request {
        query.insert("request_id", request.to_string());
    }
    match filter.states.as_slice() {
        [] => {}
        [state] => drop(query.insert("state", state.as_str())),
        states => drop(query.insert("state", any_of(states))),
    }
    if let Some(key) = &filter.deployment_key {
        query.insert("deployment_key", key);
    }
    if let Some(pool) = &filter.pool {
        query.insert("pool", pool.as_str());
    }
    query
}

fn any_of(states: &[TaskState]) -> Document {
    doc! { "$in": states.iter().map(|state| state.as_str()).collect::<Vec<_>>() }
}

#[async_trait]
impl Work for MongoHub {
    async fn now(&self) -> Result<Timestamp, HubError> {
        let database = self.database.clone();
        let hello = self.calls.call(async move { database.run_command(doc! { "hello": 1 }).await }).await?;
        match hello.get_datetime("localTime") {
            Ok(at) => Ok(Timestamp(at.timestamp_millis())),
            Err(error) => Err(HubError::Failed(format!("the server does not tell its time: {error}"))),
        }
    }

    async fn insert_request(&self, request: &RequestDoc) -> Result<Inserted, HubError> {
        self.insert(&self.requests, encode(request)?).await
    }

    async fn request(&self, id: RequestId) -> Result<Option<RequestDoc>, HubError> {
        self.find_one("request", &self.requests, doc! { "_id": id.to_string() }).await
    }

    async fn requests(&self, running_only: bool, limit: u32) -> Result<Vec<RequestDoc>, HubError> {
        let filter = if running_only {
            doc! { "state": "running" }
        } else {
            doc! {}
        };
        let sort = doc! { "created_at": -1, "_id": -1 };
        decode_all("request", self.find(&self.requests, filter, sort, Some(limit)).await?)
    }

    async fn update_request(&self, old: &RequestDoc, new: &RequestDoc) -> Result<bool, HubError> {
        let before = encode(old)?;
        let filter = doc! {
            "_id": old.id.to_string(),
            "state": before.get("state").cloned(),
            "expanded": old.expanded,
        };
        self.replace(&self.requests, filter, new).await
    }

    async fn insert_tasks(&self, tasks: &[Task]) -> Result<u64, HubError> {
        let mut new = 0;
        for batch in tasks.chunks(INSERT_BATCH) {
            let documents = batch.iter().map(encode).collect::<Result<_, _>>()?;
            new += self.insert_many(&self.tasks, documents).await?;
        }
        Ok(new)
    }

    async fn task(&self, id: TaskId) -> Result<Option<Task>, HubError> {
        self.find_one("task", &self.tasks, doc! { "_id": id.to_string() }).await
    }

    async fn tasks(&self, filter: &TaskFilter) -> Result<Vec<Task>, HubError> {
        let sort = doc! { "request_id": 1, "order": 1 };
        decode_all("task", self.find(&self.tasks, task_filter(filter), sort, filter.limit).await?)
    }

    async fn waiting_tasks(&self, request: RequestId, kinds: &[TaskKind], limit: u32) -> Result<Vec<Task>, HubError> {
        // MongoDB takes a limit of 0 for no limit.
        if kinds.is_empty() || limit == 0 {
            return Ok(Vec::new());
        }
        // Each kind is one range of the index, in order; the server merges them. Left to itself it would rather walk all
        // tasks of the request.
        let of_kind = |kind: &TaskKind| {
            doc! {
                "state": TaskState::Waiting.as_str(),
                "request_id": request.to_string(),
                "cell.engine": &kind.engine,
                "cell.artifact.format": kind.format.map(Format::as_str),
                "cell.device_class": &kind.device_class,
                "cell.inspector": &kind.inspector,
            }
        };
        let filter = doc! { "$or": kinds.iter().map(of_kind).collect::<Vec<_>>() };
        let (tasks, hint) = (self.tasks.clone(), Hint::Keys(connect::waiting()));
        let find = async move {
            let found = tasks.find(filter).sort(doc! { "order": 1 }).hint(hint).limit(i64::from(limit));
            found.await?.try_collect().await
        };
        decode_all("task", self.calls.call(find).await?)
    }

    async fn count_tasks(&self, request: RequestId) -> Result<TaskCounts, HubError> {
        // All states are named so that the index alone answers.
        let pipeline = vec![
            doc! { "$match": { "state": any_of(&TaskState::ALL), "request_id": request.to_string() } },
            doc! { "$group": { "_id": "$state", "count": { "$sum": 1_i64 } } },
        ];
        let tasks = self.tasks.clone();
        let hint = Hint::Keys(connect::by_state());
        let counts: Vec<Document> =
            self.calls.call(async move { tasks.aggregate(pipeline).hint(hint).await?.try_collect().await }).await?;
        let counts: Vec<Counted> = decode_all("count", counts)?;
        Ok(counts.into_iter().map(|counted| (counted.state, counted.count)).collect())
    }

    async fn swap_task(&self, old: &Task, new: &Task) -> Result<bool, HubError> {
        let filter = doc! { "_id": old.id.to_string(), "revision": int(old.revision) };
        self.replace(&self.tasks, filter, new).await
    }

    async fn insert_part(&self, part: &Part, sha256: &str) -> Result<Inserted, HubError> {
        let mut document = keyed(part.id(), part)?;
        document.insert("sha256", sha256);
        self.insert(&self.parts, document).await
    }

    async fn parts(&self, task: TaskId, attempt: u32) -> Result<Vec<(Part, String)>, HubError> {
        let filter = doc! { "task_id": task.to_string(), "attempt": attempt };
        let documents = self.find(&self.parts, filter, doc! { "seq": 1 }, None).await?;
        let with_hash = |document: Document| {
            let sha256 = document.get_str("sha256").map(str::to_owned);
            let reason =
                |error: mongodb::bson::error::Error| HubError::Corrupt { what: "part", reason: error.to_string() };
            Ok((decode("part", document)?, sha256.map_err(reason)?))
        };
        documents.into_iter().map(with_hash).collect()
    }

    async fn insert_final(&self, last: &Final) -> Result<Inserted, HubError> {
        self.insert(&self.finals, keyed(last.id(), last)?).await
    }

    async fn finals(&self, task: TaskId) -> Result<Vec<Final>, HubError> {
        let filter = doc! { "task_id": task.to_string() };
        decode_all("final", self.find(&self.finals, filter, doc! { "attempt": 1 }, None).await?)
    }
}

#[derive(serde::Deserialize)]
struct Counted {
    #[serde(rename = "_id")]
    state: TaskState,
    count: u64,
}
