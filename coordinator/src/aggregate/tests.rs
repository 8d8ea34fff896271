use super::*;
use modelmeter_common::{
    Code, Problem, RequestId,
    device::Device,
    model::ModelRef,
    part::GpuUse,
    request::{Request, RequestState},
    stats::percentile::{Effective, PERCENTILES, percentile_of},
    task::{Cell, TaskState},
};
use uuid::Uuid;

fn request() -> RequestDoc {
    RequestDoc {
        id: RequestId(Uuid::from_u128(9)),
        schema_version: SCHEMA_VERSION,
        created_at: Timestamp(0),
        ended_at: None,
        state: RequestState::Running,
        expanded: true,
        tasks: 3,
        cells: 1,
        model: ModelRef { name: "m".into(), version: "1".into() },
        request: Request { sla: Some(Sla { percentile: 95.0, latency_ms: 12.0 }), repeats: 3, ..Request::default() },
        formats: BTreeMap::new(),
        devices_of: BTreeMap::new(),
        output_axes: BTreeMap::new(),
        error: None,
    }
}

fn task(repeat: u32, winner: Option<u32>) -> Task {
    let cell = Cell {
        model: request().model,
        artifact: None,
        engine: "endpoint".into(),
        engine_settings: BTreeMap::new(),
        device_class: "cpu".into(),
        batch_size: 4,
        inputs: vec![],
        inspector: "default".into(),
    };
    let waiting = crate::plan::expand::tasks(request().id, &request().request, &[cell], Timestamp(0))
        .into_iter()
        .find(|task| task.repeat == repeat)
        .unwrap();
    let lease = modelmeter_tests::documents::lease(0);
    let claimed = waiting.claim(&"pool".into(), lease, Timestamp(1)).unwrap();
    match winner {
        Some(attempt) => claimed.complete(attempt, true, Timestamp(2)).unwrap(),
        None => claimed.fail(1, Problem::new(Code::BadResponse, "not finite"), Timestamp(2)).unwrap(),
    }
}

#[test]
fn a_server_that_already_runs_and_does_not_answer_in_time_is_not_tried_again() {
    let failed = |engine: &str, code: Code| {
        let mut task = task(0, None);
        (task.cell.engine, task.state, task.failures) = (engine.into(), TaskState::Claimed, 0);
        task.lease = Some(modelmeter_tests::documents::lease(0));
        task.fail(1, Problem::new(code, "it hangs"), Timestamp(3)).unwrap().state
    };
    assert_eq!(failed("endpoint", Code::DeadlineExceeded), TaskState::Failed);
    assert_eq!(failed("endpoint", Code::Unreachable), TaskState::Waiting);
    // One that is deployed anew may fare better.
    assert_eq!(failed("onnx", Code::DeadlineExceeded), TaskState::Waiting);
}

fn measured(repeat: u32, concurrency_and_rate: &[(u32, f64)]) -> Measured {
    let of = |(concurrency, rate): (u32, f64)| {
        let mut latency = Histogram::default();
        (0..2000u64).for_each(|i| latency.record(10_000_000 * u64::from(concurrency) + i));
        let percentiles =
            PERCENTILES.map(|q| percentile_of(q, Sample { latency: &latency, failures: 0 }, Effective::known(2000)));
        Point {
            duration_s: 2000.0 / rate,
            requests: 2000,
            requests_per_s: Some(Figure { value: rate, ci95: Some([rate * 0.98, rate * 1.02]), lower95: None }),
            latency,
            percentiles: percentiles.to_vec(),
            valid: concurrency < 8,
            ..Point::blank(LoadPoint::Closed { concurrency }, 4)
        }
    };
    let (request_id, task_id) = (request().id, task(repeat, Some(1)).id);
    let device = Device::cpu("test", Some(1), Some(2));
    let deployment = Deployment {
        engine_version: "1".into(),
        launch: "attach".into(),
        image_digest: None,
        deploy_ms: None,
        first_inference_ms: None,
        client_cpus: None,
        engine_cpus: None,
    };
    let parts = concurrency_and_rate.iter().enumerate().map(|(seq, &load)| Part {
        schema_version: SCHEMA_VERSION,
        request_id,
        task_id,
        attempt: 1,
        seq: seq as u32,
        point: of(load),
    });
    Measured {
        repeat,
        parts: parts.collect(),
        last: Final {
            schema_version: SCHEMA_VERSION,
            request_id,
            task_id,
            attempt: 1,
            worker: format!("w{repeat}"),
            device,
            started_at: Timestamp(0),
            ended_at: Timestamp(1),
            outcome: Outcome::Done { parts: vec![], deployment },
        },
    }
}

#[test]
fn energy_is_shared_out_over_the_inferences_that_succeeded() {
    let mut one = measured(0, &[(1, 100.0)]);
    let folded = |measured: &Measured| profile(&request(), &[task(0, Some(1))], std::slice::from_ref(measured), 0);
    let none = folded(&one).points.remove(0);
    assert_eq!(none.energy_per_inference_j, None);
    assert!(none.unavailable.contains_key("energy_per_inference_j"));
    one.parts[0].point.gpu = Some(GpuUse { energy_j: Some(400.0), ..GpuUse::default() });
    one.parts[0].point.errors = 1000;
    let some = folded(&one).points.remove(0);
    // 2000 calls of 4 items, half of which failed.
    assert_eq!((some.inferences, some.energy_per_inference_j), (4000, Some(0.1)));
    assert!(!some.unavailable.contains_key("energy_per_inference_j"));
}

#[test]
fn the_same_parts_in_any_order_give_the_same_bytes() {
    let tasks = [task(0, Some(1)), task(1, Some(1)), task(2, Some(1))];
    let loads = [(1, 100.0), (2, 130.0), (4, 133.0)];
    let fold = |order: [u32; 3], backwards: bool| {
        let measured: Vec<_> = order
            .iter()
            .map(|&repeat| {
                let mut one = measured(repeat, &loads.map(|(c, rate)| (c, rate + f64::from(repeat))));
                if backwards {
                    one.parts.reverse();
                }
                one
            })
            .collect();
        serde_json::to_string(&profile(&request(), &tasks, &measured, 1)).unwrap()
    };
    let first = fold([0, 1, 2], false);
    for order in [[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        assert_eq!(fold(order, true), first);
    }
}

#[test]
fn the_headline_is_the_fastest_valid_point_and_the_sla_the_fastest_that_meets_it() {
    let loads = [(1, 100.0), (4, 150.0), (8, 900.0)];
    let folded = profile(&request(), &[task(0, Some(1))], &[measured(0, &loads)], 1);
    let peak = folded.peak.unwrap().summary;
    assert_eq!(peak.load, modelmeter_common::profile::ProfileLoad::Closed { concurrency: 4 });
    assert_eq!(peak.throughput_inferences_per_s, Some(600.0), "4 items a call; the faster point is not valid");
    assert!((folded.reference.unwrap().p50_latency_ms.unwrap() - 10.0).abs() < 0.1);
    let sla = folded.sla.unwrap();
    assert_eq!(sla.met, Some(true));
    assert_eq!(sla.best.unwrap().summary.throughput_inferences_per_s, Some(400.0), "only one in flight is under 12 ms");
    assert_eq!(folded.points[0].inferences, 8000);
    assert!(
        folded.points[0].unavailable["latency_ms.p99_9.ci95"].message.contains("beyond p99.9 are needed, there were 2")
    );
}

#[test]
fn an_sla_that_one_repeat_misses_is_not_met_and_an_invalid_reference_is_none() {
    let tasks = [task(0, Some(1)), task(1, Some(1)), task(2, Some(1))];
    let mut repeats = [0, 1, 2].map(|repeat| measured(repeat, &[(1, 100.0)]));
    assert_eq!(profile(&request(), &tasks, &repeats, 1).sla.unwrap().met, Some(true));
    // One call in ten of one repeat: fewer than one in twenty of them all.
    let slow = &mut repeats[2].parts[0].point;
    slow.latency = Histogram::default();
    (0..2000u64).for_each(|i| slow.latency.record(if i % 10 == 0 { 20_000_000 } else { 10_000_000 }));
    assert_eq!(profile(&request(), &tasks, &repeats, 1).sla.unwrap().met, Some(false));
    repeats[2].parts[0].point.valid = false;
    let folded = profile(&request(), &tasks, &repeats, 1);
    assert!(folded.reference.is_none() && folded.unavailable.contains_key("reference"));
    assert_eq!(folded.sla.unwrap().met, None, "no valid point shows either");
    assert_eq!(folded.unavailable["sla.met"].code, "not_shown");
}

#[test]
fn a_peak_is_lacking_for_want_of_valid_points_or_of_throughput() {
    let why = |measured: Measured| {
        let profile = profile(&request(), &[task(0, Some(1))], &[measured], 0);
        assert!(profile.peak.is_none());
        profile.unavailable["peak"].code.clone()
    };
    assert_eq!(why(measured(0, &[(8, 100.0)])), "no_valid_point");
    let mut few = measured(0, &[(1, 100.0)]);
    few.parts[0].point.requests_per_s = None;
    assert_eq!(why(few), "no_throughput");
}

#[test]
fn the_peak_rests_on_every_repeat_where_some_load_does() {
    let closed = |concurrency| modelmeter_common::profile::ProfileLoad::Closed { concurrency };
    let tasks = [task(0, Some(1)), task(1, Some(1)), task(2, Some(1))];
    let lucky = [(1, 100.0), (4, 150.0), (6, 300.0)];
    let repeats = [measured(0, &lucky), measured(1, &lucky[..2]), measured(2, &lucky[..2])];
    let folded = profile(&request(), &tasks, &repeats, 1);
    assert_eq!(folded.points.iter().map(|point| point.repeats).collect::<Vec<_>>(), [3, 3, 1]);
    assert_eq!(folded.peak.unwrap().summary.load, closed(4), "one repeat alone saw the faster one");

    // Each found a load of its own.
    let apart = [measured(0, &[(2, 100.0)]), measured(1, &[(4, 150.0)])];
    assert_eq!(profile(&request(), &tasks[..2], &apart, 1).peak.unwrap().summary.load, closed(4));
    let mut certified = request();
    certified.request.stop.certified = true;
    let refused = profile(&certified, &tasks[..2], &apart, 1);
    assert_eq!((refused.peak, refused.unavailable["peak"].code.as_str()), (None, "not_every_repeat"));
    assert_eq!(profile(&certified, &tasks, &repeats, 1).peak.unwrap().summary.load, closed(4));
    let failed = [task(0, Some(1)), task(1, Some(1)), task(2, None)];
    assert_eq!(profile(&certified, &failed, &repeats[..2], 1).peak, None, "a repeat that failed measured nothing");
}

#[test]
fn the_best_point_that_meets_an_sla_rests_on_every_repeat_where_some_load_does() {
    let tasks = [task(0, Some(1)), task(1, Some(1))];
    let mut slower = request();
    slower.request.sla = Some(Sla { percentile: 95.0, latency_ms: 80.0 });
    let repeats = [measured(0, &[(1, 100.0), (6, 300.0)]), measured(1, &[(1, 100.0)])];
    let sla = profile(&slower, &tasks, &repeats, 1).sla.unwrap();
    assert_eq!((sla.met, sla.best.unwrap().summary.throughput_inferences_per_s), (Some(true), Some(400.0)));
}

#[test]
fn a_cell_is_partial_or_failed_with_its_last_error() {
    let tasks = [task(0, Some(1)), task(1, None)];
    let partial = profile(&request(), &tasks, &[measured(0, &[(1, 100.0)])], 1);
    assert_eq!((partial.state, partial.repeats.len()), (ProfileState::Partial, 1));
    assert_eq!(partial.error.unwrap().code, Code::BadResponse);
    let failed = profile(&request(), &[task(1, None)], &[], 1);
    assert_eq!(failed.state, ProfileState::Failed);
    assert!(failed.peak.is_none() && failed.points.is_empty());
}

#[test]
fn a_cell_without_a_valid_point_is_invalid_and_keeps_what_was_seen() {
    let folded = profile(&request(), &[task(0, Some(1))], &[measured(0, &[(8, 100.0)])], 1);
    assert_eq!(folded.state, ProfileState::Invalid);
    assert!(folded.peak.is_none() && folded.reference.is_none());
    assert!(folded.points[0].latency_ms.p95.is_some() && folded.points[0].throughput_inferences_per_s.is_some());
}

#[test]
fn a_cancelled_cell_keeps_the_points_that_were_finished() {
    let folded = profile(&request(), &[task(0, None)], &[measured(0, &[(1, 100.0)])], 1);
    assert_eq!(folded.state, ProfileState::Partial);
    assert!(folded.peak.is_some() && folded.error.is_some());
}
