//! The claims that a run meets an SLA, and that it misses it; and when a run that goes on has shown that it does not meet it.
//!
//! A percentile stays under a limit where at most its share of the requests takes longer. How many of so many
//! independent requests do follows the binomial law; autocorrelated ones count for the effective number of the run's
//! percentile that is nearest to the limit ([`super::percentile`]). Failures take longer than any limit.

use super::{batch::spread, percentile::Percentile, sample::Sample, series::Series, special::binomial_cdf};
use crate::load::Sla;

/// Probability that a claim is wrong.
const ERROR: f64 = 0.01;

/// Whether this sample shows, at 99 % confidence, that the SLA is met.
pub fn is_met(sla: &Sla, total: Sample, percentiles: &[Percentile]) -> bool {
    let (sure, over) = effective(sla, total, percentiles);
    shows(sla.percentile, sure, over.ceil() as u64)
}

/// Whether this sample shows that the SLA is missed: too many requests over the limit, at 99 % confidence, or the 95 %
/// interval (or lower bound) of the SLA's percentile, or of a lower one, lies over the limit.
pub fn shows_miss(sla: &Sla, total: Sample, percentiles: &[Percentile]) -> bool {
    let (sure, over) = effective(sla, total, percentiles);
    let low = |p: &Percentile| p.ms.and_then(|ms| ms.ci95.map(|[low, _]| low).or(ms.lower95));
    let is_over = |p: &Percentile| p.q <= sla.percentile && low(p).is_some_and(|low| low > sla.latency_ms);
    !holds(sla, total) && (shows_more(sla.percentile, sure, over.floor() as u64) || percentiles.iter().any(is_over))
}

/// Effective requests of this sample, by its percentile that is nearest to the limit, and how many of them took longer than
/// the limit.
fn effective(sla: &Sla, total: Sample, percentiles: &[Percentile]) -> (u64, f64) {
    let (n, over) = (total.len(), over(sla, total) as f64);
    let within = 100.0 * (1.0 - over / n.max(1) as f64);
    let distance = |p: &&Percentile| (p.q - within).abs();
    let nearest = percentiles.iter().min_by(|a, b| distance(a).total_cmp(&distance(b)));
    let sure = nearest.map_or(0, |p| p.sure).min(n);
    (sure, over * sure as f64 / n.max(1) as f64)
}

/// Whether the SLA holds of this very sample, whatever that shows.
pub fn holds(sla: &Sla, total: Sample) -> bool {
    over(sla, total) as f64 <= (1.0 - sla.percentile / 100.0) * total.len() as f64
}

/// Whether a run so far has more requests over the limit than the SLA allows, by twice the 95 % interval of their number:
/// more of it would not show that the SLA is met.
pub fn is_missed(sla: &Sla, series: &Series) -> bool {
    let allowed = 1.0 - sla.percentile / 100.0;
    let total = series.total().sample();
    let (n, over_limit) = (total.len() as f64, over(sla, total) as f64);
    let residual = |b: Sample| over(sla, b) as f64 - over_limit / n * b.len() as f64;
    let residuals: Vec<f64> = series.batches().iter().map(|b| residual(b.sample())).collect();
    spread(&residuals).is_some_and(|s| over_limit - allowed * n > 2.0 * s.half_width())
}

/// Requests that took longer than the limit.
fn over(sla: &Sla, sample: Sample) -> u64 {
    sample.len() - sample.latency.count_up_to((sla.latency_ms * 1e6) as u64)
}

/// Whether n independent requests, `over` of which took longer than the limit, show that it holds for the percentile.
fn shows(q: f64, n: u64, over: u64) -> bool {
    n > 0 && binomial_cdf(over, n, 1.0 - q / 100.0) <= ERROR
}

/// Whether n independent requests, `over` of which took longer than the limit, show that it does not hold.
fn shows_more(q: f64, n: u64, over: u64) -> bool {
    over > 0 && 1.0 - binomial_cdf(over - 1, n, 1.0 - q / 100.0) <= ERROR
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{
        Histogram,
        percentile::{Effective, percentile_of},
        series::Batch,
    };

    #[test]
    fn the_fewest_requests_for_a_met_sla() {
        let table = [
            (90.0, [44, 64, 81, 197]),
            (95.0, [90, 130, 165, 398]),
            (99.0, [459, 662, 838, 2010]),
            (99.9, [4603, 6636, 8403, 20140]),
        ];
        for (q, needs) in table {
            for (over, n) in [0, 1, 2, 10].into_iter().zip(needs) {
                assert!(shows(q, n, over) && !shows(q, n - 1, over), "p{q}, {over} of {n}");
            }
        }
    }

    #[test]
    fn a_claim_needs_effective_requests_and_counts_failures() {
        let mut latency = Histogram::default();
        (0..400).for_each(|i| latency.record(if i < 8 { 60_000_000 } else { 20_000_000 }));
        let met = |latency_ms, failures, sure| {
            let total = Sample { latency: &latency, failures };
            let p = percentile_of(95.0, total, Effective { had: 400, sure });
            is_met(&Sla { percentile: 95.0, latency_ms }, total, &[p])
        };
        assert!(met(50.0, 0, 400) && met(100.0, 0, 90) && !met(100.0, 0, 89));
        assert!(!met(50.0, 0, 100), "2 of 100 are over the limit");
        assert!(!met(50.0, 20, 420), "failures are");
        assert!(!met(100.0, 0, 0));
    }

    #[test]
    fn a_miss_is_claimed_only_where_it_shows() {
        let mut latency = Histogram::default();
        (0..400).for_each(|i| latency.record(if i < 40 { 60_000_000 } else { 20_000_000 }));
        let total = Sample { latency: &latency, failures: 0 };
        let missed = |latency_ms, sure| {
            let mut p = percentile_of(95.0, total, Effective { had: 400, sure });
            if let Some(ms) = &mut p.ms {
                (ms.ci95, ms.lower95) = (None, None);
            }
            shows_miss(&Sla { percentile: 95.0, latency_ms }, total, &[p])
        };
        assert!(missed(50.0, 400), "40 of 400 are over the limit, where 20 may be");
        assert!(!missed(50.0, 20), "2 of 20, where 1 may be");
        assert!(!missed(70.0, 400), "none is");
        // Two that count, both of them over the limit: by chance once in 400 times.
        assert!(missed(10.0, 2) && !missed(10.0, 1));
        let bounded = |low| {
            let mut p = percentile_of(50.0, total, Effective { had: 1, sure: 0 });
            p.ms = p.ms.map(|ms| crate::stats::Figure { ci95: Some([low, 90.0]), ..ms });
            shows_miss(&Sla { percentile: 95.0, latency_ms: 19.0 }, total, &[p])
        };
        assert!(bounded(19.5) && !bounded(18.5), "the median's interval lies over the limit");
    }

    #[test]
    fn a_miss_shows_in_a_run_that_goes_on() {
        let sla = Sla { percentile: 95.0, latency_ms: 50.0 };
        // Batches of 100 requests, this many of them over the limit.
        let missed = |over: &dyn Fn(u64) -> u64| {
            let mut series = Series::default();
            for b in 0..20 {
                let mut batch = Batch { duration_ns: 1_000_000_000, ..Batch::default() };
                (0..100).for_each(|i| batch.record(if i < over(b) { 60_000_000 } else { 20_000_000 }));
                series.push(&batch);
            }
            is_missed(&sla, &series)
        };
        assert!(missed(&|b| 8 + b % 3) && missed(&|b| 80 + b % 3));
        assert!(!missed(&|b| 4 + b % 3) && !missed(&|b| if b == 7 { 100 } else { 1 }) && !missed(&|_| 0));
        assert!(!is_missed(&sla, &Series::default()));
    }
}
