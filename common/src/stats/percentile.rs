//! Percentiles with distribution-free 95 % intervals.
//!
//! An interval's ends are order statistics: the ranks come from the binomial law of how many samples lie
//! below the true percentile (H. A. David and H. N. Nagaraja, "Order Statistics", 7.1). Autocorrelated
//! samples count for fewer: the *effective* number makes that binomial variance equal the one that batch
//! means find for the same count ([`super::batch`]). It decides whether there is an interval. How wide that is comes from
//! the number that is *sure*: fewer, as few batches do not tell that variance well. Where so few cannot bound a tail, the
//! greatest value seen is its upper end. A tail of which little was seen looks steadiest in the runs that happened to miss
//! its worst: so its upper end is moved outward by [`OUTWARD`].
//!
//! A handful of batches cannot tell a variance, and where they are of one call each they need not: that of a
//! single yes or no is known. There each batch counts for two thirds of a sample, which is what a
//! first-order autoregressive correlation of 1/5 leaves of it (G. V. Bayley and J. M. Hammersley, "The
//! 'effective' number of independent observations in an autocorrelated time series", JRSS Supplement 8,
//! 1946), less where a stronger correlation shows. The greater of the two numbers holds.

use super::{
    Histogram, Interval,
    batch::{inflation, spread},
    special::{binomial_cdf, binomial_quantile},
};
use crate::part::Percentile;

/// The percentiles that documents show.
pub const PERCENTILES: [f64; 5] = [50.0, 90.0, 95.0, 99.0, 99.9];
/// The percentile that is always said, with its interval.
pub const MEDIAN: f64 = 50.0;
/// Effective samples from which on the ends of the median's interval lie within what was seen; fewer have the slowest
/// call of all as its upper end.
const WITHIN: u64 = 9;
/// Calls from which on the batches' own medians give an interval where the effective number gives none within.
const MANY_CALLS: u64 = 8;
/// Probability outside an interval, on each side.
const TAIL: f64 = 0.025;
/// Effective samples of a batch, whatever is in it: (1 − ρ) / (1 + ρ) with ρ of 1/5.
const PER_BATCH: f64 = 2.0 / 3.0;
/// Effective samples beyond a percentile from which on its own batches are enough to tell how many there are, and where
/// its interval ends.
const WELL_SEEN: f64 = 10.0;
/// How far the upper end of a tail that was hardly seen is moved, as a share of its distance from the percentile. Fixed
/// with the first seeds of `bench/coverage.txt`.
const OUTWARD: f64 = 0.25;
/// Two-sided 95 % of the normal law.
const Z95: f64 = 1.959_963_984_540_054;

/// Effective samples below which no two-sided 95 % interval of this percentile exists.
pub fn needed(q: f64) -> u64 {
    let p = (q / 100.0).max(1.0 - q / 100.0);
    (TAIL.ln() / p.ln()).ceil() as u64
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
    pub(super) fn len(&self) -> u64 {
        self.latency.len() + self.failures
    }
}

/// How many independent samples a run's are worth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Effective {
    /// By the variance that its batches show.
    pub had: u64,
    /// By the variance that they leave possible; at most as many.
    pub sure: u64,
}

impl Effective {
    /// So many independent samples.
    pub fn known(n: u64) -> Self {
        Self { had: n, sure: n }
    }

    fn at_most(self, other: Self) -> Self {
        Self { had: self.had.min(other.had), sure: self.sure.min(other.sure) }
    }
}

/// How many samples a batch has, and how many of them are at most some value.
#[derive(Clone, Copy, Debug)]
struct Share {
    all: u64,
    below: u64,
}

/// Effective number of samples for the share below some value, at most the actual number. None where they all are, or
/// none is: that says nothing of how they depend on each other.
fn effective(total: Share, batches: impl Iterator<Item = Share>) -> Option<Effective> {
    let n = total.all as f64;
    let p = total.below as f64 / n;
    if !(p > 0.0 && p < 1.0) {
        return None;
    }
    let residual = |b: Share| b.below as f64 - p * b.all as f64;
    let residuals: Vec<f64> = batches.filter(|b| b.all > 0).map(residual).collect();
    let (spread, binomial) = (spread(&residuals)?, n * p * (1.0 - p));
    let by_batches = PER_BATCH * residuals.len() as f64 / inflation(&residuals);
    let number = |variance: f64| (n / (variance / binomial).max(1.0)).max(by_batches) as u64;
    Some(Effective { had: number(spread.variance), sure: number((spread.half_width() / Z95).powi(2)) })
}

/// The percentiles of a run from its total and its batches, in the order of [`PERCENTILES`].
pub fn percentiles(total: Sample, batches: &[Sample]) -> Vec<Percentile> {
    let values = PERCENTILES.map(|q| total.latency.rank_ns(rank(q, total.len()).min(total.latency.len())));
    let shares = |of: &Sample| {
        let all = of.len();
        of.latency.counts_up_to(values).map(|below| Share { all, below })
    };
    let (of_all, of_each) = (shares(&total), batches.iter().map(shares).collect::<Vec<_>>());
    // One batch says nothing of how calls depend on each other.
    let mut before = Effective::known(if batches.len() < 2 { 0 } else { total.len() });
    let percentile = |(i, &q): (usize, &f64)| {
        let own = effective(of_all[i], of_each.iter().map(|shares| shares[i]));
        let found = percentile(q, total, batches, own, before);
        before = Effective { had: found.had, sure: found.sure };
        found
    };
    PERCENTILES.iter().enumerate().map(percentile).collect()
}

/// One of them, after a more central one that had this effective number: how calls depend on each other shows less and
/// less towards the tail, where there are fewer of them. So a tail that was hardly seen counts no more than what lies
/// before it.
fn percentile(q: f64, total: Sample, batches: &[Sample], own: Option<Effective>, before: Effective) -> Percentile {
    let worth = match own {
        Some(own) if is_well_seen(q, own.sure) => own,
        Some(own) => own.at_most(before),
        None => before,
    };
    let found = percentile_of(q, total, worth);
    if q == MEDIAN && found.sure < WITHIN && total.len() >= MANY_CALLS {
        return Percentile { ms: median_by_batches(total, batches), ..found };
    }
    found
}

/// The median of many calls that are worth few, since the run went through a few slow changes: Student's t interval of
/// the batches' own medians, wide as it may be (C. Alexopoulos, D. Goldsman and J. R. Wilson, "A new perspective on
/// batched quantile estimation", WSC 2012). None where a batch's median falls among its failures.
fn median_by_batches(total: Sample, batches: &[Sample]) -> Option<Interval> {
    let median = |s: &Sample| {
        let at = rank(MEDIAN, s.len());
        (at <= s.latency.len()).then(|| s.latency.rank_ns(at) as f64 / 1e6)
    };
    let medians = batches.iter().filter(|b| b.len() > 0).map(median).collect::<Option<Vec<f64>>>()?;
    let (value, n) = (median(&total)?, medians.len() as f64);
    let mean = medians.iter().sum::<f64>() / n;
    let half = spread(&medians.iter().map(|m| m - mean).collect::<Vec<_>>())?.half_width() / n;
    Some(Interval { value, ci95: [(mean - half).clamp(0.0, value), (mean + half).max(value)] })
}

/// The percentile of a sample that is worth so much.
pub fn percentile_of(q: f64, total: Sample, Effective { had, sure }: Effective) -> Percentile {
    let needs = needed(q);
    let ms = (had >= needs).then(|| interval(q, total, sure)).flatten();
    Percentile { q, ms, needs, had, sure }
}

/// None where an end of the interval falls among the failures.
fn interval(q: f64, total: Sample, sure: u64) -> Option<Interval> {
    let (n, p) = (total.len(), q / 100.0);
    let [low, high] = ranks(sure, p);
    let scale = n as f64 / sure as f64;
    // The k-th of `sure` stands for the stretch of them all from k − 1 to k: taken where p of that lies below, so that
    // the median's ends are symmetric and those of the tail stay at its outer edge.
    let at = |k: u64| (((k as f64 - (1.0 - p)) * scale - 1e-9).ceil() as u64).clamp(1, n);
    let (low, high) = (at(low), if high == sure { n } else { at(high) });
    if high > total.latency.len() {
        return None;
    }
    let ms = |rank: u64| total.latency.rank_ns(rank) as f64 / 1e6;
    let (value, low, high) = (ms(rank(q, n)), ms(low), ms(high));
    Some(Interval { value, ci95: [low, value + outward(q, sure) * (high - value)] })
}

/// By how much the upper end is moved away from the value.
fn outward(q: f64, sure: u64) -> f64 {
    if q > MEDIAN && !is_well_seen(q, sure) { 1.0 + OUTWARD } else { 1.0 }
}

/// The interval before its upper end was moved outward: what precision can be asked of.
pub fn as_seen(percentile: &Percentile) -> Option<Interval> {
    let Interval { value, ci95: [low, high] } = percentile.ms?;
    let high = value + (high - value) / outward(percentile.q, percentile.sure);
    Some(Interval { value, ci95: [low, high] })
}

/// Whether so many effective samples show what lies beyond a percentile.
fn is_well_seen(q: f64, sure: u64) -> bool {
    sure as f64 * (1.0 - q / 100.0) >= WELL_SEEN
}

/// The ranks (from 1) between which the true p-quantile lies with at least 95 %.
fn ranks(n: u64, p: f64) -> [u64; 2] {
    // P(B < low) ≤ TAIL: the largest such, else the first.
    let low = binomial_quantile(TAIL, n, p);
    let low = if binomial_cdf(low, n, p) <= TAIL { low + 1 } else { low };
    // P(B ≥ high) ≤ TAIL: the smallest such.
    let high = binomial_quantile(1.0 - TAIL, n, p) + 1;
    [low.max(1), high.min(n)]
}

/// The rank (from 1) of a percentile among n.
pub fn rank(q: f64, n: u64) -> u64 {
    // 99.9 / 100 * 1000 is a hair above 999.
    ((q / 100.0 * n as f64 - 1e-9).ceil() as u64).clamp(1, n.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(values: impl IntoIterator<Item = u64>) -> Histogram {
        let mut h = Histogram::default();
        values.into_iter().for_each(|v| h.record(v));
        h
    }

    #[test]
    fn a_run_that_changed_slowly_still_has_a_median_and_a_wide_interval() {
        // Ten thousand calls at 1 ms, then as many at 2 ms, in 4 batches: worth a handful of samples.
        let batches: Vec<Histogram> =
            [1, 1, 2, 2].map(|ms| filled((0..5_000).map(|i| ms * 1_000_000 + i * 40))).into_iter().collect();
        let mut total = Histogram::default();
        batches.iter().for_each(|b| total.merge(b));
        let sample = |latency| Sample { latency, failures: 0 };
        let parts: Vec<Sample> = batches.iter().map(sample).collect();
        let all = percentiles(sample(&total), &parts);
        let median = &all[0];
        assert!(median.had < median.needs, "{median:?}");
        let [low, high] = median.ms.expect("a median is always said").ci95;
        assert!(low <= 1.0 && high >= 2.0, "{median:?}");
        assert!(all[1..].iter().all(|p| p.ms.is_none() && p.had <= median.had), "{all:?}");
    }

    #[test]
    fn the_fewest_samples_are_those_of_the_binomial_law() {
        assert_eq!(PERCENTILES.map(needed), [6, 36, 72, 368, 3688]);
    }

    #[test]
    fn at_the_fewest_samples_the_interval_is_all_of_them() {
        for q in PERCENTILES {
            let n = needed(q);
            let h = filled((1..=n).map(|i| i * 1_000_000));
            let got = percentile_of(q, Sample { latency: &h, failures: 0 }, Effective::known(n));
            let seen = as_seen(&got).unwrap();
            assert!((seen.ci95[1] / n as f64 - 1.0).abs() < 2e-3, "p{q}: {seen:?}");
            let (said, beyond) = (got.ms.unwrap(), n as f64 - seen.value);
            let outward = if q > MEDIAN { OUTWARD * beyond } else { 0.0 };
            assert!((said.ci95[1] / (n as f64 + outward) - 1.0).abs() < 2e-3, "p{q}: {said:?}");
            assert_eq!(percentile_of(q, Sample { latency: &h, failures: 0 }, Effective::known(n - 1)).ms, None);
        }
    }

    #[test]
    fn failures_rank_slower_than_every_success() {
        let h = filled((1..=900).map(|i| i * 1_000_000));
        let total = Sample { latency: &h, failures: 100 };
        assert!((percentile_of(50.0, total, Effective::known(1000)).ms.unwrap().value - 500.0).abs() < 1.0);
        assert_eq!(percentile_of(95.0, total, Effective::known(1000)).ms, None);
    }

    #[test]
    fn nine_slow_calls_carry_a_median_and_a_drift_does_not() {
        let had = |ms: &[u64]| {
            let calls: Vec<_> = ms.iter().map(|ms| filled([ms * 1_000_000])).collect();
            let total = filled(ms.iter().map(|ms| ms * 1_000_000));
            let samples: Vec<_> = calls.iter().map(|latency| Sample { latency, failures: 0 }).collect();
            percentiles(Sample { latency: &total, failures: 0 }, &samples)[0].had
        };
        assert_eq!(had(&[400, 410, 395, 420, 405, 398, 415, 402, 408]), 6);
        assert!(had(&[400, 410, 395, 420, 405, 398, 415, 402]) < 6);
        assert!(had(&[300, 310, 320, 330, 400, 410, 420, 430]) < 4);
    }

    #[test]
    fn one_batch_says_nothing_of_what_its_calls_are_worth() {
        let all = filled((0..1000).map(|i| 1_000_000 + i * 1000));
        let sample = Sample { latency: &all, failures: 0 };
        assert!(percentiles(sample, &[sample]).iter().all(|p| p.ms.is_none() && (p.had, p.sure) == (0, 0)));
        let half = filled((0..500).map(|i| 1_000_000 + i * 2000));
        let halves = [Sample { latency: &half, failures: 0 }; 2];
        let two = percentiles(sample, &halves);
        assert!(two[0].ms.is_some() && two[0].had > 0, "{two:?}");
    }

    #[test]
    fn correlated_batches_count_for_fewer() {
        let batches: Vec<_> = (0..20u64).map(|b| filled((0..100).map(|_| (1 + b % 4 / 2) * 1_000_000))).collect();
        let total = batches.iter().fold(Histogram::default(), |mut sum, b| {
            sum.merge(b);
            sum
        });
        let share = |h: &Histogram| Share { all: h.len(), below: h.count_up_to(1_000_500) };
        let worth = effective(share(&total), batches.iter().map(share)).unwrap();
        assert!(worth.sure <= worth.had && worth.had < 40, "{worth:?} of 2000: each batch is all fast or all slow");
    }
}
