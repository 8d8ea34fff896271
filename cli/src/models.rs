//! From what the user calls the model to a model in the hub.

use crate::{
    client::Client,
    job::{Files, Target},
};
use modelmeter_common::{
    Code, Problem, SCHEMA_VERSION, Timestamp,
    artifact::{self, Opened},
    engine::Protocol,
    error::did_you_mean,
    model::{ArtifactRef, Format, Model, ModelName, ModelRef, TensorSpec},
    signature::{filled, same_inputs},
    wire::sha256_hex,
};
use modelmeter_meter::endpoint::Endpoint;
use modelmeter_serving::reference;
use modelmeter_worker::inspector::{self, Metadata, ServerWait};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// Characters of an artifact's sha256 that make a version.
const VERSION_LENGTH: usize = 12;

/// A model that was found on this machine, to be put into the hub.
#[derive(Clone, PartialEq, Debug)]
pub struct Local {
    /// The model.
    pub model: Model,
    /// Its artifacts' files.
    pub files: Vec<(ArtifactRef, PathBuf)>,
}

impl Local {
    /// Adds it to what the hub has of this very version: a format that is named again is replaced.
    pub async fn add(&self, client: &mut Client) -> Result<Model, Problem> {
        let files: Vec<(ArtifactRef, &Path)> = self.files.iter().map(|(a, path)| (a.clone(), path.as_path())).collect();
        client.add_model(&self.model, &files).await
    }
}

/// What can be found without a hub, checked whole: a file, a built-in model, what an endpoint serves. None: a name
/// that only the hub can know.
/// A server that is not up yet is waited for.
pub async fn local(target: &Target, home: &Path, patience: ServerWait<'_>) -> Result<Option<Local>, Problem> {
    match target {
        Target::Files(named) => files(named).await.map(Some),
        Target::Name(name) if reference::NAMES.contains(&name.as_str()) => {
            let (name, cache) = (name.clone(), home.join("cache"));
            let path = blocking(move || reference::ensure(&name, &cache)).await?;
            files(&Files { paths: vec![(Some(Format::Onnx), path)], ..Files::default() }).await.map(Some)
        }
        Target::Name(_) => Ok(None),
        Target::Endpoint { endpoint, model, protocol, inputs, .. } => {
            let (inputs, outputs) = match protocol {
                Protocol::MlmodelciPredict => (stated(endpoint, inputs, patience).await?, Vec::new()),
                Protocol::KserveV2 | Protocol::Tfs => told(endpoint, model, *protocol, inputs, patience).await?,
            };
            Ok(Some(attached(endpoint, model, inputs, outputs)))
        }
    }
}

/// The model that is meant, which the hub need not have yet. A built-in name means that model, whatever the hub calls so.
pub async fn meant(target: &Target, local: Option<&Local>, client: &mut Client) -> Result<Model, Problem> {
    let is_deployable = |model: &Model| !model.artifacts.is_empty();
    let Target::Name(given) = target else {
        return Ok(local.expect("files and endpoints are found without a hub").model.clone());
    };
    let named: ModelName = given.parse()?;
    let mut known = client.models(Some(&named.name)).await?;
    if let Some(local) = local {
        if let Some(other) = known.iter().find(|model| is_deployable(model) && model.id != local.model.id) {
            tracing::warn!("{given} is the built-in model; the hub's own is {}", other.id);
        }
        return Ok(local.model.clone());
    }
    if known.iter().any(is_deployable) {
        // Not what was measured at an endpoint under that name.
        known.retain(is_deployable);
    }
    match known.iter().find(|model| named.is(&model.id)) {
        Some(model) => Ok(model.clone()),
        None => Err(unknown(given, &known, client).await?),
    }
}

async fn unknown(given: &str, known: &[Model], client: &mut Client) -> Result<Problem, Problem> {
    let problem = Problem::new(Code::NotFound, format!("there is no model '{given}'")).with_field("model");
    if !known.is_empty() {
        let versions: Vec<&str> = known.iter().map(|m| m.id.version.as_str()).collect();
        return Ok(problem.with_hint(format!("the hub has these versions of it: {}", versions.join(", "))));
    }
    let others = client.models(None).await?;
    let names = others.iter().map(|m| m.id.name.as_str()).chain(reference::NAMES);
    let meant = did_you_mean(given, names);
    let built_in = reference::NAMES.join(", ");
    Ok(problem.with_hint(format!(
        "{meant}give the path of a file, a model that `modelmeter model list` shows, or a built-in one: {built_in}"
    )))
}

/// A model's files and directories, with the signature that they carry, or were given.
///
/// # Errors
/// As [`artifact::open`]; `invalid_argument` where formats contradict each other or none says what the model takes.
pub async fn files(files: &Files) -> Result<Local, Problem> {
    let mut opened = Vec::new();
    for (format, path) in &files.paths {
        opened.push((open(*format, path.clone()).await?, path.clone()));
    }
    let (first, _) = opened.first().ok_or_else(|| {
        Problem::invalid("model", "no file of the model was given")
            .with_hint("for example --onnx FILE or --savedmodel DIR")
    })?;
    let telling: Vec<&Opened> = opened.iter().map(|(opened, _)| opened).filter(|o| !o.inputs.is_empty()).collect();
    let inputs = match telling.first() {
        Some(one) => {
            telling.iter().try_for_each(|other| same_inputs(one, other))?;
            filled(&one.inputs, &files.inputs, |spec| !spec.is_shaped())?
        }
        None if !files.inputs.is_empty() => files.inputs.clone(),
        None => {
            let message = format!("this {} file does not tell the model's inputs", first.artifact.format);
            return Err(Problem::invalid("input", message)
                .with_hint("state them without the batch axis, for example --input x:fp32:3,224,224"));
        }
    };
    let artifacts: Vec<ArtifactRef> = opened.iter().map(|(opened, _)| opened.artifact.clone()).collect();
    let model = Model {
        schema_version: SCHEMA_VERSION,
        id: id(files.name.as_ref(), &first.name_stem, &artifacts),
        created_at: Timestamp::now(),
        artifacts,
        inputs,
        outputs: telling.first().map(|one| one.outputs.clone()).unwrap_or_default(),
        weights: opened.iter().flat_map(|(opened, _)| opened.weights.iter().copied()).collect(),
    };
    Ok(Local { model, files: opened.into_iter().map(|(opened, path)| (opened.artifact, path)).collect() })
}

async fn open(format: Option<Format>, path: PathBuf) -> Result<Opened, Problem> {
    let opened = blocking(move || {
        let found = artifact::detect(&path)?;
        match format {
            Some(said) if said != found => {
                Err(Problem::invalid("model", format!("{} is a {found} model, not {said}", path.display()))
                    .with_hint(format!("give it as --{found}")))
            }
            _ => artifact::open(&path),
        }
    });
    opened.await
}

/// A model is called as its first file is, and its version is of its content, unless it was named.
fn id(named: Option<&ModelName>, name_stem: &str, artifacts: &[ArtifactRef]) -> ModelRef {
    ModelRef {
        name: named.map_or(name_stem, |named| &named.name).to_owned(),
        version: named.and_then(|named| named.version.clone()).unwrap_or_else(|| version(artifacts)),
    }
}

/// The version that its content gives a model.
fn version(artifacts: &[ArtifactRef]) -> String {
    let whole = match artifacts {
        [only] => only.sha256.clone(),
        several => sha256_hex(several.iter().map(|artifact| artifact.sha256.as_str()).collect::<String>().as_bytes()),
    };
    whole.chars().take(VERSION_LENGTH).collect()
}

/// The signature of a model at an endpoint, as its server tells it, with what the user states of it. A server may tell
/// nothing: then that is all there is.
async fn told(
    endpoint: &Endpoint,
    name: &str,
    protocol: Protocol,
    stated: &[TensorSpec],
    patience: ServerWait<'_>,
) -> Result<(Vec<TensorSpec>, Vec<TensorSpec>), Problem> {
    let found = inspector::metadata(protocol, endpoint, name, patience).await;
    let metadata = match found {
        Err(problem) if problem.code == Code::InvalidArgument && !stated.is_empty() => Metadata::default(),
        Err(problem) => return Err(unattached(problem)),
        Ok(metadata) => metadata,
    };
    // A shape without axes is how protocols say both: a scalar, and nothing.
    let inputs = filled(&metadata.inputs, stated, |spec| spec.shape.is_empty())?;
    Ok((inputs, metadata.outputs))
}

fn unattached(problem: Problem) -> Problem {
    Problem {
        field: problem.field.or_else(|| Some("endpoint".into())),
        hint: problem
            .hint
            .or_else(|| Some("check the address (the gRPC port, not the HTTP one), --protocol and --model".into())),
        // Whatever it was, it was found before anything started.
        code: if problem.code.exit_code() == 2 { problem.code } else { Code::Unreachable },
        message: problem.message,
    }
}

/// The inputs as the user states them, of a server that does not; that it is there at all is seen.
async fn stated(
    endpoint: &Endpoint,
    inputs: &[TensorSpec],
    patience: ServerWait<'_>,
) -> Result<Vec<TensorSpec>, Problem> {
    if inputs.is_empty() {
        return Err(Problem::invalid("input", "servers of this protocol do not tell the model's inputs")
            .with_hint("state them without the batch axis, for example --input x:fp32:3,224,224"));
    }
    inspector::reach(endpoint, patience).await?;
    Ok(inputs.to_vec())
}

fn attached(endpoint: &Endpoint, name: &str, inputs: Vec<TensorSpec>, outputs: Vec<TensorSpec>) -> Local {
    let version = signature_version(&endpoint.to_string(), &inputs, &outputs);
    let id = ModelRef { name: name.to_owned(), version };
    let (schema_version, created_at) = (SCHEMA_VERSION, Timestamp::now());
    let weights = BTreeSet::new();
    let model = Model { schema_version, id, created_at, artifacts: Vec::new(), inputs, outputs, weights };
    Local { model, files: Vec::new() }
}

/// A server does not show its weights: where it is and what it takes tell its models apart.
fn signature_version(address: &str, inputs: &[TensorSpec], outputs: &[TensorSpec]) -> String {
    let text =
        serde_json::to_string(&(address, inputs, outputs)).expect("signatures hold nothing that JSON cannot carry");
    sha256_hex(text.as_bytes()).chars().take(VERSION_LENGTH).collect()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Problem> + Send + 'static) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(Problem::new(Code::Internal, e.to_string())))
}
