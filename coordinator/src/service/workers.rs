//! Workers: registration, the renewal and the end of their leases, and the tasks that they give back.

use super::transition::{Step, step};
use crate::{
    bulletin::Note,
    core::Core,
    hub::{HubError, TaskFilter},
    plan::pool::Pool,
};
use modelmeter_common::{
    Incarnation, Problem, SCHEMA_VERSION, TaskId,
    broker::task_queue,
    device::Device,
    status::{Abilities, SlotDoc, WorkerDoc},
    task::{Refusal, TaskState},
    wire,
};
use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

/// The data with which a worker registers.
pub struct Registration {
    /// The worker's name.
    pub worker: String,
    /// The worker's incarnation: another at each start.
    pub incarnation: Incarnation,
    /// The worker's version of modelmeter.
    pub version: String,
    /// The wire version that the worker writes, as [`checked_version`] gives it.
    pub wire_version: u16,
    /// The worker's slots.
    pub slots: Vec<SlotDoc>,
    /// Attempts with a final in the worker's journal.
    pub held: HashSet<(TaskId, u32)>,
    /// Labels of the worker.
    pub labels: BTreeMap<String, String>,
}

/// An attempt that a worker says it works on.
pub struct Progress {
    /// The task.
    pub task: TaskId,
    /// The attempt.
    pub attempt: u32,
    /// One line for `watch`.
    pub progress: String,
}

/// The answer to a request for renewing the lease of an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// The lease holds.
    Renewed,
    /// The task ended.
    Terminal,
    /// Another attempt holds the task, or none.
    Lost,
    /// The task was cancelled.
    Cancelled,
}

/// The answer to a worker that renews.
pub enum Renewal {
    /// The fates of its attempts, in their order.
    Fates(Vec<Fate>),
    /// The worker is not registered.
    RegisterAgain,
    /// Another process has registered under its name and lives.
    Replaced,
}

/// Workers that renewed lately.
pub async fn live(core: &Core) -> Result<Vec<WorkerDoc>, Problem> {
    Ok(core.live_workers().await?)
}

/// The registered worker of this incarnation; none also if a coordinator of another build registered it.
pub(super) async fn registered(
    core: &Core,
    name: &str,
    incarnation: &Incarnation,
) -> Result<Option<WorkerDoc>, HubError> {
    let workers = core.workers().await?;
    let is_it = |worker: &WorkerDoc| {
        worker.name == name && worker.incarnation == *incarnation && wire::is_read(worker.wire_version)
    };
    Ok(workers.into_iter().find(is_it))
}

/// A slot as the hub keeps it.
pub fn slot(index: u32, device: Device, engines: Vec<String>, abilities: Abilities) -> SlotDoc {
    let pool = Pool::of(&device.class, engines.clone(), abilities.clone()).id;
    SlotDoc { index, device, engines, abilities, pool }
}

/// A worker's wire version, if it is read here: results in another would be quarantined one by one.
///
/// # Errors
/// `invalid_argument`, naming the versions.
pub fn checked_version(worker: &str, version: &str, theirs: u32) -> Result<u16, Problem> {
    if let Some(read) = u16::try_from(theirs).ok().filter(|version| wire::is_read(*version)) {
        return Ok(read);
    }
    let (previous, ours) = (wire::PREVIOUS, wire::VERSION);
    let message = format!(
        "worker {worker} of modelmeter {version} writes results in wire version {theirs}, this coordinator ({}) reads {previous} and {ours}",
        modelmeter_common::VERSION
    );
    let hint = if theirs > u32::from(ours) {
        "upgrade the coordinator first, then the workers"
    } else {
        "run the same version of modelmeter as worker and as coordinator"
    };
    Err(Problem::invalid("version", message).with_hint(hint))
}

/// Registers a worker: its queues are there, leases of its earlier incarnations end, except those of attempts that it
/// measured to the end. Gives the queue of each slot.
///
/// # Errors
/// `invalid_argument` without a name or a slot.
pub async fn register(core: &Core, announced: Registration) -> Result<Vec<String>, Problem> {
    if announced.worker.is_empty() || announced.slots.is_empty() {
        return Err(Problem::invalid("worker", "needs a name and at least one slot"));
    }
    for pool in announced.slots.iter().map(|slot| &slot.pool).collect::<HashSet<_>>() {
        core.broker.declare(&task_queue(pool)).await?;
    }
    end_old_leases(core, &announced).await?;
    let now = core.now();
    let queues = announced.slots.iter().map(|slot| task_queue(&slot.pool)).collect();
    let worker = WorkerDoc {
        name: announced.worker,
        schema_version: SCHEMA_VERSION,
        incarnation: announced.incarnation,
        version: announced.version,
        wire_version: announced.wire_version,
        slots: announced.slots,
        labels: announced.labels,
        registered_at: now,
        seen_at: now,
    };
    core.put_worker(&worker).await?;
    tracing::info!(worker = worker.name, slots = worker.slots.len(), "worker registered");
    core.outbox.tell(Note::Workers);
    core.wake();
    Ok(queues)
}

/// Ends the leases of a worker's earlier incarnations, except those of attempts that it measured to the end; those it
/// holds again.
async fn end_old_leases(core: &Core, announced: &Registration) -> Result<(), HubError> {
    let claimed = TaskFilter { states: vec![TaskState::Claimed], ..Default::default() };
    for task in core.hub.tasks(&claimed).await? {
        let Some(lease) = &task.lease else { continue };
        if lease.worker != announced.worker || lease.incarnation == announced.incarnation {
            continue;
        }
        let keep = announced.held.contains(&(task.id, task.attempt));
        step(core, task.id, |current, now| match &current.lease {
            Some(lease) if lease.worker == announced.worker && keep => {
                current.adopt(task.attempt, &announced.incarnation, now, core.lease)
            }
            Some(lease) if lease.worker == announced.worker => current.lose(task.attempt, now),
            _ => Err(Refusal::NotHolder),
        })
        .await?;
    }
    Ok(())
}

/// Renews the leases of a worker's attempts, and tells what became of each.
pub async fn renew(
    core: &Core,
    worker: &str,
    incarnation: &Incarnation,
    attempts: &[Progress],
) -> Result<Renewal, Problem> {
    let Some(doc) = registered(core, worker, incarnation).await? else {
        // Two workers of one name that register in turn would end each other's leases forever: the later one stays.
        let live = core.live_workers().await?;
        let replaced = live.iter().any(|other| other.name == worker && other.incarnation != *incarnation);
        return Ok(if replaced { Renewal::Replaced } else { Renewal::RegisterAgain });
    };
    core.put_worker(&WorkerDoc { seen_at: core.now(), ..doc }).await?;
    let mut fates = Vec::with_capacity(attempts.len());
    for attempt in attempts {
        fates.push(fate(core, incarnation, attempt).await?);
    }
    Ok(Renewal::Fates(fates))
}

async fn fate(core: &Core, incarnation: &Incarnation, of: &Progress) -> Result<Fate, HubError> {
    let renewed =
        step(core, of.task, |task, now| task.renew(of.attempt, incarnation, now, core.lease, &of.progress)).await?;
    Ok(match renewed {
        Step::Stepped(_) => Fate::Renewed,
        Step::Refused(Refusal::Terminal, task) if task.state == TaskState::Cancelled => Fate::Cancelled,
        Step::Refused(Refusal::Terminal, _) => Fate::Terminal,
        Step::Refused(..) | Step::Unknown => Fate::Lost,
    })
}

/// Takes a claimed task back unmeasured. `problem`: why it cannot run there now, which fails the attempt once the request
/// does not wait, or no longer.
pub async fn hand_back(
    core: &Core,
    task: TaskId,
    attempt: u32,
    reason: &str,
    problem: Option<Problem>,
) -> Result<(), Problem> {
    let fatal = match problem {
        Some(problem) if !waits(core, task).await? => Some(problem),
        _ => None,
    };
    step(core, task, |task, now| match &fatal {
        Some(problem) => task.fail(attempt, problem.clone(), now),
        None => task.hand_back(attempt, reason, now),
    })
    .await?;
    Ok(())
}

/// Whether a task's request still waits for what its cell lacks.
async fn waits(core: &Core, id: TaskId) -> Result<bool, HubError> {
    let Some(task) = core.hub.task(id).await? else { return Ok(true) };
    let stored = core.stored_request(task.request_id).await?;
    Ok(stored.is_none_or(|doc| {
        let deadline = Duration::from_millis(doc.request.deadline_ms);
        !doc.request.no_wait && core.now().since(doc.created_at) < deadline
    }))
}
