//! The TorchScript engine as the worker is to launch it: our server, run by the user's own Python.

use crate::engines::Found;
use modelmeter_common::{Problem, cgroup::CpuGroups, config::Config, engine};
use modelmeter_serving::torchscript;
use modelmeter_worker::{EngineSpec, Launch, Layout, Ports};
use std::{collections::BTreeMap, path::PathBuf};

/// What it is asked to do; the server's own path goes before.
const ARGUMENTS: [&str; 14] = [
    "--model",
    "{model}",
    "--model-name",
    "{model_name}",
    "--grpc-port",
    "{grpc_port}",
    "--http-port",
    "{http_port}",
    "--device",
    "{device}",
    "--settings",
    "{settings}",
    "--signature",
    "{signature}",
];

/// Looks for a Python that can run it; `found` is what is known without looking.
pub fn look(found: Found, config: &Config) -> Found {
    match torchscript::locate(config.engine.torchscript.python.as_deref()) {
        Ok(located) => {
            let cuda = located.cuda.as_ref().map(|cuda| format!(" (CUDA {cuda})")).unwrap_or_default();
            let version = Some(format!("torch {}{cuda}", located.torch));
            Found { available: true, gpu: located.cuda.is_some(), version, location: Some(located.python), ..found }
        }
        Err(problem) => Found { reason: Some(problem.message), hint: problem.hint, ..found },
    }
}

/// The engine, where [`look`] found it.
///
/// # Errors
/// `storage` when the server cannot be written to the home.
pub fn spec(found: &Found, config: &Config) -> Result<EngineSpec, Problem> {
    let info = engine::find("torchscript").expect("it is in the table of engines");
    let server = torchscript::write_server(&config.home.join("cache"))?;
    let args = std::iter::once(server.display().to_string()).chain(ARGUMENTS.map(str::to_owned)).collect();
    let ports = Ports::of(info);
    Ok(EngineSpec {
        name: info.name.to_owned(),
        version: None,
        launch: Launch::Process {
            program: found.location.clone().unwrap_or_else(|| PathBuf::from("python3")),
            args,
            env: max_threads(&CpuGroups::own()),
        },
        layout: Layout::Plain,
        protocol: info.protocol,
        // A torch for the CPU alone would serve there, and measure the wrong device.
        ports: if found.gpu { ports } else { Ports { gpu: None, ..ports } },
        formats: info.formats.to_vec(),
        ready_timeout: config.engine.ready_timeout(),
    })
}

/// What a CPU quota leaves to the threads of the Python server, which looks at the cores alone.
fn max_threads(groups: &CpuGroups) -> BTreeMap<String, String> {
    let most = groups.cores().map(|_| groups.cap(usize::MAX).to_string());
    most.map(|most| ("MODELMETER_MAX_THREADS".to_owned(), most)).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use modelmeter_common::device::DeviceKind;

    #[test]
    fn a_torch_without_cuda_is_not_offered_for_gpus() {
        let home = std::env::temp_dir().join(format!("modelmeter-torchscript-{}", uuid::Uuid::new_v4()));
        let config = Config { home: home.clone(), ..Config::default() };
        let found = Found {
            name: "torchscript".into(),
            title: "",
            formats: Vec::new(),
            available: true,
            launch: "process",
            gpu: false,
            version: None,
            location: Some("/opt/venv/bin/python".into()),
            reason: None,
            hint: None,
        };
        let of = |gpu| spec(&Found { gpu, ..found.clone() }, &config).unwrap();
        assert!(of(false).runs_on(DeviceKind::Cpu) && !of(false).runs_on(DeviceKind::Gpu));
        assert!(of(true).runs_on(DeviceKind::Gpu));
        let Launch::Process { program, args, .. } = of(true).launch else { panic!("not a process") };
        assert_eq!(program, PathBuf::from("/opt/venv/bin/python"));
        assert!(std::path::Path::new(&args[0]).is_file() && args[1..] == ARGUMENTS.map(str::to_owned));
        std::fs::remove_dir_all(home).unwrap();
    }
}
