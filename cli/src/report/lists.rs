//! What the listing commands print: requests, cells, plans, workers, models.

use super::{
    number::counted,
    shapes::{settings_text, shapes, shapes_differ},
    table::{Align, Table},
};
use modelmeter_common::{
    Timestamp,
    device::DeviceKind,
    model::{Model, describe},
    request::{RequestDoc, RequestState},
    status::{CellStatus, Dryrun, Status, WorkerDoc},
};
use std::{collections::BTreeMap, time::Duration};

/// Cells in one listing; more are summed up.
const MAX_ROWS: usize = 200;

/// The state's name, as in JSON.
pub fn state_text(state: RequestState) -> String {
    serde_json::to_value(state).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

/// The requests, newest first.
pub fn requests(found: &[RequestDoc]) -> String {
    if found.is_empty() {
        return "no requests yet: `modelmeter profile MODEL` makes one\n".into();
    }
    let mut table = Table::default()
        .column("request", Align::Left)
        .column("submitted", Align::Left)
        .column("state", Align::Left)
        .column("cells", Align::Right)
        .column("model", Align::Left)
        .column("engines", Align::Left);
    for request in found {
        table.row(vec![
            request.id.to_string(),
            request.created_at.to_string(),
            state_text(request.state),
            request.cells.to_string(),
            request.model.to_string(),
            request.request.engines.join(","),
        ]);
    }
    table.to_string()
}

/// Where a request stands, a row a cell, with what each waits for.
pub fn cells(status: &Status) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    status.cells.iter().for_each(|cell| *counts.entry(cell.state.as_str()).or_default() += 1);
    let counts: Vec<String> = counts.iter().map(|(state, n)| format!("{n} {state}")).collect();
    let mut text = format!(
        "request {} of {}: {} ({})\n\n",
        status.request_id,
        status.model,
        state_text(status.state),
        counts.join(", ")
    );
    if let Some(error) = &status.error {
        text += &format!("its cells could not be found out: {error}\n");
    }
    let settings = status.cells.iter().any(|cell| !cell.engine_settings.is_empty());
    let inputs = shapes_differ(status.cells.iter().map(|cell| cell.inputs.as_slice()));
    let mut table = Table::default().column("engine", Align::Left);
    if settings {
        table = table.column("settings", Align::Left);
    }
    table = table.column("device", Align::Left);
    if inputs {
        table = table.column("input", Align::Left);
    }
    table = table
        .column("batch", Align::Right)
        .column("repeat", Align::Right)
        .column("state", Align::Left)
        .column("attempt", Align::Right)
        .column("worker", Align::Left)
        .column("reason", Align::Left);
    for cell in status.cells.iter().take(MAX_ROWS) {
        table.row(cell_row(cell, settings, inputs));
    }
    text += &table.to_string();
    if let Some(hidden) = status.cells.len().checked_sub(MAX_ROWS).filter(|n| *n > 0) {
        text += &format!("and {hidden} more (--json has all)\n");
    }
    text
}

fn cell_row(cell: &CellStatus, settings: bool, inputs: bool) -> Vec<String> {
    let mut row = vec![cell.engine.clone()];
    if settings {
        row.push(settings_text(&cell.engine_settings));
    }
    row.push(cell.device.clone());
    if inputs {
        row.push(shapes(&cell.inputs));
    }
    row.extend([
        cell.batch_size.to_string(),
        cell.repeat.to_string(),
        cell.state.as_str().to_owned(),
        cell.attempts.to_string(),
        cell.worker.clone().unwrap_or_default(),
        cell.reason.clone().unwrap_or_default().lines().next().unwrap_or_default().to_owned(),
    ]);
    row
}

/// What a request would do.
pub fn dryrun(plan: &Dryrun) -> String {
    let inputs = shapes_differ(plan.cells.iter().map(|cell| cell.inputs.as_slice()));
    let mut table =
        Table::default().column("engine", Align::Left).column("settings", Align::Left).column("device", Align::Left);
    if inputs {
        table = table.column("input", Align::Left);
    }
    table = table
        .column("batch", Align::Right)
        .column("repeats", Align::Right)
        .column("slots", Align::Right)
        .column("cannot run now because", Align::Left);
    for cell in plan.cells.iter().take(MAX_ROWS) {
        let mut row = vec![cell.engine.clone(), settings_text(&cell.engine_settings), cell.device.clone()];
        if inputs {
            row.push(shapes(&cell.inputs));
        }
        row.extend([cell.batch_size, cell.repeats, cell.slots].map(|n| n.to_string()));
        row.push(cell.reason.clone().unwrap_or_default());
        table.row(row);
    }
    let stuck = plan.cells.iter().filter(|cell| cell.reason.is_some()).count();
    let mut text = format!("{}: {}\n\n{table}\n", plan.model, counted(plan.cells.len() as u64, "cell"));
    if plan.cells.len() > MAX_ROWS {
        text += &format!("and {} more (--json has all)\n", plan.cells.len() - MAX_ROWS);
    }
    if stuck > 0 {
        text += &format!("{stuck} of these cells cannot run now\n");
    }
    let [low, high] = [plan.estimated_seconds.low, plan.estimated_seconds.high].map(time);
    text + &if low == high {
        format!("measuring would take about {low}\n")
    } else {
        format!("measuring would take {low} to {high}\n")
    }
}

/// Seconds as people say them.
pub fn time(seconds: f64) -> String {
    match seconds {
        s if s < 100.0 => format!("{s:.0} s"),
        s if s < 6_000.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3_600.0),
    }
}

/// The workers, a row a slot.
pub fn workers(found: &[WorkerDoc], now: Timestamp) -> String {
    if found.is_empty() {
        return "no workers yet: `modelmeter worker` starts one\n".into();
    }
    let mut table = Table::default()
        .column("worker", Align::Left)
        .column("seen", Align::Right)
        .column("slot", Align::Right)
        .column("device", Align::Left)
        .column("engines", Align::Left)
        .column("labels", Align::Left);
    for worker in found {
        let labels: Vec<String> = worker.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        for slot in &worker.slots {
            let cores = slot.device.cores.map(|n| format!(", {n} cores")).unwrap_or_default();
            let cores = if slot.device.kind == DeviceKind::Cpu { cores } else { String::new() };
            table.row(vec![
                worker.name.clone(),
                ago(now.since(worker.seen_at)),
                slot.index.to_string(),
                format!("{}{cores}", slot.device.class),
                slot.engines.join(","),
                labels.join(" "),
            ]);
        }
    }
    table.to_string()
}

fn ago(since: Duration) -> String {
    if since < Duration::from_secs(2) { "now".into() } else { format!("{} ago", time(since.as_secs_f64())) }
}

/// The models and what they are kept as.
pub fn models(found: &[Model]) -> String {
    if found.is_empty() {
        return "no models yet: `modelmeter model add NAME --onnx FILE` adds one\n".into();
    }
    let mut table = Table::default()
        .column("model", Align::Left)
        .column("added", Align::Left)
        .column("artifacts", Align::Left)
        .column("inputs", Align::Left);
    for model in found {
        let artifacts: Vec<String> =
            model.artifacts.iter().map(|a| format!("{} {}", a.format, super::bytes(a.bytes))).collect();
        let inputs: Vec<String> =
            model.inputs.iter().map(|i| format!("{} {} {}", i.name, i.dtype, describe(&i.shape))).collect();
        table.row(vec![model.id.to_string(), model.created_at.to_string(), artifacts.join(", "), inputs.join(", ")]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use modelmeter_common::{
        Code, Problem, RequestId,
        model::{Datatype, ModelRef, TensorShape},
        status::{Estimate, PlannedCell},
        task::TaskState,
    };

    #[test]
    fn a_status_says_what_each_cell_waits_for() {
        let cell = |batch_size, state, reason: Option<&str>| CellStatus {
            engine: "rten".into(),
            engine_settings: BTreeMap::new(),
            device: "cpu".into(),
            batch_size,
            inputs: Vec::new(),
            repeat: 0,
            state,
            attempts: 0,
            worker: None,
            reason: reason.map(Into::into),
            blocked: false,
        };
        let status = Status {
            request_id: RequestId::random(),
            state: RequestState::Running,
            model: ModelRef { name: "m".into(), version: "1".into() },
            created_at: Timestamp(0),
            ended_at: None,
            error: None,
            cells: vec![
                cell(1, TaskState::Done, None),
                cell(2, TaskState::Waiting, Some("no worker offers rten on cpu")),
            ],
        };
        let lost = Problem::new(Code::NotFound, "model m@1 vanished");
        let text = cells(&Status { state: RequestState::Failed, error: Some(lost), ..status.clone() });
        assert!(text.contains("its cells could not be found out: model m@1 vanished\n"), "{text}");
        let text = cells(&status);
        assert!(text.contains("running (1 done, 1 waiting)"), "{text}");
        assert!(
            text.lines().any(|line| line.contains("waiting") && line.ends_with("no worker offers rten on cpu")),
            "{text}"
        );
    }

    #[test]
    fn cells_that_differ_in_shape_alone_are_told_apart() {
        let cell = |length| PlannedCell {
            engine: "rten".into(),
            engine_settings: BTreeMap::new(),
            device: "cpu".into(),
            batch_size: 1,
            inputs: vec![TensorShape::new("x", Datatype::Int64, vec![1, length])],
            repeats: 1,
            slots: 1,
            reason: None,
        };
        let plan = |lengths: &[u64]| Dryrun {
            model: ModelRef { name: "m".into(), version: "1".into() },
            cells: lengths.iter().map(|&length| cell(length)).collect(),
            estimated_seconds: Estimate { low: 1.0, high: 2.0 },
        };
        let text = dryrun(&plan(&[128, 512]));
        assert!(text.contains("x INT64 [N, 128]") && text.contains("x INT64 [N, 512]"), "{text}");
        assert!(!dryrun(&plan(&[128, 128])).contains("INT64"), "only where they differ");
    }

    #[test]
    fn times_have_sensible_units() {
        assert_eq!([time(5.2), time(150.0), time(36_000.0)], ["5 s", "2 min", "10.0 h"]);
    }
}
