//! Cells a second through the whole distributed path: real RabbitMQ, real MongoDB, a coordinator and 8 worker
//! processes on this machine, the `null` engine (a real server process that answers with zeros), one call a cell after at
//! most 3.3 ms of warm-up.
//!
//! `cargo run --release -p modelmeter-tests --example bench-cells [CELLS] [REPEATS]`, after `cargo build --release`.
//! What it printed last is in `bench/cells.txt`. The target is 200 cells a second on 2 cores.

use anyhow::{Context, Result};
use modelmeter_proto::onnx::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorShapeProto, TypeProto, ValueInfoProto, tensor_proto,
    tensor_shape_proto::{Dimension, dimension::Value as Axis},
    type_proto::{Tensor, Value},
};
use modelmeter_tests::cluster::Cluster;
use prost::Message;
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
    let folder = tempfile::tempdir()?;
    let model = folder.path().join("identity.onnx");
    std::fs::write(&model, identity().encode_to_vec())?;

    let cluster = Cluster::start("30s").await?;
    let mut workers = Vec::new();
    for n in 0..WORKERS {
        workers.push(cluster.worker(&format!("w{n}")).await?);
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{WORKERS} workers, {cells} cells, engine null, RabbitMQ, MongoDB (one-node replica set), {cores} cores");
    let mut rates = Vec::new();
    for repeat in 1..=repeats {
        let seconds = run(&cluster, &model, cells).await?.as_secs_f64();
        rates.push(cells as f64 / seconds);
        println!("  {repeat}: {seconds:6.2} s, {:6.1} cells/s", cells as f64 / seconds);
    }
    rates.sort_by(f64::total_cmp);
    println!("median {:.1} cells/s (target 200)", rates[rates.len() / 2]);
    Ok(())
}

/// A model that costs nothing to make inputs for: y = x, one number an item.
fn identity() -> ModelProto {
    let axis = |value| Dimension { value: Some(value) };
    let shape = TensorShapeProto { dim: vec![axis(Axis::DimParam("batch".into())), axis(Axis::DimValue(1))] };
    let tensor = Tensor { elem_type: tensor_proto::DataType::Float.into(), shape: Some(shape) };
    let value = |name: &str| ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto { value: Some(Value::TensorType(tensor.clone())) }),
    };
    let node = NodeProto {
        op_type: "Identity".into(),
        input: vec!["x".into()],
        output: vec!["y".into()],
        ..Default::default()
    };
    let graph = GraphProto {
        name: "identity".into(),
        node: vec![node],
        input: vec![value("x")],
        output: vec![value("y")],
        ..Default::default()
    };
    ModelProto {
        ir_version: 8,
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 13 }],
        ..Default::default()
    }
}

/// Submits one request of so many cells and waits for its results; checks that each cell is there once.
async fn run(cluster: &Cluster, model: &Path, cells: usize) -> Result<Duration> {
    let batches: Vec<String> = (1..=cells).map(|n| n.to_string()).collect();
    let (batches, model) = (batches.join(","), model.to_string_lossy());
    let args = ["profile", &model, "--engines", "null", "--batch-sizes", &batches, "--batches", "1"];
    let rest = ["--concurrency", "1", "--min-duration", "10ms", "--max-duration", "10ms", "--json"];
    let begun = Instant::now();
    let output = cluster.run(&[&args[..], &rest[..]].concat(), LIMIT).await?;
    let took = begun.elapsed();
    let profiles = output.json()?;
    let profiles = profiles.as_array().context("not an array")?;
    let seen: BTreeSet<_> =
        profiles.iter().filter(|p| p["state"] == "done").map(|p| p["batch_size"].to_string()).collect();
    anyhow::ensure!(seen.len() == cells && profiles.len() == cells, "{} of {cells} cells were profiled", seen.len());
    Ok(took)
}
