//! Ports for engines: the documented ones by default, free ones where asked for.

use super::{EngineSpec, Launch, Place, PortPair};
use crate::process;
use modelmeter_common::{Code, Problem, config, device::DeviceKind, engine::SLOT_PORT_STEP};
use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    sync::{Mutex, PoisonError},
};

/// Free ports are looked for here: below the range from which Linux takes the ports of outgoing connections, so
/// that no client of ours can take one between the check and the engine's bind.
const FREE_PORTS: std::ops::Range<u16> = 15_000..32_000;

/// Which ports engines get.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PortPolicy {
    /// The engine's own, 1000 more for each slot; a busy one is an error.
    #[default]
    Default,
    /// Any that are free.
    Auto,
}

impl From<config::Ports> for PortPolicy {
    fn from(configured: config::Ports) -> Self {
        match configured {
            config::Ports::Default => Self::Default,
            config::Ports::Auto => Self::Auto,
        }
    }
}

/// Ports that engines of this process have: a check by binding cannot see those that are not bound yet.
static RESERVED: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// The ports kept for one deployment until dropped.
#[derive(Debug)]
pub(super) struct Reserved {
    pub pair: PortPair,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut reserved = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
        for port in self.pair.all() {
            reserved.remove(&port);
        }
    }
}

/// Chooses the ports of a deployment.
///
/// # Errors
/// `busy`, naming the port and who holds it.
pub(super) fn reserve(spec: &EngineSpec, place: &Place) -> Result<Reserved, Problem> {
    let wanted = wanted(spec, place)?;
    let mut reserved = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
    let mut taken = Vec::new();
    for port in wanted {
        match take(&mut reserved, port, &spec.name) {
            Ok(port) => taken.push(port),
            Err(problem) => {
                reserved.retain(|port| !taken.contains(port));
                return Err(problem);
            }
        }
    }
    Ok(Reserved { pair: PortPair { http: taken[0], grpc: taken[1], metrics: taken.get(2).copied() } })
}

/// Its ports by the rules, as [`PortPair::all`] has them; none: any free one.
fn wanted(spec: &EngineSpec, place: &Place) -> Result<Vec<Option<u16>>, Problem> {
    let pair = spec.ports.on(place.device.kind).ok_or_else(|| {
        Problem::invalid("devices", format!("engine {} does not run on {}", spec.name, place.device.class))
    })?;
    let wanted = |port| match place.ports {
        PortPolicy::Auto => Ok(None),
        PortPolicy::Default if port == 0 => Ok(None),
        PortPolicy::Default => on_slot(port, place.index).map(Some),
    };
    pair.all().map(wanted).collect()
}

/// Checks that the default ports of these engines are free on each of a worker's slots, before anything starts.
///
/// # Errors
/// `busy`, naming the port and who holds it.
pub(crate) fn check_ports(engines: &[EngineSpec], slots: &[DeviceKind], policy: PortPolicy) -> Result<(), Problem> {
    if policy == PortPolicy::Auto {
        return Ok(());
    }
    let launched = engines.iter().filter(|engine| !matches!(engine.launch, Launch::Attach { .. }));
    for engine in launched {
        for (index, kind) in (0..).zip(slots) {
            let Some(pair) = engine.ports.on(*kind) else { continue };
            for port in pair.all().filter(|port| *port != 0) {
                let port = on_slot(port, index)?;
                if !is_free(port) {
                    return Err(busy(port, &engine.name));
                }
            }
        }
    }
    Ok(())
}

/// A port on slot `index` of a worker.
fn on_slot(port: u16, index: u32) -> Result<u16, Problem> {
    let port = u32::from(port) + index * u32::from(SLOT_PORT_STEP);
    u16::try_from(port).map_err(|_| {
        Problem::invalid("ports", format!("slot {index} would need port {port}")).with_hint("use --ports auto")
    })
}

fn take(reserved: &mut BTreeSet<u16>, wanted: Option<u16>, engine: &str) -> Result<u16, Problem> {
    let port = match wanted {
        Some(port) if !reserved.contains(&port) && is_free(port) => port,
        Some(port) => return Err(busy(port, engine)),
        None => free(reserved).ok_or_else(|| Problem::new(Code::Busy, format!("no free port for engine {engine}")))?,
    };
    reserved.insert(port);
    Ok(port)
}

fn free(reserved: &BTreeSet<u16>) -> Option<u16> {
    // A random start (the low bits of a v4 UUID) keeps workers of one machine out of each other's way.
    let start = FREE_PORTS.start + uuid::Uuid::new_v4().as_u128() as u16 % (FREE_PORTS.end - FREE_PORTS.start);
    let ports = (start..FREE_PORTS.end).chain(FREE_PORTS.start..start);
    ports.into_iter().find(|port| !reserved.contains(port) && is_free(*port))
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

fn busy(port: u16, engine: &str) -> Problem {
    let holder = match holder(port) {
        Some(pid) => process::name(pid),
        None => "a process that cannot be seen from here".into(),
    };
    Problem::new(Code::Busy, format!("port {port} for engine {engine} is held by {holder}"))
        .with_field("ports")
        .with_hint("stop that process, or use --ports auto")
}

/// The process that listens on a TCP port. Source: proc(5), `/proc/net/tcp`.
fn holder(port: u16) -> Option<u32> {
    const LISTEN: &str = "0A";
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().find_map(|table| {
        let table = fs::read_to_string(table).ok()?;
        table.lines().skip(1).find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let local = u16::from_str_radix(fields.get(1)?.rsplit_once(':')?.1, 16).ok()?;
            (local == port && *fields.get(3)? == LISTEN).then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
        })
    })?;
    let socket = format!("socket:[{inode}]");
    process::holders(Path::new(&socket)).first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{engine::Ports, testing};
    use modelmeter_common::engine::ENGINES;

    #[test]
    fn a_slot_adds_a_thousand_and_the_range_ends() {
        assert_eq!(on_slot(8001, 0), Ok(8001));
        assert_eq!(on_slot(8001, 3), Ok(11001));
        assert_eq!(on_slot(8001, 60).unwrap_err().field.as_deref(), Some("ports"));
    }

    #[test]
    fn each_engine_has_its_ports_by_device_and_slot() {
        let folder = tempfile::tempdir().unwrap();
        let mut place = testing::place(folder.path(), PortPolicy::Default);
        let mut wanted_on = |kind, index| {
            (place.device.kind, place.index) = (kind, index);
            let ports = ENGINES.iter().map(|info| {
                let spec = EngineSpec { ports: Ports::of(info), ..testing::engine(info.name, &[]) };
                let ports = wanted(&spec, &place).ok()?;
                ports[0].zip(ports[1]).map(|ports| (info.name, ports))
            });
            ports.flatten().collect::<Vec<_>>()
        };
        let cpu = [
            ("onnx", (8001, 8002)),
            ("rten", (8021, 8022)),
            ("torchscript", (8100, 8101)),
            ("triton", (8200, 8201)),
            ("tfs", (8501, 8500)),
        ];
        assert_eq!(wanted_on(DeviceKind::Cpu, 0), cpu);
        let third = cpu.map(|(name, (http, grpc))| (name, (http + 2000, grpc + 2000)));
        assert_eq!(wanted_on(DeviceKind::Cpu, 2), third);
        let gpu =
            [("onnx", (9010, 9011)), ("torchscript", (9110, 9111)), ("triton", (9200, 9201)), ("tfs", (9510, 9511))];
        assert_eq!(wanted_on(DeviceKind::Gpu, 1), gpu);
    }

    #[test]
    fn a_busy_port_names_itself_and_its_holder() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let spec = EngineSpec { ports: ports(port, 0), ..testing::engine("sleep", &[]) };
        let folder = tempfile::tempdir().unwrap();
        let problem = reserve(&spec, &testing::place(folder.path(), PortPolicy::Default)).unwrap_err();
        assert_eq!(problem.code, Code::Busy);
        assert!(problem.message.contains(&format!("port {port}")), "{problem}");
        assert!(problem.message.contains(&format!("pid {}", std::process::id())), "{problem}");
        let slots = [DeviceKind::Cpu];
        assert_eq!(check_ports(std::slice::from_ref(&spec), &slots, PortPolicy::Default), Err(problem));
        assert_eq!(check_ports(std::slice::from_ref(&spec), &slots, PortPolicy::Auto), Ok(()));
        // The same engine with any free port.
        reserve(&spec, &testing::place(folder.path().join("b").as_path(), PortPolicy::Auto)).unwrap();
    }

    #[test]
    fn reserved_ports_are_not_given_twice_until_dropped() {
        let spec = EngineSpec { ports: ports(0, 0), ..testing::engine("sleep", &[]) };
        let folder = tempfile::tempdir().unwrap();
        let place = testing::place(folder.path(), PortPolicy::Default);
        let first = reserve(&spec, &place).unwrap();
        let fixed = EngineSpec { ports: ports(first.pair.http, 0), ..spec };
        assert_eq!(reserve(&fixed, &place).unwrap_err().code, Code::Busy);
        drop(first);
        reserve(&fixed, &place).unwrap();
    }

    fn ports(http: u16, grpc: u16) -> Ports {
        Ports { cpu: Some(PortPair { http, grpc, metrics: None }), gpu: None }
    }
}
