//! The effective configuration: defaults < `modelmeter.toml` < environment `MODELMETER_*` < flags.
//!
//! The first three are merged here; flags are applied by the command line, which owns them.

use crate::{
    Problem,
    container::Container,
    engine::Protocol,
    model::Format,
    redact::{HIDDEN, redact},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};
use toml::{Table, Value};

/// The name of the file.
pub const FILE: &str = "modelmeter.toml";

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

/// What the configuration is read from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// A file that the user named: it must be there.
    pub file: Option<PathBuf>,
    /// The home that the user named by flag.
    pub home: Option<PathBuf>,
    /// Where `modelmeter.toml` is looked for first.
    pub cwd: PathBuf,
    /// The environment.
    pub env: BTreeMap<String, String>,
}

impl Sources {
    /// This process's own.
    pub fn of_process(file: Option<PathBuf>, home: Option<PathBuf>) -> Self {
        let env =
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
        Self { file, home, cwd: std::env::current_dir().unwrap_or_default(), env }
    }

    /// The home: flag, environment, or the user's data directory.
    fn home(&self) -> Option<PathBuf> {
        let var = |name: &str| self.env.get(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        self.home
            .clone()
            .or_else(|| var("MODELMETER_HOME"))
            .or_else(|| var("XDG_DATA_HOME").map(|dir| dir.join("modelmeter")))
            .or_else(|| var("HOME").map(|dir| dir.join(".local/share/modelmeter")))
    }

    /// The file to read: the one named, else the one here, else the one at home.
    fn find(&self) -> Result<Option<(PathBuf, String)>, Problem> {
        let named = self.file.clone().or_else(|| self.env.get("MODELMETER_CONFIG").map(PathBuf::from));
        let candidates = match &named {
            Some(path) => vec![path.clone()],
            None => std::iter::once(self.cwd.clone()).chain(self.home()).map(|dir| dir.join(FILE)).collect(),
        };
        for path in candidates {
            match std::fs::read_to_string(&path) {
                Ok(text) => return Ok(Some((path, text))),
                Err(e) if named.is_none() && matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
                Err(e) => return Err(Problem::invalid("config", format!("cannot read {}: {e}", path.display()))),
            }
        }
        Ok(None)
    }
}

/// Merges defaults, file and environment. Errors name the key and the file or variable that it stands in.
pub fn load(sources: &Sources) -> Result<Config, Problem> {
    let (mut table, origin) = match sources.find()? {
        Some((path, text)) => (parse(&path, &text)?, format!("{} and the environment", path.display())),
        None => (Table::new(), "the environment".to_owned()),
    };
    for variable in &VARIABLES {
        if let Some(text) = sources.env.get(variable.name) {
            set(&mut table, variable.path, variable.value(text)?);
        }
    }
    let mut config: Config = Value::Table(table)
        .try_into()
        .map_err(|e: toml::de::Error| Problem::invalid("config", format!("{} (from {origin})", e.message())))?;
    if let Some(home) = &sources.home {
        config.home.clone_from(home);
    }
    if config.home.as_os_str().is_empty() {
        config.home = sources.home().ok_or_else(|| {
            Problem::invalid("home", "there is no home directory to keep results in")
                .with_hint("name one with --home DIR")
        })?;
    }
    for (field, text) in
        [("coordinator.lease", &config.coordinator.lease), ("engine.ready_timeout", &config.engine.ready_timeout)]
    {
        duration(text).map_err(|e| Problem { field: Some(field.into()), ..e })?;
    }
    Ok(config)
}

/// Variables that others than the configuration read: where it is, and where the NVIDIA driver's library is.
const OTHER_VARIABLES: [&str; 2] = ["MODELMETER_CONFIG", "MODELMETER_NVML"];

/// Variables of the environment that start with `MODELMETER_` but that nothing reads: likely misspelt. What the
/// tests read (`MODELMETER_TEST_*`) is left alone.
pub fn unknown_variables(env: &BTreeMap<String, String>) -> Vec<&str> {
    env.keys()
        .map(String::as_str)
        .filter(|name| name.starts_with("MODELMETER_") && !name.starts_with("MODELMETER_TEST_"))
        .filter(|name| !OTHER_VARIABLES.contains(name))
        .filter(|name| VARIABLES.iter().all(|v| v.name != *name))
        .collect()
}

/// Reads a file alone, so that an unknown key is told with its file and line.
fn parse(path: &Path, text: &str) -> Result<Table, Problem> {
    let wrong = |e: &toml::de::Error| {
        let line = e.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        Problem::invalid("config", format!("{}, line {line}: {}", path.display(), e.message().trim()))
    };
    toml::from_str::<Config>(text).map_err(|e| wrong(&e))?;
    toml::from_str::<Table>(text).map_err(|e| wrong(&e))
}

fn set(table: &mut Table, path: &[&str], value: Value) {
    let (last, sections) = path.split_last().expect("a variable has a path");
    let mut table = table;
    for section in sections {
        let entry = table.entry((*section).to_owned()).or_insert_with(|| Value::Table(Table::new()));
        table = entry.as_table_mut().expect("the file was checked against the sections");
    }
    table.insert((*last).to_owned(), value);
}

/// How the text of a variable is read.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    /// Separated by commas.
    List,
    Number,
    Flag,
    /// `k=v`, separated by commas.
    Map,
}

struct Variable {
    name: &'static str,
    path: &'static [&'static str],
    kind: Kind,
}

impl Variable {
    fn value(&self, text: &str) -> Result<Value, Problem> {
        let list = || text.split(',').map(str::trim).filter(|item| !item.is_empty());
        let wrong = |what: &str| Problem::invalid(self.name, format!("'{text}' is not {what}"));
        match self.kind {
            Kind::Text => Ok(Value::String(text.to_owned())),
            Kind::List => Ok(Value::Array(list().map(|item| Value::String(item.to_owned())).collect())),
            Kind::Number => text.trim().parse().map(Value::Integer).map_err(|_| wrong("a whole number")),
            Kind::Flag => match text.trim() {
                "1" | "true" => Ok(Value::Boolean(true)),
                "0" | "false" | "" => Ok(Value::Boolean(false)),
                _ => Err(wrong("true or false")),
            },
            Kind::Map => list()
                .map(|item| item.split_once('=').map(|(k, v)| (k.to_owned(), Value::String(v.to_owned()))))
                .collect::<Option<Table>>()
                .map(Value::Table)
                .ok_or_else(|| wrong("a list of key=value")),
        }
    }
}

const fn variable(name: &'static str, path: &'static [&'static str], kind: Kind) -> Variable {
    Variable { name, path, kind }
}

const VARIABLES: [Variable; 27] = [
    variable("MODELMETER_HOME", &["home"], Kind::Text),
    variable("MODELMETER_COORDINATOR", &["client", "coordinators"], Kind::List),
    variable("MODELMETER_COORDINATOR_LISTEN", &["coordinator", "listen"], Kind::Text),
    variable("MODELMETER_COORDINATOR_HTTP", &["coordinator", "http"], Kind::Text),
    variable("MODELMETER_COORDINATOR_BROKER", &["coordinator", "broker"], Kind::Text),
    variable("MODELMETER_COORDINATOR_HUB", &["coordinator", "hub"], Kind::Text),
    variable("MODELMETER_COORDINATOR_LEASE", &["coordinator", "lease"], Kind::Text),
    variable("MODELMETER_COORDINATOR_INSECURE_LISTEN", &["coordinator", "insecure_listen"], Kind::Flag),
    variable("MODELMETER_WORKER_NAME", &["worker", "name"], Kind::Text),
    variable("MODELMETER_WORKER_BROKER", &["worker", "broker"], Kind::Text),
    variable("MODELMETER_WORKER_COORDINATORS", &["worker", "coordinators"], Kind::List),
    variable("MODELMETER_WORKER_DEVICES", &["worker", "devices"], Kind::List),
    variable("MODELMETER_WORKER_CPU_SLOTS", &["worker", "cpu_slots"], Kind::Number),
    variable("MODELMETER_WORKER_PORTS", &["worker", "ports"], Kind::Text),
    variable("MODELMETER_WORKER_LOCK_DIR", &["worker", "lock_dir"], Kind::Text),
    variable("MODELMETER_WORKER_CLIENT_CPUS", &["worker", "client_cpus"], Kind::Text),
    variable("MODELMETER_WORKER_ENGINE_CPUS", &["worker", "engine_cpus"], Kind::Text),
    variable("MODELMETER_WORKER_SHARED_CPU", &["worker", "shared_cpu"], Kind::Flag),
    variable("MODELMETER_WORKER_LABELS", &["worker", "labels"], Kind::Map),
    variable("MODELMETER_WORKER_ENGINES", &["worker", "engines"], Kind::List),
    variable("MODELMETER_ENGINE_READY_TIMEOUT", &["engine", "ready_timeout"], Kind::Text),
    variable("MODELMETER_ENGINE_ONNX_LIBRARY", &["engine", "onnx", "library"], Kind::Text),
    variable("MODELMETER_ENGINE_TORCHSCRIPT_PYTHON", &["engine", "torchscript", "python"], Kind::Text),
    variable("MODELMETER_ENGINE_TRITON_SERVER", &["engine", "triton", "server"], Kind::Text),
    variable("MODELMETER_ENGINE_TRITON_BACKENDS", &["engine", "triton", "backends"], Kind::Text),
    variable("MODELMETER_ENGINE_TRITON_PYTHON", &["engine", "triton", "python"], Kind::Text),
    variable("MODELMETER_ENGINE_TFS_SERVER", &["engine", "tfs", "server"], Kind::Text),
];

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

/// Reads a duration: a number with `ms`, `s`, `m`, `h` or `d`, as `2s`, `500ms`, `1.5m`.
pub fn duration(text: &str) -> Result<Duration, Problem> {
    let wrong = || {
        Problem::invalid("duration", format!("'{text}' is not a duration"))
            .with_hint("a number with ms, s, m, h or d, for example 2s")
    };
    let text = text.trim();
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
    let number: f64 = text[..unit_at].parse().map_err(|_| wrong())?;
    let unit = match text[unit_at..].trim() {
        "ms" => 0.001,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(number * unit).map_err(|_| wrong())
}

/// Reads a list of logical cores, as `0-3,6`: the numbers in rising order.
///
/// # Errors
/// Names `field`.
pub fn cpus(field: &str, text: &str) -> Result<Vec<u32>, Problem> {
    let wrong = || {
        Problem::invalid(field, format!("'{text}' is not a list of logical cores"))
            .with_hint("numbers below 1024 and ranges of them, for example 0-3,6; nproc says how many there are")
    };
    let number = |text: &str| text.trim().parse().ok().filter(|&n: &u32| n < MAX_CPUS).ok_or_else(wrong);
    let mut found = BTreeSet::new();
    for item in text.split(',') {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(wrong());
        }
        found.extend(first..=last);
    }
    Ok(found.into_iter().collect())
}

/// The kernel's sets of cores end here.
const MAX_CPUS: u32 = 1024;

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
