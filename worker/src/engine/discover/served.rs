//! The engines that `modelmeter serve` serves: `onnx`, `rten` and `null`.

use super::{Discovery, Found, Servers, container};
use crate::engine::{EngineSpec, Launch, Layout, Ports};
use modelmeter_common::{Problem, VERSION, engine};
use std::{collections::BTreeMap, path::PathBuf};

/// Looks for what the engine needs; `found` is what is known without looking.
pub(super) fn look(found: Found, discovery: &Discovery<'_>) -> Found {
    match locate(&found.name, discovery) {
        Ok((location, version)) => Found { available: true, version: Some(version), location: Some(location), ..found },
        Err(problem) => Found { reason: Some(problem.message), hint: problem.hint, ..found },
    }
}

/// The library or program behind an engine, and its version.
fn locate(name: &str, discovery: &Discovery<'_>) -> Result<(PathBuf, String), Problem> {
    let Servers { program, rten_version, onnxruntime, .. } = discovery.servers;
    match name {
        "onnx" => onnxruntime(discovery.config.engine.onnx.library.as_deref()),
        "rten" => Ok((program()?, rten_version.to_owned())),
        _ => Ok((program()?, VERSION.to_owned())),
    }
}

/// How one of them is launched.
///
/// # Errors
/// `not_installed` without the program that serves.
pub(super) fn spec(found: &Found, discovery: &Discovery<'_>) -> Result<EngineSpec, Problem> {
    let Discovery { config, servers } = discovery;
    let program = (servers.program)()?;
    let info = engine::find(&found.name).expect("surveyed from the table of engines");
    let mut args: Vec<String> = ["serve", "--engine", info.name, "--model", "{model}", "--model-name", "{model_name}"]
        .into_iter()
        .chain(["--grpc-port", "{grpc_port}", "--http-port", "{http_port}", "--settings", "{settings}"])
        .map(str::to_owned)
        .collect();
    let env = BTreeMap::new();
    let launch = match (container(info.name, config), info.name, &found.location) {
        (Some(container), ..) => {
            args.extend(["--host", "0.0.0.0"].map(str::to_owned));
            Launch::Docker { container: container.clone(), args, env }
        }
        (None, "onnx", Some(library)) => {
            args.extend(["--onnxruntime".to_owned(), library.display().to_string()]);
            Launch::Process { program, args, env }
        }
        _ => Launch::Process { program, args, env },
    };
    Ok(EngineSpec {
        name: info.name.to_owned(),
        version: None,
        launch,
        layout: Layout::Plain,
        protocol: info.protocol,
        // The built-in servers run models on the CPU: on a GPU slot they would measure the wrong device.
        ports: Ports { gpu: None, ..Ports::of(info) },
        formats: info.formats.to_vec(),
        ready_timeout: config.engine.ready_timeout(),
    })
}
