//! The flags of `profile`, laid over a request.

use crate::{
    args::{Budget, LoadMode, ProfileArgs, Steps},
    data,
};
use modelmeter_common::{
    Problem,
    load::Load,
    request::{CERTIFIED_MIN_MS, CERTIFIED_PRECISION, CERTIFIED_REPEATS, Request},
};
use serde_json::Value;
use std::collections::BTreeMap;

/// Lays the flags over the request.
pub(super) fn fill(request: &mut Request, args: &ProfileArgs) -> Result<(), Problem> {
    list(&mut request.engines, &args.engines);
    list(&mut request.devices, &args.devices);
    list(&mut request.batch_sizes, &all(&args.batch_sizes));
    settings(&mut request.engine_settings, &args.engine_settings);
    if !args.shapes.is_empty() {
        request.shapes.clear();
    }
    for (input, shape) in &args.shapes {
        request.shapes.entry(input.clone()).or_default().push(shape.clone());
    }
    request.batch_axes.extend(args.batch_axes.iter().cloned());
    request.load = load(args, &request.load)?;
    let stop = &mut request.stop;
    stop.certified |= args.certified;
    if stop.certified {
        certified(args)?;
    }
    set(&mut stop.precision, args.precision);
    set(&mut stop.min_duration_ms, args.min_duration);
    set(&mut stop.max_duration_ms, args.max_duration);
    if args.min_duration.is_none() {
        // A shorter maximum alone is meant, not a contradiction.
        stop.min_duration_ms = stop.min_duration_ms.min(stop.max_duration_ms);
    } else if args.max_duration.is_none() {
        // Nor is a longer minimum.
        stop.max_duration_ms = stop.max_duration_ms.max(stop.min_duration_ms.saturating_mul(2));
    }
    set(&mut stop.timeout_ms, args.timeout);
    stop.first_timeout_ms = args.timeout.or(stop.first_timeout_ms);
    set(&mut stop.max_in_flight, args.max_in_flight);
    request.batches = args.batches.or(request.batches);
    request.budget_ms = match args.budget {
        Some(Budget::Time(ms)) => Some(ms),
        Some(Budget::None) => None,
        None => request.budget_ms,
    };
    request.sla = args.sla.clone().or(request.sla.take());
    request.inspector = args.inspector.clone().or(request.inspector.take());
    request.data = data::source(&args.data)?.or(request.data.take());
    set(&mut request.repeats, args.repeats);
    set(&mut request.seed, args.seed);
    set(&mut request.priority, args.priority);
    set(&mut request.deadline_ms, args.deadline);
    request.no_wait |= args.no_wait;
    request.labels.extend(args.labels.iter().cloned());
    Ok(())
}

/// Certified mode may be asked for more, not for less.
/// Adds settings of engines. Values of one setting that is named several times are a list, which replaces the file's.
fn settings(into: &mut BTreeMap<String, BTreeMap<String, Value>>, given: &[(String, String, Value)]) {
    let mut lists: BTreeMap<(&str, &str), Vec<Value>> = BTreeMap::new();
    for (engine, setting, value) in given {
        let list = lists.entry((engine, setting)).or_default();
        match value {
            Value::Array(values) => list.extend(values.iter().cloned()),
            one => list.push(one.clone()),
        }
    }
    for ((engine, setting), mut list) in lists {
        let value = if list.len() == 1 { list.remove(0) } else { Value::Array(list) };
        into.entry(engine.to_owned()).or_default().insert(setting.to_owned(), value);
    }
}

fn certified(args: &ProfileArgs) -> Result<(), Problem> {
    let less = |flag: &str, least: String| {
        Err(Problem::invalid(flag, "is less than --certified stands for")
            .with_hint(format!("leave it out, or use {least}")))
    };
    if args.precision.is_some_and(|share| share > CERTIFIED_PRECISION) {
        return less("precision", format!("at most {}%", CERTIFIED_PRECISION * 100.0));
    }
    for (flag, asked) in [("min-duration", args.min_duration), ("max-duration", args.max_duration)] {
        if asked.is_some_and(|ms| ms < CERTIFIED_MIN_MS) {
            return less(flag, format!("at least {}s", CERTIFIED_MIN_MS / 1000));
        }
    }
    if args.repeats.is_some_and(|n| n < CERTIFIED_REPEATS) {
        return less("repeats", format!("at least {CERTIFIED_REPEATS}"));
    }
    Ok(())
}

/// The load that the flags say; what they leave open is the file's.
fn load(args: &ProfileArgs, from_file: &Load) -> Result<Load, Problem> {
    let conflict = |what: &str| {
        Err(Problem::invalid("load", what)
            .with_hint("use --concurrency for calls in flight, or --rate for calls a second"))
    };
    if !args.concurrency.is_empty() && !args.rate.is_empty() {
        return conflict("--concurrency and --rate cannot be used together");
    }
    let mode = match (args.load, args.concurrency.is_empty(), args.rate.is_empty()) {
        (Some(mode), ..) => mode,
        (None, false, _) => LoadMode::Closed,
        (None, _, false) => LoadMode::Open,
        (None, true, true) => match from_file {
            Load::Closed { .. } => LoadMode::Closed,
            Load::Open { .. } => LoadMode::Open,
            Load::SlaSearch { .. } => LoadMode::SlaSearch,
        },
    };
    let stored_arrivals = match from_file {
        Load::Open { arrivals, .. } | Load::SlaSearch { arrivals } => *arrivals,
        Load::Closed { .. } => Default::default(),
    };
    let arrivals = args.arrivals.unwrap_or(stored_arrivals);
    match mode {
        LoadMode::Closed if !args.rate.is_empty() => conflict("--rate does not go with --load closed"),
        LoadMode::Closed if args.arrivals.is_some() => conflict("--arrivals needs a rate of calls"),
        LoadMode::Open | LoadMode::SlaSearch if !args.concurrency.is_empty() => {
            conflict("--concurrency needs --load closed")
        }
        LoadMode::SlaSearch if !args.rate.is_empty() => {
            conflict("--load sla-search finds the rate itself, so --rate cannot be given")
        }
        LoadMode::Closed => Ok(match from_file {
            Load::Closed { concurrencies } if args.concurrency.is_empty() => {
                Load::Closed { concurrencies: concurrencies.clone() }
            }
            _ => Load::Closed { concurrencies: all(&args.concurrency) },
        }),
        LoadMode::Open => Ok(match from_file {
            Load::Open { rates, .. } if args.rate.is_empty() => Load::Open { rates: rates.clone(), arrivals },
            _ => Load::Open { rates: all(&args.rate), arrivals },
        }),
        LoadMode::SlaSearch => Ok(Load::SlaSearch { arrivals }),
    }
}

fn list<T: Clone>(to: &mut Vec<T>, given: &[T]) {
    if !given.is_empty() {
        *to = given.to_vec();
    }
}

/// The numbers that were named, ranges as their steps.
fn all<T: Clone>(named: &[Steps<T>]) -> Vec<T> {
    named.iter().flat_map(|steps| steps.0.clone()).collect()
}

fn set<T>(to: &mut T, given: Option<T>) {
    if let Some(value) = given {
        *to = value;
    }
}
