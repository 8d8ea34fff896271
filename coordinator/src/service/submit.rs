//! Taking a request in: resolve the model, expand, store. Repeated after a crash it ends the same. A dry run asks the same
//! questions and stores nothing.

use super::{expansion, models};
use crate::{
    core::{Core, MAX_REQUESTS},
    hub::Inserted,
    plan::{dryrun, expand},
};
use modelmeter_common::{
    Code, Problem, RequestId, SCHEMA_VERSION,
    model::{Model, ModelName},
    request::{Request, RequestDoc, RequestState},
    status::Dryrun,
    testdata::Source,
};

/// Stores a request and its tasks. `true`: it had been submitted before, with the same content.
pub async fn submit(core: &Core, id: RequestId, request: Request) -> Result<(u64, bool), Problem> {
    let request = request.certified();
    if let Some(stored) = core.hub.request(id).await? {
        return same_again(stored, &request);
    }
    if core.hub.requests(true, MAX_REQUESTS).await?.len() >= MAX_REQUESTS as usize {
        return Err(Problem::new(Code::Busy, format!("{MAX_REQUESTS} requests are running already"))
            .with_hint("submit it when one has ended, or cancel one: `modelmeter requests` lists them"));
    }
    let model = model(core, &request).await?;
    let cells = expand::cells(&request, &model, &core.pools().await?)?;
    let tasks = cells.len() as u64 * u64::from(request.repeats);
    let output_axes = request.batch(&model)?.0.of_outputs(&model.outputs);
    let doc = RequestDoc {
        id,
        schema_version: SCHEMA_VERSION,
        created_at: core.now(),
        ended_at: None,
        state: RequestState::Running,
        expanded: false,
        tasks,
        cells: cells.len() as u64,
        model: model.id,
        request: expand::resolved(&request, &cells),
        formats: expand::formats_of(&cells),
        devices_of: expand::devices_of(&cells),
        output_axes,
        error: None,
    };
    if core.hub.insert_request(&doc).await? == Inserted::Existed {
        let stored = core.hub.request(id).await?.ok_or_else(|| Problem::new(Code::Internal, "the request vanished"))?;
        return same_again(stored, &request);
    }
    expansion::expand(core, &doc).await??;
    Ok((tasks, false))
}

/// The plan that a request would have; `of` is its model where the hub need not have that yet.
pub async fn plan(core: &Core, request: Request, of: Option<Model>) -> Result<Dryrun, Problem> {
    let request = request.certified();
    let model = match of {
        Some(model) => models::as_added(core, &model).await?,
        None => model(core, &request).await?,
    };
    dryrun::dryrun(&request, &model, &core.pools().await?)
}

/// The model of a request, after the checks that need no model.
async fn model(core: &Core, request: &Request) -> Result<Model, Problem> {
    request.validate()?;
    if matches!(&request.data, Some(data) if !matches!(data, Source::Stored(_))) {
        return Err(Problem::invalid("data", "names files of the user's machine")
            .with_hint("`modelmeter profile` uploads them and names what it uploaded"));
    }
    let named: ModelName = request.model.parse()?;
    core.hub.model(&named.name, named.version.as_deref()).await?.ok_or_else(|| {
        Problem::new(Code::NotFound, format!("no model '{}' in the hub", request.model)).with_field("model").with_hint(
            "`modelmeter model list` shows those that are there; a path or a built-in name is added by `profile`",
        )
    })
}

fn same_again(stored: RequestDoc, request: &Request) -> Result<(u64, bool), Problem> {
    let of = &stored.request;
    if *of == expand::narrowed(request, &of.engines, &of.devices, &of.batch_sizes) {
        return Ok((stored.tasks, true));
    }
    Err(Problem::new(Code::AlreadyExists, format!("request {} exists with other content", stored.id))
        .with_field("request_id")
        .with_hint("a new request needs a new id"))
}
