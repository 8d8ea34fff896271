//! What is said of a GPU against the analytic truth of the trace that a stub driver replays (`tests/nvml-stub`), through the
//! real wrapper. A replay takes its time, less than a second each; the monitor looks as much more often.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use modelmeter_meter::Samples;
use modelmeter_nvml_stub::{Gpu, Moment, Trace, install};
use modelmeter_worker::sample::{Monitor, Probes};
use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tempfile::TempDir;

const TICK: Duration = Duration::from_millis(2);
/// The monitor's thread may be woken this late where all cores are busy.
const WOKEN_MS: f64 = 20.0;
const MIB: u64 = 1 << 20;

fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64
}

/// A driver that replays a trace.
struct Replay {
    trace: Trace,
    begins_at_us: u64,
    monitor: Monitor,
    _folder: TempDir,
}

impl Replay {
    fn start(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/traces").join(name).with_extension("toml");
        let begins_at_us = now_us();
        let text = format!("begins_at_us = {begins_at_us}\n{}", std::fs::read_to_string(path).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let library = install(folder.path(), name, &text).unwrap();
        let monitor = Monitor::open(Some(library), TICK).unwrap();
        Self { trace: Trace::parse(&text).unwrap(), begins_at_us, monitor, _folder: folder }
    }

    fn ms(&self) -> f64 {
        (now_us() - self.begins_at_us) as f64 / 1e3
    }

    fn wait_until(&self, ms: f64) {
        std::thread::sleep(Duration::from_secs_f64((ms - self.ms()).max(0.0) / 1e3));
    }

    fn gpu(&self, uuid: &str) -> &Gpu {
        self.trace.devices().find(|gpu| gpu.uuid == uuid).unwrap()
    }

    /// What an engine (this process) did from one time to another, with the baseline taken at the begin of the trace.
    fn measure(&self, uuid: &str, from_ms: f64, until_ms: f64, model_bytes: Option<u64>) -> Measured<'_> {
        let idle = self.monitor.idle(uuid).unwrap();
        assert!(self.ms() < 100.0, "the baseline came late, at {} ms", self.ms());
        let probes = Probes::new(Some(std::process::id()));
        let probes = probes.with_gpu(&self.monitor, uuid, Some(idle)).with_model_bytes(model_bytes);
        self.wait_until(from_ms);
        let before_ms = self.ms();
        let running = probes.begin();
        let from = [before_ms, self.ms()];
        self.wait_until(until_ms);
        let before_ms = self.ms();
        let samples = running.end();
        Measured { samples, from, until: [before_ms, self.ms()], gpu: self.gpu(uuid) }
    }
}

/// What was said, and when it began and ended: between two times each.
struct Measured<'a> {
    samples: Samples,
    from: [f64; 2],
    until: [f64; 2],
    gpu: &'a Gpu,
}

impl Measured<'_> {
    fn mean(&self, of: impl Fn(&Moment) -> f64) -> f64 {
        self.gpu.mean(self.from[1], self.until[0], of)
    }

    /// Within 1 % of the trace's mean.
    fn is_mean(&self, what: &str, said: Option<f64>, of: impl Fn(&Moment) -> f64) {
        let truth = self.mean(of);
        let said = said.unwrap_or_else(|| panic!("{what} is missing: {:?}", self.samples.unavailable));
        assert!((said - truth).abs() <= 0.01 * truth, "{what}: {said}, in truth {truth}");
    }

    /// Within 1 % of the energy of the time that it may have covered.
    fn is_energy(&self) {
        let joules = |from, until| self.gpu.integral(from, until, |m| m.power_w) / 1e3;
        let [least, most] = [joules(self.from[1] + WOKEN_MS, self.until[0]), joules(self.from[0], self.until[1])];
        let said = self.samples.gpu.as_ref().unwrap().energy_j.unwrap();
        assert!(said >= 0.99 * least && said <= 1.01 * most, "energy: {said}, in truth {least} to {most}");
    }

    fn codes(&self) -> Vec<&str> {
        self.samples.warnings.iter().map(|w| w.code.as_str()).collect()
    }

    fn reason(&self, path: &str) -> &str {
        self.samples.unavailable.get(path).map_or("", |reason| &reason.code)
    }
}

#[test]
fn a_busy_gpu_is_seen_as_it_was() {
    let replay = Replay::start("busy");
    let device = replay.monitor.devices().unwrap().remove(0);
    assert_eq!((device.class.as_str(), device.index), ("nvidia-h100-80gb-hbm3", Some(0)));
    assert_eq!((device.driver.as_deref(), device.cuda.as_deref()), (Some("570.86.15"), Some("12.8")));
    assert_eq!((device.ecc_enabled, device.mig_enabled), (Some(true), Some(false)));
    assert_eq!(device.memory_total_bytes, Some(81_559 * MIB));
    // Fully busy just before: what is not clipped shows.
    let run = replay.measure("GPU-busy", 250.0, 850.0, None);
    let gpu = run.samples.gpu.as_ref().unwrap();
    run.is_mean("utilization", gpu.utilization_ratio, |m| m.busy);
    run.is_mean("power", gpu.power_w, |m| m.power_w);
    run.is_mean("clock", gpu.sm_clock_mhz, |m| f64::from(m.sm_mhz));
    run.is_energy();
    assert_eq!(gpu.memory_used_bytes, Some(21_600 * MIB));
    assert_eq!(gpu.memory_delta_bytes, Some(21_000 * MIB as i64));
    assert_eq!(gpu.memory_process_bytes, Some(21_000 * MIB));
    assert!((gpu.memory_used_ratio.unwrap() - 21_600.0 / 81_559.0).abs() < 1e-9);
    assert_eq!((gpu.temperature_c, gpu.throttle.len()), (Some(60.0), 0));
    assert!(run.samples.warnings.is_empty() && run.samples.unavailable.is_empty(), "{:?}", run.samples);
}

#[test]
fn an_idle_gpu_has_zeros_not_nulls() {
    let replay = Replay::start("idle");
    let run = replay.measure("GPU-idle", 50.0, 350.0, None);
    let gpu = run.samples.gpu.as_ref().unwrap();
    assert_eq!((gpu.utilization_ratio, gpu.memory_delta_bytes), (Some(0.0), Some(0)));
    run.is_mean("power", gpu.power_w, |m| m.power_w);
    run.is_energy();
    assert!(gpu.throttle.is_empty() && run.codes().is_empty(), "being idle is no throttling: {:?}", run.samples);
    assert_eq!((gpu.memory_process_bytes, run.reason("gpu.memory_process_bytes")), (None, "process_not_seen"));
}

#[test]
fn memory_that_grows_is_its_most_and_an_old_card_is_sampled() {
    let replay = Replay::start("growth");
    let run = replay.measure("GPU-growth", 250.0, 650.0, Some(MIB));
    let gpu = run.samples.gpu.as_ref().unwrap();
    assert_eq!(gpu.memory_used_bytes, Some(3200 * MIB));
    assert_eq!(gpu.memory_delta_bytes, Some(3000 * MIB as i64));
    assert_eq!(gpu.memory_process_bytes, Some(3000 * MIB));
    run.is_mean("utilization", gpu.utilization_ratio, |m| m.busy);
    run.is_mean("power", gpu.power_w, |m| m.power_w);
    run.is_energy();
    assert!(run.samples.unavailable.is_empty(), "{:?}", run.samples.unavailable);
    assert!(run.codes().is_empty(), "memory that moves with the load is not preallocated: {:?}", run.samples.warnings);
}

#[test]
fn throttling_is_told_with_its_share_of_the_time() {
    let replay = Replay::start("throttled");
    let run = replay.measure("GPU-throttled", 120.0, 1200.0, None);
    let gpu = run.samples.gpu.as_ref().unwrap();
    run.is_mean("clock", gpu.sm_clock_mhz, |m| f64::from(m.sm_mhz));
    assert_eq!(gpu.throttle, ["sw_power_cap", "sw_thermal_slowdown"]);
    assert_eq!((gpu.temperature_c, run.codes()), (Some(90.0), vec!["throttled"]));
    let message = &run.samples.warnings[0].message;
    let share: f64 = message.split_once(" %").unwrap().0.rsplit(' ').next().unwrap().parse().unwrap();
    let truth = 100.0 * run.mean(|m| f64::from(u8::from(!m.throttle.is_empty())));
    // Where all cores are busy, the looks at both ends may be late.
    assert!((share - truth).abs() <= 2.0 + 200.0 * WOKEN_MS / 1080.0, "{message}; in truth {truth}");
}

#[test]
fn a_touch_of_the_limit_is_no_warning() {
    let replay = Replay::start("throttled");
    let run = replay.measure("GPU-throttled", 50.0, 600.0, None);
    assert_eq!(run.samples.gpu.as_ref().unwrap().throttle, ["sw_power_cap"]);
    // 15 of 550 ms.
    assert!(run.codes().is_empty(), "{:?}", run.samples.warnings);
}

#[test]
fn a_partitioned_gpu_is_its_instances_and_what_they_do_not_tell_is_null_with_the_reason() {
    let replay = Replay::start("mig");
    let devices = replay.monitor.devices().unwrap();
    let told: Vec<_> = devices.iter().map(|d| (d.class.as_str(), d.uuid.as_deref().unwrap(), d.index)).collect();
    let class = "nvidia-a100-sxm4-40gb-mig-";
    let expected = [(format!("{class}3g-20gb"), "MIG-a"), (format!("{class}1g-5gb"), "MIG-b")];
    assert_eq!(told, expected.each_ref().map(|(class, uuid)| (class.as_str(), *uuid, Some(0))));
    assert!(devices.iter().all(|d| (d.mig_enabled, d.ecc_enabled) == (Some(true), Some(true))));
    let run = replay.measure("MIG-a", 20.0, 120.0, None);
    let gpu = run.samples.gpu.as_ref().unwrap();
    assert_eq!((gpu.utilization_ratio, gpu.power_w, gpu.energy_j, gpu.memory_process_bytes), (None, None, None, None));
    assert_eq!(run.samples.unavailable.len(), 4, "{:?}", run.samples.unavailable);
    for path in ["gpu.utilization_ratio", "gpu.power_w", "gpu.energy_j", "gpu.memory_process_bytes"] {
        assert_eq!(run.reason(path), "not_supported", "{path}");
    }
    assert_eq!((gpu.memory_used_bytes, gpu.memory_delta_bytes), (Some(4000 * MIB), Some(0)));
    run.is_mean("clock", gpu.sm_clock_mhz, |m| f64::from(m.sm_mhz));
}

#[test]
fn a_gpu_that_is_lost_in_the_middle_leaves_no_figures_but_a_reason() {
    let replay = Replay::start("lost");
    let run = replay.measure("GPU-lost", 100.0, 600.0, None);
    assert_eq!((run.samples.gpu.as_ref(), run.reason("gpu"), run.codes()), (None, "gpu_lost", vec!["gpu_lost"]));
    assert!(run.samples.engine_cpu.is_some(), "the rest stands");
    assert!(replay.monitor.devices().unwrap().is_empty(), "it is no slot any more");
    assert!(replay.monitor.idle("GPU-lost").is_err());
}

#[test]
fn a_gpu_that_cannot_be_opened_leaves_nulls_that_say_so() {
    let replay = Replay::start("idle");
    let samples = Probes::new(None).with_gpu(&replay.monitor, "GPU-of-yesterday", None).begin().end();
    let reason = |path: &str| samples.unavailable[path].clone();
    assert_eq!(
        (reason("gpu.power_w").code.as_str(), reason("gpu.memory_delta_bytes").code.as_str()),
        ("nvml", "no_baseline")
    );
    assert!(reason("gpu.power_w").message.starts_with("NVML says: "), "{:?}", samples.unavailable);
    for path in ["gpu.memory_process_bytes", "gpu.utilization_ratio", "gpu.throttle"] {
        assert_eq!(reason(path), reason("gpu.power_w"), "{path}");
    }
}

#[test]
fn several_gpus_are_told_apart_and_a_dead_one_is_no_slot() {
    let replay = Replay::start("several");
    let devices = replay.monitor.devices().unwrap();
    let names: Vec<_> = devices.iter().map(|d| (d.index.unwrap(), d.uuid.as_deref().unwrap())).collect();
    assert_eq!(names, [(0, "GPU-a"), (2, "GPU-b")]);
    std::thread::scope(|scope| {
        for uuid in ["GPU-a", "GPU-b"] {
            let replay = &replay;
            scope.spawn(move || {
                let run = replay.measure(uuid, 100.0, 400.0, None);
                let gpu = run.samples.gpu.as_ref().unwrap();
                run.is_mean("utilization", gpu.utilization_ratio, |m| m.busy);
                run.is_mean("power", gpu.power_w, |m| m.power_w);
                run.is_energy();
                assert_eq!(gpu.memory_used_bytes, Some(run.gpu.timeline[0].memory_mib * MIB));
            });
        }
    });
}

#[test]
fn others_on_the_device_and_reserved_memory_are_told_of() {
    let replay = Replay::start("foreign");
    let run = replay.measure("GPU-foreign", 250.0, 750.0, Some(100 * MIB));
    assert_eq!(run.codes(), ["foreign_process", "memory_preallocated"]);
    let [foreign, reserved] = [0, 1].map(|i| run.samples.warnings[i].message.as_str());
    assert!(foreign.starts_with("process 4194305 and 1 more of others"), "{foreign}");
    assert!(reserved.contains("201 times the model") && reserved.contains("TF_FORCE_GPU_ALLOW_GROWTH"), "{reserved}");
    assert_eq!(run.samples.gpu.as_ref().unwrap().memory_process_bytes, Some(19_900 * MIB));
}

#[test]
fn a_large_model_may_fill_the_device() {
    let replay = Replay::start("foreign");
    let run = replay.measure("GPU-foreign", 250.0, 500.0, Some(19_000 * MIB));
    assert_eq!(run.codes(), ["foreign_process"]);
}

#[test]
fn no_driver_is_one_clear_line() {
    let why = Monitor::open(Some(PathBuf::from("/nowhere/libnvidia-ml.so.1")), TICK).unwrap_err();
    assert_eq!(why, "/nowhere/libnvidia-ml.so.1 cannot be loaded; install the NVIDIA driver to use one");
    let folder = tempfile::tempdir().unwrap();
    let library = install(folder.path(), "broken", "no trace").unwrap();
    assert_eq!(Monitor::open(Some(library), TICK).unwrap_err(), "the NVIDIA driver is not loaded");
}
