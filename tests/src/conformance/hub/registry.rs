//! Requests, workers and models: the documents that people name.

use super::race;
use crate::documents as docs;
use modelmeter_common::{
    Code, Problem, RequestId,
    model::{ArtifactRef, Model},
    request::{RequestDoc, RequestState},
    status::WorkerDoc,
};
use modelmeter_coordinator::hub::{Hub, Inserted};
use std::sync::Arc;

pub async fn requests(hub: &dyn Hub) {
    assert_eq!(hub.requests(false, 10).await.unwrap(), vec![], "the suite needs an empty hub");
    let old = docs::request("old", RequestState::Running, 0);
    let ended = docs::request("ended", RequestState::Partial, 1);
    let new = docs::request("new", RequestState::Running, 2);
    for request in [&new, &old, &ended] {
        assert_eq!(hub.insert_request(request).await.unwrap(), Inserted::New);
    }
    let altered = RequestDoc { tasks: 99, ..old.clone() };
    assert_eq!(hub.insert_request(&altered).await.unwrap(), Inserted::Existed);
    assert_eq!(hub.request(old.id).await.unwrap(), Some(old.clone()), "what was there stays");
    assert_eq!(hub.request(RequestId::random()).await.unwrap(), None);
    assert_eq!(hub.requests(false, 10).await.unwrap(), vec![new.clone(), ended, old.clone()]);
    assert_eq!(hub.requests(true, 10).await.unwrap(), vec![new.clone(), old]);
    assert_eq!(hub.requests(true, 1).await.unwrap(), vec![new]);
    assert_eq!(hub.requests(false, 0).await.unwrap(), vec![]);
}

pub async fn requests_change_by_compare_and_swap(hub: &Arc<dyn Hub>) {
    let old = docs::request("cas", RequestState::Running, 3);
    let expanded = RequestDoc { expanded: true, tasks: 8, ..old.clone() };
    assert!(!hub.update_request(&old, &expanded).await.unwrap(), "it is not there yet");
    hub.insert_request(&old).await.unwrap();
    assert!(hub.update_request(&old, &expanded).await.unwrap());
    assert!(!hub.update_request(&old, &expanded).await.unwrap(), "it has been expanded");
    assert!(hub.update_request(&expanded, &expanded).await.unwrap(), "no change is a change too");
    let error = Some(Problem::new(Code::NotFound, "model mlp vanished").with_field("model"));
    let ended = RequestDoc { state: RequestState::Failed, ended_at: Some(docs::at(9)), error, ..expanded.clone() };
    let winners = race(hub, 32, |hub, i| {
        let (old, new) = (expanded.clone(), RequestDoc { tasks: u64::from(i), ..ended.clone() });
        async move { hub.update_request(&old, &new).await.unwrap() }
    });
    assert_eq!(winners.await, 1);
    let stored = hub.request(old.id).await.unwrap().unwrap();
    assert_eq!(stored, RequestDoc { tasks: stored.tasks, ..ended.clone() });
    let running = hub.requests(true, 10).await.unwrap();
    assert!(running.iter().all(|request| request.id != old.id), "it counts as ended");
}

pub async fn workers(hub: &dyn Hub) {
    assert_eq!(hub.workers().await.unwrap(), vec![]);
    let (a, b) = (docs::worker("a"), docs::worker("größe.b/c"));
    hub.put_worker(&b).await.unwrap();
    hub.put_worker(&a).await.unwrap();
    assert_eq!(hub.workers().await.unwrap(), vec![a.clone(), b.clone()], "by name");
    let later = WorkerDoc { incarnation: "i2".into(), slots: vec![], seen_at: docs::at(5), ..a };
    hub.put_worker(&later).await.unwrap();
    assert_eq!(hub.workers().await.unwrap(), vec![later, b]);
}

pub async fn models(hub: &dyn Hub) {
    // The newest is by time, not by the name of the version.
    let (old, new) = (docs::model("m", "9", 0), docs::model("m", "10", 1));
    let other = docs::model("other model:x", "1", 2);
    for model in [&new, &other, &old] {
        assert!(hub.swap_model(None, model).await.unwrap());
    }
    assert_eq!(hub.model("m", None).await.unwrap(), Some(new.clone()));
    assert_eq!(hub.model("m", Some("9")).await.unwrap(), Some(old.clone()));
    assert_eq!(hub.model("m", Some("11")).await.unwrap(), None);
    assert_eq!(hub.model("M", None).await.unwrap(), None);
    assert_eq!(hub.models(Some("m")).await.unwrap(), vec![new.clone(), old.clone()]);
    assert_eq!(hub.models(None).await.unwrap(), vec![other, new.clone(), old.clone()]);
    let replaced = Model { artifacts: vec![], created_at: docs::at(7), ..old.clone() };
    assert!(!hub.swap_model(None, &replaced).await.unwrap(), "it is there");
    assert!(hub.swap_model(Some(&old), &replaced).await.unwrap());
    assert_eq!(hub.models(Some("m")).await.unwrap(), vec![replaced.clone(), new.clone()]);
    assert!(!hub.swap_model(Some(&old), &old).await.unwrap(), "its artifacts were changed since");
    assert!(hub.swap_model(Some(&replaced), &old).await.unwrap(), "it has none, as was said");
    let absent = docs::model("m", "11", 3);
    assert!(!hub.swap_model(Some(&absent), &absent).await.unwrap());
    assert_eq!(hub.models(Some("m")).await.unwrap(), vec![new, old]);
}

pub async fn one_model_of_many_wins(hub: &Arc<dyn Hub>) {
    let with = |artifacts: u8| Model {
        artifacts: (0..artifacts)
            .map(|i| ArtifactRef { bytes: i.into(), ..docs::model("race", "1", 0).artifacts[0].clone() })
            .collect(),
        ..docs::model("race", "1", 0)
    };
    let inserted = race(hub, 16, |hub, _| {
        let new = with(1);
        async move { hub.swap_model(None, &new).await.unwrap() }
    });
    assert_eq!(inserted.await, 1);
    let swapped = race(hub, 16, |hub, i| {
        let (old, new) = (with(1), with(2 + i as u8));
        async move { hub.swap_model(Some(&old), &new).await.unwrap() }
    });
    assert_eq!(swapped.await, 1);
}
