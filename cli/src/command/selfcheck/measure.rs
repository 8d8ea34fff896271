//! The figures, in about 20 seconds: the very client and meter that measure models, against the null engine in this process.

use super::{CONCURRENCIES, Closed, Host, Lateness, Open, RATES, SelfCheck, Timer, findings::findings, speed};
use crate::{interrupt::interrupted, progress::Progress};
use modelmeter_common::{
    Code, Problem, VERSION, artifact,
    load::{Arrivals, LoadPoint, Stop},
    model::{Dim, TensorShape},
    part::{HostUse, Point, Warning},
    stats::Histogram,
};
use modelmeter_meter::{self as meter, Rules, Target};
use modelmeter_serving::{Options, reference};
use modelmeter_worker::{
    inspector::{self, Subject, kserve_v2::KserveV2},
    sample::{self, Probes},
};
use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The model whose requests are sent.
const MODEL: &str = "mlp";
/// Each load is measured about this long.
const MIN_MS: u64 = 1_000;
const MAX_MS: u64 = 1_500;
/// Of the null engine's rate in a closed loop: faster arrivals would only queue.
const MAX_LOAD: f64 = 0.8;
const SLEEPS: u32 = 1_000;
const SLEEP: Duration = Duration::from_micros(100);
const LATE_NS: u64 = 1_000_000;

pub(super) async fn all(cache: &Path, progress: &Progress, stop: &CancellationToken) -> Result<SelfCheck, Problem> {
    let cpu = sample::devices().0.swap_remove(0);
    let cores = cpu.cores.unwrap_or(1);
    progress.say("measuring the timer and the cores");
    let timed = tokio::task::spawn_blocking(move || (timer(), speed::spread(cores))).await;
    let (timer, speed_spread) =
        timed.map_err(|e| Problem::new(Code::Internal, format!("the timer was not measured: {e}")))?;
    let server_stop = stop.child_token();
    let target = null_engine(cache, &server_stop).await?;
    let mut bench = Bench { target, progress, stop, points: Vec::new() };
    let mut closed = Vec::new();
    for concurrency in CONCURRENCIES {
        closed.push(self::closed(concurrency, bench.measure(LoadPoint::Closed { concurrency }).await?));
    }
    let most = closed.iter().map(|point| point.calls_per_s).fold(0.0, f64::max);
    let mut open = Vec::new();
    for rate_per_s in RATES.into_iter().filter(|rate| *rate <= MAX_LOAD * most) {
        let load = LoadPoint::Open { rate_per_s, arrivals: Arrivals::Poisson };
        open.push(self::open(rate_per_s, bench.measure(load).await?));
    }
    server_stop.cancel();
    let mut check = SelfCheck {
        modelmeter_version: VERSION,
        cpu: cpu.name,
        cores,
        timer,
        closed,
        open,
        host: Host { speed_spread, ..host(&bench.points, f64::from(cores)) },
        findings: Vec::new(),
    };
    check.findings = findings(&check);
    Ok(check)
}

/// A sleep is how a schedule is kept: with the precise timers that the client asks for.
fn timer() -> Timer {
    let mut resolution = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours; prctl changes nothing but this thread's timer slack.
    unsafe {
        libc::clock_getres(libc::CLOCK_MONOTONIC, &raw mut resolution);
        libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong);
    }
    let mut late = Histogram::default();
    for _ in 0..SLEEPS {
        let begun = Instant::now();
        std::thread::sleep(SLEEP);
        late.record(begun.elapsed().saturating_sub(SLEEP).as_nanos() as u64);
    }
    Timer {
        resolution_ns: resolution.tv_sec as u64 * 1_000_000_000 + resolution.tv_nsec as u64,
        sleep_late_p50_ns: late.percentile_ns(50.0),
        sleep_late_p99_ns: late.percentile_ns(99.0),
    }
}

/// Starts the null engine on a free port; it ends with the token.
async fn null_engine(cache: &Path, stop: &CancellationToken) -> Result<Target, Problem> {
    let model = reference::ensure(MODEL, cache)?;
    let opened = artifact::open(&model)?;
    let bind = async || {
        let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        bound.map_err(|e| Problem::new(Code::Busy, format!("no free port on loopback: {e}")))
    };
    let (grpc, http) = (bind().await?, bind().await?);
    let address = grpc.local_addr().map_err(|e| Problem::new(Code::Internal, e.to_string()))?.to_string();
    let (model_name, settings) = (MODEL.to_owned(), BTreeMap::new());
    let options = Options { engine: "null".into(), model, model_name, settings, onnxruntime: None };
    let served = modelmeter_serving::serve(options, grpc, http, stop.clone());
    tokio::spawn(async move {
        if let Err(problem) = served.await {
            tracing::error!(%problem, "the null engine failed");
        }
    });
    let length = |dim: &Dim| match dim {
        Dim::Fixed(length) => *length,
        Dim::Dynamic(_) => 1,
    };
    let inputs = opened
        .inputs
        .into_iter()
        .map(|input| TensorShape::new(input.name, input.dtype, input.shape.iter().map(length).collect()));
    let (model, version, inputs) = (MODEL.to_owned(), String::new(), inputs.collect());
    let subject = Subject {
        model,
        version,
        signature: String::new(),
        inputs,
        outputs: opened.outputs,
        batch_size: 1,
        seed: 0,
        data: None,
        output_axes: Default::default(),
    };
    inspector::target(address.parse()?, Arc::new(KserveV2::new(subject)))
}

struct Bench<'a> {
    target: Target,
    progress: &'a Progress,
    stop: &'a CancellationToken,
    points: Vec<Point>,
}

impl Bench<'_> {
    async fn measure(&mut self, load: LoadPoint) -> Result<&Point, Problem> {
        if self.stop.is_cancelled() {
            return Err(interrupted());
        }
        self.progress.say(&format!("measuring {load}"));
        let stop = Stop { min_duration_ms: MIN_MS, max_duration_ms: MAX_MS, ..Stop::default() };
        let rules = Rules { stop, batches: None, seed: 0, slice: None, sla: None, aim: Default::default() };
        let probes = Probes::new(Some(std::process::id()));
        self.points.push(meter::measure(&self.target, load, &rules, &probes, self.stop).await?);
        Ok(self.points.last().expect("pushed just now"))
    }
}

fn closed(concurrency: u32, point: &Point) -> Closed {
    let p50 = point.percentiles.iter().find(|p| p.q == 50.0).and_then(|p| p.ms);
    Closed {
        concurrency,
        calls_per_s: point.requests_per_s.map_or(0.0, |rate| rate.value),
        p50_latency_us: p50.map(|ms| ms.value * 1e3),
        client_cpu_cores: point.client_cpu_cores,
    }
}

fn open(rate_per_s: f64, point: &Point) -> Open {
    let late = point.send_lateness.clone().unwrap_or_default();
    let us = |ns: u64| ns as f64 / 1e3;
    let over = late.len() - late.count_up_to(LATE_NS);
    // What it is; what to do is said once, for all.
    let what = |warning: &Warning| warning.message.split(';').next().unwrap_or_default().to_owned();
    let reason = point.warnings.first().filter(|_| !point.valid).map(what);
    Open {
        rate_per_s,
        send_lateness_us: Lateness {
            p50: us(late.percentile_ns(50.0)),
            p99: us(late.percentile_ns(99.0)),
            max: us(late.max_ns()),
            over_1ms_ratio: over as f64 / late.len().max(1) as f64,
        },
        valid: point.valid,
        reason,
    }
}

/// Of all points together; this process is engine and client.
fn host(points: &[Point], cores: f64) -> Host {
    let seen: Vec<(&Point, HostUse)> = points.iter().filter_map(|point| Some((point, point.host?))).collect();
    let seconds: f64 = seen.iter().map(|(point, _)| point.duration_s).sum();
    let mean = |of: &dyn Fn(&Point, HostUse) -> f64| {
        let sum: f64 = seen.iter().map(|&(point, host)| of(point, host) * point.duration_s).sum();
        (seconds > 0.0).then(|| sum / seconds)
    };
    let own = |point: &Point| point.engine_cpu.map_or(0.0, |own| own.cores) / cores;
    Host {
        others_cpu_ratio: mean(&|point, host| (host.cpu_busy_ratio - own(point)).max(0.0)),
        steal_ratio: mean(&|_, host| host.steal_ratio),
        ..Host::default()
    }
}
