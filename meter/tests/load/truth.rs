//! What the meter says is what the server's own record of the very run says: to 1 %, from the median to p99.9.

use super::{
    calls::floats,
    closed, laws,
    laws::{Stalls, ms},
    mock::{Reply, Seen},
    prompt::Prompt,
    quiet::quietly,
    rules, run_target, target_at, turn,
};
use modelmeter_common::{
    load::{Arrivals, LoadPoint},
    part::Point,
    stats::{
        percentile::PERCENTILES,
        sample::{observable, rank},
    },
};
use modelmeter_meter::{
    Target,
    schedule::Pacer,
    unary::{Call, Unary, grpc_frame},
};
use modelmeter_proto::kserve::{ModelInferRequest, model_infer_request::InferInputTensor};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// As far as a figure may be from the record.
const TOLERANCE: f64 = 0.01;
/// Of a service: long enough that what a busy host takes from a virtual machine at a time, up to 10 ms and more, is below
/// the tolerance.
const SERVICE: Duration = ms(1200);
const RUN_MS: u64 = 15_000;
const IN_FLIGHT: usize = 96;
const SEED: u64 = 5;
/// More requests than a run makes.
const NUMBERED: usize = 10_000;

/// Requests that carry their number.
fn numbered(server: &Prompt) -> Target {
    let mut target = target_at(server.address.to_string(), 16);
    let input = InferInputTensor { name: "x".into(), datatype: "FP32".into(), shape: vec![1, 1], ..Default::default() };
    let request = |id: usize| ModelInferRequest {
        model_name: "m".into(),
        id: id.to_string(),
        inputs: vec![input.clone()],
        raw_input_contents: vec![vec![0; 4].into()],
        ..Default::default()
    };
    let frames = (0..NUMBERED).map(|id| grpc_frame(&request(id)).unwrap()).collect();
    target.transport = Arc::new(Unary::new(Call { frames, ..floats(16, 1) }));
    target
}

/// The percentile by the server's record, in ms; none among failures, which rank slower than every success.
fn true_percentile(sorted_ms: &[f64], q: f64) -> Option<f64> {
    Some(sorted_ms[rank(q, sorted_ms.len() as u64) as usize - 1]).filter(|ms| ms.is_finite())
}

/// The meter's percentile of all its calls, in ms.
fn measured(point: &Point, q: f64) -> Option<f64> {
    let rank = rank(q, point.requests);
    (rank <= point.latency.len()).then(|| point.latency.rank_ns(rank) as f64 / 1e6)
}

/// Compares each percentile with that of these latencies, in ms.
fn agrees(point: &Point, mut ms: Vec<f64>) -> Result<(), String> {
    ms.sort_by(f64::total_cmp);
    for (q, carried) in PERCENTILES.iter().zip(&point.percentiles) {
        let (got, want) = (measured(point, *q), true_percentile(&ms, *q));
        let fits = match (got, want) {
            (Some(got), Some(want)) => (got / want - 1.0).abs() < TOLERANCE,
            (got, want) => got == want,
        };
        if !fits {
            return Err(format!("p{q} is {got:?} ms, by the record {want:?} ms of {}", ms.len()));
        }
        // What the document shows is that very value, as soon as a call may lie beyond it.
        let shown = got.filter(|_| point.requests >= observable(*q));
        assert_eq!(carried.ms.map(|ms| ms.value), shown, "{carried:?}");
    }
    Ok(())
}

fn latency_ms(ok: bool, from: Instant, end: Instant) -> f64 {
    if ok { (end - from).as_secs_f64() * 1e3 } else { f64::INFINITY }
}

/// In a closed loop the calls measured are the last ones that were answered. The client may have left before it read
/// the very last: at most one for each in flight.
fn closed_agrees(point: &Point, seen: &[Seen], in_flight: usize) -> Result<(), String> {
    let n = point.requests as usize;
    let of = |unread: usize| {
        let read = &seen[..seen.len() - unread];
        let first = read.len().checked_sub(n).ok_or_else(|| format!("{n} measured of {} answered", read.len()))?;
        let ms = read[first..].iter().map(|s| latency_ms(s.ok, s.start, s.end)).collect::<Vec<f64>>();
        let failed = ms.iter().filter(|ms| ms.is_infinite()).count() as u64;
        if failed == point.errors { agrees(point, ms) } else { Err(format!("{failed} failed")) }
    };
    let first = of(0);
    if first.is_err() && (1..=in_flight).any(|unread| of(unread).is_ok()) { Ok(()) } else { first }
}

/// In an open loop they are the last ones that were scheduled, and count from then. The schedule follows from the seed;
/// when it began, from the call that came with the least delay.
fn open_agrees(point: &Point, seen: &[Seen], load: LoadPoint) -> Result<(), String> {
    let mut seen = seen.to_vec();
    seen.sort_by_key(|s| s.id);
    assert!(seen.iter().enumerate().all(|(i, s)| s.id == i), "each scheduled call came once");
    let mut pacer = Pacer::new(load, SEED);
    let due: Vec<Duration> = seen
        .iter()
        .map(|_| Duration::from_nanos(pacer.take_due(u64::MAX, 0).expect("a schedule does not end")))
        .collect();
    let begun = seen.iter().zip(&due).map(|(s, &due)| s.start - due).min().expect("calls came");
    let first = seen.len() - point.requests as usize;
    let ms = seen.iter().zip(&due).skip(first).map(|(s, &due)| latency_ms(s.ok, begun + due, s.end));
    agrees(point, ms.collect())
}

async fn check<L>(load: LoadPoint, run_ms: u64, law: impl Fn() -> L) -> Point
where
    L: FnMut(usize, Instant) -> Reply + Send + 'static,
{
    let mut rules = rules(run_ms);
    (rules.seed, rules.stop.timeout_ms) = (SEED, 15_000);
    let run = async || {
        let server = Prompt::start(law());
        let point = run_target(&numbered(&server), load, &rules).await.unwrap();
        (point, server.seen())
    };
    let (point, seen) = quietly(run).await;
    let agreement = match load {
        LoadPoint::Closed { concurrency } => closed_agrees(&point, &seen, concurrency as usize),
        LoadPoint::Open { .. } => open_agrees(&point, &seen, load),
    };
    agreement.unwrap_or_else(|e| panic!("{load}: {e}"));
    point
}

/// The same law under both loops, at the same time: each leaves the cores nearly idle.
async fn check_both<L>(law: impl Fn() -> L) -> [Point; 2]
where
    L: FnMut(usize, Instant) -> Reply + Send + 'static,
{
    let _turn = turn().await;
    tokio::join!(check(closed(IN_FLIGHT as u32), RUN_MS, &law), check(poisson(80.0), RUN_MS, &law)).into()
}

const fn poisson(rate_per_s: f64) -> LoadPoint {
    LoadPoint::Open { rate_per_s, arrivals: Arrivals::Poisson }
}

#[tokio::test]
async fn constant() {
    for point in check_both(|| laws::constant(SERVICE)).await {
        assert!((measured(&point, 50.0).unwrap() / 1200.0 - 1.0).abs() < TOLERANCE, "the law's own value");
    }
}

#[tokio::test]
async fn bimodal() {
    for point in check_both(|| laws::bimodal(SERVICE, ms(3600), 0.07, 1)).await {
        assert!(measured(&point, 90.0).unwrap() < 1230.0 && measured(&point, 95.0).unwrap() > 3570.0);
    }
}

#[tokio::test]
async fn log_normal() {
    check_both(|| laws::log_normal(SERVICE, 0.4, 1)).await;
}

#[tokio::test]
async fn the_whole_server_freezes() {
    for point in check_both(|| laws::freezes(Stalls::every(ms(1500), ms(450)), SERVICE)).await {
        assert!(measured(&point, 99.9).unwrap() > 1620.0, "the stall shows");
    }
}

#[tokio::test]
async fn some_requests_are_held() {
    let [_, open] = check_both(|| laws::held_lanes(Stalls::every(ms(1200), ms(360)), SERVICE)).await;
    assert!(measured(&open, 99.0).unwrap() > 1410.0);
}

#[tokio::test]
async fn the_server_browns_out() {
    let [_, open] = check_both(|| laws::brown_outs(Stalls::every(ms(900), ms(180)), SERVICE, 4)).await;
    assert!(measured(&open, 90.0).unwrap() > 4770.0 && measured(&open, 50.0).unwrap() < 1230.0);
}

#[tokio::test]
async fn errors_come_in_bursts() {
    for point in check_both(|| laws::error_bursts(Stalls::every(ms(1500), ms(330)), SERVICE)).await {
        assert!(point.errors > 0 && point.error_kinds["grpc_unavailable"] == point.errors);
        assert_eq!(measured(&point, 99.9), None, "it falls among the failures");
    }
}

#[tokio::test]
async fn a_serial_queue_shows_in_the_latency_not_in_the_pace() {
    let _turn = turn().await;
    let law = || laws::serial(SERVICE / 4);
    // Four in line are as long as a service of the other tests. At nine tenths of what it bears, most calls wait.
    let (closed, open) = tokio::join!(check(closed(4), RUN_MS, law), check(poisson(3.0), 24_000, law));
    assert!((measured(&closed, 50.0).unwrap() / 1200.0 - 1.0).abs() < TOLERANCE);
    assert!(measured(&open, 90.0).unwrap() > 750.0, "{:?}", measured(&open, 90.0));
}

/// Kolmogorov and Smirnov: the distance of these gaps, in units of their mean, from the exponential law, as a share of
/// what a true sample exceeds once in a hundred times.
fn distance_from_poisson(mut gaps: Vec<f64>) -> f64 {
    gaps.sort_by(f64::total_cmp);
    let n = gaps.len() as f64;
    let off = gaps.iter().enumerate().map(|(i, gap)| {
        let law = 1.0 - (-gap).exp();
        (law - i as f64 / n).abs().max((law - (i + 1) as f64 / n).abs())
    });
    off.fold(0.0, f64::max) / (1.628 / n.sqrt())
}

#[tokio::test]
async fn arrivals_at_the_server_are_poisson() {
    let _turn = turn().await;
    let rate_per_s = 100.0;
    for arrivals in [Arrivals::Poisson, Arrivals::Constant] {
        let load = LoadPoint::Open { rate_per_s, arrivals };
        let run = async || {
            let server = Prompt::start(laws::constant(ms(5)));
            run_target(&numbered(&server), load, &rules(10_000)).await.unwrap();
            server.seen()
        };
        let mut seen = quietly(run).await;
        seen.sort_by_key(|s| s.id);
        let gaps = |times: Vec<f64>| times.windows(2).map(|w| (w[1] - w[0]) * rate_per_s).collect::<Vec<f64>>();
        let at_server = gaps(seen.iter().map(|s| (s.start - seen[0].start).as_secs_f64()).collect());
        let mut pacer = Pacer::new(load, 1);
        let due = seen.iter().map(|_| pacer.take_due(u64::MAX, 0).unwrap() as f64 / 1e9);
        let [by_schedule, at_server] = [gaps(due.collect()), at_server].map(distance_from_poisson);
        assert!(seen.len() > 900, "{}", seen.len());
        // Equal gaps are what a test of this kind must refuse.
        let (is_poisson, found) = (arrivals == Arrivals::Poisson, format!("{by_schedule}, {at_server}"));
        assert!((by_schedule < 1.0) == is_poisson && (at_server < 1.0) == is_poisson, "{arrivals:?}: {found}");
    }
}
