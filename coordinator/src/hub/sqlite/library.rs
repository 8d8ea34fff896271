//! Models in SQLite; artifacts in the folder beside it.

use super::{
    super::{ByteStream, HubError, Inserted, Library},
    SqliteHub, Where, encode,
};
use async_trait::async_trait;
use modelmeter_common::model::{ArtifactRef, Model};
use rusqlite::params_from_iter;

#[async_trait]
impl Library for SqliteHub {
    async fn swap_model(&self, old: Option<&Model>, new: &Model) -> Result<bool, HubError> {
        let (id, created_at, doc) = (new.id.to_string(), new.created_at.0, encode(new)?);
        let changed = match old {
            None => {
                let sql = "INSERT OR IGNORE INTO models (id, name, version, created_at, doc) VALUES (?, ?, ?, ?, ?)";
                let (name, version) = (new.id.name.clone(), new.id.version.clone());
                self.change(sql, (id, name, version, created_at, doc)).await?
            }
            Some(old) => {
                let sql = "UPDATE models SET created_at = ?, doc = ?
                           WHERE id = ? AND json_extract(doc, '$.artifacts') = json(?)";
                self.change(sql, (created_at, doc, id, encode(&old.artifacts)?)).await?
            }
        };
        Ok(changed == 1)
    }

    async fn model(&self, name: &str, version: Option<&str>) -> Result<Option<Model>, HubError> {
        let sql = "SELECT doc FROM models WHERE name = ?1 AND (?2 IS NULL OR version = ?2)
                   ORDER BY created_at DESC, id DESC LIMIT 1";
        self.one("model", sql, (name.to_owned(), version.map(str::to_owned))).await
    }

    async fn models(&self, name: Option<&str>) -> Result<Vec<Model>, HubError> {
        let mut filter = Where::default();
        filter.equals("name", name.map(str::to_owned));
        let (sql, values) = filter.select("models", "created_at DESC, id DESC", None);
        self.all("model", sql, params_from_iter(values)).await
    }

    async fn has_artifact(&self, sha256: &str) -> Result<bool, HubError> {
        self.files.has(sha256).await
    }

    async fn put_artifact(&self, artifact: &ArtifactRef, bytes: ByteStream) -> Result<Inserted, HubError> {
        self.files.put(artifact, bytes).await
    }

    async fn artifact(&self, sha256: &str) -> Result<Option<ByteStream>, HubError> {
        self.files.get(sha256).await
    }
}
