//! `worker`: measures on this machine what a coordinator hands out.

use super::{Context, coordinator::connect, patience};
use crate::{embedded, interrupt, run::Failure, servers::discovery};
use modelmeter_common::{
    Code, Problem,
    config::Worker,
    device::{Device, DeviceKind},
    error::did_you_mean,
};
use modelmeter_worker::{self as worker, EngineSpec, SlotOptions, inspector, sample};

pub(super) async fn run(context: &Context, no_wait: bool) -> Result<u8, Failure> {
    let config = &context.config;
    let settings = &config.worker;
    let broker_url = settings.broker.as_deref().ok_or_else(|| {
        Problem::invalid("broker", "no address was given")
            .with_hint("for example --broker amqp://guest:guest@127.0.0.1:5672/%2f")
    })?;
    let coordinators =
        if settings.coordinators.is_empty() { &config.client.coordinators } else { &settings.coordinators };
    if coordinators.is_empty() {
        let problem = Problem::invalid("coordinator", "no address was given");
        return Err(problem.with_hint("for example --coordinator http://127.0.0.1:7600").into());
    }
    embedded::writable(&config.home)?;
    let offer = discovery(config).whole_offer(&settings.engines)?;
    let inspectors = inspector::configured(config)?;
    let slots = slots(settings, &offer.specs)?;
    let described = describe(&slots, &offer.specs);
    let stop = interrupt::listen()?;
    let patience = patience(no_wait);
    let started = async {
        let broker = connect(broker_url, &patience).await?;
        let options = worker::Options {
            name: settings.name.clone().unwrap_or_else(host_name),
            broker: broker.clone(),
            coordinators: coordinators.clone(),
            slots,
            engines: offer.specs,
            lacking: offer.lacking,
            inspectors,
            home: config.home.clone(),
            lock_dir: embedded::lock_dir(config),
            ports: embedded::port_policy(settings.ports),
            client_cpus: embedded::cpus("client_cpus", settings.client_cpus.as_deref())?,
            engine_cpus: embedded::cpus("engine_cpus", settings.engine_cpus.as_deref())?,
            shared_cpu: settings.shared_cpu,
            patience,
            labels: settings.labels.clone(),
        };
        let name = options.name.clone();
        Ok::<_, Problem>((worker::start(options).await?, broker, name))
    };
    let (mut handle, broker, name) = tokio::select! {
        started = started => started?,
        () = stop.cancelled() => return Err(interrupt::interrupted().into()),
    };
    eprintln!("worker {name} ready: {described}");
    let died = tokio::select! {
        () = stop.cancelled() => None,
        why = handle.wait() => Some(why),
    };
    handle.stop().await;
    broker.close().await;
    died.map_or(Ok(0), |why| Err(Failure::later(why)))
}

/// The slots of the devices asked for: the CPU as often as told, each GPU once.
fn slots(settings: &Worker, engines: &[EngineSpec]) -> Result<Vec<SlotOptions>, Problem> {
    let (devices, no_gpus) = sample::devices();
    for word in &settings.devices {
        known(word, &devices, no_gpus.as_deref())?;
    }
    if settings.cpu_slots == 0 {
        return Err(Problem::invalid("cpu_slots", "0 is out of range")
            .with_hint("use 1 or more; to measure on GPUs only, leave cpu out of --devices"));
    }
    let chosen = |device: &Device| settings.devices.iter().any(|word| device.is_meant(word));
    let explicit = |device: &Device| settings.devices.iter().any(|word| word != "all" && device.is_meant(word));
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
    if word == "all" || devices.iter().any(|device| device.is_meant(word)) {
        return Ok(());
    }
    if word == "gpu" {
        let problem = Problem::new(Code::NotInstalled, "there is no GPU here").with_field("devices");
        return Err(problem.with_hint(no_gpus.unwrap_or("the driver lists no GPU").to_owned()));
    }
    let names = || devices.iter().map(|device| device.class.as_str()).chain(["gpu", "all"]);
    let meant = did_you_mean(word, names());
    let all = names().collect::<Vec<_>>().join(", ");
    Err(Problem::invalid("devices", format!("unknown device '{word}'"))
        .with_hint(format!("{meant}the devices here are {all}")))
}

fn describe(slots: &[SlotOptions], engines: &[EngineSpec]) -> String {
    let one = |(i, slot): (usize, &SlotOptions)| {
        let names: Vec<&str> =
            engines.iter().filter(|e| e.runs_on(slot.device.kind)).map(|e| e.name.as_str()).collect();
        format!("slot {i} {} ({})", slot.device.class, names.join(", "))
    };
    slots.iter().enumerate().map(one).collect::<Vec<_>>().join(", ")
}

/// The host's name, as far as it can name a worker.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    let name: String = name.trim().chars().map(plain).take(64).collect();
    if name.is_empty() { "worker".into() } else { name }
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
