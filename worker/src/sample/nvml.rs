//! NVIDIA GPUs through NVML, on a thread of its own behind a channel: the library blocks.

use super::trace::{Trace, Weighted};
use modelmeter_common::{
    device::{Device, DeviceKind, class_of},
    part::{GpuUse, Reason, Warning},
};
use nvml_wrapper::{
    Device as Gpu, Nvml,
    bitmasks::device::ThrottleReasons,
    enum_wrappers::device::{Clock, Sampling, TemperatureSensor},
    enums::device::{SampleValue, UsedGpuMemory},
    error::NvmlError,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    sync::{OnceLock, mpsc},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Between two looks at a device that is in use.
const TICK: Duration = Duration::from_millis(100);
/// Names another library, for tests.
const LIBRARY: &str = "MODELMETER_NVML";
/// NVML answers within this, or is taken for hung.
const PATIENCE: Duration = Duration::from_secs(5);

/// The handle of NVML's thread.
#[derive(Clone, Debug)]
pub struct Monitor {
    orders: mpsc::Sender<Order>,
}

/// A device before an engine was deployed on it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Idle {
    /// Memory in use.
    pub memory_used_bytes: u64,
    /// Processes that already use it, as the driver numbers them.
    pub foreign_pids: Vec<u32>,
}

/// What a run on a device came to.
#[derive(Clone, Debug, Default)]
pub(super) struct GpuSamples {
    pub gpu: Option<GpuUse>,
    pub warnings: Vec<Warning>,
    pub unavailable: BTreeMap<String, Reason>,
}

#[derive(Debug)]
enum Order {
    Devices(mpsc::Sender<Result<Vec<Device>, String>>),
    Idle(String, mpsc::Sender<Result<Idle, String>>),
    Begin(u64, String),
    Forget(u64),
    End { id: u64, idle: Option<Idle>, pids: Vec<u32>, reply: mpsc::Sender<GpuSamples> },
}

impl Monitor {
    /// The one of this process. An error is a clear line on why there are no GPUs.
    pub fn shared() -> Result<&'static Self, &'static str> {
        static SHARED: OnceLock<Result<Monitor, String>> = OnceLock::new();
        SHARED.get_or_init(Self::open).as_ref().map_err(String::as_str)
    }

    /// Finds the library by name and starts its thread.
    pub fn open() -> Result<Self, String> {
        let (orders, inbox) = mpsc::channel();
        let (opened, result) = mpsc::channel();
        let name = "modelmeter-nvml".to_owned();
        let body = move || match open_library() {
            Ok(nvml) => {
                let _ = opened.send(Ok(()));
                serve(&nvml, &inbox);
            }
            Err(why) => drop(opened.send(Err(why))),
        };
        std::thread::Builder::new().name(name).spawn(body).map_err(|e| format!("no thread for NVML: {e}"))?;
        result.recv_timeout(2 * PATIENCE).map_err(|_| "NVML does not answer".to_owned())?.map(|()| Self { orders })
    }

    /// The devices of this host.
    pub fn devices(&self) -> Result<Vec<Device>, String> {
        self.ask(Order::Devices)
    }

    /// The device as it is before an engine is deployed.
    pub fn idle(&self, uuid: &str) -> Result<Idle, String> {
        self.ask(|reply| Order::Idle(uuid.to_owned(), reply))
    }

    fn ask<T>(&self, order: impl FnOnce(mpsc::Sender<Result<T, String>>) -> Order) -> Result<T, String> {
        let (reply, answer) = mpsc::channel();
        let hung = || "NVML does not answer".to_owned();
        self.orders.send(order(reply)).map_err(|_| hung())?;
        answer.recv_timeout(PATIENCE).map_err(|_| hung())?
    }

    /// Starts sampling a device; the number names the run.
    pub(super) fn begin(&self, uuid: &str) -> u64 {
        use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Relaxed);
        let _ = self.orders.send(Order::Begin(id, uuid.to_owned()));
        id
    }

    /// Stops sampling, without a result.
    pub(super) fn forget(&self, id: u64) {
        let _ = self.orders.send(Order::Forget(id));
    }

    /// Ends it; the pids are the engine's.
    pub(super) fn end(&self, id: u64, idle: Option<Idle>, pids: Vec<u32>) -> GpuSamples {
        let (reply, answer) = mpsc::channel();
        let _ = self.orders.send(Order::End { id, idle, pids, reply });
        answer.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            let reason = Reason { code: "nvml_hung".into(), message: "NVML does not answer".into() };
            GpuSamples { unavailable: BTreeMap::from([("gpu".into(), reason)]), ..GpuSamples::default() }
        })
    }
}

fn open_library() -> Result<Nvml, String> {
    let path = std::env::var_os(LIBRARY);
    let nvml = match &path {
        Some(path) => Nvml::builder().lib_path(path).init(),
        None => Nvml::init(),
    };
    nvml.map_err(|e| match e {
        NvmlError::LibloadingError(_) => {
            let name = path.unwrap_or_else(|| OsString::from("libnvidia-ml.so.1"));
            format!("no GPUs: {} cannot be loaded; install the NVIDIA driver to use one", name.to_string_lossy())
        }
        NvmlError::DriverNotLoaded => "no GPUs: the NVIDIA driver is not loaded".into(),
        other => format!("no GPUs: NVML says: {other}"),
    })
}

fn serve(nvml: &Nvml, inbox: &mpsc::Receiver<Order>) {
    let mut runs: BTreeMap<u64, Run> = BTreeMap::new();
    let mut next_tick = Instant::now();
    loop {
        let wait = if runs.is_empty() { Duration::from_secs(3600) } else { next_tick - Instant::now().min(next_tick) };
        match inbox.recv_timeout(wait) {
            Ok(Order::Devices(reply)) => drop(reply.send(devices(nvml))),
            Ok(Order::Idle(uuid, reply)) => drop(reply.send(idle(nvml, &uuid))),
            Ok(Order::Begin(id, uuid)) => {
                runs.insert(id, Run::begin(nvml, uuid));
                next_tick = Instant::now() + TICK;
            }
            Ok(Order::End { id, idle, pids, reply }) => {
                if let Some(run) = runs.remove(&id) {
                    let _ = reply.send(run.end(nvml, idle.as_ref(), &pids));
                }
            }
            Ok(Order::Forget(id)) => drop(runs.remove(&id)),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                runs.values_mut().for_each(|run| run.tick(nvml));
                next_tick = Instant::now() + TICK;
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn devices(nvml: &Nvml) -> Result<Vec<Device>, String> {
    let driver = nvml.sys_driver_version().ok();
    let count = nvml.device_count().map_err(|e| format!("no GPUs: NVML says: {e}"))?;
    let device = |index| {
        let gpu = nvml.device_by_index(index).ok()?;
        let name = gpu.name().ok()?;
        Some(Device {
            kind: DeviceKind::Gpu,
            class: class_of(&name),
            name,
            index: Some(index),
            uuid: Some(gpu.uuid().ok()?),
            driver: driver.clone(),
            memory_total_bytes: gpu.memory_info().ok().map(|m| m.total),
            cores: None,
        })
    };
    // One that does not answer (lost) is no slot.
    Ok((0..count).filter_map(device).collect())
}

fn idle(nvml: &Nvml, uuid: &str) -> Result<Idle, String> {
    let gpu = nvml.device_by_uuid(uuid).map_err(|e| e.to_string())?;
    let memory_used_bytes = gpu.memory_info().map_err(|e| e.to_string())?.used;
    let foreign_pids = gpu.running_compute_processes().unwrap_or_default().iter().map(|p| p.pid).collect();
    Ok(Idle { memory_used_bytes, foreign_pids })
}

/// Microseconds since 1970, as the driver stamps its samples.
fn wall_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64)
}

/// A device while a point runs. Each figure ends as a value or the error that kept it from one.
struct Run {
    uuid: String,
    begun: Instant,
    begun_us: u64,
    utilization: Trace,
    rates: Weighted,
    energy_begin_mj: Option<u64>,
    power: Weighted,
    clock: Weighted,
    memory_used: Option<u64>,
    memory_total: Option<u64>,
    temperature: Option<u32>,
    throttle: ThrottleReasons,
    processes: BTreeMap<u32, u64>,
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
            NvmlError::GpuLost | NvmlError::ResetRequired => "gpu_lost",
            _ => "nvml",
        };
        Self { code, message: format!("NVML says: {error}") }
    }
}

impl Run {
    fn begin(nvml: &Nvml, uuid: String) -> Self {
        let mut run = Self {
            uuid,
            begun: Instant::now(),
            begun_us: wall_us(),
            utilization: Trace::default(),
            rates: Weighted::default(),
            energy_begin_mj: None,
            power: Weighted::default(),
            clock: Weighted::default(),
            memory_used: None,
            memory_total: None,
            temperature: None,
            throttle: ThrottleReasons::empty(),
            processes: BTreeMap::new(),
            errors: BTreeMap::new(),
            lost: false,
        };
        if let Ok(gpu) = nvml.device_by_uuid(run.uuid.as_str()) {
            run.energy_begin_mj = run.keep("energy_j", gpu.total_energy_consumption());
        }
        run.tick(nvml);
        run
    }

    /// The value, or its error noted under the figure that it keeps from being known.
    fn keep<T>(&mut self, figure: &'static str, result: Result<T, NvmlError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.lost |= matches!(error, NvmlError::GpuLost);
                self.errors.insert(figure, error.into());
                None
            }
        }
    }

    fn tick(&mut self, nvml: &Nvml) {
        if self.lost {
            return;
        }
        let Some(gpu) = self.keep("gpu", nvml.device_by_uuid(self.uuid.as_str())) else { return };
        let at = self.begun.elapsed();
        self.look_at_utilization(&gpu, at);
        if let Some(memory) = self.keep("memory_used_bytes", gpu.memory_info()) {
            self.memory_used = self.memory_used.max(Some(memory.used));
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
        }
        for process in self.keep("memory_process_bytes", gpu.running_compute_processes()).unwrap_or_default() {
            if let UsedGpuMemory::Used(bytes) = process.used_gpu_memory {
                let most = self.processes.entry(process.pid).or_insert(0);
                *most = bytes.max(*most);
            }
        }
    }

    /// The driver's time-stamped samples; where it has none, its current figure.
    fn look_at_utilization(&mut self, gpu: &Gpu, at: Duration) {
        // The one before the begin says how far back the first one inside reaches.
        let since = self.utilization.last_us().unwrap_or(self.begun_us.saturating_sub(2_000_000));
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
        if let Ok(rates) = gpu.utilization_rates() {
            self.rates.push(at, f64::from(rates.gpu) / 100.0);
        }
    }

    fn end(mut self, nvml: &Nvml, idle: Option<&Idle>, pids: &[u32]) -> GpuSamples {
        self.tick(nvml);
        let (duration, end_us) = (self.begun.elapsed(), wall_us());
        let energy_end = match nvml.device_by_uuid(self.uuid.as_str()) {
            Ok(gpu) => self.keep("energy_j", gpu.total_energy_consumption()),
            Err(error) => self.keep("gpu", Err(error)),
        };
        if self.lost {
            return self.lost_samples();
        }
        let counted = self.energy_begin_mj.zip(energy_end).filter(|(a, b)| b > a).map(|(a, b)| (b - a) as f64 / 1e3);
        let sampled_w = self.power.mean(duration);
        let process = pids.iter().filter_map(|pid| self.processes.get(pid)).sum::<u64>();
        let used = self.memory_used;
        let gpu = GpuUse {
            utilization_ratio: self.utilization.mean(self.begun_us, end_us).or_else(|| self.rates.mean(duration)),
            memory_used_bytes: used,
            memory_used_ratio: used.zip(self.memory_total).map(|(u, t)| u as f64 / t as f64),
            memory_delta_bytes: used.zip(idle).map(|(u, i)| u as i64 - i.memory_used_bytes as i64),
            memory_process_bytes: (process > 0).then_some(process),
            power_w: counted.map(|j| j / duration.as_secs_f64()).or(sampled_w),
            energy_j: counted.or_else(|| sampled_w.map(|w| w * duration.as_secs_f64())),
            sm_clock_mhz: self.clock.mean(duration),
            temperature_c: self.temperature.map(f64::from),
            throttle: throttle_names(self.throttle),
        };
        let mut samples = GpuSamples::default();
        self.reasons(&gpu, idle, &mut samples.unavailable);
        self.warn(&gpu, idle, &mut samples.warnings);
        samples.gpu = Some(gpu);
        samples
    }

    /// Why each figure that is null is null.
    fn reasons(&self, gpu: &GpuUse, idle: Option<&Idle>, unavailable: &mut BTreeMap<String, Reason>) {
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
        ];
        for (figure, _) in missing.into_iter().filter(|(_, is_missing)| *is_missing) {
            let (code, message) = match (self.errors.get(figure), figure) {
                (Some(failed), _) => (failed.code, failed.message.clone()),
                (None, "memory_delta_bytes") if idle.is_none() => {
                    ("no_baseline", "the device was not seen before the engine was deployed".into())
                }
                (None, "memory_process_bytes") => {
                    ("process_not_seen", "the driver lists no process of the engine, as within a container".into())
                }
                (None, _) => ("no_samples", "the driver gave no sample in the measured time".into()),
            };
            unavailable.insert(format!("gpu.{figure}"), Reason { code: code.into(), message });
        }
    }

    fn warn(&self, gpu: &GpuUse, idle: Option<&Idle>, warnings: &mut Vec<Warning>) {
        let slow: Vec<_> = gpu.throttle.iter().filter(|name| SLOWING.contains(&name.as_str())).cloned().collect();
        if !slow.is_empty() {
            let message = format!("the GPU lowered its clocks ({}); improve cooling or power", slow.join(", "));
            warnings.push(Warning { code: "throttled".into(), message });
        }
        let foreign = idle.map_or(&[][..], |idle| &idle.foreign_pids);
        let stayed: BTreeSet<_> = foreign.iter().filter(|pid| self.processes.contains_key(pid)).collect();
        if !stayed.is_empty() {
            let message = format!("processes {stayed:?} of others used the GPU too; stop them and measure again");
            warnings.push(Warning { code: "foreign_process".into(), message });
        }
    }

    fn lost_samples(self) -> GpuSamples {
        let message = "the GPU was lost while the point ran (it fell off the bus or needs a reset)".to_owned();
        let reason = Reason { code: "gpu_lost".into(), message: message.clone() };
        let warning = Warning { code: "gpu_lost".into(), message: format!("{message}; look at dmesg") };
        GpuSamples { gpu: None, warnings: vec![warning], unavailable: BTreeMap::from([("gpu".into(), reason)]) }
    }
}

/// Reasons that make a measurement slower than the device can be.
const SLOWING: [&str; 4] = ["hw_slowdown", "hw_thermal_slowdown", "sw_thermal_slowdown", "sw_power_cap"];

/// Being idle is no throttling.
fn throttle_names(reasons: ThrottleReasons) -> Vec<String> {
    (reasons - ThrottleReasons::GPU_IDLE - ThrottleReasons::NONE)
        .iter_names()
        .map(|(name, _)| name.to_ascii_lowercase())
        .collect()
}
