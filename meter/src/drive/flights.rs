//! The calls in flight, including those that wait for a connection.

use crate::record::Times;
use std::collections::VecDeque;

/// How often a call is sent again, at most, because a server did not begin it.
const MAX_RESENDS: u8 = 5;

/// A call in flight.
pub(super) struct Flight {
    pub times: Times,
    /// Whether the call's answer is to be checked.
    pub kept: bool,
    /// The connection that the call is on; none while the call waits for one.
    pub at: Option<Sent>,
    resends: u8,
}

/// Where a call is: its connection, and the number that it has there.
#[derive(Clone, Copy)]
pub(super) struct Sent {
    pub link: usize,
    pub number: u32,
    pub since_ns: u64,
}

/// All calls in flight. A call's token is its index here, which is used again once the call has ended.
#[derive(Default)]
pub(super) struct Flights {
    all: Vec<Option<Flight>>,
    free: Vec<usize>,
    /// Tokens of the calls that wait, oldest first; some may have ended meanwhile.
    waiting: VecDeque<usize>,
    count: usize,
}

impl Flights {
    /// Number of calls in flight.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Begins a call, which is on no connection yet.
    pub fn begin(&mut self, times: Times, kept: bool) -> usize {
        let token = self.free.pop().unwrap_or_else(|| {
            self.all.push(None);
            self.all.len() - 1
        });
        self.all[token] = Some(Flight { times, kept, at: None, resends: 0 });
        self.count += 1;
        token
    }

    /// Notes that a call was sent.
    pub fn sent(&mut self, token: usize, sent: Sent) {
        if let Some(flight) = &mut self.all[token] {
            flight.at = Some(sent);
        }
    }

    /// Queues a call that waits for a connection.
    pub fn wait(&mut self, token: usize) {
        self.waiting.push_back(token);
    }

    /// The call that waits longest.
    pub fn first_waiting(&mut self) -> Option<(usize, &Flight)> {
        while let Some(&token) = self.waiting.front() {
            if self.all[token].as_ref().is_some_and(|flight| flight.at.is_none()) {
                return self.all[token].as_ref().map(|flight| (token, flight));
            }
            self.waiting.pop_front();
        }
        None
    }

    /// Takes the call that waits longest from the queue.
    pub fn take_waiting(&mut self) -> Option<usize> {
        let token = self.first_waiting()?.0;
        self.waiting.pop_front();
        Some(token)
    }

    /// Has a call that was not begun wait to be sent again. How often that has happened to it; none where it was often
    /// enough, or there is no such call.
    pub fn again(&mut self, token: usize) -> Option<u8> {
        let flight = self.all[token].as_mut().filter(|flight| flight.resends < MAX_RESENDS)?;
        flight.resends += 1;
        flight.at = None;
        self.waiting.push_back(token);
        Some(flight.resends)
    }

    /// Ends a call.
    pub fn end(&mut self, token: usize) -> Option<Flight> {
        let flight = self.all[token].take()?;
        self.free.push(token);
        self.count -= 1;
        Some(flight)
    }

    /// Tokens of the calls that were sent, or begun, so long ago.
    pub fn older_than(&self, ns: u64, now: u64) -> Vec<usize> {
        let is_old = |flight: &Flight| now - flight.times.sent_ns >= ns;
        let old = self.all.iter().enumerate().filter(|(_, flight)| flight.as_ref().is_some_and(is_old));
        old.map(|(token, _)| token).collect()
    }

    /// The call with this token.
    pub fn get(&self, token: usize) -> Option<&Flight> {
        self.all[token].as_ref()
    }

    /// Time since the send of each call that the server may have begun.
    pub fn ages(&self, now: u64) -> Vec<u64> {
        self.all.iter().flatten().filter_map(|flight| Some(now - flight.at?.since_ns)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Times = Times { scheduled_ns: 1, sent_ns: 2 };

    #[test]
    fn calls_wait_in_turn_and_are_sent_again_a_bounded_number_of_times() {
        let mut flights = Flights::default();
        let tokens = [0, 1, 2].map(|_| flights.begin(TIMES, false));
        for token in tokens {
            flights.sent(token, Sent { link: 0, number: 1, since_ns: 2 });
            assert_eq!(flights.again(token), Some(1));
        }
        assert_eq!((flights.count(), flights.take_waiting()), (3, Some(tokens[0])));
        // A call that ends while it waits is passed over, also where its token is used again.
        flights.end(tokens[1]).unwrap();
        let other = flights.begin(TIMES, true);
        flights.sent(other, Sent { link: 0, number: 3, since_ns: 2 });
        assert_eq!((other, flights.take_waiting(), flights.take_waiting()), (tokens[1], Some(tokens[2]), None));
        let again: Vec<_> = (0..MAX_RESENDS).map(|_| flights.again(other)).collect();
        assert_eq!(again.last(), Some(&Some(MAX_RESENDS)));
        assert_eq!(flights.again(other), None);
        assert_eq!((flights.older_than(8, 10), flights.ages(10)), (tokens.to_vec(), Vec::new()));
        flights.sent(other, Sent { link: 0, number: 5, since_ns: 9 });
        assert_eq!(flights.ages(10), [1]);
    }
}
