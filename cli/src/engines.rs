//! Which engines can run on this machine: what the worker may launch, and what `modelmeter engines` says.

use crate::{custom, tfs, torchscript, triton};
use modelmeter_common::{
    Code, Problem, VERSION,
    config::{Config, CustomEngine},
    container::Container,
    device::DeviceKind,
    engine::{self, ENDPOINT, EngineInfo, Protocol},
    error::did_you_mean,
};
use modelmeter_meter::endpoint::Endpoint;
use modelmeter_serving::onnxruntime;
use modelmeter_worker::{EngineSpec, Lacking, Launch, Layout, Ports, docker_version, sample};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// One engine on this machine.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Found {
    /// Its name in requests.
    pub name: String,
    /// What it is.
    pub title: &'static str,
    /// The artifact formats that it loads.
    pub formats: Vec<&'static str>,
    /// Whether it can run here, now.
    pub available: bool,
    /// How it is launched here: `process` or `docker`.
    pub launch: &'static str,
    /// Whether it can use a GPU, where there is one.
    pub gpu: bool,
    /// Its version, where known.
    pub version: Option<String>,
    /// Where it was found.
    pub location: Option<PathBuf>,
    /// If it cannot run: why.
    pub reason: Option<String>,
    /// If it cannot run: what to do.
    pub hint: Option<String>,
}

impl Found {
    /// Why it cannot run here.
    fn problem(&self) -> Problem {
        Problem::new(Code::NotInstalled, self.reason.as_deref().unwrap_or("it cannot run here"))
            .with_hint(self.hint.as_deref().unwrap_or("see `modelmeter engines`"))
    }
}

/// Looks at every built-in engine but `endpoint`, which is not installed but attached to, and at those of the
/// configuration.
pub fn survey(config: &Config) -> Vec<Found> {
    let built_in = engine::ENGINES.iter().filter(|info| info.name != ENDPOINT).map(|info| look(info, config));
    built_in.chain(config.engines.iter().map(|(name, engine)| look_at_custom(name, engine))).collect()
}

fn look_at_custom(name: &str, engine: &CustomEngine) -> Found {
    let image = engine.docker.as_ref().map(|container| &container.image);
    let daemon = || if image.is_some() { docker_version().map(drop) } else { Ok(()) };
    let problem = custom::engine(name, engine).map(drop).and_then(|()| daemon()).err();
    Found {
        name: name.to_owned(),
        title: "defined in the configuration",
        formats: engine.formats.iter().map(|format| format.as_str()).collect(),
        available: problem.is_none(),
        launch: if image.is_some() { "docker" } else { "process" },
        gpu: engine.devices.iter().any(|device| device == "gpu"),
        version: engine.version.clone(),
        location: image.or(engine.command.first()).map(PathBuf::from),
        reason: problem.as_ref().map(ToString::to_string),
        hint: problem.and_then(|problem| problem.hint),
    }
}

fn look(info: &EngineInfo, config: &Config) -> Found {
    let found = Found {
        name: info.name.to_owned(),
        title: info.title,
        formats: info.formats.iter().map(|format| format.as_str()).collect(),
        available: false,
        launch: "process",
        gpu: false,
        version: None,
        location: None,
        reason: None,
        hint: None,
    };
    if let Some(container) = container(info.name, config) {
        let found = Found { launch: "docker", location: Some(container.image.clone().into()), ..found };
        return match docker_version() {
            Ok(_) => Found { available: true, ..found },
            Err(problem) => Found { reason: Some(problem.message), hint: problem.hint, ..found },
        };
    }
    match info.name {
        "onnx" => match onnxruntime::locate(config.engine.onnx.library.as_deref()) {
            Ok(located) => {
                Found { available: true, version: Some(located.version), location: Some(located.path), ..found }
            }
            Err(problem) => Found { reason: Some(problem.message), hint: problem.hint, ..found },
        },
        "torchscript" => torchscript::look(found, config),
        "triton" => triton::look(found, config),
        "tfs" => tfs::look(found, config),
        name => {
            let version = if name == "rten" { modelmeter_serving::RTEN_VERSION } else { VERSION };
            match server_program() {
                Ok(program) => {
                    Found { available: true, version: Some(version.into()), location: Some(program), ..found }
                }
                Err(problem) => Found { reason: Some(problem.message), hint: problem.hint, ..found },
            }
        }
    }
}

/// The image that the configuration gives an engine to be served from.
fn container<'a>(engine: &str, config: &'a Config) -> Option<&'a Container> {
    match engine {
        "onnx" => config.engine.onnx.docker.as_ref(),
        "rten" => config.engine.rten.docker.as_ref(),
        "triton" => config.engine.triton.docker.as_ref(),
        "tfs" => config.engine.tfs.docker.as_ref(),
        _ => None,
    }
}

/// The engines that a worker on this machine may launch, and why not the others.
#[derive(Clone, Default, Debug)]
pub struct Offer {
    /// What it may launch.
    pub specs: Vec<EngineSpec>,
    /// What it may not.
    pub lacking: Lacking,
}

impl Offer {
    /// The first engine that it lacks, as the error of whoever cannot do without.
    pub fn lack(&self) -> Option<Problem> {
        let (name, why) = self.lacking.engines.first_key_value()?;
        Some(Problem { message: format!("engine '{name}': {}", why.message), ..why.clone() }.with_field("engines"))
    }
}

/// What a worker on this machine has of the wanted engines. `wanted` empty: of all.
///
/// # Errors
/// `invalid_argument` for an unknown one.
pub fn offer(wanted: &[String], config: &Config) -> Result<Offer, Problem> {
    let found = survey(config);
    if let Some(name) = wanted.iter().find(|name| !found.iter().any(|f| f.name == **name)) {
        return Err(unknown(name, &found));
    }
    let mut offer = Offer::default();
    for found in found.iter().filter(|f| wanted.is_empty() || wanted.contains(&f.name)) {
        let spec = if found.available { spec_of(found, config) } else { Err(found.problem()) };
        match spec {
            Ok(spec) => offer.specs.push(spec),
            Err(problem) if problem.code == Code::NotInstalled => {
                offer.lacking.engines.insert(found.name.clone(), problem);
            }
            Err(problem) => return Err(problem),
        }
    }
    let usable = offer.specs.iter().any(|spec| spec.runs_on(DeviceKind::Gpu));
    let no_gpu = sample::devices().1.or_else(|| (!usable).then(|| "no engine here runs on GPUs".into()));
    offer.lacking.gpu = no_gpu.map(|why| Problem::new(Code::NotInstalled, why));
    Ok(offer)
}

/// The same, where each engine that was named must be able to run here.
///
/// # Errors
/// `not_installed` for one that cannot, with what to do; `invalid_argument` for an unknown one.
pub fn whole_offer(wanted: &[String], config: &Config) -> Result<Offer, Problem> {
    let offer = offer(wanted, config)?;
    match offer.lack().filter(|_| !wanted.is_empty()) {
        Some(problem) => Err(problem),
        None => Ok(offer),
    }
}

fn spec_of(found: &Found, config: &Config) -> Result<EngineSpec, Problem> {
    match (found.name.as_str(), config.engines.get(&found.name)) {
        (name, Some(engine)) => custom::engine(name, engine),
        ("torchscript", None) => torchscript::spec(found, config),
        ("triton", None) => triton::spec(config),
        ("tfs", None) => Ok(tfs::spec(found, config)),
        (_, None) => Ok(spec(found, &server_program()?, config)),
    }
}

fn unknown(name: &str, found: &[Found]) -> Problem {
    let names = found.iter().map(|f| f.name.as_str());
    let meant = did_you_mean(name, names.clone());
    Problem::invalid("engines", format!("unknown engine '{name}'"))
        .with_hint(format!("{meant}the engines here are {}", names.collect::<Vec<_>>().join(", ")))
}

/// One of the engines that this very program serves.
fn spec(found: &Found, program: &Path, config: &Config) -> EngineSpec {
    let info = engine::find(&found.name).expect("surveyed from the table of engines");
    let mut args: Vec<String> = ["serve", "--engine", info.name, "--model", "{model}", "--model-name", "{model_name}"]
        .into_iter()
        .chain(["--grpc-port", "{grpc_port}", "--http-port", "{http_port}", "--settings", "{settings}"])
        .map(str::to_owned)
        .collect();
    let env = BTreeMap::new();
    let launch = match (container(info.name, config), info.name, &found.location) {
        (Some(container), ..) => {
            args.extend(["--host", "0.0.0.0"].map(str::to_owned));
            Launch::Docker { container: container.clone(), args, env }
        }
        (None, "onnx", Some(library)) => {
            args.extend(["--onnxruntime".to_owned(), library.display().to_string()]);
            Launch::Process { program: program.to_owned(), args, env }
        }
        _ => Launch::Process { program: program.to_owned(), args, env },
    };
    EngineSpec {
        name: info.name.to_owned(),
        version: None,
        launch,
        layout: Layout::Plain,
        protocol: info.protocol,
        // The built-in servers run models on the CPU: on a GPU slot they would measure the wrong device.
        ports: Ports { gpu: None, ..Ports::of(info) },
        formats: info.formats.to_vec(),
        ready_timeout: config.engine.ready_timeout(),
    }
}

/// A server that already runs, as an engine.
pub fn endpoint(endpoint: &Endpoint, model: &str, protocol: Protocol, config: &Config) -> EngineSpec {
    EngineSpec {
        name: ENDPOINT.into(),
        version: None,
        launch: Launch::Attach { endpoint: endpoint.clone(), model: model.into() },
        layout: Layout::Plain,
        protocol,
        ports: Ports::default(),
        formats: Vec::new(),
        ready_timeout: config.engine.ready_timeout(),
    }
}

/// A program on PATH.
pub fn on_path(name: impl AsRef<Path>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(&name)).find(|candidate| candidate.is_file())
}

/// Set where this process is `modelmeter` itself, whatever its file is called.
static IS_THE_PROGRAM: OnceLock<()> = OnceLock::new();

/// Says that this process is `modelmeter` itself: it can serve.
pub fn this_is_the_program() {
    IS_THE_PROGRAM.get_or_init(|| ());
}

/// The program that serves: `modelmeter` itself; for a program that uses the library, the one beside it or on PATH.
///
/// # Errors
/// `not_installed` when there is none.
pub fn server_program() -> Result<PathBuf, Problem> {
    const NAME: &str = "modelmeter";
    let own = std::env::current_exe()
        .map_err(|e| Problem::new(Code::Internal, format!("cannot find the path of this program: {e}")))?;
    if IS_THE_PROGRAM.get().is_some() {
        return Ok(own);
    }
    // Examples and tests lie one folder below the binary.
    let mut beside = own.ancestors().skip(1).take(2).map(|dir| dir.join(NAME));
    beside.find(|candidate| candidate.is_file()).or_else(|| on_path(NAME)).ok_or_else(|| {
        Problem::new(Code::NotInstalled, "the program `modelmeter`, which serves the built-in engines, was not found")
            .with_hint("build it (cargo build --release -p modelmeter), or put it on PATH")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_installed_says_what_to_install() {
        this_is_the_program();
        let mut config = Config::default();
        config.engine.triton.server = Some("/nowhere/tritonserver".into());
        config.engine.tfs.server = Some("/nowhere/tensorflow_model_server".into());
        let found = survey(&config);
        let of = |name: &str| found.iter().find(|f| f.name == name).unwrap();
        assert!(of("rten").available && of("null").available);
        for (name, variable) in [("triton", "MODELMETER_ENGINE_TRITON_SERVER"), ("tfs", "MODELMETER_ENGINE_TFS_SERVER")]
        {
            assert!(!of(name).available && of(name).reason.as_deref().unwrap().contains("/nowhere"));
            assert!(of(name).hint.as_deref().unwrap().contains(variable));
        }
    }

    #[test]
    fn a_wanted_engine_that_cannot_run_is_an_error_with_a_hint() {
        this_is_the_program();
        let mut config = Config::default();
        config.engine.triton.server = Some("/nowhere/tritonserver".into());
        let wrong = |name: &str| whole_offer(&[name.to_owned()], &config).unwrap_err();
        assert_eq!((wrong("triton").code, wrong("rtn").code), (Code::NotInstalled, Code::InvalidArgument));
        assert!(wrong("rtn").hint.unwrap().contains("did you mean 'rten'"));
        let mut config = Config::default();
        config.engine.onnx.library = Some("/nowhere/libonnxruntime.so".into());
        let error = whole_offer(&["onnx".to_owned()], &config).unwrap_err();
        assert_eq!(error.code, Code::NotInstalled);
        assert!(error.message.contains("/nowhere"), "{error}");
        // Without it there is what is left, and why.
        let left = offer(&["onnx".to_owned(), "rten".to_owned()], &config).unwrap();
        assert!(left.specs.iter().map(|spec| spec.name.as_str()).eq(["rten"]));
        assert!(left.lacking.engines["onnx"].message.contains("/nowhere"), "{left:?}");
    }
}
