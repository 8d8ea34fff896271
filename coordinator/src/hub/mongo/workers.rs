//! Workers in MongoDB.

use super::{
    super::{HubError, Workers},
    MongoHub, decode_all,
    document::encode,
};
use async_trait::async_trait;
use modelmeter_common::status::WorkerDoc;
use mongodb::bson::doc;

#[async_trait]
impl Workers for MongoHub {
    async fn put_worker(&self, worker: &WorkerDoc) -> Result<(), HubError> {
        self.upsert(&self.workers, encode(worker)?).await
    }

    async fn workers(&self) -> Result<Vec<WorkerDoc>, HubError> {
        decode_all("worker", self.find(&self.workers, doc! {}, doc! { "_id": 1 }, None).await?)
    }
}
