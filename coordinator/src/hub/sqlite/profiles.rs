//! Profiles in SQLite. A page is found in `profile_keys` alone, and only its documents are read.
//!
//! Either the filter has a part that few profiles fit: those are found by it, and sorted. Or each part fits many: then the
//! order's own index is walked until the page is full.

use super::{
    super::{Cursor, Fields, HubError, Page, ProfileFilter, ProfileQuery, Profiles, SortBy},
    SqliteHub, decode, encode, int, word,
};
use async_trait::async_trait;
use modelmeter_common::{ProfileId, profile::Profile};
use rusqlite::{Connection, ToSql, params_from_iter, types::Value};
use serde::de::DeserializeOwned;

/// Up to this many profiles are sorted; more are found by walking the order's index.
const FEW: u32 = 2000;

#[async_trait]
impl Profiles for SqliteHub {
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

    async fn profiles(&self, query: &ProfileQuery) -> Result<Page<Profile>, HubError> {
        self.page(query).await
    }

    async fn profile_fields(&self, query: &ProfileQuery, fields: &Fields) -> Result<Page<serde_json::Value>, HubError> {
        let page = self.page(query).await?;
        Ok(Page { items: page.items.iter().map(|document| fields.of(document)).collect(), next: page.next })
    }
}

impl SqliteHub {
    async fn page<T: DeserializeOwned>(&self, query: &ProfileQuery) -> Result<Page<T>, HubError> {
        let search = Search::of(query)?;
        let rows = self.store.read(move |connection| search.run(connection)).await?;
        let by = query.sort.by;
        let read = |(key, id, text): (f64, String, String)| {
            let id = id.parse().map_err(|_| HubError::Corrupt { what: "profile", reason: format!("id '{id}'") })?;
            Ok((Cursor { by, key, id }, decode("profile", &text)?))
        };
        Ok(Page::of(rows.into_iter().map(read).collect::<Result<_, HubError>>()?, query.limit))
    }
}

/// A condition with its values.
#[derive(Clone)]
struct Condition {
    sql: &'static str,
    values: Vec<Value>,
}

impl Condition {
    fn new<V: Into<Value>>(sql: &'static str, values: impl IntoIterator<Item = V>) -> Self {
        Self { sql, values: values.into_iter().map(Into::into).collect() }
    }
}

/// A part of a filter that may fit few profiles: the table and the condition that find them.
struct Driver {
    from: &'static str,
    /// Table in which the profiles are counted.
    count_from: &'static str,
    condition: Condition,
}

/// A query as statements.
struct Search {
    column: &'static str,
    index: &'static str,
    descending: bool,
    conditions: Vec<Condition>,
    drivers: Vec<Driver>,
    limit: i64,
}

impl Search {
    fn of(query: &ProfileQuery) -> Result<Self, HubError> {
        let (column, index) = match query.sort.by {
            SortBy::CreatedAt => ("created_at", "keys_by_created_at"),
            SortBy::BatchSize => ("batch_size", "keys_by_batch_size"),
            SortBy::Throughput => ("throughput", "keys_by_throughput"),
            SortBy::P95Latency => ("p95_latency", "keys_by_p95_latency"),
        };
        let mut conditions = conditions(&query.filter)?;
        if let Some(cursor) = query.start()? {
            let sql = match (query.sort.by, query.sort.descending) {
                (SortBy::CreatedAt, true) => "(k.created_at, k.id) < (?, ?)",
                (SortBy::CreatedAt, false) => "(k.created_at, k.id) > (?, ?)",
                (SortBy::BatchSize, true) => "(k.batch_size, k.id) < (?, ?)",
                (SortBy::BatchSize, false) => "(k.batch_size, k.id) > (?, ?)",
                (SortBy::Throughput, true) => "(k.throughput, k.id) < (?, ?)",
                (SortBy::Throughput, false) => "(k.throughput, k.id) > (?, ?)",
                (SortBy::P95Latency, true) => "(k.p95_latency, k.id) < (?, ?)",
                (SortBy::P95Latency, false) => "(k.p95_latency, k.id) > (?, ?)",
            };
            conditions.push(Condition::new(sql, [Value::from(cursor.key), Value::from(cursor.id.to_string())]));
        }
        let (descending, limit) = (query.sort.descending, query.rows().map_or(-1, i64::from));
        Ok(Self { column, index, descending, conditions, drivers: drivers(&query.filter, query.sort.by)?, limit })
    }

    /// Key, id and document of each profile of the page.
    fn run(&self, connection: &Connection) -> rusqlite::Result<Vec<(f64, String, String)>> {
        let mut few: Option<(u32, &Driver)> = None;
        for driver in &self.drivers {
            let Condition { sql, values } = &driver.condition;
            let count = format!("SELECT count(*) FROM (SELECT 1 FROM {} WHERE {sql} LIMIT {FEW})", driver.count_from);
            let count = connection.prepare_cached(&count)?.query_row(params_from_iter(values), |row| row.get(0))?;
            if count < few.map_or(FEW, |(least, _)| least) {
                few = Some((count, driver));
            }
        }
        let (from, first) = match few {
            Some((_, driver)) => (driver.from.to_owned(), Some(&driver.condition)),
            None => (format!("profile_keys k INDEXED BY {}", self.index), None),
        };
        let all: Vec<&Condition> = first.into_iter().chain(&self.conditions).collect();
        let texts: Vec<&str> = all.iter().map(|condition| condition.sql).collect();
        let conditions = if texts.is_empty() { String::new() } else { format!("WHERE {}", texts.join(" AND ")) };
        let (column, order) = (self.column, if self.descending { "DESC" } else { "ASC" });
        let sql = format!(
            "SELECT page.key, page.id, profiles.doc FROM
             (SELECT k.{column} AS key, k.id AS id FROM {from} {conditions}
              ORDER BY k.{column} {order}, k.id {order} LIMIT ?) AS page
             CROSS JOIN profiles ON profiles.id = page.id ORDER BY page.key {order}, page.id {order}"
        );
        let limit: &dyn ToSql = &self.limit;
        let values = all.iter().flat_map(|condition| &condition.values).map(|value| value as &dyn ToSql);
        let values: Vec<&dyn ToSql> = values.chain([limit]).collect();
        let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        connection.prepare_cached(&sql)?.query_map(params_from_iter(values), read)?.collect()
    }
}

/// Conditions on a profile's keys.
fn conditions(filter: &ProfileFilter) -> Result<Vec<Condition>, HubError> {
    let state = filter.state.map(|state| word(&state)).transpose()?;
    let texts = [
        ("k.request_id = ?", filter.request.map(|id| id.to_string())),
        ("k.model = ?", filter.model.clone()),
        ("k.version = ?", filter.version.clone()),
        ("k.engine = ?", filter.engine.clone()),
        ("k.device_class = ?", filter.device_class.clone()),
        ("k.state = ?", state),
        ("k.sla = ?", filter.sla.map(|sla| sla.as_str().to_owned())),
    ];
    let texts = texts.into_iter().filter_map(|(sql, value)| Some(Condition::new(sql, [value?])));
    let numbers = [
        ("k.batch_size = ?", filter.batch_size.map(i64::from)),
        ("k.created_at >= ?", filter.since.map(|at| at.0)),
        ("k.created_at < ?", filter.before.map(|at| at.0)),
    ];
    let numbers = numbers.into_iter().filter_map(|(sql, value)| Some(Condition::new(sql, [value?])));
    let has_label = "EXISTS (SELECT 1 FROM profile_labels l WHERE l.name = ? AND l.value = ? AND l.id = k.id)";
    let labels = filter.labels.iter().map(|(name, value)| Condition::new(has_label, [name.clone(), value.clone()]));
    Ok(texts.chain(numbers).chain(labels).collect())
}

/// The parts of a filter by which profiles can be found.
fn drivers(filter: &ProfileFilter, by: SortBy) -> Result<Vec<Driver>, HubError> {
    let mut drivers = Vec::new();
    let mut drive = |from, count_from: Option<_>, sql, values: Vec<Value>| {
        let (count_from, condition) = (count_from.unwrap_or(from), Condition { sql, values });
        drivers.push(Driver { from, count_from, condition });
    };
    if let Some(request) = filter.request {
        drive("profile_keys k INDEXED BY keys_by_request", None, "k.request_id = ?", vec![request.to_string().into()]);
    }
    let model = "profile_keys k INDEXED BY keys_by_model";
    match (&filter.model, &filter.version) {
        (Some(name), None) => drive(model, None, "k.model = ?", vec![name.clone().into()]),
        (Some(name), Some(version)) => {
            drive(model, None, "k.model = ? AND k.version = ?", vec![name.clone().into(), version.clone().into()]);
        }
        (None, _) => {}
    }
    for (name, value) in &filter.labels {
        let from = "profile_labels d CROSS JOIN profile_keys k ON k.id = d.id";
        drive(
            from,
            Some("profile_labels d"),
            "d.name = ? AND d.value = ?",
            vec![name.clone().into(), value.clone().into()],
        );
    }
    if by != SortBy::CreatedAt && (filter.since.is_some() || filter.before.is_some()) {
        let (since, before) = (filter.since.map_or(i64::MIN, |at| at.0), filter.before.map_or(i64::MAX, |at| at.0));
        let from = "profile_keys k INDEXED BY keys_by_created_at";
        drive(from, None, "k.created_at >= ? AND k.created_at < ?", vec![since.into(), before.into()]);
    }
    let cell = "profile_keys k INDEXED BY keys_by_cell";
    let outcome = "profile_keys k INDEXED BY keys_by_outcome";
    if let (Some(batch), Some(engine)) = (filter.batch_size, &filter.engine) {
        let values = vec![i64::from(batch).into(), engine.clone().into()];
        drive(cell, None, "k.batch_size = ? AND k.engine = ?", values);
    }
    if let (Some(state), Some(sla)) = (filter.state, filter.sla) {
        let values = vec![word(&state)?.into(), sla.as_str().to_owned().into()];
        drive(outcome, None, "k.state = ? AND k.sla = ?", values);
    }
    Ok(drivers)
}
