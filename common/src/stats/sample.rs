//! The samples of a run: latencies and failures in one order, and the ranks of percentiles in it.

use super::Histogram;

/// The percentile that every run with a success has.
pub const MEDIAN: f64 = 50.0;

/// Calls from which on a percentile is observed: one is expected to lie beyond it. A median is seen of a single call.
pub fn observable(q: f64) -> u64 {
    if q <= MEDIAN { 1 } else { (100.0 / (100.0 - q)).round() as u64 }
}

/// Consecutive batches of a run: successes' latencies, and failures, which rank slower than all of them.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// Latencies of the successes.
    pub latency: &'a Histogram,
    /// Number of failures.
    pub failures: u64,
}

impl Sample<'_> {
    pub(crate) fn len(&self) -> u64 {
        self.latency.len() + self.failures
    }

    /// The value at this rank in ms; none where it falls among the failures.
    pub(crate) fn rank_ms(&self, rank: u64) -> Option<f64> {
        (rank <= self.latency.len()).then(|| self.latency.rank_ns(rank) as f64 / 1e6)
    }

    /// The percentile as it was observed, in ms.
    pub fn observed_ms(&self, q: f64) -> Option<f64> {
        let n = self.len();
        if n < observable(q) { None } else { self.rank_ms(rank(q, n)) }
    }
}

/// The rank (from 1) of a percentile among n.
pub fn rank(q: f64, n: u64) -> u64 {
    // 99.9 / 100 * 1000 is a hair above 999.
    ((q / 100.0 * n as f64 - 1e-9).ceil() as u64).clamp(1, n.max(1))
}
