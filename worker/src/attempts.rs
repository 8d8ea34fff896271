//! The attempts that this worker answers for: from the claim until the coordinator has their result.

use modelmeter_common::TaskId;
use modelmeter_proto::control::{AttemptFate, AttemptRef, HeldFinal, attempt_fate::Fate};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

/// A result that is published again so often and never arrives cannot be taken: its lease shall run out.
const MAX_AGAIN: u32 = 5;

type Key = (TaskId, u32);

/// How far an attempt has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Being measured.
    Running,
    /// In the journal, on its way to the results queue.
    Journaled,
    /// Confirmed by the broker at this time; the coordinator need not have it yet.
    Published(Instant),
}

#[derive(Debug)]
struct Entry {
    stage: Stage,
    progress: String,
    /// How often its result was lost after it was published.
    lost: u32,
    dropped: CancellationToken,
}

impl Entry {
    fn new(stage: Stage) -> Self {
        Self { stage, progress: String::new(), lost: 0, dropped: CancellationToken::new() }
    }
}

/// All of them. Shared by the slots and the renew loop.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    entries: Mutex<BTreeMap<Key, Entry>>,
    /// Woken when one does something else than before.
    pub news: Notify,
}

/// One attempt in a slot's hands.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub task: TaskId,
    pub number: u32,
    all: Arc<Attempts>,
    dropped: CancellationToken,
}

impl Attempts {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<Key, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A claim was granted: its lease is renewed from now on.
    pub fn begin(self: &Arc<Self>, task: TaskId, number: u32) -> Attempt {
        let entry = Entry::new(Stage::Running);
        let dropped = entry.dropped.clone();
        self.entries().insert((task, number), entry);
        Attempt { task, number, all: self.clone(), dropped }
    }

    /// A journal of an earlier life, published again.
    pub fn add_published(&self, task: TaskId, number: u32) {
        self.entries().insert((task, number), Entry::new(Stage::Published(Instant::now())));
    }

    /// What to ask the coordinator about.
    pub fn refs(&self) -> Vec<AttemptRef> {
        let entries = self.entries();
        let all = entries.iter().map(|(&(task, attempt), entry)| AttemptRef {
            task_id: task.to_string(),
            attempt,
            progress: entry.progress.clone(),
        });
        all.collect()
    }

    /// The finals that wait in the journal.
    pub fn held(&self) -> Vec<HeldFinal> {
        let entries = self.entries();
        let held = entries.iter().filter(|(_, entry)| entry.stage != Stage::Running);
        held.map(|(&(task, attempt), _)| HeldFinal { task_id: task.to_string(), attempt }).collect()
    }

    /// Takes the coordinator's word; gives those whose journal can be forgotten, since their task has ended. Running attempts
    /// that it no longer wants are told to stop.
    pub fn apply(&self, fates: &[AttemptFate]) -> Vec<Key> {
        let mut entries = self.entries();
        let mut forgotten = Vec::new();
        for fate in fates {
            let Ok(task) = fate.task_id.parse() else { continue };
            let key = (task, fate.attempt);
            let Some(entry) = entries.get(&key) else { continue };
            match (fate.fate(), entry.stage) {
                (Fate::Renewed | Fate::Unspecified, _) => {}
                (_, Stage::Running) => entry.dropped.cancel(),
                // Its slot still publishes it; asked again afterwards.
                (_, Stage::Journaled) => {}
                // Its task runs again somewhere, and the first complete result may still be this one.
                (Fate::Lost, Stage::Published(_)) => {}
                (_, Stage::Published(_)) => {
                    entries.remove(&key);
                    forgotten.push(key);
                }
            }
        }
        forgotten
    }

    /// Those that were published this long ago and are still asked about: what the broker confirmed was lost behind it.
    /// They count as journaled again; one that was lost too often is not answered for any more.
    pub fn overdue(self: &Arc<Self>, after: Duration) -> Vec<Attempt> {
        let mut overdue = Vec::new();
        self.entries().retain(|&(task, number), entry| {
            if !matches!(entry.stage, Stage::Published(at) if at.elapsed() >= after) {
                return true;
            }
            (entry.stage, entry.lost) = (Stage::Journaled, entry.lost + 1);
            if entry.lost > MAX_AGAIN {
                tracing::error!(%task, attempt = number, "the coordinator never takes the result: it stays in the journal until the next start");
                return false;
            }
            overdue.push(Attempt { task, number, all: self.clone(), dropped: entry.dropped.clone() });
            true
        });
        overdue
    }

    fn set_stage(&self, key: Key, stage: Stage) {
        if let Some(entry) = self.entries().get_mut(&key) {
            entry.stage = stage;
        }
    }
}

impl Attempt {
    fn key(&self) -> Key {
        (self.task, self.number)
    }

    /// Completes when the coordinator no longer wants it.
    pub async fn dropped(&self) {
        self.dropped.cancelled().await;
    }

    /// One line for `watch`, which the coordinator is told soon.
    pub fn progress(&self, line: impl Into<String>) {
        if let Some(entry) = self.all.entries().get_mut(&self.key()) {
            entry.progress = line.into();
            self.all.news.notify_one();
        }
    }

    pub fn journaled(&self) {
        self.all.set_stage(self.key(), Stage::Journaled);
    }

    pub fn published(&self) {
        self.all.set_stage(self.key(), Stage::Published(Instant::now()));
    }

    /// It ended without a result: nothing is renewed or held any more.
    pub fn forget(&self) {
        self.all.entries().remove(&self.key());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fate(task: TaskId, attempt: u32, fate: Fate) -> AttemptFate {
        AttemptFate { task_id: task.to_string(), attempt, fate: fate.into() }
    }

    #[test]
    fn only_what_is_published_is_forgotten_and_only_what_runs_is_dropped() {
        let all = Arc::new(Attempts::default());
        let task = TaskId(uuid::Uuid::from_u128(1));
        let running = all.begin(task, 1);
        assert!(all.apply(&[fate(task, 1, Fate::Renewed)]).is_empty() && !running.dropped.is_cancelled());
        assert!(all.apply(&[fate(task, 1, Fate::Cancelled)]).is_empty() && running.dropped.is_cancelled());
        running.journaled();
        assert!(all.apply(&[fate(task, 1, Fate::Terminal)]).is_empty());
        assert_eq!(all.held().len(), 1);
        running.published();
        assert!(all.apply(&[fate(task, 1, Fate::Lost)]).is_empty() && all.held().len() == 1, "its task has not ended");
        assert_eq!(all.apply(&[fate(task, 1, Fate::Terminal)]), [(task, 1)]);
        assert!(all.refs().is_empty() && all.held().is_empty());
        assert!(all.apply(&[fate(task, 1, Fate::Lost)]).is_empty(), "one that is not known changes nothing");
    }

    #[test]
    fn what_was_published_and_did_not_arrive_is_overdue_once() {
        let all = Arc::new(Attempts::default());
        let task = TaskId(uuid::Uuid::from_u128(1));
        let attempt = all.begin(task, 1);
        attempt.journaled();
        assert!(all.overdue(Duration::ZERO).is_empty(), "its slot still publishes it");
        attempt.published();
        assert!(all.overdue(Duration::from_secs(60)).is_empty(), "it may be on its way");
        assert_eq!(all.overdue(Duration::ZERO).len(), 1);
        assert!(all.overdue(Duration::ZERO).is_empty(), "it is being published again");
        for _ in 1..MAX_AGAIN {
            attempt.published();
            assert_eq!(all.overdue(Duration::ZERO).len(), 1);
        }
        attempt.published();
        assert!(all.overdue(Duration::ZERO).is_empty() && all.refs().is_empty(), "its lease shall run out");
    }
}
