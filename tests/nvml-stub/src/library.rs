//! The entry points, with the C library's names, types and codes. Source: nvml.h, as `nvml-wrapper-sys` binds it.

use crate::trace::{Figure, Gpu, Moment, THROTTLE, Trace};
use nvml_wrapper_sys::bindings::*;
use std::{
    ffi::{CStr, OsStr, c_char, c_int, c_uint, c_ulonglong, c_void},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::{SystemTime, UNIX_EPOCH},
};

const MIB: u64 = 1 << 20;
/// Samples that the driver keeps.
const KEPT: u64 = 100;
/// Source: nvml.h, NVML_VALUE_NOT_AVAILABLE.
const NOT_AVAILABLE: u64 = u64::MAX;

const OK: nvmlReturn_t = nvmlReturn_enum_NVML_SUCCESS;

struct Replay {
    trace: Trace,
    begins_at_us: u64,
}

static REPLAY: OnceLock<Option<Replay>> = OnceLock::new();

fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64)
}

/// The file that this library was loaded from.
fn own_path() -> Option<PathBuf> {
    // SAFETY: dladdr fills the plain struct; its name is a string of the loader's that lives as long as the library.
    unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        if libc::dladdr(nvmlInit_v2 as *const c_void, &mut info) == 0 || info.dli_fname.is_null() {
            return None;
        }
        Some(Path::new(OsStr::from_bytes(CStr::from_ptr(info.dli_fname).to_bytes())).to_owned())
    }
}

fn load() -> Result<Replay, String> {
    let path = own_path().ok_or("the library does not know its own path")?.with_extension("toml");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let trace = Trace::parse(&text).map_err(|e| format!("{}: {e}", path.display()))?;
    let begins_at_us = trace.begins_at_us.unwrap_or_else(now_us);
    Ok(Replay { trace, begins_at_us })
}

impl Replay {
    fn get() -> Option<&'static Self> {
        REPLAY.get()?.as_ref()
    }

    /// Where the replay is; before the trace's begin it is negative.
    fn ms(&self) -> f64 {
        (now_us() as f64 - self.begins_at_us as f64) / 1e3
    }
}

/// A device's handle is one more than its place among [`Trace::devices`].
fn handle_of(replay: &Replay, is_it: impl Fn(&Gpu) -> bool) -> Option<nvmlDevice_t> {
    Some((replay.trace.devices().position(is_it)? + 1) as nvmlDevice_t)
}

fn gpu_of(device: nvmlDevice_t) -> Result<(&'static Replay, &'static Gpu), nvmlReturn_t> {
    let replay = Replay::get().ok_or(nvmlReturn_enum_NVML_ERROR_UNINITIALIZED)?;
    let index = (device as usize).wrapping_sub(1);
    let gpu = replay.trace.devices().nth(index).ok_or(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT)?;
    if gpu.at(replay.ms()).lost { Err(nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST) } else { Ok((replay, gpu)) }
}

/// A figure of a device, if it has that.
fn figure<T>(
    device: nvmlDevice_t,
    figure: Figure,
    of: impl FnOnce(&Replay, &Gpu) -> Result<T, nvmlReturn_t>,
) -> Result<T, nvmlReturn_t> {
    let (replay, gpu) = gpu_of(device)?;
    if gpu.lacks.contains(&figure) {
        return Err(nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED);
    }
    of(replay, gpu)
}

/// A figure of the present moment.
fn momentary<T>(device: nvmlDevice_t, which: Figure, of: impl FnOnce(&Moment) -> T) -> Result<T, nvmlReturn_t> {
    figure(device, which, |replay, gpu| Ok(of(gpu.at(replay.ms()))))
}

/// Writes a value where C wants it.
unsafe fn put<T>(to: *mut T, value: Result<T, nvmlReturn_t>) -> nvmlReturn_t {
    match value {
        // SAFETY: the caller of the entry point owns what it points to.
        Ok(value) => unsafe { to.write(value) },
        Err(code) => return code,
    }
    OK
}

unsafe fn put_text(to: *mut c_char, length: c_uint, text: Result<&str, nvmlReturn_t>) -> nvmlReturn_t {
    match text {
        Ok(text) if text.len() < length as usize => {
            // SAFETY: the caller's buffer has `length` bytes, and text and terminator are no longer.
            unsafe {
                to.copy_from_nonoverlapping(text.as_ptr().cast(), text.len());
                to.add(text.len()).write(0);
            }
            OK
        }
        Ok(_) => nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE,
        Err(code) => code,
    }
}

fn replay() -> Result<&'static Replay, nvmlReturn_t> {
    Replay::get().ok_or(nvmlReturn_enum_NVML_ERROR_UNINITIALIZED)
}

macro_rules! entry_points {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) $body:block)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// As in C: each pointer is null where nvml.h allows it, else valid for what is written.
        #[unsafe(no_mangle)]
        #[allow(unused_unsafe, reason = "some write nothing")]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> nvmlReturn_t {
            // SAFETY: the caller's promise.
            unsafe { $body }
        }
    )*};
}

entry_points! {
    /// Loads the trace; time begins.
    fn nvmlInit_v2() {
        let loaded = REPLAY.get_or_init(|| load().map_err(|why| eprintln!("nvml stub: {why}")).ok());
        if loaded.is_some() { OK } else { nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED }
    }

    /// Nothing to let go.
    fn nvmlShutdown() { OK }

    #[allow(missing_docs)]
    fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) {
        put_text(version, length, replay().map(|replay| replay.trace.driver.as_str()))
    }

    #[allow(missing_docs)]
    fn nvmlSystemGetCudaDriverVersion_v2(version: *mut c_int) {
        put(version, replay().map(|replay| replay.trace.cuda))
    }

    #[allow(missing_docs)]
    fn nvmlDeviceGetCount_v2(count: *mut c_uint) {
        put(count, replay().map(|replay| replay.trace.gpu.len() as c_uint))
    }

    /// A device that is lost still has a handle.
    fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut nvmlDevice_t) {
        let find = |replay: &Replay| {
            let wanted = replay.trace.gpu.get(index as usize)?;
            handle_of(replay, |gpu| std::ptr::eq(gpu, wanted))
        };
        put(device, replay().and_then(|replay| find(replay).ok_or(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT)))
    }

    #[allow(missing_docs)]
    fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, device: *mut nvmlDevice_t) {
        let wanted = CStr::from_ptr(uuid).to_bytes();
        let find = |replay: &Replay| handle_of(replay, |gpu| gpu.uuid.as_bytes() == wanted);
        put(device, replay().and_then(|replay| find(replay).ok_or(nvmlReturn_enum_NVML_ERROR_NOT_FOUND)))
    }

    /// As many as a GPU can be divided into, whether they are there or not.
    fn nvmlDeviceGetMaxMigDeviceCount(_device: nvmlDevice_t, count: *mut c_uint) {
        count.write(7);
        OK
    }

    #[allow(missing_docs)]
    fn nvmlDeviceGetMigDeviceHandleByIndex(device: nvmlDevice_t, index: c_uint, instance: *mut nvmlDevice_t) {
        let find = |(replay, gpu): (&Replay, &Gpu)| {
            let wanted = gpu.instance.get(index as usize)?;
            handle_of(replay, |one| std::ptr::eq(one, wanted))
        };
        put(instance, gpu_of(device).and_then(|found| find(found).ok_or(nvmlReturn_enum_NVML_ERROR_NOT_FOUND)))
    }

    #[allow(missing_docs)]
    fn nvmlDeviceGetName(device: nvmlDevice_t, name: *mut c_char, length: c_uint) {
        put_text(name, length, gpu_of(device).map(|(_, gpu)| gpu.name.as_str()))
    }

    #[allow(missing_docs)]
    fn nvmlDeviceGetUUID(device: nvmlDevice_t, uuid: *mut c_char, length: c_uint) {
        put_text(uuid, length, gpu_of(device).map(|(_, gpu)| gpu.uuid.as_str()))
    }

    #[allow(missing_docs)]
    fn nvmlDeviceGetMemoryInfo_v2(device: nvmlDevice_t, memory: *mut nvmlMemory_v2_t) {
        let found = figure(device, Figure::Memory, |replay, gpu| {
            let (total, used) = (gpu.memory_total_mib * MIB, gpu.at(replay.ms()).memory_mib * MIB);
            Ok(nvmlMemory_v2_t { version: 0, total, reserved: 0, free: total - used, used })
        });
        put(memory, found)
    }

    /// Asked without a list, as by the wrapper first: how many there are.
    fn nvmlDeviceGetComputeRunningProcesses_v3(
        device: nvmlDevice_t,
        count: *mut c_uint,
        infos: *mut nvmlProcessInfo_t
    ) {
        let listed = match momentary(device, Figure::Processes, |moment| moment.processes.clone()) {
            Ok(listed) => listed,
            Err(code) => return code,
        };
        let room = std::mem::replace(&mut *count, listed.len() as c_uint) as usize;
        if listed.is_empty() {
            return OK;
        }
        if infos.is_null() || room < listed.len() {
            return nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE;
        }
        for (i, (pid, mib)) in listed.iter().enumerate() {
            let pid = if pid == "self" { std::process::id() } else { pid.parse().unwrap_or(0) };
            let used = u64::try_from(*mib).map_or(NOT_AVAILABLE, |mib| mib * MIB);
            infos.add(i).write(nvmlProcessInfo_t {
                pid,
                usedGpuMemory: used,
                gpuInstanceId: c_uint::MAX,
                computeInstanceId: c_uint::MAX,
            });
        }
        OK
    }

    /// The mean of the driver's last window.
    fn nvmlDeviceGetUtilizationRates(device: nvmlDevice_t, rates: *mut nvmlUtilization_t) {
        let found = figure(device, Figure::Utilization, |replay, gpu| {
            let now = replay.ms();
            let busy = gpu.mean(now - gpu.sample_ms as f64, now, |moment| moment.busy);
            Ok(nvmlUtilization_t { gpu: (100.0 * busy).round() as c_uint, memory: 0 })
        });
        put(rates, found)
    }

    /// Utilization alone, newer than `last_seen_us`; asked without a list: how many the driver keeps.
    fn nvmlDeviceGetSamples(
        device: nvmlDevice_t,
        which: nvmlSamplingType_t,
        last_seen_us: c_ulonglong,
        value_type: *mut nvmlValueType_t,
        count: *mut c_uint,
        samples: *mut nvmlSample_t
    ) {
        let found = figure(device, Figure::Samples, |replay, gpu| {
            if which != nvmlSamplingType_enum_NVML_GPU_UTILIZATION_SAMPLES {
                return Err(nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED);
            }
            Ok(utilization(replay, gpu, last_seen_us))
        });
        let found = match found {
            Ok(found) => found,
            Err(code) => return code,
        };
        value_type.write(nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT);
        if samples.is_null() {
            count.write(KEPT as c_uint);
            return OK;
        }
        if found.is_empty() {
            return nvmlReturn_enum_NVML_ERROR_NOT_FOUND;
        }
        let written = found.len().min(*count as usize);
        for (i, (stamp, percent)) in found.into_iter().take(written).enumerate() {
            samples.add(i).write(nvmlSample_t { timeStamp: stamp, sampleValue: nvmlValue_t { uiVal: percent } });
        }
        count.write(written as c_uint);
        OK
    }

    /// In mJ since the trace began.
    fn nvmlDeviceGetTotalEnergyConsumption(device: nvmlDevice_t, energy: *mut c_ulonglong) {
        let found = figure(device, Figure::Energy, |replay, gpu| {
            Ok(gpu.integral(0.0, replay.ms().max(0.0), |moment| moment.power_w) as c_ulonglong)
        });
        put(energy, found)
    }

    /// In mW.
    fn nvmlDeviceGetPowerUsage(device: nvmlDevice_t, power: *mut c_uint) {
        put(power, momentary(device, Figure::Power, |moment| (moment.power_w * 1e3) as c_uint))
    }

    /// In MHz, every domain as the SM.
    fn nvmlDeviceGetClockInfo(device: nvmlDevice_t, _domain: nvmlClockType_t, clock: *mut c_uint) {
        put(clock, momentary(device, Figure::Clock, |moment| moment.sm_mhz))
    }

    /// In °C.
    fn nvmlDeviceGetTemperature(device: nvmlDevice_t, _sensor: nvmlTemperatureSensors_t, celsius: *mut c_uint) {
        put(celsius, momentary(device, Figure::Temperature, |moment| moment.celsius))
    }

    #[allow(missing_docs)]
    fn nvmlDeviceGetCurrentClocksThrottleReasons(device: nvmlDevice_t, reasons: *mut c_ulonglong) {
        put(reasons, momentary(device, Figure::Throttle, |moment| {
            THROTTLE.iter().filter(|(name, _)| moment.throttle.iter().any(|n| n == name)).map(|(_, bit)| bit).sum()
        }))
    }

    #[allow(missing_docs)]
    fn nvmlDeviceGetEccMode(device: nvmlDevice_t, current: *mut nvmlEnableState_t, pending: *mut nvmlEnableState_t) {
        let state = gpu_of(device).and_then(|(_, gpu)| gpu.ecc.ok_or(nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED));
        put(pending, state.map(nvmlEnableState_t::from));
        put(current, state.map(nvmlEnableState_t::from))
    }

    #[allow(missing_docs)]
    fn nvmlDeviceGetMigMode(device: nvmlDevice_t, current: *mut c_uint, pending: *mut c_uint) {
        let state = gpu_of(device).and_then(|(_, gpu)| gpu.mig.ok_or(nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED));
        put(pending, state.map(c_uint::from));
        put(current, state.map(c_uint::from))
    }
}

/// The driver's samples that are newer: stamp and percent, each the mean of the period before its stamp.
fn utilization(replay: &Replay, gpu: &Gpu, last_seen_us: u64) -> Vec<(u64, u32)> {
    let last = (replay.ms().max(0.0) as u64) / gpu.sample_ms;
    let sample = |n: u64| {
        let until = (n * gpu.sample_ms) as f64;
        let busy = gpu.mean(until - gpu.sample_ms as f64, until, |moment| moment.busy);
        (replay.begins_at_us + n * gpu.sample_ms * 1000, (100.0 * busy).round() as u32)
    };
    let first = (last + 1).saturating_sub(KEPT).max(1);
    (first..=last).map(sample).filter(|(stamp, _)| *stamp > last_seen_us).collect()
}
