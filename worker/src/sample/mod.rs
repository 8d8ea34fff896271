//! Figures of device, engine and host while a point runs.
//!
//! What belongs here: reading NVML and procfs. What does not: judging them, which is [`modelmeter_meter`]'s.
//! What is not supported is none, with a reason; never 0.

pub mod nvml;
pub mod procfs;
mod quota;
mod speed;
mod trace;

use modelmeter_common::{
    device::Device,
    part::{EngineCpu, Reason},
};
use modelmeter_meter::{Probe, Samples, Sampling};
pub use nvml::{Idle, Monitor};
use procfs::{HostTimes, Tree};
use quota::Quotas;
use speed::Speed;
use std::{
    fs,
    time::{Duration, Instant},
};

/// The devices of this host, the CPU first; if there are no GPUs, a clear line on why.
pub fn devices() -> (Vec<Device>, Option<String>) {
    let mut devices = vec![cpu()];
    let found = Monitor::shared().map_err(str::to_owned).and_then(Monitor::devices);
    let why_none = match found {
        Ok(gpus) if gpus.is_empty() => Some("NVML lists none".to_owned()),
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
    let name = field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.into());
    Device::cpu(name, kib.map(|k| k * 1024), Some(cores() as u32))
}

/// What to sample while a point runs.
#[derive(Clone, Debug, Default)]
pub struct Probes {
    engine_pid: Option<u32>,
    /// Where the engine runs.
    cores: Option<Vec<u32>>,
    model_bytes: Option<u64>,
    gpu: Option<GpuProbe>,
    no_gpu: Option<Reason>,
}

/// The engine whose use of a GPU is looked at.
#[derive(Clone, Debug, Default)]
struct Launched {
    pids: Vec<u32>,
    /// The size of the model's file.
    model_bytes: Option<u64>,
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
        Self { engine_pid, ..Self::default() }
    }

    /// The cores that the engine may run on: how fast these are is measured, with a little work on each of them.
    #[must_use]
    pub fn with_cores(mut self, cores: Vec<u32>) -> Self {
        self.cores = Some(cores);
        self
    }

    /// The size of the model that the engine serves: much more memory than this was not taken for the model.
    #[must_use]
    pub fn with_model_bytes(mut self, bytes: Option<u64>) -> Self {
        self.model_bytes = bytes;
        self
    }

    /// The GPU that it runs on too, and what that was like before the engine was deployed
    /// ([`Monitor::idle`]).
    #[must_use]
    pub fn with_gpu(mut self, monitor: &Monitor, uuid: &str, idle: Option<Idle>) -> Self {
        self.gpu = Some(GpuProbe { monitor: monitor.clone(), uuid: uuid.to_owned(), idle });
        self
    }

    /// Why there are no figures of the GPU that it runs on, or may run on.
    #[must_use]
    pub fn without_gpu(mut self, code: &str, message: impl Into<String>) -> Self {
        self.no_gpu = Some(Reason { code: code.into(), message: message.into() });
        self
    }

    /// Starts sampling.
    pub fn begin(&self) -> Running {
        let engine = self.engine_pid.map(|pid| (pid, Tree::read(pid)));
        let gpu = self.gpu.clone().map(|gpu| (gpu.monitor.begin(&gpu.uuid), gpu));
        let (model_bytes, no_gpu) = (self.model_bytes, self.no_gpu.clone());
        Running {
            begun: Instant::now(),
            host: HostTimes::read(),
            engine,
            quotas: Quotas::begin(self.engine_pid),
            speed: self.cores.as_deref().map(Speed::begin),
            model_bytes,
            gpu,
            no_gpu,
        }
    }
}

/// Sampling that goes on. Dropped without [`Running::end`], it stops.
#[derive(Debug)]
pub struct Running {
    begun: Instant,
    host: Option<HostTimes>,
    engine: Option<(u32, Tree)>,
    quotas: Quotas,
    speed: Option<Speed>,
    model_bytes: Option<u64>,
    gpu: Option<(u64, GpuProbe)>,
    no_gpu: Option<Reason>,
}

/// A process' CPU time is told in ticks of 10 ms: over less than this the scheduler is asked instead.
const LEAST: Duration = Duration::from_millis(500);

impl Running {
    /// Ends sampling. Blocks for as long as the driver takes to answer.
    pub fn end(mut self) -> Samples {
        let mut samples = Samples { cores: cores(), ..Samples::default() };
        add_host(&mut samples, self.host, HostTimes::read());
        samples.quota = self.quotas.end(self.begun.elapsed());
        if let Some(host) = &mut samples.host {
            host.throttled_ratio = samples.quota.map(|quota| quota.ratio);
            host.speed_range = self.speed.as_ref().and_then(Speed::range);
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
                    samples.engine_waited_ratio = now.waited_ratio_since(before);
                    let took = self.begun.elapsed();
                    let used = now.ran_seconds_since(before).filter(|_| took < LEAST);
                    let used = used.unwrap_or_else(|| now.cpu_seconds_since(before));
                    let cores = (used / took.as_secs_f64()).min(samples.cores);
                    samples.engine_cpu = Some(EngineCpu { cores, rss_bytes: now.rss_bytes() });
                }
            }
        }
        match self.gpu.take() {
            None => match self.no_gpu.take() {
                Some(reason) => drop(samples.unavailable.insert("gpu".into(), reason)),
                None => samples.null("gpu", "no_gpu", "the engine ran on the CPU"),
            },
            Some((id, probe)) => {
                let seen = probe.monitor.end(id, probe.idle, Launched { pids, model_bytes: self.model_bytes });
                samples.gpu = seen.gpu;
                samples.warnings.extend(seen.warnings);
                samples.unavailable.extend(seen.unavailable);
            }
        }
        samples
    }
}

impl Probe for Probes {
    fn begin(&self) -> Box<dyn Sampling> {
        Box::new(self.begin())
    }
}

impl Sampling for Running {
    fn end(self: Box<Self>) -> Samples {
        (*self).end()
    }
}

/// Adds the host between two looks.
fn add_host(samples: &mut Samples, before: Option<HostTimes>, now: Option<HostTimes>) {
    let looks = before.zip(now);
    samples.host = looks.and_then(|(before, now)| now.use_since(&before));
    match (looks, samples.host) {
        (None, _) => samples.null("host", "not_readable", "/proc/stat does not tell the host's CPU times"),
        (_, None) => samples.null("host", "no_samples", "no clock tick passed in the measured time"),
        _ => {}
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some((id, probe)) = self.gpu.take() {
            probe.monitor.forget(id);
        }
    }
}

/// Cores of the host, those that this process may not run on included, as its CPU time is all of theirs.
fn cores() -> f64 {
    // SAFETY: only reads.
    let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    online.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_of_unknown_device_says_so() {
        let samples = Probes::new(None).without_gpu("not_local", "elsewhere").begin().end();
        assert_eq!(samples.unavailable["gpu"].code, "not_local");
        assert_eq!(Probes::new(None).begin().end().unavailable["gpu"].code, "no_gpu");
    }

    #[test]
    fn a_host_that_was_not_seen_is_null_with_its_reason() {
        let now = HostTimes::read();
        let mut samples = Samples::default();
        add_host(&mut samples, now, now);
        assert_eq!((samples.host, samples.unavailable["host"].code.as_str()), (None, "no_samples"));
        add_host(&mut samples, None, now);
        assert_eq!((samples.host, samples.unavailable["host"].code.as_str()), (None, "not_readable"));
    }

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
            assert!(why_none.unwrap().contains("NVIDIA driver"));
        }
        let running = probes.begin();
        let (begun, before) = (Instant::now(), Tree::read(std::process::id()));
        // Long enough for a driver's samples, and for the clock ticks that CPU time is counted in.
        let ticks = || Tree::read(std::process::id()).cpu_seconds_since(&before);
        while begun.elapsed().as_millis() < 700 || (ticks() < 0.05 && begun.elapsed().as_secs() < 20) {}
        let samples = running.end();
        assert!(samples.engine_cpu.unwrap().cores > 0.0 && samples.host.unwrap().cpu_busy_ratio > 0.0);
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
