//! The hub in one SQLite file, for the embedded mode: nothing to install, and the results stay after the run.
//!
//! What belongs here: which statement each call is. Who runs them, and when they are on the disk, is
//! `store`; artifacts are `files`. Two processes may have the same file open, such as a run and `modelmeter
//! results`.

mod files;
mod leaders;
mod store;

use super::{ByteStream, Hub, HubError, Inserted, ProfileFilter, TaskCounts, TaskFilter};
use async_trait::async_trait;
use files::Files;
use modelmeter_common::{
    ProfileId, RequestId, SCHEMA_VERSION, TaskId, Timestamp,
    model::{ArtifactRef, Model},
    part::{Final, Part},
    profile::Profile,
    request::RequestDoc,
    status::WorkerDoc,
    task::{Task, TaskState},
};
use rusqlite::{OptionalExtension as _, Params, Row, named_params, params, params_from_iter, types::Value};
use serde::{Serialize, de::DeserializeOwned};
use std::path::{Path, PathBuf};
use store::Store;

const SCHEMA: &str = include_str!("schema.sql");

/// An open hub file.
pub struct SqliteHub {
    store: Store,
    files: Files,
}

/// Opens the hub at `path`, made if it is not there, with its folder. Artifacts lie in `PATH.artifacts`.
///
/// # Errors
/// [`HubError::Storage`] where the place cannot be written to, the file is something else, or a newer
/// modelmeter wrote it.
pub fn open(path: &Path) -> Result<SqliteHub, HubError> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)
            .map_err(|error| HubError::Storage(format!("cannot make {}: {error}", folder.display())))?;
    }
    let store = Store::open(path, SCHEMA, SCHEMA_VERSION)?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(".artifacts");
    Ok(SqliteHub { store, files: Files::open(PathBuf::from(beside))? })
}

impl SqliteHub {
    /// One statement; the number of rows that it changed.
    async fn change<P: Params + Send + 'static>(&self, sql: &'static str, params: P) -> Result<usize, HubError> {
        self.store.write(move |connection| connection.prepare_cached(sql)?.execute(params)).await
    }

    async fn insert<P: Params + Send + 'static>(&self, sql: &'static str, params: P) -> Result<Inserted, HubError> {
        match self.change(sql, params).await? {
            0 => Ok(Inserted::Existed),
            _ => Ok(Inserted::New),
        }
    }

    /// The document that `sql` selects.
    async fn one<T: DeserializeOwned, P: Params + Send + 'static>(
        &self,
        what: &'static str,
        sql: &'static str,
        params: P,
    ) -> Result<Option<T>, HubError> {
        let read = move |connection: &rusqlite::Connection| {
            connection.prepare_cached(sql)?.query_row(params, |row| row.get::<_, String>(0)).optional()
        };
        self.store.read(read).await?.map(|text| decode(what, &text)).transpose()
    }

    /// The documents that `sql` selects.
    async fn all<T: DeserializeOwned, P: Params + Send + 'static>(
        &self,
        what: &'static str,
        sql: String,
        params: P,
    ) -> Result<Vec<T>, HubError> {
        let texts = self.rows(sql, params, |row| row.get::<_, String>(0)).await?;
        texts.iter().map(|text| decode(what, text)).collect()
    }

    async fn rows<R, P, F>(&self, sql: String, params: P, read: F) -> Result<Vec<R>, HubError>
    where
        R: Send + 'static,
        P: Params + Send + 'static,
        F: FnMut(&Row<'_>) -> rusqlite::Result<R> + Send + 'static,
    {
        let rows = move |connection: &rusqlite::Connection| {
            connection.prepare_cached(&sql)?.query_map(params, read)?.collect()
        };
        self.store.read(rows).await
    }
}

fn encode<T: Serialize>(value: &T) -> Result<String, HubError> {
    serde_json::to_string(value).map_err(|error| HubError::Storage(format!("a document cannot be stored: {error}")))
}

fn decode<T: DeserializeOwned>(what: &'static str, text: &str) -> Result<T, HubError> {
    serde_json::from_str(text).map_err(|error| HubError::Corrupt { what, reason: error.to_string() })
}

/// SQLite has signed integers alone; counters never get there.
fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The name of an enum's variant, as its JSON has it.
fn word<T: Serialize>(value: &T) -> Result<String, HubError> {
    encode(value).map(|json| json.trim_matches('"').to_owned())
}

/// A `WHERE` clause put together from the fields of a filter that are set.
#[derive(Default)]
struct Where {
    conditions: Vec<String>,
    values: Vec<Value>,
}

impl Where {
    fn equals(&mut self, column: &str, value: Option<String>) {
        if let Some(value) = value {
            self.conditions.push(format!("{column} = ?"));
            self.values.push(value.into());
        }
    }

    fn any_of(&mut self, column: &str, values: &[TaskState]) {
        if !values.is_empty() {
            self.conditions.push(format!("{column} IN ({})", vec!["?"; values.len()].join(", ")));
            self.values.extend(values.iter().map(|value| Value::from(value.as_str().to_owned())));
        }
    }

    /// The whole query. To SQLite a negative limit is none.
    fn select(mut self, table: &str, order: &str, limit: Option<u32>) -> (String, Vec<Value>) {
        let conditions = match self.conditions.as_slice() {
            [] => String::new(),
            all => format!(" WHERE {}", all.join(" AND ")),
        };
        self.values.push(limit.map_or(-1, i64::from).into());
        (format!("SELECT doc FROM {table}{conditions} ORDER BY {order} LIMIT ?"), self.values)
    }
}

#[async_trait]
impl Hub for SqliteHub {
    /// This machine's: everyone who uses the file is on it.
    async fn now(&self) -> Result<Timestamp, HubError> {
        Ok(Timestamp::now())
    }

    async fn insert_request(&self, request: &RequestDoc) -> Result<Inserted, HubError> {
        let sql = "INSERT OR IGNORE INTO requests (id, created_at, state, expanded, doc) VALUES (?, ?, ?, ?, ?)";
        let (id, state) = (request.id.to_string(), word(&request.state)?);
        self.insert(sql, (id, request.created_at.0, state, request.expanded, encode(request)?)).await
    }

    async fn request(&self, id: RequestId) -> Result<Option<RequestDoc>, HubError> {
        self.one("request", "SELECT doc FROM requests WHERE id = ?", [id.to_string()]).await
    }

    async fn requests(&self, running_only: bool, limit: u32) -> Result<Vec<RequestDoc>, HubError> {
        let mut filter = Where::default();
        filter.equals("state", running_only.then(|| "running".to_owned()));
        let (sql, values) = filter.select("requests", "created_at DESC, id DESC", Some(limit));
        self.all("request", sql, params_from_iter(values)).await
    }

    async fn update_request(&self, old: &RequestDoc, new: &RequestDoc) -> Result<bool, HubError> {
        let sql = "UPDATE requests SET created_at = ?, state = ?, expanded = ?, doc = ?
                   WHERE id = ? AND state = ? AND expanded = ?";
        let (id, before, after) = (old.id.to_string(), word(&old.state)?, word(&new.state)?);
        let values = (new.created_at.0, after, new.expanded, encode(new)?, id, before, old.expanded);
        Ok(self.change(sql, values).await? == 1)
    }

    async fn insert_tasks(&self, tasks: &[Task]) -> Result<u64, HubError> {
        let sql = "INSERT OR IGNORE INTO tasks (id, request_id, place, state, deployment_key, pool, revision, doc)
                   VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
        let rows = tasks.iter().map(TaskRow::of).collect::<Result<Vec<_>, _>>()?;
        let insert = move |connection: &rusqlite::Connection| {
            let mut statement = connection.prepare_cached(sql)?;
            let mut new = 0;
            for row in rows {
                let TaskRow { id, request_id, place, state, deployment_key, pool, revision, doc } = row;
                new += statement.execute(params![id, request_id, place, state, deployment_key, pool, revision, doc])?;
            }
            Ok(new as u64)
        };
        self.store.write(insert).await
    }

    async fn task(&self, id: TaskId) -> Result<Option<Task>, HubError> {
        self.one("task", "SELECT doc FROM tasks WHERE id = ?", [id.to_string()]).await
    }

    async fn tasks(&self, filter: &TaskFilter) -> Result<Vec<Task>, HubError> {
        let mut query = Where::default();
        query.equals("request_id", filter.request.map(|id| id.to_string()));
        query.any_of("state", &filter.states);
        query.equals("deployment_key", filter.deployment_key.clone());
        query.equals("pool", filter.pool.clone());
        let (sql, values) = query.select("tasks", "request_id, place", filter.limit);
        self.all("task", sql, params_from_iter(values)).await
    }

    async fn count_tasks(&self, request: RequestId) -> Result<TaskCounts, HubError> {
        let sql = "SELECT state, COUNT(*) FROM tasks WHERE request_id = ? GROUP BY state".to_owned();
        let read = |row: &Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?.unsigned_abs()));
        let counts = self.rows(sql, [request.to_string()], read).await?;
        let named = |(state, count): (String, u64)| Ok((decode("task state", &format!("\"{state}\""))?, count));
        counts.into_iter().map(named).collect()
    }

    async fn swap_task(&self, old: &Task, new: &Task) -> Result<bool, HubError> {
        let sql = "UPDATE tasks SET request_id = :request_id, place = :place, state = :state,
                   deployment_key = :deployment_key, pool = :pool, revision = :revision, doc = :doc
                   WHERE id = :id AND revision = :before";
        let (row, id, before) = (TaskRow::of(new)?, old.id.to_string(), int(old.revision));
        let swap = move |connection: &rusqlite::Connection| {
            connection.prepare_cached(sql)?.execute(named_params! {
                ":request_id": row.request_id, ":place": row.place, ":state": row.state,
                ":deployment_key": row.deployment_key, ":pool": row.pool, ":revision": row.revision,
                ":doc": row.doc, ":id": id, ":before": before,
            })
        };
        Ok(self.store.write(swap).await? == 1)
    }

    async fn insert_part(&self, part: &Part, sha256: &str) -> Result<Inserted, HubError> {
        let sql = "INSERT OR IGNORE INTO parts (id, task_id, attempt, seq, sha256, doc) VALUES (?, ?, ?, ?, ?, ?)";
        let (task, sha256) = (part.task_id.to_string(), sha256.to_owned());
        self.insert(sql, (part.id(), task, part.attempt, part.seq, sha256, encode(part)?)).await
    }

    async fn parts(&self, task: TaskId, attempt: u32) -> Result<Vec<(Part, String)>, HubError> {
        let sql = "SELECT doc, sha256 FROM parts WHERE task_id = ? AND attempt = ? ORDER BY seq".to_owned();
        let read = |row: &Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?));
        let rows = self.rows(sql, (task.to_string(), attempt), read).await?;
        rows.into_iter().map(|(text, sha256)| Ok((decode("part", &text)?, sha256))).collect()
    }

    async fn insert_final(&self, last: &Final) -> Result<Inserted, HubError> {
        let sql = "INSERT OR IGNORE INTO finals (id, task_id, attempt, doc) VALUES (?, ?, ?, ?)";
        self.insert(sql, (last.id(), last.task_id.to_string(), last.attempt, encode(last)?)).await
    }

    async fn finals(&self, task: TaskId) -> Result<Vec<Final>, HubError> {
        let sql = "SELECT doc FROM finals WHERE task_id = ? ORDER BY attempt".to_owned();
        self.all("final", sql, [task.to_string()]).await
    }

    async fn put_profile(&self, profile: &Profile, replaces: Option<u64>) -> Result<bool, HubError> {
        let (id, request, doc) = (profile.id.to_string(), profile.request_id.to_string(), encode(profile)?);
        let (model, version) = (profile.model.name.clone(), profile.model.version.clone());
        let (created_at, revision) = (profile.created_at.0, int(profile.revision));
        let changed = match replaces {
            None => {
                let sql = "INSERT OR IGNORE INTO profiles (request_id, model, version, created_at, revision, doc, id)
                           VALUES (?, ?, ?, ?, ?, ?, ?)";
                self.change(sql, (request, model, version, created_at, revision, doc, id)).await?
            }
            Some(before) => {
                let sql = "UPDATE profiles SET request_id = ?, model = ?, version = ?, created_at = ?, revision = ?,
                           doc = ? WHERE id = ? AND revision = ?";
                self.change(sql, (request, model, version, created_at, revision, doc, id, int(before))).await?
            }
        };
        Ok(changed == 1)
    }

    async fn profile(&self, id: ProfileId) -> Result<Option<Profile>, HubError> {
        self.one("profile", "SELECT doc FROM profiles WHERE id = ?", [id.to_string()]).await
    }

    async fn profiles(&self, filter: &ProfileFilter) -> Result<Vec<Profile>, HubError> {
        let mut query = Where::default();
        query.equals("request_id", filter.request.map(|id| id.to_string()));
        query.equals("model", filter.model.clone());
        query.equals("version", filter.version.clone());
        let (sql, values) = query.select("profiles", "created_at DESC, id DESC", filter.limit);
        self.all("profile", sql, params_from_iter(values)).await
    }

    async fn put_worker(&self, worker: &WorkerDoc) -> Result<(), HubError> {
        let sql = "INSERT OR REPLACE INTO workers (id, doc) VALUES (?, ?)";
        self.change(sql, (worker.name.clone(), encode(worker)?)).await.map(|_| ())
    }

    async fn workers(&self) -> Result<Vec<WorkerDoc>, HubError> {
        self.all("worker", "SELECT doc FROM workers ORDER BY id".to_owned(), []).await
    }

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

/// A task as its table has it.
struct TaskRow {
    id: String,
    request_id: String,
    place: u32,
    state: &'static str,
    deployment_key: String,
    pool: Option<String>,
    revision: i64,
    doc: String,
}

impl TaskRow {
    fn of(task: &Task) -> Result<Self, HubError> {
        Ok(Self {
            id: task.id.to_string(),
            request_id: task.request_id.to_string(),
            place: task.order,
            state: task.state.as_str(),
            deployment_key: task.deployment_key.clone(),
            pool: task.pool.clone(),
            revision: int(task.revision),
            doc: encode(task)?,
        })
    }
}

#[cfg(test)]
mod tests;
