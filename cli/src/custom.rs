//! Engines and inspectors that the configuration defines: what a worker may run by name besides the built-in ones.

use crate::engines::on_path;
use modelmeter_common::{
    Code, Problem,
    config::{self, Config, CustomEngine, CustomInspector, TimedIn},
    engine,
    task::DEFAULT_INSPECTOR,
};
use modelmeter_worker::{
    EngineSpec, Launch, Layout, PortPair, Ports,
    inspector::{Custom, Program},
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// The longest name of an engine or inspector.
const MAX_NAME: usize = 64;

/// An engine of the configuration.
///
/// # Errors
/// `invalid_argument` for what makes no sense, naming the key; `not_installed` for a program that is not there.
pub fn engine(name: &str, custom: &CustomEngine) -> Result<EngineSpec, Problem> {
    let field = format!("engines.{name}");
    plain(name, &field)?;
    if engine::find(name).is_some() {
        return Err(Problem::invalid(field, format!("'{name}' is a built-in engine")).with_hint("choose another name"));
    }
    let env = custom.env.clone();
    let launch = match custom.docker.clone() {
        Some(container) => Launch::Docker { container, args: custom.command.clone(), env },
        None => {
            let (program, args) = command(&custom.command, &field)?;
            Launch::Process { program, args, env }
        }
    };
    let ports = PortPair { http: custom.http_port, grpc: custom.grpc_port, metrics: None };
    let on = |kind: &str| custom.devices.iter().any(|device| device == kind).then_some(ports);
    if let Some(other) = custom.devices.iter().find(|device| !matches!(device.as_str(), "cpu" | "gpu")) {
        return Err(Problem::invalid(format!("{field}.devices"), format!("'{other}' is not a kind of device"))
            .with_hint("use cpu, gpu, or both"));
    }
    let spec = EngineSpec {
        name: name.to_owned(),
        version: custom.version.clone(),
        launch,
        layout: Layout::Plain,
        protocol: custom.protocol,
        ports: Ports { cpu: on("cpu"), gpu: on("gpu") },
        formats: custom.formats.clone(),
        ready_timeout: seconds(&custom.ready_timeout, &format!("{field}.ready_timeout"))?,
    };
    spec.validate()?;
    Ok(spec)
}

/// The inspectors of the configuration.
///
/// # Errors
/// `invalid_argument`, naming the key.
pub fn inspectors(config: &Config) -> Result<BTreeMap<String, Custom>, Problem> {
    config.inspectors.iter().map(|(name, custom)| Ok((name.clone(), inspector(name, custom)?))).collect()
}

fn inspector(name: &str, custom: &CustomInspector) -> Result<Custom, Problem> {
    let field = format!("inspectors.{name}");
    plain(name, &field)?;
    if name == DEFAULT_INSPECTOR {
        return Err(
            Problem::invalid(field, "'default' means the engine's own inspector").with_hint("choose another name")
        );
    }
    let (program, args) = command(&custom.command, &field)?;
    Ok(Custom::Program(Program {
        program,
        args,
        env: custom.env.clone(),
        timeout: seconds(&custom.timeout, &format!("{field}.timeout"))?,
        timed: custom.timed_in == TimedIn::Child,
    }))
}

fn plain(name: &str, field: &str) -> Result<(), Problem> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(allowed) {
        return Err(Problem::invalid(field, format!("'{name}' cannot be a name"))
            .with_hint(format!("use 1 to {MAX_NAME} letters, digits, dots, hyphens and underscores")));
    }
    Ok(())
}

fn command(words: &[String], field: &str) -> Result<(PathBuf, Vec<String>), Problem> {
    let field = format!("{field}.command");
    let (program, args) = words.split_first().ok_or_else(|| {
        Problem::invalid(field.clone(), "is empty")
            .with_hint("give a program and its arguments, as [\"python3\", \"server.py\"]")
    })?;
    let program = PathBuf::from(program);
    if !is_there(&program) {
        let message = format!("program '{}' was not found", program.display());
        return Err(Problem::new(Code::NotInstalled, message)
            .with_field(field)
            .with_hint("give a program on PATH, or its path relative to where modelmeter is started"));
    }
    Ok((program, args.to_vec()))
}

/// Whether a program is at this path or, as a bare name, on PATH.
fn is_there(program: &Path) -> bool {
    if program.components().count() > 1 { program.is_file() } else { on_path(program).is_some() }
}

fn seconds(text: &str, field: &str) -> Result<std::time::Duration, Problem> {
    match config::duration(text).map_err(|problem| problem.with_field(field))? {
        zero if zero.is_zero() => Err(Problem::invalid(field, "0 is too short").with_hint("for example 60s")),
        duration => Ok(duration),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use modelmeter_common::device::DeviceKind;

    fn read(text: &str) -> Config {
        toml::from_str(text).unwrap()
    }

    fn engine_of(text: &str) -> Result<EngineSpec, Problem> {
        let config = read(text);
        let (name, custom) = config.engines.iter().next().unwrap();
        engine(name, custom)
    }

    #[test]
    fn an_engine_is_data() {
        let spec = engine_of(
            "[engines.mine]\ncommand = ['sh', '-c', 'exec serve {model}']\nformats = ['onnx']\ndevices = ['cpu', 'gpu']\n\
             grpc_port = 9001\nready_timeout = '5s'\nenv = { THREADS = '1' }",
        )
        .unwrap();
        assert!(
            spec.runs_on(DeviceKind::Gpu) && spec.ports.cpu == Some(PortPair { http: 0, grpc: 9001, metrics: None })
        );
        assert_eq!((spec.name.as_str(), spec.ready_timeout.as_secs(), spec.formats.len()), ("mine", 5, 1));
        let Launch::Process { program, args, env } = spec.launch else { panic!("not a process") };
        assert_eq!((program.as_path(), args.len(), env["THREADS"].as_str()), (Path::new("sh"), 2, "1"));
        let boxed =
            "[engines.mine]\nprotocol = 'mlmodelci-predict'\n[engines.mine.docker]\nimage = 'a:1'\ngrpc_port = 8001";
        let Launch::Docker { container, args, .. } = engine_of(boxed).unwrap().launch else {
            panic!("not a container")
        };
        assert_eq!((container.image.as_str(), container.grpc_port, args.len()), ("a:1", Some(8001), 0));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_key() {
        let cases = [
            ("[engines.onnx]\ncommand = ['sh']", "engines.onnx", "built-in"),
            ("[engines.'a b']\ncommand = ['sh']", "engines.a b", "cannot be a name"),
            ("[engines.x]\ncommand = []", "engines.x.command", "empty"),
            ("[engines.x.docker]\npull = 'never'", "engines.x.docker.image", "not set"),
            ("[engines.x]\ncommand = ['no-such-program']", "engines.x.command", "no-such-program"),
            ("[engines.x]\ncommand = ['sh', '{port}']", "engines.x", "{port}"),
            ("[engines.x]\ncommand = ['sh']\ndevices = ['tpu']", "engines.x.devices", "tpu"),
            ("[engines.x]\ncommand = ['sh']\nready_timeout = 'soon'", "engines.x.ready_timeout", "soon"),
        ];
        for (text, field, why) in cases {
            let problem = engine_of(text).unwrap_err();
            assert_eq!(problem.field.as_deref(), Some(field), "{problem}");
            assert!(problem.message.contains(why) && problem.hint.is_some(), "{problem:?}");
        }
        let inspector = |text: &str| inspectors(&read(text)).unwrap_err();
        assert!(inspector("[inspectors.default]\ncommand = ['sh']").message.contains("engine's own"));
        assert!(inspector("[inspectors.x]\ncommand = ['sh']\ntimeout = '0s'").message.contains("too short"));
        assert!(toml::from_str::<Config>("[inspectors.x]\ncommand = ['sh']\ntimed_in = 'rust'").is_err());
    }

    #[test]
    fn an_inspector_is_a_command() {
        let found = inspectors(&read("[inspectors.mine]\ncommand = ['sh', 'x']\ntimed_in = 'child'")).unwrap();
        let Custom::Program(program) = &found["mine"] else { panic!("not a program") };
        assert!(program.timed && program.args == ["x"] && program.timeout.as_secs() == 60);
    }
}
