//! An engine deployed for one call: what it answers, not how fast.

use crate::{
    EngineSpec,
    engine::{self, Census, Deployment, Place, PortPolicy, STOP_TIMEOUT},
    inspector::Output,
    lock::{Claim, DeviceLock},
    session::{self, Asked},
};
use futures::future::BoxFuture;
use modelmeter_common::{Problem, device::Device, task::Cell};
use modelmeter_meter::threads;
use std::{path::Path, sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What the trials' locks and folders go by.
const NAME: &str = "trial";

/// A device to try engines on, locked against workers while this lives.
#[derive(Debug)]
pub struct Trial {
    place: Arc<Place>,
}

impl Trial {
    /// Takes the device. `home` gets logs; `lock_dir` is the one of the machine's workers.
    ///
    /// # Errors
    /// `busy` when a worker measures on the device; `storage`.
    pub fn new(device: Device, ports: PortPolicy, home: &Path, lock_dir: &Path) -> Result<Self, Problem> {
        let cores = threads::available_cores();
        let claim = Claim::new(device.uuid.as_deref(), &cores, false);
        let lock = DeviceLock::take(lock_dir, &claim, NAME, 0)?;
        let [logs, run] = ["logs", "run"].map(|what| home.join(what).join(NAME));
        let place = Place {
            index: 0,
            device,
            cores: None,
            lock,
            ports,
            logs,
            run,
            census: Census::default(),
            launched: Default::default(),
        };
        Ok(Self { place: Arc::new(place) })
    }

    /// Deploys the engine on the artifact (a file or directory), makes the first call of this seed, and stops the engine.
    ///
    /// # Errors
    /// As a deployment fails, with the engine's last lines; `bad_response` for an answer that is no result.
    pub fn call<'a>(
        &'a self,
        spec: &'a EngineSpec,
        cell: &'a Cell,
        artifact: Option<&'a Path>,
        seed: u64,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Vec<Output>, Problem>> {
        Box::pin(async move {
            let mut deployment = Deployment::new(spec, cell, artifact, &self.place, timeout, &|_| ()).await?;
            let answered = answer(&mut deployment, cell, seed, timeout, &self.place).await;
            let answered = match answered {
                Err(problem) => Err(deployment.explain(problem).await),
                answered => answered,
            };
            deployment.stop().await;
            answered
        })
    }

    /// Waits for the end of engines whose call was dropped or failed, at most about five seconds: what is left of them
    /// when the process ends may stay.
    pub async fn stop(self) {
        engine::none_left(std::slice::from_ref(&self.place), Instant::now() + STOP_TIMEOUT).await;
    }
}

async fn answer(
    deployment: &mut Deployment,
    cell: &Cell,
    seed: u64,
    timeout: Duration,
    place: &Arc<Place>,
) -> Result<Vec<Output>, Problem> {
    let (target, inspector) =
        session::target(deployment, cell, Asked { seed, ..Asked::default() }, None, place).await?;
    let never = CancellationToken::new();
    let (_, message) = target.transport.once(&target.endpoint, timeout, &never).await?;
    let message = message.unwrap_or_default();
    inspector.check(&message)?;
    inspector.decode(&message)
}
