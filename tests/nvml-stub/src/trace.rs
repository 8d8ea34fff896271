//! A trace: what a driver and its GPUs do over time, as TOML.
//!
//! ```toml
//! driver = "570.86.15"
//! cuda = 12080                 # as NVML counts: 1000 × major + 10 × minor
//! begins_at_us = 0             # microseconds since 1970 at which ms 0 is; left out: when the library is initialised
//!
//! [[gpu]]
//! name = "NVIDIA H100 80GB HBM3"
//! uuid = "GPU-1"
//! memory_total_mib = 81559
//! ecc = true                   # left out: not supported; the same for mig
//! sample_ms = 10               # period of the driver's time-stamped utilization samples
//! lacks = ["energy"]           # what answers "not supported"
//! # Each moment holds until the next, the first also before it, the last for ever.
//! timeline = [
//!   { ms = 0, busy = 0.0, power_w = 70.0, memory_mib = 500, sm_mhz = 345, celsius = 33 },
//!   { ms = 200, busy = 0.9, power_w = 400.0, memory_mib = 2500, sm_mhz = 1980, celsius = 60,
//!     throttle = ["sw_power_cap"], processes = { self = 2000, 4242 = 100 } },
//!   { ms = 900, busy = 0.0, power_w = 0.0, memory_mib = 0, sm_mhz = 0, celsius = 0, lost = true },
//! ]
//! ```
//!
//! `processes` maps pids to the MiB that they use, or to -1 where the driver does not tell; `self` is the process that
//! loaded the library.

use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// A host with its GPUs.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trace {
    /// The driver's version.
    pub driver: String,
    /// 1000 × major + 10 × minor.
    pub cuda: i32,
    /// Microseconds since 1970 of ms 0.
    pub begins_at_us: Option<u64>,
    /// In the order of their indices.
    #[serde(default)]
    pub gpu: Vec<Gpu>,
}

/// One device.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Gpu {
    pub name: String,
    pub uuid: String,
    pub memory_total_mib: u64,
    pub ecc: Option<bool>,
    pub mig: Option<bool>,
    #[serde(default = "ten_ms")]
    pub sample_ms: u64,
    #[serde(default)]
    pub lacks: BTreeSet<Figure>,
    pub timeline: Vec<Moment>,
    /// Where `mig` is true: its instances, devices like itself.
    #[serde(default)]
    pub instance: Vec<Gpu>,
}

fn ten_ms() -> u64 {
    10
}

/// What a device may not support.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Figure {
    /// The driver's current figure.
    Utilization,
    /// Its time-stamped samples.
    Samples,
    Memory,
    Processes,
    Energy,
    Power,
    Clock,
    Temperature,
    Throttle,
}

/// What holds from a moment on.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moment {
    /// Since the trace began.
    pub ms: u64,
    /// Share of the time in which a kernel runs, 0 to 1.
    pub busy: f64,
    #[allow(missing_docs)]
    pub power_w: f64,
    #[allow(missing_docs)]
    pub memory_mib: u64,
    #[allow(missing_docs)]
    pub sm_mhz: u32,
    #[allow(missing_docs)]
    pub celsius: u32,
    /// Names of [`THROTTLE`].
    #[serde(default)]
    pub throttle: Vec<String>,
    /// MiB by pid.
    #[serde(default)]
    pub processes: BTreeMap<String, i64>,
    /// From here on every call answers that the GPU is lost.
    #[serde(default)]
    pub lost: bool,
}

/// Reasons for lower clocks and their bits. Source: nvml.h, nvmlClocksEventReasons.
pub const THROTTLE: [(&str, u64); 6] = [
    ("gpu_idle", 0x1),
    ("sw_power_cap", 0x4),
    ("hw_slowdown", 0x8),
    ("sw_thermal_slowdown", 0x20),
    ("hw_thermal_slowdown", 0x40),
    ("hw_power_brake_slowdown", 0x80),
];

impl Trace {
    /// Reads a trace.
    ///
    /// # Errors
    /// What is wrong with it, with its line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let trace: Self = toml::from_str(text).map_err(|e| e.to_string())?;
        for gpu in trace.devices() {
            if gpu.timeline.is_empty() || !gpu.timeline.is_sorted_by(|a, b| a.ms < b.ms) || gpu.sample_ms == 0 {
                return Err(format!("{}: a timeline needs moments that rise, and samples a period", gpu.uuid));
            }
            for name in gpu.timeline.iter().flat_map(|moment| &moment.throttle) {
                if !THROTTLE.iter().any(|(known, _)| known == name) {
                    return Err(format!("{}: unknown reason '{name}'", gpu.uuid));
                }
            }
        }
        Ok(trace)
    }

    /// The GPUs, each before its instances.
    pub fn devices(&self) -> impl Iterator<Item = &Gpu> {
        self.gpu.iter().flat_map(|gpu| std::iter::once(gpu).chain(&gpu.instance))
    }
}

impl Gpu {
    /// What holds at a time.
    pub fn at(&self, ms: f64) -> &Moment {
        let after = self.timeline.partition_point(|moment| moment.ms as f64 <= ms);
        &self.timeline[after.saturating_sub(1)]
    }

    /// The integral of a figure from one time to another, in its unit times milliseconds.
    pub fn integral(&self, from_ms: f64, until_ms: f64, of: impl Fn(&Moment) -> f64) -> f64 {
        let starts = self.timeline.iter().enumerate();
        let stretch = |(i, moment): (usize, &Moment)| {
            let begin = if i == 0 { from_ms } else { from_ms.max(moment.ms as f64) };
            let end = self.timeline.get(i + 1).map_or(until_ms, |next| until_ms.min(next.ms as f64));
            of(moment) * (end - begin).max(0.0)
        };
        starts.map(stretch).sum()
    }

    /// Its mean over that time: the truth that a sampler must find.
    pub fn mean(&self, from_ms: f64, until_ms: f64, of: impl Fn(&Moment) -> f64) -> f64 {
        self.integral(from_ms, until_ms, of) / (until_ms - from_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integrals_are_exact_and_mistakes_are_named() {
        let row = |ms: u64, power: f64| {
            format!("{{ ms = {ms}, busy = 0.5, power_w = {power}, memory_mib = 1, sm_mhz = 1, celsius = 1 }}")
        };
        let text = |rows: [String; 2]| {
            let gpu = "[[gpu]]\nname = 'a'\nuuid = 'b'\nmemory_total_mib = 9\n";
            format!("driver = '1'\ncuda = 12080\n{gpu}timeline = [{}]", rows.join(", "))
        };
        let trace = Trace::parse(&text([row(0, 100.0), row(200, 400.0)])).unwrap();
        let power = |from, until| trace.gpu[0].mean(from, until, |m| m.power_w);
        assert_eq!((power(-50.0, 100.0), power(100.0, 300.0), power(300.0, 999.0)), (100.0, 250.0, 400.0));
        assert_eq!(trace.gpu[0].at(199.9).power_w, 100.0);
        assert!(Trace::parse(&text([row(200, 1.0), row(0, 1.0)])).unwrap_err().contains("rise"));
        assert!(Trace::parse("driver = '1'\ncuda = 1\nfan = 3").unwrap_err().contains("fan"));
    }
}
