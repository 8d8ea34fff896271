//! Where a job runs: in this process, or on a cluster's workers.

use crate::{
    client::Client, embedded::Embedded, here::Sketch, job::Job, material::Material, models, notes, progress::Progress,
    servers::discovery,
};
use modelmeter_common::{Problem, config::Config, model::Model, request::Request, status::Dryrun};
use modelmeter_coordinator::plan::dryrun;
use modelmeter_worker::inspector::ServerWait;

/// A coordinator that has all that a request needs.
pub(crate) struct Place {
    pub client: Client,
    /// The coordinator and its worker, where they are in this process.
    pub embedded: Option<Embedded>,
    pub request: Request,
}

/// Prepares a job up to its submission.
///
/// # Errors
/// Everything that is wrong with the input, before any engine starts.
pub(crate) async fn prepare(config: &Config, job: Job, progress: &Progress) -> Result<Place, Problem> {
    if config.client.coordinators.is_empty() {
        let sketch = Sketch::of(config, job, progress).await?;
        let (client, embedded, request) = sketch.start(config, progress).await?;
        return Ok(Place { client, embedded: Some(embedded), request });
    }
    let (mut client, material, mut request) = on_cluster(config, job).await?;
    notes::of_batch(&request, &material.model).iter().for_each(|note| progress.say(note));
    material.upload(&mut request, &config.home, &mut client).await?;
    Ok(Place { client, embedded: None, request })
}

/// Says what a job would measure: nothing is measured, stored or held for it.
///
/// # Errors
/// As [`prepare`].
pub(crate) async fn plan(config: &Config, job: Job, progress: &Progress) -> Result<Dryrun, Problem> {
    let say_notes = |request: &Request, model: &Model| {
        notes::of_batch(request, model).iter().for_each(|note| progress.say(note));
    };
    if config.client.coordinators.is_empty() {
        let Sketch { request, material, pools, .. } = Sketch::of(config, job, progress).await?;
        say_notes(&request, &material.model);
        return dryrun::dryrun(&request.certified(), &material.model, &pools);
    }
    let (mut client, material, request) = on_cluster(config, job).await?;
    say_notes(&request, &material.model);
    // The data is fitted to the model already, and is of no use to a plan.
    client.plan(&Request { data: None, ..request }, &material.model).await
}

/// A cluster's coordinator, and what it is to measure.
async fn on_cluster(config: &Config, job: Job) -> Result<(Client, Material, Request), Problem> {
    if let Some(name) = job.inspectors.keys().next() {
        return Err(Problem::invalid(
            "inspector",
            format!("workers of a cluster cannot use '{name}', which is part of this program"),
        )
        .with_hint("measure without a coordinator, or use an inspector of the workers' configuration"));
    }
    // What the workers' own engines take, they alone know.
    discovery(config).check_settings(&job.request, &[])?;
    let mut client = Client::connect(&config.client.coordinators).await?;
    let local = models::local(&job.target, &config.home, ServerWait::NONE).await?;
    let mut request = job.request;
    let material = Material::resolve(&job.target, &mut request, local, &mut client).await?;
    Ok((client, material, request))
}
