//! Models: several users may add formats of one model at once, and none is lost.

use crate::core::{Core, SWAP_TRIES};
use modelmeter_common::{Code, Problem, model::Model};

/// Puts a model into the hub, beside the other formats of its name and version; gives what is there now.
///
/// # Errors
/// `invalid_argument` for an artifact that the hub does not have.
pub async fn add(core: &Core, model: &Model) -> Result<Model, Problem> {
    for artifact in &model.artifacts {
        if !core.hub.has_artifact(&artifact.sha256).await? {
            let message = format!("the {} artifact {} is not in the hub", artifact.format, artifact.sha256);
            return Err(Problem::invalid("artifacts", message).with_hint("send the artifact first, then add the model"));
        }
    }
    for _ in 0..SWAP_TRIES {
        let stored = core.hub.model(&model.id.name, Some(&model.id.version)).await?;
        let merged = merged(stored.as_ref(), model);
        if core.hub.swap_model(stored.as_ref(), &merged).await? {
            return Ok(merged);
        }
    }
    let message = format!("model {} was changed {SWAP_TRIES} times under this change", model.id);
    Err(Problem::new(Code::Busy, message).with_hint("add it again"))
}

/// The model as it would be in the hub if it was added now.
pub(super) async fn as_added(core: &Core, model: &Model) -> Result<Model, Problem> {
    Ok(merged(core.hub.model(&model.id.name, Some(&model.id.version)).await?.as_ref(), model))
}

/// The models of this name, or all where it is empty; newest first.
pub async fn list(core: &Core, name: &str) -> Result<Vec<Model>, Problem> {
    Ok(core.hub.models(Some(name).filter(|name| !name.is_empty())).await?)
}

/// The model with the formats that were stored before; a format that is named again is replaced.
fn merged(stored: Option<&Model>, new: &Model) -> Model {
    let mut model = new.clone();
    if let Some(stored) = stored {
        let is_kept = |format| new.artifacts.iter().all(|artifact| artifact.format != format);
        model.artifacts.extend(stored.artifacts.iter().filter(|artifact| is_kept(artifact.format)).cloned());
        model.created_at = stored.created_at;
    }
    model
}

#[cfg(test)]
mod tests {
    use super::*;
    use modelmeter_common::model::{ArtifactRef, Format};
    use modelmeter_tests::documents;

    #[test]
    fn a_format_that_is_named_again_is_replaced_and_the_others_stay() {
        let artifact = |format, bytes| ArtifactRef { format, sha256: "ab".repeat(32), bytes };
        let with = |artifacts: &[ArtifactRef], created| Model {
            artifacts: artifacts.to_vec(),
            ..documents::model("m", "1", created)
        };
        let (onnx, newer, torch) =
            (artifact(Format::Onnx, 1), artifact(Format::Onnx, 2), artifact(Format::Torchscript, 3));
        let stored = with(&[onnx, torch.clone()], 0);
        let model = merged(Some(&stored), &with(std::slice::from_ref(&newer), 5));
        assert_eq!((model.artifacts, model.created_at), (vec![newer.clone(), torch], stored.created_at));
        assert_eq!(merged(None, &with(std::slice::from_ref(&newer), 5)).artifacts, [newer]);
    }
}
