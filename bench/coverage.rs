//! How often the 95 % intervals cover the truth, and how long a point takes: simulated servers, the meter's own
//! warm-up, stop rule and statistics.
//!
//! `cargo run --release -p modelmeter-common --example bench-coverage [RUNS] [FIRST_SEED] [PART OF A LAW'S NAME]`
//!
//! What it printed last is in `bench/coverage.txt`.

#[path = "../common/tests/support/cover.rs"]
mod cover;
#[path = "../common/tests/support/laws.rs"]
mod laws;
#[path = "../common/tests/support/simulate.rs"]
mod simulate;

use cover::{Covered, FIGURES, Hits, cover, cover_repeats, truth};
use laws::{LAWS, Law};
use modelmeter_common::{
    load::{Sla, Stop},
    stats::{percentile::PERCENTILES, stop::StopRule},
};
use std::time::Duration;

/// Calls from which the truth is taken.
const LONG: usize = 20_000_000;
/// Repeats that are folded, and laws for which they are.
const REPEATS: usize = 3;
const FOLDED: [&str; 6] =
    ["narrow", "correlated: rho 0.9", "shared machine", "slow: 0.3 s", "M/M/1, load 0.5", "8 in flight, all"];
/// Laws for which an SLA is set at the true percentile: a claim that it is met is wrong one time in a hundred at most.
const AGREED: [&str; 6] =
    ["narrow", "bimodal", "correlated: rho 0.9", "shared machine", "M/D/1, load 0.5", "stalls of 100 ms each second"];

fn main() {
    let mut args = std::env::args().skip(1);
    let mut number = |default: u64| args.next().and_then(|arg| arg.parse().ok()).unwrap_or(default);
    let (runs, first_seed) = (number(2000), number(0));
    let only: String = args.next().unwrap_or_default();
    let seconds = Duration::from_secs;
    let rules = [
        ("5 s to 30 s, to 5 % (the default)", StopRule::from(&Stop::default()), ""),
        ("6 s, as of a small budget", StopRule::new(seconds(6), seconds(6), seconds(6), 0.05), "shared machine"),
        ("1 to 2 minutes, to 5 %", StopRule::new(seconds(60), seconds(120), seconds(120), 0.05), "each 10 s"),
        (
            "until throughput and median have intervals (a short budget)",
            StopRule::new(Duration::ZERO, seconds(1), seconds(3600), 0.05),
            "slow",
        ),
    ];
    let laws = |which: &'static [&'static str]| {
        let only = only.clone();
        LAWS.iter().filter(move |law| law.name.contains(&only) && which.iter().any(|part| law.name.contains(part)))
    };
    for (title, rule, which) in rules {
        println!(
            "{title}; {runs} runs a law, seeds from {first_seed}; of each figure: given, of these covered, half width"
        );
        head();
        let mut observed = Vec::new();
        for law in LAWS.iter().filter(|law| law.name.contains(which) && law.name.contains(&only)) {
            let all = cover(law, &truth(law, LONG), rule, first_seed, runs);
            print(law, &all);
            observed.extend(all.figures.iter().enumerate().filter_map(|(i, hits)| off(law, i, hits)));
        }
        println!(
            "\nonly observed: figure, runs, 10 %, 50 % and 90 % points of how far it lay from the truth; lower bounds above it"
        );
        observed.iter().for_each(|line| println!("{line}"));
        println!();
    }
    println!("{REPEATS} repeats folded, 5 s to 30 s; {runs} runs a law, seeds from {first_seed}");
    head();
    for law in laws(&FOLDED) {
        print(law, &cover_repeats(law, &truth(law, LONG), StopRule::from(&Stop::default()), first_seed, runs, REPEATS));
    }
    println!(
        "\nSLA at the true percentile and 2 % below it, 5 s to 30 s; {runs} runs: claimed to be met (wrongly, at most 1 %)"
    );
    for law in laws(&AGREED) {
        let truth = truth(law, LONG);
        let slas: Vec<Sla> = [(50.0, 1), (95.0, 3), (99.0, 4)]
            .into_iter()
            .flat_map(|(q, at)| [1.0, 0.98].map(|factor| Sla { percentile: q, latency_ms: truth[at] * factor }))
            .collect();
        let claimed = cover::claims(law, &slas, StopRule::from(&Stop::default()), first_seed, runs);
        for (sla, claimed) in slas.chunks_exact(2).zip(claimed.chunks_exact(2)) {
            let [at, below] = [claimed[0], claimed[1]].map(|n| 100.0 * n as f64 / runs as f64);
            println!("{:42} p{:<5} {at:5.2} % {below:5.2} %", law.name, sla[0].percentile);
        }
    }
}

fn head() {
    let figures = ["throughput", "p50", "p90", "p95", "p99", "p99.9"].map(|name| format!("{name:>21}"));
    println!("{:42} {:>6} {:>7} {:>6}{}", "law", "conv.", "median", "calls", figures.concat());
}

fn print(law: &Law, all: &Covered) {
    let share = |n: u64| 100.0 * n as f64 / all.runs as f64;
    print!("{:42} {:5.1}% {:5.1} s {:6}", law.name, share(all.converged), all.median_s(), all.calls / all.runs);
    for figure in &all.figures {
        if figure.given == 0 {
            print!("{:>21}", "–");
        } else {
            let half = 100.0 * figure.half_width();
            print!("  {:5.1}% {:5.1}% ±{half:5.1}", share(figure.given), 100.0 * figure.coverage());
        }
    }
    println!();
}

/// How far a figure lay from the truth where it had no interval.
fn off(law: &Law, figure: usize, hits: &Hits) -> Option<String> {
    const { assert!(FIGURES == 1 + PERCENTILES.len()) };
    let [low, middle, high] = hits.off()?.map(|share| 100.0 * share);
    let name = if figure == 0 { "throughput".into() } else { format!("p{}", PERCENTILES[figure - 1]) };
    let runs = hits.seen - hits.given;
    let bounds = format!("{} of {}", hits.bound_misses, hits.bounded);
    Some(format!("{:42} {name:10} {runs:6}  {low:+7.1} {middle:+7.1} {high:+7.1} %  {bounds}", law.name))
}
