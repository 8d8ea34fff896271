//! Which rate to try next to find the highest that still meets an SLA: a pure rule. It doubles from a tenth of
//! what one in flight brings until the SLA is missed, then halves the gap on a logarithmic scale.

use modelmeter_common::{
    load::{Arrivals, LoadPoint, Sla},
    part::{Percentile, Point},
    stats::{
        percentile::{Sample, sla_met_by},
        series::Series,
    },
};

/// The ratio of the lowest rate that misses to the highest that meets at which it ends.
const CLOSE: f64 = 1.025;
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
    points: usize,
}

impl Search {
    /// Nothing tried yet.
    pub fn new(sla: Sla, arrivals: Arrivals) -> Self {
        Self { sla, arrivals, start: 1.0, meets: None, misses: None, points: 0 }
    }

    /// Takes the order of the rates from a closed loop with one in flight.
    pub fn begin(&mut self, pilot: &Point) {
        if let Some(rate) = pilot.requests_per_s.filter(|_| pilot.valid) {
            self.start = (rate.value / 10.0).clamp(0.1, MAX_RATE);
        }
    }

    /// The next load; none when the search is over.
    pub fn propose(&self) -> Option<LoadPoint> {
        let rate_per_s = match (self.meets, self.misses) {
            _ if self.points >= MOST => return None,
            (None, None) => self.start,
            (Some(meets), None) => meets * 2.0,
            // Below a hundredth of the start it is not the load that makes it miss.
            (None, Some(misses)) => Some(misses / 4.0).filter(|rate| *rate > self.start / 100.0)?,
            (Some(meets), Some(misses)) if misses / meets <= CLOSE => return None,
            (Some(meets), Some(misses)) => (meets * misses).sqrt(),
        };
        (rate_per_s <= MAX_RATE).then_some(LoadPoint::Open { rate_per_s, arrivals: self.arrivals })
    }

    /// Notes a result.
    pub fn tried(&mut self, point: &Point) {
        self.note(point.load, meets(&self.sla, point));
    }

    fn note(&mut self, load: LoadPoint, met: bool) {
        let LoadPoint::Open { rate_per_s, .. } = load else { return };
        self.points += 1;
        if met {
            self.meets = Some(self.meets.map_or(rate_per_s, |m| m.max(rate_per_s)));
        } else {
            self.misses = Some(self.misses.map_or(rate_per_s, |m| m.min(rate_per_s)));
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

/// Whether a point shows, at 99 % confidence, that the SLA is met: failures count as over the limit.
pub fn meets(sla: &Sla, point: &Point) -> bool {
    let total = Sample { latency: &point.latency, failures: point.errors };
    let had = had(sla, &point.percentiles);
    point.valid && sla_met_by(sla.percentile, (sla.latency_ms * 1e6) as u64, total, had)
}

/// Whether more calls may still show that the SLA is met: its percentile lies below the limit so far, but the calls
/// are too few to be sure.
pub fn is_open(sla: &Sla, series: &Series) -> bool {
    let (limit_ns, total) = ((sla.latency_ms * 1e6) as u64, series.total());
    let sample = Sample { latency: &total.latency, failures: total.failures };
    let over = series.requests() - total.latency.count_up_to(limit_ns);
    let looks_met = (over as f64) < (1.0 - sla.percentile / 100.0) * series.requests() as f64;
    looks_met && !sla_met_by(sla.percentile, limit_ns, sample, had(sla, &series.percentiles()))
}

/// Effective samples: those of the percentile nearest to the SLA's.
fn had(sla: &Sla, percentiles: &[Percentile]) -> u64 {
    let distance = |p: &Percentile| (p.q - sla.percentile).abs();
    percentiles.iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).map_or(0, |p| p.had)
}

#[cfg(test)]
mod tests {
    use super::*;
    use modelmeter_common::stats::series::Batch;

    fn found(capacity: f64, start: f64) -> (Option<f64>, usize) {
        let mut search = Search::new(Sla { percentile: 95.0, latency_ms: 50.0 }, Arrivals::Poisson);
        search.start = start;
        while let Some(load) = search.propose() {
            let LoadPoint::Open { rate_per_s, .. } = load else { unreachable!() };
            search.note(load, rate_per_s <= capacity);
            assert!(search.expected_left() >= 1);
        }
        (search.meets, search.points)
    }

    #[test]
    fn what_looks_met_and_is_not_sure_is_open() {
        let sla = Sla { percentile: 95.0, latency_ms: 50.0 };
        let series = |calls: u64, slow: u64| {
            let mut series = Series::default();
            for i in 0..calls {
                let ns = if i % (calls / slow.max(1)).max(1) == 1 && slow > 0 { 60_000_000 } else { 20_000_000 };
                let mut call = Batch { duration_ns: ns, ..Batch::default() };
                call.latency.record(ns);
                series.push(&call);
            }
            series
        };
        assert!(is_open(&sla, &series(50, 0)), "90 are needed");
        assert!(!is_open(&sla, &series(400, 0)), "met");
        assert!(!is_open(&sla, &series(50, 10)), "missed");
    }

    #[test]
    fn comes_within_three_percent_of_the_true_rate() {
        for (capacity, start) in [(777.0, 10.0), (10.0, 10.0), (3.3, 40.0), (123_456.0, 100.0)] {
            let (rate, points) = found(capacity, start);
            let rate = rate.unwrap();
            assert!(rate <= capacity && rate > 0.97 * capacity, "{rate} of {capacity} in {points}");
        }
        let (none, points) = found(0.0, 10.0);
        assert!(none.is_none() && points < 8);
    }
}
