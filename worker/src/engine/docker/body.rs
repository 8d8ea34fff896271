//! What a container is created with.

use super::Command;
use bollard::models::{
    ContainerCreateBody, DeviceRequest, HostConfig, HostConfigLogConfig, Mount, MountType, PortBinding,
    ResourcesUlimits,
};
use std::collections::HashMap;

/// The label by which what a dead worker left is found.
pub(super) const OWNER: &str = "modelmeter.owner";
/// For people who look at `docker ps`.
const ENGINE: &str = "modelmeter.engine";
/// Docker keeps the log apart from ours: it must not fill the disk either.
const LOG_SIZE: &str = "16m";

pub(super) fn body(command: &Command, image_id: &str) -> ContainerCreateBody {
    let container = &command.container;
    let inside: Vec<String> = command.ports.iter().map(|(_, inside)| format!("{inside}/tcp")).collect();
    let labels = [(OWNER, &command.owner), (ENGINE, &command.engine)];
    ContainerCreateBody {
        image: Some(image_id.to_owned()),
        entrypoint: container.entrypoint.clone(),
        cmd: (!command.args.is_empty()).then(|| command.args.clone()),
        env: Some(environment(command)),
        labels: Some(labels.into_iter().map(|(key, value)| (key.to_owned(), value.clone())).collect()),
        exposed_ports: Some(inside.clone()),
        host_config: Some(HostConfig {
            port_bindings: Some(inside.into_iter().zip(command.ports.iter().map(loopback)).collect()),
            mounts: command.model.as_ref().map(|(source, target)| vec![read_only(source.display(), target)]),
            shm_size: container.shm_mib.map(|mib| i64::from(mib) << 20),
            ulimits: Some(container.ulimits.iter().map(ulimit).collect()),
            cpuset_cpus: command.cores.as_deref().map(list),
            device_requests: command.gpu.as_ref().map(|uuid| vec![gpu(uuid)]),
            // Signals reach the server, and zombies are reaped.
            init: Some(true),
            log_config: Some(HostConfigLogConfig {
                typ: Some("json-file".into()),
                config: Some(HashMap::from([("max-size".into(), LOG_SIZE.into())])),
            }),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

/// Without a GPU of its own the engine sees none, also where the daemon would give it all.
fn environment(command: &Command) -> Vec<String> {
    let given = command.env.iter().map(|(key, value)| format!("{key}={value}"));
    let none = command.gpu.is_none().then(|| "NVIDIA_VISIBLE_DEVICES=void".to_owned());
    given.chain(none).collect()
}

fn loopback((outside, _): &(u16, u16)) -> Option<Vec<PortBinding>> {
    Some(vec![PortBinding { host_ip: Some("127.0.0.1".into()), host_port: Some(outside.to_string()) }])
}

fn read_only(source: impl ToString, target: &str) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(source.to_string()),
        target: Some(target.to_owned()),
        read_only: Some(true),
        ..Mount::default()
    }
}

fn ulimit((name, limit): (&String, &i64)) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(name.clone()), soft: Some(*limit), hard: Some(*limit) }
}

fn list(cores: &[u32]) -> String {
    cores.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// As `docker run --gpus device=UUID` asks for it.
fn gpu(uuid: &str) -> DeviceRequest {
    DeviceRequest {
        device_ids: Some(vec![uuid.to_owned()]),
        capabilities: Some(vec![vec!["gpu".into()]]),
        ..DeviceRequest::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use modelmeter_common::container::Container;
    use serde_json::json;

    #[test]
    fn the_daemon_is_told_all_that_the_engine_was_given() {
        let command = Command {
            engine: "triton".into(),
            container: Container {
                shm_mib: Some(1024),
                ulimits: [("memlock".to_owned(), -1)].into(),
                ..Container::default()
            },
            args: vec!["tritonserver".into(), "--grpc-port=8201".into()],
            env: vec![("A".into(), "b c".into())],
            model: Some(("/cache/x.onnx".into(), "/model/x.onnx".into())),
            ports: vec![(9201, 8201)],
            cores: Some(vec![2, 3]),
            gpu: Some("GPU-1".into()),
            owner: "me".into(),
            log: "/logs/x".into(),
            census: Default::default(),
        };
        let body = serde_json::to_value(body(&command, "sha256:1")).unwrap();
        let expected = json!({
            "Image": "sha256:1",
            "Cmd": ["tritonserver", "--grpc-port=8201"],
            "Env": ["A=b c"],
            "ExposedPorts": {"8201/tcp": {}},
            "Labels": {"modelmeter.owner": "me", "modelmeter.engine": "triton"},
            "HostConfig": {
                "PortBindings": {"8201/tcp": [{"HostIp": "127.0.0.1", "HostPort": "9201"}]},
                "Mounts": [{"Type": "bind", "Source": "/cache/x.onnx", "Target": "/model/x.onnx", "ReadOnly": true}],
                "ShmSize": 1 << 30,
                "Ulimits": [{"Name": "memlock", "Soft": -1, "Hard": -1}],
                "CpusetCpus": "2,3",
                "DeviceRequests": [{"DeviceIDs": ["GPU-1"], "Capabilities": [["gpu"]]}],
                "Init": true,
                "LogConfig": {"Type": "json-file", "Config": {"max-size": "16m"}},
            },
        });
        assert_eq!(body, expected);
    }
}
