//! The meter against a server that keeps its own record.

use super::{
    Bench, Measure, Rules, Slice, Target, call_once, first_inference, measure,
    mock::{Mock, Reply, Seen},
};
use crate::{
    inspector::{Call, Inspector},
    sample::Probes,
};
use bytes::Bytes;
use modelmeter_common::{
    Code, Problem,
    load::{Arrivals, LoadPoint, Stop},
    part::Point,
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

struct Ok2 {
    bytes: usize,
}

impl Inspector for Ok2 {
    fn data_preprocess(&self, nth: u64) -> Result<Vec<Bytes>, Problem> {
        Ok(vec![vec![nth as u8; self.bytes].into()])
    }
    fn make_request(&self, data: &[Bytes]) -> Result<Bytes, Problem> {
        let mut frame = vec![0];
        frame.extend((data[0].len() as u32).to_be_bytes());
        frame.extend(&data[0]);
        Ok(frame.into())
    }
    fn path(&self) -> &str {
        "/test.Test/Call"
    }
    fn batch_size(&self) -> u32 {
        1
    }
    fn check(&self, message: &[u8]) -> Result<(), Problem> {
        if message == b"ok" { Ok(()) } else { Err(Problem::new(Code::BadResponse, "not ok")) }
    }
}

fn target(mock: &Mock, bytes: usize) -> Target {
    Target::new(mock.endpoint(), Arc::new(Ok2 { bytes })).unwrap()
}

fn rules(max_ms: u64) -> Rules {
    let stop = Stop { min_duration_ms: max_ms, max_duration_ms: max_ms, timeout_ms: 500, ..Stop::default() };
    Rules { stop, batches: None, seed: 1, slice: None, sla: None }
}

const fn closed(concurrency: u32) -> LoadPoint {
    LoadPoint::Closed { concurrency }
}

fn slice(share_ms: u64, end_ms: u64) -> Slice {
    let after = |ms| Instant::now() + Duration::from_millis(ms);
    Slice { share: after(share_ms), end: after(end_ms) }
}

async fn run(mock: &Mock, load: LoadPoint, rules: &Rules) -> Result<Point, Problem> {
    measure(&target(mock, 64), load, rules, &Probes::default(), &CancellationToken::new()).await
}

fn log_normal(median_ms: f64, sigma: f64) -> impl Fn(usize) -> Reply + Send + Sync {
    move |nth| {
        let mut rng = SmallRng::seed_from_u64(nth as u64);
        let normal: f64 = (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
        Reply::After(Duration::from_secs_f64(median_ms / 1e3 * (sigma * normal).exp()))
    }
}

/// The server's own percentile of the requests that ended last, which are those measured.
fn truth_ms(seen: &[Seen], last: u64, q: f64) -> f64 {
    let from = seen.len().saturating_sub(last as usize);
    let mut ms: Vec<f64> = seen[from..].iter().map(|s| (s.end - s.start).as_secs_f64() * 1e3).collect();
    ms.sort_by(f64::total_cmp);
    ms[((q / 100.0 * ms.len() as f64).ceil() as usize).clamp(1, ms.len()) - 1]
}

fn value(point: &Point, q: f64) -> f64 {
    point.latency.percentile_ns(q) as f64 / 1e6
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn closed_loop_agrees_with_the_servers_own_record() {
    let mock = Mock::start(log_normal(10.0, 0.3));
    let point = run(&mock, closed(8), &rules(1500)).await.unwrap();
    assert_eq!(mock.most_in_flight(), 8);
    assert!(point.requests > 500 && point.errors == 0 && point.valid, "{point:?}");
    let seen = mock.seen();
    for q in [50.0, 90.0, 95.0, 99.0] {
        let truth = truth_ms(&seen, point.requests, q);
        assert!((value(&point, q) / truth - 1.0).abs() < 0.05, "p{q}: {} and {truth}", value(&point, q));
    }
    let rate = point.requests_per_s.unwrap();
    assert!((rate.value * point.duration_s / point.requests as f64 - 1.0).abs() < 1e-9);
    assert!(rate.ci95[0] > 0.0 && rate.ci95[0] < rate.value && rate.value < rate.ci95[1]);
    assert!(point.percentiles.iter().all(|p| p.ms.is_some() == (p.had >= p.needs)));
    assert!(point.unavailable.contains_key("latency_ms.p99_9") && point.unavailable.contains_key("gpu"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn open_loop_keeps_its_schedule() {
    let mock = Mock::start(log_normal(5.0, 0.1));
    let load = LoadPoint::Open { rate_per_s: 400.0, arrivals: Arrivals::Poisson };
    let point = run(&mock, load, &rules(1500)).await.unwrap();
    assert!((point.requests as f64 / 600.0 - 1.0).abs() < 0.2, "{}", point.requests);
    let (service, lateness) = (point.service.as_ref().unwrap(), point.send_lateness.as_ref().unwrap());
    assert_eq!(service.len(), point.requests);
    assert!(lateness.percentile_ns(50.0) < 500_000, "{} ns", lateness.percentile_ns(50.0));
    assert!((value(&point, 50.0) / 6.0 - 1.0).abs() < 0.4, "{}", value(&point, 50.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn open_loop_counts_waiting_from_the_schedule_and_says_when_the_limit_was_hit() {
    // Stalls for 300 ms in the middle: the calls due meanwhile wait in flight.
    let begun = Instant::now();
    let mock = Mock::start(move |_| {
        let ms = begun.elapsed().as_millis() as u64;
        Reply::After(Duration::from_millis(if (700..1000).contains(&ms) { 1000 - ms } else { 2 }))
    });
    let load = LoadPoint::Open { rate_per_s: 200.0, arrivals: Arrivals::Constant };
    let point = run(&mock, load, &rules(1000)).await.unwrap();
    assert!(point.latency.max_ns() > 200_000_000 && value(&point, 95.0) > 100.0, "{}", value(&point, 95.0));
    let mut tight = rules(1000);
    tight.stop.max_in_flight = 2;
    let slow = Mock::start(|_| Reply::After(Duration::from_millis(50)));
    let point = run(&slow, load, &tight).await.unwrap();
    assert!(!point.valid && point.error_kinds["in_flight_limit"] > 50, "{:?}", point.error_kinds);
    assert_eq!(slow.most_in_flight(), 2);
    assert!(point.warnings.iter().any(|w| w.code == "in_flight_limit"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn failures_are_counted_by_kind() {
    let mock = Mock::start(|nth| match nth % 20 {
        3 => Reply::Status(13),
        7 => Reply::Body(b"\x01\0\0\0\x02ok".to_vec()),
        9 => Reply::Body(b"\0\0\0\0\x63ok".to_vec()),
        11 => Reply::Reset,
        _ => Reply::After(Duration::from_millis(1)),
    });
    let point = run(&mock, closed(4), &rules(600)).await.unwrap();
    let kinds: Vec<_> = point.error_kinds.keys().map(String::as_str).collect();
    assert_eq!(kinds, ["bad_response", "grpc_internal", "reset"]);
    assert_eq!(point.error_kinds.values().sum::<u64>(), point.errors);
    assert_eq!(point.latency.len() + point.errors, point.requests);
    assert!(!point.valid && point.warnings.iter().any(|w| w.code == "errors" && w.message.contains("told so")));
    // A fifth failed: p95 and up fall among them.
    assert!(point.percentiles.iter().filter(|p| p.q >= 90.0).all(|p| p.ms.is_none()));
    assert_eq!(point.unavailable["latency_ms.p95"].code, "among_failures");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn time_outs_and_lost_connections_are_counted_and_the_rest_goes_on() {
    let mock = Mock::start(|nth| match nth {
        n if n % 600 == 100 => Reply::Never,
        n if n % 600 == 500 => Reply::Drop,
        _ => Reply::After(Duration::from_millis(1)),
    });
    let mut rules = rules(1500);
    rules.stop.timeout_ms = 100;
    let point = run(&mock, closed(4), &rules).await.unwrap();
    assert!(point.error_kinds["timeout"] > 0 && point.error_kinds["reset"] > 0, "{:?}", point.error_kinds);
    assert!(point.requests > 500, "{}", point.requests);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_server_that_dies_ends_the_point_soon() {
    let mut mock = Mock::start(|_| Reply::After(Duration::from_millis(1)));
    let target = target(&mock, 64);
    let begun = Instant::now();
    let measuring = tokio::spawn(async move {
        measure(&target, closed(2), &rules(20_000), &Probes::default(), &CancellationToken::new()).await
    });
    while begun.elapsed() < Duration::from_secs(60)
        && (begun.elapsed() < Duration::from_secs(1) || mock.seen().len() < 100)
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    mock.kill();
    let point = measuring.await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert!(!point.valid && !point.converged && point.error_kinds["refused"] > 0);
    assert!(point.warnings.iter().any(|w| w.code == "server_gone"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nothing_there_and_nothing_said_are_errors_not_hangs() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = listener.local_addr().unwrap().to_string();
    let inspector = Arc::new(Ok2 { bytes: 1 });
    let (cancel, probes) = (CancellationToken::new(), Probes::default());
    let mut quick = rules(1000);
    quick.stop.timeout_ms = 100;
    let target = Target::new(silent, inspector.clone()).unwrap();
    let problem = measure(&target, closed(1), &quick, &probes, &cancel).await.unwrap_err();
    assert_eq!(problem.code, Code::DeadlineExceeded, "{problem}");
    drop(listener);
    let problem = measure(&target, closed(1), &quick, &probes, &cancel).await.unwrap_err();
    assert_eq!(problem.code, Code::Unreachable, "{problem}");
    let problem = first_inference(&target, Duration::from_millis(200), &cancel).await.unwrap_err();
    assert_eq!(problem.code, Code::Unreachable, "{problem}");
    let failing = Mock::start(|_| Reply::Status(5));
    let problem = run(&failing, closed(1), &rules(300)).await.unwrap_err();
    assert!(problem.message.contains("grpc_not_found") && problem.message.contains("told so"), "{problem}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn cancelling_ends_at_once() {
    let mock = Mock::start(|_| Reply::Never);
    let cancel = CancellationToken::new();
    let (target, token) = (target(&mock, 64), cancel.clone());
    let measuring =
        tokio::spawn(async move { measure(&target, closed(2), &rules(20_000), &Probes::default(), &token).await });
    let begun = Instant::now();
    while mock.most_in_flight() < 2 && begun.elapsed() < Duration::from_secs(10) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let cancelled = Instant::now();
    cancel.cancel();
    assert_eq!(measuring.await.unwrap().unwrap_err().code, Code::Cancelled);
    assert!(cancelled.elapsed() < Duration::from_millis(200));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn large_requests_go_through_flow_control_and_batches_are_exact() {
    let mock = Mock::start(|_| Reply::After(Duration::ZERO));
    let target = target(&mock, 3 << 20);
    let cancel = CancellationToken::new();
    let mut fixed = rules(20_000);
    fixed.batches = Some(7);
    let point = measure(&target, closed(3), &fixed, &Probes::default(), &cancel).await.unwrap();
    assert_eq!((point.requests, point.errors, point.converged), (7, 0, true));
    // Smaller ones are calls that were cut off when the seventh ended.
    assert_eq!(mock.body_sizes().into_iter().max(), Some((3 << 20) + 5));
    let first = first_inference(&target, Duration::from_secs(5), &cancel).await.unwrap();
    assert!(first.latency_ms > 0.0 && first.latency_ms < 5000.0);
    let call = Call { path: "/x/y".into(), frames: target.call.frames.clone(), batch_size: 1 };
    assert_eq!(call_once(&mock.endpoint(), &call, Duration::from_secs(5), &cancel).await.unwrap().message, b"ok");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn wrong_answers_and_deadlines_show() {
    let wrong = Mock::start(|_| Reply::Body(b"\0\0\0\0\x02no".to_vec()));
    let mut quick = rules(60_000);
    quick.slice = Some(slice(600, 600));
    let begun = Instant::now();
    let point = run(&wrong, closed(1), &quick).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(!point.valid && point.warnings.iter().any(|w| w.code == "bad_response"), "{:?}", point.warnings);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn slow_calls_take_more_of_the_budget_until_they_carry_a_median() {
    let mock = Mock::start(|_| Reply::After(Duration::from_millis(60)));
    let mut slow = rules(60_000);
    slow.slice = Some(slice(300, 8_000));
    let begun = Instant::now();
    let point = run(&mock, closed(1), &slow).await.unwrap();
    assert!(point.percentiles[0].ms.is_some() && point.requests_per_s.is_some(), "{:?}", point.percentiles);
    assert!(point.requests >= 8 && begun.elapsed() < Duration::from_secs(7), "{} calls", point.requests);
    // What the budget cannot bear ends with it.
    slow.slice = Some(slice(150, 150));
    let point = run(&mock, closed(1), &slow).await.unwrap();
    assert!(point.percentiles[0].ms.is_none() && point.unavailable.contains_key("latency_ms.p50"));
    let stuck = Mock::start(|_| Reply::After(Duration::from_millis(450)));
    slow.slice = Some(slice(200, 200));
    let problem = run(&stuck, closed(1), &slow).await.unwrap_err();
    assert_eq!((problem.code, problem.hint.as_deref()), (Code::DeadlineExceeded, Some("raise --budget")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_second_visit_goes_on_with_the_first() {
    let mock = Mock::start(log_normal(4.0, 0.3));
    let rules = Rules { stop: Stop { min_duration_ms: 200, precision: 1e-4, ..Stop::default() }, ..rules(0) };
    let mut bench = Bench::new(target(&mock, 64), rules, Probes::default(), CancellationToken::new());
    let first = bench.measure(closed(1), Some(slice(700, 700))).await.unwrap();
    bench.measure(closed(2), Some(slice(400, 400))).await.unwrap();
    let both = bench.measure(closed(1), Some(slice(700, 700))).await.unwrap();
    assert!(both.requests > first.requests * 3 / 2, "{} of {}", first.requests, both.requests);
    assert!(both.duration_s > first.duration_s * 1.5 && both.warmup_s > first.warmup_s);
    assert_eq!(both.latency.len() + both.errors, both.requests);
    let (one, two) = (first.requests_per_s.unwrap(), both.requests_per_s.unwrap());
    assert!((two.value / one.value - 1.0).abs() < 0.3 && two.ci95[0] < two.value, "{one:?} {two:?}");
    assert!((two.value * both.duration_s / both.requests as f64 - 1.0).abs() < 1e-6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_client_itself_costs_little() {
    let mock = Mock::start(|_| Reply::Body(b"\0\0\0\0\x02ok".to_vec()));
    for concurrency in [1, 32] {
        let point = run(&mock, closed(concurrency), &rules(1000)).await.unwrap();
        let (rate, cpu) = (point.requests_per_s.unwrap().value, point.client_cpu_cores);
        let cpu_us = cpu / rate * 1e6;
        println!(
            "{concurrency} in flight: {rate:.0}/s, p50 {:.1} us, {cpu_us:.2} us of CPU",
            value(&point, 50.0) * 1e3
        );
        assert!(mock.seen().len() as u64 >= point.requests && point.errors == 0);
        // perf_analyzer needs about 27 at 32 in flight.
        assert!(cpu_us < if concurrency == 1 { 100.0 } else { 27.0 }, "{cpu_us} us of CPU a request");
    }
}
