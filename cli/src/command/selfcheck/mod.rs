//! `selfcheck`: measures this machine and the client itself, against the engine that does nothing, and says what can be
//! measured here.

mod findings;
mod measure;
mod speed;

use super::{Context, print};
use crate::{
    embedded, interrupt,
    progress::Progress,
    report::{self, Align, Table, number},
};
use modelmeter_common::{Code, Problem};
use serde::Serialize;

/// Calls in flight that are tried: one tells the least latency, many the most calls.
const CONCURRENCIES: [u32; 2] = [1, 32];
/// Calls a second of open loops that are tried, in this order, as far as the null engine can follow.
const RATES: [f64; 5] = [500.0, 2_000.0, 5_000.0, 10_000.0, 20_000.0];

/// This machine's own limits.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct SelfCheck {
    modelmeter_version: &'static str,
    cpu: String,
    cores: u32,
    timer: Timer,
    /// In the order of [`CONCURRENCIES`].
    closed: Vec<Closed>,
    /// In rising order of the rate.
    open: Vec<Open>,
    host: Host,
    /// What can be measured here, in words.
    findings: Vec<String>,
}

/// Clock and sleep of a thread with precise timers, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
struct Timer {
    resolution_ns: u64,
    /// How much later than asked for a short sleep ends.
    sleep_late_p50_ns: u64,
    sleep_late_p99_ns: u64,
}

/// A closed loop against the null engine.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
struct Closed {
    concurrency: u32,
    calls_per_s: f64,
    /// Null where too few calls ended.
    p50_latency_us: Option<f64>,
    /// Of one core: the client is one thread.
    client_cpu_cores: f64,
}

impl Closed {
    /// What the client alone could do, were it not for the engine.
    fn client_calls_per_s(&self) -> f64 {
        self.calls_per_s / self.client_cpu_cores.max(1e-6)
    }
}

/// An open loop with Poisson arrivals against the null engine.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct Open {
    rate_per_s: f64,
    send_lateness_us: Lateness,
    /// Whether a point at this rate stands.
    valid: bool,
    /// If not: why.
    reason: Option<String>,
}

/// How late calls were sent.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
struct Lateness {
    p50: f64,
    p99: f64,
    max: f64,
    /// Share of the calls that were sent over 1 ms late.
    over_1ms_ratio: f64,
}

/// What others took of the CPU meanwhile; shares of all cores, none where the system does not tell.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
struct Host {
    others_cpu_ratio: Option<f64>,
    steal_ratio: Option<f64>,
    /// The fastest over the slowest twentieth of the time in which the cores only computed, beforehand.
    speed_spread: f64,
}

pub(super) async fn run(context: &Context) -> Result<u8, Problem> {
    let stop = interrupt::listen()?;
    let config = &context.config;
    embedded::writable(&config.home)?;
    let _alone = modelmeter_worker::hold_cpu(&embedded::lock_dir(config), "selfcheck")?;
    let progress = Progress::new(context.json);
    match measure::all(&config.home.join("cache"), &progress, &stop).await {
        Ok(check) => {
            progress.finish();
            print(&if context.json { report::json(&check) } else { text(&check) })?;
            Ok(0)
        }
        Err(problem) if problem.code == Code::Cancelled => Ok(interrupt::EXIT_INTERRUPTED),
        Err(problem) => Err(problem),
    }
}

fn text(check: &SelfCheck) -> String {
    let us = |ns: u64| number(ns as f64 / 1e3);
    let timer = &check.timer;
    let mut text = format!(
        "{} cores of {}; clock of {} ns, a sleep ends {} µs late (p99 {} µs)\n\n",
        check.cores,
        check.cpu,
        timer.resolution_ns,
        us(timer.sleep_late_p50_ns),
        us(timer.sleep_late_p99_ns)
    );
    text += &closed(check).to_string();
    text += "\n";
    text += &open(check).to_string();
    text += "\nwhat can be measured here\n";
    for finding in &check.findings {
        text += &format!("- {finding}\n");
    }
    text
}

fn closed(check: &SelfCheck) -> Table {
    let mut table = Table::default()
        .group("null engine, closed loop", "load", Align::Left)
        .column("calls/s", Align::Right)
        .column("p50, µs", Align::Right)
        .column("client's core", Align::Right);
    for point in &check.closed {
        table.row(vec![
            format!("{} in flight", point.concurrency),
            number(point.calls_per_s),
            point.p50_latency_us.map_or_else(|| "–".into(), number),
            format!("{:.0} %", 100.0 * point.client_cpu_cores),
        ]);
    }
    table
}

fn open(check: &SelfCheck) -> Table {
    let mut table = Table::default()
        .group("null engine, open loop", "load", Align::Left)
        .group("sent late, µs", "p50", Align::Right)
        .column("p99", Align::Right)
        .column("max", Align::Right)
        .group("", "over 1 ms", Align::Right)
        .column("valid", Align::Left);
    for point in &check.open {
        let late = &point.send_lateness_us;
        table.row(vec![
            format!("{} calls/s", number(point.rate_per_s)),
            number(late.p50),
            number(late.p99),
            number(late.max),
            format!("{:.3} %", 100.0 * late.over_1ms_ratio),
            if point.valid { "yes" } else { "no" }.into(),
        ]);
    }
    table
}
