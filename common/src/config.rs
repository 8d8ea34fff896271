//! The effective configuration: defaults < `modelmeter.toml` < environment `MODELMETER_*` < flags.
//!
//! The first three are merged here; flags are applied by the command line, which owns them.

mod environment;
mod sources;
mod text;

pub use environment::unknown_variables;
pub use sources::{FILE, Sources, load};
pub use text::{cpus, duration};

use crate::{
    container::Container,
    engine::Protocol,
    model::Format,
    redact::{HIDDEN, redact},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// Everything that can be configured.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where cache, journal and the sqlite hub live; by default below the user's data directory.
    pub home: PathBuf,
    /// Of commands that talk to a coordinator.
    pub client: Client,
    /// Of `modelmeter coordinator`.
    pub coordinator: Coordinator,
    /// Of `modelmeter worker`.
    pub worker: Worker,
    /// By engine.
    pub engine: Engines,
    /// Engines of the user's own, by name.
    pub engines: BTreeMap<String, CustomEngine>,
    /// Inspectors of the user's own, by name.
    pub inspectors: BTreeMap<String, CustomInspector>,
}

/// Where commands find their coordinator.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Client {
    /// `http://host:port` of each coordinator; empty: profile in this process.
    pub coordinators: Vec<String>,
}

/// A coordinator that serves others.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Coordinator {
    /// Where it answers gRPC, `host:port`; port 0: a free one.
    pub listen: String,
    /// Where it answers HTTP, `host:port`.
    pub http: String,
    /// `amqp://…`.
    pub broker: Option<String>,
    /// `mongodb://…`, or a path of an sqlite file.
    pub hub: Option<String>,
    /// How long a claim holds without being renewed, as `30s`.
    pub lease: String,
    /// Whether it may listen beyond loopback although nothing authenticates its callers.
    pub insecure_listen: bool,
}

impl Default for Coordinator {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7600".into(),
            http: "127.0.0.1:7601".into(),
            broker: None,
            hub: None,
            lease: "30s".into(),
            insecure_listen: false,
        }
    }
}

/// A worker of a cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Worker {
    /// Unique in its cluster; by default the host's name.
    pub name: Option<String>,
    /// `amqp://…`.
    pub broker: Option<String>,
    /// `http://host:port` of each coordinator.
    pub coordinators: Vec<String>,
    /// `cpu`, `gpu`, `all`, device classes, or one device as `gpu:0` or by its UUID.
    pub devices: Vec<String>,
    /// The host's cores are shared out over this many slots.
    pub cpu_slots: u32,
    /// Where engines listen.
    pub ports: Ports,
    /// Where the locks lie that keep workers of one host from measuring on the same device; by default the system's.
    pub lock_dir: Option<PathBuf>,
    /// Logical cores for the client's threads, as `0-3,6`; by default what `engine_cpus` leaves, or one for each slot
    /// where there are at least four.
    pub client_cpus: Option<String>,
    /// Logical cores for the engines; by default what the client leaves.
    pub engine_cpus: Option<String>,
    /// Whether other workers of this host may measure on the CPU at the same time.
    pub shared_cpu: bool,
    /// Free words that `workers` shows.
    pub labels: BTreeMap<String, String>,
    /// The engines that it offers; empty: each that can run here.
    pub engines: Vec<String>,
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            name: None,
            broker: None,
            coordinators: Vec::new(),
            devices: vec!["all".into()],
            cpu_slots: 1,
            ports: Ports::Default,
            lock_dir: None,
            client_cpus: None,
            engine_cpus: None,
            shared_cpu: false,
            labels: BTreeMap::new(),
            engines: Vec::new(),
        }
    }
}

/// Where engines listen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ports {
    /// On the documented ports; a busy one is an error.
    #[default]
    Default,
    /// On free ones.
    Auto,
}

/// What engines need to be told about this machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Engines {
    /// From launch to ready, at most, as `2m`: a large model is read and optimised in this time.
    pub ready_timeout: String,
    /// ONNX Runtime.
    pub onnx: Onnx,
    /// rten.
    pub rten: Rten,
    /// TorchScript.
    pub torchscript: Torchscript,
    /// Triton.
    pub triton: Triton,
    /// TensorFlow Serving.
    pub tfs: Tfs,
}

impl Default for Engines {
    fn default() -> Self {
        Self {
            ready_timeout: "2m".into(),
            onnx: Onnx::default(),
            rten: Rten::default(),
            torchscript: Torchscript::default(),
            triton: Triton::default(),
            tfs: Tfs::default(),
        }
    }
}

impl Engines {
    /// [`Self::ready_timeout`] as a duration; [`load`] refuses what is none.
    pub fn ready_timeout(&self) -> Duration {
        duration(&self.ready_timeout).unwrap_or(Duration::from_secs(120))
    }
}

/// Triton.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Triton {
    /// The path of `tritonserver`; by default the one on PATH, else the one in the Python package `nvidia-pytriton`.
    pub server: Option<PathBuf>,
    /// The folder of its backends; by default `backends` beside the server's folder.
    pub backends: Option<PathBuf>,
    /// The Python that has `nvidia-pytriton`, and what its Python backend imports; by default the active virtual
    /// environment's, then `python3`.
    pub python: Option<PathBuf>,
    /// Serve in a container of an image with `tritonserver` on its PATH, as NVIDIA's.
    pub docker: Option<Container>,
}

/// TensorFlow Serving.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tfs {
    /// The path of `tensorflow_model_server`; by default the one on PATH.
    pub server: Option<PathBuf>,
    /// Serve in a container of an image with `tensorflow_model_server` on its PATH, as `tensorflow/serving`.
    pub docker: Option<Container>,
}

/// TorchScript.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Torchscript {
    /// The Python that has torch and grpcio; by default the active virtual environment's, then `python3`.
    pub python: Option<PathBuf>,
}

/// ONNX Runtime.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Onnx {
    /// The path of `libonnxruntime.so`; by default it is looked for.
    pub library: Option<PathBuf>,
    /// Serve in a container of an image with modelmeter and ONNX Runtime in it, as this project's Dockerfile makes.
    pub docker: Option<Container>,
}

/// rten.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rten {
    /// Serve in a container of an image with modelmeter in it, as this project's Dockerfile makes.
    pub docker: Option<Container>,
}

/// A server that speaks a known protocol, as an engine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CustomEngine {
    /// The program and its arguments, which may hold `{model}`, `{model_name}`, `{grpc_port}`, `{http_port}`,
    /// `{settings}`, `{device}` and `{signature}`. In a container: what the image is given, nothing by default.
    pub command: Vec<String>,
    /// Run it in a container.
    pub docker: Option<Container>,
    /// Set besides modelmeter's own environment, in a container besides the image's; values may hold the same.
    pub env: BTreeMap<String, String>,
    /// The artifact formats that it loads.
    pub formats: Vec<Format>,
    /// What it speaks; it is also asked by it whether it is ready.
    pub protocol: Protocol,
    /// Where it answers HTTP in the first slot; 0: a free port.
    pub http_port: u16,
    /// Where it answers gRPC in the first slot; 0: a free port.
    pub grpc_port: u16,
    /// What it can run on: `cpu`, `gpu`.
    pub devices: Vec<String>,
    /// From launch to ready, at most.
    pub ready_timeout: String,
    /// By default it is asked.
    pub version: Option<String>,
}

impl Default for CustomEngine {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            docker: None,
            env: BTreeMap::new(),
            formats: Vec::new(),
            protocol: Protocol::KserveV2,
            http_port: 0,
            grpc_port: 0,
            devices: vec!["cpu".into()],
            ready_timeout: "120s".into(),
            version: None,
        }
    }
}

/// A program that makes the requests and checks the responses; it speaks `proto/inspector.proto`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CustomInspector {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Set besides modelmeter's own environment.
    pub env: BTreeMap<String, String>,
    /// What is timed.
    pub timed_in: TimedIn,
    /// Each of its answers may take this long.
    pub timeout: String,
}

impl Default for CustomInspector {
    fn default() -> Self {
        Self { command: Vec::new(), env: BTreeMap::new(), timed_in: TimedIn::Modelmeter, timeout: "60s".into() }
    }
}

/// Whose calls are timed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimedIn {
    /// Our own client's, with the requests that the inspector made.
    #[default]
    Modelmeter,
    /// The inspector's.
    Child,
}

impl Config {
    /// As TOML, with the passwords in addresses, and what engines and inspectors get in their environment, blanked out.
    pub fn dump(&self) -> String {
        let mut shown = self.clone();
        let addresses = [&mut shown.coordinator.broker, &mut shown.coordinator.hub, &mut shown.worker.broker];
        addresses.into_iter().flatten().for_each(|url| *url = redact(url));
        let lists = shown.client.coordinators.iter_mut().chain(&mut shown.worker.coordinators);
        lists.for_each(|url| *url = redact(url));
        let engines = shown.engines.values_mut().map(|engine| &mut engine.env);
        let env = engines.chain(shown.inspectors.values_mut().map(|inspector| &mut inspector.env));
        env.flat_map(BTreeMap::values_mut).for_each(|value| *value = HIDDEN.into());
        toml::to_string_pretty(&shown).expect("a configuration holds nothing that TOML cannot carry")
    }
}

#[cfg(test)]
mod tests;
