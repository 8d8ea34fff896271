//! The lease of the leader: one at a time, an epoch for each.

use super::race;
use modelmeter_common::Timestamp;
use modelmeter_coordinator::hub::{Hub, Lead};
use std::sync::Arc;

pub(super) async fn an_epoch_for_each_leader(hub: &dyn Hub) {
    assert_eq!(hub.lead().await.unwrap(), None);
    let first = Lead::new("a", "here", 1, Timestamp(1_000));
    assert!(hub.swap_lead(None, &first).await.unwrap());
    assert_eq!(hub.lead().await.unwrap(), Some(first.clone()));
    let other = Lead::new("b", "there", 2, Timestamp(2_000));
    assert!(!hub.swap_lead(None, &other).await.unwrap(), "there is one already");

    let renewed = Lead { expires_at: Timestamp(3_000), ..first.clone() };
    assert!(hub.swap_lead(Some(&first), &renewed).await.unwrap());
    assert!(!hub.swap_lead(Some(&first), &other).await.unwrap(), "it was renewed meanwhile");
    let stolen = Lead { holder: "b".into(), ..renewed.clone() };
    assert!(!hub.swap_lead(Some(&stolen), &other).await.unwrap(), "another holds it");
    let earlier = Lead { epoch: 0, ..renewed.clone() };
    assert!(!hub.swap_lead(Some(&earlier), &other).await.unwrap(), "it is of another epoch");
    assert_eq!(hub.lead().await.unwrap(), Some(renewed.clone()));

    assert!(hub.swap_lead(Some(&renewed), &other).await.unwrap());
    assert_eq!(hub.lead().await.unwrap(), Some(other));
}

pub(super) async fn one_leader_of_many_wins(hub: &Arc<dyn Hub>) {
    let old = hub.lead().await.unwrap().unwrap();
    let winners = race(hub, 16, move |hub, i| {
        let (old, new) = (old.clone(), Lead::new(&format!("racer {i}"), "", old.epoch + 1, Timestamp(9_000)));
        async move { hub.swap_lead(Some(&old), &new).await.unwrap() }
    })
    .await;
    assert_eq!(winners, 1);
}
