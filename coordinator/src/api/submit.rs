//! Taking a request in: resolve the model, expand, store. Repeated after a crash it ends the same.

use crate::{
    core::Core,
    expand,
    hub::{HubError, Inserted},
    pool::Pool,
    status,
};
use modelmeter_common::{
    Code, Problem, RequestId, SCHEMA_VERSION,
    engine::ENDPOINT,
    model::{Model, ModelName},
    request::{Request, RequestDoc, RequestState},
    status::Dryrun,
    task::{Cell, Plan},
    testdata::Source,
};
use std::collections::BTreeSet;

/// Stores a request and its tasks. `true`: it had been submitted before, with the same content.
pub async fn submit(core: &Core, id: RequestId, request: Request) -> Result<(u64, bool), Problem> {
    if let Some(stored) = core.hub.request(id).await? {
        return same_again(stored, &request);
    }
    let (model, cells, _) = expanded(core, &request).await?;
    let tasks = cells.len() as u64 * u64::from(request.repeats);
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
        // `auto`, `gpu` and `all` are resolved once: a repeated expansion must not depend on who is there then.
        request: resolved(request.clone(), &cells),
    };
    if core.hub.insert_request(&doc).await? == Inserted::Existed {
        let stored = core.hub.request(id).await?.ok_or_else(|| Problem::new(Code::Internal, "the request vanished"))?;
        return same_again(stored, &request);
    }
    expand(core, &doc).await?;
    Ok((tasks, false))
}

/// Inserts the tasks of a stored request that are not there yet, and marks it expanded.
pub async fn expand(core: &Core, doc: &RequestDoc) -> Result<(), HubError> {
    let wrong = |problem: Problem| HubError::Failed(format!("request {} no longer expands: {problem}", doc.id));
    let model = core.hub.model(&doc.model.name, Some(&doc.model.version)).await?;
    let model = model.ok_or_else(|| HubError::Failed(format!("model {} of request {} vanished", doc.model, doc.id)))?;
    let cells = expand::cells(&doc.request, &model, &resolving_pools(&doc.request)).map_err(wrong)?;
    core.hub.insert_tasks(&expand::tasks(doc.id, &doc.request, &cells, doc.created_at)).await?;
    core.hub.update_request(doc, &RequestDoc { expanded: true, ..doc.clone() }).await?;
    core.changed(doc.id);
    core.work.notify_one();
    Ok(())
}

/// What a request would do.
pub async fn plan(core: &Core, request: &Request) -> Result<Dryrun, Problem> {
    let (model, cells, pools) = expanded(core, request).await?;
    let tasks = cells.len() as u64 * u64::from(request.repeats);
    let plan = expand::plan(request, tasks, pools.iter().map(|pool| pool.slots).sum());
    Ok(status::dryrun(request, &model, &cells, &plan, &pools))
}

/// What the tasks of a stored request measure.
pub async fn plan_of(core: &Core, doc: &RequestDoc) -> Result<Plan, HubError> {
    let slots =
        if doc.request.budget_ms.is_some() { core.pools().await?.iter().map(|pool| pool.slots).sum() } else { 1 };
    Ok(expand::plan(&doc.request, doc.tasks, slots))
}

async fn expanded(core: &Core, request: &Request) -> Result<(Model, Vec<Cell>, Vec<Pool>), Problem> {
    request.validate()?;
    if matches!(&request.data, Some(data) if !matches!(data, Source::Stored(_))) {
        return Err(Problem::invalid("data", "names files of the user's machine")
            .with_hint("`modelmeter profile` uploads them and names what it uploaded"));
    }
    let named: ModelName = request.model.parse()?;
    let model = core.hub.model(&named.name, named.version.as_deref()).await?;
    let model = model.ok_or_else(|| {
        Problem::new(Code::NotFound, format!("no model '{}' in the hub", request.model)).with_field("model").with_hint(
            "`modelmeter model list` shows those that are there; a path or a built-in name is added by `profile`",
        )
    })?;
    let pools = core.pools().await?;
    check_endpoint(request, &pools)?;
    let cells = expand::cells(request, &model, &pools)?;
    Ok((model, cells, pools))
}

/// No worker of a cluster will ever offer it: only a process that was told an address does, for its own request.
fn check_endpoint(request: &Request, pools: &[Pool]) -> Result<(), Problem> {
    let asked = request.engines.iter().any(|engine| engine == ENDPOINT);
    if asked && !pools.iter().any(|pool| pool.engines.iter().any(|engine| engine == ENDPOINT)) {
        return Err(Problem::invalid("engines", format!("no worker offers '{ENDPOINT}': it is no engine to choose"))
            .with_hint(
                "`modelmeter profile --endpoint HOST:PORT`, without a coordinator, measures a server that already runs",
            ));
    }
    Ok(())
}

fn resolved(request: Request, cells: &[Cell]) -> Request {
    let distinct =
        |of: fn(&Cell) -> &String| cells.iter().map(of).collect::<BTreeSet<_>>().into_iter().cloned().collect();
    Request { engines: distinct(|cell| &cell.engine), devices: distinct(|cell| &cell.device_class), ..request }
}

/// Pools that offer exactly what a resolved request names, so that custom engines and classes are known.
fn resolving_pools(request: &Request) -> Vec<Pool> {
    let pool =
        |class: &String| Pool { id: class.clone(), class: class.clone(), engines: request.engines.clone(), slots: 1 };
    request.devices.iter().map(pool).collect()
}

fn same_again(stored: RequestDoc, request: &Request) -> Result<(u64, bool), Problem> {
    let as_asked = |r: &Request| Request { engines: Vec::new(), devices: Vec::new(), ..r.clone() };
    if as_asked(&stored.request) == as_asked(request) {
        return Ok((stored.tasks, true));
    }
    Err(Problem::new(Code::AlreadyExists, format!("request {} exists with other content", stored.id))
        .with_field("request_id")
        .with_hint("a new request needs a new id"))
}
