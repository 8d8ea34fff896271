//! The validity of a point: from observations to a [`Point`] with its figures, the reasons of null fields, and warnings
//! that say what to do.

use super::{
    drift::drift,
    observed::{Kept, MetricSeen, Observed, has_failed},
};
use crate::{
    probe::{Quota, Samples},
    record::{Failure, recorder::LOST},
    rules::Rules,
};
use modelmeter_common::{
    Problem,
    load::{LoadPoint, Sla},
    part::{Answers, Metric, Point, Warning},
    stats::{
        percentile::{Basis, Percentile},
        sample::Sample,
        sla,
        stop::judged,
    },
    unsupported,
};
use std::{collections::BTreeMap, time::Duration};

/// Beyond this share of failures a point is invalid.
const MAX_ERRORS: f64 = 0.01;
/// Beyond this share of sends over 1 ms late an open loop is invalid.
const MAX_LATE: f64 = 0.001;
/// Of one core: the client's thread has no time left.
const CLIENT_BOUND: f64 = 0.9;
/// Of the measured time: the client's thread was ready to run and had no core.
const MAX_STARVED: f64 = 0.05;
/// Of the time in which the engine's threads could run: they waited for a core.
const MAX_ENGINE_STARVED: f64 = 0.1;
/// Of the measured time: a CPU quota stopped client or engine.
const MAX_THROTTLED: f64 = 0.01;
/// From the slowest to the fastest that the engine's cores were, leaving out a twentieth at both ends.
const MAX_SPEED_CHANGE: f64 = 1.1;
const MAX_STEAL: f64 = 0.02;
/// Beyond this share of calls that were sent again it is told.
const MAX_RESENT: f64 = 0.01;
/// Of all cores, used by neither engine nor client.
const MAX_OTHERS: f64 = 0.2;

/// Makes the point of a document from what was seen.
pub(crate) fn point(batch_size: u32, rules: &Rules, Kept { seen, samples }: &Kept) -> Point {
    let total = seen.series.total();
    let open = matches!(seen.load, LoadPoint::Open { .. });
    let mut warnings = samples.warnings.clone();
    soundness(seen, open, &mut warnings);
    cautions(seen, rules, samples, open, &mut warnings);
    if rules.stop.certified {
        certify(&mut warnings);
    }
    let valid = !warnings.iter().any(Warning::spoils);
    let mut unavailable = samples.unavailable.clone();
    let requests = seen.series.requests();
    let lacking = |p| unsupported::percentile(unsupported::LATENCY, p, requests);
    unavailable.extend(seen.percentiles.iter().filter_map(lacking));
    let metrics: Vec<Metric> = seen.metrics.iter().map(MetricSeen::figures).collect();
    unavailable.extend(metrics.iter().flat_map(unsupported::metric));
    unavailable.extend(unsupported::throughput(seen.throughput));
    Point {
        load: seen.load,
        batch_size,
        warmup_s: seen.warmup.as_secs_f64(),
        duration_s: total.duration_ns as f64 / 1e9,
        requests: total.latency.len() + total.failures,
        errors: total.failures,
        resent: seen.resent,
        error_kinds: kinds(&seen.errors),
        answers: Answers { checked: seen.checked, wrong: wrong_kinds(&seen.bad_answers) },
        requests_per_s: seen.throughput,
        latency: total.latency.clone(),
        percentiles: seen.percentiles.clone(),
        service: open.then(|| seen.sends.service.clone()),
        send_lateness: open.then(|| seen.sends.lateness.clone()),
        gpu: samples.gpu.clone(),
        engine_cpu: samples.engine_cpu,
        server: None,
        client_cpu_cores: seen.client_cpu_cores,
        host: samples.host,
        converged: seen.converged,
        valid,
        warnings,
        unavailable,
        metrics,
    }
}

fn kinds(errors: &BTreeMap<Failure, u64>) -> BTreeMap<String, u64> {
    errors.iter().map(|(failure, n)| (failure.name(), *n)).collect()
}

/// What was wrong, by what it is about.
fn wrong_kinds(problems: &[Problem]) -> BTreeMap<String, u64> {
    let mut kinds = BTreeMap::new();
    for problem in problems {
        let kind = problem.field.as_deref().unwrap_or(problem.code.as_str());
        *kinds.entry(kind.to_owned()).or_insert(0) += 1;
    }
    kinds
}

fn warn(warnings: &mut Vec<Warning>, code: &str, message: String) {
    warnings.push(Warning { code: code.into(), message });
}

/// Adds the warnings that make a point invalid.
fn soundness(seen: &Observed, open: bool, warnings: &mut Vec<Warning>) {
    let (failures, requests) = (seen.series.total().failures, seen.series.requests());
    let (lost, waited) = lost(seen);
    if (failures + lost) as f64 > MAX_ERRORS * requests as f64 {
        let share = 100.0 * (failures + lost) as f64 / (requests + lost) as f64;
        let words = |f: &Failure| seen.words.get(f).map(|w| format!(" ({w})")).unwrap_or_default();
        let mut listed: Vec<_> = seen.errors.iter().map(|(f, n)| format!("{} {n}{}", f.name(), words(f))).collect();
        listed.extend((lost > 0).then(|| format!("unanswered {lost}")));
        let listed = listed.join(", ");
        let message = format!("{share:.1} % of the calls failed: {listed}; lower the load or mend the server");
        warn(warnings, "errors", message);
    } else if lost > 0 {
        let message = format!(
            "{lost} call{} had no answer {waited:.1?} after being sent when the point ended, longer than twice any other \
             took: the server may have lost it; look at its log",
            if lost == 1 { "" } else { "s" }
        );
        warn(warnings, "unanswered", message);
    }
    if let Some(words) = &seen.gone {
        let message = format!("the server stopped answering ({words}); look at its log, then measure again");
        warn(warnings, "server_gone", message);
    }
    if let Some(first) = seen.bad_answers.first() {
        let (bad, checked) = (seen.bad_answers.len(), seen.checked);
        let message = format!("{bad} of {checked} answers checked are wrong: {}; check the model", first.message);
        warn(warnings, "bad_response", message);
    }
    if open && seen.sends.late as f64 > MAX_LATE * seen.sends.sends as f64 {
        let share = 100.0 * seen.sends.late as f64 / seen.sends.sends as f64;
        let message = format!(
            "{share:.2} % of the sends were over 1 ms late; run the client on a machine or cores of its own, or lower the rate"
        );
        warn(warnings, "sends_late", message);
    }
    if let Some(unsent) = seen.errors.get(&Failure::InFlightLimit) {
        let message = format!(
            "{unsent} calls were not sent, because the limit of calls in flight was reached; lower the rate or raise --max-in-flight"
        );
        warn(warnings, "in_flight_limit", message);
    }
    if let Some(unsent) = seen.errors.get(&Failure::StreamsLimit) {
        let message = format!(
            "{unsent} calls were not sent, because the server takes few at a time on a connection (its MAX_CONCURRENT_STREAMS); \
             raise that, or lower the rate"
        );
        warn(warnings, "streams_limit", message);
    }
    if let LoadPoint::Closed { concurrency } = seen.load
        && (1..concurrency as usize).contains(&seen.sends.most_in_flight)
    {
        let message = format!(
            "never more than {} of {concurrency} calls were in flight: the server takes few at a time on a connection (its \
             MAX_CONCURRENT_STREAMS); raise that, or lower --concurrency",
            seen.sends.most_in_flight
        );
        warn(warnings, "too_few_in_flight", message);
    }
    if seen.series.total().latency.is_empty() {
        let message = match &seen.nothing {
            Some(Problem { message, hint, .. }) => {
                format!("no call succeeded: {message}; {}", hint.as_deref().unwrap_or("look at the server's log"))
            }
            None => "no call succeeded in the measured time; raise --max-duration".into(),
        };
        warn(warnings, "nothing_measured", message);
    }
}

/// How many calls were in flight at the end for so much longer than any other took that they may be lost, and the longest
/// time among them.
fn lost(seen: &Observed) -> (u64, Duration) {
    let longest_ns = seen.series.total().latency.max_ns();
    let lost = || seen.sends.unanswered_ns.iter().filter(|&&ns| ns > LOST * longest_ns);
    (lost().count() as u64, Duration::from_nanos(lost().copied().max().unwrap_or(0)))
}

/// Adds the warnings that leave a point valid.
fn cautions(seen: &Observed, rules: &Rules, samples: &Samples, open: bool, warnings: &mut Vec<Warning>) {
    for remark in &seen.remarks {
        warn(warnings, remark.code, remark.message.clone());
    }
    if seen.drifting {
        let message =
            "latency was still drifting at the end of warm-up; raise --max-duration, of which warm-up may take a third";
        warn(warnings, "warmup_drifting", message.into());
    }
    if let Some(change) = drift(&seen.series) {
        let (way, share) = (if change > 0.0 { "rose" } else { "fell" }, change.abs() * 100.0);
        let message = format!(
            "latency {way} by {share:.0} % from the first half of the measurement to the second; let clocks, temperature and \
             caches settle, then measure again, or longer: --min-duration"
        );
        warn(warnings, "drifting", message);
    }
    if let Some(message) = slow_changes(seen) {
        warn(warnings, "changed_slowly", message);
    }
    // Where errors or a server that is gone ended the run, more time would not have helped.
    if !seen.converged && seen.gone.is_none() && seen.nothing.is_none() && !has_failed(&seen.series) {
        warnings.push(not_converged(seen, rules));
    }
    if !open && seen.client_cpu_cores - seen.client_awake_cores >= CLIENT_BOUND {
        let message = format!(
            "the client used {:.0} % of its core, so it may be what limits; measure with several workers or larger batches",
            seen.client_cpu_cores * 100.0
        );
        warn(warnings, "client_bound", message);
    }
    let quota = samples.quota.filter(|quota| quota.ratio > MAX_THROTTLED);
    if let Some(Quota { cores, ratio, of_engine }) = quota {
        let (whose, share) = (if of_engine { "the engine's" } else { "this" }, ratio * 100.0);
        let cores = (cores * 100.0).round() / 100.0;
        let message = format!(
            "{whose} container may use {cores} cores (cgroup quota) and was stopped {share:.0} % of the time, which is in the \
             latencies; raise the quota, or give the engine fewer threads"
        );
        warn(warnings, "cpu_quota", message);
    }
    // What a quota stopped counts as waiting too: its reason has been said.
    if seen.client_starved_cores > MAX_STARVED && quota.is_none() {
        let message = format!(
            "the client waited for a core {:.0} % of the time, which is in the latencies; give it cores of its own \
             (--client-cpus), give an engine here fewer threads, or stop what else runs here",
            seen.client_starved_cores * 100.0
        );
        warn(warnings, "client_starved", message);
    }
    if let Some(message) = resent(seen) {
        warn(warnings, "resent", message);
    }
    if let Some(share) = samples.engine_waited_ratio.filter(|share| *share > MAX_ENGINE_STARVED && quota.is_none()) {
        let message = format!(
            "the engine waited for a core {:.0} % of the time that it could have run, which is in the latencies; stop what else \
             runs on its cores, or give it fewer threads",
            share * 100.0
        );
        warn(warnings, "engine_starved", message);
    }
    if let Some([low, high]) = samples.host.and_then(|host| host.speed_range)
        && high > MAX_SPEED_CHANGE * low
    {
        let message = format!(
            "the machine's speed changed by {:.0} % during the measurement (other virtual machines, busy sibling threads, heat), \
             which widens the intervals; measure longer, or on a steadier machine",
            (high / low - 1.0) * 100.0
        );
        warn(warnings, "speed_varied", message);
    }
    if let Some(host) = samples.host.filter(|host| host.steal_ratio > MAX_STEAL) {
        let share = host.steal_ratio * 100.0;
        let message = format!("other virtual machines took {share:.1} % of this host's CPU time; use a dedicated host");
        warn(warnings, "steal", message);
    }
    if let (Some(engine), Some(host)) = (samples.engine_cpu, samples.host) {
        let ours = (engine.cores + seen.client_cpu_cores) / samples.cores;
        let others = host.cpu_busy_ratio - ours;
        if others > MAX_OTHERS {
            let share = others * 100.0;
            let message =
                format!("other processes took {share:.0} % of this host's CPU time; stop them and measure again");
            warn(warnings, "noisy_host", message);
        }
    }
}

/// Why the intervals of some percentiles are wide although there were many calls.
fn slow_changes(seen: &Observed) -> Option<String> {
    let calls = seen.series.requests();
    let is_wide = |p: &&Percentile| p.basis == Basis::Stretches && p.interval().is_some() && 2 * p.had < calls;
    let wide: Vec<&Percentile> = seen.percentiles.iter().filter(is_wide).collect();
    let least = wide.iter().map(|p| p.had).min()?;
    let names = wide.iter().map(|p| format!("p{}", p.q)).collect::<Vec<_>>().join(", ");
    let (intervals, are) = if wide.len() > 1 { ("intervals", "are") } else { ("interval", "is") };
    Some(format!(
        "the {intervals} of {names} {are} wide: latency changed slowly during the run ({calls} calls count as {least}); measure \
         longer or on a steadier machine"
    ))
}

/// That many calls were sent again, which takes time that is in their latency.
fn resent(seen: &Observed) -> Option<String> {
    let requests = seen.series.requests();
    if seen.resent as f64 <= MAX_RESENT * requests as f64 {
        return None;
    }
    let share = 100.0 * seen.resent as f64 / requests as f64;
    let why = match requests.checked_div(seen.connections_ended) {
        Some(calls) => format!(
            "the server, or a proxy before it, ends a connection every {calls} calls and does not begin those that are on \
             their way; raise its limit (nginx: keepalive_requests, Envoy: max_requests_per_connection, gRPC: max connection age)"
        ),
        None => {
            "the server refused to begin them (REFUSED_STREAM); raise its limit of calls at a time, or lower the load"
                .into()
        }
    };
    Some(format!("{share:.1} % of the calls were sent again, which is in their latency: {why}"))
}

/// Why the run did not come to what was asked of it.
fn not_converged(seen: &Observed, rules: &Rules) -> Warning {
    if let Some(calls) = rules.batches {
        let more = if rules.slice.is_some() { "--budget or --max-duration" } else { "--max-duration" };
        let message =
            format!("time was up after {} of {calls} calls; raise {more}, or lower --batches", seen.series.requests());
        return Warning { code: "cut_short".into(), message };
    }
    let total = Sample { latency: &seen.series.total().latency, failures: seen.series.total().failures };
    let is_open = |sla: &&Sla| !sla::is_met(sla, total, &seen.percentiles);
    if let Some(sla) = rules.sla.as_ref().filter(is_open) {
        let message = format!(
            "whether p{} stays under {} ms is still open: it counts as missed; raise --max-duration",
            sla.percentile, sla.latency_ms
        );
        return Warning { code: "sla_open".into(), message };
    }
    let asked = rules.stop.precision * 100.0;
    let message = match worst(seen) {
        Some((_, width)) if width <= rules.stop.precision => {
            format!(
                "too few stretches of the run to trust that its intervals are within ±{asked:.1} %; raise --max-duration"
            )
        }
        Some((name, width)) => format!(
            "the 95 % interval of {name} is ±{:.1} %, not ±{asked:.1} %; raise --max-duration or --precision",
            // Rounded up, so that it is not said to be what was asked.
            (width * 1e3).ceil() / 10.0
        ),
        None => format!("too few calls for intervals of ±{asked:.1} %; raise --max-duration"),
    };
    Warning { code: "not_converged".into(), message }
}

/// Warnings of what a certified point must not have met.
const DISTURBANCES: [&str; 14] = [
    "warmup_drifting",
    "drifting",
    "not_converged",
    "cut_short",
    "unanswered",
    "client_bound",
    "client_starved",
    "cpu_quota",
    "engine_starved",
    "steal",
    "noisy_host",
    "throttled",
    "foreign_process",
    "gpu_lost",
];

/// Certified mode: what else is a caution makes a point invalid.
fn certify(warnings: &mut Vec<Warning>) {
    let met: Vec<_> = warnings.iter().map(|w| w.code.as_str()).filter(|code| DISTURBANCES.contains(code)).collect();
    if met.is_empty() {
        return;
    }
    let message = format!("not certified: {}; mend what these warnings say and measure again", met.join(", "));
    warn(warnings, "not_certified", message);
}

/// The least precise figure that precision is asked of, with its half width as a share of the value.
fn worst(seen: &Observed) -> Option<(String, f64)> {
    let throughput = seen.throughput.and_then(|rate| rate.interval());
    let throughput = throughput.iter().map(|i| ("throughput".to_owned(), i.relative_half_width()));
    let percentiles = judged(&seen.percentiles).map(|(q, seen)| (format!("p{q}"), seen.relative_half_width()));
    throughput.chain(percentiles).max_by(|a, b| a.1.total_cmp(&b.1))
}

#[cfg(test)]
#[path = "validity_tests.rs"]
mod tests;
