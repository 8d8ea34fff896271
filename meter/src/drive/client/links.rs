//! The client's connections as they are dialled, lost and given up, and what becomes of their calls.

use super::{
    super::{Connection, Protocol, control::Report, flights::Sent, places::Link},
    Client, FIRST_BACKOFF_NS, MAX_BACKOFF_NS, State,
};
use crate::{
    endpoint::Socket,
    record::{Done, Failure, Lost, Times},
};
use std::io::{self, Write};

impl<P: Protocol> Client<P> {
    /// Starts what connections are due. Connecting blocks, so each attempt has a thread for its moment.
    pub(super) fn dial(&mut self) {
        let now = self.clock.now_ns();
        for index in 0..self.places.len() {
            let place = &mut self.places[index];
            if !matches!(place.link, Link::Down { retry_ns } if retry_ns <= now) {
                continue;
            }
            let (route, dialled) = (self.orders.route.clone(), self.dialled.0.clone());
            let dialling = self.waker.try_clone().and_then(|waker| {
                std::thread::Builder::new().spawn(move || {
                    let _ = dialled.send((index, route.connect()));
                    let _ = (&waker).write(&[1]);
                })
            });
            place.link = match dialling {
                Ok(_) => Link::Connecting,
                // The system is out of descriptors or threads for now.
                Err(_) => Link::Down { retry_ns: now + MAX_BACKOFF_NS },
            };
        }
    }

    pub(super) fn on_dialled(&mut self, index: usize, result: io::Result<Socket>) {
        let now = self.clock.now_ns();
        match result {
            Ok(socket) => {
                let conn = self.protocol.connection(socket);
                (self.places[index].heard_ns, self.places[index].up_ns) = (now, now);
                self.places[index].link = Link::Up(Box::new(conn));
            }
            Err(error) => self.hang_up(index, (&error).into()),
        }
    }

    /// Handles a connection that is lost or could not be made: its calls fail, and the place is dialled again after a
    /// while.
    pub(super) fn hang_up(&mut self, index: usize, lost: Lost) {
        let now = self.clock.now_ns();
        let place = &mut self.places[index];
        let backoff = (FIRST_BACKOFF_NS << place.failures.min(10)).min(MAX_BACKOFF_NS);
        place.failures += 1;
        let retry_ns = now + backoff;
        let before = std::mem::replace(&mut place.link, Link::Down { retry_ns });
        let had_served = matches!(&before, Link::Up(conn) if conn.is_settled());
        if let Link::Up(mut conn) = before {
            conn.fail_all(lost.failure, &mut self.seen.done);
            self.settle(now);
        } else if self.state == State::Running && !self.open && !self.places.any_up() && self.flights.count() == 0 {
            // A closed loop sends nothing without a connection, so the failed attempt counts instead.
            let times = Times { scheduled_ns: now, sent_ns: now };
            self.record(None, times, Err(lost.failure), now);
        }
        if !self.places.any_up() {
            if !had_served && !self.places.any_coming() {
                self.fail_waiting(lost.failure, now);
            }
            self.is_down = true;
            let _ = self.reports.send(Report::Down { failure: lost.failure, words: lost.words });
        }
    }

    /// Fails the calls that wait for a connection when none can be made.
    fn fail_waiting(&mut self, failure: Failure, now: u64) {
        while let Some(token) = self.flights.take_waiting() {
            self.seen.done.push(Done { token, result: Err(failure), words: None, message: None });
        }
        self.settle(now);
    }

    /// A connection that served and ends while nothing of a call was written on it ends in peace: what waits goes to the next.
    pub(super) fn lose(&mut self, index: usize, lost: Lost, now: u64) {
        match &mut self.places[index].link {
            Link::Up(conn) if lost.is_end && conn.is_settled() && !conn.is_unused() && !conn.has_begun_any() => {
                conn.fail_all(lost.failure, &mut self.seen.done);
                if !conn.is_going_away() {
                    self.recorder.connection_ended();
                }
                self.places.vacate(index);
                self.settle(now);
            }
            _ => self.hang_up(index, lost),
        }
    }

    /// Gives up calls that took too long, and connections on which nothing came since they were sent.
    pub(super) fn expire(&mut self) {
        let now = self.clock.now_ns();
        if now < self.next_sweep_ns {
            return;
        }
        let timeout = self.orders.timeout.as_nanos() as u64;
        self.next_sweep_ns = now + (timeout / 64).clamp(1_000_000, 100_000_000);
        for index in self.places.unsettled(now) {
            let words = "it accepted the connection, and said nothing of HTTP/2";
            self.hang_up(index, Lost::because(Failure::Unreachable, words));
        }
        for token in self.flights.older_than(timeout, now) {
            let Some(at) = self.flights.get(token).map(|flight| flight.at) else { continue };
            if let Some(Sent { link, number, .. }) = at
                && let Link::Up(conn) = &mut self.places[link].link
            {
                conn.cancel(number);
            }
            self.seen.done.push(Done { token, result: Err(Failure::Timeout), words: None, message: None });
            self.settle(now);
            if let Some(Sent { link, since_ns, .. }) = at
                && self.places[link].heard_ns <= since_ns
            {
                self.hang_up(link, Lost::because(Failure::Reset, "nothing was heard for the length of a time-out"));
            }
        }
    }
}
