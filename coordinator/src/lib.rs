//! The coordinator: accepts requests, expands them, schedules the tasks, collects and folds the results.
//!
//! It never measures and never imports the worker: the two meet in `proto` and `common`.
//! Decisions are pure functions ([`expand`], [`alone`], [`pool`], [`schedule`], [`aggregate`]); the loops around them
//! ([`dispatch`], [`collect`], [`sweep`]) only read, ask and compare-and-swap.

pub mod aggregate;
pub mod alone;
pub mod api;
pub mod collect;
pub mod core;
pub mod dispatch;
pub mod expand;
pub mod hub;
pub mod pool;
pub mod schedule;
pub mod status;
pub mod sweep;

use crate::{core::Core, hub::Hub};
use futures::future::BoxFuture;
use modelmeter_common::{
    Code, Problem,
    broker::{Broker, QUARANTINE, RESULTS},
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// What a coordinator is started with.
pub struct Options {
    /// Where hints and results travel.
    pub broker: Arc<dyn Broker>,
    /// The truth.
    pub hub: Arc<dyn Hub>,
    /// How long a claim holds without being renewed.
    pub lease: Duration,
    /// How often the sweep looks for what was lost.
    pub sweep_every: Duration,
    /// Only answers questions: neither dispatches, collects nor sweeps, since another process may do so on the same hub.
    pub read_only: bool,
}

impl Options {
    /// The usual ones: a lease of 30 s, a sweep each second.
    pub fn new(broker: Arc<dyn Broker>, hub: Arc<dyn Hub>) -> Self {
        Self { broker, hub, lease: Duration::from_secs(30), sweep_every: Duration::from_secs(1), read_only: false }
    }
}

/// A running coordinator.
pub struct Handle {
    grpc_addr: SocketAddr,
    http_addr: Option<SocketAddr>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Handle {
    /// Where it answers gRPC.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    /// Where it answers HTTP, if it does.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http_addr
    }

    /// Waits until one of its parts ended by itself, which none should: the coordinator is of no use then.
    pub async fn wait(&mut self) {
        self.tasks.join_next().await;
    }

    /// Stops intake, lets what is under way end, and returns; what is not done stays in the hub.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let drained = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(Duration::from_secs(5), drained).await.is_err() {
            self.tasks.shutdown().await;
        }
    }
}

/// Starts a coordinator on listeners that are bound already. Boxed, so that it is compiled here, once.
///
/// # Errors
/// `unreachable` when broker or hub do not answer.
pub fn start(
    options: Options,
    grpc: TcpListener,
    http: Option<TcpListener>,
) -> BoxFuture<'static, Result<Handle, Problem>> {
    Box::pin(started(options, grpc, http))
}

async fn started(options: Options, grpc: TcpListener, http: Option<TcpListener>) -> Result<Handle, Problem> {
    let local = |l: &TcpListener| l.local_addr().map_err(|e| Problem::new(Code::Internal, e.to_string()));
    let grpc_addr = local(&grpc)?;
    let http_addr = http.as_ref().map(local).transpose()?;
    let (sweep_every, read_only) = (options.sweep_every, options.read_only);
    let core = Core::new(options).await?;
    let stop = CancellationToken::new();

    // Each of these runs until `stop`; none may end before.
    let mut tasks = JoinSet::new();
    if !read_only {
        for queue in [RESULTS, QUARANTINE] {
            core.broker.declare(queue).await?;
        }
        let results = core.broker.consume(RESULTS, collect::PREFETCH).await?;
        tasks.spawn(dispatch::run(core.clone(), stop.clone()));
        tasks.spawn(collect::run(core.clone(), results, stop.clone()));
        tasks.spawn(sweep::run(core.clone(), sweep_every, stop.clone()));
    }
    if let Some(http) = http {
        tasks.spawn(api::http::run(core.clone(), http, stop.clone()));
    }
    tasks.spawn(api::grpc::run(core, grpc, stop.clone()));
    Ok(Handle { grpc_addr, http_addr, stop, tasks })
}
