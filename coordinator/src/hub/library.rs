//! The library: models, and the bytes of their artifacts.

use super::{ByteStream, HubError, Inserted};
use async_trait::async_trait;
use modelmeter_common::model::{ArtifactRef, Model};

/// Models by name and version, artifacts by sha256.
#[async_trait]
pub trait Library: Send + Sync + 'static {
    /// Inserts the model if `old` is none, else replaces the one of its name and version if that still has the artifacts of
    /// `old`; `false`: another change came first.
    async fn swap_model(&self, old: Option<&Model>, new: &Model) -> Result<bool, HubError>;
    /// The newest of this name, or the one of this version too.
    async fn model(&self, name: &str, version: Option<&str>) -> Result<Option<Model>, HubError>;
    /// All, or those of this name; newest first.
    async fn models(&self, name: Option<&str>) -> Result<Vec<Model>, HubError>;

    async fn has_artifact(&self, sha256: &str) -> Result<bool, HubError>;
    /// Stores a stream of bytes under `artifact.sha256`; nothing is kept unless size and sha256 hold
    /// ([`HubError::Mismatch`]) and the stream ends without an error.
    async fn put_artifact(&self, artifact: &ArtifactRef, bytes: ByteStream) -> Result<Inserted, HubError>;
    /// The bytes in order, in pieces of at most 1 MiB.
    async fn artifact(&self, sha256: &str) -> Result<Option<ByteStream>, HubError>;
}
