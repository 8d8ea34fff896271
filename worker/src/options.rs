//! What a worker is told, checked whole before anything is locked or started.

use crate::{
    cpus::{Cores, Wanted},
    engine::{EngineSpec, Launch, PortPolicy, discover::Lacking},
    inspector::Custom,
    lock::Claim,
    patience::Patience,
    slots::{self, SlotOptions},
};
use modelmeter_common::{
    Code, Problem,
    broker::Broker,
    config::{self, Config},
    device::DeviceKind,
    redact::redact,
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
    /// What it may not, and why.
    pub lacking: Lacking,
    /// Custom inspectors by name.
    pub inspectors: BTreeMap<String, Custom>,
    /// Holds `cache/`, `journal/` and `logs/`.
    pub home: PathBuf,
    /// Holds the device locks: the same folder for all workers of a machine.
    pub lock_dir: PathBuf,
    /// The engines' ports.
    pub ports: PortPolicy,
    /// Logical cores for the client's threads. With one of the two lists given the other is the rest; with neither, see
    /// [`crate::cpus`].
    pub client_cpus: Option<Vec<u32>>,
    /// As above, for the engines: shared out over the CPU slots; a lone one has all of them.
    pub engine_cpus: Option<Vec<u32>>,
    /// Cores may be shared with other workers that say so too; points are marked `shared_host`.
    pub shared_cpu: bool,
    /// Whether a device that another holds, and a coordinator or broker that is not there yet, are waited for.
    pub patience: Patience,
    /// Free words to know it by.
    pub labels: BTreeMap<String, String>,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, coordinators, slots, engines, home, .. } = self;
        let engines: Vec<_> = engines.iter().map(|engine| &engine.name).collect();
        let coordinators: Vec<_> = coordinators.iter().map(|address| redact(address)).collect();
        f.debug_struct("Options")
            .field("name", name)
            .field("coordinators", &coordinators)
            .field("slots", slots)
            .field("engines", &engines)
            .field("home", home)
            .finish_non_exhaustive()
    }
}

impl Options {
    /// What the configuration says of a worker of this broker. Its slots and engines are still to be named.
    ///
    /// # Errors
    /// `invalid_argument` for a list of cores that is none.
    pub fn configured(config: &Config, broker: Arc<dyn Broker>) -> Result<Self, Problem> {
        let settings = &config.worker;
        let cpus =
            |field: &str, list: &Option<String>| list.as_deref().map(|list| config::cpus(field, list)).transpose();
        Ok(Self {
            name: settings.name.clone().unwrap_or_else(host_name),
            broker,
            coordinators: settings.coordinators.clone(),
            slots: Vec::new(),
            engines: Vec::new(),
            lacking: Lacking::default(),
            inspectors: BTreeMap::new(),
            home: config.home.clone(),
            lock_dir: lock_dir(config),
            ports: settings.ports.into(),
            client_cpus: cpus("client_cpus", &settings.client_cpus)?,
            engine_cpus: cpus("engine_cpus", &settings.engine_cpus)?,
            shared_cpu: settings.shared_cpu,
            patience: Patience::Refuse,
            labels: settings.labels.clone(),
        })
    }

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

    /// What decides on which cores its client and engines run.
    pub(crate) fn wanted_cores(&self) -> Wanted<'_> {
        // Where an engine runs that it does not launch, only that one's owner knows.
        let launches_all = self.engines.iter().all(|engine| !matches!(engine.launch, Launch::Attach { .. }));
        Wanted {
            slots: slots::kinds(&self.slots),
            client: self.client_cpus.as_deref(),
            engines: self.engine_cpus.as_deref(),
            alone: launches_all && !self.shared_cpu,
        }
    }

    /// What each slot locks.
    pub(crate) fn claims(&self, cores: &[Cores]) -> Vec<Claim> {
        let claim = |(slot, cores): (&SlotOptions, &Cores)| {
            Claim::new(slot.device.uuid.as_deref(), &cores.locked, self.shared_cpu)
        };
        self.slots.iter().zip(cores).map(claim).collect()
    }
}

/// Locks of devices, where the configuration names no other place: one folder for all users of a machine.
const LOCK_DIR: &str = "/tmp/modelmeter-locks";

/// Where the locks of this machine's devices lie.
pub fn lock_dir(config: &Config) -> PathBuf {
    config.worker.lock_dir.clone().unwrap_or_else(|| LOCK_DIR.into())
}

/// The host's name, as far as it can name a worker.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    let name: String = name.trim().chars().map(plain).take(MAX_NAME).collect();
    if name.is_empty() { "worker".into() } else { name }
}
