//! A private mongod, alone or as a replica set of one node.

use crate::{Child, eventually, ports};
use anyhow::{Context, Result};
use mongodb::{Client, bson::doc, options::ClientOptions};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use tempfile::TempDir;

const START_LIMIT: Duration = Duration::from_secs(60);
const REPLICA_SET: &str = "rs0";

/// How it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// No replication.
    Standalone,
    /// A replica set of this one node: what is recommended.
    ReplicaSet,
}

/// A running server. Dropping it kills it and deletes its data.
pub struct Server {
    dir: TempDir,
    mode: Mode,
    port: u16,
    child: Option<Child>,
}

impl Server {
    /// Starts a server and waits until it takes writes.
    pub async fn start(mode: Mode) -> Result<Self> {
        let dir = TempDir::with_prefix("modelmeter-mongod-")?;
        fs::create_dir(dir.path().join("db"))?;
        let mut server = Self { dir, mode, port: ports::free()?, child: None };
        server.launch().await?;
        if mode == Mode::ReplicaSet {
            server.initiate().await?;
        }
        server.writable().await?;
        Ok(server)
    }

    /// Where it listens, with a database in it.
    pub fn url(&self, database: &str) -> String {
        match self.mode {
            Mode::Standalone => format!("mongodb://127.0.0.1:{}/{database}", self.port),
            Mode::ReplicaSet => format!("mongodb://127.0.0.1:{}/{database}?replicaSet={REPLICA_SET}", self.port),
        }
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// SIGKILL; its data stays.
    pub fn kill(&mut self) -> Result<()> {
        self.child.take().context("mongod does not run")?.kill()
    }

    /// SIGKILL, and a start on the same data and port.
    pub async fn restart(&mut self) -> Result<()> {
        if self.child.is_some() {
            self.kill()?;
        }
        self.launch().await?;
        self.writable().await
    }

    /// Sends it a signal: STOP freezes it, CONT lets it go on.
    pub fn signal(&mut self, signal: i32) -> Result<()> {
        self.child.as_mut().context("mongod does not run")?.signal(signal)
    }

    /// A client of this node alone, whatever its role.
    pub async fn client(&self) -> Result<Client> {
        let url = format!("mongodb://127.0.0.1:{}/?directConnection=true", self.port);
        let mut options = ClientOptions::parse(url).await?;
        options.server_selection_timeout = Some(Duration::from_secs(2));
        Ok(Client::with_options(options)?)
    }

    async fn launch(&mut self) -> Result<()> {
        let mut command = Command::new(binary()?);
        command
            .args(["--bind_ip", "127.0.0.1", "--nounixsocket", "--wiredTigerCacheSizeGB", "0.25"])
            .args(["--port", &self.port.to_string()])
            .arg("--dbpath")
            .arg(self.dir.path().join("db"));
        if self.mode == Mode::ReplicaSet {
            command.args(["--replSet", REPLICA_SET, "--oplogSize", "64"]);
        }
        let child = self.child.insert(Child::spawn("mongod", command, &self.dir.path().join("log"))?);
        let port = self.port;
        eventually("mongod takes connections", START_LIMIT, || {
            let done = child.ended().is_some() || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
            async move { done.then_some(()) }
        })
        .await?;
        anyhow::ensure!(child.ended().is_none(), "mongod ended at once:\n{}", child.log());
        Ok(())
    }

    async fn initiate(&self) -> Result<()> {
        let config = doc! { "_id": REPLICA_SET, "members": [{ "_id": 0, "host": format!("127.0.0.1:{}", self.port) }] };
        let admin = self.client().await?.database("admin");
        admin.run_command(doc! { "replSetInitiate": config }).await.context("cannot initiate the replica set")?;
        Ok(())
    }

    async fn writable(&self) -> Result<()> {
        let admin = self.client().await?.database("admin");
        eventually("mongod takes writes", START_LIMIT, || async {
            let hello = admin.run_command(doc! { "hello": 1 }).await.ok()?;
            hello.get_bool("isWritablePrimary").ok()?.then_some(())
        })
        .await
    }
}

/// `MODELMETER_TEST_MONGOD`, what `scripts/test` fetched, or mongod on the path.
fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("MODELMETER_TEST_MONGOD") {
        return Ok(path.into());
    }
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.deps/bin/mongod");
    if fetched.exists() {
        return Ok(fetched);
    }
    let on_path = env::var_os("PATH")
        .and_then(|path| env::split_paths(&path).map(|dir| dir.join("mongod")).find(|candidate| candidate.exists()));
    on_path.context("mongod was not found: run scripts/test, which fetches it, or set MODELMETER_TEST_MONGOD")
}
