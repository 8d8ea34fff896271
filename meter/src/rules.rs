//! The rules of a load point: its precision, its duration, and its purpose.

use modelmeter_common::load::{Sla, Stop};
use std::time::Instant;

/// When a point ends, and from what its arrivals are drawn.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Precision and durations.
    pub stop: Stop,
    /// A fixed number of calls instead of the precision.
    pub batches: Option<u64>,
    /// The seed of an open loop's arrivals.
    pub seed: u64,
    /// The point's part of a budget, warm-up included; none without a budget.
    pub slice: Option<Slice>,
    /// The point ends when it has shown whether it meets this, whatever the precision.
    pub sla: Option<Sla>,
    /// What the point is measured for.
    pub aim: Aim,
}

/// What a point is measured for, which decides how long it goes on.
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
    /// The end of the point's share. The point goes on after it only while throughput or median lack an interval.
    pub share: Instant,
    /// The end of the point, with whatever it has by then.
    pub end: Instant,
}
