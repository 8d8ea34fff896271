//! The bench: measures the points of a plan, and goes on with a load that was measured before when the plan asks again.

use super::Measure;
use crate::{
    point::{self, Kept, observe},
    probe::Probe,
    rules::{Aim, Rules, Slice},
    target::Target,
};
use async_trait::async_trait;
use modelmeter_common::{Problem, load::LoadPoint, part::Point};
use tokio_util::sync::CancellationToken;

/// Measures load points of one target by one set of rules. Where no call of the first load succeeds, that is an error; where
/// no call of a later load does, its point is invalid and says why.
pub struct Bench {
    target: Target,
    rules: Rules,
    probe: Box<dyn Probe>,
    cancel: CancellationToken,
    /// Whether a call of some load succeeded.
    has_served: bool,
    /// The loads that may be visited again: the first, and the one with the highest throughput so far.
    kept: Vec<(LoadPoint, f64, Kept)>,
}

impl std::fmt::Debug for Bench {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bench").field("endpoint", &self.target.endpoint).finish_non_exhaustive()
    }
}

impl Bench {
    /// A bench for this target, with these rules; `probe` samples the machine while a point is measured.
    pub fn new(target: Target, rules: Rules, probe: Box<dyn Probe>, cancel: CancellationToken) -> Self {
        Self { target, rules, probe, cancel, has_served: false, kept: Vec::new() }
    }

    fn keep(&mut self, load: LoadPoint, point: &Point, kept: Kept) {
        let rate = point.requests_per_s.filter(|_| point.valid).map_or(0.0, |r| r.value);
        if let Some(again) = self.kept.iter_mut().find(|(l, ..)| *l == load) {
            *again = (load, rate, kept);
        } else if self.kept.iter().all(|(_, best, _)| rate > *best) {
            self.kept.truncate(1);
            self.kept.push((load, rate, kept));
        }
    }
}

#[async_trait]
impl Measure for Bench {
    async fn measure(&mut self, load: LoadPoint, aim: Aim, slice: Option<Slice>) -> Result<Point, Problem> {
        let mut rules = Rules { slice, aim, ..self.rules.clone() };
        // The SLA applies to the search's own loads, not to its pilot.
        rules.sla = rules.sla.filter(|_| matches!(load, LoadPoint::Open { .. }));
        let earlier = self.kept.iter().find(|(l, ..)| *l == load).map(|(_, _, kept)| kept);
        let kept = observe(&self.target, load, &rules, &*self.probe, &self.cancel, earlier).await?;
        if let Some(problem) = kept.seen.nothing.clone().filter(|_| !self.has_served) {
            return Err(problem);
        }
        self.has_served = true;
        let point = point::point(self.target.transport.batch_size(), &rules, &kept);
        if self.goes_on() && matches!(load, LoadPoint::Closed { .. }) {
            self.keep(load, &point, kept);
        }
        Ok(point)
    }

    fn goes_on(&self) -> bool {
        self.rules.batches.is_none()
    }
}
