//! A job from start to end, the same for the command and the library: resolve, start what is needed, submit, watch,
//! fetch the results, stop what was started.

use crate::{
    client::Client,
    data,
    embedded::{self, Embedded},
    follow::{submit, watch},
    interrupt::interrupted,
    job::{self, Job, Target},
    models::{self, Local},
    progress::Progress,
    report::{budget, counted, time},
    servers::discovery,
};
use modelmeter_common::{
    Code, Problem, RequestId,
    config::Config,
    engine,
    model::Model,
    profile::{Profile, ProfileState},
    request::{Request, RequestState},
    status::{Dryrun, Status},
    task::{Cell, TaskState},
};
use modelmeter_coordinator::{
    pool::{self, Pool},
    status,
};
use modelmeter_worker::{
    EngineSpec, Patience, SlotOptions,
    engine::discover::{self, Offer},
    inspector::{self, Custom, ServerWait},
    sample,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// After an interruption: how long what running cells had finished is waited for, and how often it is asked for.
const FAREWELL: Duration = Duration::from_secs(3);
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// A budget that is so many times as large gives intervals that are clearly narrower.
const SHARPER: f64 = 2.5;

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
    /// Whether each cell is shown to keep its SLA.
    pub fn keeps_sla(&self) -> bool {
        self.profiles.iter().all(|p| p.sla.as_ref().is_some_and(|sla| sla.met == Some(true)))
    }

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

/// A job as this machine would do it: nothing is started, stored or held yet.
struct Sketch {
    target: Target,
    request: Request,
    inspectors: BTreeMap<String, Custom>,
    local: Option<Local>,
    model: Model,
    offer: Offer,
    slots: Vec<SlotOptions>,
    pools: Vec<Pool>,
    cells: Vec<Cell>,
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
    let Place { mut client, mut embedded, request } = place;
    let (id, is_here) = (RequestId::random(), embedded.is_some());
    let finished = tokio::select! {
        finished = measure(&mut client, id, &request, is_here, progress, stop) => finished,
        problem = lost(embedded.as_mut()) => Err(Failure::later(problem)),
    };
    let finished = match finished {
        Err(failure) if failure.problem.code == Code::Cancelled && stop.is_cancelled() => {
            progress.finish();
            progress.say("interrupted, stopping engines (press Ctrl-C again to quit now)");
            let profiles = give_up(&mut client, id, embedded.as_ref()).await;
            Ok(Finished { request_id: id, state: RequestState::Cancelled, interrupted: true, profiles })
        }
        finished => finished,
    };
    progress.finish();
    if let Some(embedded) = embedded {
        embedded.stop().await;
    }
    finished
}

/// Completes when the worker in this process ended by itself: nobody would measure what is left.
async fn lost(embedded: Option<&mut Embedded>) -> Problem {
    match embedded {
        Some(embedded) => embedded.worker_ended().await,
        None => std::future::pending().await,
    }
}

/// Says what it would measure: nothing is measured, sent or held for it.
///
/// # Errors
/// As [`profile`].
pub async fn dry_run(
    config: &Config,
    job: Job,
    progress: &Progress,
    stop: &CancellationToken,
) -> Result<Dryrun, Problem> {
    let sketched = async {
        if config.client.coordinators.is_empty() {
            let sketch = sketch(config, job, progress).await?;
            return Ok::<_, Problem>((sketch.request, sketch.model, sketch.pools));
        }
        let (mut client, local) = on_cluster(config, &job).await?;
        let model = models::meant(&job.target, local.as_ref(), &mut client).await?;
        let mut request = Request { model: model.id.to_string(), ..job.request };
        data::check(&mut request, &model)?;
        Ok((request, model, pool::pools(&client.workers().await?)))
    };
    let (request, model, pools) = within(stop, sketched).await?;
    batch_notes(&request, &model, progress);
    status::dryrun(&request.certified(), &model, &pools)
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
    let (mut client, local) = on_cluster(config, &job).await?;
    let (request, model) = store(&job.target, job.request, local.as_ref(), config, &mut client).await?;
    batch_notes(&request, &model, progress);
    Ok(Place { client, embedded: None, request })
}

/// A cluster's coordinator, and what of the model is on this machine.
async fn on_cluster(config: &Config, job: &Job) -> Result<(Client, Option<Local>), Problem> {
    if let Some(name) = job.inspectors.keys().next() {
        return Err(Problem::invalid(
            "inspector",
            format!("workers of a cluster cannot use '{name}', which is part of this program"),
        )
        .with_hint("measure without a coordinator, or use an inspector of the workers' configuration"));
    }
    // What the workers' own engines take, they alone know.
    check_settings(&job.request, &[])?;
    let client = Client::connect(&config.client.coordinators).await?;
    Ok((client, models::local(&job.target, &config.home, ServerWait::NONE).await?))
}

/// Puts model and data into the hub; gives the request that names them, and the model.
async fn store(
    target: &Target,
    request: Request,
    local: Option<&Local>,
    config: &Config,
    client: &mut Client,
) -> Result<(Request, Model), Problem> {
    let model = models::in_hub(target, local, client).await?;
    let mut request = Request { model: model.id.to_string(), ..request };
    data::store(&mut request, &model, &config.home, client).await?;
    Ok((request, model))
}

async fn prepare_embedded(config: &Config, job: Job, progress: &Progress) -> Result<Place, Problem> {
    let sketch = sketch(config, job, progress).await?;
    no_gpu_note(&sketch.request, progress);
    batch_notes(&sketch.request, &sketch.model, progress);
    let patience = patience(sketch.request.no_wait, progress);
    let mut embedded = Embedded::start(&config.home, &patience).await?;
    match into_embedded(&mut embedded, config, sketch, patience).await {
        Ok((client, request)) => Ok(Place { client, embedded: Some(embedded), request }),
        Err(problem) => {
            embedded.stop().await;
            Err(problem)
        }
    }
}

/// Everything that is wrong with the input is said here, before anything starts.
async fn sketch(config: &Config, mut job: Job, progress: &Progress) -> Result<Sketch, Problem> {
    embedded::writable(&config.home)?;
    let offer = offer(&job, config, progress)?;
    if let Some(name) = &job.request.inspector {
        job.inspectors.extend(inspector::configured(config)?);
        inspector::find(name, &job.request.load, &job.inspectors)?;
    }
    // Words may name one device of this machine; its class is what a request asks for.
    let slots = match &job.target {
        Target::Endpoint { device_class, .. } => embedded::remote(device_class),
        _ => embedded::slots(&job.request.devices, &offer.specs),
    };
    check_devices(&job.request, &offer.specs, &slots)?;
    let devices = embedded::classes(&job.request.devices);
    let stop = &job.request.stop;
    let patience = ServerWait {
        timeout: Duration::from_millis(stop.timeout_ms),
        ready: if job.request.no_wait { Duration::ZERO } else { config.engine.ready_timeout() },
        say: &|words| progress.say(&words),
    };
    let local = models::local(&job.target, &config.home, patience).await?;
    let model = meant(config, &job.target, local.as_ref()).await?;
    let mut request = Request { model: model.id.to_string(), devices, ..job.request };
    data::check(&mut request, &model)?;
    check_settings(&request, &offer.specs)?;
    let pools = embedded::pools(&slots, &offer, &job.inspectors);
    let cells = embedded::cells(&request, &model, &pools)?;
    let tasks = cells.len() as u64 * u64::from(request.repeats);
    if job.usual_budget {
        job::set_usual_budget(&mut request, tasks);
    }
    if let Some(words) = request.budget_ms.and_then(|budget| job::small_budget(budget, tasks)) {
        progress.say(&words);
    }
    some_can_run(&cells, &pools)?;
    let Job { target, inspectors, .. } = job;
    Ok(Sketch { target, request, inspectors, local, model, offer, slots, pools, cells })
}

/// The model, with the hub at home asked without a word to whoever measures on it.
async fn meant(config: &Config, target: &Target, local: Option<&Local>) -> Result<Model, Problem> {
    let hub = Embedded::start_read_only(&config.home).await?;
    let found = match hub.client().await {
        Ok(mut client) => models::meant(target, local, &mut client).await,
        Err(problem) => Err(problem),
    };
    hub.stop().await;
    found
}

/// Leaves out the engines that no cell runs on, whose ports others may have; but not the last of a slot.
fn leave_unused(specs: &mut Vec<EngineSpec>, cells: &[Cell], slots: &[SlotOptions]) {
    let is_used = |spec: &EngineSpec| cells.iter().any(|cell| cell.engine == spec.name);
    let runs = |slot: &SlotOptions| specs.iter().any(|spec| is_used(spec) && spec.runs_on(slot.device.kind));
    if slots.iter().all(runs) {
        specs.retain(is_used);
    }
}

/// Waits for whoever measures on the same devices or in the same home, unless it is to be refused.
fn patience(no_wait: bool, progress: &Progress) -> Patience {
    if no_wait {
        return Patience::Refuse;
    }
    let say = progress.sayer();
    Patience::Wait(Arc::new(move |problem| say(&waiting(problem))))
}

/// What is said while something is waited for.
pub fn waiting(problem: &Problem) -> String {
    format!("waiting: {} (Ctrl-C ends the wait; with --no-wait there is none)", problem.message)
}

async fn into_embedded(
    embedded: &mut Embedded,
    config: &Config,
    sketch: Sketch,
    patience: Patience,
) -> Result<(Client, Request), Problem> {
    let mut client = embedded.client().await?;
    let Sketch { target, request, inspectors, local, mut offer, slots, cells, .. } = sketch;
    leave_unused(&mut offer.specs, &cells, &slots);
    let (request, _) = store(&target, request, local.as_ref(), config, &mut client).await?;
    embedded.add_worker(config, slots, offer, inspectors, patience).await?;
    // There is no other worker to wait for.
    Ok((client, Request { no_wait: true, ..request }))
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
        let hint = problem.hint.as_deref().unwrap_or_default();
        progress.say(&format!("engine '{name}' cannot run here, so its cells will fail: {}; {hint}", problem.message));
    }
    Ok(offer)
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
    let message = format!(
        "engine {} runs on GPUs only, and there is none here that --devices {} means",
        spec.name,
        request.devices.join(", ")
    );
    Err(Problem::invalid("devices", message)
        .with_hint("use --devices gpu on a machine with a GPU; see `modelmeter engines`"))
}

/// Where nothing can be measured, that is said before anything starts.
fn some_can_run(cells: &[Cell], pools: &[Pool]) -> Result<(), Problem> {
    let reasons: Option<Vec<Problem>> = cells.iter().map(|cell| pool::why_not(cell, pools)).collect();
    match reasons.and_then(|reasons| reasons.into_iter().next()) {
        Some(problem) => Err(Problem { code: Code::NotInstalled, ..problem }),
        None => Ok(()),
    }
}

/// What is taken for the batch, where that may not be what was meant.
fn batch_notes(request: &Request, model: &Model, progress: &Progress) {
    // What is wrong with it is said by whoever measures it.
    let Ok((batch, sizes)) = request.batch(model) else { return };
    batch.notes(&request.shapes, &sizes).iter().for_each(|note| progress.say(note));
    if let ([], [only]) = (&request.batch_sizes[..], &sizes[..]) {
        progress.say(&format!("the model takes batches of {only} alone"));
    }
    // A server says of a single value what it says of a shape that it does not tell: nothing.
    for input in model.inputs.iter().filter(|input| model.artifacts.is_empty() && input.shape.is_empty()) {
        let (name, dtype) = (&input.name, input.dtype.as_str().to_ascii_lowercase());
        progress.say(&format!(
            "the server tells no axes of input '{name}', so a single value is sent; if it has axes: --input {name}:{dtype}:4"
        ));
    }
}

fn no_gpu_note(request: &Request, progress: &Progress) {
    if request.devices.iter().all(|word| word == "cpu") {
        return;
    }
    if let (_, Some(why)) = sample::devices() {
        progress.say(&format!("no GPUs here: {why}"));
    }
}

/// Submits, watches to the end, fetches the profiles. `is_here`: this process measures.
async fn measure(
    client: &mut Client,
    id: RequestId,
    request: &Request,
    is_here: bool,
    progress: &mut Progress,
    stop: &CancellationToken,
) -> Result<Finished, Failure> {
    let watched = async {
        let tasks = submit(id, async || client.submit(id, request).await).await?;
        let plan = opening(request, tasks);
        progress.begin(&if is_here { plan } else { format!("request {id}: {plan}") }, time_limit(request));
        watch(client, id, progress).await.map_err(Failure::later)
    };
    match within(stop, watched).await {
        Ok(Status { error: Some(problem), .. }) => Err(Failure::later(problem)),
        Ok(status) => {
            let profiles = client.results(Some(id), None, Some(u32::MAX)).await.map_err(Failure::later)?;
            Ok(Finished { request_id: id, state: status.state, interrupted: false, profiles })
        }
        Err(failure) => Err(failure),
    }
}

/// The time that a request may take.
fn time_limit(request: &Request) -> Option<Duration> {
    request.budget_ms.map(Duration::from_millis)
}

/// What will be measured, how long that takes, and how to change it.
fn opening(request: &Request, tasks: u64) -> String {
    let name = request.model.split(':').next().unwrap_or_default();
    let repeats = u64::from(request.repeats.max(1));
    let cells = tasks / repeats;
    let mut text = format!("{} of {name}", counted(cells, "cell"));
    if repeats > 1 {
        text += &format!(", each {repeats} times");
    }
    let Some(limit) = time_limit(request) else {
        return text + ", without a time limit (--budget 2m sets one)";
    };
    let (all_s, each_s) = (limit.as_secs_f64(), limit.as_secs_f64() / tasks.max(1) as f64);
    let each = if repeats > 1 { "a repeat" } else { "a cell" };
    text + &format!(
        ", {} {} ({} {each}; --budget {} for sharper figures, --budget none for no limit)",
        if request.grace_ms > 0 { "about" } else { "up to" },
        time(all_s),
        time(each_s),
        budget(all_s * SHARPER)
    )
}

/// Cancels a request, waits for the load points that its running cells had finished, and gives what was measured.
async fn give_up(client: &mut Client, id: RequestId, embedded: Option<&Embedded>) -> Vec<Profile> {
    let running = client
        .status(id)
        .await
        .map_or(0, |status| status.cells.iter().filter(|cell| cell.state == TaskState::Claimed).count());
    if let Err(problem) = client.cancel(id, "interrupted by the user").await {
        tracing::warn!(%problem, "the request could not be cancelled");
    }
    if let Some(embedded) = embedded {
        embedded.ask_now();
    }
    let deadline = Instant::now() + FAREWELL;
    loop {
        let profiles = client.results(Some(id), None, Some(u32::MAX)).await.unwrap_or_default();
        let kept = profiles.iter().filter(|p| p.state == ProfileState::Partial).count();
        if kept >= running || Instant::now() >= deadline {
            return profiles;
        }
        sleep(ASK_AGAIN).await;
    }
}

#[cfg(test)]
mod tests;
