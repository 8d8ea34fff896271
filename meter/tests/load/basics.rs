//! What a point is besides its percentiles: calls in flight, rates, limits, budgets, visits, cost.

use super::{
    alone,
    calls::floats,
    closed, laws,
    laws::{constant, ms},
    mock::{Mock, Reply, response},
    prompt::Prompt,
    rules, run, run_target, target, target_at, turn, value_ms,
};
use modelmeter_common::{
    Code,
    load::{Arrivals, LoadPoint, Stop},
};
use modelmeter_meter::{Aim, Bench, Measure, Rules, Slice, call_once, first_inference, measure};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

fn slice(share_ms: u64, end_ms: u64) -> Slice {
    Slice { share: Instant::now() + ms(share_ms), end: Instant::now() + ms(end_ms) }
}

/// The program that the library's own page shows.
#[tokio::test]
async fn the_example_measures_with_four_in_flight() {
    let _turn = turn().await;
    let mock = Mock::start(constant(ms(2)));
    let point = alone::four_in_flight(mock.endpoint().parse().unwrap()).await.unwrap();
    assert_eq!(mock.most_in_flight(), 4);
    assert!(point.requests > 100 && point.errors == 0, "{point:?}");
}

#[tokio::test]
async fn a_closed_loop_keeps_exactly_so_many_in_flight_and_says_what_its_figures_are_worth() {
    let _turn = turn().await;
    let mock = Mock::start(laws::log_normal(ms(10), 0.3, 1));
    let point = run(&mock, closed(8), &rules(1000)).await.unwrap();
    assert_eq!(mock.most_in_flight(), 8);
    assert!(point.requests > 300 && point.errors == 0 && point.valid, "{point:?}");
    let rate = point.requests_per_s.unwrap();
    assert!((rate.value * point.duration_s / point.requests as f64 - 1.0).abs() < 1e-9);
    let [low, high] = rate.ci95.unwrap();
    assert!(low > 0.0 && low < rate.value && rate.value < high);
    assert!(point.unavailable.contains_key("latency_ms.p99_9") && point.unavailable.contains_key("gpu"));
}

#[tokio::test]
async fn calls_that_end_together_count_for_the_time_that_they_took() {
    let _turn = turn().await;
    let server = Prompt::start(laws::lockstep(ms(50)));
    let point = run_target(&target_at(server.address.to_string(), 16), closed(32), &rules(1200)).await.unwrap();
    // By the server's own record, from the end of the burst before the first that counts; the client may have left before
    // it read the very last.
    let (n, seen) = (point.requests as usize, server.seen());
    let rate = point.requests_per_s.unwrap();
    let agrees = |unread: usize| {
        let last = seen.len() - 1 - unread;
        let true_rate = n as f64 / (seen[last].end - seen[last - n].end).as_secs_f64();
        (rate.value / true_rate - 1.0).abs() < 0.01
    };
    assert!((0..=32).any(agrees), "{rate:?}");
}

#[tokio::test]
async fn a_fixed_number_of_calls_does_not_cut_their_last_burst() {
    let _turn = turn().await;
    let fixed = Rules { batches: Some(100), ..rules(5_000) };
    let mut off = Vec::new();
    // Where the system takes server or client off its core in the middle of the last burst, that is two: not each time.
    for _ in 0..3 {
        let server = Prompt::start(laws::lockstep(ms(50)));
        let point = run_target(&target_at(server.address.to_string(), 16), closed(32), &fixed).await.unwrap();
        assert_eq!((point.requests, point.errors), (100, 0));
        // The hundredth is the fourth of the fourth burst.
        let (n, seen) = (128, server.seen());
        let true_rate = n as f64 / (seen[seen.len() - 1].end - seen[seen.len() - 1 - n].end).as_secs_f64();
        off.push((point.requests_per_s.unwrap().value / true_rate - 1.0).abs());
    }
    assert!(off.iter().any(|&off| off < 0.05), "{off:?}");
}

#[tokio::test]
async fn an_open_loop_may_be_slower_than_a_server_is_waited_for() {
    let _turn = turn().await;
    let mock = Mock::start(laws::constant(ms(5)));
    let load = LoadPoint::Open { rate_per_s: 0.4, arrivals: Arrivals::Constant };
    let mut rules = rules(6_000);
    rules.stop.timeout_ms = 100;
    let point = run(&mock, load, &rules).await.unwrap();
    assert!(point.valid && point.requests >= 2, "{:?}", point.warnings);
}

#[tokio::test]
async fn a_fixed_number_of_scheduled_calls_holds_the_slow_ones_too() {
    let _turn = turn().await;
    let mock = Mock::start(|nth, _| Reply::After(if nth % 10 == 0 { ms(300) } else { ms(2) }));
    let load = LoadPoint::Open { rate_per_s: 200.0, arrivals: Arrivals::Constant };
    let fixed = Rules { batches: Some(100), ..rules(5_000) };
    let point = run(&mock, load, &fixed).await.unwrap();
    assert_eq!((point.requests, point.errors), (100, 0));
    assert_eq!(point.latency.len() - point.latency.count_up_to(250_000_000), 10, "every tenth");
}

#[tokio::test]
async fn an_open_loop_keeps_its_schedule() {
    let _turn = turn().await;
    let mock = Mock::start(laws::log_normal(ms(5), 0.1, 1));
    let load = LoadPoint::Open { rate_per_s: 400.0, arrivals: Arrivals::Poisson };
    let point = run(&mock, load, &rules(1500)).await.unwrap();
    assert!((point.requests as f64 / 600.0 - 1.0).abs() < 0.2, "{}", point.requests);
    let (service, lateness) = (point.service.as_ref().unwrap(), point.send_lateness.as_ref().unwrap());
    assert_eq!(service.len(), point.requests);
    // A loop that waited for answers would be late by ever more of the 2.5 ms between calls; one on a busy core is late by less.
    assert!(lateness.percentile_ns(50.0) < 2_500_000, "{} ns", lateness.percentile_ns(50.0));
}

#[tokio::test]
async fn an_open_loop_says_when_the_limit_in_flight_was_hit() {
    let _turn = turn().await;
    let mut tight = rules(1000);
    tight.stop.max_in_flight = 2;
    let mock = Mock::start(constant(ms(50)));
    let load = LoadPoint::Open { rate_per_s: 200.0, arrivals: Arrivals::Constant };
    let point = run(&mock, load, &tight).await.unwrap();
    assert!(!point.valid && point.error_kinds["in_flight_limit"] > 50, "{:?}", point.error_kinds);
    assert_eq!(mock.most_in_flight(), 2);
    assert!(point.warnings.iter().any(|w| w.code == "in_flight_limit"));
}

#[tokio::test]
async fn cancelling_ends_at_once() {
    let _turn = turn().await;
    let mock = Mock::start(|_, _| Reply::Never);
    let cancel = CancellationToken::new();
    let (target, token) = (target(&mock), cancel.clone());
    let measuring = tokio::spawn(async move { measure(&target, closed(2), &rules(20_000), &(), &token).await });
    let begun = Instant::now();
    while mock.most_in_flight() < 2 && begun.elapsed() < Duration::from_secs(10) {
        tokio::time::sleep(ms(1)).await;
    }
    let cancelled = Instant::now();
    cancel.cancel();
    assert_eq!(measuring.await.unwrap().unwrap_err().code, Code::Cancelled);
    assert!(cancelled.elapsed() < ms(200));
}

#[tokio::test]
async fn large_requests_go_through_flow_control_and_batches_are_exact() {
    let _turn = turn().await;
    let mock = Mock::start(constant(Duration::ZERO));
    let target = target_at(mock.endpoint(), 3 << 18);
    let mut fixed = rules(20_000);
    fixed.batches = Some(7);
    let point = run_target(&target, closed(3), &fixed).await.unwrap();
    assert_eq!((point.requests, point.errors, point.converged), (7, 0, true));
    // Smaller ones are calls that were cut off when the seventh ended.
    let call = floats(3 << 18, 1);
    let whole = call.frames.iter().map(|f| f.len()).collect::<BTreeSet<_>>();
    assert_eq!(mock.body_sizes().last(), whole.last());
    let (limit, cancel) = (Duration::from_secs(5), CancellationToken::new());
    let first = first_inference(&target, limit, &cancel).await.unwrap();
    assert!(first.latency_ms > 0.0 && first.latency_ms < 5000.0);
    let answer = call_once(&target.endpoint, &*target.transport, limit, &cancel).await.unwrap();
    assert_eq!(answer.message, response(&[1], &[1.0])[5..]);
}

#[tokio::test]
async fn slow_calls_take_more_of_the_budget_until_they_carry_a_median() {
    let _turn = turn().await;
    let mock = Mock::start(constant(ms(60)));
    let mut slow = rules(60_000);
    slow.slice = Some(slice(300, 8_000));
    let begun = Instant::now();
    let point = run(&mock, closed(1), &slow).await.unwrap();
    assert!(point.percentiles[0].interval().is_some() && point.requests_per_s.is_some(), "{:?}", point.percentiles);
    assert!(point.requests >= 8 && begun.elapsed() < Duration::from_secs(7), "{} calls", point.requests);
    // What the budget cannot bear ends with it.
    slow.slice = Some(slice(150, 150));
    let point = run(&mock, closed(1), &slow).await.unwrap();
    assert!(point.percentiles[0].ms.is_some() && point.unavailable.contains_key("latency_ms.p50.ci95"), "it is seen");
    let stuck = Mock::start(constant(ms(450)));
    slow.slice = Some(slice(200, 200));
    let problem = run(&stuck, closed(1), &slow).await.unwrap_err();
    assert_eq!((problem.code, problem.hint.as_deref()), (Code::DeadlineExceeded, Some("raise --budget")));
}

#[tokio::test]
async fn a_second_visit_goes_on_with_the_first() {
    let _turn = turn().await;
    let mock = Mock::start(laws::log_normal(ms(4), 0.3, 1));
    let rules = Rules { stop: Stop { min_duration_ms: 200, precision: 1e-4, ..Stop::default() }, ..rules(0) };
    let mut bench = Bench::new(target(&mock), rules, Box::new(()), CancellationToken::new());
    let first = bench.measure(closed(1), Aim::Figures, Some(slice(700, 700))).await.unwrap();
    bench.measure(closed(2), Aim::Peak, Some(slice(400, 400))).await.unwrap();
    let both = bench.measure(closed(1), Aim::Figures, Some(slice(700, 700))).await.unwrap();
    assert!(both.requests > first.requests * 3 / 2, "{} of {}", first.requests, both.requests);
    assert!(both.duration_s > first.duration_s * 1.5 && both.warmup_s > first.warmup_s);
    assert_eq!(both.latency.len() + both.errors, both.requests);
    let (one, two) = (first.requests_per_s.unwrap(), both.requests_per_s.unwrap());
    assert!((two.value / one.value - 1.0).abs() < 0.3 && two.ci95.unwrap()[0] < two.value, "{one:?} {two:?}");
    assert!((two.value * both.duration_s / both.requests as f64 - 1.0).abs() < 1e-6);
}

#[tokio::test]
async fn the_client_itself_costs_little() {
    let _turn = turn().await;
    let answer = response(&[1], &[1.0]);
    let mock = Mock::start(move |_, _| Reply::Body(answer.clone()));
    for concurrency in [1, 32] {
        let point = run(&mock, closed(concurrency), &rules(1000)).await.unwrap();
        let (rate, cpu) = (point.requests_per_s.unwrap().value, point.client_cpu_cores);
        let cpu_us = cpu / rate * 1e6;
        let p50_us = value_ms(&point, 50.0) * 1e3;
        println!("{concurrency} in flight: {rate:.0}/s, p50 {p50_us:.1} us, {cpu_us:.2} us of CPU");
        assert!(mock.seen().len() as u64 >= point.requests && point.errors == 0);
        // perf_analyzer needs about 27 at 32 in flight.
        assert!(cpu_us < if concurrency == 1 { 100.0 } else { 27.0 }, "{cpu_us} us of CPU a request");
    }
}
