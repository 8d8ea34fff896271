//! NVIDIA GPUs through NVML, on a thread of its own behind a channel: the library blocks.

mod run;

use super::Launched;
use modelmeter_common::{
    device::{Device, DeviceKind, class_of},
    part::{GpuUse, Reason, Warning},
};
use nvml_wrapper::{Device as Gpu, Nvml, cuda_driver_version_major, cuda_driver_version_minor, error::NvmlError};
use run::Run;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{OnceLock, mpsc},
    time::{Duration, Instant},
};

/// Between two looks at a device that is in use.
const TICK: Duration = Duration::from_millis(100);
/// Names another library, for drivers in unusual places and for tests.
const LIBRARY_VARIABLE: &str = "MODELMETER_NVML";
/// Source: nvml.h, NVML_DEVICE_MIG_ENABLE.
const MIG_ENABLED: u32 = 1;
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
    End { id: u64, idle: Option<Idle>, engine: Launched, reply: mpsc::Sender<GpuSamples> },
}

impl Monitor {
    /// The one of this process. An error is a clear line on why there are no GPUs.
    pub fn shared() -> Result<&'static Self, &'static str> {
        static SHARED: OnceLock<Result<Monitor, String>> = OnceLock::new();
        let open = || Self::open(std::env::var_os(LIBRARY_VARIABLE).map(PathBuf::from), TICK);
        SHARED.get_or_init(open).as_ref().map_err(String::as_str)
    }

    /// Loads the library, by its name if no path is given, and starts its thread, which looks at a device in use every
    /// `tick`. An error is a clear line on why there are no GPUs.
    pub fn open(library: Option<PathBuf>, tick: Duration) -> Result<Self, String> {
        let (orders, inbox) = mpsc::channel();
        let (opened, result) = mpsc::channel();
        let name = "modelmeter-nvml".to_owned();
        let body = move || match open_library(library.as_deref()) {
            Ok(nvml) => {
                let _ = opened.send(Ok(()));
                serve(&nvml, &inbox, tick);
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

    /// Ends it.
    pub(super) fn end(&self, id: u64, idle: Option<Idle>, engine: Launched) -> GpuSamples {
        let (reply, answer) = mpsc::channel();
        let _ = self.orders.send(Order::End { id, idle, engine, reply });
        answer.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            let reason = Reason { code: "nvml_hung".into(), message: "NVML does not answer".into() };
            GpuSamples { unavailable: BTreeMap::from([("gpu".into(), reason)]), ..GpuSamples::default() }
        })
    }
}

fn open_library(path: Option<&Path>) -> Result<Nvml, String> {
    let nvml = match path {
        Some(path) => Nvml::builder().lib_path(path.as_os_str()).init(),
        None => Nvml::init(),
    };
    nvml.map_err(|e| match e {
        NvmlError::LibloadingError(_) => {
            let name = path.unwrap_or(Path::new("libnvidia-ml.so.1"));
            format!("{} cannot be loaded; install the NVIDIA driver to use one", name.display())
        }
        NvmlError::DriverNotLoaded => "the NVIDIA driver is not loaded".into(),
        other => format!("NVML says: {other}"),
    })
}

fn serve(nvml: &Nvml, inbox: &mpsc::Receiver<Order>, tick: Duration) {
    let mut runs: BTreeMap<u64, Run> = BTreeMap::new();
    let mut next_tick = Instant::now();
    loop {
        let wait = if runs.is_empty() { Duration::from_secs(3600) } else { next_tick - Instant::now().min(next_tick) };
        match inbox.recv_timeout(wait) {
            Ok(Order::Devices(reply)) => drop(reply.send(devices(nvml))),
            Ok(Order::Idle(uuid, reply)) => drop(reply.send(idle(nvml, &uuid))),
            Ok(Order::Begin(id, uuid)) => {
                runs.insert(id, Run::begin(nvml, uuid));
                next_tick = Instant::now() + tick;
            }
            Ok(Order::End { id, idle, engine, reply }) => {
                if let Some(run) = runs.remove(&id) {
                    let _ = reply.send(run.end(nvml, idle.as_ref(), &engine));
                }
            }
            Ok(Order::Forget(id)) => drop(runs.remove(&id)),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                runs.values_mut().for_each(|run| run.tick(nvml));
                next_tick = Instant::now() + tick;
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn devices(nvml: &Nvml) -> Result<Vec<Device>, String> {
    let version = |cuda| format!("{}.{}", cuda_driver_version_major(cuda), cuda_driver_version_minor(cuda));
    let driver =
        Driver { version: nvml.sys_driver_version().ok(), cuda: nvml.sys_cuda_driver_version().ok().map(version) };
    let count = nvml.device_count().map_err(|e| format!("NVML says: {e}"))?;
    let answers = |index| {
        devices_of(nvml, index, &driver).unwrap_or_else(|error| {
            tracing::warn!(index, %error, "a GPU does not answer, so it is no slot");
            Vec::new()
        })
    };
    Ok((0..count).flat_map(answers).collect())
}

struct Driver {
    version: Option<String>,
    cuda: Option<String>,
}

/// A GPU, or the instances of one that is partitioned: then it cannot be used as a whole.
fn devices_of(nvml: &Nvml, index: u32, driver: &Driver) -> Result<Vec<Device>, NvmlError> {
    let gpu = nvml.device_by_index(index)?;
    let mig_enabled = gpu.mig_mode().ok().map(|mig| mig.current == MIG_ENABLED);
    let ecc_enabled = gpu.is_ecc_enabled().ok().map(|ecc| ecc.currently_enabled);
    let describe = |one: &Gpu| -> Result<Device, NvmlError> {
        let name = one.name()?;
        Ok(Device {
            kind: DeviceKind::Gpu,
            class: class_of(&name),
            name,
            index: Some(index),
            uuid: Some(one.uuid()?),
            driver: driver.version.clone(),
            cuda: driver.cuda.clone(),
            ecc_enabled,
            mig_enabled,
            memory_total_bytes: one.memory_info().ok().map(|m| m.total),
            cores: None,
        })
    };
    if mig_enabled != Some(true) {
        return Ok(vec![describe(&gpu)?]);
    }
    let instance = |nth| match gpu.mig_device_by_index(nth) {
        // Fewer instances than there may be.
        Err(NvmlError::NotFound) => None,
        found => Some(found.and_then(|instance| describe(&instance))),
    };
    (0..gpu.mig_device_count()?).filter_map(instance).collect()
}

fn idle(nvml: &Nvml, uuid: &str) -> Result<Idle, String> {
    let gpu = nvml.device_by_uuid(uuid).map_err(|e| e.to_string())?;
    let memory_used_bytes = gpu.memory_info().map_err(|e| e.to_string())?.used;
    let foreign_pids = gpu.running_compute_processes().unwrap_or_default().iter().map(|p| p.pid).collect();
    Ok(Idle { memory_used_bytes, foreign_pids })
}
