//! Statistics: the one histogram, and intervals that say how far a figure can be trusted.

mod histogram;

pub use histogram::{Histogram, HistogramError};

use serde::{Deserialize, Serialize};

/// A value with its 95 % confidence interval.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Interval {
    /// The estimate.
    pub value: f64,
    /// Lower and upper end.
    pub ci95: [f64; 2],
}
