//! `model add` and `model list`.

use super::{Context, listing::Asked, print};
use crate::{
    args::{ModelAddArgs, ModelCommand},
    job::Files,
    models::{self, Local},
    report,
};
use modelmeter_common::{Problem, model::ModelName};

pub(super) async fn run(context: &Context, command: ModelCommand) -> Result<u8, Problem> {
    match command {
        ModelCommand::Write { name, path } => modelmeter_serving::reference::write(&name, &path)?,
        ModelCommand::List { name } => {
            let mut asked = Asked::connect(context).await?;
            let found = asked.client.models(name.as_deref()).await;
            asked.end().await;
            let found = found?;
            print(&if context.json { report::json(&found) } else { report::models(&found) })?;
        }
        ModelCommand::Add(args) => {
            let local = read(args).await?;
            let mut asked = Asked::connect(context).await?;
            let added = local.add(&mut asked.client).await;
            asked.end().await;
            let model = added?;
            print(&if context.json { report::json(&model) } else { report::models(&[model]) })?;
        }
    }
    Ok(0)
}

/// The model with the artifacts that were named, read and checked.
async fn read(args: ModelAddArgs) -> Result<Local, Problem> {
    let name: ModelName = args.name.parse().map_err(|problem: Problem| problem.with_field("name"))?;
    if args.name.contains('/') {
        return Err(Problem::invalid("name", format!("'{}' cannot be a model's name", args.name))
            .with_hint("use NAME or NAME:VERSION, without slashes"));
    }
    let paths = args.artifacts.paths().into_iter().map(|(format, path)| (Some(format), path)).collect();
    models::files(&Files { name: Some(name), paths, inputs: args.artifacts.inputs }).await
}
