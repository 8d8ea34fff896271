//! The SLA search against servers whose highest rate is known, in simulated time: the real plan, search, series and
//! claims, with queues in place of a client and a clock.

use super::super::{Budget, Measure, run_plan, search::meets};
use crate::{
    point::is_decided,
    rules::{Aim, Slice},
};
use async_trait::async_trait;
use modelmeter_common::{
    Problem,
    load::{Arrivals, Load, LoadPoint, Sla, Stop},
    part::Point,
    stats::{
        Figure,
        series::{Batch, Series},
        stop::StopRule,
    },
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

const LEAST_S: f64 = 5.0;
const WARMUP_S: f64 = 2.0;

/// One call at a time, 1 ms each: exactly, or on average by the exponential law.
struct Queue {
    service_varies: bool,
    most_s: f64,
    sla: Sla,
    rng: SmallRng,
    /// Calls that were made in all.
    calls: u64,
}

impl Queue {
    fn new(service_varies: bool, most_s: f64, sla: &Sla, seed: u64) -> Self {
        Self { service_varies, most_s, sla: sla.clone(), rng: SmallRng::seed_from_u64(seed), calls: 0 }
    }

    fn exponential(&mut self) -> f64 {
        -(1.0 - self.rng.random::<f64>()).ln()
    }

    fn open(&mut self, rate_per_s: f64, arrivals: Arrivals) -> Point {
        let (mut now, mut free, mut last_end) = (0.0f64, 0.0f64, WARMUP_S);
        let (mut series, mut window, mut next_look) = (Series::default(), Batch::default(), LEAST_S);
        let mut is_done = false;
        let stop = StopRule::from(&Stop::default());
        while !is_done {
            self.calls += 1;
            now += if arrivals == Arrivals::Poisson { self.exponential() } else { 1.0 } / rate_per_s;
            free = free.max(now) + 1e-3 * if self.service_varies { self.exponential() } else { 1.0 };
            if now < WARMUP_S {
                continue;
            }
            window.record(((free - now) * 1e9) as u64);
            window.duration_ns = ((free - last_end) * 1e9).max(0.0) as u64;
            let measured_s = now - WARMUP_S;
            is_done = measured_s >= self.most_s;
            if is_done || window.duration_ns as f64 > (measured_s * 1e9 / 64.0).max(1e6) {
                series.push(&std::mem::take(&mut window));
                last_end = free;
            }
            if !is_done && measured_s >= next_look {
                next_look = measured_s * 1.05;
                is_done = is_decided(&self.sla, &series, stop.is_met(&series));
            }
        }
        Point {
            latency: series.total().latency.clone(),
            percentiles: series.percentiles(),
            requests_per_s: series.rate(),
            ..Point::blank(LoadPoint::Open { rate_per_s, arrivals }, 1)
        }
    }
}

#[async_trait]
impl Measure for Queue {
    async fn measure(&mut self, load: LoadPoint, _: Aim, _: Option<Slice>) -> Result<Point, Problem> {
        let rate = Figure::observed(1000.0);
        match load {
            LoadPoint::Closed { .. } => Ok(Point { requests_per_s: Some(rate), ..Point::blank(load, 1) }),
            LoadPoint::Open { rate_per_s, arrivals } => Ok(self.open(rate_per_s, arrivals)),
        }
    }

    fn goes_on(&self) -> bool {
        true
    }
}

/// The latency of M/M/1 is exponential, with what is left of the service rate.
fn best_of_mm1(sla: &Sla) -> f64 {
    1000.0 + (1.0 - sla.percentile / 100.0).ln() / (sla.latency_ms / 1e3)
}

/// P(wait ≤ `at` services) of M/D/1 at this utilisation. Source: A. K. Erlang, "The theory of probabilities and telephone
/// conversations", 1909.
fn waits_at_most(at: f64, utilisation: f64) -> f64 {
    let term = |k: f64| {
        let x = utilisation * (at - k);
        let (mut power, mut i) = ((1.0 - utilisation) * x.exp(), 1.0);
        while i <= k {
            (power, i) = (power * -x / i, i + 1.0);
        }
        power
    };
    (0..=at as u64).map(|k| term(k as f64)).sum()
}

fn best_of_md1(sla: &Sla) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..50 {
        let middle = (low + high) / 2.0;
        let holds = waits_at_most(sla.latency_ms - 1.0, middle) >= sla.percentile / 100.0;
        (low, high) = if holds { (middle, high) } else { (low, middle) };
    }
    low * 1000.0
}

/// The rate that a search ends with, and how many points it took.
async fn found(mut queue: Queue, arrivals: Arrivals) -> (f64, usize, u64) {
    let sla = queue.sla.clone();
    let points = run_plan(&Load::SlaSearch { arrivals }, Some(&sla), Budget::default(), &mut queue).await.unwrap();
    let rates = points.iter().filter(|p| meets(&sla, p)).map(|p| match p.load {
        LoadPoint::Open { rate_per_s, .. } => rate_per_s,
        LoadPoint::Closed { .. } => unreachable!("the pilot is no point of the search"),
    });
    (rates.fold(0.0, f64::max), points.len(), queue.calls)
}

const fn sla(latency_ms: f64) -> Sla {
    Sla { percentile: 95.0, latency_ms }
}

#[tokio::test]
async fn a_search_ends_within_three_percent_of_the_highest_rate_and_not_above() {
    let sla = sla(10.0);
    let (mm1, md1) = (best_of_mm1(&sla), best_of_md1(&sla));
    assert!((mm1 - 700.4).abs() < 0.1 && (800.0..900.0).contains(&md1), "{mm1}, {md1}");
    for (name, varies, arrivals, truth, most_s) in [
        ("M/M/1", true, Arrivals::Poisson, mm1, 4000.0),
        ("M/D/1", false, Arrivals::Poisson, md1, 2000.0),
        // Below the rate at which it never waits, above the one at which the queue only grows.
        ("D/D/1", false, Arrivals::Constant, 1000.0, 30.0),
    ] {
        let (mut near, mut above) = (0, 0);
        const RUNS: u64 = 6;
        for seed in 0..RUNS {
            let (rate, points, calls) = found(Queue::new(varies, most_s, &sla, seed), arrivals).await;
            println!("{name}: {rate:.1} of {truth:.1} in {points} points, {calls} calls");
            near += u64::from((rate / truth - 1.0).abs() <= 0.03);
            above += u64::from(rate > truth * 1.001);
        }
        assert!(near >= RUNS - 1, "{name}: {near} of {RUNS}");
        assert!(above <= 1, "{name}: {above} of {RUNS} claim too much");
    }
}

#[tokio::test]
async fn a_rate_that_just_misses_is_claimed_to_meet_once_in_a_hundred_times_at_most() {
    let sla = sla(10.0);
    const RUNS: u64 = 200;
    for (name, varies, rate) in [("M/M/1", true, best_of_mm1(&sla)), ("M/D/1", false, best_of_md1(&sla))] {
        let claims = |seed| meets(&sla, &Queue::new(varies, 30.0, &sla, seed).open(rate, Arrivals::Poisson));
        let wrong = (0..RUNS).filter(|&seed| claims(seed)).count();
        println!("{name}: {wrong} of {RUNS} claims are wrong");
        // One in a hundred, and what chance adds to that once in a hundred times.
        assert!(wrong <= 6, "{name}: {wrong} of {RUNS}");
    }
}
