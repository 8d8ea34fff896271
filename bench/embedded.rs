//! What the embedded path costs beside measuring: whole runs of `modelmeter profile` on the memory broker and the
//! sqlite hub with the `null` engine, less the time that the points say they measured. Warm-up, which no document holds,
//! takes at most a third of the longest duration: 3.3 ms a cell here, which are in the figure.
//!
//! `cargo run --release -p modelmeter-tests --example bench-embedded [CELLS] [REPEATS]`, after `cargo build --release`.
//! What it printed last is in `bench/embedded.txt`.

use anyhow::{Context, Result};
use modelmeter_tests::modelmeter;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(300);

/// What one run took.
struct Run {
    wall_s: f64,
    measured_s: f64,
    cells: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<usize>());
    let cells = args.next().transpose()?.unwrap_or(64);
    let repeats = args.next().transpose()?.unwrap_or(5);
    // The cache is filled first: making the model is not what is asked here.
    let home = tempfile::tempdir()?;
    std::fs::write(home.path().join("modelmeter.toml"), "[worker]\nlock_dir = \"locks\"\n")?;
    run(home.path(), 1).await?;
    println!("embedded, mlp, engine null, one point a cell");
    println!("          1 cell, s   {cells} cells, s   of that measured, s   overhead a cell, ms");
    let (mut firsts, mut overheads) = (Vec::new(), Vec::new());
    for repeat in 1..=repeats {
        let (one, many) = (run(home.path(), 1).await?, run(home.path(), cells).await?);
        // What the whole run costs once (start, deploy, stop) is in the run of one cell.
        let once = one.wall_s - one.measured_s;
        let overhead_ms = (many.wall_s - many.measured_s - once) / (many.cells - 1) as f64 * 1e3;
        println!("  {repeat}: {:12.2} {:13.2} {:20.2} {overhead_ms:21.1}", one.wall_s, many.wall_s, many.measured_s);
        firsts.push(once);
        overheads.push(overhead_ms);
    }
    println!("median: {:.2} s once for start, deploy and stop; {:.1} ms a cell", median(firsts), median(overheads));
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn run(home: &std::path::Path, cells: usize) -> Result<Run> {
    let batches: Vec<String> = (1..=cells).map(|n| n.to_string()).collect();
    let batches = batches.join(",");
    let args =
        ["profile", "mlp", "--engines", "null", "--batch-sizes", &batches, "--batches", "1", "--concurrency", "1"];
    let rest = ["--min-duration", "10ms", "--max-duration", "10ms", "--ports", "auto", "--json"];
    let begun = Instant::now();
    let output = modelmeter::run(home, &[&args[..], &rest[..]].concat(), LIMIT).await?;
    let wall_s = begun.elapsed().as_secs_f64();
    let profiles = output.json()?;
    let profiles = profiles.as_array().context("not an array")?;
    anyhow::ensure!(profiles.len() == cells, "{} of {cells} cells", profiles.len());
    let points = profiles.iter().filter_map(|p| p["points"].as_array()).flatten();
    let measured_s = points.filter_map(|point| point["duration_s"].as_f64()).sum();
    Ok(Run { wall_s, measured_s, cells })
}
