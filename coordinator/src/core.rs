//! What the coordinator's loops and its services share: the two seams, the clock, and what this process remembers of the
//! hub. The hub is the truth; everything here can be read from it again.

use crate::{
    Options,
    bulletin::{Note, Outbox},
    clock::Clock,
    events::Feeds,
    hub::{Hub, HubError},
    plan::pool::{self, Pool},
};
use modelmeter_common::{
    Problem, RequestId, TaskId, Timestamp, broker::Broker, request::RequestDoc, status::WorkerDoc,
};
use serde::Serialize;
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, atomic::AtomicUsize},
    time::Duration,
};
use tokio::sync::{Notify, watch};

/// Requests that may run at a time: the loops look at each of them in every round.
pub const MAX_REQUESTS: u32 = 1000;
/// Tries of one compare-and-swap before it is left to the sweep, or to the caller.
pub const SWAP_TRIES: u32 = 16;
/// Age at which the list of workers, which each claim needs, is read again from the hub.
const WORKERS_AGE: Duration = Duration::from_millis(500);
/// A worker that was silent for this many leases does not count as live.
const SILENT_LEASES: u32 = 2;
/// Most stored requests that are remembered; another coordinator may end them without notice.
const REMEMBERED_REQUESTS: usize = 2 * MAX_REQUESTS as usize;

/// Whether this coordinator leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Leadership {
    /// This coordinator answers users and workers; another one leads, or none yet.
    Follower,
    /// This coordinator dispatches, collects and sweeps as well.
    Leader {
        /// Raised with each new leader of the hub.
        epoch: u64,
    },
}

/// The state that all parts of the coordinator share.
pub struct Core {
    /// The broker, for hints and results.
    pub broker: Arc<dyn Broker>,
    /// The hub, which is the truth.
    pub hub: Arc<dyn Hub>,
    /// The clock of all rules with time.
    pub clock: Arc<dyn Clock>,
    /// How long a claim holds without being renewed.
    pub lease: Duration,
    /// Wakes the dispatcher of this coordinator, where it leads.
    pub work: Notify,
    /// Counter of the slots' requests for a next task.
    pub turn: AtomicUsize,
    /// Feeds of events for followers of requests.
    pub feeds: Feeds,
    /// Notes for other coordinators.
    pub outbox: Outbox,
    /// Whether no other coordinator changes anything in this hub.
    pub is_alone: bool,
    /// Whether this coordinator leads.
    pub leadership: watch::Sender<Leadership>,
    stuck: Mutex<Option<String>>,
    /// The last reading of the hub's clock, and this process's clock at that moment.
    read: Mutex<(Timestamp, Duration)>,
    listens_since: Mutex<Timestamp>,
    workers: Mutex<Option<(Duration, Vec<WorkerDoc>)>>,
    /// Attempts with a final that came before all of their parts.
    pending: Mutex<HashSet<(TaskId, u32)>>,
    /// Number of tasks of a request that are not known to have ended; at zero the hub is asked.
    open: Mutex<HashMap<RequestId, u64>>,
    requests: Mutex<HashMap<RequestId, Arc<RequestDoc>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("never poisoned: no panic while held")
}

impl Core {
    /// Reads the hub's clock, and remembers nothing else yet.
    pub async fn new(options: Options) -> Result<Arc<Self>, Problem> {
        let now = options.clock.of_hub(&*options.hub).await?;
        Ok(Arc::new(Self {
            broker: options.broker,
            hub: options.hub,
            lease: options.lease,
            work: Notify::new(),
            turn: AtomicUsize::new(0),
            feeds: Feeds::default(),
            outbox: Outbox::new(!options.is_alone && !options.read_only),
            is_alone: options.is_alone,
            leadership: watch::Sender::new(Leadership::Follower),
            stuck: Mutex::default(),
            read: Mutex::new((now, options.clock.elapsed())),
            clock: options.clock,
            listens_since: Mutex::new(now),
            workers: Mutex::default(),
            pending: Mutex::default(),
            open: Mutex::default(),
            requests: Mutex::default(),
        }))
    }

    /// The hub's clock, carried on by this process's own between readings.
    pub fn now(&self) -> Timestamp {
        let (read, at) = *locked(&self.read);
        read.plus(self.clock.elapsed().saturating_sub(at))
    }

    /// Reads the hub's clock anew.
    pub async fn read_clock(&self) -> Result<(), HubError> {
        let now = self.clock.of_hub(&*self.hub).await?;
        *locked(&self.read) = (now, self.clock.elapsed());
        Ok(())
    }

    /// The time since which workers could renew without a break.
    pub fn listens_since(&self) -> Timestamp {
        *locked(&self.listens_since)
    }

    /// Whether silence proves a worker's absence: every live worker has had a lease's time to renew.
    pub fn has_listened(&self) -> bool {
        self.now().since(self.listens_since()) >= self.lease
    }

    /// Restarts the time for workers to renew, after a time in which none could.
    pub fn listen_anew(&self) {
        *locked(&self.listens_since) = self.now();
    }

    /// Wakes the dispatcher, also one of another coordinator: something may be queued.
    pub fn wake(&self) {
        self.work.notify_one();
        if *self.leadership.borrow() == Leadership::Follower {
            self.outbox.tell(Note::Work);
        }
    }

    /// The reason why the dispatcher cannot queue anything now.
    pub fn stuck(&self) -> Option<String> {
        locked(&self.stuck).clone()
    }

    /// Sets the reason why the dispatcher cannot queue anything; none when it can.
    pub fn set_stuck(&self, why: Option<String>) {
        *locked(&self.stuck) = why;
    }

    /// All registered workers, as they were at most [`WORKERS_AGE`] ago.
    pub async fn workers(&self) -> Result<Vec<WorkerDoc>, HubError> {
        let known = locked(&self.workers).clone();
        if let Some((_, workers)) = known.filter(|(read, _)| self.clock.elapsed().saturating_sub(*read) < WORKERS_AGE) {
            return Ok(workers);
        }
        let workers = self.hub.workers().await?;
        *locked(&self.workers) = Some((self.clock.elapsed(), workers.clone()));
        Ok(workers)
    }

    /// Stores a worker that registered or was seen.
    pub async fn put_worker(&self, worker: &WorkerDoc) -> Result<(), HubError> {
        self.hub.put_worker(worker).await?;
        self.forget_workers();
        Ok(())
    }

    /// Forgets the registered workers, which are read again then.
    pub fn forget_workers(&self) {
        *locked(&self.workers) = None;
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

    /// A request as it was stored: all fields but its progress, which changes.
    pub async fn stored_request(&self, id: RequestId) -> Result<Option<Arc<RequestDoc>>, HubError> {
        let known = locked(&self.requests).get(&id).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let read = self.hub.request(id).await?.map(Arc::new);
        if let Some(request) = &read {
            let mut requests = locked(&self.requests);
            if requests.len() >= REMEMBERED_REQUESTS {
                requests.clear();
            }
            requests.insert(id, request.clone());
        }
        Ok(read)
    }

    /// Remembers that an attempt's final came: whichever of its parts is last settles it.
    pub fn expect_parts(&self, task: TaskId, attempt: u32) {
        locked(&self.pending).insert((task, attempt));
    }

    /// Whether an attempt's final came before all of its parts.
    pub fn expects_parts(&self, task: TaskId, attempt: u32) -> bool {
        locked(&self.pending).contains(&(task, attempt))
    }

    /// Forgets one attempt that was settled.
    pub fn attempt_settled(&self, task: TaskId, attempt: u32) {
        locked(&self.pending).remove(&(task, attempt));
    }

    /// Forgets all attempts of a task that ended.
    pub fn task_settled(&self, task: TaskId) {
        locked(&self.pending).retain(|(id, _)| *id != task);
    }

    /// Counts down the tasks of a request that are not known to have ended; the first time the hub counts them. Gives how
    /// many are left, at the least.
    pub async fn count_down(&self, request: RequestId) -> Result<u64, HubError> {
        if let Some(left) = locked(&self.open).get_mut(&request) {
            *left = left.saturating_sub(1);
            return Ok(*left);
        }
        let counts = self.hub.count_tasks(request).await?;
        let left = counts.iter().filter(|(state, _)| !state.is_terminal()).map(|(_, n)| n).sum();
        locked(&self.open).insert(request, left);
        Ok(left)
    }

    /// Forgets how many tasks of a request are left: another coordinator ended one.
    pub fn count_again(&self, request: RequestId) {
        locked(&self.open).remove(&request);
    }

    /// Forgets a request that has ended.
    pub fn forget(&self, request: RequestId) {
        locked(&self.open).remove(&request);
        locked(&self.requests).remove(&request);
    }

    /// Forgets everything that another coordinator may have changed while it led.
    pub fn forget_all(&self) {
        locked(&self.open).clear();
        locked(&self.pending).clear();
        locked(&self.requests).clear();
    }
}
