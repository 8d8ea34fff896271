//! The recorder: collects a client's calls in windows, which are stretches of the run, and hands each window over whole.
//! Memory does not depend on the number of calls.
//!
//! Servers that batch end many calls at once. A window therefore goes from the end of one burst of calls to the end of
//! another, so that it holds as many bursts as waits between them.

use super::{CallRecord, Failure, Metric, Times};
use crate::sys::{self, Schedstat};
use modelmeter_common::stats::{Histogram, series::Batch};
use std::collections::BTreeMap;

/// Sends later than this make an open loop unsound.
const LATE_NS: u64 = 1_000_000;

/// A burst is over once no call has ended for this long.
pub(crate) const GAP_NS: u64 = 300_000;
/// Where calls end all the time, one need not wait for a gap longer than this, nor than half of what is cut.
const PATIENCE_NS: u64 = 5_000_000;

/// A call that was waited for longer than any other took, by this factor, may never have been answered.
pub(crate) const LOST: u64 = 2;

/// A stretch of the run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Window {
    pub batch: Batch,
    /// One batch for each metric, in the transport's order.
    pub metrics: Vec<Batch>,
    pub errors: BTreeMap<Failure, u64>,
    /// Which phase it belongs to: 0 warm-up, 1 measured.
    pub phase: u32,
    /// CPU time of the loop's thread in it.
    pub cpu_ns: u64,
    /// Part of the CPU time that went into busy waiting.
    pub awake_ns: u64,
    /// Time in which the thread was ready to run and had no core.
    pub starved_ns: u64,
    /// Calls that were sent again, because the server had not begun them.
    pub resent: u64,
    /// Connections that the server ended gracefully.
    pub connections_ended: u64,
}

/// Figures of the whole measured phase.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sends {
    pub service: Histogram,
    pub lateness: Histogram,
    pub sends: u64,
    pub late: u64,
    /// Calls in flight at once, warm-up included.
    pub most_in_flight: usize,
    /// How long each call that was never answered had been waited for when the loop ended.
    pub unanswered_ns: Vec<u64>,
}

/// Collects the calls of one client.
#[derive(Debug)]
pub(crate) struct Recorder {
    open: bool,
    metrics: &'static [Metric],
    window: Window,
    begin_ns: u64,
    begin_cpu_ns: u64,
    begin_starved_ns: u64,
    schedstat: Schedstat,
    last_end_ns: u64,
    /// When the wait for a gap between bursts began.
    waiting_ns: Option<u64>,
    phase: u32,
    /// Whether scheduling has ended.
    late: bool,
    /// Open loop: the latencies of calls scheduled before this belong to the phase before.
    from_ns: u64,
    due: u64,
    ended: u64,
    /// The longest latency in the phase's windows so far.
    longest_ns: u64,
    sends: Sends,
}

impl Recorder {
    pub fn new(open: bool, metrics: &'static [Metric]) -> Self {
        Self {
            open,
            metrics,
            window: empty(metrics),
            begin_ns: 0,
            begin_cpu_ns: 0,
            begin_starved_ns: 0,
            schedstat: Schedstat::default(),
            last_end_ns: 0,
            waiting_ns: None,
            phase: 0,
            late: false,
            from_ns: 0,
            due: 0,
            ended: 0,
            longest_ns: 0,
            sends: Sends::default(),
        }
    }

    /// Begins to record, on the thread that sends.
    pub fn start(&mut self, phase: u32, now: u64) {
        self.schedstat = Schedstat::of_this_thread();
        (self.begin_cpu_ns, self.begin_starved_ns) = (sys::thread_cpu_ns(), self.schedstat.starved_ns());
        (self.begin_ns, self.last_end_ns) = (now, now);
        (self.phase, self.from_ns) = (phase, now);
    }

    pub fn phase(&self) -> u32 {
        self.phase
    }

    /// The window so far, where it is this wide or the next phase begins, and no burst of ends is going on. Asked before
    /// what came meanwhile is taken in.
    pub fn cut_between(&mut self, phase: u32, width_ns: u64, now: u64) -> Option<Window> {
        let is_wanted = phase != self.phase || self.last_end_ns - self.begin_ns >= width_ns;
        if self.late || !is_wanted || !self.is_between_within(PATIENCE_NS.min(width_ns / 2), now) {
            return None;
        }
        let window = self.cut();
        if phase != self.phase {
            (self.phase, self.from_ns, self.due, self.ended, self.longest_ns) = (phase, now, 0, 0, 0);
        }
        Some(window)
    }

    /// Whether no burst of ends is going on, or it goes on for ever.
    pub fn is_between(&mut self, now: u64) -> bool {
        self.is_between_within(PATIENCE_NS, now)
    }

    fn is_between_within(&mut self, patience_ns: u64, now: u64) -> bool {
        let since = *self.waiting_ns.get_or_insert(now);
        now.saturating_sub(self.last_end_ns) >= GAP_NS || now - since >= patience_ns
    }

    /// Ends scheduling and returns the window so far. Calls that end from now on count as late.
    pub fn drain(&mut self) -> Window {
        let window = self.cut();
        self.late = true;
        window
    }

    /// Whether so many calls of the measured phase were due (open loop) or have ended (closed).
    pub fn is_full(&self, limit: u64) -> bool {
        self.phase > 0 && if self.open { self.due } else { self.ended } >= limit
    }

    /// Notes that a call is due.
    pub fn due(&mut self, scheduled_ns: u64) {
        self.due += u64::from(scheduled_ns >= self.from_ns);
    }

    /// Notes that a call was sent, with so many in flight.
    pub fn sent(&mut self, times: Times, in_flight: usize) {
        self.sends.most_in_flight = self.sends.most_in_flight.max(in_flight);
        if self.open && self.phase > 0 && times.scheduled_ns >= self.from_ns {
            let lateness = times.sent_ns.saturating_sub(times.scheduled_ns);
            self.sends.lateness.record(lateness);
            self.sends.sends += 1;
            self.sends.late += u64::from(lateness > LATE_NS);
        }
    }

    /// Records a call that ended.
    pub fn ended(&mut self, call: &CallRecord<'_>) {
        let now = call.end_ns;
        self.last_end_ns = self.last_end_ns.max(now);
        if self.open && call.scheduled_ns < self.from_ns {
            self.window.batch.carried += u64::from(call.outcome.is_ok());
            return;
        }
        self.ended += 1;
        match call.outcome {
            Ok(()) => {
                let from = if self.open { call.scheduled_ns } else { call.sent_ns };
                self.window.batch.record(now.saturating_sub(from));
                for (metric, batch) in self.metrics.iter().zip(&mut self.window.metrics) {
                    (metric.record)(call, batch);
                }
                if self.open && self.phase > 0 {
                    self.sends.service.record(now.saturating_sub(call.sent_ns));
                }
            }
            Err(failure) => {
                self.window.batch.failures += 1;
                self.window.metrics.iter_mut().for_each(|batch| batch.failures += 1);
                *self.window.errors.entry(failure).or_insert(0) += 1;
            }
        }
    }

    /// A call ended beyond those asked for, in one burst with the last of them: it counts for the rate alone.
    pub fn ended_beyond(&mut self, result: Result<(), Failure>, now: u64) {
        self.last_end_ns = self.last_end_ns.max(now);
        self.window.batch.carried += u64::from(result.is_ok());
    }

    /// Counts a call that is sent again for the first time.
    pub fn resent(&mut self) {
        self.window.resent += 1;
    }

    /// Counts a connection on which the server takes no more calls.
    pub fn connection_ended(&mut self) {
        self.window.connections_ended += 1;
    }

    /// Adds time that the loop waited without sleeping.
    pub fn stayed_awake(&mut self, ns: u64) {
        self.window.awake_ns += ns;
    }

    /// The longest latency of this phase; 0 before the first call.
    pub fn longest_ns(&self) -> u64 {
        self.longest_ns.max(self.window.batch.latency.max_ns())
    }

    fn cut(&mut self) -> Window {
        self.longest_ns = self.longest_ns();
        let mut window = std::mem::replace(&mut self.window, empty(self.metrics));
        (window.phase, self.waiting_ns) = (self.phase, None);
        if self.late {
            window.batch.carried = 0;
            for batch in std::iter::once(&mut window.batch).chain(&mut window.metrics) {
                batch.late = batch.latency.len();
            }
            return window;
        }
        let (cpu_ns, starved_ns) = (sys::thread_cpu_ns(), self.schedstat.starved_ns());
        for batch in std::iter::once(&mut window.batch).chain(&mut window.metrics) {
            batch.duration_ns = self.last_end_ns - self.begin_ns;
        }
        window.cpu_ns = cpu_ns - self.begin_cpu_ns;
        window.starved_ns = starved_ns.saturating_sub(self.begin_starved_ns);
        (self.begin_ns, self.begin_cpu_ns, self.begin_starved_ns) = (self.last_end_ns, cpu_ns, starved_ns);
        window
    }

    /// The loop ends with these calls in flight, waited for so long: the last window, and the whole phase's figures.
    pub fn end(mut self, unanswered_ns: Vec<u64>) -> (Window, Sends) {
        let window = self.cut();
        (window, Sends { unanswered_ns, ..self.sends })
    }
}

/// An empty window.
fn empty(metrics: &[Metric]) -> Window {
    Window { metrics: vec![Batch::default(); metrics.len()], ..Window::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// What is cut where 32 calls end within 0.1 ms, once in 50 ms, and the loop looks each 0.1 ms whether it may cut.
    #[test]
    fn windows_hold_as_many_bursts_as_waits() {
        let mut recorder = Recorder::new(false, &[]);
        recorder.start(0, 0);
        let mut windows = Vec::new();
        for now in (1..2000).map(|tick| tick * MS / 10) {
            let phase = u32::from(now > 30 * MS);
            windows.extend(recorder.cut_between(phase, 8 * MS, now));
            for _ in 0..if now % (50 * MS) == 0 { 32 } else { 0 } {
                recorder.ended(&CallRecord::unary(Times { scheduled_ns: 0, sent_ns: now - 50 * MS }, Ok(()), now));
            }
        }
        let measured = windows.iter().filter(|window| window.phase == 1).map(|window| &window.batch);
        let seen: Vec<_> = measured.map(|batch| (batch.latency.len(), batch.duration_ns / MS)).collect();
        assert_eq!(seen, [(32, 50); 3]);
    }

    #[test]
    fn calls_that_end_all_the_time_are_cut_after_a_while() {
        let mut recorder = Recorder::new(false, &[]);
        recorder.start(1, 0);
        let mut cuts = |width_ns: u64, from: u64| -> Vec<u64> {
            let is_cut = |now: &u64| {
                recorder.ended(&CallRecord::unary(Times { scheduled_ns: 0, sent_ns: 0 }, Ok(()), *now));
                recorder.cut_between(1, width_ns, *now).is_some()
            };
            (1..=20 * 10).map(|tick| from + tick * MS / 10).filter(is_cut).collect()
        };
        assert_eq!(cuts(10 * MS, 0), [15 * MS]);
        // From 15 to 23 ms and half as much; then what is narrow is not waited for.
        assert_eq!(cuts(8 * MS, 20 * MS), [27 * MS, 39 * MS]);
        assert!(cuts(MS, 40 * MS).len() >= 12);
    }
}
