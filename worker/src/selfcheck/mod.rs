//! What can be measured on this machine: its timer, its cores and the client itself, against the engine that does nothing.

mod findings;
mod measure;
mod speed;

pub use findings::{Finding, Quiet, findings};
pub use measure::measure;

use serde::Serialize;

/// Calls in flight that are tried: one tells the least latency, many the most calls.
const CONCURRENCIES: [u32; 2] = [1, 32];
/// Calls a second of open loops that are tried, in this order, as far as the null engine can follow.
const RATES: [f64; 5] = [500.0, 2_000.0, 5_000.0, 10_000.0, 20_000.0];

/// This machine's own limits.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct SelfCheck {
    pub modelmeter_version: &'static str,
    pub cpu: String,
    pub cores: u32,
    pub timer: Timer,
    /// In the order of [`CONCURRENCIES`].
    pub closed: Vec<Closed>,
    /// In rising order of the rate.
    pub open: Vec<Open>,
    pub host: Host,
}

/// Clock and sleep of a thread with precise timers, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Timer {
    pub resolution_ns: u64,
    /// How much later than asked for a short sleep ends.
    pub sleep_late_p50_ns: u64,
    pub sleep_late_p99_ns: u64,
}

/// A closed loop against the null engine.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Closed {
    pub concurrency: u32,
    pub calls_per_s: f64,
    /// Null where too few calls ended.
    pub p50_latency_us: Option<f64>,
    /// Of one core: the client is one thread.
    pub client_cpu_cores: f64,
}

impl Closed {
    /// What the client alone could do, were it not for the engine.
    pub fn client_calls_per_s(&self) -> f64 {
        self.calls_per_s / self.client_cpu_cores.max(1e-6)
    }
}

/// An open loop with Poisson arrivals against the null engine.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Open {
    pub rate_per_s: f64,
    pub send_lateness_us: Lateness,
    /// Whether a point at this rate stands.
    pub valid: bool,
    /// If not: why.
    pub reason: Option<String>,
}

/// How late calls were sent.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Lateness {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
    /// Share of the calls that were sent over 1 ms late.
    pub over_1ms_ratio: f64,
}

/// What others took of the CPU meanwhile; shares of all cores, none where the system does not tell.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Host {
    pub others_cpu_ratio: Option<f64>,
    pub steal_ratio: Option<f64>,
    /// The fastest over the slowest twentieth of the time in which the cores only computed, beforehand.
    pub speed_spread: f64,
}
