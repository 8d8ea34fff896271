//! Workers in SQLite.

use super::{
    super::{HubError, Workers},
    SqliteHub, encode,
};
use async_trait::async_trait;
use modelmeter_common::status::WorkerDoc;

#[async_trait]
impl Workers for SqliteHub {
    async fn put_worker(&self, worker: &WorkerDoc) -> Result<(), HubError> {
        let sql = "INSERT OR REPLACE INTO workers (id, doc) VALUES (?, ?)";
        self.change(sql, (worker.name.clone(), encode(worker)?)).await.map(|_| ())
    }

    async fn workers(&self) -> Result<Vec<WorkerDoc>, HubError> {
        self.all("worker", "SELECT doc FROM workers ORDER BY id".to_owned(), []).await
    }
}
