//! How long a point may take, and the conditions besides the stop rule that end it.

use crate::rules::{Aim, Rules};
use modelmeter_common::{
    load::Sla,
    stats::{percentile::Percentile, sample::Sample, series::Series, sla, stop::StopRule},
};
use std::time::{Duration, Instant};

/// The least duration of a point that is only compared with others: the peak is measured again for its figures.
const PEAK_MIN: Duration = Duration::from_secs(2);
/// A fixed number of calls is cut into about this many stretches.
const STRETCHES: u64 = 32;
/// The narrowest stretch: each costs the client some microseconds.
const NARROWEST_NS: u64 = 500_000;

/// The stop rule of a point of which `done` was measured before, within the rest of its slice.
pub(super) fn stop_rule(rules: &Rules, done: Duration, now: Instant) -> StopRule {
    let mut rule = StopRule::from(&rules.stop);
    if rules.aim == Aim::Peak {
        rule.min = rule.min.min(PEAK_MIN);
    }
    let until = |end: Instant| end.saturating_duration_since(now);
    let longest = rule.max.saturating_sub(done);
    let (max, last) =
        rules.slice.map_or((longest, longest), |s| (longest.min(until(s.share)), longest.min(until(s.end))));
    // A fixed number of calls is not ended for its precision.
    let min = if rules.batches.is_some() { max } else { max.min(rule.min.saturating_sub(done)) };
    let rule = StopRule::new(min, max, last, rule.precision).after(done);
    if rules.aim == Aim::Percentiles { rule.seeing_percentiles() } else { rule }
}

/// The time planned for measuring, of which the warm-up may take a third; with a slice both share it.
pub(super) fn planned(rules: &Rules, rule: &StopRule) -> Duration {
    if rules.slice.is_some() { rule.max.mul_f64(0.75) } else { rule.max }
}

/// The latest end of a warm-up in which the first calls have yet to end.
pub(super) fn latest_warmup(rules: &Rules, rule: &StopRule) -> Duration {
    let third = Duration::from_millis(rules.stop.max_duration_ms) / 3;
    if rules.slice.is_some() { third.min(rule.last / 2) } else { third }
}

/// How wide the stretches of a run of so many calls may be at the rate of its warm-up.
pub(super) fn widest_ns(calls: u64, warmup: &Series) -> u64 {
    let call_ns = warmup.total().duration_ns / warmup.requests().max(1);
    (calls.saturating_mul(call_ns) / STRETCHES).max(NARROWEST_NS)
}

/// Percentiles beyond this one are no reason to go on.
const WANTED: f64 = 99.0;

/// Whether percentiles that a reader looks for have no interval yet.
pub(crate) fn lacks_percentiles(percentiles: &[Percentile]) -> bool {
    percentiles.iter().any(|p| p.q <= WANTED && p.interval().is_none())
}

/// Whether a run so far says whether the SLA is met. That it is, is said only of one that is as precise as asked: a run
/// that stopped as soon as it looks good would stop before the first time that many calls are slow.
pub(crate) fn is_decided(sla: &Sla, series: &Series, is_precise: bool) -> bool {
    let total = Sample { latency: &series.total().latency, failures: series.total().failures };
    sla::is_missed(sla, series) || is_precise && sla::is_met(sla, total, &series.percentiles())
}

#[cfg(test)]
mod tests {
    use super::*;
    use modelmeter_common::stats::series::Batch;

    #[test]
    fn a_fixed_number_of_calls_is_cut_into_enough_stretches() {
        let mut warmup = Series::default();
        for _ in 0..10 {
            let mut stretch = Batch { duration_ns: 10_000_000, ..Batch::default() };
            (0..100).for_each(|_| stretch.record(100_000));
            warmup.push(&stretch);
        }
        // 0.1 ms a call.
        assert_eq!(widest_ns(3200, &warmup), 10_000_000);
        assert_eq!(widest_ns(320, &warmup), 1_000_000);
        assert_eq!((widest_ns(1, &warmup), widest_ns(1, &Series::default())), (NARROWEST_NS, NARROWEST_NS));
    }
}
