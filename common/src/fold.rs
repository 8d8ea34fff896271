//! The fold of a cell's repeats at one load: a pure function, the same bytes in whatever order they come.

use crate::{
    part::{Answers, EngineCpu, GpuUse, HostUse, Metric, Point, ServerTimes},
    stats::{
        Figure, Histogram, Interval,
        percentile::{Basis, Effective, PERCENTILES, Percentile, percentile_of},
        sample::Sample,
        special::t95,
    },
    unsupported,
};
use std::collections::{BTreeMap, BTreeSet};

/// Folds the repeats of one load point into one whose durations are theirs together. None of none.
pub fn fold_points(points: &[&Point]) -> Option<Point> {
    let mut points = points.to_vec();
    // Sums of floats depend on their order: fix it by what is summed.
    points.sort_by_cached_key(|p| serde_json::to_vec(p).expect("a point holds nothing that JSON cannot carry"));
    let points = points.as_slice();
    let first = points.first()?;
    let (requests, errors) = (total(points, |p| p.requests), total(points, |p| p.errors));
    let latency = merged(points.iter().map(|p| &p.latency));
    let mut unavailable = BTreeMap::new();
    for point in points {
        unavailable.extend(point.unavailable.clone());
    }
    let alone: Vec<&[Percentile]> = points.iter().map(|p| p.percentiles.as_slice()).collect();
    let percentiles = fold_percentiles(&alone, &latency, errors);
    let metrics = fold_metrics(points);
    // A repeat alone may not have supported what all together support.
    unavailable.retain(|path, _| !path.starts_with(unsupported::LATENCY));
    unavailable.extend(percentiles.iter().filter_map(|p| unsupported::percentile(unsupported::LATENCY, p, requests)));
    unavailable.retain(|path, _| !path.starts_with(unsupported::METRICS));
    unavailable.extend(metrics.iter().flat_map(unsupported::metric));
    let requests_per_s = fold_throughput(points);
    unavailable.retain(|path, _| !path.starts_with(unsupported::THROUGHPUT));
    unavailable.extend(unsupported::throughput(requests_per_s));
    let (gpu, engine_cpu, host) = (fold_gpu(points), fold_engine(points), fold_host(points));
    // What one repeat lacked another may have.
    let figures = serde_json::to_value(&gpu).expect("figures of a GPU are plain numbers");
    unavailable.retain(|path, _| match path.as_str() {
        "gpu" => gpu.is_none(),
        "engine_cpu" => engine_cpu.is_none(),
        "host" => host.is_none(),
        other => {
            other.strip_prefix("gpu.").is_none_or(|field| figures.get(field).is_none_or(serde_json::Value::is_null))
        }
    });
    Some(Point {
        load: first.load,
        batch_size: first.batch_size,
        warmup_s: points.iter().map(|p| p.warmup_s).sum(),
        requests,
        errors,
        resent: total(points, |p| p.resent),
        error_kinds: kinds(points, |p| &p.error_kinds),
        answers: Answers { checked: total(points, |p| p.answers.checked), wrong: kinds(points, |p| &p.answers.wrong) },
        duration_s: points.iter().map(|p| p.duration_s).sum(),
        requests_per_s,
        percentiles,
        latency,
        service: merged_some(points, |p| p.service.as_ref()),
        send_lateness: merged_some(points, |p| p.send_lateness.as_ref()),
        gpu,
        engine_cpu,
        server: points.iter().filter_map(|p| p.server).reduce(ServerTimes::plus),
        client_cpu_cores: mean(points.iter().map(|p| p.client_cpu_cores)),
        host,
        converged: points.iter().all(|p| p.converged),
        valid: points.iter().all(|p| p.valid),
        warnings: points.iter().flat_map(|p| p.warnings.clone()).collect::<BTreeSet<_>>().into_iter().collect(),
        unavailable,
        metrics,
    })
}

fn total(points: &[&Point], of: impl Fn(&Point) -> u64) -> u64 {
    points.iter().map(|p| of(p)).sum()
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.collect();
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn merged<'a>(histograms: impl Iterator<Item = &'a Histogram>) -> Histogram {
    histograms.fold(Histogram::default(), |mut sum, h| {
        sum.merge(h);
        sum
    })
}

/// The sum of the histograms that repeats have; none where no repeat has one.
fn merged_some(points: &[&Point], of: impl Fn(&Point) -> Option<&Histogram>) -> Option<Histogram> {
    let mut some = points.iter().filter_map(|p| of(p)).peekable();
    some.peek()?;
    Some(merged(some))
}

fn kinds(points: &[&Point], of: impl Fn(&Point) -> &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let mut kinds = BTreeMap::new();
    for (kind, n) in points.iter().flat_map(|p| of(p)) {
        *kinds.entry(kind.clone()).or_insert(0) += n;
    }
    kinds
}

/// Each metric that a repeat has: its values together, by name.
fn fold_metrics(points: &[&Point]) -> Vec<Metric> {
    let mut by_name: BTreeMap<&str, Vec<&Metric>> = BTreeMap::new();
    for metric in points.iter().flat_map(|p| &p.metrics) {
        by_name.entry(&metric.name).or_default().push(metric);
    }
    let fold = |metrics: &[&Metric]| {
        let values = merged(metrics.iter().map(|m| &m.values));
        let failures = metrics.iter().map(|m| m.failures).sum();
        let alone: Vec<&[Percentile]> = metrics.iter().map(|m| m.percentiles.as_slice()).collect();
        let percentiles = fold_percentiles(&alone, &values, failures);
        Some(Metric { values, failures, percentiles, ..(*metrics.first()?).clone() })
    };
    by_name.values().filter_map(|metrics| fold(metrics)).collect()
}

/// The percentiles of all repeats together, from those of each.
fn fold_percentiles(repeats: &[&[Percentile]], latency: &Histogram, failures: u64) -> Vec<Percentile> {
    PERCENTILES.iter().map(|&q| fold_percentile(q, repeats, latency, failures)).collect()
}

fn fold_percentile(q: f64, points: &[&[Percentile]], latency: &Histogram, failures: u64) -> Percentile {
    let alone: Vec<&Percentile> = points.iter().filter_map(|p| p.iter().find(|x| x.q == q)).collect();
    // Parts of version 1 withheld what was seen without an interval: that is found anew.
    if let ([_], [only @ Percentile { ms: Some(_), .. }]) = (points, alone.as_slice()) {
        return (*only).clone();
    }
    let sum = |of: fn(&Percentile) -> u64| alone.iter().map(|p| of(p)).sum::<u64>();
    let worth = Effective { had: sum(|p| p.had), sure: sum(|p| p.sure) };
    let mut pooled = percentile_of(q, Sample { latency, failures }, worth);
    pooled.sure_unjoined = sum(|p| p.sure_unjoined);
    let repeats: Vec<Interval> = alone.iter().filter_map(|p| p.interval()).collect();
    if repeats.len() == points.len() && alone.iter().any(|p| p.basis == Basis::Stretches) {
        let mean = |end: usize| repeats.iter().map(|i| i.ci95[end]).sum::<f64>() / repeats.len() as f64;
        pooled.set(Some([mean(0), mean(1)]), Basis::Stretches);
    }
    let widened = pooled.interval().map(|pooled| widen(pooled, &repeats).ci95);
    let basis = pooled.basis;
    pooled.set(widened, basis);
    pooled
}

/// The mean rate, weighted by time; its interval where every repeat has one.
fn fold_throughput(points: &[&Point]) -> Option<Figure> {
    if let [only] = points {
        return only.requests_per_s;
    }
    let duration: f64 = points.iter().map(|p| p.duration_s).sum();
    let weighted = |of: &dyn Fn(Figure) -> f64| -> Vec<f64> {
        points.iter().map(|p| p.requests_per_s.map_or(0.0, of) * p.duration_s / duration).collect()
    };
    let value: f64 = weighted(&|rate| rate.value).iter().sum();
    let repeats: Vec<Interval> = points.iter().filter_map(|p| p.requests_per_s?.interval()).collect();
    if repeats.len() < points.len() {
        return (value > 0.0).then(|| Figure::observed(value));
    }
    // Within the repeats: independent errors add as squares.
    let half_width = |rate: Figure| rate.interval().map_or(0.0, |i| i.relative_half_width() * i.value);
    let half = weighted(&half_width).iter().map(|h| h * h).sum::<f64>().sqrt();
    Some(widen(Interval { value, ci95: [(value - half).max(0.0), value + half] }, &repeats).into())
}

/// Widens an interval of the pooled samples by what the repeats differ: two are covered whole; from three
/// up, Student's t interval of their values.
fn widen(pooled: Interval, repeats: &[Interval]) -> Interval {
    let [mut low, mut high] = pooled.ci95;
    if repeats.len() >= 3 {
        let n = repeats.len() as f64;
        let mean = repeats.iter().map(|i| i.value).sum::<f64>() / n;
        let variance = repeats.iter().map(|i| (i.value - mean).powi(2)).sum::<f64>() / (n - 1.0);
        let half = t95(n - 1.0) * (variance / n).sqrt();
        low = low.min(mean - half).max(0.0);
        high = high.max(mean + half);
    } else {
        low = repeats.iter().fold(low, |low, i| low.min(i.ci95[0]));
        high = repeats.iter().fold(high, |high, i| high.max(i.ci95[1]));
    }
    Interval { value: pooled.value, ci95: [low, high] }
}

/// The mean over the repeats that have the figure; none where no repeat has it.
fn mean_some(gpus: &[&GpuUse], of: impl Fn(&GpuUse) -> Option<f64>) -> Option<f64> {
    let some: Vec<f64> = gpus.iter().filter_map(|gpu| of(gpu)).collect();
    (!some.is_empty()).then(|| mean(some.into_iter()))
}

fn fold_gpu(points: &[&Point]) -> Option<GpuUse> {
    let gpus: Vec<&GpuUse> = points.iter().filter_map(|p| p.gpu.as_ref()).collect();
    gpus.first()?;
    let bytes = |of: &dyn Fn(&GpuUse) -> Option<u64>| {
        mean_some(&gpus, |g| of(g).map(|b| b as f64)).map(|mean| mean.round() as u64)
    };
    Some(GpuUse {
        utilization_ratio: mean_some(&gpus, |g| g.utilization_ratio),
        memory_used_bytes: bytes(&|g| g.memory_used_bytes),
        memory_used_ratio: mean_some(&gpus, |g| g.memory_used_ratio),
        memory_delta_bytes: mean_some(&gpus, |g| g.memory_delta_bytes.map(|b| b as f64)).map(|m| m.round() as i64),
        memory_process_bytes: bytes(&|g| g.memory_process_bytes),
        power_w: mean_some(&gpus, |g| g.power_w),
        // Energy belongs to the requests, which are added up too: of all repeats or of none.
        energy_j: points.iter().map(|p| p.gpu.as_ref()?.energy_j).sum(),
        sm_clock_mhz: mean_some(&gpus, |g| g.sm_clock_mhz),
        temperature_c: mean_some(&gpus, |g| g.temperature_c),
        throttle: gpus.iter().flat_map(|g| g.throttle.clone()).collect::<BTreeSet<_>>().into_iter().collect(),
    })
}

fn fold_engine(points: &[&Point]) -> Option<EngineCpu> {
    let engines: Vec<EngineCpu> = points.iter().filter_map(|p| p.engine_cpu).collect();
    (!engines.is_empty()).then(|| EngineCpu {
        cores: mean(engines.iter().map(|e| e.cores)),
        rss_bytes: mean(engines.iter().map(|e| e.rss_bytes as f64)).round() as u64,
    })
}

fn fold_host(points: &[&Point]) -> Option<HostUse> {
    let hosts: Vec<HostUse> = points.iter().filter_map(|p| p.host).collect();
    (!hosts.is_empty()).then(|| HostUse {
        cpu_busy_ratio: mean(hosts.iter().map(|h| h.cpu_busy_ratio)),
        steal_ratio: mean(hosts.iter().map(|h| h.steal_ratio)),
        throttled_ratio: hosts.iter().filter_map(|h| h.throttled_ratio).max_by(f64::total_cmp),
        speed_range: hosts.iter().filter_map(|h| h.speed_range).reduce(|[a, b], [c, d]| [a.min(c), b.max(d)]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        load::LoadPoint,
        part::{Reason, Warning},
    };

    fn point(rate: f64, latency_ms: u64) -> Point {
        let mut latency = Histogram::default();
        (0..1000).for_each(|i| latency.record(latency_ms * 1_000_000 + i * 100));
        let percentiles = PERCENTILES
            .map(|q| percentile_of(q, Sample { latency: &latency, failures: 1 }, Effective::known(1001)))
            .to_vec();
        Point {
            load: LoadPoint::Closed { concurrency: 1 },
            batch_size: 1,
            warmup_s: 0.5,
            duration_s: 1000.0 / rate,
            requests: 1001,
            errors: 1,
            resent: 2,
            error_kinds: BTreeMap::from([("timeout".into(), 1)]),
            answers: Answers { checked: 10, wrong: BTreeMap::from([("shape".into(), 2)]) },
            requests_per_s: Some(Interval { value: rate, ci95: [rate - 1.0, rate + 1.0] }.into()),
            latency,
            percentiles,
            service: None,
            send_lateness: None,
            gpu: Some(GpuUse { energy_j: Some(rate), ..GpuUse::default() }),
            engine_cpu: Some(EngineCpu { cores: 0.1, rss_bytes: 3 }),
            server: None,
            client_cpu_cores: rate / 7.0,
            host: Some(HostUse { cpu_busy_ratio: 0.5, ..HostUse::default() }),
            converged: rate > 90.0,
            valid: true,
            warnings: vec![Warning { code: "w".into(), message: "m".into() }],
            unavailable: BTreeMap::new(),
            metrics: Vec::new(),
        }
    }

    #[test]
    fn what_one_repeat_has_is_not_said_to_be_lacking() {
        let (mut with, mut without) = (point(100.0, 10), point(100.0, 10));
        with.gpu = Some(GpuUse { power_w: Some(180.0), ..GpuUse::default() });
        (without.engine_cpu, without.host) = (None, None);
        for path in ["gpu.power_w", "gpu.temperature_c", "engine_cpu", "host", "service_ms"] {
            let reason = Reason { code: "unsupported".into(), message: "there is none".into() };
            without.unavailable.insert(path.into(), reason);
        }
        let folded = fold_points(&[&with, &without]).unwrap();
        assert_eq!(folded.gpu.unwrap().power_w, Some(180.0));
        assert_eq!((folded.engine_cpu, folded.host), (with.engine_cpu, with.host), "a mean of those that have it");
        let lacking: Vec<_> = folded.unavailable.keys().filter(|path| !path.starts_with("latency_ms")).collect();
        assert_eq!(lacking, ["gpu.temperature_c", "service_ms"]);
    }

    #[test]
    fn repeats_that_changed_slowly_give_the_mean_of_their_ends() {
        let stretched = |rate: f64, low: f64| {
            let mut point = point(rate, 10);
            point.percentiles[2].set(Some([low, 20.0]), Basis::Stretches);
            point
        };
        let [a, b] = [stretched(100.0, 5.0), stretched(101.0, 7.0)];
        let folded = fold_points(&[&a, &b]).unwrap();
        let p95 = &folded.percentiles[2];
        assert_eq!(p95.basis, Basis::Stretches);
        assert_eq!(p95.interval().unwrap().ci95, [5.0, 20.0], "widened to both, as two repeats are");
        assert_eq!(folded.percentiles[0].basis, Basis::Ranks);
    }

    #[test]
    fn metrics_fold_by_name_as_latency_does() {
        let with = |mut point: Point, name: &str| {
            let (values, failures, percentiles) = (point.latency.clone(), point.errors, point.percentiles.clone());
            point.metrics = vec![Metric { name: name.into(), unit: "ms".into(), values, failures, percentiles }];
            point
        };
        let (a, b, c) = (with(point(100.0, 10), "m"), with(point(103.0, 9), "m"), with(point(101.0, 8), "other"));
        let folded = fold_points(&[&a, &b, &c]).unwrap();
        let [m, other] = folded.metrics.as_slice() else { panic!("{:?}", folded.metrics) };
        let alone = fold_points(&[&a, &b]).unwrap();
        assert_eq!((&m.values, &m.percentiles, m.failures), (&alone.latency, &alone.percentiles, alone.errors));
        assert_eq!((other.values.len(), other.percentiles.len()), (1000, PERCENTILES.len()));
        assert!(folded.unavailable.contains_key("metrics.m.p99_9.ci95"), "{:?}", folded.unavailable.keys());
    }

    #[test]
    fn one_repeat_keeps_its_own_intervals() {
        let one = point(100.0, 10);
        let folded = fold_points(&[&one]).unwrap();
        assert_eq!(folded.percentiles, one.percentiles);
        assert_eq!(folded.requests_per_s, one.requests_per_s);
        assert!(folded.unavailable.contains_key("latency_ms.p99_9.ci95"));
        assert!(fold_points(&[]).is_none());
    }

    #[test]
    fn the_order_of_the_repeats_changes_no_bit() {
        let [a, b, c] = [point(100.1, 10), point(103.3, 9), point(97.7, 11)];
        let first = fold_points(&[&a, &b, &c]).unwrap();
        for order in [[&a, &c, &b], [&b, &a, &c], [&b, &c, &a], [&c, &a, &b], [&c, &b, &a]] {
            assert_eq!(format!("{:?}", fold_points(&order).unwrap()), format!("{first:?}"));
        }
        assert_eq!((first.requests, first.errors, first.error_kinds["timeout"]), (3003, 3, 3));
        assert_eq!(first.resent, 6);
        assert_eq!((first.answers.checked, first.answers.wrong["shape"]), (30, 6));
        assert_eq!(first.latency.len(), 3000);
        assert_eq!(first.warnings.len(), 1);
        assert!(first.converged && first.valid);
    }

    #[test]
    fn the_spread_between_repeats_widens_the_interval() {
        let [a, b, c] = [point(90.0, 10), point(100.0, 10), point(110.0, 10)];
        let three = fold_points(&[&a, &b, &c]).unwrap();
        // t(2) = 4.303, s = 10: 24.8 on each side.
        let [low, high] = three.requests_per_s.unwrap().ci95.unwrap();
        assert!((low - 75.2).abs() < 0.5 && (high - 124.8).abs() < 0.5, "{low} {high}");
        assert!(!three.converged);
        let two = fold_points(&[&a, &c]).unwrap().requests_per_s.unwrap().interval().unwrap();
        assert!(two.ci95[0] <= 89.0 && two.ci95[1] >= 111.0 && (two.value - 99.0).abs() < 0.5);
        // 3 times 1001 effective samples carry what one repeat did not: still not 3688.
        assert_eq!(three.percentiles[4].had, 3003);
        assert_eq!(three.percentiles[4].interval(), None);
        assert!(three.percentiles[4].ms.is_some() && three.percentiles[3].interval().is_some());
    }
}
