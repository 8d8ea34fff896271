//! The settings of each engine: their names, values and defaults, checked whole.

use crate::ENGINES;
use modelmeter_common::{Problem, cgroup::CpuGroups, error::did_you_mean};
use serde_json::Value;
use std::collections::BTreeMap;

/// More threads or instances than this are a slip of the hand.
const MAX_COUNT: u64 = 1024;

/// What a setting may be.
#[derive(Clone, Copy)]
enum Kind {
    Count,
    Flag,
    Choice(&'static [&'static str]),
}

impl Kind {
    fn accepts(self, value: &Value) -> bool {
        match self {
            Self::Count => value.as_u64().is_some_and(|count| (1..=MAX_COUNT).contains(&count)),
            Self::Flag => value.is_boolean(),
            Self::Choice(choices) => value.as_str().is_some_and(|chosen| choices.contains(&chosen)),
        }
    }

    fn allowed(self) -> String {
        match self {
            Self::Count => format!("a whole number from 1 to {MAX_COUNT}"),
            Self::Flag => "true or false".into(),
            Self::Choice(choices) => format!("one of {}", choices.join(", ")),
        }
    }
}

/// ONNX Runtime's names for what it does to a graph before running it.
const LEVELS: &[&str] = &["disabled", "basic", "extended", "all"];

/// Threads inside an inference; as many as [`cores`] when not given.
const THREADS: (&str, Kind) = ("threads", Kind::Count);
/// Inferences run side by side, each with its own threads; 1 when not given.
const INSTANCES: (&str, Kind) = ("instances", Kind::Count);
/// `all` when not given.
const LEVEL: (&str, Kind) = ("graph_optimization_level", Kind::Choice(LEVELS));
/// Whether weights are laid out for the CPU at load, for more memory; `false` when not given.
const PREPACK: (&str, Kind) = ("prepack_weights", Kind::Flag);

fn known(engine: &str) -> Option<&'static [(&'static str, Kind)]> {
    match engine {
        "onnx" => Some(&[THREADS, INSTANCES, LEVEL]),
        "rten" => Some(&[THREADS, INSTANCES, PREPACK]),
        "torchscript" => Some(&[THREADS, INSTANCES]),
        "null" => Some(&[]),
        _ => None,
    }
}

/// The values of one engine's settings.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    pub threads: usize,
    pub instances: usize,
    pub graph_optimization_level: String,
    pub prepack_weights: bool,
}

/// Whether `engine` takes these settings.
///
/// # Errors
/// `invalid_argument` naming the engine, setting or value that it does not take, with what it takes.
pub fn check_settings(engine: &str, settings: &BTreeMap<String, Value>) -> Result<(), Problem> {
    parse(engine, settings).map(|_| ())
}

/// Threads that take requests and send answers: what inference leaves of the cores that this process may use, so that
/// a call is not passed back and forth between more threads than there are cores. At least one; all, where inference has
/// no threads of its own.
pub fn io_threads(engine: &str, settings: &BTreeMap<String, Value>) -> usize {
    let inference = match parse(engine, settings) {
        Ok(settings) if engine != "null" => settings.threads.saturating_mul(settings.instances),
        _ => 0,
    };
    usable().saturating_sub(inference).max(1)
}

pub fn parse(engine: &str, settings: &BTreeMap<String, Value>) -> Result<Settings, Problem> {
    let known = known(engine).ok_or_else(|| unknown(engine))?;
    for (name, value) in settings {
        let field = format!("engine_settings.{engine}.{name}");
        let Some((_, kind)) = known.iter().find(|(known, _)| known == name) else {
            return Err(Problem::invalid(field, format!("engine {engine} has no setting '{name}'"))
                .with_hint(allowed_names(name, known)));
        };
        if !kind.accepts(value) {
            return Err(Problem::invalid(field, format!("{value} is not a value of '{name}'"))
                .with_hint(format!("it takes {}", kind.allowed())));
        }
    }
    let count = |name: &str| settings.get(name).and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok());
    Ok(Settings {
        threads: count(THREADS.0).unwrap_or_else(cores),
        instances: count(INSTANCES.0).unwrap_or(1),
        graph_optimization_level: settings.get(LEVEL.0).and_then(Value::as_str).unwrap_or("all").to_owned(),
        prepack_weights: settings.get(PREPACK.0).and_then(Value::as_bool).unwrap_or(false),
    })
}

/// The physical cores of the host, but no more than this process may use.
fn cores() -> usize {
    num_cpus::get_physical().min(usable())
}

/// The cores that this process may run on, a slot being a set of cores, and no more than a CPU quota allows.
fn usable() -> usize {
    CpuGroups::own().cap(num_cpus::get())
}

/// That the built-in server has no such engine.
pub fn unknown(engine: &str) -> Problem {
    Problem::invalid("engine", format!("the built-in server has no engine '{engine}'"))
        .with_hint(format!("one of {}", ENGINES.join(", ")))
}

fn allowed_names(given: &str, known: &[(&'static str, Kind)]) -> String {
    if known.is_empty() {
        return "it has no settings".into();
    }
    let meant = did_you_mean(given, known.iter().map(|(name, _)| *name));
    let each: Vec<String> = known.iter().map(|(name, kind)| format!("{name} ({})", kind.allowed())).collect();
    format!("{meant}it takes {}", each.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(engine: &str, settings: Value) -> Result<(), Problem> {
        check_settings(engine, &serde_json::from_value(settings).unwrap())
    }

    #[test]
    fn good_settings_are_taken() {
        check("onnx", json!({"threads": 2, "instances": 1, "graph_optimization_level": "basic"})).unwrap();
        check("rten", json!({"threads": 1, "prepack_weights": true})).unwrap();
        check("torchscript", json!({"threads": 1, "instances": 2})).unwrap();
        check("null", json!({})).unwrap();
        let usable = std::thread::available_parallelism().unwrap().get();
        let [few, many] = [1, 1024].map(|n| BTreeMap::from([("threads".to_owned(), json!(n))]));
        assert_eq!((io_threads("null", &BTreeMap::new()), io_threads("rten", &many)), (usable, 1));
        assert_eq!(io_threads("onnx", &few), (usable - 1).max(1));
        assert!((1..=usable).contains(&parse("rten", &BTreeMap::new()).unwrap().threads));
    }

    #[test]
    fn each_bad_one_is_named_with_what_is_allowed() {
        for (engine, settings, field, hint) in [
            (
                "onnx",
                json!({"thread": 2}),
                "engine_settings.onnx.thread",
                "did you mean 'threads'? it takes threads (a whole",
            ),
            ("onnx", json!({"threads": 0}), "engine_settings.onnx.threads", "it takes a whole number from 1 to 1024"),
            ("rten", json!({"threads": "2"}), "engine_settings.rten.threads", "it takes a whole number"),
            ("rten", json!({"prepack_weights": 1}), "engine_settings.rten.prepack_weights", "it takes true or false"),
            (
                "onnx",
                json!({"graph_optimization_level": "max"}),
                "engine_settings.onnx.graph_optimization_level",
                "it takes one of disabled",
            ),
            ("null", json!({"threads": 1}), "engine_settings.null.threads", "it has no settings"),
            ("tfs", json!({}), "engine", "one of onnx, rten, null"),
        ] {
            let problem = check(engine, settings).unwrap_err();
            assert_eq!(problem.field.as_deref(), Some(field));
            assert!(problem.hint.as_ref().unwrap().starts_with(hint), "{problem:?}");
        }
    }
}
