//! What a worker is told, checked whole before anything is locked or started.

use crate::{
    engine::{EngineSpec, PortPolicy},
    lock::Claim,
};
use modelmeter_common::{
    Code, Problem,
    broker::Broker,
    device::{Device, DeviceKind},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    sync::Arc,
};

/// The longest name of a worker.
const MAX_NAME: usize = 64;

/// A worker's options.
pub struct Options {
    /// Its name: letters, digits, dots, hyphens, underscores. It keeps its journal over restarts under this name.
    pub name: String,
    /// The broker, shared with whoever else uses it: a worker that stops does not close it.
    pub broker: Arc<dyn Broker>,
    /// `http://host:port` of each coordinator, tried in turn.
    pub coordinators: Vec<String>,
    /// One for each device.
    pub slots: Vec<SlotOptions>,
    /// What it may launch.
    pub engines: Vec<EngineSpec>,
    /// Holds `cache/`, `journal/` and `logs/`.
    pub home: PathBuf,
    /// Holds the device locks: the same folder for all workers of a machine.
    pub lock_dir: PathBuf,
    /// The engines' ports.
    pub ports: PortPolicy,
    /// Cores may be shared with other workers that say so too; points are marked `shared_host`.
    pub shared_cpu: bool,
    /// Free words to know it by.
    pub labels: BTreeMap<String, String>,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, coordinators, slots, engines, home, .. } = self;
        let engines: Vec<_> = engines.iter().map(|engine| &engine.name).collect();
        f.debug_struct("Options")
            .field("name", name)
            .field("coordinators", coordinators)
            .field("slots", slots)
            .field("engines", &engines)
            .field("home", home)
            .finish_non_exhaustive()
    }
}

/// One slot: a device that runs one task at a time.
#[derive(Clone, Debug)]
pub struct SlotOptions {
    /// The device.
    pub device: Device,
    /// Logical cores that its engines are pinned to. None on CPU slots: those that no other slot names, shared out
    /// evenly; a lone such slot has all of them and pins nothing.
    pub cores: Option<Vec<u32>>,
}

/// The cores of one slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Cores {
    /// What it must have for itself.
    pub locked: Vec<u32>,
    /// What its engines are pinned to.
    pub pinned: Option<Vec<u32>>,
}

impl Options {
    pub(crate) fn validate(&self) -> Result<(), Problem> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if self.name.is_empty()
            || self.name.len() > MAX_NAME
            || !self.name.chars().all(plain)
            || self.name.starts_with('.')
        {
            return Err(Problem::invalid("name", format!("'{}' is not a worker's name", self.name))
                .with_hint(format!("1 to {MAX_NAME} letters, digits, dots, hyphens and underscores")));
        }
        if self.slots.is_empty() {
            return Err(
                Problem::invalid("devices", "is empty, needs at least one").with_hint("for example --devices cpu")
            );
        }
        let mut names = BTreeSet::new();
        for engine in &self.engines {
            engine.validate()?;
            if !names.insert(&engine.name) {
                return Err(Problem::invalid("engines", format!("'{}' is defined twice", engine.name)));
            }
        }
        for slot in &self.slots {
            if slot.device.kind == DeviceKind::Gpu && slot.device.uuid.is_none() {
                return Err(Problem::invalid("devices", format!("GPU '{}' has no UUID", slot.device.name)));
            }
            if !self.engines.iter().any(|engine| engine.runs_on(slot.device.kind)) {
                return Err(Problem::new(Code::NotInstalled, format!("no engine can run on {}", slot.device.class))
                    .with_field("engines")
                    .with_hint("see 'modelmeter engines' for what can run here and what to install"));
            }
        }
        Ok(())
    }

    /// What each slot locks.
    pub(crate) fn claims(&self, cores: &[Cores]) -> Vec<Claim> {
        let claim = |(slot, cores): (&SlotOptions, &Cores)| {
            Claim::new(slot.device.uuid.as_deref(), &cores.locked, self.shared_cpu)
        };
        self.slots.iter().zip(cores).map(claim).collect()
    }
}

/// Shares `available` cores out over slots.
///
/// # Errors
/// Cores that this process may not run on, that two slots name (unless `shared`), or too few to share out.
pub(crate) fn share_out(slots: &[SlotOptions], available: &[u32], shared: bool) -> Result<Vec<Cores>, Problem> {
    let mut named = BTreeSet::new();
    for core in slots.iter().filter_map(|slot| slot.cores.as_ref()).flatten() {
        if !available.contains(core) {
            return Err(Problem::invalid("cores", format!("core {core} is not one that this worker may run on"))
                .with_hint(format!("it may run on {available:?}")));
        }
        if !named.insert(*core) && !shared {
            return Err(Problem::invalid("cores", format!("core {core} is named twice"))
                .with_hint("give each slot cores of its own, or share them with --shared-cpu"));
        }
    }
    let free: Vec<u32> = available.iter().copied().filter(|core| !named.contains(core)).collect();
    let open = |slot: &&SlotOptions| slot.cores.is_none() && slot.device.kind == DeviceKind::Cpu;
    let open_slots = slots.iter().filter(open).count();
    if open_slots > free.len() {
        return Err(Problem::invalid("devices", format!("{open_slots} CPU slots for {} cores", free.len()))
            .with_hint("at most one CPU slot a core"));
    }
    let all_are_free = named.is_empty();
    let mut nth = 0;
    let mut cores_of = |slot: &SlotOptions| match &slot.cores {
        Some(cores) => Cores { locked: cores.clone(), pinned: Some(cores.clone()) },
        None if !open(&slot) => Cores { locked: Vec::new(), pinned: None },
        None => {
            let share = free[nth * free.len() / open_slots..(nth + 1) * free.len() / open_slots].to_vec();
            nth += 1;
            let alone = open_slots == 1 && all_are_free;
            Cores { pinned: (!alone).then(|| share.clone()), locked: share }
        }
    };
    Ok(slots.iter().map(&mut cores_of).collect())
}

/// The logical cores that this process may run on.
pub(crate) fn available_cores() -> Vec<u32> {
    // SAFETY: the set is plain memory of the size given, which the call fills; CPU_ISSET checks its bound.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) != 0 {
            return Vec::new();
        }
        (0..libc::CPU_SETSIZE as u32).filter(|&core| libc::CPU_ISSET(core as usize, &set)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn slot(cores: Option<&[u32]>) -> SlotOptions {
        SlotOptions { device: testing::cpu(), cores: cores.map(<[u32]>::to_vec) }
    }

    fn gpu() -> SlotOptions {
        let device =
            Device { kind: DeviceKind::Gpu, class: "nvidia-a10".into(), uuid: Some("GPU-1".into()), ..testing::cpu() };
        SlotOptions { device, cores: None }
    }

    #[test]
    fn cores_are_shared_out_evenly_and_wholly() {
        let shares = share_out(&[slot(None), gpu(), slot(None), slot(Some(&[7]))], &[0, 1, 2, 3, 4, 7], false).unwrap();
        let pinned: Vec<_> = shares.iter().map(|cores| cores.pinned.clone()).collect();
        assert_eq!(pinned, [Some(vec![0, 1]), None, Some(vec![2, 3, 4]), Some(vec![7])]);
        assert_eq!(shares[1].locked, Vec::<u32>::new());
    }

    #[test]
    fn a_lone_cpu_slot_locks_all_and_pins_nothing() {
        let shares = share_out(&[slot(None)], &[0, 1], false).unwrap();
        assert_eq!(shares, [Cores { locked: vec![0, 1], pinned: None }]);
    }

    #[test]
    fn impossible_shares_are_refused() {
        let refused = |slots: &[SlotOptions]| share_out(slots, &[0, 1], false).unwrap_err().message;
        assert!(refused(&[slot(Some(&[2]))]).contains("core 2"));
        assert!(refused(&[slot(Some(&[1])), slot(Some(&[1]))]).contains("twice"));
        assert!(refused(&[slot(None), slot(None), slot(None)]).contains("3 CPU slots"));
        assert!(share_out(&[slot(Some(&[1])), slot(Some(&[1]))], &[0, 1], true).is_ok());
    }
}
