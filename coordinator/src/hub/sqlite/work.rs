//! Requests, tasks, parts and finals in SQLite.

use super::{
    super::{HubError, Inserted, TaskCounts, TaskFilter, TaskKind, Work},
    SqliteHub, Where, decode, encode, int, word,
};
use async_trait::async_trait;
use modelmeter_common::{
    RequestId, TaskId, Timestamp,
    part::{Final, Part},
    request::RequestDoc,
    task::Task,
};
use rusqlite::{Row, named_params, params, params_from_iter, types::Value};

#[async_trait]
impl Work for SqliteHub {
    /// The clock of this machine, on which every user of the file runs.
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
        query.equals("pool", filter.pool.as_ref().map(|pool| pool.as_str().to_owned()));
        let (sql, values) = query.select("tasks", "request_id, place", filter.limit);
        self.all("task", sql, params_from_iter(values)).await
    }

    async fn waiting_tasks(&self, request: RequestId, kinds: &[TaskKind], limit: u32) -> Result<Vec<Task>, HubError> {
        if kinds.is_empty() {
            return Ok(Vec::new());
        }
        // One seek in the index finds the first tasks of each kind; the first of all kinds are returned.
        let first = "SELECT * FROM (SELECT place, doc FROM tasks INDEXED BY tasks_waiting
                     WHERE request_id = ? AND state = 'waiting' AND kind = ? ORDER BY place LIMIT ?)";
        let each = vec![first; kinds.len()].join(" UNION ALL ");
        let mut values = Vec::with_capacity(3 * kinds.len() + 1);
        for TaskKind { engine, format, device_class, inspector } in kinds {
            let kind = encode(&(engine, format, device_class, inspector))?;
            values.extend([Value::from(request.to_string()), kind.into(), i64::from(limit).into()]);
        }
        values.push(i64::from(limit).into());
        self.all("task", format!("SELECT doc FROM ({each}) ORDER BY place LIMIT ?"), params_from_iter(values)).await
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
            pool: task.pool.as_ref().map(|pool| pool.as_str().to_owned()),
            revision: int(task.revision),
            doc: encode(task)?,
        })
    }
}
