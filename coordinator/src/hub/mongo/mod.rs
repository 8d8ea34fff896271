//! The hub in MongoDB: one collection a document type, as users query them (the public contract).
//!
//! What belongs here: which filter, order and precondition each call is, one file for each trait of the seam. How
//! documents become BSON is `document`, how the driver is called `calls`, artifacts `gridfs`, the connection `connect`.

mod calls;
mod connect;
mod document;
mod facets;
mod gridfs;
mod leaders;
mod library;
mod profiles;
mod work;
mod workers;

pub use connect::connect;

use super::{HubError, Inserted};
use calls::{Calls, is_duplicate};
use document::{date, decode, encode};
use futures::TryStreamExt as _;
use gridfs::Artifacts;
use mongodb::{
    Collection, Database,
    bson::{Bson, Document, doc},
};
use serde::{Serialize, de::DeserializeOwned};

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
    facets: facets::Counts,
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
            facets: facets::Counts::default(),
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

    /// Inserts unordered, and leaves existing documents as they are. One form for all inserts, because only this one
    /// tells a
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
        // MongoDB takes a limit of 0 for no limit.
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
        self.replace_document(collection, filter, encode(new)?).await
    }

    async fn replace_document(
        &self,
        collection: &Collection<Document>,
        filter: Document,
        new: Document,
    ) -> Result<bool, HubError> {
        let collection = collection.clone();
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

/// A document under a key that is not one of its fields.
fn keyed<T: Serialize>(key: String, value: &T) -> Result<Document, HubError> {
    let mut document = doc! { "_id": key };
    document.extend(encode(value)?);
    Ok(document)
}

/// The name of an enum's variant, as its JSON has it.
fn word<T: Serialize>(value: &T) -> Option<String> {
    serde_json::to_value(value).ok()?.as_str().map(str::to_owned)
}

fn int(value: u64) -> Bson {
    Bson::Int64(i64::try_from(value).unwrap_or(i64::MAX))
}
