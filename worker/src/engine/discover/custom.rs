//! Engines that the configuration defines.

use crate::{
    configured::{check_name, command, positive},
    engine::{EngineSpec, Launch, Layout, PortPair, Ports},
};
use modelmeter_common::{Problem, config::CustomEngine, engine};

/// An engine of the configuration.
///
/// # Errors
/// `invalid_argument` for what makes no sense, naming the key; `not_installed` for a program that is not there.
pub(super) fn spec(name: &str, custom: &CustomEngine) -> Result<EngineSpec, Problem> {
    let field = format!("engines.{name}");
    check_name(name, &field)?;
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
        ready_timeout: positive(&custom.ready_timeout, &format!("{field}.ready_timeout"))?,
    };
    spec.validate()?;
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use modelmeter_common::{config::Config, device::DeviceKind};
    use std::path::Path;

    fn engine_of(text: &str) -> Result<EngineSpec, Problem> {
        let config: Config = toml::from_str(text).unwrap();
        let (name, custom) = config.engines.iter().next().unwrap();
        spec(name, custom)
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
            ("[engines.x.docker]\npull = 'never'", "engines.x.docker.image", "no image"),
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
    }
}
