//! TensorFlow Serving: the program `tensorflow_model_server`, as it is installed.

use super::Found;
use crate::engine::{EngineSpec, Launch, Layout, Ports};
use modelmeter_common::{
    config::Config,
    engine,
    program::{self, on_path},
};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

const PROGRAM: &str = "tensorflow_model_server";
/// The server links all of TensorFlow: from a cold disk it takes seconds to say its version.
const PATIENCE: Duration = Duration::from_secs(20);
/// A model that does not load is not tried again: it is reported at once.
const ARGUMENTS: [&str; 5] = [
    "--port={grpc_port}",
    "--rest_api_port={http_port}",
    "--model_name={model_name}",
    "--model_base_path={model}",
    "--max_num_load_retries=0",
];

/// Looks for the server; `found` is what is known without looking.
pub(super) fn look(found: Found, config: &Config) -> Found {
    let configured = config.engine.tfs.server.clone();
    let Some(server) = configured.or_else(|| on_path(PROGRAM)) else {
        return Found {
            reason: Some(format!("{PROGRAM} is not on PATH")),
            hint: Some(format!(
                "install TensorFlow Serving's {PROGRAM}, or set MODELMETER_ENGINE_TFS_SERVER to its path"
            )),
            ..found
        };
    };
    match program::run(&server, &["--version"], PATIENCE) {
        // "TensorFlow ModelServer: 2.19.1-rc0+…", and the library's version in the next line.
        Ok(said) => {
            let version = said.lines().find_map(|line| line.strip_prefix("TensorFlow ModelServer:"));
            let version = Some(version.map_or_else(|| "unknown".into(), |v| v.trim().to_owned()));
            Found { available: true, version, location: Some(server), ..found }
        }
        Err(why) => Found {
            reason: Some(format!("{} {why}", server.display())),
            hint: Some("set MODELMETER_ENGINE_TFS_SERVER to the path of one that runs".into()),
            ..found
        },
    }
}

/// The engine, where [`look`] found it.
pub(super) fn spec(found: &Found, config: &Config) -> EngineSpec {
    let info = engine::find("tfs").expect("it is in the table of engines");
    let (args, env) = (ARGUMENTS.map(str::to_owned).to_vec(), BTreeMap::new());
    let launch = match config.engine.tfs.docker.clone() {
        Some(mut container) => {
            // The image's own entry point gives the server arguments of its own.
            container.entrypoint.get_or_insert_with(|| vec![PROGRAM.to_owned()]);
            Launch::Docker { container, args, env }
        }
        None => {
            Launch::Process { program: found.location.clone().unwrap_or_else(|| PathBuf::from(PROGRAM)), args, env }
        }
    };
    EngineSpec {
        name: info.name.to_owned(),
        // No call of its API tells it.
        version: found.version.clone(),
        launch,
        layout: Layout::Tfs,
        protocol: info.protocol,
        ports: Ports::of(info),
        formats: info.formats.to_vec(),
        ready_timeout: config.engine.ready_timeout(),
    }
}
