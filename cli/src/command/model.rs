//! `model add` and `model list`.

use super::{Context, listing::Asked, print};
use crate::{
    args::{ModelAddArgs, ModelCommand},
    client::Client,
    job::Files,
    models::{self, Local},
    report,
};
use modelmeter_common::{
    Problem,
    model::{Format, Model},
};

pub(super) async fn run(context: &Context, command: ModelCommand) -> Result<u8, Problem> {
    match command {
        ModelCommand::Write { name, path } => modelmeter_serving::reference::write(&name, &path)?,
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
    let paths = args.artifacts.paths().into_iter().map(|(format, path)| (Some(format), path)).collect();
    let mut local = models::files(&Files { name: Some(name), paths, inputs: args.artifacts.inputs }).await?;
    if let Some(version) = version {
        local.model.id.version = version;
    }
    Ok(local)
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
