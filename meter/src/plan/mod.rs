//! The plan of a load: which load points are measured, in what order, and how long each may take.
//!
//! The reference comes first and takes of a budget until p95 and, where time allows, p99 are seen. Then come the points of
//! a list ([`run_plan`]), a sweep ([`sweep`]) or an SLA search ([`search`]). The rest of the budget makes the peak and the
//! reference more precise.

mod bench;
mod budget;
pub mod search;
#[cfg(test)]
mod simulated;
pub mod sweep;

pub use bench::Bench;
pub use budget::Budget;

use crate::{
    point::lacks_percentiles,
    rules::{Aim, Slice},
};
use async_trait::async_trait;
use modelmeter_common::{
    Problem,
    load::{Load, LoadPoint, Sla},
    part::Point,
};
use search::Search;
use sweep::{Sweep, Tried};

/// Measures one point. [`Bench`] is the real one; users wrap it to report each point when it ends.
#[async_trait]
pub trait Measure: Send {
    /// Measures this load within its slice of the budget. Where none of its calls succeeds, that is an error if none of
    /// an earlier load's did either, else a point that is not valid.
    async fn measure(&mut self, load: LoadPoint, aim: Aim, slice: Option<Slice>) -> Result<Point, Problem>;

    /// Whether measuring a closed loop's first or best load again goes on with it, so that the point returned holds
    /// all that was measured of it.
    fn goes_on(&self) -> bool;
}

/// The sweep's share of the budget that the reference leaves; the rest is for the peak's own figures.
const SWEEP_SHARE: f64 = 0.6;
/// Shares that a listed point may take at most until its median has an interval, so that the others get theirs.
const LISTED_MOST: f64 = 2.0;

/// Measures every point of a load in order, the reference first: one in flight, or the lowest rate. With a
/// budget, later points are left out when it is spent; the first never is.
///
/// # Errors
/// Where the first point has nothing to show, or something else ends the measuring: what is cancelled is not measured.
pub async fn run_plan(
    load: &Load,
    sla: Option<&Sla>,
    budget: Budget,
    with: &mut dyn Measure,
) -> Result<Vec<Point>, Problem> {
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
        let share = 1.0 / (loads.len() - i) as f64;
        let most = if i == 0 { 1.0 } else { share * LISTED_MOST };
        if i > 0 && budget.is_spent() {
            break;
        }
        // The other points are measured first; percentiles come after them.
        let aim = if loads.len() == 1 { Aim::Percentiles } else { Aim::Figures };
        let point = with.measure(load, aim, budget.slice(share, most)).await?;
        if i > 0 && ran_out(&point, budget) {
            break;
        }
        points.push(point);
    }
    sharpen(&mut points, budget, with).await?;
    Ok(points)
}

async fn sweep(budget: Budget, with: &mut dyn Measure) -> Result<Vec<Point>, Problem> {
    let (mut sweep, mut points) = (Sweep::default(), Vec::<Point>::new());
    let mut swept = budget;
    while let Some(concurrency) = sweep.propose() {
        let is_first = points.is_empty();
        // To learn whether a second call in flight helps, the sweep may use all the time that is left.
        let affordable = if points.len() == 1 { budget } else { swept };
        if !is_first && !affordable.affords(concurrency, &points) {
            break;
        }
        let (aim, slice) = if is_first {
            (Aim::Percentiles, budget.reference())
        } else {
            (Aim::Peak, affordable.share(sweep.expected_left()))
        };
        let point = with.measure(LoadPoint::Closed { concurrency }, aim, slice).await?;
        if !is_first && ran_out(&point, swept) {
            break;
        }
        sweep.tried(Tried { concurrency, rate: point.requests_per_s, valid: point.valid });
        if is_first {
            swept = budget.part(SWEEP_SHARE);
        }
        points.push(point);
    }
    sharpen(&mut points, budget, with).await?;
    Ok(points)
}

/// A point that ended without a call because the budget did: those before it stand.
fn ran_out(point: &Point, budget: Budget) -> bool {
    point.requests == 0 && budget.is_spent()
}

/// Whether more calls would make a point better.
fn gains_from_more(point: &Point) -> bool {
    point.valid && (!point.converged || lacks_percentiles(&point.percentiles))
}

/// Goes on with the peak of a closed loop, which a sweep measured only to find it, and spends what a budget has left on peak and
/// reference, where more calls make them better.
async fn sharpen(points: &mut [Point], budget: Budget, with: &mut dyn Measure) -> Result<(), Problem> {
    if !with.goes_on() {
        return Ok(());
    }
    let rate = |p: &Point| p.requests_per_s.filter(|_| p.valid).map_or(0.0, |r| r.value);
    let peak = (0..points.len()).max_by(|&a, &b| rate(&points[a]).total_cmp(&rate(&points[b])));
    let mut which: Vec<usize> = [0].into_iter().filter(|_| budget.end.is_some()).collect();
    which.extend(peak.filter(|&i| i > 0));
    which.retain(|&i| points.get(i).is_some_and(gains_from_more));
    while let Some(i) = which.pop() {
        let LoadPoint::Closed { concurrency } = points[i].load else { continue };
        if !budget.affords(concurrency, points) {
            continue;
        }
        let slice = budget.slice(1.0 / (which.len() + 1) as f64, 1.0);
        let again = with.measure(points[i].load, Aim::Figures, slice).await?;
        // An invalid second visit leaves the first visit's point as it is.
        if again.valid {
            points[i] = again;
        }
    }
    Ok(())
}

async fn search(mut search: Search, budget: Budget, with: &mut dyn Measure) -> Result<Vec<Point>, Problem> {
    // The rate of one call in flight gives the rate to begin with; it is not a point of the open loop.
    let pilot = with.measure(LoadPoint::Closed { concurrency: 1 }, Aim::Peak, budget.slice(0.125, 0.25)).await?;
    search.begin(&pilot);
    let mut points = Vec::<Point>::new();
    while let Some(load) = search.propose() {
        if !points.is_empty() && budget.is_spent() {
            break;
        }
        let share = 1.0 / search.expected_left() as f64;
        let point = with.measure(load, Aim::Figures, budget.slice(share, share * LISTED_MOST)).await?;
        if !points.is_empty() && ran_out(&point, budget) {
            break;
        }
        search.tried(&point);
        // An invalid point is measured again and replaced.
        points.pop_if(|earlier| earlier.load == load);
        points.push(point);
    }
    Ok(points)
}

#[cfg(test)]
mod tests {
    use super::*;
    use modelmeter_common::{
        load::Arrivals,
        stats::{
            Figure, Histogram,
            percentile::{Effective, percentile_of},
            sample::Sample,
        },
    };
    use std::time::{Duration, Instant};

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
        let budget = Budget::new(Duration::from_secs(10), Duration::ZERO);
        let slice = budget.share(4).unwrap();
        let share = slice.share - Instant::now();
        assert!(share > Duration::from_millis(2400) && share < Duration::from_millis(2600));
        assert!(slice.end <= budget.end.unwrap());
        assert!(!budget.is_spent() && Budget::new(Duration::ZERO, Duration::ZERO).is_spent());
        assert!(!Budget::default().is_spent() && Budget::default().share(1).is_none());
    }

    /// A server of one call at a time, in no time at all: what it is asked for is what counts.
    struct Fake {
        call_s: f64,
        /// From this visit on nothing is valid.
        fails_from: usize,
        asked: Vec<(LoadPoint, Slice)>,
    }

    #[async_trait]
    impl Measure for Fake {
        async fn measure(&mut self, load: LoadPoint, _: Aim, slice: Option<Slice>) -> Result<Point, Problem> {
            self.asked.push((load, slice.unwrap()));
            let valid = self.asked.len() <= self.fails_from;
            let value = 1.0 / self.call_s;
            let lacking =
                percentile_of(99.0, Sample { latency: &Histogram::default(), failures: 0 }, Effective::known(0));
            Ok(Point {
                requests_per_s: Some(Figure { value, ci95: Some([value * 0.9, value * 1.1]), lower95: None }),
                percentiles: vec![lacking],
                valid,
                ..Point::blank(load, 1)
            })
        }
        fn goes_on(&self) -> bool {
            true
        }
    }

    async fn asked(call_s: f64, budget_s: f64) -> Vec<u32> {
        let mut fake = Fake { call_s, fails_from: usize::MAX, asked: Vec::new() };
        let grace = Duration::from_secs(3);
        let budget = Budget::new(Duration::from_secs_f64(budget_s), grace);
        let points = sweep(budget, &mut fake).await.unwrap();
        let (end, reference) = (budget.end.unwrap(), fake.asked[0].1);
        assert!(fake.asked[1..].iter().all(|(_, s)| s.share <= s.end && s.end <= end), "within the budget");
        assert!(reference.share < end && reference.end + Duration::from_millis(1) >= end + grace, "all and more");
        assert!(points.iter().all(|p| points.iter().filter(|q| q.load == p.load).count() == 1));
        fake.asked.iter().map(|(load, _)| load.to_owned()).map(concurrency).collect()
    }

    #[tokio::test]
    async fn a_second_visit_that_goes_wrong_leaves_the_first_point() {
        let budget = Budget::new(Duration::from_secs(20), Duration::ZERO);
        let mut fake = Fake { call_s: 0.001, fails_from: 3, asked: Vec::new() };
        let points = sweep(budget, &mut fake).await.unwrap();
        assert!(fake.asked.len() > 3 && points.len() == 3 && points.iter().all(|p| p.valid), "{:?}", fake.asked);
    }

    #[test]
    fn a_budget_runs_out_on_a_point_without_a_call() {
        let (spent, ample) = (Budget::new(Duration::ZERO, Duration::ZERO), Budget::default());
        let none = Point::blank(LoadPoint::Closed { concurrency: 2 }, 1);
        let failed = Point { requests: 3, errors: 3, ..none.clone() };
        assert!(ran_out(&none, spent) && !ran_out(&none, ample) && !ran_out(&failed, spent));
    }

    fn concurrency(load: LoadPoint) -> u32 {
        let LoadPoint::Closed { concurrency } = load else { unreachable!() };
        concurrency
    }

    #[tokio::test]
    async fn what_is_left_goes_to_the_reference_and_the_peak() {
        // The rate never grows: two doublings, then the last of equal peaks and the reference again.
        let fast = asked(0.001, 20.0).await;
        assert_eq!(fast[..3], [1, 2, 4]);
        assert!(fast[3..].contains(&1) && fast.len() > 4, "{fast:?}");
        // Four more in flight and eight calls: what is not affordable is not begun.
        assert_eq!(asked(0.5, 5.5).await, [1, 2, 2, 1]);
        assert_eq!(asked(5.0, 10.0).await, [1]);
    }
}
