//! A job in this process: what this machine would measure, and then coordinator and worker to do so.

use crate::{
    client::Client,
    embedded::{self, Embedded},
    job::{Job, Target},
    material::Material,
    models::{self, Local},
    notes,
    progress::Progress,
    servers::discovery,
};
use modelmeter_common::{Problem, config::Config, request::Request, task::Cell};
use modelmeter_coordinator::plan::{
    alone::{self, Planned},
    pool::{self, Pool},
};
use modelmeter_worker::{
    self as worker, Patience, SlotOptions,
    engine::discover::{self, Offer},
    inspector::{self, Custom, ServerWait},
    sample, slots,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// A job as this machine would do it: nothing is started, stored or held yet.
pub(crate) struct Sketch {
    pub request: Request,
    pub material: Material,
    pub pools: Vec<Pool>,
    target: Target,
    inspectors: BTreeMap<String, Custom>,
    offer: Offer,
    slots: Vec<SlotOptions>,
    cells: Vec<Cell>,
}

impl Sketch {
    /// Plans a job. Everything that is wrong with the input is said here, before anything starts.
    ///
    /// # Errors
    /// What is wrong with the input; `not_installed` where nothing of it can run here.
    pub async fn of(config: &Config, mut job: Job, progress: &Progress) -> Result<Self, Problem> {
        embedded::writable(&config.home)?;
        let offer = offer(&job, config, progress)?;
        if let Some(name) = &job.request.inspector {
            job.inspectors.extend(inspector::configured(config)?);
            inspector::find(name, &job.request.load, &job.inspectors)?;
        }
        let slots = match &job.target {
            Target::Endpoint { device_class, .. } => slots::remote(device_class),
            _ => slots::of_words(&job.request.devices, &offer.specs),
        };
        slots::check_stranded(&job.request, &offer.specs, &slots)?;
        // Words may name one device of this machine; its class is what a request asks for.
        let devices = slots::classes(&job.request.devices);
        let stop = &job.request.stop;
        let patience = ServerWait {
            timeout: Duration::from_millis(stop.timeout_ms),
            ready: if job.request.no_wait { Duration::ZERO } else { config.engine.ready_timeout() },
            say: &|words| progress.say(&words),
        };
        let local = models::local(&job.target, &config.home, patience).await?;
        let mut request = Request { devices, ..job.request };
        let material = material(config, &job.target, &mut request, local).await?;
        discovery(config).check_settings(&request, &offer.specs)?;
        let pools = pools(&slots, &offer, &job.inspectors);
        let Planned { cells, note } = alone::plan(&mut request, &material.model, &pools, job.usual_budget)?;
        note.iter().for_each(|note| progress.say(note));
        let Job { target, inspectors, .. } = job;
        Ok(Self { request, material, pools, target, inspectors, offer, slots, cells })
    }

    /// Starts coordinator and worker, and puts model and data into the hub: the request can be submitted then.
    ///
    /// # Errors
    /// `busy` where another process measures and is not waited for; `storage`; of the worker's start.
    pub async fn start(self, config: &Config, progress: &Progress) -> Result<(Client, Embedded, Request), Problem> {
        if let Some(note) = no_gpus(&self.target, &self.request) {
            progress.say(&note);
        }
        notes::of_batch(&self.request, &self.material.model).iter().for_each(|note| progress.say(note));
        let patience = patience(self.request.no_wait, progress);
        let mut embedded = Embedded::start(&config.home, &patience).await?;
        match self.measured_by(&mut embedded, config, patience).await {
            Ok((client, request)) => Ok((client, embedded, request)),
            Err(problem) => {
                embedded.stop().await;
                Err(problem)
            }
        }
    }

    async fn measured_by(
        self,
        embedded: &mut Embedded,
        config: &Config,
        patience: Patience,
    ) -> Result<(Client, Request), Problem> {
        let mut client = embedded.client().await?;
        let Self { mut request, material, inspectors, mut offer, slots, cells, .. } = self;
        offer.leave_unused(&cells, &slots::kinds(&slots));
        material.upload(&mut request, &config.home, &mut client).await?;
        embedded.add_worker(config, slots, offer, inspectors, patience).await?;
        // There is no other worker to wait for.
        Ok((client, Request { no_wait: true, ..request }))
    }
}

/// The model and data of a job; the local hub is opened read-only, so that a running job is not disturbed.
async fn material(
    config: &Config,
    target: &Target,
    request: &mut Request,
    local: Option<Local>,
) -> Result<Material, Problem> {
    let hub = Embedded::start_read_only(&config.home).await?;
    let found = match hub.client().await {
        Ok(mut client) => Material::resolve(target, request, local, &mut client).await,
        Err(problem) => Err(problem),
    };
    hub.stop().await;
    found
}

/// What the worker in this process is given. An engine that cannot run here fails its own cells only, unless there is
/// no other.
fn offer(job: &Job, config: &Config, progress: &Progress) -> Result<Offer, Problem> {
    if let Target::Endpoint { endpoint, model, protocol, .. } = &job.target {
        let specs = vec![discover::endpoint(endpoint, model, *protocol, config)];
        return Ok(Offer { specs, ..Offer::default() });
    }
    let wanted = if job.request.engines == ["auto"] { &[][..] } else { &job.request.engines };
    let offer = discovery(config).offer(wanted)?;
    if let Some(problem) = offer.lack().filter(|_| offer.specs.is_empty()) {
        return Err(problem);
    }
    for (name, problem) in offer.lacking.engines.iter().filter(|_| !wanted.is_empty()) {
        progress.say(&notes::of_missing_engine(name, problem));
    }
    Ok(offer)
}

/// What the worker of these slots will announce: the pools as its coordinator will see them.
pub(crate) fn pools(slots: &[SlotOptions], offer: &Offer, inspectors: &BTreeMap<String, Custom>) -> Vec<Pool> {
    let of_slot = |slot: &SlotOptions| {
        let (engines, abilities) = worker::offered(&offer.specs, &offer.lacking, inspectors, slot.device.kind);
        Pool::of(&slot.device.class, engines, abilities)
    };
    pool::gathered(slots.iter().map(of_slot))
}

/// Patience with other processes that hold the same devices or home: wait for them, or with `--no-wait` refuse.
fn patience(no_wait: bool, progress: &Progress) -> Patience {
    if no_wait {
        return Patience::Refuse;
    }
    let say = progress.sayer();
    Patience::Wait(Arc::new(move |problem| say(&notes::waiting(problem))))
}

/// Why there are no GPUs, where some of this machine were asked for.
fn no_gpus(target: &Target, request: &Request) -> Option<String> {
    let here = !matches!(target, Target::Endpoint { .. });
    let asked = here && request.devices.iter().any(|word| word != "cpu");
    let why = asked.then(|| sample::devices().1).flatten();
    why.map(|why| format!("no GPUs here: {why}"))
}

#[cfg(test)]
mod tests;
