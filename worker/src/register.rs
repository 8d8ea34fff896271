//! A worker's membership: it registers, renews its leases, and forgets what the coordinator has.

use crate::{Context, EngineSpec, Lacking, attempts::Attempt, coordinator::patiently, inspector::Custom, publish};
use modelmeter_common::{Code, Problem, device::DeviceKind, status::Abilities, wire};
use modelmeter_proto::control::{RegisterRequest, RenewReply, RenewRequest, Slot};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinSet, time::Instant};

/// The shortest pause between renewals, whatever lease a coordinator gives.
const SHORTEST_RENEWAL: Duration = Duration::from_millis(20);

/// What attempts do is told at most this often.
const NEWS_PAUSE: Duration = Duration::from_secs(1);
/// A result that the coordinator does not have this many leases after the broker took it was lost on its way.
const LOST_AFTER_LEASES: u32 = 2;

/// What the coordinator said at the last registration.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Membership {
    /// The task queue of each slot.
    pub queues: Vec<String>,
    pub results: String,
    pub lease: Duration,
}

/// What a slot on this kind of device offers: the names of its engines, and what else its coordinator is told.
pub fn offered<'a>(
    engines: impl IntoIterator<Item = &'a EngineSpec>,
    lacking: &Lacking,
    inspectors: &BTreeMap<String, Custom>,
    kind: DeviceKind,
) -> (Vec<String>, Abilities) {
    let (other, device) = match kind {
        DeviceKind::Cpu => ("GPUs", "gpu"),
        DeviceKind::Gpu | DeviceKind::Remote => ("the CPU", "cpu"),
    };
    let elsewhere = || {
        Problem::new(Code::NotInstalled, format!("here it runs on {other} alone"))
            .with_hint(format!("--devices {device}"))
    };
    let (here, not_here): (Vec<&EngineSpec>, Vec<_>) = engines.into_iter().partition(|engine| engine.runs_on(kind));
    let mut abilities = Abilities {
        formats: here.iter().map(|engine| (engine.name.clone(), engine.formats.clone())).collect(),
        inspectors: inspectors.keys().cloned().collect(),
        lacking: lacking.engines.clone(),
        no_gpu: lacking.gpu.clone(),
    };
    abilities.lacking.extend(not_here.iter().map(|engine| (engine.name.clone(), elsewhere())));
    (here.iter().map(|engine| engine.name.clone()).collect(), abilities)
}

/// Registers once: announces the incarnation, the slots and the finals held.
pub(crate) async fn register(context: &Context) -> Result<Membership, Problem> {
    let slots = context.places.iter().map(|place| {
        let (engines, abilities) =
            offered(context.engines.values(), &context.lacking, &context.inspectors, place.device.kind);
        Slot {
            index: place.index,
            device_json: serde_json::to_string(&place.device).expect("a device is plain JSON"),
            engines,
            abilities_json: serde_json::to_string(&abilities).expect("abilities are plain JSON"),
        }
    });
    let request = RegisterRequest {
        worker: context.name.clone(),
        incarnation: context.incarnation.clone(),
        slots: slots.collect(),
        held: context.attempts.held(),
        labels: context.labels.clone().into_iter().collect(),
        version: modelmeter_common::VERSION.into(),
        wire_version: wire::VERSION.into(),
    };
    let reply = context.coordinator.register(&request).await?;
    if reply.queues.len() != context.places.len() {
        let message = format!("the coordinator named {} queues for {} slots", reply.queues.len(), context.places.len());
        return Err(Problem::new(Code::Internal, message));
    }
    Ok(Membership { queues: reply.queues, results: reply.results_queue, lease: Duration::from_millis(reply.lease_ms) })
}

/// Registers anew, as long as it takes, and lets the slots know where their tasks come from.
pub(crate) async fn register_again(context: &Context, membership: &watch::Sender<Membership>) {
    match patiently(|| register(context)).await {
        Ok(new) => {
            tracing::info!(worker = context.name, "registered again");
            membership.send_if_modified(|old| {
                let changed = *old != new;
                *old = new;
                changed
            });
        }
        Err(problem) => tracing::warn!(%problem, "cannot register again"),
    }
}

/// Renews all leases three times a lease until the worker stops or is replaced, and publishes again what was lost on its way.
pub(crate) async fn renew_forever(context: Arc<Context>, membership: watch::Sender<Membership>) {
    let (mut again, mut renewed) = (JoinSet::new(), Instant::now());
    loop {
        let lease = membership.borrow().lease;
        let pause = (lease / 3).max(SHORTEST_RENEWAL);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = context.renew_now.notified() => {}
            () = news(&context, renewed) => {}
        }
        renewed = Instant::now();
        match renew(&context).await {
            Ok(Standing::Member) => {
                for attempt in context.attempts.overdue(lease * LOST_AFTER_LEASES) {
                    let queue = membership.borrow().results.clone();
                    again.spawn(publish_again(context.clone(), queue, attempt));
                }
                while again.try_join_next().is_some() {}
            }
            Ok(Standing::Forgotten) => register_again(&context, &membership).await,
            Ok(Standing::Replaced) => return context.end(replaced(&context.name)),
            // Work goes on: a result may still be the first complete one when the lease has run out.
            Err(problem) => tracing::warn!(%problem, "leases were not renewed"),
        }
    }
}

/// Completes when there is something to tell, a while after it was told last.
async fn news(context: &Context, told: Instant) {
    context.attempts.news.notified().await;
    tokio::time::sleep_until(told + NEWS_PAUSE).await;
}

/// Publishes an attempt's journal once more: results are inserted once, however often they come.
async fn publish_again(context: Arc<Context>, queue: String, attempt: Attempt) {
    let (reader, task, number) = (context.clone(), attempt.task, attempt.number);
    let entry = tokio::task::spawn_blocking(move || reader.journal.read_attempt(task, number)).await;
    match entry {
        Ok(Some(entry)) => {
            tracing::warn!(%task, attempt = number, "the coordinator still lacks the result: publishing it again");
            publish::deliver(context, queue, attempt, entry, None).await;
        }
        // With nothing to give, its lease shall run out, so that it is measured again.
        _ => {
            tracing::warn!(%task, attempt = number, "the result was lost, and the journal does not have it");
            attempt.forget();
        }
    }
}

fn replaced(name: &str) -> Problem {
    Problem::new(Code::Busy, format!("another process has registered as worker '{name}'"))
        .with_field("name")
        .with_hint("give each worker a name of its own: --name")
}

/// What the coordinator holds of this life of the worker.
pub(crate) enum Standing {
    Member,
    /// It is not known: to be registered again.
    Forgotten,
    /// Another process has taken the worker's name.
    Replaced,
}

/// Renews all leases once, and forgets what the coordinator has.
pub(crate) async fn renew(context: &Arc<Context>) -> Result<Standing, Problem> {
    let request = RenewRequest {
        worker: context.name.clone(),
        incarnation: context.incarnation.clone(),
        attempts: context.attempts.refs(),
    };
    let reply = context.coordinator.renew(&request).await?;
    forget(context, &reply.fates).await;
    Ok(match reply {
        RenewReply { replaced: true, .. } => Standing::Replaced,
        RenewReply { register_again: true, .. } => Standing::Forgotten,
        _ => Standing::Member,
    })
}

async fn forget(context: &Arc<Context>, fates: &[modelmeter_proto::control::AttemptFate]) {
    let forgotten = context.attempts.apply(fates);
    if forgotten.is_empty() {
        return;
    }
    let journal = context.clone();
    let removed = tokio::task::spawn_blocking(move || {
        forgotten.into_iter().try_for_each(|(task, attempt)| journal.journal.remove(task, attempt))
    });
    if let Ok(Err(problem)) = removed.await {
        tracing::warn!(%problem, "a journal that is not needed any more stays");
    }
}
