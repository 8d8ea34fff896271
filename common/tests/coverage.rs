//! Coverage by simulation: the stop rule decides the end, and the 95 % intervals must cover the truth.
//!
//! A small share of what `bench/coverage.rs` runs; `COVERAGE_RUNS` sets the runs per law.

#[path = "support/cover.rs"]
mod cover;
#[path = "support/laws.rs"]
mod laws;
#[path = "support/simulate.rs"]
mod simulate;

use cover::{Covered, FIGURES, cover, truth};
use laws::LAWS;
use modelmeter_common::{load::Stop, stats::stop::StopRule};
use std::time::Duration;

/// The truth is taken from this many calls.
const LONG: usize = 2_000_000;
const NAMES: [&str; FIGURES] = ["throughput", "p50", "p90", "p95", "p99", "p99.9"];

fn covered(law: &str, rule: StopRule) -> Covered {
    let runs = std::env::var("COVERAGE_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(120);
    let law = LAWS.iter().find(|l| l.name == law).expect("the name of a law");
    let all = cover(law, &truth(law, LONG), rule, 0, runs);
    for (name, figure) in NAMES.iter().zip(&all.figures) {
        println!("{}: {name} {figure}", law.name);
        // Chance alone takes a true 93 % below this in a thousandth of the cases.
        let least = 0.93 - 3.1 * (0.93 * 0.07 / figure.given.max(1) as f64).sqrt();
        assert!(figure.coverage() >= least, "{}: {name} {figure}", law.name);
    }
    for (name, figure) in NAMES.iter().zip(&all.figures).take(2) {
        assert!(figure.given as f64 >= 0.97 * runs as f64, "{}: {name} given {} times", law.name, figure.given);
    }
    all
}

fn by_default(law: &str) -> Covered {
    covered(law, StopRule::from(&Stop::default()))
}

#[test]
fn a_steady_server_is_known_within_six_seconds() {
    let all = by_default("narrow: log-normal 1 ms, sigma 0.1");
    assert_eq!(all.converged, all.runs);
    assert!(all.median_s() <= 6.0, "{} s", all.median_s());
    assert!(all.figures[4].given * 2 >= all.runs, "p99 is carried: {}", all.figures[4]);
}

#[test]
fn correlated_calls_are_covered() {
    by_default("correlated: rho 0.9");
    by_default("phases: 1 ms for 50 calls, 2 ms for 20");
}

#[test]
fn queues_are_covered_and_their_tail_is_as_wide_as_few_calls_tell() {
    by_default("open loop M/D/1, load 0.5");
    let busy = by_default("open loop M/M/1, load 0.9");
    let p99 = &busy.figures[4];
    assert!(p99.given * 10 >= 9 * busy.runs && p99.half_width() > 0.3, "±{} in {} runs", p99.half_width(), p99.given);
}

#[test]
fn a_machine_that_changes_slowly_is_covered_by_wide_intervals() {
    for law in ["shared machine, phases", "shared machine, two levels", "shared machine, walk"] {
        let all = by_default(law);
        for (name, figure) in NAMES.iter().zip(&all.figures).skip(1).take(3) {
            assert!(figure.given * 10 >= 9 * all.runs, "{law}: {name} given {} times", figure.given);
        }
    }
}

#[test]
fn a_handful_of_slow_calls_is_covered() {
    by_default("slow: 3 s, rho 0.5");
    // What a short budget asks for: until throughput and median have intervals.
    let until_said = StopRule::new(Duration::ZERO, Duration::from_secs(1), Duration::from_secs(3600), 0.05);
    let all = covered("slow: 0.3 s, rho 0.5", until_said);
    assert!(all.calls <= 12 * all.runs, "{} calls in {} runs", all.calls, all.runs);
}
