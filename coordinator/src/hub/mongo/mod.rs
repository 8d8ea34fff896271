//! The hub in MongoDB: one collection a document type, as users query them (the public contract).
//!
//! What belongs here: which filter, order and precondition each call is. How documents become BSON is
//! `document`, how the driver is called `calls`, artifacts `gridfs`, the connection `connect`.

mod calls;
mod connect;
mod document;
mod gridfs;
mod leaders;

pub use connect::connect;

use super::{ByteStream, Hub, HubError, Inserted, ProfileFilter, TaskCounts, TaskFilter};
use async_trait::async_trait;
use calls::{Calls, is_duplicate};
use document::{date, decode, encode};
use futures::TryStreamExt as _;
use gridfs::Artifacts;
use modelmeter_common::{
    ProfileId, RequestId, TaskId, Timestamp,
    model::{ArtifactRef, Model},
    part::{Final, Part},
    profile::Profile,
    request::RequestDoc,
    status::WorkerDoc,
    task::{Task, TaskState},
};
use mongodb::{
    Collection, Database,
    bson::{Bson, Document, doc},
    options::Hint,
};
use serde::{Serialize, de::DeserializeOwned};

/// Documents in one insert: far under the server's message limit, and soon done.
const INSERT_BATCH: usize = 1000;

/// A connected hub. Cheap to share; the driver keeps the connections.
pub struct MongoHub {
    database: Database,
    calls: Calls,
    requests: Collection<Document>,
    tasks: Collection<Document>,
    parts: Collection<Document>,
    finals: Collection<Document>,
    profiles: Collection<Document>,
    workers: Collection<Document>,
    models: Collection<Document>,
    artifacts: Artifacts,
}

impl MongoHub {
    fn new(database: Database, calls: Calls) -> Self {
        Self {
            requests: database.collection("requests"),
            tasks: database.collection("tasks"),
            parts: database.collection("parts"),
            finals: database.collection("finals"),
            profiles: database.collection("profiles"),
            workers: database.collection("workers"),
            models: database.collection("models"),
            artifacts: Artifacts::new(&database, calls.clone()),
            database,
            calls,
        }
    }

    async fn insert(&self, collection: &Collection<Document>, document: Document) -> Result<Inserted, HubError> {
        match self.insert_many(collection, vec![document]).await? {
            0 => Ok(Inserted::Existed),
            _ => Ok(Inserted::New),
        }
    }

    /// Unordered, those that are there left alone. One form for all inserts, because only this one tells a
    /// duplicate that has not reached the majority yet.
    async fn insert_many(&self, collection: &Collection<Document>, documents: Vec<Document>) -> Result<u64, HubError> {
        let collection = collection.clone();
        let insert =
            move |documents: Vec<Document>| async move { collection.insert_many(documents).ordered(false).await };
        self.calls.insert(documents.len(), insert(documents)).await
    }

    async fn find_one<T: DeserializeOwned>(
        &self,
        what: &'static str,
        collection: &Collection<Document>,
        filter: Document,
    ) -> Result<Option<T>, HubError> {
        let collection = collection.clone();
        let found = self.calls.call(async move { collection.find_one(filter).await }).await?;
        found.map(|document| decode(what, document)).transpose()
    }

    async fn find(
        &self,
        collection: &Collection<Document>,
        filter: Document,
        sort: Document,
        limit: Option<u32>,
    ) -> Result<Vec<Document>, HubError> {
        // To MongoDB a limit of 0 is none.
        if limit == Some(0) {
            return Ok(Vec::new());
        }
        let collection = collection.clone();
        let limit = i64::from(limit.unwrap_or(0));
        self.calls.call(async move { collection.find(filter).sort(sort).limit(limit).await?.try_collect().await }).await
    }

    /// Replaces the one document that fits the filter; `false` if none does.
    async fn replace<T: Serialize>(
        &self,
        collection: &Collection<Document>,
        filter: Document,
        new: &T,
    ) -> Result<bool, HubError> {
        let (collection, new) = (collection.clone(), encode(new)?);
        let result = self.calls.call(async move { collection.replace_one(filter, new).await }).await?;
        Ok(result.matched_count == 1)
    }

    async fn upsert(&self, collection: &Collection<Document>, document: Document) -> Result<(), HubError> {
        let collection = collection.clone();
        let filter = doc! { "_id": document.get("_id").cloned() };
        let upsert = async move {
            let once = || collection.replace_one(filter.clone(), document.clone()).upsert(true);
            match once().await {
                Err(error) if is_duplicate(&error) => once().await,
                result => result,
            }
        };
        self.calls.call(upsert).await.map(|_| ())
    }
}

fn decode_all<T: DeserializeOwned>(what: &'static str, documents: Vec<Document>) -> Result<Vec<T>, HubError> {
    documents.into_iter().map(|document| decode(what, document)).collect()
}

/// A document of ours under a key that is not one of its fields.
fn keyed<T: Serialize>(key: String, value: &T) -> Result<Document, HubError> {
    let mut document = doc! { "_id": key };
    document.extend(encode(value)?);
    Ok(document)
}

fn int(value: u64) -> Bson {
    Bson::Int64(i64::try_from(value).unwrap_or(i64::MAX))
}

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
        query.insert("pool", pool);
    }
    query
}

fn any_of(states: &[TaskState]) -> Document {
    doc! { "$in": states.iter().map(|state| state.as_str()).collect::<Vec<_>>() }
}

#[async_trait]
impl Hub for MongoHub {
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

    async fn put_profile(&self, profile: &Profile, replaces: Option<u64>) -> Result<bool, HubError> {
        match replaces {
            None => Ok(self.insert(&self.profiles, encode(profile)?).await? == Inserted::New),
            Some(revision) => {
                let filter = doc! { "_id": profile.id.to_string(), "revision": int(revision) };
                self.replace(&self.profiles, filter, profile).await
            }
        }
    }

    async fn profile(&self, id: ProfileId) -> Result<Option<Profile>, HubError> {
        self.find_one("profile", &self.profiles, doc! { "_id": id.to_string() }).await
    }

    async fn profiles(&self, filter: &ProfileFilter) -> Result<Vec<Profile>, HubError> {
        let mut query = Document::new();
        if let Some(request) = filter.request {
            query.insert("request_id", request.to_string());
        }
        if let Some(model) = &filter.model {
            query.insert("model.name", model);
        }
        if let Some(version) = &filter.version {
            query.insert("model.version", version);
        }
        let sort = doc! { "created_at": -1, "_id": -1 };
        decode_all("profile", self.find(&self.profiles, query, sort, filter.limit).await?)
    }

    async fn put_worker(&self, worker: &WorkerDoc) -> Result<(), HubError> {
        self.upsert(&self.workers, encode(worker)?).await
    }

    async fn workers(&self) -> Result<Vec<WorkerDoc>, HubError> {
        decode_all("worker", self.find(&self.workers, doc! {}, doc! { "_id": 1 }, None).await?)
    }

    async fn swap_model(&self, old: Option<&Model>, new: &Model) -> Result<bool, HubError> {
        let key = new.id.to_string();
        match old {
            None => Ok(self.insert(&self.models, keyed(key, new)?).await? == Inserted::New),
            Some(old) => {
                let filter = doc! { "_id": key, "artifacts": encode(old)?.get("artifacts").cloned() };
                self.replace(&self.models, filter, new).await
            }
        }
    }

    async fn model(&self, name: &str, version: Option<&str>) -> Result<Option<Model>, HubError> {
        let mut filter = doc! { "name": name };
        if let Some(version) = version {
            filter.insert("version", version);
        }
        let newest = self.find(&self.models, filter, doc! { "created_at": -1, "_id": -1 }, Some(1)).await?;
        newest.into_iter().next().map(|document| decode("model", document)).transpose()
    }

    async fn models(&self, name: Option<&str>) -> Result<Vec<Model>, HubError> {
        let filter = name.map_or_else(Document::new, |name| doc! { "name": name });
        let sort = doc! { "created_at": -1, "_id": -1 };
        decode_all("model", self.find(&self.models, filter, sort, None).await?)
    }

    async fn has_artifact(&self, sha256: &str) -> Result<bool, HubError> {
        self.artifacts.has(sha256).await
    }

    async fn put_artifact(&self, artifact: &ArtifactRef, bytes: ByteStream) -> Result<Inserted, HubError> {
        self.artifacts.put(artifact, bytes).await
    }

    async fn artifact(&self, sha256: &str) -> Result<Option<ByteStream>, HubError> {
        self.artifacts.get(sha256).await
    }
}

#[derive(serde::Deserialize)]
struct Counted {
    #[serde(rename = "_id")]
    state: TaskState,
    count: u64,
}
