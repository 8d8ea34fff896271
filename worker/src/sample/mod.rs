//! Figures of device, engine and host while a point runs.
//!
//! What belongs here: reading NVML and procfs. What does not: judging them, which is [`crate::load`]'s.
//! What is not supported is none, with a reason; never 0.

pub mod nvml;
pub mod procfs;
mod trace;

pub use nvml::{Idle, Monitor};

use modelmeter_common::{
    device::{CPU_CLASS, Device, DeviceKind},
    part::{EngineCpu, GpuUse, HostUse, Reason, Warning},
};
use procfs::{HostTimes, Tree};
use std::{collections::BTreeMap, fs, time::Instant};

/// The devices of this host, the CPU first; if there are no GPUs, a clear line on why.
pub fn devices() -> (Vec<Device>, Option<String>) {
    let mut devices = vec![cpu()];
    let found = Monitor::shared().map_err(str::to_owned).and_then(Monitor::devices);
    let why_none = match found {
        Ok(gpus) if gpus.is_empty() => Some("no GPUs: NVML lists none".to_owned()),
        Ok(gpus) => {
            devices.extend(gpus);
            None
        }
        Err(why) => Some(why),
    };
    (devices, why_none)
}

fn cpu() -> Device {
    let field = |path: &str, key: &str| {
        let text = fs::read_to_string(path).ok()?;
        let line = text.lines().find(|l| l.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let kib = field("/proc/meminfo", "MemTotal").and_then(|m| m.split_whitespace().next()?.parse::<u64>().ok());
    Device {
        kind: DeviceKind::Cpu,
        class: CPU_CLASS.into(),
        name: field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.into()),
        index: None,
        uuid: None,
        driver: None,
        memory_total_bytes: kib.map(|k| k * 1024),
        cores: Some(cores() as u32),
    }
}

/// What to sample while a point runs.
#[derive(Clone, Debug, Default)]
pub struct Probes {
    engine_pid: Option<u32>,
    gpu: Option<GpuProbe>,
}

#[derive(Clone, Debug)]
struct GpuProbe {
    monitor: Monitor,
    uuid: String,
    idle: Option<Idle>,
}

impl Probes {
    /// The process tree under this engine, if it runs here.
    pub fn new(engine_pid: Option<u32>) -> Self {
        Self { engine_pid, gpu: None }
    }

    /// The GPU that it runs on too, and what that was like before the engine was deployed
    /// ([`Monitor::idle`]).
    #[must_use]
    pub fn with_gpu(mut self, monitor: &Monitor, uuid: &str, idle: Option<Idle>) -> Self {
        self.gpu = Some(GpuProbe { monitor: monitor.clone(), uuid: uuid.to_owned(), idle });
        self
    }

    /// Starts sampling.
    pub fn begin(&self) -> Running {
        let engine = self.engine_pid.map(|pid| (pid, Tree::read(pid)));
        let gpu = self.gpu.clone().map(|gpu| (gpu.monitor.begin(&gpu.uuid), gpu));
        Running { begun: Instant::now(), host: HostTimes::read(), engine, gpu }
    }
}

/// Sampling that goes on. Dropped without [`Running::end`], it stops.
#[derive(Debug)]
pub struct Running {
    begun: Instant,
    host: Option<HostTimes>,
    engine: Option<(u32, Tree)>,
    gpu: Option<(u64, GpuProbe)>,
}

/// What was sampled.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// The GPU.
    pub gpu: Option<GpuUse>,
    /// The engine's process tree.
    pub engine_cpu: Option<EngineCpu>,
    /// The host.
    pub host: HostUse,
    /// Logical cores of the host.
    pub cores: f64,
    /// What a reader must know.
    pub warnings: Vec<Warning>,
    /// Why a figure is null, by its path in a profile's point.
    pub unavailable: BTreeMap<String, Reason>,
}

impl Samples {
    fn null(&mut self, path: &str, code: &str, message: &str) {
        self.unavailable.insert(path.into(), Reason { code: code.into(), message: message.into() });
    }
}

impl Running {
    /// Ends sampling. Blocks for as long as the driver takes to answer.
    pub fn end(mut self) -> Samples {
        let mut samples = Samples { cores: cores(), ..Samples::default() };
        if let (Some(before), Some(now)) = (self.host, HostTimes::read()) {
            samples.host = now.use_since(&before);
        }
        let mut pids = Vec::new();
        match &self.engine {
            None => samples.null("engine_cpu", "not_local", "the engine's process is not known: it runs elsewhere"),
            Some((pid, before)) => {
                let now = Tree::read(*pid);
                pids = now.pids();
                if now.is_empty() {
                    samples.null("engine_cpu", "engine_gone", "the engine's process ended");
                } else {
                    samples.engine_cpu = Some(EngineCpu {
                        cores: now.cpu_seconds_since(before) / self.begun.elapsed().as_secs_f64().max(1e-3),
                        rss_bytes: now.rss_bytes(),
                    });
                }
            }
        }
        match self.gpu.take() {
            None => samples.null("gpu", "no_gpu", "the engine ran on the CPU"),
            Some((id, probe)) => {
                let seen = probe.monitor.end(id, probe.idle, pids);
                samples.gpu = seen.gpu;
                samples.warnings.extend(seen.warnings);
                samples.unavailable.extend(seen.unavailable);
            }
        }
        samples
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some((id, probe)) = self.gpu.take() {
            probe.monitor.forget(id);
        }
    }
}

fn cores() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With a GPU its figures, without one a clear line: both ends of the same code.
    #[test]
    fn devices_and_samples_are_there_or_say_why_not() {
        let (devices, why_none) = devices();
        assert_eq!(devices[0].class, "cpu");
        assert!(devices[0].cores >= Some(1) && devices[0].memory_total_bytes > Some(1 << 20));
        let mut probes = Probes::new(Some(std::process::id()));
        if let Some(gpu) = devices.get(1) {
            let (monitor, uuid) = (Monitor::shared().unwrap(), gpu.uuid.as_deref().unwrap());
            let idle = monitor.idle(uuid).unwrap();
            probes = probes.with_gpu(monitor, uuid, Some(idle));
        } else {
            assert!(why_none.unwrap().starts_with("no GPUs: "));
        }
        let running = probes.begin();
        let end = Instant::now() + std::time::Duration::from_millis(700);
        while Instant::now() < end {
            std::thread::yield_now();
        }
        let samples = running.end();
        assert!(samples.engine_cpu.unwrap().cores > 0.1 && samples.host.cpu_busy_ratio > 0.0);
        match samples.gpu {
            None => assert_eq!(samples.unavailable["gpu"].code, "no_gpu"),
            Some(gpu) => {
                println!("{:?}\n{gpu:?}\n{:?}\n{:?}", devices[1], samples.unavailable, samples.warnings);
                assert!(gpu.utilization_ratio.is_some_and(|u| (0.0..=1.0).contains(&u)));
                assert!(gpu.memory_used_bytes.is_some() && gpu.power_w > Some(1.0) && gpu.energy_j > Some(0.5));
            }
        }
    }
}
