//! What can be asked of the profiles: which, in what order, from where on, and which of their fields. Values alone; each
//! adapter turns them into its own query.

use super::HubError;
use modelmeter_common::{
    ProfileId, RequestId, Timestamp,
    profile::{Profile, ProfileState},
};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, fmt, str::FromStr};

/// Which profiles to list. Every field that is set must hold.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct ProfileFilter {
    /// Of this request.
    pub request: Option<RequestId>,
    /// Of the model with this name.
    pub model: Option<String>,
    /// Of a model of this version.
    pub version: Option<String>,
    /// Of the engine with this name.
    pub engine: Option<String>,
    /// On this device class.
    pub device_class: Option<String>,
    /// Of this batch size.
    pub batch_size: Option<u32>,
    /// In this state.
    pub state: Option<ProfileState>,
    /// With each of these labels.
    pub labels: BTreeMap<String, String>,
    /// Created at this time or later.
    pub since: Option<Timestamp>,
    /// Created before this time.
    pub before: Option<Timestamp>,
    /// With this outcome of the SLA.
    pub sla: Option<SlaOutcome>,
}

/// What a profile says of its SLA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlaOutcome {
    /// A supported figure meets it.
    Met,
    /// A supported figure misses it.
    Missed,
    /// No valid point shows either.
    Open,
    /// The request has none.
    Unset,
}

impl SlaOutcome {
    /// Every outcome.
    pub const ALL: [Self; 4] = [Self::Met, Self::Missed, Self::Open, Self::Unset];

    /// The outcome that a profile shows.
    pub fn of(profile: &Profile) -> Self {
        match profile.sla.as_ref().map(|sla| sla.met) {
            Some(Some(true)) => Self::Met,
            Some(Some(false)) => Self::Missed,
            Some(None) => Self::Open,
            None => Self::Unset,
        }
    }

    /// The name in stored keys.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "missed",
            Self::Open => "open",
            Self::Unset => "unset",
        }
    }
}

/// What profiles are sorted by. Equal ones follow in the order of their ids.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub enum SortBy {
    /// The time of creation.
    #[default]
    CreatedAt,
    /// The batch size.
    BatchSize,
    /// The peak's throughput in inferences a second; a profile without one counts as the slowest.
    Throughput,
    /// The peak's 95th percentile of latency; a profile without one counts as the slowest.
    P95Latency,
}

impl SortBy {
    /// Every key.
    pub const ALL: [Self; 4] = [Self::CreatedAt, Self::BatchSize, Self::Throughput, Self::P95Latency];
    /// The throughput of a profile that has none.
    pub const NO_THROUGHPUT: f64 = -1.0;
    /// The latency of a profile that has none.
    pub const NO_LATENCY: f64 = f64::MAX;

    /// The name in cursors and stored keys.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CreatedAt => "created_at",
            Self::BatchSize => "batch_size",
            Self::Throughput => "throughput",
            Self::P95Latency => "p95_latency",
        }
    }

    /// The number by which a profile is sorted. Times in milliseconds are exact in it until the year 287396.
    pub fn key(self, profile: &Profile) -> f64 {
        let peak = profile.peak.as_ref().map(|peak| &peak.summary);
        match self {
            Self::CreatedAt => profile.created_at.0 as f64,
            Self::BatchSize => f64::from(profile.batch_size),
            Self::Throughput => peak.and_then(|peak| peak.throughput_inferences_per_s).unwrap_or(Self::NO_THROUGHPUT),
            Self::P95Latency => peak.and_then(|peak| peak.p95_latency_ms).unwrap_or(Self::NO_LATENCY),
        }
    }
}

/// An order of profiles.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Sort {
    /// What they are sorted by.
    pub by: SortBy,
    /// Greatest first, equal ones by descending id.
    pub descending: bool,
}

impl Default for Sort {
    /// Newest first.
    fn default() -> Self {
        Self { by: SortBy::CreatedAt, descending: true }
    }
}

/// A question about profiles.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct ProfileQuery {
    /// Which ones.
    pub filter: ProfileFilter,
    /// In which order.
    pub sort: Sort,
    /// Those that follow this one in the order; none: from the start.
    pub after: Option<Cursor>,
    /// At most this many; none: all.
    pub limit: Option<u32>,
}

impl ProfileQuery {
    /// All profiles of a request, newest first.
    pub fn of_request(request: RequestId) -> Self {
        let filter = ProfileFilter { request: Some(request), ..ProfileFilter::default() };
        Self { filter, ..Self::default() }
    }

    /// Rows to read: one more than asked for, since only that one tells whether more follow.
    pub(super) fn rows(&self) -> Option<u32> {
        self.limit.map(|limit| limit.saturating_add(1))
    }

    /// The cursor, which must be of the same order.
    pub(super) fn start(&self) -> Result<Option<Cursor>, HubError> {
        match self.after {
            Some(cursor) if cursor.by != self.sort.by => {
                let (got, wanted) = (cursor.by.as_str(), self.sort.by.as_str());
                Err(HubError::BadCursor(format!("it is of profiles sorted by {got}, not by {wanted}")))
            }
            cursor => Ok(cursor),
        }
    }
}

/// A place in an order of profiles: that of one profile, which need not be there any more.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Cursor {
    /// What the profiles are sorted by.
    pub by: SortBy,
    /// The profile's key.
    pub key: f64,
    /// The profile.
    pub id: ProfileId,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:016x}.{}", self.by.as_str(), self.key.to_bits(), self.id)
    }
}

impl FromStr for Cursor {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let parsed = || {
            let (by, rest) = text.split_once('.')?;
            let (bits, id) = rest.split_once('.')?;
            let by = SortBy::ALL.into_iter().find(|known| known.as_str() == by)?;
            let key = f64::from_bits(u64::from_str_radix(bits, 16).ok()?);
            Some(Self { by, key, id: id.parse().ok()? }).filter(|cursor| cursor.key.is_finite())
        };
        parsed().ok_or_else(|| HubError::BadCursor(format!("'{text}' is none")))
    }
}

/// A part of an answer.
#[derive(Clone, PartialEq, Debug)]
pub struct Page<T> {
    /// The profiles, in the order asked for.
    pub items: Vec<T>,
    /// Where the next page begins; none where this one is the last.
    pub next: Option<Cursor>,
}

impl<T> Page<T> {
    /// The page of these rows with their places, of which there is one more than asked for if more follow.
    pub(super) fn of(mut rows: Vec<(Cursor, T)>, limit: Option<u32>) -> Self {
        let limit = limit.map_or(usize::MAX, |limit| limit as usize);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().map(|(cursor, _)| *cursor).filter(|_| more);
        Self { items: rows.into_iter().map(|(_, item)| item).collect(), next }
    }
}

/// Fields of a document, by their paths: `peak.p95_latency_ms`, `points.load`. `_id` is always one of them.
#[derive(Clone, PartialEq, Debug)]
pub struct Fields(Vec<String>);

impl Fields {
    /// These fields. A path below another one of them adds nothing; neither does one with an empty name in it.
    pub fn new<S: Into<String>>(paths: impl IntoIterator<Item = S>) -> Self {
        let is_path = |path: &String| path.split('.').all(|name| !name.is_empty() && !name.starts_with('$'));
        let mut paths: Vec<String> = paths.into_iter().map(Into::into).filter(is_path).collect();
        paths.push("_id".to_owned());
        paths.sort();
        paths.dedup();
        let all = paths.clone();
        paths
            .retain(|path| !all.iter().any(|other| path.strip_prefix(other).is_some_and(|rest| rest.starts_with('.'))));
        Self(paths)
    }

    /// The paths, none of them below another.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// A document with these fields alone; an array on the way is that of its elements' fields.
    pub fn of(&self, document: &Value) -> Value {
        let paths: Vec<&str> = self.paths().collect();
        projected(document, &paths).unwrap_or(Value::Null)
    }
}

fn projected(value: &Value, paths: &[&str]) -> Option<Value> {
    match value {
        Value::Object(fields) => {
            let mut kept = Map::new();
            for (name, value) in fields {
                let below: Vec<&str> = paths.iter().filter_map(|path| path.strip_prefix(name.as_str())).collect();
                let deeper: Vec<&str> = below.iter().filter_map(|rest| rest.strip_prefix('.')).collect();
                if below.contains(&"") {
                    kept.insert(name.clone(), value.clone());
                } else if !deeper.is_empty()
                    && let Some(part) = projected(value, &deeper)
                {
                    kept.insert(name.clone(), part);
                }
            }
            Some(Value::Object(kept))
        }
        Value::Array(items) => Some(items.iter().filter_map(|item| projected(item, paths)).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_cursor_reads_back_from_its_text_and_nothing_else_does() {
        for by in SortBy::ALL {
            let cursor = Cursor { by, key: 0.1 + 0.2, id: ProfileId(uuid::Uuid::from_u128(7)) };
            assert_eq!(cursor.to_string().parse::<Cursor>().unwrap(), cursor);
            let query = ProfileQuery { after: Some(cursor), ..ProfileQuery::default() };
            assert_eq!(query.start().is_ok(), by == SortBy::CreatedAt, "of another order");
        }
        let nan = format!("throughput.{:016x}.{}", f64::NAN.to_bits(), uuid::Uuid::from_u128(7));
        for text in ["", "created_at", "created_at.00.x", "size.0.00000000-0000-0000-0000-000000000007", &nan] {
            assert!(text.parse::<Cursor>().is_err(), "{text}");
        }
    }

    #[test]
    fn fields_are_kept_by_path_through_arrays() {
        let document = json!({"_id": "i", "a": {"b": 1, "c": {"d": null, "e": 2}}, "ab": 5, "n": null,
            "list": [{"x": 1, "y": 2}, 7, {"y": 3}, [{"x": 4}]]});
        let of = |paths: &[&str]| Fields::new(paths.iter().copied()).of(&document);
        assert_eq!(of(&[]), json!({"_id": "i"}));
        assert_eq!(of(&["a", "a.b", "ab.x", "n.x"]), json!({"_id": "i", "a": document["a"]}));
        assert_eq!(
            of(&["a.c.d", "list.x"]),
            json!({"_id": "i", "a": {"c": {"d": null}}, "list": [{"x": 1}, {}, [{"x": 4}]]})
        );
        assert_eq!(of(&["a.z", "", "a..b", "$x"]), json!({"_id": "i", "a": {}}));
    }
}
