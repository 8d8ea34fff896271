//! Cells a second through the whole distributed path: real RabbitMQ, real MongoDB, a coordinator and 8 worker
//! processes on this machine, the `null` engine (a real server process that answers with zeros), one call a cell.
//!
//! `cargo run --release -p modelmeter-tests --example bench-cells [CELLS] [REPEATS]`, after `cargo build --release`.
//! What it printed last is in `bench/cells.txt`. The target is 100 cells a second on 2 cores.

use anyhow::{Context, Result};
use modelmeter_tests::{
    Child, modelmeter,
    mongod::{Mode, Server},
    rabbitmq::Node,
};
use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

const WORKERS: usize = 8;
const LIMIT: Duration = Duration::from_secs(300);

#[tokio::main]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<usize>());
    let cells = args.next().transpose()?.unwrap_or(1000);
    let repeats = args.next().transpose()?.unwrap_or(5);
    let home = tempfile::tempdir()?;
    let (broker, hub) = (Node::start().await?, Server::start(Mode::ReplicaSet).await?);
    let (coordinator, address) = coordinator(home.path(), &broker.url(), &hub.url("bench")).await?;
    let workers = workers(home.path(), &broker.url(), &address).await?;
    println!("{WORKERS} workers, {cells} cells of engine null, RabbitMQ and MongoDB (one-node replica set), {} cores", cores());
    let mut rates = Vec::new();
    for repeat in 1..=repeats {
        let took = run(home.path(), &address, cells).await?;
        let rate = cells as f64 / took.as_secs_f64();
        println!("  {repeat}: {:6.2} s, {rate:6.1} cells/s", took.as_secs_f64());
        rates.push(rate);
    }
    rates.sort_by(f64::total_cmp);
    println!("median {:.1} cells/s (target 100)", rates[rates.len() / 2]);
    drop((workers, coordinator));
    broker.stop().await
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Starts a coordinator and gives its address once it answers.
async fn coordinator(home: &Path, broker: &str, hub: &str) -> Result<(Child, String)> {
    let port = modelmeter_tests::ports::free()?.to_string();
    let listen = format!("127.0.0.1:{port}");
    let args = ["coordinator", "--broker", broker, "--hub", hub, "--listen", &listen, "--http", "127.0.0.1:0"];
    let child = modelmeter::spawn("coordinator", &home.join("coordinator"), &args)?;
    let address = format!("http://{listen}");
    let listed = || async {
        let workers = modelmeter::run(home, &["workers", "--coordinator", &address, "--json"], LIMIT).await.ok()?;
        (workers.code == Some(0)).then_some(())
    };
    modelmeter_tests::eventually("the coordinator answers", Duration::from_secs(60), listed).await?;
    Ok((child, address))
}

/// Starts the workers and waits until all are registered.
async fn workers(home: &Path, broker: &str, address: &str) -> Result<Vec<Child>> {
    let mut children = Vec::new();
    for n in 0..WORKERS {
        let name = format!("w{n}");
        let args = ["worker", "--broker", broker, "--coordinator", address, "--name", &name];
        let rest = ["--devices", "cpu", "--engines", "null", "--ports", "auto", "--shared-cpu"];
        children.push(modelmeter::spawn(&name, &home.join(&name), &[&args[..], &rest[..]].concat())?);
    }
    let all_there = || async {
        let workers = modelmeter::run(home, &["workers", "--coordinator", address, "--json"], LIMIT).await.ok()?;
        (workers.json().ok()?.as_array()?.len() == WORKERS).then_some(())
    };
    modelmeter_tests::eventually("all workers are registered", Duration::from_secs(60), all_there).await?;
    Ok(children)
}

/// Submits one request of so many cells and waits for its results; checks that each cell is there once.
async fn run(home: &Path, address: &str, cells: usize) -> Result<Duration> {
    let batches: Vec<String> = (1..=cells).map(|n| n.to_string()).collect();
    let batches = batches.join(",");
    let args = ["profile", "mlp", "--coordinator", address, "--engines", "null", "--batch-sizes", &batches];
    let rest = ["--batches", "1", "--concurrency", "1", "--min-duration", "10ms", "--max-duration", "100ms", "--json"];
    let begun = Instant::now();
    let output = modelmeter::run(home, &[&args[..], &rest[..]].concat(), LIMIT).await?;
    let took = begun.elapsed();
    let profiles = output.json()?;
    let seen: BTreeSet<_> = profiles.as_array().context("an array")?.iter().map(|p| p["batch_size"].to_string()).collect();
    anyhow::ensure!(seen.len() == cells, "{} of {cells} cells", seen.len());
    Ok(took)
}
