//! A private RabbitMQ node: its own home, ports, name, data and port mapper.

use crate::{Child, eventually, ports};
use anyhow::{Context, Result};
use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use tempfile::TempDir;

const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";
const START_LIMIT: Duration = Duration::from_secs(90);

/// A running node. Dropping it kills the node and deletes its data.
pub struct Node {
    dir: TempDir,
    name: String,
    port: u16,
    dist_port: u16,
    epmd_port: u16,
    node: Option<Child>,
    _epmd: Child,
}

impl Node {
    /// Starts a node and waits until it takes connections.
    pub async fn start() -> Result<Self> {
        anyhow::ensure!(
            Path::new(SCRIPTS).join("rabbitmq-server").exists(),
            "rabbitmq-server is not installed: run scripts/test, or apt-get install rabbitmq-server"
        );
        let dir = TempDir::with_prefix("modelmeter-rabbitmq-")?;
        let (port, dist_port, epmd_port) = (ports::free()?, ports::free()?, ports::free()?);
        let mut epmd = Command::new("epmd");
        epmd.args(["-address", "127.0.0.1", "-port", &epmd_port.to_string()]);
        let epmd = Child::spawn("epmd", epmd, &dir.path().join("epmd.log"))?;
        for sub in ["home", "mnesia", "log"] {
            fs::create_dir(dir.path().join(sub))?;
        }
        fs::write(dir.path().join("plugins"), "[].\n")?;
        fs::write(dir.path().join("rabbitmq.conf"), configuration(port))?;
        // The port makes the name unique among the nodes of this machine.
        let name = format!("mm{port}@localhost");
        let mut node = Self { dir, name, port, dist_port, epmd_port, node: None, _epmd: epmd };
        node.launch().await?;
        Ok(node)
    }

    /// Where it listens, with the credentials of its only user.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}", self.port)
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// SIGKILL; its data stays.
    pub fn kill(&mut self) -> Result<()> {
        self.node.take().context("the node does not run")?.kill()
    }

    /// SIGKILL, and a start on the same data and port.
    pub async fn restart(&mut self) -> Result<()> {
        if self.node.is_some() {
            self.kill()?;
        }
        self.launch().await
    }

    /// Deletes all data of a node that was killed.
    pub fn wipe(&self) -> Result<()> {
        anyhow::ensure!(self.node.is_none(), "the node still runs");
        fs::remove_dir_all(self.path("mnesia"))?;
        Ok(fs::create_dir(self.path("mnesia"))?)
    }

    /// Sends a signal to the whole node: STOP freezes it, CONT lets it go on.
    pub fn signal(&mut self, signal: i32) -> Result<()> {
        self.node.as_mut().context("the node does not run")?.signal_group(signal)
    }

    /// Runs `rabbitmqctl` and gives what it printed.
    pub async fn ctl(&self, args: &[&str]) -> Result<String> {
        let mut command = tokio::process::Command::from(self.command("rabbitmqctl"));
        command.args(["-q", "-n", &self.name]).args(args).kill_on_drop(true);
        let output = tokio::time::timeout(START_LIMIT, command.output()).await.context("rabbitmqctl hangs")??;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        anyhow::ensure!(output.status.success(), "rabbitmqctl {args:?}: {out}{err}");
        Ok(out.into_owned())
    }

    /// Has the broker close every connection.
    pub async fn close_all_connections(&self) -> Result<()> {
        self.ctl(&["close_all_connections", "a test says so"]).await.map(drop)
    }

    /// Stops it and deletes its data.
    pub async fn stop(self) -> Result<()> {
        // A node of a test has nothing to save: SIGKILL is its quickest end.
        Ok(self.dir.close()?)
    }

    async fn launch(&mut self) -> Result<()> {
        let child = Child::spawn("rabbitmq", self.command("rabbitmq-server"), &self.path("node.log"))?;
        let child = self.node.insert(child);
        let port = self.port;
        eventually("RabbitMQ takes connections", START_LIMIT, || {
            let answered = child.ended().is_some() || answers(port);
            async move { answered.then_some(()) }
        })
        .await?;
        anyhow::ensure!(child.ended().is_none(), "RabbitMQ ended at once:\n{}", child.log());
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, script: &str) -> Command {
        let mut command = Command::new(Path::new(SCRIPTS).join(script));
        command
            .current_dir(self.dir.path())
            .env("HOME", self.path("home"))
            .env("RABBITMQ_NODENAME", &self.name)
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", self.port.to_string())
            .env("RABBITMQ_DIST_PORT", self.dist_port.to_string())
            .env("RABBITMQ_MNESIA_BASE", self.path("mnesia"))
            .env("RABBITMQ_LOG_BASE", self.path("log"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", self.path("plugins"))
            .env("RABBITMQ_CONFIG_FILE", self.path("rabbitmq.conf"))
            .env("RABBITMQ_CONF_ENV_FILE", self.path("none"))
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("LANG", "C.UTF-8");
        command
    }
}

fn configuration(port: u16) -> String {
    format!(
        "listeners.tcp.1 = 127.0.0.1:{port}\n\
         disk_free_limit.absolute = 50MB\n\
         raft.wal_max_size_bytes = 33554432\n"
    )
}

/// Whether an AMQP broker answers the protocol header there.
fn answers(port: u16) -> bool {
    let ask = || -> std::io::Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"AMQP\x00\x00\x09\x01")?;
        stream.read_exact(&mut [0_u8; 8])
    };
    ask().is_ok()
}
