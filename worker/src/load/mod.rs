//! The meter: drives a server with a real gRPC client and says what came of it.
//!
//! What belongs here: pacing ([`schedule`]), the client and its connections, what it records, one point from warm-up
//! to verdict ([`meter`]), which loads to try ([`plan`], [`sweep`], [`search`]), and going on with a load that was
//! measured before ([`revisit`]). What does not: the rules by which warm-up and measuring end
//! ([`modelmeter_common::stats`]), making requests and checking answers ([`crate::inspector`]), and figures of device
//! and host ([`crate::sample`]).
//!
//! The client has a thread of its own. It speaks HTTP/2 itself, below any gRPC library, because what a
//! client costs shows in what it measures.

mod awake;
mod caller;
mod client;
mod conn;
mod control;
mod drift;
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
mod recorder;
mod revisit;
pub mod schedule;
pub mod search;
mod stream;
pub mod sweep;
mod sys;
mod verdict;

#[cfg(test)]
mod simulated;

pub use caller::{Caller, Ended};
pub use meter::measure;
pub use once::{Answer, FirstInference, call_once, first_inference};
pub(crate) use once::{Unanswered, ask, reach};
pub use plan::{Budget, Measure, run_plan};
pub use revisit::Bench;

use crate::{
    endpoint::Endpoint,
    inspector::{Call, Inspector},
};
use modelmeter_common::{
    Problem,
    load::{Sla, Stop},
};
use std::{sync::Arc, time::Instant};

/// What is called: one server, one kind of request.
#[derive(Clone)]
pub struct Target {
    /// Its gRPC port.
    pub endpoint: Endpoint,
    /// Ready-made requests.
    pub call: Call,
    /// Checks a sample of the answers.
    pub inspector: Arc<dyn Inspector>,
    /// Logical cores that the client's thread is pinned to.
    pub client_cpus: Option<Arc<[u32]>>,
}

impl Target {
    /// A target with all its requests made.
    pub fn new(endpoint: Endpoint, inspector: Arc<dyn Inspector>) -> Result<Self, Problem> {
        Ok(Self { endpoint, call: inspector.prepare()?, inspector, client_cpus: None })
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
