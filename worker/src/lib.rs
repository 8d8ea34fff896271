//! The worker: consumes task hints, deploys the engine, drives the client while sampling the device,
//! and publishes parts.
//!
//! It cannot compile against the hub, and never imports the coordinator: the two meet in `proto` and `common`.

mod attempts;
mod cache;
pub mod compare;
mod configured;
mod consume;
mod coordinator;
mod cpus;
pub mod engine;
pub mod inspector;
mod journal;
mod lock;
mod options;
mod patience;
mod process;
mod publish;
mod register;
pub mod sample;
pub mod selfcheck;
mod service;
mod session;
pub mod slots;
#[cfg(test)]
mod testing;
mod trial;

pub use engine::{EngineSpec, Launch, Layout, PortPair, PortPolicy, Ports, discover::Lacking, docker_version};
pub use lock::try_flock;
pub use options::{Options, lock_dir};
pub use patience::Patience;
pub use register::offered;
pub use service::{Handle, start};
pub use slots::SlotOptions;
pub use trial::Trial;

use modelmeter_common::{Code, Problem, broker::Broker};
use modelmeter_meter::threads;
use std::{
    collections::BTreeMap,
    fmt, io,
    path::Path,
    sync::{Arc, OnceLock},
};

/// The cores of this process, held like a worker's slot.
#[derive(Debug)]
pub struct CpuHeld(#[allow(dead_code, reason = "held, not read")] lock::DeviceLock);

/// Keeps workers of this host from measuring on the CPU, and waits for none: for whoever measures without a worker.
///
/// # Errors
/// `busy`, naming the holder; `storage` if the folder cannot be written to.
pub fn hold_cpu(lock_dir: &Path, name: &str) -> Result<CpuHeld, Problem> {
    let claim = lock::Claim::new(None, &threads::available_cores(), false);
    lock::DeviceLock::take(lock_dir, &claim, name, 0).map(CpuHeld)
}

/// Who has this file open, for messages; none where that cannot be seen from here.
pub fn holder(path: &Path) -> Option<String> {
    let others = |pid: &u32| *pid != std::process::id();
    process::holders(&path.canonicalize().ok()?).into_iter().find(others).map(process::name)
}

/// Something at home that cannot be written, or used in another way.
fn storage(verb: &str, path: &Path, error: &io::Error) -> Problem {
    Problem::new(Code::Storage, format!("cannot {verb} {}: {error}", path.display()))
        .with_field("home")
        .with_hint("free some space, or choose another --home that you may write to")
}

/// What the slots and the renew loop of one worker share.
struct Context {
    name: String,
    /// This life of the worker.
    incarnation: String,
    broker: Arc<dyn Broker>,
    coordinator: coordinator::Coordinator,
    places: Vec<Arc<engine::Place>>,
    engines: BTreeMap<String, EngineSpec>,
    lacking: Lacking,
    inspectors: BTreeMap<String, inspector::Custom>,
    labels: BTreeMap<String, String>,
    /// What the client is pinned to.
    client_cpus: Option<Vec<u32>>,
    shared_cpu: bool,
    cache: cache::Cache,
    journal: journal::Journal,
    attempts: Arc<attempts::Attempts>,
    /// Servers that were not launched here and have been ready for this worker.
    met: session::Met,
    /// Renew at once, not at the next turn.
    renew_now: tokio::sync::Notify,
    stop: tokio_util::sync::CancellationToken,
    /// Why it stops by itself.
    ended: OnceLock<Problem>,
}

impl Context {
    /// Stops the worker from within.
    fn end(&self, why: Problem) {
        // The first reason counts.
        let _ = self.ended.set(why);
        self.stop.cancel();
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("name", &self.name)
            .field("incarnation", &self.incarnation)
            .finish_non_exhaustive()
    }
}
