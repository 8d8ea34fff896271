//! What a profile's document says beside it of what it is found and sorted by: the subdocument `keys`, which is ours and no
//! part of the public contract.
//!
//! A facet is one thing that a filter may ask for, as text: `engine=onnx`. What few values share a hub (engine, device
//! class, batch size, state, SLA) is there in pairs, too. So one index for each order serves every filter: it is walked
//! within the facet that fewest profiles have, and what else is asked is looked at in the documents.

use super::{
    super::{ProfileFilter, SlaOutcome, SortBy},
    date,
};
use modelmeter_common::{Timestamp, profile::Profile};
use mongodb::bson::{Bson, Document, doc};
use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};

/// The facet that every profile has.
const ALL: &str = "all";
/// Counting stops here: a facet of more profiles is not used to find them.
pub(super) const MANY: u64 = 2000;
/// Age at which a count is taken again.
const COUNT_AGE: Duration = Duration::from_secs(30);
/// Most counts that are remembered.
const MAX_COUNTS: usize = 10_000;

/// The path of the facets.
pub(super) const PATH: &str = "keys.facets";

/// The path by which profiles are sorted.
pub(super) fn path(by: SortBy) -> &'static str {
    match by {
        SortBy::CreatedAt => "created_at",
        SortBy::BatchSize => "batch_size",
        SortBy::Throughput => "keys.throughput",
        SortBy::P95Latency => "keys.p95_latency",
    }
}

/// The index for an order.
pub(super) fn index(by: SortBy) -> Document {
    let mut index = doc! { PATH: 1, path(by): 1, "_id": 1 };
    if by != SortBy::CreatedAt {
        index.insert("created_at", 1);
    }
    index
}

/// A key as it is stored.
pub(super) fn value(by: SortBy, key: f64) -> Bson {
    match by {
        SortBy::CreatedAt => date(Timestamp(key as i64)),
        _ => Bson::Double(key),
    }
}

/// The keys of a profile.
pub(super) fn keys(profile: &Profile) -> Document {
    let few = few(
        Some(profile.engine.name.as_str()),
        Some(profile.device.class.as_str()),
        Some(profile.batch_size),
        super::word(&profile.state).as_deref(),
        Some(SlaOutcome::of(profile)),
    );
    let mut facets = vec![ALL.to_owned()];
    facets.extend(pairs(&few));
    facets.extend(few);
    facets.push(request(&profile.request_id.to_string()));
    facets.push(model(&profile.model.name));
    facets.push(version(&profile.model.version));
    facets.push(whole_model(&profile.model.name, &profile.model.version));
    facets.extend(profile.labels.iter().map(|(name, value)| label(name, value)));
    doc! {
        "facets": facets,
        "throughput": SortBy::Throughput.key(profile),
        "p95_latency": SortBy::P95Latency.key(profile),
    }
}

/// The facets of which a profile must have each, those first by which fewest are found as a rule. Never empty.
pub(super) fn asked(filter: &ProfileFilter) -> Vec<String> {
    let mut facets: Vec<String> = filter.request.map(|id| request(&id.to_string())).into_iter().collect();
    match (&filter.model, &filter.version) {
        (Some(name), Some(of)) => facets.push(whole_model(name, of)),
        (Some(name), None) => facets.push(model(name)),
        (None, Some(of)) => facets.push(version(of)),
        (None, None) => {}
    }
    facets.extend(filter.labels.iter().map(|(name, value)| label(name, value)));
    let state = filter.state.and_then(|state| super::word(&state));
    let (engine, class) = (filter.engine.as_deref(), filter.device_class.as_deref());
    let few = few(engine, class, filter.batch_size, state.as_deref(), filter.sla);
    match few.as_slice() {
        [one] => facets.push(one.clone()),
        several => facets.extend(pairs(several)),
    }
    if facets.is_empty() {
        facets.push(ALL.to_owned());
    }
    facets
}

fn few(
    engine: Option<&str>,
    class: Option<&str>,
    batch: Option<u32>,
    state: Option<&str>,
    sla: Option<SlaOutcome>,
) -> Vec<String> {
    let all = [
        batch.map(|batch| format!("batch={batch}")),
        class.map(|class| format!("class={class}")),
        engine.map(|engine| format!("engine={engine}")),
        sla.map(|sla| format!("sla={}", sla.as_str())),
        state.map(|state| format!("state={state}")),
    ];
    all.into_iter().flatten().collect()
}

fn pairs(few: &[String]) -> Vec<String> {
    let with_later =
        |(i, one): (usize, &String)| few[i + 1..].iter().map(move |other| format!("{one} {other}")).collect();
    few.iter().enumerate().map(with_later).collect::<Vec<Vec<String>>>().concat()
}

fn request(id: &str) -> String {
    format!("request={id}")
}

fn model(name: &str) -> String {
    format!("model={name}")
}

fn version(of: &str) -> String {
    format!("version={of}")
}

/// The facet of a label; the length of the name tells where the name ends.
fn whole_model(name: &str, version: &str) -> String {
    format!("model={}:{name}:{version}", name.len())
}

fn label(name: &str, value: &str) -> String {
    format!("label={}:{name}={value}", name.len())
}

/// How many profiles had a facet when they were last counted. It decides how an answer is found, never what it is.
#[derive(Default)]
pub(super) struct Counts(Mutex<HashMap<String, (u64, Instant)>>);

impl Counts {
    /// The count, if it is fresh.
    pub(super) fn get(&self, facet: &str) -> Option<u64> {
        let counts = self.0.lock().expect("never poisoned: no panic while held");
        counts.get(facet).filter(|(_, at)| at.elapsed() < COUNT_AGE).map(|(count, _)| *count)
    }

    /// Remembers a count.
    pub(super) fn put(&self, facet: &str, count: u64) {
        let mut counts = self.0.lock().expect("never poisoned: no panic while held");
        if counts.len() >= MAX_COUNTS {
            counts.clear();
        }
        counts.insert(facet.to_owned(), (count, Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use modelmeter_tests::documents as docs;

    #[test]
    fn what_a_filter_asks_for_is_among_the_facets_of_what_fits() {
        let profile = docs::profile(modelmeter_common::RequestId::random(), docs::model_ref("m:1", "2"), 8, 0);
        let keys = keys(&profile);
        let facets: Vec<&str> = keys.get_array("facets").unwrap().iter().filter_map(|facet| facet.as_str()).collect();
        let filter = ProfileFilter {
            request: Some(profile.request_id),
            model: Some("m:1".to_owned()),
            version: Some("2".to_owned()),
            engine: Some(profile.engine.name.clone()),
            device_class: Some(profile.device.class.clone()),
            batch_size: Some(8),
            state: Some(profile.state),
            labels: profile.labels.clone(),
            sla: Some(SlaOutcome::Met),
            ..ProfileFilter::default()
        };
        let asked = asked(&filter);
        assert_eq!(asked.len(), 2 + profile.labels.len() + 10);
        for facet in asked {
            assert!(facets.contains(&facet.as_str()), "{facet} is not among {facets:?}");
        }
        assert!(!facets.contains(&whole_model("m", "1:2").as_str()), "the colon belongs to the name");
    }
}
