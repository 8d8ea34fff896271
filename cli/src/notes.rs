//! What a user is told of a job before it runs: one line each, on standard error.

use crate::report::{budget, counted, time};
use modelmeter_common::{Problem, model::Model, request::Request};
use std::time::Duration;

/// A budget that is so many times as large gives intervals that are clearly narrower.
const SHARPER: f64 = 2.5;

/// What is said while something is waited for.
pub fn waiting(problem: &Problem) -> String {
    format!("waiting: {} (Ctrl-C ends the wait; with --no-wait there is none)", problem.message)
}

/// The time that a request may take.
pub fn time_limit(request: &Request) -> Option<Duration> {
    request.budget_ms.map(Duration::from_millis)
}

/// What will be measured, how long that takes, and how to change it.
pub fn opening(request: &Request, tasks: u64) -> String {
    let name = request.model.split(':').next().unwrap_or_default();
    let repeats = u64::from(request.repeats.max(1));
    let cells = tasks / repeats;
    let mut text = format!("{} of {name}", counted(cells, "cell"));
    if repeats > 1 {
        text += &format!(", each {repeats} times");
    }
    let Some(limit) = time_limit(request) else {
        return text + ", without a time limit (--budget 2m sets one)";
    };
    let (all_s, each_s) = (limit.as_secs_f64(), limit.as_secs_f64() / tasks.max(1) as f64);
    let each = if repeats > 1 { "a repeat" } else { "a cell" };
    text + &format!(
        ", {} {} ({} {each}; --budget {} for sharper figures, --budget none for no limit)",
        if request.grace_ms > 0 { "about" } else { "up to" },
        time(all_s),
        time(each_s),
        budget(all_s * SHARPER)
    )
}

/// What is taken for the batch, where that may not be what was meant.
pub fn of_batch(request: &Request, model: &Model) -> Vec<String> {
    // An invalid batch is an error of the plan, which reports it.
    let Ok((batch, sizes)) = request.batch(model) else { return Vec::new() };
    let mut notes = batch.notes(&request.shapes, &sizes);
    if let ([], [only]) = (&request.batch_sizes[..], &sizes[..]) {
        notes.push(format!("the model takes batches of {only} alone"));
    }
    // A server says of a single value what it says of a shape that it does not tell: nothing.
    for input in model.inputs.iter().filter(|input| model.artifacts.is_empty() && input.shape.is_empty()) {
        let (name, dtype) = (&input.name, input.dtype.as_str().to_ascii_lowercase());
        notes.push(format!(
            "the server tells no axes of input '{name}', so a single value is sent; if it has axes: --input {name}:{dtype}:4"
        ));
    }
    notes
}

/// An engine that was asked for and cannot run here.
pub fn of_missing_engine(name: &str, problem: &Problem) -> String {
    let hint = problem.hint.as_deref().unwrap_or_default();
    format!("engine '{name}' cannot run here, so its cells will fail: {}; {hint}", problem.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_says_how_long_it_takes_and_how_to_change_that() {
        let request = Request { model: "resnet50:1352".into(), budget_ms: Some(120_000), ..Request::default() };
        assert_eq!(
            opening(&request, 4),
            "4 cells of resnet50, up to 2 min (30 s a cell; --budget 5m for sharper figures, --budget none for no limit)"
        );
        let usual = opening(&Request { grace_ms: 1, ..request.clone() }, 4);
        assert!(usual.starts_with("4 cells of resnet50, about 2 min (30 s a cell; "), "{usual}");
        let repeated = opening(&Request { repeats: 3, ..request.clone() }, 12);
        assert!(repeated.starts_with("4 cells of resnet50, each 3 times, up to 2 min (10 s a repeat; "), "{repeated}");
        let unlimited = opening(&Request { budget_ms: None, ..request }, 1);
        assert_eq!(unlimited, "1 cell of resnet50, without a time limit (--budget 2m sets one)");
    }
}
