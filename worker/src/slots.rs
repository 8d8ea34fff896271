//! Slots: the devices of this machine that words mean, each to run one task at a time.

use crate::{engine::EngineSpec, sample};
use modelmeter_common::{
    Code, Problem,
    config::Worker,
    device::{ALL, ANY_GPU, Device, DeviceKind},
    engine,
    error::did_you_mean,
    request::Request,
};

/// One slot: a device that runs one task at a time.
#[derive(Clone, Debug)]
pub struct SlotOptions {
    /// The device.
    pub device: Device,
}

/// The kind of device of each slot.
pub fn kinds(slots: &[SlotOptions]) -> Vec<DeviceKind> {
    slots.iter().map(|slot| slot.device.kind).collect()
}

/// A slot for the CPU, and one for each GPU asked for that some engine can run on.
pub fn of_words(words: &[String], engines: &[EngineSpec]) -> Vec<SlotOptions> {
    let (devices, _) = sample::devices();
    let wanted = |device: &Device| device.kind == DeviceKind::Cpu || words.iter().any(|word| device.is_meant(word));
    let usable = |device: &Device| engines.iter().any(|engine| engine.runs_on(device.kind));
    let chosen = devices.into_iter().filter(|device| wanted(device) && usable(device));
    chosen.map(|device| SlotOptions { device }).collect()
}

/// The slot from which a server is measured that was not launched here.
pub fn remote(device_class: &str) -> Vec<SlotOptions> {
    let (devices, _) = sample::devices();
    let cores = devices.iter().find(|device| device.kind == DeviceKind::Cpu).and_then(|cpu| cpu.cores);
    vec![SlotOptions { device: Device::remote(device_class, cores) }]
}

/// The slots of the devices that a worker is told to measure on: the CPU as often as told, each GPU once.
///
/// # Errors
/// `not_installed` or `invalid_argument` for a device that is not here.
pub fn of_worker(settings: &Worker, engines: &[EngineSpec]) -> Result<Vec<SlotOptions>, Problem> {
    let (devices, no_gpus) = sample::devices();
    for word in &settings.devices {
        known(word, &devices, no_gpus.as_deref())?;
    }
    if settings.cpu_slots == 0 {
        return Err(Problem::invalid("cpu_slots", "0 is out of range")
            .with_hint("use 1 or more; to measure on GPUs only, leave cpu out of --devices"));
    }
    let chosen = |device: &Device| settings.devices.iter().any(|word| device.is_meant(word));
    let explicit = |device: &Device| settings.devices.iter().any(|word| word != ALL && device.is_meant(word));
    let mut slots = Vec::new();
    for device in devices.into_iter().filter(|device| chosen(device)) {
        let usable = engines.iter().any(|engine| engine.runs_on(device.kind));
        if !usable && !explicit(&device) {
            tracing::warn!(
                device = device.class,
                "no engine here can run on this device, so nothing is measured on it"
            );
            continue;
        }
        let count = if device.kind == DeviceKind::Cpu { settings.cpu_slots } else { 1 };
        slots.extend((0..count).map(|_| SlotOptions { device: device.clone() }));
    }
    Ok(slots)
}

fn known(word: &str, devices: &[Device], no_gpus: Option<&str>) -> Result<(), Problem> {
    if word == ALL || devices.iter().any(|device| device.is_meant(word)) {
        return Ok(());
    }
    if word == ANY_GPU {
        let problem = Problem::new(Code::NotInstalled, "there is no GPU here").with_field("devices");
        return Err(problem.with_hint(no_gpus.unwrap_or("the driver lists no GPU").to_owned()));
    }
    let names = || devices.iter().map(|device| device.class.as_str()).chain([ANY_GPU, ALL]);
    let meant = did_you_mean(word, names());
    let all = names().collect::<Vec<_>>().join(", ");
    Err(Problem::invalid("devices", format!("unknown device '{word}'"))
        .with_hint(format!("{meant}the devices here are {all}")))
}

/// Device words of a request, one that names a single device of this machine as its class.
pub fn classes(words: &[String]) -> Vec<String> {
    let (devices, _) = sample::devices();
    let class = |word: &String| {
        let named = devices.iter().find(|device| device.is_named(word));
        named.map_or_else(|| word.clone(), |device| device.class.clone())
    };
    words.iter().map(class).collect()
}

/// Refuses an engine of the configuration that no slot can run: the coordinator, which is told what slots offer, would not
/// know it.
///
/// # Errors
/// `invalid_argument`, naming the devices.
pub fn check_stranded(request: &Request, engines: &[EngineSpec], slots: &[SlotOptions]) -> Result<(), Problem> {
    let is_asked = |spec: &EngineSpec| request.engines.contains(&spec.name) && engine::find(&spec.name).is_none();
    let is_stranded = |spec: &EngineSpec| !slots.iter().any(|slot| spec.runs_on(slot.device.kind));
    let Some(spec) = engines.iter().find(|spec| is_asked(spec) && is_stranded(spec)) else { return Ok(()) };
    let message = format!(
        "engine {} runs on GPUs only, and there is none here that --devices {} means",
        spec.name,
        request.devices.join(", ")
    );
    Err(Problem::invalid("devices", message)
        .with_hint("use --devices gpu on a machine with a GPU; see `modelmeter engines`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu() -> Device {
        Device::cpu("Test CPU", None, Some(2))
    }

    #[test]
    fn devices_that_are_not_here_are_refused_with_the_reason() {
        assert!(known("cpu", &[cpu()], None).is_ok() && known("all", &[cpu()], None).is_ok());
        let gpu = known("gpu", &[cpu()], Some("libnvidia-ml.so.1 is not installed")).unwrap_err();
        assert_eq!(gpu.code, Code::NotInstalled);
        assert!(gpu.hint.unwrap().contains("libnvidia-ml"));
        assert!(known("cup", &[cpu()], None).unwrap_err().hint.unwrap().contains("did you mean 'cpu'"));
    }
}
