//! Request → cells → tasks, purely. The same request and model give the same tasks, in the same order, on every
//! machine and at every repetition.

use super::pool::{self, Offer, Pool};
use modelmeter_common::{
    Code, Problem, RequestId, Timestamp,
    batch::Batch,
    device::{ALL, ANY_GPU, CPU_CLASS, Selector},
    engine::{self, ENDPOINT, ENGINES},
    error::did_you_mean,
    model::{ArtifactRef, Format, Model, TensorShape},
    request::{MAX_CALL_BYTES, MAX_CELLS, MAX_TASKS, Request, RequestDoc},
    status::Abilities,
    task::{Cell, DEFAULT_INSPECTOR, Task},
    wire::sha256_hex,
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Prefixes of device classes: another word that no worker announces is a mistake.
const CLASS_PREFIXES: [&str; 5] = ["nvidia-", "tesla-", "geforce-", "quadro-", "grid-"];

/// The cells of a request, or what is wrong with it. `pools` resolve `auto` and `gpu` and tell custom engines from
/// mistakes. `auto` means what some slot can run: an engine only on the devices that it is offered on.
pub fn cells(request: &Request, model: &Model, pools: &[Pool]) -> Result<Vec<Cell>, Problem> {
    matrix(request, model, pools, request.engines == ["auto"])
}

/// The cells of a stored request, independent of the workers that are connected now.
pub fn cells_again(doc: &RequestDoc, model: &Model) -> Result<Vec<Cell>, Problem> {
    matrix(&doc.request, model, &resolving_pools(doc), true)
}

/// Pools that offer exactly the engines and device classes to which a stored request was resolved, configured engines
/// included.
fn resolving_pools(doc: &RequestDoc) -> Vec<Pool> {
    let formats = doc.formats.iter().map(|(engine, format)| (engine.clone(), vec![*format])).collect();
    let inspectors = doc.request.inspector.iter().cloned().collect();
    let abilities = Abilities { formats, inspectors, ..Abilities::default() };
    let pool = |class: &String| {
        let runs = |engine: &&String| doc.devices_of.get(*engine).is_none_or(|classes| classes.contains(class));
        Pool::of(class, doc.request.engines.iter().filter(runs).cloned().collect(), abilities.clone())
    };
    doc.request.devices.iter().map(pool).collect()
}

/// Every combination; with `on_offer`, of an engine only with the devices where some slot has it.
fn matrix(request: &Request, model: &Model, pools: &[Pool], on_offer: bool) -> Result<Vec<Cell>, Problem> {
    request.validate()?;
    let (batch, sizes) = request.batch(model)?;
    let devices = devices(request, pools)?;
    let engines = engines(request, model, &devices, pools)?;
    let inspector = inspector(request, pools)?;
    let mut cells = Vec::new();
    for chosen in &engines {
        let (engine, artifact) = chosen;
        for settings in settings(request, engine)? {
            for device_class in &devices {
                if on_offer && !pool::is_offered(offer(chosen, device_class), pools) {
                    continue;
                }
                for shapes in shapes(request)? {
                    for &batch_size in &sizes {
                        if cells.len() >= MAX_CELLS || cells.len() * request.repeats as usize >= MAX_TASKS {
                            return Err(too_many());
                        }
                        cells.push(Cell {
                            model: model.id.clone(),
                            artifact: artifact.clone(),
                            engine: engine.clone(),
                            engine_settings: settings.clone(),
                            device_class: device_class.clone(),
                            batch_size,
                            inputs: inputs(&batch, &shapes, batch_size)?,
                            inspector: inspector.to_owned(),
                        });
                    }
                }
            }
        }
    }
    Ok(cells)
}

/// The request with `auto`, `gpu` and `all` as what they came to: a repeated expansion must not depend on who is there
/// by then.
pub fn resolved(request: &Request, cells: &[Cell]) -> Request {
    let distinct = |of: fn(&Cell) -> &String| -> Vec<String> {
        cells.iter().map(of).collect::<BTreeSet<_>>().into_iter().cloned().collect()
    };
    let sizes: BTreeSet<u32> = cells.iter().map(|cell| cell.batch_size).collect();
    let sizes: Vec<u32> = sizes.into_iter().collect();
    narrowed(request, &distinct(|cell| &cell.engine), &distinct(|cell| &cell.device_class), &sizes)
}

/// The request on these engines and devices: settings of an engine that `auto` did not choose mean nothing. `sizes` are
/// those that the model has where none are named.
pub fn narrowed(request: &Request, engines: &[String], devices: &[String], sizes: &[u32]) -> Request {
    let mut narrowed = Request { engines: engines.to_vec(), devices: devices.to_vec(), ..request.clone() };
    if narrowed.batch_sizes.is_empty() {
        narrowed.batch_sizes = sizes.to_vec();
    }
    narrowed.engine_settings.retain(|engine, _| engines.contains(engine));
    narrowed
}

/// The artifact format that each engine loads in these cells.
pub fn formats_of(cells: &[Cell]) -> BTreeMap<String, Format> {
    cells.iter().filter_map(|cell| Some((cell.engine.clone(), cell.artifact.as_ref()?.format))).collect()
}

/// The device classes that each engine has cells on.
pub fn devices_of(cells: &[Cell]) -> BTreeMap<String, BTreeSet<String>> {
    let mut devices: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for cell in cells {
        devices.entry(cell.engine.clone()).or_default().insert(cell.device_class.clone());
    }
    devices
}

fn too_many() -> Problem {
    Problem::invalid("request", format!("more than {MAX_CELLS} cells or {MAX_TASKS} tasks"))
        .with_hint("submit it in parts")
}

/// The tasks of these cells: repeats × cells in the seeded order, all waiting.
pub fn tasks(id: RequestId, request: &Request, cells: &[Cell], now: Timestamp) -> Vec<Task> {
    let mut tasks: Vec<(String, String, Task)> = Vec::with_capacity(cells.len() * request.repeats as usize);
    for cell in cells {
        let key = cell.key();
        for repeat in 0..request.repeats {
            let shuffled = |what: &str| sha256_hex(format!("{}/{what}", request.seed).as_bytes());
            let task = Task::new(id, cell.clone(), repeat, now);
            tasks.push((shuffled(&task.deployment_key), shuffled(&format!("{repeat}/{key}")), task));
        }
    }
    // Deployments among each other, then cells and repeats within one: drift is not taken for a difference.
    tasks.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
    let number = |(order, (_, _, task)): (usize, (String, String, Task))| Task { order: order as u32, ..task };
    tasks.into_iter().enumerate().map(number).collect()
}

/// The device classes asked for: `gpu` and `all` are those of the workers that are there, else any GPU.
fn devices(request: &Request, pools: &[Pool]) -> Result<Vec<String>, Problem> {
    let known: BTreeSet<&str> = pools.iter().map(|pool| pool.class.as_str()).collect();
    let mut classes = BTreeSet::new();
    for word in &request.devices {
        let selector = Selector::from(word.as_str());
        let chosen: Vec<&str> = known.iter().copied().filter(|class| selector.takes(class)).collect();
        let like_a_class = CLASS_PREFIXES.iter().any(|prefix| word.starts_with(prefix));
        match selector {
            _ if !chosen.is_empty() => classes.extend(chosen.into_iter().map(str::to_owned)),
            // No worker is connected yet: the task waits for the first with a GPU.
            Selector::All => classes.extend([CPU_CLASS.to_owned()]),
            Selector::AnyGpu | Selector::Class(CPU_CLASS) => classes.extend([word.clone()]),
            Selector::Class(_) if like_a_class => classes.extend([word.clone()]),
            Selector::Class(other) => {
                let all: BTreeSet<&str> = known.iter().copied().chain([CPU_CLASS, ANY_GPU, ALL]).collect();
                return Err(unknown("devices", "device", other, all));
            }
        }
    }
    Ok(classes.into_iter().collect())
}

/// The engines asked for, each with the artifact that it loads.
fn engines(request: &Request, model: &Model, devices: &[String], pools: &[Pool]) -> Result<Vec<Chosen>, Problem> {
    let said = pools.iter().flat_map(|pool| pool.engines.iter().chain(pool.abilities.lacking.keys()));
    let known: BTreeSet<&str> =
        ENGINES.iter().map(|e| e.name).chain(said.map(String::as_str)).chain(["auto"]).collect();
    let named = request.engines.iter().map(|name| ("engines", name));
    let set = request.engine_settings.keys().map(|name| ("engine_settings", name));
    if let Some((field, other)) = named.chain(set).find(|(_, name)| !known.contains(name.as_str())) {
        return Err(unknown(field, "engine", other, known));
    }
    if request.engines == ["auto"] {
        return auto(model, devices, pools);
    }
    check_endpoint(request, pools)?;
    let distinct: BTreeSet<&String> = request.engines.iter().collect();
    distinct.iter().try_for_each(|name| check_types(name, model))?;
    distinct.into_iter().map(|name| Ok((name.clone(), artifact(name, model, pools)?))).collect()
}

/// Checks that an engine supports the model's element types, where its types are known.
fn check_types(engine: &str, model: &Model) -> Result<(), Problem> {
    let Some(lacking) = engine::find(engine).and_then(|info| info.lacks_type_of(model)) else { return Ok(()) };
    let can = ENGINES.iter().filter(|info| info.name != "null" && info.lacks_type_of(model).is_none());
    let can: Vec<&str> = can.filter(|info| fitting(model, info.formats).is_some()).map(|info| info.name).collect();
    let hint = match &can[..] {
        [] => "no engine of ours has it: convert the model".to_owned(),
        some => format!("engines that can: {}", some.join(", ")),
    };
    Err(Problem::invalid("engines", format!("engine '{engine}' does not have its types: {lacking}")).with_hint(hint))
}

/// The inspector of its cells: the engines' own, or one that some slot has.
fn inspector<'a>(request: &'a Request, pools: &[Pool]) -> Result<&'a str, Problem> {
    let Some(name) = request.inspector.as_deref() else { return Ok(DEFAULT_INSPECTOR) };
    if pools.iter().any(|pool| pool.has_inspector(name)) {
        return Ok(name);
    }
    let said = pools.iter().flat_map(|pool| &pool.abilities.inspectors).map(String::as_str);
    Err(unknown("inspector", "inspector", name, said.chain([DEFAULT_INSPECTOR]).collect()))
}

/// The engine `endpoint` is never offered by a cluster's worker: only a process that was given an address offers it,
/// for its own request.
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

/// An engine and the artifact that it loads; none for a server that already runs.
type Chosen = (String, Option<ArtifactRef>);

/// What a slot with devices of this class has to offer for it.
fn offer<'a>((engine, artifact): &'a Chosen, device_class: &'a str) -> Offer<'a> {
    Offer { engine, format: artifact.as_ref().map(|artifact| artifact.format), device_class }
}

fn artifact(engine: &str, model: &Model, pools: &[Pool]) -> Result<Option<ArtifactRef>, Problem> {
    let formats = formats(engine, pools);
    if formats.is_empty() {
        // A configured engine that does not name its formats gets the artifact that exists.
        return Ok(model.artifacts.first().filter(|_| engine::find(engine).is_none()).cloned());
    }
    fitting(model, &formats).map(Some).ok_or_else(|| {
        let wants: Vec<_> = formats.iter().map(|f| f.as_str()).collect();
        let message = format!("engine '{engine}' loads {}, but {} has {}", wants.join(" or "), model.id, has(model));
        Problem::invalid("engines", message).with_hint("add the model in that format, or leave the engine out")
    })
}

/// The formats that an engine loads, best first: a built-in one's by the table, another's as its slots say.
fn formats(engine: &str, pools: &[Pool]) -> Vec<Format> {
    if let Some(info) = engine::find(engine) {
        return info.formats.to_vec();
    }
    let mut all = Vec::new();
    for format in pools.iter().filter_map(|pool| pool.abilities.formats.get(engine)).flatten() {
        if !all.contains(format) {
            all.push(*format);
        }
    }
    all
}

/// Each engine for which the model has a fitting artifact and a slot with such a device offers it: the built-in ones,
/// then those of configurations.
fn auto(model: &Model, devices: &[String], pools: &[Pool]) -> Result<Vec<Chosen>, Problem> {
    let own: BTreeSet<&str> = pools.iter().flat_map(|pool| &pool.engines).map(String::as_str).collect();
    let own = own.into_iter().filter(|name| engine::find(name).is_none());
    let loading = ENGINES.iter().map(|info| info.name).filter(|name| *name != "null").chain(own).filter_map(|name| {
        let attached = model.artifacts.is_empty() && engine::find(name).is_some_and(|info| info.formats.is_empty());
        let artifact = fitting(model, &formats(name, pools)).filter(|_| check_types(name, model).is_ok());
        (attached || artifact.is_some()).then(|| (name.to_owned(), artifact))
    });
    let on_offer =
        |chosen: &Chosen| devices.iter().any(|device_class| pool::is_offered(offer(chosen, device_class), pools));
    let (chosen, missing): (Vec<_>, Vec<_>) = loading.partition(on_offer);
    if chosen.is_empty() { Err(nothing_to_choose(model, devices, &missing, pools)) } else { Ok(chosen) }
}

fn nothing_to_choose(model: &Model, devices: &[String], missing: &[Chosen], pools: &[Pool]) -> Problem {
    let mut offers = missing.iter().flat_map(|chosen| devices.iter().map(move |class| offer(chosen, class)));
    if let Some(offer) = offers.find(|offer| pool::reason(*offer, pools).is_some()) {
        return pool::missing(offer, pools).with_field("engines");
    }
    let loading = ENGINES.iter().filter(|info| info.name != "null" && fitting(model, info.formats).is_some());
    if let Some(problem) = loading.filter_map(|info| check_types(info.name, model).err()).next_back() {
        return problem;
    }
    let on = devices.join(", ");
    Problem::new(Code::NoWorker, format!("no slot offers an engine for {} ({}) on {on}", model.id, has(model)))
        .with_field("engines")
        .with_hint("name the engines to have the request wait for such a worker; `modelmeter workers` lists those that are there")
}

fn fitting(model: &Model, formats: &[Format]) -> Option<ArtifactRef> {
    formats.iter().find_map(|format| model.artifacts.iter().find(|artifact| artifact.format == *format)).cloned()
}

/// Every combination of an engine's settings; a value that is a list gives one each.
fn settings(request: &Request, engine: &str) -> Result<Vec<BTreeMap<String, Value>>, Problem> {
    let Some(settings) = request.engine_settings.get(engine) else { return Ok(vec![BTreeMap::new()]) };
    product(settings, |value| match value {
        Value::Array(values) => values.clone(),
        one => vec![one.clone()],
    })
}

/// Every combination of the shapes given for the inputs.
fn shapes(request: &Request) -> Result<Vec<BTreeMap<String, Vec<u64>>>, Problem> {
    product(&request.shapes, Clone::clone)
}

/// Every combination of choices; a choice that is given twice counts once.
fn product<V, W: Clone + PartialEq>(
    axes: &BTreeMap<String, V>,
    choices: impl Fn(&V) -> Vec<W>,
) -> Result<Vec<BTreeMap<String, W>>, Problem> {
    let mut combinations = vec![BTreeMap::new()];
    for (name, given) in axes {
        let mut values = Vec::new();
        for value in choices(given) {
            if !values.contains(&value) {
                values.push(value);
            }
        }
        if combinations.len() * values.len() > MAX_CELLS {
            return Err(too_many());
        }
        let with = |so_far: &BTreeMap<String, W>, value: W| {
            let mut next = so_far.clone();
            next.insert(name.clone(), value);
            next
        };
        combinations = combinations.iter().flat_map(|c| values.iter().map(move |v| with(c, v.clone()))).collect();
    }
    Ok(combinations)
}

/// The inputs of a call, if it is not too large to be sent.
fn inputs(batch: &Batch<'_>, shapes: &BTreeMap<String, Vec<u64>>, size: u32) -> Result<Vec<TensorShape>, Problem> {
    let inputs = batch.inputs(shapes, size)?;
    let bytes = inputs.iter().fold(0, |sum: u64, input| sum.saturating_add(input.bytes()));
    if bytes > MAX_CALL_BYTES {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let message = format!("a call of {size} items takes {:.1} GiB", gib(bytes));
        let hint = format!("at most {} GiB: smaller shapes or batches", gib(MAX_CALL_BYTES));
        return Err(Problem::invalid("shapes", message).with_hint(hint));
    }
    Ok(inputs)
}

fn has(model: &Model) -> String {
    let formats: Vec<&str> = model.artifacts.iter().map(|artifact| artifact.format.as_str()).collect();
    if formats.is_empty() { "no artifact".into() } else { formats.join(", ") }
}

fn unknown(field: &str, what: &str, given: &str, known: BTreeSet<&str>) -> Problem {
    let all = known.iter().copied().collect::<Vec<_>>().join(", ");
    let hint = format!("{}use one of {all}", did_you_mean(given, known));
    Problem::invalid(field, format!("unknown {what} '{given}'")).with_hint(hint)
}

#[cfg(test)]
mod tests;
