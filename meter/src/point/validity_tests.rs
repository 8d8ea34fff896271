use super::*;
use modelmeter_common::{
    load::Stop,
    part::HostUse,
    stats::{Figure, series::Batch},
};

fn rules() -> Rules {
    Rules { stop: Stop::default(), batches: None, seed: 0, slice: None, sla: None, aim: Default::default() }
}

/// A run that did not converge: a hundred calls, as many of them failures as is said.
fn run(failures: u64) -> Observed {
    let mut stretch = Batch { duration_ns: 1_000_000_000, failures, ..Batch::default() };
    (failures..100).for_each(|call| stretch.record(10_000_000 + call));
    let mut seen = Observed::blank(LoadPoint::Closed { concurrency: 1 });
    seen.series.push(&stretch);
    seen
}

fn warned(seen: &Observed, rules: &Rules) -> Vec<Warning> {
    let mut warnings = Vec::new();
    cautions(seen, rules, &Samples::default(), false, &mut warnings);
    warnings
}

#[test]
fn precision_is_missed_by_what_it_is_asked_of() {
    let interval = |low, high| Some(Figure { value: 1.0, ci95: Some([low, high]), lower95: None });
    let percentile = |q, ms, sure| Percentile {
        q,
        ms,
        basis: Basis::Ranks,
        beyond: 9,
        needs: 72,
        had: 80,
        sure,
        sure_unjoined: sure,
    };
    let mut seen = run(0);
    seen.throughput = interval(0.9, 1.1);
    // Of the tail only the slowest call is seen; it is no reason.
    seen.percentiles = vec![percentile(50.0, interval(0.8, 1.2), 100), percentile(95.0, interval(0.9, 3.0), 40)];
    let [only] = warned(&seen, &rules()).try_into().unwrap();
    assert!(only.code == "not_converged" && only.message.contains("p50 is ±20.0 %"), "{only:?}");
    // A tail's end counts as it was seen, not as it was moved outward.
    seen.percentiles[1] = percentile(95.0, interval(0.9, 1.25), 80);
    let [only] = warned(&seen, &rules()).try_into().unwrap();
    assert!(only.message.contains("±20.0 %"), "{only:?}");
}

#[test]
fn a_fixed_number_of_calls_that_was_cut_short_is_told_with_both_numbers() {
    let fixed = Rules { batches: Some(500), ..rules() };
    let [only] = warned(&run(0), &fixed).try_into().unwrap();
    assert!(only.code == "cut_short" && only.message.contains("100 of 500 calls; raise --max-duration,"), "{only:?}");
    assert!(warned(&Observed { converged: true, ..run(0) }, &fixed).is_empty());
}

#[test]
fn what_errors_or_a_lost_server_ended_needs_no_more_time() {
    assert_eq!(warned(&run(0), &rules())[0].code, "not_converged");
    assert!(warned(&run(50), &rules()).is_empty());
    assert!(warned(&Observed { gone: Some("refused".into()), ..run(0) }, &rules()).is_empty());
}

#[test]
fn a_quota_is_named_and_is_the_reason_of_waiting() {
    let calm = Observed { converged: true, client_starved_cores: 0.2, ..run(0) };
    let warned = |samples: &Samples| {
        let mut warnings = Vec::new();
        cautions(&calm, &rules(), samples, false, &mut warnings);
        warnings
    };
    let quota = |ratio, of_engine| Some(Quota { cores: 0.5, ratio, of_engine });
    let mut samples = Samples { engine_waited_ratio: Some(0.3), quota: quota(0.43, false), ..Samples::default() };
    let [only] = warned(&samples).try_into().unwrap();
    assert!(only.code == "cpu_quota" && only.message.starts_with("this container may use 0.5 cores (cgroup quota)"));
    assert!(only.message.contains("stopped 43 % of the time"), "{only:?}");
    samples.quota = quota(0.43, true);
    assert!(warned(&samples)[0].message.starts_with("the engine's container"));
    // One that never ran out is not worth a word.
    samples.quota = quota(0.0, false);
    let codes: Vec<String> = warned(&samples).into_iter().map(|warning| warning.code).collect();
    assert_eq!(codes, ["client_starved", "engine_starved"]);
}

#[test]
fn a_machine_whose_speed_changes_is_told_from_one_tenth_on() {
    let calm = Observed { converged: true, ..run(0) };
    let with = |speed_range| {
        let host = Some(HostUse { speed_range, ..HostUse::default() });
        let mut warnings = Vec::new();
        cautions(&calm, &rules(), &Samples { host, ..Samples::default() }, false, &mut warnings);
        warnings
    };
    assert!(with(None).is_empty() && with(Some([0.96, 1.05])).is_empty());
    let [only] = with(Some([0.8, 1.0])).try_into().unwrap();
    assert!(only.code == "speed_varied" && only.message.contains("changed by 25 % during"), "{only:?}");
}

#[test]
fn a_certified_point_met_no_disturbance() {
    let of = |code: &str| Warning { code: code.into(), message: "so it is".into() };
    let mut calm = vec![of("memory_preallocated"), of("too_few_requests")];
    certify(&mut calm);
    assert!(calm.len() == 2 && !calm.iter().any(Warning::spoils));
    let mut disturbed = vec![of("memory_preallocated"), of("steal"), of("throttled")];
    certify(&mut disturbed);
    assert!(disturbed[3].spoils());
    assert_eq!(disturbed[3].code, "not_certified");
    assert!(disturbed[3].message.contains("steal, throttled;"), "{}", disturbed[3].message);
}
