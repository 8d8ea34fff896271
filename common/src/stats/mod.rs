//! Statistics: the one histogram, and intervals that say how far a figure can be trusted.

pub mod batch;
pub mod fold;
mod histogram;
pub mod percentile;
pub mod series;
pub mod sla;
mod special;
pub mod stop;
pub mod warmup;

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

impl Interval {
    /// The greater distance of an end from the value, as a share of the value.
    pub fn relative_half_width(&self) -> f64 {
        let [low, high] = self.ci95;
        (high - self.value).max(self.value - low) / self.value
    }
}
