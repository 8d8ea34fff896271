//! What the measuring of the cores' speed (`worker/src/sample/speed.rs`) costs what is measured: the engine `rten` with the
//! model `mlp`, points of equal length with and without it in turn.
//!
//! `cargo run --release -p modelmeter-worker --example bench-calibration [REPEATS]`, after `cargo build --release`.
//! What it printed last is in `bench/calibration.txt`.

use anyhow::{Context, Result, ensure};
use modelmeter_common::{
    engine::Protocol,
    load::{LoadPoint, Stop},
    model::{Dim, TensorShape},
    part::Point,
};
use modelmeter_meter::{self as meter, Rules, Target};
use modelmeter_worker::{
    inspector::{self, Metadata, ServerWait, Subject},
    sample::Probes,
};
use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

const MODEL: &str = "mlp";
const POINT_MS: u64 = 5_000;
const IN_FLIGHT: [u32; 2] = [1, 4];
const READY: Duration = Duration::from_secs(30);

/// The engine, ended when dropped.
struct Engine(Child);

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a point said, of which the median over the repeats is taken.
struct Seen {
    per_s: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    /// Robust where others use the machine: waiting is not in it.
    engine_us_a_call: f64,
    /// CPU time of the calibration's own thread, as a share of a core.
    own_share: f64,
    range: Option<[f64; 2]>,
}

impl Seen {
    fn of(point: &Point, own_share: f64) -> Self {
        let us = |q: f64| point.latency.percentile_ns(q) as f64 / 1e3;
        Self {
            per_s: point.requests as f64 / point.duration_s,
            p50_us: us(50.0),
            p99_us: us(99.0),
            p999_us: us(99.9),
            engine_us_a_call: point.engine_cpu.map_or(0.0, |engine| engine.cores) * point.duration_s * 1e6
                / point.requests.max(1) as f64,
            own_share,
            range: point.host.and_then(|host| host.speed_range),
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let repeats = std::env::args().nth(1).map(|text| text.parse()).transpose()?.unwrap_or(5_u32);
    let folder = tempfile::tempdir()?;
    let (engine, address) = start(folder.path())?;
    let target = target(&address).await?;
    let plain = Probes::new(Some(engine.0.id()));
    let cores: Vec<u32> = (0..std::thread::available_parallelism()?.get() as u32).collect();
    let calibrated = plain.clone().with_cores(cores.clone());
    println!("engine rten, model {MODEL}, {} cores, points of {} s", cores.len(), POINT_MS / 1000);
    println!(
        "in flight  repeat  calibration    calls/s   p50 us   p99 us  p99.9 us  engine us/call  own CPU, %  speed range"
    );
    for concurrency in IN_FLIGHT {
        let mut both = [Vec::new(), Vec::new()];
        for repeat in 0..repeats {
            // Each goes first as often as the other.
            for with in [repeat % 2 == 1, repeat % 2 == 0] {
                let probes = if with { &calibrated } else { &plain };
                let seen = measure(&target, concurrency, repeat, probes).await?;
                let range = seen.range.map_or("-".into(), |[low, high]| format!("{low:.3} to {high:.3}"));
                println!(
                    "{concurrency:9}  {:6}  {:>11}  {:9.0} {:8.1} {:8.1} {:9.1} {:15.1} {:11.2}  {range}",
                    repeat + 1,
                    if with { "on" } else { "off" },
                    seen.per_s,
                    seen.p50_us,
                    seen.p99_us,
                    seen.p999_us,
                    seen.engine_us_a_call,
                    seen.own_share * 100.0
                );
                both[usize::from(with)].push(seen);
            }
        }
        // Of pairs, since the machine changes from one to the next.
        let ratio =
            |of: fn(&Seen) -> f64| median(both[1].iter().zip(&both[0]).map(|(on, off)| of(on) / of(off)).collect());
        println!(
            "{concurrency} in flight, on over off, median of the pairs: calls/s {:.3}, p50 {:.3}, p99 {:.3}, p99.9 {:.3}, engine CPU a call {:.3}",
            ratio(|s| s.per_s),
            ratio(|s| s.p50_us),
            ratio(|s| s.p99_us),
            ratio(|s| s.p999_us),
            ratio(|s| s.engine_us_a_call)
        );
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn measure(target: &Target, concurrency: u32, repeat: u32, probes: &Probes) -> Result<Seen> {
    // Too precise to be reached: each point takes all of its time.
    let stop = Stop { min_duration_ms: POINT_MS, max_duration_ms: POINT_MS, precision: 1e-6, ..Stop::default() };
    let rules = Rules { stop, batches: None, seed: repeat.into(), slice: None, sla: None, aim: Default::default() };
    let load = LoadPoint::Closed { concurrency };
    let stop = CancellationToken::new();
    let own = tokio::spawn(own_share(stop.clone()));
    let point = meter::measure(target, load, &rules, probes, &CancellationToken::new()).await?;
    stop.cancel();
    ensure!(point.errors == 0, "{} calls failed", point.errors);
    Ok(Seen::of(&point, own.await?))
}

/// CPU time of the thread `speed` of this process as a share of the time since it was first seen, as it was last seen.
async fn own_share(stop: CancellationToken) -> f64 {
    let (mut first, mut share) = (None, 0.0);
    while !stop.is_cancelled() {
        if let Some(ns) = speed_thread_ns() {
            let (begun, at_first) = *first.get_or_insert((Instant::now(), ns));
            share = ns.saturating_sub(at_first) as f64 / begun.elapsed().as_nanos().max(1) as f64;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    share
}

/// CPU time of the thread in ns, the first number of its schedstat; none where there is no such thread.
fn speed_thread_ns() -> Option<u64> {
    let is_it =
        |folder: &PathBuf| std::fs::read_to_string(folder.join("comm")).is_ok_and(|name| name.trim() == "speed");
    let threads = std::fs::read_dir("/proc/self/task").ok()?.flatten().map(|entry| entry.path());
    let mut all = threads.filter(is_it);
    std::fs::read_to_string(all.next()?.join("schedstat")).ok()?.split(' ').next()?.parse().ok()
}

/// Starts the engine on a free port; gives its address.
fn start(folder: &Path) -> Result<(Engine, String)> {
    let program = std::env::current_exe()?.ancestors().nth(2).map(|release| release.join("modelmeter"));
    let program: PathBuf =
        program.filter(|path| path.is_file()).context("no modelmeter beside: cargo build --release")?;
    let model = folder.join("mlp.onnx");
    let written = Command::new(&program).args(["model", "write", MODEL]).arg(&model).status()?;
    ensure!(written.success(), "the model was not written: {written}");
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
    let mut serve = Command::new(program);
    serve.args([
        "serve",
        "--engine",
        "rten",
        "--model-name",
        MODEL,
        "--grpc-port",
        &port,
        "--http-port",
        "0",
        "--model",
    ]);
    let child = serve.arg(model).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    Ok((Engine(child), format!("127.0.0.1:{port}")))
}

async fn target(address: &str) -> Result<Target> {
    let metadata = ready(address).await?;
    let length = |dim: &Dim| match dim {
        Dim::Fixed(length) => *length,
        Dim::Dynamic(_) => 1,
    };
    let inputs = metadata.inputs.iter().map(|input| TensorShape {
        name: input.name.clone(),
        dtype: input.dtype,
        shape: input.shape.iter().map(length).collect(),
        batch_axis: Some(0),
    });
    let subject = Subject {
        model: MODEL.into(),
        version: String::new(),
        signature: metadata.signature,
        inputs: inputs.collect(),
        outputs: metadata.outputs,
        output_axes: Default::default(),
        batch_size: 1,
        seed: 0,
        data: None,
    };
    Ok(inspector::target(address.parse()?, inspector::built_in(Protocol::KserveV2, subject)?)?)
}

async fn ready(address: &str) -> Result<Metadata> {
    let (begun, endpoint) = (Instant::now(), address.parse()?);
    loop {
        match inspector::metadata(Protocol::KserveV2, &endpoint, MODEL, ServerWait::NONE).await {
            Err(problem) if begun.elapsed() > READY => anyhow::bail!("the engine is not ready: {problem}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            Ok(metadata) => return Ok(metadata),
        }
    }
}
