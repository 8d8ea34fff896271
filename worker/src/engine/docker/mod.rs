//! Engines in containers, through the Docker Engine API.
//!
//! A container has no parent to die with and inherits no lock. So its whole life is one task, which ends it when its
//! handle is gone, and a label says whose it is: a worker that takes the same device, or that sees the owner dead,
//! removes it.

mod body;
mod daemon;
mod image;

pub use daemon::docker_version;
pub(super) use image::Image;

use super::watched::{Census, Counted, LAST_WORDS, Log, Watched};
use crate::{
    engine::{GRACE, Place},
    process::{self, Identity},
};
use body::{OWNER, body};
use bollard::{
    Docker,
    errors::Error,
    models::{ContainerCreateBody, ContainerState},
    query_parameters::{
        CreateContainerOptions, ListContainersOptions, LogsOptions, RemoveContainerOptions, StopContainerOptions,
        WaitContainerOptions,
    },
};
use daemon::{is_missing, refused, words};
use futures::StreamExt;
use modelmeter_common::{Code, Problem, container::Container as Settings};
use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

/// What is to be started.
#[derive(Debug)]
pub(super) struct Command {
    pub engine: String,
    pub container: Settings,
    /// The image's own where empty.
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// The model here, and where it lies inside.
    pub model: Option<(PathBuf, String)>,
    /// Here on loopback, and inside.
    pub ports: Vec<(u16, u16)>,
    /// Pinned to these cores.
    pub cores: Option<Vec<u32>>,
    /// The GPU's UUID.
    pub gpu: Option<String>,
    /// Whose it is.
    pub owner: String,
    /// Its output, both streams; the one before is overwritten.
    pub log: PathBuf,
    pub census: Census,
}

/// A started container. Killed and removed when dropped.
#[derive(Debug)]
pub(super) struct Container {
    pub watched: Watched,
    /// The root of its process tree, where it can be seen from here.
    pub pid: Option<u32>,
    /// Set: it shall end in order. Gone: at once.
    stop: watch::Sender<bool>,
}

/// Has the image of an engine here.
///
/// # Errors
/// `not_installed` without a daemon or an image.
pub(super) async fn image(settings: &Settings) -> Result<Image, Problem> {
    image::ensure(&daemon::connect().await?, settings).await
}

/// Creates and starts a container.
///
/// # Errors
/// `not_installed` without a daemon, `engine_failed` with what the daemon said, `storage` without a log.
pub(super) async fn start(command: Command, image: &Image) -> Result<Container, Problem> {
    let docker = daemon::connect().await?;
    let (log, tail) = Log::create(&command.log)?;
    let (exit, exited) = watch::channel(None);
    let (stop, stopped) = watch::channel(false);
    let (begun, beginning) = oneshot::channel();
    let life = Life { docker, engine: command.engine.clone(), id: String::new(), _counted: command.census.count() };
    let body = body(&command, &image.id);
    tokio::spawn(life.live(body, log, begun, stopped, exit));
    let gone = |_| Problem::new(Code::Internal, "the container's task has ended");
    let pid = beginning.await.map_err(gone)??;
    Ok(Container { watched: Watched { exit: exited, tail, log_path: command.log }, pid, stop })
}

impl Container {
    /// SIGTERM, a grace, SIGKILL. It is removed when this returns.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        self.watched.ended().await;
    }
}

/// One container from its creation to its removal: a task of its own, so that no caller who has gone leaves one behind.
struct Life {
    docker: Docker,
    engine: String,
    id: String,
    _counted: Counted,
}

impl Life {
    async fn live(
        mut self,
        body: ContainerCreateBody,
        log: Log,
        begun: oneshot::Sender<Result<Option<u32>, Problem>>,
        mut stop: watch::Receiver<bool>,
        exit: watch::Sender<Option<String>>,
    ) {
        let started = self.start(body).await;
        let (failed, is_wanted) = (started.is_err(), begun.send(started).is_ok());
        if failed || !is_wanted {
            return self.remove().await;
        }
        let mut follower = tokio::spawn(follow(self.docker.clone(), self.id.clone(), log));
        let how = tokio::select! {
            how = self.ended() => how,
            in_order = async { stop.wait_for(|stop| *stop).await.is_ok() } => {
                if in_order {
                    tokio::select! {
                        () = self.stop() => {}
                        () = dropped(&mut stop) => {}
                    }
                }
                "was stopped".into()
            }
        };
        last_words(&mut follower, &mut stop).await;
        follower.abort();
        self.remove().await;
        exit.send_replace(Some(how));
    }

    /// Gives the root of its process tree, where that can be seen from here.
    async fn start(&mut self, body: ContainerCreateBody) -> Result<Option<u32>, Problem> {
        let failed = |what: &str, e: Error| {
            let problem = refused(&format!("{what} the container of engine {}", self.engine), &e);
            match body.host_config.as_ref().and_then(|host| host.device_requests.as_ref()) {
                Some(_) => problem.with_hint("containers see GPUs by the NVIDIA Container Toolkit: is it installed?"),
                None => problem,
            }
        };
        let name = format!("modelmeter-{}-{}", self.engine, uuid::Uuid::new_v4());
        let options = CreateContainerOptions { name: Some(name), ..CreateContainerOptions::default() };
        let created = self.docker.create_container(Some(options), body.clone()).await;
        self.id = created.map_err(|e| failed("create", e))?.id;
        let before = process::now();
        self.docker.start_container(&self.id, None).await.map_err(|e| failed("start", e))?;
        let state = self.state().await.map_err(|e| failed("inspect", e))?;
        let pid = state.pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
        // A daemon in another pid namespace means another process by this number, or none: not one that began just now.
        Ok(pid.filter(|&pid| Identity::of(pid).is_some_and(|seen| seen.start_time >= before)))
    }

    async fn state(&self) -> Result<ContainerState, Error> {
        Ok(self.docker.inspect_container(&self.id, None).await?.state.unwrap_or_default())
    }

    /// Completes when it has ended by itself; says how.
    async fn ended(&self) -> String {
        loop {
            let options = None::<WaitContainerOptions>;
            let waited = self.docker.wait_container(&self.id, options).next().await;
            // A daemon that begins its answer only at the end must be asked again.
            if !matches!(waited, Some(Err(Error::RequestTimeoutError))) {
                break;
            }
        }
        match self.state().await {
            // Its daemon broke the wait off; nothing watches it any more.
            Ok(state) if state.running == Some(true) => "was lost from sight".into(),
            Ok(state) if state.oom_killed == Some(true) => "was killed for want of memory".into(),
            Ok(ContainerState { exit_code: Some(code), .. }) => format!("exited with code {code}"),
            Ok(_) => "ended".into(),
            Err(e) => format!("was lost: {}", words(&e)),
        }
    }

    /// Whatever comes of it: removal is by force.
    async fn stop(&self) {
        let options = StopContainerOptions { t: Some(GRACE.as_secs() as i32), signal: None };
        let _ = timeout(GRACE + MARGIN, self.docker.stop_container(&self.id, Some(options))).await;
    }

    async fn remove(&self) {
        if !self.id.is_empty() {
            remove(&self.docker, &self.id).await;
        }
    }
}

/// Waits a moment for the last output, unless the handle is gone: then nobody reads it.
async fn last_words(follower: &mut JoinHandle<()>, handle: &mut watch::Receiver<bool>) {
    tokio::select! {
        _ = timeout(LAST_WORDS, follower) => {}
        () = dropped(handle) => {}
    }
}

/// Completes when the handle is gone.
async fn dropped(handle: &mut watch::Receiver<bool>) {
    while handle.changed().await.is_ok() {}
}

/// Above the grace that the daemon was told.
const MARGIN: Duration = Duration::from_secs(2);

async fn remove(docker: &Docker, id: &str) {
    let options = RemoveContainerOptions { force: true, v: true, ..RemoveContainerOptions::default() };
    match docker.remove_container(id, Some(options)).await {
        Err(e) if !is_missing(&e) => tracing::warn!(error = words(&e), container = id, "a container was not removed"),
        _ => {}
    }
}

/// Passes on what it writes, to the end.
async fn follow(docker: Docker, id: String, mut log: Log) {
    let options = LogsOptions { follow: true, stdout: true, stderr: true, ..LogsOptions::default() };
    let mut output = std::pin::pin!(docker.logs(&id, Some(options)));
    while let Some(Ok(piece)) = output.next().await {
        log.push(&piece.into_bytes());
    }
}

/// Removes the containers that dead workers left, as far as these places can tell: see
/// [`crate::lock::DeviceLock::outlives`].
pub(crate) async fn remove_orphans(places: &[Arc<Place>]) -> Result<(), Problem> {
    let docker = daemon::connect().await?;
    let filters = HashMap::from([("label".to_owned(), vec![OWNER.to_owned()])]);
    let options = ListContainersOptions { all: true, filters: Some(filters), ..ListContainersOptions::default() };
    let listed = docker.list_containers(Some(options)).await.map_err(|e| refused("list containers", &e))?;
    for container in listed {
        let owner = container.labels.as_ref().and_then(|labels| labels.get(OWNER));
        let is_orphan = owner.is_some_and(|owner| places.iter().any(|place| place.lock.outlives(owner)));
        if let (true, Some(id)) = (is_orphan, &container.id) {
            tracing::warn!(container = id, "removing an orphaned engine");
            remove(&docker, id).await;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[tokio::test]
    async fn last_words_are_waited_for_only_while_someone_may_read_them() {
        let mut follower = tokio::spawn(std::future::pending());
        let (handle, mut held) = watch::channel(false);
        let begun = Instant::now();
        last_words(&mut follower, &mut held).await;
        assert!(begun.elapsed() >= LAST_WORDS);
        drop(handle);
        timeout(LAST_WORDS / 2, last_words(&mut follower, &mut held)).await.expect("nobody reads them");
        follower.abort();
    }
}
