//! Queries: generated profiles, random questions, and the answers that a plain filter over a list gives.

use crate::documents as docs;
use futures::TryStreamExt as _;
use modelmeter_common::{
    ProfileId, RequestId, Timestamp,
    profile::{PeakSummary, Profile, ProfileState, SlaResult},
};
use modelmeter_coordinator::hub::{
    Cursor, Fields, Hub, HubError, Page, ProfileFilter, ProfileQuery, SlaOutcome, Sort, SortBy, stream,
};
use std::{collections::BTreeMap, sync::Arc};
use uuid::Uuid;

const SEED: u64 = 13;
const DOCUMENTS: u64 = 400;
const MODELS: u64 = 12;
/// Of the first page of each question.
const MAX_PAGE: u64 = 40;

/// A stream of numbers that is the same on every machine. Source: G. Steele, D. Lea and C. Flood, "Fast splittable
/// pseudorandom number generators", 2014 (SplitMix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize].clone()
    }

    /// True once in `n` times.
    fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

const ENGINES: [&str; 5] = ["onnx", "rten", "tfs", "triton", "my.own engine"];
const CLASSES: [&str; 4] = ["cpu", "nvidia-a10", "nvidia-h100-80gb-hbm3", "größe"];
const BATCHES: [u32; 6] = [1, 2, 4, 8, 16, 64];
const TEAMS: [&str; 4] = ["vision", "speech", "2026-03-20T14:34:56.789Z", ""];
const STATES: [ProfileState; 4] =
    [ProfileState::Done, ProfileState::Partial, ProfileState::Invalid, ProfileState::Failed];

/// Profile `n` of so many models. Many are equal in what they are sorted by, and some have no figures.
pub fn profile(random: &mut Random, n: u64, models: u64) -> Profile {
    let model = random.below(models);
    // A request measures some cells of one model; a version has a colon here and there.
    let request = RequestId(Uuid::from_u128(u128::from(model * 1000 + random.below(10)) << 64 | 7));
    let version = if model.is_multiple_of(3) { "1:2".to_owned() } else { random.below(3).to_string() };
    let name = if model % 5 == 1 { format!("team:{model}") } else { format!("model-{model}") };
    let mut profile = docs::profile(request, docs::model_ref(&name, &version), random.of(&BATCHES), 0);
    profile.id = ProfileId(Uuid::from_u128(u128::from(random.next()) << 64 | u128::from(n)));
    profile.created_at = docs::at(random.below(DOCUMENTS / 4) as i64 * 60_000 - 1);
    profile.engine.name = random.of(&ENGINES).to_owned();
    profile.device.class = random.of(&CLASSES).to_owned();
    profile.state = if random.once_in(4) { random.of(&STATES) } else { ProfileState::Done };
    profile.labels = BTreeMap::from([("built_at".to_owned(), random.of(&TEAMS).to_owned())]);
    if random.once_in(2) {
        profile.labels.insert("team.$name".to_owned(), random.of(&TEAMS).to_owned());
    }
    if random.once_in(50) {
        profile.labels.insert("rare".to_owned(), "yes".to_owned());
    }
    profile.sla = match random.below(4) {
        0 => None,
        met => Some(SlaResult {
            percentile: 95.0,
            latency_ms: 50.0,
            met: [Some(true), Some(false), None][met as usize - 1],
            best: None,
        }),
    };
    let peak: PeakSummary = profile.peak.take().unwrap();
    if profile.state == ProfileState::Done || profile.state == ProfileState::Partial {
        let mut peak = peak;
        let few = random.below(30) as f64;
        peak.summary.throughput_inferences_per_s = (!random.once_in(10)).then_some(few * 10.0 / 3.0);
        peak.summary.p95_latency_ms = (!random.once_in(5)).then_some(1000.0 / (few + 0.1));
        profile.peak = Some(peak);
    }
    profile
}

/// One thing that a filter may ask for.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Part {
    Request,
    Model,
    Version,
    Engine,
    Class,
    Batch,
    State,
    Label,
    Since,
    Before,
    Sla,
}

impl Part {
    pub const ALL: [Self; 11] = [
        Self::Request,
        Self::Model,
        Self::Version,
        Self::Engine,
        Self::Class,
        Self::Batch,
        Self::State,
        Self::Label,
        Self::Since,
        Self::Before,
        Self::Sla,
    ];

    /// Asks for what this profile has.
    pub fn ask(self, filter: &mut ProfileFilter, like: &Profile) {
        match self {
            Self::Request => filter.request = Some(like.request_id),
            Self::Model => filter.model = Some(like.model.name.clone()),
            Self::Version => filter.version = Some(like.model.version.clone()),
            Self::Engine => filter.engine = Some(like.engine.name.clone()),
            Self::Class => filter.device_class = Some(like.device.class.clone()),
            Self::Batch => filter.batch_size = Some(like.batch_size),
            Self::State => filter.state = Some(like.state),
            Self::Label => {
                let last = like.labels.iter().next_back();
                filter.labels.extend(last.map(|(name, value)| (name.clone(), value.clone())));
            }
            Self::Since => filter.since = Some(like.created_at),
            Self::Before => filter.before = Some(like.created_at),
            Self::Sla => filter.sla = Some(SlaOutcome::of(like)),
        }
    }
}

pub fn sorts() -> impl Iterator<Item = Sort> {
    SortBy::ALL.into_iter().flat_map(|by| [false, true].map(|descending| Sort { by, descending }))
}

/// A random question about these profiles: up to five parts of a filter, each from a profile at random, so that many answers
/// are short and some are empty.
pub fn question(random: &mut Random, profiles: &[Profile]) -> ProfileQuery {
    let mut filter = ProfileFilter::default();
    for _ in 0..random.below(6) {
        let (part, like) = (random.of(&Part::ALL), random.below(profiles.len() as u64));
        part.ask(&mut filter, &profiles[like as usize]);
    }
    if random.once_in(20) {
        filter.engine = Some("none".to_owned());
    }
    let sort = Sort { by: random.of(&SortBy::ALL), descending: random.once_in(2) };
    ProfileQuery { filter, sort, after: None, limit: Some(random.below(MAX_PAGE) as u32) }
}

fn fits(filter: &ProfileFilter, profile: &Profile) -> bool {
    let labelled = |(name, value): (&String, &String)| profile.labels.get(name) == Some(value);
    filter.request.is_none_or(|id| id == profile.request_id)
        && filter.model.as_ref().is_none_or(|name| *name == profile.model.name)
        && filter.version.as_ref().is_none_or(|version| *version == profile.model.version)
        && filter.engine.as_ref().is_none_or(|name| *name == profile.engine.name)
        && filter.device_class.as_ref().is_none_or(|class| *class == profile.device.class)
        && filter.batch_size.is_none_or(|size| size == profile.batch_size)
        && filter.state.is_none_or(|state| state == profile.state)
        && filter.labels.iter().all(labelled)
        && filter.since.is_none_or(|since| profile.created_at >= since)
        && filter.before.is_none_or(|before| profile.created_at < before)
        && filter.sla.is_none_or(|sla| sla == SlaOutcome::of(profile))
}

/// The whole answer, by a plain filter over the list.
fn plainly<'a>(profiles: &'a [Profile], query: &ProfileQuery) -> Vec<&'a Profile> {
    let mut found: Vec<&Profile> = profiles.iter().filter(|profile| fits(&query.filter, profile)).collect();
    found.sort_by(|a, b| {
        let peak = |p: &Profile| p.peak.as_ref().map(|peak| peak.summary.clone());
        let throughput = |p: &Profile| peak(p).and_then(|peak| peak.throughput_inferences_per_s);
        let latency = |p: &Profile| peak(p).and_then(|peak| peak.p95_latency_ms);
        let by_key = match query.sort.by {
            SortBy::CreatedAt => a.created_at.cmp(&b.created_at),
            SortBy::BatchSize => a.batch_size.cmp(&b.batch_size),
            SortBy::Throughput => throughput(a).partial_cmp(&throughput(b)).unwrap(),
            // No latency is the greatest.
            SortBy::P95Latency => {
                let key = |p: &Profile| (latency(p).is_none(), latency(p));
                key(a).partial_cmp(&key(b)).unwrap()
            }
        };
        let order = by_key.then(a.id.cmp(&b.id));
        if query.sort.descending { order.reverse() } else { order }
    });
    found
}

fn list() -> (Random, Vec<Profile>) {
    let mut random = Random::new(SEED);
    let profiles = (0..DOCUMENTS).map(|n| profile(&mut random, n, MODELS)).collect();
    (random, profiles)
}

/// Fills an empty hub and asks it so many random questions.
pub async fn suite(hub: Arc<dyn Hub>, questions: u64) {
    let (_, profiles) = list();
    for (n, profile) in profiles.iter().enumerate() {
        if n % 7 == 0 {
            // What a replaced profile said is forgotten.
            let labels = [("rare".to_owned(), "yes".to_owned()), ("gone".to_owned(), "1".to_owned())].into();
            let (engine, first) =
                (docs::profile(profile.request_id, profile.model.clone(), 3, 9).engine, profile.clone());
            let first = Profile { labels, engine, state: ProfileState::Failed, peak: None, ..first };
            assert!(hub.put_profile(&first, None).await.unwrap());
            assert!(hub.put_profile(profile, Some(0)).await.unwrap());
        } else {
            assert!(hub.put_profile(profile, None).await.unwrap());
        }
    }
    asks(&*hub, questions).await;
    streams(hub, &profiles).await;
}

/// Asks a hub that [`suite`] filled.
pub async fn asks(hub: &dyn Hub, questions: u64) {
    let (mut random, profiles) = list();
    for sort in sorts() {
        for part in Part::ALL {
            let mut filter = ProfileFilter::default();
            part.ask(&mut filter, &random.of(&profiles));
            check(hub, &profiles, ProfileQuery { filter, sort, after: None, limit: Some(50) }).await;
        }
        check(hub, &profiles, ProfileQuery { sort, ..ProfileQuery::default() }).await;
    }
    let mut found = 0;
    for n in 0..questions {
        let query = question(&mut random, &profiles);
        found += check(hub, &profiles, query.clone()).await;
        if n % 10 == 0 {
            fields(hub, &mut random, &profiles, &query).await;
        }
    }
    assert!(found > questions, "the questions have answers: {found} profiles to {questions}");
    a_cursor_outlives_its_profile(hub, &profiles).await;
}

/// Follows a question from page to page; gives how many profiles there were.
async fn check(hub: &dyn Hub, profiles: &[Profile], query: ProfileQuery) -> u64 {
    let wanted = plainly(profiles, &query);
    let mut pages = query.clone();
    let mut seen = 0;
    loop {
        let page = hub.profiles(&pages).await.unwrap();
        let limit = pages.limit.map_or(usize::MAX, |limit| limit as usize);
        let rest = &wanted[seen..];
        let expected: Vec<ProfileId> = rest.iter().take(limit).map(|profile| profile.id).collect();
        let got: Vec<ProfileId> = page.items.iter().map(|profile| profile.id).collect();
        assert_eq!(got, expected, "from {seen} of {}: {query:?}", wanted.len());
        assert!(page.items.iter().eq(rest.iter().take(limit).copied()), "the documents are whole");
        seen += page.items.len();
        assert_eq!(page.next.is_some(), limit > 0 && seen < wanted.len(), "whether more follow: {query:?}");
        match page.next {
            // Through its text, as it travels; larger pages from here on.
            Some(next) => {
                pages.after = Some(next.to_string().parse().unwrap());
                pages.limit = Some(MAX_PAGE as u32 + seen as u32);
            }
            None => return seen as u64,
        }
    }
}

async fn fields(hub: &dyn Hub, random: &mut Random, profiles: &[Profile], query: &ProfileQuery) {
    let paths = [
        "model",
        "model.name",
        "points.load",
        "points.latency_ms.p50",
        "peak.p95_latency_ms",
        "created_at",
        "sla.met",
        "unavailable",
        "nothing.there",
        "batch_size",
        "labels",
    ];
    let some: Vec<&str> = (0..random.below(5)).map(|_| random.of(&paths)).collect();
    let fields = Fields::new(some);
    let limit = query.limit.unwrap() as usize;
    let wanted: Vec<serde_json::Value> = plainly(profiles, query)
        .into_iter()
        .take(limit)
        .map(|profile| fields.of(&serde_json::to_value(profile).unwrap()))
        .collect();
    let page = hub.profile_fields(query, &fields).await.unwrap();
    assert_eq!(page.items, wanted, "{fields:?} of {query:?}");
    assert_eq!(page.next, hub.profiles(query).await.unwrap().next, "the same place: {query:?}");
}

/// A cursor is a place, also where nothing is: between two profiles, before the first, after the last.
async fn a_cursor_outlives_its_profile(hub: &dyn Hub, profiles: &[Profile]) {
    for sort in sorts() {
        let query = ProfileQuery { sort, limit: Some(3), ..ProfileQuery::default() };
        let all = plainly(profiles, &query);
        let key = sort.by.key(all[10]);
        let id = ProfileId(Uuid::from_u128(all[10].id.0.as_u128().wrapping_add(1)));
        let after = Some(Cursor { by: sort.by, key, id });
        let found = hub.profiles(&ProfileQuery { after, ..query.clone() }).await.unwrap().items;
        let first = if sort.descending { 10 } else { 11 };
        let wanted: Vec<_> = all[first..first + 3].iter().map(|profile| profile.id).collect();
        assert_eq!(found.iter().map(|profile| profile.id).collect::<Vec<_>>(), wanted, "{sort:?}");
        let other = SortBy::ALL.into_iter().find(|by| *by != sort.by).unwrap();
        let after = Some(Cursor { by: other, key, id });
        let refused = hub.profiles(&ProfileQuery { after, ..query }).await;
        assert!(matches!(refused, Err(HubError::BadCursor(_))), "{refused:?}");
    }
    let none = ProfileFilter { since: Some(Timestamp(i64::MAX / 2)), ..ProfileFilter::default() };
    let none = hub.profiles(&ProfileQuery { filter: none, ..ProfileQuery::default() }).await.unwrap();
    assert_eq!(none, Page { items: vec![], next: None });
}

async fn streams(hub: Arc<dyn Hub>, profiles: &[Profile]) {
    for limit in [None, Some(0), Some(1), Some(100), Some(101), Some(250), Some(1000)] {
        let query = ProfileQuery { limit, ..ProfileQuery::default() };
        let found: Vec<Profile> = stream(hub.clone(), query.clone()).try_collect().await.unwrap();
        let wanted = plainly(profiles, &query).into_iter().take(limit.map_or(usize::MAX, |limit| limit as usize));
        assert!(found.iter().eq(wanted), "a stream of {limit:?}");
    }
}
