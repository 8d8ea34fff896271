//! Rules with time, in simulated time: leases, deadlines, deaths, and which of two coordinators leads.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "the other tests use the rest")]
mod support;

use modelmeter_common::{
    RequestId, Timestamp,
    request::RequestState,
    task::{Assignment, MAX_DEATHS, TaskState},
};
use modelmeter_coordinator::{Handle, clock::Clock, core::Leadership};
use modelmeter_proto::control::{StatusRequest, attempt_fate::Fate};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use support::{House, clock::Simulated};

const LEASE: Duration = Duration::from_secs(30);
/// A leader renews its lease as often.
const STEP: Duration = Duration::from_secs(10);
/// Of real time: nothing here takes nearly as long.
const LIMIT: Duration = Duration::from_secs(30);
/// Between two looks, of real time.
const LOOK: Duration = Duration::from_millis(5);
/// What passes between two looks where time passes slowly.
const TICK: Duration = Duration::from_millis(20);
const BEGAN: Timestamp = Timestamp(1_700_000_000_000);

/// A coordinator whose time a test lets pass.
struct Timed {
    house: House,
    clock: Arc<Simulated>,
}

impl Timed {
    async fn build() -> Self {
        let clock = Arc::new(Simulated::at(BEGAN));
        Self { house: House::with_clock(LEASE, clock.clone()).await, clock }
    }

    fn now(&self) -> Timestamp {
        BEGAN.plus(self.clock.elapsed())
    }

    /// Lets time pass. Whoever leads has renewed its lease then, as it does long before it ends.
    async fn advance(&mut self, by: Duration) {
        self.clock.advance(by);
        let (now, hub) = (self.now(), self.house.hub.clone());
        eventually("the leader renews its lease", async || {
            let lead = hub.lead().await.unwrap();
            lead.is_some_and(|lead| lead.expires_at.since(now) >= LEASE / 2).then_some(())
        })
        .await;
    }

    /// Lets time pass until `done`, in steps until `most` and slowly from then on; gives how much it took.
    async fn pass(&mut self, most: Duration, mut done: impl AsyncFnMut(&mut House) -> bool) -> Duration {
        let (began, real) = (self.clock.elapsed(), Instant::now());
        while !done(&mut self.house).await {
            assert!(real.elapsed() < LIMIT, "it takes too long");
            let is_early = self.clock.elapsed() - began < most;
            self.advance(if is_early { STEP } else { TICK }).await;
            tokio::time::sleep(LOOK).await;
        }
        self.clock.elapsed() - began
    }

    async fn state(&mut self, id: RequestId) -> TaskState {
        self.house.status(id).await.cells[0].state
    }

    /// The worker is seen again and claims, while time passes slowly.
    async fn claim(&mut self) -> Assignment {
        let clock = self.clock.clone();
        let time = async {
            loop {
                clock.advance(TICK);
                tokio::time::sleep(LOOK).await;
            }
        };
        let house = &mut self.house;
        let claimed = async {
            loop {
                house.register("one").await;
                if let Ok(task) = house.claim("one").await {
                    return task;
                }
            }
        };
        tokio::select! {
            task = claimed => task,
            () = time => unreachable!("time passes for ever"),
        }
    }
}

async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(began.elapsed() < LIMIT, "{what}");
        tokio::time::sleep(LOOK).await;
    }
}

#[tokio::test]
async fn a_lease_that_is_renewed_holds_and_one_that_is_not_ends() {
    let mut timed = Timed::build().await;
    let id = timed.house.submit(|request| request.batch_sizes = vec![1]).await;
    let task = timed.claim().await;
    for _ in 0..12 {
        timed.advance(STEP).await;
        assert_eq!(timed.house.fate("one", &task).await, Fate::Renewed);
    }
    let took = timed.pass(LEASE * 3, async |house| house.status(id).await.cells[0].state != TaskState::Claimed).await;
    assert!((LEASE..=LEASE + STEP).contains(&took), "it ended after {took:?}");
    assert_eq!(timed.house.fate("one", &task).await, Fate::Lost);
    let again = timed.claim().await;
    assert_eq!(again.attempt, task.attempt + 1);
    timed.house.measure(&again, 10.0).await;
    assert_eq!(timed.house.ended(id).await.state, RequestState::Done);
    timed.house.close().await;
}

#[tokio::test]
async fn a_task_under_which_workers_die_is_given_up() {
    let mut timed = Timed::build().await;
    let id = timed.house.submit(|request| request.batch_sizes = vec![1]).await;
    for death in 1..=MAX_DEATHS {
        let task = timed.claim().await;
        assert_eq!(task.attempt, death);
        timed.pass(LEASE * 3, async |house| house.status(id).await.cells[0].state != TaskState::Claimed).await;
    }
    assert_eq!(timed.state(id).await, TaskState::Failed);
    assert_eq!(timed.house.ended(id).await.state, RequestState::Failed);
    timed.house.close().await;
}

#[tokio::test]
async fn what_no_slot_can_run_waits_until_the_deadline() {
    let mut timed = Timed::build().await;
    let deadline = Duration::from_secs(600);
    let id = timed
        .house
        .submit(|request| {
            (request.engines, request.batch_sizes) = (vec!["onnx".into()], vec![1]);
            request.deadline_ms = deadline.as_millis() as u64;
        })
        .await;
    let took =
        timed.pass(deadline + STEP, async |house| house.status(id).await.cells[0].state != TaskState::Waiting).await;
    assert!((deadline..=deadline + STEP * 2).contains(&took), "it was given up after {took:?}");
    let reason = timed.house.ended(id).await.cells[0].reason.clone().unwrap();
    assert!(reason.contains("at the request's deadline"), "{reason}");
    timed.house.close().await;
}

async fn leads(handle: &Handle) -> u64 {
    eventually("it leads", async || match handle.leadership() {
        Leadership::Leader { epoch } => Some(epoch),
        Leadership::Follower => None,
    })
    .await
}

#[tokio::test]
async fn of_two_coordinators_one_leads_and_the_other_when_it_is_gone() {
    let mut timed = Timed::build().await;
    assert_eq!(leads(timed.house.coordinator.as_ref().unwrap()).await, 1);
    let (other, control, work) = timed.house.another(LEASE).await;
    for _ in 0..12 {
        timed.advance(STEP).await;
        assert_eq!(other.leadership(), Leadership::Follower, "the leader renews its lease");
    }

    // The follower takes requests and serves workers; the leader does the rest.
    (timed.house.control, timed.house.work) = (control, work);
    let id = timed.house.submit(|request| request.batch_sizes = vec![1, 2, 4]).await;
    timed.house.register("one").await;
    for _ in 0..2 {
        let task = timed.claim().await;
        timed.house.measure(&task, 10.0).await;
    }
    assert_eq!(other.leadership(), Leadership::Follower);
    timed.house.kill();
    let killed = timed.clock.elapsed();
    let hub = timed.house.hub.clone();
    while hub.lead().await.unwrap().unwrap().epoch == 1 {
        assert!(timed.clock.elapsed() - killed < LEASE * 2, "nobody leads after two leases");
        timed.clock.advance(STEP);
        let (now, took) = (timed.now(), timed.clock.elapsed() - killed);
        eventually("a lease that ended is taken", async || {
            let lead = hub.lead().await.unwrap().unwrap();
            // The follower looks once in a step, so that it may see the end of the lease a step late.
            (lead.expires_at > now || took < LEASE + STEP).then_some(())
        })
        .await;
    }
    assert_eq!(leads(&other).await, 2);
    let task = timed.claim().await;
    timed.house.measure(&task, 10.0).await;
    assert_eq!(timed.house.ended(id).await.state, RequestState::Done);
    let asked = StatusRequest { request_id: id.to_string() };
    assert!(timed.house.control.status(asked).await.is_ok());
    other.stop().await;

    // One that was stopped gave its lease up: the next leads at once.
    let (next, ..) = timed.house.another(LEASE).await;
    assert_eq!(leads(&next).await, 3);
    next.stop().await;
}
