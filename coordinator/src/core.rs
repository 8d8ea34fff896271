//! What the coordinator's loops and its API share: the two seams, the hub's clock, and who is told of changes.

use crate::{
    Options, aggregate,
    hub::{Hub, HubError, TaskFilter},
    pool::{self, Pool},
};
use modelmeter_common::{
    Problem, RequestId, TaskId, Timestamp,
    broker::Broker,
    part::{Final, Outcome},
    profile::Profile,
    request::{RequestDoc, RequestState},
    status::WorkerDoc,
    task::{Refusal, Task, TaskState},
};
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::sync::{Notify, broadcast};

/// Requests that may run at a time: the loops look at each of them in every round.
pub const MAX_REQUESTS: u32 = 1000;
/// Tries of one compare-and-swap before it is left to the sweep, or to the caller.
pub const SWAP_TRIES: u32 = 16;
/// Each claim asks who is registered: another coordinator's news may be this late.
const WORKERS_AGE: Duration = Duration::from_millis(500);
/// A worker that was silent for this many leases is not counted on.
const SILENT_LEASES: u32 = 2;

/// Shared by everything in the coordinator.
pub struct Core {
    pub broker: Arc<dyn Broker>,
    pub hub: Arc<dyn Hub>,
    pub lease: Duration,
    /// Wakes the dispatcher: something may be queued.
    pub work: Notify,
    /// Why the dispatcher cannot queue anything now.
    pub stuck: Mutex<Option<String>>,
    changes: broadcast::Sender<RequestId>,
    clock: Mutex<(Timestamp, Instant)>,
    /// Since when, without a break, workers could say that they live.
    listens_since: Mutex<Timestamp>,
    workers: Mutex<Option<(Instant, Vec<WorkerDoc>)>>,
    /// Attempts whose final came before all of its parts.
    pub pending: Mutex<HashSet<(TaskId, u32)>>,
    /// Tasks of a request that are not known to have ended: at zero the hub is asked.
    open: Mutex<HashMap<RequestId, u64>>,
    requests: Mutex<HashMap<RequestId, Arc<RequestDoc>>>,
}

impl Core {
    pub async fn new(options: Options) -> Result<Arc<Self>, Problem> {
        let now = options.hub.now().await?;
        Ok(Arc::new(Self {
            broker: options.broker,
            hub: options.hub,
            lease: options.lease,
            work: Notify::new(),
            stuck: Mutex::default(),
            changes: broadcast::channel(1024).0,
            clock: Mutex::new((now, Instant::now())),
            listens_since: Mutex::new(now),
            workers: Mutex::default(),
            pending: Mutex::default(),
            open: Mutex::default(),
            requests: Mutex::default(),
        }))
    }

    /// The hub's clock, carried on by this machine's monotonic one between readings.
    pub fn now(&self) -> Timestamp {
        let (read, at) = *self.clock.lock().expect("never poisoned: no panic while held");
        read.plus(at.elapsed())
    }

    /// Reads the hub's clock anew.
    pub async fn read_clock(&self) -> Result<(), HubError> {
        let now = self.hub.now().await?;
        *self.clock.lock().expect("never poisoned: no panic while held") = (now, Instant::now());
        Ok(())
    }

    /// Since when, without a break, workers could say that they live.
    pub fn listens_since(&self) -> Timestamp {
        *self.listens_since.lock().expect("never poisoned: no panic while held")
    }

    /// Whether a silence says something: every worker that lives has had a lease's time to be heard.
    pub fn has_listened(&self) -> bool {
        self.now().since(self.listens_since()) >= self.lease
    }

    /// The hub was not there: nobody could be heard.
    pub fn listen_anew(&self) {
        *self.listens_since.lock().expect("never poisoned: no panic while held") = self.now();
    }

    /// Tells watchers that something of this request changed.
    pub fn changed(&self, request: RequestId) {
        // No watcher is no error.
        let _ = self.changes.send(request);
    }

    /// Changes of any request, from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<RequestId> {
        self.changes.subscribe()
    }

    /// All registered workers, as they were at most [`WORKERS_AGE`] ago.
    pub async fn workers(&self) -> Result<Vec<WorkerDoc>, HubError> {
        let known = self.workers.lock().expect("never poisoned: no panic while held").clone();
        if let Some((_, workers)) = known.filter(|(read, _)| read.elapsed() < WORKERS_AGE) {
            return Ok(workers);
        }
        let workers = self.hub.workers().await?;
        *self.workers.lock().expect("never poisoned: no panic while held") = Some((Instant::now(), workers.clone()));
        Ok(workers)
    }

    /// Stores a worker that registered or was seen.
    pub async fn put_worker(&self, worker: &WorkerDoc) -> Result<(), HubError> {
        self.hub.put_worker(worker).await?;
        *self.workers.lock().expect("never poisoned: no panic while held") = None;
        Ok(())
    }

    /// Workers that gave a sign of life lately.
    pub async fn live_workers(&self) -> Result<Vec<WorkerDoc>, HubError> {
        let (now, silent) = (self.now(), self.lease * SILENT_LEASES);
        let mut workers = self.workers().await?;
        workers.retain(|worker| now.since(worker.seen_at) <= silent);
        Ok(workers)
    }

    /// The pools that live workers form.
    pub async fn pools(&self) -> Result<Vec<Pool>, HubError> {
        Ok(pool::pools(&self.live_workers().await?))
    }

    /// Applies one transition to a task by compare-and-swap.
    pub async fn step(
        &self,
        id: TaskId,
        change: impl Fn(&Task, Timestamp) -> Result<Task, Refusal>,
    ) -> Result<Step, HubError> {
        match self.hub.task(id).await? {
            Some(task) => self.step_from(task, change).await,
            None => Ok(Step::Unknown),
        }
    }

    /// The same, from the task as it was read last; read anew after each lost race.
    pub async fn step_from(
        &self,
        mut old: Task,
        change: impl Fn(&Task, Timestamp) -> Result<Task, Refusal>,
    ) -> Result<Step, HubError> {
        for _ in 0..SWAP_TRIES {
            let new = match change(&old, self.now()) {
                Ok(new) => new,
                Err(refusal) => return Ok(Step::Refused(refusal, Box::new(old))),
            };
            if self.hub.swap_task(&old, &new).await? {
                self.changed(new.request_id);
                if new.state.is_terminal() {
                    self.task_ended(&new).await?;
                } else if new.state == TaskState::Waiting {
                    self.work.notify_one();
                }
                return Ok(Step::Stepped(Box::new(new)));
            }
            match self.hub.task(old.id).await? {
                Some(task) => old = task,
                None => return Ok(Step::Unknown),
            }
        }
        Err(HubError::Failed(format!("task {} was changed {SWAP_TRIES} times under this change", old.id)))
    }

    /// A request as it was stored: everything but how far it is, which changes.
    pub async fn stored_request(&self, id: RequestId) -> Result<Option<Arc<RequestDoc>>, HubError> {
        let known = self.requests.lock().expect("never poisoned: no panic while held").get(&id).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let read = self.hub.request(id).await?.map(Arc::new);
        if let Some(request) = &read {
            self.requests.lock().expect("never poisoned: no panic while held").insert(id, request.clone());
        }
        Ok(read)
    }

    /// A task reached a terminal state: folds its cell if that was the last repeat, and closes its request if that was the last cell.
    async fn task_ended(&self, task: &Task) -> Result<(), HubError> {
        self.pending.lock().expect("never poisoned: no panic while held").retain(|(id, _)| *id != task.id);
        let Some(request) = self.stored_request(task.request_id).await? else { return Ok(()) };
        self.fold_cell(&request, task).await?;
        let last = {
            let mut open = self.open.lock().expect("never poisoned: no panic while held");
            let left = open.entry(request.id).or_insert(request.tasks);
            *left = left.saturating_sub(1);
            *left == 0
        };
        if !last {
            return Ok(());
        }
        match self.hub.request(request.id).await? {
            Some(request) => self.close_request(&request).await,
            None => Ok(()),
        }
    }

    /// Writes the profile of a task's cell once all of its repeats have ended. Repeated, it writes the same.
    pub async fn fold_cell(&self, request: &RequestDoc, task: &Task) -> Result<Option<Profile>, HubError> {
        let key = task.cell.key();
        let mut repeats = Vec::new();
        for repeat in 0..request.request.repeats {
            let id = request.id.task(&key, repeat);
            let read = if id == task.id { Some(task.clone()) } else { self.hub.task(id).await? };
            match read {
                Some(task) if task.state.is_terminal() => repeats.push(task),
                _ => return Ok(None),
            }
        }
        let mut measured = Vec::new();
        for task in &repeats {
            // What was finished of a cancelled task is worth having; else only a winner counts.
            let counts = |last: &Final| match task.winner {
                Some(winner) => last.attempt == winner,
                None => task.state == TaskState::Cancelled && matches!(last.outcome, Outcome::Done { .. }),
            };
            let Some(last) = self.hub.finals(task.id).await?.into_iter().rfind(counts) else { continue };
            let parts = self.hub.parts(task.id, last.attempt).await?.into_iter().map(|(part, _)| part).collect();
            measured.push(aggregate::Measured { repeat: task.repeat, last, parts });
        }
        let mut profile = aggregate::profile(request, &repeats, &measured, 1);
        let mut replaces = None;
        for _ in 0..SWAP_TRIES {
            if self.hub.put_profile(&profile, replaces).await? {
                return Ok(Some(profile));
            }
            if let Some(stored) = self.hub.profile(task.profile_id).await? {
                replaces = Some(stored.revision);
                if (Profile { revision: profile.revision, ..stored }) == profile {
                    return Ok(Some(profile));
                }
                profile.revision = replaces.map_or(1, |revision| revision + 1);
            }
        }
        Err(HubError::Failed(format!("profile {} was changed {SWAP_TRIES} times under its fold", task.profile_id)))
    }

    /// Cancels the tasks of a request that have not ended; gives how many.
    pub async fn cancel_tasks(&self, request: RequestId, reason: &str) -> Result<u64, HubError> {
        let states = TaskState::ALL.into_iter().filter(|state| !state.is_terminal()).collect();
        let mut cancelled = 0;
        for task in self.hub.tasks(&TaskFilter { request: Some(request), states, ..Default::default() }).await? {
            let step = self.step(task.id, |task, now| task.cancel(reason, now)).await?;
            cancelled += u64::from(matches!(step, Step::Stepped(_)));
        }
        Ok(cancelled)
    }

    /// Ends a request that cannot be expanded, with whatever an earlier try had inserted.
    pub async fn fail_request(&self, request: &RequestDoc, why: &Problem) -> Result<(), HubError> {
        tracing::warn!(request = %request.id, %why, "the request does not expand");
        self.cancel_tasks(request.id, &format!("the request does not expand: {why}")).await?;
        let (ended_at, error) = (Some(self.now()), Some(why.clone()));
        let failed = RequestDoc { state: RequestState::Failed, ended_at, error, ..request.clone() };
        self.hub.update_request(request, &failed).await?;
        self.forget(request.id);
        Ok(())
    }

    /// The request has ended.
    fn forget(&self, request: RequestId) {
        self.open.lock().expect("never poisoned: no panic while held").remove(&request);
        self.requests.lock().expect("never poisoned: no panic while held").remove(&request);
        self.changed(request);
    }

    /// Ends a request whose tasks have all ended, after each of its cells has a profile.
    pub async fn close_request(&self, request: &RequestDoc) -> Result<(), HubError> {
        let counts = self.hub.count_tasks(request.id).await?;
        let total: u64 = counts.values().sum();
        let ended: u64 = counts.iter().filter(|(state, _)| state.is_terminal()).map(|(_, n)| n).sum();
        if !request.expanded || total != request.tasks || ended != total {
            return Ok(());
        }
        let folded = self.hub.profile_ids(request.id).await?;
        if (folded.len() as u64) < request.cells {
            for task in self.hub.tasks(&TaskFilter { request: Some(request.id), ..Default::default() }).await? {
                if !folded.contains(&task.profile_id) {
                    self.fold_cell(request, &task).await?;
                }
            }
        }
        let count = |state| counts.get(&state).copied().unwrap_or(0);
        let state = match (count(TaskState::Done), count(TaskState::Cancelled)) {
            (done, _) if done == total => RequestState::Done,
            (_, cancelled) if cancelled > 0 => RequestState::Cancelled,
            (0, _) => RequestState::Failed, // or measured without a valid point
            _ => RequestState::Partial,
        };
        let ended = RequestDoc { state, ended_at: Some(self.now()), ..request.clone() };
        if self.hub.update_request(request, &ended).await? {
            tracing::info!(request = %request.id, ?state, "request ended");
        }
        self.forget(request.id);
        Ok(())
    }
}

/// What became of a transition.
pub enum Step {
    /// Written; the task as it is now.
    Stepped(Box<Task>),
    /// Not allowed; the task as it was.
    Refused(Refusal, Box<Task>),
    /// No such task.
    Unknown,
}
