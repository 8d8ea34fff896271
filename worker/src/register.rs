//! A worker's membership: it registers, renews its leases, and forgets what the coordinator has.

use crate::{Context, EngineSpec, Lacking, coordinator::patiently};
use modelmeter_common::{Code, Problem, device::DeviceKind, status::Abilities};
use modelmeter_proto::control::{RegisterRequest, RenewRequest, Slot};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// The shortest pause between renewals, whatever lease a coordinator gives.
const SHORTEST_RENEWAL: Duration = Duration::from_millis(20);

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
    kind: DeviceKind,
) -> (Vec<String>, Abilities) {
    let (other, device) = match kind {
        DeviceKind::Cpu => ("GPUs", "gpu"),
        DeviceKind::Gpu => ("the CPU", "cpu"),
    };
    let elsewhere = || {
        Problem::new(Code::NotInstalled, format!("here it runs on {other} alone"))
            .with_hint(format!("--devices {device}"))
    };
    let (here, not_here): (Vec<&EngineSpec>, Vec<_>) = engines.into_iter().partition(|engine| engine.runs_on(kind));
    let mut abilities = Abilities {
        formats: here.iter().map(|engine| (engine.name.clone(), engine.formats.clone())).collect(),
        lacking: lacking.engines.clone(),
        no_gpu: lacking.gpu.clone(),
    };
    abilities.lacking.extend(not_here.iter().map(|engine| (engine.name.clone(), elsewhere())));
    (here.iter().map(|engine| engine.name.clone()).collect(), abilities)
}

/// Registers once: announces the incarnation, the slots and the finals held.
pub(crate) async fn register(context: &Context) -> Result<Membership, Problem> {
    let slots = context.places.iter().map(|place| {
        let (engines, abilities) = offered(context.engines.values(), &context.lacking, place.device.kind);
        Slot {
            index: place.index,
            device_class: place.device.class.clone(),
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

/// Renews all leases three times a lease until the worker stops.
pub(crate) async fn renew_forever(context: Arc<Context>, membership: watch::Sender<Membership>) {
    loop {
        let pause = (membership.borrow().lease / 3).max(SHORTEST_RENEWAL);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = context.renew_now.notified() => {}
        }
        match renew(&context).await {
            Ok(true) => {}
            Ok(false) => register_again(&context, &membership).await,
            // Work goes on: a result may still be the first complete one when the lease has run out.
            Err(problem) => tracing::warn!(%problem, "leases were not renewed"),
        }
    }
}

/// Renews all leases once, and forgets what the coordinator has. `false`: it does not know this incarnation.
pub(crate) async fn renew(context: &Arc<Context>) -> Result<bool, Problem> {
    let request = RenewRequest {
        worker: context.name.clone(),
        incarnation: context.incarnation.clone(),
        attempts: context.attempts.refs(),
    };
    let reply = context.coordinator.renew(&request).await?;
    forget(context, &reply.fates).await;
    Ok(!reply.register_again)
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
