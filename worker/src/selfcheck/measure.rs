//! The figures, in about 20 seconds: the very client and meter that measure models, against the null engine in this process.

use super::{CONCURRENCIES, Closed, Host, Lateness, Open, RATES, SelfCheck, Timer, speed};
use crate::sample::{self, Probes};
use futures::future::BoxFuture;
use modelmeter_common::{
    Code, Problem, VERSION,
    load::{Arrivals, LoadPoint, Stop},
    part::{HostUse, Point, Warning},
    stats::Histogram,
};
use modelmeter_meter::{self as meter, Rules, Target};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Each load is measured about this long.
const MIN_MS: u64 = 1_000;
const MAX_MS: u64 = 1_500;
/// Of the null engine's rate in a closed loop: faster arrivals would only queue.
const MAX_LOAD: f64 = 0.8;
const SLEEPS: u32 = 1_000;
const SLEEP: Duration = Duration::from_micros(100);
const LATE_NS: u64 = 1_000_000;

/// Measures timer, cores and client; `say` is told what comes next. `null_engine` serves requests of this target in this
/// process. Boxed, so that it is compiled here, for speed.
///
/// # Errors
/// `cancelled` by `stop`; what stands in the way of a measurement.
pub fn measure<'a>(
    null_engine: &'a Target,
    say: &'a (dyn Fn(&str) + Sync),
    stop: &'a CancellationToken,
) -> BoxFuture<'a, Result<SelfCheck, Problem>> {
    Box::pin(all(null_engine, say, stop))
}

async fn all(target: &Target, say: &(dyn Fn(&str) + Sync), stop: &CancellationToken) -> Result<SelfCheck, Problem> {
    let cpu = sample::devices().0.swap_remove(0);
    let cores = cpu.cores.unwrap_or(1);
    say("measuring the timer and the cores");
    let timed = tokio::task::spawn_blocking(move || (timer(), speed::spread(cores))).await;
    let (timer, speed_spread) =
        timed.map_err(|e| Problem::new(Code::Internal, format!("the timer was not measured: {e}")))?;
    let mut bench = Bench { target, say, stop, points: Vec::new() };
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
    Ok(SelfCheck {
        modelmeter_version: VERSION,
        cpu: cpu.name,
        cores,
        timer,
        closed,
        open,
        host: Host { speed_spread, ..host(&bench.points, f64::from(cores)) },
    })
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

struct Bench<'a> {
    target: &'a Target,
    say: &'a (dyn Fn(&str) + Sync),
    stop: &'a CancellationToken,
    points: Vec<Point>,
}

impl Bench<'_> {
    async fn measure(&mut self, load: LoadPoint) -> Result<&Point, Problem> {
        if self.stop.is_cancelled() {
            return Err(Problem::new(Code::Cancelled, "interrupted"));
        }
        (self.say)(&format!("measuring {load}"));
        let stop = Stop { min_duration_ms: MIN_MS, max_duration_ms: MAX_MS, ..Stop::default() };
        let rules = Rules { stop, batches: None, seed: 0, slice: None, sla: None, aim: Default::default() };
        let probes = Probes::new(Some(std::process::id()));
        self.points.push(meter::measure(self.target, load, &rules, &probes, self.stop).await?);
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
