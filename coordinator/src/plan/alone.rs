//! Planning where one process is the coordinator and its only worker: a slot that is missing will not come. Pure.

use super::{
    expand,
    pool::{self, Pool},
};
use modelmeter_common::{Code, Problem, load::Stop, model::Model, request::Request, task::Cell};
use std::time::Duration;

/// Default wall time of each repeat of a cell without a coordinator, and of the whole request at most.
const CELL_BUDGET_MS: u64 = 30_000;
const MOST_BUDGET_MS: u64 = 600_000;
/// Part of a cell's budget that the cell may take in addition for the calls with which p95 and p99 are seen.
const GRACE: u64 = 2;
/// Wall time of a cell below which its figures are too uncertain to be useful.
const LEAST_CELL_MS: u64 = 3_000;

/// The plan of a request on the pools of this process.
#[derive(Clone, PartialEq, Debug)]
pub struct Planned {
    /// Its cells.
    pub cells: Vec<Cell>,
    /// Note on the budget for the user.
    pub note: Option<String>,
}

/// Plans a request; with `usual_budget`, a request that states no duration gets the default budget.
///
/// # Errors
/// What is wrong with the request; `not_installed` where no pool can run any of its cells.
pub fn plan(request: &mut Request, model: &Model, pools: &[Pool], usual_budget: bool) -> Result<Planned, Problem> {
    let cells = cells(request, model, pools)?;
    let tasks = cells.len() as u64 * u64::from(request.repeats);
    if usual_budget {
        set_usual_budget(request, tasks);
    }
    some_can_run(&cells, pools)?;
    let note = request.budget_ms.and_then(|budget| small_budget(budget, tasks));
    Ok(Planned { cells, note })
}

/// The cells of a request where there are no other pools than these.
///
/// # Errors
/// The first mistake in the request; `not_installed` where no engine here can run a cell, since waiting would not help.
pub fn cells(request: &Request, model: &Model, pools: &[Pool]) -> Result<Vec<Cell>, Problem> {
    expand::cells(request, model, pools).map_err(|problem| match problem.code {
        Code::NoWorker => Problem { code: Code::NotInstalled, ..problem },
        _ => problem,
    })
}

/// An error before anything starts, where no cell can be measured.
fn some_can_run(cells: &[Cell], pools: &[Pool]) -> Result<(), Problem> {
    let reasons: Option<Vec<Problem>> = cells.iter().map(|cell| pool::why_not(cell, pools)).collect();
    match reasons.and_then(|reasons| reasons.into_iter().next()) {
        Some(problem) => Err(Problem { code: Code::NotInstalled, ..problem }),
        None => Ok(()),
    }
}

/// Gives a request for so many tasks the usual budget, with its grace, where it does not say how long it may take, not even by
/// how a point ends.
pub fn set_usual_budget(request: &mut Request, tasks: u64) {
    let (stop, default) = (&request.stop, Stop::default());
    let is_paced = stop.certified
        || request.batches.is_some()
        || (stop.min_duration_ms, stop.max_duration_ms) != (default.min_duration_ms, default.max_duration_ms);
    if request.budget_ms.is_none() && !is_paced {
        let budget = tasks.saturating_mul(CELL_BUDGET_MS).clamp(CELL_BUDGET_MS, MOST_BUDGET_MS);
        request.budget_ms = Some(budget);
        request.grace_ms = budget / GRACE;
    }
}

/// Warning about a budget that is too small for its tasks, which are measured all the same.
pub fn small_budget(budget_ms: u64, tasks: u64) -> Option<String> {
    let seconds = |ms: u64| Duration::from_millis(ms).as_secs_f64();
    let (share, least) = (budget_ms / tasks.max(1), LEAST_CELL_MS);
    (share < least).then(|| {
        format!(
            "the budget of {:.0} s leaves {:.1} s for each of {tasks} cells, and figures take {:.0} s or more; --budget {4}m gives each {3:.0} s",
            seconds(budget_ms),
            seconds(share),
            seconds(least),
            seconds(CELL_BUDGET_MS),
            (tasks * CELL_BUDGET_MS).div_ceil(60_000)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use modelmeter_common::{
        model::{Datatype, Format},
        status::Abilities,
    };
    use modelmeter_tests::documents;

    fn model() -> Model {
        let mut model = documents::model("m", "1", 0);
        model.artifacts[0].format = Format::Onnx;
        model.inputs[0].shape.pop();
        model.inputs.iter_mut().chain(&mut model.outputs).for_each(|tensor| tensor.dtype = Datatype::Fp32);
        model.weights = [Datatype::Fp32].into();
        model
    }

    fn request(engines: &[&str]) -> Request {
        let engines = engines.iter().map(ToString::to_string).collect();
        Request { model: "m".into(), engines, batch_sizes: vec![1, 2], ..Request::default() }
    }

    fn pools() -> Vec<Pool> {
        vec![Pool::of("cpu", vec!["rten".into()], Abilities::default())]
    }

    #[test]
    fn an_engine_that_is_missing_fails_its_own_cells_unless_there_is_no_other() {
        let planned = plan(&mut request(&["onnx", "rten"]), &model(), &pools(), true).unwrap();
        assert_eq!(planned.cells.len(), 4);
        let alone = plan(&mut request(&["onnx"]), &model(), &pools(), true).unwrap_err();
        assert_eq!(alone.code, Code::NotInstalled);
        let auto = plan(&mut request(&["auto"]), &model(), &[], true).unwrap_err();
        assert_eq!(auto.code, Code::NotInstalled, "nobody will come");
    }

    #[test]
    fn the_usual_budget_is_for_requests_that_say_nothing_of_time() {
        let planned = |request: &mut Request, usual| plan(request, &model(), &pools(), usual).unwrap();
        let mut silent = request(&["rten"]);
        assert_eq!(planned(&mut silent, true).note, None);
        assert_eq!((silent.budget_ms, silent.grace_ms > 0), (Some(2 * CELL_BUDGET_MS), true));
        let mut unlimited = request(&["rten"]);
        planned(&mut unlimited, false);
        assert_eq!(unlimited.budget_ms, None);
        let mut short = Request { budget_ms: Some(LEAST_CELL_MS), ..request(&["rten"]) };
        assert!(planned(&mut short, true).note.unwrap().contains("--budget"));
        assert_eq!(short.budget_ms, Some(LEAST_CELL_MS));
    }
}
