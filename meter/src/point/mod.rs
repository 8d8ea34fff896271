//! One load point: [`measure`] runs it from warm-up to its end ([`meter`]) and puts its figures together ([`validity`]).
//!
//! What belongs here: when a point ends, whether it is valid, and which warnings it has. What does not: the statistics
//! ([`modelmeter_common::stats`]), and the choice of loads ([`crate::plan`]).

mod drift;
mod limits;
mod meter;
mod observed;
mod validity;

pub(crate) use limits::lacks_percentiles;
pub(crate) use observed::Kept;
pub(crate) use validity::point;

#[cfg(test)]
pub(crate) use limits::is_decided;

use crate::{drive::Orders, probe::Probe, rules::Rules, schedule::Pacer, target::Target};
use futures::future::BoxFuture;
use meter::Meter;
use modelmeter_common::{Code, Problem, load::LoadPoint, part::Point};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Measures one load point. A cancellation ends it within about 100 ms. The future is boxed, so that it is compiled in this
/// crate, once and for speed.
///
/// # Errors
/// No call succeeded, or the point was cancelled.
pub fn measure<'a>(
    target: &'a Target,
    load: LoadPoint,
    rules: &'a Rules,
    probe: &'a dyn Probe,
    cancel: &'a CancellationToken,
) -> BoxFuture<'a, Result<Point, Problem>> {
    Box::pin(async move {
        let kept = observe(target, load, rules, probe, cancel, None).await?;
        kept.seen.nothing.clone().map_or_else(|| Ok(point(target.transport.batch_size(), rules, &kept)), Err)
    })
}

/// Measures one load point and returns what was seen, also where no call succeeded. With `earlier`, the point goes on with
/// what was measured of the load before: a closed loop's series is continued.
pub(crate) async fn observe(
    target: &Target,
    load: LoadPoint,
    rules: &Rules,
    probe: &dyn Probe,
    cancel: &CancellationToken,
    earlier: Option<&Kept>,
) -> Result<Kept, Problem> {
    let timeout = Duration::from_millis(rules.stop.timeout_ms);
    let orders = Orders {
        pacer: Pacer::new(load, rules.seed),
        max_in_flight: rules.stop.max_in_flight as usize,
        cpus: target.client_cpus.clone(),
        ..Orders::new(&target.endpoint, timeout).await?
    };
    let started = target.transport.start(orders);
    let started = started.map_err(|e| Problem::new(Code::Internal, format!("cannot start the client: {e}")))?;
    let mut meter = Meter::new(target, load, rules, started);
    if let Some(earlier) = earlier {
        meter.go_on_with(&earlier.seen);
    }
    let running = meter.run(probe, cancel).await?;
    meter.end();
    let ended = tokio::task::spawn_blocking(|| running.end());
    let samples = ended.await.map_err(|e| Problem::new(Code::Internal, format!("sampling failed: {e}")))?;
    let before_s = earlier.map_or(0.0, |e| e.seen.series.seconds());
    let mut seen = meter.observed().await?;
    let Some(earlier) = earlier else { return Ok(Kept { seen, samples }) };
    let more_s = seen.series.seconds() - before_s;
    let share = more_s / (before_s + more_s).max(1e-9);
    seen.add_earlier(&earlier.seen);
    Ok(Kept { seen, samples: earlier.samples.and(&samples, share) })
}
