//! A whole cluster: RabbitMQ, MongoDB, a coordinator, and as many workers as a test starts.

use crate::{
    Child, eventually, modelmeter,
    mongod::{Mode, Server},
    rabbitmq::Node,
};
use anyhow::{Context, Result};
use mongodb::Database;
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tempfile::TempDir;

const DATABASE: &str = "modelmeter";
const READY_LIMIT: Duration = Duration::from_secs(30);
const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// A running cluster. Fields end in their order: modelmeter first, then what it uses, the folder last.
pub struct Cluster {
    /// The coordinator.
    pub coordinator: Child,
    /// Its `http://host:port`.
    pub url: String,
    /// The broker.
    pub rabbitmq: Node,
    /// The hub.
    pub mongod: Server,
    dir: TempDir,
}

impl Cluster {
    /// Starts all but workers. `lease`: how long a claim holds without being renewed, as `5s`.
    pub async fn start(lease: &str) -> Result<Self> {
        let dir = TempDir::with_prefix("modelmeter-cluster-")?;
        let (rabbitmq, mongod) = tokio::try_join!(Node::start(), Server::start(Mode::ReplicaSet))?;
        let (coordinator, url) = coordinator("coordinator", dir.path(), &rabbitmq, &mongod, lease).await?;
        Ok(Self { url, coordinator, rabbitmq, mongod, dir })
    }

    /// Starts one more coordinator on the same broker and hub; gives its `http://host:port` too.
    pub async fn coordinator(&self, name: &str, lease: &str) -> Result<(Child, String)> {
        coordinator(name, self.dir.path(), &self.rabbitmq, &self.mongod, lease).await
    }

    /// Starts a worker with one CPU slot, which it shares with the other workers of this machine.
    pub async fn worker(&self, name: &str) -> Result<Child> {
        self.worker_of(name, &[&self.url]).await
    }

    /// The same, with these coordinators.
    pub async fn worker_of(&self, name: &str, urls: &[&str]) -> Result<Child> {
        let (broker, locks) = (self.rabbitmq.url(), self.path("locks"));
        let locks = locks.to_string_lossy();
        let mut args =
            vec!["worker", "--broker", broker.as_str(), "--name", name, "--devices", "cpu", "--ports", "auto"];
        args.extend(["--shared-cpu", "--lock-dir", locks.as_ref()]);
        args.extend(urls.iter().flat_map(|url| ["--coordinator", *url]));
        let worker = modelmeter::spawn(name, &self.path(name), &args)?;
        ready(&worker, &format!("worker {name} ready")).await?;
        Ok(worker)
    }

    /// Starts a command of a user in the background; what it prints is its log.
    pub fn user(&self, name: &str, args: &[&str]) -> Result<Child> {
        let args = [args, &["--coordinator", &self.url]].concat();
        modelmeter::spawn(name, &self.path(name), &args)
    }

    /// Runs a command of a user to its end.
    pub async fn run(&self, args: &[&str], limit: Duration) -> Result<modelmeter::Output> {
        let args = [args, &["--coordinator", &self.url]].concat();
        modelmeter::run(&self.path("user"), &args, limit).await
    }

    /// Runs a command with `--json` to its end, and reads what it printed.
    pub async fn json(&self, args: &[&str]) -> Result<serde_json::Value> {
        self.run(&[args, &["--json"]].concat(), COMMAND_LIMIT).await?.json()
    }

    /// The hub, past modelmeter.
    pub async fn database(&self) -> Result<Database> {
        Ok(self.mongod.client().await?.database(DATABASE))
    }

    /// Waits until no process of this cluster's modelmeter is left: none that started in its folder.
    pub async fn nothing_left(&self) -> Result<()> {
        eventually("every process that modelmeter started ends", Duration::from_secs(10), || async {
            started_with(self.dir.path()).is_empty().then_some(())
        })
        .await
        .with_context(|| format!("left: {:?}", started_with(self.dir.path())))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

async fn coordinator(name: &str, dir: &Path, rabbitmq: &Node, mongod: &Server, lease: &str) -> Result<(Child, String)> {
    let (broker, hub) = (rabbitmq.url(), mongod.url(DATABASE));
    let servers = ["coordinator", "--broker", broker.as_str(), "--hub", hub.as_str(), "--lease", lease];
    let listen = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let coordinator = modelmeter::spawn(name, &dir.join(name), &[&servers[..], &listen[..]].concat())?;
    let address = ready(&coordinator, "gRPC on ").await?;
    let address = address.split([',', ' ']).next().context("no address")?;
    Ok((coordinator, format!("http://{address}")))
}

/// Waits for the line that says that a server is ready; gives what follows `marker` in it.
async fn ready(child: &Child, marker: &str) -> Result<String> {
    eventually(&format!("'{marker}' is printed"), READY_LIMIT, || async {
        let log = child.log();
        log.lines().find_map(|line| line.split_once(marker)).map(|(_, rest)| rest.to_owned())
    })
    .await
}

/// The command lines of processes that have a modelmeter home in this folder.
fn started_with(dir: &Path) -> Vec<String> {
    let home = format!("MODELMETER_HOME={}", dir.display());
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    processes
        .filter(|process| {
            let environment = fs::read(process.join("environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable.starts_with(home.as_bytes()))
        })
        .map(|process| {
            let line = fs::read(process.join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).replace('\0', " ")
        })
        .collect()
}
