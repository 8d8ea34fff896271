//! The interval of a percentile of a run that changed slowly, or of which few calls lie beyond it: from a few long
//! stretches of the run.
//!
//! It is the union of two, of which each covers what the other does not. *By groups*: Student's t interval of the
//! logarithms of the groups' own percentiles, which reaches beyond the slowest call (good in tails and in few slow phases;
//! S. Asmussen and P. W. Glynn, "Stochastic Simulation", 2007, chapter III). *By share*: order statistics at the ends of
//! the t interval of the share of calls below the value, on the logit scale (good where a percentile lies between two
//! modes; R. S. Woodruff, "Confidence intervals for medians and other position measures", JASA 47, 1952). The variance
//! behind both is that of [`super::batch`].

use super::{
    Histogram,
    batch::{Spread, spread},
    sample::{MEDIAN, Sample, rank},
};
use std::borrow::Cow;

/// Calls below which a run has no interval.
const MIN_CALLS: u64 = 8;
/// Batches, and groups of them, below which there is none.
const MIN_GROUPS: usize = 3;
/// Calls beyond a percentile other than the median below which there is none.
const MIN_BEYOND: f64 = 5.0;
/// Groups for the median.
const MEDIAN_GROUPS: u64 = 10;
/// Calls beyond the percentile in each group of the others, and how many groups there are at least and at most.
const PER_GROUP: f64 = 5.0;
const GROUPS: [f64; 2] = [4.0, 12.0];
/// How far beyond the slowest call an interval may end: without it that of a server that stalls one second in ten would end
/// at sixty times its value.
const REACH: f64 = 1.5;

/// The ends in ms; `apart` are the residuals of the share below the percentile, of batches joined until they are
/// uncorrelated. None where the run does not support an interval or an end falls among the failures.
pub(super) fn interval(q: f64, total: Sample, batches: &[Sample], apart: Option<&[f64]>) -> Option<[f64; 2]> {
    let (n, p) = (total.len(), q / 100.0);
    let beyond = n as f64 * (1.0 - p);
    if n < MIN_CALLS || q != MEDIAN && (batches.len() < MIN_GROUPS || beyond < MIN_BEYOND - 1e-9) {
        return None;
    }
    let wanted = if q == MEDIAN {
        MEDIAN_GROUPS.min(n)
    } else {
        (beyond / PER_GROUP + 1e-9).floor().clamp(GROUPS[0], GROUPS[1]) as u64
    };
    let groups = groups(total, batches, wanted);
    if groups.len() < MIN_GROUPS {
        return if q == MEDIAN { median_by_batches(total, batches) } else { None };
    }
    let [low, high] = by_groups(p, total, &groups)?;
    let Some(apart) = apart else { return Some([low, high]) };
    let [low_share, high_share] = by_share(p, total, spread(apart)?)?;
    Some([low.min(low_share), high.max(high_share)])
}

/// A stretch of the run: successes and failures of neighbouring batches.
struct Group<'a> {
    latency: Cow<'a, Histogram>,
    failures: u64,
}

/// The batches in at most so many groups of neighbours with about equal numbers of calls: cut where the running count is
/// nearest to each equal share.
fn groups<'a>(total: Sample, batches: &[Sample<'a>], wanted: u64) -> Vec<Group<'a>> {
    let ends: Vec<u64> = batches
        .iter()
        .scan(0, |count, batch| {
            *count += batch.len();
            Some(*count)
        })
        .collect();
    let nearest = |i: u64| {
        let aim = i as f64 * total.len() as f64 / wanted as f64;
        let distance = |at: usize| if at == 0 { aim } else { (ends[at - 1] as f64 - aim).abs() };
        (0..=batches.len()).min_by(|&a, &b| distance(a).total_cmp(&distance(b))).unwrap_or(0)
    };
    let mut cuts: Vec<usize> = if batches.len() as u64 <= wanted {
        (0..=batches.len()).collect()
    } else {
        [0].into_iter().chain((1..wanted).map(nearest)).chain([batches.len()]).collect()
    };
    cuts.dedup();
    let groups = cuts.windows(2).map(|cut| group(&batches[cut[0]..cut[1]]));
    groups.filter(|group| group.latency.len() + group.failures > 0).collect()
}

fn group<'a>(batches: &[Sample<'a>]) -> Group<'a> {
    let mut latency = Cow::Borrowed(batches[0].latency);
    for batch in &batches[1..] {
        latency.to_mut().merge(batch.latency);
    }
    Group { latency, failures: batches.iter().map(|batch| batch.failures).sum() }
}

/// The logarithm of a percentile in ms between ranks, by Hazen's rule: the k-th of n values stands at (k − ½) / n. None
/// among failures.
fn hazen(p: f64, latency: &Histogram, failures: u64) -> Option<f64> {
    let n = latency.len() + failures;
    let at = (n as f64 * p + 0.5).clamp(1.0, n as f64);
    let (k, share) = (at.floor() as u64, at.fract());
    let sample = Sample { latency, failures };
    let (low, high) = (sample.rank_ms(k)?, sample.rank_ms(if share > 0.0 { k + 1 } else { k })?);
    Some((low + share * (high - low)).ln())
}

/// The groups' bias, how far their mean lies from the percentile of all, counts above, where misses are.
fn by_groups(p: f64, total: Sample, groups: &[Group]) -> Option<[f64; 2]> {
    let each = groups.iter().map(|g| hazen(p, &g.latency, g.failures)).collect::<Option<Vec<f64>>>()?;
    let value = total.rank_ms(rank(p * 100.0, total.len()))?.ln();
    let m = each.len() as f64;
    let mean = each.iter().sum::<f64>() / m;
    let half = spread(&each.iter().map(|y| y - mean).collect::<Vec<_>>())?.half_width() / m;
    let (fastest, slowest) = (total.rank_ms(1)?, total.rank_ms(total.latency.len())?);
    let (low, high) = ((value.min(mean) - half).exp(), (value + half + (mean - value).abs()).exp());
    Some([low.max(fastest), high.min(REACH * slowest)])
}

fn by_share(p: f64, total: Sample, spread: Spread) -> Option<[f64; 2]> {
    let n = total.len();
    let binomial = n as f64 * p * (1.0 - p);
    let spread = Spread { variance: spread.variance.max(binomial), ..spread };
    let half = spread.half_width() / binomial;
    let logit = (p / (1.0 - p)).ln();
    let share = |logit: f64| 1.0 / (1.0 + (-logit).exp());
    let low = rank(100.0 * share(logit - half), n);
    let high = ((share(logit + half) * n as f64).ceil() as u64 + 1).min(n);
    Some([total.rank_ms(low)?, total.rank_ms(high)?])
}

/// Student's t interval of the batches' own medians, for a run of two of them (C. Alexopoulos, D. Goldsman and J. R.
/// Wilson, "A new perspective on batched quantile estimation", WSC 2012). None where a batch's median falls among its
/// failures.
fn median_by_batches(total: Sample, batches: &[Sample]) -> Option<[f64; 2]> {
    let median = |s: &Sample| s.rank_ms(rank(MEDIAN, s.len()));
    let medians = batches.iter().filter(|b| b.len() > 0).map(median).collect::<Option<Vec<f64>>>()?;
    let (value, n) = (median(&total)?, medians.len() as f64);
    let mean = medians.iter().sum::<f64>() / n;
    let half = spread(&medians.iter().map(|m| m - mean).collect::<Vec<_>>())?.half_width() / n;
    Some([(mean - half).clamp(0.0, value), (mean + half).max(value)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(values_us: impl IntoIterator<Item = u64>) -> Histogram {
        let mut h = Histogram::default();
        values_us.into_iter().for_each(|v| h.record(v * 1000));
        h
    }

    /// Batches of 100 calls around these medians in µs, each with so many failures; and their total.
    fn run(medians_us: &[u64], failures: impl Fn(usize) -> u64) -> (Vec<(Histogram, u64)>, Histogram, u64) {
        let batches: Vec<_> = medians_us
            .iter()
            .enumerate()
            .map(|(i, m)| (filled((0..100).map(|k| m + (k * 37 + i as u64 * 11) % 100)), failures(i)))
            .collect();
        let mut total = Histogram::default();
        batches.iter().for_each(|(h, _)| total.merge(h));
        let failures = batches.iter().map(|(_, n)| n).sum();
        (batches, total, failures)
    }

    fn ends(q: f64, medians_us: &[u64], failures: impl Fn(usize) -> u64) -> Option<[f64; 2]> {
        let (batches, latency, failures) = run(medians_us, failures);
        let samples: Vec<Sample> =
            batches.iter().map(|(latency, failures)| Sample { latency, failures: *failures }).collect();
        interval(q, Sample { latency: &latency, failures }, &samples, None)
    }

    #[test]
    fn slow_phases_give_an_interval_that_reaches_over_them() {
        let phases = [1000, 1000, 1000, 2000, 2000, 1000, 1000, 1000, 2000, 2000, 1000, 1000];
        for q in [50.0, 90.0, 95.0] {
            let [low, high] = ends(q, &phases, |_| 0).unwrap();
            assert!((1.0..1.2).contains(&low) && (1.9..REACH * 2.1).contains(&high), "p{q}: {low} {high}");
        }
        let [low, high] = ends(95.0, &[1000; 12], |_| 0).unwrap();
        assert!(high - low < 0.02, "a steady run's is narrow: {low} {high}");
    }

    #[test]
    fn few_calls_beyond_few_batches_and_failures_in_one_group_give_none() {
        assert!(ends(99.0, &[1000; 4], |_| 0).is_none(), "four of 400 calls lie beyond");
        assert!(ends(99.0, &[1000; 5], |_| 0).is_some());
        assert!(ends(95.0, &[1000; 2], |_| 0).is_none(), "of two stretches");
        assert!(ends(50.0, &[1000; 2], |_| 0).is_some(), "but for the median");
        assert!(ends(95.0, &[1000; 12], |i| if i == 7 { 30 } else { 0 }).is_none());
    }

    #[test]
    fn groups_are_cut_at_equal_counts_and_lose_nothing() {
        let (batches, latency, _) = run(&[1000; 63], |_| 0);
        let samples: Vec<Sample> = batches.iter().map(|(latency, _)| Sample { latency, failures: 0 }).collect();
        let total = Sample { latency: &latency, failures: 0 };
        for wanted in [4, 10, 12, 63, 100] {
            let groups = groups(total, &samples, wanted);
            assert_eq!(groups.len() as u64, wanted.min(63));
            assert_eq!(groups.iter().map(|g| g.latency.len()).sum::<u64>(), 6300);
            let sizes = groups.iter().map(|g| g.latency.len());
            assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 100, "to a batch");
        }
    }

    #[test]
    fn a_percentile_between_ranks_is_hazens() {
        let four = filled([1000, 2000, 3000, 4000]);
        let at = |p: f64| hazen(p, &four, 0).unwrap().exp();
        for (p, ms) in [(0.5, 2.5), (0.125, 1.0), (0.9, 4.0), (0.25, 1.5)] {
            assert!((at(p) / ms - 1.0).abs() < 1e-3, "{p}: {}", at(p));
        }
        assert!(hazen(0.9, &four, 1).is_none() && hazen(0.5, &four, 1).is_some());
    }
}
