//! What the event loop writes down: stretches of the run, cut at the ends of calls, each handed over
//! whole. Memory does not depend on the number of calls.

use super::outcome::Failure;
use modelmeter_common::stats::{Histogram, series::Batch};
use std::collections::BTreeMap;

/// Sends later than this make an open loop unsound.
const LATE_NS: u64 = 1_000_000;

/// A stretch of the run.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    pub batch: Batch,
    pub errors: BTreeMap<Failure, u64>,
    /// Which phase it belongs to: 0 warm-up, 1 measured.
    pub phase: u32,
    /// Its calls ended after the run: they count for latency alone.
    pub late: bool,
    /// CPU time of the loop's thread in it.
    pub cpu_ns: u64,
    /// Of that, what went into waiting awake.
    pub awake_ns: u64,
}

/// What only makes sense for the whole measured phase.
#[derive(Clone, Debug, Default)]
pub(super) struct Sends {
    pub service: Histogram,
    pub lateness: Histogram,
    pub sends: u64,
    pub late: u64,
    pub limit_hits: u64,
    /// Calls in flight at once, warm-up included.
    pub most_in_flight: usize,
}

/// One call's times.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub scheduled_ns: u64,
    pub sent_ns: u64,
}

/// The loop's notebook.
#[derive(Debug)]
pub(super) struct Recorder {
    open: bool,
    window: Window,
    begin_ns: u64,
    begin_cpu_ns: u64,
    last_end_ns: u64,
    phase: u32,
    /// Open loop: the latencies of calls scheduled before this belong to the phase before.
    from_ns: u64,
    counted: u64,
    sends: Sends,
}

impl Recorder {
    pub fn new(open: bool) -> Self {
        Self {
            open,
            window: Window::default(),
            begin_ns: 0,
            begin_cpu_ns: 0,
            last_end_ns: 0,
            phase: 0,
            from_ns: 0,
            counted: 0,
            sends: Sends::default(),
        }
    }

    /// Sending begins.
    pub fn start(&mut self, now: u64, cpu_ns: u64) {
        (self.begin_ns, self.last_end_ns, self.begin_cpu_ns) = (now, now, cpu_ns);
    }

    pub fn phase(&self) -> u32 {
        self.phase
    }

    /// Calls counted in this phase.
    pub fn counted(&self) -> u64 {
        self.counted
    }

    /// A call is sent, and is one of so many in flight.
    pub fn sent(&mut self, times: Times, in_flight: usize) {
        self.sends.most_in_flight = self.sends.most_in_flight.max(in_flight);
        if self.open && self.phase > 0 && times.scheduled_ns >= self.from_ns {
            let lateness = times.sent_ns.saturating_sub(times.scheduled_ns);
            self.sends.lateness.record(lateness);
            self.sends.sends += 1;
            self.sends.late += u64::from(lateness > LATE_NS);
        }
    }

    /// A call ended.
    pub fn ended(&mut self, times: Times, result: Result<(), Failure>, now: u64) {
        self.last_end_ns = now;
        if self.open && times.scheduled_ns < self.from_ns {
            self.window.batch.carried += u64::from(result.is_ok());
            return;
        }
        self.counted += 1;
        match result {
            Ok(()) => {
                let from = if self.open { times.scheduled_ns } else { times.sent_ns };
                self.window.batch.latency.record(now.saturating_sub(from));
                if self.open && self.phase > 0 {
                    self.sends.service.record(now.saturating_sub(times.sent_ns));
                }
            }
            Err(failure) => {
                self.window.batch.failures += 1;
                *self.window.errors.entry(failure).or_insert(0) += 1;
                self.sends.limit_hits += u64::from(failure == Failure::InFlightLimit && self.phase > 0);
            }
        }
    }

    /// The loop waited without sleeping.
    pub fn stayed_awake(&mut self, ns: u64) {
        self.window.awake_ns += ns;
    }

    /// Whether the window is this wide.
    pub fn is_wide(&self, width_ns: u64) -> bool {
        self.last_end_ns - self.begin_ns >= width_ns
    }

    /// Ends the window at the last end of a call.
    pub fn cut(&mut self, cpu_ns: u64, late: bool) -> Window {
        let mut window = std::mem::take(&mut self.window);
        window.batch.duration_ns = self.last_end_ns - self.begin_ns;
        window.phase = self.phase;
        window.late = late;
        window.cpu_ns = cpu_ns - self.begin_cpu_ns;
        (self.begin_ns, self.begin_cpu_ns) = (self.last_end_ns, cpu_ns);
        window
    }

    /// The next phase begins, at the window's begin.
    pub fn enter(&mut self, phase: u32) {
        self.phase = phase;
        self.from_ns = self.begin_ns;
        self.counted = 0;
    }

    /// The whole phase's figures.
    pub fn into_sends(self) -> Sends {
        self.sends
    }
}
