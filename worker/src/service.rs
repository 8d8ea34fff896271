//! The worker's life: validate, lock the devices, replay the journal, register, work, stop.

use crate::{
    Context, Options,
    attempts::Attempts,
    cache::Cache,
    consume::Slot,
    coordinator::Coordinator,
    cpus,
    engine::{self, Census, Launch, Place, STOP_TIMEOUT, check_ports, remove_orphans},
    journal::Journal,
    lock::DeviceLock,
    patience::{Backoff, Patience},
    publish, register,
    session::Met,
    slots,
};
use futures::future::BoxFuture;
use modelmeter_common::{Code, Problem, broker::RESULTS, cgroup::CpuGroups};
use modelmeter_meter::threads;
use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

/// How long a start tries to reach coordinator and broker before it says that it cannot.
const START_PATIENCE: Duration = Duration::from_secs(10);
/// What slots leave of [`STOP_TIMEOUT`] to engines that are killed with them.
const KILL_TIMEOUT: Duration = Duration::from_millis(500);
/// For a last word with the coordinator.
const FAREWELL: Duration = Duration::from_millis(500);

/// A running worker. Dropped, it ends at once, engines included; better stop it.
#[derive(Debug)]
pub struct Handle {
    context: Arc<Context>,
    slots: JoinSet<()>,
    renewal: JoinSet<()>,
}

/// Starts a worker; when this returns it is registered and takes tasks. Boxed, so that it is compiled here, once and
/// for speed.
///
/// # Errors
/// Options that make no sense; `busy` for a device that another worker has, or a port, naming the holder; `storage` for a home that
/// cannot be written to; `unreachable`, after ten seconds, for coordinator and broker. A patient worker waits for a device, for
/// coordinator and broker.
pub fn start(options: Options) -> BoxFuture<'static, Result<Handle, Problem>> {
    Box::pin(started(options))
}

async fn started(options: Options) -> Result<Handle, Problem> {
    let patience = options.patience.clone();
    let context = Arc::new(prepare(options).await?);
    replay(&context, &patience).await?;
    let member = insist(&patience, || register::register(&context)).await?;
    for queue in member.queues.iter().chain([&member.results]) {
        insist(&patience, || async { Ok(context.broker.declare(queue).await?) }).await?;
    }
    tracing::info!(worker = context.name, slots = context.places.len(), "registered");
    let (sender, membership) = watch::channel(member);
    let (mut slots, mut renewal) = (JoinSet::new(), JoinSet::new());
    renewal.spawn(register::renew_forever(context.clone(), sender));
    for place in &context.places {
        let (context, place) = (context.clone(), place.clone());
        let slot = Slot {
            context,
            place,
            membership: membership.clone(),
            deployment: None,
            publishing: None,
            busy: Backoff::default(),
        };
        slots.spawn(slot.run());
    }
    Ok(Handle { context, slots, renewal })
}

impl Handle {
    /// Takes no more tasks, hands back what runs, stops engines; over within about five seconds. The journal keeps
    /// what the coordinator has not confirmed. The broker stays open: it is its owner's to close.
    pub async fn stop(mut self) {
        self.context.stop.cancel();
        let deadline = Instant::now() + STOP_TIMEOUT;
        if timeout_at(deadline - KILL_TIMEOUT, async { while self.slot_ended().await {} }).await.is_err() {
            tracing::warn!("a slot did not stop in time: ending it");
            self.slots.shutdown().await;
        }
        // One that was dropped in the making takes a while to end, a container above all.
        engine::none_left(&self.context.places, deadline).await;
        self.renewal.shutdown().await;
        // What the coordinator has by now need not be replayed at the next start.
        let _ = timeout(FAREWELL, register::renew(&self.context)).await;
    }

    /// Asks the coordinator at once what it still wants: a request that was just cancelled is dropped within moments.
    pub fn ask_now(&self) {
        self.context.renew_now.notify_one();
    }

    /// Completes when the worker ended by itself, and gives why: another took its name, its broker was closed, or it
    /// has a defect. It is to be stopped then: the coordinator still counts on its slots.
    pub async fn wait(&mut self) -> Problem {
        self.slot_ended().await;
        self.context.ended.get().cloned().unwrap_or_else(|| {
            Problem::new(Code::Internal, "a slot of the worker ended by itself").with_hint("its log says why")
        })
    }

    /// Waits for the end of a slot; `false`: there is none left.
    async fn slot_ended(&mut self) -> bool {
        let Some(ended) = self.slots.join_next().await else { return false };
        if let Err(error) = ended {
            tracing::error!(%error, "a slot ended with a defect");
        }
        true
    }
}

/// Everything that needs neither coordinator nor broker.
async fn prepare(options: Options) -> Result<Context, Problem> {
    options.validate()?;
    let coordinator = Coordinator::new(&options.coordinators)?;
    let cpus = cpus::split(&options.wanted_cores(), &threads::available_cores(), CpuGroups::own().cores())?;
    let cache = Cache::open(options.home.join("cache"))?;
    let (claims, lock_dir, name) = (options.claims(&cpus.slots), options.lock_dir.clone(), options.name.clone());
    let take = || {
        let (claims, lock_dir, name) = (claims.clone(), lock_dir.clone(), name.clone());
        let locks = tokio::task::spawn_blocking(move || -> Result<Vec<DeviceLock>, Problem> {
            (0..).zip(&claims).map(|(slot, claim)| DeviceLock::take(&lock_dir, claim, &name, slot)).collect()
        });
        async move { locks.await.map_err(|e| Problem::new(Code::Internal, format!("locking failed: {e}")))? }
    };
    let locks = options.patience.while_busy(take).await?;
    let journal = Journal::open(options.home.join("journal").join(&options.name))?;
    let of_this_worker = |what: &str| options.home.join(what).join(&options.name);
    let places = (0..).zip(options.slots.iter().zip(cpus.slots)).zip(locks).map(|((index, (slot, cores)), lock)| {
        Arc::new(Place {
            index,
            device: slot.device.clone(),
            cores: cores.pinned,
            lock,
            ports: options.ports,
            logs: of_this_worker("logs"),
            run: of_this_worker("run"),
            census: Census::default(),
            launched: Default::default(),
        })
    });
    let places: Vec<_> = places.collect();
    if options.engines.iter().any(|engine| matches!(engine.launch, Launch::Docker { .. }))
        && let Err(problem) = remove_orphans(&places).await
    {
        tracing::warn!(%problem, "containers that a dead worker left, if any, were not removed");
    }
    // With the devices locked no engine of a dead worker is left on them.
    check_ports(&options.engines, &slots::kinds(&options.slots), options.ports)?;
    Ok(Context {
        incarnation: uuid::Uuid::new_v4().to_string(),
        broker: options.broker,
        coordinator,
        places,
        engines: options.engines.into_iter().map(|engine| (engine.name.clone(), engine)).collect::<BTreeMap<_, _>>(),
        lacking: options.lacking,
        inspectors: options.inspectors,
        labels: options.labels,
        client_cpus: cpus.client,
        shared_cpu: options.shared_cpu,
        cache,
        journal,
        attempts: Arc::new(Attempts::default()),
        met: Met::default(),
        renew_now: Notify::new(),
        stop: CancellationToken::new(),
        ended: OnceLock::new(),
        name: options.name,
    })
}

/// Publishes what an earlier life measured, before the coordinator hears of this one.
async fn replay(context: &Arc<Context>, patience: &Patience) -> Result<(), Problem> {
    let reader = context.clone();
    let entries = tokio::task::spawn_blocking(move || reader.journal.read()).await;
    let entries = entries.map_err(|e| Problem::new(Code::Internal, format!("reading the journal failed: {e}")))??;
    if entries.is_empty() {
        return Ok(());
    }
    tracing::info!(attempts = entries.len(), "publishing what the journal holds");
    for entry in &entries {
        insist(patience, || async { Ok(publish::once(context, RESULTS, entry).await?) }).await?;
        context.attempts.add_published(entry.task, entry.attempt);
    }
    Ok(())
}

/// Tries for [`START_PATIENCE`], or for ever.
async fn insist<T, F>(patience: &Patience, call: impl Fn() -> F) -> Result<T, Problem>
where
    F: Future<Output = Result<T, Problem>>,
{
    if patience.waits() {
        return patience.while_unreachable(call).await;
    }
    let (started, mut backoff) = (Instant::now(), Backoff::default());
    loop {
        match call().await {
            Err(problem) if problem.code == Code::Unreachable && started.elapsed() < START_PATIENCE => {
                tracing::debug!(%problem, "trying again");
                backoff.pause().await;
            }
            done => return done,
        }
    }
}
