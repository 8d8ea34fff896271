//! The hub in one SQLite file, for the embedded mode: nothing to install, and the results stay after the run.
//!
//! What belongs here: which statement each call is, one file for each trait of the seam. Who runs them, and when they
//! are on the disk, is `store`; artifacts are `files`. Two processes may have the same file open, such as a run and
//! `modelmeter results`.

mod files;
mod leaders;
mod library;
mod profiles;
mod store;
mod work;
mod workers;

use super::{HubError, Inserted};
use files::Files;
use modelmeter_common::{SCHEMA_VERSION, task::TaskState};
use rusqlite::{OptionalExtension as _, Params, Row, types::Value};
use serde::{Serialize, de::DeserializeOwned};
use std::path::{Path, PathBuf};
use store::Store;

const SCHEMA: &str = include_str!("schema.sql");
/// Scripts for tables and columns that files of earlier builds lack.
const ADDITIONS: [(&str, &str); 2] =
    [("profile_keys", include_str!("profile_keys.sql")), ("tasks_waiting", include_str!("task_kinds.sql"))];

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
    let store = Store::open(path, SCHEMA, SCHEMA_VERSION, &ADDITIONS)?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(".artifacts");
    Ok(SqliteHub { store, files: Files::open(PathBuf::from(beside))? })
}

impl SqliteHub {
    /// Runs one statement; returns the number of rows that it changed.
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

#[cfg(test)]
mod tests;
