//! What an engine needs on disk before it is launched, made of the cached artifact and removed with the deployment.

use super::{
    material::{Folder, Material},
    settings::Settings,
    template, tfs, triton,
};
use modelmeter_common::{Problem, artifact::external, device::DeviceKind, model::Format, task::Cell};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// How an engine wants its artifact.
#[derive(Clone, Debug, Default)]
pub enum Layout {
    /// As it is: `{model}` is the artifact's file or directory; of an ONNX file with its data beside it the ONNX file.
    #[default]
    Plain,
    /// `{model}` is a Triton model repository.
    Triton(triton::Backends),
    /// `{model}` is a folder of numbered versions, as TensorFlow Serving watches it.
    Tfs,
}

/// What was laid out.
#[derive(Debug)]
pub(super) struct Laid {
    /// What `{model}` stands for.
    pub model: Option<PathBuf>,
    /// The file or folder that holds it and all that goes with it.
    pub root: Option<PathBuf>,
    /// The model's name in the server.
    pub name: String,
    /// Arguments after the engine's own.
    pub args: Vec<String>,
    /// Where it lies, if anything had to be made.
    pub folder: Option<Folder>,
}

impl Layout {
    /// Whether an engine of this layout takes these settings; what a plain one takes is its own to say.
    pub(super) fn check_settings(&self, engine: &str, settings: &BTreeMap<String, Value>) -> Result<(), Problem> {
        let known: &[_] = match self {
            Self::Plain => return Ok(()),
            Self::Triton(_) => &triton::SETTINGS,
            Self::Tfs => &tfs::SETTINGS,
        };
        Settings::check(engine, settings, known).map(drop)
    }

    /// Makes what the engine needs in `folder`, which is emptied first.
    ///
    /// # Errors
    /// `invalid_argument` for settings, or an artifact that cannot be laid out; `storage`.
    pub(super) fn lay_out(
        &self,
        cell: &Cell,
        artifact: Option<&Path>,
        device: DeviceKind,
        folder: PathBuf,
    ) -> Result<Laid, Problem> {
        let name = template::model_name(&cell.model.name);
        if matches!(self, Self::Plain) {
            let model = match &cell.artifact {
                Some(about) if about.format == Format::Onnx => artifact.map(external::model_file),
                _ => artifact.map(Path::to_owned),
            };
            let root = artifact.map(Path::to_owned);
            return Ok(Laid { model, root, name, args: Vec::new(), folder: None });
        }
        let (Some(artifact), Some(about)) = (artifact, &cell.artifact) else {
            return Err(Problem::invalid("model", format!("engine {} needs an artifact", cell.engine)));
        };
        let folder = Folder::make(folder)?;
        let material = Material {
            engine: &cell.engine,
            artifact,
            format: about.format,
            model_name: &name,
            inputs: &cell.inputs,
            settings: &cell.engine_settings,
            device,
            folder: folder.path(),
        };
        let (name, args) = match self {
            Self::Triton(backends) => (triton::lay_out(backends, &material)?, triton::flags(material.folder)),
            Self::Tfs => (name.clone(), tfs::lay_out(&material)?),
            Self::Plain => unreachable!("returned above"),
        };
        let root = Some(folder.path().to_owned());
        Ok(Laid { model: root.clone(), root, name, args, folder: Some(folder) })
    }
}
