//! The event loop: one thread owns the connections, sends calls when the pacer says that they are due, and records how
//! they end. [`crate::point`] decides how long a run lasts, through [`Control`].

use super::{
    Connection, Protocol,
    awake::{AWAKE_IN_FLIGHT, AWAKE_NS, Awake},
    control::{Control, DRAIN, Orders, Report, STOP, Shared, Started},
    events::{Events, Seen},
    flights::{Flights, Sent},
    places::{Link, Places},
};
use crate::{
    endpoint::Socket,
    record::{
        CallRecord, Failure, Lost, Metric, Times,
        recorder::{GAP_NS, LOST, Recorder, Window},
    },
    schedule::Pacer,
    sys::{self, Clock, Watch},
    threads::pin_this_thread,
};
use std::{
    io::{self, Read},
    os::{fd::AsFd, unix::net::UnixStream},
    sync::{Arc, atomic::Ordering::Relaxed, mpsc},
    time::Duration,
};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

mod links;

/// Calls in flight for which one connection is enough.
const PER_CONNECTION: usize = 32;
/// Connections of an open loop, whose calls in flight are not known beforehand.
const OPEN_CONNECTIONS: usize = 8;
const FIRST_BACKOFF_NS: u64 = 10_000_000;
const MAX_BACKOFF_NS: u64 = 1_000_000_000;
/// The loop looks at its orders at least this often.
const MAX_WAIT_NS: u64 = 50_000_000;
/// The thread stays awake for a scheduled send nearer than this: sleeping overshoots by about as much.
const SPIN_NS: u64 = 30_000;
/// Time that an ending closed loop waits for the answer of a server that stands still.
const LINGER_NS: u64 = 1_000_000_000;
const READ_BUFFER: usize = 256 << 10;
/// Most scheduled sends in a turn; then the connections are read.
const MOST_DUE: usize = 32;
/// A response is kept for checking at most this often, and once in a twentieth of the phase so far.
const SAMPLE_EVERY_NS: u64 = 50_000_000;
const SAMPLE_EVERY: u64 = 20;

/// Starts a client that speaks this protocol, on a thread of its own.
///
/// # Errors
/// The system has no thread or descriptor left.
pub fn start<P: Protocol>(protocol: P, orders: Orders, metrics: &'static [Metric]) -> io::Result<Started> {
    let (control, woken) = Control::new(orders.at_once)?;
    let (reports, receiver) = unbounded_channel();
    let (shared, waker) = (Arc::clone(&control.shared), control.waker.try_clone()?);
    let recorder = Recorder::new(matches!(orders.pacer, Pacer::Open(_)), metrics);
    let make = move || Client::new(protocol, orders, shared, (waker, woken), reports, recorder).run();
    std::thread::Builder::new().name("modelmeter-client".into()).spawn(make)?;
    Ok(Started { control, reports: receiver })
}

/// State of the loop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Connections are being made; nothing was sent.
    Connecting,
    Running,
    /// The calls asked for have ended; the burst that they ended with may go on.
    Full,
    /// Open loop: nothing more is sent; calls in flight may end.
    Draining,
    /// Closed loop: nothing more is sent; calls that take far longer than any before may end until this time.
    Lingering {
        until_ns: u64,
    },
    Ended,
}

/// A place that was dialled, and the result.
type Dialled = (usize, io::Result<Socket>);

struct Client<P: Protocol> {
    protocol: P,
    orders: Orders,
    shared: Arc<Shared>,
    waker: UnixStream,
    woken: UnixStream,
    reports: UnboundedSender<Report>,
    clock: Clock,
    places: Places<P::Connection>,
    dialled: (mpsc::Sender<Dialled>, mpsc::Receiver<Dialled>),
    flights: Flights,
    events: Events,
    recorder: Recorder,
    open: bool,
    state: State,
    awake: Awake,
    next_sweep_ns: u64,
    phase_begun_ns: u64,
    next_sample_ns: u64,
    told: Vec<Failure>,
    /// Whether the meter was told that no connection stands.
    is_down: bool,
    watches: Vec<Watch>,
    seen: Seen,
    buffer: Vec<u8>,
}

impl<P: Protocol> Client<P> {
    fn new(
        protocol: P,
        orders: Orders,
        shared: Arc<Shared>,
        (waker, woken): (UnixStream, UnixStream),
        reports: UnboundedSender<Report>,
        recorder: Recorder,
    ) -> Self {
        let (open, connections) = match &orders.pacer {
            Pacer::Closed { concurrency } => (false, concurrency.div_ceil(PER_CONNECTION)),
            Pacer::Open(_) => (true, OPEN_CONNECTIONS),
        };
        let clock = Clock::default();
        Self {
            protocol,
            shared,
            waker,
            woken,
            reports,
            clock,
            places: Places::new(connections),
            dialled: mpsc::channel(),
            flights: Flights::default(),
            events: Events::default(),
            recorder,
            open,
            state: State::Connecting,
            awake: Awake::new(),
            next_sweep_ns: 0,
            phase_begun_ns: 0,
            next_sample_ns: 0,
            told: Vec::new(),
            is_down: false,
            watches: Vec::new(),
            seen: Seen::new(clock),
            buffer: vec![0; READ_BUFFER],
            orders,
        }
    }

    fn run(mut self) {
        sys::precise_timers();
        if let Some(cpus) = &self.orders.cpus {
            pin_this_thread(cpus);
        }
        while self.state != State::Ended {
            self.dial();
            self.send_due();
            self.flush();
            self.wait();
            self.heed_orders();
            self.receive();
            self.expire();
        }
        let now = self.clock.now_ns();
        let unanswered = self.flights.ages(now);
        let reports = self.reports;
        let (window, sends) = self.recorder.end(unanswered);
        let _ = reports.send(Report::Window(Box::new(window)));
        let _ = reports.send(Report::Ended(Box::new(sends)));
    }

    /// Follows the meter's orders. Runs between two turns, before new answers are read.
    fn heed_orders(&mut self) {
        let now = self.clock.now_ns();
        match (self.shared.state.load(Relaxed), self.state) {
            (STOP | DRAIN, State::Connecting) | (STOP, State::Draining | State::Lingering { .. }) => {
                self.state = State::Ended;
            }
            (STOP, State::Running) | (_, State::Full) if self.recorder.is_between(now) => self.state = State::Ended,
            (DRAIN, State::Running) if self.open => self.drain(),
            (DRAIN, State::Running) if self.recorder.is_between(now) => {
                self.state = State::Lingering { until_ns: now + LINGER_NS };
            }
            (_, State::Running) => self.cut(now),
            _ => {}
        }
        let is_over = match self.state {
            State::Draining | State::Full => self.flights.count() == 0,
            State::Lingering { until_ns } => now >= until_ns || !self.is_standing_still(now),
            _ => false,
        };
        if is_over {
            self.state = State::Ended;
        }
    }

    /// Whether a call in flight has been waited for far longer than any took. A closed loop that is to end lingers for its
    /// answer; what stays unanswered the meter takes as silence (`Meter::take_silence`).
    fn is_standing_still(&self, now: u64) -> bool {
        let longest_ns = self.recorder.longest_ns();
        longest_ns > 0 && self.flights.ages(now).into_iter().any(|ns| ns > LOST * longest_ns)
    }

    fn cut(&mut self, now: u64) {
        let (phase, width_ns) = (self.shared.phase.load(Relaxed), self.shared.width_ns.load(Relaxed));
        let before = self.recorder.phase();
        if let Some(window) = self.recorder.cut_between(phase, width_ns, now) {
            self.hand_over(window);
            if phase != before {
                (self.phase_begun_ns, self.next_sample_ns) = (now, now);
            }
        }
    }

    fn drain(&mut self) {
        let window = self.recorder.drain();
        self.hand_over(window);
        self.state = State::Draining;
    }

    fn hand_over(&self, window: Window) {
        let _ = self.reports.send(Report::Window(Box::new(window)));
    }

    fn send_due(&mut self) {
        let is_running = self.is_running();
        if is_running || matches!(self.state, State::Draining | State::Lingering { .. }) {
            self.send_waiting();
        }
        if !is_running {
            return;
        }
        let most = if self.open { MOST_DUE } else { usize::MAX };
        let mut now = self.clock.now_ns();
        for _ in 0..most {
            if self.open && self.recorder.is_full(self.shared.limit.load(Relaxed)) {
                return self.drain();
            }
            let Some(scheduled_ns) = self.orders.pacer.take_due(now, self.flights.count()) else { return };
            self.recorder.due(scheduled_ns);
            if self.open {
                now = self.clock.now_ns();
            }
            let times = Times { scheduled_ns, sent_ns: now };
            match self.place() {
                Ok(index) => self.send(index, times),
                Err(Failure::Refused | Failure::StreamsLimit) if self.open && self.places.any_coming() => {
                    self.hold(times)
                }
                Err(failure) if self.open => self.record(None, times, Err(failure), now),
                Err(_) => return,
            }
        }
    }

    /// At the start all connections stand or have failed, so that calls are spread evenly over them.
    fn is_running(&mut self) -> bool {
        if self.state == State::Connecting && self.places.are_ready() {
            let now = self.clock.now_ns();
            self.orders.pacer.start(now);
            self.recorder.start(self.shared.phase.load(Relaxed), now);
            self.phase_begun_ns = now;
            self.state = State::Running;
        }
        self.state == State::Running
    }

    /// Where the next call goes, or why it cannot go anywhere.
    fn place(&mut self) -> Result<usize, Failure> {
        if self.open && self.flights.count() >= self.orders.max_in_flight {
            return Err(Failure::InFlightLimit);
        }
        if !self.places.any_settled() {
            return Err(Failure::Refused);
        }
        self.places.roomiest().ok_or(Failure::StreamsLimit)
    }

    fn send(&mut self, index: usize, times: Times) {
        let kept = times.sent_ns >= self.next_sample_ns && !self.shared.checking.swap(true, Relaxed);
        if kept {
            let gap_ns = (times.sent_ns - self.phase_begun_ns) / SAMPLE_EVERY;
            self.next_sample_ns = times.sent_ns + gap_ns.max(SAMPLE_EVERY_NS);
        }
        let token = self.flights.begin(times, kept);
        self.put(token, index, kept, times.sent_ns);
        self.recorder.sent(times, self.flights.count());
    }

    /// Puts a call on a connection.
    fn put(&mut self, token: usize, index: usize, kept: bool, now: u64) {
        let Link::Up(conn) = &mut self.places[index].link else { return self.flights.wait(token) };
        let number = self.protocol.send(conn, token, kept);
        self.flights.sent(token, Sent { link: index, number, since_ns: now });
    }

    /// Has a call that is due wait for a connection that is being made. The client is on time: what it waits for is the
    /// server's.
    fn hold(&mut self, times: Times) {
        let token = self.flights.begin(times, false);
        self.flights.wait(token);
        self.recorder.sent(times, self.flights.count());
    }

    /// Sends what waited for a connection, as far as there is room.
    fn send_waiting(&mut self) {
        while let Some(kept) = self.flights.first_waiting().map(|(_, flight)| flight.kept) {
            let Some(index) = self.places.roomiest() else { return };
            let Some(token) = self.flights.take_waiting() else { return };
            let now = self.clock.now_ns();
            self.put(token, index, kept, now);
        }
    }

    fn flush(&mut self) {
        for index in 0..self.places.len() {
            self.flush_place(index);
        }
    }

    fn flush_place(&mut self, index: usize) {
        if let Link::Up(conn) = &mut self.places[index].link
            && conn.wants_write()
            && let Err(error) = conn.write()
        {
            self.hang_up(index, (&error).into());
        }
    }

    fn wait(&mut self) {
        let is_idle =
            self.open && self.state == State::Running && self.flights.count() == 0 && self.places.any_settled();
        self.shared.idle.store(is_idle, Relaxed);
        self.watches.clear();
        self.watches.push(Watch::new(self.woken.as_fd(), false));
        let longest_ns = if self.state == State::Full { GAP_NS } else { MAX_WAIT_NS };
        let mut until = self.clock.now_ns() + longest_ns;
        for place in self.places.iter() {
            match &place.link {
                Link::Up(conn) => self.watches.push(Watch::new(conn.socket().as_fd(), conn.wants_write())),
                Link::Down { retry_ns } => until = until.min(*retry_ns),
                Link::Idle | Link::Connecting => {}
            }
        }
        if self.flights.count() > 0 {
            until = until.min(self.next_sweep_ns);
        }
        if self.state == State::Running
            && let Some(next) = self.orders.pacer.next_ns()
        {
            until = until.min(next.saturating_sub(SPIN_NS));
        }
        let may_pay = (1..=AWAKE_IN_FLIGHT).contains(&self.flights.count()) && self.awake.pays();
        if may_pay && self.stay_awake(until) {
            return;
        }
        let left = until.saturating_sub(self.clock.now_ns());
        // An error here is a defect of ours; the loop goes on and its calls time out.
        let _ = sys::wait(&mut self.watches, Duration::from_nanos(left));
    }

    /// Polls the connections without sleeping for a while. True if something came.
    fn stay_awake(&mut self, until: u64) -> bool {
        let begun = self.clock.now_ns();
        let (end, mut now) = (until.min(begun + AWAKE_NS), begun);
        let is_ready = |watches: &[Watch]| watches.iter().any(Watch::readable);
        while now < end && !is_ready(&self.watches) {
            // An engine may have its threads on every core.
            sys::give_way();
            let _ = sys::wait(&mut self.watches, Duration::ZERO);
            now = self.clock.now_ns();
        }
        self.recorder.stayed_awake(now - begun);
        let came = is_ready(&self.watches);
        // A wait that a due send ended says nothing of the answers.
        if came || end < until {
            self.awake.learn(came);
        }
        came
    }

    fn receive(&mut self) {
        if self.watches.first().is_some_and(Watch::readable) {
            let _ = (&self.woken).read(&mut self.buffer);
            while let Ok((index, result)) = self.dialled.1.try_recv() {
                self.on_dialled(index, result);
            }
        }
        let mut watch = 1;
        for index in 0..self.places.len() {
            // Connections that were just made are not among the watches.
            let Some(ready) = self.watches.get(watch) else { break };
            let Link::Up(conn) = &self.places[index].link else { continue };
            if !ready.is_for(conn.socket().as_fd()) {
                continue;
            }
            let (readable, writable) = (ready.readable(), ready.writable());
            watch += 1;
            if writable {
                self.flush_place(index);
            }
            if readable {
                self.read(index);
            }
        }
    }

    fn read(&mut self, index: usize) {
        loop {
            let Link::Up(conn) = &mut self.places[index].link else { return };
            let was_going = conn.is_going_away();
            let result = conn.read(&mut self.buffer, &mut self.seen);
            if conn.is_going_away() && !was_going && !conn.is_unused() {
                self.recorder.connection_ended();
            }
            let now = self.clock.now_ns();
            self.places[index].heard_ns = now;
            self.events.take_in(&mut self.seen);
            self.settle(now);
            match result {
                Ok(true) => {}
                Ok(false) => break,
                Err(lost) => return self.lose(index, lost, now),
            }
        }
        if let Link::Up(conn) = &self.places[index].link {
            if conn.is_spent() && conn.is_unused() {
                self.hang_up(index, Lost::because(Failure::Goaway, "the server turns connections away"));
            } else if conn.is_spent() {
                self.places.vacate(index);
            } else if conn.is_settled() && !conn.is_going_away() {
                self.places[index].failures = 0;
                if std::mem::take(&mut self.is_down) {
                    let _ = self.reports.send(Report::Up);
                }
            }
        }
    }

    /// Records calls that ended, and sends calls again that the server never began.
    fn settle(&mut self, now: u64) {
        let mut done = std::mem::take(&mut self.seen.done);
        for ended in done.drain(..) {
            if ended.result.is_err_and(Failure::is_unbegun) && self.is_sent_again(ended.token) {
                continue;
            }
            let Some(flight) = self.flights.end(ended.token) else { continue };
            match ended.message {
                Some(message) => _ = self.reports.send(Report::Answer(message)),
                None if flight.kept => self.shared.checking.store(false, Relaxed),
                None => {}
            }
            if let (Err(failure), Some(words)) = (ended.result, ended.words)
                && !self.told.contains(&failure)
            {
                self.told.push(failure);
                let _ = self.reports.send(Report::Words(failure, words));
            }
            self.record(Some(ended.token), flight.times, ended.result, now);
            self.events.clear(ended.token);
        }
        self.seen.done = done;
    }

    fn is_sent_again(&mut self, token: usize) -> bool {
        if !matches!(self.state, State::Running | State::Draining | State::Lingering { .. }) {
            return false;
        }
        let again = self.flights.again(token);
        self.events.clear(token);
        if again == Some(1) {
            self.recorder.resent();
        }
        again.is_some()
    }

    fn record(&mut self, token: Option<usize>, times: Times, outcome: Result<(), Failure>, now: u64) {
        let events = token.map_or(&[][..], |token| self.events.of(token));
        let call = CallRecord::new(times, events, outcome, now);
        match self.state {
            // Calls that ended after the last window do not count.
            State::Ended => return,
            State::Full => return self.recorder.ended_beyond(outcome, now),
            _ => self.recorder.ended(&call),
        }
        if !self.open && self.recorder.is_full(self.shared.limit.load(Relaxed)) {
            self.state = State::Full;
        }
    }
}
