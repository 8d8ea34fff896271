//! The result of a read: calls that ended, and events of calls that go on.

use crate::{
    record::{Done, Event},
    sys::Clock,
};

/// Collects what a [`Connection`](super::Connection) reads.
#[derive(Debug)]
pub struct Seen {
    /// Calls that ended.
    pub done: Vec<Done>,
    events: Vec<(usize, Event)>,
    clock: Clock,
    arrived_ns: u64,
}

impl Seen {
    pub(super) fn new(clock: Clock) -> Self {
        Self { done: Vec::new(), events: Vec::new(), clock, arrived_ns: 0 }
    }

    /// Notes that bytes have just come out of the socket: events that follow came now.
    pub fn arrived(&mut self) {
        self.arrived_ns = self.clock.now_ns();
    }

    /// Adds an event of the call with this token.
    pub fn event(&mut self, token: usize, kind: u16, tokens: u32) {
        self.events.push((token, Event { at_ns: self.arrived_ns, kind, tokens }));
    }
}

/// The events of the calls in flight, by token. Takes neither memory nor time where calls have none.
#[derive(Debug, Default)]
pub(super) struct Events(Vec<Vec<Event>>);

impl Events {
    /// Takes in what was read.
    pub fn take_in(&mut self, seen: &mut Seen) {
        for (token, event) in seen.events.drain(..) {
            if self.0.len() <= token {
                self.0.resize_with(token + 1, Vec::new);
            }
            self.0[token].push(event);
        }
    }

    /// The events of a call so far.
    pub fn of(&self, token: usize) -> &[Event] {
        self.0.get(token).map_or(&[], Vec::as_slice)
    }

    /// Forgets the events of a call that ended or is sent again.
    pub fn clear(&mut self, token: usize) {
        if let Some(events) = self.0.get_mut(token) {
            events.clear();
        }
    }
}
