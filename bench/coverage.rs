//! How often the 95 % intervals cover the truth, and how long a point takes: simulated servers, the meter's own
//! warm-up, stop rule and statistics.
//!
//! `cargo run --release -p modelmeter-common --example bench-coverage [RUNS] [FIRST_SEED] [PART OF A LAW'S NAME]`
//!
//! The method was fixed with the seeds from 0; those from 2,000,000 were tried once after. What both printed is in
//! `bench/coverage.txt`.

#[path = "../common/tests/support/cover.rs"]
mod cover;
#[path = "../common/tests/support/laws.rs"]
mod laws;
#[path = "../common/tests/support/simulate.rs"]
mod simulate;

use cover::{Covered, cover, truth};
use laws::LAWS;
use modelmeter_common::{load::Stop, stats::stop::StopRule};
use std::time::Duration;

/// Calls from which the truth is taken.
const LONG: usize = 20_000_000;

fn main() {
    let mut args = std::env::args().skip(1);
    let mut number = |default: u64| args.next().and_then(|arg| arg.parse().ok()).unwrap_or(default);
    let (runs, first_seed) = (number(2000), number(0));
    let only: String = args.next().unwrap_or_default();
    let minutes = |n: u64| Duration::from_secs(60 * n);
    let rules = [
        ("2 s to 30 s, to 5 % (the default)", StopRule::from(&Stop::default()), ""),
        ("1 to 2 minutes, to 5 %", StopRule::new(minutes(1), minutes(2), minutes(2), 0.05), "each 10 s"),
        (
            "until throughput and median have intervals (a short budget)",
            StopRule::new(Duration::ZERO, Duration::from_secs(1), minutes(60), 0.05),
            "slow",
        ),
    ];
    for (title, rule, which) in rules {
        println!("{title}; {runs} runs a law, seeds from {first_seed}; of each figure: given, of these covered");
        println!(
            "{:42} {:>6} {:>7} {:>6} {:>14}{:>14}{:>14}{:>14}{:>14}{:>14}",
            "law", "conv.", "median", "calls", "throughput", "p50", "p90", "p95", "p99", "p99.9"
        );
        for law in LAWS.iter().filter(|law| law.name.contains(which) && law.name.contains(&only)) {
            print(law.name, &cover(law, &truth(law, LONG), rule, first_seed, runs));
        }
    }
}

fn print(name: &str, all: &Covered) {
    let share = |n: u64| 100.0 * n as f64 / all.runs as f64;
    print!("{name:42} {:5.1}% {:5.1} s {:6}", share(all.converged), all.median_s(), all.calls / all.runs);
    for figure in &all.figures {
        if figure.given == 0 {
            print!("{:>14}", "–");
        } else {
            print!("  {:5.1}% {:4.1}%", share(figure.given), 100.0 * figure.coverage());
        }
    }
    println!();
}
