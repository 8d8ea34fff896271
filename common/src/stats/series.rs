//! A run as a bounded series of consecutive batches: what its throughput and percentiles are worth.

use super::{
    Figure, Histogram, Interval,
    batch::{Spread, joined, spread},
    percentile::{Percentile, percentiles},
    sample::Sample,
};

/// At this many batches neighbours are joined in pairs, so that memory does not grow with the run.
const MOST: usize = 64;
/// Bounds of the stretches that are asked for.
const SHORTEST_NS: u64 = 10_000_000;
const LONGEST_NS: u64 = 250_000_000;

/// What happened in a stretch of a run. It ends at the end of a call, so that count and duration belong
/// together to the nanosecond.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Latencies of the successes.
    pub latency: Histogram,
    /// Their sum: a histogram tells it only counter by counter.
    pub latency_sum_ns: u64,
    /// Number of failures.
    pub failures: u64,
    /// From the end of the batch before to the end of this one.
    pub duration_ns: u64,
    /// Successes that ended here but were scheduled before the run: they belong to its throughput, not to its latencies.
    pub carried: u64,
    /// Of the latencies, those of calls that ended after the run: they do not belong to its throughput.
    pub late: u64,
}

impl Batch {
    /// A success.
    pub fn record(&mut self, latency_ns: u64) {
        self.latency.record(latency_ns);
        self.latency_sum_ns += latency_ns;
    }

    /// The mean latency of the successes; none without any.
    pub fn mean_ns(&self) -> Option<f64> {
        (!self.latency.is_empty()).then(|| self.latency_sum_ns as f64 / self.latency.len() as f64)
    }

    fn add(&mut self, other: &Self) {
        self.latency.merge(&other.latency);
        self.latency_sum_ns += other.latency_sum_ns;
        self.failures += other.failures;
        self.duration_ns += other.duration_ns;
        self.carried += other.carried;
        self.late += other.late;
    }

    /// Successes that belong to the throughput.
    fn successes(&self) -> u64 {
        self.latency.len() - self.late + self.carried
    }

    pub(super) fn sample(&self) -> Sample<'_> {
        Sample { latency: &self.latency, failures: self.failures }
    }
}

/// A run so far.
#[derive(Clone, Debug, Default)]
pub struct Series {
    batches: Vec<Batch>,
    width_ns: u64,
    total: Batch,
}

impl Series {
    /// Adds the next stretch; one of no duration belongs to the last.
    pub fn push(&mut self, next: &Batch) {
        if next.duration_ns == 0 && next.latency.is_empty() && next.failures == 0 && next.carried == 0 {
            return;
        }
        self.total.add(next);
        match self.batches.last_mut() {
            Some(last) if last.duration_ns < self.width_ns || next.duration_ns == 0 => last.add(next),
            _ => self.batches.push(next.clone()),
        }
        if self.batches.len() == MOST {
            self.width_ns = 2 * (self.total.duration_ns / MOST as u64);
            self.join();
        }
    }

    fn join(&mut self) {
        let mut old = std::mem::take(&mut self.batches).into_iter();
        while let Some(mut pair) = old.next() {
            if let Some(second) = old.next() {
                pair.add(&second);
            }
            self.batches.push(pair);
        }
    }

    /// Everything so far in one.
    pub fn total(&self) -> &Batch {
        &self.total
    }

    /// Measured time, in seconds.
    pub fn seconds(&self) -> f64 {
        self.total.duration_ns as f64 / 1e9
    }

    /// The batches as they are joined by now.
    pub fn batches(&self) -> &[Batch] {
        &self.batches
    }

    /// Calls so far, failures included.
    pub fn requests(&self) -> u64 {
        self.total.latency.len() + self.total.failures
    }

    /// How wide the next stretch that is pushed had better be: what the batch that is being filled lacks.
    pub fn window_ns(&self) -> u64 {
        let filled = self.batches.last().map_or(0, |last| last.duration_ns);
        let lacks = if filled < self.width_ns { self.width_ns - filled } else { self.width_ns };
        lacks.clamp(SHORTEST_NS, LONGEST_NS)
    }

    /// Successes a second, with their interval where there are two batches; none where nothing succeeded in a measurable time.
    /// Batches are joined until neighbours are no longer correlated, so that the interval holds on a machine that changes slowly.
    pub fn rate(&self) -> Option<Figure> {
        let value = self.total.successes() as f64 / self.seconds();
        let interval = || Some(self.around(spread(&joined(&self.count_residuals()?))?));
        (value.is_finite() && value > 0.0).then(|| interval().map_or_else(|| Figure::observed(value), Figure::from))
    }

    /// Successes a second with the interval that precision is asked of: joining depends on chance, so batches stay apart. None
    /// below two batches.
    pub fn throughput(&self) -> Option<Interval> {
        Some(self.around(self.count_spread()?))
    }

    /// The interval of successes a second: its ends are at equal ratios to the value, as for what cannot be negative.
    fn around(&self, spread: Spread) -> Interval {
        let count = self.total.successes() as f64;
        let value = count / self.seconds();
        let ratio = (spread.half_width() / count.max(1.0)).exp();
        Interval { value, ci95: [value / ratio, value * ratio] }
    }

    /// How uncertain the number of successes is, by batch means of the ratio of count to duration; its degrees of
    /// freedom say how far the width of [`Series::throughput`]'s interval can be trusted. None below two batches.
    pub fn count_spread(&self) -> Option<Spread> {
        spread(&self.count_residuals()?)
    }

    /// Each batch's number of successes, less what its duration predicts; none of a run without duration.
    fn count_residuals(&self) -> Option<Vec<f64>> {
        let duration = self.total.duration_ns as f64;
        if duration == 0.0 {
            return None;
        }
        let rate = self.total.successes() as f64 / duration;
        let residual = |b: &Batch| b.successes() as f64 - rate * b.duration_ns as f64;
        Some(self.batches.iter().map(residual).collect())
    }

    /// Every percentile that documents show.
    pub fn percentiles(&self) -> Vec<Percentile> {
        let batches: Vec<_> = self.batches.iter().map(Batch::sample).collect();
        percentiles(self.total.sample(), &batches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(n: u64, latency_ns: u64) -> Batch {
        let mut b = Batch { duration_ns: n * latency_ns, ..Batch::default() };
        (0..n).for_each(|_| b.record(latency_ns));
        b
    }

    #[test]
    fn memory_is_bounded_and_nothing_is_lost() {
        let mut series = Series::default();
        for _ in 0..10_000 {
            series.push(&batch(3, 1_000_000));
            assert!(series.batches().len() < MOST);
        }
        assert_eq!(series.requests(), 30_000);
        assert_eq!(series.batches().iter().map(|b| b.latency.len()).sum::<u64>(), 30_000);
        let constant = series.throughput().unwrap();
        assert!((constant.value - 1000.0).abs() < 1e-6 && constant.relative_half_width() < 1e-9);
    }

    #[test]
    fn what_was_under_way_before_counts_for_throughput_alone() {
        let mut series = Series::default();
        (0..20).for_each(|_| series.push(&Batch { carried: 50, ..batch(50, 2_000_000) }));
        assert_eq!(series.throughput().unwrap().value, 1000.0);
        assert_eq!(series.requests(), 1000);
    }

    #[test]
    fn late_calls_count_for_latency_alone() {
        let mut series = Series::default();
        (0..20).for_each(|_| series.push(&batch(100, 1_000_000)));
        let before = series.throughput();
        series.push(&Batch { duration_ns: 0, late: 50, ..batch(50, 900_000_000) });
        assert_eq!(series.throughput(), before);
        assert_eq!(series.requests(), 2050);
        assert!(series.percentiles().iter().any(|p| p.q == 99.0 && p.ms.is_some_and(|ms| ms.value > 800.0)));
    }
}
