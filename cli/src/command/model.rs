//! `model add` and `model list`.

use super::{Context, listing::Asked, print};
use crate::{
    args::{ModelAddArgs, ModelCommand},
    client::Client,
    models::{self, Local},
    report,
};
use modelmeter_common::{
    Problem, SCHEMA_VERSION, Timestamp,
    model::{Format, Model, ModelRef},
};

pub(super) async fn run(context: &Context, command: ModelCommand) -> Result<u8, Problem> {
    match command {
        ModelCommand::List { name } => {
            let mut asked = Asked::connect(context).await?;
            let found = asked.client.models(name.as_deref()).await;
            asked.end().await;
            let found = found?;
            print(&if context.json { report::json(&found) } else { report::models(&found) });
        }
        ModelCommand::Add(args) => {
            let local = read(args).await?;
            let mut asked = Asked::connect(context).await?;
            let added = add(local, &mut asked.client).await;
            asked.end().await;
            let model = added?;
            print(&if context.json { report::json(&model) } else { report::models(&[model]) });
        }
    }
    Ok(0)
}

/// The model with the artifacts that were named, read and checked.
async fn read(args: ModelAddArgs) -> Result<Local, Problem> {
    let (name, version) = match args.name.split_once(':') {
        Some((name, version)) => (name.to_owned(), Some(version.to_owned())),
        None => (args.name.clone(), None),
    };
    if name.is_empty() || name.contains('/') || version.as_deref() == Some("") {
        return Err(Problem::invalid("name", format!("'{}' is not a model's name", args.name))
            .with_hint("NAME or NAME:VERSION, without slashes"));
    }
    let mut local = match args.onnx {
        Some(path) => Some(models::file(path, Some(name.clone())).await?),
        None => None,
    };
    if let Some(path) = args.torchscript {
        let (artifact, path) = models::opaque(path, Format::Torchscript).await?;
        if local.is_none() && args.inputs.is_empty() {
            return Err(Problem::invalid("input", "a TorchScript file does not say what it takes")
                .with_hint("for example --input x:fp32:3,224,224"));
        }
        let local = local.get_or_insert_with(|| empty(&name, models::version(&artifact)));
        local.model.artifacts.push(artifact.clone());
        local.files.push((artifact, path));
    }
    let mut local = local.ok_or_else(|| {
        Problem::invalid("model", "no artifact was named").with_hint("add --onnx FILE or --torchscript FILE")
    })?;
    if !args.inputs.is_empty() {
        local.model.inputs = args.inputs;
    }
    if let Some(version) = version {
        local.model.id.version = version;
    }
    Ok(local)
}

fn empty(name: &str, version: String) -> Local {
    let model = Model {
        schema_version: SCHEMA_VERSION,
        id: ModelRef { name: name.to_owned(), version },
        created_at: Timestamp::now(),
        artifacts: Vec::new(),
        inputs: Vec::new(),
        outputs: Vec::new(),
    };
    Local { model, files: Vec::new() }
}

/// Adds to what the hub has of this very version: a format that is named again is replaced.
async fn add(mut local: Local, client: &mut Client) -> Result<Model, Problem> {
    let known = client.models(Some(&local.model.id.name)).await?;
    if let Some(before) = known.into_iter().find(|model| model.id == local.model.id) {
        let new: Vec<Format> = local.model.artifacts.iter().map(|artifact| artifact.format).collect();
        local.model.artifacts.extend(before.artifacts.into_iter().filter(|artifact| !new.contains(&artifact.format)));
        local.model.created_at = before.created_at;
    }
    local.add(client).await?;
    Ok(local.model)
}
