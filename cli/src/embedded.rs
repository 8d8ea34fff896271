//! Coordinator and worker in this process: memory broker, sqlite hub at home, the same gRPC on a loopback port.

use crate::client::Client;
use modelmeter_common::{
    Code, Problem,
    broker::{Broker, memory::MemoryBroker},
    config::{self, Config, Ports},
    device::{Device, DeviceKind},
    model::Model,
    request::Request,
    task::Cell,
};
use modelmeter_coordinator::{
    self as coordinator, expand,
    pool::{self, Pool},
};
use modelmeter_worker::{self as worker, Patience, engine::discover::Offer, inspector::Custom};
use std::{
    collections::BTreeMap,
    fs::File,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::net::TcpListener;

/// The worker's name in documents.
const WORKER: &str = "local";
/// Locks of devices, where the configuration names no other place: one folder for all users of a machine.
const LOCK_DIR: &str = "/tmp/modelmeter-locks";

/// A coordinator in this process, with a worker once one was added.
pub struct Embedded {
    coordinator: coordinator::Handle,
    worker: Option<worker::Handle>,
    broker: Arc<dyn Broker>,
    address: String,
    /// Held while this process measures: one at a time in one home.
    _lock: Option<File>,
}

impl Embedded {
    /// Starts a coordinator that measures, on the hub at home. Requests that a killed process left running are
    /// stopped first: nobody waits for them any more.
    ///
    /// # Errors
    /// `storage` when the home cannot be written to; `busy` when another process measures with the same home and is not waited
    /// for.
    pub async fn start(home: &Path, patience: &Patience) -> Result<Self, Problem> {
        let lock = patience.while_busy(|| async { lock(home) }).await?;
        let embedded = Self { _lock: Some(lock), ..Self::coordinator(home, false).await? };
        embedded.stop_leftovers().await?;
        Ok(embedded)
    }

    /// Starts a coordinator that only answers questions about the hub at home.
    ///
    /// # Errors
    /// As [`Self::start`], but never `busy`.
    pub async fn start_read_only(home: &Path) -> Result<Self, Problem> {
        Self::coordinator(home, true).await
    }

    async fn coordinator(home: &Path, read_only: bool) -> Result<Self, Problem> {
        writable(home)?;
        let hub = home.join("hub.sqlite");
        let hub = coordinator::hub::open(&format!("sqlite:{}", hub.display())).await.map_err(Problem::from)?;
        let broker: Arc<dyn Broker> = Arc::new(MemoryBroker::new());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.map_err(|e| Problem::new(Code::Busy, format!("no free port on loopback: {e}")))?;
        let options = coordinator::Options { read_only, ..coordinator::Options::new(broker.clone(), hub) };
        let coordinator = coordinator::start(options, listener, None).await?;
        let address = format!("http://{}", coordinator.grpc_addr());
        Ok(Self { coordinator, worker: None, broker, address, _lock: None })
    }

    async fn stop_leftovers(&self) -> Result<(), Problem> {
        let mut client = self.client().await?;
        for request in client.requests(u32::MAX).await? {
            if !request.state.is_terminal() {
                client.cancel(request.id, "the process that ran it ended").await?;
            }
        }
        Ok(())
    }

    /// Adds the worker: it registers, and takes what is submitted from then on.
    ///
    /// # Errors
    /// `busy` when another worker measures on the same device and is not waited for; what [`worker::start`] says.
    pub async fn add_worker(
        &mut self,
        config: &Config,
        slots: Vec<worker::SlotOptions>,
        offer: Offer,
        inspectors: BTreeMap<String, Custom>,
        patience: Patience,
    ) -> Result<(), Problem> {
        let options = worker::Options {
            name: WORKER.into(),
            broker: self.broker.clone(),
            coordinators: vec![self.address.clone()],
            slots,
            engines: offer.specs,
            lacking: offer.lacking,
            inspectors,
            home: config.home.clone(),
            lock_dir: lock_dir(config),
            ports: port_policy(config.worker.ports),
            client_cpus: cpus("client_cpus", config.worker.client_cpus.as_deref())?,
            engine_cpus: cpus("engine_cpus", config.worker.engine_cpus.as_deref())?,
            shared_cpu: config.worker.shared_cpu,
            patience,
            labels: config.worker.labels.clone(),
        };
        self.worker = Some(worker::start(options).await?);
        Ok(())
    }

    /// Completes when the worker ended by itself, and gives why; never where there is none.
    pub async fn worker_ended(&mut self) -> Problem {
        match &mut self.worker {
            Some(worker) => worker.wait().await,
            None => std::future::pending().await,
        }
    }

    /// Has the worker in this process ask at once what is still wanted.
    pub fn ask_now(&self) {
        self.worker.iter().for_each(worker::Handle::ask_now);
    }

    /// A connection to its coordinator.
    pub async fn client(&self) -> Result<Client, Problem> {
        Client::connect(std::slice::from_ref(&self.address)).await
    }

    /// Stops worker, engines and coordinator, within seconds.
    pub async fn stop(self) {
        if let Some(worker) = self.worker {
            worker.stop().await;
        }
        self.coordinator.stop().await;
        self.broker.close().await;
    }
}

/// A slot for the CPU, and one for each GPU asked for that some engine can run on.
pub fn slots(words: &[String], engines: &[worker::EngineSpec]) -> Vec<worker::SlotOptions> {
    let (devices, _) = worker::sample::devices();
    let wanted = |device: &Device| device.kind == DeviceKind::Cpu || words.iter().any(|word| device.is_meant(word));
    let usable = |device: &Device| engines.iter().any(|engine| engine.runs_on(device.kind));
    let chosen = devices.into_iter().filter(|device| wanted(device) && usable(device));
    chosen.map(|device| worker::SlotOptions { device }).collect()
}

/// The slot from which a server is measured that was not launched here.
pub fn remote(device_class: &str) -> Vec<worker::SlotOptions> {
    let (devices, _) = worker::sample::devices();
    let cores = devices.iter().find(|device| device.kind == DeviceKind::Cpu).and_then(|cpu| cpu.cores);
    vec![worker::SlotOptions { device: Device::remote(device_class, cores) }]
}

/// What the worker of these slots will announce: the pools as its coordinator will see them.
pub fn pools(slots: &[worker::SlotOptions], offer: &Offer, inspectors: &BTreeMap<String, Custom>) -> Vec<Pool> {
    let of_slot = |slot: &worker::SlotOptions| {
        let (engines, abilities) = worker::offered(&offer.specs, &offer.lacking, inspectors, slot.device.kind);
        Pool::of(&slot.device.class, engines, abilities)
    };
    pool::gathered(slots.iter().map(of_slot))
}

/// The cells of a request where there are no other slots than these.
///
/// # Errors
/// What is wrong with the request. What no engine here can do is to be installed, not to be waited for.
pub fn cells(request: &Request, model: &Model, pools: &[Pool]) -> Result<Vec<Cell>, Problem> {
    expand::cells(request, model, pools).map_err(|problem| match problem.code {
        Code::NoWorker => Problem { code: Code::NotInstalled, ..problem },
        _ => problem,
    })
}

/// Device words of a request, one that names a single device of this machine as its class.
pub fn classes(words: &[String]) -> Vec<String> {
    let (devices, _) = worker::sample::devices();
    let class = |word: &String| {
        let named = devices.iter().find(|device| device.is_named(word));
        named.map_or_else(|| word.clone(), |device| device.class.clone())
    };
    words.iter().map(class).collect()
}

/// Where device locks lie.
pub fn lock_dir(config: &Config) -> PathBuf {
    config.worker.lock_dir.clone().unwrap_or_else(|| LOCK_DIR.into())
}

/// The cores of this field of the configuration.
///
/// # Errors
/// Names the field when it is no list of cores.
pub fn cpus(field: &str, list: Option<&str>) -> Result<Option<Vec<u32>>, Problem> {
    list.map(|list| config::cpus(field, list)).transpose()
}

/// The worker's word for the configured choice of ports.
pub fn port_policy(ports: Ports) -> worker::PortPolicy {
    match ports {
        Ports::Default => worker::PortPolicy::Default,
        Ports::Auto => worker::PortPolicy::Auto,
    }
}

/// Makes the home if it is not there, and tries to write to it.
///
/// # Errors
/// `storage`, naming the place.
pub fn writable(home: &Path) -> Result<(), Problem> {
    let probe = home.join(format!(".probe-{}", std::process::id()));
    let tried = std::fs::create_dir_all(home)
        .and_then(|()| std::fs::write(&probe, b""))
        .and_then(|()| std::fs::remove_file(&probe));
    tried.map_err(|e| {
        Problem::new(Code::Storage, format!("cannot write to {}: {e}", home.display()))
            .with_field("home")
            .with_hint("choose a writable directory with --home DIR or MODELMETER_HOME")
    })
}

fn lock(home: &Path) -> Result<File, Problem> {
    writable(home)?;
    let path = home.join("lock");
    let failed = |e: std::io::Error| {
        Problem::new(Code::Storage, format!("cannot lock {}: {e}", path.display())).with_field("home")
    };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    if worker::try_flock(&file, false).map_err(failed)? {
        return Ok(file);
    }
    let holder = worker::holder(&path).unwrap_or_else(|| "another modelmeter".into());
    Err(Problem::new(Code::Busy, format!("{holder} measures with the same home, {}", home.display()))
        .with_field("home")
        .with_hint("wait until it has ended, or use another home: --home DIR"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time_measures_in_a_home() {
        let home = std::env::temp_dir().join(format!("modelmeter-embedded-{}", uuid::Uuid::new_v4()));
        let first = lock(&home).unwrap();
        // The lock is of the open file, so that a second one is refused even in this process.
        assert_eq!(lock(&home).unwrap_err().code, Code::Busy);
        drop(first);
        assert!(lock(&home).is_ok());
        std::fs::remove_dir_all(home).unwrap();
    }

    #[test]
    fn a_home_below_a_file_is_not_writable() {
        let error = writable(Path::new("/proc/version/home")).unwrap_err();
        assert_eq!((error.code, error.field.as_deref()), (Code::Storage, Some("home")));
    }
}
