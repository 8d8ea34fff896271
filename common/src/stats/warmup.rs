//! When warm-up is over: a pure rule on the series so far.
//!
//! The stated test is MSER (K. P. White, "An effective truncation heuristic for bias reduction in simulation
//! output", Simulation 69, 1997): dropping the start at which the standard error of the rest is least. The
//! series is stationary when that start lies in its first half. A difference between its halves of less than
//! 1 % is none.

use super::series::{Batch, Series};
use std::time::Duration;

/// The classic warm-up.
const MIN_CALLS: u64 = 10;
const MIN_TIME: Duration = Duration::from_millis(500);
const MIN_BATCHES: usize = 8;
const SAME: f64 = 0.01;

/// What is said of a warm-up so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Warmth {
    /// Not yet.
    Warming,
    /// Stationary.
    Warm,
    /// Out of time, and still drifting.
    Drifting,
}

/// Judges a warm-up of this length before a point of at most `max`.
pub fn judge(series: &Series, elapsed: Duration, max: Duration) -> Warmth {
    let enough_calls = series.requests() >= MIN_CALLS || elapsed >= max / 10;
    let enough_time = elapsed >= MIN_TIME.min(max / 10);
    if enough_calls && enough_time && is_stationary(series.batches()) {
        Warmth::Warm
    } else if elapsed >= max / 3 {
        // Few slow calls cannot show a drift: then the time is the rule.
        if series.batches().len() < MIN_BATCHES { Warmth::Warm } else { Warmth::Drifting }
    } else {
        Warmth::Warming
    }
}

/// Whether the mean latency of the batches has settled.
pub fn is_stationary(batches: &[Batch]) -> bool {
    let means: Vec<f64> = batches.iter().filter_map(Batch::mean_ns).collect();
    if means.len() < MIN_BATCHES {
        return false;
    }
    let (first, second) = means.split_at(means.len() / 2);
    (mean(first) / mean(second) - 1.0).abs() < SAME || mser(&means) <= means.len() / 2
}

/// The number of values to drop from the start; the last quarter is never considered.
fn mser(values: &[f64]) -> usize {
    let error = |d: usize| {
        let rest = &values[d..];
        let centre = mean(rest);
        rest.iter().map(|v| (v - centre).powi(2)).sum::<f64>() / (rest.len() as f64).powi(2)
    };
    (0..=values.len() * 3 / 4).min_by(|&a, &b| error(a).total_cmp(&error(b))).unwrap_or(0)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(latencies_us: impl IntoIterator<Item = u64>) -> Series {
        let mut series = Series::default();
        for us in latencies_us {
            let mut batch = Batch { duration_ns: us * 1000, ..Batch::default() };
            batch.record(us * 1000);
            series.push(&batch);
        }
        series
    }

    #[test]
    fn a_ramp_is_not_warm_and_what_follows_it_is() {
        let max = Duration::from_secs(30);
        let ramp = series((0..24).map(|i| 5000 - i * 150));
        assert_eq!(judge(&ramp, Duration::from_secs(1), max), Warmth::Warming);
        assert_eq!(judge(&ramp, Duration::from_secs(10), max), Warmth::Drifting);
        let settled = series((0..30).map(|i| if i < 5 { 5000 - i * 700 } else { 1400 + (i * 7919) % 100 }));
        assert_eq!(judge(&settled, Duration::from_secs(1), max), Warmth::Warm);
        let constant = series(std::iter::repeat_n(1000, 12));
        assert_eq!(judge(&constant, Duration::from_millis(400), max), Warmth::Warming);
        assert_eq!(judge(&constant, Duration::from_millis(500), max), Warmth::Warm);
    }

    #[test]
    fn slow_calls_end_warm_up_by_time() {
        let max = Duration::from_secs(9);
        let slow = series([700_000, 400_000, 400_000]);
        assert_eq!(judge(&slow, Duration::from_secs(2), max), Warmth::Warming);
        assert_eq!(judge(&slow, Duration::from_secs(3), max), Warmth::Warm);
    }
}
