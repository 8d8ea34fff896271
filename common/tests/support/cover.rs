//! How often intervals cover the truth: many seeded runs of a law, on every core.

use super::{
    laws::{Law, Rng},
    simulate::run,
};
use modelmeter_common::stats::{Interval, percentile::PERCENTILES, stop::StopRule};
use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Histograms tell values apart to three digits.
const DIGITS: f64 = 1e-3;

/// What is judged of each run: throughput, then [`PERCENTILES`].
pub const FIGURES: usize = 1 + PERCENTILES.len();

/// The true figures of a law, from one run that is very much longer than those it judges.
pub fn truth(law: &Law, calls: usize) -> [f64; FIGURES] {
    let mut next = (law.calls)(Rng::new(u64::MAX));
    let mut latencies_ms = Vec::with_capacity(calls);
    let mut end_s = 0.0;
    for _ in 0..calls {
        let call = next();
        end_s = call.end_s;
        latencies_ms.push((call.latency_s * 1e3) as f32);
    }
    let mut percentile = |q: f64| {
        let at = (calls as f64 * q / 100.0) as usize;
        f64::from(*latencies_ms.select_nth_unstable_by(at, f32::total_cmp).1)
    };
    let [p50, p90, p95, p99, p99_9] = PERCENTILES.map(&mut percentile);
    [calls as f64 / end_s, p50, p90, p95, p99, p99_9]
}

/// Of one figure over many runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hits {
    /// Runs that gave an interval.
    pub given: u64,
    /// Whose interval lies below the truth.
    pub low: u64,
    /// Whose interval lies above the truth.
    pub high: u64,
}

impl Hits {
    fn note(&mut self, interval: Option<Interval>, truth: f64) {
        let Some(Interval { ci95: [low, high], .. }) = interval else { return };
        self.given += 1;
        self.low += u64::from(high < truth * (1.0 - DIGITS));
        self.high += u64::from(low > truth * (1.0 + DIGITS));
    }

    /// The share of the intervals given that cover the truth.
    pub fn coverage(&self) -> f64 {
        1.0 - (self.low + self.high) as f64 / self.given.max(1) as f64
    }
}

/// Of one law.
#[derive(Clone, Debug, Default)]
pub struct Covered {
    pub runs: u64,
    pub converged: u64,
    /// Of each run, warm-up included, sorted.
    pub took_s: Vec<f64>,
    pub calls: u64,
    pub figures: [Hits; FIGURES],
}

impl Covered {
    pub fn median_s(&self) -> f64 {
        self.took_s[self.took_s.len() / 2]
    }
}

/// Runs this law from these seeds on.
pub fn cover(law: &Law, truth: &[f64; FIGURES], rule: StopRule, first_seed: u64, runs: u64) -> Covered {
    let (next, all) = (AtomicU64::new(0), Mutex::new(Covered { runs, ..Covered::default() }));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Relaxed);
            if seed >= runs {
                return;
            }
            let run = run((law.calls)(Rng::new(first_seed + seed)), rule);
            let (rate, percentiles) = (run.series.throughput(), run.series.percentiles());
            let mut all = all.lock().expect("no thread panics while it holds this");
            all.took_s.push(run.took_s);
            all.converged += u64::from(run.converged);
            all.calls += run.series.requests();
            let intervals = std::iter::once(rate).chain(percentiles.iter().map(|p| p.ms));
            for ((figure, interval), truth) in all.figures.iter_mut().zip(intervals).zip(truth) {
                figure.note(interval, *truth);
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| (0..cores).for_each(|_| drop(scope.spawn(work))));
    let mut all = all.into_inner().expect("no thread panicked");
    all.took_s.sort_by(f64::total_cmp);
    all
}
