//! The coordinator: accepts requests, expands them, schedules the tasks, collects and folds the results.
//!
//! It never measures and never imports the worker: the two meet in `proto` and `common`.
//! Decisions are pure functions ([`plan`], [`aggregate`]); what may be asked is decided in [`service`]; the loops of the
//! coordinator that leads ([`leader`], [`collect`]) only read, ask and compare-and-swap.

pub mod aggregate;
pub mod api;
mod bulletin;
pub mod clock;
pub mod collect;
pub mod core;
pub mod events;
pub mod hub;
pub mod leader;
mod peers;
pub mod plan;
pub mod service;

use crate::{
    clock::Clock,
    core::{Core, Leadership},
    hub::Hub,
    leader::Candidate,
};
use futures::future::BoxFuture;
use modelmeter_common::{
    Code, Problem,
    broker::{Broker, QUARANTINE, RESULTS},
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// Options of a coordinator.
pub struct Options {
    /// The broker, for hints and results.
    pub broker: Arc<dyn Broker>,
    /// The hub, which is the truth.
    pub hub: Arc<dyn Hub>,
    /// How long a claim holds without being renewed.
    pub lease: Duration,
    /// How often the sweep looks for what was lost.
    pub sweep_every: Duration,
    /// Whether the coordinator only answers questions and never leads, since another process may lead on the same hub.
    pub read_only: bool,
    /// Whether the process holds a lock by which no other process leads on this hub: it then leads at once.
    pub is_alone: bool,
    /// The clock of all rules with time.
    pub clock: Arc<dyn Clock>,
}

impl Options {
    /// The defaults: a lease of 30 s, a sweep each second.
    pub fn new(broker: Arc<dyn Broker>, hub: Arc<dyn Hub>) -> Self {
        Self {
            broker,
            hub,
            lease: Duration::from_secs(30),
            sweep_every: Duration::from_secs(1),
            read_only: false,
            is_alone: false,
            clock: Arc::new(clock::Real::default()),
        }
    }
}

/// A running coordinator.
pub struct Handle {
    grpc_addr: SocketAddr,
    http_addr: Option<SocketAddr>,
    core: Arc<Core>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Handle {
    /// The address of the gRPC port.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    /// The address of the HTTP port, if there is one.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http_addr
    }

    /// Whether the coordinator leads now.
    pub fn leadership(&self) -> Leadership {
        *self.core.leadership.borrow()
    }

    /// Whether the coordinator hears of what happens through others of its hub.
    pub fn hears_others(&self) -> bool {
        self.core.outbox.hears()
    }

    /// Waits until a part of the coordinator ends by itself, which is a fault that stops it from working.
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
    let (sweep_every, read_only, is_alone) = (options.sweep_every, options.read_only, options.is_alone);
    let candidate = Candidate::new(grpc_addr, is_alone);
    let core = Core::new(options).await?;
    let stop = CancellationToken::new();

    // Each of these runs until `stop`; none may end before.
    let mut tasks = JoinSet::new();
    if !read_only {
        for queue in [RESULTS, QUARANTINE] {
            core.broker.declare(queue).await?;
        }
        tasks.spawn(leader::run(core.clone(), candidate, sweep_every, stop.clone()));
        if !is_alone {
            tasks.spawn(peers::run(core.clone(), stop.clone()));
        }
    }
    if let Some(http) = http {
        tasks.spawn(api::http::run(core.clone(), http, stop.clone()));
    }
    tasks.spawn(api::grpc::run(core.clone(), grpc, stop.clone()));
    Ok(Handle { grpc_addr, http_addr, core, stop, tasks })
}
