//! The variables `MODELMETER_*`: which there are, and how each is read.

use crate::Problem;
use std::collections::BTreeMap;
use toml::{Table, Value};

/// Variables that others than the configuration read: where it is, where the NVIDIA driver's library is, and where the
/// Python package finds this program.
const OTHER_VARIABLES: [&str; 3] = ["MODELMETER_CONFIG", "MODELMETER_NVML", "MODELMETER_BINARY"];

/// Variables of the environment that start with `MODELMETER_` but that nothing reads: likely misspelt. What the
/// tests read (`MODELMETER_TEST_*`) is left alone.
pub fn unknown_variables(env: &BTreeMap<String, String>) -> Vec<&str> {
    env.keys()
        .map(String::as_str)
        .filter(|name| name.starts_with("MODELMETER_") && !name.starts_with("MODELMETER_TEST_"))
        .filter(|name| !OTHER_VARIABLES.contains(name))
        .filter(|name| VARIABLES.iter().all(|v| v.name != *name))
        .collect()
}

/// Sets what the variables of this environment say, over what the file said.
pub(super) fn apply(env: &BTreeMap<String, String>, table: &mut Table) -> Result<(), Problem> {
    for variable in &VARIABLES {
        if let Some(text) = env.get(variable.name) {
            set(table, variable.path, variable.value(text)?);
        }
    }
    Ok(())
}

fn set(table: &mut Table, path: &[&str], value: Value) {
    let (last, sections) = path.split_last().expect("a variable has a path");
    let mut table = table;
    for section in sections {
        let entry = table.entry((*section).to_owned()).or_insert_with(|| Value::Table(Table::new()));
        table = entry.as_table_mut().expect("the file was checked against the sections");
    }
    table.insert((*last).to_owned(), value);
}

/// How the text of a variable is read.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    /// Separated by commas.
    List,
    Number,
    Flag,
    /// `k=v`, separated by commas.
    Map,
}

struct Variable {
    name: &'static str,
    path: &'static [&'static str],
    kind: Kind,
}

impl Variable {
    fn value(&self, text: &str) -> Result<Value, Problem> {
        let list = || text.split(',').map(str::trim).filter(|item| !item.is_empty());
        let wrong = |what: &str| Problem::invalid(self.name, format!("'{text}' is not {what}"));
        match self.kind {
            Kind::Text => Ok(Value::String(text.to_owned())),
            Kind::List => Ok(Value::Array(list().map(|item| Value::String(item.to_owned())).collect())),
            Kind::Number => text.trim().parse().map(Value::Integer).map_err(|_| wrong("a whole number")),
            Kind::Flag => match text.trim() {
                "1" | "true" => Ok(Value::Boolean(true)),
                "0" | "false" | "" => Ok(Value::Boolean(false)),
                _ => Err(wrong("true or false")),
            },
            Kind::Map => list()
                .map(|item| item.split_once('=').map(|(k, v)| (k.to_owned(), Value::String(v.to_owned()))))
                .collect::<Option<Table>>()
                .map(Value::Table)
                .ok_or_else(|| wrong("a list of key=value")),
        }
    }
}

const fn variable(name: &'static str, path: &'static [&'static str], kind: Kind) -> Variable {
    Variable { name, path, kind }
}

const VARIABLES: [Variable; 27] = [
    variable("MODELMETER_HOME", &["home"], Kind::Text),
    variable("MODELMETER_COORDINATOR", &["client", "coordinators"], Kind::List),
    variable("MODELMETER_COORDINATOR_LISTEN", &["coordinator", "listen"], Kind::Text),
    variable("MODELMETER_COORDINATOR_HTTP", &["coordinator", "http"], Kind::Text),
    variable("MODELMETER_COORDINATOR_BROKER", &["coordinator", "broker"], Kind::Text),
    variable("MODELMETER_COORDINATOR_HUB", &["coordinator", "hub"], Kind::Text),
    variable("MODELMETER_COORDINATOR_LEASE", &["coordinator", "lease"], Kind::Text),
    variable("MODELMETER_COORDINATOR_INSECURE_LISTEN", &["coordinator", "insecure_listen"], Kind::Flag),
    variable("MODELMETER_WORKER_NAME", &["worker", "name"], Kind::Text),
    variable("MODELMETER_WORKER_BROKER", &["worker", "broker"], Kind::Text),
    variable("MODELMETER_WORKER_COORDINATORS", &["worker", "coordinators"], Kind::List),
    variable("MODELMETER_WORKER_DEVICES", &["worker", "devices"], Kind::List),
    variable("MODELMETER_WORKER_CPU_SLOTS", &["worker", "cpu_slots"], Kind::Number),
    variable("MODELMETER_WORKER_PORTS", &["worker", "ports"], Kind::Text),
    variable("MODELMETER_WORKER_LOCK_DIR", &["worker", "lock_dir"], Kind::Text),
    variable("MODELMETER_WORKER_CLIENT_CPUS", &["worker", "client_cpus"], Kind::Text),
    variable("MODELMETER_WORKER_ENGINE_CPUS", &["worker", "engine_cpus"], Kind::Text),
    variable("MODELMETER_WORKER_SHARED_CPU", &["worker", "shared_cpu"], Kind::Flag),
    variable("MODELMETER_WORKER_LABELS", &["worker", "labels"], Kind::Map),
    variable("MODELMETER_WORKER_ENGINES", &["worker", "engines"], Kind::List),
    variable("MODELMETER_ENGINE_READY_TIMEOUT", &["engine", "ready_timeout"], Kind::Text),
    variable("MODELMETER_ENGINE_ONNX_LIBRARY", &["engine", "onnx", "library"], Kind::Text),
    variable("MODELMETER_ENGINE_TORCHSCRIPT_PYTHON", &["engine", "torchscript", "python"], Kind::Text),
    variable("MODELMETER_ENGINE_TRITON_SERVER", &["engine", "triton", "server"], Kind::Text),
    variable("MODELMETER_ENGINE_TRITON_BACKENDS", &["engine", "triton", "backends"], Kind::Text),
    variable("MODELMETER_ENGINE_TRITON_PYTHON", &["engine", "triton", "python"], Kind::Text),
    variable("MODELMETER_ENGINE_TFS_SERVER", &["engine", "tfs", "server"], Kind::Text),
];
