//! A device while a point runs. Each figure ends as a value, or with the error that kept it from one.

use super::{GpuSamples, Idle};
use crate::sample::{
    Launched,
    trace::{Trace, Weighted},
};
use modelmeter_common::part::{GpuUse, Reason, Warning};
use nvml_wrapper::{
    Device as Gpu, Nvml,
    bitmasks::device::ThrottleReasons,
    enum_wrappers::device::{Clock, Sampling, TemperatureSensor},
    enums::device::{SampleValue, UsedGpuMemory},
    error::NvmlError,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// How far back the driver is asked for samples: the first one of the run begins before it.
const LOOK_BACK_US: u64 = 2_000_000;
/// Reasons that make a measurement slower than the device can be.
const SLOWING: ThrottleReasons = ThrottleReasons::SW_POWER_CAP
    .union(ThrottleReasons::HW_SLOWDOWN)
    .union(ThrottleReasons::SW_THERMAL_SLOWDOWN)
    .union(ThrottleReasons::HW_THERMAL_SLOWDOWN)
    .union(ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN);
/// Slowed for a larger share of the time than this, a figure is not the device's best.
const MAX_SLOWED: f64 = 0.05;
/// Memory that an engine takes for itself, whatever the model needs: of what was free, at least this share,
const RESERVED_OF_FREE: f64 = 0.5;
/// at least so many times the model,
const RESERVED_OF_MODEL: u64 = 10;
/// and as much at the end as at the begin, to this share.
const RESERVED_MOVES: f64 = 0.01;

/// Microseconds since 1970, as the driver stamps its samples.
fn wall_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64)
}

/// What was seen so far.
pub(super) struct Run {
    uuid: String,
    begun: Instant,
    begun_us: u64,
    utilization: Trace,
    rates: Weighted,
    energy_begin_mj: Option<u64>,
    power: Weighted,
    clock: Weighted,
    /// The least and the most in use.
    memory: Option<(u64, u64)>,
    memory_total: Option<u64>,
    temperature: Option<u32>,
    throttle: ThrottleReasons,
    slowed: Weighted,
    /// The most that each process used, where the driver tells.
    processes: BTreeMap<u32, Option<u64>>,
    errors: BTreeMap<&'static str, Failed>,
    lost: bool,
}

/// Why a figure is missing.
struct Failed {
    code: &'static str,
    message: String,
}

impl From<NvmlError> for Failed {
    fn from(error: NvmlError) -> Self {
        let code = match error {
            NvmlError::NotSupported | NvmlError::FunctionNotFound | NvmlError::FailedToLoadSymbol(_) => "not_supported",
            NvmlError::NoPermission => "no_permission",
            _ => "nvml",
        };
        Self { code, message: format!("NVML says: {error}") }
    }
}

impl Run {
    pub fn begin(nvml: &Nvml, uuid: String) -> Self {
        let mut run = Self::new(uuid);
        if let Ok(gpu) = nvml.device_by_uuid(run.uuid.as_str()) {
            run.energy_begin_mj = run.keep("energy_j", gpu.total_energy_consumption());
        }
        run.tick(nvml);
        run
    }

    /// Nothing seen yet.
    fn new(uuid: String) -> Self {
        Self {
            uuid,
            begun: Instant::now(),
            begun_us: wall_us(),
            utilization: Trace::default(),
            rates: Weighted::default(),
            energy_begin_mj: None,
            power: Weighted::default(),
            clock: Weighted::default(),
            memory: None,
            memory_total: None,
            temperature: None,
            throttle: ThrottleReasons::empty(),
            slowed: Weighted::default(),
            processes: BTreeMap::new(),
            errors: BTreeMap::new(),
            lost: false,
        }
    }

    /// The value, or its error noted under the figure that it keeps from being known.
    fn keep<T>(&mut self, figure: &'static str, result: Result<T, NvmlError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.lost |= matches!(error, NvmlError::GpuLost | NvmlError::ResetRequired);
                self.errors.insert(figure, error.into());
                None
            }
        }
    }

    pub fn tick(&mut self, nvml: &Nvml) {
        if self.lost {
            return;
        }
        let Some(gpu) = self.keep("gpu", nvml.device_by_uuid(self.uuid.as_str())) else { return };
        let at = self.begun.elapsed();
        self.look_at_utilization(&gpu, at);
        if let Some(memory) = self.keep("memory_used_bytes", gpu.memory_info()) {
            let (least, most) = self.memory.unwrap_or((memory.used, memory.used));
            self.memory = Some((least.min(memory.used), most.max(memory.used)));
            self.memory_total = Some(memory.total);
        }
        if let Some(mw) = self.keep("power_w", gpu.power_usage()) {
            self.power.push(at, f64::from(mw) / 1e3);
        }
        if let Some(mhz) = self.keep("sm_clock_mhz", gpu.clock_info(Clock::SM)) {
            self.clock.push(at, f64::from(mhz));
        }
        if let Some(celsius) = self.keep("temperature_c", gpu.temperature(TemperatureSensor::Gpu)) {
            self.temperature = self.temperature.max(Some(celsius));
        }
        if let Some(reasons) = self.keep("throttle", gpu.current_throttle_reasons()) {
            self.throttle |= reasons;
            self.slowed.push(at, f64::from(u8::from(reasons.intersects(SLOWING))));
        }
        for process in self.keep("memory_process_bytes", gpu.running_compute_processes()).unwrap_or_default() {
            let most = self.processes.entry(process.pid).or_insert(None);
            if let UsedGpuMemory::Used(bytes) = process.used_gpu_memory {
                *most = (*most).max(Some(bytes));
            }
        }
    }

    /// The driver's time-stamped samples; where it has none, its current figure.
    fn look_at_utilization(&mut self, gpu: &Gpu, at: Duration) {
        let since = self.utilization.last_us().unwrap_or(self.begun_us.saturating_sub(LOOK_BACK_US));
        match gpu.samples(Sampling::GpuUtilization, since) {
            Ok(samples) => {
                for sample in samples {
                    let percent = match sample.value {
                        SampleValue::U32(v) => f64::from(v),
                        SampleValue::U64(v) => v as f64,
                        SampleValue::I64(v) => v as f64,
                        SampleValue::F64(v) => v,
                    };
                    self.utilization.push(sample.timestamp, percent / 100.0);
                }
            }
            // Nothing new since.
            Err(NvmlError::NotFound | NvmlError::NoData) => {}
            Err(error) => drop(self.keep::<()>("utilization_ratio", Err(error))),
        }
        if let Some(rates) = self.keep("utilization_ratio", gpu.utilization_rates()) {
            self.rates.push(at, f64::from(rates.gpu) / 100.0);
        }
    }

    /// What came of it.
    pub fn end(mut self, nvml: &Nvml, idle: Option<&Idle>, engine: &Launched) -> GpuSamples {
        self.tick(nvml);
        let (duration, end_us) = (self.begun.elapsed(), wall_us());
        let energy_end = match nvml.device_by_uuid(self.uuid.as_str()) {
            Ok(gpu) => self.keep("energy_j", gpu.total_energy_consumption()),
            Err(error) => self.keep("gpu", Err(error)),
        };
        if self.lost {
            return lost();
        }
        let counted = self.energy_begin_mj.zip(energy_end).filter(|(a, b)| b > a).map(|(a, b)| (b - a) as f64 / 1e3);
        let sampled_w = self.power.mean(duration);
        let own: Vec<u64> = engine.pids.iter().filter_map(|pid| *self.processes.get(pid)?).collect();
        let used = self.memory.map(|(_, most)| most);
        let gpu = GpuUse {
            utilization_ratio: self.utilization.mean(self.begun_us, end_us).or_else(|| self.rates.mean(duration)),
            memory_used_bytes: used,
            memory_used_ratio: used.zip(self.memory_total).map(|(u, t)| u as f64 / t as f64),
            memory_delta_bytes: used.zip(idle).map(|(u, i)| u as i64 - i.memory_used_bytes as i64),
            memory_process_bytes: (!own.is_empty()).then(|| own.iter().sum()),
            power_w: counted.map(|j| j / duration.as_secs_f64()).or(sampled_w),
            energy_j: counted.or_else(|| sampled_w.map(|w| w * duration.as_secs_f64())),
            sm_clock_mhz: self.clock.mean(duration),
            temperature_c: self.temperature.map(f64::from),
            throttle: names(self.throttle),
        };
        let warnings = [self.throttled(duration), self.foreign(idle, engine), self.preallocated(idle, engine)];
        GpuSamples {
            unavailable: self.reasons(&gpu, idle, engine),
            warnings: warnings.into_iter().flatten().collect(),
            gpu: Some(gpu),
        }
    }

    /// Why each figure that is null is null, and why there are no reasons for lower clocks if there may be some.
    fn reasons(&self, gpu: &GpuUse, idle: Option<&Idle>, engine: &Launched) -> BTreeMap<String, Reason> {
        let unopened = self.errors.get("gpu");
        let may_throttle = self.errors.contains_key("throttle") || unopened.is_some();
        let missing = [
            ("utilization_ratio", gpu.utilization_ratio.is_none()),
            ("memory_used_bytes", gpu.memory_used_bytes.is_none()),
            ("memory_used_ratio", gpu.memory_used_ratio.is_none()),
            ("memory_delta_bytes", gpu.memory_delta_bytes.is_none()),
            ("memory_process_bytes", gpu.memory_process_bytes.is_none()),
            ("power_w", gpu.power_w.is_none()),
            ("energy_j", gpu.energy_j.is_none()),
            ("sm_clock_mhz", gpu.sm_clock_mhz.is_none()),
            ("temperature_c", gpu.temperature_c.is_none()),
            ("throttle", gpu.throttle.is_empty() && may_throttle),
        ];
        let reason = |figure: &str| {
            let source = match figure {
                "memory_used_ratio" => "memory_used_bytes",
                "memory_delta_bytes" if idle.is_some() => "memory_used_bytes",
                own => own,
            };
            let (code, message) = match (self.errors.get(source), unopened, figure) {
                (Some(failed), ..) => (failed.code, failed.message.clone()),
                (None, _, "memory_delta_bytes") if idle.is_none() => {
                    ("no_baseline", "the device was not seen before the engine was deployed".into())
                }
                (None, _, "memory_process_bytes") if engine.pids.iter().any(|pid| self.processes.contains_key(pid)) => {
                    ("not_supported", "the driver does not tell how much memory a process uses".into())
                }
                // Without the device no figure has an error of its own.
                (None, Some(failed), _) => (failed.code, failed.message.clone()),
                (None, None, "memory_process_bytes") => {
                    ("process_not_seen", "the driver lists no process of the engine, as within a container".into())
                }
                (None, None, _) => ("no_samples", "the driver gave no sample in the measured time".into()),
            };
            Reason { code: code.into(), message }
        };
        let missing = missing.into_iter().filter(|(_, is_missing)| *is_missing);
        missing.map(|(figure, _)| (format!("gpu.{figure}"), reason(figure))).collect()
    }

    fn throttled(&self, duration: Duration) -> Option<Warning> {
        let share = self.slowed.mean(duration).filter(|share| *share > MAX_SLOWED)?;
        let why = names(self.throttle & SLOWING).join(", ");
        let share = share * 100.0;
        let message = format!(
            "the GPU lowered its clocks for {share:.0} % of the time ({why}); improve its cooling, raise its power limit, \
             or lock its clocks lower (nvidia-smi --lock-gpu-clocks)"
        );
        Some(warning("throttled", message))
    }

    /// Processes that are not the engine's. Where the driver numbers processes otherwise than this host, as for a
    /// container, only those are known that were there before the engine.
    fn foreign(&self, idle: Option<&Idle>, engine: &Launched) -> Option<Warning> {
        let same_numbers = engine.pids.iter().any(|pid| self.processes.contains_key(pid));
        let before = idle.map_or(&[][..], |idle| &idle.foreign_pids);
        let is_foreign = |pid: &&u32| !engine.pids.contains(pid) && (same_numbers || before.contains(pid));
        let foreign: BTreeSet<_> = self.processes.keys().filter(is_foreign).collect();
        let one = foreign.first()?;
        let message = match foreign.len() {
            1 => format!("process {one} of others used the GPU too; stop it and measure again"),
            n => format!("process {one} and {} more of others used the GPU too; stop them and measure again", n - 1),
        };
        Some(warning("foreign_process", message))
    }

    /// Memory that says what the framework reserved, not what the model needs.
    fn preallocated(&self, idle: Option<&Idle>, engine: &Launched) -> Option<Warning> {
        let ((least, most), total, idle) = (self.memory?, self.memory_total?, idle?.memory_used_bytes);
        let (taken, free) = (most.saturating_sub(idle), total.saturating_sub(idle));
        let moved = (most - least) as f64;
        let is_much = taken as f64 >= RESERVED_OF_FREE * free as f64;
        let model = engine.model_bytes.filter(|bytes| *bytes > 0)?;
        if !is_much || taken < RESERVED_OF_MODEL * model || moved > RESERVED_MOVES * taken as f64 {
            return None;
        }
        let (share, times) = (100.0 * taken as f64 / total as f64, taken / model);
        let message = format!(
            "the engine holds {share:.0} % of the GPU's memory, {times} times the model, whatever the load: its framework \
             reserves memory beforehand; let it grow instead (TensorFlow: TF_FORCE_GPU_ALLOW_GROWTH=true) to see what the \
             model needs"
        );
        Some(warning("memory_preallocated", message))
    }
}

fn warning(code: &str, message: String) -> Warning {
    Warning { code: code.into(), message }
}

fn lost() -> GpuSamples {
    let message = "the GPU was lost while the point ran (it fell off the bus or needs a reset)".to_owned();
    let reason = Reason { code: "gpu_lost".into(), message: message.clone() };
    let warning = warning("gpu_lost", format!("{message}; look at dmesg"));
    GpuSamples { gpu: None, warnings: vec![warning], unavailable: BTreeMap::from([("gpu".into(), reason)]) }
}

/// Being idle is no throttling.
fn names(reasons: ThrottleReasons) -> Vec<String> {
    (reasons - ThrottleReasons::GPU_IDLE - ThrottleReasons::NONE)
        .iter_names()
        .map(|(name, _)| name.to_ascii_lowercase())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_could_not_be_opened_is_why_its_figures_are_null() {
        let mut run = Run::new("GPU-x".into());
        run.keep::<()>("gpu", Err(NvmlError::NoPermission));
        let reasons = run.reasons(&GpuUse::default(), None, &Launched::default());
        assert_eq!(reasons.len(), 10, "{reasons:?}");
        assert_eq!(reasons["gpu.memory_delta_bytes"].code, "no_baseline");
        let mut others = reasons.iter().filter(|(path, _)| *path != "gpu.memory_delta_bytes");
        assert!(others.all(|(_, reason)| reason.code == "no_permission"), "{reasons:?}");
        // What a figure has of its own comes first.
        run.keep::<()>("power_w", Err(NvmlError::NotSupported));
        let reasons = run.reasons(&GpuUse::default(), None, &Launched::default());
        assert_eq!(reasons["gpu.power_w"].code, "not_supported");
    }
}
