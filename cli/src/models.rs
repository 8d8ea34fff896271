//! From what the user calls the model to a model in the hub.

use crate::{client::Client, job::Target};
use modelmeter_common::{
    Code, Problem, SCHEMA_VERSION, Timestamp, artifact,
    error::closest,
    model::{ArtifactRef, Format, Model, ModelRef, TensorSpec},
    wire::sha256_hex,
};
use modelmeter_serving::reference;
use modelmeter_worker::inspector::kserve_v2;
use std::path::{Path, PathBuf};

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
    /// Puts it into the hub; gives `name:version`.
    pub async fn add(&self, client: &mut Client) -> Result<String, Problem> {
        let files: Vec<(ArtifactRef, &Path)> = self.files.iter().map(|(a, path)| (a.clone(), path.as_path())).collect();
        client.add_model(&self.model, &files).await?;
        Ok(self.model.id.to_string())
    }
}

/// What can be found without a hub, checked whole: a file, a built-in model, what an endpoint serves. None: a name
/// that only the hub can know.
pub async fn local(target: &Target, home: &Path) -> Result<Option<Local>, Problem> {
    match target {
        Target::File(path) => file(path.clone(), None).await.map(Some),
        Target::Name(name) if reference::NAMES.contains(&name.as_str()) => {
            let (name, cache) = (name.clone(), home.join("cache"));
            let path = blocking(move || reference::ensure(&name, &cache)).await?;
            file(path, None).await.map(Some)
        }
        Target::Name(_) => Ok(None),
        Target::Endpoint { address, model } => endpoint(address, model).await.map(Some),
    }
}

/// The model's name in the hub, after putting there what is not there yet. A hub's own model beats a built-in one of
/// the same name.
pub async fn in_hub(target: &Target, local: Option<&Local>, client: &mut Client) -> Result<String, Problem> {
    let Target::Name(given) = target else {
        return local.expect("files and endpoints are found without a hub").add(client).await;
    };
    let (name, version) = given.split_once(':').map_or((given.as_str(), None), |(n, v)| (n, Some(v)));
    let known = client.models(Some(name)).await?;
    match (known.first(), local) {
        (Some(newest), Some(local)) if newest.artifacts.iter().all(|a| !local.model.artifacts.contains(a)) => {
            Ok(newest.id.to_string())
        }
        (_, Some(local)) => local.add(client).await,
        (Some(_), None) if version.is_none_or(|v| known.iter().any(|m| m.id.version == v)) => Ok(given.clone()),
        (newest, None) => Err(unknown(given, newest.is_some(), &known, client).await?),
    }
}

async fn unknown(given: &str, name_is_known: bool, known: &[Model], client: &mut Client) -> Result<Problem, Problem> {
    let problem = Problem::new(Code::NotFound, format!("there is no model '{given}'")).with_field("model");
    if name_is_known {
        let versions: Vec<&str> = known.iter().map(|m| m.id.version.as_str()).collect();
        return Ok(problem.with_hint(format!("its versions are {}", versions.join(", "))));
    }
    let others = client.models(None).await?;
    let names = others.iter().map(|m| m.id.name.as_str()).chain(reference::NAMES);
    let meant = closest(given, names).map(|near| format!("did you mean '{near}'? ")).unwrap_or_default();
    let built_in = reference::NAMES.join(", ");
    Ok(problem
        .with_hint(format!("{meant}name a file, a model of `modelmeter model list`, or a built-in one: {built_in}")))
}

/// An artifact in a file, with the signature that it carries itself. `name`: else the file's.
pub async fn file(path: PathBuf, name: Option<String>) -> Result<Local, Problem> {
    let at = path.clone();
    let opened = blocking(move || artifact::open(&at)).await?;
    let id = ModelRef { name: name.unwrap_or(opened.name_stem), version: version(&opened.artifact) };
    let model = Model {
        schema_version: SCHEMA_VERSION,
        id,
        created_at: Timestamp::now(),
        artifacts: vec![opened.artifact.clone()],
        inputs: opened.inputs,
        outputs: opened.outputs,
    };
    Ok(Local { model, files: vec![(opened.artifact, path)] })
}

/// An artifact in a file that does not carry its signature.
pub async fn opaque(path: PathBuf, format: Format) -> Result<(ArtifactRef, PathBuf), Problem> {
    let at = path.clone();
    let artifact = blocking(move || {
        let bytes =
            std::fs::read(&at).map_err(|e| Problem::invalid("model", format!("cannot read {}: {e}", at.display())))?;
        if bytes.is_empty() {
            return Err(Problem::invalid("model", format!("{} is empty", at.display())));
        }
        Ok(ArtifactRef { format, sha256: sha256_hex(&bytes), bytes: bytes.len() as u64 })
    });
    Ok((artifact.await?, path))
}

/// The version that an artifact gives its model.
pub fn version(artifact: &ArtifactRef) -> String {
    artifact.sha256.chars().take(VERSION_LENGTH).collect()
}

async fn endpoint(address: &str, name: &str) -> Result<Local, Problem> {
    let metadata = kserve_v2::metadata(address, name).await.map_err(|problem| Problem {
        field: problem.field.or_else(|| Some("endpoint".into())),
        hint: problem
            .hint
            .or_else(|| Some("check the address (the gRPC port, not the HTTP one), --protocol and --model".into())),
        // Whatever it was, it was found before anything started.
        code: if problem.code.exit_code() == 2 { problem.code } else { Code::Unreachable },
        message: problem.message,
    })?;
    let version = signature_version(address, &metadata.inputs, &metadata.outputs);
    let id = ModelRef { name: name.to_owned(), version };
    let model = Model {
        schema_version: SCHEMA_VERSION,
        id,
        created_at: Timestamp::now(),
        artifacts: Vec::new(),
        inputs: metadata.inputs,
        outputs: metadata.outputs,
    };
    Ok(Local { model, files: Vec::new() })
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
