//! The suite that every hub adapter passes, SQLite and MongoDB.
#![allow(clippy::unwrap_used, missing_docs)] // these are tests, and a failure is meant to panic

mod artifacts;
mod leaders;
pub mod query;
mod registry;
mod results;
pub mod speed;
mod tasks;

use modelmeter_coordinator::hub::Hub;
use std::{future::Future, sync::Arc, time::Duration};

/// Runs every case. The hub must be empty.
pub async fn suite(hub: Arc<dyn Hub>) {
    clock(&*hub).await;
    leaders::an_epoch_for_each_leader(&*hub).await;
    leaders::one_leader_of_many_wins(&hub).await;
    registry::requests(&*hub).await;
    registry::requests_change_by_compare_and_swap(&hub).await;
    registry::workers(&*hub).await;
    registry::models(&*hub).await;
    registry::one_model_of_many_wins(&hub).await;
    tasks::inserts_ignore_duplicates(&*hub).await;
    tasks::filters(&*hub).await;
    tasks::waiting_ones_by_kind(&*hub).await;
    tasks::one_swap_of_many_wins(&hub).await;
    tasks::swaps_move_a_task_between_filters(&*hub).await;
    results::parts(&*hub).await;
    results::finals(&*hub).await;
    results::a_part_is_stored_once_of_many(&hub).await;
    results::profiles(&*hub).await;
    results::one_profile_of_many_wins(&hub).await;
    artifacts::contents(&*hub).await;
    artifacts::what_does_not_match_is_not_kept(&*hub).await;
    artifacts::uploads_at_once_leave_one(&hub).await;
    artifacts::an_upload_whose_caller_goes_away_is_not_kept(&hub).await;
}

async fn clock(hub: &dyn Hub) {
    let before = hub.now().await.unwrap();
    let after = hub.now().await.unwrap();
    assert!(after >= before && before.0 > 1_700_000_000_000, "{before} then {after}");
    assert!(after.since(before) < Duration::from_secs(60));
}

/// Calls `racer` for 0 to `n - 1`, all at once, and counts those that give true.
async fn race<F, R>(hub: &Arc<dyn Hub>, n: u32, racer: R) -> usize
where
    F: Future<Output = bool> + Send + 'static,
    R: Fn(Arc<dyn Hub>, u32) -> F,
{
    let racers: Vec<_> = (0..n).map(|i| tokio::spawn(racer(hub.clone(), i))).collect();
    let mut winners = 0;
    for racer in racers {
        winners += usize::from(racer.await.unwrap());
    }
    winners
}
