//! A dry run, purely: the cells that a request would have, why some cannot run, and about how long it will take.

use super::{
    budget, expand,
    pool::{self, Kind, Pool},
};
use modelmeter_common::{
    Problem,
    load::Load,
    model::Model,
    request::Request,
    status::{Dryrun, Estimate, PlannedCell},
    task::{Cell, Plan},
};
use std::collections::BTreeMap;

/// Estimate of the seconds that deploying an engine takes.
const DEPLOY_S: f64 = 2.0;
/// Estimate of the load points of a sweep, from the fewest to the most.
const SWEEP_POINTS: (f64, f64) = (3.0, 10.0);

/// What a request would do: its cells, why some cannot run, how long it will take.
///
/// # Errors
/// The first mistake in the request.
pub fn dryrun(request: &Request, model: &Model, pools: &[Pool]) -> Result<Dryrun, Problem> {
    let cells = expand::cells(request, model, pools)?;
    let rounds = budget::rounds(cells.iter().map(|cell| Kind::of(cell, request.repeats.into())), pools);
    let plan = budget::plan(request, rounds);
    let planned: Vec<PlannedCell> = cells
        .iter()
        .map(|cell| PlannedCell {
            engine: cell.engine.clone(),
            engine_settings: cell.engine_settings.clone(),
            device: cell.device_class.clone(),
            batch_size: cell.batch_size,
            inputs: cell.inputs.clone(),
            repeats: request.repeats,
            slots: slots(cell, pools),
            reason: pool::why_not(cell, pools).map(|problem| problem.message),
        })
        .collect();
    Ok(Dryrun {
        model: model.id.clone(),
        estimated_seconds: estimate(&cells, request, &plan, rounds, pools),
        cells: planned,
    })
}

/// Number of slots that could run this cell.
fn slots(cell: &Cell, pools: &[Pool]) -> u32 {
    pools.iter().filter(|pool| pool.fits(cell)).map(|pool| pool.slots).sum()
}

/// From the fewest seconds that the stop rules allow to the most, over the slots that are there.
fn estimate(cells: &[Cell], request: &Request, plan: &Plan, rounds: u64, pools: &[Pool]) -> Estimate {
    let (few, many) = match &request.load {
        Load::Closed { concurrencies } if concurrencies.is_empty() => SWEEP_POINTS,
        Load::Closed { concurrencies } => {
            let with_reference = concurrencies.len() + usize::from(!concurrencies.contains(&1));
            (with_reference as f64, with_reference as f64)
        }
        Load::Open { rates, .. } => (rates.len() as f64, rates.len() as f64),
        Load::SlaSearch { .. } => SWEEP_POINTS,
    };
    let seconds = |ms: u64| ms as f64 / 1e3;
    let cap = plan.budget_ms.map_or(f64::INFINITY, seconds);
    let (low, high) =
        ((few * seconds(plan.stop.min_duration_ms)).min(cap), (many * seconds(plan.stop.max_duration_ms)).min(cap));
    let deployments: BTreeMap<String, &Cell> = cells.iter().map(|cell| (cell.deployment_key(), cell)).collect();
    let deploying = budget::rounds(deployments.into_values().map(|cell| Kind::of(cell, 1)), pools) as f64 * DEPLOY_S;
    let rounds = rounds as f64;
    Estimate { low: rounds * low + deploying, high: rounds * high + deploying }
}

#[cfg(test)]
mod tests {
    use super::*;
    use modelmeter_common::{
        model::{Datatype, Format},
        status::Abilities,
    };
    use modelmeter_tests::documents;

    #[test]
    fn an_estimate_is_of_the_slots_with_the_most_to_do() {
        let mut model = documents::model("m", "1", 0);
        model.artifacts[0].format = Format::Onnx;
        model.inputs[0].shape.pop();
        let tensors = model.inputs.iter_mut().chain(&mut model.outputs);
        tensors.for_each(|tensor| tensor.dtype = Datatype::Fp32);
        model.weights = [Datatype::Fp32].into();
        let (engines, devices) = (vec!["rten".to_owned()], vec!["cpu".to_owned(), "nvidia-a10".to_owned()]);
        let request = Request { model: "m".into(), engines, devices, ..Request::default() };
        let request = Request { budget_ms: Some(100_000), batch_sizes: vec![1, 2, 4, 8, 16], ..request };
        let pool = |class: &str, slots| Pool { slots, ..Pool::of(class, vec!["rten".into()], Abilities::default()) };
        let high = |pools: &[Pool]| dryrun(&request, &model, pools).unwrap().estimated_seconds.high;
        let mixed = high(&[pool("cpu", 9), pool("nvidia-a10", 1)]);
        assert!((85.0..=100.0).contains(&mixed), "five cells one by one share the budget out among them: {mixed}");
        assert!(high(&[pool("cpu", 9), pool("nvidia-a10", 5)]) <= 100.0);
    }
}
