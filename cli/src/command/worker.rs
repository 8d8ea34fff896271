//! `worker`: measures on this machine what a coordinator hands out.

use super::{Context, coordinator::connect, patience};
use crate::{embedded, failure::Failure, interrupt, servers::discovery};
use modelmeter_common::Problem;
use modelmeter_worker::{self as worker, EngineSpec, SlotOptions, inspector, slots};

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
    let slots = slots::of_worker(settings, &offer.specs)?;
    let described = describe(&slots, &offer.specs);
    let stop = interrupt::listen()?;
    let patience = patience(no_wait);
    let started = async {
        let broker = connect(broker_url, &patience).await?;
        let options = worker::Options {
            coordinators: coordinators.clone(),
            slots,
            engines: offer.specs,
            lacking: offer.lacking,
            inspectors,
            patience,
            ..worker::Options::configured(config, broker.clone())?
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

fn describe(slots: &[SlotOptions], engines: &[EngineSpec]) -> String {
    let one = |(i, slot): (usize, &SlotOptions)| {
        let names: Vec<&str> =
            engines.iter().filter(|e| e.runs_on(slot.device.kind)).map(|e| e.name.as_str()).collect();
        format!("slot {i} {} ({})", slot.device.class, names.join(", "))
    };
    slots.iter().enumerate().map(one).collect::<Vec<_>>().join(", ")
}
