//! Figures of device, engine and host while a point runs.
//!
//! What belongs here: reading NVML and procfs. What does not: judging them, which is [`crate::load`]'s.
//! What is not supported is none, with a reason; never 0.

pub mod procfs;

use modelmeter_common::part::{EngineCpu, GpuUse, HostUse, Reason, Warning};
use procfs::{HostTimes, Tree};
use std::{
    collections::BTreeMap,
    time::Instant,
};

/// What to sample while a point runs.
#[derive(Clone, Debug, Default)]
pub struct Probes {
    engine_pid: Option<u32>,
}

impl Probes {
    /// The process tree under this engine, if it runs here.
    pub fn new(engine_pid: Option<u32>) -> Self {
        Self { engine_pid }
    }

    /// Starts sampling.
    pub fn begin(&self) -> Running {
        let engine = self.engine_pid.map(|pid| (pid, Tree::read(pid)));
        Running { begun: Instant::now(), host: HostTimes::read(), engine }
    }
}

/// Sampling that goes on.
#[derive(Debug)]
pub struct Running {
    begun: Instant,
    host: Option<HostTimes>,
    engine: Option<(u32, Tree)>,
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

impl Running {
    /// Ends sampling.
    pub fn end(self) -> Samples {
        let mut samples = Samples { cores: cores(), ..Samples::default() };
        let mut null = |path: &str, code: &str, message: &str| {
            let reason = Reason { code: code.into(), message: message.into() };
            samples.unavailable.insert(path.into(), reason);
        };
        null("gpu", "no_gpu", "the engine ran on the CPU");
        match &self.engine {
            None => null("engine_cpu", "not_local", "the engine's process is not known: it runs elsewhere"),
            Some((pid, before)) => {
                let now = Tree::read(*pid);
                if now.is_empty() {
                    null("engine_cpu", "engine_gone", "the engine's process ended");
                } else {
                    samples.engine_cpu = Some(EngineCpu {
                        cores: now.cpu_seconds_since(before) / self.begun.elapsed().as_secs_f64().max(1e-3),
                        rss_bytes: now.rss_bytes(),
                    });
                }
            }
        }
        if let (Some(before), Some(now)) = (self.host, HostTimes::read()) {
            samples.host = now.use_since(&before);
        }
        samples
    }
}

fn cores() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64)
}
