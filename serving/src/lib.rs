//! The built-in model server: KServe v2 over gRPC and REST in front of `onnx` (ONNX Runtime, loaded at run time),
//! `rten` (pure Rust) and `null` (answers at once with zeros), and the built-in reference models.
//!
//! What belongs here: answering requests as a serving engine does, one model a process. Nothing here launches a
//! process, measures, or knows of coordinators and workers.
//!
//! A request's way: [`grpc`] or [`http`] → [`request`] (checked against the model's signature) → [`engine`] (a bounded
//! channel) → [`backend`] (blocking, on threads of its own) → response. See `design.md` beside this file.

pub mod onnxruntime;
pub mod reference;
pub mod torchscript;

mod backend;
mod contents;
mod engine;
mod grpc;
mod http;
mod request;
mod settings;
mod tensor;

use futures::future::BoxFuture;
use modelmeter_common::{Code, Problem};
use serde_json::Value;
use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use settings::{check_settings, io_threads};

/// The engines that this room serves.
pub const ENGINES: [&str; 3] = ["onnx", "rten", "null"];

/// The version of the rten crate that is linked.
pub const RTEN_VERSION: &str = backend::rten::VERSION;

/// The largest request and response, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 1 << 30;

/// How long calls in progress may take to end after a shutdown was asked for.
const DRAIN: Duration = Duration::from_secs(3);

/// What to serve, and how.
#[derive(Clone, PartialEq, Debug)]
pub struct Options {
    /// One of [`ENGINES`].
    pub engine: String,
    /// An ONNX file.
    pub model: PathBuf,
    /// The name that requests ask for.
    pub model_name: String,
    /// The engine's settings, as [`check_settings`] accepts them.
    pub settings: BTreeMap<String, Value>,
    /// Where ONNX Runtime's library or its folder is; none: it is looked for ([`onnxruntime::locate`]).
    pub onnxruntime: Option<PathBuf>,
}

/// Loads the model, then answers on both listeners until `stop`; ends calls in progress, for a few seconds at most.
/// Nothing is accepted before the model is loaded, so a server that answers is ready. Boxed, so that it is compiled
/// here, once and for speed.
///
/// # Errors
/// What [`check_settings`] and `modelmeter_common::artifact::signature` refuse; `not_installed` without an ONNX Runtime;
/// `engine_failed` when the engine cannot load the model; `internal` when a listener fails.
pub fn serve(
    options: Options,
    grpc: TcpListener,
    http: TcpListener,
    stop: CancellationToken,
) -> BoxFuture<'static, Result<(), Problem>> {
    Box::pin(load_and_serve(options, grpc, http, stop))
}

async fn load_and_serve(
    options: Options,
    grpc_listener: TcpListener,
    http_listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), Problem> {
    let loading = tokio::task::spawn_blocking(move || engine::Engine::load(&options));
    let engine = tokio::select! {
        loaded = loading => Arc::new(loaded.map_err(|error| Problem::new(Code::Internal, error.to_string()))??),
        () = stop.cancelled() => return Ok(()),
    };
    let servers = async {
        tokio::try_join!(
            grpc::serve(engine.clone(), grpc_listener, stop.clone()),
            http::serve(engine.clone(), http_listener, stop.clone()),
        )
    };
    tokio::pin!(servers);
    let ended = tokio::select! {
        ended = &mut servers => ended,
        () = stop.cancelled() => {
            // Connections that do not end in time are dropped with the runtime.
            tokio::time::timeout(DRAIN, servers).await.unwrap_or(Ok(((), ())))
        }
    };
    ended.map(|_| ())
}
