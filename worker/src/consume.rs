//! One slot: consumes hints, claims, has the task measured, journals, publishes, and settles the delivery.
//!
//! The delivery is the slot's token: it is held while the task runs and acknowledged once the result is confirmed.
//! A result that is safe in the journal is published while the slot already claims its next task.
//! What was dropped on the way (a refused claim, a stale hint) the coordinator's sweep finds again.

use crate::{
    Context,
    attempts::Attempt,
    coordinator::patiently,
    engine::{Deployment, Place},
    journal::{self, Entry},
    patience::Backoff,
    publish::{self, FAREWELL},
    register::Membership,
    session,
};
use futures::FutureExt;
use modelmeter_common::{
    Code, Problem, SCHEMA_VERSION, TaskId, Timestamp,
    broker::{BrokerError, Consumer, Delivery},
    part::{Final, Outcome, Part},
    task::{Assignment, MAX_CLAIMS_IN_A_ROW},
    wire,
};
use modelmeter_proto::control::{
    ClaimNextRequest, ClaimReply, ClaimRequest, HandBackRequest, claim_reply, refused::Why,
};
use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinHandle};

/// How long a deployment waits for the next task.
const IDLE: Duration = Duration::from_secs(10);

/// A slot at work.
pub(crate) struct Slot {
    pub context: Arc<Context>,
    pub place: Arc<Place>,
    pub membership: watch::Receiver<Membership>,
    /// The engine that served last, while it may serve the next task too.
    pub deployment: Option<Deployment>,
    /// The result of the task before, on its way: at most one.
    pub publishing: Option<JoinHandle<()>>,
    /// After a busy port, from the first on to the next task that finds its ports free.
    pub busy: Backoff,
}

/// How one attempt went.
enum Ended {
    /// Its result is in the journal, or at least in hand.
    Measured(Attempt, Entry),
    /// The coordinator does not want it any more.
    Dropped,
    /// It went back, since the worker stops.
    HandedBack,
    /// It went back, since a port is busy: not to be taken again at once.
    Busy,
    /// The worker stops; its lease must run out, or its journal be replayed.
    Left,
}

impl Slot {
    /// Works until the worker stops or the broker is closed.
    pub async fn run(mut self) {
        let stop = self.context.stop.clone();
        while !stop.is_cancelled() {
            let queue = self.membership.borrow_and_update().queues[self.place.index as usize].clone();
            let consumer = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                consumer = consumer(&self.context, &queue) => consumer,
            };
            let Some(mut consumer) = consumer else { break };
            if let Err(closed) = self.consume(consumer.as_mut()).await {
                if !stop.is_cancelled() {
                    tracing::error!(error = %closed, slot = self.place.index, "the slot has lost its queue");
                }
                break;
            }
        }
        self.published().await;
        self.stop_engine().await;
    }

    /// Takes deliveries until the worker stops or its queue is another.
    async fn consume(&mut self, consumer: &mut dyn Consumer) -> Result<(), BrokerError> {
        let stop = self.context.stop.clone();
        loop {
            let delivery = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                changed = self.membership.changed() => return changed.map_err(|_| BrokerError::Closed),
                delivery = consumer.next() => delivery?,
                () = tokio::time::sleep(IDLE), if self.deployment.is_some() => {
                    self.stop_engine().await;
                    continue;
                }
            };
            self.handle(delivery).await;
        }
    }

    async fn handle(&mut self, delivery: Delivery) {
        let task = match wire::decode::<wire::Hint>(&delivery.body) {
            Ok(hint) => hint.task_id,
            Err(error) => {
                tracing::warn!(%error, "a message on a task queue is none of ours: to quarantine");
                return publish::settled(delivery.reject().await);
            }
        };
        let stop = self.context.stop.clone();
        let claimed = tokio::select! {
            biased;
            () = stop.cancelled() => return publish::settled(delivery.requeue().await),
            claimed = self.claim(task) => claimed,
        };
        match claimed {
            Some(assignment) => match self.attempt(&assignment).await {
                Ended::Measured(attempt, entry) => {
                    self.publish(attempt, entry, Some(delivery)).await;
                    self.claim_on(task).await;
                }
                Ended::Left => publish::settled(delivery.requeue().await),
                Ended::Busy => {
                    // Meanwhile the delivery is held, so that this slot is not given the same task again.
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = self.busy.pause() => {}
                    }
                    publish::settled(delivery.ack().await);
                }
                Ended::Dropped | Ended::HandedBack => publish::settled(delivery.ack().await),
            },
            None => publish::settled(delivery.ack().await),
        }
    }

    /// Takes further tasks of the same deployment, as long as it serves.
    async fn claim_on(&mut self, mut after: TaskId) {
        for _ in 0..MAX_CLAIMS_IN_A_ROW {
            if self.context.stop.is_cancelled() || !self.deployment.as_ref().is_some_and(Deployment::is_alive) {
                return;
            }
            let request = ClaimNextRequest {
                after_task_id: after.to_string(),
                worker: self.context.name.clone(),
                incarnation: self.context.incarnation.clone(),
                slot: self.place.index,
            };
            // Not insisted on: whatever is left comes by the queue.
            let Ok(reply) = self.context.coordinator.claim_next(&request).await else { return };
            let Ok(assignment) = granted(reply) else { return };
            after = assignment.task_id;
            let Ended::Measured(attempt, entry) = self.attempt(&assignment).await else { return };
            self.publish(attempt, entry, None).await;
        }
    }

    /// Claims a task; none if it is not ours to run. Asks for as long as no coordinator answers.
    async fn claim(&self, task: TaskId) -> Option<Assignment> {
        let context = &self.context;
        let request = ClaimRequest {
            task_id: task.to_string(),
            worker: context.name.clone(),
            incarnation: context.incarnation.clone(),
            slot: self.place.index,
            claim_id: uuid::Uuid::new_v4().to_string(),
        };
        let mut backoff = Backoff::default();
        loop {
            match patiently(|| context.coordinator.claim(&request)).await.and_then(granted_or_why) {
                Ok(Ok(assignment)) => return Some(assignment),
                Ok(Err(Why::StaleWorker)) => {
                    // The renew loop registers anew; then this claim is of the registered incarnation.
                    context.renew_now.notify_one();
                    backoff.pause().await;
                }
                Ok(Err(why)) => {
                    tracing::debug!(%task, ?why, "not ours to run");
                    return None;
                }
                Err(problem) => {
                    tracing::warn!(%task, %problem, "cannot claim");
                    return None;
                }
            }
        }
    }

    /// One attempt from its grant to its end.
    async fn attempt(&mut self, assignment: &Assignment) -> Ended {
        let attempt = self.context.attempts.begin(assignment.task_id, assignment.attempt);
        let started_at = Timestamp::now();
        let (context, place) = (self.context.clone(), self.place.clone());
        let stop = context.stop.clone();
        let finished = session::Finished::default();
        let session = session::measure(&context, &place, &mut self.deployment, assignment, &attempt, &finished);
        let measured = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            () = attempt.dropped() => None,
            measured = AssertUnwindSafe(session).catch_unwind() => Some(measured.unwrap_or_else(|_| Err(defect()))),
        };
        let measured = match measured {
            Some(measured) => measured,
            None => {
                self.stop_engine().await;
                // What was finished before a request was cancelled is kept; a worker that stops gives its task back whole.
                match finished.take().filter(|_| !stop.is_cancelled()) {
                    Some(done) => Ok(done),
                    None => return self.give_up(&attempt).await,
                }
            }
        };
        if let Err(problem) = &measured {
            let said = problem.message.lines().next().unwrap_or_default();
            // What ends the task is told as its result.
            match problem.code.retryable() {
                true => tracing::warn!(task = %attempt.task, attempt = attempt.number, "the attempt failed: {said}"),
                false => tracing::info!(task = %attempt.task, attempt = attempt.number, "the task failed: {said}"),
            }
            // Whatever it was, the next task shall not inherit it.
            self.stop_engine().await;
            if problem.code == Code::Busy {
                return self.hand_back(&attempt, Some(problem)).await;
            }
        }
        self.busy = Backoff::default();
        let head = Head { assignment, worker: &context.name, place: &place, started_at };
        match head.journal(&context, measured).await {
            Ok(entry) => {
                attempt.journaled();
                Ended::Measured(attempt, entry)
            }
            Err(problem) => {
                tracing::error!(task = %attempt.task, %problem, "the result cannot even be encoded");
                attempt.forget();
                Ended::Left
            }
        }
    }

    /// Ends an attempt that was interrupted: the worker stops, or the coordinator does not want it.
    async fn give_up(&self, attempt: &Attempt) -> Ended {
        if self.context.stop.is_cancelled() {
            return self.hand_back(attempt, None).await;
        }
        attempt.forget();
        tracing::info!(task = %attempt.task, attempt = attempt.number, "stopped: it is not wanted any more");
        Ended::Dropped
    }

    /// Gives an attempt back unmeasured: because of this problem, or because the worker stops.
    async fn hand_back(&self, attempt: &Attempt, problem: Option<&Problem>) -> Ended {
        attempt.forget();
        let (context, name) = (&self.context, &self.context.name);
        let request = HandBackRequest {
            worker: name.clone(),
            incarnation: context.incarnation.clone(),
            task_id: attempt.task.to_string(),
            attempt: attempt.number,
            reason: match problem {
                Some(problem) => format!("worker {name} gave it back: {}", problem.message),
                None => format!("worker {name} stopped"),
            },
            problem_json: problem.map(|p| serde_json::to_string(p).expect("plain JSON")).unwrap_or_default(),
        };
        let handed_back = tokio::select! {
            done = patiently(|| context.coordinator.hand_back(&request)) => done.is_ok(),
            () = async { context.stop.cancelled().await; tokio::time::sleep(FAREWELL).await } => false,
        };
        match problem {
            _ if !handed_back => Ended::Left,
            Some(_) => Ended::Busy,
            None => Ended::HandedBack,
        }
    }

    /// Has a result published, after the one before, and its delivery settled.
    async fn publish(&mut self, attempt: Attempt, entry: Entry, delivery: Option<Delivery>) {
        self.published().await;
        let queue = self.membership.borrow().results.clone();
        self.publishing = Some(tokio::spawn(publish::deliver(self.context.clone(), queue, attempt, entry, delivery)));
    }

    /// Waits until the result of the task before is confirmed, or left to the journal because the worker stops.
    async fn published(&mut self) {
        if let Some(Err(error)) = async { Some(self.publishing.take()?.await) }.await {
            tracing::error!(%error, slot = self.place.index, "publishing ended; the journal has the result");
        }
    }

    async fn stop_engine(&mut self) {
        if let Some(deployment) = self.deployment.take() {
            deployment.stop().await;
        }
    }
}

/// A panic fails its attempt, and nothing else: a slot that died with a lease in hand would hold it for ever.
fn defect() -> Problem {
    Problem::new(Code::Internal, "the measurement ended with a panic").with_hint("the worker's log says where")
}

/// What a final says besides its outcome.
struct Head<'a> {
    assignment: &'a Assignment,
    worker: &'a str,
    place: &'a Place,
    started_at: Timestamp,
}

impl Head<'_> {
    /// Puts the result in the journal. One that finds no room there becomes a failure that says so, and is
    /// published unjournaled if even that finds none.
    async fn journal(&self, context: &Arc<Context>, measured: session::Measured) -> Result<Entry, Problem> {
        let entry = measured.and_then(|done| self.done(done));
        let entry = match entry {
            Ok(entry) => write(context, entry).await,
            Err(problem) => Err(problem),
        };
        match entry {
            Ok(entry) => Ok(entry),
            Err(problem) => {
                let failed = self.failed(problem)?;
                Ok(write(context, failed.clone()).await.unwrap_or(failed))
            }
        }
    }

    fn done(&self, done: session::Done) -> Result<Entry, Problem> {
        let Assignment { request_id, task_id, attempt, .. } = *self.assignment;
        let parts = (0..).zip(done.points).map(|(seq, point)| {
            journal::encode(&Part { schema_version: SCHEMA_VERSION, request_id, task_id, attempt, seq, point })
        });
        let parts = parts.collect::<Result<Vec<_>, _>>()?;
        let hashes = parts.iter().map(|part| wire::sha256_hex(part)).collect();
        Entry::new(parts, &self.last(Outcome::Done { parts: hashes, deployment: done.deployment }))
    }

    fn failed(&self, error: Problem) -> Result<Entry, Problem> {
        Entry::new(Vec::new(), &self.last(Outcome::Failed { error }))
    }

    fn last(&self, outcome: Outcome) -> Final {
        Final {
            schema_version: SCHEMA_VERSION,
            request_id: self.assignment.request_id,
            task_id: self.assignment.task_id,
            attempt: self.assignment.attempt,
            worker: self.worker.to_owned(),
            device: self.place.device.clone(),
            started_at: self.started_at,
            ended_at: Timestamp::now(),
            outcome,
        }
    }
}

async fn write(context: &Arc<Context>, entry: Entry) -> Result<Entry, Problem> {
    let context = context.clone();
    let written = tokio::task::spawn_blocking(move || context.journal.write(&entry).map(|()| entry));
    written.await.map_err(|e| Problem::new(Code::Internal, format!("the journal failed: {e}")))?
}

/// A consumer of the slot's queue; none once the broker is closed.
async fn consumer(context: &Context, queue: &str) -> Option<Box<dyn Consumer>> {
    let mut backoff = Backoff::default();
    loop {
        let consumer = match context.broker.declare(queue).await {
            Ok(()) => context.broker.consume(queue, 1).await,
            Err(error) => Err(error),
        };
        match consumer {
            Ok(consumer) => return Some(consumer),
            Err(BrokerError::Closed) => return None,
            Err(error) => tracing::warn!(%error, queue, "cannot consume, trying again"),
        }
        backoff.pause().await;
    }
}

fn granted_or_why(reply: ClaimReply) -> Result<Result<Assignment, Why>, Problem> {
    let unreadable =
        |what: String| Problem::new(Code::Internal, format!("the coordinator's grant cannot be read: {what}"));
    match reply.outcome {
        Some(claim_reply::Outcome::Granted(grant)) => {
            serde_json::from_str(&grant.task_json).map(Ok).map_err(|e| unreadable(e.to_string()))
        }
        Some(claim_reply::Outcome::Refused(refused)) => Ok(Err(refused.why())),
        None => Err(unreadable("it is empty".into())),
    }
}

fn granted(reply: ClaimReply) -> Result<Assignment, Problem> {
    let refused = |why: Why| Problem::new(Code::NotFound, format!("not granted: {why:?}"));
    granted_or_why(reply).and_then(|granted| granted.map_err(refused))
}
