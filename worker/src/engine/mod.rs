//! Engines: what a worker may launch, and the life of one deployment (launch, ready, stop).
//!
//! An engine is data from the worker's own configuration. A task only names one; its model name and settings
//! are the only words of it that reach an engine, as single arguments, never through a shell.

pub mod discover;
mod docker;
mod launch;
mod layout;
mod material;
mod ports;
mod ready;
mod running;
mod settings;
mod spec;
mod template;
mod tfs;
pub(crate) mod triton;
mod watched;

pub use docker::docker_version;
pub use layout::Layout;
pub use ports::PortPolicy;
pub use spec::{EngineSpec, Launch, PortPair, Ports};

pub(crate) use docker::remove_orphans;
pub(crate) use launch::{Command, Process, start};
pub(crate) use ports::check_ports;
pub(crate) use running::note;
pub(crate) use watched::Census;

use launch::ended_with;
use ready::Asked;
use running::{Running, Setup};
use triton::statistics::Statistics;

use crate::{inspector::Metadata, lock::DeviceLock, sample::Idle};
use modelmeter_common::{
    Code, Problem,
    device::Device,
    engine::{EXIT_REFUSED, Protocol},
    task::Cell,
};
use modelmeter_meter::endpoint::Endpoint;
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, timeout_at};

/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(3);
/// From a stop to the end of the last engine, at most: the grace, and what a daemon takes to start a container that
/// nobody wants any more and to remove it.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(5);

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
    /// How many have been, since each has a log of its own.
    pub launched: AtomicU64,
}

/// Logs that a slot keeps: a request seldom has more deployments, and its logs are there until it ends.
const LOGS: u64 = 1000;

impl Place {
    /// Where the next engine launched here logs. The oldest of many logs goes.
    fn log(&self, engine: &str) -> PathBuf {
        let number = self.launched.fetch_add(1, Ordering::Relaxed);
        if let Some(oldest) = number.checked_sub(LOGS) {
            let prefix = format!("slot{}-{oldest}-", self.index);
            let files = std::fs::read_dir(&self.logs).into_iter().flatten().flatten();
            for file in files.filter(|file| file.file_name().to_string_lossy().starts_with(&prefix)) {
                // One that stays takes some space.
                let _ = std::fs::remove_file(file.path());
            }
        }
        self.logs.join(format!("slot{}-{number}-{engine}.log", self.index))
    }
}

/// Waits until no engine launched on these places is left, at most until the deadline. One that was dropped is killed,
/// and a container removed, by a task or thread of its own, which must not go down with the process.
pub(crate) async fn none_left(places: &[Arc<Place>], deadline: Instant) {
    let ended = async {
        for place in places {
            place.census.none_left().await;
        }
    };
    if timeout_at(deadline, ended).await.is_err() {
        tracing::warn!("an engine has not ended yet");
    }
}

/// One engine serving one artifact on one slot. Dropped, it ends at once; better stop it.
#[derive(Debug)]
pub(crate) struct Deployment {
    /// Tasks with this key can be served by it.
    pub key: String,
    /// The server's gRPC port.
    pub endpoint: Endpoint,
    /// How long one call to it may take.
    pub timeout: Duration,
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
    /// The server's statistics, once asked for; none of a server that keeps none.
    pub statistics: Option<Option<Statistics>>,
    /// The slot's GPU as it was before this was deployed.
    pub gpu_idle: Option<Idle>,
    /// The image that it was started from.
    pub image_digest: Option<String>,
    running: Option<Running>,
}

impl Deployment {
    /// Launches (or finds) the engine and waits until it says that it is ready; `say` is told what is waited for. One call
    /// to it may take as long as the time-out.
    ///
    /// # Errors
    /// `not_installed`, `busy` (a port), `engine_failed` with its last lines, `deadline_exceeded`.
    pub async fn new(
        spec: &EngineSpec,
        cell: &Cell,
        artifact: Option<&Path>,
        place: &Arc<Place>,
        timeout: Duration,
        say: &(dyn Fn(String) + Send + Sync),
    ) -> Result<Self, Problem> {
        let setup = Setup { spec, cell, artifact, place };
        let launched = |running: Running| (running.endpoint(), running.model.clone(), Some(running));
        let (endpoint, model, running) = match &spec.launch {
            Launch::Attach { endpoint, model } => (endpoint.clone(), model.clone(), None),
            Launch::Process { program, args, env } => launched(setup.process(program, args, env).await?),
            Launch::Docker { container, args, env } => launched(setup.container(container, args, env).await?),
        };
        let mut deployment = Self {
            key: cell.deployment_key(),
            endpoint,
            timeout,
            model,
            engine_version: String::new(),
            launch: spec.launch.kind(),
            deploy_ms: None,
            served: running.is_none(),
            protocol: spec.protocol,
            metadata: None,
            statistics: None,
            gpu_idle: None,
            image_digest: running.as_ref().and_then(|running| running.image_digest.clone()),
            running,
        };
        match deployment.until_ready(spec, say).await {
            Ok(version) => deployment.engine_version = spec.version.clone().unwrap_or(version),
            Err(problem) => {
                deployment.stop().await;
                return Err(problem);
            }
        }
        deployment.deploy_ms = deployment.running.as_ref().map(Running::age_ms);
        Ok(deployment)
    }

    async fn until_ready(&self, spec: &EngineSpec, say: &(dyn Fn(String) + Send + Sync)) -> Result<String, Problem> {
        // That an engine which was launched just now is not ready yet is nothing to tell.
        let say = if self.running.is_some() { &|_| () } else { say };
        let ready = ready::wait(Asked {
            protocol: self.protocol,
            endpoint: &self.endpoint,
            model: &self.model,
            timeout: self.timeout,
            deadline: spec.ready_timeout,
            say,
        });
        let Some(running) = &self.running else { return ready.await };
        tokio::select! {
            biased;
            died = running.ended() => {
                if died == ended_with(EXIT_REFUSED.into()) {
                    return Err(running.refusal(&spec.name).await);
                }
                let message = format!("engine {} {died} before it was ready", spec.name);
                Err(running.explain(Problem::new(Code::EngineFailed, message)).await)
            }
            ready = ready => match ready {
                Ok(version) => Ok(version),
                Err(problem) => Err(running.explain(problem).await),
            },
        }
    }

    /// The root of the engine's process tree; none where it cannot be seen from here.
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().and_then(Running::pid)
    }

    /// Whether it was launched here, on this slot's device.
    pub fn is_local(&self) -> bool {
        self.running.is_some()
    }

    /// Whether it can still serve.
    pub fn is_alive(&self) -> bool {
        self.running.as_ref().is_none_or(Running::is_alive)
    }

    /// Completes when the engine ends; never for a server that already ran.
    pub async fn ended(&self) -> Problem {
        let Some(running) = &self.running else { return std::future::pending().await };
        let died = running.ended().await;
        running.explain(Problem::new(Code::EngineFailed, format!("the engine {died} while it was measured"))).await
    }

    /// The same problem with the engine's last lines, where it is one that they may explain.
    pub async fn explain(&self, problem: Problem) -> Problem {
        match &self.running {
            Some(running) => running.explain(problem).await,
            None => problem,
        }
    }

    /// Stops the engine: SIGTERM, a grace of 3 s, then SIGKILL to all that is left of it.
    pub async fn stop(mut self) {
        if let Some(running) = self.running.take() {
            running.stop().await;
        }
    }
}

#[cfg(test)]
mod tests;
