//! One attempt at a task: artifact, engine, ready, inspector, first inference, load points.
//!
//! Nothing here is undone by hand: dropped in the middle, the client stops and a half-made deployment ends.

use crate::{
    Context, EngineSpec,
    attempts::Attempt,
    coordinator::patiently,
    engine::{Deployment, Launch, Place, triton::statistics::Statistics},
    inspector::{self, Custom, Inspector, ServerWait, Subject},
    sample::{Idle, Monitor, Probes},
};
use async_trait::async_trait;
use futures::TryFutureExt;
use modelmeter_common::{
    Code, Problem,
    device::{Device, DeviceKind},
    load::{Load, LoadPoint, Stop},
    part::{self, Point, ServerTimes, Warning},
    task::{Assignment, Cell, Plan},
    testdata::DataSet,
};
use modelmeter_meter::{self as meter, Aim, Bench, Measure, Remark, Rules, Slice, Target, threads::available_cores};
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// What an attempt gave, or why it gave nothing.
pub(crate) type Measured = Result<Done, Problem>;

/// A measured task.
#[derive(Debug)]
pub(crate) struct Done {
    /// In the order in which they were measured.
    pub points: Vec<Point>,
    /// The engine that served them.
    pub deployment: part::Deployment,
}

/// The load points that an attempt has finished, for when it is dropped in the middle.
#[derive(Clone, Debug, Default)]
pub(crate) struct Finished(Arc<Mutex<Option<Done>>>);

impl Finished {
    fn done(&self) -> MutexGuard<'_, Option<Done>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, deployment: part::Deployment) {
        *self.done() = Some(Done { points: Vec::new(), deployment });
    }

    /// A point; one of a load that was measured before takes its place, unless it went wrong.
    fn add(&self, point: &Point) {
        let mut done = self.done();
        let Some(Done { points, .. }) = done.as_mut() else { return };
        match points.iter_mut().find(|earlier| earlier.load == point.load) {
            Some(earlier) if point.valid => *earlier = point.clone(),
            Some(_) => {}
            None => points.push(point.clone()),
        }
    }

    /// What there is; none without a point.
    pub fn take(&self) -> Option<Done> {
        self.done().take().filter(|done| !done.points.is_empty())
    }
}

/// Servers that were not launched here and have been ready before.
#[derive(Debug, Default)]
pub(crate) struct Met(Mutex<BTreeSet<String>>);

impl Met {
    /// How long a server that has been ready before is waited for: it ended, or is being started again.
    const RETURN: Duration = Duration::from_secs(10);

    /// The engine with the patience that its server deserves.
    fn patient(&self, spec: &EngineSpec) -> EngineSpec {
        let mut spec = spec.clone();
        if let Launch::Attach { endpoint, .. } = &spec.launch
            && self.servers().contains(&endpoint.to_string())
        {
            spec.ready_timeout = spec.ready_timeout.min(Self::RETURN);
        }
        spec
    }

    fn add(&self, spec: &EngineSpec) {
        if let Launch::Attach { endpoint, .. } = &spec.launch {
            self.servers().insert(endpoint.to_string());
        }
    }

    fn servers(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Measures a task on the deployment that `kept` holds if it fits, else on a new one, which is kept.
///
/// # Errors
/// Whatever stood in the way, with the engine's last lines where they may explain it.
pub(crate) async fn measure(
    context: &Context,
    place: &Arc<Place>,
    kept: &mut Option<Deployment>,
    assignment: &Assignment,
    attempt: &Attempt,
    finished: &Finished,
) -> Measured {
    let cell = &assignment.cell;
    let custom = inspector::find(&cell.inspector, &assignment.plan.load, &context.inspectors)?;
    deploy(context, place, kept, cell, &assignment.plan.stop, attempt).await?;
    let deployment = kept.as_mut().expect("deployed just now");
    let data = test_data(context, &assignment.plan).await?;
    let plan = &assignment.plan;
    let asked = Asked { seed: plan.seed, data, output_axes: plan.output_axes.clone() };
    let (mut target, inspector) = target(deployment, cell, asked, custom, place).await?;
    target.client_cpus = context.client_cpus.as_deref().map(Arc::from);
    let measured = async {
        let (first_inference_ms, remarks) =
            first_inference(context, deployment, &target, &*inspector, &assignment.plan.stop, attempt).await?;
        let model_bytes = cell.artifact.as_ref().map(|artifact| artifact.bytes);
        let probes = probes(deployment, place).with_model_bytes(model_bytes);
        let statistics = statistics(deployment).await;
        let deployed = part::Deployment {
            engine_version: deployment.engine_version.clone(),
            launch: deployment.launch.to_owned(),
            image_digest: deployment.image_digest.clone(),
            deploy_ms: deployment.deploy_ms,
            first_inference_ms,
            client_cpus: context.client_cpus.clone(),
            engine_cpus: place.cores.clone().filter(|_| deployment.is_local()),
        };
        finished.begin(deployed.clone());
        let caller = inspector.caller().map(|_| cell.inspector.as_str());
        let points = points(context, target, probes, statistics, assignment, attempt, (finished, &remarks, caller));
        Ok::<_, Problem>(Done { points: alive(deployment, points).await?, deployment: deployed })
    };
    let measured = measured.await;
    // An inspector that did not live through it explains what failed, and makes figures worthless.
    inspector.health().await?;
    measured
}

/// Makes `kept` a deployment that serves this cell.
async fn deploy(
    context: &Context,
    place: &Arc<Place>,
    kept: &mut Option<Deployment>,
    cell: &Cell,
    stop: &Stop,
    attempt: &Attempt,
) -> Result<(), Problem> {
    if kept.as_ref().is_some_and(|deployment| deployment.key == cell.deployment_key() && deployment.is_alive()) {
        return Ok(());
    }
    if let Some(other) = kept.take() {
        attempt.progress("stopping another engine");
        other.stop().await;
    }
    let spec = &context.met.patient(fitting_engine(context, cell)?);
    let artifact = match (&cell.artifact, &spec.launch) {
        (Some(artifact), Launch::Process { .. } | Launch::Docker { .. }) => {
            attempt.progress("fetching the model");
            Some(patiently(|| context.cache.get(artifact, &context.coordinator)).await?)
        }
        _ => None,
    };
    attempt.progress(format!("deploying {}", spec.name));
    let gpu_idle = idle(&place.device).await;
    let timeout = Duration::from_millis(stop.timeout_ms);
    let say = |words: String| attempt.progress(words);
    let deployment = kept.insert(Deployment::new(spec, cell, artifact.as_deref(), place, timeout, &say).await?);
    deployment.gpu_idle = gpu_idle;
    context.met.add(spec);
    Ok(())
}

/// A GPU as it is before an engine is deployed on it; none where it cannot be seen, which the point then says.
async fn idle(device: &Device) -> Option<Idle> {
    let uuid = device.uuid.clone()?;
    // NVML blocks.
    let asked = tokio::task::spawn_blocking(move || Monitor::shared().map_err(str::to_owned)?.idle(&uuid));
    match asked.await {
        Ok(Ok(idle)) => Some(idle),
        Ok(Err(why)) => {
            tracing::warn!(why, "the GPU was not seen before the engine was deployed");
            None
        }
        Err(_) => None,
    }
}

/// What to sample while this deployment is measured: its processes, and the slot's GPU if it was launched there.
fn probes(deployment: &Deployment, place: &Place) -> Probes {
    let pid = deployment.pid();
    let probes = Probes::new(pid);
    if !deployment.is_local() {
        return probes.without_gpu("not_local", "the server was not launched here: its device is not known");
    }
    let probes = probes.with_cores(place.cores.clone().unwrap_or_else(available_cores));
    let device = &place.device;
    if device.kind != DeviceKind::Gpu {
        return probes;
    }
    match (&device.uuid, Monitor::shared()) {
        (Some(uuid), Ok(monitor)) => probes.with_gpu(monitor, uuid, deployment.gpu_idle.clone()),
        (None, _) => probes.without_gpu("no_uuid", "the slot's GPU has no UUID to find it by"),
        (_, Err(why)) => probes.without_gpu("no_nvml", why),
    }
}

/// The engine that a cell names, from this worker's own configuration.
fn fitting_engine<'a>(context: &'a Context, cell: &Cell) -> Result<&'a EngineSpec, Problem> {
    let spec = context.engines.get(&cell.engine).ok_or_else(|| {
        Problem::new(Code::NotInstalled, format!("worker {} has no engine '{}'", context.name, cell.engine))
            .with_hint(format!("it has {}", context.engines.keys().cloned().collect::<Vec<_>>().join(", ")))
    })?;
    match &cell.artifact {
        Some(artifact) if !spec.formats.is_empty() && !spec.formats.contains(&artifact.format) => {
            Err(Problem::invalid("artifact", format!("engine {} does not load {}", spec.name, artifact.format)))
        }
        _ => Ok(spec),
    }
}

/// What requests are made of besides the cell, and what is known of the answers.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub seed: u64,
    pub data: Option<Arc<DataSet>>,
    pub output_axes: BTreeMap<String, Option<u32>>,
}

/// Makes the requests, off the runtime's threads: a large batch takes a while.
pub(crate) async fn target(
    deployment: &mut Deployment,
    cell: &Cell,
    asked: Asked,
    custom: Option<&Custom>,
    place: &Arc<Place>,
) -> Result<(Target, Arc<dyn Inspector>), Problem> {
    if deployment.metadata.is_none() {
        // Servers need not tell their signature; then the outputs are checked for themselves alone.
        let patience = ServerWait { timeout: deployment.timeout, ..ServerWait::NONE };
        let (protocol, endpoint) = (deployment.protocol, &deployment.endpoint);
        let metadata = inspector::metadata(protocol, endpoint, &deployment.model, patience).await;
        deployment.metadata = Some(metadata.unwrap_or_default());
    }
    let metadata = deployment.metadata.clone().unwrap_or_default();
    let subject = Subject {
        model: deployment.model.clone(),
        version: String::new(),
        signature: metadata.signature,
        inputs: cell.inputs.clone(),
        outputs: metadata.outputs,
        batch_size: cell.batch_size,
        seed: asked.seed,
        data: asked.data,
        output_axes: asked.output_axes,
    };
    let endpoint = deployment.endpoint.clone();
    let inspector: Arc<dyn Inspector> = match custom {
        Some(custom) => custom.make(&cell.inspector, subject, &endpoint.to_string(), place).await?,
        None => inspector::built_in(deployment.protocol, subject)?,
    };
    let (maker, stopped) = (inspector.clone(), format!("making requests for {} failed", cell.engine));
    let made = tokio::task::spawn_blocking(move || inspector::target(endpoint, maker)).await;
    let made = made.unwrap_or_else(|e| Err(Problem::new(Code::Internal, format!("{stopped}: {e}"))));
    inspector.health().await?;
    Ok((made?, inspector))
}

/// The statistics that the server keeps; it is asked once.
async fn statistics(deployment: &mut Deployment) -> Option<Statistics> {
    if deployment.statistics.is_none() {
        let statistics = Statistics::of(deployment.protocol, &deployment.endpoint, &deployment.model).await;
        deployment.statistics = Some(statistics);
    }
    deployment.statistics.clone().flatten()
}

/// The user's own test data, fetched if it is not here yet.
async fn test_data(context: &Context, plan: &Plan) -> Result<Option<Arc<DataSet>>, Problem> {
    let Some(artifact) = &plan.data else { return Ok(None) };
    let path = patiently(|| context.cache.get(artifact, &context.coordinator)).await?;
    let bytes = tokio::fs::read(&path)
        .await
        .map_err(|e| Problem::new(Code::Storage, format!("cannot read {}: {e}", path.display())).with_field("home"))?;
    DataSet::decode(bytes.into()).map(|data| Some(Arc::new(data)))
}

/// The code of the warning that says which inputs random values may be wrong for.
const RANDOM_INPUTS: &str = "random_inputs";

/// One checked call. Its time is the engine's first inference only where nothing was asked of the engine before.
async fn first_inference(
    context: &Context,
    deployment: &mut Deployment,
    target: &Target,
    inspector: &dyn Inspector,
    stop: &Stop,
    attempt: &Attempt,
) -> Result<(Option<f64>, Vec<Remark>), Problem> {
    let timeout = Duration::from_millis(stop.first_timeout_ms());
    attempt.progress(format!("waiting for the first answer, at most {} s", timeout.as_secs_f64()));
    let called = meter::first_inference(target, timeout, &context.stop).map_err(|problem| match problem.code {
        Code::EngineRefused => match inspector.doubts() {
            Some(doubts) => problem.with_hint(doubts),
            None => problem,
        },
        _ => problem,
    });
    let first = alive(deployment, called).await?;
    let is_first = !std::mem::replace(&mut deployment.served, true);
    let mut remarks = first.remarks;
    if let Some(message) = inspector.doubts() {
        remarks.push(Remark { code: RANDOM_INPUTS, output: String::new(), message });
    }
    Ok((is_first.then_some(first.latency_ms), remarks))
}

/// What the first answer showed holds for each point, whose checks are a sample.
fn add_remarks(point: &mut Point, remarks: &[Remark]) {
    let is_new = |remark: &&Remark| !point.warnings.iter().any(|warning| warning.code == remark.code);
    let new = remarks.iter().filter(is_new);
    let new: Vec<_> = new.map(|r| Warning { code: r.code.into(), message: r.message.clone() }).collect();
    point.warnings.extend(new);
}

/// How long after its connections an engine's end may show.
const LAST_NEWS: Duration = Duration::from_secs(1);

/// Runs something that calls the engine; ends with the engine's last words when it dies, and adds them to what fails.
async fn alive<T>(deployment: &Deployment, work: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
    tokio::select! {
        biased;
        died = deployment.ended() => Err(died),
        done = work => match done {
            Err(problem) if may_be_explained(&problem) => Err(deployment.explain(problem).await),
            done => done,
        },
    }
}

/// What a custom inspector says is explained by its own last lines.
fn may_be_explained(problem: &Problem) -> bool {
    let by_the_engine = matches!(
        problem.code,
        Code::EngineFailed
            | Code::EngineRefused
            | Code::DeadlineExceeded
            | Code::BadResponse
            | Code::Unreachable
            | Code::InvalidArgument
    );
    by_the_engine && problem.field.as_deref() != Some("inspector")
}

fn mark_shared(point: &mut Point, certified: bool) {
    let message = "other workers may run on the same cores: compare with care, or give each worker cores of its own";
    point.warnings.push(Warning { code: "shared_host".into(), message: message.into() });
    if certified {
        point.valid = false;
        let message = "not certified: shared_host; start the worker without --shared-cpu and measure again";
        point.warnings.push(Warning { code: "not_certified".into(), message: message.into() });
    }
}

fn mark_timed(point: &mut Point, inspector: &str) {
    let message = format!(
        "calls were made and waited for by inspector '{inspector}' itself, so its own time is in them; with timed_in = \"modelmeter\" it is not"
    );
    point.warnings.push(Warning { code: "timed_in_child".into(), message });
}

/// Measures points, tells what is being measured, and adds what the server says of it.
struct Told<'a> {
    bench: Bench,
    attempt: &'a Attempt,
    finished: &'a Finished,
    /// What the first answer showed.
    remarks: &'a [Remark],
    /// Other workers may run on the same cores.
    shared_cpu: bool,
    /// The inspector that makes the calls itself.
    caller: Option<&'a str>,
    plan: &'a Plan,
    statistics: Option<Statistics>,
    /// By load: one that is gone on with holds all that was measured of it.
    server: Vec<(LoadPoint, ServerTimes)>,
}

impl Told<'_> {
    async fn server_times(&self) -> Option<ServerTimes> {
        self.statistics.as_ref()?.read().await
    }

    /// What the server says of this load, earlier visits included.
    fn add(&mut self, load: LoadPoint, times: ServerTimes) -> ServerTimes {
        let goes_on = self.goes_on() && matches!(load, LoadPoint::Closed { .. });
        if let Some((_, sum)) = self.server.iter_mut().find(|(earlier, _)| *earlier == load && goes_on) {
            *sum = sum.plus(times);
            return *sum;
        }
        self.server.push((load, times));
        times
    }
}

#[async_trait]
impl Measure for Told<'_> {
    async fn measure(&mut self, load: LoadPoint, aim: Aim, slice: Option<Slice>) -> Result<Point, Problem> {
        self.attempt.progress(format!("measuring {load}"));
        let before = self.server_times().await;
        let mut point = self.bench.measure(load, aim, slice).await?;
        if let (Some(before), Some(after)) = (before, self.server_times().await) {
            point.server = Some(self.add(load, after.since(before)));
        }
        add_remarks(&mut point, self.remarks);
        if self.shared_cpu {
            mark_shared(&mut point, self.plan.stop.certified);
        }
        if let Some(inspector) = self.caller {
            mark_timed(&mut point, inspector);
        }
        let is_pilot = matches!((&self.plan.load, load), (Load::SlaSearch { .. }, LoadPoint::Closed { .. }));
        if !is_pilot {
            self.finished.add(&point);
        }
        Ok(point)
    }

    fn goes_on(&self) -> bool {
        self.bench.goes_on()
    }
}

/// The load points of one task.
async fn points(
    context: &Context,
    target: Target,
    probes: Probes,
    statistics: Option<Statistics>,
    assignment: &Assignment,
    attempt: &Attempt,
    (finished, remarks, caller): (&Finished, &[Remark], Option<&str>),
) -> Result<Vec<Point>, Problem> {
    let plan = &assignment.plan;
    // An SLA only steers what searches for it.
    let sla = plan.sla.clone().filter(|_| matches!(plan.load, Load::SlaSearch { .. }));
    let seed = plan.seed ^ u64::from(assignment.repeat) << 32;
    let rules = Rules { stop: plan.stop.clone(), batches: plan.batches, seed, slice: None, sla, aim: Aim::default() };
    let bench = Bench::new(target, rules, Box::new(probes), context.stop.clone());
    let budget =
        plan.budget_ms.map(|ms| meter::Budget::new(Duration::from_millis(ms), Duration::from_millis(plan.grace_ms)));
    let shared_cpu = context.shared_cpu;
    let mut told = Told { bench, attempt, finished, remarks, shared_cpu, caller, plan, statistics, server: Vec::new() };
    let points = meter::run_plan(&plan.load, plan.sla.as_ref(), budget.unwrap_or_default(), &mut told).await?;
    if points.iter().any(|point| point.latency.is_empty()) {
        // Where the engine died of it, that is told a moment later, and is what failed.
        tokio::time::sleep(LAST_NEWS).await;
    }
    Ok(points)
}
