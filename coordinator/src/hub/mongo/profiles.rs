//! Profiles in MongoDB. A page is a walk of the order's index within one facet of the filter; see `facets`.

use super::{
    super::{Cursor, Fields, HubError, Inserted, Page, ProfileFilter, ProfileQuery, Profiles, SlaOutcome, SortBy},
    MongoHub, date,
    document::{decode, encode, to_bson},
    facets, int, word,
};
use async_trait::async_trait;
use futures::TryStreamExt as _;
use modelmeter_common::{ProfileId, profile::Profile};
use mongodb::{
    bson::{Bson, Document, doc},
    options::Hint,
};

/// Profiles that are given keys in one batch.
const KEYS_BATCH: u32 = 500;

#[async_trait]
impl Profiles for MongoHub {
    async fn put_profile(&self, profile: &Profile, replaces: Option<u64>) -> Result<bool, HubError> {
        let mut document = encode(profile)?;
        document.insert("keys", facets::keys(profile));
        match replaces {
            None => Ok(self.insert(&self.profiles, document).await? == Inserted::New),
            Some(revision) => {
                let filter = doc! { "_id": profile.id.to_string(), "revision": int(revision) };
                self.replace_document(&self.profiles, filter, document).await
            }
        }
    }

    async fn profile(&self, id: ProfileId) -> Result<Option<Profile>, HubError> {
        self.find_one("profile", &self.profiles, doc! { "_id": id.to_string() }).await
    }

    async fn profiles(&self, query: &ProfileQuery) -> Result<Page<Profile>, HubError> {
        let by = query.sort.by;
        let read = |document| {
            let profile: Profile = decode("profile", document)?;
            Ok((Cursor { by, key: by.key(&profile), id: profile.id }, profile))
        };
        let rows = self.page(query, doc! { "keys": 0 }).await?.into_iter().map(read);
        Ok(Page::of(rows.collect::<Result<_, HubError>>()?, query.limit))
    }

    async fn profile_fields(&self, query: &ProfileQuery, fields: &Fields) -> Result<Page<serde_json::Value>, HubError> {
        let by = query.sort.by;
        let with_key = Fields::new(fields.paths().chain([facets::path(by)]));
        let projection = with_key.paths().map(|path| (path.to_owned(), Bson::Int32(1))).collect();
        let read = |document: Document| {
            let cursor = cursor(by, &document)?;
            Ok((cursor, fields.of(&decode("profile", document)?)))
        };
        let rows = self.page(query, projection).await?.into_iter().map(read);
        Ok(Page::of(rows.collect::<Result<_, HubError>>()?, query.limit))
    }
}

/// How the profiles of a filter are found.
enum Way {
    /// By the index of the order, within this facet.
    Walk(String),
    /// By the time of creation, then sorted: there are few.
    Sort,
}

impl MongoHub {
    /// The rows of a page.
    async fn page(&self, query: &ProfileQuery, projection: Document) -> Result<Vec<Document>, HubError> {
        let (sort, start, rows) = (query.sort, query.start()?, query.rows());
        let (key, direction) = (facets::path(sort.by), if sort.descending { -1 } else { 1 });
        let beyond = if sort.descending { "$lt" } else { "$gt" };
        let order = doc! { key: direction, "_id": direction };
        let way = self.way(query).await?;
        let (mut filter, hint) = (conditions(&query.filter)?, facets::index(sort.by));
        let facet = match way {
            Way::Sort => {
                if let Some(Cursor { key: at, id, .. }) = start {
                    let at = facets::value(sort.by, at);
                    filter.push(doc! { "$or": [
                        { key: { beyond: at.clone() } },
                        { key: at, "_id": { beyond: id.to_string() } },
                    ] });
                }
                let newest = doc! { "created_at": -1, "_id": -1 };
                return self.rows(filter, order, newest, projection, rows).await;
            }
            Way::Walk(facet) => facet,
        };
        filter.push(doc! { facets::PATH: facet });
        let Some(Cursor { key: at, id, .. }) = start else {
            return self.rows(filter, order, hint, projection, rows).await;
        };
        // Those with an equal key come first; each half is one range of the index.
        let at = facets::value(sort.by, at);
        let equal =
            filter.iter().cloned().chain([doc! { key: at.clone(), "_id": { beyond: id.to_string() } }]).collect();
        let mut found = self.rows(equal, order.clone(), hint.clone(), projection.clone(), rows).await?;
        let left = rows.map(|rows| rows.saturating_sub(found.len() as u32));
        filter.push(doc! { key: { beyond: at } });
        found.extend(self.rows(filter, order, hint, projection, left).await?);
        Ok(found)
    }

    async fn rows(
        &self,
        filter: Vec<Document>,
        order: Document,
        hint: Document,
        projection: Document,
        limit: Option<u32>,
    ) -> Result<Vec<Document>, HubError> {
        // MongoDB takes a limit of 0 for no limit, and an empty conjunction for an error.
        if limit == Some(0) {
            return Ok(Vec::new());
        }
        let filter = if filter.is_empty() {
            doc! {}
        } else {
            doc! { "$and": filter }
        };
        let (profiles, limit) = (self.profiles.clone(), i64::from(limit.unwrap_or(0)));
        let find = async move {
            let found = profiles.find(filter).sort(order).hint(Hint::Keys(hint)).projection(projection).limit(limit);
            // One reply, as far as its size allows.
            let size = u32::try_from(limit).ok().filter(|size| *size > 0).unwrap_or(1000);
            found.batch_size(size).await?.try_collect().await
        };
        self.calls.call(find).await
    }

    /// The way that reads the fewest profiles.
    async fn way(&self, query: &ProfileQuery) -> Result<Way, HubError> {
        let filter = &query.filter;
        let mut facets = facets::asked(filter);
        let range = created(filter);
        let may_sort = query.sort.by != SortBy::CreatedAt && !range.is_empty();
        if facets.len() == 1 && !may_sort {
            return Ok(Way::Walk(facets.remove(0)));
        }
        let mut least = (facets::MANY + 1, Way::Walk(facets[0].clone()));
        for facet in facets {
            let count = match self.facets.get(&facet) {
                Some(count) => count,
                None => {
                    let hint = facets::index(SortBy::CreatedAt);
                    let count = self.count(doc! { facets::PATH: &facet }, hint).await?;
                    self.facets.put(&facet, count);
                    count
                }
            };
            if count < least.0 {
                least = (count, Way::Walk(facet));
            }
        }
        if may_sort && least.0 >= facets::MANY {
            let newest = doc! { "created_at": -1, "_id": -1 };
            let count = self.count(doc! { "created_at": range }, newest).await?;
            if count < facets::MANY {
                return Ok(Way::Sort);
            }
        }
        Ok(least.1)
    }

    /// How many profiles fit, up to [`facets::MANY`].
    async fn count(&self, filter: Document, hint: Document) -> Result<u64, HubError> {
        let profiles = self.profiles.clone();
        let count = async move { profiles.count_documents(filter).hint(Hint::Keys(hint)).limit(facets::MANY).await };
        self.calls.call(count).await
    }

    /// Gives keys to profiles of earlier builds, which have none.
    pub(super) async fn add_missing_keys(&self) -> Result<(), HubError> {
        let mut last = String::new();
        loop {
            // The index has null for a missing field, so it finds these profiles.
            let without = doc! { facets::PATH: Bson::Null, "_id": { "$gt": &last } };
            let found = self.find(&self.profiles, without, doc! { "_id": 1 }, Some(KEYS_BATCH)).await?;
            let Some(end) = found.last() else { return Ok(()) };
            last = end.get_str("_id").unwrap_or_default().to_owned();
            for document in found {
                let id = document.get("_id").cloned();
                let profile: Profile = match decode("profile", document) {
                    Ok(profile) => profile,
                    Err(error) => {
                        tracing::warn!(%error, ?id, "a profile cannot be found by what it says");
                        continue;
                    }
                };
                let same = doc! { "_id": id, "revision": int(profile.revision) };
                let (profiles, keys) = (self.profiles.clone(), doc! { "$set": { "keys": facets::keys(&profile) } });
                self.calls.call(async move { profiles.update_one(same, keys).await }).await?;
            }
        }
    }
}

/// The place of a document that has its key.
fn cursor(by: SortBy, document: &Document) -> Result<Cursor, HubError> {
    let corrupt = |what: &str| HubError::Corrupt { what: "profile", reason: format!("its {what} does not read") };
    let id = document.get_str("_id").ok().and_then(|id| id.parse().ok()).ok_or_else(|| corrupt("id"))?;
    let mut value = None;
    let mut level = Some(document);
    for name in facets::path(by).split('.') {
        value = level.and_then(|level| level.get(name));
        level = value.and_then(Bson::as_document);
    }
    let key = match value {
        Some(Bson::DateTime(at)) => Some(at.timestamp_millis() as f64),
        Some(Bson::Double(key)) => Some(*key),
        Some(Bson::Int64(key)) => Some(*key as f64),
        Some(Bson::Int32(key)) => Some(f64::from(*key)),
        _ => None,
    };
    Ok(Cursor { by, key: key.ok_or_else(|| corrupt(facets::path(by)))?, id })
}

/// The times of creation that a filter allows.
fn created(filter: &ProfileFilter) -> Document {
    let mut range = Document::new();
    if let Some(since) = filter.since {
        range.insert("$gte", date(since));
    }
    if let Some(before) = filter.before {
        range.insert("$lt", date(before));
    }
    range
}

/// Conditions on a document.
fn conditions(filter: &ProfileFilter) -> Result<Vec<Document>, HubError> {
    let mut all = Vec::new();
    let texts = [
        ("request_id", filter.request.map(|id| id.to_string())),
        ("model.name", filter.model.clone()),
        ("model.version", filter.version.clone()),
        ("engine.name", filter.engine.clone()),
        ("device.class", filter.device_class.clone()),
        ("state", filter.state.and_then(|state| word(&state))),
    ];
    all.extend(texts.into_iter().filter_map(|(path, text)| Some(doc! { path: text? })));
    if let Some(batch_size) = filter.batch_size {
        all.push(doc! { "batch_size": i64::from(batch_size) });
    }
    let range = created(filter);
    if !range.is_empty() {
        all.push(doc! { "created_at": range });
    }
    // By the fields themselves, so that the one facet that is walked is the only bound on the index.
    all.extend(filter.sla.map(|sla| match sla {
        SlaOutcome::Met => doc! { "sla.met": true },
        SlaOutcome::Missed => doc! { "sla.met": false },
        SlaOutcome::Open => doc! { "sla": { "$ne": Bson::Null }, "sla.met": Bson::Null },
        SlaOutcome::Unset => doc! { "sla": Bson::Null },
    }));
    all.extend(filter.labels.iter().map(|(name, value)| {
        // A value that looks like a time may be stored as one.
        let stored = to_bson(name, serde_json::Value::String(value.clone()));
        if name.contains(['.', '$']) || name.is_empty() {
            let labelled = doc! { "$getField": { "field": { "$literal": name }, "input": "$labels" } };
            return doc! { "$expr": { "$eq": [labelled, { "$literal": stored }] } };
        }
        doc! { format!("labels.{name}"): stored }
    }));
    Ok(all)
}
