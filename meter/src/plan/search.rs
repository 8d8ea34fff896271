//! The SLA search: a pure rule for the next rate to try, to find the highest that meets an SLA. The search begins at a
//! quarter of the rate of one call in flight, doubles until the SLA is not shown to be met, then halves the gap on a
//! logarithmic scale.
//!
//! A rate meets the SLA only if its point shows that at 99 % confidence; an open question counts as missed. The rate found is
//! therefore too low rather than too high; longer points bring it closer.

use modelmeter_common::{
    load::{Arrivals, LoadPoint, Sla},
    part::Point,
    stats::{sample::Sample, sla},
};

/// The search ends at this ratio of the lowest rate that misses the SLA to the highest that meets it.
const CLOSE: f64 = 1.01;
const MOST: usize = 24;
/// The highest rate that a request may ask for.
const MAX_RATE: f64 = 1e6;

/// The state of a search.
#[derive(Clone, Debug)]
pub struct Search {
    sla: Sla,
    arrivals: Arrivals,
    start: f64,
    meets: Option<f64>,
    misses: Option<f64>,
    /// The highest rate that had too few calls to decide.
    little: Option<f64>,
    /// A rate whose first point was invalid.
    again: Option<f64>,
    points: usize,
}

/// The result of a point for its rate.
enum Says {
    /// The point shows at 99 % confidence that its rate meets the SLA.
    Meets,
    /// The point's calls meet the SLA, but are too few to show it.
    TooLittle,
    /// The point's calls meet the SLA, but the point is invalid for another reason.
    Nothing,
    Misses,
}

impl Search {
    /// A search that has not tried any rate.
    pub fn new(sla: Sla, arrivals: Arrivals) -> Self {
        Self { sla, arrivals, start: 1.0, meets: None, misses: None, little: None, again: None, points: 0 }
    }

    /// Takes the order of the rates from a closed loop with one in flight.
    pub fn begin(&mut self, pilot: &Point) {
        if let Some(rate) = pilot.requests_per_s.filter(|_| pilot.valid) {
            self.start = (rate.value / 4.0).clamp(0.1, MAX_RATE);
        }
    }

    /// The next load; none when the search is over.
    pub fn propose(&self) -> Option<LoadPoint> {
        let open = |rate: &f64| self.misses.is_none_or(|misses| *rate < misses) && self.meets.is_none_or(|m| *rate > m);
        let rate_per_s = match (self.meets, self.misses) {
            _ if self.points >= MOST => return None,
            _ if self.again.filter(open).is_some() => self.again.filter(open)?,
            (None, None) => self.start,
            (Some(meets), None) => meets * 2.0,
            (None, Some(misses)) if self.little.is_some_and(|little| little < misses) => {
                let little = self.little.filter(|little| misses / little > CLOSE)?;
                (little * misses).sqrt()
            }
            // Below a hundredth of the first rate the load cannot be the reason for a miss.
            (None, Some(misses)) => Some(misses / 4.0).filter(|rate| *rate > self.start / 100.0)?,
            (Some(meets), Some(misses)) if misses / meets <= CLOSE => return None,
            (Some(meets), Some(misses)) => (meets * misses).sqrt(),
        };
        (rate_per_s <= MAX_RATE).then_some(LoadPoint::Open { rate_per_s, arrivals: self.arrivals })
    }

    /// Notes a result.
    pub fn tried(&mut self, point: &Point) {
        let total = Sample { latency: &point.latency, failures: point.errors };
        let says = match meets(&self.sla, point) {
            true => Says::Meets,
            false if !sla::holds(&self.sla, total) => Says::Misses,
            false if !point.valid => Says::Nothing,
            false => Says::TooLittle,
        };
        self.note(point.load, says);
    }

    fn note(&mut self, load: LoadPoint, says: Says) {
        let LoadPoint::Open { rate_per_s, .. } = load else { return };
        self.points += 1;
        let spoiled_before = self.again.take();
        match says {
            Says::Meets => self.meets = Some(self.meets.map_or(rate_per_s, |m| m.max(rate_per_s))),
            // The rate is tried once more: the server was not the reason.
            Says::Nothing if spoiled_before != Some(rate_per_s) => self.again = Some(rate_per_s),
            // A higher rate has more calls, which may be enough; a lower one would be as late where the host is busy.
            Says::TooLittle | Says::Nothing if self.meets.is_none() => {
                self.little = Some(self.little.map_or(rate_per_s, |l| l.max(rate_per_s)));
                self.start = rate_per_s * 2.0;
            }
            Says::TooLittle | Says::Nothing | Says::Misses => {
                self.misses = Some(self.misses.map_or(rate_per_s, |m| m.min(rate_per_s)));
            }
        }
    }

    /// About how many points are still to come, the next included.
    pub fn expected_left(&self) -> usize {
        match (self.meets, self.misses) {
            (Some(meets), Some(misses)) => ((misses / meets).ln() / CLOSE.ln()).log2().ceil().max(1.0) as usize,
            _ => 9,
        }
    }
}

/// Whether a point shows, at 99 % confidence, that the SLA is met.
pub fn meets(sla: &Sla, point: &Point) -> bool {
    let total = Sample { latency: &point.latency, failures: point.errors };
    point.valid && sla::is_met(sla, total, &point.percentiles)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(capacity: f64, start: f64) -> (Option<f64>, usize) {
        let mut search = Search::new(Sla { percentile: 95.0, latency_ms: 50.0 }, Arrivals::Poisson);
        search.start = start;
        while let Some(load) = search.propose() {
            let LoadPoint::Open { rate_per_s, .. } = load else { unreachable!() };
            search.note(load, if rate_per_s <= capacity { Says::Meets } else { Says::Misses });
            assert!(search.expected_left() >= 1);
        }
        (search.meets, search.points)
    }

    #[test]
    fn goes_up_where_too_few_calls_come_to_say_anything() {
        let mut search = Search::new(Sla { percentile: 95.0, latency_ms: 50.0 }, Arrivals::Poisson);
        let load = |rate_per_s| LoadPoint::Open { rate_per_s, arrivals: Arrivals::Poisson };
        search.start = 3.0;
        search.note(load(3.0), Says::TooLittle);
        assert_eq!(search.propose(), Some(load(6.0)));
        search.note(load(6.0), Says::Meets);
        search.note(load(12.0), Says::TooLittle);
        assert_eq!(search.propose(), Some(load((6.0f64 * 12.0).sqrt())), "it is not claimed");
        let mut search = Search::new(search.sla.clone(), Arrivals::Poisson);
        search.note(load(3.0), Says::TooLittle);
        search.note(load(6.0), Says::Misses);
        assert_eq!(search.propose(), Some(load((3.0f64 * 6.0).sqrt())), "and not down, where there are even fewer");
    }

    #[test]
    fn a_rate_that_was_spoiled_is_tried_once_more() {
        let load = |rate_per_s| LoadPoint::Open { rate_per_s, arrivals: Arrivals::Poisson };
        let spoiled = || {
            let mut search = Search::new(Sla { percentile: 95.0, latency_ms: 50.0 }, Arrivals::Poisson);
            search.note(load(1.0), Says::Meets);
            search.note(load(2.0), Says::Nothing);
            assert_eq!(search.propose(), Some(load(2.0)));
            search
        };
        let (mut bad, mut good) = (spoiled(), spoiled());
        bad.note(load(2.0), Says::Nothing);
        assert_eq!(bad.propose(), Some(load(2f64.sqrt())));
        good.note(load(2.0), Says::Meets);
        assert_eq!(good.propose(), Some(load(4.0)));
    }

    #[test]
    fn a_rate_that_was_spoiled_and_then_told_too_little_is_not_tried_for_ever() {
        let load = |rate_per_s| LoadPoint::Open { rate_per_s, arrivals: Arrivals::Poisson };
        let mut search = Search::new(Sla { percentile: 99.0, latency_ms: 50.0 }, Arrivals::Poisson);
        search.note(load(1.0), Says::Nothing);
        assert_eq!(search.propose(), Some(load(1.0)));
        search.note(load(1.0), Says::TooLittle);
        assert_eq!(search.propose(), Some(load(2.0)));
    }

    #[test]
    fn no_lower_rate_is_tried_because_of_the_client() {
        let load = |rate_per_s| LoadPoint::Open { rate_per_s, arrivals: Arrivals::Poisson };
        let mut search = Search::new(Sla { percentile: 95.0, latency_ms: 50.0 }, Arrivals::Poisson);
        search.note(load(8.0), Says::Nothing);
        search.note(load(8.0), Says::Nothing);
        assert_eq!(search.propose(), Some(load(16.0)));
    }

    #[test]
    fn comes_within_a_percent_where_each_point_tells() {
        for (capacity, start) in [(777.0, 10.0), (10.0, 10.0), (3.3, 40.0), (123_456.0, 100.0)] {
            let (rate, points) = found(capacity, start);
            let rate = rate.unwrap();
            assert!(rate <= capacity && rate > 0.99 * capacity, "{rate} of {capacity} in {points}");
        }
        let (none, points) = found(0.0, 10.0);
        assert!(none.is_none() && points < 8);
    }
}
