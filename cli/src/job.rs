//! Raw `profile` arguments → one validated job: what to measure and how to print it. Pure but for reading the file.

mod flags;

use crate::{
    args::{Budget, ProfileArgs},
    report::Format,
};
use modelmeter_common::{
    Problem, artifact,
    device::{REMOTE_CLASS, class_of},
    engine::Protocol,
    error::did_you_mean,
    load::Load,
    model::{self, ModelName, TensorSpec},
    request::Request,
};
use modelmeter_meter::endpoint::Endpoint;
use modelmeter_worker::inspector::Custom;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// What the model argument means.
#[derive(Clone, PartialEq, Debug)]
pub enum Target {
    /// Files and directories on this machine.
    Files(Files),
    /// A built-in model's or a hub's name; the hub's own wins.
    Name(String),
    /// A server that already runs.
    Endpoint {
        /// Its gRPC port.
        endpoint: Endpoint,
        /// What it calls the model.
        model: String,
        /// What it speaks.
        protocol: Protocol,
        /// The model's inputs, where it does not tell them itself.
        inputs: Vec<TensorSpec>,
        /// The class of what it runs on.
        device_class: String,
    },
}

/// One model in one or more formats.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Files {
    /// What to call it; none: as the first file is called, in the version that its content gives.
    pub name: Option<ModelName>,
    /// Where it lies; without a format, what it is found to be.
    pub paths: Vec<(Option<model::Format>, PathBuf)>,
    /// What it takes, where that is to beat what the files say.
    pub inputs: Vec<TensorSpec>,
}

/// A `profile` command, validated as far as it can be without a hub.
#[derive(Clone, Debug)]
pub struct Job {
    /// What to measure.
    pub target: Target,
    /// What to ask for; `model` is filled in once the target is resolved.
    pub request: Request,
    /// Where the request does not say how long it may take, it has the usual budget, which depends on the number of its cells.
    pub usual_budget: bool,
    /// Show the plan alone.
    pub dry_run: bool,
    /// How to print.
    pub format: Format,
    /// Print each load point: the user named them.
    pub points: bool,
    /// Inspectors of this program, besides those of the configuration.
    pub inspectors: BTreeMap<String, Custom>,
}

/// Makes the job. `embedded`: it will run in this process.
pub fn resolve(args: &ProfileArgs, embedded: bool, json: bool) -> Result<Job, Problem> {
    let mut request = match &args.file {
        Some(path) => read(path)?,
        None => Request::default(),
    };
    let from_file = args.file.is_some();
    let target = target(args, &request.model)?;
    flags::fill(&mut request, args)?;
    if let Target::Endpoint { device_class, .. } = &target {
        attach(&mut request, args, device_class, embedded)?;
    } else if embedded && !from_file && args.engines.is_empty() {
        quick_start(&mut request, &target);
    }
    let job = Job::new(target, request, embedded)?;
    Ok(Job {
        points: points_named(&job.request.load),
        format: args.report.format(json),
        usual_budget: embedded && args.budget != Some(Budget::None),
        dry_run: args.dry_run,
        ..job
    })
}

impl Job {
    /// A job that measures what is asked for and prints one table. `embedded`: it will run in this process.
    ///
    /// # Errors
    /// What is wrong with the request, as far as that can be said before the target is resolved.
    pub fn new(target: Target, request: Request, embedded: bool) -> Result<Self, Problem> {
        // The hub's name is not known yet, and everything else can be checked now.
        Request { model: "m".into(), ..request.clone() }.validate()?;
        Ok(Self {
            target,
            request,
            usual_budget: embedded,
            dry_run: false,
            format: Format::Table,
            points: false,
            inspectors: BTreeMap::new(),
        })
    }
}

fn points_named(load: &Load) -> bool {
    match load {
        Load::Closed { concurrencies } => concurrencies.len() > 1,
        Load::Open { rates, .. } => rates.len() > 1,
        Load::SlaSearch { .. } => false,
    }
}

fn read(path: &Path) -> Result<Request, Problem> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Problem::invalid("file", format!("cannot read {}: {e}", path.display())))?;
    toml::from_str(&text).map_err(|e: toml::de::Error| {
        let line = e.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        Problem::invalid("file", format!("{}, line {line}: {}", path.display(), e.message().trim()))
            .with_hint("use the keys of a request, such as batch_sizes = [1, 8] or stop = { max_duration_ms = 5000 }")
    })
}

fn target(args: &ProfileArgs, in_file: &str) -> Result<Target, Problem> {
    let name = args.model.as_ref().or(args.model_name.as_ref());
    if let Some(address) = &args.endpoint {
        if !args.artifacts.paths().is_empty() {
            return Err(Problem::invalid("endpoint", "a server that already runs has its own model")
                .with_hint("leave the model's files out"));
        }
        let model = args.model_name.as_ref().or(args.model.as_ref()).ok_or_else(|| {
            Problem::invalid("model", "--endpoint needs the name of a model on that server")
                .with_hint("add --model NAME")
        })?;
        return Ok(Target::Endpoint {
            endpoint: Endpoint::new(address, &args.tls.files())?,
            model: model.clone(),
            protocol: protocol(args.protocol.as_deref())?,
            inputs: args.artifacts.inputs.clone(),
            device_class: args.device_class.as_deref().map_or_else(|| REMOTE_CLASS.to_owned(), class_of),
        });
    }
    let name = name.map(String::as_str).or(Some(in_file).filter(|name| !name.is_empty()));
    named(name, args.artifacts.paths(), args.artifacts.inputs.clone())
}

/// What a name means, and the files and inputs given beside it.
///
/// # Errors
/// `invalid_argument` where nothing was named, or inputs are given for what says its own.
pub fn named(
    name: Option<&str>,
    paths: Vec<(model::Format, PathBuf)>,
    inputs: Vec<TensorSpec>,
) -> Result<Target, Problem> {
    if !paths.is_empty() {
        let paths = paths.into_iter().map(|(format, path)| (Some(format), path)).collect();
        let name = name.map(str::parse).transpose()?;
        return Ok(Target::Files(Files { name, paths, inputs }));
    }
    let given = name.ok_or_else(|| {
        Problem::invalid("model", "no model was named").with_hint(format!(
            "give the path of a file, a model in the hub, or a built-in one: {}",
            modelmeter_serving::reference::NAMES.join(", ")
        ))
    })?;
    if is_path(given) {
        return Ok(Target::Files(Files { name: None, paths: vec![(None, given.into())], inputs }));
    }
    if !inputs.is_empty() {
        return Err(Problem::invalid("input", format!("the inputs of {given} are known"))
            .with_hint("use --input for files only, and --shape for the lengths of open axes"));
    }
    Ok(Target::Name(given.into()))
}

fn protocol(given: Option<&str>) -> Result<Protocol, Problem> {
    const KNOWN: [Protocol; 3] = [Protocol::KserveV2, Protocol::Tfs, Protocol::MlmodelciPredict];
    let given = given.unwrap_or(Protocol::KserveV2.as_str());
    KNOWN.into_iter().find(|known| known.as_str() == given).ok_or_else(|| {
        let names = KNOWN.map(Protocol::as_str);
        let meant = did_you_mean(given, names);
        Problem::invalid("protocol", format!("unknown protocol '{given}'"))
            .with_hint(format!("{meant}the protocols are {}", names.join(", ")))
    })
}

/// Whether the model argument means a file or a model's directory: it looks like one, or there is one of that name.
fn is_path(given: &str) -> bool {
    let suffix = Path::new(given).extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    given.contains('/')
        || matches!(suffix.as_str(), "onnx" | "pt" | "pth")
        || artifact::detect(Path::new(given)).is_ok()
}

fn is_built_in(target: &Target) -> bool {
    matches!(target, Target::Name(name) if modelmeter_serving::reference::NAMES.contains(&name.as_str()))
}

/// Lets a built-in model be measured on a bare machine, where no engine was named: with the one that is always there.
pub fn quick_start(request: &mut Request, target: &Target) {
    if is_built_in(target) {
        request.engines = vec!["rten".into()];
        // Settings of an engine that was not named still mean that engine.
        request.engines.extend(request.engine_settings.keys().filter(|e| *e != "rten").cloned());
    }
}

fn attach(request: &mut Request, args: &ProfileArgs, device_class: &str, embedded: bool) -> Result<(), Problem> {
    if !embedded {
        return Err(Problem::invalid(
            "endpoint",
            "a server that already runs is measured from this machine, not by workers",
        )
        .with_hint("leave --coordinator out, and unset MODELMETER_COORDINATOR"));
    }
    if let Some(named) = args.engines.iter().find(|engine| *engine != "endpoint") {
        return Err(Problem::invalid("engines", format!("--engines {named} and --endpoint cannot be used together"))
            .with_hint("leave --engines out: the server at --endpoint is the engine"));
    }
    if args.engine_cpus.is_some() {
        return Err(Problem::invalid("engine_cpus", "--engine-cpus and --endpoint cannot be used together").with_hint(
            "leave --engine-cpus out: a server that already runs keeps its cores; --client-cpus moves the client",
        ));
    }
    if let Some(word) = args.devices.first() {
        return Err(Problem::invalid("devices", format!("--devices {word} and --endpoint cannot be used together"))
            .with_hint("leave --devices out; --device-class NAME says what the server runs on"));
    }
    request.engines = vec!["endpoint".into()];
    request.devices = vec![device_class.to_owned()];
    Ok(())
}

#[cfg(test)]
mod tests;
