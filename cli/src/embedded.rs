//! Coordinator and worker in this process: memory broker, sqlite hub at home, the same gRPC on a loopback port.

use crate::client::Client;
use modelmeter_common::{
    Code, Problem,
    broker::{Broker, memory::MemoryBroker},
    config::Config,
};
use modelmeter_coordinator as coordinator;
use modelmeter_worker::{self as worker, Patience, engine::discover::Offer, inspector::Custom};
use std::{collections::BTreeMap, fs::File, net::Ipv4Addr, path::Path, sync::Arc};
use tokio::net::TcpListener;

/// The worker's name in documents.
const WORKER: &str = "local";

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
        // This process holds the home's lock unless it only reads.
        let options =
            coordinator::Options { read_only, is_alone: !read_only, ..coordinator::Options::new(broker.clone(), hub) };
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
            coordinators: vec![self.address.clone()],
            slots,
            engines: offer.specs,
            lacking: offer.lacking,
            inspectors,
            patience,
            ..worker::Options::configured(config, self.broker.clone())?
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

    /// Where its coordinator answers.
    pub fn address(&self) -> &str {
        &self.address
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
