//! What the coordinators of one hub tell each other over the broker: hints, in numbered bulletins. A receiver that misses one
//! sees it by the numbers, and reads the hub again.

use modelmeter_common::{RequestId, Timestamp, event::What};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashSet,
    mem::{replace, take},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};
use tokio::sync::Notify;
use uuid::Uuid;

/// The broker's topic for them.
pub const TOPIC: &str = "modelmeter.coordinators";
/// Notes of one bulletin: with the longest reasons and settings it stays far below the largest broadcast.
const MAX_NOTES: usize = 128;
/// Notes that wait; with one more all are dropped, since reading the hub again costs less then.
const MAX_WAITING: usize = 4096;

/// One hint.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "note", rename_all = "snake_case")]
pub enum Note {
    /// Some task may be queued now.
    Work,
    /// A worker registered.
    Workers,
    /// A request changed.
    Request {
        /// The request.
        id: RequestId,
        /// When, by the hub's clock.
        at: Timestamp,
        /// How.
        what: What,
    },
}

/// Notes of one coordinator, in their order.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Bulletin {
    /// The coordinator.
    pub from: Uuid,
    /// The number of the first note. A coordinator counts from 0, and leaves out numbers for what it could not tell.
    pub first: u64,
    /// Whether the sender asks the others for a sign of life.
    pub is_hello: bool,
    /// The notes.
    pub notes: Vec<Note>,
}

/// What this coordinator has to tell the others. It never waits: what cannot be told is dropped, and the others learn that.
pub struct Outbox {
    id: Uuid,
    is_on: bool,
    waiting: Mutex<Waiting>,
    filled: Notify,
    hears: AtomicBool,
}

#[derive(Default)]
struct Waiting {
    notes: Vec<Note>,
    /// The number of the next note.
    next: u64,
    has_readers: bool,
    /// Something could not be told.
    has_missed: bool,
    /// A bulletin is due, though it may be empty.
    is_due: bool,
    is_hello: bool,
}

impl Outbox {
    /// An empty one. `is_on`: there may be other coordinators.
    pub fn new(is_on: bool) -> Self {
        Self {
            id: Uuid::new_v4(),
            is_on,
            waiting: Mutex::default(),
            filled: Notify::new(),
            hears: AtomicBool::new(false),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("never poisoned: no panic while held")
    }

    /// Whether this coordinator sent the bulletin.
    pub fn is_own(&self, bulletin: &Bulletin) -> bool {
        bulletin.from == self.id
    }

    /// Whether another coordinator reads what this one tells.
    pub fn has_readers(&self) -> bool {
        self.is_on && self.waiting().has_readers
    }

    /// Tells the others, if there are any.
    pub fn tell(&self, note: Note) {
        let mut waiting = self.waiting();
        if !waiting.has_readers {
            waiting.has_missed = true;
            return;
        }
        if waiting.notes.len() == MAX_WAITING {
            waiting.notes.clear();
            waiting.has_missed = true;
        }
        waiting.notes.push(note);
        self.filled.notify_one();
    }

    /// Something happened that is not told: the others have to read the hub again.
    pub fn miss(&self) {
        let mut waiting = self.waiting();
        waiting.has_missed = true;
        if waiting.has_readers {
            waiting.is_due = true;
            self.filled.notify_one();
        }
    }

    /// Another coordinator is there, which was perhaps not known: it learns that it missed what was told to nobody.
    pub fn found_reader(&self) {
        let mut waiting = self.waiting();
        if !replace(&mut waiting.has_readers, true) && waiting.has_missed {
            waiting.is_due = true;
            self.filled.notify_one();
        }
    }

    /// A bulletin is due, as a sign of life.
    pub fn answer(&self) {
        self.waiting().is_due = true;
        self.filled.notify_one();
    }

    /// From now on the others are heard, or no longer.
    pub fn set_hears(&self, hears: bool) {
        self.hears.store(hears, Relaxed);
        if hears {
            let mut waiting = self.waiting();
            (waiting.is_due, waiting.is_hello) = (true, true);
            self.filled.notify_one();
        }
    }

    /// Whether what the others tell is heard.
    pub fn hears(&self) -> bool {
        self.hears.load(Relaxed)
    }

    /// Returns once there may be something to send.
    pub async fn filled(&self) {
        self.filled.notified().await;
    }

    /// The next bulletin to send, if one is due.
    pub fn take(&self) -> Option<Bulletin> {
        let waiting = &mut *self.waiting();
        if waiting.notes.is_empty() && !waiting.is_due {
            return None;
        }
        waiting.next += u64::from(take(&mut waiting.has_missed));
        let mut notes = latest(take(&mut waiting.notes));
        waiting.notes = notes.split_off(notes.len().min(MAX_NOTES));
        let first = waiting.next;
        waiting.next += notes.len() as u64;
        waiting.is_due = false;
        Some(Bulletin { from: self.id, first, is_hello: take(&mut waiting.is_hello), notes })
    }

    /// Makes another bulletin due after one that could not be sent; its number shows the others the gap.
    pub fn not_sent(&self, bulletin: &Bulletin) {
        let mut waiting = self.waiting();
        (waiting.has_missed, waiting.is_due) = (true, true);
        waiting.is_hello |= bulletin.is_hello;
        self.filled.notify_one();
    }
}

/// The notes that no later one replaces.
fn latest(notes: Vec<Note>) -> Vec<Note> {
    #[derive(PartialEq, Eq, Hash)]
    enum Subject {
        Work,
        Workers,
        Task(RequestId, u32),
        Progress(RequestId, u32),
    }
    let subject = |note: &Note| match note {
        Note::Work => Some(Subject::Work),
        Note::Workers => Some(Subject::Workers),
        Note::Request { id, what: What::Task { index, .. }, .. } => Some(Subject::Task(*id, *index)),
        Note::Request { id, what: What::Progress { index, .. }, .. } => Some(Subject::Progress(*id, *index)),
        Note::Request { .. } => None,
    };
    let mut told = HashSet::new();
    let mut kept: Vec<Note> =
        notes.into_iter().rev().filter(|note| subject(note).is_none_or(|subject| told.insert(subject))).collect();
    kept.reverse();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use modelmeter_common::request::RequestState;

    fn progress(index: u32, revision: u64) -> Note {
        let what = What::Progress { index, revision, progress: None };
        Note::Request { id: RequestId(Uuid::from_u128(1)), at: Timestamp(1), what }
    }

    fn ended() -> Note {
        let what = What::Ended { state: RequestState::Done };
        Note::Request { id: RequestId(Uuid::from_u128(1)), at: Timestamp(1), what }
    }

    #[test]
    fn nothing_is_kept_for_nobody_and_whoever_comes_sees_that_something_was_missed() {
        let outbox = Outbox::new(true);
        outbox.tell(Note::Work);
        assert_eq!(outbox.take(), None);
        outbox.found_reader();
        outbox.answer();
        let first = outbox.take().unwrap();
        assert_eq!((first.first, first.notes.len()), (1, 0), "the first number is left out");
        outbox.tell(ended());
        assert_eq!(outbox.take().map(|next| (next.first, next.notes)), Some((1, vec![ended()])));
        assert_eq!(outbox.take(), None);
    }

    #[test]
    fn a_burst_is_told_in_few_notes_and_too_long_a_one_not_at_all() {
        let outbox = Outbox::new(true);
        outbox.found_reader();
        for revision in 0..1000 {
            outbox.tell(progress(revision as u32 % 3, revision));
            outbox.tell(Note::Work);
        }
        let Bulletin { first, notes, .. } = outbox.take().unwrap();
        let last = vec![progress(1, 997), progress(2, 998), progress(0, 999), Note::Work];
        assert_eq!((first, notes), (0, last));
        for index in 0..=MAX_WAITING as u32 {
            outbox.tell(progress(index, 1));
        }
        let next = outbox.take().unwrap();
        assert_eq!((next.first, next.notes.len()), (5, 1), "number 4 is left out for what was dropped");
        for index in 0..MAX_NOTES as u32 + 1 {
            outbox.tell(progress(index, 1));
        }
        let sizes = [outbox.take(), outbox.take(), outbox.take()].map(|next| next.map(|next| next.notes.len()));
        assert_eq!(sizes, [Some(MAX_NOTES), Some(1), None]);
    }

    #[test]
    fn what_was_not_sent_leaves_a_gap_and_a_hello_is_repeated() {
        let outbox = Outbox::new(true);
        outbox.set_hears(true);
        let hello = outbox.take().unwrap();
        assert!(hello.is_hello && hello.first == 0 && outbox.hears());
        outbox.not_sent(&hello);
        let again = outbox.take().unwrap();
        assert!(again.is_hello && again.first == 1);
    }

    #[test]
    fn a_bulletin_reads_back() {
        let sent =
            Bulletin { from: Uuid::from_u128(3), first: 2, is_hello: false, notes: vec![Note::Workers, ended()] };
        let read: Bulletin = serde_json::from_slice(&serde_json::to_vec(&sent).unwrap()).unwrap();
        assert_eq!(read, sent);
    }
}
