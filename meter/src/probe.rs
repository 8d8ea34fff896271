//! Figures of device, engine and host while a point is measured. The meter says when to look; the meter's user, who knows
//! the machine, brings the [`Probe`].
//!
//! A figure that is not known is none, with a reason; it is never 0.

use modelmeter_common::part::{EngineCpu, GpuUse, HostUse, Reason, Warning};
use std::collections::{BTreeMap, BTreeSet};

/// Samples device, engine and host from the first to the last call of a point.
pub trait Probe: Send + Sync {
    /// Starts sampling.
    fn begin(&self) -> Box<dyn Sampling>;
}

/// A running sampling. Dropped without [`Sampling::end`], it stops.
pub trait Sampling: Send {
    /// Ends the sampling. May block for a while.
    fn end(self: Box<Self>) -> Samples;
}

/// Samples nothing: for users who only want the figures of the calls.
impl Probe for () {
    fn begin(&self) -> Box<dyn Sampling> {
        Box::new(())
    }
}

impl Sampling for () {
    fn end(self: Box<Self>) -> Samples {
        let mut samples = Samples::default();
        for path in ["gpu", "engine_cpu", "host"] {
            samples.null(path, "not_sampled", "nobody looked at it");
        }
        samples
    }
}

/// The figures of a point's device, engine and host.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// The GPU.
    pub gpu: Option<GpuUse>,
    /// The engine's process tree.
    pub engine_cpu: Option<EngineCpu>,
    /// Of the time in which the engine's threads could run, the share in which they waited for a core.
    pub engine_waited_ratio: Option<f64>,
    /// The CPU quota that stopped client or engine the most; none without one.
    pub quota: Option<Quota>,
    /// The host.
    pub host: Option<HostUse>,
    /// Logical cores of the host.
    pub cores: f64,
    /// What a reader must know.
    pub warnings: Vec<Warning>,
    /// Why a figure is null, by its path in a profile's point.
    pub unavailable: BTreeMap<String, Reason>,
}

impl Samples {
    /// Says why a figure is null.
    pub fn null(&mut self, path: &str, code: &str, message: &str) {
        self.unavailable.insert(path.into(), Reason { code: code.into(), message: message.into() });
    }

    /// Joins these figures with those of a later stretch, which took this share of all the time. A figure must be in both.
    pub fn and(&self, later: &Self, share: f64) -> Self {
        let mean = |a: f64, b: f64| a + (b - a) * share;
        let mut both = later.clone();
        both.gpu = self.gpu.as_ref().zip(later.gpu.as_ref()).map(|(a, b)| both_gpus(a, b, share));
        both.engine_cpu = self
            .engine_cpu
            .zip(later.engine_cpu)
            .map(|(a, b)| EngineCpu { cores: mean(a.cores, b.cores), rss_bytes: b.rss_bytes });
        both.host = self.host.zip(later.host).map(|(a, b)| HostUse {
            cpu_busy_ratio: mean(a.cpu_busy_ratio, b.cpu_busy_ratio),
            steal_ratio: mean(a.steal_ratio, b.steal_ratio),
            throttled_ratio: a.throttled_ratio.zip(b.throttled_ratio).map(|(a, b)| mean(a, b)),
            speed_range: a.speed_range.zip(b.speed_range).map(|([a, b], [c, d])| [a.min(c), b.max(d)]),
        });
        both.engine_waited_ratio = self.engine_waited_ratio.zip(later.engine_waited_ratio).map(|(a, b)| mean(a, b));
        both.quota = self.quota.zip(later.quota).map(|(a, b)| Quota { ratio: mean(a.ratio, b.ratio), ..b });
        let news = self.warnings.iter().filter(|w| !later.warnings.contains(w)).cloned();
        both.warnings.extend(news);
        for (path, reason) in &self.unavailable {
            both.unavailable.entry(path.clone()).or_insert_with(|| reason.clone());
        }
        both
    }
}

/// Memory and temperature are the most that was seen, the rest are means, energy is a sum.
fn both_gpus(a: &GpuUse, b: &GpuUse, share: f64) -> GpuUse {
    let mean = |of: fn(&GpuUse) -> Option<f64>| of(a).zip(of(b)).map(|(a, b)| a + (b - a) * share);
    let most = |of: fn(&GpuUse) -> Option<f64>| of(a).zip(of(b)).map(|(a, b)| a.max(b));
    let throttle: BTreeSet<_> = a.throttle.iter().chain(&b.throttle).cloned().collect();
    GpuUse {
        utilization_ratio: mean(|g| g.utilization_ratio),
        memory_used_bytes: a.memory_used_bytes.zip(b.memory_used_bytes).map(|(a, b)| a.max(b)),
        memory_used_ratio: most(|g| g.memory_used_ratio),
        memory_delta_bytes: a.memory_delta_bytes.zip(b.memory_delta_bytes).map(|(a, b)| a.max(b)),
        memory_process_bytes: a.memory_process_bytes.zip(b.memory_process_bytes).map(|(a, b)| a.max(b)),
        power_w: mean(|g| g.power_w),
        energy_j: a.energy_j.zip(b.energy_j).map(|(a, b)| a + b),
        sm_clock_mhz: mean(|g| g.sm_clock_mhz),
        temperature_c: most(|g| g.temperature_c),
        throttle: throttle.into_iter().collect(),
    }
}

/// A CPU quota, and what it did to a point.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Quota {
    /// Cores that it allows.
    pub cores: f64,
    /// Share of the time in which it stopped threads.
    pub ratio: f64,
    /// Whether it is the engine's own, of a container that the client is not in.
    pub of_engine: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_are_weighted_by_time_and_energy_adds_up() {
        let stretch = |cores: f64, power_w: Option<f64>, joules: f64| {
            let gpu = GpuUse { power_w, energy_j: Some(joules), ..GpuUse::default() };
            let engine_cpu = Some(EngineCpu { cores, rss_bytes: 7 });
            Samples { gpu: Some(gpu), engine_cpu, ..Samples::default() }
        };
        let mut cut_off = stretch(2.0, None, 30.0);
        cut_off.null("gpu.power_w", "no_samples", "none");
        let both = stretch(1.0, Some(100.0), 10.0).and(&stretch(2.0, Some(200.0), 30.0), 0.75);
        assert_eq!(both.engine_cpu.unwrap().cores, 1.75);
        let gpu = both.gpu.unwrap();
        assert_eq!((gpu.power_w, gpu.energy_j), (Some(175.0), Some(40.0)));
        let half = cut_off.and(&stretch(1.0, Some(100.0), 10.0), 0.5);
        assert!(half.gpu.unwrap().power_w.is_none() && half.unavailable.contains_key("gpu.power_w"));
    }
}
