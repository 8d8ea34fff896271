//! The sweep against servers whose peak is known: every point has the meter's own warm-up, series and stop rule.

use super::{
    super::{Budget, Measure, run_plan},
    laws::{Call, Calls, Rng},
    simulate,
};
use crate::rules::{Aim, Slice};
use async_trait::async_trait;
use modelmeter_common::{
    Problem,
    load::{Load, LoadPoint, Stop},
    part::Point,
    stats::stop::StopRule,
};
use std::{cmp::Reverse, collections::BinaryHeap};

/// Calls a second at the peak.
const TOP: f64 = 500.0;

/// What a server makes of so many calls in flight, of its peak and of a number that shapes it further.
type Law = fn(in_flight: f64, peak: f64, shape: f64) -> f64;

/// Serves all calls at once, each the more slowly the less its law makes of them.
struct Server {
    law: Law,
    peak: f64,
    shape: f64,
    /// By how much its speed as a whole varies, over some tenths of a second.
    unsteady: f64,
    rng: Rng,
    points: u64,
    took_s: f64,
}

impl Server {
    /// A peak anywhere from 1 to 200 in flight.
    fn new(law: Law, unsteady: f64, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let (peak, shape) = (200f64.powf(rng.uniform()).round(), 0.2 + 1.3 * rng.uniform());
        Self { law, peak, shape, unsteady, rng, points: 0, took_s: 0.0 }
    }

    /// Its rate, of which the highest is 1.
    fn rate(&self, in_flight: u32) -> f64 {
        let of = |c: u32| (self.law)(f64::from(c), self.peak, self.shape);
        of(in_flight) / (1..=1024).map(of).fold(0.0, f64::max)
    }

    fn calls(&mut self, in_flight: u32) -> Calls {
        let mean_s = f64::from(in_flight) / (TOP * self.rate(in_flight));
        let mut rng = self.rng.clone();
        self.rng.uniform();
        let (unsteady, mut mood, mut now_s) = (self.unsteady, 0.0, 0.0);
        let mut ends = BinaryHeap::new();
        let mut next = move |begin_s: f64| {
            // A first-order autoregressive process, a step a call.
            let keeps = (-(begin_s - now_s) / 0.3f64).exp();
            now_s = begin_s;
            mood = keeps * mood + (1.0 - keeps * keeps).sqrt() * rng.normal();
            let latency_s = rng.log_normal(mean_s, 0.2) * (unsteady * mood).exp();
            (Reverse(((begin_s + latency_s) * 1e9) as u64), (latency_s * 1e9) as u64)
        };
        (0..in_flight).for_each(|_| ends.push(next(0.0)));
        Box::new(move || {
            let (Reverse(end_ns), latency_ns) = ends.pop().expect("some are in flight");
            let end_s = end_ns as f64 / 1e9;
            ends.push(next(end_s));
            Call { end_s, latency_s: latency_ns as f64 / 1e9 }
        })
    }
}

#[async_trait]
impl Measure for Server {
    async fn measure(&mut self, load: LoadPoint, aim: Aim, _: Option<Slice>) -> Result<Point, Problem> {
        let LoadPoint::Closed { concurrency } = load else { unreachable!("a sweep's points are closed loops") };
        self.points += 1;
        let min = if aim == Aim::Peak { 2_000 } else { Stop::default().min_duration_ms };
        let stop = Stop { min_duration_ms: min, ..Stop::default() };
        let run = simulate::run(self.calls(concurrency), StopRule::from(&stop));
        self.took_s += run.took_s;
        Ok(Point {
            percentiles: run.series.percentiles(),
            requests_per_s: run.series.rate(),
            converged: run.converged,
            ..Point::blank(load, 1)
        })
    }

    fn goes_on(&self) -> bool {
        false
    }
}

/// Servers of each kind: the share of sweeps that come within 3 %.
#[tokio::test]
async fn a_sweep_ends_within_three_percent_of_the_peak() {
    let saturating: Law = |c, peak, _| c.min(peak);
    let softly: Law = |c, peak, _| c / (1.0 + (c / peak).powi(2)).sqrt();
    let thrashing: Law = |c, peak, shape| if c <= peak { c } else { peak * (peak / c).powf(shape) };
    let two_step: Law = |c, peak, shape| {
        let first = (peak / (2.0 + shape)).floor().max(1.0);
        c.min(first) + (c - 2.0 * first).clamp(0.0, peak)
    };
    const RUNS: u64 = 20;
    for (name, law) in
        [("saturating", saturating), ("softly saturating", softly), ("thrashing", thrashing), ("two-step", two_step)]
    {
        for unsteady in [0.0, 0.1] {
            let (mut near, mut points, mut took_s, mut worst) = (0, 0, 0.0, 1.0f64);
            for seed in 0..RUNS {
                let mut server = Server::new(law, unsteady, seed);
                let found = run_plan(&Load::default(), None, Budget::default(), &mut server).await.unwrap();
                let rate = |p: &Point| p.requests_per_s.map_or(0.0, |r| r.value);
                let peak = found.iter().max_by(|a, b| rate(a).total_cmp(&rate(b))).unwrap();
                let LoadPoint::Closed { concurrency } = peak.load else { unreachable!() };
                let share = server.rate(concurrency);
                near += u64::from(share >= 0.97);
                worst = worst.min(share);
                points += server.points;
                took_s += server.took_s;
            }
            let (points, took_s) = (points as f64 / RUNS as f64, took_s / RUNS as f64);
            println!(
                "{name}, unsteady {unsteady}: {near} of {RUNS} within 3 %, the worst {worst:.3}; {points:.1} points, {took_s:.0} s"
            );
            let least = if unsteady == 0.0 { RUNS } else { RUNS * 9 / 10 };
            assert!(near >= least && worst > 0.93, "{name}, unsteady {unsteady}: {near} of {RUNS}, the worst {worst}");
        }
    }
}
