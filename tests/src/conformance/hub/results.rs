//! Parts, finals and profiles: inserted once, in order, and equal to the bit.

use super::race;
use crate::documents as docs;
use modelmeter_common::{ProfileId, RequestId, part::Final, profile::Profile};
use modelmeter_coordinator::hub::{Hub, Inserted, ProfileFilter, ProfileQuery};
use std::sync::Arc;

pub async fn parts(hub: &dyn Hub) {
    let task = docs::task(RequestId::random(), 0);
    let hash = |seq: u32| format!("{seq:064x}");
    assert_eq!(hub.parts(task.id, 1).await.unwrap(), vec![]);
    // More than nine, so that an order by text would show.
    for seq in (0..12).rev() {
        assert_eq!(hub.insert_part(&docs::part(&task, 1, seq), &hash(seq)).await.unwrap(), Inserted::New);
    }
    assert_eq!(hub.insert_part(&docs::part(&task, 2, 0), &hash(99)).await.unwrap(), Inserted::New);
    let mut altered = docs::part(&task, 1, 3);
    altered.point.requests = 1;
    assert_eq!(hub.insert_part(&altered, "other").await.unwrap(), Inserted::Existed);
    let wanted: Vec<_> = (0..12).map(|seq| (docs::part(&task, 1, seq), hash(seq))).collect();
    assert_eq!(hub.parts(task.id, 1).await.unwrap(), wanted);
    assert_eq!(hub.parts(task.id, 2).await.unwrap(), vec![(docs::part(&task, 2, 0), hash(99))]);
    assert_eq!(hub.parts(task.id, 3).await.unwrap(), vec![]);
}

pub async fn finals(hub: &dyn Hub) {
    let task = docs::task(RequestId::random(), 0);
    assert_eq!(hub.finals(task.id).await.unwrap(), vec![]);
    for attempt in [10, 2, 1] {
        assert_eq!(hub.insert_final(&docs::last(&task, attempt)).await.unwrap(), Inserted::New);
    }
    let altered = Final { worker: "another".to_owned(), ..docs::last(&task, 2) };
    assert_eq!(hub.insert_final(&altered).await.unwrap(), Inserted::Existed);
    let wanted: Vec<_> = [1, 2, 10].map(|attempt| docs::last(&task, attempt)).into();
    assert_eq!(hub.finals(task.id).await.unwrap(), wanted);
}

pub async fn a_part_is_stored_once_of_many(hub: &Arc<dyn Hub>) {
    let task = docs::task(RequestId::random(), 0);
    let winners = race(hub, 32, |hub, i| {
        let mut part = docs::part(&task, 1, 0);
        part.point.requests = u64::from(i);
        async move { hub.insert_part(&part, &format!("{i}")).await.unwrap() == Inserted::New }
    });
    assert_eq!(winners.await, 1);
    let stored = hub.parts(task.id, 1).await.unwrap();
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].0.point.requests.to_string(), stored[0].1, "part and hash of the same racer");
}

pub async fn profiles(hub: &dyn Hub) {
    let (mine, other) = (RequestId::random(), RequestId::random());
    let named = |version| docs::model_ref("profiled.model", version);
    let old = docs::profile(mine, named("1"), 1, 0);
    let new = docs::profile(mine, named("2"), 2, 2);
    let middle = docs::profile(other, named("1"), 1, 1);
    let else_where = docs::profile(other, docs::model_ref("else", "1"), 1, 3);
    for profile in [&new, &old, &middle, &else_where] {
        assert!(hub.put_profile(profile, None).await.unwrap());
    }
    assert_eq!(hub.profile(new.id).await.unwrap(), Some(new.clone()));
    assert_eq!(hub.profile(ProfileId(mine.0)).await.unwrap(), None);
    let list = async |query: ProfileQuery| hub.profiles(&query).await.unwrap().items;
    let of = |request, model: Option<&str>, version: Option<&str>, limit| {
        let (model, version) = (model.map(str::to_owned), version.map(str::to_owned));
        ProfileQuery {
            filter: ProfileFilter { request, model, version, ..Default::default() },
            limit,
            ..Default::default()
        }
    };
    let (name, new_id) = (Some("profiled.model"), new.id);
    assert_eq!(list(of(Some(mine), None, None, None)).await, vec![new.clone(), old.clone()]);
    assert_eq!(list(of(None, name, None, None)).await, vec![new.clone(), middle.clone(), old.clone()]);
    assert_eq!(list(of(None, name, Some("1"), None)).await, vec![middle.clone(), old.clone()]);
    assert_eq!(list(of(Some(other), name, None, None)).await, vec![middle]);
    assert_eq!(list(of(None, name, None, Some(1))).await, vec![new]);
    assert_eq!(list(of(None, Some("none"), None, None)).await, vec![]);
    assert_eq!(hub.profile_ids(mine).await.unwrap(), [new_id, old.id].into());
    revisions(hub, old).await;
}

async fn revisions(hub: &dyn Hub, old: Profile) {
    let next = Profile { revision: 1, created_at: docs::at(8), ..old.clone() };
    assert!(!hub.put_profile(&next, None).await.unwrap(), "one is there");
    assert!(!hub.put_profile(&next, Some(3)).await.unwrap(), "not of this revision");
    assert!(hub.put_profile(&next, Some(0)).await.unwrap());
    assert!(!hub.put_profile(&next, Some(0)).await.unwrap(), "another came first");
    assert_eq!(hub.profile(old.id).await.unwrap(), Some(next));
    let absent = docs::profile(RequestId::random(), docs::model_ref("absent", "1"), 1, 0);
    assert!(!hub.put_profile(&absent, Some(0)).await.unwrap(), "a replacement never inserts");
    assert_eq!(hub.profile(absent.id).await.unwrap(), None);
}

pub async fn one_profile_of_many_wins(hub: &Arc<dyn Hub>) {
    let profile = docs::profile(RequestId::random(), docs::model_ref("raced", "1"), 1, 0);
    for replaces in [None, Some(0), Some(1)] {
        let winners = race(hub, 32, |hub, i| {
            let revision = replaces.map_or(0, |r| r + 1);
            let mine = Profile { revision, batch_size: i, ..profile.clone() };
            async move { hub.put_profile(&mine, replaces).await.unwrap() }
        });
        assert_eq!(winners.await, 1, "replacing {replaces:?}");
    }
    assert_eq!(hub.profile(profile.id).await.unwrap().unwrap().revision, 2);
}
