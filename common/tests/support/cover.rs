//! How often intervals cover the truth: many seeded runs of a law, on every core.

use super::{
    laws::{Law, Rng},
    simulate::{Run, run},
};
use modelmeter_common::{
    fold::fold_points,
    load::{LoadPoint, Sla},
    part::Point,
    stats::{Figure, percentile::PERCENTILES, sample::Sample, series::Series, sla, stop::StopRule},
};
use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Histograms tell values apart to three digits.
const DIGITS: f64 = 1e-3;

/// What is judged of each run: throughput, then [`PERCENTILES`].
pub const FIGURES: usize = 1 + PERCENTILES.len();

/// The true figures of a law, from one run that is very much longer than those it judges.
pub fn truth(law: &Law, calls: usize) -> [f64; FIGURES] {
    let mut next = (law.calls)(Rng::new(u64::MAX));
    let mut latencies_ms = Vec::with_capacity(calls);
    let mut end_s = 0.0;
    for _ in 0..calls {
        let call = next();
        end_s = call.end_s;
        latencies_ms.push((call.latency_s * 1e3) as f32);
    }
    let mut percentile = |q: f64| {
        let at = (calls as f64 * q / 100.0) as usize;
        f64::from(*latencies_ms.select_nth_unstable_by(at, f32::total_cmp).1)
    };
    let [p50, p90, p95, p99, p99_9] = PERCENTILES.map(&mut percentile);
    [calls as f64 / end_s, p50, p90, p95, p99, p99_9]
}

/// Of one figure over many runs.
#[derive(Clone, Debug, Default)]
pub struct Hits {
    /// Runs that saw the figure.
    pub seen: u64,
    /// Lower bounds where there was no interval, and those of them that lie above the truth.
    pub bounded: u64,
    pub bound_misses: u64,
    half_widths: Vec<f32>,
    off: Vec<f32>,
    /// Runs that gave an interval.
    pub given: u64,
    /// Whose interval lies below the truth.
    pub low: u64,
    /// Whose interval lies above the truth.
    pub high: u64,
}

impl Hits {
    pub fn note(&mut self, seen: Option<Figure>, truth: f64) {
        let Some(figure) = seen else { return };
        self.seen += 1;
        if let Some([low, high]) = figure.ci95 {
            self.given += 1;
            self.low += u64::from(high < truth * (1.0 - DIGITS));
            self.high += u64::from(low > truth * (1.0 + DIGITS));
            self.half_widths.push(((high - figure.value).max(figure.value - low) / figure.value) as f32);
        } else {
            self.off.push((figure.value / truth - 1.0) as f32);
        }
        if let Some(low) = figure.lower95 {
            self.bounded += 1;
            self.bound_misses += u64::from(low > truth * (1.0 + DIGITS));
        }
    }

    /// The median half width of the intervals given, as a share of the value.
    pub fn half_width(&self) -> f64 {
        f64::from(quantile(&self.half_widths, 0.5))
    }

    /// How far figures without an interval lay from the truth, as a share of it: the 10 %, 50 % and 90 % points.
    pub fn off(&self) -> Option<[f64; 3]> {
        (!self.off.is_empty()).then(|| [0.1, 0.5, 0.9].map(|p| f64::from(quantile(&self.off, p))))
    }

    /// The share of the intervals given that cover the truth.
    pub fn coverage(&self) -> f64 {
        1.0 - (self.low + self.high) as f64 / self.given.max(1) as f64
    }
}

impl std::fmt::Display for Hits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { seen, given, low, high, bounded, bound_misses, .. } = self;
        let off = self.off().map_or(0.0, |off| off[1]);
        write!(
            f,
            "seen {seen}, given {given} ±{:.3}, {low} below the truth and {high} above; else off by {off:.3}, {bound_misses} of \
             {bounded} bounds too high",
            self.half_width()
        )
    }
}

fn quantile(values: &[f32], p: f64) -> f32 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f32::total_cmp);
    sorted.get((p * sorted.len() as f64) as usize).copied().unwrap_or(f32::NAN)
}

/// Of one law.
#[derive(Clone, Debug, Default)]
pub struct Covered {
    pub runs: u64,
    pub converged: u64,
    /// Of each run, warm-up included, sorted.
    pub took_s: Vec<f64>,
    pub calls: u64,
    pub figures: [Hits; FIGURES],
}

impl Covered {
    pub fn median_s(&self) -> f64 {
        self.took_s[self.took_s.len() / 2]
    }
}

/// Runs this law from these seeds on.
pub fn cover(law: &Law, truth: &[f64; FIGURES], rule: StopRule, first_seed: u64, runs: u64) -> Covered {
    cover_repeats(law, truth, rule, first_seed, runs, 1)
}

/// The same of so many repeats of each run, folded as a profile folds them.
pub fn cover_repeats(
    law: &Law,
    truth: &[f64; FIGURES],
    rule: StopRule,
    first_seed: u64,
    runs: u64,
    repeats: usize,
) -> Covered {
    let all = Mutex::new(Covered { runs, ..Covered::default() });
    each(runs, |i| {
        let seed = |repeat: usize| first_seed + i + repeat as u64 * 1_000_000_000;
        let ended: Vec<Run> = (0..repeats).map(|repeat| run((law.calls)(Rng::new(seed(repeat))), rule)).collect();
        let points: Vec<Point> = ended.iter().map(|run| point(&run.series)).collect();
        let folded = fold_points(&points.iter().collect::<Vec<_>>()).expect("there is a point");
        let mut all = all.lock().expect("no thread panics while it holds this");
        all.took_s.push(ended.iter().map(|run| run.took_s).sum());
        all.converged += u64::from(ended.iter().all(|run| run.converged));
        all.calls += folded.requests;
        let figures = std::iter::once(folded.requests_per_s).chain(folded.percentiles.iter().map(|p| p.ms));
        for ((hits, seen), truth) in all.figures.iter_mut().zip(figures).zip(truth) {
            hits.note(seen, *truth);
        }
    });
    let mut all = all.into_inner().expect("no thread panicked");
    all.took_s.sort_by(f64::total_cmp);
    all
}

/// In how many runs of this law each of these SLAs is claimed to be met.
#[allow(dead_code, reason = "the benchmark asks")]
pub fn claims(law: &Law, slas: &[Sla], rule: StopRule, first_seed: u64, runs: u64) -> Vec<u64> {
    let claimed: Vec<AtomicU64> = slas.iter().map(|_| AtomicU64::new(0)).collect();
    each(runs, |i| {
        let series = run((law.calls)(Rng::new(first_seed + i)), rule).series;
        let (total, percentiles) = (Sample { latency: &series.total().latency, failures: 0 }, series.percentiles());
        for (claimed, sla) in claimed.iter().zip(slas) {
            claimed.fetch_add(u64::from(sla::is_met(sla, total, &percentiles)), Relaxed);
        }
    });
    claimed.into_iter().map(AtomicU64::into_inner).collect()
}

/// Does this for each run, on every core.
fn each(runs: u64, work: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(0);
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let serve = || {
        loop {
            let i = next.fetch_add(1, Relaxed);
            if i >= runs {
                return;
            }
            work(i);
        }
    };
    std::thread::scope(|scope| (0..cores).for_each(|_| drop(scope.spawn(serve))));
}

fn point(series: &Series) -> Point {
    Point {
        requests: series.requests(),
        duration_s: series.seconds(),
        latency: series.total().latency.clone(),
        percentiles: series.percentiles(),
        requests_per_s: series.rate(),
        ..Point::blank(LoadPoint::Closed { concurrency: 1 }, 1)
    }
}
