//! From figures to what they mean for measurements on this machine: pure.

use super::{Closed, Host, Open, SelfCheck, Timer};

/// A latency that is so many times the client's own is little disturbed by it.
const LITTLE: f64 = 10.0;
/// Shares of the CPU beyond which a load point is marked.
const MAX_OTHERS: f64 = 0.2;
const MAX_STEAL: f64 = 0.02;
/// Cores that compute so many times as fast at one moment as at another are not this machine's alone.
const MAX_SPREAD: f64 = 1.15;
/// Sleeps that end later than this make a schedule unsound.
const LATE_NS: u64 = 1_000_000;
/// With fewer cores client and engine slow each other.
const FEW_CORES: u32 = 3;

/// What a figure means for measurements on this machine.
#[derive(Clone, PartialEq, Debug)]
pub enum Finding {
    /// How much of a call is not the model's.
    Latencies {
        /// What client, loopback and null engine take of a call.
        own_us: f64,
        /// Of lower latencies that is more than a tenth.
        disturbed_below_ms: f64,
    },
    /// How many calls the client can make.
    Throughput {
        /// The most that were made.
        most: Closed,
        /// Whether client and engine have few cores to share.
        few_cores: bool,
    },
    /// How well open loops keep their schedule.
    OpenLoops {
        /// The highest rate up to which every point is valid; none: not even the lowest.
        on_time_per_s: Option<f64>,
        /// The first point that is not.
        failed: Option<Open>,
    },
    /// What else takes this host's CPU.
    Host(Quiet),
    /// The cores are not always equally fast.
    Unsteady {
        /// How many times as fast at one moment as at another.
        spread: f64,
        /// Whether other processes of this machine explain it.
        is_busy: bool,
    },
    /// Sleeps end over a millisecond late.
    LateSleeps,
}

/// Whether anything else takes a host's CPU; shares of all its cores.
#[derive(Clone, Copy, PartialEq, Debug)]
#[allow(missing_docs)]
pub enum Quiet {
    /// The system does not tell.
    Unknown,
    /// Nothing that matters does.
    Yes { others: f64, steal: f64 },
    /// Other virtual machines do.
    Stolen { others: f64, steal: f64 },
    /// Other processes do.
    Busy { others: f64, steal: f64 },
}

/// What the figures mean, the most important first.
pub fn findings(check: &SelfCheck) -> Vec<Finding> {
    let one = check.closed.iter().find(|point| point.concurrency == 1);
    let most = check.closed.iter().max_by(|a, b| a.calls_per_s.total_cmp(&b.calls_per_s));
    let found = [
        one.and_then(latencies),
        most.map(|&most| Finding::Throughput { most, few_cores: check.cores < FEW_CORES }),
        Some(schedules(&check.open)),
        Some(Finding::Host(quiet(&check.host))),
        steady(&check.host),
        sleeps(&check.timer),
    ];
    found.into_iter().flatten().collect()
}

fn latencies(one: &Closed) -> Option<Finding> {
    let own_us = one.p50_latency_us?;
    Some(Finding::Latencies { own_us, disturbed_below_ms: LITTLE * own_us / 1e3 })
}

/// The rates up to the first that fails: one above it may have been lucky.
fn schedules(open: &[Open]) -> Finding {
    let on_time = open.iter().take_while(|point| point.valid).last();
    Finding::OpenLoops {
        on_time_per_s: on_time.map(|point| point.rate_per_s),
        failed: open.iter().find(|point| !point.valid).cloned(),
    }
}

fn quiet(host: &Host) -> Quiet {
    match (host.others_cpu_ratio, host.steal_ratio) {
        (Some(others), Some(steal)) if steal > MAX_STEAL => Quiet::Stolen { others, steal },
        (Some(others), Some(steal)) if others > MAX_OTHERS => Quiet::Busy { others, steal },
        (Some(others), Some(steal)) => Quiet::Yes { others, steal },
        _ => Quiet::Unknown,
    }
}

fn steady(host: &Host) -> Option<Finding> {
    let is_busy = host.others_cpu_ratio.is_some_and(|others| others > MAX_OTHERS);
    (host.speed_spread > MAX_SPREAD).then_some(Finding::Unsteady { spread: host.speed_spread, is_busy })
}

fn sleeps(timer: &Timer) -> Option<Finding> {
    (timer.sleep_late_p99_ns > LATE_NS).then_some(Finding::LateSleeps)
}
