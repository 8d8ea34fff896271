//! A job from start to end, the same for the command and the library: resolve, start what is needed, submit, watch,
//! fetch the results, stop what was started.

use crate::{
    client::Client,
    custom, data,
    embedded::{self, Embedded},
    engines,
    interrupt::interrupted,
    job::{Job, Target},
    models::{self, Local},
    progress::Progress,
};
use modelmeter_common::{
    Code, Problem, RequestId,
    config::{Config, Ports},
    device::CPU_CLASS,
    engine,
    profile::Profile,
    request::{Request, RequestState},
    status::{Dryrun, Status},
};
use modelmeter_coordinator::{expand, pool::Pool};
use modelmeter_worker::{self as worker, EngineSpec, SlotOptions, inspector, sample};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// After an interruption: how long cancelling and fetching what is there may take.
const FAREWELL: Duration = Duration::from_secs(4);
/// How often in a row a lost connection is tried again before a watch gives up.
const WATCH_RETRIES: u32 = 20;
const WATCH_PAUSE: Duration = Duration::from_millis(500);

/// How a job ended.
#[derive(Clone, PartialEq, Debug)]
pub struct Finished {
    /// The request that was made.
    pub request_id: RequestId,
    /// How it ended.
    pub state: RequestState,
    /// Whether the user interrupted it.
    pub interrupted: bool,
    /// Its profiles, failed cells included.
    pub profiles: Vec<Profile>,
}

impl Finished {
    /// 0 done, 1 failed, 3 some cells failed, 130 interrupted.
    pub fn exit_code(&self) -> u8 {
        match self.state {
            _ if self.interrupted => crate::interrupt::EXIT_INTERRUPTED,
            RequestState::Done => 0,
            RequestState::Partial => 3,
            RequestState::Failed | RequestState::Cancelled | RequestState::Running => 1,
        }
    }
}

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub struct Failure {
    /// What stood in the way.
    pub problem: Problem,
    /// The request was taken in before: nobody can mend it by asking otherwise.
    pub begun: bool,
}

impl Failure {
    /// Something went wrong with a request that runs.
    pub fn later(problem: Problem) -> Self {
        Self { problem, begun: true }
    }

    /// As [`Code::exit_code`]; 2 only as long as nothing has begun.
    pub fn exit_code(&self) -> u8 {
        match self.problem.code.exit_code() {
            2 if self.begun => 1,
            code => code,
        }
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self { problem, begun: false }
    }
}

/// Where a job runs.
struct Place {
    client: Client,
    embedded: Option<Embedded>,
    request: Request,
}

/// Measures. `stop` interrupts it: then what is measured already is given.
///
/// # Errors
/// Everything that is wrong with the input, before any engine starts; the loss of a request that runs.
pub async fn profile(
    config: &Config,
    job: Job,
    progress: &mut Progress,
    stop: &CancellationToken,
) -> Result<Finished, Failure> {
    let place = within(stop, prepare(config, job, progress)).await?;
    let Place { mut client, embedded, request } = place;
    let finished = measure(&mut client, &request, progress, stop).await;
    progress.finish();
    if let Some(embedded) = embedded {
        embedded.stop().await;
    }
    finished
}

/// Says what it would measure.
///
/// # Errors
/// As [`profile`].
pub async fn dry_run(
    config: &Config,
    job: Job,
    progress: &Progress,
    stop: &CancellationToken,
) -> Result<Dryrun, Problem> {
    // Nothing is measured: neither ports nor devices need to be free.
    let mut config = config.clone();
    config.worker.ports = Ports::Auto;
    config.worker.lock_dir = Some(config.home.join("locks"));
    let mut place = within(stop, prepare(&config, job, progress)).await?;
    let plan = place.client.plan(&place.request).await;
    if let Some(embedded) = place.embedded {
        embedded.stop().await;
    }
    plan
}

async fn within<T, E: From<Problem>>(
    stop: &CancellationToken,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    tokio::select! {
        biased;
        () = stop.cancelled() => Err(interrupted().into()),
        done = work => done,
    }
}

async fn prepare(config: &Config, job: Job, progress: &Progress) -> Result<Place, Problem> {
    if config.client.coordinators.is_empty() {
        return prepare_embedded(config, job, progress).await;
    }
    if let Some(name) = job.inspectors.keys().next() {
        return Err(Problem::invalid(
            "inspector",
            format!("the workers of a cluster do not have this program's '{name}'"),
        )
        .with_hint("measure in this process, or name an inspector of the workers' configuration"));
    }
    let mut client = Client::connect(&config.client.coordinators).await?;
    let local = models::local(&job.target, &config.home).await?;
    let mut request = job.request;
    request.model = models::in_hub(&job.target, local.as_ref(), &mut client).await?;
    data::store(&mut request, local.as_ref(), &config.home, &mut client).await?;
    Ok(Place { client, embedded: None, request })
}

async fn prepare_embedded(config: &Config, mut job: Job, progress: &Progress) -> Result<Place, Problem> {
    embedded::writable(&config.home)?;
    let engines = launchable(&job, config, progress)?;
    if let Some(name) = &job.request.inspector {
        job.inspectors.extend(custom::inspectors(config)?);
        inspector::find(name, &job.request.load, &job.inspectors)?;
    }
    // Words may name one device of this machine; its class is what a request asks for.
    let slots = embedded::slots(&job.request.devices, &engines);
    check_devices(&job.request, &engines, &slots)?;
    job.request.devices = embedded::classes(&job.request.devices);
    let local = models::local(&job.target, &config.home).await?;
    data::check(&mut job.request, local.as_ref().map(|local| &local.model))?;
    check_settings(&job.request, &engines)?;
    check_cells(&job.request, local.as_ref(), &engines, &slots)?;
    // Better said now than by each cell.
    worker::check_ports(&engines, &slots, embedded::port_policy(config.worker.ports))?;
    no_gpu_note(&job.request, progress);
    let mut embedded = Embedded::start(&config.home).await?;
    match into_embedded(&mut embedded, config, job, local, engines, slots).await {
        Ok((client, request)) => Ok(Place { client, embedded: Some(embedded), request }),
        Err(problem) => {
            embedded.stop().await;
            Err(problem)
        }
    }
}

async fn into_embedded(
    embedded: &mut Embedded,
    config: &Config,
    job: Job,
    local: Option<Local>,
    engines: Vec<EngineSpec>,
    slots: Vec<SlotOptions>,
) -> Result<(Client, Request), Problem> {
    let mut client = embedded.client().await?;
    let mut request = job.request;
    request.model = models::in_hub(&job.target, local.as_ref(), &mut client).await?;
    data::store(&mut request, local.as_ref(), &config.home, &mut client).await?;
    embedded.add_worker(config, slots, engines, job.inspectors).await?;
    // There is no other worker to wait for.
    Ok((client, Request { no_wait: true, ..request }))
}

/// The engines that the worker in this process is given. One that cannot run here fails its own cells only, unless
/// there is no other.
fn launchable(job: &Job, config: &Config, progress: &Progress) -> Result<Vec<EngineSpec>, Problem> {
    if let Target::Endpoint { address, model, protocol, .. } = &job.target {
        return Ok(vec![engines::endpoint(address, model, *protocol)]);
    }
    if job.request.engines == ["auto"] {
        return engines::specs(&[], config);
    }
    let (mut specs, mut lacking) = (Vec::new(), None);
    for name in &job.request.engines {
        match engines::specs(std::slice::from_ref(name), config) {
            Ok(found) => specs.extend(found),
            Err(problem) if problem.code == Code::NotInstalled => {
                let hint = problem.hint.as_deref().unwrap_or_default();
                progress.say(&format!("{}: {hint}; its cells will fail", problem.message));
                lacking = Some(problem);
            }
            Err(problem) => return Err(problem),
        }
    }
    match lacking {
        Some(problem) if specs.is_empty() => Err(problem),
        _ => Ok(specs),
    }
}

/// Settings of the engines that are known here, each value by itself: a list gives a cell for each.
fn check_settings(request: &Request, engines: &[EngineSpec]) -> Result<(), Problem> {
    for (engine, settings) in &request.engine_settings {
        let ours = modelmeter_serving::ENGINES.contains(&engine.as_str()) || engine == "torchscript";
        let spec = engines.iter().find(|spec| spec.name == *engine);
        for (setting, value) in settings {
            let values = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
            for one in values {
                let one = [(setting.clone(), one)].into();
                match spec {
                    _ if ours => modelmeter_serving::check_settings(engine, &one)?,
                    Some(spec) => spec.check_settings(&one)?,
                    None => {}
                }
            }
        }
    }
    Ok(())
}

/// An engine of the configuration that no slot can run would be unknown to the coordinator, which is told what slots offer.
fn check_devices(request: &Request, engines: &[EngineSpec], slots: &[SlotOptions]) -> Result<(), Problem> {
    let is_asked = |spec: &EngineSpec| request.engines.contains(&spec.name) && engine::find(&spec.name).is_none();
    let is_stranded = |spec: &EngineSpec| !slots.iter().any(|slot| spec.runs_on(slot.device.kind));
    let Some(spec) = engines.iter().find(|spec| is_asked(spec) && is_stranded(spec)) else { return Ok(()) };
    let message = format!("engine {} runs on GPUs alone: {} means none here", spec.name, request.devices.join(", "));
    Err(Problem::invalid("devices", message).with_hint("--devices gpu, where there is one; see `modelmeter engines`"))
}

/// Expands the request for a model that is at hand, so that what is wrong with it is said before anything starts.
fn check_cells(
    request: &Request,
    local: Option<&Local>,
    engines: &[EngineSpec],
    slots: &[SlotOptions],
) -> Result<(), Problem> {
    let Some(Local { model, .. }) = local else { return Ok(()) };
    let mut request = Request { model: model.id.to_string(), ..request.clone() };
    if request.engines == ["auto"] {
        let fits = |spec: &&EngineSpec| {
            spec.name != "null" && model.artifacts.iter().any(|a| spec.formats.contains(&a.format))
        };
        request.engines = engines.iter().filter(fits).map(|spec| spec.name.clone()).collect();
        if request.engines.is_empty() {
            let formats: Vec<&str> = model.artifacts.iter().map(|a| a.format.as_str()).collect();
            return Err(Problem::new(Code::NotInstalled, format!("no engine here loads {}", formats.join(" or ")))
                .with_field("engines")
                .with_hint("`modelmeter engines` says what can run here and what the rest needs"));
        }
        request.engine_settings.retain(|engine, _| request.engines.contains(engine));
    }
    // The engines of the configuration are known by being on offer.
    let on_offer = |class: &str| Pool {
        id: class.to_owned(),
        class: class.to_owned(),
        engines: engines.iter().map(|spec| spec.name.clone()).collect(),
        slots: 1,
    };
    let classes = slots.iter().map(|slot| slot.device.class.as_str()).chain([CPU_CLASS]);
    let pools: Vec<Pool> = classes.collect::<BTreeSet<_>>().into_iter().map(on_offer).collect();
    expand::cells(&request, model, &pools).map(|_| ())
}

fn no_gpu_note(request: &Request, progress: &Progress) {
    if request.devices.iter().all(|word| word == "cpu") {
        return;
    }
    if let (_, Some(why)) = sample::devices() {
        progress.say(&format!("no GPUs here: {why}"));
    }
}

/// Submits, watches to the end, fetches the profiles.
async fn measure(
    client: &mut Client,
    request: &Request,
    progress: &mut Progress,
    stop: &CancellationToken,
) -> Result<Finished, Failure> {
    let id = RequestId::random();
    let watched = async {
        let tasks = client.submit(id, request).await?;
        progress.say(&format!("request {id}: {tasks} task{} of {}", if tasks == 1 { "" } else { "s" }, request.model));
        watch(client, id, progress).await.map_err(Failure::later)
    };
    match within(stop, watched).await {
        Ok(status) => {
            let profiles = client.results(Some(id), None, Some(u32::MAX)).await.map_err(Failure::later)?;
            Ok(Finished { request_id: id, state: status.state, interrupted: false, profiles })
        }
        Err(failure) if failure.problem.code == Code::Cancelled && stop.is_cancelled() => {
            progress.finish();
            progress.say("interrupted: stopping; once more ends it at once");
            let profiles = timeout(FAREWELL, give_up(client, id)).await.unwrap_or_default();
            Ok(Finished { request_id: id, state: RequestState::Cancelled, interrupted: true, profiles })
        }
        Err(failure) => Err(failure),
    }
}

/// Cancels a request, waits until that is done, and gives what was measured.
async fn give_up(client: &mut Client, id: RequestId) -> Vec<Profile> {
    let cancelled = client.cancel(id, "interrupted by the user").await;
    if let Err(problem) = &cancelled {
        tracing::warn!(%problem, "the request could not be cancelled");
    }
    let mut quiet = Progress::new(true);
    let ended = watch(client, id, &mut quiet).await;
    if let Err(problem) = ended {
        tracing::debug!(%problem, "the request's end was not seen");
    }
    client.results(Some(id), None, Some(u32::MAX)).await.unwrap_or_default()
}

/// Shows a request until it ends; gives its last status. Lives through a coordinator that restarts.
pub async fn watch(client: &mut Client, id: RequestId, progress: &mut Progress) -> Result<Status, Problem> {
    let mut failures = 0;
    loop {
        let lost = match follow(client, id, progress, &mut failures).await {
            Ok(Some(status)) => return Ok(status),
            Ok(None) => Problem::new(Code::Unreachable, "the coordinator ends the watch").with_field("coordinator"),
            Err(problem) if problem.code == Code::Unreachable => problem,
            Err(problem) => return Err(problem),
        };
        failures += 1;
        if failures > WATCH_RETRIES {
            return Err(lost);
        }
        sleep(WATCH_PAUSE).await;
    }
}

/// One stream of statuses; none if it ended before the request did. Each status ends the count of `failures`.
async fn follow(
    client: &mut Client,
    id: RequestId,
    progress: &mut Progress,
    failures: &mut u32,
) -> Result<Option<Status>, Problem> {
    let mut statuses = client.watch(id).await?;
    while let Some(status) = statuses.next().await? {
        *failures = 0;
        let ended = status.state.is_terminal().then(|| status.clone());
        progress.update(status);
        if ended.is_some() {
            return Ok(ended);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_usage_is_what_was_found_before_anything_began() {
        let lost = || Problem::new(Code::Unreachable, "no coordinator answers");
        assert_eq!(Failure::from(lost()).exit_code(), 2);
        assert_eq!(Failure::later(lost()).exit_code(), 1);
        assert_eq!(Failure::later(interrupted()).exit_code(), 130);
    }
}
