//! Laws of latency that a mock server obeys.

use super::mock::Reply;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::time::{Duration, Instant};

pub const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Always the same.
pub fn constant(service: Duration) -> impl FnMut(usize, Instant) -> Reply + Send {
    move |_, _| Reply::After(service)
}

/// A share of the requests takes longer.
pub fn bimodal(fast: Duration, slow: Duration, share: f64, seed: u64) -> impl FnMut(usize, Instant) -> Reply + Send {
    let mut rng = SmallRng::seed_from_u64(seed);
    move |_, _| Reply::After(if rng.random::<f64>() < share { slow } else { fast })
}

/// Log-normal, by Box and Muller.
pub fn log_normal(median: Duration, sigma: f64, seed: u64) -> impl FnMut(usize, Instant) -> Reply + Send {
    let mut rng = SmallRng::seed_from_u64(seed);
    move |_, _| {
        let (u, v) = (1.0 - rng.random::<f64>(), rng.random::<f64>());
        let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
        Reply::After(median.mul_f64((sigma * normal).exp()))
    }
}

/// When the server stalls: this long at the end of each period, from when it was made.
#[derive(Clone, Copy)]
pub struct Stalls {
    begun: Instant,
    period: Duration,
    length: Duration,
}

impl Stalls {
    pub fn every(period: Duration, length: Duration) -> Self {
        Self { begun: Instant::now(), period, length }
    }

    fn phase(&self, at: Instant) -> Duration {
        Duration::from_nanos(((at - self.begun).as_nanos() % self.period.as_nanos()) as u64)
    }

    /// Whether a request that comes now meets a stall.
    pub fn holds(&self, at: Instant) -> bool {
        self.phase(at) >= self.period - self.length
    }

    /// How long a piece of work that begins now takes if nothing is done in stalls.
    fn stretched(&self, at: Instant, work: Duration) -> Duration {
        let (run, phase) = (self.period - self.length, self.phase(at));
        let wait = self.period.saturating_sub(phase).min(self.length);
        let wait = if phase >= run { wait } else { Duration::ZERO };
        let first = if phase >= run { run } else { run - phase };
        let mut left = work;
        let mut took = wait;
        let mut room = first;
        while left > room {
            left -= room;
            took += room + self.length;
            room = run;
        }
        took + left
    }
}

/// The whole server stands still in a stall: what it works on is held up, too.
pub fn freezes(stalls: Stalls, service: Duration) -> impl FnMut(usize, Instant) -> Reply + Send {
    move |_, at| Reply::After(stalls.stretched(at, service))
}

/// Each third request that comes in a stall waits for its end; the others pass.
pub fn held_lanes(stalls: Stalls, service: Duration) -> impl FnMut(usize, Instant) -> Reply + Send {
    move |nth, at| {
        let held = nth % 3 == 0 && stalls.holds(at);
        Reply::After(service + if held { stalls.period - stalls.phase(at) } else { Duration::ZERO })
    }
}

/// Everything that comes in a stall takes so many times as long.
pub fn brown_outs(stalls: Stalls, service: Duration, factor: u32) -> impl FnMut(usize, Instant) -> Reply + Send {
    move |_, at| Reply::After(if stalls.holds(at) { service * factor } else { service })
}

/// All that came since the last time is answered at once, each so often.
pub fn lockstep(period: Duration) -> impl FnMut(usize, Instant) -> Reply + Send {
    let begun = Instant::now();
    move |_, at| Reply::After(period - Duration::from_nanos(((at - begun).as_nanos() % period.as_nanos()) as u64))
}

/// One request at a time, in the order in which they come.
pub fn serial(service: Duration) -> impl FnMut(usize, Instant) -> Reply + Send {
    let mut free = Instant::now();
    move |_, at| {
        free = free.max(at) + service;
        Reply::After(free - at)
    }
}

/// What comes in a stall fails, as late as the rest answers.
pub fn error_bursts(stalls: Stalls, service: Duration) -> impl FnMut(usize, Instant) -> Reply + Send {
    move |_, at| if stalls.holds(at) { Reply::Status(14, service) } else { Reply::After(service) }
}
