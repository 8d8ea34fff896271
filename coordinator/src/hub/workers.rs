//! The workers that registered.

use super::HubError;
use async_trait::async_trait;
use modelmeter_common::status::WorkerDoc;

/// Workers by name.
#[async_trait]
pub trait Workers: Send + Sync + 'static {
    /// Inserts or replaces by name.
    async fn put_worker(&self, worker: &WorkerDoc) -> Result<(), HubError>;
    async fn workers(&self) -> Result<Vec<WorkerDoc>, HubError>;
}
