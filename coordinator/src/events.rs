//! Feeds of events: one for each request that somebody follows, with the latest events to resume from. Each coordinator has
//! its own, and numbers in it what happens through it and what other coordinators tell.

use modelmeter_common::{
    RequestId, Timestamp,
    event::{RequestEvent, What},
};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
};
use tokio::sync::watch;
use uuid::Uuid;

/// Events of a feed that can be resumed from.
const KEPT: usize = 4096;
/// Feeds that are kept though nobody follows them any more.
const IDLE_FEEDS: usize = 64;

/// The feeds of this coordinator.
#[derive(Default)]
pub struct Feeds(Mutex<HashMap<RequestId, Arc<Feed>>>);

/// The events of one request since somebody began to follow it.
pub struct Feed {
    id: Uuid,
    recent: Mutex<VecDeque<RequestEvent>>,
    /// The number of the last event.
    last: watch::Sender<u64>,
}

/// A place in a feed. Feeds of different coordinators count for themselves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    /// The feed.
    pub feed: Uuid,
    /// The number of the last event seen.
    pub seq: u64,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("never poisoned: no panic while held")
}

impl Feeds {
    /// The feed of a request, begun now if nobody follows it yet.
    pub fn open(&self, request: RequestId) -> Arc<Feed> {
        let mut feeds = locked(&self.0);
        if feeds.len() > IDLE_FEEDS {
            feeds.retain(|id, feed| *id == request || Arc::strong_count(feed) > 1);
        }
        feeds.entry(request).or_insert_with(Feed::new).clone()
    }

    /// The feed of a request, if somebody follows it.
    pub fn of(&self, request: RequestId) -> Option<Arc<Feed>> {
        locked(&self.0).get(&request).cloned()
    }

    /// Something happened that nobody heard, to whichever request: those who follow one read its status again.
    pub fn lose_all(&self) {
        let feeds: Vec<_> = locked(&self.0).values().cloned().collect();
        feeds.iter().for_each(|feed| feed.lose());
    }

    /// Ends the feed of a request. Those who follow it still read what is in it.
    pub fn close(&self, request: RequestId) {
        locked(&self.0).remove(&request);
    }
}

impl Feed {
    fn new() -> Arc<Self> {
        Arc::new(Self { id: Uuid::new_v4(), recent: Mutex::default(), last: watch::Sender::new(0) })
    }

    /// Appends an event.
    pub fn tell(&self, at: Timestamp, what: What) {
        let mut recent = locked(&self.recent);
        let seq = *self.last.borrow() + 1;
        if recent.len() == KEPT {
            recent.pop_front();
        }
        recent.push_back(RequestEvent { seq, at, what });
        self.last.send_replace(seq);
    }

    /// Something happened that cannot be told: those who follow read the status again.
    pub fn lose(&self) {
        let mut recent = locked(&self.recent);
        recent.clear();
        self.last.send_modify(|last| *last += 1);
    }

    /// Where the feed is.
    pub fn position(&self) -> Position {
        Position { feed: self.id, seq: *self.last.borrow() }
    }

    /// The events after this place; none if some of them are gone, or it is a place in another feed.
    pub fn after(&self, position: Position) -> Option<Vec<RequestEvent>> {
        let recent = locked(&self.recent);
        let last = *self.last.borrow();
        let missing = last.checked_sub(position.seq).filter(|_| position.feed == self.id)?;
        let kept = usize::try_from(missing).ok().filter(|missing| *missing <= recent.len())?;
        Some(recent.iter().skip(recent.len() - kept).cloned().collect())
    }

    /// Returns once there is an event after this number.
    pub async fn beyond(&self, seq: u64) {
        // The sender lives as long as this feed.
        let _ = self.last.subscribe().wait_for(|last| *last > seq).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use modelmeter_common::request::RequestState;

    #[test]
    fn a_feed_is_resumed_from_any_place_that_it_keeps() {
        let feeds = Feeds::default();
        let request = RequestId(Uuid::from_u128(1));
        assert!(feeds.of(request).is_none(), "nobody follows it");
        let feed = feeds.open(request);
        let start = feed.position();
        for _ in 0..=KEPT {
            feed.tell(Timestamp(1), What::Ended { state: RequestState::Done });
        }
        assert_eq!(feed.after(start), None, "the first event is gone");
        let kept = feed.after(Position { seq: 1, ..start }).unwrap();
        assert_eq!((kept.len(), kept[0].seq, feed.position().seq), (KEPT, 2, KEPT as u64 + 1));
        assert_eq!(feed.after(feed.position()), Some(Vec::new()));
        assert_eq!(feed.after(Position { feed: Uuid::from_u128(7), ..feed.position() }), None, "another's");
        assert_eq!(feed.after(Position { seq: KEPT as u64 + 9, ..start }), None, "not yet");
        let before = feed.position();
        feed.lose();
        assert_eq!(feed.after(before), None);
        assert!(Arc::ptr_eq(&feed, &feeds.open(request)));
        feeds.close(request);
        assert!(feeds.of(request).is_none());
    }
}
