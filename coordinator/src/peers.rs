//! The exchange of bulletins with the other coordinators of the hub. Nothing waits for an unreachable broker: bulletins are
//! dropped then, and their receivers read the hub instead.

use crate::{
    bulletin::{Bulletin, Note, TOPIC},
    core::Core,
    service::tell,
};
use modelmeter_common::broker::BrokerError;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Bulletins are at least this far apart, so that a burst of changes is few of them.
const GAP: Duration = Duration::from_millis(20);
/// Between tries while the broker does not answer.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Coordinators that are remembered: each start is another one.
const REMEMBERED: usize = 256;

/// Sends and listens until `stop`.
pub async fn run(core: Arc<Core>, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = send(&core) => {}
        () = listen(&core) => {}
    }
}

async fn send(core: &Core) {
    loop {
        core.outbox.filled().await;
        while let Some(bulletin) = core.outbox.take() {
            let sent = match serde_json::to_vec(&bulletin) {
                Ok(body) => core.broker.broadcast(TOPIC, &body).await,
                Err(error) => Err(BrokerError::Refused(error.to_string())),
            };
            if let Err(error) = sent {
                tracing::debug!(%error, notes = bulletin.notes.len(), "other coordinators could not be told");
                core.outbox.not_sent(&bulletin);
                sleep(RETRY_PAUSE).await;
            }
            sleep(GAP).await;
        }
    }
}

async fn listen(core: &Core) {
    loop {
        let error = match core.broker.subscribe(TOPIC).await {
            Ok(mut subscription) => {
                missed(core);
                core.outbox.set_hears(true);
                let mut expected = HashMap::new();
                let error = loop {
                    match subscription.next().await {
                        Ok(body) => hear(core, &mut expected, &body),
                        Err(error) => break error,
                    }
                };
                core.outbox.set_hears(false);
                error
            }
            Err(error) => error,
        };
        tracing::warn!(%error, "other coordinators are not heard; reading the hub more often");
        sleep(RETRY_PAUSE).await;
    }
}

/// Takes up one bulletin. `expected`: the number of the next note of each coordinator.
fn hear(core: &Core, expected: &mut HashMap<Uuid, u64>, body: &[u8]) {
    let Ok(bulletin) = serde_json::from_slice::<Bulletin>(body) else {
        tracing::debug!(bytes = body.len(), "a bulletin of another version does not read");
        return missed(core);
    };
    if core.outbox.is_own(&bulletin) {
        return;
    }
    if expected.len() >= REMEMBERED {
        expected.clear();
    }
    core.outbox.found_reader();
    if bulletin.is_hello {
        core.outbox.answer();
    }
    let next = bulletin.first.saturating_add(bulletin.notes.len() as u64);
    if expected.insert(bulletin.from, next).unwrap_or(0) != bulletin.first {
        missed(core);
    }
    bulletin.notes.into_iter().for_each(|note| take_up(core, note));
}

fn take_up(core: &Core, note: Note) {
    match note {
        Note::Work => core.work.notify_one(),
        Note::Workers => {
            core.forget_workers();
            core.work.notify_one();
        }
        Note::Request { id, at, what } => tell::heard(core, id, at, what),
    }
}

/// Something was told that this coordinator did not hear.
fn missed(core: &Core) {
    core.feeds.lose_all();
    core.forget_workers();
    core.work.notify_one();
}
