//! The one model of a server: its names, its signature, and the threads that run it.

use crate::{
    Options,
    backend::{self, Backend, null::Null},
    settings,
    tensor::Tensor,
};
use modelmeter_common::{
    Code, Problem, artifact,
    model::{Format, TensorSpec},
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::{mpsc, oneshot};

/// Requests that may wait for a backend before their senders are held back.
const QUEUE: usize = 8192;

/// Inputs on their way in, outputs on their way back.
struct Job {
    inputs: Vec<Tensor>,
    reply: oneshot::Sender<Result<Vec<Tensor>, Problem>>,
}

/// A loaded model.
pub struct Engine {
    /// The engine's name.
    pub name: String,
    /// Its real version.
    pub version: String,
    /// The name that requests ask for.
    pub model_name: String,
    /// What the model takes.
    pub inputs: Vec<TensorSpec>,
    /// What it gives.
    pub outputs: Vec<TensorSpec>,
    runner: Runner,
}

enum Runner {
    /// Work so small that handing it to a thread would cost more.
    Inline(Null),
    /// Blocking work, on threads that end when this sender is dropped.
    Threads(mpsc::Sender<Job>),
}

impl Engine {
    /// Reads and loads the model; blocks meanwhile.
    ///
    /// # Errors
    /// As [`crate::serve`].
    pub fn load(options: &Options) -> Result<Self, Problem> {
        if !crate::ENGINES.contains(&options.engine.as_str()) {
            return Err(settings::unknown(&options.engine));
        }
        let settings = settings::parse(&options.engine, &options.settings)?;
        let format = artifact::detect(&options.model)?;
        if format != Format::Onnx {
            let message = format!("engine {} loads onnx, not {format}", options.engine);
            return Err(Problem::invalid("model", message));
        }
        let signature = artifact::signature(&options.model, format)?;
        let (version, runner) = match options.engine.as_str() {
            "null" => (modelmeter_common::VERSION.to_owned(), Runner::Inline(Null::new(&signature))),
            "rten" => {
                let backends = backend::rten::load(&options.model, &signature, &settings)?;
                (backend::rten::VERSION.to_owned(), Runner::Threads(spawn(backends)?))
            }
            _ => {
                let located = crate::onnxruntime::locate(options.onnxruntime.as_deref())?;
                let backends = backend::onnx::load(&located, &options.model, &signature, &settings)?;
                (located.version, Runner::Threads(spawn(backends)?))
            }
        };
        tracing::info!(engine = options.engine, version, model = %options.model.display(), "model is loaded");
        Ok(Self {
            name: options.engine.clone(),
            version,
            model_name: options.model_name.clone(),
            inputs: signature.inputs,
            outputs: signature.outputs,
            runner,
        })
    }

    /// Runs the model on checked inputs, in the signature's order; gives its outputs in theirs.
    ///
    /// # Errors
    /// What the backend says; `engine_failed` when it has died.
    pub async fn infer(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, Problem> {
        let jobs = match &self.runner {
            Runner::Inline(null) => return null.infer(&inputs),
            Runner::Threads(jobs) => jobs,
        };
        let died = || Problem::new(Code::EngineFailed, "the engine's thread has died");
        let (reply, answer) = oneshot::channel();
        jobs.send(Job { inputs, reply }).await.map_err(|_| died())?;
        answer.await.map_err(|_| died())?
    }
}

/// One thread for each backend, all taking from one queue.
fn spawn<B: Backend + 'static>(backends: Vec<B>) -> Result<mpsc::Sender<Job>, Problem> {
    let (sender, jobs) = mpsc::channel(QUEUE);
    let jobs = Arc::new(Mutex::new(jobs));
    for (number, backend) in backends.into_iter().enumerate() {
        let jobs = jobs.clone();
        std::thread::Builder::new()
            .name(format!("infer-{number}"))
            .spawn(move || backend.occupy(|backend| run(backend, &jobs)))
            .map_err(|error| Problem::new(Code::EngineFailed, format!("cannot start a thread: {error}")))?;
    }
    Ok(sender)
}

/// Takes jobs until no sender is left.
fn run(mut backend: impl Backend, jobs: &Mutex<mpsc::Receiver<Job>>) {
    loop {
        let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
        let Some(Job { inputs, reply }) = next else { return };
        if reply.is_closed() {
            // The client has given up: its turn goes to the next.
            continue;
        }
        // A defect in an engine fails one request, not the server.
        let outputs = catch_unwind(AssertUnwindSafe(|| backend.infer(&inputs)))
            .unwrap_or_else(|_| Err(Problem::new(Code::EngineFailed, "the engine panicked: its log says why")));
        let _ = reply.send(outputs);
    }
}
