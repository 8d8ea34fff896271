//! An engine as data: what a worker's configuration says of it.

use super::{Layout, template};
use modelmeter_common::{
    Problem,
    container::Container,
    device::DeviceKind,
    engine::{EngineInfo, Protocol},
    model::Format,
};
use modelmeter_meter::endpoint::Endpoint;
use serde_json::Value;
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// An engine that this worker may launch or use.
#[derive(Clone, Debug)]
pub struct EngineSpec {
    /// Its name in requests.
    pub name: String,
    /// Its version; none: the server is asked.
    pub version: Option<String>,
    /// How it comes to serve.
    pub launch: Launch,
    /// What its artifact must look like on disk.
    pub layout: Layout,
    /// What clients speak to it.
    pub protocol: Protocol,
    /// Where it listens by default; a kind of device without ports is one that it cannot run on.
    pub ports: Ports,
    /// The artifact formats that it loads.
    pub formats: Vec<Format>,
    /// From launch to ready, at most.
    pub ready_timeout: Duration,
}

/// How an engine comes to serve.
#[derive(Clone, Debug)]
pub enum Launch {
    /// A process of this machine, started for each deployment.
    ///
    /// `args` and the values of `env` may hold `{model}` (path of the artifact as [`Layout`] has it), `{model_name}`,
    /// `{grpc_port}`, `{http_port}`, `{metrics_port}`, `{settings}` (JSON), `{device}` (`cpu` or `cuda:0`) and `{signature}` (JSON of the inputs, their
    /// batch axis -1). Each stays one argument whatever is put in.
    Process {
        /// The executable: a path, or a name on PATH.
        program: PathBuf,
        /// Its arguments.
        args: Vec<String>,
        /// Set besides the worker's own environment.
        env: BTreeMap<String, String>,
    },
    /// A container of this machine's Docker, started for each deployment. The model is mounted read-only; `{model}` is
    /// where it lies inside, and ports are mapped on loopback.
    Docker {
        /// The image and its set-up.
        container: Container,
        /// The command, with placeholders as of a process; empty: the image's own.
        args: Vec<String>,
        /// Set in the container.
        env: BTreeMap<String, String>,
    },
    /// A server that already runs.
    Attach {
        /// Its gRPC port.
        endpoint: Endpoint,
        /// The model's name there.
        model: String,
    },
}

impl Launch {
    /// The word in documents.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Process { .. } => "process",
            Self::Docker { .. } => "docker",
            Self::Attach { .. } => "attach",
        }
    }
}

impl EngineSpec {
    /// Checks what can be checked before anything is launched.
    ///
    /// # Errors
    /// `invalid_argument`, naming what of the engine's configuration makes no sense.
    pub fn validate(&self) -> Result<(), Problem> {
        let field = format!("engines.{}", self.name);
        match &self.launch {
            Launch::Process { args, env, .. } => {
                args.iter().chain(env.values()).try_for_each(|text| template::check(text, &field))
            }
            Launch::Docker { container, .. } if container.image.is_empty() => {
                Err(Problem::invalid(format!("{field}.docker.image"), "no image was given")
                    .with_hint("for example repository:tag"))
            }
            Launch::Docker { container, args, env } => {
                let templates = args.iter().chain(env.values()).chain(&container.mount);
                templates.into_iter().try_for_each(|text| template::check(text, &field))
            }
            Launch::Attach { .. } => Ok(()),
        }
    }

    /// Whether it takes these settings, as far as that can be said before it is launched.
    ///
    /// # Errors
    /// `invalid_argument` naming the setting or value that it does not take, with what it takes.
    pub fn check_settings(&self, settings: &BTreeMap<String, Value>) -> Result<(), Problem> {
        self.layout.check_settings(&self.name, settings)
    }

    /// Whether it can serve on this kind of device.
    pub fn runs_on(&self, kind: DeviceKind) -> bool {
        matches!(self.launch, Launch::Attach { .. }) || self.ports.on(kind).is_some()
    }
}

/// Where an engine listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortPair {
    /// HTTP; 0 for any free one.
    pub http: u16,
    /// gRPC; 0 for any free one.
    pub grpc: u16,
    /// Metrics, where the engine has a port for them; 0 for any free one.
    pub metrics: Option<u16>,
}

impl PortPair {
    pub(super) fn all(&self) -> impl Iterator<Item = u16> {
        [self.http, self.grpc].into_iter().chain(self.metrics)
    }
}

/// An engine's default ports by kind of device; none: it does not run there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ports {
    /// On CPU slots.
    pub cpu: Option<PortPair>,
    /// On GPU slots.
    pub gpu: Option<PortPair>,
}

impl Ports {
    /// Those of a built-in engine.
    pub fn of(engine: &EngineInfo) -> Self {
        let pair = |(http, grpc)| PortPair { http, grpc, metrics: engine.metrics_port };
        Self { cpu: Some(pair(engine.cpu_ports)), gpu: engine.gpu_ports.map(pair) }
    }

    /// Those for a kind of device.
    pub fn on(&self, kind: DeviceKind) -> Option<PortPair> {
        match kind {
            DeviceKind::Cpu => self.cpu,
            DeviceKind::Gpu => self.gpu,
            DeviceKind::Remote => None,
        }
    }
}
