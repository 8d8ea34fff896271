//! Percentiles as they were observed, with 95 % intervals where the run supports them.
//!
//! An interval's ends are order statistics: the ranks come from the binomial law of how many samples lie
//! below the true percentile (H. A. David and H. N. Nagaraja, "Order Statistics", 7.1). Autocorrelated
//! samples count for fewer: the *effective* number makes that binomial variance equal the one that batch
//! means find for the same count ([`super::batch`]), after neighbouring batches are joined until they are no longer
//! correlated ([`joined`]). It decides whether there is such an interval. How wide that is comes from
//! the number that is *sure*: fewer, as few batches do not tell that variance well. Where so few cannot bound a tail, the
//! greatest value seen is its upper end. A tail of which little was seen looks steadiest in the runs that happened to miss
//! its worst: so its upper end is moved outward by [`OUTWARD`].
//!
//! A handful of batches cannot tell a variance, and where they are of one call each they need not: that of a
//! single yes or no is known. There each batch counts for two thirds of a sample, which is what a
//! first-order autoregressive correlation of 1/5 leaves of it (G. V. Bayley and J. M. Hammersley, "The
//! 'effective' number of independent observations in an autocorrelated time series", JRSS Supplement 8,
//! 1946), less where a stronger correlation shows. The greater of the two numbers holds.
//!
//! Where the effective samples are too few for ranks, the interval comes from a few long stretches of the run
//! ([`super::stretches`]), and where that gives none either, a one-sided lower bound is left.

use super::{
    Figure, Interval,
    batch::{inflation, joined, spread},
    sample::{MEDIAN, Sample, rank},
    special::{binomial_cdf, binomial_quantile},
    stretches,
};
use serde::{Deserialize, Serialize};

/// The percentiles that documents show.
pub const PERCENTILES: [f64; 5] = [50.0, 90.0, 95.0, 99.0, 99.9];
/// The percentile beyond which an interval by stretches needs one by ranks before it: queues' far tails are not covered else.
const LAST_BY_STRETCHES: f64 = 99.0;
/// Effective samples from which on the ends of the median's interval lie within what was seen.
const WITHIN: u64 = 9;
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

/// Effective samples below which no two-sided 95 % interval of this percentile exists by ranks.
pub fn needed(q: f64) -> u64 {
    let p = (q / 100.0).max(1.0 - q / 100.0);
    (TAIL.ln() / p.ln()).ceil() as u64
}

/// A percentile of a point's latency.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Percentile {
    /// 50, 90, 95, 99 or 99.9.
    pub q: f64,
    /// The order statistic in ms, failures ranking last; none where too few calls were made for one to lie beyond it, or
    /// where it falls among the failures.
    pub ms: Option<Figure>,
    /// How the interval was found.
    #[serde(default)]
    pub basis: Basis,
    /// Calls that took longer, failures included.
    #[serde(default)]
    pub beyond: u64,
    /// Effective samples that an interval by ranks needs.
    pub needs: u64,
    /// Effective samples that there were, by the variance of batches that are joined until they are uncorrelated.
    pub had: u64,
    /// Effective samples that the uncertainty of that variance leaves: the width of an interval by ranks comes from these.
    pub sure: u64,
    /// The same before batches were joined: joining depends on chance, so the stop rule goes by this number.
    #[serde(default)]
    pub sure_unjoined: u64,
}

/// How the interval of a percentile was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// There is no interval.
    None,
    /// Order statistics of the effective samples: the only basis in documents of version 1.
    #[default]
    Ranks,
    /// Percentiles of a few long stretches of the run: wide, since latency changed slowly or few calls lie beyond.
    Stretches,
}

impl Percentile {
    /// The value with its interval; none where the percentile is only observed.
    pub fn interval(&self) -> Option<Interval> {
        self.ms?.interval()
    }

    /// Whether the percentile has an interval with enough effective samples for the stop rule to ask precision of it.
    pub fn is_bounded(&self) -> bool {
        self.interval().is_some() && self.sure_unjoined >= self.needs
    }

    /// Sets the interval, which makes the lower bound superfluous; none leaves the percentile as it is.
    pub(crate) fn set(&mut self, ends: Option<[f64; 2]>, basis: Basis) {
        let (Some(ms), Some([low, high])) = (&mut self.ms, ends) else { return };
        *ms = Interval { value: ms.value, ci95: [low.min(ms.value), high.max(ms.value)] }.into();
        self.basis = basis;
    }
}

/// Effective samples of a run: the number of independent ones that would be as precise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Effective {
    /// Number by the variance that the batches show.
    pub had: u64,
    /// Number by the variance that the batches leave possible; at most as many.
    pub sure: u64,
}

impl Effective {
    /// A known number of independent samples.
    pub fn known(n: u64) -> Self {
        Self { had: n, sure: n }
    }

    fn at_most(self, other: Self) -> Self {
        Self { had: self.had.min(other.had), sure: self.sure.min(other.sure) }
    }
}

/// Number of samples of a batch, and of those that are at most some value.
#[derive(Clone, Copy, Debug)]
struct Share {
    all: u64,
    below: u64,
}

/// Each batch's number of samples up to a value, less what the run's share predicts, for the batches that have any; none
/// where all samples or none lie there: that says nothing of how they depend on each other.
fn residuals(total: Share, batches: impl Iterator<Item = Share>) -> Option<Vec<f64>> {
    let p = total.below as f64 / total.all as f64;
    let residual = |b: Share| b.below as f64 - p * b.all as f64;
    (p > 0.0 && p < 1.0).then(|| batches.filter(|b| b.all > 0).map(residual).collect())
}

/// Effective number of samples for the share below some value, at most the actual number: by the spread of `apart`, which are
/// the residuals of the batches or of what they were joined to.
fn effective(total: Share, residuals: &[f64], apart: &[f64]) -> Option<Effective> {
    let n = total.all as f64;
    let p = total.below as f64 / n;
    let (spread, binomial) = (spread(apart)?, n * p * (1.0 - p));
    let by_batches = PER_BATCH * residuals.len() as f64 / inflation(residuals);
    let number = |variance: f64| (n / (variance / binomial).max(1.0)).max(by_batches) as u64;
    Some(Effective { had: number(spread.variance), sure: number((spread.half_width() / Z95).powi(2)) })
}

/// What the more central percentiles of a run leave to the next: how many samples they were worth, with batches joined and
/// not, and whether the last had its interval by ranks.
struct Before {
    joined: Effective,
    unjoined: Effective,
    by_ranks: bool,
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
    let all = Effective::known(if batches.len() < 2 { 0 } else { total.len() });
    let mut before = Before { joined: all, unjoined: all, by_ranks: true };
    let percentile = |(i, &q): (usize, &f64)| {
        let residuals = residuals(of_all[i], of_each.iter().map(|shares| shares[i]));
        percentile(q, total, batches, of_all[i], residuals.as_deref(), &mut before)
    };
    PERCENTILES.iter().enumerate().map(percentile).collect()
}

/// One of them, after the more central ones: how calls depend on each other shows less and less towards the tail, where
/// there are fewer of them. So a tail that was hardly seen counts no more than what lies before it.
fn percentile(
    q: f64,
    total: Sample,
    batches: &[Sample],
    share: Share,
    residuals: Option<&[f64]>,
    before: &mut Before,
) -> Percentile {
    let apart = residuals.map(joined);
    let worth =
        |apart: Option<&[f64]>, before: Effective| match residuals.zip(apart).and_then(|(r, a)| effective(share, r, a))
        {
            Some(own) if is_well_seen(q, own.sure) => own,
            Some(own) => own.at_most(before),
            None => before,
        };
    let (joined, unjoined) = (worth(apart.as_deref(), before.joined), worth(residuals, before.unjoined));
    let has_ranks = if q == MEDIAN { joined.sure >= WITHIN } else { joined.had >= needed(q) };
    let was_by_ranks = std::mem::replace(&mut before.by_ranks, has_ranks);
    (before.joined, before.unjoined) = (joined, unjoined);
    let mut found = Percentile { sure_unjoined: unjoined.sure, ..observed(q, total, joined) };
    if has_ranks {
        found.set(ranked(q, total, joined.sure), Basis::Ranks);
    } else if q <= LAST_BY_STRETCHES || was_by_ranks {
        found.set(stretches::interval(q, total, batches, apart.as_deref()), Basis::Stretches);
    }
    found
}

/// The percentile of so many effective samples, by ranks alone, to which repeats are folded.
pub fn percentile_of(q: f64, total: Sample, worth: Effective) -> Percentile {
    let mut found = observed(q, total, worth);
    if worth.had >= found.needs {
        found.set(ranked(q, total, worth.sure), Basis::Ranks);
    }
    found
}

/// The percentile with its lower bound, before it has an interval.
fn observed(q: f64, total: Sample, Effective { had, sure }: Effective) -> Percentile {
    let n = total.len();
    let lower95 = lower_bound(q, total, sure);
    let ms = total.observed_ms(q).map(|value| Figure { value, ci95: None, lower95: lower95.map(|low| low.min(value)) });
    let beyond = n - rank(q, n).min(n);
    Percentile { q, ms, basis: Basis::None, beyond, needs: needed(q), had, sure, sure_unjoined: sure }
}

/// The value that the true percentile exceeds with 97.5 %, in ms: the inner edge of the lower rank's stretch.
fn lower_bound(q: f64, total: Sample, sure: u64) -> Option<f64> {
    let n = total.len();
    if sure == 0 || n == 0 {
        return None;
    }
    let [low, _] = ranks(sure, q / 100.0);
    total.rank_ms(((low - 1) as f64 * n as f64 / sure as f64) as u64 + 1)
}

/// The ends by ranks, in ms; none where one falls among the failures.
fn ranked(q: f64, total: Sample, sure: u64) -> Option<[f64; 2]> {
    let (n, p, sure) = (total.len(), q / 100.0, sure.max(1));
    let [low, high] = ranks(sure, p);
    let scale = n as f64 / sure as f64;
    // The k-th of `sure` stands for the stretch of them all from k − 1 to k: taken where p of that lies below, so that
    // the median's ends are symmetric and those of the tail stay at its outer edge.
    let at = |k: u64| (((k as f64 - (1.0 - p)) * scale - 1e-9).ceil() as u64).clamp(1, n);
    let (low, high) = (at(low), if high == sure { n } else { at(high) });
    let (value, low, high) = (total.rank_ms(rank(q, n))?, total.rank_ms(low)?, total.rank_ms(high)?);
    Some([low, value + outward(q, sure) * (high - value)])
}

/// The factor by which the upper end is moved away from the value.
fn outward(q: f64, sure: u64) -> f64 {
    if q > MEDIAN && !is_well_seen(q, sure) { 1.0 + OUTWARD } else { 1.0 }
}

/// The interval before its upper end was moved outward, which precision is asked of.
pub fn as_seen(percentile: &Percentile) -> Option<Interval> {
    let Interval { value, ci95: [low, high] } = percentile.interval()?;
    let outward = if percentile.basis == Basis::Ranks { outward(percentile.q, percentile.sure) } else { 1.0 };
    Some(Interval { value, ci95: [low, value + (high - value) / outward] })
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

#[cfg(test)]
mod tests {
    use super::{super::sample::observable, *};
    use crate::stats::Histogram;

    fn filled(values: impl IntoIterator<Item = u64>) -> Histogram {
        let mut h = Histogram::default();
        values.into_iter().for_each(|v| h.record(v));
        h
    }

    #[test]
    fn a_run_that_changed_slowly_has_wide_intervals_and_few_effective_samples() {
        // Ten thousand calls at 1 ms, then as many at 2 ms, in 4 batches: worth a handful of samples.
        let batches: Vec<Histogram> =
            [1, 1, 2, 2].map(|ms| filled((0..5_000).map(|i| ms * 1_000_000 + i * 40))).into_iter().collect();
        let mut total = Histogram::default();
        batches.iter().for_each(|b| total.merge(b));
        let sample = |latency| Sample { latency, failures: 0 };
        let parts: Vec<Sample> = batches.iter().map(sample).collect();
        let all = percentiles(sample(&total), &parts);
        let median = &all[0];
        assert!(median.had < median.needs && median.basis == Basis::Stretches, "{median:?}");
        let [low, high] = median.interval().expect("four stretches give one").ci95;
        assert!(low <= 1.01 && high >= 2.0, "{median:?}");
        for p in &all {
            assert!(p.ms.is_some() && !p.is_bounded(), "observed, and no precision is asked of it: {p:?}");
        }
        assert!(all[4].interval().is_none() && all[4].ms.unwrap().lower95.is_some(), "{:?}", all[4]);
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
            let (said, beyond) = (got.interval().unwrap(), n as f64 - seen.value);
            let outward = if q > MEDIAN { OUTWARD * beyond } else { 0.0 };
            assert!((said.ci95[1] / (n as f64 + outward) - 1.0).abs() < 2e-3, "p{q}: {said:?}");
            let fewer = percentile_of(q, Sample { latency: &h, failures: 0 }, Effective::known(n - 1));
            assert!(fewer.interval().is_none() && fewer.ms.unwrap().lower95.is_some(), "{fewer:?}");
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
        let one = percentiles(sample, &[sample]);
        assert!(one.iter().all(|p| p.interval().is_none() && (p.had, p.sure) == (0, 0)), "{one:?}");
        assert!(one.iter().all(|p| p.ms.is_some()), "and yet they were seen: {one:?}");
        let half = filled((0..500).map(|i| 1_000_000 + i * 2000));
        let halves = [Sample { latency: &half, failures: 0 }; 2];
        let two = percentiles(sample, &halves);
        assert!(two[0].interval().is_some() && two[0].had > 0, "{two:?}");
    }

    #[test]
    fn correlated_batches_count_for_fewer() {
        let batches: Vec<_> = (0..20u64).map(|b| filled((0..100).map(|_| (1 + b % 4 / 2) * 1_000_000))).collect();
        let total = batches.iter().fold(Histogram::default(), |mut sum, b| {
            sum.merge(b);
            sum
        });
        let share = |h: &Histogram| Share { all: h.len(), below: h.count_up_to(1_000_500) };
        let residuals = residuals(share(&total), batches.iter().map(share)).unwrap();
        let worth = effective(share(&total), &residuals, &residuals).unwrap();
        assert!(worth.sure <= worth.had && worth.had < 40, "{worth:?} of 2000: each batch is all fast or all slow");
    }

    #[test]
    fn a_percentile_is_seen_as_soon_as_a_call_may_lie_beyond_it() {
        assert_eq!(PERCENTILES.map(observable), [1, 10, 20, 100, 1000]);
        let seen = |n: u64| {
            let h = filled((1..=n).map(|i| i * 1_000_000));
            PERCENTILES.map(|q| Sample { latency: &h, failures: 0 }.observed_ms(q).is_some())
        };
        assert_eq!(seen(1), [true, false, false, false, false]);
        assert_eq!(seen(20), [true, true, true, false, false]);
        assert_eq!(seen(999), [true, true, true, true, false]);
        assert_eq!(seen(1000), [true; 5]);
    }

    #[test]
    fn equal_calls_have_intervals_of_no_width() {
        let batch = filled([5_000_000; 100]);
        let total = filled([5_000_000; 1000]);
        let batches = [Sample { latency: &batch, failures: 0 }; 10];
        for p in &percentiles(Sample { latency: &total, failures: 0 }, &batches)[..4] {
            let Interval { value, ci95: [low, high] } = p.interval().unwrap();
            assert!(low == value && high == value, "{p:?}");
        }
    }
}
