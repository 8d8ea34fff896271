//! The meter against servers that keep their own record, behave as they are told, or misbehave.
//!
//! These measure time on the cores that they share, so each waits for its turn.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "its main function reads the command line")]
#[path = "../../examples/alone.rs"]
mod alone;
mod basics;
mod calls;
mod ends;
mod goaway;
mod laws;
mod mock;
mod pieces;
mod prompt;
mod quiet;
mod rates;
mod raw;
mod tls;
mod truth;

use mock::Mock;
use modelmeter_common::{
    Problem,
    load::{LoadPoint, Stop},
    part::Point,
};
use modelmeter_meter::{Rules, Target, endpoint::Endpoint, measure, unary::Unary};
use std::sync::Arc;
use tokio::sync::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

static TURN: Mutex<()> = Mutex::const_new(());

/// Under `cargo test` the tests of a binary share a process; nextest has a group for them.
async fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().await
}

/// A client of the mock's model at an address, whose requests carry so many floats.
fn target_at(endpoint: String, floats: u64) -> Target {
    target_of(endpoint.parse().unwrap(), floats)
}

/// The same over TLS or a Unix socket.
fn target_of(endpoint: Endpoint, floats: u64) -> Target {
    batched(endpoint, floats, 1)
}

/// The same with calls of so many items.
fn batched(endpoint: Endpoint, floats: u64, batch_size: u32) -> Target {
    let call = calls::floats(floats, batch_size);
    Target::new(endpoint, Arc::new(Unary::new(call)), Arc::new(calls::Floats { batch_size }))
}

fn target(mock: &Mock) -> Target {
    target_at(mock.endpoint(), 16)
}

/// A point of exactly this length, warm-up apart.
fn rules(ms: u64) -> Rules {
    let stop = Stop { min_duration_ms: ms, max_duration_ms: ms, timeout_ms: 500, ..Stop::default() };
    Rules { stop, batches: None, seed: 1, slice: None, sla: None, aim: Default::default() }
}

const fn closed(concurrency: u32) -> LoadPoint {
    LoadPoint::Closed { concurrency }
}

async fn run_target(target: &Target, load: LoadPoint, rules: &Rules) -> Result<Point, Problem> {
    measure(target, load, rules, &(), &CancellationToken::new()).await
}

async fn run(mock: &Mock, load: LoadPoint, rules: &Rules) -> Result<Point, Problem> {
    run_target(&target(mock), load, rules).await
}

/// A percentile of a point's histogram, in ms.
fn value_ms(point: &Point, q: f64) -> f64 {
    point.latency.percentile_ns(q) as f64 / 1e6
}
