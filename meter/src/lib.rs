//! The meter: drives a server with a real gRPC client and says what came of it.
//!
//! What belongs here: pacing ([`schedule`]), the client and its connections, what it records, one point from warm-up
//! to verdict ([`meter`]), which loads to try ([`plan`], [`sweep`], [`search`]), and going on with a load that was
//! measured before ([`revisit`]). What does not: the rules by which warm-up and measuring end
//! ([`modelmeter_common::stats`]), making requests and checking answers ([`Check`]), and figures of device and host
//! ([`Probe`]): whoever uses the meter brings them.
//!
//! The client has a thread of its own. It speaks HTTP/2 itself, below any gRPC library, because what a
//! client costs shows in what it measures.

mod awake;
mod call;
mod caller;
mod check;
mod client;
mod conn;
mod control;
mod drift;
pub mod endpoint;
mod flights;
mod frame;
mod hpack;
pub mod meter;
mod observed;
mod once;
mod outbox;
mod outcome;
mod page;
mod places;
pub mod plan;
mod probe;
mod recorder;
mod revisit;
pub mod schedule;
pub mod search;
mod stream;
pub mod sweep;
mod sys;
pub mod threads;
mod verdict;

#[cfg(test)]
mod simulated;

pub use call::{Call, frame_around, grpc_frame};
pub use caller::{Caller, Ended};
pub use check::{Check, Remark};
pub use meter::measure;
pub use once::{Answer, FirstInference, Unanswered, ask, call_once, first_inference, reach};
pub use outcome::Failure;
pub use plan::{Budget, Measure, run_plan};
pub use probe::{Probe, Quota, Samples, Sampling};
pub use revisit::Bench;

use endpoint::Endpoint;
use modelmeter_common::load::{Sla, Stop};
use std::{sync::Arc, time::Instant};

/// What is called: one server, one kind of request.
#[derive(Clone)]
pub struct Target {
    /// Its gRPC port.
    pub endpoint: Endpoint,
    /// Ready-made requests.
    pub call: Call,
    /// Checks a sample of the answers.
    pub check: Arc<dyn Check>,
    /// Logical cores that the client's thread is pinned to.
    pub client_cpus: Option<Arc<[u32]>>,
}

impl Target {
    /// A target whose client may run on any core.
    pub fn new(endpoint: Endpoint, call: Call, check: Arc<dyn Check>) -> Self {
        Self { endpoint, call, check, client_cpus: None }
    }
}

/// When a point ends, and from what its arrivals are drawn.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Precision and durations.
    pub stop: Stop,
    /// A fixed number of calls instead of the precision.
    pub batches: Option<u64>,
    /// Of arrivals.
    pub seed: u64,
    /// What a budget leaves for the point, warm-up included.
    pub slice: Option<Slice>,
    /// The point ends when it has shown whether it meets this, whatever the precision.
    pub sla: Option<Sla>,
    /// What the point is measured for.
    pub aim: Aim,
}

/// What a point is measured for: how long it goes on for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Aim {
    /// Its figures: not shorter than the minimum duration.
    #[default]
    Figures,
    /// Its figures, and past its share of a budget the calls with which p95 and p99 are seen.
    Percentiles,
    /// Whether it may be the peak: shorter.
    Peak,
}

/// A point's part of a budget.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slice {
    /// Its share ends here. It goes on only while throughput or median lack an interval.
    pub share: Instant,
    /// It ends here with what it has.
    pub end: Instant,
}
