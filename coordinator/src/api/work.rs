//! What a worker calls. The claim is the one place where a task starts to run.

use super::{artifacts, from_json, hub_status, parse, status_of, submit, to_json};
use crate::{
    core::{Core, Step},
    hub::TaskFilter,
    pool::Pool,
};
use futures::Stream;
use modelmeter_common::{
    Problem, SCHEMA_VERSION, TaskId,
    broker::{RESULTS, task_queue},
    device::Device,
    status::{Abilities, SlotDoc, WorkerDoc},
    task::{Assignment, Lease, Refusal, Task, TaskState},
    wire,
};
use modelmeter_proto::control::{
    ArtifactChunk, ArtifactId, AttemptFate, AttemptRef, ClaimNextRequest, ClaimReply, ClaimRequest, Granted,
    HandBackReply, HandBackRequest, Refused, RegisterReply, RegisterRequest, RenewReply, RenewRequest, Slot,
    attempt_fate::Fate, claim_reply::Outcome, refused::Why, work_server::Work,
};
use std::{
    collections::HashSet,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tonic::{Request, Response, Status};

/// Candidates that one `ClaimNext` tries before it says that none is left.
const CLAIM_NEXT_TRIES: u32 = 8;

/// The `Work` service.
pub struct WorkApi {
    core: Arc<Core>,
    next: AtomicUsize,
}

type Reply<T> = Result<Response<T>, Status>;

/// A worker's slot, as a claim names it.
struct Claimant<'a> {
    worker: &'a str,
    incarnation: &'a str,
    slot: u32,
    pool: Pool,
    claim_id: &'a str,
}

impl WorkApi {
    pub fn new(core: Arc<Core>) -> Self {
        Self { core, next: AtomicUsize::new(0) }
    }

    /// The registered worker of this incarnation; none too if a coordinator of another build registered it.
    async fn worker(&self, name: &str, incarnation: &str) -> Result<Option<WorkerDoc>, Status> {
        let workers = self.core.workers().await.map_err(hub_status)?;
        let is_it = |worker: &WorkerDoc| {
            worker.name == name && worker.incarnation == incarnation && wire::is_read(worker.wire_version)
        };
        Ok(workers.into_iter().find(is_it))
    }

    /// The slot that claims, or why it may not.
    async fn claimant<'a>(
        &self,
        worker: &'a str,
        incarnation: &'a str,
        slot: u32,
        claim_id: &'a str,
    ) -> Result<Result<Claimant<'a>, Why>, Status> {
        let Some(doc) = self.worker(worker, incarnation).await? else { return Ok(Err(Why::StaleWorker)) };
        let pool = doc.slots.iter().find(|s| s.index == slot).map(Pool::from);
        Ok(pool.map(|pool| Claimant { worker, incarnation, slot, pool, claim_id }).ok_or(Why::WrongSlot))
    }

    /// Grants the task to the slot, or says why not.
    async fn grant(&self, task: Task, by: &Claimant<'_>) -> Result<Outcome, Status> {
        let (core, id) = (&self.core, task.id);
        let step = core.step_from(task, |task, now| {
            if !by.pool.fits(&task.cell) {
                return Err(Refusal::State);
            }
            let lease = Lease {
                worker: by.worker.to_owned(),
                incarnation: by.incarnation.to_owned(),
                slot: by.slot,
                claim_id: by.claim_id.to_owned(),
                expires_at: now.plus(core.lease),
            };
            task.claim(&by.pool.id, lease, now)
        });
        match step.await.map_err(hub_status)? {
            Step::Stepped(task) => {
                core.work.notify_one();
                Ok(Outcome::Granted(self.granted(&task).await?))
            }
            Step::Unknown => Ok(refused(Why::Unknown)),
            Step::Refused(Refusal::Held, _) => Ok(refused(Why::Held)),
            Step::Refused(Refusal::Terminal, _) => Ok(refused(Why::Terminal)),
            Step::Refused(..) => {
                core.step(id, |task, now| task.unqueue("it was queued to a pool that cannot run it", now))
                    .await
                    .map_err(hub_status)?;
                Ok(refused(Why::WrongSlot))
            }
        }
    }

    async fn granted(&self, task: &Task) -> Result<Granted, Status> {
        let request = self.core.stored_request(task.request_id).await.map_err(hub_status)?;
        let request =
            request.ok_or_else(|| super::not_found("request", &task.request_id.to_string(), "it vanished"))?;
        let plan = submit::plan_of(&self.core, &request).await.map_err(hub_status)?;
        let assignment = Assignment {
            request_id: task.request_id,
            task_id: task.id,
            attempt: task.attempt,
            repeat: task.repeat,
            cell: task.cell.clone(),
            plan,
        };
        Ok(Granted { task_id: task.id.to_string(), attempt: task.attempt, task_json: to_json(&assignment)? })
    }

    async fn fate(&self, incarnation: &str, attempt: &AttemptRef) -> Result<Fate, Status> {
        let id = parse("task_id", &attempt.task_id)?;
        let lease = self.core.lease;
        let step =
            self.core.step(id, |task, now| task.renew(attempt.attempt, incarnation, now, lease, &attempt.progress));
        Ok(match step.await.map_err(hub_status)? {
            Step::Stepped(_) => Fate::Renewed,
            Step::Refused(Refusal::Terminal, task) if task.state == TaskState::Cancelled => Fate::Cancelled,
            Step::Refused(Refusal::Terminal, _) => Fate::Terminal,
            Step::Refused(..) | Step::Unknown => Fate::Lost,
        })
    }

    /// Whether a task's request still waits for what stands in its way.
    async fn waits(&self, id: TaskId) -> Result<bool, Status> {
        let Some(task) = self.core.hub.task(id).await.map_err(hub_status)? else { return Ok(true) };
        let stored = self.core.stored_request(task.request_id).await.map_err(hub_status)?;
        Ok(stored.is_none_or(|doc| {
            let deadline = Duration::from_millis(doc.request.deadline_ms);
            !doc.request.no_wait && self.core.now().since(doc.created_at) < deadline
        }))
    }

    /// Ends the leases of a worker's earlier incarnations, except those of attempts that it measured to the end; those
    /// it holds again.
    async fn end_old_leases(&self, request: &RegisterRequest) -> Result<(), Status> {
        let core = &self.core;
        let held: HashSet<(&str, u32)> = request.held.iter().map(|h| (h.task_id.as_str(), h.attempt)).collect();
        let claimed = TaskFilter { states: vec![TaskState::Claimed], ..Default::default() };
        for task in core.hub.tasks(&claimed).await.map_err(hub_status)? {
            let Some(lease) = &task.lease else { continue };
            if lease.worker != request.worker || lease.incarnation == request.incarnation {
                continue;
            }
            let keep = held.contains(&(task.id.to_string().as_str(), task.attempt));
            let step = core.step(task.id, |current, now| match &current.lease {
                Some(lease) if lease.worker == request.worker && keep => {
                    current.adopt(task.attempt, &request.incarnation, now, core.lease)
                }
                Some(lease) if lease.worker == request.worker => current.lose(task.attempt, now),
                _ => Err(Refusal::NotHolder),
            });
            step.await.map_err(hub_status)?;
        }
        Ok(())
    }
}

/// Results in a wire version that is not read would be quarantined one by one: better said at once.
fn checked_wire_version(request: &RegisterRequest) -> Result<u16, Status> {
    let theirs = request.wire_version;
    if let Some(read) = u16::try_from(theirs).ok().filter(|version| wire::is_read(*version)) {
        return Ok(read);
    }
    let (worker, version, previous, ours) = (&request.worker, &request.version, wire::PREVIOUS, wire::VERSION);
    let message = format!(
        "worker {worker} of modelmeter {version} writes results in wire version {theirs}, this coordinator ({}) reads {previous} and {ours}",
        modelmeter_common::VERSION
    );
    let hint = if theirs > u32::from(ours) {
        "upgrade the coordinator first, then the workers"
    } else {
        "run the same version of modelmeter as worker and as coordinator"
    };
    Err(status_of(&Problem::invalid("version", message).with_hint(hint)))
}

fn slot_doc(slot: &Slot) -> Result<SlotDoc, Status> {
    let device: Device = from_json("device", &slot.device_json)?;
    let abilities: Abilities = match slot.abilities_json.as_str() {
        "" => Abilities::default(),
        json => from_json("abilities", json)?,
    };
    let pool = Pool::of(&device.class, slot.engines.clone(), abilities.clone()).id;
    Ok(SlotDoc { index: slot.index, device, engines: slot.engines.clone(), abilities, pool })
}

fn refused(why: Why) -> Outcome {
    Outcome::Refused(Refused { why: why.into() })
}

fn reply(outcome: Outcome) -> Reply<ClaimReply> {
    Ok(Response::new(ClaimReply { outcome: Some(outcome) }))
}

#[tonic::async_trait]
impl Work for WorkApi {
    type GetArtifactStream = Pin<Box<dyn Stream<Item = Result<ArtifactChunk, Status>> + Send>>;

    async fn register(&self, request: Request<RegisterRequest>) -> Reply<RegisterReply> {
        let request = request.into_inner();
        if request.worker.is_empty() || request.slots.is_empty() {
            return Err(status_of(&Problem::invalid("worker", "needs a name and at least one slot")));
        }
        let wire_version = checked_wire_version(&request)?;
        let slots: Vec<SlotDoc> = request.slots.iter().map(slot_doc).collect::<Result<_, _>>()?;
        for pool in slots.iter().map(|slot| &slot.pool).collect::<HashSet<_>>() {
            let declared = self.core.broker.declare(&task_queue(pool)).await;
            declared.map_err(|e| status_of(&e.into()))?;
        }
        self.end_old_leases(&request).await?;
        let now = self.core.now();
        let queues = slots.iter().map(|slot| task_queue(&slot.pool)).collect();
        let worker = WorkerDoc {
            name: request.worker,
            schema_version: SCHEMA_VERSION,
            incarnation: request.incarnation,
            version: request.version,
            wire_version,
            slots,
            labels: request.labels.into_iter().collect(),
            registered_at: now,
            seen_at: now,
        };
        self.core.put_worker(&worker).await.map_err(hub_status)?;
        tracing::info!(worker = worker.name, slots = worker.slots.len(), "worker registered");
        self.core.work.notify_one();
        Ok(Response::new(RegisterReply {
            queues,
            results_queue: RESULTS.to_owned(),
            lease_ms: self.core.lease.as_millis() as u64,
        }))
    }

    async fn claim(&self, request: Request<ClaimRequest>) -> Reply<ClaimReply> {
        let ClaimRequest { task_id, worker, incarnation, slot, claim_id } = request.into_inner();
        let by = match self.claimant(&worker, &incarnation, slot, &claim_id).await? {
            Ok(by) => by,
            Err(why) => return reply(refused(why)),
        };
        match self.core.hub.task(parse("task_id", &task_id)?).await.map_err(hub_status)? {
            Some(task) => reply(self.grant(task, &by).await?),
            None => reply(refused(Why::Unknown)),
        }
    }

    async fn claim_next(&self, request: Request<ClaimNextRequest>) -> Reply<ClaimReply> {
        let ClaimNextRequest { after_task_id, worker, incarnation, slot } = request.into_inner();
        let by = match self.claimant(&worker, &incarnation, slot, "").await? {
            Ok(by) => by,
            Err(why) => return reply(refused(why)),
        };
        let after = self.core.hub.task(parse("after_task_id", &after_task_id)?).await.map_err(hub_status)?;
        let Some(after) = after else { return reply(refused(Why::Unknown)) };
        let same_deployment = TaskFilter {
            request: Some(after.request_id),
            states: vec![TaskState::Waiting, TaskState::Queued],
            deployment_key: Some(after.deployment_key),
            limit: Some(CLAIM_NEXT_TRIES),
            ..Default::default()
        };
        let mut candidates = self.core.hub.tasks(&same_deployment).await.map_err(hub_status)?;
        if !candidates.is_empty() {
            // Slots that ask at once begin at different places, and do not race for the same task.
            let begin = self.next.fetch_add(1, Relaxed) % candidates.len();
            candidates.rotate_left(begin);
        }
        for task in candidates {
            let outcome = self.grant(task, &by).await?;
            if matches!(outcome, Outcome::Granted(_)) {
                return reply(outcome);
            }
        }
        reply(refused(Why::None))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Reply<RenewReply> {
        let RenewRequest { worker, incarnation, attempts } = request.into_inner();
        let Some(doc) = self.worker(&worker, &incarnation).await? else {
            // Two that registered in turn would end each other's leases for ever: the later one stays.
            let live = self.core.live_workers().await.map_err(hub_status)?;
            let replaced = live.iter().any(|other| other.name == worker && other.incarnation != incarnation);
            return Ok(Response::new(RenewReply { fates: Vec::new(), register_again: !replaced, replaced }));
        };
        let seen = WorkerDoc { seen_at: self.core.now(), ..doc };
        self.core.put_worker(&seen).await.map_err(hub_status)?;
        let mut fates = Vec::with_capacity(attempts.len());
        for attempt in attempts {
            let fate = self.fate(&incarnation, &attempt).await?;
            fates.push(AttemptFate { task_id: attempt.task_id, attempt: attempt.attempt, fate: fate.into() });
        }
        Ok(Response::new(RenewReply { fates, ..RenewReply::default() }))
    }

    async fn hand_back(&self, request: Request<HandBackRequest>) -> Reply<HandBackReply> {
        let HandBackRequest { task_id, attempt, reason, problem_json, .. } = request.into_inner();
        let id = parse("task_id", &task_id)?;
        let stands_in_the_way = match problem_json.as_str() {
            "" => None,
            _ if self.waits(id).await? => None,
            json => Some(from_json::<Problem>("problem", json)?),
        };
        let step = self.core.step(id, |task, now| match &stands_in_the_way {
            Some(problem) => task.fail(attempt, problem.clone(), now),
            None => task.hand_back(attempt, &reason, now),
        });
        step.await.map_err(hub_status)?;
        Ok(Response::new(HandBackReply {}))
    }

    async fn get_artifact(&self, request: Request<ArtifactId>) -> Reply<Self::GetArtifactStream> {
        let bytes = artifacts::get(&self.core, &request.into_inner().sha256).await?;
        Ok(Response::new(Box::pin(bytes)))
    }
}
