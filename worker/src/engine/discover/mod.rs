//! Discovery: which engines can run on this machine, how each is launched, and what the others need.
//!
//! What belongs here: looking for programs, libraries and packages, one file an engine. What does not: launching them,
//! which is the rest of [`crate::engine`].

mod custom;
mod served;
mod tfs;
mod torchscript;
mod triton;

use super::{EngineSpec, Launch, Layout, Ports, docker_version};
use crate::sample;
use modelmeter_common::{
    Code, Problem,
    config::{Config, CustomEngine},
    container::Container,
    device::DeviceKind,
    engine::{self, ENDPOINT, EngineInfo, Protocol},
    error::did_you_mean,
    request::Request,
    task::Cell,
};
use modelmeter_meter::endpoint::Endpoint;
use serde::Serialize;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// The engines behind which a server lies that comes with modelmeter.
const OWN_SERVERS: [&str; 4] = ["onnx", "rten", "null", "torchscript"];

/// A library's path and version.
pub type Library = (PathBuf, String);

/// The model servers that come with modelmeter, as the crate that links them describes them: a worker does not.
#[derive(Clone, Copy, Debug)]
pub struct Servers {
    /// The program that serves `onnx`, `rten` and `null`.
    pub program: fn() -> Result<PathBuf, Problem>,
    /// The version of rten in that program.
    pub rten_version: &'static str,
    /// Looks for ONNX Runtime's library, at the configured place if there is one; gives its path and version.
    pub onnxruntime: fn(Option<&Path>) -> Result<Library, Problem>,
    /// Writes the TorchScript server below this folder; gives the file for a Python to run.
    pub torchscript: fn(&Path) -> Result<PathBuf, Problem>,
    /// Checks settings of one of these engines, by name.
    pub check_settings: fn(&str, &BTreeMap<String, Value>) -> Result<(), Problem>,
}

/// Where engines are looked for: this machine, as its configuration says.
#[derive(Clone, Copy, Debug)]
pub struct Discovery<'a> {
    /// Paths, images and engines of the user's own.
    pub config: &'a Config,
    /// What needs no looking for.
    pub servers: Servers,
}

/// One engine on this machine, as it was found.
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

impl Discovery<'_> {
    /// Looks at every built-in engine but `endpoint`, which is not installed but attached to, and at those of the
    /// configuration.
    pub fn survey(&self) -> Vec<Found> {
        let built_in = engine::ENGINES.iter().filter(|info| info.name != ENDPOINT).map(|info| self.look(info));
        built_in.chain(self.config.engines.iter().map(|(name, engine)| look_at_custom(name, engine))).collect()
    }

    fn look(&self, info: &EngineInfo) -> Found {
        let Self { config, .. } = self;
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
            "torchscript" => torchscript::look(found, self),
            "triton" => triton::look(found, config),
            "tfs" => tfs::look(found, config),
            _ => served::look(found, self),
        }
    }

    /// What a worker on this machine has of the wanted engines. `wanted` empty: of all.
    ///
    /// # Errors
    /// `invalid_argument` for an unknown one.
    pub fn offer(&self, wanted: &[String]) -> Result<Offer, Problem> {
        let found = self.survey();
        if let Some(name) = wanted.iter().find(|name| !found.iter().any(|f| f.name == **name)) {
            return Err(unknown(name, &found));
        }
        let mut offer = Offer::default();
        for found in found.iter().filter(|f| wanted.is_empty() || wanted.contains(&f.name)) {
            let spec = if found.available { self.spec(found) } else { Err(found.problem()) };
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
    pub fn whole_offer(&self, wanted: &[String]) -> Result<Offer, Problem> {
        let offer = self.offer(wanted)?;
        match offer.lack().filter(|_| !wanted.is_empty()) {
            Some(problem) => Err(problem),
            None => Ok(offer),
        }
    }

    /// Checks the settings of a request, as far as these engines or the ones that come with modelmeter take them. Each value
    /// is checked by itself: a list gives a cell for each.
    ///
    /// # Errors
    /// `invalid_argument`, naming the setting.
    pub fn check_settings(&self, request: &Request, engines: &[EngineSpec]) -> Result<(), Problem> {
        for (engine, settings) in &request.engine_settings {
            let spec = engines.iter().find(|spec| spec.name == *engine);
            for (setting, value) in settings {
                let values = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
                for one in values {
                    let one = [(setting.clone(), one)].into();
                    match spec {
                        _ if OWN_SERVERS.contains(&engine.as_str()) => (self.servers.check_settings)(engine, &one)?,
                        Some(spec) => spec.check_settings(&one)?,
                        None => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// How an engine that was found is launched.
    fn spec(&self, found: &Found) -> Result<EngineSpec, Problem> {
        let Self { config, .. } = self;
        match (found.name.as_str(), config.engines.get(&found.name)) {
            (name, Some(engine)) => custom::spec(name, engine),
            ("torchscript", None) => torchscript::spec(found, self),
            ("triton", None) => triton::spec(config),
            ("tfs", None) => Ok(tfs::spec(found, config)),
            (_, None) => served::spec(found, self),
        }
    }
}

fn look_at_custom(name: &str, engine: &CustomEngine) -> Found {
    let image = engine.docker.as_ref().map(|container| &container.image);
    let daemon = || if image.is_some() { docker_version().map(drop) } else { Ok(()) };
    let problem = custom::spec(name, engine).map(drop).and_then(|()| daemon()).err();
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

/// What this machine cannot offer, and why: told to whoever asks for it.
#[derive(Clone, Default, Debug)]
pub struct Lacking {
    /// By engine.
    pub engines: BTreeMap<String, Problem>,
    /// Set where there is no GPU that an engine could run on.
    pub gpu: Option<Problem>,
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
    /// Leaves out the engines that no cell runs on, whose ports others may have; but not the last of a slot.
    pub fn leave_unused(&mut self, cells: &[Cell], slots: &[DeviceKind]) {
        let is_used = |spec: &EngineSpec| cells.iter().any(|cell| cell.engine == spec.name);
        let runs = |kind: &DeviceKind| self.specs.iter().any(|spec| is_used(spec) && spec.runs_on(*kind));
        if slots.iter().all(runs) {
            self.specs.retain(is_used);
        }
    }

    /// The first engine that it lacks, as the error of whoever cannot do without.
    pub fn lack(&self) -> Option<Problem> {
        let (name, why) = self.lacking.engines.first_key_value()?;
        Some(Problem { message: format!("engine '{name}': {}", why.message), ..why.clone() }.with_field("engines"))
    }
}

fn unknown(name: &str, found: &[Found]) -> Problem {
    let names = found.iter().map(|f| f.name.as_str());
    let meant = did_you_mean(name, names.clone());
    Problem::invalid("engines", format!("unknown engine '{name}'"))
        .with_hint(format!("{meant}the engines here are {}", names.collect::<Vec<_>>().join(", ")))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Servers of no program: nothing is launched here.
    pub(super) const SERVERS: Servers = Servers {
        program: || Ok("/nowhere/modelmeter".into()),
        rten_version: "1",
        onnxruntime: |configured| {
            let place = configured.unwrap_or(Path::new("the system"));
            Err(Problem::new(Code::NotInstalled, format!("there is no library at {}", place.display())))
        },
        torchscript: |folder| Ok(folder.join("server.py")),
        check_settings: |_, _| Ok(()),
    };

    fn discovery(config: &Config) -> Discovery<'_> {
        Discovery { config, servers: SERVERS }
    }

    #[test]
    fn what_is_not_installed_says_what_to_install() {
        let mut config = Config::default();
        config.engine.triton.server = Some("/nowhere/tritonserver".into());
        config.engine.tfs.server = Some("/nowhere/tensorflow_model_server".into());
        let found = discovery(&config).survey();
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
        let mut config = Config::default();
        config.engine.triton.server = Some("/nowhere/tritonserver".into());
        let wrong = |name: &str| discovery(&config).whole_offer(&[name.to_owned()]).unwrap_err();
        assert_eq!((wrong("triton").code, wrong("rtn").code), (Code::NotInstalled, Code::InvalidArgument));
        assert!(wrong("rtn").hint.unwrap().contains("did you mean 'rten'"));
        let mut config = Config::default();
        config.engine.onnx.library = Some("/nowhere/libonnxruntime.so".into());
        let error = discovery(&config).whole_offer(&["onnx".to_owned()]).unwrap_err();
        assert_eq!(error.code, Code::NotInstalled);
        assert!(error.message.contains("/nowhere"), "{error}");
        // Without it there is what is left, and why.
        let left = discovery(&config).offer(&["onnx".to_owned(), "rten".to_owned()]).unwrap();
        assert!(left.specs.iter().map(|spec| spec.name.as_str()).eq(["rten"]));
        assert!(left.lacking.engines["onnx"].message.contains("/nowhere"), "{left:?}");
    }
}
