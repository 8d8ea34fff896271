//! The meter by itself, against any server that speaks KServe v2: how fast it says that it lives.
//!
//! `cargo run --release -p modelmeter-meter --example alone HOST:PORT`; a server for it is
//! `modelmeter serve --engine null --model FILE --grpc-port 8001`.

use anyhow::{Context, Result};
use modelmeter_common::{
    load::{LoadPoint, Stop},
    part::Point,
};
use modelmeter_meter::{
    Rules, Target,
    endpoint::Endpoint,
    measure,
    unary::{Call, Unary, frame_around},
};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<()> {
    let server = std::env::args().nth(1).context("name a server: HOST:PORT")?.parse()?;
    let point = four_in_flight(server).await?;
    println!("{} calls, {} of them failed", point.requests, point.errors);
    for percentile in &point.percentiles {
        let interval = percentile.interval().map(|i| format!(", 95 % interval {:.3?}", i.ci95)).unwrap_or_default();
        if let Some(ms) = percentile.ms {
            println!("p{}: {:.3} ms{interval}", percentile.q, ms.value);
        }
    }
    for warning in &point.warnings {
        println!("{}: {}", warning.code, warning.message);
    }
    Ok(())
}

/// Measures a server with four calls in flight.
pub async fn four_in_flight(server: Endpoint) -> Result<Point> {
    // What to call: a gRPC method, and encoded messages that are sent in turn. A ServerLiveRequest has no fields: its
    // message is empty.
    let path = "/inference.GRPCInferenceService/ServerLive".to_owned();
    let call = Call { path, frames: vec![frame_around(&[])?], batch_size: 1 };
    let target = Target::new(server, Arc::new(Unary::new(call)), Arc::new(()));
    // When to stop: the 95 % intervals are narrow enough, or the time is up.
    let stop = Stop { min_duration_ms: 1_000, max_duration_ms: 5_000, ..Stop::default() };
    let rules = Rules { stop, batches: None, seed: 0, slice: None, sla: None, aim: Default::default() };
    let load = LoadPoint::Closed { concurrency: 4 };
    Ok(measure(&target, load, &rules, &(), &CancellationToken::new()).await?)
}
