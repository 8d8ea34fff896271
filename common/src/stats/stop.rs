//! When a point has been measured for long enough: a value, so that the meter and the simulations that prove the
//! intervals' coverage end a run by the very same rule.
//!
//! A run that ends when its intervals happen to be narrow has intervals that are too narrow. So there are few looks,
//! each at a run longer by a quarter than the last, and what is known from few stretches of a run must be known
//! better.

use super::{
    Interval,
    batch::Spread,
    percentile::{Percentile, as_seen},
    sample::{MEDIAN, observable},
    series::Series,
};
use crate::load::Stop;
use std::time::Duration;

/// How much longer the run is at each look.
const GROWTH: f64 = 1.25;
/// Degrees of freedom from which on the width of throughput's interval is taken as it is. With fewer it must be
/// narrower than asked in proportion: a slow spell that was seen twice may come twice as often.
const MANY_DF: f64 = 16.0;
/// The percentiles that a reader looks for beside the median.
const LOOKED_FOR: [f64; 2] = [95.0, 99.0];

/// The rule, and when it looks next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StopRule {
    /// Not before.
    pub min: Duration,
    /// Then it ends, unless it lacks an interval for throughput or median, or calls with which a percentile is seen.
    pub max: Duration,
    /// Then it ends.
    pub last: Duration,
    /// Half width to reach, as a share of the value.
    pub precision: f64,
    /// Whether calls with which p95 and p99 are seen are worth going on for after `max`, where they end before `last`.
    sees_percentiles: bool,
    /// What the series holds of an earlier visit.
    done: Duration,
    next: Duration,
}

/// What a look at a run says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Look {
    /// Go on.
    Open,
    /// As precise as asked.
    Converged,
    /// Out of time.
    Late,
}

impl StopRule {
    /// A rule that has not looked yet.
    pub fn new(min: Duration, max: Duration, last: Duration, precision: f64) -> Self {
        Self { min, max, last, precision, sees_percentiles: false, done: Duration::ZERO, next: min }
    }

    /// The same for a run that goes on with one of this length: the looks are as few as at one run of both.
    pub fn after(self, done: Duration) -> Self {
        Self { done, next: self.min.max(done.mul_f64(GROWTH - 1.0)), ..self }
    }

    /// The same, but that goes on after `max` for the calls with which p95 and p99 are seen, where they end before `last`.
    pub fn seeing_percentiles(self) -> Self {
        Self { sees_percentiles: true, ..self }
    }

    /// Looks at a run that has lasted this long.
    pub fn look(&mut self, elapsed: Duration, series: &Series) -> Look {
        if elapsed >= self.max {
            let is_enough =
                has_intervals(series) && !(self.sees_percentiles && self.sees_another(elapsed, series.requests()));
            return if elapsed >= self.last || is_enough { Look::Late } else { Look::Open };
        }
        if elapsed < self.next {
            return Look::Open;
        }
        self.next = (self.done + elapsed).mul_f64(GROWTH) - self.done;
        if self.is_met(series) { Look::Converged } else { Look::Open }
    }

    /// Whether another percentile is seen of the run before `last`, at the pace so far.
    fn sees_another(&self, elapsed: Duration, requests: u64) -> bool {
        let all = |calls: u64| (self.done + elapsed).mul_f64(calls as f64 / requests.max(1) as f64);
        let comes = |q| requests < observable(q) && all(observable(q)) <= self.done + self.last;
        requests > 0 && LOOKED_FOR.into_iter().any(comes)
    }

    /// Whether throughput and each percentile that the samples surely carry are as precise as asked, by the ends that were
    /// seen: the others' are the slowest calls, which no precision can be asked of. The median must be among them.
    pub fn is_met(&self, series: &Series) -> bool {
        let within = |interval: Interval| interval.relative_half_width() <= self.precision;
        let (throughput, spread) = (series.throughput(), series.count_spread());
        let surely = |(i, s): (Interval, Spread)| i.relative_half_width() * (MANY_DF / s.df).max(1.0) <= self.precision;
        let percentiles = series.percentiles();
        throughput.zip(spread).is_some_and(surely)
            && percentiles.iter().any(|p| p.q == MEDIAN && p.interval().is_some())
            && judged(&percentiles).all(|(_, interval)| within(interval))
    }
}

impl From<&Stop> for StopRule {
    fn from(stop: &Stop) -> Self {
        let max = Duration::from_millis(stop.max_duration_ms);
        Self::new(Duration::from_millis(stop.min_duration_ms), max, max, stop.precision)
    }
}

/// The percentiles that precision is asked of, each with its interval as it was seen.
pub fn judged(percentiles: &[Percentile]) -> impl Iterator<Item = (f64, Interval)> {
    let are = percentiles.iter().filter(|p| p.q == MEDIAN || p.is_bounded());
    are.filter_map(|p| Some((p.q, as_seen(p)?)))
}

/// Whether throughput and median can be said with an interval.
fn has_intervals(series: &Series) -> bool {
    let median = || series.percentiles().iter().any(|p| p.q == MEDIAN && p.interval().is_some());
    series.throughput().is_some() && median()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::series::Batch;

    const SECOND: Duration = Duration::from_secs(1);

    /// Calls of 1 ms, 62 in a stretch, and then a pause.
    fn series(stretches: u64, pause_ns: impl Fn(u64) -> u64) -> Series {
        let mut series = Series::default();
        for i in 0..stretches {
            let mut stretch = Batch { duration_ns: 62_000_000 + pause_ns(i), ..Batch::default() };
            (0..62).for_each(|call| stretch.record(1_000_000 + (i * 31 + call) % 97 * 500));
            series.push(&stretch);
        }
        series
    }

    #[test]
    fn looks_are_few() {
        let wide = series(30, |i| i % 2 * 50_000_000);
        let mut rule = StopRule::new(2 * SECOND, 30 * SECOND, 30 * SECOND, 1e-6);
        let mut looks = 0;
        for tenth in 1..300 {
            let before = rule;
            assert_eq!(rule.look(SECOND / 10 * tenth, &wide), Look::Open);
            looks += u32::from(rule != before);
        }
        assert!((10..=13).contains(&looks), "{looks}");
        assert_eq!(rule.look(30 * SECOND, &wide), Look::Late);
    }

    #[test]
    fn a_run_that_goes_on_is_looked_at_as_one() {
        let wide = series(30, |i| i % 2 * 50_000_000);
        let mut rule = StopRule::new(Duration::ZERO, 30 * SECOND, 30 * SECOND, 1e-6).after(10 * SECOND);
        let mut looks = 0;
        for tenth in 1..100 {
            let before = rule;
            rule.look(SECOND / 10 * tenth, &wide);
            looks += u32::from(rule != before);
        }
        assert_eq!(looks, 3, "at 12.5, 15.6 and 19.5 s");
    }

    #[test]
    fn a_steady_run_has_converged_and_one_with_two_pauses_has_not() {
        let rule = StopRule::new(2 * SECOND, 30 * SECOND, 30 * SECOND, 0.05);
        assert!(rule.is_met(&series(31, |i| i % 3 * 1_000_000)));
        let two_pauses = series(31, |i| if i % 16 == 7 { 15_000_000 } else { 0 });
        assert!(two_pauses.throughput().unwrap().relative_half_width() < 0.05);
        assert!(!rule.is_met(&two_pauses), "two pauses do not tell how many there are");
    }

    #[test]
    fn without_intervals_it_goes_on_to_the_last() {
        let mut rule = StopRule::new(2 * SECOND, 3 * SECOND, 9 * SECOND, 0.05);
        assert_eq!(rule.look(4 * SECOND, &series(1, |_| 0)), Look::Open);
        assert_eq!(rule.look(9 * SECOND, &series(1, |_| 0)), Look::Late);
        assert_eq!(rule.look(4 * SECOND, &series(20, |_| 0)), Look::Late);
    }

    #[test]
    fn it_goes_on_for_a_percentile_that_comes_in_time() {
        // One call a second.
        let slow = |stretches: u64| {
            let mut series = Series::default();
            for i in 0..stretches {
                let mut stretch = Batch { duration_ns: 1_000_000_000, ..Batch::default() };
                stretch.record(1_000_000_000 - i * 1_000_000);
                series.push(&stretch);
            }
            series
        };
        let look = |last: u32, stretches: u64| {
            let mut rule = StopRule::new(SECOND, 9 * SECOND, last * SECOND, 1e-9).seeing_percentiles();
            rule.look(SECOND * stretches as u32, &slow(stretches))
        };
        assert_eq!(look(25, 10), Look::Open, "twenty calls end after 20 s");
        assert_eq!(look(18, 10), Look::Late, "not before 18 s");
        assert_eq!(look(25, 21), Look::Late, "and a hundred not before 25 s");
        let mut rule = StopRule::new(SECOND, 9 * SECOND, 25 * SECOND, 1e-9);
        assert_eq!(rule.look(10 * SECOND, &slow(10)), Look::Late, "nobody asked for percentiles");
    }
}
