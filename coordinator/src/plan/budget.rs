//! The budget of a request, purely: how its wall time is shared out over the tasks that run one after another.

use super::pool::{Kind, Pool};
use modelmeter_common::{
    load::Stop,
    request::{Request, RequestDoc},
    task::{DEFAULT_INSPECTOR, Plan},
    testdata::Source,
};
use std::collections::{BTreeMap, BTreeSet};

/// Share of a budget for measuring; the rest is for deploying and answering.
const BUDGET_SHARE: f64 = 0.9;
/// Least time of a task within a budget.
const MIN_TASK_BUDGET_MS: u64 = 300;
/// Most sets of pools that are considered to share out a budget: more than mixed clusters have.
const MAX_UNIONS: usize = 1024;

/// What each task measures; a budget is shared out over the [`rounds`] that its cells need.
pub fn plan(request: &Request, rounds: u64) -> Plan {
    let share = |budget: u64| ((budget as f64 * BUDGET_SHARE) as u64 / rounds.max(1)).max(MIN_TASK_BUDGET_MS);
    let (budget_ms, grace_ms) = (request.budget_ms.map(share), request.grace_ms / rounds.max(1));
    let mut stop = request.stop.clone();
    if let Some(budget_ms) = budget_ms.filter(|_| stop.max_duration_ms == Stop::default().max_duration_ms) {
        // The default maximum is for requests without a budget.
        stop.max_duration_ms = stop.max_duration_ms.max(budget_ms + grace_ms);
    }
    Plan {
        load: request.load.clone(),
        batches: request.batches,
        stop,
        sla: request.sla.clone(),
        budget_ms,
        grace_ms,
        seed: request.seed,
        data: match &request.data {
            Some(Source::Stored(data)) => Some(data.clone()),
            _ => None,
        },
        output_axes: BTreeMap::new(),
    }
}

/// The tasks of a stored request by the slots that they need, without the model that they are of.
pub fn kinds(doc: &RequestDoc) -> Vec<Kind<'_>> {
    let request = &doc.request;
    let of_settings = |engine: &str| -> u64 {
        let settings = request.engine_settings.get(engine);
        settings
            .into_iter()
            .flat_map(BTreeMap::values)
            .map(|value| value.as_array().map_or(1, Vec::len) as u64)
            .product()
    };
    let of_shapes: u64 = request.shapes.values().map(|shapes| shapes.len() as u64).product();
    let sizes: BTreeSet<u32> = request.batch_sizes.iter().copied().collect();
    let alike = of_shapes * sizes.len() as u64 * u64::from(request.repeats);
    let mut kinds = Vec::new();
    for engine in &request.engines {
        let runs = |class: &&String| doc.devices_of.get(engine).is_none_or(|classes| classes.contains(*class));
        kinds.extend(request.devices.iter().filter(runs).map(|device_class| Kind {
            engine,
            format: doc.formats.get(engine).copied(),
            device_class,
            inspector: request.inspector.as_deref().unwrap_or(DEFAULT_INSPECTOR),
            tasks: of_settings(engine) * alike,
        }));
    }
    kinds
}

/// How many of these tasks some slot runs one after another, at the least: over each set of pools, the tasks that only these
/// can run, shared out over their slots. Tasks that no slot can run take no time, unless there are no others: then one slot is
/// taken to come for them.
pub fn rounds<'a>(kinds: impl IntoIterator<Item = Kind<'a>>, pools: &[Pool]) -> u64 {
    let mut tasks: BTreeMap<BTreeSet<usize>, u64> = BTreeMap::new();
    for kind in kinds {
        let fitting = (0..pools.len()).filter(|&i| pools[i].runs(&kind)).collect();
        *tasks.entry(fitting).or_insert(0) += kind.tasks;
    }
    let stranded = tasks.remove(&BTreeSet::new()).unwrap_or(0);
    if tasks.is_empty() {
        return stranded;
    }
    let longest = |set: &BTreeSet<usize>| {
        let slots: u64 = set.iter().map(|&i| u64::from(pools[i].slots)).sum();
        let only_here: u64 = tasks.iter().filter(|(fitting, _)| fitting.is_subset(set)).map(|(_, n)| n).sum();
        only_here.div_ceil(slots.max(1))
    };
    unions(tasks.keys()).iter().map(longest).max().unwrap_or(0)
}

/// These sets and what any of them are together, the union of all included; at most about [`MAX_UNIONS`].
fn unions<'a>(sets: impl Iterator<Item = &'a BTreeSet<usize>> + Clone) -> BTreeSet<BTreeSet<usize>> {
    let mut unions: BTreeSet<BTreeSet<usize>> = sets.clone().cloned().collect();
    unions.insert(sets.clone().flatten().copied().collect());
    for set in sets {
        if unions.len() >= MAX_UNIONS {
            break;
        }
        let wider: Vec<_> = unions.iter().map(|union| union | set).collect();
        unions.extend(wider);
    }
    unions
}

#[cfg(test)]
mod tests {
    use super::*;
    use modelmeter_common::{model::Format, status::Abilities};

    #[test]
    fn rounds_are_those_of_the_slots_with_the_most_to_do() {
        let many = |class: &str, engines: &[&str], slots: u32| {
            let engines = engines.iter().map(ToString::to_string).collect();
            Pool { slots, ..Pool::of(class, engines, Abilities::default()) }
        };
        let kind = |engine: &'static str, device_class: &'static str, tasks: u64| Kind {
            engine,
            format: Some(Format::Onnx),
            device_class,
            inspector: DEFAULT_INSPECTOR,
            tasks,
        };
        let pools = [many("cpu", &["onnx", "rten"], 9), many("nvidia-a10", &["onnx"], 1)];
        let (on_cpu, on_gpu) = (kind("onnx", "cpu", 50), kind("onnx", "nvidia-a10", 50));
        assert_eq!(rounds([on_cpu, on_gpu], &pools), 50, "fifty on the only GPU");
        assert_eq!(rounds([on_cpu], &pools), 6);
        assert_eq!(rounds([on_cpu, kind("triton", "cpu", 50)], &pools), 6, "some of them nobody runs");
        assert_eq!(rounds([on_cpu, on_gpu], &[]), 100, "as if one slot came");

        // Of three kinds two overlap in one pool: neither alone is what takes longest, both together are.
        let pools = [many("cpu", &["a", "b"], 1), many("cpu", &["b", "c"], 1), many("cpu", &["d"], 8)];
        let overlapping = [kind("a", "cpu", 4), kind("b", "cpu", 10), kind("c", "cpu", 4), kind("d", "cpu", 8)];
        assert_eq!(rounds(overlapping, &pools), 9);
    }

    #[test]
    fn a_budget_is_shared_over_the_rounds_that_the_slots_need() {
        let request = Request { budget_ms: Some(100_000), ..Request::default() };
        assert_eq!(plan(&request, 10).budget_ms, Some(9_000));
        assert_eq!(plan(&request, 3).budget_ms, Some(30_000));
        assert_eq!(plan(&request, 100_000).budget_ms, Some(MIN_TASK_BUDGET_MS));
        // A load point may take all of it, unless its maximum is stated.
        let request = Request { grace_ms: 50_000, ..request };
        let long = plan(&request, 1);
        assert_eq!((long.grace_ms, long.stop.max_duration_ms), (50_000, 140_000));
        assert_eq!(plan(&request, 10).stop.max_duration_ms, Stop::default().max_duration_ms);
        let stop = Stop { max_duration_ms: 10_000, ..Stop::default() };
        assert_eq!(plan(&Request { stop, ..request }, 1).stop.max_duration_ms, 10_000);
    }
}
