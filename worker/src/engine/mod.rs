//! Engines: what a worker may launch, and the life of one deployment (launch, ready, stop).
//!
//! An engine is data from the worker's own configuration. A task only names one; its model name and settings
//! are the only words of it that reach an engine, as single arguments, never through a shell.

mod launch;
mod layout;
mod ports;
mod ready;
mod settings;
mod template;
mod tfs;
pub(crate) mod triton;

pub use layout::Layout;
pub use ports::{PortPair, PortPolicy, Ports, check_ports};

pub(crate) use launch::{Census, Command, Process, start};

use crate::{inspector::Metadata, lock::DeviceLock, process::Identity, sample::Idle};
use layout::Laid;
use modelmeter_common::{
    Code, Problem,
    device::{Device, DeviceKind},
    engine::Protocol,
    model::Format,
    task::Cell,
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// An engine that this worker may launch or use.
#[derive(Clone, Debug)]
pub struct EngineSpec {
    /// Its name in requests.
    pub name: String,
    /// Its version; none: the server is asked.
    pub version: Option<String>,
    /// How it comes to serve.
    pub launch: Launch,
    /// What its artifact must look like on disk.
    pub layout: Layout,
    /// What clients speak to it.
    pub protocol: Protocol,
    /// Where it listens by default; a kind of device without ports is one that it cannot run on.
    pub ports: Ports,
    /// The artifact formats that it loads.
    pub formats: Vec<Format>,
    /// From launch to ready, at most.
    pub ready_timeout: Duration,
}

/// How an engine comes to serve.
#[derive(Clone, Debug)]
pub enum Launch {
    /// A process of this machine, started for each deployment.
    ///
    /// `args` and the values of `env` may hold `{model}` (path of the artifact as [`Layout`] has it), `{model_name}`,
    /// `{grpc_port}`, `{http_port}`, `{metrics_port}`, `{settings}` (JSON), `{device}` (`cpu` or `cuda:0`) and `{signature}` (JSON of the inputs, their
    /// batch axis -1). Each stays one argument whatever is put in.
    Process {
        /// The executable: a path, or a name on PATH.
        program: PathBuf,
        /// Its arguments.
        args: Vec<String>,
        /// Set besides the worker's own environment.
        env: BTreeMap<String, String>,
    },
    /// A server that already runs.
    Attach {
        /// `host:port`.
        address: String,
        /// The model's name there.
        model: String,
    },
}

impl Launch {
    /// The word in documents.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Process { .. } => "process",
            Self::Attach { .. } => "attach",
        }
    }
}

impl EngineSpec {
    /// Checks what can be checked before anything is launched.
    ///
    /// # Errors
    /// `invalid_argument`, naming what of the engine's configuration makes no sense.
    pub fn validate(&self) -> Result<(), Problem> {
        let field = format!("engines.{}", self.name);
        if self.protocol == Protocol::MlmodelciPredict {
            let message = format!("this build does not drive {}", self.protocol.as_str());
            return Err(Problem::invalid(field, message).with_hint("engines that speak kserve-v2 or tfs can be used"));
        }
        match &self.launch {
            Launch::Process { args, env, .. } => {
                args.iter().chain(env.values()).try_for_each(|text| template::check(text, &field))
            }
            Launch::Attach { address, .. } if ready::uri(address).is_none() => {
                Err(Problem::invalid(field, format!("'{address}' is not an address")).with_hint("host:port"))
            }
            Launch::Attach { .. } => Ok(()),
        }
    }

    /// Whether it takes these settings, as far as that can be said before it is launched.
    ///
    /// # Errors
    /// `invalid_argument` naming the setting or value that it does not take, with what it takes.
    pub fn check_settings(&self, settings: &BTreeMap<String, Value>) -> Result<(), Problem> {
        self.layout.check_settings(&self.name, settings)
    }

    /// Whether it can serve on this kind of device.
    pub fn runs_on(&self, kind: DeviceKind) -> bool {
        matches!(self.launch, Launch::Attach { .. }) || self.ports.on(kind).is_some()
    }
}

/// The slot that a deployment is for.
#[derive(Debug)]
pub(crate) struct Place {
    pub index: u32,
    pub device: Device,
    /// What engines are pinned to; none: all cores.
    pub cores: Option<Vec<u32>>,
    pub lock: DeviceLock,
    pub ports: PortPolicy,
    /// Where engines' logs go.
    pub logs: PathBuf,
    /// Where what they are launched on is laid out.
    pub run: PathBuf,
    /// Of the engines launched here.
    pub census: Census,
}

/// One engine serving one artifact on one slot. Dropped, it ends at once; better stop it.
#[derive(Debug)]
pub(crate) struct Deployment {
    /// Tasks with this key can be served by it.
    pub key: String,
    /// `host:port` of the gRPC server.
    pub address: String,
    /// The model's name there.
    pub model: String,
    pub engine_version: String,
    pub launch: &'static str,
    /// Launch to ready; none where it already ran.
    pub deploy_ms: Option<f64>,
    /// Whether it has answered a first call.
    pub served: bool,
    pub protocol: Protocol,
    /// What the server says of the model, once asked; empty where it does not say.
    pub metadata: Option<Metadata>,
    /// The slot's GPU as it was before this was deployed.
    pub gpu_idle: Option<Idle>,
    process: Option<Running>,
}

/// An engine's process, noted in the lock of its device.
#[derive(Debug)]
struct Running {
    process: launch::Process,
    place: Arc<Place>,
    _ports: ports::Reserved,
    _folder: Option<layout::Folder>,
}

impl Deployment {
    /// Launches (or finds) the engine and waits until it says that it is ready.
    ///
    /// # Errors
    /// `not_installed`, `busy` (a port), `engine_failed` with its last lines, `deadline_exceeded`.
    pub async fn new(
        spec: &EngineSpec,
        cell: &Cell,
        artifact: Option<&Path>,
        place: &Arc<Place>,
    ) -> Result<Self, Problem> {
        let started = Instant::now();
        let (address, model, running) = match &spec.launch {
            Launch::Attach { address, model } => (address.clone(), model.clone(), None),
            Launch::Process { program, args, env } => {
                let ports = ports::reserve(spec, place)?;
                let Laid { model, name, args: more, folder } = lay_out(spec, cell, artifact, place).await?;
                let values = template::Values {
                    model: model.as_deref(),
                    model_name: &name,
                    grpc_port: ports.pair.grpc,
                    http_port: ports.pair.http,
                    metrics_port: ports.pair.metrics,
                    settings: &cell.engine_settings,
                    device: &place.device,
                    inputs: &cell.inputs,
                };
                let command = Command {
                    what: format!("engine {}", spec.name),
                    program: program.clone(),
                    args: [values.expand_all(args)?, more].concat(),
                    env: environment(&values, env, &place.device)?,
                    cores: place.cores.clone(),
                    inherit: place.lock.fds(),
                    log: place.logs.join(format!("{}-slot{}.log", spec.name, place.index)),
                    census: place.census.clone(),
                    talk: None,
                };
                let process = start(command).await?;
                note(&place.lock, process.identity());
                let address = format!("127.0.0.1:{}", ports.pair.grpc);
                (address, name, Some(Running { process, place: place.clone(), _ports: ports, _folder: folder }))
            }
        };
        let mut deployment = Self {
            key: cell.deployment_key(),
            address,
            model,
            engine_version: String::new(),
            launch: spec.launch.kind(),
            deploy_ms: None,
            served: running.is_none(),
            protocol: spec.protocol,
            metadata: None,
            gpu_idle: None,
            process: running,
        };
        match deployment.until_ready(spec).await {
            Ok(version) => deployment.engine_version = spec.version.clone().unwrap_or(version),
            Err(problem) => {
                deployment.stop().await;
                return Err(problem);
            }
        }
        deployment.deploy_ms = deployment.process.is_some().then(|| started.elapsed().as_secs_f64() * 1e3);
        Ok(deployment)
    }

    async fn until_ready(&self, spec: &EngineSpec) -> Result<String, Problem> {
        let ready = ready::wait(spec.protocol, &self.address, &self.model, spec.ready_timeout);
        let Some(running) = &self.process else { return ready.await };
        tokio::select! {
            biased;
            died = running.process.ended() => {
                let message = format!("engine {} {died} before it was ready", spec.name);
                Err(running.explain(Problem::new(Code::EngineFailed, message)).await)
            }
            ready = ready => match ready {
                Ok(version) => Ok(version),
                Err(problem) => Err(running.explain(problem).await),
            },
        }
    }

    /// The root of the engine's process tree; none for a server that already ran.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(|running| running.process.identity().pid)
    }

    /// Whether it can still serve.
    pub fn is_alive(&self) -> bool {
        self.process.as_ref().is_none_or(|running| running.process.is_alive())
    }

    /// Completes when the engine's process ends; never for a server that already ran.
    pub async fn ended(&self) -> Problem {
        let Some(running) = &self.process else { return std::future::pending().await };
        let died = running.process.ended().await;
        running.explain(Problem::new(Code::EngineFailed, format!("the engine {died} while it was measured"))).await
    }

    /// The same problem with the engine's last lines, where it is one that they may explain.
    pub async fn explain(&self, problem: Problem) -> Problem {
        match &self.process {
            Some(running) => running.explain(problem).await,
            None => problem,
        }
    }

    /// Stops the engine: SIGTERM, a grace of 3 s, then SIGKILL to all that is left of its session.
    pub async fn stop(mut self) {
        if let Some(running) = self.process.take() {
            running.process.stop().await;
        }
    }
}

impl Running {
    async fn explain(&self, mut problem: Problem) -> Problem {
        let lines = self.process.last_lines().await;
        if !lines.is_empty() && !problem.message.contains(LAST_LINES) {
            problem.message.push_str(LAST_LINES);
            problem.message.push_str(&lines);
        }
        let hint = || format!("the whole log is {}", self.process.log_path().display());
        problem.hint = problem.hint.or_else(|| Some(hint()));
        problem
    }
}

/// What the engine's own words begin with in a problem.
const LAST_LINES: &str = "; its last lines:\n";

impl Drop for Running {
    fn drop(&mut self) {
        self.process.kill();
        if let Err(problem) = self.place.lock.remove_engine(self.process.identity()) {
            tracing::warn!(%problem, "an engine that ended stays noted in its device's lock");
        }
    }
}

/// Off the runtime's threads: a large artifact may have to be copied.
async fn lay_out(spec: &EngineSpec, cell: &Cell, artifact: Option<&Path>, place: &Place) -> Result<Laid, Problem> {
    let folder = place.run.join(format!("{}-slot{}", spec.name, place.index));
    let (layout, cell, artifact, device) =
        (spec.layout.clone(), cell.clone(), artifact.map(Path::to_owned), place.device.kind);
    let made = tokio::task::spawn_blocking(move || layout.lay_out(&cell, artifact.as_deref(), device, folder));
    made.await.map_err(|e| Problem::new(Code::Internal, format!("laying the model out failed: {e}")))?
}

/// The note lets the next worker end an orphan; without it the inherited lock still does.
pub(crate) fn note(lock: &DeviceLock, engine: Identity) {
    if let Err(problem) = lock.add_engine(engine) {
        tracing::warn!(%problem, "an engine is not noted in its device's lock");
    }
}

fn environment(
    values: &template::Values<'_>,
    env: &BTreeMap<String, String>,
    device: &Device,
) -> Result<Vec<(String, String)>, Problem> {
    let mut expanded =
        env.iter().map(|(key, value)| Ok((key.clone(), values.expand(value)?))).collect::<Result<Vec<_>, Problem>>()?;
    if let Some(uuid) = &device.uuid {
        // By UUID: CUDA's own order of indices is not NVML's.
        expanded.push(("CUDA_VISIBLE_DEVICES".into(), uuid.clone()));
    }
    Ok(expanded)
}

#[cfg(test)]
mod tests;
