//! Random sequences of steps: what must hold of a task whatever happens in whatever order.

use super::*;
use crate::model::{Datatype, TensorShape};
use std::collections::HashMap;
use uuid::Uuid;

const SEQUENCES: u64 = 3_000;
const STEPS: u32 = 80;
const LEASE: Duration = Duration::from_secs(30);

/// What happens to the task: a transition with whatever a caller may say, late, doubled or wrong.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Event {
    Queue,
    Unqueue,
    Claim,
    Adopt,
    Renew,
    HandBack,
    Lose,
    Fail,
    Complete,
    GiveUp,
    Cancel,
}

/// Ends are rarer than what happens in between, so that tasks live long enough.
const EVENTS: [Event; 22] = [
    Event::Queue,
    Event::Queue,
    Event::Queue,
    Event::Unqueue,
    Event::Claim,
    Event::Claim,
    Event::Claim,
    Event::Claim,
    Event::Claim,
    Event::Adopt,
    Event::Renew,
    Event::Renew,
    Event::Renew,
    Event::HandBack,
    Event::Lose,
    Event::Lose,
    Event::Lose,
    Event::Fail,
    Event::Fail,
    Event::Complete,
    Event::GiveUp,
    Event::Cancel,
];

/// Random numbers of a seed. Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014
/// (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

fn task(engine: &str) -> Task {
    let cell = Cell {
        model: ModelRef { name: "m".into(), version: "1".into() },
        artifact: None,
        engine: engine.into(),
        engine_settings: BTreeMap::new(),
        device_class: "cpu".into(),
        batch_size: 1,
        inputs: vec![TensorShape { name: "x".into(), dtype: Datatype::Fp32, shape: vec![1], batch_axis: Some(0) }],
        inspector: DEFAULT_INSPECTOR.into(),
    };
    Task::new(RequestId(Uuid::from_u128(1)), cell, 0, Timestamp(0))
}

fn lease(dice: &mut Dice, now: Timestamp) -> Lease {
    Lease {
        worker: dice.one_of(&["v", "w"]).to_owned(),
        incarnation: dice.one_of(&["one", "two"]).into(),
        slot: dice.one_of(&[0, 1]),
        claim_id: dice.one_of(&["", "a", "b"]).to_owned(),
        expires_at: now.plus(LEASE),
    }
}

fn happens(event: Event, task: &Task, dice: &mut Dice, now: Timestamp) -> Result<Task, Refusal> {
    // Mostly the attempt that is on, sometimes one of before or one that never was.
    let attempt = if dice.below(5) > 0 { task.attempt } else { dice.below(u64::from(task.attempt) + 2) as u32 };
    let codes = [Code::EngineFailed, Code::DeadlineExceeded, Code::Busy, Code::EngineFailed, Code::BadResponse];
    let problem = Problem::new(dice.one_of(&codes), "it failed");
    let claim = lease(dice, now);
    match event {
        Event::Queue => task.queue(&"pool".into(), now),
        Event::Unqueue => task.unqueue("its hint was lost", now),
        Event::Claim => task.claim(&"pool".into(), claim, now),
        Event::Adopt => task.adopt(attempt, &claim.incarnation, now, LEASE),
        Event::Renew => task.renew(attempt, &claim.incarnation, now, LEASE, "warming up"),
        Event::HandBack => task.hand_back(attempt, "it stops", now),
        Event::Lose => task.lose(attempt, now),
        Event::Fail => task.fail(attempt, problem, now),
        Event::Complete => task.complete(attempt, dice.below(10) < 7, now),
        Event::GiveUp => task.give_up(problem, now),
        Event::Cancel => task.cancel("cancelled by the user", now),
    }
}

/// What one accepted step may change.
fn check_step(event: Event, old: &Task, new: &Task, now: Timestamp) {
    let told = format!("{event:?}: {old:#?}\nto {new:#?}");
    assert!(!old.state.is_terminal(), "a terminal state changed: {told}");
    assert!(new.revision > old.revision, "{told}");
    let same = (old.id, old.request_id, old.profile_id, old.repeat, old.order);
    assert_eq!((new.id, new.request_id, new.profile_id, new.repeat, new.order), same, "{told}");
    assert_eq!(new.cell, old.cell, "{told}");
    assert_eq!(new.since_at, if new.state == old.state { old.since_at } else { now }, "{told}");

    let granted = u32::from(old.state != TaskState::Claimed && new.state == TaskState::Claimed);
    assert_eq!(new.attempt, old.attempt + granted, "each grant is an attempt, and nothing else: {told}");
    assert!(new.failures + new.deaths <= old.failures + old.deaths + 1, "{told}");
    assert!(new.failures <= MAX_FAILURES && new.deaths <= MAX_DEATHS, "{told}");
    if matches!((new.failures, new.deaths), (MAX_FAILURES, _) | (_, MAX_DEATHS)) {
        assert!(new.state.is_terminal(), "no attempt is left: {told}");
    }

    assert_eq!(new.lease.is_some(), new.state == TaskState::Claimed, "{told}");
    match new.state {
        TaskState::Waiting => assert!(new.pool.is_none() && new.winner.is_none(), "{told}"),
        TaskState::Queued | TaskState::Claimed => assert!(new.pool.is_some() && new.winner.is_none(), "{told}"),
        TaskState::Done | TaskState::Invalid => {
            assert!(
                new.winner.is_some_and(|winner| (1..=new.attempt).contains(&winner)) && new.error.is_none(),
                "{told}"
            );
        }
        TaskState::Failed | TaskState::Cancelled => assert!(new.winner.is_none() && new.error.is_some(), "{told}"),
    }
}

#[test]
fn whatever_happens_in_whatever_order_a_task_keeps_its_rules() {
    let mut accepted: HashMap<Event, u32> = HashMap::new();
    let mut ends: HashMap<TaskState, u32> = HashMap::new();
    for seed in 0..SEQUENCES {
        let mut dice = Dice(seed);
        let mut task = task(if seed % 4 == 0 { ENDPOINT } else { "rten" });
        let mut now = Timestamp(0);
        // The slot that each attempt was granted to, and attempts that were given back.
        let (mut holders, mut given_back) = (HashMap::new(), 0);
        for _ in 0..STEPS {
            now = now.plus(Duration::from_millis(dice.below(40_000)));
            let event = dice.one_of(&EVENTS);
            let new = match happens(event, &task, &mut dice, now) {
                Ok(new) => new,
                Err(Refusal::Terminal) => {
                    assert!(task.state.is_terminal(), "{event:?} says that the task has ended: {task:#?}");
                    continue;
                }
                Err(_) => {
                    assert!(!task.state.is_terminal(), "{event:?} does not say that the task has ended: {task:#?}");
                    continue;
                }
            };
            check_step(event, &task, &new, now);
            given_back += u32::from(event == Event::HandBack);
            if let Some(lease) = &new.lease {
                let holder = (lease.worker.clone(), lease.slot);
                let first = holders.entry(new.attempt).or_insert_with(|| holder.clone());
                assert!(*first == holder, "attempt {} has two holders, seed {seed}", new.attempt);
                assert!(lease.expires_at == now.plus(LEASE), "a step of the holder extends its lease");
            }
            // Each attempt but the last has failed, lost its worker or was given back.
            let over = new.failures + new.deaths + given_back;
            assert!((over..=over + 1).contains(&new.attempt), "attempts without an end, seed {seed}: {new:#?}");
            *accepted.entry(event).or_default() += 1;
            task = new;
        }
        assert!(task.state.is_terminal() || task.cancel("it goes on", now).is_ok(), "a live task can always be ended");
        *ends.entry(task.state).or_default() += 1;
    }
    for event in EVENTS {
        assert!(accepted.get(&event).is_some_and(|n| *n > 100), "{event:?} was hardly tried: {accepted:?}");
    }
    for state in TaskState::ALL.into_iter().filter(|state| state.is_terminal()) {
        assert!(ends.get(&state).is_some_and(|n| *n > 10), "{state:?} was hardly reached: {ends:?}");
    }
}
