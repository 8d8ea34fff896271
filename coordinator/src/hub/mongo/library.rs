//! Models in MongoDB; artifacts in its GridFS.

use super::{
    super::{ByteStream, HubError, Inserted, Library},
    MongoHub, decode_all,
    document::{decode, encode},
    keyed,
};
use async_trait::async_trait;
use modelmeter_common::model::{ArtifactRef, Model};
use mongodb::bson::{Document, doc};

#[async_trait]
impl Library for MongoHub {
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
