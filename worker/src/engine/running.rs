//! A launched engine and what is held for it, whether it is a process or a container.

use super::{
    EngineSpec, Place, PortPair, docker, launch, layout::Laid, material::Folder, ports, template::Values,
    watched::Watched,
};
use crate::{lock::DeviceLock, process::Identity};
use modelmeter_common::{Code, Problem, container::Container, device::DeviceKind, task::Cell};
use modelmeter_meter::endpoint::Endpoint;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

/// What a deployment is made of.
#[derive(Clone, Copy)]
pub(super) struct Setup<'a> {
    pub spec: &'a EngineSpec,
    pub cell: &'a Cell,
    pub artifact: Option<&'a Path>,
    pub place: &'a Arc<Place>,
}

/// A launched engine.
#[derive(Debug)]
pub(super) struct Running {
    server: Server,
    place: Arc<Place>,
    ports: ports::Reserved,
    started: Instant,
    /// The model's name as the server was told it.
    pub model: String,
    /// Of a container.
    pub image_digest: Option<String>,
    /// What it was launched on, if that had to be made.
    _folder: Option<Folder>,
}

#[derive(Debug)]
enum Server {
    Process(launch::Process),
    Container(docker::Container),
}

impl Setup<'_> {
    /// Launches a process.
    pub async fn process(
        &self,
        program: &Path,
        args: &[String],
        env: &BTreeMap<String, String>,
    ) -> Result<Running, Problem> {
        let (started, ports) = (Instant::now(), ports::reserve(self.spec, self.place)?);
        let laid = self.lay_out().await?;
        let values = self.values(&laid.name, laid.model.as_deref(), &ports.pair);
        let mut env = expand(&values, env)?;
        // By UUID: CUDA's own order of indices is not NVML's. On a CPU's slot it sees none.
        let seen = match self.place.device.kind {
            DeviceKind::Cpu | DeviceKind::Remote => Some(String::new()),
            DeviceKind::Gpu => self.place.device.uuid.clone(),
        };
        env.extend(seen.map(|uuid| ("CUDA_VISIBLE_DEVICES".into(), uuid)));
        let command = launch::Command {
            what: format!("engine {}", self.spec.name),
            program: program.to_owned(),
            args: [values.expand_all(args)?, laid.args].concat(),
            env,
            cores: self.place.cores.clone(),
            inherit: self.place.lock.fds(),
            log: self.log(),
            census: self.place.census.clone(),
            talk: None,
        };
        let process = launch::start(command).await?;
        note(&self.place.lock, process.identity());
        Ok(Running {
            server: Server::Process(process),
            place: self.place.clone(),
            ports,
            started,
            model: laid.name,
            image_digest: None,
            _folder: laid.folder,
        })
    }

    /// Starts a container; the image is fetched before the clock starts.
    pub async fn container(
        &self,
        container: &Container,
        args: &[String],
        env: &BTreeMap<String, String>,
    ) -> Result<Running, Problem> {
        let image = docker::image(container).await?;
        let (started, ports) = (Instant::now(), ports::reserve(self.spec, self.place)?);
        let laid = self.lay_out().await?;
        let inside = PortPair {
            http: container.http_port.unwrap_or(ports.pair.http),
            grpc: container.grpc_port.unwrap_or(ports.pair.grpc),
            metrics: ports.pair.metrics,
        };
        let without_model = self.values(&laid.name, None, &inside);
        let model = laid.root.as_deref().map(|path| mounted(path, container, &without_model)).transpose()?;
        let target = model.as_ref().map(|(_, target)| model_inside(&laid, target));
        let values = Values { model: target.as_deref(), ..without_model };
        // What was laid out names itself by its path here.
        let inside_of = |arg: &String| match (&laid.root, &model) {
            (Some(here), Some((_, target))) => arg.replace(&here.display().to_string(), target),
            _ => arg.clone(),
        };
        let more = laid.args.iter().map(inside_of).collect();
        let command = docker::Command {
            engine: self.spec.name.clone(),
            container: container.clone(),
            args: [values.expand_all(args)?, more].concat(),
            env: expand(&values, env)?,
            ports: ports.pair.all().zip(inside.all()).collect(),
            cores: self.place.cores.clone(),
            gpu: self.place.device.uuid.clone(),
            owner: self.place.lock.owner(),
            log: self.log(),
            census: self.place.census.clone(),
            model: model.clone(),
        };
        let container = docker::start(command, &image).await?;
        Ok(Running {
            server: Server::Container(container),
            place: self.place.clone(),
            ports,
            started,
            model: laid.name,
            image_digest: Some(image.digest),
            _folder: laid.folder,
        })
    }

    fn values<'a>(&'a self, model_name: &'a str, model: Option<&'a Path>, ports: &PortPair) -> Values<'a> {
        Values {
            model,
            model_name,
            grpc_port: ports.grpc,
            http_port: ports.http,
            metrics_port: ports.metrics,
            settings: &self.cell.engine_settings,
            device: &self.place.device,
            inputs: &self.cell.inputs,
        }
    }

    /// Off the runtime's threads: a large artifact may have to be copied.
    async fn lay_out(&self) -> Result<Laid, Problem> {
        let folder = self.place.run.join(format!("{}-slot{}", self.spec.name, self.place.index));
        let (layout, cell, device) = (self.spec.layout.clone(), self.cell.clone(), self.place.device.kind);
        let artifact = self.artifact.map(Path::to_owned);
        let made = tokio::task::spawn_blocking(move || layout.lay_out(&cell, artifact.as_deref(), device, folder));
        made.await.map_err(|e| Problem::new(Code::Internal, format!("laying the model out failed: {e}")))?
    }

    fn log(&self) -> PathBuf {
        self.place.log(&self.spec.name)
    }
}

fn expand(values: &Values<'_>, env: &BTreeMap<String, String>) -> Result<Vec<(String, String)>, Problem> {
    env.iter().map(|(key, value)| Ok((key.clone(), values.expand(value)?))).collect()
}

/// The model's whole path here, and where it lies in the container.
fn mounted(path: &Path, container: &Container, values: &Values<'_>) -> Result<(PathBuf, String), Problem> {
    let failed = |e| Problem::invalid("home", format!("{} cannot be mounted: {e}", path.display()));
    let source = path.canonicalize().map_err(failed)?;
    let target = match &container.mount {
        Some(mount) => values.expand(mount)?,
        None => format!("/model/{}", path.file_name().unwrap_or_default().to_string_lossy()),
    };
    Ok((source, target))
}

/// Where in a container `{model}` lies whose root is mounted there.
fn model_inside(laid: &Laid, target: &str) -> PathBuf {
    let below = laid.model.as_deref().zip(laid.root.as_deref()).and_then(|(model, root)| model.strip_prefix(root).ok());
    match below {
        Some(below) if below != Path::new("") => Path::new(target).join(below),
        _ => target.into(),
    }
}

/// The note lets the next worker end an orphan; without it the inherited lock still does.
pub(crate) fn note(lock: &DeviceLock, engine: Identity) {
    if let Err(problem) = lock.add_engine(engine) {
        tracing::warn!(%problem, "an engine is not noted in its device's lock");
    }
}

impl Running {
    /// Its gRPC port.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::local(self.ports.pair.grpc)
    }

    /// Since it was launched, in ms.
    pub fn age_ms(&self) -> f64 {
        self.started.elapsed().as_secs_f64() * 1e3
    }

    /// The root of its process tree; none where that cannot be seen from here.
    pub fn pid(&self) -> Option<u32> {
        match &self.server {
            Server::Process(process) => Some(process.identity().pid),
            Server::Container(container) => container.pid,
        }
    }

    /// Whether it has not ended.
    pub fn is_alive(&self) -> bool {
        self.watched().is_alive()
    }

    /// Completes when it has ended; says how.
    pub async fn ended(&self) -> String {
        self.watched().ended().await
    }

    /// Stops it. Nothing of it is left when this returns.
    pub async fn stop(&self) {
        match &self.server {
            Server::Process(process) => process.stop().await,
            Server::Container(container) => container.stop().await,
        }
    }

    /// The same problem with the engine's last lines.
    pub async fn explain(&self, mut problem: Problem) -> Problem {
        let watched = self.watched();
        let lines = watched.last_lines().await;
        // A refusal has said why.
        let is_open = problem.code != Code::EngineRefused;
        if is_open && !lines.is_empty() && !problem.message.contains(LAST_LINES) {
            problem.message.push_str(LAST_LINES);
            problem.message.push_str(&lines);
        }
        let log = self.where_the_log_is();
        problem.hint = match problem.hint {
            Some(hint) if is_open => Some(hint),
            Some(hint) => Some(format!("{hint}; {log}")),
            None => Some(log),
        };
        problem
    }

    /// Why an engine ended that does not take its model: the last thing that it said.
    pub async fn refusal(&self, engine: &str) -> Problem {
        let lines = self.watched().last_lines().await;
        let hint = lines.lines().rev().find_map(|line| line.strip_prefix("hint: "));
        let said = lines.lines().rev().find(|line| !line.is_empty() && !line.starts_with("hint: "));
        let said = said.map_or("it does not say why", |line| line.strip_prefix("error: ").unwrap_or(line));
        let log = self.where_the_log_is();
        Problem::new(Code::EngineRefused, format!("engine {engine} does not take the model: {said}"))
            .with_hint(hint.map_or_else(|| log.clone(), |hint| format!("{hint}; {log}")))
    }

    fn where_the_log_is(&self) -> String {
        format!("the whole log is {}", self.watched().log_path.display())
    }

    fn watched(&self) -> &Watched {
        match &self.server {
            Server::Process(process) => &process.watched,
            Server::Container(container) => &container.watched,
        }
    }
}

/// What the engine's own words begin with in a problem.
const LAST_LINES: &str = "; its last lines:\n";

impl Drop for Running {
    fn drop(&mut self) {
        // A container's own drop ends it.
        let Server::Process(process) = &self.server else { return };
        process.kill();
        if let Err(problem) = self.place.lock.remove_engine(process.identity()) {
            tracing::warn!(%problem, "an engine that ended stays noted in its device's lock");
        }
    }
}
