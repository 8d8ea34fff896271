//! From the load that a request asks for to its points: in what order, and how long each may take.

use super::{
    Rules, Target, measure,
    search::Search,
    sweep::{Sweep, Tried},
};
use crate::sample::Probes;
use async_trait::async_trait;
use modelmeter_common::{
    Problem,
    load::{Load, LoadPoint, Sla},
    part::Point,
};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// What measures one point. A session wraps [`Bench`] to journal each point as it comes.
#[async_trait]
pub trait Measure: Send {
    /// Measures this load, at the latest until the deadline.
    async fn measure(&mut self, load: LoadPoint, deadline: Option<Instant>) -> Result<Point, Problem>;
}

/// The real thing: a target, rules and probes.
#[derive(Clone)]
pub struct Bench {
    /// What is called.
    pub target: Target,
    /// When each point ends.
    pub rules: Rules,
    /// What is sampled meanwhile.
    pub probes: Probes,
    /// Stops it.
    pub cancel: CancellationToken,
}

#[async_trait]
impl Measure for Bench {
    async fn measure(&mut self, load: LoadPoint, deadline: Option<Instant>) -> Result<Point, Problem> {
        let rules = Rules { deadline: earlier(self.rules.deadline, deadline), ..self.rules.clone() };
        measure(&self.target, load, &rules, &self.probes, &self.cancel).await
    }
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Time to share out over points that are not all known yet.
#[derive(Clone, Copy, Debug)]
struct Budget {
    end: Option<Instant>,
}

/// A point with less time than this is not worth starting.
const LEAST: Duration = Duration::from_millis(300);

impl Budget {
    /// The deadline of the next of about `left` points.
    fn share(&self, left: usize) -> Option<Instant> {
        let now = Instant::now();
        self.end.map(|end| now + end.saturating_duration_since(now) / left.max(1) as u32)
    }

    fn is_spent(&self) -> bool {
        self.end.is_some_and(|end| end.saturating_duration_since(Instant::now()) < LEAST)
    }
}

/// Measures every point of a load in order, the reference first: one in flight, or the lowest rate. With a
/// budget, later points are left out when it is spent; the first never is.
pub async fn run_plan(
    load: &Load,
    sla: Option<&Sla>,
    budget: Option<Duration>,
    with: &mut dyn Measure,
) -> Result<Vec<Point>, Problem> {
    let budget = Budget { end: budget.map(|b| Instant::now() + b) };
    match load {
        Load::Closed { concurrencies } if concurrencies.is_empty() => sweep(budget, with).await,
        Load::SlaSearch { arrivals } => {
            let sla = sla.ok_or_else(|| Problem::invalid("load", "an SLA search needs an SLA"))?;
            search(Search::new(sla.clone(), *arrivals), budget, with).await
        }
        listed => list(&listed_points(listed), budget, with).await,
    }
}

fn listed_points(load: &Load) -> Vec<LoadPoint> {
    match load {
        Load::Closed { concurrencies } => {
            let mut points = vec![LoadPoint::Closed { concurrency: 1 }];
            for &concurrency in concurrencies {
                let point = LoadPoint::Closed { concurrency };
                if !points.contains(&point) {
                    points.push(point);
                }
            }
            points
        }
        Load::Open { rates, arrivals } => {
            let mut rates = rates.clone();
            rates.sort_by(f64::total_cmp);
            rates.dedup();
            rates.iter().map(|&rate_per_s| LoadPoint::Open { rate_per_s, arrivals: *arrivals }).collect()
        }
        Load::SlaSearch { .. } => Vec::new(),
    }
}

async fn list(loads: &[LoadPoint], budget: Budget, with: &mut dyn Measure) -> Result<Vec<Point>, Problem> {
    let mut points = Vec::new();
    for (i, &load) in loads.iter().enumerate() {
        if i > 0 && budget.is_spent() {
            break;
        }
        points.push(with.measure(load, budget.share(loads.len() - i)).await?);
    }
    Ok(points)
}

async fn sweep(budget: Budget, with: &mut dyn Measure) -> Result<Vec<Point>, Problem> {
    let (mut sweep, mut points) = (Sweep::default(), Vec::<Point>::new());
    while let Some(concurrency) = sweep.propose() {
        if !points.is_empty() && budget.is_spent() {
            break;
        }
        let deadline = budget.share(sweep.expected_left());
        let point = with.measure(LoadPoint::Closed { concurrency }, deadline).await?;
        sweep.tried(Tried { concurrency, rate: point.requests_per_s, valid: point.valid });
        points.push(point);
    }
    Ok(points)
}

async fn search(mut search: Search, budget: Budget, with: &mut dyn Measure) -> Result<Vec<Point>, Problem> {
    // One in flight tells what order of rate to begin with; it is no point of an open loop.
    let pilot = with.measure(LoadPoint::Closed { concurrency: 1 }, budget.share(8)).await?;
    search.begin(&pilot);
    let mut points = Vec::<Point>::new();
    while let Some(load) = search.propose() {
        if !points.is_empty() && budget.is_spent() {
            break;
        }
        let point = with.measure(load, budget.share(search.expected_left())).await?;
        search.tried(&point);
        points.push(point);
    }
    Ok(points)
}

#[cfg(test)]
mod tests {
    use super::*;
    use modelmeter_common::load::Arrivals;

    #[test]
    fn the_reference_comes_first_and_nothing_twice() {
        let closed = |c| LoadPoint::Closed { concurrency: c };
        let points = listed_points(&Load::Closed { concurrencies: vec![8, 1, 8, 4] });
        assert_eq!(points, [1, 8, 4].map(closed));
        let rates = listed_points(&Load::Open { rates: vec![30.0, 10.0], arrivals: Arrivals::Constant });
        assert_eq!(rates[0], LoadPoint::Open { rate_per_s: 10.0, arrivals: Arrivals::Constant });
    }

    #[test]
    fn a_budget_is_shared_out() {
        let budget = Budget { end: Some(Instant::now() + Duration::from_secs(10)) };
        let share = budget.share(4).unwrap() - Instant::now();
        assert!(share > Duration::from_millis(2400) && share < Duration::from_millis(2600));
        assert!(!budget.is_spent() && Budget { end: Some(Instant::now()) }.is_spent());
        assert!(!Budget { end: None }.is_spent() && Budget { end: None }.share(1).is_none());
    }
}
